"""What a comparison measures, from the runs of groups, by ``experiments.stats``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from experiments import stats
from experiments.comparison.runs import Comparison, Group, Run
from experiments.stats import Estimate
from recenv.seeding import Role, generator

THRESHOLDS = 61  # of a performance profile


@dataclass(frozen=True)
class Improvement:
    """P(X > Y) of every pair of agents, with intervals; rows X, columns Y."""

    agents: list[str]
    value_XY: np.ndarray
    low_XY: np.ndarray
    high_XY: np.ndarray


def overall(comparison: Comparison, agent: str) -> Estimate | None:
    """Interquartile mean over all runs and cells; None without runs in every cell."""
    if agent not in comparison.everywhere:
        return None
    score_RJ, world_R = comparison.everywhere[agent]
    return stats.bootstrap(score_RJ, stats.interquartile_mean, _rng(), world_R=world_R)


def profile(
    comparison: Comparison, agent: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Thresholds (Q,), the share of runs that score more, and its bounds."""
    every = np.concatenate([score_RJ.ravel() for score_RJ, _ in comparison.everywhere.values()])
    low, high = np.quantile(every, 0.01), max(float(every.max()), 1.0)
    threshold_Q = np.linspace(min(low, 0.0) - 0.02, high + 0.02, THRESHOLDS)
    score_RJ, world_R = comparison.everywhere[agent]
    found = stats.performance_profile(score_RJ, threshold_Q, _rng(), world_R=world_R)
    return threshold_Q, *found


def improvement(comparison: Comparison) -> Improvement:
    """Every agent against every other, over the cells that all of them have runs in."""
    agents = list(comparison.everywhere)
    size = (len(agents), len(agents))
    value_XY, low_XY, high_XY = (np.full(size, 0.5) for _ in range(3))
    for x, left in enumerate(agents):
        for y, right in enumerate(agents[:x]):
            (x_RJ, world_R), (y_SJ, world_S) = (comparison.everywhere[a] for a in (left, right))
            found = stats.probability_of_improvement(
                x_RJ, y_SJ, _rng(), world_R=world_R, world_S=world_S
            )
            value_XY[x, y], value_XY[y, x] = found.value, 1 - found.value
            low_XY[x, y], high_XY[y, x] = found.low, 1 - found.low
            high_XY[x, y], low_XY[y, x] = found.high, 1 - found.high
    return Improvement(agents, value_XY, low_XY, high_XY)


def steps_to(group: Group, target: float) -> Estimate | None:
    """Environment steps to a normalised score; None of agents that do not learn."""
    if not group.learns:
        return None
    steps_E, score_RE = group.curve_RE
    return stats.sample_efficiency(
        score_RE, steps_E, target, _rng(),
        statistic=stats.interquartile_mean, world_R=group.world_R,
    )  # fmt: skip


def difference(group: Group, baseline: Group) -> Estimate | None:
    """How much more a session earns than with the baseline, in runs that share both seeds.

    An agent that does not learn plays alike for every training seed. In one world, luck is
    common to all runs: there shoppers are redrawn too, where their returns are known.
    """
    pairs = _pairs(group, baseline)
    if not pairs:
        return None
    world_R = np.array([y.world for _, y in pairs])
    one_world = len(set(world_R.tolist())) == 1
    returns = [(x.return_N, y.return_N) for x, y in pairs]
    if one_world and all(x is not None and y is not None for x, y in returns):
        x_RJN, y_RJN = (np.stack(part)[:, None] for part in zip(*returns, strict=True))
        return stats.paired_difference(x_RJN, y_RJN, _rng())
    more_R = np.array([x.last("return_mean") - y.last("return_mean") for x, y in pairs])
    counts = np.unique(world_R, return_counts=True)[1]
    if len(set(counts.tolist())) > 1:
        return Estimate(float(more_R.mean()), np.nan, np.nan)
    return stats.bootstrap(more_R[:, None], stats.mean, _rng(), world_R=world_R)


