# SPDX-License-Identifier: GPL-2.0-or-later
"""Ways with one step left out. Each must be caught by the check that its docstring names."""

from __future__ import annotations

from hibernaut.errors import HibernationRefused, OutOfMemory
from hibernaut.hibernation.log import FAILED_TO_REMAP
from hibernaut.hibernation.ways.fixmap import Fixmap
from hibernaut.hibernation.ways.remap import Remap, RemapGenericAbort
from hibernaut.hibernation.ways.remap_whole import RemapWhole
from hibernaut.linux.machine import Machine
from hibernaut.linux.pgtable import PRESENT, PSE, RW, TableNotInSource
from hibernaut.linux.set_memory import AttributeChangeError, set_direct_map_invalid_noflush
from hibernaut.memory.physical import Bytes

__all__ = [
    "FixmapBounce",
    "FixmapNoClear",
    "FixmapNoFlush",
    "FixmapNoMap",
    "FixmapSkips",
    "RemapNoFlush",
    "RemapNoUnmap",
    "RemapWholeNoWrite",
    "RemapWriteAnyway",
]


class FixmapNoFlush(Fixmap):
    """Forgets every invalidation: the second unmapped page is saved with the first one's bytes. Caught by same-data."""

    def hibernate_map_page(self, machine: Machine, pfn: int) -> int:
        """One PTE written, no invalidation."""
        return machine.fixmap.set_fixmap(pfn, flush=False)

    def hibernate_unmap_page(self, machine: Machine, pfn: int) -> None:
        """The PTE zero again, no invalidation."""
        del pfn
        machine.fixmap.clear_fixmap(flush=False)

    def copy_run(self, machine: Machine, pfn: int, pages: int) -> int:
        """Always one by one: what the slot shows depends on what it showed before."""
        del machine, pfn, pages
        return 0


class FixmapNoClear(Fixmap):
    """Leaves the last frame mapped in the slot. Caught by slot-empty."""

    def hibernate_unmap_page(self, machine: Machine, pfn: int) -> None:
        """Nothing."""

    def copy_run(self, machine: Machine, pfn: int, pages: int) -> int:
        """Always one by one: the slot stays in use."""
        del machine, pfn, pages
        return 0


class FixmapNoMap(Fixmap):
    """Fills the slot and reads the page's own address all the same. Caught by no-fault."""

    def hibernate_map_page(self, machine: Machine, pfn: int) -> int:
        """The slot set, and not used."""
        super().hibernate_map_page(machine, pfn)
        return machine.vaddr(pfn)

    def copy_run(self, machine: Machine, pfn: int, pages: int) -> int:
        """Always one by one: the first is fatal."""
        del machine, pfn, pages
        return 0


class FixmapSkips(Fixmap):
    """Takes a page without an entry for one that need not be saved. Caught by every-listed-page."""

    def safe_copy_page(self, machine: Machine, pfn: int) -> Bytes | None:
        """Nothing of a page that has no entry."""
        try:
            found = machine.lookup_address(machine.vaddr(pfn))
        except TableNotInSource:
            return None
        return None if found is None or not found.entry else super().safe_copy_page(machine, pfn)

    def copy_run(self, machine: Machine, pfn: int, pages: int) -> int:
        """Always one by one."""
        del machine, pfn, pages
        return 0


class FixmapBounce(Fixmap):
    """Copies through a page of its own, which it allocates for each and frees again. Caught by allocator-sound."""

    def hibernate_map_page(self, machine: Machine, pfn: int) -> int:
        """A page from the allocator before the slot is set. Raises HibernationRefused if there is none."""
        try:
            machine.alloc_page(f"bounce page for frame {pfn:#x}")
        except OutOfMemory:
            raise HibernationRefused("no bounce page", errno="ENOMEM", log=machine.log.kernel_lines) from None
        return super().hibernate_map_page(machine, pfn)

    def hibernate_unmap_page(self, machine: Machine, pfn: int) -> None:
        """The slot cleared, the page given back."""
        super().hibernate_unmap_page(machine, pfn)
        machine.allocator.free_page(machine.allocations[-1].pfn or 0, machine.cpu)

    def copy_run(self, machine: Machine, pfn: int, pages: int) -> int:
        """Always one by one."""
        del machine, pfn, pages
        return 0


class RemapWriteAnyway(RemapGenericAbort):
    """Gives up where a page cannot be mapped, and the image is written all the same. Caught by nothing-on-failure."""

    policy = "write-anyway"


class RemapWholeNoWrite(RemapWhole):
    """Takes RW from the large entry together with PRESENT, as CPA does of 4K entries. Caught by same-rights."""

    clears = PRESENT | PSE | RW


class RemapNoUnmap(Remap):
    """Leaves every page that it mapped present in the direct map. Caught by same-direct-map."""

    def hibernate_unmap_page(self, machine: Machine, pfn: int) -> None:
        """Nothing."""

    def copy_run(self, machine: Machine, pfn: int, pages: int) -> int:
        """Always one by one."""
        del machine, pfn, pages
        return 0


class RemapNoFlush(Remap):
    """Unmaps a page and lets the CPU remember it. Caught by nothing-stale."""

    def hibernate_unmap_page(self, machine: Machine, pfn: int) -> None:
        """set_direct_map_invalid_noflush, and no flush after it."""
        try:
            set_direct_map_invalid_noflush(machine, pfn)
        except (OutOfMemory, AttributeChangeError):
            machine.log.printk_once(FAILED_TO_REMAP)

    def copy_run(self, machine: Machine, pfn: int, pages: int) -> int:
        """Always one by one."""
        del machine, pfn, pages
        return 0
