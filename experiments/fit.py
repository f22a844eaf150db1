"""Fit the scorer by supervision, and judge its probabilities on shoppers that it never saw.

    python -m experiments.fit agent=scorer env.scenario=static steps=200000
    python -m experiments.fit agent=scorer log=logs/synthetic-full/random/seed=0
    python -m experiments.fit agent.shopper=encoder agent.encoder=gru env.observation=behaviour
    python -m experiments.fit scenarios=static,full worlds=0,1,2 seeds=0,1 out=docs/scorer

Arguments:
    log         directory of an event log (see experiments.collect); without one, random items
                are shown to shoppers of env first
    steps       rows to learn from and to validate on, without a log (600000)
    test_steps  rows of newcomers to judge by, without a log (200000)
    validation  share of the sessions that is validated on (0.1; of a log those before the test)
    test        share of the sessions of a log, its latest, to judge by (0.2)
    epochs      passes over the rows, at most (100)
    patience    epochs without a lower validation log loss, after which it stops (3)
    online      true: learn as in experiments.run, from its own recommendations, for as many
                steps, and be judged alike (false)
    k           length of the lists that are judged as a ranker's (10)
    scenarios, worlds, seeds   several fits: names and numbers separated by commas
    out         where the table and the picture of them all go, .md and .png
                (<runs_dir>/scorer)
    agent.*, env, env.*, eval.*, seed, device, threads, runs_dir, if_exists, progress
                as in experiments.run

From a log the scorer learns with env.observation=behaviour, for no log holds a latent state.
Every fit is a run directory as experiments.run makes them, <agent>+fit=<log | random | online>,
with fit.json (all measures) and fit.png (ROC curve, reliability diagram, losses) beside the
rest. "truth" in the tables is what the simulator knows: the true probability of every row.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from agents.base import resolve_device
from agents.scorer import Scorer
from agents.supervised import Fitted
from experiments import results, run
from experiments.build import configuration, group_defaults, make_agent, make_env
from experiments.cli import arguments, entry, key_of
from experiments.fitting import figures
from experiments.fitting.data import Data, collect, from_log, log_shop, rounded
from experiments.fitting.figures import Done
from experiments.fitting.judge import Report, report
from recenv.errors import UsageError, unknown
from recenv.scenarios import SCENARIOS
from recenv.seeding import Role, derive_seed, generator
from recenv.shop import as_number

DEFAULTS: dict[str, Any] = {
    "log": None, "steps": 600_000, "test_steps": 200_000, "validation": 0.1, "test": 0.2,
    "epochs": 100, "patience": 3, "online": False, "k": 10, "scenarios": None, "worlds": None,
    "seeds": None, "out": None, "if_exists": "error",
}  # fmt: skip
FIGURES = "fit.json"


def fit(config: dict[str, Any], asked: dict[str, Any]) -> tuple[results.RunDirectory, Report]:
    """Do one fit, or read the one that is there.

    Args:
        config: as ``experiments.run.run`` takes it.
        asked: the arguments of this command, checked.
    """
    run.check(config)
    torch.set_num_threads(config["threads"])
    if asked["log"] is not None:
        config = config | {"env": log_shop(Path(asked["log"]), config["env"])}
    config = config | {"eval": config["eval"] | {"points": 1}} if not asked["online"] else config
    agent = make_agent(config["agent"], config["env"], config["seed"], config["device"])
    if not isinstance(agent, Scorer):
        raise UsageError(f"only agent=scorer is fitted here, got {agent.name}")
    as_number("k", asked["k"], 1, agent.num_items)
    data = None if asked["log"] is None else _of_log(agent, asked)
    learn = None if data is None else data.learn
    steps = asked["steps"] if asked["online"] else rounded(asked["steps"])
    config = config | {
        "fingerprint": results.fingerprint(agent.env.shop),
        "total_timesteps": steps if learn is None else len(learn),
    }
    directory = _directory(config, asked)
    if not directory.claim(config, asked["if_exists"]):
        print(f"{directory.path} is there already: left as it is", file=sys.stderr)
        return directory, read(directory)
    judge = run.make_judge(config)
    judge.prepare(agent)
    bar = {"progress": config["progress"] and asked["online"]}  # epochs are told in lines
    recorder = run.Recorder(agent, judge, directory, config | bar)
    data = data or _of_simulator(agent, config, asked)
    kept = directory.kept(config, resolve_device(config["device"]))
    if kept is not None:
        recorder.restore(kept)
    fitted = None
    with recorder.training():
        if asked["online"]:
            agent.learn(config["total_timesteps"], recorder)
        else:
            fitted = _fit(agent, data, asked, config["progress"])
            recorder(config["total_timesteps"])
    apart = 0 if fitted is None else fitted.validation_rows
    rows = {"learn": config["total_timesteps"] - apart, "validation": apart}
    found = report(agent, data.test, asked["k"], rows, fitted)
    results.write_json(directory.path / FIGURES, asdict(found))
    recorder.finish()
    return directory, found


def _fit(agent: Scorer, data: Data, asked: dict[str, Any], progress: bool) -> Fitted:
    def tell(epoch: int, train: float, validation: float) -> bool:
        if progress:
            words = f"epoch {epoch}: log loss {train:.4f}, validation {validation:.4f}"
            print(words, file=sys.stderr, flush=True)
        return True

    assert data.learn is not None
    apart = asked["validation"] if data.validation_n is None else data.validation_n
    chosen = {name: asked[name] for name in ("epochs", "patience")}
    return agent.fit(data.learn.rows, validation=apart, **chosen, progress=tell)


def _of_log(agent: Scorer, asked: dict[str, Any]) -> Data:
    return from_log(Path(asked["log"]), agent.env, asked["validation"], asked["test"])


def _of_simulator(agent: Scorer, config: dict[str, Any], asked: dict[str, Any]) -> Data:
    """Random recommendations to learn from (none, where it learns online), and newcomers."""
    seed, judged = config["seed"], config["eval"]["seed"]
    learn = None
    if not asked["online"]:
        rng = generator(Role.TRAINING, seed)
        learn = collect(agent.env, asked["steps"], derive_seed(Role.TRAINING, seed), rng)
    rng = generator(Role.EVALUATION, judged)
    test_seed = derive_seed(Role.EVALUATION, judged)
    return Data(learn, collect(agent.env, asked["test_steps"], test_seed, rng, asked["k"]))


def _directory(config: dict[str, Any], asked: dict[str, Any]) -> results.RunDirectory:
    """Where the run belongs: beside those that learned from the environment, under its own name."""
    path = run.run_directory(config).path
    source = "online" if asked["online"] else "random"
    if asked["log"] is not None:
        # a log's own path says best what it is of
        source = Path(asked["log"]).resolve().as_posix().rpartition("/logs/")[2]
    label = path.parent.name + results.suffix({"fit": source}, {})
    return results.RunDirectory(path.parent.parent / label / path.name)


def read(directory: results.RunDirectory) -> Report:
    """The report of an earlier fit.

    Raises:
        UsageError: it is missing or damaged.
    """
    path = directory.path / FIGURES
    try:
        return Report(**results.read_json(path))
    except TypeError:
        raise UsageError(f"{path} is of another version: pass if_exists=overwrite") from None


def main(argv: list[str]) -> None:
    """Fit, print and draw."""
    own = [word for word in argv if key_of(word) in DEFAULTS]
    asked = _asked(own)
    words = [word for word in argv if word not in own]
    done, directories = [], []
    combinations = itertools.product(asked["seeds"], asked["scenarios"], asked["worlds"])
    for seed, scenario, world in combinations:
        more = [f"env.scenario={scenario}"] if scenario is not None else []
        more += [f"env.world_seed={world}"] if world is not None else []
        more += [f"seed={seed}"] if seed is not None else []
        config = configuration(["agent=scorer", *words, *more])
        directory, found = fit(config, asked)
        one = _done(directory, found)
        figures.draw([one], directory.path / "fit.png")
        figures.print_report(f"{directory.label} on {directory.shop}, seed {one.seed}", found)
        print(f"run: {directory.path}")
        done.append(one)
        directories.append(directory)
    if len(done) > 1:
        out = str(asked["out"] or directories[0].path.parent.parent.parent / "scorer")
        command = " ".join(["python -m experiments.fit", *argv])
        text = figures.markdown(done, command, f"{Path(out).name}.png")
        results.write_text(Path(f"{out}.md"), text)
        print(f"table: {out}.md\npicture: {figures.draw(done, Path(f'{out}.png'))}")


def _done(directory: results.RunDirectory, found: Report) -> Done:
    config, summary = directory.config(), directory.summary()
    env = config["env"]
    shop = make_env(env, 1).shop
    alike = env | {"world_seed": group_defaults("env", "recsys")["world_seed"]}
    return Done(
        shop=results.shop_name(shop, alike, group_defaults("env", "recsys")),
        world=shop.settings.world_seed,
        seed=config["seed"],
        score=summary["normalised_score"],
        reference=summary["reference_high"]["name"].replace("_", " "),
        report=found,
    )


def _asked(words: list[str]) -> dict[str, Any]:
    """The arguments, checked."""
    asked = arguments(words, DEFAULTS)
    for name, low, high in (("steps", 2, 10**10), ("test_steps", 2, 10**9)):
        as_number(name, asked[name], low, high)
    for name in ("epochs", "patience"):
        as_number(name, asked[name], 1, 10**6)
    for name in ("validation", "test"):
        asked[name] = as_number(name, asked[name], 1e-6, 0.9)
    if asked["validation"] + asked["test"] > 0.95:
        raise UsageError("validation and test must leave rows to learn from: make them smaller")
    if not isinstance(asked["online"], bool):
        raise UsageError(f"online must be true or false, got {asked['online']!r}")
    if asked["online"] and asked["log"] is not None:
        raise UsageError("online=true learns from the environment: leave out log")
    if asked["log"] is not None and asked["scenarios"] is not None:
        raise UsageError("a log is of one scenario: leave out scenarios")
    if asked["log"] is not None:
        asked["log"] = str(asked["log"])
    asked["scenarios"] = _listed(asked["scenarios"])
    for scenario in asked["scenarios"]:
        if scenario is not None and scenario not in SCENARIOS:
            raise unknown("scenario", scenario, SCENARIOS)
    for name in ("worlds", "seeds"):
        asked[name] = _numbers(name, asked[name])
    return asked


def _listed(asked: Any) -> list[str | None]:
    return [None] if asked is None else [word.strip() for word in str(asked).split(",")]


def _numbers(name: str, asked: Any) -> list[int | None]:
    try:
        return [None if word is None else int(word) for word in _listed(asked)]
    except ValueError:
        raise UsageError(f"{name} must be numbers separated by commas, got {asked!r}") from None


if __name__ == "__main__":
    entry(main, __doc__)
