# SPDX-License-Identifier: GPL-2.0-or-later
"""The ways to copy a page: the outcome of each for every kind of hole in the direct map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from hibernaut.errors import HibernationRefused, HibernautError, MachineFault
from hibernaut.hibernation import (
    Fixmap,
    FixmapV1,
    Remap,
    RemapWhole,
    Reserved,
    Way,
    check_resumed,
    hibernate,
    nothing_stale,
    resume,
    same_data,
    same_direct_map,
    saveable_pages,
    slot_empty,
    tables_closed,
)
from hibernaut.hibernation.checks.violation import Violation
from hibernaut.hibernation.ways.base import Way as WayBase
from hibernaut.hibernation.ways.fixmap_v1 import PREEMPTIBLE
from hibernaut.linux.build import build_machine
from hibernaut.linux.direct_map import FrameState
from hibernaut.linux.environment import Environment, FailAllocations
from hibernaut.linux.formula import formula_pages
from hibernaut.linux.layout import HoleSpec, Layout, hole_1g, hole_2m, hole_4k, no_table, none_entries
from hibernaut.linux.machine import Machine
from hibernaut.linux.pgtable import KERNPG_TABLE, TableNotInSource, pfn_entry
from hibernaut.memory.ranges import FrameRanges
from hibernaut.paging.entries import Level
from tests.hibernation.machines import BIG, GIB, RAM

WARNING = "PM: hibernation: Failed to remap page"
PAGE_FAULT = "BUG: unable to handle page fault for address: "
NULL = "BUG: kernel NULL pointer dereference, address: 0000000000000000"


@dataclass(frozen=True)
class Case:
    """One row: a kind of entry in the direct map, and the outcome of each way."""

    name: str
    holes: tuple[HoleSpec, ...]
    remap: str  # "copied", or the line of its crash
    warned: bool = False
    allocations: int = 0
    fail: tuple[int, ...] = ()
    ram: tuple[tuple[int, int], ...] = RAM
    largest: Level = Level.PMD

    def __str__(self) -> str:
        return self.name

    def machine(self) -> Machine:
        """Build the machine of this row."""
        environment = FailAllocations(*self.fail) if self.fail else Environment()
        tables = "low" if self.ram is RAM else 0x1000
        layout = Layout(self.ram, holes=self.holes, largest=self.largest, tables=tables, free_pages=513)
        return build_machine(layout, environment)


CASES = [
    Case("present", (), "copied"),
    Case("not present 4K", (hole_4k(0x801, 3),), "copied"),
    Case("not present 2M", (hole_2m(0x1000),), "copied", allocations=1),
    Case("not present 2M, no page", (hole_2m(0x1000),), PAGE_FAULT, warned=True, allocations=1, fail=(1,)),
    Case("not present 1G", (hole_1g(GIB),), "copied", allocations=513, ram=BIG, largest=Level.PUD),
    Case("not present 1G, 1st", (hole_1g(GIB),), PAGE_FAULT, True, 1, (1,), BIG, Level.PUD),
    Case("not present 1G, 2nd", (hole_1g(GIB),), PAGE_FAULT, True, 2, (2,), BIG, Level.PUD),
    Case("none, in a table", (none_entries(0x905),), PAGE_FAULT),
    Case("no table", (no_table(0x1400),), NULL),
]
ONE_GIB = [case for case in CASES if case.ram is BIG]
SMALL = [case for case in CASES if case.ram is RAM]


def outcome(case: Case, way: Way) -> tuple[str, Machine, Machine]:
    """Run one way on a twin: ("copied" or the line of its crash, the machine before, the twin after)."""
    before = case.machine()
    after = before.fork()
    crash: MachineFault | None = None
    try:
        snapshot = hibernate(after, way)
    except MachineFault as fault:
        crash = fault
    if crash is not None:
        assert crash.log == after.log.kernel_lines
        assert crash.pfn == case.holes[0].start_pfn
        assert (WARNING in crash.log) == case.warned
        return next(line for line in crash.log if line.startswith("BUG:")), before, after
    assert same_data(before.memory, snapshot) == ()
    for hole in case.holes:
        for pfn in (hole.start_pfn, hole.end_pfn - 1):
            assert np.array_equal(snapshot.page(pfn), formula_pages([pfn])[0])
    assert len(snapshot.allocations) == len(after.allocations)
    return "copied", before, after


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_remap(case: Case) -> None:
    """Today's kernels, row by row: copied, a fault with or without the warning, a NULL dereference."""
    result, before, after = outcome(case, Remap())
    assert result.startswith(case.remap)
    assert len(after.allocations) == case.allocations
    if case.remap == "copied":
        # What is left behind: RW gone from 4K entries that had it, and tables where there were large entries.
        found = same_direct_map(before, after)
        assert bool(found) == bool(case.allocations)
    elif case.remap == PAGE_FAULT:
        assert result == f"{PAGE_FAULT}{before.vaddr(case.holes[0].start_pfn):016x}"


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_fixmap(case: Case) -> None:
    """Through the slot every row is copied, without an allocation; direct map and slot are what they were."""
    result, before, after = outcome(case, Fixmap())
    assert result == "copied"
    assert after.allocations == ()
    assert same_direct_map(before, after) == ()
    assert slot_empty(after) == ()


