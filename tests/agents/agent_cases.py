"""Small shops and small agents, for the tests of every agent."""

from __future__ import annotations

from typing import Any

import numpy as np

from agents.bandits.context_free import UCB1, BetaTS, EpsilonGreedy
from agents.bandits.ensemble_ts import EnsembleTS
from agents.bandits.lin_ts import LinTS
from agents.bandits.linucb import LinUCB
from agents.bandits.logistic_ts import LogisticTS
from agents.bandits.neural_linear_ts import NeuralLinearTS
from agents.base import Agent
from agents.baselines.item_content import ItemContent
from agents.baselines.mf import MF
from agents.baselines.user_cf import UserCF
from agents.dqn import DQNAgent
from agents.maskable_ppo import MaskablePPOAgent
from agents.planning import PlanningOracle
from agents.ppo import PPOAgent
from agents.qrdqn import QRDQNAgent
from agents.references import (
    EpsilonOracle,
    IndexPolicy,
    MyopicOracle,
    Popularity,
    Random,
    Rotation,
)
from agents.scorer import Scorer
from recenv.vector_env import RecsysVectorEnv

SMALL_PPO = {"num_envs": 32, "n_steps": 8, "minibatches": 2, "n_epochs": 1, "net_arch": [16]}
SMALL_DQN = {
    "num_envs": 32,
    "learning_starts": 128,
    "buffer_size": 4000,
    "batch_size": 64,
    "target_update_interval": 256,
    "net_arch": [16],
}
SMALL: dict[type[Agent], dict[str, Any]] = {
    Random: {"num_envs": 32},
    MyopicOracle: {"num_envs": 32},
    EpsilonOracle: {"num_envs": 32, "epsilon": 0.3},
    IndexPolicy: {"num_envs": 32, "weight": 0.5},
    PlanningOracle: {
        "num_envs": 32,
        "policy": "value",
        "rounds": 2,
        "shoppers": 16,
        "memory": 2,
        "epochs": 1,
        "shortlist": 2,
        "hidden": 8,
        "tuning_shoppers": 8,
    },
    Popularity: {"num_envs": 32},
    UserCF: {"num_envs": 32, "warm_up": 100, "neighbours": 5, "pool": 40},
    ItemContent: {"num_envs": 32, "warm_up": 100, "neighbours": 5, "pool": 40},
    MF: {"num_envs": 32, "warm_up": 100, "neighbours": 5, "pool": 40, "factors": 3},
    Rotation: {"num_envs": 32, "length": 5, "pool": 10},
    EpsilonGreedy: {"num_envs": 32},
    UCB1: {"num_envs": 32},
    BetaTS: {"num_envs": 32},
    LinUCB: {"num_envs": 32, "warm_up": 4, "item_size": 16},
    LinTS: {"num_envs": 32, "warm_up": 4, "item_size": 8},
    LogisticTS: {"num_envs": 32, "warm_up": 4, "item_size": 4, "growth": 0.5},
    NeuralLinearTS: {"num_envs": 32, "width": 4, "hidden": 8, "batch_size": 64},
    EnsembleTS: {"num_envs": 32, "members": 3, "width": 4, "hidden": 8, "batch_size": 64},
    Scorer: {"num_envs": 32, "width": 8, "hidden": 16, "batch_size": 64},
    PPOAgent: SMALL_PPO,
    MaskablePPOAgent: SMALL_PPO,
    DQNAgent: SMALL_DQN,
    QRDQNAgent: SMALL_DQN | {"quantiles": 5},
}
AGENTS = list(SMALL)
ORACLES = [MyopicOracle, EpsilonOracle, IndexPolicy, PlanningOracle]
AT_RANDOM = (Random, EpsilonOracle)  # even when they are asked to be deterministic
CONTEXT_FREE = [EpsilonGreedy, UCB1, BetaTS]
LINEAR = [LinUCB, LinTS, LogisticTS]
BANDITS = [*CONTEXT_FREE, *LINEAR, NeuralLinearTS, EnsembleTS]
BASELINES = [UserCF, ItemContent, MF]
ON_SB3 = [PPOAgent, MaskablePPOAgent, DQNAgent, QRDQNAgent]
LEARNERS = [Popularity, Rotation, *BASELINES, *BANDITS, Scorer, *ON_SB3]
# A shop in which everything happens soon.
SHOP = {"num_items": 12, "num_categories": 3, "interest_dim": 4, "horizon": 8}


def make_env(num_envs: int = 32, **keywords: Any) -> RecsysVectorEnv:
    """The small shop, with other keywords on top."""
    return RecsysVectorEnv(num_envs, **(SHOP | keywords))


def make_agent(cls: type[Agent], env: RecsysVectorEnv | None = None, **settings: Any) -> Agent:
    """A small agent, bound to ``env`` (the small shop by default)."""
    agent = cls(**(SMALL[cls] | {"device": "cpu"} | settings))
    agent.bind(make_env(agent.num_envs) if env is None else env)
    if isinstance(agent, PlanningOracle):
        agent.learn(0)  # it has no plan before
    return agent


def greet(env: RecsysVectorEnv, seed: int = 1, steps: int = 0) -> np.ndarray:
    """What is seen after ``steps`` random recommendations."""
    observation, _ = env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        observation = env.step(rng.integers(env.shop.num_items, size=env.num_envs))[0]
    return observation


def one_line(error: BaseException) -> str:
    """The message of an error, which must be one line."""
    message = str(error)
    assert message
    assert "\n" not in message
    return message
