# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks on what a way did, each with a name: no finding is a pass.

They compare bytes and entries of what was saved, and of the machine that goes on from it, with those of the machine
before the copy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hibernaut.hibernation.snapshot import CHUNK_PAGES, Snapshot
from hibernaut.linux.check_allocator import check_allocator
from hibernaut.linux.machine import Machine
from hibernaut.linux.page_alloc import BuddyAllocator
from hibernaut.memory.physical import PAGE_SHIFT, PAGE_SIZE, BoolArray, FrameRanges, Frames, Overlay, PhysicalMemory
from hibernaut.paging.entries import ENTRIES, FRAME_MASK, Entries, Entry, Level, entry_frames, is_leaf
from hibernaut.paging.scan import TABLE, entry_rights, entry_states
from hibernaut.paging.spans import Codes, Rights, Stop

__all__ = [
    "CPU_SET_BITS",
    "Violation",
    "allocator_sound",
    "nothing_stale",
    "page_tables",
    "same_data",
    "same_direct_map",
    "same_frames",
    "slot_empty",
    "tables_closed",
]

CPU_SET_BITS = int(Entry.ACCESSED | Entry.DIRTY)
"""What the CPU sets in an entry by itself when the memory behind it is read or written (Intel SDM vol. 3, 5.8)."""


@dataclass(frozen=True)
class Violation:
    """Something that is not as it should be.

    Attributes:
        invariant: the name of the invariant.
        what: what is wrong, a clause.
        start_pfn: first frame concerned.
        pages: how many frames from there on.
    """

    invariant: str
    what: str
    start_pfn: int
    pages: int

    def __str__(self) -> str:
        pages = "1 page" if self.pages == 1 else f"{self.pages} pages"
        return f"{self.invariant}: {self.what}: {pages} from frame {self.start_pfn:#x}"


def same_data(before: PhysicalMemory, snapshot: Snapshot) -> tuple[Violation, ...]:
    """Every listed page was saved with the bytes that it had when the copy began.

    Pages that the copy itself wrote to (`Snapshot.written`: page tables, the allocator's own) are left out: when they
    were copied decides what they hold. Where `before` lies over the memory that the snapshot refers to, only what
    either of them changed is read; else everything.

    Args:
        before: the memory before the copy.
        snapshot: the copy.
    """
    common = isinstance(before, Overlay) and before.base is snapshot.base
    if common or before is snapshot.base:
        own = before.written if isinstance(before, Overlay) else np.empty(0, dtype=np.int64)
        candidates = np.union1d(own, np.array(sorted(snapshot.changed), dtype=np.int64))
        chunks = iter([candidates[snapshot.frames.contains(candidates)]])
    else:
        chunks = snapshot.frames.chunks(CHUNK_PAGES)
    wrong: list[Frames] = []
    image = snapshot.memory
    for pfns in chunks:
        content, _ = image.gather(pfns)
        expected, present = before.gather(pfns)
        equal = (expected.view(np.uint64) == content.view(np.uint64)).all(axis=1) & present
        wrong.append(pfns[~equal])
    differing = np.concatenate(wrong) if wrong else np.empty(0, dtype=np.int64)
    differing = differing[~np.isin(differing, snapshot.written)]
    return _runs("same-data", "saved with other bytes than it held", differing)


def tables_closed(snapshot: Snapshot, resumed: Machine) -> tuple[Violation, ...]:
    """Every page table that the resumed machine reaches from CR3 was saved.

    A table that was not is whatever lies in its frame; it is not followed further. Each is looked at once.
    """
    lost: set[int] = set()
    seen: set[tuple[int, int]] = set()
    level = Level(resumed.levels)
    tables = np.array([(resumed.cr3 & FRAME_MASK) >> PAGE_SHIFT], dtype=np.int64)
    while len(tables):
        saved = snapshot.frames.contains(tables)
        lost.update(tables[~saved].tolist())
        below: list[Frames] = []
        for pfn in tables[saved].tolist():
            page = resumed.memory.frame(pfn)
            if page is None or level == Level.PTE or (level, pfn) in seen:
                continue
            seen.add((level, pfn))
            entries = page.view("<u8")
            named = entries[_tables(entries, level)] & np.uint64(FRAME_MASK)
            below.append((named >> np.uint64(PAGE_SHIFT)).astype(np.int64))
        if level == Level.PTE:
            break
        level = Level(level - 1)
        tables = np.unique(np.concatenate(below)) if below else np.empty(0, dtype=np.int64)
    return _runs("tables-closed", "a page table that was not saved", sorted(lost))


