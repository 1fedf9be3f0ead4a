# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole blocks out of the direct map, and their owners: the copy, the live machine and the resumed one."""

from __future__ import annotations

import numpy as np
import pytest

from hibernaut.errors import MachineFault
from hibernaut.hibernation import Remap, RemapWhole, Way, hibernate, resume, same_direct_map
from hibernaut.hibernation.invariants import Hibernation, violations_of
from hibernaut.hibernation.owners import owners_write_after_copy, owners_write_once_resumed
from hibernaut.hibernation.ways import Fixmap, FixmapWholeRun, Mermap
from hibernaut.linux.build import build_machine
from hibernaut.linux.environment import Environment
from hibernaut.linux.layout import HoleKind, HoleSpec, Layout
from hibernaut.linux.machine import Machine
from hibernaut.linux.owners import GUEST_MEMFD, VMALLOC
from hibernaut.linux.page_alloc import BuddyAllocator
from hibernaut.linux.rules import rules_named
from hibernaut.linux.set_memory import set_area_direct_map
from hibernaut.paging.entries import Level
from hibernaut.studies.questions import PROPOSED_RULES
from tests.hibernation.machines import RAM

CURES = [Fixmap(), Mermap(), FixmapWholeRun(), RemapWhole()]
AREA = HoleSpec(0x1000, 512, HoleKind.INVALID_AREA, VMALLOC)
FOLIO = HoleSpec(0x1000, 512, HoleKind.INVALID_FOLIO, GUEST_MEMFD)


class OwnersAct(Environment):
    """An environment in which every owner acts while the image is written."""

    def owner_writes(self, pfn: int) -> bool:
        """See `Environment.owner_writes`."""
        super().owner_writes(pfn)
        return True


def machine_of(*holes: HoleSpec, rules: str = PROPOSED_RULES, tables: str = "high") -> Machine:
    """Return a machine whose blocks have two pages each that are not nosave."""
    nosave = tuple((hole.start_pfn + 2, hole.pages - 2) for hole in holes)
    return build_machine(Layout(RAM, holes=holes, nosave=nosave, tables=tables), OwnersAct(), rules_named(rules))


def level_of(machine: Machine, pfn: int) -> Level:
    """Return the level of the entry of a frame."""
    found = machine.lookup_address(machine.vaddr(pfn))
    assert found is not None
    return found.level


@pytest.mark.parametrize(
    ("rules", "level"),
    [
        (PROPOSED_RULES, Level.PMD),
        ("7.3 with set_direct_map_takes_pages", Level.PTE),
        ("7.3 with resets_huge_vmalloc", Level.PTE),
        ("7.3", Level.PTE),
    ],
)
def test_an_area_is_one_entry_by_both_proposed_rules_alone(rules: str, level: Level) -> None:
    """Vmalloc has to ask for the pages at once, and the function has to take them; today each page is split off."""
    machine = machine_of(AREA, rules=rules)
    assert level_of(machine, 0x1000) == level
    set_area_direct_map(machine, 0x1000, 512, valid=True)
    assert level_of(machine, 0x1000) == level
    assert machine.read_page(machine.vaddr(0x11FF)) is not None


@pytest.mark.parametrize("hole", [AREA, FOLIO], ids=["vmalloc", "guest_memfd"])
@pytest.mark.parametrize("way", CURES, ids=lambda way: way.name)
def test_the_owner_continues_on_both_machines(way: Way, hole: HoleSpec) -> None:
    """Live and resumed: the block is present and whole again, its pages are free, and not before."""
    machine = machine_of(hole)
    twin = machine.fork()
    snapshot = hibernate(twin, way)
    owners_write_after_copy(twin)
    resumed = resume(snapshot)
    assert not resumed.allocator.free_ranges().contains(np.array([0x1000, 0x1001])).any()
    owners_write_once_resumed(resumed)
    found = resumed.lookup_address(resumed.vaddr(0x1000))
    assert found is not None
    assert (found.level, found.present) == (Level.PMD, True)
    resumed.allocator.drain_pages()
    free = resumed.allocator.free_ranges()
    assert free.contains(np.array([0x1000, 0x1001])).all()
    assert not free.contains(np.array([0x1002]))[0]  # nosave: not a page that the owner frees


@pytest.mark.parametrize("hole", [AREA, FOLIO], ids=["vmalloc", "guest_memfd"])
def test_remap_leaves_the_resumed_owner_a_table_of_garbage(hole: HoleSpec) -> None:
    """The table of the split is not in the image: the live owner continues, the resumed one's pages fault."""
    machine = machine_of(hole)
    snapshot = hibernate(machine, Remap())
    owners_write_after_copy(machine)
    with pytest.raises(MachineFault, match="clear_page, by the next user of a freed page, once resumed"):
        owners_write_once_resumed(resume(snapshot))


