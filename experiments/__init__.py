"""Train, evaluate and compare agents under one protocol."""

from __future__ import annotations

import sys
from importlib import import_module

from recenv.errors import MissingExtra

NEEDED = ("torch", "stable_baselines3", "hydra", "matplotlib", "tqdm", "rich", "safetensors")


def _require() -> None:
    """Say which extra is missing, in one line if a command is being run."""
    for module in NEEDED:
        try:
            import_module(module)
        except ModuleNotFoundError:
            error = MissingExtra("experiments", module, "agents")
            if sys.argv[0] != "-m":  # python -m runs this before the command
                raise error from None
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)


_require()