@pytest.mark.parametrize("case", ONE_GIB, ids=str)
def test_a_1g_entry(case: Case) -> None:
    """1 GiB as one not-present entry: two allocations for the first page, then one for each of the other 511 blocks."""
    machine = case.machine()
    pfns = saveable_pages(machine).pfns()
    machine.saveable = FrameRanges.of_pfns(pfns[(pfns < GIB + 3) | (pfns % 512 == 0)])
    for way, expected in ((Remap(), case.remap), (Fixmap(), "copied")):
        twin = machine.fork()
        if expected == "copied":
            snapshot = hibernate(twin, way)
            assert np.array_equal(snapshot.page(2 * GIB - 512), formula_pages([2 * GIB - 512])[0])
            assert (len(twin.allocations), same_direct_map(machine, twin) == ()) == (
                (case.allocations, False) if isinstance(way, Remap) else (0, True)
            )
        else:
            with pytest.raises(MachineFault) as fault:
                hibernate(twin, way)
            assert fault.value.address == machine.vaddr(GIB)
            assert WARNING in fault.value.log
            assert len(twin.allocations) == case.allocations


def test_fixmap_as_posted_crashes_where_there_is_no_table() -> None:
    """v3 keeps kernel_page_present: the NULL dereference comes before the slot is used; the null check avoids it."""
    case = CASES[-1]
    assert outcome(case, Fixmap(null_check=False))[0] == NULL
    assert outcome(case, Fixmap(null_check=True))[0] == "copied"


def test_table_missing_from_the_source() -> None:
    """A PMD entry for a table outside the source: Remap cannot know the entry that a CPU reads; the slot needs none."""
    machine = build_machine(Layout(RAM))
    found = machine.lookup_address(machine.vaddr(0x1000))
    assert found is not None
    machine.write_entry(found.paddr, pfn_entry(0x99999, KERNPG_TABLE))
    for way in (Remap(), Fixmap(null_check=False)):
        with pytest.raises(TableNotInSource) as fault:
            hibernate(machine.fork(), way)
        assert (fault.value.address, fault.value.pfn) == (machine.vaddr(0x1000), 0x99999)
        assert "not in the source" in str(fault.value)
    snapshot = hibernate(machine.fork(), Fixmap())
    assert np.array_equal(snapshot.page(0x11FF), formula_pages([0x11FF])[0])


def test_an_entry_with_another_frame_saves_what_the_cpu_reads() -> None:
    """Present with a wrong frame: both ways say present and copy the frame that the entry names, as a CPU does."""
    machine = build_machine(Layout(RAM, holes=(hole_4k(0x801),)))
    found = machine.lookup_address(machine.vaddr(0x805))
    assert found is not None
    machine.write_entry(found.paddr, 0x8000000000000163 | 0x2222 << 12)
    for way in (Remap(), Fixmap()):
        twin = machine.fork()
        snapshot = hibernate(twin, way)
        assert np.array_equal(snapshot.page(0x805), formula_pages([0x2222])[0])
        assert same_data(machine.memory, snapshot) == (
            Violation("same-data", "saved with other bytes than it held", 0x805, 1),
        )


