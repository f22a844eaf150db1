"""The single environment is a Gymnasium environment, and answers nonsense with one line."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env

import recenv
from recenv.dynamics import utilities
from recenv.env import RecsysEnv
from recenv.errors import MissingExtra, unknown
from recenv.scenarios import SCENARIOS
from recenv.shop import OBSERVATIONS

SMALL: dict[str, Any] = {"num_items": 12, "num_categories": 3, "interest_dim": 4, "horizon": 6}


def fresh_python(code: str) -> str:
    """What a new interpreter prints."""
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def play(env: gym.Env[Any, Any], steps: int, seed: int = 0) -> list[Any]:
    """All that is seen on so many random steps."""
    rng, told = np.random.default_rng(seed), []
    for _ in range(steps):
        seen, reward, terminated, truncated, info = env.step(int(rng.integers(12)))
        told += [seen, reward, info["event"], info["shopper_id"]]
        if terminated or truncated:
            told += list(env.reset()[0])
    return told


def same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(map(np.array_equal, one, other))


# --- the interface ---------------------------------------------------------------------------


@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_both_checkers_pass_without_a_warning(scenario: str, observation: str) -> None:
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make("Recsys-v0", scenario=scenario, observation=observation).unwrapped
        check_env(env, skip_render_check=True)  # test_render.py renders
        sb3.check_env(env)


@pytest.mark.parametrize(
    "keywords",
    [
        {"num_items": 5, "num_shoppers": 1000},
        {"num_items": 1},
        {"horizon": 1},
        {"interest_dim": 1, "num_categories": 1},
        {"price_sensitivity": 0.0},
        {"price_sensitivity": -0.5},
        {"trust_memory": 1.0, "satiation_decay": 1.0},
        {"interest_weight": 0.0},
        {"reveal": True},
        {"scenario": None, "num_shoppers": None, "horizon": None},
        # numpy's own scalars, as a sweep over np.linspace would pass them
        {"trust_weight": np.float64(2), "drift_scale": np.float64(0.1), "horizon": np.int64(4)},
        {"price_sensitivity": np.float64(0.4), "difficulty": np.float64(1)},
        {"interest_weight": np.float64(2), "satiation_gain": np.float64(1)},
    ],
    ids=str,
)
def test_every_corner_of_the_keywords_conforms(keywords: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for observation in OBSERVATIONS:
            env = gym.make("Recsys-v0", observation=observation, **keywords).unwrapped
            check_env(env, skip_render_check=True)
            env.action_space.seed(0)
            for _ in range(2):
                over = False
                seen, _ = env.reset(seed=0)
                while not over:
                    assert seen in env.observation_space
                    seen, _, over, _, _ = env.step(int(env.action_space.sample()))
                assert seen in env.observation_space


def test_the_types_are_those_that_gymnasium_asks_for() -> None:
    env = gym.make("Recsys-v0", scenario="churn", **SMALL).unwrapped
    seen, info = env.reset(seed=0)
    assert seen.dtype == np.float32
    seen, reward, terminated, truncated, info = env.step(np.int64(3))
    assert [type(x) for x in (reward, terminated, truncated)] == [float, bool, bool]
    assert [type(x) for x in (info["shopper_id"], info["event"])] == [int, int]
    assert str(info["reward_terms"]["leaving"]) == "0.0"  # and not "-0.0"


def test_it_can_be_made_by_name_in_a_fresh_interpreter() -> None:
    code = "import gymnasium as gym; print(gym.make('recenv:Recsys-v0').reset(seed=0)[1])"
    assert fresh_python(code) == "{'shopper_id': 0}"


def test_importing_it_imports_nothing_heavy_and_registers_once() -> None:
    code = """
import sys, warnings
warnings.simplefilter("error")
import recenv
recenv.register()
import recenv.env, recenv.vector_env
recenv.env.RecsysEnv().reset(seed=0)
heavy = ("torch", "stable_baselines3", "hydra", "omegaconf", "matplotlib", "pandas", "scipy")
print([name for name in heavy if name in sys.modules])
"""
    assert fresh_python(code) == "[]"


def test_it_is_the_same_in_every_process() -> None:
    code = f"""
