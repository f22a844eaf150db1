"""Statistics for few runs: robust means, bootstrap intervals, comparisons of two agents.

Pure functions of arrays and an explicit generator, after Agarwal et al. 2021, "Deep
Reinforcement Learning at the Edge of the Statistical Precipice". Axis letters beside those
of the glossary (N shoppers, R runs, E evaluation points):

    J  tasks, the strata: scenarios, worlds (T is the horizon)
    S  runs of the other agent
    B  resamples of the bootstrap
    G  groups that are resampled whole: worlds with all their runs, or single runs
    M  runs in a group
    Q  thresholds of a performance profile

**What is resampled.** Runs, within each task apart. Runs of one world are alike, so where
the runs come from several worlds, pass ``world_R``, the world seed of every run: worlds
are then resampled whole. Taken for independent, ten runs in five worlds would have
intervals that are too narrow by up to a factor of 1.4.

**Why intervals are wider than plain percentiles.** The spread of a bootstrap over R runs
is too small by sqrt((R - 1) / R), and percentiles ignore that the spread itself was
estimated: at a nominal 95% they cover the mean of a normal score in 75% (R=3), 84% (R=5)
and 91% (R=10) of cases with one task. The percentiles are therefore stretched about the
estimate by the ratio of unbiased to bootstrap standard error and by that of Student's
t to the normal quantile, with degrees of freedom after Satterthwaite 1946 (as for a mean,
whatever the statistic). That is the expanded percentile interval of Hesterberg 2015, "What
Teachers Should Know About the Bootstrap", as a factor; it tends to 1 with many runs (1.22
for R=10 and one task, 1.07 for ten runs of each of seven tasks that vary alike). What it
cannot mend: statistics that saturate (every run above a threshold: the interval is a
point), and the plain mean where one run in many fails badly: ten runs of one task may
well hold no such run. There the interquartile mean asks what the data can answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from recenv.errors import UsageError

# Of scores (..., R, J) over the last two axes: (...).
Statistic = Callable[[np.ndarray], np.ndarray]

RESAMPLES = 2000
LEVEL = 0.95
CHUNK = 2**21  # shoppers drawn at once


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval; the bounds are NaN where one run tells of no spread."""

    value: float
    low: float
    high: float


def mean(score_RJ: np.ndarray) -> np.ndarray:
    """The mean of all scores (..., R, J): (...)."""
    return np.asarray(score_RJ.mean(axis=(-2, -1)))


def interquartile_mean(score_RJ: np.ndarray) -> np.ndarray:
    """The mean of the middle half of all scores, runs and tasks pooled (Agarwal et al. 2021).

    Exact where a quarter of the scores is no whole number: a score on the boundary counts
    by the part of it that lies inside.

    Args:
        score_RJ: (..., R, J).

    Returns:
        (...).

    Raises:
        UsageError: there are no scores, or some are not finite.
    """
    score_RJ = np.asarray(score_RJ, dtype=float)
    score_RJ = _checked("score_RJ", score_RJ, max(score_RJ.ndim, 2))
    pooled = np.sort(score_RJ.reshape(*score_RJ.shape[:-2], -1), axis=-1)
    count = pooled.shape[-1]
    rank = np.arange(count)
    inside = np.minimum(rank + 1, 0.75 * count) - np.maximum(rank, 0.25 * count)
    return np.asarray(pooled @ np.clip(inside, 0.0, 1.0) / (0.5 * count))


