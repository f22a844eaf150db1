"""Large catalogues: two-tower heads against flat ones, items never seen, and warm starts.

    python -m experiments.towers                          # all of it, hours
    python -m experiments.towers parts=heads seeds=0,1,2
    python -m experiments.towers draw=true                # the page from the runs that are there

Arguments:
    parts     heads, unseen, warm, separated by commas (all)
    seeds     training seeds, separated by commas (0,1,2; the warm part: 0,1,2,3,4)
    draw      true: run nothing, write the page from the runs that are finished
    runs_dir  where the runs go (runs/towers); finished ones are used, the others are done
    out       where the page goes (docs)

heads: PPO with either head at 2,000 items, 500 thousand steps, in ``static`` and ``full``.
unseen: PPO with two towers learns in a shop of which every tenth item is missing, at random;
the items enter its catalogue afterwards, and its choice among them is compared with its choice
among items that it knew, by the purchase probability that is lost against the best of them.
warm: at 1,000 items a scorer learns from 10 thousand steps, PPO begins with its towers, and is
compared with PPO that begins with nothing, the scorer's steps counted.

Writes <out>/towers.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from array_api_compat import numpy as xp

from agents.references import MyopicOracle
from experiments import results
from experiments.build import configuration, load_agent, make_env
from experiments.cli import arguments, command_of, entry, numbers
from experiments.run import run, run_directory
from experiments.stats import Estimate, bootstrap, interquartile_mean, mean, steps_to
from recenv import world as worlds
from recenv.dynamics import sigmoid
from recenv.errors import UsageError, unknown
from recenv.seeding import Role, derive_seed, generator
from recenv.vector_env import RecsysVectorEnv

PARTS = ("heads", "unseen", "warm")
SEEDS = {"heads": "0,1,2", "unseen": "0,1,2", "warm": "0,1,2,3,4"}
SCENARIOS = ("static", "full")
ITEMS, STEPS = 2_000, 500_000  # of heads and unseen
KNOWN = ITEMS * 9 // 10
SIGNALS = {"1": 1.0, "default": None}  # feature_signal
IDS = ("true", "false")  # agent.item_ids
WARM_ITEMS, WARM_STEPS, SCORER_STEPS = 1_000, 400_000, 10_240
SCORER = "agent.gradient_steps=10"  # it learns from little, so it looks at it often
TEMPERATURE = {"static": 0.5, "full": 2.0}  # greedy is right in one, and wrong in the other
ENOUGH = 0.8  # of the cold start's last score
JUDGED = 2_000  # shoppers that look at unseen items
PLAIN = ["eval.reference=index_policy", "progress=false"]
# of heads and unseen the end counts, of warm starts the way
POINTS = {"end": "eval.points=4", "way": "eval.points=16"}


@dataclass(frozen=True)
class Asked:
    """What the command was asked to do."""

    seeds: dict[str, list[int]]
    draw: bool
    runs_dir: Path

    def finished(self, words: list[str], points: str) -> results.RunDirectory | None:
        """The run of a configuration, done if it is missing; None where only drawing."""
        config = configuration([*PLAIN, POINTS[points], *words], self.runs_dir)
        if not self.draw:
            return run(config, "resume")
        directory = run_directory(config)
        return directory if directory.finished else None


def estimate(value_R: list[float], statistic: Callable[..., Any] = interquartile_mean) -> Estimate:
    """A figure over runs with its 95% interval."""
    return bootstrap(np.array(value_R)[:, None], statistic, generator(Role.STATISTICS, 0))


def told(of: Estimate, form: str = ".3f") -> str:
    if np.isnan(of.low):
        return f"{of.value:{form}}"
    return f"{of.value:{form}} [{of.low:{form}}, {of.high:{form}}]"


# heads


def of_myopic(directory: results.RunDirectory) -> float:
    """The last score with the myopic oracle at 1."""
    summary = directory.summary()
    low, myopic = (summary[f"reference_{role}"]["return"] for role in ("low", "myopic"))
    return float((summary["return_mean"] - low) / (myopic - low))


def heads(asked: Asked) -> Iterator[str]:
    """Flat against two towers."""
    yield f"## Heads: {ITEMS:,} items, {STEPS:,} environment steps\n"
    yield (
        "Return per session of 50, and the return over a random item's as a share of the myopic "
        "oracle's (in `full` it bounds nothing): interquartile mean over training seeds with its "
        "95% bootstrap interval. PPO with the same settings but for `agent.head`.\n"
    )
    yield "| scenario | head | seeds | return | of the myopic oracle | seconds |"
    yield "|---|---|---|---|---|---|"
    verdicts = []
    for scenario in SCENARIOS:
        values: dict[str, Estimate] = {}
        for head in ("flat", "two_tower"):
            words = [f"env.num_items={ITEMS}", f"env.scenario={scenario}"]
            words += [f"agent.head={head}", f"total_timesteps={STEPS}"]
            found = [
                asked.finished([*words, f"seed={seed}"], "end") for seed in asked.seeds["heads"]
            ]
            runs = [directory for directory in found if directory]
            if runs:
                values[head] = value = estimate([r.summary()["return_mean"] for r in runs])
                share = estimate([of_myopic(r) for r in runs])
                seconds = np.mean([r.summary()["train_seconds"] for r in runs])
                yield (
                    f"| {scenario} | {head} | {len(runs)} | {told(value, '.2f')} | "
                    f"{told(share)} | {seconds:.0f} |"
                )
        if len(values) == 2:
            apart = values["two_tower"].low > values["flat"].high
            gain = values["two_tower"].value - values["flat"].value
            intervals = "intervals apart" if apart else "intervals not apart"
            verdicts.append(f"- {scenario}: two towers {gain:+.2f} over flat, {intervals}.")
    yield from ["", *verdicts]


# unseen


def world_file(asked: Asked, signal: float | None) -> Path:
    """A world of which a shop may sell only the first items (they are in no order)."""
    env = {"num_items": ITEMS, "feature_signal": signal, "scenario": "static"}
    name = "default" if signal is None else f"{signal:g}"
    path = asked.runs_dir / "worlds" / f"items{ITEMS}_signal{name}.npz"
    if not path.is_file():
        with results.writing(path):
            worlds.write(make_env(env, 1).shop.world, path)
    return path


@dataclass(frozen=True)
class Lost:
    """Purchase probability that is lost against the best item of a group, mean over shoppers.

    Attributes:
        unseen: among the items that entered later.
        alike: among as many items that it learned with, mean of several such groups.
        known: among all that it learned with.
        random: by a random item of those that entered later.
    """

    unseen: float
    alike: float
    known: float
    random: float


def lost(directory: results.RunDirectory, path: Path) -> Lost:
    """What the agent of a run loses where all items of its world are sold."""
    config = directory.config()
    env = RecsysVectorEnv(
        JUDGED, **(config["env"] | {"world": str(path), "num_items": ITEMS, "scenario": "static"})
    )
    observation, _ = env.reset(seed=derive_seed(Role.EVALUATION, 0))
    oracle = MyopicOracle()
    oracle.bind(env)
    chance_NI = np.asarray(sigmoid(xp, oracle.score(observation)))
    score_NI = load_agent(config, directory.agent, env, "cpu").score(observation)

    def among(item: np.ndarray) -> float:
        chance, chosen_N = chance_NI[:, item], score_NI[:, item].argmax(axis=1)
        return float((chance.max(axis=1) - chance[np.arange(len(chance)), chosen_N]).mean())

    new, known = np.arange(KNOWN, ITEMS), np.arange(KNOWN)
    groups = known.reshape(-1, len(new))
    return Lost(
        unseen=among(new),
        alike=float(np.mean([among(group) for group in groups])),
        known=among(known),
        random=float((chance_NI[:, new].max(axis=1) - chance_NI[:, new].mean(axis=1)).mean()),
    )


def unseen(asked: Asked) -> Iterator[str]:
    """Items that enter the catalogue after training."""
    yield f"## Items never seen: {KNOWN:,} items in training, {ITEMS - KNOWN} enter afterwards\n"
    yield (
        "Purchase probability lost against the best item of the group, for "
        f"{JUDGED:,} shoppers in `static`: among the new items, and among items that the agent "
        f"learned with ({STEPS:,} steps), as many ({KNOWN // (ITEMS - KNOWN)} groups) or all. "
        "Mean over training seeds; the ratio is that of new to as many known items.\n"
    )
    yield (
        "| feature_signal | item_ids | seeds | new items | as many known | all known | "
        "a random new item | ratio |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for (name, signal), ids in product(SIGNALS.items(), IDS):
        path = world_file(asked, signal)
        words = [f'env.world="{path}"', f"env.num_items={KNOWN}", "env.scenario=static"]
        words += [f"total_timesteps={STEPS}", "agent.head=two_tower", f"agent.item_ids={ids}"]
        found = [asked.finished([*words, f"seed={seed}"], "end") for seed in asked.seeds["unseen"]]
        every = [lost(directory, path) for directory in found if directory]
        if every:
            columns = [
                estimate([getattr(one, key) for one in every], mean)
                for key in ("unseen", "alike", "known", "random")
            ]
            ratio = estimate([one.unseen / one.alike for one in every], mean)
            cells = " | ".join(f"{column.value:.3f}" for column in columns)
            yield f"| {name} | {ids} | {len(every)} | {cells} | {told(ratio, '.2f')} |"


# warm


@dataclass(frozen=True)
class Race:
    """One seed's warm and cold start."""

    cold_last: float
    warm_first: float
    warm_last: float
    cold_steps: float  # to ENOUGH of the cold start's last score
    warm_steps: float  # the scorer's included; infinite where it never got there


