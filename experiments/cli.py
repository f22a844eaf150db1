"""What the front doors share: ``key=value`` arguments, and one line for a user's mistake."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from recenv.errors import UsageError, unknown


def arguments(argv: list[str], defaults: dict[str, Any]) -> dict[str, Any]:
    """``key=value`` words over defaults; dotted keys open a nested dictionary.

    Raises:
        UsageError: a word is no ``key=value`` or has no value, or its first key is not among the
            defaults.
    """
    for word in argv:
        if "=" not in word:
            raise UsageError(f"arguments are key=value, got {word!r}: try --help")
        key = key_of(word)
        if key not in defaults:
            raise unknown("argument", key, defaults)
        if not word.partition("=")[2].strip():
            raise UsageError(f"{word} is empty: give a value, or leave it out")
        if isinstance(defaults[key], dict) and not word.startswith(f"{key}."):
            raise UsageError(f"{word}: give the keys of {key} one by one, as in {key}.seed=1")
    try:
        merged = OmegaConf.merge(OmegaConf.create(defaults), OmegaConf.from_dotlist(argv))
        values = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, YAMLError) as error:
        raise UsageError(f"arguments not understood: {one_line(error)}") from None
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def numbers(name: str, text: Any, least: int = 0) -> list[int]:
    """The whole numbers of an argument, which are separated by commas.

    Raises:
        UsageError: they are none, or below ``least``.
    """
    words = str(text).split(",")
    if not all(word.strip().isdecimal() and int(word) >= least for word in words):
        from_on = f" from {least} on" if least else ""
        raise UsageError(
            f"{name} must be whole numbers{from_on}, separated by commas, got {text!r}"
        )
    return [int(word) for word in words]


def command_of(module: str, argv: list[str]) -> str:
    """The command that makes a page anew, without where things lie and what is done about them."""
    places = ("runs_dir", "out", "draw", "if_exists")
    words = [word for word in argv if key_of(word) not in places]
    return " ".join([f"python -m experiments.{module}", *words])


def key_of(word: str) -> str:
    """What stands before the first = and the first dot of a word."""
    return word.split("=", 1)[0].split(".", 1)[0]


def entry(main: Callable[[list[str]], None], usage: str | None) -> None:
    """Run a command: --help prints its module's docstring, a UsageError is one line and exit 2."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print((usage or "").strip())
        return
    interrupts_raise()
    try:
        main(sys.argv[1:])
    except UsageError as error:
        complain(error)
        sys.exit(2)
    except KeyboardInterrupt as stopped:
        print(stopped if isinstance(stopped, Interrupted) else "interrupted", file=sys.stderr)
        sys.exit(130)


def interrupts_raise() -> None:
    """Ctrl-C is a KeyboardInterrupt again: all is imported (see this package's __init__)."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Interrupted(KeyboardInterrupt):
    """Somebody asked to stop, and what there was to keep is kept: the message says where."""


@contextmanager
def asked_to_stop(ask: Callable[[], bool]) -> Iterator[None]:
    """Ctrl-C and SIGTERM ``ask`` in here; where that says no, they interrupt at once.

    Asking is for work that can be kept at its next resting place. Only the main thread
    hears of signals: in others nothing changes.
    """

    def hear(number: int, frame: Any) -> None:
        if not ask():
            raise KeyboardInterrupt

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, hear)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def complain(error: Exception) -> None:
    """Print an error as one line."""
    print(f"error: {one_line(error)}", file=sys.stderr)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def hydras_line(error: Exception) -> UsageError:
    """What Hydra complains of, without the list of the places where it looked, and without how a
    key could be added that nothing would read."""
    line = one_line(error).partition(" Config search path:")[0]
    line, hint, _ = line.partition(". To append to your config use ")
    return UsageError(f"{line}: there is no such key" if hint else line)
