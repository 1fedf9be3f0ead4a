# SPDX-License-Identifier: GPL-2.0-or-later
"""The page allocator in the machine's own memory, against an allocator on lists of plain numbers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hibernaut.errors import OutOfMemory
from hibernaut.linux.allocator import Allocation
from hibernaut.linux.check_allocator import check_allocator
from hibernaut.linux.environment import ChooseFrames, Environment, FailAllocations, Kind, Question
from hibernaut.linux.mmzone import BUDDY_TYPE
from hibernaut.linux.page_alloc import zone_batchsize
from hibernaut.memory.ranges import FrameRanges
from tests.linux.tiny_machine import (
    END,
    FREE,
    MEM_MAP,
    NEXT,
    PCPS,
    PLACES,
    PREV,
    PRIVATE,
    REFCOUNT,
    TYPE,
    ZONE,
    built,
    free_lists,
    list_at,
    page_at,
    pcp_lists,
    read_list,
)


class ListModel:
    """mm/page_alloc.c on Python's lists of numbers: no memory, no links, no counts."""

    def __init__(self, free: Sequence[tuple[int, int]], batch: int, high: int) -> None:
        self.areas: list[list[int]] = [[] for _ in range(11)]
        self.pcps: list[list[int]] = [[] for _ in PCPS]
        self.factors = [0 for _ in PCPS]
        self.batch, self.high = batch, high
        for start, pages in free:
            at = start
            while at < start + pages:
                order = next(n for n in range(10, -1, -1) if at % 2**n == 0 and at + 2**n <= start + pages)
                self.give(at, order, to_tail=True)
                at += 2**order

    def give(self, pfn: int, order: int, to_tail: bool = False) -> None:
        """Free a block and merge it with its buddies."""
        while order < 10 and pfn ^ 2**order in self.areas[order]:
            self.areas[order].remove(pfn ^ 2**order)
            pfn &= ~(2**order)
            order += 1
        if order < 9:
            to_tail |= (pfn & ~(2**order)) ^ 2 ** (order + 1) in self.areas[order + 1]
        self.areas[order].insert(len(self.areas[order]) if to_tail else 0, pfn)

    def take(self) -> int | None:
        """Return the first page of the smallest free block; its other pages stay free."""
        order = next((n for n in range(11) if self.areas[n]), None)
        if order is None:
            return None
        pfn = self.areas[order].pop(0)
        for half in range(order - 1, -1, -1):
            self.areas[half].insert(0, pfn + 2**half)
        return pfn

    def alloc(self, cpu: int, pick: int) -> int | None:
        """Return the frame that a CPU's allocation gets."""
        self.factors[cpu] //= 2
        if not self.pcps[cpu]:
            taken = [self.take() for _ in range(self.batch)]
            self.pcps[cpu] = [pfn for pfn in taken if pfn is not None]
        return self.pcps[cpu].pop(pick % len(self.pcps[cpu])) if self.pcps[cpu] else None

    def free(self, pfn: int, cpu: int) -> None:
        """Free a frame on a CPU."""
        self.pcps[cpu].insert(0, pfn)
        if len(self.pcps[cpu]) < self.high:
            return
        wanted = self.batch << self.factors[cpu]
        if wanted < self.high - self.batch and self.factors[cpu] < 5:
            self.factors[cpu] += 1
        for _ in range(min(max(wanted, self.batch), self.high - self.batch)):
            self.give(self.pcps[cpu].pop(), 0)

    def drain(self, cpu: int) -> None:
        """Return all pages of a CPU's list to the free lists."""
        while self.pcps[cpu]:
            self.give(self.pcps[cpu].pop(), 0)


class Pick(Environment):
    """Every allocation gets the page at this position of the CPU's list, counted round; it may fail instead."""

    def __init__(self) -> None:
        super().__init__()
        self.position = 0
        self.fails = False
        self.asked: list[list[int]] = []

    def decide(self, question: Question) -> int:
        """Answer with a fixed position, and record the options."""
        if question.kind == Kind.ALLOCATION_FAILS:
            return int(self.fails)
        self.asked.append(list(question.options))
        return self.position % len(question.options)


def blocks_of(frames: set[int]) -> list[set[int]]:
    """The only way to cut frames into blocks that cannot merge, by order."""
    found: list[set[int]] = [set() for _ in range(11)]
    left = set(frames)
    for order in range(10, -1, -1):
        for pfn in sorted(pfn for pfn in left if pfn % 2**order == 0):
            block = set(range(pfn, pfn + 2**order))
            if block <= left:
                found[order].add(pfn)
                left -= block
    return found


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("alloc"), st.integers(0, 1), st.sampled_from([0, 0, 0, 1, 3])),
        st.tuples(st.just("alloc many"), st.integers(0, 1), st.integers(2, 60)),
        st.tuples(st.just("fail"), st.integers(0, 1), st.just(0)),
        st.tuples(st.just("free"), st.integers(0, 1), st.integers(0, 1000)),
        st.tuples(st.just("free many"), st.integers(0, 1), st.integers(2, 60)),
        st.tuples(st.just("drain"), st.integers(0, 1), st.just(0)),
    ),
    max_size=25,
)

