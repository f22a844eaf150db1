"""DQN (Mnih et al. 2015) from stable-baselines3, on the native vector environment."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy

from agents.base import MANY, POSITIVE, Bounds, rows_in_memory
from agents.checkpoint import freeze, thaw
from agents.sb3_bridge import SB3Agent
from agents.scorer import Scorer
from agents.towers import TwoTowerQPolicy
from agents.warm_start import take_over
from recenv.seeding import Role, generator

HYPERPARAMETERS: Bounds = {
    "learning_rate": (POSITIVE, 10.0),
    "buffer_size": (1, MANY),
    "learning_starts": (0, MANY),
    "batch_size": (1, MANY),
    "train_freq": (1, MANY),
    "gradient_steps": (1, MANY),
    "target_update_interval": (1, MANY),
    "gamma": (0.0, 1.0),
    "exploration_fraction": (POSITIVE, 1.0),
    "exploration_final_eps": (0.0, 1.0),
}


REPLAY = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


class PerShopper(OffPolicyAlgorithm):
    """Mixed into DQN it explores for each shopper by herself.

    stable-baselines3 draws once for the whole batch, so that all shoppers explore or none.
    """

    policy: Any
    action_space: Any
    exploration_rate: float

    def _setup_model(self) -> None:
        super()._setup_model()
        # not the stream that the agent's other draws come from
        self._explorer = generator(Role.AGENT, self.seed or 0).spawn(1)[0]

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        item_N, state = self.policy.predict(observation, state, episode_start, True)
        if deterministic:
            return item_N, state
        explores_N = self._explorer.random(np.shape(item_N)) < self.exploration_rate
        random_N = self._explorer.integers(self.action_space.n, size=np.shape(item_N))
        return np.where(explores_N, random_N, item_N), state


class PerShopperDQN(PerShopper, DQN):
    """stable-baselines3's DQN with this exploration.

    For the first ``critic_first`` steps only the values of states are learned: items that are
    ranked well already would be led astray by errors in what all of them have in common.
    """

    critic_first = 0

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        network = self.policy.q_net
        for module in (network.body, network.head) if self.critic_first else ():
            module.requires_grad_(self.num_timesteps > self.critic_first)
        super().train(gradient_steps, batch_size)


class DQNAgent(SB3Agent):
    """Q-learning with a replay buffer.

    Args: those of ``SB3Agent`` and of stable-baselines3's DQN. Rewards are scaled so that
    its Huber loss is quadratic over the values that occur: else it underweights the charge
    for leaving.
        warm_epsilon: the share of random items with which it begins after a warm start.
    """

    name: ClassVar[str] = "dqn"
    algorithm: type[PerShopper] = PerShopperDQN
    tower_policy: ClassVar[type[BasePolicy]] = TwoTowerQPolicy
    counters = (*SB3Agent.counters, "_n_calls", "exploration_rate")
    bounds = SB3Agent.bounds | HYPERPARAMETERS | {"warm_epsilon": (0.0, 1.0)}

    def __init__(
        self,
        *,
        num_envs: int = 64,
        reward_scale: float = 0.3,
        learning_rate: float = 5e-4,
        buffer_size: int = 200_000,
        learning_starts: int = 5_000,
        batch_size: int = 512,
        train_freq: int = 4,
        gradient_steps: int = 4,
        target_update_interval: int = 2_000,
        gamma: float = 0.95,
        exploration_fraction: float = 0.3,
        exploration_final_eps: float = 0.05,
        warm_epsilon: float = 0.2,
        **settings: Any,
    ):
        super().__init__(num_envs=num_envs, reward_scale=reward_scale, **settings)
        self.warm_epsilon = warm_epsilon
        self.check(warm_epsilon=warm_epsilon)
        given = locals()
        self.given = {name: given[name] for name in HYPERPARAMETERS}
        self.check(**self.given)

    @property
    def model(self) -> PerShopper:
        model = super().model
        assert isinstance(model, PerShopper)
        return model

    def hyperparameters(self) -> dict[str, Any]:
        # a transition holds two observations of float32
        most = rows_in_memory(8 * self.seen_size)
        changed = {"buffer_size": min(self.given["buffer_size"], most)}
        if self.warm_start:
            changed["exploration_initial_eps"] = self.warm_epsilon
        return self.given | changed

    def fit_to(self, scorer: Scorer) -> None:
        self.net_arch = [scorer.hidden]

    def take_over(self, scorer: Scorer, model: BaseAlgorithm) -> None:
        assert isinstance(model, PerShopperDQN)
        # a reward is 2 p - 1, and p rises by at most a quarter of what the log odds do
        worth = self.reward_scale * 2.0 / 4.0
        network = model.policy.q_net
        take_over(scorer, network.body[0], network.head, worth)
        model.policy.q_net_target.load_state_dict(network.state_dict())
        model.critic_first = self.critic_first

    def score_tensor(self, observation: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = self.model.policy.q_net(observation)
        return values

    @property
    def stride(self) -> int:
        return self.num_envs * int(self.given["train_freq"])

    def propensity(self, item_N: np.ndarray) -> np.ndarray:
        model = self.model
        begins = model.num_timesteps < model.learning_starts
        share = 1.0 if begins else float(model.exploration_rate)
        assert model._last_obs is not None
        best_N, _ = model.predict(model._last_obs, deterministic=True)
        share_N: np.ndarray = share / self.num_actions + (1.0 - share) * (best_N == item_N)
        return share_N

    def settings(self) -> dict[str, Any]:
        return super().settings() | self.given | {"warm_epsilon": self.warm_epsilon}

    @property
    def _replay(self) -> ReplayBuffer:
        buffer = self.model.replay_buffer
        assert buffer is not None
        return buffer

    def checkpoint(self) -> dict[str, Any]:
        buffer = self._replay
        rows = buffer.buffer_size if buffer.full else buffer.pos
        own = {
            "explorer": freeze(self.model._explorer),
            "position": buffer.pos,
            "full": buffer.full,
            "replay": {name: getattr(buffer, name)[:rows] for name in REPLAY},
        }
        return super().checkpoint() | own

    def _prepare(self, kept: dict[str, Any]) -> None:
        super()._prepare(kept)
        buffer = self._replay
        thaw(kept.pop("explorer"), self.model._explorer)
        buffer.pos, buffer.full = kept.pop("position"), kept.pop("full")
        for name, rows in kept.pop("replay").items():
            getattr(buffer, name)[: len(rows)] = rows
