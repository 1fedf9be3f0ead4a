# SPDX-License-Identifier: GPL-2.0-or-later
"""The snapshot: its pages by every way of reading, and what it holds beside the source."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hibernaut.errors import MachineFault
from hibernaut.hibernation import Fixmap, Remap, hibernate, same_data
from hibernaut.hibernation.saveable import saveable_pages
from hibernaut.hibernation.snapshot import Snapshot
from hibernaut.linux.build import build_machine
from hibernaut.linux.environment import FailAllocations
from hibernaut.linux.layout import Layout, hole_2m, hole_4k
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.ranges import FrameRanges
from hibernaut.studies.demo import DEMO_BLOCK_PFN, demo_layout
from tests.hibernation.page_contents import contents
from tests.machines import RAM


def test_snapshot_reads_the_same_three_ways() -> None:
    """chunks, page and memory give the same pages; frames that are not listed do not exist."""
    machine = build_machine(Layout(RAM, holes=(hole_2m(0x1000), hole_4k(0x801)), tables="high"))
    before = saveable_pages(machine)
    snapshot = hibernate(machine, Remap())
    assert len(snapshot.changed) > 0
    streamed = contents(snapshot)
    assert list(streamed) == snapshot.pfns.tolist() == before.pfns().tolist()
    memory = snapshot.memory
    content, present = memory.gather(snapshot.pfns)
    assert present.all()
    assert b"".join(streamed.values()) == content.tobytes()
    assert all(snapshot.page(pfn).tobytes() == streamed[pfn] for pfn in [*snapshot.changed, 0, 0x1000])
    absent = int(machine.allocator.free_ranges().starts[0])
    assert memory.page(absent) is None
    with pytest.raises(KeyError):
        snapshot.page(absent)


def test_snapshot_holds_only_what_differs_from_the_source() -> None:
    """Pages read through the slot equal the source's: nothing of them is kept."""
    machine = build_machine(Layout(RAM, holes=(hole_2m(0x1000, 4),)))
    snapshot = hibernate(machine, Fixmap())
    assert len(snapshot.changed) == 0
    assert isinstance(snapshot.base, PhysicalMemory)


def test_demo_machine_is_saved_by_the_slot_if_allocations_fail() -> None:
    """The text in the demonstration's block is in the snapshot, too."""
    machine = build_machine(demo_layout(), FailAllocations(1))
    with pytest.raises(MachineFault, match="0xffff888001000000"):
        hibernate(machine.fork(), Remap())
    snapshot = hibernate(machine.fork(), Fixmap())
    text = f"frame {DEMO_BLOCK_PFN + 511:#07x}: not in the direct map"
    assert snapshot.page(DEMO_BLOCK_PFN + 511).tobytes().startswith(text.encode())
    assert same_data(machine.memory, snapshot) == ()


def test_the_key_of_a_window_is_that_of_its_pages_alone() -> None:
    """A page that is not listed, or has other bytes, changes the keys of the windows that it is in, and no other."""
    snapshot = hibernate(build_machine(Layout(RAM, holes=(hole_2m(0x1000),), tables="high")), Remap())
    frames = snapshot.frames
    changed = min(snapshot.changed)
    window = changed - 2, changed + 3
    key = snapshot.memory.content_key(*window)
    assert frames.end_of(changed) > changed
    first = int(frames.starts[0])
    assert first < window[0]

    def without(pfn: int) -> Snapshot:
        return replace(snapshot, frames=frames.without(FrameRanges.of([(pfn, 1)])))

    assert without(first).memory.content_key(*window) == key
    assert without(changed).memory.content_key(*window) != key
    restored = {pfn: page for pfn, page in snapshot.changed.items() if pfn != changed}
    assert replace(snapshot, changed=restored).memory.content_key(*window) != key
