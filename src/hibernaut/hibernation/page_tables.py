# SPDX-License-Identifier: GPL-2.0-or-later
"""The page tables that a machine reaches from CR3."""

from __future__ import annotations

from hibernaut.linux.machine import Machine
from hibernaut.memory.ranges import FrameRanges
from hibernaut.paging.entries import Entries
from hibernaut.paging.table_names import Tables, named_tables, names_table

__all__ = ["both_trees", "names_table", "page_tables", "reached_tables", "table_entries"]


def page_tables(machine: Machine, saved: FrameRanges | None = None) -> set[int]:
    """Return the page frame numbers of all page tables reachable from CR3, the root among them.

    So are those reachable from a second root (`Machine.second_cr3`).

    Args:
        machine: the machine.
        saved: page frames whose tables are followed; other frames hold arbitrary bytes. Default: all.
    """
    found = {pfn for _, tables in reached_tables(machine, saved) for pfn, _ in tables}
    second = machine.by_second_root()
    return found if second is None else found | page_tables(second, saved)


def reached_tables(machine: Machine, saved: FrameRanges | None = None) -> Tables:
    """Return the page tables reachable from CR3 with the digests of their bytes: equal for equal trees of tables.

    They are kept until the memory of the machine is written to.

    Args:
        machine: the machine.
        saved: as in `page_tables`.
    """
    memory, root = machine.memory, machine.tables.root_pfn
    key = "named_tables", root, machine.levels, machine.encryption, saved
    found: Tables | None = None if memory.is_tracked else memory.derived.get(key)
    if found is None:
        found = named_tables(memory, root, machine.levels, machine.encryption, machine.memo, saved)
        memory.derived[key] = found
    return found


def both_trees(before: Machine, after: Machine, saved: FrameRanges | None) -> tuple[Tables, Tables] | None:
    """Return the trees of tables of two machines if their bytes alone decide what they map, else None.

    Args:
        before: a machine.
        after: the machine that resumed from its image.
        saved: the frames of the image; None if there is none. A table of the second machine that was not saved holds
            arbitrary bytes, which its tree leaves out.
    """
    if saved is None:
        return None
    tree = reached_tables(after, saved)
    if any(not saved.end_of(pfn) for _, tables in tree for pfn, _ in tables):
        return None
    return reached_tables(before), tree


def table_entries(machine: Machine, pfn: int) -> Entries | None:
    """Return a table as 512 entries, uint64, a view of the memory; None if its frame does not exist."""
    page = machine.memory.page(pfn)
    return None if page is None else page.view("<u8")
