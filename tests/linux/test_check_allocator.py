# SPDX-License-Identifier: GPL-2.0-or-later
"""The check of an allocator's state: damage by hand, torn copies, any bytes, a large machine."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.errors import MachineFault, OutOfMemory
from hibernaut.linux.check_allocator import AllocatorProblem, check_allocator
from hibernaut.linux.environment import Environment
from hibernaut.linux.formula import FormulaMemory
from hibernaut.linux.mm_init import init_zone
from hibernaut.linux.mmzone import BUDDY_TYPE, LIST_POISON1, LIST_POISON2, STRUCT_PAGE, AllocatorPlaces, mem_map_page
from hibernaut.linux.page_alloc import BuddyAllocator
from hibernaut.memory.overlay import Overlay
from hibernaut.memory.ranges import FrameRanges
from hibernaut.memory.segments import Segment
from tests.linux.tiny_machine import (
    BLOCK,
    END,
    FIRST,
    FREE_0,
    FREE_1,
    FREE_10,
    LAST,
    MEM_MAP,
    MIDDLE,
    NEXT,
    NR_FREE,
    NR_FREE_PAGES,
    ON_PCP,
    PCP,
    PCP_LIST,
    PCPS,
    PLACES,
    PREV,
    PRIVATE,
    REFCOUNT,
    SINGLES,
    TAIL,
    TYPE,
    USED,
    ZONE,
    TinyMachine,
    area_at,
    list_at,
    page_at,
    put,
    put32,
    two_instants,
    worn,
)
from tests.machines import BASE4 as BASE


def set_list(machine: TinyMachine, head: int, pfns: Sequence[int]) -> None:
    """Put exactly these pages on a list, well linked, and the right number into the zone's area."""
    ring = [head, *[page_at(pfn) + NEXT for pfn in pfns]]
    for at, after in itertools.pairwise([*ring, head]):
        machine.memory.write_u64(at, after + BASE)
        machine.memory.write_u64(after + 8, at + BASE)
    if head >> 12 == ZONE:
        machine.memory.write_u64(head + NR_FREE, len(pfns))


@dataclass(frozen=True)
class Mutant:
    """Damage: its name, the change, and the problem that must be reported at which frame."""

    name: str
    damage: Callable[[TinyMachine], None]
    said: str
    pfn: int


