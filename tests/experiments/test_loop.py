"""The feedback loop: what is learned is what was logged, and killed loops end as others do.

Ten kills at random moments: ``pytest -m slow tests/experiments/test_loop.py``.
"""

from __future__ import annotations

import itertools
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from test_run import one_line

from agents.bandits.context_free import EpsilonGreedy
from agents.interest.model import InterestModel
from experiments import loop, results
from experiments.build import make_env
from experiments.feedback import measures, rounds
from experiments.feedback.measures import COLUMNS
from experiments.logs.schema import read_log
from recenv.errors import UsageError

SHOP = ["env.num_items=20", "env.horizon=10", "eval.shoppers=50", "eval.reference=index_policy"]
SMALL = ["rounds=3", "steps_per_round=600", "epochs=2", "progress=false", "device=cpu"]
AGENTS = {
    "scorer": ["agent=scorer", "agent.num_envs=32", "agent.batch_size=64", "agent.hidden=16"],
    "ppo": ["agent=ppo", "agent.num_envs=32", "agent.n_steps=8", "encoder=gru",
            "agent.encoder_width=8"],
    "dqn": ["agent=dqn", "agent.num_envs=32", "agent.learning_starts=300",
            "agent.buffer_size=2000"],
    "linucb": ["agent=linucb", "agent.num_envs=32", "agent.warm_up=4"],
    "lin_ts": ["agent=lin_ts", "agent.num_envs=32", "agent.warm_up=4"],
    "epsilon_greedy": ["agent=epsilon_greedy", "agent.num_envs=32"],
    "popularity": ["agent=popularity", "agent.num_envs=32", "agent.best=1"],
    "mf": ["agent=mf", "agent.num_envs=32"],
    "random": ["agent=random", "agent.num_envs=32"],
}  # fmt: skip


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all loops, so that they share the references of their shop."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(runs_dir: Path) -> Any:
    """Loops that nothing befell, each done once."""
    done: dict[str, Path] = {}

    def of(agent: str) -> Path:
        if agent not in done:
            done[agent] = do(runs_dir, agent, f"whole-{agent}")
        return done[agent]

    return of


def words(runs_dir: Path, agent: str, name: str, *more: str) -> list[str]:
    return [*AGENTS[agent], *SHOP, *SMALL, f"runs_dir={runs_dir}", f"name={name}", *more]


def do(runs_dir: Path, agent: str, name: str, *more: str) -> Path:
    loop.main(words(runs_dir, agent, name, *more))
    return runs_dir / "loops" / name


def rows(path: Path) -> list[dict[str, float | None]]:
    return pl.read_csv(path / rounds.ROUNDS).to_dicts()


def logs(path: Path) -> list[pl.DataFrame]:
    """What was recommended, round by round."""
    return [
        read_log(place / "log").events.filter(pl.col("policy") != "organic")
        for place in sorted(path.glob("round=*"))
    ]


def figures(path: Path) -> dict[str, Any]:
    """All that a loop found and learned."""
    agent = {file.name: file.read_bytes() for file in sorted((path / "agent").iterdir())}
    clean = [pl.read_parquet(place / "clean" / "events-*.parquet") for place in places(path)]
    told = [frame.write_csv(None) for frame in (f.drop("query") for f in clean)]
    return {"rounds": (path / rounds.ROUNDS).read_bytes(), "agent": agent, "clean": told}


def places(path: Path) -> list[Path]:
    return sorted(path.glob("round=*"))


class Stopped(Exception):  # noqa: N818
    """In the place of a kill."""


