"""The documentation page of the environment is true to the code."""

from __future__ import annotations

import ast
import doctest
import inspect
from dataclasses import Field, fields
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import recenv
from recenv.dynamics import Dynamics, Event
from recenv.env import RecsysEnv
from recenv.scenarios import SCENARIOS
from recenv.shop import AUTORESET_MODES, BOUNDS, Settings

PAGE = inspect.getdoc(RecsysEnv) or ""
HEADINGS = (
    "Description",
    "Action Space",
    "Observation Space",
    "Rewards",
    "Starting State",
    "Episode End",
    "Information",
    "Arguments",
    "Vectorized environment",
    "Version History",
)


def tables(heading: str) -> list[list[list[str]]]:
    """The tables under a heading, as rows of cells without backquotes."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    blocks = [block.splitlines() for block in section.split("\n\n") if block.startswith("|")]
    return [
        [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines[2:]]
        for lines in blocks
    ]


KEYWORDS, PRESETS = ({row[0]: row[1:] for row in table} for table in tables("Arguments"))


def test_headings_are_gymnasiums_in_order() -> None:
    found = [line.removeprefix("## ") for line in PAGE.splitlines() if line.startswith("## ")]
    assert tuple(found) == HEADINGS


@pytest.mark.parametrize("field", [*fields(Settings), *fields(Dynamics)], ids=lambda f: f.name)
def test_every_keyword_stands_with_its_default(field: Field[Any]) -> None:
    default, meaning = KEYWORDS[field.name]
    value = ast.literal_eval(default)
    assert value == field.default
    assert type(value) is type(field.default)
    assert meaning


def test_bounds_that_would_surprise_are_told() -> None:
    for name, (low, high) in BOUNDS.items():
        if high <= 1:  # not just "any number above zero"
            told = KEYWORDS[name][1]
            assert f"{high:g}" in told, name
            assert low == 0 or f"{low:g}" in told, name


def test_no_keyword_is_made_up() -> None:
    known = [field.name for field in (*fields(Settings), *fields(Dynamics))]
    assert list(KEYWORDS) == ["render_mode", *known]


def test_every_scenario_stands_with_what_it_sets() -> None:
    assert list(PRESETS) == list(SCENARIOS)
    for scenario, (sets, isolates) in PRESETS.items():
        told = {} if sets == "nothing" else dict(pair.split("=") for pair in sets.split(", "))
        assert {k: ast.literal_eval(v) for k, v in told.items()} == SCENARIOS[scenario]
        assert isolates


@pytest.mark.parametrize("observation", ["latent", "behaviour"])
def test_the_observation_is_laid_out_as_told(observation: str) -> None:
    shop = recenv.Shop({"observation": observation, "num_categories": 7, "history": 3})
    sizes = {"D": shop.catalogue.interest_dim, "K": 7, "H": 3}
    sizes["F"] = shop.catalogue.features_IF.shape[1]
    told = {}
    for index, name, *_ in tables("Observation Space")[observation == "behaviour"]:
        ends = [eval(end, {"__builtins__": {}}, sizes) for end in index.split(" .. ")]
        told[name] = slice(ends[0], ends[-1] + 1)
    assert told == shop.observer.layout()


def test_the_latent_bounds_are_as_told() -> None:
    shop = recenv.Shop({"scenario": "full", "horizon": 9})
    population, dynamics = shop.world.population, shop.dynamics
    names = {
        "sqrt(D)": 8**0.5,
        "B(satiation_decay)": sum(dynamics.satiation_decay**t for t in range(9)),
        "trust_slope B(trust_memory)": dynamics.trust_slope
        * sum(dynamics.trust_memory**t for t in range(9)),
        "T / the least tolerance": 9 / population.least_tolerance,
        "1 + 3 p": 1 + 3 * population.price_spread,
    }
    high = shop.observer.unflatten(shop.observation_space.high)
    for _, name, _, _, most in tables("Observation Space")[0]:
        bound = names[most] if most in names else float(most)
        np.testing.assert_allclose(high[name], bound, rtol=2e-3, err_msg=name)
        assert (high[name] >= bound).all()


@pytest.mark.parametrize("mode", AUTORESET_MODES)
def test_every_autoreset_mode_is_told(mode: str) -> None:
    assert f'- `"{mode}"`:' in PAGE


def test_every_event_is_told_with_its_code() -> None:
    for event in Event:
        assert f"{event.name} {event.value}" in PAGE


def test_a_step_tells_what_is_told() -> None:
    env = gym.make("Recsys-v0", reveal=True)
    env.reset(seed=0)
    section = PAGE.split("## Information\n")[1].split("\n## ")[0]
    for name, value in env.step(0)[4].items():
        assert f"`{name}`" in section
        for term in value if isinstance(value, dict) else ():
            assert f"`{term}`" in section


def test_its_examples_run() -> None:
    test = doctest.DocTestParser().get_doctest(PAGE, {}, "page", None, None)
    assert len(test.examples) >= 4
    assert doctest.DocTestRunner().run(test).failed == 0
