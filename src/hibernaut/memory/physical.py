# SPDX-License-Identifier: GPL-2.0-or-later
"""Physical memory: page frames with gaps, read as arrays.

A `PhysicalMemory` returns the frames that exist (`ranges`), the bytes of a run of neighbouring frames (`run`, without a
copy where the backing can be mapped), and the bytes of many scattered frames (`gather`). A frame that does not exist
gives an empty run, a False in a mask or None, and never an exception.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator

import numpy as np
from numpy.typing import ArrayLike

from hibernaut.memory.page import CHUNK_PAGES, PAGE_SHIFT, PAGE_SIZE, BoolArray, Bytes
from hibernaut.memory.ranges import FrameRanges
from hibernaut.volumes.closing import Closing

__all__ = ["PhysicalMemory", "digest_of_page"]

PAGE_DIGEST_BYTES = 16

_U64 = struct.Struct("<Q")


def digest_of_page(page: Bytes) -> bytes:
    """Return a digest of the bytes of a page (BLAKE2b, 16 bytes): pages with equal digests have equal bytes."""
    return hashlib.blake2b(np.ascontiguousarray(page).data, digest_size=PAGE_DIGEST_BYTES).digest()


class PhysicalMemory(Closing, ABC):
    """Page frames with gaps. Returned arrays are read-only views wherever the backing allows.

    Several threads may read one memory at once, as writers of images and dumps do: an implementation keeps the state of
    its reads per thread, or locks it.
    """

    @property
    @abstractmethod
    def ranges(self) -> FrameRanges:
        """The page frames that exist."""

    @abstractmethod
    def run(self, pfn: int, nr_pages: int) -> Bytes:
        """Return at most `nr_pages` pages from `pfn` on, uint8, shape (k, 4096).

        k is 0 exactly if `pfn` does not exist. It may be less than `nr_pages` where a gap follows or the backing
        changes; a caller that needs more calls again from `pfn + k`.
        """

    def gather(self, pfns: ArrayLike, out: Bytes | None = None) -> tuple[Bytes, BoolArray]:
        """Return many pages in any order.

        Args:
            pfns: page frame numbers, shape (n,).
            out: array for the bytes, uint8, shape (n, 4096), C-contiguous; allocated by default.

        Returns:
            The bytes, uint8, shape (n, 4096), and a mask of the frames that exist, shape (n,). Bytes of a frame that
            does not exist are zero.
        """
        pfns = np.asarray(pfns, dtype=np.int64)
        pages = np.empty((len(pfns), PAGE_SIZE), dtype=np.uint8) if out is None else out
        present = np.zeros(len(pfns), dtype=np.bool_)
        breaks = np.flatnonzero(np.diff(pfns) != 1) + 1
        bounds = [0, *breaks.tolist(), len(pfns)] if len(pfns) else []
        for first, last in itertools.pairwise(bounds):
            at = first
            while at < last:
                got = self.run(int(pfns[at]), last - at)
                if len(got):
                    pages[at : at + len(got)] = got
                    present[at : at + len(got)] = True
                    at += len(got)
                else:
                    pages[at] = 0
                    at += 1
        return pages, present

    def page(self, pfn: int) -> Bytes | None:
        """Return one page, uint8, shape (4096,); None if the frame does not exist."""
        got = self.run(pfn, 1)
        return got[0] if len(got) else None

    def page_digest(self, pfn: int) -> bytes | None:
        """Return a digest of the bytes of one page, see `digest_of_page`; None if the frame does not exist."""
        page = self.page(pfn)
        return None if page is None else digest_of_page(page)

    def content_key(self, start: int, end: int) -> Hashable | None:
        """Return a value that is equal only if the frames from `start` up to `end` hold the same bytes, or are missing.

        None if the memory has no such value that is cheaper than the bytes. The values of two memories may differ
        although their bytes are equal.
        """
        del start, end
        return None

    def read(self, paddr: int, size_bytes: int) -> bytes | None:
        """Return bytes at a physical address, across neighbouring frames; None if any of these does not exist."""
        first, within = divmod(paddr, PAGE_SIZE)
        pages, present = self.gather(np.arange(first, (paddr + size_bytes + PAGE_SIZE - 1) // PAGE_SIZE))
        if not present.all():
            return None
        return pages.reshape(-1)[within : within + size_bytes].tobytes()

    def read_u64(self, paddr: int) -> int | None:
        """Return the little-endian u64 at a physical address, a multiple of 8; None if the frame does not exist."""
        page = self.page(paddr >> PAGE_SHIFT)
        if page is None:
            return None
        value: int = _U64.unpack_from(page.data, paddr & (PAGE_SIZE - 1))[0]
        return value

    def blocks(self, nr_pages: int = CHUNK_PAGES) -> Iterator[tuple[int, Bytes]]:
        """Yield all memory in ascending order: (first frame, uint8 of shape (k, 4096)), k at most `nr_pages`."""
        for start, length in self.ranges:
            yield from self._stretch(start, length, nr_pages)

    @property
    def stored(self) -> FrameRanges:
        """Frames that may hold data: `ranges` without those known to be zero before any read."""
        return self.ranges

    def stored_blocks(self, nr_pages: int = CHUNK_PAGES) -> Iterator[tuple[int, Bytes]]:
        """Yield the `stored` frames as `blocks` does."""
        stored = self.stored
        if stored.total_pages == self.ranges.total_pages:
            yield from self.blocks(nr_pages)
            return
        for start, length in stored:
            yield from self._stretch(start, length, nr_pages)

    def occupied(self) -> FrameRanges:
        """Return the frames that are not all zeroes. Reads all `stored` frames, at memory speed."""
        found = []
        for start, length in self.stored:
            for at, pages in self._stretch(start, length, CHUNK_PAGES):
                held = np.flatnonzero(pages.view(np.uint64).any(axis=1))
                found += list(FrameRanges.of_pfns(held + at))
        return FrameRanges.of(found)

    def _stretch(self, start: int, length: int, nr_pages: int) -> Iterator[tuple[int, Bytes]]:
        """Yield one range in blocks, see `blocks`."""
        at, end = start, start + length
        while at < end:
            got = self.run(at, min(nr_pages, end - at))
            if not len(got):  # a range that the backing does not have would loop forever
                raise AssertionError(f"{type(self).__name__} lists frame {at:#x} and does not have it")
            yield at, got
            at += len(got)

    def close(self) -> None:
        """Release files and mappings. Arrays returned before must not be used afterwards."""
        return
