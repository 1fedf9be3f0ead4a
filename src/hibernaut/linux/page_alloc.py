# SPDX-License-Identifier: GPL-2.0-or-later
"""The page allocator (mm/page_alloc.c), whose whole state lies in the simulated machine's own memory.

Only the record of allocations is kept in Python. `struct page`s, the zone's free lists and the lists of each CPU are
bytes of the machine's memory, linked by direct-map addresses as in the kernel. A copy of memory made page by page while
the allocator runs therefore tears its lists as it would tear a real kernel's, and a resumed machine continues or
crashes as a real one. `check_allocator` reports what is wrong with such a copy.

Facts from Linux 6.1: mm/page_alloc.c, mm/internal.h. Functions bear the kernel's names, without leading underscores.
Left out: more than one zone and one migrate type, orders above 0 on the lists of CPUs, `vm_stat` differences that a CPU
has not yet added up, and the additions of CONFIG_DEBUG_LIST, CONFIG_DEBUG_VM and page shuffling.
Of the zone's marks the min mark is checked, on machines that have one (`AllocatorPlaces.wmark_min`): a request that is
not above the low mark wakes kswapd, which is frozen, and tries again down to the min mark (`__alloc_pages_slowpath`).
One that fails there fails for good: reclaim, `lowmem_reserve`, boosts and reserves for urgent requests are left out.
A kernel with CONFIG_DEBUG_LIST reports a broken list ("list_del corruption") and may stop there; the modelled kernel
follows the link.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from hibernaut.errors import MachineFault, OutOfMemory
from hibernaut.linux.allocator import Allocation, AllocatorMachine
from hibernaut.linux.environment import Environment
from hibernaut.linux.kernel_data import U64_MAX, KernelData
from hibernaut.linux.mmzone import (
    FREE_AREA_NR_FREE,
    IN_USE_TYPE,
    NR_PAGE_ORDERS,
    PAGE_LIST,
    PAGE_MAPPING,
    PAGE_MEMCG_DATA,
    PAGE_PRIVATE,
    PAGE_STATE,
    PAGE_TYPE_BASE,
    PAGE_TYPE_MASK,
    PAGEBLOCK_ORDER,
    PAGES_PER_MAP_PAGE,
    PCP_COUNT,
    PCP_FREE_FACTOR,
    PCP_HIGH,
    PCP_LIST,
    PG_BUDDY,
    SIZEOF_FREE_AREA,
    SIZEOF_STRUCT_PAGE,
    STRUCT_PAGE,
    ZONE_FREE_AREA,
    ZONE_MANAGED_PAGES,
    ZONE_NR_FREE_PAGES,
    AllocatorPlaces,
)
from hibernaut.linux.oops import bug_in_snapshot, endless_loop, hard_lockup
from hibernaut.linux.transitions import transition
from hibernaut.memory.page import PAGE_SHIFT, PAGE_SIZE
from hibernaut.memory.ranges import FrameRanges

__all__ = ["BuddyAllocator", "zone_batchsize"]

MAX_LIST_STEPS = 1 << 14
"""Longer than any list of a CPU (`high` is some hundreds). A larger count, or a loop, is damage, in which the CPU stays
with interrupts off."""

PCP_BATCH_SCALE_MAX = 5
"""CONFIG_PCP_BATCH_SCALE_MAX, by default."""

_TAKING = "allocating a page (__rmqueue_pcplist)"

Result = TypeVar("Result")
Allocated = tuple[tuple[int, ...], bool, bool]
"""Frames in the order of their allocation, whether one failed in the end, and whether that was at the zone's mark."""


