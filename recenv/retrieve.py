"""Candidate retrieval, as shops with many items do it: a retriever proposes, an agent ranks.

Out of I items a retriever proposes k; the agent sees their features and chooses one of them.
The retriever is a part of the shop, sees what agents see, and knows no secret of the simulator.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from recenv import dynamics as physics
from recenv.catalogue import Catalogue, FloatArray, IntArray, principal_axes
from recenv.dynamics import Array, Event, Outcome, State, Tables, Traits
from recenv.env import RecsysEnv
from recenv.errors import MissingExtra, UsageError
from recenv.observation import AtGate, Observer
from recenv.population import Sessions, normalise
from recenv.shop import Settings, Shop, as_number
from recenv.stock import Words, is_out, session_words, uniform
from recenv.vector_env import RecsysVectorEnv

# Items above which a search looks only at the nearest cells of an index (faiss).
EXACT = 10_000
CELLS, PROBES = 2_048, 4  # of the index, and how many of them a search looks at
# What an event says about a taste, by its code; older ones count for less with every step.
TASTE = np.zeros(len(Event), dtype=np.float32)
TASTE[[Event.NOT_INTERESTED, Event.VIEW, Event.CART, Event.PURCHASE]] = (-0.5, 0.2, 0.5, 1.0)
FADES = np.float32(0.9)
CONTENT = "content"


class Index:
    """The best items by inner product: exact, or above ``EXACT`` items by cells (faiss).

    Args:
        item_Id: vectors of the items.

    Raises:
        MissingExtra: there are many items, and faiss is not installed.
    """

    def __init__(self, item_Id: FloatArray):
        self._item_Id = np.ascontiguousarray(item_Id, dtype=np.float32)
        self._cells: Any = None
        if len(item_Id) > EXACT:
            self._cells = self._by_cells()

    def _by_cells(self) -> Any:
        logging.getLogger("faiss").setLevel(logging.WARNING)  # it tells how it was loaded
        try:
            import faiss
        except ImportError:
            what = f"retrieval among more than {EXACT:,} items"
            raise MissingExtra(what, "faiss-cpu", "large") from None
        faiss.omp_set_num_threads(1)
        items, size = self._item_Id.shape
        cells = min(CELLS, items // 40)
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(size), size, cells, faiss.METRIC_INNER_PRODUCT)
        index.train(self._item_Id[:: max(items // (40 * cells), 1)])
        index.add(self._item_Id)
        return index

    def best(self, query_nd: FloatArray, count: int) -> IntArray:
        """The ``count`` best items for each query, best first (n, count); -1 where fewer
        were found."""
        query_nd = np.ascontiguousarray(query_nd, dtype=np.float32)
        if self._cells is not None:
            cells = self._cells.nlist
            self._cells.nprobe = max(PROBES, -(-4 * count * cells // len(self._item_Id)))
            found_nk: IntArray = self._cells.search(query_nd, count)[1]
            return found_nk
        score_nI = query_nd @ self._item_Id.T
        best_nk = np.sort(np.argpartition(-score_nI, count - 1, axis=1)[:, :count], axis=1)
        order_nk = np.argsort(-np.take_along_axis(score_nI, best_nk, 1), axis=1, kind="stable")
        ranked_nk: IntArray = np.take_along_axis(best_nk, order_nk, axis=1)
        return ranked_nk


@dataclass(frozen=True, eq=False)
class Retriever:
    """Who proposes.

    Attributes:
        name: what it is called in settings and run directories.
        item_Id: vectors of all items.
        query: what the shopper of each observation looks for, (n, S) -> (n, d); None: what
            resembles the items that she viewed, put in the cart and bought in this session.
    """

    name: str
    item_Id: FloatArray
    query: Callable[[FloatArray], FloatArray] | None = None

    @cached_property
    def index(self) -> Index:
        return Index(self.item_Id)


@lru_cache(maxsize=4)
def reduced(catalogue: Catalogue, components: int) -> FloatArray:
    """Public features (I, G), G <= ``components``: as they are, or their principal components."""
    features_IF = catalogue.features_IF
    if features_IF.shape[1] <= components:
        return features_IF
    component_IG: FloatArray = features_IF @ principal_axes(features_IF, components)
    return component_IG


@lru_cache(maxsize=2)
def content(catalogue: Catalogue) -> Retriever:
    """Items alike in their public features: no training, no secrets."""
    feature_IG = reduced(catalogue, 16)
    return Retriever(CONTENT, normalise(feature_IG - feature_IG.mean(axis=0)))


@dataclass(frozen=True)
class RetrieveSettings(Settings):
    """The keywords of ``gym.make("RecsysRetrieve-v0", ...)``."""

    candidates: int = 100
    retriever: str = CONTENT
    refresh: int = 10
    components: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.organic:
            raise UsageError("organic_views and organic_searches are for Recsys-v0: leave them out")
        for name, most in (("candidates", 100_000), ("refresh", 1_000_000), ("components", 4096)):
            object.__setattr__(self, name, as_number(name, getattr(self, name), 1, most))


class RetrieveShop(Shop):
    """A shop whose agents choose among k candidates.

    Args:
        keywords: those of ``RetrieveSettings`` and ``Dynamics``; ``retriever`` is "content"
            or a ``Retriever``.
    """

    id: ClassVar[str] = "RecsysRetrieve-v0"
    settings_class: ClassVar[type[Settings]] = RetrieveSettings
    retrieves: ClassVar[bool] = True
    action_words: ClassVar[str] = "the index of a candidate, a whole number"
    settings: RetrieveSettings

    def __init__(self, keywords: dict[str, Any]):
        given = keywords.get("retriever")
        if isinstance(given, Retriever):
            keywords = {**keywords, "retriever": given.name}
        super().__init__(keywords)
        if self.settings.candidates > self.num_items:
            raise UsageError(
                f"candidates={self.settings.candidates} are more than the {self.num_items} items "
                "of this shop: choose fewer"
            )
        self.retriever = given if isinstance(given, Retriever) else self._named()
        if len(self.retriever.item_Id) != self.num_items:
            raise UsageError(
                f"the retriever {self.retriever.name} knows {len(self.retriever.item_Id)} items, "
                f"this shop sells {self.num_items}: take one for this shop"
            )

    def _named(self) -> Retriever:
        if self.settings.retriever != CONTENT:
            raise UsageError(
                f"unknown retriever {self.settings.retriever!r}: choose {CONTENT!r}, the run "
                "directory of a scorer (in experiments), or pass a recenv.retrieve.Retriever"
            )
        return content(self.catalogue)

    @property
    def num_actions(self) -> int:
        return self.settings.candidates

    def misstep(self, action: str) -> UsageError:
        return UsageError(f"{action} is not among the candidates 0..{self.num_actions - 1}")

    @cached_property
    def told_IG(self) -> FloatArray:
        """What is told of a candidate."""
        return reduced(self.catalogue, self.settings.components)

    @cached_property
    def observer(self) -> Observer:
        return WithCandidates(self.view, self.told_IG, self.num_actions)

    @cached_property
    def by_category_I(self) -> IntArray:
        """The items in order of their categories."""
        order_I: IntArray = np.argsort(self.catalogue.category_I, kind="stable")
        return order_I

    def shown(self, xp: Any, action: Array, candidate: Array | None) -> Array:
        assert candidate is not None
        index = xp.asarray(action)[..., None]
        return xp.take_along_axis(candidate, index, axis=-1)[..., 0]

    def utilities(
        self, xp: Any, tables: Tables, state: State, traits: Traits, candidate: Array | None
    ) -> Array:
        """Utility of each candidate, (..., k)."""
        assert candidate is not None
        items = physics.items_at(xp, tables, candidate)
        return physics.utility(
            self.dynamics,
            xp.einsum("...d,...kd->...k", state.interest, items.embedding),
            items,
            xp.take_along_axis(state.satiation, items.category, axis=-1),
            traits.price_sensitivity[..., None],
            traits.base_rate[..., None],
            physics.trust(xp, self.dynamics, state.satisfaction)[..., None],
        )

    def action_masks(self, threshold: Array, candidate: Array | None = None) -> Array:
        assert candidate is not None
        words = session_words(threshold)[..., None]
        mask = ~is_out(words, candidate, self.settings.stock_out, self.num_items)
        mask[..., 0] |= ~mask.any(axis=-1)  # where nothing is there, the first is refused
        return mask


@dataclass(frozen=True, eq=False)
class WithCandidates(AtGate):
    """What is seen of a shopper, and what is told of her candidates, one after the other."""

    count: int

    @property
    def size(self) -> int:
        return self.shopper.size + self.count * int(self.features_IF.shape[1])

    @cached_property
    def space(self) -> spaces.Box:
        one = super().space
        split = self.shopper.size
        low, high = (
            np.concatenate([bound[:split], np.tile(bound[split:], self.count)])
            for bound in (one.low, one.high)
        )
        return spaces.Box(low, high, dtype=np.float32)

    def layout(self) -> dict[str, slice]:
        return self.shopper.layout() | {"candidates": slice(self.shopper.size, self.size)}

    def unflatten(self, observation: Array) -> dict[str, Array]:
        """The parts that the shopper's observer gives, and ``candidates`` (..., k, G)."""
        split = self.shopper.size
        told = observation[..., split:]
        told = told.reshape(*told.shape[:-1], self.count, -1)
        return self.shopper.unflatten(observation[..., :split]) | {"candidates": told}


