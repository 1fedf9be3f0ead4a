# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables of a simulated machine at boot, as arch/x86/mm/init.c makes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from hibernaut.linux.fixmap import FIXMAP_SLOTS, fix_to_virt
from hibernaut.linux.layout import HoleKind, HoleSpec, Layout
from hibernaut.linux.pgtable import KERNPG_TABLE, PAGE_KERNEL, PAGE_KERNEL_LARGE, PAGE_TABLE
from hibernaut.memory.page import PAGE_SIZE, Pfns
from hibernaut.memory.ranges import FrameRanges
from hibernaut.memory.segments import Segment
from hibernaut.paging.entries import ENTRIES, Entries, Level

__all__ = ["BootTables"]


def _leaf_runs(start: int, end: int, largest: Level) -> Iterator[tuple[Level, int, int]]:
    """`split_mem_range`: yield (level, first frame, number of entries) of the largest pages that fit."""
    if largest == Level.PTE:
        if start < end:
            yield Level.PTE, start, end - start
        return
    first = -(-start // largest.pages) * largest.pages
    last = end // largest.pages * largest.pages
    smaller = Level(largest - 1)
    if first >= last:
        yield from _leaf_runs(start, end, smaller)
        return
    yield from _leaf_runs(start, first, smaller)
    yield largest, first, (last - first) // largest.pages
    yield from _leaf_runs(last, end, smaller)


class BootTables:
    """Page tables of a layout at boot, with its holes of kinds NONE and NO_TABLE.

    A table is identified by its level and its key, the address shifted right by what the table spans. Tables are in
    groups: group 0, and one for each element of `Layout.tables_of`.

    Args:
        layout: the layout.
        ram: its RAM.

    Attributes:
        counts: number of tables in each group.
    """

    def __init__(self, layout: Layout, ram: FrameRanges) -> None:
        self._root = Level(layout.levels)
        self._first_page = _page_number(layout.page_offset, layout.levels)
        absent = [hole for hole in layout.holes if hole.kind in (HoleKind.NONE, HoleKind.NO_TABLE)]
        mapped = ram.without(FrameRanges.of([(hole.start_pfn, hole.pages) for hole in absent]))
        self._runs = [run for start, pages in mapped for run in _leaf_runs(start, start + pages, layout.largest)]
        needed = self._needed(absent, fixmap=layout.fixmap)
        self._keys: dict[Level, Pfns] = {}
        for level in needed:
            self._keys[level] = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *needed[level]]))
            if level < self._root:
                needed[Level(level + 1)].append(self._keys[level] >> 9)
        self._group = np.concatenate([self._groups_of(level, layout) for level in reversed(self._keys)])
        self.counts: list[int] = np.bincount(self._group, minlength=len(layout.tables_of) + 1).tolist()

    @property
    def direct_pages_count(self) -> dict[Level, int]:
        """Entries of the direct map by level, as the kernel counts them at boot; that of 1G only if there are any."""
        counts = dict.fromkeys((Level.PTE, Level.PMD), 0)
        for level, _, count in self._runs:
            counts[level] = counts.get(level, 0) + count
        return counts

    def _needed(self, absent: Sequence[HoleSpec], *, fixmap: bool) -> dict[Level, list[Pfns]]:
        """Return the keys of the tables that leaves, missing entries and the fixmap need, by level."""
        needed: dict[Level, list[Pfns]] = {level: [] for level in Level if level <= self._root}
        for level, pfn, count in self._runs:
            first = (self._first_page + pfn) >> (9 * (level - 1))
            needed[level].append(np.arange(first >> 9, ((first + count - 1) >> 9) + 1))
        for hole in absent:
            first = self._first_page + hole.start_pfn
            level = Level.PTE if hole.kind == HoleKind.NONE else Level.PMD
            shift = 9 * level
            needed[level].append(np.arange(first >> shift, ((first + hole.pages - 1) >> shift) + 1))
        if fixmap:
            slots = [_page_number(fix_to_virt(index), self._root) >> 9 for index in range(0, FIXMAP_SLOTS, ENTRIES)]
            needed[Level.PTE].append(np.array(slots))
        return needed

    def _groups_of(self, level: Level, layout: Layout) -> Pfns:
        """Return the group of each table of a level."""
        keys = self._keys[level]
        groups = np.zeros(len(keys), dtype=np.int64)
        for number, (start, pages, _) in reversed(list(enumerate(layout.tables_of, 1))):
            first, last = self._first_page + start, self._first_page + start + pages - 1
            if level < self._root:
                groups[(keys >= first >> 9 * level) & (keys <= last >> 9 * level)] = number
        return groups

    def fill(self, places: Sequence[int]) -> list[Segment]:
        """Return all tables: those of each group from its first frame on, the root first, PTE tables last.

        Args:
            places: first frame of each group.
        """
        where = np.empty(len(self._group), dtype=np.int64)
        for group, place in enumerate(places):
            where[self._group == group] = place + np.arange(self.counts[group])
        tables = self._entries(where)
        return [
            Segment(place, tables[self._group == group].view(np.uint8).reshape(-1, PAGE_SIZE))
            for group, place in enumerate(places)
            if self.counts[group]
        ]

    def _entries(self, where: Pfns) -> Entries:
        """Return the entries of all tables, shape (tables, 512), for tables in these frames."""
        tables = np.zeros((len(where), ENTRIES), dtype="<u8")
        first: dict[Level, int] = {}
        at = 0
        for level in reversed(self._keys):
            first[level] = at
            at += len(self._keys[level])
        for level, keys in self._keys.items():
            if level < self._root:
                parent = Level(level + 1)
                rows = first[parent] + np.searchsorted(self._keys[parent], keys >> 9)
                frames = where[first[level] : first[level] + len(keys)].astype(np.uint64) << np.uint64(12)
                flags = PAGE_TABLE if parent == self._root else KERNPG_TABLE
                tables[rows, keys & (ENTRIES - 1)] = frames | np.uint64(flags)
        for level, pfn, count in self._runs:
            index = (self._first_page + pfn) >> (9 * (level - 1))
            # Neighbouring addresses of a run lie in neighbouring tables, and these in neighbouring rows.
            row = first[level] + int(np.searchsorted(self._keys[level], index >> 9))
            start = row * ENTRIES + (index & (ENTRIES - 1))
            frames = (np.uint64(pfn) + np.arange(count, dtype=np.uint64) * np.uint64(level.pages)) << np.uint64(12)
            flags = PAGE_KERNEL if level == Level.PTE else PAGE_KERNEL_LARGE
            tables.reshape(-1)[start : start + count] = frames | np.uint64(flags)
        return tables


def _page_number(vaddr: int, levels: int) -> int:
    """Return the page number that the tables decode from an address."""
    return (vaddr & ((1 << (12 + 9 * levels)) - 1)) >> 12
