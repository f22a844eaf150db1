"""What is out of stock: a share of the items, another one in each session, by its own luck."""

from __future__ import annotations

from typing import Any

import numpy as np

from recenv.catalogue import Bools, FloatArray, IntArray

Words = np.ndarray[Any, np.dtype[np.uint64]]


def session_words(threshold: FloatArray) -> Words:
    """A word of 64 bits for each session, from its luck (..., T) -> (...).

    A hash of it decides what is out, so that nothing more has to be drawn: shoppers and their
    luck are those of a shop in which everything is there.
    """
    ends = np.ascontiguousarray(threshold[..., [0, -1]], dtype=np.float32).view(np.uint32)
    ends = ends.astype(np.uint64)
    words: Words = ends[..., 0] << np.uint64(32) | ends[..., 1]
    return words


def hashed(word: Words, index: IntArray) -> Words:
    """Words that look random, one for each pair of a word and an index (splitmix64)."""
    with np.errstate(over="ignore"):  # it is meant to wrap around
        mixed = word + (index.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    both: Words = mixed ^ (mixed >> np.uint64(31))
    return both


def uniform(word: Words, index: IntArray) -> FloatArray:
    """The same as numbers of [0, 1)."""
    number: FloatArray = (hashed(word, index) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return number


def is_out(word: Words, item: IntArray, share: float, num_items: int) -> Bools:
    """Whether items are out of stock in the sessions of these words, both (...).

    One item of each session never is.
    """
    kept = hashed(word, np.zeros_like(word, dtype=np.int64) - 1) % np.uint64(num_items)
    out: Bools = (uniform(word, item) < share) & (item.astype(np.uint64) != kept)
    return out
