"""The vector environment's arithmetic as bare numpy: what its step cannot cost less than."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from gymnasium.utils import seeding

from recenv.population import Sessions
from recenv.shop import Shop

Step = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]


def floor(num_envs: int, seed: int, **keywords: Any) -> Step:
    """The step of ``RecsysVectorEnv(num_envs, **keywords).reset(seed=seed)``, and no more.

    One function for a shop with everything on, in which arrays are written in place: nothing
    is checked, nobody is told how sessions ended, and arrays are used again. The shoppers and
    their luck are drawn as they are there, so that both return the same numbers.

    Returns:
        a function of actions (N,): observation (N, S), reward, terminated and event (N,).
    """
    shop = Shop(keywords)
    d, tables, n = shop.dynamics, shop.tables, num_envs
    dim, k, horizon = shop.catalogue.interest_dim, shop.catalogue.num_categories, shop.horizon
    population, rng = shop.world.population, seeding.np_random(seed)[0]
    arrivals = shop.arrivals(n)
    here = arrivals.take(rng, n).rows(np.arange(n))
    interest_ND, satiation_NK, satisfaction_N, refusals_N, patience_N, remaining_N = here.state
    base_N, price_N, tolerance_N = here.traits
    threshold, drift_row = here.threshold.reshape(-1), here.drift_row.reshape(-1)
    first_N, first_NK = np.arange(n) * horizon, np.arange(n) * k
    luck_N, flat_satiation = first_N.copy(), satiation_NK.reshape(-1)
    seen_NS = np.empty((n, dim + k + 6), dtype=np.float32)
    embedding_ND, facts_N4 = np.empty((n, dim), np.float32), np.empty((n, 4), np.float32)
    drift_ND, one = np.empty((n, dim), np.float32), np.float32(1.0)

    def step(action_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        np.take(tables.embedding, action_N, axis=0, out=embedding_ND, mode="clip")
        np.take(tables.facts, action_N, axis=0, out=facts_N4, mode="clip")
        category_N = first_NK + facts_N4[:, 3].astype(np.int64)
        # respond
        match_N = np.einsum("nd,nd->n", interest_ND, embedding_ND)
        match_N *= d.interest_weight
        match_N += facts_N4[:, 0] - price_N * facts_N4[:, 1]
        match_N -= flat_satiation.take(category_N)
        match_N += d.trust_weight * np.tanh(d.trust_slope * satisfaction_N) + base_N
        match_N -= threshold.take(luck_N)
        bought_N = match_N > 0
        event_N = 2 * (match_N > -d.view_offset).view(np.int8)
        event_N += match_N > -d.cart_offset
        event_N += bought_N
        event_N += match_N <= -d.dismiss_offset
        sale_N = one * bought_N
        # change
        np.take(tables.drift, drift_row.take(luck_N), axis=0, out=drift_ND, mode="clip")
        pull_N = (d.interest_pull + d.refusal_push) * sale_N - d.refusal_push
        np.multiply(embedding_ND, pull_N[:, None], out=embedding_ND)
        np.add(interest_ND, embedding_ND, out=interest_ND)
        np.add(interest_ND, drift_ND, out=interest_ND)
        size_N = np.sqrt(np.einsum("nd,nd->n", interest_ND, interest_ND))
        np.multiply(interest_ND, (1.0 / size_N)[:, None], out=interest_ND)
        np.multiply(satiation_NK, d.satiation_decay, out=satiation_NK)
        flat_satiation[category_N] += d.satiation_gain * sale_N
        np.multiply(satisfaction_N, d.trust_memory, out=satisfaction_N)
        np.add(satisfaction_N, sale_N * facts_N4[:, 2], out=satisfaction_N)
        np.add(refusals_N, 1.0, out=refusals_N)
        np.multiply(refusals_N, 1.0 - sale_N, out=refusals_N)
        np.subtract(remaining_N, 1.0, out=remaining_N)
        # leave
        trust_N = np.tanh(d.trust_slope * satisfaction_N)
        odds_N = d.churn_base - d.churn_trust * trust_N + refusals_N / tolerance_N
        np.subtract(patience_N, 0.5 * np.tanh(0.5 * odds_N) + 0.5, out=patience_N)
        left_N = patience_N < 0
        reward_N = 2.0 * sale_N - 1.0 - remaining_N * left_N
        over_N = left_N | (remaining_N <= 0)
        np.add(luck_N, 1, out=luck_N)
        index = np.flatnonzero(over_N)
        if len(index):
            new = arrivals.take(rng, len(index))
            for target, source in zip(_leaves(here), _leaves(new), strict=True):
                target[index] = source
            luck_N[index] = first_N[index]
        # look
        np.multiply(interest_ND, dim**0.5, out=seen_NS[:, :dim])
        np.multiply(satiation_NK, 1.0 / d.satiation_gain, out=seen_NS[:, dim : dim + k])
        seen_NS[:, -6] = d.trust_slope * satisfaction_N
        np.tanh(seen_NS[:, -6], out=seen_NS[:, -5])
        np.divide(refusals_N, tolerance_N, out=seen_NS[:, -4])
        np.multiply(base_N, 1.0 / population.base_rate_spread, out=seen_NS[:, -3])
        np.multiply(price_N, 1.0 / population.price_sensitivity, out=seen_NS[:, -2])
        np.multiply(remaining_N, 1.0 / horizon, out=seen_NS[:, -1])
        return seen_NS, reward_N, over_N, event_N

    return step


def _leaves(sessions: Sessions) -> Iterator[np.ndarray]:
    yield from (*sessions.state, *sessions.traits, sessions.threshold, sessions.drift_row)
