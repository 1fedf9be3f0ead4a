# SPDX-License-Identifier: GPL-2.0-or-later
"""A second root that mirrors the direct map: tables of its own, kept by CPA like the first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.errors import HibernautError, OutOfMemory
from hibernaut.hibernation import Remap, RemapWhole, hibernate, resume
from hibernaut.hibernation.checks.tables import tables_closed
from hibernaut.hibernation.checks.translations import same_frames
from hibernaut.hibernation.page_tables import page_tables
from hibernaut.hibernation.ways import RemapWholeOneRoot
from hibernaut.linux import set_memory
from hibernaut.linux.build import build_machine
from hibernaut.linux.environment import FailAllocations
from hibernaut.linux.layout import HoleSpec, Layout, hole_2m, hole_4k
from hibernaut.linux.machine import Machine
from hibernaut.linux.rules import rules_named
from hibernaut.linux.second_root import mirror_tables
from hibernaut.paging.entries import Level

RAM = ((0, 0x4000),)
HOLES = (hole_4k(0x801, 3), hole_2m(0x1000))


def machine_of(*holes: HoleSpec, place: str = "high", levels: int = 4) -> Machine:
    """Return a machine with a second root."""
    layout = Layout(RAM, levels=levels, holes=holes, tables="low", second_root=place)
    return build_machine(layout, rules=rules_named("7.3"))


def second(machine: Machine) -> Machine:
    """Return a machine as its second root shows it."""
    view = machine.by_second_root()
    assert view is not None
    return view


def leaves(machine: Machine) -> list[tuple[Level, bytes]]:
    """Return what maps each block of RAM: its own entry, or a table of 512 smaller ones."""
    found = []
    for pfn in range(0, RAM[0][1], 512):
        entry = machine.lookup_address(machine.vaddr(pfn))
        assert entry is not None
        table = machine.memory.page(entry.paddr >> 12)
        assert table is not None
        found.append((entry.level, table.tobytes() if entry.level == Level.PTE else entry.entry.to_bytes(8, "little")))
    return found


def disagreements(machine: Machine) -> list[int]:
    """Return the blocks that the second root maps otherwise than the first."""
    both = zip(leaves(machine), leaves(second(machine)), strict=True)
    return [512 * number for number, (mine, others) in enumerate(both) if mine != others]


@pytest.mark.parametrize("levels", [4, 5])
def test_the_second_root_maps_the_same_by_tables_of_its_own(levels: int) -> None:
    """No table of the direct map is shared, all others are; every frame has the same entry, hidden ones too."""
    machine = machine_of(*HOLES, levels=levels)
    assert disagreements(machine) == []
    assert same_frames(machine, second(machine)) == ()
    for pfn in (0, 0x801, 0x1000, 0x3FFF):
        mine, others = machine.lookup_address(machine.vaddr(pfn)), second(machine).lookup_address(machine.vaddr(pfn))
        assert mine is not None
        assert others is not None
        assert mine.entry == others.entry
        assert mine.paddr != others.paddr
    assert second(machine).fixmap.paddr == machine.fixmap.paddr
    assert page_tables(second(machine)) <= page_tables(machine)


REQUESTS = st.tuples(
    st.sampled_from(["np", "p", "ro", "rw", "4k", "invalid", "default"]),
    st.integers(0x600, 0x1FFF),
    st.sampled_from([1, 2, 511, 512, 1024]),
)
CALLS = {
    "np": set_memory.set_memory_np,
    "p": set_memory.set_memory_p,
    "ro": set_memory.set_memory_ro,
    "rw": set_memory.set_memory_rw,
    "4k": set_memory.set_memory_4k,
}


def request(machine: Machine, what: str, pfn: int, pages: int) -> None:
    """Change attributes of pages."""
    if what in CALLS:
        CALLS[what](machine, machine.vaddr(pfn), pages)
    else:
        set_memory.set_direct_map_valid_noflush(machine, pfn, pages, valid=what == "default")


@given(st.lists(REQUESTS, max_size=6))
def test_any_requests_leave_both_roots_alike(requests: list[tuple[str, int, int]]) -> None:
    """Whatever is split and changed, each entry of one root is that of the other."""
    machine = machine_of(*HOLES)
    for one in requests:
        request(machine, *one)
    assert disagreements(machine) == []


def test_a_root_that_cpa_does_not_keep_is_found() -> None:
    """The series as posted changes the first root alone: the comparison sees each change, so it can fail."""
    machine = machine_of()
    root, machine.second_cr3 = machine.second_cr3, None
    request(machine, "invalid", 0x1000, 512)
    machine.second_cr3 = root
    assert disagreements(machine) == [0x1000]
    assert {one.invariant for one in same_frames(machine, second(machine))} == {"same-translations"}


def test_a_split_takes_a_page_for_each_root() -> None:
    """Two allocations where there was one; if the second fails, the first root stays changed."""
    machine = machine_of()
    request(machine, "4k", 0x1000, 1)
    assert len(machine.allocations) == 2
    other = build_machine(Layout(RAM, tables="low", second_root="high"), FailAllocations(2), rules_named("7.3"))
    with pytest.raises(OutOfMemory):
        request(other, "4k", 0x1000, 1)
    assert disagreements(other) != []


def test_remap_splits_in_both_roots_and_loses_both_tables() -> None:
    """The image lacks the tables of both; the way that resets one root alone leaves the block present in the other."""
    machine = build_machine(Layout(RAM, holes=(hole_2m(0x800),), tables="high", second_root="high"))
    snapshot = hibernate(machine.fork(), Remap())
    assert [one.what for one in tables_closed(snapshot, resume(snapshot))] == [
        "a page table that was not saved",
        "a page table of the second root, not saved",
    ]
    for way, found in ((RemapWhole(), []), (RemapWholeOneRoot(), ["mapped otherwise than before, in the second root"])):
        done = hibernate(machine.fork(), way)
        assert [one.what for one in same_frames(machine, resume(done))] == found


def test_without_room_the_layout_is_refused() -> None:
    """As many frames as tables are needed."""
    machine = machine_of()
    with pytest.raises(HibernautError, match="no frame is left"):
        mirror_tables(machine, 0x3000, 1)
