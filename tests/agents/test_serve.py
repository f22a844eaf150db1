"""Serving: every propensity that is told is the frequency with which an item is shown."""

from __future__ import annotations

import numpy as np
import pytest
from agent_cases import AGENTS, greet, make_agent, make_env

from agents.base import Agent, draw
from agents.ppo import PPOAgent
from agents.references import EpsilonOracle, MyopicOracle, Random
from recenv.errors import UsageError

ROUNDS = 600
N = 8


def tally(agent: Agent, observation: np.ndarray, **options: object) -> tuple[np.ndarray, ...]:
    """How often each item was shown to each shopper, and the propensity told of it (N, I)."""
    shown_NI = np.zeros((N, agent.num_items))
    told_NI = np.full((N, agent.num_items), np.nan)
    who = np.arange(N)
    for _ in range(ROUNDS):
        item_N, propensity_N = agent.serve(observation, **options)
        shown_NI[who, item_N] += 1
        before_N = told_NI[who, item_N]
        assert np.all(np.isnan(before_N) | np.isclose(before_N, propensity_N, rtol=1e-5))
        told_NI[who, item_N] = propensity_N
    return shown_NI / ROUNDS, told_NI


def agrees(share_NI: np.ndarray, told_NI: np.ndarray) -> None:
    """Assert that shares are those of ROUNDS draws, to 5 standard deviations, and whole."""
    known_NI = ~np.isnan(told_NI)
    p = told_NI[known_NI]
    spread = np.sqrt(p * (1.0 - p) / ROUNDS) + 1e-9
    assert (np.abs(share_NI[known_NI] - p) / spread).max() < 5.0
    whole_N = known_NI.all(axis=1)
    assert whole_N.any()
    np.testing.assert_allclose(told_NI[whole_N].sum(axis=1), 1.0, atol=1e-6)


@pytest.mark.parametrize("cls", AGENTS, ids=lambda cls: cls.name)
def test_propensities_are_frequencies(cls: type[Agent]) -> None:
    env = make_env(N)
    agent = make_agent(cls, env)
    observation = greet(env, steps=2)
    share_NI, told_NI = tally(agent, observation, explore=0.4)
    agrees(share_NI, told_NI)
    if cls is Random:
        np.testing.assert_allclose(told_NI[~np.isnan(told_NI)], 1 / 12)
    else:
        best = 0.6 * (0.7 if cls is EpsilonOracle else 1.0)
        best_N = MyopicOracle.predict(agent, observation)[0] if cls is EpsilonOracle else None
        best_N = agent.predict(observation)[0] if best_N is None else best_N
        np.testing.assert_allclose(told_NI[np.arange(N), best_N], best + (1 - best) / 12)


@pytest.mark.parametrize("explore", [0.0, 0.4])
def test_ppo_draws_from_its_own_probabilities(explore: float) -> None:
    env = make_env(N)
    agent = make_agent(PPOAgent, env, ent_coef=0.0, learning_rate=0.02)
    agent.learn(8000)
    observation = greet(env, steps=2)
    logit_NI = agent.score(observation).astype(float)
    own_NI = np.exp(logit_NI) / np.exp(logit_NI).sum(axis=1, keepdims=True)
    assert own_NI.max() > 0.15  # it is no coin by now
    share_NI, told_NI = tally(agent, observation, explore=explore, stochastic=True)
    known_NI = ~np.isnan(told_NI)
    wanted_NI = (1 - explore) * own_NI + explore / 12
    np.testing.assert_allclose(told_NI[known_NI], wanted_NI[known_NI], rtol=1e-5)
    spread = np.sqrt(wanted_NI * (1 - wanted_NI) / ROUNDS) + 1 / ROUNDS
    assert (np.abs(share_NI - wanted_NI) / spread).max() < 5.0


def test_without_exploring_the_best_item_is_certain() -> None:
    env = make_env(N)
    agent = make_agent(MyopicOracle, env)
    observation = greet(env)
    item_N, propensity_N = agent.serve(observation)
    np.testing.assert_array_equal(item_N, agent.predict(observation)[0])
    np.testing.assert_array_equal(propensity_N, 1.0)


def test_what_makes_no_sense_is_refused() -> None:
    env = make_env(N)
    agent = make_agent(MyopicOracle, env)
    observation = greet(env)
    with pytest.raises(UsageError, match="explore must lie in"):
        agent.serve(observation, 1.5)
    with pytest.raises(UsageError, match="no probabilities of its own"):
        agent.serve(observation, stochastic=True)


def test_drawing() -> None:
    rng = np.random.default_rng(0)
    probability_NI = np.tile([0.5, 0.0, 0.2, 0.3], (50_000, 1))
    share_I = np.bincount(draw(probability_NI, rng), minlength=4) / 50_000
    np.testing.assert_allclose(share_I, probability_NI[0], atol=0.01)
    assert share_I[1] == 0.0
