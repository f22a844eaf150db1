"""Nested (named) tuples and dictionaries of tensors, with None where there is nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import torch

Tensors = Sequence[torch.Tensor]


def leaves(tree: Any) -> list[torch.Tensor]:
    """The tensors, in order."""
    return list(taker(tree)(tree))


def taker(tree: Any) -> Callable[[Any], Tensors]:
    """What finds the ``leaves`` of such trees.

    All questions are asked beforehand, as it is called at each step.
    """
    if not isinstance(tree, tuple | dict):
        return (lambda _: ()) if tree is None else (lambda leaf: (leaf,))
    if isinstance(tree, tuple) and all(isinstance(part, torch.Tensor) for part in tree):
        return lambda given: given
    names = tree if isinstance(tree, dict) else range(len(tree))
    parts = [(name, taker(tree[name])) for name in names if tree[name] is not None]
    return lambda given: [leaf for name, take in parts for leaf in take(given[name])]


def maker(tree: Any) -> Callable[[Tensors], Any]:
    """What makes such trees of as many tensors as there are ``leaves``; all is asked beforehand."""
    return _maker(tree, 0)[0]


def mapped(function: Callable[[torch.Tensor], torch.Tensor], tree: Any) -> Any:
    """The same tree of what the function makes of each tensor."""
    return maker(tree)([function(leaf) for leaf in leaves(tree)])


def plain(tree: Any) -> Any:
    """Tuples as dictionaries, by name or by place, without what is None."""
    if not isinstance(tree, tuple):
        return tree
    named = tree._asdict() if hasattr(tree, "_asdict") else dict(enumerate(tree))
    return {str(name): plain(part) for name, part in named.items() if part is not None}


def filled(like: Any, kept: Any, tensor: Callable[[Any], torch.Tensor]) -> Any:
    """A tree such as ``like`` of what ``plain`` made of one, by a function that makes tensors."""
    if like is None:
        return None
    if not isinstance(like, tuple):
        return tensor(kept)
    names = getattr(like, "_fields", range(len(like)))
    parts = [
        filled(part, kept.get(str(name)), tensor) for name, part in zip(names, like, strict=True)
    ]
    return getattr(like, "_make", tuple)(parts)


def check_like(name: str, kept: Any, like: Any) -> None:
    """Refuse what has other parts, sizes or kinds of numbers, or numbers that are not finite.

    Raises:
        ValueError: and says what is wrong with it.
    """
    if isinstance(like, dict):
        if not isinstance(kept, dict) or set(kept) != set(like):
            raise ValueError(f"its {name} has other parts")
        for part in like:
            check_like(part, kept[part], like[part])
    elif hasattr(like, "dtype"):
        _check_array(name, torch.as_tensor(kept), torch.as_tensor(like))
    elif type(kept) is not type(like):
        raise ValueError(f"its {name} must be of type {type(like).__name__}")


def _check_array(name: str, kept: torch.Tensor, like: torch.Tensor) -> None:
    if kept.shape != like.shape:
        raise ValueError(f"its {name} is of another size")
    if kept.dtype != like.dtype:
        raise ValueError(f"its {name} is of {kept.dtype}, not {like.dtype}")
    if kept.is_floating_point() and not kept.isfinite().all():
        raise ValueError(f"its {name} holds what is no number")


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
