# SPDX-License-Identifier: GPL-2.0-or-later
"""Owners after the copy: which ways leave their entries as they were, on the live machine and on the resumed one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hibernaut.errors import MachineFault
from hibernaut.exploration import explore_source
from hibernaut.hibernation import Fixmap, Remap, hibernate, resume
from hibernaut.hibernation.audit import audit
from hibernaut.hibernation.owners import owners_write_after_copy, owners_write_once_resumed
from hibernaut.hibernation.source_machine import machine_from_memory
from hibernaut.hibernation.ways import WAYS, way_named
from hibernaut.linux.build import build_machine
from hibernaut.linux.environment import Environment, Kind, Question
from hibernaut.linux.kfence import kfence_object_pfn, kfence_pool
from hibernaut.linux.layout import Layout, hole_4k, hole_4k_np
from hibernaut.linux.machine import Machine
from hibernaut.linux.owners import UNKNOWN
from hibernaut.linux.pgtable import PRESENT, RW
from hibernaut.linux.rules import KernelRules, rules_named
from hibernaut.paging.entries import Entry
from tests.hibernation.machines import RAM
from tests.linux.witness import elf_memory

if TYPE_CHECKING:
    from tests.conftest import Golden

POOL = 0x1000
OBJECT = kfence_object_pfn(POOL, 0)
LOSE_RW = {
    "remap",
    "remap-generic",
    "remap-generic-zero",
    "remap-generic-abort",
    "remap-whole",
    "reserved",
    "remap-no-flush",
    "remap-whole-no-write",
    "remap-write-anyway",
    "remap-whole-one-root",
}
"""The ways after which a 4K entry that is not present lacks RW: those that make it default and invalid."""


class AtOnce(Environment):
    """Owners that use their pages while the image is written, and a CPU that has dropped every stale translation."""

    def decide(self, question: Question) -> int:
        """See `Environment.decide`."""
        return int(question.kind in (Kind.OWNER_WRITES, Kind.STILL_CACHED))


def machine(*, tables: str = "high", reserved: bool = False, line: str = "6.12") -> Machine:
    """Return a machine with KFENCE's pool, of which the first object is free again."""
    pages = ((POOL, 512),) if reserved else ()
    layout = Layout(RAM, holes=kfence_pool(POOL), tables=tables, reserved=pages)
    return build_machine(layout, AtOnce(), rules_named(line))


def entry(of: Machine, pfn: int) -> int:
    """Return the entry of a frame."""
    found = of.lookup_address(of.vaddr(pfn))
    assert found is not None
    return found.entry


@pytest.mark.parametrize("name", [name for name in WAYS if name not in ("fixmap-no-map", "mermap-other-cpu")])
def test_which_ways_lose_rw(name: str) -> None:
    """Remap and all that is made of it; nothing through the slot. Where RW is lost, KFENCE faults on both machines."""
    of = machine()
    before = entry(of, OBJECT)
    snapshot = hibernate(of, way_named(name))
    assert (not entry(of, OBJECT) & RW) is (name in LOSE_RW)
    assert name in LOSE_RW or name == "remap-no-unmap" or entry(of, OBJECT) == before
    resumed = resume(snapshot)
    if name not in LOSE_RW:
        owners_write_after_copy(of)
        owners_write_once_resumed(resumed)
        return
    with pytest.raises(MachineFault, match="in __kfence_alloc, while the image is written"):
        owners_write_after_copy(of)
    assert of.log.kernel_lines[-5].startswith("PM: hibernation: Image created")
    with pytest.raises(MachineFault, match="in __kfence_alloc, once resumed"):
        owners_write_once_resumed(resumed)


@pytest.mark.parametrize("line", ["6.1", "6.6", "6.12", "7.3"])
def test_the_table_decides_on_the_resumed_machine_alone(line: str) -> None:
    """A PTE table that is copied before the pool is saved with RW: only the live machine faults."""
    of = machine(tables="low", line=line)
    resumed = resume(hibernate(of, Remap()))
    owners_write_once_resumed(resumed)
    with pytest.raises(MachineFault, match="permissions violation"):
        owners_write_after_copy(of)


def test_a_pool_made_at_boot_is_left_alone() -> None:
    """Reserved pages that are not present are not saved, so Remap does not touch their entries."""
    of = machine(reserved=True)
    before = entry(of, OBJECT)
    snapshot = hibernate(of, Remap())
    assert not snapshot.frames.contains([OBJECT, OBJECT + 1])[0]
    assert snapshot.frames.contains([OBJECT + 2])[0]
    assert entry(of, OBJECT) == before
    owners_write_after_copy(of)
    owners_write_once_resumed(resume(snapshot))