def test_whole_large_pages_are_mapped_and_reset_without_an_allocation() -> None:
    """RemapWhole leaves the entry bit for bit what it was; with one 4K entry among them it is Remap."""
    machine = build_machine(Layout(RAM, holes=(hole_2m(0x1000), hole_4k(0x1801)), tables="high"))
    twin = machine.fork()
    snapshot = hibernate(twin, RemapWhole())
    assert (check_resumed(machine, snapshot, resume(snapshot)), twin.allocations) == ((), ())
    assert same_direct_map(machine, twin) == ()


@pytest.mark.parametrize(
    ("tables", "free", "torn"), [("high", "low", True), ("high", "high", False), ("low", "low", False)]
)
def test_reserved_tables_are_enough_if_they_are_as_many_as_splits_and_lie_above(
    tables: str, free: str, torn: bool
) -> None:
    """One for each large entry keeps the copy from failing; that the image is whole also takes a page copied later.

    The reserved page is on the list. If it is copied before the split and the PMD table after it, the image names a
    table that is in it, with its earlier bytes. Else the block is whole, if split.
    """
    machine = build_machine(
        Layout(RAM, holes=(hole_2m(0x1000),), tables=tables, free=free, mem_map="high", zone="high", pcp="high")
    )
    twin = machine.fork(FailAllocations(2))  # the first fills the pool
    snapshot = hibernate(twin, Reserved(1))
    assert len(twin.allocations) == 1
    resumed = resume(snapshot)
    assert tables_closed(snapshot, resumed) == ()
    states = set(resumed.direct_map.classify(range(0x1000, 0x1200)).tolist())
    whole = {FrameState.NOT_PRESENT_LARGE if tables == "low" else FrameState.NOT_PRESENT_4K}
    assert (states != whole) is torn
    with pytest.raises(MachineFault):  # no pool: the first of the copy is the first of all
        hibernate(machine.fork(FailAllocations(1)), Reserved(0))
    with pytest.raises(HibernationRefused, match="reserved"):
        hibernate(machine.fork(FailAllocations(1)), Reserved(1))


def test_v1_warns_where_it_could_be_moved_to_another_cpu() -> None:
    """Only the CPU that maps the slot is flushed; another one reads another frame. v1 warns, v3 does not."""
    machine = build_machine(Layout(RAM, holes=(hole_4k(0x801, 2),), cpus=2))
    machine.preemptible = True
    assert FixmapV1().safe_copy_page(machine, 0x801) is not None
    assert PREEMPTIBLE in machine.log.kernel_lines
    slot = machine.fixmap
    machine.read_page(slot.set_fixmap(0x801))
    machine.cpu = 1
    slot.clear_fixmap()
    slot.set_fixmap(0x802)
    machine.cpu = 0
    assert np.array_equal(machine.read_page(slot.vaddr), formula_pages([0x801])[0])
    assert [violation.invariant for violation in nothing_stale(machine)] == ["nothing-stale"]
    quiet = build_machine(Layout(RAM, holes=(hole_4k(0x801, 2),), cpus=2))
    hibernate(quiet, FixmapV1())
    assert PREEMPTIBLE not in quiet.log.kernel_lines  # the others are offline by then


def test_machine_without_a_fixmap_cannot_use_the_slot() -> None:
    """A way that needs a slot reports that there is none; without unmapped pages no slot is needed."""
    with pytest.raises(HibernautError, match="no fixmap"):
        hibernate(build_machine(Layout(RAM, holes=(hole_4k(0x801),), fixmap=False)), Fixmap())
    machine = build_machine(Layout(RAM, fixmap=False))
    assert hibernate(machine, Fixmap()).frames.total_pages == saveable_pages(machine).total_pages
    assert slot_empty(machine) == ()


def test_ways_are_named_as_the_public_interface_names_them() -> None:
    """One class, exported by the package."""
    assert (Remap().name, Fixmap().name, Way) == ("Remap", "Fixmap", WayBase)
