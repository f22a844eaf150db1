"""Agents that bound what is possible, and the simple rules that learning must beat.

Only the oracles of this module and of ``planning`` read the shopper's true state.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from array_api_compat import numpy as xp

from agents.base import (
    MANY,
    Agent,
    Callback,
    OnlineAgent,
    Prediction,
    SessionMeter,
    as_batch,
    bought,
)
from agents.checkpoint import Resumable
from agents.features import steps_taken
from agents.rollout import play
from recenv.dynamics import Event
from recenv.errors import UsageError
from recenv.gate import RecsysGateVectorEnv
from recenv.retrieve import RecsysRetrieveVectorEnv
from recenv.seeding import Role, derive_seed
from recenv.vector_env import RecsysVectorEnv


def true_interest(env: RecsysVectorEnv) -> np.ndarray:
    """What the shoppers want (N, D): for figures that only a simulator can give, for no agent."""
    return np.array(env.state.interest, dtype=np.float32)


class Random(Agent):
    """A random item: the low reference of the normalised score."""

    name: ClassVar[str] = "random"
    learns: ClassVar[bool] = False
    gate: ClassVar[bool] = True
    ranks: ClassVar[bool] = True

    def score(self, observation: np.ndarray) -> np.ndarray:
        return self.rng.random((len(observation), self.num_actions))

    def predict(
        self,
        observation: np.ndarray,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> Prediction:
        batch, single = as_batch(observation, self.env)
        item_N = self.random_actions(len(batch))
        return (item_N[0] if single else item_N), state

    def _serve_best(self, observation: np.ndarray) -> tuple[np.ndarray, float]:
        return np.zeros(len(observation), dtype=np.int64), 1.0


class Constant(Agent):
    """The same answer at a gate, whoever comes and whatever is at it."""

    learns: ClassVar[bool] = False
    gate: ClassVar[bool] = True
    answer: ClassVar[int]

    def bind(self, vector_env: RecsysVectorEnv) -> None:
        if not vector_env.shop.gate:
            raise UsageError(
                f"agent {self.name} answers yes or no: it is for RecsysGate-v0 (env=gate)"
            )
        super().bind(vector_env)

    def score(self, observation: np.ndarray) -> np.ndarray:
        return np.tile(np.eye(2, dtype=np.float32)[self.answer], (len(observation), 1))


class AlwaysRecommend(Constant):
    """Every candidate is recommended."""

    name: ClassVar[str] = "always_recommend"
    answer: ClassVar[int] = 1


class NeverRecommend(Constant):
    """No candidate is recommended: 0 on the normalised score of a gate."""

    name: ClassVar[str] = "never_recommend"
    answer: ClassVar[int] = 0


class MyopicOracle(Agent):
    """The item with the highest true purchase probability now: greedy, and all-knowing.

    At a gate: yes to whatever is likelier bought than not.
    """

    name: ClassVar[str] = "myopic_oracle"
    learns: ClassVar[bool] = False
    gate: ClassVar[bool] = True
    ranks: ClassVar[bool] = True

    def score(self, observation: np.ndarray) -> np.ndarray:
        env, shop = self.env, self.env.shop
        if len(observation) != env.num_envs:
            raise UsageError(
                f"agent {self.name} reads the true state of the bound shop, so it recommends "
                f"only to the {env.num_envs} shoppers there, got {len(observation)} observations"
            )
        told = shop.tables, env.state, env.traits
        if isinstance(env, RecsysGateVectorEnv):
            return _against_nothing(env.shop.utility(xp, *told, env.candidate_N))
        candidate_NK = env.candidate_NK if isinstance(env, RecsysRetrieveVectorEnv) else None
        utility: np.ndarray = shop.utilities(xp, *told, candidate_NK)
        return utility


def _against_nothing(score_N: np.ndarray) -> np.ndarray:
    """Scores (N, 2) of no, which is worth 0, and of yes."""
    return np.stack([np.zeros_like(score_N), score_N], axis=1)


class EpsilonOracle(MyopicOracle):
    """The myopic oracle, but for a random item with probability ``epsilon``, always.

    Also while it is judged: what exploration costs to those who know everything already.
    """

    name: ClassVar[str] = "epsilon_oracle"
    bounds = Agent.bounds | {"epsilon": (0.0, 1.0)}

    def __init__(self, *, epsilon: float = 0.1, **settings: Any):
        super().__init__(**settings)
        self.check(epsilon=epsilon)
        self.epsilon = epsilon

    def predict(
        self,
        observation: np.ndarray,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> Prediction:
        batch, single = as_batch(observation, self.env)
        best_N, _ = super().predict(batch)
        item_N = self.sometimes_random(best_N, self.epsilon)
        return (item_N[0] if single else item_N), state

    def _serve_best(self, observation: np.ndarray) -> tuple[np.ndarray, float]:
        return super().predict(observation)[0], self.epsilon

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"epsilon": self.epsilon}


class IndexPolicy(MyopicOracle):
    """True utility + w * quality: the best look-ahead that fits in one number.

    ``learn`` tunes w on shoppers that are not judged, in steps of 0.05. It is a strong
    reference, and no upper bound: a policy that plans can pass it.
    """

    name: ClassVar[str] = "index_policy"
    bounds = Agent.bounds | {"weight": (-1e6, 1e6), "tuning_shoppers": (1, MANY)}

    def __init__(
        self, *, weight: float | None = None, tuning_shoppers: int = 1000, **settings: Any
    ):
        super().__init__(**settings)
        self.check(tuning_shoppers=tuning_shoppers)
        if weight is not None:
            self.check(weight=weight)
        self.weight = weight
        self.tuning_shoppers = tuning_shoppers

    def score(self, observation: np.ndarray) -> np.ndarray:
        if self.weight is None:
            raise UsageError("the index policy has no weight yet: call learn(), or pass weight")
        quality = self.catalogue.quality_I
        if isinstance(self.env, RecsysGateVectorEnv):
            quality = _against_nothing(quality[self.env.candidate_N])
        elif isinstance(self.env, RecsysRetrieveVectorEnv):
            quality = quality[self.env.candidate_NK]
        score_NI: np.ndarray = super().score(observation) + self.weight * quality
        return score_NI

    def learn(self, total_timesteps: int, callback: Callback | None = None) -> Agent:
        if self.weight is None:
            self.weight = self._tune()
        return super().learn(total_timesteps, callback)

    def _tune(self) -> float:
        """w to 0.05: coarse steps first, then finer ones around the best."""
        env = self.env.sibling(self.tuning_shoppers)
        seed = derive_seed(Role.TUNING, 0)
        tried: dict[int, float] = {}  # return by w in twentieths

        def best(candidates: Iterable[int]) -> int:
            for twentieths in candidates:
                if twentieths >= 0 and twentieths not in tried:
                    self.weight = twentieths / 20
                    tried[twentieths] = float(play(self, env, seed).return_E.mean())
            return max(tried, key=lambda twentieths: tried[twentieths])

        coarse = best(range(0, 61, 10))
        middle = best(range(coarse - 8, coarse + 9, 2))
        return best(range(middle - 1, middle + 2)) / 20

    def settings(self) -> dict[str, Any]:
        own = {"weight": self.weight, "tuning_shoppers": self.tuning_shoppers}
        return super().settings() | own


class PurchaseRates(Resumable):
    """How often each item was shown and bought in an agent's own log."""

    progress = ("shown_I", "bought_I")

    def __init__(self, num_items: int):
        self.shown_I = np.zeros(num_items)
        self.bought_I = np.zeros(num_items)

    def add(self, item_N: np.ndarray, bought_N: np.ndarray) -> None:
        self.shown_I += np.bincount(item_N, minlength=len(self.shown_I))
        self.bought_I += np.bincount(item_N, weights=bought_N, minlength=len(self.shown_I))

    @property
    def rate_I(self) -> np.ndarray:
        """Purchase rates; one purchase in two trials is added to each item's."""
        return (self.bought_I + 1.0) / (self.shown_I + 2.0)

    def best(self, count: int) -> np.ndarray:
        """The items with the best rates."""
        return np.argsort(-self.rate_I, kind="stable")[:count]


