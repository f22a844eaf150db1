"""Train an agent, evaluate it along the way, save it and draw its learning curve.

    python -m experiments.run agent=ppo
    python -m experiments.run agent=scorer env.scenario=trust seed=1
    python -m experiments.run agent=ppo env=complete_journey
    python -m experiments.run -m agent=ppo,dqn,linucb,scorer,random seed=0,1,2
    python -m experiments.run resume=runs/synthetic-full/ppo/seed=0

The keys are those of conf/; --help shows them all. Results go to run directories (see
experiments/results.py); a sweep (-m) ends with one figure of all its runs.

A run that was interrupted, terminated or killed goes on from its last checkpoint with
resume=<its directory>, or by the same command and if_exists=resume; on a CPU it ends with the
figures of a run that never stopped. Beside resume only progress, threads, device and
checkpoint.every may be given: all else is the run's own.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from stable_baselines3.common.logger import Logger, configure
from tqdm import tqdm

from agents.base import Agent, resolve_device
from agents.rollout import Sessions
from experiments import plot, results
from experiments.build import (
    CONF,
    agent_class,
    agent_settings,
    group_defaults,
    make_agent,
    make_env,
    quoted,
)
from experiments.cli import (
    Interrupted,
    asked_to_stop,
    complain,
    hydras_line,
    interrupts_raise,
)
from experiments.evaluate import Judge, check_reference, summarise
from experiments.report import print_table
from recenv.errors import UsageError, unknown
from recenv.shop import as_number

SWEEP = {"-m", "--multirun"}
GROUPS = ("agent", "env", "eval")
# what a configuration may hold; the fingerprint is noted by ``run``
KEYS = {*GROUPS, *map(str, OmegaConf.load(CONF / "config.yaml")), "fingerprint"}
KEYS -= {"defaults", "hydra", "resume"}
# what may be said anew of a run that goes on
ANEW = ("progress", "threads", "device", "checkpoint")


def run(
    config: dict[str, Any],
    if_exists: str = "error",
    directory: results.RunDirectory | None = None,
) -> results.RunDirectory:
    """Do one run, or leave the one that is there (see ``results.RunDirectory.claim``).

    Args:
        config: plain containers with the keys of conf/config.yaml.
        if_exists: what to do about an old run in the same directory.
        directory: of the run, where that is not the one that its configuration names.

    Raises:
        UsageError: the configuration makes no sense, or the directory is taken.
        Interrupted: by Ctrl-C or SIGTERM, and kept for ``if_exists="resume"``.
    """
    check(config)
    torch.set_num_threads(config["threads"])
    directory = directory or run_directory(config)
    before = steps_before(config)
    agent = make_agent(config["agent"], config["env"], config["seed"], config["device"])
    config = config | {"fingerprint": results.fingerprint(agent.env.shop)}
    unfinished = directory.is_run and if_exists == "resume"
    if not directory.claim(config, if_exists):
        print(f"{directory.path} is there already: left as it is", file=sys.stderr)
        if directory.finished:
            _show(directory)
        return directory
    kept = directory.kept(config, resolve_device(config["device"]))
    judge = make_judge(config, directory)
    judge.prepare(agent)
    if unfinished and kept is None:
        print(f"{directory.path} had no checkpoint yet: it begins again", file=sys.stderr)
    with results.writing(directory.path), _quiet_writers():
        recorder = Recorder(agent, judge, directory, config, before)
        if kept is not None:
            recorder.restore(kept)
        with recorder.training():
            agent.learn(config["total_timesteps"] - before, recorder)
        recorder.finish()
    _show(directory)
    return directory


def steps_before(config: dict[str, Any]) -> int:
    """Environment steps that the scorer of ``agent.warm_start`` learned from; else 0.

    Raises:
        UsageError: it is no finished run, sold other items, or leaves no steps to learn from.
    """
    if not config["agent"].get("warm_start"):
        return 0
    start = results.RunDirectory(Path(str(config["agent"]["warm_start"])))
    env, steps = start.config()["env"], start.summary().get("total_timesteps", 0)
    own, other = (make_env(e, 1).shop.catalogue.features_IF for e in (config["env"], env))
    if not np.array_equal(own, other):
        raise UsageError(f"the scorer in {start.path} was trained in a shop that sells other items")
    if steps >= config["total_timesteps"]:
        raise UsageError(
            f"total_timesteps={config['total_timesteps']} includes the {steps} of the scorer in "
            f"{start.path}: ask for more"
        )
    return int(steps)


@contextmanager
def _quiet_writers() -> Iterator[None]:
    """Where TensorBoard's own thread cannot write it raises in ours as well, which is enough."""
    before = threading.excepthook

    def tell(failed: threading.ExceptHookArgs) -> None:
        if not isinstance(failed.exc_value, OSError):
            before(failed)

    threading.excepthook = tell
    try:
        yield
    finally:
        threading.excepthook = before


