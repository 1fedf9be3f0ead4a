# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's page allocator, all of whose state lies in the simulated machine's own memory.

Nothing of it is kept here but the record of allocations: `struct page`s, the zone's free lists and the lists of each
CPU are bytes of that memory, linked by direct-map addresses as in the kernel. So a copy of memory made page by page
while the allocator runs tears it as it would tear a real one, and a resumed machine either goes on or dies as a real
one would. `check_allocator` says what is wrong with such a copy.

Facts from Linux 6.1: `struct page` (include/linux/mm_types.h), `struct zone`, `struct free_area` and `struct
per_cpu_pages` (include/linux/mmzone.h), page types (include/linux/page-flags.h), poison (include/linux/poison.h), the
order of the four writes of `list_add` and `list_del` (include/linux/list.h), the allocator itself (mm/page_alloc.c,
mm/internal.h). Left out: more than one zone and one migrate type, orders above 0 on the lists of CPUs, watermarks,
`vm_stat` differences that a CPU has not yet added up, and what CONFIG_DEBUG_LIST, CONFIG_DEBUG_VM and page shuffling
add. Where a list is broken, a kernel with CONFIG_DEBUG_LIST says so in words of its own ("list_del corruption") and may
stop there; the kernel modelled here follows the link.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hibernaut.errors import MachineFault, OutOfMemory
from hibernaut.linux.allocator import Allocation
from hibernaut.linux.environment import Environment
from hibernaut.linux.printk import EventLog
from hibernaut.memory.physical import CHUNK_PAGES, PAGE_SHIFT, PAGE_SIZE, BoolArray, Bytes, FrameRanges, PhysicalMemory

__all__ = [
    "BUDDY_TYPE",
    "IN_USE_TYPE",
    "LEAKED",
    "LIST_POISON1",
    "LIST_POISON2",
    "MAX_ORDER",
    "PAGES_PER_MAP_PAGE",
    "PER_CPU_PAGES",
    "STRUCT_PAGE",
    "ZONE",
    "AllocatorMachine",
    "AllocatorPlaces",
    "AllocatorProblem",
    "BuddyAllocator",
    "check_allocator",
    "init_zone",
    "mem_map_page",
    "zone_batchsize",
]

MAX_ORDER = 11
"""Free blocks have orders 0 to 10 (include/linux/mmzone.h; since v6.4 the name stands for 10)."""

STRUCT_PAGE = np.dtype(
    {
        "names": [
            "flags", "next", "prev", "mapping", "index", "private", "page_type", "_refcount", "memcg_data",
        ],
        "formats": ["<u8", "<u8", "<u8", "<u8", "<u8", "<u8", "<u4", "<i4", "<u8"],
        "offsets": [0, 8, 16, 24, 32, 40, 48, 52, 56],
        "itemsize": 64,
    }
)  # fmt: skip
"""`struct page`. `next` and `prev` are its list_head (`buddy_list`, `pcp_list`); `private` is the order of a free
block; `page_type` and `_mapcount` are one field; a page in use has 1 in `_refcount`, a free one 0."""

ZONE = np.dtype(
    {
        "names": ["managed_pages", "free_area", "nr_free_pages"],
        "formats": [
            "<u8",
            (np.dtype([("next", "<u8"), ("prev", "<u8"), ("nr_free", "<u8")]), (MAX_ORDER,)),
            "<u8",
        ],
        "offsets": [0, 64, 384],
        "itemsize": 448,
    }
)
"""`struct zone`, what the allocator needs of it: in the kernel's order, each part in cache lines of its own as there,
at offsets of the model's (the kernel's hang on its configuration). `nr_free_pages` is `vm_stat[NR_FREE_PAGES]`."""

PER_CPU_PAGES = np.dtype(
    {
        "names": ["lock", "count", "high", "batch", "free_factor", "next", "prev"],
        "formats": ["<u4", "<i4", "<i4", "<i4", "<i2", "<u8", "<u8"],
        "offsets": [0, 4, 8, 12, 16, 24, 32],
        "itemsize": 64,
    }
)
"""`struct per_cpu_pages`, with the one list of order 0."""

PAGES_PER_MAP_PAGE = PAGE_SIZE // STRUCT_PAGE.itemsize
"""How many `struct page`s a page of `mem_map` holds."""

IN_USE_TYPE = 0xFFFF_FFFF
"""`page_type` of a page that is nothing special: `_mapcount` -1."""
PG_BUDDY = 0x80
BUDDY_TYPE = IN_USE_TYPE & ~PG_BUDDY
"""`page_type` of the first page of a block on a free list: a type is marked by clearing its bit."""
_TYPE_MASK, _TYPE_BASE = 0xF000_0000 | PG_BUDDY, 0xF000_0000

LIST_POISON1 = 0xDEAD_0000_0000_0100
"""`next` of a page that was unlinked (CONFIG_ILLEGAL_POINTER_VALUE is 0xdead000000000000 on x86-64)."""
LIST_POISON2 = 0xDEAD_0000_0000_0122
"""`prev` of a page that was unlinked."""

PAGE_FLAGS = 0x0017_FFFF_C000_0000
"""`flags` of a page of node 0, zone Normal, that no CPU has touched: links and `last_cpupid`, no flag."""

MOST_STEPS = 1 << 14
"""No list of a CPU is that long (`high` is some hundreds): a count beyond it, or a loop, is damage, and the CPU is lost
in it with interrupts off."""

