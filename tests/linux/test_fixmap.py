# SPDX-License-Identifier: GPL-2.0-or-later
"""The fixmap: addresses, the free slot on simulated and real tables, what mapping and clearing do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hibernaut.errors import HibernautError, MachineFault
from hibernaut.hibernation.source_machine import machine_from_memory
from hibernaut.linux.build import build_machine
from hibernaut.linux.fixmap import BLOCK_SLOTS, FIXADDR_TOP, fix_to_virt
from hibernaut.linux.layout import Layout
from hibernaut.linux.roots import find_root
from hibernaut.sources import open_memory
from tests.linux.witness import LOW2M_CR3, elf_memory

if TYPE_CHECKING:
    from tests.conftest import Golden

RAM = ((0, 0x4000),)


def test_addresses_are_those_of_fixmap_h() -> None:
    """FIXADDR_TOP of x86-64, and slot 511 is the vsyscall page."""
    assert FIXADDR_TOP == 0xFFFFFFFFFF7FF000
    assert fix_to_virt(511) == 0xFFFFFFFFFF600000


@pytest.mark.parametrize("levels", [4, 5])
def test_mapping_a_slot_reads_that_frame_and_clearing_unmaps_it(levels: int) -> None:
    """set_fixmap writes PAGE_KERNEL, allocates nothing, and the slot reads the frame; cleared it is zero and faults."""
    machine = build_machine(Layout(RAM, levels=levels))
    for pfn in (0x1111, 0x2222):
        vaddr = machine.fixmap.set_fixmap(pfn)
        assert machine.fixmap.entry == 0x8000000000000163 | pfn << 12
        assert machine.read_page(vaddr).view("<u8")[0] == 0xA5C << 52 | pfn << 12
    machine.fixmap.clear_fixmap()
    assert machine.fixmap.entry == 0
    assert machine.allocations == ()
    with pytest.raises(MachineFault):
        machine.read_page(machine.fixmap.vaddr)


def test_without_the_invalidation_the_next_frame_is_read_through_a_stale_translation() -> None:
    """The CPU continues to use its cached translation."""
    machine = build_machine(Layout(RAM))
    machine.read_page(machine.fixmap.set_fixmap(0x1111))
    vaddr = machine.fixmap.set_fixmap(0x2222, flush=False)
    assert machine.read_page(vaddr).view("<u8")[0] == 0xA5C << 52 | 0x1111 << 12


def test_a_slot_in_use_is_passed_over() -> None:
    """Only a zero entry is free; if there is none, an error."""
    machine = build_machine(Layout(RAM))
    table = machine.fixmap.paddr & ~0xFFF
    machine.write_entry(machine.fixmap.paddr, 0x8000000000000163)
    other = machine_from_memory(machine.memory, machine.cr3)
    assert other.fixmap.index == 1
    for index in range(512):
        machine.write_entry(table + 8 * index, 0x8000000000000163)
    second = machine_from_memory(machine.memory, machine.cr3)
    assert second.fixmap.index == 512
    assert second.fixmap.paddr >> 12 != table >> 12
    for index in range(512):
        machine.write_entry((second.fixmap.paddr & ~0xFFF) + 8 * index, 0x8000000000000163)
    with pytest.raises(HibernautError, match="no free fixmap slot"):
        _ = machine_from_memory(machine.memory, machine.cr3).fixmap


def test_tables_without_a_fixmap_are_refused_with_the_reason() -> None:
    """No PTE table for the range: no slot, no allocation to make one."""
    machine = build_machine(Layout(RAM, fixmap=False))
    assert not machine.has_fixmap
    with pytest.raises(HibernautError, match="no PTE table for its addresses"):
        _ = machine.fixmap


def test_real_kernel_has_a_free_slot_in_its_static_table(golden: Golden) -> None:
    """6.1: the table of PMD index 507 exists; slot 0, below the vsyscall page's number, is unused."""
    machine = machine_from_memory(elf_memory(golden("ram-6.1-low2m.elf")), LOW2M_CR3)
    assert machine.fixmap.index == 0
    walk = machine.tables.walk(fix_to_virt(0))
    assert walk.steps[-1].paddr == machine.fixmap.paddr
    assert walk.steps[-2].index == 507
    page = machine.read_page(machine.fixmap.set_fixmap(0x400))
    assert page[:8].tobytes() == (0x4E50524547494F4E ^ 1 << 56).to_bytes(8, "little")


