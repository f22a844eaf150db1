"""What models make of an event log: counts, sequences, words and items as arrays.

Rows are shoppers or sessions, columns items, categories or words; the letters are those of the
glossary, and B for behaviours (the six events), W for words, C for items or categories.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from scipy import sparse

from agents.interest.histories import NOTHING, Histories
from experiments.logs.schema import EVENT, ORGANIC, SEARCH
from recenv.catalogue import public_features
from recenv.dynamics import Event
from recenv.errors import UsageError, unknown
from recenv.shop import Shop

BY = ("item", "category")
SEARCHED = pl.lit(SEARCH, dtype=EVENT)
MOST_CELLS = 100_000_000  # of a dense array: 400 MB


@dataclass(frozen=True, eq=False)
class BehaviourMatrix:
    """X: how often each shopper did what with which item, or with items of which category.

    Attributes:
        counts: (N, B * C), sparse; behaviours one after the other.
        shopper_N: whose row it is, in ascending order.
        columns: C.
    """

    counts: sparse.csr_array
    shopper_N: np.ndarray
    columns: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, B, C)."""
        return len(self.shopper_N), len(Event), self.columns

    def of(self, event: Event) -> sparse.csr_array:
        """The counts (N, C) of one behaviour."""
        return self.counts[:, event * self.columns : (event + 1) * self.columns]

    def dense(self) -> np.ndarray:
        """X as an array (N, B, C).

        Raises:
            UsageError: it would be too large.
        """
        if np.prod(self.shape, dtype=float) > MOST_CELLS:
            raise UsageError(
                f"a dense X of shape {self.shape} is too large: use the sparse counts, by=category"
                " or fewer shoppers"
            )
        dense: np.ndarray = self.counts.toarray().reshape(self.shape)
        return dense

    def normalised(self) -> BehaviourMatrix:
        """log(1 + count), each row scaled to length 1, so that the busy count no more.

        Nothing is fitted: a shopper's row depends on her own counts alone.
        """
        logged = self.counts.log1p()
        length_N = np.sqrt(logged.multiply(logged).sum(axis=1))
        scale_N = np.where(length_N > 0, 1.0 / np.maximum(length_N, 1e-12), 0.0)
        scaled = sparse.csr_array(logged.multiply(scale_N[:, None])).astype(np.float32)
        return replace(self, counts=scaled)


def behaviour_matrix(
    events: pl.DataFrame, columns: int, by: str = "item", shoppers: np.ndarray | None = None
) -> BehaviourMatrix:
    """X of the events given, and of no others: give those of the train part to learn from.

    Searches are of no item: see ``searched_words``.

    Args:
        events: columns of the schema, cleaned.
        columns: C, how many items or categories there are.
        by: "item" or "category".
        shoppers: whose rows to make, zero for those without events; None: of all who are there.

    Raises:
        UsageError: ``by`` is unknown, or an item or category lies beyond ``columns``.
    """
    if by not in BY:
        raise unknown("by", by, BY)
    shopper_N = np.unique(events["shopper"].to_numpy() if shoppers is None else shoppers)
    known = pl.col("shopper").is_in(pl.Series(shopper_N, dtype=pl.Int64).implode())
    told = events.filter(pl.col(by).is_not_null() & known)
    column = told[by].to_numpy().astype(np.int64)
    _size(by, int(column.max(initial=-1)) + 1, columns)
    row = np.searchsorted(shopper_N, told["shopper"].to_numpy())
    place = told["event"].to_physical().to_numpy().astype(np.int64) * columns + column
    shape = (len(shopper_N), len(Event) * columns)
    ones = np.ones(len(row), dtype=np.float32)
    counts = sparse.coo_array((ones, (row, place)), shape=shape).tocsr()
    return BehaviourMatrix(counts, shopper_N, columns)


def histories(events: pl.DataFrame, organic: bool = True, most: int | None = None) -> Histories:
    """The sessions of a log as sequences, oldest event first.

    Args:
        events: columns of the schema, every session known (``preprocess`` sees to it).
        organic: whether to keep what shoppers did by themselves; a search has item -1.
        most: keep only the newest events of longer sessions.

    Raises:
        UsageError: a session is missing, or nothing is left.
    """
    if events["session"].null_count():
        raise UsageError("events without session: preprocess the log first")
    if not organic:
        events = events.filter(pl.col("policy") != ORGANIC)
    if not len(events):
        raise UsageError("there is no event to make sequences of")
    order = ["shopper", "session", "timestamp", "step"]
    events = events.select(*order, "event", pl.col("item").fill_null(NOTHING)).sort(
        order, maintain_order=True
    )
    shopper, session = events["shopper"].to_numpy(), events["session"].to_numpy()
    begins = np.ones(len(events), dtype=bool)
    begins[1:] = (shopper[1:] != shopper[:-1]) | (session[1:] != session[:-1])
    first_S = np.flatnonzero(begins)
    length_S = np.diff(np.append(first_S, len(events)))
    steps = int(min(length_S.max(), most or length_S.max()))
    row = np.repeat(np.arange(len(first_S)), length_S)
    place = np.arange(len(events)) - np.repeat(first_S, length_S)
    place -= np.repeat(np.maximum(length_S - steps, 0), length_S)  # of what is kept
    kept = place >= 0

    def laid(values: np.ndarray) -> np.ndarray:
        table_ST = np.full((len(first_S), steps), NOTHING, dtype=np.int64)
        table_ST[row[kept], place[kept]] = values[kept]
        return table_ST

    items, codes = events["item"].to_numpy(), events["event"].to_physical().to_numpy()
    return Histories(laid(items), laid(codes), shopper[first_S])


