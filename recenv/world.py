"""A world: catalogue + population + scale of utility, generated or loaded from a file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import numpy as xp

from recenv.catalogue import ARRAYS, Catalogue, FloatArray, IntArray
from recenv.dynamics import Dynamics, Items, sigmoid, utilities
from recenv.errors import UsageError, unknown
from recenv.population import Population, initial_state, normalise
from recenv.scenarios import SCENARIOS
from recenv.seeding import Role, generator

FORMAT = 1
NPZ = b"PK\x03\x04"  # how an npz file begins
# Shops built from real logs: name -> module with a ``load() -> World``.
REAL_WORLDS = {"complete_journey": "recenv.worlds.complete_journey"}
# A random item converts at this rate in a generated shop.
RANDOM_CONVERSION = 0.18
EMBEDDING_SPREAD = 0.5  # of an item around its category's centre
APPEAL_SCALE = 0.65


@dataclass(frozen=True, eq=False)
class World:
    """A shop and its public.

    Attributes:
        name: how run directories and figures call it.
        catalogue, population: what is sold, and to whom.
        interest_weight: utility of a perfect match of interest and item.
        difficulty: utility taken off every item; it sets the level of conversion.
        scenario: the preset that suits this world when none is asked for.
        provenance: where it comes from and what was measured, JSON-able.
    """

    name: str
    catalogue: Catalogue
    population: Population
    interest_weight: float
    difficulty: float
    scenario: str = "full"
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scenario not in SCENARIOS:
            raise unknown("scenario", self.scenario, SCENARIOS)
        dims = self.catalogue.interest_dim, self.population.interest_dim
        if dims[0] != dims[1]:
            raise UsageError(
                f"items and shoppers must share interest_dim, got {dims[0]}, {dims[1]}"
            )
        if not (math.isfinite(self.interest_weight) and math.isfinite(self.difficulty)):
            raise UsageError("interest_weight and difficulty must be finite")
        # numpy's own scalars would widen every float32 array that they touch
        for name in ("interest_weight", "difficulty"):
            object.__setattr__(self, name, float(getattr(self, name)))


@dataclass(frozen=True)
class Synthetic:
    """What a generated world is made from; ``build`` is cached.

    ``feature_signal`` is the share of the variance that public features make up: brands of
    quality's rank and of the rest of appeal, keywords of embeddings around their category's
    centre (a linear regression on all features recovers about 0.85 of the latter).
    ``temptation`` is how strongly a tempting look goes with poor quality (a correlation).
    """

    world_seed: int = 0
    num_items: int = 100
    num_categories: int = 10
    interest_dim: int = 8
    feature_signal: float = 0.7
    temptation: float = 0.8
    interest_weight: float = 4.0
    price_sensitivity: float = 0.5

    def build(self) -> World:
        return _synthesise(self)


@lru_cache(maxsize=8)
def _synthesise(recipe: Synthetic) -> World:
    rng = generator(Role.WORLD, recipe.world_seed)
    k, d, n = recipe.num_categories, recipe.interest_dim, recipe.num_items
    centre_KD = _spread(normalise(rng.standard_normal((k, d))))
    # every category has an item before any has a second one
    category_I = rng.permutation(np.arange(n) % k)
    brand_I = rng.integers(_num_brands(n), size=n)
    embedding_ID, keywords_IW = _embed(rng, centre_KD[category_I], recipe.feature_signal)
    quality_I, appeal_I = _tempt(rng, brand_I, recipe.feature_signal, recipe.temptation)
    price_I = np.exp(rng.normal(2.0, 0.5, size=k)[category_I] + rng.normal(0.0, 0.5, size=n))
    catalogue = Catalogue(
        category_I=category_I,
        brand_I=brand_I,
        price_I=price_I.astype(np.float32),
        keywords_IW=keywords_IW,
        appeal_I=appeal_I,
        quality_I=quality_I,
        embedding_ID=embedding_ID,
        num_categories=k,
    )
    population = Population(
        weight_C=np.full(k, 1.0 / k, dtype=np.float32),
        centre_CD=centre_KD,
        spread_CD=np.full((k, d), d**-0.5, dtype=np.float32),
        price_sensitivity=recipe.price_sensitivity,
    )
    return World(
        name="synthetic",
        catalogue=catalogue,
        population=population,
        interest_weight=recipe.interest_weight,
        difficulty=calibrate(catalogue, population, recipe.interest_weight, RANDOM_CONVERSION),
        provenance={"generated": True, "world_seed": recipe.world_seed},
    )


def _num_brands(num_items: int) -> int:
    return min(max(2, num_items // 5), 40)


def _embed(
    rng: np.random.Generator, centre_ID: FloatArray, signal: float
) -> tuple[FloatArray, FloatArray]:
    """Embeddings around their category's centre, and keywords that tell of them.

    Words are drawn in proportion to exp(first thought of the item . word); what the drawn
    words say together then makes up the share ``signal`` of the final deviation.
    """
    n, d = centre_ID.shape
    words, per_item = 4 * d, 6
    word_WD = normalise(rng.standard_normal((words, d)))
    thought_ID = centre_ID + EMBEDDING_SPREAD * rng.standard_normal((n, d)) / np.sqrt(d)
    odds_IW = np.exp(3.0 * thought_ID @ word_WD.T)
    cumulative_IW = np.cumsum(odds_IW / odds_IW.sum(axis=1, keepdims=True), axis=1)
    keywords_IW = np.zeros((n, words), dtype=np.float32)
    for _ in range(per_item):
        drawn_I = (rng.random((n, 1)) > cumulative_IW).sum(axis=1)
        keywords_IW[np.arange(n), np.minimum(drawn_I, words - 1)] += 1.0
    told_ID = _sideways(keywords_IW @ word_WD, centre_ID)
    untold_ID = _sideways(rng.standard_normal((n, d)), centre_ID)
    deviation_ID = np.sqrt(signal) * told_ID + np.sqrt(1 - signal) * untold_ID
    return normalise(centre_ID + EMBEDDING_SPREAD * deviation_ID / np.sqrt(d)), keywords_IW


def _sideways(vector_ID: FloatArray, centre_ID: FloatArray) -> FloatArray:
    """What of vectors does not lie along their category's centre, standardised.

    What lies along it is lost when embeddings are normalised.
    """
    along_I = np.einsum("id,id->i", vector_ID, centre_ID)
    rest_ID: FloatArray = vector_ID - along_I[:, None] * centre_ID
    rest_ID = rest_ID - rest_ID.mean(axis=0)
    return rest_ID / max(float(rest_ID.std()), 1e-6)


def _spread(centre_KD: FloatArray) -> FloatArray:
    """Unit vectors that have pushed each other apart.

    Left to chance some worlds have categories that please everybody, and a constant
    recommendation then does well.
    """
    for _ in range(100):
        push_KK = np.exp(4.0 * (centre_KD @ centre_KD.T - 1.0))
        np.fill_diagonal(push_KK, 0.0)
        share_KK = push_KK / (push_KK.sum(axis=1, keepdims=True) + 1e-9)
        centre_KD = normalise(centre_KD - 0.15 * share_KK @ centre_KD)
    return centre_KD


def _tempt(
    rng: np.random.Generator, brand_I: IntArray, signal: float, temptation: float
) -> tuple[FloatArray, FloatArray]:
    """Quality, uniform on (-1, 1), and an appeal that goes against it by ``temptation``.

    Every world has the same spread of both, so that worlds differ in who likes what and
    not in how hard they are.
    """
    n = len(brand_I)
    rank_I = np.argsort(np.argsort(_branded(rng, brand_I, signal)))
    quality_I = (2.0 * rank_I + 1.0) / n - 1.0
    rest_I = _branded(rng, brand_I, signal)
    rest_I -= quality_I * (quality_I @ rest_I) / (quality_I @ quality_I + 1e-9)
    rest_I = (rest_I - rest_I.mean()) / max(float(rest_I.std()), 1e-6)
    appeal_I = -temptation * np.sqrt(3.0) * quality_I + np.sqrt(1 - temptation**2) * rest_I
    return quality_I.astype(np.float32), (APPEAL_SCALE * appeal_I).astype(np.float32)


def _branded(rng: np.random.Generator, brand_I: IntArray, signal: float) -> FloatArray:
    """Standard normals, of whose variance the item's brand explains ``signal``."""
    brand: FloatArray = rng.standard_normal(int(brand_I.max()) + 1)[brand_I]
    own: FloatArray = rng.standard_normal(len(brand_I))
    mixed: FloatArray = np.sqrt(signal) * brand + np.sqrt(1 - signal) * own
    return mixed


