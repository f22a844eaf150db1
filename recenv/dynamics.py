"""One step of a shopper, as pure batched functions: respond -> reward -> change -> leave.

Every function works on numpy and torch alike: ``xp`` is the array namespace
(``array_api_compat``), arrays carry any leading axes ``...`` (none in the single
environment, ``N`` in the batched ones), all luck is an argument, and no argument is
written to. The three environments call these functions and have no physics of their
own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

Array = Any  # np.ndarray, np.floating (no batch axis) or torch.Tensor
WITHHELD = -1  # in place of an event: nothing was recommended, so nobody replied


class Event(IntEnum):
    """What a shopper did with a recommendation (SEARCH: unprompted, never a reply)."""

    IGNORE = 0
    NOT_INTERESTED = 1
    VIEW = 2
    CART = 3
    PURCHASE = 4
    SEARCH = 5


@dataclass(frozen=True)
class Dynamics:
    """The parameters of a step. The defaults are a shop in which nothing changes.

    Attributes:
        interest_weight: utility of a perfect match of interest and item.
        trust_weight: utility gained at full trust, lost at full distrust.
        trust_slope: trust = tanh(trust_slope * net satisfaction).
        trust_memory: share of the net satisfaction that survives a step.
        satiation_gain: utility that a bought category loses at once.
        satiation_decay: share of satiation that survives a step.
        cart_offset, view_offset: how much easier a cart, a view is than a purchase.
        dismiss_offset: how far utility must fall short to be told "not interested".
        interest_pull: movement of interest toward a bought item.
        refusal_push: movement of interest away from a refused item.
        drift_scale: standard deviation of the interest's wandering in one step.
        churn: whether shoppers leave before the horizon.
        churn_base: log odds of leaving on a step, at neutral trust and no refusals.
        churn_trust: log odds of leaving taken off by full trust.
    """

    interest_weight: float = 4.0
    trust_weight: float = 0.0
    trust_slope: float = 0.5
    trust_memory: float = 0.95
    satiation_gain: float = 0.0
    satiation_decay: float = 0.9
    cart_offset: float = 1.0
    view_offset: float = 2.0
    dismiss_offset: float = 4.0
    interest_pull: float = 0.0
    refusal_push: float = 0.0
    drift_scale: float = 0.0
    churn: bool = False
    churn_base: float = -5.0
    churn_trust: float = 3.0

    @property
    def interest_moves(self) -> bool:
        return bool(self.interest_pull or self.refusal_push or self.drift_scale)


class Traits(NamedTuple):
    """Who a shopper is: fixed for a session."""

    base_rate: Array  # (...,) utility she adds to everything
    price_sensitivity: Array  # (...,) utility she loses per standard deviation of log price
    tolerance: Array  # (...,) refusals in a row that she bears


class State(NamedTuple):
    """What changes about a shopper during a session."""

    interest: Array  # (..., D) unit vectors
    satiation: Array  # (..., K) >= 0
    satisfaction: Array  # (...,) net satisfaction m
    refusals: Array  # (...,) recommendations refused in a row
    patience: Array  # (...,) what is left of an Exp(1) that the hazard of leaving eats up
    remaining: Array  # (...,) recommendations still to come


class Items(NamedTuple):
    """What a step needs of items, gathered (...) or whole (I)."""

    embedding: Array  # (..., D) unit vectors
    appeal: Array  # (...,) how tempting it looks, the shop's difficulty taken off
    log_price: Array  # (...,) standardised
    quality: Array  # (...,) in [-1, 1]
    category: Array  # (...,) index


class Tables(NamedTuple):
    """The arrays that every step reads, in one backend."""

    embedding: Array  # (I, D) unit vectors, by themselves: arithmetic on a part of a row is slow
    facts: Array  # (I, 4) appeal, log price, quality, category index
    bump: Array  # (K + 1, K) satiation gained by buying in a category; nothing in the last row
    drift: Array  # (rows, D) frozen normal vectors, times drift_scale
    one: Array  # () in the floats of this backend: one * bool is the cheapest cast
    tick: Array  # () the same in int8


class Outcome(NamedTuple):
    """Everything that one step produced."""

    state: State
    event: Array  # (...,) codes of Event, or WITHHELD
    purchase_reward: Array  # (...,) +1 or -1; 0 where nothing was recommended
    leaving_charge: Array  # (...,) <= 0
    terminated: Array  # (...,) bool


def gather(xp: Any, table: Array, index: Array) -> Array:
    """Rows of a table, (..., F) for an index (...)."""
    # without a batch axis a plain index is ten times faster than ``take``
    return xp.take(table, index, axis=0) if getattr(index, "ndim", 0) else table[index]


def items_at(xp: Any, tables: Tables, index: Array) -> Items:
    """One item each (...), by two gathers."""
    return unpack(xp, gather(xp, tables.embedding, index), gather(xp, tables.facts, index))


def dot(xp: Any, a: Array, b: Array) -> Array:
    """Inner product over the last axis."""
    return xp.einsum("...d,...d->...", a, b)


def unpack(xp: Any, embedding: Array, facts: Array) -> Items:
    """Items from their embeddings (..., D) and facts (..., 4)."""
    appeal, log_price, quality = facts[..., 0], facts[..., 1], facts[..., 2]
    category = xp.astype(facts[..., 3], xp.int64)
    # without a batch axis [()] makes scalars of 0-d arrays: ten times as fast
    return Items(embedding, appeal[()], log_price[()], quality[()], category[()])


def trust(xp: Any, dynamics: Dynamics, satisfaction: Array) -> Array:
    """Trust g in (-1, 1), a saturating function of net satisfaction."""
    return xp.tanh(dynamics.trust_slope * satisfaction)


def utility(
    dynamics: Dynamics,
    affinity: Array,
    items: Items,
    satiation: Array,
    price_sensitivity: Array,
    base_rate: Array,
    trust: Array,
) -> Array:
    """Utility of buying: the one formula, for gathered items or (broadcast) for all.

    ``affinity`` is <interest, embedding> and ``satiation`` that of the item's category.
    """
    shopper = dynamics.trust_weight * trust + base_rate
    item = items.appeal - price_sensitivity * items.log_price
    return dynamics.interest_weight * affinity + item - satiation + shopper


def utilities(xp: Any, dynamics: Dynamics, state: State, traits: Traits, items: Items) -> Array:
    """Utility of every item to every shopper, (..., I). Costs I times a step."""
    return utility(
        dynamics,
        state.interest @ items.embedding.T,
        items,
        xp.take(state.satiation, items.category, axis=-1),
        traits.price_sensitivity[..., None],
        traits.base_rate[..., None],
        trust(xp, dynamics, state.satisfaction)[..., None],
    )


def sigmoid(xp: Any, x: Array) -> Array:
    # through tanh, which does not overflow
    return 0.5 * xp.tanh(0.5 * x) + 0.5


def satiation_of(xp: Any, satiation: Array, category: Array) -> Array:
    """Satiation (...,) with one category each."""
    if not category.ndim:
        return satiation[category]
    # a flat index is far cheaper than take_along_axis
    size = satiation.shape[-1]
    first = xp.arange(0, category.shape[0] * size, size, device=category.device)
    return xp.take(xp.reshape(satiation, (-1,)), first + category)


def respond(
    xp: Any,
    dynamics: Dynamics,
    state: State,
    traits: Traits,
    items: Items,
    threshold: Array,
) -> Array:
    """Utility of one item each, minus the logit of a uniform threshold: the margin.

    It is positive (a purchase) with the probability sigmoid(utility); where it lies
    between the cuts gives the rest of the nested funnel from the same draw.
    """
    value = utility(
        dynamics,
        dot(xp, state.interest, items.embedding),
        items,
        satiation_of(xp, state.satiation, items.category),
        traits.price_sensitivity,
        traits.base_rate,
        trust(xp, dynamics, state.satisfaction),
    )
    return value - threshold


def classify(dynamics: Dynamics, tables: Tables, margin: Array, bought: Array) -> Array:
    """The event (...,) that a margin stands for, as codes of Event in int8."""
    # ticks of a funnel: viewing is worth two, carting and buying one more each, and
    # a dismissal turns an IGNORE into a NOT_INTERESTED
    event = (2 * tables.tick) * (margin > -dynamics.view_offset)
    event = event + (margin > -dynamics.cart_offset) + bought
    return event + (margin <= -dynamics.dismiss_offset)


def move_interest(
    xp: Any, dynamics: Dynamics, interest: Array, items: Items, sale: Array, drift: Array
) -> Array:
    """Interest (..., D) pulled by a purchase, pushed by a refusal, and wandering."""
    push = dynamics.refusal_push
    pull = (dynamics.interest_pull + push) * sale - push
    moved = pull[..., None] * items.embedding
    moved += interest
    moved += drift
    return to_unit(xp, moved)


def to_unit(xp: Any, moved: Array) -> Array:
    """Vectors (..., D) scaled to unit length, in place: they are the caller's own."""
    moved *= (1.0 / xp.sqrt(dot(xp, moved, moved)))[..., None]
    return moved