@pytest.mark.parametrize("agent", ["scorer", "ppo", "dqn", "linucb", "mf", "random"])
def test_stopped_before_every_stage_it_ends_the_same(
    agent: str, runs_dir: Path, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = figures(whole(agent))
    run, stages = rounds.Loop.run, []

    def one_stage(self: rounds.Loop, tell: Any) -> Any:
        begun = 0

        def told(number: int, stage: str) -> None:
            nonlocal begun
            begun += 1
            if begun > 1:
                raise Stopped
            stages.append((number, stage))

        return run(self, told)

    monkeypatch.setattr(rounds.Loop, "run", one_stage)
    name = f"stopped-{agent}"
    while True:
        try:
            path = do(runs_dir, agent, name)
            break
        except Stopped:
            pass
    per_round = {"scorer": 4, "mf": 4, "ppo": 4}.get(agent, 3)
    assert len(stages) == len(set(stages)) == 3 * per_round
    assert figures(path) == reference


# kills itself when it moves its n-th file or directory to where it belongs
KILLED = """
import os, signal, sys
from pathlib import Path
from experiments import loop
left = int(sys.argv.pop(1))
def dying(of):
    def move(*args):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return of(*args)
    return move
Path.rename, Path.replace = dying(Path.rename), dying(Path.replace)
import torch; torch.set_num_threads(1)
loop.main(sys.argv[1:])
"""


@pytest.mark.parametrize(("agent", "moves"), [("scorer", (4, 3)), ("ppo", (5, 7))])
def test_killed_while_it_writes_it_ends_the_same(
    agent: str, moves: tuple[int, int], runs_dir: Path, whole: Any
) -> None:
    name = f"killed-{agent}"
    for move in moves:
        asked = words(runs_dir, agent, name)
        command = [sys.executable, "-c", KILLED, str(move), *asked]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == -signal.SIGKILL, done.stderr
    before = len(places(runs_dir / "loops" / name))
    path = do(runs_dir, agent, name)
    assert 1 <= before <= 3
    assert figures(path) == figures(whole(agent))
    left = [file for file in path.rglob("*.part") if file.name.startswith(".")]
    assert not left


@pytest.mark.long
@pytest.mark.parametrize("agent", ["scorer", "ppo", "dqn"])
def test_ten_kills_at_random_moments(agent: str, runs_dir: Path, whole: Any) -> None:
    """Whenever a loop ends between two kills it is compared, and another one is begun."""
    reference, luck, name = figures(whole(agent)), random.Random(0), f"random-{agent}"
    command = [sys.executable, "-m", "experiments.loop", *words(runs_dir, agent, name)]
    path, kills, deadline = runs_dir / "loops" / name, 0, time.monotonic() + 900
    while kills < 10 and time.monotonic() < deadline:
        before = len(list(path.rglob("*")))
        with (runs_dir / "stderr").open("w") as told:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=told)
        while process.poll() is None and len(list(path.rglob("*"))) == before:
            time.sleep(0.01)
        time.sleep(luck.uniform(0, 0.6))
        process.kill()
        if process.wait() == -signal.SIGKILL:
            kills += 1
        else:
            assert process.returncode == 0, (runs_dir / "stderr").read_text()
            assert figures(path) == reference
            shutil.rmtree(path)
    assert kills == 10
    assert figures(do(runs_dir, agent, name)) == reference


@pytest.mark.parametrize("agent", ["scorer", "ppo", "dqn", "epsilon_greedy"])
def test_sessions_go_on_over_the_rounds_and_every_step_is_logged_once(
    agent: str, whole: Any
) -> None:
    parts = logs(whole(agent))
    table = rows(whole(agent))
    assert [row["steps"] for row in table] == list(np.cumsum([len(part) for part in parts]))
    assert tuple(table[0]) == COLUMNS
    events = pl.concat(parts)
    assert events.select("session", "step").is_unique().all()
    by_session = events.sort("session", "step").group_by("session", maintain_order=True)
    told = by_session.agg(
        (pl.col("step") == pl.int_range(pl.len())).all().alias("counted"),
        (pl.col("timestamp").diff().drop_nulls() > 0).all().alias("in_time"),
        pl.col("shopper").n_unique().alias("shoppers"),
    )
    assert told["counted"].all()
    assert told["in_time"].all()
    assert (told["shoppers"] == 1).all()
    # strangers come once
    assert events["shopper"].n_unique() == events["session"].n_unique()
    sessions = [set(part["session"]) for part in parts]
    assert sessions[1] & sessions[2]


