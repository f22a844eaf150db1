"""The event log: its one schema, and reading it without believing it.

A log is a directory

    events-*.parquet   one row per event, see EVENTS (CSV files with the same columns do too)
    items.parquet      the public catalogue, see ITEMS
    log.json           how it was collected, and its counts; written last
    truth.npz          what only a simulator knows, see collect.py; optional

or one Parquet or CSV file of events from elsewhere, which needs no more than the columns of
REQUIRED. In CSV files times are ISO 8601 (UTC where no zone is given), queries are word
indices separated by spaces, and what is missing is empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from polars.datatypes import DataType, DataTypeClass

from experiments import results
from experiments.logs.raw import ROW, Raw, nearest, read_raw
from recenv.dynamics import Event
from recenv.errors import UsageError, unknown

Dtype = DataType | DataTypeClass
EVENT = pl.Enum([event.name.lower() for event in Event])
SEARCH = Event.SEARCH.name.lower()
ORGANIC, UNKNOWN = "organic", "unknown"  # policies: she herself, nobody knows
ITEMS_FILE, LOG_FILE, TRUTH_FILE = "items", "log.json", "truth.npz"
ON_BAD = ("error", "set_aside")

EVENTS: dict[str, Dtype] = {
    "shopper": pl.Int64,
    "session": pl.Int64,  # null: not cut into sessions yet
    "step": pl.Int32,  # the recommendation in the session, from 0; organic: that it precedes
    "timestamp": pl.Datetime("us", "UTC"),
    "event": EVENT,
    "item": pl.Int32,  # null for a search
    "category": pl.Int32,
    "brand": pl.Int32,
    "price": pl.Float64,  # in the shop's currency
    "query": pl.List(pl.Int32),  # words of a search, by their index in the catalogue
    "policy": pl.String,  # who recommended; "organic": nobody
    "propensity": pl.Float64,  # with which the policy showed this item; null: organic, unknown
}
# What a preprocessed log has beside them, see preprocess.py.
PREPROCESSED: dict[str, Dtype] = {
    "part": pl.Enum(["train", "validation", "test"]),
    "outlier": pl.Boolean,  # the price is far from the catalogue's
    "price_z": pl.Float32,  # log price, standardised
}
REQUIRED = ("shopper", "timestamp", "event", "item")
ITEMS: dict[str, Dtype] = {
    "item": pl.Int32,
    "category": pl.Int32,
    "brand": pl.Int32,
    "price": pl.Float64,
    "keywords": pl.List(pl.Int32),  # word indices, as often as they stand in its description
    "name": pl.String,
}
CONTENT = "content"  # a bad row as text
ASIDE: dict[str, Dtype] = {
    "file": pl.String,
    ROW: pl.Int64,  # from 1; null: the whole file cannot be read
    "column": pl.String,  # null: the row has no columns
    "reason": pl.String,
    CONTENT: pl.String,
}


@dataclass(frozen=True)
class Log:
    """A log whose rows keep the schema.

    Attributes:
        path: where it was read from.
        events: columns of EVENTS.
        items: columns of ITEMS; without an items file, what the events tell of them.
        about: what log.json says; {} for a log from elsewhere.
        aside: rows that break the schema, columns of ASIDE.
        ignored: columns of the files that the schema does not know.
    """

    path: Path
    events: pl.DataFrame
    items: pl.DataFrame
    about: dict[str, Any]
    aside: pl.DataFrame
    ignored: tuple[str, ...] = ()


class Part(NamedTuple):
    """One file's rows: those that keep the schema, those that do not, and foreign columns."""

    events: pl.DataFrame
    aside: pl.DataFrame
    ignored: tuple[str, ...]


class Check(NamedTuple):
    """A rule that rows must keep: ``bad`` is true (or null: fine) where one does not."""

    column: str
    bad: pl.Expr
    why: str


def read_log(path: Path | str, on_bad: str = "error", now: datetime | None = None) -> Log:
    """Read and check a log.

    Args:
        path: its directory, or one file of events.
        on_bad: "error" refuses a log with a row that breaks the schema and names the first;
            "set_aside" reads the good rows, and the bad ones into ``Log.aside``.
        now: what is later is in the future; the present time by default.

    Raises:
        UsageError: there is no log, a required column is missing, a row breaks the schema
            (on_bad="error"), or no row keeps it.
    """
    path = Path(path)
    items = read_items(path)
    parts = list(read_parts(path, on_bad, now, items))
    events = pl.concat([part.events for part in parts], rechunk=False)
    aside = pl.concat([part.aside for part in parts])
    if not len(events):
        what = f": {_said(aside.row(0, named=True))}" if len(aside) else ""
        raise UsageError(f"{path} has no row that can be used{what}")
    ignored = tuple(sorted({name for part in parts for name in part.ignored}))
    if items is None:
        items = items_told(events)
    return Log(path, events, items, read_about(path), aside, ignored)