MUTANTS = (
    Mutant("next is NULL", put(MIDDLE + NEXT, 0), "free_area[0]: next is NULL", SINGLES[1]),
    Mutant(
        "next is poison",
        put(MIDDLE + NEXT, LIST_POISON1),
        "free_area[0]: next is 0xdead000000000100 (LIST_",
        SINGLES[1],
    ),
    Mutant("next is garbage", put(MIDDLE + NEXT, 0x1234567), "free_area[0]: next is 0x1234567", SINGLES[1]),
    Mutant("next is misaligned", put(MIDDLE + NEXT, BASE + LAST + NEXT + 4), "free_area[0]: next is 0x", SINGLES[1]),
    Mutant(
        "next beyond mem_map", put(MIDDLE + NEXT, BASE + page_at(END) + NEXT), "free_area[0]: next is 0x", SINGLES[1]
    ),
    Mutant(
        "next before mem_map", put(MIDDLE + NEXT, BASE + page_at(-1) + NEXT), "free_area[0]: next is 0x", SINGLES[1]
    ),
    Mutant("next is another list's head", put(MIDDLE + NEXT, BASE + FREE_1), "free_area[0]: next is 0x", SINGLES[1]),
    Mutant("next of the head is NULL", put(FREE_0, 0), "free_area[0]: next is NULL", ZONE),
    Mutant("next of the head is itself", put(FREE_0, BASE + FREE_0), "free_area[0]: prev of its head is 0x", ZONE),
    Mutant("next skips one", put(FIRST + NEXT, BASE + LAST + NEXT), "free_area[0]: prev is 0x", SINGLES[0]),
    Mutant(
        "next is the page itself",
        put(MIDDLE + NEXT, BASE + MIDDLE + NEXT),
        "free_area[0]: next leads back to",
        SINGLES[1],
    ),
    Mutant(
        "a circle without the head",
        put(LAST + NEXT, BASE + FIRST + NEXT),
        "free_area[0]: next leads back to",
        SINGLES[0],
    ),
    Mutant("prev is NULL", put(MIDDLE + PREV, 0), "free_area[0]: prev is NULL", SINGLES[1]),
    Mutant(
        "prev is poison",
        put(MIDDLE + PREV, LIST_POISON2),
        "free_area[0]: prev is 0xdead000000000122 (LIST_",
        SINGLES[1],
    ),
    Mutant(
        "prev of the head is wrong", put(FREE_0 + 8, BASE + FIRST + NEXT), "free_area[0]: prev of its head is 0x", ZONE
    ),
    Mutant("next on a CPU's list is NULL", put(page_at(0x438) + NEXT, 0), "pcp list of CPU 0: next is NULL", 0x438),
    Mutant("next of a CPU's list is NULL", put(PCP + PCP_LIST, 0), "pcp list of CPU 0: next is NULL", PCPS[0]),
    Mutant("not marked", put32(MIDDLE + TYPE, 0xFFFFFFFF), "free_area[0]: page_type is 0xffffffff", SINGLES[1]),
    Mutant("mapped", put32(MIDDLE + TYPE, 0), "free_area[0]: page_type is 0x0", SINGLES[1]),
    Mutant("wrong order", put(MIDDLE + PRIVATE, 1), "free_area[0]: order (private) is 1", SINGLES[1]),
    Mutant("in use", put32(MIDDLE + REFCOUNT, 1), "on a list of free pages, but in use", SINGLES[1]),
    Mutant("a part in use", put32(page_at(TAIL) + REFCOUNT, 1), "on a list of free pages, but in use", TAIL),
    Mutant("a part marked", put32(page_at(TAIL) + TYPE, BUDDY_TYPE), "marked as a free block (PageBuddy), on no", TAIL),
    Mutant("a page in use marked", put32(page_at(USED) + TYPE, BUDDY_TYPE), "marked as a free block", USED),
    Mutant(
        "on a CPU's list and in use", put32(page_at(0x438) + REFCOUNT, 1), "on a list of free pages, but in use", 0x438
    ),
    Mutant(
        "on a CPU's list and marked", put32(page_at(0x438) + TYPE, BUDDY_TYPE), "pcp list of CPU 0: page_type", 0x438
    ),
    Mutant("free but on no list", put32(page_at(USED) + REFCOUNT, 0), "free by its _refcount, but on no list", USED),
    Mutant("misaligned", lambda machine: set_list(machine, FREE_1, [0x421]), "free_area[1]: misaligned", 0x421),
    Mutant(
        "beyond the end", lambda machine: set_list(machine, FREE_10, [0x1000]), "free_area[10]: reaches beyond", 0x1000
    ),
    Mutant(
        "blocks overlap",
        lambda machine: set_list(machine, FREE_1, [TAIL]),
        "free twice: free_area[10] and free_area[1]",
        TAIL,
    ),
    Mutant(
        "on two lists",
        lambda machine: set_list(machine, list_at(1), [SINGLES[1]]),
        "free twice: free_area[0] and pcp",
        SINGLES[1],
    ),
    Mutant(
        "lost from its list",
        lambda machine: set_list(machine, FREE_10, [BLOCK]),
        "free by its _refcount, but on no",
        0xC00,
    ),
    Mutant("nr_free", put(FREE_0 + NR_FREE, 2), "free_area[0]: nr_free is 2, on the list are 3", ZONE),
    Mutant("NR_FREE_PAGES", put((ZONE << 12) + NR_FREE_PAGES, 17), "NR_FREE_PAGES is 17, on the free lists are", ZONE),
    Mutant("count", put32(PCP + 4, 5), "pcp list of CPU 0: count is 5, on the list are 6", PCPS[0]),
    Mutant("count below zero", put32(PCP + 4, -1), "pcp list of CPU 0: count is -1, on the list are 6", PCPS[0]),
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_damage_is_found(mutant: Mutant) -> None:
    """Each kind of damage done by hand is found and named, at the frame where it is."""
    machine, _ = worn()
    assert check_allocator(machine, PLACES) == []
    mutant.damage(machine)
    found = check_allocator(machine, PLACES)
    assert [problem for problem in found if problem.pfn == mutant.pfn and mutant.said in problem.what], found


def test_damage_that_struct_pages_do_not_show() -> None:
    """A page table that is free, a page in use whose bytes were not saved: detected if the caller names them."""
    machine, allocator = worn()
    tables = frozenset({USED, SINGLES[1], ON_PCP[2], TAIL, END + 5})
    found = check_allocator(machine, PLACES, tables=tables)
    assert {problem.pfn: problem.what for problem in found} == dict.fromkeys(
        (SINGLES[1], ON_PCP[2], TAIL), "a page table, but on a list of free pages"
    )
    machine.set_u32(page_at(USED) + REFCOUNT, 0)
    found = check_allocator(machine, PLACES, tables={USED})
    assert found == [AllocatorProblem("a page table, but free by its _refcount", USED, 1)]
    machine.set_u32(page_at(USED) + REFCOUNT, 1)
    unsaved = allocator.free_ranges()
    assert check_allocator(machine, PLACES, unsaved=unsaved) == []
    late = allocator.alloc_page(Environment(), "table, in the middle of the copy", cpu=1)
    leaked = AllocatorProblem("in use by its _refcount, but its bytes were not saved: leaked", late, 1)
    assert check_allocator(machine, PLACES, unsaved=unsaved) == [leaked]
    assert str(leaked).startswith(f"frame {late:#x}: in use")


def test_state_in_memory_that_does_not_exist_is_a_problem_not_an_error() -> None:
    """A missing zone, CPU's list or part of mem_map is reported."""
    machine, _ = worn()
    far = 1 << 30
    for places, said in (
        (replace(PLACES, zone=far), "free_area[3]: the page of its head does not exist"),
        (replace(PLACES, pcps=(far,)), "pcp list of CPU 0: the page of its head does not exist"),
        (replace(PLACES, end_pfn=(END + 63) // 64 * 64 + 128, mem_map=(END - 64) << 12), "a page of mem_map that does"),
    ):
        found = check_allocator(machine, places)
        assert any(said in problem.what for problem in found), found
    assert str(AllocatorProblem("gone", 0x40, 64)) == "frames 0x40-0x7f: gone"


@pytest.mark.parametrize("repeated", [True, False])
def test_struct_pages_are_read_one_by_one_where_they_differ(repeated: bool) -> None:
    """Pages of mem_map that are one page, but not of 64 equal parts, and pages that are equal until one is not."""
    page = mem_map_page()
    page.view(STRUCT_PAGE)["_refcount"][5] = 0
    if repeated:
        array, lost = np.broadcast_to(page, (PLACES.mem_map_pages, 4096)), range(5, END, 64)
    else:
        array, lost = np.tile(mem_map_page(), (PLACES.mem_map_pages, 1)), range(3 * 64 + 5, 3 * 64 + 6)
        array[3] = page
    machine = TinyMachine(Overlay(FormulaMemory(FrameRanges.of([(0, END)]), [Segment(MEM_MAP, array)])))
    init_zone(machine, PLACES, batch=7, high=28)
    found = check_allocator(machine, PLACES)
    assert [(problem.pfn, problem.pages) for problem in found] == [(pfn, 1) for pfn in lost]


WORDS = st.one_of(
    st.sampled_from([0, 1, 8, LIST_POISON1, LIST_POISON2, (1 << 64) - 1, 1 << 63, 0xFFFFFF7F, 0x1FFFFFFFF, 1 << 47]),
    st.integers(0, END * 64 - 1).map(lambda at: BASE + (MEM_MAP << 12) + at),
    st.integers(0, END - 1).map(lambda pfn: BASE + page_at(pfn) + NEXT),
    st.integers(0, END * 512 - 1).map(lambda at: BASE + 8 * at),
    st.integers(0, END * 4096 + 9000).map(lambda at: BASE + at),
    st.integers(0, (1 << 64) - 1),
)
PLACES_OF_WORDS = st.one_of(
    st.integers(0, 10).flatmap(lambda order: st.integers(0, 2).map(lambda word: area_at(order) + 8 * word)),
    st.tuples(st.integers(0, 1), st.integers(0, 4)).map(lambda at: (PCPS[at[0]] << 12) + 8 * at[1]),
    st.tuples(
        st.sampled_from([*SINGLES, *ON_PCP, BLOCK, TAIL, 0xC00, USED]), st.sampled_from([8, 16, 24, 40, 48, 56])
    ).map(lambda at: page_at(at[0]) + at[1]),
)


@given(st.lists(st.tuples(PLACES_OF_WORDS, WORDS), min_size=1, max_size=4), st.data())
def test_the_check_ends_for_any_bytes(damage: list[tuple[int, int]], data: st.DataObject) -> None:
    """With any words in its structures the allocator returns a page or the machine crashes; the check always ends."""
    machine, allocator = worn()
    for at, word in damage:
        machine.memory.write_u64(at, word)
    check_allocator(machine, PLACES, tables=frozenset(ON_PCP), unsaved=FrameRanges.of([(0, END)]))
    for _ in range(10):
        action = data.draw(st.sampled_from(["alloc", "free", "drain", "free_ranges"]))
        with contextlib.suppress(MachineFault, OutOfMemory):
            if action == "alloc":
                allocator.alloc_page(Environment(), "table", data.draw(st.integers(0, 1)))
            elif action == "free":
                allocator.free_page(data.draw(st.sampled_from([USED, *SINGLES, BLOCK, TAIL])))
            elif action == "drain":
                allocator.drain_pages()
            else:
                assert allocator.free_ranges().end <= END
    check_allocator(machine, PLACES)


def test_every_copy_that_mixes_two_instants_is_found() -> None:
    """Whichever pages are of the instant before an allocation and whichever after: sound only if all are of one."""
    before, after, changed = two_instants()
    assert {ZONE, PCPS[0]} < set(changed)
    assert len(changed) >= 5
    for number in range(len(changed) + 1):
        for old in itertools.combinations(changed, number):
            found = check_allocator(after.with_pages_of(before, old), PLACES)
            assert (found == []) == (number in (0, len(changed))), old


def test_a_terabyte_is_checked_by_what_is_special_in_it() -> None:
    """2^28 frames with free blocks here and there: pages of mem_map that are all one page are looked at once."""
    end, start, gibibyte = 1 << 28, 1 << 20, 1 << 18
    places = AllocatorPlaces(start << 12, 0x90 << 12, (0x91 << 12,), end)
    array = np.broadcast_to(mem_map_page(), (places.mem_map_pages, 4096))
    idle = np.broadcast_to(mem_map_page(refcount=0), (gibibyte // 64, 4096))
    big = 200 * gibibyte
    segments = [Segment(start + big // 64, idle), Segment(start, array)]
    machine = TinyMachine(Overlay(FormulaMemory(FrameRanges.of([(0, end)]), segments)), end_pfn=end)
    init_zone(machine, places, batch=63, high=252)
    allocator = BuddyAllocator(machine, places)
    allocator.free_pages_memory(big, gibibyte)
    assert len(machine.hooked) < 300  # of a free GiB the first page of each block is written to, no other
    for number in range(100):
        allocator.free_pages_memory(number * gibibyte + 77, 100)
    got = [allocator.alloc_page(Environment(), "table") for _ in range(500)]
    unsaved = allocator.free_ranges()
    assert unsaved.total_pages == allocator.nr_free_pages
    assert check_allocator(machine, places, tables=frozenset(got), unsaved=unsaved) == []
    late = [allocator.alloc_page(Environment(), "late") for _ in range(100)]
    machine.set_u32((start << 12) + 64 * (250 * gibibyte + 3) + REFCOUNT, 0)
    found = check_allocator(machine, places, tables=frozenset(got), unsaved=unsaved)
    lost = AllocatorProblem("free by its _refcount, but on no list: lost", 250 * gibibyte + 3, 1)
    leaked = {
        pfn
        for problem in found
        if problem.what.endswith("leaked")
        for pfn in range(problem.pfn, problem.pfn + problem.pages)
    }
    assert lost in found
    assert leaked == {pfn for pfn in late if unsaved.contains(pfn)} != set()
