"""stable-baselines3 on the native vector environment: its VecEnv, and its agents."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from agents.base import (
    MANY,
    POSITIVE,
    Agent,
    Callback,
    Prediction,
    SessionMeter,
    as_batch,
    bought,
    describe,
    global_states,
    seed_globals,
    set_global_states,
    stagger,
)
from agents.checkpoint import freeze, thaw
from agents.features import features_as_in
from agents.files import fitting, read_tensors, write_tensors
from agents.interest.filter import FilterReader
from agents.interest.histories import record
from agents.interest.model import InterestModel, Training, fit
from agents.interest.perception import INTEREST, Perception, hand_over
from agents.interest.reading import Reader
from agents.scorer import Scorer
from agents.towers import HEADS, MANY_ITEMS, CandidateHead, Shelf, TwoTowerHead, restock, show
from agents.warm_start import read_scorer
from recenv.dynamics import Event
from recenv.errors import UsageError, unknown
from recenv.vector_env import RecsysVectorEnv


class SB3Bridge(VecEnv):
    """``RecsysVectorEnv`` (autoreset "SameStep") in the shape that stable-baselines3 expects.

    Args:
        env: the environment.
        seed: of the shoppers, used at the first reset; without it that of the algorithm.
        reward_scale: what rewards are multiplied by.
        first_session_steps: (N,) cut the first sessions, so that slots do not end in lockstep.
        reader: what turns observations into those of the algorithm; its memory is carried on.
    """

    def __init__(
        self,
        env: RecsysVectorEnv,
        seed: int | None = None,
        reward_scale: float = 1.0,
        first_session_steps: np.ndarray | None = None,
        reader: Reader | FilterReader | None = None,
    ):
        if env.shop.settings.autoreset_mode != "SameStep":
            raise UsageError('stable-baselines3 needs autoreset_mode="SameStep"')
        self.env = env
        self.render_mode = None
        self.reward_scale = reward_scale
        self._own_seed = seed
        self._first_session_steps = first_session_steps
        self._began = time.time()
        self.meter = SessionMeter(env.num_envs, env.shop.horizon)
        self.reader = reader
        self.memory: torch.Tensor | None = None  # of the reader, (N, ...)
        # what was bought (N,) in the last steps, for who says how many: rewards tell other things
        self.bought: deque[Any] = deque(maxlen=0)
        space = env.single_observation_space if reader is None else reader.space
        super().__init__(env.num_envs, space, env.single_action_space)

    def reset(self) -> np.ndarray:
        options, first_N = {}, self._first_session_steps
        if first_N is not None:
            options["first_session_steps"] = first_N
        # one generator draws all slots, so that the first slot's seed is that of all
        seed = self._seeds[0] if self._own_seed is None else self._own_seed
        observation, _ = self.env.reset(seed=seed, options=options)
        self._own_seed, self._first_session_steps = None, None
        self._reset_seeds()
        self.meter.begin(first_N)
        self.memory = None
        return self._read(observation)

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        observation, reward_N, terminated_N, truncated_N, info = self.env.step(self._actions)
        done_N = terminated_N | truncated_N
        if self.bought.maxlen:
            self.bought.append(bought(info))
        # sharing one empty dict keeps a step of many shoppers cheap
        infos: list[dict[str, Any]] = [{}] * self.num_envs
        now = time.time() - self._began
        final = self._read_final(info, done_N)
        ended = (leaf.tolist() for leaf in self.meter.add(reward_N, done_N))
        for slot, value, length in zip(*ended, strict=True):
            infos[slot] = {
                "terminal_observation": final[slot],
                "TimeLimit.truncated": bool(truncated_N[slot]),
                "episode": {"r": value, "l": length, "t": now},
            }
        return self._read(observation), self.reward_scale * reward_N, done_N, infos

    def _read(self, observation: np.ndarray) -> np.ndarray:
        """What the algorithm sees of observations (N, S)."""
        if self.reader is None:
            return observation
        told, self.memory = self.reader.follow(observation, self.memory)
        return told

    def _read_final(self, info: dict[str, Any], done_N: np.ndarray) -> Any:
        """What it sees of the last observations of the sessions that ended, by slot."""
        if self.reader is None or self.memory is None or not done_N.any():
            return info.get("final_obs")
        slot = np.flatnonzero(done_N)
        told, _ = self.reader.follow(np.stack(info["final_obs"][slot]), self.memory[slot])
        return dict(zip(slot.tolist(), told, strict=True))

    def close(self) -> None:
        self.env.close()

    def has_attr(self, attr_name: str) -> bool:
        return hasattr(self.env, attr_name)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return [getattr(self.env, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        raise UsageError("shoppers share one environment: set its attributes through gym.make_vec")

    def env_method(
        self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any
    ) -> list[Any]:
        result = getattr(self.env, method_name)(*args, **kwargs)
        if method_name == "action_masks":  # which are of each shopper
            return list(result[list(self._get_indices(indices))])
        return [result] * len(list(self._get_indices(indices)))

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        return [False] * len(list(self._get_indices(indices)))

    def get_images(self) -> Sequence[np.ndarray | None]:
        return [None] * self.num_envs


class SB3Agent(Agent):
    """What PPO and DQN share: the bridge, the callback, and files without pickle.

    Args:
        net_arch: widths of the hidden layers.
        reward_scale: what rewards are multiplied by while it learns.
        weight_decay: share of a weight, times the learning rate, that an update takes off it
            (AdamW: Loshchilov & Hutter 2019). What two towers say of items that they never saw
            gains by it (``docs/towers.md``).
        head: what scores the items: "flat" (a column of weights for each), "two_tower" (see
            ``towers``: such an agent also acts in shops that sell other items, of the same
            kinds), or "auto": two towers from ``MANY_ITEMS`` items on. Where
            candidates are retrieved, both of the latter score them by their features.
        tower_width: of a query and an item's tower.
        tower_hidden: width of a hidden layer in the item tower, beside what is linear in
            features; 0: there is none.
        item_ids: whether items have embeddings of their own beside their features.
        warm_start: a scorer's run directory, with whose towers it begins (see ``warm_start``).
        critic_first: environment steps after a warm start in which only the values of states
            are learned.
        encoder, encoder_width, interest, pretrain_steps, freeze_encoder: how it reads
            behaviour, see ``agents.interest.perception``.
    """

    progress = (*Agent.progress, "_played")
    algorithm: type[BaseAlgorithm]
    # the attributes of an algorithm that change while it learns
    counters: ClassVar[tuple[str, ...]] = (
        "num_timesteps",
        "_episode_num",
        "_n_updates",
        "_current_progress_remaining",
        "_last_obs",
        "_last_episode_starts",
    )
    gate: ClassVar[bool] = True
    ranks: ClassVar[bool] = True
    candidate_head: ClassVar[bool] = True  # whether it has a head for candidates
    policy: ClassVar[str | type[BasePolicy]] = "MlpPolicy"
    tower_policy: ClassVar[type[BasePolicy]]
    bounds = Agent.bounds | {
        "net_arch": (1, 65_536),
        "reward_scale": (POSITIVE, 1e9),
        "weight_decay": (0.0, 1e3),
        "tower_width": (1, 65_536),
        "tower_hidden": (0, 65_536),
        "critic_first": (0, MANY),
        "encoder_width": (4, 65_536),
        "pretrain_steps": (0, MANY),
    }

    def __init__(
        self,
        *,
        net_arch: Sequence[int] = (64, 64),
        reward_scale: float = 1.0,
        weight_decay: float = 0.0,
        head: str = "auto",
        tower_width: int = 32,
        tower_hidden: int = 64,
        item_ids: bool = True,
        warm_start: str | None = None,
        critic_first: int = 10_000,
        encoder: str | None = None,
        encoder_width: int = 64,
        interest: str | None = None,
        pretrain_steps: int = 0,
        freeze_encoder: bool = True,
        **settings: Any,
    ):
        super().__init__(**settings)
        self.perception = Perception(
            encoder, encoder_width, interest, pretrain_steps, freeze_encoder
        )
        if head not in HEADS:
            raise unknown("agent.head", str(head), HEADS)
        if not isinstance(item_ids, bool):
            raise UsageError(f"agent.item_ids must be true or false, got {item_ids!r}")
        self.check(reward_scale=reward_scale, weight_decay=weight_decay)
        self.check(tower_width=tower_width, tower_hidden=tower_hidden)
        self.head, self.item_ids = head, item_ids
        self.tower_width, self.tower_hidden = tower_width, tower_hidden
        if not (warm_start is None or (isinstance(warm_start, str) and warm_start)):
            raise UsageError(f"agent.warm_start must be a scorer's run, got {warm_start!r}")
        if warm_start and (head == "flat" or not item_ids):
            raise UsageError("agent.warm_start needs agent.head=two_tower and agent.item_ids=true")
        if warm_start and (self.perception.reads or encoder):
            raise UsageError(
                "a scorer's towers read observations as they are: leave out agent.warm_start, or "
                "agent.encoder and agent.interest"
            )
        self.check(critic_first=critic_first)
        self.warm_start, self.critic_first = warm_start, critic_first
        self.net_arch = self.widths("net_arch", net_arch)
        self.reward_scale, self.weight_decay = reward_scale, weight_decay
        self._model: BaseAlgorithm | None = None
        self._made_in: RecsysVectorEnv | None = None
        self._reader: Reader | FilterReader | None = None
        self._can_read = not self.perception.pretrains
        self._played = 0  # steps at random, to learn to read

    def widths(self, name: str, value: Any) -> list[int]:
        """A setting that is a list of widths, checked."""
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise UsageError(f"agent.{name} must be a list of widths, got {value!r}")
        for width in value:
            self.check(**{name: width})
        return list(value)

    @abstractmethod
    def hyperparameters(self) -> dict[str, Any]:
        """Keywords of the algorithm."""

    @abstractmethod
    def score_tensor(self, observation: torch.Tensor) -> torch.Tensor:
        """Scores of all items for what the algorithm sees, (N, G) -> (N, I)."""

    def bind(self, vector_env: RecsysVectorEnv) -> None:
        if self.warm_start:
            self.head = "two_tower"
        items = (self._shop or describe(vector_env))["num_items"]
        if vector_env.shop.gate and self.head == "two_tower":
            raise UsageError(
                f"agent.head=two_tower is for choosing among items, and {vector_env.shop.id} asks "
                "yes or no: take agent.head=flat"
            )
        retrieves = vector_env.shop.retrieves
        if retrieves and (self.warm_start or self.perception.reads or self.perception.encoder):
            raise UsageError(
                f"{vector_env.shop.id} shows candidates beside the shopper: leave out "
                "agent.warm_start, agent.encoder and agent.interest"
            )
        self.by_candidate = retrieves and self.head != "flat" and self.candidate_head
        many = self.head == "two_tower" or (self.head == "auto" and items >= MANY_ITEMS)
        self.two_tower = many and not retrieves
        self.fits = ("item_features" if self.two_tower else "num_items", "observation")
        before = self._env
        super().bind(vector_env)
        if self._model is None:
            self._reader = self.perception.reader(vector_env.shop, self.seed, self._torch)
            self._model = self._begin()
        elif self.two_tower and before is not None and before.shop.catalogue is not self.catalogue:
            show(self._model.policy, self._shelf())
            self._model.action_space = vector_env.single_action_space

    def _begin(self) -> BaseAlgorithm:
        """An algorithm that has learned nothing but what it takes over from a scorer."""
        if not self.warm_start:
            return self._make()
        scorer = read_scorer(Path(self.warm_start), self.env)
        self.tower_width = max(self.tower_width, scorer.width)
        self.fit_to(scorer)
        model = self._make()
        self.take_over(scorer, model)
        return model

    @abstractmethod
    def fit_to(self, scorer: Scorer) -> None:
        """Change settings so that the scorer's towers fit in."""

    @abstractmethod
    def take_over(self, scorer: Scorer, model: BaseAlgorithm) -> None:
        """Put the scorer's towers into the policy, and let the critic learn first."""

    def _shelf(self) -> Shelf:
        """The items of the bound shop, described as where the agent was made."""
        assert self._shop is not None
        return Shelf(features_as_in(self.catalogue, self._shop["item_layout"]))

    @property
    def model(self) -> BaseAlgorithm:
        """The algorithm of stable-baselines3."""
        if self._model is None:
            raise UsageError(f"agent {self.name} is in no shop yet: call bind(vector_env) first")
        return self._model

    def _make(self) -> BaseAlgorithm:
        """An algorithm that has learned nothing, to learn in the bound environment."""
        self._made_in = env = self.env
        # a loaded agent may be bound to an environment of another size than it learns in
        if env.num_envs != self.num_envs:
            env = env.sibling(self.num_envs)
        first_N = stagger(env, self.rng)
        bridge = self._bridge_to(env, first_N)
        self.meter = bridge.meter
        return self.algorithm(
            policy=self.tower_policy if self.two_tower or self.by_candidate else self.policy,
            env=bridge,
            device=self._torch,
            seed=self.seed,
            policy_kwargs=self._policy_keywords(),
            **self.hyperparameters(),
        )

    def _bridge_to(self, env: RecsysVectorEnv, first_N: np.ndarray) -> SB3Bridge:
        """What the algorithm learns through; the first sessions are cut to (N,) steps."""
        return SB3Bridge(env, self.training_seed, self.reward_scale, first_N, self._before)

    @property
    def guesses(self) -> bool:
        """Whether its item tower also learns to tell what is bought."""
        return False

    @property
    def _before(self) -> Reader | FilterReader | None:
        """What reads for the policy, where it does not do so itself."""
        return self._reader if self.perception.freeze_encoder else None

    @property
    def seen_size(self) -> int:
        """Entries of what the algorithm sees."""
        before = self._before
        return before.size if before else int(self.env.single_observation_space.shape[0])

    def _policy_keywords(self) -> dict[str, Any]:
        keywords: dict[str, Any] = {
            "net_arch": self.net_arch,
            # as good as tanh here, and training is a tenth faster
            "activation_fn": torch.nn.ReLU,
            "optimizer_class": torch.optim.AdamW,  # without decay it is Adam
            "optimizer_kwargs": {"fused": True, "weight_decay": self.weight_decay},
        }
        if self.two_tower:
            keywords["make_head"] = partial(
                TwoTowerHead,
                shelf=self._shelf(),
                width=self.tower_width,
                ids=self.item_ids,
                hidden=self.tower_hidden,
                guesses=self.guesses,
            )
        assert self._made_in is not None
        if self.by_candidate:
            shop = self._made_in.shop
            size, layout = shop.view.size, shop.observer.layout()["candidates"]
            features = (layout.stop - layout.start) // self.num_actions
            keywords["make_head"] = partial(
                CandidateHead, count=self.num_actions, features=features, width=self.tower_width
            )
            keywords["shopper_size"] = size
        return keywords | self.perception.extractor(self._made_in.shop, self._reader)

    def score(self, observation: np.ndarray) -> np.ndarray:
        before = self._before
        return self._score(before.follow(observation, None)[0] if before else observation)

    def _score(self, observation: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            tensor = torch.as_tensor(observation, device=self.model.device)
            return self.score_tensor(tensor).cpu().numpy()

    def predict(
        self,
        observation: np.ndarray,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = True,
    ) -> Prediction:
        batch, single = as_batch(observation, self.env)
        if self._before is not None:
            memory = None if state is None else torch.as_tensor(state[0], device=self._torch)
            batch, memory = self._before.follow(batch, memory, episode_start)
            state = (memory.cpu().numpy(),)
        if deterministic:
            item_N = np.argmax(self.among_open(self._score(batch)), axis=1)
        else:
            item_N = self._draw(batch)
        return (item_N[0] if single else item_N), state

    def _draw(self, batch: np.ndarray) -> np.ndarray:
        """Items (N,) as the algorithm explores."""
        item_N: np.ndarray = self.model.predict(batch, deterministic=False)[0]
        return item_N

    def learn(self, total_timesteps: int, callback: Callback | None = None) -> Agent:
        model = self.model
        if self._made_in is not self.env:  # it was made elsewhere: to evaluate, or to load
            policy = model.policy.state_dict()
            model = self._model = self._make()
            model.policy.load_state_dict(restock(policy, model.policy))
        # its own default writes to a new directory in /tmp
        model.set_logger(self.logger or Logger(None, []))
        begins = self._begins()
        if begins:
            self._played = 0
            if not self._can_read:
                self._learn_to_read(total_timesteps, callback)
            seed_globals(self.seed)  # others may have drawn from them since
        else:
            set_global_states(self._globals, self._torch)
        with _unvalidated():
            if self.timesteps < total_timesteps:
                model.learn(
                    total_timesteps - self.timesteps,
                    _Forward(self, callback),
                    log_interval=1,
                    reset_num_timesteps=begins,
                )
        return self

    def take_up(self, interest: InterestModel) -> None:
        """Read behaviour by another interest model of the same design from now on.

        Raises:
            UsageError: it is of another design, or nothing reads for this agent.
        """
        if not isinstance(self._before, Reader):
            raise UsageError(f"agent {self.name} has no interest model before its policy")
        own = self._before.model
        own.load_state_dict(fitting(interest.state_dict(), own.state_dict()))
        bridge = self._bridge
        bridge.memory = None
        if self.model._last_obs is not None:
            self.model._last_obs = bridge._read(bridge.env.observe())

    def checkpoint(self) -> dict[str, Any]:
        model, bridge = self.model, self._bridge
        return super().checkpoint() | {
            "env": bridge.env.checkpoint(),
            "memory": freeze(bridge.memory),
            "interest": freeze(self._reader) if self._reader else None,
            "globals": global_states(self._torch),
            "actions": freeze(model.action_space.np_random),
            "policy": freeze(model.policy),
            "optimiser": freeze(model.policy.optimizer),
            "counters": {name: freeze(getattr(model, name)) for name in self.counters},
            "sessions": list(model.ep_info_buffer or ()),
        }

    def _prepare(self, kept: dict[str, Any]) -> None:
        super()._prepare(kept)
        model, bridge = self.model, self._bridge
        self.meter = bridge.meter  # it is the bridge that counts
        bridge.env.restore(kept.pop("env"))
        bridge.memory = kept.pop("memory")
        interest = kept.pop("interest")
        if self._reader is not None:
            thaw(interest, self._reader)
        self._can_read = True
        self._globals = kept.pop("globals")
        thaw(kept.pop("actions"), model.action_space.np_random)
        thaw(kept.pop("policy"), model.policy)
        thaw(kept.pop("optimiser"), model.policy.optimizer)
        for name, value in kept.pop("counters").items():
            setattr(model, name, value)
        window = model._stats_window_size
        model.ep_info_buffer = deque(kept.pop("sessions"), maxlen=window)
        model.ep_success_buffer = deque(maxlen=window)

    @property
    def _bridge(self) -> SB3Bridge:
        bridge = self.model.env
        assert isinstance(bridge, SB3Bridge)
        return bridge

    def _learn_to_read(self, total_timesteps: int, callback: Callback | None) -> None:
        """Train the model of u on steps at random, which count."""
        assert isinstance(self._reader, Reader)
        env = self.training_env.sibling(self.num_envs)
        steps = min(self.perception.pretrain_steps, total_timesteps)
        # not the shoppers that it meets afterwards
        seed = self.training_seed ^ 1
        histories = record(self, env, steps, seed, self.rng, 1.0, callback=callback)
        model = self._reader.model.requires_grad_(True)
        fit(model, histories, Training(), self.rng)
        model.requires_grad_(False)
        hand_over(self._reader, self.model.policy)
        whole = histories.length_S == env.shop.horizon
        bought_S = (histories.events_ST[whole] == Event.PURCHASE).sum(axis=1)
        if self.meter is not None:
            self.meter.count(2.0 * bought_S - env.shop.horizon)
        self._can_read = True
        self._played = self.timesteps = -(-steps // env.num_envs) * env.num_envs

    def settings(self) -> dict[str, Any]:
        own = {"net_arch": self.net_arch, "reward_scale": self.reward_scale}
        own["weight_decay"] = self.weight_decay
        heads = {"head": self.head, "item_ids": self.item_ids}
        heads |= {"tower_width": self.tower_width, "tower_hidden": self.tower_hidden}
        # what was taken over is its own by now
        own |= heads | {"warm_start": None, "critic_first": self.critic_first}
        return super().settings() | own | self.perception.settings()

    @classmethod
    def unpacked(cls, settings: dict[str, Any], directory: Path) -> dict[str, Any]:
        if settings.get("interest") is None:
            return settings
        return settings | {"interest": str(directory / settings["interest"])}

    def _save(self, directory: Path) -> None:
        if self._reader is not None:
            self._reader.save(directory / INTEREST)
        # not stable-baselines3's own zip: it holds pickles
        write_tensors(directory / "policy.safetensors", self.model.policy.state_dict())

    def _load(self, directory: Path) -> None:
        policy = self.model.policy
        state = read_tensors(directory / "policy.safetensors", self._torch)
        own = policy.state_dict()
        policy.load_state_dict(fitting(restock(state, policy), own))


class _Forward(BaseCallback):
    """Tell our callback of every batch of steps, and the agent where learning can go on."""

    def __init__(self, agent: SB3Agent, callback: Callback | None):
        super().__init__()
        self._agent, self._callback = agent, callback

    def _on_rollout_start(self) -> None:
        self._agent.timesteps = self._agent._played + self.model.num_timesteps
        self._agent._rest()

    def _on_step(self) -> bool:
        timesteps = self._agent._played + self.num_timesteps
        return self._callback is None or self._callback(timesteps)


@contextmanager
def _unvalidated() -> Iterator[None]:
    """Without the checks inside torch's distributions, which cost more than the sampling."""
    before = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)