def test_an_owner_whose_entry_is_lost_faults_on_the_live_machine() -> None:
    """The act on the live machine can fail: an entry that is gone is ignored by CPA, and the next user faults."""
    machine = machine_of(AREA)
    hibernate(machine, Remap())
    found = machine.lookup_address(machine.vaddr(0x1000))
    assert found is not None
    machine.write_entry(found.paddr, 0)
    with pytest.raises(MachineFault, match="while the image is written"):
        owners_write_after_copy(machine)


def test_an_owner_asks_only_where_its_act_makes_a_difference() -> None:
    """One question for a block's owner, as for KFENCE; an owner that rewrites single entries is not asked about."""
    machine = machine_of(AREA)
    assert [owned.continues for owned in machine.owners] == [True]
    assert not machine.owners_need_rights
    owners_write_after_copy(machine)
    assert [str(one) for one in machine.environment.schedule] == [
        "the owner of frame 0x1000 leaves it alone while the image is written"
    ]


@pytest.mark.parametrize("way", [*CURES, Remap()], ids=lambda way: way.name)
def test_a_free_block_is_not_saved_and_not_touched(way: Way) -> None:
    """Its frames are on a free list; its entry, and the list, are what they were on the resumed machine."""
    block = HoleSpec(0x1000, 512, HoleKind.INVALID_FOLIO)
    layout = Layout(RAM, holes=(block,), unmapped=(0x1000,), tables="high")
    machine = build_machine(layout, rules=rules_named(PROPOSED_RULES))
    twin = machine.fork()
    snapshot = hibernate(twin, way)
    assert not snapshot.frames.contains(np.arange(0x1000, 0x1200)).any()
    resumed = resume(snapshot)
    assert same_direct_map(machine, resumed) == ()
    assert isinstance(resumed.allocator, BuddyAllocator)
    assert list(resumed.allocator.unmapped_blocks()) == [(0x1000, 512)]
    assert violations_of(Hibernation(machine, twin, snapshot, resumed, None)) == ()


def given_out(tables_of_free: str) -> tuple[Machine, Machine, Hibernation]:
    """Hibernate a machine by `Remap` whose second split takes a free unmapped pageblock; its entry lies on a side."""
    gib = 1 << 18
    hidden, free = HoleSpec(gib, 1024, HoleKind.INVALID_FOLIO), HoleSpec(2 * gib, 512, HoleKind.INVALID_FOLIO)
    layout = Layout(
        ((0, 0xA0), (0x100, 4 * gib - 0x100)),
        holes=(hidden, free),
        largest=Level.PUD,
        tables="low",
        tables_of=((gib, gib, "low"), (2 * gib, gib, tables_of_free)),
        mem_map="high",
        zone="high",
        pcp="high",
        free="high",
        free_pages=1,
        nosave=((gib + 1, 511), (gib + 513, 511)),
        unmapped=(2 * gib,),
    )
    machine = build_machine(layout, rules=rules_named(PROPOSED_RULES))
    twin = machine.fork()
    snapshot = hibernate(twin, Remap())
    resumed = resume(snapshot)
    return machine, resumed, Hibernation(machine, twin, snapshot, resumed, None)


def test_a_block_given_out_in_the_copy_is_free_and_not_present_in_the_image() -> None:
    """Its entry was copied before, the lists after: the resumed allocator gives out a page that faults when cleared."""
    _, resumed, done = given_out("low")
    broken = {one.invariant: one.what for one in violations_of(done) if "leaked" not in one.what}
    assert broken == {
        "lists-whole": "on a list of mapped pages, but not present in the direct map",
        "allocator-sound": "on a list of mapped pages, but not present in the direct map",
    }
    pfn = resumed.alloc_page("test")
    with pytest.raises(MachineFault, match="unable to handle page fault"):
        resumed.write_access(resumed.vaddr(pfn), "clearing the page")


def test_a_block_given_out_in_the_copy_is_consistent_where_its_entry_is_copied_later() -> None:
    """Entry and lists are both of the time after: a page leaks, an entry is another, no frame is mapped wrongly."""
    _, resumed, done = given_out("high")
    assert {one.invariant for one in violations_of(done)} == {"same-direct-map", "allocator-sound"}
    resumed.write_access(resumed.vaddr(resumed.alloc_page("test")), "clearing the page")
