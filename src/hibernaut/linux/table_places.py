# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the frames that page tables name as tables hold tables: evidence of where a file's memory belongs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.paging.entries import ENTRIES, FRAME_MASK, Entry, Level
from hibernaut.paging.reader import TableReader
from hibernaut.paging.scan import TABLE, entry_states

if TYPE_CHECKING:
    from hibernaut.memory.page import BoolArray, Pfns
    from hibernaut.paging.entries import Entries
    from hibernaut.paging.tables import PageTables

__all__ = ["Places", "places_of"]

_CHUNK = 256
_MOST_TABLES = 1 << 16
"""Most tables of a level that are looked at: those of 128 GiB mapped by 4K entries."""
_LEAF_END = np.uint64(1 << 46)
"""No device or memory is mapped above this by a kernel on a PC so far; a kernel's pointers, read as entries, are."""


@dataclass(frozen=True)
class Places:
    """Number of tables from a frame on that are named by tables.

    Attributes:
        held: those whose frame holds a table: entries, all of them such as a table has.
        other: those whose frame holds something else.
        missing: those whose frame the memory does not have.
    """

    held: int
    other: int
    missing: int

    @property
    def fit(self) -> bool:
        """Whether tables are where they should be, but for a few that changed while the memory was read."""
        return 16 * (self.other + self.missing) <= self.held


def places_of(tables: PageTables, from_pfn: int) -> Places:
    """Return whether the kernel's tables from a frame on are tables; those of zeroes alone do not count.

    The tables below one that is none are not looked at.
    """
    reader = TableReader(tables.memory, tables.encryption)
    end = np.uint64(tables.memory.ranges.end << 12)
    named = np.array([tables.root_pfn], dtype=np.int64)
    held = other = missing = 0
    for number in range(tables.levels, 0, -1):
        level = Level(number)
        exist = reader.exist(named)
        missing += int(np.count_nonzero(named[~exist] >= from_pfn))
        named = named[exist]
        below: list[Pfns] = [np.empty(0, dtype=np.int64)]
        for first in range(0, len(named), _CHUNK):
            pfns = named[first : first + _CHUNK]
            entries = reader.tables(pfns)
            if number == tables.levels:
                entries = entries[:, ENTRIES // 2 :]
            like = _like_a_table(entries, level, end, tables.encryption)
            counted = (pfns >= from_pfn) & entries.any(axis=1)
            held += int(np.count_nonzero(like & counted))
            other += int(np.count_nonzero(~like & counted))
            if level > Level.PTE:
                kept = entries[like]
                below.append(np.unique(reader.frames(kept[entry_states(kept, level) == TABLE], level)))
        named = np.unique(np.concatenate(below))[:_MOST_TABLES]
    return Places(held, other, missing)


def _like_a_table(entries: Entries, level: Level, end: np.uint64, encryption: int) -> BoolArray:
    """Return which pages, shape (n, 512), could be tables: each entry is zero or names a frame that there can be."""
    frames = entries & np.uint64(FRAME_MASK & ~encryption)
    present = (entries & np.uint64(Entry.PRESENT)) != 0
    inverted = ~entries & np.uint64(FRAME_MASK)
    absent = ~present & ((frames < end) | (inverted < end))
    if level == Level.PTE:
        there = present & (frames < _LEAF_END)
    else:
        leaf = (entries & np.uint64(Entry.PSE)) != 0
        there = present & np.where(leaf & (level <= Level.PUD), frames < _LEAF_END, frames < end)
    like: BoolArray = (absent | there).all(axis=1)
    return like
