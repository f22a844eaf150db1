"""What bounds the possible, and the simple rules that learning must beat."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from agent_cases import greet, make_agent, make_env, one_line

import agents
from agents.references import (
    EpsilonOracle,
    IndexPolicy,
    MyopicOracle,
    Popularity,
    PurchaseRates,
    Random,
    Rotation,
)
from agents.rollout import play
from recenv.catalogue import Catalogue
from recenv.errors import UsageError
from recenv.population import Population
from recenv.scenarios import SCENARIOS
from recenv.vector_env import RecsysVectorEnv
from recenv.world import World, write

SECRETS = {
    "state",
    "traits",
    "appeal_I",
    "quality_I",
    "embedding_ID",
    "world",
    "tables",
    "clientele",
    "population",
}


def test_only_references_read_what_is_secret():
    """No agent but the oracles, and the filter that bounds all others, knows the shop's secrets."""
    root = Path(agents.__file__).parent
    readers = {
        file.relative_to(root).as_posix()
        for file in root.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in SECRETS
        and "bit_generator" not in ast.unparse(node)  # whose state is no shopper's
    }
    assert readers == {"references.py", "planning.py", "interest/filter.py"}
    # and the filter knows the law alone, not the shopper
    source = ast.parse((root / "interest" / "filter.py").read_text())
    read = {node.attr for node in ast.walk(source) if isinstance(node, ast.Attribute)}
    assert not read & {"state", "clientele"}


# --- random --------------------------------------------------------------------------


def test_random_is_uniform():
    env = make_env(6000)
    agent = make_agent(Random, env)
    observation = greet(env)
    for item_N in (agent.predict(observation)[0], agent.recommend(observation, 3)[0][:, 2]):
        count_I = np.bincount(item_N, minlength=12)
        assert np.abs(count_I - 500).max() < 5 * (500 * 11 / 12) ** 0.5
    assert (agent.predict(observation)[0] != agent.predict(observation)[0]).any()


# --- oracles -------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_myopic_oracle_never_regrets_a_step(scenario):
    env = make_env(64, scenario=scenario, reveal=True)
    agent = make_agent(MyopicOracle, env)
    observation, _ = env.reset(seed=2)
    for _ in range(12):
        item_N, _ = agent.predict(observation)
        observation, _, _, _, info = env.step(item_N)
        told = info.get("final_info", info)
        np.testing.assert_allclose(told["regret"], 0.0, atol=1e-6)
    env.step(np.zeros(64, dtype=np.int64))
    assert env.step(np.zeros(64, dtype=np.int64))[-1]["regret"].max() > 0.1


def test_myopic_oracle_ranks_by_the_true_probabilities():
    env = make_env(16, scenario="full", reveal=True)
    observation = greet(env, steps=3)
    item_NI, score_NI = make_agent(MyopicOracle, env).recommend(observation, 12)
    probability_NI = np.zeros((16, 12))
    for item in range(12):
        twin = make_env(16, scenario="full", reveal=True)
        greet(twin, steps=3)
        info = twin.step(np.full(16, item))[-1]
        probability_NI[:, item] = info["purchase_probability"]
    ranked_NI = np.take_along_axis(probability_NI, item_NI, axis=1)
    assert (np.diff(ranked_NI, axis=1) <= 1e-6).all()
    np.testing.assert_allclose(1 / (1 + np.exp(-score_NI)), ranked_NI, atol=1e-5)


@pytest.mark.parametrize("cls", [MyopicOracle, IndexPolicy])
def test_oracles_recommend_only_to_those_they_see_through(cls):
    agent = make_agent(cls)
    observation = greet(agent.env)
    for some in (observation[:3], observation[0]):
        with pytest.raises(UsageError, match="32 shoppers") as error:
            agent.predict(some)
        one_line(error.value)
    unseen = make_env(32)
    with pytest.raises(UsageError, match="reset"), agent.acting_in(unseen):
        agent.predict(observation)


def test_epsilon_oracle_is_random_as_often_as_it_says():
    env = make_env(6000, scenario="static")
    observation = greet(env)
    best_N, _ = make_agent(MyopicOracle, env).predict(observation)
    agent = make_agent(EpsilonOracle, env, epsilon=0.3)
    item_N, _ = agent.predict(observation)
    other_N = item_N != best_N
    # a random item is the best one in one case of twelve
    assert other_N.mean() == pytest.approx(0.3 * 11 / 12, abs=0.03)
    assert (agent.predict(observation)[0] != item_N).any()
    assert np.bincount(item_N[other_N], minlength=12).min() > 50
    np.testing.assert_array_equal(
        make_agent(EpsilonOracle, env, epsilon=0.0).predict(observation)[0], best_N
    )


