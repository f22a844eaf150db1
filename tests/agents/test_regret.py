"""Where answers are linear in the features, regret grows slower than time; and the same
scores as a bandit library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agent_cases import make_agent
from mabwiser.mab import MAB, LearningPolicy

from agents.bandits.exploration import UpperBound, ucb1
from agents.bandits.lin_ts import LinTS
from agents.bandits.linucb import LinUCB
from agents.bandits.posterior import BetaRates, Context, ItemRidge
from agents.references import Random

Array = np.ndarray
CPU = torch.device("cpu")
BATCHES = 2000


class LinearShop:
    """Shoppers whose answers are linear in shopper x item features, with normal noise."""

    def __init__(self, agent, seed: int):
        (self.size,) = agent.env.single_observation_space.shape
        self.rng = np.random.default_rng(seed)
        feature_IF = agent.catalogue.features_IF
        self.feature_IF = feature_IF - feature_IF.mean(axis=0)
        weight_SF = self.rng.standard_normal((self.size, self.feature_IF.shape[1]))
        self.weight_SF = 0.5 * weight_SF / np.sqrt(weight_SF.size)

    def shoppers(self, n: int) -> tuple[Array, Array]:
        """Observations (n, S), and expected answers (n, I)."""
        observation = self.rng.standard_normal((n, self.size)).astype(np.float32)
        return observation, observation @ self.weight_SF @ self.feature_IF.T


def regret(agent, learns: bool = True, seed: int = 0) -> Array:
    """Cumulative regret (T,) over batches of eight."""
    shop = LinearShop(agent, seed)
    lost_T = np.zeros(BATCHES)
    for t in range(BATCHES):
        observation, mean_NI = shop.shoppers(8)
        explore = agent.explore if learns else lambda seen: agent.predict(seen)[0]
        item_N = explore(observation)
        chosen_N = mean_NI[np.arange(8), item_N]
        lost_T[t] = (mean_NI.max(axis=1) - chosen_N).sum()
        if learns:
            answer_N = chosen_N + 0.2 * shop.rng.standard_normal(8)
            agent.absorb(observation, item_N, answer_N.astype(np.float32))
    return np.cumsum(lost_T)


def slope(regret_T: Array) -> float:
    """Of log regret over log time, in the last decade."""
    t = np.geomspace(len(regret_T) / 10, len(regret_T), 30).astype(int)
    return float(np.polyfit(np.log(t), np.log(regret_T[t - 1]), 1)[0])


@pytest.mark.parametrize("cls", [LinUCB, LinTS], ids=lambda cls: cls.name)
@pytest.mark.parametrize("seed", [0, 1])
def test_regret_grows_slower_than_time(cls, seed):
    agent = make_agent(cls, alpha=0.3, item_size=6, growth=0.1, seed=seed)
    regret_T = regret(agent, seed=seed)
    assert slope(regret_T) < 0.7
    chance_T = regret(make_agent(Random), learns=False, seed=seed)
    assert slope(chance_T) > 0.95
    assert regret_T[-1] < 0.2 * chance_T[-1]


# --- against a bandit library --------------------------------------------------------


def test_disjoint_linucb_scores_as_mabwisers():
    rng = np.random.default_rng(0)
    x_NP = rng.standard_normal((300, 4)).astype(np.float32)
    item_N, y_N = rng.integers(5, size=300), (rng.random(300) < 0.3).astype(np.float32)
    theirs = MAB(list(range(5)), LearningPolicy.LinUCB(alpha=0.7, l2_lambda=1.5))
    theirs.fit(item_N[:200], y_N[:200], x_NP[:200])
    theirs.partial_fit(item_N[200:], y_N[200:], x_NP[200:])
    ours = ItemRidge(5, 4, CPU, ridge=1.5)
    for part in (slice(0, 200), slice(200, 300)):
        ours.add(*(torch.as_tensor(array[part]) for array in (x_NP, item_N, y_N)))
        ours.solve()
    asked_MP = rng.standard_normal((20, 4)).astype(np.float32)
    context = Context(torch.as_tensor(asked_MP), torch.zeros(20, 5))
    found_MI = UpperBound(0.7)(ours, context, torch.Generator())
    expected = theirs.predict_expectations(asked_MP)
    expected_MI = np.array([[row[item] for item in range(5)] for row in expected])
    np.testing.assert_allclose(found_MI, expected_MI, atol=1e-4)
    np.testing.assert_array_equal(found_MI.argmax(1), theirs.predict(asked_MP))


def test_ucb1_index_is_mabwisers():
    rng = np.random.default_rng(0)
    item_N, y_N = rng.integers(6, size=80), (rng.random(80) < 0.4).astype(float)
    theirs = MAB(list(range(6)), LearningPolicy.UCB1(alpha=0.8))
    theirs.fit(item_N, y_N)
    rates = BetaRates(6, CPU)
    rates.add(torch.as_tensor(item_N), torch.as_tensor(y_N))
    expected = theirs.predict_expectations()
    found_I = ucb1(rates.count_I, rates.bought_I, 0.8).numpy()
    np.testing.assert_allclose(found_I, [expected[item] for item in range(6)], rtol=1e-6)
