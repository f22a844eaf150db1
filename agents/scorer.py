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
    as_batch,
    bought,
    regulars_in,
    rows_in_memory,
    torch_generator,
    torch_seeded,
)
from agents.checkpoint import Resumable
from agents.classification import log_loss, measures, platt, sigmoid
from agents.encoders import ENCODERS, make_encoder
from agents.files import fitting, read_tensors, write_tensors
from agents.supervised import Fitted, Progress, Rows, early_stopping
from recenv.errors import UsageError, unknown
from recenv.observation import Behaviour
from recenv.shop import as_number
from recenv.vector_env import RecsysVectorEnv

Tensor = torch.Tensor
SHOPPERS = ("auto", "observation", "id", "both", "encoder")
ITEMS = ("both", "id", "features")
CALIBRATION = "calibration"  # its name among the tensors of a saved agent
SCORES_AT_ONCE = 2**18  # activations at a time: what fits a cache is ten times as fast
# Share of the rows of a gradient step whose shopper counts as a stranger, so that newcomers
# to a clientele meet an embedding that has learned.
STRANGERS = 0.1
PAIRS_AT_ONCE = 2**14  # rows of a log that are scored at a time
ONLINE_ROWS = 2**14  # recommendations over which the measures online are taken


class BehaviourTower(nn.Module):
    """Observations of behaviour through an encoder: (N, S) -> (N, width).

    Args:
        observer: how they are laid out.
        encoder: its name in ``agents.encoders``.
        width: of the tower's output.
        hidden: of the dense layer after the encoder.
    """

    def __init__(self, observer: Behaviour, encoder: str, width: int, hidden: int):
        super().__init__()
        self._layout, self._history = observer.layout(), observer.history
        self._num_events = observer.num_events
        self.encoder = make_encoder(encoder, observer.features_IF.shape[1], observer.history)
        told = self.encoder.width + self._layout["interactions"].start
        self.dense = nn.Sequential(nn.Linear(told, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, observation: Tensor) -> Tensor:
        past = observation[:, self._layout["interactions"]].unflatten(1, (self._history, -1))
        items, events = past[..., : -self._num_events], past[..., -self._num_events :]
        head = observation[:, : self._layout["interactions"].start]  # remaining, counts
        tower: Tensor = self.dense(torch.cat([head, self.encoder(items, events)], dim=1))
        return tower


class TwoTowers(nn.Module):
    """Purchase log odds from a shopper tower and an item tower.

    The towers are concatenated and pass a dense relu layer; their dot product and a bias
    per item are added, which a small dense layer is slow to discover. The purchase
    probability is the sigmoid of the sum.

    Args:
        observation_size: S.
        feature_IF: public item features.
        num_shoppers: size of the clientele, 0 where shoppers are strangers.
        width: of each tower's output; the item's id embedding has the same.
        hidden: of the dense layer after the towers.
        item: what the item tower knows: "id" (an embedding and a bias of each), "features",
            or "both". By features alone items can be scored that were never learned from.
        reader: reads observations (N, S) -> (N, width) instead of two dense layers.
    """

    feature_IF: Tensor

    def __init__(
        self,
        observation_size: int,
        feature_IF: Tensor,
        num_shoppers: int,
        width: int,
        hidden: int,
        item: str = "both",
        reader: nn.Module | None = None,
    ):
        super().__init__()
        self.register_buffer("feature_IF", feature_IF, persistent=False)
        items, features = feature_IF.shape
        self.shopper_id = nn.Embedding(num_shoppers + 1, width) if num_shoppers else None
        self.shopper = reader
        if reader is None and observation_size:
            self.shopper = nn.Sequential(
                nn.Linear(observation_size, hidden), nn.ReLU(), nn.Linear(hidden, width)
            )
        by_id, by_features = item != "features", item != "id"
        self.item_id = nn.Embedding(items, width) if by_id else None
        self.item_feature = nn.Linear(features, width) if by_features else None
        self.item_bias = nn.Embedding(items, 1) if by_id else None
        for embedding in (self.item_id, self.shopper_id):
            if embedding is not None:
                nn.init.normal_(embedding.weight, std=0.1)
        if self.item_bias is not None:
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
        towers: list[Tensor] = []
        if self.item_id is not None:
            towers.append(self.item_id(item))
        if self.item_feature is not None:
            towers.append(self.item_feature(self.feature_IF[item]))
        return towers[0] if len(towers) == 1 else towers[0] + towers[1]

    def pairs(self, shopper_NW: Tensor, item_N: Tensor) -> Tensor:
        """Log odds (N,) of one item each."""
        item_NW = self.items(item_N)
        hidden = torch.relu(self.dense_shopper(shopper_NW) + self.dense_item(item_NW))
        dot_N = (shopper_NW * item_NW).sum(1)
        log_odds: Tensor = self.out(hidden)[:, 0] + dot_N
        return log_odds if self.item_bias is None else log_odds + self.item_bias(item_N)[:, 0]

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
        log_odds_NI = dense_NI + shopper_NW @ item_IW.T
        return log_odds_NI if self.item_bias is None else log_odds_NI + self.item_bias.weight[:, 0]


class Log(Resumable):
    """What was seen, recommended and answered: a ring of the latest rows."""

    COLUMNS = ("observation", "shopper_id", "item", "bought")

    def __init__(self, rows: int, observation_size: int):
        self._allocate(rows, observation_size)

    def _allocate(self, rows: int, observation_size: int) -> None:
        # half precision is enough for a regression's inputs, and halves the memory
        self.observation = np.zeros((rows, observation_size), dtype=np.float16)
        self.shopper_id = np.zeros(rows, dtype=np.int64)
        self.item = np.zeros(rows, dtype=np.int64)
        self.bought = np.zeros(rows, dtype=np.float32)
        self.count = 0

    def __len__(self) -> int:
        return min(self.count, len(self.item))

    def checkpoint(self) -> dict[str, Any]:
        rows = len(self)
        filled = {name: getattr(self, name)[:rows] for name in self.COLUMNS}
        return {"rows": len(self.item), "count": self.count, **filled}

    def restore(self, kept: dict[str, Any]) -> None:
        self._allocate(kept["rows"], kept["observation"].shape[1])
        self.count = kept["count"]
        for name in self.COLUMNS:
            getattr(self, name)[: len(self)] = kept[name]

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
    batch it takes ``gradient_steps`` on samples of all it has seen. ``fit`` learns from a
    log that is there already, with early stopping.

    ``online`` holds the measures of ``agents.classification`` for the latest window of
    recommendations that it served while learning, told before they were learned from.

    Args:
        shopper: what the shopper tower sees: "observation", or "id" (an embedding, with a
            finite clientele), or "both"; "auto" is both where there is a clientele. "encoder"
            is the behaviour so far (env.observation=behaviour) through ``encoder``.
        encoder: mlp, cnn, gru or transformer, see ``agents.encoders``.
        item: what the item tower knows: "id", "features" or "both".
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
    progress = (
        *OnlineAgent.progress,
        "_network",
        "_optimiser",
        "_generator",
        "_log",
        "_calibration",
        "online",
        "_told",
    )

    def __init__(
        self,
        *,
        num_envs: int = 256,
        shopper: str = "auto",
        encoder: str = "gru",
        item: str = "both",
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
        for name, value, known in (
            ("shopper", shopper, SHOPPERS),
            ("encoder", encoder, tuple(ENCODERS)),
            ("item", item, ITEMS),
        ):
            if not isinstance(value, str) or value not in known:
                raise unknown(f"agent.{name}", value, known)
        self.shopper, self.encoder, self.item = shopper, encoder, item
        self.width, self.hidden = width, hidden
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.batch_size, self.gradient_steps = batch_size, gradient_steps
        self.epsilon, self.final_epsilon, self.anneal = epsilon, final_epsilon, anneal
        self.log_rows = log_rows
        self.check(**{name: getattr(self, name) for name in SETTINGS if name in self.bounds})
        self._network: TwoTowers | None = None
        self._log: Log | None = None
        self._calibration = (1.0, 0.0)  # slope and offset of the log odds, see ``fit``
        self.online: dict[str, float] = {}
        self._told: list[np.ndarray] = []  # log odds since ``online`` was taken
        self._told_N: np.ndarray | None = None  # of the items that are being shown

    def bind(self, vector_env: RecsysVectorEnv) -> None:
        super().bind(vector_env)
        if self._network is None:
            self._start()

    def _start(self) -> None:
        """A network that has learned nothing."""
        clientele = (self._shop or {}).get("num_shoppers") or 0
        if self.shopper == "id" and not clientele:
            raise UsageError("agent.shopper=id needs a clientele: set env.num_shoppers")
        self._known = clientele if self.shopper in ("auto", "id", "both") else 0
        with torch_seeded(self.seed):
            network = TwoTowers(
                0 if self.shopper == "id" else self.env.single_observation_space.shape[0],
                torch.as_tensor(self.catalogue.features_IF),
                self._known,
                self.width,
                self.hidden,
                self.item,
                self._reader(),
            )
        self._network = network.to(self._torch)
        self._optimiser = torch.optim.Adam(
            self._network.parameters(),
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
            fused=True,
        )
        self._generator = torch_generator(self.seed)

    def _reader(self) -> BehaviourTower | None:
        """What reads observations, where it is an encoder of behaviour."""
        if self.shopper != "encoder":
            return None
        observer = self.env.shop.observer
        if not isinstance(observer, Behaviour):
            raise UsageError("agent.shopper=encoder reads env.observation=behaviour: set it")
        return BehaviourTower(observer, self.encoder, self.width, self.hidden)

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

    def _prepare(self, kept: dict[str, Any]) -> None:
        super()._prepare(kept)
        self._log = Log(0, 0) if kept["_log"] is not None else None

    @property
    def exploration(self) -> float:
        """The share of random recommendations at this point of the learning."""
        assert self._log is not None
        progress = self._log.count / max(self.anneal * self._total, 1.0)
        return self.epsilon + min(progress, 1.0) * (self.final_epsilon - self.epsilon)

    def explore(self, observation: np.ndarray) -> np.ndarray:
        log_odds_NI = self.score(as_batch(observation, self.env)[0])
        item_N = self.sometimes_random(np.argmax(log_odds_NI, axis=1), self.exploration)
        self._told_N = log_odds_NI[np.arange(len(item_N)), item_N]
        return item_N

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
        bought_N = bought(info)
        self._log.add(observation, told["shopper_id"], item_N, bought_N)
        self._judge_online(bought_N)
        losses = [self._gradient_step(self._log) for _ in range(self.gradient_steps)]
        if self.logger is not None and losses:
            self.logger.record_mean("train/loss", float(torch.stack(losses).mean()))
            self.logger.record("rollout/exploration_rate", self.exploration)

    def _judge_online(self, bought_N: np.ndarray) -> None:
        """Keep what was told of these recommendations; measure a window when it is full."""
        if self._told_N is None:  # somebody else chose
            return
        self._told.append(np.stack([self._told_N, bought_N]))
        self._told_N = None
        if sum(part.shape[1] for part in self._told) < ONLINE_ROWS:
            return
        log_odds_N, was_N = np.concatenate(self._told, axis=1)
        self._told = []
        self.online = measures(sigmoid(log_odds_N), was_N)
        if self.logger is not None:
            for name, value in self.online.items():
                self.logger.record(f"train/{name}", value)

    def _gradient_step(self, log: Log) -> Tensor:
        row = torch.randint(len(log), (self.batch_size,), generator=self._generator).numpy()
        observation = log.observation[row].astype(np.float32)
        return self._descend(observation, log.shopper_id[row], log.item[row], log.bought[row])

    def _descend(
        self,
        observation: np.ndarray,
        shopper_id: np.ndarray | None,
        item_N: np.ndarray,
        bought_N: np.ndarray,
    ) -> Tensor:
        """One gradient step on a batch; its mean loss."""
        if self._known and shopper_id is not None:
            strange = torch.rand(len(item_N), generator=self._generator).numpy() < STRANGERS
            shopper_id = np.where(strange, self._known, shopper_id)
        shopper = self._tower(observation, shopper_id)
        item = torch.as_tensor(item_N, device=self._torch)
        bought = torch.as_tensor(bought_N, device=self._torch)
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
        return regulars_in(self.env, self._known, len(observation))

    @torch.no_grad()
    def score(self, observation: np.ndarray) -> np.ndarray:
        """Log odds of a purchase, (N, S) -> (N, I)."""
        shopper_NW = self._tower(observation, self._ids(observation))
        log_odds: np.ndarray = self.network.all_items(shopper_NW).cpu().numpy()
        return log_odds

    def fit(
        self,
        rows: Rows,
        *,
        validation: float | np.ndarray = 0.1,
        epochs: int = 100,
        patience: int = 3,
        progress: Progress | None = None,
    ) -> Fitted:
        """Learn from a log alone: whole epochs until the validation log loss rises.

        The network of the best epoch is kept, and ``probability`` is calibrated on the
        validation part (``classification.platt``, which leaves the ranking as it is).

        Args:
            rows: what was recommended, to whom, and whether it was bought.
            validation: share of the sessions that are kept apart, or their row numbers (n,).
            epochs: at most so many passes.
            patience: epochs without a lower validation loss, after which it stops.
            progress: told of each epoch.

        Raises:
            UsageError: the rows do not fit the shop, or hold one session only.
        """
        as_number("epochs", epochs, 1, 10**6)
        as_number("patience", patience, 1, 10**6)
        self._check_rows(rows)
        if isinstance(validation, np.ndarray):
            apart_n = validation
            train_N = np.setdiff1d(np.arange(len(rows)), apart_n)
        else:
            as_number("validation", validation, POSITIVE, 1.0 - POSITIVE)
            train_N, apart_n = rows.split(float(validation), self.rng)
        if not len(train_N) or not len(apart_n):
            raise UsageError("neither the training nor the validation part may be empty")
        bought_n = np.asarray(rows.bought_N[apart_n], dtype=np.float64)

        def validate() -> float:
            return log_loss(sigmoid(self.log_odds(rows, apart_n)), bought_n)

        fitted = early_stopping(
            self.network, lambda: self._epoch(rows, train_N), validate, epochs, patience, progress
        )
        fitted.validation_rows = len(apart_n)
        fitted.calibration = platt(self.log_odds(rows, apart_n), bought_n)
        self._calibration = fitted.calibration
        return fitted

    def _check_rows(self, rows: Rows) -> None:
        (size,) = self.env.single_observation_space.shape
        seen = rows.observation[np.arange(1)].shape
        if seen != (1, size):
            raise UsageError(f"rows must have observations of {size} numbers, got {seen[1:]}")
        if np.max(rows.item_N) >= self.num_items:
            raise UsageError(
                f"item {np.max(rows.item_N)} of the log is not in the catalogue "
                f"0..{self.num_items - 1}"
            )
        if self._known and rows.shopper_id_N is not None:
            most = np.max(rows.shopper_id_N)
            if most >= self._known:
                raise UsageError(f"shopper {most} is none of the {self._known} of the clientele")

    def _epoch(self, rows: Rows, train_N: np.ndarray) -> float:
        """Learn from each row once, in random order; the mean loss."""
        order = torch.randperm(len(train_N), generator=self._generator).numpy()
        losses = []
        for row in np.array_split(train_N[order], -(-len(order) // self.batch_size)):
            known = None if rows.shopper_id_N is None else rows.shopper_id_N[row]
            observation = np.asarray(rows.observation[row], dtype=np.float32)
            bought_n = rows.bought_N[row].astype(np.float32)
            losses.append(self._descend(observation, known, rows.item_N[row], bought_n))
        return float(torch.stack(losses).mean())

    @torch.no_grad()
    def log_odds(self, rows: Rows, row_n: np.ndarray | None = None) -> np.ndarray:
        """Log odds (n,), not calibrated, that the items of these rows (default: all) are bought."""
        row_n = np.arange(len(rows)) if row_n is None else row_n
        told = []
        for row in np.array_split(row_n, max(-(-len(row_n) // PAIRS_AT_ONCE), 1)):
            known = None if rows.shopper_id_N is None else rows.shopper_id_N[row]
            tower = self._tower(np.asarray(rows.observation[row], dtype=np.float32), known)
            item = torch.as_tensor(rows.item_N[row], device=self._torch)
            told.append(self.network.pairs(tower, item).cpu().numpy())
        return np.concatenate(told)

    @torch.no_grad()
    def rank(self, rows: Rows, row_n: np.ndarray, k: int) -> np.ndarray:
        """The k best items (n, k) for the shoppers of these rows, best first."""
        known = None if rows.shopper_id_N is None else rows.shopper_id_N[row_n]
        tower = self._tower(np.asarray(rows.observation[row_n], dtype=np.float32), known)
        best: np.ndarray = self.network.all_items(tower).topk(k, dim=1).indices.cpu().numpy()
        return best

    def calibrated(self, log_odds: np.ndarray) -> np.ndarray:
        """Purchase probabilities of log odds, of any shape."""
        slope, offset = self._calibration
        return sigmoid(slope * np.asarray(log_odds, dtype=np.float64) + offset)

    def probability(self, observation: np.ndarray) -> np.ndarray:
        """Calibrated purchase probabilities of all items, (N, S) -> (N, I), or (S,) -> (I,).

        They are as good as what it learned from. After ``fit`` on a log with random
        recommendations they hold for every item; learned online, they hold best for what
        it recommends itself.
        """
        batch, single = as_batch(observation, self.env)
        told_NI = self.calibrated(self.score(batch))
        return told_NI[0] if single else told_NI

    def recommend(
        self, observation: np.ndarray, k: int = 10, threshold: float | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` best items and their scores, best first; or only those worth showing.

        Args:
            observation: (S,) or (N, S).
            k: length of the list.
            threshold: recommend only items that are bought with a higher (calibrated)
                probability than this, in [0, 1]; there may be none.

        Returns:
            items and scores (log odds), each (k,) or (N, k). With a threshold, the second
            is the probabilities, and places that nothing is good enough for hold item -1
            and probability NaN: ``items[items >= 0]`` is the list.
        """
        item_Nk, score_Nk = super().recommend(observation, k)
        if threshold is None:
            return item_Nk, score_Nk
        as_number("threshold", threshold, 0.0, 1.0)
        told_Nk = self.calibrated(score_Nk)
        worth_Nk = told_Nk > threshold
        return np.where(worth_Nk, item_Nk, -1), np.where(worth_Nk, told_Nk, np.nan)

    def settings(self) -> dict[str, Any]:
        return super().settings() | {name: getattr(self, name) for name in SETTINGS}

    def _save(self, directory: Path) -> None:
        calibration = torch.tensor(self._calibration, dtype=torch.float64)
        tensors = self.network.state_dict() | {CALIBRATION: calibration}
        write_tensors(directory / "network.safetensors", tensors)

    def _load(self, directory: Path) -> None:
        state = read_tensors(directory / "network.safetensors", self._torch)
        calibration = state.pop(CALIBRATION, None)  # earlier versions had none
        if calibration is not None:
            slope, offset = calibration.tolist()
            self._calibration = (slope, offset)
        self.network.load_state_dict(fitting(state, self.network.state_dict()))


SETTINGS = (
    "shopper",
    "encoder",
    "item",
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
