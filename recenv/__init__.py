"""recenv: the reference environment for reinforcement learning in recommendation.

``import recenv`` registers ``Recsys-v0``, ``RecsysGate-v0`` and ``RecsysRetrieve-v0`` with
Gymnasium.
"""

from __future__ import annotations

import gymnasium as gym

from recenv.dynamics import Event
from recenv.errors import MissingExtra, UsageError
from recenv.scenarios import SCENARIOS
from recenv.shop import Shop

__version__ = "0.1.0"
__all__ = ["SCENARIOS", "Event", "MissingExtra", "Shop", "UsageError", "register"]


def register() -> None:
    """Register the ids; safe to call again."""
    if "Recsys-v0" not in gym.registry:
        gym.register(
            "Recsys-v0",
            entry_point="recenv.env:RecsysEnv",
            vector_entry_point="recenv.vector_env:RecsysVectorEnv",
        )
    if "RecsysGate-v0" not in gym.registry:
        gym.register(
            "RecsysGate-v0",
            entry_point="recenv.gate:RecsysGateEnv",
            vector_entry_point="recenv.gate:RecsysGateVectorEnv",
        )
    if "RecsysRetrieve-v0" not in gym.registry:
        gym.register(
            "RecsysRetrieve-v0",
            entry_point="recenv.retrieve:make",
            vector_entry_point="recenv.retrieve:RecsysRetrieveVectorEnv",
        )


register()
