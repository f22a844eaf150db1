"""Every stream of random numbers has a role, so that no seed does two jobs.

``world_seed`` decides which shop, ``seed`` the agent and the shoppers that it trains
on, ``eval.seed`` the shoppers that judge it. Two roles with one seed are independent.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Role(IntEnum):
    """What a stream is for; the numbers are part of every published figure."""

    WORLD = 1
    CLIENTELE = 2
    DRIFT_TABLE = 3
    CALIBRATION = 4
    TRAINING = 5
    EVALUATION = 6
    AGENT = 7
    TUNING = 8
    STATISTICS = 9
    LOG = 10
    ORGANIC = 11
    SPLIT = 12


def generator(role: Role, seed: int) -> np.random.Generator:
    """A generator for one role and seed, independent of every other role and seed."""
    return np.random.default_rng(np.random.SeedSequence([role, seed]))


def derive_seed(role: Role, seed: int) -> int:
    """A 31-bit seed for interfaces that take only an integer."""
    return int(np.random.SeedSequence([role, seed]).generate_state(1)[0] >> 1)
