"""What shoppers do by themselves: how often, at what, and that it changes nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from recenv import dynamics as physics
from recenv.dynamics import Event, State, Traits
from recenv.env import RecsysEnv
from recenv.errors import UsageError
from recenv.gate import RecsysGateVectorEnv
from recenv.organic import Browsing, Habits, Organic, word_vectors
from recenv.retrieve import RecsysRetrieveVectorEnv
from recenv.torch_env import RecsysTorchEnv
from recenv.vector_env import RecsysVectorEnv


def shoppers(env: RecsysVectorEnv, steps: int = 5) -> tuple[State, Traits]:
    """Who is in the shop after some random recommendations."""
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    for _ in range(steps):
        env.step(rng.integers(env.shop.num_items, size=env.num_envs))
    return env.state, env.traits


def copies(state: State, traits: Traits, count: int) -> tuple[State, Traits]:
    """The first shopper, ``count`` times."""
    return (
        State(*(np.repeat(leaf[:1], count, axis=0) for leaf in state)),
        Traits(*(np.repeat(leaf[:1], count, axis=0) for leaf in traits)),
    )


def shares(index: np.ndarray, size: int) -> np.ndarray:
    return np.bincount(index, minlength=size) / len(index)


def within_luck(found: np.ndarray, true: np.ndarray, count: int) -> None:
    """Assert that shares are those of ``count`` draws, to 5 standard deviations."""
    spread = np.sqrt(true * (1.0 - true) / count) + 1.0 / count
    assert (np.abs(found - true) / spread).max() < 5.0
    assert np.abs(found - true).max() < 0.02


@pytest.mark.parametrize("scenario", ["static", "full"])
def test_views_are_in_proportion_to_exp_utility(scenario: str) -> None:
    env = RecsysVectorEnv(64, num_items=30, num_categories=5, scenario=scenario)
    state, traits = copies(*shoppers(env), 40_000)
    shop = env.shop
    one = State(*(leaf[:1] for leaf in state)), Traits(*(leaf[:1] for leaf in traits))
    utility_I = physics.utilities(np, shop.dynamics, *one, shop.items(np, shop.tables))[0]
    true_I = np.exp(utility_I) / np.exp(utility_I).sum()
    assert true_I.max() > 3.0 / shop.num_items  # or the test would see nothing
    found = Organic(shop, Habits(views=1.0))(np.random.default_rng(1), state, traits)
    within_luck(shares(found.viewed_B, 30), true_I, len(found.viewed_B))


def test_on_a_small_shelf_views_are_between_chance_and_choice() -> None:
    env = RecsysVectorEnv(64, num_items=300, num_categories=5)
    state, traits = copies(*shoppers(env), 20_000)
    shop = env.shop
    one = State(*(leaf[:1] for leaf in state)), Traits(*(leaf[:1] for leaf in traits))
    utility_I = physics.utilities(np, shop.dynamics, *one, shop.items(np, shop.tables))[0]
    weight_I = np.exp(utility_I)

    def mean(shelf: int) -> float:
        organic = Organic(shop, Habits(views=1.0, shelf=shelf))
        viewed_B = organic(np.random.default_rng(2), state, traits).viewed_B
        return float(utility_I[viewed_B].mean())

    free = float(weight_I @ utility_I / weight_I.sum())
    assert mean(1) == pytest.approx(utility_I.mean(), abs=0.05)
    assert mean(1) + 1.0 < mean(10) < mean(100) < free
    assert mean(100) == pytest.approx(free, abs=0.15)
    assert mean(300) == pytest.approx(free, abs=0.05)


def test_queries_are_in_proportion_to_exp_interest_times_word() -> None:
    env = RecsysVectorEnv(64, num_items=50)
    state, traits = copies(*shoppers(env), 40_000)
    habits = Habits(views=0.0, searches=1.0, words=1)
    found = Organic(env.shop, habits)(np.random.default_rng(3), state, traits)
    word_WD = word_vectors(env.shop.catalogue)
    weight_W = np.exp(habits.sharpness * word_WD @ state.interest[0])
    weight_W *= np.any(word_WD != 0.0, axis=1)
    true_W = weight_W / weight_W.sum()
    assert true_W.max() > 3.0 / np.count_nonzero(weight_W)
    assert found.words_QW.shape == (len(found.searcher_Q), 1)
    within_luck(shares(found.words_QW[:, 0], len(true_W)), true_W, len(found.words_QW))
    assert not len(found.viewer_B)


def test_a_query_has_distinct_words_that_items_have() -> None:
    env = RecsysVectorEnv(2000, num_items=8)  # too few items to use every word
    catalogue = env.shop.catalogue
    known = set(np.flatnonzero(catalogue.keywords_IW.sum(axis=0)).tolist())
    assert len(known) < catalogue.keywords_IW.shape[1]
    found = Organic(env.shop, Habits(searches=1.0))(np.random.default_rng(4), *shoppers(env))
    lengths = []
    for query in found.words_QW.tolist():
        words = [word for word in query if word >= 0]
        assert query[: len(words)] == words  # nothing stands between them
        assert len(set(words)) == len(words)
        assert set(words) <= known
        lengths.append(len(words))
    assert np.bincount(lengths)[1:] / len(lengths) == pytest.approx([1 / 3] * 3, abs=0.05)


def test_words_lie_where_their_items_do() -> None:
    catalogue = RecsysVectorEnv(1, num_items=200).shop.catalogue
    word_WD = word_vectors(catalogue)
    np.testing.assert_allclose(np.linalg.norm(word_WD, axis=1), 1.0, atol=1e-5)
    match_IW = catalogue.embedding_ID @ word_WD.T
    has_IW = catalogue.keywords_IW > 0
    assert match_IW[has_IW].mean() > match_IW[~has_IW].mean() + 0.3


def test_how_often() -> None:
    env = RecsysVectorEnv(20_000)
    found = Organic(env.shop, Habits(views=0.4, searches=0.1))(
        np.random.default_rng(5), *shoppers(env, 0)
    )
    assert len(found.viewer_B) / 20_000 == pytest.approx(0.4, abs=0.02)
    assert len(found.searcher_Q) / 20_000 == pytest.approx(0.1, abs=0.01)
    assert (np.diff(found.viewer_B) >= 0).all()
    assert len(np.unique(found.viewer_B)) < len(found.viewer_B)  # some look at several
    idle = Organic(env.shop, Habits(0.0, 0.0))(np.random.default_rng(5), *shoppers(env, 0))
    assert not len(idle.viewer_B)
    assert not len(idle.searcher_Q)


def test_it_changes_nothing_and_depends_on_its_generator_alone() -> None:
    env = RecsysVectorEnv(128, scenario="full")
    state, traits = shoppers(env)
    before = [leaf.copy() for leaf in (*state, *traits)]
    drawn = env.np_random.bit_generator.state
    organic = Organic(env.shop)
    first, again, other = (
        organic(np.random.default_rng(seed), state, traits) for seed in (7, 7, 8)
    )
    for was, leaf in zip(before, (*env.state, *env.traits), strict=True):
        np.testing.assert_array_equal(was, leaf)
    assert env.np_random.bit_generator.state == drawn
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(first.viewed_B, other.viewed_B)


def test_a_shop_without_words_has_no_queries() -> None:
    env = RecsysVectorEnv(100)
    shop, world = env.shop, env.shop.world
    wordless = replace(world.catalogue, keywords_IW=np.zeros((shop.num_items, 3)))
    shop.world = replace(world, catalogue=wordless)
    found = Organic(shop, Habits(searches=1.0))(np.random.default_rng(6), *shoppers(env))
    assert not len(found.searcher_Q)
    assert not len(found.words_QW)
    assert len(found.viewer_B)


@pytest.mark.parametrize(
    ("name", "value"), [("views", -0.1), ("searches", "often"), ("shelf", 0), ("words", 1.5)]
)
def test_habits_are_checked(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=name):
        Habits(**{name: value})


SEEN: dict[str, Any] = {
    "observation": "behaviour",
    "organic_views": 1.0,
    "organic_searches": 0.5,
    "scenario": "churn",
    "history": 6,
}


def test_both_environments_see_the_same_browsing() -> None:
    single, several = RecsysEnv(**SEEN), RecsysVectorEnv(1, **SEEN)
    seen, _ = single.reset(seed=3)
    seen_N, _ = several.reset(seed=3)
    rng = np.random.default_rng(0)
    for item in rng.integers(100, size=150):
        np.testing.assert_array_equal(seen, seen_N[0])
        seen, _, over, _, _ = single.step(int(item))
        seen_N, _, _, _, info = several.step(np.array([item]))
        if over:
            np.testing.assert_array_equal(seen, info["final_obs"][0])
            seen, _ = single.reset()


def test_browsing_is_seen_and_changes_no_answer() -> None:
    plain = RecsysVectorEnv(32, **(SEEN | {"organic_views": 0.0, "organic_searches": 0.0}))
    shown = RecsysVectorEnv(32, **SEEN)
    assert plain.reset(seed=1)[0].shape == shown.reset(seed=1)[0].shape
    rng, searches = np.random.default_rng(0), 0.0
    for _ in range(60):
        item_N = rng.integers(100, size=32)
        _, *plainly, _ = plain.step(item_N)
        seen_NS, *found, _ = shown.step(item_N)
        for one, other in zip(plainly, found, strict=True):
            np.testing.assert_array_equal(one, other)
        assert shown.observation_space.contains(seen_NS)
        searches += shown.shop.observer.unflatten(seen_NS)["events"][..., Event.SEARCH].sum()
    assert searches > 60 * 32  # of 6 interactions each, more than one


def test_interactions_stand_newest_first_and_a_word_by_itself() -> None:
    env = RecsysVectorEnv(4, **SEEN)
    env.reset(seed=0)
    features_IF, words = env.shop.catalogue.features_IF, env.shop.catalogue.keywords_IW.shape[1]
    memory = env.shop.blank_memory((3,))
    assert memory is not None
    longer = env.shop.remember(np, env.shop.lenses, memory, np.array([9, 9, 9]), np.array([4] * 3))
    assert longer is not None
    many = [1, 2, 3, 4, 5, 6, 7]
    browsing = Browsing(
        np.array([0, 0, *[2] * 7]), np.array([7, 8, *many]), np.array([0]), np.array([[5, 3, -1]])
    )
    browsing.remember(longer, 100)
    assert longer.items.tolist() == [[103, 105, 8, 7, 9, -1], [9, *[-1] * 5], many[:0:-1]]
    assert longer.events.tolist() == [[5, 5, 5, 5, 4, -1], [4, *[-1] * 5], [5] * 6]
    assert longer.counts[:, Event.SEARCH].tolist() == [4.0, 0.0, 7.0]
    assert env.shop.lenses is not None
    table = env.shop.lenses.features
    np.testing.assert_array_equal(table[8], features_IF[8])
    np.testing.assert_array_equal(table[103], np.eye(features_IF.shape[1])[-words + 3])
    assert not table[-1].any()


@pytest.mark.parametrize("mode", ["SameStep", "NextStep", "Disabled"])
def test_nobody_browses_when_her_session_is_over(mode: str) -> None:
    env = RecsysVectorEnv(16, **(SEEN | {"autoreset_mode": mode, "horizon": 7}))
    env.reset(seed=2)
    rng = np.random.default_rng(0)
    for _ in range(40):
        _, _, terminated_N, truncated_N, _ = env.step(rng.integers(100, size=16))
        over_N, browsing = terminated_N | truncated_N, env.browsing
        assert browsing is not None
        if mode != "SameStep":  # where somebody new is there already
            assert not over_N[browsing.viewer_B].any()
            assert not over_N[browsing.searcher_Q].any()
        if mode == "Disabled" and over_N.any():
            env.reset(options={"reset_mask": over_N})
            assert env.browsing is not None
            assert over_N[env.browsing.viewer_B].all()


def test_a_checkpoint_goes_on_with_the_same_browsing() -> None:
    env, other = RecsysVectorEnv(16, **SEEN), RecsysVectorEnv(16, **SEEN)
    env.reset(seed=4)
    item_LN = np.random.default_rng(0).integers(100, size=(30, 16))
    for item_N in item_LN[:10]:
        env.step(item_N)
    other.restore(env.checkpoint())
    for now, then in zip(other.browsing or (), env.browsing or (), strict=True):
        np.testing.assert_array_equal(now, then)
    for item_N in item_LN[10:]:
        np.testing.assert_array_equal(env.step(item_N)[0], other.step(item_N)[0])


def test_browsing_is_refused_where_nobody_sees_it() -> None:
    with pytest.raises(UsageError, match="observation=behaviour"):
        RecsysVectorEnv(2, organic_views=1.0)
    for make in (RecsysTorchEnv, RecsysGateVectorEnv, RecsysRetrieveVectorEnv):
        with pytest.raises(UsageError, match="leave them"):
            make(2, observation="behaviour", organic_views=1.0)


def test_what_some_slots_did_is_told_by_their_places() -> None:
    words_QW = np.array([[1, 2], [3, -1]])
    browsing = Browsing(np.array([0, 2, 2, 5]), np.arange(4), np.array([1, 5]), words_QW)
    some = browsing.of(np.array([2, 5]), 6)
    assert some.viewer_B.tolist() == [0, 0, 1]
    assert some.viewed_B.tolist() == [1, 2, 3]
    assert some.searcher_Q.tolist() == [1]
    assert some.words_QW.tolist() == [[3, -1]]
