"""N shoppers at once on torch tensors, on any device: the same step, the same arrivals.

With one seed it meets the same shoppers with the same luck as ``RecsysVectorEnv``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cached_property
from types import FunctionType, MethodType
from typing import Any, ClassVar, NamedTuple

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector.utils import batch_space

from recenv.dynamics import Outcome, State, Tables, Traits
from recenv.errors import MissingExtra, UsageError, check_options
from recenv.gate import GateShop
from recenv.population import Sessions, decode_luck, initial_state
from recenv.shop import Lenses, Memory, Shop, as_number, session_steps

try:
    import torch
    from array_api_compat import torch as xp
except ModuleNotFoundError:
    raise MissingExtra("recenv.torch_env", "torch", "agents") from None

Tensor = torch.Tensor
OPTIONS = ("first_session_steps",)  # of reset
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
SURE_STEPS = 4  # for which newcomers are sure to last once the host has looked
# Of torch.compile: all sizes are fixed and every index is in range: nothing need be checked.
UNCHECKED: dict[str, Any] = {
    "size_asserts": False,
    "alignment_asserts": False,
    "assert_indirect_indexing": False,
    "guard_filter_fn": lambda guards: [False] * len(guards),
}
# What calls the kernels is compiled too, and tanh is made of exp: by itself it is a tenth of them.
ON_CPU = {"cpp_wrapper": True, "cpp.use_decompose_tanh": True}


class Queue(NamedTuple):
    """A ring of Q sessions: those in the shop, and the newcomers after them.

    It is written in place, where nobody stands any more; Q is a power of two.
    """

    shopper_id: Tensor  # (Q,)
    interest: Tensor  # (Q, D)
    patience: Tensor  # (Q,)
    traits: Traits  # (Q,)
    luck: tuple[Tensor, ...]  # (Q, T) words of 32 bits, or what they stand for
    candidate: Tensor | None  # (Q, T) what arrives at a gate


class Slots(NamedTuple):
    """Who is in the shop."""

    shopper_id: Tensor  # (N,)
    state: State
    traits: Traits
    memory: Memory | None
    arrival: Tensor  # (N,) how many came before her: her luck lies there in the ring
    luck: Tensor  # (N,) where in the ring the luck of her next step lies
    cut: Tensor  # (N,) with how many recommendations still to come it is cut


class Told(NamedTuple):
    """What a step returns, before it is put into words."""

    observation: Tensor  # (N, S)
    event: Tensor  # (N,)
    purchase: Tensor  # (N,) a term of the reward, as the next
    leaving: Tensor  # (N,)
    reward: Tensor  # (N,)
    terminated: Tensor  # (N,) bytes, as the next
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
        if self.shop.settings.organic:
            raise UsageError(
                "organic_views and organic_searches are for the environments on numpy: leave them "
                "out on torch"
            )
        self.num_envs = num_envs
        self._max_steps = min(max_episode_steps or self.shop.horizon, self.shop.horizon)
        self.device = _device(device)
        self.dtype = dtype
        self.compile = compile
        self.single_action_space = self.shop.action_space
        self.single_observation_space = self.shop.observation_space
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.tables = Tables(*(self._tensor(table) for table in self.shop.tables))
        if compile:  # vectors of bytes are taken apart, and only what is told is small
            self.tables = self.tables._replace(tick=self.tables.tick.to(torch.int32))
        lenses = self.shop.lenses
        self.lenses = None if lenses is None else Lenses(*map(self._tensor, lenses))
        self._arrivals = self.shop.arrivals(num_envs, decoded=False)
        self._slots: Slots | None = None
        # of the last step: who was there, their luck, and what was done
        self._before: tuple[Slots, tuple[Tensor, ...], Tensor] | None = None
        # from the first reset on
        self._queue: Queue
        self._next: Tensor  # () how many have come in: the arrival of the next newcomer
        self._drawn: int  # how many have been put into the queue
        self._counted: Tensor  # (2,) the next and the oldest arrival a step ago, on the host
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
            self._begin()
        else:
            self._count()
            self._stock()
        arrival_N = self._next + torch.arange(self.num_envs, device=self.device)
        self._slots = self._enter(self._queue, arrival_N)
        self._next = self._next + self.num_envs
        self._count()
        self._steps_left, self._before = 0, None
        if first_N is not None:
            cut_N = torch.as_tensor(session_steps(first_N, self.num_envs), device=self.device)
            left_N = self.shop.horizon - cut_N.clamp(max=self._max_steps)
            self._slots = self._met()._replace(cut=left_N.to(self.dtype))
        return self._observe(self._queue, self._met()), {"shopper_id": self.shopper_id_N.clone()}

    def _begin(self) -> None:
        """A new ring, and the first N sessions in it."""
        first = self._upload(self._arrivals.take(self._rng, self.num_envs))
        # those in the shop, those who wait, and room for who comes while somebody stays
        size = 2 ** math.ceil(math.log2((4 + SURE_STEPS) * self.num_envs))
        self._queue = _map(first, lambda leaf: leaf.new_zeros((size, *leaf.shape[1:])))
        self._next = torch.zeros((), dtype=torch.int64, device=self.device)
        self._drawn = 0
        self._append(first)

    def step(self, action_N: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Recommend one item to each shopper (at a gate: the candidate, or nothing).

        Actions are validated by shape and type on the host, and by value on the device
        (without waiting for it).

        Returns:
            observation (N, S), reward (N,), terminated (N,), truncated (N,) and info:
            event, purchase and leaving terms, and shopper_id. How those looked whose session
            is over tells ``final_observation``.
        """
        slots, action_N = self._met(), self._validate(action_N)
        if self._steps_left == 0:
            self._stock()
            slots = self._met()
        # by itself: fused with arithmetic, a look-up that misses the cache holds everything up
        luck_N = tuple(part.view(-1).index_select(0, slots.luck) for part in self._queue.luck)
        after, following, valid, told = self._advance(
            slots, self._queue, self._next, luck_N, action_N
        )
        self._check(valid)
        self._before = slots, luck_N, action_N
        self._slots, self._next = after, following
        self._steps_left -= 1
        if self._steps_left == 1:
            self._count()
        info = {
            "shopper_id": slots.shopper_id,
            "event": told.event,
            "purchase": told.purchase,
            "leaving": told.leaving,
            **told.revealed,
        }
        ends = told.terminated.view(torch.bool), told.truncated.view(torch.bool)
        return told.observation, told.reward, *ends, info

    def final_observation(self) -> Tensor:
        """What each shopper looked like at the end of the last step, before newcomers took the
        places of those who left (N, S).

        It is worked out when it is asked for: it would be a third of what a step writes.

        Raises:
            UsageError: there was no step since the shop was filled.
        """
        if self._before is None:
            raise UsageError("nothing has ended yet: call step() first")
        going = self._respond(self._before[0], self._queue, *self._before[1:])[1]
        return self._observe(self._queue, going)

    def checkpoint(self) -> dict[str, Any]:
        """All that decides what comes next: nested dictionaries of tensors, arrays and of what
        JSON can hold. ``restore`` goes on from there.

        Raises:
            UsageError: nobody is in the shop yet.
        """
        return {
            "slots": _plain(self._met()),
            "queue": _plain(_map(self._queue, torch.clone)),  # it is written in place
            "next": self._next,
            "drawn": self._drawn,
            "arrivals": copy.deepcopy(self._arrivals.checkpoint()),
            "generator": self._rng.bit_generator.state,
        }

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on, to the bit, from a ``checkpoint`` of an environment of the same keywords.

        Raises:
            UsageError: it is of other sizes or kinds of numbers, or damaged. That two shops are of
                one size, but else not alike, is not looked at.
        """
        try:
            self.reset(seed=0)  # what it should look like
            for name, like in (("slots", self._met()), ("queue", self._queue)):
                _check_like(name, kept[name], _plain(like))
            self._slots = _filled(self._met(), kept["slots"], self._tensor)
            self._queue = _filled(self._queue, kept["queue"], self._tensor)
            self._next, self._drawn = self._tensor(kept["next"]), int(kept["drawn"])
            self._arrivals.restore(copy.deepcopy(kept["arrivals"]))
            self._rng.bit_generator.state = kept["generator"]
            luck_N, row_N = self._slots.luck, _row(self._queue, self._slots.arrival)
            if not torch.equal(luck_N // self.shop.horizon, row_N):  # compiled, nothing else would
                raise ValueError("its luck lies elsewhere")
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            self._slots = None
            raise UsageError(
                f"this checkpoint is not of such an environment: {error} (num_envs, dtype and "
                "compile must be the same, and the keywords)"
            ) from None
        self._count()
        self._steps_left, self._before = 0, None

    def close(self) -> None:
        """Nothing is held that needs closing."""

    @cached_property
    def _advance(self) -> Callable[..., tuple[Slots, Tensor, Tensor, Told]]:
        """``_tick``, fused where that was asked for."""
        if not self.compile:
            return self._tick
        # What is compiled is kept with the code of a function, to be used again where its guards
        # allow. Here they would take as long as a small step, and nothing that they look at ever
        # changes, so that there are none; but no other environment must use the same code.
        own = FunctionType(RecsysTorchEnv._tick.__code__.replace(), globals())
        options = UNCHECKED | (ON_CPU if self.device.type == "cpu" else {})
        # sizes never change, and whatever could not be fused should be heard of
        fused = torch.compile(MethodType(own, self), dynamic=False, fullgraph=True, options=options)
        # It is compiled for copies: two arguments that are one tensor, as they may be in a first
        # step, would be taken for one ever after.
        item_N = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
        arguments = self._met(), self._queue, self._next, (item_N.to(torch.int32),), item_N
        fused(*_map(arguments, torch.clone))
        return fused

    def _tick(
        self,
        slots: Slots,
        queue: Queue,
        next_: Tensor,
        luck_N: tuple[Tensor, ...],
        action_N: Tensor,
    ) -> tuple[Slots, Tensor, Tensor, Told]:
        """A step as a function of tensors alone: the slots after it, the arrival of the next
        newcomer, whether all actions are valid, and what is told."""
        shop, candidate_N = self.shop, self._candidate(queue, slots)
        inside_N = action_N.clamp(0, shop.num_actions - 1)
        outcome, going, truncated_N = self._respond(slots, queue, luck_N, inside_N)
        revealed = (
            shop.reveal(xp, self.tables, slots.state, slots.traits, inside_N, candidate_N)
            if shop.settings.reveal
            else {}
        )
        # newcomers come in in the order of their arrival
        over_N = (outcome.terminated | truncated_N).to(torch.int32)
        come_N = torch.cumsum(over_N, 0, dtype=torch.int32)
        arrival_N = next_ + come_N - 1
        after = _either(over_N, self._enter(queue, arrival_N), going)
        terms = outcome.purchase_reward, outcome.leaving_charge
        told = Told(
            self._observe(queue, after),
            outcome.event.to(torch.int8),
            *terms,
            terms[0] + terms[1],
            _bytes(outcome.terminated),
            _bytes(truncated_N),
            revealed,
        )
        valid = (inside_N == action_N).all()
        return after, next_ + come_N[-1], valid, told

    def _respond(
        self, slots: Slots, queue: Queue, luck_N: tuple[Tensor, ...], action_N: Tensor
    ) -> tuple[Outcome, Slots, Tensor]:
        """What the actions lead to, the slots with nobody replaced, and whose session is cut."""
        shop, candidate_N = self.shop, self._candidate(queue, slots)
        threshold_N, drift_row_N = luck_N if len(luck_N) > 1 else decode_luck(luck_N[0], xp)
        outcome = shop.advance(
            xp,
            self.tables,
            slots.state,
            slots.traits,
            action_N,
            candidate_N,
            threshold_N.to(self.dtype),
            drift_row_N,
        )
        item_N = shop.shown(xp, action_N, candidate_N)
        memory = shop.remember(xp, self.lenses, slots.memory, item_N, outcome.event)
        going = slots._replace(state=outcome.state, memory=memory, luck=slots.luck + 1)
        truncated_N = (outcome.state.remaining <= slots.cut) & ~outcome.terminated
        return outcome, going, truncated_N

    def _enter(self, queue: Queue, arrival_N: Tensor) -> Slots:
        """Those of these arrivals, with nothing recommended yet."""
        row_N = _row(queue, arrival_N)
        state = initial_state(
            xp,
            queue.interest[row_N],
            queue.patience[row_N],
            self.shop.catalogue.num_categories,
            self.shop.horizon,
        )
        traits = Traits(*(leaf[row_N] for leaf in queue.traits))
        shopper_id_N, luck_N = queue.shopper_id[row_N], row_N * self.shop.horizon
        cut_N = torch.full_like(state.remaining, self.shop.horizon - self._max_steps)
        return Slots(shopper_id_N, state, traits, self._blank, arrival_N, luck_N, cut_N)

    def _count(self) -> None:
        """Begin to tell the host how many newcomers have come in; it looks a step later, so
        that no step waits for the device."""
        counts = torch.stack([self._next, self._met().arrival.min()])
        if self.device.type != "cuda":
            self._counted = counts
            return
        self._counted = torch.empty_like(counts, device="cpu", pin_memory=True)
        self._counted.copy_(counts, non_blocking=True)
        self._copied: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._copied.record(torch.cuda.current_stream(self.device))

    def _stock(self) -> None:
        """Call for newcomers where there might be too few of them."""
        if self.device.type == "cuda":
            self._copied.synchronize()  # of a step ago
        n, (used, oldest) = self.num_envs, map(int, self._counted)
        while self._drawn - used - n < SURE_STEPS * n:
            if self._drawn + n - oldest > len(self._queue.shopper_id):
                self._close_ranks(used)
                used, oldest = n, 0
            self._append(self._upload(self._arrivals.take(self._rng, n)))
        # the step since they were counted may have used up n of them
        self._steps_left = (self._drawn - used - n) // n

    def _append(self, new: Queue) -> None:
        """N more sessions into the ring, over those of shoppers who have left."""
        n, size = self.num_envs, len(self._queue.shopper_id)
        row = self._drawn % size
        fit = min(n, size - row)
        for leaf, come in zip(_leaves(self._queue), _leaves(new), strict=True):
            leaf[row : row + fit] = come[:fit]
            leaf[: n - fit] = come[fit:]
        self._drawn += n

    def _close_ranks(self, used: int) -> None:
        """Number those in the shop and the newcomers anew.

        Somebody has stayed for so long that the ring is full of those who came after her.
        """
        waiting = torch.arange(used, self._drawn, device=self.device)
        kept = torch.cat([self._met().arrival, waiting])
        row = _row(self._queue, kept)
        for leaf in _leaves(self._queue):
            leaf[: len(kept)] = leaf[row]
        slots, first_N = self._met(), torch.arange(self.num_envs, device=self.device)
        luck_N = first_N * self.shop.horizon + slots.luck % self.shop.horizon
        self._slots = slots._replace(arrival=first_N, luck=luck_N)
        self._next = self._next + (self.num_envs - used)
        self._drawn = len(kept)

    def _upload(self, sessions: Sessions) -> Queue:
        """Sessions as a queue."""
        traits, candidate = sessions.traits, sessions.candidate
        word = self._tensor(sessions.threshold)
        return Queue(
            self._tensor(sessions.shopper_id),
            self._tensor(sessions.state.interest),
            self._tensor(sessions.state.patience),
            Traits(*map(self._tensor, traits)),
            # compiled, a few logarithms a step are all but free; uncompiled, each is a pass
            (word,) if self.compile else tuple(map(self._tensor, decode_luck(word, xp))),
            None if candidate is None else self._tensor(candidate),
        )

    def _tensor(self, array: Any) -> Tensor:
        # torch takes over memory only where it may be written
        tensor = torch.as_tensor(np.require(array, requirements=("C", "W")), device=self.device)
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    @cached_property
    def _blank(self) -> Memory | None:
        blank = self.shop.blank_memory((self.num_envs,))
        return None if blank is None else Memory(*map(self._tensor, blank))

    def _observe(self, queue: Queue, slots: Slots) -> Tensor:
        candidate_N = self._candidate(queue, slots)
        observation: Tensor = self.shop.observe(
            xp, self.lenses, slots.state, slots.traits, slots.memory, candidate_N
        )
        return observation

    def _candidate(self, queue: Queue, slots: Slots) -> Tensor | None:
        """What has arrived at the gate (N,); None where there is no gate."""
        if queue.candidate is None:
            return None
        # whose session is over has none, and what is seen of her tells none
        last = queue.candidate.numel() - 1
        candidate_N: Tensor = torch.take(queue.candidate, slots.luck.clamp(max=last))
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
        if action_N.device != self.device:
            raise UsageError(f"actions must be on {self.device}, got {action_N.device}")
        # columns of a table, say, are not contiguous, which compiled code takes for granted
        return action_N.to(torch.int64).contiguous()

    def _check(self, valid: Tensor) -> None:
        """Refuse a step with an action that there is not."""
        if self.device.type == "cpu":
            if not valid:
                raise self.shop.misstep("an action")
        else:
            torch._assert_async(valid)


class RecsysGateTorchEnv(RecsysTorchEnv):
    """``num_envs`` gates in one shop, as tensors; see ``recenv.gate.RecsysGateEnv``."""

    shop_class: ClassVar[type[Shop]] = GateShop


def _device(device: str | torch.device) -> torch.device:
    """A device that is there, with its index."""
    try:
        there = torch.zeros((), device=device).device
    except (RuntimeError, AssertionError, TypeError):
        there = None
    if there is None or there.type == "meta":
        raise UsageError(f"device {device!r} is not on this machine: choose cpu")
    return there


def _map(leaf: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same named tuples of other tensors."""
    if isinstance(leaf, Tensor):
        return function(leaf)
    if leaf is None:
        return None
    parts = [_map(part, function) for part in leaf]
    return type(leaf)(*parts) if hasattr(leaf, "_fields") else tuple(parts)


