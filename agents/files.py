"""Tensors on disk, without pickle: files from elsewhere must not be able to run code."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, device

from recenv.errors import UsageError


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors by name as a safetensors file; those that share memory each by itself."""
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path)


def read_tensors(path: Path, where: device) -> dict[str, Tensor]:
    """What ``write_tensors`` wrote.

    Raises:
        FileNotFoundError, SafetensorError: there is no such file, or it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(2, "no such file", str(path))
    tensors: dict[str, Tensor] = load_file(path, device=str(where))
    return tensors


def fitting(tensors: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, if they have the names and shapes of others.

    Raises:
        UsageError: they have not.
    """
    for name in sorted(tensors.keys() | like.keys()):
        found, wanted = (tuple(t[name].shape) if name in t else None for t in (tensors, like))
        if found is None or wanted is None:
            lacks = "it lacks" if found is None else "this agent has no"
            raise UsageError(f"{lacks} {name}, so another version saved it: train it again")
        if found != wanted:
            raise UsageError(
                f"it holds {name} of shape {found}, this agent in this shop has {wanted}: "
                "train it for this shop"
            )
    return tensors
