"""The scorer: its towers, its log, what it learns, and regulars and strangers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from agent_cases import greet, make_agent, make_env, one_line
from torch import nn

from agents import base, scorer
from agents.classification import MEASURES, log_loss, measures, sigmoid
from agents.encoders import ENCODERS
from agents.files import write_tensors
from agents.references import Random
from agents.rollout import play
from agents.scorer import Log, Scorer, TwoTowers
from agents.supervised import Rows
from recenv.errors import UsageError

REGULARS = {"num_shoppers": 50, "scenario": "static"}


@pytest.mark.parametrize(
    ("size", "clientele"), [(5, 0), (5, 7), (0, 7)], ids=["observation", "both", "id"]
)
def test_all_items_equal_their_pairs(size, clientele, monkeypatch):
    torch.manual_seed(0)
    network = TwoTowers(size, torch.randn(9, 3), clientele, width=4, hidden=6)
    nn.init.normal_(network.item_bias.weight)
    shopper_NW = network.shoppers(
        torch.randn(8, size), torch.arange(8) if network.shopper_id is not None else None
    )
    all_NI = network.all_items(shopper_NW)
    assert all_NI.shape == (8, 9)
    for item in range(9):
        pair_N = network.pairs(shopper_NW, torch.full((8,), item))
        torch.testing.assert_close(all_NI[:, item], pair_N)
    monkeypatch.setattr(scorer, "SCORES_AT_ONCE", 8 * 6 * 2)  # two items at a time
    torch.testing.assert_close(network.all_items(shopper_NW), all_NI)


def test_learns_whom_to_sell_what():
    env = make_env(64, scenario="static")
    agent = make_agent(Scorer, env, num_envs=64, batch_size=512, learning_rate=3e-3)
    agent.learn(20_000)
    judged = make_env(2000, scenario="static", reveal=True)
    observation = greet(judged, seed=9)
    item_N = np.random.default_rng(0).integers(12, size=2000)
    info = judged.step(item_N)[-1]
    true_N = info["purchase_probability"]
    log_odds_N = agent.score(observation)[np.arange(2000), item_N]
    base_rate = cross_entropy(true_N, np.full(2000, true_N.mean()))
    learned = cross_entropy(true_N, 1 / (1 + np.exp(-log_odds_N)))
    best = cross_entropy(true_N, true_N)
    assert (base_rate - learned) / (base_rate - best) > 0.8


def cross_entropy(true_N: np.ndarray, told_N: np.ndarray) -> float:
    """Expected log loss of the probabilities that are told."""
    return float(-(true_N * np.log(told_N) + (1 - true_N) * np.log1p(-told_N)).mean())


def test_log_keeps_the_latest_rows():
    log = Log(5, 2)
    for first in (0, 3, 6):  # eight rows and one more in batches of three
        row = np.arange(first, first + 3)
        log.add(row[:, None] + [0.0, 0.5], 10 * row, row, row % 2)
    assert len(log) == 5
    assert log.count == 9
    order = np.argsort(log.item)
    np.testing.assert_array_equal(log.item[order], [4, 5, 6, 7, 8])
    np.testing.assert_array_equal(log.shopper_id[order], [40, 50, 60, 70, 80])
    np.testing.assert_array_equal(log.bought[order], [0, 1, 0, 1, 0])
    np.testing.assert_array_equal(log.observation[order, 1], np.arange(4, 9) + 0.5)


def test_log_is_no_longer_than_its_rows():
    log = Log(5, 1)
    log.add(np.ones((2, 1)), np.ones(2), np.ones(2), np.ones(2))
    assert len(log) == 2


def test_logs_what_was_seen_and_answered():
    env = make_env(16, num_shoppers=9, scenario="churn", horizon=4)
    agent = make_agent(Scorer, env, num_envs=16)
    seen: list[tuple[np.ndarray, ...]] = []
    original = agent.explore

    def watch(observation: np.ndarray) -> np.ndarray:
        item_N = original(observation)
        bought_N = np.zeros(16)
        seen.append((observation.astype(np.float16), env.shopper_id_N.copy(), item_N, bought_N))
        return item_N

    agent.explore = watch
    step = env.step

    def watched_step(item_N: np.ndarray):
        told = step(item_N)
        terms = told[-1].get("final_info", told[-1])["reward_terms"]
        seen[-1][3][:] = terms["purchase"] == 1
        return told

    env.step = watched_step
    agent.learn(320)
    log = agent._log
    assert log.count == 320
    names = ("observation", "shopper_id", "item", "bought")
    for name, expected in zip(names, zip(*seen, strict=True), strict=True):
        np.testing.assert_array_equal(getattr(log, name)[:320], np.concatenate(expected), name)
    assert 0 < log.bought[:320].mean() < 1


def test_log_stays_within_memory(monkeypatch):
    env = make_env(32, observation="behaviour", history=3)
    (size,) = env.single_observation_space.shape
    monkeypatch.setattr(base, "MEMORY", 100 * 2 * size)
    agent = make_agent(Scorer, env)
    agent.learn(640)
    assert agent._log.observation.shape == (100, size)
    assert agent._log.observation.nbytes == 100 * 2 * size
    assert len(agent._log) == 100


def test_default_behaviour_log_fits_a_small_machine():
    (size,) = make_env(1, observation="behaviour", num_items=500).single_observation_space.shape
    assert base.rows_in_memory(2 * size) * 2 * size <= 2**31
    assert base.rows_in_memory(2 * size) > 100_000


def test_exploration_falls_over_the_first_steps():
    agent = make_agent(Scorer, epsilon=1.0, final_epsilon=0.1, anneal=0.5)
    shares: list[float] = []
    agent.learn(3200, lambda timesteps: shares.append(agent.exploration) or True)
    expected = 1 - 0.9 * np.minimum(np.arange(1, 101) / 50, 1)
    np.testing.assert_allclose(shares, expected, atol=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_explores_that_share_of_the_shoppers(share):
    env = make_env(2000)
    agent = make_agent(Scorer, env, num_envs=2000, epsilon=share, final_epsilon=share)
    agent.learn(2000)
    observation = greet(env)
    moved = (agent.explore(observation) != agent.predict(observation)[0]).mean()
    assert moved == pytest.approx(share * 11 / 12, abs=0.04)


# --- regulars and strangers ----------------------------------------------------------


def test_ids_need_a_clientele():
    with pytest.raises(UsageError, match=r"env\.num_shoppers") as error:
        make_agent(Scorer, make_env(), shopper="id")
    one_line(error.value)


@pytest.mark.parametrize("shopper", ["id", "both", "auto"])
def test_regulars_are_known_and_others_are_strangers(shopper):
    env = make_env(**REGULARS)
    agent = make_agent(Scorer, env, shopper=shopper)
    agent.learn(640)
    observation = greet(env)
    id_N = env.shopper_id_N
    assert len(set(id_N)) > 10

    def expected(rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            tower = agent.network.shoppers(torch.as_tensor(observation), torch.as_tensor(rows))
            return agent.network.all_items(tower).numpy()

    regular_NI, stranger_NI = expected(id_N), expected(np.full(32, 50))
    assert np.abs(regular_NI - stranger_NI).max() > 0.01
    np.testing.assert_allclose(agent.score(observation), regular_NI, atol=1e-5)
    # fewer than stand in the shop: nobody says who they are
    np.testing.assert_allclose(agent.score(observation[:9]), stranger_NI[:9], atol=1e-5)
    # another clientele has other people under the same ids, and a shop without has none
    for others in ({"num_shoppers": 80}, {"num_shoppers": 20}, {"num_shoppers": None}):
        elsewhere = make_env(**(REGULARS | others))
        greet(elsewhere)
        with agent.acting_in(elsewhere):
            np.testing.assert_allclose(agent.score(observation), stranger_NI, atol=1e-5)


def test_observation_alone_knows_nobody():
    agent = make_agent(Scorer, make_env(**REGULARS), shopper="observation")
    assert agent.network.shopper_id is None
    agent.learn(320)
    assert agent.score(greet(agent.env)).shape == (32, 12)


def test_recommends_to_strangers_where_nobody_is_in_the_shop(tmp_path):
    agent = make_agent(Scorer, make_env(**REGULARS))
    agent.learn(640)
    agent.save(tmp_path)
    observation = greet(make_env())
    for shop in (REGULARS, {"scenario": "static"}):
        loaded = Scorer.load(tmp_path, make_env(**shop))
        items, _ = loaded.recommend(observation, 5)
        np.testing.assert_array_equal(items[:9], agent.recommend(observation[:9], 5)[0])


def test_the_strangers_embedding_learns():
    # weight decay would move it without any learning
    agent = make_agent(Scorer, make_env(**REGULARS), weight_decay=0.0)
    before = agent.network.shopper_id.weight[-1].detach().clone()
    agent.learn(320)
    assert (agent.network.shopper_id.weight[-1] - before).abs().max() > 0.01


def test_newcomers_to_a_clientele_are_served_well():
    agent = make_agent(Scorer, make_env(64, **REGULARS), num_envs=64, batch_size=256)
    agent.learn(15_000)
    newcomers = make_env(500, scenario="static")
    chance = play(make_agent(Random, newcomers), newcomers, 3).return_E
    assert play(agent, newcomers, 3).return_E.mean() > chance.mean() + 2.0


def test_regulars_are_told_apart_by_their_ids_alone():
    env = make_env(64, **REGULARS)
    agent = make_agent(Scorer, env, num_envs=64, shopper="id", batch_size=256)
    agent.learn(20_000)
    judged = make_env(500, **REGULARS)
    with agent.acting_in(judged):
        observation = greet(judged)
        known = play(agent, judged, 3).return_E.mean()
        assert len({tuple(items) for items in agent.recommend(observation, 3)[0]}) > 5
    newcomers = make_env(500, scenario="static")
    assert known > play(agent, newcomers, 3).return_E.mean() + 0.5


# --- what the item tower knows -------------------------------------------------------


@pytest.mark.parametrize("item", ["id", "features", "both"])
def test_item_towers_score_pairs_as_all(item):
    torch.manual_seed(0)
    network = TwoTowers(5, torch.randn(9, 3), 0, width=4, hidden=6, item=item)
    shopper_NW = network.shoppers(torch.randn(8, 5), None)
    all_NI = network.all_items(shopper_NW)
    for number in range(9):
        pair_N = network.pairs(shopper_NW, torch.full((8,), number))
        torch.testing.assert_close(all_NI[:, number], pair_N)
    names = {name.split(".")[0] for name in network.state_dict()}
    assert ("item_id" in names) == ("item_bias" in names) == (item != "features")
    assert ("item_feature" in names) == (item != "id")


def test_items_of_equal_features_are_told_apart_by_their_ids_alone():
    for item, apart in (("features", False), ("id", True), ("both", True)):
        torch.manual_seed(0)
        network = TwoTowers(5, torch.ones(2, 3), 0, width=4, hidden=6, item=item)
        first, second = network.all_items(network.shoppers(torch.randn(1, 5), None))[0]
        assert (abs(first - second) > 1e-6) == apart


@pytest.mark.parametrize("item", ["id", "features"])
def test_every_item_tower_learns_and_is_saved(item, tmp_path):
    env = make_env(64, scenario="static")
    agent = make_agent(Scorer, env, num_envs=64, batch_size=512, item=item)
    agent.learn(6400)
    agent.save(tmp_path)
    loaded = Scorer.load(tmp_path, env)
    assert loaded.item == item
    observation = greet(env)
    np.testing.assert_array_equal(agent.score(observation), loaded.score(observation))
    chance = play(make_agent(Random, env), env, 3).return_E
    assert play(agent, env, 3).return_E.mean() > chance.mean() + 1.0


# --- behaviour through an encoder ----------------------------------------------------


@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_reads_behaviour_through_an_encoder(encoder, tmp_path):
    env = make_env(64, scenario="static", observation="behaviour", history=6)
    settings = {"shopper": "encoder", "encoder": encoder, "learning_rate": 3e-3}
    agent = make_agent(Scorer, env, batch_size=128, **settings)
    agent.fit(log_rows(env, 1000)[0], epochs=4)
    judged, true_N = log_rows(env, 500, seed=2)
    found = measures(agent.calibrated(agent.log_odds(judged)), judged.bought_N)
    # the same items to everybody is what can be had without looking at what she did
    blind = np.zeros_like(judged.observation)
    nobody = measures(agent.log_odds(replace(judged, observation=blind)), judged.bought_N)
    assert found["auc"] > nobody["auc"] + 0.05
    assert found["auc"] < measures(true_N, judged.bought_N)["auc"]
    agent.save(tmp_path)
    loaded = Scorer.load(tmp_path, env)
    np.testing.assert_array_equal(agent.log_odds(judged), loaded.log_odds(judged))


def test_the_encoder_sees_what_the_observation_holds():
    env = make_env(8, observation="behaviour", history=3)
    agent = make_agent(Scorer, env, shopper="encoder")
    observation = greet(env, steps=5)
    parts = env.shop.observer.unflatten(observation)
    seen = []
    tower = agent.network.shopper
    tower.encoder.register_forward_pre_hook(lambda module, told: seen.append(told))
    agent.score(observation)
    np.testing.assert_array_equal(seen[0][0].numpy(), parts["items"])
    np.testing.assert_array_equal(seen[0][1].numpy(), parts["events"])


def test_an_encoder_needs_behaviour():
    with pytest.raises(UsageError, match=r"env\.observation=behaviour") as error:
        make_agent(Scorer, make_env(), shopper="encoder")
    one_line(error.value)


# --- learned from a log alone --------------------------------------------------------


def log_rows(env, sessions: int = 400, seed: int = 1) -> tuple[Rows, np.ndarray]:
    """Random recommendations to newcomers, and the true purchase probabilities."""
    shop = env.sibling(sessions, reveal=True)
    rng = np.random.default_rng(seed)
    observation, told = shop.reset(seed=seed)
    seen, items, bought, true, ids = [], [], [], [], []
    for _ in range(shop.shop.horizon):
        item_N = rng.integers(shop.shop.num_items, size=sessions)
        seen.append(observation)
        ids.append(shop.shopper_id_N.copy())
        observation, *_, info = shop.step(item_N)
        told = info.get("final_info", info)
        items.append(item_N)
        bought.append(told["reward_terms"]["purchase"] > 0)
        true.append(told["purchase_probability"])
    session_N = np.tile(np.arange(sessions), shop.shop.horizon)
    known = np.concatenate(ids) if shop.shop.settings.num_shoppers else None
    item_N, bought_N = np.concatenate(items), np.concatenate(bought).astype(int)
    return Rows(np.concatenate(seen), item_N, bought_N, session_N, known), np.concatenate(true)


def test_fit_comes_near_the_true_probabilities():
    env = make_env(64, scenario="full")
    agent = make_agent(Scorer, env, batch_size=512, learning_rate=3e-3, width=16, hidden=64)
    fitted = agent.fit(log_rows(env, 4000)[0], epochs=40, patience=4)
    rows, true_N = log_rows(env, 2000, seed=2)  # newcomers
    found = measures(agent.calibrated(agent.log_odds(rows)), rows.bought_N)
    bayes = measures(true_N, rows.bought_N)
    assert bayes["auc"] > 0.75  # there is something to tell
    assert found["auc"] > bayes["auc"] - 0.03
    assert found["log_loss"] < bayes["log_loss"] + 0.03
    assert found["ece"] < 0.03
    assert fitted.best >= 1
    chance = play(make_agent(Random, env), env, 3).return_E
    assert play(agent, env, 3).return_E.mean() > chance.mean() + 2.0


def test_fit_stops_early_and_keeps_the_best_network():
    env = make_env(64, scenario="static")
    rows, _ = log_rows(env, 60)
    agent = make_agent(Scorer, env, batch_size=32, learning_rate=0.02, hidden=64)
    _, apart_n = rows.split(0.3, np.random.default_rng(0))
    fitted = agent.fit(rows, validation=apart_n, epochs=200, patience=3)
    losses = fitted.validation_loss
    assert fitted.stopped
    assert len(losses) == len(fitted.train_loss) == fitted.best + 4 < 200
    assert fitted.best == int(np.argmin(losses))
    kept = log_loss(sigmoid(agent.log_odds(rows, apart_n)), rows.bought_N[apart_n])
    assert kept == pytest.approx(losses[fitted.best], abs=1e-6)
    assert losses[-1] > losses[fitted.best]
    assert fitted.train_loss[-1] < fitted.train_loss[0] - 0.05
    # what it calibrated on is calibrated
    told_n = agent.calibrated(agent.log_odds(rows, apart_n))
    assert told_n.mean() == pytest.approx(rows.bought_N[apart_n].mean(), abs=0.03)
    assert log_loss(told_n, rows.bought_N[apart_n]) < kept + 0.002


def test_no_session_is_split():
    rows, _ = log_rows(make_env(), 50)
    train_N, apart_n = rows.split(0.2, np.random.default_rng(0))
    assert not set(rows.session_N[train_N]) & set(rows.session_N[apart_n])
    assert len(set(rows.session_N[apart_n])) == 10
    np.testing.assert_array_equal(np.sort(np.concatenate([train_N, apart_n])), np.arange(len(rows)))


def test_fit_is_deterministic_and_can_be_stopped():
    env = make_env()
    rows, _ = log_rows(env, 40)

    def fit(**settings) -> tuple[np.ndarray, int]:
        agent = make_agent(Scorer, env)
        fitted = agent.fit(rows, epochs=4, **settings)
        return agent.log_odds(rows), len(fitted.train_loss)

    first_N, epochs = fit()
    np.testing.assert_array_equal(first_N, fit()[0])
    assert epochs == 4
    assert fit(progress=lambda epoch, train, validation: epoch < 2)[1] == 2


def test_fit_knows_regulars_by_their_ids():
    env = make_env(64, **REGULARS)
    agent = make_agent(Scorer, env, shopper="id", batch_size=256, learning_rate=3e-3)
    agent.fit(log_rows(env, 2000)[0], epochs=30)
    rows, _ = log_rows(env, 1000, seed=2)
    known = measures(agent.calibrated(agent.log_odds(rows)), rows.bought_N)["auc"]
    strangers = replace(rows, shopper_id_N=None)
    nobody = measures(agent.calibrated(agent.log_odds(strangers)), rows.bought_N)["auc"]
    assert known > nobody + 0.03


def test_rows_that_do_not_fit_are_one_line():
    agent = make_agent(Scorer, make_env(**REGULARS))
    rows, _ = log_rows(agent.env, 5)
    wrong = [
        lambda: agent.fit(replace(rows, observation=rows.observation[:, :-1])),
        lambda: agent.fit(replace(rows, item_N=rows.item_N + 1)),
        lambda: agent.fit(replace(rows, shopper_id_N=rows.shopper_id_N + 49)),
        lambda: agent.fit(replace(rows, session_N=np.zeros_like(rows.session_N))),
        lambda: agent.fit(rows, epochs=0),
        lambda: agent.fit(rows, patience=0),
        lambda: agent.fit(rows, validation=1.0),
        lambda: agent.fit(rows, validation=np.arange(len(rows))),
        lambda: replace(rows, bought_N=rows.bought_N + 1),
        lambda: replace(rows, item_N=rows.item_N[:-1]),
        lambda: replace(rows, item_N=rows.item_N - 12),
        lambda: Rows(np.zeros((0, 5)), *(np.zeros(0, int) for _ in range(3))),
    ]
    for call in wrong:
        with pytest.raises(UsageError) as error:
            call()
        one_line(error.value)


def test_what_it_serves_is_measured_before_it_is_learned_from(monkeypatch):
    monkeypatch.setattr(scorer, "ONLINE_ROWS", 64 * 100)
    env = make_env(64, scenario="static")
    always = {"epsilon": 1.0, "final_epsilon": 1.0}  # random, so that windows are alike
    agent = make_agent(Scorer, env, num_envs=64, batch_size=512, learning_rate=3e-3, **always)
    agent.learn(64 * 99)
    assert agent.online == {}
    agent.learn(64)
    first = agent.online
    agent.learn(64 * 400)
    assert set(first) == set(MEASURES)
    assert agent.online["log_loss"] < first["log_loss"] - 0.03
    assert agent.online["ece"] < 0.06


# --- which items are worth showing ---------------------------------------------------


def test_threshold_shows_only_what_is_likely_to_be_bought():
    env = make_env(200, scenario="static")
    agent = make_agent(Scorer, env, num_envs=64, batch_size=512)
    agent.fit(log_rows(env, 400)[0], epochs=3)
    observation = greet(env)
    told_NI = agent.probability(observation)
    assert told_NI.shape == (200, 12)
    item_Nk, score_Nk = agent.recommend(observation, 5)
    np.testing.assert_allclose(
        agent.calibrated(score_Nk), np.take_along_axis(told_NI, item_Nk, axis=1)
    )
    middle = float(np.quantile(told_NI.max(axis=1), 0.3))
    some_Nk, probability_Nk = agent.recommend(observation, 5, threshold=middle)
    shown_Nk = some_Nk >= 0
    assert shown_Nk.any(axis=1).mean() == pytest.approx(0.7, abs=0.01)  # others get nothing
    assert (probability_Nk[shown_Nk] > middle).all()
    assert np.isnan(probability_Nk[~shown_Nk]).all()
    np.testing.assert_array_equal(some_Nk[shown_Nk], item_Nk[shown_Nk])
    count_N = np.minimum((told_NI > middle).sum(axis=1), 5)
    np.testing.assert_array_equal(shown_Nk.sum(axis=1), count_N)
    # the best come first, so that the list ends with the first -1
    assert (np.diff(shown_Nk.astype(int), axis=1) <= 0).all()


def test_threshold_for_one_shopper_and_at_its_ends():
    agent = make_agent(Scorer)
    observation = greet(agent.env)[0]
    assert agent.probability(observation).shape == (12,)
    items, probabilities = agent.recommend(observation, 4, threshold=1.0)
    assert items.shape == probabilities.shape == (4,)
    assert (items == -1).all()
    every, _ = agent.recommend(observation, 12, threshold=0.0)
    np.testing.assert_array_equal(np.sort(every), np.arange(12))
    for threshold in (-0.1, 1.1, "half", float("nan"), True):
        with pytest.raises(UsageError) as error:
            agent.recommend(observation, 4, threshold=threshold)
        one_line(error.value)


def test_calibration_is_saved_and_may_be_missing(tmp_path):
    env = make_env()
    agent = make_agent(Scorer, env, learning_rate=3e-3)
    agent.fit(log_rows(env, 200)[0], epochs=5)
    assert agent._calibration != (1.0, 0.0)
    agent.save(tmp_path)
    observation = greet(env)
    loaded = Scorer.load(tmp_path, env)
    np.testing.assert_array_equal(agent.probability(observation), loaded.probability(observation))
    write_tensors(tmp_path / "network.safetensors", agent.network.state_dict())  # as it once was
    earlier = Scorer.load(tmp_path, env)
    np.testing.assert_array_equal(
        earlier.probability(observation), sigmoid(earlier.score(observation))
    )
