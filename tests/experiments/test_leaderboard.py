"""The grid of the leaderboard: its order, resuming, failures, and the figures that are kept."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import Executor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import made

from experiments import leaderboard
from experiments.build import CONF
from experiments.comparison.ledger import COLUMNS, Ledger
from experiments.comparison.runs import read_run
from experiments.leaderboard import AGENTS, PLACES, Job, Tasks, grid, play
from recenv.errors import UsageError

QUESTION = {"total_timesteps": 2000, "env": {}, "eval": {}}


class Stub:
    """Workers that write made-up runs, and remember what they were asked."""

    def __init__(self, runs_dir: Path, broken: tuple[str, ...] = (), no_references: int = -1):
        self.runs_dir, self.broken, self.no_references = runs_dir, broken, no_references
        self.asked: list[str] = []
        self.tasks = Tasks(self.refer, self.run)

    def refer(self, config: dict[str, Any]) -> None:
        self.asked.append(f"references {config['env']['world_seed']}")
        if config["env"]["world_seed"] == self.no_references:
            raise UsageError("no such\nworld")

    def run(self, config: dict[str, Any]) -> str:
        agent, world = config["agent"]["name"], config["env"]["world_seed"]
        self.asked.append(f"{agent} {world} {config['seed']}")
        if agent in self.broken:
            raise RuntimeError(f"{agent} broke")
        shop = f"synthetic-{config['env']['scenario']}"
        scores = [0.0] if agent == "random" else [0.1, 0.5]
        return str(made(self.runs_dir, agent, config["seed"], world, scores, shop).path)


def asked(tmp_path: Path, **other: Any) -> dict[str, Any]:
    return {
        "workers": 1,
        "time_limit": None,
        "runs_dir": str(tmp_path / "runs"),
        **QUESTION,
    } | other


def threads(workers: int) -> Executor:
    return ThreadPoolExecutor(workers)


def one(tmp_path: Path, stub: Stub, jobs: list[Job], **other: Any) -> list[str]:
    ledger = Ledger(tmp_path / "data", QUESTION)
    return play(jobs, asked(tmp_path, **other), ledger, stub.tasks, threads)


def test_the_grid_goes_run_by_run() -> None:
    jobs = list(grid(["static", "complete_journey"], ["random", "ppo"], 10))
    assert [str(job) for job in jobs[:5]] == [
        "static random world 0 seed 0",
        "static ppo world 0 seed 0",
        "complete_journey random world 0 seed 0",
        "complete_journey ppo world 0 seed 0",
        "static random world 1 seed 0",
    ]
    count = Counter((job.place, job.agent) for job in jobs)
    assert count["static", "ppo"] == count["complete_journey", "ppo"] == 10
    # who does not learn needs one run a world
    assert (count["static", "random"], count["complete_journey", "random"]) == (5, 1)
    ppo = {(job.world, job.seed) for job in jobs if job.agent == "ppo" and job.place == "static"}
    assert ppo == {(world, seed) for world in range(5) for seed in range(2)}
    assert len(set(jobs)) == len(jobs)


def test_the_names_are_those_of_conf() -> None:
    assert {"ppo", "dqn", "scorer", "linucb", "random"} <= set(AGENTS)
    there = {path.stem for path in (CONF / "agent").glob("*.yaml")}
    unranked = {"epsilon_oracle", "always_recommend", "never_recommend"}
    unranked |= {"user_cf", "item_content", "mf"}  # judged on logs too, by experiments.rank
    unranked |= {"maskable_ppo", "qrdqn"}  # for shops in which items run out
    assert there <= {*AGENTS, *unranked}
    for place in PLACES:
        job = Job(place, "linucb", 0, 1)
        config = leaderboard.question(job, {**QUESTION, "runs_dir": "x", "env": {"horizon": 9}})
        assert config["env"]["horizon"] == 9
        assert (config["seed"], config["total_timesteps"], config["threads"]) == (1, 2000, 1)


def test_references_come_first_and_once_a_shop(tmp_path: Path) -> None:
    jobs = list(grid(["static"], ["random", "ppo"], 6))
    stub = Stub(tmp_path / "runs")
    assert one(tmp_path, stub, jobs, workers=2) == []
    assert sorted(a for a in stub.asked if "ref" in a) == [f"references {w}" for w in range(5)]
    for world in range(5):
        first = next(i for i, a in enumerate(stub.asked) if a.split()[1] == str(world))
        assert stub.asked[first] == f"references {world}"
    runs = [a for a in stub.asked if "ref" not in a]
    assert len(runs) == 11
    assert set(runs[-3:]) <= {"random 4 0", "ppo 4 0", "ppo 0 1", "ppo 3 0"}


def test_finished_runs_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["agents=random,linucb", "scenarios=static", "runs=2", "workers=1"]
    words += [f"runs_dir={tmp_path / 'runs'}", f"data={tmp_path / 'data'}", "total_timesteps=2000"]
    one(tmp_path, Stub(tmp_path / "runs"), [Job("static", "linucb", 1, 0)])
    later = Stub(tmp_path / "runs")

    def stubbed(jobs: Any, asked: Any, ledger: Any) -> Any:
        return play(jobs, asked, ledger, later.tasks, threads)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leaderboard, "play", stubbed)
        leaderboard.main(words)
    assert later.asked == ["references 0", "random 0 0", "linucb 0 0", "references 1", "random 1 0"]
    said = capsys.readouterr()
    assert "4 runs, 1 of them done" in said.err
    assert "4 of 4 runs are done" in said.out


def test_a_failed_run_does_not_end_the_grid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = list(grid(["static"], ["random", "scorer", "ppo"], 2))
    failures = one(tmp_path, Stub(tmp_path / "runs", ("scorer",)), jobs)
    assert failures == [
        f"static scorer world {world} seed 0: RuntimeError: scorer broke" for world in (0, 1)
    ]
    again = Ledger(tmp_path / "data", QUESTION)
    assert {key[1] for key in again.done} == {"random", "ppo"}
    assert "failed: static scorer" in capsys.readouterr().err


def test_without_references_only_that_shop_is_lost(tmp_path: Path) -> None:
    jobs = list(grid(["static"], ["random", "ppo"], 3))
    failures = one(tmp_path, Stub(tmp_path / "runs", no_references=1), jobs)
    assert failures == ["references of static world 1: UsageError: no such world"]
    assert {key[2] for key in Ledger(tmp_path / "data", QUESTION).done} == {0, 2}


def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    stub, pools = Stub(tmp_path / "runs"), []

    def run(config: dict[str, Any]) -> str:
        if config["agent"]["name"] == "scorer":
            raise BrokenProcessPool("a child process terminated abruptly")
        return stub.run(config)

    def make_pool(workers: int) -> Executor:
        pools.append(workers)
        return threads(workers)

    jobs = list(grid(["static"], ["scorer", "ppo"], 1))
    ledger = Ledger(tmp_path / "data", QUESTION)
    failures = play(jobs, asked(tmp_path), ledger, Tasks(stub.refer, run), make_pool)
    assert len(pools) == 2
    assert len(failures) == 1
    assert {key[1] for key in ledger.done} == {"ppo"}


def test_no_new_run_begins_after_the_time_limit(tmp_path: Path) -> None:
    class Slow(Stub):
        def run(self, config: dict[str, Any]) -> str:
            time.sleep(0.6)
            return super().run(config)

    slow = Slow(tmp_path / "runs")
    jobs = list(grid(["static"], ["ppo"], 5))
    assert one(tmp_path, slow, jobs, time_limit=0.5 / 60) == []
    assert len(Ledger(tmp_path / "data", QUESTION).done) == 1


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, QUESTION)
    told = {"served": [None, -12.5], "warnings": ["the policy has collapsed: ..."]}
    run = read_run(made(tmp_path / "runs", "ppo", 1, 2, [0.1, 0.51234], **told))
    ledger.append(run)
    ledger.append(read_run(made(tmp_path / "runs", "random", 0, 2, [0.0])))
    back, flat = Ledger(tmp_path, QUESTION).runs()
    for name in ("cell", "agent", "world", "seed", "budget", "judged", "versions", "fingerprint"):
        assert getattr(back, name) == getattr(run, name), name
    for name in ("timesteps", "normalised_score", "normalised_low", "training_return_mean"):
        np.testing.assert_allclose(back.evaluations[name], run.evaluations[name], atol=2e-4)
    assert back.myopic_score == pytest.approx(0.5)
    assert "collapsed" in back.warnings[0]
    assert flat.warnings == ()
    assert back.learns
    assert not flat.learns
    assert len(json.loads((tmp_path / "about.json").read_text())["versions"]) == 1


def test_half_a_line_costs_its_run_alone(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, QUESTION)
    for seed in range(2):
        ledger.append(read_run(made(tmp_path / "runs", "ppo", seed)))
    text = ledger.path.read_text()
    ledger.path.write_text(text[:-20])
    again = Ledger(tmp_path, QUESTION)
    assert again.done == {("synthetic-full", "ppo", 0, 0)}
    again.append(read_run(made(tmp_path / "other", "ppo", 1)))
    assert ledger.path.read_text() == text


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, QUESTION)
    with pytest.raises(UsageError, match="no run"):
        ledger.runs()
    ledger.append(read_run(made(tmp_path / "runs", "ppo")))
    with pytest.raises(UsageError, match="another data directory"):
        Ledger(tmp_path, QUESTION | {"total_timesteps": 1})
    odd = made(tmp_path / "odd", "dqn", high="planning_oracle")
    with pytest.raises(UsageError, match="judged in another way"):
        ledger.append(read_run(odd))
    ledger.path.write_text("other,columns\n")
    with pytest.raises(UsageError, match="columns of this version"):
        Ledger(tmp_path, QUESTION)
    assert len(COLUMNS) == len(set(COLUMNS))


def test_table_and_pictures_come_from_the_kept_figures_alone(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "data", QUESTION)
    for world in range(2):
        for agent, scores in (("ppo", [0.1, 0.9]), ("scorer", [0.1, 0.4]), ("random", [0.0])):
            ledger.append(read_run(made(tmp_path / "runs", agent, 0, world, scores)))
    words = [f"data={tmp_path / 'data'}", f"out={tmp_path / 'docs'}", "total_timesteps=2000"]
    leaderboard.main(["draw=true", *words])
    assert {path.name for path in (tmp_path / "docs").iterdir()} == {
        "leaderboard.md", "leaderboard.png", "leaderboard_curves.png",
    }  # fmt: skip
    text = (tmp_path / "docs" / "leaderboard.md").read_text()
    assert "| `ppo` | **0.90 [0.90, 0.90]** |" in text
    assert "`python -m experiments.leaderboard total_timesteps=2000` at commit abc" in text


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("agents=ppoo", "did you mean 'ppo'"),
        ("scenarios=trst", "did you mean 'trust'"),
        ("runs=0", "runs"),
        ("workers=none", "workers"),
        ("draw=1", "draw"),
        ("time_limit=-1", "time_limit"),
        ("data", "key=value"),
    ],
)
def test_a_mistake_is_one_line(word: str, part: str) -> None:
    with pytest.raises(UsageError, match=part):
        leaderboard.main([word])


def test_a_real_grid_is_interrupted_and_goes_on(tmp_path: Path) -> None:
    words = ["agents=random,linucb", "scenarios=static", "runs=1", "workers=1", "env.num_items=10"]
    words += ["env.horizon=5", "eval.shoppers=50", "eval.points=2", "eval.first=500"]
    words += [f"runs_dir={tmp_path / 'runs'}", f"data={tmp_path / 'data'}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.leaderboard", *words, "total_timesteps=5000000"],
        cwd=CONF.parent, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.time() + 120
    while time.time() < deadline and not list(tmp_path.glob("runs/*/linucb/*/evaluations.csv")):
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "go on with the same command" in said
    assert "Traceback" not in said
    assert len((tmp_path / "data" / "runs.csv").read_text().splitlines()) == 2  # random's
