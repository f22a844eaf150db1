"""Logs from elsewhere: what is damaged is told in one line, what is good can be used."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from experiments.logs.schema import EVENT, EVENTS, ITEMS, REQUIRED, read_log, write_aside
from recenv.errors import UsageError

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HEADER = "shopper,session,step,timestamp,event,item,category,brand,price,query,policy,propensity"
GOOD = (
    "7,1,0,2025-03-01T10:00:00.5Z,view,2,0,1,9.5,,organic,",
    "7,1,0,2025-03-01 10:00:01,search,,,,,0 3,organic,",
    "7,1,0,2025-03-01T12:00:02+02:00,purchase,1,0,0,2,,ppo,0.25",
)
# a row, the column that is blamed, and what is said of it
BAD = {
    "negative price": ("7,1,1,2025-03-01,view,1,0,0,-3.5,,ppo,0.5", "price", "-3.5"),
    "no price": ("7,1,1,2025-03-01,view,1,0,0,0,,ppo,0.5", "price", "no price"),
    "infinite price": ("7,1,1,2025-03-01,view,1,0,0,inf,,ppo,0.5", "price", "inf"),
    "price in words": ("7,1,1,2025-03-01,view,1,0,0,cheap,,ppo,0.5", "price", "'cheap'"),
    "future": ("7,1,1,2026-01-01T00:00:01,view,1,0,0,2,,ppo,0.5", "timestamp", "future"),
    "no time": ("7,1,1,yesterday,view,1,0,0,2,,ppo,0.5", "timestamp", "'yesterday'"),
    "missing time": ("7,1,1,,view,1,0,0,2,,ppo,0.5", "timestamp", "missing"),
    "missing shopper": (",1,1,2025-03-01,view,1,0,0,2,,ppo,0.5", "shopper", "missing"),
    "unknown event": ("7,1,1,2025-03-01,viewed,1,0,0,2,,ppo,0.5", "event", "'viewed'"),
    "half an item": ("7,1,1,2025-03-01,view,1.5,0,0,2,,ppo,0.5", "item", "'1.5'"),
    "item of another shop": ("7,1,1,2025-03-01,view,4,0,0,2,,ppo,0.5", "item", "catalogue"),
    "huge item": ("7,1,1,2025-03-01,view,99999999999,0,0,2,,ppo,0.5", "item", "range"),
    "missing item": ("7,1,1,2025-03-01,view,,0,0,2,,ppo,0.5", "item", "missing"),
    "search of an item": ("7,1,1,2025-03-01,search,1,,,,3,organic,", "item", "search"),
    "search of nothing": ("7,1,1,2025-03-01,search,,,,,,organic,", "query", "missing"),
    "query in words": ("7,1,1,2025-03-01,search,,,,,3 tea,organic,", "query", "'3 tea'"),
    "negative step": ("7,1,-1,2025-03-01,view,1,0,0,2,,ppo,0.5", "step", "negative"),
    "propensity 0": ("7,1,1,2025-03-01,view,1,0,0,2,,ppo,0", "propensity", "'0'"),
    "propensity above 1": ("7,1,1,2025-03-01,view,1,0,0,2,,ppo,1.01", "propensity", "1.01"),
    "propensity NaN": ("7,1,1,2025-03-01,view,1,0,0,2,,ppo,NaN", "propensity", "NaN"),
    "cut row": ("7,1,1,2025-03-01,vi", None, "5 fields"),
    "long row": ("7,1,1,2025-03-01,view,1,0,0,2,,ppo,0.5,,", None, "14 fields"),
    "open quote": ('7,1,1,2025-03-01,view,1,0,0,2,,"ppo,0.5', None, "quote"),
}


def write_csv(path: Path, *rows: str, header: str = HEADER) -> Path:
    """A log directory with four items and these rows."""
    path.mkdir(exist_ok=True)
    items = {"item": [0, 1, 2, 3], "price": [1.0, 2.0, 9.5, 4.0]}
    pl.DataFrame(items).write_parquet(path / "items.parquet")
    (path / "events.csv").write_text("\n".join([header, *rows]) + "\n")
    return path


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        read_log(path, now=NOW, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_csv_log_is_read_in_the_schemas_types(tmp_path: Path) -> None:
    log = read_log(write_csv(tmp_path, *GOOD), now=NOW)
    assert dict(log.events.schema) == EVENTS
    assert dict(log.items.schema) == ITEMS
    assert log.events["item"].to_list() == [2, None, 1]
    assert log.events["query"].to_list() == [None, [0, 3], None]
    assert log.events["event"].to_list() == ["view", "search", "purchase"]
    assert log.events["propensity"].to_list() == [None, None, 0.25]
    # the three rows are half a second and a second apart, whatever zone they are told in
    seconds = log.events["timestamp"].diff().dt.total_milliseconds().to_list()
    assert seconds == [None, 500, 1000]
    assert log.events["timestamp"][0] == datetime(2025, 3, 1, 10, 0, 0, 500_000, tzinfo=UTC)
    assert not len(log.aside)
    assert log.about == {}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_named_and_the_good_ones_are_used(tmp_path: Path, kind: str) -> None:
    row, column, said = BAD[kind]
    path = write_csv(tmp_path, GOOD[0], GOOD[1], row, GOOD[2])
    message = refused(path)
    assert "events.csv, row 3 (line 4)" in message
    assert said in message
    log = read_log(path, on_bad="set_aside", now=NOW)
    clean = read_log(write_csv(tmp_path / "clean", *GOOD), now=NOW)
    assert log.events.equals(clean.events)
    (aside,) = log.aside.rows(named=True)
    assert aside["row"] == 3
    assert aside["content"] == row
    assert said in aside["reason"]
    assert aside["column"] == column
    assert column is None or f"column {column}" in message


def test_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    path = write_csv(tmp_path, *GOOD)
    rows = (path / "events.csv").read_bytes().replace(b"ppo", b"caf\xe9")
    (path / "events.csv").write_bytes(rows)
    message = refused(path)
    assert "row 3 (line 4), column policy: bytes that are no UTF-8" in message
    log = read_log(path, on_bad="set_aside", now=NOW)
    assert log.events["event"].to_list() == ["view", "search"]


def test_bytes_that_are_no_utf8_in_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    good = read_log(write_csv(tmp_path / "csv", *GOOD), now=NOW).events
    table = good.with_columns(pl.col("event").cast(pl.String)).to_arrow()
    policy = arrow.array([b"organic", b"caf\xe9", b"ppo"], arrow.binary())
    file = tmp_path / "log.parquet"
    as_text = arrow.StringArray.from_buffers(3, *policy.buffers()[1:])
    for column in (policy, as_text):  # as bytes, and as text that it is not
        place = table.column_names.index("policy")
        parquet.write_table(table.set_column(place, "policy", column), file)
        assert "log.parquet, row 2, column policy: bytes that are no UTF-8" in refused(file)
        log = read_log(file, on_bad="set_aside", now=NOW)
        assert log.events.equals(good[[0, 2]])
        assert log.aside["row"].to_list() == [2]


def test_all_bad_rows_are_counted_and_written(tmp_path: Path) -> None:
    rows = [row for row, *_ in BAD.values()]
    path = write_csv(tmp_path, rows[0], *GOOD, *rows[1:])
    assert "row 1 (line 2), column price: '-3.5'" in refused(path)
    assert f"({len(rows)} bad rows;" in refused(path)
    log = read_log(path, on_bad="set_aside", now=NOW)
    assert len(log.events) == len(GOOD)
    write_aside(log.aside, tmp_path / "aside" / "rows.csv")
    written = pl.read_csv(tmp_path / "aside" / "rows.csv")
    assert written["row"].to_list() == [1, *range(5, 4 + len(rows))]
    assert written["content"].to_list()[:2] == rows[:2]


def test_columns(tmp_path: Path) -> None:
    renamed = HEADER.replace("timestamp", "time")
    path = write_csv(tmp_path, *GOOD, header=renamed)
    for on_bad in ("error", "set_aside"):
        assert "no column 'timestamp': did you mean 'time'?" in refused(path, on_bad=on_bad)
    path = write_csv(tmp_path, *GOOD, header=HEADER.replace("price", "prise"))
    assert "unknown column 'prise': did you mean 'price'?" in refused(path)
    log = read_log(path, on_bad="set_aside", now=NOW)
    assert log.ignored == ("prise",)
    assert log.events["price"].null_count() == 3
    least = write_csv(tmp_path, "7,2025-01-01,view,2", header="shopper,timestamp,event,item")
    log = read_log(least, now=NOW)
    assert log.events["policy"].to_list() == ["unknown"]
    assert log.events["session"].to_list() == [None]


def test_a_wrong_type_in_parquet(tmp_path: Path) -> None:
    good = read_log(write_csv(tmp_path / "csv", *GOOD), now=NOW).events
    file = tmp_path / "log.parquet"
    good.with_columns(pl.col("price").cast(pl.String)).write_parquet(file)
    assert read_log(file, now=NOW).events.equals(good)  # text that is numbers
    good.with_columns(pl.Series("price", ["9.5", None, "two"])).write_parquet(file)
    assert "log.parquet, row 3, column price: 'two' is no number" in refused(file)
    assert len(read_log(file, on_bad="set_aside", now=NOW).events) == 2
    good.with_columns(pl.col("timestamp").cast(pl.Int64)).write_parquet(file)
    assert "column timestamp: it holds Int64" in refused(file)
    wrong = {"item": pl.Float64, "step": pl.Int64, "event": pl.String, "brand": pl.UInt8}
    good.cast(wrong).write_parquet(file)  # as pandas writes them
    assert read_log(file, now=NOW).events.equals(good)


def test_a_file_that_was_cut_short(tmp_path: Path) -> None:
    path = write_csv(tmp_path, *GOOD)
    good = read_log(path, now=NOW).events
    for name in ("events-0.parquet", "events-1.parquet"):
        good.write_parquet(path / name)
    (path / "events.csv").unlink()
    assert read_log(path, now=NOW).events.equals(pl.concat([good, good]))
    whole = (path / "events-1.parquet").read_bytes()
    (path / "events-1.parquet").write_bytes(whole[: len(whole) // 2])
    assert "events-1.parquet is damaged or was cut short" in refused(path)
    log = read_log(path, on_bad="set_aside", now=NOW)
    assert log.events.equals(good)
    assert log.aside["file"].to_list() == [str(path / "events-1.parquet")]
    assert log.aside["row"].to_list() == [None]
    (path / "events-0.parquet").write_bytes(b"")
    assert "no row that can be used" in refused(path, on_bad="set_aside")


def test_one_file_without_a_column_does_not_take_the_others_along(tmp_path: Path) -> None:
    path = write_csv(tmp_path, *GOOD)
    good = read_log(path, now=NOW).events
    good.drop("timestamp").write_parquet(path / "events-0.parquet")
    assert "events-0.parquet has no column 'timestamp'" in refused(path)
    log = read_log(path, on_bad="set_aside", now=NOW)
    assert log.events.equals(good)
    assert log.aside["row"].to_list() == [None]


def test_what_is_no_log(tmp_path: Path) -> None:
    assert "there is no log" in refused(tmp_path / "nothing")
    assert "no events" in refused(tmp_path)
    (tmp_path / "events.csv").write_text("")
    assert "is empty" in refused(tmp_path)
    assert "did you mean" in refused(tmp_path, on_bad="aside")
    (tmp_path / "log.txt").write_text("shopper")
    assert "must end in" in refused(tmp_path / "log.txt")
    (tmp_path / "events.csv").write_text(HEADER + "\n")
    assert "no row that can be used" in refused(tmp_path)


def test_items_are_told_by_the_events_where_nothing_else_does(tmp_path: Path) -> None:
    path = write_csv(tmp_path, *GOOD, GOOD[0].replace("9.5", "11.5"))
    (path / "items.parquet").unlink()
    items = read_log(path, now=NOW).items
    assert dict(items.schema) == ITEMS
    assert items.select("item", "price", "brand").rows() == [(1, 2.0, 0), (2, 10.5, 1)]


def test_a_damaged_catalogue(tmp_path: Path) -> None:
    path = write_csv(tmp_path, *GOOD)
    pl.DataFrame({"item": [1, 2, 2]}).write_parquet(path / "items.parquet")
    assert "items.parquet, row 2, column item: '2' stands there twice" in refused(path)


def test_every_event_has_its_word() -> None:
    words = ["ignore", "not_interested", "view", "cart", "purchase", "search"]
    assert EVENT.categories.to_list() == words


def test_the_documented_columns_are_the_schemas() -> None:
    page = (Path(__file__).parents[2] / "docs" / "logs.md").read_text()
    for heading, schema in {"## Events": EVENTS, "## Items": ITEMS}.items():
        table = page.partition(heading)[2].partition("\n## ")[0]
        rows = [row.split("|")[1:4] for row in table.splitlines() if row.startswith("| `")]
        assert [name.strip(" `") for name, *_ in rows] == list(schema)
        required = {name.strip(" `") for name, _, meaning in rows if "**required**" in meaning}
        assert required == (set(REQUIRED) if schema is EVENTS else {"item"})
        types = {name.strip(" `"): kind.split()[0] for name, kind, _ in rows}
        assert all(str(schema[name]).startswith(kind) for name, kind in types.items())