def make_judge(config: dict[str, Any], directory: results.RunDirectory | None = None) -> Judge:
    """Who judges a configuration's run; the references are kept beside the runs of its shop."""
    cache = (directory or run_directory(config)).path.parent.parent
    seed, shoppers, reference = (config["eval"][key] for key in ("seed", "shoppers", "reference"))
    return Judge(config["env"], seed, shoppers, cache, reference)


def _show(directory: results.RunDirectory) -> None:
    """The short table of a finished run."""
    files = {"run": directory.path, "picture": directory.picture}
    print_table(f"{directory.label} on {directory.shop}", directory.summary(), files)


def run_directory(config: dict[str, Any]) -> results.RunDirectory:
    """Where the results of a configuration belong."""
    agent, env = config["agent"], config["env"]
    cls = agent_class(agent)
    name = agent.get("name", cls.name)
    defaults = group_defaults("agent", name) or agent
    settings = agent_settings(agent)
    if settings.get("warm_start"):  # its agent and seed: a whole path would be no label
        settings["warm_start"] = "-".join(Path(str(settings["warm_start"])).parts[-2:])
    label = name + results.suffix(settings, agent_settings(defaults))
    shop = make_env(env, 1).shop
    shop_name = results.shop_name(shop, env, group_defaults("env", "recsys"))
    return results.RunDirectory(
        Path(config["runs_dir"]) / shop_name / label / f"seed={config['seed']}"
    )


def check(config: dict[str, Any]) -> None:
    """Refuse nonsense before anything is made or removed."""
    for group in GROUPS:
        if group not in config:
            raise UsageError(f"the key {group} is missing: do not take it out")
        if not isinstance(config[group], dict):
            raise UsageError(f"{group} must name a file in conf/{group}, got {config[group]!r}")
    _check_keys("key", config, KEYS, {"if_exists", "fingerprint"})
    _check_keys("key of eval", config["eval"], group_defaults("eval", "default"), set())
    for name, value, low, high in (
        ("seed", config["seed"], 0, 2**31 - 1),
        ("total_timesteps", config["total_timesteps"], 1, 10**12),
        ("threads", config["threads"], 1, os.cpu_count() or 1),
        ("eval.points", config["eval"]["points"], 1, 10_000),
        ("eval.first", config["eval"]["first"], 1, 10**12),
        ("eval.seed", config["eval"]["seed"], 0, 2**31 - 1),
        ("eval.shoppers", config["eval"]["shoppers"], 2, 10_000_000),
    ):
        as_number(name, value, low, high)
    check_reference(config["eval"]["reference"])
    _check_checkpoint(config["checkpoint"])
    if not isinstance(config["runs_dir"], str) or not config["runs_dir"]:
        raise UsageError(f"runs_dir must be a directory, got {config['runs_dir']!r}")
    if not isinstance(config["progress"], bool):
        raise UsageError(f"progress must be true or false, got {config['progress']!r}")
    if not re.fullmatch(r"[\w.-]+", str(config["agent"].get("name", "agent"))):
        raise UsageError(f"agent.name must be a plain word, got {config['agent']['name']!r}")
    resolve_device(config["device"])


