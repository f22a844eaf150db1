"""Run directories: the one place that writes and reads them.

<runs_dir>/<world>-<scenario>[+env keys]/<agent>[+agent keys]/seed=<n>/
    config.yaml           the resolved configuration
    versions.json         git commit, versions, machine
    evaluations.csv       one row per evaluation, written as it comes
    returns.npy           the return of every shopper in the last evaluation
    shown.npy             how often each item was recommended in it, and the item's category
    summary.json          the last evaluation in words; its presence says "finished"
    agent/                the trained agent
    checkpoint.npz        while it is trained: how far it has come
    tensorboard/          scalars
    learning_curve.png
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

import recenv
from agents import checkpoint
from recenv.errors import UsageError, unknown
from recenv.retrieve import RetrieveShop
from recenv.shop import Shop

CONFIG, SUMMARY, EVALUATIONS = "config.yaml", "summary.json", "evaluations.csv"
VERSIONS, RETURNS, SHOWN, AGENT = "versions.json", "returns.npy", "shown.npy", "agent"
CHECKPOINT = "checkpoint.npz"
FORMAT = 1  # of a checkpoint, which is of use to the versions of these alone
EXACT = ("recenv", "python", "numpy", "gymnasium", "torch", "stable-baselines3")
IF_EXISTS = ("error", "skip", "resume", "overwrite")
# what a run is an answer to; where it was computed and what was shown meanwhile is not
QUESTION = ("agent", "env", "seed", "total_timesteps", "eval", "fingerprint")
# what every reader of summary.json may rely on
REQUIRED = ("normalised_score", "reference_low", "reference_high", "reference_myopic")
# what an evaluation says of a policy
JUDGED = (
    "return_mean",
    "return_low",
    "return_high",
    "normalised_score",
    "normalised_low",
    "normalised_high",
    "myopic_regret",
    "conversion",
    "session_length",
    "coverage",
    "gini",
    "entropy",
    "top_item_share",
)
COLUMNS = (
    "timesteps",
    "train_seconds",
    *JUDGED,
    "newcomers_return_mean",
    "newcomers_normalised_score",
    "training_return_mean",  # of the sessions served while learning since the last evaluation
)


@dataclass(frozen=True)
class RunDirectory:
    """One run: an agent trained with one seed in one environment."""

    path: Path

    @property
    def is_run(self) -> bool:
        return (self.path / CONFIG).is_file()

    @property
    def finished(self) -> bool:
        return (self.path / SUMMARY).is_file()

    @property
    def agent(self) -> Path:
        return self.path / AGENT

    @property
    def picture(self) -> Path:
        return self.path / "learning_curve.png"

    @property
    def label(self) -> str:
        """The agent, with what is not default about it."""
        return self.path.parent.name

    @property
    def shop(self) -> str:
        """The environment, with what is not default about it."""
        return self.path.parent.parent.name

    def claim(self, config: dict[str, Any], if_exists: str) -> bool:
        """Make the directory ready for a new run; False if the old one is to stay.

        ``error`` refuses an old run, ``skip`` leaves it, ``resume`` leaves it if it is
        finished, and else goes on where there is a checkpoint (see ``kept``) and begins it
        again where there is none, ``overwrite`` begins it again.
        """
        if if_exists not in IF_EXISTS:
            raise unknown("if_exists", if_exists, IF_EXISTS)
        if self._occupied():
            if not self.is_run:
                raise UsageError(f"{self.path} is not empty and no run: choose another runs_dir")
            if if_exists == "error":
                raise UsageError(
                    f"{self.path} already holds a run: pass if_exists=skip, resume or overwrite"
                )
            if if_exists == "skip" or (if_exists == "resume" and self.finished):
                self._same_question(config, ("total_timesteps", "eval", "fingerprint"))
                return False
            if if_exists == "resume" and (self.path / CHECKPOINT).is_file():
                self._same_question(config, QUESTION)
                return True
            self._remove()
        self._create(config)
        return True

    def _occupied(self) -> bool:
        try:
            return self.path.exists() and any(self.path.iterdir())
        except OSError as error:
            raise UsageError(f"cannot read {self.path}: {error.strerror or error}") from None

    def _same_question(self, config: dict[str, Any], keys: tuple[str, ...]) -> None:
        """Refuse to pass off an old run as the answer to another question."""
        old = read_config(self.path)
        for key in keys:
            if key in config and key not in old:
                raise UsageError(
                    f"{self.path} holds a run of an older version of recenv, which did not note "
                    f"its {key}: pass if_exists=overwrite or another runs_dir"
                )
            if old.get(key) != config.get(key):
                raise UsageError(
                    f"{self.path} holds a run with {key}={old.get(key)}, asked for "
                    f"{config.get(key)}: pass if_exists=overwrite or another runs_dir"
                )

    def _beside(self, ending: str) -> Path:
        """A hidden neighbour of another name, with nothing in it: what is moved from or to
        there is a run or none, whenever we are killed."""
        path = self.path.with_name(f".{self.path.name}.{ending}")
        if path.exists():
            shutil.rmtree(path)
        return path

    def _remove(self) -> None:
        try:
            old = self._beside("old")
            self.path.rename(old)
            shutil.rmtree(old)
        except OSError as error:
            raise UsageError(f"cannot remove {self.path}: {error.strerror or error}") from None

    def _create(self, config: dict[str, Any]) -> None:
        with writing(self.path):
            new = self._beside("new")
        write_text(new / CONFIG, OmegaConf.to_yaml(OmegaConf.create(config)))
        write_json(new / VERSIONS, versions())
        with writing(self.path):
            with (new / EVALUATIONS).open("w", newline="") as file:
                csv.writer(file).writerow(COLUMNS)
            if self.path.exists():
                self.path.rmdir()  # it is empty
            new.rename(self.path)

    def append(self, row: dict[str, float | None]) -> None:
        """Add an evaluation; it is on disk when this returns."""
        path = self.path / EVALUATIONS
        with writing(path), path.open("a", newline="") as file:
            csv.writer(file).writerow("" if row.get(c) is None else row[c] for c in COLUMNS)
            file.flush()
            os.fsync(file.fileno())

    def cut(self, rows: int) -> None:
        """Forget all evaluations but the first ``rows``: the others will be made again.

        Raises:
            UsageError: there are not so many.
        """
        path = self.path / EVALUATIONS
        lines = _lines(path)
        if len(lines) <= rows:
            raise UsageError(
                f"{path} does not hold the {rows} evaluations that its checkpoint knows of: "
                "begin the run again with if_exists=overwrite"
            )
        write_text(path, "".join(lines[: rows + 1]))

    def keep(self, config: dict[str, Any], progress: dict[str, Any]) -> None:
        """Keep how far the run has come, instead of what was kept before.

        The old checkpoint stays whole until the new one is on disk.

        Args:
            config: the run's configuration.
            progress: a tree for ``agents.checkpoint.write``.

        Raises:
            UsageError: it cannot be written; the old one is still there.
        """
        asked = {key: config.get(key) for key in QUESTION}
        tree = {"format": FORMAT, "versions": _made_with(), "question": asked, **progress}
        # one name for all, so that what a killed process left is written over
        part = self.path / f".{CHECKPOINT}.part"
        with replacing(self.path / CHECKPOINT, part):
            checkpoint.write(part, tree)

    def kept(self, config: dict[str, Any], device: torch.device) -> dict[str, Any] | None:
        """What ``keep`` kept; None if nothing is kept.

        Raises:
            UsageError: it is damaged, of another configuration or made by other versions.
        """
        path = self.path / CHECKPOINT
        if not path.is_file():
            return None
        again = "begin the run again with if_exists=overwrite"
        try:
            tree = checkpoint.read(path, device)
            old, asked, layout = tree["versions"], tree["question"], tree["format"]
        except checkpoint.DAMAGED as error:
            told = " ".join(f"{type(error).__name__}: {error}".split())
            raise UsageError(f"{path} is damaged ({told}): {again}") from None
        now = _made_with()
        if layout != FORMAT:
            raise UsageError(f"{path} was made by another version of recenv: {again}")
        for name in EXACT:
            if old.get(name) != now[name]:
                raise UsageError(
                    f"{path} was made by {name} {old.get(name)}, this is {now[name]}: go on with "
                    f"that version, or {again}"
                )
        for key in QUESTION:
            if asked.get(key) != config.get(key):
                raise UsageError(f"{path} is of a run with another {key}: {again}")
        if old.get("git") != now["git"]:
            print(
                f"warning: the code has changed since {path} was made: what follows may differ "
                "from a run that was never stopped",
                file=sys.stderr,
            )
        return tree

    def finish(
        self,
        summary: dict[str, Any],
        return_E: np.ndarray,
        shown_I: np.ndarray,
        category_I: np.ndarray,
    ) -> None:
        """Write the last evaluation; the run counts as finished from now on.

        Args:
            summary: see ``evaluate.summarise``.
            return_E: the return of every shopper.
            shown_I: how often each item was recommended.
            category_I: its category.
        """
        table_2I = np.stack([shown_I, category_I]).astype(np.int64)
        with writing(self.path / RETURNS):
            np.save(self.path / RETURNS, return_E.astype(np.float32), allow_pickle=False)
            np.save(self.path / SHOWN, table_2I, allow_pickle=False)
        write_json(self.path / SUMMARY, summary)
        with suppress(OSError):
            (self.path / CHECKPOINT).unlink()

    def evaluations(self) -> dict[str, np.ndarray]:
        """The evaluations so far, a column each; empty cells are NaN.

        Raises:
            UsageError: the file is missing or has other columns.
        """
        path = self.path / EVALUATIONS
        rows = list(csv.reader(_lines(path)))
        if not rows or tuple(rows[0]) != COLUMNS:
            raise UsageError(f"{path} does not have the columns of this version")
        whole = [row for row in rows[1:] if len(row) == len(COLUMNS)]
        try:
            cells = [[float(cell) if cell else np.nan for cell in row] for row in whole]
        except ValueError as error:
            raise UsageError(f"{path} is damaged: {error}") from None
        table = np.array(cells, dtype=float).reshape(-1, len(COLUMNS))
        return dict(zip(COLUMNS, table.T, strict=True))

    def returns(self) -> np.ndarray:
        """The return (E,) of every shopper in the last evaluation.

        Raises:
            UsageError: the run is not finished, or the file is damaged.
        """
        return _array(self.path / RETURNS)

    def shown(self) -> tuple[np.ndarray, np.ndarray]:
        """How often each item (I,) was recommended in the last evaluation, and its category.

        Raises:
            UsageError: the run is not finished, or the file is damaged.
        """
        table = _array(self.path / SHOWN)
        if table.ndim != 2 or len(table) != 2 or table.size == 0:
            raise UsageError(f"{self.path / SHOWN} is damaged: its shape is {table.shape}")
        return table[0], table[1]

    def config(self) -> dict[str, Any]:
        return read_config(self.path)

    def versions(self) -> dict[str, Any]:
        """What it was made with."""
        return read_json(self.path / VERSIONS)

    def summary(self) -> dict[str, Any]:
        """What ``finish`` wrote.

        Raises:
            UsageError: the run is not finished, or the file is damaged.
        """
        summary = read_json(self.path / SUMMARY)
        missing = [name for name in REQUIRED if name not in summary]
        if missing:
            raise UsageError(f"{self.path / SUMMARY} is damaged: it has no {missing[0]}")
        return summary


def find_runs(runs_dir: Path) -> Iterator[RunDirectory]:
    """All runs below a directory, finished or not, in order of their paths."""
    if not runs_dir.is_dir():
        raise UsageError(
            f"there is no directory {runs_dir}: train something first, or set runs_dir"
        )
    found = []
    for place, below, files in os.walk(runs_dir):  # which bears it that others come and go
        below[:] = [name for name in below if not name.startswith(".")]
        if CONFIG in files and Path(place).name.startswith("seed="):
            found.append(Path(place))
    yield from map(RunDirectory, sorted(found))


def read_config(path: Path) -> dict[str, Any]:
    """The configuration of the run in a directory.

    Raises:
        UsageError: there is no run, or its configuration is damaged.
    """
    if not (path / CONFIG).is_file():
        raise UsageError(f"{path} is no run directory: it has no {CONFIG}")
    try:
        config = OmegaConf.to_container(OmegaConf.load(path / CONFIG))
        if not isinstance(config, dict) or not {"agent", "env", "seed"} <= set(config):
            raise ValueError("agent, env or seed is missing")
    except Exception as error:
        raise UsageError(f"{path / CONFIG} is damaged: {' '.join(str(error).split())}") from None
    return {str(key): value for key, value in config.items()}


def _lines(path: Path) -> list[str]:
    """The lines of a table with their ends; a run that was killed may have left half a line,
    which is none."""
    try:
        with path.open(newline="") as file:
            return [line for line in file if line.endswith("\n")]
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path} is damaged: {error}") from None


def _array(path: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UsageError(f"there is no {path}: the run is not finished") from None
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{path} is damaged: {error}") from None
    return array


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or a UsageError of one line."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"there is no {path}: the run is not finished") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path} is damaged: it holds no JSON object")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, and the directories above it where they are missing.

    Raises:
        UsageError: it cannot be written there.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with replacing(path, part):
        part.write_text(text, newline="")


@contextmanager
def replacing(path: Path, part: Path) -> Iterator[None]:
    """What is written to ``part`` in here becomes ``path``, or nothing happens.

    Raises:
        UsageError: it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Where ``path`` cannot be written (no permission, a full disk), that is one line."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None