def allocator_sound(snapshot: Snapshot, resumed: Machine) -> tuple[Violation, ...]:
    """The allocator's lists are well formed, no page is both free and used, and none is in use that was not saved.

    A machine whose allocator does not lie in its memory (a dump's) passes: nothing was changed there.
    """
    allocator = resumed.allocator
    if not isinstance(allocator, BuddyAllocator) or resumed.page_flags is None:
        return ()
    flags = resumed.page_flags
    unsaved = flags.ram.without(snapshot.frames)
    for known in (flags.nosave, flags.offline, flags.guard, flags.reserved):
        unsaved = unsaved.without(known)
    problems = check_allocator(resumed, allocator.places, tables=page_tables(resumed, snapshot.frames), unsaved=unsaved)
    return tuple(Violation("allocator-sound", problem.what, problem.pfn, problem.pages) for problem in problems)


def nothing_stale(machine: Machine, before: Machine | None = None) -> tuple[Violation, ...]:
    """No CPU remembers a translation that the tables contradict.

    Args:
        machine: the machine as it is.
        before: the machine as it was: what it remembered already is not counted.
    """
    known = set() if before is None else {one for tlb in before.tlbs if tlb for one in tlb.translations()}
    found = []
    for tlb in machine.tlbs:
        for vaddr, level, pfn, entry in tlb.translations() if tlb is not None else ():
            if (vaddr, level, pfn, entry) in known:
                continue
            walk = machine.tables.walk(vaddr)
            if walk.stop == Stop.PRESENT and walk.level == level and walk.pfn == pfn:
                continue
            if walk.stop == Stop.PRESENT and _same_all_over(machine, vaddr, level, pfn):
                continue
            found.append(Violation("nothing-stale", f"{vaddr:#x} is remembered as frame {pfn:#x}", pfn, level.pages))
    return tuple(found)


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


