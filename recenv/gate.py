"""The gate: candidates arrive one by one, and the question is whether to recommend them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from recenv import dynamics as physics
from recenv.catalogue import FloatArray, IntArray
from recenv.dynamics import Array, Outcome, State, Tables, Traits
from recenv.env import RecsysEnv
from recenv.errors import UsageError
from recenv.observation import AtGate, Observer, with_nothing
from recenv.shop import Lenses, Memory, Settings, Shop, check_choice
from recenv.vector_env import RecsysVectorEnv
from recenv.world import newcomers_utility

CANDIDATES = ("uniform", "popularity", "interest")
# Utilities that are looked at together: what popularity is measured on, and the most that
# is held while candidates are drawn by interest.
TOGETHER = 20_000_000


@dataclass(frozen=True)
class GateSettings(Settings):
    """The keywords of ``gym.make("RecsysGate-v0", ...)``."""

    candidates: str = "interest"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("candidates", self.candidates, CANDIDATES)
        if self.stock_out:
            raise UsageError("stock_out is for Recsys-v0: only what is there arrives at a gate")
        if self.organic:
            raise UsageError("organic_views and organic_searches are for Recsys-v0: leave them out")


class GateShop(Shop):
    """A shop at whose gate items arrive: 1 recommends the one that is there, 0 does not."""

    id: ClassVar[str] = "RecsysGate-v0"
    settings_class: ClassVar[type[Settings]] = GateSettings
    gate: ClassVar[bool] = True
    action_words: ClassVar[str] = "0 (do not recommend) or 1 (recommend)"
    settings: GateSettings

    @property
    def num_actions(self) -> int:
        return 2

    def misstep(self, action: str) -> UsageError:
        return UsageError(f"{action} is neither 0 (do not recommend) nor 1 (recommend)")

    @cached_property
    def observer(self) -> Observer:
        return AtGate(self.view, self.catalogue.features_IF)

    @cached_property
    def lenses(self) -> Lenses:
        """What an observation reads, on numpy."""
        behaviour = super().lenses
        if behaviour is not None:
            return behaviour
        return Lenses(with_nothing(self.catalogue.features_IF), np.zeros((0, 0), np.float32))

    # --- what arrives ---

    @property
    def proposals(self) -> Callable[[np.random.Generator, State], IntArray]:
        return self.propose

    def propose(self, rng: np.random.Generator, state: State) -> IntArray:
        """The candidates (n, T) of newcomers, as ``candidates`` says."""
        kind, n = self.settings.candidates, len(state.interest)
        uniform_nT = rng.random((n, self.horizon))
        if kind == "uniform":
            return (uniform_nT * self.num_items).astype(np.int64)
        if kind == "popularity":
            return np.searchsorted(self._popular_I, uniform_nT, side="right")
        rows = max(TOGETHER // self.num_items, 1)
        blocks = [slice(start, start + rows) for start in range(0, n, rows)]
        parts = [self._by_interest(state.interest[rows], uniform_nT[rows]) for rows in blocks]
        return np.concatenate(parts)

    @cached_property
    def _popular_I(self) -> FloatArray:
        """Upper ends of the items' shares of [0, 1), in proportion to newcomers' purchases."""
        world = self.world
        count = min(max(TOGETHER // self.num_items, 16), 1_000)
        utility_nI = newcomers_utility(
            world.catalogue, world.population, self.dynamics.interest_weight, 0, count
        )
        rate_I = physics.sigmoid(np, utility_nI - self.difficulty).mean(axis=0)
        shares_I: FloatArray = _shares(rate_I)[0]
        return shares_I

    def _by_interest(self, interest_nD: FloatArray, uniform_nT: FloatArray) -> IntArray:
        """Items in proportion to exp(interest_weight <interest, embedding>)."""
        affinity_nI = interest_nD @ self.catalogue.embedding_ID.T
        weight_nI = np.exp(self.dynamics.interest_weight * (affinity_nI - 1.0))
        pairs = zip(_shares(weight_nI), uniform_nT, strict=True)
        return np.stack([np.searchsorted(end_I, u_T, side="right") for end_I, u_T in pairs])

    # --- what happens, and what is seen of it ---

    def advance(
        self,
        xp: Any,
        tables: Tables,
        state: State,
        traits: Traits,
        action: Array,
        candidate: Array | None,
        threshold: Array,
        drift_row: Array,
    ) -> Outcome:
        recommended = xp.asarray(action) == 1
        return physics.gate(
            xp, self.dynamics, tables, state, traits, recommended, candidate, threshold, drift_row
        )

    def utility(
        self, xp: Any, tables: Tables, state: State, traits: Traits, candidate: Array
    ) -> Array:
        """Utility (...) of buying the candidates; positive where a purchase is likelier."""
        items = physics.items_at(xp, tables, candidate)
        return physics.respond(xp, self.dynamics, state, traits, items, 0.0)

    def shown(self, xp: Any, action: Array, candidate: Array | None) -> Array:
        return xp.where(xp.asarray(action) == 1, candidate, -1)

    def reveal(
        self,
        xp: Any,
        tables: Tables,
        state: State,
        traits: Traits,
        action: Array,
        candidate: Array | None = None,
        stock: Array | None = None,
    ) -> dict[str, Array]:
        """Purchase probability of the candidate, and the regret of the decision about it."""
        value = self.utility(xp, tables, state, traits, candidate)
        gain = 2.0 * physics.sigmoid(xp, value) - 1.0
        best, none = xp.where(gain > 0, gain, 0.0), xp.zeros_like(gain)
        chosen = xp.where(xp.asarray(action) == 1, gain, none)
        return {"purchase_probability": 0.5 * (gain + 1.0), "regret": best - chosen}

    def remember(
        self, xp: Any, lenses: Lenses | None, memory: Memory | None, item: Array, event: Array
    ) -> Memory | None:
        """The memory after one more interaction, where there was one."""
        shown = xp.asarray(item) >= 0
        reply = xp.where(shown, xp.asarray(event), 0)
        longer = super().remember(xp, lenses, memory, item, reply)
        if longer is None or memory is None:
            return None
        pairs = zip(longer, memory, strict=True)
        return Memory(*(xp.where(shown[..., None], new, old) for new, old in pairs))

    def first_observation(
        self, state: State, traits: Traits, candidate: Array | None = None
    ) -> Array:
        assert candidate is not None
        shopper_nS = super().first_observation(state, traits)
        features_nF = self.lenses.features[candidate[:, 0]]
        return np.concatenate([shopper_nS, features_nF], axis=-1)

    def observe(
        self,
        xp: Any,
        lenses: Lenses | None,
        state: State,
        traits: Traits,
        memory: Memory | None,
        candidate: Array | None = None,
    ) -> Array:
        assert lenses is not None
        shopper = self.see(xp, lenses, state, traits, memory)
        # nothing arrives any more where the session is over
        over = (state.patience < 0) | (state.remaining <= 0)
        features = lenses.features[xp.where(over, self.num_items, candidate)]
        return xp.concat([shopper, features], axis=-1)


def _shares(weight: FloatArray) -> FloatArray:
    """Upper ends (..., I - 1) of shares of [0, 1) in proportion to weights (..., I)."""
    end = np.cumsum(np.atleast_2d(weight), axis=-1, dtype=np.float64)
    shares: FloatArray = end[..., :-1] / end[..., -1:]
    return shares


class RecsysGateEnv(RecsysEnv):
    """A candidate arrives, and the shop recommends it to the shopper or does not.

    ## Description

    The shop and the shopper of `Recsys-v0` (its page has the formulas: `help(recenv.env)`),
    with another question. T candidates, items of the catalogue, arrive one after the other.
    Where one is recommended, the shopper replies, buys or refuses and changes exactly as
    in `Recsys-v0`. Where it is not, time passes and no more: satiation decays, net
    satisfaction is forgotten by trust_memory, interest wanders by drift_scale, and one
    candidate fewer is to come. Her run of refusals neither grows nor ends, and she does not
    leave: leaving is a reply to what she is shown.

    So recommending everything is `Recsys-v0` with the candidates as actions (but for the
    charge for leaving, see `Rewards`), and what there is to learn is when to stay silent:
    a candidate is worth showing if it is likelier bought than not, and less often than that
    where a poor item costs trust, sates, or drives the shopper away.

    ## Action Space

    `Discrete(2)`: 0 does not recommend the candidate, 1 recommends it. Both are always
    allowed: `action_masks()` is all True.

    ## Observation Space

    A flat float32 `Box`: the observation of `Recsys-v0` with the same keywords, S numbers
    (`latent`: D + K + 6, `behaviour`: 7 + H (F + 6)), then the candidate.
    `env.unwrapped.shop.observer.unflatten(observation)` gives the parts by name.

    | index | name | meaning | min | max |
    | --- | --- | --- | --- | --- |
    | 0 .. S-1 | those of `Recsys-v0` | the shopper | as there | as there |
    | S .. S+F-1 | `candidate` | the candidate's public features | least or 0 | most or 1 |

    The features are a row of `env.unwrapped.shop.catalogue.features_IF` (I, F): one-hot
    category and brand, log price, keywords. They are zeros once the session is over. With
    `observation="behaviour"` a candidate that was not recommended leaves no trace but in
    `remaining`.

    ## Rewards

    +1 if she buys what is recommended, -1 if she does not, 0 for not recommending: the
    return is purchases - refusals.

    Leaving carries no charge here, and never pays: not recommending is open at every step,
    is worth 0 and drives nobody away, so that a shopper who stays is worth at least 0, and
    one who has left exactly 0. (In `Recsys-v0` a step can cost 1 and must be taken; there
    the charge keeps an early end from being a gain. Here it would count candidates that
    nobody had to recommend as refusals.) A policy that cannot stay silent does lose less
    with shoppers who leave; it still loses to silence.

    ## Starting State

    The next shopper walks in as in `Recsys-v0`, and the first candidate is there. All T
    candidates are drawn with her luck from `np_random`, so that neither depends on what is
    done: two agents evaluated with one seed meet the same shoppers, luck and candidates.
    `candidates` says from what distribution, with replacement:

    - `"interest"`: in proportion to exp(interest_weight <u, v>), u as she walks in, as a
      shop does that retrieves candidates by relevance. It costs a look at all items for
      each session.
    - `"popularity"`: in proportion to how often newcomers would buy it, on average.
    - `"uniform"`: every item alike. Most candidates are then not worth showing.

    With one seed the first `num_envs` shoppers (64, if there are fewer) are those of
    `Recsys-v0`, with the same luck.

    ## Episode End

    As in `Recsys-v0`: `terminated` after T candidates, or (with churn) when she leaves.

    ## Information

    - `shopper_id` (also from `reset`): who is in the shop.
    - `event`: what she did, a code of `recenv.Event`, or -1 where nothing was recommended.
    - `reward_terms`: `purchase` (+1, -1 or 0) and `leaving` (always 0); they add up to the
      reward.
    - with `reveal=True` also `purchase_probability` of the candidate that was decided on,
      and `regret`: the gap of the decision to the better one, in expected reward of this step.

    ## Arguments

    ```python
    >>> import gymnasium as gym, recenv
    >>> env = gym.make("RecsysGate-v0", scenario="full", candidates="popularity")
    >>> env.action_space
    Discrete(2)

    ```

    All keywords of `Recsys-v0`, `render_mode` included, and

    | keyword | default | meaning |
    | --- | --- | --- |
    | `candidates` | `"interest"` | or `"popularity"` or `"uniform"`, see `Starting State` |

    ## Vectorized environment

    ```python
    >>> envs = gym.make_vec("RecsysGate-v0", num_envs=1024)
    >>> envs
    RecsysGateVectorEnv(RecsysGate-v0, num_envs=1024)

    ```

    As in `Recsys-v0`: the same step for N shoppers at once, its three autoreset modes and
    options of `reset`; with one seed, `num_envs=1` meets the shoppers and candidates that
    this environment meets. `recenv.torch_env.RecsysGateTorchEnv` is the same on torch.

    ## Version History

    * v0: first version.
    """

    shop_class: ClassVar[type[Shop]] = GateShop


class RecsysGateVectorEnv(RecsysVectorEnv):
    """``num_envs`` gates in one shop; see ``RecsysGateEnv``, and ``RecsysVectorEnv``."""

    shop_class: ClassVar[type[Shop]] = GateShop
    shop: GateShop

    @property
    def candidate_N(self) -> IntArray:
        """The items that have arrived. Public: their features are in the observation."""
        candidate_N = self._candidate_N()
        assert candidate_N is not None
        return candidate_N
