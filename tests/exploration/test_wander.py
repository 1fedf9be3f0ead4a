# SPDX-License-Identifier: GPL-2.0-or-later
"""Scopes that are too large to enumerate: random walks by the proposal's way, and by ways that must be detected."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from hibernaut.exploration.families import Family
from hibernaut.exploration.layouts import RegionKind
from hibernaut.exploration.operations import HIBERNATE, Operation
from hibernaut.exploration.plan import layouts
from hibernaut.exploration.play import FamilyMachine, Written, play
from hibernaut.exploration.replay import replay, write_run
from hibernaut.exploration.run import Run
from hibernaut.hibernation.ways import MUTANTS
from hibernaut.linux.build import build_machine
from hibernaut.linux.environment import Environment, Kind
from tests.exploration.wander import THOROUGH, Violated, wanderer

WANDERING = settings(stateful_step_count=20, derandomize=not THOROUGH, report_multiple_bugs=False, print_blob=False)
FINDING = settings(WANDERING, max_examples=200, derandomize=True, phases=(Phase.generate,))
SHRINKING = settings(FINDING, phases=(Phase.generate, Phase.shrink))

PAGES = Family(regions=(1,), kinds=(RegionKind.PAGE,))


def found(folder: Path, way: str, *, how: settings) -> Violated:
    """Return the counterexample of random walks, which must exist."""
    with pytest.raises(Violated) as caught:
        run_state_machine_as_test(wanderer(way, folder=folder, wholes=False), settings=how)
    return caught.value


def test_fixmap_breaks_nothing_whatever_was_done_before(tmp_path: Path) -> None:
    """By the fixmap slot every invariant holds, after any operations, any failures, and any number of hibernations."""
    run_state_machine_as_test(wanderer("fixmap", folder=tmp_path), settings=WANDERING)


def test_remap_is_caught_and_the_run_shrinks_to_what_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Today's way violates an invariant by one hibernation with one large page not present, without a failure.

    The run is saved where `HIBERNAUT_SAVE` says, replays byte for byte, and what Hypothesis reports names it.
    """
    monkeypatch.setenv("HIBERNAUT_SAVE", str(tmp_path))
    one = found(tmp_path / "nowhere", "remap", how=SHRINKING)
    assert one.path == tmp_path / "wander-remap.json"
    played, difference = replay(one.path)
    assert difference is None
    assert played.outcome == one.outcome
    assert one.outcome.violated
    assert one.operations == (Operation(HIBERNATE, way="remap"),)
    assert played.injected == ()
    told = "\n".join(one.__notes__)
    assert f"saved run: {one.path}" in told
    assert all(line in told for line in played.lines)
    assert any("allocation 1: frame" in line for line in played.run.machine.log.lines)


@pytest.mark.parametrize("way", MUTANTS)
def test_each_mutant_is_caught(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random walks detect every way that leaves out a step, and the run that shows it can be replayed."""
    monkeypatch.setenv("HIBERNAUT_SAVE", str(tmp_path))
    one = found(tmp_path, way, how=FINDING)
    played, difference = replay(one.path)
    assert difference is None
    assert played.outcome == one.outcome
    assert any(operation.way == way for operation in one.operations)


def test_choices_after_a_resume_are_part_of_the_run(tmp_path: Path) -> None:
    """The record of a run continues on the resumed machine: a failure injected there is recorded and replayed."""
    hibernation = Operation(HIBERNATE, way="fixmap")
    operations = (Operation("alloc"), hibernation, Operation("alloc", pages=2), hibernation, Operation("alloc"))
    machine = FamilyMachine(PAGES, next(layouts(PAGES)))
    quiet = play(Written(machine, "6.1", operations, ()))
    assert [choice.kind for choice in quiet.schedule] == [Kind.ALLOCATION_FAILS, Kind.FREE_FRAME] * 4
    played = play(Written(machine, "6.1", operations, (0, 1, 0, 0, 0, 0, 1)))
    assert played.injected == ("allocation 4 fails: injected",)
    write_run(tmp_path / "run.json", played)
    assert replay(tmp_path / "run.json")[1] is None


def test_a_run_that_is_appended_to_is_the_run_with_all_operations() -> None:
    """Whether operations are known from the beginning or come one by one makes no difference, not to its digest."""
    operations = (Operation("alloc", pages=3), Operation(HIBERNATE, way="remap"), Operation("free", pages=2))
    machine = FamilyMachine(PAGES, next(layouts(PAGES)))
    played = play(Written(machine, "6.1", operations, ()))
    run = Run(build_machine(machine.chosen()[0].layout, Environment()), ())
    finished = [run.finished]
    for operation in operations:
        run.append(operation)
        finished.append(run.finished)
        run.finish()
    assert finished == [True, False, False, False]
    assert (run.outcome, run.held) == (played.run.outcome, played.run.held)
    assert run.digest() == played.run.digest()
