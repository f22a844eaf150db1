"""What an agent sees: the latent state of the shopper, or only her behaviour so far."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces

from recenv.catalogue import FloatArray
from recenv.dynamics import Array, Dynamics, Event, State, Traits
from recenv.population import TRAIT_LIMIT, Population

SLACK = 1e-3  # bounds hold in spite of rounding (relative, and at least this)


class Observer(Protocol):
    """Turns a shopper into a flat observation (..., S) within finite bounds."""

    @property
    def size(self) -> int:
        """S."""
        ...

    @property
    def space(self) -> spaces.Box: ...

    def layout(self) -> dict[str, slice]:
        """Where each part lies in the last axis."""
        ...

    def unflatten(self, observation: Array) -> dict[str, Array]:
        """The parts of observations (..., S) by name."""
        ...


@dataclass(frozen=True)
class Latent:
    """The whole state of the shopper, so that the problem is an MDP.

    interest * sqrt(D) (D) | satiation / gain (K) | scaled satisfaction | trust |
    refusals / tolerance | base rate / its spread | price sensitivity / its mean |
    remaining / T.
    """

    population: Population
    dynamics: Dynamics
    num_categories: int
    horizon: int

    @property
    def interest_dim(self) -> int:
        return self.population.interest_dim

    @property
    def size(self) -> int:
        return self.interest_dim + self.num_categories + 6

    @cached_property
    def _scales(self) -> tuple[float, ...]:
        """What makes interest, satiation, base rate, price and remaining of order one."""
        return (
            self.interest_dim**0.5,
            _inverse(self.dynamics.satiation_gain),
            _inverse(self.population.base_rate_spread),
            _inverse(self.population.price_sensitivity),
            1.0 / self.horizon,
        )

    @property
    def space(self) -> spaces.Box:
        d, k = self.interest_dim, self.num_categories
        steps = self.horizon
        bought = _geometric(self.dynamics.satiation_decay, steps)
        satisfaction = self.dynamics.trust_slope * _geometric(self.dynamics.trust_memory, steps)
        refusals = steps / self.population.least_tolerance
        price = 1.0 + TRAIT_LIMIT * self.population.price_spread
        low = [-(d**0.5)] * d + [0.0] * k
        high = [d**0.5] * d + [bought] * k
        # 0: where the mean price sensitivity is 0, so is everybody's
        low += [-satisfaction, -1.0, 0.0, -TRAIT_LIMIT, min(2.0 - price, 0.0), 0.0]
        high += [satisfaction, 1.0, refusals, TRAIT_LIMIT, price, 1.0]
        return _box(np.array(low), np.array(high))

    def observe(self, xp: Any, state: State, traits: Traits) -> Array:
        """(..., S), a new array."""
        interest, satiation, base_rate, price, remaining = self._scales
        satisfaction = self.dynamics.trust_slope * state.satisfaction
        parts = [
            interest * state.interest,
            state.satiation if satiation == 1.0 else satiation * state.satiation,
            satisfaction[..., None],
            xp.tanh(satisfaction)[..., None],
            (state.refusals / traits.tolerance)[..., None],
            (base_rate * traits.base_rate)[..., None],
            (price * traits.price_sensitivity)[..., None],
            (remaining * state.remaining)[..., None],
        ]
        return xp.concat(parts, axis=-1)

    def layout(self) -> dict[str, slice]:
        sizes = {"interest": self.interest_dim, "satiation": self.num_categories}
        sizes |= {"satisfaction": 1, "trust": 1, "refusals": 1}
        return _consecutive(sizes | {"base_rate": 1, "price_sensitivity": 1, "remaining": 1})

    def unflatten(self, observation: Array) -> dict[str, Array]:
        return {name: observation[..., part] for name, part in self.layout().items()}


@dataclass(frozen=True, eq=False)
class Behaviour:
    """Only what the shopper did: a POMDP.

    remaining / T | share of each event so far (6) | the last H interactions, newest
    first, each the item's features (F) and its event one-hot (6); zero where none yet.

    Where it shows what she does by herself (``organic``), each item that she looks at and each
    word that she searches for is an interaction of its own, a SEARCH of these features; the last
    W features are words.
    """

    features_IF: FloatArray
    history: int
    horizon: int
    words: int = 0
    organic: bool = False

    @property
    def num_events(self) -> int:
        return len(Event)

    @property
    def size(self) -> int:
        width = int(self.features_IF.shape[1]) + self.num_events
        return 1 + self.num_events + self.history * width

    @property
    def table(self) -> FloatArray:
        """(I + W + 1, F): features of items and of searched words, and a last row of zeros for
        "nothing yet" (item -1)."""
        return with_nothing(with_words(self.features_IF, self.words))

    @property
    def event_table(self) -> FloatArray:
        """(7, 6): events one-hot, and a last row of zeros for "nothing yet" (event -1)."""
        return with_nothing(np.eye(self.num_events, dtype=np.float32))

    @property
    def space(self) -> spaces.Box:
        head = 1 + self.num_events
        events = np.ones(self.num_events, dtype=np.float32)
        least, most = extremes(self.table)
        low = np.concatenate([least, 0 * events])
        high = np.concatenate([most, events])
        return _box(
            np.concatenate([np.zeros(head), np.tile(low, self.history)]),
            np.concatenate([np.ones(head), np.tile(high, self.history)]),
        )

    def observe(
        self,
        xp: Any,
        remaining: Array,
        counts: Array,
        items: Array,
        events: Array,
        table: Array,
        event_table: Array,
    ) -> Array:
        """(..., S) from counts (..., 6), and items and events (..., H) with -1 for none."""
        lead = tuple(items.shape[:-1])
        told = table[items]
        done = event_table[events]
        past = xp.reshape(xp.concat([told, done], axis=-1), (*lead, -1))
        head = xp.concat([remaining[..., None], counts], axis=-1) * (1.0 / self.horizon)
        if self.organic:  # she may do more by herself than is recommended
            head = xp.clip(head, 0.0, 1.0)
        return xp.concat([head, past], axis=-1)

    def layout(self) -> dict[str, slice]:
        return _consecutive(
            {"remaining": 1, "counts": self.num_events, "interactions": self.size - 7}
        )

    def unflatten(self, observation: Array) -> dict[str, Array]:
        """``remaining``, ``counts``, ``items`` (..., H, F) and ``events`` (..., H, 6)."""
        layout = self.layout()
        past = observation[..., layout["interactions"]]
        past = past.reshape(*past.shape[:-1], self.history, -1)
        return {
            "remaining": observation[..., layout["remaining"]],
            "counts": observation[..., layout["counts"]],
            "items": past[..., : -self.num_events],
            "events": past[..., -self.num_events :],
        }


@dataclass(frozen=True, eq=False)
class AtGate:
    """What is seen of a shopper, and the public features of the candidate that has arrived."""

    shopper: Latent | Behaviour
    features_IF: FloatArray

    @property
    def size(self) -> int:
        return self.shopper.size + int(self.features_IF.shape[1])

    @property
    def space(self) -> spaces.Box:
        least, most = extremes(self.features_IF)
        candidate, shopper = _box(least, most), self.shopper.space
        return spaces.Box(
            np.concatenate([shopper.low, candidate.low]),
            np.concatenate([shopper.high, candidate.high]),
            dtype=np.float32,
        )

    def layout(self) -> dict[str, slice]:
        return self.shopper.layout() | {"candidate": slice(self.shopper.size, self.size)}

    def unflatten(self, observation: Array) -> dict[str, Array]:
        """The parts that the shopper's observer gives, and ``candidate`` (..., F)."""
        split = self.shopper.size
        parts = self.shopper.unflatten(observation[..., :split])
        return parts | {"candidate": observation[..., split:]}


