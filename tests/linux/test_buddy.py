"""The page allocator in the machine's own memory: against lists of plain numbers, a real kernel's memory, and damage.

The witness reads the machine's bytes with `struct` and offsets of its own, never through the module under test.
"""

from __future__ import annotations

import contextlib
import itertools
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hibernaut.errors import MachineFault, OutOfMemory
from hibernaut.linux.buddy import (
    BUDDY_TYPE,
    LIST_POISON1,
    LIST_POISON2,
    STRUCT_PAGE,
    AllocatorMachine,
    AllocatorPlaces,
    AllocatorProblem,
    BuddyAllocator,
    check_allocator,
    init_zone,
    mem_map_page,
    zone_batchsize,
)
from hibernaut.linux.environment import ChooseFrames, Environment, FailAllocations, Kind, Question
from hibernaut.linux.formula import FormulaMemory
from hibernaut.linux.page_alloc import Allocation
from hibernaut.linux.printk import EventLog
from hibernaut.memory.physical import FrameRanges, Overlay, Segment
from hibernaut.paging.tables import PageTables
from tests.conftest import Golden
from tests.paging.golden_elf import golden_memory

BASE = 0xFFFF_8880_0000_0000
END = 4096 + 40
"""Frames of the small machine: not a multiple of the 64 that a page of mem_map speaks of, nor of a block."""
MEM_MAP, ZONE, PCPS, DATA = 0x40, 0x90, (0x91, 0x93), 0x95
"""First frames of what it holds; its last table of struct pages ends before the zone."""
FREE = ((0x100, 0x300), (0x431, 0x97), (0x800, 0x800), (0x1005, 0x22))

NEXT, PREV, PRIVATE, TYPE, REFCOUNT = 8, 16, 40, 48, 52
NR_FREE = 16
AREAS, NR_FREE_PAGES, PCP_LIST = 64, 384, 24


# --- a machine that is only an allocator -------------------------------------------------------------------------


@dataclass
class TinyMachine:
    """RAM and a log; no tables: whatever lies in RAM is mapped."""

    memory: Overlay
    end_pfn: int = END
    base: int = BASE
    log: EventLog = field(default_factory=EventLog)
    hooked: set[int] = field(default_factory=set)

    def write_u64(self, paddr: int, value: int) -> None:
        self.hooked.add(paddr >> 12)
        self.memory.write_u64(paddr, value)

    def page_fault_oops(self, vaddr: int, *, doing: str, pfn: int | None = None, table: bool = True) -> MachineFault:
        del table
        what = "kernel NULL pointer dereference" if vaddr < 4096 else "unable to handle page fault for"
        comma = "," if vaddr < 4096 else ""
        self.log.printk(f"BUG: {what}{comma} address: {vaddr:016x}")
        return MachineFault(what, address=vaddr, entry=None, pfn=pfn, doing=doing, log=self.log.kernel_lines)

    def fork(self) -> TinyMachine:
        return replace(self, memory=self.memory.fork(), log=self.log.fork(), hooked=set())

    def with_pages_of(self, other: TinyMachine, frames: Sequence[int]) -> TinyMachine:
        """A copy in which some frames are those of another instant."""
        torn = self.fork()
        for pfn in frames:
            page = other.memory.frame(pfn)
            assert page is not None
            torn.memory.write_page(pfn, page)
        return torn

    def u64(self, paddr: int) -> int:
        word = self.memory.read_u64(paddr)
        assert word is not None
        return word

    def u32(self, paddr: int) -> int:
        return self.u64(paddr & ~7) >> 8 * (paddr & 7) & 0xFFFF_FFFF

    def set_u32(self, paddr: int, value: int) -> None:
        self.memory.write(paddr, (value & 0xFFFF_FFFF).to_bytes(4, "little"))

    def bytes_of(self, frames: Sequence[int]) -> dict[int, bytes]:
        pages, _ = self.memory.gather(np.array(frames, dtype=np.int64))
        return {pfn: page.tobytes() for pfn, page in zip(frames, pages, strict=True)}


PLACES = AllocatorPlaces(MEM_MAP << 12, ZONE << 12, tuple(pfn << 12 for pfn in PCPS), END)


