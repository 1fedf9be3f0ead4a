# SPDX-License-Identifier: GPL-2.0-or-later
"""The list of pages: which are saveable, and what happens before it is fixed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hibernaut.errors import HibernationRefused, MachineFault
from hibernaut.hibernation import (
    Fixmap,
    Remap,
    check_resumed,
    hibernate,
    resume,
    saveable_pages,
)
from hibernaut.linux.build import build_machine
from hibernaut.linux.environment import FailAllocations
from hibernaut.linux.layout import Layout, hole_4k, no_table, none_entries
from hibernaut.memory.ranges import FrameRanges
from hibernaut.studies.matrix import SITUATIONS
from tests.hibernation.machines import RAM


def test_secret_memory_keeps_the_kernel_from_hibernating() -> None:
    """hibernation_available: not while a file of secret memory is open; nothing is printed, nothing changed."""
    machine = build_machine(Layout(RAM, holes=(hole_4k(0x801, 2),)))
    machine.secretmem_users = 1
    with pytest.raises(HibernationRefused, match="EPERM"):
        hibernate(machine, Fixmap())
    assert (len(machine.log), len(machine.memory.written)) == (0, 0)


def test_pages_for_the_image_are_allocated_before_the_list_is_fixed() -> None:
    """swsusp_alloc: they tear nothing, wherever the allocator's pages lie, and are not saved; or all is given up."""
    where = next(one for one in SITUATIONS if one.name == "2M hole, mem_map below").layout
    machine = build_machine(replace(where, holes=(hole_4k(0x801),)))
    twin = machine.fork()
    snapshot = hibernate(twin, Remap(), image_shortfall=20)
    taken = [one.pfn for one in snapshot.allocations if one.pfn is not None]
    assert len(taken) == 20
    assert not snapshot.frames.contains(taken).any()
    assert not twin.allocator.free_ranges().contains(taken).any()
    assert check_resumed(machine, snapshot, resume(snapshot)) == ()
    poor = machine.fork(FailAllocations(7))
    with pytest.raises(HibernationRefused, match="no page for the image"):
        hibernate(poor, Remap(), image_shortfall=20)
    poor.allocator.drain_pages()
    assert list(poor.allocator.free_ranges()) == list(machine.allocator.free_ranges())


def test_pages_that_are_not_saved() -> None:
    """saveable_page: free, nosave, offline, guard pages and reserved ones without a mapping are not on the list."""
    machine = build_machine(
        Layout(
            RAM,
            holes=(none_entries(0x1801, 2), hole_4k(0x1900)),
            nosave=((0x1000, 4),),
            offline=((0x1100, 4),),
            guard=((0x1200, 4),),
            reserved=((0x1800, 4), (0x1900, 1)),
        )
    )
    listed = saveable_pages(machine)
    gone = {*range(0x1000, 0x1004), *range(0x1100, 0x1104), *range(0x1200, 0x1204), 0x1801, 0x1802, 0x1900}
    gone |= set(machine.allocator.free_ranges().pfns().tolist())
    assert set(FrameRanges.of(RAM).without(listed).pfns().tolist()) == gone


def test_a_reserved_page_without_a_table_kills_the_kernel_while_it_counts() -> None:
    """kernel_page_present is asked of reserved pages, and reads through NULL where there is no table."""
    machine = build_machine(Layout(RAM, holes=(no_table(0x1400),), reserved=((0x1400, 512),)))
    with pytest.raises(MachineFault, match="counting reserved frame 0x1400"):
        hibernate(machine, Fixmap())
