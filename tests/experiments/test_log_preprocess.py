"""Preprocessing: no row is lost, nothing is changed twice, and order does not matter."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import made_logs
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from test_run import command, one_line

from experiments import preprocess as front_door
from experiments.logs import cleaning, schema
from experiments.logs.cleaning import Rules
from experiments.logs.preprocess import Asked, preprocess, read_clean
from recenv.errors import UsageError

MINUTE = 60_000_000


def made(**columns: Any) -> pl.DataFrame:
    """Events of one shopper by hand; ``at`` is in minutes."""
    length = len(next(iter(columns.values())))
    at = columns.pop("at", list(range(length)))
    defaults: dict[str, Any] = {"shopper": 1, "session": 1, "step": 0, "event": "view", "item": 0}
    defaults |= {"category": 0, "brand": 0, "price": 2.0, "query": None, "policy": "ppo"}
    defaults |= {"propensity": None}
    times = [made_logs.BEGIN * 1_000_000 + int(minute * MINUTE) for minute in at]
    frame = pl.DataFrame({"timestamp": times, **columns})
    missing = [pl.lit(of).alias(name) for name, of in defaults.items() if name not in columns]
    return frame.with_columns(missing).select(*schema.EVENTS).cast(schema.EVENTS)


@contextmanager
def log_of(frame: pl.DataFrame, catalogue: pl.DataFrame | None, files: int = 1) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as place:
        yield made_logs.write(Path(place) / "log", frame, catalogue, files)


def dirty(seed: int, num: int, length: int = 7) -> tuple[pl.DataFrame, pl.DataFrame]:
    rng = np.random.default_rng(seed)
    catalogue = made_logs.items(6, rng)
    clean = made_logs.events(num, catalogue, rng, length)
    return made_logs.soil(clean, rng, 0.05), catalogue


def outcome(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(SEEDS, st.integers(60, 300), st.integers(1, 3), st.sampled_from([50, 10_000]))
def test_the_ledger_adds_up_and_a_clean_log_is_left_as_it_is(
    seed: int, num: int, files: int, rows_at_once: int
) -> None:
    frame, catalogue = dirty(seed, num)
    asked = Asked(rows_at_once=rows_at_once)
    with log_of(frame, catalogue, files) as log:
        once, twice = log.with_name("once"), log.with_name("twice")
        rows = preprocess(log, once, asked)["rows"]
        assert rows["in"] == len(frame) == rows["out"] + rows["duplicates"] + rows["rejected"]
        assert rows["duplicates"] > 0
        assert rows["rejected"] == len(pl.read_parquet(once / "rejected.parquet")) > 0
        assert rows["out"] == len(read_clean(once))
        again = preprocess(once, twice, asked)
        assert again["rows"] == {"in": rows["out"], "out": rows["out"], "duplicates": 0,
                                 "rejected": 0}  # fmt: skip
        assert not any(again["filled"].values())
        assert again["sessions_cut"] == 0
        assert_frame_equal(read_clean(once), read_clean(twice))
        for name in ("shoppers", "items"):
            assert_frame_equal(*(pl.read_parquet(of / f"{name}.parquet") for of in (once, twice)))


@settings(max_examples=6, deadline=None, derandomize=True)
@given(SEEDS, SEEDS, st.integers(1, 4), st.sampled_from(["time", "shopper"]))
def test_neither_order_nor_files_nor_pieces_matter(
    seed: int, order: int, files: int, split: str
) -> None:
    frame, catalogue = dirty(seed, 200)
    frame = frame.with_columns(pl.when(pl.col("shopper") % 3 != 0).then("session"))
    shuffled = frame[np.random.default_rng(order).permutation(len(frame))]
    with log_of(frame, catalogue) as one, log_of(shuffled, catalogue, files) as other:
        reports = [
            preprocess(one, one.with_name("out"), Asked(split=split)),
            preprocess(other, other.with_name("out"), Asked(split=split, rows_at_once=80)),
        ]
        assert reports[0]["sessions_cut"] > 0
        normalised = [report.pop("normalisation") for report in reports]
        for report in reports:
            del report["log"]
        assert reports[0] == reports[1]
        for name, values in normalised[0].pop("counts").items():
            assert values == pytest.approx(normalised[1]["counts"][name])
        for name, values in normalised[0].items():
            assert values == pytest.approx(normalised[1][name])
        mine, theirs = (read_clean(log.with_name("out")) for log in (one, other))
        assert_frame_equal(mine, theirs)


def test_every_kind_of_dirt_is_found_and_only_that() -> None:
    rng = np.random.default_rng(0)
    catalogue = made_logs.items(20, rng)
    clean = made_logs.events(2000, catalogue, rng)
    with log_of(clean, catalogue) as log:
        report = preprocess(log, log.with_name("out"), Asked(split="none"))
        assert report["rows"] == {"in": 2000, "out": 2000, "duplicates": 0, "rejected": 0}
        assert report["outliers"] == report["bot_rows"] == 0
        told = read_clean(log.with_name("out")).select(*schema.EVENTS)
        assert_frame_equal(told, clean.sort("shopper", "timestamp"))
    with log_of(made_logs.soil(clean, rng, 0.05), catalogue) as log:
        report = preprocess(log, log.with_name("out"), Asked(split="none"))
        assert report["rows"]["in"] == 2100
        assert 80 <= report["rows"]["duplicates"] <= 100
        assert report["rejected"]["shopper is missing"] >= 95
        assert report["rejected"]["price is no price above 0"] >= 80
        for name in ("session", "category", "brand", "price"):
            assert 70 <= report["filled"][name] <= 100
        assert report["sessions_cut"] == 0  # every gap lies within a session that has a name
        assert 70 <= report["outliers"] <= 100
        told = read_clean(log.with_name("out")).filter(~pl.col("outlier"))
        key = ["shopper", "timestamp", "event"]
        both = told.join(clean, on=key, how="left", suffix="_true", nulls_equal=True)
        for name in ("session", "category", "brand", "price"):
            assert both[name].eq_missing(both[f"{name}_true"]).all()


def test_of_two_copies_the_fuller_one_stays() -> None:
    frame = made(
        at=[0, 0, 0, 1], price=[None, 5.0, None, 2.0], session=[None, None, 1, 1],
        query=[None] * 4,
    )  # fmt: skip
    kept = cleaning.without_duplicates(frame)
    assert kept["price"].to_list() == [5.0, 2.0]
    # of equally full ones it is the same one, in whatever order they come
    other = made(at=[0, 0], price=[6.0, 5.0])
    for order in ([0, 1], [1, 0]):
        assert cleaning.without_duplicates(other[order])["price"].to_list() == [5.0]
    searches = made(at=[0, 0, 0], event=["search"] * 3, item=[None] * 3, query=[[1], [1], [1, 2]])
    assert cleaning.without_duplicates(searches)["query"].to_list() in ([[1], [1, 2]],
                                                                      [[1, 2], [1]])  # fmt: skip


def test_sessions_are_cut_at_gaps_unless_the_log_names_them() -> None:
    at = [0, 29, 58, 89, 200, 200, 201]
    frame = made(at=at, session=[None] * 7, shopper=[1, 1, 1, 1, 1, 2, 2], item=list(range(7)))
    cut = cleaning.with_sessions(cleaning.without_duplicates(frame), 30.0, 100)
    assert cut["session"].to_list() == [100, 100, 100, 101, 102, 103, 103]
    longer = cleaning.with_sessions(cleaning.without_duplicates(frame), 31.0, 100)
    assert longer["session"].to_list() == [100, 100, 100, 100, 101, 102, 102]
    named = frame.with_columns(session=pl.Series([7, None, 8, 8, 8, None, 9]))
    kept = cleaning.with_sessions(cleaning.without_duplicates(named), 30.0, 100)
    # a gap of 111 minutes within session 8 stays; the second joins 7, the sixth 9 after it
    assert kept["session"].to_list() == [7, 7, 8, 8, 8, 9, 9]


def test_a_missing_step_is_how_many_recommendations_came_before() -> None:
    frame = made(
        at=[0, 1, 2, 3, 4], step=[0, None, None, None, 2], item=[0, 1, None, 2, 3],
        event=["view", "view", "search", "view", "view"], query=[None, None, [3], None, None],
        policy=["ppo", "organic", "organic", "ppo", "ppo"],
    )  # fmt: skip
    filled = cleaning.with_sessions(cleaning.without_duplicates(frame), 30.0, 0)
    assert filled["step"].to_list() == [0, 1, 1, 1, 2]


def test_prices_are_filled_from_the_catalogue_and_its_categories() -> None:
    catalogue = pl.DataFrame(
        {
            "item": [0, 1, 2, 3, 4, 5],
            "category": [0, 0, 0, 1, 1, 2],
            "brand": [5, 5, 6, 5, 6, 6],
            "price": [2.0, 4.0, None, None, 10.0, None],
            "keywords": [[]] * 6,
            "name": [None] * 6,
        },
        schema=schema.ITEMS,
    )
    known = cleaning.catalogue(catalogue)
    assert known["item_price"].to_list() == [2.0, 4.0, 3.0, 10.0, 10.0, 4.0]
    frame = made(item=[0, 2, 3, 9, 1], price=[None, None, None, None, 8.0], category=[None] * 5)
    filled = cleaning.filled_from_catalogue(frame, known)
    assert filled["price"].to_list() == [2.0, 3.0, 10.0, None, 8.0]
    assert filled["category"].to_list() == [0, 0, 1, None, 0]
    ratios = filled["price_ratio"].to_list()
    assert ratios[-1] == pytest.approx(np.log(2.0))
    assert ratios[:3] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"at": np.arange(60) / 20, "item": np.arange(60) % 7}, None),
        ({"at": np.arange(60) / 6000, "item": np.arange(60) % 7}, "most gaps under 0.2 s"),
        ({"at": np.arange(49) / 6000, "item": np.arange(49) % 7}, None),  # too few to tell
        ({"at": np.arange(60) / 20, "item": [3] * 60}, "always the same act"),
        ({"at": np.arange(60) / 20, "item": [3] * 60, "event": ["ignore"] * 60}, None),
        ({"at": np.arange(60) / 20, "item": [3] * 60, "event": ["view", "cart"] * 30}, None),
        ({"at": np.arange(200) / 4, "item": np.arange(200) % 7}, "more than 150 acts in an hour"),
        ({"at": np.arange(200) / 2, "item": np.arange(200) % 7}, None),  # 120 an hour
    ],
)  # fmt: skip
def test_a_bot_is_called_one_for_a_reason(columns: dict[str, Any], why: str | None) -> None:
    frame = cleaning.without_duplicates(made(**columns))
    found = cleaning.bots(frame, Rules(bot_hour=150))["bot"].to_list()
    assert found == ([] if why is None else [why])


def test_gaps_between_sessions_are_nobodys_haste() -> None:
    at = np.repeat(np.arange(60) * 60.0, 2) + np.tile([0.0, 0.001], 60)
    frame = made(at=at, session=np.arange(120), item=np.arange(120) % 7)
    assert cleaning.bots(cleaning.without_duplicates(frame), Rules()).is_empty()


def test_outliers_are_measured_by_how_prices_vary() -> None:
    rng = np.random.default_rng(0)
    middle, spread = cleaning.spread(np.append(rng.normal(0.1, 0.2, 10_000), [50.0] * 500), 0.1)
    assert middle == pytest.approx(0.1, abs=0.03)
    assert spread == pytest.approx(0.2, abs=0.03)
    assert cleaning.spread(np.zeros(10), 0.1) == (0.0, 0.1)
    assert cleaning.spread(np.zeros(0), 0.1) == (0.0, 0.1)


@pytest.mark.parametrize("split", ["time", "shopper"])
def test_what_normalises_comes_from_train_alone(split: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    catalogue = made_logs.items(20, rng)
    clean = made_logs.events(3000, catalogue, rng)
    log = made_logs.write(tmp_path / "log", clean, catalogue)
    asked = Asked(split=split, validation=0.2, test=0.2)
    before = preprocess(log, tmp_path / "before", asked)["normalisation"]
    told = read_clean(tmp_path / "before")
    # what lies in the other parts is another world: all searches gone, all prices tripled
    held = told.filter(pl.col("part") != "train").select(*schema.EVENTS)
    held = held.with_columns(pl.col("price") * 3, event=pl.lit("cart", dtype=schema.EVENT),
                             item=pl.lit(0, pl.Int32), query=None)  # fmt: skip
    train = told.filter(pl.col("part") == "train").select(*schema.EVENTS)
    log = made_logs.write(tmp_path / "other", pl.concat([train, held]).cast(schema.EVENTS),
                          catalogue)  # fmt: skip
    after = preprocess(log, tmp_path / "after", asked)["normalisation"]
    assert after["ratio"] == before["ratio"]
    assert after["price"] == pytest.approx(before["price"])
    for name, values in before["counts"].items():
        assert after["counts"][name] == pytest.approx(values)
    z = told.filter(pl.col("part") == "train")["price_z"].drop_nulls()
    assert abs(z.mean()) < 1e-4
    assert z.std() == pytest.approx(1.0, abs=1e-3)
    shoppers = pl.read_parquet(tmp_path / "before" / "shoppers.parquet")
    view_z = shoppers.filter(pl.col("part") == "train")["view_z"]
    assert abs(view_z.mean()) < 1e-4
    assert view_z.std(ddof=0) == pytest.approx(1.0, abs=1e-3)


def test_flagged_rows_are_kept_and_can_be_left_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    catalogue = made_logs.items(20, rng)
    clean = made_logs.events(400, catalogue, rng)
    robot = made(shopper=[99_999] * 80, session=[99_999] * 80, at=np.arange(80) / 6000,
                 item=np.arange(80) % 7)  # fmt: skip
    log = made_logs.write(tmp_path / "log", pl.concat([clean, robot]), catalogue)
    report = preprocess(log, tmp_path / "out", Asked())
    assert report["bots"] == {"most gaps under 0.2 s": 1}
    assert report["bot_rows"] == 80
    assert "bots flagged: most gaps under 0.2 s | 1 " in (tmp_path / "out/report.md").read_text()
    assert len(read_clean(tmp_path / "out")) == 480
    left = read_clean(tmp_path / "out", flagged=False)
    # of the robot's prices, which are far from the catalogue's, none is left either
    assert len(left) == 400
    assert len(read_clean(tmp_path / "out", "train")) == report["parts"]["train"]


def test_damaged_logs_are_used_as_far_as_they_go(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    catalogue = made_logs.items(20, rng)
    clean = made_logs.events(300, catalogue, rng)
    log = made_logs.write(tmp_path / "log", clean, catalogue, files=3)
    cut = log / "events-0001.parquet"
    cut.write_bytes(cut.read_bytes()[:500])
    future = made(at=[0.0]).with_columns(pl.col("timestamp").dt.offset_by("1000y"))
    future.with_columns(colour=pl.lit("red")).write_parquet(log / "events-0009.parquet")
    about = {"files": {"events-0000.parquet": 100, "events-0005.parquet": 1}}
    (log / "log.json").write_text(json.dumps(about))
    report = preprocess(log, tmp_path / "out")
    assert report["rows"] == {"in": 201, "out": 200, "duplicates": 0, "rejected": 1}
    cut_short, missing = sorted(report["lost"])
    assert "events-0001.parquet is damaged or was cut short" in cut_short
    assert missing.endswith("events-0005.parquet is missing")
    assert "future" in next(iter(report["rejected"]))
    assert report["ignored"] == {"colour": 1}
    aside = pl.read_parquet(tmp_path / "out" / "rejected.parquet")
    assert len(aside) == 3
    assert aside.filter(pl.col("row").is_not_null())["file"][0].endswith("events-0009.parquet")
    assert schema.read_log(tmp_path / "out").about["rows"] == 200  # a log like others


def test_a_log_without_a_good_row_is_refused(tmp_path: Path) -> None:
    frame = made(at=[0, 1], price=[-1.0, -2.0])
    log = made_logs.write(tmp_path / "log", frame, None)
    with pytest.raises(UsageError, match=r"no row that can be used, '-1\.0' is no price above 0"):
        preprocess(log, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_log_from_elsewhere_needs_no_catalogue(tmp_path: Path) -> None:
    lines = ["shopper,timestamp,event,item,price"]
    lines += [f"{n % 3},2024-01-01T10:{n:02d}:00,view,{n % 5},{n % 5 + 1}.5" for n in range(60)]
    lines[7] = "1,2024-01-01T10:06:00,view,1,"
    lines.append("1,2024-01-01T11:00:00,stare,1,2.5")
    (tmp_path / "shop.csv").write_text("\n".join(lines) + "\n")
    front_door.main([f"log={tmp_path / 'shop.csv'}", "split=shopper", "validation=0.3",
                     "test=0.3", "progress=false"])  # fmt: skip
    report = outcome(tmp_path / "shop-clean")
    assert report["rows"] == {"in": 61, "out": 60, "duplicates": 0, "rejected": 1}
    assert report["filled"]["price"] == 1
    assert report["filled"]["session"] == 60
    assert report["sessions_cut"] == 3
    assert set(report["parts"]) == {"train", "validation", "test"}
    assert read_clean(tmp_path / "shop-clean")["price"].null_count() == 0


def test_a_users_mistake_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    catalogue = made_logs.items(5, rng)
    made_logs.write(tmp_path / "log", made_logs.events(50, catalogue, rng), catalogue)
    log = f"log={tmp_path / 'log'}"
    one_line(command("preprocess", log, "splt=time"), "did you mean 'split'")
    for words, part in [
        ([], "log=<directory>"),
        ([f"log={tmp_path / 'nothing'}"], "there is no log"),
        ([log, "split=tme"], "did you mean 'time'"),
        ([log, "test=0.5", "validation=0.5"], "leave some for training"),
        ([log, "session_gap=soon"], "session_gap must be a number"),
        ([log, "rows_at_once=0"], "rows_at_once must lie in"),
        ([log, "progress=7"], "progress must be true or false"),
        ([log, f"out={tmp_path}"], "is no preprocessed log"),
        ([log, "if_exists=ask"], "unknown if_exists"),
        ([log, f"out={tmp_path / 'log' / 'items.parquet' / 'x'}"], "cannot write"),
    ]:
        with pytest.raises(UsageError, match=part):
            front_door.main(["progress=false", *words])
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    front_door.main([log, "progress=false"])
    with pytest.raises(UsageError, match="if_exists=overwrite"):
        front_door.main([log, "progress=false"])
    front_door.main([log, "progress=false", "if_exists=overwrite"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log-clean"]
    with pytest.raises(UsageError, match="unknown part"):
        read_clean(tmp_path / "log-clean", "trian")
    with pytest.raises(UsageError, match=r"report\.json"):
        read_clean(tmp_path / "log")
