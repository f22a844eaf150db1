"""Generated worlds keep their promises, and files give back what was written or one clear line."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from array_api_compat import numpy as xp
from hypothesis import given, settings
from hypothesis import strategies as st

from recenv import world as worlds
from recenv.catalogue import ARRAYS
from recenv.dynamics import sigmoid
from recenv.env import RecsysEnv
from recenv.scenarios import SCENARIOS
from recenv.shop import Shop
from recenv.vector_env import RecsysVectorEnv
from recenv.world import Synthetic, World


def arrays(world: World) -> dict[str, np.ndarray]:
    """All arrays of a world by name."""
    found = {name: getattr(world.catalogue, name) for name in ARRAYS}
    return found | {k: v for k, v in vars(world.population).items() if isinstance(v, np.ndarray)}


def same(one: World, other: World) -> bool:
    ours, theirs = arrays(one), arrays(other)
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and np.array_equal(ours[name], theirs[name])
        for name in ours
    )


# --- generation ------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**31 - 1),
    num_items=st.integers(1, 200),
    share=st.floats(0, 1),
    interest_dim=st.integers(1, 12),
    signal=st.floats(0, 1),
    temptation=st.floats(-1, 1),
)
def test_every_generated_world_is_well_formed(
    seed: int, num_items: int, share: float, interest_dim: int, signal: float, temptation: float
) -> None:
    k = 1 + int(share * (num_items - 1))
    world = Synthetic(seed, num_items, k, interest_dim, signal, temptation).build()
    catalogue, population = world.catalogue, world.population
    assert catalogue.num_items == num_items
    assert catalogue.num_categories == k
    assert set(catalogue.category_I.tolist()) == set(range(k))  # none is empty
    np.testing.assert_allclose(np.linalg.norm(catalogue.embedding_ID, axis=1), 1, atol=1e-5)
    assert np.abs(catalogue.quality_I).max() <= 1
    assert (catalogue.keywords_IW.sum(axis=1) == 6).all()
    features = catalogue.features_IF
    assert features.dtype == np.float32
    assert len(features) == num_items
    np.testing.assert_array_equal(features[:, :k].sum(axis=1), 1)
    if num_items > 1:
        np.testing.assert_allclose(catalogue.log_price_I.mean(), 0, atol=1e-4)
        np.testing.assert_allclose(catalogue.log_price_I.std(), 1, atol=1e-3)
    assert population.weight_C.sum() == pytest.approx(1, abs=1e-5)
    assert population.interest_dim == interest_dim
    facts = catalogue.facts(world.difficulty)
    assert facts.shape == (num_items, 4)
    assert facts.flags.c_contiguous
    assert np.isfinite(facts).all()


def test_a_world_is_made_from_its_seed_alone() -> None:
    one = worlds._synthesise.__wrapped__(Synthetic(world_seed=5))
    assert same(one, worlds._synthesise.__wrapped__(Synthetic(world_seed=5)))
    assert not same(one, worlds._synthesise.__wrapped__(Synthetic(world_seed=6)))


def explained(features: np.ndarray, target: np.ndarray) -> float:
    """Share of the variance of ``target`` (n, ...) that a held-out regression explains."""
    target = target.reshape(len(target), -1)
    inputs = np.column_stack([features, np.ones(len(features))])
    half = len(features) // 2
    weights = np.linalg.lstsq(inputs[:half], target[:half], rcond=None)[0]
    rest = target[half:] - inputs[half:] @ weights
    mean = target[:half].mean(axis=0)
    return 1 - float((rest**2).sum() / ((target[half:] - mean) ** 2).sum())


def deviation(world: World) -> np.ndarray:
    """Embeddings less their category's centre."""
    catalogue = world.catalogue
    return catalogue.embedding_ID - world.population.centre_CD[catalogue.category_I]


@pytest.mark.parametrize("seed", [0, 1])
def test_features_explain_the_share_that_feature_signal_names(seed: int) -> None:
    shares: dict[str, list[float]] = {"quality": [], "appeal": [], "embedding": []}
    for signal in (0.0, 0.5, 1.0):
        world = Synthetic(seed, 4_000, feature_signal=signal).build()
        catalogue = world.catalogue
        features = catalogue.features_IF
        rest = (
            catalogue.appeal_I
            - catalogue.quality_I * np.polyfit(catalogue.quality_I, catalogue.appeal_I, 1)[0]
        )
        shares["quality"].append(explained(features, catalogue.quality_I))
        shares["appeal"].append(explained(features, rest))
        shares["embedding"].append(explained(features, deviation(world)))
    for name, (none, half, whole) in shares.items():
        assert abs(none) < 0.1, name
        assert half == pytest.approx(0.5, abs=0.2), name
        assert whole > 0.8, name


