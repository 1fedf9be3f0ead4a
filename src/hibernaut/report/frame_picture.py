# SPDX-License-Identifier: GPL-2.0-or-later
"""The map of physical memory as a picture of characters, for a terminal of any width, with a legend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.report.frame_cells import alarming_codes, cells_of_frames
from hibernaut.report.frame_words import LAYERS
from hibernaut.report.text import counted, size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hibernaut.hibernation.frame_map import FrameMap
    from hibernaut.report.frame_words import FrameLayer, FrameWords

__all__ = ["MIN_WIDTH", "StyledLine", "frame_picture", "layer_named"]

StyledLine = list[tuple[str, str]]
"""Pieces of a line: text, and its style of `rich` ("" for none)."""

MIN_WIDTH = 24
MOST_ROWS = 16
"""Rows of cells; rows like the one before are shown as one `*`."""
CELL_GROUP = 16
"""A row has a multiple of these cells where the terminal has room, so that its frames are round numbers."""


def layer_named(key: str) -> FrameLayer:
    """Return the question with a key: mapped, fate or use."""
    return next(layer for layer in LAYERS if layer.key == key)


def frame_picture(frames: FrameMap, layer: FrameLayer, width: int, *, plain: bool = False) -> list[StyledLine]:
    """Return a picture of memory, line by line.

    Args:
        frames: the map.
        layer: question that the cells answer.
        width: columns of the terminal; at least `MIN_WIDTH` are used.
        plain: whether the terminal's encoding has ASCII alone.
    """
    codes = {"mapped": frames.mapped, "fate": frames.fate, "use": frames.use}[layer.key]
    label = len(f"{max(frames.end_pfn - 1, 0):#x}")
    room = max(width, MIN_WIDTH) - label - 2
    columns = room // CELL_GROUP * CELL_GROUP or room
    each = 1
    while each * columns * MOST_ROWS < frames.end_pfn:
        each *= 2
    cells = cells_of_frames(frames.start_pfn, codes, frames.end_pfn, alarming_codes(layer.words), each)
    lines: list[StyledLine] = [
        [(f"{layer.title}: {counted(frames.end_pfn, 'frame')}, {size_text(4096 * each)} a sign", "")]
    ]
    lines += _rows(cells, layer, columns, each, label, plain=plain)
    totals = frames.totals(codes)
    shown = [(word, totals[code]) for code, word in sorted(layer.words.items()) if code in totals]
    most = max(len(word.label) for word, _ in shown)
    for word, pages in shown:
        text = f" {word.label.ljust(most)}  {pages} ({size_text(4096 * pages)})"
        lines.append([(_sign(word, plain=plain), word.style), (text, "")])
    return lines


def _rows(
    cells: np.ndarray[tuple[int], np.dtype[np.uint8]],
    layer: FrameLayer,
    columns: int,
    each: int,
    label: int,
    *,
    plain: bool,
) -> Iterator[StyledLine]:
    before: Sequence[int] | None = None
    repeated = False
    for first in range(0, len(cells), columns):
        row = cells[first : first + columns].tolist()
        if row == before:
            if not repeated:
                yield [("*".rjust(label), "")]
            repeated = True
            continue
        before, repeated = row, False
        yield [(f"{first * each:#x}".rjust(label) + "  ", ""), *_pieces(row, layer, plain=plain)]


def _pieces(row: Sequence[int], layer: FrameLayer, *, plain: bool) -> Iterator[tuple[str, str]]:
    """Yield the signs of a row, neighbours of one style together."""
    at = 0
    while at < len(row):
        end = at
        while end < len(row) and row[end] == row[at]:
            end += 1
        word = layer.words[row[at]]
        yield _sign(word, plain=plain) * (end - at), word.style
        at = end


def _sign(word: FrameWords, *, plain: bool) -> str:
    return word.ascii if plain else word.sign
