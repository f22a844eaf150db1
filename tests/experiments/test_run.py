"""The front door, as a user walks through it."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from agents.references import Constant
from experiments import plot, results
from experiments.build import CONF, agent_class, agent_settings, make_agent, make_env, quoted
from experiments.run import run, run_directory
from recenv.errors import UsageError

ROOT = CONF.parent
SMALL = ("experiment=quick", "progress=false", "env.num_items=20")
QUICK = ("scenarios=static", "worlds=100")  # of a search
AGENTS = sorted(path.stem for path in (CONF / "agent").glob("*.yaml"))


def config(*words: str, runs_dir: Path | str = "runs") -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = OmegaConf.to_container(compose("config", overrides=list(words)), resolve=True)
    composed["runs_dir"] = str(runs_dir)
    composed.pop("if_exists")
    composed.pop("resume")
    return composed


def command(module: str, *words: str, **settings: object) -> subprocess.CompletedProcess[str]:
    """Run a front door in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{module}", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        **settings,
    )


def one_line(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Assert that a command answered a mistake with one line and exit 2."""
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize("group", ["agent", "encoder", "env", "eval", "experiment"])
def test_every_yaml_composes(group: str) -> None:
    for path in (CONF / group).glob("*.yaml"):
        composed = config(f"{group}={path.stem}")
        assert {"agent", "env", "seed", "total_timesteps", "device", "eval"} <= set(composed)


@pytest.mark.parametrize("name", AGENTS)
def test_a_yaml_says_what_the_class_would_do_without_it(name: str) -> None:
    described = config(f"agent={name}")["agent"]
    cls = agent_class(described)
    assert cls.name == described["name"] == name
    gate = {"id": "RecsysGate-v0"} if issubclass(cls, Constant) else {}
    env = make_env({"num_items": 5} | gate, 2)
    plain = cls()
    plain.bind(env)
    without = {k: v for k, v in plain.settings().items() if k not in ("seed", "device")}
    assert agent_settings(described) == without


def test_env_yaml_names_every_keyword() -> None:
    from recenv.shop import DYNAMICS_NAMES, SETTING_NAMES

    assert set(config()["env"]) == set(SETTING_NAMES) | set(DYNAMICS_NAMES)


def test_a_run_leaves_all_its_files_and_they_agree(tmp_path: Path) -> None:
    directory = run(config("agent=scorer", *SMALL, runs_dir=tmp_path))
    assert directory.path == tmp_path / "synthetic-full+num_items=20" / "scorer" / "seed=0"
    summary = directory.summary()
    keys = "normalised_score return_mean return_ci95 conversion coverage reference_low"
    keys += " reference_high world scenario eval_seed total_timesteps train_seconds"
    for key in [*keys.split(), "steps_per_second"]:
        assert key in summary, key
    assert summary["reference_low"]["name"] == "random"
    assert summary["reference_high"]["name"] == "index_policy"
    rows = list(csv.DictReader((directory.path / "evaluations.csv").open()))
    assert float(rows[-1]["normalised_score"]) == summary["normalised_score"]
    assert float(rows[-1]["timesteps"]) == summary["total_timesteps"] >= 20_000
    steps = [float(row["timesteps"]) for row in rows]
    assert steps == sorted(set(steps))
    assert len(steps) == 4
    assert directory.returns().mean() == pytest.approx(summary["return_mean"], abs=1e-3)
    shown_I, category_I = directory.shown()
    assert shown_I.sum() == 50_000  # a thousand shoppers, fifty steps
    assert len(category_I) == 20
    assert directory.picture.stat().st_size > 10_000
    assert list((directory.path / "tensorboard").iterdir())
    assert json.loads((directory.path / "versions.json").read_text())["recenv"]


def test_tensorboard_speaks_in_the_namespaces_of_stable_baselines3(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for agent in ("ppo", "linucb"):
        directory = run(config(f"agent={agent}", *SMALL, runs_dir=tmp_path))
        events = EventAccumulator(str(directory.path / "tensorboard")).Reload()
        tags = set(events.Tags()["scalars"])
        assert {"eval/mean_reward", "eval/normalised_score", "rollout/ep_rew_mean"} <= tags
        assert "time/total_timesteps" in tags


def test_what_was_earned_while_learning_is_told(tmp_path: Path) -> None:
    for agent in ("ppo", "linucb", "rotation"):
        directory = run(config(f"agent={agent}", *SMALL, runs_dir=tmp_path))
        served = np.nanmean(directory.evaluations()["training_return_mean"])
        random, best = (directory.summary()[f"reference_{r}"]["return"] for r in ("low", "high"))
        assert random - 5 < served < best, agent
    flat = run(config("agent=random", *SMALL, runs_dir=tmp_path))
    assert np.isnan(flat.evaluations()["training_return_mean"]).all()


def test_two_runs_of_one_configuration_are_the_same(tmp_path: Path) -> None:
    for agent in ("ppo", "linucb"):
        first, second = (
            run(config(f"agent={agent}", *SMALL, runs_dir=tmp_path / part)).evaluations()
            for part in ("a", "b")
        )
        assert first["return_mean"].tolist() == second["return_mean"].tolist()


def test_a_warm_start_counts_the_scorers_steps(tmp_path: Path) -> None:
    shop = (*SMALL, "env.scenario=static")
    steps = ("agent.num_envs=64", "agent.gradient_steps=20", "total_timesteps=640")
    scorer = run(config(*shop, "agent=scorer", *steps, runs_dir=tmp_path))
    warm = [*shop, "agent=ppo", "agent.num_envs=64", f'agent.warm_start="{scorer.path}"']
    found = run(config(*warm, "total_timesteps=3200", runs_dir=tmp_path))
    rows = found.evaluations()
    assert rows["timesteps"][0] == 640
    assert rows["timesteps"][-1] == found.summary()["total_timesteps"] == 3200
    assert (np.diff(rows["timesteps"]) > 0).all()
    cold = run(config(*warm[:-1], "total_timesteps=3200", runs_dir=tmp_path))
    # it knows already what the scorer knows
    assert rows["return_mean"][0] > cold.evaluations()["return_mean"][0] + 5
    for words, part in (
        (["total_timesteps=640"], "includes the 640 of the scorer"),
        (["total_timesteps=3200", "env.world_seed=3"], "sells other items"),
    ):
        with pytest.raises(UsageError, match=part):
            run(config(*warm, *words, runs_dir=tmp_path))


def test_a_path_with_an_equals_sign_needs_no_quotes_of_the_users() -> None:
    assert quoted("agent.warm_start=runs/ppo/seed=0") == 'agent.warm_start="runs/ppo/seed=0"'
    for word in ("seed=0,1", "agent.net_arch=[64,64]", "-m", 'a="b=c"', "seed=choice(a=1)"):
        assert quoted(word) == word


def test_different_settings_have_different_directories() -> None:
    paths = [
        run_directory(config(*words)).path
        for words in (
            [],
            ["seed=1"],
            ["agent=dqn"],
            ["agent.gamma=0.9"],
            ["env.scenario=trust"],
            ["env.trust_weight=0.7"],
            ["env.num_shoppers=50"],
            ["env.world_seed=3"],
        )
    ]
    assert len(set(paths)) == len(paths)
    # what is said anew but not changed is no other setting
    assert run_directory(config("env.scenario=full", "agent.gamma=0.97")).path == paths[0]


def test_a_second_run_is_refused_in_one_line(tmp_path: Path) -> None:
    words = ("agent=random", *SMALL, f"runs_dir={tmp_path}")
    assert command("run", *words).returncode == 0
    one_line(command("run", *words), "if_exists")
    again = command("run", *words, "if_exists=resume")
    assert again.returncode == 0
    assert "left as it is" in again.stderr


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["env.scenario=trst"], "did you mean 'trust'"),
        (["env.world=nowhere"], "nowhere"),
        (["env.num_items=0"], "num_items"),
        (["env.num_items=many"], "num_items"),
        (["total_timesteps=0"], "total_timesteps"),
        (["eval.shoppers=1"], "eval.shoppers"),
        (["eval.reference=index_polcy"], "did you mean 'index_policy'"),
        (["device=tpu"], "device"),
        (["seed=-1"], "seed"),
        (["if_exists=perhaps"], "if_exists"),
        (["agent.num_envs=-1"], "num_envs"),
        (["agent.net_arch=[0]"], "net_arch"),
        (["threads=999999"], "threads"),
        (["agent.name=../x"], "agent.name"),
        (["runs_dir=null"], "runs_dir"),
        (["+env.colour=red"], "colour"),
        (["+agent.colour=red"], "colour"),
        (["agent._target_=agents.ppo.Nobody"], "Nobody"),
        (["seed="], "seed must be a whole number"),
        (["eval.points=0"], "eval.points"),
        (["+sead=1"], "did you mean 'seed'"),
        (["+eval.shopers=9"], "did you mean 'shoppers'"),
        (["~seed"], "the key seed is missing"),
        (["~agent"], "agent"),
        (["--seed=1"], "--seed=1: write it without dashes"),
        # Hydra's own complaints
        (["agent="], "Could not find 'agent/'"),
        (["agent=ppoo"], "Available options in 'agent': "),
        (["agent=ppo,dqn"], "add --multirun"),
        (["sead=1"], "Could not override 'sead': there is no such key"),
        (["agent=dqn", "agent.backend=device"], "no such key"),
        (["seed"], "missing EQUAL"),
        (["-m", "agent=random,ppoo"], "Could not find 'agent/ppoo'"),
    ],
)
def test_a_users_mistake_is_one_line(words: list[str], part: str, tmp_path: Path) -> None:
    one_line(command("run", f"runs_dir={tmp_path}", *words), part)
    assert not list(tmp_path.glob("**/summary.json"))


def test_a_mistake_never_costs_an_old_run(tmp_path: Path) -> None:
    words = ("agent=random", *SMALL, f"runs_dir={tmp_path}")
    assert command("run", *words).returncode == 0
    one_line(command("run", *words, "eval.shoppers=0", "if_exists=overwrite"), "eval.shoppers")
    (directory,) = results.find_runs(tmp_path)
    assert directory.finished


def test_a_sweep_into_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    one_line(command("run", "-m", "agent=random", *SMALL, f"runs_dir={tmp_path / 'file'}"), "file")


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "implicit.py").write_text("raise ModuleNotFoundError('implicit', name='implicit')")
    env = os.environ | {"PYTHONPATH": str(tmp_path), "RECENV_CACHE": str(tmp_path / "cache")}
    done = command("run", "env=complete_journey", f"runs_dir={tmp_path}", env=env)
    assert done.returncode == 2
    assert 'pip install "recenv[worlds]"' in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("module", ["run", "plot", "evaluate", "headroom", "bench"])
def test_missing_agents_extra_is_one_line(module: str, tmp_path: Path) -> None:
    (tmp_path / "hydra.py").write_text("raise ModuleNotFoundError('hydra', name='hydra')")
    done = command(module, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    one_line(done, 'pip install "recenv[agents]"')


def test_a_sweep_goes_on_after_a_failed_job_and_ends_with_one_figure(tmp_path: Path) -> None:
    words = ["agent=random,popularity", "-m", "env.scenario=static,nonsense", *SMALL]
    done = command("run", *words, f"runs_dir={tmp_path}")
    assert done.returncode == 2
    *complaints, count, first, second = done.stderr.splitlines()
    assert len(complaints) == done.stderr.count("unknown scenario 'nonsense'") == 2
    assert all(line.startswith("error: agent=") for line in complaints)
    assert count == "2 of 4 jobs failed:"
    assert "agent=random" in first
    assert "agent=popularity" in second
    runs = list(results.find_runs(tmp_path))
    assert sorted(r.label for r in runs if r.finished) == ["popularity", "random"]
    assert (tmp_path / "learning_curves.png").stat().st_size > 10_000
    # finished runs are skipped, unfinished ones are done again
    unfinished = next(run for run in runs if run.label == "popularity")
    (unfinished.path / results.SUMMARY).unlink()
    again = command("run", "-m", "agent=random,popularity", "env.scenario=static", *SMALL,
                    f"runs_dir={tmp_path}")  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert unfinished.finished
    assert again.stderr.count("left as it is") == 1


def test_a_bug_in_a_job_shows_its_traceback_and_does_not_end_the_sweep(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "from agents.references import Random\n"
        "class Broken(Random):\n"
        "    def learn(self, *_):\n"
        "        if self.seed == 0: raise KeyError('oops')\n"
    )
    words = ["-m", "agent=random", "agent._target_=broken.Broken", "seed=0,1", *SMALL]
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = command("run", *words, f"runs_dir={tmp_path / 'runs'}", env=env)
    assert done.returncode == 1
    assert done.stderr.count("KeyError: 'oops'") == 1
    assert done.stderr.startswith("error: agent=random agent._target_=broken.Broken seed=0")
    assert "1 of 2 jobs failed:" in done.stderr
    assert "figure: " in done.stdout


INTERRUPT = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"


@pytest.mark.parametrize("module", ["run", "plot", "evaluate", "bench", "story", "tune"])
def test_an_interrupt_while_libraries_are_imported_is_one_line(module: str, tmp_path: Path) -> None:
    # as some do, this one swallows exceptions while it is imported
    swallow = f"try:\n    exec({INTERRUPT!r})\nexcept BaseException: pass\n"
    (tmp_path / "torch.py").write_text(swallow)
    done = command(module, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 130
    assert done.stderr == "interrupted: nothing was begun yet\n"


def test_a_command_that_ignores_interrupts_goes_on_doing_so(tmp_path: Path) -> None:
    missing = "raise ModuleNotFoundError('torch', name='torch')"
    (tmp_path / "torch.py").write_text(INTERRUPT + missing)
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    shell = ["sh", "-c", 'trap "" INT; exec "$0" -m experiments.run', sys.executable]
    done = subprocess.run(shell, capture_output=True, text=True, cwd=ROOT, env=env, timeout=60)
    one_line(done, 'pip install "recenv[agents]"')


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_what_was_evaluated(tmp_path: Path, number: int) -> None:
    words = ["agent=linucb", "env.num_items=20", "eval.shoppers=1000", "eval.first=500"]
    words.append("eval.reference=index_policy")
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.run", *words, f"runs_dir={tmp_path}"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.time() + 120
    while time.time() < deadline:
        found = list(tmp_path.glob("**/evaluations.csv"))
        if found and len(found[0].read_text().splitlines()) > 2:
            break
        time.sleep(0.2)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "if_exists=resume" in said
    assert "Traceback" not in said
    (directory,) = results.find_runs(tmp_path)
    assert not directory.finished
    assert len(directory.evaluations()["timesteps"]) >= 2
    assert plot.draw_all(tmp_path).is_file()


def test_a_saved_agent_is_scored_elsewhere(tmp_path: Path) -> None:
    directory = run(config("agent=ppo", *SMALL, runs_dir=tmp_path))
    same = command("evaluate", f"run={directory.path}")
    assert same.returncode == 0, same.stderr
    (score,) = (directory.path / "scores").glob("*.json")
    assert json.loads(score.read_text())["return_mean"] == directory.summary()["return_mean"]
    other = command("evaluate", f"run={directory.path}", "env.scenario=static", "eval.seed=1")
    assert other.returncode == 0, other.stderr
    assert "on synthetic-static+num_items=20" in other.stdout
    one_line(command("evaluate", f"run={directory.path}", "env.num_items=30"), "items")
    shutil.rmtree(directory.path / "scores")
    (directory.path / "scores").write_text("")
    one_line(command("evaluate", f"run={directory.path}"), "cannot write", "scores")
    one_line(command("evaluate"), "run=")
    one_line(command("evaluate", f"run={tmp_path}"), "no run directory")
    one_line(command("evaluate", f"run={directory.path}", "rn=3"), "did you mean 'run'")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["agent=nobody"], "choose from dqn"),
        (["agent=ppo", "trials=many"], "trials must be a whole number"),
        (["agent=ppo", "steps=0"], "steps must lie in"),
        (["agent=ppo", "seed=-1"], "seed must lie in"),
        (["agent=ppo", "out=conf", *QUICK], "conf is no file"),
        (["agent=ppo", "out=Makefile/x.csv", *QUICK], "cannot write Makefile/x.csv"),
    ],
)
def test_a_mistake_about_a_search_is_one_line(words: list[str], part: str) -> None:
    one_line(command("tune", *words), part)


def test_an_agent_is_built_in_one_way_only() -> None:
    composed = config("agent=ppo", "env.num_items=5")
    agent = make_agent(composed["agent"], composed["env"], seed=3, device="cpu")
    assert agent.seed == 3
    assert agent.env.num_envs == agent.num_envs
    with pytest.raises(UsageError, match="_target_"):
        make_agent({}, composed["env"], 0, "cpu")
