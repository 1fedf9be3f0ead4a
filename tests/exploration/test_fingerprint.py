# SPDX-License-Identifier: GPL-2.0-or-later
"""The fingerprint of a dump's machine: told apart by what a run depends on; those of older files are recognized."""

from __future__ import annotations

import pytest

from hibernaut.exploration.families import Family
from hibernaut.exploration.fingerprint import fingerprint, is_fingerprint_of
from hibernaut.hibernation.source_machine import machine_from_memory
from hibernaut.linux.build import build_machine
from hibernaut.linux.environment import Replay
from hibernaut.linux.machine import Machine

OLD = (
    "5ca32d8d888a12df76d63b11a16c401e",
    "b01fc384f92361d742445fb97372f520",
    "a36b3d6505bdf8142faa009090b9884d",
)
"""As hibernaut 0.1.0 wrote them for these machines: without the scheme."""


def source(kind: int, saveable: int = 0x9F) -> Machine:
    """Return a machine on the memory of a simulated one, with one region of a kind."""
    built = build_machine(Family().choose(Replay([1, kind, 0])).layout)
    return machine_from_memory(built.memory, built.cr3, saveable=built.memory.ranges.lowest(saveable))


@pytest.mark.parametrize("kind", range(3))
def test_a_fingerprint_is_of_one_machine(kind: int) -> None:
    """Each is recognized in either scheme, and none of the others is."""
    machine = source(kind)
    assert fingerprint(machine).startswith("2:")
    assert is_fingerprint_of(fingerprint(machine), machine)
    assert [is_fingerprint_of(old, machine) for old in OLD] == [other == kind for other in range(3)]
    assert not is_fingerprint_of(fingerprint(source((kind + 1) % 3)), machine)


def test_machines_differ_by_everything_that_a_run_depends_on() -> None:
    """Another list of saveable pages, another free frame, another page table: another fingerprint."""
    machine = source(1)
    prints = {fingerprint(machine), fingerprint(source(1, 0x9E))}
    other = source(1)
    other.alloc_page("a page")
    prints.add(fingerprint(other))
    changed = source(1)
    changed.memory.write(changed.cr3 + 8, b"\1")
    prints.add(fingerprint(changed))
    assert len(prints) == 4
