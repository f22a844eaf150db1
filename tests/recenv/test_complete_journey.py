"""The grocery shop: cleaning, fitting, caching, and the whole build on a made-up log."""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import recenv
from recenv import world as worlds
from recenv.catalogue import ARRAYS
from recenv.dynamics import sigmoid
from recenv.errors import MissingExtra, UsageError
from recenv.worlds import complete_journey
from recenv.worlds.complete_journey import Recipe

pd = pytest.importorskip("pandas")
for package in complete_journey.NEEDS:
    pytest.importorskip(package)

HOUSEHOLDS, PRODUCTS, WEEKS = 160, 30, 12
SMALL = Recipe(num_items=24, interest_dim=4)
COLUMNS = ("household_id", "basket_id", "product_id", "week", "quantity", "sales_value")


def make_products() -> pd.DataFrame:
    """Products 1000.. of two aisles, then gasoline, a coupon, and one that nothing describes."""
    rows = [
        (
            1000 + i,
            69 if i % 3 == 0 else 100 + i % 2,
            "GROCERY",
            "Private" if i % 3 == 0 else "National",
            "FRZN PIZZA" if i % 2 else "FLUID MILK PRODUCTS",
            "PIZZA/TRADITIONAL" if i % 2 else "FLUID MILK WHITE ONLY",
            "16 OZ" if i % 2 else "1 GA",
        )
        for i in range(PRODUCTS)
    ]
    rows += [
        (2000, 69, "FUEL", "Private", "FUEL", "GASOLINE-REG UNLEADED", None),
        (2001, 69, "GROCERY", "Private", "COUPONS/STORE & MFG", "COUPONS/STORE & MFG", None),
        (2002, 2, "GROCERY", "National", None, None, None),
    ]
    names = "product_id manufacturer_id department brand product_category product_type package_size"
    return pd.DataFrame(rows, columns=names.split())


def make_transactions(seed: int = 0) -> pd.DataFrame:
    """Even households like even products; everybody buys the gasoline."""
    rng = np.random.default_rng(seed)
    likes = np.where(np.arange(HOUSEHOLDS)[:, None] % 2 == np.arange(PRODUCTS) % 2, 0.10, 0.02)
    rate = likes * np.linspace(2.0, 0.8, PRODUCTS)
    week, household, product = np.nonzero(
        rng.random((WEEKS, HOUSEHOLDS, PRODUCTS)) < rate[None, :, :]
    )
    sales_value = (1 + product % 5) * rng.choice([0.8, 1.0], size=len(week))
    lines = pd.DataFrame(
        {
            "household_id": household + 1,
            "basket_id": 1000 * household + week,
            "product_id": 1000 + product,
            "week": week + 1,
            "quantity": 1,
            "sales_value": sales_value,
        }
    )
    fuel = lines.assign(product_id=2000, quantity=9000, sales_value=30.0)
    return pd.concat([lines, fuel], ignore_index=True).assign(coupon_match_disc=0.0)


@pytest.fixture(scope="module")
def small() -> worlds.World:
    return complete_journey.build(SMALL, (make_transactions(), make_products()))


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("RECENV_CACHE", str(tmp_path))
    return tmp_path


def assert_same_world(a: worlds.World, b: worlds.World) -> None:
    """Bit by bit."""
    for name in ARRAYS:
        left, right = getattr(a.catalogue, name), getattr(b.catalogue, name)
        assert left.dtype == right.dtype, name
        np.testing.assert_array_equal(left, right, err_msg=name)
    for name, value in vars(a.population).items():
        if not name.startswith("_"):
            np.testing.assert_array_equal(value, getattr(b.population, name), err_msg=name)
    for name in ("name", "interest_weight", "difficulty", "scenario", "provenance"):
        assert getattr(a, name) == getattr(b, name)
    assert a.catalogue.item_names == b.catalogue.item_names
    assert a.catalogue.category_names == b.catalogue.category_names


# --- the parts ---------------------------------------------------------------------------


