"""What feedback loops are known for: how few items a round's recommendations come down to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments import results
from experiments.evaluate import entropy, gini
from experiments.logs.schema import ORGANIC
from experiments.plot import COLOURS, MARKERS, save
from recenv.dynamics import Event

Row = dict[str, float | None]
TOP = 0.1  # share of the catalogue that counts as its top
JUDGED = (*results.JUDGED, "top10_share")
SERVED = (
    "served_conversion",
    "served_coverage",
    "served_gini",
    "served_entropy",
    "served_top_item_share",
    "served_top10_share",
    "bestseller_share",
    "bought_coverage",
    "bought_gini",
    "bought_top10_share",
    "mean_propensity",
)
# steps: recommendations served so far, this round's included
COLUMNS = ("round", "steps", *JUDGED, *SERVED)


def top_items(count_I: np.ndarray) -> np.ndarray:
    """The tenth of the items with the highest counts, at least one."""
    return np.argsort(-count_I, kind="stable")[: max(round(TOP * len(count_I)), 1)]


def concentration(count_I: np.ndarray) -> dict[str, float]:
    """How evenly counts of items are spread; no counts are spread over no items."""
    share_I = count_I / max(count_I.sum(), 1)
    return {
        "coverage": float((share_I > 0).mean()),
        "gini": gini(share_I),
        "entropy": entropy(share_I),
        "top_item_share": float(share_I.max()),
        "top10_share": float(share_I[top_items(count_I)].sum()),
    }


def counts(events: pl.DataFrame, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each item (I,) was recommended in a log, and bought then."""
    shown = events.filter(pl.col("policy") != ORGANIC)
    bought = shown.filter(pl.col("event") == Event.PURCHASE.name.lower())
    shown_I, bought_I = (
        np.bincount(part["item"].to_numpy(), minlength=num_items) for part in (shown, bought)
    )
    return shown_I, bought_I


def served(events: pl.DataFrame, num_items: int, bought_before_I: np.ndarray) -> Row:
    """What a round's log says of the recommendations that were served, ``SERVED``.

    ``bestseller_share`` is the share of the recommendations that went to the tenth of the items
    that had been bought most in all rounds before: popularity bias is what makes it grow.

    Args:
        events: columns of the schema.
        bought_before_I: purchases of each item in the rounds before.
    """
    shown_I, bought_I = counts(events, num_items)
    steps = int(shown_I.sum())
    found: Row = {"served_conversion": float(bought_I.sum() / steps)}
    found |= {f"served_{name}": value for name, value in concentration(shown_I).items()}
    bought = concentration(bought_I)
    found |= {f"bought_{name}": bought[name] for name in ("coverage", "gini", "top10_share")}
    known = bought_before_I.any()
    best = top_items(bought_before_I)
    found["bestseller_share"] = float(shown_I[best].sum() / steps) if known else None
    propensity = events["propensity"].drop_nulls().to_numpy()
    found["mean_propensity"] = float(propensity.mean()) if len(propensity) else None
    return found


def as_csv(rows: list[Row]) -> str:
    """The rows as a table of text, the same for the same rows."""

    def cell(value: float | None) -> str:
        return "" if value is None else repr(value)

    lines = [COLUMNS, *([cell(row[name]) for name in COLUMNS] for row in rows)]
    return "".join(",".join(line) + "\n" for line in lines)


def draw(rows: list[Row], about: dict[str, Any], out: Path) -> Path:
    """Performance, popularity bias and coverage over the rounds."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    score, conversion, bias, cover = figure.subplots(2, 2).ravel()
    number = _numbers(rows, "round")
    line = _lines(number, rows)
    line(score, [("normalised_score", "the policy after the round")])
    low, high = (_numbers(rows, f"normalised_{end}") for end in ("low", "high"))
    score.fill_between(number, low, high, color=COLOURS[0], alpha=0.2, lw=0)
    score.axhline(1.0, color="grey", ls=":", lw=1)
    score.set(ylabel="normalised score", title=f"0: {about['low']}, 1: {about['high']}")
    score.set_ylim(min(0.0, np.nanmin(low)) - 0.03, max(1.0, np.nanmax(high)) + 0.03)
    line(conversion, [("conversion", "judged"), ("served_conversion", "served in the round")])
    conversion.set(ylabel="conversion", title="share of recommendations bought")
    line(
        bias,
        [
            ("served_top10_share", "shown most in the round"),
            ("bought_top10_share", "bought most in the round"),
            ("bestseller_share", "bought most in the rounds before"),
            ("top10_share", "shown most by the judged policy"),
        ],
    )
    bias.axhline(TOP, color="grey", ls=":", lw=1)
    bias.set(ylabel="share of the recommendations", title="popularity bias: a tenth of the items")
    line(
        cover,
        [
            ("served_coverage", "coverage, served"),
            ("coverage", "coverage, judged"),
            ("served_gini", "Gini, served"),
            ("gini", "Gini, judged"),
        ],
    )
    cover.set(ylabel="share, coefficient", title="share of the catalogue that is shown, and Gini")
    for axis in (bias, cover):
        axis.set_ylim(-0.03, 1.03)
    figure.suptitle(about["title"])
    return save(figure, out)


def _lines(number: np.ndarray, rows: list[Row]) -> Any:
    def lines(axis: Axes, columns: list[tuple[str, str]]) -> None:
        looks = zip(columns, COLOURS, MARKERS, strict=False)
        for (column, label), colour, marker in looks:
            values = _numbers(rows, column)
            axis.plot(number, values, color=colour, marker=marker, ms=4, lw=1.5, label=label)
        axis.set_xlabel("round")
        axis.locator_params(axis="x", integer=True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(framealpha=0.9, edgecolor="none", fontsize=8)

    return lines


def _numbers(rows: list[Row], column: str) -> np.ndarray:
    return np.array([np.nan if row[column] is None else row[column] for row in rows], dtype=float)
