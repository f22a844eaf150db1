"""PPO whose rollouts never leave the device: the shoppers of ``RecsysTorchEnv``, and the losses
of stable-baselines3.

Why not skrl: at equal settings it learns from fewer steps a second (``experiments.bench
rows=skrl``), its estimate of what a cut session would have gone on to earn is that of the shopper
who came in next, and heads, warm starts, checkpoints and saved agents would have to be made again
for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from agents.sb3_bridge import SB3Bridge
from recenv.errors import UsageError
from recenv.gate import RecsysGateVectorEnv
from recenv.torch_env import RecsysGateTorchEnv, RecsysTorchEnv
from recenv.vector_env import RecsysVectorEnv

Tensor = torch.Tensor
BACKENDS = ("sb3", "device")
ON_TORCH: dict[type[RecsysVectorEnv], type[RecsysTorchEnv]] = {
    RecsysVectorEnv: RecsysTorchEnv,
    RecsysGateVectorEnv: RecsysGateTorchEnv,
}


class DeviceRollout:
    """What stable-baselines3's rollout buffer is, in tensors on the device.

    Args:
        seen_TNS, action_TN, reward_TN, done_TN, value_TN, log_share_TN: T steps of N shoppers:
            what was seen, done, earned (what a cut session would have gone on to earn
            included), whether the session ended, the critic's value, and log pi.
        last_N: the critic's values of what comes next.
        gamma, gae_lambda: of the generalised advantages (Schulman et al. 2016).
    """

    def __init__(
        self,
        seen_TNS: Tensor,
        action_TN: Tensor,
        reward_TN: Tensor,
        done_TN: Tensor,
        value_TN: Tensor,
        log_share_TN: Tensor,
        *,
        last_N: Tensor,
        gamma: float,
        gae_lambda: float,
    ):
        advantage_TN, ahead_N = torch.empty_like(value_TN), torch.zeros_like(last_N)
        for t in reversed(range(len(value_TN))):
            going_N = (~done_TN[t]).to(last_N.dtype)
            surprise_N = reward_TN[t] + gamma * going_N * last_N - value_TN[t]
            ahead_N = surprise_N + gamma * gae_lambda * going_N * ahead_N
            advantage_TN[t], last_N = ahead_N, value_TN[t]
        return_TN = advantage_TN + value_TN
        self._rows = RolloutBufferSamples(
            seen_TNS.flatten(0, 1),
            action_TN.flatten(),
            value_TN.flatten(),
            log_share_TN.flatten(),
            advantage_TN.flatten(),
            return_TN.flatten(),
        )
        self.observations, self.actions = seen_TNS, action_TN
        # stable-baselines3 compares these two once an update, on the host
        self.values, self.returns = value_TN.cpu().numpy(), return_TN.cpu().numpy()

    def get(self, batch_size: int) -> Iterator[RolloutBufferSamples]:
        """All rows in random minibatches."""
        count = len(self._rows.actions)
        order = torch.randperm(count, device=self._rows.actions.device)
        for row in order.split(batch_size):
            yield RolloutBufferSamples(*(rows[row] for rows in self._rows))


class DeviceBridge(SB3Bridge):
    """The bridge to a ``RecsysTorchEnv`` of the same shop: observations are tensors.

    Args:
        device: where the shoppers are.
    """

    def __init__(
        self,
        env: RecsysVectorEnv,
        seed: int | None,
        reward_scale: float,
        first_session_steps: np.ndarray | None,
        device: torch.device,
    ):
        super().__init__(env, seed, reward_scale, first_session_steps)
        if type(env) not in ON_TORCH:
            raise UsageError(
                f"agent.backend=device does not know the shop {type(env).__name__}: take "
                "agent.backend=sb3"
            )
        try:
            made: Any = ON_TORCH[type(env)](env.num_envs, device=device, **env.keywords)
        except UsageError as error:
            raise UsageError(f"{error}, or take agent.backend=sb3") from None
        self.env = made
        # only first sessions are cut, unless all are
        self.cut_until = math.inf if made.cuts else env.num_envs * env.shop.horizon

    def step_wait(self) -> Any:
        raise NotImplementedError("OnDevice asks the environment itself")


class OnDevice(OnPolicyAlgorithm):
    """Mixed into PPO it collects rollouts behind a ``DeviceBridge``.

    Policy, losses, optimiser, counters and log are stable-baselines3's. What an update needs
    on the host is copied once a rollout.
    """

    rollout_buffer: Any
    _last_obs: Any  # a tensor

    def _setup_model(self) -> None:
        super()._setup_model()
        self.rollout_buffer = None  # its own is numpy's

    def collect_rollouts(
        self, env: Any, callback: BaseCallback, rollout_buffer: Any, n_rollout_steps: int
    ) -> bool:
        """Play ``n_rollout_steps`` steps of all shoppers; False where the callback ends it."""
        self.policy.set_training_mode(False)
        callback.on_rollout_start()
        seen_NS, steps, earned = self._last_obs, [], []
        for _ in range(n_rollout_steps):
            with torch.no_grad():
                action_N, value_N1, log_share_N = self.policy(seen_NS)
                following, paid_N, terminated_N, truncated_N, info = env.env.step(action_N)
                reward_N = env.reward_scale * paid_N
                if self.num_timesteps < env.cut_until:
                    ahead_N1 = self.policy.predict_values(env.env.final_observation())
                    reward_N = reward_N + self.gamma * truncated_N * ahead_N1[:, 0]
            done_N = terminated_N | truncated_N
            steps.append((seen_NS, action_N, reward_N, done_N, value_N1[:, 0], log_share_N))
            earned.append(paid_N)
            env.bought.append(info["purchase"] > 0)
            self._last_obs = seen_NS = following
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return False
        with torch.no_grad():
            last_N = self.policy.predict_values(seen_NS)[:, 0]
        rollout = map(torch.stack, zip(*steps, strict=True))
        self.rollout_buffer = DeviceRollout(
            *rollout, last_N=last_N, gamma=self.gamma, gae_lambda=self.gae_lambda
        )
        self._count_sessions(env, torch.stack(earned), torch.stack([step[3] for step in steps]))
        callback.on_rollout_end()
        return True

    def _count_sessions(self, env: Any, reward_TN: Tensor, done_TN: Tensor) -> None:
        """Tell the meter and the log of the sessions that ended."""
        assert self.ep_info_buffer is not None
        for reward_N, done_N in zip(reward_TN.cpu().numpy(), done_TN.cpu().numpy(), strict=True):
            _, return_n, length_n = env.meter.add(reward_N, done_N)
            self.ep_info_buffer.extend(
                {"r": value, "l": length}
                for value, length in zip(return_n.tolist(), length_n.tolist(), strict=True)
            )