def race(asked: Asked, scenario: str, seed: int) -> Race | None:
    shop = [f"env.num_items={WARM_ITEMS}", f"env.scenario={scenario}", f"seed={seed}"]
    scorer = asked.finished(
        [*shop, "agent=scorer", SCORER, f"total_timesteps={SCORER_STEPS}"], "way"
    )
    steps = f"total_timesteps={WARM_STEPS}"
    cold = asked.finished([*shop, steps, "agent.head=two_tower"], "way")
    if scorer is None or cold is None:
        return None
    start = [f"agent.warm_start={scorer.path}", f"agent.temperature={TEMPERATURE[scenario]}"]
    warm = asked.finished([*shop, steps, *start], "way")
    if warm is None:
        return None
    (cold_E, cold_steps_E), (warm_E, warm_steps_E) = (
        (rows["normalised_score"], rows["timesteps"])
        for rows in (cold.evaluations(), warm.evaluations())
    )
    target = ENOUGH * cold_E[-1]
    return Race(
        float(cold_E[-1]),
        float(warm_E[0]),
        float(warm_E[-1]),
        float(steps_to(cold_E, cold_steps_E, target)),
        float(steps_to(warm_E, warm_steps_E, target)),
    )


def warm(asked: Asked) -> Iterator[str]:
    """PPO from a scorer's towers against PPO from nothing."""
    yield f"## Warm start: {WARM_ITEMS:,} items, {WARM_STEPS:,} environment steps\n"
    yield (
        f"A scorer learns from {SCORER_STEPS:,} steps, which count as the warm start's own. Steps "
        f"until {ENOUGH:.0%} of the score that the cold start of the same seed ends with. "
        "Interquartile means and 95% bootstrap intervals over training seeds; the ratios are "
        "per seed, of the cold start's steps to the same score, and of all its steps.\n"
    )
    yield (
        "| scenario | seeds | last score cold | scorer | last score warm | steps cold | "
        "steps warm | ratio | of all steps |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for scenario in SCENARIOS:
        found = [race(asked, scenario, seed) for seed in asked.seeds["warm"]]
        races = [one for one in found if one]
        if races:
            steps = [min(one.warm_steps, float(WARM_STEPS)) for one in races]
            ratio = [w / one.cold_steps for w, one in zip(steps, races, strict=True)]
            scores = [[getattr(one, key) for one in races] for key in KEYS]
            yield (
                f"| {scenario} | {len(races)} | "
                + " | ".join(told(estimate(score)) for score in scores)
                + f" | {told(estimate([one.cold_steps for one in races]), ',.0f')}"
                + f" | {told(estimate(steps), ',.0f')} | {told(estimate(ratio), '.2f')}"
                + f" | {told(estimate([s / WARM_STEPS for s in steps]), '.2f')} |"
            )
    yield WHY.format(**TEMPERATURE)


KEYS = ("cold_last", "warm_first", "warm_last")
WHY = """
Where greedy is right (`static`), a scorer is nearly all that there is to learn, and the policy may
follow it closely (temperature {static}). Where it is wrong (`full`), the scorer tells who likes
what, but not which tempting items cost trust; that is learned at the cold start's pace. So that
it sees more than what the scorer would show, the policy begins at temperature {full} there.
"""
WRITERS = {"heads": heads, "unseen": unseen, "warm": warm}


def main(argv: list[str]) -> None:
    """Do the runs that are missing, and write the page."""
    defaults = {"parts": ",".join(PARTS), "seeds": None, "draw": False}
    given = arguments(argv, defaults | {"runs_dir": "runs/towers", "out": "docs"})
    parts = [word.strip() for word in str(given["parts"]).split(",")]
    for part in parts:
        if part not in PARTS:
            raise unknown("part", part, PARTS)
    if not isinstance(given["draw"], bool):
        raise UsageError(f"draw must be true or false, got {given['draw']!r}")
    seeds = {part: numbers("seeds", given["seeds"] or SEEDS[part]) for part in PARTS}
    asked = Asked(seeds, given["draw"], Path(str(given["runs_dir"])))
    torch.set_num_threads(1)
    lines = [
        "# Large catalogues: two-tower heads, unseen items, warm starts\n",
        f"Made by `{command_of('towers', argv)}`; finished runs are kept, so that it goes on where "
        "it was stopped.\n",
    ]
    for part in PARTS:
        if part in parts:
            for line in WRITERS[part](asked):
                lines.append(line)
                print(line, file=sys.stderr, flush=True)
            lines.append("")
    target = Path(str(given["out"])) / "towers.md"
    results.write_text(target, "\n".join(lines))
    print(target)


if __name__ == "__main__":
    entry(main, __doc__)
