"""How a bandit explores, apart from what it believes.

Each turns a posterior into scores (N, I), of which the highest is recommended.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from agents.bandits.posterior import Context, Posterior

Tensor = torch.Tensor


@dataclass(frozen=True)
class UpperBound:
    """The mean and ``alpha`` standard deviations: optimism (Li et al. 2010)."""

    alpha: float

    def __call__(
        self, posterior: Posterior, context: Context, generator: torch.Generator
    ) -> Tensor:
        mean_NI = posterior.mean(context)
        if not self.alpha:
            return mean_NI
        return mean_NI.add_(posterior.deviation(context), alpha=self.alpha)


@dataclass(frozen=True)
class Thompson:
    """A draw from the posterior, ``alpha`` times as wide (Agrawal and Goyal 2013)."""

    alpha: float

    def __call__(
        self, posterior: Posterior, context: Context, generator: torch.Generator
    ) -> Tensor:
        if not self.alpha:
            return posterior.mean(context)
        return posterior.sample(context, self.alpha, generator)


@dataclass(frozen=True)
class Annealed:
    """A share of random recommendations, which falls from ``start`` to ``end`` over the
    first ``steps``; constant where both are the same."""

    start: float
    end: float
    steps: float

    def __call__(self, step: int) -> float:
        """The share at this point of the learning."""
        return self.start + min(step / max(self.steps, 1.0), 1.0) * (self.end - self.start)


def ucb1(count_I: Tensor, total_I: Tensor, alpha: float = 1.0) -> Tensor:
    """The index (I,) of UCB1 (Auer et al. 2002): mean + alpha sqrt(2 ln n / n_i).

    Args:
        count_I: n_i, how often each item was answered; n is their sum.
        total_I: the sum of the answers, each in 0..1.
        alpha: 1 is the original.

    Returns:
        infinite for items that nobody has answered yet.
    """
    log_n = math.log(max(float(count_I.sum()), 1.0))
    index_I = (total_I + alpha * (2 * log_n * count_I).sqrt()) / count_I
    return torch.where(count_I > 0, index_I, torch.inf)
