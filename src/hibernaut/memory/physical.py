# SPDX-License-Identifier: GPL-2.0-or-later
"""Physical memory: page frames with gaps, read as arrays.

A `PhysicalMemory` answers three questions: which frames exist (`ranges`), what a run of neighbouring frames holds
(`run`, without copying where the backing can be mapped), and what many scattered frames hold (`gather`). A frame that
does not exist is an answer - an empty run, a False in a mask, None - and never an exception.
"""

from __future__ import annotations

import bisect
import itertools
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hibernaut.volumes.closing import Closing

__all__ = [
    "PAGE_SHIFT",
    "PAGE_SIZE",
    "BoolArray",
    "Bytes",
    "FrameRanges",
    "Frames",
    "Overlay",
    "PhysicalMemory",
    "Segment",
    "SegmentMemory",
    "rows_among",
]

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT

Bytes = NDArray[np.uint8]
"""Bytes of pages: shape (n, 4096) unless said otherwise."""
Frames = NDArray[np.int64]
"""Page frame numbers, shape (n,)."""
BoolArray = NDArray[np.bool_]

CHUNK_PAGES = 1024
"""Pages handled at a time where memory must stay bounded (4 MiB)."""

_U64 = struct.Struct("<Q")
_NO_PAGES: Bytes = np.empty((0, PAGE_SIZE), dtype=np.uint8)
_NO_PAGES.flags.writeable = False


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


