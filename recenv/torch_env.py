"""N shoppers at once on torch tensors, on any device: the same step, the same arrivals.

With one seed it meets the same shoppers with the same luck as ``RecsysVectorEnv``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cached_property, partial, wraps
from typing import Any, ClassVar, NamedTuple

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector.utils import batch_space

from recenv.dynamics import Outcome, State, Tables, Traits
from recenv.errors import MissingExtra, UsageError, check_options
from recenv.gate import GateShop
from recenv.observation import Behaviour
from recenv.population import Sessions, decode_luck, initial_state
from recenv.shop import Lenses, Memory, Shop, as_number, session_steps

try:
    import torch
    from array_api_compat import torch as xp

    from recenv.fused import SETTLING, fused, settled
    from recenv.tree import check_like, filled, leaves, mapped, plain
except ModuleNotFoundError:
    raise MissingExtra("recenv.torch_env", "torch", "agents") from None

Tensor = torch.Tensor
OPTIONS = ("first_session_steps",)  # of reset
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
SURE_STEPS = 4  # for which newcomers are sure to last once an accelerator was asked
Luck = tuple[Tensor, ...]  # in words of 32 bits, or what they stand for: thresholds, drift rows


class Queue(NamedTuple):
    """A ring of Q sessions: those in the shop, and the newcomers after them.

    It is written in place, where nobody stands any more; Q is a power of two. What belongs to turns
    lies in memory as (T, Q): who came together is at the same turn, and what they look up lies in
    the same lines of cache.
    """

    shopper_id: Tensor  # (Q,)
    interest: Tensor  # (Q, D)
    patience: Tensor  # (Q,)
    traits: Traits  # (Q,)
    luck: Luck  # (Q, T) words of 32 bits, or what they stand for
    candidate: Tensor | None  # (Q, T) what arrives at a gate


class Slots(NamedTuple):
    """Who is in the shop."""

    state: State
    traits: Traits
    memory: Memory | None
    arrival: Tensor  # (N,) how many came before her: her luck lies there in the ring
    cut: Tensor  # (N,) with how many recommendations still to come it is cut


class Told(NamedTuple):
    """What a step returns, before it is put into words."""

    action: Tensor  # (N,) as it was taken: the caller may write others over his
    shopper_id: Tensor  # (N,) whose reply it is
    observation: Tensor  # (N, S)
    event: Tensor  # (N,)
    purchase: Tensor  # (N,) a term of the reward, as the next
    leaving: Tensor  # (N,)
    reward: Tensor  # (N,)
    terminated: Tensor  # (N,) bytes, as the next
    truncated: Tensor  # (N,)
    revealed: dict[str, Tensor]


def _exact(method: Callable[..., Any]) -> Callable[..., Any]:
    """The same method, also within ``torch.autocast``: shoppers do not get by with less."""

    @wraps(method)
    def called(env: RecsysTorchEnv, *arguments: Any, **keywords: Any) -> Any:
        kind = env.device.type
        if not torch.is_autocast_enabled(kind):
            return method(env, *arguments, **keywords)
        with torch.autocast(kind, enabled=False):
            return method(env, *arguments, **keywords)

    return called


class RecsysTorchEnv:
    """``num_envs`` shoppers in one shop, as tensors; sessions restart by themselves.

    Args:
        num_envs: N.
        max_episode_steps: cut sessions (``truncated``) after so many steps.
        device: where the tensors live.
        dtype: torch.float32 or torch.float64.
        compile: let torch's compiler fuse the step. The first step then takes ten seconds or
            more, and needs a C++ compiler (on the cpu) or triton. On the cpu all steps use as many
            threads as torch has at the first: let them be fewer than the cores where other
            processes work too, as threads that wait for each other wait for those.
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
        self._far = self.device.type != "cpu"  # to look at a number there is to wait for it
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
        self._before: tuple[Slots, Luck, Tensor] | None = None
        # from the first reset on
        self._queue: Queue
        self._luck: Luck  # (N,) of the next step
        self._next: Tensor  # () how many have come in: the arrival of the next newcomer
        self._drawn: int  # how many have been put into the queue
        self._counted: Tensor  # (2,) of an accelerator: the next and the oldest arrival a step ago
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
        slots = self._met()
        return self._shopper_id(self._queue, slots)

    @_exact
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Fill all slots with the next shoppers.

        ``options={"first_session_steps": steps_N}`` cuts each slot's first session after so
        many steps, so that slots do not end in lockstep.
        """
        first = check_options(options, OPTIONS).get("first_session_steps")
        first_N = None if first is None else session_steps(first, self.num_envs)
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
        self._open()
        if first_N is not None:
            cut_N = torch.as_tensor(first_N, device=self.device)
            left_N = self.shop.horizon - cut_N.clamp(max=self._max_steps)
            self._slots = self._met()._replace(cut=left_N.to(self.dtype))
        return self._observe(self._queue, self._met()), {"shopper_id": self.shopper_id_N}

    @torch.inference_mode(False)  # what is written in place must be writable outside too
    def _begin(self) -> None:
        """A new ring, and the first N sessions in it."""
        first = self._upload(self._arrivals.take(self._rng, self.num_envs))
        # those in the shop, those who wait, and room for who comes while somebody stays
        size = 2 ** math.ceil(math.log2((4 + SURE_STEPS) * self.num_envs))
        ring = mapped(lambda leaf: self._zeros(leaf, (size, *leaf.shape[1:])), first)
        by_turn = partial(mapped, lambda leaf: self._zeros(leaf, leaf.shape[::-1]).T)
        self._queue = ring._replace(luck=by_turn(ring.luck), candidate=by_turn(ring.candidate))
        self._next = torch.zeros((), dtype=torch.int64, device=self.device)
        self._drawn = 0
        self._append(first)

    def _zeros(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Room in the ring.

        On the host it is numpy's, as numpy asks for large pages of memory: what is looked up here
        and there is found sooner by them.
        """
        if self._far:
            return like.new_zeros(shape)
        kind = torch.empty(0, dtype=like.dtype, device="cpu").numpy().dtype
        return self._tensor(np.zeros(shape, dtype=kind))

    def _open(self) -> None:
        """Get ready for a first step of those who are in the shop."""
        self._luck = self._look_up(self._queue, self._met())
        self._count()
        self._steps_left, self._before = 0, None

    @_exact
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
        # what was before is let go first: new shoppers take its place in the cache
        luck_N, self._before = self._luck, None
        after, following, upcoming_N, valid, told = self._advance(
            slots, self._queue, self._next, luck_N, action_N
        )
        self._check(valid)
        self._before = slots, luck_N, told.action
        self._slots, self._next, self._luck = after, following, upcoming_N
        self._steps_left -= 1
        if self._steps_left == 1:
            self._count()
        info = {
            "shopper_id": told.shopper_id,
            "event": told.event,
            "purchase": told.purchase,
            "leaving": told.leaving,
            **told.revealed,
        }
        ends = told.terminated.view(torch.bool), told.truncated.view(torch.bool)
        return told.observation, told.reward, *ends, info

    @_exact
    def final_observation(self) -> Tensor:
        """What each shopper looked like at the end of the last step, before newcomers took the
        places of those who left (N, S).

        It is worked out when it is asked for: it would be a third of what a step writes.

        Raises:
            UsageError: there was no step since the shop was filled, or its actions were refused.
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
            "slots": plain(mapped(_copied, self._met())),
            "queue": plain(mapped(_copied, self._queue)),
            "next": _copied(self._next),
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
            check_like("checkpoint", kept, self.checkpoint())
            self._slots = filled(self._met(), kept["slots"], self._own)
            queue = filled(self._queue, kept["queue"], self._own)
            for leaf, come in zip(leaves(self._queue), leaves(queue), strict=True):
                leaf.copy_(come)
            self._next, self._drawn = self._own(kept["next"]), kept["drawn"]
            self._arrivals.restore(copy.deepcopy(kept["arrivals"]))
            self._rng.bit_generator.state = kept["generator"]
            self._check_ranges()
            self._open()
        except (ArithmeticError, KeyError, TypeError, ValueError, RuntimeError) as error:
            self._slots = None
            raise UsageError(
                f"this checkpoint is not of such an environment: {error} (num_envs, dtype and "
                "compile must be the same, and the keywords and the version)"
            ) from None

    def _check_ranges(self) -> None:
        """Refuse whole numbers by which nothing can be looked up: compiled code looks anyway."""
        slots, queue, shop = self._met(), self._queue, self.shop
        oldest = self._drawn - len(queue.shopper_id)
        places = {
            "next": (self._next, 0, self._drawn),
            "arrival": (slots.arrival, max(oldest, 0), int(self._next) - 1),
            "remaining": (slots.state.remaining, 1, shop.horizon),
        }
        if slots.memory is not None and isinstance(shop.view, Behaviour):
            places["items"] = slots.memory.items, -1, shop.catalogue.num_items - 1
            places["events"] = slots.memory.events, -1, shop.view.num_events - 1
        if len(queue.luck) > 1:
            places["luck"] = queue.luck[1], 0, len(self.tables.drift) - 1
        if queue.candidate is not None:
            waiting = self._tensor(self._arrivals.checkpoint()["waiting"]["candidate"])
            places["candidate"] = queue.candidate, 0, shop.catalogue.num_items - 1
            places["waiting"] = waiting, 0, shop.catalogue.num_items - 1
        for name, (place, low, high) in places.items():
            if not ((place >= low) & (place <= high)).all():
                raise ValueError(f"its {name} does not lie in {low}..{high}")

    def __getstate__(self) -> dict[str, Any]:
        """Without compiled code, which is made anew where it is needed."""
        return {name: value for name, value in vars(self).items() if name != "_advance"}

    def close(self) -> None:
        """Nothing is held that needs closing."""

    @cached_property
    def _advance(self) -> Callable[..., tuple[Slots, Tensor, Luck, Tensor, Told]]:
        """``_tick``, fused where that was asked for."""
        if not self.compile:
            return self._tick
        item_N = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
        arguments = self._met(), self._queue, self._next, self._luck, item_N
        return fused(self._tick, arguments, self.device)

    def _tick(
        self,
        slots: Slots,
        queue: Queue,
        next_: Tensor,
        luck_N: Luck,
        action_N: Tensor,
    ) -> tuple[Slots, Tensor, Luck, Tensor, Told]:
        """A step as a function of tensors alone: the slots after it, the arrival of the next
        newcomer, the luck of the next step, whether all actions are valid, and what is told."""
        shop, candidate_N = self.shop, self._candidate(queue, slots)
        inside_N = action_N.clamp(0, shop.num_actions - 1)
        outcome, going, truncated_N = self._respond(slots, queue, luck_N, inside_N)
        revealed = (
            shop.reveal(self._xp, self.tables, slots.state, slots.traits, inside_N, candidate_N)
            if shop.settings.reveal
            else {}
        )
        # newcomers come in in the order of their arrival
        over_N = (outcome.terminated | truncated_N).to(torch.int32)
        come_N = torch.cumsum(over_N, 0, dtype=torch.int32)
        arrival_N = next_ + come_N - 1
        after = _either(over_N, self._enter(queue, arrival_N), going, blend=self.compile)
        terms = outcome.purchase_reward, outcome.leaving_charge
        told = Told(
            inside_N,
            self._shopper_id(queue, slots),
            self._observe(queue, after),
            outcome.event.to(torch.int8),
            *terms,
            terms[0] + terms[1],
            _bytes(outcome.terminated),
            _bytes(truncated_N),
            revealed,
        )
        valid = (inside_N == action_N).all()
        return after, next_ + come_N[-1], self._look_up(queue, after), valid, told

    def _respond(
        self, slots: Slots, queue: Queue, luck_N: Luck, action_N: Tensor
    ) -> tuple[Outcome, Slots, Tensor]:
        """What the actions lead to, the slots with nobody replaced, and whose session is cut."""
        shop, candidate_N = self.shop, self._candidate(queue, slots)
        threshold_N, drift_row_N = luck_N if len(luck_N) > 1 else decode_luck(luck_N[0], self._xp)
        outcome = shop.advance(
            self._xp,
            self.tables,
            slots.state,
            slots.traits,
            action_N,
            candidate_N,
            threshold_N.to(self.dtype),
            drift_row_N,
        )
        item_N = shop.shown(self._xp, action_N, candidate_N)
        memory = shop.remember(self._xp, self.lenses, slots.memory, item_N, outcome.event)
        going = slots._replace(state=outcome.state, memory=memory)
        truncated_N = (outcome.state.remaining <= slots.cut) & ~outcome.terminated
        return outcome, going, truncated_N

    def _enter(self, queue: Queue, arrival_N: Tensor) -> Slots:
        """Those of these arrivals, with nothing recommended yet."""
        row_N, take = _row(queue, arrival_N), self._xp.take
        state = initial_state(
            self._xp,
            take(queue.interest, row_N, axis=0),
            take(queue.patience, row_N),
            self.shop.catalogue.num_categories,
            self.shop.horizon,
        )
        traits = Traits(*(take(leaf, row_N) for leaf in queue.traits))
        cut_N = torch.full_like(state.remaining, self.shop.horizon - self._max_steps)
        return Slots(state, traits, self._blank, arrival_N, cut_N)

    def _shopper_id(self, queue: Queue, slots: Slots) -> Tensor:
        shopper_id_N: Tensor = self._xp.take(queue.shopper_id, _row(queue, slots.arrival))
        return shopper_id_N

    def _turn(self, queue: Queue, slots: Slots) -> Tensor:
        """Where in the ring what belongs to everybody's next step lies (N,)."""
        horizon, size = self.shop.horizon, len(queue.shopper_id)
        small = self.compile and size * (horizon + 1) < 2**31
        whole = torch.int32 if small else torch.int64
        gone_N = (horizon - slots.state.remaining).to(whole)
        turn_N: Tensor = gone_N * size + _row(queue, slots.arrival).to(whole)
        return turn_N

    def _look_up(self, queue: Queue, slots: Slots) -> Luck:
        """The luck of everybody's next step (N,).

        It is looked up a step before: what misses the cache then holds up no arithmetic.
        """
        turn_N = self._turn(queue, slots)
        return tuple(self._xp.take(part.T.reshape(-1), turn_N) for part in queue.luck)

    def _count(self) -> None:
        """Begin to tell the host how many newcomers have come in; it looks a step later, so
        that no step waits for an accelerator."""
        if not self._far:
            return
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
        n, oldest = self.num_envs, None
        if self.device.type == "cuda":
            self._copied.synchronize()  # of a step ago
        if self._far:
            used, oldest = map(int, self._counted)
            late, sure = n, SURE_STEPS * n  # the step since then may have used up n of them
        else:
            used, late, sure = int(self._next), 0, n
        while self._drawn - used - late < sure:
            if oldest is None:
                oldest = int(self._met().arrival.min())
            if self._drawn + n - oldest > len(self._queue.shopper_id):
                self._close_ranks(used)
                used, oldest = n, 0
            self._append(self._upload(self._arrivals.take(self._rng, n)))
        self._steps_left = (self._drawn - used - late) // n

    def _append(self, new: Queue) -> None:
        """N more sessions into the ring, over those of shoppers who have left."""
        n, size = self.num_envs, len(self._queue.shopper_id)
        row = self._drawn % size
        fit = min(n, size - row)
        for leaf, come in zip(leaves(self._queue), leaves(new), strict=True):
            leaf[row : row + fit] = come[:fit]
            if fit < n:
                leaf[: n - fit] = come[fit:]
        self._drawn += n

    def _close_ranks(self, used: int) -> None:
        """Number those in the shop and the newcomers anew.

        Somebody has stayed for so long that the ring is full of those who came after her.
        """
        waiting = torch.arange(used, self._drawn, device=self.device)
        kept = torch.cat([self._met().arrival, waiting])
        row = _row(self._queue, kept)
        for leaf in leaves(self._queue):
            leaf[: len(kept)] = leaf[row]
        slots, first_N = self._met(), torch.arange(self.num_envs, device=self.device)
        self._slots = slots._replace(arrival=first_N)
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
        if not isinstance(array, Tensor):  # torch takes over memory only where it may be written
            array = np.require(array, requirements=("C", "W"))
        tensor = torch.as_tensor(array, device=self.device)
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def _own(self, array: Any) -> Tensor:
        """A tensor that nobody else writes to."""
        return _copied(self._tensor(array))

    @property
    def _xp(self) -> Any:
        return SETTLING if self.compile else xp

    @cached_property
    def _blank(self) -> Memory | None:
        blank = self.shop.blank_memory((self.num_envs,))
        return None if blank is None else Memory(*map(self._tensor, blank))

    def _observe(self, queue: Queue, slots: Slots) -> Tensor:
        candidate_N = self._candidate(queue, slots)
        observation: Tensor = self.shop.observe(
            self._xp, self.lenses, slots.state, slots.traits, slots.memory, candidate_N
        )
        return observation

    def _candidate(self, queue: Queue, slots: Slots) -> Tensor | None:
        """What has arrived at the gate (N,); None where there is no gate."""
        if queue.candidate is None:
            return None
        # whose session is over has none, and what is seen of her tells none
        last, turn_N = queue.candidate.numel() - 1, self._turn(queue, slots)
        turn_N = turn_N.clamp(max=last)
        candidate_N: Tensor = self._xp.take(queue.candidate.T.reshape(-1), turn_N)
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
        if action_N.dtype == torch.int64 and action_N.is_contiguous():
            return action_N
        # columns of a table, say, are not contiguous, which compiled code takes for granted
        return action_N.to(torch.int64).contiguous()

    def _check(self, valid: Tensor) -> None:
        """Refuse a step with an action that there is not."""
        if self._far:
            torch._assert_async(valid)
        elif not valid:
            raise self.shop.misstep("an action")


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


