"""The held-out part of a log as questions: what she answered so far, and what she bought then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from agents.interest.histories import NOTHING, Histories
from agents.ranking import Ranking, best_items, judge_lists
from experiments.logs.features import histories
from experiments.logs.preprocess import REPORT, read_clean
from experiments.logs.schema import ORGANIC, read_about, read_log
from experiments.logs.split import by_shopper, by_time
from experiments.stats import Estimate, bootstrap_shoppers, mean
from recenv.dynamics import Event
from recenv.errors import UsageError, unknown

SPLITS = ("time", "shopper")
AT_ONCE = 512  # questions that are scored together
# Of what shoppers (n,) answered in this session (n, H), and who they are: scores (n, I).
Rank = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Questions:
    """n purchases that were held out, and what was known before each.

    Attributes:
        train: sessions to learn from, oldest event first.
        session_n, place_n: where in ``sessions`` the purchase stands; what comes before it is
            known, and nothing after it.
        sessions: those with held-out purchases.
        about: what log.json says.
    """

    train: Histories
    sessions: Histories
    session_n: np.ndarray
    place_n: np.ndarray
    about: dict[str, Any]

    def __len__(self) -> int:
        return len(self.session_n)

    @property
    def target_n(self) -> np.ndarray:
        """What was bought."""
        item_n: np.ndarray = self.sessions.items_ST[self.session_n, self.place_n]
        return item_n

    @property
    def shopper_n(self) -> np.ndarray:
        """By whom."""
        shopper_n: np.ndarray = self.sessions.shopper_S[self.session_n]
        return shopper_n

    def before(self, part: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Items and events (n, T) before some of the purchases, -1 from them on; and by whom."""
        session_n = self.session_n[part]
        past_nT = np.arange(self.sessions.items_ST.shape[1]) < self.place_n[part, None]
        items_nT = np.where(past_nT, self.sessions.items_ST[session_n], NOTHING)
        events_nT = np.where(past_nT, self.sessions.events_ST[session_n], NOTHING)
        return items_nT, events_nT, self.shopper_n[part]


def read_questions(
    path: Path, split: str, test: float, organic: bool, most: int, rng: np.random.Generator
) -> Questions:
    """What a log asks of recommenders. A preprocessed log brings its own split.

    Args:
        path: the log's directory or file; where ``preprocess`` made it, its train and validation
            parts are learned from and its test part is asked.
        split, test: how a log that is not preprocessed is split, and the share that is asked.
        organic: whether what shoppers did by themselves is known.
        most: at most so many purchases are asked, drawn at random.
        rng: of the split by shopper, and of this.

    Raises:
        UsageError: the log cannot be read, or holds no purchase to ask for.
    """
    events = _in_parts(path, split, test, rng)
    if not organic:
        events = events.filter(pl.col("policy") != ORGANIC)
    asked = pl.col("part") == "test"
    train = events.filter(~asked)
    events = events.filter(asked.any().over("shopper", "session"))
    if not len(train) or not len(events):
        raise UsageError(f"{path} has no {'train' if not len(train) else 'test'} part to rank on")
    sessions = histories(events)
    # laid out alike, with a flag in the place of the item
    flag = asked & (pl.col("policy") != ORGANIC)
    flags_ST = histories(events.with_columns(flag.cast(pl.Int32).alias("item"))).items_ST
    bought_ST = (sessions.events_ST == Event.PURCHASE) & (flags_ST == 1)
    session_n, place_n = np.nonzero(bought_ST & (sessions.items_ST >= 0))
    if not len(session_n):
        raise UsageError(f"{path} has no purchase in its test part: collect a longer log")
    if len(session_n) > most:
        kept = np.sort(rng.choice(len(session_n), size=most, replace=False))
        session_n, place_n = session_n[kept], place_n[kept]
    return Questions(histories(train), sessions, session_n, place_n, read_about(path))


def _in_parts(path: Path, split: str, test: float, rng: np.random.Generator) -> pl.DataFrame:
    """All events of a log with their part."""
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if (path / f"{REPORT}.json").is_file():
        return read_clean(path, flagged=False)
    events = read_log(path).events
    if split == "time":
        moment = events["timestamp"].dt.timestamp("us").to_numpy()
        return by_time(moment, 0.0, test).assign(events)
    return by_shopper(events["shopper"].to_numpy(), 0.0, test, rng).assign(events)


def answer(questions: Questions, rank: Rank, k: int, rng: np.random.Generator) -> Ranking:
    """How well a recommender ranks what was bought, see ``agents.ranking``."""
    lists, width = [], 0
    for part in parts(len(questions)):
        score_nI = rank(*questions.before(part))
        width = score_nI.shape[1]
        lists.append(best_items(score_nI, k, rng))
    return judge_lists(np.concatenate(lists), questions.target_n, width)


def parts(count: int) -> Iterator[slice]:
    """Slices of ``AT_ONCE``."""
    return (slice(at, min(at + AT_ONCE, count)) for at in range(0, count, AT_ONCE))


def over_shoppers(value_n: np.ndarray, shopper_n: np.ndarray, rng: np.random.Generator) -> Estimate:
    """The mean over shoppers of each one's mean, with its 95% interval: shoppers are redrawn
    whole, for the purchases of one are not independent."""
    _, row_n, count_N = np.unique(shopper_n, return_inverse=True, return_counts=True)
    mean_N = np.bincount(row_n, weights=value_n) / count_N
    return bootstrap_shoppers(mean_N[None, None], mean, rng)
