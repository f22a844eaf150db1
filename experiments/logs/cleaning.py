"""What is done to the rows of an event log, and why: pure functions of a frame.

All of them want rows that keep the schema (``schema.py``), and none drops a row but
``without_duplicates``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from experiments.logs.schema import ORGANIC, SEARCH

# What makes two rows one event that was logged twice. ``query_key`` stands for the words of a
# search. Not the session and the step, which a copy may have lost.
KEY = ("shopper", "timestamp", "event", "item", "policy", "query_key")
FILLED = ("session", "step", "category", "brand", "price")  # columns that are filled
MAD_TO_SIGMA = 1.4826  # of a normal distribution


@dataclass(frozen=True)
class Rules:
    """The thresholds.

    Attributes:
        session_gap: minutes without an event after which a new session begins, where the log
            does not say which session an event belongs to.
        outlier_z: robust z beyond which an event's price is an outlier.
        outlier_floor: least spread of log price ratios that the robust z divides by: where
            everybody pays the catalogue's price, a cent more is no outlier.
        bot_events: acts (all but ignoring) without which nobody is called a bot.
        bot_hour: more acts than this within one hour are a bot's.
        bot_gap: seconds; where more than half of the gaps between acts of one session are
            shorter, no human acted.
    """

    session_gap: float = 30.0
    outlier_z: float = 6.0
    outlier_floor: float = 0.1
    bot_events: int = 50
    bot_hour: int = 1000
    bot_gap: float = 0.2


def catalogue(items: pl.DataFrame) -> pl.DataFrame:
    """What the catalogue says of each item, its prices whole.

    An item without a price is given the median of its category, or of all items where its
    category has none. Only items.parquet is asked, which is public: nothing leaks from events.
    """
    price = pl.col("price")
    return items.select(
        "item",
        pl.col("category").alias("item_category"),
        pl.col("brand").alias("item_brand"),
        pl.coalesce(price, price.median().over("category"), price.median()).alias("item_price"),
    ).unique("item", keep="first", maintain_order=True)


def without_duplicates(events: pl.DataFrame) -> pl.DataFrame:
    """Every event once, the row with the fewest missing values; adds ``query_key``.

    In an order that depends on nothing but the rows, see ``in_order``.
    """
    query_key = pl.when(pl.col("query").is_not_null()).then(pl.col("query").hash(0))
    missing = pl.sum_horizontal(pl.col(*FILLED).is_null())
    rest = [name for name in events.columns if name not in (*KEY, "query")]
    keyed = events.with_columns(query_key.alias("query_key"), missing.alias("missing"))
    copies = keyed.sort(*KEY, "missing", *rest)
    again = pl.all_horizontal(pl.col(name).eq_missing(pl.col(name).shift()) for name in KEY)
    return in_order(copies.filter(~again).drop("missing"))


def in_order(events: pl.DataFrame) -> pl.DataFrame:
    """Events in order of shopper and time, those of one moment in order of their steps."""
    at_once = [pl.col(name) == pl.col(name).shift() for name in ("shopper", "timestamp")]
    if not events.select((at_once[0] & at_once[1]).any()).item():
        return events  # as ``without_duplicates`` sorted them
    return events.sort("shopper", "timestamp", "step", "session", *KEY[2:])


def filled_from_catalogue(events: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """Missing category, brand and price of an item as ``catalogue`` says; adds ``price_ratio``.

    ``price_ratio`` is log(price / the catalogue's price).
    """
    joined = events.join(known, on="item", how="left", maintain_order="left")
    names = ("category", "brand", "price")
    filled = joined.with_columns(pl.coalesce(name, f"item_{name}").alias(name) for name in names)
    ratio = (pl.col("price") / pl.col("item_price")).log().cast(pl.Float32)
    return filled.with_columns(ratio.alias("price_ratio")).drop(known.columns[1:])


def with_sessions(events: pl.DataFrame, gap: float, next_session: int) -> pl.DataFrame:
    """Events ``in_order`` with every session and step filled.

    A session that the log names is kept. An event without one joins the session before it,
    or else the one after it, if that is the same shopper's and no gap of more than ``gap``
    minutes lies between; what is left is cut at such gaps, into sessions numbered from
    ``next_session``. A missing step is the number of recommendations before it in the session.
    """
    if not events["session"].null_count() and not events["step"].null_count():
        return events
    if events["session"].null_count():
        events = _with_session_ids(events, gap, next_session)
    shown = ((pl.col("policy") != ORGANIC) & (pl.col("event") != SEARCH)).cast(pl.Int32)
    before = (shown.cum_sum() - shown).over("shopper", "session")
    return in_order(events.with_columns(pl.coalesce("step", before).cast(pl.Int32).alias("step")))


def _with_session_ids(events: pl.DataFrame, gap: float, next_session: int) -> pl.DataFrame:
    late = pl.col("timestamp").diff() > pl.duration(seconds=gap * 60.0)
    other = pl.col("shopper") != pl.col("shopper").shift()
    # a stretch: the events of one shopper between two gaps
    stretches = (other | late).fill_null(True).cast(pl.Int64).cum_sum()
    stretch, session = pl.col("stretch"), pl.col("session")
    named = pl.when(session.is_not_null()).then(stretch)
    before = pl.when(named.forward_fill() == stretch).then(session.forward_fill())
    after = pl.when(named.backward_fill() == stretch).then(session.backward_fill())
    found = events.with_columns(stretches.alias("stretch")).with_columns(
        pl.coalesce(session, before, after).alias("session")
    )
    # what is still without a name are whole stretches
    begins = session.is_null() & (stretch != stretch.shift(fill_value=0))
    number = begins.cast(pl.Int64).cum_sum() - 1 + next_session
    return found.with_columns(pl.coalesce(session, number).alias("session")).drop("stretch")


def bots(events: pl.DataFrame, rules: Rules) -> pl.DataFrame:
    """(shopper, bot): who is a bot, and which rule says so, of events ``in_order``.

    Ignoring a recommendation is no act.
    """
    acts = events.filter(pl.col("event") != "ignore")
    shopper, timestamp = pl.col("shopper"), pl.col("timestamp")
    many = timestamp - timestamp.shift(rules.bot_hour) < pl.duration(hours=1)
    busy = (shopper == shopper.shift(rules.bot_hour)) & many
    within = pl.all_horizontal(pl.col(k) == pl.col(k).shift() for k in ("shopper", "session"))
    hasty = timestamp.diff() < pl.duration(microseconds=round(rules.bot_gap * 1e6))
    told = acts.select(
        "shopper",
        busy=busy.fill_null(False),
        hasty=pl.when(within).then(hasty),
        act=pl.col("event").to_physical(),
        what=pl.coalesce(pl.col("item").cast(pl.UInt64), "query_key"),
    )
    alike = [pl.col(name).min() == pl.col(name).max() for name in ("act", "what")]
    broken = told.group_by("shopper", maintain_order=True).agg(
        acts=pl.len(),
        busy=pl.col("busy").any(),
        hasty=pl.col("hasty").mean() > 0.5,
        alike=alike[0] & alike[1],
    )
    reason = (
        pl.when("busy")
        .then(pl.lit(f"more than {rules.bot_hour} acts in an hour"))
        .when("hasty")
        .then(pl.lit(f"most gaps under {rules.bot_gap:g} s"))
        .when("alike")
        .then(pl.lit("always the same act"))
    )
    enough = broken.filter(pl.col("acts") >= rules.bot_events)
    return enough.select("shopper", bot=reason).filter(pl.col("bot").is_not_null())


def spread(price_ratio: np.ndarray, floor: float) -> tuple[float, float]:
    """Median and robust standard deviation (at least ``floor``) of log price ratios."""
    if not len(price_ratio):
        return 0.0, floor
    middle = float(np.median(price_ratio))
    deviation = float(np.median(np.abs(price_ratio - middle)))
    return middle, max(MAD_TO_SIGMA * deviation, floor)
