# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs as strips in a terminal: the states of the strip, any width, plain signs, a legend for each sign, no colour."""

from __future__ import annotations

import re
from functools import cache

import pytest

from hibernaut.exploration.play import play
from hibernaut.exploration.replay import read_run
from hibernaut.exploration.scenes import PlaceKind, PlaceState, RunPlace, RunScene, RunScenes, scenes_of
from hibernaut.hibernation import way_named
from hibernaut.report.frame_picture import StyledLine
from hibernaut.report.machines import cell_document
from hibernaut.report.run_picture import (
    _KINDS,
    _LEVELS,
    _NO_TABLE,
    BROKEN,
    CURSOR,
    MIN_WIDTH,
    STATES,
    demo_pictures,
    run_legend,
    run_picture,
)
from hibernaut.studies.demo import demo_scenes
from hibernaut.studies.matrix import SITUATIONS, run_cell
from tests.cli.run import hibernaut, refused
from tests.conftest import REPOSITORY, Golden

RUNS = sorted(path.stem for path in (REPOSITORY / "docs/answers").glob("*.json"))
SMALL = ("explore", "--layout", "kinds=2m", "--layout", "tables=above", "--via", "remap,fixmap")
ROW = re.compile(r"^(?: ?\d+| {2})  (?=[ |])")
"""Begin of a row of signs: the number of its scene, or nothing."""


@cache
def strip_of(name: str) -> RunScenes:
    """Return the strip of a run of the documentation."""
    written, _ = read_run(REPOSITORY / f"docs/answers/{name}.json")
    return scenes_of(play(written))


def text_of(lines: list[StyledLine]) -> list[str]:
    """Return lines without their styles."""
    return ["".join(text for text, _ in line) for line in lines]


def rows_of(strip: RunScenes, width: int, *, plain: bool = False) -> list[str]:
    """Return the rows of signs of a picture without its log: kinds, scenes, findings if there are any."""
    lines = text_of(run_picture(strip, "", width, plain=plain, logs=False))
    broken = any(place.broken for place in strip.places)
    return [line.ljust(width) for line in lines[1 : 2 + len(strip.scenes) + broken]]


def test_signs_tell_states_apart() -> None:
    """Each sign of a strip has one meaning, in ASCII too, and so has each name of the legend."""
    words = {word.key: word for word in (*_KINDS.values(), *_LEVELS.values(), _NO_TABLE, *STATES.values(), CURSOR)}
    words["broken"] = BROKEN
    for column in ("sign", "ascii", "label"):
        values = [getattr(word, column) for word in words.values()]
        assert len(set(values)) == len(values), column
    assert all(len(word.sign) == len(word.ascii) == 1 and word.ascii.isascii() for word in words.values())
    assert STATES.keys() | {PlaceState.COPYING} == set(PlaceState)
    assert _KINDS.keys() | {PlaceKind.REGION} == set(PlaceKind)


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("width", [1, 40, 41, 80, 200])
@pytest.mark.parametrize("name", RUNS)
def test_a_picture_fits_its_width_and_its_legend_has_each_sign(name: str, width: int, plain: bool) -> None:
    """No line is wider, none ends with spaces; the legend has the signs of the rows, and no other."""
    strip = strip_of(name)
    lines = [
        *text_of(run_picture(strip, f"{name}: {'a long title ' * 9}", width, plain=plain)),
        *text_of(run_legend([strip], width, plain=plain)),
    ]
    assert max(map(len, lines)) <= max(width, MIN_WIDTH)
    assert all(line == line.rstrip() for line in lines)
    assert not plain or "".join(lines).isascii()
    drawn = set("".join(row[4:] for row in rows_of(strip, max(width, MIN_WIDTH), plain=plain))) - {" "}
    words = [*_KINDS.values(), *_LEVELS.values(), _NO_TABLE, *STATES.values(), CURSOR, BROKEN]
    sign_of = {(word.ascii if plain else word.sign): word.label for word in words}
    legend = " ".join(text_of(run_legend([strip], width, plain=plain)))
    explained = {sign for sign, label in sign_of.items() if f"{sign} {label}" in legend}
    if strip.places:
        assert drawn <= explained
        part = {STATES[state].signs[plain] for state in (PlaceState.WAITS, PlaceState.COPIED)}  # of a place in the copy
        assert explained - drawn <= part


@pytest.mark.parametrize("name", RUNS)
def test_the_rows_have_the_states_of_the_strip(name: str) -> None:
    """Read back sign by sign: each scene, each place, its kind, its findings, and the place of the cursor."""
    strip = strip_of(name)
    if not strip.places:
        assert text_of(run_picture(strip, "t", 80, logs=False)) == ["t", " 1", " 2"][: 1 + len(strip.scenes)]
        return
    kinds, *scenes = rows_of(strip, 80)
    starts = [at for at, sign in enumerate(kinds) if sign != " " and kinds[at - 1] == " "]
    assert len(starts) == len(strip.places)
    width = starts[1] - starts[0] - 1 if len(starts) > 1 else len(kinds.strip())
    for place, at in zip(strip.places, starts, strict=True):
        word = _KINDS.get(place.kind) or (_NO_TABLE if place.level is None else _LEVELS[place.level])
        assert kinds[at : at + width] == word.sign * width
    for scene, row in zip(strip.scenes, scenes, strict=False):
        for state, at in zip(scene.states, starts, strict=True):
            cells = row[at : at + width]
            if state != PlaceState.COPYING:
                assert cells == STATES[state].sign * width
            else:
                done, rest = STATES[PlaceState.COPIED].sign, STATES[PlaceState.WAITS].sign
                assert re.fullmatch(f"{done}*\\|{rest}*", cells)
        if scene.cursor is None:
            assert "|" not in row
            continue
        assert row.count("|") == 1
        passed = sum(place.start_pfn < scene.cursor for place in strip.places)
        left = sum(at <= row.index("|") for at in starts)
        assert left == passed
    if len(scenes) > len(strip.scenes):
        for place, at in zip(strip.places, starts, strict=True):
            assert scenes[-1][at : at + width] == (BROKEN.sign if place.broken else " ") * width
    else:
        assert not any(place.broken for place in strip.places)


