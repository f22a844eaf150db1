"""Bandits that look at nobody: every item has one purchase rate, the same for all.

While they learn they explore. What they recommend afterwards is the item of the highest
rate, to everybody and on every step: that is what these algorithms find, and where shoppers
differ or tire of a category it is little. ``recommend`` shows the next best behind it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from agents.bandits.base import Bandit
from agents.bandits.exploration import Annealed, ucb1
from agents.bandits.posterior import BetaRates
from agents.base import POSITIVE, Agent, Callback
from agents.files import fitting, read_tensors, write_tensors
from recenv.vector_env import RecsysVectorEnv

Tensor = torch.Tensor


class ContextFree(Bandit):
    """Counts purchases and refusals of every item.

    Args:
        prior: purchases and refusals of each item that are imagined beforehand.
        forgetting: weight that an answer keeps with every newer one (to any item); 1 never
            forgets.
    """

    fits = ("num_items",)
    bounds = Bandit.bounds | {"prior": (POSITIVE, 1e9), "forgetting": (0.5, 1.0)}
    progress = (*Bandit.progress, "_rates")

    def __init__(self, *, prior: float = 1.0, forgetting: float = 1.0, **settings: Any):
        super().__init__(**settings)
        self.check(prior=prior, forgetting=forgetting)
        self.prior, self.forgetting = prior, forgetting
        self._rates: BetaRates | None = None

    def bind(self, vector_env: RecsysVectorEnv) -> None:
        super().bind(vector_env)
        if self._rates is None:
            self._rates = BetaRates(self.num_items, self._torch, self.prior, self.forgetting)

    @property
    def rates(self) -> BetaRates:
        """What is believed."""
        self.env  # noqa: B018 (says what to do where there is none)
        assert self._rates is not None
        return self._rates

    def score(self, observation: np.ndarray) -> np.ndarray:
        rate_I: np.ndarray = self.rates.mean_I.float().cpu().numpy()
        return np.tile(rate_I, (len(observation), 1))

    def absorb(self, observation: np.ndarray, item_N: np.ndarray, bought_N: np.ndarray) -> None:
        item = torch.as_tensor(item_N, device=self._torch)
        self.rates.add(item, torch.as_tensor(bought_N, device=self._torch))

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"prior": self.prior, "forgetting": self.forgetting}

    def _save(self, directory: Path) -> None:
        write_tensors(directory / "rates.safetensors", self.rates.state_dict())

    def _load(self, directory: Path) -> None:
        state = read_tensors(directory / "rates.safetensors", self._torch)
        self.rates.load_state_dict(fitting(state, self.rates.state_dict()))


class EpsilonGreedy(ContextFree):
    """Recommend the item of the highest purchase rate, and now and then a random one.

    Args:
        epsilon, final_epsilon, anneal: the share of random recommendations falls from the
            first to the second over this share of the steps; with the same for both it is
            constant.
    """

    name: ClassVar[str] = "epsilon_greedy"
    bounds = ContextFree.bounds | {
        "epsilon": (0.0, 1.0),
        "final_epsilon": (0.0, 1.0),
        "anneal": (0.0, 1.0),
    }
    progress = (*ContextFree.progress, "_steps")

    def __init__(
        self,
        *,
        epsilon: float = 0.5,
        final_epsilon: float = 0.05,
        anneal: float = 0.2,
        **settings: Any,
    ):
        super().__init__(**settings)
        self.check(epsilon=epsilon, final_epsilon=final_epsilon, anneal=anneal)
        self.epsilon, self.final_epsilon, self.anneal = epsilon, final_epsilon, anneal
        self._share = Annealed(epsilon, final_epsilon, 0.0)
        self._steps = 0

    def learn(self, total_timesteps: int, callback: Callback | None = None) -> Agent:
        self._share = Annealed(self.epsilon, self.final_epsilon, self.anneal * total_timesteps)
        return super().learn(total_timesteps, callback)

    def explored(self, observation: np.ndarray) -> np.ndarray:
        return self.score(observation)

    def explore(self, observation: np.ndarray) -> np.ndarray:
        return self.sometimes_random(super().explore(observation), self._share(self._steps))

    def propensity(self, item_N: np.ndarray) -> np.ndarray:
        share = self._share(self._steps)
        assert self._seen is not None
        best_N = super().explore(self._seen)
        share_N: np.ndarray = share / self.num_actions + (1.0 - share) * (item_N == best_N)
        return share_N

    def absorb(self, observation: np.ndarray, item_N: np.ndarray, bought_N: np.ndarray) -> None:
        super().absorb(observation, item_N, bought_N)
        self._steps += len(item_N)

    def settings(self) -> dict[str, Any]:
        names = ("epsilon", "final_epsilon", "anneal")
        return super().settings() | {name: getattr(self, name) for name in names}


class UCB1(ContextFree):
    """Recommend the item of the highest UCB1 index (Auer et al. 2002): purchase rate and
    alpha sqrt(2 ln n / n_i).

    Items that nobody has answered yet come first, in an order of its own for each shopper
    of a batch.

    Args:
        alpha: 1 is the original, which explores long.
    """

    name: ClassVar[str] = "ucb1"
    bounds = ContextFree.bounds | {"alpha": (0.0, 1e6)}

    def __init__(self, *, alpha: float = 1.0, **settings: Any):
        super().__init__(**settings)
        self.check(alpha=alpha)
        self.alpha = alpha

    def explored(self, observation: np.ndarray) -> Tensor:
        index_I = ucb1(self.rates.count_I, self.rates.bought_I, self.alpha)
        index_NI = index_I.expand(len(observation), -1)
        if not index_I.isinf().any():
            return index_NI
        luck_NI = torch.rand(index_NI.shape, generator=self._generator, device=self._torch)
        return torch.where(index_NI.isinf(), luck_NI, -1.0)

    def propensity(self, item_N: np.ndarray) -> np.ndarray:
        unanswered = int((self.rates.count_I == 0).sum())
        return np.full(len(item_N), 1.0 / max(unanswered, 1))

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"alpha": self.alpha}


class BetaTS(ContextFree):
    """Recommend the item of the highest purchase rate in a draw from the Beta posteriors
    (Thompson 1933), every shopper by a draw of her own."""

    name: ClassVar[str] = "beta_ts"

    def explored(self, observation: np.ndarray) -> Tensor:
        return self.rates.sample(len(observation), self.rng)
