"""What all bandits share: when answers arrive, and when they are learned from."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from typing import Any

import numpy as np
import torch

from agents.base import (
    MANY,
    Agent,
    Callback,
    OnlineAgent,
    Prediction,
    as_batch,
    bought,
    torch_generator,
)

Tensor = torch.Tensor
Answers = tuple[np.ndarray, np.ndarray, np.ndarray]  # observations, items, bought or not


class Bandit(OnlineAgent):
    """An agent that earns while it learns: it recommends the item of the highest
    ``explored`` score, and learns from whether that was bought.

    Asked for a recommendation that need not be deterministic, it explores as well.

    Args:
        delay: steps until the answer to a recommendation arrives. Answers still under way
            when learning ends arrive when it goes on.
        update_every: steps whose answers are learned from together.
    """

    bounds = OnlineAgent.bounds | {"delay": (0, MANY), "update_every": (1, MANY)}
    progress = (*OnlineAgent.progress, "_under_way", "_arrived", "_generator")

    def __init__(
        self, *, num_envs: int = 256, delay: int = 0, update_every: int = 1, **settings: Any
    ):
        super().__init__(num_envs=num_envs, **settings)
        self.check(delay=delay, update_every=update_every)
        self.delay, self.update_every = delay, update_every
        self._under_way: deque[Answers] = deque()
        self._arrived: list[Answers] = []
        self._generator = torch_generator(self.seed, self._torch)

    @abstractmethod
    def explored(self, observation: np.ndarray) -> Tensor | np.ndarray:
        """Scores (N, I) while learning."""

    @abstractmethod
    def absorb(self, observation: np.ndarray, item_N: np.ndarray, bought_N: np.ndarray) -> None:
        """Learn from answers that have arrived."""

    def explore(self, observation: np.ndarray) -> np.ndarray:
        score_NI = torch.as_tensor(self.explored(observation))
        item_N: np.ndarray = score_NI.argmax(1).cpu().numpy()
        return item_N

    def predict(
        self,
        observation: np.ndarray,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> Prediction:
        if deterministic:
            return super().predict(observation, state, episode_start)
        batch, single = as_batch(observation, self.env)
        item_N = self.explore(batch)
        return (item_N[0] if single else item_N), state

    def update(
        self,
        observation: np.ndarray,
        item_N: np.ndarray,
        reward_N: np.ndarray,
        done_N: np.ndarray,
        info: dict[str, Any],
    ) -> None:
        self._under_way.append((observation, item_N, bought(info)))
        if len(self._under_way) > self.delay:
            self._arrived.append(self._under_way.popleft())
        if len(self._arrived) >= self.update_every:
            self._absorb_arrived()

    def _absorb_arrived(self) -> None:
        if self._arrived:
            observation, item_N, bought_N = map(np.concatenate, zip(*self._arrived, strict=True))
            self._arrived = []
            self.absorb(observation, item_N, bought_N)

    def learn(self, total_timesteps: int, callback: Callback | None = None) -> Agent:
        super().learn(total_timesteps, callback)
        self._absorb_arrived()
        return self

    def settings(self) -> dict[str, Any]:
        own = {"delay": self.delay, "update_every": self.update_every}
        return super().settings() | own