def test_a_block_slot_maps_2m_by_one_entry_and_clearing_unmaps_it() -> None:
    """One PMD entry, PSE, no PTE table, no allocation; cleared it is zero and every page of it faults."""
    machine = build_machine(Layout(RAM))
    vaddr = machine.block_slot.set_block(0x1200)
    assert machine.block_slot.entry == 0x80000000000001E3 | 0x1200 << 12
    for page in (0, 511):
        assert machine.read_page(vaddr + page * 4096).view("<u8")[0] == 0xA5C << 52 | (0x1200 + page) << 12
    machine.block_slot.clear_block()
    assert machine.memory.read_u64(machine.block_slot.paddr) == 0
    assert machine.allocations == ()
    with pytest.raises(MachineFault):
        machine.read_page(vaddr)


def test_a_block_slot_without_the_invalidation_reads_the_block_before() -> None:
    """The CPU continues to use the cached translation of 2 MiB, for a page that it never read."""
    machine = build_machine(Layout(RAM))
    machine.read_page(machine.block_slot.set_block(0x1200))
    vaddr = machine.block_slot.set_block(0x1400, flush=False)
    assert machine.read_page(vaddr + 4096).view("<u8")[0] == 0xA5C << 52 | 0x1201 << 12


def test_a_block_slot_takes_whole_blocks_only() -> None:
    """Bits 13 to 20 of a large entry are reserved: a frame within a block is refused."""
    machine = build_machine(Layout(RAM))
    with pytest.raises(ValueError, match="begins at a multiple of 512 frames, not at 0x1201"):
        machine.block_slot.set_block(0x1201)


def test_a_pmd_entry_in_use_is_passed_over() -> None:
    """508, 509 and 510 in turn; if none is zero, an error; 511 is never taken."""
    machine = build_machine(Layout(RAM))
    first = machine.block_slot.paddr
    for number, index in enumerate(BLOCK_SLOTS):
        other = machine_from_memory(machine.memory, machine.cr3)
        assert (other.block_slot.index, other.block_slot.paddr) == (index, first + 8 * number)
        machine.write_entry(first + 8 * number, 0x80000000000001E3)
    last = machine_from_memory(machine.memory, machine.cr3)
    assert not last.has_block_slot
    with pytest.raises(HibernautError, match="no free PMD entry beside the fixmap"):
        _ = last.block_slot


@pytest.mark.parametrize("name", ["ram-6.1-lzo.elf", "ram-6.1-low2m.elf", "ram-6.1-secretmem.elf", "swap-6.12-lz4.img"])
def test_real_kernels_leave_the_entries_above_the_fixmap_zero(golden: Golden, name: str) -> None:
    """6.1 and 6.12: `level2_fixmap_pgt` has tables at 505 to 507 (505 made at run time), and nothing from 508 on."""
    with open_memory(golden(name)) as source:
        cr3 = find_root(source.memory).cr3 if source.cr3 is None else source.cr3
        machine = machine_from_memory(source.memory, cr3)
        table = source.memory.page(machine.block_slot.paddr >> 12)
        assert table is not None
        used = [index for index, entry in enumerate(table.view("<u8").tolist()) if entry]
        assert {505, 506, 507} <= set(used)
        assert max(used) == 507
        assert machine.block_slot.index == 508


def test_a_block_slot_names_its_block() -> None:
    """None while the entry is zero, then the first frame of the block."""
    machine = build_machine(Layout(RAM))
    found = [machine.block_slot.block]
    machine.block_slot.set_block(0x1200)
    found.append(machine.block_slot.block)
    machine.block_slot.clear_block()
    assert [*found, machine.block_slot.block] == [None, 0x1200, None]