def _check_checkpoint(checkpoint: Any) -> None:
    if not isinstance(checkpoint, dict):
        raise UsageError(f"checkpoint has the key every, got {checkpoint!r}")
    _check_keys("key of checkpoint", checkpoint, ("every",), set())
    if checkpoint["every"] is not None:
        as_number("checkpoint.every", checkpoint["every"], 0.0, 1e9)


def _check_keys(kind: str, given: Iterable[str], known: Iterable[str], optional: set[str]) -> None:
    for key in given:
        if key not in known:
            raise unknown(kind, key, known)
    for key in sorted(set(known) - set(given) - optional):
        raise UsageError(f"the {kind} {key} is missing: do not take it out")


class Recorder:
    """The callback of ``learn``: evaluates at log-spaced steps and writes what it finds; and
    the agent's ``keeper``, who writes a checkpoint now and then, and when asked to stop.

    Time spent on these does not count as training. The ``before`` steps that the scorer of a
    warm start learned from count as this run's own, and what they came to is evaluated.
    """

    def __init__(
        self,
        agent: Agent,
        judge: Judge,
        directory: results.RunDirectory,
        config: dict[str, Any],
        before: int = 0,
    ):
        self.agent, self.judge, self.directory = agent, judge, directory
        self.config = config
        self.total: int = config["total_timesteps"]
        # the last evaluation is made after learning
        first = min(max(config["eval"]["first"], before), self.total)
        points = np.geomspace(first, self.total, config["eval"]["points"])
        self._points = np.unique(points.astype(int))[:-1].tolist() if agent.learns else []
        self._before = self._timesteps = before
        self._seconds = 0.0
        self._since: float | None = None
        self._rows = 0  # evaluations so far
        self._every = config["checkpoint"]["every"]
        self._kept_at = 0.0  # seconds of training, at the last checkpoint
        self._rested = self._stopping = self._warned = False
        agent.keeper = self.keep
        self._logger = self._tensorboard()
        agent.logger = self._logger
        self._bar = tqdm(
            total=self.total,
            desc=f"{directory.label} seed={config['seed']}",
            unit=" steps",
            unit_scale=True,
            disable=not (config["progress"] and agent.learns),
            file=sys.stderr,
        )

    def _tensorboard(self) -> Logger:
        return configure(str(self.directory.path / "tensorboard"), ["tensorboard"])

    @contextmanager
    def training(self) -> Iterator[None]:
        """Learning happens in here; the clock runs, and the bar is closed at its end.

        Raises:
            Interrupted: it was asked to stop; there is a checkpoint, if one could be written.
        """
        if self._before and not self._rows:
            self._bar.update(self._before)
            self._points = [point for point in self._points if point > self._before]
            self._evaluate()
        self._since = time.perf_counter()
        try:
            with asked_to_stop(self._ask):
                yield
        finally:
            self._stop()
            self._bar.close()

    def _ask(self) -> bool:
        """Stop at the next resting place; no, where none is in sight, or when asked again."""
        if self._stopping or not self._rested:
            return False
        self._stopping = True
        return True

    def keep(self, timesteps: int) -> None:
        """The agent rests: write a checkpoint if it is time for one."""
        self._rested = True
        if self._stopping:
            try:
                self._write()
            except UsageError as error:
                raise Interrupted(
                    f"interrupted, and {error}: go on from what was kept before with "
                    f"resume={self.directory.path}"
                ) from None
            raise Interrupted(
                f"interrupted after {self._before + timesteps:,} steps, which are kept: go on with "
                f"python -m experiments.run resume={self.directory.path}, or with the same command "
                "(and if_exists=resume where it is experiments.run)"
            )
        if self._every is not None and self._trained() - self._kept_at >= self._every:
            try:
                self._write()
            except UsageError as error:  # there may be room again for the next one
                if not self._warned:
                    tqdm.write(f"warning: {error}: the run goes on without", file=sys.stderr)
                self._warned = True
            self._kept_at = self._seconds
            self._since = time.perf_counter()

    def _write(self) -> None:
        self._stop()
        recorder = {"points": self._points, "rows": self._rows, "seconds": self._seconds}
        progress = {"agent": self.agent.checkpoint(), "recorder": recorder}
        self.directory.keep(self.config, progress)

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on from a checkpoint, see ``RunDirectory.kept``."""
        try:
            self.agent.restore(kept["agent"])
        except UsageError as error:
            raise UsageError(
                f"{self.directory.path}: {error}: begin the run again with if_exists=overwrite"
            ) from None
        recorder = kept["recorder"]
        self._points, self._rows = recorder["points"], recorder["rows"]
        self._seconds = self._kept_at = recorder["seconds"]
        self.directory.cut(self._rows)
        self._timesteps = self._before + self.agent.timesteps
        self._bar.initial = self._bar.n = self._timesteps
        print(f"{self.directory.path} goes on after {self._timesteps:,} steps", file=sys.stderr)

    def _trained(self) -> float:
        """Seconds of training so far."""
        return self._seconds + (time.perf_counter() - self._since if self._since else 0.0)

    def _stop(self) -> None:
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
            self._since = None

    def __call__(self, timesteps: int) -> bool:
        timesteps += self._before
        self._bar.update(timesteps - self._timesteps)
        self._timesteps = timesteps
        if self._points and timesteps >= self._points[0]:
            self._points = [point for point in self._points if point > timesteps]
            self._stop()
            self._evaluate()
            self._since = time.perf_counter()
        return timesteps < self.total

    def _evaluate(self) -> tuple[dict[str, float | None], Sessions]:
        row, sessions = self.judge(self.agent)
        timesteps = self._timesteps if self.agent.learns else 0
        row |= {"timesteps": timesteps, "train_seconds": round(self._seconds, 3)}
        if self.agent.meter is not None:
            row["training_return_mean"] = self.agent.meter.take()
        self.directory.append(row)
        self._rows += 1
        self._bar.set_postfix(score=f"{row['normalised_score']:.3f}")
        self._scalars(row)
        return row, sessions

    def _scalars(self, row: dict[str, float | None]) -> None:
        """The evaluation under the names of stable-baselines3's own logger."""
        self._logger.record("eval/mean_reward", row["return_mean"])
        self._logger.record("eval/mean_ep_length", row["session_length"])
        for name in ("normalised_score", "conversion", "coverage", "entropy", "top_item_share"):
            self._logger.record(f"eval/{name}", row[name])
        self._logger.record("time/total_timesteps", self._timesteps)
        self._logger.dump(self._timesteps)

    def finish(self) -> None:
        """The last evaluation, the agent, the summary and the picture."""
        row, sessions = self._evaluate()
        self.agent.save(self.directory.agent)
        learned = self._timesteps - self._before
        rate = learned / self._seconds if self.agent.learns and self._seconds else None
        summary = summarise(self.judge, row) | {
            "total_timesteps": self._timesteps if self.agent.learns else 0,
            "train_seconds": round(self._seconds, 3),
            "steps_per_second": rate,
            "device": str(resolve_device(self.agent.device)),
        }
        category_I = self.judge.env.shop.catalogue.category_I
        self.directory.finish(summary, sessions.return_E, sessions.shown_I, category_I)
        self._logger.close()
        plot.draw([self.directory], self.directory.picture)


