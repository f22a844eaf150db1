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
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors import SafetensorError
from stable_baselines3.common.logger import Logger

from agents.checkpoint import Resumable
from agents.features import item_layout
from recenv.catalogue import Catalogue
from recenv.errors import UsageError
from recenv.seeding import Role, derive_seed, generator
from recenv.shop import as_number
from recenv.vector_env import RecsysVectorEnv

# Called after every batch of steps with the number of environment steps so far;
# learning stops when it returns False.
Callback = Callable[[int], bool]
# Called with the same wherever learning can go on from a checkpoint.
Keeper = Callable[[int], None]
Prediction = tuple[np.ndarray, tuple[np.ndarray, ...] | None]
# Setting -> its lowest and highest value; whole numbers where both bounds are.
Bounds = dict[str, tuple[float, float]]
POSITIVE, MANY = 1e-9, 10**9  # "above zero" and "as many as you like" in bounds
SETTINGS_FILE = "agent.json"
MEMORY = 2**31  # bytes that the observations in an agent's memory may take


class Agent(Resumable, ABC):
    """Who recommends.

    Learning can be kept on its way: whoever sets ``keeper`` is called, in ``learn``, wherever
    ``checkpoint`` holds all that decides what comes next. A new agent of the same settings
    and shop that is given this with ``restore`` goes on from there when it ``learn``s the
    same number of steps: on the same machine, without an accelerator, to the bit.

    Args:
        seed: of everything random in the agent.
        device: "auto", "cpu", "cuda" or "cuda:n"; agents without torch do not use it.
        num_envs: shoppers that it learns from at once.

    Raises:
        UsageError: a setting is of the wrong type or out of range.
    """

    # What it is called in configs, run directories and figures.
    name: ClassVar[str]
    # Whether ``learn`` changes anything, so that there is a curve to draw.
    learns: ClassVar[bool] = True
    # Of the numbers among the settings; every class adds its own, and calls ``check``.
    bounds: ClassVar[Bounds] = {
        "seed": (0, 2**32 - 1),
        "num_envs": (1, 1_000_000),
        "explore": (0.0, 1.0),  # of ``serve``
    }
    # Whether it can also answer yes or no at a gate (RecsysGate-v0).
    gate: ClassVar[bool] = False
    # Whether it can also rank candidates that are other items each time (RecsysRetrieve-v0).
    ranks: ClassVar[bool] = False
    # The parts of ``describe`` that must be the same in every shop that it acts in.
    fits: tuple[str, ...] = ()
    progress: ClassVar[tuple[str, ...]] = ("rng", "timesteps", "meter")

    def __init__(self, *, seed: int = 0, device: str = "auto", num_envs: int = 512):
        self.check(seed=seed, num_envs=num_envs)
        self.seed = seed
        self.device = device
        self.num_envs = num_envs
        self._torch = resolve_device(device)
        self.rng = generator(Role.AGENT, seed)
        self.logger: Logger | None = None
        self.meter: SessionMeter | None = None  # of the sessions that it learns from
        self.keeper: Keeper | None = None
        self.timesteps = 0  # environment steps that it has learned from
        self._resumes = False  # whether ``learn`` goes on from a checkpoint
        self._env: RecsysVectorEnv | None = None
        self._shop: dict[str, Any] | None = None  # what it was made for, see ``describe``

    def check(self, **settings: Any) -> None:
        """Refuse settings that ``bounds`` does not allow."""
        for name, value in settings.items():
            as_number(f"agent.{name}", value, *self.bounds[name])

    @property
    def env(self) -> RecsysVectorEnv:
        """The environment that the agent acts in."""
        if self._env is None:
            raise UsageError(f"agent {self.name} is in no shop yet: call bind(vector_env) first")
        return self._env

    @property
    def training_env(self) -> RecsysVectorEnv:
        """The same, fit for learning: every step of every slot is a recommendation."""
        if self.env.shop.settings.autoreset_mode != "SameStep":
            raise UsageError(f'agent {self.name} learns only where env.autoreset_mode="SameStep"')
        return self.env

    @property
    def training_seed(self) -> int:
        """The seed of the shoppers that the agent learns from."""
        return derive_seed(Role.TRAINING, self.seed)

    @property
    def stride(self) -> int:
        """Environment steps between two places where its learning can rest."""
        return self.num_envs

    @property
    def catalogue(self) -> Catalogue:
        return self.env.shop.catalogue

    @property
    def num_items(self) -> int:
        return self.env.shop.num_items

    @property
    def num_actions(self) -> int:
        """The items; at a gate two, no and yes."""
        return self.env.shop.num_actions

    def bind(self, vector_env: RecsysVectorEnv) -> None:
        """Act in this environment from now on.

        Only the oracles of ``references`` and ``planning`` may read its state; all may read
        the public catalogue and who is in each slot.

        Raises:
            UsageError: the agent was made for a shop of another size, or is not for a gate.
        """
        shop = describe(vector_env)
        made_for = self._shop or shop
        if vector_env.shop.gate and not self.gate:
            raise UsageError(
                f"agent {self.name} chooses among items, and {vector_env.shop.id} asks about one "
                "candidate at a time: take ppo, dqn, random or another agent that answers yes or no"
            )
        if vector_env.shop.retrieves and not self.ranks:
            raise UsageError(
                f"agent {self.name} knows items by their numbers, and {vector_env.shop.id} shows "
                "other candidates each time: take ppo, dqn, maskable_ppo, qrdqn or random"
            )
        asked = made_for.get("environment", "Recsys-v0")  # earlier versions knew no other
        if self.fits and asked != shop["environment"]:
            raise UsageError(
                f"agent {self.name} was made for {asked}, this is {shop['environment']}: train "
                "an agent for it"
            )
        for part in self.fits:
            if made_for[part] != shop[part]:
                raise UsageError(MISFITS[part].format(self.name, made_for[part], shop[part]))
        self._env, self._shop = vector_env, made_for

    @contextmanager
    def acting_in(self, vector_env: RecsysVectorEnv) -> Iterator[None]:
        """Act in another environment for a while (an evaluation, say)."""
        before = self._env
        self.bind(vector_env)
        try:
            yield
        finally:
            if before is None:
                self._env = None
            else:
                self.bind(before)

    def learn(self, total_timesteps: int, callback: Callback | None = None) -> Agent:
        """Learn from ``total_timesteps`` environment steps in the bound environment."""
        if callback is not None:
            callback(total_timesteps)
        return self

    def checkpoint(self) -> dict[str, Any]:
        return {"agent": self.name, **super().checkpoint()}

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on from a ``checkpoint``: the next ``learn`` begins there.

        Raises:
            UsageError: it is damaged, or of another agent or shop.
        """
        env, kept = self.env, dict(kept)
        try:
            if kept.pop("agent") != self.name:
                raise ValueError(f"it is not of an agent {self.name}")
            self.meter = SessionMeter(env.num_envs, env.shop.horizon)
            self._prepare(kept)
            super().restore(kept)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UsageError(f"agent {self.name} cannot go on from this: {error}") from None
        self._resumes = True

    def _prepare(self, kept: dict[str, Any]) -> None:
        """Make what ``restore`` fills and is there only once something was learned."""

    def _begins(self) -> bool:
        """Whether ``learn`` begins, and does not go on from a checkpoint."""
        resumes, self._resumes = self._resumes, False
        if not resumes:
            self.timesteps = 0
        return not resumes

    def _rest(self) -> None:
        """Learning can go on from here."""
        if self.keeper is not None:
            self.keeper(self.timesteps)

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
        item_N = np.argmax(self.among_open(self.score(batch)), axis=1)
        return (item_N[0] if single else item_N), state

    def recommend(self, observation: np.ndarray, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """The list that a shop shows: the ``k`` best items, best first, and their scores.

        Args:
            observation: (S,) or (N, S).
            k: length of the list.

        Returns:
            items and scores, each (k,) or (N, k).
        """
        if isinstance(k, bool) or not isinstance(k, Integral) or not 1 <= k <= self.num_actions:
            raise UsageError(f"k must be a whole number in 1..{self.num_actions}, got {k!r}")
        batch, single = as_batch(observation, self.env)
        score_NI = self.among_open(self.score(batch))
        best_Nk = _best(score_NI, int(k))
        order_Nk = np.argsort(-np.take_along_axis(score_NI, best_Nk, axis=1), axis=1, kind="stable")
        item_Nk = np.take_along_axis(best_Nk, order_Nk, axis=1)
        value_Nk = np.take_along_axis(score_NI, item_Nk, axis=1)
        return (item_Nk[0], value_Nk[0]) if single else (item_Nk, value_Nk)

    def serve(
        self, observation: np.ndarray, explore: float = 0.0, *, stochastic: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """The items to show to shoppers, and the probability with which each was shown.

        Args:
            observation: (N, S).
            explore: share of the recommendations that are random items, each by itself.
            stochastic: draw from the agent's own probabilities, where it has any, instead of
                taking its best item.

        Returns:
            items and their propensities, each (N,). These are the probabilities that this item
            was drawn, whether it came by choice or by chance, given all that the agent saw.
        """
        self.check(explore=explore)
        batch, _ = as_batch(observation, self.env)
        if stochastic:
            return self._serve_drawn(batch, explore)
        item_N, random_share = self._serve_best(batch)
        share = 1.0 - (1.0 - explore) * (1.0 - random_share)
        shown_N = self.sometimes_random(item_N, share)
        open_NI = self.open_actions(len(batch))
        choices_N = self.num_actions if open_NI is None else open_NI.sum(axis=1)
        return shown_N, share / choices_N + (1.0 - share) * (shown_N == item_N)

    def _serve_best(self, observation: np.ndarray) -> tuple[np.ndarray, float]:
        """The best items (N,), and the share of random ones that the agent mixes in always."""
        return self.predict(observation)[0], 0.0

    def _serve_drawn(
        self, observation: np.ndarray, explore: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Items drawn from the agent's own probabilities, and these, for ``serve``."""
        raise UsageError(f"agent {self.name} has no probabilities of its own: leave out stochastic")

    def open_actions(self, count: int) -> np.ndarray | None:
        """What is not out of stock for the shoppers of ``count`` observations (N, I); None
        where everything is there, or where these are not the shoppers in the bound shop."""
        env = self.env
        return env.action_masks() if env.shop.masks and count == env.num_envs else None

    def among_open(self, score_NI: np.ndarray) -> np.ndarray:
        """The scores (N, I), minus infinity for what is out of stock."""
        open_NI = self.open_actions(len(score_NI))
        return score_NI if open_NI is None else np.where(open_NI, score_NI, -np.inf)

    def random_actions(self, count: int) -> np.ndarray:
        """Random items (N,) that are not out of stock."""
        open_NI = self.open_actions(count)
        if open_NI is None:
            return self.rng.integers(self.num_actions, size=count)
        return draw(open_NI.astype(np.float64), self.rng)

    def propensity(self, item_N: np.ndarray) -> np.ndarray:
        """The probabilities (N,) with which it chose these items while it learns.

        To be asked before the answers are told: about the shoppers that it chose for, as it
        knew them then. NaN where the agent cannot tell, as in Thompson sampling, whose
        probabilities have no closed form.
        """
        return np.full(len(item_N), np.nan)

    def sometimes_random(self, item_N: np.ndarray, share: float) -> np.ndarray:
        """The items (N,), with ``share`` of them replaced by random ones, each by itself."""
        random_N = self.random_actions(len(item_N))
        return np.where(self.rng.random(len(item_N)) < share, random_N, item_N)

    def settings(self) -> dict[str, Any]:
        """The constructor's JSON-able keywords, for ``load``; where it runs is no part of it."""
        return {"seed": self.seed, "num_envs": self.num_envs}

    def save(self, directory: Path) -> None:
        """Write what the agent learned, and beside it its settings as JSON.

        Raises:
            UsageError: the directory cannot be written to.
        """
        shop = self._shop or describe(self.env)
        text = json.dumps({"agent": self.name, "shop": shop, **self.settings()}, indent=2)
        if directory.exists() and not directory.is_dir():
            raise UsageError(f"cannot save the agent in {directory}: it is a file, no directory")
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._save(directory)
            (directory / SETTINGS_FILE).write_text(text + "\n")
        except (OSError, SafetensorError) as error:
            why = getattr(error, "strerror", None) or error
            raise UsageError(f"cannot save the agent in {directory}: {why}") from None

    @classmethod
    def load(cls, directory: Path, vector_env: RecsysVectorEnv, device: str = "auto") -> Agent:
        """Read an agent that ``save`` wrote, and bind it.

        Raises:
            UsageError: the files are missing, damaged, of another agent or for another shop.
        """
        try:
            settings = json.loads((directory / SETTINGS_FILE).read_text())
            if settings.pop("agent") != cls.name:
                raise UsageError(f"it is not of an agent {cls.name}")
            shop = settings.pop("shop")
            agent = cls(device=device, **cls.unpacked(settings, directory))
            agent._shop = shop
            agent.bind(vector_env)
            agent._load(directory)
        except UsageError as error:
            raise UsageError(f"the agent in {directory} cannot be used: {error}") from None
        except FileNotFoundError as error:
            raise UsageError(
                f"there is no whole agent in {directory}: {Path(error.filename or '').name} is "
                "missing; train it again"
            ) from None
        except Exception as error:
            told = " ".join(f"{type(error).__name__}: {error}".split())
            raise UsageError(
                f"the agent in {directory} is damaged ({told}): train it again"
            ) from None
        return agent

    @classmethod
    def unpacked(cls, settings: dict[str, Any], directory: Path) -> dict[str, Any]:
        """The settings that ``save`` wrote in a directory, as the constructor takes them."""
        return settings

    def _save(self, directory: Path) -> None:
        """Write what was learned."""

    def _load(self, directory: Path) -> None:
        """Read what ``_save`` wrote; the agent is bound."""


