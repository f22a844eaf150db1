"""What a bandit believes, apart from how it explores.

Every posterior counts answers with ``add``, makes them felt with ``solve``, and scores all
items with ``mean``, ``deviation`` and ``sample``. With a ``forgetting`` factor below 1 an
answer weighs that much less with every newer one (discounted least squares, Russac et al.
2019), so that about the last 1 / (1 - forgetting) are remembered; the prior is not forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch

from agents.checkpoint import Resumable

Tensor = torch.Tensor
ITEMS_AT_ONCE = 2048  # whose squared features are in memory while a system is made
CLOSE_ENOUGH = 0.02  # to a mode: the largest change of a log odds in the last step
LEAST_WEIGHT = 1e-3  # of an answer in a Newton step: p (1 - p) vanishes where p is extreme


@dataclass(frozen=True)
class Context:
    """Who is to be recommended something.

    Attributes:
        x_NQ: what is known of the shoppers.
        own_NI: what of a shopper depends on the item.
    """

    x_NQ: Tensor
    own_NI: Tensor

    def of(self, item_N: Tensor) -> Tensor:
        """[x, own] for one item each, (N, Q + 1)."""
        return torch.cat([self.x_NQ, self.own_NI.gather(1, item_N[:, None])], dim=1)


class Posterior(Protocol):
    """What exploration needs of a belief about every item's answer."""

    def mean(self, context: Context) -> Tensor:
        """Expected answers (N, I)."""

    def deviation(self, context: Context) -> Tensor:
        """Posterior standard deviations (N, I) of the expected answers."""

    def sample(self, context: Context, scale: float, generator: torch.Generator) -> Tensor:
        """Expected answers (N, I) as they may be, apart from the mean by ``scale`` times as
        much as is believed."""


class Linear(Posterior, Protocol):
    """A posterior that is linear in features of shoppers."""

    def add(self, x_NP: Tensor, item_N: Tensor, y_N: Tensor) -> None:
        """Count a batch of answers; ``solve`` makes them felt."""

    def solve(self) -> None:
        """Weights and their uncertainty from all that was counted."""

    def state_dict(self) -> dict[str, Tensor]:
        """The sums, from which everything follows."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over another posterior of the same sizes, and solve."""


class BetaRates(Resumable):
    """Purchase rates (I,), each with a Beta posterior of its own and the prior
    Beta(prior, prior).

    Args:
        items: I.
    """

    progress = ("count_I", "bought_I")

    def __init__(
        self, items: int, device: torch.device, prior: float = 1.0, forgetting: float = 1.0
    ):
        self.prior, self.forgetting = prior, forgetting
        self.count_I = torch.zeros(items, dtype=torch.float64, device=device)
        self.bought_I = torch.zeros_like(self.count_I)

    def add(self, item_N: Tensor, bought_N: Tensor) -> None:
        """Count a batch of answers."""
        bought_N = bought_N.double()
        if self.forgetting < 1.0:
            self.count_I *= self.forgetting ** len(item_N)
            self.bought_I *= self.forgetting ** len(item_N)
        self.count_I.index_add_(0, item_N, torch.ones_like(bought_N))
        self.bought_I.index_add_(0, item_N, bought_N)

    @property
    def mean_I(self) -> Tensor:
        """Expected purchase rates (I,)."""
        return (self.bought_I + self.prior) / (self.count_I + 2 * self.prior)

    def sample(self, shoppers: int, rng: np.random.Generator) -> Tensor:
        """Purchase rates as they may be, (N, I): numpy's, as torch's public Beta draws from
        the global generator alone."""
        yes_I = (self.bought_I + self.prior).cpu().numpy()
        no_I = (self.count_I - self.bought_I + self.prior).cpu().numpy()
        rate_NI = rng.beta(yes_I, np.maximum(no_I, self.prior), size=(shoppers, len(yes_I)))
        return torch.as_tensor(rate_NI, device=self.count_I.device)

    def state_dict(self) -> dict[str, Tensor]:
        return {"count_I": self.count_I, "bought_I": self.bought_I}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in self.state_dict().items():
            value.copy_(state[name])


