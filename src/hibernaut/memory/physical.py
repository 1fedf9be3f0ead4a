# SPDX-License-Identifier: GPL-2.0-or-later
"""Physical memory: page frames with gaps, read as arrays.

A `PhysicalMemory` answers three questions: which frames exist (`ranges`), what a run of neighbouring frames holds
(`run`, without copying where the backing can be mapped), and what many scattered frames hold (`gather`). A frame that
does not exist is an answer - an empty run, a False in a mask, None - and never an exception.
"""

from __future__ import annotations

import itertools
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from hibernaut.memory.page import CHUNK_PAGES, PAGE_SHIFT, PAGE_SIZE, BoolArray, Bytes
from hibernaut.memory.ranges import FrameRanges
from hibernaut.volumes.closing import Closing

__all__ = ["PhysicalMemory"]

_U64 = struct.Struct("<Q")


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