def read_parts(
    path: Path,
    on_bad: str = "error",
    now: datetime | None = None,
    items: pl.DataFrame | None = None,
) -> Iterator[Part]:
    """The same file by file, for logs that are larger than memory.

    Args:
        items: the catalogue (``read_items``), so that items outside it are found.

    Raises:
        UsageError: see ``read_log``.
    """
    if on_bad not in ON_BAD:
        raise unknown("on_bad", on_bad, ON_BAD)
    checks = _event_checks(now or datetime.now(UTC), items)
    for file in event_files(path, on_bad):
        try:
            yield _checked(file, read_raw(file), EVENTS, REQUIRED, checks, on_bad)
        except UsageError as error:  # no row of it can be had
            if on_bad == "error":
                raise
            yield Part(pl.DataFrame(schema=EVENTS), _lost(file, str(error)), ())
    for file in missing_files(path):
        yield Part(pl.DataFrame(schema=EVENTS), _lost(file, f"{file} is missing"), ())


def event_files(path: Path, on_bad: str = "error") -> list[Path]:
    """The files with a log's events, in order of their names.

    Raises:
        UsageError: there are none, or files that log.json names are missing.
    """
    if path.is_file():
        return [path]
    files = sorted([*path.glob("events*.parquet"), *path.glob("events*.csv")])
    missing = missing_files(path)
    if missing and on_bad == "error":
        raise UsageError(f"the log {path} is not whole: {missing[0].name} is missing")
    if not files:
        raise UsageError(f"{path} is no log: it has no events*.parquet or events*.csv")
    return files


def missing_files(path: Path) -> list[Path]:
    """Files that log.json names and that are not there."""
    named = (path / name for name in sorted(read_about(path).get("files", ())))
    return [file for file in named if not file.is_file()]


def read_about(path: Path) -> dict[str, Any]:
    """What log.json says; {} where there is none (a log from elsewhere).

    Raises:
        UsageError: there is no log at all.
    """
    if not path.exists():
        raise UsageError(f"there is no log {path}: collect one with python -m experiments.collect")
    target = path / LOG_FILE
    return results.read_json(target) if target.is_file() else {}


def read_items(path: Path) -> pl.DataFrame | None:
    """The catalogue of a log, columns of ITEMS; None if it has none.

    Raises:
        UsageError: it is damaged.
    """
    for ending in (".parquet", ".csv"):
        file = path / f"{ITEMS_FILE}{ending}"
        if path.is_dir() and file.is_file():
            part = _checked(file, read_raw(file), ITEMS, ("item",), _item_checks(), "error")
            return part.events.sort("item")
    return None


def write_aside(aside: pl.DataFrame, path: Path) -> None:
    """Write the rows that were set aside as CSV."""
    with results.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_csv(path)


def items_told(events: pl.DataFrame) -> pl.DataFrame:
    """What events tell of items: most frequent category and brand, median price, no words."""
    # of the most frequent ones the lowest, so that the order of rows does not matter
    told = [pl.col("category", "brand").drop_nulls().mode().min(), pl.col("price").median()]
    items = events.filter(pl.col("item").is_not_null()).group_by("item").agg(told)
    words = pl.lit([], dtype=ITEMS["keywords"]).alias("keywords")
    return items.with_columns(words, pl.lit(None, pl.String).alias("name")).sort("item")


def _event_checks(now: datetime, items: pl.DataFrame | None) -> list[Check]:
    """What makes a row of EVENTS bad, the most telling first."""
    col, search = pl.col, pl.col("event") == SEARCH
    checks = [Check(name, col(name).is_null(), "is missing") for name in REQUIRED[:-1]]
    checks += [
        Check(
            "timestamp", col("timestamp") > now, f"lies in the future (now: {now:%Y-%m-%d %H:%M})"
        ),
        Check("item", col("item").is_null() & ~search, "is missing"),
        Check("item", col("item").is_not_null() & search, "is an item, and a search has none"),
        Check("query", col("query").list.len().fill_null(0).eq(0) & search, "is missing"),
        Check("query", col("query").list.min() < 0, "holds a negative word index"),
        *(Check(name, col(name) < 0, "is negative") for name in ("step", "category", "brand")),
        _price_check(),
        Check(
            "propensity",
            ~((col("propensity") > 0) & (col("propensity") <= 1)),
            "is no probability above 0",
        ),
    ]
    if items is not None:
        outside = col("item").is_not_null() & ~col("item").is_in(items["item"].implode())
        checks.append(Check("item", outside, "is no item of the catalogue"))
    return checks


