"""The single environment: one shopper, no batch axis."""

from __future__ import annotations

import operator
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from array_api_compat import numpy as xp

from recenv.dynamics import State, Traits, step
from recenv.errors import UsageError, unknown
from recenv.population import Sessions
from recenv.render import Diary, draw, tell
from recenv.shop import Memory, Shop

RENDER_MODES = ("ansi", "rgb_array")


class RecsysEnv(gym.Env[np.ndarray, int]):
    """DOCPAGE"""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": list(RENDER_MODES), "render_fps": 2}

    def __init__(self, *, render_mode: str | None = None, **keywords: Any):
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise unknown("render_mode", render_mode, RENDER_MODES)
        self.shop = Shop(keywords)
        self.render_mode = render_mode
        self.action_space = self.shop.action_space
        self.observation_space = self.shop.observation_space
        self._arrivals = self.shop.arrivals(1)
        self._session: Sessions | None = None
        self._memory: Memory | None = None
        self._time = 0
        self._over = True
        self._diary = Diary(self.shop) if render_mode else None

    @property
    def state(self) -> State:
        """The shopper's latent state; for oracles and pictures, not for learners."""
        self._met()
        return self._state

    @property
    def traits(self) -> Traits:
        """Who she is; for oracles and pictures, not for learners."""
        return self._met().traits

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Meet the next shopper. ``options`` are accepted and not used."""
        super().reset(seed=seed)
        if seed is not None:
            self._arrivals.clear()
        session = self._arrivals.take(self.np_random, 1).rows(0)
        self._session, self._state = session, session.state
        self._time, self._over = 0, False
        self._memory = self.shop.blank_memory(())
        if self._diary:
            self._diary.open(int(session.shopper_id), session.state, session.traits)
        return self._observe(), {"shopper_id": int(session.shopper_id)}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Recommend item ``action``.

        Raises:
            UsageError: the action is no item of the catalogue, or the session is over.
        """
        session, item = self._met(), self._validate(action)
        if self._over:
            raise UsageError("the session is over: call reset() before the next step()")
        shop, tables = self.shop, self.shop.tables
        outcome = step(
            xp,
            shop.dynamics,
            tables,
            self._state,
            session.traits,
            item,
            session.threshold[self._time],
            session.drift_row[self._time],
        )
        purchase, leaving = float(outcome.purchase_reward), float(outcome.leaving_charge)
        info: dict[str, Any] = {
            "shopper_id": int(session.shopper_id),
            "event": int(outcome.event),
            "reward_terms": {"purchase": purchase, "leaving": leaving},
        }
        if shop.settings.reveal:
            revealed = shop.reveal(xp, tables, self._state, session.traits, item)
            info |= {name: float(value) for name, value in revealed.items()}
        self._memory = shop.remember(xp, shop.lenses, self._memory, item, outcome.event)
        self._state = outcome.state
        self._time += 1
        self._over = bool(outcome.terminated)
        reward = purchase + leaving
        if self._diary:
            self._diary.write(item, info["event"], reward, outcome.state, self._over)
        return self._observe(), reward, self._over, False, info

    def render(self) -> Any:
        """The session so far: text (``ansi``) or an (H, W, 3) picture (``rgb_array``)."""
        if self._diary is None:
            raise UsageError('nothing to render: pass render_mode="ansi" or "rgb_array"')
        self._met()
        return tell(self._diary) if self.render_mode == "ansi" else draw(self._diary)

    def _observe(self) -> np.ndarray:
        shop, traits = self.shop, self._met().traits
        observation: np.ndarray = shop.observe(xp, shop.lenses, self._state, traits, self._memory)
        return observation

    def _met(self) -> Sessions:
        if self._session is None:
            raise UsageError("nobody is in the shop yet: call reset() first")
        return self._session

    def _validate(self, action: Any) -> int:
        try:
            item = operator.index(action)
        except TypeError:
            raise UsageError(
                f"an action is the index of an item, a whole number, got {action!r}"
            ) from None
        if not 0 <= item < self.shop.num_items:
            raise UsageError(f"action {item} is not in the catalogue 0..{self.shop.num_items - 1}")
        return item
