"""The planning oracle: it knows how shoppers respond and change, and looks ahead.

Approximate dynamic programming over afterstates. What a shopper is like after she has
bought or refused an item is known exactly; only the wandering of her interest is chance.
A network learns W, what is still to be earned after a step, by policy iteration: simulate
sessions under the present policy through the true dynamics, fit W to their lambda-returns,
in which the choice to buy and to leave is taken by its expectation, and act greedily:

    Q(shopper, item) = p (1 + U(bought)) + (1 - p) (-1 + U(refused))
    U(after) = stay W(after) - (1 - stay) remaining

(Powell 2011, "Approximate Dynamic Programming", on afterstates; Sutton & Barto 2018,
chapter 12, on lambda-returns.)
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch
from array_api_compat import torch as xp
from torch import nn
from tqdm import tqdm

from agents.base import MANY, POSITIVE, Agent, Callback, torch_generator, torch_seeded
from agents.files import fitting, read_tensors, write_tensors
from agents.references import IndexPolicy, MyopicOracle
from agents.rollout import play
from recenv import dynamics as physics
from recenv.dynamics import State, Tables, Traits
from recenv.errors import UsageError
from recenv.observation import Latent
from recenv.seeding import Role, derive_seed
from recenv.shop import Shop
from recenv.vector_env import RecsysVectorEnv

Tensor = torch.Tensor
Leaves = TypeVar("Leaves", State, Traits)
FORMAT = 3  # of a plan on disk
POLICIES = ("myopic", "index", "value")  # of equals the simplest serves
CAUTIONS = (0.0, 0.1, 0.2)
WEIGHTS = (0.0, 0.5, 1.0, 1.6)  # of the shortlists, times that of the index policy
ROWS = 2**13  # afterstates valued at a time: what fits a cache
BATCH = 1024  # afterstates in a gradient step


class Model:
    """The true model of a shop, on tensors: who comes, how she chooses, what it does to her."""

    def __init__(self, shop: Shop, device: torch.device):
        self.shop, self.device = shop, device
        self.dynamics = shop.dynamics
        self.tables = Tables(*(torch.as_tensor(table, device=device) for table in shop.tables))
        # the same without the wandering, for what is known of a step beforehand
        still = torch.zeros_like(self.tables.drift[:1])
        self.still = self.tables._replace(drift=still)
        self.items = shop.items(xp, self.tables)
        population = shop.world.population
        self.latent = Latent(population, self.dynamics, shop.catalogue.num_categories, shop.horizon)
        self.tolerance = (population.tolerance, max(population.tolerance_spread, 1e-6))

    @property
    def plannable(self) -> bool:
        """Whether what is recommended now changes what can be earned later."""
        d = self.dynamics
        felt = d.trust_weight or d.satiation_gain or d.interest_pull or d.refusal_push or d.churn
        return bool(felt) and self.shop.horizon > 1

    @cached_property
    def felt(self) -> Tensor:
        """The columns of the features that bear on what she will buy.

        All others would tell items apart that are alike.
        """
        d, layout = self.dynamics, self.latent.layout()
        told = {"satiation": d.satiation_gain, "refusals": d.churn}
        told |= dict.fromkeys(("satisfaction", "trust"), d.trust_weight or d.churn)
        columns = [np.arange(p.start, p.stop) for name, p in layout.items() if told.get(name, True)]
        if d.churn:
            columns.append(np.array([self.latent.size]))  # tolerance
        return torch.as_tensor(np.concatenate(columns), device=self.device)

    def features(self, state: State, traits: Traits) -> Tensor:
        """What the value network sees of shoppers, (N, S): the latent state, and tolerance."""
        median, spread = self.tolerance
        tolerance_N1 = (torch.log(traits.tolerance / median) / spread)[:, None]
        all_ND = torch.cat([self.latent.observe(xp, state, traits), tolerance_N1], dim=1)
        return all_ND[:, self.felt]

    def tensors(self, state: State, traits: Traits) -> tuple[State, Traits]:
        """Shoppers of an environment, on this device."""
        return State(*map(self._tensor, state)), Traits(*map(self._tensor, traits))

    def _tensor(self, array: Any) -> Tensor:
        return torch.as_tensor(array, device=self.device)

    def utilities(self, state: State, traits: Traits) -> Tensor:
        """Of every item, (N, I)."""
        utility_NI: Tensor = physics.utilities(xp, self.dynamics, state, traits, self.items)
        return utility_NI

    def after(self, state: State, traits: Traits, item_N: Tensor, bought_N: Tensor) -> State:
        """Her state after buying (or refusing) an item, before her interest wanders.

        Patience becomes minus the hazard of leaving on this step.
        """
        return self._step(self.still, state, traits, item_N, bought_N, torch.zeros_like(item_N))

    def wander(
        self,
        state: State,
        traits: Traits,
        item_N: Tensor,
        bought_N: Tensor,
        generator: torch.Generator,
    ) -> State:
        """Her state after the step, her interest having wandered by chance."""
        if not self.dynamics.drift_scale:
            return self.after(state, traits, item_N, bought_N)
        rows = len(self.tables.drift)
        row_N = torch.randint(rows, item_N.shape, generator=generator, device=self.device)
        return self._step(self.tables, state, traits, item_N, bought_N, row_N)

    def _step(
        self,
        tables: Tables,
        state: State,
        traits: Traits,
        item_N: Tensor,
        bought_N: Tensor,
        row_N: Tensor,
    ) -> State:
        """The one step of all shops, its choice settled by an infinite threshold."""
        never = torch.full_like(state.satisfaction, torch.inf)
        threshold_N = torch.where(bought_N, -never, never)
        state = state._replace(patience=torch.zeros_like(never))
        outcome = physics.step(xp, self.dynamics, tables, state, traits, item_N, threshold_N, row_N)
        return outcome.state

    def shortlist(self, utility_NI: Tensor, weight: float, count: int) -> Tensor:
        """The best items by utility + w * quality, ``count`` for each of four w: (N, C)."""
        items = self.shop.num_items
        if items <= len(WEIGHTS) * count:
            return torch.arange(items, device=self.device).expand(len(utility_NI), -1)
        if not weight:
            return torch.topk(utility_NI, len(WEIGHTS) * count, dim=1).indices
        parts = [
            torch.topk(utility_NI + times * weight * self.items.quality, count, dim=1).indices
            for times in WEIGHTS
        ]
        return torch.cat(parts, dim=1)

    def look_ahead(
        self, network: nn.Module, state: State, traits: Traits, weight: float, count: int
    ) -> tuple[Tensor, Tensor]:
        """The items (N, C) of the shortlists, some of them twice, and their Q (N, C)."""
        size = max(ROWS // (len(WEIGHTS) * count), 1)
        item, value = [], []
        for first in range(0, max(len(traits.base_rate), 1), size):
            part = slice(first, first + size)
            one, own = _rows(state, part), _rows(traits, part)
            utility_NI = self.utilities(one, own)
            item_NC = self.shortlist(utility_NI, weight, count)
            probability_NC = physics.sigmoid(xp, utility_NI.gather(1, item_NC))
            bought_NC = self._worth(network, one, own, item_NC, bought=True)
            refused_NC = self._worth(network, one, own, item_NC, bought=False)
            item.append(item_NC)
            value.append(
                probability_NC * (1.0 + bought_NC) + (1.0 - probability_NC) * (refused_NC - 1.0)
            )
        return torch.cat(item), torch.cat(value)

    def _worth(
        self, network: nn.Module, state: State, traits: Traits, item_NC: Tensor, *, bought: bool
    ) -> Tensor:
        """U (N, C) of the shoppers after they bought, or refused, each item."""
        if not bought and not self.dynamics.refusal_push:
            item_NC = item_NC[:, :1]  # what she refused makes no difference: (N, 1)
        count = item_NC.shape[1]
        state, traits = _repeat(state, count), _repeat(traits, count)
        item_M = item_NC.reshape(-1)
        after = self.after(state, traits, item_M, torch.full_like(item_M > 0, bought))
        stay_M = torch.exp(after.patience)
        worth_M: Tensor = network(self.features(after, traits))[:, 0]
        worth_M = (stay_M * (1.0 + worth_M) - 1.0) * after.remaining
        return worth_M.reshape(item_NC.shape)


@dataclass(frozen=True)
class Plan:
    """What planning came to.

    Attributes:
        policy: "value", "index" or "myopic".
        weight: of the index policy.
        caution: by how much Q of an item must pass that of the index policy's, to be preferred;
            small differences are errors of the network as often as not.
        shop: the ``signature`` of the shop that it is for.
        earned: mean return of each policy on the tuning shoppers, where they competed.
    """

    policy: str
    weight: float
    caution: float
    shop: str
    earned: dict[str, float]


class Moment(NamedTuple):
    """One step of ``n`` simulated sessions, as the lambda-returns need it."""

    feature_NS: Tensor  # of the afterstate
    value_N: Tensor  # of the best recommendation before the step
    reward_N: Tensor  # expected, of the item that was recommended
    worth_N: Tensor  # W of the afterstate
    stay_N: Tensor  # probability that she does not leave on this step
    on_policy_N: Tensor  # whether the best item was recommended


class Planner:
    """Learns W of a shop by policy iteration, from the index policy on.

    Args:
        model: of the shop.
        weight: of the index policy that it starts from.
        settings: those of ``PlanningOracle``.
    """

    def __init__(self, model: Model, weight: float, settings: PlanningOracle):
        self.model, self.weight, self.settings = model, weight, settings
        shop = model.shop
        self.horizon = shop.horizon
        self.arrivals = shop.arrivals(settings.shoppers)
        self.rng = np.random.default_rng(settings.rng.integers(2**63))
        self.generator = torch_generator(settings.seed, model.device)
        self.network = value_network(model, settings.hidden, settings.seed)
        self._optimiser = torch.optim.Adam(self.network.parameters(), lr=settings.learning_rate)
        self._memory: deque[tuple[Tensor, Tensor]] = deque(maxlen=settings.memory)

    def learn(self) -> None:
        """Simulate and fit, round by round, with ever smaller steps."""
        rounds = self.settings.rounds
        for done in tqdm(range(rounds), "planning oracle", disable=None, leave=False):
            for group in self._optimiser.param_groups:
                group["lr"] = self.settings.learning_rate * (1.0 - 0.95 * done / rounds)
            moments = self._simulate(planned=done > 0)
            self._fit(moments, self._returns(moments, planned=done > 0))

    @torch.no_grad()
    def _simulate(self, planned: bool) -> list[Moment]:
        """Sessions of newcomers under the present policy (at first the index policy)."""
        session = self.arrivals.take(self.rng, self.settings.shoppers)
        state, traits = self.model.tensors(session.state, session.traits)
        moments = []
        for _ in range(self.horizon):
            item_N, value_N, on_policy_N = self._recommend(state, traits, planned)
            probability_N = self._probability(state, traits, item_N)
            bought_N = self._uniform(len(item_N)) < probability_N
            after = self.model.after(state, traits, item_N, bought_N)
            feature_NS = self.model.features(after, traits)
            moments.append(
                Moment(
                    feature_NS,
                    value_N,
                    2.0 * probability_N - 1.0,
                    self.network(feature_NS)[:, 0] * after.remaining,
                    torch.exp(after.patience),
                    on_policy_N,
                )
            )
            state = self.model.wander(state, traits, item_N, bought_N, self.generator)
        return moments

    def _recommend(
        self, state: State, traits: Traits, planned: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Items (N,), the value (N,) of the best, and whether the item is the best (N,)."""
        if not planned:
            utility_NI = self.model.utilities(state, traits)
            item_N = torch.argmax(utility_NI + self.weight * self.model.items.quality, dim=1)
            return item_N, torch.zeros_like(traits.base_rate), torch.ones_like(item_N) > 0
        item_NC, value_NC = self.model.look_ahead(
            self.network, state, traits, self.weight, self.settings.shortlist
        )
        best_N, place_N = value_NC.max(dim=1)
        n = len(item_NC)
        # half of what is explored could be best, the other half anything
        other_N = (self._uniform(n) * item_NC.shape[1]).long()
        likely_N = _pick(item_NC, other_N)
        any_N = (self._uniform(n) * self.model.shop.num_items).long()
        explored_N = torch.where(self._uniform(n) < 0.5, likely_N, any_N)
        explores_N = self._uniform(n) < self.settings.exploration
        return torch.where(explores_N, explored_N, _pick(item_NC, place_N)), best_N, ~explores_N

    def _returns(self, moments: list[Moment], planned: bool) -> list[Tensor]:
        """What W of each step's afterstate should be (N,), from the last step to the first.

        The value of the next step's best item is an expectation; lambda of what the
        session then showed to be wrong with W is added, as long as it kept to the policy.
        """
        target_N = torch.zeros_like(moments[-1].worth_N)
        targets = [target_N]
        for left, following in enumerate(reversed(moments[1:])):
            stay_N = following.stay_N
            if planned:
                surprise_N = stay_N * (target_N - following.worth_N)
                trace_N = self.settings.trace * following.on_policy_N
                target_N = following.value_N + trace_N * surprise_N
            else:  # nothing is known yet but what was earned
                target_N = following.reward_N + stay_N * target_N - (1.0 - stay_N) * left
            targets.append(target_N)
        return targets[::-1]

    def _fit(self, moments: list[Moment], targets: list[Tensor]) -> None:
        """Regression of W per remaining step; a step weighs as much as there is to come.

        On the sessions of the latest rounds: targets of a policy that was a little worse
        do less harm than the noise of few sessions.
        """
        left = torch.arange(self.horizon - 1, 0, -1.0, device=self.model.device)
        left_M = left.repeat_interleave(self.settings.shoppers)
        feature_MS = torch.cat([moment.feature_NS for moment in moments[:-1]])
        self._memory.append((feature_MS, torch.cat(targets[:-1]) / left_M))
        feature_MS, target_M = (torch.cat(parts) for parts in zip(*self._memory, strict=True))
        weight_M = left_M.repeat(len(self._memory)) / self.horizon
        for _ in range(self.settings.epochs):
            order_M = torch.randperm(
                len(target_M), generator=self.generator, device=self.model.device
            )
            for row in order_M.split(BATCH):
                error = self.network(feature_MS[row])[:, 0] - target_M[row]
                loss = (weight_M[row] * error**2).mean()
                self._optimiser.zero_grad()
                loss.backward()
                self._optimiser.step()

    def _probability(self, state: State, traits: Traits, item_N: Tensor) -> Tensor:
        """Of a purchase (N,)."""
        utility_NI = self.model.utilities(state, traits)
        return torch.sigmoid(_pick(utility_NI, item_N))

    def _uniform(self, count: int) -> Tensor:
        return torch.rand(count, generator=self.generator, device=self.model.device)