def test_epsilon_oracle_pays_for_exploring_while_it_is_judged():
    env = make_env(2000, scenario="static")
    greedy, some, all_random = (
        play(make_agent(EpsilonOracle, env, epsilon=epsilon), env, 3).return_E.mean()
        for epsilon in (0.0, 0.3, 1.0)
    )
    assert greedy == play(make_agent(MyopicOracle, env), env, 3).return_E.mean()
    assert some == pytest.approx(0.7 * greedy + 0.3 * all_random, abs=0.3)
    assert greedy - all_random > 3.0


def test_index_policy_weighs_quality():
    env = make_env(64)
    observation = greet(env, steps=2)
    utility_NI = make_agent(MyopicOracle, env).score(observation)
    np.testing.assert_array_equal(
        make_agent(IndexPolicy, env, weight=0.0).score(observation), utility_NI
    )
    quality_I = env.shop.catalogue.quality_I
    np.testing.assert_allclose(
        make_agent(IndexPolicy, env, weight=1.5).score(observation), utility_NI + 1.5 * quality_I
    )


def test_index_policy_must_be_tuned_first():
    agent = make_agent(IndexPolicy, weight=None)
    with pytest.raises(UsageError, match="learn") as error:
        agent.predict(greet(agent.env))
    one_line(error.value)


def test_index_policy_is_tuned_to_a_twentieth_on_other_shoppers():
    shop = {"scenario": "trust", "num_items": 30, "horizon": 20}
    weights = []
    for num_envs in (7, 40):  # whoever is in the bound environment does not matter
        env = make_env(num_envs, **shop)
        agent = make_agent(IndexPolicy, env, weight=None, tuning_shoppers=300)
        env.reset(seed=num_envs)
        before = env.shopper_id_N.copy()
        agent.learn(0)
        np.testing.assert_array_equal(env.shopper_id_N, before)
        weights.append(agent.weight)
    assert weights[0] == weights[1]
    assert weights[0] * 20 == pytest.approx(round(weights[0] * 20), abs=1e-9)
    assert weights[0] > 0
    judged = make_env(1000, **shop)
    tuned, greedy = (
        play(make_agent(IndexPolicy, judged, weight=weight), judged, 9).return_E.mean()
        for weight in (weights[0], 0.0)
    )
    assert tuned > greedy + 2.0  # trust rewards the look ahead
    # what is given is not tuned
    agent = make_agent(IndexPolicy, weight=0.123)
    agent.learn(0)
    assert agent.weight == 0.123


# --- popularity ----------------------------------------------------------------------


def test_purchase_rates_are_shrunk():
    rates = PurchaseRates(4)
    rates.add(np.array([0, 0, 0, 0, 1, 2, 2]), np.array([1, 1, 1, 0, 1, 0, 0]))
    # (bought + 1) / (shown + 2): 4/6, 2/3, 1/4, 1/2; of equals the first item comes first
    np.testing.assert_array_equal(rates.best(4), [0, 1, 3, 2])
    np.testing.assert_array_equal(rates.best(2), [0, 1])
    np.testing.assert_array_equal(rates.best(9), [0, 1, 3, 2])


def test_popularity_shows_the_ten_best_of_its_log_in_turn():
    env = make_env(32, num_items=30, horizon=25, scenario="static")
    agent = make_agent(Popularity, env)
    agent.learn(4000)
    log = agent.log
    assert log.shown_I.sum() == 4000
    assert log.shown_I.min() > 5  # a fifth of them at random
    rate_I = (log.bought_I + 1) / (log.shown_I + 2)
    ten = np.argsort(-rate_I, kind="stable")[:10]
    np.testing.assert_array_equal(agent.cycle, ten)
    shown = []
    observation, _ = env.reset(seed=4)
    for _ in range(24):
        item_N, _ = agent.predict(observation)
        assert len(set(item_N)) == 1
        shown.append(item_N[0])
        observation = env.step(item_N)[0]
    np.testing.assert_array_equal(shown, np.tile(ten, 3)[:24])
    # the list of what to show next: the rest of the cycle in its order
    np.testing.assert_array_equal(agent.recommend(observation, 10)[0][0], np.roll(ten, -4))


