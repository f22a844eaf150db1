"""The single environment: one shopper, no batch axis."""

from __future__ import annotations

import operator
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from array_api_compat import numpy as xp

from recenv.dynamics import Array, State, Traits
from recenv.errors import UsageError, check_options, unknown
from recenv.organic import Window
from recenv.population import Sessions
from recenv.render import Diary, draw, tell
from recenv.shop import Memory, Shop

RENDER_MODES = ("ansi", "rgb_array")


class RecsysEnv(gym.Env[np.ndarray, np.int64]):
    """A shop recommends one item at a time to a shopper, who buys it or does not.

    ## Description

    A catalogue of I items in K categories, a shopper, and T recommendations. Each item has
    a category k, a standardised log price z, an appeal h (how tempting it looks), a quality
    q in [-1, 1] (how satisfied its buyer is) and an embedding v (a unit vector of D
    dimensions). The shopper has an interest u (unit, D), a base rate a, a price sensitivity
    c and a tolerance for refusals; her satiation s (K), net satisfaction m and run of
    refusals r change with what she is shown. One step, with the parameters of `Arguments`:

    1. **Utility**: U = interest_weight <u, v> + h - c z - s[k] + trust_weight g + a - difficulty,
       where g = tanh(trust_slope m) is her trust.
    2. **Choice**: one uniform draw w decides between nested events. She buys where
       U > logit(w), so that P(purchase) = sigmoid(U); she at least puts the item in the cart
       with probability sigmoid(U + cart_offset), at least views it with
       sigmoid(U + view_offset), and says "not interested" with
       1 - sigmoid(U + dismiss_offset). Otherwise she ignores it.
    3. **Change**: s <- satiation_decay s, plus satiation_gain in the category that she
       bought from; m <- trust_memory m + q if she bought, else trust_memory m; r <- 0 if she
       bought, else r + 1. Her interest moves by interest_pull v if she bought, by
       -refusal_push v if not, and by drift_scale e in any case (e is a random vector of mean
       square length 1), and is normalised. Where the gain, or all of the movements, are 0,
       satiation or interest stands still.
    4. **Leaving** (only with churn): the hazard of this step is
       sigmoid(churn_base - churn_trust g + r / tolerance), with the new g and r. She leaves
       when the sum of hazards exceeds her patience, a draw from Exp(1): on each step with
       probability 1 - exp(-hazard).

    Appeal, quality, embeddings and interest are the simulator's secret. An agent may know
    `env.unwrapped.shop.catalogue.features_IF` (I, F): one-hot category and brand, log price
    and keywords. That tempting but poor items cost the trust on which later sales depend is
    what planning can win here; RecSim's long-term satisfaction is a relative
    (Ie et al. 2019, https://arxiv.org/abs/1909.04847).

    ## Action Space

    `Discrete(I)`: the item to recommend. Items may be recommended again.

    With `stock_out` that share of the items is out of stock, others in each session and the
    same all through it; at least one is there. Which ones follows from the session's luck,
    never from what is recommended. `action_masks()` tells what is there (I,). To recommend
    what is not there is a refusal: nobody buys it, whatever else she would have done.

    ## Observation Space

    A flat float32 `Box`, with the bounds below and a thousandth more for rounding.
    `env.unwrapped.shop.observer.unflatten(observation)` gives the parts by name.

    With `observation="latent"`, the shopper's state, D + K + 6 numbers (her patience is
    hidden, but has no memory; her tolerance shows only in her refusals).
    B(x) = 1 + x + ... + x^(T-1), and p is the relative spread of price sensitivities:

    | index | name | meaning | min | max |
    | --- | --- | --- | --- | --- |
    | 0 .. D-1 | `interest` | u sqrt(D) | -sqrt(D) | sqrt(D) |
    | D .. D+K-1 | `satiation` | s / satiation_gain, or s where that is 0 | 0 | B(satiation_decay) |
    | D+K | `satisfaction` | trust_slope m | -max | trust_slope B(trust_memory) |
    | D+K+1 | `trust` | g | -1 | 1 |
    | D+K+2 | `refusals` | r / tolerance | 0 | T / the least tolerance |
    | D+K+3 | `base_rate` | a / its spread among shoppers | -3 | 3 |
    | D+K+4 | `price_sensitivity` | c / its mean among shoppers | 1 - 3 p, or 0 | 1 + 3 p |
    | D+K+5 | `remaining` | recommendations to come / T | 0 | 1 |

    With `observation="behaviour"`, only what she did, 7 + H (F + 6) numbers for the
    H = `history` last interactions; events in the order of `recenv.Event`:

    | index | name | meaning | min | max |
    | --- | --- | --- | --- | --- |
    | 0 | `remaining` | recommendations to come / T | 0 | 1 |
    | 1 .. 6 | `counts` | number of each event so far / T | 0 | 1 |
    | 7 .. 6+H*(F+6) | `interactions` | H times an item and its event | least or 0 | most or 1 |

    Interactions stand newest first, each as the item's features (F, bounded by their extremes
    in the catalogue) and a one-hot event (6), zeros where there is none yet; `unflatten`
    gives them as `items` (H, F) and `events` (H, 6).

    With `organic_views` or `organic_searches` they also tell what she does by herself before
    each recommendation: she looks at items, in proportion to exp(U) among 100 (or all), and
    types queries of one to three words, in proportion to exp(3 <u, word>). Each such item and
    each such word is an interaction of its own, a SEARCH of that item's features or of that word
    alone, and `counts` end at 1. Nothing else depends on it: her answers, and the luck of others,
    are the same with and without.

    ## Rewards

    +1 for a purchase, -1 for anything else. On the step on which a shopper leaves, the reward
    also carries -1 for each recommendation that she will not see, so that leaving never
    pays: the return of a session is always purchases - (T - purchases).

    ## Starting State

    The next shopper walks in: u is drawn from the world's mixture of interests and
    normalised, a, c and log tolerance are drawn from normals cut off at 3 standard
    deviations, and s, m and r are 0. With `num_shoppers` she is one of so many regulars who
    come again and again. The whole luck of a session (choices, drift, patience) is drawn
    with it from `np_random`, so that it does not depend on what is recommended: two agents
    evaluated with one seed meet the same shoppers with the same luck. `reset()` without a
    seed meets the next one; it takes no `options`.

    ## Episode End

    Both ends are part of the task and `terminated`: T recommendations, or (with churn)
    leaving. `truncated` is False, unless a wrapper such as Gymnasium's `TimeLimit` cuts the
    session.

    ## Information

    - `shopper_id` (also from `reset`): who is in the shop.
    - `event`: what she did, a code of `recenv.Event`: IGNORE 0, NOT_INTERESTED 1, VIEW 2,
      CART 3, PURCHASE 4 (SEARCH 5 is never a reply: what she does by herself).
    - `reward_terms`: `purchase` (+1 or -1) and `leaving` (the charge, <= 0); they add up to
      the reward.
    - with `stock_out` also `action_mask` (from `reset` too): 1 for the items that are there, as
      `env.action_space.sample(mask)` takes it. The vectorized environment only has
      `action_masks()` (N, I): a mask on every step would cost more than the step.
    - with `reveal=True` also `purchase_probability` of the item, and `regret`: twice the gap
      to the best item's probability, in expected reward of this step. Both cost a look at
      all items.

    ## Arguments

    ```python
    >>> import gymnasium as gym, recenv
    >>> env = gym.make("Recsys-v0", scenario="churn", num_items=1000, render_mode="ansi")

    ```

    | keyword | default | meaning |
    | --- | --- | --- |
    | `render_mode` | `None` | `"ansi"` (words) or `"rgb_array"` (a picture, by matplotlib) |
    | `world` | `"synthetic"` | or `"complete_journey"`, or the path of a world file |
    | `world_seed` | `0` | which generated shop, and which regulars |
    | `scenario` | `None` | a preset below; None: the world's own, generated `"full"` |
    | `num_items` | `None` | I; None: 100, or all of a loaded world, which keeps the most bought |
    | `num_categories` | `None` | K, at most I; None: min(10, I) (*) |
    | `interest_dim` | `None` | D; None: 8 (*) |
    | `feature_signal` | `None` | how much features tell of an item, 0 to 1; None: 0.7 (*) |
    | `temptation` | `None` | correlation of appeal with poor quality, -1 to 1; None: 0.8 (*) |
    | `price_sensitivity` | `None` | mean of c; None: the world's, generated 0.5 |
    | `difficulty` | `None` | utility taken off every item; None: the world's (**) |
    | `horizon` | `50` | T |
    | `num_shoppers` | `None` | size of the clientele; None: everybody is new |
    | `stock_out` | `0.0` | share of the items that are out of stock in a session, at most 0.99 |
    | `observation` | `"latent"` | or `"behaviour"` |
    | `history` | `20` | H, interactions remembered in `"behaviour"` |
    | `organic_views` | `0.0` | items that she looks at by herself before each, on average (***) |
    | `organic_searches` | `0.0` | queries that she types before each, on average (***) |
    | `reveal` | `False` | show purchase probability and regret in `info` |
    | `autoreset_mode` | `"SameStep"` | of the vectorized environment, see below |
    | `interest_weight` | `4.0` | utility of a perfect match; a loaded world has its own |
    | `trust_weight` | `0.0` | utility gained at full trust, lost at full distrust |
    | `trust_slope` | `0.5` | how fast trust follows satisfaction |
    | `trust_memory` | `0.95` | share of satisfaction that survives a step, 0 to 1 |
    | `satiation_gain` | `0.0` | utility that a bought category loses at once |
    | `satiation_decay` | `0.9` | share of satiation that survives a step, 0 to 1 |
    | `cart_offset` | `1.0` | how much easier a cart is than a purchase |
    | `view_offset` | `2.0` | how much easier a view is; at least cart_offset |
    | `dismiss_offset` | `4.0` | how far short "not interested" is; at least view_offset |
    | `interest_pull` | `0.0` | movement of interest toward a bought item, at most 0.99 |
    | `refusal_push` | `0.0` | movement of interest away from a refused item, at most 0.99 |
    | `drift_scale` | `0.0` | length of a step of the interest's wandering |
    | `churn` | `False` | whether shoppers leave before the horizon |
    | `churn_base` | `-5.0` | log odds of the hazard at neutral trust and no refusals |
    | `churn_trust` | `3.0` | log odds taken off by full trust |

    (*) of generated worlds only: a loaded world has these built in and refuses them.
    (**) a generated world sets it so that a random item converts at 18%.
    (***) shown in `"behaviour"` alone, and on numpy alone.

    From `interest_weight` on they are the parameters of a step. None always means the default.
    Precedence: keyword, then scenario, then world and the defaults above. A scenario sets
    only what changes about a shopper:

    | scenario | sets | isolates |
    | --- | --- | --- |
    | `static` | nothing | exploration and generalisation |
    | `drift` | `interest_pull=0.02, drift_scale=0.08` | tracking |
    | `satiation` | `satiation_gain=1.0` | variety |
    | `trust` | `trust_weight=2.0` | planning: poor items cost trust |
    | `churn` | `churn=True` | retention |
    | `full` | `interest_pull=0.03, drift_scale=0.03, satiation_gain=1.0, trust_weight=1.25` | all |

    ## Vectorized environment

    ```python
    >>> envs = gym.make_vec("Recsys-v0", num_envs=1024)
    >>> envs
    RecsysVectorEnv(Recsys-v0, num_envs=1024)

    ```

    The same step for N shoppers at once, without `render_mode`; with one seed,
    `num_envs=1` meets the shoppers that this environment meets. `max_episode_steps` cuts
    sessions (`truncated`). `autoreset_mode` is one of Gymnasium's:

    - `"SameStep"`: the step that ends a session returns the next one's first observation;
      the old one ends in `info["final_obs"]` and `info["final_info"]`.
    - `"NextStep"`: the next step ignores its action and returns the first observation with
      reward 0.
    - `"Disabled"`: `reset(options={"reset_mask": mask_N})` opens the next session of the
      masked slots, and must before the next step.

    `reset(options={"first_session_steps": steps_N})` cuts the first session of each slot
    after so many steps, so that slots do not end in lockstep.

    ## Version History

    * v0: first version.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (an instance variable in gymnasium)
        "render_modes": list(RENDER_MODES),
        "render_fps": 2,
    }

    shop_class: ClassVar[type[Shop]] = Shop

    def __init__(self, *, render_mode: str | None = None, **keywords: Any):
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise unknown("render_mode", render_mode, RENDER_MODES)
        self.shop = self.shop_class(keywords)
        self.keywords = keywords
        self.render_mode = render_mode
        self.action_space = self.shop.action_space
        self.observation_space = self.shop.observation_space
        self._arrivals = self.shop.arrivals(1)
        self._session: Sessions | None = None
        self._state: State  # from the first reset on
        self._memory: Memory | None = None
        self._window = Window.of(self.shop)
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
        """Meet the next shopper. There are no ``options``.

        Raises:
            UsageError: ``options`` are given all the same.
        """
        check_options(options, ())
        super().reset(seed=seed)
        if seed is not None:
            self._arrivals.clear()
        session = self._arrivals.take(self.np_random, 1).rows(0)
        self._session, self._state = session, session.state
        self._time, self._over = 0, False
        self._memory = self.shop.blank_memory(())
        if self._window and (seed is not None or self._window.closed):
            self._window.open(self.np_random_seed)
        self._look()
        if self._diary:
            self._diary.open(
                int(session.shopper_id), session.state, session.traits, self._candidate()
            )
        info: dict[str, Any] = {"shopper_id": int(session.shopper_id)}
        if self.shop.masks:
            info["action_mask"] = self.action_masks().astype(np.int8)
        return self._observe(), info

    def step(
        self, action: int | np.integer[Any]
    ) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Do ``action``: recommend that item (at a gate: the candidate, or nothing).

        Raises:
            UsageError: there is no such action, or the session is over.
        """
        session, action = self._met(), self.checked(action, self.shop)
        if self._over:
            raise UsageError("the session is over: call reset() before the next step()")
        shop, tables, candidate = self.shop, self.shop.tables, self._candidate()
        item = shop.shown(xp, action, candidate)
        threshold, masked = session.threshold[self._time], shop.masks
        if masked and shop.out_of_stock(session.threshold, item):
            threshold = np.float32(np.inf)  # what is not there is refused, whatever the luck
        outcome = shop.advance(
            xp,
            tables,
            self._state,
            session.traits,
            action,
            candidate,
            threshold,
            session.drift_row[self._time],
        )
        purchase, leaving = float(outcome.purchase_reward), float(outcome.leaving_charge)
        info: dict[str, Any] = {
            "shopper_id": int(session.shopper_id),
            "event": int(outcome.event),
            "reward_terms": {"purchase": purchase, "leaving": leaving},
        }
        if shop.settings.reveal:
            now = self._state, session.traits, action, candidate
            revealed = shop.reveal(xp, tables, *now, self.action_masks() if masked else None)
            info |= {name: float(value) for name, value in revealed.items()}
        if masked:
            info["action_mask"] = self.action_masks().astype(np.int8)
        self._memory = shop.remember(xp, shop.lenses, self._memory, item, outcome.event)
        self._state = outcome.state
        self._time += 1
        self._over = bool(outcome.terminated)
        if not self._over:
            self._look()
        reward = purchase + leaving
        if self._diary:
            about, arrived = item if candidate is None else int(candidate), self._candidate()
            event = info["event"]
            self._diary.write(about, event, reward, outcome.state, self._over, arrived)
        return self._observe(), reward, self._over, False, info

    def action_masks(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which actions are open to her (actions,): not what is out of stock."""
        if not self.shop.masks:
            return np.ones(self.shop.num_actions, dtype=np.bool_)
        mask_I: np.ndarray[Any, np.dtype[np.bool_]] = self.shop.action_masks(
            self._met().threshold, self._candidate()
        )
        return mask_I

    def render(self) -> Any:
        """The session so far: text (``ansi``) or an (H, W, 3) picture (``rgb_array``)."""
        if self._diary is None:
            raise UsageError('nothing to render: pass render_mode="ansi" or "rgb_array"')
        self._met()
        return tell(self._diary) if self.render_mode == "ansi" else draw(self._diary)

    def _look(self) -> None:
        """What she does by herself, where that shows."""
        if self._window and self._memory:
            state = State(*(leaf[None] for leaf in self._state))
            traits = Traits(*(leaf[None] for leaf in self.traits))
            memory = Memory(*(leaf[None] for leaf in self._memory))  # views: it is written
            self._window.look(state, traits, memory, np.ones(1, dtype=np.bool_))

    def _observe(self) -> np.ndarray:
        shop, traits = self.shop, self._met().traits
        observation: np.ndarray = shop.observe(
            xp, shop.lenses, self._state, traits, self._memory, self._candidate()
        )
        return observation

    def _candidate(self) -> Array | None:
        """What has arrived at the gate; None where there is no gate."""
        candidate_T = self._met().candidate
        return None if candidate_T is None else candidate_T[min(self._time, len(candidate_T) - 1)]

    @property
    def luck_T(self) -> Array:
        """The thresholds of her choices; for wrappers of this package."""
        return self._met().threshold

    def _met(self) -> Sessions:
        if self._session is None:
            raise UsageError("nobody is in the shop yet: call reset() first")
        return self._session

    def checked(self, action: Any, shop: Shop) -> int:
        """An action of a shop as Python's own int.

        Raises:
            UsageError: it is none.
        """
        try:
            index = operator.index(action)
        except TypeError:
            index = None
        if index is None or action is True or action is False:
            raise UsageError(f"an action is {shop.action_words}, got {action!r}")
        if not 0 <= index < shop.num_actions:
            raise shop.misstep(f"action {index}")
        return index
