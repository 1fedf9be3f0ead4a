# SPDX-License-Identifier: GPL-2.0-or-later
"""Explorations from Python: results with the shortest runs, played again; and their files."""

from __future__ import annotations

from pathlib import Path

import pytest

from hibernaut.errors import HibernautError
from hibernaut.exploration import Exploration, Family, Sweep, explore_source, explore_sweep, replay
from hibernaut.exploration.layouts import RegionKind, Side
from hibernaut.exploration.sweep import Progress, run_sweep
from hibernaut.hibernation.saveable import saveable_pages
from hibernaut.hibernation.source_machine import machine_from_memory
from hibernaut.linux.build import build_machine
from hibernaut.linux.environment import Replay

FAMILY = Family(regions=(0, 1), kinds=(RegionKind.BLOCK,), tables=(Side.ABOVE,))
SWEEP = Sweep(FAMILY, ("remap", "fixmap", "reserved:1"))


@pytest.fixture(scope="module")
def found() -> Exploration:
    """An exploration of `SWEEP`."""
    return explore_sweep(SWEEP, processes=1)


def test_the_results_are_those_of_the_sweep(found: Exploration) -> None:
    """Way by way the tally of `run_sweep`; remap is not safe, reserved leaves traces only."""
    assert found.scope == SWEEP.scope
    assert found.covered
    assert {way.name: way.tally for way in found.ways} == run_sweep(SWEEP, processes=1)
    assert {way.name: way.safe for way in found.ways} == {"remap": False, "fixmap": True, "reserved:1": True}
    assert not found.safe


def test_each_ending_comes_with_its_shortest_run(found: Exploration) -> None:
    """Every outcome of a tally is an ending, whose run was played again and ended so; the shortest come first."""
    for way in found.ways:
        assert {ending.outcome for ending in way.endings} == set(way.tally.endings)
        for ending in way.endings:
            assert (ending.runs, ending.machines, ending.shortest) == way.tally.endings[ending.outcome]
            assert ending.played.outcome == ending.outcome
        ranks = [ending.shortest.rank for ending in way.endings]
        assert ranks == sorted(ranks)


def test_bad_endings_are_saved_and_replay(found: Exploration, tmp_path: Path) -> None:
    """A file for each ending that breaks an invariant, none for others; each replays the same."""
    files = found.save(tmp_path)
    assert {ending.outcome for ending in files} == {
        ending.outcome for way in found.ways for ending in way.endings if ending.outcome.violated
    }
    assert sorted(path.name for path in files.values()) == sorted(path.name for path in tmp_path.iterdir())
    for ending, path in files.items():
        again = replay(path)
        assert again.same
        assert again.played.outcome == ending.outcome


def test_a_dump_is_explored_likewise() -> None:
    """The machine of a source: one machine by each way, progress before each way and at the end."""
    built = build_machine(FAMILY.choose(Replay([1])).layout)
    machine = machine_from_memory(built.memory, built.cr3, saveable=saveable_pages(built))
    told: list[Progress] = []
    found = explore_source(machine, "dump.elf", ("remap", "fixmap"), progress=told.append)
    assert found.scope.startswith("the machine of dump.elf; ")
    assert [(way.name, way.safe, way.tally.machines) for way in found.ways] == [
        ("remap", False, 1),
        ("fixmap", True, 1),
    ]
    assert [(one.machines, one.total) for one in told] == [(0, 2), (1, 2), (2, 2)]
    with pytest.raises(HibernautError, match="no way 'fly'"):
        explore_source(machine, "dump.elf", ("fly",))
