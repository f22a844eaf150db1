"""Planning against brute force in a shop small enough to enumerate, and its bookkeeping."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from agent_cases import SMALL, greet, make_env, one_line
from array_api_compat import numpy as xp

from agents import planning
from agents.planning import Model, Plan, PlanningOracle
from agents.references import IndexPolicy, MyopicOracle
from agents.rollout import play
from recenv import dynamics as physics
from recenv.catalogue import Catalogue
from recenv.dynamics import Event
from recenv.errors import UsageError
from recenv.population import Population
from recenv.vector_env import RecsysVectorEnv
from recenv.world import World, write

LITTLE = SMALL[PlanningOracle] | {"device": "cpu"}
HORIZON = 4
# what carries over from a step to the next, strong enough to be worth planning for
PLANNABLE = {
    "trust": {"scenario": "trust", "trust_weight": 6.0, "trust_slope": 1.0},
    "churn": {"scenario": "churn", "churn_base": -2.0, "churn_trust": 6.0},
    "full": {"scenario": "full", "trust_weight": 6.0, "satiation_gain": 3.0, "drift_scale": 0.0},
}


@pytest.fixture(scope="module")
def three_items(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A world of one kind of shopper, and of three items: the more tempting, the poorer."""
    catalogue = Catalogue(
        category_I=np.array([0, 1, 1]),
        brand_I=np.zeros(3, dtype=np.int64),
        price_I=np.ones(3, dtype=np.float32),
        keywords_IW=np.zeros((3, 1), dtype=np.float32),
        appeal_I=np.float32([1.0, 0.4, 0.0]),
        quality_I=np.float32([-1.0, 0.0, 1.0]),
        embedding_ID=np.float32([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]),
        num_categories=2,
    )
    population = Population(
        weight_C=np.ones(1, dtype=np.float32),
        centre_CD=np.float32([[0.6, 0.8]]),
        spread_CD=np.zeros((1, 2), dtype=np.float32),
        price_sensitivity=0.0,
        base_rate_spread=0.0,
        tolerance=2.0,
        tolerance_spread=0.0,
    )
    path = tmp_path_factory.mktemp("worlds") / "three.npz"
    write(World("three", catalogue, population, interest_weight=0.5, difficulty=0.3), path)
    return str(path)


def shop_of(world: str, num_envs: int, scenario: str) -> RecsysVectorEnv:
    return RecsysVectorEnv(num_envs, world=world, horizon=HORIZON, **PLANNABLE[scenario])


def best_return(env: RecsysVectorEnv) -> float:
    """The highest expected return there is, by enumerating all that can happen."""
    shop = env.shop
    env.reset(seed=0)
    first = type(env.state)(*(leaf[0] for leaf in env.state))
    traits = type(env.traits)(*(leaf[0] for leaf in env.traits))
    items = shop.items(xp, shop.tables)

    def value(state: physics.State) -> float:
        if state.remaining <= 0:
            return 0.0
        utility_I = physics.utilities(xp, shop.dynamics, state, traits, items)
        return max(ahead(state, item, utility_I[item]) for item in range(3))

    def ahead(state: physics.State, item: int, utility: float) -> float:
        total = 0.0
        for threshold, chance in ((-50.0, 1.0), (50.0, 0.0)):
            buys = 1.0 / (1.0 + np.exp(-utility))
            probability = buys if chance else 1.0 - buys
            after = physics.step(
                xp,
                shop.dynamics,
                shop.tables,
                state._replace(patience=np.float32(0.0)),
                traits,
                item,
                np.float32(threshold),
                0,
            ).state
            leaves = 1.0 - np.exp(after.patience)
            reward = 1.0 if chance else -1.0
            later = (1.0 - leaves) * value(after) - leaves * after.remaining
            total += probability * (reward + later)
        return total

    return value(first)


@pytest.mark.parametrize("scenario", PLANNABLE)
def test_plans_as_well_as_brute_force(three_items: str, scenario: str) -> None:
    env = shop_of(three_items, 20_000, scenario)
    enough = {"rounds": 30, "shoppers": 512, "epochs": 3, "hidden": 32, "learning_rate": 1e-2}
    enough |= {"exploration": 0.3, "tuning_shoppers": 1000}
    agent = PlanningOracle(**LITTLE | enough)
    agent.bind(env)
    agent.learn(0)
    return_E = play(agent, env, 3).return_E
    greedy_E = play(bound(MyopicOracle(), env), env, 3).return_E
    best, error = best_return(env), return_E.std() / len(return_E) ** 0.5
    assert return_E.mean() == pytest.approx(best, abs=4 * error + 0.01)
    assert best - greedy_E.mean() > 0.15  # there is something to plan for


def bound(agent, env):
    agent.bind(env)
    return agent


