"""The comparison as one interactive page that opens without network (plotly, inline)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from importlib import import_module
from typing import Any

import numpy as np

from experiments import plot
from experiments.comparison import tables
from experiments.comparison.figures import KINDS, kind
from experiments.comparison.measures import (
    cumulative_regret,
    effective_items,
    improvement,
    over_runs,
    profile,
    served_regret,
    simple_regret,
)
from experiments.comparison.runs import Comparison, Group, title
from recenv.errors import MissingExtra

DASHES = dict(zip(map(str, plot.STYLES), ("solid", "dash", "dashdot", "dot"), strict=True))
SYMBOLS = dict(
    zip(
        plot.MARKERS,
        ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x"),
        strict=True,
    )
)
CONFIG = {"displaylogo": False, "responsive": True}


def require() -> None:
    """Refuse early where plotly is missing.

    Raises:
        MissingExtra: it is.
    """
    try:
        import_module("plotly")
    except ModuleNotFoundError:
        raise MissingExtra("the interactive report", "plotly", "report") from None


def html(comparison: Comparison, table: Sequence[tables.Row], baseline: str) -> str:
    """The whole page."""
    require()
    from plotly.offline import get_plotlyjs

    parts = [
        _section("Where each agent stands", _standing(comparison)),
        _section("Learning curves", _curves(comparison)),
        _section("Regret of what was learned, against the high reference", _regret(comparison)),
        _section("Regret of what was served while learning, added up", _cumulative(comparison)),
        _section("Performance profile", _profile(comparison)),
        _section("Who is likely to beat whom", _improvement(comparison)),
        _section("What is recommended", _recommendations(comparison)),
    ]
    notes = "".join(f"<li>{escape(note)}</li>" for note in comparison.notes)
    boxes = "".join(
        f'<label><input type="checkbox" checked data-toggle="{escape(agent)}">'
        f'<i style="background:{KINDS[kind(agent)][0]}"></i>{escape(agent)}</label>'
        for agent in comparison.agents
    )
    return PAGE.format(
        style=STYLE,
        plotly=get_plotlyjs(),
        script=SCRIPT,
        notes=notes or "<li>nothing stands out</li>",
        boxes=boxes,
        figures="".join(parts),
        table=_table(comparison, table, baseline),
        runs=len(comparison.runs),
        agents=len(comparison.agents),
        cells=len(comparison.cells),
    )


def _section(name: str, figure: Any) -> str:
    if figure is None:
        return ""
    body = figure.to_html(full_html=False, include_plotlyjs=False, config=CONFIG)
    return f"<section><h2>{escape(name)}</h2>{body}</section>\n"


def _panels(comparison: Comparison, columns: int, height: int, **settings: Any) -> Any:
    """A figure with a panel for each cell."""
    from plotly.subplots import make_subplots

    cells = comparison.cells
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=[title(cell) for cell in cells],
        vertical_spacing=0.22 / rows,
        **settings,
    )
    figure.update_layout(height=height * rows + 60, **LAYOUT)
    return figure


LAYOUT: dict[str, Any] = {
    "template": "plotly_white",
    "margin": {"l": 60, "r": 20, "t": 50, "b": 50},
    "legend": {"groupclick": "togglegroup"},
    "font": {"size": 12},
}


def _place(number: int, figure: Any) -> dict[str, int]:
    columns = len(figure._grid_ref[0])
    return {"row": number // columns + 1, "col": number % columns + 1}


def _standing(comparison: Comparison) -> Any:
    from plotly import graph_objects as go

    height = 120 + 22 * len(comparison.agents)
    figure = _panels(comparison, 4, height, shared_yaxes=True, horizontal_spacing=0.02)
    for number, cell in enumerate(comparison.cells):
        place = _place(number, figure)
        for x, dash in ((0.0, "dot"), (1.0, "dot"), (comparison.myopic_score(cell), "dash")):
            figure.add_vline(x=x, line={"width": 1, "dash": dash, "color": "#666"}, **place)
        for group in comparison.in_cell(cell):
            score, colour = group.score, KINDS[kind(group.agent)][0]
            known = np.isfinite([score.low, score.high]).all()
            trace = go.Scatter(
                x=[score.value],
                y=[group.agent],
                error_x={
                    "array": [score.high - score.value if known else 0],
                    "arrayminus": [score.value - score.low if known else 0],
                    "color": _web(colour),
                },
                mode="markers",
                marker={"color": _web(colour), "size": 9},
                name=group.agent,
                legendgroup=group.agent,
                showlegend=False,
                hovertemplate=f"{group.agent}: {tables.interval(score, '.3f')}<br>"
                f"{len(group.runs)} runs, return {group.mean('return_mean'):.2f}<extra></extra>",
            )
            figure.add_trace(trace, **place)
    figure.update_yaxes(categoryorder="array", categoryarray=comparison.agents[::-1])
    return figure


def _curves(comparison: Comparison) -> Any:
    return _lines(comparison, lambda group: group.curve_RE, "normalised score")


def _regret(comparison: Comparison) -> Any:
    return _lines(comparison, simple_regret, "regret of a session", learning=True)


def _cumulative(comparison: Comparison) -> Any:
    if all(served_regret(group) is None for group in comparison.groups.values()):
        return None
    return _lines(comparison, cumulative_regret, "cumulative regret", learning=True, served=True)


def _lines(
    comparison: Comparison,
    measure: Callable[[Group], tuple[np.ndarray, np.ndarray]],
    words: str,
    learning: bool = False,
    served: bool = False,
) -> Any:
    """Something over environment steps, mean and band over runs, a panel for each cell."""
    from plotly import graph_objects as go

    figure = _panels(comparison, 3, 330, horizontal_spacing=0.06)
    known, told = plot.styles(comparison.agents), set()
    for number, cell in enumerate(comparison.cells):
        place = _place(number, figure)
        groups = comparison.in_cell(cell)
        longest = max((g.curve_RE[0][-1] for g in groups if g.learns), default=1.0)
        first = min((g.curve_RE[0][0] for g in groups if g.learns), default=0.5)
        for group in groups:
            if (learning and not group.learns) or (served and served_regret(group) is None):
                continue
            steps_E, value_RE = measure(group)
            centre_E, low_E, high_E = over_runs(group, value_RE, log=served)
            if not group.learns:
                steps_E = np.array([first, longest])
                centre_E, low_E, high_E = (np.repeat(v, 2) for v in (centre_E, low_E, high_E))
            line, style = _style(known[group.agent])
            common = {"legendgroup": group.agent, "name": group.agent}
            if np.isfinite(low_E).all() and group.learns:
                band = go.Scatter(
                    x=[*steps_E, *steps_E[::-1]],
                    y=[*high_E, *low_E[::-1]],
                    fill="toself",
                    fillcolor=_clear(line["color"]),
                    line={"width": 0},
                    hoverinfo="skip",
                    showlegend=False,
                    **common,
                )
                figure.add_trace(band, **place)
            trace = go.Scatter(
                x=steps_E,
                y=centre_E,
                mode="lines+markers" if group.learns else "lines",
                line=line,
                marker=style,
                showlegend=group.agent not in told,
                hovertemplate=f"{group.agent}<br>%{{x:,.0f}} steps: %{{y:.3f}}<extra></extra>",
                **common,
            )
            told.add(group.agent)
            figure.add_trace(trace, **place)
    figure.update_xaxes(type="log", title_text="environment steps", title_font_size=11)
    figure.update_yaxes(type="log" if served else "linear", title_text=words, title_font_size=11)
    return figure


def _profile(comparison: Comparison) -> Any:
    from plotly import graph_objects as go

    if len(comparison.everywhere) < 2:
        return None
    known = plot.styles(comparison.agents)
    figure = go.Figure()
    for agent in comparison.everywhere:
        threshold_Q, share_Q, _, _ = profile(comparison, agent)
        line, _ = _style(known[agent])
        hover = f"{agent}: %{{y:.0%}} of runs score more than %{{x:.2f}}<extra></extra>"
        trace = go.Scatter(
            x=threshold_Q, y=share_Q, mode="lines", line=line, name=agent, legendgroup=agent,
            hovertemplate=hover,
        )  # fmt: skip
        figure.add_trace(trace)
    figure.update_layout(height=460, **LAYOUT)
    figure.update_xaxes(title_text="normalised score")
    figure.update_yaxes(title_text="share of runs that score more", tickformat=".0%")
    return figure


def _improvement(comparison: Comparison) -> Any:
    from plotly import graph_objects as go

    found = improvement(comparison)
    if len(found.agents) < 2:
        return None
    words = [
        [
            f"P({x} > {y}) = {found.value_XY[i, j]:.2f} "
            f"[{found.low_XY[i, j]:.2f}, {found.high_XY[i, j]:.2f}]"
            for j, y in enumerate(found.agents)
        ]
        for i, x in enumerate(found.agents)
    ]
    heat = go.Heatmap(
        z=found.value_XY.round(3), x=found.agents, y=found.agents, zmin=0, zmax=1,
        colorscale="PuOr", text=words, hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip
    figure = go.Figure(heat)
    figure.update_layout(height=160 + 26 * len(found.agents), **LAYOUT)
    figure.update_yaxes(autorange="reversed")
    return figure


def _recommendations(comparison: Comparison) -> Any:
    """Score over how many items an agent uses."""
    from plotly import graph_objects as go

    figure = _panels(comparison, 3, 330, horizontal_spacing=0.06)
    known, told = plot.styles(comparison.agents), set()
    for number, cell in enumerate(comparison.cells):
        for group in comparison.in_cell(cell):
            _, style = _style(known[group.agent])
            used = float(effective_items(group).mean())
            trace = go.Scatter(
                x=[used],
                y=[group.score.value],
                mode="markers",
                marker={**style, "size": 11},
                name=group.agent,
                legendgroup=group.agent,
                showlegend=group.agent not in told,
                hovertemplate=f"{group.agent}: score {group.score.value:.3f}<br>"
                f"as {used:.1f} items, coverage {group.mean('coverage'):.0%}<br>"
                f"Gini {group.mean('gini'):.2f}, "
                f"top item {group.mean('top_item_share'):.1%}<extra></extra>",
            )
            told.add(group.agent)
            figure.add_trace(trace, **_place(number, figure))
    figure.update_xaxes(type="log", title_text="effective items, exp(entropy)", title_font_size=11)
    figure.update_yaxes(title_text="normalised score", title_font_size=11)
    return figure


def _table(comparison: Comparison, table: Sequence[tables.Row], baseline: str) -> str:
    head = ["shop", "agent", "runs", "score", "low", "high", "return", f"more than {baseline}"]
    head += ["conversion", "steps to 0.5", "steps to 0.9", "coverage", "Gini", "entropy"]
    head += ["top item", "length", "regret slope", "training s"]
    lines = []
    for row in table:
        more = row.more_than_baseline
        reached = [e.value if e else np.nan for e in (row.steps_to_50, row.steps_to_90)]
        numbers = [
            row.score.value, row.score.low, row.score.high, row.mean("return_mean"),
            more.value if more else np.nan, row.mean("conversion"), *reached,
            *(row.mean(name) for name in ("coverage", "gini", "entropy", "top_item_share")),
            row.mean("session_length"), np.nan if row.slope is None else row.slope,
            row.mean("train_seconds"),
        ]  # fmt: skip
        words = [title(row.group.cell), row.group.agent, row.runs, *map(_number, numbers)]
        cells = "".join(f"<td>{escape(word)}</td>" for word in words)
        lines.append(f'<tr data-agent="{escape(row.group.agent)}">{cells}</tr>')
    titles = "".join(f"<th>{escape(word)}</th>" for word in head)
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _number(value: float) -> str:
    if np.isnan(value):
        return ""
    if np.isinf(value):
        return "never"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _style(style: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Line and marker of matplotlib in plotly's words."""
    hollow = "-open" if style["markerfacecolor"] == "white" else ""
    line = {"color": style["color"], "dash": DASHES[str(style["linestyle"])], "width": 2}
    return line, {"symbol": SYMBOLS[style["marker"]] + hollow, "size": 6, "color": style["color"]}


