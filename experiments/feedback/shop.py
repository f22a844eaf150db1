"""A shop that stays open over the rounds, and in which every recommendation is written down."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np

from agents.checkpoint import Resumable
from experiments.logs.collect import BEGIN, PAUSE, SECOND, Before, Book, Browse
from recenv.errors import UsageError
from recenv.organic import Habits
from recenv.seeding import Role, generator
from recenv.vector_env import RecsysVectorEnv

# Of the items (N,) that are about to be shown: with which probability each was chosen.
Propensity = Callable[[np.ndarray], np.ndarray]


class Journal(Resumable):
    """Numbers sessions, keeps the time, and writes down what happens in every slot of a shop.

    Args:
        env: the shop.
        seed: of the times, and of what shoppers do by themselves.
        habits: how often they do; None: never.
    """

    progress = (
        "_session_N",
        "_step_N",
        "_time_N",
        "_sessions",
        "_shoppers",
        "_newcomer",
        "steps",
        "_pauses",
        "_browsing",
    )

    def __init__(self, env: WatchedShop, seed: int, habits: Habits | None):
        n = env.num_envs
        self._env = env
        self._pauses, self._browsing = generator(Role.LOG, seed), generator(Role.ORGANIC, seed)
        self._browse = Browse(env.shop, habits, self._browsing)
        self._session_N, self._step_N = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self._time_N = np.full(n, int(BEGIN.timestamp()) * SECOND)
        self._sessions = 0  # begun so far
        self._shoppers = 0  # strangers met before the shop was filled anew
        self._newcomer = 0  # the number that the next stranger will have at least
        self.steps = 0  # recommendations since the shop was filled
        self.book: Book | None = None  # where it is written
        self.propensity: Propensity = lambda item_N: np.full(len(item_N), np.nan)

    def fill(self) -> None:
        """Somebody new stands in every slot; nobody who was there comes back."""
        self._begin(np.arange(self._env.num_envs))
        self._shoppers, self.steps = self._newcomer, 0

    def _begin(self, slot: np.ndarray) -> None:
        self._session_N[slot] = self._sessions + np.arange(len(slot))
        self._step_N[slot] = 0
        self._sessions += len(slot)

    def watch(self, item_N: np.ndarray) -> Callable[[Any], None]:
        """These items are about to be shown; what is to be told the answer."""
        env = self._env
        everyone = np.arange(env.num_envs)
        before = Before.of(env, everyone, env.observe())
        if env.shop.clientele is None:
            before = before._replace(shopper_n=before.shopper_n + self._shoppers)
        propensity_N = self.propensity(item_N)
        since_N = self._time_N.copy()
        self._time_N += self._pauses.integers(*PAUSE, size=len(everyone))
        browsed = self._browse(before, since_N, self._time_N)

        def note(answer: Any) -> None:
            place = self._session_N.copy(), self._step_N.copy(), self._time_N.copy()
            step = before.answered(answer, *place, item_N, propensity_N, browsed)
            assert self.book is not None
            self.book.add(step)
            self.steps += len(item_N)
            self._step_N += 1
            self._newcomer = max(self._newcomer, int(before.shopper_n.max()) + 1)
            self._begin(np.flatnonzero(step.over_n))

        return note


class WatchedShop(RecsysVectorEnv):
    """The same shop, with a journal of what is shown in it while there is a book."""

    journal: Journal | None = None

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        greeting = super().reset(seed=seed, options=options)
        if self.journal is not None:
            self.journal.fill()
        return greeting

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        if self.journal is None or self.journal.book is None:
            return super().step(actions)
        note = self.journal.watch(np.asarray(actions, dtype=np.int64))
        answer = super().step(actions)
        note(answer)
        return answer


def check_time(steps: int, num_envs: int) -> None:
    """Refuse more recommendations than so many shoppers can have had since the log begins."""
    now = datetime.now(UTC)
    if steps / num_envs * PAUSE[1] > (now - BEGIN).total_seconds() * SECOND:
        raise UsageError(
            f"{steps:,} recommendations to {num_envs} shoppers at a time take longer than since "
            f"{BEGIN:%Y}: set a larger agent.num_envs, or fewer rounds or steps_per_round"
        )
