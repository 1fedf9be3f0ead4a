# SPDX-License-Identifier: GPL-2.0-or-later
"""Cells of a picture of memory: some frames each, shown by the class of most of them, or by an alarming one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hibernaut.memory.page import Pfns

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from hibernaut.paging.spans import Codes
    from hibernaut.report.frame_words import FrameWords

__all__ = ["cells_of_frames"]


def cells_of_frames(
    start_pfn: Pfns, codes: Codes, end_pfn: int, words: Mapping[int, FrameWords], each: int
) -> NDArray[np.uint8]:
    """Return the code that each cell shows: uint8, shape (cells,), from frame 0 up, the last cell maybe shorter.

    Args:
        start_pfn: first frame of each run, int64, shape (n,), the first 0.
        codes: code of each run.
        end_pfn: one past the last frame.
        words: words of the codes, which say what alarms.
        each: frames of a cell.
    """
    cells = max(1, -(-end_pfn // each))
    edges = np.unique(np.concatenate((start_pfn, np.arange(cells, dtype=np.int64) * each)))
    code = codes[np.searchsorted(start_pfn, edges, side="right") - 1]
    number = max(words) + 1
    weights = np.diff(edges, append=max(end_pfn, 1))
    pages = np.bincount(edges // each * number + code, weights=weights, minlength=cells * number)
    table = pages.reshape(cells, number)
    alarming = np.array([code in words and words[code].alarming for code in range(number)])
    shown: NDArray[np.uint8] = (table + (table > 0) * alarming * float(each + 1)).argmax(axis=1).astype(np.uint8)
    return shown
