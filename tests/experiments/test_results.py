"""Run directories: names that never collide, files that are whole, claims that are honest."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

import recenv
from experiments import results
from experiments.results import COLUMNS, RunDirectory, suffix
from recenv.errors import UsageError

CONFIG = {"agent": {}, "env": {}, "seed": 0, "total_timesteps": 10, "eval": {"seed": 0}}


def claimed(path: Path) -> RunDirectory:
    run = RunDirectory(path / "shop" / "agent" / "seed=0")
    assert run.claim(CONFIG, "error")
    return run


def finished(path: Path) -> RunDirectory:
    run = claimed(path)
    run.finish(dict.fromkeys(results.REQUIRED, 0.5), np.arange(3.0), np.arange(4), np.zeros(4))
    return run


def test_suffix_names_what_is_not_default_in_order() -> None:
    values = {"b": 2, "a": 1, "same": 0, "list": [64, 64], "text": "x/y z"}
    assert suffix(values, {"same": 0}) == "+a=1+b=2+list=64x64+text=x_y_z"
    assert suffix({"a": None}, {"a": None}) == ""


def test_long_suffixes_stay_below_the_limit_of_file_systems_and_apart() -> None:
    one = suffix({f"key{i}": i for i in range(100)}, {})
    other = suffix({f"key{i}": i + (i == 99) for i in range(100)}, {})
    assert len(one) < 200
    assert one != other


def test_shop_names_tell_the_scenario_and_what_was_changed() -> None:
    env = {"world": "synthetic", "scenario": None, "num_items": 20, "horizon": 50}
    shop = recenv.Shop(env)
    assert results.shop_name(shop, env, {"horizon": 50}) == "synthetic-full+num_items=20"


def test_fingerprint_tells_shops_apart() -> None:
    def print_of(**keywords: object) -> str:
        return results.fingerprint(recenv.Shop(keywords))

    assert print_of() == print_of()
    assert len({print_of(), print_of(world_seed=1), print_of(trust_weight=0.1)}) == 3


def test_an_old_run_is_never_written_over_without_being_asked(tmp_path: Path) -> None:
    run = finished(tmp_path)
    before = run.summary()
    with pytest.raises(UsageError, match="if_exists"):
        run.claim(CONFIG, "error")
    assert not run.claim(CONFIG, "skip")
    assert not run.claim(CONFIG, "resume")
    assert run.summary() == before
    assert run.claim(CONFIG, "overwrite")
    assert not run.finished


def test_resume_begins_an_unfinished_run_again(tmp_path: Path) -> None:
    run = claimed(tmp_path)
    run.append({"timesteps": 1.0})
    assert not run.claim(CONFIG, "skip")
    assert run.claim(CONFIG, "resume")
    assert len(run.evaluations()["timesteps"]) == 0


def test_a_run_is_not_passed_off_as_the_answer_to_another_question(tmp_path: Path) -> None:
    run = finished(tmp_path)
    with pytest.raises(UsageError, match="total_timesteps=10"):
        run.claim(CONFIG | {"total_timesteps": 20}, "resume")


def test_a_rebuilt_world_is_another_question(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "seed=0")
    run.claim(CONFIG | {"fingerprint": "a"}, "error")
    with pytest.raises(UsageError, match="fingerprint"):
        run.claim(CONFIG | {"fingerprint": "b"}, "skip")


def test_a_run_of_an_older_version_is_told_as_such(tmp_path: Path) -> None:
    run = finished(tmp_path)  # its config has no fingerprint
    for if_exists in ("skip", "resume"):
        with pytest.raises(UsageError, match=r"older version .* fingerprint: pass if_exists=overw"):
            run.claim(CONFIG | {"fingerprint": "a"}, if_exists)
    assert run.finished
    assert run.claim(CONFIG | {"fingerprint": "a"}, "overwrite")


def test_a_world_file_is_told_by_its_own_name(tmp_path: Path) -> None:
    from recenv import world

    world.write(recenv.Shop({"num_items": 5}).world, tmp_path / "mine.npz")
    env = {"world": str(tmp_path / "mine.npz")}
    assert results.shop_name(recenv.Shop(env), env, {}) == "mine.npz-full"


def test_a_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "seed=0")
    run.path.mkdir()
    (run.path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="no run"):
        run.claim(CONFIG, "overwrite")
    assert (run.path / "thesis.tex").exists()


def test_unknown_if_exists_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'overwrite'"):
        RunDirectory(tmp_path).claim(CONFIG, "overwite")


def test_evaluations_are_on_disk_as_they_come(tmp_path: Path) -> None:
    run = claimed(tmp_path)
    run.append({"timesteps": 5.0, "return_mean": -1.5})
    run.append({"timesteps": 9.0, "return_mean": 2.0})
    columns = run.evaluations()
    assert columns["timesteps"].tolist() == [5.0, 9.0]
    assert columns["return_mean"].tolist() == [-1.5, 2.0]
    assert np.isnan(columns["coverage"]).all()


def test_half_a_line_of_a_killed_run_is_dropped(tmp_path: Path) -> None:
    run = claimed(tmp_path)
    run.append({"timesteps": 5.0})
    with (run.path / results.EVALUATIONS).open("a") as file:
        file.write("9.0,1")
    assert run.evaluations()["timesteps"].tolist() == [5.0]


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    run = finished(tmp_path)
    damage = {
        results.EVALUATIONS: "other,columns\n1,2\n",
        results.SUMMARY: "{not json",
        results.CONFIG: "- just\n- a list\n",
        results.RETURNS: "text",
    }
    for name, text in damage.items():
        (run.path / name).write_text(text)
    for read in (run.evaluations, run.summary, run.config, run.returns):
        with pytest.raises(UsageError) as caught:
            read()
        assert "\n" not in str(caught.value)
    row = ",".join(["x"] * len(COLUMNS))
    (run.path / results.EVALUATIONS).write_text(",".join(COLUMNS) + f"\n{row}\n")
    with pytest.raises(UsageError, match="damaged"):
        run.evaluations()


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    results.write_json(target, {"a": 1})
    with pytest.raises(TypeError):
        results.write_json(target, {"a": object()})
    assert json.loads(target.read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        RunDirectory(tmp_path / "file" / "seed=0").claim(CONFIG, "error")
    with pytest.raises(UsageError, match=r"cannot read .*file: Not a directory"):
        RunDirectory(tmp_path / "file").claim(CONFIG, "error")


def test_runs_are_found_wherever_they_lie(tmp_path: Path) -> None:
    finished(tmp_path / "deep" / "down")
    claimed(tmp_path)
    assert len(list(results.find_runs(tmp_path))) == 2
    with pytest.raises(UsageError, match="there is no directory"):
        list(results.find_runs(tmp_path / "nowhere"))


def test_what_was_shown_is_kept_with_its_categories(tmp_path: Path) -> None:
    run = claimed(tmp_path)
    with pytest.raises(UsageError, match="not finished"):
        run.shown()
    run.finish({}, np.zeros(2), np.array([5, 0, 7]), np.array([1, 1, 0]))
    shown_I, category_I = run.shown()
    assert shown_I.tolist() == [5, 0, 7]
    assert category_I.tolist() == [1, 1, 0]
    np.save(run.path / results.SHOWN, np.zeros(3))
    with pytest.raises(UsageError, match="damaged"):
        run.shown()


def test_the_commit_is_that_of_the_code_not_of_kept_figures(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    code, kept = tmp_path / "recenv" / "a.py", tmp_path / "experiments" / "leaderboard" / "runs.csv"
    for path in (code, kept):
        path.parent.mkdir(parents=True)
        path.write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "code")
    first = results._git(tmp_path)
    assert first is not None
    assert len(first) == 40
    kept.write_text("2")
    assert results._git(tmp_path) == first
    git("commit", "-am", "figures")
    assert results._git(tmp_path) == first
    code.write_text("2")
    assert results._git(tmp_path) == first + "+"
    assert results._git(tmp_path / "recenv") == first + "+"
