"""Score a trained agent, on its own environment or on another one.

    python -m experiments.evaluate run=runs/synthetic-full/ppo/seed=0
    python -m experiments.evaluate run=<dir> env.scenario=trust env.world_seed=3
    python -m experiments.evaluate run=<dir> eval.seed=1 eval.shoppers=5000

Arguments:
    run       a run directory that experiments.run wrote
    env.*     keywords of the environment that differ from the run's own
    eval.*    seed, shoppers and reference of the evaluation
    device    auto | cpu | cuda | cuda:n

Prints the same table as experiments.run, and writes <run>/scores/<environment>.json.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agents.base import Agent
from agents.planning import FORMAT as PLAN_FORMAT
from agents.planning import PlanningOracle
from agents.references import IndexPolicy, MyopicOracle, NeverRecommend, Random
from agents.rollout import Sessions, play
from experiments import results
from experiments.build import group_defaults, load_agent, make_env
from experiments.cli import arguments, entry
from experiments.report import print_table
from recenv.errors import UsageError, unknown
from recenv.seeding import Role, derive_seed
from recenv.vector_env import RecsysVectorEnv

REFERENCES, PLANS = "references.json", "plans"
FORMAT = 2  # of what is kept in it, together with that of the plans
# What 1 stands for: ``eval.reference``.
HIGH: dict[str, type[Agent]] = {"planning_oracle": PlanningOracle, "index_policy": IndexPolicy}
EVALUATION = {"seed": 0, "shoppers": 2000, "reference": "planning_oracle"}
BELIEVABLE = 1000  # sessions, below which an evaluation is only a look


@dataclass(frozen=True)
class Reference:
    """A policy that the score is measured against, and its mean return."""

    name: str
    value: float
    weight: float | None = None  # of the index policy
    plan: str | None = None  # of the planning oracle: which policy it came to


@dataclass(frozen=True)
class References:
    """What 0 and 1 mean on the normalised scale, and the greedy oracle between them."""

    low: Reference
    high: Reference
    myopic: Reference

    def normalise(self, value: float) -> float:
        """(return - low) / (high - low)."""
        return (value - self.low.value) / max(self.high.value - self.low.value, 1e-9)


class Judge:
    """Evaluates agents by one protocol: the same shoppers with the same luck for all.

    Args:
        env: keywords of the environment.
        seed: ``eval.seed``.
        shoppers: ``eval.shoppers``, E.
        cache: a directory in which references and plans are kept.
        reference: ``eval.reference``, the policy that scores 1; a minute's planning for the
            planning oracle, seconds for the index policy. At a gate the myopic oracle stands
            in for the planning oracle, and 0 is never to recommend; where candidates are
            retrieved the index policy does, and all references choose among the candidates.

    With a finite clientele (``num_shoppers``) the judged sessions are those of regulars;
    newcomers are judged apart.
    """

    def __init__(
        self,
        env: dict[str, Any],
        seed: int,
        shoppers: int,
        cache: Path | None = None,
        reference: str = "planning_oracle",
    ):
        if not isinstance(shoppers, int) or shoppers < 2:
            raise UsageError(f"eval.shoppers must be a whole number of at least 2, got {shoppers}")
        if not isinstance(seed, int) or seed < 0:
            raise UsageError(f"eval.seed must be a whole number of at least 0, got {seed}")
        check_reference(reference)
        plain = {**env, "reveal": False, "autoreset_mode": "SameStep"}
        self.seed, self.shoppers = seed, shoppers
        self.env = make_env(plain, shoppers)
        self.low: Agent = Random()
        self.high = HIGH[reference]()
        if self.env.shop.gate:
            # no planner knows gates, and a random answer is worse than none
            planned = isinstance(self.high, PlanningOracle)
            self.low, self.high = NeverRecommend(), MyopicOracle() if planned else self.high
        if self.env.shop.retrieves and isinstance(self.high, PlanningOracle):
            self.high = IndexPolicy()  # no planner knows what will be retrieved
        self.plans = cache / PLANS if cache else None
        self.prepare(self.high)
        self.references = self._refer(self.env, cache)
        self.newcomers: RecsysVectorEnv | None = None
        if self.env.shop.clientele is not None:
            self.newcomers = make_env({**plain, "num_shoppers": None}, shoppers)
            self.newcomer_references = self._refer(self.newcomers, cache)

    def prepare(self, agent: Agent) -> None:
        """Let an agent that plans keep its plan here, or use the one that is kept."""
        if isinstance(agent, PlanningOracle):
            agent.plans = self.plans

    def sessions(self, agent: Agent, env: RecsysVectorEnv | None = None) -> Sessions:
        """The first session of each of the E shoppers."""
        return play(agent, env or self.env, derive_seed(Role.EVALUATION, self.seed))

    def __call__(self, agent: Agent) -> tuple[dict[str, float | None], Sessions]:
        """The columns of an evaluation (see ``results.COLUMNS``), and what it was made from."""
        sessions = self.sessions(agent)
        row = measure(sessions, self.references)
        if self.newcomers is not None:
            value = float(self.sessions(agent, self.newcomers).return_E.mean())
            row["newcomers_return_mean"] = value
            row["newcomers_normalised_score"] = self.newcomer_references.normalise(value)
        return row, sessions

    def _refer(self, env: RecsysVectorEnv, cache: Path | None) -> References:
        """The references of an environment, from the cache where they are in it."""
        key = (
            f"format={FORMAT}.{PLAN_FORMAT} {self.high.name} {results.fingerprint(env.shop)} "
            f"seed={self.seed} shoppers={self.shoppers}"
        )
        known: dict[str, Any] = {}
        path = cache / REFERENCES if cache else None
        if path is not None and path.is_file():
            known = results.read_json(path)
        if key not in known:
            known[key] = {name: asdict(r) for name, r in self._play_references(env).items()}
            if path is not None:
                results.write_json(path, known)
        return References(**{name: Reference(**value) for name, value in known[key].items()})

    def _play_references(self, env: RecsysVectorEnv) -> dict[str, Reference]:
        agents = {"low": self.low, "high": self.high, "myopic": MyopicOracle()}
        references = {}
        for role, agent in agents.items():
            with agent.acting_in(env):
                agent.learn(0)
            value = float(self.sessions(agent, env).return_E.mean())
            weight = agent.weight if isinstance(agent, IndexPolicy) else None
            plan = agent.plan.policy if isinstance(agent, PlanningOracle) and agent.plan else None
            references[role] = Reference(agent.name, value, weight, plan)
        return references


def measure(sessions: Sessions, references: References) -> dict[str, float | None]:
    """The columns of an evaluation from the sessions played."""
    mean = float(sessions.return_E.mean())
    half = 1.96 * float(sessions.return_E.std(ddof=1)) / np.sqrt(len(sessions.return_E))
    shown = max(float(sessions.shown_I.sum()), 1e-9)
    share_I = sessions.shown_I / shown
    return {
        "return_mean": mean,
        "return_low": mean - half,
        "return_high": mean + half,
        "normalised_score": references.normalise(mean),
        "normalised_low": references.normalise(mean - half),
        "normalised_high": references.normalise(mean + half),
        "myopic_regret": references.myopic.value - mean,
        "conversion": float(sessions.purchases_E.sum() / shown),
        "recommended": float(sessions.shown_I.sum() / sessions.length_E.sum()),
        "session_length": float(sessions.length_E.mean()),
        "coverage": float((share_I > 0).mean()),
        "gini": gini(share_I),
        "entropy": entropy(share_I),
        "top_item_share": float(share_I.max()),
    }


def gini(share_I: np.ndarray) -> float:
    """Gini coefficient of the shares of recommendations: 0 all alike, towards 1 all one item."""
    n = len(share_I)
    rank = np.arange(1, n + 1)
    return float((2 * rank - n - 1) @ np.sort(share_I) / n / max(share_I.sum(), 1e-12))


def entropy(share_I: np.ndarray) -> float:
    """Shannon entropy of the shares of recommendations, in nats."""
    positive = share_I[share_I > 0]
    return float(-(positive * np.log(positive)).sum()) + 0.0


def warnings(row: dict[str, float | None], num_items: int, shoppers: int) -> list[str]:
    """What a reader should know before believing an evaluation."""
    found = []
    if not row["coverage"]:
        found.append("the policy recommends nothing, to nobody")
    effective = float(np.exp(row["entropy"] or 0.0))
    if row["coverage"] and effective < min(3.0, num_items / 2):
        found.append(
            f"the policy has collapsed: its recommendations amount to {effective:.1f} of "
            f"{num_items} items (top item {row['top_item_share']:.0%})"
        )
    if shoppers < BELIEVABLE:
        found.append(
            f"{shoppers} shoppers are too few for a figure: use eval.shoppers>={BELIEVABLE}"
        )
    return found


def summarise(judge: Judge, row: dict[str, float | None]) -> dict[str, Any]:
    """An evaluation in the words of summary.json."""
    shop, references = judge.env.shop, judge.references
    return {
        "world": shop.world.name,
        "scenario": shop.scenario,
        "normalised_score": row["normalised_score"],
        "normalised_ci95": [row["normalised_low"], row["normalised_high"]],
        "return_mean": row["return_mean"],
        "return_ci95": [row["return_low"], row["return_high"]],
        **{name: row[name] for name in DESCRIPTIVE},
        **({"recommended": row["recommended"]} if shop.gate else {}),
        **{name: row[name] for name in NEWCOMERS if row.get(name) is not None},
        "reference_low": _reference(references.low),
        "reference_high": _reference(references.high),
        "reference_myopic": _reference(references.myopic),
        "eval_seed": judge.seed,
        "eval_shoppers": judge.shoppers,
        "warnings": warnings(row, shop.num_items, judge.shoppers),
    }


DESCRIPTIVE = (
    "conversion",
    "session_length",
    "myopic_regret",
    "coverage",
    "gini",
    "entropy",
    "top_item_share",
)
NEWCOMERS = ("newcomers_return_mean", "newcomers_normalised_score")


def _reference(reference: Reference) -> dict[str, Any]:
    words: dict[str, Any] = {"name": reference.name, "return": reference.value}
    told = {"weight": reference.weight, "plan": reference.plan}
    return words | {name: value for name, value in told.items() if value is not None}


def check_reference(reference: Any) -> None:
    """Refuse an ``eval.reference`` that there is not."""
    if not isinstance(reference, str) or reference not in HIGH:
        raise unknown("eval.reference", reference, HIGH)


def main(argv: list[str]) -> None:
    """Score the agent of a run."""
    defaults: dict[str, Any] = {"run": None, "env": {}, "eval": {}, "device": "auto"}
    asked = arguments(argv, defaults)
    if not asked["run"]:
        raise UsageError("which run? pass run=<run directory>")
    run = results.RunDirectory(Path(str(asked["run"])))
    config = run.config()
    if not run.finished:
        raise UsageError(f"the run in {run.path} is not finished: it has no trained agent")
    for key in asked["eval"]:
        if key not in EVALUATION:
            raise unknown("key of eval", key, EVALUATION)
    env = config["env"] | asked["env"]
    evaluation = EVALUATION | config.get("eval", {}) | asked["eval"]
    name, judge = _judge(run, env, evaluation)
    agent = load_agent(config, run.agent, judge.env, str(asked["device"]))
    row, _ = judge(agent)
    foreign = _foreign(config["env"], judge)
    summary = {"run": str(run.path), "agent": run.label, **summarise(judge, row)}
    summary["warnings"] = foreign + summary["warnings"]
    reference = results.suffix({"reference": judge.high.name}, EVALUATION)
    target = run.path / "scores" / f"{name}+eval_seed={judge.seed}{reference}.json"
    results.write_json(target, summary)
    print_table(f"{run.label} on {name}", summary, {"scores": target})


def _foreign(env: dict[str, Any], judge: Judge) -> list[str]:
    """A warning where the judged shop sells other items than the agent was trained on."""
    own, other = make_env(env, 1).shop.catalogue, judge.env.shop.catalogue
    if np.array_equal(own.embedding_ID, other.embedding_ID):
        return []
    return ["this shop sells other items than the agent was trained on, under the same numbers"]


def _judge(
    run: results.RunDirectory, env: dict[str, Any], evaluation: dict[str, Any]
) -> tuple[str, Judge]:
    """The other environment's directory name, and its judge with the references cached there."""
    shop = make_env(env, 1).shop
    name = results.shop_name(shop, env, group_defaults("env", "recsys"))
    cache = run.path.parent.parent.parent / name
    seed, shoppers, reference = (evaluation[key] for key in EVALUATION)
    return name, Judge(env, seed, shoppers, cache, reference)


if __name__ == "__main__":
    entry(main, __doc__)
