"""Every learner beats chance by a margin, on a shop in which nothing changes."""

from __future__ import annotations

from functools import cache

import pytest

from agents.bandits.context_free import UCB1, BetaTS, EpsilonGreedy
from agents.bandits.ensemble_ts import EnsembleTS
from agents.bandits.lin_ts import LinTS
from agents.bandits.linucb import LinUCB
from agents.bandits.logistic_ts import LogisticTS
from agents.bandits.neural_linear_ts import NeuralLinearTS
from agents.base import Agent
from agents.dqn import DQNAgent
from agents.ppo import PPOAgent
from agents.references import MyopicOracle, Popularity, Random, Rotation
from agents.rollout import play
from agents.scorer import Scorer
from recenv.vector_env import RecsysVectorEnv

SHOP = {"num_items": 20, "num_categories": 4, "scenario": "static", "horizon": 20}


@cache
def earned(cls: type[Agent]) -> float:
    """The mean return of an agent that does not learn."""
    env = RecsysVectorEnv(1000, **SHOP)
    agent = cls()
    agent.bind(env)
    return float(play(agent, env, 1).return_E.mean())


@pytest.mark.parametrize(
    ("cls", "settings", "timesteps", "share"),
    [
        (Popularity, {"num_envs": 128}, 30_000, 0.08),
        (Rotation, {"num_envs": 128}, 60_000, 0.08),
        (EpsilonGreedy, {"num_envs": 64}, 20_000, 0.08),
        (UCB1, {"num_envs": 64}, 20_000, 0.08),
        (BetaTS, {"num_envs": 64}, 20_000, 0.08),
        (LinUCB, {"num_envs": 64}, 20_000, 0.9),
        (LinUCB, {"num_envs": 64, "disjoint": True, "alpha": 0.2}, 40_000, 0.8),
        (LinTS, {"num_envs": 64, "item_size": 16}, 20_000, 0.9),
        (LogisticTS, {"num_envs": 64, "item_size": 16}, 20_000, 0.9),
        (NeuralLinearTS, {"num_envs": 64}, 40_000, 0.9),
        (EnsembleTS, {"num_envs": 64, "members": 4}, 40_000, 0.85),
        (Scorer, {"num_envs": 64}, 40_000, 0.9),
        (PPOAgent, {"num_envs": 128}, 60_000, 0.8),
        (PPOAgent, {"num_envs": 128, "backend": "device"}, 60_000, 0.8),
        (DQNAgent, {"num_envs": 32, "learning_starts": 1000}, 40_000, 0.75),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_earns_its_share_of_what_can_be_earned(cls, settings, timesteps, share):
    """0 is the random agent, 1 the myopic oracle, which is the best where nothing changes."""
    agent = cls(device="cpu", **settings)
    agent.bind(RecsysVectorEnv(agent.num_envs, **SHOP))
    agent.learn(timesteps)
    value = play(agent, RecsysVectorEnv(1000, **SHOP), 1).return_E.mean()
    low, high = earned(Random), earned(MyopicOracle)
    assert high > low + 10
    assert (value - low) / (high - low) > share
