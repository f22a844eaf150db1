"""The stages of a round. Each reads files that earlier ones wrote, and writes its own at once.

    round=01/log/        what was served, as experiments.collect writes logs
    round=01/state.npz   the shop, the journal and the agent after serving; gone when the next
                         round is over
    round=01/clean/      the log as experiments.preprocess writes it
    round=01/interest/   the interest model of all logs so far, where there is one
    round=01/agent/      what was learned from all logs so far, where an agent learns from logs
    round=01/row.json    the round's figures; its presence says that the round is over

Nothing else is carried from stage to stage, so that a loop that was killed anywhere goes on by
doing the stage again from the same files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from agents import checkpoint
from agents.base import Agent, OnlineAgent, stagger
from agents.interest.model import InterestModel, Training, fit, make_model
from agents.interest.perception import BAYES, Perception
from agents.interest.reading import behaviour_of
from agents.references import Random
from agents.sb3_bridge import SB3Agent
from agents.scorer import Scorer
from experiments import results
from experiments.build import agent_class, make_agent
from experiments.evaluate import Judge
from experiments.feedback import measures
from experiments.feedback.shop import Journal, WatchedShop, check_time
from experiments.fitting.data import recommendations, rows_of
from experiments.logs.collect import writing_log
from experiments.logs.features import histories, seen_histories
from experiments.logs.preprocess import REPORT, Asked, preprocess, read_clean
from experiments.logs.schema import LOG_FILE, read_log
from recenv.errors import UsageError
from recenv.observation import Behaviour
from recenv.organic import Habits
from recenv.seeding import Role, generator

LOG, STATE, CLEAN, INTEREST, AGENT, ROW = (
    "log",
    "state.npz",
    "clean",
    "interest",
    "agent",
    "row.json",
)
ROUNDS, PICTURE = "rounds.csv", "loop.png"
Tell = Callable[[int, str], None]  # of a stage that begins, by round and name


@dataclass(frozen=True)
class Plan:
    """What a loop is to do.

    Attributes:
        rounds: how many.
        steps_per_round: recommendations in each, rounded up to what the agent learns at once.
        explore: share of random items in what agents serve that learn from logs.
        habits: what shoppers do by themselves; None: nothing.
        truth: also write what only a simulator knows.
        epochs, patience: of every fit to logs.
    """

    rounds: int = 10
    steps_per_round: int = 20_000
    explore: float = 0.1
    habits: Habits | None = field(default_factory=Habits)
    truth: bool = True
    epochs: int = 30
    patience: int = 3


class Loop:
    """A loop in a directory.

    Agents of three kinds serve in it:

    - those that can be fitted to a log (the scorer and the classical recommenders) are fitted
      anew after each round, to all clean logs so far, and serve the next round with a share
      ``explore`` of random items; the first round is random.
    - those that learn by acting (PPO, DQN, bandits) learn while they serve, exactly from what
      is served and logged, and explore in their own way.
    - those that do not learn serve every round as they are.

    Where PPO or DQN have an encoder, an interest model is trained on on all clean logs after each
    round, and stands before the policy in the next; the first round is random.

    Args:
        path: where it is kept.
        config: agent, env, seed and device as for ``experiments.run``.
        plan: what to do.
        judge: who judges the agent after each round.

    Raises:
        UsageError: such an agent cannot be in a loop.
    """

    def __init__(self, path: Path, config: dict[str, Any], plan: Plan, judge: Judge):
        self.path, self.config, self.plan, self.judge = path, config, plan, judge
        self.seed = int(config["seed"])
        self._check_settings()
        agent, _ = self._new()
        self.name, self.label = agent.name, str(config["agent"].get("name", agent.name))
        self.from_logs = isinstance(agent, Scorer) or hasattr(agent, "affinity")
        self.acts = agent.learns and not self.from_logs
        self._check(agent)
        self.steps = -(-plan.steps_per_round // agent.stride) * agent.stride
        check_time(plan.rounds * self.steps, agent.num_envs)

    @property
    def reads(self) -> bool:
        """Whether an interest model stands before the policy."""
        return self.config["agent"].get("encoder") is not None and issubclass(
            agent_class(self.config["agent"]), SB3Agent
        )

    @property
    def random_first(self) -> bool:
        """Whether the first round is served at random, because nothing is known before it."""
        return self.from_logs or self.reads

    def _check_settings(self) -> None:
        agent = self.config["agent"]
        for name in ("pretrain_steps", "interest", "warm_start"):
            if agent.get(name):
                raise UsageError(
                    f"a loop learns from what it served and logged itself: leave out agent.{name}"
                )
        if agent.get("backend", "sb3") != "sb3":
            raise UsageError("a loop serves shoppers on numpy: leave out agent.backend")
        if agent.get("encoder") == BAYES:
            raise UsageError("a loop trains encoders on its logs: encoder=bayes learns nothing")
        if self.reads and not agent.get("freeze_encoder", True):
            raise UsageError(
                "a loop trains the interest model on its logs: leave out agent.freeze_encoder"
            )

    def _check(self, agent: Agent) -> None:
        shop = agent.env.shop
        if shop.gate:
            raise UsageError(f"logs tell what was chosen among items: there are none of {shop.id}")
        if self.from_logs and not isinstance(shop.observer, Behaviour):
            raise UsageError(
                f"agent {agent.name} learns from logs, which hold no latent state: set "
                "env.observation=behaviour"
            )
        if self.reads:
            behaviour_of(shop)  # it refuses what is latent
        if self.acts and not isinstance(agent, (OnlineAgent, SB3Agent)):
            raise UsageError(
                f"agent {agent.name} learns from whole sessions that it plays by itself, not from "
                "what is served: choose another agent"
            )

    # --- the loop -------------------------------------------------------------------

    def run(self, tell: Tell) -> list[measures.Row]:
        """Do what is not done yet; the rows of all rounds."""
        for number in range(1, self.plan.rounds + 1):
            if not (self.place(number) / ROW).is_file():
                for name, made, do in self._stages(number):
                    if not made.exists():
                        tell(number, name)
                        do(number)
            rows = self.rows()
            results.write_text(self.path / ROUNDS, measures.as_csv(rows))
            (self.place(number - 1) / STATE).unlink(missing_ok=True)
        self._keep_agent()
        return rows

    def _stages(self, number: int) -> Iterator[tuple[str, Path, Callable[[int], None]]]:
        """Name, what is there when it is done, and what does it."""
        place = self.place(number)
        yield "serve", place / LOG / LOG_FILE, self.serve
        yield "clean", place / CLEAN / f"{REPORT}.json", self.clean
        if self.reads:
            yield "interest", place / INTEREST, self.interest
        if self.from_logs:
            yield "learn", place / AGENT, self.learn
        yield "judge", place / ROW, self.judged

    def place(self, number: int) -> Path:
        """The directory of a round."""
        return self.path / f"round={number:02d}"

    def rows(self) -> list[measures.Row]:
        """Of the rounds that are over."""
        rows = []
        for number in range(1, self.plan.rounds + 1):
            if not (self.place(number) / ROW).is_file():
                break
            rows.append(results.read_json(self.place(number) / ROW)["row"])
        return rows

    # --- agents ---------------------------------------------------------------------

    def _shop(self, env: dict[str, Any], num_envs: int) -> WatchedShop:
        keywords = {name: value for name, value in env.items() if name != "id"}
        return WatchedShop(num_envs, **keywords)

    def _new(self, interest: Path | None = None) -> tuple[Agent, WatchedShop]:
        """The agent before it learns anything, and the shop where it serves."""
        agent = self.config["agent"]
        if interest is not None:
            agent = agent | {"interest": str(interest)}
        # "SameStep": every step of every slot is a recommendation
        env = self.config["env"] | {"autoreset_mode": "SameStep", "reveal": False}
        built = make_agent(agent, env, self.seed, str(self.config["device"]), self._shop)
        if not isinstance(built.env, WatchedShop):  # a gate
            raise UsageError("logs tell what was chosen among items")
        self.judge.prepare(built)
        return built, built.env

    def _state(self, number: int, agent: Agent) -> dict[str, Any] | None:
        """What was kept of the shop and the agent after serving a round; None before the first."""
        path = self.place(number) / STATE
        if number < 1:
            return None
        try:
            return checkpoint.read(path, agent._torch)
        except checkpoint.DAMAGED as error:
            why = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            raise UsageError(
                f"{path} cannot be used ({why}): begin the loop again with if_exists=overwrite"
            ) from None

    def after(self, number: int) -> Agent:
        """The agent that serves after a round, as its files tell."""
        if self.from_logs:
            agent, env = self._new()
            return type(agent).load(self.place(number) / AGENT, env, str(self.config["device"]))
        newest = self.place(max(number - 1, 1)) / INTEREST if self.reads else None
        agent, _ = self._new(newest)
        if not self.acts:
            agent.learn(0)  # oracles plan and tune here
            return agent
        state = self._state(number, agent)
        if state is not None and state["agent"] is not None:
            agent.restore(state["agent"])
        return agent

    # --- stages ---------------------------------------------------------------------

    def serve(self, number: int) -> None:
        """Recommend, and log it; an agent that learns by acting learns here."""
        randomly = number == 1 and self.random_first
        agent = self._random() if randomly else self.after(number - 1)
        env = agent.env
        assert isinstance(env, WatchedShop)
        journal = env.journal = Journal(env, self.seed, self.plan.habits)
        state = self._state(number - 1, agent)
        if state is not None:
            journal.restore(state["journal"])
        about = {"loop": str(self.path), "round": number, "explore": self.plan.explore}
        place = self.place(number)
        with writing_log(
            place / LOG, agent, env, truth=self.plan.truth, about=about, if_exists="overwrite"
        ) as book:
            journal.book = book
            if self.acts and not randomly:
                self._act(agent, journal, number)
            else:
                self._show(agent, env, state, number, randomly)
            kept = {
                "journal": journal.checkpoint(),
                "agent": agent.checkpoint() if self.acts and not randomly else None,
                "env": None if self.acts else env.checkpoint(),
            }
            part = place / f".{STATE}.part"
            with results.replacing(place / STATE, part):
                checkpoint.write(part, kept)

    def _random(self) -> Agent:
        """Who serves when nothing is known, to as many shoppers at once."""
        agent, env = self._new()
        random = Random(seed=self.seed, num_envs=agent.num_envs)
        random.bind(env)
        return random

    def _act(self, agent: Agent, journal: Journal, number: int) -> None:
        """Let the agent learn from a round of its own recommendations."""
        rounds = self.plan.rounds - self.random_first
        end = (number - self.random_first) * self.steps
        if self.reads and number > 2:
            assert isinstance(agent, SB3Agent)
            agent.take_up(InterestModel.load(self.place(number - 1) / INTEREST, agent._torch))

        def keep(timesteps: int) -> None:
            if timesteps != journal.steps:
                raise UsageError(
                    f"agent {agent.name} learned from {timesteps} recommendations, of which "
                    f"{journal.steps} were logged: it cannot be in a loop"
                )
            if timesteps >= end:
                raise _RoundOver

        agent.keeper, journal.propensity = keep, agent.propensity
        # all of it, so that what anneals does so over all rounds
        with suppress(_RoundOver):
            agent.learn(rounds * self.steps)

    def _show(
        self,
        agent: Agent,
        env: WatchedShop,
        state: dict[str, Any] | None,
        number: int,
        randomly: bool,
    ) -> None:
        """Serve a round without learning."""
        assert env.journal is not None
        agent.rng = generator(Role.LOG, self.seed).spawn(number)[-1]
        if state is None:
            # those whom PPO and DQN meet afterwards are others
            seed = agent.training_seed ^ (1 if self.acts else 0)
            first_N = stagger(env, agent.rng)
            observation, _ = env.reset(seed=seed, options={"first_session_steps": first_N})
        else:
            env.restore(state["env"])
            observation = env.observe()
        explore = 0.0 if randomly else self.plan.explore
        for _ in range(self.steps // env.num_envs):
            item_N, propensity_N = agent.serve(observation, explore)
            env.journal.propensity = _always(propensity_N)
            observation = env.step(item_N)[0]

    def clean(self, number: int) -> None:
        """Preprocess the round's log."""
        place = self.place(number)
        for left in place.glob(f".{CLEAN}.*.part"):  # by a loop that was killed
            shutil.rmtree(left, ignore_errors=True)
        preprocess(place / LOG, place / CLEAN, Asked(split="none"), "overwrite")

    def events(self, number: int) -> pl.DataFrame:
        """All clean logs so far, without what bots did and odd prices."""
        places = (self.place(before) / CLEAN for before in range(1, number + 1))
        return pl.concat([read_clean(place, flagged=False) for place in places])

    def interest(self, number: int) -> None:
        """Train the interest model on, from where the round before left it."""
        agent = self.config["agent"]
        shop = self._new()[1].shop
        if number > 1:
            model = InterestModel.load(self.place(number - 1) / INTEREST)
        else:
            perception = Perception(agent["encoder"], agent["encoder_width"])
            model = make_model(perception.design(shop), shop.catalogue.features_IF, self.seed)
        training = Training(epochs=self.plan.epochs, patience=self.plan.patience)
        rng = generator(Role.TRAINING, self.seed).spawn(number)[-1]
        fit(model, seen_histories(self.events(number), shop), training, rng)
        with _appearing(self.place(number) / INTEREST) as part:
            model.save(part)

    def learn(self, number: int) -> None:
        """Fit the agent, from nothing, to all clean logs so far."""
        agent, env = self._new()
        events = self.events(number)
        if isinstance(agent, Scorer):
            rows = rows_of(recommendations(events), env)
            agent.fit(rows, epochs=self.plan.epochs, patience=self.plan.patience)
        else:
            told = histories(events, organic=False)
            fitted: Any = agent  # all those that rank have it
            fitted.fit(told.items_ST, told.events_ST, told.shopper_S)
        with _appearing(self.place(number) / AGENT) as part:
            agent.save(part)

    def judged(self, number: int) -> None:
        """Judge the agent, and measure what was served."""
        agent = self.after(number)
        agent.rng = generator(Role.STATISTICS, self.seed).spawn(number)[-1]
        row, sessions = self.judge(agent)
        num_items = agent.num_items
        row["top10_share"] = measures.concentration(sessions.shown_I)["top10_share"]
        before_I = np.zeros(num_items)
        if number > 1:
            kept = results.read_json(self.place(number - 1) / ROW)
            before_I = np.array(kept["bought_I"], dtype=float)
        events = read_log(self.place(number) / LOG).events
        found: measures.Row = {"round": number, "steps": number * self.steps}
        found |= {name: row[name] for name in measures.JUDGED}
        found |= measures.served(events, num_items, before_I)
        bought_I = before_I + measures.counts(events, num_items)[1]
        told = {"row": found, "bought_I": bought_I.tolist()}
        results.write_text(self.place(number) / ROW, json.dumps(told) + "\n")

    def _keep_agent(self) -> None:
        """The agent after the last round, where it is easily found."""
        last = self.plan.rounds
        if not (self.path / AGENT).exists():
            agent = self.after(last)
            with _appearing(self.path / AGENT) as part:
                agent.save(part)
        (self.place(last) / STATE).unlink(missing_ok=True)


def _always(told_N: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """What answers this, whatever was recommended."""
    return lambda _: told_N


class _RoundOver(Exception):  # noqa: N818 (it is no error)
    """The agent has served a round, and rests."""


@contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """What is written to this directory in here becomes ``path``, or nothing does."""
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    yield part
    with results.writing(path):
        part.rename(path)
