"""Play the first session of each shopper: the one way in which agents are judged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.base import Agent
from recenv.vector_env import RecsysVectorEnv


@dataclass(frozen=True)
class Sessions:
    """What happened in E sessions.

    Attributes:
        return_E: sum of rewards, purchases - (T - purchases).
        purchases_E: items bought.
        length_E: recommendations seen before the end (at a gate: candidates).
        shown_I: how often each item was recommended.
    """

    return_E: np.ndarray
    purchases_E: np.ndarray
    length_E: np.ndarray
    shown_I: np.ndarray


def play(agent: Agent, env: RecsysVectorEnv, seed: int) -> Sessions:
    """The first session in each slot of ``env``, by the agent's deterministic policy.

    The shoppers and their luck depend on the seed alone, so that two agents played with
    one seed differ by their recommendations only.
    """
    n = env.num_envs
    return_E, purchases_E, length_E = np.zeros(n), np.zeros(n), np.zeros(n)
    shown_I = np.zeros(env.shop.num_items, dtype=np.int64)
    going_E = np.ones(n, dtype=bool)
    with agent.acting_in(env):
        observation, _ = env.reset(seed=seed)
        state, start_E = None, np.ones(n, dtype=bool)
        while going_E.any():
            action_E, state = agent.predict(observation, state, start_E, deterministic=True)
            item_E = env.shown(action_E)
            observation, reward_E, terminated_E, truncated_E, info = env.step(action_E)
            terms = info.get("final_info", info)["reward_terms"]
            return_E += going_E * reward_E
            purchases_E += going_E * (terms["purchase"] > 0)
            length_E += going_E
            shown_I += np.bincount(item_E[going_E & (item_E >= 0)], minlength=len(shown_I))
            start_E = terminated_E | truncated_E
            going_E = going_E & ~start_E
    return Sessions(return_E, purchases_E, length_E, shown_I)
