"""Draw learning curves from whatever runs lie in a directory, without training again.

    python -m experiments.plot
    python -m experiments.plot runs_dir=runs out=curves.png
    python -m experiments.plot shop=synthetic-full agents=ppo,dqn,scorer

Arguments:
    runs_dir  where the runs are (default: runs)
    out       the picture, .png, .pdf or .svg (default: <runs_dir>/learning_curves.png)
    shop      only environments whose directory name matches this pattern
    agents    only agents whose directory name matches one of these patterns

One panel per environment; one line per agent, the mean over its seeds, with 95% intervals
over seeds (over shoppers where there is one seed); agents that do not learn are lines
across the panel. Runs whose references differ from the others' are left out and named.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from experiments import results
from experiments.cli import arguments, entry
from experiments.report import named
from experiments.stats import curve_interval
from recenv.errors import UsageError
from recenv.seeding import Role, generator

# Okabe & Ito 2008, readable for the colour-blind; line styles and markers tell the same in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# a look of their own for the agents of the card, whatever else is drawn
CARD = (
    "ppo", "scorer", "dqn", "linucb", "popularity", "rotation", "random", "lin_ts", "logistic_ts",
    "neural_linear_ts", "ensemble_ts", "epsilon_greedy", "ucb1", "beta_ts", "myopic_oracle",
    "index_policy", "planning_oracle",
)  # fmt: skip
PREFERRED = {agent: place for place, agent in enumerate(CARD)}


@dataclass(frozen=True)
class Curve:
    """The scores of one agent over environment steps, mean and interval."""

    label: str
    timesteps_E: np.ndarray
    score_E: np.ndarray
    low_E: np.ndarray
    high_E: np.ndarray
    seeds: int

    @property
    def flat(self) -> bool:
        """Whether the agent does not learn."""
        return bool(self.timesteps_E[-1] == 0)


@dataclass(frozen=True)
class Panel:
    """The curves of one environment, and the references that their scores stand on."""

    shop: str
    curves: tuple[Curve, ...]
    low: str
    high: str
    myopic: float | None


def draw_all(
    runs_dir: Path,
    out: Path | None = None,
    shop: str = "*",
    agents: Iterable[str] = ("*",),
) -> Path:
    """The picture of all runs below a directory.

    Raises:
        UsageError: there is nothing to draw.
    """
    wanted = list(agents)
    runs = [
        run
        for run in results.find_runs(runs_dir)
        if fnmatch(run.shop, shop) and any(fnmatch(run.label, pattern) for pattern in wanted)
    ]
    if not runs and (shop != "*" or wanted != ["*"]):
        raise UsageError(f"no run below {runs_dir} matches shop={shop} agents={','.join(wanted)}")
    return draw(runs, out or runs_dir / "learning_curves.png")


def draw(runs: list[results.RunDirectory], out: Path) -> Path:
    """The picture of some runs; those that cannot be read are named and left out."""
    if out.suffix not in (".png", ".pdf", ".svg"):
        raise UsageError(f"out must end in .png, .pdf or .svg, got {out}")
    by_shop: dict[str, list[results.RunDirectory]] = defaultdict(list)
    for run in runs:
        by_shop[run.shop].append(run)
    panels = [panel for name in by_shop if (panel := _panel(name, by_shop[name]))]
    if not panels:
        raise UsageError("there are no evaluations to draw: train something first")
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(1.5 + 5.5 * columns, 4.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        draw_panel(axis, panel)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    return save(figure, out)


def save(figure: Figure, out: Path) -> Path:
    """Write a picture, or say in one line why not."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=150)
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror or error}") from None
    return out


def _panel(shop: str, runs: list[results.RunDirectory]) -> Panel | None:
    """Read the runs of one environment."""
    read: dict[str, list[tuple[dict[str, np.ndarray], dict[str, Any]]]] = defaultdict(list)
    references: dict[str, Any] | None = None
    for run in runs:
        try:
            evaluations = run.evaluations()
            summary = run.summary() if run.finished else {}
        except UsageError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        own = {name: summary.get(name) for name in ("reference_low", "reference_high")}
        if summary and references is None:
            references = own | {"reference_myopic": summary.get("reference_myopic")}
        if summary and references and any(own[name] != references[name] for name in own):
            print(f"left out: {run.path} was scored against other references", file=sys.stderr)
            continue
        if len(evaluations["timesteps"]):
            read[run.label].append((evaluations, summary))
        if not summary:
            print(f"not finished: {run.path}", file=sys.stderr)
    curves = tuple(_curve(label, _comparable(label, found)) for label, found in read.items())
    if not curves:
        return None
    references = references or {}
    return Panel(
        shop,
        curves,
        _name(references.get("reference_low"), "random"),
        _name(references.get("reference_high"), "high reference"),
        _myopic(references),
    )


def _comparable(
    label: str, found: list[tuple[dict[str, np.ndarray], dict[str, Any]]]
) -> list[dict[str, np.ndarray]]:
    """The evaluations of the finished runs of an agent; of all where none is finished.

    An interrupted run would cut the curves of the others to its own length.
    """
    finished = [evaluations for evaluations, summary in found if summary]
    if finished and len(finished) < len(found):
        print(f"left out: {len(found) - len(finished)} unfinished of {label}", file=sys.stderr)
    return finished or [evaluations for evaluations, _ in found]


def _name(reference: dict[str, Any] | None, otherwise: str) -> str:
    return f"{named(reference)}\n({reference['return']:.1f})" if reference else otherwise