def shop_name(shop: Shop, env: dict[str, Any], defaults: dict[str, Any]) -> str:
    """[gate-|retrieve-]<world>-<scenario>[+non-default keys]; a world file has its own name."""
    rest = {k: v for k, v in env.items() if k not in ("id", "world", "scenario")}
    defaults = {f.name: f.default for f in fields(shop.settings)} | defaults
    world = Path(shop.settings.world).stem if shop.settings.world.endswith(".npz") else ""
    name = f"{_plain(world)}.npz" if world else shop.world.name
    kind = "gate-" if shop.gate else "retrieve-" if shop.retrieves else ""
    if isinstance(shop, RetrieveShop):
        rest["retriever"] = shop.settings.retriever  # a whole path would be no name
    return f"{kind}{name}-{shop.scenario}{suffix(rest, defaults)}"


def suffix(values: dict[str, Any], defaults: dict[str, Any]) -> str:
    """+key=value for each value that is not the default, in order of the keys."""
    changed = {k: v for k, v in values.items() if k not in defaults or v != defaults[k]}
    text = "".join(f"+{key}={_plain(changed[key])}" for key in sorted(changed))
    if len(text) > 150:  # file systems stop at 255
        text = f"{text[:120]}+{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return text


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "x".join(_plain(item) for item in value)
    return re.sub(r"[^A-Za-z0-9_.-]", "_", str(value))


