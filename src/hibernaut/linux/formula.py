# SPDX-License-Identifier: GPL-2.0-or-later
"""Simulated RAM whose pages are computed when they are read, so that a terabyte costs nothing until then."""

from __future__ import annotations

import bisect
from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike

from hibernaut.memory.page import PAGE_SIZE, BoolArray, Bytes
from hibernaut.memory.physical import PhysicalMemory, digest_of_page
from hibernaut.memory.ranges import FrameRanges
from hibernaut.memory.segments import Segment, SegmentMemory

__all__ = ["BOOT_MARK", "FORMULA_MARK", "FormulaMemory", "formula_pages"]

FORMULA_MARK = 0xA5C
"""Top 12 bits of every word, so that no word is zero or looks like a page-table entry of a small machine."""

BOOT_MARK = 0xB07
"""Top 12 bits for RAM in which a boot kernel has run, so that its content differs from the saved machine's."""

RUN_PAGES = 1024
"""Most pages that one `run` computes, so that a request for a terabyte does not allocate one."""

_WORDS = np.arange(PAGE_SIZE // 8, dtype="<u8") * 8


def formula_pages(pfns: ArrayLike, mark: int = FORMULA_MARK) -> Bytes:
    """Return the content of frames by formula: every u64 is its own physical address, with a mark in its top 12 bits.

    Args:
        pfns: frame numbers below 2^40, shape (n,).
        mark: the top 12 bits.

    Returns:
        Bytes of shape (n, 4096). A page in the wrong place shows the frame that it comes from.
    """
    first = (np.asarray(pfns, dtype=np.int64).astype("<u8") << np.uint64(12)) | np.uint64(mark << 52)
    pages: Bytes = (first[:, None] | _WORDS[None, :]).view(np.uint8)
    return pages


class FormulaMemory(PhysicalMemory):
    """RAM by formula, except for segments with bytes of their own.

    Args:
        ranges: frames that exist.
        segments: content of some frames; the earlier wins where two overlap, and a frame of a segment exists even if
            `ranges` lacks it.
        mark: see `formula_pages`.
    """

    def __init__(self, ranges: FrameRanges, segments: Sequence[Segment] = (), mark: int = FORMULA_MARK) -> None:
        self._mark = mark
        self._starts = ranges.starts.tolist()
        self._ends = (ranges.starts + ranges.nr_pages).tolist()
        self._segments = SegmentMemory(segments)
        real = self._segments.ranges
        self._real_starts = real.starts.tolist()
        self._ranges = FrameRanges.of([*ranges, *real])
        self._content_keys: dict[tuple[int, int], Hashable] = {}

    @property
    def ranges(self) -> FrameRanges:
        """Frames that exist."""
        return self._ranges

    def run(self, pfn: int, nr_pages: int) -> Bytes:
        """See `PhysicalMemory.run`: a view of a segment, or at most 1024 pages computed anew."""
        real = self._segments.run(pfn, nr_pages)
        if len(real):
            return real
        row = bisect.bisect_right(self._starts, pfn) - 1
        if row < 0 or pfn >= self._ends[row]:
            return np.empty((0, PAGE_SIZE), dtype=np.uint8)
        after = bisect.bisect_right(self._real_starts, pfn)
        end = min(pfn + min(nr_pages, RUN_PAGES), self._ends[row])
        if after < len(self._real_starts):
            end = min(end, self._real_starts[after])
        return formula_pages(np.arange(pfn, end), self._mark)

    def content_key(self, start: int, end: int) -> Hashable:
        """See `PhysicalMemory.content_key`: where the formula applies, and digests of the segments, computed once."""
        known = self._content_keys.get((start, end))
        if known is None:
            window = FrameRanges.of([(start, end - start)])
            by_formula = self._ranges.within(window).without(self._segments.ranges)
            segments = tuple(self._segment_keys(window))
            known = self._content_keys[start, end] = self._mark, by_formula.bounds, segments
        return known

    def _segment_keys(self, window: FrameRanges) -> Iterator[Hashable]:
        """Yield the digests of the segments' pages in some frames; one for pages that are one and the same."""
        for start, nr_pages in self._segments.ranges.within(window):
            at, end = start, start + nr_pages
            while at < end:
                pages = self._segments.run(at, end - at)
                different = pages if pages.strides[0] else pages[:1]
                yield at, len(pages), tuple(map(digest_of_page, different))
                at += len(pages)

    def occupied(self) -> FrameRanges:
        """See `PhysicalMemory.occupied`. No page is zero by formula, so only the segments are read."""
        zero = []
        for start, pages in self._segments.ranges:
            at = start
            while at < start + pages:
                content = self._segments.run(at, min(pages - (at - start), RUN_PAGES))
                if not content.strides[0]:  # one page, repeated
                    content = self._segments.run(at, pages - (at - start))
                    zero += [] if content[0].any() else [(at, len(content))]
                else:
                    held: BoolArray = np.asarray(content.view(np.uint64).any(axis=1))
                    zero += list(FrameRanges.of_pfns(np.flatnonzero(~held) + at))
                at += len(content)
        return self._ranges.without(FrameRanges.of(zero))
