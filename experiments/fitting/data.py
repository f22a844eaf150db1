"""Rows to learn from and rows to judge by: from a simulated shop, or from an event log."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from agents.base import stagger
from agents.references import MyopicOracle
from agents.supervised import Observations, Rows, Windows
from experiments import results
from experiments.build import group_defaults, make_env
from recenv.dynamics import Event
from recenv.errors import UsageError
from recenv.observation import Behaviour
from recenv.shop import DYNAMICS_NAMES
from recenv.vector_env import RecsysVectorEnv

if TYPE_CHECKING:  # it is an extra
    import polars as pl

PURCHASE = int(Event.PURCHASE)
SLOTS = 256  # shoppers that are served at once while data are collected


@dataclass(frozen=True)
class Part:
    """Rows, and what only a simulator knows of them.

    Attributes:
        rows: recommendations and what became of them.
        true_N: the true purchase probability of each; None where nobody knows.
        oracle_Nk: the k items with the highest true probabilities, best first.
    """

    rows: Rows
    true_N: np.ndarray | None = None
    oracle_Nk: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Data:
    """What a fit learns from, and what it is judged by.

    Attributes:
        learn: rows of training and validation; None: it learns from the environment.
        test: shoppers (in a log: a time) that nothing was learned from.
        validation_n: the numbers of the validation rows; None: to be drawn, by sessions.
    """

    learn: Part | None
    test: Part
    validation_n: np.ndarray | None = None


def collect(
    env: RecsysVectorEnv, steps: int, seed: int, rng: np.random.Generator, k: int | None = None
) -> Part:
    """Show random items to newcomers, ``steps`` times in all (rounded up to whole batches).

    Random items, because what is learned from them holds for every item.

    Args:
        env: which shop; it is not touched.
        seed: of the shoppers.
        rng: chooses the items.
        k: length of the oracle's lists; None for none.
    """
    shop = env.sibling(slots(steps), reveal=True, autoreset_mode="SameStep")
    n, oracle, log = shop.num_envs, MyopicOracle(), _Sessions(shop)
    oracle.bind(shop)
    options = {"first_session_steps": stagger(shop, rng)}
    observation, _ = shop.reset(seed=seed, options=options)
    true, best = [], []
    for _ in range(rounded(steps) // n):
        item_N = rng.integers(shop.shop.num_items, size=n)
        if k is not None:
            best.append(oracle.recommend(observation, k)[0])
        seen, shopper_N = observation, shop.shopper_id_N.copy()
        observation, _, terminated_N, truncated_N, info = shop.step(item_N)
        told = info.get("final_info", info)
        log.add(seen, shopper_N, item_N, told["event"], terminated_N | truncated_N)
        true.append(told["purchase_probability"])
    return Part(log.rows(), np.concatenate(true), np.concatenate(best) if best else None)


def slots(steps: int) -> int:
    """How many shoppers are served at once, so that ``steps`` recommendations are shown."""
    return min(SLOTS, steps)


def rounded(steps: int) -> int:
    """So many recommendations as whole batches: what ``collect`` shows."""
    return -(-steps // slots(steps)) * slots(steps)


class _Sessions:
    """Recommendations as they come, with the number of the session and of the step in it."""

    def __init__(self, env: RecsysVectorEnv):
        self._shop, n = env.shop, env.num_envs
        self._session_N, self._step_N = np.arange(n), np.zeros(n, dtype=np.int64)
        self._sessions = n
        self._columns: list[tuple[np.ndarray, ...]] = []
        self._observations: list[np.ndarray] = []

    def add(
        self,
        observation: np.ndarray,
        shopper_N: np.ndarray,
        item_N: np.ndarray,
        event_N: np.ndarray,
        over_N: np.ndarray,
    ) -> None:
        place = self._session_N.copy(), self._step_N.copy()
        self._columns.append((*place, shopper_N, item_N, event_N.astype(np.int64)))
        if not isinstance(self._shop.observer, Behaviour):  # that can be made again
            self._observations.append(observation)
        self._step_N = np.where(over_N, 0, self._step_N + 1)
        begun = np.flatnonzero(over_N)
        self._session_N[begun] = self._sessions + np.arange(len(begun))
        self._sessions += len(begun)

    def rows(self) -> Rows:
        session_N, step_N, shopper_N, item_N, event_N = (
            np.concatenate(column) for column in zip(*self._columns, strict=True)
        )
        observer = self._shop.observer
        seen: Observations
        if isinstance(observer, Behaviour):
            seen = Windows(observer, session_N, step_N, item_N, event_N)
        else:
            seen = np.concatenate(self._observations)
        bought_N = (event_N == PURCHASE).astype(np.int64)
        known = shopper_N if self._shop.settings.num_shoppers else None
        return Rows(seen, item_N, bought_N, session_N, known)


def log_shop(path: Path, env: dict[str, Any]) -> dict[str, Any]:
    """The environment's keywords for an agent that learns from the log in ``path``.

    The latent state is in no log, so observations are those of behaviour.

    Args:
        env: keywords; ``history`` is taken from these, the rest is the log's.

    Raises:
        UsageError: the log does not say which shop it is of, or that shop is no more.
    """
    from experiments.logs.schema import read_about

    about = read_about(path)
    told = about.get("env")
    if not isinstance(told, dict):
        raise UsageError(
            f"{path} does not say which shop it is of (log.json): use a log of experiments.collect"
        )
    told = {name: value for name, value in told.items() if value is not None}
    # the scenario says most of it, and makes a shorter name
    short = {name: value for name, value in told.items() if name not in DYNAMICS_NAMES}
    for keywords in (short, told):
        if results.fingerprint(make_env(keywords, 1).shop) == about.get("fingerprint"):
            seen = {"observation": "behaviour", "history": env["history"]}
            return group_defaults("env", "recsys") | keywords | seen
    raise UsageError(f"the shop of {path} is not that of this version: collect the log again")


def from_log(
    path: Path, env: RecsysVectorEnv, validation: float, test: float, on_bad: str = "error"
) -> Data:
    """The recommendations of a log: the latest sessions test, those before them validate.

    A session that is under way at a cut is in no part, so that nothing that is learned from
    happened after what is judged. What shoppers did by themselves is left out: the shop's
    observations do not show it.

    Args:
        env: the log's shop, with observations of behaviour.
        validation, test: shares of the sessions.
        on_bad: what to do about rows that break the schema, see ``schema.read_log``.

    Raises:
        UsageError: the log cannot be read, or a part would be empty.
    """
    from experiments.logs.schema import read_log

    events = recommendations(read_log(path, on_bad).events)
    if not len(events):
        raise UsageError(f"{path} holds no recommendations in sessions: preprocess it first")
    rows = rows_of(events, env)
    session_N, time_N = (events[name].to_physical().to_numpy() for name in ("session", "timestamp"))
    part_N = _by_time(_counted(session_N)[0], time_N, validation, test)
    for number, name in enumerate(("training", "validation", "test")):
        if not (part_N == number).any():
            raise UsageError(f"{path} has too few sessions: its {name} part would be empty")
    true_N = _truth(path, session_N, events["step"].to_numpy())
    whole = Part(rows, true_N)
    learn_n, test_n = np.flatnonzero(part_N <= 1), np.flatnonzero(part_N == 2)
    learn_n = learn_n[part_N[learn_n] >= 0]
    return Data(_take(whole, learn_n), _take(whole, test_n), np.flatnonzero(part_N[learn_n] == 1))


def recommendations(events: pl.DataFrame) -> pl.DataFrame:
    """Those of a log's events that are answers to recommendations, by session and step."""
    import polars as pl

    from experiments.logs.schema import ORGANIC

    shown = (pl.col("policy") != ORGANIC) & pl.col("session").is_not_null()
    return events.filter(shown).sort("session", "step", "timestamp")