class Cycle(Agent):
    """The same items in the same order for everybody, over and over.

    A subclass learns the cycle; where a shopper stands in it is told by the
    recommendations that remain to her.
    """

    fits = ("num_items",)
    progress = (*Agent.progress, "cycle")

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.cycle = np.zeros(1, dtype=np.int64)

    def score(self, observation: np.ndarray) -> np.ndarray:
        """The next item of the cycle first, then the one after it, then all others."""
        length = len(self.cycle)
        place_NL = (np.arange(length) - steps_taken(self.env.shop, observation)[:, None]) % length
        score_NI = np.full((len(observation), self.num_items), -float(length))
        score_NI[:, self.cycle] = -place_NL
        return score_NI

    def _save(self, directory: Path) -> None:
        np.save(directory / "cycle.npy", self.cycle, allow_pickle=False)

    def _load(self, directory: Path) -> None:
        cycle = np.load(directory / "cycle.npy", allow_pickle=False)
        known = cycle.ndim == 1 and len(cycle) and np.isin(cycle, np.arange(self.num_items)).all()
        if not known or cycle.dtype.kind not in "iu":
            raise UsageError("its cycle is not one of items of this shop: train it again")
        self.cycle = cycle


class Popularity(Cycle, OnlineAgent):
    """The least recently shown of the items with the best purchase rates of its own log.

    Args:
        epsilon: share of recommendations that are random while it learns.
        best: how many of the best sellers it shows.
    """

    name: ClassVar[str] = "popularity"
    bounds = Agent.bounds | {"epsilon": (0.0, 1.0), "best": (1, MANY)}
    progress = (*OnlineAgent.progress, "cycle", "log")

    def __init__(self, *, epsilon: float = 0.2, best: int = 10, **settings: Any):
        super().__init__(**settings)
        self.check(epsilon=epsilon, best=best)
        self.epsilon = epsilon
        self.best = best
        self.log: PurchaseRates | None = None

    def explore(self, observation: np.ndarray) -> np.ndarray:
        item_N, _ = self.predict(observation)
        return self.sometimes_random(item_N, self.epsilon)

    def update(
        self,
        observation: np.ndarray,
        item_N: np.ndarray,
        reward_N: np.ndarray,
        done_N: np.ndarray,
        info: dict[str, Any],
    ) -> None:
        if self.log is None:
            self.log = PurchaseRates(self.num_items)
        self.log.add(item_N, bought(info))
        self.cycle = self.log.best(self.best)

    def _prepare(self, kept: dict[str, Any]) -> None:
        super()._prepare(kept)
        self.log = PurchaseRates(self.num_items) if kept["log"] is not None else None

    def fit(
        self,
        items_ST: np.ndarray,
        events_ST: np.ndarray,
        shopper_S: np.ndarray | None = None,
    ) -> Popularity:
        """Learn from logged sessions (S, T), -1 past their ends; who came makes no difference."""
        told = (items_ST >= 0) & (events_ST >= 0)
        if told.any() and items_ST[told].max() >= self.num_items:
            raise UsageError(f"a logged item is not in the catalogue 0..{self.num_items - 1}")
        self.log = PurchaseRates(self.num_items)
        self.log.add(items_ST[told], (events_ST[told] == Event.PURCHASE).astype(float))
        self.cycle = self.log.best(self.best)
        return self

    def affinity(
        self, items_NH: np.ndarray, events_NH: np.ndarray, shopper_N: np.ndarray | None = None
    ) -> np.ndarray:
        """How often each item is bought when it is shown, the same for all shoppers (N, I)."""
        log = self.log or PurchaseRates(self.num_items)
        return np.tile(log.rate_I, (len(items_NH), 1))

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"epsilon": self.epsilon, "best": self.best}


