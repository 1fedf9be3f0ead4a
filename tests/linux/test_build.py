# SPDX-License-Identifier: GPL-2.0-or-later
"""Simulated machines: the built tables match the layout, by an independent walk."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from hibernaut.errors import HibernautError
from hibernaut.hibernation.page_tables import page_tables
from hibernaut.hibernation.saveable import saveable_pages
from hibernaut.hibernation.source_machine import machine_from_memory
from hibernaut.linux.boot_tables import BootTables
from hibernaut.linux.build import build_machine
from hibernaut.linux.direct_map import FrameState
from hibernaut.linux.environment import FailAllocations
from hibernaut.linux.formula import BOOT_MARK, FormulaMemory, formula_pages
from hibernaut.linux.layout import (
    PAGE_OFFSET,
    HoleKind,
    HoleSpec,
    Layout,
    hole_1g,
    hole_2m,
    hole_4k,
    no_table,
    none_entries,
)
from hibernaut.linux.page_counts import DIRECT_MAP_LEVELS, direct_gbpages, direct_pages_count
from hibernaut.memory.ranges import FrameRanges
from hibernaut.memory.segments import Segment
from hibernaut.paging.entries import Level
from hibernaut.paging.tables import Stop
from tests.machines import GIB, RAM
from tests.strategies import machine_layouts


def expected_stop(layout: Layout, pfn: int) -> Stop:
    """Return the entry that the layout requires for a frame of its RAM, from the layout alone."""
    for hole in layout.holes:
        if hole.start_pfn <= pfn < hole.end_pfn:
            return Stop.NONE if hole.kind in (HoleKind.NONE, HoleKind.NO_TABLE) else Stop.NOT_PRESENT
    return Stop.PRESENT


@given(machine_layouts())
def test_every_frame_is_mapped_as_the_layout_says(layout: Layout) -> None:
    """Walks of every frame at and around each edge, and of samples, stop as the layout says, with that frame."""
    machine = build_machine(layout)
    edges = {edge for start, pages in layout.ram for edge in (start, start + pages - 1)}
    edges |= {edge for hole in layout.holes for edge in (hole.start_pfn - 1, hole.start_pfn, hole.end_pfn - 1)}
    edges |= {hole.end_pfn for hole in layout.holes} | set(range(0, machine.end_pfn, 777))
    exists = FrameRanges.of(layout.ram).contains(sorted(edges))
    for pfn in np.array(sorted(edges))[exists].tolist():
        walk = machine.tables.walk(machine.vaddr(pfn))
        stop = expected_stop(layout, pfn)
        assert (pfn, walk.stop) == (pfn, stop)
        assert walk.pfn == (None if stop == Stop.NONE else pfn)
    assert machine.base == layout.page_offset
    assert machine.direct_map.base == machine.base


@given(machine_layouts())
def test_frames_to_save_are_all_ram_but_the_free_ones(layout: Layout) -> None:
    """RAM is the disjoint union of the list to save and the free frames; tables are on the list."""
    machine = build_machine(layout)
    free, saved = machine.allocator.free_ranges(), saveable_pages(machine)
    assert not len(free.within(saved))
    assert list(FrameRanges.of([*free, *saved])) == list(FrameRanges.of(layout.ram))
    assert saved.contains([machine.cr3 >> 12, machine.fixmap.paddr >> 12]).all()
    assert free.total_pages == layout.free_pages


def test_largest_pages_that_fit_are_used_as_split_mem_range_does() -> None:
    """4K pages around a gap, 2M pages between, 1G pages where the CPU has them and a whole GiB is RAM."""
    layout = Layout(ram=((0, 0xA0), (0x100, 3 * GIB - 0x100 + 513)), largest=Level.PUD, tables=0x800)
    machine = build_machine(layout)
    levels = [
        machine.tables.walk(machine.vaddr(pfn)).level
        for pfn in (0x9F, 0x100, 0x1FF, 0x200, GIB, 3 * GIB, 3 * GIB + 512)
    ]
    assert levels == [Level.PTE, Level.PTE, Level.PTE, Level.PMD, Level.PUD, Level.PMD, Level.PTE]
    assert machine.direct_map.present_bytes["1G"] == 2 << 30
    total = sum(machine.direct_map.present_bytes.values())
    assert total == FrameRanges.of(layout.ram).total_pages * 4096


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("tables", ["low", "high"])
def test_states_of_every_kind_of_hole(levels: int, tables: str) -> None:
    """One hole of each kind, classified by the direct map's own reader."""
    holes = (hole_2m(0x1000), hole_4k(0x801), none_entries(0x903), no_table(0x1400), none_entries(0x1800, 512))
    machine = build_machine(Layout(RAM, levels=levels, holes=holes, tables=tables))
    states = machine.direct_map.classify([0x800, 0x1000, 0x11FF, 0x801, 0x903, 0x1400, 0x1800, 0x19FF])
    assert states.tolist() == [
        FrameState.PRESENT,
        FrameState.NOT_PRESENT_LARGE,
        FrameState.NOT_PRESENT_LARGE,
        FrameState.NOT_PRESENT_4K,
        FrameState.NONE_IN_TABLE,
        FrameState.NONE_ABOVE,
        FrameState.NONE_IN_TABLE,
        FrameState.NONE_IN_TABLE,
    ]
    assert (machine.cr3 >> 12 < 0x1000) == (tables == "low")
    assert machine.base == PAGE_OFFSET[levels]


