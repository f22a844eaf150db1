"""The bilinear ridge regression against the naive one with its full design matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.bandits.posterior import BilinearRidge

Array = np.ndarray
few = settings(max_examples=30, deadline=None, derandomize=True)


@dataclass(frozen=True)
class Problem:
    """Answers to recommendations, and shoppers to score all items for."""

    feature_IG: Array
    x_NP: Array
    item_N: Array
    y_N: Array
    asked_MIP: Array
    ridge: float
    item_ridge: float


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    def size(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    items, g, p, n = size(1, 6), size(1, 3), size(1, 4), size(0, 40)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    item_N = rng.integers(items, size=n)
    return Problem(
        feature_IG=rng.standard_normal((items, g)).astype(np.float32),
        # scaled by the item: what a shopper is may depend on the item
        x_NP=(rng.standard_normal((n, p)) * (1 + item_N[:, None])).astype(np.float32),
        item_N=item_N,
        y_N=(rng.random(n) < 0.4).astype(np.float32),
        asked_MIP=rng.standard_normal((3, items, p)).astype(np.float32),
        ridge=draw(st.sampled_from([0.1, 1.0, 7.0])),
        item_ridge=draw(st.sampled_from([0.1, 1.0, 7.0])),
    )


def design(feature_IG: Array, x_NP: Array, item_N: Array) -> Array:
    """Rows [x (x) [1, f_i], onehot(i)]."""
    f_NG = np.column_stack([np.ones(len(feature_IG)), feature_IG])[item_N]
    bilinear = np.einsum("np,ng->npg", x_NP.astype(float), f_NG)
    bilinear = bilinear.reshape(len(x_NP), x_NP.shape[1] * f_NG.shape[1])
    return np.column_stack([bilinear, np.eye(len(feature_IG))[item_N]])


def naive(problem: Problem) -> tuple[Array, Array, Array, Array]:
    """Weights (P, G + 1), intercepts (I,), means and standard deviations (M, I)."""
    rows = design(problem.feature_IG, problem.x_NP, problem.item_N)
    items, g = problem.feature_IG.shape
    p = problem.asked_MIP.shape[2]
    precision = np.diag([problem.ridge] * (p * (g + 1)) + [problem.item_ridge] * items)
    precision = precision + rows.T @ rows
    solution = np.linalg.solve(precision, rows.T @ problem.y_N.astype(float))
    every_item = np.arange(items)
    asked = np.stack([design(problem.feature_IG, x_IP, every_item) for x_IP in problem.asked_MIP])
    variance = np.einsum("mia,ab,mib->mi", asked, np.linalg.inv(precision), asked)
    cut = p * (g + 1)
    return solution[:cut].reshape(p, g + 1), solution[cut:], asked @ solution, np.sqrt(variance)


def fitted(problem: Problem, parts: int = 1) -> BilinearRidge:
    """The posterior, having seen the answers in ``parts`` batches."""
    posterior = BilinearRidge(
        torch.as_tensor(problem.feature_IG),
        problem.asked_MIP.shape[2],
        problem.ridge,
        problem.item_ridge,
    )
    for part in np.array_split(np.arange(len(problem.item_N)), parts):
        posterior.add(
            torch.as_tensor(problem.x_NP[part]),
            torch.as_tensor(problem.item_N[part]),
            torch.as_tensor(problem.y_N[part]),
        )
        posterior.solve()
    return posterior


def scores(posterior: BilinearRidge, problem: Problem) -> tuple[Array, Array]:
    everything = slice(0, len(problem.feature_IG))
    asked = torch.as_tensor(problem.asked_MIP)
    return posterior.mean(asked, everything).numpy(), posterior.deviation(asked, everything).numpy()


@few
@given(problems())
def test_equals_the_naive_regression(problem):
    weight_PG, intercept_I, mean_MI, deviation_MI = naive(problem)
    posterior = fitted(problem)
    np.testing.assert_allclose(posterior.weight_PG, weight_PG, atol=1e-8)
    np.testing.assert_allclose(posterior.intercept_I, intercept_I, atol=1e-5)
    found_mean_MI, found_deviation_MI = scores(posterior, problem)
    np.testing.assert_allclose(found_mean_MI, mean_MI, atol=1e-4)
    np.testing.assert_allclose(found_deviation_MI, deviation_MI, rtol=1e-3, atol=1e-5)


@few
@given(problems(), st.integers(2, 5))
def test_batch_by_batch_equals_all_at_once(problem, parts):
    once, bit_by_bit = fitted(problem), fitted(problem, parts)
    np.testing.assert_allclose(bit_by_bit.weight_PG, once.weight_PG, atol=1e-8)
    for found, expected in zip(scores(bit_by_bit, problem), scores(once, problem), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@few
@given(problems())
def test_items_are_scored_alike_in_parts(problem):
    posterior = fitted(problem)
    asked = torch.as_tensor(problem.asked_MIP)
    for score in (posterior.mean, posterior.deviation):
        items = len(problem.feature_IG)
        whole = score(asked, slice(0, items))
        parts = [score(asked[:, i : i + 1], slice(i, i + 1)) for i in range(items)]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole)


@few
@given(problems())
def test_state_is_taken_over_whole(problem):
    posterior = fitted(problem)
    state = {name: leaf.clone() for name, leaf in posterior.state_dict().items()}
    other = BilinearRidge(
        torch.zeros(problem.feature_IG.shape),
        problem.asked_MIP.shape[2],
        problem.ridge,
        problem.item_ridge,
    )
    other.load_state_dict(state)
    for found, expected in zip(scores(other, problem), scores(posterior, problem), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_answers_count_only_once_solved():
    posterior = BilinearRidge(torch.ones(2, 1), 1)
    before = posterior.mean(torch.ones(1, 2, 1), slice(0, 2))
    posterior.add(torch.ones(3, 1), torch.tensor([0, 0, 1]), torch.ones(3))
    assert torch.equal(posterior.mean(torch.ones(1, 2, 1), slice(0, 2)), before)
    posterior.solve()
    assert (posterior.mean(torch.ones(1, 2, 1), slice(0, 2)) > before).all()


def test_worked_by_hand():
    # one item, x = 1, f = [1, 0]: y = w + b with unit precisions, and four answers of 1:
    # w = b = 4 / (1 + 2 * 4), Var(w + b) = 2 / (1 + 2 * 4)
    posterior = BilinearRidge(torch.zeros(1, 1), 1)
    posterior.add(torch.ones(4, 1), torch.zeros(4, dtype=torch.int64), torch.ones(4))
    posterior.solve()
    asked = torch.ones(1, 1, 1)
    assert posterior.weight_PG[0, 0].item() == pytest.approx(4 / 9)
    assert posterior.intercept_I[0].item() == pytest.approx(4 / 9)
    assert posterior.mean(asked, slice(0, 1)).item() == pytest.approx(8 / 9)
    assert posterior.deviation(asked, slice(0, 1)).item() == pytest.approx((2 / 9) ** 0.5)
