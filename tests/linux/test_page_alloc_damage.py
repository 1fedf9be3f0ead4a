# SPDX-License-Identifier: GPL-2.0-or-later
"""The page allocator on broken lists: it crashes like a kernel, with its messages, or follows the link."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from hibernaut.errors import MachineFault, OutOfMemory
from hibernaut.linux.check_allocator import AllocatorProblem, check_allocator
from hibernaut.linux.environment import Environment
from hibernaut.linux.mm_init import init_zone
from hibernaut.linux.mmzone import LIST_POISON1, LIST_POISON2
from hibernaut.linux.page_alloc import BuddyAllocator
from tests.linux.tiny_machine import (
    DATA,
    END,
    FIRST,
    FREE_0,
    LAST,
    NEXT,
    ON_PCP,
    PCP,
    PCP_LIST,
    PCPS,
    PLACES,
    REFCOUNT,
    TYPE,
    USED,
    ZONE,
    TinyMachine,
    built,
    list_at,
    page_at,
    pcp_lists,
    put,
    put32,
    two_instants,
    worn,
)
from tests.machines import BASE4 as BASE


def test_a_link_copied_too_early_is_null_and_kills_the_resumed_machine() -> None:
    """The CPU's list as it was after a refill, mem_map from before it: unlinking the first page writes to address 8."""
    machine, allocator = built(((0x800, 0x400),))
    before, machine.hooked = machine.fork(), set()
    allocator.alloc_page(Environment(), "table, in the middle of the copy")
    resumed = machine.with_pages_of(before, sorted(machine.hooked - {ZONE, *PCPS}))
    assert "pcp list of CPU 0: next is NULL" in [problem.what for problem in check_allocator(resumed, PLACES)]
    with pytest.raises(MachineFault) as death:
        BuddyAllocator(resumed, PLACES).alloc_page(Environment(), "first")
    assert death.value.address == 8
    assert death.value.doing == "allocating a page (__rmqueue_pcplist)"
    assert death.value.log == ("BUG: kernel NULL pointer dereference, address: 0000000000000008",)


def test_a_link_copied_too_late_is_poison_and_kills_the_resumed_machine() -> None:
    """mem_map as it was after a refill, the zone from before it: the first block was unlinked, its links are poison."""
    before, after, _ = two_instants()
    resumed = after.with_pages_of(before, [ZONE, *PCPS])
    assert any("LIST_POISON1" in problem.what for problem in check_allocator(resumed, PLACES))
    with pytest.raises(MachineFault) as death:
        BuddyAllocator(resumed, PLACES).alloc_page(Environment(), "first")
    assert death.value.address == 0xDEAD000000000108
    assert death.value.entry is None
    assert death.value.doing == "refilling the CPU's list (rmqueue_bulk)"
    assert death.value.log == (
        "general protection fault, probably for non-canonical address 0xdead000000000108: 0000 [#1] PREEMPT SMP",
    )


def test_with_five_levels_more_addresses_are_canonical() -> None:
    """0x00ff... is an address (of nothing) for 57 bits and none for 48: a page fault there, a #GP here."""
    for base, said in ((BASE, "general protection fault"), (0xFF11_0000_0000_0000, "unable to handle page fault")):
        machine, _ = built()
        machine.base = base
        init_zone(machine, PLACES, batch=7, high=28)
        machine.memory.write_u64(list_at(0), 0x00FF_0000_0000_0000)
        with pytest.raises(MachineFault, match=said):
            BuddyAllocator(machine, PLACES).alloc_page(Environment(), "first")


LOCKUP = "NMI watchdog: Watchdog detected"

DEATHS = {
    "marking, NULL": (
        put(FREE_0, 0),
        BuddyAllocator.free_ranges,
        "leads to no page",
        "kernel BUG at kernel/power/snap",
    ),
    "marking, a circle": (put(LAST + NEXT, BASE + FIRST + NEXT), BuddyAllocator.free_ranges, "never comes back", None),
    "draining, count": (
        put32(PCP + 4, 900),
        BuddyAllocator.drain_pages,
        "endless loop",
        "NMI watchdog: Watchdog detected",
    ),
    "draining, batch": (
        put32(PCP + 12, 0),
        BuddyAllocator.drain_pages,
        "endless loop",
        "NMI watchdog: Watchdog detected",
    ),
    "draining, NULL": (
        put(PCP + PCP_LIST + 8, 0),
        BuddyAllocator.drain_pages,
        "NULL pointer",
        "BUG: kernel NULL pointer",
    ),
    "freeing, NULL": (
        put(PCP + PCP_LIST, 0),
        lambda it: it.free_page(USED),
        "NULL pointer",
        "BUG: kernel NULL pointer",
    ),
    "freeing, beyond RAM": (
        put(PCP + PCP_LIST, BASE + (END << 12)),
        lambda it: it.free_page(USED),
        "page fault",
        "BUG: unable to handle",
    ),
}


