"""The one evaluation routine: the same people for everybody, and columns that are right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from agents.planning import PlanningOracle
from agents.references import MyopicOracle, Random, Rotation
from agents.rollout import Sessions
from experiments import evaluate
from experiments.evaluate import (
    Judge,
    Reference,
    References,
    entropy,
    gini,
    measure,
    summarise,
    warnings,
)
from experiments.report import named
from recenv.errors import UsageError

REFERENCES = References(Reference("r", -10.0), Reference("i", 30.0, 0.5), Reference("m", 20.0))


def sessions(return_E: list[float], shown_I: list[float]) -> Sessions:
    returns = np.array(return_E)
    return Sessions(
        returns, np.full(len(returns), 2.0), np.full(len(returns), 5.0), np.array(shown_I)
    )


QUICK = {"reference": "index_policy"}


@pytest.fixture
def plans_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planning oracle, but in a second."""

    def little() -> PlanningOracle:
        return PlanningOracle(rounds=2, shoppers=32, epochs=1, hidden=8, tuning_shoppers=100)

    monkeypatch.setitem(evaluate.HIGH, "planning_oracle", little)


def test_columns_by_hand() -> None:
    row = measure(sessions([0.0, 20.0], [7.5, 2.5, 0, 0]), REFERENCES)
    assert row["return_mean"] == 10.0
    assert row["normalised_score"] == 0.5
    half = 1.96 * np.sqrt(200.0) / np.sqrt(2)
    assert row["return_low"] == pytest.approx(10 - half)
    assert row["normalised_high"] == pytest.approx((10 + half + 10) / 40)
    assert row["myopic_regret"] == 10.0
    assert row["conversion"] == pytest.approx(0.4)
    assert row["recommended"] == 1.0
    assert row["session_length"] == 5.0
    assert row["coverage"] == 0.5
    assert row["top_item_share"] == 0.75


def test_gini_and_entropy_by_hand() -> None:
    assert gini(np.full(4, 0.25)) == pytest.approx(0.0)
    assert gini(np.array([0.0, 0.0, 0.0, 1.0])) == pytest.approx(0.75)
    assert gini(np.array([0.25, 0.75])) == pytest.approx(0.25)
    assert entropy(np.full(4, 0.25)) == pytest.approx(np.log(4))
    assert entropy(np.array([1.0, 0.0])) == 0.0


def test_a_collapsed_policy_is_told() -> None:
    collapsed = measure(sessions([0.0, 1.0], [9, 1] + [0] * 98), REFERENCES)
    spread = measure(sessions([0.0, 1.0], [1] * 100), REFERENCES)
    assert any("collapsed" in text for text in warnings(collapsed, 100, 2000))
    assert warnings(spread, 100, 2000) == []
    assert any("too few" in text for text in warnings(spread, 100, 50))


def test_random_is_zero_and_the_high_reference_one() -> None:
    judge = Judge({"scenario": "full", "num_items": 20}, seed=0, shoppers=200, **QUICK)
    agent = Random()
    agent.bind(judge.env)
    row, _ = judge(agent)
    assert row["normalised_score"] == pytest.approx(0.0)
    assert judge.references.high.name == "index_policy"
    assert judge.references.high.value >= judge.references.myopic.value


def test_evaluation_is_repeatable_and_its_seed_matters() -> None:
    env = {"scenario": "churn", "num_items": 20}
    agent = MyopicOracle()
    first, second, other = (Judge(env, seed=s, shoppers=200, **QUICK) for s in (0, 0, 1))
    agent.bind(first.env)
    np.testing.assert_array_equal(first(agent)[1].return_E, second(agent)[1].return_E)
    assert not np.array_equal(first(agent)[1].return_E, other(agent)[1].return_E)


def test_different_agents_meet_the_same_shoppers() -> None:
    judge = Judge({"num_items": 20}, seed=0, shoppers=50, **QUICK)
    met = []
    for agent in (Random(), MyopicOracle(), Rotation()):
        agent.bind(judge.env)
        judge(agent)
        seed = judge.env.reset(seed=3)[0]
        met.append(seed)
    np.testing.assert_array_equal(met[0], met[1])
    np.testing.assert_array_equal(met[0], met[2])


def test_references_are_cached_and_the_cache_is_told_apart(tmp_path: Path) -> None:
    env = {"num_items": 10}
    judge = Judge(env, 0, 50, tmp_path, **QUICK)
    text = (tmp_path / "references.json").read_text()
    again = Judge(env, 0, 50, tmp_path, **QUICK)
    assert again.references == judge.references
    assert (tmp_path / "references.json").read_text() == text
    other = Judge(env | {"world_seed": 1}, 0, 50, tmp_path, **QUICK)
    assert other.references != judge.references


def test_a_clientele_is_judged_as_regulars_and_as_newcomers() -> None:
    judge = Judge({"num_items": 10, "num_shoppers": 30}, 0, 60, **QUICK)
    agent = MyopicOracle()
    agent.bind(judge.env)
    row, _ = judge(agent)
    assert row["newcomers_return_mean"] is not None
    assert row["newcomers_return_mean"] != row["return_mean"]
    assert judge.env.shopper_id_N.max() < 30


def test_the_planning_oracle_is_the_high_reference(plans_little: None, tmp_path: Path) -> None:
    judge = Judge({"scenario": "trust", "num_items": 20}, 0, 300, tmp_path)
    high = judge.references.high
    assert high.name == "planning_oracle"
    assert high.plan == judge.high.plan.policy
    row, _ = judge(judge.high)
    assert row["normalised_score"] == 1.0
    # the plan and what it earned are kept, and agents that plan can use it
    assert Judge({"scenario": "trust", "num_items": 20}, 0, 300, tmp_path).references.high == high
    agent = PlanningOracle(**{k: v for k, v in judge.high.settings().items() if k != "num_envs"})
    judge.prepare(agent)
    agent.bind(judge.env)
    agent.learn(0)
    assert agent.plan == judge.high.plan
    assert len(list((tmp_path / "plans").iterdir())) == 1
    summary = summarise(judge, row)
    assert summary["reference_high"] == {"name": high.name, "return": high.value, "plan": high.plan}
    assert named(summary["reference_high"]) == f"planning_oracle ({high.plan})"
    assert named(summary["reference_low"]) == "random"


def test_references_are_never_mixed(plans_little: None, tmp_path: Path) -> None:
    env = {"scenario": "trust", "num_items": 20}
    names = ("planning_oracle", "index_policy", "planning_oracle")
    found = [Judge(env, 0, 100, tmp_path, name).references for name in names]
    assert [one.high.name for one in found] == list(names)
    assert found[0] == found[2]
    assert found[0].low == found[1].low
    # what an older version kept is not taken for this one's
    path = tmp_path / "references.json"
    known = json.loads(path.read_text())
    assert len(known) == 2
    text = json.dumps({key.partition(" ")[2]: {"low": {}} for key in known})
    path.write_text(text)
    assert Judge(env, 0, 100, tmp_path).references == found[0]


@pytest.mark.parametrize("bad", ["indexpolicy", None, 3])
def test_unknown_references_are_refused(bad: object) -> None:
    with pytest.raises(UsageError, match=r"unknown eval\.reference"):
        Judge({"num_items": 5}, 0, 10, None, bad)


@pytest.mark.parametrize("bad", [{"shoppers": 1}, {"shoppers": 2.5}, {"seed": -1}])
def test_bad_evaluations_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"eval\."):
        Judge({"num_items": 5}, **({"seed": 0, "shoppers": 10} | bad))
