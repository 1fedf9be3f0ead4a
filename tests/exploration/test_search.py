# SPDX-License-Identifier: GPL-2.0-or-later
"""The search: what it leaves out loses nothing, and what it finds is so. Witness: an enumeration run by run."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hibernaut.errors import HibernautError
from hibernaut.exploration.families import Family
from hibernaut.exploration.fingerprint import fingerprint
from hibernaut.exploration.layouts import RegionKind, Side
from hibernaut.exploration.operations import operations_of
from hibernaut.exploration.plan import Sweep, layouts
from hibernaut.exploration.play import FamilyMachine, Written, play
from hibernaut.exploration.run import Outcome, Run
from hibernaut.exploration.search import Bounds, Chooser, Explored, explore_run
from hibernaut.exploration.sweep import run_sweep
from hibernaut.hibernation.ways import WAYS
from hibernaut.linux.build import build_machine
from hibernaut.linux.environment import Environment, Kind, Replay
from tests.exploration.wander import THOROUGH, Drawn

BOTH = (Side.ABOVE, Side.BELOW)
EACH_FRAME, CLASSES = Bounds(frames=0), Bounds(frames=3)

# Five free frames: so few that each can be tried for each allocation.
ONE = Family((1,), (RegionKind.BLOCK,), BOTH, mem_map=BOTH, zone=BOTH, pcp=BOTH, free=BOTH, free_pages=5)
TWO = Family((2,), (RegionKind.BLOCK,), BOTH, mem_map=BOTH, free=BOTH, free_pages=5)
HEADS_ABOVE = replace(ONE, zone=(Side.ABOVE,))
LARGE = Family((1,), (RegionKind.GIB,), BOTH, mem_map=BOTH, free=BOTH, free_pages=5)
SCOPES = [
    *((ONE, way) for way in ("remap", "fixmap", "reserved:1")),
    (HEADS_ABOVE, "fixmap-bounce"),
    *((TWO, way) for way in ("remap", "fixmap", "reserved:1")),
    (LARGE, "remap"),
]


def run_of(family: Family, layout_choices: tuple[int, ...], way: str, allocations_after: int = 0) -> Run:
    """Return the run of one machine of a family, not yet begun."""
    chosen = family.choose(Replay(layout_choices))
    machine = build_machine(chosen.layout, Environment())
    return Run(machine, operations_of(chosen, way, allocations_after))


def runs_of(family: Family, way: str, allocations_after: int = 0) -> Iterator[Run]:
    """Yield the run of each machine of a family."""
    for layout_choices in layouts(family):
        yield run_of(family, layout_choices, way, allocations_after)


# --- what is left out --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "way"), SCOPES, ids=lambda one: one if isinstance(one, str) else None)
def test_one_frame_of_each_class_is_enough(family: Family, way: str) -> None:
    """A hibernation and its resume end in the same ways whether each free frame is tried or one of each class."""
    ended = set()
    for run in runs_of(family, way):
        every, some = explore_run(run, EACH_FRAME), explore_run(run, CLASSES)
        assert set(every.futures) == set(some.futures)
        assert every.runs >= some.runs
        ended |= set(every.futures)
    assert (len(ended) > 1) == (way != "fixmap")


@pytest.mark.parametrize("way", ["remap", "fixmap-bounce"])
def test_the_ends_of_a_torn_list_decide_which_allocation_crashes(way: str) -> None:
    """The same for allocations after the resume: the neighbours on a page's list decide, so its ends are tried."""
    for run in runs_of(HEADS_ABOVE, way, allocations_after=1):
        assert set(explore_run(run, EACH_FRAME).futures) == set(explore_run(run, CLASSES).futures)


# --- merging -----------------------------------------------------------------------------------------------------


def one_by_one(run: Run, bounds: Bounds) -> dict[Outcome, tuple[int, int]]:
    """(number of runs, fewest deviations) by outcome: every run from the start, nothing merged.

    The frames are all of them, or only the one that the kernel takes.
    """
    found: dict[Outcome, tuple[int, int]] = {}
    prefixes: list[tuple[int, ...]] = [()]
    while prefixes:
        prefix = prefixes.pop()
        twin = run.fork(Replay(prefix))
        twin.finish()
        schedule = twin.machine.environment.schedule
        indices = tuple(choice.index for choice in schedule)
        runs, deviations = found.get(twin.outcome, (0, len(indices)))
        found[twin.outcome] = runs + 1, min(deviations, sum(map(bool, indices)))
        failed = sum(one.index for one in schedule[: len(prefix)] if one.kind == Kind.ALLOCATION_FAILS)
        for at, choice in list(enumerate(schedule))[len(prefix) :]:
            if choice.kind == Kind.FREE_FRAME and bounds.frames:
                continue
            if choice.kind == Kind.ALLOCATION_FAILS and bounds.failures is not None and failed >= bounds.failures:
                continue
            prefixes += [(*indices[:at], other) for other in range(1, choice.options)]
    return found


