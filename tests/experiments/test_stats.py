"""Statistics against values worked by hand, brute force, invariances and known truths."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from experiments import stats
from experiments.stats import (
    Estimate,
    bootstrap,
    bootstrap_shoppers,
    curve_interval,
    interquartile_mean,
    mean,
    paired_difference,
    performance_profile,
    probability_of_improvement,
    resample_runs,
    sample_efficiency,
    steps_to,
)
from recenv.errors import UsageError

SCORES = arrays(
    float,
    st.tuples(st.integers(1, 6), st.integers(1, 4)),
    elements=st.integers(-100, 100).map(float),
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def column(*scores: float) -> np.ndarray:
    """Scores (R, 1) of runs of one task."""
    return np.array(scores, dtype=float)[:, None]


def bounds(estimate: Estimate) -> tuple[float, float]:
    return estimate.low, estimate.high


# --- interquartile mean ---


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ((7,), 7.0),
        ((0, 10), 5.0),  # half of each
        ((0, 1, 2, 90), 1.5),  # (1 + 2) / 2
        # 5 scores: the middle 2.5 lie between ranks 1.25 and 3.75: 3/4, 1 and 3/4 of a score
        ((90, 0, 4, 2, 8), (0.75 * 2 + 4 + 0.75 * 8) / 2.5),
        # 6 scores: between ranks 1.5 and 4.5
        ((0, 1, 2, 3, 5, 90), (0.5 * 1 + 2 + 3 + 0.5 * 5) / 3),
    ],
)
def test_interquartile_mean_by_hand(scores: tuple[float, ...], expected: float) -> None:
    assert interquartile_mean(column(*scores)) == pytest.approx(expected)


def test_interquartile_mean_pools_runs_and_tasks_and_keeps_leading_axes() -> None:
    score_RJ = np.array([[0.0, 1.0], [2.0, 90.0]])  # pooled: 0 1 2 90
    assert interquartile_mean(score_RJ) == 1.5
    stacked = np.stack([score_RJ, score_RJ + 1.0])
    np.testing.assert_allclose(interquartile_mean(stacked), [1.5, 2.5])


@given(SCORES)
def test_interquartile_mean_is_a_trimmed_mean(score_RJ: np.ndarray) -> None:
    """With every score taken four times, a quarter is a whole number of scores."""
    four = np.sort(np.repeat(score_RJ.ravel(), 4))
    trimmed = four[score_RJ.size : -score_RJ.size].mean()
    assert interquartile_mean(score_RJ) == pytest.approx(trimmed, abs=1e-9)


@given(SCORES, st.integers(-50, 50), st.sampled_from([0.5, 2.0, 10.0]), st.randoms())
def test_interquartile_mean_follows_shift_and_scale_and_no_order(
    score_RJ: np.ndarray, shift: int, scale: float, random: object
) -> None:
    shuffled = score_RJ.ravel().copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    value = interquartile_mean(score_RJ)
    moved = interquartile_mean(shift + scale * shuffled.reshape(score_RJ.shape))
    assert moved == pytest.approx(shift + scale * value, abs=1e-9)
    assert score_RJ.min() <= value <= score_RJ.max()


# --- bootstrap over runs ---


def test_runs_are_redrawn_within_their_task() -> None:
    score_RJ = np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    score_BRJ = resample_runs(score_RJ, rng(), resamples=4000)
    assert score_BRJ.shape == (4000, 3, 2)
    for task in range(2):
        values, counts = np.unique(score_BRJ[..., task], return_counts=True)
        np.testing.assert_array_equal(values, score_RJ[:, task])
        np.testing.assert_allclose(counts / counts.sum(), 1 / 3, atol=0.02)
    # the tasks are drawn apart: 3 of 9 combinations are rows of the data
    together = (score_BRJ[..., 1] == 10 * score_BRJ[..., 0]).mean()
    assert together == pytest.approx(1 / 3, abs=0.02)


def test_worlds_are_redrawn_whole() -> None:
    world_R = np.array([4, 7, 4, 7])
    score_BRJ = resample_runs(column(1, 2, 3, 4), rng(), world_R=world_R, resamples=1000)
    # drawn in pairs (1, 3) of world 4 and (2, 4) of world 7
    first_BG, second_BG = score_BRJ[:, 0::2, 0], score_BRJ[:, 1::2, 0]
    np.testing.assert_array_equal(second_BG, first_BG + 2)
    # two worlds: both, or one of them twice, the mean being 2, 2.5 or 3 by 1:2:1
    _, counts = np.unique(score_BRJ.mean(axis=(1, 2)), return_counts=True)
    np.testing.assert_allclose(counts / 1000, [0.25, 0.5, 0.25], atol=0.05)


def test_bootstrap_of_two_runs_by_hand() -> None:
    # The mean of runs 0 and 1 redrawn is 0, 1/2 or 1 by 1:2:1, so the percentiles are 0 and
    # 1, at 1/2 from the estimate. Stretched by sqrt(2 / 1) and by t with 1 degree of freedom
    # over the normal quantile: 12.7062 / 1.95996.
    estimate = bootstrap(column(0, 1), mean, rng())
    half = 0.5 * sqrt(2) * 12.7062 / 1.95996
    assert estimate.value == 0.5
    assert bounds(estimate) == pytest.approx((0.5 - half, 0.5 + half), rel=1e-5)


def test_bootstrap_stretches_by_the_effective_degrees_of_freedom() -> None:
    # Three runs of two tasks that vary alike: 2 * (3 - 1) = 4 degrees of freedom, t = 2.7764.
    score_RJ = np.array([[0.0, 5.0], [1.0, 6.0], [2.0, 7.0]])
    low, high = bounds(bootstrap(score_RJ, mean, rng()))
    drawn_B = mean(resample_runs(score_RJ, rng()))
    plain = np.quantile(drawn_B, [0.025, 0.975]) - 3.5
    factor = sqrt(3 / 2) * 2.77645 / 1.95996
    assert (low - 3.5, high - 3.5) == pytest.approx(tuple(factor * plain), rel=1e-4)
    # a task that does not vary gives none: 2 degrees of freedom, t = 4.3027
    score_RJ = np.array([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0]])
    low, high = bounds(bootstrap(score_RJ, mean, rng()))
    drawn_B = mean(resample_runs(score_RJ, rng()))
    plain = np.quantile(drawn_B, [0.025, 0.975]) - 3.0
    factor = sqrt(3 / 2) * 4.30265 / 1.95996
    assert (low - 3, high - 3) == pytest.approx(tuple(factor * plain), rel=1e-4)


@pytest.mark.parametrize(
    ("level", "freedom", "expected"),
    [  # a table of Student's t
        (0.95, 1, 12.706),
        (0.95, 2, 4.303),
        (0.95, 9, 2.262),
        (0.95, 30, 2.042),
        (0.99, 4, 4.604),
        (0.90, 10, 1.812),
        (0.95, 1e9, 1.960),
    ],
)
def test_students_t(level: float, freedom: float, expected: float) -> None:
    assert stats._student(level, freedom) == pytest.approx(expected, abs=6e-4)


def test_runs_that_agree_have_no_spread_and_one_run_tells_of_none() -> None:
    assert bootstrap(np.full((4, 3), 2.0), mean, rng()) == Estimate(2.0, 2.0, 2.0)
    alone = bootstrap(np.array([[1.0, 3.0]]), interquartile_mean, rng())
    assert alone.value == 2.0
    assert np.isnan(bounds(alone)).all()


@settings(max_examples=40)
@given(SCORES, st.integers(-50, 50), st.sampled_from([0.5, 2.0, 10.0]))
@pytest.mark.parametrize("statistic", [mean, interquartile_mean])
def test_intervals_follow_shift_and_scale(
    statistic: stats.Statistic, score_RJ: np.ndarray, shift: int, scale: float
) -> None:
    one = bootstrap(score_RJ, statistic, rng(), resamples=50)
    other = bootstrap(shift + scale * score_RJ, statistic, rng(), resamples=50)
    moved = shift + scale * np.array([one.value, one.low, one.high])
    np.testing.assert_allclose([other.value, other.low, other.high], moved, atol=1e-7)


@settings(max_examples=40)
@given(st.permutations(range(6)))
def test_the_order_of_runs_does_not_matter(order: list[int]) -> None:
    score_RJ, other_RJ = rng(1).normal(size=(2, 6, 3))
    world_R = np.array([0, 0, 1, 1, 2, 2])
    for worlds, mixed in ((None, None), (world_R, world_R[order])):
        one = bootstrap(score_RJ, interquartile_mean, rng(2), world_R=worlds)
        two = bootstrap(score_RJ[order], interquartile_mean, rng(3), world_R=mixed)
        assert two.value == pytest.approx(one.value)
        assert bounds(two) == pytest.approx(bounds(one), abs=0.15)  # other resamples
    one = probability_of_improvement(score_RJ, other_RJ, rng(), resamples=1)
    two = probability_of_improvement(score_RJ[order], other_RJ[order[::-1]], rng(), resamples=1)
    assert two.value == pytest.approx(one.value)


# --- shoppers within runs ---


def test_one_run_has_its_interval_over_shoppers() -> None:
    # 100 shoppers, half of them 0 and half 2: mean 1, standard error 1 / sqrt(100)
    return_RJN = np.tile([0.0, 2.0], 50)[None, None]
    estimate = bootstrap_shoppers(return_RJN, mean, rng(), resamples=5000)
    assert estimate.value == 1.0
    assert bounds(estimate) == pytest.approx((0.804, 1.196), abs=0.02)


def test_luck_that_all_runs_share_does_not_average_out() -> None:
    # Every run serves the same 100 shoppers alike: ten runs know no more than one.
    return_RJN = np.tile(np.tile([0.0, 2.0], 50), (10, 1, 1))
    same = bootstrap_shoppers(return_RJN, mean, rng(), resamples=5000)
    assert bounds(same) == pytest.approx((0.804, 1.196), abs=0.02)
    # In ten worlds they would be other shoppers: 1.96 * 0.1 / sqrt(10) = 0.062.
    apart = bootstrap_shoppers(return_RJN, mean, rng(), world_R=np.arange(10), resamples=5000)
    assert bounds(apart) == pytest.approx((0.938, 1.062), abs=0.01)
    # Two runs in each of five worlds: 1.96 * 0.1 / sqrt(5) = 0.088.
    pairs = bootstrap_shoppers(return_RJN, mean, rng(), world_R=np.arange(10) // 2, resamples=5000)
    assert bounds(pairs) == pytest.approx((0.912, 1.088), abs=0.01)


def test_shoppers_who_are_all_alike_leave_the_spread_of_runs() -> None:
    score_RJ = rng(1).normal(size=(6, 2))
    return_RJN = np.repeat(score_RJ[..., None], 5, axis=-1)
    for world_R in (None, np.arange(6), np.arange(6) // 2):
        plain = bootstrap(score_RJ, interquartile_mean, rng(2), world_R=world_R)
        nested = bootstrap_shoppers(return_RJN, interquartile_mean, rng(2), world_R=world_R)
        assert nested.value == pytest.approx(plain.value)
        assert bounds(nested) == pytest.approx(bounds(plain))


@pytest.mark.parametrize("world_R", [None, np.array([3, 3, 5, 5])])
def test_shoppers_are_redrawn_alike_in_pieces(
    world_R: np.ndarray | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    return_RJN = rng(1).normal(size=(4, 2, 30))
    whole = bootstrap_shoppers(return_RJN, mean, rng(), world_R=world_R)
    monkeypatch.setattr(stats, "CHUNK", 1)
    pieces = bootstrap_shoppers(return_RJN, mean, rng(), world_R=world_R)
    assert bounds(pieces) == pytest.approx(bounds(whole))


# --- comparisons ---


def test_paired_difference_by_hand() -> None:
    # run 0: (1 + 2 + 3) / 3 = 2, run 1: (3 + 4 + 5) / 3 = 4; mean 3
    difference_RJN = np.array([[[1.0, 2.0, 3.0]], [[3.0, 4.0, 5.0]]])
    y_RJN = rng(1).normal(scale=100.0, size=(2, 1, 3))
    estimate = paired_difference(y_RJN + difference_RJN, y_RJN, rng())
    assert estimate.value == pytest.approx(3.0)
    swapped = paired_difference(y_RJN, y_RJN + difference_RJN, rng())
    assert swapped.value == pytest.approx(-3.0)


def test_pairing_removes_what_both_agents_share() -> None:
    luck_RJN = np.tile(rng(1).normal(scale=20.0, size=(1, 2, 500)), (8, 1, 1))
    x_RJN = luck_RJN + 1.0 + rng(2).normal(scale=0.1, size=(8, 2, 1))
    paired = paired_difference(x_RJN, luck_RJN, rng())
    assert paired.low > 0.8
    assert paired.high < 1.2
    alone = bootstrap_shoppers(x_RJN, mean, rng())  # 1.96 * 20 / sqrt(2 * 500) = 1.24
    assert alone.high - alone.low > 2.0


def test_probability_of_improvement_by_hand() -> None:
    # task 0: X = 1, 3 against Y = 0, 2, 3: 1 > 0; 3 > 0, 3 > 2, 3 = 3: (1 + 2.5) / 6
    # task 1: X = 5, 5 against Y = 5, 5, 5: all ties, 1/2
    x_RJ = np.array([[1.0, 5.0], [3.0, 5.0]])
    y_SJ = np.array([[0.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    estimate = probability_of_improvement(x_RJ, y_SJ, rng())
    assert estimate.value == pytest.approx((3.5 / 6 + 0.5) / 2)
    assert 0.0 <= estimate.low <= estimate.value <= estimate.high <= 1.0


def test_probability_of_improvement_of_a_sure_winner_is_a_point() -> None:
    x_RJ = np.array([[2.0], [3.0]])
    assert probability_of_improvement(x_RJ, x_RJ - 5, rng()) == Estimate(1.0, 1.0, 1.0)
    assert probability_of_improvement(x_RJ, x_RJ[:1], rng()).value == pytest.approx(0.75)


@given(SCORES, st.integers(0, 2**32 - 1))
def test_probabilities_of_both_sides_sum_to_one(x_RJ: np.ndarray, seed: int) -> None:
    y_SJ = rng(seed).integers(-100, 100, size=(3, x_RJ.shape[1]))
    there = probability_of_improvement(x_RJ, y_SJ, rng(), resamples=1).value
    back = probability_of_improvement(y_SJ, x_RJ, rng(), resamples=1).value
    assert there + back == pytest.approx(1.0)
    # and only the order of scores counts
    warped = probability_of_improvement(x_RJ**3, y_SJ**3, rng(), resamples=1).value
    assert warped == pytest.approx(there)


def test_probability_of_improvement_takes_the_worlds_of_both_agents() -> None:
    x_RJ, y_SJ = rng(1).normal(size=(2, 10, 1))
    x_RJ, y_SJ = np.repeat(x_RJ[:5], 2, axis=0), np.repeat(y_SJ[:5], 2, axis=0)
    world_R = np.arange(10) // 2
    naive = probability_of_improvement(x_RJ, y_SJ, rng())
    honest = probability_of_improvement(x_RJ, y_SJ, rng(), world_R=world_R, world_S=world_R)
    assert honest.high - honest.low > 1.2 * (naive.high - naive.low)


# --- performance profile ---


def test_performance_profile_by_hand() -> None:
    # of 0, 0.5, 0.5, 1: all are above -1, 3 above 0, 1 above 0.5, none above 1
    score_RJ = np.array([[0.0, 0.5], [0.5, 1.0]])
    share_Q, low_Q, high_Q = performance_profile(score_RJ, np.array([-1, 0, 0.5, 1]), rng())
    assert share_Q.tolist() == [1.0, 0.75, 0.25, 0.0]
    assert (low_Q <= share_Q).all()
    assert (share_Q <= high_Q).all()
    assert low_Q.min() >= 0.0
    assert high_Q.max() <= 1.0
    assert (low_Q[0], high_Q[-1]) == (1.0, 0.0)


@given(SCORES)
def test_performance_profile_falls_and_integrates_to_the_mean(score_RJ: np.ndarray) -> None:
    # thresholds at midpoints of whole numbers: the sum of shares counts each score exactly
    threshold_Q = np.arange(-100, 100) + 0.5
    share_Q, _, _ = performance_profile(score_RJ, threshold_Q, rng(), resamples=1)
    assert (np.diff(share_Q) <= 0).all()
    assert share_Q.sum() - 100 == pytest.approx(score_RJ.mean())


# --- learning curves ---


def test_curve_interval_is_the_bootstrap_at_every_evaluation() -> None:
    # at the second evaluation both runs score 1; at the first 0 and 1, as worked out above
    centre_E, low_E, high_E = curve_interval(np.array([[0.0, 1.0], [1.0, 1.0]]), rng())
    half = 0.5 * sqrt(2) * 12.7062 / 1.95996
    np.testing.assert_allclose(centre_E, [0.5, 1.0])
    np.testing.assert_allclose(low_E, [0.5 - half, 1.0], rtol=1e-5)
    np.testing.assert_allclose(high_E, [0.5 + half, 1.0], rtol=1e-5)


def test_curve_interval_redraws_whole_runs_and_takes_any_statistic() -> None:
    score_R = rng(1).normal(size=7)
    score_RE = np.stack([score_R, score_R + 10], axis=1)
    centre_E, low_E, high_E = curve_interval(score_RE, rng(), statistic=interquartile_mean)
    assert centre_E[0] == pytest.approx(float(interquartile_mean(score_R[:, None])))
    for curve_E in (centre_E, low_E, high_E):
        assert curve_E[1] - curve_E[0] == pytest.approx(10.0)
    worlds = curve_interval(score_RE, rng(), world_R=np.arange(7))
    np.testing.assert_allclose(worlds, curve_interval(score_RE, rng()))


def test_steps_to_by_hand() -> None:
    steps_E = np.array([10, 100, 1000])
    # halfway between 0 at 10 and 1 at 100 steps: the geometric mean, 31.6
    assert steps_to(np.array([0.0, 1.0, 2.0]), steps_E, 0.5) == pytest.approx(sqrt(10 * 100))
    # a quarter of the way from 1 at 100 to 5 at 1000 steps
    assert steps_to(np.array([0.0, 1.0, 5.0]), steps_E, 2.0) == pytest.approx(100 * 10**0.25)
    # at an evaluation, before the first one, never, and for the first time of two
    curves = np.array([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0], [0.0, 0.9, 0.0], [0.0, 1.0, 0.0]])
    np.testing.assert_allclose(steps_to(curves, steps_E, 1.0), [100, 10, np.inf, 100])
    assert np.isnan(steps_to(np.array([0.0, np.nan, 2.0]), steps_E, 1.0))


@pytest.mark.filterwarnings("error")
def test_steps_to_is_linear_from_step_zero() -> None:
    steps_E = np.array([0, 100, 1000])
    curves = np.array([[0.0, 2.0, 3.0], [5.0, 5.0, 5.0], [0.0, 0.0, 0.0], [0.0, 0.0, 4.0]])
    expected = [50, 0, np.inf, 100 * 10**0.25]
    np.testing.assert_allclose(steps_to(curves, steps_E, 1.0), expected)
    assert steps_to(np.array([0.0]), np.array([0]), 1.0) == np.inf


def test_sample_efficiency_by_hand() -> None:
    steps_E = np.array([10, 100, 1000])
    score_RE = np.array([[0.0, 0.8, 1.0], [0.0, 0.2, 1.0]])
    # the mean curve is 0, 0.5, 1: it reaches 0.25 halfway to 100 steps
    estimate = sample_efficiency(score_RE, steps_E, 0.25, rng())
    assert estimate.value == pytest.approx(sqrt(1000))
    # the upper bound at 100 steps is 0.5 + 0.3 * sqrt(2) * 12.7062 / 1.95996 = 3.2504
    upper = 0.5 + 0.3 * sqrt(2) * 12.7062 / 1.95996
    assert estimate.low == pytest.approx(10 * 10 ** (0.25 / upper), rel=1e-5)
    # the lower one there is 0.5 - 2.7504, and at 1000 steps 1
    lower = 1.0 - upper
    part = (0.25 - lower) / (1.0 - lower)
    assert estimate.high == pytest.approx(100 * 10**part, rel=1e-5)


def test_sample_efficiency_of_a_target_out_of_reach_is_infinite() -> None:
    score_RE = np.array([[0.0, 0.5], [0.0, 0.9]])
    steps_E = np.array([10, 100])
    estimate = sample_efficiency(score_RE, steps_E, 0.8, rng())
    assert estimate.value == estimate.high == np.inf
    assert 10 < estimate.low < 100
    assert sample_efficiency(score_RE, steps_E, 50.0, rng()) == Estimate(np.inf, np.inf, np.inf)
    alone = sample_efficiency(score_RE[1:], steps_E, 0.45, rng())
    assert alone.value == pytest.approx(sqrt(1000))
    assert np.isnan(bounds(alone)).all()


# --- chance ---

CALLS: list[Callable[[np.random.Generator], object]] = [
    lambda r: bootstrap(rng(1).normal(size=(5, 3)), interquartile_mean, r),
    lambda r: bootstrap_shoppers(rng(1).normal(size=(5, 2, 9)), mean, r),
    lambda r: bootstrap_shoppers(rng(1).normal(size=(5, 2, 9)), mean, r, world_R=np.arange(5)),
    lambda r: paired_difference(*rng(1).normal(size=(2, 5, 2, 9)), r),
    lambda r: probability_of_improvement(*rng(1).normal(size=(2, 5, 3)), r),
    lambda r: np.array(
        performance_profile(rng(1).normal(size=(9, 3)), np.linspace(-1, 1), r)
    ).tolist(),
    lambda r: np.array(curve_interval(rng(1).normal(size=(5, 4)), r)).tolist(),
    lambda r: sample_efficiency(rng(1).random((5, 4)).cumsum(1), [1, 2, 3, 4], 1.0, r),
]


@pytest.mark.parametrize("call", CALLS)
def test_chance_comes_from_the_generator_alone(
    call: Callable[[np.random.Generator], object],
) -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, same, other = (str(call(rng(seed))) for seed in (0, 0, 1))
    assert first == same
    assert first != other
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_arguments_are_left_as_they_were() -> None:
    score_RJ = rng(1).normal(size=(4, 3))
    score_RJ.setflags(write=False)
    bootstrap(score_RJ, interquartile_mean, rng())
    performance_profile(score_RJ, np.zeros(1), rng())
    steps_to(score_RJ, np.array([1, 2, 3]), 0.5)


# --- coverage of a known truth ---

REPETITIONS = 500
RESAMPLES = 400  # enough for a percentile whose coverage is asked to a few percent


def covered(repeat: Callable[[np.random.Generator], tuple[float, float]], truth: float) -> float:
    """The share of repetitions whose interval holds the truth."""
    streams = rng(2024).spawn(REPETITIONS)
    found = np.array([repeat(stream) for stream in streams])
    return float(((found[:, 0] <= truth) & (truth <= found[:, 1])).mean())


def tasks(r: np.random.Generator, runs: int, count: int) -> np.ndarray:
    """Scores around 0, 1, ... with spreads from 0.2 to 0.6: symmetric about (count - 1) / 2."""
    spread = 0.2 + 0.4 * np.abs(np.linspace(-1, 1, count)) if count > 1 else 0.5
    return np.arange(count) + spread * r.normal(size=(runs, count))


@pytest.mark.parametrize("statistic", [mean, interquartile_mean])
@pytest.mark.parametrize(("runs", "count"), [(10, 5), (10, 1), (5, 5), (5, 1), (3, 3)])
def test_bootstrap_covers_the_truth(statistic: stats.Statistic, runs: int, count: int) -> None:
    def repeat(r: np.random.Generator) -> tuple[float, float]:
        return bounds(bootstrap(tasks(r, runs, count), statistic, r, resamples=RESAMPLES))

    # by symmetry both statistics of the population are the middle
    assert 0.90 <= covered(repeat, (count - 1) / 2) <= 0.99


def test_plain_percentiles_of_few_runs_do_not_cover() -> None:
    def repeat(r: np.random.Generator) -> tuple[float, float]:
        drawn_B = mean(resample_runs(r.normal(size=(5, 1)), r, resamples=RESAMPLES))
        low, high = np.quantile(drawn_B, [0.025, 0.975])
        return float(low), float(high)

    assert covered(repeat, 0.0) < 0.90


def test_bootstrap_over_worlds_covers_where_runs_are_alike() -> None:
    world_R = np.arange(10) // 2

    def repeat(r: np.random.Generator, worlds: np.ndarray | None) -> tuple[float, float]:
        score_R = r.normal(size=5)[world_R] + 0.3 * r.normal(size=10)
        return bounds(bootstrap(score_R[:, None], mean, r, world_R=worlds, resamples=RESAMPLES))

    assert 0.90 <= covered(lambda r: repeat(r, world_R), 0.0) <= 0.99
    assert covered(lambda r: repeat(r, None), 0.0) < 0.88


@pytest.mark.parametrize(("runs", "of_runs", "of_shoppers"), [(10, 1, 8), (10, 0.5, 20), (5, 2, 5)])
def test_two_level_bootstrap_covers_the_truth(
    runs: int, of_runs: float, of_shoppers: float
) -> None:
    """Luck common to all runs, the agent's own spread, and how each run serves each shopper."""

    def repeat(r: np.random.Generator) -> tuple[float, float]:
        luck_RJN = of_shoppers * r.normal(size=(1, 2, 100)) + r.normal(size=(runs, 2, 100))
        return_RJN = 7.0 + of_runs * r.normal(size=(runs, 2, 1)) + luck_RJN
        return bounds(bootstrap_shoppers(return_RJN, mean, r, resamples=RESAMPLES))

    assert 0.90 <= covered(repeat, 7.0) <= 0.99


