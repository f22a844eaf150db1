"""The supervised deep-learning scorer: the purchase-probability model that shops ship."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from agents.base import (
    MANY,
    POSITIVE,
    Agent,
    Callback,
    OnlineAgent,
    bought,
    rows_in_memory,
    torch_generator,
    torch_seeded,
)
from agents.files import fitting, read_tensors, write_tensors
from recenv.errors import UsageError
from recenv.vector_env import RecsysVectorEnv

Tensor = torch.Tensor
SCORES_AT_ONCE = 2**18  # activations at a time: what fits a cache is ten times as fast
# Share of the rows of a gradient step whose shopper counts as a stranger, so that newcomers
# to a clientele meet an embedding that has learned.
STRANGERS = 0.1


class TwoTowers(nn.Module):
    """Purchase log odds from a shopper tower and an item tower.

    The towers are concatenated and pass a dense relu layer; their dot product and a bias
    per item are added, which a small dense layer is slow to discover.

    Args:
        observation_size: S.
        feature_IF: public item features.
        num_shoppers: size of the clientele, 0 where shoppers are strangers.
        width: of each tower's output; the item's id embedding has the same.
        hidden: of the dense layer after the towers.
    """

    feature_IF: Tensor

    def __init__(
        self,
        observation_size: int,
        feature_IF: Tensor,
        num_shoppers: int,
        width: int,
        hidden: int,
    ):
        super().__init__()
        self.register_buffer("feature_IF", feature_IF, persistent=False)
        items, features = feature_IF.shape
        self.shopper_id = nn.Embedding(num_shoppers + 1, width) if num_shoppers else None
        self.shopper = (
            nn.Sequential(nn.Linear(observation_size, hidden), nn.ReLU(), nn.Linear(hidden, width))
            if observation_size
            else None
        )
        self.item_id = nn.Embedding(items, width)
        self.item_feature = nn.Linear(features, width)
        self.item_bias = nn.Embedding(items, 1)
        for embedding in (self.item_id, self.shopper_id):
            if embedding is not None:
                nn.init.normal_(embedding.weight, std=0.1)
        nn.init.zeros_(self.item_bias.weight)
        # the dense layer on the concatenation, split so that every tower passes it once
        self.dense_shopper = nn.Linear(width, hidden)
        self.dense_item = nn.Linear(width, hidden, bias=False)
        self.out = nn.Linear(hidden, 1)

    def shoppers(self, observation: Tensor, shopper_id: Tensor | None) -> Tensor:
        """(N, S) -> (N, width)."""
        towers: list[Tensor] = []
        if self.shopper is not None:
            towers.append(self.shopper(observation))
        if self.shopper_id is not None and shopper_id is not None:
            towers.append(self.shopper_id(shopper_id))
        return torch.stack(towers).sum(0)

    def items(self, item: Tensor) -> Tensor:
        """(n,) -> (n, width)."""
        tower: Tensor = self.item_id(item) + self.item_feature(self.feature_IF[item])
        return tower

    def pairs(self, shopper_NW: Tensor, item_N: Tensor) -> Tensor:
        """Log odds (N,) of one item each."""
        item_NW = self.items(item_N)
        hidden = torch.relu(self.dense_shopper(shopper_NW) + self.dense_item(item_NW))
        dot_N = (shopper_NW * item_NW).sum(1)
        log_odds: Tensor = self.out(hidden)[:, 0] + dot_N + self.item_bias(item_N)[:, 0]
        return log_odds

    def all_items(self, shopper_NW: Tensor) -> Tensor:
        """Log odds (N, I) of every item."""
        item_I = torch.arange(len(self.feature_IF), device=shopper_NW.device)
        item_IW = self.items(item_I)
        shopper_NH, item_IH = self.dense_shopper(shopper_NW), self.dense_item(item_IW)
        count = max(SCORES_AT_ONCE // max(shopper_NH.numel(), 1), 1)
        dense_NI = torch.cat(
            [
                self.out(torch.relu(shopper_NH[:, None] + part_IH))[:, :, 0]
                for part_IH in item_IH.split(count)
            ],
            dim=1,
        )
        return dense_NI + shopper_NW @ item_IW.T + self.item_bias.weight[:, 0]


class Log:
    """What was seen, recommended and answered: a ring of the latest rows."""

    def __init__(self, rows: int, observation_size: int):
        # half precision is enough for a regression's inputs, and halves the memory
        self.observation = np.zeros((rows, observation_size), dtype=np.float16)
        self.shopper_id = np.zeros(rows, dtype=np.int64)
        self.item = np.zeros(rows, dtype=np.int64)
        self.bought = np.zeros(rows, dtype=np.float32)
        self.count = 0

    def __len__(self) -> int:
        return min(self.count, len(self.item))

    def add(
        self, observation: np.ndarray, shopper_id: np.ndarray, item: np.ndarray, bought: np.ndarray
    ) -> None:
        row = (self.count + np.arange(len(item))) % len(self.item)
        self.observation[row] = observation
        self.shopper_id[row] = shopper_id
        self.item[row] = item
        self.bought[row] = bought
        self.count += len(item)


class Scorer(OnlineAgent):
    """Learn who buys what by supervision, and recommend what is likeliest to be bought.

    While it learns, a share of its recommendations is drawn at random, falling from
    ``epsilon`` to ``final_epsilon`` over the first ``anneal`` of the steps; after every
    batch it takes ``gradient_steps`` on samples of all it has seen.

    Args:
        shopper: what the shopper tower sees: "observation", or "id" (an embedding, with a
            finite clientele), or "both"; "auto" is both where there is a clientele.
        log_rows: how many recommendations it remembers; observations that are too wide for
            the memory (``base.MEMORY``) leave room for fewer.
    """

    name: ClassVar[str] = "scorer"
    fits = ("num_items", "observation")
    bounds = OnlineAgent.bounds | {
        "width": (1, 65_536),
        "hidden": (1, 65_536),
        "learning_rate": (POSITIVE, 10.0),
        "weight_decay": (0.0, 10.0),
        "batch_size": (1, MANY),
        "gradient_steps": (0, MANY),
        "epsilon": (0.0, 1.0),
        "final_epsilon": (0.0, 1.0),
        "anneal": (0.0, 1.0),
        "log_rows": (1, MANY),
    }

    def __init__(
        self,
        *,
        num_envs: int = 256,
        shopper: str = "auto",
        width: int = 16,
        hidden: int = 128,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-6,
        batch_size: int = 2048,
        gradient_steps: int = 2,
        epsilon: float = 0.5,
        final_epsilon: float = 0.05,
        anneal: float = 0.2,
        log_rows: int = 1_000_000,
        **settings: Any,
    ):
        super().__init__(num_envs=num_envs, **settings)
        if shopper not in ("auto", "observation", "id", "both"):
            raise UsageError(
                f"agent.shopper must be auto, observation, id or both, got {shopper!r}"
            )
        self.shopper = shopper
        self.width, self.hidden = width, hidden
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.batch_size, self.gradient_steps = batch_size, gradient_steps
        self.epsilon, self.final_epsilon, self.anneal = epsilon, final_epsilon, anneal
        self.log_rows = log_rows
        self.check(**{name: getattr(self, name) for name in SETTINGS if name != "shopper"})
        self._network: TwoTowers | None = None
        self._log: Log | None = None

    def bind(self, vector_env: RecsysVectorEnv) -> None:
        super().bind(vector_env)
        if self._network is None:
            self._start()

    def _start(self) -> None:
        """A network that has learned nothing."""
        clientele = (self._shop or {}).get("num_shoppers") or 0
        if self.shopper == "id" and not clientele:
            raise UsageError("agent.shopper=id needs a clientele: set env.num_shoppers")
        self._known = clientele if self.shopper != "observation" else 0
        with torch_seeded(self.seed):
            network = TwoTowers(
                0 if self.shopper == "id" else self.env.single_observation_space.shape[0],
                torch.as_tensor(self.catalogue.features_IF),
                self._known,
                self.width,
                self.hidden,
            )
        self._network = network.to(self._torch)
        self._optimiser = torch.optim.Adam(
            self._network.parameters(),
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
            fused=True,
        )
        self._generator = torch_generator(self.seed)

    @property
    def network(self) -> TwoTowers:
        if self._network is None:
            raise UsageError("the scorer is in no shop yet: call bind(vector_env) first")
        return self._network

    def learn(self, total_timesteps: int, callback: Callback | None = None) -> Agent:
        if self._log is None:
            (size,) = self.env.single_observation_space.shape
            rows = min(self.log_rows, total_timesteps + self.env.num_envs)
            self._log = Log(min(rows, rows_in_memory(2 * size)), size)
        self._total = total_timesteps
        return super().learn(total_timesteps, callback)

    @property
    def exploration(self) -> float:
        """The share of random recommendations at this point of the learning."""
        assert self._log is not None
        progress = self._log.count / max(self.anneal * self._total, 1.0)
        return self.epsilon + min(progress, 1.0) * (self.final_epsilon - self.epsilon)

    def explore(self, observation: np.ndarray) -> np.ndarray:
        item_N, _ = self.predict(observation)
        return self.sometimes_random(item_N, self.exploration)

    def update(
        self,
        observation: np.ndarray,
        item_N: np.ndarray,
        reward_N: np.ndarray,
        done_N: np.ndarray,
        info: dict[str, Any],
    ) -> None:
        assert self._log is not None
        told = info.get("final_info", info)
        self._log.add(observation, told["shopper_id"], item_N, bought(info))
        losses = [self._gradient_step(self._log) for _ in range(self.gradient_steps)]
        if self.logger is not None and losses:
            self.logger.record_mean("train/loss", float(torch.stack(losses).mean()))
            self.logger.record("rollout/exploration_rate", self.exploration)

    def _gradient_step(self, log: Log) -> Tensor:
        row = torch.randint(len(log), (self.batch_size,), generator=self._generator).numpy()
        shopper_id = log.shopper_id[row]
        if self._known:
            strange = torch.rand(len(row), generator=self._generator).numpy() < STRANGERS
            shopper_id = np.where(strange, self._known, shopper_id)
        shopper = self._tower(log.observation[row].astype(np.float32), shopper_id)
        item = torch.as_tensor(log.item[row], device=self._torch)
        bought = torch.as_tensor(log.bought[row], device=self._torch)
        log_odds = self.network.pairs(shopper, item)
        loss = nn.functional.binary_cross_entropy_with_logits(log_odds, bought)
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()
        return loss.detach()

    def _tower(self, observation: np.ndarray, shopper_id: np.ndarray | None) -> Tensor:
        """Shopper tower (N, width); strangers share the last row of the id embedding."""
        known = None
        if self._known:
            ids = np.full(len(observation), self._known) if shopper_id is None else shopper_id
            known = torch.as_tensor(ids, device=self._torch)
        tensor = torch.as_tensor(observation, device=self._torch)
        return self.network.shoppers(tensor, known)

    def _ids(self, observation: np.ndarray) -> np.ndarray | None:
        """Who the shoppers of an observation are, where they are the regulars in the shop."""
        env = self.env
        if env.shop.settings.num_shoppers != self._known or len(observation) != env.num_envs:
            return None
        try:
            return env.shopper_id_N
        except UsageError:  # nobody is there: these come from elsewhere
            return None

    @torch.no_grad()
    def score(self, observation: np.ndarray) -> np.ndarray:
        """Log odds of a purchase, (N, S) -> (N, I)."""
        shopper_NW = self._tower(observation, self._ids(observation))
        log_odds: np.ndarray = self.network.all_items(shopper_NW).cpu().numpy()
        return log_odds

    def settings(self) -> dict[str, Any]:
        return super().settings() | {name: getattr(self, name) for name in SETTINGS}

    def _save(self, directory: Path) -> None:
        write_tensors(directory / "network.safetensors", self.network.state_dict())

    def _load(self, directory: Path) -> None:
        state = read_tensors(directory / "network.safetensors", self._torch)
        self.network.load_state_dict(fitting(state, self.network.state_dict()))


SETTINGS = (
    "shopper",
    "width",
    "hidden",
    "learning_rate",
    "weight_decay",
    "batch_size",
    "gradient_steps",
    "epsilon",
    "final_epsilon",
    "anneal",
    "log_rows",
)
