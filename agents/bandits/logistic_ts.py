"""Logistic Thompson sampling (Chapelle and Li 2011), by Laplace's approximation."""

from __future__ import annotations

from typing import Any, ClassVar

from agents.bandits.exploration import Thompson
from agents.bandits.linear import LinearBandit


class LogisticTS(LinearBandit):
    """Recommend the item with the highest log odds of a purchase in a draw from the posterior;
    it is the log odds that are linear."""

    name: ClassVar[str] = "logistic_ts"
    exploration = Thompson
    logistic = True

    def __init__(self, *, item_size: int = 32, **settings: Any):
        super().__init__(item_size=item_size, **settings)