def seen_histories(events: pl.DataFrame, shop: Shop) -> Histories:
    """The sessions of a log as agents see them in a shop.

    Where it shows what shoppers do by themselves, that stands among the answers as SEARCHes of
    items and of words (I + w); elsewhere it is left out.

    Args:
        events: as for ``histories``.

    Raises:
        UsageError: as by ``histories``, or there is an item beyond those of the shop.
    """
    if shop.settings.organic:
        word = shop.num_items + pl.col("query").cast(pl.Int64)
        event = pl.when(pl.col("policy") == ORGANIC).then(SEARCHED).otherwise("event")
        events = events.explode("query").with_columns(pl.coalesce("item", word), event=event)
        events = events.filter(pl.col("item").is_not_null())
    told = histories(events, organic=shop.settings.organic)
    most = int(told.items_ST[told.replies_ST].max(initial=-1))
    if most >= shop.num_items:
        raise UsageError(
            f"the log has item {most}, the shop {shop.num_items} items: set env.* as where it was "
            "collected"
        )
    return told


def item_features(items: pl.DataFrame, sizes: Mapping[str, int] | None = None) -> np.ndarray:
    """Public features (I, F) of a log's catalogue: one-hot category and brand, log price, words.

    The same as ``Catalogue.features_IF`` of the shop that was logged. Row i is item i; one that
    the catalogue does not list is a row of zeros. The log price is standardised over the
    catalogue, which is public: nothing is fitted on events.

    Args:
        items: columns of the schema's ITEMS. Without a category or brand an item has none;
            without a price, the median one.
        sizes: "categories", "brands", "words" and "items", as log.json has them under
            "catalogue"; what is not there is as large as the items need.

    Raises:
        UsageError: an item has a category, brand or word beyond ``sizes``.
    """
    sizes = sizes or {}
    item = items["item"].to_numpy()
    price = items["price"].fill_null(items["price"].median()).log().to_numpy()
    category, brand = (items[name].fill_null(-1).to_numpy() for name in ("category", "brand"))
    listed = public_features(
        category,
        brand,
        (price - price.mean()) / max(float(price.std()), 1e-6),
        bag_of_words(items["keywords"], sizes.get("words")),
        _size("category", int(category.max()) + 1, sizes.get("categories")),
        _size("brand", int(brand.max()) + 1, sizes.get("brands")),
    )
    count = _size("item", int(item.max()) + 1, sizes.get("items"))
    features_IF = np.zeros((count, listed.shape[1]), dtype=np.float32)
    features_IF[item] = listed
    return features_IF


def bag_of_words(words: pl.Series, size: int | None = None) -> np.ndarray:
    """How often each word stands in each list (.., W); a missing list is empty.

    Args:
        words: lists of word indices: the keywords of items, or the queries of searches.
        size: W; None: as large as the words need.

    Raises:
        UsageError: a word lies beyond ``size``.
    """
    row, word = _places(words)
    size = _size("word", int(word.max(initial=-1)) + 1, size)
    bag_W = np.bincount(row * size + word, minlength=len(words) * size)
    return bag_W.reshape(len(words), size).astype(np.float32)


def searched_words(events: pl.DataFrame, shopper_N: np.ndarray, size: int) -> sparse.csr_array:
    """How often each shopper searched for each word (N, W), in the space of the items' words.

    ``searched_words(...) @ item_words_IW.T`` says how well items answer what she searched for.

    Args:
        events: columns of the schema.
        shopper_N: whose rows to make, in ascending order (as in ``BehaviourMatrix``).
        size: W of the catalogue.

    Raises:
        UsageError: a word lies beyond ``size``.
    """
    known = pl.col("shopper").is_in(pl.Series(shopper_N, dtype=pl.Int64).implode())
    told = events.filter(pl.col("query").is_not_null() & known)
    search, word = _places(told["query"])
    _size("word", int(word.max(initial=-1)) + 1, size)
    row = np.searchsorted(shopper_N, told["shopper"].to_numpy())[search]
    ones = np.ones(len(row), dtype=np.float32)
    return sparse.coo_array((ones, (row, word)), shape=(len(shopper_N), size)).tocsr()


def _places(lists: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Which list each word stands in, and the word."""
    length = lists.list.len().fill_null(0).to_numpy()
    word = lists.explode().drop_nulls().to_numpy().astype(np.int64)
    return np.repeat(np.arange(len(lists)), length), word


def _size(what: str, needed: int, given: int | None) -> int:
    """How many there are, at least as many as are needed."""
    if given is None:
        return needed
    if needed > given:
        raise UsageError(f"there is a {what} {needed - 1}, beyond the {given} that are known")
    return given
