"""Checks on what a way did, each with a name: no finding is a pass.

They compare bytes and entries with those of the machine before the copy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from hibernaut.hibernate.snapshot import Snapshot
from hibernaut.linux.machine import Machine
from hibernaut.memory.physical import PAGE_SHIFT, BoolArray, FrameRanges, Frames, PhysicalMemory
from hibernaut.paging.entries import ENTRIES, FRAME_MASK, Entries, Entry, Level, is_leaf

__all__ = ["CPU_SET_BITS", "Finding", "same_data", "same_direct_map", "slot_empty", "tables_saved"]

CPU_SET_BITS = int(Entry.ACCESSED | Entry.DIRTY)
"""What the CPU sets in an entry by itself when the memory behind it is read or written (Intel SDM vol. 3, 5.8)."""


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        check: name of the check.
        what: what is wrong, a clause.
        start_pfn: first frame concerned.
        pages: how many frames from there on.
    """

    check: str
    what: str
    start_pfn: int
    pages: int

    def __str__(self) -> str:
        return f"{self.check}: {self.what}: {self.pages} pages from frame {self.start_pfn:#x}"


def same_data(before: PhysicalMemory, snapshot: Snapshot) -> tuple[Finding, ...]:
    """Every listed page was saved with the bytes that it had when the copy began.

    Page tables that the copy itself wrote to (`Snapshot.written`) are left out: when they were copied decides what they
    hold.

    Args:
        before: the memory before the copy.
        snapshot: the copy.
    """
    wrong: list[Frames] = []
    for pfns, content in snapshot.chunks():
        expected, present = before.gather(pfns)
        equal = (expected.view(np.uint64) == content.view(np.uint64)).all(axis=1) & present
        wrong.append(pfns[~equal])
    differing = np.concatenate(wrong) if wrong else np.empty(0, dtype=np.int64)
    differing = differing[~np.isin(differing, snapshot.written)]
    return _runs("same-data", "saved with other bytes than it held", differing)


def same_direct_map(before: Machine, after: Machine, ignore: int = 0) -> tuple[Finding, ...]:
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
        Finding("same-direct-map", f"{level.size} entry {old:#x} became {new:#x}", pfn, pages)
        for level, old, new, pfn, pages in comparison.differences
    )


def slot_empty(machine: Machine, snapshot: Snapshot | None = None) -> tuple[Finding, ...]:
    """The fixmap slot is zero: in the machine now, and in the saved copy of its table.

    A machine without a fixmap passes: nothing can be left in a slot that does not exist.
    """
    if not machine.has_fixmap:
        return ()
    slot = machine.fixmap
    table, within = slot.paddr >> PAGE_SHIFT, slot.paddr & 0xFFF
    findings = []
    if slot.entry:
        findings.append(Finding("slot-empty", f"slot {slot.index} holds {slot.entry:#x} after the copy", table, 1))
    if snapshot is not None and snapshot.memory.ranges.contains([table])[0]:
        saved = int.from_bytes(snapshot.page(table)[within : within + 8].tobytes(), "little")
        if saved:
            findings.append(Finding("slot-empty", f"slot {slot.index} holds {saved:#x} in its saved table", table, 1))
    return tuple(findings)


def tables_saved(snapshot: Snapshot) -> tuple[Finding, ...]:
    """No saved table names a page that was taken for a table in the middle of the copy and so is not on the list.

    Such an image points to a table that it does not contain: whatever lies in that frame after resume is read as one.
    """
    taken = {a.pfn for a in snapshot.allocations if a.pfn is not None}
    listed = snapshot.memory.ranges
    missing = np.array(sorted(pfn for pfn in taken if not listed.contains([pfn])[0]), dtype=np.int64)
    named: set[int] = set()
    for pfn in snapshot.written[listed.contains(snapshot.written)].tolist():
        entries = snapshot.page(pfn).view("<u8")
        tables = entries[(entries & np.uint64(Entry.PRESENT)) != 0] & np.uint64(FRAME_MASK)
        named.update((tables[np.isin(tables >> np.uint64(12), missing)] >> np.uint64(12)).tolist())
    return _runs("tables-saved", "a saved table points to a table that was not saved", sorted(named))


def _runs(check: str, what: str, pfns: Frames | Iterable[int]) -> tuple[Finding, ...]:
    frames = np.array(pfns, dtype=np.int64)
    return tuple(Finding(check, what, start, pages) for start, pages in FrameRanges.of_frames(frames))


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
        old, new = _entries(self._before, old_pfn), _entries(self._after, new_pfn)
        if old is None or new is None:
            return
        at = page + np.arange(ENTRIES, dtype=np.int64) * level.pages
        inside = (at < end) & (at + level.pages > first)
        self._differing(level, old, new, at - first, inside & ((old ^ new) & self._compared != 0))
        if level == Level.PTE:
            return
        for index in np.flatnonzero(inside & _tables(old, level) & _tables(new, level)).tolist():
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


def _entries(machine: Machine, pfn: int) -> Entries | None:
    page = machine.memory.frame(pfn)
    return None if page is None else page.view("<u8")


def _tables(entries: Entries, level: Level) -> BoolArray:
    """Which entries of a level above PTE name a table."""
    present: BoolArray = (entries & np.uint64(Entry.PRESENT)) != 0
    if is_leaf(int(Entry.PRESENT | Entry.PSE), level):
        present &= (entries & np.uint64(Entry.PSE)) == 0
    return present
