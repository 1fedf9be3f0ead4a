# SPDX-License-Identifier: GPL-2.0-or-later
"""The check of the direct map, entry by entry."""

from __future__ import annotations

import numpy as np

from hibernaut.hibernation.checks.violation import Violation
from hibernaut.hibernation.page_tables import names_table, table_entries
from hibernaut.linux.machine import Machine
from hibernaut.memory.page import PAGE_SHIFT, BoolArray, Frames
from hibernaut.paging.entries import ENTRIES, FRAME_MASK, Entries, Entry, Level

__all__ = ["CPU_SET_BITS", "same_direct_map"]

CPU_SET_BITS = int(Entry.ACCESSED | Entry.DIRTY)
"""What the CPU sets in an entry by itself when the memory behind it is read or written (Intel SDM vol. 3, 5.8)."""


def same_direct_map(before: Machine, after: Machine, ignore: int = 0) -> tuple[Violation, ...]:
    """Every frame has the direct-map entry that it had: same level, same frame, same bits.

    The tables of both machines are compared entry by entry; a split that stays is a difference, too.

    Args:
        before: the machine as it was.
        after: the machine as it is.
        ignore: bits that may differ. A real machine that has run on has `CPU_SET_BITS` changed by its CPU.
    """
    comparison = _TableComparison(before, after, ignore)
    comparison.compare()
    return tuple(
        Violation("same-direct-map", f"{level.size} entry {old:#x} became {new:#x}", pfn, pages)
        for level, old, new, pfn, pages in comparison.differences
    )


class _TableComparison:
    """Two machines' tables of the direct map, in lockstep; a pair of tables is compared once, however often named."""

    def __init__(self, before: Machine, after: Machine, ignore: int) -> None:
        self._before, self._after = before, after
        self._compared = np.uint64(~ignore & (1 << 64) - 1)
        self._seen: set[tuple[Level, int, int]] = set()
        self.differences: list[tuple[Level, int, int, int, int]] = []

    def compare(self) -> None:
        """Fill `differences` with (level, old entry, new entry, first frame, pages), ascending."""
        top = Level(self._before.levels)
        mask = (1 << (12 + 9 * top)) - 1
        first = (self._before.base & mask) >> PAGE_SHIFT
        self._table(top, self._before.cr3 >> 12, self._after.cr3 >> 12, 0, first, first + self._before.end_pfn)

    def _table(self, level: Level, old_pfn: int, new_pfn: int, page: int, first: int, end: int) -> None:
        """Tables that begin at page number `page`, compared where they speak of pages from `first` to `end`."""
        if (level, old_pfn, new_pfn) in self._seen:
            return
        self._seen.add((level, old_pfn, new_pfn))
        old, new = table_entries(self._before, old_pfn), table_entries(self._after, new_pfn)
        if old is None or new is None:
            return
        at = page + np.arange(ENTRIES, dtype=np.int64) * level.pages
        inside = (at < end) & (at + level.pages > first)
        self._differing(level, old, new, at - first, inside & ((old ^ new) & self._compared != 0))
        if level == Level.PTE:
            return
        for index in np.flatnonzero(inside & names_table(old, level) & names_table(new, level)).tolist():
            below = (int(old[index]) & FRAME_MASK) >> 12, (int(new[index]) & FRAME_MASK) >> 12
            self._table(Level(level - 1), *below, int(at[index]), first, end)

    def _differing(self, level: Level, old: Entries, new: Entries, pfns: Frames, which: BoolArray) -> None:
        """Note entries that differ: runs of neighbours whose entries changed by the same bits are one difference."""
        rows = np.flatnonzero(which)
        changed = old[rows] ^ new[rows]
        breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(changed) != 0)) + 1
        for run in np.split(rows, breaks):
            if len(run):
                start = int(run[0])
                pages = len(run) * level.pages
                self.differences.append((level, int(old[start]), int(new[start]), int(pfns[start]), pages))
