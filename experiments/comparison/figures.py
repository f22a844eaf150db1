"""The pictures of a comparison, in the manner of ``experiments.plot``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, PercentFormatter

from experiments import plot
from experiments.comparison.measures import (
    Improvement,
    category_shares,
    cumulative_regret,
    effective_items,
    over_runs,
    profile,
    served_regret,
    simple_regret,
)
from experiments.comparison.runs import Comparison, Group, title
from experiments.plot import COLOURS

# who plans, who imitates, who explores, who knows: (colour, marker, words)
KINDS = {
    "rl": (COLOURS[0], "o", "plans (RL)"),
    "scorer": (COLOURS[1], "s", "supervised scorer"),
    "bandit": (COLOURS[2], "^", "bandit"),
    "oracle": ("black", "D", "knows the truth"),
    "rule": ("0.55", "v", "rule or other"),
}
BANDITS = (
    "epsilon_greedy", "ucb1", "beta_ts", "linucb", "lin_ts", "logistic_ts", "neural_linear_ts",
    "ensemble_ts",
)  # fmt: skip
KIND = {
    "ppo": "rl", "dqn": "rl", "scorer": "scorer", **dict.fromkeys(BANDITS, "bandit"),
    "planning_oracle": "oracle", "index_policy": "oracle", "myopic_oracle": "oracle",
    "epsilon_oracle": "oracle",
}  # fmt: skip
MANY = 8  # agents, from which on one legend serves all panels and bands are left out


def kind(agent: str) -> str:
    """What sort of agent it is; settings that are not default do not change it."""
    return KIND.get(agent.split("+")[0], "rule")


def standing(comparison: Comparison, out: Path) -> Path:
    """Where each agent stands between random, the myopic oracle and the high reference."""
    cells, agents = comparison.cells, comparison.agents
    figure = _figure(1.9 + 2.05 * len(cells), 1.5 + 0.27 * len(agents))
    axes = figure.subplots(1, len(cells), sharey=True, squeeze=False)[0]
    lows = [min(g.score.value for g in comparison.in_cell(cell)) for cell in cells]
    highs = [max(g.score.value for g in comparison.in_cell(cell)) for cell in cells]
    for axis, cell in zip(axes, cells, strict=True):
        _references(axis, comparison.myopic_score(cell))
        for group in comparison.in_cell(cell):
            _dot(axis, agents.index(group.agent), group)
        axis.set_title(_heading(cell, 18), fontsize=10.5, pad=18)
        axis.set_xlim(min(-0.08, *lows) - 0.04, max(1.05, *highs) + 0.5)
        axis.set_xticks([0, 0.5, 1])
        plot.tidy(axis)
        axis.grid(visible=False, axis="x")
        axis.tick_params(left=axis is axes[0])
    axes[0].set_yticks(range(len(agents)), agents)
    axes[0].set_ylim(len(agents) - 0.5, -0.5)
    figure.supxlabel(
        "normalised score, interquartile mean over runs with 95% interval "
        f"(0: random; dashed: myopic oracle; 1: {_highs(comparison)})",
        fontsize=9.5,
    )
    known = {kind(agent) for agent in agents}
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="", label=words)
        for name, (colour, marker, words) in KINDS.items()
        if name in known
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    return plot.save(figure, out)


def _references(axis: Axes, myopic: float) -> None:
    for place in (0.0, 1.0):
        axis.axvline(place, color="0.35", linewidth=0.9, linestyle=":", zorder=0)
    axis.axvline(myopic, color="0.35", linewidth=0.9, linestyle=(0, (6, 2)), zorder=0)
    axis.annotate(
        f"myopic {myopic:.2f}",
        (myopic, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        fontsize=7.5,
        color="0.3",
    )


def _dot(axis: Axes, height: int, group: Group) -> None:
    colour, marker, _ = KINDS[kind(group.agent)]
    score = group.score
    if np.isfinite([score.low, score.high]).all():
        axis.plot([score.low, score.high], [height] * 2, color=colour, linewidth=2.2, alpha=0.55)
    axis.plot(score.value, height, color=colour, marker=marker, markersize=5)
    axis.annotate(
        f"{round(score.value, 2) + 0.0:.2f}{'' if group.complete else '†'}",
        (0.93, height),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="center",
        fontsize=7.5,
        color="0.2",
    )


def curves(comparison: Comparison, out: Path) -> Path:
    """Learning curves, a panel for each cell."""

    def panel(axis: Axes, cell: str) -> None:
        groups = _drawn(comparison, cell)
        plot.draw_panel(
            axis,
            plot.Panel(
                _heading(cell, 40),
                tuple(_curve(group) for group in groups),
                "random",
                "\n".join(comparison.high_names(cell)),
                comparison.myopic_score(cell),
            ),
            legend=False,
        )

    return _panels(comparison, panel, out)


def _curve(group: Group) -> plot.Curve:
    steps_E, score_RE = group.curve_RE
    if len(group.runs) == 1:
        last = group.runs[0].evaluations
        ends = (last["normalised_low"], last["normalised_high"])
        return plot.Curve(group.agent, steps_E, score_RE[0], *ends, seeds=1)
    bands = over_runs(group, score_RE)
    return plot.Curve(group.agent, steps_E, *bands, seeds=len(group.runs))


def regret(comparison: Comparison, out: Path) -> Path:
    """How much less a session earns than the references, over environment steps."""

    def panel(axis: Axes, cell: str) -> None:
        groups = [group for group in _drawn(comparison, cell) if group.learns]
        _lines(axis, groups, simple_regret)
        runs = [run for group in groups for run in group.runs]
        gap = float(np.mean([run.reference("high") - run.reference("myopic") for run in runs]))
        axis.axhline(0.0, color="0.35", linewidth=1.0, linestyle=":")
        there, back = (lambda y: np.subtract(y, gap)), (lambda y: np.add(y, gap))
        other = axis.secondary_yaxis("right", functions=(there, back))
        other.set_ylabel("against the myopic oracle", fontsize=8)
        other.tick_params(labelsize=8)
        axis.set_ylabel("regret of a session against the high reference", fontsize=8)
        _over_steps(axis, cell)

    return _panels(comparison, panel, out, wide=0.5)


def cumulative(comparison: Comparison, out: Path) -> Path | None:
    """Regret of what was served while learning, added up; None if no run logged it."""
    groups = [group for group in comparison.groups.values() if served_regret(group) is not None]
    if not groups:
        return None

    def panel(axis: Axes, cell: str) -> None:
        here = [group for group in _drawn(comparison, cell) if group in groups]
        _lines(axis, here, cumulative_regret, log=True)
        axis.set_yscale("log")
        axis.set_ylabel(
            "cumulative regret of sessions served\nagainst the high reference", fontsize=8
        )
        _over_steps(axis, cell)

    return _panels(comparison, panel, out)


def _lines(
    axis: Axes,
    groups: Sequence[Group],
    measure: Callable[[Group], tuple[np.ndarray, np.ndarray]],
    log: bool = False,
) -> None:
    known = plot.styles([group.agent for group in groups])
    for group in groups:
        steps_E, value_RE = measure(group)
        centre_E, low_E, high_E = over_runs(group, value_RE, log)
        style = known[group.agent]
        axis.plot(steps_E, centre_E, markersize=4, linewidth=1.6, label=group.agent, **style)
        if len(groups) < MANY and np.isfinite(low_E).all():
            axis.fill_between(steps_E, low_E, high_E, color=style["color"], alpha=0.15, linewidth=0)


def _over_steps(axis: Axes, cell: str) -> None:
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set_xlabel("environment steps consumed by learning")
    axis.set_title(_heading(cell, 40), fontsize=11, loc="left")
    plot.tidy(axis)


def _drawn(comparison: Comparison, cell: str) -> list[Group]:
    """The groups of a cell; without lines across the panel where there are many agents."""
    groups = comparison.in_cell(cell)
    learning = [group for group in groups if group.learns]
    return learning if len(comparison.agents) > MANY and learning else groups


def _panels(
    comparison: Comparison, draw: Callable[[Axes, str], None], out: Path, wide: float = 0.0
) -> Path:
    """A panel for each cell, and one legend for all."""
    cells = comparison.cells
    columns = len(cells) if len(cells) < 4 else -(-(len(cells) + 1) // 2) if len(cells) < 8 else 4
    rows = -(-len(cells) // columns)
    figure = _figure((4.6 + wide) * columns + 0.6, 3.7 * rows + 0.8)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, cell in zip(axes, cells, strict=False):
        draw(axis, cell)
    spare = axes[len(cells) :]
    for axis in spare:
        axis.set_axis_off()
    handles: dict[str, Any] = {}
    for axis in axes[: len(cells)]:
        for line, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label.split(":")[0], line)
    labels = [agent for agent in comparison.agents if agent in handles]
    lines = [handles[label] for label in labels]
    banded = any(axis.collections for axis in axes[: len(cells)])
    heading = f"best first{'; bands: 95% over runs' if banded else ''}"
    words = {"title": heading, "alignment": "left", "fontsize": 9.5}
    if len(spare):
        spare[0].legend(lines, labels, loc="center left", frameon=False, handlelength=3, **words)
    else:
        figure.legend(
            lines, labels, loc="outside lower center", ncols=min(len(labels), 6), frameon=False,
            handlelength=3, **words,
        )  # fmt: skip
    return plot.save(figure, out)


def performance_profile(comparison: Comparison, out: Path) -> Path:
    """The share of runs, over all cells, that score above each threshold."""
    figure = _figure(8.2, 4.8)
    axis = figure.subplots()
    agents = list(comparison.everywhere)
    known = plot.styles(agents)
    for agent in agents:
        threshold_Q, share_Q, low_Q, high_Q = profile(comparison, agent)
        style = {key: known[agent][key] for key in ("color", "linestyle")}
        axis.plot(threshold_Q, share_Q, linewidth=1.7, label=agent, **style)
        if len(agents) <= MANY and np.isfinite(low_Q).all():
            axis.fill_between(threshold_Q, low_Q, high_Q, alpha=0.14, color=style["color"], lw=0)
    axis.axvline(1.0, color="0.35", linewidth=1.0, linestyle=":")
    axis.set_xlabel("normalised score")
    axis.set_ylabel("share of runs that score more")
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_ylim(-0.02, 1.02)
    axis.set_title(f"Performance profile over {_shops(comparison)}", fontsize=11, loc="left")
    plot.tidy(axis)
    figure.legend(loc="outside right center", frameon=False, handlelength=3.2, fontsize=9)
    return plot.save(figure, out)


def improvement(comparison: Comparison, found: Improvement, out: Path) -> Path:
    """Who is likely to beat whom: the row agent's probability to score more."""
    agents = found.agents
    side = 2.6 + 0.44 * len(agents)
    figure = _figure(side + 0.9, side)
    axis = figure.subplots()
    image = axis.imshow(found.value_XY, cmap="PuOr", vmin=0, vmax=1)
    for row, column in np.ndindex(*found.value_XY.shape):
        value = found.value_XY[row, column]
        if row != column:
            sure = found.low_XY[row, column] > 0.5 or found.high_XY[row, column] < 0.5
            axis.annotate(
                f"{value:.2f}".removeprefix("0"),
                (column, row),
                ha="center",
                va="center",
                fontsize=7.5,
                fontweight="bold" if sure else "normal",
                color="white" if abs(value - 0.5) > 0.34 else "black",
            )
    axis.set_xticks(range(len(agents)), agents, rotation=50, ha="right", fontsize=8.5)
    axis.set_yticks(range(len(agents)), agents, fontsize=8.5)
    axis.set_title(
        f"P(a run of the row scores more than one of the column)\nover {_shops(comparison)}; "
        "bold: the 95% interval leaves out 0.5",
        fontsize=9.5,
        loc="left",
    )
    figure.colorbar(image, ax=axis, shrink=0.7, label="row loses  …  row wins")
    return plot.save(figure, out)


