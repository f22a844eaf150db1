"""What there is to win in a shop, before anything is trained from data.

    python -m experiments.headroom env.scenario=trust
    python -m experiments.headroom env=complete_journey
    python -m experiments.headroom env.num_items=500 scenarios=all

Arguments:
    env        recsys | complete_journey
    env.*      keywords of the environment
    scenarios  all, or names separated by commas (default: the one of env.scenario)
    eval.*     seed and shoppers of the evaluation
    steps      environment steps that popularity and rotation learn from (200000)
    runs_dir   where plans, references and the results are kept (runs)

Prints one column per scenario: the returns of the references, and how much planning can win
over the myopic oracle and personalising over the better of popularity and rotation, in
purchases per session, paired over the same shoppers with the same luck, with 95% intervals;
and one sentence of advice.
Writes <runs_dir>/<environment>/headroom.json.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from agents.base import Agent
from agents.references import MyopicOracle, Random
from experiments import results
from experiments.build import group_defaults, make_agent, make_env
from experiments.cli import arguments, entry
from experiments.evaluate import EVALUATION, Judge
from experiments.stats import Estimate, paired_difference
from recenv.errors import unknown
from recenv.scenarios import SCENARIOS
from recenv.seeding import Role, generator
from recenv.shop import as_number

ENVS = ("recsys", "complete_journey")
FIXED = ("popularity", "rotation")  # the same for everybody
# Below this share of all recommendations turned into purchases, a gain is not worth an agent.
WORTH = 0.01


@dataclass(frozen=True)
class Headroom:
    """What can be won in one shop; gains in purchases per session of ``horizon`` steps.

    Attributes:
        shop: the environment's directory name.
        returns: mean return of every reference.
        plan: what the planning oracle came to.
        fixed: the better of popularity and rotation.
        planning: planning oracle over myopic oracle.
        greedy: myopic oracle over ``fixed``.
        personal: planning oracle over ``fixed``.
        headroom: ``planning`` as a share of planning oracle over random.
    """

    shop: str
    scenario: str
    horizon: int
    returns: dict[str, float]
    plan: str
    fixed: str
    planning: Estimate
    greedy: Estimate
    personal: Estimate
    headroom: float


def measure(env: dict[str, Any], seed: int, shoppers: int, steps: int, runs_dir: Path) -> Headroom:
    """Play the references of a shop and compare them, shopper by shopper."""
    shop = make_env(env, 1).shop
    name = results.shop_name(shop, env, group_defaults("env", "recsys"))
    judge = Judge(env, seed, shoppers, runs_dir / name)
    with judge.high.acting_in(judge.env):
        judge.high.learn(0)
    agents: dict[str, Agent] = {"random": Random()}
    for fixed in FIXED:
        agents[fixed] = make_agent(group_defaults("agent", fixed), env, 0, "cpu").learn(steps)
    agents |= {"myopic_oracle": MyopicOracle(), "planning_oracle": judge.high}
    return_E = {agent: judge.sessions(of).return_E for agent, of in agents.items()}
    returns = {agent: float(of.mean()) for agent, of in return_E.items()}
    best = max(FIXED, key=lambda fixed: returns[fixed])

    def over(better: str, worse: str) -> Estimate:
        return purchases_over(return_E[better], return_E[worse])

    scale = returns["planning_oracle"] - returns["random"]
    return Headroom(
        shop=name,
        scenario=shop.scenario,
        horizon=shop.horizon,
        returns=returns,
        plan=judge.references.high.plan or "",
        fixed=best,
        planning=over("planning_oracle", "myopic_oracle"),
        greedy=over("myopic_oracle", best),
        personal=over("planning_oracle", best),
        headroom=(returns["planning_oracle"] - returns["myopic_oracle"]) / max(scale, 1e-9),
    )


def purchases_over(better_E: np.ndarray, worse_E: np.ndarray) -> Estimate:
    """How many more purchases a session has, from the returns of the same shoppers."""
    # a return is purchases - (T - purchases): two of it are one purchase
    x_RJN, y_RJN = (return_E[None, None] / 2.0 for return_E in (better_E, worse_E))
    return paired_difference(x_RJN, y_RJN, generator(Role.STATISTICS, 0))


def advise(found: Headroom) -> str:
    """One plain sentence on what to do about it."""
    planning, personal, per = found.planning, found.personal, f"{found.horizon} recommendations"
    worth = WORTH * found.horizon
    if planning.low > 0 and planning.value >= worth:
        return (
            f"Planning can win about {said(planning)} purchases per {per} over greedy: "
            "worth trying PPO or DQN."
        )
    if planning.low > 0:
        little = f"Planning can win only {said(planning)} purchases per {per} over greedy"
    else:
        little = f"Planning has nothing to win over greedy ({said(planning)} purchases per {per})"
    if personal.low > 0 and personal.value >= worth:
        return f"{little}, personalising {said(personal)} over {found.fixed}: ship the scorer."
    return (
        f"{little}, and personalising hardly more over {found.fixed} ({said(personal)}): "
        "ship the best sellers."
    )


def said(estimate: Estimate) -> str:
    """3.1 ± 0.4, with as many decimals as the interval deserves."""
    half = (estimate.high - estimate.low) / 2
    decimals = 1 if half >= 0.05 else 2
    return f"{estimate.value + 0.0:.{decimals}f} ± {half:.{decimals}f}"


def print_all(found: list[Headroom]) -> None:
    """One table, a column per environment, and a sentence on each."""
    table = Table(title="what can be won, per session", title_justify="left")
    table.add_column("")
    for one in found:
        table.add_column(one.shop, justify="right", overflow="fold")
    for label, cells in _rows(found):
        table.add_row(label, *cells)
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    for one in found:
        console.print(f"{one.shop}: {advise(one)}")


def _rows(found: list[Headroom]) -> list[tuple[str, list[str]]]:
    rows = [
        (f"return: {name}", [f"{one.returns[name]:.2f}" for one in found])
        for name in found[0].returns
    ]
    rows[-1] = (rows[-1][0], [f"{one.returns['planning_oracle']:.2f} {one.plan}" for one in found])
    return [
        *rows,
        ("purchases: planning over greedy", [said(one.planning) for one in found]),
        ("purchases: greedy over the best cycle", [said(one.greedy) for one in found]),
        ("purchases: both together", [said(one.personal) for one in found]),
        ("planning headroom", [f"{one.headroom:.3f}" for one in found]),
    ]


def main(argv: list[str]) -> None:
    """Measure, print and write down."""
    chosen = [word.removeprefix("env=") for word in argv if word.startswith("env=")]
    name = chosen[-1] if chosen else ENVS[0]
    if name not in ENVS:
        raise unknown("env", name, ENVS)
    rest = [word for word in argv if not word.startswith("env=")]
    defaults: dict[str, Any] = {"env": {}, "eval": {}, "scenarios": None, "steps": 200_000}
    asked = arguments(rest, defaults | {"runs_dir": "runs"})
    for key in asked["eval"]:
        if key not in ("seed", "shoppers"):
            raise unknown("key of eval", key, ("seed", "shoppers"))
    env = group_defaults("env", "recsys") | group_defaults("env", name) | asked["env"]
    evaluation = EVALUATION | asked["eval"]
    steps = as_number("steps", asked["steps"], 1, 10**9)
    runs_dir = Path(str(asked["runs_dir"]))
    torch.set_num_threads(1)  # more are slower for networks this small
    found = []
    for scenario in _scenarios(asked["scenarios"], env["scenario"]):
        one = measure(
            env | {"scenario": scenario},
            evaluation["seed"],
            evaluation["shoppers"],
            steps,
            runs_dir,
        )
        target = runs_dir / one.shop / "headroom.json"
        results.write_json(target, asdict(one) | {"advice": advise(one), **_asked(evaluation)})
        found.append(one)
    print_all(found)


def _asked(evaluation: dict[str, Any]) -> dict[str, Any]:
    return {f"eval_{key}": evaluation[key] for key in ("seed", "shoppers")}


def _scenarios(asked: Any, otherwise: str | None) -> list[str | None]:
    """The scenarios to measure; None is the world's own."""
    if asked is None:
        return [otherwise]
    if asked == "all":
        return list(SCENARIOS)
    names: list[str | None] = [word.strip() for word in str(asked).split(",")]
    for name in names:
        if name not in SCENARIOS:
            raise unknown("scenario", str(name), SCENARIOS)
    return names


if __name__ == "__main__":
    entry(main, __doc__)
