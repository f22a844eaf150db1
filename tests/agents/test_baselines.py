"""The classical recommenders: what they make of answers, on logs and in the shop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agent_cases import BASELINES, SHOP, greet, make_agent, make_env, one_line

from agents.base import Agent
from agents.baselines.base import Recommender, SessionLog
from agents.baselines.item_content import ItemContent, content_vectors
from agents.baselines.mf import MF
from agents.baselines.ratings import CAUTION, ItemLookup, Ratings
from agents.baselines.user_cf import UserCF
from agents.ranking import judge_scores
from agents.references import Popularity, Random
from agents.rollout import play
from recenv.dynamics import Event
from recenv.errors import UsageError
from recenv.vector_env import RecsysVectorEnv

RECOMMENDERS = [Popularity, *BASELINES]
every_baseline = pytest.mark.parametrize("cls", BASELINES, ids=lambda cls: cls.name)
every_recommender = pytest.mark.parametrize("cls", RECOMMENDERS, ids=lambda cls: cls.name)


def random_log(env: RecsysVectorEnv, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One session of random recommendations in every slot: items, events (N, T), shoppers."""
    rng = np.random.default_rng(seed)
    _, info = env.reset(seed=seed)
    shopper_N = info["shopper_id"]
    items, events = [], []
    for _ in range(env.shop.horizon):
        items.append(rng.integers(env.shop.num_items, size=env.num_envs))
        info = env.step(items[-1])[4]
        events.append(info.get("final_info", info)["event"])
    return np.stack(items, 1), np.stack(events, 1).astype(np.int64), shopper_N


# --- ratings -------------------------------------------------------------------------


def ratings_on_paper() -> Ratings:
    """Row 0 bought item 2 twice and refused 0; row 1 did nothing; row 2 viewed item 1."""
    row = torch.tensor([0, 2, 0, 0, 2])
    item = torch.tensor([2, 1, 0, 2, -1])
    event = torch.tensor([Event.PURCHASE, Event.VIEW, Event.NOT_INTERESTED, Event.PURCHASE, 5])
    return Ratings.of(row, item, event, 3, 4)


def test_ratings_add_up_answers():
    value_RI, count_RI = ratings_on_paper().dense()
    np.testing.assert_array_equal(value_RI, [[-0.25, 0, 2, 0], [0] * 4, [0, 0.25, 0, 0]])
    np.testing.assert_array_equal(count_RI, [[1, 0, 2, 0], [0] * 4, [0, 1, 0, 0]])
    np.testing.assert_array_equal(ratings_on_paper().answers_R, [3, 0, 1])


def test_ratings_of_some_rows_in_any_order():
    value_RI, _ = ratings_on_paper().rows(torch.tensor([2, 0, 0])).dense()
    np.testing.assert_array_equal(value_RI, [[0, 0.25, 0, 0], [-0.25, 0, 2, 0], [-0.25, 0, 2, 0]])


def test_means_are_drawn_toward_that_of_all_items():
    overall = 2.0 / 4
    expected = [(-0.25, 1), (0.25, 1), (2.0, 2), (0.0, 0)]
    np.testing.assert_allclose(
        ratings_on_paper().item_means(),
        [(value + CAUTION * overall) / (count + CAUTION) for value, count in expected],
    )


def test_ratings_that_are_none_are_refused():
    tensors = ratings_on_paper().tensors()
    with pytest.raises(UsageError, match="train it again"):
        Ratings.from_tensors(tensors, 2)
    with pytest.raises(UsageError, match="train it again"):
        Ratings.from_tensors(tensors | {"item": tensors["item"][:-1]}, 4)


# --- observations --------------------------------------------------------------------


@pytest.mark.parametrize("keywords", [{}, {"num_items": 1000}, {"num_items": 5}], ids=str)
def test_items_are_told_by_their_features(keywords):
    features_IF = RecsysVectorEnv(1, **keywords).shop.catalogue.features_IF
    assert len(np.unique(features_IF, axis=0)) == len(features_IF)
    lookup = ItemLookup(features_IF)
    order = np.random.default_rng(0).permutation(len(features_IF))
    np.testing.assert_array_equal(lookup(features_IF[order]), order)
    np.testing.assert_array_equal(lookup(features_IF[:3] + 0.5), [-1, -1, -1])


def test_of_items_with_equal_features_the_first_is_meant():
    features_IF = np.array([[1, 0], [0, 1], [1, 0]], dtype=np.float32)
    np.testing.assert_array_equal(ItemLookup(features_IF)(features_IF), [0, 1, 0])