def test_each_bad_line_is_dropped_once_and_for_its_reason():
    good = [(1, 10 + n, 1000, 1, 2, 2.0) for n in range(5)]
    bad = [
        (1, 1, 2000, 1, 9000, 30.0),  # fuel, in thousandths of a gallon
        (1, 1, 2001, 1, 1, 1.0),  # a coupon
        (1, 1, 2002, 1, 1, 1.0),  # in the list, but nobody knows what it is
        (1, 1, 9999, 1, 1, 1.0),  # not in the list
        (1, 1, 1000, 1, 0, 0.0),
        (1, 1, 1000, 1, 99, 99.0),
        (1, 1, 1000, 1, 1, 0.0),
        (1, 1, 1000, 1, 1, 50.0),  # fifty times its usual price
    ]
    transactions = pd.DataFrame(good + bad, columns=COLUMNS).assign(coupon_match_disc=0.0)
    lines, dropped = complete_journey.clean_lines(transactions, make_products())
    assert dropped == {
        "not in the product list": 2,
        "not a product": 2,
        "impossible quantity": 2,
        "no price": 1,
        "price far from the usual": 1,
    }
    assert lines.price.tolist() == [1.0] * 5


def test_the_price_of_a_unit_has_the_shops_discounts_taken_off():
    rows = [(1, 1, 1000, 1, 2, 3.0)]
    transactions = pd.DataFrame(rows, columns=COLUMNS).assign(coupon_match_disc=0.4)
    lines, _ = complete_journey.clean_lines(transactions, make_products())
    assert lines.price.tolist() == [pytest.approx(1.7)]


def test_the_shelf_stands_in_order_of_sales():
    lines, _ = complete_journey.clean_lines(make_transactions(), make_products())
    lines, shelf = complete_journey.stock(lines, make_products(), 5)
    assert (np.diff(shelf.sales) <= 0).all()
    assert lines.item.value_counts().sort_index().tolist() == shelf.sales.tolist()
    assert (shelf.product_id.to_numpy()[lines.item] == lines.product_id).all()


def test_too_few_products_are_an_error_that_says_how_many_there_are():
    lines, _ = complete_journey.clean_lines(make_transactions(), make_products())
    with pytest.raises(UsageError, match=r"only 30 products were bought by 20 households"):
        complete_journey.stock(lines, make_products(), 31)


def test_households_with_few_products_are_left_out():
    rows = [
        (h, 100 * h + b, 1000 + p, 1, 1, 1.0) for h in range(25) for b in range(2) for p in range(5)
    ]
    rows += [(99, 9900, 1000, 1, 1, 1.0)]
    lines = pd.DataFrame(rows, columns=COLUMNS).assign(price=1.0)
    lines["item"] = lines.product_id - 1000
    bought = complete_journey.count_baskets(lines, 5)
    assert bought.baskets_MI.shape == (25, 5)
    assert (bought.baskets_MI == 2).all()
    assert (bought.visits_M == 2).all()


def test_ranked_share_on_paper():
    # household 0: item 0 known, item 1 hidden; it beats item 2 and loses to item 3
    bought = np.array([[True, True, False, False], [False, False, True, False]])
    known = np.array([[True, False, False, False], [False, False, False, False]])
    score = np.array([[9.0, 2.0, 1.0, 3.0], [1.0, 1.0, 4.0, 1.0]])
    assert complete_journey.ranked_share(score, bought, known) == pytest.approx(4 / 5)
    assert complete_journey.ranked_share(-score, bought, known) == pytest.approx(1 / 5)
    assert complete_journey.ranked_share(0 * score, bought, known) == pytest.approx(1 / 2)


def test_the_elasticity_of_made_up_sales_is_found():
    rng = np.random.default_rng(0)
    items, weeks, elasticity = 40, 30, 1.7
    price = np.exp(rng.normal(0.5, 0.7, (items, 1)) + 0.2 * rng.standard_normal((items, weeks)))
    mean = np.exp(rng.normal(3.5, 0.3, (items, 1)) + 0.3 * rng.standard_normal(weeks))
    mean *= (price / price.mean(axis=1, keepdims=True)) ** -elasticity
    sold = rng.poisson(mean)
    item, week = np.repeat(np.indices(sold.shape).reshape(2, -1), sold.ravel(), axis=1)
    lines = pd.DataFrame({"item": item, "week": week, "price": price[item, week]})
    assert complete_journey.price_elasticity(lines, items) == pytest.approx(elasticity, abs=0.1)


