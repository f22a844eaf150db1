"""Train, evaluate and compare agents under one protocol."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from typing import Any

NEEDED = ("torch", "stable_baselines3", "hydra", "matplotlib", "tqdm", "rich", "safetensors")


def _leave(number: int, frame: Any) -> None:
    os.write(2, b"interrupted: nothing was begun yet\n")
    os._exit(130)  # some libraries would swallow an exception while they are imported


def _require(command: bool) -> None:
    """Say which extra is missing, in one line if a command is being run."""
    from recenv.errors import MissingExtra  # it imports numpy: not before Ctrl-C is seen to

    for module in NEEDED:
        try:
            import_module(module)
        except ModuleNotFoundError:
            error = MissingExtra("experiments", module, "agents")
            if not command:
                raise error from None
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)


COMMAND = sys.argv[0] == "-m"  # python -m runs this before the command
# where Ctrl-C is ignored (nohup) it stays so; ``cli.interrupts_raise`` ends this
if COMMAND and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)
_require(COMMAND)