def test_only_owners_that_depend_on_rights_are_asked_about() -> None:
    """Secret memory's owner sets PRESENT and RW, whatever was lost: no question, no fault. The live machine stays."""
    of = build_machine(Layout(RAM, holes=(hole_4k(0x801, 2), *kfence_pool(POOL))))
    snapshot = hibernate(of, Fixmap())
    before = entry(of, OBJECT)
    owners_write_after_copy(of)
    asked = [choice for choice in of.environment.schedule if choice.kind == Kind.OWNER_WRITES]
    assert [(choice.subject, choice.value) for choice in asked] == [(OBJECT, 0)]
    owners_write_after_copy(of.fork(AtOnce()))
    assert entry(of, OBJECT) == before
    owners_write_once_resumed(resume(snapshot))
    secret = build_machine(Layout(RAM, holes=(hole_4k(0x801, 2),)), AtOnce())
    resumed = resume(hibernate(secret, Remap()))
    owners_write_after_copy(secret)
    owners_write_once_resumed(resumed)
    assert not secret.owners_need_rights
    assert not any(choice.kind == Kind.OWNER_WRITES for choice in secret.environment.schedule)


@pytest.mark.parametrize("clears", [PRESENT, PRESENT | int(Entry.DIRTY)])
def test_a_kernel_that_kept_rw_would_be_harmless(monkeypatch: pytest.MonkeyPatch, clears: int) -> None:
    """A mutant of the kernel: an invalid that keeps RW. Remap then harms no owner, with DIRTY or without."""
    monkeypatch.setattr(KernelRules, "invalid_clears", clears)
    of = machine()
    resumed = resume(hibernate(of, Remap()))
    owners_write_after_copy(of)
    owners_write_once_resumed(resumed)


@settings(max_examples=20, deadline=None)
@given(
    freed=st.sets(st.integers(0, 254), min_size=1, max_size=6),
    tables=st.sampled_from(["low", "high"]),
    line=st.sampled_from(["6.1", "6.12", "6.15", "7.3"]),
    way=st.sampled_from(["fixmap", "fixmap-v1", "fixmap-v3"]),
)
def test_through_the_slot_no_entry_changes(freed: set[int], tables: str, line: str, way: str) -> None:
    """Any pool by any line, its frames inverted or not: all 512 entries are the same, before, after, and resumed."""
    of = build_machine(Layout(RAM, holes=kfence_pool(POOL, freed), tables=tables), AtOnce(), rules_named(line))
    before = [entry(of, POOL + page) for page in range(512)]
    resumed = resume(hibernate(of, way_named(way)))
    for each in (of, resumed):
        assert [entry(each, POOL + page) for page in range(512)] == before
    owners_write_after_copy(of)
    owners_write_once_resumed(resumed)


def test_the_audit_predicts_it() -> None:
    """Entries with RW are a class of their own, not safe today, unless an owner rewrites them or they are not saved."""
    found = audit(machine())
    classes = {one.name: one for one in found.classes}
    assert classes["not present, 4K, with RW"].frames.total_pages == 258
    assert (found.safe_today, found.safe_by_fixmap) == (False, True)
    plain = audit(machine(line="6.15"))
    assert {one.name for one in plain.classes} == {"present", "not present, 4K, plain"}
    assert (plain.safe_today, plain.safe_by_fixmap) == (False, True)
    assert audit(machine(reserved=True)).safe_today
    assert audit(build_machine(Layout(RAM, holes=(hole_4k(0x801, 2),)))).safe_today
    assert not audit(build_machine(Layout(RAM, holes=(hole_4k_np(0x801, 2),)))).safe_today


def test_a_real_machine_tells_its_owners_by_their_entries(golden: Golden) -> None:
    """6.1 with secret memory: no entry of 1 292 has RW, so no owner depends on it, and Remap leaves each as it was.

    With RW in these entries, as KFENCE would have left them, their owners are taken to restore PRESENT alone: every
    run by Remap that continues crashes, none through the slot.
    """
    memory = elf_memory(golden("ram-6.1-secretmem.elf"))
    cr3 = int(golden.expected["ram-6.1-secretmem.elf"]["cr3"], 16)
    real = machine_from_memory(memory, cr3)
    assert real.owners == ()
    holes = np.concatenate([np.arange(one.start_pfn, one.start_pfn + one.pages) for one in real.direct_map.holes])
    holes = holes[[bool(entry(real, int(pfn))) for pfn in holes]]
    assert len(holes) == 1292
    after = real.fork()
    hibernate(after, Remap())
    assert [entry(after, int(pfn)) for pfn in holes] == [entry(real, int(pfn)) for pfn in holes]
    for pfn in holes.tolist():
        found = real.lookup_address(real.vaddr(pfn))
        assert found is not None
        real.write_entry(found.paddr, found.entry | RW)
    changed = machine_from_memory(real.memory, cr3)
    assert [(owned.owner, owned.frames.total_pages) for owned in changed.owners] == [(UNKNOWN, 1292)]
    found_by = {way.name: way for way in explore_source(changed, "dump.elf", ("remap", "fixmap")).ways}
    assert found_by["fixmap"].safe
    assert not found_by["remap"].safe
    assert any(ending.outcome.crash.endswith("while the image is written") for ending in found_by["remap"].endings)