def _row(queue: Queue, arrival: Tensor) -> Tensor:
    """Where in the ring those of these arrivals stand; its size is a power of two."""
    return arrival & (len(queue.shopper_id) - 1)


def _copied(leaf: Tensor) -> Tensor:
    """In rows, whichever way it lies in memory."""
    return leaf.clone(memory_format=torch.contiguous_format)


def _either(choice_N: Tensor, new: Slots, old: Slots, blend: bool) -> Slots:
    """The new shoppers where the choice is 1, the old ones where it is 0.

    It is a number, as inductor loads and spreads numbers far faster than bools; to ``blend``
    vectors by it is faster there than to choose.
    """
    new_N = choice_N > 0
    share_N = settled(choice_N.to(new.state.interest.dtype)) if blend else None

    def chosen(one: Any, other: Any) -> Any:
        if isinstance(one, Tensor):
            return _chosen(new_N, share_N, one, other)
        return None if one is None else type(one)(*map(chosen, one, other))

    slots: Slots = chosen(new, old)
    return slots


def _bytes(true_N: Tensor) -> Tensor:
    """Bools as numbers: inductor writes vectors of bools one by one."""
    return true_N.to(torch.int32).to(torch.uint8)


def _chosen(new_N: Tensor, share_N: Tensor | None, new: Tensor, old: Tensor) -> Tensor:
    wide = (-1, *[1] * (new.ndim - 1))
    if share_N is not None and new.ndim > 1 and new.is_floating_point():
        share = share_N.reshape(wide)
        return share * new + (1.0 - share) * old
    return torch.where(new_N.reshape(wide), new, old)
