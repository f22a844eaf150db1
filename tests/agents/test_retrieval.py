"""Agents that rank candidates, and those that refuse to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agent_cases import AGENTS, ON_SB3, SHOP, SMALL, make_agent, make_env

from agents import checkpoint
from agents.base import Agent
from agents.ppo import PPOAgent
from agents.references import IndexPolicy, MyopicOracle, Random
from agents.retrieval import by_towers
from agents.rollout import play
from agents.scorer import Scorer
from agents.towers import CandidateHead
from recenv.errors import UsageError
from recenv.retrieve import RecsysRetrieveVectorEnv

named = {"ids": lambda cls: cls.name}


def made(num_envs: int = 32, **keywords: Any) -> RecsysRetrieveVectorEnv:
    own = {"num_items": 40, "candidates": 6, "refresh": 3}
    return RecsysRetrieveVectorEnv(num_envs, **(SHOP | own | keywords))


def ranker(cls: type[Agent], env: RecsysRetrieveVectorEnv, **settings: Any) -> Agent:
    agent = cls(**(SMALL[cls] | {"device": "cpu"} | settings))
    agent.bind(env)
    return agent


@pytest.mark.parametrize("cls", [cls for cls in AGENTS if cls.ranks], **named)
def test_rankers_choose_among_the_candidates(cls: type[Agent], tmp_path: Path) -> None:
    env = made()
    agent = ranker(cls, env)
    agent.learn(600)
    observation, _ = env.reset(seed=0)
    action_N, _ = agent.predict(observation)
    assert set(action_N) <= set(range(6))
    agent.save(tmp_path)
    fresh = made()
    loaded = cls.load(tmp_path, fresh, "cpu")
    fresh.reset(seed=0)
    if cls is not Random:
        np.testing.assert_array_equal(loaded.score(observation), agent.score(observation))


@pytest.mark.parametrize("cls", [cls for cls in AGENTS if not cls.ranks], **named)
def test_those_that_know_items_by_number_refuse(cls: type[Agent]) -> None:
    with pytest.raises(UsageError, match="shows other candidates each time"):
        ranker(cls, made())


@pytest.mark.parametrize("cls", ON_SB3, **named)
def test_goes_on_to_the_bit(cls: type[Agent], tmp_path: Path) -> None:
    agent = ranker(cls, made())

    def keeper(timesteps: int) -> None:
        if timesteps == 512:
            checkpoint.write(tmp_path / "kept", agent.checkpoint())

    agent.keeper = keeper
    agent.learn(1024)
    observation = made().reset(seed=5)[0]
    expected_NK = agent.score(observation)
    agent = ranker(cls, made())
    agent.restore(checkpoint.read(tmp_path / "kept", torch.device("cpu")))
    agent.learn(1024)
    np.testing.assert_array_equal(agent.score(observation), expected_NK)


@pytest.mark.parametrize("cls", [cls for cls in ON_SB3 if cls.candidate_head], **named)
def test_where_a_candidate_stands_makes_no_difference(cls: type[Agent]) -> None:
    env = made()
    agent = ranker(cls, env)
    agent.learn(600)
    assert any(isinstance(m, CandidateHead) for m in agent.model.policy.modules())
    observation, _ = env.reset(seed=0)
    split = env.shop.view.size
    order = np.random.default_rng(0).permutation(6)
    told = observation[:, split:].reshape(32, 6, -1)[:, order].reshape(32, -1)
    turned = np.concatenate([observation[:, :split], told], axis=1)
    np.testing.assert_allclose(
        agent.score(turned), agent.score(observation)[:, order], rtol=1e-4, atol=1e-5
    )


def test_candidate_scores_are_query_times_tower_plus_bias() -> None:
    head = CandidateHead(5 + 4 * 3, count=4, features=3, width=2)
    torch.nn.init.normal_(head.feature.bias)
    torch.nn.init.normal_(head.query.weight)
    state = torch.randn(7, 17)
    tower = head.feature(state[:, 5:].reshape(7, 4, 3))
    expected = (tower[..., :2] * head.query(state[:, :5])[:, None]).sum(2) + tower[..., 2]
    torch.testing.assert_close(head(state), expected)


def test_ppo_learns_to_rank() -> None:
    env = made(256, num_items=200, candidates=20, scenario="static")
    judged = env.sibling(1000)
    random = play(ranker(Random, judged), judged, 1).return_E.mean()
    oracle = play(ranker(MyopicOracle, judged), judged, 1).return_E.mean()
    agent = ranker(
        PPOAgent, env, num_envs=256, n_steps=10, n_epochs=5, minibatches=4, learning_rate=3e-3
    )
    agent.learn(60_000)
    learned = play(agent, judged, 1).return_E.mean()
    assert (learned - random) / (oracle - random) > 0.5


def test_the_index_policy_is_tuned_among_candidates() -> None:
    env = made(64, scenario="trust")
    agent = ranker(IndexPolicy, env, weight=None, tuning_shoppers=100)
    agent.learn(0)
    assert agent.weight >= 0


def test_a_scorers_towers_retrieve(tmp_path: Path) -> None:
    shop = {"num_items": 40, "scenario": "static"}
    scorer = make_agent(Scorer, make_env(32, **shop), gradient_steps=8)
    scorer.learn(6000)
    scorer.save(tmp_path / "agent")
    retriever = by_towers(tmp_path, make_env(1, **shop))
    env = made(400, retriever=retriever, scenario="static")
    env.reset(seed=0)
    assert all(len(set(row)) == 6 for row in env.candidate_NK)
    assert by_towers(tmp_path, make_env(1, **shop)) is retriever

    def worth(env: RecsysRetrieveVectorEnv) -> float:
        env.reset(seed=0)
        parts = env.shop.tables, env.state, env.traits, env.candidate_NK
        return float(env.shop.utilities(np, *parts).mean())

    assert worth(env) > worth(made(400, scenario="static")) + 0.5
    with pytest.raises(UsageError, match="there is no whole agent"):
        by_towers(tmp_path / "nowhere", make_env(1, **shop))
    with pytest.raises(UsageError, match="leave out"):
        ranker(PPOAgent, made(), warm_start=str(tmp_path))
