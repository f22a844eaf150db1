"""What an agent sees is the state, scaled, or the behaviour so far, newest first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recenv.dynamics import Event, trust
from recenv.env import RecsysEnv
from recenv.scenarios import SCENARIOS
from recenv.shop import OBSERVATIONS, Shop
from recenv.vector_env import RecsysVectorEnv

SMALL: dict[str, Any] = {"num_items": 12, "num_categories": 3, "interest_dim": 4, "horizon": 10}


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_its_shape_and_bounds_do_not_depend_on_the_scenario(observation: str) -> None:
    spaces = [
        Shop(SMALL | {"scenario": s, "observation": observation}).observation_space
        for s in SCENARIOS
    ]
    assert len({space.shape for space in spaces}) == 1
    for space in spaces:
        assert np.isfinite(space.low).all()
        assert np.isfinite(space.high).all()
        assert space.dtype == np.float32


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_the_parts_are_named_and_cover_everything(observation: str) -> None:
    shop = Shop(SMALL | {"observation": observation, "history": 3})
    layout = shop.observer.layout()
    covered = [i for part in layout.values() for i in range(part.start, part.stop)]
    assert covered == list(range(shop.observation_space.shape[0]))
    observation_NS = np.arange(2.0 * len(covered)).reshape(2, -1)
    parts = shop.observer.unflatten(observation_NS)
    flat = [parts[name].reshape(2, -1) for name in layout if name in parts]
    if observation == "latent":
        np.testing.assert_array_equal(np.concatenate(flat, axis=1), observation_NS)
    else:
        both = np.concatenate([parts["items"], parts["events"]], axis=-1).reshape(2, -1)
        np.testing.assert_array_equal(np.concatenate([*flat, both], axis=1), observation_NS)


def test_latent_tells_the_whole_state() -> None:
    env = RecsysEnv(**SMALL, scenario="full", churn=True)
    env.reset(seed=3)
    for item in range(4):
        seen, *_ = env.step(item)
    state, traits, shop = env.state, env.traits, env.shop
    dynamics, population = shop.dynamics, shop.world.population
    parts = shop.observer.unflatten(seen)
    expected = {
        "interest": state.interest * 2,  # sqrt(4)
        "satiation": state.satiation / dynamics.satiation_gain,
        "satisfaction": dynamics.trust_slope * state.satisfaction,
        "trust": trust(np, dynamics, state.satisfaction),
        "refusals": state.refusals / traits.tolerance,
        "base_rate": traits.base_rate / population.base_rate_spread,
        "price_sensitivity": traits.price_sensitivity / population.price_sensitivity,
        "remaining": 0.6,
    }
    assert parts.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(parts[name], np.reshape(value, -1), rtol=1e-5, err_msg=name)


def test_a_typical_shopper_is_of_order_one_in_every_entry() -> None:
    env = RecsysVectorEnv(400, scenario="full", churn=True, churn_base=-7.0)
    env.reset(seed=0)
    env.action_space.seed(0)
    seen = [env.step(env.action_space.sample())[0] for _ in range(25)]
    spread = np.abs(np.concatenate(seen)).mean(axis=0)
    assert (spread > 0.02).all()
    assert (spread < 5).all()


def test_behaviour_tells_the_interactions_newest_first() -> None:
    env = RecsysEnv(**SMALL, observation="behaviour", history=3)
    seen, _ = env.reset(seed=1)
    features = env.shop.catalogue.features_IF
    parts = env.shop.observer.unflatten(seen)
    assert parts["remaining"] == pytest.approx(1.0)
    assert not any(parts[name].any() for name in ("counts", "items", "events"))
    events = []
    for t, item in enumerate([4, 9, 4, 0, 7]):
        seen, _, _, _, info = env.step(item)
        events.append(info["event"])
        parts = env.shop.observer.unflatten(seen)
        assert parts["remaining"] == pytest.approx((9 - t) / 10)
        counts = np.bincount(events, minlength=len(Event)) / 10
        np.testing.assert_allclose(parts["counts"], counts, rtol=1e-6)
        past = [4, 9, 4, 0, 7][: t + 1][::-1][:3]
        np.testing.assert_array_equal(parts["items"][: len(past)], features[past])
        assert parts["events"][: len(past)].argmax(axis=1).tolist() == events[::-1][:3]
        np.testing.assert_array_equal(parts["events"][: len(past)].sum(axis=1), 1)
        assert not parts["items"][len(past) :].any()


def test_behaviour_hides_the_state() -> None:
    # whoever answers alike looks alike
    env = RecsysVectorEnv(300, **SMALL, observation="behaviour", history=3)
    env.reset(seed=1)
    seen, *_, info = env.step(np.zeros(300, dtype=int))
    for event in set(info["event"].tolist()):
        assert len(np.unique(seen[info["event"] == event], axis=0)) == 1


@given(
    keywords=st.fixed_dictionaries(
        {
            "num_items": st.integers(1, 9),
            "interest_dim": st.integers(1, 6),
            "horizon": st.integers(1, 40),
            "history": st.integers(1, 4),
            "price_sensitivity": st.floats(-2, 2),
            "satiation_gain": st.floats(0, 20),
            "satiation_decay": st.floats(0, 1),
            "trust_memory": st.floats(0, 1),
            "trust_slope": st.floats(0, 100),
            "interest_pull": st.floats(0, 0.99),
            "drift_scale": st.floats(0, 3),
            "difficulty": st.floats(-20, 20),
            "churn": st.booleans(),
        }
    )
)
def test_observations_lie_within_their_bounds(keywords: dict[str, Any]) -> None:
    for observation in OBSERVATIONS:
        env = RecsysVectorEnv(30, **keywords, observation=observation)
        seen, _ = env.reset(seed=0)
        env.action_space.seed(0)
        for _ in range(env.shop.horizon + 1):
            assert seen in env.observation_space
            seen, *_, info = env.step(env.action_space.sample())
            for final in info.get("final_obs", ()):
                assert final is None or final in env.single_observation_space


def test_the_bounds_hold_over_a_long_session() -> None:
    # rounding adds up: everything is bought, nothing is forgotten
    env = RecsysEnv(
        **SMALL | {"horizon": 5_000, "num_categories": 1},
        trust_memory=1.0,
        satiation_decay=1.0,
        satiation_gain=0.3,
        difficulty=-1e5,
    )
    env.reset(seed=0)
    over, best = False, int(env.shop.catalogue.quality_I.argmax())
    while not over:
        seen, reward, over, _, _ = env.step(best)
        assert reward == 1.0
    assert seen in env.observation_space
