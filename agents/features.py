"""What learning agents make of what they see: public item features and observations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from recenv.catalogue import Catalogue, principal_axes
from recenv.observation import Latent
from recenv.shop import Shop


def item_features(catalogue: Catalogue, most: int) -> np.ndarray:
    """Public features (I, G), G <= ``most``: as they are, or their principal components."""
    features_IF = catalogue.features_IF
    if features_IF.shape[1] <= most:
        return features_IF
    return features_IF @ principal_axes(features_IF, most)


def item_layout(catalogue: Catalogue) -> dict[str, Any]:
    """What the columns of ``features_IF`` mean, JSON-able."""
    return {
        "brands": int(catalogue.brand_I.max()) + 1,
        "log_price": list(catalogue.log_price_standard),
        "num_categories": catalogue.num_categories,
        "words": catalogue.keywords_IW.shape[1],
    }


def features_as_in(catalogue: Catalogue, layout: dict[str, Any]) -> np.ndarray:
    """Public features (I, F) with the columns of another catalogue's ``item_layout``.

    Its number of categories and words must be the same. Brands that it has not are told by
    no column, and the same price means the same.
    """
    features_IF = catalogue.features_IF
    if layout == item_layout(catalogue):
        return features_IF
    first, brands = catalogue.num_categories, layout["brands"]
    own = features_IF.shape[1] - first - 1 - catalogue.keywords_IW.shape[1]
    brand_IB = np.zeros((catalogue.num_items, brands), dtype=np.float32)
    both = min(own, brands)
    brand_IB[:, :both] = features_IF[:, first : first + both]
    mean, scale = layout["log_price"]
    log_price_I = ((np.log(catalogue.price_I) - mean) / scale).astype(np.float32)
    words_IW = features_IF[:, first + own + 1 :]
    return np.concatenate([features_IF[:, :first], brand_IB, log_price_I[:, None], words_IW], 1)


class OwnSatiation:
    """How sated a shopper is with the category of each item: (N, S) -> (N, I).

    Of all products of shopper and item features this is the one that linear models
    cannot find by themselves when there are many categories. Zero where the observation
    does not tell.
    """

    def __init__(self, shop: Shop, device: torch.device):
        self._part = (
            shop.observer.layout()["satiation"] if isinstance(shop.observer, Latent) else None
        )
        self._category_I = torch.as_tensor(shop.catalogue.category_I, device=device)

    def __call__(self, observation: torch.Tensor) -> torch.Tensor:
        if self._part is None:
            return observation.new_zeros(len(observation), len(self._category_I))
        return observation[:, self._part][:, self._category_I]

    def of(self, observation: torch.Tensor, item_N: torch.Tensor) -> torch.Tensor:
        """The same for one item each, (N,)."""
        if self._part is None:
            return observation.new_zeros(len(observation))
        category_N = self._category_I[item_N]
        return observation[:, self._part].gather(1, category_N[:, None])[:, 0]


def steps_taken(shop: Shop, observation: np.ndarray) -> np.ndarray:
    """How many recommendations each shopper has seen, (N, S) -> (N,)."""
    remaining = observation[:, shop.observer.layout()["remaining"].start]
    taken_N: np.ndarray = shop.horizon - np.rint(remaining * shop.horizon).astype(np.int64)
    return taken_N
