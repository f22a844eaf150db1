"""From keywords to a shop: what the three environments share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
from array_api_compat import numpy as xp
from gymnasium import spaces

from recenv import dynamics as physics
from recenv import world as worlds
from recenv.catalogue import Catalogue, IntArray
from recenv.dynamics import Array, Dynamics, Items, Outcome, State, Tables, Traits
from recenv.errors import UsageError, unknown
from recenv.observation import Behaviour, Latent, Observer
from recenv.population import Arrivals, People, drift_table
from recenv.scenarios import SCENARIOS
from recenv.stock import is_out, session_words

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
    stock_out: float = 0.0
    observation: str = "latent"
    history: int = 20
    organic_views: float = 0.0
    organic_searches: float = 0.0
    reveal: bool = False
    autoreset_mode: str = "SameStep"

    def __post_init__(self) -> None:
        for name in SETTING_NAMES:
            value = getattr(self, name)
            if value is not None and name in BOUNDS:
                object.__setattr__(self, name, as_number(name, value, *BOUNDS[name]))
        check_choice("observation", self.observation, OBSERVATIONS)
        check_choice("autoreset_mode", self.autoreset_mode, AUTORESET_MODES)
        if self.scenario is not None:
            check_choice("scenario", self.scenario, SCENARIOS)
        if not isinstance(self.world, str):
            raise UsageError(f"world must be a name or a path, got {self.world!r}")
        if not isinstance(self.reveal, bool):
            raise UsageError(f"reveal must be true or false, got {self.reveal!r}")
        if self.organic and self.observation != "behaviour":
            raise UsageError(
                "what shoppers do by themselves shows only in observation=behaviour: set it, or "
                "leave out organic_views and organic_searches"
            )

    @property
    def organic(self) -> bool:
        """Whether agents see what shoppers do by themselves."""
        return self.organic_views > 0 or self.organic_searches > 0


# name -> (lowest, highest); whole numbers where both bounds are.
BOUNDS: dict[str, tuple[float, float]] = {
    "world_seed": (0, 2**31 - 1),
    "num_items": (1, 10_000_000),
    "num_categories": (1, 100_000),
    "interest_dim": (1, 4096),
    "horizon": (1, 1_000_000),
    "num_shoppers": (1, 10_000_000),
    "history": (1, 10_000),
    "organic_views": (0.0, 100.0),
    "organic_searches": (0.0, 100.0),
    "stock_out": (0.0, 0.99),
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
    """The arrays that ``observation="behaviour"`` and a gate read, in one backend."""

    features: Array  # (I + W + 1, F): items, searched words if any, zeros in the last row
    events: Array  # (7, 6) one-hot, zeros in the last row


class Memory(NamedTuple):
    """What a shop remembers of a session (``observation="behaviour"``)."""

    items: Array  # (..., H) newest first, I + w for a searched word w, -1 for none
    events: Array  # (..., H) newest first, -1 for none
    counts: Array  # (..., 6) of each event


class Shop:
    """A world under given dynamics, how agents see it, and what they may do in it.

    Its subclass ``recenv.gate.GateShop`` asks another question about the same shoppers.

    Args:
        keywords: those of ``Settings`` and ``Dynamics``.

    Raises:
        UsageError: a keyword is unknown or out of range, or the world cannot be had.
    """

    id: ClassVar[str] = "Recsys-v0"  # under which it is registered
    settings_class: ClassVar[type[Settings]] = Settings
    retrieves: ClassVar[bool] = False  # whether actions choose among candidates
    gate: ClassVar[bool] = False  # whether the question is yes or no, and not which item
    action_words: ClassVar[str] = "the index of an item, a whole number"

    def __init__(self, keywords: dict[str, Any]):
        names = tuple(f.name for f in fields(self.settings_class))
        for name in keywords:
            if name not in names + DYNAMICS_NAMES:
                raise unknown(f"option of {self.id}", name, names + DYNAMICS_NAMES)
        given = {name: value for name, value in keywords.items() if value is not None}
        chosen = {k: _dynamic(k, v) for k, v in given.items() if k in DYNAMICS_NAMES}
        self.settings = self.settings_class(**{k: v for k, v in given.items() if k in names})
        self.world = _build_world(self.settings, chosen)
        # a number, not a look at the catalogue: traced, that would be an array handed over a step
        self.num_items = self.catalogue.num_items
        self.scenario = self.settings.scenario or self.world.scenario
        scale = {"interest_weight": self.world.interest_weight}
        self.dynamics = _dynamics(scale | SCENARIOS[self.scenario] | chosen)
        self.horizon = self.settings.horizon
        self.difficulty = self.world.difficulty

    @property
    def catalogue(self) -> Catalogue:
        return self.world.catalogue

    @property
    def num_actions(self) -> int:
        return self.num_items

    @property
    def masks(self) -> bool:
        """Whether some items are out of stock at times."""
        return self.settings.stock_out > 0

    def out_of_stock(self, threshold: Array, item: Array) -> Array:
        """Whether items (...) are out in the sessions of this luck (..., T)."""
        words, index = np.atleast_1d(session_words(threshold)), np.atleast_1d(item)
        out = is_out(words, index, self.settings.stock_out, self.num_items)
        return out if np.ndim(item) else out[0]

    def action_masks(self, threshold: Array, candidate: Array | None = None) -> Array:
        """Which actions are open (..., actions) in the sessions of this luck (..., T)."""
        words, items = np.atleast_1d(session_words(threshold)), np.arange(self.num_items)
        out = is_out(words[:, None], items, self.settings.stock_out, self.num_items)
        return ~out if threshold.ndim > 1 else ~out[0]

    def misstep(self, action: str) -> UsageError:
        """The error for a whole number that is no action."""
        return UsageError(f"{action} is not in the catalogue 0..{self.num_items - 1}")

    @cached_property
    def observer(self) -> Observer:
        """What agents see."""
        return self.view

    @cached_property
    def view(self) -> Latent | Behaviour:
        """What agents see of the shopper."""
        if self.settings.observation == "latent":
            return Latent(
                self.world.population,
                self.dynamics,
                self.catalogue.num_categories,
                self.horizon,
            )
        organic = self.settings.organic
        words = self.catalogue.keywords_IW.shape[1] if organic else 0
        features_IF = self.catalogue.features_IF
        return Behaviour(features_IF, self.settings.history, self.horizon, words, organic)

    @cached_property
    def observation_space(self) -> spaces.Box:
        return self.observer.space

    @cached_property
    def action_space(self) -> spaces.Discrete:
        return spaces.Discrete(self.num_actions)

    @cached_property
    def clientele(self) -> People | None:
        """The regular shoppers, where there is a finite number of them."""
        count = self.settings.num_shoppers
        if count is None:
            return None
        return self.world.population.clientele(count, self.settings.world_seed)

    def arrivals(self, num_envs: int, decoded: bool = True) -> Arrivals:
        """A queue of sessions for ``num_envs`` slots; see ``Arrivals`` for ``decoded``.

        Nobody looks at who comes undecoded: they have no first observation.
        """
        return Arrivals(
            self.world.population,
            self.catalogue.num_categories,
            self.horizon,
            block=max(num_envs, 64),
            clientele=self.clientele,
            observe=self.first_observation if decoded else None,
            propose=self.proposals,
            decoded=decoded,
        )

    @property
    def proposals(self) -> Callable[[np.random.Generator, State], IntArray] | None:
        """How the candidates of a gate are drawn; a shop without one has none."""
        return None

    def first_observation(
        self, state: State, traits: Traits, candidate: Array | None = None
    ) -> Array:
        """What agents see of shoppers at the door, (n, S)."""
        if isinstance(self.view, Latent):
            return self.view.observe(xp, state, traits)
        # nobody has done anything yet: all look alike
        one = state._replace(remaining=state.remaining[0])
        same = self.see(xp, self.lenses, one, traits, self.blank_memory(()))
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
        if isinstance(self.view, Latent):
            return None
        return Lenses(self.view.table, self.view.event_table)

    def advance(
        self,
        xp: Any,
        tables: Tables,
        state: State,
        traits: Traits,
        action: Array,
        candidate: Array | None,
        threshold: Array,
        drift_row: Array,
    ) -> Outcome:
        """What the actions (...) lead to; ``candidate`` is what they are about, at a gate."""
        item = self.shown(xp, action, candidate)
        return physics.step(xp, self.dynamics, tables, state, traits, item, threshold, drift_row)

    def shown(self, xp: Any, action: Array, candidate: Array | None) -> Array:
        """The items (...) that actions put before shoppers; -1 for none."""
        return action

    def utilities(
        self, xp: Any, tables: Tables, state: State, traits: Traits, candidate: Array | None
    ) -> Array:
        """Utility of what each action stands for, (..., A)."""
        return physics.utilities(xp, self.dynamics, state, traits, self.items(xp, tables))

    def reveal(
        self,
        xp: Any,
        tables: Tables,
        state: State,
        traits: Traits,
        action: Array,
        candidate: Array | None = None,
        stock: Array | None = None,
    ) -> dict[str, Array]:
        """Purchase probability of ``action`` (...), and its regret against the best action.

        Regret is in expected reward of this step, 2 (p_best - p). It looks at all actions; what
        is not in ``stock`` (..., A) is bought by nobody.
        """
        utility = self.utilities(xp, tables, state, traits, candidate)
        probability = physics.sigmoid(xp, utility)
        if stock is not None:
            probability = xp.where(stock, probability, 0.0)
        index = xp.asarray(action)[..., None]
        chosen = xp.take_along_axis(probability, index, axis=-1)[..., 0]
        best = xp.max(probability, axis=-1)
        return {"purchase_probability": chosen, "regret": 2.0 * (best - chosen)}

    def blank_memory(self, lead: tuple[int, ...]) -> Memory | None:
        """Nothing remembered yet, for leading axes ``lead``; None where it is not needed."""
        if isinstance(self.view, Latent):
            return None
        none = np.full((*lead, self.settings.history), -1, dtype=np.int64)
        counts = np.zeros((*lead, self.view.num_events), dtype=np.float32)
        return Memory(none, none.copy(), counts)

    def remember(
        self, xp: Any, lenses: Lenses | None, memory: Memory | None, item: Array, event: Array
    ) -> Memory | None:
        """The memory after one more interaction."""
        if memory is None or lenses is None:
            return None
        item, event = xp.asarray(item), xp.astype(xp.asarray(event), xp.int64)
        return Memory(
            items=xp.concat([item[..., None], memory.items[..., :-1]], axis=-1),
            events=xp.concat([event[..., None], memory.events[..., :-1]], axis=-1),
            counts=memory.counts + physics.gather(xp, lenses.events, event),
        )

    def observe(
        self,
        xp: Any,
        lenses: Lenses | None,
        state: State,
        traits: Traits,
        memory: Memory | None,
        candidate: Array | None = None,
    ) -> Array:
        """What an agent sees, (..., S), a new array each time."""
        return self.see(xp, lenses, state, traits, memory)

    def see(
        self, xp: Any, lenses: Lenses | None, state: State, traits: Traits, memory: Memory | None
    ) -> Array:
        """What an agent sees of the shopper, a new array each time."""
        view = self.view
        if isinstance(view, Latent):
            return view.observe(xp, state, traits)
        assert memory is not None
        assert lenses is not None
        return view.observe(
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


def session_steps(steps: Any, num_envs: int) -> IntArray:
    """The option ``first_session_steps`` (N,), checked."""
    steps_N = np.asarray(steps)
    if steps_N.shape != (num_envs,) or steps_N.dtype.kind not in "iu" or steps_N.min() < 1:
        raise UsageError(f"first_session_steps must be {num_envs} whole numbers of at least 1")
    return steps_N.astype(np.int64)


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


def check_choice(name: str, value: Any, known: Any) -> None:
    """Refuse a name that is not among ``known``."""
    if not isinstance(value, str) or value not in known:
        raise unknown(name, value, known)


def describe(shop: Shop) -> dict[str, Any]:
    """The shop in JSON-able words: what was asked for, and what it came to."""
    settings = asdict(shop.settings)
    # earlier versions knew neither of these, and meant the same shop
    if not shop.masks:
        del settings["stock_out"]
    if not shop.settings.organic:
        del settings["organic_views"], settings["organic_searches"]
    return {
        "settings": settings,
        "scenario": shop.scenario,
        "dynamics": asdict(shop.dynamics),
        "difficulty": shop.difficulty,
        "world": shop.world.name,
        "num_items": shop.num_items,
        "num_categories": shop.catalogue.num_categories,
        "interest_dim": shop.catalogue.interest_dim,
    }
