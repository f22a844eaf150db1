"""What is sold: public features that agents see, and secrets that only shoppers feel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from recenv.errors import UsageError

FloatArray = np.ndarray[Any, np.dtype[np.floating[Any]]]
IntArray = np.ndarray[Any, np.dtype[np.integer[Any]]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The items of a shop.

    Public: category, brand, price, keywords. Secret: appeal, quality, embedding.

    Attributes:
        category_I: index of the category, 0..K-1.
        brand_I: index of the brand.
        price_I: price in the shop's currency, > 0.
        keywords_IW: how often each word stands in the item's description.
        appeal_I: how tempting an item looks, in units of utility.
        quality_I: how satisfied its buyer is, in [-1, 1].
        embedding_ID: unit vectors in the space of interests.
        num_categories: K (a category may be empty).
        item_names, category_names: what to call them in pictures and reports.
        log_price_scale: mean and standard deviation that standardise the log price; None
            measures them. A part of a catalogue keeps those of the whole, so that the same
            price means the same.
    """

    category_I: IntArray
    brand_I: IntArray
    price_I: FloatArray
    keywords_IW: FloatArray
    appeal_I: FloatArray
    quality_I: FloatArray
    embedding_ID: FloatArray
    num_categories: int
    item_names: tuple[str, ...] = ()
    category_names: tuple[str, ...] = ()
    log_price_scale: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        sizes = {len(getattr(self, name)) for name in ARRAYS}
        if len(sizes) != 1 or 0 in sizes:
            raise UsageError(f"a catalogue's arrays must have one length > 0, got {sorted(sizes)}")
        for name in ARRAYS:
            axes = len(name.rpartition("_")[2])
            if getattr(self, name).ndim != axes:
                raise UsageError(f"the catalogue's {name} must have {axes} axes")
            if not np.isfinite(getattr(self, name)).all():
                raise UsageError(f"the catalogue's {name} holds values that are not finite")
        if self.category_I.min() < 0 or self.category_I.max() >= self.num_categories:
            raise UsageError(f"category_I must lie in 0..{self.num_categories - 1}")
        if self.price_I.min() <= 0:
            raise UsageError("prices must be positive")
        if np.abs(self.quality_I).max() > 1:
            raise UsageError("quality_I must lie in -1..1")
        if self.brand_I.min() < 0:
            raise UsageError("brand_I must be 0 or more")
        if self.item_names and len(self.item_names) != self.num_items:
            raise UsageError(f"{self.num_items} items have {len(self.item_names)} item_names")
        if self.category_names and len(self.category_names) != self.num_categories:
            raise UsageError(
                f"{self.num_categories} categories have {len(self.category_names)} category_names"
            )
        if self.log_price_scale is not None:
            mean, scale = self.log_price_scale
            if not (np.isfinite(mean) and np.isfinite(scale) and scale > 0):
                raise UsageError(f"log_price_scale must be mean and spread: {mean}, {scale}")

    @property
    def num_items(self) -> int:
        return len(self.category_I)

    @property
    def interest_dim(self) -> int:
        return int(self.embedding_ID.shape[1])

    @cached_property
    def log_price_I(self) -> FloatArray:
        """Log price, standardised over the catalogue."""
        mean, scale = self.log_price_standard
        standardised: FloatArray = (np.log(self.price_I) - mean) / scale
        return standardised.astype(np.float32)

    @cached_property
    def log_price_standard(self) -> tuple[float, float]:
        """Mean and standard deviation that standardise the log price."""
        if self.log_price_scale is not None:
            return self.log_price_scale
        log_price = np.log(self.price_I)
        return float(log_price.mean()), max(float(log_price.std()), 1e-6)

    @cached_property
    def features_IF(self) -> FloatArray:
        """What agents may know of an item: one-hot category and brand, log price, words."""
        return public_features(
            self.category_I,
            self.brand_I,
            self.log_price_I,
            self.keywords_IW,
            self.num_categories,
            int(self.brand_I.max()) + 1,
        )

    def facts(self, difficulty: float) -> FloatArray:
        """(I, 4): what a step needs of an item beside its embedding, see ``dynamics.Tables``."""
        columns = [self.appeal_I - difficulty, self.log_price_I, self.quality_I, self.category_I]
        return np.ascontiguousarray(np.column_stack(columns), dtype=np.float32)

    def first(self, count: int) -> Catalogue:
        """The first ``count`` items (loaded worlds sort theirs by sales).

        Categories that come after the last one that is left are dropped.
        """
        arrays = {name: getattr(self, name)[:count] for name in ARRAYS}
        categories = int(arrays["category_I"].max()) + 1
        return Catalogue(
            **arrays,
            num_categories=categories,
            item_names=self.item_names[:count],
            category_names=self.category_names[:categories],
            log_price_scale=self.log_price_standard,
        )

    def item_name(self, item: int) -> str:
        return self.item_names[item] if self.item_names else f"item {item}"

    def category_name(self, category: int) -> str:
        return self.category_names[category] if self.category_names else f"category {category}"


def public_features(
    category_I: IntArray,
    brand_I: IntArray,
    log_price_I: FloatArray,
    keywords_IW: FloatArray,
    categories: int,
    brands: int,
) -> FloatArray:
    """One-hot category and brand (zeros for -1: unknown), standardised log price, words (I, F)."""
    return np.concatenate(
        [
            np.eye(categories + 1, categories, dtype=np.float32)[category_I],
            np.eye(brands + 1, brands, dtype=np.float32)[brand_I],
            log_price_I[:, None],
            keywords_IW.astype(np.float32),
        ],
        axis=1,
    )


def principal_axes(table: FloatArray, count: int) -> FloatArray:
    """The first ``count`` principal axes (F, count) of the rows of a table, each scaled to
    give components of unit variance on average."""
    sample = table[:: max(len(table) // 20_000, 1)].astype(np.float64)
    sample = sample - sample.mean(axis=0)
    values_F, axes_FF = np.linalg.eigh(sample.T @ sample / len(sample))
    kept = axes_FF[:, ::-1][:, :count]
    scale = np.sqrt(max(values_F[::-1][:count].mean(), 1e-12))
    axes: FloatArray = (kept / scale).astype(np.float32)
    return axes


ARRAYS = (
    "category_I",
    "brand_I",
    "price_I",
    "keywords_IW",
    "appeal_I",
    "quality_I",
    "embedding_ID",
)
