# SPDX-License-Identifier: GPL-2.0-or-later
"""A modelled machine: memory, page tables, TLB, allocator, log. All state of a run lives here and nowhere else."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from hibernaut.errors import HibernautError, MachineFault, OutOfMemory
from hibernaut.linux.allocator import Allocation, PageAllocator
from hibernaut.linux.direct_map import DirectMap
from hibernaut.linux.environment import Environment
from hibernaut.linux.fixmap import FixmapSlot, find_free_slot
from hibernaut.linux.kernel_image import KernelImage
from hibernaut.linux.oops import page_fault_oops
from hibernaut.linux.pgtable import KernelEntry, TableNotInSource, lookup_address
from hibernaut.linux.printk import EventLog
from hibernaut.linux.rules import LINES, KernelRules
from hibernaut.memory.physical import PAGE_SHIFT, PAGE_SIZE, Bytes, FrameRanges, Overlay, PhysicalMemory
from hibernaut.paging.entries import Entries, Level, entry_pfn
from hibernaut.paging.tables import PageTables, Stop, Walk
from hibernaut.paging.tlb import Tlb

__all__ = ["TLB_SINGLE_PAGE_FLUSH_CEILING", "Machine", "PageFlags"]

TLB_SINGLE_PAGE_FLUSH_CEILING = 33
"""tlb_single_page_flush_ceiling: a larger change flushes the whole TLB (arch/x86/mm/tlb.c)."""

NO_FRAMES = FrameRanges.of([])


@dataclass(frozen=True, eq=False)
class PageFlags:
    """What `struct page` and hibernation's own bitmaps say of frames of a simulated machine, where it is special.

    Attributes:
        ram: every frame that has a `struct page`.
        reserved: PageReserved.
        offline: PageOffline (a balloon's pages, say).
        guard: guard pages of debug_pagealloc.
        nosave: registered as nosave, or set aside for the image itself (swsusp_set_page_forbidden).
    """

    ram: FrameRanges
    reserved: FrameRanges = NO_FRAMES
    offline: FrameRanges = NO_FRAMES
    guard: FrameRanges = NO_FRAMES
    nosave: FrameRanges = NO_FRAMES


class Machine:
    """A machine: memory, CPUs with their TLBs, what its kernel knows. One CPU runs (`cpu`); it may be the only one.

    `hibernaut.linux.build.build_machine` builds a simulated one, `hibernaut.hibernation.source_machine` one on a real
    machine's memory.

    Attributes:
        memory: everything the machine writes stays in this overlay.
        cr3: root of its page tables.
        levels: 4 or 5.
        base: virtual address of frame 0 in the direct map.
        end_pfn: one past the last frame that the direct map speaks of (`max_pfn_mapped`).
        rules: of its kernel.
        listed: the frames that a snapshot saves, where somebody has fixed them: the kernel in a dump, an image. None:
            they are found as the kernel does, from `flags` and the allocator's free lists.
        flags: of a simulated machine.
        secret_users: how many files of secret memory are open.
        image_shortfall: how many pages for the image hibernation still has to allocate when it begins to count; the
            others were set aside before.
        preemptible: whether what runs could be moved to another CPU; never so within `swsusp_save`.
        environment: answers every choice.
        allocator: hands out pages for tables.
        tlbs: what each CPU remembers of the tables; a CPU that is offline has None.
        cpu: the one that runs.
        table_pool: frames reserved for tables, taken before the allocator is asked.
        kernel_image: where the kernel's own text and data are mapped a second time, if that is known.
        direct_pages_count: entries of the direct map by level, as the kernel counts them; None until first asked for.
        log: what was printed.
    """

    def __init__(
        self,
        memory: Overlay,
        *,
        cr3: int,
        levels: int,
        base: int,
        end_pfn: int,
        allocator: PageAllocator,
        listed: FrameRanges | None = None,
        flags: PageFlags | None = None,
        environment: Environment | None = None,
        rules: KernelRules | None = None,
        cpus: int = 1,
        direct_map: DirectMap | None = None,
    ) -> None:
        self.memory = memory
        self.cr3 = cr3
        self.levels = levels
        self.base = base
        self.end_pfn = end_pfn
        self.rules = LINES[0] if rules is None else rules
        if not self.rules.inverts_not_present:
            raise HibernautError(f"kernel {self.rules.line}: entries before the L1TF mitigation are not modelled")
        self.listed = listed
        self.flags = flags
        self.secret_users = 0
        self.image_shortfall = 0
        self.preemptible = False
        self.environment = environment if environment is not None else Environment()
        self.allocator = allocator
        self.tlbs: list[Tlb | None] = [Tlb() for _ in range(cpus)]
        self.cpu = 0
        self.table_pool: list[int] = []
        self.kernel_image: KernelImage | None = None
        self.direct_pages_count: dict[Level, int] | None = None
        self.log = EventLog()
        self._direct_map = direct_map
        self._fixmap: FixmapSlot | None = None
        self._watchers: list[Callable[[int], None]] = []

    def fork(self, environment: Environment | None = None) -> Machine:
        """An independent twin in the same state, for trying something else; the source's pages are shared.

        Args:
            environment: the twin's; by default a copy of this machine's, with its record.
        """
        return self._twin(self.memory.fork(), environment)

    def _twin(self, memory: Overlay, environment: Environment | None = None) -> Machine:
        """The machine in the same state on other memory."""
        twin = copy.copy(self)
        twin.memory = memory
        twin.environment = self.environment.fork() if environment is None else environment
        twin.allocator = self.allocator.fork(twin)
        twin.tlbs = [None if tlb is None else tlb.copy() for tlb in self.tlbs]
        twin.table_pool = self.table_pool.copy()
        twin.direct_pages_count = None if self.direct_pages_count is None else self.direct_pages_count.copy()
        twin.log = self.log.fork()
        twin._direct_map = None
        twin._fixmap = None if self._fixmap is None else FixmapSlot(twin, self._fixmap.index, self._fixmap.paddr)
        twin._watchers = []
        return twin

    def on_memory(self, memory: PhysicalMemory) -> Machine:
        """The machine that the same kernel is on other memory: its own places, lists and log, an empty TLB."""
        twin = self._twin(Overlay(memory))
        twin.tlbs = [Tlb() for _ in self.tlbs]
        twin.direct_pages_count = None
        return twin

    @property
    def tlb(self) -> Tlb:
        """The TLB of the CPU that runs."""
        tlb = self.tlbs[self.cpu]
        if tlb is None:
            raise HibernautError(f"CPU {self.cpu} is offline")
        return tlb

    def flush_tlb_all(self) -> None:
        """Every CPU that is online forgets everything (arch/x86/mm/tlb.c)."""
        for tlb in self.tlbs:
            if tlb is not None:
                tlb.flush_all()

    def flush_tlb_kernel_range(self, start: int, end: int) -> None:
        """Every CPU that is online forgets the addresses from `start` to `end`; everything if they are many."""
        if end - start > TLB_SINGLE_PAGE_FLUSH_CEILING << PAGE_SHIFT:
            self.flush_tlb_all()
            return
        for tlb in self.tlbs:
            if tlb is not None:
                for vaddr in range(start, end, PAGE_SIZE):
                    tlb.invlpg(vaddr)

    def vaddr(self, pfn: int) -> int:
        """The direct-map address of a frame (`page_address`), mapped or not."""
        return self.base + (pfn << PAGE_SHIFT)

    @property
    def tables(self) -> PageTables:
        """The page tables as the CPU reads them."""
        return PageTables(self.memory, self.cr3, self.levels)

    @property
    def direct_map(self) -> DirectMap:
        """The direct map as the tables describe it now; found anew after tables were written."""
        if self._direct_map is None:
            self._direct_map = DirectMap.at(self.memory, self.cr3, self.levels, self.base, self.end_pfn)
        return self._direct_map

    @property
    def fixmap(self) -> FixmapSlot:
        """The slot for unmapped pages: one that was free when first asked for. Raises as `find_free_slot`."""
        if self._fixmap is None:
            self._fixmap = FixmapSlot(self, *find_free_slot(self.memory, self.cr3, self.levels))
        return self._fixmap

    @property
    def has_fixmap(self) -> bool:
        """Whether there is a slot for unmapped pages to be had."""
        try:
            return self.fixmap.index >= 0
        except HibernautError:
            return False

    def write_entry(self, paddr: int, entry: int) -> None:
        """Write one page-table entry. Raises TableNotInSource if its table is not in the memory."""
        self._before_write(paddr >> PAGE_SHIFT)
        try:
            self.memory.write_u64(paddr, entry)
        except KeyError:
            raise TableNotInSource(
                f"page table in frame {paddr >> PAGE_SHIFT:#x} is not in the source",
                address=self.vaddr(paddr >> PAGE_SHIFT),
                entry=None,
                pfn=paddr >> PAGE_SHIFT,
                doing="writing a page-table entry",
            ) from None

    def write_u64(self, paddr: int, value: int) -> None:
        """Write 8 bytes of the kernel's own data. Raises KeyError if the frame does not exist."""
        for watcher in self._watchers:
            watcher(paddr >> PAGE_SHIFT)
        self.memory.write_u64(paddr, value)

    def write_table(self, pfn: int, entries: Entries) -> None:
        """Fill a whole page with entries, shape (512,); the frame comes into being if the source lacks it."""
        self._before_write(pfn)
        self.memory.write_page(pfn, np.ascontiguousarray(entries, dtype="<u8").view(np.uint8))

    def alloc_page(self, purpose: str) -> int:
        """A page for a table; the log says so, or why there is none. Raises OutOfMemory."""
        try:
            pfn = self.allocator.alloc_page(self.environment, purpose, self.cpu)
        except OutOfMemory as error:
            reason = "injected" if error.injected else "no free frame"
            self.log.note(f"allocation {error.number} fails: {reason} ({purpose})")
            raise
        self.log.note(f"allocation {self.allocator.allocations[-1].number}: frame {pfn:#x} ({purpose})")
        return pfn

    def alloc_table(self, purpose: str) -> int:
        """A page for a table: from the pool, while there is one in it, else from the allocator. Raises OutOfMemory."""
        if not self.table_pool:
            return self.alloc_page(purpose)
        pfn = self.table_pool.pop(0)
        self.log.note(f"reserved frame {pfn:#x} is taken ({purpose})")
        return pfn

    def reserve_table(self, purpose: str) -> None:
        """Put one page into the pool for tables. Raises OutOfMemory."""
        self.table_pool.append(self.alloc_page(purpose))

    @property
    def allocations(self) -> tuple[Allocation, ...]:
        """Every page allocation so far."""
        return self.allocator.allocations

    @contextmanager
    def watching(self, before_write: Callable[[int], None]) -> Iterator[None]:
        """Within it, `before_write(pfn)` is called before the model writes to a frame."""
        self._watchers.append(before_write)
        try:
            yield
        finally:
            self._watchers.remove(before_write)

    def lookup_address(self, vaddr: int) -> KernelEntry | None:
        """The entry that decides an address, as the kernel finds it; see `pgtable.lookup_address`."""
        return lookup_address(self.memory, self.cr3, self.levels, vaddr)

    def translate(self, vaddr: int, doing: str) -> int:
        """The frame that a read of an address goes to, through the TLB; what is found in the tables is cached.

        Where the TLB and the tables disagree, the environment says whether the stale translation is still there.

        Raises:
            MachineFault: the address is not mapped.
            TableNotInSource: a table on the way is not in the memory.
        """
        walk = self.tables.walk(vaddr)
        cached = self.tlb.lookup(vaddr)
        if cached is not None:
            if walk.stop == Stop.PRESENT and cached.pfn == walk.pfn:
                return cached.pfn
            if self.environment.still_cached(vaddr):
                self.log.note(f"stale translation used: {vaddr:#x} is read from frame {cached.pfn:#x}")
                return cached.pfn
            self.tlb.invlpg(vaddr)
        if walk.stop == Stop.TABLE_MISSING:
            raise _table_missing(walk, doing)
        if walk.stop != Stop.PRESENT or walk.pfn is None:
            raise self.page_fault_oops(vaddr, doing=doing, pfn=walk.pfn)
        self.tlb.insert(vaddr, walk.level, entry_pfn(walk.entry, walk.level), walk.entry)
        return walk.pfn

    def read_page(self, vaddr: int, doing: str = "reading a page") -> Bytes:
        """The 4096 bytes that the CPU reads at a page's address, a read-only view, shape (4096,).

        Raises:
            MachineFault: not mapped, or mapped to a frame that the source does not hold.
        """
        pfn = self.translate(vaddr, doing)
        page = self.memory.frame(pfn)
        if page is None:
            raise MachineFault(
                "the frame that is mapped here is not in the source",
                address=vaddr,
                entry=self.tables.walk(vaddr).entry,
                pfn=pfn,
                doing=doing,
                log=self.log.kernel_lines,
            )
        return page

    def page_fault_oops(
        self, vaddr: int, *, doing: str, pfn: int | None = None, table: bool = True, write: bool = False
    ) -> MachineFault:
        """Print the kernel's lines for an access to an unmapped address, and return the fault.

        Arguments are those of `oops.page_fault_oops`.
        """
        return page_fault_oops(self.tables, self.log, vaddr, doing=doing, pfn=pfn, table=table, write=write)

    def _before_write(self, pfn: int) -> None:
        self._direct_map = None
        for watcher in self._watchers:
            watcher(pfn)


def _table_missing(walk: Walk, doing: str) -> TableNotInSource:
    table = entry_pfn(walk.entry, walk.level) if walk.steps else None
    return TableNotInSource(
        "a page table of this address is not in the source",
        address=walk.vaddr,
        entry=walk.entry if walk.steps else None,
        pfn=table,
        doing=doing,
    )
