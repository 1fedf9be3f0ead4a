# SPDX-License-Identifier: GPL-2.0-or-later
"""Families of machines: every table where it was asked to lie, every region what it was asked to be."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from hibernaut.errors import HibernautError
from hibernaut.exploration.families import MOST_REGIONS, SAVED_PAGES, ChosenMachine, Family, Region, region_named
from hibernaut.exploration.layouts import RegionKind, Side, Structure
from hibernaut.exploration.plan import layouts
from hibernaut.hibernation.saveable import saveable_pages
from hibernaut.linux.build import build_machine
from hibernaut.linux.direct_map import FrameState
from hibernaut.linux.environment import Replay
from hibernaut.linux.machine import Machine
from hibernaut.linux.page_alloc import BuddyAllocator
from hibernaut.linux.rules import rules_named
from hibernaut.paging.entries import Level
from hibernaut.paging.spans import Stop
from hibernaut.studies.questions import PROPOSED_RULES

BOTH = (Side.ABOVE, Side.BELOW)
LEVELS = {
    RegionKind.PAGE: (Stop.NOT_PRESENT, Level.PTE),
    RegionKind.BLOCK: (Stop.NOT_PRESENT, Level.PMD),
    RegionKind.GIB: (Stop.NOT_PRESENT, Level.PUD),
    RegionKind.MIXED: (Stop.NOT_PRESENT, Level.PTE),
    RegionKind.NONE: (Stop.NONE, Level.PTE),
    RegionKind.NO_TABLE: (Stop.NONE, Level.PMD),
    RegionKind.KFENCE: (Stop.NOT_PRESENT, Level.PTE),
    RegionKind.KFENCE_AT_BOOT: (Stop.NOT_PRESENT, Level.PTE),
    RegionKind.VMALLOC: (Stop.NOT_PRESENT, Level.PMD),
    RegionKind.UNMAPPED: (Stop.NOT_PRESENT, Level.PMD),
    RegionKind.UNMAPPED_FREE: (Stop.NOT_PRESENT, Level.PMD),
}
RULES = rules_named(PROPOSED_RULES)
"""By these every kind is what it is named after; 6.1 has 4K entries in place of whole blocks."""


def machines(family: Family) -> list[tuple[ChosenMachine, Machine]]:
    """Return every machine of a family, as chosen and as built."""
    machines = [family.choose(Replay(layout_choices)) for layout_choices in layouts(family)]
    return [(chosen, build_machine(chosen.layout, rules=RULES)) for chosen in machines]


def tables_on_the_way(machine: Machine, pfn: int) -> list[int]:
    """Frames of the tables below the root."""
    return [step.table_pfn for step in machine.tables.walk(machine.vaddr(pfn)).steps][1:]


def check(chosen: ChosenMachine, machine: Machine) -> None:
    """Check that the regions, tables and structures of a machine lie where the family's choices put them."""
    regions = chosen.regions
    lowest, highest = regions[0].start_pfn, regions[-1].start_pfn + Level.PUD.pages
    saved = saveable_pages(machine)
    for region in regions:
        walk = machine.tables.walk(machine.vaddr(region.start_pfn))
        assert (walk.stop, walk.level) == LEVELS[region.kind]
        for table in tables_on_the_way(machine, region.start_pfn):
            assert (table < lowest) if region.tables == Side.BELOW else (table >= highest)
        inside = [pfn for pfn in region.saved if saved.contains([pfn])[0]]
        assert tuple(inside) == region.saved
        span = range(region.start_pfn, region.start_pfn + Level.PMD.pages)
        pages = (RegionKind.PAGE, RegionKind.NONE, RegionKind.GIB, RegionKind.UNMAPPED)
        whole = region.kind not in pages
        assert not whole or sum(saved.contains(list(span))) == SAVED_PAGES[region.kind]
    allocator = machine.allocator
    assert isinstance(allocator, BuddyAllocator)
    blocks = allocator.unmapped_blocks()
    assert [pfn for pfn, _ in blocks] == [one.start_pfn for one in regions if one.kind == RegionKind.UNMAPPED_FREE]
    places = {
        Structure.ROOT: machine.cr3 >> 12,
        Structure.MEM_MAP: allocator.places.mem_map >> 12,
        Structure.ZONE: allocator.places.zone >> 12,
        Structure.PCP: allocator.places.pcps[0] >> 12,
        Structure.FREE: int(allocator.free_ranges().without(blocks).starts[0]),
    }
    for structure, pfn in places.items():
        assert (pfn < lowest) if chosen.where[structure] == Side.BELOW else (pfn >= highest), structure


def test_every_kind_with_its_tables_on_either_side() -> None:
    """One and two regions of every kind: the walk stops where it must, in tables where they must be."""
    for chosen, machine in machines(Family(regions=(1, 2), kinds=tuple(RegionKind))):
        check(chosen, machine)


@pytest.mark.parametrize("count", [3, 4])
def test_many_regions_have_tables_of_their_own(count: int) -> None:
    """Three or four regions of 1 GiB, whose tables lie on any side each: eight or sixteen machines, all different."""
    found = machines(Family(regions=(count,), kinds=(RegionKind.GIB,)))
    for chosen, machine in found:
        check(chosen, machine)
    assert {tuple(region.tables for region in chosen.regions) for chosen, _ in found} == set(
        itertools.product(BOTH, repeat=count)
    )


