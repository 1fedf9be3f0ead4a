# SPDX-License-Identifier: GPL-2.0-or-later
"""Physical memory in one volume, in any number of pieces: a file is mapped, any other volume is read."""

from __future__ import annotations

import bisect
import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hibernaut.errors import FormatError
from hibernaut.memory.page import CHUNK_PAGES, PAGE_SIZE
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.ranges import FrameRanges
from hibernaut.parallel import ordered_results
from hibernaut.volumes.files import PlainFile
from hibernaut.volumes.volume import close_volume

if TYPE_CHECKING:
    from hibernaut.memory.page import BoolArray, Bytes
    from hibernaut.volumes.volume import Volume

__all__ = ["MappedMemory", "Pieces", "first_wins", "whole_frames"]

MOST_PAGES_READ = 1 << 12
"""Pages that one call of `run` reads of a volume that is not mapped: 16 MiB."""
BLOCKS_KEPT = 8
"""Blocks that `MappedMemory.blocks` keeps mapped behind it: a writing thread may lag some blocks."""

Pieces = NDArray[np.int64]
"""Runs of frames that are contiguous in a file, shape (n, 3): first frame, number of pages, byte offset in the file.

The offset need not be aligned.
"""


def whole_frames(paddrs: ArrayLike, sizes_bytes: ArrayLike, offsets: ArrayLike) -> Pieces:
    """Return the frames that lie wholly in ranges of physical bytes stored at `offsets`; all int64 of shape (n,).

    Frames that the dump holds only in part are left out: their other bytes are unknown, and the kernel itself uses no
    page that is not RAM as a whole (`e820_end_pfn` and `e820__memblock_setup`, arch/x86/kernel/e820.c, round inwards).
    """
    paddr, size_bytes, offset = (np.asarray(of, dtype=np.int64) for of in (paddrs, sizes_bytes, offsets))
    start = -(-paddr // PAGE_SIZE)
    nr_pages = (paddr + size_bytes) // PAGE_SIZE - start
    pieces = np.stack((start, nr_pages, offset + start * PAGE_SIZE - paddr), axis=1)
    return pieces[nr_pages > 0]


def first_wins(pieces: Pieces) -> Pieces:
    """Return the frames without overlaps, ascending: a frame in several pieces belongs to the earliest piece.

    ELF readers look for the first header that names an address. n log n in the number of pieces.
    """
    order = np.argsort(pieces[:, 0], kind="stable")
    ordered = pieces[order]
    if not len(pieces) or (ordered[:-1, 0] + ordered[:-1, 1] <= ordered[1:, 0]).all():
        return ordered
    kept = np.array(_sweep(pieces[:, 0].tolist(), (pieces[:, 0] + pieces[:, 1]).tolist(), order.tolist()))
    number, first, end = kept.T
    return np.stack((first, end - first, pieces[number, 2] + (first - pieces[number, 0]) * PAGE_SIZE), axis=1)


def _sweep(starts: list[int], ends: list[int], order: list[int]) -> list[tuple[int, int, int]]:
    """Return disjoint (piece, first, end), ascending; of overlaps the smallest number wins. `order` sorts by start."""
    active: list[int] = []
    kept: list[tuple[int, int, int]] = []
    at = taken = 0
    while active or taken < len(order):
        if not active:
            at = max(at, starts[order[taken]])
        while taken < len(order) and starts[order[taken]] <= at:
            heapq.heappush(active, order[taken])
            taken += 1
        number = active[0]
        if ends[number] <= at:
            heapq.heappop(active)
            continue
        stop = min(ends[number], starts[order[taken]]) if taken < len(order) else ends[number]
        if kept and kept[-1][0] == number and kept[-1][2] == at:
            kept[-1] = (number, kept[-1][1], stop)
        else:
            kept.append((number, at, stop))
        at = stop
    return kept


class MappedMemory(PhysicalMemory):
    """Frames of a volume. Of a file they are views of its mapping, only `gather` copies; of any other they are read.

    Safe for several threads.

    Args:
        plain: the file, or another volume; closing this memory closes it.
        pieces: places of the frames, in any order, all inside the volume; where two overlap, the earlier wins.

    Raises:
        FormatError: the file cannot be mapped (some files of /proc).
    """

    def __init__(self, plain: Volume, pieces: Pieces) -> None:
        self._plain = plain
        self._file = plain if isinstance(plain, PlainFile) and not plain.is_live else None
        self._data = self._file.map() if self._file else None
        self._pieces = first_wins(pieces)
        # Lists: `run` is often called for single frames, where they are faster than arrays.
        self._starts: list[int] = self._pieces[:, 0].tolist()
        self._ends: list[int] = (self._pieces[:, 0] + self._pieces[:, 1]).tolist()
        self._offsets: list[int] = self._pieces[:, 2].tolist()
        self._ranges = _merged(self._pieces)

    @property
    def ranges(self) -> FrameRanges:
        """Frames that exist."""
        return self._ranges

    @property
    def stored(self) -> FrameRanges:
        """See `PhysicalMemory.stored`: frames that lie wholly in holes of the file are left out."""
        if self._file is None:
            return self._ranges
        return FrameRanges.of([(low, high - low) for low, high, _ in self._stored_pieces(self._file)])

    def _stored_pieces(self, plain: PlainFile) -> Iterator[tuple[int, int, int]]:
        """Yield the parts of pieces outside the holes of the file: first frame, end, and byte of the first one."""
        extents = plain.data_extents()
        ends = [end for _, end in extents]
        for start, end, offset in zip(self._starts, self._ends, self._offsets, strict=True):
            last_byte = offset + (end - start) * PAGE_SIZE
            done = start
            for first, past in extents[bisect.bisect_right(ends, offset) :]:
                if first >= last_byte:
                    break
                # A frame that begins in one extent and ends in the next belongs to the first.
                low = max(done, start + (max(first, offset) - offset) // PAGE_SIZE)
                done = start - (-(min(past, last_byte) - offset) // PAGE_SIZE)
                if low < done:
                    yield low, done, offset + (low - start) * PAGE_SIZE

    def run(self, pfn: int, nr_pages: int) -> Bytes:
        """See `PhysicalMemory.run`: a view of the one piece that holds `pfn`, or a copy of at most 4096 pages of it.

        Raises:
            FormatError: a volume that is read ends early, or is damaged there.
        """
        index = bisect.bisect_right(self._starts, pfn) - 1
        if index < 0 or pfn >= self._ends[index] or nr_pages <= 0:
            return np.empty((0, PAGE_SIZE), dtype=np.uint8)
        nr_pages = min(nr_pages, self._ends[index] - pfn)
        at = self._offsets[index] + (pfn - self._starts[index]) * PAGE_SIZE
        if self._data is None:
            return self._read(at, np.empty((min(nr_pages, MOST_PAGES_READ), PAGE_SIZE), dtype=np.uint8))
        return self._data[at : at + nr_pages * PAGE_SIZE].reshape(nr_pages, PAGE_SIZE)

    def _read(self, offset: int, pages: Bytes) -> Bytes:
        """Fill pages, shape (n, 4096), with the bytes of a volume that is not mapped, and return them."""
        got = self._plain.pread_into(offset, pages.reshape(-1))
        if got < pages.nbytes:
            raise FormatError(
                f"it ends {pages.nbytes - got} bytes early",
                source=self._plain.name,
                offset=offset + got,
                advice="copy the whole disk again: this one is cut",
            )
        return pages

    def gather(self, pfns: ArrayLike, out: Bytes | None = None) -> tuple[Bytes, BoolArray]:
        """See `PhysicalMemory.gather`: one indexed copy for all pieces with the same alignment in the file."""
        pfns = np.asarray(pfns, dtype=np.int64)
        pages = np.empty((len(pfns), PAGE_SIZE), dtype=np.uint8) if out is None else out
        if not len(self._pieces):
            pages[:] = 0
            return pages, np.zeros(len(pfns), dtype=np.bool_)
        starts, lengths, offsets = self._pieces.T
        index = np.maximum(np.searchsorted(starts, pfns, side="right") - 1, 0)
        within = pfns - starts[index]
        present = (within >= 0) & (within < lengths[index])
        position = offsets[index] + within * PAGE_SIZE
        if self._data is None:
            pages[~present] = 0
            rows = np.flatnonzero(present)
            apart = (np.diff(rows) != 1) | (np.diff(position[rows]) != PAGE_SIZE)
            for some in np.split(rows, np.flatnonzero(apart) + 1) if len(rows) else ():
                self._read(int(position[some[0]]), pages[some[0] : some[-1] + 1])
            return pages, present
        shift = position % PAGE_SIZE
        for align in np.unique(shift[present]).tolist():
            rows = np.flatnonzero(present & (shift == align))
            whole = (len(self._data) - align) // PAGE_SIZE
            view = self._data[align : align + whole * PAGE_SIZE].reshape(whole, PAGE_SIZE)
            if len(rows) == len(pfns):
                np.take(view, position // PAGE_SIZE, axis=0, out=pages, mode="clip")
            else:
                pages[rows] = view[position[rows] // PAGE_SIZE]
        pages[~present] = 0
        return pages, present

    def blocks(self, nr_pages: int = CHUNK_PAGES) -> Iterator[tuple[int, Bytes]]:
        """See `PhysicalMemory.blocks`. The mapping of a block is released some blocks later.

        Reading a dump from end to end therefore keeps a few blocks resident. The arrays stay valid: access to a
        released block maps it again. Of a volume that is read, the next blocks are read while one is used.
        """
        if self._file is None:
            yield from ordered_results(self._reads(min(nr_pages, MOST_PAGES_READ)))
            return
        pieces = zip(self._starts, self._ends, self._offsets, strict=True)
        yield from self._released(self._file, pieces, nr_pages)

    def stored_blocks(self, nr_pages: int = CHUNK_PAGES) -> Iterator[tuple[int, Bytes]]:
        """See `PhysicalMemory.stored_blocks`; released as by `blocks`."""
        if self._file is None:
            yield from self.blocks(nr_pages)
            return
        yield from self._released(self._file, self._stored_pieces(self._file), nr_pages)

    def _released(
        self, plain: PlainFile, pieces: Iterable[tuple[int, int, int]], nr_pages: int
    ) -> Iterator[tuple[int, Bytes]]:
        """Yield pieces in blocks, see `blocks`."""
        used: deque[tuple[int, int]] = deque()
        for start, end, offset in pieces:
            for first in range(start, end, nr_pages):
                got = self.run(first, min(nr_pages, end - first))
                yield first, got
                used.append((offset + (first - start) * PAGE_SIZE, got.nbytes))
                if len(used) > BLOCKS_KEPT:
                    plain.release(*used.popleft())
        for block in used:
            plain.release(*block)

    def _reads(self, nr_pages: int) -> Iterator[Callable[[], tuple[int, Bytes]]]:
        """Yield the functions that read each block."""

        def read(first: int, some: int) -> tuple[int, Bytes]:
            return first, self.run(first, some)

        for start, end in zip(self._starts, self._ends, strict=True):
            for first in range(start, end, nr_pages):
                yield partial(read, first, min(nr_pages, end - first))

    def close(self) -> None:
        """Close the volume; the mapping of a file ends with the last array on it."""
        self._data = np.empty(0, dtype=np.uint8)
        self._pieces = self._pieces[:0]
        self._starts, self._ends, self._offsets = [], [], []
        close_volume(self._plain)


def _merged(pieces: Pieces) -> FrameRanges:
    """Return the frames of ascending disjoint pieces."""
    ends = pieces[:, 0] + pieces[:, 1]
    begins = np.append(True, pieces[1:, 0] != ends[:-1])[: len(pieces)]
    starts = pieces[begins, 0]
    return FrameRanges(starts, ends[np.append(begins[1:], True)[: len(pieces)]] - starts)
