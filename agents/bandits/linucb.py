"""LinUCB (Li et al. 2010) on shopper x item features, with an intercept for every item."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from agents.bandits.posterior import BilinearRidge
from agents.base import MANY, POSITIVE, Agent, Callback, OnlineAgent, bought
from agents.features import OwnSatiation, item_features, principal_axes
from agents.files import fitting, read_tensors, write_tensors
from recenv.errors import UsageError
from recenv.vector_env import RecsysVectorEnv

ITEMS_AT_ONCE = 1024  # scored, so that memory stays bounded


class LinUCB(OnlineAgent):
    """Recommend the item with the highest upper confidence bound of the purchase rate.

    The purchase rate is linear in [1, shopper, satiation with the item's category]
    x [1, item features], plus an intercept per item. While it learns, ``alpha`` posterior
    standard deviations are added; what it recommends afterwards is the mean.

    Args:
        alpha: width of the confidence bound, in standard deviations.
        ridge: prior precision of the weights.
        item_ridge: prior precision of the items' intercepts.
        growth: the posterior is solved again when the data has grown by this share.
        shopper_size, item_size: the most features of a shopper and of an item; where there
            are more, their first principal components (of shoppers seen in ``warm_up``
            batches of random recommendations).
    """

    name: ClassVar[str] = "linucb"
    fits = ("num_items", "observation")
    bounds = OnlineAgent.bounds | {
        "alpha": (0.0, 1e6),
        "ridge": (POSITIVE, 1e9),
        "item_ridge": (POSITIVE, 1e9),
        "growth": (0.0, 1e6),
        "shopper_size": (1, MANY),
        "item_size": (1, MANY),
        "warm_up": (1, MANY),
    }

    def __init__(
        self,
        *,
        num_envs: int = 256,
        alpha: float = 0.5,
        ridge: float = 1.0,
        item_ridge: float = 1.0,
        growth: float = 0.15,
        shopper_size: int = 32,
        item_size: int = 64,
        warm_up: int = 20,
        **settings: Any,
    ):
        super().__init__(num_envs=num_envs, **settings)
        self.check(alpha=alpha, ridge=ridge, item_ridge=item_ridge, growth=growth)
        self.check(shopper_size=shopper_size, item_size=item_size, warm_up=warm_up)
        self.alpha, self.ridge, self.item_ridge = alpha, ridge, item_ridge
        self.growth, self.warm_up = growth, warm_up
        self.shopper_size, self.item_size = shopper_size, item_size
        self._posterior: BilinearRidge | None = None
        self._axes_SP: torch.Tensor | None = None
        self._waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._added = 0  # answers, and how many there were at the last solving
        self._solved_at = 0

    def bind(self, vector_env: RecsysVectorEnv) -> None:
        super().bind(vector_env)
        self._satiation = OwnSatiation(vector_env.shop, self._torch)
        (size,) = vector_env.single_observation_space.shape
        if self._posterior is None and size <= self.shopper_size:
            self._start(torch.eye(size, device=self._torch))

    def _start(self, axes_SP: torch.Tensor) -> None:
        """An empty posterior on observations projected on ``axes_SP``."""
        self._axes_SP = axes_SP
        feature_IG = torch.as_tensor(
            item_features(self.catalogue, self.item_size), device=self._torch
        )
        size = axes_SP.shape[1] + 2  # the constant and the satiation
        self._posterior = BilinearRidge(feature_IG, size, self.ridge, self.item_ridge)

    def _shopper(self, observation: torch.Tensor) -> torch.Tensor:
        """[1, projected observation], (N, P - 1)."""
        assert self._axes_SP is not None
        return torch.cat([torch.ones_like(observation[:, :1]), observation @ self._axes_SP], 1)

    @torch.no_grad()
    def _bound(self, observation: np.ndarray, alpha: float) -> np.ndarray:
        """Mean plus ``alpha`` standard deviations of every item's purchase rate, (N, I)."""
        posterior = self._posterior
        if posterior is None:
            return np.zeros((len(observation), self.num_items), dtype=np.float32)
        tensor = torch.as_tensor(observation, device=self._torch)
        x_NQ, satiation_NI = self._shopper(tensor), self._satiation(tensor)
        bounds = []
        for first in range(0, self.num_items, ITEMS_AT_ONCE):
            part = slice(first, min(first + ITEMS_AT_ONCE, self.num_items))
            own_NI = satiation_NI[:, part]
            x_NIQ = x_NQ[:, None, :].expand(-1, own_NI.shape[1], -1)
            x_NIP = torch.cat([x_NIQ, own_NI[:, :, None]], dim=2)
            bound_NI = posterior.mean(x_NIP, part)
            if alpha:
                bound_NI = bound_NI + alpha * posterior.deviation(x_NIP, part)
            bounds.append(bound_NI)
        bound: np.ndarray = torch.cat(bounds, dim=1).cpu().numpy()
        return bound

    def score(self, observation: np.ndarray) -> np.ndarray:
        return self._bound(observation, alpha=0.0)

    def explore(self, observation: np.ndarray) -> np.ndarray:
        if self._posterior is None:
            return self.rng.integers(self.num_items, size=len(observation))
        item_N: np.ndarray = np.argmax(self._bound(observation, self.alpha), axis=1)
        return item_N

    def update(
        self,
        observation: np.ndarray,
        item_N: np.ndarray,
        reward_N: np.ndarray,
        done_N: np.ndarray,
        info: dict[str, Any],
    ) -> None:
        batch = (observation, item_N, bought(info))
        if self._posterior is None:
            self._wait(batch)
        else:
            self._add(*batch)

    def _wait(self, batch: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        """Keep random recommendations until there are enough to find the axes."""
        self._waiting.append(batch)
        if len(self._waiting) >= self.warm_up:
            self._find_axes()

    def _find_axes(self) -> None:
        seen = np.concatenate([observation for observation, _, _ in self._waiting])
        axes_SP = principal_axes(seen, min(self.shopper_size, seen.shape[1]))
        self._start(torch.as_tensor(axes_SP, device=self._torch))
        for waiting in self._waiting:
            self._add(*waiting)
        self._waiting = []

    @torch.no_grad()
    def _add(self, observation: np.ndarray, item_N: np.ndarray, bought_N: np.ndarray) -> None:
        posterior = self._posterior
        assert posterior is not None
        tensor = torch.as_tensor(observation, device=self._torch)
        item = torch.as_tensor(item_N, device=self._torch)
        own_N = self._satiation.of(tensor, item)
        x_NP = torch.cat([self._shopper(tensor), own_N[:, None]], dim=1)
        posterior.add(x_NP, item, torch.as_tensor(bought_N, device=self._torch))
        self._added += len(item_N)
        if self._added > (1.0 + self.growth) * self._solved_at:
            self._solve()

    @torch.no_grad()
    def _solve(self) -> None:
        """Make all that was added felt."""
        if self._posterior is not None and self._added > self._solved_at:
            self._posterior.solve()
            self._solved_at = self._added

    def learn(self, total_timesteps: int, callback: Callback | None = None) -> Agent:
        super().learn(total_timesteps, callback)
        if self._waiting:  # too few for the warm-up, and all there are
            self._find_axes()
        self._solve()
        return self

    def settings(self) -> dict[str, Any]:
        names = ("alpha", "ridge", "item_ridge", "growth", "shopper_size", "item_size", "warm_up")
        return super().settings() | {name: getattr(self, name) for name in names}

    def _save(self, directory: Path) -> None:
        if self._posterior is None or self._axes_SP is None:
            raise UsageError("linucb has learned nothing that could be saved: call learn() first")
        self._solve()
        state = {"axes_SP": self._axes_SP, **self._posterior.state_dict()}
        write_tensors(directory / "posterior.safetensors", state)

    def _load(self, directory: Path) -> None:
        state = read_tensors(directory / "posterior.safetensors", self._torch)
        self._start(state.pop("axes_SP"))
        assert self._posterior is not None
        self._posterior.load_state_dict(fitting(state, self._posterior.state_dict()))
        self._added = self._solved_at = int(self._posterior.count_I.sum())
