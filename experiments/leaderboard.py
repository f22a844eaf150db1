"""The published leaderboard: a grid of agents and shops, and its table and figures.

    python -m experiments.leaderboard                        # all of it, hours
    python -m experiments.leaderboard agents=ppo,scorer scenarios=full,trust runs=2
    python -m experiments.leaderboard draw=true              # from the kept figures alone

Arguments:
    total_timesteps  environment steps that every agent may learn from (600000)
    agents           only these, separated by commas (all of the leaderboard)
    scenarios        only these: scenarios of the generated shop, and complete_journey (all)
    runs             how many runs a cell (10)
    workers          runs at a time, each with one thread (2)
    time_limit       minutes after which no new run begins (none)
    draw             true: run nothing, draw what is there
    runs_dir         where the runs go (runs/leaderboard)
    data             where a few figures of every run are kept (experiments/leaderboard)
    out              where table and pictures go (docs)
    env.*, eval.*    keywords for trials; another question needs another data directory

Run r of a generated shop has world seed r mod 5 and training seed r div 5; complete_journey
is one world, so that its runs differ in the training seed. Agents that do not learn need no
second run in a world. The grid goes run by run, so that what there is at any time is
balanced. Finished runs are skipped: after an interruption the same command goes on. A run
that fails is named at the end, and tried again next time.
"""

from __future__ import annotations

import io
import multiprocessing
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from experiments import results
from experiments.build import CONF, agent_class, configuration, group_defaults, make_env
from experiments.cli import arguments, entry, one_line
from experiments.comparison import figures, tables
from experiments.comparison.ledger import BUDGET, Ledger
from experiments.comparison.runs import compare, read_run
from experiments.run import make_judge, run
from recenv.errors import UsageError, unknown
from recenv.scenarios import SCENARIOS
from recenv.shop import as_number

DATA = Path(__file__).parent / "leaderboard"
JOURNEY = "complete_journey"
PLACES = (*SCENARIOS, JOURNEY)
AGENTS = (
    "random", "popularity", "rotation", "myopic_oracle", "index_policy", "planning_oracle",
    "scorer", "epsilon_greedy", "ucb1", "beta_ts", "linucb", "lin_ts", "logistic_ts",
    "neural_linear_ts", "ensemble_ts", "dqn", "ppo",
)  # fmt: skip
WORLDS = 5
RUNS = 10


@dataclass(frozen=True)
class Job:
    """One run of the grid."""

    place: str  # a scenario, or complete_journey
    agent: str
    world: int
    seed: int

    @property
    def shop(self) -> tuple[str, int]:
        return self.place, self.world

    def __str__(self) -> str:
        return f"{self.place} {self.agent} world {self.world} seed {self.seed}"


@dataclass(frozen=True)
class Tasks:
    """What workers do with a job's configuration; both in processes of their own."""

    refer: Callable[[dict[str, Any]], None]
    run: Callable[[dict[str, Any]], str]


