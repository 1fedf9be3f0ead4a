"""A modelled machine: memory, page tables, TLB, allocator, log. All state of a run lives here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import ArrayLike

from hibernaut.errors import HibernautError, MachineFault, OutOfMemory
from hibernaut.linux.direct_map import DirectMap
from hibernaut.linux.environment import Environment
from hibernaut.linux.fixmap import Fixmap, find_free_slot
from hibernaut.linux.page_alloc import Allocation, PageAllocator
from hibernaut.linux.pgtable import KernelEntry, TableNotInSource, lookup_address
from hibernaut.linux.printk import EventLog
from hibernaut.linux.saveable import choose_free, choose_saveable
from hibernaut.memory.physical import PAGE_SHIFT, PAGE_SIZE, Bytes, Frames, Overlay, PhysicalMemory
from hibernaut.paging.entries import Entries, Level, entry_pfn
from hibernaut.paging.tables import PageTables, Stop, Walk
from hibernaut.paging.tlb import Tlb

__all__ = ["Machine"]


class Machine:
    """One CPU with its memory, the others offline, interrupts off: the state in which `swsusp_save` runs.

    Use `from_source` for a real machine's memory and `hibernaut.linux.build.build_machine` for a simulated one.

    Attributes:
        memory: everything the machine writes stays in this overlay.
        cr3: root of its page tables.
        levels: 4 or 5.
        base: virtual address of frame 0 in the direct map.
        end_pfn: one past the last frame that the direct map speaks of (`max_pfn_mapped`).
        saveable: the frames that a snapshot saves, ascending int64.
        environment: answers every choice.
        allocator: hands out pages for tables.
        tlb: what the CPU remembers of the tables.
        log: what was printed.
    """

    def __init__(
        self,
        memory: Overlay,
        direct_map: DirectMap,
        *,
        cr3: int,
        saveable: ArrayLike,
        free: ArrayLike,
        environment: Environment | None = None,
    ) -> None:
        self.memory = memory
        self.cr3 = cr3
        self.levels = direct_map.levels
        self.base = direct_map.base
        self.end_pfn = direct_map.end_pfn
        self.saveable = _ascending(saveable)
        self.environment = environment if environment is not None else Environment()
        self.allocator = PageAllocator(_ascending(free))
        self.tlb = Tlb()
        self.log = EventLog()
        self._direct_map: DirectMap | None = direct_map
        self._fixmap: Fixmap | None = None
        self._watchers: list[Callable[[int], None]] = []

    @classmethod
    def from_source(
        cls,
        memory: PhysicalMemory,
        cr3: int,
        levels: int | None = None,
        saveable: ArrayLike | None = None,
        environment: Environment | None = None,
        free: ArrayLike | None = None,
    ) -> Machine:
        """A machine on existing memory: a dump, an image, another machine's memory. The source is never written.

        Args:
            memory: the source.
            cr3: root of the kernel's page tables.
            levels: 4 or 5; found if not given.
            saveable: the list of frames to save, ascending. Default: every frame of the source whose direct map has an
                entry for it, present or not (reserved memory has none), less those set aside for `free`.
            environment: answers every choice; by default nothing fails.
            free: frames for page tables, ascending. Default: frames of the source that are plainly mapped and not in
                `saveable`; if `saveable` is the default too, zero-filled frames at the top of RAM are set aside,
                as many as splitting every not-present large page can take, at most 4096.

        Raises:
            FormatError: no direct map is found.
            HibernautError: a list of frames does not ascend, or a frame to save is not in the source.
        """
        overlay = Overlay(memory)
        direct_map = DirectMap.find(overlay, cr3, levels)
        if saveable is None:
            chosen, aside = choose_saveable(overlay, direct_map, set_aside=free is None)
            free = aside if free is None else free
        else:
            chosen = _ascending(saveable)
            free = choose_free(overlay, direct_map, chosen) if free is None else free
        if len(chosen) and direct_map.base + (int(chosen[-1]) << PAGE_SHIFT) >= 1 << 64:
            raise HibernautError(f"frame {int(chosen[-1]):#x} has no address in the direct map at {direct_map.base:#x}")
        missing = chosen[~overlay.ranges.contains(chosen)]
        if len(missing):
            raise HibernautError(
                f"{len(missing)} of the {len(chosen)} frames to save are not in the source, the first is "
                f"{int(missing[0]):#x}"
            )
        return cls(overlay, direct_map, cr3=cr3, saveable=chosen, free=free, environment=environment)

    def fork(self, environment: Environment | None = None) -> Machine:
        """An independent twin in the same state, for trying something else; the source's pages are shared.

        Args:
            environment: the twin's; by default a copy of this machine's, with its record.
        """
        twin = Machine.__new__(Machine)
        twin.memory = self.memory.fork()
        twin.cr3, twin.levels, twin.base, twin.end_pfn = self.cr3, self.levels, self.base, self.end_pfn
        twin.saveable = self.saveable
        twin.environment = self.environment.fork() if environment is None else environment
        twin.allocator = self.allocator.fork()
        twin.tlb = self.tlb.copy()
        twin.log = self.log.fork()
        twin._direct_map = None
        twin._fixmap = None if self._fixmap is None else Fixmap(twin, self._fixmap.index, self._fixmap.paddr)
        twin._watchers = []
        return twin

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
            self._direct_map = DirectMap.find(self.memory, self.cr3, self.levels)
        return self._direct_map

    @property
    def fixmap(self) -> Fixmap:
        """The slot for unmapped pages: one that was free when first asked for. Raises as `find_free_slot`."""
        if self._fixmap is None:
            self._fixmap = Fixmap(self, *find_free_slot(self.memory, self.cr3, self.levels))
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

    def write_table(self, pfn: int, entries: Entries) -> None:
        """Fill a whole page with entries, shape (512,); the frame comes into being if the source lacks it."""
        self._before_write(pfn)
        self.memory.write_page(pfn, np.ascontiguousarray(entries, dtype="<u8").view(np.uint8))

    def alloc_page(self, purpose: str) -> int:
        """A page for a table; the log says so, or why there is none. Raises OutOfMemory."""
        try:
            pfn = self.allocator.alloc_page(self.environment, purpose)
        except OutOfMemory as error:
            reason = "injected" if error.injected else "no free frame"
            self.log.note(f"allocation {error.number} fails: {reason} ({purpose})")
            raise
        self.log.note(f"allocation {self.allocator.allocations[-1].number}: frame {pfn:#x} ({purpose})")
        return pfn

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

    def page_fault_oops(self, vaddr: int, *, doing: str, pfn: int | None = None, table: bool = True) -> MachineFault:
        """Print what the kernel prints for a read of an unmapped address (`show_fault_oops`), and make the fault.

        Args:
            vaddr: the address; below 4096 it is reported as a NULL dereference.
            doing: what the machine was doing.
            pfn: the frame that was wanted, if known.
            table: False if the fault is to carry no entry: there was none to read.
        """
        walk = self.tables.walk(vaddr)
        null = vaddr < PAGE_SIZE
        what = "kernel NULL pointer dereference, address" if null else "unable to handle page fault for address"
        self.log.printk(f"BUG: {what}: {vaddr:016x}")
        self.log.printk("#PF: supervisor read access in kernel mode")
        self.log.printk("#PF: error_code(0x0000) - not-present page")
        self.log.printk(_dump_pagetable(walk, self.levels))
        return MachineFault(
            what.split(",")[0].removesuffix(" for address"),
            address=vaddr,
            entry=walk.entry if table and walk.steps else None,
            pfn=pfn,
            doing=doing,
            log=self.log.kernel_lines,
        )

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


def _dump_pagetable(walk: Walk, levels: int) -> str:
    """The line of `dump_pagetable` (arch/x86/mm/fault.c): every entry on the way; with 4 levels PGD and P4D are one."""
    parts = [f"{step.level.name_of(levels)} {step.entry:x}" for step in walk.steps]
    if levels == Level.P4D and parts:
        parts.insert(1, f"P4D {walk.steps[0].entry:x}")
    if walk.stop == Stop.TABLE_MISSING:
        parts.append("BAD")
    return " ".join(parts)


def _ascending(pfns: ArrayLike) -> Frames:
    frames = np.array(pfns, dtype=np.int64).reshape(-1)
    wrong = np.flatnonzero(np.diff(frames) <= 0)
    if len(wrong):
        raise HibernautError(
            f"frames must ascend without repeats: {int(frames[wrong[0] + 1]):#x} follows {int(frames[wrong[0]]):#x}"
        )
    if len(frames) and (frames[0] < 0 or frames[-1] >= 1 << 40):
        raise HibernautError(f"frame {int(frames[0] if frames[0] < 0 else frames[-1]):#x} cannot exist")
    frames.flags.writeable = False
    return frames
