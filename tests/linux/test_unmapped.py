# SPDX-License-Identifier: GPL-2.0-or-later
"""Unmapped pageblocks: on a list of their own, never saved, mapped again by an allocation that finds nothing else."""

from __future__ import annotations

import pytest

from hibernaut.errors import HibernautError, MachineFault, OutOfMemory
from hibernaut.linux.build import build_machine
from hibernaut.linux.check_allocator import check_allocator
from hibernaut.linux.direct_map import FrameState, frames_in_state
from hibernaut.linux.environment import Environment
from hibernaut.linux.layout import HoleKind, HoleSpec, Layout, hole_2m
from hibernaut.linux.machine import Machine
from hibernaut.linux.mmzone import PAGE_LIST, SIZEOF_STRUCT_PAGE
from hibernaut.linux.page_alloc import BuddyAllocator
from hibernaut.linux.pgtable import PRESENT, PSE
from hibernaut.linux.rules import rules_named

RAM = ((0, 0x8000),)
BLOCKS = (0x1000, 0x1800)
RULES = rules_named("7.3 with has_unmapped_pageblocks")


def machine_with_blocks(free_pages: int = 4, rules: str = RULES.line) -> Machine:
    """Return a machine with two free unmapped pageblocks and a few mapped free pages."""
    holes = tuple(HoleSpec(pfn, 512, HoleKind.INVALID_FOLIO) for pfn in BLOCKS)
    layout = Layout(RAM, holes=holes, unmapped=BLOCKS, free_pages=free_pages, tables="high")
    return build_machine(layout, Environment(), rules_named(rules))


def allocator_of(machine: Machine) -> BuddyAllocator:
    """Return a simulated machine's allocator."""
    assert isinstance(machine.allocator, BuddyAllocator)
    return machine.allocator


def problems(machine: Machine) -> list[str]:
    """Return what the check of the allocator finds, with the direct map compared."""
    mapped = frames_in_state(machine.direct_map, FrameState.PRESENT)
    return [one.what for one in check_allocator(machine, allocator_of(machine).places, mapped=mapped)]


def test_free_blocks_are_free_and_not_counted_as_mapped_pages() -> None:
    """`mark_free_pages` marks them; NR_FREE_PAGES counts the others; the check has nothing to say."""
    machine = machine_with_blocks()
    assert list(allocator_of(machine).unmapped_blocks()) == [(pfn, 512) for pfn in BLOCKS]
    assert machine.allocator.free_ranges().total_pages == 4 + 2 * 512
    assert allocator_of(machine).nr_free_pages == 4
    assert problems(machine) == []


def test_an_allocation_that_finds_nothing_else_maps_one_block_by_one_entry() -> None:
    """A naive account: four pages, then 512 of the first block, then 512 of the second, then none; one write each."""
    machine = machine_with_blocks()
    pmd = [machine.lookup_address(machine.vaddr(pfn)) for pfn in BLOCKS]
    assert all(one is not None and not one.entry & (PRESENT | PSE) for one in pmd)
    tables = {one.paddr >> 12 for one in pmd if one is not None}
    written: list[int] = []
    with machine.watching(written.append):
        got = [machine.alloc_page("test") for _ in range(4 + 2 * 512)]
        with pytest.raises(OutOfMemory):
            machine.alloc_page("test")
    assert sorted(got[4:516]) == list(range(BLOCKS[0], BLOCKS[0] + 512))
    assert sorted(got[516:]) == list(range(BLOCKS[1], BLOCKS[1] + 512))
    assert sum(pfn in tables for pfn in written) == 2
    for pfn in BLOCKS:
        found = machine.lookup_address(machine.vaddr(pfn))
        assert found is not None
        assert found.level.pages == 512
        assert found.present
    assert problems(machine) == []


def test_a_kernel_without_the_rule_gives_none_of_them_out() -> None:
    """The fifth allocation fails, and no entry is touched."""
    machine = machine_with_blocks(rules="7.3")
    for _ in range(4):
        machine.alloc_page("test")
    with pytest.raises(OutOfMemory):
        machine.alloc_page("test")
    assert list(allocator_of(machine).unmapped_blocks()) == [(pfn, 512) for pfn in BLOCKS]


def test_a_twin_takes_its_own_blocks() -> None:
    """All state lies in memory: a fork's allocation leaves the original as it was."""
    machine = machine_with_blocks()
    twin = machine.fork()
    for _ in range(5):
        twin.alloc_page("test")
    assert len(allocator_of(twin).unmapped_blocks()) == 1
    assert len(allocator_of(machine).unmapped_blocks()) == 2
    assert problems(machine) == problems(twin) == []


def test_the_check_sees_a_block_that_the_direct_map_contradicts() -> None:
    """Both ways: listed as mapped and not present, listed as unmapped and present."""
    machine = machine_with_blocks()
    found = machine.lookup_address(machine.vaddr(BLOCKS[0]))
    assert found is not None
    for _ in range(5):
        machine.alloc_page("test")
    machine.write_entry(found.paddr, found.entry)
    assert problems(machine) == ["on a list of mapped pages, but not present in the direct map"]
    other = machine_with_blocks()
    other.write_entry(found.paddr, 0x80000000000001E3 | BLOCKS[0] << 12)
    assert problems(other) == ["on the list of unmapped pageblocks, but present in the direct map"]


def test_a_wild_link_on_the_list_crashes_as_any_other() -> None:
    """A head that leads nowhere: a fault, not a page of another machine."""
    machine = machine_with_blocks()
    places = allocator_of(machine).places
    for _ in range(4):
        machine.alloc_page("test")
    wild = machine.base + places.mem_map + (places.end_pfn + 64) * SIZEOF_STRUCT_PAGE + PAGE_LIST
    for link in (0, wild):
        twin = machine.fork()
        twin.memory.write_u64(places.unmapped, link)
        with pytest.raises(MachineFault):
            twin.alloc_page("test")
        assert problems(twin)


@pytest.mark.parametrize(
    ("unmapped", "match"),
    [
        ((0x1001,), "unmapped pageblock at frame 0x1001: expected a block of 2 MiB in a hole"),
        ((0x2000,), "unmapped pageblock at frame 0x2000: expected a block of 2 MiB in a hole"),
        ((0x1000, 0x1200), "unmapped pageblocks at frames 0x1000 and 0x1200 are neighbours"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(unmapped: tuple[int, ...], match: str) -> None:
    """A block is aligned and in a hole; neighbours would merge, which the series prevents and the model does not."""
    with pytest.raises(HibernautError, match=match):
        build_machine(Layout(RAM, holes=(hole_2m(0x1000, 2),), unmapped=unmapped))
