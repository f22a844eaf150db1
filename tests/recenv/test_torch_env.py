"""The torch environment: tensors in, tensors out, the same refusals (its parity: test_parity)."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch._inductor import config as inductor  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from recenv.errors import UsageError  # noqa: E402
from recenv.shop import OBSERVATIONS  # noqa: E402
from recenv.torch_env import SURE_STEPS, RecsysGateTorchEnv, RecsysTorchEnv  # noqa: E402
from recenv.vector_env import RecsysVectorEnv  # noqa: E402

N = 5
LIVELY: dict[str, Any] = {
    "num_items": 12,
    "num_categories": 3,
    "interest_dim": 4,
    "horizon": 6,
    "scenario": "full",
    "churn": True,
    "churn_base": -1.5,
}


def made(**keywords: Any) -> RecsysTorchEnv:
    env = RecsysTorchEnv(N, **(LIVELY | keywords))
    env.reset(seed=3)
    return env


def play(env: RecsysTorchEnv, steps: int, actions: int = 12) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    told = []
    for _ in range(steps):
        item_N = torch.randint(actions, (N,), generator=generator)
        *seen, info = env.step(item_N)
        told += [*seen, *info.values()]
    return told


def same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_is_a_tensor_of_its_type(observation: str, dtype: Any) -> None:
    env = made(observation=observation, dtype=dtype, reveal=True)
    seen, reward_N, terminated_N, truncated_N, info = env.step(torch.zeros(N, dtype=torch.int32))
    assert seen.shape == env.observation_space.shape
    assert seen.dtype == reward_N.dtype == info["regret"].dtype == dtype
    assert terminated_N.dtype == truncated_N.dtype == torch.bool
    assert all(value.shape[0] == N for value in info.values())
    for leaf in (*env.state, *env.traits):
        assert leaf.dtype == dtype


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_made_in_the_middle_goes_on_alike(clone: Any) -> None:
    env = made()
    play(env, 15)
    other = clone(env)
    assert same(play(env, 100), play(other, 100))


def test_a_seed_repeats() -> None:
    env = made()
    first = play(env, 50)
    env.reset()
    env.reset(seed=3)
    assert same(first, play(env, 50))
    env.reset(seed=4)
    assert not same(first, play(env, 50))


def test_nothing_that_is_returned_can_be_used_to_change_the_sessions() -> None:
    expected, env = play(made(), 40), made()
    generator = torch.Generator().manual_seed(0)
    told = []
    for _ in range(40):
        *seen, info = env.step(torch.randint(12, (N,), generator=generator))
        told += [leaf.clone() for leaf in (*seen, *info.values())]
        for leaf in (*seen, *info.values()):
            leaf.zero_()
    assert same(told, expected)


def test_a_bad_dtype_is_refused(refuses: Any) -> None:
    with refuses("dtype must be torch.float32 or torch.float64, got torch.int64"):
        made(dtype=torch.int64)


@pytest.mark.parametrize("num_envs", [0, 2.0, True, None])
def test_a_bad_number_of_slots_is_refused(refuses: Any, num_envs: Any) -> None:
    with refuses("num_envs must "):
        RecsysTorchEnv(num_envs)


@pytest.mark.parametrize("mode", ["NextStep", "Disabled"])
def test_it_restarts_sessions_by_itself(refuses: Any, mode: str) -> None:
    with refuses('restarts sessions by itself: autoreset_mode="SameStep"'):
        made(autoreset_mode=mode)


def test_nobody_can_be_served_before_the_first_reset(refuses: Any) -> None:
    env = RecsysTorchEnv(N, **LIVELY)
    for act in (
        lambda: env.step(torch.zeros(N, dtype=torch.int64)),
        lambda: env.state,
        lambda: env.traits,
        lambda: env.shopper_id_N,
    ):
        with refuses(r"nobody is in the shop yet: call reset\(\) first"):
            act()


@pytest.mark.parametrize(
    ("item_N", "pattern"),
    [
        (torch.zeros(N), "actions must be a tensor of whole numbers, got torch.float32"),
        (torch.zeros(N, dtype=torch.bool), "actions must be a tensor of whole numbers"),
        ([0] * N, "actions must be a tensor of whole numbers, got list"),
        (torch.zeros(N + 1, dtype=torch.int64), r"must be of shape \(5,\), got \(6,\)"),
        (torch.zeros((), dtype=torch.int64), r"must be of shape \(5,\), got \(\)"),
        (torch.full((N,), 12), r"an action is not in the catalogue 0\.\.11"),
        (torch.full((N,), -1), "an action is not in the catalogue"),
    ],
    ids=str,
)
def test_bad_actions_are_refused(refuses: Any, item_N: Any, pattern: str) -> None:
    with refuses(pattern):
        made().step(item_N)


def test_sessions_are_cut_like_those_of_the_vector_env() -> None:
    keywords = LIVELY | {"max_episode_steps": 4}
    vector, tensors = RecsysVectorEnv(N, **keywords), RecsysTorchEnv(N, **keywords)
    options = {"first_session_steps": np.array([1, 2, 3, 4, 6])}
    vector.reset(seed=3, options=options)
    tensors.reset(seed=3, options=options)
    cut, rng = 0, np.random.default_rng(0)
    for _ in range(60):
        item_N = rng.integers(12, size=N)
        seen, reward_N, terminated_N, truncated_N, info = vector.step(item_N)
        other, *rest, _ = tensors.step(torch.as_tensor(item_N))
        np.testing.assert_allclose(other, seen, rtol=1e-4, atol=1e-5)
        for ours, theirs in zip((reward_N, terminated_N, truncated_N), rest, strict=True):
            np.testing.assert_array_equal(theirs, ours)
        for slot in np.flatnonzero(truncated_N):
            np.testing.assert_allclose(
                tensors.final_observation()[slot], info["final_obs"][slot], rtol=1e-4, atol=1e-5
            )
        cut += int(truncated_N.sum())
    assert cut > 20


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_it_goes_on_from_a_checkpoint_to_the_bit(observation: str) -> None:
    env = made(observation=observation)
    play(env, 37)
    kept = copy.deepcopy(env.checkpoint())
    expected = play(env, 120)
    other = RecsysTorchEnv(N, **(LIVELY | {"observation": observation}))
    other.restore(kept)
    assert same(play(other, 120), expected)
    with pytest.raises(UsageError, match="this checkpoint is not of such an environment"):
        RecsysTorchEnv(N + 60, **LIVELY).restore(kept)


def cut(tree: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """The dictionary that holds what lies at the end of a path, and its name there."""
    *way, name = path.split(".")
    for step in way:
        tree = tree[step]
    return tree, name


@pytest.mark.parametrize(
    ("path", "damage", "told"),
    [
        ("slots.state.remaining", lambda left: 3, "of another size"),
        ("slots.state.remaining", lambda left: left + 10**6, "remaining does not lie in 1..6"),
        ("slots.state.remaining", lambda left: left.to(torch.float64), "of torch.float64"),
        ("slots.state.interest", lambda u: u * torch.nan, "interest holds what is no number"),
        ("slots.memory.items", lambda item: item + 10**8, "items does not lie in -1..11"),
        ("slots.memory.events", lambda event: event - 9, "events does not lie in -1.."),
        ("slots.arrival", lambda arrival: arrival + 10**6, "arrival does not lie in"),
        ("queue.candidate", lambda item: item + 12, "candidate does not lie in 0..11"),
        ("queue.luck.1", lambda row: row + 2000, "luck does not lie in 0..1023"),
        ("queue", lambda queue: {}, "queue has other parts"),
        ("next", lambda arrival: arrival + 10**6, "next does not lie in"),
        ("next", lambda arrival: arrival[None], "next is of another size"),
        ("drawn", lambda drawn: "many", "drawn must be of type int"),
        ("arrivals.next", lambda place: 10**9, "of 64 who wait"),
        ("arrivals.waiting.threshold", lambda word: word * 1.0, "threshold is of torch.float64"),
        ("arrivals.waiting.shopper_id", lambda who: who[:1], "shopper_id is of another size"),
        ("arrivals.waiting.candidate", lambda item: item - 10**8, "waiting does not lie in 0..11"),
        ("arrivals.waiting.state", lambda state: None, "state has other parts"),
        ("generator.uinteger", lambda word: -1, "not of such an environment"),
    ],
)
def test_a_damaged_checkpoint_is_refused(path: str, damage: Any, told: str) -> None:
    keywords = LIVELY | {"observation": "behaviour", "history": 3}
    env = RecsysGateTorchEnv(N, **keywords)
    env.reset(seed=3)
    env.step(torch.ones(N, dtype=torch.int64))
    kept = env.checkpoint()
    part, name = cut(kept, path)
    part[name] = damage(part[name])
    other = RecsysGateTorchEnv(N, **keywords)
    with pytest.raises(UsageError, match=told):
        other.restore(kept)
    with pytest.raises(UsageError, match="call reset"):
        other.step(torch.ones(N, dtype=torch.int64))


def test_nobody_else_writes_to_what_an_environment_holds() -> None:
    """Neither to actions that were taken, nor to a checkpoint on either side."""
    env, action_N = made(observation="behaviour"), torch.arange(N)
    env.step(action_N)
    seen, kept = env.final_observation(), env.checkpoint()
    action_N.fill_(7)
    assert torch.equal(env.final_observation(), seen)
    other = made(observation="behaviour")
    other.restore(kept)
    for leaf in (kept["slots"]["state"]["interest"], kept["queue"]["interest"], kept["next"]):
        leaf.zero_()
    assert same(play(env, 60), play(other, 60))


def test_it_may_be_filled_anywhere_and_goes_on_elsewhere() -> None:
    expected = play(made(), 60)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        env = made()
    assert same(play(env, 60), expected)
    env = made()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert same(play(env, 30), expected[: len(expected) // 2])


def test_what_is_on_the_device_stays_there() -> None:
    env = made()
    env.device = torch.device("meta")  # which numpy cannot read, no more than an accelerator
    assert env._tensor(torch.zeros(3, device="meta")).device.type == "meta"


def test_who_has_no_compiler_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    env = made(compile=True, num_items=7)
    nowhere = {"cpp.cxx": (None, "/nowhere/g++")}
    with inductor.patch(nowhere), pytest.raises(UsageError, match=r"C\+\+ compiler that works"):
        env.step(torch.zeros(N, dtype=torch.int64))


def test_who_has_no_place_for_the_compiler_is_told_so() -> None:
    code = (
        "import torch; from recenv.torch_env import RecsysTorchEnv; "
        "env = RecsysTorchEnv(4, compile=True); env.reset(seed=0); "
        "env.step(torch.zeros(4, dtype=torch.int64))"
    )
    words = os.environ | {"TORCHINDUCTOR_CACHE_DIR": f"{os.devnull}/cache"}
    done = subprocess.run([sys.executable, "-c", code], env=words, capture_output=True, text=True)
    assert "UsageError: compile=True needs a directory" in done.stderr.splitlines()[-1]
    assert "set TORCHINDUCTOR_CACHE_DIR" in done.stderr


@pytest.mark.slow
def test_what_kernels_read_is_not_frozen_into_them() -> None:
    with inductor.patch(freezing=True):
        theirs = play(made(compile=True), 20)
    for one, two in zip(play(made(), 20), theirs, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)


def test_the_device_is_the_one_that_was_asked_for() -> None:
    item_N = torch.zeros(N, dtype=torch.int64)
    with torch.device("meta"):  # where torch makes what nobody puts elsewhere
        elsewhere = made()
        *theirs, _ = elsewhere.step(item_N)
    *ours, _ = made().step(item_N)
    assert same(theirs, ours)


def test_shoppers_are_on_a_device_that_is_there_and_so_are_actions(refuses: Any) -> None:
    for device in ("cuda:99", "meta", "", 1.5):
        with refuses("is not on this machine: choose cpu"):
            made(device=device)
    env = made()
    env.reset(seed=0)
    with refuses("actions must be on cpu, got meta"):
        env.step(torch.zeros(N, dtype=torch.int64, device="meta"))


@pytest.mark.parametrize(
    ("horizon", "churn_base"), [(8, -2.5), (24, -0.5)], ids=["round", "past one who stays"]
)
def test_the_ring_of_newcomers_is_written_over_those_who_left_alone(
    horizon: int, churn_base: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, closed = 64, []
    close_ranks = RecsysTorchEnv._close_ranks

    def watched(env: RecsysTorchEnv, used: int) -> None:
        closed.append(used)
        close_ranks(env, used)

    monkeypatch.setattr(RecsysTorchEnv, "_close_ranks", watched)
    keywords = LIVELY | {"horizon": horizon, "churn_base": churn_base}
    vector, tensors = RecsysVectorEnv(n, **keywords), RecsysTorchEnv(n, **keywords)
    vector.reset(seed=4)
    tensors.reset(seed=4)
    size, rng, sessions = len(tensors._queue.shopper_id), np.random.default_rng(0), 0
    for _ in range(250):
        item_N = rng.integers(12, size=n)
        seen, _, over_N, _, info = vector.step(item_N)
        other, *_, told = tensors.step(torch.as_tensor(item_N))
        np.testing.assert_array_equal(told["event"], info.get("final_info", info)["event"])
        np.testing.assert_array_equal(tensors.shopper_id_N, vector.shopper_id_N)
        np.testing.assert_allclose(other, seen, rtol=1e-4, atol=2e-5)
        sessions += int(over_N.sum())
    assert sessions > 3 * size
    assert bool(closed) == (horizon == 24)


def test_no_step_waits_for_an_accelerator() -> None:
    """Nothing is read on the host but the count of newcomers, every fourth step at most and
    as it was a step ago."""
    env = made()
    item_N = torch.zeros(N, dtype=torch.int64)
    asked: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
                asked.append(t)
            return func(*args, **(kwargs or {}))

    env._far = True  # as on an accelerator
    env._open()
    counted = None
    with Watch():
        for t in range(100):
            before = env._next
            env.step(item_N)
            if asked and asked[-1] == t:
                assert counted is not before  # a step old: the device is done with it
            counted = before
    assert asked
    assert min(b - a for a, b in pairwise(dict.fromkeys(asked))) >= SURE_STEPS == 4


@pytest.mark.slow
def test_compiled_steps_are_the_same_steps() -> None:
    """Several shops at once: what is compiled for one must not serve the others."""
    remembering = {"observation": "behaviour", "history": 3, "num_items": 9}
    shops = [
        (RecsysTorchEnv, {}),
        (RecsysTorchEnv, {"world_seed": 1}),  # the same code, with other tables
        (RecsysTorchEnv, remembering),
        (RecsysGateTorchEnv, {"reveal": True}),
    ]
    pairs = [
        [kind(N, compile=compile, **(LIVELY | keywords)) for compile in (False, True)]
        for kind, keywords in shops
    ]
    for env in (env for pair in pairs for env in pair):
        env.reset(seed=3)
    generator = torch.Generator().manual_seed(0)
    for t in range(60):
        item_N2 = torch.randint(9, (N, 2), generator=generator)
        with torch.set_grad_enabled(t < 30):  # learners look on without gradients
            for plain, compiled in pairs:
                # a column of a table: its numbers lie apart
                action_N = (item_N2 % plain.shop.num_actions)[:, 0]
                *ours, info = plain.step(action_N)
                *theirs, told = compiled.step(action_N)
                ours += [*info.values(), plain.final_observation()]
                theirs += [*told.values(), compiled.final_observation()]
                for one, two in zip(ours, theirs, strict=True):
                    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
    clone = pickle.loads(pickle.dumps(compiled))  # it compiles anew
    assert same(play(clone, 3, actions=2), play(compiled, 3, actions=2))


def test_nobody_has_left_a_shop_that_was_just_filled(refuses: Any) -> None:
    env = made()
    play(env, 3)
    assert env.final_observation().shape == env.observation_space.shape
    env.reset()
    with refuses("nothing has ended yet"):
        env.final_observation()


def test_compile_is_a_switch(refuses: Any) -> None:
    with refuses("compile must be true or false, got 'fast'"):
        made(compile="fast")
