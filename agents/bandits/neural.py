"""What the neural bandits share: towers, a log, and gradient steps on samples of it."""

from __future__ import annotations

import math
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from agents.bandits.base import Bandit
from agents.base import MANY, POSITIVE, Agent, Callback, rows_in_memory, torch_seeded
from agents.features import OwnSatiation
from agents.files import fitting, read_tensors, write_tensors
from agents.scorer import Log
from recenv.vector_env import RecsysVectorEnv

Tensor = torch.Tensor
SETTINGS = (
    "width",
    "hidden",
    "learning_rate",
    "weight_decay",
    "batch_size",
    "gradient_steps",
    "log_rows",
)


class Towers(nn.Module):
    """Purchase log odds of M networks at once: the dot product of what a dense layer makes of
    the shopper and of what the item's id and features are, a bias per item, and a weight of
    the satiation with its category.

    Args:
        members: M.
        observation_size: S.
        feature_IF: public item features.
        width: W, of the towers' outputs.
        hidden: of the shopper's dense layer.
        spread: standard deviation of the item embeddings at first.
    """

    feature_IF: Tensor

    def __init__(
        self,
        members: int,
        observation_size: int,
        feature_IF: Tensor,
        width: int,
        hidden: int,
        spread: float = 0.1,
    ):
        super().__init__()
        self.register_buffer("feature_IF", feature_IF, persistent=False)
        items, features = feature_IF.shape

        def weights(*shape: int, scale: float) -> nn.Parameter:
            return nn.Parameter(scale * torch.randn(members, *shape))

        self.dense = weights(observation_size, hidden, scale=math.sqrt(2 / observation_size))
        self.dense_bias = weights(1, hidden, scale=0.1)
        self.out = weights(hidden, width, scale=1 / math.sqrt(hidden))
        self.item_id = weights(items, width, scale=spread)
        self.item_feature = weights(features, width, scale=spread)
        self.item_bias = weights(1, items, scale=spread)
        self.own = weights(1, 1, scale=spread)

    def shoppers(self, observation: Tensor) -> Tensor:
        """(N, S) -> (M, N, W)."""
        hidden: Tensor = torch.relu(observation @ self.dense + self.dense_bias) @ self.out
        return hidden

    def items(self) -> Tensor:
        """(M, I, W)."""
        return self.item_id + self.feature_IF @ self.item_feature

    def pairs(self, observation: Tensor, own_N: Tensor, item_N: Tensor) -> Tensor:
        """Log odds (M, N) of one item each."""
        dot_MN = (self.shoppers(observation) * self.items()[:, item_N]).sum(2)
        return dot_MN + self.item_bias[:, 0, item_N] + self.own[:, 0] * own_N

    def all_items(self, observation: Tensor, own_NI: Tensor) -> Tensor:
        """Log odds (M, N, I) of every item."""
        dot_MNI = torch.baddbmm(
            self.item_bias, self.shoppers(observation), self.items().transpose(1, 2)
        )
        return dot_MNI + self.own * own_NI