@pytest.mark.parametrize("keywords", [{"scenario": "static"}, {"scenario": "full", "horizon": 1}])
def test_where_nothing_carries_over_it_is_the_myopic_oracle(keywords: dict) -> None:
    env = make_env(400, **keywords)
    agent = bound(PlanningOracle(), env)  # at its defaults: planning takes no time here
    agent.learn(0)
    assert agent.plan is not None
    assert agent.plan.policy == "myopic"
    myopic = bound(MyopicOracle(), env)
    one, other = play(agent, env, 3), play(myopic, env, 3)
    np.testing.assert_array_equal(one.return_E, other.return_E)
    np.testing.assert_array_equal(one.shown_I, other.shown_I)
    observation = greet(env, steps=2)
    np.testing.assert_array_equal(agent.score(observation), myopic.score(observation))


@pytest.mark.parametrize(
    ("keywords", "plannable"),
    [
        ({"scenario": "static"}, False),
        ({"scenario": "static", "drift_scale": 0.1}, False),  # it wanders whatever is shown
        ({"scenario": "static", "interest_pull": 0.1}, True),
        ({"scenario": "static", "refusal_push": 0.1}, True),
        ({"scenario": "satiation"}, True),
        ({"scenario": "trust"}, True),
        ({"scenario": "churn"}, True),
        ({"scenario": "churn", "horizon": 1}, False),
    ],
)
def test_knows_where_there_is_something_to_plan_for(keywords: dict, plannable: bool) -> None:
    assert Model(make_env(2, **keywords).shop, torch.device("cpu")).plannable == plannable


# --- the model ----------------------------------------------------------------------


@pytest.mark.parametrize("keywords", [{"scenario": "full", "drift_scale": 0.0}, {"churn": True}])
def test_afterstates_are_those_of_the_shop(keywords: dict) -> None:
    """What the model says of a purchase or refusal is what the environment then does."""
    env = make_env(64, **keywords, churn_base=-20.0, refusal_push=0.1)
    model = Model(env.shop, torch.device("cpu"))
    greet(env, steps=3)
    state, traits = model.tensors(env.state, env.traits)
    before = [leaf.clone() for leaf in state]
    item_N = np.arange(64) % 12
    event_N = env.step(item_N)[-1]["event"]
    bought_N = torch.as_tensor(event_N == Event.PURCHASE)
    assert 10 < bought_N.sum() < 54
    after = model.after(state, traits, torch.as_tensor(item_N), bought_N)
    for name in ("interest", "satiation", "satisfaction", "refusals", "remaining"):
        if keywords.get("drift_scale", 1.0) == 0.0 or name != "interest":
            np.testing.assert_allclose(getattr(after, name), getattr(env.state, name), atol=1e-6)
    for leaf, old in zip(state, before, strict=True):
        assert torch.equal(leaf, old)


def test_looking_ahead_with_nothing_to_come_by_hand() -> None:
    """With W = 0 a recommendation is worth its reward, and what leaving then costs."""
    env = make_env(8, scenario="churn", churn_base=-1.0)
    model = Model(env.shop, torch.device("cpu"))
    greet(env, steps=2)
    state, traits = model.tensors(env.state, env.traits)

    def nothing(feature_MS: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(feature_MS), 1)

    item_NC, value_NC = model.look_ahead(nothing, state, traits, weight=0.0, count=8)
    np.testing.assert_array_equal(item_NC, np.tile(np.arange(12), (8, 1)))
    buys_NI = torch.sigmoid(model.utilities(state, traits)).numpy()
    memory, quality_I = env.shop.dynamics.trust_memory, env.shop.catalogue.quality_I
    for n in range(8):
        for item in range(12):
            expected = 0.0
            for sale, chance in ((1, buys_NI[n, item]), (0, 1 - buys_NI[n, item])):
                satisfaction = memory * env.state.satisfaction[n] + sale * quality_I[item]
                refusals = 0.0 if sale else env.state.refusals[n] + 1.0
                odds = -1.0 - 3.0 * np.tanh(0.5 * satisfaction)
                odds += refusals / env.traits.tolerance[n]
                leaves = 1.0 - np.exp(-1.0 / (1.0 + np.exp(-odds)))
                expected += chance * (2 * sale - 1 - leaves * (env.state.remaining[n] - 1))
            assert value_NC[n, item] == pytest.approx(expected, abs=1e-4)


def test_features_hold_nothing_that_makes_no_difference() -> None:
    sizes = {
        scenario: len(Model(make_env(2, scenario=scenario).shop, torch.device("cpu")).felt)
        for scenario in ("drift", "satiation", "trust", "churn", "full")
    }
    # interest 4, base rate, price sensitivity, remaining; satiation 3; trust twice; leaving 2
    assert sizes == {"drift": 7, "satiation": 10, "trust": 9, "churn": 11, "full": 12}


