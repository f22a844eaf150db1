"""What models make of a log, against logs that can be counted on paper."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import gymnasium as gym
import made_logs
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_collect import SHOP, make_log
from test_log_preprocess import made

import recenv  # noqa: F401
from agents.references import Random
from experiments.logs import schema
from experiments.logs.features import (
    bag_of_words,
    behaviour_matrix,
    histories,
    item_features,
    searched_words,
    seen_histories,
)
from experiments.logs.preprocess import preprocess, read_clean
from recenv.catalogue import Catalogue
from recenv.dynamics import Event
from recenv.errors import UsageError
from recenv.organic import Habits
from recenv.seeding import Role, derive_seed
from recenv.vector_env import RecsysVectorEnv


def hand_made() -> pl.DataFrame:
    """Two shoppers, two sessions of the first, out of order."""
    return made(
        shopper=[7, 7, 3, 7, 7, 3],
        session=[1, 1, 5, 0, 0, 5],
        at=[60, 61, 0, 0, 1, 2],
        event=["purchase", "search", "view", "view", "cart", "view"],
        item=[2, None, 0, 2, 1, 0],
        category=[1, None, 0, 1, 0, 0],
        query=[None, [1, 1, 3], None, None, None, None],
        policy=["ppo", "organic", "ppo", "ppo", "organic", "ppo"],
    )


def catalogue_frame(catalogue: Catalogue) -> pl.DataFrame:
    """items.parquet of a catalogue."""
    words = [
        np.repeat(np.arange(len(times_W)), times_W.astype(int)).tolist()
        for times_W in catalogue.keywords_IW
    ]
    columns = {
        "item": np.arange(catalogue.num_items),
        "category": catalogue.category_I,
        "brand": catalogue.brand_I,
        "price": catalogue.price_I,
        "keywords": words,
        "name": [catalogue.item_name(item) for item in range(catalogue.num_items)],
    }
    return pl.DataFrame(columns, schema_overrides=schema.ITEMS).cast(schema.ITEMS)


def test_the_behaviour_matrix_counts() -> None:
    x = behaviour_matrix(hand_made(), columns=3)
    assert x.shape == (2, 6, 3)
    assert x.shopper_N.tolist() == [3, 7]
    expected_NBC = np.zeros((2, 6, 3))
    expected_NBC[0, Event.VIEW, 0] = 2
    expected_NBC[1, Event.VIEW, 2] = expected_NBC[1, Event.PURCHASE, 2] = 1
    expected_NBC[1, Event.CART, 1] = 1
    assert np.array_equal(x.dense(), expected_NBC)
    for event in Event:
        assert np.array_equal(x.of(event).toarray(), expected_NBC[:, event])
    by_category = behaviour_matrix(hand_made(), columns=2, by="category").dense()
    assert by_category[1, Event.PURCHASE].tolist() == [0, 1]
    assert by_category[0, Event.VIEW].tolist() == [2, 0]
    asked = behaviour_matrix(hand_made(), columns=3, shoppers=np.array([9, 7]))
    assert asked.shopper_N.tolist() == [7, 9]
    assert np.array_equal(asked.dense(), np.stack([expected_NBC[1], np.zeros((6, 3))]))


def test_the_behaviour_matrix_is_of_the_events_given_alone() -> None:
    train = hand_made().filter(pl.col("session") != 1)
    assert behaviour_matrix(train, columns=3).of(Event.PURCHASE).sum() == 0


def test_normalised_counts_have_length_one_and_saturate() -> None:
    x = behaviour_matrix(hand_made(), columns=3, shoppers=np.array([3, 7, 9]))
    normal_NBC = x.normalised().dense()
    assert np.linalg.norm(normal_NBC.reshape(3, -1), axis=1) == pytest.approx([1.0, 1.0, 0.0])
    assert normal_NBC[0, Event.VIEW, 0] == pytest.approx(1.0)
    assert normal_NBC[1, Event.CART, 1] == pytest.approx(3**-0.5)


def test_what_a_matrix_cannot_hold_is_said() -> None:
    with pytest.raises(UsageError, match="item 2, beyond the 2"):
        behaviour_matrix(hand_made(), columns=2)
    with pytest.raises(UsageError, match="did you mean 'item'"):
        behaviour_matrix(hand_made(), columns=3, by="items")
    large = behaviour_matrix(hand_made(), columns=20_000_000)
    assert large.of(Event.VIEW).sum() == 3
    with pytest.raises(UsageError, match="too large"):
        large.dense()


def test_histories_are_sessions_in_order() -> None:
    told = histories(hand_made())
    assert told.shopper_S.tolist() == [3, 7, 7]
    assert told.items_ST.tolist() == [[0, 0], [2, 1], [2, -1]]
    view, cart, bought, search = Event.VIEW, Event.CART, Event.PURCHASE, Event.SEARCH
    assert told.events_ST.tolist() == [[view, view], [view, cart], [bought, search]]
    shown = histories(hand_made(), organic=False)
    assert shown.items_ST.tolist() == [[0, 0], [2, -1], [2, -1]]
    assert shown.events_ST.tolist() == [[view, view], [view, -1], [bought, -1]]
    newest = histories(hand_made(), most=1)
    assert newest.events_ST.tolist() == [[view], [cart], [search]]
    with pytest.raises(UsageError, match="preprocess the log first"):
        histories(hand_made().with_columns(session=pl.lit(None, pl.Int64)))
    with pytest.raises(UsageError, match="no event"):
        histories(hand_made().clear())


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(1, 9))
def test_histories_hold_every_event_once(seed: int, num: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    frame = made_logs.events(num, made_logs.items(5, rng), rng, length)
    told = histories(frame[rng.permutation(num)])
    assert told.interactions == num
    there = told.events_ST >= 0
    codes = frame["event"].to_physical().to_list()
    items = frame["item"].fill_null(-1).to_list()
    assert Counter(zip(told.items_ST[there], told.events_ST[there], strict=True)) == Counter(
        zip(items, codes, strict=True)
    )
    # oldest first: the end of a row is the end of its session
    assert (np.diff(there.astype(int), axis=1) <= 0).all()
    assert (
        told.items_ST[0, 0]
        == frame.sort("shopper", "session", "timestamp")["item"].fill_null(-1)[0]
    )


def test_a_log_is_seen_as_its_shop_shows_it() -> None:
    shop = RecsysVectorEnv(1, num_items=20, observation="behaviour", organic_views=1.0).shop
    told = seen_histories(hand_made(), shop)
    view, bought, search = Event.VIEW, Event.PURCHASE, Event.SEARCH
    assert told.items_ST.tolist() == [[0, 0, -1, -1], [2, 1, -1, -1], [2, 21, 21, 23]]
    assert told.events_ST.tolist() == [
        [view, view, -1, -1],
        [view, search, -1, -1],
        [bought, search, search, search],
    ]
    plain = seen_histories(hand_made(), RecsysVectorEnv(1, num_items=20).shop)
    assert plain.items_ST.tolist() == histories(hand_made(), organic=False).items_ST.tolist()
    with pytest.raises(UsageError, match="item 2, the shop 2 items"):
        seen_histories(hand_made(), RecsysVectorEnv(1, num_items=2).shop)


def test_a_log_has_what_its_shop_showed(tmp_path: Path) -> None:
    """All of it, and nothing besides, in whatever slots the sessions were."""
    shown = {"observation": "behaviour", "organic_views": 0.7, "organic_searches": 0.3}
    log = make_log(tmp_path / "log", Random(), shop=shown, num_envs=16, episodes=40)
    env = RecsysVectorEnv(16, **(SHOP | shown))
    told = seen_histories(log.events, env.shop)
    first = told.take(np.flatnonzero(np.unique(log.events["session"]) < 16))
    env.reset(seed=derive_seed(Role.LOG, 0))
    searches = np.zeros(16)
    while True:
        assert env.browsing is not None
        table_NB = env.browsing.table(16, env.shop.num_items)
        searches += (table_NB >= 0).sum(axis=1)
        *_, over_N, _, _ = env.step(np.zeros(16, dtype=np.int64))
        if over_N.any():
            break
    assert sorted((first.events_ST == Event.SEARCH).sum(axis=1)) == sorted(searches)
    assert log.about["events"]["organic"]["view"] > 0


def test_item_features_are_those_that_agents_see() -> None:
    catalogue = gym.make_vec("Recsys-v0", num_envs=1, num_items=30).shop.catalogue
    sizes = {"categories": catalogue.num_categories, "words": catalogue.keywords_IW.shape[1]}
    items = catalogue_frame(catalogue)
    shuffled = items[np.random.default_rng(0).permutation(30)]
    assert item_features(shuffled, sizes) == pytest.approx(catalogue.features_IF, abs=1e-6)
    gap = item_features(items.filter(pl.col("item") != 4), {**sizes, "items": 31})
    assert gap.shape == (31, catalogue.features_IF.shape[1])
    assert not gap[[4, 30]].any()


def test_what_an_item_lacks_is_zero_and_its_price_the_median() -> None:
    items = made_logs.items(9, np.random.default_rng(0), 3)
    nothing = pl.when(pl.col("item") != 8)
    bare = items.with_columns(nothing.then(name).alias(name) for name in ("category", "brand"))
    bare = bare.with_columns(price=nothing.then("price"), keywords=nothing.then("keywords"))
    features_IF = item_features(bare, {"categories": 3, "brands": 3, "words": made_logs.WORDS})
    assert not features_IF[8, :6].any()
    assert not features_IF[8, 7:].any()
    price_I = np.append(np.log(items["price"][:8]), np.log(np.median(items["price"][:8])))
    assert features_IF[:, 6] == pytest.approx((price_I - price_I.mean()) / price_I.std(), abs=1e-5)
    with pytest.raises(UsageError, match="category"):
        item_features(items, {"categories": 1})


def test_words_are_counted_in_one_space() -> None:
    lists = pl.Series([[0, 2, 2], [], None, [3]], dtype=pl.List(pl.Int32))
    bag_W = bag_of_words(lists)
    assert bag_W.tolist() == [[1, 0, 2, 0], [0] * 4, [0] * 4, [0, 0, 0, 1]]
    assert bag_of_words(lists, 6).shape == (4, 6)
    with pytest.raises(UsageError, match="word 3, beyond the 3"):
        bag_of_words(lists, 3)
    searched_NW = searched_words(hand_made(), np.array([3, 7]), 4)
    assert searched_NW.toarray().tolist() == [[0] * 4, [0, 2, 0, 1]]
    assert searched_words(hand_made(), np.array([3]), 4).sum() == 0
    with pytest.raises(UsageError, match="word 3, beyond the 2"):
        searched_words(hand_made(), np.array([3, 7]), 2)
    # the item whose words she searched for answers best
    item_words_IW = bag_of_words(pl.Series([[0], [1, 3], [2]], dtype=pl.List(pl.Int32)), 4)
    assert (searched_NW @ item_words_IW.T)[1].tolist() == [0, 3, 0]


def test_a_collected_log_comes_through_whole(tmp_path: Path) -> None:
    log = make_log(tmp_path / "log", habits=Habits(0.5, 0.2))
    report = preprocess(log.path, tmp_path / "clean")
    assert report["rows"]["in"] == report["rows"]["out"] == len(log.events)
    assert not any(report["filled"].values())
    assert report["outliers"] == report["bot_rows"] == report["sessions_cut"] == 0
    clean = schema.read_log(tmp_path / "clean")
    sizes = clean.about["catalogue"]
    assert item_features(clean.items, sizes).shape == (20, 4 + sizes["brands"] + 1 + sizes["words"])
    events = read_clean(tmp_path / "clean")
    told = histories(events, organic=False)
    assert told.items_ST.shape == (200, 10)
    shown = log.events.filter(pl.col("policy") != schema.ORGANIC).sort("shopper", "session", "step")
    assert told.items_ST.reshape(-1).tolist() == shown["item"].to_list()
    assert histories(events).items_ST.shape[1] > 10
    x = behaviour_matrix(events, sizes["items"])
    for event in Event:
        counted = (log.events["event"] == event.name.lower()).sum() * (event != Event.SEARCH)
        assert x.of(event).sum() == counted
    words_NW = searched_words(events, x.shopper_N, sizes["words"])
    assert words_NW.sum() == log.events["query"].list.len().sum() > 0
