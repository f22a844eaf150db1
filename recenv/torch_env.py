"""N shoppers at once on torch tensors, on any device: the same step, the same arrivals.

With one seed it meets the same shoppers with the same luck as ``RecsysVectorEnv``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector.utils import batch_space

from recenv.dynamics import State, Tables, Traits
from recenv.errors import MissingExtra, UsageError
from recenv.gate import GateShop
from recenv.population import Sessions
from recenv.shop import Lenses, Memory, Shop, as_number

try:
    import torch
    from array_api_compat import torch as xp
except ModuleNotFoundError:
    raise MissingExtra("recenv.torch_env", "torch", "agents") from None

Tensor = torch.Tensor
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
# Newcomers kept on the device, per slot. They are counted on the host only when this
# many steps could have used them up, so that a step does not wait for the device.
RESERVE = 8


class RecsysTorchEnv:
    """``num_envs`` shoppers in one shop, as tensors; sessions restart by themselves.

    Args:
        num_envs: N.
        device: where the tensors live.
        dtype: torch.float32 or torch.float64.
        keywords: those of ``RecsysEnv`` (autoreset is always "SameStep").
    """

    shop_class: ClassVar[type[Shop]] = Shop

    def __init__(
        self,
        num_envs: int,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        **keywords: Any,
    ):
        num_envs = as_number("num_envs", num_envs, 1, 10_000_000)
        if dtype not in (torch.float32, torch.float64):
            raise UsageError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        self.shop = self.shop_class(keywords)
        if self.shop.settings.autoreset_mode != "SameStep":
            raise UsageError('the torch env restarts sessions by itself: autoreset_mode="SameStep"')
        self.num_envs = num_envs
        try:
            self.device = torch.zeros((), device=device).device
        except (RuntimeError, AssertionError):
            raise UsageError(f"device {device!s} is not on this machine: choose cpu") from None
        self.dtype = dtype
        self.single_action_space = self.shop.action_space
        self.single_observation_space = self.shop.observation_space
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.tables = Tables(*(self._tensor(table) for table in self.shop.tables))
        lenses = self.shop.lenses
        self.lenses = None if lenses is None else Lenses(*map(self._tensor, lenses))
        self._arrivals = self.shop.arrivals(num_envs)
        self._slot_N = torch.arange(num_envs, device=self.device)
        self._session: Sessions | None = None
        self._memory: Memory | None = None
        self._reserve: Sessions | None = None
        # from the first reset or reserve on
        self._time_N: Tensor
        self._used: Tensor  # how many of the reserve have come in
        self._steps_left: int  # for how many steps the reserve is sure to last

    @property
    def state(self) -> State:
        """The shoppers' latent state; for oracles, not for learners."""
        return self._met().state

    @property
    def traits(self) -> Traits:
        """Who they are; for oracles, not for learners."""
        return self._met().traits

    @property
    def shopper_id_N(self) -> Tensor:
        """Who is in each slot."""
        shopper_id_N: Tensor = self._met().shopper_id
        return shopper_id_N

    def reset(self, *, seed: int | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Fill all slots with the next shoppers."""
        if seed is not None or self._session is None:
            self._rng, _ = seeding.np_random(seed)
            self._arrivals.clear()
            self._reserve = None
            self._session = self._upload(self._arrivals.take(self._rng, self.num_envs))
            self._memory = self._blank()
            self._time_N = torch.zeros_like(self._slot_N)
        else:
            self._begin(torch.ones_like(self._slot_N, dtype=torch.bool))
        return self._observe(), {"shopper_id": self.shopper_id_N.clone()}

    def step(self, action_N: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Recommend one item to each shopper (at a gate: the candidate, or nothing).

        Actions are validated by shape and type on the host, and by value on the device
        (without waiting for it).

        Returns:
            observation (N, S), reward (N,), terminated (N,), truncated (N,) and info:
            event, purchase and leaving terms, shopper_id, and ``final_obs`` (N, S), what
            each shopper looked like before a newcomer took her place.
        """
        session, action_N = self._met(), self._validate(action_N)
        shop, candidate_N = self.shop, self._candidate()
        threshold_N = session.threshold[self._slot_N, self._time_N]
        drift_N = session.drift_row[self._slot_N, self._time_N]
        outcome = shop.advance(
            xp,
            self.tables,
            session.state,
            session.traits,
            action_N,
            candidate_N,
            threshold_N,
            drift_N,
        )
        info = {
            "shopper_id": session.shopper_id,
            "event": outcome.event,
            "purchase": outcome.purchase_reward,
            "leaving": outcome.leaving_charge,
        }
        if shop.settings.reveal:
            state, traits = session.state, session.traits
            info |= shop.reveal(xp, self.tables, state, traits, action_N, candidate_N)
        item_N = shop.shown(xp, action_N, candidate_N)
        self._memory = shop.remember(xp, self.lenses, self._memory, item_N, outcome.event)
        self._session = session._replace(state=outcome.state)
        self._time_N = self._time_N + 1
        final_NS, over_N = self._observe(), outcome.terminated
        info["final_obs"] = final_NS
        self._begin(over_N)
        reward_N = outcome.purchase_reward + outcome.leaving_charge
        observation = _where(over_N, self._met().first_observation, final_NS)
        return observation, reward_N, over_N, torch.zeros_like(over_N), info

    def close(self) -> None:
        """Nothing is held that needs closing."""

    def _begin(self, over_N: Tensor) -> None:
        """Put newcomers, in the order of their arrival, where a session is over."""
        reserve = self._stocked()
        index_N = self._used + torch.cumsum(over_N, 0) - 1
        self._used = self._used + over_N.sum()
        self._steps_left -= 1
        newcomer = _map(reserve, lambda leaf: leaf[index_N.clamp(min=0)])
        current = self._met()
        self._session = _zip(current, newcomer, lambda old, new: _where(over_N, new, old))
        self._time_N = torch.where(over_N, 0, self._time_N)
        blank = self._blank()
        if self._memory is not None and blank is not None:
            pairs = zip(self._memory, blank, strict=True)
            self._memory = Memory(*(_where(over_N, new, old) for old, new in pairs))

    def _stocked(self) -> Sessions:
        """The newcomers waiting on the device, enough for one more step."""
        size = RESERVE * self.num_envs
        if self._reserve is None:
            self._reserve = self._upload(self._arrivals.take(self._rng, size))
            self._used = torch.zeros((), dtype=torch.int64, device=self.device)
            self._steps_left = RESERVE
        elif self._steps_left == 0:
            used = int(self._used)  # the one place where the host waits for the device
            if self.num_envs > size - used:
                more = self._upload(self._arrivals.take(self._rng, used))
                self._reserve = _zip(
                    self._reserve, more, lambda old, new: torch.cat([old[used:], new])
                )
                self._used, used = torch.zeros_like(self._used), 0
            self._steps_left = (size - used) // self.num_envs
        return self._reserve

    def _upload(self, sessions: Sessions) -> Sessions:
        return _map(sessions, self._tensor)

    def _tensor(self, array: Any) -> Tensor:
        # torch takes over memory only where it may be written
        tensor = torch.as_tensor(np.require(array, requirements="W"), device=self.device)
        if tensor.is_floating_point():
            return tensor.to(self.dtype)
        return tensor.to(torch.int64) if tensor.dtype == torch.int16 else tensor

    def _blank(self) -> Memory | None:
        blank = self.shop.blank_memory((self.num_envs,))
        return None if blank is None else Memory(*map(self._tensor, blank))

    def _observe(self) -> Tensor:
        session = self._met()
        observation: Tensor = self.shop.observe(
            xp, self.lenses, session.state, session.traits, self._memory, self._candidate()
        )
        return observation

    def _candidate(self) -> Tensor | None:
        """What has arrived at the gate (N,); None where there is no gate."""
        candidate_NT: Tensor | None = self._met().candidate
        if candidate_NT is None:
            return None
        last = self.shop.horizon - 1
        candidate_N: Tensor = candidate_NT[self._slot_N, self._time_N.clamp(max=last)]
        return candidate_N

    def _met(self) -> Sessions:
        if self._session is None:
            raise UsageError("nobody is in the shop yet: call reset() first")
        return self._session

    def _validate(self, action_N: Any) -> Tensor:
        if not isinstance(action_N, Tensor) or action_N.dtype not in WHOLE:
            got = getattr(action_N, "dtype", type(action_N).__name__)
            raise UsageError(f"actions must be a tensor of whole numbers, got {got}")
        if action_N.shape != (self.num_envs,):
            raise UsageError(
                f"actions must be of shape ({self.num_envs},), got {tuple(action_N.shape)}"
            )
        whole_N = action_N.to(torch.int64)
        valid = ((whole_N >= 0) & (whole_N < self.shop.num_actions)).all()
        if self.device.type == "cpu":
            if not valid:
                raise self.shop.misstep("an action")
        else:
            torch._assert_async(valid)
        return whole_N


class RecsysGateTorchEnv(RecsysTorchEnv):
    """``num_envs`` gates in one shop, as tensors; see ``recenv.gate.RecsysGateEnv``."""

    shop_class: ClassVar[type[Shop]] = GateShop


def _map(session: Sessions, function: Any) -> Sessions:
    return Sessions(
        function(session.shopper_id),
        State(*map(function, session.state)),
        Traits(*map(function, session.traits)),
        function(session.threshold),
        function(session.drift_row),
        function(session.first_observation),
        None if session.candidate is None else function(session.candidate),
    )


def _zip(first: Sessions, second: Sessions, function: Any) -> Sessions:
    return Sessions(
        function(first.shopper_id, second.shopper_id),
        State(*map(function, first.state, second.state)),
        Traits(*map(function, first.traits, second.traits)),
        function(first.threshold, second.threshold),
        function(first.drift_row, second.drift_row),
        function(first.first_observation, second.first_observation),
        None if first.candidate is None else function(first.candidate, second.candidate),
    )


def _where(mask_N: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(mask_N.reshape(-1, *[1] * (new.ndim - 1)), new, old)