def _myopic(references: dict[str, Any]) -> float | None:
    """The myopic oracle on the normalised scale."""
    parts = [references.get(f"reference_{role}") for role in ("low", "high", "myopic")]
    if any(part is None for part in parts):
        return None
    low, high, myopic = (part["return"] for part in parts if part is not None)
    return float((myopic - low) / max(high - low, 1e-9))


def _curve(label: str, seeds: list[dict[str, np.ndarray]]) -> Curve:
    """Mean and interval over seeds, at the steps that the shortest run has too."""
    shortest = min(seeds, key=lambda seed: seed["timesteps"][-1])
    steps_E = shortest["timesteps"]
    if len(seeds) == 1:
        names = ("normalised_score", "normalised_low", "normalised_high")
        score_E, low_E, high_E = (shortest[name] for name in names)
        return Curve(label, steps_E, score_E, low_E, high_E, seeds=1)
    score_RE = np.array(
        [np.interp(steps_E, seed["timesteps"], seed["normalised_score"]) for seed in seeds]
    )
    # the same picture from the same files
    rng = generator(Role.STATISTICS, 0)
    return Curve(label, steps_E, *curve_interval(score_RE, rng), seeds=len(seeds))


def draw_panel(axis: Axes, panel: Panel, legend: bool = True) -> None:
    """The learning curves of one environment."""
    longest = max(curve.timesteps_E[-1] for curve in panel.curves)
    axis.axhline(1.0, color="0.35", linewidth=1.0, linestyle=":")
    axis.axhline(0.0, color="0.35", linewidth=1.0, linestyle=":")
    note(axis, 1.0, f"{panel.high} = 1")
    note(axis, 0.0, f"{panel.low} = 0")
    if panel.myopic is not None and abs(panel.myopic - 1.0) > 0.03:
        axis.axhline(panel.myopic, color="0.35", linewidth=1.0, linestyle=(0, (6, 2)))
        close = abs(panel.myopic - 1.0) < 0.12  # the text must not lie on the line's above
        words = f"myopic oracle{' ' if close else chr(10)}= {panel.myopic:.2f}"
        note(axis, panel.myopic, words, "top" if close and panel.myopic < 1 else "center")
    known = styles([curve.label for curve in panel.curves])
    ranked = sorted(panel.curves, key=lambda curve: -curve.score_E[-1])
    for curve in ranked:
        draw_curve(axis, curve, known[curve.label])
    if longest > 0:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    lows = [float(np.nanmin(curve.score_E)) for curve in panel.curves]
    highs = [float(np.nanmax(curve.score_E)) for curve in panel.curves]
    axis.set_ylim(min(-0.12, *lows) - 0.05, max(1.1, *highs) + 0.08)
    axis.set_title(panel.shop, fontsize=11, loc="left")
    axis.set_xlabel("environment steps consumed by learning")
    axis.set_ylabel("normalised score")
    tidy(axis)
    if not legend:
        return
    many = max(curve.seeds for curve in panel.curves) > 1
    axis.legend(
        fontsize=8,
        loc="lower right",
        framealpha=0.9,
        title=f"last score; band: 95% over {'seeds' if many else 'shoppers'}",
        title_fontsize=8,
        alignment="left",
    )


def tidy(axis: Axes) -> None:
    axis.grid(alpha=0.2)
    axis.spines[["top", "right"]].set_visible(False)


def draw_curve(axis: Axes, curve: Curve, style: dict[str, Any]) -> None:
    """A curve with its band; a line across where the agent does not learn."""
    label = f"{curve.label}: {curve.score_E[-1]:.2f} ({curve.seeds} seed{'s'[: curve.seeds > 1]})"
    if curve.flat:
        line = {key: style[key] for key in ("color", "linestyle")}
        axis.axhline(float(curve.score_E[-1]), linewidth=1.6, label=label, **line)
        return
    axis.plot(curve.timesteps_E, curve.score_E, markersize=4, linewidth=1.8, label=label, **style)
    axis.fill_between(
        curve.timesteps_E,
        curve.low_E,
        curve.high_E,
        color=style["color"],
        alpha=0.18,
        linewidth=0,
    )


def note(axis: Axes, height: float, text: str, va: str = "center") -> None:
    """A remark at the right end of a height."""
    axis.annotate(
        text,
        (1.0, height),
        xycoords=("axes fraction", "data"),
        xytext=(5, 0),
        textcoords="offset points",
        va=va,
        fontsize=8,
        color="0.3",
        annotation_clip=False,
    )


def styles(labels: list[str]) -> dict[str, dict[str, Any]]:
    """A colour, line and marker per agent; an agent keeps its own in every picture."""
    found, free = {}, [i for i in range(1000) if i not in PREFERRED.values()]
    for label in sorted(labels):
        index = PREFERRED[label] if label in PREFERRED else free.pop(0)
        again = index // len(COLOURS)
        found[label] = {
            "color": COLOURS[index % len(COLOURS)],
            "linestyle": STYLES[index % len(STYLES)],
            "marker": MARKERS[(index + again) % len(MARKERS)],
            "markerfacecolor": "white" if again % 2 else COLOURS[index % len(COLOURS)],
        }
    return found


def main(argv: list[str]) -> None:
    """Draw, and say where."""
    defaults = {"runs_dir": "runs", "out": None, "shop": "*", "agents": "*"}
    asked = arguments(argv, defaults)
    out = Path(str(asked["out"])) if asked["out"] else None
    agents = [pattern.strip() for pattern in str(asked["agents"]).split(",")]
    print(draw_all(Path(str(asked["runs_dir"])), out, str(asked["shop"]), agents))


if __name__ == "__main__":
    entry(main, __doc__)
