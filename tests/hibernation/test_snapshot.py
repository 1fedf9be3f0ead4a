# SPDX-License-Identifier: GPL-2.0-or-later
"""The copy: order, bulk, what differs from the source, the log; on any layout and on a real kernel's memory."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.errors import HibernautError, MachineFault
from hibernaut.hibernation import Fixmap, Remap, Snapshot, Way, hibernate, same_data, same_direct_map, slot_empty
from hibernaut.hibernation.saveable import saveable_pages
from hibernaut.hibernation.source_machine import machine_from_memory
from hibernaut.hibernation.ways.base import Way as WayBase
from hibernaut.linux.build import build_machine
from hibernaut.linux.environment import ChooseFrames, FailAllocations
from hibernaut.linux.formula import formula_pages
from hibernaut.linux.layout import HoleKind, Layout, hole_2m, hole_4k
from hibernaut.linux.machine import Machine
from hibernaut.linux.page_alloc import BuddyAllocator
from hibernaut.linux.pgtable import pfn_entry
from hibernaut.memory.physical import Bytes, FrameRanges, PhysicalMemory
from hibernaut.paging.entries import Level
from hibernaut.studies.demo import DEMO_BLOCK_PFN, demo_layout
from tests.linux.witness import (
    LOW2M_CR3,
    LOW2M_PAGES,
    LOW2M_PMD_TABLE,
    LOW2M_START,
    elf_memory,
    npregion_pages,
    plain_image,
)
from tests.machines import RAM
from tests.strategies import machine_layouts

if TYPE_CHECKING:
    from tests.conftest import Golden


def table_frames(machine: Machine) -> set[int]:
    """Frames of all page tables reachable from CR3, by a plain recursion."""
    found: set[int] = set()

    def visit(pfn: int, level: Level) -> None:
        found.add(pfn)
        page = machine.memory.frame(pfn)
        assert page is not None
        if level == Level.PTE:
            return
        for entry in page.view("<u8").tolist():
            if entry & 1 and not (entry & 0x80 and level < Level.P4D):
                visit((entry & 0xFFFFFFFFFF000) >> 12, Level(level - 1))

    visit(machine.cr3 >> 12, Level(machine.levels))
    return found


def allocator_frames(machine: Machine) -> list[int]:
    """Frames that hold the allocator's own state."""
    assert isinstance(machine.allocator, BuddyAllocator)
    places = machine.allocator.places
    array = range(places.mem_map >> 12, (places.mem_map >> 12) + places.mem_map_pages)
    return [*array, places.zone >> 12, *(pcp >> 12 for pcp in places.pcps)]


def page_by_page(machine: Machine, way: Way) -> dict[int, bytes | None]:
    """A naive swsusp_save: every page by the way's own safe_copy_page, one after the other, nothing in bulk."""
    pages = {pfn: way.safe_copy_page(machine, pfn) for pfn in saveable_pages(machine).frames().tolist()}
    return {pfn: None if page is None else page.tobytes() for pfn, page in pages.items()}


def contents(snapshot: Snapshot) -> dict[int, bytes]:
    """Return the bytes of every page of a snapshot, by frame."""
    return {
        int(pfn): page.tobytes()
        for pfns, content in snapshot.chunks(333)
        for pfn, page in zip(pfns, content, strict=True)
    }


@given(machine_layouts())
def test_fixmap_saves_every_listed_frame_and_changes_nothing(layout: Layout) -> None:
    """Any layout: pages equal the formula, tables are as they were, direct map and slot as before, no allocation."""
    machine = build_machine(layout)
    tables = table_frames(machine)
    before = {pfn: machine.memory.frame(pfn) for pfn in tables}
    twin = machine.fork()
    snapshot = hibernate(twin, Fixmap())
    for pfns, content in snapshot.chunks():
        plain = ~np.isin(pfns, [*tables, *allocator_frames(machine)])
        assert np.array_equal(content[plain], formula_pages(pfns[plain]))
    for pfn, page in before.items():
        after = twin.memory.frame(pfn)
        assert page is not None
        assert after is not None
        assert np.array_equal(after, page)
        assert np.array_equal(snapshot.page(pfn), page)
    assert (twin.allocations, same_direct_map(machine, twin), slot_empty(twin, snapshot)) == ((), (), ())