class OnlineAgent(Agent):
    """An agent that learns from its own recommendations, batch by batch.

    Subclasses choose with ``explore`` and learn in ``update``; the loop is here.
    """

    progress = (*Agent.progress, "env", "_seen")
    _seen: np.ndarray | None = None  # what is to be answered next, (N, S)

    def learn(self, total_timesteps: int, callback: Callback | None = None) -> Agent:
        env = self.training_env
        if self._begins():
            self._begin(env)
        assert self.meter is not None
        assert self._seen is not None
        going = True
        while going and self.timesteps < total_timesteps:
            self._rest()
            item_N = self.explore(self._seen)
            following, reward_N, terminated_N, truncated_N, info = env.step(item_N)
            self.timesteps += env.num_envs
            done_N = terminated_N | truncated_N
            self.update(self._seen, item_N, reward_N, done_N, info)
            self._report(*self.meter.add(reward_N, done_N))
            self._seen = following
            going = callback is None or callback(self.timesteps)
        return self

    def _begin(self, env: RecsysVectorEnv) -> None:
        """Open the shop for the first shoppers."""
        first_N = stagger(env, self.rng)
        self._seen, _ = env.reset(seed=self.training_seed, options={"first_session_steps": first_N})
        self.meter = SessionMeter(env.num_envs, env.shop.horizon)
        self.meter.begin(first_N)

    def _report(self, slot: np.ndarray, return_n: np.ndarray, length_n: np.ndarray) -> None:
        """Tell the logger of the sessions that ended, in stable-baselines3's words."""
        if self.logger is not None and len(slot):
            self.logger.record_mean("rollout/ep_rew_mean", float(return_n.mean()))
            self.logger.record_mean("rollout/ep_len_mean", float(length_n.mean()))

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


