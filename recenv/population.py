"""Who walks in: latent interests, base rates, price sensitivities, and their luck."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import numpy as xp

from recenv.catalogue import FloatArray, IntArray
from recenv.dynamics import Array, State, Traits
from recenv.errors import UsageError
from recenv.seeding import Role, generator

# Traits are drawn from normals cut off here, so that observations have finite bounds.
TRAIT_LIMIT = 3.0
DRIFT_BITS = 10
DRIFT_ROWS = 2**DRIFT_BITS  # of the frozen table of normal vectors: small enough for a cache
THRESHOLD_BITS = 32 - DRIFT_BITS
GUIDE = 1024  # a power of two, so that times and by it are exact


@dataclass(frozen=True, eq=False)
class Population:
    """A distribution of shoppers: a mixture over interests, and traits around a mean.

    Attributes:
        weight_C: probability of each mixture component.
        centre_CD: its mean interest, before normalisation.
        spread_CD: its standard deviation per dimension.
        price_sensitivity: utility lost per standard deviation of log price, on average.
        price_spread: relative standard deviation of it between shoppers.
        base_rate_spread: standard deviation of the shoppers' base rates.
        tolerance: median number of refusals in a row that a shopper bears.
        tolerance_spread: standard deviation of its logarithm.
        known_interest_MD, known_base_rate_M: real shoppers, where the world has them;
            a finite clientele is taken from these before any is drawn.
    """

    weight_C: FloatArray
    centre_CD: FloatArray
    spread_CD: FloatArray
    price_sensitivity: float = 0.5
    price_spread: float = 0.3
    base_rate_spread: float = 0.3
    tolerance: float = 6.0
    tolerance_spread: float = 0.3
    known_interest_MD: FloatArray | None = None
    known_base_rate_M: FloatArray | None = None

    def __post_init__(self) -> None:
        shapes = {self.centre_CD.shape, self.spread_CD.shape}
        if len(shapes) != 1 or len(self.weight_C) != len(self.centre_CD):
            raise UsageError("a population's weight_C, centre_CD and spread_CD must agree in shape")
        if not (self.weight_C.min() >= 0 and abs(float(self.weight_C.sum()) - 1) <= 1e-3):
            raise UsageError("a population's weight_C must be probabilities that sum to one")
        for name, value in vars(self).items():
            if value is not None and not np.isfinite(value).all():
                raise UsageError(f"the population's {name} holds values that are not finite")
            if value is not None and not np.ndim(value):
                # numpy's own scalars would widen every float32 array that they touch
                object.__setattr__(self, name, float(value))
        if self.tolerance <= 0:
            raise UsageError(f"a population's tolerance must be positive, got {self.tolerance}")
        real = (self.known_interest_MD, self.known_base_rate_M)
        if real[0] is not None and (
            real[1] is None or real[0].shape != (len(real[1]), self.interest_dim)
        ):
            raise UsageError("known_interest_MD and known_base_rate_M must agree in shape")

    @property
    def interest_dim(self) -> int:
        return int(self.centre_CD.shape[1])

    @cached_property
    def _guide(self) -> tuple[IntArray, FloatArray, int]:
        """A guide table (Chen and Asau, 1974) to the components' shares of [0, 1).

        At which component to begin to look, by GUIDE parts of [0, 1); the upper ends of the
        shares; and how far to look on at most.
        """
        cumulative = np.cumsum(self.weight_C, dtype=np.float64)
        ends = cumulative[:-1] / cumulative[-1]
        first = np.searchsorted(ends, np.arange(GUIDE + 1) / GUIDE)
        return first[:-1], np.append(ends, np.inf), int(np.diff(first).max())

    def components(self, uniform: FloatArray) -> IntArray:
        """The components (n,) in whose shares uniforms (n,) of [0, 1) lie."""
        first, end, steps = self._guide
        component: IntArray = first.take((uniform * GUIDE).astype(np.intp))
        for _ in range(steps):
            component += end.take(component) < uniform
        return component

    def draw(self, rng: np.random.Generator, count: int) -> People:
        """``count`` new shoppers."""
        component = self.components(rng.random(count))
        interest = normals(rng, (count, self.interest_dim))
        interest *= self.spread_CD.take(component, axis=0)
        interest += self.centre_CD.take(component, axis=0)
        trait = np.clip(normals(rng, (3, count)), -TRAIT_LIMIT, TRAIT_LIMIT)
        return People(normalise(interest), *trait)

    def clientele(self, count: int, world_seed: int) -> People:
        """``count`` regular shoppers: the world's real ones first, then drawn ones."""
        rng = generator(Role.CLIENTELE, world_seed)
        people = self.draw(rng, count)
        if self.known_interest_MD is None or self.known_base_rate_M is None:
            return people
        known = rng.permutation(len(self.known_interest_MD))[:count]
        base_rate = self.known_base_rate_M[known] / max(self.base_rate_spread, 1e-6)
        people.interest[: len(known)] = self.known_interest_MD[known]
        people.base_rate[: len(known)] = np.clip(base_rate, -TRAIT_LIMIT, TRAIT_LIMIT)
        return people

    def traits(self, people: People) -> Traits:
        """The shoppers' traits in units of utility and steps."""
        return Traits(
            base_rate=self.base_rate_spread * people.base_rate,
            price_sensitivity=self.price_sensitivity
            * (1.0 + self.price_spread * people.price_sensitivity),
            tolerance=self.tolerance * np.exp(self.tolerance_spread * people.tolerance),
        )

    @property
    def least_tolerance(self) -> float:
        return float(self.tolerance * np.exp(-TRAIT_LIMIT * self.tolerance_spread))


