"""The feedback loop of a shop: serve, log, preprocess, learn, judge; and again.

    python -m experiments.loop agent=scorer rounds=10
    python -m experiments.loop agent=ppo encoder=gru steps_per_round=50000
    python -m experiments.loop agent=popularity explore=0 env.scenario=static env.num_items=200

Arguments:
    rounds           how many (10)
    steps_per_round  recommendations in each, rounded up to what the agent learns at once (20000)
    explore          share of random items in what agents serve that learn from logs (0.1)
    organic          shoppers also browse and search by themselves (true)
    truth            also log what only a simulator knows (true)
    epochs, patience of every fit to logs (30, 3)
    name             where it is kept, below <runs_dir>/loops (<shop>/<agent>/seed=<seed>)
    if_exists        resume | overwrite (resume)
    agent, agent.*, env, env.*, encoder, eval.*, seed, device, threads, runs_dir, progress
                     as in experiments.run; env.observation=behaviour where nothing else is said

The shop stays open from the first round to the last: whose session is under way at a round's end
is served on in the next. Who learns what:

- scorer, popularity, user_cf, item_content, mf are fitted anew after each round, to all clean logs
  so far, and serve the next round with a share explore of random items. The first round is random.
- ppo, dqn and the bandits learn by acting: they learn while they serve, from exactly what is
  served and logged, and explore in their own way (explore is not theirs).
- ppo and dqn with encoder=mlp|cnn|gru|transformer read behaviour by an interest model, which is
  trained on on all clean logs after each round. The first round is random.
- random and the oracles serve as they are.

After each round the agent is judged as in experiments.run. A loop that was interrupted or killed
goes on by the same command, and ends with the same figures.

Writes rounds.csv (a row per round: the judged policy, and how few items the served
recommendations came down to), loop.png, agent/, and per round the logs, raw and clean, and what
was learned from them (see experiments/feedback/rounds.py).
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from experiments import results, run
from experiments.build import configuration, make_env
from experiments.cli import Interrupted, arguments, entry, key_of
from recenv.errors import UsageError, unknown
from recenv.shop import as_number

DEFAULTS: dict[str, Any] = {
    "rounds": 10, "steps_per_round": 20_000, "explore": 0.1, "organic": True, "truth": True,
    "epochs": 30, "patience": 3, "name": None, "if_exists": "resume",
}  # fmt: skip
IF_EXISTS = ("resume", "overwrite")
LOOP = "loop.json"
# what a loop is an answer to
QUESTION = ("plan", "agent", "env", "seed", "eval", "fingerprint")
MOST_ROUNDS = 10_000


def loop(config: dict[str, Any], asked: dict[str, Any]) -> Path:
    """Do a loop, or what is left of it; where it is kept.

    Args:
        config: as ``experiments.run.run`` takes it.
        asked: the arguments of this command, checked.

    Raises:
        UsageError: the configuration makes no sense, or another loop is kept there.
    """
    from experiments.feedback import measures  # they need an extra
    from experiments.feedback.rounds import PICTURE, Loop, Plan
    from recenv.organic import Habits

    run.check(config)
    torch.set_num_threads(config["threads"])
    names = ("rounds", "steps_per_round", "explore", "truth", "epochs", "patience")
    habits = Habits() if asked["organic"] else None
    plan = Plan(habits=habits, **{name: asked[name] for name in names})
    shop = make_env(config["env"], 1).shop
    if shop.gate:
        raise UsageError("a loop chooses among items: leave out env=gate")
    beside = run.run_directory(config).path
    loops = Path(config["runs_dir"]) / "loops"
    path = loops / str(asked["name"] or beside.relative_to(config["runs_dir"]))
    about = {name: config[name] for name in ("agent", "env", "seed", "eval")}
    about |= {"plan": asdict(plan), "fingerprint": results.fingerprint(shop)}
    _check_place(path, about, asked["if_exists"])
    what = Loop(path, config, plan, run.make_judge(config))
    _claim(path, about, asked["if_exists"])

    def tell(number: int, stage: str) -> None:
        if config["progress"]:
            print(f"round {number} of {plan.rounds}: {stage}", file=sys.stderr, flush=True)

    try:
        rows = what.run(tell)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted: what is done is kept in {path}; go on by the same command"
        ) from None
    references = what.judge.references
    words = {"low": references.low.name, "high": references.high.name}
    title = f"{what.label} in {shop.world.name}-{shop.scenario}"
    picture = measures.draw(rows, words | {"title": title}, path / PICTURE)
    show(rows, title, {"loop": path, "picture": picture})
    return path


def _check_place(path: Path, about: dict[str, Any], if_exists: str) -> None:
    """Refuse to go on with another loop, or to write over what is none."""
    with results.writing(path):
        taken = path.is_file() or (path.is_dir() and any(path.iterdir()))
    if not taken:
        return
    if not (path / LOOP).is_file():
        raise UsageError(f"{path} is there already, and is no loop: choose another name")
    if if_exists == "overwrite":
        return
    kept = results.read_json(path / LOOP)
    for key in QUESTION:
        if kept.get(key) != about[key]:
            old, new = _difference(kept.get(key), about[key])
            raise UsageError(
                f"{path} holds a loop with {key} {old}, asked for {new}: choose another name, or "
                "pass if_exists=overwrite"
            )
    if kept.get("versions") != results.versions():
        print(
            f"warning: {path} was begun by other versions, or on another machine: what follows "
            "may differ from a loop that was never stopped",
            file=sys.stderr,
        )


def _difference(old: Any, new: Any) -> tuple[Any, Any]:
    """What differs, without what is the same."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return old, new
    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    had, has = ({name: of[name] for name in names if name in of} for of in (old, new))
    return had, has