def test_the_kernels_own_pages_lie_where_they_are_asked_to() -> None:
    """All 32 combinations of places, one region, three and four."""
    family = Family(
        regions=(1, 3, 4),
        kinds=(RegionKind.BLOCK,),
        tables=(Side.ABOVE,),
        root=BOTH,
        mem_map=BOTH,
        zone=BOTH,
        pcp=BOTH,
        free=BOTH,
    )
    found = machines(family)
    assert len(found) == 3 * 32
    for chosen, machine in found:
        check(chosen, machine)


def test_without_regions_nothing_is_asked_about_sides() -> None:
    """A machine without regions is one machine, whatever the family varies."""
    family = Family(regions=(0,), mem_map=BOTH, pcp=BOTH, cpus=(1, 2), remembered=(False, True))
    assert list(layouts(family)) == [(0,)]


def test_a_pool_has_an_object_that_is_free_again_and_one_in_use() -> None:
    """At run time a guard page, the free object, its guard page and the other object are saved; at boot the last alone.

    Both pools have owners whose write depends on RW; only the first has pages that Remap changes.
    """
    for kind, saved in ((RegionKind.KFENCE, (1, 2, 3, 4)), (RegionKind.KFENCE_AT_BOOT, (4,))):
        ((chosen, machine),) = machines(Family(regions=(1,), kinds=(kind,), tables=(Side.ABOVE,)))
        start = chosen.regions[0].start_pfn
        pages = machine.direct_map.classify([start + page for page in range(6)]).tolist()
        absent = FrameState.NOT_PRESENT_4K
        assert pages == [absent, absent, absent, absent, FrameState.PRESENT, absent]
        assert chosen.regions[0].saved == tuple(start + page for page in saved)
        assert chosen.needs_rights
        assert machine.owners_need_rights
        assert [owned.frames.total_pages for owned in machine.owners if owned.needs_rights] == [1]
    assert not Family().choose(Replay([1])).needs_rights


def test_marks_and_refills_are_asked_for_where_a_family_has_them() -> None:
    """Two marks and two batches make four machines, whose zone and lists have them; without regions there is one."""
    family = Family((1,), (RegionKind.PAGE,), (Side.ABOVE,), free_pages=9, min_mark=(0, 7), batch=(63, 1))
    found = []
    for chosen, machine in machines(family):
        assert isinstance(machine.allocator, BuddyAllocator)
        places = machine.allocator.places
        words = [machine.memory.read_u64(places.wmark_min), (machine.memory.read_u64(places.pcps[0] + 8) or 0) >> 32]
        assert words == [chosen.layout.min_mark, chosen.layout.batch]
        found.append(tuple(words))
    assert found == [(0, 63), (7, 63), (7, 1), (0, 1)]
    assert list(layouts(replace(family, regions=(0,)))) == [(0,)]
    ((_, plain),) = machines(replace(family, min_mark=(), batch=()))
    assert isinstance(plain.allocator, BuddyAllocator)
    assert plain.allocator.places.wmark_min == 0


def test_kinds_have_words() -> None:
    """Every kind is found by its word, and a region says what it is."""
    assert [region_named(kind.word) for kind in RegionKind] == list(RegionKind)
    assert str(Region(RegionKind.BLOCK, Side.BELOW, 0)) == "2m:below"
    assert str(Region(RegionKind.NO_TABLE, Side.BELOW, 0)) == "no-table"
    assert MOST_REGIONS == 4


def test_families_that_cannot_be() -> None:
    """Nothing to choose from, something twice, numbers out of bounds: refused."""
    for fields in (
        {"regions": ()},
        {"regions": (1, 1)},
        {"regions": (5,)},
        {"kinds": ()},
        {"cpus": (0,)},
        {"free_pages": 0},
        {"free_pages": 5000},
        {"min_mark": (-1,)},
        {"min_mark": (5, 5)},
        {"min_mark": (4097,)},
        {"batch": (0,)},
        {"batch": (2049,)},
        {"min_mark": (1,), "kinds": (RegionKind.UNMAPPED_FREE,)},
    ):
        with pytest.raises(HibernautError, match="; expected "):
            Family(**fields)


def test_a_scope_counts_as_english_does() -> None:
    """One CPU, two regions, a span of neighbouring numbers, and others with "or"."""
    assert Family(regions=(1,)).scope.startswith("1 region of 4k, 2m, 1g; tables above or below; ")
    assert "; 1 CPU; " in Family().scope
    assert Family(regions=(0, 1, 2, 3), cpus=(1, 2)).scope.startswith("0-3 regions of ")
    assert "; 1-2 CPUs; " in Family(cpus=(1, 2)).scope
    assert Family(regions=(0, 3)).scope.startswith("0 or 3 regions of ")
    assert Family(min_mark=(1,), batch=(63, 3)).scope.endswith("; min mark of 1 page; refills of 63 or 3 pages")
    assert Family(min_mark=(2, 0, 1)).scope.endswith("; min mark of 0-2 pages")