def same_frames(before: Machine, after: Machine) -> tuple[Violation, ...]:
    """Every frame is mapped, or not, as it was: by an entry of whatever level that says the same. Two checks in one.

    Weaker than `same_direct_map`: large pages may have been split, bits besides frame and effective rights may differ.
    "same-translations" finds frames that are mapped otherwise, "same-rights" those that are not present as before, but
    would come back with other rights: what set_memory_np took out, and lost RW, comes back read-only by set_memory_p.
    """
    first, end = before.base >> PAGE_SHIFT, (before.base >> PAGE_SHIFT) + before.end_pfn
    top = Level(before.levels)
    translations: list[tuple[int, int]] = []
    rights_only: list[tuple[int, int]] = []
    work = [(top, first // (ENTRIES * top.pages) * ENTRIES * top.pages, _Said.by_cr3(before), _Said.by_cr3(after))]
    while work:
        level, page, old, new = work.pop()
        alike = _tables_alike(before, after, old, new)
        if alike and level == Level.PTE:
            continue
        at = page + np.arange(ENTRIES) * level.pages
        inside = (at < end) & (at + level.pages > first)
        states, pfns, rights = mine = old.below(before, level)
        others = mine if alike else new.below(after, level)
        tables = inside & ((states == TABLE) | (others[0] == TABLE))
        leaf = (states == Stop.PRESENT.code) | (states == Stop.NOT_PRESENT.code)
        differs = (states != others[0]) | leaf & (pfns != others[1])
        other_rights = ~differs & leaf & (rights != others[2])
        differs |= other_rights & (states == Stop.PRESENT.code)
        other_rights &= states == Stop.NOT_PRESENT.code
        for which, found in ((differs, translations), (other_rights, rights_only)):
            for row, count in FrameRanges.of_frames(np.flatnonzero(inside & ~tables & which)):
                start = page + row * level.pages
                found.append((max(start, first) - first, min(start + count * level.pages, end) - max(start, first)))
        for row in np.flatnonzero(tables).tolist():
            old_entry = _Said(int(states[row]), int(pfns[row]), int(rights[row]))
            new_entry = _Said(*(int(each[row]) for each in others))
            work.append((Level(level - 1), int(at[row]), old_entry, new_entry))
    return tuple(
        Violation(check, what, start, pages)
        for check, what, ranges in (
            ("same-translations", "mapped otherwise than before", translations),
            ("same-rights", "not present, with other rights than before", rights_only),
        )
        for start, pages in FrameRanges.of(ranges)
    )


class _Said(NamedTuple):
    """What an entry says.

    Attributes:
        state: a `Stop.code`, or `TABLE`.
        pfn: the frame, the table's or a leaf's first; -1 where there is none.
        rights: effective `Rights`.
    """

    state: int
    pfn: int
    rights: int

    @classmethod
    def by_cr3(cls, machine: Machine) -> _Said:
        """What CR3 says: a table, and that everything is allowed."""
        return cls(TABLE, (machine.cr3 & FRAME_MASK) >> PAGE_SHIFT, Rights.RW | Rights.USER)

    def below(self, machine: Machine, level: Level) -> tuple[Codes, Frames, Codes]:
        """The same by 512 entries of the level below: a table's own, or what a leaf says of its parts."""
        entries = _entries(machine, self.pfn) if self.state == TABLE else None
        rights = np.full(ENTRIES, self.rights, dtype=np.uint8)
        if entries is None:
            state = Stop.TABLE_MISSING.code if self.state == TABLE else self.state
            parts = np.arange(ENTRIES, dtype=np.int64) * (level.pages if self.pfn >= 0 else 0)
            return np.full(ENTRIES, state, dtype=np.uint8), self.pfn + parts, rights
        states, pfns = entry_states(entries, level), entry_frames(entries, level)
        if level > Level.PUD:
            pfns[states != TABLE] = -1  # no leaf exists there, so that such an entry names no frame
        return states, pfns, entry_rights(entries, rights)


def _tables_alike(before: Machine, after: Machine, old: _Said, new: _Said) -> bool:
    """Whether both name tables, under the same rights, that are alike byte by byte."""
    if old.state != TABLE or new.state != TABLE or old.rights != new.rights:
        return False
    mine, theirs = _entries(before, old.pfn), _entries(after, new.pfn)
    return mine is not None and theirs is not None and np.array_equal(mine, theirs)


def slot_empty(machine: Machine, snapshot: Snapshot | None = None) -> tuple[Violation, ...]:
    """The fixmap slot is zero: in the machine now, and in the saved copy of its table.

    A machine without a fixmap passes: nothing can be left in a slot that does not exist.
    """
    if not machine.has_fixmap:
        return ()
    slot = machine.fixmap
    table, within = slot.paddr >> PAGE_SHIFT, slot.paddr & 0xFFF
    findings = []
    if slot.entry:
        findings.append(Violation("slot-empty", f"slot {slot.index} holds {slot.entry:#x} after the copy", table, 1))
    if snapshot is not None and snapshot.frames.end_of(table):
        saved = int.from_bytes(snapshot.page(table)[within : within + 8].tobytes(), "little")
        if saved:
            findings.append(Violation("slot-empty", f"slot {slot.index} holds {saved:#x} in its saved table", table, 1))
    return tuple(findings)


def _same_all_over(machine: Machine, vaddr: int, level: Level, pfn: int) -> bool:
    """Whether smaller pages map all of what one large translation says, in the same way."""
    walks = (machine.tables.walk(vaddr + page * PAGE_SIZE) for page in range(level.pages))
    return all(walk.stop == Stop.PRESENT and walk.pfn == pfn + page for page, walk in enumerate(walks))


def page_tables(machine: Machine, saved: FrameRanges | None = None) -> set[int]:
    """Frames of all page tables that are reachable and in the memory.

    Args:
        machine: whose tables.
        saved: only tables in these frames are followed: what others name is whatever lies there.
    """
    found: set[int] = set()
    tables = {(machine.cr3 & FRAME_MASK) >> PAGE_SHIFT}
    for level in reversed(Level):
        if level > machine.levels:
            continue
        found |= tables
        below: set[int] = set()
        for pfn in tables if level > Level.PTE else ():
            page = machine.memory.frame(pfn) if saved is None or saved.end_of(pfn) else None
            if page is not None:
                entries = page.view("<u8")
                named = (entries[_tables(entries, level)] & np.uint64(FRAME_MASK)) >> np.uint64(PAGE_SHIFT)
                below.update(named.tolist())
        tables = below
    return found


def _runs(check: str, what: str, pfns: Frames | Iterable[int]) -> tuple[Violation, ...]:
    frames = np.array(pfns, dtype=np.int64)
    return tuple(Violation(check, what, start, pages) for start, pages in FrameRanges.of_frames(frames))


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
