"""What shoppers did, as ratings of items: what collaborative filters work on.

Axis letters beside those of the glossary: S sessions, R rows of ratings (a shopper, or a
session where shoppers are strangers), L entries (row and item), n rows that are asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from recenv.dynamics import Event
from recenv.errors import UsageError
from recenv.observation import Behaviour

Tensor = torch.Tensor
# What an answer says of how much she likes the item; a search is about no item.
VALUE = {
    Event.IGNORE: 0.0,
    Event.NOT_INTERESTED: -0.25,
    Event.VIEW: 0.25,
    Event.CART: 0.5,
    Event.PURCHASE: 1.0,
    Event.SEARCH: 0.0,
}
VALUE_E = torch.tensor([VALUE[event] for event in Event])
CAUTION = 10.0  # answers of an average item that are added to every item's


@dataclass(frozen=True)
class Ratings:
    """Answers by row and item: the sum of their values and their number, sparse.

    Attributes:
        start_R: (R + 1,) where each row's entries begin.
        item_L: the items of the entries, ascending within a row.
        value_L, count_L: sum and number of the answers of each entry.
        num_items: I.
    """

    start_R: Tensor
    item_L: Tensor
    value_L: Tensor
    count_L: Tensor
    num_items: int

    @classmethod
    def of(
        cls, row_n: Tensor, item_n: Tensor, event_n: Tensor, num_rows: int, num_items: int
    ) -> Ratings:
        """From single answers (n,), in any order; those without an item are left out."""
        about = (item_n >= 0) & (event_n >= 0)
        key_n = row_n[about] * num_items + item_n[about]
        key_L, entry_n = torch.unique(key_n, return_inverse=True)
        value_n = VALUE_E.to(key_n.device)[event_n[about]]
        value_L = value_n.new_zeros(len(key_L)).index_add_(0, entry_n, value_n)
        count_L = torch.bincount(entry_n, minlength=len(key_L)).to(value_L.dtype)
        per_row = torch.bincount(key_L // num_items, minlength=num_rows)
        start_R = torch.cat([per_row.new_zeros(1), per_row.cumsum(0)])
        return cls(start_R, key_L % num_items, value_L, count_L, num_items)

    @classmethod
    def none(cls, num_items: int, device: torch.device) -> Ratings:
        """No rows at all."""
        nothing = torch.zeros(0, dtype=torch.int64, device=device)
        return cls.of(nothing, nothing, nothing, 0, num_items)

    def __len__(self) -> int:
        return len(self.start_R) - 1

    @property
    def answers_R(self) -> Tensor:
        """How many answers each row holds."""
        row_L = torch.arange(len(self), device=self.start_R.device).repeat_interleave(
            self.start_R.diff()
        )
        return self.count_L.new_zeros(len(self)).index_add_(0, row_L, self.count_L)

    def rows(self, row_n: Tensor) -> Ratings:
        """Some of the rows, in the order asked for."""
        length_n = self.start_R.diff()[row_n]
        start_n = torch.cat([length_n.new_zeros(1), length_n.cumsum(0)])
        shift_n = self.start_R[row_n] - start_n[:-1]
        entry = torch.arange(int(start_n[-1]), device=row_n.device)
        entry = entry + shift_n.repeat_interleave(length_n)
        return Ratings(
            start_n, self.item_L[entry], self.value_L[entry], self.count_L[entry], self.num_items
        )

    def dense(self) -> tuple[Tensor, Tensor]:
        """Values and counts as tables (R, I)."""
        row_L = torch.arange(len(self), device=self.start_R.device).repeat_interleave(
            self.start_R.diff()
        )
        value_RI = self.value_L.new_zeros(len(self), self.num_items)
        count_RI = torch.zeros_like(value_RI)
        value_RI[row_L, self.item_L] = self.value_L
        count_RI[row_L, self.item_L] = self.count_L
        return value_RI, count_RI

    def item_means(self) -> Tensor:
        """Mean value of the answers to each item (I,), drawn toward that of all items."""
        total_I = self.value_L.new_zeros(self.num_items).index_add_(0, self.item_L, self.value_L)
        count_I = self.value_L.new_zeros(self.num_items).index_add_(0, self.item_L, self.count_L)
        overall = self.value_L.sum() / self.count_L.sum().clamp(min=1.0)
        return (total_I + CAUTION * overall) / (count_I + CAUTION)

    def tensors(self) -> dict[str, Tensor]:
        """For ``write_tensors``."""
        return {
            "start": self.start_R,
            "item": self.item_L,
            "value": self.value_L,
            "count": self.count_L,
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], num_items: int) -> Ratings:
        """What ``tensors`` gave.

        Raises:
            UsageError: they are no ratings of so many items.
        """
        start_R, item_L, value_L, count_L = (
            tensors[name] for name in ("start", "item", "value", "count")
        )
        whole = (
            len(start_R) > 0
            and int(start_R[0]) == 0
            and int(start_R[-1]) == len(item_L) == len(value_L) == len(count_L)
            and bool((start_R.diff() >= 0).all())
            and bool(((item_L >= 0) & (item_L < num_items)).all())
        )
        if not whole:
            raise UsageError("its ratings are not of the items of this shop: train it again")
        return cls(start_R, item_L, value_L, count_L, num_items)


def session_answers(
    items_ST: np.ndarray, events_ST: np.ndarray, row_S: np.ndarray
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, items and events (n,) of all answers in sessions that end with -1."""
    place = np.nonzero((items_ST >= 0) & (events_ST >= 0))
    row_n = np.asarray(row_S, dtype=np.int64)[place[0]]
    item_n, event_n = (np.asarray(table[place], dtype=np.int64) for table in (items_ST, events_ST))
    return torch.as_tensor(row_n), torch.as_tensor(item_n), torch.as_tensor(event_n)


