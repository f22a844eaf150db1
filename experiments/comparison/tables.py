"""The tables of a comparison: Markdown, CSV, LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.comparison.ledger import BUDGET
from experiments.comparison.measures import difference, overall, regret_slope, steps_to
from experiments.comparison.runs import Comparison, Group, title
from experiments.stats import Estimate

DESCRIPTIVE = (
    "return_mean",
    "conversion",
    "session_length",
    "coverage",
    "gini",
    "entropy",
    "top_item_share",
    "train_seconds",
)
ESTIMATES = ("score", "more_than_baseline", "steps_to_50", "steps_to_90")


@dataclass(frozen=True)
class Row:
    """What the tables say of an agent in a cell."""

    group: Group
    score: Estimate
    more_than_baseline: Estimate | None
    steps_to_50: Estimate | None
    steps_to_90: Estimate | None
    slope: float | None

    def mean(self, column: str) -> float:
        return self.group.mean(column)

    @property
    def runs(self) -> str:
        """How many, and a mark where others have more."""
        return f"{len(self.group.runs)}{'' if self.group.complete else '†'}"


def rows(comparison: Comparison, baseline: str) -> list[Row]:
    """A row for each agent in each cell, best first."""
    found = []
    for cell in comparison.cells:
        against = comparison.groups.get((cell, baseline))
        for group in comparison.in_cell(cell):
            more = None
            if against is not None and against is not group:
                more = difference(group, against)
            half, most = steps_to(group, 0.5), steps_to(group, 0.9)
            found.append(Row(group, group.score, more, half, most, regret_slope(group)))
    return found


def as_csv(comparison: Comparison, table: Sequence[Row]) -> str:
    """Everything, to go on with elsewhere; what is unknown is empty, never reached is inf."""
    names = [f"{name}{end}" for name in ESTIMATES for end in ("", "_low", "_high")]
    header = ["cell", "agent", "runs", "worlds", "complete", "total_timesteps", *names]
    header += ["cumulative_regret_slope", "myopic_score", "high_reference", *DESCRIPTIVE]
    lines: list[list[Any]] = [header]
    for row in table:
        group = row.group
        words = [group.cell, group.agent, len(group.runs), len(set(group.world_R.tolist()))]
        words += [group.complete, group.runs[0].budget if group.learns else 0]
        for name in ESTIMATES:
            estimate = getattr(row, name)
            ends = (estimate.value, estimate.low, estimate.high) if estimate else (None,) * 3
            words += [_cell(end) for end in ends]
        words += [_cell(row.slope), _cell(comparison.myopic_score(group.cell))]
        words += [" or ".join(comparison.high_names(group.cell))]
        lines.append(words + [_cell(row.mean(name)) for name in DESCRIPTIVE])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def as_latex(comparison: Comparison) -> str:
    """Scores with intervals, agents by cells, in plain LaTeX."""
    cells = comparison.cells
    lines = [
        "% normalised scores (0: random, 1: high reference), interquartile mean over runs,",
        "% with 95% bootstrap intervals",
        f"\\begin{{tabular}}{{l{'c' * len(cells)}}}",
        "\\hline",
        " & ".join(["agent", *(_tex(title(cell)) for cell in cells)]) + r" \\",
        "\\hline",
    ]
    for agent in comparison.agents:
        words = [_tex(agent)]
        for cell in cells:
            group = comparison.groups.get((cell, agent))
            words.append("--" if group is None else _tex_score(group.score))
        lines.append(" & ".join(words) + r" \\")
    return "\n".join([*lines, "\\hline", "\\end{tabular}", ""])


def as_markdown(comparison: Comparison, table: Sequence[Row], baseline: str) -> str:
    """The part of report.md that stands in tables."""
    parts = []
    if len(comparison.cells) > 1:
        parts += ["## All shops", "", *matrix(comparison), ""]
    for cell in comparison.cells:
        high = " or ".join(comparison.high_names(cell))
        parts += [
            f"## {title(cell)}",
            "",
            f"0: random, {comparison.myopic_score(cell):.2f}: myopic oracle, 1: {high}.",
            "",
            *_cell_table([row for row in table if row.group.cell == cell], baseline),
            "",
        ]
    return "\n".join(parts)


def matrix(comparison: Comparison) -> list[str]:
    """Scores of agents by cells; the best agent that learns in bold."""
    cells = comparison.cells
    several = len(cells) > 1
    head = ["agent", *(["all"] if several else []), *(title(cell) for cell in cells)]
    lines = [_line(head), _line(["---"] * len(head))]
    best = {cell: max((_learned(g) for g in comparison.in_cell(cell)), default=0) for cell in cells}
    for agent in comparison.agents:
        words = [f"`{agent}`"]
        if several:
            everywhere = overall(comparison, agent)
            words.append("" if everywhere is None else interval(everywhere))
        for cell in cells:
            group = comparison.groups.get((cell, agent))
            if group is None:
                words.append("")
                continue
            mark = "**" if group.learns and group.score.value == best[cell] else ""
            words.append(f"{mark}{interval(group.score)}{mark}{'' if group.complete else '†'}")
        lines.append(_line(words))
    return lines


def _learned(group: Group) -> float:
    return group.score.value if group.learns else -np.inf


def _cell_table(table: Sequence[Row], baseline: str) -> list[str]:
    against = any(row.more_than_baseline for row in table)
    head = ["agent", "runs", "score [95%]", "return"]
    head += [f"more than {baseline} [95%]"] if against else []
    head += ["conversion", "steps to 0.5", "steps to 0.9", "coverage", "Gini", "entropy"]
    head += ["top item", "length", "served regret slope", "training"]
    lines = [_line(head), _line(["---"] * len(head))]
    for row in table:
        words = [f"`{row.group.agent}`", row.runs, interval(row.score)]
        words.append(f"{row.mean('return_mean'):.2f}")
        if against:
            more = row.more_than_baseline
            words.append(interval(more, "+.2f") if more else "")
        words.append(f"{row.mean('conversion'):.1%}")
        words += [steps(row.steps_to_50), steps(row.steps_to_90)]
        words += [f"{row.mean('coverage'):.0%}", f"{row.mean('gini'):.2f}"]
        words += [f"{row.mean('entropy'):.2f}", f"{row.mean('top_item_share'):.1%}"]
        words.append(f"{row.mean('session_length'):.1f}")
        words.append("" if row.slope is None else f"{row.slope:.2f}")
        words.append(f"{row.mean('train_seconds'):.0f} s" if row.group.learns else "")
        lines.append(_line(words))
    return lines


def leaderboard(comparison: Comparison, about: dict[str, Any]) -> str:
    """The published table, with what it was made with."""
    asked = about["question"]
    commits = sorted({str(made.get("git")) for made in about["versions"]})
    made = about["versions"][-1]
    versions = ", ".join(f"{k} {v}" for k, v in made.items() if v and k not in ("git", "machine"))
    runs = sorted({len(group.runs) for group in comparison.groups.values() if group.learns})
    lines = [
        "# Leaderboard",
        "",
        "Normalised score (0: random items, 1: the high reference), interquartile mean over runs "
        "with its 95% bootstrap interval (runs within worlds); the best agent that learns in bold.",
        f"Every agent learned from {asked['total_timesteps']:,} environment steps; "
        f"{' to '.join(map(str, sorted({runs[0], runs[-1]}))) if runs else 'no'} runs a cell "
        "(agents that do not learn: one in each world).",
        "",
        *matrix(comparison),
        "",
        *_marks(comparison),
        *(f"- {note}" for note in comparison.notes),
        "",
        "Slope of the logarithm of cumulative regret, of what was served while learning, over the "
        "last tenfold of steps (1: goes on losing as much; 0: loses nothing more), mean over runs:",
        "",
        *_slopes(comparison),
        "",
        "Made with `python -m experiments.leaderboard"
        f"{_words(asked)}` at commit {', '.join(commits)}; {versions}.",
        "",
        "![Where each agent stands](leaderboard.png)",
        "",
        "![Learning curves](leaderboard_curves.png)",
        "",
    ]
    return "\n".join(lines)


def _slopes(comparison: Comparison) -> list[str]:
    """The slopes of cumulative regret, agents by cells."""
    slopes = {key: regret_slope(group) for key, group in comparison.groups.items()}
    known = [a for a in comparison.agents if any(slopes.get((c, a)) for c in comparison.cells)]
    head = ["agent", *map(title, comparison.cells)]
    lines = [_line(head), _line(["---"] * len(head))]
    for agent in known:
        told = (slopes.get((cell, agent)) for cell in comparison.cells)
        lines.append(_line([f"`{agent}`", *("" if v is None else f"{v:.2f}" for v in told)]))
    return lines


def _marks(comparison: Comparison) -> list[str]:
    if all(group.complete for group in comparison.groups.values()):
        return []
    return ["† not all the runs that other agents have there.", ""]


def _words(asked: dict[str, Any]) -> str:
    """The question as arguments, without what is default."""
    words = [] if asked["total_timesteps"] == BUDGET else [
        f"total_timesteps={asked['total_timesteps']}"
    ]  # fmt: skip
    for group in ("env", "eval"):
        words += [f"{group}.{key}={value}" for key, value in asked[group].items()]
    return "".join(f" {word}" for word in words)


def interval(estimate: Estimate, form: str = ".2f") -> str:
    """0.93 [0.91, 0.95]; without bounds of one run."""
    digits = int(form[-2])
    # no minus before a nought
    value, low, high = (
        round(number, digits) + 0.0 for number in (estimate.value, estimate.low, estimate.high)
    )
    words = f"{value:{form}}"
    return words if np.isnan([low, high]).any() else f"{words} [{low:{form}}, {high:{form}}]"


def steps(estimate: Estimate | None) -> str:
    """Steps with their interval, in thousands; "never" where the target was not reached."""
    if estimate is None:
        return ""
    if np.isnan([estimate.low, estimate.high]).any():
        return _thousands(estimate.value)
    words = [_thousands(value) for value in (estimate.value, estimate.low, estimate.high)]
    return "never" if set(words) == {"never"} else f"{words[0]} [{words[1]}, {words[2]}]"


def _thousands(value: float) -> str:
    return "never" if np.isinf(value) else f"{value / 1000:.3g} k"


def _line(words: Sequence[str]) -> str:
    return f"| {' | '.join(words)} |"


def _cell(value: float | None) -> str:
    return "" if value is None or np.isnan(value) else f"{value:.6g}"


def _tex(text: str) -> str:
    return text.replace("_", r"\_").replace("%", r"\%").replace("&", r"\&")


def _tex_score(estimate: Estimate) -> str:
    if np.isnan([estimate.low, estimate.high]).any():
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} {{\\scriptsize [{estimate.low:.2f}, {estimate.high:.2f}]}}"
