# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs of page frames of equal codes, painted from ranges that may overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.memory.page import Pfns
from hibernaut.memory.ranges import FrameRanges

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Layer", "paint", "union"]

Layer = tuple[FrameRanges, int]
"""Frames and their code."""


def union(parts: Sequence[FrameRanges]) -> FrameRanges:
    """Return the frames that are in any of these; as `FrameRanges.of`, without a Python call a range."""
    if not parts:
        return FrameRanges.of([])
    starts = np.concatenate([part.starts for part in parts])
    ends = starts + np.concatenate([part.nr_pages for part in parts])
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    first = np.flatnonzero(np.append(True, starts[1:] > ends[:-1])[: len(starts)])
    last = np.append(first[1:], len(starts)) - 1
    return FrameRanges(starts[first], (ends[last] - starts[first]) if len(first) else starts)


def paint(end: int, *dimensions: Sequence[Layer]) -> tuple[Pfns, list[NDArray[np.uint8]]]:
    """Return runs of frames of equal codes, from frame 0 to `end`; cost follows the number of ranges.

    Args:
        end: one past the last frame; at least one run is returned.
        dimensions: for each code of a frame, ranges and their code, the later over the earlier; 0 where none is.

    Returns:
        The first frame of each run, int64, shape (n,), and the codes of each dimension, uint8, shape (n,) each.
        Neighbours differ in a code.
    """
    edges = [np.array([0], dtype=np.int64)]
    for ranges, _ in (layer for layers in dimensions for layer in layers):
        edges += [ranges.starts, ranges.starts + ranges.nr_pages]
    start = np.unique(np.concatenate(edges))
    start = start[start < max(end, 1)]
    codes = []
    for layers in dimensions:
        code = np.zeros(len(start), dtype=np.uint8)
        for ranges, value in layers:
            code[ranges.contains(start)] = value
        codes.append(code)
    changed = np.zeros(len(start) - 1, dtype=np.bool_)
    for code in codes:
        changed |= code[1:] != code[:-1]
    first = np.flatnonzero(np.concatenate(([True], changed)))
    return start[first], [code[first] for code in codes]
