"""Candidates are proposed by a retriever, and actions choose among them."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from recenv import retrieve
from recenv.env import RecsysEnv
from recenv.errors import MissingExtra, UsageError
from recenv.gate import RecsysGateEnv
from recenv.retrieve import Index, RecsysRetrieveVectorEnv, RetrieveCandidates, Retriever
from recenv.vector_env import RecsysVectorEnv

SHOP: dict[str, Any] = {"num_items": 60, "num_categories": 4, "interest_dim": 4, "horizon": 12}
OWN: dict[str, Any] = {"candidates": 9, "refresh": 3}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"scenario": "churn", "churn_base": -2.0},
    {"observation": "behaviour", "history": 3},
    {"stock_out": 0.3, "reveal": True},
    {"components": 3},
]


def made(num_envs: int = 32, **keywords: Any) -> RecsysRetrieveVectorEnv:
    return RecsysRetrieveVectorEnv(num_envs, **(SHOP | OWN | keywords))


@pytest.mark.parametrize("keywords", VARIANTS, ids=str)
def test_the_wrapper_and_the_vector_environment_agree(keywords: dict[str, Any]) -> None:
    single = gym.make("RecsysRetrieve-v0", **(SHOP | OWN | keywords))
    vector = gym.make_vec("RecsysRetrieve-v0", num_envs=1, **(SHOP | OWN | keywords))
    rng = np.random.default_rng(0)
    (seen, info), (seen_NS, told) = single.reset(seed=2), vector.reset(seed=2)
    for _ in range(60):
        np.testing.assert_array_equal(seen, seen_NS[0])
        np.testing.assert_array_equal(info["candidates"], told["candidates"][0])
        assert single.observation_space.contains(seen)
        masks = vector.action_masks()[0]
        np.testing.assert_array_equal(single.get_wrapper_attr("action_masks")(), masks)
        if "stock_out" in keywords:
            np.testing.assert_array_equal(info["action_mask"], masks)
        action = int(rng.integers(9))
        seen, reward, over, _, info = single.step(action)
        seen_NS, reward_N, over_N, _, told = vector.step(np.array([action]))
        assert (reward, over) == (reward_N[0], over_N[0])
        if over:
            seen, info = single.reset()


def test_actions_are_candidates_and_the_shoppers_those_of_the_shop() -> None:
    env, plain = made(), RecsysVectorEnv(32, **SHOP)
    (seen_NS, _), (other_NS, _) = env.reset(seed=0), plain.reset(seed=0)
    split, rng = other_NS.shape[1], np.random.default_rng(0)
    for _ in range(30):
        np.testing.assert_array_equal(seen_NS[:, :split], other_NS)
        told_NKG = env.shop.observer.unflatten(seen_NS)["candidates"]
        np.testing.assert_array_equal(told_NKG, env.shop.told_IG[env.candidate_NK])
        action_N = rng.integers(9, size=32)
        item_N = env.shown(action_N)
        np.testing.assert_array_equal(item_N, env.candidate_NK[np.arange(32), action_N])
        seen_NS, reward_N, *_ = env.step(action_N)
        other_NS, other_N, *_ = plain.step(item_N)
        np.testing.assert_array_equal(reward_N, other_N)


def test_candidates_differ_and_come_from_everywhere_at_first() -> None:
    env = made(400, candidates=8)
    env.reset(seed=0)
    candidate_NK = env.candidate_NK.copy()
    assert all(len(set(row)) == 8 for row in candidate_NK)
    category_NK = env.shop.catalogue.category_I[candidate_NK]
    for half in (category_NK[:, :4], category_NK[:, 4:]):  # each has all categories
        assert all(len(set(row)) >= 3 for row in half)
    share_I = np.bincount(candidate_NK.ravel(), minlength=60) / 400
    assert share_I.min() > 0.5 * 8 / 60
    again = made(400, candidates=8)
    again.reset(seed=0)
    np.testing.assert_array_equal(again.candidate_NK, candidate_NK)


@pytest.mark.parametrize("count", [1, 2, 9, 59, 60])
def test_there_are_never_two_alike(count: int) -> None:
    env = made(64, candidates=count)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(15):
        assert all(len(set(row)) == count for row in env.candidate_NK)
        env.step(rng.integers(count, size=64))


def test_half_of_them_follows_what_she_buys() -> None:
    env = made(200, num_items=300, candidates=20, refresh=4, scenario="static")
    env.reset(seed=0)
    vector_Id, first_NK = env.shop.retriever.item_Id, env.candidate_NK.copy()
    for step in range(4):
        np.testing.assert_array_equal(env.candidate_NK, first_NK)
        # the greedy choice of someone who knows all
        utility_NK = env.shop.utilities(np, env.shop.tables, env.state, env.traits, first_NK)
        action_N = utility_NK.argmax(axis=1)
        bought_N = env.shown(action_N)
        env.step(action_N)
        assert step < 4
    after_NK = env.candidate_NK
    np.testing.assert_array_equal(after_NK[:, 10:], first_NK[:, 10:])
    changed_N = (after_NK[:, :10] != first_NK[:, :10]).any(axis=1)
    assert changed_N.mean() > 0.9
    liked_Nd = vector_Id[bought_N][:, None]
    near_NK, far_NK = ((vector_Id[c] * liked_Nd).sum(axis=2) for c in (after_NK, first_NK))
    assert near_NK[:, :10].mean() > far_NK[:, :10].mean() + 0.3


def test_a_query_finds_the_largest_inner_products() -> None:
    plain = RecsysVectorEnv(1, **SHOP)
    secret_ID = plain.shop.catalogue.embedding_ID
    wise = Retriever("wise", secret_ID, lambda seen_nS: seen_nS[:, :4])
    env = made(50, retriever=wise, scenario="drift")
    assert env.shop.settings.retriever == "wise"
    env.reset(seed=0)
    for step in range(13):
        score_NI = env.state.interest @ secret_ID.T
        best_N = np.sort(score_NI, axis=1)[:, -9:].mean(axis=1)
        found_N = np.take_along_axis(score_NI, env.candidate_NK, 1).mean(axis=1)
        if step in (0, 3, 6, 9, 12):  # retrieved just now; 12: the next session
            np.testing.assert_allclose(found_N, best_N, rtol=1e-5)
        env.step(np.zeros(50, dtype=np.int64))
    with pytest.raises(UsageError, match="knows 60 items, this shop sells 30"):
        made(retriever=wise, num_items=30)


def test_cells_find_most_of_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    item_Id, query_nd = rng.standard_normal((3_000, 6)), rng.standard_normal((50, 6))
    exact_nk = Index(item_Id).best(query_nd, 20)
    expected_nk = np.argsort(-(query_nd @ item_Id.T), axis=1)[:, :20]
    np.testing.assert_array_equal(exact_nk, expected_nk)
    monkeypatch.setattr(retrieve, "EXACT", 1_000)
    found_nk = Index(item_Id).best(query_nd, 20)
    hits = [len(set(a) & set(b)) for a, b in zip(found_nk, exact_nk, strict=True)]
    assert np.mean(hits) > 12
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtra, match=r'pip install "recenv\[large\]"'):
        Index(item_Id)


def test_a_checkpoint_keeps_candidates_and_tastes() -> None:
    env, other = made(), made()
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(5):
        env.step(rng.integers(9, size=32))
    other.restore(env.checkpoint())
    for _ in range(20):
        action_N = rng.integers(9, size=32)
        one, two = env.step(action_N), other.step(action_N)
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(env.candidate_NK, other.candidate_NK)
    with pytest.raises(UsageError, match="not of such an environment"):
        made(candidates=5).restore(env.checkpoint())


def test_what_cannot_be_is_refused_in_one_line() -> None:
    for keywords, told in (
        ({"candidates": 61}, "more than the 60 items"),
        ({"candidates": 0}, "candidates must lie in"),
        ({"refresh": 2.5}, "refresh must be a whole number"),
        ({"retriever": "magic"}, "unknown retriever 'magic'"),
    ):
        with pytest.raises(UsageError, match=told):
            made(**keywords)
    with pytest.raises(UsageError, match="RetrieveCandidates is for Recsys-v0"):
        RetrieveCandidates(RecsysGateEnv(**SHOP), 5)
    single = RetrieveCandidates(RecsysEnv(**SHOP), 5)
    single.reset(seed=0)
    with pytest.raises(UsageError, match=r"action 5 is not among the candidates 0\.\.4"):
        single.step(5)
