"""Nested (named) tuples and dictionaries of tensors, with None where there is nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import torch

Tensors = Sequence[torch.Tensor]


def leaves(tree: Any) -> list[torch.Tensor]:
    """The tensors, in order."""
    found: list[torch.Tensor] = []
    _gather((tree,), found)
    return found


def maker(tree: Any) -> Callable[[Tensors], Any]:
    """What makes such trees of as many tensors as there are ``leaves``.

    All questions are asked beforehand, as it is called at each step.
    """
    return _maker(tree, 0)[0]


def mapped(function: Callable[[torch.Tensor], torch.Tensor], tree: Any) -> Any:
    """The same tree of what the function makes of each tensor."""
    return maker(tree)([function(leaf) for leaf in leaves(tree)])


def _gather(parts: Any, found: list[torch.Tensor]) -> None:
    for part in parts:
        if isinstance(part, tuple):
            _gather(part, found)
        elif isinstance(part, dict):
            _gather(part.values(), found)
        elif part is not None:
            found.append(part)


def _maker(tree: Any, first: int) -> tuple[Callable[[Tensors], Any], int]:
    """What makes such trees of the tensors from the first on, and where the next tree begins."""
    if tree is None:
        return lambda _: None, first
    if not isinstance(tree, tuple | dict):
        return itemgetter(first), first + 1
    kind: Callable[..., Any] = getattr(tree, "_make", tuple)
    parts, end = [], first
    for part in tree.values() if isinstance(tree, dict) else tree:
        made, end = _maker(part, end)
        parts.append(made)
    if isinstance(tree, dict):
        names = list(tree)
        return lambda given: {n: part(given) for n, part in zip(names, parts, strict=True)}, end
    if end - first == len(parts) and all(isinstance(part, itemgetter) for part in parts):
        return lambda given: kind(given[first:end]), end
    return lambda given: kind([part(given) for part in parts]), end
