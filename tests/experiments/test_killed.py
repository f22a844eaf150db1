"""A run that is killed, terminated or out of disk goes on, and ends as one that never was.

The whole check, ten kills at random moments of a run of PPO and of one of DQN through the
front door: ``pytest -m long tests/experiments/test_killed.py``; a few minutes.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents import checkpoint
from experiments import results
from experiments.build import CONF, configuration
from experiments.cli import Interrupted
from experiments.results import CHECKPOINT, RunDirectory
from experiments.run import run
from recenv.errors import UsageError

WORDS = [
    "env.num_items=12", "env.horizon=10", "eval.shoppers=50", "eval.points=5", "eval.first=256",
    "eval.reference=index_policy", "total_timesteps=4000", "progress=false", "device=cpu",
]  # fmt: skip
SMALL = {  # agents that rest every 256 steps
    "ppo": ["agent.num_envs=32", "agent.n_steps=8"],
    "dqn": ["agent.num_envs=64", "agent.learning_starts=500", "agent.buffer_size=2000"],
    "scorer": ["agent.num_envs=256", "agent.batch_size=128"],
    "linucb": ["agent.num_envs=256"],
    "rotation": ["agent.num_envs=32"],
}


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The references of the shop, which are the same for all runs."""
    directory = run(asked("random", tmp_path_factory.mktemp("references")))
    return directory.path.parent.parent / "references.json"


