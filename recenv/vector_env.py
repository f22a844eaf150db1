"""N shoppers at once on numpy: the native vector environment of Recsys-v0."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Self

import gymnasium as gym
import numpy as np
from array_api_compat import numpy as xp
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from recenv.catalogue import Bools, IntArray
from recenv.dynamics import Array, Outcome, State, Traits
from recenv.errors import UsageError, check_options
from recenv.organic import Browsing, Window
from recenv.population import Sessions
from recenv.shop import Memory, Shop, as_number, session_steps

OPTIONS = ("first_session_steps", "reset_mask")  # of reset


class RecsysVectorEnv(gym.vector.VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """``num_envs`` shoppers in one shop; see ``RecsysEnv`` for the model and the keywords.

    Args:
        num_envs: N.
        max_episode_steps: cut sessions (``truncated``) after so many steps; the horizon
            and leaving are ``terminated``.
        keywords: those of ``RecsysEnv``; ``autoreset_mode`` is "SameStep", "NextStep"
            or "Disabled" (then reset finished slots with
            ``reset(options={"reset_mask": mask_N})``).

    ``reset(options={"first_session_steps": steps_N})`` cuts each slot's first session
    after so many steps, so that slots do not end in lockstep.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (an instance variable in gymnasium)
        "render_modes": [],
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    shop_class: ClassVar[type[Shop]] = Shop

    def __init__(
        self,
        num_envs: int = 1,
        *,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        **keywords: Any,
    ):
        num_envs = as_number("num_envs", num_envs, 1, 10_000_000)
        if max_episode_steps is not None:
            max_episode_steps = as_number("max_episode_steps", max_episode_steps, 1, 10_000_000)
        if render_mode is not None:
            raise UsageError(
                f'a vector env has no pictures: render gym.make("{self.shop_class.id}")'
            )
        self.shop = self.shop_class(keywords)
        self._keywords = {**keywords, "max_episode_steps": max_episode_steps}
        self.num_envs = num_envs
        self.render_mode = None
        self.autoreset_mode = AutoresetMode(self.shop.settings.autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.single_action_space = self.shop.action_space
        self.single_observation_space: spaces.Box = self.shop.observation_space
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._max_steps = max_episode_steps or self.shop.horizon
        self._num_actions = self.shop.num_actions
        self._arrivals = self.shop.arrivals(num_envs)
        self._session: Sessions | None = None
        self._memory: Memory | None = None
        self._window = Window.of(self.shop)
        # from the first reset on
        self._state: State
        self._luck_N: IntArray  # where each slot's next luck lies
        self._cut_N: IntArray  # where ``truncated`` cuts its session
        self._over_N: Bools  # whether the last step ended its session
        # where each slot's luck begins in the flattened (N, T) arrays
        self._first_luck_N = np.arange(num_envs) * self.shop.horizon

    @property
    def keywords(self) -> dict[str, Any]:
        """What it was made with."""
        return dict(self._keywords)

    def sibling(self, num_envs: int, **changes: Any) -> Self:
        """Another environment of the same shop, with ``num_envs`` slots and other keywords."""
        return type(self)(num_envs, **(self._keywords | changes))

    @property
    def state(self) -> State:
        """The shoppers' latent state; for oracles, not for learners."""
        self._met()
        return self._state

    @property
    def traits(self) -> Traits:
        """Who they are; for oracles, not for learners."""
        return self._met().traits

    @property
    def shopper_id_N(self) -> IntArray:
        """Who is in each slot. Public: an agent may know its regulars."""
        shopper_id_N: IntArray = self._met().shopper_id
        return shopper_id_N

    @property
    def browsing(self) -> Browsing | None:
        """What they have done by themselves since the last recommendation, where that shows.
        Public."""
        self._met()
        return self._window.browsing if self._window else None

    def reset(
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Fill all slots with the next shoppers, or those of ``options["reset_mask"]``."""
        options = check_options(options, OPTIONS)
        if isinstance(seed, list):
            raise UsageError(f"{self.shop.id} draws all slots from one generator: pass one seed")
        super().reset(seed=seed)
        if seed is not None:
            self._arrivals.clear()
        if self._window and (seed is not None or self._window.closed):
            self._window.open(self.np_random_seed)
        mask_N = _mask(options.get("reset_mask"), self.num_envs)
        if self._session is not None and mask_N is not None:
            index = np.flatnonzero(mask_N)
            if len(index):
                self._replace(index)
            self._over_N = self._over_N & ~mask_N
        else:
            mask_N = np.ones(self.num_envs, dtype=np.bool_)
            self._fill(options.get("first_session_steps"))
        if self._window:
            self._window.look(self._state, self.traits, self._memory, mask_N)
        return self._observe(), self._greeting()

    def observe(self) -> np.ndarray:
        """What is seen of the shoppers now, (N, S)."""
        self._met()
        return self._observe()

    def checkpoint(self) -> dict[str, Any]:
        """All that decides what comes next: nested dictionaries of arrays and of what JSON
        can hold. ``restore`` goes on from there.

        Raises:
            UsageError: nobody is in the shop yet.
        """
        kept = self._met()._replace(state=self._state).arrays() | {
            "memory": self._memory._asdict() if self._memory is not None else None,
            "luck": self._luck_N,
            "cut": self._cut_N,
            "cuts": self._cuts,
            "over": self._over_N,
            "arrivals": self._arrivals.checkpoint(),
            "generator": self.np_random.bit_generator.state,
        }
        if self._window:
            kept["organic"] = self._window.checkpoint()
        return copy.deepcopy(kept)  # a step writes some of these in place

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on, to the bit, from a ``checkpoint`` of an environment of the same keywords.

        Raises:
            UsageError: it is of other sizes, or damaged. That two shops are of one size, but else
                not alike, is not looked at.
        """
        try:
            self._restore(copy.deepcopy(kept))
        except (KeyError, TypeError, ValueError) as error:
            self._session = None
            raise UsageError(f"this checkpoint is not of such an environment: {error}") from None

    def _restore(self, kept: dict[str, Any]) -> None:
        blank = self.shop.blank_memory((self.num_envs,))
        if (kept["memory"] is None) != (blank is None):
            raise ValueError("its observation is another")
        self._arrivals.restore(kept["arrivals"])
        self.np_random.bit_generator.state = kept["generator"]
        self._session = self._arrivals.session(kept, self.num_envs)
        self._state = self._session.state
        self._memory = Memory(**kept["memory"]) if blank is not None else None
        self._luck_N, self._cut_N = kept["luck"], kept["cut"]
        self._cuts, self._over_N = bool(kept["cuts"]), kept["over"]
        if self._window:
            self._window.restore(kept["organic"])
        for now, like in zip(self._memory or (), blank or (), strict=True):
            if now.shape != like.shape:
                raise ValueError(f"its memory is of shape {now.shape}, not {like.shape}")
        for array_N in (self._luck_N, self._cut_N, self._over_N):
            if array_N.shape != (self.num_envs,):
                raise ValueError(f"it has {len(array_N)} slots, not {self.num_envs}")

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Do one action to each shopper: ``actions`` (N,), whole numbers.

        An action is the item to recommend (at a gate: whether to recommend the candidate).

        Raises:
            UsageError: there is no such action, the shape or type is wrong, or
                (autoreset_mode="Disabled") a session is over.
        """
        session, action_N = self._met(), self._validate(actions)
        if self.autoreset_mode is AutoresetMode.DISABLED and self._over_N.any():
            raise UsageError(
                "a session is over: call reset(options={'reset_mask': mask}) before the next step"
            )
        shop, tables, candidate_N = self.shop, self.shop.tables, self._candidate_N()
        drifts = shop.dynamics.drift_scale
        item_N = shop.shown(xp, action_N, candidate_N)
        threshold_N = session.threshold.reshape(-1).take(self._luck_N, mode="clip")
        if shop.masks:  # what is not there is refused, whatever the luck
            threshold_N[shop.out_of_stock(session.threshold, item_N)] = np.inf
        # "clip": in "NextStep" a slot that is over has no luck left, and its step is not told
        outcome = shop.advance(
            xp,
            tables,
            self._state,
            session.traits,
            action_N,
            candidate_N,
            threshold_N,
            session.drift_row.reshape(-1).take(self._luck_N, mode="clip") if drifts else None,
        )
        info = self._inform(session, action_N, candidate_N, outcome)
        self._memory = shop.remember(xp, shop.lenses, self._memory, item_N, outcome.event)
        self._state = outcome.state
        self._luck_N += 1
        terminated_N = outcome.terminated
        truncated_N = self._truncate(terminated_N)
        reward_N = outcome.purchase_reward + outcome.leaving_charge
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            self._begin_next(reward_N, terminated_N, truncated_N, info)
        observation = self._observe()
        self._over_N = terminated_N | truncated_N
        if self.autoreset_mode is AutoresetMode.SAME_STEP and self._over_N.any():
            self._begin_same(observation, info)
        if self._window:
            same = self.autoreset_mode is AutoresetMode.SAME_STEP
            there_N = np.ones_like(self._over_N) if same else ~self._over_N
            self._window.look(self._state, self.traits, self._memory, there_N)
            observation = self._observe()
        return observation, reward_N, terminated_N, truncated_N, info

    def _truncate(self, terminated_N: Bools) -> Bools:
        """Which sessions something from outside cuts on this step."""
        if not self._cuts:  # none can be: the horizon terminates
            return np.zeros(self.num_envs, dtype=np.bool_)
        cut_N: Bools = (self._luck_N >= self._cut_N) & ~terminated_N
        return cut_N

    def _begin_same(self, observation: np.ndarray, info: dict[str, Any]) -> None:
        """Start the next session where one is over, and tell how the old one ended."""
        over_N, own = self._over_N, dict(info)
        going_N = ~over_N
        info |= {name: going_N for name in own if name.startswith("_")}
        index = np.flatnonzero(over_N)
        final_N = np.empty(self.num_envs, dtype=np.object_)  # of None
        final_N[index] = np.fromiter(observation[index], dtype=np.object_, count=len(index))
        observation[index] = self._first_seen(index, self._replace(index))
        info |= self._greeting()
        info |= {"final_obs": final_N, "_final_obs": over_N}
        info |= {"final_info": own, "_final_info": over_N}

    def _first_seen(self, index: IntArray, new: Sessions) -> np.ndarray:
        """What is seen of those who have just come into the slots (n, S)."""
        seen_nS: np.ndarray = new.first_observation
        return seen_nS

    def _begin_next(
        self,
        reward_N: np.ndarray,
        terminated_N: Bools,
        truncated_N: Bools,
        info: dict[str, Any],
    ) -> None:
        """Where the last step ended a session, this one only opens the next."""
        index = np.flatnonzero(self._over_N)
        if not len(index):
            return
        self._replace(index)
        reward_N[index] = 0.0
        terminated_N[index] = truncated_N[index] = False
        going_N = ~self._over_N
        info |= {name: going_N for name in info if name.startswith("_")}
        info |= self._greeting()

    def _greeting(self) -> dict[str, Any]:
        """What is told of a shopper who has just come."""
        everyone = np.ones(self.num_envs, dtype=np.bool_)
        return {"shopper_id": self.shopper_id_N.copy(), "_shopper_id": everyone}

    def _inform(
        self,
        session: Sessions,
        action_N: IntArray,
        candidate_N: IntArray | None,
        outcome: Outcome,
    ) -> dict[str, Any]:
        everyone = np.ones(self.num_envs, dtype=np.bool_)
        terms = {"purchase": outcome.purchase_reward, "leaving": outcome.leaving_charge}
        info: dict[str, Any] = {
            "shopper_id": session.shopper_id.copy(),
            "_shopper_id": everyone,
            "event": outcome.event,
            "_event": everyone,
            "reward_terms": terms,
            "_reward_terms": everyone,
        }
        if self.shop.settings.reveal:
            shop, state, traits = self.shop, self._state, session.traits
            stock_NI = self.action_masks() if shop.masks else None
            revealed = shop.reveal(xp, shop.tables, state, traits, action_N, candidate_N, stock_NI)
            info |= revealed | {f"_{name}": everyone for name in revealed}
        return info

    def _fill(self, first_session_steps: Any) -> None:
        """New sessions in every slot."""
        waiting = self._arrivals.take(self.np_random, self.num_envs)
        copy = waiting.rows(np.arange(self.num_envs))  # rows will be written
        self._session = copy._replace(first_observation=waiting.first_observation)
        self._state = self._session.state
        self._memory = self.shop.blank_memory((self.num_envs,))
        self._luck_N = self._first_luck_N.copy()
        self._cut_N = self._first_luck_N + self._max_steps
        self._cuts = self._max_steps < self.shop.horizon or first_session_steps is not None
        if first_session_steps is not None:
            steps_N = session_steps(first_session_steps, self.num_envs)
            self._cut_N = self._first_luck_N + np.minimum(steps_N, self._max_steps)
        self._over_N = np.zeros(self.num_envs, dtype=np.bool_)

    def _replace(self, index: IntArray) -> Sessions:
        """New sessions in the slots ``index``; only their rows are written."""
        new = self._arrivals.take(self.np_random, len(index))
        current = self._met()._replace(state=self._state)
        for target, source in zip(_leaves(current), _leaves(new), strict=True):
            target[index] = source
        blank = self.shop.blank_memory((len(index),))
        if self._memory is not None and blank is not None:
            for target, source in zip(self._memory, blank, strict=True):
                target[index] = source
        self._luck_N[index] = self._first_luck_N[index]
        if self._cuts:
            self._cut_N[index] = self._first_luck_N[index] + self._max_steps
        return new

    def _observe(self) -> np.ndarray:
        shop, traits = self.shop, self._met().traits
        observation: np.ndarray = shop.observe(
            xp, shop.lenses, self._state, traits, self._memory, self._candidate_N()
        )
        return observation

    def _candidate_N(self) -> IntArray | None:
        """What has arrived at the gate for each shopper; None where there is no gate."""
        candidate_NT: Array = self._met().candidate
        if candidate_NT is None:
            return None
        # "clip": whose session is over has none, and what is seen of her tells none
        candidate_N: IntArray = candidate_NT.reshape(-1).take(self._luck_N, mode="clip")
        return candidate_N

    def shown(self, action_N: IntArray) -> IntArray:
        """The items (N,) that actions would put before the shoppers now; -1 for none."""
        item_N: IntArray = self.shop.shown(xp, action_N, self._candidate_N())
        return item_N

    def action_masks(self) -> Bools:
        """Which actions are open to each shopper (N, actions): not what is out of stock."""
        if not self.shop.masks:
            return np.ones((self.num_envs, self._num_actions), dtype=np.bool_)
        mask_NI: Bools = self.shop.action_masks(self._met().threshold, self._candidate_N())
        return mask_NI

    def _met(self) -> Sessions:
        if self._session is None:
            raise UsageError("nobody is in the shop yet: call reset() first")
        return self._session

    def _validate(self, actions: Any) -> IntArray:
        action_N = np.asarray(actions)
        if action_N.shape != (self.num_envs,) or action_N.dtype.kind not in "iu":
            raise UsageError(
                f"actions must be {self.num_envs} whole numbers, "
                f"got {action_N.dtype} of shape {action_N.shape}"
            )
        action_N = action_N.astype(np.int64, copy=False)
        # unsigned, so that what is negative is too large
        if action_N.view(np.uint64).max() >= self._num_actions:
            raise self.shop.misstep("an action")
        return action_N


def _leaves(session: Sessions) -> list[Any]:
    """What a slot keeps of a session."""
    leaves = [
        session.shopper_id,
        *session.state,
        *session.traits,
        session.threshold,
        session.drift_row,
    ]
    return leaves if session.candidate is None else [*leaves, session.candidate]


def _mask(mask: Any, num_envs: int) -> Bools | None:
    if mask is None:
        return None
    mask_N = np.asarray(mask)
    if mask_N.shape != (num_envs,) or mask_N.dtype != np.bool_:
        raise UsageError(f"reset_mask must be {num_envs} booleans")
    return mask_N
