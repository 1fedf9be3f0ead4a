# SPDX-License-Identifier: GPL-2.0-or-later
"""What can go wrong: the table of facts/direct-map.md section 5, both ways, every row; and the mutants."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from hibernaut.errors import HibernationRefused, HibernautError, MachineFault
from hibernaut.hibernation import (
    CPU_SET_BITS,
    Fixmap,
    FixmapV1,
    Remap,
    RemapGeneric,
    RemapGenericAbort,
    RemapGenericZero,
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
from hibernaut.hibernation.checks import Violation
from hibernaut.hibernation.resume import BootKernel
from hibernaut.hibernation.ways import WAYS, FixmapNoClear, FixmapNoFlush, Mutant, RemapNoFlush, RemapNoUnmap, way_named
from hibernaut.hibernation.ways.fixmap_v1 import PREEMPTIBLE
from hibernaut.linux.build import (
    HoleSpec,
    Layout,
    build_machine,
    hole_1g,
    hole_2m,
    hole_4k,
    no_table,
    none_entries,
)
from hibernaut.linux.direct_map import FrameState
from hibernaut.linux.environment import Environment, FailAllocations
from hibernaut.linux.formula import formula_pages
from hibernaut.linux.machine import Machine
from hibernaut.linux.pgtable import KERNPG_TABLE, TableNotInSource, lookup_address, pfn_entry
from hibernaut.linux.rules import rules_named
from hibernaut.memory.physical import FrameRanges
from hibernaut.paging.entries import Entry, Level
from hibernaut.report.text import CHECK_LETTERS
from hibernaut.studies.matrix import SITUATIONS, Situation, run_cell, run_matrix

RAM = ((0, 0xA0), (0x100, 0x3F00))
GIB = 1 << 18
WARNING = "PM: hibernation: Failed to remap page"
PAGE_FAULT = "BUG: unable to handle page fault for address: "
NULL = "BUG: kernel NULL pointer dereference, address: 0000000000000000"


@dataclass(frozen=True)
class Case:
    """One row: what the direct map is like, and what each way makes of it."""

    name: str
    holes: tuple[HoleSpec, ...]
    remap: str  # "copied", or the line with which it dies
    warned: bool = False
    allocations: int = 0
    fail: tuple[int, ...] = ()
    ram: tuple[tuple[int, int], ...] = RAM
    largest: Level = Level.PMD

    def __str__(self) -> str:
        return self.name

    def machine(self) -> Machine:
        environment = FailAllocations(*self.fail) if self.fail else Environment()
        tables = "low" if self.ram is RAM else 0x1000
        layout = Layout(self.ram, holes=self.holes, largest=self.largest, tables=tables, free_pages=513)
        return build_machine(layout, environment)


BIG = ((0, 2 * GIB),)
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
    """Run one way on a twin: ("copied" or the last kind of line it dies with, the machine before, the twin after)."""
    before = case.machine()
    after = before.fork()
    died: MachineFault | None = None
    try:
        snapshot = hibernate(after, way)
    except MachineFault as fault:
        died = fault
    if died is not None:
        assert died.log == after.log.kernel_lines
        assert died.pfn == case.holes[0].start_pfn
        assert (WARNING in died.log) == case.warned
        return next(line for line in died.log if line.startswith("BUG:")), before, after
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
    pfns = saveable_pages(machine).frames()
    machine.saveable = FrameRanges.of_frames(pfns[(pfns < GIB + 3) | (pfns % 512 == 0)])
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


def test_fixmap_as_posted_dies_where_there_is_no_table() -> None:
    """v3 keeps kernel_page_present: the NULL dereference comes before the slot is used; the null check is the cure."""
    case = CASES[-1]
    assert outcome(case, Fixmap(null_check=False))[0] == NULL
    assert outcome(case, Fixmap(null_check=True))[0] == "copied"


def test_table_missing_from_the_source() -> None:
    """A PMD entry that names a table outside the source: Remap cannot know what a CPU finds; the slot needs none."""
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


@pytest.mark.parametrize("tables", ["low", "high"])
@pytest.mark.parametrize(
    ("mutant", "honest", "caught_by"),
    [
        (FixmapNoFlush(), Fixmap(), "same-data"),
        (FixmapNoClear(), Fixmap(), "slot-empty"),
        (RemapNoUnmap(), Remap(), "same-direct-map"),
        (RemapNoFlush(), Remap(), "nothing-stale"),
    ],
    ids=lambda value: value.name if isinstance(value, Way) else value,
)
def test_every_mutant_is_caught_by_its_check(mutant: Mutant, honest: Way, caught_by: str, tables: str) -> None:
    """The check that a mutant names finds it on the resumed machine, and the honest way passes them all.

    Where the tables lie above, a slot that is not cleared and a page that stays mapped are in the image, too; below, in
    the machine that goes on by itself.
    """
    machine = build_machine(Layout(RAM, holes=(hole_4k(0x801, 2), hole_4k(0x2001)), tables=tables))
    for way, expected in ((mutant, {caught_by}), (honest, set())):
        twin = machine.fork()
        snapshot = hibernate(twin, way)
        findings = (
            *check_resumed(machine, snapshot, resume(snapshot)),
            *same_direct_map(machine, twin),
            *slot_empty(twin, snapshot),
        )
        found = {violation.invariant for violation in findings}
        # A CPU that was never told forgets nothing: the slot's translation stays, too.
        assert found - ({"nothing-stale"} if way.name == "FixmapNoFlush" else set()) == expected
    assert mutant.caught_by == caught_by


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


# The verdicts of all ways in all situations, in the order of SITUATIONS: ok, or what the checks find by their letters.
EXPECTED = {
    "Remap": "ok ok A TMA A ok died died died died ok ok",
    "Fixmap": "ok ok ok ok ok ok ok ok ok ok ok ok",
    "FixmapV1": "ok ok ok ok ok ok ok died ok ok ok ok",
    "RemapGeneric": "ok ok A TMA A ok died died DTMA D ok ok",
    "RemapGenericZero": "ok ok A TMA A ok died died DTMA D ok ok",
    "RemapGenericAbort": "ok ok A TMA A ok died died refused refused ok ok",
    "RemapWhole": "ok ok ok ok ok ok died died ok ok ok ok",
    "FixmapNoFlush": "ok DX DX DX DX DX X DX DX DX D X",
    "FixmapNoClear": "ok ok ok S ok ok ok ok S ok ok ok",
    "RemapNoUnmap": "ok ok A TMA A ok died died died died ok ok",
    "RemapNoFlush": "ok X AX TMAX AX X died died died died X X",
}


@pytest.mark.parametrize("way", EXPECTED)
def test_the_whole_matrix(way: str) -> None:
    """Every way in every situation, hibernated and resumed: the table of facts/direct-map.md section 5, and more."""
    names = {way_named(name).name: name for name in WAYS}
    seen = [
        "".join(CHECK_LETTERS[check] for check in cell.failed_checks) or "ok" if cell.error is None else cell.status
        for cell in run_matrix([names[way]])
    ]
    assert " ".join(seen) == EXPECTED[way]
    assert len(seen) == len(SITUATIONS)


def situation(name: str) -> Situation:
    return next(one for one in SITUATIONS if one.name == name)


def test_the_fixmap_needs_no_luck() -> None:
    """Fixmap saves every machine as it was, in every situation, without one allocation."""
    for cell in run_matrix(["fixmap"]):
        assert (cell.result, len(cell.after.allocations)) == ("as it was", 0)


def test_a_skipped_page_is_lost_without_a_word() -> None:
    """RemapGeneric: one warning, a snapshot that succeeds, and a page with bytes that were never its own; or zeroes."""
    for way, byte in ((RemapGeneric(), None), (RemapGenericZero(), 0)):
        cell = run_cell(way, situation("2M hole, 1st allocation fails"))
        assert cell.snapshot is not None
        assert cell.snapshot.skipped.tolist() == [0x1000]
        assert WARNING in cell.after.log.kernel_lines
        assert cell.after.log.kernel_lines[-1].startswith("PM: hibernation: Image created")
        page = cell.snapshot.page(0x1000)
        assert not np.array_equal(page, formula_pages([0x1000])[0])
        assert byte is None or (page == byte).all()
    cell = run_cell(RemapGenericAbort(), situation("2M hole, 1st allocation fails"))
    assert isinstance(cell.error, HibernationRefused)
    assert (cell.error.errno, cell.error.log[-1]) == ("ENOMEM", WARNING)


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
    table that is in it, but as it was before: whatever the page held. Else the block is whole, if split.
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
    """Only the CPU that maps the slot is told: one that used it before reads another frame. v1 warned, v3 does not."""
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


def test_secret_memory_keeps_the_kernel_from_hibernating() -> None:
    """hibernation_available: not while a file of secret memory is open; nothing is printed, nothing changed."""
    machine = build_machine(Layout(RAM, holes=(hole_4k(0x801, 2),)))
    machine.secretmem_users = 1
    with pytest.raises(HibernationRefused, match="EPERM"):
        hibernate(machine, Fixmap())
    assert (len(machine.log), len(machine.memory.written)) == (0, 0)


def test_pages_for_the_image_are_allocated_before_the_list_is_fixed() -> None:
    """swsusp_alloc: they tear nothing, wherever the allocator's pages lie, and are not saved; or all is given up."""
    where = situation("2M hole, mem_map below").layout
    machine = build_machine(replace(where, holes=(hole_4k(0x801),)))
    twin = machine.fork()
    snapshot = hibernate(twin, Remap(), image_shortfall=20)
    taken = [one.pfn for one in snapshot.allocations if one.pfn is not None]
    assert len(taken) == 20
    assert not snapshot.frames.contains(taken).any()
    assert not twin.allocator.free_ranges().contains(taken).any()
    assert check_resumed(machine, snapshot, resume(snapshot)) == ()
    poor = machine.fork(FailAllocations(7))
    with pytest.raises(HibernationRefused, match="no page for the image"):
        hibernate(poor, Remap(), image_shortfall=20)
    poor.allocator.drain_pages()
    assert list(poor.allocator.free_ranges()) == list(machine.allocator.free_ranges())


