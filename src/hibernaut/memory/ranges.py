# SPDX-License-Identifier: GPL-2.0-or-later
"""Ranges of page frames: sets of page frame numbers, whose cost follows the number of ranges."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from hibernaut.memory.page import BoolArray, Frames

__all__ = ["FrameRanges", "rows_among"]


@dataclass(frozen=True, eq=False)
class FrameRanges:
    """Ascending, disjoint ranges of page frames.

    Attributes:
        starts: first frame of each range, int64, shape (n,).
        pages: length of each range in pages, int64, shape (n,), all positive.
    """

    starts: Frames
    pages: Frames

    @classmethod
    def of(cls, ranges: Sequence[tuple[int, int]]) -> FrameRanges:
        """Return ranges from (first frame, pages) pairs in any order; neighbours merge, overlaps are joined."""
        ordered = sorted((start, pages) for start, pages in ranges if pages > 0)
        merged: list[tuple[int, int]] = []
        for start, pages in ordered:
            if merged and start <= merged[-1][0] + merged[-1][1]:
                first, length = merged[-1]
                merged[-1] = (first, max(length, start + pages - first))
            else:
                merged.append((start, pages))
        return cls(
            np.array([start for start, _ in merged], dtype=np.int64),
            np.array([pages for _, pages in merged], dtype=np.int64),
        )

    @classmethod
    def of_frames(cls, pfns: ArrayLike) -> FrameRanges:
        """Return the ranges of exactly these frames, given in ascending order without repeats."""
        frames = np.asarray(pfns, dtype=np.int64)
        if not len(frames):
            return cls(frames, frames)
        breaks = np.flatnonzero(np.diff(frames) != 1) + 1
        first = np.concatenate(([0], breaks))
        last = np.concatenate((breaks, [len(frames)]))
        return cls(frames[first], (last - first).astype(np.int64))

    @property
    def total_pages(self) -> int:
        """Number of frames."""
        return int(self.pages.sum())

    @property
    def end(self) -> int:
        """One past the last frame; 0 if there is none."""
        return int(self.starts[-1] + self.pages[-1]) if len(self.starts) else 0

    @cached_property
    def _bounds(self) -> tuple[list[int], list[int]]:
        """First frame and one past the last of each range: of one frame, Python asks lists faster than arrays."""
        return self.starts.tolist(), (self.starts + self.pages).tolist()

    def end_of(self, pfn: int) -> int:
        """Return one past the last frame of the range that contains a frame; 0 if the frame does not exist."""
        starts, ends = self._bounds
        row = bisect.bisect_right(starts, pfn) - 1
        return ends[row] if row >= 0 and pfn < ends[row] else 0

    def start_after(self, pfn: int) -> int | None:
        """Return the first frame of the first range that begins behind a frame; None if there is none."""
        starts = self._bounds[0]
        row = bisect.bisect_right(starts, pfn)
        return starts[row] if row < len(starts) else None

    def rows(self, pfns: ArrayLike) -> Frames:
        """Return the position of each frame in the concatenation of all ranges; -1 where the frame does not exist."""
        frames = np.asarray(pfns, dtype=np.int64)
        if not len(self.starts):
            return np.full(frames.shape, -1, dtype=np.int64)
        index = np.searchsorted(self.starts, frames, side="right") - 1
        safe = np.maximum(index, 0)
        within = frames - self.starts[safe]
        present = (index >= 0) & (within < self.pages[safe])
        base = np.cumsum(self.pages) - self.pages
        return np.where(present, base[safe] + within, -1)

    def contains(self, pfns: ArrayLike) -> BoolArray:
        """Return which of these frames exist, shape as given."""
        frames = np.asarray(pfns, dtype=np.int64)
        if not len(self.starts):
            return np.zeros(frames.shape, dtype=np.bool_)
        index = np.searchsorted(self.starts, frames, side="right") - 1
        safe = np.maximum(index, 0)
        present: BoolArray = (index >= 0) & (frames - self.starts[safe] < self.pages[safe])
        return present

    def within(self, other: FrameRanges) -> FrameRanges:
        """Return the frames that are in both; cost follows the number of ranges, not of frames."""
        if not len(self.starts) or not len(other.starts):
            return FrameRanges(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
        ends = other.starts + other.pages
        # For each of the other: the first range here that can reach into it, and the first that begins behind it.
        low = np.maximum(self.starts.searchsorted(other.starts, side="right") - 1, 0)
        pairs = self.starts.searchsorted(ends, side="left") - low
        theirs = np.arange(len(ends)).repeat(pairs)
        mine = np.arange(len(theirs)) + (low - (pairs.cumsum() - pairs)).repeat(pairs)
        first = np.maximum(other.starts[theirs], self.starts[mine])
        length = np.minimum(ends[theirs], self.starts[mine] + self.pages[mine]) - first
        common = length > 0
        return FrameRanges(first[common], length[common])

    def without(self, other: FrameRanges) -> FrameRanges:
        """Return the frames that are not in the other; cost as for `within`."""
        if not len(self.starts) or not len(other.starts):
            return self
        # Only those of the other that lie between the first and the last frame here: a few frames cost little.
        low = max(int(other.starts.searchsorted(self.starts[0], side="right")) - 1, 0)
        high = int(other.starts.searchsorted(self.end, side="left"))
        starts = other.starts[low:high]
        begins = np.concatenate((self.starts[:1], starts + other.pages[low:high]))
        length = np.concatenate((starts, [self.end])) - begins
        gaps = length > 0
        return self.within(FrameRanges(begins[gaps], length[gaps]))

    def frames(self) -> Frames:
        """Return all frames, ascending: an array of `total_pages` numbers."""
        if not len(self.starts):
            return np.empty(0, dtype=np.int64)
        base = np.cumsum(self.pages) - self.pages
        return np.repeat(self.starts - base, self.pages) + np.arange(self.total_pages, dtype=np.int64)

    def lowest(self, pages: int) -> FrameRanges:
        """Return the lowest frames, at most so many."""
        before = np.cumsum(self.pages) - self.pages
        kept = before < pages
        return FrameRanges(self.starts[kept], np.minimum(self.pages[kept], pages - before[kept]))

    def chunks(self, pages: int) -> Iterator[Frames]:
        """Yield all frames, ascending, at most `pages` at a time."""
        before = np.cumsum(self.pages) - self.pages
        for first in range(0, self.total_pages, pages):
            last = min(first + pages, self.total_pages)
            low = int(np.searchsorted(before, first, side="right")) - 1
            high = int(np.searchsorted(before, last, side="left"))
            starts = np.maximum(before[low:high], first)
            ends = np.minimum(before[low:high] + self.pages[low:high], last)
            offset = self.starts[low:high] - before[low:high]
            yield FrameRanges(starts + offset, ends - starts).frames()

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self.starts.tolist(), self.pages.tolist(), strict=True)

    def __len__(self) -> int:
        return len(self.starts)


def rows_among(pfns: Frames, ascending: Frames) -> Frames:
    """Return the positions of those frames, given in any order, that are among some ascending ones."""
    if not len(ascending):
        return np.empty(0, dtype=np.int64)
    at = np.minimum(np.searchsorted(ascending, pfns), len(ascending) - 1)
    return np.flatnonzero(ascending[at] == pfns)