@given(machine_layouts())
def test_remap_saves_every_4k_hole_without_an_allocation(layout: Layout) -> None:
    """A page that is not present at 4K can always be remapped: no table is needed (Edgecombe, 2020)."""
    holes = tuple(hole for hole in layout.holes if hole.kind == HoleKind.INVALID)
    layout = Layout(layout.ram, layout.levels, layout.base, layout.largest, holes, layout.tables)
    machine = build_machine(layout, FailAllocations(1))
    twin = machine.fork()
    snapshot = hibernate(twin, Remap())
    assert same_data(machine.memory, snapshot) == ()
    assert (twin.allocations, same_direct_map(machine, twin)) == ((), ())


@given(machine_layouts(), st.sampled_from([Remap(), Fixmap(), Fixmap(null_check=False)]))
def test_bulk_copy_equals_the_copy_page_by_page(layout: Layout, way: Way) -> None:
    """Same bytes for every page, page tables that change in the middle included; or the same death."""
    machine = build_machine(layout)
    pfns = saveable_pages(machine).frames()
    near = [np.abs(pfns - edge) < 3 for hole in layout.holes for edge in (hole.start_pfn, hole.end_pfn)]
    tables = list(table_frames(machine))
    machine.saveable = FrameRanges.of_frames(pfns[np.logical_or.reduce([pfns % 61 == 0, np.isin(pfns, tables), *near])])
    bulk, single = machine.fork(), machine.fork()
    died: MachineFault | None = None
    try:
        expected = page_by_page(single, way)
    except MachineFault as fault:
        died = fault
    if died is not None:
        with pytest.raises(MachineFault) as other:
            hibernate(bulk, way)
        assert (other.value.address, other.value.entry) == (died.address, died.entry)
        assert other.value.log[2:] == died.log
        return
    snapshot = hibernate(bulk, way)
    assert contents(snapshot) == expected
    assert [a.pfn for a in bulk.allocations] == [a.pfn for a in single.allocations]
    assert bulk.memory.written.tolist() == single.memory.written.tolist()


@given(machine_layouts(), st.data())
def test_garbage_in_the_tables_never_raises_anything_but_the_librarys_errors(
    layout: Layout, data: st.DataObject
) -> None:
    """Random entries in random tables: a way copies, faults or refuses; checks compare; nothing loops or crashes."""
    machine = build_machine(layout)
    tables = sorted(table_frames(machine))
    for _ in range(data.draw(st.integers(1, 12))):
        paddr = (data.draw(st.sampled_from(tables)) << 12) + 8 * data.draw(st.integers(0, 511))
        flags = data.draw(st.integers(0, 0xFFF)) | data.draw(st.sampled_from([0, 1 << 63]))
        pfn = data.draw(st.sampled_from(tables) | st.integers(0, machine.end_pfn) | st.integers(0, (1 << 40) - 1))
        machine.memory.write_u64(paddr, flags | pfn << 12)
    for way in (Remap(), Fixmap(), Fixmap(null_check=False)):
        with contextlib.suppress(HibernautError):
            twin = machine_from_memory(
                machine.memory, machine.cr3, layout.levels, free=machine.allocator.free_ranges().frames()[:20]
            )
            before = twin.fork()
            snapshot = hibernate(twin, way)
            assert len(contents(snapshot)) == saveable_pages(twin).total_pages
            same_direct_map(before, twin)
            slot_empty(twin, snapshot)


