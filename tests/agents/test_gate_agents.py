"""Agents that say yes or no to a candidate, and those that refuse to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agent_cases import AGENTS, ON_SB3, SHOP, SMALL, make_agent, make_env, one_line

from agents.base import Agent
from agents.dqn import DQNAgent
from agents.ppo import PPOAgent
from agents.references import AlwaysRecommend, IndexPolicy, MyopicOracle, NeverRecommend, Random
from agents.rollout import play
from recenv.errors import UsageError
from recenv.gate import RecsysGateVectorEnv

CONSTANT = [AlwaysRecommend, NeverRecommend]
AT_GATE = [cls for cls in AGENTS if cls.gate]
named = {"ids": lambda cls: cls.name}


def make_gate(num_envs: int = 32, **keywords: Any) -> RecsysGateVectorEnv:
    return RecsysGateVectorEnv(num_envs, **(SHOP | keywords))


def a_gate_agent(cls: type[Agent], env: RecsysGateVectorEnv) -> Agent:
    agent = cls(**(SMALL.get(cls, {"num_envs": 32}) | {"device": "cpu"}))
    agent.bind(env)
    return agent


def test_those_that_learn_by_reinforcement_and_the_oracles_answer_at_a_gate() -> None:
    assert {PPOAgent, DQNAgent, MyopicOracle, Random, IndexPolicy} <= set(AT_GATE)


@pytest.mark.parametrize("cls", [*AT_GATE, *CONSTANT], **named)
def test_answers_are_no_and_yes(cls: type[Agent]) -> None:
    env = make_gate()
    agent = a_gate_agent(cls, env)
    agent.learn(300)
    seen_NS, _ = env.reset(seed=0)
    answer_N, _ = agent.predict(seen_NS)
    assert answer_N.shape == (32,)
    assert set(answer_N) <= {0, 1}
    order_N2, score_N2 = agent.recommend(seen_NS, 2)
    assert (np.sort(order_N2, axis=1) == [0, 1]).all()
    assert (np.diff(score_N2, axis=1) <= 0).all()
    with pytest.raises(UsageError, match=r"1\.\.2") as error:
        agent.recommend(seen_NS, 3)
    one_line(error.value)
    served_N, propensity_N = agent.serve(seen_NS, explore=1.0)
    assert set(served_N) == {0, 1}
    np.testing.assert_allclose(propensity_N, 0.5)


@pytest.mark.parametrize("cls", [cls for cls in AGENTS if not cls.gate], **named)
def test_those_that_choose_among_items_refuse_in_one_line(cls: type[Agent]) -> None:
    with pytest.raises(UsageError, match=f"{cls.name} chooses among items") as error:
        cls(**(SMALL[cls] | {"device": "cpu"})).bind(make_gate())
    one_line(error.value)


@pytest.mark.parametrize("cls", CONSTANT, **named)
def test_constant_answers_are_for_gates_alone(cls: type[Agent]) -> None:
    with pytest.raises(UsageError, match="env=gate") as error:
        cls().bind(make_env())
    one_line(error.value)


@pytest.mark.parametrize("cls", ON_SB3, **named)
def test_what_was_learned_at_a_gate_is_kept_and_is_for_gates(
    cls: type[Agent], tmp_path: Path
) -> None:
    env = make_gate()
    agent = a_gate_agent(cls, env)
    agent.learn(300)
    agent.save(tmp_path / "gate")
    seen_NS, _ = env.reset(seed=3)
    loaded = cls.load(tmp_path / "gate", make_gate(), "cpu")
    np.testing.assert_array_equal(loaded.score(seen_NS), agent.score(seen_NS))
    with pytest.raises(UsageError, match=r"made for RecsysGate-v0, this is Recsys-v0") as error:
        cls.load(tmp_path / "gate", make_env(), "cpu")
    one_line(error.value)
    make_agent(cls).save(tmp_path / "shop")
    with pytest.raises(UsageError, match=r"made for Recsys-v0, this is RecsysGate-v0") as error:
        cls.load(tmp_path / "shop", make_gate(), "cpu")
    one_line(error.value)


@pytest.mark.parametrize("cls", ON_SB3, **named)
def test_a_head_for_items_is_refused_at_a_gate(cls: type[Agent]) -> None:
    agent = cls(**(SMALL[cls] | {"device": "cpu", "head": "two_tower"}))
    with pytest.raises(UsageError, match="yes or no") as error:
        agent.bind(make_gate())
    one_line(error.value)


def test_many_items_at_a_gate_are_still_a_yes_or_a_no() -> None:
    env = make_gate(num_items=5_000)
    agent = a_gate_agent(PPOAgent, env)
    assert agent.score(env.reset(seed=0)[0]).shape == (32, 2)


def test_the_myopic_oracle_says_yes_to_what_is_likelier_bought_than_not() -> None:
    env = make_gate(300, reveal=True, scenario="full")
    agent = a_gate_agent(MyopicOracle, env)
    seen_NS, _ = env.reset(seed=0)
    for _ in range(SHOP["horizon"] - 1):
        answer_N, _ = agent.predict(seen_NS)
        seen_NS, _, _, _, info = env.step(answer_N)
        likely_N = info["purchase_probability"] > 0.5
        np.testing.assert_array_equal(answer_N == 1, likely_N)
        assert 0 < likely_N.sum() < 300
        np.testing.assert_allclose(info["regret"], 0, atol=1e-6)


def test_the_references_stand_in_order() -> None:
    env = make_gate(2_000, scenario="trust")
    earned = {}
    for cls in (AlwaysRecommend, Random, NeverRecommend, MyopicOracle, IndexPolicy):
        agent = cls(**({"tuning_shoppers": 500} if cls is IndexPolicy else {}))
        agent.bind(env)
        agent.learn(0)
        sessions = play(agent, env, 1)
        earned[cls] = float(sessions.return_E.mean())
        shown = sessions.shown_I.sum()
        assert earned[cls] * 2_000 == 2 * sessions.purchases_E.sum() - shown
        assert shown <= sessions.length_E.sum()
    assert earned[NeverRecommend] == 0
    assert earned[AlwaysRecommend] < earned[Random] - 0.1
    assert earned[Random] < earned[NeverRecommend] - 0.1
    assert earned[MyopicOracle] > earned[NeverRecommend] + 0.3
    assert earned[IndexPolicy] > earned[MyopicOracle] - 0.05


@pytest.mark.parametrize(
    ("cls", "settings", "timesteps", "share"),
    [
        (PPOAgent, {"num_envs": 128}, 40_000, 0.5),
        (DQNAgent, {"num_envs": 32, "learning_starts": 1_000}, 20_000, 0.4),
    ],
    **{"ids": ["ppo", "dqn"]},
)
def test_learning_beats_silence_and_chance_by_a_margin(
    cls: type[Agent], settings: dict[str, Any], timesteps: int, share: float
) -> None:
    shop = {"num_items": 20, "num_categories": 4, "scenario": "static", "horizon": 20}
    env = RecsysGateVectorEnv(1_000, **shop)
    agent = cls(device="cpu", seed=0, **settings)
    agent.bind(env.sibling(agent.num_envs))
    agent.learn(timesteps)
    best, chance = MyopicOracle(), Random()
    earned = [float(play(a, env, 1).return_E.mean()) for a in (agent, best, chance)]
    assert earned[1] > 1.0
    assert earned[2] < 0.2
    assert earned[0] > share * earned[1]