FAILED, MISTAKEN = 1, 2  # exit codes: a bug, a user's mistake
OUTCOMES: list[tuple[str, int]] = []  # this process's sweep: overrides of a job, its exit code


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """One job: a single run, or one of a sweep."""
    container = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(container, dict)
    config = {str(key): value for key, value in container.items()}
    job = HydraConfig.get()
    sweeping = job.mode == RunMode.MULTIRUN
    if_exists = config.pop("if_exists", None) or ("resume" if sweeping else "error")
    resume = config.pop("resume", None)
    if not sweeping:
        code = _do(config, if_exists, job, resume=resume)
        if code:
            sys.exit(code)
        return
    words = " ".join(job.overrides.task)
    try:
        code = _do(config, if_exists, job, f"{words}: ", resume)
    except Exception:  # one broken job does not end the sweep
        print(f"error: {words}: this is a bug", file=sys.stderr)
        traceback.print_exc()
        code = FAILED
    OUTCOMES.append((words, code))


def _do(
    config: dict[str, Any], if_exists: str, job: Any, prefix: str = "", resume: Any = None
) -> int:
    """Do a job; its exit code."""
    directory = None
    try:
        if resume is not None:
            config, directory = _resumed(config, Path(str(resume)), job)
            if_exists = "resume"
        directory = run(config, if_exists, directory)
        _keep_hydra(directory.path, job)
    except UsageError as error:
        complain(UsageError(f"{prefix}{error}"))
        return MISTAKEN
    return 0


