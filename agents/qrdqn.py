"""QR-DQN (Dabney et al. 2018, arXiv 1710.10044) from sb3-contrib: quantiles of what is to come."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import create_mlp
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from agents.dqn import DQNAgent, PerShopper
from agents.towers import MakeHead, TwoTowerHead
from recenv.errors import MissingExtra, UsageError

try:
    from sb3_contrib import QRDQN
    from sb3_contrib.qrdqn.policies import QRDQNPolicy, QuantileNetwork
except ImportError:
    raise MissingExtra("agent qrdqn", "sb3-contrib", "large") from None


WARM = ("warm_start", "warm_epsilon", "critic_first")  # settings that it does not have


class PerShopperQRDQN(PerShopper, QRDQN):
    """QR-DQN that explores for each shopper by herself."""


class TowerQuantiles(QuantileNetwork):
    """Quantiles = values(state) + queries(state) . tower(item) + bias(item), one query each."""

    def __init__(
        self,
        observation_space: Any,
        action_space: Any,
        features_extractor: Any,
        features_dim: int,
        n_quantiles: int,
        net_arch: list[int],
        activation_fn: type[nn.Module],
        make_head: MakeHead,
        normalize_images: bool = True,
    ):
        BasePolicy.__init__(  # not QuantileNetwork's, which makes columns for every item
            self,
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
        )
        self.net_arch, self.activation_fn, self.features_dim = net_arch, activation_fn, features_dim
        self.n_quantiles = n_quantiles
        hidden = net_arch[-1] if net_arch else features_dim
        self.body = nn.Sequential(*create_mlp(features_dim, -1, net_arch, activation_fn))
        self.values = nn.Linear(hidden, n_quantiles)
        head = make_head(hidden + features_dim)
        assert isinstance(head, TwoTowerHead)
        self.head, query = head, head.query
        # what a quantile has of its own; what they share is the head's own query
        self.queries = nn.Linear(query.in_features, n_quantiles * query.out_features)
        nn.init.normal_(self.queries.weight, std=1e-3)
        nn.init.zeros_(self.queries.bias)

    def forward(self, obs: PyTorchObs) -> torch.Tensor:
        """(N, quantiles, I)."""
        seen = self.extract_features(obs, self.features_extractor)
        hidden = self.body(seen)
        state = torch.cat([hidden, seen], dim=1)
        tower_IW = self.head.items()
        query_NW = self.head.query(state)
        query_NQW = query_NW[:, None] + self.queries(state).view(len(state), self.n_quantiles, -1)
        quantile_NQI: torch.Tensor = query_NQW @ tower_IW[:, :-1].T + tower_IW[:, -1]
        quantile_NQI = quantile_NQI + self.values(hidden)[:, :, None]
        return quantile_NQI


class TowerQuantilePolicy(QRDQNPolicy):
    """QR-DQN's policy with ``TowerQuantiles``."""

    def __init__(self, *args: Any, make_head: MakeHead, **settings: Any):
        self._make_head = make_head
        super().__init__(*args, **settings)

    def make_quantile_net(self) -> QuantileNetwork:
        arguments = self._update_features_extractor(self.net_args, features_extractor=None)
        return TowerQuantiles(**arguments, make_head=self._make_head).to(self.device)


class QRDQNAgent(DQNAgent):
    """Q-learning of a distribution; recommended is the item of the best mean.

    Args: those of ``DQNAgent`` (but for ``warm_start``), and
        quantiles: how many quantiles of the return it learns.
    """

    name: ClassVar[str] = "qrdqn"
    algorithm: type[PerShopper] = PerShopperQRDQN
    tower_policy: ClassVar[type[BasePolicy]] = TowerQuantilePolicy
    candidate_head: ClassVar[bool] = False
    bounds = DQNAgent.bounds | {"quantiles": (1, 10_000)}

    def __init__(self, *, quantiles: int = 25, **settings: Any):
        super().__init__(**settings)
        self.check(quantiles=quantiles)
        self.quantiles = quantiles
        if self.warm_start:
            raise UsageError("agent.warm_start is for ppo, maskable_ppo and dqn: leave it out")

    def _policy_keywords(self) -> dict[str, Any]:
        optimiser = {
            "optimizer_class": torch.optim.Adam,
            # the paper's, relative to the size of a batch
            "optimizer_kwargs": {"fused": True, "eps": 0.01 / self.given["batch_size"]},
        }
        return super()._policy_keywords() | optimiser | {"n_quantiles": self.quantiles}

    def score_tensor(self, observation: torch.Tensor) -> torch.Tensor:
        quantile_NQI: torch.Tensor = self.model.policy.quantile_net(observation)
        return quantile_NQI.mean(dim=1)

    def settings(self) -> dict[str, Any]:
        own = super().settings() | {"quantiles": self.quantiles}
        return {name: value for name, value in own.items() if name not in WARM}