def test_snapshot_reads_the_same_three_ways() -> None:
    """chunks, page and memory give the same pages; frames that are not listed do not exist."""
    machine = build_machine(Layout(RAM, holes=(hole_2m(0x1000), hole_4k(0x801)), tables="high"))
    before = saveable_pages(machine)
    snapshot = hibernate(machine, Remap())
    assert len(snapshot.changed) > 0
    streamed = contents(snapshot)
    assert list(streamed) == snapshot.pfns.tolist() == before.frames().tolist()
    memory = snapshot.memory
    content, present = memory.gather(snapshot.pfns)
    assert present.all()
    assert b"".join(streamed.values()) == content.tobytes()
    assert all(snapshot.page(pfn).tobytes() == streamed[pfn] for pfn in [*snapshot.changed, 0, 0x1000])
    absent = int(machine.allocator.free_ranges().starts[0])
    assert memory.frame(absent) is None
    with pytest.raises(KeyError):
        snapshot.page(absent)


def test_plainly_present_pages_are_not_visited() -> None:
    """Only pages that are not plainly present go through the way, in ascending order."""

    class Counting(Fixmap):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[int] = []

        def safe_copy_page(self, machine: Machine, pfn: int) -> Bytes | None:
            self.seen.append(pfn)
            return super().safe_copy_page(machine, pfn)

        def copy_run(self, machine: Machine, pfn: int, pages: int) -> int:
            del machine, pfn, pages
            return 0

    way = Counting()
    hibernate(build_machine(Layout(RAM, holes=(hole_4k(0x2001, 2), hole_4k(0x801)))), way)
    assert way.seen == [0x801, 0x2001, 0x2002]


def test_snapshot_holds_only_what_differs_from_the_source() -> None:
    """Pages read through the slot equal the source's: nothing of them is kept."""
    machine = build_machine(Layout(RAM, holes=(hole_2m(0x1000, 4),)))
    snapshot = hibernate(machine, Fixmap())
    assert len(snapshot.changed) == 0
    assert isinstance(snapshot.base, PhysicalMemory)


def test_log_reads_like_the_kernels() -> None:
    """swsusp_save's own lines, the model's between them marked; nothing depends on a clock."""
    machine = build_machine(Layout(RAM, holes=(hole_2m(0x1000),)))
    snapshot = hibernate(machine, Remap())
    pages = snapshot.frames.total_pages
    assert machine.log.kernel_lines == (
        "PM: hibernation: Creating image:",
        f"PM: hibernation: Need to copy {pages} pages",
        f"PM: hibernation: Image created ({pages} pages copied)",
    )
    extra = [line for line in snapshot.log if line not in machine.log.kernel_lines]
    assert len(extra) == 2
    assert all(line.startswith("  [model] ") for line in extra)


def test_the_warning_is_printed_once_since_boot() -> None:
    """pr_warn_once: a second hibernation of the same machine that fails alike dies without the warning."""
    machine = build_machine(Layout(RAM, holes=(hole_2m(0x1000),)), FailAllocations(1, 2))
    for expected in (1, 1):
        with pytest.raises(MachineFault):
            hibernate(machine, Remap())
        assert machine.log.kernel_lines.count("PM: hibernation: Failed to remap page") == expected


def test_demo_machine_is_saved_by_the_slot_whatever_fails() -> None:
    """The demonstration's block says in words what it is, in the snapshot too."""
    machine = build_machine(demo_layout(), FailAllocations(1))
    with pytest.raises(MachineFault, match="0xffff888001000000"):
        hibernate(machine.fork(), Remap())
    snapshot = hibernate(machine.fork(), Fixmap())
    text = f"frame {DEMO_BLOCK_PFN + 511:#07x}: not in the direct map"
    assert snapshot.page(DEMO_BLOCK_PFN + 511).tobytes().startswith(text.encode())
    assert same_data(machine.memory, snapshot) == ()


def test_ways_are_named_as_the_public_interface_names_them() -> None:
    """One class, exported where people look for it."""
    assert (Remap().name, Fixmap().name, Way) == ("Remap", "Fixmap", WayBase)


