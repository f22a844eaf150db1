"""Linear Thompson sampling (Agrawal and Goyal 2013): LinUCB's posterior, explored by draws."""

from __future__ import annotations

from typing import Any, ClassVar

from agents.bandits.exploration import Thompson
from agents.bandits.linear import LinearBandit


class LinTS(LinearBandit):
    """Recommend the item with the highest purchase rate in a draw from the posterior."""

    name: ClassVar[str] = "lin_ts"
    exploration = Thompson

    def __init__(self, *, alpha: float = 0.25, **settings: Any):
        super().__init__(alpha=alpha, **settings)