def _resumed(
    config: dict[str, Any], path: Path, job: Any
) -> tuple[dict[str, Any], results.RunDirectory]:
    """The own configuration of the run that is to go on, and its directory.

    Raises:
        UsageError: there is no run, or something else was asked for as well.
    """
    if job.mode == RunMode.MULTIRUN:
        raise UsageError("resume= goes on with one run: a sweep goes on by the same command")
    names = {_name(word.lstrip("+~")): word for word in job.overrides.task}
    for name, word in names.items():
        if name not in ("resume", *ANEW):
            raise UsageError(
                f"resume={path} goes on with the run's own configuration: leave out {word}"
            )
    directory = results.RunDirectory(path)
    anew = {name: config[name] for name in ANEW if name in names}
    return {"checkpoint": config["checkpoint"], **directory.config(), **anew}, directory


def _keep_hydra(path: Path, job: Any) -> None:
    """Hydra's own account of the job, inside the run."""
    kept = path / ".hydra"
    results.write_text(kept / "hydra.yaml", OmegaConf.to_yaml(job))
    results.write_text(kept / "overrides.yaml", OmegaConf.to_yaml(job.overrides.task))


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _in_hydras_order(words: list[str]) -> list[str]:
    """The words of the command with -m in front, where Hydra's parser wants it.

    Raises:
        UsageError: a key was given like an option, as in --seed=1.
    """
    for word in words:
        if word.startswith("-") and _name(word) in KEYS | {"experiment"}:
            raise UsageError(f"{word}: write it without dashes, as in agent=ppo seed=1")
    return sorted(map(quoted, words), key=lambda word: word not in SWEEP)


def _name(word: str) -> str:
    """What stands before the first dot or = of a word, without dashes."""
    return re.split(r"[.=]", word.lstrip("-"))[0]


def _runs_dir(words: list[str]) -> Path:
    """The sweep's runs_dir; the last one counts, as for Hydra."""
    given = [word.split("=", 1)[1] for word in words if word.startswith("runs_dir=")]
    return Path(given[-1] if given else "runs")


def _check_runs_dir(words: list[str]) -> None:
    """Hydra makes its directory for a sweep before any job can say what is wrong."""
    path = _runs_dir(words)
    with results.writing(path):
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _finish_sweep(words: list[str]) -> int:
    """One figure of all runs, and a word on the jobs that failed; the exit code."""
    failed = {job: code for job, code in OUTCOMES if code}
    if len(failed) < len(OUTCOMES):
        print(f"figure: {plot.draw_all(_runs_dir(words))}")
    if failed:
        count = f"{len(failed)} of {len(OUTCOMES)} jobs failed:"
        print(count, *failed, sep="\n  ", file=sys.stderr)
    return min(failed.values(), default=0)


def _command(words: list[str]) -> int:
    """The whole command; its exit code."""
    sweeping = bool(SWEEP & set(words))
    sys.argv[1:] = _in_hydras_order(words)
    if sweeping:
        _check_runs_dir(words)
    main()
    return _finish_sweep(words) if sweeping else 0


if __name__ == "__main__":
    interrupts_raise()
    signal.signal(signal.SIGTERM, _interrupt)
    traced = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # it raises its errors, which we tell in one line
    try:
        sys.exit(_command(sys.argv[1:]))
    except (UsageError, HydraException, OmegaConfBaseException) as error:
        if traced:
            raise
        complain(hydras_line(error))
        sys.exit(MISTAKEN)
    except KeyboardInterrupt as stopped:
        plain = "interrupted: what was kept so far is there; go on with if_exists=resume"
        print(stopped if isinstance(stopped, Interrupted) else plain, file=sys.stderr)
        sys.exit(130)
