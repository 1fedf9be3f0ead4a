# SPDX-License-Identifier: GPL-2.0-or-later
"""The encoding of states: it can be read back, so no two values have the same bytes, whatever follows them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.exploration.encoding import Value, encode, encode_pages
from hibernaut.memory.page import PAGE_SIZE
from tests.exploration.decode import decode, same

SMALL = st.sampled_from((None, False, True, 0, 1, -1, 127, 128, 255, 256, 1 << 63, "", "0", "n", b"", b"0", b"n"))
VALUES: st.SearchStrategy[Value] = st.recursive(
    SMALL | st.integers() | st.text(max_size=4) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple),
    max_leaves=12,
)


@given(VALUES)
def test_encoded_values_can_be_read_back(value: Value) -> None:
    """The value that comes back is the one that went in, to the last byte: no other value has these bytes."""
    found, rest = decode(encode(value))
    assert rest == b""
    assert same(found, value)


@given(VALUES, VALUES)
def test_different_values_never_encode_alike(one: Value, other: Value) -> None:
    """Neither the same bytes, nor one's at the beginning of the other's."""
    first, second = encode(one), encode(other)
    assert (first == second) == same(one, other)
    assert same(one, other) or not (first.startswith(second) or second.startswith(first))


@given(st.lists(VALUES, max_size=4), st.lists(VALUES, max_size=4))
def test_a_sequence_of_values_needs_no_separators(one: list[Value], other: list[Value]) -> None:
    """Values written one behind the other are told apart as well: [a, b], [c] is not [a], [b, c]."""
    first, second = b"".join(map(encode, one)), b"".join(map(encode, other))
    assert (first == second) == same(one, other)


PAGES = st.dictionaries(st.integers(0, (1 << 40) - 1), st.none() | st.integers(0, 255), max_size=4)


@given(PAGES, VALUES)
def test_pages_can_be_read_back(pages: dict[int, int | None], behind: Value) -> None:
    """Frames, bytes, and which pages do not exist, whatever comes behind them."""
    content = {
        pfn: None if fill is None else np.full(PAGE_SIZE, fill, dtype=np.uint8) for pfn, fill in sorted(pages.items())
    }
    found, rest = decode(b"".join(encode_pages(content)) + encode(behind))
    assert found == {pfn: None if page is None else page.tobytes() for pfn, page in content.items()}
    assert rest == encode(behind)


def test_pages_that_are_not_contiguous_are_read_in_order() -> None:
    """A page that repeats one byte by a stride of 0 is 4096 bytes like any other."""
    page = np.broadcast_to(np.uint8(7), PAGE_SIZE)
    assert decode(b"".join(encode_pages({3: page})))[0] == {3: b"\7" * PAGE_SIZE}


@pytest.mark.parametrize("value", [1.0, {1: 2}, {1, 2}, np.int64(1), [object()]])
def test_types_without_an_encoding_are_refused(value: Any) -> None:
    """No guess at a representation: sets have no order, floats and arrays are not part of any state."""
    with pytest.raises(TypeError, match="has no encoding"):
        encode(value)