def _item_checks() -> list[Check]:
    col = pl.col
    return [
        Check("item", col("item").is_null(), "is missing"),
        Check("item", col("item").is_duplicated(), "stands there twice"),
        *(Check(name, col(name) < 0, "is negative") for name in ("item", "category", "brand")),
        _price_check(),
        Check("keywords", col("keywords").list.min() < 0, "holds a negative word index"),
    ]


def _price_check() -> Check:
    price = pl.col("price")
    return Check("price", ~((price > 0) & price.is_finite()), "is no price above 0")


def _checked(
    file: Path,
    raw: Raw,
    schema: dict[str, Dtype],
    required: Iterable[str],
    checks: list[Check],
    on_bad: str,
) -> Part:
    """A file's rows in the schema's types, and those that are not of it."""
    ignored = _check_columns(file, raw.rows, schema, required, on_bad)
    rows, typed = raw.rows, _typed(file, raw.rows, schema)
    checks = [*_type_checks(typed, schema), *checks]
    bad = typed.select(
        check.bad.fill_null(False).alias(str(number)) for number, check in enumerate(checks)
    )
    aside = _broken(file, raw)
    if bad.select(pl.any_horizontal(pl.all().any())).item():
        wrong = bad.select(pl.any_horizontal(pl.all())).to_series()
        aside = pl.concat([aside, _aside(file, rows.filter(wrong), bad.filter(wrong), checks)])
        typed = typed.filter(~wrong)
    if len(aside) and on_bad == "error":
        raise UsageError(_said(aside.sort(ROW).row(0, named=True), len(aside)))
    return Part(typed.select(list(schema)), aside.sort(ROW), ignored)


def _check_columns(
    file: Path, rows: pl.DataFrame, schema: dict[str, Dtype], required: Iterable[str], on_bad: str
) -> tuple[str, ...]:
    """The columns that the schema does not know (refused where ``on_bad`` is "error")."""
    known = (*schema, *PREPROCESSED, ROW)
    # pandas adds some of its own
    foreign = [name for name in rows.columns if name not in known and name[:2] != "__"]
    for name in required:
        if name not in rows.columns:
            near = nearest(name, foreign)
            raise UsageError(f"{file} has no column {name!r}{near}")
    if foreign and on_bad == "error":
        near = nearest(foreign[0], schema)
        hint = near or f": the columns of a log are {', '.join(schema)}"
        raise UsageError(f"{file} has an unknown column {foreign[0]!r}{hint}")
    return tuple(foreign)


RAW = "raw:"  # before the name of a column that was converted, as it was


def _typed(file: Path, rows: pl.DataFrame, schema: dict[str, Dtype]) -> pl.DataFrame:
    """The schema's columns in its types, null where that cannot be; and what was converted."""
    columns = []
    for name, wanted in schema.items():
        if name not in rows.columns:
            columns.append(pl.lit(None, dtype=wanted).alias(name))
        elif rows[name].dtype == wanted:
            columns.append(pl.col(name))
        else:
            converted = _convert(pl.col(name), rows[name].dtype, wanted)
            if converted is None:
                raise UsageError(
                    f"{file}, column {name}: it holds {rows[name].dtype}, must be {wanted}"
                )
            columns += [converted.alias(name), pl.col(name).alias(RAW + name)]
    typed = rows.select(columns)
    if "policy" in schema:
        typed = typed.with_columns(pl.col("policy").fill_null(UNKNOWN))
    return typed


def _convert(column: pl.Expr, found: Dtype, wanted: Dtype) -> pl.Expr | None:
    """A column in another type, null where it has no such value; None if none can have."""
    if found == pl.Null:
        return column.cast(wanted)
    if found == pl.Categorical or isinstance(found, pl.Enum):
        column, found = column.cast(pl.String), pl.String()
    if wanted.is_integer():
        return _whole(column, found, wanted)
    if wanted.is_float() and (found.is_numeric() or found == pl.String):
        return column.cast(wanted, strict=False)
    if wanted.is_temporal():
        return _moment(column, found)
    if wanted == pl.String and found.is_numeric():
        return column.cast(wanted)
    if isinstance(wanted, pl.Enum) and found == pl.String:
        return column.cast(wanted, strict=False)
    if wanted == pl.List and found == pl.String:
        return column.str.split(" ").cast(wanted, strict=False)
    if wanted == pl.List and isinstance(found, pl.List) and found.inner.is_integer():
        return column.cast(wanted, strict=False)
    return None


