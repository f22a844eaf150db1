"""LinUCB: its features, its bounds, and catalogues and observations that are large."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agent_cases import greet, make_agent, make_env

from agents import features
from agents.bandits.lin_ts import LinTS
from agents.bandits.linucb import LinUCB
from agents.bandits.posterior import Context, ItemRidge

CPU = torch.device("cpu")


def test_own_satiation_is_that_of_the_items_category():
    env = make_env(6, scenario="satiation")
    observation = greet(env, steps=6)
    category_I = env.shop.catalogue.category_I
    expected_NI = env.state.satiation[:, category_I] / env.shop.dynamics.satiation_gain
    assert expected_NI.max() > 0.5
    own = features.OwnSatiation(env.shop, CPU)
    tensor = torch.as_tensor(observation)
    np.testing.assert_allclose(own(tensor), expected_NI, rtol=1e-6)
    item_N = np.array([0, 11, 3, 3, 7, 5])
    np.testing.assert_allclose(
        own.of(tensor, torch.as_tensor(item_N)), expected_NI[np.arange(6), item_N], rtol=1e-6
    )


def test_own_satiation_is_nothing_where_the_observation_does_not_tell():
    env = make_env(6, observation="behaviour", history=3)
    own = features.OwnSatiation(env.shop, CPU)
    tensor = torch.as_tensor(greet(env, steps=6))
    assert own(tensor).shape == (6, 12)
    assert not own(tensor).any()
    assert not own.of(tensor, torch.arange(6)).any()


def test_principal_axes_keep_what_varies_most():
    rng = np.random.default_rng(0)
    plane = np.linalg.qr(rng.standard_normal((7, 2)))[0].T
    table = rng.standard_normal((500, 2)) * [3.0, 2.0] @ plane + 5.0
    noisy = (table + 0.01 * rng.standard_normal(table.shape)).astype(np.float32)
    axes = features.principal_axes(noisy, 2)
    assert axes.shape == (7, 2)
    component = noisy @ axes
    assert component.var(axis=0).mean() == pytest.approx(1.0, rel=1e-3)
    # the two components say all that the seven columns do
    fit = np.column_stack([np.ones(500), component])
    residual = noisy - fit @ np.linalg.lstsq(fit, noisy, rcond=None)[0]
    assert residual.std() < 0.02


def test_item_features_are_those_of_the_catalogue_or_fewer():
    catalogue = make_env().shop.catalogue
    f = catalogue.features_IF.shape[1]
    np.testing.assert_array_equal(features.item_features(catalogue, f), catalogue.features_IF)
    assert features.item_features(catalogue, 5).shape == (12, 5)


def test_bound_is_mean_and_deviation_of_every_item():
    agent = make_agent(LinUCB, alpha=2.0)
    agent.learn(640)
    observation = greet(agent.env, steps=3)
    tensor = torch.as_tensor(observation)
    context = Context(torch.cat([torch.ones(32, 1), tensor], dim=1), agent._satiation(tensor))
    mean_NI = agent._posterior.mean(context).numpy()
    np.testing.assert_allclose(agent.score(observation), mean_NI, atol=1e-5)
    wide_NI = agent._posterior.deviation(context).numpy()
    assert (wide_NI > 0).all()
    bound_NI = agent.explored(observation).numpy()
    np.testing.assert_allclose(bound_NI, mean_NI + 2 * wide_NI, atol=1e-5)
    np.testing.assert_array_equal(agent.explore(observation), bound_NI.argmax(1))


def test_linear_bandits_differ_in_their_exploration_alone():
    """With one log of answers they believe the same, to the last bit."""
    ucb, thompson = make_agent(LinUCB, item_size=8), make_agent(LinTS, item_size=8)
    for agent in (ucb, thompson):
        rng = np.random.default_rng(0)
        for seed in range(5):
            observation = greet(agent.env, seed)
            item_N = rng.integers(12, size=32)
            agent.absorb(observation, item_N, (rng.random(32) < 0.4).astype(np.float32))
        agent._solve()
    observation = greet(ucb.env, 9)
    np.testing.assert_array_equal(ucb.score(observation), thompson.score(observation))
    own = {name for name in vars(LinUCB) if not name.startswith("_")}
    assert own == {"name", "exploration", "propensity"}  # what it draws nothing for
    assert {name for name in vars(LinTS) if not name.startswith("_")} == {"name", "exploration"}
    assert (ucb.explored(observation) != thompson.explored(observation)).any()
    np.testing.assert_array_equal(ucb.explored(observation), ucb.explored(observation))
    assert (thompson.explored(observation) != thompson.explored(observation)).all()


def test_explores_what_it_knows_least():
    agent = make_agent(LinUCB, alpha=100.0, growth=0.15)
    agent.learn(640)
    observation = greet(agent.env)
    shown_I = agent._posterior.sums.count_I.numpy()
    assert shown_I.min() >= 20  # of 640 / 12 = 53 on average
    greedy = make_agent(LinUCB, alpha=0.0, growth=0.15)
    greedy.learn(640)
    assert greedy._posterior.sums.count_I.numpy().min() < 20
    np.testing.assert_array_equal(greedy.explore(observation), greedy.predict(observation)[0])


def test_every_answer_is_felt_at_the_end_of_learning():
    agent = make_agent(LinUCB, growth=1e6)
    agent.learn(640)
    assert int(agent._posterior.sums.count_I.sum()) == 640
    observation = greet(agent.env)
    before = agent.score(observation)
    agent._posterior.solve()
    np.testing.assert_array_equal(agent.score(observation), before)


@pytest.mark.parametrize(
    "shop", [{"observation": "behaviour", "history": 3}, {}], ids=["behaviour", "latent"]
)
def test_wide_observations_are_projected(shop):
    env = make_env(**shop)
    agent = make_agent(LinUCB, env, shopper_size=4, warm_up=5)
    observation = greet(env)
    assert not agent.score(observation).any()
    explored = np.concatenate([agent.explore(observation) for _ in range(20)])
    assert set(explored) == set(range(12))  # at random, until the axes are found
    stages: list[bool] = []
    agent.learn(640, lambda timesteps: stages.append(agent._posterior is None) or True)
    assert stages == [True] * 4 + [False] * 16
    assert agent._axes_SP.shape == (observation.shape[1], 4)
    assert agent._posterior.sums.x_IP.shape == (12, 4 + 2)
    assert int(agent._posterior.sums.count_I.sum()) == 640  # those of the warm-up too
    assert np.ptp(agent.score(observation), axis=1).min() > 0


def test_ten_thousand_items():
    env = make_env(64, num_items=10_000, num_categories=10)
    agent = make_agent(LinUCB, env, item_size=8, growth=10.0)
    agent.learn(6 * 64)
    observation = greet(env)
    score_NI = agent.score(observation)
    assert score_NI.shape == (64, 10_000)
    assert np.isfinite(score_NI).all()
    items, scores = agent.recommend(observation, 10)
    np.testing.assert_array_equal(scores, -np.sort(-score_NI, axis=1)[:, :10])
    assert items.shape == (64, 10)


def test_disjoint_items_learn_nothing_from_each_other():
    agent = make_agent(LinUCB, disjoint=True, growth=0.0)
    observation = greet(agent.env)
    agent.absorb(observation, np.full(32, 3), np.ones(32, dtype=np.float32))
    assert isinstance(agent._posterior, ItemRidge)
    score_NI = agent.score(observation)
    assert (score_NI[:, 3] > 0.5).all()
    assert not np.delete(score_NI, 3, axis=1).any()


def test_forgetful_bandits_solve_as_often_as_they_forget():
    """Where only the latest answers count, they count soon."""
    agent = make_agent(LinUCB, forgetting=0.99, growth=0.5)
    agent.learn(3200)
    assert agent._remembered == pytest.approx(100, rel=0.3)
    assert agent._posterior.sums.count_I.sum().item() == pytest.approx(100, rel=0.3)
    solved: list[int] = []
    agent.learn(640, lambda timesteps: solved.append(agent._unsolved) or True)
    assert max(solved) <= 32
