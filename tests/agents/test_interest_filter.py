"""The Bayes filter: what could be known of an interest, and what a policy makes of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agent_cases import SHOP, make_agent, make_env

from agents.interest.filter import BayesFilter, Belief, FilterReader, cuts, filtered
from agents.interest.histories import record
from agents.interest.probe import probe, raw_sums
from agents.ppo import PPOAgent
from agents.references import Random
from agents.rollout import play
from recenv import dynamics as physics
from recenv.dynamics import Event
from recenv.organic import word_vectors
from recenv.vector_env import RecsysVectorEnv

BEHAVIOUR = {"observation": "behaviour", "history": 4, "scenario": "full"}
BROWSING = BEHAVIOUR | {"history": 8, "organic_views": 1.0, "organic_searches": 0.3}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_filter_answers_as_shoppers_do():
    """Its likelihood, at the true state, is how often each answer comes."""
    env = make_env(20_000, scenario="static")
    env.reset(seed=0)
    utility_N = physics.utilities(
        np, env.shop.dynamics, env.state, env.traits, env.shop.items(np, env.shop.tables)
    )[:, 3]
    *_, info = env.step(np.full(20_000, 3))
    low, high = cuts(env.shop)
    answers = 5
    share = [
        (physics.sigmoid(np, utility_N + high[e]) - physics.sigmoid(np, utility_N + low[e])).mean()
        for e in range(answers)
    ]
    assert sum(share) == pytest.approx(1.0)
    np.testing.assert_allclose(np.bincount(info["event"], minlength=5) / 20_000, share, atol=0.012)


def test_a_filter_that_knows_the_shop_knows_most():
    env = RecsysVectorEnv(200, **SHOP | {"horizon": 20}, scenario="full", world_seed=100)
    told, steps = record(Random(), env, 12_000, 0, rng(), 1.0, truth=True), [0, 10, 19]
    known = filtered(told, env.shop, steps, rng(), 256)
    assert known.shape == (600, 3, 4)
    first_SD = known[:, 0]  # before anything happened all are alike, up to the particles
    assert first_SD.std(axis=0).max() < 0.1
    left, truth = known[:, 2] - told.interest_STD[:, 19], told.interest_STD[:, 19]
    spread = truth - truth.mean(axis=0)
    assert (left**2).sum() < 0.6 * (spread**2).sum()
    sums = raw_sums(told, env.shop.catalogue.features_IF, 20, [10, 19])
    raw = probe(sums, told, [10, 19])
    assert probe(known[:, 1:], told, [10, 19]).r2 > raw.r2 + 0.05


def test_what_is_certain_is_known_exactly():
    """Satiation and satisfaction follow from what she bought."""
    env = make_env(64, **BEHAVIOUR)
    env.reset(seed=0)
    knows = BayesFilter(env.shop, 8)
    belief = knows.begin(64, rng())
    for _ in range(SHOP["horizon"] - 1):
        item_N = rng(5).integers(env.shop.num_items, size=64)
        *_, info = env.step(item_N)
        belief = knows.advance(belief, item_N, info["event"], rng(1))
    np.testing.assert_allclose(belief.satiation_NK, env.state.satiation, atol=1e-5)
    np.testing.assert_allclose(belief.satisfaction_N, env.state.satisfaction, atol=1e-5)
    assert (belief.satiation_NK > 0).any()


def test_a_purchase_moves_belief_toward_the_item_and_a_refusal_away():
    env = make_env(1, **BEHAVIOUR | {"scenario": "static"})
    knows = BayesFilter(env.shop, 4096)
    item_N, vector = np.zeros(1, dtype=int), env.shop.tables.embedding[0]
    liked = {}
    for event in (Event.PURCHASE, Event.VIEW, Event.NOT_INTERESTED):
        belief = knows.begin(1, rng())
        for _ in range(3):
            belief = knows.advance(belief, item_N, np.array([event]), rng(1))
        liked[event] = float(belief.interest_ND[0] @ vector)
    assert liked[Event.PURCHASE] > liked[Event.VIEW] + 0.1
    assert liked[Event.VIEW] > liked[Event.NOT_INTERESTED] + 0.1


def test_what_she_looks_and_searches_for_moves_belief_and_takes_no_time():
    env = make_env(1, **BROWSING | {"scenario": "full"})
    shop, draw = env.shop, rng(1)
    knows, vector = BayesFilter(shop, 4096), shop.tables.embedding[0]
    word = int(shop.catalogue.keywords_IW[0].argmax())
    word_D = word_vectors(shop.catalogue)[word]
    before = knows.advance(knows.begin(1, rng()), np.zeros(1, int), np.array([4]), draw)
    search = np.array([int(Event.SEARCH)])
    for number, toward_D in ((0, vector), (shop.num_items + word, word_D)):
        after = knows.advance(before, np.array([number]), search, rng(2))
        assert after.interest_ND[0] @ toward_D > before.interest_ND[0] @ toward_D + 0.03
        np.testing.assert_array_equal(after.satiation_NK, before.satiation_NK)
        np.testing.assert_array_equal(after.satisfaction_N, before.satisfaction_N)


def test_the_likelihood_of_a_view_and_of_a_word_adds_up_to_one():
    env = make_env(1, **BROWSING | {"scenario": "full"})
    items, words = env.shop.num_items, env.shop.view.words
    knows = BayesFilter(env.shop, 5)
    for numbers in (range(items), range(items, items + words)):
        one = knows.begin(1, rng())
        same = Belief(*(np.repeat(leaf, len(numbers), axis=0) for leaf in one))
        told_nP = knows._chosen_nP(same, np.array(numbers))
        np.testing.assert_allclose(np.exp(told_nP).sum(axis=0), 1.0, rtol=1e-6)


def test_the_reader_takes_in_what_she_does_by_herself():
    """With it more is known of her interest than without."""
    left = {}
    for name, keywords in (("with", BROWSING), ("without", BEHAVIOUR)):
        env = make_env(256, **keywords)
        reader, memory = FilterReader(env.shop, 0), None
        observation, _ = env.reset(seed=1)
        for _ in range(6):
            told, memory = reader.follow(observation, memory)
            truth_ND = env.state.interest * 2.0
            observation, *_ = env.step(rng(5).integers(12, size=256))
        left[name] = ((told[:, :4] - truth_ND) ** 2).mean()
    assert left["with"] < left["without"] - 0.1


def test_the_reader_begins_anew_with_each_session_and_goes_on_from_its_memory():
    env = make_env(16, **BEHAVIOUR)
    reader = FilterReader(env.shop, 0)
    observation, _ = env.reset(seed=1, options={"first_session_steps": rng().integers(1, 9, 16)})
    memory = None
    for _ in range(20):
        told, memory = reader.follow(observation, memory)
        began_N = observation[:, 7:].sum(axis=1) == 0
        assert told.shape == (16, reader.size)
        assert np.isfinite(told).all()
        observation, *_ = env.step(rng(5).integers(12, size=16))
        if began_N.any() and not began_N.all():
            # of a newcomer next to nothing is known, of the others something
            assert told[began_N, :4].std() < told[~began_N, :4].std()
    one, two = (FilterReader(env.shop, 0).follow(observation, memory) for _ in range(2))
    np.testing.assert_array_equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    other, _ = FilterReader(env.shop, 1).follow(observation, memory)
    assert (other != one[0]).any()


def test_reading_a_window_anew_tells_about_the_same():
    """What it remembers, and what it makes of a window that holds the session."""
    env = make_env(256, **BEHAVIOUR | {"history": SHOP["horizon"]})
    reader = FilterReader(env.shop, 0)
    observation, _ = env.reset(seed=1)
    memory = None
    for _ in range(5):
        told, memory = reader.follow(observation, memory)
        observation, *_ = env.step(rng(5).integers(12, size=256))
    told, _ = reader.follow(observation, memory)
    alone, _ = reader.follow(observation, None)
    np.testing.assert_allclose(told[:, 4:7], alone[:, 4:7], atol=1e-5)  # satiation
    for d in range(4):  # interest, up to the noise of particles
        assert np.corrcoef(told[:, d], alone[:, d])[0, 1] > 0.8


def test_a_policy_behind_it_learns_and_is_kept(tmp_path):
    agent = make_agent(PPOAgent, make_env(**BEHAVIOUR), encoder="bayes")
    agent.learn(2048)
    before = play(agent, make_env(40, **BEHAVIOUR), 5)
    agent.save(tmp_path / "agent")
    loaded = PPOAgent.load(tmp_path / "agent", make_env(7, **BEHAVIOUR))
    after = play(loaded, make_env(40, **BEHAVIOUR), 5)
    np.testing.assert_array_equal(before.shown_I, after.shown_I)
