# SPDX-License-Identifier: GPL-2.0-or-later
"""A run as a strip of characters: the frames that matter in the order of the copy, a row for each scene, a legend.

The terminal's form of the strips on the page of an exploration, with the signs of the map of physical memory.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from hibernaut.exploration.scenes import PlaceKind, PlaceState, scenes_of
from hibernaut.hibernation.frame_map import Fate, FrameUse, MappedBy
from hibernaut.paging.entries import Level
from hibernaut.report.frame_words import FATES, MAPPED, USES, FrameWords
from hibernaut.report.text import CHECK_LETTERS, LETTER_WORDS, cell_text, columns, counted

if TYPE_CHECKING:
    from hibernaut.exploration import Exploration, ExploredWay, PlayedEnding
    from hibernaut.exploration.scenes import RunPlace, RunScene, RunScenes
    from hibernaut.linux.machine import Machine
    from hibernaut.report.documents import CellDocument
    from hibernaut.report.frame_picture import StyledLine

__all__ = ["MIN_WIDTH", "demo_pictures", "exploration_pictures", "run_legend", "run_picture", "told_ending"]

MIN_WIDTH = 40
MOST_CELLS = 28
"""Signs of a place at most, however wide the terminal is."""
MOST_LISTED = 35
MARKS = "123456789abcdefghijklmnopqrstuvwxyz"
LABEL = 4
"""Columns before a row: the number of its scene."""

_LEVELS = {
    Level.PTE: MAPPED[MappedBy.NOT_PRESENT_4K],
    Level.PMD: MAPPED[MappedBy.NOT_PRESENT_2M],
    Level.PUD: MAPPED[MappedBy.NOT_PRESENT_1G],
}
_NO_TABLE = MAPPED[MappedBy.NO_ENTRY]
_OTHER = MAPPED[MappedBy.UNKNOWN]
_KINDS: Mapping[PlaceKind, FrameWords] = {
    PlaceKind.TABLE: USES[FrameUse.PAGE_TABLE],
    PlaceKind.NEW_TABLE: USES[FrameUse.PAGE_TABLE],
    PlaceKind.NAMED: FrameWords("other", "another frame", "a frame that a finding names", *_OTHER.signs, "white"),
}
STATES: Mapping[PlaceState, FrameWords] = {
    PlaceState.WAITS: FrameWords(
        "waits", "not copied yet", "the copy has not reached it", "░", "_", FATES[Fate.FREE].style
    ),
    PlaceState.COPIED: FrameWords("copied", "copied", "copied as it was", *FATES[Fate.SAVED].signs, "green"),
    PlaceState.NOT_LISTED: FrameWords(
        "never", "never copied", "not on the list of pages to save", *FATES[Fate.LEFT_OUT].signs, "white"
    ),
    PlaceState.CHANGED_AFTER: FrameWords(
        "changed-after", "changed after its copy", "the image has it as it was before", "A", "A", "cyan"
    ),
    PlaceState.CHANGED_BEFORE: FrameWords(
        "changed-before", "changed before its copy", "the image has it as it became", "B", "B", "bold yellow"
    ),
}
"""Signs by state, those that alarm most last; a place that is being copied has the cursor in it."""
CURSOR = FrameWords("cursor", "the copy is here", "all before it is copied, all behind it is not", "|", "|", "bold")
BROKEN = FrameWords("broken", "a finding names it", "lost, torn or damaged", "!", "!", "bold red", True)


def told_ending(way: ExploredWay) -> PlayedEnding | None:
    """Return the ending of a way that text and picture tell: the first that loses something, else that breaks some."""
    bad = [one for one in way.endings if one.outcome.violated]
    return next((one for one in bad if one.outcome.loses), bad[0] if bad else None)


def exploration_pictures(
    found: Exploration, machine: Machine | None, width: int, *, plain: bool = False
) -> list[StyledLine]:
    """Return the shortest run of each way that loses or breaks something, scene by scene, and one legend.

    Args:
        found: the exploration.
        machine: the machine of a source that was explored; None for a family.
        width: columns of the terminal; at least `MIN_WIDTH` are used.
        plain: whether the terminal's encoding has ASCII alone.
    """
    lines: list[StyledLine] = []
    strips = []
    for way in found.ways:
        ending = told_ending(way)
        if ending is not None:
            strip = scenes_of(ending.played, machine)
            title = f"{way.name}: shortest run with the outcome {ending.outcome}"
            lines += [*run_picture(strip, title, width, plain=plain), []]
            strips.append(strip)
    if not strips:
        return [[("no picture: no run loses or breaks anything", "")], []]
    return [*lines, *run_legend(strips, width, plain=plain), []]


def demo_pictures(
    runs: Iterable[tuple[CellDocument, RunScenes]], width: int, *, plain: bool = False
) -> list[StyledLine]:
    """Return the runs of cells of the matrix, without the kernel's log, and one legend.

    Args:
        runs: cells, each with its run.
        width: as for `exploration_pictures`.
        plain: as for `exploration_pictures`.
    """
    lines: list[StyledLine] = []
    strips = []
    for cell, strip in runs:
        broken = "; ".join(LETTER_WORDS[CHECK_LETTERS[name]] for name in cell["failed_checks"])
        title = f"{cell['way']}, {cell['situation']}: {cell_text(cell)}" + (f" ({broken})" if broken else "")
        lines += [[], *run_picture(strip, title, width, plain=plain, logs=False)]
        strips.append(strip)
    return [*lines, *run_legend(strips, width, plain=plain)]


def run_picture(
    strip: RunScenes, title: str, width: int, *, plain: bool = False, logs: bool = True
) -> list[StyledLine]:
    """Return a strip, line by line: frames from left to right in the order of the copy, scenes from top to bottom.

    Args:
        strip: the run.
        title: its title.
        width: as for `exploration_pictures`.
        plain: as for `exploration_pictures`.
        logs: whether each scene has its lines of the kernel's log.
    """
    width = max(width, MIN_WIDTH)
    cells = _Cells(strip.places, width - LABEL)
    lines: list[StyledLine] = [[(line, "bold")] for line in _wrapped(title, width)]
    if strip.places:
        lines.append([(" " * LABEL + cells.marks(), "")])
        lines.append([(" " * LABEL, ""), *cells.row(lambda place: _kind(strip.places[place]), plain=plain)])
    for number, scene in enumerate(strip.scenes, 1):
        if number == len(strip.scenes) and strip.left_out:
            lines.append([(f"    {counted(strip.left_out, 'scene')} left out", "")])
        label = (f"{number:2}  ", "")
        lines.append([label, *cells.scene(scene, plain=plain)] if strip.places else [label])
        if logs:
            lines += [[(line, "")] for text in scene.lines for line in _wrapped(text, width, 6, 8)]
    if any(place.broken for place in strip.places):
        marked = cells.row(lambda place: BROKEN if strip.places[place].broken else None, plain=plain)
        lines.append([(" " * LABEL, ""), *marked])
    lines = [_without_end(line) for line in lines]
    return [*lines, *([(line, "")] for line in _listed(strip, width))]


def run_legend(strips: Iterable[RunScenes], width: int, *, plain: bool = False) -> list[StyledLine]:
    """Return the legend of strips: each sign in them with its name, as many in a line as fit.

    Args:
        strips: the runs.
        width: as for `exploration_pictures`.
        plain: as for `exploration_pictures`.
    """
    used: dict[str, FrameWords] = {}
    for strip in strips:
        shown = [_kind(place) for place in strip.places]
        states = {state for scene in strip.scenes for state in scene.states}
        if PlaceState.COPYING in states:
            states |= {PlaceState.COPIED, PlaceState.WAITS}
        shown += [word for state, word in STATES.items() if state in states]
        if strip.places and any(scene.cursor is not None for scene in strip.scenes):
            shown.append(CURSOR)
        if any(place.broken for place in strip.places):
            shown.append(BROKEN)
        used.update((word.key, word) for word in shown)
    order = [*_LEVELS.values(), _NO_TABLE, _OTHER, *_KINDS.values(), *STATES.values(), CURSOR, BROKEN]
    lines: list[StyledLine] = []
    room = 0
    for word in sorted(used.values(), key=order.index):
        text = f" {word.label}"
        if room < len(text) + 4:
            lines.append([])
            room = max(width, MIN_WIDTH) + 3
        if lines[-1]:
            lines[-1].append(("   ", ""))
        lines[-1] += [(word.ascii if plain else word.sign, word.style), (text, "")]
        room -= len(text) + 4
    if lines:
        note = "left to right: memory in the order of the copy, not to scale; downwards: scenes"
        lines = [*([(line, "")] for line in _wrapped(note, max(width, MIN_WIDTH))), *lines]
    return lines


class _Cells:
    """Places along a line: as many signs for each as there is room for; neighbours share one where there is not."""

    def __init__(self, places: Sequence[RunPlace], room: int) -> None:
        self.places = places
        most = (room - 1) // 2
        each = max(1, -(-len(places) // most))
        self.groups = [range(first, min(first + each, len(places))) for first in range(0, len(places), each)]
        number = max(1, len(self.groups))
        self.width = max(1, min(MOST_CELLS, (room - number - 1) // number))

    def marks(self) -> str:
        """Return the marks by which the list names the places, each above its first sign."""
        shown = (MARKS[group[0]] if group[0] < len(MARKS) else "" for group in self.groups)
        return "".join(f" {mark.ljust(self.width)}" for mark in shown).rstrip()

    def row(self, word_of: Callable[[int], FrameWords | None], *, plain: bool) -> Iterator[tuple[str, str]]:
        """Yield a row with one sign for each place; of those that share it, the first that has one."""
        for group in self.groups:
            word = next(filter(None, map(word_of, group)), None)
            yield " ", ""
            yield (_sign(word, plain=plain) * self.width, word.style) if word else (" " * self.width, "")

    def scene(self, scene: RunScene, *, plain: bool) -> Iterator[tuple[str, str]]:
        """Yield the row of a scene: state of each place, and the cursor between two of them or inside one."""
        order = [*STATES]
        passed = -1
        if scene.cursor is not None:
            passed = sum(place.start_pfn < scene.cursor for place in self.places)
        inside = passed > 0 and scene.states[passed - 1] == PlaceState.COPYING
        for group in self.groups:
            here = passed in group and not inside and (passed == group[0] or len(group) > 1)
            yield (CURSOR.sign, CURSOR.style) if here else (" ", "")
            if inside and passed - 1 in group:
                yield from self._copying(self.places[passed - 1], scene.cursor or 0, plain=plain)
                continue
            states = [scene.states[place] for place in group if scene.states[place] in STATES]
            word = STATES[max(states, key=order.index, default=PlaceState.COPIED)]
            yield _sign(word, plain=plain) * self.width, word.style
        if passed == len(self.places) and not inside:
            yield CURSOR.sign, CURSOR.style

    def _copying(self, place: RunPlace, cursor: int, *, plain: bool) -> Iterator[tuple[str, str]]:
        """Yield the signs of the place that the copy is in: what is copied, the cursor, the rest."""
        done = max(int((cursor - place.start_pfn) * (self.width - 1) / place.pages), min(1, self.width - 1))
        for word, number in ((STATES[PlaceState.COPIED], done), (CURSOR, 1)):
            yield _sign(word, plain=plain) * number, word.style
        rest = STATES[PlaceState.WAITS]
        yield _sign(rest, plain=plain) * (self.width - 1 - done), rest.style


def _kind(place: RunPlace) -> FrameWords:
    """Return the words of a place's kind: of a region those of its entry, as the map of memory has them."""
    if place.kind != PlaceKind.REGION:
        return _KINDS[place.kind]
    return _NO_TABLE if place.level is None else _LEVELS.get(place.level, _OTHER)


