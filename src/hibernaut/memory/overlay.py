# SPDX-License-Identifier: GPL-2.0-or-later
"""Copy on write over a physical memory."""

from __future__ import annotations

import bisect
import struct

import numpy as np
from numpy.typing import ArrayLike

from hibernaut.memory.page import PAGE_SHIFT, PAGE_SIZE, BoolArray, Bytes, Frames
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.ranges import FrameRanges, rows_among

__all__ = ["Overlay"]

_U64 = struct.Struct("<Q")


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