def recommendations(comparison: Comparison, cell: str, out: Path) -> Path | None:
    """What each agent of a cell recommends; None where no run kept it."""
    groups = [group for group in comparison.in_cell(cell) if category_shares(group) is not None]
    if not groups:
        return None
    figure = _figure(13.5, 1.5 + 0.27 * len(groups))
    axes = figure.subplots(1, 5, sharey=True, width_ratios=(1, 1, 1, 1, 1.9))
    measures: tuple[tuple[str, Callable[[Group], np.ndarray]], ...] = (
        ("coverage of the catalogue", lambda group: group.last_R("coverage")),
        ("Gini coefficient", lambda group: group.last_R("gini")),
        ("effective items, exp(entropy)", effective_items),
        ("share of the top item", lambda group: group.last_R("top_item_share")),
    )
    for axis, (words, measure) in zip(axes, measures, strict=False):
        for height, group in enumerate(groups):
            colour, marker, _ = KINDS[kind(group.agent)]
            value_R = measure(group)
            axis.plot(
                value_R, [height] * len(value_R), color=colour, marker="|", linestyle="", alpha=0.5
            )
            axis.plot(value_R.mean(), height, color=colour, marker=marker, markersize=5)
        axis.set_title(words, fontsize=9)
        axis.set_xlim(left=0)
        plot.tidy(axis)
    _categories(axes[4], groups)
    axes[0].set_yticks(range(len(groups)), [group.agent for group in groups])
    axes[0].set_ylim(len(groups) - 0.5, -0.5)
    figure.suptitle(
        f"What is recommended in {title(cell)}, best score on top (marks: runs; symbol: mean)",
        fontsize=10.5,
        x=0.01,
        ha="left",
    )
    return plot.save(figure, out)


