"""The agent protocol: bind / learn / predict / recommend / save / load.

``predict`` has the signature of stable-baselines3, so that an agent drops into whatever
calls one. Batches come first everywhere: observations (N, S), items (N,) or (N, k).
"""

from __future__ import annotations

import json
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3.common.logger import Logger

from recenv.catalogue import Catalogue
from recenv.errors import UsageError
from recenv.seeding import Role, derive_seed, generator
from recenv.vector_env import RecsysVectorEnv

# Called after every batch of steps with the number of environment steps so far;
# learning stops when it returns False.
Callback = Callable[[int], bool]
Prediction = tuple[np.ndarray, tuple[np.ndarray, ...] | None]
SETTINGS_FILE = "agent.json"


class Agent(ABC):
    """Who recommends.

    Args:
        seed: of everything random in the agent.
        device: "auto", "cpu", "cuda" or "cuda:n"; agents without torch ignore it.
        num_envs: shoppers that it learns from at once.
    """

    # What it is called in configs, run directories and figures.
    name: ClassVar[str]
    # Whether ``learn`` changes anything, so that there is a curve to draw.
    learns: ClassVar[bool] = True

    def __init__(self, *, seed: int = 0, device: str = "auto", num_envs: int = 512):
        if num_envs < 1:
            raise UsageError(f"agent.num_envs must be at least 1, got {num_envs}")
        self.seed = seed
        self.device = device
        self.num_envs = num_envs
        self.rng = generator(Role.AGENT, seed)
        self.logger: Logger | None = None
        self._env: RecsysVectorEnv | None = None

    @property
    def env(self) -> RecsysVectorEnv:
        """The environment that the agent acts in."""
        if self._env is None:
            raise UsageError(f"agent {self.name} is in no shop yet: call bind(vector_env) first")
        return self._env

    @property
    def training_seed(self) -> int:
        """The seed of the shoppers that the agent learns from."""
        return derive_seed(Role.TRAINING, self.seed)

    @property
    def catalogue(self) -> Catalogue:
        return self.env.shop.catalogue

    @property
    def num_items(self) -> int:
        return self.env.shop.num_items

    def bind(self, vector_env: RecsysVectorEnv) -> None:
        """Act in this environment from now on.

        Only the agents of ``references`` may read its state; all may read the public
        catalogue and who is in each slot.
        """
        self._env = vector_env

    @contextmanager
    def acting_in(self, vector_env: RecsysVectorEnv) -> Iterator[None]:
        """Act in another environment for a while (an evaluation, say)."""
        before = self._env
        self.bind(vector_env)
        try:
            yield
        finally:
            self._env = before

    def learn(self, total_timesteps: int, callback: Callback | None = None) -> Agent:
        """Learn from ``total_timesteps`` environment steps in the bound environment."""
        if callback is not None:
            callback(total_timesteps)
        return self

    @abstractmethod
    def score(self, observation: np.ndarray) -> np.ndarray:
        """How much the agent would like to recommend each item, (N, S) -> (N, I)."""

    def predict(
        self,
        observation: np.ndarray,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> Prediction:
        """The items to recommend, (N, S) -> (N,), and the recurrent state (passed through)."""
        batch, single = as_batch(observation, self.env)
        item_N = np.argmax(self.score(batch), axis=1)
        return (item_N[0] if single else item_N), state

    def recommend(self, observation: np.ndarray, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """The list that a shop shows: the ``k`` best items, best first, and their scores.

        Args:
            observation: (S,) or (N, S).
            k: length of the list.

        Returns:
            items and scores, each (k,) or (N, k).
        """
        if not 1 <= k <= self.num_items:
            raise UsageError(f"k must lie in 1..{self.num_items}, got {k}")
        batch, single = as_batch(observation, self.env)
        score_NI = self.score(batch)
        best_Nk = np.argpartition(-score_NI, k - 1, axis=1)[:, :k]
        order_Nk = np.argsort(-np.take_along_axis(score_NI, best_Nk, axis=1), axis=1, kind="stable")
        item_Nk = np.take_along_axis(best_Nk, order_Nk, axis=1)
        value_Nk = np.take_along_axis(score_NI, item_Nk, axis=1)
        return (item_Nk[0], value_Nk[0]) if single else (item_Nk, value_Nk)

    def settings(self) -> dict[str, Any]:
        """The constructor's JSON-able keywords, for ``load``."""
        return {"seed": self.seed, "device": self.device, "num_envs": self.num_envs}

    def save(self, directory: Path) -> None:
        """Write the agent: its settings as JSON, and what it learned beside them."""
        directory.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"agent": self.name, **self.settings()}, indent=2)
        (directory / SETTINGS_FILE).write_text(text + "\n")
        self._save(directory)

    @classmethod
    def load(cls, directory: Path, vector_env: RecsysVectorEnv) -> Agent:
        """Read an agent that ``save`` wrote, and bind it.

        Raises:
            UsageError: the files are missing, damaged or of another agent.
        """
        try:
            settings = json.loads((directory / SETTINGS_FILE).read_text())
        except (OSError, ValueError) as error:
            raise UsageError(f"no readable agent in {directory}: {error}") from None
        if settings.pop("agent", None) != cls.name:
            raise UsageError(f"{directory / SETTINGS_FILE} is not of an agent {cls.name}")
        agent = cls(**settings)
        agent.bind(vector_env)
        try:
            agent._load(directory)
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(f"the agent in {directory} is damaged: {error}") from None
        return agent

    def _save(self, directory: Path) -> None:
        """Write what was learned."""

    def _load(self, directory: Path) -> None:
        """Read what ``_save`` wrote; the agent is bound."""