def _claim(path: Path, about: dict[str, Any], if_exists: str) -> None:
    """Note what is asked, after removing what was there where that is wanted."""
    if if_exists == "overwrite" and path.is_dir():
        with results.writing(path):
            shutil.rmtree(path)
    for left in path.rglob(".*.part"):  # of a loop that was killed while it wrote
        if left.is_file():
            left.unlink()
    if not (path / LOOP).is_file():
        results.write_json(path / LOOP, about | {"versions": results.versions()})


def show(rows: list[dict[str, float | None]], title: str, files: dict[str, Path]) -> None:
    """A row per round."""
    table = Table(title=title, title_justify="left")
    heads = ("round", "steps", "score", "conversion", "served", "coverage", "served",
             "top tenth shown", "bought", "bestsellers")  # fmt: skip
    for head in heads:
        table.add_column(head, justify="right")
    for row in rows:
        shares = ("conversion", "served_conversion", "coverage", "served_coverage",
                  "served_top10_share", "bought_top10_share", "bestseller_share")  # fmt: skip
        told = ["" if row[name] is None else f"{row[name]:.1%}" for name in shares]
        table.add_row(
            str(row["round"]), f"{row['steps']:,}", f"{row['normalised_score']:.3f}", *told
        )
    console = Console(soft_wrap=True, highlight=False)
    console.width = max(console.width, 130)
    console.print(table)
    for name, path in files.items():
        console.print(f"{name}: {path}")


def main(argv: list[str]) -> None:
    """Compose, check, and do the loop."""
    own = [word for word in argv if key_of(word) in DEFAULTS]
    asked = _asked(own)
    config = _compose([word for word in argv if word not in own])
    loop(config, asked)


def _asked(words: list[str]) -> dict[str, Any]:
    """The arguments, checked."""
    asked = arguments(words, DEFAULTS)
    for name, high in (("rounds", MOST_ROUNDS), ("steps_per_round", 10**10)):
        as_number(name, asked[name], 1, high)
    for name in ("epochs", "patience"):
        as_number(name, asked[name], 1, 10**6)
    asked["explore"] = as_number("explore", asked["explore"], 0.0, 1.0)
    for name in ("organic", "truth"):
        if not isinstance(asked[name], bool):
            raise UsageError(f"{name} must be true or false, got {asked[name]!r}")
    if asked["if_exists"] not in IF_EXISTS:
        raise unknown("if_exists", asked["if_exists"], IF_EXISTS)
    below = Path(str(asked["name"] or "loop"))
    if below.is_absolute() or ".." in below.parts:
        raise UsageError(f"name must lie below <runs_dir>/loops, got {asked['name']!r}")
    return asked


def _compose(words: list[str]) -> dict[str, Any]:
    """The configuration of a run; agent=scorer and behaviour where nothing else is said."""
    for word in words:
        if key_of(word) == "total_timesteps":
            raise UsageError(f"{word}: a loop is as long as rounds times steps_per_round")
    config = configuration(["agent=scorer", "env.observation=behaviour", *words])
    agent = config["agent"]
    if isinstance(agent, dict) and agent.get("name") == "scorer" and "encoder_width" in agent:
        # encoder=gru: the scorer has its own
        del agent["encoder_width"]
        agent["shopper"] = "encoder"
    return config


if __name__ == "__main__":
    entry(main, __doc__)