def test_a_kernel_that_asked_for_null_would_fault_in_the_copy_instead() -> None:
    """The NULL check alone does not help today's way: CPA then reports success without a table, and the copy faults."""
    asks = replace(rules_named("7.3"), checks_null_pte=True)
    cell = run_cell(Remap(), situation("no table"), asks)
    assert isinstance(cell.error, MachineFault)
    assert cell.error.address == cell.before.vaddr(0x1400)
    assert run_cell(Fixmap(null_check=False), situation("no table"), asks).result == "as it was"
    with pytest.raises(HibernautError, match="L1TF"):
        build_machine(Layout(RAM), rules=replace(asks, inverts_not_present=False))


def test_what_is_not_saved() -> None:
    """saveable_page: free, nosave, offline, guard pages and reserved ones without a mapping are not on the list."""
    machine = build_machine(
        Layout(
            RAM,
            holes=(none_entries(0x1801, 2), hole_4k(0x1900)),
            nosave=((0x1000, 4),),
            offline=((0x1100, 4),),
            guard=((0x1200, 4),),
            reserved=((0x1800, 4), (0x1900, 1)),
        )
    )
    listed = saveable_pages(machine)
    gone = {*range(0x1000, 0x1004), *range(0x1100, 0x1104), *range(0x1200, 0x1204), 0x1801, 0x1802, 0x1900}
    gone |= set(machine.allocator.free_ranges().frames().tolist())
    assert set(FrameRanges.of(RAM).without(listed).frames().tolist()) == gone