def test_prices_that_never_move_tell_no_elasticity():
    lines = pd.DataFrame({"item": [0, 0, 1, 1], "week": [1, 2, 1, 2], "price": 2.0})
    assert complete_journey.price_elasticity(lines, 2) == 0.0


# --- the whole, on a made-up log ---------------------------------------------------------


def test_the_small_world_sells_products_and_nothing_else(small):
    catalogue = small.catalogue
    assert catalogue.num_items == 24
    assert set(catalogue.category_names) == {"frozen pizza", "fluid milk products"}
    assert catalogue.item_names[0] == "fluid milk white only, 1 gal"
    assert len(set(catalogue.item_names)) == 24
    assert set(small.provenance["brands"][:-1]) == {"own brand", "maker 100", "maker 101"}
    assert small.provenance["brands"][-1] == "other makers"
    assert {"fluid", "milk", "pizza", "1-gal", "16-oz"} <= set(small.provenance["words"])
    assert small.provenance["counts"]["dropped: not a product"] > 0
    json.dumps(small.provenance)


def test_tastes_that_are_in_the_log_are_in_the_world(small):
    interest, item = small.population.known_interest_MD, small.catalogue.embedding_ID
    np.testing.assert_allclose(np.linalg.norm(interest, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(item, axis=1), 1, atol=1e-5)
    even_items = np.array(small.provenance["product_ids"]) % 2 == 0
    cosine = item @ item.T
    assert (
        cosine[even_items][:, even_items].mean() > cosine[even_items][:, ~even_items].mean() + 0.5
    )
    measured = small.provenance["measured"]
    assert small.interest_weight > 0
    assert measured["choice: ranked"] > measured["choice: ranked_by_popularity"] + 0.1


def test_scales_of_the_small_world(small):
    catalogue = small.catalogue
    assert np.abs(catalogue.quality_I).max() < 1
    assert abs(float(catalogue.quality_I.mean())) < 1e-6
    assert small.scenario == "satiation"
    assert small.provenance["measured"]["conversion of popularity"] == pytest.approx(0.35, abs=0.03)
    assert small.population.known_base_rate_M.mean() == pytest.approx(0, abs=1e-5)


def test_the_same_recipe_gives_the_same_world_and_its_file_keeps_every_bit(small, tmp_path):
    again = complete_journey.build(SMALL, (make_transactions(), make_products()))
    assert_same_world(small, again)
    worlds.write(small, tmp_path / "small.npz")
    assert_same_world(small, worlds.read(tmp_path / "small.npz"))


def test_another_seed_gives_another_world(small):
    recipe = Recipe(SMALL.num_items, SMALL.interest_dim, seed=1)
    other = complete_journey.build(recipe, (make_transactions(), make_products()))
    assert not np.array_equal(small.catalogue.embedding_ID, other.catalogue.embedding_ID)


# --- the cache ---------------------------------------------------------------------------


@pytest.fixture
def builds(small, monkeypatch) -> list[Recipe]:
    """Recipes that were built; each build gives the small world."""
    done: list[Recipe] = []

    def build(recipe: Recipe) -> worlds.World:
        done.append(recipe)
        return small

    monkeypatch.setattr(complete_journey, "build", build)
    return done


def test_the_world_is_built_once_and_then_read(cache, builds):
    first = worlds.load("complete_journey")
    assert worlds.load("complete_journey") is first
    assert builds == [Recipe()]
    assert [file.name for file in cache.iterdir()] == [Recipe().file_name]


def test_a_damaged_cache_is_built_again(cache, builds, capsys):
    complete_journey.cache_path(Recipe()).write_bytes(b"not a world")
    assert_same_world(worlds.load("complete_journey"), complete_journey.load())
    assert len(builds) == 1
    assert "damaged" in capsys.readouterr().err


def test_the_cache_of_another_recipe_is_not_read(cache, builds, monkeypatch):
    worlds.load("complete_journey")
    monkeypatch.setattr(complete_journey, "VERSION", complete_journey.VERSION + 1)
    worlds.load("complete_journey")
    assert len(builds) == 2
    names = {Recipe().file_name, Recipe(100).file_name, Recipe(500, 8).file_name}
    assert len(names | {Recipe(seed=1).file_name}) == 4


def test_where_the_cache_is(monkeypatch):
    name = Recipe().file_name
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("RECENV_CACHE", "/chosen")
    assert complete_journey.cache_path(Recipe()) == Path("/chosen") / name
    monkeypatch.setenv("RECENV_CACHE", "")
    assert complete_journey.cache_path(Recipe()) == Path("/xdg/recenv") / name
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert complete_journey.cache_path(Recipe()) == Path.home() / ".cache/recenv" / name


def test_a_cache_that_cannot_be_written_is_an_error_that_names_the_fix(
    builds, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RECENV_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="set RECENV_CACHE"):
        complete_journey.load()


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(complete_journey.NEEDS, "no_such_module", "no-such-package")
    with pytest.raises(MissingExtra, match=r"needs no-such-package.*recenv\[worlds\]"):
        complete_journey.build(SMALL)


# --- in the environment and on the command line ------------------------------------------


def test_environments_of_the_small_world(cache, builds):
    assert recenv.__version__
    env = gym.make("Recsys-v0", world="complete_journey")
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    for _ in range(50):
        *_, terminated, _, _ = env.step(env.action_space.sample())
    assert terminated
    many = gym.make_vec(
        "Recsys-v0", num_envs=8, world="complete_journey", num_shoppers=1000, num_items=10
    )
    observation, _ = many.reset(seed=0)
    assert many.observation_space.contains(observation)
    assert many.single_action_space.n == 10


def test_the_command_writes_a_world_file_and_reports(cache, builds, capsys, tmp_path):
    out = tmp_path / "mine.npz"
    assert complete_journey.main(["--items", "24", "--dim", "4", "--out", str(out)]) == 0
    assert builds == [SMALL]
    assert worlds.load(str(out)).name == "complete_journey"
    report = capsys.readouterr().out
    assert "households" in report
    assert str(out) in report


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--items", "3"], "num_items must lie in 20..2000, got 3"),
        (["--items", "20", "--dim", "20"], "interest_dim=20 needs more items"),
        (["--seed", "-1"], "seed must lie in"),
        (["--items", "many"], "invalid int value"),
        (["--colour", "blue"], "unrecognized arguments"),
        (["--out", "."], "--out takes the name of a file"),
        (["--out", "/dev/null/world.npz"], "cannot write /dev/null/world.npz"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments, message, builds, cache, capsys):
    assert complete_journey.main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out


# --- the real log ------------------------------------------------------------------------


@pytest.mark.slow
def test_the_real_log(tmp_path):
    recipe = Recipe(num_items=60)
    world = complete_journey.build(recipe)
    catalogue = world.catalogue
    text = " ".join(catalogue.item_names + catalogue.category_names)
    assert "gasoline" not in text
    assert "coupon" not in text
    assert "banana" in catalogue.item_name(0)
    for vectors in (catalogue.embedding_ID, world.population.known_interest_MD):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert (
        0.1 < catalogue.price_I.min() < np.median(catalogue.price_I) < catalogue.price_I.max() < 15
    )
    assert np.abs(catalogue.quality_I).max() <= 1

    counts, measured = world.provenance["counts"], world.provenance["measured"]
    assert counts["lines read"] == 1_469_307
    assert counts["households"] > 1_500
    assert measured["choice: ranked"] > measured["choice: ranked_by_popularity"] + 0.03
    assert 0.5 < measured["price elasticity"] < 3

    utility = worlds.newcomers_utility(
        catalogue, world.population, world.interest_weight, seed=11, count=2_000
    )
    chance = sigmoid(np, utility - world.difficulty)
    tried = np.argsort(
        -(catalogue.appeal_I - world.population.price_sensitivity * catalogue.log_price_I)
    )
    assert chance[:, tried[:10]].mean() == pytest.approx(0.35, abs=0.02)
    assert 0.05 < chance.mean() < 0.25
    assert 0.4 < chance.max(axis=1).mean() < 0.9

    worlds.write(world, tmp_path / "world.npz")
    assert_same_world(world, worlds.read(tmp_path / "world.npz"))
    assert_same_world(world, complete_journey.build(recipe))
