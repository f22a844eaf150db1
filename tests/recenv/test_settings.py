"""Keywords become a shop: defaults, precedence, and a description in JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from recenv import Shop
from recenv.scenarios import SCENARIOS
from recenv.shop import BOUNDS, DYNAMICS_NAMES, SETTING_NAMES, describe

SMALL: dict[str, Any] = {"num_items": 12, "num_categories": 3, "interest_dim": 4}


def test_the_default_is_full() -> None:
    assert Shop({}).scenario == "full"
    assert Shop({}).dynamics == Shop({"scenario": "full"}).dynamics


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_scenario_sets_what_it_lists(scenario: str) -> None:
    dynamics = Shop(SMALL | {"scenario": scenario}).dynamics
    for name, value in SCENARIOS[scenario].items():
        assert getattr(dynamics, name) == value


def test_a_keyword_goes_before_the_scenario_and_the_scenario_before_the_default() -> None:
    plain = Shop(SMALL | {"scenario": "static"}).dynamics
    preset = Shop(SMALL | {"scenario": "trust"}).dynamics
    chosen = Shop(SMALL | {"scenario": "trust", "trust_weight": 0.25}).dynamics
    assert (plain.trust_weight, preset.trust_weight, chosen.trust_weight) == (0.0, 2.0, 0.25)


def test_a_keyword_goes_before_the_world() -> None:
    shop = Shop(SMALL | {"interest_weight": 1.25, "difficulty": 0.5, "price_sensitivity": 0.75})
    assert shop.dynamics.interest_weight == 1.25
    assert shop.difficulty == 0.5
    assert shop.world.population.price_sensitivity == 0.75
    free = Shop(SMALL | {"difficulty": 0.0}).tables.facts[:, 0]
    np.testing.assert_allclose(free - shop.tables.facts[:, 0], 0.5, atol=1e-6)


def test_none_means_the_default() -> None:
    nothing = dict.fromkeys((*SETTING_NAMES, *DYNAMICS_NAMES))
    assert describe(Shop(nothing)) == describe(Shop({}))


def test_numbers_become_pythons_own() -> None:
    shop = Shop({"num_items": np.int64(12), "horizon": np.int32(5), "trust_weight": np.float32(1)})
    assert type(shop.settings.num_items) is int
    assert type(shop.settings.horizon) is int
    assert type(shop.dynamics.trust_weight) is float
    assert type(Shop({"trust_weight": 1}).dynamics.trust_weight) is float


def test_num_categories_fits_few_items() -> None:
    assert Shop({"num_items": 5}).catalogue.num_categories == 5
    assert Shop({"num_items": 50}).catalogue.num_categories == 10


def test_every_number_has_bounds() -> None:
    numbers = set(SETTING_NAMES) | set(DYNAMICS_NAMES)
    words = {"world", "scenario", "observation", "reveal", "autoreset_mode", "churn"}
    assert numbers - words == set(BOUNDS)


def test_the_description_is_json_and_rebuilds_the_shop() -> None:
    keywords = SMALL | {"scenario": "drift", "drift_scale": np.float64(0.25), "num_shoppers": 9}
    told = describe(Shop(keywords))
    assert json.loads(json.dumps(told)) == told
    again = Shop(told["settings"] | told["dynamics"])
    assert describe(again)["dynamics"] == told["dynamics"]


def test_the_dimensions_of_the_shop_are_those_of_its_spaces() -> None:
    shop = Shop(SMALL)
    assert shop.action_space.n == 12
    assert shop.observation_space.shape == (4 + 3 + 6,)