MERGED = [
    ((RegionKind.PAGE, RegionKind.BLOCK), "remap", Bounds(frames=0)),
    ((RegionKind.BLOCK, RegionKind.BLOCK), "remap", Bounds(frames=0)),
    ((RegionKind.BLOCK, RegionKind.GIB), "remap", Bounds()),
    ((RegionKind.BLOCK, RegionKind.GIB), "remap", Bounds(failures=1)),
    ((RegionKind.BLOCK, RegionKind.PAGE), "reserved:1", Bounds(frames=0)),
    ((RegionKind.BLOCK, RegionKind.BLOCK), "reserved:3", Bounds()),
    ((RegionKind.PAGE, RegionKind.BLOCK), "fixmap-bounce", Bounds()),
    ((RegionKind.BLOCK,), "fixmap-bounce", Bounds(frames=0)),
    ((RegionKind.PAGE, RegionKind.BLOCK), "fixmap-no-flush", Bounds()),
    ((RegionKind.BLOCK, RegionKind.NONE), "remap-no-flush", Bounds()),
    ((RegionKind.BLOCK, RegionKind.GIB), "remap-write-anyway", Bounds(frames=0, failures=1)),
    ((RegionKind.GIB, RegionKind.MIXED), "remap-generic-zero", Bounds()),
    ((RegionKind.BLOCK, RegionKind.NO_TABLE), "fixmap", Bounds(frames=0)),
]


@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize(("kinds", "way", "bounds"), MERGED, ids=str)
def test_merging_equal_states_loses_no_run(kinds: tuple[RegionKind, ...], way: str, bounds: Bounds, after: int) -> None:
    """Outcomes, runs of each and fewest deviations are those of an enumeration that executes every run by itself."""
    for run in machines_of(kinds, way, after):
        found, expected = explore_run(run, bounds), one_by_one(run, bounds)
        assert {one: (best.runs, best.deviations) for one, best in found.futures.items()} == expected
        assert found.runs == sum(runs for runs, _ in expected.values())
        assert found.cut is None


def machines_of(kinds: tuple[RegionKind, ...], way: str, after: int) -> Iterator[Run]:
    """Regions of these kinds, the tables of all above or the first one's below; four free frames."""
    family = Family((len(kinds),), tuple(dict.fromkeys(kinds)), BOTH, zone=(Side.BELOW,), free_pages=4)
    for layout_choices in layouts(family):
        regions = family.choose(Replay(layout_choices)).regions
        if tuple(region.kind for region in regions) == kinds and all(one.tables == Side.ABOVE for one in regions[1:]):
            yield run_of(family, layout_choices, way, after)


# --- what is found -----------------------------------------------------------------------------------------------

ANY = Family(
    (1, 2, 0),
    tuple(RegionKind),
    BOTH,
    root=BOTH,
    mem_map=BOTH,
    zone=BOTH,
    pcp=BOTH,
    free=BOTH,
    cpus=(1, 2),
    remembered=(False, True),
    free_pages=8,
)


@settings(max_examples=500 if THOROUGH else 25, derandomize=not THOROUGH)
@given(
    data=st.data(),
    way=st.sampled_from([*WAYS, "reserved:2"]),
    after=st.integers(0, 2),
    failures=st.sampled_from((None, 1)),
    frames=st.sampled_from((1, 2)),
)
def test_each_verdict_has_a_run(data: st.DataObject, way: str, after: int, failures: int | None, frames: int) -> None:
    """For every outcome the choices that come with it, played from the beginning, lead to exactly that outcome."""
    asked = Drawn(data)
    chosen = ANY.choose(asked)
    layout_choices = tuple(choice.index for choice in asked.schedule)
    operations = operations_of(chosen, way, after)
    run = Run(build_machine(chosen.layout, Environment()), operations)
    found = explore_run(run, Bounds(failures=failures, frames=frames, states=400))
    assert found.futures
    for outcome, best in found.futures.items():
        played = play(Written(FamilyMachine(ANY, layout_choices), "6.1", operations, best.choices()))
        assert played.outcome == outcome
        assert sum(bool(choice.index) for choice in played.schedule) == best.deviations