@pytest.mark.parametrize(("damage", "act", "what", "line"), DEATHS.values(), ids=DEATHS)
def test_other_crashes(
    damage: Callable[[TinyMachine], None], act: Callable[[BuddyAllocator], object], what: str, line: str | None
) -> None:
    """Marking of free pages, drain and free on broken lists end as the kernel's loops would, in its words if any."""
    machine, allocator = worn()
    damage(machine)
    with pytest.raises(MachineFault, match=what) as death:
        act(allocator)
    assert len(death.value.log) == (line is not None)
    assert all(text.startswith(str(line)) for text in death.value.log)


def test_a_count_below_zero_drains_nothing() -> None:
    """The kernel's counts are signed, and its loop over a list continues while pages are left to free."""
    machine, allocator = worn()
    machine.set_u32(PCP + 4, -3)
    allocator.drain_pages(0)
    assert pcp_lists(machine)[0] == list(ON_PCP)


def test_a_page_of_the_free_lists_that_is_in_use_is_refused_in_the_kernels_words() -> None:
    """A refill checks each page (6.1): a page in use is reported and lost, the next one is returned."""
    machine, allocator = built(((0x101, 1), (0x103, 1), (0x200, 1)), batch=1, high=4)
    machine.set_u32(page_at(0x101) + REFCOUNT, 1)
    machine.memory.write_u64(page_at(0x103) + 24, 0xFFFF)
    assert allocator.alloc_page(Environment(), "first") == 0x200
    assert machine.log.kernel_lines == (
        "BUG: Bad page state in process systemd-sleep  pfn:00101",
        "page dumped because: nonzero _refcount",
        "BUG: Bad page state in process systemd-sleep  pfn:00103",
        "page dumped because: non-NULL mapping",
    )
    assert allocator.nr_free_pages == 0
    with pytest.raises(OutOfMemory):
        allocator.alloc_page(Environment(), "second")


def test_a_page_of_a_cpus_list_that_is_mapped_does_not_go_back_to_the_free_lists() -> None:
    """A drain checks each page (6.1): a page with a mapcount is reported, lost, and its count reset."""
    machine, allocator = worn()
    machine.set_u32(page_at(0x438) + TYPE, 3)
    allocator.drain_pages(0)
    assert machine.log.kernel_lines == (
        "BUG: Bad page state in process systemd-sleep  pfn:00438",
        "page dumped because: nonzero mapcount",
    )
    assert machine.u32(page_at(0x438) + TYPE) == 0xFFFFFFFF
    assert not allocator.free_ranges().contains(0x438)
    lost = AllocatorProblem("free by its _refcount, but on no list: lost", 0x438, 1)
    assert check_allocator(machine, PLACES) == [lost]


def test_a_wild_link_is_followed_as_a_cpu_would() -> None:
    """A link to any bytes of RAM, even across two pages: they are read and written as if they were a page's."""
    machine, allocator = worn()
    wild, other = (DATA << 12) + 0xFF3, (DATA << 12) + 0x100
    machine.memory.write(wild, struct.pack("<QQ", BASE + other, BASE + other + 0x20))
    machine.memory.write_u64(list_at(0), BASE + wild)
    around = machine.memory.read(wild - 16, 80)
    with pytest.raises(MachineFault) as death:
        allocator.alloc_page(Environment(), "table")
    assert death.value.doing == "using the page that was allocated"
    assert machine.memory.read(wild, 16) == struct.pack("<QQ", LIST_POISON1, LIST_POISON2)
    assert (machine.u64(other + 8), machine.u64(other + 0x20)) == (BASE + other + 0x20, BASE + other)
    # What else was written there is the page's order and its reference count.
    left = machine.memory.read(wild - 16, 80)
    assert around is not None
    assert left is not None
    same = [at for at in range(80) if left[at] == around[at]]
    assert set(range(80)) - set(same) <= {*range(16, 32), *range(48, 56), *range(60, 64)}