def rows_of(events: pl.DataFrame, env: RecsysVectorEnv) -> Rows:
    """What a scorer learns from these ``recommendations``.

    Args:
        env: the log's shop, with observations of behaviour.
    """
    session_N, shopper_N, item_N, event_N = (
        events[name].to_physical().to_numpy().astype(np.int64)
        for name in ("session", "shopper", "item", "event")
    )
    code_N, step_N = _counted(session_N)
    observer = env.shop.observer
    assert isinstance(observer, Behaviour)
    seen = Windows(observer, code_N, step_N, item_N, event_N)
    known = shopper_N if env.shop.settings.num_shoppers else None
    return Rows(seen, item_N, (event_N == PURCHASE).astype(np.int64), session_N, known)


def _counted(session_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sessions numbered from 0, and the place of each row in its own; rows are sorted."""
    _, first, code_N = np.unique(session_N, return_index=True, return_inverse=True)
    return code_N, np.arange(len(session_N)) - first[code_N]


def _by_time(code_N: np.ndarray, time_N: np.ndarray, validation: float, test: float) -> np.ndarray:
    """Part of each row: 0 training, 1 validation, 2 test; -1 where a cut goes through."""
    sessions = int(code_N.max()) + 1
    begin_S, end_S = np.full(sessions, np.iinfo(np.int64).max), np.zeros(sessions, np.int64)
    np.minimum.at(begin_S, code_N, time_N)
    np.maximum.at(end_S, code_N, time_N)
    cut = [
        np.sort(begin_S)[min(round(share * sessions), sessions - 1)]
        for share in (1.0 - validation - test, 1.0 - test)
    ]
    part_S = (begin_S >= cut[0]).astype(np.int64) + (begin_S >= cut[1])
    ended_S = (end_S >= cut[0]).astype(np.int64) + (end_S >= cut[1])
    part_N: np.ndarray = np.where(part_S == ended_S, part_S, -1)[code_N]
    return part_N


def _truth(path: Path, session_N: np.ndarray, step_N: np.ndarray) -> np.ndarray | None:
    """The true purchase probability of every row, where the log's truth.npz knows it."""
    from experiments.logs.schema import TRUTH_FILE

    file = path / TRUTH_FILE
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as truth:
            session, step = truth["session"].astype(np.int64), truth["step"].astype(np.int64)
            probability = truth["purchase_probability"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise UsageError(f"{file} is damaged: {error}") from None
    width = int(max(step.max(initial=0), step_N.max())) + 1
    key, wanted_N = session * width + step, session_N * width + step_N
    order = np.argsort(key)
    place_N = np.searchsorted(key[order], wanted_N).clip(max=len(key) - 1)
    if not len(key) or (key[order][place_N] != wanted_N).any():
        raise UsageError(f"{file} does not know every recommendation of the log: collect it again")
    true_N: np.ndarray = probability[order][place_N]
    return true_N


def _take(part: Part, row_n: np.ndarray) -> Part:
    """Some of the rows."""
    rows = part.rows
    known = None if rows.shopper_id_N is None else rows.shopper_id_N[row_n]
    seen = rows.observation
    taken = replace(
        rows,
        observation=seen.take(row_n) if isinstance(seen, Windows) else seen[row_n],
        item_N=rows.item_N[row_n],
        bought_N=rows.bought_N[row_n],
        session_N=rows.session_N[row_n],
        shopper_id_N=known,
    )
    return Part(taken, None if part.true_N is None else part.true_N[row_n])
