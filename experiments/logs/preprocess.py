"""From the event log as it was written to one that models can train on.

A bounded piece of the log at a time goes through these stages:

1. **take in**: rows that break the schema are set aside with the reason
2. **clean** (``cleaning.py``): duplicates, missing values, sessions, bots; shopper by shopper
3. **measure**: split (``split.py``), then fit what normalises on the train part alone
4. **write**: flags, parts and normalised values beside the columns of the schema
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tqdm import tqdm

from experiments import results
from experiments.logs import cleaning, schema
from experiments.logs.cleaning import FILLED
from experiments.logs.raw import ROW
from experiments.logs.split import PARTS, ByTime, Split, Whole, by_shopper, by_time
from recenv.dynamics import Event
from recenv.errors import UsageError, unknown
from recenv.seeding import Role, generator

EVENTS = tuple(event.name.lower() for event in Event)
REJECTED, SHOPPERS, ITEMS, REPORT = (
    "rejected.parquet",
    "shoppers.parquet",
    "items.parquet",
    "report",
)
SPLITS = ("time", "shopper", "none")
IF_EXISTS = ("error", "overwrite")


Progress = Callable[..., Any]  # draws a bar over what it is given, or gives it back


@dataclass(frozen=True)
class Asked:
    """What a user may choose.

    Attributes:
        rules: thresholds of cleaning.
        split: time, shopper or none.
        validation, test: shares of events (time) or shoppers (shopper).
        seed: of the split by shopper.
        rows_at_once: how much of the log is held in memory.
        progress: whether to draw a bar.
    """

    rules: cleaning.Rules = field(default_factory=cleaning.Rules)
    split: str = "time"
    validation: float = 0.1
    test: float = 0.1
    seed: int = 0
    rows_at_once: int = 2_500_000
    progress: bool = False


@dataclass(frozen=True)
class Normalisation:
    """What makes prices and counts of order one; fitted on the train part alone.

    Attributes:
        ratio: median and robust spread of log(price / catalogue price), bots left out.
        price: mean and standard deviation of the log price, bots and outliers left out.
        counts: the same of log(1 + count) over shoppers that are no bots, by event.
    """

    ratio: tuple[float, float]
    price: tuple[float, float]
    counts: dict[str, tuple[float, float]]


@dataclass
class Ledger:
    """How many rows went where, and what was changed.

    Attributes:
        rows_in: = rows_out + duplicates + the sum of ``rejected``, always.
        rejected: rows by reason.
        filled: values by column.
        lost: files of which no row could be read, by reason; nobody knows how many rows.
        ignored: columns that the schema does not know, by how many files have them.
        parts: rows by part.
        bots: shoppers by reason.
        bot_rows, outliers: rows.
        sessions: all of them.
        sessions_cut: those that got a number of ours.
    """

    rows_in: int = 0
    rows_out: int = 0
    duplicates: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    filled: Counter[str] = field(default_factory=Counter)
    parts: Counter[str] = field(default_factory=Counter)
    bots: Counter[str] = field(default_factory=Counter)
    bot_rows: int = 0
    shoppers: int = 0
    sessions: int = 0
    sessions_cut: int = 0
    outliers: int = 0

    def check(self) -> None:
        """Rows are never lost silently, not even by a mistake of ours."""
        told = self.rows_out + self.duplicates + self.rejected.total()
        if told != self.rows_in:
            raise AssertionError(f"{self.rows_in} rows came in, {told} are accounted for")


def preprocess(
    log: Path, out: Path, asked: Asked | None = None, if_exists: str = "error"
) -> dict[str, Any]:
    """Make a log ready for learning; see the module's docstring.

    Writes ``out``/events-*.parquet (rows by shopper and time), shoppers.parquet, items.parquet,
    rejected.parquet, report.json and report.md: all of them, or nothing.

    Returns:
        What report.json says.

    Raises:
        UsageError: the log cannot be read, nothing of it is left, or ``out`` cannot be written.
    """
    asked = asked or Asked()
    with _workplace(out, if_exists) as place:
        made = place / "made"
        made.mkdir()
        ledger = Ledger()
        done = partial(tqdm, leave=False, disable=not asked.progress)
        taken = take_in(log, place, made, ledger, done)
        cleaned = clean(taken, place, asked, ledger, done)
        split = _split(cleaned, asked)
        counted, normalisation = measure(cleaned, split, asked.rules, done)
        write(cleaned, split, counted, normalisation, asked.rules, made, ledger, done)
        _describe(log, made)
        ledger.check()
        report = _report(log, asked, split, normalisation, ledger)
        results.write_json(made / f"{REPORT}.json", report)
        results.write_text(made / f"{REPORT}.md", in_words(report))
        _put(made, out)
    return report


@dataclass(frozen=True)
class Taken:
    """Rows that keep the schema, file by file, and the catalogue."""

    files: list[Path]
    known: pl.DataFrame
    rows: int
    next_session: int


def take_in(log: Path, place: Path, made: Path, ledger: Ledger, done: Progress) -> Taken:
    """Stage 1: set aside what breaks the schema, keep the rest in files of ours."""
    items = schema.read_items(log)
    files, asides, rows, next_session = [], [], 0, 0
    parts = schema.read_parts(log, "set_aside", items=items)
    for number, part in enumerate(done(parts, desc="files taken in")):
        asides.append(place / f"aside-{number:04d}.parquet")
        part.aside.write_parquet(asides[-1])
        _count_aside(part.aside, ledger)
        ledger.ignored.update(part.ignored)
        rows += len(part.events)
        if len(part.events):
            files.append(place / f"taken-{number:04d}.parquet")
            part.events.write_parquet(files[-1], compression="lz4")
            highest = part.events["session"].max()
            next_session = max(next_session, highest + 1 if isinstance(highest, int) else 0)
    ledger.rows_in = rows + ledger.rejected.total()
    if not files:
        first = pl.scan_parquet(asides).head(1).collect()
        why = f", {first['reason'][0]}" if len(first) else ""
        raise UsageError(f"{log} has no row that can be used{why}")
    pl.scan_parquet(asides).sink_parquet(made / REJECTED)
    if items is None:
        columns = ["item", "category", "brand", "price"]
        items = schema.items_told(pl.scan_parquet(files).select(columns).collect())
    items.write_parquet(made / ITEMS)
    return Taken(files, cleaning.catalogue(items), rows, next_session)


def _count_aside(aside: pl.DataFrame, ledger: Ledger) -> None:
    """Count rows by the rule that they broke, without the value that broke it."""
    lost = pl.col(ROW).is_null()  # a whole file, nobody knows of how many rows
    ledger.lost.update(aside.filter(lost)["reason"].to_list())
    rule = pl.col("reason").str.replace("(?s)^('.*'|it) ", "")
    named = pl.coalesce(pl.concat_str("column", pl.lit(" "), rule), rule)
    counts = aside.filter(~lost).select(named.alias("rule").value_counts()).unnest("rule")
    ledger.rejected.update(dict(counts.iter_rows()))


@dataclass(frozen=True)
class Cleaned:
    """Clean rows, each shopper's in one file, and the shoppers that are bots."""

    files: list[Path]
    bots: pl.DataFrame


