"""The shop in the shape of stable-baselines3's VecEnv, and its algorithms on it."""

from __future__ import annotations

import tempfile

import gymnasium as gym
import numpy as np
import pytest
import torch
from agent_cases import ON_SB3, make_agent, make_env, one_line
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecMonitor

from agents.sb3_bridge import SB3Bridge
from recenv.errors import UsageError
from recenv.vector_env import RecsysVectorEnv

FIRST_N = np.array([1, 2, 3, 8, 8, 8, 5, 4])


@pytest.mark.parametrize(
    ("scenario", "first_N", "max_steps"),
    [("full", None, None), ("churn", FIRST_N, None), ("static", FIRST_N, None), ("churn", None, 3)],
)
def test_tells_what_the_environment_tells(scenario, first_N, max_steps):
    """Step for step beside the environment itself, with the sessions counted by hand."""
    shop = {"scenario": scenario, "churn_base": -2.0, "max_episode_steps": max_steps}
    env, twin = make_env(8, **shop), make_env(8, **shop)
    bridge = SB3Bridge(env, seed=3, reward_scale=0.25, first_session_steps=first_N)
    options = {} if first_N is None else {"first_session_steps": first_N}
    expected, _ = twin.reset(seed=3, options=options)
    np.testing.assert_array_equal(bridge.reset(), expected)
    rng = np.random.default_rng(0)
    rewards: list[list[float]] = [[] for _ in range(8)]
    sessions_N = np.zeros(8, dtype=int)
    cut = 0
    for _ in range(30):
        item_N = rng.integers(12, size=8)
        observation, reward_N, done_N, infos = bridge.step(item_N)
        expected, raw_N, terminated_N, truncated_N, info = twin.step(item_N)
        np.testing.assert_array_equal(observation, expected)
        np.testing.assert_allclose(reward_N, 0.25 * raw_N)
        np.testing.assert_array_equal(done_N, terminated_N | truncated_N)
        for n in range(8):
            rewards[n].append(float(raw_N[n]))
            if not done_N[n]:
                assert infos[n] == {}
                continue
            final = infos[n]
            np.testing.assert_array_equal(final["terminal_observation"], info["final_obs"][n])
            assert final["TimeLimit.truncated"] is bool(truncated_N[n])
            assert final["episode"]["r"] == sum(rewards[n])
            assert final["episode"]["l"] == len(rewards[n])
            assert final["episode"]["t"] >= 0
            if truncated_N[n]:
                cut += 1
                first_cut = first_N is not None and sessions_N[n] == 0
                assert len(rewards[n]) == (FIRST_N[n] if first_cut else max_steps)
            else:  # she left, or came to the horizon: T recommendations in all
                assert (sum(rewards[n]) + 8) % 2 == 0
                assert sum(rewards[n]) >= -8
            rewards[n].clear()
            sessions_N[n] += 1
    assert sessions_N.min() >= 3
    assert (cut > 0) == (first_N is not None or max_steps is not None)


def test_sessions_cut_at_random_are_only_the_first():
    bridge = SB3Bridge(make_env(8, scenario="static"), 3, first_session_steps=FIRST_N)
    bridge.reset()
    lengths: list[list[tuple[int, bool]]] = [[] for _ in range(8)]
    for _ in range(40):
        infos = bridge.step(np.zeros(8, dtype=np.int64))[-1]
        for n, info in enumerate(infos):
            if info:
                lengths[n].append((info["episode"]["l"], info["TimeLimit.truncated"]))
    for n in range(8):
        assert lengths[n][0] == (FIRST_N[n], FIRST_N[n] < 8)
        assert set(lengths[n][1:]) == {(8, False)}
    bridge.reset()  # a second reset staggers no more
    assert not any(bridge.step(np.zeros(8, dtype=np.int64))[2].any() for _ in range(7))


def test_speaks_of_its_shop():
    env = make_env(4)
    bridge = SB3Bridge(env)
    assert bridge.num_envs == 4
    assert bridge.observation_space == env.single_observation_space
    assert bridge.action_space == env.single_action_space
    assert bridge.has_attr("shop")
    assert not bridge.has_attr("warehouse")
    assert bridge.get_attr("shop") == [env.shop] * 4
    assert bridge.get_attr("shop", [0, 2]) == [env.shop] * 2
    assert bridge.get_attr("render_mode") == [None] * 4
    with pytest.raises(AttributeError):
        bridge.get_attr("warehouse")
    siblings = bridge.env_method("sibling", 3, indices=1, scenario="trust")
    assert [(sibling.num_envs, sibling.shop.scenario) for sibling in siblings] == [(3, "trust")]
    assert bridge.env_is_wrapped(gym.Wrapper) == [False] * 4
    assert list(bridge.get_images()) == [None] * 4
    with pytest.raises(UsageError, match="make_vec") as error:
        bridge.set_attr("num_items", 3)
    one_line(error.value)
    bridge.close()


@pytest.mark.parametrize("mode", ["NextStep", "Disabled"])
def test_refuses_other_autoreset_modes(mode):
    with pytest.raises(UsageError, match=r'autoreset_mode="SameStep"') as error:
        SB3Bridge(make_env(4, autoreset_mode=mode))
    one_line(error.value)


