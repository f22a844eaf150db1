"""Errors that a user can mend: one line that says what is wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class UsageError(ValueError):
    """A mistake in what was asked for. The message is one line and names the fix."""

    def __init__(self, message: str):
        # what the message quotes (an array, another error) may have several lines
        super().__init__(" ".join(line.strip() for line in message.splitlines()))


class MissingExtra(UsageError, ImportError):  # noqa: N818
    """An optional dependency is not installed. The message names the extra."""

    def __init__(self, what: str, module: str, extra: str):
        self._arguments = (what, module, extra)
        super().__init__(
            f"{what} needs {module}, which is not installed: "
            f'install it with pip install "recenv[{extra}]"'
        )

    def __reduce__(self) -> tuple[type[MissingExtra], tuple[str, str, str]]:
        return MissingExtra, self._arguments  # so that it passes between processes


def unknown(kind: str, name: object, known: Iterable[str]) -> UsageError:
    """The error for a name that is not among ``known``, with the nearest one."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(names)}"
    return UsageError(f"unknown {kind} {name!r}: {hint}")


def check_options(options: Any, known: tuple[str, ...]) -> dict[str, Any]:
    """The ``options`` of a reset, {} for None.

    Raises:
        UsageError: they are no dictionary, or a key is not among ``known``.
    """
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise UsageError(f"options of reset must be a dictionary, got {options!r}")
    for name in options:
        if not known:
            raise UsageError(f"reset of this environment has no options, got {name!r}")
        if name not in known:
            raise unknown("option of reset", name, known)
    return options
