# SPDX-License-Identifier: GPL-2.0-or-later
"""Ranges of page frames against sets of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.memory import ranges as ranges_module
from hibernaut.memory.ranges import FrameRanges

frames = st.lists(st.integers(-3, 60), max_size=20)


@given(st.sets(st.integers(0, 50)), frames)
def test_ranges_of_pfns(pfns: set[int], asked: list[int]) -> None:
    """Ranges made of frames hold exactly these, as few ranges as possible; rows are positions among them."""
    ordered = sorted(pfns)
    ranges = FrameRanges.of_pfns(ordered)
    assert ranges.pfns().tolist() == ordered
    assert len(ranges) == sum(pfn - 1 not in pfns for pfn in pfns)
    assert ranges.rows(asked).tolist() == [ordered.index(pfn) if pfn in pfns else -1 for pfn in asked]


@pytest.mark.parametrize("few", [0, ranges_module.FEW_RANGES, 1000])
@given(one=st.sets(st.integers(0, 60)), other=st.sets(st.integers(0, 60)), size=st.integers(1, 9))
def test_ranges_are_sets_of_pfns(few: int, one: set[int], other: set[int], size: int) -> None:
    """within, without, lowest and chunks of ranges are those of sorted sets of frames; no range is empty or touches.

    So it is whether ranges are compared one by one or in arrays.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges_module, "FEW_RANGES", few)
        ranges_are_sets(one, other, size)


def ranges_are_sets(one: set[int], other: set[int], size: int) -> None:
    """Assert what `test_ranges_are_sets_of_pfns` says."""
    mine, theirs = FrameRanges.of_pfns(sorted(one)), FrameRanges.of_pfns(sorted(other))
    for found, expected in (
        (mine.within(theirs), one & other),
        (mine.without(theirs), one - other),
        (mine.lowest(size), set(sorted(one)[:size])),
    ):
        assert found.pfns().tolist() == sorted(expected)
        assert (found.nr_pages > 0).all()
        assert found.bounds == FrameRanges(found.starts, found.nr_pages).bounds
        assert all(type(bound) is int for bounds in found.bounds for bound in bounds)
    ordered = sorted(one)
    assert [chunk.tolist() for chunk in mine.chunks(size)] == [
        ordered[at : at + size] for at in range(0, len(ordered), size)
    ]


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(-1, 6)), max_size=8))
def test_ranges_of_pairs_in_any_order(pairs: list[tuple[int, int]]) -> None:
    """Overlaps and neighbours are merged, empty ranges left out; numbers of NumPy are taken as well."""
    expected = sorted({pfn for start, nr_pages in pairs for pfn in range(start, start + nr_pages)})
    numpys: list[Any] = [(np.int64(start), np.int64(nr_pages)) for start, nr_pages in pairs]
    for given_pairs in (pairs, numpys):
        found = FrameRanges.of(given_pairs)
        assert found.bounds == FrameRanges.of_pfns(expected).bounds
        assert found.digest == FrameRanges.of_pfns(expected).digest
