"""PPO (Schulman et al. 2017) from stable-baselines3, on the native vector environment."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from stable_baselines3 import PPO

from agents.sb3_bridge import SB3Agent

HYPERPARAMETERS = (
    "n_steps",
    "n_epochs",
    "learning_rate",
    "gamma",
    "gae_lambda",
    "ent_coef",
    "clip_range",
)


class PPOAgent(SB3Agent):
    """Proximal policy optimisation with large minibatches of many shoppers.

    Args: those of ``SB3Agent`` and of stable-baselines3's PPO; ``minibatches`` replaces
    its ``batch_size``, so that the number of shoppers can change alone.
    """

    name: ClassVar[str] = "ppo"
    algorithm = PPO

    def __init__(
        self,
        *,
        n_steps: int = 25,
        minibatches: int = 8,
        n_epochs: int = 5,
        learning_rate: float = 3e-3,
        gamma: float = 0.97,
        gae_lambda: float = 0.9,
        ent_coef: float = 0.0,
        clip_range: float = 0.2,
        **settings: Any,
    ):
        super().__init__(**settings)
        self.minibatches = minibatches
        given = locals()
        self.given = {name: given[name] for name in HYPERPARAMETERS}

    def hyperparameters(self) -> dict[str, Any]:
        batch_size = max(self.num_envs * self.given["n_steps"] // self.minibatches, 2)
        return self.given | {"batch_size": batch_size}

    def score_tensor(self, observation: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model.policy.get_distribution(observation).distribution.logits
        return logits

    def settings(self) -> dict[str, Any]:
        return super().settings() | self.given | {"minibatches": self.minibatches}
