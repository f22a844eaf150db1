"""The short table that commands print at their end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def print_table(title: str, summary: dict[str, Any], files: dict[str, Path]) -> None:
    """Print a summary (see results.py) in a few lines, its warnings, and where the files are."""
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in _rows(summary):
        table.add_row(name, value)
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    for warning in summary["warnings"]:
        console.print(f"warning: {warning}", style="yellow")
    for name, path in files.items():
        console.print(f"{name}: {path}")


def _rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    low, high = summary["reference_low"], summary["reference_high"]
    rows = [
        ("return", _interval(summary["return_mean"], summary["return_ci95"], ".2f")),
        ("conversion", f"{summary['conversion']:.1%}"),
        (
            "normalised score",
            _interval(summary["normalised_score"], summary["normalised_ci95"], ".3f")
            + f"   0: {named(low)} {low['return']:.2f}, 1: {named(high)} {high['return']:.2f}",
        ),
        ("coverage", f"{summary['coverage']:.1%}, top item {summary['top_item_share']:.1%}"),
        ("session length", f"{summary['session_length']:.1f}"),
    ]
    if "recommended" in summary:
        rows.insert(1, ("recommended", f"{summary['recommended']:.1%} of the candidates"))
    if "newcomers_return_mean" in summary:
        value = summary["newcomers_return_mean"]
        score = summary["newcomers_normalised_score"]
        rows.insert(3, ("newcomers", f"return {value:.2f}, normalised {score:.3f}"))
    if summary.get("steps_per_second"):
        seconds, rate = summary["train_seconds"], summary["steps_per_second"]
        rows.append(("training", f"{seconds:.1f} s, {rate:,.0f} steps/s"))
    return rows


def named(reference: dict[str, Any]) -> str:
    """A reference of a summary, with the policy that serves where it planned."""
    return (
        f"{reference['name']} ({reference['plan']})" if "plan" in reference else reference["name"]
    )


def _interval(value: float, ends: list[float], form: str) -> str:
    return f"{value:{form}}  [{ends[0]:{form}}, {ends[1]:{form}}]"
