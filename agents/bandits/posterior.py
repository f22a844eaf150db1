"""What a bandit believes, apart from how it explores."""

from __future__ import annotations

import torch

Tensor = torch.Tensor


class BilinearRidge:
    """Bayesian ridge regression on shopper x item features, with an intercept per item.

    The expected answer to item i is  x' W f_i + b_i  with W (P, G) and b (I,) normal
    around zero with precisions ``ridge`` and ``item_ridge``, and noise of unit variance;
    the shopper's features x may depend on the item.

    As f_i does not change, all that the data says lies in sums per item: the count, the
    sums of x, x x', y and x y. Eliminating the intercepts (the Schur complement) leaves
    one system of P * G unknowns,

        S = ridge I + sum_i  cov_i (x) f_i f_i',   cov_i = sum x x' - sum x sum x' / D_i,

    with D_i = count_i + item_ridge: exact, and the same for 100 items and for 10,000.
    Sums and system are float64, scores float32.

    Args:
        feature_IG: item features, without a constant.
        shopper_size: P.
    """

    def __init__(
        self, feature_IG: Tensor, shopper_size: int, ridge: float = 1.0, item_ridge: float = 1.0
    ):
        one = torch.ones_like(feature_IG[:, :1])
        self.feature_IG = torch.cat([one, feature_IG], dim=1).double()
        self.ridge, self.item_ridge = ridge, item_ridge
        items, p = len(feature_IG), shopper_size
        new = self.feature_IG.new_zeros
        self.count_I = new(items)
        self.x_IP = new(items, p)
        self.xx_IPP = new(items, p, p)
        self.y_I = new(items)
        self.xy_IP = new(items, p)
        self.solve()

    def add(self, x_NP: Tensor, item_N: Tensor, y_N: Tensor) -> None:
        """Count a batch of answers; ``solve`` makes them felt."""
        x_NP, y_N = x_NP.double(), y_N.double()
        self.count_I.index_add_(0, item_N, torch.ones_like(y_N))
        self.x_IP.index_add_(0, item_N, x_NP)
        self.xx_IPP.index_add_(0, item_N, x_NP[:, :, None] * x_NP[:, None, :])
        self.y_I.index_add_(0, item_N, y_N)
        self.xy_IP.index_add_(0, item_N, x_NP * y_N[:, None])

    def solve(self) -> None:
        """Weights, intercepts and their uncertainty from all that was counted."""
        inverse, right_PG = self._system()
        p, g = right_PG.shape
        weight_PG = (inverse @ right_PG.reshape(-1)).reshape(p, g)
        # everything a score needs, per item
        direction_IP = self.feature_IG @ weight_PG.T
        share_I = 1.0 / (self.count_I + self.item_ridge)
        intercept_I = share_I * (self.y_I - (self.x_IP * direction_IP).sum(1))
        blocks = inverse.reshape(p, g, p, g).permute(0, 2, 1, 3).reshape(p * p, g * g)
        self.weight_PG = weight_PG
        self.direction_IP, self.intercept_I = direction_IP.float(), intercept_I.float()
        self.share_I = share_I.float()
        self.centre_IP = (share_I[:, None] * self.x_IP).float()
        self.spread_IPP = (self._squares() @ blocks.T).reshape(-1, p, p).float()

    def _system(self) -> tuple[Tensor, Tensor]:
        """The inverse of S (P G, P G), and the right-hand side (P, G)."""
        (items, g), p = self.feature_IG.shape, self.x_IP.shape[1]
        share_I = 1.0 / (self.count_I + self.item_ridge)
        outer_IPP = self.x_IP[:, :, None] * self.x_IP[:, None, :]
        cov_IPP = self.xx_IPP - share_I[:, None, None] * outer_IPP
        system = cov_IPP.reshape(items, p * p).T @ self._squares()
        system = system.reshape(p, p, g, g).permute(0, 2, 1, 3).reshape(p * g, p * g)
        system.diagonal().add_(self.ridge)
        right_PG = (self.xy_IP - (share_I * self.y_I)[:, None] * self.x_IP).T @ self.feature_IG
        return torch.cholesky_inverse(torch.linalg.cholesky(system)), right_PG

    def _squares(self) -> Tensor:
        """f_i f_i' of every item, (I, G G)."""
        outer_IGG = self.feature_IG[:, :, None] * self.feature_IG[:, None, :]
        return outer_IGG.reshape(len(outer_IGG), -1)

    def mean(self, x_NIP: Tensor, part: slice) -> Tensor:
        """Expected answers (N, i) of the items ``part``."""
        shared_NI = torch.einsum("nip,ip->ni", x_NIP, self.direction_IP[part])
        return shared_NI + self.intercept_I[part]

    def deviation(self, x_NIP: Tensor, part: slice) -> Tensor:
        """Posterior standard deviations (N, i) of the expected answers."""
        apart_INP = (x_NIP - self.centre_IP[part]).transpose(0, 1)
        variance_IN = (torch.bmm(apart_INP, self.spread_IPP[part]) * apart_INP).sum(2)
        return (variance_IN.T + self.share_I[part]).clamp(min=0).sqrt()

    def state_dict(self) -> dict[str, Tensor]:
        """The features and the sums, from which everything follows."""
        names = ("feature_IG", "count_I", "x_IP", "xx_IPP", "y_I", "xy_IP")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over another posterior of the same sizes, and solve."""
        for name, value in self.state_dict().items():
            value.copy_(state[name])
        self.solve()
