"""Invariants of one step of a shopper, each its own test."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from array_api_compat import numpy as xp
from hypothesis import given
from hypothesis import strategies as st

from recenv import dynamics as physics
from recenv.catalogue import Catalogue
from recenv.dynamics import Dynamics, Event, Items, Outcome, State, Tables, Traits
from recenv.population import decode_luck, normalise
from recenv.scenarios import SCENARIOS
from recenv.shop import Shop
from recenv.vector_env import RecsysVectorEnv

N = 48  # shoppers in a test
SHOP: dict[str, Any] = {
    "num_items": 24,
    "num_categories": 4,
    "interest_dim": 5,
    "scenario": "static",
    "horizon": 30,
}
EVERYTHING: dict[str, Any] = {
    **SHOP,
    "trust_weight": 1.5,
    "satiation_gain": 1.0,
    "interest_pull": 0.1,
    "refusal_push": 0.02,
    "drift_scale": 0.05,
    "churn": True,
}
seeds = st.integers(0, 2**32 - 1)


class Crowd:
    """Shoppers of one shop in the middle of their sessions, and what is shown to them."""

    def __init__(self, seed: int, **keywords: Any):
        self.shop = Shop(SHOP | keywords)
        self.rng = rng = np.random.default_rng(seed)
        sessions = self.shop.arrivals(N).take(rng, N)
        middle = {
            "satiation": rng.exponential(0.5, sessions.state.satiation.shape),
            "satisfaction": rng.normal(0.0, 2.0, N),
            "refusals": rng.integers(0, 8, N),
            "remaining": rng.integers(2, self.shop.horizon, N),
        }
        self.state = sessions.state._replace(**{k: np.float32(v) for k, v in middle.items()})
        self.traits = sessions.traits
        self.threshold, self.drift_row = sessions.threshold[:, 0], sessions.drift_row[:, 0]
        self.action = rng.integers(self.shop.num_items, size=N)

    @property
    def items(self) -> Items:
        """What is shown."""
        return physics.items_at(xp, self.shop.tables, self.action)

    def step(self, **changes: Any) -> Outcome:
        """The step, with some of its arguments replaced."""
        arguments = {
            "tables": self.shop.tables,
            "state": self.state,
            "traits": self.traits,
            "action": self.action,
            "threshold": self.threshold,
            "drift_row": self.drift_row,
        }
        return physics.step(xp, self.shop.dynamics, **(arguments | changes))

    def utilities(self, state: State | None = None, traits: Traits | None = None) -> np.ndarray:
        """(N, I) utilities of all items."""
        items = self.shop.items(xp, self.shop.tables)
        utility: np.ndarray = physics.utilities(
            xp, self.shop.dynamics, state or self.state, traits or self.traits, items
        )
        return utility


def bought(outcome: Outcome) -> np.ndarray:
    return outcome.event == Event.PURCHASE


def all_buy(crowd: Crowd, **changes: Any) -> Outcome:
    return crowd.step(threshold=np.full(N, -50, np.float32), **changes)


def all_refuse(crowd: Crowd, **changes: Any) -> Outcome:
    return crowd.step(threshold=np.full(N, 50, np.float32), **changes)


# --- a shop small enough for paper -----------------------------------------------------------


def test_two_steps_and_a_departure_in_a_shop_worked_out_by_hand() -> None:
    # Log prices 1, 0, -1 have the standard deviation sqrt(2/3): z = 1.2247, 0, -1.2247.
    catalogue = Catalogue(
        category_I=np.array([0, 1, 1]),
        brand_I=np.array([0, 0, 0]),
        price_I=np.exp([1.0, 0.0, -1.0]),
        keywords_IW=np.zeros((3, 0)),
        appeal_I=np.array([0.5, 0.0, -0.5]),
        quality_I=np.array([-0.5, 1.0, 0.0]),
        embedding_ID=np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]),
        num_categories=2,
    )
    dynamics = Dynamics(
        interest_weight=3.0,
        trust_weight=2.0,
        trust_slope=0.5,
        trust_memory=0.9,
        satiation_gain=1.0,
        satiation_decay=0.9,
        interest_pull=0.25,
        churn=True,
        churn_base=-1.0,
        churn_trust=1.0,
    )
    one = np.float32(1.0)
    tables = Tables(
        catalogue.embedding_ID,
        catalogue.facts(2.0),
        np.eye(3, 2),
        np.zeros((1, 2)),
        one,
        np.int8(1),
    )
    traits = Traits(base_rate=0.1 * one, price_sensitivity=0.4 * one, tolerance=5.0 * one)
    state = State(
        interest=np.array([0.8, 0.6]),
        satiation=np.array([0.5, 0.0]),
        satisfaction=0.0 * one,
        refusals=0.0 * one,
        patience=1.0 * one,
        remaining=5.0 * one,
    )

    # 3 <u, v>    + h   - difficulty - 0.4 z  - s   + 2 g + a
    by_hand = [
        3 * 0.80 + 0.5 - 2 - 0.4899 - 0.5 + 0 + 0.1,  # 0.0101
        3 * 0.60 + 0.0 - 2 - 0.0000 - 0.0 + 0 + 0.1,  # -0.1
        3 * 0.96 - 0.5 - 2 + 0.4899 - 0.0 + 0 + 0.1,  # 0.9699
    ]
    items = physics.unpack(xp, tables.embedding, tables.facts)
    utility = physics.utilities(xp, dynamics, state, traits, items)
    np.testing.assert_allclose(utility, by_hand, atol=1e-4)

    def recommend(item: int, threshold: float) -> Outcome:
        return physics.step(
            xp, dynamics, tables, state, traits, item, np.float32(threshold), np.int16(0)
        )

    # Item 0 at threshold -1: a margin of 1.0101, she buys a poor item.
    outcome = recommend(0, -1.0)
    assert outcome.event == Event.PURCHASE
    assert (outcome.purchase_reward, outcome.leaving_charge) == (1.0, 0.0)
    assert not outcome.terminated
    state = outcome.state
    # (0.8 + 0.25, 0.6) over its length 1.20935
    np.testing.assert_allclose(state.interest, [0.86824, 0.49614], atol=1e-4)
    np.testing.assert_allclose(state.satiation, [0.5 * 0.9 + 1, 0.0], atol=1e-6)
    np.testing.assert_allclose(state.satisfaction, -0.5, atol=1e-6)
    assert (state.refusals, state.remaining) == (0.0, 4.0)
    # g = tanh(-0.25) = -0.24492; hazard = sigmoid(-1 + 0.24492 + 0/5) = 0.31971
    np.testing.assert_allclose(state.patience, 1 - 0.31971, atol=1e-4)

    # Item 1 at threshold 0.5: 3 * 0.49614 - 2 + 2 * -0.24492 + 0.1 - 0.5 = -1.40142 lies
    # between -view_offset (-2) and -cart_offset (-1).
    outcome = recommend(1, 0.5)
    assert outcome.event == Event.VIEW
    assert (outcome.purchase_reward, outcome.leaving_charge) == (-1.0, 0.0)
    state = outcome.state
    np.testing.assert_allclose(state.interest, [0.86824, 0.49614], atol=1e-4)
    np.testing.assert_allclose(state.satiation, [1.45 * 0.9, 0.0], atol=1e-6)
    np.testing.assert_allclose(state.satisfaction, -0.45, atol=1e-6)
    assert (state.refusals, state.remaining) == (1.0, 3.0)
    # g = tanh(-0.225) = -0.22128; hazard = sigmoid(-1 + 0.22128 + 1/5) = 0.35923
    np.testing.assert_allclose(state.patience, 0.68029 - 0.35923, atol=1e-4)

    # Item 2 at threshold 10: refused outright, and with a hazard of
    # sigmoid(-1 + 0.19978 + 2/5) = 0.40126 > 0.32106 her patience is at an end.
    outcome = recommend(2, 10.0)
    assert outcome.event == Event.NOT_INTERESTED
    np.testing.assert_allclose(outcome.state.patience, 0.32106 - 0.40126, atol=1e-4)
    assert outcome.terminated
    # two recommendations unseen: 1 - 1 - 1 - 2 = 1 purchase - 4 without
    assert (outcome.purchase_reward, outcome.leaving_charge) == (-1.0, -2.0)


# --- utility and choice ----------------------------------------------------------------------


@given(seeds)
def test_the_utility_of_all_items_agrees_with_that_of_the_gathered_one(seed: int) -> None:
    crowd = Crowd(seed, **EVERYTHING)
    margin = physics.respond(
        xp, crowd.shop.dynamics, crowd.state, crowd.traits, crowd.items, np.zeros(N, np.float32)
    )
    chosen = crowd.utilities()[np.arange(N), crowd.action]
    np.testing.assert_allclose(margin, chosen, rtol=1e-5, atol=1e-5)


@given(seeds, st.floats(0.1, 3.0))
def test_a_higher_price_lowers_the_chance(seed: int, rise: float) -> None:
    crowd = Crowd(seed)
    assert (crowd.traits.price_sensitivity > 0).all()
    items = crowd.shop.items(xp, crowd.shop.tables)
    dearer = items._replace(log_price=items.log_price + np.float32(rise))
    low = physics.utilities(
        xp,
        crowd.shop.dynamics,
        crowd.state,
        crowd.traits,
        dearer,
    )
    assert (low < crowd.utilities()).all()


@given(seeds, st.floats(0.01, 3.0))
def test_a_higher_base_rate_raises_every_chance(seed: int, rise: float) -> None:
    crowd = Crowd(seed)
    eager = crowd.traits._replace(base_rate=crowd.traits.base_rate + np.float32(rise))
    assert (crowd.utilities(traits=eager) > crowd.utilities()).all()


@given(seeds, st.floats(0.01, 3.0), st.integers(0, 3))
def test_satiation_lowers_the_chance_of_its_category_alone(
    seed: int, rise: float, category: int
) -> None:
    crowd = Crowd(seed, **EVERYTHING)
    satiation = crowd.state.satiation.copy()
    satiation[:, category] += np.float32(rise)
    fall = crowd.utilities() - crowd.utilities(crowd.state._replace(satiation=satiation))
    its_own = crowd.shop.catalogue.category_I == category
    np.testing.assert_allclose(fall[:, its_own], rise, rtol=1e-3, atol=1e-5)
    assert (fall[:, ~its_own] == 0).all()


@given(
    margin=st.floats(-20, 20),
    offsets=st.lists(st.floats(0, 8), min_size=3, max_size=3).map(sorted),
)
def test_the_funnel_is_nested(margin: float, offsets: list[float]) -> None:
    cart, view, dismiss = offsets
    dynamics = Dynamics(cart_offset=cart, view_offset=view, dismiss_offset=dismiss)
    tables = Shop(SHOP).tables
    event = Event(physics.classify(dynamics, tables, np.float64(margin), np.bool_(margin > 0)))
    assert (event is Event.PURCHASE) == (margin > 0)
    assert (event in (Event.PURCHASE, Event.CART)) == (margin > -cart or margin > 0)
    assert (event in (Event.PURCHASE, Event.CART, Event.VIEW)) == (margin > -view or margin > 0)
    assert (event is Event.NOT_INTERESTED) == (margin <= -dismiss and not margin > 0)


def test_events_come_with_the_frequencies_of_the_sigmoids() -> None:
    crowd = Crowd(3, cart_offset=0.5, view_offset=1.5, dismiss_offset=3.0)
    utility = crowd.utilities()[np.arange(N), crowd.action].astype(np.float64)
    draws = 4_000
    word = np.random.default_rng(5).integers(2**32, size=(draws, N), dtype=np.uint32)
    threshold, _ = decode_luck(word)
    events = np.stack([crowd.step(threshold=row).event for row in threshold])
    assert Event.SEARCH not in events

    at_least = {
        name: 1 / (1 + np.exp(-utility - offset))
        for name, offset in [("buy", 0.0), ("cart", 0.5), ("view", 1.5), ("bear", 3.0)]
    }
    expected = {
        Event.PURCHASE: at_least["buy"],
        Event.CART: at_least["cart"] - at_least["buy"],
        Event.VIEW: at_least["view"] - at_least["cart"],
        Event.IGNORE: at_least["bear"] - at_least["view"],
        Event.NOT_INTERESTED: 1 - at_least["bear"],
    }
    share = np.stack(list(expected.values()))  # (5, N)
    counts = np.stack([(events == event).sum(axis=0) for event in expected])
    chi_square = ((counts - draws * share) ** 2 / (draws * share)).sum(axis=0)
    # 4 degrees of freedom each; the sum over N has 4 N, so a mean of 4 with deviation 0.41
    assert abs(chi_square.mean() - 4) < 4 * (8 / N) ** 0.5
    assert chi_square.max() < 25  # 5e-5 each


# --- change ----------------------------------------------------------------------------------


@given(seeds, st.floats(0.01, 0.9))
def test_without_drift_and_push_a_purchase_alone_moves_interest_and_toward_its_item(
    seed: int, pull: float
) -> None:
    crowd = Crowd(seed, interest_pull=pull)
    outcome = crowd.step()
    before, after = crowd.state.interest, outcome.state.interest
    nearer = np.einsum("nd,nd->n", after - before, crowd.items.embedding)
    assert (nearer[bought(outcome)] > 0).all()
    np.testing.assert_allclose(after[~bought(outcome)], before[~bought(outcome)], atol=1e-6)


@given(seeds, st.floats(0.01, 0.9))
def test_a_refusal_pushes_interest_away_from_its_item(seed: int, push: float) -> None:
    crowd = Crowd(seed, refusal_push=push)
    outcome = crowd.step()
    before, after = crowd.state.interest, outcome.state.interest
    nearer = np.einsum("nd,nd->n", after - before, crowd.items.embedding)
    assert (nearer[~bought(outcome)] < 0).all()
    np.testing.assert_allclose(after[bought(outcome)], before[bought(outcome)], atol=1e-6)


def test_drift_moves_interest_by_its_scale_and_nowhere_in_particular() -> None:
    scale, dim = 0.05, 16
    crowd = Crowd(0, drift_scale=scale, interest_dim=dim)
    moves = np.stack(
        [crowd.step(drift_row=np.full(N, row)).state.interest for row in range(1024)]
    ) - np.asarray(crowd.state.interest)
    distance = np.sqrt((moves**2).sum(axis=-1).mean())
    # of the D directions one is taken back by the normalisation
    np.testing.assert_allclose(distance, scale * np.sqrt(1 - 1 / dim), rtol=0.03)
    assert np.abs(moves.mean(axis=0)).max() < 0.2 * scale / np.sqrt(dim)


@given(seeds, st.floats(0, 0.99), st.floats(0, 0.99), st.floats(0, 2.0))
def test_interest_stays_a_unit_vector(seed: int, pull: float, push: float, drift: float) -> None:
    crowd = Crowd(seed, interest_pull=pull, refusal_push=push, drift_scale=drift)
    for _ in range(5):
        crowd.state = crowd.step().state
    np.testing.assert_allclose(np.linalg.norm(crowd.state.interest, axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("seed", [0, 2])
def test_interest_of_one_dimension_stays_finite(seed: int) -> None:
    env = RecsysVectorEnv(
        8, num_items=3, num_categories=1, interest_dim=1, interest_pull=0.99, refusal_push=0.99
    )
    env.reset(seed=seed)
    env.action_space.seed(0)
    for _ in range(60):
        observation, *_ = env.step(env.action_space.sample())
        assert np.isfinite(observation).all()


@given(seeds, st.floats(0.0, 1.0), st.floats(0.1, 3.0))
def test_satiation_decays_and_grows_in_the_bought_category_alone(
    seed: int, decay: float, gain: float
) -> None:
    crowd = Crowd(seed, satiation_decay=decay, satiation_gain=gain)
    outcome = crowd.step()
    expected = decay * crowd.state.satiation
    expected[np.flatnonzero(bought(outcome)), crowd.items.category[bought(outcome)]] += gain
    np.testing.assert_allclose(outcome.state.satiation, expected, rtol=1e-5, atol=1e-6)


@given(seeds)
def test_a_poor_purchase_lowers_trust_and_all_chances_and_a_good_one_raises_them(
    seed: int,
) -> None:
    crowd = Crowd(seed, trust_weight=1.5)
    fresh = crowd.state._replace(satisfaction=np.zeros(N, np.float32))
    outcome = all_buy(crowd, state=fresh)
    quality = crowd.items.quality
    trust = physics.trust(xp, crowd.shop.dynamics, outcome.state.satisfaction)
    assert (np.sign(trust) == np.sign(quality)).all()
    change = crowd.utilities(outcome.state) - crowd.utilities(fresh)
    assert (np.sign(change) == np.sign(quality)[:, None]).all()


@given(seeds)
def test_a_refusal_leaves_neither_satisfaction_nor_regret(seed: int) -> None:
    crowd = Crowd(seed, trust_weight=1.5)
    outcome = all_refuse(crowd)
    remembered = crowd.shop.dynamics.trust_memory * crowd.state.satisfaction
    np.testing.assert_allclose(outcome.state.satisfaction, remembered, rtol=1e-6)


@given(seeds)
def test_refusals_in_a_row_are_counted_until_a_purchase(seed: int) -> None:
    crowd = Crowd(seed)
    np.testing.assert_array_equal(all_refuse(crowd).state.refusals, crowd.state.refusals + 1)
    assert (all_buy(crowd).state.refusals == 0).all()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_scenario_changes_only_what_it_names(scenario: str) -> None:
    crowd = Crowd(1, scenario=scenario)
    outcome = crowd.step()
    moved = {
        name: not np.array_equal(getattr(outcome.state, name), getattr(crowd.state, name))
        for name in ("interest", "satiation", "patience")
    }
    assert moved == {
        "interest": scenario in ("drift", "full"),
        "satiation": scenario in ("satiation", "full"),
        "patience": scenario == "churn",
    }
    trusted = crowd.state._replace(satisfaction=crowd.state.satisfaction + 1)
    trust_matters = not np.array_equal(crowd.utilities(trusted), crowd.utilities())
    assert trust_matters == (scenario in ("trust", "full"))


# --- reward and leaving ----------------------------------------------------------------------


@given(seeds)
def test_the_hazard_rises_as_trust_falls_and_refusals_run_on(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dynamics = Dynamics(churn=True)
    satisfaction, tolerance = rng.normal(0, 2, N), rng.uniform(2, 10, N)
    refusals = rng.integers(0, 10, N)
    hazard = physics.hazard(xp, dynamics, satisfaction, refusals, tolerance)
    assert ((hazard > 0) & (hazard < 1)).all()
    assert (physics.hazard(xp, dynamics, satisfaction - 0.1, refusals, tolerance) > hazard).all()
    assert (physics.hazard(xp, dynamics, satisfaction, refusals + 1, tolerance) > hazard).all()
    assert (physics.hazard(xp, dynamics, satisfaction, refusals, tolerance + 1) <= hazard).all()


@given(seeds)
def test_rewards_are_one_and_minus_one_and_the_charge_comes_with_leaving_alone(seed: int) -> None:
    crowd = Crowd(seed, churn=True, churn_base=0.0)
    outcome = crowd.step()
    np.testing.assert_array_equal(outcome.purchase_reward, np.where(bought(outcome), 1, -1))
    left = outcome.state.patience < 0
    unseen = outcome.state.remaining
    np.testing.assert_array_equal(outcome.leaving_charge, np.where(left, -unseen, 0))
    np.testing.assert_array_equal(outcome.terminated, left | (unseen <= 0))


def play(scenario: str, policy: Any, shoppers: int = 64, **keywords: Any) -> dict[str, np.ndarray]:
    """The first session of each shopper, (T, N) each: reward, its terms, and the end."""
    env = RecsysVectorEnv(shoppers, **(SHOP | {"scenario": scenario} | keywords))
    env.reset(seed=11)
    rng = np.random.default_rng(12)
    alive = np.ones(shoppers, dtype=bool)
    rows: dict[str, list[np.ndarray]] = {"reward": [], "purchase": [], "leaving": [], "alive": []}
    for _ in range(env.shop.horizon):
        _, reward, terminated, _, info = env.step(policy(env, rng))
        terms = info.get("final_info", info)["reward_terms"]
        told = {"reward": reward, "alive": alive} | terms
        for name, row in rows.items():
            row.append(told[name] * alive)
        alive = alive & ~terminated
    assert not alive.any()
    return {name: np.stack(row) for name, row in rows.items()}


def choose_random(env: RecsysVectorEnv, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(env.shop.num_items, size=env.num_envs)


def utilities_of(env: RecsysVectorEnv) -> np.ndarray:
    items = env.shop.items(xp, env.shop.tables)
    utility: np.ndarray = physics.utilities(xp, env.shop.dynamics, env.state, env.traits, items)
    return utility


def choose_most_likely(env: RecsysVectorEnv, _: np.random.Generator) -> np.ndarray:
    return utilities_of(env).argmax(axis=1)


def choose_least_likely(env: RecsysVectorEnv, _: np.random.Generator) -> np.ndarray:
    return utilities_of(env).argmin(axis=1)


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("policy", [choose_random, choose_most_likely, choose_least_likely])
def test_the_return_is_purchases_less_the_recommendations_that_did_not_sell(
    scenario: str, policy: Any
) -> None:
    told = play(scenario, policy)
    purchases = (told["purchase"] > 0).sum(axis=0)
    np.testing.assert_array_equal(told["reward"].sum(axis=0), purchases - (30 - purchases))
    if scenario != "churn":
        assert (told["leaving"] == 0).all()
        assert told["alive"].all()


@pytest.mark.parametrize("gamma", [0.9, 0.97, 1.0])
def test_leaving_never_raises_the_discounted_return(gamma: float) -> None:
    told = play("churn", choose_random)
    horizon = len(told["reward"])
    discount = gamma ** np.arange(horizon)[:, None]
    actual = (discount * told["reward"]).sum(axis=0)
    # had she stayed, and refused everything
    stayed = (discount * np.where(told["alive"], told["purchase"], -1)).sum(axis=0)
    left = told["leaving"].sum(axis=0) < 0
    assert left.sum() > 10
    assert (actual[left] <= stayed[left] + 1e-9).all()
    np.testing.assert_allclose(actual[~left], stayed[~left])


@pytest.mark.parametrize("world_seed", [0, 1])
def test_nobody_gains_by_driving_shoppers_away(world_seed: int) -> None:
    policies = (choose_least_likely, choose_random, choose_most_likely)
    told = [play("churn", policy, 128, horizon=50, world_seed=world_seed) for policy in policies]
    worst, random, best = (session["reward"].sum(axis=0).mean() for session in told)
    assert worst < random < best


# --- purity ----------------------------------------------------------------------------------


def freeze(tree: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Make all arrays of nested tuples read-only; return them with copies."""
    if isinstance(tree, tuple):
        return [pair for leaf in tree for pair in freeze(leaf)]
    if not isinstance(tree, np.ndarray):
        return []
    tree.setflags(write=False)
    return [(tree, tree.copy())]


