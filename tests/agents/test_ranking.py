"""Figures of ranked lists, against values worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from agents.ranking import best_items, judge_lists, judge_scores
from recenv.errors import UsageError


def rng():
    return np.random.default_rng(0)


def test_values_on_paper():
    # bought items in first, third and no place
    found = judge_lists(np.array([[4, 1, 2], [0, 1, 4], [0, 1, 2]]), np.array([4, 4, 4]), 6)
    np.testing.assert_array_equal(found.recall_n, [1, 1, 0])
    np.testing.assert_allclose(found.ndcg_n, [1.0, 0.5, 0.0])
    assert found.recall == pytest.approx(2 / 3)
    assert found.ndcg == pytest.approx(0.5)
    assert found.coverage == pytest.approx(4 / 6)  # 0, 1, 2 and 4


def test_short_lists_count_what_they_hold():
    found = judge_lists(np.array([[2, -1], [-1, -1]]), np.array([2, 0]), 4)
    np.testing.assert_array_equal(found.recall_n, [1, 0])
    assert found.coverage == 0.25


def test_scores_are_ranked_best_first():
    score_nI = np.array([[0.1, 0.9, 0.5, 0.2], [3.0, 1.0, 2.0, 4.0]])
    np.testing.assert_array_equal(best_items(score_nI, 3, rng()), [[1, 2, 3], [3, 0, 2]])
    found = judge_scores(score_nI, np.array([3, 1]), 3, rng())
    np.testing.assert_allclose(found.ndcg_n, [0.5, 0.0])


def test_equal_scores_know_nothing():
    """One item in ten of a list of ten, whichever it is: as good as random, and no better."""
    score_nI = np.zeros((1, 100))
    draws = [
        judge_scores(score_nI, np.array([0]), 10, np.random.default_rng(s)).recall
        for s in range(600)
    ]
    assert abs(np.mean(draws) - 0.1) < 0.04


def test_everything_is_found_in_the_whole_catalogue():
    score_nI = rng().random((50, 12))
    target_n = rng().integers(12, size=50)
    found = judge_scores(score_nI, target_n, 12, rng())
    assert found.recall == 1.0
    assert found.coverage == 1.0
    assert 1 / np.log2(13) <= found.ndcg < 1.0


def test_nothing_to_judge_is_no_figure():
    found = judge_lists(np.zeros((0, 3), dtype=int), np.zeros(0, dtype=int), 5)
    assert np.isnan(found.recall)
    assert np.isnan(found.ndcg)
    assert found.coverage == 0.0


@pytest.mark.parametrize(
    ("lists", "targets", "why"),
    [
        (np.zeros((2, 3), dtype=int), np.zeros(3, dtype=int), "one bought item each"),
        (np.zeros(3, dtype=int), np.zeros(3, dtype=int), "one bought item each"),
        (np.zeros((1, 0), dtype=int), np.zeros(1, dtype=int), "at least one place"),
        (np.zeros((1, 2)), np.zeros(1, dtype=int), "whole numbers"),
        (np.full((1, 2), 5), np.zeros(1, dtype=int), "listed item is not in the catalogue"),
        (np.zeros((1, 2), dtype=int), np.full(1, -1), "bought item is not in the catalogue"),
    ],
)
def test_what_is_no_ranking_is_refused(lists, targets, why):
    with pytest.raises(UsageError, match=why):
        judge_lists(lists, targets, 5)


@pytest.mark.parametrize("k", [0, 6])
def test_lists_that_cannot_be_are_refused(k):
    with pytest.raises(UsageError, match=r"1\.\.5"):
        best_items(np.zeros((2, 5)), k, rng())


def test_scores_must_be_finite():
    with pytest.raises(UsageError, match="finite"):
        best_items(np.array([[0.0, np.nan]]), 1, rng())