class PhysicalMemory(Closing, ABC):
    """Page frames with gaps. Arrays handed out are read-only views wherever the backing allows.

    Several threads may read one memory at once, as writers of images and dumps do: an implementation keeps per thread,
    or locks, whatever state it reads with.
    """

    @property
    @abstractmethod
    def ranges(self) -> FrameRanges:
        """Frames that exist."""

    @abstractmethod
    def run(self, pfn: int, pages: int) -> Bytes:
        """Return frames from `pfn` on, at most `pages` of them, as one array of shape (k, 4096).

        k is 0 exactly if `pfn` does not exist; it may be less than `pages` where a gap follows or the backing changes,
        so a caller that wants more asks again from `pfn + k`.
        """

    def gather(self, pfns: ArrayLike, out: Bytes | None = None) -> tuple[Bytes, BoolArray]:
        """Return many frames in any order: bytes of shape (n, 4096), and a mask of those that exist; others are zero.

        Args:
            pfns: frame numbers, shape (n,).
            out: where to put the bytes, shape (n, 4096), C-contiguous; made if not given.
        """
        frames = np.asarray(pfns, dtype=np.int64)
        pages = np.empty((len(frames), PAGE_SIZE), dtype=np.uint8) if out is None else out
        present = np.zeros(len(frames), dtype=np.bool_)
        breaks = np.flatnonzero(np.diff(frames) != 1) + 1
        bounds = [0, *breaks.tolist(), len(frames)] if len(frames) else []
        for first, last in itertools.pairwise(bounds):
            at = first
            while at < last:
                got = self.run(int(frames[at]), last - at)
                if len(got):
                    pages[at : at + len(got)] = got
                    present[at : at + len(got)] = True
                    at += len(got)
                else:
                    pages[at] = 0
                    at += 1
        return pages, present

    def frame(self, pfn: int) -> Bytes | None:
        """Return one frame, shape (4096,); None if it does not exist."""
        got = self.run(pfn, 1)
        return got[0] if len(got) else None

    def read(self, paddr: int, size_bytes: int) -> bytes | None:
        """Return bytes at a physical address, across neighbouring frames; None if any of them does not exist."""
        first, within = divmod(paddr, PAGE_SIZE)
        pages, present = self.gather(np.arange(first, (paddr + size_bytes + PAGE_SIZE - 1) // PAGE_SIZE))
        if not present.all():
            return None
        return pages.reshape(-1)[within : within + size_bytes].tobytes()

    def read_u64(self, paddr: int) -> int | None:
        """Return the little-endian u64 at a physical address, a multiple of 8; None if the frame does not exist."""
        page = self.frame(paddr >> PAGE_SHIFT)
        if page is None:
            return None
        value: int = _U64.unpack_from(page.data, paddr & (PAGE_SIZE - 1))[0]
        return value

    def blocks(self, pages: int = CHUNK_PAGES) -> Iterator[tuple[int, Bytes]]:
        """Yield all memory in ascending order: (first frame, bytes of shape (k, 4096)), k at most `pages`."""
        for start, length in self.ranges:
            yield from self._stretch(start, length, pages)

    @property
    def stored(self) -> FrameRanges:
        """Frames that may hold something: `ranges` less those known to be zero without reading them."""
        return self.ranges

    def occupied(self) -> FrameRanges:
        """Return the frames that are not all zeroes. Reads all that is `stored`, at memory speed."""
        found = []
        for start, length in self.stored:
            for at, pages in self._stretch(start, length, CHUNK_PAGES):
                held = np.flatnonzero(pages.view(np.uint64).any(axis=1))
                found += list(FrameRanges.of_frames(held + at))
        return FrameRanges.of(found)

    def _stretch(self, start: int, length: int, pages: int) -> Iterator[tuple[int, Bytes]]:
        """Yield one range in blocks, see `blocks`."""
        at, end = start, start + length
        while at < end:
            got = self.run(at, min(pages, end - at))
            if not len(got):  # a range that its own backing denies would loop for ever
                raise AssertionError(f"{type(self).__name__} lists frame {at:#x} but does not have it")
            yield at, got
            at += len(got)

    def close(self) -> None:
        """Release files and mappings. Arrays handed out before must not be used afterwards."""
        return


@dataclass(frozen=True, eq=False)
class Segment:
    """Neighbouring frames with one backing: first frame and bytes of shape (n, 4096)."""

    start: int
    pages: Bytes

    @property
    def end(self) -> int:
        """One past the last frame."""
        return self.start + len(self.pages)


class SegmentMemory(PhysicalMemory):
    """Memory made of segments, each one array: mapped files, simulated RAM.

    Args:
        segments: in any order; where two overlap, the earlier in the sequence wins (ELF: the first header that names
            an address is the one that readers use).
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = _without_overlaps(segments)
        self._starts = [segment.start for segment in self._segments]
        self._ranges = FrameRanges.of([(segment.start, len(segment.pages)) for segment in self._segments])

    @property
    def ranges(self) -> FrameRanges:
        """Frames that exist."""
        return self._ranges

    def run(self, pfn: int, pages: int) -> Bytes:
        """See `PhysicalMemory.run`: a view of the one segment that holds `pfn`."""
        index = bisect.bisect_right(self._starts, pfn) - 1
        if index >= 0 and pfn < self._segments[index].end:
            segment = self._segments[index]
            return segment.pages[pfn - segment.start : pfn - segment.start + pages]
        return _NO_PAGES

    def gather(self, pfns: ArrayLike, out: Bytes | None = None) -> tuple[Bytes, BoolArray]:
        """See `PhysicalMemory.gather`: one indexed copy a segment."""
        frames = np.asarray(pfns, dtype=np.int64)
        pages = np.empty((len(frames), PAGE_SIZE), dtype=np.uint8) if out is None else out
        index = np.searchsorted(np.array(self._starts, dtype=np.int64), frames, side="right") - 1
        present = np.zeros(len(frames), dtype=np.bool_)
        for number in np.unique(index[index >= 0]).tolist():
            segment = self._segments[number]
            rows = np.flatnonzero((index == number) & (frames < segment.end))
            if len(rows) == len(frames):
                np.take(segment.pages, frames - segment.start, axis=0, out=pages, mode="clip")
            else:
                pages[rows] = segment.pages[frames[rows] - segment.start]
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
    """Return the parts of a segment that none of the others has, which are ascending and disjoint: (first, end)."""
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


class Overlay(PhysicalMemory):
    """Copy on write: reads fall through to `base`, writes stay here, the source is never touched.

    A frame that the base lacks comes into being when it is written as a whole (`write_page`). Forks have their written
    pages in common until one of them writes to such a page again.
    """

    def __init__(self, base: PhysicalMemory) -> None:
        self.base = base
        self._written: dict[int, Bytes] = {}
        self._unshared: set[int] = set()
        """Of the written frames those that no fork has in common: only these are written to in place."""
        self._order: list[int] = []
        self._frames: Frames | None = None
        self._ranges: FrameRanges | None = base.ranges

    @property
    def ranges(self) -> FrameRanges:
        """Frames that exist: those of the base and those written here."""
        if self._ranges is None:
            extra = FrameRanges.of_frames(self._order)
            self._ranges = FrameRanges.of([*self.base.ranges, *extra])
        return self._ranges

    @property
    def written(self) -> Frames:
        """The frames that differ from the base's own pages (or may), ascending; the array cannot be written to."""
        if self._frames is None:
            self._frames = np.array(self._order, dtype=np.int64)
            self._frames.flags.writeable = False
        return self._frames

    def run(self, pfn: int, pages: int) -> Bytes:
        """See `PhysicalMemory.run`: the base's view up to the next written frame, or one written frame."""
        mine = self._written.get(pfn)
        if mine is not None:
            return _read_only(mine).reshape(1, PAGE_SIZE)[:pages]
        after = bisect.bisect_right(self._order, pfn)
        if after < len(self._order):
            pages = min(pages, self._order[after] - pfn)
        return self.base.run(pfn, pages)

    def frame(self, pfn: int) -> Bytes | None:
        """See `PhysicalMemory.frame`."""
        mine = self._written.get(pfn)
        return self.base.frame(pfn) if mine is None else _read_only(mine)

    def read_u64(self, paddr: int) -> int | None:
        """See `PhysicalMemory.read_u64`."""
        mine = self._written.get(paddr >> PAGE_SHIFT)
        if mine is None:
            return self.base.read_u64(paddr)
        value: int = _U64.unpack_from(mine.data, paddr & (PAGE_SIZE - 1))[0]
        return value

    def gather(self, pfns: ArrayLike, out: Bytes | None = None) -> tuple[Bytes, BoolArray]:
        """See `PhysicalMemory.gather`: the base's pages, then the written ones over them."""
        frames = np.asarray(pfns, dtype=np.int64)
        pages, present = self.base.gather(frames, out)
        for row in rows_among(frames, self.written).tolist():
            pages[row] = self._written[int(frames[row])]
            present[row] = True
        return pages, present

    def occupied(self) -> FrameRanges:
        """See `PhysicalMemory.occupied`: the base's, but of what was written here."""
        held = [pfn for pfn in self._order if self._written[pfn].any()]
        below = self.base.occupied().without(FrameRanges.of_frames(self._order))
        return FrameRanges.of([*below, *FrameRanges.of_frames(held)])

    def write_page(self, pfn: int, page: Bytes) -> None:
        """Replace one whole frame; `page` has 4096 bytes and is copied."""
        if pfn not in self._written:
            bisect.insort(self._order, pfn)
            self._frames = None
            if self._ranges is not None and not self._ranges.end_of(pfn):
                self._ranges = None
        self._written[pfn] = np.array(page, dtype=np.uint8).reshape(PAGE_SIZE)
        self._unshared.add(pfn)

    def write(self, paddr: int, data: bytes) -> None:
        """Write bytes at a physical address, across neighbouring frames.

        Raises:
            KeyError: a frame there does not exist; nothing of that frame or those after it is written.
        """
        at = 0
        while at < len(data):
            pfn, within = divmod(paddr + at, PAGE_SIZE)
            piece = data[at : at + PAGE_SIZE - within]
            self._own(pfn)[within : within + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
            at += len(piece)

    def write_u64(self, paddr: int, value: int) -> None:
        """Write one little-endian u64. Raise KeyError if the frame does not exist."""
        within = paddr & (PAGE_SIZE - 1)
        if within > PAGE_SIZE - 8:
            self.write(paddr, value.to_bytes(8, "little"))
        else:
            _U64.pack_into(self._own(paddr >> PAGE_SHIFT).data, within, value)

    def fork(self) -> Overlay:
        """Return an independent overlay in the same state, on the same base."""
        twin = Overlay(self.base)
        twin._written = self._written.copy()
        twin._order = self._order.copy()
        twin._frames, twin._ranges = self._frames, self._ranges
        self._unshared.clear()
        return twin

    def _own(self, pfn: int) -> Bytes:
        """Return a frame's bytes, to be written to."""
        if pfn not in self._unshared:
            page = self.frame(pfn)
            if page is None:
                raise KeyError(f"frame {pfn:#x} does not exist")
            self.write_page(pfn, page)
        return self._written[pfn]

    def close(self) -> None:
        """Close the base."""
        self.base.close()


def _read_only(page: Bytes) -> Bytes:
    view = page.view()
    view.flags.writeable = False
    return view