class ItemSums(Resumable):
    """Sums over the answers to each item: the count, x, x x', y and x y, in float64.

    Both ridge regressions need no more than these.

    Args:
        items, size: I and P.
    """

    NAMES = progress = ("count_I", "x_IP", "xx_IPP", "y_I", "xy_IP")

    def __init__(self, items: int, size: int, device: torch.device, forgetting: float = 1.0):
        self.forgetting = forgetting
        new = torch.zeros(0, dtype=torch.float64, device=device).new_zeros
        self.count_I = new(items)
        self.x_IP = new(items, size)
        self.xx_IPP = new(items, size, size)
        self.y_I = new(items)
        self.xy_IP = new(items, size)

    def add(
        self, x_NP: Tensor, item_N: Tensor, y_N: Tensor, weight_N: Tensor | None = None
    ) -> None:
        """Count a batch of answers, each ``weight_N`` times (once by default)."""
        x_NP, y_N = x_NP.double(), y_N.double()
        weight_N = torch.ones_like(y_N) if weight_N is None else weight_N.double()
        weighted_NP = x_NP * weight_N[:, None]
        self.count_I.index_add_(0, item_N, weight_N)
        self.x_IP.index_add_(0, item_N, weighted_NP)
        self.xx_IPP.index_add_(0, item_N, weighted_NP[:, :, None] * x_NP[:, None, :])
        self.y_I.index_add_(0, item_N, weight_N * y_N)
        self.xy_IP.index_add_(0, item_N, weighted_NP * y_N[:, None])

    def forget(self, answers: int) -> None:
        """Let all that was counted weigh less, now that there are newer answers."""
        if self.forgetting < 1.0:
            for total in self.state_dict().values():
                total.mul_(self.forgetting**answers)

    def state_dict(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.NAMES}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in self.state_dict().items():
            value.copy_(state[name])


