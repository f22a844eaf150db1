"""Large catalogues: two-tower heads against flat ones, items never seen, and warm starts.

    python -m experiments.towers                          # all of it, hours
    python -m experiments.towers parts=heads seeds=0,1,2
    python -m experiments.towers draw=true                # the page from the runs that are there

Arguments:
    parts     heads, unseen, warm, separated by commas (all); the page keeps its other sections
    seeds     training seeds, separated by commas (heads: 0,1,2; unseen: 0 to 9; warm: 0,1,2,3,4)
    draw      true: run nothing, write the page from the runs that are finished
    runs_dir  where the runs go (runs/towers); finished ones are used, the others are done
    out       where the page goes (docs)

heads: PPO with either head at 2,000 items, 500 thousand steps, in ``static`` and ``full``.
unseen: PPO with two towers learns in a shop of which a tenth of the items is missing, another
tenth for every seed, so that by ten seeds every item is missing once; they enter its catalogue
afterwards, and its choice among them is compared with that of the agents that knew them, by the
purchase probability that is lost against the best of them.
warm: at 1,000 items a scorer learns from 10 thousand steps, PPO begins with its towers, and is
compared with PPO that begins with nothing, the scorer's steps counted.

Writes <out>/towers.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from array_api_compat import numpy as xp

from agents.references import MyopicOracle
from experiments import results
from experiments.build import configuration, load_agent, make_env
from experiments.cli import arguments, entry, numbers
from experiments.run import run, run_directory
from experiments.stats import Estimate, bootstrap, interquartile_mean, steps_to
from recenv import world as worlds
from recenv.catalogue import ARRAYS
from recenv.dynamics import sigmoid
from recenv.errors import UsageError, unknown
from recenv.seeding import Role, derive_seed, generator

# the parts, and how the titles of their sections begin
PARTS = {"heads": "Heads", "unseen": "Items never seen", "warm": "Warm start"}
SEEDS = {"heads": "0,1,2", "unseen": "0,1,2,3,4,5,6,7,8,9", "warm": "0,1,2,3,4"}
SCENARIOS = ("static", "full")
ITEMS, STEPS = 2_000, 500_000  # of heads and unseen
# of both heads, chosen on world seeds from 100 on: both gain by them
LARGE = ("agent.anneal=0.05", "agent.num_envs=256")
GROUPS = 10  # of items, one of which is missing
KNOWN = ITEMS - ITEMS // GROUPS
# to new items, chosen on world seed 100
OPEN = (*LARGE, "agent.weight_decay=0.3", "agent.ent_coef=0.02", "agent.item_ids=false")
SIGNALS = {"1": 1.0, "default": None}  # feature_signal
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
    found: list[Path] = field(default_factory=list)  # the runs that were looked at

    def finished(self, words: list[str], points: str) -> results.RunDirectory | None:
        """The run of a configuration, done if it is missing; None where only drawing."""
        config = configuration([*PLAIN, POINTS[points], *words], self.runs_dir)
        directory = run_directory(config) if self.draw else run(config, "resume")
        if not directory.finished:
            return None
        self.found.append(directory.path)
        return directory


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
    yield f"## {PARTS['heads']}: {ITEMS:,} items, {STEPS:,} environment steps\n"
    yield (
        "Return per session of 50, and the return over a random item's as a share of the myopic "
        "oracle's (in `full` it bounds nothing): interquartile mean over training seeds with its "
        "95% bootstrap interval. PPO with the same settings but for `agent.head`: "
        f"`{' '.join(LARGE)}`, chosen on other worlds. The item tower of the one also learns to "
        "tell what was bought (`agent.item_epochs=5`); the other has none that could.\n"
    )
    yield "| scenario | head | seeds | return | of the myopic oracle |"
    yield "|---|---|---|---|---|"
    verdicts = []
    for scenario in SCENARIOS:
        values: dict[str, Estimate] = {}
        for head in ("flat", "two_tower"):
            words = [f"env.num_items={ITEMS}", f"env.scenario={scenario}"]
            words += [f"agent.head={head}", f"total_timesteps={STEPS}", *LARGE]
            found = [
                asked.finished([*words, f"seed={seed}"], "end") for seed in asked.seeds["heads"]
            ]
            runs = [directory for directory in found if directory]
            if runs:
                values[head] = value = estimate([r.summary()["return_mean"] for r in runs])
                share = estimate([of_myopic(r) for r in runs])
                yield (
                    f"| {scenario} | {head} | {len(runs)} | {told(value, '.2f')} | {told(share)} |"
                )
        if len(values) == 2:
            apart = values["two_tower"].low > values["flat"].high
            gain = values["two_tower"].value - values["flat"].value
            intervals = "intervals apart" if apart else "intervals not apart"
            verdicts.append(f"- {scenario}: two towers {gain:+.2f} over flat, {intervals}.")
    yield from ["", *verdicts]


# unseen


def shop(signal: float | None) -> dict[str, Any]:
    """A shop that sells all items."""
    return {"num_items": ITEMS, "feature_signal": signal, "scenario": "static"}


def group(number: int) -> np.ndarray:
    """The items of a group (they are in no order)."""
    return np.array_split(np.arange(ITEMS), GROUPS)[number]


def world_file(asked: Asked, signal: float | None, missing: int) -> Path:
    """The world of that shop with a group moved to the end: one may sell what comes before."""
    name = "default" if signal is None else f"{signal:g}"
    path = asked.runs_dir / "worlds" / f"items{ITEMS}_signal{name}_without{missing}.npz"
    if not path.is_file():
        world = make_env(shop(signal), 1).shop.world
        last = group(missing)
        order = np.concatenate([np.setdiff1d(np.arange(ITEMS), last), last])
        moved = {key: getattr(world.catalogue, key)[order] for key in ARRAYS}
        scale = world.catalogue.log_price_standard  # summed in another order it would differ
        catalogue = replace(world.catalogue, **moved, log_price_scale=scale)
        with results.writing(path):
            worlds.write(replace(world, catalogue=catalogue), path)
    return path


def lost(
    runs: list[results.RunDirectory], signal: float | None, groups: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Purchase probability lost against the best item of a group, mean over shoppers.

    Returns:
        (R, G) by the agents of runs, where all items are sold; (G,) by a random item of the group.
    """
    env = make_env(shop(signal), JUDGED)
    observation, _ = env.reset(seed=derive_seed(Role.EVALUATION, 0))
    oracle = MyopicOracle()
    oracle.bind(env)
    chance_NI = np.asarray(sigmoid(xp, oracle.score(observation)))
    best_GN = [chance_NI[:, item].max(axis=1) for item in groups]
    lost_RG = np.empty((len(runs), len(groups)))
    for r, directory in enumerate(runs):
        score_NI = load_agent(directory.config(), directory.agent, env, "cpu").score(observation)
        for g, item in enumerate(groups):
            chosen_N = item[score_NI[:, item].argmax(axis=1)]
            lost_RG[r, g] = (best_GN[g] - chance_NI[np.arange(JUDGED), chosen_N]).mean()
    mean_G = [chance_NI[:, item].mean() for item in groups]
    return lost_RG, np.mean(best_GN, axis=1) - mean_G