def satiate(
    xp: Any, dynamics: Dynamics, tables: Tables, satiation: Array, items: Items, bought: Array
) -> Array:
    """Satiation (..., K) decayed, and grown in the bought category."""
    nothing = satiation.shape[-1]  # the last row of the bumps
    decayed = dynamics.satiation_decay * satiation
    decayed += gather(xp, tables.bump, nothing - (nothing - items.category) * bought)
    return decayed


def hazard(
    xp: Any, dynamics: Dynamics, satisfaction: Array, refusals: Array, tolerance: Array
) -> Array:
    """The hazard (...,) of leaving on this step."""
    distrust = -dynamics.churn_trust * trust(xp, dynamics, satisfaction)
    return sigmoid(xp, dynamics.churn_base + distrust + refusals / tolerance)


def step(
    xp: Any,
    dynamics: Dynamics,
    tables: Tables,
    state: State,
    traits: Traits,
    action: Array,
    threshold: Array,
    drift_row: Array,
) -> Outcome:
    """One recommendation each: respond, reward, change, leave.

    A shopper who leaves is charged -1 for each recommendation that she will not see,
    so that the return is always purchases - (T - purchases) and leaving never pays.

    Args:
        action: (...,) the recommended items.
        threshold: (...,) logits of uniforms.
        drift_row: (...,) rows of the drift table; not looked at where nothing wanders.
    """
    items = items_at(xp, tables, action)
    margin = respond(xp, dynamics, state, traits, items, threshold)
    bought = margin > 0
    sale = tables.one * bought

    interest, satiation, patience = state.interest, state.satiation, state.patience
    if dynamics.interest_moves:
        drift = gather(xp, tables.drift, drift_row) if dynamics.drift_scale else 0.0
        interest = move_interest(xp, dynamics, interest, items, sale, drift)
    if dynamics.satiation_gain:
        satiation = satiate(xp, dynamics, tables, satiation, items, bought)
    satisfaction = dynamics.trust_memory * state.satisfaction + sale * items.quality
    refusals = (state.refusals + 1.0) * (1.0 - sale)
    remaining = state.remaining - 1.0
    if dynamics.churn:
        patience = patience - hazard(xp, dynamics, satisfaction, refusals, traits.tolerance)
    left = patience < 0
    return Outcome(
        state=State(interest, satiation, satisfaction, refusals, patience, remaining),
        event=classify(dynamics, tables, margin, bought),
        purchase_reward=2.0 * sale - 1.0,
        leaving_charge=0.0 - remaining * left,  # not -(...), which shows as -0.0
        terminated=left | (remaining <= 0),
    )