LEAKED = "in use by its _refcount, but its bytes were not saved: leaked"
"""What `check_allocator` says of a page that nobody will free: a loss of memory, not of data."""

PCP_BATCH_SCALE_MAX = 5
"""CONFIG_PCP_BATCH_SCALE_MAX, by default."""

_U64 = (1 << 64) - 1
_SIZE = STRUCT_PAGE.itemsize
_STRUCT = struct.Struct("<6QIiQ")
"""`STRUCT_PAGE` once more, for reading one of them quickly."""


def _offset(structure: np.dtype[np.void], name: str) -> int:
    assert structure.fields is not None
    return int(structure.fields[name][1])


_LIST = _offset(STRUCT_PAGE, "next")
_MAPPING = _offset(STRUCT_PAGE, "mapping")
_PRIVATE = _offset(STRUCT_PAGE, "private")
_STATE = _offset(STRUCT_PAGE, "page_type")
"""One word: page_type in its lower half, _refcount in its upper."""
_MEMCG = _offset(STRUCT_PAGE, "memcg_data")
_MANAGED = _offset(ZONE, "managed_pages")
_FREE_AREA = _offset(ZONE, "free_area")
_AREA_SIZE = ZONE["free_area"].base.itemsize
_NR_FREE = _offset(ZONE["free_area"].base, "nr_free")
_NR_FREE_PAGES = _offset(ZONE, "nr_free_pages")
_HIGH = _offset(PER_CPU_PAGES, "high")
_FREE_FACTOR = _offset(PER_CPU_PAGES, "free_factor")
_PCP_LIST = _offset(PER_CPU_PAGES, "next")


class AllocatorMachine(Protocol):
    """What the allocator needs of a machine."""

    @property
    def memory(self) -> PhysicalMemory:
        """Its memory, as the CPU reads it now."""
        ...

    @property
    def base(self) -> int:
        """Virtual address of frame 0 in the direct map."""
        ...

    @property
    def end_pfn(self) -> int:
        """One past the last frame of the direct map."""
        ...

    @property
    def log(self) -> EventLog:
        """What the kernel prints."""
        ...

    def write_u64(self, paddr: int, value: int) -> None:
        """Write 8 bytes at a multiple of 8. Raises KeyError if the frame does not exist."""
        ...

    def page_fault_oops(
        self, vaddr: int, *, doing: str, pfn: int | None = None, table: bool = True, write: bool = False
    ) -> MachineFault:
        """Print what the kernel prints for a page fault, and make the fault."""
        ...


