"""Search an agent's hyperparameters; every agent gets the same trials and the same steps.

    python -m experiments.tune agent=ppo
    python -m experiments.tune agent=scorer trials=16 steps=600000

Arguments:
    agent      which (it needs a search space, conf/tune/<agent>.yaml)
    trials     settings tried, the present default first (8); those of ``by_hand`` come on top
    steps      environment steps of every training (400000)
    scenarios  where it is scored, separated by commas (static,full)
    worlds     world seeds, from 100 on, so that published worlds are never tuned on (100,101)
    seed       of the search (0)
    out        the log, a csv with one row per trial (experiments/tuning/<agent>.csv)

A setting's score is the mean normalised score over scenarios and worlds. The log is written
as trials end; those already in it are not run again.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from experiments import results
from experiments.build import CONF, group_defaults, make_agent
from experiments.cli import arguments, entry
from experiments.evaluate import Judge
from recenv.errors import UsageError
from recenv.seeding import Role, generator
from recenv.shop import as_number

COLUMNS = ("trial", "score", "scores", "steps", "settings")
FIRST_TUNING_WORLD = 100
EVALUATION: dict[str, Any] = {  # shoppers that no published figure uses, and what is quick
    "seed": 100,
    "shoppers": 1000,
    "reference": "index_policy",
}


def sample(space: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """One setting from a search space (see conf/tune/)."""
    setting: dict[str, Any] = {}
    for name, choices in space.items():
        if isinstance(choices, list):
            setting[name] = choices[rng.integers(len(choices))]
        else:
            low, high = math.log(choices["low"]), math.log(choices["high"])
            setting[name] = float(f"{math.exp(rng.uniform(low, high)):.3g}")
    return setting


def settings(agent: str, trials: int, seed: int) -> list[dict[str, Any]]:
    """The settings of a search: the present default, random ones, and those tried by hand."""
    space = OmegaConf.to_container(OmegaConf.load(_space(agent)))
    assert isinstance(space, dict)
    by_hand = space.pop("by_hand", [])
    rng = generator(Role.TUNING, seed)
    default = {name: group_defaults("agent", agent)[str(name)] for name in space}
    drawn = [sample({str(k): v for k, v in space.items()}, rng) for _ in range(trials - 1)]
    return [default, *drawn, *by_hand]


def _space(agent: str) -> Path:
    path = CONF / "tune" / f"{agent}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise UsageError(f"there is no search space conf/tune/{agent}.yaml: choose from {known}")
    return path


def score(agent: str, setting: dict[str, Any], judges: dict[str, Judge], steps: int) -> list[float]:
    """Normalised scores of one setting, one per judge."""
    scores = []
    for judge in judges.values():
        config = group_defaults("agent", agent) | setting
        env = {
            "scenario": judge.env.shop.scenario,
            "world_seed": judge.env.shop.settings.world_seed,
        }
        built = make_agent(config, env, seed=0, device="auto")
        built.learn(steps, lambda timesteps: timesteps < steps)
        row, _ = judge(built)
        scores.append(round(float(row["normalised_score"] or 0.0), 4))
    return scores


def search(
    agent: str, trials: int, steps: int, judges: dict[str, Judge], seed: int, out: Path
) -> None:
    """Run the trials that are not in the log yet."""
    done = _done(out)
    with results.writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        log = out.open("a", newline="")
    with log as file:
        writer = csv.writer(file)
        if not done:
            writer.writerow(COLUMNS)
        for trial, setting in enumerate(settings(agent, trials, seed)):
            if trial in done:
                continue
            scores = score(agent, setting, judges, steps)
            mean = round(float(np.mean(scores)), 4)
            told = dict(zip(judges, scores, strict=True))
            writer.writerow([trial, mean, json.dumps(told), steps, json.dumps(setting)])
            file.flush()
            print(f"{agent} {trial + 1}/{trials}: {mean:.3f} {scores} {setting}", file=sys.stderr)


def _done(out: Path) -> set[int]:
    """The trials that a log holds."""
    if not out.exists():
        return set()
    if not out.is_file():
        raise UsageError(f"{out} is no file: pass another out")
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if rows and tuple(rows[0]) != COLUMNS:
        raise UsageError(f"{out} is no log of a search: remove it or pass another out")
    return {int(row["trial"]) for row in rows}


def _judges(scenarios: str, worlds: str) -> dict[str, Judge]:
    try:
        seeds = [int(seed) for seed in worlds.split(",")]
    except ValueError:
        raise UsageError(f"worlds must be numbers separated by commas, got {worlds!r}") from None
    if min(seeds) < FIRST_TUNING_WORLD:
        raise UsageError(f"tuning uses world seeds from {FIRST_TUNING_WORLD} on, got {worlds}")
    return {
        f"{scenario}/{seed}": Judge({"scenario": scenario, "world_seed": seed}, **EVALUATION)
        for scenario, seed in itertools.product(scenarios.split(","), seeds)
    }


def main(argv: list[str]) -> None:
    """Search, and name the best."""
    defaults = {"agent": None, "trials": 8, "steps": 400_000, "seed": 0, "out": None}
    asked = arguments(argv, defaults | {"scenarios": "static,full", "worlds": "100,101"})
    agent = str(asked["agent"])
    _space(agent)
    trials = as_number("trials", asked["trials"], 1, 10_000)
    steps = as_number("steps", asked["steps"], 1, 10**12)
    seed = as_number("seed", asked["seed"], 0, 2**31 - 1)
    torch.set_num_threads(1)
    out = Path(asked["out"] or f"experiments/tuning/{agent}.csv")
    judges = _judges(str(asked["scenarios"]), str(asked["worlds"]))
    search(agent, trials, steps, judges, seed, out)
    with out.open(newline="") as file:
        best = max(csv.DictReader(file), key=lambda row: float(row["score"]))
    print(f"best: {best['score']} with {best['settings']}  ({out})")


if __name__ == "__main__":
    entry(main, __doc__)