def test_a_reserved_page_without_a_table_kills_the_kernel_while_it_counts() -> None:
    """kernel_page_present is asked of reserved pages, and reads through NULL where there is no table."""
    machine = build_machine(Layout(RAM, holes=(no_table(0x1400),), reserved=((0x1400, 512),)))
    with pytest.raises(MachineFault, match="counting reserved frame 0x1400"):
        hibernate(machine, Fixmap())


def test_a_torn_allocator_kills_the_resumed_machine_when_it_is_used() -> None:
    """Links copied before an allocation and list heads after it: the check finds them, and so does the next user.

    With mem_map below the block and the heads above it, a list's head names pages that do not know that they are on
    it: their links are NULL. It is the shape of the crash of 6.13-rc.
    """
    cell = run_cell(Remap(), situation("2M hole, mem_map below"))
    assert cell.failed_checks == ("allocator-sound",)
    assert any("next is NULL" in violation.what for violation in cell.violations)
    assert cell.resumed is not None

    def use(machine: Machine) -> None:
        for number in range(400):
            machine.alloc_page(f"page {number} after the resume")

    with pytest.raises(MachineFault) as fault:
        use(cell.resumed)
    assert fault.value.address < 4096
    assert fault.value.log[-4].startswith("BUG: kernel NULL pointer dereference, address: 00000000000000")


