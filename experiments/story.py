"""The story that the scenarios promise, trained and checked.

    python -m experiments.story
    python -m experiments.story runs_dir=runs/story worlds=0 seeds=0

Arguments:
    runs_dir  where the runs go (runs/story); finished ones are used, the others are done
    worlds    world seeds, separated by commas (0,1,2,3)
    seeds     training seeds (0,1,2)
    claims    only claims that hold this text, e.g. claims=static
    out       the page (<runs_dir>/story.md)

Every claim is a difference between two agents, or between an agent and a reference, paired
over the shoppers of one evaluation, and has to hold in every world and for every seed.
Exits with 1 if a claim fails.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments import results
from experiments.build import configuration
from experiments.cli import arguments, entry, numbers
from experiments.run import run
from recenv.errors import UsageError


@dataclass(frozen=True)
class Claim:
    """``better`` earns more than ``worse`` by ``margin`` on the normalised scale.

    ``worse`` is an agent, or one of the references "low", "myopic", "high".
    """

    scenario: str
    better: str
    worse: str
    margin: float = 0.0
    timesteps: int = 600_000

    def __str__(self) -> str:
        margin = f"{self.margin:+.2f}" if self.margin else ""
        return f"{self.scenario}: {self.better} > {self.worse}{margin}"


CLAIMS = (
    Claim("static", "scorer", "myopic", -0.05, 200_000),
    Claim("static", "linucb", "myopic", -0.05, 200_000),
    Claim("full", "rotation", "low"),
    Claim("full", "myopic_oracle", "rotation"),
    Claim("full", "ppo", "myopic"),
    Claim("full", "index_policy", "myopic", 0.25),
    Claim("full", "ppo", "index_policy"),
    Claim("full", "dqn", "index_policy", -0.15),
    Claim("full", "ppo", "scorer"),
    Claim("full", "dqn", "scorer"),
    Claim("trust", "ppo", "scorer"),
    Claim("trust", "dqn", "scorer"),
    Claim("churn", "ppo", "myopic"),
)
UNSEEDED = (
    "myopic_oracle",
    "index_policy",
    "planning_oracle",
)  # the same whatever the training seed is


@dataclass(frozen=True)
class Verdict:
    """One claim in one world with one seed, on the normalised scale."""

    world: int
    seed: int
    difference: float
    half: float  # of the 95% interval over shoppers
    commits: frozenset[str]  # of the code that made the runs

    def holds(self, margin: float) -> bool:
        return self.difference > margin


def config(scenario: str, agent: str, world: int, seed: int, steps: int, runs_dir: Path) -> Any:
    """The configuration of one run of the story."""
    words = [f"agent={agent}", f"env.scenario={scenario}", f"env.world_seed={world}"]
    words += [f"seed={seed}", f"total_timesteps={steps}", "progress=false"]
    return configuration(words, runs_dir)


def judge(claim: Claim, world: int, seed: int, runs_dir: Path) -> Verdict:
    """Do the runs of a claim, where they are missing, and measure the difference."""

    def finished(agent: str) -> results.RunDirectory:
        own = 0 if agent in UNSEEDED else seed
        asked = config(claim.scenario, agent, world, own, claim.timesteps, runs_dir)
        return run(asked, "resume")

    runs = [finished(claim.better)]
    summary = runs[0].summary()
    low, high = (summary[f"reference_{role}"]["return"] for role in ("low", "high"))
    difference_E = runs[0].returns()
    if claim.worse in ("low", "myopic", "high"):
        difference_E = difference_E - summary[f"reference_{claim.worse}"]["return"]
    else:
        runs.append(finished(claim.worse))
        difference_E = difference_E - runs[1].returns()
    difference_E = difference_E / max(high - low, 1e-9)
    half = 1.96 * difference_E.std(ddof=1) / np.sqrt(len(difference_E))
    commits = frozenset(str(each.versions().get("git")) for each in runs)
    return Verdict(world, seed, float(difference_E.mean()), float(half), commits)


DEFAULTS: dict[str, Any] = {
    "runs_dir": "runs/story",
    "worlds": "0,1,2,3",
    "seeds": "0,1,2",
    "claims": "",
    "out": None,
}
HEADLINE = """# What the scenarios promise, claim by claim

`python -m experiments.story` trains and checks them. Differences of normalised scores (0: random
items; 1: the planning oracle), world by world and in each seed by seed, over the shoppers of one
evaluation; the smallest with its 95% interval over shoppers: of the paired differences of two
agents, or of an agent's returns against the mean of a reference ("low" is random, "myopic" the
myopic oracle).

"""


def main(argv: list[str]) -> None:
    """Check every claim in every world with every seed."""
    asked = arguments(argv, DEFAULTS)
    runs_dir = Path(str(asked["runs_dir"]))
    worlds, seeds = numbers("worlds", asked["worlds"]), numbers("seeds", asked["seeds"])
    claims = [claim for claim in CLAIMS if str(asked["claims"] or "") in str(claim)]
    if not claims:
        raise UsageError(f"no claim holds {asked['claims']!r}: {'; '.join(map(str, CLAIMS))}")
    lines = ["| claim | holds | smallest difference | differences |", "| --- | --- | --- | --- |"]
    failed = 0
    commits: set[str] = set()
    for claim in claims:
        verdicts = [judge(claim, world, seed, runs_dir) for world in worlds for seed in seeds]
        good = sum(verdict.holds(claim.margin) for verdict in verdicts)
        failed += good < len(verdicts)
        commits.update(*(verdict.commits for verdict in verdicts))
        lines.append(_line(claim, verdicts, good))
        print(lines[-1], file=sys.stderr)
    table = "\n".join(lines)
    out = Path(str(asked["out"] or runs_dir / "story.md"))
    made = f"Made by code of commit {', '.join(sorted(commits))}."
    results.write_text(out, f"{HEADLINE}{table}\n\n{made}\n")
    print(table)
    if failed:
        print(f"{failed} of {len(claims)} claims do not hold", file=sys.stderr)
        sys.exit(1)


def _line(claim: Claim, verdicts: list[Verdict], good: int) -> str:
    least = min(verdicts, key=lambda verdict: verdict.difference)
    every = " ".join(f"{verdict.difference:+.2f}" for verdict in verdicts)
    return (
        f"| {claim} | {good} of {len(verdicts)} | "
        f"{least.difference:+.3f} ± {least.half:.3f} | {every} |"
    )


if __name__ == "__main__":
    entry(main, __doc__)
