"""What could be known of an interest at all: a Bayes filter that knows the shop's true model.

It knows who comes and how they respond and change, item secrets included, but not who this
shopper is: of her it sees what any interest model sees. Like the oracles it is nothing that a
shop could run. It bounds, up to the noise of its particles, what can be recovered from
behaviour, and ``encoder=bayes`` shows what a policy makes of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from array_api_compat import numpy as xp
from gymnasium import spaces
from torch import nn

from agents.interest.histories import NOTHING, Histories
from agents.interest.reading import behaviour_of, keys, since_reply
from agents.towers import find
from recenv import dynamics as physics
from recenv.dynamics import Event
from recenv.observation import with_words
from recenv.organic import Habits, word_vectors
from recenv.seeding import Role, derive_seed
from recenv.shop import Shop

JITTER = 0.03  # of interests that were drawn again, so that they do not become too few
SURE = 1e3  # log odds of what cannot fail
PARTICLES = 256  # of a filter that stands before a policy


class Belief(NamedTuple):
    """P shoppers that each of N might be, and what is known of her for certain."""

    interest_NPD: np.ndarray
    base_rate_NP: np.ndarray
    price_sensitivity_NP: np.ndarray
    log_weight_NP: np.ndarray
    satiation_NK: np.ndarray
    satisfaction_N: np.ndarray

    @property
    def share_NP(self) -> np.ndarray:
        """How likely she is each of them."""
        weight_NP = np.exp(self.log_weight_NP - self.log_weight_NP.max(axis=1, keepdims=True))
        share_NP: np.ndarray = weight_NP / weight_NP.sum(axis=1, keepdims=True)
        return share_NP

    @property
    def interest_ND(self) -> np.ndarray:
        """Her expected interest, the shorter the less is known."""
        interest_ND: np.ndarray = np.einsum("np,npd->nd", self.share_NP, self.interest_NPD)
        return interest_ND


class BayesFilter:
    """A particle filter of shoppers (Gordon et al. 1993).

    Args:
        shop: whose true model it knows.
        particles: P.
    """

    def __init__(self, shop: Shop, particles: int):
        self.shop, self.particles = shop, particles
        self._low, self._high = cuts(shop)
        self._word_DW = word_vectors(shop.catalogue).T

    def begin(self, count: int, rng: np.random.Generator) -> Belief:
        """What is believed of newcomers."""
        n, p = count, self.particles
        population = self.shop.world.population
        people = population.draw(rng, n * p)
        traits = population.traits(people)
        return Belief(
            np.array(people.interest, dtype=np.float64).reshape(n, p, -1),
            np.array(traits.base_rate, dtype=np.float64).reshape(n, p),
            np.array(traits.price_sensitivity, dtype=np.float64).reshape(n, p),
            np.zeros((n, p)),
            np.zeros((n, self.shop.catalogue.num_categories)),
            np.zeros(n),
        )

    def advance(
        self, belief: Belief, item_N: np.ndarray, event_N: np.ndarray, rng: np.random.Generator
    ) -> Belief:
        """What is believed after one more interaction; item or event -1: there was none."""
        alone_N = event_N == Event.SEARCH
        there_N = (event_N >= 0) & (item_N >= 0) & ~alone_N
        items = physics.items_at(xp, self.shop.tables, np.where(there_N, item_N, 0))
        log_weight_NP = belief.log_weight_NP + there_N[:, None] * np.log(
            self._likelihood_NP(belief, items, event_N)
        )
        if alone_N.any():
            log_weight_NP[alone_N] += self._chosen_nP(_some(belief, alone_N), item_N[alone_N])
        belief = _drawn_again(belief._replace(log_weight_NP=log_weight_NP), rng)
        bought_N = there_N & (event_N == Event.PURCHASE)
        after = self._changed(belief, items, bought_N, rng)
        for now, before in zip(after, belief, strict=True):
            now[alone_N] = before[alone_N]  # time passes with recommendations alone
        return after

    def _chosen_nP(self, belief: Belief, choice_n: np.ndarray) -> np.ndarray:
        """Log probability that each of them would have looked at this item of all, or (from I on)
        searched for this word of all."""
        told_nP = np.zeros(belief.log_weight_NP.shape)
        for n, choice in enumerate(choice_n):
            searched = choice >= self.shop.num_items
            log_odds_PC = self._search_PW(belief, n) if searched else self._view_PI(belief, n)
            all_P = torch.logsumexp(torch.as_tensor(log_odds_PC), dim=1).numpy()
            column = choice - self.shop.num_items if searched else choice
            told_nP[n] = log_odds_PC[:, column] - all_P
        return told_nP

    def _view_PI(self, belief: Belief, n: int) -> np.ndarray:
        """Utility of every item to those that the n-th might be."""
        dynamics, items = self.shop.dynamics, self.shop.items(xp, self.shop.tables)
        utility_PI: np.ndarray = physics.utility(
            dynamics,
            belief.interest_NPD[n] @ items.embedding.T,
            items,
            belief.satiation_NK[n][items.category],
            belief.price_sensitivity_NP[n][:, None],
            belief.base_rate_NP[n][:, None],
            physics.trust(xp, dynamics, belief.satisfaction_N[n]),
        )
        return utility_PI

    def _search_PW(self, belief: Belief, n: int) -> np.ndarray:
        """Log odds of every word to those that the n-th might be."""
        log_odds_PW: np.ndarray = Habits().sharpness * belief.interest_NPD[n] @ self._word_DW
        return np.where(self._word_DW.any(axis=0), log_odds_PW, -np.inf)

    def _likelihood_NP(
        self, belief: Belief, items: physics.Items, event_N: np.ndarray
    ) -> np.ndarray:
        """How likely each of them would have answered so."""
        dynamics, several = self.shop.dynamics, (slice(None), None)
        utility_NP = physics.utility(
            dynamics,
            np.einsum("npd,nd->np", belief.interest_NPD, items.embedding),
            items._replace(appeal=items.appeal[several], log_price=items.log_price[several]),
            physics.satiation_of(xp, belief.satiation_NK, items.category)[several],
            belief.price_sensitivity_NP,
            belief.base_rate_NP,
            physics.trust(xp, dynamics, belief.satisfaction_N)[several],
        )
        upper_NP, lower_NP = (
            physics.sigmoid(xp, utility_NP + cut[event_N][several])
            for cut in (self._high, self._low)
        )
        likely_NP: np.ndarray = upper_NP - lower_NP
        return likely_NP.clip(min=1e-9)

    def _changed(
        self, belief: Belief, items: physics.Items, bought_N: np.ndarray, rng: np.random.Generator
    ) -> Belief:
        dynamics, interest_NPD = self.shop.dynamics, belief.interest_NPD
        sale_N = bought_N.astype(float)
        drift = dynamics.drift_scale * rng.standard_normal(interest_NPD.shape)
        each = np.broadcast_to(items.embedding[:, None], interest_NPD.shape)
        return belief._replace(
            interest_NPD=physics.move_interest(
                xp, dynamics, interest_NPD, items._replace(embedding=each), sale_N[:, None], drift
            ),
            satiation_NK=physics.satiate(
                xp, dynamics, self.shop.tables, belief.satiation_NK, items, bought_N
            ),
            satisfaction_N=dynamics.trust_memory * belief.satisfaction_N + sale_N * items.quality,
        )


def cuts(shop: Shop) -> tuple[np.ndarray, np.ndarray]:
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


def _some(belief: Belief, which_N: np.ndarray) -> Belief:
    """Beliefs of some shoppers."""
    return Belief(*(leaf[which_N] for leaf in belief))


def _put(belief: Belief, row_n: np.ndarray, new: Belief) -> None:
    """Put the beliefs of some shoppers in their rows."""
    for leaf, part in zip(belief, new, strict=True):
        leaf[row_n] = part


def _drawn_again(belief: Belief, rng: np.random.Generator) -> Belief:
    """Where few particles have all the weight, those take the place of the others."""
    share_NP, particles = belief.share_NP, belief.log_weight_NP.shape[1]
    few = np.flatnonzero(1.0 / (share_NP**2).sum(axis=1) < 0.5 * particles)
    place = (np.arange(particles) + rng.random((len(few), 1))) / particles
    chosen = [
        np.searchsorted(cumulated, at)
        for cumulated, at in zip(share_NP[few].cumsum(axis=1), place, strict=True)
    ]
    source = np.arange(particles) + np.zeros((len(share_NP), 1), dtype=int)
    source[few] = np.minimum(np.reshape(chosen, (len(few), particles)), particles - 1)
    interest_NPD, base_NP, price_NP = (
        np.take_along_axis(part, source.reshape(*source.shape, *[1] * (part.ndim - 2)), axis=1)
        for part in (belief.interest_NPD, belief.base_rate_NP, belief.price_sensitivity_NP)
    )
    interest_NPD[few] += JITTER * rng.standard_normal(interest_NPD[few].shape)
    log_weight_NP = belief.log_weight_NP.copy()
    log_weight_NP[few] = 0.0
    return belief._replace(
        interest_NPD=interest_NPD,
        base_rate_NP=base_NP,
        price_sensitivity_NP=price_NP,
        log_weight_NP=log_weight_NP,
    )


def filtered(
    histories: Histories, shop: Shop, steps: list[int], rng: np.random.Generator, particles: int
) -> np.ndarray:
    """The expected interest (S, t, D) before each of these steps, given all that came before.

    Args:
        histories: sessions of the shop, from their beginning.
    """
    knows = BayesFilter(shop, particles)
    belief, told = knows.begin(len(histories), rng), {}
    for t in range(max(steps) + 1):
        if t in steps:
            told[t] = belief.interest_ND
        belief = knows.advance(belief, histories.items_ST[:, t], histories.events_ST[:, t], rng)
    return np.stack([told[t] for t in steps], axis=1)


class FilterReader(nn.Module):
    """A Bayes filter in the place of the latent state, as ``reading.Reader`` is.

    Observations of behaviour (N, S) -> (N, G): expected interest * sqrt(D) | satiation (K) |
    length of the expected interest | scaled satisfaction | trust | expected base rate | expected
    price sensitivity | remaining / T | share of each event so far (6).

    Its memory (N, M) holds the particles, and in the last column how often it was carried on:
    all noise follows from that and the seed, so that who goes on from a memory ends alike.
    """

    def __init__(self, shop: Shop, seed: int):
        super().__init__()
        self.shop, self.observer = shop, behaviour_of(shop)
        self.knows = BayesFilter(shop, PARTICLES)
        self.seed = derive_seed(Role.AGENT, seed)
        known_IF = with_words(self.observer.features_IF, self.observer.words)
        self.key_I = keys(torch.as_tensor(known_IF))
        blank = self.knows.begin(1, self._rng())
        self.shapes = [part.shape[1:] for part in blank]
        nothing = self.observer.unflatten(np.zeros((1, self.observer.size)))
        self.size = self._told(blank, nothing).shape[1]

    @property
    def space(self) -> spaces.Box:
        """What a policy behind it sees."""
        return spaces.Box(-np.inf, np.inf, (self.size,), dtype=np.float32)

    def follow(
        self,
        observation: np.ndarray,
        memory: torch.Tensor | None,
        start_N: np.ndarray | None = None,
    ) -> tuple[np.ndarray, torch.Tensor]:
        """What a policy sees (N, G), and the memory (N, M) to pass with the next observations.

        Args:
            memory: of the observations before; None: there are none, or they are unknown.
            start_N: whose sessions have begun just now.
        """
        parts = self.observer.unflatten(observation)
        if memory is None or len(memory) != len(observation):
            belief, turn = self._recalled(parts, 0), 0
        else:
            table = memory.cpu().numpy().copy()  # beliefs are written in place
            turn = int(table[:, -1].max()) + 1
            belief, rng = self._unpacked(table), self._rng(turn)
            news = since_reply(torch.as_tensor(parts["events"]))
            new_N, anew_N = (told.numpy() for told in news)
            if start_N is not None:
                anew_N = anew_N | start_N
            for age in reversed(range(int(new_N.max()))):
                row = np.flatnonzero(new_N > age)
                seen = self._interactions(parts["items"][row, age], parts["events"][row, age])
                _put(belief, row, self.knows.advance(_some(belief, row), *seen, rng))
            if anew_N.any():
                fresh = self._recalled({name: part[anew_N] for name, part in parts.items()}, turn)
                _put(belief, np.flatnonzero(anew_N), fresh)
        return self._told(belief, parts), self._packed(belief, turn)

    def save(self, directory: Path) -> None:
        """It has learned nothing that must be kept."""

    def _rng(self, *turn: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *turn])

    def _recalled(self, parts: dict[str, np.ndarray], turn: int) -> Belief:
        """What is believed after the interactions of windows."""
        item_NH, event_NH = self._interactions(parts["items"], parts["events"])
        rng = self._rng(turn, 1)
        belief = self.knows.begin(len(item_NH), rng)
        for age in reversed(range(int((event_NH != NOTHING).sum(axis=1).max(initial=0)))):
            belief = self.knows.advance(belief, item_NH[:, age], event_NH[:, age], rng)
        return belief

    def _interactions(
        self, features: np.ndarray, events: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Item features (..., F) and events (..., 6) -> item numbers, event codes; -1 for none."""
        happened = events.sum(-1) > 0
        item = np.full(happened.shape, NOTHING)
        item[happened] = find(keys(torch.as_tensor(features[happened])), self.key_I).numpy()
        return item, np.where(happened, events.argmax(-1), NOTHING)

    def _told(self, belief: Belief, parts: dict[str, np.ndarray]) -> np.ndarray:
        dynamics, share_NP = self.shop.dynamics, belief.share_NP
        interest_ND = belief.interest_ND
        satisfaction_N = dynamics.trust_slope * belief.satisfaction_N
        scalars = (
            np.linalg.norm(interest_ND, axis=1),
            satisfaction_N,
            np.tanh(satisfaction_N),
            (share_NP * belief.base_rate_NP).sum(axis=1),
            (share_NP * belief.price_sensitivity_NP).sum(axis=1),
        )
        seen = [interest_ND * interest_ND.shape[1] ** 0.5, belief.satiation_NK]
        seen += [np.stack(scalars, axis=1), parts["remaining"], parts["counts"]]
        told: np.ndarray = np.concatenate(seen, axis=1).astype(np.float32)
        return told

    def _packed(self, belief: Belief, turn: int) -> torch.Tensor:
        n = len(belief.satisfaction_N)
        rows = [part.reshape(n, -1) for part in belief] + [np.full((n, 1), float(turn))]
        return torch.as_tensor(np.concatenate(rows, axis=1))

    def _unpacked(self, table: np.ndarray) -> Belief:
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])
        pieces = np.split(table[:, : ends[-1]], ends[:-1], axis=1)
        return Belief(
            *(
                part.reshape(len(table), *shape)
                for part, shape in zip(pieces, self.shapes, strict=True)
            )
        )
