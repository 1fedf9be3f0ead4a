# SPDX-License-Identifier: GPL-2.0-or-later
"""Mutants: ways with one step left out or wrong, each of which shows that an invariant can fail."""

from __future__ import annotations

from typing import ClassVar

from hibernaut.errors import HibernationRefused, OutOfMemory
from hibernaut.hibernation.log import FAILED_TO_REMAP
from hibernaut.hibernation.ways.base import Way
from hibernaut.hibernation.ways.fixmap import Fixmap
from hibernaut.hibernation.ways.fixmap_whole_run import FixmapWholeRun
from hibernaut.hibernation.ways.mermap import Mermap
from hibernaut.hibernation.ways.remap import Remap, RemapGenericAbort
from hibernaut.hibernation.ways.remap_whole import RemapWhole
from hibernaut.linux.change_page_attr import AttributeChangeError
from hibernaut.linux.fixmap import fix_to_virt
from hibernaut.linux.machine import Machine
from hibernaut.linux.mermap import mermap_cpu, mermap_get_reserved, mermap_put
from hibernaut.linux.pgtable import PRESENT, PSE, RW, TableNotInSource
from hibernaut.linux.set_memory import set_direct_map_invalid_noflush
from hibernaut.memory.page import PAGE_SHIFT, Bytes
from hibernaut.paging.entries import Level

__all__ = [
    "FixmapBounce",
    "FixmapNoClear",
    "FixmapNoFlush",
    "FixmapNoMap",
    "FixmapSkips",
    "FixmapWholeRunNoClear",
    "FixmapWholeRunNoFlush",
    "MermapNoFlush",
    "MermapOtherCpu",
    "Mutant",
    "RemapNoFlush",
    "RemapNoUnmap",
    "RemapWholeNoWrite",
    "RemapWholeOneRoot",
    "RemapWriteAnyway",
]


class Mutant(Way):
    """A way with a deliberate defect.

    Attributes:
        defect: the defect, a sentence.
        caught_by: name of the invariant that it must break.
    """

    defect: ClassVar[str]
    caught_by: ClassVar[str]


class _PageByPage(Mutant):
    """A mutant whose defect depends on the order of pages, so that it copies page by page."""

    def copy_run(self, machine: Machine, pfn: int, nr_pages: int) -> int:
        """See `Way.copy_run`: 0, so that every page goes through `safe_copy_page`."""
        del machine, pfn, nr_pages
        return 0


class FixmapNoFlush(_PageByPage, Fixmap):
    """`Fixmap` without any invalidation."""

    defect = "Omits every invalidation: the second unmapped page is saved with the bytes of the first."
    caught_by = "same-data"

    def hibernate_map_page(self, machine: Machine, pfn: int) -> int:
        """Write one PTE; invalidate nothing."""
        return machine.fixmap.set_fixmap(pfn, flush=False)

    def hibernate_unmap_page(self, machine: Machine, pfn: int) -> None:
        """Zero the PTE; invalidate nothing."""
        del pfn
        machine.fixmap.clear_fixmap(flush=False)


class FixmapNoClear(_PageByPage, Fixmap):
    """`Fixmap` without `clear_fixmap`."""

    defect = "Leaves the last frame mapped in the slot."
    caught_by = "slot-empty"

    def hibernate_unmap_page(self, machine: Machine, pfn: int) -> None:
        """Do nothing."""


class FixmapNoMap(_PageByPage, Fixmap):
    """`Fixmap` that reads from the wrong address."""

    defect = "Sets the slot and reads the page's direct-map address regardless."
    caught_by = "no-fault"

    def hibernate_map_page(self, machine: Machine, pfn: int) -> int:
        """Set the slot, and return the page's own address."""
        super().hibernate_map_page(machine, pfn)
        return machine.vaddr(pfn)


class FixmapSkips(_PageByPage, Fixmap):
    """`Fixmap` that skips pages without an entry."""

    defect = "Skips a page without an entry."
    caught_by = "every-listed-page"

    def safe_copy_page(self, machine: Machine, pfn: int) -> Bytes | None:
        """See `Way.safe_copy_page`; None for a page without an entry."""
        try:
            found = machine.lookup_address(machine.vaddr(pfn))
        except TableNotInSource:
            return None
        return None if found is None or not found.entry else super().safe_copy_page(machine, pfn)


class FixmapBounce(_PageByPage, Fixmap):
    """`Fixmap` with an allocation for each page."""

    defect = "Copies through a bounce page, allocated and freed for each page."
    caught_by = "allocator-sound"

    def hibernate_map_page(self, machine: Machine, pfn: int) -> int:
        """Allocate a page, then set the slot. Raise HibernationRefused if there is none."""
        try:
            machine.alloc_page(f"bounce page for frame {pfn:#x}")
        except OutOfMemory:
            raise HibernationRefused("no bounce page", errno="ENOMEM", log=machine.log.kernel_lines) from None
        return super().hibernate_map_page(machine, pfn)

    def hibernate_unmap_page(self, machine: Machine, pfn: int) -> None:
        """Clear the slot, then free the page."""
        super().hibernate_unmap_page(machine, pfn)
        machine.allocator.free_page(machine.allocations[-1].pfn or 0, machine.cpu)


