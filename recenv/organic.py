"""What shoppers do by themselves between recommendations: they browse and they search.

It has a generator of its own and changes nothing about the shoppers, so that their answers
to recommendations are the same with and without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from array_api_compat import numpy as xp

from recenv import dynamics as physics
from recenv.catalogue import Bools, Catalogue, FloatArray, IntArray
from recenv.dynamics import Event, State, Traits
from recenv.population import normalise
from recenv.seeding import Role, generator
from recenv.shop import Memory, Shop, as_number


@dataclass(frozen=True)
class Habits:
    """How often and how pointedly shoppers browse and search.

    Attributes:
        views: items that a shopper looks at before each recommendation, on average.
        searches: queries that she types before each, on average.
        shelf: how many items she comes across when she looks at one. She picks by the
            multinomial logit, in proportion to exp(utility); where the shop has no more items
            than that she sees all of them, else a random shelf (the cost of a view is that of a
            shelf, however large the shop).
        words: the most words in a query.
        sharpness: words are drawn in proportion to exp(sharpness <interest, word>), without
            repetition.
    """

    views: float = 0.3
    searches: float = 0.05
    shelf: int = 100
    words: int = 3
    sharpness: float = 3.0

    def __post_init__(self) -> None:
        for name, low, high in (
            ("views", 0.0, 100.0),
            ("searches", 0.0, 100.0),
            ("shelf", 1, 1_000_000),
            ("words", 1, 100),
            ("sharpness", 0.0, 1e6),
        ):
            object.__setattr__(self, name, as_number(name, getattr(self, name), low, high))


class Browsing(NamedTuple):
    """What N shoppers did before one recommendation: B views and Q queries.

    Attributes:
        viewer_B: who looked, 0..N-1 in ascending order.
        viewed_B: at which item.
        searcher_Q: who searched, 0..N-1 in ascending order.
        words_QW: for which words, -1 behind the last one.
    """

    viewer_B: IntArray
    viewed_B: IntArray
    searcher_Q: IntArray
    words_QW: IntArray

    def among(self, there_N: Bools) -> Browsing:
        """What some of the N shoppers did."""
        views, searches = there_N[self.viewer_B], there_N[self.searcher_Q]
        return Browsing(
            self.viewer_B[views],
            self.viewed_B[views],
            self.searcher_Q[searches],
            self.words_QW[searches],
        )

    def of(self, slot_n: IntArray, num_envs: int) -> Browsing:
        """What the shoppers in these slots of N did, told by their places among them."""
        there_N, place_N = np.zeros(num_envs, dtype=np.bool_), np.zeros(num_envs, dtype=np.int64)
        there_N[slot_n], place_N[slot_n] = True, np.arange(len(slot_n))
        some = self.among(there_N)
        viewer_B, searcher_Q = place_N[some.viewer_B], place_N[some.searcher_Q]
        return some._replace(viewer_B=viewer_B, searcher_Q=searcher_Q)

    def table(self, num_envs: int, num_items: int) -> IntArray:
        """The interactions (N, B) that it is seen as, oldest first, -1 behind the last.

        An item that she looked at stands for itself, and each word w of a query as I + w; views
        come before searches.
        """
        searched, word = np.nonzero(self.words_QW >= 0)
        slot_E = np.concatenate([self.viewer_B, self.searcher_Q[searched]])
        item_E = np.concatenate([self.viewed_B, num_items + self.words_QW[searched, word]])
        order = np.argsort(slot_E, kind="stable")
        count_N = np.bincount(slot_E, minlength=num_envs)
        first_N = np.cumsum(count_N) - count_N
        table_NB = np.full((num_envs, int(count_N.max(initial=0))), -1)
        place_E = np.arange(len(order)) - np.repeat(first_N, count_N)
        table_NB[slot_E[order], place_E] = item_E[order]
        return table_NB

    def remember(self, memory: Memory, num_items: int) -> None:
        """Put it into the memory of N shoppers (in place), as SEARCHes."""
        n, history = memory.items.shape
        table_NB = self.table(n, num_items)
        count_N = (table_NB >= 0).sum(axis=1)
        slot = np.flatnonzero(count_N)
        # who has done n things by herself did those before n places further back
        back_nH = np.arange(history) - count_N[slot, None]
        item_nH = np.take_along_axis(table_NB[slot], (-1 - back_nH).clip(0), axis=1)
        for past_NH, new_nH in ((memory.items, item_nH), (memory.events, int(Event.SEARCH))):
            old_nH = np.take_along_axis(past_NH[slot], back_nH.clip(0), axis=1)
            past_NH[slot] = np.where(back_nH >= 0, old_nH, new_nH)
        memory.counts[:, Event.SEARCH] += count_N


class Organic:
    """Browsing and searching in one shop.

    Args:
        shop: what is sold there, and how utility comes about.
        habits: how often they do it.
    """

    def __init__(self, shop: Shop, habits: Habits | None = None):
        self.shop = shop
        self.habits = habits or Habits()
        self._word_WD = word_vectors(shop.catalogue)
        # words that no item has lead nowhere
        self._known_W = np.flatnonzero(np.einsum("wd,wd->w", self._word_WD, self._word_WD) > 0)

    def __call__(self, rng: np.random.Generator, state: State, traits: Traits) -> Browsing:
        """What shoppers in these states do before their next recommendation."""
        n = len(state.remaining)
        viewer_B = np.repeat(np.arange(n), rng.poisson(self.habits.views, n))
        searcher_Q = np.repeat(np.arange(n), rng.poisson(self.habits.searches, n))
        viewed_B = self._view(rng, _rows(state, viewer_B), _traits(traits, viewer_B))
        if not len(self._known_W):
            searcher_Q = searcher_Q[:0]
        return Browsing(
            viewer_B, viewed_B, searcher_Q, self._search(rng, state.interest[searcher_Q])
        )

    def _view(self, rng: np.random.Generator, state: State, traits: Traits) -> IntArray:
        """One item each (B,), in proportion to exp(utility) of the items on her shelf."""
        shop, size = self.shop, self.habits.shelf
        if size >= shop.num_items:
            items = shop.items(xp, shop.tables)
            utility_BC = physics.utilities(xp, shop.dynamics, state, traits, items)
            chosen: IntArray = _pick(rng, utility_BC, 1)[:, 0]
            return chosen
        shelf_BC = rng.integers(shop.num_items, size=(len(state.remaining), size))
        items = physics.items_at(xp, shop.tables, shelf_BC)
        utility_BC = physics.utility(
            shop.dynamics,
            np.einsum("bd,bcd->bc", state.interest, items.embedding),
            items,
            np.take_along_axis(state.satiation, items.category, axis=1),
            traits.price_sensitivity[:, None],
            traits.base_rate[:, None],
            physics.trust(xp, shop.dynamics, state.satisfaction)[:, None],
        )
        viewed: IntArray = np.take_along_axis(shelf_BC, _pick(rng, utility_BC, 1), axis=1)[:, 0]
        return viewed

    def _search(self, rng: np.random.Generator, interest_QD: FloatArray) -> IntArray:
        """A query each (Q, W): distinct words, -1 behind the last one."""
        most = min(self.habits.words, len(self._known_W))
        if not len(interest_QD):
            return np.zeros((0, most), dtype=np.int64)
        pull_QW = self.habits.sharpness * interest_QD @ self._word_WD[self._known_W].T
        words_QW = self._known_W[_pick(rng, pull_QW, most)]
        length_Q1 = rng.integers(1, most, size=(len(interest_QD), 1), endpoint=True)
        query_QW: IntArray = np.where(np.arange(most) < length_Q1, words_QW, -1)
        return query_QW


class Window:
    """What agents see, in an environment, of what shoppers do by themselves.

    Args:
        organic: how they do it.

    Attributes:
        browsing: what those in the shop have done since the last recommendation.
    """

    def __init__(self, organic: Organic):
        self._organic = organic
        self.closed = True  # until the first ``open``
        self._rng: np.random.Generator
        self.browsing: Browsing

    @classmethod
    def of(cls, shop: Shop) -> Self | None:
        """That of a shop; None where agents see nothing of it."""
        settings = shop.settings
        if not settings.organic:
            return None
        return cls(Organic(shop, Habits(settings.organic_views, settings.organic_searches)))

    def open(self, seed: int | None) -> None:
        """Begin anew with the seed of an environment (-1: it was given a generator)."""
        self.closed = False
        self._rng = generator(Role.ORGANIC, abs(seed or 0))

    def look(self, state: State, traits: Traits, memory: Memory | None, there_N: Bools) -> None:
        """Put what those who are there do now into their memories, in place.

        All N draw, so that nobody's luck depends on whose session is over.
        """
        assert memory is not None
        everyone = self._organic(self._rng, state, traits)
        self.browsing = everyone.among(there_N)
        self.browsing.remember(memory, self._organic.shop.num_items)

    def checkpoint(self) -> dict[str, Any]:
        """What ``restore`` goes on from."""
        return {"generator": self._rng.bit_generator.state, "browsing": self.browsing._asdict()}

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.open(0)
        self._rng.bit_generator.state = kept["generator"]
        self.browsing = Browsing(**kept["browsing"])


def word_vectors(catalogue: Catalogue) -> FloatArray:
    """Where each word lies in the space of interests, (W, D) unit vectors.

    The mean of the embeddings of the items that it describes, weighted by how often it stands
    in them; zeros where it describes none. A loaded world has no other.
    """
    together_WD: FloatArray = catalogue.keywords_IW.T @ catalogue.embedding_ID
    return normalise(together_WD)


def _pick(rng: np.random.Generator, log_odds: FloatArray, count: int) -> IntArray:
    """``count`` distinct columns of each row (n, m), in proportion to exp(log odds).

    By racing exponential clocks (Gumbel top-k, Kool et al. 2019).
    """
    clock = rng.standard_exponential(log_odds.shape, dtype=np.float32)
    key = log_odds - np.log(np.maximum(clock, np.float32(1e-38)))
    # sorting all to find the first would take ten times as long
    order = np.argmax(key, axis=1)[:, None] if count == 1 else np.argsort(-key, axis=1)
    picked: IntArray = order[:, :count]
    return picked


def _rows(state: State, index: IntArray) -> State:
    return State(*(leaf[index] for leaf in state))


def _traits(traits: Traits, index: IntArray) -> Traits:
    return Traits(*(leaf[index] for leaf in traits))