def _categories(axis: Axes, groups: Sequence[Group]) -> None:
    """Stacked shares of categories, the largest first: numbers mean other things elsewhere."""
    shares = [category_shares(group) for group in groups]
    most = max(len(share) for share in shares if share is not None)
    for height, share_K in enumerate(shares):
        assert share_K is not None
        left = 0.0
        for rank, share in enumerate(share_K):
            shade = str(0.25 + 0.65 * rank / max(most - 1, 1))
            axis.barh(
                height, share, left=left, color=shade, edgecolor="white", linewidth=0.6, height=0.7
            )
            left += share
    axis.set_xlim(0, 1)
    axis.set_xticks([0.25, 0.5, 0.75])
    axis.xaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_title("share of categories, the most recommended first", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _heading(cell: str, width: int) -> str:
    """A cell's name in lines of at most ``width`` letters, where its parts allow that."""
    lines = [""]
    for part in re.split(r"(?=[-+])", title(cell)):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
            part = part.lstrip("-")
        lines[-1] += part
    return "\n".join(lines)


def _shops(comparison: Comparison) -> str:
    count = len(comparison.cells)
    return f"{count} shops" if count > 1 else title(comparison.cells[0])


def _highs(comparison: Comparison) -> str:
    return " or ".join(
        sorted({name for cell in comparison.cells for name in comparison.high_names(cell)})
    )
