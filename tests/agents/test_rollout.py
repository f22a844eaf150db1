"""The one way in which agents are judged, against a loop written by hand."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from agent_cases import make_agent, make_env
from stable_baselines3.common.logger import Logger

from agents.base import Agent, SessionMeter, as_batch, stagger
from agents.references import MyopicOracle, Popularity, Random
from agents.rollout import play
from recenv.scenarios import SCENARIOS


class Fixed(Agent):
    """Recommends by the shopper's slot and what remains to her; for these tests alone."""

    name = "fixed"
    shift = 0

    def score(self, observation: np.ndarray) -> np.ndarray:
        batch, _ = as_batch(observation, self.env)
        place_N = (np.arange(len(batch)) + np.rint(8 * batch[:, -1]).astype(int) + self.shift) % 12
        return np.eye(12)[place_N]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_equals_a_loop_by_hand(scenario):
    env = make_env(40, scenario=scenario)
    agent = make_fixed(env)
    sessions = play(agent, env, seed=5)

    observation, _ = env.reset(seed=5)
    over = [False] * 40
    return_E, purchases_E, length_E = [0.0] * 40, [0] * 40, [0] * 40
    shown: list[int] = []
    while not all(over):
        item_N, _ = agent.predict(observation)
        observation, reward_N, terminated_N, truncated_N, info = env.step(item_N)
        event_N = info["final_info"]["event"] if "final_info" in info else info["event"]
        for n in range(40):
            if over[n]:
                continue
            return_E[n] += float(reward_N[n])
            purchases_E[n] += int(event_N[n] == 4)
            length_E[n] += 1
            shown.append(item_N[n])
            over[n] = bool(terminated_N[n] or truncated_N[n])
    np.testing.assert_array_equal(sessions.return_E, return_E)
    np.testing.assert_array_equal(sessions.purchases_E, purchases_E)
    np.testing.assert_array_equal(sessions.length_E, length_E)
    np.testing.assert_array_equal(sessions.shown_I, np.bincount(shown, minlength=12))


@pytest.mark.parametrize("scenario", ["full", "churn"])
def test_return_is_purchases_less_what_was_not_bought(scenario):
    env = make_env(500, scenario=scenario, churn_base=-2.0)
    sessions = play(make_agent(Random, env), env, seed=5)
    np.testing.assert_array_equal(sessions.return_E, 2 * sessions.purchases_E - 8)
    assert sessions.shown_I.sum() == sessions.length_E.sum()
    assert (sessions.length_E <= 8).all()
    assert (sessions.length_E.min() < 8) == (scenario == "churn")


def make_fixed(env, shift: int = 0) -> Fixed:
    agent = Fixed(device="cpu")
    agent.shift = shift
    agent.bind(env)
    return agent


def test_agents_meet_the_same_shoppers_with_the_same_luck():
    met = []
    for agent_class in (Random, MyopicOracle, Popularity):
        env = make_env(50, scenario="churn", churn_base=-2.0)
        agent = make_agent(agent_class, env)
        env.reset(seed=99)
        play(agent, env, seed=5)
        env.reset(seed=5)
        met.append((env.state.interest.copy(), env.traits.tolerance.copy()))
    for interest, tolerance in met[1:]:
        np.testing.assert_array_equal(interest, met[0][0])
        np.testing.assert_array_equal(tolerance, met[0][1])
    # where nothing changes, a shopper's answer to an item at a step is the same whoever asks
    env = make_env(200, scenario="static", horizon=1)
    one, two = make_fixed(env), make_fixed(env, shift=12)
    np.testing.assert_array_equal(play(one, env, 5).return_E, play(two, env, 5).return_E)
    assert (play(one, env, 5).return_E != play(one, env, 6).return_E).any()


def test_sessions_after_the_first_do_not_count():
    env = make_env(300, scenario="churn", churn_base=0.0)
    sessions = play(make_fixed(env), env, seed=5)
    assert sessions.length_E.min() == 1  # these slots had further shoppers meanwhile
    assert sessions.return_E.min() >= -8
    np.testing.assert_array_equal(sessions.return_E, 2 * sessions.purchases_E - 8)


def test_cut_sessions_end():
    env = make_env(10, scenario="static", max_episode_steps=3)
    sessions = play(make_fixed(env), env, seed=5)
    assert (sessions.length_E == 3).all()


def test_agent_goes_back_where_it_was():
    home, away = make_env(8), make_env(16)
    agent = make_fixed(home)
    play(agent, away, seed=5)
    assert agent.env is home
    with contextlib.suppress(ZeroDivisionError), agent.acting_in(away):
        assert agent.env is away
        raise ZeroDivisionError
    assert agent.env is home


def test_first_sessions_are_staggered_over_the_horizon():
    env = make_env(4000)
    first_N = stagger(env, np.random.default_rng(0))
    count_T = np.bincount(first_N, minlength=9)
    assert count_T[0] == 0
    assert len(count_T) == 9
    assert np.abs(count_T[1:] - 500).max() < 5 * 500**0.5


def test_meter_adds_up_each_session_apart():
    meter = SessionMeter(num_envs=3, horizon=8)
    told = [
        meter.add(np.array(reward_N), np.array(done_N))
        for reward_N, done_N in [
            ([1.0, -1.0, 1.0], [False, True, False]),
            ([-1.0, 1.0, -5.0], [False, False, True]),
            ([1.0, 1.0, -1.0], [True, True, False]),
        ]
    ]
    ended = [[leaf.tolist() for leaf in step] for step in told]
    assert ended == [
        [[1], [-1.0], [1]],
        [[2], [-4.0], [2]],
        [[0, 1], [1.0, 2.0], [3, 2]],
    ]


def test_learning_is_logged_in_sessions():
    env = make_env(32, scenario="churn")
    agent = make_agent(Popularity, env, seed=3)
    agent.logger = Logger(None, [])
    agent.learn(320)
    values = agent.logger.name_to_value
    assert 1 < values["rollout/ep_len_mean"] <= 8
    assert -8 <= values["rollout/ep_rew_mean"] <= 8