def test_popularity_logs_purchases():
    env = make_env(32, scenario="static")
    agent = make_agent(Popularity, env, epsilon=1.0)
    agent.learn(30_000)
    conversion = agent.log.bought_I.sum() / agent.log.shown_I.sum()
    random = play(make_agent(Random, make_env(3000, scenario="static")), make_env(3000), 3)
    assert conversion == pytest.approx(random.purchases_E.sum() / random.length_E.sum(), abs=0.06)
    assert agent.log.bought_I.max() <= agent.log.shown_I.max()


# --- rotation ------------------------------------------------------------------------


def tiny_world(path: Path, appeal_I: list[float]) -> str:
    """A world file of items that differ in appeal and category alone."""
    items = len(appeal_I)
    catalogue = Catalogue(
        category_I=np.arange(items),
        brand_I=np.zeros(items, dtype=np.int64),
        price_I=np.ones(items, dtype=np.float32),
        keywords_IW=np.zeros((items, 1), dtype=np.float32),
        appeal_I=np.array(appeal_I, dtype=np.float32),
        quality_I=np.zeros(items, dtype=np.float32),
        embedding_ID=np.tile(np.float32([1.0, 0.0]), (items, 1)),
        num_categories=items,
    )
    population = Population(
        weight_C=np.ones(1, dtype=np.float32),
        centre_CD=np.float32([[0.0, 1.0]]),
        spread_CD=np.zeros((1, 2), dtype=np.float32),
        price_sensitivity=0.0,
        base_rate_spread=0.0,
    )
    world = World("tiny", catalogue, population, interest_weight=0.0, difficulty=0.0)
    write(world, path)
    return str(path)


def test_rotation_finds_the_best_constant_item(tmp_path):
    world = tiny_world(tmp_path / "one.npz", [-3.0, -1.0, 2.0, 0.5, -2.0])
    env = RecsysVectorEnv(64, world=world, scenario="static", horizon=10)
    agent = make_agent(Rotation, env, num_envs=64)
    agent.learn(30_000)
    np.testing.assert_array_equal(agent.cycle, [2])


def test_rotation_takes_turns_where_shoppers_tire(tmp_path):
    world = tiny_world(tmp_path / "two.npz", [-6.0, 2.0, -6.0, 2.0, -6.0])
    env = RecsysVectorEnv(
        64, world=world, scenario="satiation", satiation_gain=6.0, satiation_decay=0.1, horizon=10
    )
    agent = make_agent(Rotation, env, num_envs=64)
    agent.learn(30_000)
    assert sorted(agent.cycle) == [1, 3]
    both = play(agent, env, 3).return_E.mean()
    agent.cycle = agent.cycle[:1]
    assert both > play(agent, env, 3).return_E.mean() + 2.0


@pytest.mark.parametrize("rounds", [5, 3.9, 0.1])
@pytest.mark.parametrize("shares", [(0.2, 0.3), (1.0, 1.0), (0.0, 0.0), (0.5, 0.5)])
def test_rotation_says_how_many_steps_it_took(shares, rounds):
    env = make_env(32, scenario="static")
    taken: list[int] = []
    step = env.step
    env.step = lambda item_N: taken.append(len(item_N)) or step(item_N)
    agent = make_agent(Rotation, env, warm_up=shares[0], final=shares[1])
    told: list[int] = []
    agent.learn(int(rounds * 32 * 8), lambda timesteps: told.append(timesteps) or True)
    # whole rounds, and three at the least
    assert told[-1] == sum(taken) == max(int(rounds), 3) * 32 * 8


def test_rotation_that_is_stopped_has_a_cycle():
    agent = make_agent(Rotation)
    agent.learn(10 * 32 * 8, lambda timesteps: False)
    assert len(set(agent.cycle)) == 5


@pytest.mark.parametrize("cycle", [[99], [-1], [0.5], [[1, 2]], [], ["tea"]])
def test_cycles_of_no_items_are_refused(cycle, tmp_path):
    agent = make_agent(Popularity)
    agent.save(tmp_path)
    np.save(tmp_path / "cycle.npy", np.array(cycle))
    with pytest.raises(UsageError, match="train it again") as error:
        Popularity.load(tmp_path, agent.env)
    one_line(error.value)
