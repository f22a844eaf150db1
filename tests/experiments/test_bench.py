"""The bench's arithmetic, files and manners; never how fast anything is."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from experiments import bench
from experiments.cli import entry
from experiments.performance import page, peer, rows, score_time, sides
from experiments.performance.floor import floor
from experiments.performance.measure import Bench, Result, Sizes, Timed
from experiments.results import versions
from recenv.errors import UsageError
from recenv.vector_env import RecsysVectorEnv

TINY = Sizes(
    num_envs=8,
    vector_rounds=2,
    vector_steps=5,
    single_rounds=2,
    single_steps=60,
    floor_envs=8,
    floor_steps=5,
    torch_envs=8,
    torch_rounds=1,
    torch_steps=5,
    sweep_envs=(8,),
    sweep_items=(50,),
    sweep_rounds=1,
    sweep_recommendations=80,
    many_items=2000,
    retrieve_steps=5,
    train_rounds=1,
    train_steps=80,
    warm_up=1,
    agents={
        "ppo": {"num_envs": 8, "n_steps": 5, "minibatches": 2, "n_epochs": 1},
        "dqn": {"num_envs": 8, "learning_starts": 8},
        "scorer": {"num_envs": 8},
        "linucb": {"num_envs": 8},
    },
    score_seeds=1,
    score_every=40,
    score_steps=120,
    score_shoppers=20,
    score_reference="index_policy",
    bandit_rounds=1,
    bandit_batch=16,
    bandit_batches=2,
    bandit_items=(5, 8),
    bandit_many_items=40,
    sb3={"n_steps": 8, "batch_size": 32, "n_epochs": 1},
)
CPU = torch.device("cpu")
FIELDS = {
    "row",
    "what",
    "against",
    "unit",
    "ours",
    "reference",
    "ratio",
    "ratio_min",
    "ratio_max",
    "rounds",
    "clock",
    "floor",
    "ceiling",
    "commit",
    "cpu",
    "verdict",
}
ASKED = {
    "vector": 0.35,
    "vector_no_churn": 0.4,
    "floor": 0.5,
    "single": 0.25,
    "single_default": 0.25,
    "catalogue": 1.3,
    "training_ppo_sb3": 12,
    "bandit_5": 0.1,
    "bandit_8": 0.1,
    "bandit_shared": 5.0,
}


UNASKED = {
    "sweep_8x1000",
    "sweep_8x50",
    "training_ppo_device",
    "training_dqn",
    "training_scorer",
    "training_linucb",
    "skrl",
}


def uncompiled(*arguments: Any, compile: bool, **keywords: Any) -> sides.Side:
    """The torch side without the minute of compiling."""
    assert compile
    return sides.torch_side(*arguments, **keywords)


def fake_clock(*seconds: float) -> Callable[[], float]:
    """A clock by which turn after turn lasts so long."""
    times: list[float] = []
    now = 0.0
    for duration in seconds:
        times += [now, now + duration]
        now += duration + 1000.0  # what lies between two turns does not count
    return iter(times).__next__


def fabricated(ratio: float) -> Result:
    """A row of which at least 0.35 is asked."""
    return Result(
        row="vector",
        what="this",
        against="that",
        unit="steps/s",
        ours=1000 * ratio,
        reference=1000.0,
        ratio=ratio,
        ratio_min=ratio - 0.1,
        ratio_max=ratio + 0.1,
        rounds=3,
        floor=0.35,
    )


def fabricate(monkeypatch: pytest.MonkeyPatch, ratio: float) -> None:
    """Let the bench have one row, with a known ratio."""

    def row(_: Bench) -> Iterator[Result]:
        yield fabricated(ratio)

    monkeypatch.setattr(bench, "ROWS", {"vector": row})
    monkeypatch.setattr(page, "ROWS", {"vector": row})


def run_command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of ``python -m experiments.bench`` with these words."""
    monkeypatch.setattr(sys, "argv", ["bench", *words])
    try:
        entry(bench.main, bench.__doc__)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_all_rows_are_measured_printed_and_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "QUICK", TINY)
    monkeypatch.setattr(rows, "torch_side", uncompiled)
    monkeypatch.setenv("COLUMNS", "120")
    threads = torch.get_num_threads()
    assert run_command(monkeypatch, "quick=true", "device=cpu", f"out={tmp_path}/new") == 0
    assert torch.get_num_threads() == threads

    report = json.loads((tmp_path / "new" / "performance.json").read_text())
    assert {"machine", "seconds", "quick", "device", "rows"} <= set(report)
    assert {"cpu", "cores", "python", "torch", "gymnasium", "git"} <= set(report["machine"])
    found = {row["row"]: row for row in report["rows"]}
    assert set(found) == {*ASKED, *UNASKED, "torch_cpu", "memory"}
    assert all(set(row) == FIELDS for row in found.values())
    for name, asked in ASKED.items():
        assert (found[name]["floor"] or found[name]["ceiling"]) == asked
        assert found[name]["verdict"] in ("ok", "short")
    for row in found.values():
        assert row["ours"] > 0
        assert 0 < row["ratio_min"] <= row["ratio"] <= row["ratio_max"]
        assert row["clock"] == "wall"
    assert all(found[name]["verdict"] is None for name in UNASKED)
    assert (found["memory"]["unit"], found["memory"]["verdict"]) == ("bytes", "ok")

    text = (tmp_path / "new" / "performance.md").read_text()
    printed = capsys.readouterr().out
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(found)
    assert len({line.count("|") for line in table}) == 1
    for name in found:
        assert f"| {name} |" in text
        assert f"- **{name}**: " in text
        assert name in printed
    assert report["machine"]["cpu"] in text
    assert "device=cuda" in text  # what could not be measured