def newcomers_utility(
    catalogue: Catalogue, population: Population, interest_weight: float, seed: int, count: int
) -> FloatArray:
    """(n, I) utilities, before difficulty, of ``count`` shoppers as they walk in."""
    people = population.draw(generator(Role.CALIBRATION, seed), count)
    traits = population.traits(people)
    patience = np.ones(count, dtype=np.float32)
    state = initial_state(xp, people.interest, patience, catalogue.num_categories, 1)
    items = Items(
        catalogue.embedding_ID,
        catalogue.appeal_I,
        catalogue.log_price_I,
        catalogue.quality_I,
        catalogue.category_I,
    )
    dynamics = Dynamics(interest_weight=interest_weight)
    utility: FloatArray = utilities(xp, dynamics, state, traits, items)
    return utility


def calibrate(
    catalogue: Catalogue,
    population: Population,
    interest_weight: float,
    conversion: float,
    choose: Callable[[FloatArray], FloatArray] | None = None,
) -> float:
    """The difficulty at which recommendations to newcomers convert at ``conversion``.

    ``choose`` maps utilities (n, I) to those of the items recommended; the default is a
    random item. At most 2,000 items are looked at.
    """
    utility = newcomers_utility(catalogue.first(2_000), population, interest_weight, 0, 1_000)
    if choose is not None:
        utility = choose(utility)
    low, high = float(utility.min()) - 20.0, float(utility.max()) + 20.0
    for _ in range(40):
        middle = (low + high) / 2
        if sigmoid(np, utility - middle).mean() > conversion:
            low = middle
        else:
            high = middle
    return round((low + high) / 2, 4)


