# SPDX-License-Identifier: GPL-2.0-or-later
"""Which frames of a memory hold anything, and which are known to be zero without reading them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hibernaut.memory.page import PAGE_SIZE
from hibernaut.memory.segments import Segment, SegmentMemory
from hibernaut.sources import open_memory


def test_occupied_frames_hold_anything_but_zeroes() -> None:
    """Frames of zeroes are not occupied, in any range; neighbours are one range."""
    pages = np.zeros((3000, PAGE_SIZE), dtype=np.uint8)
    pages[[0, 1, 1023, 1024, 2999], [0, 4095, 9, 9, 17]] = 1
    memory = SegmentMemory([Segment(5, pages[:2000]), Segment(9000, pages[2000:])])
    assert list(memory.occupied()) == [(5, 2), (5 + 1023, 2), (9000 + 999, 1)]
    assert memory.stored is memory.ranges


def test_holes_of_a_sparse_file_are_known_to_be_zero(tmp_path: Path) -> None:
    """Of a raw file of 1 GiB with two written pages only the extents around them count as stored."""
    path = tmp_path / "raw"
    with path.open("wb") as out:
        out.truncate(1 << 30)
        for pfn in (7, 200_000):
            out.seek(pfn * PAGE_SIZE + 100)
            out.write(b"x")
    with open_memory(path) as source:
        memory = source.memory
        assert memory.ranges.total_pages == 1 << 18
        assert memory.stored.total_pages <= 4096
        assert memory.stored.contains([7, 200_000]).all()
        assert list(memory.occupied()) == [(7, 1), (200_000, 1)]
