"""Posteriors against the naive ones with their full design matrices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.bandits.posterior import (
    BetaRates,
    BilinearRidge,
    Context,
    ItemRidge,
    LogisticLaplace,
)

Array = np.ndarray
few = settings(max_examples=30, deadline=None, derandomize=True)


@dataclass(frozen=True)
class Problem:
    """Answers to recommendations, and shoppers to score all items for."""

    feature_IG: Array
    x_NP: Array
    item_N: Array
    y_N: Array
    asked_MQ: Array
    own_MI: Array
    ridge: float
    item_ridge: float

    @property
    def asked_MIP(self) -> Array:
        """What is known of the shoppers, and what of them depends on the item."""
        every_MIQ = np.repeat(self.asked_MQ[:, None], self.own_MI.shape[1], axis=1)
        return np.concatenate([every_MIQ, self.own_MI[:, :, None]], axis=2)

    @property
    def context(self) -> Context:
        return Context(torch.as_tensor(self.asked_MQ), torch.as_tensor(self.own_MI))

    @property
    def answers(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return tuple(torch.as_tensor(part) for part in (self.x_NP, self.item_N, self.y_N))


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    def size(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    items, g, p, n = size(1, 6), size(1, 3), size(2, 5), size(0, 40)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    item_N = rng.integers(items, size=n)
    return Problem(
        feature_IG=rng.standard_normal((items, g)).astype(np.float32),
        # scaled by the item: what a shopper is may depend on the item
        x_NP=(rng.standard_normal((n, p)) * (1 + item_N[:, None])).astype(np.float32),
        item_N=item_N,
        y_N=(rng.random(n) < 0.4).astype(np.float32),
        asked_MQ=rng.standard_normal((3, p - 1)).astype(np.float32),
        own_MI=rng.standard_normal((3, items)).astype(np.float32),
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
        problem.x_NP.shape[1],
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
    return (
        posterior.mean(problem.context).numpy(),
        posterior.deviation(problem.context).numpy(),
    )


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
def test_state_is_taken_over_whole(problem):
    posterior = fitted(problem)
    state = {name: leaf.clone() for name, leaf in posterior.state_dict().items()}
    other = BilinearRidge(
        torch.zeros(problem.feature_IG.shape),
        problem.x_NP.shape[1],
        problem.ridge,
        problem.item_ridge,
    )
    other.load_state_dict(state)
    for found, expected in zip(scores(other, problem), scores(posterior, problem), strict=True):
        np.testing.assert_array_equal(found, expected)


def ones(items: int = 1) -> Context:
    """A shopper of whom nothing is known but that she is there."""
    return Context(torch.ones(1, 1), torch.zeros(1, items))


def test_answers_count_only_once_solved():
    posterior = BilinearRidge(torch.ones(2, 1), 2)
    before = posterior.mean(ones(2))
    posterior.add(torch.ones(3, 2), torch.tensor([0, 0, 1]), torch.ones(3))
    assert torch.equal(posterior.mean(ones(2)), before)
    posterior.solve()
    assert (posterior.mean(ones(2)) > before).all()


def test_worked_by_hand():
    # one item, x = [1, 0], f = [1, 0]: y = w + b with unit precisions, and four answers of 1:
    # w = b = 4 / (1 + 2 * 4), Var(w + b) = 2 / (1 + 2 * 4)
    posterior = BilinearRidge(torch.zeros(1, 1), 2)
    x_NP = torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    posterior.add(x_NP, torch.zeros(4, dtype=torch.int64), torch.ones(4))
    posterior.solve()
    assert posterior.weight_PG[0, 0].item() == pytest.approx(4 / 9)
    assert posterior.intercept_I[0].item() == pytest.approx(4 / 9)
    assert posterior.mean(ones()).item() == pytest.approx(8 / 9)
    assert posterior.deviation(ones()).item() == pytest.approx((2 / 9) ** 0.5)


def test_deviations_keep_their_digits_after_many_answers():
    """What is well known of a shopper who is far from zero is not lost in rounding."""
    rng = np.random.default_rng(0)
    x_NP = np.column_stack([np.ones(200_000), 3 + rng.standard_normal((200_000, 3))])
    item_N = rng.integers(5, size=len(x_NP))
    asked_MQ = np.column_stack([np.ones(6), 3 + rng.standard_normal((6, 2))])
    problem = Problem(
        feature_IG=rng.standard_normal((5, 2)).astype(np.float32),
        x_NP=x_NP.astype(np.float32),
        item_N=item_N,
        y_N=(rng.random(len(x_NP)) < 0.4).astype(np.float32),
        asked_MQ=asked_MQ.astype(np.float32),
        own_MI=(3 + rng.standard_normal((6, 5))).astype(np.float32),
        ridge=1.0,
        item_ridge=1.0,
    )
    _, _, mean_MI, deviation_MI = naive(problem)
    found_mean_MI, found_deviation_MI = scores(fitted(problem), problem)
    assert deviation_MI.min() < 0.006
    np.testing.assert_allclose(found_mean_MI, mean_MI, atol=1e-5)
    np.testing.assert_allclose(found_deviation_MI, deviation_MI, rtol=2e-3)


# --- draws ---------------------------------------------------------------------------


def drawn(posterior: BilinearRidge | ItemRidge | LogisticLaplace, problem: Problem) -> Array:
    """Many draws (R, I) for one shopper."""
    generator = torch.Generator().manual_seed(0)
    many = Context(
        torch.as_tensor(problem.asked_MQ[:1]).repeat(20_000, 1),
        torch.as_tensor(problem.own_MI[:1]).repeat(20_000, 1),
    )
    return posterior.sample(many, 1.0, generator).double().numpy()


def example(n: int = 60, seed: int = 0) -> Problem:
    rng = np.random.default_rng(seed)
    items, p = 3, 4
    return Problem(
        feature_IG=rng.standard_normal((items, 2)).astype(np.float32),
        x_NP=rng.standard_normal((n, p)).astype(np.float32),
        item_N=rng.integers(items, size=n),
        y_N=(rng.random(n) < 0.4).astype(np.float32),
        asked_MQ=rng.standard_normal((2, p - 1)).astype(np.float32),
        own_MI=rng.standard_normal((2, items)).astype(np.float32),
        ridge=1.0,
        item_ridge=2.0,
    )


def test_draws_are_from_the_joint_posterior():
    problem = example(n=8)
    rows = design(problem.feature_IG, problem.x_NP, problem.item_N)
    precision = np.diag([1.0] * 12 + [2.0] * 3) + rows.T @ rows
    asked = design(problem.feature_IG, problem.asked_MIP[0], np.arange(3))
    covariance = asked @ np.linalg.inv(precision) @ asked.T
    posterior = fitted(problem)
    posterior.draws = 20_000
    draws_RI = drawn(posterior, problem)
    _, _, mean_MI, _ = naive(problem)
    scale = np.sqrt(covariance.max())
    np.testing.assert_allclose(draws_RI.mean(0), mean_MI[0], atol=0.03 * scale)
    np.testing.assert_allclose(np.cov(draws_RI.T), covariance, atol=0.03 * scale**2)
    assert abs(np.triu(covariance, 1)).max() > 0.1 * scale**2  # items are not drawn one by one


def test_shoppers_share_weights_where_fewer_are_drawn():
    problem = example()
    posterior = fitted(problem)
    posterior.draws, posterior.item_ridge = 4, 1e12
    posterior.solve()  # no intercepts, which every shopper draws for herself
    draws_RI = drawn(posterior, problem)
    assert len(np.unique(draws_RI[:, 0].round(3))) == 4
    np.testing.assert_allclose(draws_RI[:4], draws_RI[4:8], atol=1e-4)


def test_disjoint_draws_have_the_deviations_of_the_items():
    problem = example()
    posterior = ItemRidge(3, 3, torch.device("cpu"))
    posterior.add(*problem.answers)
    posterior.solve()
    draws_RI = drawn(posterior, problem)
    deviation_I = posterior.deviation(problem.context)[0].numpy()
    np.testing.assert_allclose(draws_RI.std(0), deviation_I, rtol=0.03)
    np.testing.assert_allclose(
        draws_RI.mean(0), posterior.mean(problem.context)[0], atol=0.03 * deviation_I.max()
    )


# --- the other posteriors ------------------------------------------------------------


@few
@given(problems(), st.integers(1, 4))
def test_disjoint_equals_a_ridge_regression_of_every_item(problem, parts):
    items, q = len(problem.feature_IG), problem.asked_MQ.shape[1]
    posterior = ItemRidge(items, q, torch.device("cpu"), problem.ridge)
    for part in np.array_split(np.arange(len(problem.item_N)), parts):
        posterior.add(*(answer[part] for answer in problem.answers))
        posterior.solve()
    mean_MI, deviation_MI = scores(posterior, problem)
    for item in range(items):
        mine = problem.item_N == item
        x_nQ = problem.x_NP[mine, :q].astype(float)
        covariance = np.linalg.inv(problem.ridge * np.eye(q) + x_nQ.T @ x_nQ)
        mean_M = problem.asked_MQ @ covariance @ x_nQ.T @ problem.y_N[mine]
        variance_M = ((problem.asked_MQ @ covariance) * problem.asked_MQ).sum(1)
        np.testing.assert_allclose(mean_MI[:, item], mean_M, atol=1e-4)
        np.testing.assert_allclose(deviation_MI[:, item], variance_M**0.5, rtol=1e-3, atol=1e-4)


def likeliest(rows: Array, y_N: Array, precision_V: Array) -> tuple[Array, Array]:
    """The mode of a logistic regression's posterior by direct optimisation, and the inverse
    of the curvature there."""
    weight = torch.zeros(rows.shape[1], dtype=torch.float64, requires_grad=True)
    design_NV, answer_N = torch.as_tensor(rows), torch.as_tensor(y_N).double()
    precision = torch.as_tensor(precision_V)
    search = torch.optim.LBFGS(
        [weight], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        search.zero_grad()
        log_odds_N = design_NV @ weight
        value = torch.nn.functional.binary_cross_entropy_with_logits(
            log_odds_N, answer_N, reduction="sum"
        )
        value = value + 0.5 * (precision * weight**2).sum()
        value.backward()
        return value

    search.step(loss)
    mode = weight.detach().numpy()
    p_N = 1 / (1 + np.exp(-rows @ mode))
    curvature = np.diag(precision_V) + rows.T @ (rows * (p_N * (1 - p_N))[:, None])
    return mode, np.linalg.inv(curvature)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("disjoint", [False, True])
def test_laplace_is_around_the_likeliest_weights(disjoint, seed):
    problem = example(n=200, seed=seed)
    every = np.arange(3)
    if disjoint:
        ridge = ItemRidge(3, 3, torch.device("cpu"))
        rows, precision_V = onehot_rows(problem.x_NP[:, :3], problem.item_N), np.ones(9)
        asked = [onehot_rows(np.repeat(x_Q[None], 3, 0), every) for x_Q in problem.asked_MQ]
    else:
        ridge = BilinearRidge(torch.as_tensor(problem.feature_IG), 4, 1.0, 2.0)
        rows = design(problem.feature_IG, problem.x_NP, problem.item_N)
        precision_V = np.array([1.0] * 12 + [2.0] * 3)
        asked = [design(problem.feature_IG, x_IP, every) for x_IP in problem.asked_MIP]
    mode, covariance = likeliest(rows, problem.y_N, precision_V)
    posterior = LogisticLaplace(ridge, steps=100)
    posterior.add(*problem.answers)
    assert not posterior.mean(problem.context).any()  # not before it is solved
    posterior.solve()
    mean_MI, deviation_MI = scores(posterior, problem)
    np.testing.assert_allclose(mean_MI, np.stack(asked) @ mode, atol=2e-3)
    variance_MI = np.einsum("miv,vw,miw->mi", np.stack(asked), covariance, np.stack(asked))
    np.testing.assert_allclose(deviation_MI, np.sqrt(variance_MI), rtol=5e-3)


def onehot_rows(x_NQ: Array, item_N: Array) -> Array:
    """Rows onehot(i) (x) x."""
    return np.einsum("ni,nq->niq", np.eye(3)[item_N], x_NQ.astype(float)).reshape(len(x_NQ), -1)


def test_laplace_does_not_overshoot_where_answers_can_be_told_apart():
    x_NP = torch.cat([torch.ones(40, 1), torch.linspace(-30, 30, 40)[:, None]], dim=1)
    posterior = LogisticLaplace(BilinearRidge(torch.zeros(1, 1), 2, ridge=0.01))
    for _ in range(20):
        posterior.add(x_NP, torch.zeros(40, dtype=torch.int64), (x_NP[:, 1] > 0).float())
        posterior.solve()
    log_odds_N = posterior.linear.mean_of(x_NP, torch.zeros(40, dtype=torch.int64))
    assert ((log_odds_N > 0) == (x_NP[:, 1] > 0)).all()
    assert 2 < log_odds_N.abs().max() < 100


def test_beta_rates_count_purchases_and_refusals():
    rates = BetaRates(3, torch.device("cpu"), prior=1.0)
    rates.add(torch.tensor([0, 0, 0, 0, 1]), torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]))
    # Beta(4, 2), Beta(1, 2), Beta(1, 1)
    torch.testing.assert_close(rates.mean_I, torch.tensor([4 / 6, 1 / 3, 1 / 2]).double())
    draws_RI = rates.sample(40_000, np.random.default_rng(0)).numpy()
    np.testing.assert_allclose(draws_RI.mean(0), [4 / 6, 1 / 3, 1 / 2], atol=0.01)
    np.testing.assert_allclose(draws_RI.var(0), [8 / 252, 2 / 36, 1 / 12], rtol=0.05)


# --- forgetting ----------------------------------------------------------------------


def test_forgetting_weighs_answers_by_their_age():
    problem = example()
    factor = 0.9
    for make in (
        lambda forgetting: BilinearRidge(
            torch.as_tensor(problem.feature_IG), 4, forgetting=forgetting
        ),
        lambda forgetting: ItemRidge(3, 3, torch.device("cpu"), forgetting=forgetting),
    ):
        forgetful, weighted = make(factor), make(1.0)
        for n in range(len(problem.item_N)):
            forgetful.add(*(answer[n : n + 1] for answer in problem.answers))
        forgetful.solve()
        age_N = torch.arange(len(problem.item_N)).flip(0)
        x_NP, item_N, y_N = problem.answers
        size = weighted.sums.x_IP.shape[1]
        weighted.add(x_NP[:0], item_N[:0], y_N[:0])
        weighted.sums.add(x_NP[:, :size], item_N, y_N, factor**age_N)
        if isinstance(weighted, ItemRidge):
            weighted.touch(item_N)
        weighted.solve()
        for found, expected in zip(
            scores(forgetful, problem), scores(weighted, problem), strict=True
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("logistic", [False, True])
@pytest.mark.parametrize("disjoint", [False, True])
def test_forgetting_follows_shoppers_who_change(disjoint, logistic):
    """What everybody bought and then nobody does is given up, by those who forget."""

    def believed(forgetting: float) -> float:
        ridge = (
            ItemRidge(1, 1, torch.device("cpu"), forgetting=forgetting)
            if disjoint
            else BilinearRidge(torch.zeros(1, 1), 2, forgetting=forgetting)
        )
        posterior = LogisticLaplace(ridge) if logistic else ridge
        x_NP = torch.tensor([[1.0, 0.0]]).repeat(50, 1)
        for bought in (1.0,) * 10 + (0.0,) * 4:
            posterior.add(x_NP, torch.zeros(50, dtype=torch.int64), torch.full((50,), bought))
            posterior.solve()
        mean = posterior.mean(ones()).item()
        return 1 / (1 + np.exp(-mean)) if logistic else mean

    assert believed(0.98) < believed(1.0) - 0.15
    assert believed(0.98) < 0.15


def test_rates_forget():
    rates = BetaRates(2, torch.device("cpu"), forgetting=0.9)
    rates.add(torch.zeros(50, dtype=torch.int64), torch.ones(50))
    rates.add(torch.zeros(50, dtype=torch.int64), torch.zeros(50))
    assert rates.bought_I[0].item() == pytest.approx(50 * 0.9**50)
    assert rates.mean_I[0] < 0.1