def clean(taken: Taken, place: Path, asked: Asked, ledger: Ledger, done: Progress) -> Cleaned:
    """Stage 2: shoppers by ranges, so that all of one are in memory at once."""
    files, bots, next_session = [], [], taken.next_session
    ranges = done(_ranges(taken, asked.rows_at_once), desc="pieces cleaned")
    for number, (low, high) in enumerate(ranges):
        mine = pl.col("shopper").is_between(low, high)
        found = pl.scan_parquet(taken.files).filter(mine).collect()
        events = cleaning.without_duplicates(found)
        ledger.duplicates += len(found) - len(events)
        del found
        missing = events.select(pl.col(FILLED).null_count()).row(0, named=True)
        events = cleaning.filled_from_catalogue(events, taken.known)
        events = cleaning.with_sessions(events, asked.rules.session_gap, next_session)
        left = events.select(pl.col(FILLED).null_count()).row(0, named=True)
        ledger.filled.update({name: missing[name] - left[name] for name in FILLED})
        highest = events["session"].max()
        assert isinstance(highest, int)
        ledger.sessions += events.select(pl.struct("shopper", "session").n_unique()).item()
        ledger.sessions_cut += max(highest + 1 - next_session, 0)
        next_session = max(next_session, highest + 1)
        bots.append(cleaning.bots(events, asked.rules))
        files.append(place / f"cleaned-{number:04d}.parquet")
        events.drop("query_key").write_parquet(files[-1], compression="lz4")
        del events
    for file in taken.files:
        file.unlink()
    return Cleaned(files, pl.concat(bots))


