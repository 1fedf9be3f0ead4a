# SPDX-License-Identifier: GPL-2.0-or-later
"""The mutants: the invariant that each names detects it, and the correct way passes."""

from __future__ import annotations

import numpy as np
import pytest

from hibernaut.hibernation import (
    Fixmap,
    Remap,
    Way,
    check_resumed,
    hibernate,
    resume,
    same_direct_map,
    slot_empty,
)
from hibernaut.hibernation.ways import FixmapNoClear, FixmapNoFlush, Mutant, RemapNoFlush, RemapNoUnmap
from hibernaut.linux.build import build_machine
from hibernaut.linux.environment import Environment
from hibernaut.linux.formula import formula_pages
from hibernaut.linux.layout import Layout, hole_4k
from tests.hibernation.machines import RAM


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
    the machine that continues.
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


def test_no_flush_saves_the_second_page_with_the_first_ones_bytes() -> None:
    """The exact effect of a stale translation on data; an environment that drops it hides the effect."""

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