@dataclass(frozen=True)
class Crossed:
    """What is lost among the group of items that one run missed.

    Attributes:
        unseen: by that run.
        seen: by the runs that missed another group, their mean.
        random: by a random item of the group.
    """

    unseen: float
    seen: float
    random: float


def crossed(asked: Asked, signal: float | None) -> list[Crossed]:
    """For every run that is there, if they missed more than one group."""
    runs, missing = [], []
    for seed in asked.seeds["unseen"]:
        number = seed % GROUPS
        words = [f'env.world="{world_file(asked, signal, number)}"', f"env.num_items={KNOWN}"]
        words += ["env.scenario=static", "agent.head=two_tower", *OPEN]
        found = asked.finished([*words, f"total_timesteps={STEPS}", f"seed={seed}"], "end")
        if found:
            runs.append(found)
            missing.append(number)
    if len(set(missing)) < 2:
        return []
    lost_RG, random_G = lost(runs, signal, list(map(group, range(GROUPS))))
    saw_RG = np.not_equal.outer(missing, np.arange(GROUPS))
    return [
        Crossed(lost_RG[r, g], lost_RG[saw_RG[:, g], g].mean(), random_G[g])
        for r, g in enumerate(missing)
    ]


def unseen(asked: Asked) -> Iterator[str]:
    """Items that enter the catalogue after training."""
    yield f"## {PARTS['unseen']}: {KNOWN:,} items in training, {ITEMS - KNOWN} enter afterwards\n"
    yield UNSEEN
    yield "| feature_signal | seeds | unseen | seen | a random item | unseen / seen |"
    yield "|---|---|---|---|---|---|"
    for name, signal in SIGNALS.items():
        every = crossed(asked, signal)
        if every:
            columns = [[getattr(one, key) for one in every] for key in ("unseen", "seen", "random")]
            cells = " | ".join(f"{np.mean(column):.3f}" for column in columns)
            ratio = told(times(columns[0], columns[1]), ".2f")
            yield f"| {name} | {len(every)} | {cells} | {ratio} |"