def test_interactions_are_read_from_the_observation():
    env = make_env(observation="behaviour", history=3)
    rng = np.random.default_rng(0)
    observation, _ = env.reset(seed=1)
    lookup = ItemLookup(env.shop.catalogue.features_IF)
    items_NH, events_NH = lookup.interactions(env.shop.observer, observation)
    assert (items_NH == -1).all()
    assert (events_NH == -1).all()
    shown, answered = [], []
    for _ in range(5):
        shown.append(rng.integers(12, size=32))
        observation, *_, info = env.step(shown[-1])
        answered.append(info["event"])
    items_NH, events_NH = lookup.interactions(env.shop.observer, observation)
    np.testing.assert_array_equal(items_NH, np.stack(shown[:1:-1], 1))
    np.testing.assert_array_equal(events_NH, np.stack(answered[:1:-1], 1))


# --- the log -------------------------------------------------------------------------


def test_the_log_keeps_the_latest_sessions():
    log = SessionLog(4, 2, 3, 1)
    for item in range(3):
        log.add(
            np.array([item, 10 + item]), np.array([4, 0]), np.array([7, 8]), np.full((2, 1), item)
        )
    log.begin(np.array([0]))
    assert len(log.newest_first()) == 2  # one that has just begun holds nothing
    np.testing.assert_array_equal(log.items_ST[0], [0, 1, 2])
    np.testing.assert_array_equal(log.items_ST[1], [10, 11, 12])
    np.testing.assert_array_equal(log.shopper_S[:2], [7, 8])
    assert log.who_SC[0, 0] == pytest.approx(1.0)  # the mean over her session


# --- what each makes of answers ------------------------------------------------------


def fitted(cls: type[Agent], items, events, env=None, **settings) -> Recommender:
    agent = make_agent(cls, env or make_env(), **settings)
    agent.fit(np.array(items), np.array(events))
    return agent