def _web(colour: str) -> str:
    return "#8c8c8c" if colour == "0.55" else colour


def _clear(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.13)"


STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 1500px;
  padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .3rem; }
#agents { position: sticky; top: 0; background: #fff; padding: .5rem 0; z-index: 5;
  border-bottom: 1px solid #ddd; }
#agents label { display: inline-block; margin-right: .9rem; white-space: nowrap; }
#agents i { display: inline-block; width: .7em; height: .7em; margin: 0 .3em; border-radius: 50%; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; }
th { cursor: pointer; text-align: right; border-bottom: 2px solid #888; padding: .25rem .5rem; }
td { text-align: right; padding: .15rem .5rem; border-bottom: 1px solid #eee; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
"""

SCRIPT = """
document.querySelectorAll('[data-toggle]').forEach(box => box.addEventListener('change', () => {
  const agent = box.dataset.toggle;
  document.querySelectorAll('.js-plotly-plot').forEach(plot => {
    const traces = plot.data.map((t, i) => t.legendgroup === agent ? i : -1).filter(i => i >= 0);
    if (traces.length) Plotly.restyle(plot, {visible: box.checked}, traces);
  });
  document.querySelectorAll('tr[data-agent]').forEach(row => {
    if (row.dataset.agent === agent) row.hidden = !box.checked;
  });
}));
document.getElementById('none').addEventListener('click', () => all(false));
document.getElementById('every').addEventListener('click', () => all(true));
function all(on) {
  document.querySelectorAll('[data-toggle]').forEach(box => {
    if (box.checked !== on) { box.checked = on; box.dispatchEvent(new Event('change')); }
  });
}
function value(row, column) {
  const text = row.children[column].textContent.replace(/,/g, '').replace('†', '');
  if (text === 'never') return Infinity;
  return text === '' ? -Infinity : isNaN(text) ? text : Number(text);
}
document.querySelectorAll('th').forEach((head, column) => head.addEventListener('click', () => {
  const body = document.querySelector('tbody'), up = head.dataset.up !== 'yes';
  head.dataset.up = up ? 'yes' : 'no';
  [...body.rows].sort((a, b) => {
    const x = value(a, column), y = value(b, column);
    return (x > y ? 1 : x < y ? -1 : 0) * (up ? 1 : -1);
  }).forEach(row => body.appendChild(row));
}));
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Comparison</title>
<style>{style}</style>
<script>{plotly}</script>
</head>
<body>
<h1>{runs} runs of {agents} agents in {cells} shops</h1>
<p>Scores are normalised (0: random, 1: the high reference): interquartile mean over runs with 95%
bootstrap interval, runs within worlds. Hover for figures, click a column to sort.</p>
<h2>What to know first</h2>
<ul>{notes}</ul>
<div id="agents">{boxes} <button id="none">none</button> <button id="every">all</button></div>
{figures}
<section><h2>All figures</h2><div class="scroll">{table}</div></section>
<script>{script}</script>
</body>
</html>
"""