def zone_batchsize(managed_pages: int) -> int:
    """Return how many pages a CPU's list of order 0 takes at a time (6.1): 2^n - 1, from 0 to 63.

    That is a thousandth of the zone, at most 1 MiB; of it a quarter, rounded half up to a power of two, less one. The
    kernel stores at least 1 in `batch` (`zone_set_pageset_high_and_batch`).
    """
    batch = max(1, min(managed_pages >> 10, (1 << 20) // PAGE_SIZE) // 4)
    return (1 << ((batch + batch // 2).bit_length() - 1)) - 1


class BuddyAllocator:
    """`alloc_pages(GFP_KERNEL, 0)`, `__free_pages` and their callees, on the state in a machine's memory.

    A broken link is followed as the CPU follows it: the access reads or writes whatever lies there, or the machine
    crashes. All methods may therefore raise `MachineFault`.

    Args:
        machine: machine whose memory is read and written; it must hold the state (`init_zone`).
        places: addresses of the state.
        map_block: maps an unmapped pageblock again, given its first frame; None if the kernel never does.

    Attributes:
        places: as given.
    """

    def __init__(
        self,
        machine: AllocatorMachine,
        places: AllocatorPlaces,
        map_block: Callable[[AllocatorMachine, int], None] | None = None,
    ) -> None:
        self._owner = weakref.ref(machine)  # a machine holds its allocator: avoids a reference cycle
        self.places = places
        self._allocations: list[Allocation] = []
        self._kernel = KernelData(machine)
        self._mem_map = machine.base + places.mem_map
        self._zone = machine.base + places.zone
        self._where = (
            machine.base,
            machine.end_pfn,
            places.mem_map,
            places.zone,
            places.pcps,
            places.end_pfn,
            places.unmapped,
            places.wmark_min,
        )
        self._map_block = map_block
        self._maps_block = False

    @property
    def _machine(self) -> AllocatorMachine:
        machine = self._owner()
        assert machine is not None, "the machine of this allocator is gone"
        return machine

    @property
    def allocations(self) -> tuple[Allocation, ...]:
        """All allocations so far, failed ones included, in order."""
        return tuple(self._allocations)

    @property
    def number(self) -> int:
        """Number of all allocations so far."""
        return len(self._allocations)

    @property
    def nr_free_pages(self) -> int:
        """NR_FREE_PAGES: the zone's own count of pages on the free lists, without those on the lists of CPUs."""
        return self._kernel.load(self._zone + ZONE_NR_FREE_PAGES, "reading NR_FREE_PAGES")

    def add_allocations(self, allocations: Sequence[Allocation]) -> None:
        """Add allocations to the record that the state in memory has already."""
        self._allocations += allocations

    def fork(self, machine: AllocatorMachine) -> BuddyAllocator:
        """Return an allocator with the same record, on the state in a twin's memory."""
        twin = object.__new__(BuddyAllocator)
        twin.__dict__ = self.__dict__.copy()
        twin._owner = weakref.ref(machine)
        twin._kernel = KernelData(machine)
        twin._allocations = self._allocations.copy()
        return twin

    # --- allocation ---------------------------------------------------------------------------------------------

    def alloc_page(self, environment: Environment, purpose: str, cpu: int = 0) -> int:
        """Allocate one page for a CPU from its list, which is refilled in bulk when empty.

        Args:
            environment: decides whether the allocation fails, and which page of the CPU's list it gets; position 0 is
                the kernel's choice. It is not asked for a page if the list cannot be read.
            purpose: purpose of the page, a clause.
            cpu: CPU that allocates.

        Returns:
            The frame; its `_refcount` is 1.

        Raises:
            OutOfMemory: the environment makes it fail (nothing is touched then), nothing is free, or not more pages
                than the zone's min mark are.
            MachineFault: the lists are broken.
        """
        number = len(self._allocations) + 1
        if not self._zone_watermark_ok():  # whether it is made to fail besides makes no difference
            self._allocations.append(Allocation(number, purpose, None, at_mark=True))
            raise OutOfMemory(number, injected=False, at_mark=True)
        injected = environment.allocation_fails(number)
        page = None if injected else self._rmqueue_pcplist(environment, number, cpu)
        if page is None:
            self._allocations.append(Allocation(number, purpose, None))
            raise OutOfMemory(number, injected=injected)
        pfn = self._transition(lambda: self._take(page, cpu), "take", page, cpu)
        self._allocations.append(Allocation(number, purpose, pfn))
        return pfn

    def alloc_all(self, most: int, cpu: int, got: Callable[[int], None], prints: Callable[[], bool]) -> Allocated:
        """Allocate pages as `alloc_page` does without interference, until nothing is free or `most` times.

        The record of allocations is the caller's.

        Args:
            most: the most pages.
            cpu: CPU that allocates.
            got: called with each frame at once, unless the result is known from before.
            prints: whether the kernel has printed a line since the call: such a result is not kept.

        Raises:
            MachineFault: the lists are broken.
            ValueError: the machine has unmapped pageblocks.
        """
        if self.places.unmapped:  # the direct map and the TLBs change with a block that is mapped again
            raise ValueError("a machine with unmapped pageblocks allocates page by page (`alloc_page`)")

        def every() -> Allocated:
            pfns: list[int] = []
            while len(pfns) < most:
                if not self._zone_watermark_ok():
                    return tuple(pfns), True, True
                if not self._fill(cpu):
                    return tuple(pfns), True, False
                pfns.append(self._take(self._kernel.load(self._pcp(cpu) + PCP_LIST, _TAKING) - PAGE_LIST, cpu))
                got(pfns[-1])
            return tuple(pfns), False, False

        return self._transition(every, "all", most, cpu, keeps=lambda: not prints())

    def _transition(
        self, function: Callable[[], Result], *inputs: Hashable, keeps: Callable[[], bool] | None = None
    ) -> Result:
        """Return `function()`, which reads and writes memory alone; see `transitions`."""

        def opened() -> Result:
            with self._kernel.opened():
                return function()

        return transition(self._machine, opened, *inputs, *self._where, keeps=keeps)

    def _rmqueue_pcplist(self, environment: Environment, number: int, cpu: int) -> int | None:
        """`rmqueue_pcplist` and `__rmqueue_pcplist`: choose a page on the CPU's list; None if nothing is free."""
        pfns = self._transition(lambda: self._refilled(cpu), "refill", cpu)
        if pfns is None and self._map_unmapped_block():
            pfns = self._transition(lambda: self._refilled(cpu), "refill", cpu)
        if pfns is None:
            return None
        if pfns:
            return self._page(environment.free_frame(number, pfns))
        return self._kernel.load(self._pcp(cpu) + PCP_LIST, _TAKING) - PAGE_LIST

    def _refilled(self, cpu: int) -> list[int] | None:
        """Refill the CPU's list if it is empty, and return the frames on it as far as the list can be read.

        None if nothing is free.
        """
        return list(self._readable(self._pcp(cpu) + PCP_LIST)) if self._fill(cpu) else None

    def _fill(self, cpu: int) -> bool:
        """Refill the CPU's list if it is empty. Return False if nothing is free."""
        doing = _TAKING
        pcp = self._pcp(cpu)
        head = pcp + PCP_LIST
        factor = self._kernel.load(pcp + PCP_FREE_FACTOR, doing)
        self._kernel.store(pcp + PCP_FREE_FACTOR, (factor & ~0xFFFF) | (factor & 0xFFFF) >> 1, doing)
        total = 0
        while self._kernel.load(head, doing) == head:  # again if all new pages were bad, as the slow path does
            batch = _signed(self._kernel.load(pcp + PCP_HIGH, doing) >> 32)
            taken, added = self._rmqueue_bulk(batch, head)
            self._add_count(pcp, added, doing)
            if not taken:
                return False
            total += taken
            if total > MAX_LIST_STEPS:
                raise self._lockup(head, doing)
        return True

    def _zone_watermark_ok(self) -> bool:
        """`zone_watermark_fast`, `__zone_watermark_ok`: return whether more pages are free than the zone's min mark.

        Pages on the lists of CPUs are not free. `get_page_from_freelist` asks before it looks at such a list. A count
        below 0 reads as 0 (`zone_page_state`). True without reading anything on a machine without a mark.
        """
        if not self.places.wmark_min:
            return True
        doing = "checking the zone's mark (get_page_from_freelist)"
        mark = self._kernel.load(self._machine.base + self.places.wmark_min, doing)
        free = self._kernel.load(self._zone + ZONE_NR_FREE_PAGES, doing)
        return mark < free < 1 << 63

    def _take(self, page: int, cpu: int) -> int:
        """Take a page off the CPU's list, prepare it, and return its frame."""
        self._kernel.list_del(page + PAGE_LIST, _TAKING)
        self._add_count(self._pcp(cpu), -1, _TAKING)
        return self._prep_new_page(page)

    def _rmqueue_bulk(self, count: int, head: int) -> tuple[int, int]:
        """`rmqueue_bulk`: move pages from the free lists to the tail of a CPU's list.

        Returns:
            The number of pages that left the free lists, and of those the number that arrived.
        """
        doing = "refilling the CPU's list (rmqueue_bulk)"
        taken = added = 0
        while taken < count:
            page = self._rmqueue_smallest(doing)
            if page is None:
                break
            taken += 1
            if taken > MAX_LIST_STEPS:
                raise self._lockup(head, doing)
            if self._page_is_bad(page, doing):  # check_pcp_refill: such a page is lost
                continue
            self._kernel.list_add(page + PAGE_LIST, self._kernel.load(head + 8, doing), head, doing)
            added += 1
        self._kernel.add(self._zone + ZONE_NR_FREE_PAGES, -taken, doing)
        return taken, added

    def _rmqueue_smallest(self, doing: str) -> int | None:
        """`__rmqueue_smallest`: take a page out of the first block of the smallest order that has one."""
        for order in range(NR_PAGE_ORDERS):
            head = self._area(order)
            entry = self._kernel.load(head, doing)
            if entry == head:
                continue
            page = entry - PAGE_LIST
            self._del_page_from_free_list(page, order, doing)
            self._expand(page, order, doing)
            return page
        return None

    def _map_unmapped_block(self) -> bool:
        """Map the first unmapped pageblock and put it on the free lists; see `unmapped`. Return whether there was one.

        An allocation for the mapping itself gets no further block.
        """
        if not self.places.unmapped or self._map_block is None or self._maps_block:
            return False
        doing = "taking an unmapped pageblock"
        head = self._machine.base + self.places.unmapped
        entry = self._kernel.load(head, doing)
        if entry == head:
            return False
        page = entry - PAGE_LIST
        pfn = self._pfn(page)
        if not 0 <= pfn <= self.places.end_pfn - (1 << PAGEBLOCK_ORDER):  # a wild link was taken for a page
            raise self._kernel.fault((self._machine.base + (pfn << PAGE_SHIFT)) & U64_MAX, doing)
        self._unlink_block(page, head, doing)
        self._maps_block = True
        try:
            self._map_block(self._machine, pfn)
        finally:
            self._maps_block = False
        self._free_one_page(page, pfn, PAGEBLOCK_ORDER, to_tail=False, doing=doing)
        return True

    def _expand(self, page: int, high: int, doing: str) -> None:
        """`expand`: return the upper halves of a block of order `high` to the free lists, down to its first page."""
        for order in reversed(range(high)):
            upper = page + (SIZEOF_STRUCT_PAGE << order)
            self._add_to_free_list(upper, order, tail=False, doing=doing)
            self._set_buddy_order(upper, order, doing)

    def _prep_new_page(self, page: int) -> int:
        """`prep_new_page`: set `private` and `_refcount`, and return the frame."""
        doing = "preparing a page (post_alloc_hook)"
        self._kernel.store(page + PAGE_PRIVATE, 0, doing)
        state = self._kernel.load(page + PAGE_STATE, doing)
        self._kernel.store(page + PAGE_STATE, (state & 0xFFFF_FFFF) | 1 << 32, doing)
        pfn = self._pfn(page)
        if not 0 <= pfn < self.places.end_pfn:  # a wild link was taken for a page: using it faults
            vaddr = (self._machine.base + (pfn << PAGE_SHIFT)) & U64_MAX
            raise self._kernel.fault(vaddr, "using the page that was allocated")
        return pfn

    # --- freeing ------------------------------------------------------------------------------------------------

    def free_page(self, pfn: int, cpu: int = 0) -> None:
        """Free a page (`__free_pages`, `free_unref_page`): put it at the head of the CPU's list.

        A list that is full then returns pages to the free lists. Only dropping the last reference frees: of a page that
        is free already only `_refcount` changes, to -1.

        Raises:
            ValueError: the frame has no `struct page`.
            MachineFault: the lists are broken.
        """
        if not 0 <= pfn < self.places.end_pfn:
            raise ValueError(f"frame {pfn:#x} has no struct page")
        self._transition(lambda: self._free(pfn, cpu), "free", pfn, cpu)

    def _free(self, pfn: int, cpu: int) -> None:
        """`__free_pages` of a frame that has a `struct page`."""
        doing = "freeing a page (free_unref_page)"
        page = self._page(pfn)
        state = (self._kernel.load(page + PAGE_STATE, doing) - (1 << 32)) & U64_MAX
        self._kernel.store(page + PAGE_STATE, state, doing)
        if state >> 32:
            return
        self._kernel.store(page + PAGE_PRIVATE, 0, doing)
        self._free_unref_page_commit(page, self._pcp(cpu), doing)

    def _free_unref_page_commit(self, page: int, pcp: int, doing: str) -> None:
        """`free_unref_page_commit`: put a page on a CPU's list, and cut the list where it reaches `high`."""
        head = pcp + PCP_LIST
        self._kernel.list_add(page + PAGE_LIST, head, self._kernel.load(head, doing), doing)
        count = self._add_count(pcp, 1, doing)
        limits = self._kernel.load(pcp + PCP_HIGH, doing)
        high, batch = _signed(limits), _signed(limits >> 32)
        if count >= high:
            self._free_pcppages_bulk(self._nr_pcp_free(pcp, high, batch, doing), pcp)

    def drain_pages(self, cpu: int | None = None) -> None:
        """`drain_pages`: return all pages on a CPU's list to the free lists; None for every CPU, in order."""
        for number in range(len(self.places.pcps)) if cpu is None else (cpu,):
            self._transition(lambda number=number: self._drain(number), "drain", number)  # type: ignore[misc]

    def _drain(self, cpu: int) -> None:
        """Return all pages on one CPU's list to the free lists."""
        doing = "draining the CPU's list (drain_pages)"
        pcp = self._pcp(cpu)
        left = _signed(self._kernel.load(pcp + PCP_COUNT, doing) >> 32)
        if left > MAX_LIST_STEPS:
            raise self._lockup(pcp, doing)
        while left:
            batch = _signed(self._kernel.load(pcp + PCP_HIGH, doing) >> 32)
            to_drain = min(left, batch << PCP_BATCH_SCALE_MAX)
            if to_drain <= 0 < left:
                raise self._lockup(pcp, doing)
            self._free_pcppages_bulk(to_drain, pcp)
            left -= to_drain

    def free_pages_memory(self, start: int, pages: int) -> None:
        """`__free_pages_memory` (mm/memblock.c): free a range of frames at boot, in the largest aligned blocks.

        Cost follows the number of blocks, and of pages that were in use until now.

        Raises:
            ValueError: frames without a `struct page`.
        """
        if start < 0 or pages < 0 or start + pages > self.places.end_pfn:
            raise ValueError(f"{pages} frames from {start:#x} on: struct pages end at {self.places.end_pfn:#x}")
        end = start + pages
        while start < end:
            order = min(NR_PAGE_ORDERS - 1, (start & -start).bit_length() - 1 if start else NR_PAGE_ORDERS)
            order = min(order, (end - start).bit_length() - 1)
            self._free_pages_core(start, order)
            start += 1 << order

    def add_unmapped_blocks(self, pfns: Iterable[int]) -> None:
        """Put pageblocks that were in use on the list of unmapped ones; the direct map does not change.

        Args:
            pfns: first frames.
        """
        doing = "freeing an unmapped pageblock"
        head = self._machine.base + self.places.unmapped
        for pfn in pfns:
            page = self._page(pfn)
            for used in self._in_use(pfn, 1 << PAGEBLOCK_ORDER):
                state = self._kernel.load(self._page(used) + PAGE_STATE, doing)
                self._kernel.store(self._page(used) + PAGE_STATE, state & 0xFFFF_FFFF, doing)
            self._set_buddy_order(page, PAGEBLOCK_ORDER, doing)
            self._kernel.list_add(page + PAGE_LIST, self._kernel.load(head + 8, doing), head, doing)
            self._kernel.add(head + FREE_AREA_NR_FREE, 1, doing)

    def _free_pages_core(self, pfn: int, order: int) -> None:
        """`__free_pages_core`: free one block of boot memory, to the tail of its list."""
        doing = "freeing boot memory (__free_pages_core)"
        for used in self._in_use(pfn, 1 << order):
            state = self._kernel.load(self._page(used) + PAGE_STATE, doing)
            self._kernel.store(self._page(used) + PAGE_STATE, state & 0xFFFF_FFFF, doing)
        self._kernel.add(self._zone + ZONE_MANAGED_PAGES, 1 << order, doing)
        self._free_one_page(self._page(pfn), pfn, order, to_tail=True, doing=doing)

    def _in_use(self, start: int, pages: int) -> Iterator[int]:
        """Yield the frames of a range whose `_refcount` is not 0."""
        at, end = start, start + pages
        while at < end:
            page, row = divmod(at, PAGES_PER_MAP_PAGE)
            got = self._machine.memory.run((self.places.mem_map >> PAGE_SHIFT) + page, 1)
            rows = min(PAGES_PER_MAP_PAGE - row, end - at)
            counts = got.reshape(-1).view(STRUCT_PAGE)["_refcount"][row : row + rows]
            yield from (at + np.flatnonzero(counts)).tolist()
            at += rows

    def _nr_pcp_free(self, pcp: int, high: int, batch: int, doing: str) -> int:
        """`nr_pcp_free`: return how many pages a full list returns; more each time if nothing was allocated since."""
        if high < batch:
            return 1
        min_nr_free, max_nr_free = batch, high - batch
        word = self._kernel.load(pcp + PCP_FREE_FACTOR, doing)
        factor = word & 0xFFFF
        wanted = batch << min(factor, PCP_BATCH_SCALE_MAX)
        if wanted < max_nr_free and factor < PCP_BATCH_SCALE_MAX:
            self._kernel.store(pcp + PCP_FREE_FACTOR, (word & ~0xFFFF) | factor + 1, doing)
        return min(max(wanted, min_nr_free), max_nr_free)

    def _free_pcppages_bulk(self, count: int, pcp: int) -> None:
        """`free_pcppages_bulk`: return the oldest pages of a CPU's list, from its tail."""
        doing = "giving pages back (free_pcppages_bulk)"
        head = pcp + PCP_LIST
        count = min(count, _signed(self._kernel.load(pcp + PCP_COUNT, doing) >> 32))
        for step in range(count):
            if step == MAX_LIST_STEPS or self._kernel.load(head, doing) == head:
                raise self._lockup(head, doing)
            entry = self._kernel.load(head + 8, doing)
            self._kernel.list_del(entry, doing)
            self._add_count(pcp, -1, doing)
            page = entry - PAGE_LIST
            if not self._page_is_bad(page, doing):  # bulkfree_pcp_prepare
                self._free_one_page(page, self._pfn(page), 0, to_tail=False, doing=doing)

    def _free_one_page(self, page: int, pfn: int, order: int, *, to_tail: bool, doing: str) -> None:
        """`__free_one_page`: merge a block with its buddy while that is free, then put it on a free list."""
        self._kernel.add(self._zone + ZONE_NR_FREE_PAGES, 1 << order, doing)
        while order < NR_PAGE_ORDERS - 1:
            buddy_pfn = pfn ^ 1 << order
            buddy = page + (buddy_pfn - pfn) * SIZEOF_STRUCT_PAGE
            if not self._page_is_buddy(buddy, buddy_pfn, order, doing):
                to_tail = to_tail or self._buddy_merge_likely(page, pfn, buddy_pfn, order, doing)
                break
            self._del_page_from_free_list(buddy, order, doing)
            page, pfn = min(page, buddy), buddy_pfn & pfn
            order += 1
        self._set_buddy_order(page, order, doing)
        self._add_to_free_list(page, order, tail=to_tail, doing=doing)

    def _buddy_merge_likely(self, page: int, pfn: int, buddy_pfn: int, order: int, doing: str) -> bool:
        """`buddy_merge_likely`: return whether the buddy of the next larger block is free already."""
        if order >= NR_PAGE_ORDERS - 2:
            return False
        higher_pfn = buddy_pfn & pfn
        higher_page = page + (higher_pfn - pfn) * SIZEOF_STRUCT_PAGE
        higher_buddy_pfn = higher_pfn ^ 1 << (order + 1)
        higher_buddy = higher_page + (higher_buddy_pfn - higher_pfn) * SIZEOF_STRUCT_PAGE
        return self._page_is_buddy(higher_buddy, higher_buddy_pfn, order + 1, doing)

    # --- lists --------------------------------------------------------------------------------------------------

    def free_ranges(self) -> FrameRanges:
        """Return the frames that `mark_free_pages` marks: those on the free lists, not those on the lists of CPUs.

        Raises:
            MachineFault: a link leads to no page (`memory_bm_set_bit` finds no such frame), or into a circle that does
                not contain the head of the list.
        """
        return self._transition(self._on_free_lists, "free_ranges")

    def _on_free_lists(self) -> FrameRanges:
        """Walk the free lists."""
        areas = [(order, self._area(order)) for order in range(NR_PAGE_ORDERS)]
        if self.places.unmapped:  # for_each_free_list
            areas.append((PAGEBLOCK_ORDER, self._machine.base + self.places.unmapped))
        return self._listed(areas)

    def unmapped_blocks(self) -> FrameRanges:
        """Return the frames of free unmapped pageblocks. Raise MachineFault as `free_ranges`."""
        head = self._machine.base + self.places.unmapped
        return self._listed([(PAGEBLOCK_ORDER, head)] if self.places.unmapped else [])

    def _listed(self, areas: Iterable[tuple[int, int]]) -> FrameRanges:
        """Return the frames on lists of blocks, given as (order, address of the head)."""
        doing = "marking free pages (mark_free_pages)"
        blocks: list[tuple[int, int]] = []
        for order, head in areas:
            entry, seen = self._kernel.load(head, doing), set[int]()
            while entry != head:
                pfn = self._pfn(entry - PAGE_LIST)
                if not 0 <= pfn <= self.places.end_pfn - (1 << order):  # before anything is read there, NULL or not
                    raise bug_in_snapshot(self._machine.log, entry, doing)
                if entry in seen:
                    raise endless_loop(self._machine.log, entry, doing)
                seen.add(entry)
                blocks.append((pfn, 1 << order))
                entry = self._kernel.load(entry, doing)
        return FrameRanges.of(blocks)

    def _readable(self, head: int) -> Iterator[int]:
        """Yield the frames on a list in order, the candidates of an allocation; end where the list breaks."""
        memory, base = self._machine.memory, self._machine.base
        entry, seen = self._kernel.load(head, "reading a list"), set[int]()
        while entry != head and entry not in seen:
            pfn, within = divmod(entry - PAGE_LIST - self._mem_map, SIZEOF_STRUCT_PAGE)
            if within or not 0 <= pfn < self.places.end_pfn:
                return
            after = memory.read_u64(entry - base)
            if after is None:
                return
            seen.add(entry)
            yield pfn
            entry = after

    def _add_to_free_list(self, page: int, order: int, *, tail: bool, doing: str) -> None:
        """`add_to_free_list`, `add_to_free_list_tail`."""
        head = self._area(order)
        before, after = (self._kernel.load(head + 8, doing), head) if tail else (head, self._kernel.load(head, doing))
        self._kernel.list_add(page + PAGE_LIST, before, after, doing)
        self._kernel.add(head + FREE_AREA_NR_FREE, 1, doing)

    def _del_page_from_free_list(self, page: int, order: int, doing: str) -> None:
        """`del_page_from_free_list`."""
        self._unlink_block(page, self._area(order), doing)

    def _unlink_block(self, page: int, area: int, doing: str) -> None:
        """Take a block off the list of a `struct free_area`."""
        self._kernel.list_del(page + PAGE_LIST, doing)
        self._kernel.store(page + PAGE_STATE, self._kernel.load(page + PAGE_STATE, doing) | PG_BUDDY, doing)
        self._kernel.store(page + PAGE_PRIVATE, 0, doing)
        self._kernel.add(area + FREE_AREA_NR_FREE, -1, doing)

    def _set_buddy_order(self, page: int, order: int, doing: str) -> None:
        """`set_buddy_order`."""
        self._kernel.store(page + PAGE_PRIVATE, order, doing)
        self._kernel.store(page + PAGE_STATE, self._kernel.load(page + PAGE_STATE, doing) & ~PG_BUDDY, doing)

    def _page_is_buddy(self, page: int, pfn: int, order: int, doing: str) -> bool:
        """`page_is_buddy`: return whether a page is the first of a free block of this order."""
        if not 0 <= pfn < self.places.end_pfn:  # the kernel's array extends to a multiple of the largest block
            return False
        state = self._kernel.load(page + PAGE_STATE, doing)
        return state & PAGE_TYPE_MASK == PAGE_TYPE_BASE and self._kernel.load(page + PAGE_PRIVATE, doing) == order

    def _page_is_bad(self, page: int, doing: str) -> bool:
        """`page_expected_state`: check a page that moves between a free list and a CPU's list; `bad_page` if wrong.

        Since Linux kernel commit 700d2e9a36b9 ("mm, page_alloc: reduce page alloc/free sanity checks") (in v6.4), the
        check is off by default (`check_pages_enabled`).
        """
        state = self._kernel.load(page + PAGE_STATE, doing)
        memcg_data = self._kernel.load(page + PAGE_MEMCG_DATA, doing)
        mapping = self._kernel.load(page + PAGE_MAPPING, doing)
        if not memcg_data and not mapping and state == IN_USE_TYPE:
            return False
        reasons = {
            "page still charged to cgroup": memcg_data != 0,
            "nonzero _refcount": state >> 32 != 0,
            "non-NULL mapping": mapping != 0,
            "nonzero mapcount": state & 0xFFFF_FFFF != IN_USE_TYPE,
        }
        self._bad_page(page, next(reason for reason, applies in reasons.items() if applies))
        self._kernel.store(page + PAGE_STATE, state | IN_USE_TYPE, doing)
        return True

    def _bad_page(self, page: int, reason: str) -> None:
        """`bad_page`: print its lines."""
        self._machine.log.printk(f"BUG: Bad page state in process systemd-sleep  pfn:{self._pfn(page) & U64_MAX:05x}")
        self._machine.log.printk(f"page dumped because: {reason}")

    # --- addresses ----------------------------------------------------------------------------------------------

    def _page(self, pfn: int) -> int:
        return self._mem_map + pfn * SIZEOF_STRUCT_PAGE

    def _pfn(self, page: int) -> int:
        return (page - self._mem_map) // SIZEOF_STRUCT_PAGE

    def _area(self, order: int) -> int:
        return self._zone + ZONE_FREE_AREA + order * SIZEOF_FREE_AREA

    def _pcp(self, cpu: int) -> int:
        return self._machine.base + self.places.pcps[cpu]

    def _add_count(self, pcp: int, amount: int, doing: str) -> int:
        """Add to the `count` of a CPU's list, and return it."""
        word = (self._kernel.load(pcp + PCP_COUNT, doing) + (amount << 32)) & U64_MAX
        self._kernel.store(pcp + PCP_COUNT, word, doing)
        return _signed(word >> 32)

    def _lockup(self, vaddr: int, doing: str) -> MachineFault:
        return hard_lockup(self._machine.log, vaddr, doing)


def _signed(value: int) -> int:
    """Return the lower 32 bits as an `int` of C."""
    return (value & 0xFFFF_FFFF ^ 0x8000_0000) - 0x8000_0000
