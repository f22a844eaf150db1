"""What could be known of an interest at all: a Bayes filter that knows the shop's true model.

It knows who comes and how they respond and change, item secrets included, but not who this
shopper is: of her it sees what any interest model sees. It is no agent's, and bounds, up to the
noise of its particles, what a probe can recover from behaviour.
"""

from __future__ import annotations

import numpy as np
from array_api_compat import numpy as xp

from agents.interest.histories import Histories
from recenv import dynamics as physics
from recenv.dynamics import Event
from recenv.shop import Shop

JITTER = 0.05  # of interests that were drawn again, so that they do not become too few
SURE = 1e3  # log odds of what cannot fail


def filtered(
    histories: Histories, shop: Shop, steps: list[int], rng: np.random.Generator, particles: int
) -> np.ndarray:
    """The expected interest (S, t, D) before each of these steps, given all that came before.

    Args:
        histories: sessions of the shop, from their beginning.
        particles: P, the shoppers that each might be (Gordon et al. 1993).
    """
    dynamics, tables = shop.dynamics, shop.tables
    s, last = len(histories), max(steps)
    population = shop.world.population
    people = population.draw(rng, s * particles)
    traits = population.traits(people)
    interest_SPD = people.interest.reshape(s, particles, -1)
    base_SP, price_SP = (
        part.reshape(s, particles) for part in (traits.base_rate, traits.price_sensitivity)
    )
    satiation_SK = np.zeros((s, shop.catalogue.num_categories))
    satisfaction_S, weight_SP = np.zeros(s), np.zeros((s, particles))
    low, high = _cuts(shop)
    told = {}
    for t in range(last + 1):
        if t in steps:
            told[t] = np.einsum("sp,spd->sd", _shares(weight_SP), interest_SPD)
        item_S, event_S = histories.items_ST[:, t], histories.events_ST[:, t]
        there_S = (event_S >= 0) & (item_S >= 0)
        items = physics.items_at(xp, tables, np.maximum(item_S, 0))
        utility_SP = physics.utility(
            dynamics,
            np.einsum("spd,sd->sp", interest_SPD, items.embedding),
            items._replace(appeal=items.appeal[:, None], log_price=items.log_price[:, None]),
            physics.satiation_of(xp, satiation_SK, items.category)[:, None],
            price_SP,
            base_SP,
            physics.trust(xp, dynamics, satisfaction_S)[:, None],
        )
        upper, lower = (
            physics.sigmoid(xp, utility_SP + cut[event_S][:, None]) for cut in (high, low)
        )
        weight_SP += there_S[:, None] * np.log(np.maximum(upper - lower, 1e-9))
        for row, chosen in _drawn_again(weight_SP, rng):
            for array in (interest_SPD, base_SP, price_SP):
                array[row] = array[row, chosen]
            interest_SPD[row] += JITTER * rng.standard_normal(interest_SPD[row].shape)
            weight_SP[row] = 0.0
        bought_S = there_S & (event_S == Event.PURCHASE)
        sale_S = bought_S.astype(float)
        drift = dynamics.drift_scale * rng.standard_normal(interest_SPD.shape)
        each = np.broadcast_to(items.embedding[:, None], interest_SPD.shape)
        interest_SPD = physics.move_interest(
            xp, dynamics, interest_SPD, items._replace(embedding=each), sale_S[:, None], drift
        )
        satiation_SK = physics.satiate(xp, dynamics, tables, satiation_SK, items, bought_S)
        satisfaction_S = dynamics.trust_memory * satisfaction_S + sale_S * items.quality
    return np.stack([told[t] for t in steps], axis=1)


def _cuts(shop: Shop) -> tuple[np.ndarray, np.ndarray]:
    """By event, between which log odds an answer lies.

    The probability of an event is sigmoid(utility + high) - sigmoid(utility + low).
    """
    d = shop.dynamics
    offsets = {
        Event.NOT_INTERESTED: (d.dismiss_offset, SURE),
        Event.IGNORE: (d.view_offset, d.dismiss_offset),
        Event.VIEW: (d.cart_offset, d.view_offset),
        Event.CART: (0.0, d.cart_offset),
        Event.PURCHASE: (-SURE, 0.0),
        Event.SEARCH: (-SURE, SURE),
    }
    low, high = np.array([offsets[event] for event in Event]).T
    return low, high


def _shares(weight_SP: np.ndarray) -> np.ndarray:
    share_SP: np.ndarray = np.exp(weight_SP - weight_SP.max(axis=1, keepdims=True))
    return share_SP / share_SP.sum(axis=1, keepdims=True)


def _drawn_again(weight_SP: np.ndarray, rng: np.random.Generator) -> list[tuple[int, np.ndarray]]:
    """Where few particles have all the weight: the session, and those that take their place."""
    share_SP = _shares(weight_SP)
    particles = weight_SP.shape[1]
    few = np.flatnonzero(1.0 / (share_SP**2).sum(axis=1) < 0.5 * particles)
    drawn = []
    for row in few:
        place = (np.arange(particles) + rng.random()) / particles
        chosen = np.searchsorted(share_SP[row].cumsum(), place)
        drawn.append((int(row), np.minimum(chosen, particles - 1)))
    return drawn
