# SPDX-License-Identifier: GPL-2.0-or-later
"""Entries of page tables that differ between two memories."""

from __future__ import annotations

import numpy as np

from hibernaut.memory.overlay import Overlay
from hibernaut.memory.segments import Segment, SegmentMemory
from hibernaut.paging.changes import DifferentEntry, changed_entries


def test_changed_entries_are_named() -> None:
    """Table, number and both values; those beyond the limit are counted, tables that one memory lacks are not."""
    first = SegmentMemory([Segment(4, np.zeros((2, 4096), dtype=np.uint8))])
    second = Overlay(first)
    for table, index in ((4, 0), (5, 511), (5, 2)):
        second.write(table * 4096 + 8 * index, (0x63 + index).to_bytes(8, "little"))
    found, number = changed_entries(first, second, [4, 5, 6], 2)
    assert found == (DifferentEntry(4, 0, 0, 0x63), DifferentEntry(5, 2, 0, 0x65))
    assert number == 3
    assert changed_entries(first, first, [4, 5], 2) == ((), 0)