def test_what_acting_agents_learned_is_what_was_logged(whole: Any) -> None:
    path = whole("epsilon_greedy")
    events = pl.concat(logs(path))
    shown_I, bought_I = measures.counts(events, 20)
    env = make_env(results.read_json(path / loop.LOOP)["env"], 1)
    agent = EpsilonGreedy.load(path / "agent", env)
    assert isinstance(agent, EpsilonGreedy)
    np.testing.assert_allclose(agent.rates.count_I.numpy(), shown_I, atol=1e-6)
    np.testing.assert_allclose(agent.rates.bought_I.numpy(), bought_I, atol=1e-6)


@pytest.mark.parametrize("agent", ["ppo", "dqn", "epsilon_greedy"])
def test_propensities_are_true(agent: str, whole: Any) -> None:
    """1 / propensity is the number of items on average, where each has a chance."""
    path = whole(agent)
    events = pl.concat(logs(path))
    propensity = events["propensity"].to_numpy()
    assert len(np.unique(propensity)) > 1
    assert (propensity > 0).all()
    assert (propensity <= 1).all()
    inverse = 1 / propensity
    error = inverse.std() / np.sqrt(len(inverse))
    assert abs(inverse.mean() - 20) < 4 * error + 1e-6


def test_propensities_of_other_agents(whole: Any) -> None:
    scorer = logs(whole("scorer"))
    np.testing.assert_allclose(scorer[0]["propensity"].to_numpy(), 1 / 20)
    explored, best = 0.1 / 20, 0.9 + 0.1 / 20
    found = np.unique(scorer[2]["propensity"].to_numpy())
    np.testing.assert_allclose(found, [explored, best])
    assert 0.85 < (scorer[2]["propensity"] > 0.5).mean() < 0.95
    linucb = pl.concat(logs(whole("linucb")))["propensity"].to_numpy()
    np.testing.assert_allclose(np.unique(linucb), [1 / 20, 1.0])
    assert pl.concat(logs(whole("lin_ts")))["propensity"].null_count() > 0
    assert rows(whole("lin_ts"))[2]["mean_propensity"] is None


def test_the_interest_model_is_trained_on_and_read_by_the_policy(whole: Any) -> None:
    path = whole("ppo")
    models = [InterestModel.load(place / "interest") for place in places(path)]
    weights = [model.interest.weight.detach().numpy() for model in models]
    assert all(np.abs(a - b).max() > 1e-4 for a, b in itertools.pairwise(weights))
    # the last round was served with that of the round before
    served = InterestModel.load(path / "agent").interest.weight.detach().numpy()
    np.testing.assert_array_equal(served, weights[1])


def test_popularity_without_exploration_narrows_to_one_item(runs_dir: Path) -> None:
    path = do(runs_dir, "popularity", "narrow", "explore=0")
    table = rows(path)
    assert table[0]["served_coverage"] == 1.0
    assert table[0]["served_top10_share"] < 0.2
    assert table[0]["bestseller_share"] is None
    assert table[1]["served_coverage"] == 1 / 20
    assert table[2]["served_top10_share"] == 1.0
    assert table[2]["bought_gini"] == pytest.approx(0.95)
    assert (path / rounds.PICTURE).stat().st_size > 10_000


def test_concentration_of_counts_worked_by_hand() -> None:
    told = measures.concentration(np.array([6, 2, 0, 0, 0, 0, 0, 0, 0, 0]))
    assert told["coverage"] == 0.2
    assert told["top_item_share"] == told["top10_share"] == 0.75
    assert told["entropy"] == pytest.approx(0.75 * np.log(4 / 3) + 0.25 * np.log(4))
    # (2 * 9 - 11) * 0.25 / 10 + (2 * 10 - 11) * 0.75 / 10
    assert told["gini"] == pytest.approx(0.85)
    even = measures.concentration(np.full(30, 2))
    assert even["top10_share"] == pytest.approx(0.1)
    assert even["gini"] == pytest.approx(0.0)
    nothing = measures.concentration(np.zeros(5))
    assert nothing["coverage"] == nothing["top10_share"] == 0.0