def _whole(column: pl.Expr, found: Dtype, wanted: Dtype) -> pl.Expr | None:
    """Whole numbers, from text or from floats that are whole."""
    if found.is_integer():
        return column.cast(wanted, strict=False)
    if found != pl.String and not found.is_float():
        return None
    number = column.cast(pl.Float64, strict=False)
    floated = pl.when(number == number.floor()).then(number).cast(wanted, strict=False)
    if found.is_float():
        return floated
    return pl.coalesce(column.cast(wanted, strict=False), floated)


FORMATS = ("%Y-%m-%dT%H:%M:%S%.f%z", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d")


def _moment(column: pl.Expr, found: Dtype) -> pl.Expr | None:
    """Times in UTC, from other times or from ISO 8601."""
    wanted = EVENTS["timestamp"]
    if isinstance(found, pl.Datetime):
        zoned = column if found.time_zone else column.dt.replace_time_zone("UTC")
        return zoned.dt.convert_time_zone("UTC").cast(wanted)
    if found == pl.Date:
        return column.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    if found != pl.String:
        return None
    # a space for the T, and Z for the zone, are ISO 8601 too
    iso = column.str.replace(r"^(\d{4}-\d\d-\d\d) ", "${1}T").str.replace("Z$", "+0000")
    return pl.coalesce(
        iso.str.to_datetime(form, time_unit="us", time_zone="UTC", strict=False) for form in FORMATS
    )


NONE = "is no whole number in range"
KINDS = {
    "timestamp": "is no time in ISO 8601",
    "event": f"is no event, which are {', '.join(EVENT.categories)}",
    "price": "is no number",
    "propensity": "is no number",
}


def _type_checks(typed: pl.DataFrame, schema: dict[str, Dtype]) -> list[Check]:
    """Values that could not be converted."""
    checks = []
    for name, wanted in schema.items():
        value = pl.col(name)
        if RAW + name in typed.columns:
            bad = value.is_null() & pl.col(RAW + name).is_not_null()
            checks.append(Check(name, bad, KINDS.get(name, NONE)))
        if wanted == pl.List:
            within = value.list.len() != value.list.drop_nulls().list.len()
            checks.append(Check(name, within, "holds what is no word index"))
    return checks


def _aside(file: Path, rows: pl.DataFrame, bad: pl.DataFrame, checks: list[Check]) -> pl.DataFrame:
    """The rows that break a rule, each with the first one that it breaks."""
    names = [name for name in rows.columns if name != ROW]
    text = rows.select(ROW, *(_as_text(pl.col(name), rows[name].dtype) for name in names))
    text = text.hstack(bad.rename(lambda number: f"bad:{number}"))

    def first(told: Iterable[pl.Expr]) -> pl.Expr:
        return pl.coalesce(
            pl.when(pl.col(f"bad:{number}")).then(expr) for number, expr in enumerate(told)
        )

    return text.select(
        pl.lit(str(file)).alias("file"),
        ROW,
        first(pl.lit(check.column) for check in checks).alias("column"),
        first(_reason(check, names) for check in checks).alias("reason"),
        pl.concat_str([pl.col(name).fill_null("") for name in names], separator=",").alias(CONTENT),
    )


def _reason(check: Check, names: list[str]) -> pl.Expr:
    """What is wrong with a row's value, and the value where there is one."""
    missing = pl.lit(f"it {check.why}")
    if check.column not in names:
        return missing
    return pl.coalesce(pl.format("'{}' " + check.why, pl.col(check.column)), missing)


def _as_text(column: pl.Expr, found: Dtype) -> pl.Expr:
    if isinstance(found, pl.List):
        return column.cast(pl.List(pl.String)).list.join(" ")
    if found == pl.Binary:
        return column.bin.encode("hex")
    return column.cast(pl.String)


def _broken(file: Path, raw: Raw) -> pl.DataFrame:
    """The lines of a file that are no rows."""
    return raw.broken.select(
        pl.lit(str(file)).alias("file"),
        ROW,
        "column",
        "reason",
        pl.col("text").alias(CONTENT),
    )


def _lost(file: Path, reason: str) -> pl.DataFrame:
    """A whole file that cannot be read."""
    columns = {"file": [str(file)], ROW: [None], "column": [None], "reason": [reason]}
    return pl.DataFrame(columns | {CONTENT: [None]}, schema=ASIDE)


def _said(row: dict[str, Any], count: int = 1) -> str:
    """A row that was set aside, in one line."""
    if row[ROW] is None:
        return str(row["reason"])
    line = f" (line {row[ROW] + 1})" if row["file"].endswith(".csv") else ""
    column = f", column {row['column']}" if row["column"] else ""
    more = f" ({count:,} bad rows; on_bad=set_aside reads the others)" if count > 1 else ""
    return f"{row['file']}, row {row[ROW]}{line}{column}: {row['reason']}{more}"
