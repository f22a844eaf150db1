"""Train an agent, evaluate it along the way, save it and draw its learning curve.

    python -m experiments.run agent=ppo
    python -m experiments.run agent=scorer env.scenario=trust seed=1
    python -m experiments.run agent=ppo env=complete_journey
    python -m experiments.run -m agent=ppo,dqn,linucb,scorer,random seed=0,1,2

The keys are those of conf/; --help shows them all. Results go to run directories (see
experiments/results.py); a sweep (-m) ends with one figure of all its runs.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from stable_baselines3.common.logger import Logger, configure
from tqdm import tqdm

from agents.base import Agent, resolve_device
from agents.rollout import Sessions
from experiments import plot, results
from experiments.build import agent_class, agent_settings, group_defaults, make_agent, make_env
from experiments.cli import complain, one_line
from experiments.evaluate import Judge, summarise
from experiments.report import print_table
from recenv.errors import UsageError
from recenv.shop import as_number


def run(config: dict[str, Any], if_exists: str = "error") -> results.RunDirectory:
    """Do one run, or leave the one that is there (see ``results.RunDirectory.claim``).

    Args:
        config: plain containers with the keys of conf/config.yaml.
        if_exists: what to do about an old run in the same directory.

    Raises:
        UsageError: the configuration makes no sense, or the directory is taken.
    """
    _check(config)
    torch.set_num_threads(config["threads"])
    directory = run_directory(config)
    agent = make_agent(config["agent"], config["env"], config["seed"], config["device"])
    config["fingerprint"] = results.fingerprint(agent.env.shop)
    if not directory.claim(config, if_exists):
        print(f"{directory.path} is there already: left as it is", file=sys.stderr)
        if directory.finished:
            _show(directory)
        return directory
    evaluation = config["eval"]
    cache = directory.path.parent.parent
    judge = Judge(config["env"], evaluation["seed"], evaluation["shoppers"], cache)
    recorder = Recorder(agent, judge, directory, config)
    with recorder.training():
        agent.learn(config["total_timesteps"], recorder)
    recorder.finish()
    _show(directory)
    return directory


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
    label = name + results.suffix(agent_settings(agent), agent_settings(defaults))
    shop = make_env(env, 1).shop
    shop_name = results.shop_name(shop, env, group_defaults("env", "recsys"))
    return results.RunDirectory(
        Path(config["runs_dir"]) / shop_name / label / f"seed={config['seed']}"
    )


def _check(config: dict[str, Any]) -> None:
    """Refuse nonsense before anything is made or removed."""
    for group in ("agent", "env", "eval"):
        if not isinstance(config[group], dict):
            raise UsageError(f"{group} must name a file in conf/{group}, got {config[group]!r}")
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
    if not isinstance(config["runs_dir"], str) or not config["runs_dir"]:
        raise UsageError(f"runs_dir must be a directory, got {config['runs_dir']!r}")
    if not isinstance(config["progress"], bool):
        raise UsageError(f"progress must be true or false, got {config['progress']!r}")
    if not re.fullmatch(r"[\w.-]+", str(config["agent"].get("name", "agent"))):
        raise UsageError(f"agent.name must be a plain word, got {config['agent']['name']!r}")
    resolve_device(config["device"])


class Recorder:
    """The callback of ``learn``: evaluates at log-spaced steps and writes what it finds.

    Time spent evaluating does not count as training.
    """

    def __init__(
        self, agent: Agent, judge: Judge, directory: results.RunDirectory, config: dict[str, Any]
    ):
        self.agent, self.judge, self.directory = agent, judge, directory
        self.total = config["total_timesteps"]
        # the last evaluation is made after learning
        first = min(config["eval"]["first"], self.total)
        points = np.geomspace(first, self.total, config["eval"]["points"])
        self._points = np.unique(points.astype(int))[:-1].tolist() if agent.learns else []
        self._timesteps = 0
        self._seconds = 0.0
        self._since: float | None = None
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
        """Learning happens in here; the clock runs, and the bar is closed at its end."""
        self._since = time.perf_counter()
        try:
            yield
        finally:
            self._stop()
            self._bar.close()

    def _stop(self) -> None:
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
            self._since = None

    def __call__(self, timesteps: int) -> bool:
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
        rate = self._timesteps / self._seconds if self.agent.learns and self._seconds else None
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


FAILED: list[str] = []  # the jobs of this process's sweep that did not succeed


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(cfg: DictConfig) -> None:
    """One job: a single run, or one of a sweep."""
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    job = HydraConfig.get()
    sweeping = job.mode == RunMode.MULTIRUN
    if_exists = config.pop("if_exists") or ("resume" if sweeping else "error")
    try:
        directory = run(config, if_exists)
        _keep_hydra(directory.path, job)
    except UsageError as error:
        complain(error)
        if not sweeping:
            sys.exit(2)
        FAILED.append(f"{' '.join(job.overrides.task)}: {one_line(error)}")
    except Exception as error:
        if not sweeping:
            raise
        traceback.print_exc()  # one broken job does not end the sweep
        FAILED.append(f"{' '.join(job.overrides.task)}: {one_line(error)}")


def _keep_hydra(path: Path, job: Any) -> None:
    """Hydra's own account of the job, inside the run."""
    kept = path / ".hydra"
    kept.mkdir(exist_ok=True)
    results.write_text(kept / "hydra.yaml", OmegaConf.to_yaml(job))
    results.write_text(kept / "overrides.yaml", OmegaConf.to_yaml(job.overrides.task))


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _runs_dir(argv: list[str]) -> Path:
    """The sweep's runs_dir; the last one counts, as for Hydra."""
    given = [word.split("=", 1)[1] for word in argv if word.startswith("runs_dir=")]
    return Path(given[-1] if given else "runs")


def _check_runs_dir(argv: list[str]) -> None:
    """Hydra makes its directory for a sweep before any job can say what is wrong."""
    try:
        _runs_dir(argv).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        complain(UsageError(f"cannot write to {_runs_dir(argv)}: {error.strerror or error}"))
        sys.exit(2)


def _finish_sweep(argv: list[str]) -> None:
    """One figure of all runs, and a word on the jobs that failed."""
    try:
        print(f"figure: {plot.draw_all(_runs_dir(argv))}")
    except UsageError as error:
        complain(error)
    for failure in FAILED:
        print(f"failed: {failure}", file=sys.stderr)
    if FAILED:
        sys.exit(1)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _check_runs_dir(sys.argv[1:])
        main()
        if {"-m", "--multirun"} & set(sys.argv[1:]):
            _finish_sweep(sys.argv[1:])
    except KeyboardInterrupt:
        print(
            "interrupted: what was evaluated so far is kept; begin again with if_exists=resume",
            file=sys.stderr,
        )
        sys.exit(130)
