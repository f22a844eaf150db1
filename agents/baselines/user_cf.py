"""User-based collaborative filtering: shoppers who answered alike will answer alike."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from agents.baselines.base import Known, Recommender
from agents.baselines.ratings import Ratings

Tensor = torch.Tensor


class UserCF(Recommender):
    """Guess from those who answered as she did (Resnick et al. 1994, "GroupLens").

    Shoppers are alike by the cosine of how their answers differ from what others answered to the
    same items. An item is as good as its mean, and better by as much as her ``neighbours`` nearest
    liked it better, each weighted by how alike she is.

    Args:
        shrink: answers of neighbours who agree with everybody that are added to every item's, so
            that one neighbour alone does not decide.
    """

    name: ClassVar[str] = "user_cf"
    bounds = Recommender.bounds | {"shrink": (0.0, 1e9)}
    own = ("shrink",)

    def __init__(self, *, shrink: float = 1.0, **settings: Any):
        super().__init__(**settings)
        self.check(shrink=shrink)
        self.shrink = shrink
        self._unit_PI: Tensor | None = None

    def _learn_from(self, ratings: Ratings) -> None:
        """There is nothing but the rows."""

    def _take(self, ratings: Ratings, who_RC: Tensor, mean_I: Tensor | None = None) -> None:
        super()._take(ratings, who_RC, mean_I)
        value_PI, count_PI = self._of_pool
        self._excess_PI = value_PI - count_PI * self._mean_I
        self._unit_PI = self._directions((value_PI, count_PI))

    def _directions(self, known: Known) -> Tensor:
        """How the mean answers differ from those of others, as unit vectors (N, I)."""
        value_NI, count_NI = known
        excess_NI = (value_NI - count_NI * self._mean_I) / count_NI.clamp(min=1.0)
        return torch.nn.functional.normalize(excess_NI, dim=1)

    def _affinity(self, known: Known) -> Tensor:
        assert self._unit_PI is not None
        if not len(self._unit_PI):
            return self._mean_I.expand(len(known[0]), -1)
        alike_NP = self._directions(known) @ self._unit_PI.T
        k = min(self.neighbours, len(self._unit_PI))
        alike_Nk, place_Nk = alike_NP.topk(k, dim=1)
        return self._as_her(place_Nk, alike_Nk.clamp(min=0.0))

    def _as_her(self, near_Nk: Tensor, weight_Nk: Tensor) -> Tensor:
        bag = torch.nn.functional.embedding_bag
        excess_NI, count_NI = (
            bag(near_Nk, table, per_sample_weights=weight_Nk, mode="sum")
            for table in (self._excess_PI, self._of_pool[1])
        )
        return self._mean_I + excess_NI / (count_NI + self.shrink).clamp(min=1e-6)
