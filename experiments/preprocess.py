"""Make an event log ready for learning: cleaned, flagged, normalised and split.

    python -m experiments.preprocess log=logs/shop
    python -m experiments.preprocess log=logs/shop split=shopper test=0.2 session_gap=20

Arguments:
    log            the log's directory, or one Parquet or CSV file of events
    out            where to write (<log>-clean)
    if_exists      error | overwrite: what to do where out holds a preprocessed log
    split          time | shopper | none
    validation     share of events (time) or shoppers (shopper) that validate (0.1)
    test           the same of those that test (0.1)
    seed           of the split by shopper (0)
    session_gap    minutes without an event that end a session, where the log names none (30)
    outlier_z      robust z of a price against the catalogue's beyond which it is flagged (6)
    outlier_floor  least spread of log price ratios for it (0.1)
    bot_events     acts below which nobody is called a bot (50)
    bot_hour       more acts within an hour are a bot's (1000)
    bot_gap        seconds: so are gaps that are mostly shorter (0.2)
    rows_at_once   how much of the log is held in memory (2500000)
    progress       draw a bar (true)

Rows that break the schema are set aside in rejected.parquet with the reason; duplicates are
removed; missing values are filled; price outliers and bots are flagged and kept. Nothing is
fitted on anything but the train part. Writes events-*.parquet, shoppers.parquet, items.parquet,
rejected.parquet, report.json and report.md, all at once or not at all.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from experiments.cli import arguments, entry
from recenv.errors import UsageError, unknown
from recenv.shop import as_number

# name -> (lowest, highest); whole numbers where both bounds are
BOUNDS: dict[str, tuple[float, float]] = {
    "validation": (0.0, 1.0),
    "test": (0.0, 1.0),
    "seed": (0, 2**31 - 1),
    "rows_at_once": (1, 10**9),
    "session_gap": (0.0, 1e6),
    "outlier_z": (0.0, 1e6),
    "outlier_floor": (1e-6, 1e6),
    "bot_events": (1, 10**9),
    "bot_hour": (1, 10**9),
    "bot_gap": (0.0, 1e6),
}


def main(argv: list[str]) -> None:
    """Preprocess, and say what was done."""
    # polars is an extra
    from experiments.logs import preprocess as logic
    from experiments.logs.cleaning import Rules

    rules = Rules()
    choices = logic.Asked(progress=True)
    names = [one.name for one in fields(choices) if one.name != "rules"]
    defaults: dict[str, Any] = {"log": None, "out": None, "if_exists": "error"}
    defaults |= {name: getattr(choices, name) for name in names}
    defaults |= {one.name: getattr(rules, one.name) for one in fields(rules)}
    asked = arguments(argv, defaults)
    for name, bounds in BOUNDS.items():
        asked[name] = as_number(name, asked[name], *bounds)
    if asked["log"] is None:
        raise UsageError("say which log: log=<directory>")
    if asked["split"] not in logic.SPLITS:
        raise unknown("split", asked["split"], logic.SPLITS)
    if not isinstance(asked["progress"], bool):
        raise UsageError(f"progress must be true or false, got {asked['progress']!r}")
    log = Path(str(asked["log"]))
    # not its stem: a directory's name may hold a number with a point
    name = log.stem if log.is_file() else log.resolve().name
    beside = log.resolve().with_name(f"{name}-clean")
    out = beside if asked["out"] is None else Path(str(asked["out"]))
    rules = Rules(**{one.name: asked[one.name] for one in fields(rules)})
    choices = logic.Asked(rules=rules, **{name: asked[name] for name in names})
    report = logic.preprocess(log, out, choices, asked["if_exists"])
    print(logic.in_words(report))
    print(f"{out}: the log; {out / 'report.md'}: this page")


if __name__ == "__main__":
    entry(main, __doc__)