def test_a_torn_table_is_drawn() -> None:
    """The region is copied, its table changed before its copy, the new one never copied; a list says that in words."""
    lines = text_of(run_picture(strip_of("remap-tears-the-image"), "t", 80, logs=False))
    assert lines[2].split() == ["X" * 24, "T" * 24, "T" * 24]
    assert lines[5].split() == ["3", "\u2588" * 24, "-" * 24, "B" * 24 + "|"]
    assert lines[6].split() == ["!" * 24, "!" * 24]
    assert re.fullmatch(r"2  new table 1 +0xbcfbb +1 page +never copied; a finding names it", lines[8])
    assert re.fullmatch(r"3  table of region 1 +0xbfffe +1 page +changed before its copy", lines[9])


def synthetic(number: int, states: PlaceState, cursor: int) -> RunScenes:
    """Return a strip of many places, of which the last but one is changed before its copy."""
    places = tuple(RunPlace(at * 16, 1, f"new table {at}", False, PlaceKind.NEW_TABLE) for at in range(number))
    scene = [states] * number
    scene[-2] = PlaceState.CHANGED_BEFORE
    return RunScenes(places, (RunScene(("line",), cursor, tuple(scene)),), 0)


@pytest.mark.parametrize("number", [2, 17, 18, 40, 1000])
@pytest.mark.parametrize("width", [40, 80])
def test_places_share_signs_where_there_is_no_room(number: int, width: int) -> None:
    """Every place has a part of the row; the one that alarms is seen; the list is bounded."""
    strip = synthetic(number, PlaceState.COPIED, number * 16)
    lines = text_of(run_picture(strip, "t", width))
    assert max(map(len, lines)) <= width
    assert "B" in lines[3]
    assert lines[3].endswith("|")
    assert len(lines) < 80
    assert (lines[-1] == f"   and {number - 35} more") == (number > 35)
    early = text_of(run_picture(synthetic(number, PlaceState.WAITS, 0), "t", width))
    assert early[3].startswith(" 1  |")
    for cursor in (1, 8 * number, 16 * number - 1):
        assert text_of(run_picture(synthetic(number, PlaceState.COPIED, cursor), "t", width))[3].count("|") == 1


def test_scenes_that_are_left_out_are_counted() -> None:
    """Before the last one."""
    strip = synthetic(2, PlaceState.COPIED, 0)
    lines = text_of(run_picture(RunScenes(strip.places, strip.scenes * 2, 7), "t", 80))
    assert lines.index("    7 scenes left out") == 5


def test_explore_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run that the text tells, before the text; in colour only if that is forced; not in a document."""
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    plain = hibernaut(*SMALL)
    drawn = hibernaut(*SMALL, "--picture", "--width", 79)
    assert drawn.status == plain.status == 1
    assert drawn.out.endswith(plain.out)
    picture = drawn.out.removesuffix(plain.out)
    assert "\x1b" not in picture
    assert max(map(len, picture.splitlines())) <= 79
    (told,) = re.findall(r"shortest run with the outcome (.*):$", plain.out, re.MULTILINE)
    title = " ".join(picture.split("\n     1")[0].split())
    assert title == f"remap: shortest run with the outcome {told}"
    assert "fixmap" not in picture
    assert "PM: hibernation: Need to copy" in picture
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[1;33mBBBB" in hibernaut(*SMALL, "--picture").out
    assert hibernaut(*SMALL, "--picture", "--quiet").out == ""
    assert "--picture excludes --json" in refused(*SMALL, "--picture", "--json")


def test_a_safe_exploration_has_no_picture() -> None:
    """One line says that there is nothing to draw."""
    out = hibernaut(*SMALL[:-1], "fixmap", "--picture").out
    assert out.startswith("no picture: no run loses or breaks anything\n\nscope: ")


def test_the_machine_of_a_dump_is_drawn(golden: Golden) -> None:
    """The block of the golden machine, its table, and the crash of the run whose allocation fails."""
    out = hibernaut("explore", golden("ram-6.1-low2m.elf"), "--via", "remap", "--picture", "--width", 80).out
    assert re.search(r"^\d  region 1 +0x400 +512 pages +copied", out, re.MULTILINE)
    assert re.search(r"table of region 1 +0x4402 +1 page +changed before its copy", out)


def test_the_demonstration_fits_a_small_terminal() -> None:
    """Both pictures and their legend: 80 columns and 24 rows, with a row for the prompt; titles say what is wrong."""
    situation = next(one for one in SITUATIONS if one.name == "2M hole, table above")
    runs = [
        (cell_document(run_cell(way_named(way), situation)), demo_scenes(way, situation)) for way in ("remap", "fixmap")
    ]
    _, *lines = text_of(demo_pictures(runs, 80))
    assert len(lines) <= 23
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert text.startswith("Remap, 2M hole, table above: TMA (a page table that was not saved;")
    assert "\nFixmap, 2M hole, table above: ok\n" in text
    remap, fixmap = text.split("\nFixmap")
    assert "!!!!" in remap
    assert "!!!!" not in fixmap
    assert not re.search("changed|never|!!", fixmap.split("left to right")[0])
