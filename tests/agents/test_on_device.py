"""PPO on the device: the same algorithm, on shoppers that are tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from agent_cases import SHOP, greet, make_agent, make_env

from agents.on_device import DeviceRollout
from agents.ppo import PPOAgent
from recenv.errors import UsageError
from recenv.gate import RecsysGateVectorEnv
from recenv.vector_env import RecsysVectorEnv


def test_advantages_are_those_of_stable_baselines3() -> None:
    from gymnasium import spaces
    from stable_baselines3.common.buffers import RolloutBuffer

    steps, n, gamma, gae_lambda = 6, 3, 0.9, 0.8
    generator = torch.Generator().manual_seed(0)
    reward_TN, value_TN = torch.randn(2, steps, n, generator=generator)
    done_TN = torch.rand(steps, n, generator=generator) < 0.3
    last_N = torch.randn(n, generator=generator)
    box, some = spaces.Box(-1, 1, (2,)), torch.zeros(steps, n, 2)
    theirs = RolloutBuffer(steps, box, spaces.Discrete(3), "cpu", gae_lambda, gamma, n)
    start_N = np.ones(n)
    for t in range(steps):
        theirs.add(
            some[t].numpy(), np.zeros(n), reward_TN[t].numpy(), start_N, value_TN[t], torch.zeros(n)
        )
        start_N = done_TN[t].numpy()
    theirs.compute_returns_and_advantage(last_N, start_N)
    ours = DeviceRollout(
        some,
        torch.zeros(steps, n),
        reward_TN,
        done_TN,
        value_TN,
        torch.zeros(steps, n),
        last_N=last_N,
        gamma=gamma,
        gae_lambda=gae_lambda,
    )
    np.testing.assert_allclose(ours.returns, theirs.returns, rtol=1e-5, atol=1e-6)
    rows = next(ours.get(steps * n))
    np.testing.assert_allclose(
        np.sort(rows.advantages), np.sort(theirs.advantages.ravel()), rtol=1e-5, atol=1e-6
    )


def test_every_row_is_in_one_minibatch() -> None:
    index_TN = torch.arange(12.0).reshape(4, 3)
    columns = (index_TN[..., None], index_TN, index_TN, index_TN < 0, index_TN, index_TN)
    rollout = DeviceRollout(*columns, last_N=index_TN[0], gamma=1, gae_lambda=1)
    parts = list(rollout.get(5))
    assert [len(part.actions) for part in parts] == [5, 5, 2]
    assert sorted(torch.cat([part.actions for part in parts]).tolist()) == list(range(12))
    for part in parts:
        torch.testing.assert_close(part.observations[:, 0], part.actions)


@pytest.mark.parametrize("keywords", [{}, {"max_episode_steps": 5}, {"churn": True}])
def test_sessions_are_counted_as_on_numpy(keywords: dict[str, Any]) -> None:
    """An untrained policy is the same on both, so the sessions earn about the same."""
    taken = []
    for backend in ("sb3", "device"):
        agent = make_agent(
            PPOAgent, make_env(256, **keywords), num_envs=256, backend=backend, learning_rate=1e-9
        )
        agent.learn(20_000)
        assert agent.meter is not None
        taken.append(agent.meter.take())
    assert taken[0] == pytest.approx(taken[1], abs=0.3)


def test_it_repeats_and_is_saved_like_any_other(tmp_path: Any) -> None:
    scores = []
    for _ in range(2):
        agent = make_agent(PPOAgent, backend="device")
        agent.learn(1024)
        scores.append(agent.score(greet(agent.env)))
    np.testing.assert_array_equal(*scores)
    agent.save(tmp_path)
    loaded = PPOAgent.load(tmp_path, make_env(), device="cpu")
    np.testing.assert_array_equal(loaded.score(greet(loaded.env)), scores[0])


def test_the_gate_has_a_device_too() -> None:
    agent = make_agent(PPOAgent, RecsysGateVectorEnv(32, **SHOP), backend="device")
    agent.learn(512)
    assert agent.model.num_timesteps == 512


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(UsageError, match=r"agent.backend.*tpu"):
        PPOAgent(backend="tpu")
    behaviour = make_env(observation="behaviour", history=3)
    with pytest.raises(UsageError, match=r"agent.backend=device has no interest model"):
        make_agent(PPOAgent, behaviour, backend="device", encoder="gru", pretrain_steps=64)
    with pytest.raises(UsageError, match=r"policy: take agent.backend=sb3$"):
        make_agent(PPOAgent, behaviour, backend="device", encoder="bayes")

    class Elsewhere(RecsysVectorEnv):
        pass

    with pytest.raises(UsageError, match=r"agent.backend=device does not know the shop Elsewhere"):
        make_agent(PPOAgent, Elsewhere(32, **SHOP), backend="device")
