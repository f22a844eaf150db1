"""The vector environment speaks Gymnasium in all three autoreset modes."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv

from recenv.dynamics import Event
from recenv.errors import UsageError
from recenv.population import Arrivals
from recenv.shop import AUTORESET_MODES, OBSERVATIONS
from recenv.vector_env import RecsysVectorEnv

N = 5
SMALL: dict[str, Any] = {"num_items": 12, "num_categories": 3, "interest_dim": 4, "horizon": 6}
# sessions of many lengths
LIVELY = SMALL | {"scenario": "full", "churn": True, "churn_base": -1.5}


def made(num_envs: int = N, **keywords: Any) -> RecsysVectorEnv:
    env = RecsysVectorEnv(num_envs, **(LIVELY | keywords))
    env.reset(seed=3)
    return env


def actions(steps: int, seed: int = 0, num_envs: int = N) -> np.ndarray:
    return np.random.default_rng(seed).integers(12, size=(steps, num_envs))


def play(env: RecsysVectorEnv, steps: int, seed: int = 0) -> list[Any]:
    """All that is seen on so many random steps."""
    told = []
    for item_N in actions(steps, seed):
        *seen, info = env.step(item_N)
        told += [*seen, info["event"], info["shopper_id"], *env.state]
        if env.autoreset_mode is AutoresetMode.DISABLED:
            told.append(env.reset(options={"reset_mask": seen[2] | seen[3]})[0])
    return told


def same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(map(np.array_equal, one, other))


# --- the interface ---------------------------------------------------------------------------


@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("mode", AUTORESET_MODES)
def test_what_it_returns_lies_in_its_spaces(mode: str, observation: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make_vec("Recsys-v0", N, autoreset_mode=mode, observation=observation, **LIVELY)
        assert env.metadata["autoreset_mode"] is AutoresetMode(mode)
        env.action_space.seed(0)
        seen, info = env.reset(seed=0)
        for _ in range(40):
            assert seen in env.observation_space
            assert info["shopper_id"].shape == info["_shopper_id"].shape == (N,)
            action = env.action_space.sample()
            assert action.shape == (N,)
            seen, reward_N, terminated_N, truncated_N, info = env.step(action)
            kinds = (array.dtype.kind for array in (reward_N, terminated_N, truncated_N))
            assert list(kinds) == ["f", "b", "b"]
            if mode == "Disabled" and terminated_N.any():
                seen, info = env.reset(options={"reset_mask": terminated_N})


def test_one_instance_does_not_change_the_metadata_of_another() -> None:
    made(autoreset_mode="NextStep")
    assert RecsysVectorEnv.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert made().metadata["autoreset_mode"] is AutoresetMode.SAME_STEP


@pytest.mark.parametrize("mode", AUTORESET_MODES)
def test_its_spec_survives_json(mode: str) -> None:
    env = gym.make_vec("Recsys-v0", N, autoreset_mode=mode, max_episode_steps=4, **LIVELY)
    assert env.spec is not None
    again = gym.make_vec(EnvSpec.from_json(env.spec.to_json()), num_envs=N)
    unwrapped = [e.unwrapped for e in (env, again)]
    assert all(isinstance(e, RecsysVectorEnv) for e in unwrapped)
    for e in unwrapped:
        e.reset(seed=5)
    assert same(*(play(e, 30) for e in unwrapped))  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", AUTORESET_MODES)
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_made_in_the_middle_goes_on_alike(clone: Any, mode: str) -> None:
    env = made(autoreset_mode=mode, observation="behaviour")
    play(env, 15)
    other = clone(env)
    assert same(play(env, 100, seed=1), play(other, 100, seed=1))


def test_a_clientele_larger_than_the_catalogue_works() -> None:
    env = gym.make_vec("Recsys-v0", 8, num_items=5, num_shoppers=1000)
    _, info = env.reset(seed=0)
    assert info["shopper_id"].max() < 1000
    for item_N in np.random.default_rng(0).integers(5, size=(60, 8)):
        env.step(item_N)


def test_sync_vectorization_works() -> None:
    env = gym.make_vec("Recsys-v0", 3, vectorization_mode="sync", **LIVELY)
    env.reset(seed=0)
    for item_N in actions(30, num_envs=3):
        _, reward_N, _, _, info = env.step(item_N)
        if "reward_terms" in info:  # not where all three sessions only open
            terms = info["reward_terms"]
            np.testing.assert_array_equal(terms["purchase"] + terms["leaving"], reward_N)


@pytest.mark.parametrize("mode", AUTORESET_MODES)
def test_gymnasiums_wrappers_run(mode: str) -> None:
    env: VectorEnv[Any, Any, Any] = gym.make_vec("Recsys-v0", N, autoreset_mode=mode, **LIVELY)
    env = gym.wrappers.vector.RecordEpisodeStatistics(env)
    if mode == "NextStep":  # these refuse the other modes
        env = gym.wrappers.vector.NormalizeObservation(env)
        env = gym.wrappers.vector.NormalizeReward(env)
    env = gym.wrappers.vector.ClipReward(env, -60, 60)
    env = gym.wrappers.vector.DictInfoToList(env)
    _, infos = env.reset(seed=0)
    assert [info["shopper_id"] for info in infos] == list(range(N))
    lengths = []
    for item_N in actions(40):
        _, _, terminated_N, _, infos = env.step(item_N)
        assert len(infos) == N
        for info, over in zip(infos, terminated_N, strict=True):
            told = info["final_info"] if mode == "SameStep" and over else info
            if "event" in told:
                assert told["reward_terms"]["purchase"] == (2 * (told["event"] == 4) - 1)
            if over:
                assert "event" in told
                lengths.append(info["episode"]["l"])
        if mode == "Disabled" and terminated_N.any():
            env.reset(options={"reset_mask": terminated_N})
    assert len(lengths) > N
    assert set(lengths) <= set(range(1, 7))


# --- sessions that end -----------------------------------------------------------------------


def test_same_step_tells_how_the_old_session_ended_in_gymnasiums_format() -> None:
    env, alike = made(), made(autoreset_mode="NextStep")
    ends = 0
    for item_N in actions(3):  # until somebody's first session is over
        before, id_N = env.state, env.shopper_id_N.copy()
        seen, reward_N, terminated_N, _, info = env.step(item_N)
        ended = alike.step(item_N)
        np.testing.assert_array_equal(ended[1], reward_N)
        if terminated_N.any():
            break
        assert "final_obs" not in info
        assert "final_info" not in info
        np.testing.assert_array_equal(seen, ended[0])
    assert terminated_N.any()
    assert not terminated_N.all()
    assert before.remaining.min() > 1  # it is churn that ends them here
    for name in ("_final_obs", "_final_info"):
        np.testing.assert_array_equal(info[name], terminated_N)
    assert info["final_obs"].dtype == np.object_
    final = info["final_info"]
    for slot, over in enumerate(terminated_N):
        if over:
            ends += 1
            np.testing.assert_array_equal(info["final_obs"][slot], ended[0][slot])
            assert not np.array_equal(seen[slot], ended[0][slot])
            assert final["shopper_id"][slot] == id_N[slot]
            assert info["shopper_id"][slot] >= N
            assert not info["_event"][slot]
            terms = final["reward_terms"]
            assert terms["purchase"][slot] + terms["leaving"][slot] == reward_N[slot]
        else:
            assert info["final_obs"][slot] is None
            np.testing.assert_array_equal(seen[slot], ended[0][slot])
            assert info["shopper_id"][slot] == id_N[slot]
            assert info["_event"][slot]
    assert info["_shopper_id"].all()
    assert final["_event"][terminated_N].all()


def test_next_step_ignores_the_action_that_only_opens_a_session() -> None:
    env = made(autoreset_mode="NextStep")
    over_N, opened = np.zeros(N, dtype=bool), 0
    for item_N in actions(60):
        id_N = env.shopper_id_N.copy()
        seen, reward_N, terminated_N, truncated_N, info = env.step(item_N)
        fresh = env.shop.observer.unflatten(seen)["remaining"][:, 0] == 1
        np.testing.assert_array_equal(fresh, over_N)
        assert not reward_N[over_N].any()
        assert not (terminated_N | truncated_N)[over_N].any()
        np.testing.assert_array_equal(info["shopper_id"] != id_N, over_N)
        for name in ("event", "reward_terms"):
            np.testing.assert_array_equal(info[f"_{name}"], ~over_N)
        opened += int(over_N.sum())
        over_N = terminated_N | truncated_N
    assert opened > 2 * N


def test_disabled_resets_the_slots_of_the_mask_alone() -> None:
    env = made(autoreset_mode="Disabled")
    for item_N in actions(10):
        *_, terminated_N, _, _ = env.step(item_N)
        if terminated_N.any():
            break
    before, id_N = env.state, env.shopper_id_N.copy()
    kept = [np.array(leaf)[~terminated_N] for leaf in before]
    seen, info = env.reset(options={"reset_mask": terminated_N})
    fresh = env.shop.observer.unflatten(seen)["remaining"][:, 0] == 1
    np.testing.assert_array_equal(fresh, terminated_N)
    np.testing.assert_array_equal(info["shopper_id"] != id_N, terminated_N)
    assert same(kept, [leaf[~terminated_N] for leaf in env.state])
    env.step(actions(1)[0])


@pytest.mark.parametrize("mode", AUTORESET_MODES)
def test_an_empty_mask_resets_nobody(mode: str) -> None:
    env = made(autoreset_mode=mode, churn=False)
    before, *_ = env.step(actions(1)[0])
    seen, _ = env.reset(options={"reset_mask": np.zeros(N, dtype=bool)})
    np.testing.assert_array_equal(seen, before)


@pytest.mark.parametrize("mode", AUTORESET_MODES)
@pytest.mark.parametrize("limit", [1, 4])
def test_max_episode_steps_truncates(mode: str, limit: int) -> None:
    env = gym.make_vec(
        "Recsys-v0", N, max_episode_steps=limit, autoreset_mode=mode, **(SMALL | {"horizon": 20})
    )
    env.reset(seed=0)
    for _ in range(3):
        for t in range(limit):
            _, _, terminated_N, truncated_N, info = env.step(actions(1)[0])
            assert not terminated_N.any()
            assert (truncated_N == (t == limit - 1)).all()
        if mode == "SameStep":
            assert info["_final_obs"].all()
        elif mode == "NextStep":
            assert not env.step(actions(1)[0])[3].any()
        else:
            env.reset(options={"reset_mask": truncated_N})


def test_a_limit_beyond_the_horizon_cuts_nothing() -> None:
    env = made(max_episode_steps=100, churn=False)
    ends = [env.step(item_N)[2:4] for item_N in actions(6)]
    assert [(a.all(), b.any()) for a, b in ends] == [(False, False)] * 5 + [(True, False)]


def test_first_sessions_can_be_cut_so_that_slots_do_not_end_together() -> None:
    env = made(churn=False)
    steps_N = np.array([1, 2, 3, 6, 60])
    env.reset(seed=0, options={"first_session_steps": steps_N})
    ends = [env.step(item_N)[2:4] for item_N in actions(12)]
    terminated_TN, truncated_TN = (np.stack(x) for x in zip(*ends, strict=True))
    for slot, first in enumerate([1, 2, 3, 6, 6]):
        at = np.flatnonzero(terminated_TN[:, slot] | truncated_TN[:, slot]) + 1
        expected = [t for t in (first, first + 6, first + 12) if t <= 12]
        assert at.tolist() == expected
        cut = np.flatnonzero(truncated_TN[:, slot]) + 1
        assert cut.tolist() == ([first] if first < 6 else [])


@pytest.mark.parametrize("mode", AUTORESET_MODES)
def test_a_seed_repeats_whatever_happened_before(mode: str) -> None:
    env = made(autoreset_mode=mode)
    first = play(env, 40)
    play(env, 7, seed=9)
    env.reset(seed=3)
    assert same(first, play(env, 40))
    env.reset(seed=4)
    assert not same(first, play(env, 40))


@pytest.mark.parametrize("mode", AUTORESET_MODES)
@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_nothing_that_is_returned_can_be_used_to_change_the_sessions(
    mode: str, observation: str
) -> None:
    quiet, spoiled = (made(autoreset_mode=mode, observation=observation) for _ in range(2))
    for item_N in actions(40):
        expected = quiet.step(item_N)
        returned = spoiled.step(item_N.copy())
        assert same(list(expected[:4]), list(returned[:4]))
        over_N = returned[2].copy()
        spoil(returned)
        if mode == "Disabled" and over_N.any():
            reset = quiet.reset(options={"reset_mask": over_N})[0]
            again = spoiled.reset(options={"reset_mask": over_N})
            np.testing.assert_array_equal(again[0], reset)
            spoil(again)


def spoil(tree: Any) -> None:
    """Overwrite all arrays in nested containers."""
    if isinstance(tree, dict | tuple):
        for leaf in tree.values() if isinstance(tree, dict) else tree:
            spoil(leaf)
    elif tree.dtype.kind == "b":
        tree[:] = ~tree
    elif tree.dtype.kind != "O":
        tree[:] = 77


def test_what_was_returned_is_not_changed_by_later_steps() -> None:
    env = made()
    kept, copies = [], []
    for item_N in actions(40):
        returned = env.step(item_N)
        kept.append(returned)
        copies.append(pickle.dumps(returned))
    assert [pickle.dumps(returned) for returned in kept] == copies


# --- costs -----------------------------------------------------------------------------------


def buffers(tree: Any) -> dict[int, int]:
    """Bytes of every array in nested containers, once each."""
    if isinstance(tree, np.ndarray):
        while tree.base is not None:
            tree = tree.base
        return {id(tree): tree.nbytes}
    if not isinstance(tree, list | tuple):
        return {}
    return {key: size for leaf in tree for key, size in buffers(leaf).items()}


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_a_shopper_takes_less_than_six_kilobytes(observation: str) -> None:
    n = 1024
    env = RecsysVectorEnv(
        n, num_items=1000, num_categories=20, interest_dim=16, observation=observation
    )
    env.reset(seed=0)
    for item_N in np.random.default_rng(0).integers(1000, size=(60, n)):
        env.step(item_N)
    held = [*vars(env).values(), *vars(env._arrivals).values()]
    total = sum(buffers(held).values())
    assert 500 * n < total < 6000 * n


# --- nonsense --------------------------------------------------------------------------------


@pytest.mark.parametrize("num_envs", [0, -1, 2.0, True, None, "4"])
def test_a_bad_number_of_slots_is_refused(refuses: Any, num_envs: Any) -> None:
    with refuses("num_envs must "):
        RecsysVectorEnv(num_envs)


@pytest.mark.parametrize("limit", [0, -1, 2.0, True, "4"])
def test_a_bad_limit_is_refused(refuses: Any, limit: Any) -> None:
    with refuses("max_episode_steps must "):
        RecsysVectorEnv(2, max_episode_steps=limit)


def test_bad_keywords_are_refused_through_make_vec(refuses: Any) -> None:
    with refuses("unknown scenario 'trst': did you mean 'trust'"):
        gym.make_vec("Recsys-v0", 2, scenario="trst")
    with refuses("unknown autoreset_mode 'SameSteps': did you mean 'SameStep'"):
        gym.make_vec("Recsys-v0", 2, autoreset_mode="SameSteps")
    with refuses('a vector env has no pictures: render gym.make."Recsys-v0".'):
        RecsysVectorEnv(2, render_mode="ansi")


@pytest.mark.parametrize(
    ("item_N", "pattern"),
    [
        ([0, 1, 2, 3], r"actions must be 5 whole numbers, got int64 of shape \(4,\)"),
        (np.zeros((5, 1), int), r"got int64 of shape \(5, 1\)"),
        (3, r"got int64 of shape \(\)"),
        (np.zeros(5), "got float64"),
        (np.zeros(5, bool), "got bool"),
        (["0"] * 5, "actions must be 5 whole numbers"),
        (None, "actions must be 5 whole numbers"),
        ([0, 1, 2, 3, 12], r"an action is not in the catalogue 0\.\.11"),
        ([0, 1, 2, 3, -1], "not in the catalogue"),
        (np.array([0, 1, 2, 3, 2**64 - 1], dtype=np.uint64), "not in the catalogue"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bad_actions_are_refused_and_change_nothing(
    refuses: Any, item_N: Any, pattern: str
) -> None:
    env = made()
    with refuses(pattern):
        env.step(item_N)
    assert same(play(env, 10), play(made(), 10))


@pytest.mark.parametrize("dtype", ["int8", "int32", "uint16", "uint64"])
def test_whole_numbers_of_any_type_are_actions(dtype: str) -> None:
    env, other = made(observation="behaviour"), made(observation="behaviour")
    for item_N in actions(20):
        one, two = env.step(item_N.astype(dtype)), other.step(item_N.tolist())
        assert same(list(one[:4]), list(two[:4]))


@pytest.mark.parametrize("mode", AUTORESET_MODES)
def test_nobody_can_be_served_before_the_first_reset(refuses: Any, mode: str) -> None:
    env = RecsysVectorEnv(N, **SMALL, autoreset_mode=mode)
    for act in (
        lambda: env.step(actions(1)[0]),
        lambda: env.state,
        lambda: env.traits,
        lambda: env.shopper_id_N,
    ):
        with refuses(r"nobody is in the shop yet: call reset\(\) first"):
            act()


def test_disabled_serves_nobody_after_the_end(refuses: Any) -> None:
    env = made(autoreset_mode="Disabled", churn=False)
    for item_N in actions(6):
        env.step(item_N)
    with refuses(r"a session is over: call reset\(options={'reset_mask': mask}\)"):
        env.step(item_N)
    mask_N = np.array([True] * 4 + [False])
    env.reset(options={"reset_mask": mask_N})
    with refuses("a session is over"):
        env.step(item_N)
    env.reset(options={"reset_mask": ~mask_N})
    env.step(item_N)


@pytest.mark.parametrize("mask", [[True], np.ones((N, 1), bool), np.ones(N), "all", 1])
def test_a_bad_mask_is_refused(refuses: Any, mask: Any) -> None:
    with refuses("reset_mask must be 5 booleans"):
        made(autoreset_mode="Disabled").reset(options={"reset_mask": mask})
    with refuses("reset_mask must be 5 booleans"):  # even where it would not be needed yet
        RecsysVectorEnv(N, **SMALL).reset(options={"reset_mask": mask})


@pytest.mark.parametrize("steps", [[1], np.ones(N), np.zeros(N, int), "all", 1])
def test_bad_first_session_steps_are_refused(refuses: Any, steps: Any) -> None:
    with refuses("first_session_steps must be 5 whole numbers of at least 1"):
        made().reset(options={"first_session_steps": steps})


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"reset_maks": np.ones(N, bool)}, "unknown option of reset 'reset_maks': .*'reset_mask'"),
        ({"colour": 1}, "choose from first_session_steps, reset_mask"),
        ([("reset_mask", None)], "options of reset must be a dictionary"),
    ],
    ids=["typo", "unknown", "no dictionary"],
)
def test_options_that_nobody_reads_are_refused(refuses: Any, options: Any, pattern: str) -> None:
    env, twin = made(), made()
    with refuses(pattern):
        env.reset(seed=3, options=options)
    # nothing has changed: the sessions go on
    np.testing.assert_array_equal(env.step(np.arange(N))[0], twin.step(np.arange(N))[0])
    env.reset(options={})


def test_a_list_of_seeds_is_refused(refuses: Any) -> None:
    with refuses("pass one seed"):
        made().reset(seed=[1, 2, 3, 4, 5])


def test_events_are_codes_of_event() -> None:
    *_, info = made().step(actions(1)[0])
    assert info["event"].dtype.kind == "i"
    assert {Event(code) for code in info["event"].tolist()} <= set(Event)


# --- checkpoints -----------------------------------------------------------------------------


def written(kept: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint as it comes back from a disk: JSON, and arrays of the same bits."""
    return {
        name: written(value)
        if isinstance(value, dict)
        else value.copy()
        if isinstance(value, np.ndarray)
        else json.loads(json.dumps(value))
        for name, value in kept.items()
    }