def test_seed_of_the_shoppers():
    def first(seed: int | None, algorithm: int | None) -> np.ndarray:
        bridge = SB3Bridge(make_env(4), seed)
        bridge.seed(algorithm)
        return bridge.reset()

    np.testing.assert_array_equal(first(3, 5), make_env(4).reset(seed=3)[0])
    np.testing.assert_array_equal(first(None, 5), make_env(4).reset(seed=5)[0])
    assert (first(None, 5) != first(None, 6)).any()
    bridge = SB3Bridge(make_env(4), 3)
    assert (bridge.reset() != bridge.reset()).any()  # the next shoppers, not the same again


PLAIN = {
    PPO: {"n_steps": 16, "batch_size": 32, "n_epochs": 2},
    DQN: {"learning_starts": 50, "batch_size": 16, "buffer_size": 500, "train_freq": 2},
}


@pytest.mark.parametrize("algorithm", PLAIN)
@pytest.mark.parametrize("scenario", ["full", "churn"])
def test_plain_algorithms_run_on_it(algorithm, scenario):
    def learn(seed: int) -> dict[str, torch.Tensor]:
        bridge = SB3Bridge(make_env(8, scenario=scenario, max_episode_steps=5))
        model = algorithm("MlpPolicy", VecMonitor(bridge), seed=seed, **PLAIN[algorithm])
        model.set_logger(Logger(None, []))
        model.learn(400)
        assert len(model.ep_info_buffer) > 0
        assert {episode["l"] for episode in model.ep_info_buffer} <= {1, 2, 3, 4, 5}
        mean, _ = evaluate_policy(model, VecMonitor(bridge), n_eval_episodes=16)
        assert -8 <= mean <= 8
        return model.policy.state_dict()

    one, again, other = learn(0), learn(0), learn(1)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any((one[name] != other[name]).any() for name in one)


@pytest.mark.parametrize("cls", ON_SB3, ids=lambda cls: cls.name)
def test_settings_reach_the_algorithm(cls):
    agent = make_agent(cls, net_arch=[7, 5], reward_scale=0.5, gamma=0.5, learning_rate=0.125)
    model = agent.model
    assert model.gamma == 0.5
    assert model.learning_rate == 0.125
    assert model.seed == agent.seed
    assert model.n_envs == 32
    assert model.get_env().reward_scale == 0.5
    layers = [layer for layer in model.policy.modules() if isinstance(layer, torch.nn.Linear)]
    assert [layer.out_features for layer in layers[:2]] == [7, 5]
    assert model.policy.optimizer.defaults["fused"]
    assert agent.settings()["net_arch"] == [7, 5]


@pytest.mark.parametrize("cls", ON_SB3, ids=lambda cls: cls.name)
def test_learns_with_as_many_shoppers_as_it_is_told(cls):
    """Loaded into an environment of another size, it keeps learning as it did."""
    agent = make_agent(cls, make_env(5))
    assert agent.model.n_envs == 32
    agent.learn(320)
    assert agent.predict(agent.env.reset(seed=0)[0])[0].shape == (5,)


@pytest.mark.parametrize("cls", ON_SB3, ids=lambda cls: cls.name)
def test_learning_goes_on_in_another_shop(cls):
    """The policy comes along; its next experience is of the new shop."""
    agent = make_agent(cls, make_env(32, scenario="static"))
    agent.learn(640)
    observation = make_env(32).reset(seed=0)[0]
    before = agent.score(observation)
    elsewhere = make_env(32, scenario="churn")
    agent.bind(elsewhere)
    np.testing.assert_array_equal(agent.score(observation), before)
    steps = counted(elsewhere)
    agent.learn(640, lambda timesteps: False)
    assert steps == [32]
    # one batch is too little to learn from
    np.testing.assert_array_equal(agent.score(observation), before)


def counted(env: RecsysVectorEnv) -> list[int]:
    """The sizes of all batches that ``env`` is asked to step, as they come."""
    sizes: list[int] = []
    step = env.step
    env.step = lambda item_N: sizes.append(len(item_N)) or step(item_N)
    return sizes


@pytest.mark.parametrize("cls", ON_SB3, ids=lambda cls: cls.name)
def test_checks_of_distributions_are_back_after_learning(cls, monkeypatch):
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)
    agent = make_agent(cls)
    checks: list[bool] = []

    def watch(timesteps: int) -> bool:
        checks.append(torch.distributions.Distribution._validate_args)
        if timesteps > 64:
            raise ZeroDivisionError
        return True

    with pytest.raises(ZeroDivisionError):
        agent.learn(640, watch)
    assert set(checks) == {False}
    assert torch.distributions.Distribution._validate_args


@pytest.mark.parametrize("cls", ON_SB3, ids=lambda cls: cls.name)
def test_learning_leaves_no_files(cls, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    make_agent(cls).learn(512)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cls", ON_SB3, ids=lambda cls: cls.name)
def test_learning_is_logged_in_the_words_of_the_library(cls):
    agent = make_agent(cls)
    agent.logger = Logger(None, [])
    values: dict[str, float] = {}
    agent.learn(1024, lambda timesteps: values.update(agent.logger.name_to_value) or True)
    assert "rollout/ep_rew_mean" in values or "train/loss" in values
