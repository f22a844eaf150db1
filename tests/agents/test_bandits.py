"""Bandits: how they explore, and answers that come late or many at once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from agent_cases import BANDITS, CONTEXT_FREE, greet, make_agent, make_env

from agents.bandits.base import Bandit
from agents.bandits.context_free import UCB1, BetaTS, EpsilonGreedy
from agents.bandits.ensemble_ts import EnsembleTS
from agents.bandits.exploration import Annealed, Thompson, UpperBound, ucb1
from agents.bandits.linucb import LinUCB
from agents.bandits.neural_linear_ts import NeuralLinearTS
from agents.bandits.posterior import Context, ItemRidge

every_bandit = pytest.mark.parametrize("cls", BANDITS, ids=lambda cls: cls.name)
CPU = torch.device("cpu")


# --- when answers arrive -------------------------------------------------------------


class Listener(LinUCB):
    """Takes down what arrives, and when."""

    def learn(self, total_timesteps, callback=None):
        self.heard = []
        self.asked = []
        return super().learn(total_timesteps, callback)

    def explore(self, observation):
        item_N = super().explore(observation)
        self.asked.append((observation.copy(), item_N))
        return item_N

    def absorb(self, observation, item_N, bought_N):
        self.heard.append((len(self.asked), observation.copy(), item_N))
        super().absorb(observation, item_N, bought_N)


def listener(**settings) -> Listener:
    agent = Listener(num_envs=32, item_size=4, device="cpu", **settings)
    agent.bind(make_env())
    return agent


def test_answers_arrive_when_they_are_due():
    agent = listener(delay=3)
    agent.learn(20 * 32)
    assert [step for step, _, _ in agent.heard] == list(range(4, 21))
    for (observation, item_N), (_, seen, answered_N) in zip(
        agent.asked[:-3], agent.heard, strict=True
    ):
        np.testing.assert_array_equal(seen, observation)
        np.testing.assert_array_equal(answered_N, item_N)


def test_answers_under_way_arrive_when_learning_goes_on():
    agent = listener(delay=3)
    agent.learn(10 * 32)
    late = agent.asked[-3:]
    agent.learn(10 * 32)
    assert len(agent.heard) == 10
    for (_, item_N), (_, _, answered_N) in zip(late, agent.heard[:3], strict=True):
        np.testing.assert_array_equal(answered_N, item_N)


def test_answers_are_learned_from_many_at_once():
    agent = listener(update_every=4, delay=1)
    agent.learn(20 * 32)
    assert [step for step, _, _ in agent.heard] == [5, 9, 13, 17, 20]
    assert [len(item_N) for _, _, item_N in agent.heard] == [128, 128, 128, 128, 96]
    together = np.concatenate([item_N for _, item_N in agent.asked[:4]])
    np.testing.assert_array_equal(agent.heard[0][2], together)


@every_bandit
def test_nothing_is_known_before_the_first_answer(cls):
    agent = make_agent(cls, delay=10_000)
    observation = greet(agent.env)
    before = agent.score(observation)
    agent.learn(640)
    np.testing.assert_array_equal(agent.score(observation), before)


@every_bandit
def test_late_answers_in_large_batches_are_learned_from(cls):
    agent = make_agent(cls, delay=5, update_every=7)
    observation = greet(agent.env)
    before = agent.score(observation)
    agent.learn(3200)
    assert (agent.score(observation) != before).any()


@every_bandit
def test_explores_where_it_need_not_be_deterministic(cls):
    agent = make_agent(cls, **({"alpha": 1.0} if "alpha" in cls.bounds else {}))
    agent.learn(320)
    observation = greet(agent.env)
    best_N = agent.predict(observation)[0]
    drawn = [agent.predict(observation, deterministic=False)[0] for _ in range(20)]
    assert (np.stack(drawn) != best_N).any()
    assert np.ndim(agent.predict(observation[0], deterministic=False)[0]) == 0


def test_every_bandit_is_one():
    assert all(issubclass(cls, Bandit) for cls in BANDITS)


# --- exploration ---------------------------------------------------------------------


def test_ucb1_index_by_hand():
    index_I = ucb1(torch.tensor([10.0, 20.0, 0.0, 70.0]), torch.tensor([5.0, 12.0, 0.0, 7.0]))
    expected = [
        0.5 + math.sqrt(2 * math.log(100) / 10),
        0.6 + math.sqrt(2 * math.log(100) / 20),
        math.inf,
        0.1 + math.sqrt(2 * math.log(100) / 70),
    ]
    np.testing.assert_allclose(index_I.numpy(), expected, rtol=1e-6)
    narrow_I = ucb1(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 0.0]), alpha=0.0)
    np.testing.assert_allclose(narrow_I.numpy(), [1.0, 0.0])


def test_ucb1_tries_every_item_first():
    agent = make_agent(UCB1)
    observation = greet(agent.env)
    first_N = agent.explore(observation)
    assert len(set(first_N)) > 5  # at random, not all the same
    agent.absorb(observation, np.arange(32) % 11, np.ones(32, dtype=np.float32))
    assert (agent.explore(observation) == 11).all()


def test_share_of_random_items_falls_or_is_constant():
    falling, constant = Annealed(0.5, 0.1, 100.0), Annealed(0.2, 0.2, 100.0)
    assert [falling(step) for step in (0, 50, 100, 1000)] == pytest.approx([0.5, 0.3, 0.1, 0.1])
    assert {constant(step) for step in (0, 50, 1000)} == {0.2}
    assert Annealed(0.5, 0.1, 0.0)(10) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("settings", "early", "late"),
    [
        ({"epsilon": 0.3, "final_epsilon": 0.3}, 0.3, 0.3),
        ({"epsilon": 1.0, "final_epsilon": 0.1, "anneal": 0.5}, 0.9, 0.1),
    ],
    ids=["constant", "decaying"],
)
def test_epsilon_greedy_explores_as_much_as_it_says(settings, early, late):
    agent = make_agent(EpsilonGreedy, make_env(512), num_envs=512, **settings)
    shown: list[np.ndarray] = []
    explore = agent.explore

    def seen(observation: np.ndarray) -> np.ndarray:
        best_N = agent.predict(observation)[0]
        item_N = explore(observation)
        shown.append(item_N != best_N)
        return item_N

    agent.explore = seen
    agent.learn(40 * 512)
    others = 11 / 12  # a random item may be the best one
    assert np.mean(shown[:4]) == pytest.approx(early * others, abs=0.05)
    assert np.mean(shown[-15:]) == pytest.approx(late * others, abs=0.03)


@pytest.mark.parametrize("cls", CONTEXT_FREE, ids=lambda cls: cls.name)
def test_context_free_bandits_find_the_item_that_most_will_buy(cls):
    agent = make_agent(cls)
    rng = np.random.default_rng(0)
    rate_I = np.linspace(0.1, 0.4, 12)
    rate_I[7] = 0.8
    observation = greet(agent.env)
    for _ in range(150):
        item_N = agent.explore(observation)
        agent.absorb(observation, item_N, (rng.random(32) < rate_I[item_N]).astype(np.float32))
    assert (agent.predict(observation)[0] == 7).all()
    assert agent.score(observation)[0, 7] == pytest.approx(0.8, abs=0.05)
    shown_I = agent.rates.count_I.numpy()
    assert shown_I.min() > 0
    assert shown_I[7] > 0.4 * shown_I.sum()


def test_beta_thompson_recommends_by_the_chance_of_being_best():
    agent = make_agent(BetaTS, make_env(4000), num_envs=4000)
    agent.rates.count_I[:] = 1000.0  # ten items that nobody buys
    agent.absorb(np.zeros((2, 1)), np.array([0, 0]), np.ones(2, dtype=np.float32))
    agent.rates.count_I[:2] = torch.tensor([2.0, 1.0])
    agent.rates.bought_I[:2] = torch.tensor([2.0, 0.0])
    shown_I = np.bincount(agent.explore(greet(agent.env)), minlength=12)
    # P(Beta(3, 1) > Beta(1, 2)) = 1 - 3 int x^2 (1 - x)^2 dx = 0.9
    assert shown_I[2:].sum() < 60
    assert shown_I[0] / shown_I[:2].sum() == pytest.approx(0.9, abs=0.02)


def test_optimism_and_draws_are_as_wide_as_alpha_says():
    posterior = ItemRidge(4, 2, CPU)
    context = Context(torch.ones(5000, 2), torch.zeros(5000, 4))
    generator = torch.Generator().manual_seed(0)
    bound_NI = UpperBound(3.0)(posterior, context, generator)
    torch.testing.assert_close(bound_NI, torch.full((5000, 4), 3 * math.sqrt(2)))
    draw_NI = Thompson(0.5)(posterior, context, generator)
    assert draw_NI.std().item() == pytest.approx(0.5 * math.sqrt(2), rel=0.03)
    for greedy in (UpperBound(0.0), Thompson(0.0)):
        assert not greedy(posterior, context, generator).any()


# --- networks ------------------------------------------------------------------------


def test_a_shopper_keeps_her_network_for_a_session():
    env = make_env(64)
    agent = make_agent(EnsembleTS, env, num_envs=64, members=5)
    drawn: list[np.ndarray] = []
    ended: list[np.ndarray] = []
    update = agent.update

    def seen(observation, item_N, reward_N, done_N, info) -> None:
        drawn.append(agent._member_N.copy())
        ended.append(done_N)
        update(observation, item_N, reward_N, done_N, info)

    agent.update = seen
    agent.learn(64 * 24)
    member_TN, done_TN = np.stack(drawn), np.stack(ended)
    changed_TN = member_TN[1:] != member_TN[:-1]
    assert not changed_TN[~done_TN[:-1]].any()
    assert changed_TN[done_TN[:-1]].mean() == pytest.approx(0.8, abs=0.12)


def test_networks_agree_where_there_are_many_answers():
    agent = make_agent(EnsembleTS, members=6, hidden=16)
    observation = greet(agent.env)

    def disagreement() -> np.ndarray:
        with torch.no_grad():
            return agent._all_items(observation).sigmoid().std(0).numpy()

    before = disagreement()
    agent.learn(1)
    rng = np.random.default_rng(0)
    for _ in range(300):
        item_N = rng.integers(6, size=32)  # half of the items
        agent.absorb(observation, item_N, np.ones(32, dtype=np.float32))
    after = disagreement()
    assert after[:, :6].mean() < 0.2 * before[:, :6].mean()
    assert after[:, 6:].mean() > 2 * after[:, :6].mean()


def test_priors_never_learn():
    agent = make_agent(EnsembleTS)
    before = [leaf.clone() for leaf in agent._prior.parameters()]
    agent.learn(640)
    assert all(map(torch.equal, before, agent._prior.parameters()))


def test_neural_linear_posterior_is_of_all_answers_on_a_copy_of_the_towers():
    agent = make_agent(NeuralLinearTS, growth=1e6)
    agent.learn(640)
    assert agent._known == 640
    weight = agent._posterior.linear.sums.count_I.sum().item()
    assert 0 < weight <= 640 / 4  # p (1 - p) each
    observation = greet(agent.env)
    before = agent.score(observation)
    with torch.no_grad():
        agent.towers.out.mul_(3.0)  # they go on learning
    np.testing.assert_array_equal(agent.score(observation), before)


def test_neural_linear_remembers_as_much_as_its_log():
    agent = make_agent(NeuralLinearTS, log_rows=100)
    agent.learn(640)
    assert agent._posterior.linear.sums.count_I.sum().item() <= 100 / 4
