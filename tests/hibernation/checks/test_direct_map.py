# SPDX-License-Identifier: GPL-2.0-or-later
"""`same_direct_map`: entries of the direct map, and the bits that a CPU sets by itself."""

from __future__ import annotations

from hibernaut.hibernation import (
    CPU_SET_BITS,
    same_direct_map,
)
from hibernaut.linux.build import build_machine
from hibernaut.linux.layout import Layout, hole_4k
from hibernaut.linux.pgtable import lookup_address
from hibernaut.paging.entries import Entry, Level
from tests.hibernation.machines import RAM


def test_only_what_a_cpu_sets_by_itself_may_be_ignored() -> None:
    """A real machine that has run on: ACCESSED and DIRTY may differ on demand, every other bit is still a violation."""
    layout = Layout(RAM, holes=(hole_4k(0x801, 3),), tables="low", free_pages=513)
    before, after = build_machine(layout), build_machine(layout)
    found = lookup_address(after.memory, after.cr3, after.levels, after.vaddr(0x801))
    assert found is not None
    assert found.level == Level.PTE
    after.memory.write_u64(found.paddr, found.entry ^ Entry.DIRTY)
    assert len(same_direct_map(before, after)) == 1
    assert same_direct_map(before, after, ignore=CPU_SET_BITS) == ()
    for bit in (Entry.PRESENT, Entry.RW, Entry.GLOBAL, Entry.NX, 1 << 12):
        after.memory.write_u64(found.paddr, found.entry ^ bit)
        assert len(same_direct_map(before, after, ignore=CPU_SET_BITS)) == 1