@pytest.mark.parametrize("temptation", [-1.0, 0.0, 0.5, 0.8, 1.0])
def test_temptation_is_the_correlation_of_appeal_with_poor_quality(temptation: float) -> None:
    catalogue = Synthetic(3, 2_000, temptation=temptation).build().catalogue
    correlation = np.corrcoef(catalogue.appeal_I, -catalogue.quality_I)[0, 1]
    assert correlation == pytest.approx(temptation, abs=0.02)
    assert catalogue.appeal_I.std() == pytest.approx(worlds.APPEAL_SCALE, rel=0.05)


@pytest.mark.parametrize("world_seed", range(4))
def test_a_random_item_converts_at_a_plausible_rate(world_seed: int) -> None:
    for scenario in SCENARIOS:
        env = RecsysVectorEnv(512, scenario=scenario, world_seed=world_seed)
        env.reset(seed=0)
        env.action_space.seed(0)
        alive, sold, shown = np.ones(512, dtype=bool), 0, 0
        for _ in range(env.shop.horizon):
            _, _, over, _, info = env.step(env.action_space.sample())
            terms = info.get("final_info", info)["reward_terms"]
            sold += int((alive & (terms["purchase"] > 0)).sum())
            shown += int(alive.sum())
            alive &= ~over
        assert 0.05 < sold / shown < 0.25, scenario


@pytest.mark.parametrize("num_items", [1, 5, 100, 3_000])
@pytest.mark.parametrize("interest_weight", [0.0, 3.5, 6.0])
def test_difficulty_is_calibrated_to_the_conversion_of_newcomers(
    num_items: int, interest_weight: float
) -> None:
    world = Synthetic(1, num_items, min(10, num_items), interest_weight=interest_weight).build()
    utility = worlds.newcomers_utility(
        world.catalogue, world.population, interest_weight, seed=9, count=2_000
    )
    conversion = sigmoid(xp, utility - world.difficulty).mean()
    assert conversion == pytest.approx(worlds.RANDOM_CONVERSION, abs=0.03)


# --- files -----------------------------------------------------------------------------------


@pytest.fixture
def world() -> World:
    made = Synthetic(2, 30, 4, 3).build()
    population = replace(
        made.population,
        base_rate_spread=0.25,
        known_interest_MD=np.eye(3, dtype=np.float32),
        known_base_rate_M=np.float32([0.1, 0.2, -0.3]),
    )
    catalogue = replace(
        made.catalogue,
        item_names=tuple(f"thing {i} \N{SNOWMAN}" for i in range(30)),
        category_names=("a", "b", "c", "d"),
    )
    return replace(
        made,
        name="a shop",
        catalogue=catalogue,
        population=population,
        interest_weight=1 / 3,
        scenario="satiation",
        provenance={"from": "a test"},
    )


@pytest.fixture
def path(world: World, tmp_path: Path) -> Path:
    worlds.write(world, tmp_path / "deep" / "shop.npz")
    return tmp_path / "deep" / "shop.npz"


def test_a_file_gives_back_the_world_bit_by_bit(world: World, path: Path) -> None:
    again = worlds.read(path)
    assert same(world, again)
    for name in ("name", "interest_weight", "difficulty", "scenario", "provenance"):
        assert getattr(again, name) == getattr(world, name)
    for name in ("item_names", "category_names", "num_categories"):
        assert getattr(again.catalogue, name) == getattr(world.catalogue, name)
    for name in ("price_sensitivity", "base_rate_spread", "tolerance"):
        assert getattr(again.population, name) == getattr(world.population, name)
    np.testing.assert_array_equal(again.catalogue.facts(0.1), world.catalogue.facts(0.1))
    assert [file.name for file in path.parent.iterdir()] == ["shop.npz"]


def test_a_shop_from_a_file_plays_like_the_world_that_was_written(path: Path) -> None:
    plain = Synthetic(2, 30, 4, 3).build()
    worlds.write(plain, path)
    generated = {"world_seed": 2, "num_items": 30, "num_categories": 4, "interest_dim": 3}
    loaded, made = RecsysEnv(world=str(path)), RecsysEnv(**generated)
    np.testing.assert_array_equal(loaded.reset(seed=1)[0], made.reset(seed=1)[0])
    for item in range(30):
        one, other = loaded.step(item), made.step(item)
        np.testing.assert_array_equal(one[0], other[0])
        assert one[1:4] == other[1:4]


