"""Collect an event log: an agent serves shoppers, and everything that they do is written down.

    python -m experiments.collect agent=linucb env.scenario=trust learn=20000 episodes=1000
    python -m experiments.collect run=runs/synthetic-full/ppo/seed=0 explore=0.1
    python -m experiments.collect agent=random env.num_shoppers=1000 minari=recsys/full/random-v0

Arguments:
    agent, agent.*  who serves, as in experiments.run; by default it has learned nothing
    env, env.*      the shop, as in experiments.run
    run             serve the trained agent of this run directory instead, in its own shop
                    (env.* changes that shop)
    episodes        sessions (1000)
    seed            of the agent, the shoppers and what they do by themselves (0)
    learn           environment steps that the agent learns from before it serves (0)
    explore         share of the recommendations that are random items (0.1)
    stochastic      true: the agent draws from its own probabilities (ppo)
    organic         shoppers also browse and search by themselves (true)
    views, searches how often they do before each recommendation, on average (0.3, 0.05)
    truth           also write what only a simulator knows, truth.npz (true)
    minari          also write the sessions as a Minari dataset of this id
    out             directory of the log (logs/<shop>/<agent>/seed=<seed>)
    if_exists       error | overwrite
    num_envs        shoppers that are served at once (1024)
    device, threads, progress, runs_dir   as in experiments.run

Every recommendation is written with its true propensity. The files are described in
experiments/logs/schema.py; what was collected is printed, and stands in log.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from agents.base import Agent
from agents.planning import PlanningOracle
from experiments import results
from experiments.build import (
    agent_settings,
    configuration,
    group_defaults,
    load_agent,
    make_agent,
    make_env,
)
from experiments.cli import arguments, entry, key_of
from experiments.evaluate import PLANS
from recenv.errors import UsageError
from recenv.organic import Habits
from recenv.shop import as_number
from recenv.vector_env import RecsysVectorEnv

COMPOSED = ("agent", "env", "seed", "device", "threads")  # by Hydra, as in experiments.run
DEFAULTS: dict[str, Any] = {
    "run": None,
    "episodes": 1000,
    "learn": 0,
    "explore": 0.1,
    "stochastic": False,
    "organic": True,
    "views": Habits.views,
    "searches": Habits.searches,
    "truth": True,
    "minari": None,
    "out": None,
    "if_exists": "error",
    "num_envs": 1024,
    "progress": True,
    "runs_dir": "runs",
}


def main(argv: list[str]) -> None:
    """Collect, and show what was collected."""
    from experiments.logs.collect import Recipe, collect  # they need an extra

    composed = [word for word in argv if key_of(word) in COMPOSED]
    known = DEFAULTS | dict.fromkeys(COMPOSED)
    asked = arguments([word for word in argv if word not in composed], known)
    for name in ("organic", "stochastic", "truth", "progress"):
        if not isinstance(asked[name], bool):
            raise UsageError(f"{name} must be true or false, got {asked[name]!r}")
    episodes = as_number("episodes", asked["episodes"], 1, 10**9)
    explore = as_number("explore", asked["explore"], 0.0, 1.0)
    learn = as_number("learn", asked["learn"], 0, 10**12)
    if learn and asked["run"] is not None:
        raise UsageError("run=... brings an agent that has learned: leave out learn")
    habits = Habits(views=asked["views"], searches=asked["searches"])
    num_envs = min(as_number("num_envs", asked["num_envs"], 1, 10**6), episodes)
    config, agent, env = _who_serves_where(composed, asked, num_envs)
    recipe = Recipe(
        episodes=episodes,
        seed=as_number("seed", config["seed"], 0, 2**31 - 1),
        explore=explore,
        stochastic=asked["stochastic"],
        organic=asked["organic"],
        habits=habits,
        truth=asked["truth"],
        minari=None if asked["minari"] is None else str(asked["minari"]),
    )
    out = Path(str(asked["out"] or _place(config, env, recipe.seed)))
    about = {"run": asked["run"], "learned_steps": learn}
    if learn:
        agent.learn(learn)
    told = collect(
        agent,
        env,
        out,
        recipe,
        about=about,
        if_exists=asked["if_exists"],
        progress=asked["progress"],
    )
    show(told, out)


def _who_serves_where(
    composed: list[str], asked: dict[str, Any], num_envs: int
) -> tuple[dict[str, Any], Agent, RecsysVectorEnv]:
    """The configuration, the agent, and the environment in which it serves."""
    runs_dir = Path(str(asked["runs_dir"]))
    if asked["run"] is None:
        config = _compose(composed, runs_dir)
    else:
        config = _of_run(composed, Path(str(asked["run"])))
    as_number("threads", config["threads"], 1, 10_000)
    torch.set_num_threads(config["threads"])
    plain = config["env"] | {"autoreset_mode": "SameStep", "reveal": False}
    env = make_env(plain, num_envs)
    if env.shop.gate or env.shop.retrieves:
        raise UsageError(f"logs tell what was chosen among items: there are none of {env.shop.id}")
    if asked["run"] is not None:
        directory = results.RunDirectory(Path(str(asked["run"]))).agent
        return config, load_agent(config, directory, env, str(config["device"])), env
    agent = make_agent(config["agent"], plain, config["seed"], str(config["device"]))
    if isinstance(agent, PlanningOracle):
        shop = results.shop_name(env.shop, config["env"], group_defaults("env", "recsys"))
        agent.plans = runs_dir / shop / PLANS
    return config, agent, env


def _compose(words: list[str], runs_dir: Path) -> dict[str, Any]:
    config = configuration(words, runs_dir)
    for group in ("agent", "env"):
        if not isinstance(config.get(group), dict):
            raise UsageError(f"{group} must name a file in conf/{group}, got {config.get(group)!r}")
    return config


def _of_run(words: list[str], path: Path) -> dict[str, Any]:
    """The configuration of a run, with another shop or seed where ``words`` say so."""
    for word in words:
        if key_of(word) == "agent" or word.startswith("env="):
            raise UsageError(f"{word}: run=... brings its own agent and shop (env.* changes it)")
    run = results.RunDirectory(path)
    config = run.config()
    if not run.finished:
        raise UsageError(f"the run in {path} is not finished: it has no trained agent")
    defaults = {"env": {}, "seed": 0, "device": "auto", "threads": 1}
    changed = arguments(words, defaults)
    return config | changed | {"env": config["env"] | changed["env"]}


def _place(config: dict[str, Any], env: RecsysVectorEnv, seed: int) -> Path:
    """logs/<shop>/<agent>/seed=<n>, named as run directories are."""
    name = str(config["agent"].get("name", "agent"))
    defaults = group_defaults("agent", name) or config["agent"]
    label = name + results.suffix(agent_settings(config["agent"]), agent_settings(defaults))
    shop = results.shop_name(env.shop, config["env"], group_defaults("env", "recsys"))
    return Path("logs") / shop / label / f"seed={seed}"


def show(told: dict[str, Any], out: Path) -> None:
    """A short table of what was collected."""
    table = Table(
        title=f"{told['policy']} in {told['world']}-{told['scenario']}", show_header=False
    )
    table.title_justify = "left"
    shown, organic = told["events"]["recommended"], told["events"]["organic"]
    shoppers, sessions, steps = (told[name] for name in ("shoppers", "sessions", "steps"))
    table.add_row("sessions", f"{sessions:,} of {shoppers:,} shoppers, {steps / sessions:.1f} long")
    table.add_row("recommendations", f"{steps:,}")
    for event, count in shown.items():
        if count:
            table.add_row(f"  {event}", f"{count:,}  {count / steps:.1%}")
    table.add_row("conversion", f"{told['conversion']:.1%}")
    for event, count in organic.items():
        if count:
            table.add_row(f"by themselves: {event}", f"{count:,}")
    table.add_row("from, to", f"{told['begin'][:16]}, {told['end'][:16]}")
    size = sum(file.stat().st_size for file in out.iterdir())
    table.add_row("files", f"{told['rows']:,} rows, {size / 1e6:.1f} MB")
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    console.print(f"log: {out}")


if __name__ == "__main__":
    entry(main, __doc__)
