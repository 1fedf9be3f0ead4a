# SPDX-License-Identifier: GPL-2.0-or-later
"""Cells of a picture of memory: some frames each, shown by the class of most of them, or by an alarming one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hibernaut.memory.page import Pfns

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from hibernaut.memory.page import BoolArray
    from hibernaut.paging.spans import Codes
    from hibernaut.report.frame_words import FrameWords

__all__ = ["alarming_codes", "cells_of_frames"]


def cells_of_frames(start_pfn: Pfns, codes: Codes, end_pfn: int, alarming: BoolArray, each: int) -> NDArray[np.uint8]:
    """Return the code that each cell shows: uint8, shape (cells,), from frame 0 up, the last cell maybe shorter.

    Args:
        start_pfn: first frame of each run, int64, shape (n,), the first 0.
        codes: code of each run.
        end_pfn: one past the last frame.
        alarming: which codes alarm, by code: a cell with such a frame shows it, whatever the others are.
        each: frames of a cell.
    """
    cells = max(1, -(-end_pfn // each))
    edges = np.unique(np.concatenate((start_pfn, np.arange(cells, dtype=np.int64) * each)))
    code = codes[np.searchsorted(start_pfn, edges, side="right") - 1].astype(np.int64)
    keys, which = np.unique(edges // each << 8 | code, return_inverse=True)
    pages = np.bincount(which.reshape(-1), weights=np.diff(edges, append=max(end_pfn, 1)))
    code = keys & 0xFF
    order = np.lexsort((pages + alarming[code] * float(each + 1), keys >> 8))
    last = np.append(np.flatnonzero(np.diff(keys[order] >> 8)), len(order) - 1)
    shown: NDArray[np.uint8] = code[order[last]].astype(np.uint8)
    return shown


def alarming_codes(words: Mapping[int, FrameWords]) -> BoolArray:
    """Return which codes alarm, by code, shape (256,)."""
    found = np.zeros(256, dtype=np.bool_)
    for code, word in words.items():
        found[code] = word.alarming
    return found