class Desk:
    """The candidates of N shoppers, and what is known of their tastes.

    As a shopper walks in, k items from all over the shop are proposed, or those that the
    retriever's query asks for. Every ``refresh`` steps they are retrieved anew: with a query
    all of them, else one half by what she has liked in this session, while the other half
    stays, so that there is always something else to try.
    """

    def __init__(self, shop: RetrieveShop, num_envs: int):
        self.shop = shop
        self.count, self.refresh = shop.num_actions, shop.settings.refresh
        self.candidate_NK = np.zeros((num_envs, self.count), dtype=np.int64)
        self.taste_Nd = np.zeros((num_envs, shop.retriever.item_Id.shape[1]), dtype=np.float32)
        # kept, because a gather of k rows from many items costs more than the rest of a step
        self.told_NX = np.zeros((num_envs, self.count * shop.told_IG.shape[1]), dtype=np.float32)

    def greet(self, slot: IntArray, words: Words, seen_nS: FloatArray) -> None:
        """Propose to those who have just come into the slots."""
        self.taste_Nd[slot] = 0.0
        self.candidate_NK[slot] = self._spread(words)
        if self.shop.retriever.query is not None:
            self._ask(slot, seen_nS)
        self._tell(slot)

    def note(self, item_N: IntArray, event_N: Array) -> None:
        """What the shoppers did with the items that they were shown."""
        if self.shop.retriever.query is None:
            self.taste_Nd *= FADES
            said = TASTE[event_N]
            slot = np.flatnonzero(said)
            self.taste_Nd[slot] += said[slot, None] * self.shop.retriever.item_Id[item_N[slot]]

    def renew(self, slot: IntArray, seen_nS: FloatArray) -> None:
        """Retrieve anew for the shoppers in the slots, of whom this is seen."""
        if not len(slot):
            return
        if self.shop.retriever.query is not None:
            self._ask(slot, seen_nS)
        else:
            slot = slot[np.abs(self.taste_Nd[slot]).max(axis=1) > 1e-6]
            if len(slot):
                self._resemble(slot)
        self._tell(slot)

    def due(self, time_N: IntArray, going_N: Array) -> IntArray:
        """The slots whose candidates are to be retrieved anew after so many steps."""
        due: IntArray = np.flatnonzero(going_N & (time_N > 0) & (time_N % self.refresh == 0))
        return due

    def _spread(self, words: Words) -> IntArray:
        """k different items, alike from all categories."""
        part, items = np.arange(self.count), self.shop.num_items
        # the first and the second half each come from everywhere
        part = np.concatenate([part[::2], part[1::2]])
        low, high = part * items // self.count, (part + 1) * items // self.count
        luck_nk = uniform(words[:, None], np.arange(self.count))
        spread: IntArray = self.shop.by_category_I[low + (luck_nk * (high - low)).astype(np.int64)]
        return spread

    def _ask(self, slot: IntArray, seen_nS: FloatArray) -> None:
        """The best items for the retriever's queries."""
        retriever = self.shop.retriever
        assert retriever.query is not None
        found_nk = retriever.index.best(retriever.query(seen_nS), self.count)
        self.candidate_NK[slot] = np.where(found_nk >= 0, found_nk, self.candidate_NK[slot])

    def _resemble(self, slot: IntArray) -> None:
        """Items like those that were liked in place of the first half."""
        half = self.count - self.count // 2
        before_nk = self.candidate_NK[slot]
        found_nk = self.shop.retriever.index.best(self.taste_Nd[slot], self.count)
        stays_nk = before_nk[:, half:]
        known_nk = (found_nk[:, :, None] == stays_nk[:, None, :]).any(axis=2) | (found_nk < 0)
        order_nk = np.argsort(known_nk, axis=1, kind="stable")[:, :half]
        fresh_nk = np.take_along_axis(found_nk, order_nk, axis=1)
        missing_nk = np.take_along_axis(known_nk, order_nk, axis=1)
        fresh_nk = np.where(missing_nk, before_nk[:, :half], fresh_nk)
        self.candidate_NK[slot] = np.concatenate([fresh_nk, stays_nk], axis=1)

    def _tell(self, slot: IntArray) -> None:
        told_nkG = self.shop.told_IG[self.candidate_NK[slot]]
        self.told_NX[slot] = told_nkG.reshape(len(slot), self.told_NX.shape[1])


