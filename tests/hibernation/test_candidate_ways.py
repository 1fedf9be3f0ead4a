# SPDX-License-Identifier: GPL-2.0-or-later
"""Candidates for the cure: the mermap, and a block of 2 MiB by one entry; what they save, write and invalidate."""

from __future__ import annotations

import numpy as np
import pytest

from hibernaut.errors import HibernautError, MachineFault
from hibernaut.hibernation import Fixmap, Way, check_resumed, hibernate, resume, same_data, same_direct_map, slot_empty
from hibernaut.hibernation.ways import (
    MUTANTS,
    FixmapWholeRun,
    FixmapWholeRunNoClear,
    FixmapWholeRunNoFlush,
    Mermap,
    MermapNoFlush,
    MermapOtherCpu,
    way_named,
)
from hibernaut.linux.build import build_machine
from hibernaut.linux.environment import Environment, FailAllocations
from hibernaut.linux.formula import formula_pages
from hibernaut.linux.layout import Layout, hole_1g, hole_2m, hole_4k, no_table, none_entries
from hibernaut.memory.ranges import FrameRanges
from hibernaut.paging.entries import Level
from tests.hibernation.machines import BIG, GIB, RAM

HOLES = (hole_4k(0x801, 3), none_entries(0x905, 2), hole_2m(0x1000, 2), no_table(0x1400))
WAYS = [Mermap(), Mermap(3), FixmapWholeRun()]


