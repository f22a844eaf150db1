"""DQN (Mnih et al. 2015) from stable-baselines3, on the native vector environment."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3 import DQN

from agents.sb3_bridge import SB3Agent

HYPERPARAMETERS = (
    "learning_rate",
    "buffer_size",
    "learning_starts",
    "batch_size",
    "train_freq",
    "gradient_steps",
    "target_update_interval",
    "gamma",
    "exploration_fraction",
    "exploration_final_eps",
)


class PerShopperDQN(DQN):
    """DQN that explores for each shopper by herself.

    stable-baselines3 draws once for the whole batch, so that all shoppers explore or none.
    """

    explorer: np.random.Generator

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        item_N, state = self.policy.predict(observation, state, episode_start, True)
        if deterministic:
            return item_N, state
        explores_N = self.explorer.random(len(item_N)) < self.exploration_rate
        random_N = self.explorer.integers(self.action_space.n, size=len(item_N))
        return np.where(explores_N, random_N, item_N), state


class DQNAgent(SB3Agent):
    """Q-learning with a replay buffer.

    Args: those of ``SB3Agent`` and of stable-baselines3's DQN. Rewards are scaled so that
    its Huber loss is quadratic over the values that occur: else it underweights the charge
    for leaving.
    """

    name: ClassVar[str] = "dqn"
    algorithm = PerShopperDQN
    activation = torch.nn.ReLU

    def __init__(
        self,
        *,
        num_envs: int = 64,
        reward_scale: float = 0.1,
        learning_rate: float = 1e-3,
        buffer_size: int = 200_000,
        learning_starts: int = 5_000,
        batch_size: int = 512,
        train_freq: int = 4,
        gradient_steps: int = 4,
        target_update_interval: int = 2_000,
        gamma: float = 0.95,
        exploration_fraction: float = 0.3,
        exploration_final_eps: float = 0.05,
        **settings: Any,
    ):
        super().__init__(num_envs=num_envs, reward_scale=reward_scale, **settings)
        given = locals()
        self.given = {name: given[name] for name in HYPERPARAMETERS}

    @property
    def model(self) -> DQN:
        model = super().model
        model.explorer = self.rng
        return model

    def hyperparameters(self) -> dict[str, Any]:
        return self.given

    def score_tensor(self, observation: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = self.model.q_net(observation)
        return values

    def settings(self) -> dict[str, Any]:
        return super().settings() | self.given