def built(
    free: Sequence[tuple[int, int]] = FREE, *, batch: int = 7, high: int = 28, end: int = END
) -> tuple[TinyMachine, BuddyAllocator]:
    places = replace(PLACES, end_pfn=end)
    array = np.broadcast_to(mem_map_page(), (places.mem_map_pages, 4096))
    memory = FormulaMemory(FrameRanges.of([(0, end)]), [Segment(MEM_MAP, array)])
    machine = TinyMachine(Overlay(memory), end_pfn=end)
    init_zone(machine, places, batch=batch, high=high)
    allocator = BuddyAllocator(machine, places)
    for start, pages in free:
        allocator.free_area(start, pages)
    return machine, allocator


def page_at(pfn: int) -> int:
    """Physical address of a struct page."""
    return (MEM_MAP << 12) + 64 * pfn


def area_at(order: int) -> int:
    return (ZONE << 12) + AREAS + 24 * order


def list_at(cpu: int) -> int:
    return (PCPS[cpu] << 12) + PCP_LIST


def read_list(machine: TinyMachine, head: int) -> list[int]:
    """A list followed forwards, which must be the one followed backwards."""

    def follow(offset: int) -> list[int]:
        found, at = [], machine.u64(head + offset) - BASE
        while at != head:
            found.append((at - 8 - (MEM_MAP << 12)) // 64)
            assert at == page_at(found[-1]) + 8
            at = machine.u64(at + offset) - BASE
        return found

    forwards = follow(0)
    assert follow(8) == forwards[::-1]
    return forwards


def free_lists(machine: TinyMachine) -> list[list[int]]:
    return [read_list(machine, area_at(order)) for order in range(11)]


def pcp_lists(machine: TinyMachine) -> list[list[int]]:
    return [read_list(machine, list_at(cpu)) for cpu in range(len(PCPS))]


# --- the same allocator on plain lists ---------------------------------------------------------------------------


class ListModel:
    """What mm/page_alloc.c does, with Python's lists of numbers: no memory, no links, no counts."""

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
        while order < 10 and pfn ^ 2**order in self.areas[order]:
            self.areas[order].remove(pfn ^ 2**order)
            pfn &= ~(2**order)
            order += 1
        if order < 9:
            to_tail |= (pfn & ~(2**order)) ^ 2 ** (order + 1) in self.areas[order + 1]
        self.areas[order].insert(len(self.areas[order]) if to_tail else 0, pfn)

    def take(self) -> int | None:
        order = next((n for n in range(11) if self.areas[n]), None)
        if order is None:
            return None
        pfn = self.areas[order].pop(0)
        for half in range(order - 1, -1, -1):
            self.areas[half].insert(0, pfn + 2**half)
        return pfn

    def alloc(self, cpu: int, pick: int) -> int | None:
        self.factors[cpu] //= 2
        if not self.pcps[cpu]:
            taken = [self.take() for _ in range(self.batch)]
            self.pcps[cpu] = [pfn for pfn in taken if pfn is not None]
        return self.pcps[cpu].pop(pick % len(self.pcps[cpu])) if self.pcps[cpu] else None

    def free(self, pfn: int, cpu: int) -> None:
        self.pcps[cpu].insert(0, pfn)
        if len(self.pcps[cpu]) < self.high:
            return
        wanted = self.batch << self.factors[cpu]
        if wanted < self.high - self.batch and self.factors[cpu] < 5:
            self.factors[cpu] += 1
        for _ in range(min(max(wanted, self.batch), self.high - self.batch)):
            self.give(self.pcps[cpu].pop(), 0)

    def drain(self, cpu: int) -> None:
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
@example(FREE, (7, 28), [("alloc many", 0, 60), ("free many", 1, 60), ("alloc", 0, 0), ("drain", 1, 0)])
def test_any_sequence_leaves_the_lists_that_plain_lists_have(
    free: tuple[tuple[int, int], ...], limits: tuple[int, int], operations: list[tuple[str, int, int]]
) -> None:
    """After every step the bytes say what a model of plain lists says, in order; nothing is free twice, none is lost."""
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
        assert [set(area) for area in model.areas] == blocks_of(set(allocator.free_ranges().frames().tolist()))
        assert (
            allocator.nr_free
            == allocator.free_ranges().total_pages
            == len(every) - len(used) - sum(map(len, model.pcps))
        )
        unsaved = FrameRanges.of_frames(sorted(every - set(used)))
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
                allocator.drain(cpu)
                model.drain(cpu)
        agrees()
    for pfn in used.copy():
        release(0, used.index(pfn))
    allocator.drain()
    assert [set(area) for area in free_lists(machine)] == blocks_of(every)
    assert allocator.free_ranges().frames().tolist() == sorted(every)
    assert check_allocator(machine, allocator.places) == []
