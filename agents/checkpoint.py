"""How far an agent has come, on disk and back to the bit. No pickle: JSON and plain arrays."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from zipfile import BadZipFile

import numpy as np
import torch
from torch import nn

from agents.files import fitting

TREE = "tree"  # the entry of a file that holds all but the arrays, as JSON in bytes
# what ``read`` raises where a file is no whole checkpoint
DAMAGED = (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile)
ARRAY, TENSOR = "<array>", "<tensor>"  # what stands in the tree where an array was


class Resumable:
    """Something that changes while an agent learns, in the attributes that ``progress`` names.

    These may be plain values, arrays, tensors, generators of random numbers, networks,
    optimisers, other resumable things, and lists and dictionaries of all these. A subclass
    adds its own: ``progress = Base.progress + ("mine",)``.
    """

    progress: ClassVar[tuple[str, ...]] = ()

    def checkpoint(self) -> dict[str, Any]:
        """All that decides what comes next, for ``write``. Arrays are not copied: they hold
        only until more is learned."""
        return {name: freeze(getattr(self, name)) for name in self.progress}

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on from a ``checkpoint`` of the like."""
        if kept.keys() != set(self.progress):
            odd = sorted(kept.keys() ^ set(self.progress))
            raise ValueError(f"{type(self).__name__} keeps other things than this: {odd[0]}")
        for name in self.progress:
            before = getattr(self, name)
            after = thaw(kept[name], before)
            if after is not before:
                setattr(self, name, after)


def freeze(thing: Any) -> Any:
    """What ``write`` can write: plain values, arrays and tensors, in lists and dictionaries."""
    if hasattr(thing, "checkpoint"):
        return thing.checkpoint()
    if isinstance(thing, np.random.Generator):
        return thing.bit_generator.state
    if isinstance(thing, torch.Generator):
        return thing.get_state()
    if isinstance(thing, (nn.Module, torch.optim.Optimizer)):
        return freeze(thing.state_dict())
    if isinstance(thing, dict):  # an optimiser numbers its parameters
        return {str(name): freeze(value) for name, value in thing.items()}
    if isinstance(thing, (list, tuple, deque)):
        return [freeze(value) for value in thing]
    return thing.item() if isinstance(thing, np.generic) else thing


def thaw(kept: Any, into: Any = None) -> Any:
    """The thing that ``freeze`` made this of: ``into`` itself, where that can be filled."""
    if hasattr(into, "restore"):
        into.restore(kept)
    elif isinstance(into, np.random.Generator):
        into.bit_generator.state = kept
    elif isinstance(into, torch.Generator):
        into.set_state(kept.cpu())
    elif isinstance(into, nn.Module):
        into.load_state_dict(fitting(kept, into.state_dict()))
    elif isinstance(into, torch.optim.Optimizer):
        into.load_state_dict(_optimiser(kept))
    elif isinstance(into, deque):
        return deque(kept)
    else:
        return kept
    return into


def _optimiser(kept: dict[str, Any]) -> dict[str, Any]:
    """The state of an optimiser as JSON has no numbers for names, and no tuples."""
    groups = [
        {name: tuple(v) if name == "betas" else v for name, v in group.items()}
        for group in kept["param_groups"]
    ]
    state = {int(number): value for number, value in kept["state"].items()}
    return {"state": state, "param_groups": groups}


def write(path: Path, tree: dict[str, Any]) -> None:
    """Write a tree of plain values, arrays and tensors; it is on disk when this returns.

    Raises:
        OSError: it cannot be written.
    """
    arrays: dict[str, Any] = {}

    def told(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: told(value) for name, value in part.items()}
        if isinstance(part, (list, tuple)):
            return [told(value) for value in part]
        if not isinstance(part, (np.ndarray, torch.Tensor)):
            return part
        kind = TENSOR if isinstance(part, torch.Tensor) else ARRAY
        array = part.detach().cpu().numpy() if isinstance(part, torch.Tensor) else part
        # products of matrices depend, in the last bits, on the order of these in memory
        order = np.argsort([-stride for stride in array.strides], kind="stable").tolist()
        number = str(len(arrays))
        arrays[number] = np.ascontiguousarray(array.transpose(order)).reshape(array.size)
        return {kind: number, "shape": [array.shape[axis] for axis in order], "order": order}

    text = json.dumps(told(tree))
    with path.open("wb") as file:
        arrays[TREE] = np.frombuffer(text.encode(), dtype=np.uint8)
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path, device: torch.device) -> dict[str, Any]:
    """What ``write`` wrote; tensors lie on ``device``.

    Raises:
        DAMAGED: there is no such file, or it is not whole.
    """
    with np.load(path, allow_pickle=False) as file:
        tree: dict[str, Any] = json.loads(file[TREE].tobytes(), object_hook=_filled(file, device))
    return tree


def _filled(file: Any, device: torch.device) -> Callable[[dict[str, Any]], Any]:
    """Put the arrays of a file back where they stood."""

    def fill(part: dict[str, Any]) -> Any:
        kind = next((kind for kind in (ARRAY, TENSOR) if kind in part), None)
        if kind is None:
            return part
        packed = file[part[kind]].reshape(part["shape"])
        array = packed.transpose(np.argsort(part["order"]))
        # cloned: where torch puts its own tensors in memory
        return array if kind == ARRAY else torch.as_tensor(array, device=device).clone()

    return fill
