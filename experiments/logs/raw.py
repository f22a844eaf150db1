"""Files of a log as they are: columns and rows before anything is believed of them."""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import polars as pl
from polars.exceptions import PolarsError

from recenv.errors import MissingExtra, UsageError

ENDINGS = (".parquet", ".csv")
REPLACED = "\ufffd"  # what stands for bytes that are no UTF-8
ROW = "row"  # of the file, counted from 1 behind the header
NO_UTF8 = "bytes that are no UTF-8"
QUOTED = '"[^"]*"'


class Raw(NamedTuple):
    """What a file holds.

    Attributes:
        rows: its columns, and ``ROW``.
        broken: lines that are no rows: ``ROW``, "text", the "column" if it is one's, "reason".
    """

    rows: pl.DataFrame
    broken: pl.DataFrame


def read_raw(path: Path) -> Raw:
    """Read a Parquet or CSV file.

    Raises:
        UsageError: there is no such file, it is of another kind, or it is damaged as a whole.
    """
    if path.suffix not in ENDINGS:
        raise UsageError(f"{path} is no log: its name must end in {' or '.join(ENDINGS)}")
    try:
        return _read_csv(path) if path.suffix == ".csv" else _read_parquet(path)
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except (PolarsError, pl.exceptions.PanicException) as error:
        why = str(error).partition("\n")[0]
        raise UsageError(f"{path} is damaged or was cut short: {why}") from None


def _read_parquet(path: Path) -> Raw:
    """Text that is no UTF-8 makes its row a broken one."""
    # opened here, so that what is missing or unreadable is an OSError
    with path.open("rb") as file:
        try:
            rows = pl.read_parquet(file)
        except PolarsError as error:
            if "UTF-8" not in str(error):
                raise
            rows = _read_bytes(path)
    rows = _numbered(rows, range(1, len(rows) + 1))
    broken = pl.DataFrame(schema=BROKEN)
    for name in (name for name, dtype in rows.schema.items() if dtype == pl.Binary):
        text = [_decoded(value) for value in rows[name]]
        whole = pl.Series([REPLACED not in (value or "") for value in text], dtype=pl.Boolean)
        rows = rows.with_columns(pl.Series(name, text, dtype=pl.String))
        told = rows.filter(~whole).select(
            ROW, pl.col(name).alias("text"), pl.lit(name).alias("column"), pl.lit(NO_UTF8)
        )
        broken = pl.concat([broken, told.rename({"literal": "reason"})])
        rows = rows.filter(whole)
    return Raw(rows, broken)


def _read_bytes(path: Path) -> pl.DataFrame:
    """A Parquet file with its text as bytes: polars reads no text that is no UTF-8."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise MissingExtra("reading text that is no UTF-8", "pyarrow", "logs") from None
    table = parquet.read_table(path)
    texts = (pyarrow.types.is_string, pyarrow.types.is_large_string)
    fields = [
        field.with_type(pyarrow.binary()) if any(text(field.type) for text in texts) else field
        for field in table.schema
    ]
    rows = pl.from_arrow(table.cast(pyarrow.schema(fields)))
    assert isinstance(rows, pl.DataFrame)
    return rows


def _decoded(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="replace")


def _read_csv(path: Path) -> Raw:
    """All columns as text; lines that are no UTF-8 or have too few fields are broken.

    A field in quotes may hold commas, but no line break.
    """
    data = path.read_bytes()
    try:
        text, whole = data.decode("utf-8-sig"), True
    except UnicodeDecodeError:
        text, whole = data.decode("utf-8-sig", errors="replace"), False
    header, *lines = text.split("\n")
    if not header.strip():
        raise UsageError(f"{path} is empty: it needs a header with the names of its columns")
    line = pl.DataFrame({ROW: range(1, len(lines) + 1), "text": lines}, schema=LINES)
    line = line.with_columns(pl.col("text").str.strip_chars_end("\r")).filter(pl.col("text") != "")
    reason = _why_broken(_fields(pl.lit(header.strip("\r"))), whole)
    line = line.with_columns(reason.alias("reason"))
    good = line.filter(pl.col("reason").is_null())
    # what is good is parsed by itself: quotes in a broken line would swallow the next ones
    body = "\n".join([header.strip("\r"), *good["text"]]) + "\n"
    rows = pl.read_csv(io.BytesIO(body.encode()), infer_schema=False)
    broken = line.filter(pl.col("reason").is_not_null())
    names = next(csv.reader([header]))
    column = [_undecoded(text, names) for text in broken["text"]]
    broken = broken.with_columns(pl.Series("column", column, dtype=pl.String))
    return Raw(_numbered(rows, good[ROW]), broken.select(list(BROKEN)))


LINES = {ROW: pl.Int64, "text": pl.String}
BROKEN = {**LINES, "column": pl.String, "reason": pl.String}


def _undecoded(text: str, names: list[str]) -> str | None:
    """The column of a line's first field with bytes that were replaced."""
    fields = zip(next(csv.reader([text])), names, strict=False)
    return next((name for field, name in fields if REPLACED in field), None)


def _bare(text: pl.Expr) -> pl.Expr:
    """A line without what it quotes."""
    return text.str.replace_all(QUOTED, "")


def _fields(text: pl.Expr) -> pl.Expr:
    """How many fields a line has."""
    return _bare(text).str.count_matches(",", literal=True) + 1


def _why_broken(wanted: pl.Expr, whole: bool) -> pl.Expr:
    """What keeps a line from being a row; null where nothing does."""
    text, found = pl.col("text"), _fields(pl.col("text"))
    fields = pl.format("the row has {} fields, the header {}", found, wanted)
    undecoded = text.str.contains(REPLACED, literal=True) & (not whole)
    return pl.coalesce(
        pl.when(undecoded).then(pl.lit(NO_UTF8)),
        pl.when(_bare(text).str.contains('"', literal=True)).then(pl.lit("a quote stays open")),
        pl.when(found != wanted).then(fields),
    )


def _numbered(rows: pl.DataFrame, number: Iterable[int]) -> pl.DataFrame:
    return rows.with_columns(pl.Series(ROW, number, dtype=pl.Int64))


def nearest(name: str, names: Iterable[str]) -> str:
    """(did you mean ...?), or nothing."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f": did you mean {near[0]!r}?" if near else ""
