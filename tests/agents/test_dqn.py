"""DQN explores for each shopper by herself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agent_cases import greet, make_agent, make_env

from agents import base
from agents.dqn import DQNAgent


def test_explores_for_each_shopper_of_one_batch():
    env = make_env(2000)
    agent = make_agent(DQNAgent, env)
    observation = greet(env)
    greedy_N = agent.predict(observation)[0]
    for rate in (0.0, 0.5, 1.0):
        agent.model.exploration_rate = rate
        item_N = agent.predict(observation, deterministic=False)[0]
        # an exploring shopper is shown the greedy item once in twelve times
        assert (item_N != greedy_N).mean() == pytest.approx(rate * 11 / 12, abs=0.05)
        np.testing.assert_array_equal(agent.predict(observation)[0], greedy_N)
    count_I = np.bincount(item_N, minlength=12)
    assert np.abs(count_I - 2000 / 12).max() < 5 * (2000 / 12) ** 0.5
    agent.model.exploration_rate = 0.5
    one, two = (agent.predict(observation, deterministic=False)[0] for _ in range(2))
    assert ((one != greedy_N) != (two != greedy_N)).mean() > 0.3  # others explore next time


def test_explores_while_it_learns():
    env = make_env(32)
    agent = make_agent(DQNAgent, env, exploration_fraction=1.0, exploration_final_eps=0.5)
    shown: list[np.ndarray] = []
    step = env.step
    env.step = lambda item_N: shown.append(np.array(item_N)) or step(item_N)
    rates: list[float] = []
    agent.learn(3200, lambda timesteps: rates.append(agent.model.exploration_rate) or True)
    rates = rates[1:]  # the first is set after the first batch
    assert rates[0] > 0.95
    assert rates[-1] == pytest.approx(0.5, abs=0.02)
    assert rates == sorted(rates, reverse=True)
    # no batch in which all explore or none: the greedy item stays the commonest one
    commonest = [np.bincount(item_N).max() / 32 for item_N in shown[-10:]]
    assert 0.1 < np.mean(commonest) < 0.9
    assert all(len(set(item_N)) > 4 for item_N in shown[-10:])


def test_a_single_shopper_may_be_explored_with():
    agent = make_agent(DQNAgent)
    agent.model.exploration_rate = 1.0
    observation = greet(agent.env)[0]
    items = {int(agent.model.predict(observation)[0]) for _ in range(200)}
    assert items == set(range(12))


def test_scores_are_the_action_values():
    agent = make_agent(DQNAgent)
    agent.model.exploration_rate = 1.0
    observation = greet(agent.env)
    with torch.no_grad():
        value_NI = agent.model.q_net(torch.as_tensor(observation)).numpy()
    np.testing.assert_array_equal(agent.score(observation), value_NI)
    np.testing.assert_array_equal(
        agent.predict(observation)[0], agent.model.predict(observation, deterministic=True)[0]
    )


def test_replay_buffer_stays_within_memory(monkeypatch):
    env = make_env(32, observation="behaviour", history=3)
    (size,) = env.single_observation_space.shape
    monkeypatch.setattr(base, "MEMORY", 640 * 2 * 4 * size)
    agent = make_agent(DQNAgent, env, buffer_size=10_000)
    buffer = agent.model.replay_buffer
    assert buffer.observations.nbytes + buffer.next_observations.nbytes == 640 * 2 * 4 * size
    assert agent.settings()["buffer_size"] == 10_000
