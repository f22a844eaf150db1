"""Trees of tensors are taken apart and put together again."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from recenv.tree import leaves, maker, mapped, taker  # noqa: E402


class Pair(NamedTuple):
    one: Any
    other: Any


def trees() -> st.SearchStrategy[Any]:
    leaf = st.none() | st.integers(0, 99).map(torch.tensor)
    return st.recursive(
        leaf,
        lambda part: st.one_of(
            st.lists(part, max_size=4).map(tuple),
            st.dictionaries(st.text(max_size=2), part, max_size=3),
            st.builds(Pair, part, part),
        ),
        max_leaves=12,
    )


def plain(tree: Any) -> Any:
    """Numbers for tensors, and every node with its type."""
    if isinstance(tree, torch.Tensor):
        return int(tree)
    if isinstance(tree, dict):
        return {name: plain(part) for name, part in tree.items()}
    return None if tree is None else (type(tree), [plain(part) for part in tree])


@given(trees())
def test_what_is_taken_apart_can_be_put_together(tree: Any) -> None:
    assert plain(maker(tree)(leaves(tree))) == plain(tree)
    doubled = mapped(lambda leaf: 2 * leaf, tree)
    assert [int(leaf) for leaf in leaves(doubled)] == [2 * int(leaf) for leaf in leaves(tree)]
    assert plain(maker(doubled)(leaves(tree))) == plain(tree)
    assert [int(leaf) for leaf in taker(tree)(doubled)] == [2 * int(leaf) for leaf in leaves(tree)]