def grid(places: list[str], agents: list[str], runs: int) -> Iterator[Job]:
    """All jobs, run after run."""
    for number in range(runs):
        for place in places:
            journey = place == JOURNEY
            world, seed = (0, number) if journey else (number % WORLDS, number // WORLDS)
            for agent in agents:
                if seed == 0 or learns(agent):
                    yield Job(place, agent, world, seed)


def learns(agent: str) -> bool:
    return agent_class(group_defaults("agent", agent)).learns


def question(job: Job, asked: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a job's run."""
    shop = ["env=complete_journey"] if job.place == JOURNEY else [f"env.scenario={job.place}"]
    words = [*shop, f"env.world_seed={job.world}", f"agent={job.agent}", f"seed={job.seed}"]
    words += [f"total_timesteps={asked['total_timesteps']}", "progress=false", "threads=1"]
    for group in ("env", "eval"):
        words += [f"{group}.{key}={value}" for key, value in asked[group].items()]
    return configuration(words, Path(asked["runs_dir"]))


def refer(config: dict[str, Any]) -> None:
    """Take the references of a job's shop, so that no two of its runs do so at once."""
    torch.set_num_threads(config["threads"])
    make_judge(config)


def do(config: dict[str, Any]) -> str:
    """Do a job's run, if it is not finished, without a word; where it is."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        return str(run(config, "resume").path)


class Progress:
    """Lines about what was done, and when it will be over."""

    def __init__(self, total: int, workers: int):
        self.total, self.workers, self.done = total, workers, 0
        self._seconds: dict[str, list[float]] = defaultdict(list)

    def tell(self, job: Job, words: str, seconds: float, left: list[Job]) -> None:
        self.done += 1
        self._seconds[job.agent].append(seconds)
        minutes = self.remaining(left) / 60
        line = f"[{self.done}/{self.total}] {job}: {words}, {seconds:.0f} s; "
        print(line + f"about {minutes:.0f} minutes to go", file=sys.stderr, flush=True)

    def remaining(self, left: list[Job]) -> float:
        """Seconds that are left, from those that runs of each agent took."""
        every = [second for seconds in self._seconds.values() for second in seconds]
        usual = sum(every) / max(len(every), 1)
        mean = {agent: sum(times) / len(times) for agent, times in self._seconds.items()}
        return sum(mean.get(job.agent, usual) for job in left) / self.workers


def play(
    jobs: list[Job],
    asked: dict[str, Any],
    ledger: Ledger,
    tasks: Tasks = Tasks(refer, do),
    make_pool: Callable[[int], Executor] | None = None,
) -> list[str]:
    """Do jobs, ``workers`` at a time, and keep their figures as they come.

    Returns:
        What failed, a line each. Jobs left undone by ``time_limit`` are no failures.
    """
    shift = Shift(jobs, asked, ledger, tasks, make_pool or _processes)
    try:
        while shift.begin():
            shift.end(wait(shift.running, return_when=FIRST_COMPLETED).done)
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        shift.pool.shutdown(wait=True, cancel_futures=True)
    return shift.failures


@dataclass(frozen=True)
class Task:
    """What a worker does: a job's run, or the references of its shop before that."""

    job: Job
    runs: bool
    since: float

    def __str__(self) -> str:
        job = self.job
        return str(job) if self.runs else f"references of {job.place} world {job.world}"


class Shift:
    """Who does what, and what is left. No run of a shop begins before its references are there."""

    def __init__(
        self,
        jobs: list[Job],
        asked: dict[str, Any],
        ledger: Ledger,
        tasks: Tasks,
        make_pool: Callable[[int], Executor],
    ):
        self.asked, self.ledger, self.tasks = asked, ledger, tasks
        self.make_pool, self.pool = make_pool, make_pool(asked["workers"])
        self.pending, self.running = list(jobs), dict[Future[Any], Task]()
        self.referred, self.ready = set[tuple[str, int]](), set[tuple[str, int]]()
        self.failures: list[str] = []
        self.progress = Progress(len(jobs), asked["workers"])
        minutes = asked["time_limit"] or float("inf")
        self.until = time.monotonic() + 60 * minutes

    def begin(self) -> bool:
        """Give work to who has none; whether anybody works."""
        while len(self.running) < self.asked["workers"] and time.monotonic() < self.until:
            task = self._next()
            if task is None:
                break
            if task.runs:
                self.pending.remove(task.job)
            else:
                self.referred.add(task.job.shop)
            call: Callable[..., Any] = self.tasks.run if task.runs else self.tasks.refer
            self.running[self.pool.submit(call, question(task.job, self.asked))] = task
        return bool(self.running)

    def _next(self) -> Task | None:
        """The first job whose shop has its references, or that may take them."""
        for job in self.pending:
            if job.shop in self.ready or job.shop not in self.referred:
                return Task(job, job.shop in self.ready, time.monotonic())
        return None

    def end(self, done: set[Future[Any]]) -> None:
        """Keep what workers found, or why they failed."""
        for future in done:
            if future not in self.running:
                continue  # lost with another one
            task = self.running.pop(future)
            try:
                self._keep(task, future.result())
            except BrokenProcessPool as error:  # a worker was killed; all its like are lost
                for lost in (task, *self.running.values()):
                    self._fail(lost, error)
                self.running.clear()
                self.pool = self.make_pool(self.asked["workers"])
            except Exception as error:
                self._fail(task, error)

    def _keep(self, task: Task, found: Any) -> None:
        if not task.runs:
            self.ready.add(task.job.shop)
            return
        done = read_run(results.RunDirectory(Path(found)))
        self.ledger.append(done)
        words = f"{done.last('normalised_score'):.3f}"
        left = [*self.pending, *(other.job for other in self.running.values() if other.runs)]
        self.progress.tell(task.job, words, time.monotonic() - task.since, left)

    def _fail(self, task: Task, error: Exception) -> None:
        if not task.runs:  # nothing can be run in that shop
            self.pending = [job for job in self.pending if job.shop != task.job.shop]
        self.failures.append(f"{task}: {type(error).__name__}: {one_line(error)}")
        print(f"failed: {self.failures[-1]}", file=sys.stderr, flush=True)


def _processes(workers: int) -> Executor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, initializer=_heed_the_parent)


def _heed_the_parent() -> None:
    """Ctrl-C is for the parent, who then tells its workers to go, which they do in order."""

    def leave(number: int, frame: Any) -> None:
        sys.exit(130)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, leave)


