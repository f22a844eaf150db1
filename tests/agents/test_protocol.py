"""Every agent speaks bind / learn / predict / recommend / save / load."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from agent_cases import (
    AGENTS,
    AT_RANDOM,
    CONTEXT_FREE,
    LEARNERS,
    LINEAR,
    ON_SB3,
    ORACLES,
    SHOP,
    SMALL,
    greet,
    make_agent,
    make_env,
    one_line,
)
from safetensors.numpy import load_file

from agents.bandits.context_free import UCB1, BetaTS, EpsilonGreedy
from agents.bandits.ensemble_ts import EnsembleTS
from agents.bandits.lin_ts import LinTS
from agents.bandits.linucb import LinUCB
from agents.bandits.logistic_ts import LogisticTS
from agents.bandits.neural_linear_ts import NeuralLinearTS
from agents.base import Agent, OnlineAgent, SessionMeter
from agents.baselines.item_content import ItemContent
from agents.baselines.mf import MF
from agents.baselines.user_cf import UserCF
from agents.dqn import DQNAgent
from agents.planning import PlanningOracle
from agents.ppo import PPOAgent
from agents.references import EpsilonOracle, IndexPolicy, Popularity, Random, Rotation
from agents.rollout import play
from agents.scorer import Scorer
from recenv.errors import UsageError

SHOPS = {
    "full": {"scenario": "full"},
    "churn": {"scenario": "churn"},
    "behaviour": {"scenario": "full", "observation": "behaviour", "history": 3},
    "five items": {"num_items": 5, "num_categories": None},
    "clientele": {"num_shoppers": 50},
}
every_agent = pytest.mark.parametrize("cls", AGENTS, ids=lambda cls: cls.name)
every_learner = pytest.mark.parametrize("cls", LEARNERS, ids=lambda cls: cls.name)


@pytest.mark.parametrize("shop", SHOPS.values(), ids=SHOPS.keys())
@every_agent
def test_predicts_and_recommends(cls, shop):
    env = make_env(**shop)
    agent = make_agent(cls, env)
    assert agent.learn(400) is agent
    observation = greet(env, steps=3)
    state = (np.arange(3),)
    start_N = np.zeros(env.num_envs, dtype=bool)

    item_N, passed = agent.predict(observation, state, start_N)
    assert passed is state
    assert item_N.shape == (env.num_envs,)
    assert item_N.dtype.kind == "i"
    assert set(item_N) <= set(range(env.shop.num_items))
    varied_N, passed = agent.predict(observation, state, start_N, deterministic=False)
    assert passed is state
    assert varied_N.shape == item_N.shape
    assert set(varied_N) <= set(range(env.shop.num_items))

    for k in {1, min(10, env.shop.num_items), env.shop.num_items}:
        item_Nk, score_Nk = agent.recommend(observation, k)
        assert item_Nk.shape == score_Nk.shape == (env.num_envs, k)
        assert np.isfinite(score_Nk).all()
        assert (np.diff(score_Nk, axis=1) <= 0).all()
        assert all(len(set(items)) == k for items in item_Nk)
        if cls not in AT_RANDOM:
            np.testing.assert_array_equal(item_Nk[:, 0], item_N)
    if cls not in AT_RANDOM:
        np.testing.assert_array_equal(agent.predict(observation)[0], item_N)


@every_agent
def test_one_shopper_may_come_without_a_batch(cls):
    env = make_env(1)
    agent = make_agent(cls, env)
    observation = greet(env)[0]
    item, state = agent.predict(observation)
    assert np.shape(item) == ()
    assert state is None
    items, scores = agent.recommend(observation, 4)
    assert items.shape == scores.shape == (4,)
    if cls not in AT_RANDOM:
        assert items[0] == item
        np.testing.assert_array_equal(items, agent.recommend(observation[None], 4)[0][0])


@pytest.mark.parametrize("cls", [a for a in AGENTS if a not in ORACLES], ids=lambda cls: cls.name)
def test_acts_outside_the_shop_on_batches_of_any_size(cls):
    agent = make_agent(cls)
    agent.learn(400)
    observation = greet(make_env(50))
    for size in (0, 1, 50):
        item_N, _ = agent.predict(observation[:size])
        assert item_N.shape == (size,)
        assert agent.recommend(observation[:size], 3)[0].shape == (size, 3)


@every_agent
def test_equal_scores_are_recommended_in_order_of_items(cls, monkeypatch):
    agent = make_agent(cls)
    observation = greet(agent.env)
    score_I = np.array([0, 2, 1, 2, 1, 1, 0, 2, 1, 1, 0, 1], dtype=np.float32)
    monkeypatch.setattr(agent, "score", lambda batch: np.tile(score_I, (len(batch), 1)))
    for k in range(1, 13):
        expected = np.argsort(-score_I, kind="stable")[:k]
        item_Nk, score_Nk = agent.recommend(observation, k)
        assert (item_Nk == expected).all()
        assert (score_Nk == score_I[expected]).all()


@pytest.mark.parametrize("k", [0, -1, 13, 2.5, True, "3", None])
@every_agent
def test_refuses_a_list_that_cannot_be(cls, k):
    agent = make_agent(cls)
    with pytest.raises(UsageError, match=r"k must be a whole number in 1\.\.12") as error:
        agent.recommend(greet(agent.env), k)
    one_line(error.value)


@every_agent
def test_refuses_observations_of_another_shape(cls):
    agent = make_agent(cls)
    good = greet(agent.env)
    bad = [
        good[:, :-1],
        np.append(good, good, axis=1),
        good[None],
        np.float32(1.0),
        "shopper",
        None,
    ]
    for observation in [*bad, [[1.0], [2.0, 3.0]]]:
        for ask in (agent.predict, agent.recommend):
            with pytest.raises(UsageError, match="observations must be") as error:
                ask(observation)
            one_line(error.value)


@every_agent
def test_must_be_bound_before_use(cls):
    agent = cls(**SMALL[cls])
    observation = greet(make_env())
    uses = [
        lambda: agent.predict(observation),
        lambda: agent.recommend(observation, 3),
        lambda: agent.env,
    ]
    if cls in LEARNERS:
        uses.append(lambda: agent.learn(100))
    for use in uses:
        with pytest.raises(UsageError, match="bind") as error:
            use()
        one_line(error.value)


@every_agent
def test_callback_counts_steps_and_ends_the_learning(cls):
    agent = make_agent(cls)
    seen: list[int] = []
    agent.learn(2000, lambda timesteps: seen.append(timesteps) or True)
    assert seen
    assert seen == sorted(seen)
    assert seen[-1] >= 2000 - agent.num_envs * SHOP["horizon"]
    if cls in LEARNERS and cls is not Rotation:
        assert seen[:2] == [32, 64]
        seen.clear()
        make_agent(cls).learn(2000, lambda timesteps: seen.append(timesteps) or timesteps < 320)
        assert seen[-1] == 320


@pytest.mark.parametrize("mode", ["NextStep", "Disabled"])
@every_learner
def test_learns_only_where_every_step_is_a_recommendation(cls, mode):
    with pytest.raises(UsageError, match="SameStep") as error:
        make_agent(cls, make_env(autoreset_mode=mode)).learn(400)
    one_line(error.value)


# --- save and load -------------------------------------------------------------------


@pytest.mark.parametrize("shop", [{}, SHOPS["behaviour"], SHOPS["clientele"]], ids=str)
@every_agent
def test_saved_agents_are_the_same_after_loading(cls, shop, tmp_path):
    env = make_env(**shop)
    agent = make_agent(cls, env)
    agent.learn(1500)
    agent.save(tmp_path)
    fresh = make_env(**shop)
    loaded = cls.load(tmp_path, fresh, device="cpu")
    assert loaded.settings() == agent.settings()
    if cls is Random:
        return
    np.testing.assert_array_equal(greet(fresh, steps=3), greet(env, steps=3))
    observation = greet(env, steps=3)
    np.testing.assert_array_equal(loaded.score(observation), agent.score(observation))
    if cls not in AT_RANDOM:
        np.testing.assert_array_equal(loaded.predict(observation)[0], agent.predict(observation)[0])


@every_agent
def test_files_hold_no_pickle(cls, tmp_path):
    agent = make_agent(cls)
    agent.learn(400)
    agent.save(tmp_path / "deep" / "agent")
    files = list((tmp_path / "deep" / "agent").iterdir())
    assert (tmp_path / "deep" / "agent" / "agent.json") in files
    for file in files:
        if file.suffix == ".json":
            json.loads(file.read_text())
        elif file.suffix == ".npy":
            np.load(file, allow_pickle=False)
        else:
            assert file.suffix == ".safetensors"
            assert load_file(file)


@every_agent
def test_damaged_files_are_told_in_one_line(cls, tmp_path):
    agent = make_agent(cls)
    agent.learn(400)
    agent.save(tmp_path)
    for file in list(tmp_path.iterdir()):
        whole = file.read_bytes()
        damages = {
            "cut": whole[: len(whole) // 2],
            "empty": b"",
            "garbage": b"\x80\x04garbage." * 9,
        }
        for damage in damages.values():
            file.write_bytes(damage)
            assert "train it again" in refusal(cls, tmp_path)
        file.unlink()
        assert "train it again" in refusal(cls, tmp_path)
        file.write_bytes(whole)
    cls.load(tmp_path, make_env())


@pytest.mark.parametrize("text", ["[]", "3", '{"agent": "ppo"}', "{}"])
def test_settings_that_are_none_are_refused(tmp_path, text):
    (tmp_path / "agent.json").write_text(text)
    assert "train it again" in refusal(PPOAgent, tmp_path)


def test_settings_of_another_version_are_refused(tmp_path):
    make_agent(PPOAgent).save(tmp_path)
    settings = json.loads((tmp_path / "agent.json").read_text())
    (tmp_path / "agent.json").write_text(json.dumps(settings | {"humour": 3}))
    assert "humour" in refusal(PPOAgent, tmp_path)
    (tmp_path / "agent.json").write_text(json.dumps(settings | {"gamma": 3}))
    assert "agent.gamma must lie in 0..1" in refusal(PPOAgent, tmp_path)
    (tmp_path / "agent.json").write_text(json.dumps(settings | {"net_arch": [17]}))
    assert "train it for this shop" in refusal(PPOAgent, tmp_path)


@every_agent
def test_files_of_another_agent_are_refused(cls, tmp_path):
    other = PPOAgent if cls is not PPOAgent else DQNAgent
    make_agent(other).save(tmp_path)
    assert cls.name in refusal(cls, tmp_path)


@every_learner
def test_agents_made_for_another_shop_are_refused(cls, tmp_path):
    agent = make_agent(cls)
    agent.learn(400)
    agent.save(tmp_path)
    assert "set env.num_items=12" in refusal(cls, tmp_path, num_items=20)
    others = [{"observation": "behaviour", "history": 3}, {"interest_dim": 5}]
    for other in others:
        if cls in (Popularity, Rotation, *CONTEXT_FREE):  # these look at nothing but the clock
            cls.load(tmp_path, make_env(**other))
        else:
            assert "env.observation" in refusal(cls, tmp_path, **other)


@every_learner
def test_agents_do_not_move_to_a_shop_of_another_size(cls):
    agent = make_agent(cls)
    here = agent.env
    with pytest.raises(UsageError, match="12 items"), agent.acting_in(make_env(num_items=20)):
        pass
    assert agent.env is here


@every_learner
def test_acting_elsewhere_leaves_no_trace(cls):
    """Not even in a shop of the same size where items lie in other categories."""
    agent = make_agent(cls)
    agent.learn(640)
    observation = greet(agent.env, steps=3)
    before = agent.score(observation)
    with agent.acting_in(make_env(16, world_seed=1)):
        agent.score(observation)
    np.testing.assert_array_equal(agent.score(observation), before)


def test_oracles_know_every_shop(tmp_path):
    make_agent(IndexPolicy, weight=0.35).save(tmp_path)
    env = make_env(num_items=20, observation="behaviour")
    loaded = IndexPolicy.load(tmp_path, env)
    assert loaded.weight == 0.35
    assert loaded.predict(greet(env))[0].max() >= 12


@pytest.mark.parametrize("cls", [Random, LinUCB, PPOAgent], ids=lambda cls: cls.name)
def test_a_place_that_cannot_be_written_to_is_told_in_one_line(cls, tmp_path):
    agent = make_agent(cls)
    file, full = tmp_path / "file", tmp_path / "full"
    file.write_text("years of work")
    (full / "agent.json").mkdir(parents=True)
    for place, part in ((file, "it is a file"), (file / "deep", "directory"), (full, "directory")):
        with pytest.raises(
            UsageError, match=f"^cannot save the agent in {place}: .*{part}"
        ) as told:
            agent.save(place)
        one_line(told.value)
    assert file.read_text() == "years of work"


@pytest.mark.parametrize("cls", LINEAR, ids=lambda cls: cls.name)
def test_linear_bandit_is_saved_with_whatever_it_learned(cls, tmp_path):
    narrow = make_agent(cls, shopper_size=4, warm_up=1000)
    with pytest.raises(UsageError, match="learned nothing"):
        narrow.save(tmp_path / "nothing")
    assert "missing" in refusal(cls, tmp_path / "nothing")
    narrow.learn(320)  # ends before the warm-up does
    narrow.save(tmp_path)
    observation = greet(narrow.env)
    loaded = cls.load(tmp_path, make_env())
    assert np.ptp(narrow.score(observation)) > 0
    np.testing.assert_array_equal(loaded.score(observation), narrow.score(observation))


def refusal(cls: type[Agent], directory: Path, **keywords) -> str:
    """The one line with which loading is refused."""
    with pytest.raises(UsageError) as error:
        cls.load(directory, make_env(**keywords))
    return one_line(error.value)


# --- seeds ---------------------------------------------------------------------------


def trained(cls: type[Agent], seed: int = 0, callback=None, **shop) -> tuple[Agent, np.ndarray]:
    """An agent after a little learning, and its scores."""
    agent = make_agent(cls, make_env(**shop), seed=seed)
    agent.learn(2000, callback)
    return agent, agent.score(greet(make_env(64, **shop), seed=7, steps=2))


@pytest.mark.parametrize("shop", [{}, SHOPS["behaviour"]], ids=["latent", "behaviour"])
@every_learner
def test_one_seed_gives_one_agent(cls, shop, disturbed_globals):
    first, score_NI = trained(cls, **shop)
    disturbed_globals()
    _, again_NI = trained(cls, **shop)
    np.testing.assert_array_equal(again_NI, score_NI)
    _, other_NI = trained(cls, seed=1, **shop)
    assert (other_NI != score_NI).any()
    assert first.seed == 0


@every_learner
def test_others_may_draw_between_making_and_learning(cls, disturbed_globals):
    _, score_NI = trained(cls)
    agent = make_agent(cls)
    disturbed_globals()
    agent.learn(2000)
    np.testing.assert_array_equal(agent.score(greet(make_env(64), seed=7, steps=2)), score_NI)


@pytest.mark.parametrize("shop", [{}, SHOPS["behaviour"]], ids=["latent", "behaviour"])
@every_learner
def test_evaluations_do_not_disturb_the_learning(cls, shop):
    _, score_NI = trained(cls, **shop)
    agent = make_agent(cls, make_env(**shop))
    judged = make_env(20, **(shop | {"scenario": "churn"}))

    def evaluate(timesteps: int) -> bool:
        if timesteps % 320 == 0:
            play(agent, judged, 5)
        return True

    play(agent, judged, 5)
    agent.learn(2000, evaluate)
    score = agent.score(greet(make_env(64, **shop), seed=7, steps=2))
    np.testing.assert_array_equal(score, score_NI)


@pytest.mark.parametrize("cls", [a for a in AGENTS if a not in ON_SB3], ids=lambda cls: cls.name)
def test_global_generators_are_left_alone(cls, global_states):
    before = global_states()
    env = make_env()
    agent = make_agent(cls, env)
    agent.learn(400)
    play(agent, env, 3)
    observation = greet(env)
    agent.predict(observation, deterministic=False)
    agent.recommend(observation, 3)
    assert global_states() == before


@pytest.mark.parametrize("cls", ORACLES, ids=lambda cls: cls.name)
def test_oracles_do_not_depend_on_global_generators(cls, disturbed_globals):
    env = make_env()
    agent = make_agent(cls, env)
    return_E = play(agent, env, 3).return_E
    disturbed_globals()
    again = make_agent(cls, env)
    np.testing.assert_array_equal(play(again, env, 3).return_E, return_E)


@pytest.mark.parametrize("cls", ON_SB3, ids=lambda cls: cls.name)
def test_an_agent_that_was_judged_first_learns_in_its_own_shop(cls):
    agent = cls(**SMALL[cls])
    judged = make_env(64, scenario="churn")
    play(agent, judged, 3)
    env = make_env(32, scenario="static")
    agent.bind(env)
    agent.learn(400)
    assert agent.model.get_env().env is env
    assert agent.model.n_envs == 32


# --- settings ------------------------------------------------------------------------

BAD = [
    (Random, {"num_envs": 0}),
    (Random, {"num_envs": -4}),
    (Random, {"num_envs": 2.5}),
    (Random, {"num_envs": True}),
    (Random, {"seed": -1}),
    (Random, {"seed": "one"}),
    (Random, {"seed": None}),
    (EpsilonOracle, {"epsilon": 1.5}),
    (EpsilonOracle, {"epsilon": None}),
    (PlanningOracle, {"policy": "worst"}),
    (PlanningOracle, {"rounds": 0}),
    (PlanningOracle, {"shoppers": 1}),
    (PlanningOracle, {"epochs": 0}),
    (PlanningOracle, {"memory": 0}),
    (PlanningOracle, {"shortlist": 0}),
    (PlanningOracle, {"hidden": 2.5}),
    (PlanningOracle, {"learning_rate": 0}),
    (PlanningOracle, {"exploration": 1.5}),
    (PlanningOracle, {"trace": -0.1}),
    (PlanningOracle, {"tuning_shoppers": 1}),
    (IndexPolicy, {"weight": "heavy"}),
    (IndexPolicy, {"weight": float("nan")}),
    (IndexPolicy, {"tuning_shoppers": 0}),
    (Popularity, {"epsilon": 1.5}),
    (Popularity, {"epsilon": -0.1}),
    (Popularity, {"best": 0}),
    (UserCF, {"neighbours": 0}),
    (UserCF, {"pool": 2.5}),
    (UserCF, {"shrink": -1}),
    (UserCF, {"best": 0}),
    (UserCF, {"epsilon": 1.1}),
    (ItemContent, {"strength": -1}),
    (ItemContent, {"warm_up": 0}),
    (ItemContent, {"growth": 0}),
    (MF, {"factors": 0}),
    (MF, {"confidence": 0}),
    (MF, {"regularization": "much"}),
    (MF, {"iterations": 0.5}),
    (Rotation, {"length": 0}),
    (Rotation, {"pool": 0}),
    (Rotation, {"warm_up": 1.5}),
    (Rotation, {"final": -1.0}),
    (Rotation, {"elite": 2}),
    (PPOAgent, {"gamma": 2}),
    (PPOAgent, {"gamma": -0.5}),
    (PPOAgent, {"gae_lambda": 1.1}),
    (PPOAgent, {"minibatches": 0}),
    (PPOAgent, {"minibatches": 10_000}),
    (PPOAgent, {"n_steps": 0}),
    (PPOAgent, {"n_epochs": 0}),
    (PPOAgent, {"learning_rate": "fast"}),
    (PPOAgent, {"learning_rate": 0.0}),
    (PPOAgent, {"learning_rate": float("inf")}),
    (PPOAgent, {"ent_coef": -0.1}),
    (PPOAgent, {"clip_range": 0}),
    (PPOAgent, {"anneal": 1.5}),
    (PPOAgent, {"net_arch": [0]}),
    (PPOAgent, {"net_arch": [64, 2.5]}),
    (PPOAgent, {"net_arch": "64"}),
    (PPOAgent, {"net_arch": 64}),
    (PPOAgent, {"reward_scale": 0}),
    (DQNAgent, {"gamma": 1.01}),
    (DQNAgent, {"learning_rate": -1e-3}),
    (DQNAgent, {"buffer_size": 0}),
    (DQNAgent, {"learning_starts": -1}),
    (DQNAgent, {"batch_size": 0}),
    (DQNAgent, {"train_freq": 0}),
    (DQNAgent, {"gradient_steps": 0}),
    (DQNAgent, {"target_update_interval": 0}),
    (DQNAgent, {"exploration_fraction": 0}),
    (DQNAgent, {"exploration_final_eps": 1.5}),
    (DQNAgent, {"net_arch": None}),
    (LinUCB, {"alpha": -0.1}),
    (LinUCB, {"ridge": 0}),
    (LinUCB, {"item_ridge": -1}),
    (LinUCB, {"growth": -0.1}),
    (LinUCB, {"shopper_size": 0}),
    (LinUCB, {"item_size": 0.5}),
    (LinUCB, {"warm_up": 0}),
    (LinUCB, {"disjoint": 1}),
    (LinUCB, {"forgetting": 1.01}),
    (LinUCB, {"delay": -1}),
    (LinUCB, {"update_every": 0}),
    (LinTS, {"alpha": float("nan")}),
    (LogisticTS, {"ridge": 0.0}),
    (EpsilonGreedy, {"epsilon": 1.5}),
    (EpsilonGreedy, {"final_epsilon": -0.1}),
    (EpsilonGreedy, {"anneal": 2}),
    (EpsilonGreedy, {"prior": 0}),
    (UCB1, {"alpha": -1}),
    (BetaTS, {"forgetting": 0.1}),
    (NeuralLinearTS, {"alpha": -1}),
    (NeuralLinearTS, {"ridge": 0}),
    (NeuralLinearTS, {"growth": -1}),
    (NeuralLinearTS, {"width": 0}),
    (NeuralLinearTS, {"log_rows": 0}),
    (EnsembleTS, {"members": 0}),
    (EnsembleTS, {"mask": 0}),
    (EnsembleTS, {"prior_scale": -1}),
    (EnsembleTS, {"learning_rate": 0}),
    (Scorer, {"shopper": "name"}),
    (Scorer, {"item": "price"}),
    (Scorer, {"encoder": "lstm"}),
    (Scorer, {"item": True}),
    (Scorer, {"epsilon": 1.01}),
    (Scorer, {"final_epsilon": -0.01}),
    (Scorer, {"anneal": 2}),
    (Scorer, {"width": 0}),
    (Scorer, {"hidden": 0}),
    (Scorer, {"learning_rate": 0}),
    (Scorer, {"weight_decay": -1}),
    (Scorer, {"batch_size": 0}),
    (Scorer, {"gradient_steps": -1}),
    (Scorer, {"log_rows": 0}),
]


@pytest.mark.parametrize(("cls", "settings"), BAD, ids=str)
def test_nonsense_settings_are_refused_at_once(cls, settings):
    with pytest.raises(UsageError, match=rf"agent\.{next(iter(settings))}\b") as error:
        cls(**settings)
    one_line(error.value)


@every_agent
def test_every_numeric_setting_has_bounds(cls):
    numbers = {
        name
        for name, value in make_agent(cls).settings().items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    assert numbers <= cls.bounds.keys()


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cuda:-1", "mps", "", 0, None])
@every_agent
def test_devices_that_are_not_there_are_refused(cls, device):
    with pytest.raises(UsageError, match=r"device.*choose auto") as error:
        cls(device=device)
    one_line(error.value)


def test_where_an_agent_was_trained_is_not_part_of_it(tmp_path):
    make_agent(Scorer, device="cpu").save(tmp_path)
    assert "device" not in json.loads((tmp_path / "agent.json").read_text())
    assert Scorer.load(tmp_path, make_env()).device == "auto"


def test_every_online_learner_is_covered():
    def named(cls: type[Agent]) -> set[type[Agent]]:
        return {cls} if "name" in vars(cls) else set().union(*map(named, cls.__subclasses__()))

    assert {cls for cls in LEARNERS if issubclass(cls, OnlineAgent)} == named(OnlineAgent)


def test_the_meter_scales_cut_sessions_to_whole_ones() -> None:
    meter = SessionMeter(num_envs=2, horizon=4)
    assert meter.take() is None
    meter.begin(np.array([1, 4]))
    meter.add(np.array([1.0, -1.0]), np.array([True, False]))
    assert meter.take() == 4.0  # one step of four, bought
    for _ in range(3):
        meter.add(np.array([1.0, -1.0]), np.array([False, False]))
    meter.add(np.array([-1.0, -1.0]), np.array([True, True]))  # the second one overdue by a charge
    assert meter.take() == pytest.approx((2.0 - 5.0) / 2)
    meter.count(np.array([3.0]))
    assert meter.take() == 3.0
    assert meter.take() is None
