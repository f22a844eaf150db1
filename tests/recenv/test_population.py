"""Who comes and with what luck: drawn from one generator, by role, never by what is shown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recenv.population import (
    DRIFT_ROWS,
    TRAIT_LIMIT,
    Arrivals,
    Population,
    Sessions,
    decode_luck,
    drift_table,
)
from recenv.seeding import Role, derive_seed, generator


def a_population(**changes: Any) -> Population:
    centre_CD = np.float32([[1, 0, 0], [0, 1, 0]])
    population = Population(
        weight_C=np.float32([0.25, 0.75]),
        centre_CD=centre_CD,
        spread_CD=np.full((2, 3), 0.01, np.float32),
    )
    return replace(population, **changes)


def queue(block: int = 8, **keywords: Any) -> Arrivals:
    return Arrivals(a_population(), num_categories=4, horizon=6, block=block, **keywords)


def leaves(sessions: Sessions) -> list[np.ndarray]:
    luck = (sessions.threshold, sessions.drift_row)
    return [sessions.shopper_id, *sessions.state, *sessions.traits, *luck]


@given(
    st.lists(st.sampled_from([0.0, 1e-9, 1e-4, 0.1, 0.5, 1.0, 7.0]), min_size=1, max_size=40)
    .map(np.array)
    .filter(lambda weight: weight.sum() > 0),
    st.integers(0, 2**32 - 1),
)
def test_components_are_those_in_whose_shares_uniforms_lie(weight: np.ndarray, seed: int) -> None:
    share_C = weight / weight.sum()
    vector_CD = np.ones((len(weight), 2), np.float32)
    population = Population(weight_C=share_C, centre_CD=vector_CD, spread_CD=vector_CD)
    end_C = np.cumsum(share_C)[:-1] / np.cumsum(share_C)[-1]
    uniform = np.concatenate([np.random.default_rng(seed).random(50), [0.0, 1 - 2**-53], end_C])
    uniform = uniform[uniform < 1]
    expected = np.searchsorted(end_C, uniform)
    np.testing.assert_array_equal(population.components(uniform), expected)


# --- luck ------------------------------------------------------------------------------------


def test_thresholds_are_logistic() -> None:
    n = 200_000
    word = np.random.default_rng(0).integers(2**32, size=n, dtype=np.uint32)
    threshold, row = decode_luck(word)
    assert threshold.dtype == np.float32
    # Kolmogorov-Smirnov against 1 / (1 + exp(-x)), at the 0.1% level
    uniform = np.sort(1 / (1 + np.exp(-threshold.astype(np.float64))))
    distance = np.abs(uniform - (np.arange(n) + 0.5) / n).max()
    assert distance < 1.95 / np.sqrt(n)
    # rows of the drift table are uniform (1,023 degrees of freedom), and tell nothing of it
    counts = np.bincount(row, minlength=DRIFT_ROWS)
    chi_square = ((counts - n / DRIFT_ROWS) ** 2 / (n / DRIFT_ROWS)).sum()
    assert abs(chi_square - DRIFT_ROWS) < 4 * np.sqrt(2 * DRIFT_ROWS)
    assert abs(np.corrcoef(uniform[np.argsort(np.argsort(threshold))], row)[0, 1]) < 0.01


def test_the_extreme_words_have_finite_thresholds_and_rows_of_the_table() -> None:
    threshold, row = decode_luck(np.array([0, 2**32 - 1, 2**31], dtype=np.uint32))
    assert np.isfinite(threshold).all()
    np.testing.assert_allclose(threshold, [-threshold[1], threshold[1], 0], atol=1e-6)
    assert row.tolist() == [0, DRIFT_ROWS - 1, 0]


def test_luck_is_independent_from_step_to_step_and_from_shopper_to_shopper() -> None:
    threshold = queue(block=2_000).take(np.random.default_rng(1), 2_000).threshold
    correlation = np.corrcoef(threshold.T) - np.eye(6)
    assert np.abs(correlation).max() < 4 / np.sqrt(2_000)
    neighbours = np.corrcoef(threshold[:-1].ravel(), threshold[1:].ravel())[0, 1]
    assert abs(neighbours) < 4 / np.sqrt(12_000)


@pytest.mark.parametrize("interest_dim", [1, 8, 64])
def test_the_drift_table_has_zero_mean_and_unit_norm_on_average(interest_dim: int) -> None:
    table = drift_table(interest_dim)
    assert table.shape == (DRIFT_ROWS, interest_dim)
    np.testing.assert_allclose(table.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose((table**2).sum(axis=1).mean(), 1, rtol=0.1)
    np.testing.assert_array_equal(table, drift_table(interest_dim))


def test_patience_is_exponential() -> None:
    patience = queue(block=20_000).take(np.random.default_rng(2), 20_000).state.patience
    # P(still there after a cumulated hazard x) = exp(-x)
    for hazard in (0.1, 1.0, 3.0):
        np.testing.assert_allclose((patience > hazard).mean(), np.exp(-hazard), atol=0.012)


# --- streams ---------------------------------------------------------------------------------


def test_streams_of_two_roles_or_two_seeds_are_independent() -> None:
    streams = np.stack([generator(r, s).standard_normal(4_000) for r in Role for s in (0, 1, 2)])
    correlation = np.corrcoef(streams) - np.eye(len(streams))
    assert np.abs(correlation).max() < 5 / np.sqrt(4_000)


def test_a_stream_repeats() -> None:
    draws = [generator(Role.WORLD, 3).random(5).tolist() for _ in range(2)]
    assert draws[0] == draws[1]


def test_the_numbers_of_roles_are_part_of_every_published_figure() -> None:
    assert {role.name: int(role) for role in Role} == {
        "WORLD": 1,
        "CLIENTELE": 2,
        "DRIFT_TABLE": 3,
        "CALIBRATION": 4,
        "TRAINING": 5,
        "EVALUATION": 6,
        "AGENT": 7,
        "TUNING": 8,
        "STATISTICS": 9,
        "LOG": 10,
        "ORGANIC": 11,
        "SPLIT": 12,
    }


@given(st.sampled_from(Role), st.integers(0, 2**40))
def test_derived_seeds_fit_31_bits(role: Role, seed: int) -> None:
    assert 0 <= derive_seed(role, seed) < 2**31
    assert derive_seed(role, seed) == derive_seed(role, seed)


def test_derived_seeds_do_not_collide() -> None:
    derived = {derive_seed(role, seed) for role in Role for seed in range(200)}
    assert len(derived) == len(Role) * 200


# --- arrivals --------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_who_comes_does_not_depend_on_how_many_are_taken_at_once(counts: list[int]) -> None:
    one, rng = queue(), np.random.default_rng(5)
    parts = [leaves(one.take(rng, count)) for count in counts]
    whole = leaves(queue().take(np.random.default_rng(5), sum(counts)))
    for part, expected in zip(zip(*parts, strict=True), whole, strict=True):
        np.testing.assert_array_equal(np.concatenate(part), expected)


def test_newcomers_start_afresh_and_are_numbered() -> None:
    sessions = queue().take(np.random.default_rng(0), 20)
    state = sessions.state
    assert sessions.shopper_id.tolist() == list(range(20))
    assert not any(leaf.any() for leaf in (state.satiation, state.satisfaction, state.refusals))
    assert (state.remaining == 6).all()
    np.testing.assert_allclose(np.linalg.norm(state.interest, axis=1), 1, atol=1e-6)
    assert sessions.threshold.shape == sessions.drift_row.shape == (20, 6)


def test_everything_is_as_small_as_it_can_be() -> None:
    sessions = queue().take(np.random.default_rng(0), 3)
    for leaf in (*sessions.state, *sessions.traits, sessions.threshold):
        assert leaf.dtype == np.float32
    assert sessions.drift_row.dtype == np.int16


def test_clearing_forgets_who_waits() -> None:
    arrivals = queue()
    arrivals.take(np.random.default_rng(0), 3)
    arrivals.clear()
    again = arrivals.take(np.random.default_rng(0), 3)
    assert again.shopper_id.tolist() == [0, 1, 2]
    first = queue().take(np.random.default_rng(0), 3)
    np.testing.assert_array_equal(again.state.interest, first.state.interest)


# --- the distribution ------------------------------------------------------------------------


def test_interests_come_from_the_mixture() -> None:
    people = a_population().draw(np.random.default_rng(0), 10_000)
    second = people.interest[:, 1] > 0.5
    np.testing.assert_allclose(second.mean(), 0.75, atol=0.02)
    np.testing.assert_allclose(people.interest[second].mean(axis=0), [0, 1, 0], atol=0.01)
    np.testing.assert_allclose(people.interest[~second].mean(axis=0), [1, 0, 0], atol=0.01)


def test_traits_have_the_spread_that_they_are_given() -> None:
    population = a_population(base_rate_spread=0.4, price_sensitivity=2.0, price_spread=0.2)
    traits = population.traits(population.draw(np.random.default_rng(0), 20_000))
    np.testing.assert_allclose(traits.base_rate.mean(), 0, atol=0.02)
    np.testing.assert_allclose(traits.base_rate.std(), 0.4, rtol=0.03)
    np.testing.assert_allclose(traits.price_sensitivity.mean(), 2.0, rtol=0.01)
    np.testing.assert_allclose(traits.price_sensitivity.std(), 0.4, rtol=0.03)
    np.testing.assert_allclose(np.median(traits.tolerance), population.tolerance, rtol=0.02)
    np.testing.assert_allclose(np.log(traits.tolerance).std(), 0.3, rtol=0.03)
    assert np.abs(traits.base_rate).max() <= 0.4 * TRAIT_LIMIT + 1e-6
    assert traits.tolerance.min() >= population.least_tolerance - 1e-5


def test_a_clientele_takes_real_shoppers_first() -> None:
    known_MD = np.float32([[0, 0, 1], [0, 0, -1]])
    population = a_population(known_interest_MD=known_MD, known_base_rate_M=np.float32([0.3, 9]))
    people = population.clientele(5, world_seed=0)
    assert sorted(people.interest[:2, 2].tolist()) == [-1, 1]
    assert sorted(people.base_rate[:2].tolist()) == [1, TRAIT_LIMIT]  # in spreads, cut off
    assert (np.abs(people.interest[2:, 2]) < 0.2).all()
    few = population.clientele(1, world_seed=0)
    assert abs(few.interest[0, 2]) == 1


def test_numpys_scalars_do_not_widen_the_traits() -> None:
    population = a_population(tolerance=np.float64(6), price_sensitivity=np.float64(0.5))
    traits = population.traits(population.draw(np.random.default_rng(0), 3))
    assert {leaf.dtype for leaf in traits} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"weight_C": np.float32([0.5, 0.6])}, "must be probabilities that sum to one"),
        ({"weight_C": np.float32([-0.5, 1.5])}, "must be probabilities that sum to one"),
        ({"weight_C": np.float32([np.nan, 1])}, "must be probabilities that sum to one"),
        ({"weight_C": np.float32([1])}, "must agree in shape"),
        ({"spread_CD": np.ones((2, 4))}, "must agree in shape"),
        ({"centre_CD": np.full((2, 3), np.inf)}, "centre_CD holds values that are not finite"),
        ({"price_spread": np.nan}, "price_spread holds values that are not finite"),
        ({"tolerance": 0.0}, "tolerance must be positive"),
        ({"known_interest_MD": np.ones((4, 3))}, "known_base_rate_M must agree in shape"),
        (
            {"known_interest_MD": np.ones((4, 2)), "known_base_rate_M": np.ones(4)},
            "known_base_rate_M must agree in shape",
        ),
    ],
    ids=lambda value: str(value)[:30].replace("\n", " "),
)
def test_a_bad_population_is_refused(refuses: Any, changes: dict[str, Any], pattern: str) -> None:
    with refuses(pattern):
        a_population(**changes)