@pytest.fixture(scope="module")
def whole(references: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Runs that nothing befell, each done once."""
    done: dict[str, RunDirectory] = {}

    def of(agent: str) -> RunDirectory:
        if agent not in done:
            place = ready(tmp_path_factory.mktemp(agent), references)
            done[agent] = run(asked(agent, place))
        return done[agent]

    return of


def asked(agent: str, runs_dir: Path, *words: str) -> dict[str, Any]:
    return configuration([f"agent={agent}", *WORDS, *SMALL.get(agent, []), *words], runs_dir)


def ready(runs_dir: Path, references: Path) -> Path:
    """A place for runs of a shop whose references are known."""
    shop = runs_dir / references.parent.name
    shop.mkdir(parents=True)
    shutil.copy(references, shop)
    return runs_dir


def figures(directory: RunDirectory) -> dict[str, Any]:
    """All that a run found, but for how long it took."""
    table, summary = directory.evaluations(), directory.summary()
    for timed in ("train_seconds", "steps_per_second"):
        table.pop(timed, None)
        summary.pop(timed)
    agent = {file.name: file.read_bytes() for file in directory.agent.iterdir()}
    told = {name: column.tobytes() for name, column in table.items()}
    kept = [(directory.path / name).read_bytes() for name in (results.RETURNS, results.SHOWN)]
    return {"table": told, "summary": summary, "agent": agent, "kept": kept}


def stop_after(writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the process were killed when it has kept so many checkpoints."""
    keep, count = RunDirectory.keep, iter(range(1, 10**6))

    def dying(self: RunDirectory, *told: Any) -> None:
        keep(self, *told)
        if next(count) == writes:
            raise Killed

    monkeypatch.setattr(RunDirectory, "keep", dying)


class Killed(BaseException):
    """Nothing of ours catches this."""


@pytest.mark.parametrize("agent", SMALL)
def test_a_run_goes_on_from_its_checkpoint_to_the_same_figures(
    agent: str, whole: Any, references: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = asked(agent, ready(tmp_path, references), "checkpoint.every=0")
    expected = figures(whole(agent))
    assert len(whole(agent).evaluations()["timesteps"]) >= (2 if agent == "rotation" else 4)
    for writes in (1, 3, 2) if agent == "rotation" else (1, 5, 7):
        with monkeypatch.context() as patched:
            stop_after(writes, patched)
            with pytest.raises(Killed):
                run(config, "resume")
        (directory,) = (d for d in results.find_runs(tmp_path) if d.label.startswith(agent))
        assert not directory.finished
        # what is evaluated after a checkpoint is evaluated again
        directory.append({"timesteps": 3999.0})
    assert figures(run(config, "resume")) == expected
    assert not (directory.path / CHECKPOINT).exists()


def live(
    config: dict[str, Any], moment: Callable[[RunDirectory], bool], number: int
) -> multiprocessing.Process:
    """Do a run in a process of its own, and signal it at a moment (or when it is over)."""
    process = multiprocessing.get_context("fork").Process(target=run, args=(config, "resume"))
    process.start()
    place = Path(config["runs_dir"])
    until = time.monotonic() + 120
    while process.is_alive() and time.monotonic() < until:
        found = list(results.find_runs(place))
        if found and moment(found[0]):
            os.kill(process.pid, number)
            break
    process.join(120)
    assert process.exitcode is not None
    return process


def has(*names: str) -> Callable[[RunDirectory], bool]:
    return lambda run: all((run.path / name).exists() for name in names)


@pytest.mark.parametrize("agent", ["ppo", "dqn"])
def test_a_process_that_is_killed_at_any_moment_leaves_a_run_that_goes_on(
    agent: str, whole: Any, references: Path, tmp_path: Path
) -> None:
    config = asked(agent, ready(tmp_path, references), "checkpoint.every=0")
    part = f".{CHECKPOINT}.part"
    moments = [
        (signal.SIGKILL, has(results.CONFIG)),  # before there is a checkpoint
        (signal.SIGKILL, has(part)),  # while the first one is written
        (signal.SIGKILL, has(CHECKPOINT, part)),  # and a later one
        (signal.SIGTERM, has(CHECKPOINT)),
        (signal.SIGKILL, has(f"{results.AGENT}/agent.json")),  # after learning
    ]
    for number, moment in moments:
        live(config, moment, number)
        (directory,) = results.find_runs(tmp_path)
        directory.evaluations()
        assert directory.config()["agent"]["name"] == agent
    assert figures(run(config, "resume")) == figures(whole(agent))


def test_asking_to_stop_keeps_and_says_how_to_go_on(
    whole: Any, references: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = asked("ppo", ready(tmp_path, references), "checkpoint.every=null")
    append = RunDirectory.append

    def interrupting(self: RunDirectory, row: dict[str, Any]) -> None:
        append(self, row)
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(RunDirectory, "append", interrupting)
    with pytest.raises(Interrupted, match=r"after [\d,]+ steps, which are kept.*resume=") as said:
        run(config)
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    (directory,) = results.find_runs(tmp_path)
    assert str(directory.path) in str(said.value)
    monkeypatch.undo()
    assert figures(run(config, "resume")) == figures(whole("ppo"))


def test_asking_twice_stops_at_once(
    references: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = asked("ppo", ready(tmp_path, references), "checkpoint.every=null")

    def interrupting(self: RunDirectory, row: dict[str, Any]) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it went on")

    monkeypatch.setattr(RunDirectory, "append", interrupting)
    with pytest.raises(KeyboardInterrupt) as stopped:
        run(config)
    assert not isinstance(stopped.value, Interrupted)


# --- disks -----------------------------------------------------------------------------------


def full(path: Path, tree: dict[str, Any]) -> None:
    """A disk on which half a checkpoint has room."""
    path.write_bytes(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(
    whole: Any,
    references: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = asked("ppo", ready(tmp_path, references), "checkpoint.every=0")
    with monkeypatch.context() as patched:
        stop_after(4, patched)
        with pytest.raises(Killed):
            run(config)
    (directory,) = results.find_runs(tmp_path)
    before = (directory.path / CHECKPOINT).read_bytes()
    monkeypatch.setattr(checkpoint, "write", full)
    with pytest.raises(UsageError, match="No space left on device"):
        directory.keep(config, {})
    assert (directory.path / CHECKPOINT).read_bytes() == before
    assert not list(directory.path.glob("*.part"))
    assert figures(run(config, "resume")) == figures(whole("ppo"))
    said = capsys.readouterr().err
    assert said.count("No space left on device: the run goes on without") == 1


def test_a_full_disk_that_ends_a_run_is_one_line_and_the_run_goes_on_later(
    whole: Any, references: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = asked("ppo", ready(tmp_path, references), "checkpoint.every=0")
    sync = os.fsync

    def half_a_row(file: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{file}"))
        rows = path.name == results.EVALUATIONS and path.read_bytes()
        if rows and rows.count(b"\n") == 4:
            os.truncate(path, len(rows) - 5)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    monkeypatch.setattr(os, "fsync", half_a_row)
    with pytest.raises(UsageError, match=r"cannot write .*evaluations.csv: No space left") as full:
        run(config)
    assert "\n" not in str(full.value)
    monkeypatch.undo()
    (directory,) = results.find_runs(tmp_path)
    assert len(directory.evaluations()["timesteps"]) == 2
    assert figures(run(config, "resume")) == figures(whole("ppo"))


def test_tensorboard_without_room_is_one_line(
    references: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    def write(self: RecordWriter, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RecordWriter, "write", write)
    with pytest.raises(UsageError, match=r"cannot write .*seed=0.*: No space left on device"):
        run(asked("ppo", ready(tmp_path, references)))
    assert "Traceback" not in capsys.readouterr().err


# --- what is no checkpoint of this run -------------------------------------------------------


@pytest.fixture
def stopped(references: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """A run of PPO with a checkpoint."""
    with monkeypatch.context() as patched:
        stop_after(3, patched)
        with pytest.raises(Killed):
            run(asked("ppo", ready(tmp_path, references), "checkpoint.every=0"))
    (directory,) = results.find_runs(tmp_path)
    return directory


def refused(directory: RunDirectory, match: str, *words: str) -> None:
    """Going on is refused in one line that says what to do, and nothing is lost by it."""
    files = {path: path.read_bytes() for path in directory.path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=match) as error:
        run(asked("ppo", directory.path.parents[2], *words), "resume", directory)
    assert "if_exists=overwrite" in str(error.value)
    assert "\n" not in str(error.value)
    for path, content in files.items():
        assert path.read_bytes() == content


def test_a_checkpoint_of_another_question_version_or_disk_is_refused(
    stopped: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stopped.path / CHECKPOINT
    refused(stopped, "total_timesteps=4000, asked for 5000", "total_timesteps=5000")
    refused(stopped, "holds a run with agent=", "agent.gamma=0.5")
    refused(stopped, "holds a run with seed=0", "seed=1")
    with monkeypatch.context() as patched:
        made_with = results._made_with()
        patched.setattr(results, "_made_with", lambda: made_with | {"torch": "9.9"})
        refused(stopped, r"made by torch .*, this is 9\.9")
    with monkeypatch.context() as patched:
        patched.setattr(results, "FORMAT", 999)
        refused(stopped, "another version of recenv")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refused(stopped, "is damaged")
    path.write_bytes(content)
    (stopped.path / results.EVALUATIONS).write_text("")
    refused(stopped, "does not hold the")


def test_changed_code_is_told(
    stopped: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_with = results._made_with()
    monkeypatch.setattr(results, "_made_with", lambda: made_with | {"git": "abc"})
    run(asked("ppo", stopped.path.parents[2]), "resume", stopped)
    assert "the code has changed since" in capsys.readouterr().err


# --- through the front door ------------------------------------------------------------------


def command(*words: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "experiments.run", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(line, cwd=CONF.parent, text=True, **pipes)


def test_resume_takes_the_directory_wherever_it_lies_and_nothing_else(
    stopped: RunDirectory, whole: Any, tmp_path: Path
) -> None:
    moved = tmp_path / "else where" / "a" / "b" / "seed=7"
    shutil.copytree(stopped.path.parent, moved.parent)
    moved.with_name("seed=0").rename(moved)
    process = command(f"resume={moved}", "agent.gamma=0.5")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "leave out agent.gamma=0.5" in said.splitlines()[-1]
    process = command(f"resume={moved}", "progress=false")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "goes on after" in said
    assert figures(RunDirectory(moved)) == figures(whole("ppo"))


KILLS = 10


@pytest.mark.long
@pytest.mark.parametrize("agent", ["ppo", "dqn"])
def test_ten_kills_at_random_moments_change_no_figure(agent: str, tmp_path: Path) -> None:
    words = [f"agent={agent}", "env.num_items=20", "eval.shoppers=1000", "progress=false"]
    words += ["eval.reference=index_policy", "device=cpu", "checkpoint.every=0.2"]
    words += [f"total_timesteps={300_000 if agent == 'ppo' else 60_000}"]
    process = command(*words, f"runs_dir={tmp_path / 'whole'}")
    assert process.wait(1800) == 0
    (expected,) = results.find_runs(tmp_path / "whole")
    place = ready(tmp_path / "killed", expected.path.parent.parent / "references.json")
    most = 1.2 * expected.summary()["train_seconds"] / KILLS
    luck, kills = random.Random(0), 0
    while kills < KILLS:
        process = command(*words, f"runs_dir={place}", "if_exists=resume")
        begun = RunDirectory(place / expected.path.relative_to(tmp_path / "whole"))
        board = begun.path / "tensorboard"
        boards = set(board.glob("*"))
        # until it learns; by name, as a run without a checkpoint begins anew and drops the others
        while process.poll() is None and set(board.glob("*")) <= boards:
            time.sleep(0.05)
        time.sleep(luck.uniform(0.0, most))
        if process.poll() is not None:
            break
        process.kill()
        process.communicate()
        kills += 1
        begun.evaluations()
        print(f"{agent}: kill {kills}, checkpoint: {(begun.path / CHECKPOINT).is_file()}")
    assert kills == KILLS
    process = command(f"resume={begun.path}")
    assert process.wait(1800) == 0
    assert figures(begun) == figures(expected)
    assert np.isfinite(begun.evaluations()["normalised_score"]).all()