def describe(env: RecsysVectorEnv) -> dict[str, Any]:
    """What of a shop agents are made for, JSON-able."""
    layout, items = env.shop.observer.layout(), item_layout(env.shop.catalogue)
    return {
        "environment": env.shop.id,
        "num_items": env.shop.num_actions,  # those to choose among: at a gate, no and yes
        "num_shoppers": env.shop.settings.num_shoppers,
        "observation": ", ".join(f"{k} {part.stop - part.start}" for k, part in layout.items()),
        "item_features": f"categories {items['num_categories']}, words {items['words']}",
        "item_layout": items,
    }


MISFITS = {
    "num_items": "agent {0} was made for {1} items, this shop has {2}: set env.num_items={1}, or "
    "train an agent for this shop",
    "item_features": "agent {0} was made for items described by [{1}], this shop's are by [{2}]: "
    "choose a shop of the same world, or train an agent for this shop",
    "observation": "agent {0} was made for observations of [{1}], this shop gives [{2}]: set "
    "env.observation, history, interest_dim and num_categories as in its training, or train an "
    "agent for this shop",
}


def regulars_in(env: RecsysVectorEnv, clientele: int, count: int) -> np.ndarray | None:
    """Who the shoppers of ``count`` observations are, (N,), where they are the regulars in the
    shop; None where they come from elsewhere or are strangers."""
    if not clientele or env.shop.settings.num_shoppers != clientele or count != env.num_envs:
        return None
    try:
        return env.shopper_id_N
    except UsageError:  # nobody is there
        return None