class RecsysRetrieveVectorEnv(RecsysVectorEnv):
    """``num_envs`` shoppers, to each of whom one of k candidates is recommended.

    The vectorized counterpart of ``RetrieveCandidates``; keywords are those of
    ``RecsysVectorEnv`` and of ``RetrieveCandidates``. ``info["candidates"]`` (N, k) are the
    items that the next actions choose among.
    """

    shop_class: ClassVar[type[Shop]] = RetrieveShop
    shop: RetrieveShop

    def __init__(self, num_envs: int = 1, **keywords: Any):
        super().__init__(num_envs, **keywords)
        self._desk = Desk(self.shop, num_envs)

    @property
    def candidate_NK(self) -> IntArray:
        """The items that actions choose among. Public."""
        self._met()
        return self._desk.candidate_NK

    def reset(
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        observation, info = super().reset(seed=seed, options=options)
        return observation, info | self._candidates()

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        observation, reward_N, terminated_N, truncated_N, info = super().step(actions)
        return observation, reward_N, terminated_N, truncated_N, info | self._candidates()

    def checkpoint(self) -> dict[str, Any]:
        desk = {"candidates": self._desk.candidate_NK.copy(), "taste": self._desk.taste_Nd.copy()}
        return super().checkpoint() | {"desk": desk}

    def _restore(self, kept: dict[str, Any]) -> None:
        super()._restore(kept)
        desk = self._desk
        for now, before in (
            (desk.candidate_NK, kept["desk"]["candidates"]),
            (desk.taste_Nd, kept["desk"]["taste"]),
        ):
            if now.shape != before.shape:
                raise ValueError(f"its candidates are of shape {before.shape}, not {now.shape}")
            now[:] = before
        desk._tell(np.arange(self.num_envs))

    def _candidates(self) -> dict[str, Any]:
        everyone = np.ones(self.num_envs, dtype=np.bool_)
        return {"candidates": self._desk.candidate_NK.copy(), "_candidates": everyone}

    def _fill(self, first_session_steps: Any) -> None:
        super()._fill(first_session_steps)
        session = self._met()
        words = session_words(session.threshold)
        self._desk.greet(np.arange(self.num_envs), words, session.first_observation)

    def _replace(self, index: IntArray) -> Sessions:
        new = super()._replace(index)
        self._desk.greet(index, session_words(new.threshold), new.first_observation)
        return new

    def _first_seen(self, index: IntArray, new: Sessions) -> np.ndarray:
        return np.concatenate([new.first_observation, self._desk.told_NX[index]], axis=1)

    def _inform(
        self,
        session: Sessions,
        action_N: IntArray,
        candidate_N: IntArray | None,
        outcome: Outcome,
    ) -> dict[str, Any]:
        info = super()._inform(session, action_N, candidate_N, outcome)
        self._desk.note(self.shown(action_N), outcome.event)
        return info

    def _observe(self) -> np.ndarray:
        shop, state = self.shop, self._state
        seen_NS = shop.see(np, shop.lenses, state, self._met().traits, self._memory)
        going_N = (state.remaining > 0) & (state.patience >= 0)
        slot = self._desk.due(self._luck_N - self._first_luck_N, going_N)
        self._desk.renew(slot, seen_NS[slot])
        return np.concatenate([seen_NS, self._desk.told_NX], axis=1)

    def _candidate_N(self) -> IntArray | None:
        return self._desk.candidate_NK


class RetrieveCandidates(gym.Wrapper[np.ndarray, np.int64, np.ndarray, np.int64]):
    """Recommend one of k candidates: a retriever proposes, the agent ranks.

    ## Action Space

    `Discrete(k)`: the index of a candidate.

    ## Observation Space

    The observation of `Recsys-v0`, then the public features of each candidate, one after the
    other: G of them, the features' first principal components (G = `components`, or all where
    there are no more). `env.unwrapped` is `Recsys-v0`; `env.shop.observer` splits the whole.

    ## Information

    `candidates` (also from `reset`): the items that the next action chooses among (k,); the
    rest is that of `Recsys-v0`.

    Args:
        env: a `Recsys-v0`.
        candidates: k.
        retriever: "content" (needs no training and knows no secrets): the first candidates
            come from all over the shop; later one half of them resembles, in public features,
            what the shopper viewed, put in the cart and bought in this session. Or a
            `Retriever`: vectors of the items, and a query from the observation; with such a
            one all candidates are those with the largest inner products. Above 10,000 items
            the search is approximate and needs the extra "large" (faiss).
        refresh: candidates are retrieved anew after so many steps of a session.
        components: G.

    Raises:
        UsageError: env is none of ours, or a keyword makes no sense.
    """

    def __init__(
        self,
        env: gym.Env[np.ndarray, np.int64],
        candidates: int = 100,
        retriever: str | Retriever = CONTENT,
        refresh: int = 10,
        components: int = 16,
    ):
        inner = env.unwrapped
        if type(inner) is not RecsysEnv:
            raise UsageError(f"RetrieveCandidates is for Recsys-v0, got {type(inner).__name__}")
        super().__init__(env)
        self._inner = inner
        own = {"candidates": candidates, "refresh": refresh, "components": components}
        self.shop = RetrieveShop(inner.keywords | own | {"retriever": retriever})
        self.action_space = self.shop.action_space
        self.observation_space = self.shop.observation_space
        self._desk = Desk(self.shop, 1)
        self._time = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        seen, info = self.env.reset(seed=seed, options=options)
        self._time = 0
        words = np.atleast_1d(session_words(self._inner.luck_T))
        self._desk.greet(np.zeros(1, dtype=np.int64), words, seen[None])
        return self._tell(seen, info)

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        index = self._inner.checked(action, self.shop)
        item_N = self._desk.candidate_NK[:, index]
        seen, reward, terminated, truncated, info = self.env.step(item_N[0])
        self._time += 1
        self._desk.note(item_N, np.array([info["event"]]))
        going_N = np.array([not terminated])
        slot = self._desk.due(np.array([self._time]), going_N)
        self._desk.renew(slot, seen[None][slot])
        observation, info = self._tell(seen, info)
        return observation, float(reward), terminated, truncated, info

    def action_masks(self) -> np.ndarray:
        """Which candidates are in stock (k,)."""
        candidate_K = self._desk.candidate_NK[0]
        if not self.shop.masks:
            return np.ones(len(candidate_K), dtype=np.bool_)
        mask_K: np.ndarray = self.shop.action_masks(self._inner.luck_T, candidate_K)
        return mask_K

    def _tell(self, seen: np.ndarray, info: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
        info = info | {"candidates": self._desk.candidate_NK[0].copy()}
        if "action_mask" in info:
            info["action_mask"] = self.action_masks().astype(np.int8)
        return np.concatenate([seen, self._desk.told_NX[0]]), info


def make(render_mode: str | None = None, **keywords: Any) -> RetrieveCandidates:
    """``gym.make("RecsysRetrieve-v0")``: a ``Recsys-v0`` behind ``RetrieveCandidates``."""
    names = ("candidates", "retriever", "refresh", "components")
    own = {name: keywords.pop(name) for name in names if name in keywords}
    return RetrieveCandidates(RecsysEnv(render_mode=render_mode, **keywords), **own)
