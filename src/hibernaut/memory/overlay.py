# SPDX-License-Identifier: GPL-2.0-or-later
"""The overlay: copy on write over a physical memory."""

from __future__ import annotations

import bisect
import struct

import numpy as np
from numpy.typing import ArrayLike

from hibernaut.memory.page import PAGE_SHIFT, PAGE_SIZE, BoolArray, Bytes, Pfns
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.ranges import FrameRanges, rows_among

__all__ = ["Overlay"]

_U64 = struct.Struct("<Q")


class Overlay(PhysicalMemory):
    """Copy on write: reads fall through to `base`, writes stay in the overlay; the base is never written.

    A frame that the base lacks exists once it is written as a whole (`write_page`). Forks share their written pages
    until one of them writes to such a page again.

    Args:
        base: the memory below.
    """

    def __init__(self, base: PhysicalMemory) -> None:
        self.base = base
        self._written: dict[int, Bytes] = {}
        self._unshared: set[int] = set()
        """Written page frame numbers that no fork shares: only these pages are written in place."""
        self._order: list[int] = []
        self._written_pfns: Pfns | None = None
        self._ranges: FrameRanges | None = base.ranges

    @property
    def ranges(self) -> FrameRanges:
        """The page frames that exist: those of the base and those written in the overlay."""
        if self._ranges is None:
            extra = FrameRanges.of_pfns(self._order)
            self._ranges = FrameRanges.of([*self.base.ranges, *extra])
        return self._ranges

    @property
    def written(self) -> Pfns:
        """Page frame numbers of all written pages, ascending int64; the array is read-only."""
        if self._written_pfns is None:
            self._written_pfns = np.array(self._order, dtype=np.int64)
            self._written_pfns.flags.writeable = False
        return self._written_pfns

    def run(self, pfn: int, nr_pages: int) -> Bytes:
        """See `PhysicalMemory.run`: the base's view up to the next written frame, or one written frame."""
        mine = self._written.get(pfn)
        if mine is not None:
            return _read_only(mine).reshape(1, PAGE_SIZE)[:nr_pages]
        after = bisect.bisect_right(self._order, pfn)
        if after < len(self._order):
            nr_pages = min(nr_pages, self._order[after] - pfn)
        return self.base.run(pfn, nr_pages)

    def page(self, pfn: int) -> Bytes | None:
        """See `PhysicalMemory.page`."""
        mine = self._written.get(pfn)
        return self.base.page(pfn) if mine is None else _read_only(mine)

    def read_u64(self, paddr: int) -> int | None:
        """See `PhysicalMemory.read_u64`."""
        mine = self._written.get(paddr >> PAGE_SHIFT)
        if mine is None:
            return self.base.read_u64(paddr)
        value: int = _U64.unpack_from(mine.data, paddr & (PAGE_SIZE - 1))[0]
        return value

    def gather(self, pfns: ArrayLike, out: Bytes | None = None) -> tuple[Bytes, BoolArray]:
        """See `PhysicalMemory.gather`: the base's pages, with the written ones over them."""
        pfns = np.asarray(pfns, dtype=np.int64)
        pages, present = self.base.gather(pfns, out)
        for row in rows_among(pfns, self.written).tolist():
            pages[row] = self._written[int(pfns[row])]
            present[row] = True
        return pages, present

    def occupied(self) -> FrameRanges:
        """See `PhysicalMemory.occupied`: the base's, except for written pages."""
        held = [pfn for pfn in self._order if self._written[pfn].any()]
        below = self.base.occupied().without(FrameRanges.of_pfns(self._order))
        return FrameRanges.of([*below, *FrameRanges.of_pfns(held)])

    def write_page(self, pfn: int, page: Bytes) -> None:
        """Replace one page by a copy of `page`, uint8, 4096 bytes."""
        if pfn not in self._written:
            bisect.insort(self._order, pfn)
            self._written_pfns = None
            if self._ranges is not None and not self._ranges.end_of(pfn):
                self._ranges = None
        self._written[pfn] = np.array(page, dtype=np.uint8).reshape(PAGE_SIZE)
        self._unshared.add(pfn)

    def write(self, paddr: int, data: bytes) -> None:
        """Write bytes at a physical address, across neighbouring frames.

        Raises:
            KeyError: a frame there does not exist; neither it nor the frames after it are written.
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
        twin._written_pfns, twin._ranges = self._written_pfns, self._ranges
        self._unshared.clear()
        return twin

    def _own(self, pfn: int) -> Bytes:
        """Return the writable bytes of one page."""
        if pfn not in self._unshared:
            page = self.page(pfn)
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