def two_tastes(rng: np.random.Generator, sessions: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Half of all buy items 0 to 5 and refuse the others, half the other way round."""
    items_ST = np.stack([rng.permutation(12)[:8] for _ in range(sessions)])
    likes_low_S1 = (np.arange(sessions) % 2 == 0)[:, None]
    bought_ST = (items_ST < 6) == likes_low_S1
    return items_ST, np.where(bought_ST, Event.PURCHASE, Event.IGNORE)


@pytest.mark.parametrize("cls", [UserCF, MF], ids=lambda cls: cls.name)
def test_shoppers_who_answer_alike_like_the_same(cls):
    agent = fitted(cls, *two_tastes(np.random.default_rng(0)), neighbours=20)
    # two shoppers who have answered to items 0 and 7, the other way round
    past = np.array([[0, 7], [0, 7]])
    answers = np.array([[Event.PURCHASE, Event.IGNORE], [Event.IGNORE, Event.PURCHASE]])
    affinity_NI = agent.affinity(past, answers)
    assert affinity_NI[0, 1:6].min() > affinity_NI[0, 8:].max() + 0.2
    assert affinity_NI[1, 8:].min() > affinity_NI[1, 1:6].max() + 0.2


def test_content_prefers_what_looks_alike():
    env = make_env()
    agent = fitted(ItemContent, *two_tastes(np.random.default_rng(0)), env=env)
    alike_II = content_vectors(env.shop.catalogue.features_IF)
    alike_II = (alike_II @ alike_II.T).numpy()
    affinity_I = agent.affinity(np.array([[3]]), np.array([[Event.PURCHASE]]))[0]
    gain_I = affinity_I - agent.affinity(np.array([[-1]]), np.array([[-1]]))[0]
    assert gain_I.argmax() == 3
    np.testing.assert_allclose(np.argsort(gain_I), np.argsort(alike_II[3]))


@every_baseline
def test_of_whom_nothing_is_known_gets_what_most_like(cls):
    rng = np.random.default_rng(0)
    items_ST = rng.integers(12, size=(80, 8))
    agent = fitted(cls, items_ST, np.where(items_ST == 4, Event.PURCHASE, Event.IGNORE))
    assert agent.affinity(np.array([[-1, -1]]), np.array([[-1, -1]]))[0].argmax() == 4


@every_baseline
def test_the_best_are_shown_in_turn(cls):
    env = make_env(observation="behaviour", history=3)
    agent = make_agent(cls, env, best=2)
    agent.fit(*random_log(make_env(200))[:2])
    observation, _ = env.reset(seed=1)
    first = agent.recommend(observation, 2)[0]
    later = observation.copy()
    later[:, 0] -= 1 / SHOP["horizon"]  # one recommendation fewer remains
    np.testing.assert_array_equal(agent.recommend(later, 2)[0], first[:, ::-1])


# --- what they know of her -----------------------------------------------------------


@every_baseline
def test_regulars_are_known_again(cls):
    """Items 0 to 5 for even shoppers, the others for odd ones: only their ids tell."""
    env = make_env(observation="behaviour", history=3, num_shoppers=60)
    items_ST, events_ST = two_tastes(np.random.default_rng(0))
    agent = make_agent(cls, env, best=1, neighbours=20)
    agent.fit(items_ST, events_ST, np.arange(60))
    observation, info = env.reset(seed=3)
    item_N, _ = agent.predict(observation)
    assert ((item_N < 6) == (info["shopper_id"] % 2 == 0)).mean() > 0.9
    elsewhere = agent.predict(observation[:5])[0]  # nobody knows who these are
    assert len(set(elsewhere)) == 1


@every_baseline
def test_strangers_are_taken_for_those_who_look_like_them(cls):
    env = make_env()
    agent = make_agent(cls, env, best=1, neighbours=10)
    items_ST, events_ST = two_tastes(np.random.default_rng(0))
    observation, _ = env.reset(seed=3)
    likes_low_N = observation[:, 0] > 0
    who_SC = np.zeros((60, 6), dtype=np.float32)
    who_SC[:, 0] = np.where(np.arange(60) % 2 == 0, 1.0, -1.0)
    agent.fit(items_ST, events_ST, None, who_SC)
    item_N, _ = agent.predict(observation)
    sure_N = np.abs(observation[:, 0]) > 0.3
    assert sure_N.sum() > 8
    assert ((item_N < 6) == likes_low_N)[sure_N].mean() > 0.9


@every_baseline
def test_logs_of_another_shop_are_refused(cls):
    agent = make_agent(cls, make_env(num_shoppers=10))
    good = np.zeros((3, 4), dtype=int)
    refusals = [
        ((good + 12, good), "catalogue"),
        ((good, good[:2]), "items and events"),
        ((good, good, np.array([0, 1, 10])), "ids of shoppers"),
        ((good, good, np.array([0, 1])), "ids of shoppers"),
    ]
    for log, why in refusals:
        with pytest.raises(UsageError, match=why) as error:
            agent.fit(*log)
        one_line(error.value)


# --- better than random --------------------------------------------------------------


@every_recommender
def test_beats_random_on_the_held_out_part_of_a_log(cls):
    """recall@10 of what is bought after half a session: random finds one in ten."""
    env = RecsysVectorEnv(2000, scenario="full", observation="behaviour")
    items_ST, events_ST, _ = random_log(env)
    agent = cls(seed=0)
    agent.bind(env)
    agent.fit(items_ST[:1000], events_ST[:1000])
    session_n, step_n = np.nonzero(events_ST[1000:, 25:] == Event.PURCHASE)
    session_n, step_n = session_n + 1000, step_n + 25
    assert len(session_n) > 3000
    score_nI = agent.affinity(items_ST[session_n, :25], events_ST[session_n, :25])
    target_n = items_ST[session_n, step_n]
    recall = judge_scores(score_nI, target_n, 10, np.random.default_rng(0)).recall
    print(cls.name, recall, len(session_n))
    assert recall > (0.15 if cls is Popularity else 0.22)


@pytest.mark.parametrize("shop", [{}, {"observation": "behaviour"}], ids=["latent", "behaviour"])
@every_recommender
def test_beats_random_in_the_shop(cls, shop):
    env = RecsysVectorEnv(256, scenario="static", num_items=30, horizon=20, **shop)
    agent = cls(seed=0, num_envs=256)
    agent.bind(env)
    agent.learn(20_000)
    judged = env.sibling(500)
    by_agent = play(agent, judged, 5).return_E.mean()
    by_luck = play(Random(), judged, 5).return_E.mean()
    print(cls.name, shop, by_agent, by_luck)
    assert by_agent > by_luck + 3.0  # of 20 at most


@every_baseline
def test_scores_are_finite_before_anything_is_learned(cls):
    for shop in ({}, {"observation": "behaviour", "history": 3}, {"num_shoppers": 20}):
        agent = make_agent(cls, make_env(**shop))
        score_NI = agent.score(greet(agent.env, steps=2))
        assert np.isfinite(score_NI).all()
