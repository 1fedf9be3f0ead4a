# SPDX-License-Identifier: GPL-2.0-or-later
"""Which invariant catches which way: the whole table, each mutant by each invariant, found by a sweep."""

from __future__ import annotations

from itertools import islice

import pytest

from hibernaut.exploration.families import Family
from hibernaut.exploration.layouts import RegionKind, Side
from hibernaut.exploration.one_machine import explore_layout
from hibernaut.exploration.plan import Sweep, layouts
from hibernaut.hibernation.invariants import INVARIANTS, TRACES, Invariant
from hibernaut.hibernation.ways import MUTANTS
from tests.exploration.wander import THOROUGH

ABOVE, BELOW = Side.ABOVE, Side.BELOW
BOTH = (ABOVE, BELOW)

SMALL = (
    Family(
        (0, 1),
        (RegionKind.PAGE, RegionKind.BLOCK, RegionKind.NONE, RegionKind.NO_TABLE, RegionKind.KFENCE),
        BOTH,
    ),
    Family((1,), (RegionKind.BLOCK,), (BELOW,), root=(ABOVE,), mem_map=(BELOW,), pcp=BOTH),
)
"""Twelve machines suffice: one region of each kind, its tables on either side; and those where the array of struct page
is copied before the region, and the heads of the lists and the fixmap's table after it."""

TWO_BLOCKS = (Family((1,), (RegionKind.GIB,), (ABOVE,)),)
"""A machine with pages to save in two blocks, for ways that map a block at once."""

TWO_ROOTS = (Family((1,), (RegionKind.BLOCK,), (ABOVE,), second_root=BOTH),)
"""Machines with a second root, for the way that forgets it."""

LARGE = (
    Family((1,), tuple(RegionKind), BOTH, root=BOTH, mem_map=BOTH, zone=BOTH, pcp=BOTH, free=BOTH),
    Family((2,), tuple(RegionKind), BOTH, remembered=(False, True)),
)
"""Hundreds; the default run takes every twentieth."""

OF_REMAP = {"no-fault", "tables-closed", "same-translations", "same-direct-map", "lists-whole", "allocator-sound"}

BROKEN: dict[str, set[str]] = {
    # for reference
    "fixmap": set(),
    "fixmap-v3": {"no-fault"},
    "remap": OF_REMAP | {"same-rights"},
    "reserved:1": {"no-fault", "same-rights", "same-direct-map"},
    # mutants
    "fixmap-no-flush": {"same-data", "nothing-stale"},
    "fixmap-no-clear": {"slot-empty"},
    "fixmap-no-map": {"no-fault"},
    "fixmap-skips": {"every-listed-page", "same-data"},
    "fixmap-bounce": {"no-fault", "lists-whole", "allocator-sound"},
    "remap-no-unmap": OF_REMAP,
    "remap-no-flush": OF_REMAP | {"same-rights", "nothing-stale"},
    "remap-whole-no-write": {"no-fault", "same-rights", "same-direct-map"},
    "remap-write-anyway": OF_REMAP | {"same-rights", "every-listed-page", "nothing-on-failure"},
    # candidates, and their mutants
    "mermap": set(),
    "fixmap-whole-run": set(),
    "mermap-no-flush": {"same-data", "nothing-stale"},
    "mermap-other-cpu": {"no-fault"},
    "fixmap-whole-run-no-flush": {"same-data", "nothing-stale"},
    "fixmap-whole-run-no-clear": {"slot-empty"},
    "remap-whole-one-root": {"no-fault", "same-translations", "same-direct-map", "same-rights"},
}
"""By way the invariants that some run of it breaks, one page being allocated after the resume; no run breaks another.

`no-fault` is broken wherever there is no table or no entry, by allocations from torn lists, and by KFENCE's write
where `same-rights` is broken.
"""


def broken(families: tuple[Family, ...], ways: tuple[str, ...], every: int = 1) -> dict[str, set[str]]:
    """By way every invariant that some run on some machine breaks; of the machines one in `every`."""
    found: dict[str, set[str]] = {way: set() for way in ways}
    for family in families:
        sweep = Sweep(family, ways, allocations_after=1)
        for layout_choices in islice(layouts(family), 0, None, every):
            for name, way in explore_layout(sweep, layout_choices).ways.items():
                assert way.cut is None
                found[name].update(*(one.outcome.violated for one in way.endings))
    return found


@pytest.fixture(scope="module")
def table() -> dict[str, set[str]]:
    """The invariants that each way breaks, over the small families."""
    found = broken(SMALL, tuple(BROKEN))
    for way, names in broken(TWO_BLOCKS, tuple(way for way in BROKEN if way.startswith("fixmap-whole-run"))).items():
        found[way] |= names
    found["remap-whole-one-root"] |= broken(TWO_ROOTS, ("remap-whole-one-root",))["remap-whole-one-root"]
    return found


@pytest.mark.parametrize("way", BROKEN)
def test_each_way_breaks_exactly_these(table: dict[str, set[str]], way: str) -> None:
    """The table, a row for each way: no invariant more, none less."""
    assert table[way] == BROKEN[way]


def test_every_mutant_is_in_the_table() -> None:
    """No mutant is left out, and an invariant that is not a trace detects each."""
    assert set(MUTANTS) <= set(BROKEN)
    assert all(BROKEN[way] - TRACES for way in MUTANTS)


@pytest.mark.parametrize("invariant", INVARIANTS)
def test_each_invariant_can_fail(invariant: str) -> None:
    """Every invariant is broken by a mutant."""
    assert any(invariant in BROKEN[way] for way in MUTANTS)


@pytest.mark.parametrize("invariant", INVARIANTS.values(), ids=lambda one: one.name)
def test_the_registry_names_the_mutants_that_break_each(invariant: Invariant) -> None:
    """The registry's mutants of an invariant are its column of the table: none more, none less."""
    assert sorted(invariant.mutants) == sorted(way for way in MUTANTS if invariant.name in BROKEN[way])


@pytest.mark.parametrize("way", MUTANTS)
def test_mutants_say_what_catches_them(way: str) -> None:
    """Each mutant names an invariant, and that one does catch it."""
    assert MUTANTS[way].caught_by in BROKEN[way]


def test_fixmap_breaks_none() -> None:
    """Through the slot every invariant holds; the proposal as posted breaks some only without a table."""
    assert BROKEN["fixmap"] == set()
    for way, kinds in (("fixmap", tuple(RegionKind)), ("fixmap-v3", tuple(set(RegionKind) - {RegionKind.NO_TABLE}))):
        assert broken((Family((1,), kinds, BOTH), Family((2,), kinds, (ABOVE,))), (way,)) == {way: set()}


def test_larger_families_add_nothing() -> None:
    """With anything on either side, and two regions, no way breaks what it does not in the small families.

    But for a pool that is too small for the machine: that is today's way with some tables reserved.
    """
    found = broken(LARGE, tuple(BROKEN), every=1 if THOROUGH else 40)
    found["reserved:1"] -= OF_REMAP
    assert {way: names - BROKEN[way] for way, names in found.items() if names - BROKEN[way]} == {}
