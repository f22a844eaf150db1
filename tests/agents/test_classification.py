"""Measures of a classifier: values worked by hand, and scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import calibration, metrics
from sklearn.linear_model import LogisticRegression

from agents import classification
from recenv.errors import UsageError


def rows(count: int = 3000, digits: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (few ``digits``: many ties), and purchases that come true a little less."""
    rng = np.random.default_rng(0)
    probability_N = np.round(rng.beta(0.8, 1.5, size=count), digits)
    return probability_N, (rng.random(count) < 0.9 * probability_N).astype(float)


@pytest.mark.parametrize("digits", [9, 1])
def test_as_scikit_learn_has_them(digits: int) -> None:
    probability_N, bought_N = rows(digits=digits)
    found = classification.measures(probability_N, bought_N)
    told_N = probability_N >= 0.5
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(bought_N, told_N))
    assert found["precision"] == pytest.approx(metrics.precision_score(bought_N, told_N))
    assert found["recall"] == pytest.approx(metrics.recall_score(bought_N, told_N))
    assert found["auc"] == pytest.approx(metrics.roc_auc_score(bought_N, probability_N))
    clipped_N = np.clip(probability_N, 1e-7, 1 - 1e-7)
    assert found["log_loss"] == pytest.approx(metrics.log_loss(bought_N, clipped_N))
    assert tuple(found) == classification.MEASURES


def test_bins_are_those_of_scikit_learn() -> None:
    probability_N, bought_N = rows(3000)
    told_B, happened_B, count_B = classification.reliability(probability_N, bought_N)
    share_B, mean_B = calibration.calibration_curve(
        bought_N, probability_N, n_bins=15, strategy="quantile"
    )
    np.testing.assert_allclose(told_B, mean_B, atol=2e-3)  # cuts may fall a row elsewhere
    np.testing.assert_allclose(happened_B, share_B, atol=6e-3)
    assert count_B.sum() == 3000
    assert np.ptp(count_B) <= 1


@pytest.mark.parametrize("digits", [9, 1])
def test_curve_is_that_of_scikit_learn(digits: int) -> None:
    probability_N, bought_N = rows(300, digits)
    false, true = classification.roc(probability_N, bought_N)
    expected = metrics.roc_curve(bought_N, probability_N, drop_intermediate=False)
    np.testing.assert_allclose(false, expected[0])
    np.testing.assert_allclose(true, expected[1])
    assert np.trapezoid(true, false) == pytest.approx(classification.auc(probability_N, bought_N))


def test_worked_by_hand() -> None:
    probability_N, bought_N = np.array([0.9, 0.6, 0.4, 0.4]), np.array([1, 0, 1, 0])
    found = classification.measures(probability_N, bought_N)
    assert found["accuracy"] == 0.5
    assert found["precision"] == 0.5
    assert found["recall"] == 0.5
    assert found["auc"] == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert found["log_loss"] == pytest.approx(-np.log([0.9, 0.4, 0.4, 0.6]).mean())
    assert found["ece"] == pytest.approx((0.1 + 0.6 + 0.6 + 0.4) / 4)  # a row is a bin
    # two bins: (0.4, 0.4) were bought half the time, (0.6, 0.9) too
    assert classification.ece(probability_N, bought_N, 2) == pytest.approx((0.1 + 0.25) / 2)


def test_what_cannot_be_told_is_nan() -> None:
    found = classification.measures(np.array([0.1, 0.2]), np.zeros(2))
    assert np.isnan(found["precision"])
    assert np.isnan(found["recall"])
    assert np.isnan(found["auc"])
    assert found["accuracy"] == 1.0


def test_certainty_that_was_wrong_costs_a_finite_loss() -> None:
    assert classification.log_loss(np.ones(1), np.zeros(1)) == pytest.approx(16.118, abs=1e-3)


def test_noise_of_the_calibration_error_is_as_told() -> None:
    rng = np.random.default_rng(1)
    probability_N = np.full(15_000, 0.3)
    found = [
        classification.ece(probability_N, rng.random(15_000) < probability_N) for _ in range(30)
    ]
    assert np.mean(found) == pytest.approx(0.8 * (0.21 * 15 / 15_000) ** 0.5, rel=0.15)


def test_platt_undoes_a_slope_and_an_offset() -> None:
    rng = np.random.default_rng(2)
    true_N = rng.normal(size=20_000)
    bought_N = (rng.random(20_000) < classification.sigmoid(true_N)).astype(float)
    told_N = 3.0 * true_N + 2.0  # too sure, and too high
    slope, offset = classification.platt(told_N, bought_N)
    assert slope == pytest.approx(1 / 3, rel=0.06)
    assert offset == pytest.approx(-2 / 3, abs=0.06)
    model = LogisticRegression(C=1e9).fit(told_N[:, None], bought_N)
    assert slope == pytest.approx(float(model.coef_[0, 0]), rel=1e-2)
    assert offset == pytest.approx(float(model.intercept_[0]), abs=1e-2)
    calibrated_N = classification.sigmoid(slope * told_N + offset)
    assert classification.ece(calibrated_N, bought_N) < 0.012
    assert classification.ece(classification.sigmoid(told_N), bought_N) > 0.15


def test_platt_leaves_alone_what_it_cannot_mend() -> None:
    log_odds_N = np.array([-1.0, 0.0, 2.0, 3.0])
    assert classification.platt(log_odds_N, np.ones(4)) == (1.0, 0.0)
    assert classification.platt(log_odds_N, np.array([1, 1, 0, 0])) == (1.0, 0.0)
    slope, offset = classification.platt(log_odds_N, np.array([0, 0, 1, 1]))  # told apart
    assert slope > 0.5
    assert slope * 1.0 + offset == pytest.approx(0.0, abs=0.01)  # the cut lies between them


@pytest.mark.parametrize(
    ("told", "bought"),
    [
        (np.ones(2), np.ones(3)),
        (np.ones(0), np.ones(0)),
        (np.array([0.5, np.nan]), np.ones(2)),
        (np.ones(2), np.array([0.0, 2.0])),
        (np.ones((2, 2)), np.ones((2, 2))),
    ],
)
def test_nonsense_is_refused(told: np.ndarray, bought: np.ndarray) -> None:
    with pytest.raises(UsageError):
        classification.measures(told, bought)
