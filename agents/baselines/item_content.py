"""Item-content similarity: more of what is like the items that she liked."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from agents.baselines.base import Known, Recommender
from agents.baselines.ratings import Ratings

Tensor = torch.Tensor


class ItemContent(Recommender):
    """Guess from what the items that she liked look like (Rocchio 1971; Lops et al. 2011).

    Her profile is the sum of the items that she answered to, as vectors of their public features,
    each weighted by how much better than others she liked it. An item is as good as its mean, and
    better by the cosine of its vector and her profile. Rare features count more than common ones
    (inverse document frequency), and what all items share counts nothing.

    Args:
        strength: what a perfect match adds to an item's mean answer.
        shrink: answers until the profile is half believed.
    """

    name: ClassVar[str] = "item_content"
    bounds = Recommender.bounds | {"strength": (0.0, 1e6), "shrink": (0.0, 1e9)}
    own = ("strength", "shrink")

    def __init__(self, *, strength: float = 1.0, shrink: float = 3.0, **settings: Any):
        super().__init__(**settings)
        self.check(strength=strength, shrink=shrink)
        self.strength, self.shrink = strength, shrink
        self._vectors: tuple[int, Tensor] | None = None

    def _learn_from(self, ratings: Ratings) -> None:
        """Features are given, and means are all that is learned."""

    def _affinity(self, known: Known) -> Tensor:
        value_NI, count_NI = known
        unit_IF = self._content()
        profile_NF = (value_NI - count_NI * self._mean_I) @ unit_IF
        match_NI = torch.nn.functional.normalize(profile_NF, dim=1) @ unit_IF.T
        answers_N1 = count_NI.sum(1, keepdim=True)
        belief_N1 = answers_N1 / (answers_N1 + self.shrink).clamp(min=1e-6)
        return self._mean_I + self.strength * belief_N1 * match_NI

    def _content(self) -> Tensor:
        """Items as unit vectors (I, F) of the catalogue in use."""
        features_IF = self.catalogue.features_IF
        if self._vectors is None or self._vectors[0] != id(features_IF):
            self._vectors = (id(features_IF), content_vectors(features_IF).to(self._torch))
        return self._vectors[1]


def content_vectors(features_IF: Any) -> Tensor:
    """Public features as unit vectors (I, F): centred, weighted by how rare they are."""
    feature_IF = torch.as_tensor(features_IF, dtype=torch.float32)
    share_F = (feature_IF != 0).float().mean(0)
    rarity_F = torch.log((1 + len(feature_IF)) / (1 + share_F * len(feature_IF))) + 1
    weighted_IF = (feature_IF - feature_IF.mean(0)) * rarity_F
    return torch.nn.functional.normalize(weighted_IF, dim=1)