class PlanningOracle(MyopicOracle):
    """Knows the true model and plans: the high reference of the normalised score.

    ``learn`` plans, on shoppers that are not judged: it tunes the index policy, learns W from
    there, and keeps whichever of "value" (greedy on Q), "index" and "myopic" earns most on
    yet other shoppers. Where nothing that is recommended changes what can be earned later,
    that is the myopic oracle without further ado.

    Args:
        policy: "best", or the one of "value", "index" and "myopic" to use in any case.
        rounds: of policy iteration.
        shoppers: simulated in each round.
        epochs: of the fit in each round.
        memory: rounds whose sessions are fitted.
        shortlist: items that it looks ahead with for each of four weights of their quality.
        hidden: units in each of two layers.
        exploration: share of the simulated recommendations that are random.
        trace: lambda.
        tuning_shoppers: on whom weights and policies are compared.

    Attributes:
        plan: what ``learn`` found, or None.
        plans: a directory in which plans are kept; without one every ``learn`` plans anew.
    """

    name: ClassVar[str] = "planning_oracle"
    ranks: ClassVar[bool] = False
    gate: ClassVar[bool] = False  # it plans among items
    bounds = Agent.bounds | {
        "rounds": (1, MANY),
        "shoppers": (2, MANY),
        "epochs": (1, MANY),
        "memory": (1, MANY),
        "shortlist": (1, MANY),
        "hidden": (1, 65_536),
        "learning_rate": (POSITIVE, 10.0),
        "exploration": (0.0, 1.0),
        "trace": (0.0, 1.0),
        "tuning_shoppers": (2, MANY),
    }

    def __init__(
        self,
        *,
        policy: str = "best",
        rounds: int = 20,
        shoppers: int = 1024,
        epochs: int = 2,
        memory: int = 4,
        shortlist: int = 6,
        hidden: int = 96,
        learning_rate: float = 3e-3,
        exploration: float = 0.05,
        trace: float = 0.9,
        tuning_shoppers: int = 2000,
        **settings: Any,
    ):
        super().__init__(**settings)
        if policy not in ("best", *POLICIES):
            raise UsageError(f"agent.policy must be best, value, index or myopic, got {policy!r}")
        self.policy = policy
        self.rounds, self.shoppers = rounds, shoppers
        self.epochs, self.memory = epochs, memory
        self.shortlist, self.hidden, self.learning_rate = shortlist, hidden, learning_rate
        self.exploration, self.trace = exploration, trace
        self.tuning_shoppers = tuning_shoppers
        self.check(**{name: getattr(self, name) for name in SETTINGS if name != "policy"})
        self.plan: Plan | None = None
        self.plans: Path | None = None
        self._network: nn.Sequential | None = None
        self._model: Model | None = None

    def bind(self, vector_env: RecsysVectorEnv) -> None:
        if self.plan is not None and self.plan.shop != signature(vector_env.shop):
            raise UsageError(
                f"agent {self.name} planned for a shop of other items or other dynamics: "
                "train it again, for this shop"
            )
        super().bind(vector_env)

    @property
    def model(self) -> Model:
        """Of the shop that it acts in."""
        if self._model is None or self._model.shop is not self.env.shop:
            self._model = Model(self.env.shop, self._torch)
        return self._model

    def learn(self, total_timesteps: int, callback: Callback | None = None) -> Agent:
        if self.plan is None and not self._recall():
            self._plan()
            if self.plans is not None:
                self.save(self.plans / self._plan_name())
        return super().learn(total_timesteps, callback)

    def _plan_name(self) -> str:
        """The name of a plan's directory: the shop and the settings that it was made with."""
        made = {"format": FORMAT, "shop": signature(self.env.shop), **self.settings()}
        return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]

    def _recall(self) -> bool:
        """Take over a plan that was kept; False if there is none that is whole."""
        if self.plans is None:
            return False
        try:
            self._load(self.plans / self._plan_name())
        except Exception:  # what cannot be read is made again
            self.plan = None
        return self.plan is not None

    def _plan(self) -> None:
        """Prepare the policies that are asked for, and keep the best."""
        asked = POLICIES if self.policy == "best" else (self.policy,)
        if not self.model.plannable:
            asked = ("myopic",)
        shop, weight = signature(self.env.shop), 0.0
        if asked != ("myopic",):
            index = IndexPolicy(tuning_shoppers=self.tuning_shoppers)
            index.bind(self.env)
            index.learn(0)
            weight = index.weight or 0.0
        if "value" in asked:
            planner = Planner(self.model, weight, self)
            planner.learn()
            self._network = planner.network
        candidates = [
            Plan(policy, weight, caution, shop, {})
            for policy in asked
            for caution in (CAUTIONS if policy == "value" else (0.0,))
        ]
        earned = [self._earn(plan) for plan in candidates] if len(candidates) > 1 else [0.0]
        best = candidates[int(np.argmax(earned))]  # of equals the first
        told: dict[str, float] = {}
        for plan, value in zip(candidates, earned, strict=True):
            told[plan.policy] = max(value, told.get(plan.policy, -np.inf))
        self.plan = replace(best, earned=told)

    def _earn(self, plan: Plan) -> float:
        """The mean return of a plan on the tuning shoppers."""
        self.plan = plan
        env = self.env.sibling(self.tuning_shoppers)
        return float(play(self, env, derive_seed(Role.TUNING, 1)).return_E.mean())

    def score(self, observation: np.ndarray) -> np.ndarray:
        """Utility, index or Q (N, I); of items off the shortlist Q is not known, but less."""
        utility_NI, plan = super().score(observation), self.plan
        if plan is None:
            raise UsageError(f"agent {self.name} has no plan yet: call learn()")
        if plan.policy == "myopic":
            return utility_NI
        index_NI: np.ndarray = utility_NI + plan.weight * self.catalogue.quality_I
        if plan.policy == "index":
            return index_NI
        assert self._network is not None
        state, traits = self.model.tensors(self.env.state, self.env.traits)
        with torch.no_grad():
            item_NC, value_NC = self.model.look_ahead(
                self._network, state, traits, plan.weight, self.shortlist
            )
        value = value_NC.cpu().numpy()
        score_NI: np.ndarray = index_NI - index_NI.max(axis=1, keepdims=True)
        score_NI += value.min(axis=1, keepdims=True) - 1.0
        np.put_along_axis(score_NI, item_NC.cpu().numpy(), value, axis=1)
        score_NI[np.arange(len(score_NI)), index_NI.argmax(axis=1)] += plan.caution
        return score_NI

    def settings(self) -> dict[str, Any]:
        return super().settings() | {name: getattr(self, name) for name in SETTINGS}

    def _save(self, directory: Path) -> None:
        if self.plan is None:
            raise UsageError(f"agent {self.name} has no plan yet: call learn()")
        if self._network is not None and self.plan.policy == "value":
            write_tensors(directory / "value.safetensors", self._network.state_dict())
        # last: a directory with a plan in it is whole
        (directory / "plan.json").write_text(json.dumps(asdict(self.plan), indent=2) + "\n")

    def _load(self, directory: Path) -> None:
        plan = Plan(**json.loads((directory / "plan.json").read_text()))
        if plan.policy not in POLICIES or plan.shop != signature(self.env.shop):
            raise UsageError("its plan is not for this shop: train it again")
        if plan.policy == "value":
            network = value_network(self.model, self.hidden, self.seed)
            state = read_tensors(directory / "value.safetensors", self._torch)
            network.load_state_dict(fitting(state, network.state_dict()))
            self._network = network
        self.plan = plan