def bootstrap(
    score_RJ: np.ndarray,
    statistic: Statistic,
    rng: np.random.Generator,
    *,
    world_R: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Estimate:
    """A statistic with its stratified bootstrap interval: runs redrawn within each task.

    Args:
        score_RJ: (R, J) scores.
        statistic: takes (..., R, J) to (...), whatever the order of the runs.
        rng: the only source of chance.
        world_R: (R,) the world seed of every run, if there are several.
        resamples: B.
        level: of confidence.

    Raises:
        UsageError: a score is missing, or ``world_R`` does not fit.
    """
    score_RJ = _checked("score_RJ", score_RJ, 2)
    member_GM = _groups(world_R, len(score_RJ))
    score_BRJ = _resample(score_RJ, member_GM, rng, resamples)
    value, draw_B = statistic(score_RJ), statistic(score_BRJ)
    factor = _stretch(level, score_RJ[member_GM].mean(axis=1))
    return _estimate(value, *_interval(value, factor * (draw_B - value), level))


def resample_runs(
    score_RJ: np.ndarray,
    rng: np.random.Generator,
    *,
    world_R: np.ndarray | None = None,
    resamples: int = RESAMPLES,
) -> np.ndarray:
    """Stratified resamples (B, R, J) of scores (R, J): runs redrawn within each task."""
    score_RJ = _checked("score_RJ", score_RJ, 2)
    return _resample(score_RJ, _groups(world_R, len(score_RJ)), rng, resamples)


def bootstrap_shoppers(
    return_RJN: np.ndarray,
    statistic: Statistic,
    rng: np.random.Generator,
    *,
    world_R: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Estimate:
    """A statistic of mean returns with its two-level interval: runs outer, shoppers inner.

    Runs of one world are judged on the same shoppers with the same luck, and what is
    common to them does not average out over runs. So shoppers are redrawn once for all runs
    of a world (the bootstrap of crossed effects, Owen 2007), and anew for each world drawn.
    Over several worlds the luck of the shoppers is in the spread between worlds already and
    thus counted twice: a little wide, never narrow. One run alone has an interval
    over shoppers, which says nothing about other training seeds. Only the outer level is
    stretched, for only of runs there are few.

    Args:
        return_RJN: (R, J, N) return of every shopper, normalised or not.
        statistic: takes mean returns (..., R, J) to (...), whatever the order of the runs.
        rng: the only source of chance.
        world_R: (R,) the world seed of every run, if there are several.
        resamples: B.
        level: of confidence.

    Raises:
        UsageError: a return is missing, or ``world_R`` does not fit.
    """
    return_RJN = _checked("return_RJN", return_RJN, 3)
    member_GM = _groups(world_R, len(return_RJN))
    score_RJ = return_RJN.mean(axis=-1)
    group_BGJ = _draw(member_GM, score_RJ.shape[1], rng, resamples)
    outer_B = statistic(_taken(score_RJ, member_GM, group_BGJ))
    redrawn = _redrawn_for_all if _one_world(world_R) else _redrawn_for_each
    both_BRJ = np.stack(
        [
            redrawn(return_RJN[:, j], member_GM, group_BGJ[..., j], rng)
            for j in range(score_RJ.shape[1])
        ],
        axis=-1,
    )
    value = statistic(score_RJ)
    factor = _stretch(level, score_RJ[member_GM].mean(axis=1))
    factor = 1.0 if len(member_GM) == 1 else factor  # one run: nothing but shoppers is redrawn
    change_B = factor * (outer_B - value) + (statistic(both_BRJ) - outer_B)
    return _estimate(value, *_interval(value, change_B, level))


def paired_difference(
    x_RJN: np.ndarray,
    y_RJN: np.ndarray,
    rng: np.random.Generator,
    *,
    world_R: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Estimate:
    """How much more X earns than Y on the same shoppers with the same luck.

    Run r of X and run r of Y share the world and the evaluation's seed, so that entry
    [r, j, n] of both is one shopper; the differences are averaged over shoppers, then runs
    and tasks, and redrawn as in ``bootstrap_shoppers``.

    Args:
        x_RJN: (R, J, N) return of every shopper under X.
        y_RJN: (R, J, N) the same under Y.
        rng, world_R, resamples, level: as in ``bootstrap_shoppers``.

    Raises:
        UsageError: the shapes differ, or a return is missing.
    """
    x_RJN, y_RJN = _checked("x_RJN", x_RJN, 3), _checked("y_RJN", y_RJN, 3)
    if x_RJN.shape != y_RJN.shape:
        raise UsageError(
            f"pairs need the same runs, tasks and shoppers: "
            f"x_RJN has shape {x_RJN.shape}, y_RJN {y_RJN.shape}"
        )
    return bootstrap_shoppers(
        x_RJN - y_RJN, mean, rng, world_R=world_R, resamples=resamples, level=level
    )


def probability_of_improvement(
    x_RJ: np.ndarray,
    y_SJ: np.ndarray,
    rng: np.random.Generator,
    *,
    world_R: np.ndarray | None = None,
    world_S: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Estimate:
    """P(X > Y) + P(X = Y) / 2 for a run of X and one of Y, averaged over tasks.

    The Mann-Whitney statistic per task (Agarwal et al. 2021); the runs of X and of Y are
    redrawn independently of each other. Where X wins every pairing the interval is a
    point: then read the paired difference.

    Args:
        x_RJ: (R, J) scores of X.
        y_SJ: (S, J) scores of Y on the same tasks.
        rng: the only source of chance.
        world_R, world_S: the world seeds of both agents' runs, if there are several.
        resamples: B.
        level: of confidence.

    Raises:
        UsageError: the numbers of tasks differ, a score is missing, or worlds do not fit.
    """
    x_RJ, y_SJ = _checked("x_RJ", x_RJ, 2), _checked("y_SJ", y_SJ, 2)
    if x_RJ.shape[1] != y_SJ.shape[1]:
        raise UsageError(f"x_RJ has {x_RJ.shape[1]} tasks, y_SJ {y_SJ.shape[1]}: take common ones")
    x_GM, y_GM = _groups(world_R, len(x_RJ)), _groups(world_S, len(y_SJ))
    win_RSJ = _win(x_RJ, y_SJ)
    x_BRJ = _resample(x_RJ, x_GM, rng, resamples)
    y_BSJ = _resample(y_SJ, y_GM, rng, resamples)
    draw_B = _win(x_BRJ, y_BSJ).mean(axis=(1, 2, 3))
    win_RJ, win_SJ = win_RSJ.mean(axis=1), win_RSJ.mean(axis=0)
    factor = _stretch(level, win_RJ[x_GM].mean(axis=1), win_SJ[y_GM].mean(axis=1))
    value = win_RSJ.mean()
    low, high = _interval(value, factor * (draw_B - value), level)
    return _estimate(value, np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0))


def performance_profile(
    score_RJ: np.ndarray,
    threshold_Q: np.ndarray,
    rng: np.random.Generator,
    *,
    world_R: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The share of runs and tasks that score above each threshold (Agarwal et al. 2021).

    Args:
        score_RJ: (R, J) scores.
        threshold_Q: (Q,) thresholds, tau.
        rng, world_R, resamples, level: as in ``bootstrap``.

    Returns:
        The profile (Q,) and the bounds (Q,) of its pointwise band.

    Raises:
        UsageError: a score or threshold is missing, or ``world_R`` does not fit.
    """
    score_RJ = _checked("score_RJ", score_RJ, 2)
    threshold_Q = _checked("threshold_Q", threshold_Q, 1)
    member_GM = _groups(world_R, len(score_RJ))
    score_BRJ = _resample(score_RJ, member_GM, rng, resamples)
    # one threshold after the other: all at once would be (B, R, J, Q)
    draw_BQ = np.stack([mean(score_BRJ > threshold) for threshold in threshold_Q], axis=-1)
    share_Q = (score_RJ[..., None] > threshold_Q).mean(axis=(0, 1))
    factor = _stretch(level, score_RJ[member_GM].mean(axis=1))
    low_Q, high_Q = _interval(share_Q, factor * (draw_BQ - share_Q), level)
    return share_Q, np.clip(low_Q, 0.0, 1.0), np.clip(high_Q, 0.0, 1.0)


def curve_interval(
    score_RE: np.ndarray,
    rng: np.random.Generator,
    *,
    statistic: Statistic = mean,
    world_R: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A learning curve over runs, with its pointwise band; whole runs are redrawn.

    Args:
        score_RE: (R, E) the score of every run at every evaluation.
        statistic: of the scores at one evaluation, (..., R, 1) to (...).
        rng, world_R, resamples, level: as in ``bootstrap``.

    Returns:
        centre_E, low_E, high_E: (E,) each.

    Raises:
        UsageError: a score is missing, or ``world_R`` does not fit.
    """
    score_RE = _checked("score_RE", score_RE, 2)
    member_GM = _groups(world_R, len(score_RE))
    group_BG = _draw(member_GM, 1, rng, resamples)[..., 0]
    score_BRE = score_RE[member_GM[group_BG].reshape(resamples, -1)]
    centre_E = statistic(score_RE.T[..., None])
    draw_BE = statistic(np.swapaxes(score_BRE, 1, 2)[..., None])
    factor = _factor(level, np.ones(1), np.array([len(member_GM)]))
    low_E, high_E = _interval(centre_E, factor * (draw_BE - centre_E), level)
    return centre_E, low_E, high_E


def sample_efficiency(
    score_RE: np.ndarray,
    timesteps_E: np.ndarray,
    target: float,
    rng: np.random.Generator,
    *,
    statistic: Statistic = mean,
    world_R: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Estimate:
    """Environment steps after which the learning curve over runs first reaches a target.

    The bounds are where the upper and the lower bound of ``curve_interval`` reach it:
    infinite where the data do not exclude that the target is never reached, NaN of one run.

    Args:
        score_RE: (R, E) the score of every run at every evaluation.
        timesteps_E: (E,) environment steps, ascending.
        target: for example 0.9 where the high reference scores 1.
        rng, statistic, world_R, resamples, level: as in ``curve_interval``.

    Raises:
        UsageError: a score is missing, steps do not ascend, or shapes do not fit.
    """
    curves = curve_interval(
        score_RE, rng, statistic=statistic, world_R=world_R, resamples=resamples, level=level
    )
    centre, low, high = (steps_to(curve_E, timesteps_E, target) for curve_E in curves)
    return _estimate(centre, high, low)


def steps_to(score_E: np.ndarray, timesteps_E: np.ndarray, target: float) -> np.ndarray:
    """Steps at which curves first reach a target, linear in the logarithm of the steps.

    Between an evaluation at step 0 and the next one it is linear in the steps. A curve that
    begins at or above the target has reached it by its first evaluation.

    Args:
        score_E: (..., E) curves.
        timesteps_E: (E,) environment steps, ascending, not negative.
        target: the score to reach.

    Returns:
        (...); infinite where the target is never reached, NaN where the curve has NaN.

    Raises:
        UsageError: steps do not ascend, shapes do not fit, or the target is not finite.
    """
    timesteps_E = _checked("timesteps_E", timesteps_E, 1)
    score_E = np.asarray(score_E, dtype=float)
    if score_E.shape[-1:] != timesteps_E.shape:
        raise UsageError(f"curves of shape {score_E.shape} do not have {len(timesteps_E)} steps")
    if timesteps_E[0] < 0 or (np.diff(timesteps_E) <= 0).any():
        raise UsageError("timesteps_E must ascend from 0 or more")
    if not np.isfinite(target):
        raise UsageError(f"target must be a finite score, got {target}")
    reached_E = score_E >= target
    after = reached_E.argmax(axis=-1)
    before = np.maximum(after - 1, 0)
    start, end = timesteps_E[before], timesteps_E[after]
    left = np.take_along_axis(score_E, before[..., None], axis=-1)[..., 0]
    right = np.take_along_axis(score_E, after[..., None], axis=-1)[..., 0]
    part = np.clip((target - left) / np.where(right > left, right - left, 1.0), 0.0, 1.0)
    ratio = end / np.where(start > 0, start, 1.0)
    steps = np.where(start > 0, start * ratio**part, end * part)
    steps = np.where(after > 0, steps, timesteps_E[0])
    steps = np.where(reached_E.any(axis=-1), steps, np.inf)
    return np.where(np.isnan(score_E).any(axis=-1), np.nan, steps)


def _win(x_RJ: np.ndarray, y_SJ: np.ndarray) -> np.ndarray:
    """1 where X scores more than Y, 0 where less, 1/2 where alike: (..., R, S, J)."""
    return np.asarray(0.5 + 0.5 * np.sign(x_RJ[..., :, None, :] - y_SJ[..., None, :, :]))


def _draw(
    member_GM: np.ndarray, tasks: int, rng: np.random.Generator, resamples: int
) -> np.ndarray:
    """Groups drawn with replacement, for each task apart: (B, G, J)."""
    if resamples < 1:
        raise UsageError(f"resamples must be at least 1, got {resamples}")
    groups = len(member_GM)
    return rng.integers(groups, size=(resamples, groups, tasks))


def _taken(score_RJ: np.ndarray, member_GM: np.ndarray, group_BGJ: np.ndarray) -> np.ndarray:
    """The scores (B, R, J) of the runs of groups drawn."""
    row_BGMJ = np.moveaxis(member_GM[group_BGJ], -1, 2)
    row_BRJ = row_BGMJ.reshape(len(group_BGJ), *score_RJ.shape)
    return np.asarray(score_RJ[row_BRJ, np.arange(score_RJ.shape[1])])


def _resample(
    score_RJ: np.ndarray, member_GM: np.ndarray, rng: np.random.Generator, resamples: int
) -> np.ndarray:
    """Scores (B, R, J) with groups of runs redrawn within each task."""
    return _taken(score_RJ, member_GM, _draw(member_GM, score_RJ.shape[1], rng, resamples))


def _redrawn_for_all(
    return_RN: np.ndarray, member_GM: np.ndarray, group_BG: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Mean returns (B, R) of drawn runs, shoppers redrawn once for all of them."""
    shoppers = return_RN.shape[1]
    found = []
    for chunk_bG in _chunks(group_BG, shoppers):
        resamples = len(chunk_bG)
        drawn_bN = rng.integers(shoppers, size=(resamples, shoppers))
        cell_bN = drawn_bN + shoppers * np.arange(resamples)[:, None]
        count_bN = np.bincount(cell_bN.ravel(), minlength=cell_bN.size).reshape(cell_bN.shape)
        score_bR = count_bN.astype(float) @ return_RN.T / shoppers
        found.append(np.take_along_axis(score_bR, member_GM[chunk_bG, 0], axis=1))
    return np.concatenate(found)


def _redrawn_for_each(
    return_RN: np.ndarray, member_GM: np.ndarray, group_BG: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Mean returns (B, R) of drawn runs, shoppers redrawn for each group drawn."""
    shoppers = return_RN.shape[1]
    found = []
    for chunk_bG in _chunks(group_BG, return_RN.size):
        drawn_bGN = rng.integers(shoppers, size=(*chunk_bG.shape, shoppers))
        run_bGM1 = member_GM[chunk_bG][..., None]
        score_bGM = return_RN[run_bGM1, drawn_bGN[:, :, None, :]].mean(axis=-1)
        found.append(score_bGM.reshape(len(chunk_bG), -1))
    return np.concatenate(found)


def _chunks(group_BG: np.ndarray, each: int) -> list[np.ndarray]:
    """Resamples in pieces of about ``CHUNK`` numbers, at ``each`` a resample."""
    size = max(1, CHUNK // each)
    return [group_BG[start : start + size] for start in range(0, len(group_BG), size)]


def _interval(value: Any, change_B: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """The estimate moved by the outer percentiles of its changes (B, ...)."""
    tail = (1.0 - level) / 2
    low, high = np.quantile(change_B, [tail, 1.0 - tail], axis=0)
    return value + low, value + high


def _estimate(value: Any, low: Any, high: Any) -> Estimate:
    return Estimate(float(value), float(low), float(high))


def _stretch(level: float, *samples: np.ndarray) -> float:
    """The factor for independent samples, each (groups, strata), whose means are added."""
    variance = np.concatenate([sample.var(axis=0) for sample in samples])
    count = np.concatenate([np.full(sample.shape[1], len(sample)) for sample in samples])
    # var() divides by G: a mean's unbiased variance divides by G - 1
    return _factor(level, variance / np.maximum(count - 1, 1), count)


def _factor(level: float, variance: np.ndarray, count: np.ndarray) -> float:
    """By how much to stretch percentiles, from the variances of means of ``count`` groups.

    Unbiased over bootstrap standard error, times Student's t over the normal quantile.
    NaN if some mean is of one group, 1 if nothing varies.
    """
    if not 0 < level < 1:
        raise UsageError(f"level must lie between 0 and 1, got {level}")
    if count.min() < 2:
        return float("nan")
    total = variance.sum()
    if total <= 0:
        return 1.0
    share = variance / total  # so that squares do not underflow
    freedom = 1.0 / (share**2 / (count - 1)).sum()
    inflation = 1.0 / np.sqrt((share * (count - 1) / count).sum())
    normal = NormalDist().inv_cdf((1.0 + level) / 2)
    return float(inflation * _student(level, freedom) / normal)


def _student(level: float, freedom: float) -> float:
    """The two-sided quantile of Student's t for real degrees of freedom of at least 1.

    Under t = sqrt(freedom) tan(angle) the density is proportional to cos(angle) to the
    power of freedom - 1, which a grid integrates.
    """
    angle = np.linspace(0.0, np.pi / 2, 8193)
    density = np.cos(angle) ** (min(freedom, 1e4) - 1.0)
    mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    quantile = np.interp(level * mass[-1], mass, angle)
    return float(np.sqrt(min(freedom, 1e4)) * np.tan(quantile))


def _one_world(world_R: np.ndarray | None) -> bool:
    return world_R is None or len(np.unique(world_R)) == 1


def _groups(world_R: np.ndarray | None, runs: int) -> np.ndarray:
    """The runs (G, M) that are drawn together: those of a world, or each alone if one world."""
    if world_R is not None and np.shape(world_R) != (runs,):
        raise UsageError(f"world_R must name a world for each of {runs} runs")
    if world_R is None or _one_world(world_R):
        return np.arange(runs)[:, None]
    _, world_R, count_G = np.unique(world_R, return_inverse=True, return_counts=True)
    if len(set(count_G.tolist())) > 1:
        raise UsageError(f"every world must have as many runs, got {count_G.tolist()}")
    return np.argsort(world_R, kind="stable").reshape(len(count_G), -1)


def _checked(name: str, array: Any, axes: int) -> np.ndarray:
    """The array in floats, or a UsageError that says what is wrong with it."""
    try:
        checked = np.asarray(array, dtype=float)
    except (TypeError, ValueError):
        raise UsageError(f"{name} must be numbers in a full grid: is a run shorter?") from None
    if checked.ndim != axes:
        raise UsageError(f"{name} must have {axes} axes, got shape {checked.shape}")
    if checked.size == 0:
        raise UsageError(f"{name} is empty: its shape is {checked.shape}")
    if not np.isfinite(checked).all():
        raise UsageError(f"{name} has numbers that are missing or infinite: leave their runs out")
    return checked
