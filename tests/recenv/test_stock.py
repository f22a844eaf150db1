"""What is out of stock: a share, by the session's own luck, refused and told by masks."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from recenv.env import RecsysEnv
from recenv.errors import UsageError
from recenv.gate import RecsysGateEnv
from recenv.shop import Shop, describe
from recenv.vector_env import RecsysVectorEnv

SHOP: dict[str, Any] = {"num_items": 40, "num_categories": 4, "interest_dim": 4, "horizon": 6}


def test_a_share_of_the_items_is_out_and_each_as_often() -> None:
    env = RecsysVectorEnv(4_000, **SHOP, stock_out=0.3)
    env.reset(seed=0)
    mask_NI = env.action_masks()
    assert mask_NI.shape == (4_000, 40)
    assert mask_NI.any(axis=1).all()
    # one item of the forty is never out
    assert (~mask_NI).mean() == pytest.approx(0.3 * 39 / 40, abs=0.005)
    assert np.abs((~mask_NI).mean(axis=0) - 0.3).max() < 0.04
    together_II = np.corrcoef(mask_NI.T) - np.eye(40)
    assert np.abs(together_II).max() < 0.1
    # what is out has nothing to do with what she would buy
    threshold_N = env._met().threshold[:, 0]
    assert np.abs(np.corrcoef(threshold_N, mask_NI.T)[0, 1:]).max() < 0.07


def test_something_is_always_there() -> None:
    env = RecsysVectorEnv(500, **SHOP | {"num_items": 5}, stock_out=0.99)
    env.reset(seed=0)
    assert (env.action_masks().sum(axis=1) >= 1).all()


def test_stock_stays_for_a_session_and_changes_with_the_next() -> None:
    env = RecsysVectorEnv(64, **SHOP, stock_out=0.3, scenario="static")
    env.reset(seed=0)
    first_NI = env.action_masks()
    for _ in range(5):
        env.step(np.zeros(64, dtype=np.int64))
        np.testing.assert_array_equal(env.action_masks(), first_NI)
    env.step(np.zeros(64, dtype=np.int64))
    differs = (env.action_masks() != first_NI).mean()
    assert differs == pytest.approx(2 * 0.3 * 0.7, abs=0.05)


def test_luck_decides_and_not_what_is_recommended() -> None:
    rng = np.random.default_rng(0)
    envs = [RecsysVectorEnv(16, **SHOP, stock_out=0.4) for _ in range(2)]
    plain = RecsysVectorEnv(16, **SHOP)
    first = [env.reset(seed=3)[0] for env in (*envs, plain)]
    np.testing.assert_array_equal(first[0], first[2])  # the same shoppers come
    for _ in range(20):
        for env in envs:
            env.step(rng.integers(40, size=16))
        np.testing.assert_array_equal(envs[0].action_masks(), envs[1].action_masks())


def test_what_is_out_is_refused_and_the_rest_is_as_ever() -> None:
    env, plain = (RecsysVectorEnv(512, **SHOP, stock_out=share) for share in (0.5, 0.0))
    for one in (env, plain):
        one.reset(seed=1)
    assert plain.action_masks().all()
    item_N = np.random.default_rng(0).integers(40, size=512)
    there_N = env.action_masks()[np.arange(512), item_N]
    assert 0.4 < there_N.mean() < 0.6
    seen_NS, reward_N, _, _, info = env.step(item_N)
    other_NS, other_N, _, _, other = plain.step(item_N)
    assert (reward_N[~there_N] == -1).all()
    assert (info["event"][~there_N] == 1).all()
    assert (other_N[~there_N] == 1).any()
    np.testing.assert_array_equal(reward_N[there_N], other_N[there_N])
    np.testing.assert_array_equal(info["event"][there_N], other["event"][there_N])
    np.testing.assert_array_equal(seen_NS[there_N], other_NS[there_N])
    assert np.isfinite(seen_NS).all()


def test_the_single_environment_is_the_vector_one_of_one() -> None:
    single = RecsysEnv(**SHOP, stock_out=0.4, reveal=True)
    vector = RecsysVectorEnv(1, **SHOP, stock_out=0.4, reveal=True)
    _, info = single.reset(seed=5)
    vector.reset(seed=5)
    rng = np.random.default_rng(0)
    for _ in range(30):
        np.testing.assert_array_equal(single.action_masks(), vector.action_masks()[0])
        np.testing.assert_array_equal(info["action_mask"], single.action_masks())
        item = int(rng.integers(40))
        there = bool(single.action_masks()[item])
        _, reward, over, _, info = single.step(item)
        _, reward_N, _, _, told = vector.step(np.array([item]))
        told = told.get("final_info", told)
        assert reward == reward_N[0]
        assert info["regret"] == pytest.approx(told["regret"][0], rel=1e-5, abs=1e-6)
        assert info["regret"] >= 0
        assert there or (reward < 0 and info["purchase_probability"] == 0)
        if over:
            _, info = single.reset()


def test_sampling_by_the_mask_recommends_what_is_there() -> None:
    env = gym.make("Recsys-v0", **SHOP, stock_out=0.5)
    check_env(env.unwrapped, skip_render_check=True)
    _, info = env.reset(seed=0)
    for _ in range(6):
        item = env.action_space.sample(info["action_mask"])
        assert env.unwrapped.action_masks()[item]
        _, _, _, _, info = env.step(item)


def test_a_checkpoint_keeps_the_stock() -> None:
    env, other = (RecsysVectorEnv(8, **SHOP, stock_out=0.4) for _ in range(2))
    env.reset(seed=0)
    env.step(np.zeros(8, dtype=np.int64))
    other.restore(env.checkpoint())
    for _ in range(12):
        np.testing.assert_array_equal(env.action_masks(), other.action_masks())
        for one in (env, other):
            one.step(np.zeros(8, dtype=np.int64))


def test_without_it_a_shop_is_described_as_ever() -> None:
    assert "stock_out" not in describe(Shop(SHOP))["settings"]
    assert describe(Shop(SHOP | {"stock_out": 0.1}))["settings"]["stock_out"] == 0.1
    assert "action_mask" not in RecsysEnv(**SHOP).reset(seed=0)[1]


@pytest.mark.parametrize("share", [1.0, -0.1, "much", True])
def test_shares_that_cannot_be_are_refused(share: Any) -> None:
    with pytest.raises(UsageError, match="stock_out"):
        Shop(SHOP | {"stock_out": share})


def test_gates_and_tensors_have_no_stock() -> None:
    from recenv.torch_env import RecsysTorchEnv

    with pytest.raises(UsageError, match="stock_out is for Recsys-v0"):
        RecsysGateEnv(**SHOP, stock_out=0.1)
    with pytest.raises(UsageError, match="stock_out is for the environments on numpy"):
        RecsysTorchEnv(4, **SHOP, stock_out=0.1)