LAYOUTS = st.lists(
    st.tuples(st.integers(0, 7), st.integers(0, 200), st.integers(1, 300)),
    min_size=1,
    max_size=6,
    unique_by=lambda x: x[0],
).map(lambda parts: tuple((0x200 * number + start, pages) for number, start, pages in parts if number or start > 0xA0))


@given(LAYOUTS, st.sampled_from([(1, 4), (3, 12), (7, 28), (7, 14)]), OPERATIONS)
@example(((0xC00, 0x200), (0x200, 0x200), (0x800, 0x400)), (3, 12), [("alloc", 0, 0), ("free", 0, 0), ("drain", 0, 0)])
@example(FREE, (7, 28), [("alloc many", 0, 60), ("free many", 0, 28), ("alloc", 0, 0), ("free many", 0, 20)])
@example(FREE, (7, 28), [("alloc many", 0, 60), ("free many", 1, 60), ("alloc", 0, 0), ("drain", 1, 0)])
def test_any_sequence_leaves_the_lists_that_plain_lists_have(
    free: tuple[tuple[int, int], ...], limits: tuple[int, int], operations: list[tuple[str, int, int]]
) -> None:
    """After every step the bytes say what plain lists say, in order; no page is free twice, none is lost."""
    machine, allocator = built(free, batch=limits[0], high=limits[1])
    model, used, environment = ListModel(free, *limits), [], Pick()
    every = {pfn for start, pages in free for pfn in range(start, start + pages)}

    def alloc(cpu: int, pick: int) -> None:
        environment.position = pick
        expected = model.alloc(cpu, pick)
        if expected is None:
            with pytest.raises(OutOfMemory) as failure:
                allocator.alloc_page(environment, "more than there is", cpu)
            assert not failure.value.injected
        else:
            assert allocator.alloc_page(environment, "table", cpu) == expected
            assert expected not in used
            used.append(expected)

    def release(cpu: int, which: int) -> None:
        if used:
            pfn = used.pop(which % len(used))
            allocator.free_page(pfn, cpu)
            model.free(pfn, cpu)

    def refuse(cpu: int) -> None:
        before, environment.fails = machine.bytes_of(machine.memory.written.tolist()), True
        with pytest.raises(OutOfMemory) as failure:
            allocator.alloc_page(environment, "fails", cpu)
        assert failure.value.injected
        assert machine.bytes_of(machine.memory.written.tolist()) == before
        environment.fails = False

    def agrees() -> None:
        assert free_lists(machine) == model.areas
        assert pcp_lists(machine) == model.pcps
        assert [set(area) for area in model.areas] == blocks_of(set(allocator.free_ranges().pfns().tolist()))
        assert (
            allocator.nr_free_pages
            == allocator.free_ranges().total_pages
            == len(every) - len(used) - sum(map(len, model.pcps))
        )
        unsaved = FrameRanges.of_pfns(sorted(every - set(used)))
        assert check_allocator(machine, allocator.places, tables=frozenset(used), unsaved=unsaved) == []

    agrees()
    for name, cpu, number in operations:
        for _ in range(number if name.endswith("many") else 1):
            if name.startswith("alloc"):
                alloc(cpu, 0 if name.endswith("many") else number)
            elif name.startswith("free"):
                release(cpu, number)
            elif name == "fail":
                refuse(cpu)
            else:
                allocator.drain_pages(cpu)
                model.drain(cpu)
        agrees()
    for pfn in used.copy():
        release(0, used.index(pfn))
    allocator.drain_pages()
    assert [set(area) for area in free_lists(machine)] == blocks_of(every)
    assert allocator.free_ranges().pfns().tolist() == sorted(every)
    assert check_allocator(machine, allocator.places) == []


def test_the_cpus_list_is_refilled_in_bulk_and_taken_from_its_head() -> None:
    """Seven pages come at a time, ascending; the environment is offered them in the list's order."""
    machine, allocator = built(((0x800, 0x400),))
    environment = Pick()
    assert allocator.alloc_page(environment, "first") == 0x800
    assert environment.asked == [[0x800 + n for n in range(7)]]
    assert read_list(machine, list_at(0)) == [0x801 + n for n in range(6)]
    assert (machine.u32((PCPS[0] << 12) + 4), allocator.nr_free_pages) == (6, 0x400 - 7)
    allocator.free_page(0x800)
    assert read_list(machine, list_at(0)) == [0x800 + n for n in range(7)]
    assert allocator.alloc_page(ChooseFrames(0, 0x803), "second, chosen") == 0x803
    assert check_allocator(machine, allocator.places) == []


