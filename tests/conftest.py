"""What all tests share."""

from __future__ import annotations

import matplotlib as mpl
import pytest
import torch

mpl.use("Agg")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """More threads than cores make small networks many times slower."""
    torch.set_num_threads(1)
