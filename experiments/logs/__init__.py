"""Event logs: what shoppers were shown and did, written, read and made ready for learning."""

from __future__ import annotations

from recenv.errors import MissingExtra

try:
    import polars  # noqa: F401
except ModuleNotFoundError:
    raise MissingExtra("experiments.logs", "polars", "logs") from None
