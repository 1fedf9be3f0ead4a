# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables, allocator state and saved pages of a machine, found without the code under test."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hibernaut.hibernation import Snapshot
from hibernaut.linux.machine import Machine
from hibernaut.linux.page_alloc import BuddyAllocator
from hibernaut.paging.entries import Level

if TYPE_CHECKING:
    pass


def table_frames(machine: Machine) -> set[int]:
    """Frames of all page tables reachable from CR3, by a plain recursion."""
    found: set[int] = set()

    def visit(pfn: int, level: Level) -> None:
        found.add(pfn)
        page = machine.memory.page(pfn)
        assert page is not None
        if level == Level.PTE:
            return
        for entry in page.view("<u8").tolist():
            if entry & 1 and not (entry & 0x80 and level < Level.P4D):
                visit((entry & 0xFFFFFFFFFF000) >> 12, Level(level - 1))

    visit(machine.cr3 >> 12, Level(machine.levels))
    return found


def allocator_frames(machine: Machine) -> list[int]:
    """Frames that hold the allocator's own state."""
    assert isinstance(machine.allocator, BuddyAllocator)
    places = machine.allocator.places
    array = range(places.mem_map >> 12, (places.mem_map >> 12) + places.mem_map_pages)
    return [*array, places.zone >> 12, *(pcp >> 12 for pcp in places.pcps)]


def contents(snapshot: Snapshot) -> dict[int, bytes]:
    """Return the bytes of every page of a snapshot, by frame."""
    return {
        int(pfn): page.tobytes()
        for pfns, content in snapshot.chunks(333)
        for pfn, page in zip(pfns, content, strict=True)
    }
