"""MaskablePPO (Huang & Ontanon 2020, arXiv 2006.14171) from sb3-contrib: PPO that knows while it
learns what is out of stock."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnv

from agents.ppo import CriticFirst, PPOAgent, Shortcut
from agents.towers import LeanCategorical, TowerActor
from recenv.errors import MissingExtra, UsageError

try:
    from sb3_contrib import MaskablePPO
    from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
except ImportError:
    raise MissingExtra("agent maskable_ppo", "sb3-contrib", "large") from None

NEVER = -1e8  # the logit of what is masked: not minus infinity, whose entropy is no number


class MaskableShortcutPolicy(Shortcut, MaskableActorCriticPolicy):
    """sb3-contrib's policy with a ``ShortcutExtractor``."""


class LeanMaskable(LeanCategorical):
    """The softmax over many items, without those that are masked."""

    def apply_masking(self, masks: np.ndarray | torch.Tensor | None) -> None:
        """Leave only what is true in (N, I) to choose from."""
        if masks is None:
            return
        share_NI = self.log_share_NI
        mask_NI = torch.as_tensor(masks, dtype=torch.bool, device=share_NI.device)
        masked_NI = torch.where(mask_NI.reshape(share_NI.shape), share_NI, NEVER)
        self.log_share_NI = torch.log_softmax(masked_NI, dim=1)


class MaskableTowerPolicy(TowerActor, MaskableShortcutPolicy):
    """The same with an item-conditioned head."""

    softmax = LeanMaskable


class InStockPPO(CriticFirst, MaskablePPO):
    """MaskablePPO that asks for masks only where something can be out of stock."""

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
        use_masking: bool = True,
    ) -> bool:
        masks = use_masking and env.get_attr("shop", [0])[0].masks
        return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps, masks)


class MaskablePPOAgent(PPOAgent):
    """Proximal policy optimisation that never recommends what is out of stock.

    Args: those of ``PPOAgent`` but for ``backend``: its shoppers are on numpy.
    """

    name: ClassVar[str] = "maskable_ppo"
    algorithm: type[CriticFirst] = InStockPPO
    policy: ClassVar[type[BasePolicy]] = MaskableShortcutPolicy
    tower_policy: ClassVar[type[BasePolicy]] = MaskableTowerPolicy

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        if self.backend != "sb3":
            raise UsageError("agent.backend is for ppo: leave it out")

    def _draw(self, batch: np.ndarray) -> np.ndarray:
        model, masks = self.model, self.open_actions(len(batch))
        assert isinstance(model, InStockPPO)
        return model.predict(batch, deterministic=False, action_masks=masks)[0]

    def settings(self) -> dict[str, Any]:
        return {name: value for name, value in super().settings().items() if name != "backend"}