def test_a_page_in_use_is_poisoned_and_counted_once() -> None:
    """A page that was handed out has 1 in _refcount, no order, poison in its links, and mapcount -1."""
    machine, allocator = built()
    pfn = allocator.alloc_page(Environment(), "table")
    at = page_at(pfn)
    assert (machine.u64(at + NEXT), machine.u64(at + PREV)) == (0xDEAD000000000100, 0xDEAD000000000122)
    assert (machine.u64(at + PRIVATE), machine.u32(at + TYPE), machine.u32(at + REFCOUNT)) == (0, 0xFFFFFFFF, 1)


def test_allocations_are_recorded_and_failures_too() -> None:
    """The record has every allocation, numbered from 1; an injected failure has no frame and touches nothing."""
    _, allocator = built(((0x100, 2),))
    environment = FailAllocations(2)
    first = allocator.alloc_page(environment, "first")
    for injected in (True, None, False):
        if injected is None:
            allocator.alloc_page(environment, "third")
            continue
        with pytest.raises(OutOfMemory) as failure:
            allocator.alloc_page(environment, "fails")
        assert failure.value.injected == injected
    assert allocator.allocations == (
        Allocation(1, "first", first),
        Allocation(2, "fails", None),
        Allocation(3, "third", first + 1),
        Allocation(4, "fails", None),
    )


def test_a_fork_has_the_same_record_and_a_memory_of_its_own() -> None:
    """Pages that the twin allocates stay free in the original; both remain sound."""
    machine, allocator = built()
    allocator.alloc_page(Environment(), "before")
    lists = free_lists(machine), pcp_lists(machine)
    twin = machine.fork()
    forked = allocator.fork(twin)
    assert forked.allocations == allocator.allocations
    got = [forked.alloc_page(Environment(), "twin") for _ in range(20)]
    forked.free_page(got[0])
    forked.drain_pages()
    assert (free_lists(machine), pcp_lists(machine)) == lists
    assert len(allocator.allocations) == 1
    assert [allocator.alloc_page(Environment(), "here") for _ in range(20)] == got
    assert check_allocator(machine, PLACES) == check_allocator(twin, PLACES) == []


def test_every_write_goes_through_the_machine() -> None:
    """Each frame that differs after some work was announced, so a copy page by page can know the torn pages."""
    machine, allocator = built()
    before, machine.hooked = machine.fork(), set()
    got = [allocator.alloc_page(Environment(), "table") for _ in range(30)]
    for pfn in got[::2]:
        allocator.free_page(pfn, cpu=1)
    allocator.drain_pages()
    frames = machine.memory.written.tolist()
    old, new = before.bytes_of(frames), machine.bytes_of(frames)
    changed = {pfn for pfn in frames if old[pfn] != new[pfn]}
    assert changed <= machine.hooked
    assert {ZONE, PCPS[0], PCPS[1]} <= machine.hooked
    assert all(MEM_MAP <= pfn < MEM_MAP + PLACES.mem_map_pages for pfn in machine.hooked - {ZONE, *PCPS})


def test_only_the_last_reference_frees() -> None:
    """A page that two hold is freed by the second; one that is free already is not put on a list again."""
    machine, allocator = built()
    pfn = allocator.alloc_page(Environment(), "shared")
    machine.set_u32(page_at(pfn) + REFCOUNT, 2)
    allocator.free_page(pfn)
    assert pfn not in read_list(machine, list_at(0))
    allocator.free_page(pfn)
    assert read_list(machine, list_at(0))[0] == pfn
    allocator.free_page(pfn)
    assert read_list(machine, list_at(0)).count(pfn) == 1
    assert machine.u32(page_at(pfn) + REFCOUNT) == 0xFFFFFFFF
    with pytest.raises(ValueError, match="no struct page"):
        allocator.free_page(END)
    with pytest.raises(ValueError, match="struct pages end"):
        allocator.free_pages_memory(END - 1, 2)


@pytest.mark.parametrize(
    ("managed_pages", "batch"),
    [(0, 0), (3840, 0), (8191, 0), (8192, 1), (12288, 3), (65403, 15), (1 << 18, 63), (1 << 28, 63)],
)
def test_zone_batchsize(managed_pages: int, batch: int) -> None:
    """The batch of zones of known size: 15 for 256 MiB, 63 from 1 GiB on, and 0 where the kernel then takes 1."""
    assert zone_batchsize(managed_pages) == batch
    assert batch + 1 & batch == 0


def test_bytes_behind_the_last_struct_page_are_not_one() -> None:
    """The rest of the last page of mem_map is unused: no block merges with it, and the check skips it."""
    machine, allocator = built(((END - 8, 8),))
    machine.memory.write_u64(page_at(END) + PRIVATE, 3)
    machine.set_u32(page_at(END) + TYPE, BUDDY_TYPE)
    machine.set_u32(page_at(END + 1) + REFCOUNT, 0)
    got = allocator.alloc_page(Environment(), "table")
    allocator.free_page(got)
    allocator.drain_pages()
    assert free_lists(machine)[3] == [END - 8]
    assert check_allocator(machine, PLACES) == []
    assert machine.u64(ZONE << 12) == 8  # managed_pages
