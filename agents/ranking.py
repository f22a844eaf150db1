"""How good a ranked list is: recall@k, NDCG@k and coverage, the one home of these figures.

Every case is one list that was made for a shopper, and the one item that she bought next
(the usual leave-one-out of the literature). Figures come case by case, so that whoever reports
them can redraw shoppers for an interval. Axis letters: n cases, k places of a list, I items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recenv.errors import UsageError


@dataclass(frozen=True)
class Ranking:
    """What n lists of k items are worth.

    Attributes:
        recall_n: 1 where the bought item is on the list, else 0. With one item bought this is
            the hit rate.
        ndcg_n: 1 / log2(1 + its place), the first place being 1; 0 where it is not on the list.
        coverage: share of the catalogue that is on any list.
    """

    recall_n: np.ndarray
    ndcg_n: np.ndarray
    coverage: float

    @property
    def recall(self) -> float:
        """recall@k; NaN where there was no case."""
        return _mean(self.recall_n)

    @property
    def ndcg(self) -> float:
        """NDCG@k; NaN where there was no case."""
        return _mean(self.ndcg_n)


def judge_lists(item_nk: np.ndarray, target_n: np.ndarray, num_items: int) -> Ranking:
    """Figures of lists, best item first.

    Args:
        item_nk: (n, k) items; -1 where a list is shorter.
        target_n: (n,) what was bought.
        num_items: I.

    Raises:
        UsageError: the shapes do not fit, or an item is not in the catalogue.
    """
    item_nk, target_n = np.asarray(item_nk), np.asarray(target_n)
    _check(item_nk, target_n, num_items)
    place_n, found_n = _place(item_nk, target_n)
    gain_n = np.where(found_n, 1.0 / np.log2(2.0 + place_n), 0.0)
    shown = np.unique(item_nk[item_nk >= 0])
    return Ranking(found_n.astype(float), gain_n, len(shown) / num_items)


def judge_scores(
    score_nI: np.ndarray, target_n: np.ndarray, k: int, rng: np.random.Generator
) -> Ranking:
    """Figures of the k highest scores; equal scores come in random order, so that an order of
    the items by luck or by sales cannot pass for knowledge.

    Args:
        score_nI: (n, I).
        target_n: (n,) what was bought.
        k: length of the lists.
        rng: settles ties.
    """
    return judge_lists(best_items(score_nI, k, rng), target_n, np.shape(score_nI)[1])


def best_items(score_nI: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """The k items of the highest scores, best first, equals in random order: (n, k).

    Raises:
        UsageError: the scores are no table of finite numbers, or k is not in 1..I.
    """
    score_nI = np.asarray(score_nI)
    if score_nI.ndim != 2 or not np.isfinite(score_nI).all():
        raise UsageError("scores to rank must be finite, of shape (n, I)")
    if not 1 <= k <= score_nI.shape[1]:
        raise UsageError(f"k must be a whole number in 1..{score_nI.shape[1]}, got {k!r}")
    # a stable sort of shuffled columns leaves equals in the order of the shuffle
    shuffled_I = rng.permutation(score_nI.shape[1])
    order_nk = np.argsort(-score_nI[:, shuffled_I], axis=1, kind="stable")[:, :k]
    return shuffled_I[order_nk]


def _place(item_nk: np.ndarray, target_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the target stands in each list, from 0, and whether it does."""
    match_nk = item_nk == target_n[:, None]
    return match_nk.argmax(axis=1), match_nk.any(axis=1)


def _check(item_nk: np.ndarray, target_n: np.ndarray, num_items: int) -> None:
    if item_nk.ndim != 2 or target_n.shape != item_nk.shape[:1]:
        raise UsageError(
            f"lists (n, k) need one bought item each (n,), got {item_nk.shape} and {target_n.shape}"
        )
    if item_nk.shape[1] == 0:
        raise UsageError("lists must have at least one place")
    for name, table, lowest in (("listed", item_nk, -1), ("bought", target_n, 0)):
        if table.dtype.kind not in "iu":
            raise UsageError(f"{name} items must be whole numbers, got {table.dtype}")
        if table.size and not lowest <= table.min() <= table.max() < num_items:
            raise UsageError(f"a {name} item is not in the catalogue 0..{num_items - 1}")


def _mean(value_n: np.ndarray) -> float:
    return float(value_n.mean()) if len(value_n) else float("nan")