def test_ram_holds_the_formula_and_the_data_asked_for() -> None:
    """Every u64 of a page is its own physical address under a mark, except where the layout has data."""
    data = np.arange(4096, dtype=np.uint8)[None, :]
    machine = build_machine(Layout(RAM, data=(Segment(0x801, data),), tables=0x3000))
    page = machine.memory.page(0x1234)
    assert page is not None
    assert page.view("<u8").tolist() == [0xA5C << 52 | 0x1234000 + 8 * word for word in range(512)]
    written = machine.memory.page(0x801)
    assert written is not None
    assert np.array_equal(written, data[0])


def test_formula_memory_reads_the_same_by_run_and_gather() -> None:
    """Runs end at gaps, at segments and after 1024 pages; gather and run agree; absent frames are an answer."""
    segment = Segment(5000, np.full((2, 4096), 7, dtype=np.uint8))
    memory = FormulaMemory(FrameRanges.of([(10, 3000), (4000, 2000)]), [segment])
    assert [len(memory.run(pfn, 10**9)) for pfn in (9, 10, 3000, 3010, 4990, 5000, 5002, 5999, 6000)] == [
        0, 1024, 10, 0, 10, 2, 998, 1, 0,
    ]  # fmt: skip
    pages, present = memory.gather([4999, 5000, 9, 5002])
    assert present.tolist() == [True, True, False, True]
    assert np.array_equal(pages[[0, 3]], formula_pages([4999, 5002]))
    assert (pages[1] == 7).all()


def test_a_large_machine_has_few_tables_and_computes_no_pages() -> None:
    """16 GiB in 1G pages with a hole of 2M and one of 1G: a root, a PUD table, a few below it, whatever the RAM."""
    layout = Layout(ram=((0, 16 * GIB),), largest=Level.PUD, holes=(hole_2m(7 * GIB), hole_1g(3 * GIB)), tables=0x1000)
    machine = build_machine(layout)
    assert machine.direct_map.present_bytes == {"4K": 0, "2M": (1 << 30) - (2 << 20), "1G": 14 << 30}
    tables = {
        step.table_pfn for pfn in range(0, 16 * GIB, 1 << 17) for step in machine.tables.walk(machine.vaddr(pfn)).steps
    }
    assert len(tables) == 3
    assert len(machine.memory.written) == 0


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        (Layout(RAM, holes=(hole_2m(0x3F00),)), "not within the RAM"),
        (Layout(RAM, holes=(hole_4k(0xA0),)), "not within the RAM"),
        (Layout(RAM, holes=(hole_2m(0x1000), hole_4k(0x1001))), "overlap"),
        (Layout(RAM, holes=(HoleSpec(0x1001, 512, HoleKind.NO_TABLE),)), "only whole 2 MiB blocks"),
        (Layout(RAM, levels=3), "4 or 5 levels"),
        (Layout(RAM, base=0x1000), "cannot extend"),
        (Layout(RAM, base=0xFFFF888000001000), "cannot extend"),
        (Layout(RAM, tables=0x5000), "no room"),
        (Layout(((0, 32),)), "no room"),
        (Layout(()), "needs RAM"),
    ],
)
def test_impossible_layouts_are_refused_with_a_reason(layout: Layout, reason: str) -> None:
    """An impossible layout is refused with one line."""
    with pytest.raises(HibernautError, match=reason):
        build_machine(layout)


def test_building_asks_nothing_of_the_environment() -> None:
    """A failing first allocation is the first of what runs on the machine, not of its making."""
    machine = build_machine(Layout(RAM, holes=(hole_4k(0x801),)), FailAllocations(1))
    assert machine.environment.schedule == ()
    assert machine.allocations == ()
    assert len(machine.log) == 0