def load(world: str) -> World:
    """A world by name or from a file.

    Raises:
        UsageError: there is no such world, or its file cannot be read or is damaged.
    """
    if world in REAL_WORLDS:
        loaded: World = import_module(REAL_WORLDS[world]).load()
        return loaded
    try:
        path = Path(world).expanduser()
        modified = path.stat().st_mtime_ns if path.exists() else None
    except (OSError, RuntimeError) as error:  # not allowed to look, too long, no such ~user
        raise UsageError(f"cannot read world file {world}: {_why(error)}") from None
    if modified is None and path.suffix != ".npz":
        raise unknown("world", world, ["synthetic", *REAL_WORLDS, "<path of a world file>.npz"])
    return _read_cached(str(path), modified or 0)


@lru_cache(maxsize=4)
def _read_cached(path: str, _modified: int) -> World:
    return read(Path(path))


def keep_most_bought(world: World, num_items: int) -> World:
    """A loaded world with its first ``num_items`` items; they stand in order of sales."""
    if num_items == world.catalogue.num_items:
        return world
    return replace(world, catalogue=world.catalogue.first(num_items))


def write(world: World, path: Path) -> None:
    """Write a world file: npz without pickle, the scalars as JSON in its member ``meta``.

    The file appears whole or not at all.
    """
    scalars, arrays = _split(world.population)
    meta = {
        "format": FORMAT,
        "name": world.name,
        "interest_weight": world.interest_weight,
        "difficulty": world.difficulty,
        "scenario": world.scenario,
        "provenance": world.provenance,
        "num_categories": world.catalogue.num_categories,
        "item_names": world.catalogue.item_names,
        "category_names": world.catalogue.category_names,
        "log_price_scale": world.catalogue.log_price_standard,
        "population": scalars,
    }
    members = {name: getattr(world.catalogue, name) for name in ARRAYS}
    members |= {f"population.{name}": array for name, array in arrays.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            np.savez_compressed(
                file, allow_pickle=False, meta=np.array(json.dumps(meta)), **members
            )
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read(path: Path) -> World:
    """Read a world file.

    Raises:
        UsageError: the file is missing, unreadable, damaged or of another kind or format.
    """
    _check_kind(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            members = {name: file[name] for name in file.files}
        meta = json.loads(str(members.pop("meta")))
        if meta["format"] != FORMAT:
            raise UsageError(f"its format is {meta['format']}, this version reads {FORMAT}")
        return _assemble(meta, members)
    except UsageError as error:
        raise UsageError(f"world file {path}: {error}: build it again") from None
    except Exception as error:  # there is no end to the ways in which a file can be damaged
        told = f"{type(error).__name__}: {error}"
        if "allow_pickle" in told:  # numpy advises to allow it, which lets a file run code
            told = "it holds Python objects, which are never read"
        raise UsageError(f"world file {path} is damaged ({told}): build it again") from None


def _check_kind(path: Path) -> None:
    """Refuse what was never written as a world file."""
    if path.is_dir():
        raise UsageError(f"world {path} is a directory: give the path of a world file (.npz)")
    try:
        with path.open("rb") as file:
            begins = file.read(len(NPZ))
    except FileNotFoundError:
        raise UsageError(f"there is no world file {path}") from None
    except OSError as error:
        raise UsageError(f"cannot read world file {path}: {_why(error)}") from None
    if begins != NPZ:
        raise UsageError(
            f"{path} is no world file (npz): build a recenv.world.World and "
            "recenv.world.write(world, path) it"
        )


def _why(error: Exception) -> str:
    """The system's reason without its number and path."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _assemble(meta: dict[str, Any], members: dict[str, Any]) -> World:
    catalogue = Catalogue(
        **{name: members[name] for name in ARRAYS},
        num_categories=meta["num_categories"],
        item_names=tuple(meta["item_names"]),
        category_names=tuple(meta["category_names"]),
        log_price_scale=_pair(meta["log_price_scale"]),
    )
    prefix = "population."
    arrays = {
        name.removeprefix(prefix): array
        for name, array in members.items()
        if name.startswith(prefix)
    }
    return World(
        name=meta["name"],
        catalogue=catalogue,
        population=Population(**arrays, **meta["population"]),
        interest_weight=meta["interest_weight"],
        difficulty=meta["difficulty"],
        scenario=meta["scenario"],
        provenance=meta["provenance"],
    )


def _pair(values: list[float]) -> tuple[float, float]:
    mean, scale = values
    return float(mean), float(scale)


def _split(population: Population) -> tuple[dict[str, float], dict[str, FloatArray]]:
    """A population's scalars (for JSON) and arrays (for npz)."""
    values = {f.name: getattr(population, f.name) for f in fields(population)}
    scalars = {k: float(v) for k, v in values.items() if isinstance(v, (int, float))}
    arrays = {k: v for k, v in values.items() if isinstance(v, np.ndarray)}
    return scalars, arrays
