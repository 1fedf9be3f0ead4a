# SPDX-License-Identifier: GPL-2.0-or-later
"""A run as a strip of pictures: the frames that matter, in the order of the copy, scene by scene.

A scene is a step of the run that logs a line or allocates a page. Its picture has the place that the copy has reached,
and of each group of frames whether it is copied, changed before or after its copy, or never copied.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from hibernaut.exploration.play import FamilyMachine, Played
from hibernaut.exploration.run import Run
from hibernaut.exploration.search import Bounds, Chooser
from hibernaut.linux.build import build_machine
from hibernaut.linux.direct_map import FrameState, frames_in_state
from hibernaut.linux.environment import Environment
from hibernaut.linux.rules import rules_named
from hibernaut.memory.page import PAGE_SHIFT
from hibernaut.memory.ranges import FrameRanges
from hibernaut.paging.entries import Level

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hibernaut.linux.machine import Machine

__all__ = ["MAX_SCENES", "PlaceKind", "PlaceState", "RunPlace", "RunScene", "RunScenes", "scenes_of"]

MAX_SCENES = 24
"""Scenes of a strip; a run with more shows its first ones and its end."""
MAX_REGIONS = 6
MAX_FINDINGS = 4
_HIDDEN = (
    FrameState.NOT_PRESENT_4K,
    FrameState.NOT_PRESENT_PLAIN,
    FrameState.NOT_PRESENT_LARGE,
    FrameState.NOT_PRESENT_LARGE_PLAIN,
)


class PlaceState(StrEnum):
    """State of a group of frames in a scene."""

    WAITS = "not copied yet"
    COPYING = "being copied"
    COPIED = "copied"
    CHANGED_BEFORE = "changed before its copy"
    CHANGED_AFTER = "changed after its copy"
    NOT_LISTED = "never copied"


class PlaceKind(StrEnum):
    """Kind of a group of frames of a strip."""

    REGION = "region"
    TABLE = "table"
    NEW_TABLE = "new table"
    NAMED = "named by a finding"


@dataclass(frozen=True)
class RunPlace:
    """A group of neighbouring frames of a strip.

    Attributes:
        start_pfn: first frame.
        pages: number of frames.
        name: its part in the run: "region 1", "table of region 1", "new table 1", "leaked".
        broken: whether a finding of the run names it.
        kind: its kind.
        level: level of the entry that takes a region out of the direct map; None of other places, and of a region
            without a table.
    """

    start_pfn: int
    pages: int
    name: str
    broken: bool
    kind: PlaceKind
    level: Level | None = None


@dataclass(frozen=True)
class RunScene:
    """A scene.

    Attributes:
        lines: log lines of the step.
        cursor: frame that the copy has reached; None if none is under way.
        states: state of each place, in the order of `RunScenes.places`.
    """

    lines: tuple[str, ...]
    cursor: int | None
    states: tuple[PlaceState, ...]


@dataclass(frozen=True)
class RunScenes:
    """A run as a strip.

    Attributes:
        places: groups of frames, ascending: the order of the copy.
        scenes: the scenes, at most `MAX_SCENES`.
        left_out: number of scenes before the last one that are left out.
    """

    places: tuple[RunPlace, ...]
    scenes: tuple[RunScene, ...]
    left_out: int


@dataclass(frozen=True)
class _Moment:
    """The copy at the end of a step."""

    lines: tuple[str, ...]
    cursor: int | None
    listed: FrameRanges | None
    written: frozenset[int]
    late: frozenset[int]


def scenes_of(played: Played, machine: Machine | None = None) -> RunScenes:
    """Return a run as a strip; it is played again, step by step.

    Args:
        played: the run.
        machine: the machine of the source, if the run begins on one; it is not changed.

    Raises:
        HibernautError: the machine of the source is missing.
    """
    begun = _machine(played, machine)
    run = Run(begun.fork(Chooser(played.written.choices, Bounds(frames=0))), played.written.operations)
    places = sorted(_places(begun, played), key=lambda place: (place.start_pfn, place.pages))
    moments = list(_moments(run))
    scenes = [
        RunScene(moment.lines, moment.cursor, tuple(_state(place, moment) for place in places)) for moment in moments
    ]
    kept = scenes if len(scenes) <= MAX_SCENES else [*scenes[: MAX_SCENES - 1], scenes[-1]]
    return RunScenes(tuple(places), tuple(kept), len(scenes) - len(kept))


def _machine(played: Played, machine: Machine | None) -> Machine:
    """Return the machine that a run begins on."""
    if isinstance(played.written.machine, FamilyMachine):
        chosen, _ = played.written.machine.chosen()
        return build_machine(chosen.layout, Environment(), rules_named(played.written.rules))
    if machine is None:
        raise ValueError(f"the run begins on the machine of {played.written.machine.name}")
    return machine


def _moments(run: Run) -> Iterator[_Moment]:
    """Yield the steps of a run that log a line; the others are a part of the next one."""
    seen, last = 0, _Moment((), None, None, frozenset(), frozenset())
    while not run.finished:
        before = run.copying
        run.advance()
        copy = run.copying or before
        if copy is not None:
            recorder = copy.recorder
            ended = run.copying is None and run.status != "died" and copy.frames is not None
            cursor = copy.frames.end if ended and copy.frames is not None else recorder.cursor
            last = _Moment((), cursor, copy.frames, frozenset(recorder.written), frozenset(recorder.kept))
        lines = [str(line) for line in run.machine.log.lines]
        if len(lines) > seen:
            yield replace(last, lines=tuple(lines[seen:]))
            seen = len(lines)


def _places(begun: Machine, played: Played) -> Iterator[RunPlace]:
    """Yield regions, the tables with their entries, new tables, and frames that findings name beside them."""
    broken = FrameRanges.of([(one.start_pfn, one.nr_pages) for one in played.run.violations])
    taken: set[int] = set()

    def place(start: int, pages: int, kind: PlaceKind, name: str, level: Level | None = None) -> RunPlace:
        taken.add(start)
        return RunPlace(start, pages, name, bool(len(FrameRanges.of([(start, pages)]).within(broken))), kind, level)

    for number, (start, pages) in enumerate(list(frames_in_state(begun.direct_map, *_HIDDEN))[:MAX_REGIONS], 1):
        entry = begun.lookup_address(begun.vaddr(start))
        yield place(start, pages, PlaceKind.REGION, f"region {number}", None if entry is None else entry.level)
        if entry is not None and entry.paddr >> PAGE_SHIFT not in taken:
            yield place(entry.paddr >> PAGE_SHIFT, 1, PlaceKind.TABLE, f"table of region {number}")
    allocations = played.run.snapshot.allocations if played.run.snapshot else played.run.machine.allocations
    for number, one in enumerate(allocations, 1):
        if one.pfn is not None and one.pfn not in taken:
            yield place(one.pfn, 1, PlaceKind.NEW_TABLE, f"new table {number}")
    for finding in played.run.violations[:MAX_FINDINGS]:
        if finding.nr_pages and finding.start_pfn and finding.start_pfn not in taken:
            yield place(finding.start_pfn, finding.nr_pages, PlaceKind.NAMED, finding.invariant)


def _state(place: RunPlace, moment: _Moment) -> PlaceState:
    """Return the state of a place in a scene; any frame of it that was written to decides first."""
    frames = range(place.start_pfn, place.start_pfn + place.pages)
    if moment.listed is not None and not len(moment.listed.within(FrameRanges.of([(place.start_pfn, place.pages)]))):
        return PlaceState.NOT_LISTED
    if any(pfn in frames for pfn in moment.late):
        return PlaceState.CHANGED_AFTER
    if any(pfn in frames for pfn in moment.written):
        return PlaceState.CHANGED_BEFORE
    if moment.cursor is None or moment.cursor <= place.start_pfn:
        return PlaceState.WAITS
    return PlaceState.COPIED if moment.cursor >= place.start_pfn + place.pages else PlaceState.COPYING
