"""PPO: minibatches and scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agent_cases import greet, make_agent, make_env

from agents.ppo import PPOAgent


@pytest.mark.parametrize(
    ("num_envs", "minibatches", "size"), [(32, 2, 128), (64, 8, 64), (2, 4, 4)]
)
def test_minibatches_grow_with_the_shoppers(num_envs, minibatches, size):
    env = make_env(num_envs)
    agent = make_agent(PPOAgent, env, num_envs=num_envs, minibatches=minibatches)
    assert agent.model.batch_size == size
    assert agent.model.n_steps == 8


def test_scores_are_the_policys_log_odds():
    agent = make_agent(PPOAgent)
    agent.learn(512)
    observation = greet(agent.env, steps=3)
    with torch.no_grad():
        policy = agent.model.policy.get_distribution(torch.as_tensor(observation)).distribution
    score_NI = agent.score(observation)
    log_share_NI = score_NI - np.log(np.exp(score_NI).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(log_share_NI, policy.logits, atol=1e-5)
    np.testing.assert_array_equal(
        agent.predict(observation)[0], agent.model.predict(observation, deterministic=True)[0]
    )


def test_samples_from_its_policy_when_asked():
    env = make_env(3000, num_items=5, num_categories=None)
    agent = make_agent(PPOAgent, env)
    observation = np.repeat(greet(env)[:1], 3000, axis=0)
    score_I = agent.score(observation)[0]
    share_I = np.exp(score_I) / np.exp(score_I).sum()
    item_N, _ = agent.predict(observation, deterministic=False)
    found_I = np.bincount(item_N, minlength=5) / 3000
    np.testing.assert_allclose(found_I, share_I, atol=0.05)
    assert len(set(agent.predict(observation)[0])) == 1


@pytest.mark.parametrize("settings", [{}, {"backend": "device"}, {"head": "two_tower"}])
def test_the_learning_rate_falls_in_a_straight_line(settings):
    agent = make_agent(PPOAgent, learning_rate=0.01, anneal=0.2, **settings)
    rates = {}

    def note(timesteps):
        rates[timesteps] = agent.model.policy.optimizer.param_groups[0]["lr"]
        return True

    agent.learn(1000, note)  # four rollouts, the last of which ends beyond
    note(1024)
    found = [rates[steps] for steps in (544, 800, 1024)]  # after two rollouts, three, all
    assert found == pytest.approx([0.01 * (1 - 0.8 * done) for done in (0.512, 0.768, 1.0)])


def test_a_learning_rate_that_stays_is_a_plain_number():
    agent = make_agent(PPOAgent, learning_rate=0.01)
    agent.learn(512)
    assert agent.model.learning_rate == 0.01
    assert agent.model.policy.optimizer.param_groups[0]["lr"] == 0.01