@pytest.mark.parametrize("tables", ["low", "high"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_every_kind_of_hole_is_copied_without_an_allocation(way: Way, tables: str) -> None:
    """Entries of all kinds, every allocation failing: own bytes, no entry changed, nothing left, nothing broken."""
    machine = build_machine(Layout(RAM, holes=HOLES, tables=tables), FailAllocations(1))
    twin = machine.fork()
    snapshot = hibernate(twin, way)
    assert same_data(machine.memory, snapshot) == ()
    for hole in HOLES:
        pfns = np.arange(hole.start_pfn, hole.end_pfn)
        assert all(np.array_equal(snapshot.page(int(pfn)), formula_pages([pfn])[0]) for pfn in pfns)
    assert (twin.allocations, same_direct_map(machine, twin), slot_empty(twin, snapshot)) == ((), (), ())
    assert check_resumed(machine, snapshot, resume(snapshot)) == ()


def test_a_block_costs_one_entry_whatever_its_pages() -> None:
    """Two neighbouring blocks in one run: three writes of the PMD entry, page by page and in bulk."""
    machine = build_machine(Layout(RAM, holes=(hole_2m(0x1000, 2),)))
    for recorded in (False, True):
        twin = machine.fork()
        twin.calls = [] if recorded else None  # recorded, every page is copied by itself
        written: list[int] = []
        with twin.watching(written.append):
            hibernate(twin, FixmapWholeRun())
        assert written.count(twin.block_slot.paddr >> 12) == 3
        assert len(twin.tlb) == 0 or twin.tlb.lookup(twin.block_slot.vaddr) is None


def test_a_gib_is_mapped_block_by_block() -> None:
    """A PUD entry that is not present hides 512 blocks: each is one that a PMD entry can map."""
    machine = build_machine(Layout(BIG, holes=(hole_1g(GIB),), largest=Level.PUD, tables=0x1000))
    pfns = [GIB, GIB + 1, GIB + 512, 2 * GIB - 1]
    machine.saveable = FrameRanges.of_pfns(pfns)
    twin = machine.fork()
    snapshot = hibernate(twin, FixmapWholeRun())
    assert all(np.array_equal(snapshot.page(pfn), formula_pages([pfn])[0]) for pfn in pfns)
    assert (twin.allocations, twin.block_slot.entry) == ((), 0)


def test_the_entry_of_a_block_is_not_in_the_image() -> None:
    """The fixmap's PMD table lies above the block: its saved copy has the entry zero, since the run ended before."""
    machine = build_machine(Layout(RAM, holes=(hole_2m(0x1000),), tables="high"))
    for way, saved in ((FixmapWholeRun(), 0), (FixmapWholeRunNoClear(), 0x80000000010001E3)):
        twin = machine.fork()
        snapshot = hibernate(twin, way)
        within = twin.block_slot.paddr & 0xFFF
        assert twin.block_slot.paddr >> 12 > 0x1000
        assert int(snapshot.page(twin.block_slot.paddr >> 12)[within : within + 8].view("<u8")[0]) == saved


def test_without_a_free_pmd_entry_every_page_goes_through_the_4k_slot() -> None:
    """All three entries in use: the block is saved page by page."""
    machine = build_machine(Layout(RAM, holes=(hole_2m(0x1000),)))
    for number in range(3):
        machine.write_entry(machine.block_slot.paddr + 8 * number, 0x80000000000001E3 | 0x2000 << 12)
    machine._block_slot = None
    snapshot = hibernate(machine.fork(), FixmapWholeRun())
    assert same_data(machine.memory, snapshot) == ()
    with pytest.raises(HibernautError, match="no free PMD entry"):
        _ = machine.block_slot


def test_the_mermap_leaves_no_translation_of_a_hidden_page() -> None:
    """The last flush: the pages may be freed once the copy has ended. A mutant without it keeps the last page."""
    machine = build_machine(Layout(RAM, holes=(hole_4k(0x801, 3),)))
    for way, cached in ((Mermap(), 0), (MermapNoFlush(), 1)):
        twin = machine.fork()
        hibernate(twin, way)
        assert sum(1 for _, _, pfn, _ in twin.tlb.translations() if 0x801 <= pfn < 0x804) == cached


@pytest.mark.parametrize(
    ("way", "page", "bytes_of"),
    [(MermapNoFlush(), 0x802, 0x801), (FixmapWholeRunNoFlush(), 0x1201, 0x1001)],
    ids=["mermap", "block"],
)
def test_a_missing_flush_saves_the_bytes_of_an_earlier_page(way: Way, page: int, bytes_of: int) -> None:
    """The exact damage; where the CPU drops the stale translation by itself, there is none."""

    class Forgets(Environment):
        def still_cached(self, vaddr: int) -> bool:
            super().still_cached(vaddr)
            return False

    machine = build_machine(Layout(RAM, holes=(hole_4k(0x801, 2), hole_2m(0x1000, 2))))
    assert np.array_equal(hibernate(machine.fork(), way).page(page), formula_pages([bytes_of])[0])
    assert np.array_equal(hibernate(machine.fork(Forgets()), way).page(page), formula_pages([page])[0])


def test_another_cpus_slot_is_not_this_ones() -> None:
    """The page is mapped in the region of CPU 1; CPU 0 reads its own, where nothing is."""
    machine = build_machine(Layout(RAM, holes=(hole_4k(0x801),), cpus=2))
    with pytest.raises(MachineFault) as fault:
        hibernate(machine, MermapOtherCpu())
    assert fault.value.entry == 0
    assert fault.value.pfn == 0x801


@pytest.mark.parametrize("name", ["mermap-no-flush", "mermap-other-cpu", "fixmap-whole-run-no-flush"])
def test_the_mutants_are_derived_from_ways_that_pass(name: str) -> None:
    """Each differs from a way that is clean on the same machine, so that its defect is what is found."""
    honest = next(way for way in (Mermap(), FixmapWholeRun()) if isinstance(MUTANTS[name], type(way)))
    machine = build_machine(Layout(RAM, holes=HOLES))
    snapshot = hibernate(machine.fork(), honest)
    assert check_resumed(machine, snapshot, resume(snapshot)) == ()


def test_regions_of_the_mermap_by_name() -> None:
    """`mermap:N` is a way; too small and too large ones are refused with the bounds."""
    assert [way_named(name).name for name in ("mermap", "mermap:1", "mermap:510")] == [
        "Mermap",
        "Mermap",
        "Mermap(510)",
    ]
    for name in ("mermap:0", "mermap:511", "mermap:x"):
        with pytest.raises(HibernautError, match=r"mermap:N with a region of 1-510"):
            way_named(name)


def test_a_machine_without_a_fixmap_has_no_place_for_a_candidate() -> None:
    """One line says what is missing."""
    machine = build_machine(Layout(RAM, holes=(hole_4k(0x801),), fixmap=False))
    for way in (Fixmap(), *WAYS):
        with pytest.raises(HibernautError, match="no fixmap"):
            hibernate(machine.fork(), way)
