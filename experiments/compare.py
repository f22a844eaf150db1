"""Compare agents from their run directories: a report that says what may be believed.

    python -m experiments.compare
    python -m experiments.compare runs_dir=runs out=report
    python -m experiments.compare shops=synthetic-* agents=ppo,dqn,scorer baseline=scorer

Arguments:
    runs_dir         where the runs are (runs)
    out              where the report goes (report)
    shops            only shops (without their world seed) that match one of these patterns
    agents           only agents whose directory name matches one of these patterns
    total_timesteps  only runs with this budget of environment steps
    baseline         the agent that others are compared with, pair by pair (scorer)

Writes report.md, table.csv, table.tex, a picture each of where agents stand, learning
curves, regret, cumulative regret while learning, the performance profile, who beats whom
and what is recommended, and report.html: all of it to click through, without network.

Runs are put together by shop without its world seed, and agent. Mixed budgets in a shop,
mixed references, evaluations or fingerprints of one world are refused; missing seeds, mixed
commits and versions, collapsed policies and runs that were left out stand on top.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from experiments import results
from experiments.cli import arguments, entry
from experiments.comparison import figures, page, tables
from experiments.comparison.measures import improvement
from experiments.comparison.runs import Comparison, compare, read
from recenv.errors import UsageError
from recenv.shop import as_number

PICTURES = {
    "standing.png": "Where each agent stands",
    "learning_curves.png": "Learning curves",
    "regret.png": "Regret of what was learned, over environment steps",
    "cumulative_regret.png": "Regret of what was served while learning, added up",
    "profile.png": "Performance profile",
    "improvement.png": "Who is likely to beat whom",
}


def report(comparison: Comparison, out: Path, baseline: str) -> list[Path]:
    """Write the whole report; the files."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {error.strerror or error}") from None
    table = tables.rows(comparison, baseline)
    pictures = draw(comparison, out)
    results.write_text(out / "table.csv", tables.as_csv(comparison, table))
    results.write_text(out / "table.tex", tables.as_latex(comparison))
    results.write_text(out / "report.md", _markdown(comparison, table, baseline, pictures))
    results.write_text(out / "report.html", page.html(comparison, table, baseline))
    return [
        out / name for name in ("report.md", "table.csv", "table.tex", "report.html")
    ] + pictures


def draw(comparison: Comparison, out: Path) -> list[Path]:
    """The pictures that these runs have something for."""
    drawn: list[Path | None] = [
        figures.standing(comparison, out / "standing.png"),
        figures.curves(comparison, out / "learning_curves.png"),
    ]
    if any(group.learns for group in comparison.groups.values()):
        drawn.append(figures.regret(comparison, out / "regret.png"))
    drawn.append(figures.cumulative(comparison, out / "cumulative_regret.png"))
    if len(comparison.everywhere) > 1:
        drawn.append(figures.performance_profile(comparison, out / "profile.png"))
        found = improvement(comparison)
        drawn.append(figures.improvement(comparison, found, out / "improvement.png"))
    for cell in comparison.cells:
        picture = out / f"recommendations_{cell}.png"
        drawn.append(figures.recommendations(comparison, cell, picture))
    return [path for path in drawn if path is not None]


def _markdown(
    comparison: Comparison, table: list[tables.Row], baseline: str, pictures: list[Path]
) -> str:
    learned = [group for group in comparison.groups.values() if group.learns]
    budgets = sorted({run.budget for group in learned for run in group.runs})
    judged = sorted({run.judged for run in comparison.runs})
    lines = [
        "# Comparison",
        "",
        f"{len(comparison.runs)} runs of {len(comparison.agents)} agents in "
        f"{len(comparison.cells)} shops; learning from {_listed(budgets)} environment steps; "
        f"judged by {_listed(shoppers for _, shoppers in judged)} shoppers.",
        "",
        "Scores are normalised (0: random, 1: the high reference): interquartile mean over runs "
        "with 95% bootstrap interval, runs within worlds; of a single run over shoppers. "
        "Steps to 0.5 and 0.9 are environment steps until that share of the high reference.",
        "",
        "## What to know first",
        "",
        *(f"- {note}" for note in comparison.notes or ("nothing stands out",)),
        "",
        tables.as_markdown(comparison, table, baseline),
        "## Pictures",
        "",
    ]
    for picture in pictures:
        cell = picture.stem.removeprefix("recommendations_")
        words = PICTURES.get(picture.name, f"What is recommended in {cell}")
        lines += [f"![{words}]({picture.name})", ""]
    return "\n".join(lines)


def _listed(values: Any) -> str:
    return ", ".join(f"{value:,}" for value in values) or "no"


def main(argv: list[str]) -> None:
    """Compare, and say where the report is."""
    defaults = {
        "runs_dir": "runs", "out": "report", "shops": "*", "agents": "*",
        "total_timesteps": None, "baseline": "scorer",
    }  # fmt: skip
    asked = arguments(argv, defaults)
    page.require()
    agents = [pattern.strip() for pattern in str(asked["agents"]).split(",")]
    found, notes = read(Path(str(asked["runs_dir"])), str(asked["shops"]), agents)
    budget = asked["total_timesteps"]
    if budget is not None:
        as_number("total_timesteps", budget, 1, 10**12)
        found = [run for run in found if run.budget == budget or not run.learns]
        if not found:
            raise UsageError(f"no run has total_timesteps={budget}")
    comparison = compare(found, notes)
    for note in comparison.notes:
        print(f"note: {note}", file=sys.stderr)
    for path in report(comparison, Path(str(asked["out"])), str(asked["baseline"])):
        print(path)


if __name__ == "__main__":
    entry(main, __doc__)
