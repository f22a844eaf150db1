"""How long learning takes until it scores: ours against stable-baselines3's own route."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from tqdm import tqdm

from agents.base import Agent
from experiments import results
from experiments.build import group_defaults, make_agent
from experiments.evaluate import Judge
from experiments.performance.measure import Sizes
from experiments.performance.sides import own_route

KEPT = "time_to_score.json"
ENV = {"scenario": "full"}
GOAL = 0.9  # of the planning oracle, 0 being random items
ROUTES = ("ours", "sb3")
Clock = Callable[[], float]


class Borrowed(Agent):
    """A model of stable-baselines3, for the judge to look at."""

    name = "borrowed"

    def __init__(self, model: PPO):
        super().__init__(device="cpu", num_envs=1)
        self.model = model

    @torch.no_grad()
    def score(self, observation: np.ndarray) -> np.ndarray:
        policy = self.model.policy
        features = policy.extract_features(torch.as_tensor(observation))
        assert isinstance(features, torch.Tensor)  # actor and critic share them
        logits: np.ndarray = policy.action_net(policy.mlp_extractor.forward_actor(features)).numpy()
        return logits


class Race:
    """A callback of ``learn`` that stops it once the goal is reached; judging is not counted.

    Args:
        judge: scores an agent.
        agent: that learns.
        every: environment steps between two looks.
        most: environment steps after which it has not arrived.
    """

    def __init__(self, judge: Judge, agent: Agent, every: int, most: int, label: str, clock: Clock):
        self.judge, self.agent, self.every, self.most = judge, agent, every, most
        self.clock, self.next = clock, every
        self.steps, self.score, self.seconds = 0, -np.inf, 0.0
        self._bar = tqdm(
            total=most, desc=label, unit=" steps", unit_scale=True, file=sys.stderr, leave=False
        )
        self._since = clock()

    def __call__(self, timesteps: int) -> bool:
        if timesteps < self.next:
            return True
        self.seconds += self.clock() - self._since
        self.next = timesteps + self.every
        row, _ = self.judge(self.agent)
        self._bar.update(timesteps - self.steps)
        self.steps, self.score = timesteps, float(row["normalised_score"] or 0.0)
        self._bar.set_postfix(score=f"{self.score:.3f}")
        self._since = self.clock()
        return self.score < GOAL and timesteps < self.most

    def outcome(self) -> dict[str, Any]:
        self._bar.close()
        reached = self.score >= GOAL
        if not reached:  # what it learned after the last look counts as well
            self.seconds += self.clock() - self._since
        return {"seconds": self.seconds, "steps": self.steps, "reached": reached}


def ours(race: Callable[[Agent], Race], sizes: Sizes, seed: int) -> dict[str, Any]:
    """agent=ppo by its defaults."""
    config = group_defaults("agent", "ppo") | sizes.agents.get("ppo", {})
    agent = make_agent(config, ENV, seed=seed, device="cpu")
    run = race(agent)
    agent.learn(sizes.score_steps, run)
    return run.outcome()


def sb3(race: Callable[[Agent], Race], sizes: Sizes, seed: int) -> dict[str, Any]:
    """stable-baselines3's PPO by its defaults on DummyVecEnvs."""
    model = own_route(sizes, seed)
    run = race(Borrowed(model))
    model.learn(sizes.score_steps, callback=lambda own, _: run(own["self"].num_timesteps))
    return run.outcome()


def times(sizes: Sizes, out: Path, clock: str, now: Clock) -> dict[str, dict[str, Any]]:
    """The outcomes by route and seed; those that are kept in ``out`` are not measured again."""
    path = out / KEPT
    known: dict[str, Any] = results.read_json(path) if path.is_file() else {}
    judge: Judge | None = None
    found = {}
    for seed in range(sizes.score_seeds):
        for name, route in zip(ROUTES, (ours, sb3), strict=True):
            key = f"{name} seed={seed} most={sizes.score_steps} clock={clock}"
            if key not in known:
                judge = judge or Judge(ENV, 0, sizes.score_shoppers, out, sizes.score_reference)
                own_judge = judge

                def race(agent: Agent, judge: Judge = own_judge, label: str = key) -> Race:
                    return Race(judge, agent, sizes.score_every, sizes.score_steps, label, now)

                known[key] = route(race, sizes, seed)
                results.write_json(path, known)
            found[f"{name} {seed}"] = known[key]
    return found
