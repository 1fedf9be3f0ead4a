# SPDX-License-Identifier: GPL-2.0-or-later
"""The check of the direct map, entry by entry."""

from __future__ import annotations

import numpy as np

from hibernaut.hibernation.checks.violation import Violation
from hibernaut.hibernation.page_tables import names_table, table_entries
from hibernaut.linux.machine import Machine
from hibernaut.memory.page import PAGE_SHIFT, BoolArray, Pfns
from hibernaut.paging.entries import ENTRIES, Entries, Entry, Level, entry_pfn

__all__ = ["CPU_SET_BITS", "same_direct_map"]

CPU_SET_BITS = int(Entry.ACCESSED | Entry.DIRTY)
"""Bits that the CPU sets in an entry when it reads or writes the memory behind it (Intel SDM vol. 3, 5.8)."""


def same_direct_map(before: Machine, after: Machine, ignore: int = 0) -> tuple[Violation, ...]:
    """Return the direct-map entries that differ: in level, frame or any bit.

    The tables of both machines are compared entry by entry; a large page that stays split is a difference.

    Args:
        before: the machine before hibernation.
        after: the machine after it.
        ignore: bits that may differ. On a real machine that has run since, the CPU changes `CPU_SET_BITS`.
    """
    comparison = _TableComparison(before, after, ignore)
    comparison.compare()
    return tuple(
        Violation("same-direct-map", f"{level.size} entry {old:#x} became {new:#x}", pfn, nr_pages)
        for level, old, new, pfn, nr_pages in comparison.differences
    )


class _TableComparison:
    """A walk over the direct-map tables of two machines in lockstep; each pair of tables is compared once."""

    def __init__(self, before: Machine, after: Machine, ignore: int) -> None:
        self._before, self._after = before, after
        self._compared = np.uint64(~ignore & (1 << 64) - 1)
        self._seen: set[tuple[Level, int, int]] = set()
        self.differences: list[tuple[Level, int, int, int, int]] = []

    def compare(self) -> None:
        """Fill `differences` with (level, old entry, new entry, first frame, number of pages), ascending."""
        top = Level(self._before.levels)
        mask = (1 << (12 + 9 * top)) - 1
        first = (self._before.base & mask) >> PAGE_SHIFT
        self._table(top, self._before.cr3 >> 12, self._after.cr3 >> 12, 0, first, first + self._before.end_pfn)

    def _table(self, level: Level, old_pfn: int, new_pfn: int, page: int, first: int, end: int) -> None:
        """Compare two tables that map pages from number `page` on, where they map pages from `first` to `end`."""
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
            encryption = self._before.encryption
            old_below, new_below = (entry_pfn(int(one[index]), level, encryption) for one in (old, new))
            self._table(Level(level - 1), old_below, new_below, int(at[index]), first, end)

    def _differing(self, level: Level, old: Entries, new: Entries, pfns: Pfns, which: BoolArray) -> None:
        """Record entries that differ: a run of neighbours whose entries changed in the same bits is one difference."""
        rows = np.flatnonzero(which)
        changed = old[rows] ^ new[rows]
        breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(changed) != 0)) + 1
        for run in np.split(rows, breaks):
            if len(run):
                start = int(run[0])
                nr_pages = len(run) * level.pages
                self.differences.append((level, int(old[start]), int(new[start]), int(pfns[start]), nr_pages))
