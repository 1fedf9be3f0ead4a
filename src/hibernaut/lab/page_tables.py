# SPDX-License-Identifier: GPL-2.0-or-later
"""The page tables that a memory or an image has, those that it lacks, and those that change between two instants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hibernaut.memory.page import PAGE_SHIFT, Bytes
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.paging.entries import FRAME_MASK, Entry, Level, is_leaf

__all__ = ["ChangedEntry", "KernelTables", "reachable_tables"]

KERNEL_HALF = 256
"""First entry of the root that maps kernel addresses: bit 47, or 56 with 5 levels, is set from there on."""
SIGN = {4: 0xFFFF << 48, 5: 0xFE << 56}


def reachable_tables(memory: PhysicalMemory, cr3: int, levels: int) -> tuple[dict[int, Bytes | None], set[int]]:
    """Return every page table reachable from CR3, by frame, None for those the memory lacks; and the latter's frames.

    Args:
        memory: memory of a machine, or of its image.
        cr3: physical address of the root.
        levels: levels of paging, 4 or 5.
    """
    pages: dict[int, Bytes | None] = {}

    def visit(pfn: int, level: int) -> None:
        if pfn in pages:
            return
        pages[pfn] = page = memory.page(pfn)
        if page is None or level == Level.PTE:
            return
        entries = page.view("<u8")
        leaf = (entries & np.uint64(Entry.PSE)) != 0 if level < Level.P4D else np.zeros(len(entries), dtype=bool)
        tables = entries[((entries & np.uint64(Entry.PRESENT)) != 0) & ~leaf] & np.uint64(FRAME_MASK)
        for paddr in tables.tolist():
            visit(paddr >> 12, level - 1)

    visit(cr3 >> 12, levels)
    return pages, {pfn for pfn, page in pages.items() if page is None}


@dataclass(frozen=True)
class ChangedEntry:
    """An entry of a page table that differs between two instants.

    Attributes:
        address: first virtual address that it maps.
        level: level of its table.
        before: the entry at the earlier instant; None if there was no table for it.
        after: the entry at the later instant; None if there is no table for it.
    """

    address: int
    level: Level
    before: int | None
    after: int | None

    def __str__(self) -> str:
        was, now = ("no table" if one is None else f"{one:#x}" for one in (self.before, self.after))
        return f"{self.level.name} entry of {self.address:#x}: {was}, then {now}{self._flags_text()}"

    def _flags_text(self) -> str:
        """Return the flags that differ, if nothing else does."""
        if not self.before or not self.after or (self.before ^ self.after) & FRAME_MASK:
            return ""
        changes = {"loses": self.before & ~self.after, "gains": self.after & ~self.before}
        texts = [
            f"{verb} {' and '.join(flag.name for flag in Entry if flag & bits and flag.name)}"
            for verb, bits in changes.items()
            if bits & sum(Entry)
        ]
        return f" ({', '.join(texts)})" if texts else ""


@dataclass(frozen=True, eq=False)
class KernelTables:
    """All page tables of a kernel at one instant: what the upper half of the root reaches.

    Attributes:
        root: frame of the root.
        levels: levels of paging, 4 or 5.
        tables: 512 entries of each table, uint64, by its frame; None where the memory has no such frame.
    """

    root: int
    levels: int
    tables: dict[int, NDArray[np.uint64] | None]

    @classmethod
    def read(cls, memory: PhysicalMemory, cr3: int, levels: int) -> KernelTables:
        """Copy the tables that a memory has now.

        Args:
            memory: memory of the machine.
            cr3: CR3; bits outside of the address are ignored.
            levels: levels of paging, 4 or 5.
        """
        found = cls((cr3 & FRAME_MASK) >> PAGE_SHIFT, levels, {})
        waiting = [(found.root, Level(levels))]
        while waiting:
            pfn, level = waiting.pop()
            if pfn in found.tables:
                continue
            page = memory.page(pfn)
            entries = None if page is None else np.array(page.view("<u8"), dtype=np.uint64)
            found.tables[pfn] = entries
            if entries is not None and level > Level.PTE:
                waiting += [(below, Level(level - 1)) for _, below in found._below(pfn, level)]
        return found

    def entry(self, address: int, level: Level) -> int | None:
        """Return the entry that a virtual address has at a level; None if it has none there."""
        pfn = self.root
        for at in range(self.levels, level - 1, -1):
            entries = self.tables.get(pfn)
            if entries is None:
                return None
            entry = int(entries[address >> Level(at).shift & 511])
            if at == level:
                return entry
            if not entry & Entry.PRESENT or is_leaf(entry, Level(at)):
                return None
            pfn = (entry & FRAME_MASK) >> PAGE_SHIFT
        return None

    def changes(self, later: KernelTables) -> Iterator[ChangedEntry]:
        """Yield the entries that differ at a later instant, by ascending address; of a subtree that is new, its root.

        Bits that the CPU sets by itself do not count: ACCESSED, and DIRTY of entries that allow writes.
        """
        waiting = [(self.root, later.root, Level(self.levels), 0)]
        compared: set[tuple[int, int, Level]] = set()
        while waiting:
            was, now, level, address = waiting.pop()
            if (was, now, level) in compared:  # one table can be reached from many entries
                continue
            compared.add((was, now, level))
            old, new = self.tables.get(was), later.tables.get(now)
            if old is None or new is None:
                if (old is None) != (new is None):
                    yield ChangedEntry(self._canonical(address), level, _first(old), _first(new))
                continue
            first = KERNEL_HALF if level == self.levels else 0
            different = np.flatnonzero(_lasting(old) != _lasting(new))
            for index in different[different >= first].tolist():
                at = self._canonical(address | index << level.shift)
                yield ChangedEntry(at, level, int(old[index]), int(new[index]))
            if level > Level.PTE:
                ours, theirs = dict(self._below(was, level)), dict(later._below(now, level))
                same = [index for index in ours if index in theirs and index not in set(different.tolist())]
                waiting += [
                    (ours[index], theirs[index], Level(level - 1), address | index << level.shift)
                    for index in reversed(same)
                ]

    def _below(self, pfn: int, level: Level) -> list[tuple[int, int]]:
        """Return (index, frame) of the tables that a table points to; of the root, those of its upper half."""
        entries = self.tables[pfn]
        if entries is None:
            return []
        table = (entries & np.uint64(Entry.PRESENT)) != 0
        if level in (Level.PMD, Level.PUD):
            table &= (entries & np.uint64(Entry.PSE)) == 0
        if level == self.levels:
            table[:KERNEL_HALF] = False
        frames = (entries & np.uint64(FRAME_MASK)) >> np.uint64(PAGE_SHIFT)
        return [(index, int(frames[index])) for index in np.flatnonzero(table).tolist()]

    def _canonical(self, address: int) -> int:
        return address | SIGN[self.levels]


def _lasting(entries: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return entries without the bits that the CPU sets by itself."""
    accessed, dirty = np.uint64(Entry.ACCESSED), np.uint64(Entry.DIRTY)
    writable = np.uint64(Entry.PRESENT | Entry.RW)
    return entries & ~np.where((entries & writable) == writable, accessed | dirty, accessed)


def _first(entries: NDArray[np.uint64] | None) -> int | None:
    return None if entries is None else int(entries[0])
