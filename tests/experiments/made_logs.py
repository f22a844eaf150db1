"""Event logs made by hand, clean or dirty, without a simulator."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from experiments.logs import schema
from recenv.dynamics import Event

BEGIN = 1_700_000_000  # seconds since 1970
YEAR = 365 * 86_400 * 1_000_000  # microseconds
PACE = 20.0  # mean seconds between two events of a session
WORDS = 12


def items(num: int, rng: np.random.Generator, categories: int = 4) -> pl.DataFrame:
    """A catalogue."""
    keywords = [rng.integers(WORDS, size=rng.integers(1, 5)).tolist() for _ in range(num)]
    columns: dict[str, Any] = {
        "item": np.arange(num),
        "category": rng.integers(categories, size=num),
        "brand": rng.integers(3, size=num),
        "price": np.exp(rng.normal(2.0, 0.5, size=num)).round(2),
        "keywords": keywords,
        "name": [f"item {item}" for item in range(num)],
    }
    return pl.DataFrame(columns, schema=schema.ITEMS)


def events(
    num: int, catalogue: pl.DataFrame, rng: np.random.Generator, session_length: int = 20
) -> pl.DataFrame:
    """Clean events: sessions of equal length, each shopper's hours apart."""
    index = np.arange(num)
    session, step = index // session_length, index % session_length
    shopper_S = rng.permutation(session[-1] + 1) % max(session[-1] // 4, 1)
    wait = rng.integers(1_000_000, int(2 * PACE * 1e6), size=num)
    elapsed = np.cumsum(wait)
    within = elapsed - elapsed[session * session_length]
    apart = min(3_600_000_000, YEAR // (int(session[-1]) + 1))  # never in the future
    event = rng.choice(len(Event), p=[0.3, 0.05, 0.3, 0.15, 0.15, 0.05], size=num)
    search = event == Event.SEARCH
    length = np.where(search, rng.integers(1, 4, size=num), 0)
    words = pl.Series(rng.integers(WORDS, size=length.sum()), dtype=pl.Int32)
    item = rng.integers(len(catalogue), size=num)
    columns: dict[str, Any] = {
        "shopper": shopper_S[session],
        "session": session,
        "step": step,
        "timestamp": BEGIN * 1_000_000 + session * apart + within,
        "event": schema.EVENT.categories.gather(event).cast(schema.EVENT),
        "item": item,
        **{name: catalogue[name].gather(item) for name in ("category", "brand", "price")},
        "query": _lists(words, length),
        "policy": pl.Series(["ppo", "organic"]).gather((search | (rng.random(num) < 0.1)) * 1),
        "propensity": 0.1,
    }
    searched = pl.col("event") == schema.SEARCH
    shown = [pl.when(~searched).then(pl.col(name)) for name in ("item", "category", "brand")]
    return (
        pl.DataFrame(columns)
        .with_columns(
            *shown,
            pl.when(~searched).then("price").alias("price"),
            pl.when(searched).then("query").alias("query"),
            pl.when(pl.col("policy") != schema.ORGANIC).then("propensity").alias("propensity"),
        )
        .cast(schema.EVENTS)
    )


def _lists(words: pl.Series, length: np.ndarray) -> pl.Series:
    """Words in lists of the given lengths."""
    owner = np.repeat(np.arange(len(length)), length)
    grouped = pl.DataFrame({"owner": owner, "word": words}).group_by("owner").agg("word")
    everybody = pl.DataFrame({"owner": np.arange(len(length))})
    return everybody.join(grouped, on="owner", how="left", maintain_order="left")["word"]


def soil(frame: pl.DataFrame, rng: np.random.Generator, share: float = 0.02) -> pl.DataFrame:
    """Rows twice, values missing, prices that cannot be, prices far off; in any order."""
    num = len(frame)
    many = max(int(num * share), 1)

    def some() -> pl.Series:
        mask = np.zeros(num, dtype=bool)
        mask[rng.choice(num, size=many, replace=False)] = True
        return pl.Series(mask)

    missing = ("session", "category", "brand", "price")
    frame = frame.with_columns(pl.when(~some()).then(pl.col(name)).alias(name) for name in missing)
    frame = frame.with_columns(
        pl.when(some()).then(pl.col("price") * 30).otherwise("price").alias("price")
    )
    frame = frame.with_columns(
        pl.when(some()).then(-1.0).otherwise("price").alias("price"),
        pl.when(some()).then(None).otherwise("shopper").alias("shopper"),
    )
    frame = pl.concat([frame, frame[rng.choice(num, size=many, replace=False)]])
    return frame[rng.permutation(len(frame))]


def write(path: Path, frame: pl.DataFrame, catalogue: pl.DataFrame | None, files: int = 1) -> Path:
    """A log directory."""
    path.mkdir(parents=True)
    bounds = np.linspace(0, len(frame), files + 1).astype(int)
    for number, (low, high) in enumerate(pairwise(bounds)):
        frame[low:high].write_parquet(path / f"events-{number:04d}.parquet")
    if catalogue is not None:
        catalogue.write_parquet(path / "items.parquet")
    return path