def test_real_machine_dies_as_the_real_kernel_died(golden: Golden) -> None:
    """6.1 with the split's allocation failing: the warning, then the page fault at the block's first address."""
    machine = machine_from_memory(elf_memory(golden("ram-6.1-low2m.elf")), LOW2M_CR3, environment=FailAllocations(1))
    with pytest.raises(MachineFault) as fault:
        hibernate(machine, Remap())
    assert (fault.value.address, fault.value.entry) == (0xFFFF888000400000, 0x800FFFFFFFBFF062)
    assert fault.value.pfn == LOW2M_START
    assert fault.value.log[2:6] == (
        "PM: hibernation: Failed to remap page",
        "BUG: unable to handle page fault for address: ffff888000400000",
        "#PF: supervisor read access in kernel mode",
        "#PF: error_code(0x0000) - not-present page",
    )


def test_real_block_is_saved_through_the_slot(golden: Golden) -> None:
    """All 512 pages of the not-present block have the bytes that the guest's module wrote, nothing else changed."""
    memory = elf_memory(golden("ram-6.1-low2m.elf"))
    machine = machine_from_memory(memory, LOW2M_CR3, environment=FailAllocations(1))
    twin = machine.fork()
    snapshot = hibernate(twin, Fixmap())
    content, _ = snapshot.memory.gather(np.arange(LOW2M_START, LOW2M_START + LOW2M_PAGES))
    assert np.array_equal(content, npregion_pages(0, 0, LOW2M_PAGES))
    assert same_data(memory, snapshot) == ()
    assert (len(snapshot.changed), same_direct_map(machine, twin), slot_empty(twin, snapshot)) == (0, (), ())


def test_remap_on_a_real_machine_writes_the_tables_that_the_real_kernel_wrote(golden: Golden) -> None:
    """Given the kernel's list and the frame its split got, every page-table page of the image is the kernel's own."""
    pfns, blocks, where = plain_image(golden("swap-6.1-low2m.img"))
    machine = machine_from_memory(
        elf_memory(golden("ram-6.1-low2m.elf")), LOW2M_CR3, 4, pfns, ChooseFrames(0xAAC8), np.array([0xAAC8])
    )
    tables = table_frames(machine)
    assert len(tables) == 113
    snapshot = hibernate(machine, Remap())
    kernel = dict(zip(pfns.tolist(), where.tolist(), strict=True))
    assert tables <= kernel.keys()
    assert all(np.array_equal(snapshot.page(pfn), blocks[kernel[pfn]]) for pfn in tables)
    assert int(snapshot.page(LOW2M_PMD_TABLE).view("<u8")[2]) == 0x000000000AAC8063
    assert 0xAAC8 not in kernel
    table = machine.memory.frame(0xAAC8)
    assert table is not None
    # Each page was made present and writable, then neither again: RW has gone with PRESENT.
    assert table.view("<u8").tolist() == [pfn_entry(0x400 + i, 0x8000000000000060) for i in range(512)]


def test_secret_memory_of_a_real_machine_is_saved_both_ways(golden: Golden) -> None:
    """1 292 not-present 4K pages: both ways save the dump's bytes, neither allocates; the guest printed the frames."""
    memory = elf_memory(golden("ram-6.1-secretmem.elf"))
    expected = golden.expected["ram-6.1-secretmem.elf"]
    machine = machine_from_memory(memory, int(expected["cr3"], 16))
    secret = [
        int(first, 16) + page
        for first, pages in expected["secret_pages_as_printed_by_the_guest"]
        for page in range(pages)
    ]
    assert len(secret) == 1292
    assert set(secret) <= set(saveable_pages(machine).frames().tolist())
    for way in (Remap(), Fixmap()):
        twin = machine.fork()
        snapshot = hibernate(twin, way)
        content, present = snapshot.memory.gather(secret)
        assert present.all()
        assert np.array_equal(content, memory.gather(secret)[0])
        assert same_data(memory, snapshot) == ()
        assert (twin.allocations, same_direct_map(machine, twin)) == ((), ())