class RemapWriteAnyway(Mutant, RemapGenericAbort):
    """`RemapGenericAbort` whose image is written in spite of the error."""

    policy = "write-anyway"
    defect = "Aborts where a page cannot be mapped, and writes the image regardless."
    caught_by = "nothing-on-failure"


class RemapWholeNoWrite(Mutant, RemapWhole):
    """`RemapWhole` that clears RW as well."""

    clears = PRESENT | PSE | RW
    defect = "Clears RW together with PRESENT in the large entry, as CPA does in 4K entries."
    caught_by = "same-rights"


class RemapWholeOneRoot(Mutant, RemapWhole):
    """`RemapWhole` that resets the first set of tables alone."""

    defect = "Resets the large entry in the first of two roots alone: the block stays present in the second."
    caught_by = "same-translations"

    def _set_in_root(self, machine: Machine, pfn: int, cr3: int, *, present: bool) -> bool:
        if cr3 != machine.cr3 and not present:
            return False
        return super()._set_in_root(machine, pfn, cr3, present=present)


class RemapNoUnmap(_PageByPage, Remap):
    """`Remap` without `hibernate_unmap_page`."""

    defect = "Leaves every page that it mapped present in the direct map."
    caught_by = "same-direct-map"

    def hibernate_unmap_page(self, machine: Machine, pfn: int) -> None:
        """Do nothing."""


class RemapNoFlush(_PageByPage, Remap):
    """`Remap` without `flush_tlb_kernel_range`."""

    defect = "Unmaps a page and leaves its translation in the TLB."
    caught_by = "nothing-stale"

    def hibernate_unmap_page(self, machine: Machine, pfn: int) -> None:
        """Call `set_direct_map_invalid_noflush`; flush nothing."""
        try:
            set_direct_map_invalid_noflush(machine, pfn)
        except (OutOfMemory, AttributeChangeError):
            machine.log.printk_once(FAILED_TO_REMAP)


class MermapNoFlush(_PageByPage, Mermap):
    """`Mermap` without any flush."""

    defect = "Flushes nothing when an address is used again: the second unmapped page is saved with the first's bytes."
    caught_by = "same-data"

    def hibernate_map_page(self, machine: Machine, pfn: int) -> int:
        """Write one PTE; flush nothing."""
        return mermap_get_reserved(machine, pfn, self.nr_pages, flush=False)

    def finish(self, machine: Machine) -> None:
        """Do nothing."""


class MermapOtherCpu(_PageByPage, Mermap):
    """`Mermap` that writes to the region of another CPU."""

    defect = "Maps the page in the region of the next CPU, and reads the same address of its own."
    caught_by = "no-fault"

    def hibernate_map_page(self, machine: Machine, pfn: int) -> int:
        """Write one PTE of the next CPU's region; return the address in this CPU's region."""
        own = mermap_cpu(machine, machine.cpu, self.nr_pages)
        mermap_get_reserved(machine, pfn, self.nr_pages, cpu=machine.cpu + 1)
        others = mermap_cpu(machine, machine.cpu + 1, self.nr_pages)
        return fix_to_virt(own.slots[others.next_addr - 1])

    def hibernate_unmap_page(self, machine: Machine, pfn: int) -> None:
        """Clear the PTE of the next CPU's region."""
        del pfn
        mermap_put(machine, machine.cpu + 1)


class FixmapWholeRunNoFlush(_PageByPage, FixmapWholeRun):
    """`FixmapWholeRun` without the invalidation of the PMD entry."""

    defect = "Omits the invalidation of the PMD entry: the second block is saved with the bytes of the first."
    caught_by = "same-data"

    def hibernate_map_page(self, machine: Machine, pfn: int) -> int:
        """Write the PMD entry, if the block is not mapped; invalidate nothing."""
        first = pfn - pfn % Level.PMD.pages
        if not self._in_block(machine, pfn):
            return super().hibernate_map_page(machine, pfn)
        if machine.block_slot.block != first:
            machine.block_slot.set_block(first, flush=False)
        return machine.block_slot.vaddr + (pfn - first << PAGE_SHIFT)

    def end_run(self, machine: Machine) -> None:
        """Zero the PMD entry; invalidate nothing."""
        slot = machine.used_block_slot
        if slot is not None and slot.entry:
            slot.clear_block(flush=False)


class FixmapWholeRunNoClear(_PageByPage, FixmapWholeRun):
    """`FixmapWholeRun` that leaves the last block mapped."""

    defect = "Leaves the last block mapped by the PMD entry."
    caught_by = "slot-empty"

    def end_run(self, machine: Machine) -> None:
        """Do nothing."""