class NeuralBandit(Bandit):
    """A bandit with networks that learn from a log of its answers.

    Args:
        width, hidden: of the towers and of the shopper's dense layer.
        gradient_steps: on ``batch_size`` answers from the log, whenever ``num_envs`` new ones
            have arrived.
        log_rows: how many answers it remembers, which is how it forgets; observations that
            are too wide for the memory (``agents.base.MEMORY``) leave room for fewer.
    """

    fits = ("num_items", "observation")
    bounds = Bandit.bounds | {
        "width": (1, 65_536),
        "hidden": (1, 65_536),
        "learning_rate": (POSITIVE, 10.0),
        "weight_decay": (0.0, 10.0),
        "batch_size": (1, MANY),
        "gradient_steps": (0, MANY),
        "log_rows": (1, MANY),
    }
    progress = (*Bandit.progress, "_towers", "_optimiser", "_log")
    members = 1

    def __init__(
        self,
        *,
        width: int = 16,
        hidden: int = 64,
        learning_rate: float = 3e-3,
        weight_decay: float = 1e-6,
        batch_size: int = 1024,
        gradient_steps: int = 2,
        log_rows: int = 1_000_000,
        **settings: Any,
    ):
        super().__init__(**settings)
        self.width, self.hidden = width, hidden
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.batch_size, self.gradient_steps = batch_size, gradient_steps
        self.log_rows = log_rows
        self.check(**{name: getattr(self, name) for name in SETTINGS})
        self._towers: Towers | None = None
        self._log: Log | None = None

    def bind(self, vector_env: RecsysVectorEnv) -> None:
        super().bind(vector_env)
        self._satiation = OwnSatiation(vector_env.shop, self._torch)
        if self._towers is None:
            self._start()

    def _start(self) -> None:
        """Networks that have learned nothing."""
        with torch_seeded(self.seed):
            self._towers = self._network(self.members)
        self._optimiser = torch.optim.Adam(
            self._towers.parameters(),
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
            fused=True,
        )

    def _network(self, members: int, spread: float = 0.1) -> Towers:
        (size,) = self.env.single_observation_space.shape
        features_IF = torch.as_tensor(self.catalogue.features_IF)
        return Towers(members, size, features_IF, self.width, self.hidden, spread).to(self._torch)

    @property
    def towers(self) -> Towers:
        self.env  # noqa: B018 (says what to do where there is none)
        assert self._towers is not None
        return self._towers

    def learn(self, total_timesteps: int, callback: Callback | None = None) -> Agent:
        if self._log is None:
            (size,) = self.env.single_observation_space.shape
            rows = min(self.log_rows, total_timesteps + self.env.num_envs)
            self._log = Log(min(rows, rows_in_memory(2 * size)), size)
        return super().learn(total_timesteps, callback)

    def _prepare(self, kept: dict[str, Any]) -> None:
        super()._prepare(kept)
        self._log = Log(0, 0) if kept["_log"] is not None else None

    def absorb(self, observation: np.ndarray, item_N: np.ndarray, bought_N: np.ndarray) -> None:
        assert self._log is not None
        self._log.add(observation, np.zeros_like(item_N), item_N, bought_N)
        batches = max(round(len(item_N) / self.num_envs), 1)
        losses = [self._gradient_step(self._log) for _ in range(self.gradient_steps * batches)]
        if self.logger is not None and losses:
            self.logger.record_mean("train/loss", float(torch.stack(losses).mean()))

    def _gradient_step(self, log: Log) -> Tensor:
        row = self.rng.integers(len(log), size=self.batch_size)
        seen, own_N, item_N, bought_N = self._rows(log, row)
        log_odds_MN = self.log_odds(seen, own_N, item_N)
        loss_MN = nn.functional.binary_cross_entropy_with_logits(
            log_odds_MN, bought_N.expand_as(log_odds_MN), reduction="none"
        )
        loss = self.weighted(loss_MN, row)
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()
        return loss.detach()

    def _rows(self, log: Log, row: np.ndarray) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Observations, satiation with the item's category, items and answers."""
        seen = torch.as_tensor(log.observation[row].astype(np.float32), device=self._torch)
        item_N = torch.as_tensor(log.item[row], device=self._torch)
        bought_N = torch.as_tensor(log.bought[row], device=self._torch)
        return seen, self._satiation.of(seen, item_N), item_N, bought_N

    def log_odds(self, seen: Tensor, own_N: Tensor, item_N: Tensor) -> Tensor:
        """What the networks say of one item each, (M, N)."""
        return self.towers.pairs(seen, own_N, item_N)

    @abstractmethod
    def weighted(self, loss_MN: Tensor, row: np.ndarray) -> Tensor:
        """The loss, from that of every network on every answer."""

    def settings(self) -> dict[str, Any]:
        return super().settings() | {name: getattr(self, name) for name in SETTINGS}

    def _save(self, directory: Path) -> None:
        write_tensors(directory / "networks.safetensors", self.towers.state_dict())

    def _load(self, directory: Path) -> None:
        state = read_tensors(directory / "networks.safetensors", self._torch)
        self.towers.load_state_dict(fitting(state, self.towers.state_dict()))