def rest(xp: Any, dynamics: Dynamics, tables: Tables, state: State, drift_row: Array) -> State:
    """What a step without a recommendation does to a shopper: time passes, and no more.

    Satiation decays, satisfaction is forgotten and interest wanders as in ``step``. Her run
    of refusals neither grows nor ends, and nothing makes her leave: that is a reply to
    what she is shown.
    """
    interest, satiation = state.interest, state.satiation
    if dynamics.drift_scale:
        interest = to_unit(xp, interest + gather(xp, tables.drift, drift_row))
    if dynamics.satiation_gain:
        satiation = dynamics.satiation_decay * satiation
    return State(
        interest=interest,
        satiation=satiation,
        satisfaction=dynamics.trust_memory * state.satisfaction,
        refusals=state.refusals,
        patience=state.patience,
        remaining=state.remaining - 1.0,
    )


def gate(
    xp: Any,
    dynamics: Dynamics,
    tables: Tables,
    state: State,
    traits: Traits,
    recommended: Array,
    candidate: Array,
    threshold: Array,
    drift_row: Array,
) -> Outcome:
    """One candidate each: a ``step`` where it is recommended, a ``rest`` where it is not.

    Leaving carries no charge. Not recommending is worth 0 and drives nobody away, so that
    a shopper who stays is worth at least 0, and one who has left exactly 0.

    Args:
        recommended: (...,) bool.
        candidate: (...,) the items that may be recommended.
        threshold, drift_row: as in ``step``.
    """
    shown = step(xp, dynamics, tables, state, traits, candidate, threshold, drift_row)
    rested = rest(xp, dynamics, tables, state, drift_row)

    def choose(one: Array, other: Array) -> Array:
        mask = recommended[..., None] if getattr(one, "ndim", 0) > recommended.ndim else recommended
        return one if one is other else xp.where(mask, one, other)[()]

    return Outcome(
        state=State(*map(choose, shown.state, rested)),
        event=choose(shown.event, WITHHELD * tables.tick),
        purchase_reward=choose(shown.purchase_reward, 0.0 * tables.one),
        leaving_charge=xp.zeros_like(shown.leaving_charge)[()],
        terminated=choose(shown.terminated, rested.remaining <= 0),
    )