@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("mode", AUTORESET_MODES)
@pytest.mark.parametrize("keywords", [{}, {"num_shoppers": 3}, {"max_episode_steps": 4}])
def test_a_restored_environment_goes_on_to_the_bit(
    mode: str, observation: str, keywords: dict[str, Any]
) -> None:
    keywords = keywords | {"autoreset_mode": mode, "observation": observation}
    env = RecsysVectorEnv(N, **(LIVELY | keywords))
    env.reset(seed=3, options={"first_session_steps": np.arange(1, N + 1)})
    play(env, 4)
    kept = env.checkpoint()
    expected = play(env, 60, seed=1)  # the queue of 64 is drawn anew meanwhile
    for other in (made(**keywords), RecsysVectorEnv(N, **(LIVELY | keywords))):
        other.restore(written(kept))
        assert same(play(other, 60, seed=1), expected)
        # nothing that it holds was forgotten
        assert_alike(everything(other), everything(env))


def everything(env: RecsysVectorEnv) -> dict[str, Any]:
    """All that an environment holds, but for how its sessions began."""
    session = env._met()._replace(state=None, first_observation=None)
    return vars(env) | {"_session": session}


def assert_alike(one: Any, other: Any, where: str = "") -> None:
    """Everything within is the same, but for seeds that were given and spaces' own luck."""
    assert type(one) is type(other), where
    if isinstance(one, np.ndarray):
        assert np.array_equal(one, other), where
    elif isinstance(one, np.random.Generator):
        assert one.bit_generator.state == other.bit_generator.state, where
    elif isinstance(one, Arrivals):
        assert_alike(vars(one), vars(other), where)
    elif isinstance(one, dict):
        for name in (one.keys() | other.keys()) - {"_np_random_seed"}:
            assert_alike(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, tuple):
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_alike(*pair, f"{where}[{i}]")
    elif isinstance(one, (bool, int, float, str)):
        assert one == other, where


def test_a_checkpoint_does_not_change_with_what_follows() -> None:
    env = made()
    kept = env.checkpoint()
    before = written(kept)
    play(env, 30)
    assert_alike(kept, before)
    env.restore(kept)
    play(env, 30)
    assert_alike(kept, before)


@pytest.mark.parametrize(
    "keywords",
    [{"horizon": 7}, {"num_categories": 4}, {"interest_dim": 5}, {"observation": "behaviour"}],
)
def test_a_checkpoint_of_another_shop_is_refused(keywords: dict[str, Any]) -> None:
    kept = made(**keywords).checkpoint()
    with pytest.raises(UsageError, match="not of such an environment"):
        made().restore(kept)


def test_a_checkpoint_that_does_not_fit_is_refused() -> None:
    env = made()
    for kept in (made(num_envs=64).checkpoint(), {}, env.checkpoint() | {"generator": {}}):
        with pytest.raises(UsageError, match="not of such an environment"):
            env.restore(kept)
        with pytest.raises(UsageError, match="call reset"):
            env.step(actions(1)[0])
    with pytest.raises(UsageError, match="call reset"):
        RecsysVectorEnv(N, **LIVELY).checkpoint()
