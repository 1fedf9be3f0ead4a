# SPDX-License-Identifier: GPL-2.0-or-later
"""The checks: torn tables, stale translations, slots in saved tables, bits that a CPU sets by itself."""

from __future__ import annotations

import pytest

from hibernaut.hibernation import (
    CPU_SET_BITS,
    Fixmap,
    Remap,
    check_resumed,
    hibernate,
    resume,
    same_direct_map,
    slot_empty,
    tables_closed,
)
from hibernaut.hibernation.resume import BootKernel
from hibernaut.hibernation.ways import FixmapNoClear
from hibernaut.linux.build import build_machine
from hibernaut.linux.direct_map import FrameState
from hibernaut.linux.layout import Layout, hole_2m, hole_4k
from hibernaut.linux.pgtable import KERNPG_TABLE, lookup_address, pfn_entry
from hibernaut.memory.physical import FrameRanges
from hibernaut.paging.entries import Entry, Level
from tests.hibernation.machines import RAM


@pytest.mark.parametrize("tables", ["low", "high"])
def test_order_of_table_and_block_decides_whether_remap_tears_the_image(tables: str) -> None:
    """Table below the block: copied before the split, consistent. Above: the saved table names one that is not."""
    machine = build_machine(Layout(RAM, holes=(hole_2m(0x1000),), tables=tables))
    table = machine.lookup_address(machine.vaddr(0x1000))
    assert table is not None
    snapshot = hibernate(machine.fork(), Remap())
    resumed = resume(snapshot)
    saved = snapshot.page(table.paddr >> 12)[table.paddr & 0xFFF :][:8].view("<u8")[0]
    if tables == "low":
        assert (saved, tables_closed(snapshot, resumed), same_direct_map(machine, resumed)) == (table.entry, (), ())
    else:
        taken = snapshot.allocations[0].pfn
        assert taken is not None
        assert not snapshot.frames.contains([taken])[0]
        assert saved == pfn_entry(taken, KERNPG_TABLE)
        assert [(found.start_pfn, found.pages) for found in tables_closed(snapshot, resumed)] == [(taken, 1)]
        assert [(found.start_pfn, found.pages) for found in same_direct_map(machine, resumed)] == [(0x1000, 512)]
        assert set(resumed.direct_map.classify(range(0x1000, 0x1200)).tolist()).isdisjoint({FrameState.PRESENT})
    cured = hibernate(machine.fork(), Fixmap())
    assert check_resumed(machine, cured, resume(cured)) == ()


def test_a_resume_that_does_not_flush_is_caught() -> None:
    """The temporary tables map all RAM by GLOBAL pages; if these outlive the load of CR3, holes are mapped for a CPU.

    The boot kernel uses the frames around a hole, so the restore writes through the block that has the hole.
    """
    machine = build_machine(Layout(RAM, holes=(hole_4k(0x801, 2),), free_pages=600))
    snapshot = hibernate(machine.fork(), Fixmap())
    boot = BootKernel.beside(snapshot, FrameRanges.of([(0x700, 0x180)]))
    assert check_resumed(machine, snapshot, resume(snapshot, boot)) == ()
    found = check_resumed(machine, snapshot, resume(snapshot, boot, flush=False))
    assert {violation.invariant for violation in found} == {"nothing-stale"}


def test_slot_is_found_in_the_saved_table_too() -> None:
    """A slot that was not zero when its table was copied is found in the image, even if it is zero afterwards."""
    machine = build_machine(Layout(RAM, holes=(hole_4k(0x801),), tables="high"))
    twin = machine.fork()
    snapshot = hibernate(twin, FixmapNoClear())
    twin.fixmap.clear_fixmap()
    assert [violation.what for violation in slot_empty(twin, snapshot)] == [
        f"slot 0 holds {pfn_entry(0x801, 0x8000000000000163):#x} in its saved table"
    ]


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