def draw(ledger: Ledger, out: Path) -> list[Path]:
    """The table and the two pictures from the kept figures.

    Raises:
        UsageError: there are none, or they must not be averaged.
    """
    comparison = compare(ledger.runs())
    out.mkdir(parents=True, exist_ok=True)
    table = out / "leaderboard.md"
    results.write_text(table, tables.leaderboard(comparison, ledger.about))
    return [
        table,
        figures.standing(comparison, out / "leaderboard.png"),
        figures.curves(comparison, out / "leaderboard_curves.png"),
    ]


def main(argv: list[str]) -> None:
    """Do what is missing of the grid, or draw."""
    asked = _asked(argv)
    keys = ("total_timesteps", "env", "eval")
    ledger = Ledger(Path(asked["data"]), {key: asked[key] for key in keys})
    if asked["draw"]:
        print("\n".join(str(path) for path in draw(ledger, Path(asked["out"]))))
        return
    jobs = list(grid(asked["scenarios"], asked["agents"], asked["runs"]))
    cells = {place: _cell(place, asked) for place in asked["scenarios"]}
    missing = [j for j in jobs if (cells[j.place], j.agent, j.world, j.seed) not in ledger.done]
    print(f"{len(jobs)} runs, {len(jobs) - len(missing)} of them done", file=sys.stderr)
    with _terminable():
        failures = play(missing, asked, ledger)
    left = sum((cells[j.place], j.agent, j.world, j.seed) not in ledger.done for j in jobs)
    print(f"{len(jobs) - left} of {len(jobs)} runs are done, kept in {ledger.path}")
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    if failures:
        sys.exit(1)


def _cell(place: str, asked: dict[str, Any]) -> str:
    """A place under the name that its runs have in the ledger."""
    env = question(Job(place, "random", 0, 0), asked)["env"]
    return results.shop_name(make_env(env, 1).shop, env, group_defaults("env", "recsys"))


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the grid as Ctrl-C does."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        print("finished runs are kept: go on with the same command", file=sys.stderr)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _asked(argv: list[str]) -> dict[str, Any]:
    """The arguments, checked."""
    defaults: dict[str, Any] = {
        "total_timesteps": BUDGET, "agents": None, "scenarios": None, "runs": RUNS, "workers": 2,
        "time_limit": None, "draw": False, "runs_dir": "runs/leaderboard", "data": str(DATA),
        "out": "docs", "env": {}, "eval": {},
    }  # fmt: skip
    asked = arguments(argv, defaults)
    for name, high in (("total_timesteps", 10**12), ("runs", 1000), ("workers", 64)):
        as_number(name, asked[name], 1, high)
    if asked["time_limit"] is not None:
        as_number("time_limit", asked["time_limit"], 0.0, 1e6)
    if not isinstance(asked["draw"], bool):
        raise UsageError(f"draw must be true or false, got {asked['draw']!r}")
    there = [agent for agent in AGENTS if (CONF / "agent" / f"{agent}.yaml").is_file()]
    asked["agents"] = _chosen("agent", asked["agents"], there)
    asked["scenarios"] = _chosen("scenario", asked["scenarios"], PLACES)
    return asked


def _chosen(kind: str, text: Any, known: Any) -> list[str]:
    """Names separated by commas, in the order of the known ones; all without any."""
    wanted = [word.strip() for word in str(text).split(",")] if text else list(known)
    for word in wanted:
        if word not in known:
            raise unknown(kind, word, known)
    return [name for name in known if name in wanted]


if __name__ == "__main__":
    entry(main, __doc__)
