# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading many tables: without a copy where their frames are neighbours, gathered elsewhere."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.errors import FormatError
from hibernaut.memory.page import PAGE_SIZE, BoolArray, Bytes, Pfns
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.paging.entries import ENTRIES, Entries, Level, entry_frames

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TableReader"]


class TableReader:
    """Reader of tables as arrays of entries. Threads may share it: one at a time reads the memory.

    Args:
        memory: memory that holds the tables.
        encryption: see `PageTables`.
    """

    def __init__(self, memory: PhysicalMemory, encryption: int = 0) -> None:
        self._memory = memory
        self._encryption = encryption
        self._ranges = memory.ranges
        self._lock = threading.Lock()

    @property
    def memory_pages(self) -> int:
        """Number of pages in the memory."""
        return self._ranges.total_pages

    def frames(self, entries: Entries, level: Level) -> Pfns:
        """Return `entry_frames` of entries of these tables."""
        return entry_frames(entries, level, self._encryption)

    def exist(self, pfns: Pfns) -> BoolArray:
        """Return which of these tables exist in the memory."""
        return self._ranges.contains(pfns)

    def tables(self, pfns: Pfns, buffer: Bytes | None = None) -> Entries:
        """Return the entries of tables that exist, uint64, shape (n, 512): read-only, valid until the next call.

        Args:
            pfns: frames of the tables, shape (n,), all of them existing.
            buffer: buffer for gathering, shape (at least n, 4096); allocated if needed and not given.

        Raises:
            FormatError: the memory lists a frame that it cannot read.
        """
        count = len(pfns)
        with self._lock:
            if count and int(pfns[-1]) - int(pfns[0]) == count - 1 and bool((np.diff(pfns) == 1).all()):
                pages = self._memory.run(int(pfns[0]), count)
                if len(pages) == count:
                    return _entries(pages)
            out = np.empty((count, PAGE_SIZE), dtype=np.uint8) if buffer is None else buffer[:count]
            pages, present = self._memory.gather(pfns, out)
        if not present.all():
            missing = int(pfns[int(np.flatnonzero(~present)[0])])
            raise FormatError(f"frame {missing:#x} is listed but cannot be read")
        return _entries(pages)


def _entries(pages: NDArray[np.uint8]) -> Entries:
    entries = pages.view(np.uint64)
    # A file's segment need not begin at a multiple of 8; NumPy copies such an array faster than it computes with it.
    return (entries if entries.flags.aligned else entries.copy()).reshape(-1, ENTRIES)