def _ranges(taken: Taken, rows_at_once: int) -> list[tuple[int, int]]:
    """Lowest and highest shopper of pieces of about ``rows_at_once`` rows."""
    pieces = -(-taken.rows // rows_at_once)
    shopper = pl.scan_parquet(taken.files).select("shopper").collect()["shopper"].to_numpy()
    places = [len(shopper) * piece // pieces for piece in range(pieces)]
    lows = np.unique(np.partition(shopper, places)[places])
    highs = [*(lows[1:] - 1), shopper.max()]
    return [(int(low), int(high)) for low, high in zip(lows, highs, strict=True)]


def _split(cleaned: Cleaned, asked: Asked) -> Split:
    if asked.split == "none":
        return Whole()
    events = pl.scan_parquet(cleaned.files)
    if asked.split == "time":
        moments = events.select(pl.col("timestamp").dt.timestamp("us")).collect().to_series()
        return by_time(moments.to_numpy(), asked.validation, asked.test)
    shoppers = events.select(pl.col("shopper").unique()).collect().to_series().to_numpy()
    rng = generator(Role.SPLIT, asked.seed)
    return by_shopper(shoppers, asked.validation, asked.test, rng)


def measure(
    cleaned: Cleaned, split: Split, rules: cleaning.Rules, done: Progress
) -> tuple[pl.DataFrame, Normalisation]:
    """Stage 3: what every shopper did in each part, and what normalises, from train alone."""
    tables, prices, ratios = [], [], []
    human = ~pl.col("shopper").is_in(cleaned.bots["shopper"].implode())
    for file in done(cleaned.files, desc="pieces measured"):
        columns = ["shopper", "session", "timestamp", "event", "price", "price_ratio"]
        events = split.assign(pl.read_parquet(file, columns=columns))
        tables.append(_counted(events))
        told = (pl.col("part") == "train") & human & pl.col("price_ratio").is_not_null()
        train = events.filter(told)
        prices.append(train["price"].log().to_numpy())
        ratios.append(train["price_ratio"].to_numpy())
    price, ratio = np.concatenate(prices), np.concatenate(ratios)
    middle, spread = cleaning.spread(ratio, rules.outlier_floor)
    usual = price[np.abs(ratio - middle) <= rules.outlier_z * spread]
    counted = pl.concat(tables).join(cleaned.bots, on="shopper", how="left", maintain_order="left")
    train = counted.filter((pl.col("part") == "train") & pl.col("bot").is_null())
    counts = {name: _mean_std(np.log1p(train[name].to_numpy())) for name in EVENTS}
    return counted, Normalisation((middle, spread), _mean_std(usual), counts)


def _counted(events: pl.DataFrame) -> pl.DataFrame:
    """A row for every shopper and part: how often she did what, first and last event."""
    return events.group_by("shopper", "part", maintain_order=True).agg(
        pl.len().alias("events"),
        pl.col("session").n_unique().alias("sessions"),
        pl.col("timestamp").min().alias("first"),
        pl.col("timestamp").max().alias("last"),
        *((pl.col("event") == name).sum().alias(name) for name in EVENTS),
    )


def _mean_std(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation; (0, 1) of nothing, and 1 where nothing varies."""
    if not len(values):
        return 0.0, 1.0
    deviation = float(values.std())
    return float(values.mean()), deviation if deviation > 1e-9 else 1.0


def write(
    cleaned: Cleaned,
    split: Split,
    counted: pl.DataFrame,
    normalisation: Normalisation,
    rules: cleaning.Rules,
    made: Path,
    ledger: Ledger,
    done: Progress,
) -> None:
    """Stage 4: the events with what PREPROCESSED names, the shoppers with normalised counts."""
    middle, spread = normalisation.ratio
    off = (pl.col("price_ratio") - middle).abs() > rules.outlier_z * spread
    outlier = (pl.col("price_ratio").is_not_null() & off).alias("outlier")
    price_z = _standardised(pl.col("price").log(), normalisation.price).alias("price_z")
    for number, file in enumerate(done(cleaned.files, desc="pieces written")):
        events = split.assign(pl.read_parquet(file)).with_columns(outlier, price_z)
        events = events.select(*schema.EVENTS, *schema.PREPROCESSED)
        events.write_parquet(made / f"events-{number:04d}.parquet")
        ledger.rows_out += len(events)
        ledger.outliers += int(events["outlier"].sum())
        file.unlink()
    scaled = [
        _standardised((1 + pl.col(name)).log(), normalisation.counts[name]).alias(f"{name}_z")
        for name in EVENTS
    ]
    shoppers = counted.with_columns(scaled)
    shoppers.write_parquet(made / SHOPPERS)
    rows_of = dict(shoppers.group_by("part").agg(pl.col("events").sum()).iter_rows())
    ledger.parts.update({name: rows_of[name] for name in PARTS if name in rows_of})
    ledger.shoppers = shoppers["shopper"].n_unique()
    flagged = shoppers.filter(pl.col("bot").is_not_null())
    ledger.bot_rows = int(flagged["events"].sum())
    ledger.bots.update(flagged.unique("shopper")["bot"].to_list())


def _standardised(value: pl.Expr, scale: tuple[float, float]) -> pl.Expr:
    return ((value - scale[0]) / scale[1]).cast(pl.Float32)


def _report(
    log: Path, asked: Asked, split: Split, normalisation: Normalisation, ledger: Ledger
) -> dict[str, Any]:
    """All that was done, in JSON's words."""
    told = {key: dict(of) if isinstance(of, Counter) else of for key, of in vars(ledger).items()}
    rows = {
        "in": ledger.rows_in,
        "out": ledger.rows_out,
        "duplicates": ledger.duplicates,
        "rejected": ledger.rejected.total(),
    }
    keys = (
        "rejected", "lost", "ignored", "filled", "parts", "bots", "bot_rows", "outliers",
        "shoppers", "sessions", "sessions_cut",
    )  # fmt: skip
    return {
        "log": str(log),
        "rows": rows,
        **{key: told[key] for key in keys},
        "split": _split_in_words(asked, split),
        "normalisation": asdict(normalisation),
        "rules": asdict(asked.rules),
    }


def _split_in_words(asked: Asked, split: Split) -> dict[str, Any]:
    words: dict[str, Any] = {"by": asked.split}
    if isinstance(split, Whole):
        return words
    words |= {"validation": asked.validation, "test": asked.test}
    if isinstance(split, ByTime):
        begins = (datetime.fromtimestamp(cut / 1e6, UTC).isoformat() for cut in split.cuts)
        return words | dict(zip(("validation_begins", "test_begins"), begins, strict=True))
    return words | {"seed": asked.seed}


def in_words(report: dict[str, Any]) -> str:
    """report.json as a page: how many rows or values, what was done to them, and why."""
    rows, price = report["rows"], report["normalisation"]["price"]
    lines = [f"| {what} | {count:,} | {why} |" for what, count, why in _changes(report)]
    parts = ", ".join(f"{name} {count:,}" for name, count in report["parts"].items())
    split = ", ".join(f"{name} {value}" for name, value in report["split"].items())
    paragraphs = [
        f"# What was done to {report['log']}",
        f"{rows['in']:,} rows in = {rows['out']:,} out + {rows['duplicates']:,} duplicates "
        f"+ {rows['rejected']:,} set aside",
        f"{report['shoppers']:,} shoppers, {report['sessions']:,} sessions; "
        f"rows by part: {parts} (split {split})",
        "\n".join(["| what | how many | why |", "| --- | --- | --- |", *lines]),
        "Normalised on the train part alone, flagged rows left out: "
        f"price_z = (log price - {price[0]:.4g}) / {price[1]:.4g}; the counts in {SHOPPERS} by "
        f"mean and spread of log(1 + count). Of bots are {report['bot_rows']:,} rows.",
    ]
    return "\n\n".join(paragraphs) + "\n"


def _changes(report: dict[str, Any]) -> Iterator[tuple[str, int, str]]:
    """(what, how many, why) of all that was changed, set aside or flagged."""
    rules, count = report["rules"], report["rows"]["duplicates"]
    gap = f"a gap of more than {rules['session_gap']:g} minutes"
    same = "same shopper, time, event, item, policy and words: the fullest row stays"
    yield "duplicates removed", count, same
    for reason, count in report["rejected"].items():
        yield f"rows set aside: {reason}", count, f"breaks the schema; see {REJECTED}"
    for reason, count in report["lost"].items():
        yield f"files set aside: {reason}", count, "no row of it can be read"
    for name, count in report["ignored"].items():
        yield f"files with a column {name}, left out", count, "the schema does not know it"
    filled = {
        "session": f"the shopper's session before it, or after it, without {gap}; or a new one",
        "step": "how many recommendations came before it in the session",
        "category": "the catalogue's, by item",
        "brand": "the catalogue's, by item",
        "price": "the catalogue's, by item; where it has none, the median of the category",
    }
    for name, why in filled.items():
        yield f"missing {name} filled", report["filled"][name], why
    yield "sessions cut", report["sessions_cut"], f"events without session; {gap} ends one"
    off = f"robust z of log(price / catalogue price) beyond {rules['outlier_z']:g}; kept"
    yield "price outliers flagged", report["outliers"], off
    for reason, count in report["bots"].items():
        yield f"bots flagged: {reason}", count, f"of {rules['bot_events']} acts or more; kept"


def _describe(log: Path, made: Path) -> None:
    """log.json, so that what was made is a log again: as it was collected, with its new files."""
    files = {
        file.name: pl.scan_parquet(file).select(pl.len()).collect().item()
        for file in sorted(made.glob("events-*.parquet"))
    }
    about = schema.read_about(log) if log.is_dir() else {}
    about |= {"files": files, "rows": sum(files.values()), "preprocessed": str(log)}
    results.write_json(made / schema.LOG_FILE, about)


@contextmanager
def _workplace(out: Path, if_exists: str) -> Iterator[Path]:
    """A directory beside ``out`` to work in, gone afterwards whatever happens."""
    if if_exists not in IF_EXISTS:
        raise unknown("if_exists", if_exists, IF_EXISTS)
    if out.exists() and not (out / f"{REPORT}.json").is_file():
        raise UsageError(f"{out} exists and is no preprocessed log: choose another out")
    if out.exists() and if_exists == "error":
        raise UsageError(f"{out} already exists: choose another out, or pass if_exists=overwrite")
    with results.writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
    try:
        with results.writing(out):  # a full disk
            yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _put(made: Path, out: Path) -> None:
    """Put what was made in its place, all at once."""
    with results.writing(out):
        if out.exists():
            shutil.rmtree(out)
        made.replace(out)


def read_clean(path: Path, part: str | None = None, flagged: bool = True) -> pl.DataFrame:
    """The events that ``preprocess`` wrote, by shopper and time.

    Args:
        path: where it wrote them.
        part: train, validation or test; None for all.
        flagged: whether to keep price outliers and all that bots did.

    Raises:
        UsageError: there is no preprocessed log, or the part is unknown.
    """
    if part is not None and part not in PARTS:
        raise unknown("part", part, PARTS)
    results.read_json(path / f"{REPORT}.json")  # its absence is told in one line
    events = pl.scan_parquet(sorted(path.glob("events-*.parquet")))
    if part is not None:
        events = events.filter(pl.col("part") == part)
    if not flagged:
        shoppers = pl.scan_parquet(path / SHOPPERS)
        bots = shoppers.filter(pl.col("bot").is_not_null()).select("shopper").collect().to_series()
        human = ~pl.col("shopper").is_in(bots.unique().implode())
        events = events.filter(human & ~pl.col("outlier"))
    return events.collect()