def test_paired_difference_covers_the_truth_in_several_worlds() -> None:
    world_R = np.arange(10) // 2

    def repeat(r: np.random.Generator) -> tuple[float, float]:
        common_RJN = 10 * r.normal(size=(5, 1, 60))[world_R]
        y_RJN = common_RJN + r.normal(size=(10, 1, 1))
        gain_RJN = 2.0 + r.normal(size=(5, 1, 1))[world_R] + r.normal(size=(5, 1, 60))[world_R]
        x_RJN = common_RJN + gain_RJN + r.normal(size=(10, 1, 1))
        return bounds(paired_difference(x_RJN, y_RJN, r, world_R=world_R, resamples=RESAMPLES))

    assert 0.90 <= covered(repeat, 2.0) <= 0.99


def test_probability_of_improvement_covers_the_truth() -> None:
    def repeat(r: np.random.Generator) -> tuple[float, float]:
        x_RJ, y_SJ = 0.5 + r.normal(size=(10, 5)), r.normal(size=(8, 5))
        return bounds(probability_of_improvement(x_RJ, y_SJ, r, resamples=RESAMPLES))

    assert 0.90 <= covered(repeat, NormalDist().cdf(0.5 / sqrt(2))) <= 0.99


def test_performance_profile_covers_the_truth() -> None:
    def repeat(r: np.random.Generator) -> tuple[float, float]:
        score_RJ = r.normal(size=(10, 5))
        _, low_Q, high_Q = performance_profile(score_RJ, [0.3], r, resamples=RESAMPLES)
        return low_Q[0], high_Q[0]

    assert 0.90 <= covered(repeat, 1 - NormalDist().cdf(0.3)) <= 0.99


