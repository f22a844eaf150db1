"""LinUCB (Li et al. 2010)."""

from __future__ import annotations

from typing import ClassVar

from agents.bandits.exploration import UpperBound
from agents.bandits.linear import LinearBandit


class LinUCB(LinearBandit):
    """Recommend the item with the highest upper confidence bound of the purchase rate."""

    name: ClassVar[str] = "linucb"
    exploration = UpperBound