class BilinearRidge(Resumable):
    """Bayesian ridge regression on shopper x item features, with an intercept per item.

    The expected answer to item i is  x' W f_i + b_i  with W (P, G) and b (I,) normal
    around zero with precisions ``ridge`` and ``item_ridge``, and noise of unit variance;
    the last of the shopper's features x may depend on the item.

    As f_i does not change, all that the data says lies in sums per item: the count, the
    sums of x, x x', y and x y. Eliminating the intercepts (the Schur complement) leaves
    one system of P * G unknowns,

        S = ridge I + sum_i  cov_i (x) f_i f_i',   cov_i = sum x x' - sum x sum x' / D_i,

    with D_i = count_i + item_ridge: exact, and the same for 100 items and for 10,000.
    Sums and system are float64, scores float32.

    Args:
        feature_IG: item features, without a constant.
        shopper_size: P.
        draws: weights are drawn so often for a ``sample``, whose shoppers share them.
    """

    # the sums have grown since they were solved: what follows from them does not follow yet
    progress = (
        "sums",
        "feature_IG",
        "root",
        "weight_PG",
        "direction_IP",
        "intercept_I",
        "share_I",
        "centre_P",
        "_shopper_IV",
        "_cross_IP",
        "_own_I",
    )

    def __init__(
        self,
        feature_IG: Tensor,
        shopper_size: int,
        ridge: float = 1.0,
        item_ridge: float = 1.0,
        forgetting: float = 1.0,
        draws: int = 32,
    ):
        one = torch.ones_like(feature_IG[:, :1])
        self.feature_IG = torch.cat([one, feature_IG], dim=1).double()
        self.ridge, self.item_ridge, self.draws = ridge, item_ridge, draws
        self.sums = ItemSums(len(feature_IG), shopper_size, feature_IG.device, forgetting)
        self.solve()

    def add(self, x_NP: Tensor, item_N: Tensor, y_N: Tensor) -> None:
        self.sums.forget(len(y_N))
        self.sums.add(x_NP, item_N, y_N)

    def solve(self) -> None:
        self.solve_mean()
        self._spread()

    def solve_mean(self) -> None:
        """Weights and intercepts alone."""
        sums = self.sums
        p, g = sums.x_IP.shape[1], self.feature_IG.shape[1]
        share_I = 1.0 / (sums.count_I + self.item_ridge)
        right_PG = (sums.xy_IP - (share_I * sums.y_I)[:, None] * sums.x_IP).T @ self.feature_IG
        self.root = torch.linalg.cholesky(self._system(share_I))
        self.weight_PG = torch.cholesky_solve(right_PG.reshape(-1, 1), self.root).reshape(p, g)
        direction_IP = self.feature_IG @ self.weight_PG.T
        intercept_I = share_I * (sums.y_I - (sums.x_IP * direction_IP).sum(1))
        self.direction_IP, self.intercept_I = direction_IP.float(), intercept_I.float()
        self.share_I = share_I

    def _system(self, share_I: Tensor) -> Tensor:
        """S, (P G, P G)."""
        sums = self.sums
        p, g = sums.x_IP.shape[1], self.feature_IG.shape[1]
        outer_IPP = sums.x_IP[:, :, None] * sums.x_IP[:, None, :]
        cov_IU = _upper(sums.xx_IPP - share_I[:, None, None] * outer_IPP)
        parts = zip(cov_IU.split(ITEMS_AT_ONCE), self._squares(), strict=True)
        system_UV = sum(cov_iU.T @ square_iV for cov_iU, square_iV in parts)
        assert isinstance(system_UV, Tensor)
        system = system_UV[_places(p, system_UV.device)][:, :, _places(g, system_UV.device)]
        system = system.permute(0, 2, 1, 3).reshape(p * g, p * g)
        system.diagonal().add_(self.ridge)
        return system

    def _squares(self) -> list[Tensor]:
        """The upper triangles of f_i f_i', (i, G (G + 1) / 2), some items at a time."""
        return [_products(feature_iG) for feature_iG in self.feature_IG.split(ITEMS_AT_ONCE)]

    def _spread(self) -> None:
        """All that ``deviation`` needs of every item.

        An item's variance is share_i + d' A_i d, d = x - centre_i, A_i = (I (x) f_i)' S^-1
        (I (x) f_i). As a polynomial in what ``x`` differs from a common centre it is one
        matrix product for all shoppers and items.
        """
        sums = self.sums
        p, g = sums.x_IP.shape[1], self.feature_IG.shape[1]
        inverse = torch.cholesky_inverse(self.root).reshape(p, g, p, g).permute(0, 2, 1, 3)
        row, column = torch.triu_indices(p, p, device=inverse.device)
        blocks_UV = _folded(inverse[row, column])
        spread_IU = torch.cat([square_iV @ blocks_UV.T for square_iV in self._squares()])
        spread_IPP = spread_IU[:, _places(p, spread_IU.device)]
        weight = sums.count_I.sum().clamp(min=1e-12)
        self.centre_P = sums.x_IP.sum(0) / weight
        apart_IP = self.share_I[:, None] * sums.x_IP - self.centre_P
        pull_IP = (spread_IPP @ apart_IP[:, :, None])[:, :, 0]
        rest_I = (pull_IP * apart_IP).sum(1) + self.share_I
        q = p - 1
        shopper_IU = _folded(spread_IPP[:, :q, :q])
        parts = [shopper_IU, -2 * pull_IP[:, :q], rest_I[:, None]]
        self._shopper_IV = torch.cat(parts, dim=1).float()
        self._cross_IP = 2 * torch.cat([spread_IPP[:, q, :q], -pull_IP[:, q:]], dim=1).float()
        self._own_I = spread_IPP[:, q, q].float()

    def mean(self, context: Context) -> Tensor:
        q = context.x_NQ.shape[1]
        mean_NI = torch.addmm(self.intercept_I, context.x_NQ, self.direction_IP[:, :q].T)
        return mean_NI.addcmul_(context.own_NI, self.direction_IP[:, q])

    def mean_of(self, x_NP: Tensor, item_N: Tensor) -> Tensor:
        """Expected answers (N,) to one item each."""
        return (x_NP * self.direction_IP[item_N]).sum(1) + self.intercept_I[item_N]

    def deviation(self, context: Context) -> Tensor:
        centre_P = self.centre_P.float()
        x_NQ, own_NI = context.x_NQ - centre_P[:-1], context.own_NI - centre_P[-1]
        one_N1 = torch.ones_like(x_NQ[:, :1])
        x_NP = torch.cat([x_NQ, one_N1], dim=1)
        variance_NI = torch.cat([_products(x_NQ), x_NP], dim=1) @ self._shopper_IV.T
        cross_NI = x_NP @ self._cross_IP.T
        cross_NI.addcmul_(own_NI, self._own_I)
        return variance_NI.addcmul_(cross_NI, own_NI).clamp_(min=0).sqrt_()

    def sample(self, context: Context, scale: float, generator: torch.Generator) -> Tensor:
        """Drawn from the joint posterior: ``draws`` times the weights W, each for its share
        of the shoppers, and the intercepts given W for every shopper."""
        shoppers, q = context.x_NQ.shape
        draws = min(self.draws, max(shoppers, 1))
        weight_MPG = self._draw(draws, scale, generator)
        feature_GI = self.feature_IG.float().T
        at_MPI = weight_MPG @ feature_GI
        centre_IP = (self.share_I[:, None] * self.sums.x_IP).float()
        base_MI = (self.share_I * self.sums.y_I).float() - torch.einsum(
            "mpi,ip->mi", at_MPI, centre_IP
        )
        draw_N = torch.arange(shoppers, device=base_MI.device) % draws
        direction_NG = torch.bmm(context.x_NQ[:, None], weight_MPG[draw_N, :q])[:, 0]
        luck_NI = torch.randn(
            context.own_NI.shape, generator=generator, device=context.own_NI.device
        )
        sample_NI = torch.addmm(base_MI[draw_N], direction_NG, feature_GI)
        sample_NI.addcmul_(context.own_NI, at_MPI[draw_N, q])
        return sample_NI.addcmul_(luck_NI, scale * self.share_I.sqrt().float())

    def _draw(self, draws: int, scale: float, generator: torch.Generator) -> Tensor:
        """Weights (M, P, G) from their posterior."""
        p, g = self.weight_PG.shape
        luck = torch.randn(
            p * g, draws, generator=generator, device=self.root.device, dtype=self.root.dtype
        )
        apart = torch.linalg.solve_triangular(self.root.T, luck, upper=True)
        weight_MPG: Tensor = self.weight_PG + scale * apart.T.reshape(draws, p, g)
        return weight_MPG.float()

    def state_dict(self) -> dict[str, Tensor]:
        """The features and the sums, from which everything follows."""
        return {"feature_IG": self.feature_IG, **self.sums.state_dict()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.feature_IG.copy_(state["feature_IG"])
        self.sums.load_state_dict(state)
        self.solve()


class ItemRidge(Resumable):
    """A Bayesian ridge regression on shopper features for every item by itself ("disjoint").

    The expected answer to item i is  x' w_i,  w_i normal around zero with precision
    ``ridge`` and noise of unit variance. ``solve`` factorises (Cholesky) the P x P systems
    of those items alone that were answered since: for a batch it costs less than as many
    rank-one updates of inverses, and does not gather rounding errors.

    Args:
        items, shopper_size: I and P; the context's ``own_NI`` is left out.
    """

    progress = ("sums", "_changed_I", "direction_IP", "_spread_IU")

    def __init__(
        self,
        items: int,
        shopper_size: int,
        device: torch.device,
        ridge: float = 1.0,
        forgetting: float = 1.0,
    ):
        self.ridge, self.size = ridge, shopper_size
        self.sums = ItemSums(items, shopper_size, device, forgetting)
        self._changed_I = torch.ones(items, dtype=torch.bool, device=device)
        self.direction_IP = torch.zeros(items, shopper_size, device=device)
        self._spread_IU = torch.zeros(items, shopper_size * (shopper_size + 1) // 2, device=device)
        self.solve()

    def add(self, x_NP: Tensor, item_N: Tensor, y_N: Tensor) -> None:
        self.sums.forget(len(y_N))
        self.sums.add(x_NP[:, : self.size], item_N, y_N)
        self.touch(item_N)

    def touch(self, item_N: Tensor) -> None:
        """These items are to be solved again; all, where the others were forgotten a bit."""
        if self.sums.forgetting < 1.0:
            self._changed_I[:] = True
        else:
            self._changed_I[item_N] = True

    def solve(self) -> None:
        self.solve_mean()

    def solve_mean(self) -> None:
        item_n = self._changed_I.nonzero()[:, 0]
        system_nPP = self.sums.xx_IPP.index_select(0, item_n)
        system_nPP.diagonal(dim1=1, dim2=2).add_(self.ridge)
        one_PP = torch.eye(self.size, dtype=system_nPP.dtype, device=system_nPP.device)
        half_nPP = torch.linalg.solve_triangular(
            torch.linalg.cholesky(system_nPP), one_PP, upper=False
        )
        inverse_nPP = half_nPP.mT @ half_nPP  # faster for many small ones than cholesky_inverse
        weight_nP = (inverse_nPP @ self.sums.xy_IP[item_n][:, :, None])[:, :, 0]
        self.direction_IP[item_n] = weight_nP.float()
        self._spread_IU[item_n] = _folded(inverse_nPP.float())
        self._changed_I[:] = False

    def mean(self, context: Context) -> Tensor:
        return context.x_NQ @ self.direction_IP.T

    def mean_of(self, x_NP: Tensor, item_N: Tensor) -> Tensor:
        """Expected answers (N,) to one item each."""
        return (x_NP[:, : self.size] * self.direction_IP[item_N]).sum(1)

    def deviation(self, context: Context) -> Tensor:
        variance_NI = _products(context.x_NQ) @ self._spread_IU.T
        return variance_NI.clamp_(min=0).sqrt_()

    def sample(self, context: Context, scale: float, generator: torch.Generator) -> Tensor:
        """Items know nothing of each other, so that their answers are drawn one by one."""
        mean_NI = self.mean(context)
        luck_NI = torch.randn(mean_NI.shape, generator=generator, device=mean_NI.device)
        return mean_NI.addcmul_(luck_NI, self.deviation(context), value=scale)

    def state_dict(self) -> dict[str, Tensor]:
        return self.sums.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.sums.load_state_dict(state)
        self._changed_I[:] = True
        self.solve()


class LogisticLaplace(Resumable):
    """Bayesian logistic regression by Laplace's approximation, on the features of a ridge.

    The log odds of a purchase are linear, and their posterior is taken for normal: around
    its mode, with the curvature there. Each ``solve`` starts from the last posterior as
    prior (Chapelle and Li 2011, with all covariances) and finds the mode by weighted least
    squares: steps on Jaakkola and Jordan's bound, which unlike Newton's cannot overshoot,
    and from near the mode one of Newton's, whose weights p (1 - p) are the curvature.
    Answers of former solves keep the weights that they had then.

    Args:
        ridge: the regression whose prior, features and sums serve.
        steps: towards the mode, at most.
    """

    progress = ("linear", "_waiting")

    def __init__(self, ridge: BilinearRidge | ItemRidge, steps: int = 6):
        self.linear = ridge
        self.steps = steps
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, x_NP: Tensor, item_N: Tensor, y_N: Tensor) -> None:
        self._waiting.append((x_NP, item_N, y_N))

    def solve(self) -> None:
        if self._waiting:
            x_NP, item_N, y_N = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
            self._waiting = []
            self._find_mode(x_NP, item_N, y_N)
        self.linear.solve()

    def _find_mode(self, x_NP: Tensor, item_N: Tensor, y_N: Tensor) -> None:
        linear = self.linear
        linear.sums.forget(len(y_N))
        before = {name: total.clone() for name, total in linear.sums.state_dict().items()}
        log_odds_N = linear.mean_of(x_NP, item_N).double()
        for _ in range(self.steps):
            weight_N = _bound_weight(log_odds_N)
            self._add(x_NP, item_N, (y_N.double() - 0.5) / weight_N, weight_N)
            linear.solve_mean()
            linear.sums.load_state_dict(before)
            last_N, log_odds_N = log_odds_N, linear.mean_of(x_NP, item_N).double()
            if (log_odds_N - last_N).abs().max() < CLOSE_ENOUGH:
                break
        self.add_linearised(x_NP, item_N, y_N, log_odds_N)

    def add_linearised(self, x_NP: Tensor, item_N: Tensor, y_N: Tensor, log_odds_N: Tensor) -> None:
        """Count answers with the curvature that their likelihood has at these log odds."""
        p_N = log_odds_N.double().sigmoid()
        weight_N = (p_N * (1 - p_N)).clamp(min=LEAST_WEIGHT)
        working_N = log_odds_N + (y_N.double() - p_N) / weight_N
        self._add(x_NP, item_N, working_N, weight_N)

    def _add(self, x_NP: Tensor, item_N: Tensor, y_N: Tensor, weight_N: Tensor) -> None:
        if isinstance(self.linear, ItemRidge):
            x_NP = x_NP[:, : self.linear.size]
            self.linear.touch(item_N)
        self.linear.sums.add(x_NP, item_N, y_N, weight_N)

    def mean(self, context: Context) -> Tensor:
        return self.linear.mean(context)

    def deviation(self, context: Context) -> Tensor:
        return self.linear.deviation(context)

    def sample(self, context: Context, scale: float, generator: torch.Generator) -> Tensor:
        return self.linear.sample(context, scale, generator)

    def state_dict(self) -> dict[str, Tensor]:
        return self.linear.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.linear.load_state_dict(state)


def _bound_weight(log_odds_N: Tensor) -> Tensor:
    """tanh(a / 2) / (2 a), the curvature of the bound on log sigmoid that touches at a."""
    size_N = log_odds_N.abs().clamp(min=1e-4)
    return (size_N / 2).tanh() / (2 * size_N)


@lru_cache(maxsize=32)
def _triangle(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and columns of an upper triangle: as dear to make as to use."""
    row, column = torch.triu_indices(size, size, device=device)
    return row, column


def _products(x_NQ: Tensor) -> Tensor:
    """x_a x_b for a <= b, (N, Q (Q + 1) / 2)."""
    row, column = _triangle(x_NQ.shape[1], x_NQ.device)
    return x_NQ.index_select(1, row) * x_NQ.index_select(1, column)


def _upper(square_nQQ: Tensor) -> Tensor:
    """The upper triangles of symmetric (n, Q, Q), in the order of ``_products``."""
    q = square_nQQ.shape[-1]
    row, column = _triangle(q, square_nQQ.device)
    return square_nQQ.flatten(1).index_select(1, q * row + column)


def _folded(square_nQQ: Tensor) -> Tensor:
    """The same of any (n, Q, Q) with the lower triangles added: x' A x of ``_products``."""
    q = square_nQQ.shape[-1]
    row, column = _triangle(q, square_nQQ.device)
    flat_nV = square_nQQ.flatten(1)
    both = flat_nV.index_select(1, q * row + column) + flat_nV.index_select(1, q * column + row)
    return both * torch.where(row == column, 0.5, 1.0).to(both)


def _places(size: int, device: torch.device) -> Tensor:
    """Where each entry of a symmetric matrix lies in its ``_upper``, (size, size)."""
    row, column = _triangle(size, device)
    place = torch.zeros(size, size, dtype=torch.int64, device=device)
    place[row, column] = place[column, row] = torch.arange(len(row), device=device)
    return place