def _row(queue: Queue, arrival: Tensor) -> Tensor:
    """Where in the ring those of these arrivals stand; its size is a power of two."""
    return arrival & (len(queue.shopper_id) - 1)


def _leaves(queue: Queue) -> list[Tensor]:
    leaves = [queue.shopper_id, queue.interest, queue.patience, *queue.traits, *queue.luck]
    return leaves if queue.candidate is None else [*leaves, queue.candidate]


def _plain(leaf: Any) -> Any:
    """Named tuples as dictionaries."""
    if isinstance(leaf, tuple) and hasattr(leaf, "_asdict"):
        return {k: _plain(v) for k, v in leaf._asdict().items() if v is not None}
    if isinstance(leaf, tuple):
        return {str(place): part for place, part in enumerate(leaf)}
    return leaf


def _filled(like: Any, kept: Any, tensor: Callable[[Any], Tensor]) -> Any:
    """A named tuple such as ``like`` from dictionaries of tensors."""
    if like is None:
        return None
    if isinstance(like, tuple) and not hasattr(like, "_fields"):
        return tuple(tensor(kept[str(place)]) for place in range(len(like)))
    if not hasattr(like, "_fields"):
        return tensor(kept)
    values = (_filled(getattr(like, name), kept.get(name), tensor) for name in like._fields)
    return type(like)(*values)