class SessionMeter(Resumable):
    """Adds up the returns and lengths of the sessions in N slots.

    Args:
        num_envs: N.
        horizon: T, the recommendations that a session is meant to have.
    """

    progress = ("_return_N", "_length_N", "_meant_N", "_earned", "_meant")

    def __init__(self, num_envs: int, horizon: int):
        self._horizon = horizon
        self._return_N = np.zeros(num_envs)
        self._length_N = np.zeros(num_envs, dtype=np.int64)
        self._earned, self._meant = 0.0, 0
        self.begin()

    def begin(self, first_session_steps: np.ndarray | None = None) -> None:
        """New sessions in all slots; the first of each slot may be cut to (N,) steps."""
        self._return_N[:] = 0.0
        self._length_N[:] = 0
        self._meant_N = np.full(len(self._return_N), self._horizon)
        if first_session_steps is not None:
            self._meant_N[:] = first_session_steps

    def add(
        self, reward_N: np.ndarray, done_N: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Count a step; the slots whose sessions ended with it, their returns and lengths."""
        self._return_N += reward_N
        self._length_N += 1
        slot = np.flatnonzero(done_N)
        ended = slot, self._return_N[slot], self._length_N[slot]
        self._earned += float(ended[1].sum())
        self._meant += int(self._meant_N[slot].sum())
        self._meant_N[slot] = self._horizon
        self._return_N[slot] = 0.0
        self._length_N[slot] = 0
        return ended

    def count(self, return_n: np.ndarray) -> None:
        """Count whole sessions that were played elsewhere."""
        self._earned += float(return_n.sum())
        self._meant += self._horizon * len(return_n)

    def take(self) -> float | None:
        """Mean return of the sessions that ended since the last call; None if none did.

        Cut sessions weigh as much as they are long, and count as if they had gone on alike.
        """
        earned, meant = self._earned, self._meant
        self._earned, self._meant = 0.0, 0
        return self._horizon * earned / meant if meant else None


def stagger(env: RecsysVectorEnv, rng: np.random.Generator) -> np.ndarray:
    """Random lengths of the first sessions (N,), so that slots do not end in lockstep."""
    return rng.integers(1, env.shop.horizon, size=env.num_envs, endpoint=True)


def bought(info: dict[str, Any]) -> np.ndarray:
    """Whether each recommendation of a step was a purchase, (N,) of 0.0 or 1.0."""
    terms = info["final_info"]["reward_terms"] if "final_info" in info else info["reward_terms"]
    bought_N: np.ndarray = (terms["purchase"] > 0).astype(np.float32)
    return bought_N


def draw(probability_NI: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One item each (N,), by its probability; rows (N, I) sum to one."""
    cumulative_NI = np.cumsum(probability_NI, axis=1)
    threshold_N1 = rng.random((len(probability_NI), 1)) * cumulative_NI[:, -1:]
    item_N: np.ndarray = (cumulative_NI <= threshold_N1).sum(axis=1)
    return item_N.clip(max=probability_NI.shape[1] - 1)  # where rounding went past the last


def rows_in_memory(bytes_per_row: int) -> int:
    """How many rows of observations an agent may remember."""
    return max(MEMORY // bytes_per_row, 1)


def _best(score_NI: np.ndarray, k: int) -> np.ndarray:
    """The ``k`` best items (N, k) in order of their numbers; of equals those with the lowest."""
    cut_N1 = -np.partition(-score_NI, k - 1, axis=1)[:, k - 1 : k]
    above_NI, equal_NI = score_NI > cut_N1, score_NI == cut_N1
    room_N1 = k - above_NI.sum(axis=1, keepdims=True)
    chosen_NI = above_NI | (equal_NI & (np.cumsum(equal_NI, axis=1) <= room_N1))
    return np.nonzero(chosen_NI)[1].reshape(len(score_NI), k)


def as_batch(observation: np.ndarray, env: RecsysVectorEnv) -> tuple[np.ndarray, bool]:
    """Observations as (N, S), and whether there was only one of shape (S,)."""
    try:
        batch = np.asarray(observation, dtype=np.float32)
    except (TypeError, ValueError):
        got = type(observation).__name__
        raise UsageError(f"observations must be an array of numbers, got {got}") from None
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
    if not isinstance(device, str):
        raise UsageError(f"unknown device {device!r}: choose auto, cpu, cuda or cuda:n")
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

    stable-baselines3 and torch's ``Categorical`` draw from these; nothing of our own does.
    """
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def global_states(device: torch.device) -> dict[str, Any]:
    """The states of the generators that ``seed_globals`` seeds."""
    states = {
        "random": random.getstate(),
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002
        "torch": torch.get_rng_state(),
    }
    return states | ({"device": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_global_states(states: dict[str, Any], device: torch.device) -> None:
    """The generators as they were."""
    version, key, gauss = states["random"]
    random.setstate((version, tuple(key), gauss))
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["torch"].cpu())
    if device.type == "cuda" and "device" in states:
        torch.cuda.set_rng_state(states["device"].cpu(), device)


@contextmanager
def torch_seeded(seed: int) -> Iterator[None]:
    """Torch's global generator seeded in here, and left as it was: layers know no other."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def torch_generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator of its own for one agent."""
    return torch.Generator(device).manual_seed(int(generator(Role.AGENT, seed).integers(2**62)))