def _listed(strip: RunScenes, width: int) -> Iterator[str]:
    """Yield the places by their marks: frames, part in the run, state at the end of the run."""
    last = strip.scenes[-1].states if strip.scenes else ()
    rows = []
    for number, place in enumerate(strip.places[:MOST_LISTED]):
        state = str(last[number]) + ("; a finding names it" if place.broken else "") if last else ""
        rows.append((MARKS[number], place.name, f"{place.start_pfn:#x}", counted(place.pages, "page"), state))
    for line in columns(rows):
        yield from _wrapped(line, width, 0, 3)
    if len(strip.places) > MOST_LISTED:
        yield f"   and {len(strip.places) - MOST_LISTED} more"


def _without_end(line: StyledLine) -> StyledLine:
    """Return a line without spaces at its end."""
    line = list(line)
    while line and not line[-1][0].strip():
        line.pop()
    if line:
        line[-1] = (line[-1][0].rstrip(), line[-1][1])
    return line


def _wrapped(text: str, width: int, first: int = 0, others: int = 2) -> list[str]:
    """Return a text in lines of a width, each indented; spaces between columns stay."""
    return textwrap.wrap(
        text, width, initial_indent=" " * first, subsequent_indent=" " * others, break_on_hyphens=False
    )


def _sign(word: FrameWords, *, plain: bool) -> str:
    return word.ascii if plain else word.sign