def _check_like(name: str, kept: Any, like: Any) -> None:
    """Refuse what has other parts, sizes or kinds of numbers."""
    if isinstance(like, dict):
        if not isinstance(kept, dict) or set(kept) != set(like):
            raise ValueError(f"its {name} has other parts")
        for part in like:
            _check_like(part, kept[part], like[part])
        return
    kept = torch.as_tensor(kept)
    if kept.shape != like.shape:
        raise ValueError(f"its {name} is of another size")
    if kept.dtype != like.dtype:
        raise ValueError(f"its {name} is of {kept.dtype}, not {like.dtype}")


def _either(choice_N: Tensor, new: Slots, old: Slots) -> Slots:
    """The new shoppers where the choice is 1, the old ones where it is 0.

    It is a number, as inductor loads and spreads numbers far faster than bools.
    """
    new_N = choice_N > 0

    def chosen(one: Any, other: Any) -> Any:
        if isinstance(one, Tensor):
            return _chosen(choice_N, new_N, one, other)
        return None if one is None else type(one)(*map(chosen, one, other))

    slots: Slots = chosen(new, old)
    return slots


def _bytes(true_N: Tensor) -> Tensor:
    """Bools as numbers: inductor writes vectors of bools one by one."""
    return true_N.to(torch.int32).to(torch.uint8)


def _chosen(choice_N: Tensor, new_N: Tensor, new: Tensor, old: Tensor) -> Tensor:
    ones = [1] * (new.ndim - 1)
    if ones and new.is_floating_point() and torch.compiler.is_compiling():
        share = choice_N.reshape(-1, *ones).to(new.dtype)
        return share * new + (1.0 - share) * old
    return torch.where(new_N.reshape(-1, *ones) if ones else new_N, new, old)
