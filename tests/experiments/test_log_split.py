"""Parts of a log that share nothing."""

from __future__ import annotations

from itertools import pairwise

import made_logs
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.logs.split import PARTS, Split, Whole, by_shopper, by_time
from recenv.errors import UsageError


def log(seed: int, num: int) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    return made_logs.events(num, made_logs.items(9, rng), rng, 5)


def moments(frame: pl.DataFrame) -> np.ndarray:
    return frame["timestamp"].dt.timestamp("us").to_numpy()


def parts(split: Split, frame: pl.DataFrame) -> dict[str, pl.DataFrame]:
    told = split.assign(frame)
    assert told.drop("part").equals(frame)
    return {name: told.filter(pl.col("part") == name) for name in PARTS}


SEEDS = st.integers(0, 2**32 - 1)
SHARES = st.sampled_from([0.0, 0.1, 0.25, 0.4])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(SEEDS, st.integers(30, 300), SHARES, SHARES, st.sampled_from([1, 10_000_000, 10**11]))
def test_by_time_no_event_is_later_than_one_of_a_later_part(
    seed: int, num: int, validation: float, test: float, tick: int
) -> None:
    frame = log(seed, num)
    # a coarse clock: many events of one moment
    coarse = (pl.col("timestamp").cast(pl.Int64) // tick * tick).cast(frame["timestamp"].dtype)
    frame = frame.with_columns(coarse)
    try:
        split = by_time(moments(frame), validation, test)
    except UsageError as error:
        assert "split=shopper" in str(error)  # noqa: PT017 - a clock this coarse may not do
        first = (frame["timestamp"] == frame["timestamp"].min()).sum()
        assert first > round(num * (1 - validation - test))
        return
    found = parts(split, frame)
    assert len(found["train"]) > 0
    ends = [moments(found[name]) for name in PARTS if len(found[name])]
    for earlier, later in pairwise(ends):
        assert earlier.max() < later.min()
    if tick == 1:
        assert len(found["test"]) == pytest.approx(test * num, abs=1)
        assert len(found["validation"]) == pytest.approx(validation * num, abs=2)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(SEEDS, st.integers(60, 300), SHARES, SHARES)
def test_by_shopper_nobody_is_in_two_parts(
    seed: int, num: int, validation: float, test: float
) -> None:
    frame = log(seed, num)
    who = frame["shopper"].to_numpy()
    if round(len(np.unique(who)) * (validation + test)) == len(np.unique(who)):
        return
    split = by_shopper(who, validation, test, np.random.default_rng(seed))
    found = {name: set(part["shopper"]) for name, part in parts(split, frame).items()}
    assert sum(map(len, found.values())) == len(set(who))
    assert set.union(*found.values()) == set(who)
    assert len(found["test"]) == round(test * len(set(who)))
    assert found["train"]


def test_by_shopper_depends_on_the_seed_and_not_on_the_order() -> None:
    who = np.arange(1000) % 200

    def held(seed: int, shoppers: np.ndarray) -> tuple[set[int], set[int]]:
        split = by_shopper(shoppers, 0.2, 0.2, np.random.default_rng(seed))
        return set(split.validation), set(split.test)

    assert held(0, who) == held(0, who[::-1])
    assert held(0, who) != held(1, who)
    # a random 40 of 200: neither the first nor the last ones
    assert 60 < np.mean(list(held(0, who)[1])) < 140


def test_without_a_split_everything_trains() -> None:
    frame = log(0, 50)
    assert len(parts(Whole(), frame)["train"]) == 50


def test_what_cannot_be_split_is_said() -> None:
    same = np.full(100, 7)
    for shares in ((0.5, 0.5), (-0.1, 0.2), (0.2, 1.0)):
        with pytest.raises(UsageError, match="leave some for training"):
            by_time(np.arange(100), *shares)
        with pytest.raises(UsageError, match="leave some for training"):
            by_shopper(np.arange(100), *shares, np.random.default_rng(0))
    with pytest.raises(UsageError, match="split=shopper"):
        by_time(same, 0.1, 0.1)
    with pytest.raises(UsageError, match="nobody of 1 shoppers"):
        by_shopper(same, 0.3, 0.3, np.random.default_rng(0))