class OnlineAgent(Agent):
    """An agent that learns from its own recommendations, batch by batch.

    Subclasses choose with ``explore`` and learn in ``update``; the loop is here.
    """

    def learn(self, total_timesteps: int, callback: Callback | None = None) -> Agent:
        env = self.env
        first_N = stagger(env, self.rng)
        observation, _ = env.reset(seed=self.training_seed, options={"first_session_steps": first_N})
        timesteps, going = 0, True
        while going and timesteps < total_timesteps:
            item_N = self.explore(observation)
            following, reward_N, terminated_N, truncated_N, info = env.step(item_N)
            timesteps += env.num_envs
            self.update(observation, item_N, reward_N, terminated_N | truncated_N, info)
            observation = following
            going = callback is None or callback(timesteps)
        return self

    @abstractmethod
    def explore(self, observation: np.ndarray) -> np.ndarray:
        """The items to recommend while learning, (N, S) -> (N,)."""

    @abstractmethod
    def update(
        self,
        observation: np.ndarray,
        item_N: np.ndarray,
        reward_N: np.ndarray,
        done_N: np.ndarray,
        info: dict[str, Any],
    ) -> None:
        """Learn from one batch: what was seen, recommended and answered."""


def stagger(env: RecsysVectorEnv, rng: np.random.Generator) -> np.ndarray:
    """Random lengths of the first sessions (N,), so that slots do not end in lockstep."""
    return rng.integers(1, env.shop.horizon, size=env.num_envs, endpoint=True)


def bought(info: dict[str, Any]) -> np.ndarray:
    """Whether each recommendation of a step was a purchase, (N,) of 0.0 or 1.0."""
    terms = info["final_info"]["reward_terms"] if "final_info" in info else info["reward_terms"]
    return (terms["purchase"] > 0).astype(np.float32)


def as_batch(observation: np.ndarray, env: RecsysVectorEnv) -> tuple[np.ndarray, bool]:
    """Observations as (N, S), and whether there was only one of shape (S,)."""
    batch = np.asarray(observation, dtype=np.float32)
    size = env.single_observation_space.shape[0]
    if batch.ndim not in (1, 2) or batch.shape[-1] != size:
        raise UsageError(
            f"observations must be of shape ({size},) or (N, {size}), got {batch.shape}"
        )
    return (batch[None], True) if batch.ndim == 1 else (batch, False)


def resolve_device(device: str) -> torch.device:
    """The torch device of a config's ``device``.

    Raises:
        UsageError: it is unknown or not on this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise UsageError(f"unknown device {device!r}: choose auto, cpu, cuda or cuda:n") from None
    if resolved.type not in ("cpu", "cuda"):
        raise UsageError(f"unknown device {device!r}: choose auto, cpu, cuda or cuda:n")
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device {device!r} is not on this machine: choose auto or cpu")
    return resolved


def seed_globals(seed: int) -> None:
    """Seed the global generators, for the libraries that know no other.

    stable-baselines3, ``nn.Linear`` and ``Categorical`` draw from these; nothing of our
    own does.
    """
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def torch_generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator of its own for one agent."""
    return torch.Generator(device).manual_seed(int(generator(Role.AGENT, seed).integers(2**62)))
