"""Neural-linear Thompson sampling (Riquelme et al. 2018): learned features, and a Bayesian
regression on them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from agents.bandits.exploration import Thompson
from agents.bandits.neural import NeuralBandit
from agents.bandits.posterior import BilinearRidge, Context, LogisticLaplace
from agents.base import POSITIVE, Agent, Callback
from agents.files import fitting, read_tensors, write_tensors

Tensor = torch.Tensor
ROWS_AT_ONCE = 65_536  # of the log, whose features are in memory while they are counted


class NeuralLinearTS(NeuralBandit):
    """Recommend the item with the highest log odds of a purchase in a draw from the posterior
    of the weights between the shopper's tower and the item's.

    The towers go on learning; now and then they are copied, and the posterior is made anew
    from the log and the copy, by Laplace's approximation around what the network says.

    Args:
        alpha: how far it explores, in posterior standard deviations; 0 is greedy.
        ridge: prior precision of the weights and of the items' intercepts.
        growth: the posterior is made again when the answers have grown by this share.
    """

    name: ClassVar[str] = "neural_linear_ts"
    bounds = NeuralBandit.bounds | {
        "alpha": (0.0, 1e6),
        "ridge": (POSITIVE, 1e9),
        "growth": (0.0, 1e6),
    }
    progress = (*NeuralBandit.progress, "_features", "_posterior", "_known")

    def __init__(
        self, *, alpha: float = 0.5, ridge: float = 1.0, growth: float = 0.2, **settings: Any
    ):
        super().__init__(**settings)
        self.check(alpha=alpha, ridge=ridge, growth=growth)
        self.alpha, self.ridge, self.growth = alpha, ridge, growth
        self._explore = Thompson(alpha)
        self._known = 0  # answers in the posterior

    def _start(self) -> None:
        super()._start()
        self._copy_towers()

    @torch.no_grad()
    def _copy_towers(self) -> None:
        """A posterior without answers on a copy of the towers."""
        self._features = copy.deepcopy(self.towers)
        ridge = BilinearRidge(self._features.items()[0], self.width + 2, self.ridge, self.ridge)
        self._posterior = LogisticLaplace(ridge)

    @torch.no_grad()
    def _renew(self) -> None:
        """The posterior of all that is in the log."""
        log = self._log
        if log is None or log.count == self._known:
            return
        self._copy_towers()
        for row in np.array_split(np.arange(len(log)), len(log) // ROWS_AT_ONCE + 1):
            seen, own_N, item_N, bought_N = self._rows(log, row)
            log_odds_N = self._features.pairs(seen, own_N, item_N)[0]
            x_NP = torch.cat([self._shopper(seen), own_N[:, None]], dim=1)
            self._posterior.add_linearised(x_NP, item_N, bought_N, log_odds_N)
        self._posterior.solve()
        self._known = log.count

    def _shopper(self, seen: Tensor) -> Tensor:
        """[1, shopper's tower], (N, W + 1)."""
        return torch.cat([torch.ones_like(seen[:, :1]), self._features.shoppers(seen)[0]], dim=1)

    def _context(self, observation: np.ndarray) -> Context:
        seen = torch.as_tensor(observation, device=self._torch)
        return Context(self._shopper(seen), self._satiation(seen))

    @torch.no_grad()
    def score(self, observation: np.ndarray) -> np.ndarray:
        self.env  # noqa: B018 (says what to do where there is none)
        mean_NI: np.ndarray = self._posterior.mean(self._context(observation)).cpu().numpy()
        return mean_NI

    @torch.no_grad()
    def explored(self, observation: np.ndarray) -> Tensor:
        return self._explore(self._posterior, self._context(observation), self._generator)

    def absorb(self, observation: np.ndarray, item_N: np.ndarray, bought_N: np.ndarray) -> None:
        super().absorb(observation, item_N, bought_N)
        assert self._log is not None
        if self._log.count > (1.0 + self.growth) * self._known:
            self._renew()

    def weighted(self, loss_MN: Tensor, row: np.ndarray) -> Tensor:
        return loss_MN.mean()

    def learn(self, total_timesteps: int, callback: Callback | None = None) -> Agent:
        super().learn(total_timesteps, callback)
        self._renew()
        return self

    def settings(self) -> dict[str, Any]:
        own = {"alpha": self.alpha, "ridge": self.ridge, "growth": self.growth}
        return super().settings() | own

    def _save(self, directory: Path) -> None:
        """The copy of the towers, on which the posterior is."""
        write_tensors(directory / "networks.safetensors", self._features.state_dict())
        write_tensors(directory / "posterior.safetensors", self._posterior.state_dict())

    def _load(self, directory: Path) -> None:
        super()._load(directory)
        self._copy_towers()
        state = read_tensors(directory / "posterior.safetensors", self._torch)
        self._posterior.load_state_dict(fitting(state, self._posterior.state_dict()))
