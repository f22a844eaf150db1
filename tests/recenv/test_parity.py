"""One physics: without a batch axis, in a batch, on torch; and luck that no agent can change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from array_api_compat import numpy as xp

from recenv.dynamics import State, Tables, Traits, step
from recenv.env import RecsysEnv
from recenv.population import Sessions
from recenv.scenarios import SCENARIOS
from recenv.shop import OBSERVATIONS, Shop
from recenv.vector_env import RecsysVectorEnv

SMALL: dict[str, Any] = {"num_items": 20, "num_categories": 4, "interest_dim": 5, "horizon": 8}
EVERYTHING: dict[str, Any] = {
    **SMALL,
    "scenario": "full",
    "churn": True,
    "refusal_push": 0.02,
    "reveal": True,
}


def actions(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(SMALL["num_items"], size=shape)


# --- the functions ---------------------------------------------------------------------------


def trajectory(
    xp: Any, shop: Shop, tables: Tables, sessions: Sessions, action_TN: Any
) -> list[list[Any]]:
    """(event, reward, charge, end, state...) of each step, by ``dynamics.step`` alone."""
    state, told = sessions.state, []
    for t, action in enumerate(action_TN):
        luck = (leaf[..., t] for leaf in (sessions.threshold, sessions.drift_row))
        outcome = step(xp, shop.dynamics, tables, state, sessions.traits, action, *luck)
        state = outcome.state
        told.append([*outcome[1:], *state])
    return told


@pytest.mark.parametrize("scenario", [*SCENARIOS, "everything"])
def test_one_shopper_a_batch_and_torch_live_the_same_sessions(scenario: str) -> None:
    torch = pytest.importorskip("torch")
    from array_api_compat import torch as txp

    keywords = EVERYTHING if scenario == "everything" else SMALL | {"scenario": scenario}
    n, shop = 64, Shop(keywords)
    sessions = shop.arrivals(n).take(np.random.default_rng(3), n)
    action_TN = actions(4, shop.horizon, n)

    def tensor(leaf: Any) -> Any:
        made = torch.as_tensor(leaf)
        return made.double() if made.is_floating_point() else made.long()

    batched = trajectory(xp, shop, shop.tables, sessions, action_TN)
    on_torch = trajectory(
        txp,
        shop,
        Tables(*map(tensor, shop.tables)),
        Sessions(
            tensor(sessions.shopper_id),
            State(*map(tensor, sessions.state)),
            Traits(*map(tensor, sessions.traits)),
            tensor(sessions.threshold),
            tensor(sessions.drift_row),
            tensor(sessions.first_observation),
        ),
        tensor(action_TN),
    )
    alone = [
        trajectory(xp, shop, shop.tables, sessions.rows(i), action_TN[:, i].tolist())
        for i in range(n)
    ]
    for t, batch in enumerate(batched):
        assert on_torch[t][-1].dtype == torch.float64
        for leaf, many in enumerate(batch):
            one_by_one = np.stack([np.asarray(alone[i][t][leaf]) for i in range(n)])
            exact = many.dtype.kind in "ib"  # events and ends
            compare = np.testing.assert_array_equal if exact else near
            compare(one_by_one, many)
            compare(on_torch[t][leaf].numpy(), many)


def near(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


# --- the environments ------------------------------------------------------------------------


@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_single_env_equals_the_vector_env_of_one_bit_by_bit(
    scenario: str, observation: str
) -> None:
    keywords = SMALL | {
        "scenario": scenario,
        "observation": observation,
        "history": 3,
        "reveal": True,
    }
    single, vector = RecsysEnv(**keywords), RecsysVectorEnv(1, **keywords)
    seen, info = single.reset(seed=9)
    batch, batch_info = vector.reset(seed=9)
    sessions = 0
    # newcomers are drawn in blocks of 64 sessions: go through the third
    for item in actions(5, 140 * SMALL["horizon"]).tolist():
        np.testing.assert_array_equal(seen, batch[0])
        assert info["shopper_id"] == batch_info["shopper_id"][0]
        seen, reward, terminated, truncated, info = single.step(item)
        batch, reward_N, terminated_N, truncated_N, batch_info = vector.step(np.array([item]))
        assert (reward, terminated, truncated) == (reward_N[0], terminated_N[0], truncated_N[0])
        told = batch_info.get("final_info", batch_info)
        for name in ("shopper_id", "event", "purchase_probability", "regret"):
            assert info[name] == told[name][0]
        for name, term in info["reward_terms"].items():
            assert term == told["reward_terms"][name][0]
        if terminated:
            np.testing.assert_array_equal(seen, batch_info["final_obs"][0])
            seen, info = single.reset()
            sessions += 1
    assert sessions >= 140


@pytest.mark.parametrize("interest_dim", [1, 3, 8, 16, 33])
def test_it_does_so_for_every_size_of_an_interest(interest_dim: int) -> None:
    keywords = EVERYTHING | {"interest_dim": interest_dim, "num_categories": 1}
    single, vector = RecsysEnv(**keywords), RecsysVectorEnv(1, **keywords)
    single.reset(seed=1)
    vector.reset(seed=1)
    for item in actions(2, 200):
        seen, reward, terminated, _, _ = single.step(item)
        batch, reward_N, _, _, info = vector.step(item[None])
        assert reward == reward_N[0]
        np.testing.assert_array_equal(seen, info["final_obs"][0] if terminated else batch[0])
        if terminated:
            single.reset()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("num_envs", "observation"), [(1, "latent"), (3, "behaviour"), (64, "latent")]
)
def test_the_torch_env_meets_the_shoppers_of_the_vector_env(
    num_envs: int, observation: str, dtype: str
) -> None:
    torch = pytest.importorskip("torch")
    from recenv.torch_env import RecsysTorchEnv

    # short sessions at high churn: the reserve of newcomers is filled again and again
    keywords = EVERYTHING | {"observation": observation, "history": 3, "churn_base": -2.0}
    vector = RecsysVectorEnv(num_envs, **keywords)
    tensors = RecsysTorchEnv(num_envs, dtype=getattr(torch, dtype), **keywords)
    before, info = vector.reset(seed=21)
    other, other_info = tensors.reset(seed=21)
    sessions = 0
    for t, item_N in enumerate(actions(6, 240, num_envs)):
        if t == 150:  # everybody is sent home in the middle of a session
            before, info = vector.reset()
            other, other_info = tensors.reset()
        near(other, before)
        np.testing.assert_array_equal(other_info["shopper_id"], info["shopper_id"])
        before, reward_N, terminated_N, truncated_N, info = vector.step(item_N)
        other, *rest, other_info = tensors.step(torch.as_tensor(item_N))
        told = info.get("final_info", info)
        for ours, theirs in zip((reward_N, terminated_N, truncated_N), rest, strict=True):
            np.testing.assert_array_equal(theirs, ours)
        for name in ("event", "shopper_id"):
            np.testing.assert_array_equal(other_info[name], told[name])
        for name in ("purchase", "leaving"):
            np.testing.assert_array_equal(other_info[name], told["reward_terms"][name])
        for name in ("purchase_probability", "regret"):
            near(other_info[name], told[name])
        for slot in np.flatnonzero(terminated_N):
            near(tensors.final_observation()[slot], info["final_obs"][slot])
        sessions += int(terminated_N.sum())
        other_info = {"shopper_id": tensors.shopper_id_N}
    assert sessions > 24 * num_envs
    assert other.dtype == getattr(torch, dtype)


@pytest.mark.parametrize("vectorization_mode", ["sync", "vector_entry_point"])
def test_make_vec_agrees_with_single_envs_of_the_same_seeds(vectorization_mode: str) -> None:
    n = 3 if vectorization_mode == "sync" else 1
    batch = gym.make_vec("Recsys-v0", n, vectorization_mode=vectorization_mode, **EVERYTHING)
    singles = [gym.make("Recsys-v0", **EVERYTHING) for _ in range(n)]
    seen, _ = batch.reset(seed=30)
    for i, env in enumerate(singles):
        np.testing.assert_array_equal(env.reset(seed=30 + i)[0], seen[i])
    for item_N in actions(7, 3, n):
        seen, reward_N, *_ = batch.step(item_N)
        for i, env in enumerate(singles):
            alone, reward, terminated, *_ = env.step(item_N[i])
            assert reward == reward_N[i]
            if not terminated:
                np.testing.assert_array_equal(alone, seen[i])


# --- luck ------------------------------------------------------------------------------------


def session(env: Any, choose: Callable[[int], int]) -> list[Any]:
    """What there is to see of one session, from its first observation to its end."""
    seen, info = env.reset()
    told = [seen, info["shopper_id"], *env.traits, *env.state]
    for t in range(env.shop.horizon):
        seen, reward, terminated, _, info = env.step(choose(t))
        told += [seen, reward, info["event"]]
        if terminated:
            break
    return told


@pytest.mark.parametrize("churn", [False, True])
@pytest.mark.parametrize("num_shoppers", [None, 4])
def test_after_different_actions_the_next_shopper_and_her_luck_are_the_same(
    churn: bool, num_shoppers: int | None
) -> None:
    keywords = EVERYTHING | {"churn": churn, "churn_base": -1.0, "num_shoppers": num_shoppers}
    ours, theirs = RecsysEnv(**keywords), RecsysEnv(**keywords)
    ours.reset(seed=2)
    theirs.reset(seed=2)
    rng, differed = np.random.default_rng(0), 0
    for _ in range(70):
        one = session(ours, lambda _: int(rng.integers(20)))
        other = session(theirs, lambda _: 7)
        differed += len(one) != len(other) or not all(map(np.array_equal, one, other))
        one, other = (session(env, lambda t: t) for env in (ours, theirs))
        assert len(one) == len(other)
        assert all(map(np.array_equal, one, other))
    assert differed > 60


@pytest.mark.parametrize("scenario", ["full", "churn"])
def test_an_evaluation_meets_the_same_people_whatever_the_agent_does(scenario: str) -> None:
    envs = [RecsysVectorEnv(50, **(SMALL | {"scenario": scenario})) for _ in range(2)]
    observations = [env.reset(seed=77)[0] for env in envs]
    np.testing.assert_array_equal(*observations)
    for ours, theirs in zip(envs[0].traits, envs[1].traits, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # the agents that were there before do not matter either
    for _ in range(5):
        envs[0].step(actions(1, 50))
    np.testing.assert_array_equal(envs[0].reset(seed=77)[0], observations[0])


def test_luck_belongs_to_the_step_and_not_to_what_was_shown_before() -> None:
    # in "static" a shopper answers step t by item and luck alone
    envs = [RecsysVectorEnv(200, **(SMALL | {"scenario": "static"})) for _ in range(2)]
    for env in envs:
        env.reset(seed=78)
    for seed in (0, 1, 2):
        for agent, env in enumerate(envs):
            env.step(actions(10 * seed + agent, 200))
        item_N = actions(99 + seed, 200)
        events = [env.step(item_N)[4]["event"] for env in envs]
        np.testing.assert_array_equal(*events)
        assert len(set(events[0])) > 2


def test_all_autoreset_modes_play_the_same_sessions_in_lockstep() -> None:
    n, horizon, rounds = 6, SMALL["horizon"], 4
    item_RTN = actions(8, rounds, horizon, n)
    played = {}
    for mode in ("SameStep", "NextStep", "Disabled"):
        env = RecsysVectorEnv(n, **(EVERYTHING | {"churn": False, "autoreset_mode": mode}))
        seen, info = env.reset(seed=55)
        told = []
        for item_TN in item_RTN:
            for item_N in item_TN:
                told += [seen, info["shopper_id"]]
                seen, reward_N, terminated_N, _, info = env.step(item_N)
                told += [reward_N, terminated_N, info.get("final_info", info)["event"]]
            assert terminated_N.all()
            if mode == "SameStep":
                told.append(np.stack(info["final_obs"].tolist()))
            else:
                told.append(seen)
            if mode == "NextStep":  # a step that is no step
                seen, reward_N, terminated_N, _, info = env.step(item_N)
                assert not reward_N.any()
                assert not terminated_N.any()
            elif mode == "Disabled":
                seen, info = env.reset(options={"reset_mask": terminated_N})
        played[mode] = told
    for mode in ("NextStep", "Disabled"):
        assert len(played[mode]) == len(played["SameStep"])
        for ours, theirs in zip(played[mode], played["SameStep"], strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_regulars_of_a_finite_clientele_keep_their_traits_and_interests() -> None:
    keywords = EVERYTHING | {"num_shoppers": 5}
    known: dict[int, list[Any]] = {}
    met: list[int] = []

    def meet(shopper_id: int, leaves: list[Any]) -> None:
        met.append(shopper_id)
        for ours, theirs in zip(leaves, known.setdefault(shopper_id, leaves), strict=True):
            np.testing.assert_array_equal(ours, theirs)

    for seed in (1, 2):  # whoever trains or evaluates: it is the world's clientele
        env = RecsysEnv(**keywords)
        env.reset(seed=seed)
        for _ in range(40):
            _, info = env.reset()
            meet(info["shopper_id"], [*env.traits, env.state.interest])
    batch = RecsysVectorEnv(30, **keywords)
    _, info = batch.reset(seed=3)
    for i, shopper_id in enumerate(info["shopper_id"].tolist()):
        meet(shopper_id, [*(leaf[i] for leaf in batch.traits), batch.state.interest[i]])
    assert set(met) == set(range(5))
    assert met[:40] != met[40:80]


def test_newcomers_are_all_different() -> None:
    env = RecsysVectorEnv(100, **SMALL)
    _, info = env.reset(seed=0)
    assert len(set(info["shopper_id"].tolist())) == 100
    assert len(np.unique(env.state.interest, axis=0)) == 100