def test_a_loaded_world_brings_its_scale_and_scenario(world: World, path: Path) -> None:
    shop = Shop({"world": str(path)})
    assert shop.scenario == "satiation"
    assert shop.dynamics.interest_weight == 1 / 3
    assert shop.difficulty == world.difficulty
    assert Shop({"world": str(path), "scenario": "static"}).scenario == "static"
    assert Shop({"world": str(path), "difficulty": 9}).difficulty == 9
    dear = Shop({"world": str(path), "price_sensitivity": 3})
    assert dear.world.population.price_sensitivity == 3


def test_num_items_keeps_the_first_of_a_loaded_world(world: World, path: Path) -> None:
    whole, part = Shop({"world": str(path)}), Shop({"world": str(path), "num_items": 7})
    assert part.num_items == 7
    assert part.action_space.n == 7
    assert part.catalogue.item_names == world.catalogue.item_names[:7]
    # what a step reads is the same: an item does not change because others are not sold
    np.testing.assert_array_equal(part.tables.embedding, whole.tables.embedding[:7])
    np.testing.assert_array_equal(part.tables.facts, whole.tables.facts[:7])


def test_a_file_that_is_written_again_is_read_again(world: World, path: Path) -> None:
    import os

    assert Shop({"world": str(path)}).world.name == "a shop"
    worlds.write(replace(world, name="another"), path)
    os.utime(path, ns=(1, 1))
    assert Shop({"world": str(path)}).world.name == "another"


@pytest.mark.parametrize("keyword", ["num_categories", "interest_dim"])
def test_generation_keywords_are_refused_for_a_loaded_world(
    refuses: Any, path: Path, keyword: str
) -> None:
    with refuses(f"{keyword} belongs to world=synthetic"):
        Shop({"world": str(path), keyword: 3})


@pytest.mark.parametrize("keyword", ["feature_signal", "temptation"])
def test_so_are_the_others(refuses: Any, path: Path, keyword: str) -> None:
    with refuses(f"{keyword} belongs to world=synthetic"):
        Shop({"world": str(path), keyword: 0.5})


def test_more_items_than_there_are_are_refused(refuses: Any, path: Path) -> None:
    with refuses("has 30 items, num_items=31 asks for more: choose fewer"):
        Shop({"world": str(path), "num_items": 31})


def rewrite(path: Path, **changes: Any) -> None:
    """Replace members of a world file; None removes one, and ``meta`` is updated as JSON."""
    with np.load(path, allow_pickle=False) as file:
        members = {name: file[name] for name in file.files}
    meta = json.loads(str(members["meta"])) | changes.pop("meta", {})
    members |= {"meta": np.array(json.dumps(meta))} | changes
    kept = {name: value for name, value in members.items() if value is not None}
    np.savez(path, allow_pickle=True, **kept)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"quality_I": None}, "KeyError"),
        ({"meta": {"format": 99}}, "its format is 99, this version reads 1"),
        ({"meta": {"population": {"colour": 1.0}}}, "unexpected keyword argument 'colour'"),
        ({"meta": {"scenario": "trst"}}, "unknown scenario 'trst': did you mean 'trust'"),
        ({"meta": {"difficulty": float("nan")}}, "difficulty must be finite"),
        ({"meta": {"num_categories": 2}}, r"category_I must lie in 0\.\.1"),
        ({"meta": {"item_names": ["one"]}}, "30 items have 1 item_names"),
        ({"meta": {"log_price_scale": [0, 0]}}, "log_price_scale"),
        ({"appeal_I": np.full(30, np.nan)}, "appeal_I holds values that are not finite"),
        ({"appeal_I": np.zeros(29)}, "must have one length > 0"),
        ({"appeal_I": np.zeros((30, 2))}, "appeal_I must have 1 axes"),
        ({"appeal_I": np.array(["x"] * 30)}, "is damaged"),
        ({"appeal_I": np.array([{}] * 30)}, "is damaged"),  # a pickled object
        ({"price_I": np.zeros(30)}, "prices must be positive"),
        ({"quality_I": np.full(30, 2.0)}, r"quality_I must lie in -1\.\.1"),
        ({"embedding_ID": np.zeros((30, 5))}, "must share interest_dim, got 5, 3"),
        ({"population.centre_CD": np.full((4, 3), np.inf)}, "not finite"),
        ({"population.weight_C": np.ones(4)}, "must be probabilities that sum to one"),
        ({"population.colour": np.ones(4)}, "unexpected keyword argument 'colour'"),
    ],
    ids=lambda value: str(value)[:40].replace("\n", " "),
)
def test_a_file_with_wrong_contents_is_refused(
    refuses: Any, path: Path, changes: dict[str, Any], pattern: str
) -> None:
    rewrite(path, **changes)
    for read in (lambda: worlds.read(path), lambda: RecsysEnv(world=str(path))):
        with refuses(pattern):
            read()
        with refuses(r"^world file .*shop\.npz.*: build it again$"):
            read()