def test_only_the_rows_that_were_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench, "QUICK", TINY)
    words = ("quick=true", "rows=memory, vector,memory", f"out={tmp_path}")
    assert run_command(monkeypatch, *words) == 0
    report = json.loads((tmp_path / "performance.json").read_text())
    assert [row["row"] for row in report["rows"]] == ["memory", "vector"]


def test_sides_take_turns_and_ratios_are_per_round() -> None:
    order = []

    def ours() -> int:
        order.append("ours")
        return 100

    def other() -> int:
        order.append("other")
        return 50

    # speeds: 100/1, 50/1; 100/2, 50/4; 100/4, 50/1
    clock = fake_clock(1, 1, 2, 4, 4, 1)
    result = Bench(TINY, CPU, now=clock).compare("r", "a", "b", (ours, other), 3, floor=2.0)
    assert order == ["ours", "other"] * 3
    assert (result.ours, result.reference) == (50.0, 50.0)
    assert (result.ratio_min, result.ratio, result.ratio_max) == (0.5, 2.0, 4.0)
    assert (result.rounds, result.verdict) == (3, "ok")


def test_under_a_ceiling_the_ratio_is_one_of_costs() -> None:
    clock = fake_clock(3, 2)
    sides = (lambda: 10, lambda: 10)
    result = Bench(TINY, CPU, now=clock).compare("r", "a", "b", sides, 1, ceiling=1.3)
    assert result.ratio == pytest.approx(1.5)
    assert result.verdict == "short"
    assert result.asked == "<= 1.3"


@pytest.mark.parametrize(
    ("ratio", "floor", "ceiling", "verdict"),
    [
        (0.35, 0.35, None, "ok"),
        (0.349, 0.35, None, "short"),
        (1.3, None, 1.3, "ok"),
        (1.31, None, 1.3, "short"),
        (0.1, None, None, None),
        (None, None, None, None),
    ],
)
def test_verdict(
    ratio: float | None, floor: float | None, ceiling: float | None, verdict: str | None
) -> None:
    result = Result("r", "a", "steps/s", 1.0, ratio=ratio, floor=floor, ceiling=ceiling)
    assert result.verdict == verdict


def test_garbage_collection_rests_while_the_clock_runs() -> None:
    seen = []

    def broken() -> int:
        seen.append(gc.isenabled())
        raise RuntimeError("halfway")

    with pytest.raises(RuntimeError):
        Bench(TINY, CPU).compare("r", "a", "b", (broken, broken), 1)
    assert seen == [False]
    assert gc.isenabled()


