"""What the tests of the environment share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from hypothesis import settings

from recenv.errors import UsageError

# derandomize: every run of the suite looks at the same examples
settings.register_profile("recenv", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("recenv")

Refuses = Callable[[str], AbstractContextManager[None]]


@pytest.fixture(scope="session")
def refuses() -> Refuses:
    """``with refuses(pattern)``: the block raises a UsageError of one line that matches."""

    @contextmanager
    def check(pattern: str) -> Iterator[None]:
        with pytest.raises(UsageError, match=pattern) as caught:
            yield
        assert len(str(caught.value).splitlines()) == 1

    return check