import numpy as np, recenv, zlib
from recenv.vector_env import RecsysVectorEnv
env = RecsysVectorEnv(7, scenario="full", churn=True, **{SMALL!r})
env.reset(seed=5)
told = [env.step(np.arange(t, t + 7) % 12)[0] for t in range(20)]
print(zlib.crc32(np.stack(told).tobytes()))
"""
    assert fresh_python(code) == fresh_python(code)


def test_it_never_touches_the_global_generators() -> None:
    import random

    np.random.seed(3)  # noqa: NPY002
    before, plain = np.random.get_state(), random.getstate()  # noqa: NPY002
    for env in (RecsysEnv(**SMALL, scenario="full"), RecsysEnv(**SMALL, num_shoppers=3)):
        env.reset()
        play(env, 30)
    vector = gym.make_vec("Recsys-v0", 3, **SMALL, world_seed=1234)
    vector.reset()
    vector.step(vector.action_space.sample())
    after = np.random.get_state()  # noqa: NPY002
    assert same(list(before), list(after))
    assert random.getstate() == plain


@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_made_in_the_middle_of_a_session_goes_on_alike(clone: Any, observation: str) -> None:
    env = RecsysEnv(**SMALL, scenario="full", churn=True, observation=observation)
    env.reset(seed=4)
    play(env, 15)
    other = clone(env)
    # beyond the block of newcomers that was drawn in advance
    assert same(play(env, 600, seed=1), play(other, 600, seed=1))


def test_its_spec_survives_json() -> None:
    keywords = {**SMALL, "scenario": "trust", "num_shoppers": 7, "drift_scale": 0.1, "churn": True}
    env = gym.make("Recsys-v0", **keywords)
    assert env.spec is not None
    spec = EnvSpec.from_json(env.spec.to_json())
    again = gym.make(spec)
    env.reset(seed=8)
    again.reset(seed=8)
    assert spec.kwargs == keywords
    assert same(play(env, 40), play(again, 40))


def test_a_time_limit_truncates() -> None:
    env = gym.make("Recsys-v0", max_episode_steps=4, **SMALL)
    env.reset(seed=0)
    ends = [env.step(0)[2:4] for _ in range(4)]
    assert ends == [(False, False)] * 3 + [(False, True)]


def test_the_horizon_terminates_and_is_no_time_limit() -> None:
    env = gym.make("Recsys-v0", **SMALL)
    assert env.spec is not None
    assert env.spec.max_episode_steps is None
    env.reset(seed=0)
    ends = [env.step(0)[2:4] for _ in range(6)]
    assert ends == [(False, False)] * 5 + [(True, False)]


def test_its_wrappers_run() -> None:
    env = gym.make("Recsys-v0", **SMALL)
    env = gym.wrappers.NormalizeObservation(gym.wrappers.RecordEpisodeStatistics(env))
    env.reset(seed=0)
    for _ in range(6):
        *_, info = env.step(0)
    assert info["episode"]["l"] == 6


def test_a_seed_repeats_and_its_absence_goes_on() -> None:
    env = RecsysEnv(**SMALL)
    first, _ = env.reset(seed=1)
    second, info = env.reset()
    assert info["shopper_id"] == 1
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(env.reset(seed=1)[0], first)
    np.testing.assert_array_equal(env.reset()[0], second)
    assert not np.array_equal(env.reset(seed=2)[0], first)


def test_reveal_tells_the_probability_and_what_the_best_item_would_have_gained() -> None:
    env = RecsysEnv(**SMALL, reveal=True)
    env.reset(seed=2)
    for item in range(6):
        items = env.shop.items(np, env.shop.tables)
        utility = utilities(np, env.shop.dynamics, env.state, env.traits, items)
        probability = 1 / (1 + np.exp(-utility))
        *_, info = env.step(item)
        assert info["purchase_probability"] == pytest.approx(probability[item], abs=1e-6)
        # in expected reward: +1 with p and -1 with 1 - p
        gap = 2 * (probability.max() - probability[item])
        assert info["regret"] == pytest.approx(gap, abs=1e-6)
        assert info["regret"] >= 0


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_nothing_that_is_returned_can_be_used_to_change_the_session(observation: str) -> None:
    keywords = SMALL | {"scenario": "full", "observation": observation}
    quiet, spoiled = RecsysEnv(**keywords), RecsysEnv(**keywords)
    quiet.reset(seed=6)
    seen, info = spoiled.reset(seed=6)
    for item in range(6):
        seen[:] = np.nan
        info.clear()
        before = quiet.step(item)
        seen, *rest, info = spoiled.step(item)
        np.testing.assert_array_equal(before[0], seen)
        assert list(before[1:4]) == rest
        info["reward_terms"]["purchase"] = np.nan


# --- nonsense --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "pattern"),
    [
        ({"scenario": "trst"}, "unknown scenario 'trst': did you mean 'trust'"),
        ({"scenario": 3}, "unknown scenario 3: choose from churn, drift, full"),
        ({"scenario": ["full"]}, "unknown scenario"),
        ({"observation": "latnt"}, "did you mean 'latent'"),
        ({"autoreset_mode": "NextSteps"}, "did you mean 'NextStep'"),
        ({"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}, "unknown autoreset_mode"),
        ({"render_mode": "rgb_aray"}, "unknown render_mode 'rgb_aray': did you mean 'rgb_array'"),
        ({"world": "sinthetic"}, "unknown world 'sinthetic': did you mean 'synthetic'"),
        ({"world": "no/such/world.npz"}, "there is no world file no/such/world.npz"),
        ({"world": 3}, "world must be a name or a path, got 3"),
        ({"num_item": 5}, "unknown option of Recsys-v0 'num_item': did you mean 'num_items'"),
        ({"seed": 5}, "unknown option of Recsys-v0 'seed'"),
        ({"num_items": 0}, r"num_items must lie in 1\.\.10000000, got 0"),
        ({"num_items": -3}, "num_items must lie in"),
        ({"num_items": 2.0}, "num_items must be a whole number, got 2.0"),
        ({"num_items": True}, "num_items must be a whole number, got True"),
        ({"num_items": "5"}, "num_items must be a whole number, got '5'"),
        ({"num_items": float("nan")}, "num_items must be a whole number, got nan"),
        ({"num_items": np.zeros((3, 3))}, "num_items must be a whole number, got array"),
        ({"horizon": 0}, "horizon must lie in"),
        ({"num_shoppers": 0}, "num_shoppers must lie in"),
        ({"history": 0}, "history must lie in"),
        ({"interest_dim": 0}, "interest_dim must lie in"),
        ({"num_categories": 0}, "num_categories must lie in"),
        ({"world_seed": -1}, "world_seed must lie in"),
        ({"world_seed": 0.5}, "world_seed must be a whole number"),
        ({"num_items": 5, "num_categories": 6}, "num_categories=6 needs at least as many items"),
        ({"feature_signal": 1.1}, r"feature_signal must lie in 0\.\.1, got 1.1"),
        ({"temptation": float("inf")}, "temptation must be a number, got inf"),
        ({"trust_weight": -1.0}, "trust_weight must lie in"),
        ({"trust_weight": "high"}, "trust_weight must be a number, got 'high'"),
        ({"interest_weight": "high"}, "interest_weight must be a number, got 'high'"),
        ({"interest_weight": -1.0}, "interest_weight must lie in"),
        ({"drift_scale": float("nan")}, "drift_scale must be a number, got nan"),
        ({"refusal_push": 1.0}, r"refusal_push must lie in 0\.\.0.99"),
        ({"trust_memory": 1.5}, "trust_memory must lie in"),
        ({"churn": 1}, "churn must be true or false, got 1"),
        ({"reveal": "yes"}, "reveal must be true or false, got 'yes'"),
        ({"cart_offset": 3.0}, "the funnel must be nested: cart_offset <= view_offset"),
        ({"view_offset": 5.0}, "the funnel must be nested"),
        ({"dismiss_offset": 1.0}, "the funnel must be nested"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_keyword_is_refused_in_one_line(
    refuses: Any, keywords: dict[str, Any], pattern: str
) -> None:
    with refuses(pattern):
        RecsysEnv(**keywords)
    with warnings.catch_warnings(), refuses(pattern):
        warnings.simplefilter("ignore")  # Gymnasium's own, of a render_mode that is not declared
        gym.make("Recsys-v0", **keywords)


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"first_session_steps": 3}, "reset of this environment has no options, got 'first_sessi"),
        ("hard", "options of reset must be a dictionary, got 'hard'"),
    ],
    ids=["unknown", "no dictionary"],
)
def test_options_that_nobody_reads_are_refused(refuses: Any, options: Any, pattern: str) -> None:
    env = RecsysEnv(**SMALL)
    with refuses(pattern):
        env.reset(options=options)
    env.reset(seed=0, options={})
    env.reset(seed=0, options=None)


@pytest.mark.parametrize("action", [12, -1, np.int64(99), 10**30])
def test_an_action_outside_the_catalogue_is_refused(refuses: Any, action: Any) -> None:
    env = RecsysEnv(**SMALL)
    env.reset(seed=0)
    with refuses(rf"action {action} is not in the catalogue 0\.\.11"):
        env.step(action)


@pytest.mark.parametrize(
    "action",
    [1.0, np.float32(1), "1", None, True, np.True_, [1], np.array([1, 2]), np.zeros((40, 40))],
    ids=lambda value: type(value).__name__,
)
def test_an_action_that_is_no_index_is_refused(refuses: Any, action: Any) -> None:
    env = RecsysEnv(**SMALL)
    env.reset(seed=0)
    with refuses("an action is the index of an item, a whole number, got "):
        env.step(action)


@pytest.mark.parametrize("action", [3, np.int32(3), np.uint64(3), np.array(3)])
def test_a_whole_number_of_any_type_is_an_action(action: Any) -> None:
    env = RecsysEnv(**SMALL, observation="behaviour")
    env.reset(seed=0)
    seen, *_ = env.step(action)
    assert seen.dtype == np.float32
    items = env.shop.observer.unflatten(seen)["items"]
    np.testing.assert_array_equal(items[0], env.shop.catalogue.features_IF[3])


def test_a_refused_action_changes_nothing(refuses: Any) -> None:
    env, other = RecsysEnv(**SMALL), RecsysEnv(**SMALL)
    env.reset(seed=0)
    other.reset(seed=0)
    with refuses("not in the catalogue"):
        env.step(99)
    assert same(play(env, 20), play(other, 20))


def test_nobody_can_be_served_before_the_first_reset(refuses: Any) -> None:
    env = RecsysEnv(**SMALL, render_mode="ansi")
    for act in (lambda: env.step(0), lambda: env.state, lambda: env.traits, env.render):
        with refuses(r"nobody is in the shop yet: call reset\(\) first"):
            act()


def test_nobody_can_be_served_after_the_end(refuses: Any) -> None:
    env = RecsysEnv(**SMALL)
    env.reset(seed=0)
    for _ in range(6):
        env.step(0)
    with refuses(r"the session is over: call reset\(\)"):
        env.step(0)
    env.reset()
    env.step(0)


def test_rendering_needs_a_render_mode(refuses: Any) -> None:
    env = RecsysEnv(**SMALL)
    env.reset(seed=0)
    with refuses("pass render_mode="):
        env.render()


def test_a_missing_extra_names_its_command() -> None:
    code = """
import sys
sys.modules["torch"] = None  # as if it were not installed
import recenv
try:
    import recenv.torch_env
except recenv.MissingExtra as error:
    print(error)
    assert isinstance(error, ImportError) and isinstance(error, recenv.UsageError)
"""
    assert fresh_python(code) == (
        "recenv.torch_env needs torch, which is not installed: "
        'install it with pip install "recenv[agents]"'
    )


@pytest.mark.parametrize(
    "error", [MissingExtra("a", "b", "c"), unknown("kind", "x", ["y"])], ids=["extra", "unknown"]
)
def test_errors_pass_between_processes(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)


def test_an_error_stays_on_one_line_whatever_it_quotes() -> None:
    assert str(recenv.UsageError("got [[1]\n    [2]]")) == "got [[1] [2]]"
