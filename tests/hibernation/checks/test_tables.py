# SPDX-License-Identifier: GPL-2.0-or-later
"""`tables_closed`: page tables torn by a split in the middle of the copy."""

from __future__ import annotations

import pytest

from hibernaut.hibernation import (
    Fixmap,
    Remap,
    check_resumed,
    hibernate,
    resume,
    same_direct_map,
    tables_closed,
)
from hibernaut.linux.build import build_machine
from hibernaut.linux.direct_map import FrameState
from hibernaut.linux.layout import Layout, hole_2m
from hibernaut.linux.pgtable import KERNPG_TABLE, pfn_entry
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
        assert [(found.start_pfn, found.nr_pages) for found in tables_closed(snapshot, resumed)] == [(taken, 1)]
        assert [(found.start_pfn, found.nr_pages) for found in same_direct_map(machine, resumed)] == [(0x1000, 512)]
        assert set(resumed.direct_map.classify(range(0x1000, 0x1200)).tolist()).isdisjoint({FrameState.PRESENT})
    cured = hibernate(machine.fork(), Fixmap())
    assert check_resumed(machine, cured, resume(cured)) == ()
