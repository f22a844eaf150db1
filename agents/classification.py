"""How well purchase probabilities fit what happened: measures of a binary classifier.

Pure functions of arrays (N,): the probability or score that was told for a recommendation,
and whether it was bought (0 or 1). Axis letter beside those of the glossary: B, bins of the
reliability diagram.
"""

from __future__ import annotations

import numpy as np

from recenv.errors import UsageError

BINS = 15  # of the expected calibration error
LEAST = 1e-7  # a probability of 0 or 1 that was wrong costs no more than this one
MEASURES = ("accuracy", "precision", "recall", "auc", "log_loss", "ece")


def measures(probability_N: np.ndarray, bought_N: np.ndarray) -> dict[str, float]:
    """All of ``MEASURES``; accuracy, precision and recall call 0.5 and more a purchase.

    NaN is what cannot be told: precision where no purchase was foretold, recall where there
    was none, AUC where all rows went one way.

    Raises:
        UsageError: there are no rows, or the arrays do not fit.
    """
    probability_N, bought_N = _checked(probability_N, bought_N)
    told_N, was_N = probability_N >= 0.5, bought_N > 0.5
    hits = float((told_N & was_N).sum())
    return {
        "accuracy": float((told_N == was_N).mean()),
        "precision": _share(hits, float(told_N.sum())),
        "recall": _share(hits, float(was_N.sum())),
        "auc": auc(probability_N, bought_N),
        "log_loss": log_loss(probability_N, bought_N),
        "ece": ece(probability_N, bought_N),
    }


def log_loss(probability_N: np.ndarray, bought_N: np.ndarray) -> float:
    """Mean negative log likelihood, in nats."""
    probability_N, bought_N = _checked(probability_N, bought_N)
    told_N = np.clip(probability_N, LEAST, 1.0 - LEAST)
    return float(-np.where(bought_N > 0.5, np.log(told_N), np.log1p(-told_N)).mean())


def auc(score_N: np.ndarray, bought_N: np.ndarray) -> float:
    """How often a purchase has a higher score than a refusal; ties count half.

    The area under the ROC curve, by ranks (Hanley & McNeil 1982). NaN where all rows went
    one way.
    """
    score_N, bought_N = _checked(score_N, bought_N)
    _, tie_N, count = np.unique(score_N, return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2  # of equals the mean
    was_N = bought_N > 0.5
    bought, refused = int(was_N.sum()), int((~was_N).sum())
    if not bought or not refused:
        return float("nan")
    above = float(rank[tie_N][was_N].sum()) - bought * (bought + 1) / 2
    return above / (bought * refused)


def roc(score_N: np.ndarray, bought_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ROC curve: shares of refusals and of purchases at or above each score, from 0 to 1."""
    score_N, bought_N = _checked(score_N, bought_N)
    order_N = np.argsort(-score_N, kind="stable")
    was_N = bought_N[order_N] > 0.5
    last_N = np.append(np.diff(score_N[order_N]) != 0, True)  # equals pass together
    shares = (np.cumsum(of)[last_N] / max(of.sum(), 1) for of in (~was_N, was_N))
    false, true = (np.insert(share, 0, 0.0) for share in shares)
    return false, true


def reliability(
    probability_N: np.ndarray, bought_N: np.ndarray, bins: int = BINS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows in order of their probability, in bins of equal mass.

    Returns:
        mean probability told (B,), share bought (B,) and rows (B,) of each bin.
    """
    probability_N, bought_N = _checked(probability_N, bought_N)
    order_N = np.argsort(probability_N, kind="stable")
    parts = np.array_split(order_N, min(bins, len(order_N)))
    told_B = np.array([probability_N[part].mean() for part in parts])
    happened_B = np.array([bought_N[part].mean() for part in parts])
    return told_B, happened_B, np.array([len(part) for part in parts])


def ece(probability_N: np.ndarray, bought_N: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: how far the told probability is from the share bought,
    on average over bins of equal mass (Naeini et al. 2015; Nixon et al. 2019 for the bins).

    Chance alone gives a calibrated model about 0.8 sqrt(p (1 - p) bins / N): 0.004 for 100
    thousand rows.
    """
    told_B, happened_B, count_B = reliability(probability_N, bought_N, bins)
    return float(np.average(np.abs(told_B - happened_B), weights=count_B))


def platt(
    log_odds_N: np.ndarray, bought_N: np.ndarray, most_steps: int = 50
) -> tuple[float, float]:
    """Slope > 0 and offset that make log odds fit what happened (Platt 1999, his targets).

    By Newton's method on the log loss. (1, 0) where the rows went one way, or where the
    scores are upside down: then there is nothing to calibrate.
    """
    log_odds_N, bought_N = _checked(log_odds_N, bought_N)
    bought, refused = float(bought_N.sum()), float((1 - bought_N).sum())
    if not bought or not refused:
        return 1.0, 0.0
    # targets a little short of 0 and 1, so that rows that are told apart perfectly have a fit
    target_N = np.where(bought_N > 0.5, (bought + 1) / (bought + 2), 1 / (refused + 2))
    design_N2 = np.column_stack([log_odds_N, np.ones_like(log_odds_N)])
    fit_2 = np.array([0.0, np.log((bought + 1) / (refused + 1))])

    def loss(of_2: np.ndarray) -> float:
        told_N = design_N2 @ of_2
        return float((np.logaddexp(0.0, told_N) - target_N * told_N).mean())

    for _ in range(most_steps):
        told_N = sigmoid(design_N2 @ fit_2)
        weight_N = np.maximum(told_N * (1 - told_N), 1e-9)
        hessian_22 = (design_N2 * weight_N[:, None]).T @ design_N2 + 1e-6 * np.eye(2)
        step_2 = np.linalg.solve(hessian_22, design_N2.T @ (told_N - target_N))
        cut = 1.0
        while loss(fit_2 - cut * step_2) > loss(fit_2) and cut > 1e-6:
            cut /= 2
        fit_2 = fit_2 - cut * step_2
        if np.abs(step_2).max() < 1e-8:
            break
    slope, offset = (float(value) for value in fit_2)
    return (slope, offset) if slope > 0 and np.isfinite(fit_2).all() else (1.0, 0.0)


def sigmoid(log_odds: np.ndarray) -> np.ndarray:
    """Probabilities from log odds, without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * np.asarray(log_odds, dtype=np.float64))))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _checked(value_N: np.ndarray, bought_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 (N,)."""
    value_N, bought_N = (np.asarray(array, dtype=np.float64) for array in (value_N, bought_N))
    if value_N.ndim != 1 or value_N.shape != bought_N.shape or not len(value_N):
        raise UsageError(
            f"rows are told as two arrays of one length > 0, got {value_N.shape} and "
            f"{bought_N.shape}"
        )
    if not np.isfinite(value_N).all() or not np.isin(bought_N, (0.0, 1.0)).all():
        raise UsageError("scores must be finite, and what was bought 0 or 1")
    return value_N, bought_N
