# SPDX-License-Identifier: GPL-2.0-or-later
"""A direct map that changes between two readings is reported, with the number of frames."""

from __future__ import annotations

import struct

from hibernaut.linux.build import build_machine
from hibernaut.linux.direct_map import DirectMap
from hibernaut.linux.racing import frames_that_changed, racing_remark
from hibernaut.memory.overlay import Overlay
from hibernaut.paging.entries import Level
from hibernaut.paging.tables import PageTables
from hibernaut.studies.demo import demo_layout


def test_a_change_is_counted() -> None:
    """An entry of a block loses PRESENT between the readings: its 512 frames are counted; before it, none is."""
    machine = build_machine(demo_layout())
    memory = Overlay(machine.memory)
    found = DirectMap.find(memory, machine.cr3, machine.levels)
    assert frames_that_changed(memory, found) == 0
    assert "it was the same" in racing_remark(memory, found)
    walk = PageTables(memory, machine.cr3, machine.levels).walk(found.vaddr(found.end_pfn - 1))
    leaf = walk.steps[-1]
    memory.write(leaf.paddr, struct.pack("<Q", leaf.entry & ~1))
    expected = 512 if leaf.level is Level.PMD else 1
    assert frames_that_changed(memory, found) == expected
    assert f"{expected} pages of its direct map changed" in racing_remark(memory, found)