def _pairs(group: Group, baseline: Group) -> list[tuple[Run, Run]]:
    """Runs of both, in the same world with the same training seed where it matters."""
    if group.learns and not baseline.learns:
        return [(x, y) for y, x in _pairs(baseline, group)]
    exact = {(run.world, run.seed): run for run in group.runs}
    any_seed = {} if group.learns else {run.world: run for run in group.runs}
    found = []
    for run in baseline.runs:
        partner = exact.get((run.world, run.seed)) or any_seed.get(run.world)
        if partner is not None:
            found.append((partner, run))
    return found


def simple_regret(group: Group) -> tuple[np.ndarray, np.ndarray]:
    """Steps (E,) and (R, E) how much less a session earns than under the high reference."""
    steps_E, return_RE = group.over_steps("return_mean")
    high_R1 = np.array([[run.reference("high")] for run in group.runs])
    return steps_E, high_R1 - return_RE


def served_regret(group: Group) -> np.ndarray | None:
    """(R, E) the same of the sessions served since the evaluation before; None if not logged."""
    if not group.learns:
        return None
    rows = []
    steps_E, _ = group.curve_RE
    for run in group.runs:
        own_E, served_E = run.evaluations["timesteps"], run.evaluations["training_return_mean"]
        known_E = np.isfinite(served_E)
        if not known_E.any():
            return None
        rows.append(run.reference("high") - np.interp(steps_E, own_E[known_E], served_E[known_E]))
    return np.array(rows)


def cumulative_regret(group: Group) -> tuple[np.ndarray, np.ndarray]:
    """Steps (E,) and regret (R, E) of all that was served until then.

    In sessions of T steps: where shoppers leave early there were more sessions than that.
    """
    steps_E, _ = group.curve_RE
    regret_RE = served_regret(group)
    assert regret_RE is not None, "ask served_regret first"
    sessions_E = np.diff(steps_E, prepend=0.0) / group.runs[0].horizon
    return steps_E, np.maximum(np.cumsum(regret_RE * sessions_E, axis=1), 1e-9)


def regret_slope(group: Group) -> float | None:
    """Slope of log cumulative regret over log steps in the last decade, mean over runs.

    1 is an agent that goes on losing as much, 0.5 the square root of the theory of bandits.
    """
    if served_regret(group) is None:
        return None
    steps_E, regret_RE = cumulative_regret(group)
    late_E = steps_E >= steps_E[-1] / 10
    if late_E.sum() < 3:
        return None
    slope_R = np.polyfit(np.log(steps_E[late_E]), np.log(regret_RE[:, late_E].T), 1)[0]
    return float(slope_R.mean())


def over_runs(
    group: Group, value_RE: np.ndarray, log: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Interquartile mean (E,) over runs and the bounds of its band, of logarithms on request."""
    found = stats.curve_interval(
        np.log(value_RE) if log else value_RE, _rng(),
        statistic=stats.interquartile_mean, world_R=group.world_R,
    )  # fmt: skip
    centre_E, low_E, high_E = (np.exp(part) for part in found) if log else found
    return centre_E, low_E, high_E


def effective_items(group: Group) -> np.ndarray:
    """As how many items, equally often recommended, the recommendations amount to, (R,)."""
    items_R: np.ndarray = np.exp(group.last_R("entropy"))
    return items_R


def category_shares(group: Group) -> np.ndarray | None:
    """Shares (K,) of categories, in each run from the largest down, mean over runs."""
    rows = []
    for run in group.runs:
        if run.shown is None:
            return None
        shown_I, category_I = run.shown
        share_K = np.bincount(category_I, weights=shown_I) / max(shown_I.sum(), 1)
        rows.append(np.sort(share_K)[::-1])
    most = max(len(row) for row in rows)
    mean_K: np.ndarray = np.mean([np.pad(row, (0, most - len(row))) for row in rows], axis=0)
    return mean_K


def _rng() -> np.random.Generator:
    """The same figures from the same files."""
    return generator(Role.STATISTICS, 0)