class People(NamedTuple):
    """Shoppers as they were born: interests, and traits as standard normals."""

    interest: FloatArray  # (n, D)
    base_rate: FloatArray  # (n,)
    price_sensitivity: FloatArray  # (n,)
    tolerance: FloatArray  # (n,)


class Sessions(NamedTuple):
    """``n`` sessions before their first recommendation, with their whole luck."""

    shopper_id: Array  # (n,)
    state: State
    traits: Traits
    threshold: Array  # (n, T) logits of uniforms
    drift_row: Array  # (n, T) rows of the drift table
    first_observation: Array  # (n, S) what is seen of them as they walk in
    candidate: Array | None = None  # (n, T) the items that arrive at a gate, where there is one

    def rows(self, index: int | slice | IntArray) -> Sessions:
        """Some of the sessions."""
        return Sessions(
            self.shopper_id[index],
            State(*(leaf[index] for leaf in self.state)),
            Traits(*(leaf[index] for leaf in self.traits)),
            self.threshold[index],
            self.drift_row[index],
            self.first_observation[index],
            None if self.candidate is None else self.candidate[index],
        )

    def arrays(self) -> dict[str, Any]:
        """The arrays by name; ``Arrivals.session`` makes sessions of them again."""
        named = self._asdict() | {"state": self.state._asdict(), "traits": self.traits._asdict()}
        del named["first_observation"]  # it follows from the others
        if self.candidate is None:
            del named["candidate"]
        return named


def decode_luck(word: Array, xp: Any = xp) -> tuple[Array, Array]:
    """Split words of 32 bits into choice thresholds (logits) and rows of the drift table."""
    # a mask, as the words may be signed (torch shifts no others)
    uniform = xp.astype((word >> DRIFT_BITS) & (2**THRESHOLD_BITS - 1), xp.float32)
    uniform += 0.5
    uniform *= 2.0**-THRESHOLD_BITS
    uniform /= 1.0 - uniform
    return xp.log(uniform), word & (DRIFT_ROWS - 1)


