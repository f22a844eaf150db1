"""PPO (Schulman et al. 2017) from stable-baselines3, on the native vector environment."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import MlpExtractor
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from agents.base import MANY, POSITIVE, Bounds, draw
from agents.interest.perception import BAYES
from agents.on_device import BACKENDS, DeviceBridge, OnDevice
from agents.sb3_bridge import SB3Agent, SB3Bridge
from agents.scorer import Scorer
from agents.towers import TowerActor
from agents.warm_start import take_over
from recenv.errors import UsageError, unknown
from recenv.vector_env import RecsysVectorEnv

HYPERPARAMETERS: Bounds = {
    "n_steps": (1, MANY),
    "n_epochs": (1, MANY),
    "learning_rate": (POSITIVE, 10.0),
    "anneal": (0.0, 1.0),
    "gamma": (0.0, 1.0),
    "gae_lambda": (0.0, 1.0),
    "ent_coef": (0.0, 1e6),
    "clip_range": (POSITIVE, 1e6),
}


class ShortcutExtractor(nn.Module):
    """The networks of an actor and a critic, with the observation beside what the actor found.

    Utility is linear in much of what is observed (interest, satiation), and what is linear
    need not pass through a hidden layer: 0.01 to 0.02 of the normalised score in ``full``.

    Args:
        networks: stable-baselines3's own.
        size: of an observation, S.
        shopper_size: of the part in front of it that tells of the shopper, which is all that
            the networks see; None: all is.
    """

    def __init__(self, networks: MlpExtractor, size: int, shopper_size: int | None = None):
        super().__init__()
        self.networks = networks
        self.shopper_size = shopper_size or size
        self.latent_dim_pi = networks.latent_dim_pi + size
        self.latent_dim_vf = networks.latent_dim_vf

    def forward(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.forward_actor(observation), self.forward_critic(observation)

    def forward_actor(self, observation: torch.Tensor) -> torch.Tensor:
        """(N, S) -> (N, hidden + S)."""
        seen = observation[:, : self.shopper_size]
        return torch.cat([self.networks.forward_actor(seen), observation], dim=1)

    def forward_critic(self, observation: torch.Tensor) -> torch.Tensor:
        """(N, S) -> (N, hidden)."""
        seen = observation[:, : self.shopper_size]
        return self.networks.forward_critic(seen)


class Shortcut:
    """Mixed into a policy it has a ``ShortcutExtractor``."""

    features_dim: int
    mlp_extractor: Any

    def __init__(self, *args: Any, shopper_size: int | None = None, **settings: Any):
        self._shopper_size = shopper_size
        super().__init__(*args, **settings)

    def _build_mlp_extractor(self) -> None:
        whole, self.features_dim = self.features_dim, self._shopper_size or self.features_dim
        super()._build_mlp_extractor()  # type: ignore[misc] # a policy has one
        self.features_dim = whole
        self.mlp_extractor = ShortcutExtractor(self.mlp_extractor, whole, self._shopper_size)


class ShortcutPolicy(Shortcut, ActorCriticPolicy):
    """stable-baselines3's policy with a ``ShortcutExtractor``."""


class TowerPolicy(TowerActor, ShortcutPolicy):
    """The same with an item-conditioned head."""


class CriticFirst(OnPolicyAlgorithm):
    """Mixed into PPO it leaves the actor as it is for the first ``critic_first`` steps.

    An actor that begins well would be led astray by the advantages of a critic that has
    learned nothing. Afterwards its towers look at what was bought in every rollout
    ``item_epochs`` times before the policy does, if they have a query for that.
    """

    critic_first = 0
    item_epochs = 0
    policy: Any
    rollout_buffer: Any
    batch_size: Any

    def train(self) -> None:
        networks = self.policy.mlp_extractor.networks
        learns = not self.critic_first or self.num_timesteps > self.critic_first
        for module in (self.policy.action_net, networks.policy_net) if self.critic_first else ():
            module.requires_grad_(learns)
        if self.item_epochs and learns:
            self._learn_purchases()
        super().train()

    def _learn_purchases(self) -> None:
        """Teach the item tower, and the actor's hidden layers, what was bought."""
        rollout, policy, losses = self.rollout_buffer, self.policy, []
        assert isinstance(self.env, SB3Bridge)
        seen_NS = torch.as_tensor(rollout.observations, device=self.device).flatten(0, 1)
        item_N = torch.as_tensor(rollout.actions, device=self.device).flatten().long()
        bought_N = torch.stack([torch.as_tensor(step_N) for step_N in self.env.bought]).flatten()
        bought_N = bought_N.to(self.device, torch.float32)
        self._update_learning_rate(policy.optimizer)
        for _ in range(self.item_epochs):
            order = torch.randperm(len(item_N), device=self.device)
            for row in order.split(self.batch_size):
                log_odds = policy.log_odds(seen_NS[row], item_N[row])
                loss = binary_cross_entropy_with_logits(log_odds, bought_N[row])
                policy.optimizer.zero_grad()
                loss.backward()
                policy.optimizer.step()
                losses.append(loss.detach())
        self.logger.record("train/purchase_loss", float(torch.stack(losses).mean()))