def test_machine_of_a_source_chooses_what_to_save_and_what_is_free() -> None:
    """Without lists: all frames with a direct-map entry, less zero-filled ones at the top, one a possible split."""
    zeroes = Segment(0x3E00, np.zeros((16, 4096), dtype=np.uint8))
    holes = (hole_2m(0x1000, 3), none_entries(0x903), no_table(0x1800))
    built = build_machine(Layout(RAM, holes=holes, data=(zeroes,)))
    machine = machine_from_memory(built.memory, built.cr3)
    free = machine.allocator.free_ranges()
    assert free.pfns().tolist() == [0x3E0D, 0x3E0E, 0x3E0F]  # the three highest, one a block
    gone = set(FrameRanges.of(RAM).pfns().tolist()) - set(saveable_pages(machine).pfns().tolist())
    assert gone == {0x903, *range(0x1800, 0x1A00), 0x3E0D, 0x3E0E, 0x3E0F}


def test_machine_of_a_source_takes_unlisted_frames_for_tables() -> None:
    """With a list: mapped frames above the first MiB that are not on it are free, but for page tables."""
    built = build_machine(Layout(RAM, holes=(hole_2m(0x1000),)))
    listed = saveable_pages(built).without(FrameRanges.of([(0x50, 0xC0)]))
    machine = machine_from_memory(built.memory, built.cr3, saveable=listed)
    assert page_tables(built) == set(range(0x100, 0x108))
    assert next(iter(machine.allocator.free_ranges())) == (0x108, 8)


def test_machine_of_a_source_refuses_a_list_that_cannot_be() -> None:
    """Frames out of order, repeated, or absent from the source are refused."""
    built = build_machine(Layout(RAM))
    for wrong, reason in (
        ([5, 4], "ascend"),
        ([5, 5], "ascend"),
        ([0xA5], "source lacks 1 of 1 frames"),
        ([-1], "cannot exist"),
    ):
        with pytest.raises(HibernautError, match=reason):
            machine_from_memory(built.memory, built.cr3, saveable=wrong)


def test_source_is_never_written_and_forks_are_independent() -> None:
    """Whatever a machine writes stays in its own overlay; its twin does not see it."""
    built = build_machine(Layout(RAM, holes=(hole_2m(0x1000),)))
    machine = machine_from_memory(built.memory, built.cr3, saveable=saveable_pages(built))
    twin = machine.fork()
    machine.fixmap.set_fixmap(0x1000)
    machine.alloc_page("a test")
    machine.read_page(machine.fixmap.vaddr)
    assert len(built.memory.written) == 0
    assert (twin.fixmap.entry, len(twin.allocations), len(twin.tlb), len(twin.log)) == (0, 0, 0, 0)


@given(machine_layouts())
def test_entries_at_boot_are_those_of_the_tables(layout: Layout) -> None:
    """The numbers of entries by level with which a build begins are those that a scan of the tables counts."""
    kept = tuple(hole for hole in layout.holes if hole.kind in (HoleKind.NONE, HoleKind.NO_TABLE))
    boot = replace(layout, holes=kept)
    counts = BootTables(boot, boot.check()).direct_pages_count
    assert {level: counts.get(level, 0) for level in DIRECT_MAP_LEVELS} == direct_pages_count(build_machine(boot))
    assert (Level.PUD in counts) == direct_gbpages(build_machine(boot))


def test_equal_content_has_equal_keys() -> None:
    """The key of a window of RAM is that of its pages and of the frames that exist, whichever object holds them."""
    ram = FrameRanges.of([(0, 0x100)])
    zero, one = np.zeros((2, 4096), dtype=np.uint8), np.ones((2, 4096), dtype=np.uint8)
    repeated = np.broadcast_to(zero[0], (8, 4096))
    key = FormulaMemory(ram, [Segment(0x10, zero), Segment(0x20, repeated)]).content_key(0x10, 0x30)
    alike = (
        FormulaMemory(ram, [Segment(0x10, zero.copy()), Segment(0x20, repeated)]),
        FormulaMemory(ram, [Segment(0x40, one), Segment(0x20, repeated), Segment(0x10, zero)]),
    )
    others = (
        FormulaMemory(ram, [Segment(0x10, one), Segment(0x20, repeated)]),
        FormulaMemory(ram, [Segment(0x11, zero), Segment(0x20, repeated)]),
        FormulaMemory(ram, [Segment(0x10, zero), Segment(0x20, repeated[:7])]),
        FormulaMemory(FrameRanges.of([(0, 0x2F)]), [Segment(0x10, zero), Segment(0x20, repeated)]),
        FormulaMemory(ram, [Segment(0x10, zero), Segment(0x20, repeated)], mark=BOOT_MARK),
    )
    assert [memory.content_key(0x10, 0x30) == key for memory in (*alike, *others)] == [True] * 2 + [False] * 5