def with_words(features_IF: FloatArray, words: int) -> FloatArray:
    """The table, and a row (I + W, F) for each of W words: an item that had nothing else."""
    features = features_IF.shape[1]
    word_WF = np.eye(words, features, features - words, dtype=features_IF.dtype)
    return np.concatenate([features_IF, word_WF])


def with_nothing(table: FloatArray) -> FloatArray:
    """The table and a last row of zeros, for "nothing"."""
    return np.concatenate([table, np.zeros_like(table[:1])])


def extremes(features_IF: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The least and the most (F,) of each feature, zeros ("nothing") counted in."""
    return np.minimum(features_IF.min(axis=0), 0), np.maximum(features_IF.max(axis=0), 0)


def _inverse(scale: float) -> float:
    """1 / scale, or 1 where there is next to nothing to scale."""
    return 1.0 / scale if abs(scale) > 1e-6 else 1.0


def _box(low: FloatArray, high: FloatArray) -> spaces.Box:
    low, high = (bound.astype(np.float32) for bound in (low, high))
    return spaces.Box(
        low - SLACK * np.maximum(np.abs(low), 1.0),
        high + SLACK * np.maximum(np.abs(high), 1.0),
        dtype=np.float32,
    )


def _geometric(ratio: float, steps: int) -> float:
    """1 + ratio + ... + ratio**(steps - 1), the bound of a decaying sum."""
    if ratio >= 1:
        return float(steps)
    return float((1 - ratio**steps) / (1 - ratio))


def _consecutive(sizes: dict[str, int]) -> dict[str, slice]:
    start, parts = 0, {}
    for name, size in sizes.items():
        parts[name] = slice(start, start + size)
        start += size
    return parts