class ItemLookup:
    """Which items an observation's feature rows are of.

    An observation of behaviour shows the features of past items, bit for bit those of the
    catalogue. Where several items have the same features, the first of them is meant: they
    cannot be told apart.
    """

    def __init__(self, features_IF: np.ndarray):
        self._features_IF = np.ascontiguousarray(features_IF, dtype=np.float32)
        rng = np.random.default_rng(0)
        # odd multipliers of the bits: equal rows have equal keys, others hardly ever
        self._multiplier_F = rng.integers(2**62, size=features_IF.shape[1], dtype=np.uint64) * 2 + 1
        key_I = self._keys(self._features_IF)
        self._key_U, self._item_U = np.unique(key_I, return_index=True)

    def _keys(self, row_nF: np.ndarray) -> np.ndarray:
        bits_nF = np.ascontiguousarray(row_nF, dtype=np.float32).view(np.uint32)
        keys: np.ndarray = bits_nF.astype(np.uint64) @ self._multiplier_F
        return keys

    def __call__(self, row_nF: np.ndarray) -> np.ndarray:
        """Items (n,); -1 for rows that are no item's."""
        place_n = np.searchsorted(self._key_U, self._keys(row_nF)).clip(max=len(self._key_U) - 1)
        item_n = self._item_U[place_n]
        same_n = (self._features_IF[item_n] == row_nF).all(axis=1)
        return np.where(same_n, item_n, -1)

    def interactions(
        self, observer: Behaviour, observation: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Items and events (N, H), newest first, -1 for none, of observations (N, S)."""
        parts = observer.unflatten(observation)
        told_NH = parts["events"].any(axis=-1)
        events_NH = np.where(told_NH, parts["events"].argmax(axis=-1), -1)
        items_NH = np.full(told_NH.shape, -1, dtype=np.int64)
        items_NH[told_NH] = self(parts["items"][told_NH])
        return items_NH, events_NH
