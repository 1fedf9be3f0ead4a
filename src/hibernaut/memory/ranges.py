# SPDX-License-Identifier: GPL-2.0-or-later
"""Ranges of page frames: sets of page frame numbers, whose cost follows the number of ranges."""

from __future__ import annotations

import bisect
import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from hibernaut.memory.page import BoolArray, Pfns

__all__ = ["FrameRanges", "rows_among"]

FEW_RANGES = 24
"""Number of ranges up to which two sets are compared range by range, faster than by some ten calls of NumPy."""

LISTED_RANGES = 1 << 16
"""Number of ranges up to which their bounds are lists, which are faster and take five times the memory of arrays."""


@dataclass(frozen=True, eq=False)
class FrameRanges:
    """Ascending, disjoint ranges of page frames. Iteration yields (first frame, number of pages) pairs.

    Attributes:
        starts: first page frame number of each range, int64, shape (n,).
        nr_pages: length of each range in pages, int64, shape (n,), all positive.
    """

    starts: Pfns
    nr_pages: Pfns

    @classmethod
    def of(cls, ranges: Sequence[tuple[int, int]]) -> FrameRanges:
        """Return ranges from (first frame, number of pages) pairs in any order; neighbours and overlaps are merged."""
        starts: list[int] = []
        ends: list[int] = []
        for start, nr_pages in sorted(ranges):
            if nr_pages <= 0:
                continue
            end = int(start + nr_pages)
            if ends and start <= ends[-1]:
                ends[-1] = max(ends[-1], end)
            else:
                starts.append(int(start))
                ends.append(end)
        return cls._of_lists(starts, ends)

    @classmethod
    def _of_lists(cls, starts: list[int], ends: list[int]) -> FrameRanges:
        """Return ranges from the first frame and one past the last of each, ascending and disjoint."""
        nr_pages = [end - start for start, end in zip(starts, ends, strict=True)]
        found = cls(np.array(starts, dtype=np.int64), np.array(nr_pages, dtype=np.int64))
        if len(starts) <= FEW_RANGES:  # those of many are made where they are asked for: they take memory
            found.__dict__["_bounds"] = starts, ends
        return found

    @classmethod
    def of_pfns(cls, pfns: ArrayLike) -> FrameRanges:
        """Return the ranges of exactly these page frame numbers, given in ascending order without repeats."""
        pfns = np.asarray(pfns, dtype=np.int64)
        if not len(pfns):
            return cls(pfns, pfns)
        breaks = np.flatnonzero(np.diff(pfns) != 1) + 1
        first = np.concatenate(([0], breaks))
        last = np.concatenate((breaks, [len(pfns)]))
        return cls(pfns[first], (last - first).astype(np.int64))

    @cached_property
    def total_pages(self) -> int:
        """Number of page frames in all ranges."""
        return int(self.nr_pages.sum())

    @property
    def end(self) -> int:
        """One past the last frame; 0 if there is none."""
        return int(self.starts[-1] + self.nr_pages[-1]) if len(self.starts) else 0

    @classmethod
    def joined(cls, parts: Sequence[FrameRanges]) -> FrameRanges:
        """Return the ranges of parts that ascend: each begins behind the end of the one before it."""
        starts = np.concatenate([np.empty(0, dtype=np.int64), *(part.starts for part in parts)])
        nr_pages = np.concatenate([np.empty(0, dtype=np.int64), *(part.nr_pages for part in parts)])
        if len(starts) < 2:
            return cls(starts, nr_pages)
        first = np.flatnonzero(np.concatenate(([True], starts[1:] != (starts + nr_pages)[:-1])))
        return cls(starts[first], np.add.reduceat(nr_pages, first))

    @cached_property
    def bounds(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """First frame and one past the last of each range: equal for equal sets of frames, and hashable."""
        starts, ends = self._bounds
        return tuple(starts), tuple(ends)

    @cached_property
    def digest(self) -> bytes:
        """A digest of the ranges (BLAKE2b, 16 bytes): equal for equal sets of frames."""
        return hashlib.blake2b(repr(self.bounds).encode(), digest_size=16).digest()

    @cached_property
    def _bounds(self) -> tuple[Sequence[int], Sequence[int]]:
        """First frame and one past the last of each range, for single frames: faster than arrays of NumPy."""
        ends = self.starts + self.nr_pages
        if len(self) > LISTED_RANGES:
            return array("q", self.starts.tobytes()), array("q", ends.tobytes())
        return self.starts.tolist(), ends.tolist()

    @cached_property
    def _before(self) -> Pfns:
        """Number of page frames before each range, int64, shape (n,)."""
        return np.cumsum(self.nr_pages) - self.nr_pages

    def end_of(self, pfn: int) -> int:
        """Return one past the last frame of the range that contains a frame; 0 if the frame does not exist."""
        starts, ends = self._bounds
        row = bisect.bisect_right(starts, pfn) - 1
        return ends[row] if row >= 0 and pfn < ends[row] else 0

    def __contains__(self, pfn: object) -> bool:
        return isinstance(pfn, int) and bool(self.end_of(pfn))

    def start_after(self, pfn: int) -> int | None:
        """Return the first frame of the first range that begins behind a frame; None if there is none."""
        starts = self._bounds[0]
        row = bisect.bisect_right(starts, pfn)
        return starts[row] if row < len(starts) else None

    def row(self, pfn: int) -> int:
        """Return the position of a frame in the concatenation of all ranges; -1 if it does not exist."""
        starts, ends = self._bounds
        number = bisect.bisect_right(starts, pfn) - 1
        return int(self._before[number]) + pfn - starts[number] if number >= 0 and pfn < ends[number] else -1

    def rows(self, pfns: ArrayLike) -> Pfns:
        """Return the position of each frame in the concatenation of all ranges; -1 where the frame does not exist."""
        pfns = np.asarray(pfns, dtype=np.int64)
        if not len(self.starts):
            return np.full(pfns.shape, -1, dtype=np.int64)
        index = np.searchsorted(self.starts, pfns, side="right") - 1
        safe = np.maximum(index, 0)
        within = pfns - self.starts[safe]
        present = (index >= 0) & (within < self.nr_pages[safe])
        return np.where(present, self._before[safe] + within, -1)

    def contains(self, pfns: ArrayLike) -> BoolArray:
        """Return which of these frames exist, shape as given."""
        pfns = np.asarray(pfns, dtype=np.int64)
        if not len(self.starts):
            return np.zeros(pfns.shape, dtype=np.bool_)
        index = np.searchsorted(self.starts, pfns, side="right") - 1
        safe = np.maximum(index, 0)
        present: BoolArray = (index >= 0) & (pfns - self.starts[safe] < self.nr_pages[safe])
        return present

    def within(self, other: FrameRanges) -> FrameRanges:
        """Return the frames that are in both; cost follows the number of ranges, not of frames."""
        if not len(self.starts) or not len(other.starts):
            return FrameRanges(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
        if len(self) + len(other) <= FEW_RANGES:
            return FrameRanges._of_lists(*_common(*self._bounds, *other._bounds))
        ends = other.starts + other.nr_pages
        # For each range of the other: the first range here that can reach into it, and the first that begins behind it.
        low = np.maximum(self.starts.searchsorted(other.starts, side="right") - 1, 0)
        pairs = self.starts.searchsorted(ends, side="left") - low
        theirs = np.arange(len(ends)).repeat(pairs)
        mine = np.arange(len(theirs)) + (low - (pairs.cumsum() - pairs)).repeat(pairs)
        first = np.maximum(other.starts[theirs], self.starts[mine])
        length = np.minimum(ends[theirs], self.starts[mine] + self.nr_pages[mine]) - first
        common = length > 0
        return FrameRanges(first[common], length[common])

    def without(self, other: FrameRanges) -> FrameRanges:
        """Return the frames that are not in the other; cost as for `within`."""
        if not len(self.starts) or not len(other.starts):
            return self
        if len(self) + len(other) <= FEW_RANGES:
            taken, taken_ends = other._bounds
            return FrameRanges._of_lists(*_common(*self._bounds, [0, *taken_ends], [*taken, self.end]))
        # Only ranges of the other between the first and the last frame here: a few frames cost little.
        low = max(int(other.starts.searchsorted(self.starts[0], side="right")) - 1, 0)
        high = int(other.starts.searchsorted(self.end, side="left"))
        starts = other.starts[low:high]
        begins = np.concatenate((self.starts[:1], starts + other.nr_pages[low:high]))
        length = np.concatenate((starts, [self.end])) - begins
        gaps = length > 0
        return self.within(FrameRanges(begins[gaps], length[gaps]))

    def pfns(self) -> Pfns:
        """Return all page frame numbers, ascending, int64, shape (`total_pages`,)."""
        if not len(self.starts):
            return np.empty(0, dtype=np.int64)
        return np.repeat(self.starts - self._before, self.nr_pages) + np.arange(self.total_pages, dtype=np.int64)

    def lowest(self, nr_pages: int) -> FrameRanges:
        """Return the `nr_pages` lowest frames; all if there are fewer."""
        before = self._before
        kept = before < nr_pages
        return FrameRanges(self.starts[kept], np.minimum(self.nr_pages[kept], nr_pages - before[kept]))

    def chunks(self, nr_pages: int) -> Iterator[Pfns]:
        """Yield all page frame numbers, ascending, at most `nr_pages` at a time: int64, shape (n,)."""
        for first in range(0, self.total_pages, nr_pages):
            yield self.part(first, min(first + nr_pages, self.total_pages))

    def part(self, first: int, last: int) -> Pfns:
        """Return page frame numbers `first` to `last` - 1 of all, ascending: int64, shape (last - first,)."""
        if first >= last:
            return np.empty(0, dtype=np.int64)
        before = self._before
        low = int(np.searchsorted(before, first, side="right")) - 1
        high = int(np.searchsorted(before, last, side="left"))
        starts = np.maximum(before[low:high], first)
        ends = np.minimum(before[low:high] + self.nr_pages[low:high], last)
        offset = self.starts[low:high] - before[low:high]
        return FrameRanges(starts + offset, ends - starts).pfns()

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.starts.tolist(), self.nr_pages.tolist(), strict=True)

    def __len__(self) -> int:
        return len(self.starts)


def _common(
    starts: Sequence[int], ends: Sequence[int], others: Sequence[int], other_ends: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return what two ascending sequences of ranges have in common: first frames, and one past the last of each.

    A range that ends before it begins, or where it begins, is empty.
    """
    first, last = [], []
    row = other_row = 0
    while row < len(starts) and other_row < len(others):
        end, other_end = ends[row], other_ends[other_row]
        low = max(starts[row], others[other_row])
        high = min(end, other_end)
        if low < high:
            first.append(low)
            last.append(high)
        if end < other_end:
            row += 1
        else:
            other_row += 1
    return first, last


def rows_among(pfns: Pfns, ascending: Pfns) -> Pfns:
    """Return the positions of the page frame numbers, given in any order, that occur in an ascending array."""
    if not len(ascending):
        return np.empty(0, dtype=np.int64)
    at = np.minimum(np.searchsorted(ascending, pfns), len(ascending) - 1)
    return np.flatnonzero(ascending[at] == pfns)
