# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory made of segments: each is an array of neighbouring pages."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hibernaut.memory.page import PAGE_SIZE, BoolArray, Bytes
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.ranges import FrameRanges

__all__ = ["Segment", "SegmentMemory"]

_NO_PAGES: Bytes = np.empty((0, PAGE_SIZE), dtype=np.uint8)
_NO_PAGES.flags.writeable = False


@dataclass(frozen=True, eq=False)
class Segment:
    """Neighbouring pages in one array.

    Attributes:
        start: page frame number of the first page.
        pages: their bytes, uint8, shape (n, 4096).
    """

    start: int
    pages: Bytes

    @property
    def end(self) -> int:
        """One past the last frame."""
        return self.start + len(self.pages)


class SegmentMemory(PhysicalMemory):
    """Memory made of segments: mapped files, simulated RAM.

    Args:
        segments: in any order; where two overlap, the earlier in the sequence wins (readers of ELF use the first header
            that covers an address).
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = _without_overlaps(segments)
        self._starts = [segment.start for segment in self._segments]
        self._ranges = FrameRanges.of([(segment.start, len(segment.pages)) for segment in self._segments])

    @property
    def ranges(self) -> FrameRanges:
        """The page frames that exist."""
        return self._ranges

    def run(self, pfn: int, nr_pages: int) -> Bytes:
        """See `PhysicalMemory.run`: a view of the one segment that holds `pfn`."""
        index = bisect.bisect_right(self._starts, pfn) - 1
        if index >= 0 and pfn < self._segments[index].end:
            segment = self._segments[index]
            return segment.pages[pfn - segment.start : pfn - segment.start + nr_pages]
        return _NO_PAGES

    def gather(self, pfns: ArrayLike, out: Bytes | None = None) -> tuple[Bytes, BoolArray]:
        """See `PhysicalMemory.gather`: one indexed copy per segment."""
        pfns = np.asarray(pfns, dtype=np.int64)
        pages = np.empty((len(pfns), PAGE_SIZE), dtype=np.uint8) if out is None else out
        index = np.searchsorted(np.array(self._starts, dtype=np.int64), pfns, side="right") - 1
        present = np.zeros(len(pfns), dtype=np.bool_)
        for number in np.unique(index[index >= 0]).tolist():
            segment = self._segments[number]
            rows = np.flatnonzero((index == number) & (pfns < segment.end))
            if len(rows) == len(pfns):
                np.take(segment.pages, pfns - segment.start, axis=0, out=pages, mode="clip")
            else:
                pages[rows] = segment.pages[pfns[rows] - segment.start]
            present[rows] = True
        pages[~present] = 0
        return pages, present


def _without_overlaps(segments: Sequence[Segment]) -> list[Segment]:
    kept: list[Segment] = []
    starts: list[int] = []
    for segment in segments:
        for start, end in _free_of(segment, kept, starts):
            piece = Segment(start, segment.pages[start - segment.start : end - segment.start])
            row = bisect.bisect_left(starts, start)
            kept.insert(row, piece)
            starts.insert(row, start)
    return kept


def _free_of(segment: Segment, kept: list[Segment], starts: list[int]) -> list[tuple[int, int]]:
    """Return the parts of a segment outside the ascending, disjoint segments kept so far: (first, end)."""
    free = []
    at = segment.start
    row = max(0, bisect.bisect_right(starts, at) - 1)
    while at < segment.end and row < len(kept) and starts[row] < segment.end:
        if at < starts[row]:
            free.append((at, starts[row]))
        at = max(at, kept[row].end)
        row += 1
    if at < segment.end:
        free.append((at, segment.end))
    return free