@pytest.mark.parametrize("observation", ["latent", "behaviour"])
@pytest.mark.parametrize("scenario", ["static", "everything"])
def test_no_function_writes_to_its_arguments(scenario: str, observation: str) -> None:
    keywords = EVERYTHING if scenario == "everything" else SHOP
    crowd = Crowd(7, **(keywords | {"observation": observation}))
    shop = crowd.shop
    memory = shop.blank_memory((N,))
    everything = (crowd.state, crowd.traits, shop.tables, shop.lenses, memory)
    frozen = freeze((*everything, crowd.action, crowd.threshold, crowd.drift_row))
    outcome = crowd.step()
    after = shop.remember(xp, shop.lenses, memory, crowd.action, outcome.event)
    frozen += freeze((*outcome, after))
    shop.observe(xp, shop.lenses, outcome.state, crowd.traits, after)
    shop.reveal(xp, shop.tables, outcome.state, crowd.traits, crowd.action)
    again = crowd.step(state=outcome.state)
    assert again.state is not outcome.state
    assert len(frozen) > 15
    for array, copy in frozen:
        np.testing.assert_array_equal(array, copy)


def test_no_function_writes_to_its_tensors() -> None:
    torch = pytest.importorskip("torch")
    from array_api_compat import torch as txp

    crowd = Crowd(8, **EVERYTHING)

    def tensors(leaves: Any) -> Any:
        return type(leaves)(*(torch.as_tensor(np.array(leaf)) for leaf in leaves))

    tables = tensors(crowd.shop.tables)
    state, traits = tensors(crowd.state), tensors(crowd.traits)
    action, threshold, row = (
        torch.as_tensor(np.array(leaf, dtype=dtype))
        for leaf, dtype in [
            (crowd.action, np.int64),
            (crowd.threshold, np.float32),
            (crowd.drift_row, np.int64),
        ]
    )
    arguments = [*tables, *state, *traits, action, threshold, row]
    copies = [leaf.clone() for leaf in arguments]
    physics.step(txp, crowd.shop.dynamics, tables, state, traits, action, threshold, row)
    for leaf, copy in zip(arguments, copies, strict=True):
        assert torch.equal(leaf, copy)


@given(seeds)
def test_normalise_gives_unit_vectors(seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(N, 6)) * 10
    np.testing.assert_allclose(np.linalg.norm(normalise(vectors), axis=-1), 1, atol=1e-5)