def times(one_R: list[float], other_R: list[float]) -> Estimate:
    """How many times as large one mean over runs is as another; runs are resampled whole."""
    pair_R2 = np.stack([one_R, other_R], axis=1)
    return bootstrap(
        pair_R2,
        lambda score_R2: score_R2[..., 0].mean(axis=-1) / score_R2[..., 1].mean(axis=-1),
        generator(Role.STATISTICS, 0),
        world_R=np.arange(len(pair_R2)),
    )


UNSEEN = (
    f"Purchase probability lost against the best item of a group of {ITEMS - KNOWN}, for "
    f"{JUDGED:,} shoppers in `static`, after {STEPS:,} steps; each training seed misses another "
    "group. *Seen*: what the runs that missed another group lose among the very items that this "
    "one never saw. Where all ten groups have been missed once, its mean is also what agents lose "
    "among the groups that they learned with. Means over training seeds, and the ratio of the two "
    "with its 95% bootstrap interval over seeds. PPO with "
    f"`agent.head=two_tower {' '.join(OPEN)}`: weights that decay and items without "
    "embeddings of their own say less of what was seen alone, and who tries more learns of more.\n"
)


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
    yield f"## {PARTS['warm']}: {WARM_ITEMS:,} items, {WARM_STEPS:,} environment steps\n"
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
    target = Path(str(given["out"])) / "towers.md"
    page = sections(target)
    for part in parts:
        lines = []
        for line in WRITERS[part](asked):
            lines.append(line)
            print(line, file=sys.stderr, flush=True)
        if not asked.found:
            raise UsageError(f"no run of {part} is finished in {asked.runs_dir}: leave out draw")
        asked.found.clear()
        page[part] = "\n".join(lines).strip() + "\n"
    results.write_text(target, "\n".join([HEAD, *(page[part] for part in PARTS if part in page)]))
    print(target)


HEAD = """# Large catalogues: two-tower heads, unseen items, warm starts

Made by `python -m experiments.towers`, each section by itself where `parts=` names it; finished
runs are kept, so that it goes on where it was stopped.
"""


def sections(target: Path) -> dict[str, str]:
    """The sections of the page as it was, by the parts that wrote them; none where there is none.

    Raises:
        UsageError: it cannot be read, or there is no place for it.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        text = target.read_text() if target.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{target} cannot be a page: {error}: choose another out") from None
    found = [f"## {section.strip()}\n" for section in f"\n{text}".split("\n## ")[1:]]
    return {
        part: section
        for part, title in PARTS.items()
        for section in found
        if section.startswith(f"## {title}")
    }


if __name__ == "__main__":
    entry(main, __doc__)
