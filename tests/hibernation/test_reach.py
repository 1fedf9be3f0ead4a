# SPDX-License-Identifier: GPL-2.0-or-later
"""The audit and the copy never contradict each other, whatever the direct map of a machine has for its pages."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.errors import FormatError, HibernautError, MachineFault
from hibernaut.hibernation import Fixmap, Remap, Snapshot, Way, hibernate
from hibernaut.hibernation.audit import Audit, audit
from hibernaut.hibernation.reach import BY_FIXMAP, TODAY
from hibernaut.linux.build import build_machine
from hibernaut.linux.direct_map import FrameState
from hibernaut.linux.environment import Environment, FailAllocations
from hibernaut.linux.layout import Layout, hole_2m
from hibernaut.linux.machine import Machine
from hibernaut.paging.entries import FRAME_MASK, Entry, Level
from tests.machines import RAM
from tests.strategies import machine_layouts

P, PSE, GLOBAL = int(Entry.PRESENT), int(Entry.PSE), int(Entry.GLOBAL)
FAULTS: dict[str, Callable[[int, int], int]] = {
    "PRESENT cleared alone": lambda entry, _: entry & ~P,
    "PRESENT and GLOBAL cleared": lambda entry, _: entry & ~(P | GLOBAL),
    "PRESENT cleared, frame inverted": lambda entry, _: entry & ~(P | PSE | GLOBAL) ^ FRAME_MASK,
    "inverted, with PROTNONE": lambda entry, _: (entry & ~(P | PSE)) ^ FRAME_MASK | GLOBAL,
    "another frame": lambda entry, bits: entry ^ (1 << 21 + bits % 8),
    "another frame, not present": lambda entry, bits: (entry & ~(P | PSE | GLOBAL)) ^ FRAME_MASK ^ (1 << 21 + bits % 8),
    "a frame that the CPU cannot address": lambda entry, _: entry | 1 << 47,
    "reserved bits": lambda entry, _: entry | 1 << 14,
    "none": lambda _entry, _: 0,
    "none but for an erratum's bits": lambda _entry, _: 0x60,
    "anything": lambda _entry, bits: bits,
}


@st.composite
def damaged_machines(draw: st.DrawFn) -> Machine:
    """Machines with holes of all kinds, some of whose direct-map entries are damaged, at any level."""
    machine = build_machine(draw(machine_layouts()))
    for _ in range(draw(st.integers(1, 4))):
        pfn = draw(st.integers(0, machine.end_pfn - 1))
        path = machine.tables.walk(machine.vaddr(pfn)).steps
        step = path[-1] if draw(st.integers(0, 15)) else draw(st.sampled_from(path))
        fault = FAULTS[draw(st.sampled_from(sorted(FAULTS)))]
        machine.write_entry(step.paddr, fault(step.entry, draw(st.integers(0, (1 << 64) - 1))) % (1 << 64))
    return machine


def saved(machine: Machine, way: Way, environment: Environment) -> Snapshot | None:
    """Return the snapshot by a way; None if the kernel crashes."""
    try:
        return hibernate(machine.fork(environment), way)
    except MachineFault:
        return None


def wrong_pages(machine: Machine, snapshot: Snapshot) -> list[int]:
    """Return the pages of a snapshot with other bytes than their frame had, but for those that the copy wrote to."""
    wrong: list[int] = []
    for pfns, pages in snapshot.chunks():
        before, _ = machine.memory.gather(pfns)
        wrong += pfns[(pages.view(np.uint64) != before.view(np.uint64)).any(axis=1)].tolist()
    return sorted(set(wrong) - set(snapshot.written.tolist()))


def doubtful(found: Audit, *, fixmap: bool) -> list[int]:
    """Return the pages of which the audit says that a way is not certain to save them."""
    bad = [one.frames for one in found.classes if (one.fixmap_bad if fixmap else one.today_bad)]
    return [int(pfn) for frames in bad for pfn in frames.pfns()]


def looks_saved(machine: Machine, way: Way, pfn: int) -> bool:
    """Return whether a lost page looks saved: the copy writes to it, or the frame in its place has its bytes."""
    snapshot = saved(machine, way, Environment())
    named = machine.tables.walk(machine.vaddr(pfn)).pfn
    page = None if named is None else machine.memory.page(named)
    same = page is not None and bool((page == machine.memory.page(pfn)).all())
    return same or (snapshot is not None and pfn in snapshot.written)


@given(damaged_machines())
def test_the_audit_and_the_copy_agree(machine: Machine) -> None:
    """Each page is in one class; wrong and lost pages are doubtful ones; doubtful ones get lost if anything fails."""
    try:
        found = audit(machine)
    except (MachineFault, FormatError) as refusal:  # counting the pages crashes the kernel; or hostile tables
        with pytest.raises(type(refusal)):
            hibernate(machine.fork(), Fixmap())
        return
    assert sum(one.frames.total_pages for one in found.classes) == found.saveable_pages
    for fixmap, way in ((True, Fixmap()), (False, Remap())):
        pages = doubtful(found, fixmap=fixmap)
        whole = True
        for environment in (Environment(), FailAllocations(1)):
            snapshot = saved(machine, way, environment)
            assert snapshot is not None or pages
            wrong = [] if snapshot is None else wrong_pages(machine, snapshot)
            assert set(wrong) <= set(pages)
            whole &= snapshot is not None and not wrong
        if whole:
            depends = {"taken for a table", "not present, 4K, with RW"}
            certain = [one for one in found.classes if one.name not in depends]
            lost = [one.frames for one in certain if (one.fixmap_bad if fixmap else one.today_bad)]
            assert all(looks_saved(machine, way, int(pfn)) for frames in lost for pfn in frames.pfns())
        assert (found.safe_by_fixmap if fixmap else found.safe_today) is not bool(pages)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("fault", sorted(set(FAULTS) - {"anything"}))
def test_each_kind_of_damage(fault: str, large: bool) -> None:
    """Through a slot the page is saved unless it is present and names another, or cannot be read; today it is not."""
    machine = build_machine(Layout(RAM, holes=(hole_2m(0x2000),) if large else ()))
    pfn = 0x1200 if large else 0x80
    path = machine.tables.walk(machine.vaddr(pfn)).steps
    assert path[-1].level == (Level.PMD if large else Level.PTE)
    machine.write_entry(path[-1].paddr, FAULTS[fault](path[-1].entry, 3))
    found = audit(machine)
    classes = {one.name: one for one in found.classes if pfn in one.frames.pfns()}
    assert len(classes) == 1
    ((name, one),) = classes.items()
    snapshot = saved(machine, Fixmap(), Environment())
    right = snapshot is not None and not wrong_pages(machine, snapshot)
    assert right is not one.fixmap_bad or name == "taken for a table"
    today = [saved(machine, Remap(), environment) for environment in (Environment(), FailAllocations(1))]
    assert all(one is not None and not wrong_pages(machine, one) for one in today) is not one.today_bad or (
        name in ("taken for a table", "not present, 4K, with RW")
    )


def test_without_a_slot_the_audit_does_not_promise_one() -> None:
    """On tables without a fixmap (the root's last entry cleared) both the copy and the audit refuse the slot."""
    machine = build_machine(Layout(RAM, holes=(hole_2m(0x1000),)))
    machine.write_entry(machine.cr3 + 8 * 511, 0)
    assert not machine.has_fixmap
    found = audit(machine)
    assert [(one.name, one.fixmap, one.fixmap_bad) for one in found.classes if one.fixmap_bad] == [
        ("not present, 2M", "no free slot in the fixmap of these page tables", True)
    ]
    with pytest.raises(HibernautError):
        hibernate(machine.fork(), Fixmap())


def test_every_state_has_an_outcome() -> None:
    """A state that is added gets an outcome of each way."""
    assert set(TODAY) == set(BY_FIXMAP) == set(FrameState)
