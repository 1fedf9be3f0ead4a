# SPDX-License-Identifier: GPL-2.0-or-later
"""The check of the direct map, page by page: translations and rights, at any level."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from hibernaut.hibernation.checks.violation import Violation
from hibernaut.hibernation.page_tables import both_trees, table_entries
from hibernaut.linux.machine import Machine
from hibernaut.memory.page import PAGE_SHIFT, Pfns
from hibernaut.memory.ranges import FrameRanges
from hibernaut.paging.entries import ENTRIES, Level, entry_frames
from hibernaut.paging.scan import TABLE, entry_rights, entry_states
from hibernaut.paging.spans import Codes, Rights, Stop

__all__ = ["same_frames"]


def same_frames(before: Machine, after: Machine, saved: FrameRanges | None = None) -> tuple[Violation, ...]:
    """Return the frames whose direct-map translation or rights differ, at any level of the entry.

    Weaker than `same_direct_map`: a large page may be split, and bits besides frame and effective rights may differ.
    Violations of "same-translations" are frames that are mapped differently. Violations of "same-rights" are frames
    that are not present on both machines, and would come back with other rights: `set_memory_p` maps a page read-only
    that lost RW while `set_memory_np` had unmapped it.

    Args:
        before: the machine before hibernation.
        after: the machine after it.
        saved: the frames of the image that it resumed from, if there is one: results of equal tables are shared then.
    """
    found = _of_root(before, after, saved)
    old, new = before.by_second_root(), after.by_second_root()
    if old is None or new is None:
        return found
    others = _of_root(old, new, saved)
    return (*found, *(replace(one, what=f"{one.what}, in the second root") for one in others))


def _of_root(before: Machine, after: Machine, saved: FrameRanges | None) -> tuple[Violation, ...]:
    """Compare the tables of the root of each machine."""
    trees = both_trees(before, after, saved)
    if trees is None:
        return _same_frames(before, after)
    known = after.memo.of("same_frames of trees")
    key = (*trees, before.base, before.end_pfn, before.encryption)
    found: tuple[Violation, ...] | None = known.get(key)
    if found is None:
        found = known[key] = _same_frames(before, after)
    return found


def _same_frames(before: Machine, after: Machine) -> tuple[Violation, ...]:
    """Compare the tables of two machines, pair by pair."""
    first, end = before.base >> PAGE_SHIFT, (before.base >> PAGE_SHIFT) + before.end_pfn
    top = Level(before.levels)
    translations: list[tuple[int, int]] = []
    rights_only: list[tuple[int, int]] = []
    work = [
        (top, first // (ENTRIES * top.pages) * ENTRIES * top.pages, _Meaning.by_cr3(before), _Meaning.by_cr3(after))
    ]
    known = after.memo.of("same_frames")
    while work:
        level, page, old, new = work.pop()
        key = (int(level), page, first, end, before.encryption, old.key(before), new.key(after))
        found = known.get(key)
        if found is None:
            found = known[key] = _compare(before, after, level, page, first, end, old, new)
        otherwise, others_rights, below = found
        translations += otherwise
        rights_only += others_rights
        work += below
    return tuple(
        Violation(invariant, what, start, nr_pages)
        for invariant, what, ranges in (
            ("same-translations", "mapped otherwise than before", translations),
            ("same-rights", "not present, with other rights than before", rights_only),
        )
        for start, nr_pages in FrameRanges.of(ranges)
    )


def _compare(
    before: Machine, after: Machine, level: Level, page: int, first: int, end: int, old: _Meaning, new: _Meaning
) -> tuple[list[tuple[int, int]], list[tuple[int, int]], list[_Work]]:
    """Compare the 512 entries below two entries.

    Returns:
        The frames that are mapped differently, those that are not present with other rights, as (first, pages), and
        the pairs of entries to compare next.
    """
    alike = old.state == new.state == TABLE and old.key(before) == new.key(after) and old.exists(before)
    if alike and level == Level.PTE:
        return [], [], []
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
    ranges: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
    for which, found in zip((differs, other_rights), ranges, strict=True):
        for row, count in FrameRanges.of_pfns(np.flatnonzero(inside & ~tables & which)):
            start = page + row * level.pages
            found.append((max(start, first) - first, min(start + count * level.pages, end) - max(start, first)))
    below: list[_Work] = []
    for row in np.flatnonzero(tables).tolist():
        old_entry = _Meaning(int(states[row]), int(pfns[row]), int(rights[row]))
        new_entry = _Meaning(*(int(each[row]) for each in others))
        below.append((Level(level - 1), int(at[row]), old_entry, new_entry))
    return *ranges, below


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

    def exists(self, machine: Machine) -> bool:
        """Return whether the table that it names is in the memory."""
        return machine.memory.page_digest(self.pfn) is not None

    def key(self, machine: Machine) -> tuple[object, ...]:
        """Return what decides `below`: of a table in the memory its bytes, else the meaning itself."""
        digest = machine.memory.page_digest(self.pfn) if self.state == TABLE else None
        return tuple(self) if digest is None else (digest, self.rights)

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


_Work = tuple[Level, int, _Meaning, _Meaning]
"""Level of the entries below two entries, the page that the first of them maps, and both."""