def test_what_was_served_worked_by_hand() -> None:
    events = pl.DataFrame(
        {
            "policy": ["mf"] * 5 + ["organic"],
            "event": ["purchase", "view", "purchase", "ignore", "view", "view"],
            "item": [0, 0, 1, 2, 0, 9],
            "propensity": [0.9, 0.9, 0.1, None, 0.1, None],
        }
    )
    told = measures.served(events, 10, np.array([1, 7, 0, 0, 0, 0, 0, 0, 0, 0]))
    assert told["served_conversion"] == pytest.approx(0.4)
    assert told["served_coverage"] == pytest.approx(0.3)
    assert told["served_top10_share"] == pytest.approx(0.6)
    assert told["bestseller_share"] == pytest.approx(0.2)  # item 1
    assert told["bought_coverage"] == pytest.approx(0.2)
    assert told["bought_top10_share"] == pytest.approx(0.5)
    assert told["mean_propensity"] == pytest.approx(0.5)
    assert set(told) >= set(measures.SERVED)
    assert measures.served(events, 10, np.zeros(10))["bestseller_share"] is None


def test_a_finished_loop_is_left_as_it_is(
    runs_dir: Path, whole: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = whole("mf")
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*.parquet")}
    do(runs_dir, "mf", "whole-mf")
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*.parquet")} == before
    assert "mf in synthetic-full" in capsys.readouterr().out


def refused(runs_dir: Path, agent: str, name: str, *more: str) -> str:
    with pytest.raises(UsageError) as error:
        do(runs_dir, agent, name, *more)
    return str(error.value)


def test_a_users_mistake_is_one_line(runs_dir: Path, whole: Any) -> None:
    whole("mf")
    another = refused(runs_dir, "mf", "whole-mf", "seed=1")
    assert "holds a loop with seed 0, asked for 1" in another
    another = refused(runs_dir, "mf", "whole-mf", "explore=0.5")
    assert "{'explore': 0.1}, asked for {'explore': 0.5}" in another
    another = refused(runs_dir, "linucb", "whole-mf")
    assert "holds a loop with agent" in another
    occupied = runs_dir / "loops" / "occupied"
    occupied.mkdir()
    (occupied / "mine.txt").write_text("mine")
    assert "is no loop" in refused(runs_dir, "mf", "occupied", "if_exists=overwrite")
    assert (occupied / "mine.txt").is_file()
    for agent, word, told in (
        ("scorer", "env.observation=latent", "logs, which hold no latent state"),
        ("ppo", "env.observation=latent", "env.observation=behaviour"),
        ("ppo", "agent.pretrain_steps=100", "leave out agent.pretrain_steps"),
        ("ppo", "agent.freeze_encoder=false", "leave out agent.freeze_encoder"),
        ("ppo", "encoder=bayes", "encoder=bayes learns nothing"),
        ("random", "agent=rotation", "whole sessions"),
        ("random", "env=gate", "gate"),
        ("random", "rounds=0", "rounds"),
        ("random", "explore=2", "explore must lie in"),
        ("random", "round=3", "round"),
        ("random", "organic=perhaps", "organic must be true or false"),
        ("random", "if_exists=skip", "unknown if_exists"),
        ("random", "name=../elsewhere", "below <runs_dir>/loops"),
        ("random", "total_timesteps=5", "rounds times steps_per_round"),
        ("random", "steps_per_round=1000000000", "take longer than since"),
        ("random", "env.num_items=many", "num_items"),
    ):
        assert told in refused(runs_dir, agent, "mistake", word), word
    assert not (runs_dir / "loops" / "mistake").exists()


def test_mistakes_at_the_front_door(runs_dir: Path) -> None:
    command = [sys.executable, "-m", "experiments.loop", "agent=random", "explor=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    one_line(done, "explor")
