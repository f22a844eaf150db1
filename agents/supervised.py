"""Fitting a network to a log: the rows, the split by sessions, early stopping."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from array_api_compat import numpy as xp
from torch import nn

from recenv.dynamics import Event
from recenv.errors import UsageError
from recenv.observation import Behaviour

# Epoch (from 1), mean training loss, validation loss; training stops when it returns False.
Progress = Callable[[int, float, float], bool]


class Observations(Protocol):
    """An array (N, S), or whatever makes one of the rows that are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: Any) -> np.ndarray: ...


class Windows:
    """Observations of behaviour, made when they are asked for: those of a million rows would
    fill a machine's memory.

    Args:
        observer: how they are laid out.
        session_N: number of the session, from 0.
        step_N: place of the recommendation in its session, from 0; none is missing.
        item_N: what was shown.
        event_N: codes of ``recenv.dynamics.Event``.
    """

    def __init__(
        self,
        observer: Behaviour,
        session_N: np.ndarray,
        step_N: np.ndarray,
        item_N: np.ndarray,
        event_N: np.ndarray,
    ):
        self._observer = observer
        self._place = session_N, step_N
        h, shape = observer.history, (int(session_N.max()) + 1, int(step_N.max()) + 1)
        # H empty places before each session
        self._items, self._events = (np.full((shape[0], h + shape[1]), -1) for _ in range(2))
        self._items[session_N, h + step_N] = item_N
        self._events[session_N, h + step_N] = event_N
        happened = np.zeros((*shape, len(Event)), dtype=np.float32)
        happened[session_N, step_N, event_N] = 1.0
        self._counts = happened.cumsum(axis=1) - happened
        self._tables = observer.table, observer.event_table

    def __len__(self) -> int:
        return len(self._place[0])

    def __getitem__(self, row: Any) -> np.ndarray:
        """The observations (n, S) before these recommendations."""
        session_n, step_n = (of[row] for of in self._place)
        newest_first_H = self._observer.history - 1 - np.arange(self._observer.history)
        at = session_n[:, None], step_n[:, None] + newest_first_H
        seen: np.ndarray = self._observer.observe(
            xp,
            (self._observer.horizon - step_n).astype(np.float32),
            self._counts[session_n, step_n],
            self._items[at],
            self._events[at],
            *self._tables,
        )
        return seen

    def take(self, row_n: np.ndarray) -> Windows:
        """Those of some rows; their windows hold what they held."""
        taken = copy.copy(self)
        taken._place = self._place[0][row_n], self._place[1][row_n]
        return taken


@dataclass(frozen=True)
class Rows:
    """N recommendations, what was seen before each, and what became of them.

    Attributes:
        observation: (N, S), see ``Observations``.
        item_N: what was recommended.
        bought_N: 1 where it was bought, else 0.
        session_N: rows of one session are alike: none is split between training and judging.
        shopper_id_N: who it was, where she is one of a clientele; None: strangers.

    Raises:
        UsageError: there are no rows, or the arrays do not fit.
    """

    observation: Observations
    item_N: np.ndarray
    bought_N: np.ndarray
    session_N: np.ndarray
    shopper_id_N: np.ndarray | None = None

    def __post_init__(self) -> None:
        ids = self.item_N if self.shopper_id_N is None else self.shopper_id_N
        sizes = [len(self.observation), len(ids)]
        sizes += [len(self.item_N), len(self.bought_N), len(self.session_N)]
        if len(set(sizes)) != 1 or not sizes[0]:
            raise UsageError(f"rows to learn from need arrays of one length > 0, got {sizes}")
        if not np.isin(self.bought_N, (0, 1)).all():
            raise UsageError("bought_N must be 0 or 1")
        for name, of in (("item_N", self.item_N), ("shopper_id_N", ids)):
            if np.asarray(of).dtype.kind not in "iu" or np.min(of) < 0:
                raise UsageError(f"{name} must be whole numbers of 0 or more")

    def __len__(self) -> int:
        return len(self.item_N)

    def split(self, share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers to learn from, and those of about ``share`` of the sessions.

        Raises:
            UsageError: there is but one session.
        """
        sessions = np.unique(self.session_N)
        if len(sessions) < 2:
            raise UsageError("a validation part needs at least 2 sessions, got 1")
        count = min(max(round(share * len(sessions)), 1), len(sessions) - 1)
        apart_N = np.isin(self.session_N, rng.permutation(sessions)[:count])
        return np.flatnonzero(~apart_N), np.flatnonzero(apart_N)


@dataclass
class Fitted:
    """How a fit went, epoch by epoch.

    Attributes:
        train_loss: mean loss of the rows while they were learned from.
        validation_loss: after each epoch.
        best: the epoch (from 0) whose network was kept.
        stopped: whether patience ended it, not the number of epochs.
        validation_rows: how many were validated on.
        calibration: slope and offset that make log odds fit the validation part.
    """

    train_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    best: int = -1
    stopped: bool = False
    validation_rows: int = 0
    calibration: tuple[float, float] = (1.0, 0.0)


def early_stopping(
    network: nn.Module,
    learn: Callable[[], float],
    validate: Callable[[], float],
    epochs: int,
    patience: int,
    progress: Progress | None = None,
) -> Fitted:
    """Learn until the validation loss has not fallen for ``patience`` epochs; keep the best.

    Args:
        network: is left as it was after its best epoch.
        learn: one epoch; its mean loss.
        validate: the validation loss.
        epochs: at most so many.
        progress: told of each epoch; stops the fit by returning False.
    """
    fitted, kept = Fitted(), copy.deepcopy(network.state_dict())
    for epoch in range(epochs):
        fitted.train_loss.append(learn())
        fitted.validation_loss.append(validate())
        if fitted.best < 0 or fitted.validation_loss[-1] < fitted.validation_loss[fitted.best]:
            fitted.best, kept = epoch, copy.deepcopy(network.state_dict())
        told = fitted.train_loss[-1], fitted.validation_loss[-1]
        going = progress is None or progress(epoch + 1, *told)
        fitted.stopped = epoch - fitted.best >= patience
        if fitted.stopped or not going:
            break
    network.load_state_dict(kept)
    return fitted
