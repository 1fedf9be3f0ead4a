"""What can go wrong: the table of facts/direct-map.md section 5, both ways, every row; and the mutants."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from hibernaut.errors import HibernautError, MachineFault
from hibernaut.hibernate import (
    CPU_SET_BITS,
    Fixmap,
    Remap,
    Way,
    hibernate,
    same_data,
    same_direct_map,
    slot_empty,
    tables_saved,
)
from hibernaut.hibernate.checks import Finding
from hibernaut.hibernate.ways import FixmapNoClear, FixmapNoFlush, RemapNoUnmap
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
from hibernaut.linux.environment import Environment, FailAllocations
from hibernaut.linux.formula import formula_pages
from hibernaut.linux.machine import Machine
from hibernaut.linux.pgtable import KERNPG_TABLE, TableNotInSource, lookup_address, pfn_entry
from hibernaut.paging.entries import Entry, Level

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
    machine.saveable = machine.saveable[(machine.saveable < GIB + 3) | (machine.saveable % 512 == 0)]
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
            Finding("same-data", "saved with other bytes than it held", 0x805, 1),
        )


@pytest.mark.parametrize("tables", ["low", "high"])
def test_order_of_table_and_block_decides_whether_remap_tears_the_image(tables: str) -> None:
    """Table below the block: copied before the split, consistent. Above: the saved table names one that is not."""
    machine = build_machine(Layout(RAM, holes=(hole_2m(0x1000),), tables=tables))
    table = machine.lookup_address(machine.vaddr(0x1000))
    assert table is not None
    snapshot = hibernate(machine.fork(), Remap())
    saved = snapshot.page(table.paddr >> 12)[table.paddr & 0xFFF :][:8].view("<u8")[0]
    if tables == "low":
        assert (saved, tables_saved(snapshot)) == (table.entry, ())
    else:
        taken = snapshot.allocations[0].pfn
        assert taken is not None
        assert taken not in snapshot.pfns
        assert saved == pfn_entry(taken, KERNPG_TABLE)
        assert [(finding.start_pfn, finding.pages) for finding in tables_saved(snapshot)] == [(taken, 1)]
    assert tables_saved(hibernate(machine.fork(), Fixmap())) == ()


@pytest.mark.parametrize("tables", ["low", "high"])
@pytest.mark.parametrize(
    ("mutant", "honest", "caught_by"),
    [
        (FixmapNoFlush(), Fixmap(), "same-data"),
        (FixmapNoClear(), Fixmap(), "slot-empty"),
        (RemapNoUnmap(), Remap(), "same-direct-map"),
    ],
    ids=lambda value: value.name if isinstance(value, Way) else value,
)
def test_every_mutant_is_caught_by_its_check(mutant: Way, honest: Way, caught_by: str, tables: str) -> None:
    """The check that a mutant's docstring names finds it, no other does, and the honest way passes."""
    machine = build_machine(Layout(RAM, holes=(hole_4k(0x801, 2), hole_4k(0x2001)), tables=tables))
    for way, expected in ((mutant, {caught_by}), (honest, set())):
        twin = machine.fork()
        snapshot = hibernate(twin, way)
        findings = (
            *same_data(machine.memory, snapshot),
            *same_direct_map(machine, twin),
            *slot_empty(twin, snapshot),
            *tables_saved(snapshot),
        )
        assert {finding.check for finding in findings} == expected
        assert (caught_by.replace("-", "_") in str(type(way).__doc__)) == (way is mutant)


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
    assert [finding.what for finding in slot_empty(twin, snapshot)] == [
        f"slot 0 holds {pfn_entry(0x801, 0x8000000000000163):#x} in its saved table"
    ]


def test_machine_without_a_fixmap_cannot_use_the_slot() -> None:
    """The way that needs a slot says that there is none; without unmapped pages nothing is asked."""
    with pytest.raises(HibernautError, match="no fixmap"):
        hibernate(build_machine(Layout(RAM, holes=(hole_4k(0x801),), fixmap=False)), Fixmap())
    machine = build_machine(Layout(RAM, fixmap=False))
    assert len(hibernate(machine, Fixmap()).pfns) == len(machine.saveable)
    assert slot_empty(machine) == ()


def test_only_what_a_cpu_sets_by_itself_may_be_ignored() -> None:
    """A real machine that has run on: ACCESSED and DIRTY may differ on demand, every other bit is still a finding."""
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
