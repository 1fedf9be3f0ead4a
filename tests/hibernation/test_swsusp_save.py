# SPDX-License-Identifier: GPL-2.0-or-later
"""The copy: order, bulk, machines of any layout, garbage in their page tables."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.errors import HibernautError, MachineFault
from hibernaut.hibernation import Fixmap, Remap, Way, hibernate, same_data, same_direct_map, slot_empty
from hibernaut.hibernation.reach import AS_IT_IS
from hibernaut.hibernation.saveable import saveable_pages
from hibernaut.hibernation.source_machine import machine_from_memory
from hibernaut.hibernation.ways import FixmapWholeRun, Mermap
from hibernaut.linux.build import build_machine
from hibernaut.linux.direct_map import FrameState, frames_in_state
from hibernaut.linux.environment import FailAllocations
from hibernaut.linux.formula import formula_pages
from hibernaut.linux.layout import HoleKind, Layout, hole_4k
from hibernaut.linux.machine import Machine
from hibernaut.memory.page import Bytes
from hibernaut.memory.ranges import FrameRanges
from tests.machines import RAM
from tests.strategies import machine_layouts

if TYPE_CHECKING:
    pass
from tests.hibernation.page_contents import allocator_frames, contents, table_frames


def page_by_page(machine: Machine, way: Way) -> dict[int, bytes | None]:
    """A naive swsusp_save: every page by the way's own safe_copy_page, one after the other, nothing in bulk."""
    saveable = saveable_pages(machine)
    hidden = [state for state in FrameState if state not in AS_IT_IS]
    runs = saveable.within(frames_in_state(machine.direct_map, *hidden))
    last = {start + nr_pages - 1 for start, nr_pages in runs}
    pages = {}
    for pfn in saveable.pfns().tolist():
        pages[pfn] = way.safe_copy_page(machine, pfn)
        if pfn in last:
            way.end_run(machine)
    return {pfn: None if page is None else page.tobytes() for pfn, page in pages.items()}


@given(machine_layouts(), st.sampled_from([Fixmap(), Mermap(), Mermap(7), FixmapWholeRun()]))
def test_fixmap_saves_every_listed_frame_and_changes_nothing(layout: Layout, way: Way) -> None:
    """Any layout: pages equal the formula, tables are as they were, direct map and slot as before, no allocation."""
    machine = build_machine(layout)
    tables = table_frames(machine)
    before = {pfn: machine.memory.page(pfn) for pfn in tables}
    twin = machine.fork()
    snapshot = hibernate(twin, way)
    for pfns, content in snapshot.chunks():
        plain = ~np.isin(pfns, [*tables, *allocator_frames(machine)])
        assert np.array_equal(content[plain], formula_pages(pfns[plain]))
    for pfn, page in before.items():
        after = twin.memory.page(pfn)
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


@given(machine_layouts(), st.sampled_from([Remap(), Fixmap(), Fixmap(null_check=False), FixmapWholeRun()]))
def test_bulk_copy_equals_the_copy_page_by_page(layout: Layout, way: Way) -> None:
    """Same bytes for every page, page tables that change in the middle included; or the same crash."""
    machine = build_machine(layout)
    pfns = saveable_pages(machine).pfns()
    near = [np.abs(pfns - edge) < 3 for hole in layout.holes for edge in (hole.start_pfn, hole.end_pfn)]
    tables = list(table_frames(machine))
    machine.saveable = FrameRanges.of_pfns(pfns[np.logical_or.reduce([pfns % 61 == 0, np.isin(pfns, tables), *near])])
    bulk, single = machine.fork(), machine.fork()
    crash: MachineFault | None = None
    try:
        expected = page_by_page(single, way)
    except MachineFault as fault:
        crash = fault
    if crash is not None:
        with pytest.raises(MachineFault) as other:
            hibernate(bulk, way)
        assert (other.value.address, other.value.entry) == (crash.address, crash.entry)
        assert other.value.log[2:] == crash.log
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
    for way in (Remap(), Fixmap(), Fixmap(null_check=False), Mermap(2), FixmapWholeRun()):
        with contextlib.suppress(HibernautError):
            twin = machine_from_memory(
                machine.memory, machine.cr3, layout.levels, free=machine.allocator.free_ranges().pfns()[:20]
            )
            before = twin.fork()
            snapshot = hibernate(twin, way)
            assert len(contents(snapshot)) == saveable_pages(twin).total_pages
            same_direct_map(before, twin)
            slot_empty(twin, snapshot)


def test_plainly_present_pages_are_not_visited() -> None:
    """Only pages that are not plainly present go through the way, in ascending order."""

    class Counting(Fixmap):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[int] = []

        def safe_copy_page(self, machine: Machine, pfn: int) -> Bytes | None:
            self.seen.append(pfn)
            return super().safe_copy_page(machine, pfn)

        def copy_run(self, machine: Machine, pfn: int, nr_pages: int) -> int:
            del machine, pfn, nr_pages
            return 0

    way = Counting()
    hibernate(build_machine(Layout(RAM, holes=(hole_4k(0x2001, 2), hole_4k(0x801)))), way)
    assert way.seen == [0x801, 0x2001, 0x2002]