def fingerprint(shop: Shop) -> str:
    """A short name for everything that decides what a policy earns in a shop."""
    tables = shop.tables
    digest = hashlib.sha256(json.dumps(recenv.shop.describe(shop), sort_keys=True).encode())
    for table in (tables.embedding, tables.facts, tables.bump, tables.drift):
        digest.update(np.ascontiguousarray(table).tobytes())
    return digest.hexdigest()[:16]


def versions() -> dict[str, Any]:
    """What the run was made with."""
    names = ("numpy", "gymnasium", "torch", "stable-baselines3", "hydra-core", "array-api-compat")
    return {
        "recenv": recenv.__version__,
        "git": _git(),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        **{name: _version(name) for name in names},
    }


@cache
def _made_with() -> dict[str, Any]:
    """The same, as it was when this process began."""
    return versions()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(root: Path = Path(__file__).parents[1]) -> str | None:
    """The commit that changed the code last, with "+" if it was changed since.

    Figures that are kept beside the code are none of it: a leaderboard that is committed
    as it grows is made by one commit.
    """
    code = [f":(top){name}" for name in ("recenv", "agents", "conf", "experiments")]
    code += [f":(top,exclude)experiments/{name}" for name in ("leaderboard", "tuning")]

    def ask(*words: str) -> str:
        command = ["git", "-C", str(root), *words, "--", *code]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = ask("log", "-1", "--format=%H")
        return commit + ("+" if ask("status", "--porcelain", "-uno") else "") if commit else None
    except (OSError, subprocess.CalledProcessError):
        return None
