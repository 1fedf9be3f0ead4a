# SPDX-License-Identifier: GPL-2.0-or-later
"""Ranges of page frames against sets of numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

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


@given(st.sets(st.integers(0, 60)), st.sets(st.integers(0, 60)), st.integers(1, 9))
def test_ranges_are_sets_of_pfns(one: set[int], other: set[int], size: int) -> None:
    """within, without, lowest and chunks of ranges are those of sorted sets of frames; no range is empty or touches."""
    mine, theirs = FrameRanges.of_pfns(sorted(one)), FrameRanges.of_pfns(sorted(other))
    for found, expected in (
        (mine.within(theirs), one & other),
        (mine.without(theirs), one - other),
        (mine.lowest(size), set(sorted(one)[:size])),
    ):
        assert found.pfns().tolist() == sorted(expected)
        assert (found.nr_pages > 0).all()
    ordered = sorted(one)
    assert [chunk.tolist() for chunk in mine.chunks(size)] == [
        ordered[at : at + size] for at in range(0, len(ordered), size)
    ]