@dataclass(frozen=True)
class AllocatorPlaces:
    """Where an allocator's state lies: physical addresses, multiples of 4096.

    Attributes:
        mem_map: the array of `struct page`s, one for every frame from 0 to `end_pfn`, as FLATMEM keeps it.
        zone: `struct zone`.
        pcps: `struct per_cpu_pages` of each CPU.
        end_pfn: one past the last frame that has a `struct page`.

    Raises:
        ValueError: an address is not a page's.
    """

    mem_map: int
    zone: int
    pcps: tuple[int, ...]
    end_pfn: int

    def __post_init__(self) -> None:
        for paddr in (self.mem_map, self.zone, *self.pcps):
            if paddr % PAGE_SIZE:
                raise ValueError(f"{paddr:#x} is not the address of a page")

    @property
    def mem_map_pages(self) -> int:
        """How many pages the array takes."""
        return -(-self.end_pfn // PAGES_PER_MAP_PAGE)


def mem_map_page(refcount: int = 1) -> Bytes:
    """A page of `mem_map` whose 64 pages are alike, as no list has ever held one: uint8, shape (4096,).

    Their links are 0, as an owner leaves them that uses these words itself (boot makes them point to themselves). All
    of `mem_map` can be this one page, repeated, until the allocator is told what is free.

    Args:
        refcount: 1: they are in use; 0: they are the inner pages of a free block, for building big ones cheaply.
    """
    pages = np.zeros(PAGES_PER_MAP_PAGE, dtype=STRUCT_PAGE)
    pages["flags"] = PAGE_FLAGS
    pages["page_type"] = IN_USE_TYPE
    pages["_refcount"] = refcount
    return pages.view(np.uint8)


def init_zone(machine: AllocatorMachine, places: AllocatorPlaces, *, batch: int, high: int) -> None:
    """Write a zone without free pages, and the empty lists of its CPUs, into the machine's memory.

    Args:
        machine: whose memory; the pages that `places` names exist there.
        places: where.
        batch: pages that a CPU's list takes from the free lists at a time (`zone_batchsize`).
        high: pages on a CPU's list from which on it gives some back; the kernel's is at least `4 * batch`
            (`zone_highsize`).
    """
    zone = np.zeros((), dtype=ZONE)
    heads = machine.base + places.zone + _FREE_AREA + _AREA_SIZE * np.arange(MAX_ORDER, dtype=np.uint64)
    zone["free_area"]["next"] = zone["free_area"]["prev"] = heads
    _write_structure(machine, places.zone, zone)
    for paddr in places.pcps:
        pcp = np.zeros((), dtype=PER_CPU_PAGES)
        pcp["high"], pcp["batch"] = high, batch
        pcp["next"] = pcp["prev"] = machine.base + paddr + _PCP_LIST
        _write_structure(machine, paddr, pcp)


def _write_structure(machine: AllocatorMachine, paddr: int, structure: NDArray[np.void]) -> None:
    for number, word in enumerate(np.frombuffer(structure.tobytes(), dtype="<u8").tolist()):
        machine.write_u64(paddr + 8 * number, word)


def zone_batchsize(managed_pages: int) -> int:
    """How many pages a CPU's list of order 0 takes at a time (mm/page_alloc.c, 6.1): 0 to 63, 2^n - 1.

    A quarter of a thousandth of the zone, of at most 1 MiB, rounded half up to a power of two, less one. The kernel
    puts at least 1 into `batch` (`zone_set_pageset_high_and_batch`).
    """
    batch = max(1, min(managed_pages >> 10, (1 << 20) // PAGE_SIZE) // 4)
    return (1 << ((batch + batch // 2).bit_length() - 1)) - 1


class BuddyAllocator:
    """`alloc_pages(GFP_KERNEL, 0)`, `__free_pages` and what they call, on the state in a machine's memory.

    A broken link is followed as the CPU would: what it then reads or writes is what happens to lie there, or the
    machine dies. All methods may raise `MachineFault` for that reason.

    Args:
        machine: read and written; the state must be there (`init_zone`).
        places: where the state lies.
    """

    def __init__(self, machine: AllocatorMachine, places: AllocatorPlaces) -> None:
        self._machine = machine
        self.places = places
        self._allocations: list[Allocation] = []
        self._mem_map = machine.base + places.mem_map
        self._zone = machine.base + places.zone
        self._span = machine.end_pfn << PAGE_SHIFT

    @property
    def allocations(self) -> tuple[Allocation, ...]:
        """Every allocation so far, failed ones too, in order."""
        return tuple(self._allocations)

    @property
    def nr_free(self) -> int:
        """NR_FREE_PAGES: pages on the free lists by the zone's own count; those on a CPU's list are not among them."""
        return self._load(self._zone + _NR_FREE_PAGES, "reading NR_FREE_PAGES")

    def fork(self, machine: AllocatorMachine) -> BuddyAllocator:
        """An allocator with the same record, on the state in a twin's memory."""
        twin = BuddyAllocator(machine, self.places)
        twin._allocations = self._allocations.copy()
        return twin

    # --- allocation ---------------------------------------------------------------------------------------------

    def alloc_page(self, environment: Environment, purpose: str, cpu: int = 0) -> int:
        """One page for a CPU, from its list, which is refilled in bulk if it is empty (`rmqueue_pcplist`).

        Args:
            environment: says whether it fails, and which page of the CPU's list is taken, by position: 0 is what the
                kernel takes. It is not asked for a page if the list cannot be read.
            purpose: what it is for, a clause.
            cpu: whose list.

        Returns:
            The frame; its `_refcount` is 1.

        Raises:
            OutOfMemory: the environment makes it fail (nothing is touched then), or nothing is free.
            MachineFault: the lists are broken.
        """
        number = len(self._allocations) + 1
        injected = environment.allocation_fails(number)
        page = None if injected else self._rmqueue_pcplist(environment, number, cpu)
        if page is None:
            self._allocations.append(Allocation(number, purpose, None))
            raise OutOfMemory(number, injected=injected)
        pfn = self._prep_new_page(page)
        self._allocations.append(Allocation(number, purpose, pfn))
        return pfn

    def _rmqueue_pcplist(self, environment: Environment, number: int, cpu: int) -> int | None:
        doing = "allocating a page (__rmqueue_pcplist)"
        pcp = self._pcp(cpu)
        head = pcp + _PCP_LIST
        factor = self._load(pcp + _FREE_FACTOR, doing)
        self._store(pcp + _FREE_FACTOR, (factor & ~0xFFFF) | (factor & 0xFFFF) >> 1, doing)
        in_all = 0
        while self._load(head, doing) == head:  # again where all that came was bad, as the slow path would
            batch = _signed(self._load(pcp + _HIGH, doing) >> 32)
            taken, added = self._rmqueue_bulk(batch, head)
            self._add_count(pcp, added, doing)
            if not taken:
                return None
            in_all += taken
            if in_all > MOST_STEPS:
                raise self._lockup(head, doing)
        frames = list(self._readable(head))
        entry = self._page(environment.free_frame(number, frames)) + _LIST if frames else self._load(head, doing)
        self._list_del(entry, doing)
        self._add_count(pcp, -1, doing)
        return entry - _LIST

    def _rmqueue_bulk(self, count: int, head: int) -> tuple[int, int]:
        """`rmqueue_bulk`: pages from the free lists to a CPU's list's end; how many left those, how many came to it."""
        doing = "refilling the CPU's list (rmqueue_bulk)"
        taken = added = 0
        while taken < count:
            page = self._rmqueue_smallest(doing)
            if page is None:
                break
            taken += 1
            if taken > MOST_STEPS:
                raise self._lockup(head, doing)
            if self._page_is_bad(page, doing):  # check_pcp_refill: such a page is lost
                continue
            self._list_add(page + _LIST, self._load(head + 8, doing), head, doing)
            added += 1
        self._add(self._zone + _NR_FREE_PAGES, -taken, doing)
        return taken, added

    def _rmqueue_smallest(self, doing: str) -> int | None:
        """`__rmqueue_smallest` and `expand`: one page out of the first block of the smallest order that has one."""
        for order in range(MAX_ORDER):
            head = self._area(order)
            entry = self._load(head, doing)
            if entry == head:
                continue
            page = entry - _LIST
            self._del_page_from_free_list(page, order, doing)
            for half in reversed(range(order)):
                upper = page + (_SIZE << half)
                self._add_to_free_list(upper, half, tail=False, doing=doing)
                self._set_buddy_order(upper, half, doing)
            return page
        return None

    def _prep_new_page(self, page: int) -> int:
        doing = "preparing a page (post_alloc_hook)"
        self._store(page + _PRIVATE, 0, doing)
        state = self._load(page + _STATE, doing)
        self._store(page + _STATE, (state & 0xFFFF_FFFF) | 1 << 32, doing)
        pfn = self._pfn(page)
        if not 0 <= pfn < self.places.end_pfn:  # a wild link was taken for a page: its user comes to nothing
            raise self._fault((self._machine.base + (pfn << PAGE_SHIFT)) & _U64, "using the page that was allocated")
        return pfn

    # --- freeing ------------------------------------------------------------------------------------------------

    def free_page(self, pfn: int, cpu: int = 0) -> None:
        """Give a page back (`__free_pages`): onto the head of the CPU's list; a full list gives some to the free lists.

        As in the kernel, only who drops the last reference frees: a page that is free already is not touched but for
        its `_refcount`, which becomes -1.

        Raises:
            ValueError: the frame has no `struct page`.
            MachineFault: the lists are broken.
        """
        if not 0 <= pfn < self.places.end_pfn:
            raise ValueError(f"frame {pfn:#x} has no struct page")
        doing = "freeing a page (free_unref_page)"
        page = self._page(pfn)
        state = (self._load(page + _STATE, doing) - (1 << 32)) & _U64
        self._store(page + _STATE, state, doing)
        if state >> 32:
            return
        self._store(page + _PRIVATE, 0, doing)
        pcp = self._pcp(cpu)
        head = pcp + _PCP_LIST
        self._list_add(page + _LIST, head, self._load(head, doing), doing)
        count = self._add_count(pcp, 1, doing)
        limits = self._load(pcp + _HIGH, doing)
        high, batch = _signed(limits), _signed(limits >> 32)
        if count >= high:
            self._free_pcppages_bulk(self._nr_pcp_free(pcp, high, batch, doing), pcp)

    def drain(self, cpu: int | None = None) -> None:
        """`drain_pages`: all pages on a CPU's list go back to the free lists; None for every CPU, in order."""
        doing = "draining the CPU's list (drain_pages)"
        for number in range(len(self.places.pcps)) if cpu is None else (cpu,):
            pcp = self._pcp(number)
            left = _signed(self._load(pcp, doing) >> 32)
            if left > MOST_STEPS:
                raise self._lockup(pcp, doing)
            while left:
                batch = _signed(self._load(pcp + _HIGH, doing) >> 32)
                some = min(left, batch << PCP_BATCH_SCALE_MAX)
                if some <= 0 < left:
                    raise self._lockup(pcp, doing)
                self._free_pcppages_bulk(some, pcp)
                left -= some

    def free_area(self, start: int, pages: int) -> None:
        """Give a range of frames to the free lists at boot, in the largest aligned blocks, each at a list's tail.

        `__free_pages_memory` (mm/memblock.c) and `__free_pages_core`. Costs follow the number of blocks, and of pages
        that were in use until now.

        Raises:
            ValueError: frames without a `struct page`.
        """
        if start < 0 or pages < 0 or start + pages > self.places.end_pfn:
            raise ValueError(f"{pages} frames from {start:#x} on: struct pages end at {self.places.end_pfn:#x}")
        doing = "freeing boot memory (__free_pages_core)"
        end = start + pages
        while start < end:
            order = min(MAX_ORDER - 1, (start & -start).bit_length() - 1 if start else MAX_ORDER)
            order = min(order, (end - start).bit_length() - 1)
            for pfn in self._in_use(start, 1 << order):
                state = self._load(self._page(pfn) + _STATE, doing)
                self._store(self._page(pfn) + _STATE, state & 0xFFFF_FFFF, doing)
            self._add(self._zone + _MANAGED, 1 << order, doing)
            self._free_one_page(self._page(start), start, order, to_tail=True, doing=doing)
            start += 1 << order

    def _in_use(self, start: int, pages: int) -> Iterator[int]:
        """Frames of a range whose `_refcount` is not 0."""
        at, end = start, start + pages
        while at < end:
            page, row = divmod(at, PAGES_PER_MAP_PAGE)
            got = self._machine.memory.run((self.places.mem_map >> PAGE_SHIFT) + page, 1)
            rows = min(PAGES_PER_MAP_PAGE - row, end - at)
            counts = got.reshape(-1).view(STRUCT_PAGE)["_refcount"][row : row + rows]
            yield from (at + np.flatnonzero(counts)).tolist()
            at += rows

    def _nr_pcp_free(self, pcp: int, high: int, batch: int, doing: str) -> int:
        """How many pages a full list gives back: more each time that nothing was allocated in between."""
        if high < batch:
            return 1
        least, most = batch, high - batch
        word = self._load(pcp + _FREE_FACTOR, doing)
        factor = word & 0xFFFF
        wanted = batch << min(factor, PCP_BATCH_SCALE_MAX)
        if wanted < most and factor < PCP_BATCH_SCALE_MAX:
            self._store(pcp + _FREE_FACTOR, (word & ~0xFFFF) | factor + 1, doing)
        return min(max(wanted, least), most)

    def _free_pcppages_bulk(self, count: int, pcp: int) -> None:
        """`free_pcppages_bulk`: the oldest pages of a CPU's list, from its tail."""
        doing = "giving pages back (free_pcppages_bulk)"
        head = pcp + _PCP_LIST
        count = min(count, _signed(self._load(pcp, doing) >> 32))
        for step in range(count):
            if step == MOST_STEPS or self._load(head, doing) == head:
                raise self._lockup(head, doing)
            entry = self._load(head + 8, doing)
            self._list_del(entry, doing)
            self._add_count(pcp, -1, doing)
            page = entry - _LIST
            if not self._page_is_bad(page, doing):
                self._free_one_page(page, self._pfn(page), 0, to_tail=False, doing=doing)

    def _free_one_page(self, page: int, pfn: int, order: int, *, to_tail: bool, doing: str) -> None:
        """`__free_one_page`: merge with the other half for as long as that is free too, then onto a free list.

        `buddy_merge_likely`: a block whose larger block's other half is free already goes to the tail.
        """
        self._add(self._zone + _NR_FREE_PAGES, 1 << order, doing)
        while order < MAX_ORDER - 1:
            buddy_pfn = pfn ^ 1 << order
            buddy = page + (buddy_pfn - pfn) * _SIZE
            if not self._page_is_buddy(buddy, buddy_pfn, order, doing):
                if order < MAX_ORDER - 2 and not to_tail:
                    larger = page + ((buddy_pfn & pfn) - pfn) * _SIZE
                    other_pfn = (buddy_pfn & pfn) ^ 1 << (order + 1)
                    other = larger + (other_pfn - (buddy_pfn & pfn)) * _SIZE
                    to_tail = self._page_is_buddy(other, other_pfn, order + 1, doing)
                break
            self._del_page_from_free_list(buddy, order, doing)
            page, pfn = min(page, buddy), buddy_pfn & pfn
            order += 1
        self._set_buddy_order(page, order, doing)
        self._add_to_free_list(page, order, tail=to_tail, doing=doing)

    # --- the lists ----------------------------------------------------------------------------------------------

    def free_ranges(self) -> FrameRanges:
        """What `mark_free_pages` sees: the frames on the free lists, not those on the lists of CPUs.

        Raises:
            MachineFault: a link leads to no page (`memory_bm_set_bit` finds no such frame), or round in a circle that
                the list's head is not on.
        """
        doing = "marking free pages (mark_free_pages)"
        blocks: list[tuple[int, int]] = []
        for order in range(MAX_ORDER):
            head = self._area(order)
            entry, seen = self._load(head, doing), set[int]()
            while entry != head:
                pfn = self._pfn(entry - _LIST)
                if not 0 <= pfn <= self.places.end_pfn - (1 << order):
                    raise self._bug(entry, doing)  # before it reads anything there, NULL or not
                if entry in seen:
                    raise self._endless(entry, doing)
                seen.add(entry)
                blocks.append((pfn, 1 << order))
                entry = self._load(entry, doing)
        return FrameRanges.of(blocks)

    def _readable(self, head: int) -> Iterator[int]:
        """The frames on a list in order, as far as it makes sense: what there is to choose from. Never a fault."""
        entry, seen = self._load(head, "reading a list"), set[int]()
        while entry != head and entry not in seen:
            pfn, within = divmod(entry - _LIST - self._mem_map, _SIZE)
            if within or not 0 <= pfn < self.places.end_pfn:
                return
            after = self._machine.memory.read_u64(entry - self._machine.base)
            if after is None:
                return
            seen.add(entry)
            yield pfn
            entry = after

    def _list_add(self, new: int, before: int, after: int, doing: str) -> None:
        self._store(after + 8, new, doing)
        self._store(new, after, doing)
        self._store(new + 8, before, doing)
        self._store(before, new, doing)

    def _list_del(self, entry: int, doing: str) -> None:
        after, before = self._load(entry, doing), self._load(entry + 8, doing)
        self._store(after + 8, before, doing)
        self._store(before, after, doing)
        self._store(entry, LIST_POISON1, doing)
        self._store(entry + 8, LIST_POISON2, doing)

    def _add_to_free_list(self, page: int, order: int, *, tail: bool, doing: str) -> None:
        head = self._area(order)
        before, after = (self._load(head + 8, doing), head) if tail else (head, self._load(head, doing))
        self._list_add(page + _LIST, before, after, doing)
        self._add(head + _NR_FREE, 1, doing)

    def _del_page_from_free_list(self, page: int, order: int, doing: str) -> None:
        self._list_del(page + _LIST, doing)
        self._store(page + _STATE, self._load(page + _STATE, doing) | PG_BUDDY, doing)
        self._store(page + _PRIVATE, 0, doing)
        self._add(self._area(order) + _NR_FREE, -1, doing)

    def _set_buddy_order(self, page: int, order: int, doing: str) -> None:
        self._store(page + _PRIVATE, order, doing)
        self._store(page + _STATE, self._load(page + _STATE, doing) & ~PG_BUDDY, doing)

    def _page_is_buddy(self, page: int, pfn: int, order: int, doing: str) -> bool:
        if not 0 <= pfn < self.places.end_pfn:  # the kernel's array goes on to a multiple of the largest block
            return False
        state = self._load(page + _STATE, doing)
        return state & _TYPE_MASK == _TYPE_BASE and self._load(page + _PRIVATE, doing) == order

    def _page_is_bad(self, page: int, doing: str) -> bool:
        """`page_expected_state`, looked at whenever a page goes from one kind of list to the other; `bad_page`.

        By default since v6.3 nobody looks (`check_pages_enabled`).
        """
        state = self._load(page + _STATE, doing)
        reasons = {
            "page still charged to cgroup": self._load(page + _MEMCG, doing) != 0,
            "nonzero _refcount": state >> 32 != 0,
            "non-NULL mapping": self._load(page + _MAPPING, doing) != 0,
            "nonzero mapcount": state & 0xFFFF_FFFF != IN_USE_TYPE,
        }
        reason = next((reason for reason, is_so in reasons.items() if is_so), None)
        if reason is None:
            return False
        self._machine.log.printk(f"BUG: Bad page state in process systemd-sleep  pfn:{self._pfn(page) & _U64:05x}")
        self._machine.log.printk(f"page dumped because: {reason}")
        self._store(page + _STATE, state | IN_USE_TYPE, doing)
        return True

    # --- addresses ----------------------------------------------------------------------------------------------

    def _page(self, pfn: int) -> int:
        return self._mem_map + pfn * _SIZE

    def _pfn(self, page: int) -> int:
        return (page - self._mem_map) // _SIZE

    def _area(self, order: int) -> int:
        return self._zone + _FREE_AREA + order * _AREA_SIZE

    def _pcp(self, cpu: int) -> int:
        return self._machine.base + self.places.pcps[cpu]

    def _add(self, vaddr: int, amount: int, doing: str) -> None:
        self._store(vaddr, (self._load(vaddr, doing) + amount) & _U64, doing)

    def _add_count(self, pcp: int, amount: int, doing: str) -> int:
        word = (self._load(pcp, doing) + (amount << 32)) & _U64
        self._store(pcp, word, doing)
        return _signed(word >> 32)

    def _load(self, vaddr: int, doing: str) -> int:
        """8 bytes at a virtual address, aligned or not."""
        within = vaddr & 7
        if within:
            low, high = self._load(vaddr - within, doing), self._load(vaddr - within + 8, doing)
            return (high << 64 | low) >> 8 * within & _U64
        paddr = (vaddr & _U64) - self._machine.base
        value = self._machine.memory.read_u64(paddr) if 0 <= paddr < self._span else None
        if value is None:
            raise self._fault(vaddr & _U64, doing)
        return value

    def _store(self, vaddr: int, value: int, doing: str) -> None:
        within = vaddr & 7
        if within:
            start, mask = vaddr - within, _U64 << 8 * within
            both = self._load(start + 8, doing) << 64 | self._load(start, doing)
            both = (both & ~mask) | value << 8 * within
            self._store(start, both & _U64, doing)
            self._store(start + 8, both >> 64, doing)
            return
        paddr = (vaddr & _U64) - self._machine.base
        if not 0 <= paddr < self._span:
            raise self._fault(vaddr & _U64, doing, write=True)
        try:
            self._machine.write_u64(paddr, value)
        except KeyError:
            raise self._fault(vaddr & _U64, doing, write=True) from None

    # --- how the machine dies -----------------------------------------------------------------------------------

    def _fault(self, vaddr: int, doing: str, *, write: bool = False) -> MachineFault:
        """What becomes of an address that cannot be read or written (arch/x86/kernel/traps.c, arch/x86/mm/fault.c)."""
        paddr = vaddr - self._machine.base
        if _canonical(vaddr, self._machine.base):
            inside = 0 <= paddr < self._span
            pfn = paddr >> PAGE_SHIFT if inside else None
            return self._machine.page_fault_oops(vaddr, doing=doing, pfn=pfn, write=write)
        what = f"general protection fault, probably for non-canonical address 0x{vaddr:x}"
        return self._dead("general protection fault", vaddr, doing, f"{what}: 0000 [#1] PREEMPT SMP")

    def _lockup(self, head: int, doing: str) -> MachineFault:
        """A count says that there are pages where there are none: the loop has no end, with interrupts off."""
        line = "NMI watchdog: Watchdog detected hard LOCKUP on cpu 0"
        return self._dead("endless loop over a CPU's list whose count is not its own", head, doing, line)

    def _bug(self, entry: int, doing: str) -> MachineFault:
        """The bitmap of free pages has no such frame (kernel/power/snapshot.c, `memory_bm_set_bit`; 6.1.192's line)."""
        line = "kernel BUG at kernel/power/snapshot.c:817!"
        return self._dead("a link on a free list leads to no page", entry, doing, line)

    def _endless(self, entry: int, doing: str) -> MachineFault:
        """`mark_free_pages` appeases the watchdog as it goes: nothing is printed ever."""
        return self._dead("a free list never comes back to its head: endless loop", entry, doing)

    def _dead(self, what: str, vaddr: int, doing: str, line: str | None = None) -> MachineFault:
        log = self._machine.log
        if line is not None:
            log.printk(line)
        return MachineFault(what, address=vaddr, entry=None, pfn=None, doing=doing, log=log.kernel_lines)


def _signed(value: int) -> int:
    """The lower 32 bits as an `int`."""
    return (value & 0xFFFF_FFFF ^ 0x8000_0000) - 0x8000_0000


def _canonical(vaddr: int, base: int) -> bool:
    """Whether all bits above the tables' reach are alike; the direct map of five levels lies below that of four."""
    top = vaddr >> (47 if base >= 0xFFFF_8000_0000_0000 else 56)
    return top in (0, _U64 >> (47 if base >= 0xFFFF_8000_0000_0000 else 56))


# --- the check --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AllocatorProblem:
    """Something that the allocator's structures cannot both say.

    Attributes:
        what: a clause; where a list is meant it begins with its name.
        pfn: the first frame that it is about: one whose `struct page` is wrong, or that holds the zone or a list.
        pages: how many frames.
    """

    what: str
    pfn: int
    pages: int

    def __str__(self) -> str:
        frames = f"frame {self.pfn:#x}" if self.pages == 1 else f"frames {self.pfn:#x}-{self.pfn + self.pages - 1:#x}"
        return f"{frames}: {self.what}"


def check_allocator(
    machine: AllocatorMachine,
    places: AllocatorPlaces,
    *,
    tables: Collection[int] = frozenset(),
    unsaved: FrameRanges | None = None,
) -> list[AllocatorProblem]:
    """Everything that is wrong with an allocator at rest. Reads only; never loops for ever, never raises for bad bytes.

    Walks every list, counts, and looks at every `struct page` once, in arrays. Where `mem_map` is one page repeated
    (an array of stride 0) that page is looked at once: costs follow the blocks on lists and the pages of `mem_map` that
    are there in their own right.

    Args:
        machine: whose memory; nothing is written.
        places: where the allocator's state lies.
        tables: frames that hold page tables of the machine: none may be free.
        unsaved: frames of RAM whose bytes an image did not bring back (RAM less those saved, less those that the image
            itself occupied, in the machine that wrote it): none may be in use, else it is lost for ever.

    Returns:
        The problems: malformed lists; pages on free lists that do not belong there; blocks that overlap, pages on two
        lists; counts that are not the lists'; page tables that are free; pages in use that are on a list, or free and
        on none; `unsaved` pages in use. Empty if there are none.
    """
    frame = functools.cache(machine.memory.frame)  # neighbours on a list are often neighbours in mem_map
    lists = [_walk(found, machine, places, frame) for found in _lists(places)]
    idle, marked, unknown = _scan_mem_map(machine.memory, places)
    every = FrameRanges.of([(0, places.end_pfn)])
    used = every.without(idle).without(unknown)
    listed = FrameRanges.of([(pfn, 1 << found.order) for found in lists for pfn in found.pfns])
    heads = FrameRanges.of_frames(sorted({pfn for found in lists if found.buddy for pfn in found.pfns}))
    held = FrameRanges.of_frames(sorted(pfn for pfn in set(tables) if 0 <= pfn < places.end_pfn))
    astray = idle.without(listed)
    lost = FrameRanges.of([]) if unsaved is None else unsaved

    problems = [problem for found in lists for problem in found.problems]
    problems += _wrong_counts(machine.memory, places, lists)
    problems += _overlaps(lists)
    for what, ranges in (
        ("its struct page is in a page of mem_map that does not exist", unknown),
        ("marked as a free block (PageBuddy), on no free list", marked.without(heads)),
        ("on a list of free pages, but in use by its _refcount", listed.within(used)),
        ("a page table, but on a list of free pages", held.within(listed)),
        ("a page table, but free by its _refcount", held.within(astray)),
        ("free by its _refcount, but on no list: lost", astray.without(held)),
        (LEAKED, lost.within(used)),
    ):
        problems += [AllocatorProblem(what, pfn, pages) for pfn, pages in ranges]
    return problems


@dataclass
class _List:
    """A list as it is found.

    Attributes:
        name: which.
        head: physical address of its list_head.
        order: of what is on it.
        buddy: whether it is a free list, not a CPU's.
        pfns: what is on it, in order, as far as it could be followed.
        complete: whether it came back to its head.
        problems: what is wrong with it.
    """

    name: str
    head: int
    order: int
    buddy: bool
    pfns: list[int] = field(default_factory=list)
    complete: bool = False
    problems: list[AllocatorProblem] = field(default_factory=list)

    @property
    def holder(self) -> int:
        """The frame of its head."""
        return self.head >> PAGE_SHIFT

    def wrong(self, what: str, pfn: int) -> None:
        """Note a problem."""
        self.problems.append(AllocatorProblem(f"{self.name}: {what}", pfn, 1))


def _lists(places: AllocatorPlaces) -> Iterator[_List]:
    for order in range(MAX_ORDER):
        yield _List(f"free_area[{order}]", places.zone + _FREE_AREA + order * _AREA_SIZE, order, buddy=True)
    for cpu, pcp in enumerate(places.pcps):
        yield _List(f"pcp list of CPU {cpu}", pcp + _PCP_LIST, 0, buddy=False)


def _walk(
    found: _List, machine: AllocatorMachine, places: AllocatorPlaces, frame: Callable[[int], Bytes | None]
) -> _List:
    """Follow a list from its head, as far as that goes; `frame` reads the machine's memory."""
    head = machine.base + found.head
    first, last = machine.memory.read_u64(found.head), machine.memory.read_u64(found.head + 8)
    if first is None or last is None:
        found.wrong("the page of its head does not exist", found.holder)
        return found
    seen: set[int] = set()
    at, owner, link = head, found.holder, first
    while link != head:
        pfn, within = divmod(link - machine.base - places.mem_map - _LIST, _SIZE)
        page = None if within or not 0 <= pfn < places.end_pfn else _struct_page(frame, places, pfn)
        if page is None:
            found.wrong(f"next is {_named(link)}", owner)
            return found
        if pfn in seen:
            found.wrong(f"next leads back to frame {pfn:#x}, not to its head: a circle", owner)
            return found
        seen.add(pfn)
        found.pfns.append(pfn)
        _, after, before, _, _, private, page_type, _, _ = page
        if before != at:
            found.wrong(f"prev is {_named(before)}, not {at:#x}", pfn)
        _check_entry(found, pfn, private, page_type, places.end_pfn)
        at, owner, link = link, pfn, after
    if last != at:
        found.wrong(f"prev of its head is {_named(last)}, not {at:#x}", found.holder)
    found.complete = True
    return found


def _struct_page(frame: Callable[[int], Bytes | None], places: AllocatorPlaces, pfn: int) -> tuple[int, ...] | None:
    """The fields of a `struct page` in order; None if it lies in a page that does not exist."""
    paddr = places.mem_map + pfn * _SIZE
    page = frame(paddr >> PAGE_SHIFT)
    return None if page is None else _STRUCT.unpack_from(page.data, paddr % PAGE_SIZE)


def _named(link: int) -> str:
    names = {0: "NULL", LIST_POISON1: f"{link:#x} (LIST_POISON1)", LIST_POISON2: f"{link:#x} (LIST_POISON2)"}
    return names.get(link, f"{link:#x}")


def _check_entry(found: _List, pfn: int, private: int, page_type: int, end_pfn: int) -> None:
    if page_type != (BUDDY_TYPE if found.buddy else IN_USE_TYPE):
        found.wrong(f"page_type is {page_type:#x}", pfn)
    if found.buddy and private != found.order:
        found.wrong(f"order (private) is {private}", pfn)
    if pfn % (1 << found.order):
        found.wrong("misaligned", pfn)
    if pfn + (1 << found.order) > end_pfn:
        found.wrong("reaches beyond the last struct page", pfn)


def _wrong_counts(memory: PhysicalMemory, places: AllocatorPlaces, lists: Iterable[_List]) -> list[AllocatorProblem]:
    """Counts that disagree with lists that are complete."""
    problems = []
    free = [found for found in lists if found.buddy]
    for found in lists:
        where = found.head + _NR_FREE if found.buddy else found.head - _PCP_LIST
        word = memory.read_u64(where)
        if word is None or not found.complete:
            continue
        name, count = ("nr_free", word) if found.buddy else ("count", _signed(word >> 32))
        if count != len(found.pfns):
            what = f"{found.name}: {name} is {count}, on the list are {len(found.pfns)}"
            problems.append(AllocatorProblem(what, found.holder, 1))
    pages, told = sum(len(found.pfns) << found.order for found in free), memory.read_u64(places.zone + _NR_FREE_PAGES)
    if all(found.complete for found in free) and told != pages:
        what = f"NR_FREE_PAGES is {told}, on the free lists are {pages}"
        problems.append(AllocatorProblem(what, places.zone >> PAGE_SHIFT, 1))
    return problems


def _overlaps(lists: Iterable[_List]) -> list[AllocatorProblem]:
    """Frames that are free twice."""
    problems = []
    end, before = 0, ""
    for pfn, pages, name in sorted((pfn, 1 << found.order, found.name) for found in lists for pfn in found.pfns):
        if pfn < end:
            what = f"free twice: {before} and {name}"
            problems.append(AllocatorProblem(what, pfn, min(end, pfn + pages) - pfn))
        if pfn + pages > end:
            end, before = pfn + pages, name
    return problems


def _scan_mem_map(memory: PhysicalMemory, places: AllocatorPlaces) -> tuple[FrameRanges, FrameRanges, FrameRanges]:
    """Frames whose `_refcount` is 0, those marked as free blocks, and those whose `struct page` does not exist."""
    first = places.mem_map >> PAGE_SHIFT
    array = FrameRanges.of([(first, places.mem_map_pages)])
    idle: list[tuple[int, int]] = []
    marked: list[tuple[int, int]] = []
    for start, length in array.within(memory.ranges):
        at, end = start, start + length
        while at < end:
            states, pages = _states(memory.run(at, end - at))
            pfn, times = (at - first) * PAGES_PER_MAP_PAGE, pages * PAGES_PER_MAP_PAGE // len(states)
            idle += _frames_where(states >> np.uint64(32) == 0, pfn, times)
            marked += _frames_where(states & np.uint64(_TYPE_MASK) == np.uint64(_TYPE_BASE), pfn, times)
            at += pages
    every = FrameRanges.of([(0, places.end_pfn)])
    unknown = [
        ((start - first) * PAGES_PER_MAP_PAGE, length * PAGES_PER_MAP_PAGE)
        for start, length in array.without(memory.ranges)
    ]
    return (
        FrameRanges.of(idle).within(every),
        FrameRanges.of(marked).within(every),
        FrameRanges.of(unknown).within(every),
    )


def _states(got: Bytes) -> tuple[NDArray[np.uint64], int]:
    """The state words of some pages of `mem_map`, and how many pages they stand for.

    Of pages that are one and the same, and whose `struct page`s are alike, one word stands for all.
    """
    if got.strides[0] == 0 and len(got) > 1:
        states = got[0].view("<u8")[_STATE // 8 :: _SIZE // 8]
        if (states == states[0]).all():
            return states[:1], len(got)
    got = got[:CHUNK_PAGES]
    words: NDArray[np.uint64] = got.view("<u8")[:, _STATE // 8 :: _SIZE // 8].reshape(-1)
    return words, len(got)


def _frames_where(mask: BoolArray, pfn: int, times: int) -> Iterator[tuple[int, int]]:
    """Ranges of frames for which a mask is true; each of its elements stands for `times` frames."""
    if mask.any():
        for start, pages in FrameRanges.of_frames(np.flatnonzero(mask)):
            yield pfn + start * times, pages * times