def test_a_file_never_runs_code(path: Path, refuses: Any) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (path.parent / "boom",)

    rewrite(path, appeal_I=np.array([Bomb()] * 30, dtype=object))
    with refuses("is damaged"):
        worlds.read(path)
    assert not (path.parent / "boom").exists()


@pytest.mark.parametrize(
    "junk", [b"", b"PK", b"no zip at all", b"\x93NUMPY\x01\x00", b"\x80\x04K\x01."]
)
def test_a_file_of_another_kind_is_refused(refuses: Any, path: Path, junk: bytes) -> None:
    path.write_bytes(junk)
    with refuses(rf"^{path} is no world file \(npz\): .*recenv.world.write\(world, path\)"):
        worlds.read(path)


def test_an_array_file_is_refused(refuses: Any, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with refuses(r"is no world file \(npz\)"):
        worlds.read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("meta.npy", "x")
    with refuses("is damaged .*: build it again"):
        worlds.read(path)


def test_a_directory_is_refused(refuses: Any, path: Path) -> None:
    with refuses("is a directory: give the path of a world file"):
        Shop({"world": str(path.parent)})


def test_a_file_that_cannot_be_read_is_refused(
    refuses: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbid(*_: Any, **__: Any) -> Any:  # file modes do not hold back every user
        raise PermissionError(13, "Permission denied", "shop.npz")

    for method in ("open", "stat"):
        with monkeypatch.context() as patch, refuses(r"^cannot read world file .*: Permission den"):
            patch.setattr(Path, method, forbid)
            Shop({"world": str(path)})
    for world in (f"{'x' * 300}.npz", "~nobody.of.that.name/x.npz"):
        with refuses(rf"^cannot read world file {world}: "):
            Shop({"world": world})


def test_advice_to_allow_pickle_is_not_passed_on(refuses: Any, path: Path) -> None:
    rewrite(path, appeal_I=np.array([{}] * 30))
    with refuses("it holds Python objects, which are never read"):
        worlds.read(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(refuses: Any, path: Path, share: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with refuses("is damaged .*: build it again"):
        worlds.read(path)


def test_a_file_with_flipped_bytes_is_refused_or_still_the_same(
    refuses: Any, world: World, path: Path
) -> None:
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            again = worlds.read(path)
        except Exception:
            with refuses(r"^world file .*: build it again$|is no world file \(npz\)"):
                worlds.read(path)
            refused += 1
        else:
            assert same(world, again)  # a byte that nothing depends on
    assert refused > 100


def test_an_interrupted_write_leaves_the_old_file_alone(
    world: World, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_the_disk(file: Any, **_: Any) -> None:
        file.write(b"half of it")
        raise OSError("no space left on device")

    before = path.read_bytes()
    monkeypatch.setattr(np, "savez_compressed", fill_the_disk)
    with pytest.raises(OSError, match="no space left"):
        worlds.write(world, path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["shop.npz"]


# --- catalogues ------------------------------------------------------------------------------


def test_what_has_no_name_is_numbered(world: World) -> None:
    assert world.catalogue.item_name(3) == "thing 3 \N{SNOWMAN}"
    assert world.catalogue.category_name(3) == "d"
    plain = Synthetic().build().catalogue
    assert (plain.item_name(3), plain.category_name(3)) == ("item 3", "category 3")


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"brand_I": np.full(30, -1)}, "brand_I must be 0 or more"),
        ({"category_names": ("a",)}, "4 categories have 1 category_names"),
        ({name: np.zeros((0, 3)[: len(name.rpartition("_")[2])]) for name in ARRAYS}, "length > 0"),
    ],
    ids=["brand", "names", "empty"],
)
def test_a_bad_catalogue_is_refused(
    refuses: Any, world: World, changes: dict[str, Any], pattern: str
) -> None:
    with refuses(pattern):
        replace(world.catalogue, **changes)
