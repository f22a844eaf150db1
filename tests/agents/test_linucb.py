"""LinUCB: its features, its bounds, and catalogues and observations that are large."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agent_cases import greet, make_agent, make_env

from agents import features
from agents.bandits import linucb
from agents.bandits.linucb import LinUCB

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


def test_bound_is_mean_and_deviation_of_every_item(monkeypatch):
    agent = make_agent(LinUCB)
    agent.learn(640)
    observation = greet(agent.env, steps=3)
    low, high = agent._bound(observation, 0.0), agent._bound(observation, 2.0)
    np.testing.assert_array_equal(agent.score(observation), low)
    one = np.ones((32, 12, 1), dtype=np.float32)
    own = agent._satiation(torch.as_tensor(observation)).numpy()[:, :, None]
    x_NIP = torch.as_tensor(
        np.concatenate([one, np.repeat(observation[:, None], 12, axis=1), own], axis=2)
    )
    every = slice(0, 12)
    np.testing.assert_allclose(low, agent._posterior.mean(x_NIP, every), atol=1e-5)
    wide = agent._posterior.deviation(x_NIP, every).numpy()
    assert (wide > 0).all()
    np.testing.assert_allclose(high - low, 2 * wide, atol=1e-5)
    monkeypatch.setattr(linucb, "ITEMS_AT_ONCE", 5)
    np.testing.assert_allclose(agent._bound(observation, 2.0), high, atol=1e-5)


def test_explores_what_it_knows_least():
    agent = make_agent(LinUCB, alpha=100.0)
    agent.learn(640)
    observation = greet(agent.env)
    shown_I = agent._posterior.count_I.numpy()
    assert shown_I.min() >= 20  # of 640 / 12 = 53 on average
    greedy = make_agent(LinUCB, alpha=0.0)
    greedy.learn(640)
    assert greedy._posterior.count_I.numpy().min() < 20
    np.testing.assert_array_equal(greedy.explore(observation), greedy.predict(observation)[0])


def test_every_answer_is_felt_at_the_end_of_learning():
    agent = make_agent(LinUCB, growth=1e6)
    agent.learn(640)
    assert int(agent._posterior.count_I.sum()) == 640
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
    assert agent._posterior.x_IP.shape == (12, 4 + 2)
    assert int(agent._posterior.count_I.sum()) == 640  # those of the warm-up too
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
