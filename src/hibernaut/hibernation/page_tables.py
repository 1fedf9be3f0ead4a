# SPDX-License-Identifier: GPL-2.0-or-later
"""The page tables that a machine reaches from CR3."""

from __future__ import annotations

import numpy as np

from hibernaut.linux.machine import Machine
from hibernaut.memory.page import BoolArray
from hibernaut.memory.ranges import FrameRanges
from hibernaut.paging.entries import Entries, Entry, Level, entry_frames, is_leaf

__all__ = ["names_table", "page_tables", "table_entries"]


def page_tables(machine: Machine, saved: FrameRanges | None = None) -> set[int]:
    """Return the page frame numbers of all page tables reachable from CR3, the root among them.

    Args:
        machine: the machine.
        saved: page frames whose tables are followed; other frames hold arbitrary bytes. Default: all.
    """
    found: set[int] = set()
    tables = {machine.tables.root_pfn}
    for level in reversed(Level):
        if level > machine.levels:
            continue
        found |= tables
        below: set[int] = set()
        for pfn in tables if level > Level.PTE else ():
            entries = table_entries(machine, pfn) if saved is None or saved.end_of(pfn) else None
            if entries is not None:
                named = entries[names_table(entries, level)]
                below.update(entry_frames(named, level, machine.encryption).tolist())
        tables = below
    return found


def table_entries(machine: Machine, pfn: int) -> Entries | None:
    """Return a table as 512 entries, uint64, a view of the memory; None if its frame does not exist."""
    page = machine.memory.page(pfn)
    return None if page is None else page.view("<u8")


def names_table(entries: Entries, level: Level) -> BoolArray:
    """Return which entries of a level above PTE refer to a table: a mask, shape as `entries`."""
    present: BoolArray = (entries & np.uint64(Entry.PRESENT)) != 0
    if is_leaf(int(Entry.PRESENT | Entry.PSE), level):
        present &= (entries & np.uint64(Entry.PSE)) == 0
    return present
