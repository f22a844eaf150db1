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
    make_pool = make_pool or _processes
    workers, began = asked["workers"], time.monotonic()
    limit = 60 * asked["time_limit"] if asked["time_limit"] else float("inf")
    progress, failures = Progress(len(jobs), workers), []
    pending, referred, ready = list(jobs), set(), set()
    running: dict[Future[Any], tuple[Job, bool, float]] = {}
    pool = make_pool(workers)

    def next_task() -> tuple[Job, bool] | None:
        """The first job whose shop has its references, or that may take them: (job, run it?)."""
        for job in pending:
            if job.shop in ready:
                return job, True
            if job.shop not in referred:
                return job, False
        return None

    def fail(job: Job, running_it: bool, error: Exception) -> None:
        lost = [] if running_it else [other for other in pending if other.shop == job.shop]
        for other in lost:
            pending.remove(other)
        what = str(job) if running_it else f"references of {job.place} world {job.world}"
        failures.append(f"{what}: {type(error).__name__}: {one_line(error)}")
        print(f"failed: {failures[-1]}", file=sys.stderr, flush=True)

    try:
        while True:
            while len(running) < workers and time.monotonic() - began < limit:
                task = next_task()
                if task is None:
                    break
                job, running_it = task
                if running_it:
                    pending.remove(job)
                else:
                    referred.add(job.shop)
                call: Callable[..., Any] = tasks.run if running_it else tasks.refer
                future = pool.submit(call, question(job, asked))
                running[future] = (job, running_it, time.monotonic())
            if not running:
                return failures
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job, running_it, since = running.pop(future)
                try:
                    found = future.result()
                    if running_it:
                        done = read_run(results.RunDirectory(Path(found)))
                        ledger.append(done)
                        words = f"{done.last('normalised_score'):.3f}"
                        left = [*pending, *(j for j, runs, _ in running.values() if runs)]
                        progress.tell(job, words, time.monotonic() - since, left)
                    else:
                        ready.add(job.shop)
                except BrokenProcessPool as error:  # a worker was killed; all its like are lost
                    fail(job, running_it, error)
                    for other, runs_it, _ in running.values():
                        fail(other, runs_it, error)
                    running.clear()
                    pool = make_pool(workers)
                    break
                except Exception as error:
                    fail(job, running_it, error)
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


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
