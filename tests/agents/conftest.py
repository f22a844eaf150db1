"""One torch thread (small tensors, a quiet machine), and the global generators."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def global_states() -> Callable[[], list[Any]]:
    """The states of the global generators, for comparison."""

    def states() -> list[Any]:
        kind, key, *rest = np.random.get_state()  # noqa: NPY002
        return [random.getstate(), kind, key.tolist(), rest, torch.get_rng_state().tolist()]

    return states


@pytest.fixture
def disturbed_globals() -> Callable[[], None]:
    """Draw from the global generators, as other code in the process might."""

    def disturb() -> None:
        random.random()
        np.random.random(100)  # noqa: NPY002
        torch.rand(100)

    return disturb
