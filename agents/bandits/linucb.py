"""LinUCB (Li et al. 2010)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from agents.bandits.exploration import UpperBound
from agents.bandits.linear import LinearBandit


class LinUCB(LinearBandit):
    """Recommend the item with the highest upper confidence bound of the purchase rate."""

    name: ClassVar[str] = "linucb"
    exploration = UpperBound

    def propensity(self, item_N: np.ndarray) -> np.ndarray:
        # it draws nothing, but for random items before it knows what observations are like
        share = 1.0 if self._posterior is not None else 1.0 / self.num_items
        return np.full(len(item_N), share)
