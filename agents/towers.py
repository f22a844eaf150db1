"""Item-conditioned (two-tower) heads: logits = query(state) . tower(item) + bias(item).

A flat head has a column of weights for every item, and learns of an item only from what was
recommended of it. Here all items share one tower over their public features: a linear map, and
a hidden layer beside it for what features say only together (a word means one thing in one
category and another in the next). What features do
not tell is an embedding of the item's own, which begins at zero, so that an item that was never
recommended is judged by its features alone. An item that enters a trained agent's catalogue is,
too: its own embedding is what features tell of the embeddings that were learned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import create_mlp
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import nn

Tensor = torch.Tensor
HEADS = ("auto", "flat", "two_tower")
# Items from which on ``auto`` takes two towers. With features that tell much they learn faster
# from 300 on (``full``, 100 thousand steps: 1.12 of the myopic oracle against 0.79; at 100 items
# 1.01 against 1.02); with features that tell little (complete_journey, 500) they do not.
MANY_ITEMS = 1_000
# Spread of the initial weights: a query begins small, so that all items begin almost alike; a
# tower does not, because a query learns only from what the towers tell apart.
QUERY_GAIN, TOWER_STD = 0.1, 0.3
RIDGE = 1.0  # items of mean weight that the penalty on the map for new items is worth


@dataclass(frozen=True, eq=False)
class Shelf:
    """The items that a head recommends from.

    Attributes:
        feature_IF: their public features.
    """

    feature_IF: np.ndarray

    @property
    def key_I(self) -> np.ndarray:
        """A hash of each item's features: what it is known by in every catalogue.

        So an item is found again in a catalogue that has grown or was sorted anew.
        """
        bits_IF = np.ascontiguousarray(self.feature_IF, dtype=np.float32).view(np.uint32)
        factor_F = np.random.default_rng(0).integers(2**63, size=bits_IF.shape[1], dtype=np.uint64)
        mixed_I = bits_IF.astype(np.uint64) @ (2 * factor_F + 1)  # wraps around
        return np.asarray(mixed_I.view(np.int64))


class ItemTower(nn.Module):
    """What each item offers a query, and its bias in the last column: (I, width + 1).

    Args:
        shelf: the items.
        width: of what a query meets.
        ids: whether items have embeddings of their own beside their features.
        hidden: width of the layer beside the linear map of features; 0: there is none.
    """

    feature_IF: Tensor
    key_I: Tensor

    def __init__(self, shelf: Shelf, width: int, ids: bool, hidden: int = 0):
        super().__init__()
        items, features = shelf.feature_IF.shape
        self.feature = nn.Linear(features, width + 1)
        self.bend: nn.Sequential | None = None
        if hidden:
            last = nn.Linear(hidden, width + 1, bias=False)
            self.bend = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), last)
        self.own = nn.Parameter(torch.zeros(items, width + 1)) if ids else None
        self.register_buffer("key_I", torch.as_tensor(shelf.key_I))
        self.register_buffer("feature_IF", torch.as_tensor(shelf.feature_IF), persistent=False)
        self._own_IW: Tensor | None = None  # in another catalogue than it learned with

    def start(self) -> None:
        """Initial weights, in place: the hidden layer waits to be used, what is linear does not."""
        nn.init.normal_(self.feature.weight, std=TOWER_STD)
        nn.init.zeros_(self.feature.bias)
        with torch.no_grad():
            self.feature.weight[-1].zero_()
        if self.bend is not None:
            first, last = self.bend[0], self.bend[-1]
            assert isinstance(first, nn.Linear)
            assert isinstance(last, nn.Linear)
            nn.init.kaiming_normal_(first.weight, nonlinearity="relu")
            nn.init.zeros_(first.bias)
            nn.init.zeros_(last.weight)

    def forward(self, item_N: Tensor | None = None) -> Tensor:
        """(I, width + 1), or (N, width + 1) of one item each."""
        own_IW = self.own if self._own_IW is None else self._own_IW
        feature_IF = self.feature_IF
        if item_N is not None:
            feature_IF = feature_IF.index_select(0, item_N)
            own_IW = None if own_IW is None else own_IW.index_select(0, item_N)
        tower_IW: Tensor = self.feature(feature_IF)
        if self.bend is not None:
            tower_IW = tower_IW + self.bend(feature_IF)
        return tower_IW if own_IW is None else tower_IW + own_IW

    def show(self, shelf: Shelf) -> None:
        """Recommend from these items from now on; those that it never met have only features."""
        key_I = torch.as_tensor(shelf.key_I, device=self.key_I.device)
        self.feature_IF = torch.as_tensor(shelf.feature_IF, device=self.key_I.device)
        self._own_IW = None
        if self.own is not None and not torch.equal(key_I, self.key_I):
            self._own_IW = entered(self.own, find(key_I, self.key_I), self.feature_IF)


def find(key_I: Tensor, among: Tensor) -> Tensor:
    """Where each key stands among others, (I,); -1 where it does not."""
    order = torch.argsort(among, stable=True)
    place_I = torch.searchsorted(among[order], key_I).clamp_(max=len(among) - 1)
    row_I = order[place_I]
    return torch.where(among[row_I] == key_I, row_I, -1)


def rows(table: Tensor, row_I: Tensor) -> Tensor:
    """Rows of a table, zeros for row -1."""
    return torch.where((row_I >= 0)[:, None], table[row_I], 0.0)


@torch.no_grad()
def entered(own: Tensor, row_I: Tensor, feature_IF: Tensor) -> Tensor:
    """Embeddings (I, W) of a catalogue's items: those of a table, and for what is new (row -1)
    what features tell of them.

    Some of what features could tell is learned by the embeddings instead, and new items would
    lack it. So embeddings are regressed on features (Gantner et al. 2010, "Learning
    attribute-to-feature mappings for cold-start recommendations"), those that learning has
    moved far, of what was recommended often, counting for more: by their squared length.
    """
    own_IW, new_I = rows(own, row_I), row_I < 0
    weight_I = own_IW.double().square().sum(dim=1)
    if not new_I.any() or not weight_I.any():
        return own_IW
    told_IF = torch.cat([feature_IF, torch.ones_like(feature_IF[:, :1])], dim=1).double()
    weighted_FI = told_IF.T * (weight_I / weight_I[~new_I].mean())
    penalty_FF = RIDGE * torch.eye(told_IF.shape[1], dtype=told_IF.dtype, device=own.device)
    map_FW = torch.linalg.solve(weighted_FI @ told_IF + penalty_FF, weighted_FI @ own_IW.double())
    return torch.where(new_I[:, None], (told_IF @ map_FW).to(own.dtype), own_IW)


def restock(state: dict[str, Tensor], policy: nn.Module) -> dict[str, Tensor]:
    """The saved tensors of a policy for one that sells other items: theirs are the embeddings."""
    state = dict(state)
    for name, module in policy.named_modules():
        key, own = f"{name}.key_I", f"{name}.own"
        if isinstance(module, ItemTower) and key in state:
            if own in state:
                row_I = find(module.key_I, state[key])
                state[own] = entered(state[own], row_I, module.feature_IF)
            state[key] = module.key_I
    return state


class TwoTowerHead(nn.Module):
    """A score for every item, (N, size) -> (N, I).

    A policy's gradient tells of an item only whether it did better than what else might have
    been shown, and ever less of items that it hardly shows. So the item tower may also learn
    to tell what is bought, by a second query: that every recommendation tells, of all items in
    the same words (an auxiliary task: Jaderberg et al. 2017, "Reinforcement learning with
    unsupervised auxiliary tasks"; in recommendation Xin et al. 2020, "Self-supervised
    reinforcement learning for recommender systems"). Scores have a query of their own.

    Args:
        size: of what the state has become.
        shelf, width, ids, hidden: see ``ItemTower``.
        guesses: whether it has that second query.
    """

    def __init__(
        self,
        size: int,
        shelf: Shelf,
        width: int,
        ids: bool,
        hidden: int = 0,
        guesses: bool = False,
    ):
        super().__init__()
        self.query = nn.Linear(size, width)
        # of a tower, and of what is the same for all items
        self.guess = nn.Linear(size, width + 2) if guesses else None
        self.items = ItemTower(shelf, width, ids, hidden)
        self.start()

    def start(self) -> None:
        """Initial weights, in place."""
        for layer in (self.query, self.guess):
            if layer is not None:
                nn.init.orthogonal_(layer.weight, QUERY_GAIN)
                nn.init.zeros_(layer.bias)
        self.items.start()

    def forward(self, state: Tensor) -> Tensor:
        tower_IW = self.items()
        return torch.addmm(tower_IW[:, -1], self.query(state), tower_IW[:, :-1].T)

    def log_odds(self, state: Tensor, item_N: Tensor) -> Tensor:
        """That they buy, where each (N, size) is recommended one item: (N,)."""
        assert self.guess is not None
        guess_NW = self.guess(state)
        log_odds_N: Tensor = (guess_NW[:, :-1] * self.items(item_N)).sum(1) + guess_NW[:, -1]
        return log_odds_N


class CandidateHead(nn.Module):
    """A score for every candidate, (N, size) -> (N, k): query(state) . tower(its features) + bias.

    All candidates share one tower, so that it does not matter where in the list one stands.

    Args:
        size: of what the state has become; what is told of the candidates stands at its end.
        count: k.
        features: of a candidate, G.
        width: of what a query meets.
    """

    def __init__(self, size: int, count: int, features: int, width: int):
        super().__init__()
        self.count, self.told = count, count * features
        self.query = nn.Linear(size - self.told, width)
        self.feature = nn.Linear(features, width + 1)
        self.start()

    def start(self) -> None:
        """Initial weights, in place."""
        nn.init.orthogonal_(self.query.weight, QUERY_GAIN)
        nn.init.normal_(self.feature.weight, std=TOWER_STD)
        with torch.no_grad():
            self.feature.weight[-1].zero_()
        for layer in (self.query, self.feature):
            nn.init.zeros_(layer.bias)

    def forward(self, state: Tensor) -> Tensor:
        told_NKG = state[:, -self.told :].view(len(state), self.count, -1)
        query_NW = self.query(state[:, : -self.told])
        # query . (weight feature) = (query weight) . feature, which takes k times fewer steps
        weight_WG, bias_W = self.feature.weight, self.feature.bias
        look_NG = torch.addmm(weight_WG[-1], query_NW, weight_WG[:-1])
        offset_N1 = query_NW @ bias_W[:-1, None] + bias_W[-1]
        score_NK: Tensor = torch.bmm(told_NKG, look_NG[:, :, None])[:, :, 0] + offset_N1
        return score_NK


# Makes a head for states of a size.
MakeHead = Callable[[int], nn.Module]


def show(policy: nn.Module, shelf: Shelf) -> None:
    """Let all heads of a policy recommend from these items."""
    for module in policy.modules():
        if isinstance(module, ItemTower):
            module.show(shelf)


class LeanCategorical(CategoricalDistribution):
    """A softmax over many items: stable-baselines3's goes over all of them several times more.

    Args:
        action_dim: I.
        make_head: of the head that gives the logits.
    """

    def __init__(self, action_dim: int, make_head: MakeHead):
        super().__init__(action_dim)
        self._make_head = make_head

    def proba_distribution_net(self, latent_dim: int) -> nn.Module:
        return self._make_head(latent_dim)

    def proba_distribution(self, action_logits: Tensor) -> LeanCategorical:
        self.log_share_NI = torch.log_softmax(action_logits, dim=1)
        return self

    def log_prob(self, actions: Tensor) -> Tensor:
        return self.log_share_NI.gather(1, actions.long().reshape(-1, 1))[:, 0]

    def entropy(self) -> Tensor:
        return -(self.log_share_NI.exp() * self.log_share_NI).sum(1)

    def sample(self) -> Tensor:
        # one uniform a shopper instead of an exponential for every item
        below_NI = self.log_share_NI.exp().cumsum(1)
        luck_N1 = torch.rand(len(below_NI), 1, device=below_NI.device) * below_NI[:, -1:]
        item_N1 = torch.searchsorted(below_NI, luck_N1, right=True)
        return item_N1.clamp_(max=below_NI.shape[1] - 1)[:, 0]

    def mode(self) -> Tensor:
        return self.log_share_NI.argmax(dim=1)


class TowerActor:
    """Mixed into a policy of stable-baselines3 it gives the actor a ``TwoTowerHead``."""

    softmax: ClassVar[type[LeanCategorical]] = LeanCategorical
    action_dist: Any
    action_net: Any
    action_space: Any
    extract_features: Any
    pi_features_extractor: Any
    mlp_extractor: Any

    def __init__(self, *args: Any, make_head: MakeHead, **settings: Any):
        self._make_head = make_head
        super().__init__(*args, **settings)

    def _build(self, lr_schedule: Any) -> None:
        self.action_dist = self.softmax(int(self.action_space.n), self._make_head)
        super()._build(lr_schedule)  # type: ignore[misc] # a policy has one
        self.action_net.start()  # what was built has the library's initial weights

    def log_odds(self, observation: Tensor, item_N: Tensor) -> Tensor:
        """What its towers tell of purchases (N,), where each shopper is recommended one item."""
        seen = self.extract_features(observation, self.pi_features_extractor)
        log_odds_N: Tensor = self.action_net.log_odds(
            self.mlp_extractor.forward_actor(seen), item_N
        )
        return log_odds_N


class TwoTowerQNetwork(QNetwork):
    """Q = value(state) + query(state) . tower(item) + bias(item).

    The query sees the observation beside what the hidden layers found, as PPO's actor does.
    """

    def __init__(
        self,
        observation_space: Any,
        action_space: Any,
        features_extractor: Any,
        features_dim: int,
        net_arch: list[int],
        activation_fn: type[nn.Module],
        make_head: MakeHead,
        shopper_size: int | None = None,
        normalize_images: bool = True,
    ):
        BasePolicy.__init__(  # not QNetwork's, which makes a column for every item
            self,
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
        )
        self.net_arch, self.activation_fn, self.features_dim = net_arch, activation_fn, features_dim
        self.shopper_size = shopper_size or features_dim
        hidden = net_arch[-1] if net_arch else self.shopper_size
        self.body = nn.Sequential(*create_mlp(self.shopper_size, -1, net_arch, activation_fn))
        self.value = nn.Linear(hidden, 1)
        self.head = make_head(hidden + features_dim)

    def forward(self, obs: PyTorchObs) -> Tensor:
        seen = self.extract_features(obs, self.features_extractor)
        hidden = self.body(seen[:, : self.shopper_size])
        value_NI: Tensor = self.value(hidden) + self.head(torch.cat([hidden, seen], dim=1))
        return value_NI


class TwoTowerQPolicy(DQNPolicy):
    """DQN's policy with ``TwoTowerQNetwork``s."""

    def __init__(
        self, *args: Any, make_head: MakeHead, shopper_size: int | None = None, **settings: Any
    ):
        self._head: dict[str, Any] = {"make_head": make_head, "shopper_size": shopper_size}
        super().__init__(*args, **settings)

    def make_q_net(self) -> QNetwork:
        arguments = self._update_features_extractor(self.net_args, features_extractor=None)
        return TwoTowerQNetwork(**arguments, **self._head).to(self.device)
