# SPDX-License-Identifier: GPL-2.0-or-later
"""The page allocator in the machine's own memory: against lists of plain numbers, a real kernel's memory, and damage.

The witness reads the machine's bytes with `struct` and offsets of its own, never through the module under test.
"""

from __future__ import annotations

import contextlib
import itertools
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hibernaut.errors import MachineFault, OutOfMemory
from hibernaut.linux.allocator import Allocation
from hibernaut.linux.buddy import (
    BUDDY_TYPE,
    LIST_POISON1,
    LIST_POISON2,
    STRUCT_PAGE,
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

    def page_fault_oops(
        self, vaddr: int, *, doing: str, pfn: int | None = None, table: bool = True, write: bool = False
    ) -> MachineFault:
        del table, write
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


def test_the_cpus_list_is_refilled_in_bulk_and_taken_from_its_head() -> None:
    """Seven pages come at a time, ascending; the environment is offered them in the list's order."""
    machine, allocator = built(((0x800, 0x400),))
    environment = Pick()
    assert allocator.alloc_page(environment, "first") == 0x800
    assert environment.asked == [[0x800 + n for n in range(7)]]
    assert read_list(machine, list_at(0)) == [0x801 + n for n in range(6)]
    assert (machine.u32((PCPS[0] << 12) + 4), allocator.nr_free) == (6, 0x400 - 7)
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
    """What the twin allocates, the original still has; both remain sound."""
    machine, allocator = built()
    allocator.alloc_page(Environment(), "before")
    lists = free_lists(machine), pcp_lists(machine)
    twin = machine.fork()
    forked = allocator.fork(twin)
    assert forked.allocations == allocator.allocations
    got = [forked.alloc_page(Environment(), "twin") for _ in range(20)]
    forked.free_page(got[0])
    forked.drain()
    assert (free_lists(machine), pcp_lists(machine)) == lists
    assert len(allocator.allocations) == 1
    assert [allocator.alloc_page(Environment(), "here") for _ in range(20)] == got
    assert check_allocator(machine, PLACES) == check_allocator(twin, PLACES) == []


def test_every_write_goes_through_the_machine() -> None:
    """A frame that differs after some work was announced: who copies page by page can know which pages are torn."""
    machine, allocator = built()
    before, machine.hooked = machine.fork(), set()
    got = [allocator.alloc_page(Environment(), "table") for _ in range(30)]
    for pfn in got[::2]:
        allocator.free_page(pfn, cpu=1)
    allocator.drain()
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
        allocator.free_area(END - 1, 2)


@pytest.mark.parametrize(
    ("managed_pages", "batch"),
    [(0, 0), (3840, 0), (8191, 0), (8192, 1), (12288, 3), (65403, 15), (1 << 18, 63), (1 << 28, 63)],
)
def test_zone_batchsize(managed_pages: int, batch: int) -> None:
    """The batch of zones of known size: 15 for 256 MiB, 63 from 1 GiB on, and 0 where the kernel then takes 1."""
    assert zone_batchsize(managed_pages) == batch
    assert batch + 1 & batch == 0


def test_places_are_pages() -> None:
    """Each part of the state begins a page."""
    with pytest.raises(ValueError, match="0x90010"):
        AllocatorPlaces(0x40000, 0x90010, (0x91000,), END)


def test_what_lies_behind_the_last_struct_page_is_none() -> None:
    """The rest of the last page of mem_map is nobody's: no block merges with it, the check does not look there."""
    machine, allocator = built(((END - 8, 8),))
    machine.memory.write_u64(page_at(END) + PRIVATE, 3)
    machine.set_u32(page_at(END) + TYPE, BUDDY_TYPE)
    machine.set_u32(page_at(END + 1) + REFCOUNT, 0)
    got = allocator.alloc_page(Environment(), "table")
    allocator.free_page(got)
    allocator.drain()
    assert free_lists(machine)[3] == [END - 8]
    assert check_allocator(machine, PLACES) == []
    assert machine.u64(ZONE << 12) == 8  # managed_pages


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


# --- a real kernel's memory --------------------------------------------------------------------------------------

VMEMMAP = 0xFFFF_EA00_0000_0000
"""Where the golden guest's kernel (SPARSEMEM_VMEMMAP, no KASLR) has the `struct page` of frame 0."""

Pages = np.ndarray[tuple[int], np.dtype[np.void]]


@pytest.fixture(scope="module")
def real_pages(golden: Golden) -> Pages:
    """All `struct page`s of a real 6.1 with 256 MiB."""
    memory = golden_memory(golden("ram-6.1-lzo.elf"))
    tables = PageTables(memory, int(golden.expected["ram-6.1-lzo.elf"]["cr3"], 16))
    found = tables.translate(VMEMMAP + np.arange(1024, dtype=np.uint64) * np.uint64(4096))
    pages, present = memory.gather(found.pfns)
    assert present.all()
    array: Pages = pages.reshape(-1).view(STRUCT_PAGE)
    return array


def test_free_pages_of_a_real_kernel_look_as_declared(real_pages: Pages) -> None:
    """In a real 6.1 the blocks marked so are aligned and disjoint; all of their pages have _refcount 0 and type -1."""
    heads = np.flatnonzero(real_pages["page_type"] == BUDDY_TYPE)
    orders = real_pages["private"][heads].astype(np.int64)
    assert len(heads) > 100
    assert set(orders.tolist()) == set(range(11))
    assert (heads % (1 << orders) == 0).all()
    free = FrameRanges.of(list(zip(heads.tolist(), (1 << orders).tolist(), strict=True)))
    assert free.total_pages == int((1 << orders).sum()) > 20000
    inside = real_pages[free.frames()]
    assert not inside["_refcount"].any()
    assert set(np.unique(inside["page_type"]).tolist()) == {BUDDY_TYPE, 0xFFFFFFFF}


def test_links_that_a_real_kernel_does_not_use_are_poison_or_zero(real_pages: Pages) -> None:
    """In a real 6.1 pages within free blocks have the poison of `list_del`, most pages in use a NULL next."""
    unlinked = real_pages[real_pages["next"] == LIST_POISON1]
    assert len(unlinked) > 10000
    assert (unlinked["prev"] == LIST_POISON2).all()
    assert (unlinked["page_type"] == 0xFFFFFFFF).all()
    used = real_pages[real_pages["_refcount"] > 0]
    assert np.count_nonzero(used["next"] == 0) > len(used) // 2


def test_a_real_zone_counts_what_is_on_its_lists(golden: Golden, real_pages: Pages) -> None:
    """Followed by `next`, every free block of a real 6.1 leads to a head in an array of free areas, whose nr_free fits.

    That kernel has lists for 5 migrate types in each area: 88 bytes, the count last.
    """
    memory = golden_memory(golden("ram-6.1-lzo.elf"))
    lists: dict[tuple[int, int], int] = {}
    for pfn in np.flatnonzero(real_pages["page_type"] == BUDDY_TYPE).tolist():
        order, at = int(real_pages["private"][pfn]), int(real_pages["next"][pfn])
        while VMEMMAP <= at < VMEMMAP + 64 * len(real_pages):
            at = int(real_pages["next"][(at - VMEMMAP) // 64])
        lists[order, at] = lists.get((order, at), 0) + 1
    starts = sorted({head - 88 * order for order, head in lists})
    zones = [start for start in starts if not any(start - other in (16, 32, 48, 64) for other in starts)]
    assert len(zones) == 2
    for zone, order in itertools.product(zones, range(11)):
        area = zone + 88 * order
        found = sum(blocks for (of, head), blocks in lists.items() if of == order and 0 <= head - area < 80)
        assert memory.read_u64(area + 80 - BASE) == found


# --- damage ------------------------------------------------------------------------------------------------------


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
    """Damage: what is done, in words that name it; what must be said of it, and of which frame."""

    name: str
    damage: Callable[[TinyMachine], None]
    said: str
    pfn: int


def put(at: int, value: int) -> Callable[[TinyMachine], None]:
    return lambda machine: machine.memory.write_u64(at, value)


def put32(at: int, value: int) -> Callable[[TinyMachine], None]:
    return lambda machine: machine.set_u32(at, value)


SINGLES, ON_PCP, BLOCK, TAIL, USED = (
    (0x1025, 0x432, 0x1005),
    (0x1022, 0x1023, 0x438, 0x439, 0x43A, 0x43B),
    0x800,
    0xBFE,
    0x431,
)
"""What `worn` has: free single pages, CPU 0's list, a block of 1024 pages (free_area[10], with 0xc00), one of its pages
that is not its first, a page in use."""


def worn() -> tuple[TinyMachine, BuddyAllocator]:
    """A machine that has worked for a while, with something on most kinds of lists."""
    machine, allocator = built()
    for _ in range(15):
        allocator.alloc_page(Environment(), "table")
    for pfn in SINGLES:
        allocator.free_page(pfn, cpu=1)
    allocator.drain(1)
    assert (free_lists(machine)[0], free_lists(machine)[10]) == (list(SINGLES[::-1]), [BLOCK, 0xC00])
    assert pcp_lists(machine) == [list(ON_PCP), []]
    return machine, allocator


FIRST, MIDDLE, LAST = (page_at(pfn) for pfn in SINGLES[::-1])
FREE_0, FREE_1, FREE_10 = (area_at(order) for order in (0, 1, 10))
PCP = PCPS[0] << 12

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


def test_what_the_struct_pages_alone_cannot_tell() -> None:
    """A page table that is free, a page in use whose bytes nobody saved: found if the caller says which they are."""
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
    """Where the zone, a CPU's list or a part of mem_map is missing, that is said."""
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
def test_whatever_the_bytes_say_the_end_is_an_answer(damage: list[tuple[int, int]], data: st.DataObject) -> None:
    """With any words in its structures the allocator gives a page or dies as a machine; the check always answers."""
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
                allocator.drain()
            else:
                assert allocator.free_ranges().end <= END
    check_allocator(machine, PLACES)


# --- torn copies -------------------------------------------------------------------------------------------------


def two_instants() -> tuple[TinyMachine, TinyMachine, list[int]]:
    """A machine at rest, the same after one allocation, which refilled the CPU's list, and the frames that differ."""
    machine, allocator = built(((0x103, 1), (0x240, 2), (0x800, 0x400)))
    before = machine.fork()
    allocator.alloc_page(Environment(), "table, in the middle of the copy")
    frames = sorted(machine.hooked)
    old, new = before.bytes_of(frames), machine.bytes_of(frames)
    return before, machine, [pfn for pfn in frames if old[pfn] != new[pfn]]


def test_every_copy_that_mixes_two_instants_is_found() -> None:
    """Whichever pages are of the instant before an allocation and whichever after: sound only if all are of one."""
    before, after, changed = two_instants()
    assert {ZONE, PCPS[0]} < set(changed)
    assert len(changed) >= 5
    for number in range(len(changed) + 1):
        for old in itertools.combinations(changed, number):
            found = check_allocator(after.with_pages_of(before, old), PLACES)
            assert (found == []) == (number in (0, len(changed))), old


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


DEATHS = {
    "marking, NULL": (
        put(FREE_0, 0),
        BuddyAllocator.free_ranges,
        "leads to no page",
        "kernel BUG at kernel/power/snap",
    ),
    "marking, a circle": (put(LAST + NEXT, BASE + FIRST + NEXT), BuddyAllocator.free_ranges, "never comes back", None),
    "draining, count": (put32(PCP + 4, 900), BuddyAllocator.drain, "endless loop", "NMI watchdog: Watchdog detected"),
    "draining, batch": (put32(PCP + 12, 0), BuddyAllocator.drain, "endless loop", "NMI watchdog: Watchdog detected"),
    "draining, NULL": (put(PCP + PCP_LIST + 8, 0), BuddyAllocator.drain, "NULL pointer", "BUG: kernel NULL pointer"),
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
def test_other_ways_to_die(
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
    """The kernel's counts are signed, and its loop over a list goes on while pages are left to free."""
    machine, allocator = worn()
    machine.set_u32(PCP + 4, -3)
    allocator.drain(0)
    assert pcp_lists(machine)[0] == list(ON_PCP)


def test_a_page_of_the_free_lists_that_is_in_use_is_refused_in_the_kernels_words() -> None:
    """A refill looks at what it takes (6.1): a page that is in use is complained of and lost, the next given."""
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
    assert allocator.nr_free == 0
    with pytest.raises(OutOfMemory):
        allocator.alloc_page(Environment(), "second")


def test_a_page_of_a_cpus_list_that_is_mapped_does_not_go_back_to_the_free_lists() -> None:
    """A drain looks at what it gives back (6.1): a page with a mapcount is complained of, lost, and its count reset."""
    machine, allocator = worn()
    machine.set_u32(page_at(0x438) + TYPE, 3)
    allocator.drain(0)
    assert machine.log.kernel_lines == (
        "BUG: Bad page state in process systemd-sleep  pfn:00438",
        "page dumped because: nonzero mapcount",
    )
    assert machine.u32(page_at(0x438) + TYPE) == 0xFFFFFFFF
    assert not allocator.free_ranges().contains(0x438)
    lost = AllocatorProblem("free by its _refcount, but on no list: lost", 0x438, 1)
    assert check_allocator(machine, PLACES) == [lost]


def test_a_wild_link_is_followed_as_a_cpu_would() -> None:
    """A link to any bytes of RAM, even across two pages: they are read and written, and the page is nobody's."""
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


# --- a big machine -----------------------------------------------------------------------------------------------


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
    allocator.free_area(big, gibibyte)
    assert len(machine.hooked) < 300  # of a free GiB the first page of each block is written to, no other
    for number in range(100):
        allocator.free_area(number * gibibyte + 77, 100)
    got = [allocator.alloc_page(Environment(), "table") for _ in range(500)]
    unsaved = allocator.free_ranges()
    assert unsaved.total_pages == allocator.nr_free
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