def test_no_flush_saves_the_second_page_with_the_first_ones_bytes() -> None:
    """What a stale translation does to data, exactly; an environment in which it is gone hides it."""

    class Forgets(Environment):
        def still_cached(self, vaddr: int) -> bool:
            super().still_cached(vaddr)
            return False

    machine = build_machine(Layout(RAM, holes=(hole_4k(0x801, 2),)))
    snapshot = hibernate(machine.fork(), FixmapNoFlush())
    assert np.array_equal(snapshot.page(0x801), formula_pages([0x801])[0])
    assert np.array_equal(snapshot.page(0x802), formula_pages([0x801])[0])
    assert list(snapshot.changed) == [0x802]
    lucky = hibernate(machine.fork(Forgets()), FixmapNoFlush())
    assert np.array_equal(lucky.page(0x802), formula_pages([0x802])[0])


def test_slot_is_found_in_the_saved_table_too() -> None:
    """A slot that was not zero when its table was copied is found in the image, even if it is zero afterwards."""
    machine = build_machine(Layout(RAM, holes=(hole_4k(0x801),), tables="high"))
    twin = machine.fork()
    snapshot = hibernate(twin, FixmapNoClear())
    twin.fixmap.clear_fixmap()
    assert [violation.what for violation in slot_empty(twin, snapshot)] == [
        f"slot 0 holds {pfn_entry(0x801, 0x8000000000000163):#x} in its saved table"
    ]


def test_machine_without_a_fixmap_cannot_use_the_slot() -> None:
    """The way that needs a slot says that there is none; without unmapped pages nothing is asked."""
    with pytest.raises(HibernautError, match="no fixmap"):
        hibernate(build_machine(Layout(RAM, holes=(hole_4k(0x801),), fixmap=False)), Fixmap())
    machine = build_machine(Layout(RAM, fixmap=False))
    assert hibernate(machine, Fixmap()).frames.total_pages == saveable_pages(machine).total_pages
    assert slot_empty(machine) == ()


def test_only_what_a_cpu_sets_by_itself_may_be_ignored() -> None:
    """A real machine that has run on: ACCESSED and DIRTY may differ on demand, every other bit is still a violation."""
    case = CASES[1]  # a page of its own entry
    before, after = case.machine(), case.machine()
    found = lookup_address(after.memory, after.cr3, after.levels, after.vaddr(case.holes[0].start_pfn))
    assert found is not None
    assert found.level == Level.PTE
    after.memory.write_u64(found.paddr, found.entry ^ Entry.DIRTY)
    assert len(same_direct_map(before, after)) == 1
    assert same_direct_map(before, after, ignore=CPU_SET_BITS) == ()
    for bit in (Entry.PRESENT, Entry.RW, Entry.GLOBAL, Entry.NX, 1 << 12):
        after.memory.write_u64(found.paddr, found.entry ^ bit)
        assert len(same_direct_map(before, after, ignore=CPU_SET_BITS)) == 1
