"""Sessions as interest models learn from them: what was shown, and what she did with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from agents.base import Agent, Callback
from agents.references import true_interest
from recenv.dynamics import Event
from recenv.errors import UsageError
from recenv.shop import as_number
from recenv.vector_env import RecsysVectorEnv

NOTHING = -1  # item and event past the end of a session; the item of a search


@dataclass(frozen=True)
class Histories:
    """S sessions of at most T interactions, oldest first.

    Where the shop shows what shoppers do by themselves, that is among them: SEARCHes of items
    and of words (I + w).

    Attributes:
        items_ST: what was shown, -1 past the end.
        events_ST: codes of ``recenv.dynamics.Event``, -1 past the end.
        shopper_S: who it was.
        interest_STD: her true interest before each interaction, where it is known: for
            figures that only a simulator can give, never to learn from.
    """

    items_ST: np.ndarray
    events_ST: np.ndarray
    shopper_S: np.ndarray
    interest_STD: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.items_ST.ndim != 2 or self.items_ST.shape != self.events_ST.shape:
            raise UsageError(
                "items and events must be of one shape (sessions, steps), got "
                f"{self.items_ST.shape} and {self.events_ST.shape}"
            )

    def __len__(self) -> int:
        return len(self.items_ST)

    @property
    def length_S(self) -> np.ndarray:
        """How many interactions each session has."""
        length_S: np.ndarray = (self.events_ST != NOTHING).sum(axis=1)
        return length_S

    @property
    def replies_ST(self) -> np.ndarray:
        """Which interactions are answers to something that was shown."""
        replies_ST: np.ndarray = (self.items_ST >= 0) & (self.events_ST != Event.SEARCH)
        return replies_ST

    @property
    def interactions(self) -> int:
        return int(self.length_S.sum())

    def take(self, index: np.ndarray) -> Histories:
        """Some of the sessions."""
        truth = None if self.interest_STD is None else self.interest_STD[index]
        return Histories(self.items_ST[index], self.events_ST[index], self.shopper_S[index], truth)

    def split(self, share: float, rng: np.random.Generator) -> tuple[Histories, Histories]:
        """Two parts with no session in common, the second with ``share`` of them."""
        order_S = rng.permutation(len(self))
        held = min(max(round(share * len(self)), 1), len(self) - 1)
        return self.take(order_S[held:]), self.take(order_S[:held])

    def __add__(self, other: Histories) -> Histories:
        """Both, one after the other, padded to the longer."""
        steps = max(self.items_ST.shape[1], other.items_ST.shape[1])
        both = [_padded(part, steps) for part in (self, other)]
        truth = None
        if self.interest_STD is not None and other.interest_STD is not None:
            truths = [part.interest_STD for part in both if part.interest_STD is not None]
            truth = np.concatenate(truths)
        items, events, shopper = (
            np.concatenate([getattr(part, name) for part in both]) for name in NAMES
        )
        return Histories(items, events, shopper, truth)


NAMES = ("items_ST", "events_ST", "shopper_S")


def record(
    agent: Agent,
    env: RecsysVectorEnv,
    steps: int,
    seed: int,
    rng: np.random.Generator,
    explore: float = 0.0,
    *,
    truth: bool = False,
    callback: Callback | None = None,
) -> Histories:
    """Let an agent serve shoppers for ``steps`` environment steps, and keep their sessions.

    Args:
        agent: who recommends.
        env: where; its slots are filled again as sessions end.
        steps: how many recommendations, all slots together.
        seed: of the shoppers.
        rng: of the exploration.
        explore: share of the recommendations that is drawn at random instead.
        truth: keep the true interests too.
        callback: called with the steps so far; recording ends when it returns False.
    """
    as_number("explore", explore, 0.0, 1.0)
    with agent.acting_in(env):
        batches = list(_serve(agent, env, steps, seed, rng, explore, truth, callback))
    return _sessions(batches, env.shop.horizon)


@dataclass(frozen=True)
class _Batch:
    """One recommendation to each slot."""

    item_N: np.ndarray
    event_N: np.ndarray
    shopper_N: np.ndarray
    over_N: np.ndarray
    interest_ND: np.ndarray | None
    browsed_NB: np.ndarray  # items and words before it, oldest first; -1 for none


def _serve(
    agent: Agent,
    env: RecsysVectorEnv,
    steps: int,
    seed: int,
    rng: np.random.Generator,
    explore: float,
    truth: bool,
    callback: Callback | None,
) -> Iterator[_Batch]:
    if env.shop.settings.autoreset_mode != "SameStep":
        raise UsageError('sessions are recorded where env.autoreset_mode="SameStep"')
    observation, _ = env.reset(seed=seed)
    n, num_items = env.num_envs, env.shop.num_items
    state, start_N = None, np.ones(n, dtype=bool)
    for step in range(-(-steps // n)):
        random_N = rng.integers(num_items, size=n)
        item_N = random_N
        if explore < 1.0:
            item_N, state = agent.predict(observation, state, start_N)
            item_N = np.where(rng.random(n) < explore, random_N, item_N)
        shopper_N = env.shopper_id_N.copy()
        interest_ND = true_interest(env) if truth else None
        browsed_NB = np.full((n, 0), NOTHING)
        if env.browsing is not None:
            browsed_NB = env.browsing.table(n, num_items)
        observation, _, terminated_N, truncated_N, info = env.step(item_N)
        start_N = terminated_N | truncated_N
        event_N = info.get("final_info", info)["event"].astype(np.int64)
        item_N = item_N.astype(np.int64)
        yield _Batch(item_N, event_N, shopper_N, start_N, interest_ND, browsed_NB)
        if callback is not None and not callback((step + 1) * n):
            return


def _sessions(batches: list[_Batch], horizon: int) -> Histories:
    """The recorded steps, cut where sessions ended."""
    if not batches:
        raise UsageError("nothing was recorded: ask for at least one step")
    over_LN = np.array([batch.over_N for batch in batches])
    began_LN = np.concatenate([np.ones_like(over_LN[:1]), over_LN[:-1]])
    # sessions are numbered slot by slot
    session_LN = np.cumsum(began_LN.T.reshape(-1)).reshape(began_LN.T.shape).T - 1
    row_LN = np.arange(len(batches))[:, None]
    since_LN = np.maximum.accumulate(np.where(began_LN, row_LN, 0), axis=0)
    place = session_LN, row_LN - since_LN

    def laid(parts: list[np.ndarray], nothing: int | float) -> np.ndarray:
        array_LN = np.array(parts)
        shape = (int(session_LN.max()) + 1, horizon, *array_LN.shape[2:])
        table = np.full(shape, nothing, dtype=array_LN.dtype)
        table[place] = array_LN
        return table

    truths = [batch.interest_ND for batch in batches if batch.interest_ND is not None]
    shown = Histories(
        laid([batch.item_N for batch in batches], NOTHING),
        laid([batch.event_N for batch in batches], NOTHING),
        laid([batch.shopper_N for batch in batches], NOTHING)[:, 0],
        laid(truths, 0.0) if truths else None,
    )
    most = max(batch.browsed_NB.shape[1] for batch in batches)
    if not most:
        return shown
    room = [((0, 0), (0, most - batch.browsed_NB.shape[1])) for batch in batches]
    browsed = [
        np.pad(batch.browsed_NB, wide, constant_values=NOTHING)
        for batch, wide in zip(batches, room, strict=True)
    ]
    return _with_browsing(shown, laid(browsed, NOTHING))


def _with_browsing(shown: Histories, browsed_STB: np.ndarray) -> Histories:
    """Sessions with what was done before each recommendation in its place."""
    s, t, most = browsed_STB.shape
    items_STC = np.concatenate([browsed_STB, shown.items_ST[..., None]], axis=2)
    events_STC = np.where(items_STC == NOTHING, NOTHING, int(Event.SEARCH))
    events_STC[..., -1] = shown.events_ST
    items, events = (part.reshape(s, t * (most + 1)) for part in (items_STC, events_STC))
    order = np.argsort(events == NOTHING, axis=1, kind="stable")
    order = order[:, : int((events != NOTHING).sum(axis=1).max())]
    items, events = (np.take_along_axis(part, order, axis=1) for part in (items, events))
    truth = shown.interest_STD
    if truth is not None:
        step_ST = order // (most + 1)
        truth = np.take_along_axis(truth, step_ST[..., None], axis=1)
    return Histories(items, events, shown.shopper_S, truth)


def _padded(histories: Histories, steps: int) -> Histories:
    room = ((0, 0), (0, steps - histories.items_ST.shape[1]))
    truth = histories.interest_STD
    return Histories(
        np.pad(histories.items_ST, room, constant_values=NOTHING),
        np.pad(histories.events_ST, room, constant_values=NOTHING),
        histories.shopper_S,
        None if truth is None else np.pad(truth, (*room, (0, 0))),
    )