def test_sides_count_their_environment_steps() -> None:
    assert sides.vector_side("Recsys-v0", 8, 5)() == 40
    assert sides.vector_side("CartPole-v1", 8, 5)() == 40
    assert sides.single_side("Recsys-v0", 120)() == 120
    assert sides.torch_side(8, 5, CPU)() == 40
    ours, theirs = sides.agent_side("ppo", TINY), sides.sb3_side(TINY)
    assert [ours(), ours()] == [80, 80]
    assert [theirs(), theirs()] == [64, 64]


def test_bandits_decide_and_learn_on_the_same_batches() -> None:
    for shared in (False, True):
        side = sides.bandit_side(TINY, 5, CPU, shared=shared)
        assert [side(), side()] == [32, 32]
    theirs = sides.mabwiser_side(TINY, 5)
    assert [theirs(), theirs(), theirs()] == [16, 16, 16]


def test_a_bandit_library_that_is_missing_is_told_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mabwiser.mab", None)
    assert run_command(monkeypatch, "rows=memory,bandit", f"out={tmp_path}/none") == 2
    assert 'pip install "recenv[dev]"' in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
    fabricate(monkeypatch, 1.0)
    assert run_command(monkeypatch, "rows=vector", f"out={tmp_path}") == 0


def test_memory_counts_state_and_luck_once_per_shopper() -> None:
    def measured(num_envs: int) -> int:
        env = RecsysVectorEnv(num_envs)
        env.reset(seed=0)
        return rows.state_bytes(env)

    luck = 50 * (4 + 2)  # a float32 threshold and an int16 row for each step
    assert measured(256) == 2 * measured(128)
    # those in the shop and those who wait
    assert 2 * luck < measured(128) / 128 < 4 * luck


def test_memory_leaves_the_catalogue_out() -> None:
    def measured(num_items: int) -> int:
        env = RecsysVectorEnv(64, num_items=num_items)
        env.reset(seed=0)
        return rows.state_bytes(env)

    assert measured(100) == measured(1000)


def test_a_view_counts_with_its_owner() -> None:
    owner = np.zeros((4, 10))
    assert rows._owner(owner[1:][0]) is owner


@pytest.mark.parametrize(
    ("ratio", "words", "code"),
    [(0.4, ["strict=true"], 0), (0.3, ["strict=true"], 1), (0.3, [], 0)],
)
def test_only_strict_turns_a_short_row_into_an_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    ratio: float,
    words: list[str],
    code: int,
) -> None:
    fabricate(monkeypatch, ratio)
    assert run_command(monkeypatch, f"out={tmp_path}", *words) == code
    printed = capsys.readouterr()
    assert ("  short" in printed.out) == (ratio < 0.35)
    assert ("short of what is asked: vector" in printed.err) == bool(code)
    (row,) = json.loads((tmp_path / "performance.json").read_text())["rows"]
    assert row["verdict"] == ("ok" if ratio >= 0.35 else "short")
    assert row["ratio"] == ratio


