# SPDX-License-Identifier: GPL-2.0-or-later
"""Contents of pages, comparison of memories, and runs painted from ranges: each against a naive model."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.memory.compare import compare_memory
from hibernaut.memory.contents import page_contents, page_digests
from hibernaut.memory.overlay import Overlay
from hibernaut.memory.painting import paint, union
from hibernaut.memory.ranges import FrameRanges
from hibernaut.memory.segments import Segment, SegmentMemory

BYTES = st.integers(0, 3)
PAGES = st.dictionaries(st.integers(0, 40), BYTES, min_size=1, max_size=30)


def memory_of(pages: dict[int, int]) -> SegmentMemory:
    """Return a memory whose frames are filled with one byte each."""
    return SegmentMemory(
        [Segment(pfn, np.full((1, 4096), value, dtype=np.uint8)) for pfn, value in sorted(pages.items())]
    )


@given(PAGES)
def test_contents_are_counted(pages: dict[int, int]) -> None:
    """Zero pages, different contents, and the rest, which repeats them."""
    found = page_contents(memory_of(pages))
    values = list(pages.values())
    assert (found.pages, list(found.zero.pfns())) == (len(pages), sorted(pfn for pfn in pages if not pages[pfn]))
    assert found.distinct == len(set(values) - {0})
    assert found.repeated == len(values) - values.count(0) - found.distinct


@given(st.integers(0, 511), st.integers(0, 63), st.integers(0, 511), st.integers(0, 63))
def test_digests_of_pages_that_differ_in_bits_differ(word: int, bit: int, other: int, other_bit: int) -> None:
    """One or two bits anywhere, the top bits of two words among them, change the digest."""
    pages = np.zeros((2, 512), dtype=np.uint64)
    pages[1, word] ^= np.uint64(1 << bit)
    if (word, bit) != (other, other_bit):
        pages[1, other] ^= np.uint64(1 << other_bit)
    first, second = page_digests(pages.view(np.uint8).reshape(2, 4096))
    assert first != second


def test_digests_tell_a_million_pages_apart() -> None:
    """Pages that hold their number alone, and the same shifted by a word."""
    pages = np.zeros((1 << 12, 512), dtype=np.uint64)
    numbers = np.arange(1, 1 + len(pages), dtype=np.uint64)
    seen = []
    for word in range(0, 512, 64):
        pages[:] = 0
        pages[:, word] = numbers
        seen.append(page_digests(pages.view(np.uint8).reshape(-1, 4096)))
    assert len(np.unique(np.concatenate(seen))) == 8 << 12


@given(PAGES, PAGES)
def test_every_frame_is_in_one_part_of_a_difference(first: dict[int, int], second: dict[int, int]) -> None:
    """Equal, different, or in one memory alone; as compared page by page."""
    found = compare_memory(memory_of(first), memory_of(second))
    both = first.keys() & second.keys()
    assert set(found.equal.pfns().tolist()) == {pfn for pfn in both if first[pfn] == second[pfn]}
    assert set(found.different.pfns().tolist()) == {pfn for pfn in both if first[pfn] != second[pfn]}
    assert set(found.only_first.pfns().tolist()) == first.keys() - second.keys()
    assert set(found.only_second.pfns().tolist()) == second.keys() - first.keys()


def test_one_changed_byte_is_found() -> None:
    """The last byte of the last page, by the progress that is reported, too."""
    memory = memory_of(dict.fromkeys(range(3000), 1))
    changed = Overlay(memory)
    changed.write(2999 * 4096 + 4095, b"\0")
    told: list[int] = []
    assert list(compare_memory(memory, changed, told.append).different) == [(2999, 1)]
    assert sum(told) == 3000


RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=5)


@given(st.lists(RANGES, max_size=4))
def test_a_union_is_that_of_frame_ranges(parts: list[list[tuple[int, int]]]) -> None:
    """As `FrameRanges.of` merges them: neighbours and overlaps are one range."""
    found = union([FrameRanges.of(part) for part in parts])
    assert list(found) == list(FrameRanges.of([one for part in parts for one in part]))


LAYERS = st.lists(st.tuples(RANGES, st.integers(0, 3)), max_size=4)


@given(st.integers(1, 64), LAYERS, LAYERS)
def test_painted_runs_are_those_of_a_naive_painter(
    end: int, first: list[tuple[list[tuple[int, int]], int]], second: list[tuple[list[tuple[int, int]], int]]
) -> None:
    """Frame by frame, the later range over the earlier; neighbours differ, and all begins at frame 0."""
    expected = np.zeros((2, end), dtype=np.uint8)
    for row, layers in enumerate((first, second)):
        for ranges, code in layers:
            for start, pages in ranges:
                expected[row, start : start + pages] = code
    painted = [[(FrameRanges.of(ranges), code) for ranges, code in layers] for layers in (first, second)]
    firsts, codes = paint(end, *painted)
    lengths = np.diff(firsts, append=end)
    assert firsts[0] == 0
    assert (lengths > 0).all()
    assert (np.stack([code.repeat(lengths) for code in codes]) == expected).all()
    assert all((codes[0][1:] != codes[0][:-1]) | (codes[1][1:] != codes[1][:-1]))
