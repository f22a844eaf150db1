"""The agents of sb3-contrib: an extra, quantiles, and masks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agent_cases import AGENTS, greet, make_agent, make_env

from agents.base import Agent
from agents.maskable_ppo import LeanMaskable, MaskablePPOAgent
from agents.ppo import PPOAgent
from agents.qrdqn import QRDQNAgent
from agents.towers import TwoTowerHead

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("agent", ["maskable_ppo", "qrdqn"])
def test_the_missing_extra_is_named_in_one_line(agent: str, tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['sb3_contrib'] = None\n"
        "from experiments.build import agent_class, group_defaults\n"
        "from recenv.errors import MissingExtra\n"
        "try:\n"
        f"    agent_class(group_defaults('agent', '{agent}'))\n"
        "except MissingExtra as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == (
        f"agent {agent} needs sb3-contrib, which is not installed: "
        'install it with pip install "recenv[large]"\n'
    )


def test_without_masks_it_begins_as_ppo_does() -> None:
    one, other = make_agent(PPOAgent), make_agent(MaskablePPOAgent)
    observation = greet(one.env)
    np.testing.assert_array_equal(one.score(observation), other.score(observation))


def test_scores_are_means_of_quantiles_that_learning_orders() -> None:
    agent = make_agent(QRDQNAgent, quantiles=5, learning_rate=5e-3, gradient_steps=16)
    agent.learn(3000)
    observation = greet(agent.env)
    with torch.no_grad():
        quantile_NQI = agent.model.quantile_net(torch.as_tensor(observation))
    assert quantile_NQI.shape == (32, 5, 12)
    np.testing.assert_allclose(agent.score(observation), quantile_NQI.mean(dim=1), atol=1e-6)
    spread_Q = quantile_NQI.mean(dim=(0, 2))
    assert (spread_Q[1:] > spread_Q[:-1]).all()


def test_what_is_masked_has_no_share() -> None:
    softmax = LeanMaskable(4, TwoTowerHead)
    logits = torch.tensor([[3.0, 1.0, 1.0, 9.0], [0.0, 1.0, 2.0, 3.0]], requires_grad=True)
    softmax.proba_distribution(logits)
    softmax.apply_masking(np.array([[True, True, True, False], [False, False, True, False]]))
    share_NI = softmax.log_share_NI.exp()
    weight = torch.tensor([3.0, 1.0, 1.0]).exp()
    torch.testing.assert_close(share_NI[0, :3], weight / weight.sum())
    assert share_NI[0, 3] == 0
    torch.testing.assert_close(share_NI[1], torch.tensor([0.0, 0.0, 1.0, 0.0]))
    assert softmax.entropy()[1] == 0
    assert set(torch.stack([softmax.sample() for _ in range(50)])[:, 1].tolist()) == {2}
    assert softmax.mode().tolist() == [0, 2]
    softmax.entropy().sum().backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("head", ["flat", "two_tower"])
def test_never_recommends_what_is_out_while_it_learns_and_after(head: str) -> None:
    env = make_env(32, stock_out=0.5)
    agent, wrong = make_agent(MaskablePPOAgent, env, head=head), []
    step = env.step

    def watched(item_N: np.ndarray) -> Any:
        wrong.append(~env.action_masks()[np.arange(32), item_N])
        return step(item_N)

    env.step = watched
    agent.learn(2000)
    observation = greet(env, steps=0)
    for deterministic in (True, False) * 8:
        item_N, _ = agent.predict(observation, deterministic=deterministic)
        observation = env.step(item_N)[0]
    assert len(wrong) > 60
    assert not np.concatenate(wrong).any()


@pytest.mark.parametrize("cls", AGENTS, ids=lambda cls: cls.name)
def test_nobody_is_advised_what_is_out(cls: type[Agent]) -> None:
    env = make_env(32, stock_out=0.5)
    agent = make_agent(cls, env)
    agent.learn(400)
    observation, _ = env.reset(seed=0)
    for _ in range(10):
        row_N, mask_NI = np.arange(32), env.action_masks()
        assert mask_NI[row_N, agent.recommend(observation, 1)[0][:, 0]].all()
        for item_N in (agent.predict(observation)[0], agent.serve(observation, explore=0.5)[0]):
            assert mask_NI[row_N, item_N].all()
        observation = env.step(item_N)[0]


def test_propensities_know_the_stock() -> None:
    env = make_env(4096, stock_out=0.5)
    agent = make_agent(PPOAgent, env)
    observation, _ = env.reset(seed=0)
    for stochastic in (False, True):
        _, share_N = agent.serve(observation, explore=0.4, stochastic=stochastic)
        assert (share_N > 0).all()
        # the mean of 1 / propensity is the number of items that could have been shown
        open_N = env.action_masks().sum(axis=1)
        if stochastic:
            assert (1 / share_N).mean() == pytest.approx(open_N.mean(), rel=0.1)