def test_bounds_are_kept() -> None:
    """No allocation fails, or one of a run at most; with more it is more runs, none of the others lost."""
    by_failures: dict[int | None, Explored] = {}
    for failures in (0, 1, 2, None):
        run = next(machines_of((RegionKind.BLOCK, RegionKind.GIB), "remap-generic", 0))
        by_failures[failures] = explore_run(run, Bounds(failures=failures))
        for best in by_failures[failures].futures.values():
            chooser = Chooser(best.choices(), EACH_FRAME)
            run.fork(chooser).finish()
            schedule = chooser.schedule
            failed = sum(choice.index for choice in schedule if choice.kind == Kind.ALLOCATION_FAILS)
            assert failures is None or failed <= failures
    runs = [found.runs for found in by_failures.values()]
    assert runs == sorted(set(runs))
    assert by_failures[0].runs == 1
    outcomes = [set(found.futures) for found in by_failures.values()]
    assert outcomes[0] < outcomes[1] <= outcomes[2] <= outcomes[3]


@pytest.mark.parametrize("states", [1, 2, 5])
def test_a_search_that_is_cut_says_where(states: int) -> None:
    """The search ends after the given number of states and reports it; its outcomes until then are correct."""
    run = next(machines_of((RegionKind.BLOCK, RegionKind.GIB), "remap", 0))
    whole, part = explore_run(run), explore_run(run, Bounds(states=states))
    assert whole.cut is None
    assert whole.states > 2 * states - 1
    assert part.cut is not None
    assert part.cut.startswith(f"after {states} states")
    assert part.states <= states + 1
    assert set(part.futures) <= set(whole.futures)
    assert part.runs < whole.runs


def test_the_number_of_states_is_exact() -> None:
    """Runs, states and steps of two ways on all machines of one or two large regions, as they always were.

    A digest that told equal states apart would have more states, one that confused states fewer.
    """
    family = Family(regions=(1, 2), kinds=(RegionKind.BLOCK, RegionKind.GIB))
    tallies = run_sweep(Sweep(family, ("remap", "fixmap")), processes=1)
    counts = {way: (tally.runs, tally.states, tally.steps) for way, tally in tallies.items()}
    assert counts == {"remap": (92, 184, 182), "fixmap": (20, 94, 74)}


def cycles_of_a_search() -> int:
    """Search runs of which some crash, and return the number of objects that only a look for cycles would free."""
    start = next(runs_of(Family(regions=(1,), kinds=(RegionKind.BLOCK,)), "remap"))
    explore_run(start)  # what is kept by modules and memos is made
    gc.collect()
    gc.disable()
    try:
        explore_run(start)
        return gc.collect()
    finally:
        gc.enable()


def test_a_search_makes_no_reference_cycles(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not look for any, and would keep them: those of a fault that holds its run are many."""
    assert cycles_of_a_search() == 0
    assert gc.isenabled()
    monkeypatch.setattr("hibernaut.exploration.run._without_frames", lambda error: error)
    assert cycles_of_a_search() > 100


def test_the_state_that_a_search_begins_with_is_not_changed() -> None:
    """A second search from the same state finds the same."""
    run = next(machines_of((RegionKind.BLOCK, RegionKind.BLOCK), "remap", 2))
    digest = run.digest()
    first, second = explore_run(run), explore_run(run)
    assert first == second
    assert run.digest() == digest


@pytest.mark.parametrize("bounds", [{"failures": -1}, {"frames": -1}, {"states": 0}])
def test_bounds_that_cannot_be(bounds: dict[str, int]) -> None:
    """A negative number is refused, and a search without any state."""
    with pytest.raises(HibernautError, match="must not be negative"):
        Bounds(**bounds)


def test_every_layout_of_a_family_is_another_machine() -> None:
    """Six kinds of region of 4K, 2M and 1G, tables above or below: 6^n machines of n regions, no two of them alike."""
    family = Family((0, 1, 2, 3), (RegionKind.PAGE, RegionKind.BLOCK, RegionKind.GIB), BOTH)
    listed = list(layouts(family))
    assert len(set(listed)) == len(listed) == 1 + 6 + 36 + 216
    regions = [family.choose(Replay(layout_choices)).regions for layout_choices in listed]
    assert len(set(regions)) == len(listed)
    small = [
        family.choose(Replay(layout_choices)).layout
        for layout_choices, own in zip(listed, regions, strict=True)
        if len(own) < 3
    ]
    prints = {fingerprint(build_machine(layout)) for layout in small}
    assert len(prints) == len(small) == 1 + 6 + 36