class CriticFirstPPO(CriticFirst, PPO):
    """stable-baselines3's PPO, which may begin with the critic."""


class DevicePPO(OnDevice, CriticFirstPPO):
    """The same with shoppers on the device."""


class PPOAgent(SB3Agent):
    """Proximal policy optimisation with large minibatches of many shoppers.

    Args: those of ``SB3Agent`` and of stable-baselines3's PPO; ``minibatches`` replaces
    its ``batch_size``, so that the number of shoppers can change alone.
        item_epochs: passes over each rollout in which the item tower of ``head=two_tower``
            learns to tell what was bought, before those of PPO; 0: it learns from PPO alone.
        anneal: share of ``learning_rate`` that is left at the end of ``learn``; it falls in a
            straight line over the steps asked for. 1: it stays as it is.
        actor_arch: widths of the actor's hidden layers where they are not ``net_arch``; after
            a warm start they are the scorer's.
        temperature: after a warm start the policy is a softmax of the scorer's log odds
            divided by it.
        backend: "sb3" (shoppers on numpy), or "device": shoppers are tensors where the
            network is, and rollouts never leave it.
    """

    name: ClassVar[str] = "ppo"
    algorithm: type[CriticFirst] = CriticFirstPPO
    policy: ClassVar[type[BasePolicy]] = ShortcutPolicy
    tower_policy: ClassVar[type[BasePolicy]] = TowerPolicy
    bounds = (
        SB3Agent.bounds
        | HYPERPARAMETERS
        | {
            "minibatches": (1, MANY),
            "item_epochs": (0, MANY),
            "actor_arch": (1, 65_536),
            "temperature": (POSITIVE, 1e6),
        }
    )

    def __init__(
        self,
        *,
        n_steps: int = 10,
        minibatches: int = 4,
        n_epochs: int = 5,
        item_epochs: int = 5,
        learning_rate: float = 3e-3,
        anneal: float = 1.0,
        gamma: float = 0.97,
        gae_lambda: float = 0.9,
        ent_coef: float = 0.01,
        clip_range: float = 0.2,
        actor_arch: Sequence[int] | None = None,
        temperature: float = 0.5,
        backend: str = "sb3",
        **settings: Any,
    ):
        super().__init__(**settings)
        if backend not in BACKENDS:
            raise unknown("agent.backend", str(backend), BACKENDS)
        self.backend = backend
        if backend == "device":
            self.algorithm = DevicePPO
        self.minibatches = minibatches
        self.actor_arch = None if actor_arch is None else self.widths("actor_arch", actor_arch)
        self.temperature, self.item_epochs = temperature, item_epochs
        self.check(temperature=temperature, item_epochs=item_epochs)
        given = locals()
        self.given = {name: given[name] for name in HYPERPARAMETERS}
        self.check(minibatches=minibatches, **self.given)
        rollout = self.num_envs * n_steps
        if rollout < 2 * minibatches:
            raise UsageError(
                f"agent.minibatches={minibatches} leaves fewer than two of the num_envs * n_steps "
                f"= {rollout} recommendations for each: choose fewer"
            )

    @property
    def model(self) -> CriticFirst:
        model = super().model
        assert isinstance(model, CriticFirst)
        return model

    def hyperparameters(self) -> dict[str, Any]:
        batch_size = self.num_envs * self.given["n_steps"] // self.minibatches
        own = {name: value for name, value in self.given.items() if name != "anneal"}
        return own | {"batch_size": batch_size, "learning_rate": self._rate()}

    @property
    def guesses(self) -> bool:
        return self.item_epochs > 0

    def _make(self) -> BaseAlgorithm:
        model = super()._make()
        assert isinstance(model, CriticFirst)
        if self.two_tower and self.guesses:
            model.item_epochs = self.item_epochs
            assert isinstance(model.env, SB3Bridge)
            model.env.bought = deque(maxlen=self.given["n_steps"])
        return model

    def _rate(self) -> float | Callable[[float], float]:
        """The learning rate, or what it is where a share of learning remains."""
        rate, end = self.given["learning_rate"], self.given["anneal"]
        if end == 1.0:
            return float(rate)
        # the last rollout may go beyond the steps asked for
        return lambda remaining: rate * (end + (1.0 - end) * max(remaining, 0.0))

    def _bridge_to(self, env: RecsysVectorEnv, first_N: np.ndarray) -> SB3Bridge:
        if self.backend == "sb3":
            return super()._bridge_to(env, first_N)
        if self._before is not None:
            tuned = "" if self.perception.encoder == BAYES else "agent.freeze_encoder=false, or "
            raise UsageError(
                "agent.backend=device has no interest model before the policy: take "
                f"{tuned}agent.backend=sb3"
            )
        return DeviceBridge(env, self.training_seed, self.reward_scale, first_N, self._torch)

    def _policy_keywords(self) -> dict[str, Any]:
        keywords = super()._policy_keywords()
        if self.actor_arch is not None:
            keywords["net_arch"] = {"pi": self.actor_arch, "vf": self.net_arch}
        return keywords

    def fit_to(self, scorer: Scorer) -> None:
        self.actor_arch = [scorer.hidden]

    def take_over(self, scorer: Scorer, model: BaseAlgorithm) -> None:
        assert isinstance(model, CriticFirst)
        hidden = model.policy.mlp_extractor.networks.policy_net[0]
        take_over(scorer, hidden, model.policy.action_net, 1.0 / self.temperature)
        model.critic_first = self.critic_first

    def score_tensor(self, observation: torch.Tensor) -> torch.Tensor:
        # not from the policy's distribution, whose checks cost more than the network
        policy = self.model.policy
        features = policy.extract_features(observation, policy.pi_features_extractor)
        logits: torch.Tensor = policy.action_net(policy.mlp_extractor.forward_actor(features))
        return logits

    @property
    def stride(self) -> int:
        return self.num_envs * int(self.given["n_steps"])

    def propensity(self, item_N: np.ndarray) -> np.ndarray:
        seen: Any = self.model._last_obs
        own_NI = softmax(self._score(seen))
        return np.take_along_axis(own_NI, item_N[:, None], axis=1)[:, 0]

    def _serve_drawn(
        self, observation: np.ndarray, explore: float
    ) -> tuple[np.ndarray, np.ndarray]:
        own_NI = softmax(self.among_open(self.score(observation)))
        open_NI = self.open_actions(len(own_NI))
        choices_NI = np.ones_like(own_NI) if open_NI is None else open_NI.astype(np.float64)
        random_NI = choices_NI / choices_NI.sum(axis=1, keepdims=True)
        probability_NI = (1.0 - explore) * own_NI + explore * random_NI
        item_N = draw(probability_NI, self.rng)
        return item_N, np.take_along_axis(probability_NI, item_N[:, None], axis=1)[:, 0]

    def settings(self) -> dict[str, Any]:
        own = {
            "minibatches": self.minibatches,
            "item_epochs": self.item_epochs,
            "actor_arch": self.actor_arch,
            "temperature": self.temperature,
            "backend": self.backend,
        }
        return super().settings() | self.given | own


def softmax(logit_NI: np.ndarray) -> np.ndarray:
    """The probabilities (N, I) of logits."""
    logit_NI = logit_NI.astype(np.float64)
    weight_NI = np.exp(logit_NI - logit_NI.max(axis=1, keepdims=True))
    probability_NI: np.ndarray = weight_NI / weight_NI.sum(axis=1, keepdims=True)
    return probability_NI
