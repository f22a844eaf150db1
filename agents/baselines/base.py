"""What the classical recommenders share: the log they learn from, and what they know of her.

They are the baselines that the field expects. All learn from answers alone, and differ in what
they make of a shopper's past answers to guess the next. What they know of her depends on what the
shop shows:

- ``env.observation=behaviour``: the interactions that stand in the observation.
- a clientele (``env.num_shoppers``): who she is, and with it all that she answered while the agent
  learned, in this and in earlier sessions; with behaviour, both.
- ``env.observation=latent``, and nobody that it knows: the answers of the logged shoppers who
  looked most like her, which is the usual way to a newcomer (Gantner et al. 2010, "Learning
  Attribute-to-Feature Mappings for Cold-Start Recommendations", k nearest neighbours).

Where nothing is known, an item is as good as its answers are on average.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from agents.bandits.exploration import Annealed
from agents.base import MANY, Agent, Callback, OnlineAgent, regulars_in, rows_in_memory
from agents.baselines.ratings import ItemLookup, Ratings, session_answers
from agents.checkpoint import Resumable
from agents.features import steps_taken
from agents.files import read_tensors, write_tensors
from recenv.errors import UsageError
from recenv.observation import Behaviour, Latent
from recenv.vector_env import RecsysVectorEnv

Tensor = torch.Tensor
Known = tuple[Tensor, Tensor]  # values and counts of what she answered, (N, I)
# The parts of a latent observation that say who she is, not how this session went.
WHO = ("interest", "base_rate", "price_sensitivity")
SETTINGS = (
    "best",
    "epsilon",
    "final_epsilon",
    "anneal",
    "warm_up",
    "growth",
    "neighbours",
    "pool",
    "log_sessions",
)


class SessionLog(Resumable):
    """The latest sessions: who came, what she was recommended and how she answered.

    Args:
        sessions: how many are remembered, at least twice the slots.
        num_envs: N, the slots; each writes to a row of its own.
        horizon: T.
        width: C, of what is known of a shopper from the start.
    """

    progress = ("items_ST", "events_ST", "shopper_S", "who_SC", "_row_N", "_step_N", "_next")

    def __init__(self, sessions: int, num_envs: int, horizon: int, width: int):
        self.items_ST = np.full((sessions, horizon), -1, dtype=np.int32)
        self.events_ST = np.full((sessions, horizon), -1, dtype=np.int8)
        self.shopper_S = np.full(sessions, -1, dtype=np.int64)
        self.who_SC = np.zeros((sessions, width), dtype=np.float32)
        self._row_N = np.arange(num_envs)
        self._step_N = np.zeros(num_envs, dtype=np.int64)
        self._next = num_envs

    def begin(self, slot: np.ndarray) -> None:
        """New sessions in some slots, over the oldest rows."""
        row = (self._next + np.arange(len(slot))) % len(self.items_ST)
        self._next += len(slot)
        self.items_ST[row] = -1
        self.events_ST[row] = -1
        self.who_SC[row] = 0.0
        self._row_N[slot], self._step_N[slot] = row, 0

    def add(
        self, item_N: np.ndarray, event_N: np.ndarray, shopper_N: np.ndarray, who_NC: np.ndarray
    ) -> None:
        row, step = self._row_N, self._step_N
        self.items_ST[row, step] = item_N
        self.events_ST[row, step] = event_N
        self.shopper_S[row] = shopper_N
        # the mean over her session, for interests that move
        self.who_SC[row] += (who_NC - self.who_SC[row]) / (step[:, None] + 1.0)
        self._step_N += 1

    def newest_first(self) -> np.ndarray:
        """The rows that hold something, the latest session first."""
        count = min(self._next, len(self.items_ST))
        row = (self._next - 1 - np.arange(count)) % len(self.items_ST)
        filled: np.ndarray = row[self.items_ST[row, 0] >= 0]
        return filled


class Recommender(OnlineAgent):
    """A classical recommender: it guesses from what a shopper answered what she would like.

    While it learns, a share of its recommendations is random; it is fitted anew whenever its log
    has grown by a share. It can be fitted to a log of others as well, see ``fit``.

    Args:
        best: she is shown the items that she would like best, so many of them in turn (as
            ``popularity`` does), the least recently shown first.
        epsilon, final_epsilon, anneal: the share of random recommendations falls from the first
            to the second over this share of the steps.
        warm_up: steps of random recommendations before the first fit.
        growth: it is fitted anew when its log has grown by this share.
        neighbours: logged shoppers who speak for one shopper.
        pool: logged shoppers among whom these are sought, those with the most answers.
        log_sessions: how many sessions it remembers.
    """

    fits = ("num_items", "observation")
    bounds = OnlineAgent.bounds | {
        "best": (1, MANY),
        "epsilon": (0.0, 1.0),
        "final_epsilon": (0.0, 1.0),
        "anneal": (0.0, 1.0),
        "warm_up": (1, MANY),
        "growth": (0.01, 1e6),
        "neighbours": (1, MANY),
        "pool": (1, MANY),
        "log_sessions": (1, MANY),
    }
    progress = (*OnlineAgent.progress, "_log", "_fitted")
    own: ClassVar[tuple[str, ...]] = ()  # the settings that a subclass adds

    def __init__(
        self,
        *,
        num_envs: int = 256,
        best: int = 3,
        epsilon: float = 1.0,
        final_epsilon: float = 0.2,
        anneal: float = 0.2,
        warm_up: int = 5000,
        growth: float = 0.5,
        neighbours: int = 50,
        pool: int = 2000,
        log_sessions: int = 20_000,
        **settings: Any,
    ):
        super().__init__(num_envs=num_envs, **settings)
        self.best = best
        self.epsilon, self.final_epsilon, self.anneal = epsilon, final_epsilon, anneal
        self.warm_up, self.growth = warm_up, growth
        self.neighbours, self.pool, self.log_sessions = neighbours, pool, log_sessions
        self.check(**{name: getattr(self, name) for name in SETTINGS})
        self._log: SessionLog | None = None
        self._share = Annealed(epsilon, final_epsilon, 0.0)
        self._fitted, self._total = 0, 0  # steps at the last fit, and at the end
        self._lookup: dict[int, ItemLookup] = {}
        self._ratings: Ratings | None = None  # of shoppers, or of sessions of strangers
        self._mean_I = torch.zeros(0)
        self._who_RC = torch.zeros(0, 0)
        self._pool_P = torch.zeros(0, dtype=torch.int64)

    # --- what a subclass is ---------------------------------------------------------

    @abstractmethod
    def _learn_from(self, ratings: Ratings) -> None:
        """Learn from all rows; means, pool and rows are in place."""

    @abstractmethod
    def _affinity(self, known: Known) -> Tensor:
        """How much she would like each item, given what she answered, (N, I)."""

    def _as_her(self, near_Nk: Tensor, weight_Nk: Tensor) -> Tensor:
        """The same for shoppers of whom only those are known who look like them: places in the
        pool (N, k), and how much each of them counts."""
        value_PI, count_PI = self._of_pool
        bag = torch.nn.functional.embedding_bag
        known = tuple(
            bag(near_Nk, table, per_sample_weights=weight_Nk, mode="sum")
            for table in (value_PI, count_PI)
        )
        return self._affinity((known[0], known[1]))

    # --- learning -------------------------------------------------------------------

    def bind(self, vector_env: RecsysVectorEnv) -> None:
        super().bind(vector_env)
        if self._ratings is None:
            ratings = Ratings.none(self.num_items, self._torch)
            self._take(ratings, torch.zeros(0, self._who_width, device=self._torch))

    @property
    def regulars(self) -> int:
        """How many regulars the shop has that it was made for; 0 where shoppers are strangers."""
        return (self._shop or {}).get("num_shoppers") or 0

    @property
    def ratings(self) -> Ratings:
        """What it remembers of every shopper, or of sessions of strangers."""
        self.env  # noqa: B018 (says what to do where there is none)
        assert self._ratings is not None
        return self._ratings

    def fit(
        self,
        items_ST: np.ndarray,
        events_ST: np.ndarray,
        shopper_S: np.ndarray | None = None,
        who_SC: np.ndarray | None = None,
    ) -> Recommender:
        """Learn from sessions that were logged, and forget what was learned before.

        Args:
            items_ST: (S, T) recommended items, -1 after the end.
            events_ST: (S, T) how she answered, -1 after the end.
            shopper_S: (S,) who she is, in 0..num_shoppers - 1, and -1 for strangers; None where
                all are.
            who_SC: (S, C) the latent observation's parts ``WHO``, where they are known.

        Raises:
            UsageError: the shapes do not fit, or an item or shopper is not of this shop.
        """
        items_ST, events_ST = np.asarray(items_ST), np.asarray(events_ST)
        row_S, rows = self._rows(items_ST, events_ST, shopper_S)
        row_n, item_n, event_n = (
            part.to(self._torch) for part in session_answers(items_ST, events_ST, row_S)
        )
        ratings = Ratings.of(row_n, item_n, event_n, rows, self.num_items)
        who_RC = torch.zeros(rows, self._who_width, device=self._torch)
        if who_SC is not None and self._who_width:
            row = torch.as_tensor(row_S, device=self._torch)
            told = torch.as_tensor(who_SC, dtype=torch.float32, device=self._torch)
            count_R = torch.bincount(row, minlength=rows).clamp(min=1)
            who_RC = who_RC.index_add_(0, row, told) / count_R[:, None]
        self._take(ratings, who_RC)
        self._learn_from(ratings)
        if not self.regulars:  # no other stranger will ever be asked for
            kept = self._pool_P
            self._take(ratings.rows(kept), who_RC[kept], self._mean_I)
        return self

    def _rows(
        self, items_ST: np.ndarray, events_ST: np.ndarray, shopper_S: np.ndarray | None
    ) -> tuple[np.ndarray, int]:
        """The row of ratings of each session, and how many there are."""
        if items_ST.ndim != 2 or items_ST.shape != events_ST.shape:
            raise UsageError(
                f"sessions need items and events (S, T), got {items_ST.shape}, {events_ST.shape}"
            )
        if items_ST.size and items_ST.max() >= self.num_items:
            raise UsageError(f"a logged item is not in the catalogue 0..{self.num_items - 1}")
        if shopper_S is None or not self.regulars:
            return np.arange(len(items_ST)), len(items_ST)
        shopper_S = np.asarray(shopper_S)
        if shopper_S.shape != items_ST.shape[:1] or (shopper_S >= self.regulars).any():
            raise UsageError(
                f"{len(items_ST)} sessions need ids of shoppers in -1..{self.regulars - 1}"
            )
        strange_S = shopper_S < 0
        stranger_S = self.regulars + np.cumsum(strange_S) - 1
        return np.where(strange_S, stranger_S, shopper_S), self.regulars + int(strange_S.sum())

    def _take(self, ratings: Ratings, who_RC: Tensor, mean_I: Tensor | None = None) -> None:
        """Remember rows, and choose those among whom neighbours are sought."""
        self._ratings, self._who_RC = ratings, who_RC
        self._mean_I = ratings.item_means() if mean_I is None else mean_I
        order_R = torch.argsort(-ratings.answers_R, stable=True)
        self._pool_P = order_R[: min(self.pool, int((ratings.answers_R > 0).sum()))]
        self._of_pool = ratings.rows(self._pool_P).dense()
        pool_PC = who_RC[self._pool_P]
        middle_C = pool_PC.mean(0) if len(pool_PC) else pool_PC.sum(0)
        self._scale_C = (pool_PC - middle_C).square().sum(0).div(max(len(pool_PC), 1)).sqrt()
        self._scale_C = torch.where(self._scale_C > 1e-6, self._scale_C, 1.0)

    def learn(self, total_timesteps: int, callback: Callback | None = None) -> Agent:
        self._total = total_timesteps
        self._share = Annealed(self.epsilon, self.final_epsilon, self.anneal * total_timesteps)
        return super().learn(total_timesteps, callback)

    def _begin(self, env: RecsysVectorEnv) -> None:
        super()._begin(env)
        self._log, self._fitted = self._blank_log(), 0

    def _blank_log(self) -> SessionLog:
        env = self.env
        least = 2 * env.num_envs
        most = max(rows_in_memory(5 * env.shop.horizon), least)
        sessions = min(max(self.log_sessions, least), most)
        return SessionLog(sessions, env.num_envs, env.shop.horizon, self._who_width)

    def checkpoint(self) -> dict[str, Any]:
        return super().checkpoint() | {"memory": self._state()}

    def _prepare(self, kept: dict[str, Any]) -> None:
        super()._prepare(kept)
        self._restore(kept.pop("memory"))
        self._log = self._blank_log() if kept["_log"] is not None else None

    def explore(self, observation: np.ndarray) -> np.ndarray:
        if not self._fitted:
            return self.sometimes_random(np.zeros(len(observation), dtype=np.int64), 1.0)
        item_N, _ = self.predict(observation)
        return self.sometimes_random(item_N, self._share(self.timesteps))

    def update(
        self,
        observation: np.ndarray,
        item_N: np.ndarray,
        reward_N: np.ndarray,
        done_N: np.ndarray,
        info: dict[str, Any],
    ) -> None:
        assert self._log is not None
        told = info.get("final_info", info)
        self._log.add(item_N, told["event"], told["shopper_id"], self._who(observation))
        self._log.begin(np.flatnonzero(done_N))
        due = max((1.0 + self.growth) * self._fitted, self.warm_up)
        if self.timesteps >= min(due, self._total):
            self._fitted = self.timesteps
            row = self._log.newest_first()
            log = self._log
            self.fit(log.items_ST[row], log.events_ST[row], log.shopper_S[row], log.who_SC[row])

    # --- recommending ---------------------------------------------------------------

    @torch.no_grad()
    def score(self, observation: np.ndarray) -> np.ndarray:
        """How soon each item's turn comes: its ``best`` items first, from the least recently
        shown on, and the others behind them, (N, S) -> (N, I)."""
        affinity_NI = self._guess(observation)
        best = min(self.best, self.num_items)
        top_Nb = affinity_NI.topk(best, dim=1).indices
        time_N = torch.as_tensor(steps_taken(self.env.shop, observation), device=self._torch)
        turn_Nb = (torch.arange(best, device=self._torch) - time_N[:, None]) % best
        behind_NI = affinity_NI - affinity_NI.amax(1, keepdim=True) - best
        score_NI: np.ndarray = behind_NI.scatter(1, top_Nb, -turn_Nb.float()).cpu().numpy()
        return score_NI

    def affinity(
        self, items_NH: np.ndarray, events_NH: np.ndarray, shopper_N: np.ndarray | None = None
    ) -> np.ndarray:
        """How much shoppers of a log would like each item, (N, I).

        Args:
            items_NH, events_NH: (N, H) what they answered in this session, -1 for nothing.
            shopper_N: (N,) who they are; -1 or None for strangers.
        """
        known = self._remembered(self._checked_ids(shopper_N, len(items_NH)), len(items_NH))
        return self._of_known(self._with(known, items_NH, events_NH)).cpu().numpy()

    def _guess(self, observation: np.ndarray) -> Tensor:
        """How much she would like each item, (N, S) -> (N, I)."""
        shop = self.env.shop
        id_N = regulars_in(self.env, self.regulars, len(observation))
        known = self._remembered(id_N, len(observation))
        if isinstance(shop.observer, Behaviour):
            past = self._items().interactions(shop.observer, observation)
            return self._of_known(self._with(known, *past))
        affinity_NI = self._of_known(known)
        new_N = known[1].sum(1) == 0
        if len(self._pool_P) and bool(new_N.any()):
            who_NC = self._who(observation)[new_N.cpu().numpy()]
            affinity_NI[new_N] = self._as_her(*self._look_alikes(who_NC))
        return affinity_NI

    def _of_known(self, known: Known) -> Tensor:
        """Affinities from what she answered; items' means where that is nothing."""
        nothing_N = known[1].sum(1) == 0
        return torch.where(nothing_N[:, None], self._mean_I, self._affinity(known))

    def _remembered(self, id_N: np.ndarray | None, count: int) -> Known:
        """What shoppers answered while it learned; nothing for those that it does not know."""
        none = torch.zeros(count, self.num_items, device=self._torch)
        if id_N is None or not len(self.ratings):
            return none, none.clone()
        id_t = torch.as_tensor(id_N, device=self._torch)
        value_NI, count_NI = self.ratings.rows(id_t.clamp(min=0)).dense()
        here_N1 = (id_t >= 0)[:, None]
        return torch.where(here_N1, value_NI, none), torch.where(here_N1, count_NI, none)

    def _with(self, known: Known, items_NH: np.ndarray, events_NH: np.ndarray) -> Known:
        """What is known, and what she answered in this session."""
        count = len(items_NH)
        row, item, event = (
            part.to(self._torch) for part in session_answers(items_NH, events_NH, np.arange(count))
        )
        here = Ratings.of(row, item, event, count, self.num_items).dense()
        return known[0] + here[0], known[1] + here[1]

    def _checked_ids(self, shopper_N: np.ndarray | None, count: int) -> np.ndarray | None:
        if shopper_N is None or not self.regulars:
            return None
        shopper_N = np.asarray(shopper_N)
        if len(shopper_N) != count or (count and shopper_N.max() >= self.regulars):
            raise UsageError(f"{count} shoppers need ids in -1..{self.regulars - 1}")
        return shopper_N

    def _items(self) -> ItemLookup:
        """The lookup of the catalogue in use."""
        features_IF = self.catalogue.features_IF
        if id(features_IF) not in self._lookup:
            self._lookup = {id(features_IF): ItemLookup(features_IF)}
        return self._lookup[id(features_IF)]

    # --- who she is -----------------------------------------------------------------

    @property
    def _who_width(self) -> int:
        layout = self.env.shop.observer.layout()
        latent = isinstance(self.env.shop.observer, Latent)
        return sum(layout[part].stop - layout[part].start for part in WHO) if latent else 0

    def _who(self, observation: np.ndarray) -> np.ndarray:
        """What of a latent observation says who she is, (N, S) -> (N, C)."""
        if not isinstance(self.env.shop.observer, Latent):
            return np.zeros((len(observation), 0), dtype=np.float32)
        layout = self.env.shop.observer.layout()
        return np.concatenate([observation[:, layout[part]] for part in WHO], axis=1)

    def _look_alikes(self, who_NC: np.ndarray) -> tuple[Tensor, Tensor]:
        """Places in the pool (N, k) of those nearest to shoppers, and their weights, from 1 for
        the same to a half for the farthest among them."""
        here_NC = torch.as_tensor(who_NC, device=self._torch) / self._scale_C
        distance_NP = torch.cdist(here_NC, self._who_RC[self._pool_P] / self._scale_C)
        k = min(self.neighbours, len(self._pool_P))
        near_Nk, place_Nk = distance_NP.topk(k, dim=1, largest=False)
        return place_Nk, 1 - 0.5 * (near_Nk / near_Nk[:, -1:].clamp(min=1e-6)) ** 2

    # --- files ----------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        names = (*SETTINGS, *self.own)
        return super().settings() | {name: getattr(self, name) for name in names}

    def _state(self) -> dict[str, Tensor]:
        """What it learned; a subclass adds its own."""
        return self.ratings.tensors() | {"mean": self._mean_I, "who": self._who_RC}

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        """What ``_state`` gave."""
        ratings = Ratings.from_tensors(tensors, self.num_items)
        who_RC, mean_I = tensors["who"], tensors["mean"]
        if who_RC.shape != (len(ratings), self._who_width) or mean_I.shape != (self.num_items,):
            raise UsageError("its shoppers are not of this shop: train it again")
        self._take(ratings, who_RC, mean_I)

    def _save(self, directory: Path) -> None:
        write_tensors(directory / "memory.safetensors", self._state())

    def _load(self, directory: Path) -> None:
        self._restore(read_tensors(directory / "memory.safetensors", self._torch))