class Rotation(Cycle):
    """The best fixed cycle of at most ``length`` items.

    Found by the cross-entropy method (Rubinstein & Kroese 2004) over cycles drawn from
    the ``pool`` items with the best purchase rates: every session tries one cycle, and
    the items and lengths of the best sessions become more likely. In the last sessions
    the likeliest cycles of every length compete, and the best one is kept.

    Args:
        length: the most items in a cycle.
        pool: how many items it considers.
        warm_up: share of the learning that only measures purchase rates.
        final: share of the learning in which the likeliest cycles compete.
        elite: share of the sessions that the next round imitates.
    """

    name: ClassVar[str] = "rotation"
    bounds = Agent.bounds | {
        "length": (1, MANY),
        "pool": (1, MANY),
        "warm_up": (0.0, 1.0),
        "final": (0.0, 1.0),
        "elite": (0.0, 1.0),
    }
    progress = (*Cycle.progress, "_pool", "_weight_P", "_weight_L")

    def __init__(
        self,
        *,
        length: int = 20,
        pool: int = 40,
        warm_up: float = 0.2,
        final: float = 0.3,
        elite: float = 0.2,
        **settings: Any,
    ):
        super().__init__(**settings)
        self.check(length=length, pool=pool, warm_up=warm_up, final=final, elite=elite)
        self.length, self.pool = length, pool
        self.warm_up, self.final, self.elite = warm_up, final, elite
        self._trial_NL: np.ndarray | None = None  # the cycles that are being tried
        self._length_N = np.zeros(0, dtype=np.int64)
        # what is considered, and the probabilities of items and lengths
        self._pool = np.zeros(0, dtype=np.int64)
        self._weight_P = self._weight_L = np.zeros(0)

    def predict(
        self,
        observation: np.ndarray,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> Prediction:
        if self._trial_NL is None:
            return super().predict(observation, state, episode_start, deterministic)
        place_N = steps_taken(self.env.shop, observation) % self._length_N
        return self._trial_NL[np.arange(len(observation)), place_N], state

    def learn(self, total_timesteps: int, callback: Callback | None = None) -> Agent:
        env = self.training_env
        per_round = env.num_envs * env.shop.horizon
        rounds = max(total_timesteps // per_round, 3)
        warm = min(max(round(self.warm_up * rounds), 1), rounds - 1)
        last = min(max(round(self.final * rounds), 1), rounds - warm)
        if self._begins():
            self.meter = SessionMeter(env.num_envs, env.shop.horizon)
            self._pool = pool = self._measure(env, warm)
            self.cycle, longest = pool[: self.length], min(self.length, len(pool))
            self._weight_P = np.full(len(pool), 1.0 / len(pool))
            self._weight_L = np.full(longest, 1.0 / longest)
            self.timesteps = warm * per_round
        while self.timesteps < (rounds - last) * per_round:
            self._rest()
            if callback is not None and not callback(self.timesteps):
                return self
            self._imitate(env)
            self.timesteps += per_round
        self._compete(env, self._pool[np.argsort(-self._weight_P)], len(self._weight_L), last)
        return super().learn(rounds * per_round, callback)

    def _measure(self, env: RecsysVectorEnv, rounds: int) -> np.ndarray:
        """The items with the best purchase rates when all are shown at random."""
        log = PurchaseRates(self.num_items)
        env.reset(seed=self.training_seed)
        for _ in range(rounds * env.shop.horizon):
            item_N = self.rng.integers(self.num_items, size=env.num_envs)
            _, reward_N, terminated_N, truncated_N, info = env.step(item_N)
            log.add(item_N, bought(info))
            if self.meter is not None:
                self.meter.add(reward_N, terminated_N | truncated_N)
        return log.best(self.pool)

    def _try(self, env: RecsysVectorEnv, trial_NL: np.ndarray, length_N: np.ndarray) -> np.ndarray:
        """The return (N,) of one session with each cycle."""
        self._trial_NL, self._length_N = trial_NL, length_N
        try:
            return_N = play(self, env, int(self.rng.integers(2**31))).return_E
        finally:
            self._trial_NL = None
        if self.meter is not None:
            self.meter.count(return_N)
        return return_N

    def _imitate(self, env: RecsysVectorEnv) -> None:
        """One round of the cross-entropy method: new weights of items and lengths."""
        pool, weight_P, weight_L = self._pool, self._weight_P, self._weight_L
        n, longest = env.num_envs, len(weight_L)
        length_N = self.rng.choice(longest, size=n, p=weight_L) + 1
        # items drawn without replacement, by their weights (Gumbel top-k)
        key_NP = np.log(weight_P + 1e-12) + self.rng.gumbel(size=(n, len(pool)))
        place_NL = np.argsort(-key_NP, axis=1)[:, :longest]
        return_N = self._try(env, pool[place_NL], length_N)
        best = np.argsort(-return_N)[: max(round(self.elite * n), 1)]
        used = np.arange(longest) < length_N[best, None]
        count_P = np.bincount(place_NL[best][used], minlength=len(pool)) + 0.1
        count_L = np.bincount(length_N[best] - 1, minlength=longest) + 0.1
        self._weight_P = 0.5 * weight_P + 0.5 * count_P / count_P.sum()
        self._weight_L = 0.5 * weight_L + 0.5 * count_L / count_L.sum()
        likely_P = np.argsort(-self._weight_P)
        self.cycle = pool[likely_P[: int(np.argmax(self._weight_L)) + 1]]

    def _compete(self, env: RecsysVectorEnv, ranked: np.ndarray, longest: int, rounds: int) -> None:
        """Keep the best of the cycles of the first 1, 2, ... items."""
        length_N = np.arange(env.num_envs) % longest + 1
        trial_NL = np.tile(ranked[:longest], (env.num_envs, 1))
        total_L, count_L = np.zeros(longest + 1), np.zeros(longest + 1)
        for _ in range(rounds):
            return_N = self._try(env, trial_NL, length_N)
            total_L += np.bincount(length_N, weights=return_N, minlength=longest + 1)
            count_L += np.bincount(length_N, minlength=longest + 1)
        mean_L = np.where(count_L > 0, total_L / np.maximum(count_L, 1), -np.inf)
        self.cycle = ranked[: int(np.argmax(mean_L))]

    def settings(self) -> dict[str, Any]:
        names = ("length", "pool", "warm_up", "final", "elite")
        return super().settings() | {name: getattr(self, name) for name in names}
