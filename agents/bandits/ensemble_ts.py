"""Thompson sampling with an ensemble of networks (Osband et al. 2016, 2018)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from agents.bandits.neural import NeuralBandit
from agents.base import POSITIVE, torch_seeded
from agents.files import fitting, read_tensors, write_tensors
from recenv.vector_env import RecsysVectorEnv

Tensor = torch.Tensor


class EnsembleTS(NeuralBandit):
    """Recommend, to every shopper for a session, by a network of an ensemble drawn for her.

    The networks differ by the answers that each is shown (a bootstrap mask) and by a random
    network that is added to each and never learns (its prior): they agree where there are
    many answers. What is recommended after the learning is the mean of their probabilities.

    Args:
        members: networks in the ensemble.
        mask: the share of the answers that each network is shown.
        prior_scale: what the random networks are multiplied by.
    """

    name: ClassVar[str] = "ensemble_ts"
    bounds = NeuralBandit.bounds | {
        "members": (1, 1000),
        "mask": (POSITIVE, 1.0),
        "prior_scale": (0.0, 1e6),
    }
    progress = (*NeuralBandit.progress, "_prior", "_member_N", "_shown_RM")

    def __init__(
        self,
        *,
        members: int = 6,
        mask: float = 0.5,
        prior_scale: float = 0.5,
        batch_size: int = 512,
        **settings: Any,
    ):
        super().__init__(batch_size=batch_size, **settings)
        self.check(members=members, mask=mask, prior_scale=prior_scale)
        self.members, self.mask, self.prior_scale = members, mask, prior_scale
        self._member_N: np.ndarray | None = None
        self._shown_RM: np.ndarray | None = None

    def _start(self) -> None:
        super()._start()
        with torch_seeded(self.seed + 1):
            self._prior = self._network(self.members, spread=1 / np.sqrt(self.width))
        self._prior.requires_grad_(False)

    def _begin(self, env: RecsysVectorEnv) -> None:
        super()._begin(env)
        self._member_N = None  # new sessions

    def update(
        self,
        observation: np.ndarray,
        item_N: np.ndarray,
        reward_N: np.ndarray,
        done_N: np.ndarray,
        info: dict[str, Any],
    ) -> None:
        if self._member_N is not None:
            self._member_N = np.where(done_N, self._members(len(done_N)), self._member_N)
        super().update(observation, item_N, reward_N, done_N, info)

    def _members(self, shoppers: int) -> np.ndarray:
        """A network for each of so many shoppers."""
        return self.rng.integers(self.members, size=shoppers)

    @torch.no_grad()
    def explored(self, observation: np.ndarray) -> Tensor:
        if self._member_N is None or len(self._member_N) != len(observation):
            self._member_N = self._members(len(observation))
        member = torch.as_tensor(self._member_N, device=self._torch)
        log_odds_MNI = self._all_items(observation)
        return log_odds_MNI[member, torch.arange(len(member), device=self._torch)]

    def _all_items(self, observation: np.ndarray) -> Tensor:
        """Log odds (M, N, I) of every network."""
        seen = torch.as_tensor(observation, device=self._torch)
        own_NI = self._satiation(seen)
        log_odds_MNI = self.towers.all_items(seen, own_NI)
        return log_odds_MNI.add_(self._prior.all_items(seen, own_NI), alpha=self.prior_scale)

    @torch.no_grad()
    def score(self, observation: np.ndarray) -> np.ndarray:
        self.env  # noqa: B018 (says what to do where there is none)
        rate_NI: np.ndarray = self._all_items(observation).sigmoid_().mean(0).cpu().numpy()
        return rate_NI

    def log_odds(self, seen: Tensor, own_N: Tensor, item_N: Tensor) -> Tensor:
        prior_MN = self._prior.pairs(seen, own_N, item_N)
        return super().log_odds(seen, own_N, item_N) + self.prior_scale * prior_MN

    def weighted(self, loss_MN: Tensor, row: np.ndarray) -> Tensor:
        assert self._log is not None
        if self._shown_RM is None:
            rows = len(self._log.item)
            self._shown_RM = self.rng.random((rows, self.members), np.float32) < self.mask
        shown_MN = torch.as_tensor(self._shown_RM[row].T, device=self._torch)
        return (loss_MN * shown_MN).sum() / (self.mask * len(row))

    def settings(self) -> dict[str, Any]:
        own = {"members": self.members, "mask": self.mask, "prior_scale": self.prior_scale}
        return super().settings() | own

    def _save(self, directory: Path) -> None:
        super()._save(directory)
        write_tensors(directory / "priors.safetensors", self._prior.state_dict())

    def _load(self, directory: Path) -> None:
        super()._load(directory)
        state = read_tensors(directory / "priors.safetensors", self._torch)
        self._prior.load_state_dict(fitting(state, self._prior.state_dict()))
