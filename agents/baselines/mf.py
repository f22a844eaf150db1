"""Matrix factorisation of shoppers and items, on the library ``implicit``."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from agents.base import MANY, POSITIVE
from agents.baselines.base import Known, Recommender
from agents.baselines.ratings import Ratings
from recenv.errors import MissingExtra, UsageError

Tensor = torch.Tensor


class MF(Recommender):
    """Guess from factors of shoppers and items (Hu, Koren and Volinsky 2008, "Collaborative
    Filtering for Implicit Feedback Datasets"), by alternating least squares.

    A pair is preferred where she liked the item better than others do, and not where she liked
    it less, with a confidence that grows with the difference; of all other pairs nothing is known
    but the 1 of the paper. So what an item is worth to everybody does not pass for taste: an item
    is as good as its mean, and better by the product of the factors. A shopper's factors are
    solved for anew from what is known of her, so that newcomers need no new fit.

    Args:
        factors: of each shopper and item.
        confidence: in an answer one purchase better, or worse, than others give.
        regularization: of the factors.
        iterations: of the alternation.
        strength: what a sure preference adds to an item's mean answer.
    """

    name: ClassVar[str] = "mf"
    bounds = Recommender.bounds | {
        "factors": (1, 65_536),
        "confidence": (POSITIVE, 1e9),
        "regularization": (POSITIVE, 1e9),
        "iterations": (1, MANY),
        "strength": (0.0, 1e6),
    }
    own = ("factors", "confidence", "regularization", "iterations", "strength")

    def __init__(
        self,
        *,
        factors: int = 8,
        confidence: float = 100.0,
        regularization: float = 10.0,
        iterations: int = 15,
        strength: float = 0.5,
        **settings: Any,
    ):
        super().__init__(**settings)
        self.factors, self.confidence, self.strength = factors, confidence, strength
        self.regularization, self.iterations = regularization, iterations
        self.check(**{name: getattr(self, name) for name in self.own})
        self._model = _als(self, 0)

    def _learn_from(self, ratings: Ratings) -> None:
        from scipy.sparse import csr_matrix

        seed = int(np.random.default_rng([self.seed, len(ratings.item_L)]).integers(2**31))
        mean_L = self._mean_I[ratings.item_L]
        weight_L = self.confidence * (ratings.value_L - ratings.count_L * mean_L)
        parts = (weight_L, ratings.item_L, ratings.start_R)
        weights = csr_matrix(
            tuple(part.cpu().numpy() for part in parts), shape=(len(ratings), ratings.num_items)
        )
        self._model = _als(self, seed)
        # signed confidences: what is negative counts as not preferred
        self._model.fit(weights, show_progress=False)

    def _affinity(self, known: Known) -> Tensor:
        if self._model.item_factors is None or not len(known[0]):
            return self._mean_I.expand(len(known[0]), -1)
        from scipy.sparse import csr_matrix

        weight_NI = self.confidence * (known[0] - known[1] * self._mean_I)
        weights = csr_matrix(weight_NI.cpu().numpy())
        factor_NW = self._model.recalculate_user(np.arange(len(weight_NI)), weights)
        taste_NI = torch.as_tensor(factor_NW @ self._model.item_factors.T, device=self._torch)
        return self._mean_I + self.strength * taste_NI

    def _state(self) -> dict[str, Tensor]:
        state = super()._state()
        if self._model.item_factors is not None:
            state["factor"] = torch.as_tensor(self._model.item_factors)
        return state

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        super()._restore(tensors)
        if "factor" not in tensors:
            return
        shape = (self.num_items, self.factors)
        if tensors["factor"].shape != shape:
            raise UsageError(f"its factors are not of shape {shape}: train it again")
        self._model.item_factors = tensors["factor"].cpu().numpy()


def _als(agent: MF, seed: int) -> Any:
    """The library's model, which has learned nothing."""
    try:
        from implicit.cpu.als import AlternatingLeastSquares
    except ImportError as error:
        raise MissingExtra("agent mf", error.name or "implicit", "logs") from None
    # weights are signed and scaled already: its own alpha stays 1
    return AlternatingLeastSquares(
        factors=agent.factors,
        regularization=agent.regularization,
        iterations=agent.iterations,
        num_threads=1,
        random_state=seed,
    )
