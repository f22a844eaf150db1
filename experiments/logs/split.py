"""Train, validation and test parts of a log that share nothing: by time, or by shopper."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from experiments.logs.schema import PREPROCESSED
from recenv.errors import UsageError

PART = PREPROCESSED["part"]
PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class ByTime:
    """Every event of the past trains, every event of the future tests.

    A session that is under way at a cut is divided by it: were it kept whole, train would
    hold events later than those of test.

    Attributes:
        cuts: microseconds since 1970; validation begins at the first, test at the second.
    """

    cuts: tuple[int, int]

    def assign(self, events: pl.DataFrame) -> pl.DataFrame:
        """The events with their ``part``."""
        moment = pl.col("timestamp").dt.timestamp("us")
        return _in_parts(events, moment >= self.cuts[0], moment >= self.cuts[1])


@dataclass(frozen=True, eq=False)
class ByShopper:
    """All that a shopper ever did is in one part.

    Attributes:
        validation, test: the shoppers of these parts, sorted; everybody else trains.
    """

    validation: np.ndarray
    test: np.ndarray

    def assign(self, events: pl.DataFrame) -> pl.DataFrame:
        """The events with their ``part``."""
        held = [pl.Series(who, dtype=pl.Int64) for who in (self.validation, self.test)]
        in_validation, in_test = (pl.col("shopper").is_in(who.implode()) for who in held)
        return _in_parts(events, in_validation | in_test, in_test)


@dataclass(frozen=True)
class Whole:
    """No split: everything trains."""

    def assign(self, events: pl.DataFrame) -> pl.DataFrame:
        """The events with their ``part``."""
        return _in_parts(events, pl.lit(False), pl.lit(False))


Split = ByTime | ByShopper | Whole


def by_time(timestamp: np.ndarray, validation: float, test: float) -> ByTime:
    """Cuts such that the last ``test`` of all events test, and ``validation`` before them validate.

    Events of one moment stay together, so the shares are met as nearly as the clock allows.

    Args:
        timestamp: of every event, microseconds since 1970.
        validation, test: shares of the events.

    Raises:
        UsageError: no train events would be left.
    """
    _check_shares(validation, test)
    if not len(timestamp):
        raise UsageError("there is no event to split")
    places = [round(len(timestamp) * (1.0 - share)) for share in (validation + test, test)]
    last = len(timestamp) - 1
    ordered = np.partition(timestamp, [min(place, last) for place in places])
    # beyond the last event where nothing is asked for
    cuts = [int(ordered[place]) if place <= last else int(ordered.max()) + 1 for place in places]
    if cuts[0] <= int(timestamp.min()):
        raise UsageError(
            "split=time leaves no event for training: too many have the earliest timestamp; "
            "use split=shopper"
        )
    return ByTime((cuts[0], cuts[1]))


def by_shopper(
    shopper: np.ndarray, validation: float, test: float, rng: np.random.Generator
) -> ByShopper:
    """A random ``test`` of all shoppers test, a random ``validation`` of them validate.

    Raises:
        UsageError: no shopper would be left for training.
    """
    _check_shares(validation, test)
    who = np.unique(shopper)
    held = round(len(who) * (validation + test))
    tests = round(len(who) * test)
    if held >= len(who):
        raise UsageError(f"split=shopper leaves nobody of {len(who)} shoppers for training")
    shuffled = rng.permutation(who)
    return ByShopper(np.sort(shuffled[tests:held]), np.sort(shuffled[:tests]))


def _in_parts(events: pl.DataFrame, held: pl.Expr, tests: pl.Expr) -> pl.DataFrame:
    train, validation, test = (pl.lit(name, dtype=PART) for name in PARTS)
    part = pl.when(tests).then(test).when(held).then(validation).otherwise(train)
    return events.with_columns(part.alias("part"))


def _check_shares(validation: float, test: float) -> None:
    if validation < 0 or test < 0 or validation + test >= 1:
        raise UsageError(
            f"validation and test must be shares that leave some for training, got {validation:g} "
            f"and {test:g}"
        )
