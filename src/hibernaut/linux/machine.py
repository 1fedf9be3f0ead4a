# SPDX-License-Identifier: GPL-2.0-or-later
"""A modelled machine: memory, page tables, TLBs, allocator, log. All state of a run lives here."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from hibernaut.errors import HibernautError, MachineFault, OutOfMemory
from hibernaut.linux.allocator import Allocation, PageAllocator
from hibernaut.linux.calls import Call, allocated, entry_text
from hibernaut.linux.direct_map import DirectMap
from hibernaut.linux.environment import Environment
from hibernaut.linux.fixmap import BlockSlot, FixmapSlot, find_block_slot, find_free_slot
from hibernaut.linux.kernel_image import KernelImage
from hibernaut.linux.mermap_cpu import MermapCpu
from hibernaut.linux.oops import PageFault, page_fault_oops
from hibernaut.linux.owners import OwnedPages
from hibernaut.linux.page_alloc import BuddyAllocator
from hibernaut.linux.page_flags import PageFlags
from hibernaut.linux.pgtable import RW, KernelEntry, TableNotInSource, lookup_address
from hibernaut.linux.printk import Event, EventLog
from hibernaut.linux.rules import LINES, KernelRules
from hibernaut.linux.transitions import transition
from hibernaut.memory.memo import Memo
from hibernaut.memory.overlay import Overlay
from hibernaut.memory.page import PAGE_SHIFT, PAGE_SIZE, Bytes
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.ranges import FrameRanges
from hibernaut.paging.entries import Entries, Level, entry_pfn, has_reserved_bits
from hibernaut.paging.table_names import named_tables
from hibernaut.paging.tables import PageTables, Stop, Walk
from hibernaut.paging.tlb import Tlb

__all__ = ["PHYSICAL_ADDRESS_BITS", "TLB_SINGLE_PAGE_FLUSH_CEILING", "Machine", "Watching"]

PHYSICAL_ADDRESS_BITS = 46
"""Physical address bits of the modelled CPU (CPUID 0x80000008): a higher bit in a present entry is reserved, and an
access through it faults (Intel SDM vol. 3, 5.7). A CPU with all 52 bits reads memory that is not there instead."""

TLB_SINGLE_PAGE_FLUSH_CEILING = 33
"""A larger change flushes the whole TLB (arch/x86/mm/tlb.c)."""

MOST_RECORDS = 1 << 10
"""Records of allocations that machines of one memo keep."""

MOST_DIRECT_MAPS = 64
"""Direct maps that machines of one memo keep."""


class Watching:
    """A context in which a function is called before each write; see `Machine.watching`."""

    __slots__ = ("_before_write", "_watchers")

    def __init__(self, watchers: list[Callable[[int], None]], before_write: Callable[[int], None]) -> None:
        self._watchers = watchers
        self._before_write = before_write

    def __enter__(self) -> None:
        self._watchers.append(self._before_write)

    def __exit__(self, *_: object) -> None:
        self._watchers.remove(self._before_write)


class Machine:
    """A machine: memory, CPUs with their TLBs, and the state of its kernel. One CPU runs (`cpu`).

    `hibernaut.linux.build.build_machine` builds a simulated machine, `hibernaut.hibernation.source_machine` one on a
    real machine's memory.

    Attributes:
        memory: memory; all writes stay in this overlay.
        cr3: root of the page tables.
        levels: 4 or 5.
        base: virtual address of frame 0 in the direct map.
        end_pfn: one past the last frame of the direct map (`max_pfn_mapped`).
        rules: rules of the kernel's line.
        page_flags: flags of page frames; None for a machine in a dump or an image.
        saveable: the saveable pages, where the kernel in a dump or an image has fixed them; None where they follow
            from `page_flags` and the free lists. The list belongs to that kernel's state, so it stays with the machine:
            whatever is asked of the machine is answered for the same pages.
        secretmem_users: number of open files of secret memory (mm/secretmem.c).
        preemptible: whether the running code can be moved to another CPU; False within `swsusp_save`.
        environment: answers every choice.
        allocator: allocator of pages for tables.
        tlbs: TLB of each CPU; None for a CPU that is offline.
        cpu: the CPU that runs.
        table_pool: frames reserved for tables, used before the allocator is asked.
        encryption: mask of the bit of encrypted memory in entries (`sme_me_mask`); 0 without it.
        owners: the pages that kernel code has taken out of the direct map and uses next, by owner, as far as known.
        second_cr3: root of a second set of tables for the direct map, which CPA keeps like the first (`second_root`);
            None without one.
        mermap: CPU and region of each CPU that has used its own (`mermap`), by CPU; a value, never changed in place.
        kernel_image: the second mapping of the kernel's own text and data, if it is known.
        direct_pages_count: entries of the direct map by level, as the kernel counts them; None until first asked for.
        log: lines of the kernel and of the model.
        memo: results of pure functions of the machine's bytes, shared by all forks.
        calls: calls of the copy loop, to be compared with a real kernel's; None, as on every fork, unless recorded.
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
        saveable: FrameRanges | None = None,
        page_flags: PageFlags | None = None,
        environment: Environment | None = None,
        rules: KernelRules | None = None,
        cpus: int = 1,
        direct_map: DirectMap | None = None,
        encryption: int = 0,
        memo: Memo | None = None,
    ) -> None:
        self.memory = memory
        self.memo = Memo() if memo is None else memo
        self.encryption = encryption
        self.cr3 = cr3
        self.levels = levels
        self.base = base
        self.end_pfn = end_pfn
        self.rules = LINES[0] if rules is None else rules
        if not self.rules.inverts_not_present:
            raise HibernautError(f"kernel {self.rules.line}: entries before the L1TF mitigation are not modelled")
        self.saveable = saveable
        self.page_flags = page_flags
        self.secretmem_users = 0
        self.preemptible = False
        self.environment = environment if environment is not None else Environment()
        self.allocator = allocator
        self.tlbs: list[Tlb | None] = [Tlb() for _ in range(cpus)]
        self.cpu = 0
        self.table_pool: list[int] = []
        self.owners: tuple[OwnedPages, ...] = ()
        self.mermap: tuple[tuple[int, MermapCpu], ...] = ()
        self.kernel_image: KernelImage | None = None
        self.second_cr3: int | None = None
        self.direct_pages_count: dict[Level, int] | None = None
        self.log = EventLog()
        self.calls: list[Call] | None = None
        self._direct_map = direct_map
        self._fixmap: FixmapSlot | None = None
        self._block_slot: BlockSlot | None = None
        self._watchers: list[Callable[[int], None]] = []

    def fork(self, environment: Environment | None = None) -> Machine:
        """Return an independent twin in the same state; the pages of the source are shared.

        Args:
            environment: environment of the twin; by default a copy of this machine's, with its record.
        """
        return self._twin(self.memory.fork(), environment)

    def _twin(self, memory: Overlay, environment: Environment | None = None) -> Machine:
        """Return the machine in the same state on other memory."""
        twin = object.__new__(type(self))
        twin.__dict__ = self.__dict__.copy()
        twin.memory = memory
        twin.environment = self.environment.fork() if environment is None else environment
        twin.allocator = self.allocator.fork(twin)
        twin.tlbs = [None if tlb is None else tlb.copy() for tlb in self.tlbs]
        twin.table_pool = self.table_pool.copy()
        twin.direct_pages_count = None if self.direct_pages_count is None else self.direct_pages_count.copy()
        twin.log = self.log.fork()
        twin.calls = None
        twin._direct_map = None
        twin._fixmap = None if self._fixmap is None else FixmapSlot(twin, self._fixmap.index, self._fixmap.paddr)
        twin._block_slot = (
            None if self._block_slot is None else BlockSlot(twin, self._block_slot.index, self._block_slot.paddr)
        )
        twin._watchers = []
        return twin

    def on_memory(self, memory: PhysicalMemory) -> Machine:
        """Return the same kernel on other memory: its places, lists and log stay, its TLBs are empty."""
        twin = self._twin(Overlay(memory))
        twin.tlbs = [Tlb() for _ in self.tlbs]
        twin.direct_pages_count = None
        return twin

    @property
    def tlb(self) -> Tlb:
        """TLB of the CPU that runs."""
        tlb = self.tlbs[self.cpu]
        if tlb is None:
            raise HibernautError(f"CPU {self.cpu} is offline")
        return tlb

    def flush_tlb_all(self) -> None:
        """Drop all translations of every CPU that is online (arch/x86/mm/tlb.c)."""
        if self.calls is not None:
            self.record(Call.of("flush_tlb_all"))
        for tlb in self.tlbs:
            if tlb is not None:
                tlb.flush_all()

    def flush_tlb_kernel_range(self, start: int, end: int) -> None:
        """Drop the translations from `start` to `end` of every CPU that is online; all if there are too many."""
        if self.calls is not None:
            self.record(Call.of("flush_tlb_kernel_range", hex(start), hex(end)))
        if end - start > TLB_SINGLE_PAGE_FLUSH_CEILING << PAGE_SHIFT:
            self.flush_tlb_all()
            return
        for tlb in self.tlbs:
            if tlb is not None:
                for vaddr in range(start, end, PAGE_SIZE):
                    tlb.invlpg(vaddr)

    def record(self, call: Call) -> None:
        """Add a call to `calls`, where these are recorded."""
        if self.calls is not None:
            self.calls.append(call)

    def entry_fact(self, pfn: int) -> str | None:
        """Return the entry that maps a frame in the direct map, as a fact of a call; None if there is no table."""
        found = self.lookup_address(self.vaddr(pfn))
        return None if found is None else entry_text(found.level, found.paddr, found.entry)

    def vaddr(self, pfn: int) -> int:
        """Return the direct-map address of a frame (`page_address`), mapped or not."""
        return self.base + (pfn << PAGE_SHIFT)

    @property
    def owners_need_rights(self) -> bool:
        """Whether some owner's next write depends on the rights that it left in a not-present entry."""
        return any(owned.needs_rights for owned in self.owners)

    @property
    def tables(self) -> PageTables:
        """Page tables as the CPU reads them."""
        return PageTables(self.memory, self.cr3, self.levels, self.encryption)

    @property
    def direct_map(self) -> DirectMap:
        """Direct map as the tables describe it now; computed anew after a write to a table."""
        if self._direct_map is None or self.memory.is_tracked:
            known = self.memo.of("DirectMap.at", MOST_DIRECT_MAPS)
            place = (self.cr3, self.levels, self.base, self.end_pfn, self.encryption)
            tables = named_tables(self.memory, self.tables.root_pfn, self.levels, self.encryption, self.memo)
            key = (place, self.memory.ranges.bounds, tables)
            found = known.get(key)
            if found is None:
                found = known[key] = DirectMap.at(
                    self.memory, self.cr3, self.levels, self.base, self.end_pfn, self.encryption
                )
            self._direct_map = found if found.tables.memory is self.memory else found.on_tables(self.tables)
        return self._direct_map

    @property
    def fixmap(self) -> FixmapSlot:
        """Slot for unmapped pages: the lowest that was free when first asked for. Raises as `find_free_slot`."""
        if self._fixmap is None:
            place = (self.cr3, self.levels, self.encryption)
            free = transition(self, lambda: find_free_slot(self.memory, *place), "find_free_slot", *place)
            self._fixmap = FixmapSlot(self, *free)
        return self._fixmap

    @property
    def known_slot(self) -> FixmapSlot | None:
        """`fixmap` if it was asked for; None before."""
        return self._fixmap

    def use_slot(self, index: int, paddr: int) -> None:
        """Set `fixmap` to a slot."""
        if self._fixmap is None or self._fixmap.paddr != paddr:
            self._fixmap = FixmapSlot(self, index, paddr)

    @property
    def has_fixmap(self) -> bool:
        """True if the tables have a free slot for unmapped pages."""
        try:
            return self.fixmap.index >= 0
        except HibernautError:
            return False

    def mermap_of(self, cpu: int) -> MermapCpu | None:
        """Return the mermap's region of a CPU; None if it has not used it."""
        return dict(self.mermap).get(cpu)

    def use_mermap(self, cpu: int, region: MermapCpu) -> None:
        """Take note of how much of a CPU's region is used up."""
        self.mermap = tuple(sorted(({**dict(self.mermap), cpu: region}).items()))

    @property
    def block_slot(self) -> BlockSlot:
        """PMD entry for blocks that are not mapped: the first that was free when first asked for.

        Raises as `find_block_slot`.
        """
        if self._block_slot is None:
            self._block_slot = BlockSlot(self, *find_block_slot(self.memory, self.cr3, self.levels, self.encryption))
        return self._block_slot

    @property
    def has_block_slot(self) -> bool:
        """True if the tables have a free PMD entry for blocks that are not mapped."""
        try:
            return self.block_slot.index >= 0
        except HibernautError:
            return False

    @property
    def used_block_slot(self) -> BlockSlot | None:
        """That entry, if it was asked for."""
        return self._block_slot

    def write_entry(self, paddr: int, entry: int) -> None:
        """Write one page-table entry. Raise TableNotInSource if its table is not in the memory."""
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
        """Write 8 bytes of the kernel's own data. Raise KeyError if the frame does not exist."""
        for watcher in self._watchers:
            watcher(paddr >> PAGE_SHIFT)
        self.memory.write_u64(paddr, value)

    def replace_page(self, pfn: int, version: object, *, table: bool = False) -> None:
        """Write a whole page of the kernel's own data, or of a table: an `Overlay.version` of the frame."""
        if table:
            self._direct_map = None
        for watcher in self._watchers:
            watcher(pfn)
        self.memory.put_version(pfn, version)

    def write_table(self, pfn: int, entries: Entries) -> None:
        """Fill a whole page with entries, shape (512,); a frame that the source lacks is created."""
        self._before_write(pfn)
        self.memory.write_page(pfn, np.ascontiguousarray(entries, dtype="<u8").view(np.uint8))

    def alloc_page(self, purpose: str) -> int:
        """Allocate a page and note the outcome in the log. Raise OutOfMemory."""
        try:
            pfn = self.allocator.alloc_page(self.environment, purpose, self.cpu)
        except OutOfMemory as error:
            failed = Allocation(error.number, purpose, None, at_mark=error.at_mark)
            self.log.note(failed.line(injected=error.injected))
            self.record(allocated(None))
            raise
        self.log.note(self.allocator.allocations[-1].line())
        self.record(allocated(pfn))
        return pfn

    def alloc_pages(self, purpose: str, most: int) -> Iterator[int]:
        """Yield the frames of `alloc_page` without interference, until nothing is free or `most` times.

        Raises:
            OutOfMemory: nothing is free; all frames have been yielded.
            MachineFault: the lists are broken.
        """
        allocator = self.allocator
        if not isinstance(allocator, BuddyAllocator) or allocator.places.unmapped or self.calls is not None:
            for _ in range(most):
                yield self.alloc_page(purpose)
            return
        recorded, printed = allocator.number, len(self.log.kernel_lines)

        def prints() -> bool:
            return len(self.log.kernel_lines) > printed

        try:
            pfns, failed, at_mark = allocator.alloc_all(
                most, self.cpu, lambda pfn: self._record_allocations(purpose, (pfn,)), prints
            )
        except MachineFault:
            yield from [one.pfn for one in allocator.allocations[recorded:] if one.pfn is not None]
            raise
        every = (*pfns, None) if failed else pfns
        self._record_allocations(purpose, every[allocator.number - recorded :], at_mark=at_mark)
        yield from pfns
        if failed:
            raise OutOfMemory(recorded + len(pfns) + 1, injected=False, at_mark=at_mark)

    def _record_allocations(self, purpose: str, pfns: tuple[int | None, ...], *, at_mark: bool = False) -> None:
        """Add allocations without interference to the record and the log; the state in memory has them already."""
        allocator = self.allocator
        assert isinstance(allocator, BuddyAllocator)
        known = self.memo.of("allocations on record", MOST_RECORDS)
        key = allocator.number, purpose, pfns, at_mark
        found = known.get(key)
        if found is None:
            made = [
                Allocation(number, purpose, pfn, at_mark=pfn is None and at_mark)
                for number, pfn in enumerate(pfns, allocator.number + 1)
            ]
            found = known[key] = made, [Event(one.line(), by_kernel=False) for one in made]
        allocations, events = found
        allocator.add_allocations(allocations)
        self.log.add(events, frozenset())

    def alloc_table(self, purpose: str) -> int:
        """Return a page for a table, from the pool or else from the allocator. Raise OutOfMemory."""
        if not self.table_pool:
            return self.alloc_page(purpose)
        pfn = self.table_pool.pop(0)
        self.log.note(f"reserved frame {pfn:#x} is taken ({purpose})")
        return pfn

    def reserve_table(self, purpose: str) -> None:
        """Add one page to the pool for tables. Raise OutOfMemory."""
        self.table_pool.append(self.alloc_page(purpose))

    @property
    def allocations(self) -> tuple[Allocation, ...]:
        """All page allocations so far."""
        return self.allocator.allocations

    def watching(self, before_write: Callable[[int], None]) -> Watching:
        """Call `before_write(pfn)` before each write to a frame while the context is active."""
        return Watching(self._watchers, before_write)

    def lookup_address(self, vaddr: int, cr3: int | None = None) -> KernelEntry | None:
        """Return the entry that decides an address, as the kernel finds it; see `pgtable.lookup_address`.

        Args:
            vaddr: the address.
            cr3: root of the tables; the machine's own by default.
        """
        return lookup_address(self.memory, self.cr3 if cr3 is None else cr3, self.levels, vaddr, self.encryption)

    def by_second_root(self) -> Machine | None:
        """Return the machine by its second set of tables, on the same memory, for reading; None without one."""
        if self.second_cr3 is None:
            return None
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view.cr3, view.second_cr3 = self.second_cr3, None
        view._direct_map = view._fixmap = view._block_slot = None
        return view

    def translate(self, vaddr: int, doing: str) -> int:
        """Return the frame that a read of an address goes to, through the TLB; a translation that is found is cached.

        Where the TLB contradicts the tables, the environment decides whether the stale translation is still cached.

        Raises:
            MachineFault: the address is not mapped.
            TableNotInSource: a table on the way is not in the memory.
        """
        cached = self.tlb.lookup(vaddr)
        walk = self.tables.walk(vaddr)
        if cached is not None:
            if walk.stop == Stop.PRESENT and cached.pfn == walk.pfn:
                return cached.pfn
            if self.environment.still_cached(vaddr):
                self.log.note(f"stale translation used: {vaddr:#x} is read from frame {cached.pfn:#x}")
                return cached.pfn
            self.tlb.invlpg(vaddr)
        if walk.stop == Stop.TABLE_MISSING:
            raise _table_missing(walk, doing, self.encryption)
        if walk.stop != Stop.PRESENT or walk.pfn is None:
            raise self.page_fault_oops(vaddr, doing=doing, pfn=walk.pfn)
        if walk.pfn >> (PHYSICAL_ADDRESS_BITS - PAGE_SHIFT) or has_reserved_bits(walk.entry, walk.level):
            raise self.page_fault_oops(vaddr, doing=doing, cause=PageFault.RESERVED_BIT)
        self.tlb.insert(vaddr, walk.level, entry_pfn(walk.entry, walk.level, self.encryption), walk.entry)
        return walk.pfn

    def write_access(self, vaddr: int, doing: str) -> int:
        """Return the frame that a write to an address goes to; nothing is written.

        Without RW in every level of the tables a write faults, unless the CPU still caches a translation with RW.

        Raises:
            MachineFault: the address is not mapped, or not writable.
            TableNotInSource: a table on the way is not in the memory.
        """
        walk = self.tables.walk(vaddr)
        if walk.stop == Stop.PRESENT and not walk.rw:
            cached = self.tlb.lookup(vaddr)
            if cached is None or not cached.entry & RW or not self.environment.still_cached(vaddr):
                cause = PageFault.PERMISSIONS
                raise self.page_fault_oops(vaddr, doing=doing, pfn=walk.pfn, write=True, cause=cause)
            return cached.pfn
        if walk.stop in (Stop.NOT_PRESENT, Stop.NONE) and self.tlb.lookup(vaddr) is None:
            raise self.page_fault_oops(vaddr, doing=doing, pfn=walk.pfn, write=True)
        return self.translate(vaddr, doing)

    def read_page(self, vaddr: int, doing: str = "reading a page") -> Bytes:
        """Return the bytes that the CPU reads at the address of a page: a read-only view, shape (4096,).

        Raises:
            MachineFault: the page is not mapped, or mapped to a frame that the source lacks.
        """
        pfn = self.translate(vaddr, doing)
        page = self.memory.page(pfn)
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
        self,
        vaddr: int,
        *,
        doing: str,
        pfn: int | None = None,
        table: bool = True,
        write: bool = False,
        cause: PageFault = PageFault.NOT_PRESENT,
    ) -> MachineFault:
        """Print the kernel's lines for an access that the tables do not allow, and return the fault.

        Arguments are those of `oops.page_fault_oops`.
        """
        return page_fault_oops(
            self.tables, self.log, vaddr, doing=doing, pfn=pfn, table=table, write=write, cause=cause
        )

    def _before_write(self, pfn: int) -> None:
        self._direct_map = None
        for watcher in self._watchers:
            watcher(pfn)


def _table_missing(walk: Walk, doing: str, encryption: int) -> TableNotInSource:
    table = entry_pfn(walk.entry, walk.level, encryption) if walk.steps else None
    return TableNotInSource(
        "a page table of this address is not in the source",
        address=walk.vaddr,
        entry=walk.entry if walk.steps else None,
        pfn=table,
        doing=doing,
    )
