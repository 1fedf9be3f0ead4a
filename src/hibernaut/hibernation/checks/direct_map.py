# SPDX-License-Identifier: GPL-2.0-or-later
"""The check of the direct map, entry by entry."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hibernaut.hibernation.checks.violation import Violation
from hibernaut.hibernation.page_tables import both_trees, table_entries
from hibernaut.linux.machine import Machine
from hibernaut.memory.page import PAGE_SHIFT, BoolArray, Pfns
from hibernaut.memory.ranges import FrameRanges
from hibernaut.paging.entries import ENTRIES, Entries, Entry, Level, entry_pfn
from hibernaut.paging.table_names import names_table

__all__ = ["CPU_SET_BITS", "same_direct_map"]

CPU_SET_BITS = int(Entry.ACCESSED | Entry.DIRTY)
"""Bits that the CPU sets in an entry when it reads or writes the memory behind it (Intel SDM vol. 3, 5.8)."""

_Difference = tuple[Level, int, int, int, int]
"""Level, old entry, new entry, first frame, number of pages."""


def same_direct_map(
    before: Machine, after: Machine, ignore: int = 0, saved: FrameRanges | None = None
) -> tuple[Violation, ...]:
    """Return the direct-map entries that differ: in level, frame or any bit.

    The tables of both machines are compared entry by entry; a large page that stays split is a difference.

    Args:
        before: the machine before hibernation.
        after: the machine after it.
        ignore: bits that may differ. On a real machine that has run since, the CPU changes `CPU_SET_BITS`.
        saved: the frames of the image that it resumed from, if there is one: results of equal tables are shared then.
    """
    found = _of_root(before, after, ignore, saved)
    old, new = before.by_second_root(), after.by_second_root()
    if old is None or new is None:
        return found
    others = _of_root(old, new, ignore, saved)
    return (*found, *(replace(one, what=f"{one.what}, in the second root") for one in others))


def _of_root(before: Machine, after: Machine, ignore: int, saved: FrameRanges | None) -> tuple[Violation, ...]:
    """Compare the tables of the root of each machine."""
    trees = both_trees(before, after, saved)
    if trees is None:
        return _same_direct_map(before, after, ignore)
    known = after.memo.of("same_direct_map of trees")
    key = (*trees, before.base, before.end_pfn, before.encryption, ignore)
    found: tuple[Violation, ...] | None = known.get(key)
    if found is None:
        found = known[key] = _same_direct_map(before, after, ignore)
    return found


def _same_direct_map(before: Machine, after: Machine, ignore: int) -> tuple[Violation, ...]:
    """Compare the tables of two machines, pair by pair."""
    comparison = _TableComparison(before, after, ignore)
    comparison.compare()
    return tuple(
        Violation("same-direct-map", f"{level.size} entry {old:#x} became {new:#x}", pfn, nr_pages)
        for level, old, new, pfn, nr_pages in comparison.differences
    )


class _TableComparison:
    """A walk over the direct-map tables of two machines in lockstep; each pair of tables is compared once.

    What a pair of tables differs in is kept in the memo by the digests of both.
    """

    def __init__(self, before: Machine, after: Machine, ignore: int) -> None:
        self._before, self._after = before, after
        self._compared = np.uint64(~ignore & (1 << 64) - 1)
        self._known = after.memo.of(f"same_direct_map, ignoring {ignore:#x}")
        self._seen: set[tuple[Level, int, int]] = set()
        self.differences: list[_Difference] = []

    def compare(self) -> None:
        """Fill `differences`, ascending."""
        top = Level(self._before.levels)
        mask = (1 << (12 + 9 * top)) - 1
        first = (self._before.base & mask) >> PAGE_SHIFT
        self._table(top, self._before.cr3 >> 12, self._after.cr3 >> 12, 0, first, first + self._before.end_pfn)

    def _table(self, level: Level, old_pfn: int, new_pfn: int, page: int, first: int, end: int) -> None:
        """Compare two tables that map pages from number `page` on, where they map pages from `first` to `end`."""
        if (level, old_pfn, new_pfn) in self._seen:
            return
        self._seen.add((level, old_pfn, new_pfn))
        old, new = self._before.memory.page_digest(old_pfn), self._after.memory.page_digest(new_pfn)
        if old is None or new is None:
            return
        key = (int(level), old, new, page, first, end, self._before.encryption)
        found = self._known.get(key)
        if found is None:
            entries = table_entries(self._before, old_pfn), table_entries(self._after, new_pfn)
            found = self._known[key] = self._compared_tables(level, *entries, page, first, end)
        differences, below = found
        self.differences += differences
        for old_below, new_below, at in below:
            self._table(Level(level - 1), old_below, new_below, at, first, end)

    def _compared_tables(
        self, level: Level, old: Entries | None, new: Entries | None, page: int, first: int, end: int
    ) -> tuple[list[_Difference], list[tuple[int, int, int]]]:
        """Return the differences of two tables, and the pairs of tables that both name: (old, new, first page)."""
        assert old is not None
        assert new is not None
        at = page + np.arange(ENTRIES, dtype=np.int64) * level.pages
        inside = (at < end) & (at + level.pages > first)
        different = (old ^ new) & self._compared != 0
        differences = self._differing(level, old, new, at - first, inside & different) if different.any() else []
        if level == Level.PTE:
            return differences, []
        encryption = self._before.encryption
        return differences, [
            (
                entry_pfn(int(old[index]), level, encryption),
                entry_pfn(int(new[index]), level, encryption),
                int(at[index]),
            )
            for index in np.flatnonzero(inside & names_table(old, level) & names_table(new, level)).tolist()
        ]

    def _differing(self, level: Level, old: Entries, new: Entries, pfns: Pfns, which: BoolArray) -> list[_Difference]:
        """Return the entries that differ: a run of neighbours whose entries changed in the same bits is one."""
        rows = np.flatnonzero(which)
        changed = old[rows] ^ new[rows]
        breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(changed) != 0)) + 1
        differences = []
        for run in np.split(rows, breaks):
            if len(run):
                start = int(run[0])
                nr_pages = len(run) * level.pages
                differences.append((level, int(old[start]), int(new[start]), int(pfns[start]), nr_pages))
        return differences
