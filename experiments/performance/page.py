"""The page: a table for the terminal, JSON and Markdown; and what has become slower."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table

from experiments.performance.measure import STEPS, Bench, Result, threads
from experiments.performance.rows import ROWS
from experiments.results import read_json, versions, write_json, write_text
from recenv.errors import UsageError

JSON, PAGE = "performance.json", "performance.md"
LOST = 0.25  # share of a ratio that may be lost before it counts as slower


def machine() -> dict[str, Any]:
    """Where this was measured, and how busy it was at the time."""
    return {"cpu": _cpu(), "load_average": _load(), **versions()}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # no Linux
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _load() -> float | None:
    """Processes that wanted a core, averaged over the last minute."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):  # no Unix
        return None


def measure(bench: Bench, names: list[str]) -> dict[str, Any]:
    """Measure the rows of those names.

    Returns:
        the report: ``rows`` (list of Result), ``machine`` and ``seconds``.
    """
    began, described = time.perf_counter(), machine()
    with threads(1):
        rows = [result for name in names for result in ROWS[name](bench)]
    seconds = round(time.perf_counter() - began, 1)
    return {"rows": rows, "machine": described, "seconds": seconds, "device": str(bench.device)}


def read(path: Path) -> dict[str, Any]:
    """A report that was written before.

    Raises:
        UsageError: there is none, or it is damaged.
    """
    if not path.is_file():
        raise UsageError(f"there is no {path}: measure first, python -m experiments.bench")
    report = read_json(path)
    names = {field.name for field in fields(Result)}
    try:
        rows = [Result(**{k: v for k, v in r.items() if k in names}) for r in report["rows"]]
        bad = [row.row for row in rows if not _measured(row)]
        if bad:
            raise TypeError(f"figures of {', '.join(map(str, bad))} are none")
        return report | {"rows": rows, "machine": report["machine"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is damaged: {error}") from None


def _measured(row: Result) -> bool:
    """Whether what should be numbers are."""
    compared = (row.reference, row.ratio, row.ratio_min, row.ratio_max) if row.against else ()
    return all(isinstance(figure, (int, float)) for figure in (row.ours, *compared))


def with_old(report: dict[str, Any], path: Path) -> dict[str, Any]:
    """The report, and the rows of an older one that were not measured anew, as they were."""
    if not path.is_file():
        return report
    old = read(path)
    commit, cpu = (old["machine"].get(name) for name in ("git", "cpu"))
    kept = [replace(row, commit=row.commit or commit, cpu=row.cpu or cpu) for row in old["rows"]]
    rows = {row.row: row for row in (*kept, *report["rows"])}
    return report | {"rows": list(rows.values())}


def slower(rows: list[Result], before: list[Result]) -> list[str]:
    """What has lost more than LOST of the ratio that it had, in words.

    A ratio of which at most something is asked is one of costs: there it is the inverse.
    """
    known, found = {row.row: row for row in before}, []
    for row in rows:
        old = known.get(row.row)
        if old is None or not old.ratio or not row.ratio:
            continue
        kept = old.ratio / row.ratio if row.ceiling is not None else row.ratio / old.ratio
        if kept < 1.0 - LOST:
            found.append(f"{row.row} ({_figure(row.ratio)}, was {_figure(old.ratio)})")
    return found


HEADERS = (
    "row",
    "what",
    "against",
    "ours",
    "reference",
    "ratio",
    "min",
    "max",
    "asked",
    "verdict",
    "clock",
)
NUMBERS = ("ours", "reference", "ratio", "min", "max")


def cells(result: Result) -> tuple[str, ...]:
    """A row of the table as text, in the order of HEADERS."""
    return (
        result.row,
        result.what,
        result.against or "",
        _short(result.ours, result.unit),
        _short(result.reference, result.unit),
        _figure(result.ratio),
        _figure(result.ratio_min),
        _figure(result.ratio_max),
        result.asked,
        result.verdict or "",
        result.clock,
    )


def _short(value: float | None, unit: str) -> str:
    """Steps per second in thousands or millions, short enough for a narrow terminal."""
    if value is None:
        return ""
    if unit == "bytes" and value >= 1e8:
        return f"{value / 1e9:.2f} GB"
    if unit != STEPS:
        return f"{value:,.0f} {unit}"
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.1f} k"


def _figure(ratio: float | None) -> str:
    """Three significant digits."""
    return "" if ratio is None else f"{ratio:#.3g}".rstrip(".")


def as_table(report: dict[str, Any]) -> Table:
    """The report for a terminal, which leaves no room for the sides in words."""
    title = "speed, as ratios within one run (ours and reference in steps/s)"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    shown = [i for i, header in enumerate(HEADERS) if header not in ("what", "against")]
    for i in shown:
        justify: JustifyMethod = "right" if HEADERS[i] in NUMBERS else "left"
        table.add_column(HEADERS[i], justify=justify, overflow="fold")
    for result in report["rows"]:
        text = cells(result)
        style = "bold red" if result.verdict == "short" else None
        table.add_row(*(text[i] for i in shown), style=style)
    return table


def as_markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    shown = [i for i, header in enumerate(HEADERS) if header not in ("what", "against")]
    marks = ["---:" if header in NUMBERS else "---" for header in HEADERS]
    rows = [[row[i] for i in shown] for row in (HEADERS, marks, *map(cells, report["rows"]))]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    facts = "\n".join(f"- {name}: {value}" for name, value in report["machine"].items())
    sides = "\n".join(
        f"- **{row.row}**: {row.what}" + (f"; against {row.against}" if row.against else "")
        for row in report["rows"]
    )
    older = "\n".join(f"- code of {', '.join(of)}: {origin}" for origin, of in _older(report))
    facts += f"\n{older}" if older else ""
    missing = [f"- {name}: {why}" for name, why in NOT_HERE.items() if not _there(name, report)]
    absent = "## What is not measured here\n\n" + "\n".join(missing) + "\n\n" if missing else ""
    return f"{HEADLINE}{table}\n\n{sides}\n\n{absent}{PEERS_HOW}## Machine\n\n{facts}\n"


def _older(report: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Where rows that were kept come from (commit, and the processor if it was another), and which
    these are."""
    rows: dict[str, list[str]] = {}
    for row in report["rows"]:
        if row.commit:
            elsewhere = row.cpu if row.cpu != report["machine"]["cpu"] else None
            origin = f"{row.commit}, on {elsewhere}" if elsewhere else row.commit
            rows.setdefault(origin, []).append(row.row)
    return list(rows.items())


NOT_HERE = {
    "torch_cuda": "the torch env on an accelerator; `python -m experiments.bench device=cuda` "
    "measures it where there is one",
    "retrieval_": "retrieval of candidates from a million items; "
    "`python -m experiments.bench rows=retrieval add=true out=docs` takes a few minutes",
    "peer_": "the peers",
    "time_to_score": "the time until 0.9 of the planning oracle; "
    "`python -m experiments.bench rows=time_to_score add=true out=docs` takes about an hour",
}
HEADLINE = """# Speed, as ratios within one run

`python -m experiments.bench out=docs` measures and writes this page and its figures
(`performance.json`); `draw=true out=docs` writes the page again from the figures, and
`check=docs/performance.json` names what has become slower than they say.

Ours and the reference are in steps/s unless said. The sides of a row take turns; the ratio is the
median over the rounds of each round's own ratio, with the smallest and the largest beside it. It is
a ratio of speeds where at least something is asked or nothing is, of costs where at most something
is. By the clock "cpu" seconds are those of the processor, so that what else the machine did
meanwhile does not count; by "wall" it does.

"""
PEERS_HOW = """## Peers

They pin older libraries or lack some that they need, so they live in an environment of their own:

```bash
python3 -m venv peers && peers/bin/pip install sardine-rec recsim-no-tf six pandas
python -m experiments.bench rows=peers peers=peers/bin/python add=true out=docs
```

What their steps do is not what ours do: they are here for the order of magnitude.

"""


def _there(name: str, report: dict[str, Any]) -> bool:
    """Whether a row whose name begins so was measured."""
    return any(row.row.startswith(name) for row in report["rows"])


def write(report: dict[str, Any], out: Path) -> None:
    """The report as JSON and Markdown."""
    listed = report | {"rows": [result.as_json() for result in report["rows"]]}
    write_json(out / JSON, listed)
    write_text(out / PAGE, as_markdown(report))


def publish(report: dict[str, Any]) -> None:
    """Print the report."""
    console = Console(soft_wrap=True, highlight=False)
    console.print(as_table(report))
    about = report["machine"]
    console.print(f"machine: {about['cpu']}, {about['cores']} cores, load {about['load_average']}")