def test_learning_curve_and_sample_efficiency_cover_the_truth() -> None:
    steps_E = np.array([10, 100, 1000, 10_000])
    rise_E = np.arange(4) / 3  # linear in the logarithm of the steps

    def scores(r: np.random.Generator) -> np.ndarray:
        return rise_E * (1 + 0.2 * r.normal(size=(10, 1)))

    def curve(r: np.random.Generator) -> tuple[float, float]:
        _, low_E, high_E = curve_interval(scores(r), r, resamples=RESAMPLES)
        return low_E[2], high_E[2]

    def efficiency(r: np.random.Generator) -> tuple[float, float]:
        return bounds(sample_efficiency(scores(r), steps_E, 0.5, r, resamples=RESAMPLES))

    assert 0.90 <= covered(curve, 2 / 3) <= 0.99
    assert 0.90 <= covered(efficiency, sqrt(100 * 1000)) <= 0.99


# --- mistakes ---

GOOD, HOLED = np.ones((3, 2)), np.array([[1.0, np.nan], [1.0, 2.0]])
CUBE = np.ones((3, 2, 4))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: interquartile_mean(np.empty((0, 3))), "empty"),
        (lambda: interquartile_mean(HOLED), "missing"),
        (lambda: interquartile_mean(np.ones(3)), "2 axes"),
        (lambda: bootstrap(np.empty((0, 3)), mean, rng()), "empty"),
        (lambda: bootstrap(np.ones(3), mean, rng()), "2 axes"),
        (lambda: bootstrap(np.array([[1.0], [np.inf]]), mean, rng()), "infinite"),
        (lambda: bootstrap([[1.0, 2.0], [1.0]], mean, rng()), "full grid"),
        (lambda: bootstrap([["a"]], mean, rng()), "numbers"),
        (lambda: bootstrap(GOOD, mean, rng(), resamples=0), "resamples"),
        (lambda: bootstrap(GOOD, mean, rng(), level=95), "level"),
        (lambda: bootstrap(GOOD, mean, rng(), world_R=np.arange(2)), "each of 3 runs"),
        (lambda: bootstrap(GOOD, mean, rng(), world_R=np.array([0, 0, 1])), "as many runs"),
        (lambda: resample_runs(HOLED, rng()), "missing"),
        (lambda: bootstrap_shoppers(GOOD, mean, rng()), "3 axes"),
        (lambda: bootstrap_shoppers(CUBE[:1], mean, rng(), level=1.0), "level"),
        (lambda: paired_difference(CUBE, CUBE[:2], rng()), "same runs"),
        (lambda: paired_difference(CUBE, CUBE * np.nan, rng()), "y_RJN has"),
        (lambda: probability_of_improvement(GOOD, GOOD[:, :1], rng()), "common"),
        (lambda: probability_of_improvement(HOLED, GOOD, rng()), "x_RJ has"),
        (lambda: performance_profile(GOOD, np.empty(0), rng()), "threshold_Q is empty"),
        (lambda: performance_profile(GOOD, [np.nan], rng()), "threshold_Q has"),
        (lambda: curve_interval(HOLED, rng()), "score_RE has"),
        (lambda: curve_interval(np.ones((3, 0)), rng()), "empty"),
        (lambda: sample_efficiency(GOOD, [1, 2, 3], 0.5, rng()), "3 steps"),
        (lambda: steps_to(np.ones(2), [5, 5], 0.5), "ascend"),
        (lambda: steps_to(np.ones(2), [-1, 5], 0.5), "ascend"),
        (lambda: steps_to(np.ones(2), [1, 5], np.nan), "target"),
        (lambda: steps_to(np.ones(()), [1], 0.5), "steps"),
    ],
)
def test_mistakes_are_told_in_one_line(wrong: Callable[[], object], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        wrong()
    assert len(str(caught.value).splitlines()) == 1