def test_shortlists_hold_the_best_by_utility_and_by_the_index() -> None:
    env = make_env(16, num_items=60, num_categories=3)
    model = Model(env.shop, torch.device("cpu"))
    greet(env)
    utility_NI = model.utilities(*model.tensors(env.state, env.traits))
    item_NC = model.shortlist(utility_NI, 1.5, 5)
    assert item_NC.shape == (16, 20)
    for times in (0.0, 1.5):
        best_N = (utility_NI + times * model.items.quality).argmax(1, keepdim=True)
        assert (item_NC == best_N).any(1).all()


# --- what is kept -------------------------------------------------------------------


def planned(env: RecsysVectorEnv, plans: Path | None = None, **settings: object) -> PlanningOracle:
    agent = bound(PlanningOracle(**LITTLE | settings), env)
    agent.plans = plans
    agent.learn(0)
    return agent


def test_the_best_on_other_shoppers_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_env(32, scenario="trust", num_items=30)
    agent = planned(env, policy="best", tuning_shoppers=400)
    earned = agent.plan.earned
    assert set(earned) == {"myopic", "index", "value"}
    assert agent.plan.policy == max(earned, key=earned.get)
    assert earned["index"] > earned["myopic"]
    # of equals the simplest
    same = play(agent, env, 3)
    monkeypatch.setattr(planning, "play", lambda *_: same)
    assert planned(env, policy="best").plan.policy == "myopic"


def test_with_great_caution_it_is_the_index_policy() -> None:
    env = make_env(64, scenario="trust", num_items=60)
    agent = planned(env)
    assert agent.plan.caution in planning.CAUTIONS
    observation = greet(env, steps=2)
    agent.plan = replace(agent.plan, caution=1e6, weight=1.0)
    index = bound(IndexPolicy(weight=1.0), env)
    np.testing.assert_array_equal(agent.predict(observation)[0], index.predict(observation)[0])
    item_Nk, score_Nk = agent.recommend(observation, 60)
    assert np.isfinite(score_Nk).all()
    # off the shortlist in the order of the index
    index_NI = index.score(observation)
    last_Nk = np.take_along_axis(index_NI, item_Nk[:, -20:], axis=1)
    assert (np.diff(last_Nk, axis=1) <= 1e-5).all()


def test_a_plan_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_env(32, scenario="trust")
    first = planned(env, tmp_path)
    observation = greet(env, steps=2)
    score_NI = first.score(observation)
    made: list[int] = []
    learn = planning.Planner.learn
    monkeypatch.setattr(planning.Planner, "learn", lambda self: made.append(1) or learn(self))
    again = planned(env, tmp_path)
    assert made == []
    assert again.plan == first.plan
    np.testing.assert_array_equal(again.score(observation), score_NI)
    # other settings and other shops are other plans
    planned(env, tmp_path, rounds=3)
    planned(make_env(32, scenario="churn"), tmp_path)
    assert len(made) == 2
    # what is damaged is made again, and mended
    for file in tmp_path.glob("*/value.safetensors"):
        file.write_bytes(b"garbage")
    np.testing.assert_array_equal(planned(env, tmp_path).score(observation), score_NI)
    planned(env, tmp_path)
    assert len(made) == 3


def test_a_plan_is_for_one_shop_whoever_is_in_it(tmp_path: Path) -> None:
    agent = planned(make_env(32, scenario="trust"))
    for same in ({"num_shoppers": 20}, {"observation": "behaviour", "history": 3}):
        env = make_env(16, scenario="trust", **same)
        assert len(play(agent, env, 3).return_E) == 16
    agent.save(tmp_path)
    for other in (
        {"world_seed": 1},
        {"scenario": "churn"},
        {"horizon": 9},
        {"trust_weight": 1.0},
        {"price_sensitivity": 0.1},
    ):
        env = make_env(16, **({"scenario": "trust"} | other))
        with pytest.raises(UsageError, match="train it again") as error, agent.acting_in(env):
            pass
        one_line(error.value)
        with pytest.raises(UsageError, match="train it again") as error:
            PlanningOracle.load(tmp_path, env)
        one_line(error.value)


def test_seeds_decide() -> None:
    env = make_env(32, scenario="trust")
    observation = greet(env, steps=2)

    def score(seed: int) -> np.ndarray:
        return planned(env, seed=seed).score(observation)

    np.testing.assert_array_equal(score(0), score(0))
    assert (score(0) != score(1)).any()


def test_must_plan_first(tmp_path: Path) -> None:
    agent = bound(PlanningOracle(**LITTLE), make_env(32, scenario="trust"))
    for use in (lambda: agent.predict(greet(agent.env)), lambda: agent.save(tmp_path)):
        with pytest.raises(UsageError, match="learn") as error:
            use()
        one_line(error.value)


def test_a_plan_in_words(tmp_path: Path) -> None:
    agent = planned(make_env(32, scenario="trust"))
    agent.save(tmp_path)
    assert Plan(**json.loads((tmp_path / "plan.json").read_text())) == agent.plan
    (tmp_path / "plan.json").write_text(json.dumps({"policy": "guess"}))
    with pytest.raises(UsageError, match="train it again"):
        PlanningOracle.load(tmp_path, agent.env)
