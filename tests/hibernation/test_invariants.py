# SPDX-License-Identifier: GPL-2.0-or-later
"""The registry of invariants: complete, unambiguous, documented; the matrix asks those with a letter."""

from __future__ import annotations

from pathlib import Path

from hibernaut.hibernation import Fixmap, Remap, hibernate, resume
from hibernaut.hibernation.invariants import INVARIANTS, TRACES, Hibernation, check_resumed, violations_of
from hibernaut.hibernation.ways import MUTANTS, RemapGeneric
from hibernaut.linux.build import build_machine
from hibernaut.linux.environment import FailAllocations
from hibernaut.linux.layout import Layout, hole_2m

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
LAYOUT = Layout(((0, 0xA0), (0x100, 0x3F00)), holes=(hole_2m(0x1000),), tables="high")


def test_every_entry_is_known_by_its_name() -> None:
    """Twelve entries; six have a letter, each its own; three are traces; their mutants exist."""
    assert [one.name for one in INVARIANTS.values()] == list(INVARIANTS)
    assert len(INVARIANTS) == 12
    assert "".join(one.letter or "" for one in INVARIANTS.values()) == "DTMASX"
    assert {"same-rights", "same-direct-map", "allocator-sound"} == TRACES
    assert {mutant for one in INVARIANTS.values() for mutant in one.mutants} == set(MUTANTS)


def test_every_entry_is_documented() -> None:
    """One page lists all invariants, each with its meaning, in the order of the registry."""
    rows = "".join(f"| `{one.name}` | {one.meaning} |\n" for one in INVARIANTS.values())
    assert sum(rows in page.read_text() for page in DOCS.rglob("*.md")) == 1


def test_the_matrix_asks_the_invariants_with_a_letter() -> None:
    """On a torn image `check_resumed` finds what those invariants find, and nothing of the others."""
    machine = build_machine(LAYOUT)
    snapshot = hibernate(machine.fork(), Remap())
    resumed = resume(snapshot)
    asked = {name for name, one in INVARIANTS.items() if one.letter}
    found = check_resumed(machine, snapshot, resumed)
    assert found == violations_of(Hibernation(machine, snapshot.machine, snapshot, resumed, None), asked)
    assert {one.invariant for one in found} == {"tables-closed", "same-direct-map", "allocator-sound"}
    every = violations_of(Hibernation(machine, snapshot.machine, snapshot, resumed, None))
    assert {one.invariant for one in every} - asked == {"same-translations"}


def test_a_skipped_page_has_wrong_bytes_in_the_matrix() -> None:
    """The matrix has no letter for `every-listed-page`: a page that was not copied is a violation of `same-data`."""
    machine = build_machine(LAYOUT)
    snapshot = hibernate(machine.fork(FailAllocations(1)), RemapGeneric())
    found = check_resumed(machine, snapshot, resume(snapshot))
    assert [str(one) for one in found if "not copied" in one.what] == [
        "same-data: was not copied at all: 1 page from frame 0x1000"
    ]


def test_invariants_of_resumed_machines_do_not_apply_to_others() -> None:
    """Of a hibernation without an image only the other three are asked, and they hold of an intact machine."""
    machine = build_machine(LAYOUT)
    before = machine.fork()
    assert violations_of(Hibernation(before, machine, None, None, None)) == ()
    snapshot = hibernate(machine, Fixmap())
    assert violations_of(Hibernation(before, machine, snapshot, None, None)) == ()
