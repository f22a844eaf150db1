"""What all tests share."""

from __future__ import annotations

import signal

import matplotlib as mpl
import pytest
import torch

mpl.use("Agg")
# a process that was started in the background ignores Ctrl-C, and so would all that tests start
signal.signal(signal.SIGINT, signal.default_int_handler)


LONGEST = ("test_readme.py", "test_docs.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest come first, so that nobody waits for them alone at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """More threads than cores make small networks many times slower."""
    torch.set_num_threads(1)