def test_figures_are_short_enough_for_a_narrow_terminal() -> None:
    text = dict(zip(page.HEADERS, page.cells(fabricated(0.3456)), strict=True))
    assert text["ours"] == "0.3 k"
    assert text["reference"] == "1.0 k"
    assert [text[name] for name in ("min", "ratio", "max")] == ["0.246", "0.346", "0.446"]
    assert text["asked"] == ">= 0.35"
    assert [page._figure(value) for value in (None, 13.44, 123.4)] == ["", "13.4", "123"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["rows=vectr"], "did you mean 'vector'?"),
        (["rows=vector,,ppo"], "unknown row ''"),
        (["clock=sun"], "unknown clock 'sun'"),
        (["check=none.json"], "there is no none.json"),
        (["row=vector"], "did you mean 'rows'?"),
        (["vector"], "arguments are key=value"),
        (["quick=5"], "quick must be true or false"),
        (["strict=yes please"], "strict must be true or false"),
        (["device=gpu"], "unknown device 'gpu'"),
        (["out=null"], "out must name a directory"),
        (["out={file}"], "choose another out"),
        (["out={file}/deeper"], "choose another out"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file"
    file.write_text("taken")
    fabricate(monkeypatch, 1.0)
    monkeypatch.setattr(bench, "ROWS", bench.ROWS | {"ppo": rows.single})
    assert run_command(monkeypatch, *(word.format(file=file) for word in words)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert says in printed.err


def test_a_device_that_is_not_here_is_told_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert run_command(monkeypatch, "device=cuda", f"out={tmp_path}/none") == 2
    assert "not on this machine" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_help_names_every_row_and_argument(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    for word in (*bench.ROWS, *bench.DEFAULTS):
        assert f"    {word} " in text


def test_the_reference_restarts_by_itself() -> None:
    """Both sides of the vector rows run on through the ends of their sessions."""
    env = gym.make_vec(sides.CARTPOLE, 8, vectorization_mode="vector_entry_point")
    assert env.metadata["autoreset_mode"] is not gym.vector.AutoresetMode.DISABLED


def test_the_floor_does_what_the_vector_env_does() -> None:
    """Same draws, same arithmetic: whoever is told less must not have done less."""
    env = RecsysVectorEnv(64, **rows.EVERYTHING_ON)
    env.reset(seed=3)
    bare = floor(64, 3, **rows.EVERYTHING_ON)
    ended = 0
    for action_N in np.random.default_rng(0).integers(1000, size=(60, 64)):
        seen_NS, reward_N, terminated_N, _, info = env.step(action_N)
        told = bare(action_N)
        np.testing.assert_allclose(told[0], seen_NS, atol=2e-4)
        np.testing.assert_array_equal(told[1], reward_N)
        np.testing.assert_array_equal(told[2], terminated_N)
        np.testing.assert_array_equal(told[3], info["event"])
        ended += int(terminated_N.sum())
    assert ended > 64


@pytest.mark.parametrize(
    ("ceiling", "ratio", "named"),
    [(None, 0.80, 0), (None, 0.70, 1), (1.3, 1.2, 0), (1.3, 1.4, 1)],
)
def test_rows_that_lost_a_quarter_of_their_ratio_are_named(
    ceiling: float | None, ratio: float, named: int
) -> None:
    def row(name: str, ratio: float | None) -> Result:
        return Result(name, "a", "steps/s", 1.0, ratio=ratio, ceiling=ceiling)

    before = [row("kept", 1.0), row("gone", 1.0), row("none", None)]
    found = page.slower([row("kept", ratio), row("new", 0.1), row("none", 1.0)], before)
    assert len(found) == named
    assert all(text.startswith("kept (") and "was 1.00" in text for text in found)


def test_check_compares_with_older_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fabricate(monkeypatch, 1.0)
    assert run_command(monkeypatch, f"out={tmp_path}") == 0
    fabricate(monkeypatch, 0.5)
    check = f"check={tmp_path / 'performance.json'}"
    assert run_command(monkeypatch, f"out={tmp_path}/new", check) == 1
    assert "slower than before: vector (0.500, was 1.00)" in capsys.readouterr().err
    assert run_command(monkeypatch, f"out={tmp_path}/new", f"check={tmp_path}/none") == 2
    (tmp_path / "performance.json").write_text('{"rows": [{"row": "vector"}]}')
    assert run_command(monkeypatch, f"out={tmp_path}/new", check) == 2
    assert "is damaged" in capsys.readouterr().err
    text = (tmp_path / "new" / "performance.json").read_text()
    (tmp_path / "performance.json").write_text(text.replace('"ratio": 0.5', '"ratio": "half"'))
    assert run_command(monkeypatch, f"out={tmp_path}/new", check) == 2
    assert "figures of vector are none" in capsys.readouterr().err
    assert run_command(monkeypatch, f"out={tmp_path}", "add=true") == 2
    assert "is damaged" in capsys.readouterr().err


def test_the_page_is_drawn_again_from_its_figures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fabricate(monkeypatch, 1.0)
    assert run_command(monkeypatch, f"out={tmp_path}") == 0
    files = [tmp_path / "performance.md", tmp_path / "performance.json"]
    before = [file.read_text() for file in files]
    files[0].unlink()
    fabricate(monkeypatch, 9.0)
    assert run_command(monkeypatch, f"out={tmp_path}", "draw=true") == 0
    assert [file.read_text() for file in files] == before
    assert run_command(monkeypatch, f"out={tmp_path}/empty", "draw=true") == 2


def test_retrieval_is_measured_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench, "FULL", TINY)
    assert run_command(monkeypatch, "rows=retrieval", "device=cpu", f"out={tmp_path}") == 0
    report = json.loads((tmp_path / "performance.json").read_text())
    found = {row["row"]: row for row in report["rows"]}
    assert set(found) == {"retrieval_step", "retrieval_training", "retrieval_memory"}
    assert found["retrieval_training"]["floor"] == 0.5
    assert "I=2,000" in found["retrieval_training"]["what"]
    memory = found["retrieval_memory"]
    assert memory["verdict"] == "ok"
    assert 5e7 < memory["ours"] < 8e9  # more than Python with torch takes, in bytes


def test_rows_are_added_to_those_that_are_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench, "QUICK", TINY)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(page, "_cpu", lambda: "an abacus")
        assert run_command(monkeypatch, "quick=true", "rows=memory", f"out={tmp_path}") == 0
    fabricate(monkeypatch, 1.0)
    assert run_command(monkeypatch, f"out={tmp_path}", "add=true") == 0
    report = json.loads((tmp_path / "performance.json").read_text())
    assert [row["row"] for row in report["rows"]] == ["memory", "vector"]
    # what was kept says which code it measured, and where
    commits = [row["commit"] for row in report["rows"]]
    assert commits == [versions()["git"], None]
    assert (
        f"code of memory: {commits[0]}, on an abacus" in (tmp_path / "performance.md").read_text()
    )
    assert run_command(monkeypatch, f"out={tmp_path}") == 0
    report = json.loads((tmp_path / "performance.json").read_text())
    assert [row["row"] for row in report["rows"]] == ["vector"]


def test_the_race_counts_learning_and_goes_on_from_what_is_kept(tmp_path: Path) -> None:
    measured = Bench(TINY, CPU, out=tmp_path)
    (row,) = rows.time_to_score(measured)
    assert (row.unit, row.rounds, row.floor) == ("s", 1, 15.0)
    kept = tmp_path / score_time.KEPT
    outcomes = json.loads(kept.read_text())
    assert len(outcomes) == 2
    for outcome in outcomes.values():
        assert outcome["steps"] >= TINY.score_steps or outcome["reached"]
        outcome["seconds"] = 8.0
    kept.write_text(json.dumps(outcomes))
    (row,) = rows.time_to_score(measured)
    assert (row.ours, row.reference, row.ratio) == (8.0, 8.0, 1.0)


def test_judging_does_not_count_and_the_goal_ends_the_race() -> None:
    now = [0.0]
    scores = iter([0.5, 0.95])

    def judge(_: Any) -> tuple[dict[str, float], None]:
        now[0] += 1000.0
        return {"normalised_score": next(scores)}, None

    agent: Any = None
    race = score_time.Race(judge, agent, 10, 100, "label", lambda: now[0])  # type: ignore[arg-type]
    going = []
    for timesteps in range(5, 30, 5):
        now[0] += 1.0
        going.append(race(timesteps))
        if not going[-1]:
            break
    assert going == [True, True, True, False]
    assert race.outcome() == {"seconds": 4.0, "steps": 20, "reached": True}


def test_a_peer_takes_its_turns_in_a_python_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "peer.py"
    source = Path(peer.__file__).read_text().replace('"recsim": evolution', '"quick": quick')
    quick = "def quick(steps):\n    return lambda: time.sleep(0.01)\n\n\ndef main() -> None:"
    script.write_text(source.replace("def main() -> None:", quick))
    monkeypatch.setattr(sides, "PEER", script)
    side = sides.Peer(Path(sys.executable), "quick", 7, "wall")
    turns = [side(), side()]
    side.close()
    assert [turn.steps for turn in turns] == [7, 7]
    assert all(turn.seconds >= 0.01 for turn in turns)
    assert side.process.returncode == 0
    assert Bench(TINY, CPU)._speed(lambda: Timed(50, 2.0)) == 25.0
    with pytest.raises(UsageError, match=r"does not run sardine: .*install sardine-rec"):
        sides.Peer(Path(sys.executable), "sardine", 7, "wall")
    with pytest.raises(UsageError, match="cannot be run"):
        sides.Peer(tmp_path / "none", "quick", 7, "wall")