def value_network(model: Model, hidden: int, seed: int) -> nn.Sequential:
    """W per remaining step, from the features of an afterstate."""
    with torch_seeded(seed):
        network = nn.Sequential(
            nn.Linear(len(model.felt), hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 1),
        )
    return network.to(model.device)


def signature(shop: Shop) -> str:
    """A short name for all that a plan depends on."""
    digest = hashlib.sha256(json.dumps(asdict(shop.dynamics), sort_keys=True).encode())
    people = [v for v in vars(shop.world.population).values() if isinstance(v, float)]
    digest.update(f"{FORMAT} {shop.horizon} {people}".encode())
    for table in (shop.tables.embedding, shop.tables.facts):
        digest.update(np.ascontiguousarray(table).tobytes())
    return digest.hexdigest()[:16]


def _pick(item_NC: Tensor, place_N: Tensor) -> Tensor:
    return item_NC.gather(1, place_N[:, None])[:, 0]


def _rows(leaves: Leaves, part: slice) -> Leaves:
    return type(leaves)(*(leaf[part] for leaf in leaves))


def _repeat(leaves: Leaves, times: int) -> Leaves:
    """Every row of a state or of traits, ``times`` times in a row."""
    return type(leaves)(*(leaf.repeat_interleave(times, dim=0) for leaf in leaves))


SETTINGS = (
    "policy",
    "rounds",
    "shoppers",
    "epochs",
    "memory",
    "shortlist",
    "hidden",
    "learning_rate",
    "exploration",
    "trace",
    "tuning_shoppers",
)
