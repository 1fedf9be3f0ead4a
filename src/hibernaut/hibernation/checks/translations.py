# SPDX-License-Identifier: GPL-2.0-or-later
"""The check of the direct map, page by page: translations and rights, at any level."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hibernaut.hibernation.checks.violation import Violation
from hibernaut.hibernation.page_tables import table_entries
from hibernaut.linux.machine import Machine
from hibernaut.memory.page import PAGE_SHIFT, Pfns
from hibernaut.memory.ranges import FrameRanges
from hibernaut.paging.entries import ENTRIES, Level, entry_frames
from hibernaut.paging.scan import TABLE, entry_rights, entry_states
from hibernaut.paging.spans import Codes, Rights, Stop

__all__ = ["same_frames"]


def same_frames(before: Machine, after: Machine) -> tuple[Violation, ...]:
    """Return the frames whose direct-map translation or rights differ, at any level of the entry.

    Weaker than `same_direct_map`: a large page may be split, and bits besides frame and effective rights may differ.
    Violations of "same-translations" are frames that are mapped differently. Violations of "same-rights" are frames
    that are not present on both machines, and would come back with other rights: `set_memory_p` maps a page read-only
    that lost RW while `set_memory_np` had unmapped it.

    Args:
        before: the machine before hibernation.
        after: the machine after it.
    """
    first, end = before.base >> PAGE_SHIFT, (before.base >> PAGE_SHIFT) + before.end_pfn
    top = Level(before.levels)
    translations: list[tuple[int, int]] = []
    rights_only: list[tuple[int, int]] = []
    work = [
        (top, first // (ENTRIES * top.pages) * ENTRIES * top.pages, _Meaning.by_cr3(before), _Meaning.by_cr3(after))
    ]
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
            for row, count in FrameRanges.of_pfns(np.flatnonzero(inside & ~tables & which)):
                start = page + row * level.pages
                found.append((max(start, first) - first, min(start + count * level.pages, end) - max(start, first)))
        for row in np.flatnonzero(tables).tolist():
            old_entry = _Meaning(int(states[row]), int(pfns[row]), int(rights[row]))
            new_entry = _Meaning(*(int(each[row]) for each in others))
            work.append((Level(level - 1), int(at[row]), old_entry, new_entry))
    return tuple(
        Violation(invariant, what, start, nr_pages)
        for invariant, what, ranges in (
            ("same-translations", "mapped otherwise than before", translations),
            ("same-rights", "not present, with other rights than before", rights_only),
        )
        for start, nr_pages in FrameRanges.of(ranges)
    )


class _Meaning(NamedTuple):
    """The meaning of an entry: state, frame and effective rights.

    Attributes:
        state: a `Stop.code`, or `TABLE`.
        pfn: page frame number of the table, or of the first page that a leaf maps; -1 if there is none.
        rights: effective `Rights`.
    """

    state: int
    pfn: int
    rights: int

    @classmethod
    def by_cr3(cls, machine: Machine) -> _Meaning:
        """Return the meaning of CR3: a table, with all rights."""
        return cls(TABLE, machine.tables.root_pfn, Rights.RW | Rights.USER)

    def below(self, machine: Machine, level: Level) -> tuple[Codes, Pfns, Codes]:
        """Return the meaning of 512 entries of the level below: those of a table, or those that equal a leaf.

        Returns:
            States, uint8; page frame numbers, int64; rights, uint8; each of shape (512,).
        """
        entries = table_entries(machine, self.pfn) if self.state == TABLE else None
        rights = np.full(ENTRIES, self.rights, dtype=np.uint8)
        if entries is None:
            state = Stop.TABLE_MISSING.code if self.state == TABLE else self.state
            parts = np.arange(ENTRIES, dtype=np.int64) * (level.pages if self.pfn >= 0 else 0)
            return np.full(ENTRIES, state, dtype=np.uint8), self.pfn + parts, rights
        states, pfns = entry_states(entries, level), entry_frames(entries, level, machine.encryption)
        if level > Level.PUD:
            pfns[states != TABLE] = -1  # no leaf exists at these levels, so the entry has no frame
        return states, pfns, entry_rights(entries, rights)


def _tables_alike(before: Machine, after: Machine, old: _Meaning, new: _Meaning) -> bool:
    """Return whether both refer to tables, with the same rights and the same bytes."""
    if old.state != TABLE or new.state != TABLE or old.rights != new.rights:
        return False
    mine, theirs = table_entries(before, old.pfn), table_entries(after, new.pfn)
    return mine is not None and theirs is not None and np.array_equal(mine, theirs)