def drift_table(interest_dim: int) -> FloatArray:
    """The frozen (DRIFT_ROWS, D) table of normal vectors, of unit norm on average."""
    rng = generator(Role.DRIFT_TABLE, interest_dim)
    table: FloatArray = rng.standard_normal((DRIFT_ROWS, interest_dim))
    table -= table.mean(axis=0)  # a table with a mean would be a wind, not a drift
    table /= np.sqrt(interest_dim)
    return table.astype(np.float32)


class Arrivals:
    """The queue at the door: sessions drawn in blocks from one generator.

    What is drawn depends on the generator alone, never on what is recommended, so that
    two agents evaluated with one seed meet the same shoppers with the same luck.

    Args:
        block: how many are drawn at once.
        clientele: the regulars, where nobody else comes.
        observe: what is seen of newcomers (n, S), by their state, traits and candidates;
            looked at by the block, as looking costs much the same for one and for a thousand.
        propose: draws the candidates (n, T) of newcomers, from the generator and their state.
        decoded: false leaves luck in its words: ``threshold`` holds them as int32, and
            ``drift_row`` nothing. Who looks at few of them decodes what it looks at.
    """

    def __init__(
        self,
        population: Population,
        num_categories: int,
        horizon: int,
        block: int,
        clientele: People | None = None,
        observe: Callable[[State, Traits, Array | None], Array] | None = None,
        propose: Callable[[np.random.Generator, State], IntArray] | None = None,
        decoded: bool = True,
    ):
        self.observe = observe or _nothing
        self.decoded = decoded
        self.propose = propose
        self.population = population
        self.num_categories = num_categories
        self.horizon = horizon
        self.block = block
        self.clientele = clientele
        self.clear()

    def clear(self) -> None:
        """Forget who is waiting: a newly seeded generator starts a new queue."""
        self._waiting: Sessions | None = None
        self._next = 0
        self._arrived = 0

    def take(self, rng: np.random.Generator, count: int) -> Sessions:
        """The next ``count`` sessions."""
        parts = []
        while count:
            if self._waiting is None or self._next == self.block:
                self._waiting, self._next = self._draw(rng), 0
            end = min(self._next + count, self.block)
            parts.append(self._waiting.rows(slice(self._next, end)))
            count -= end - self._next
            self._next = end
        return parts[0] if len(parts) == 1 else _concatenate(parts)

    def checkpoint(self) -> dict[str, Any]:
        """Who is waiting, and how many came before."""
        waiting = None if self._waiting is None else self._waiting.arrays()
        return {"waiting": waiting, "next": self._next, "arrived": self._arrived}

    def restore(self, kept: dict[str, Any]) -> None:
        """The queue as it was.

        Raises:
            KeyError, TypeError, ValueError: it is one of another shop.
        """
        waiting = kept["waiting"]
        self._waiting = None if waiting is None else self.session(waiting, self.block)
        self._next, self._arrived = int(kept["next"]), int(kept["arrived"])
        if not 0 <= self._next <= self.block or self._arrived < 0:
            raise ValueError(f"of {self.block} who wait, {self._next} have come in")

    def session(self, kept: dict[str, Any], count: int) -> Sessions:
        """``count`` sessions from their arrays by name; what is seen of them follows.

        Raises:
            KeyError, TypeError, ValueError: they are not of this shop, or not so many.
        """
        state, traits = State(**kept["state"]), Traits(**kept["traits"])
        candidate = kept.get("candidate")
        if (candidate is None) != (self.propose is None):
            raise ValueError("one is of a gate, the other is not")
        seen = self.observe(state, traits, candidate)
        luck = kept["threshold"], kept["drift_row"]
        session = Sessions(kept["shopper_id"], state, traits, *luck, seen, candidate)
        wide = {
            "interest": (state.interest, self.population.interest_dim),
            "categories": (state.satiation, self.num_categories),
            "horizon": (session.threshold, self.horizon),
        }
        if session.candidate is not None:
            wide["candidates"] = session.candidate, self.horizon
        for what, (array, size) in wide.items():
            if array.shape != (count, size):
                raise ValueError(f"its {what} has the shape {array.shape}, not {(count, size)}")
        return session

    def _draw(self, rng: np.random.Generator) -> Sessions:
        n, horizon = self.block, self.horizon
        if self.clientele is None:
            people = self.population.draw(rng, n)
            shopper_id = np.arange(self._arrived, self._arrived + n)
        else:
            shopper_id = rng.integers(len(self.clientele.interest), size=n)
            people = People(*(trait[shopper_id] for trait in self.clientele))
        self._arrived += n
        patience = rng.standard_exponential(n, dtype=np.float32)
        word = _words(rng, n * horizon).reshape(n, horizon)
        state = initial_state(xp, people.interest, patience, self.num_categories, horizon)
        traits = self.population.traits(people)
        # last, so that the shoppers and their other luck are those of a shop without a gate
        candidate = self.propose(rng, state) if self.propose else None
        seen = self.observe(state, traits, candidate)
        if not self.decoded:
            threshold, drift_row = word.view(np.int32), word[:, :0]
        else:
            threshold, drift_row = decode_luck(word)
            drift_row = drift_row.astype(np.int16)
        return Sessions(shopper_id, state, traits, threshold, drift_row, seen, candidate)


