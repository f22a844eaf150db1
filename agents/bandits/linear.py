"""What the linear bandits share: features, posterior, and when it is solved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.bandits.base import Answers, Bandit
from agents.bandits.exploration import Thompson, UpperBound
from agents.bandits.posterior import BilinearRidge, Context, ItemRidge, LogisticLaplace
from agents.base import MANY, POSITIVE, Agent, Callback
from agents.features import OwnSatiation, item_features
from agents.files import fitting, read_tensors, write_tensors
from recenv.catalogue import principal_axes
from recenv.errors import UsageError
from recenv.vector_env import RecsysVectorEnv

Tensor = torch.Tensor
SETTINGS = (
    "alpha",
    "disjoint",
    "ridge",
    "item_ridge",
    "forgetting",
    "growth",
    "shopper_size",
    "item_size",
    "warm_up",
)


class LinearBandit(Bandit):
    """A bandit whose answers are linear in [1, shopper, satiation with the item's category]
    x [1, item features], plus an intercept per item.

    Subclasses say how they explore. What is recommended after the learning is the mean.

    Args:
        alpha: how far it explores, in posterior standard deviations; 0 is greedy.
        disjoint: every item has weights of its own on [1, shopper], and learns nothing from
            the others.
        ridge: prior precision of the weights.
        item_ridge: prior precision of the items' intercepts.
        forgetting: weight that an answer keeps with every newer one, for shoppers that
            change: about the last 1 / (1 - forgetting) are remembered; 1 never forgets.
        growth: the posterior is solved again when the data has grown by this share.
        shopper_size, item_size: the most features of a shopper and of an item; where there
            are more, their first principal components (of shoppers seen in ``warm_up``
            batches of random recommendations).
    """

    fits = ("num_items", "observation")
    bounds = Bandit.bounds | {
        "alpha": (0.0, 1e6),
        "ridge": (POSITIVE, 1e9),
        "item_ridge": (POSITIVE, 1e9),
        "forgetting": (0.5, 1.0),
        "growth": (0.0, 1e6),
        "shopper_size": (1, MANY),
        "item_size": (1, MANY),
        "warm_up": (1, MANY),
    }
    progress = (*Bandit.progress, "_axes_SP", "_posterior", "_waiting", "_remembered", "_unsolved")
    exploration: type[UpperBound] | type[Thompson]
    logistic = False

    def __init__(
        self,
        *,
        alpha: float = 0.5,
        disjoint: bool = False,
        ridge: float = 1.0,
        item_ridge: float = 1.0,
        forgetting: float = 1.0,
        growth: float = 0.3,
        shopper_size: int = 32,
        item_size: int = 64,
        warm_up: int = 20,
        **settings: Any,
    ):
        super().__init__(**settings)
        if not isinstance(disjoint, bool):
            raise UsageError(f"agent.disjoint must be true or false, got {disjoint!r}")
        self.alpha, self.disjoint = alpha, disjoint
        self.ridge, self.item_ridge, self.forgetting = ridge, item_ridge, forgetting
        self.growth, self.warm_up = growth, warm_up
        self.shopper_size, self.item_size = shopper_size, item_size
        self.check(**{name: getattr(self, name) for name in SETTINGS if name != "disjoint"})
        self._explore = self.exploration(alpha)
        self._posterior: BilinearRidge | ItemRidge | LogisticLaplace | None = None
        self._axes_SP: Tensor | None = None
        self._waiting: list[Answers] = []
        self._remembered = 0.0  # answers that count, and how many are new to the posterior
        self._unsolved = 0

    def bind(self, vector_env: RecsysVectorEnv) -> None:
        super().bind(vector_env)
        self._satiation = OwnSatiation(vector_env.shop, self._torch)
        (size,) = vector_env.single_observation_space.shape
        if self._posterior is None and size <= self.shopper_size:
            self._start(torch.eye(size, device=self._torch))

    def _start(self, axes_SP: Tensor) -> None:
        """An empty posterior on observations projected on ``axes_SP``."""
        self._axes_SP = axes_SP
        size = axes_SP.shape[1] + 1  # the constant
        ridge: BilinearRidge | ItemRidge
        if self.disjoint:
            ridge = ItemRidge(self.num_items, size, self._torch, self.ridge, self.forgetting)
        else:
            features_IG = item_features(self.catalogue, self.item_size)
            ridge = BilinearRidge(
                torch.as_tensor(features_IG, device=self._torch),
                size + 1,  # the satiation
                self.ridge,
                self.item_ridge,
                self.forgetting,
            )
        self._posterior = LogisticLaplace(ridge) if self.logistic else ridge

    def _context(self, observation: np.ndarray) -> Context:
        """[1, projected observation], and the satiation with every item's category."""
        assert self._axes_SP is not None
        seen = torch.as_tensor(observation, device=self._torch)
        x_NQ = torch.cat([torch.ones_like(seen[:, :1]), seen @ self._axes_SP], dim=1)
        return Context(x_NQ, self._satiation(seen))

    @torch.no_grad()
    def score(self, observation: np.ndarray) -> np.ndarray:
        if self._posterior is None:
            return np.zeros((len(observation), self.num_items), dtype=np.float32)
        mean_NI: np.ndarray = self._posterior.mean(self._context(observation)).cpu().numpy()
        return mean_NI

    @torch.no_grad()
    def explored(self, observation: np.ndarray) -> Tensor:
        if self._posterior is None:
            shape = (len(observation), self.num_items)
            return torch.rand(shape, generator=self._generator, device=self._torch)
        return self._explore(self._posterior, self._context(observation), self._generator)

    def absorb(self, observation: np.ndarray, item_N: np.ndarray, bought_N: np.ndarray) -> None:
        if self._posterior is None:
            self._waiting.append((observation, item_N, bought_N))
            if sum(len(items) for _, items, _ in self._waiting) >= self.warm_up * self.num_envs:
                self._find_axes()
        else:
            self._add(observation, item_N, bought_N)

    def _find_axes(self) -> None:
        seen = np.concatenate([observation for observation, _, _ in self._waiting])
        axes_SP = principal_axes(seen, min(self.shopper_size, seen.shape[1]))
        self._start(torch.as_tensor(axes_SP, device=self._torch))
        for waiting in self._waiting:
            self._add(*waiting)
        self._waiting = []

    @torch.no_grad()
    def _add(self, observation: np.ndarray, item_N: np.ndarray, bought_N: np.ndarray) -> None:
        assert self._posterior is not None
        context = self._context(observation)
        item = torch.as_tensor(item_N, device=self._torch)
        self._posterior.add(context.of(item), item, torch.as_tensor(bought_N, device=self._torch))
        self._unsolved += len(item_N)
        self._remembered = self._remembered * self.forgetting ** len(item_N) + len(item_N)
        if (1.0 + self.growth) * self._unsolved > self.growth * self._remembered:
            self._solve()

    @torch.no_grad()
    def _solve(self) -> None:
        """Make all that was added felt."""
        if self._posterior is not None and self._unsolved:
            self._posterior.solve()
            self._unsolved = 0

    def learn(self, total_timesteps: int, callback: Callback | None = None) -> Agent:
        super().learn(total_timesteps, callback)
        if self._waiting:  # too few for the warm-up, and all there are
            self._find_axes()
        self._solve()
        return self

    def _prepare(self, kept: dict[str, Any]) -> None:
        super()._prepare(kept)
        if kept["_axes_SP"] is not None:
            self._start(kept["_axes_SP"])

    def settings(self) -> dict[str, Any]:
        return super().settings() | {name: getattr(self, name) for name in SETTINGS}

    def _save(self, directory: Path) -> None:
        if self._posterior is None or self._axes_SP is None:
            raise UsageError(
                f"{self.name} has learned nothing that could be saved: call learn() first"
            )
        self._solve()
        state = {"axes_SP": self._axes_SP, **self._posterior.state_dict()}
        write_tensors(directory / "posterior.safetensors", state)

    def _load(self, directory: Path) -> None:
        state = read_tensors(directory / "posterior.safetensors", self._torch)
        self._start(state.pop("axes_SP"))
        assert self._posterior is not None
        self._posterior.load_state_dict(fitting(state, self._posterior.state_dict()))
        self._remembered = float(state["count_I"].sum())
