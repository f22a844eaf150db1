"""Rank recommenders on an event log: how many held-out purchases are on their lists.

    python -m experiments.rank log=logs/synthetic-full/random/seed=0
    python -m experiments.rank log=logs/clean agents=[popularity,mf] k=20

Arguments:
    log        the log's directory, as experiments.collect or experiments.preprocess wrote it
    agents     who learns from it and is ranked, names in conf/agent
               ([random,popularity,user_cf,item_content,mf])
    agent.*    settings of those that know them, as in agent.neighbours=20
    k          length of the lists (10)
    split      time | shopper: how a log that is not preprocessed is split (time)
    test       share of its events or shoppers that is held out (0.2)
    organic    also learn from what shoppers did by themselves (false)
    most       purchases that are asked for, at most, drawn at random (20000)
    seed       of the agents, the split and the draws (0)
    out        the table as CSV (<log>/ranking.csv)
    progress   draw a bar (true)

Every agent learns from the train part alone. Then it is asked, for every purchase of the test
part, to rank all items, knowing what she answered before it in that session, and, where the shop
has a clientele, in the train part. recall@k is the share of purchases whose item is on the list,
NDCG@k weights it by its place, coverage is the share of the catalogue on any list; the first two
are means over shoppers, with 95% intervals. A purchase can only be of what was shown, so that a
log of a policy that recommends little beside best sellers asks for these: collect it with
agent=random, or a large explore=, where taste is to count.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from agents.base import Agent
from agents.references import Random
from experiments import results
from experiments.build import (
    agent_class,
    agent_settings,
    group_defaults,
    make_agent,
    make_env,
)
from experiments.cli import arguments, entry
from experiments.stats import Estimate
from recenv.errors import UsageError, unknown
from recenv.seeding import Role, generator
from recenv.shop import as_number
from recenv.vector_env import RecsysVectorEnv

RANKED = ["random", "popularity", "user_cf", "item_content", "mf"]
DEFAULTS: dict[str, Any] = {
    "log": None,
    "agents": RANKED,
    "agent": {},
    "k": 10,
    "split": "time",
    "test": 0.2,
    "organic": False,
    "most": 20_000,
    "seed": 0,
    "out": None,
    "progress": True,
}
Row = dict[str, Any]


def main(argv: list[str]) -> None:
    """Fit, ask, show and write down."""
    from experiments.logs import held_out  # it needs an extra

    asked = _checked(arguments(argv, DEFAULTS))
    log, seed, k = Path(str(asked["log"])), asked["seed"], asked["k"]
    torch.set_num_threads(1)
    rng = generator(Role.STATISTICS, seed)
    questions = held_out.read_questions(
        log, asked["split"], asked["test"], asked["organic"], asked["most"], rng
    )
    shop = _shop(questions.about, log)
    env = make_env(shop, 1)
    if k > env.shop.num_items:
        raise UsageError(f"k must be a whole number in 1..{env.shop.num_items}, got {k}")
    agents = {name: _agent(name, asked["agent"], shop, env, seed) for name in asked["agents"]}
    _check_settings(asked["agent"], asked["agents"])
    rows = []
    for name, agent in tqdm(
        agents.items(), desc="rank", disable=not asked["progress"], leave=False
    ):
        began = perf_counter()
        rank = _learn(agent, questions)
        found = held_out.answer(questions, rank, k, generator(Role.STATISTICS, seed))
        row: Row = {"agent": name, "coverage": found.coverage, "seconds": perf_counter() - began}
        for figure, value_n in (("recall", found.recall_n), ("ndcg", found.ndcg_n)):
            draws = generator(Role.STATISTICS, seed)
            row[figure] = held_out.over_shoppers(value_n, questions.shopper_n, draws)
        rows.append(row)
    shoppers = len(np.unique(questions.shopper_n))
    show(rows, k, f"{len(questions):,} purchases of {shoppers:,} shoppers in {log}")
    out = log / "ranking.csv" if log.is_dir() else log.with_suffix(".ranking.csv")
    out = out if asked["out"] is None else Path(str(asked["out"]))
    results.write_text(out, as_csv(rows, k, len(questions), shoppers))
    print(f"table: {out}")


def _checked(asked: dict[str, Any]) -> dict[str, Any]:
    """The arguments, or a UsageError that says what is wrong with them."""
    if asked["log"] is None:
        raise UsageError("log is missing: log=<directory>, as experiments.collect writes them")
    for name in ("organic", "progress"):
        if not isinstance(asked[name], bool):
            raise UsageError(f"{name} must be true or false, got {asked[name]!r}")
    names = asked["agents"]
    names = names.split(",") if isinstance(names, str) else names
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise UsageError(f"agents must be names, as in agents=[mf,user_cf], got {names!r}")
    whole = {"k": (1, 10**9), "most": (1, 10**9), "seed": (0, 2**31 - 1)}
    numbers = {name: as_number(name, asked[name], *bounds) for name, bounds in whole.items()}
    test = as_number("test", asked["test"], 0.001, 0.999)
    return asked | numbers | {"agents": list(dict.fromkeys(names)), "test": test}


def _shop(about: dict[str, Any], log: Path) -> dict[str, Any]:
    """The keywords of the shop that was logged, whose catalogue and clientele agents need."""
    if not isinstance(about.get("env"), dict):
        raise UsageError(
            f"{log} does not say which shop it is of (its log.json has no env): collect it with "
            "python -m experiments.collect"
        )
    shop: dict[str, Any] = about["env"] | {"autoreset_mode": "SameStep"}
    return shop


def _agent(
    name: str, settings: dict[str, Any], shop: dict[str, Any], env: RecsysVectorEnv, seed: int
) -> Agent:
    """An agent that has learned nothing, or a UsageError where it cannot learn from a log."""
    config = group_defaults("agent", name)
    if not config:
        raise UsageError(f"there is no agent {name!r}: choose from {', '.join(RANKED)}")
    cls = agent_class(config)
    if cls is not Random and not hasattr(cls, "affinity"):
        raise UsageError(f"agent {name} does not rank a log: choose from {', '.join(RANKED)}")
    own = {key: value for key, value in settings.items() if key in config}
    agent = make_agent(config | own, shop, seed, "auto")
    agent.bind(env)
    return agent


def _check_settings(given: dict[str, Any], names: list[str]) -> None:
    """Refuse settings that none of the agents has."""
    known = {key for name in names for key in agent_settings(group_defaults("agent", name))}
    for key in given:
        if key not in known:
            raise unknown("setting of these agents", key, known)


def _learn(agent: Any, questions: Any) -> Any:
    """Fit an agent to the train part; how it scores items."""
    if isinstance(agent, Random):
        return lambda items_nT, events_nT, shopper_n: agent.score(items_nT)
    train = questions.train
    agent.fit(train.items_ST, train.events_ST, train.shopper_S)
    return agent.affinity


def show(rows: list[Row], k: int, title: str) -> None:
    """A table, the best recall first."""
    table = Table(title=title, title_justify="left")
    table.add_column("agent", no_wrap=True)
    for name in (f"recall@{k}", f"NDCG@{k}", "coverage"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda row: -row["recall"].value):
        said = (_said(row["recall"]), _said(row["ndcg"]), f"{row['coverage']:.2f}")
        table.add_row(row["agent"], *said)
    Console(soft_wrap=True, highlight=False).print(table)


def _said(estimate: Estimate) -> str:
    # no markup: brackets
    return f"{estimate.value:.3f} \\[{estimate.low:.3f}, {estimate.high:.3f}]"


def as_csv(rows: list[Row], k: int, purchases: int, shoppers: int) -> str:
    """The same as CSV, in the order asked for."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    figures = ("recall", "ndcg")
    ends = [f"{figure}{end}" for figure in figures for end in ("", "_low", "_high")]
    writer.writerow(["agent", "k", *ends, "coverage", "purchases", "shoppers", "seconds"])
    for row in rows:
        values = [
            f"{getattr(row[figure], part):.6f}"
            for figure in figures
            for part in ("value", "low", "high")
        ]
        rest = [f"{row['coverage']:.6f}", purchases, shoppers, f"{row['seconds']:.2f}"]
        writer.writerow([row["agent"], k, *values, *rest])
    return text.getvalue()


if __name__ == "__main__":
    entry(main, __doc__)