def _nothing(state: State, traits: Traits, candidate: Array | None) -> FloatArray:
    return np.zeros((len(state.remaining), 0), dtype=np.float32)


def initial_state(
    xp: Any, interest: Array, patience: Array, num_categories: int, horizon: int
) -> State:
    """Shoppers at the door: nothing bought, nothing refused."""
    none = xp.zeros_like(patience)
    return State(
        interest=interest,
        satiation=xp.zeros(
            (len(patience), num_categories), dtype=patience.dtype, device=patience.device
        ),
        satisfaction=none,
        refusals=xp.zeros_like(none),
        patience=patience,
        remaining=xp.full_like(none, horizon),
    )


def normalise(vector: FloatArray) -> FloatArray:
    """Scale the last axis to unit length."""
    norm = np.sqrt(np.einsum("...d,...d->...", vector, vector))
    unit: FloatArray = vector / np.maximum(norm, 1e-12)[..., None]
    return unit.astype(np.float32, copy=False)


def _words(rng: np.random.Generator, count: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """``count`` words of 32 random bits; drawn two at a time, which takes half as long."""
    pairs = rng.integers(0, 2**64 - 1, size=(count + 1) // 2, dtype=np.uint64, endpoint=True)
    return pairs.view(np.uint32)[:count]


def normals(rng: np.random.Generator, shape: tuple[int, ...]) -> FloatArray:
    """Standard normals from 16 random bits each, four times as fast as numpy's own."""
    count = int(np.prod(shape))
    word = _words(rng, (count + 1) // 2).view(np.uint16)[:count]
    drawn: FloatArray = _quantiles().take(word)
    return drawn.reshape(shape)


@cache
def _quantiles() -> FloatArray:
    """The standard normal at the middles of 65,536 equally likely parts."""
    inverse, parts = NormalDist().inv_cdf, 2**16
    return np.array([inverse((part + 0.5) / parts) for part in range(parts)], dtype=np.float32)


def _concatenate(parts: list[Sessions]) -> Sessions:
    def join(*leaves: Any) -> Any:
        return np.concatenate(leaves)

    return Sessions(
        join(*(p.shopper_id for p in parts)),
        State(*map(join, *(p.state for p in parts))),
        Traits(*map(join, *(p.traits for p in parts))),
        join(*(p.threshold for p in parts)),
        join(*(p.drift_row for p in parts)),
        join(*(p.first_observation for p in parts)),
        None if parts[0].candidate is None else join(*(p.candidate for p in parts)),
    )
