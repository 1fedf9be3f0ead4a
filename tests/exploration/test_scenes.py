# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs as strips: the frames that matter, the place of the copy, and the states that the run's own outcome proves."""

from __future__ import annotations

from pathlib import Path

import pytest

from hibernaut.exploration.play import Played, play
from hibernaut.exploration.replay import read_run
from hibernaut.exploration.scenes import MAX_SCENES, PlaceState, RunScenes, scenes_of
from tests.conftest import REPOSITORY

RUNS = sorted((REPOSITORY / "docs/answers").glob("*.json"))


def strip_of(name: str) -> tuple[Played, RunScenes]:
    """Return a run of the documentation, and its strip."""
    written, _ = read_run(REPOSITORY / f"docs/answers/{name}.json")
    played = play(written)
    return played, scenes_of(played)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_strip_has_the_whole_log_in_order(path: Path) -> None:
    """Every line is in one scene, places ascend as the copy does, and the cursor never goes back in a hibernation."""
    written, _ = read_run(path)
    played = play(written)
    found = scenes_of(played)
    lines = [line for scene in found.scenes for line in scene.lines]
    log = [str(line) for line in played.run.machine.log.lines]
    assert found.left_out == 0
    assert lines == log
    starts = [place.start_pfn for place in found.places]
    assert starts == sorted(starts)
    assert len(found.scenes) <= MAX_SCENES
    assert all(len(scene.states) == len(found.places) for scene in found.scenes)
    if sum(one.do == "hibernate" for one in written.operations) == 1:
        cursors = [scene.cursor for scene in found.scenes if scene.cursor is not None]
        assert cursors == sorted(cursors)


def test_a_torn_table_is_shown() -> None:
    """The table with the entry is changed before its copy; the new table is never copied, and a finding names it."""
    played, found = strip_of("remap-tears-the-image")
    names = {place.name: number for number, place in enumerate(found.places)}
    last = found.scenes[-1]
    assert last.states[names["table of region 1"]] == PlaceState.CHANGED_BEFORE
    assert last.states[names["new table 1"]] == PlaceState.NOT_LISTED
    assert found.places[names["new table 1"]].broken
    assert not found.places[names["table of region 1"]].broken
    torn = next(one for one in played.run.violations if one.invariant == "tables-closed")
    assert found.places[names["new table 1"]].start_pfn == torn.start_pfn
    assert found.scenes[0].states[names["table of region 1"]] == PlaceState.WAITS


def test_a_crash_stops_the_copy_where_it_was() -> None:
    """The cursor stays at the page of the fault; the region is not copied."""
    played, found = strip_of("remap-crashes-after-a-warning")
    assert played.outcome.status == "died"
    assert found.scenes[-1].cursor == found.places[0].start_pfn
    assert found.scenes[-1].states[0] == PlaceState.WAITS


def test_a_change_behind_the_cursor_differs_from_one_before_it() -> None:
    """A table that was reserved low is copied first and written to afterwards: the image has what it was."""
    _, found = strip_of("reserved-needs-enough-pages-above")
    states = {place.name: state for place, state in zip(found.places, found.scenes[-1].states, strict=True)}
    assert states["new table 1"] == PlaceState.CHANGED_AFTER
    assert states["table of region 1"] == PlaceState.CHANGED_BEFORE


def test_a_safe_run_has_nothing_broken() -> None:
    """By Fixmap every region is copied, and no finding names a frame."""
    played, found = strip_of("fixmap-is-safe")
    assert played.outcome.violated == ()
    assert not any(place.broken for place in found.places)
    regions = [
        state for place, state in zip(found.places, found.scenes[-1].states, strict=True) if "region" in place.name
    ]
    assert PlaceState.COPIED in regions
    assert PlaceState.WAITS not in regions


def test_a_source_is_needed_for_its_run() -> None:
    """A run that begins on the machine of a file is played on that machine alone."""
    from dataclasses import replace

    from hibernaut.exploration.play import SourceMachine

    played, _ = strip_of("fixmap-is-safe")
    foreign = replace(played, written=replace(played.written, machine=SourceMachine("a.elf", "0")))
    with pytest.raises(ValueError, match=r"machine of a\.elf"):
        scenes_of(foreign)
