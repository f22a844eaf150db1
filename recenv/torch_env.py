"""N shoppers at once on torch tensors, on any device: the same step, the same arrivals.

With one seed it meets the same shoppers with the same luck as ``RecsysVectorEnv``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector.utils import batch_space

from recenv.dynamics import State, Tables, Traits
from recenv.errors import MissingExtra, UsageError, check_options
from recenv.gate import GateShop
from recenv.population import Sessions, initial_state
from recenv.shop import Lenses, Memory, Shop, as_number, session_steps

try:
    import torch
    from array_api_compat import torch as xp
except ModuleNotFoundError:
    raise MissingExtra("recenv.torch_env", "torch", "agents") from None

Tensor = torch.Tensor
OPTIONS = ("first_session_steps",)  # of reset
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
# Newcomers kept on the device, per slot. More are called for when fewer than half are left.
RESERVE = 8


class Slots(NamedTuple):
    """Who is in the shop."""

    shopper_id: Tensor  # (N,)
    state: State
    traits: Traits
    memory: Memory | None
    row: Tensor  # (N,) which of the queue's sessions she is: her luck lies there
    time: Tensor  # (N,) recommendations that she has seen
    cut: Tensor  # (N,) after how many the session is cut


class Told(NamedTuple):
    """What a step returns, before it is put into words."""

    observation: Tensor  # (N, S)
    final: Tensor  # (N, S) before newcomers came in
    event: Tensor  # (N,)
    purchase: Tensor  # (N,) a term of the reward, as the next
    leaving: Tensor  # (N,)
    reward: Tensor  # (N,)
    terminated: Tensor  # (N,)
    truncated: Tensor  # (N,)
    revealed: dict[str, Tensor]


class RecsysTorchEnv:
    """``num_envs`` shoppers in one shop, as tensors; sessions restart by themselves.

    Args:
        num_envs: N.
        max_episode_steps: cut sessions (``truncated``) after so many steps.
        device: where the tensors live.
        dtype: torch.float32 or torch.float64.
        compile: let ``torch.compile`` fuse the step. The first step then takes a minute or
            so, and needs a C++ compiler (on the cpu) or triton.
        keywords: those of ``RecsysEnv`` (autoreset is always "SameStep").
    """

    shop_class: ClassVar[type[Shop]] = Shop

    def __init__(
        self,
        num_envs: int,
        *,
        max_episode_steps: int | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        compile: bool = False,
        **keywords: Any,
    ):
        num_envs = as_number("num_envs", num_envs, 1, 10_000_000)
        if max_episode_steps is not None:
            max_episode_steps = as_number("max_episode_steps", max_episode_steps, 1, 10_000_000)
        if dtype not in (torch.float32, torch.float64):
            raise UsageError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        if not isinstance(compile, bool):
            raise UsageError(f"compile must be true or false, got {compile!r}")
        self.shop = self.shop_class(keywords)
        if self.shop.settings.autoreset_mode != "SameStep":
            raise UsageError('the torch env restarts sessions by itself: autoreset_mode="SameStep"')
        if self.shop.masks:
            raise UsageError("stock_out is for the environments on numpy: leave it out on torch")
        self.num_envs = num_envs
        self._max_steps = min(max_episode_steps or self.shop.horizon, self.shop.horizon)
        try:
            self.device = torch.zeros((), device=device).device
        except (RuntimeError, AssertionError):
            raise UsageError(f"device {device!s} is not on this machine: choose cpu") from None
        self.dtype = dtype
        self.compile = compile
        self.single_action_space = self.shop.action_space
        self.single_observation_space = self.shop.observation_space
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.tables = Tables(*(self._tensor(table) for table in self.shop.tables))
        lenses = self.shop.lenses
        self.lenses = None if lenses is None else Lenses(*map(self._tensor, lenses))
        self._arrivals = self.shop.arrivals(num_envs)
        self._slots: Slots | None = None
        # from the first reset on
        self._queue: Sessions  # those in the shop, and the newcomers after them
        self._next: Tensor  # () the row of the next newcomer
        self._counted: Tensor  # () what that was a step ago, on the host
        self._steps_left: int  # for how many steps the newcomers are sure to last

    @property
    def cuts(self) -> bool:
        """Whether sessions are cut before their horizon, the first ones aside."""
        return self._max_steps < self.shop.horizon

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
        return self._met().shopper_id

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Fill all slots with the next shoppers.

        ``options={"first_session_steps": steps_N}`` cuts each slot's first session after so
        many steps, so that slots do not end in lockstep.
        """
        first_N = check_options(options, OPTIONS).get("first_session_steps")
        if seed is not None or self._slots is None:
            self._rng, _ = seeding.np_random(seed)
            self._arrivals.clear()
            self._queue = self._upload(self._arrivals.take(self._rng, self.num_envs))
            self._open(torch.arange(self.num_envs, device=self.device))
        else:
            self._count()
            self._stock()
            self._open(self._next + torch.arange(self.num_envs, device=self.device))
        if first_N is not None:
            cut_N = torch.as_tensor(session_steps(first_N, self.num_envs), device=self.device)
            self._slots = self._met()._replace(cut=cut_N.clamp(max=self._max_steps))
        return self._observe(self._queue, self._met()), {"shopper_id": self.shopper_id_N.clone()}

    def _open(self, row_N: Tensor) -> None:
        """All slots to those who stand in these rows of the queue, with newcomers behind."""
        self._slots = self._enter(self._queue, row_N)
        self._next = row_N[-1] + 1
        self._count()
        self._steps_left = 0

    def step(self, action_N: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Recommend one item to each shopper (at a gate: the candidate, or nothing).

        Actions are validated by shape and type on the host, and by value on the device
        (without waiting for it).

        Returns:
            observation (N, S), reward (N,), terminated (N,), truncated (N,) and info:
            event, purchase and leaving terms, shopper_id, and ``final_obs`` (N, S), what
            each shopper looked like before a newcomer took her place.
        """
        slots, action_N = self._met(), self._validate(action_N)
        if self._steps_left == 0:
            self._stock()
            slots = self._met()
        self._steps_left -= 1
        self._slots, self._next, told = self._advance(slots, self._queue, self._next, action_N)
        if self._steps_left == 1:
            self._count()
        info = {
            "shopper_id": slots.shopper_id,
            "event": told.event,
            "purchase": told.purchase,
            "leaving": told.leaving,
            **told.revealed,
            "final_obs": told.final,
        }
        return told.observation, told.reward, told.terminated, told.truncated, info

    def checkpoint(self) -> dict[str, Any]:
        """All that decides what comes next: nested dictionaries of tensors, arrays and of what
        JSON can hold. ``restore`` goes on from there.

        Raises:
            UsageError: nobody is in the shop yet.
        """
        return {
            "slots": _plain(self._met()),
            "queue": _plain(self._queue),
            "next": self._next,
            "arrivals": copy.deepcopy(self._arrivals.checkpoint()),
            "generator": self._rng.bit_generator.state,
        }

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on, to the bit, from a ``checkpoint`` of an environment of the same keywords.

        Raises:
            UsageError: it is of another shop or number of slots, or damaged.
        """
        try:
            self.reset(seed=0)  # what it should look like
            for name, like in (("slots", self._met()), ("queue", self._queue)):
                _check_like(name, kept[name], _plain(like), self.num_envs)
            self._slots = _filled(self._met(), kept["slots"], self._tensor)
            self._queue = _filled(self._queue, kept["queue"], self._tensor)
            self._next = self._tensor(kept["next"])
            self._arrivals.restore(copy.deepcopy(kept["arrivals"]))
            self._rng.bit_generator.state = kept["generator"]
        except (KeyError, TypeError, ValueError) as error:
            self._slots = None
            raise UsageError(f"this checkpoint is not of such an environment: {error}") from None
        self._count()
        self._steps_left = 0

    def close(self) -> None:
        """Nothing is held that needs closing."""

    @cached_property
    def _advance(self) -> Callable[..., tuple[Slots, Tensor, Told]]:
        """``_tick``, fused where that was asked for."""
        # sizes never change, and whatever could not be fused should be heard of
        return (
            torch.compile(self._tick, dynamic=False, fullgraph=True) if self.compile else self._tick
        )

    def _tick(
        self, slots: Slots, queue: Sessions, next_row: Tensor, action_N: Tensor
    ) -> tuple[Slots, Tensor, Told]:
        """A step as a function of tensors alone: the slots after it, the row of the next
        newcomer, and what is told."""
        shop, candidate_N = self.shop, self._candidate(queue, slots)
        state, traits = slots.state, slots.traits
        outcome = shop.advance(
            xp,
            self.tables,
            state,
            traits,
            action_N,
            candidate_N,
            queue.threshold[slots.row, slots.time],
            queue.drift_row[slots.row, slots.time].to(torch.int64),
        )
        revealed = (
            shop.reveal(xp, self.tables, state, traits, action_N, candidate_N)
            if shop.settings.reveal
            else {}
        )
        item_N = shop.shown(xp, action_N, candidate_N)
        memory = shop.remember(xp, self.lenses, slots.memory, item_N, outcome.event)
        going = slots._replace(state=outcome.state, memory=memory, time=slots.time + 1)
        truncated_N = (going.time >= slots.cut) & ~outcome.terminated
        over_N, final_NS = outcome.terminated | truncated_N, self._observe(queue, going)
        # newcomers come in in the order of their arrival
        row_N = (next_row + torch.cumsum(over_N, 0) - 1).clamp(min=0)
        after = _either(over_N, self._enter(queue, row_N), going)
        observation_NS = self._observe(queue, after)
        terms = outcome.purchase_reward, outcome.leaving_charge
        ends = outcome.terminated, truncated_N
        told = Told(
            observation_NS, final_NS, outcome.event, *terms, terms[0] + terms[1], *ends, revealed
        )
        return after, next_row + over_N.sum(), told

    def _enter(self, queue: Sessions, row_N: Tensor) -> Slots:
        """Those who stand in these rows of the queue, with nothing recommended yet."""
        state = initial_state(
            xp,
            queue.state.interest[row_N],
            queue.state.patience[row_N],
            self.shop.catalogue.num_categories,
            self.shop.horizon,
        )
        traits = Traits(*(leaf[row_N] for leaf in queue.traits))
        shopper_id_N, time_N = queue.shopper_id[row_N], torch.zeros_like(row_N)
        cut_N = torch.full_like(row_N, self._max_steps)
        return Slots(shopper_id_N, state, traits, self._blank, row_N, time_N, cut_N)

    def _count(self) -> None:
        """Begin to tell the host how many newcomers have come in; it looks a step later, so
        that no step waits for the device."""
        if self.device.type != "cuda":
            self._counted = self._next
            return
        self._counted = torch.empty((), dtype=self._next.dtype, pin_memory=True)
        self._counted.copy_(self._next, non_blocking=True)
        self._copied: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._copied.record(torch.cuda.current_stream(self.device))

    def _stock(self) -> None:
        """Call for newcomers where there might be too few of them, and drop who has left."""
        if self.device.type == "cuda":
            self._copied.synchronize()  # of a step ago
        n, used = self.num_envs, int(self._counted)
        if len(self._queue.shopper_id) - used - n < RESERVE // 2 * n:
            waiting = torch.arange(used, len(self._queue.shopper_id), device=self.device)
            kept = torch.cat([self._met().row, waiting])
            more = self._upload(self._arrivals.take(self._rng, (1 + RESERVE) * n - len(kept)))
            old = _map(self._queue, lambda leaf: leaf[kept])
            self._queue = _zip(old, more, lambda first, second: torch.cat([first, second]))
            self._slots = self._met()._replace(row=torch.arange(n, device=self.device))
            self._next = self._next + (n - used)
            used = n
        # the step since they were counted may have used up n of them
        self._steps_left = (len(self._queue.shopper_id) - used - n) // n

    def _upload(self, sessions: Sessions) -> Sessions:
        return _map(sessions, self._tensor)

    def _tensor(self, array: Any) -> Tensor:
        # torch takes over memory only where it may be written
        tensor = torch.as_tensor(np.require(array, requirements="W"), device=self.device)
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    @cached_property
    def _blank(self) -> Memory | None:
        blank = self.shop.blank_memory((self.num_envs,))
        return None if blank is None else Memory(*map(self._tensor, blank))

    def _observe(self, queue: Sessions, slots: Slots) -> Tensor:
        candidate_N = self._candidate(queue, slots)
        observation: Tensor = self.shop.observe(
            xp, self.lenses, slots.state, slots.traits, slots.memory, candidate_N
        )
        return observation

    def _candidate(self, queue: Sessions, slots: Slots) -> Tensor | None:
        """What has arrived at the gate (N,); None where there is no gate."""
        if queue.candidate is None:
            return None
        time_N = slots.time.clamp(max=self.shop.horizon - 1)
        candidate_N: Tensor = queue.candidate[slots.row, time_N]
        return candidate_N

    def _met(self) -> Slots:
        if self._slots is None:
            raise UsageError("nobody is in the shop yet: call reset() first")
        return self._slots

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


def _plain(leaf: Any) -> Any:
    """Named tuples as dictionaries."""
    if isinstance(leaf, tuple) and hasattr(leaf, "_asdict"):
        return {k: _plain(v) for k, v in leaf._asdict().items() if v is not None}
    return leaf


def _filled(like: Any, kept: Any, tensor: Callable[[Any], Tensor]) -> Any:
    """A named tuple such as ``like`` from dictionaries of tensors."""
    if like is None:
        return None
    if not hasattr(like, "_fields"):
        return tensor(kept)
    values = (_filled(getattr(like, name), kept.get(name), tensor) for name in like._fields)
    return type(like)(*values)


def _check_like(name: str, kept: Any, like: Any, num_envs: int) -> None:
    """Refuse what has other parts or sizes; a queue may be of any length."""
    if isinstance(like, dict):
        if set(kept) != set(like):
            raise ValueError(f"its {name} has other parts")
        for part in like:
            _check_like(part, kept[part], like[part], num_envs)
    elif tuple(kept.shape[1:]) != tuple(like.shape[1:]) or len(kept) < num_envs:
        raise ValueError(f"its {name} is of another size")


def _either(mask_N: Tensor, new: Slots, old: Slots) -> Slots:
    """The new shoppers where the mask is set, the old ones elsewhere."""

    def chosen(one: Any, other: Any) -> Any:
        if isinstance(one, Tensor):
            return _where(mask_N, one, other)
        return None if one is None else type(one)(*map(chosen, one, other))

    slots: Slots = chosen(new, old)
    return slots


def _where(mask_N: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(mask_N.reshape(-1, *[1] * (new.ndim - 1)), new, old)
