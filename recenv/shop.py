"""From keywords to a shop: what the three environments share."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import numpy as xp
from gymnasium import spaces

from recenv import dynamics as physics
from recenv import world as worlds
from recenv.catalogue import Catalogue
from recenv.dynamics import Array, Dynamics, Items, State, Tables, Traits
from recenv.errors import UsageError, unknown
from recenv.observation import Behaviour, Latent
from recenv.population import Arrivals, People, drift_table
from recenv.scenarios import SCENARIOS

OBSERVATIONS = ("latent", "behaviour")
AUTORESET_MODES = ("SameStep", "NextStep", "Disabled")
# Keywords that say how a synthetic world is generated; a loaded world has them built in.
GENERATION = ("num_categories", "interest_dim", "feature_signal", "temptation")


@dataclass(frozen=True)
class Settings:
    """The keywords of ``gym.make("Recsys-v0", ...)``; None means the documented default.

    Those of ``Dynamics`` come on top of these (see there); together they are all
    JSON-able. Precedence: keyword, then scenario, then world.
    """

    world: str = "synthetic"
    world_seed: int = 0
    scenario: str | None = None
    num_items: int | None = None
    num_categories: int | None = None
    interest_dim: int | None = None
    feature_signal: float | None = None
    temptation: float | None = None
    price_sensitivity: float | None = None
    difficulty: float | None = None
    horizon: int = 50
    num_shoppers: int | None = None
    observation: str = "latent"
    history: int = 20
    reveal: bool = False
    autoreset_mode: str = "SameStep"

    def __post_init__(self) -> None:
        for name in SETTING_NAMES:
            value = getattr(self, name)
            if value is not None and name in BOUNDS:
                object.__setattr__(self, name, as_number(name, value, *BOUNDS[name]))
        _check_choice("observation", self.observation, OBSERVATIONS)
        _check_choice("autoreset_mode", self.autoreset_mode, AUTORESET_MODES)
        if self.scenario is not None:
            _check_choice("scenario", self.scenario, SCENARIOS)
        if not isinstance(self.world, str):
            raise UsageError(f"world must be a name or a path, got {self.world!r}")
        if not isinstance(self.reveal, bool):
            raise UsageError(f"reveal must be true or false, got {self.reveal!r}")


# name -> (lowest, highest); whole numbers where both bounds are.
BOUNDS: dict[str, tuple[float, float]] = {
    "world_seed": (0, 2**31 - 1),
    "num_items": (1, 10_000_000),
    "num_categories": (1, 100_000),
    "interest_dim": (1, 4096),
    "horizon": (1, 1_000_000),
    "num_shoppers": (1, 10_000_000),
    "history": (1, 10_000),
    "feature_signal": (0.0, 1.0),
    "temptation": (-1.0, 1.0),
    "price_sensitivity": (-100.0, 100.0),
    "difficulty": (-1e6, 1e6),
    "interest_weight": (0.0, 1e6),
    "trust_weight": (0.0, 1e6),
    "trust_slope": (0.0, 1e6),
    "trust_memory": (0.0, 1.0),
    "satiation_gain": (0.0, 1e6),
    "satiation_decay": (0.0, 1.0),
    "cart_offset": (0.0, 1e6),
    "view_offset": (0.0, 1e6),
    "dismiss_offset": (0.0, 1e6),
    # at 1 an item could cancel an interest, which would then point nowhere
    "interest_pull": (0.0, 0.99),
    "refusal_push": (0.0, 0.99),
    "drift_scale": (0.0, 1e6),
    "churn_base": (-1e6, 1e6),
    "churn_trust": (0.0, 1e6),
}
SETTING_NAMES = tuple(f.name for f in fields(Settings))
DYNAMICS_NAMES = tuple(f.name for f in fields(Dynamics))


class Lenses(NamedTuple):
    """The arrays that ``observation="behaviour"`` reads, in one backend."""

    features: Array  # (I + 1, F), zeros in the last row
    events: Array  # (7, 6) one-hot, zeros in the last row


class Memory(NamedTuple):
    """What a shop remembers of a session (``observation="behaviour"``)."""

    items: Array  # (..., H) newest first, -1 for none
    events: Array  # (..., H) newest first, -1 for none
    counts: Array  # (..., 6) of each event


class Shop:
    """A world under given dynamics, and how agents see it.

    Args:
        keywords: those of ``Settings`` and ``Dynamics``.

    Raises:
        UsageError: a keyword is unknown or out of range, or the world cannot be had.
    """

    def __init__(self, keywords: dict[str, Any]):
        for name in keywords:
            if name not in SETTING_NAMES + DYNAMICS_NAMES:
                raise unknown("option of Recsys-v0", name, SETTING_NAMES + DYNAMICS_NAMES)
        given = {name: value for name, value in keywords.items() if value is not None}
        chosen = {k: _dynamic(k, v) for k, v in given.items() if k in DYNAMICS_NAMES}
        self.settings = Settings(**{k: v for k, v in given.items() if k in SETTING_NAMES})
        self.world = _build_world(self.settings, chosen)
        self.scenario = self.settings.scenario or self.world.scenario
        scale = {"interest_weight": self.world.interest_weight}
        self.dynamics = _dynamics(scale | SCENARIOS[self.scenario] | chosen)
        self.horizon = self.settings.horizon
        self.difficulty = self.world.difficulty

    @property
    def catalogue(self) -> Catalogue:
        return self.world.catalogue

    @property
    def num_items(self) -> int:
        return self.catalogue.num_items

    @cached_property
    def observer(self) -> Latent | Behaviour:
        if self.settings.observation == "latent":
            return Latent(
                self.world.population,
                self.dynamics,
                self.catalogue.num_categories,
                self.horizon,
            )
        return Behaviour(self.catalogue.features_IF, self.settings.history, self.horizon)

    @cached_property
    def observation_space(self) -> spaces.Box:
        return self.observer.space

    @cached_property
    def action_space(self) -> spaces.Discrete:
        return spaces.Discrete(self.num_items)

    @cached_property
    def clientele(self) -> People | None:
        """The regular shoppers, where there is a finite number of them."""
        count = self.settings.num_shoppers
        if count is None:
            return None
        return self.world.population.clientele(count, self.settings.world_seed)

    def arrivals(self, num_envs: int) -> Arrivals:
        """A queue of sessions for ``num_envs`` slots."""
        return Arrivals(
            self.world.population,
            self.catalogue.num_categories,
            self.horizon,
            block=max(num_envs, 64),
            clientele=self.clientele,
            observe=self.first_observation,
        )

    def first_observation(self, state: State, traits: Traits) -> Array:
        """What agents see of shoppers at the door, (n, S)."""
        if self.lenses is None:
            return self.observe(xp, None, state, traits, None)
        # nobody has done anything yet: all look alike
        one = state._replace(remaining=state.remaining[0])
        same = self.observe(xp, self.lenses, one, traits, self.blank_memory(()))
        return np.broadcast_to(same, (len(state.remaining), len(same)))

    def items(self, xp: Any, tables: Tables) -> Items:
        """The whole catalogue as a step sees it, (I, ...)."""
        return physics.unpack(xp, tables.embedding, tables.facts)

    @cached_property
    def tables(self) -> Tables:
        """What a step reads, on numpy."""
        d, k = self.dynamics, self.catalogue.num_categories
        return Tables(
            embedding=np.ascontiguousarray(self.catalogue.embedding_ID, dtype=np.float32),
            facts=self.catalogue.facts(self.difficulty),
            bump=d.satiation_gain * np.eye(k + 1, k, dtype=np.float32),
            drift=np.float32(d.drift_scale) * drift_table(self.catalogue.interest_dim),
            one=np.float32(1.0),
            tick=np.int8(1),
        )

    @cached_property
    def lenses(self) -> Lenses | None:
        """What an observation reads, on numpy."""
        if isinstance(self.observer, Latent):
            return None
        return Lenses(self.observer.table, self.observer.event_table)

    def reveal(
        self, xp: Any, tables: Tables, state: State, traits: Traits, action: Array
    ) -> dict[str, Array]:
        """Purchase probability of ``action`` (...), and its regret against the best item.

        Regret is in expected reward of this step, 2 (p_best - p). It looks at all items.
        """
        utility = physics.utilities(xp, self.dynamics, state, traits, self.items(xp, tables))
        probability = physics.sigmoid(xp, utility)
        index = xp.asarray(action)[..., None]
        chosen = xp.take_along_axis(probability, index, axis=-1)[..., 0]
        best = xp.max(probability, axis=-1)
        return {"purchase_probability": chosen, "regret": 2.0 * (best - chosen)}

    def blank_memory(self, lead: tuple[int, ...]) -> Memory | None:
        """Nothing remembered yet, for leading axes ``lead``; None where it is not needed."""
        if self.lenses is None:
            return None
        none = np.full((*lead, self.settings.history), -1, dtype=np.int64)
        counts = np.zeros((*lead, self.lenses.events.shape[1]), dtype=np.float32)
        return Memory(none, none.copy(), counts)

    def remember(
        self, xp: Any, lenses: Lenses | None, memory: Memory | None, action: Array, event: Array
    ) -> Memory | None:
        """The memory after one more interaction."""
        if memory is None or lenses is None:
            return None
        action, event = xp.asarray(action), xp.astype(xp.asarray(event), xp.int64)
        return Memory(
            items=xp.concat([action[..., None], memory.items[..., :-1]], axis=-1),
            events=xp.concat([event[..., None], memory.events[..., :-1]], axis=-1),
            counts=memory.counts + physics.gather(xp, lenses.events, event),
        )

    def observe(
        self, xp: Any, lenses: Lenses | None, state: State, traits: Traits, memory: Memory | None
    ) -> Array:
        """What an agent sees, (..., S), a new array each time."""
        observer = self.observer
        if isinstance(observer, Latent):
            return observer.observe(xp, state, traits)
        assert memory is not None
        assert lenses is not None
        return observer.observe(
            xp,
            state.remaining,
            memory.counts,
            memory.items,
            memory.events,
            lenses.features,
            lenses.events,
        )


def _build_world(settings: Settings, dynamics: dict[str, Any]) -> worlds.World:
    if settings.world == "synthetic":
        world = _synthetic(settings, dynamics).build()
    else:
        world = _loaded(settings)
    if settings.difficulty is not None:
        world = replace(world, difficulty=settings.difficulty)
    return world


def _synthetic(settings: Settings, dynamics: dict[str, Any]) -> worlds.Synthetic:
    default = worlds.Synthetic()
    num_items = settings.num_items or default.num_items
    given = {
        name: getattr(settings, name)
        for name in (*GENERATION, "price_sensitivity")
        if getattr(settings, name) is not None
    }
    given |= {k: dynamics[k] for k in ("interest_weight",) if k in dynamics}
    given.setdefault("num_categories", min(default.num_categories, num_items))
    if given["num_categories"] > num_items:
        raise UsageError(
            f"num_categories={given['num_categories']} needs at least as many items, "
            f"got num_items={num_items}"
        )
    return worlds.Synthetic(world_seed=settings.world_seed, num_items=num_items, **given)


def _loaded(settings: Settings) -> worlds.World:
    for name in GENERATION:
        if getattr(settings, name) is not None:
            raise UsageError(
                f"{name} belongs to world=synthetic; world={settings.world} has its own"
            )
    world = worlds.load(settings.world)
    available = world.catalogue.num_items
    if settings.num_items is not None:
        if settings.num_items > available:
            raise UsageError(
                f"world {settings.world} has {available} items, num_items={settings.num_items} "
                "asks for more: choose fewer, or build a larger world file"
            )
        world = worlds.keep_most_bought(world, settings.num_items)
    if settings.price_sensitivity is not None:
        population = replace(world.population, price_sensitivity=settings.price_sensitivity)
        world = replace(world, population=population)
    return world


def _dynamics(values: dict[str, Any]) -> Dynamics:
    dynamics = Dynamics(**values)
    if not dynamics.cart_offset <= dynamics.view_offset <= dynamics.dismiss_offset:
        raise UsageError(
            "the funnel must be nested: cart_offset <= view_offset <= dismiss_offset, got "
            f"{dynamics.cart_offset}, {dynamics.view_offset}, {dynamics.dismiss_offset}"
        )
    return dynamics


def _dynamic(name: str, value: Any) -> float | bool:
    """A keyword of ``Dynamics``, checked."""
    if name != "churn":
        number: float = as_number(name, value, *BOUNDS[name])
        return number
    if not isinstance(value, bool):
        raise UsageError(f"churn must be true or false, got {value!r}")
    return value


def as_number(name: str, value: Any, low: float, high: float) -> Any:
    """``value`` as Python's own int (where both bounds are) or float.

    numpy's own scalars would widen every float32 array that they touch.
    """
    whole = isinstance(low, int) and isinstance(high, int)
    kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
        kind = "a whole number" if whole else "a number"
        raise UsageError(f"{name} must be {kind}, got {value!r}")
    if not low <= value <= high:
        bounds = f"{low}..{high}" if whole else f"{low:g}..{high:g}"
        raise UsageError(f"{name} must lie in {bounds}, got {value!r}")
    return int(value) if whole else float(value)


def _check_choice(name: str, value: Any, known: Any) -> None:
    if not isinstance(value, str) or value not in known:
        raise unknown(name, value, known)


def describe(shop: Shop) -> dict[str, Any]:
    """The shop in JSON-able words: what was asked for, and what it came to."""
    return {
        "settings": asdict(shop.settings),
        "scenario": shop.scenario,
        "dynamics": asdict(shop.dynamics),
        "difficulty": shop.difficulty,
        "world": shop.world.name,
        "num_items": shop.num_items,
        "num_categories": shop.catalogue.num_categories,
        "interest_dim": shop.catalogue.interest_dim,
    }
