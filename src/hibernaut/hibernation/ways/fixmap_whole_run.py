# SPDX-License-Identifier: GPL-2.0-or-later
"""A fixmap slot for pages, and for a block of 2 MiB one PMD entry: a block costs two invalidations, not 1024."""

from __future__ import annotations

from hibernaut.hibernation.ways.base import held_and_uncached, not_present_run
from hibernaut.hibernation.ways.fixmap import Fixmap
from hibernaut.linux.machine import Machine
from hibernaut.linux.pgtable import TableNotInSource
from hibernaut.memory.page import PAGE_SHIFT
from hibernaut.paging.entries import Level

__all__ = ["FixmapWholeRun"]

_BLOCK = Level.PMD.pages


class FixmapWholeRun(Fixmap):
    """`Fixmap`, with the NULL check, that maps a block of 2 MiB at once where the direct map has no smaller entry.

    A page whose entry is not present at PMD or PUD level lies in a block that is not present as a whole. The block is
    mapped by one PMD entry beside the fixmap (`BlockSlot`), which stays until the run of neighbouring pages ends: each
    block of a run costs one entry and one invalidation, and the end of the run another one of each. All other pages go
    through the 4K slot. Where no PMD entry is free, all do.

    The entry has to be cleared before any page outside the run is copied: the fixmap's PMD table may be that page, and
    its copy in the image would map the block for good. In the kernel this is one comparison for each page of the loop.

    No patch does this: it is a candidate. It maps neighbours of the page too, which the owner of the block hid, but
    only those: a not-present entry above PTE level is the work of one request for the whole block.
    """

    def hibernate_map_page(self, machine: Machine, pfn: int) -> int:
        """Map the block of the page unless it is mapped already; else as `Fixmap`."""
        if not self._in_block(machine, pfn):
            return super().hibernate_map_page(machine, pfn)
        first = pfn - pfn % _BLOCK
        if machine.block_slot.block != first:
            machine.block_slot.set_block(first)
        return machine.block_slot.vaddr + (pfn - first << PAGE_SHIFT)

    def hibernate_unmap_page(self, machine: Machine, pfn: int) -> None:
        """Leave the block mapped; else as `Fixmap`."""
        if not self._in_block(machine, pfn):
            super().hibernate_unmap_page(machine, pfn)

    def end_run(self, machine: Machine) -> None:
        """Clear the PMD entry if a block is mapped."""
        slot = machine.used_block_slot
        if slot is not None and slot.entry:
            slot.clear_block()

    def copy_run(self, machine: Machine, pfn: int, nr_pages: int) -> int:
        """See `Way.copy_run`: the part of the run that lies in one block, mapped once."""
        try:
            count, level, _ = not_present_run(machine, pfn, nr_pages)
        except TableNotInSource:
            return 0
        if level is None or level == Level.PTE or not machine.has_block_slot:
            return super().copy_run(machine, pfn, nr_pages)
        count = min(count, _BLOCK - pfn % _BLOCK)
        # If the entry's own table is in the run, it is copied while the entry is in use: copy page by page.
        table = machine.block_slot.paddr >> PAGE_SHIFT
        if count < 2 or pfn <= table < pfn + count or not held_and_uncached(machine, pfn, count):
            return 0
        machine.translate(self.hibernate_map_page(machine, pfn), f"copying frame {pfn:#x} in swsusp_save")
        return count

    def _in_block(self, machine: Machine, pfn: int) -> bool:
        """Return whether a page is not present by an entry of a whole block or more, and a PMD entry is free to map it.

        Pages without an entry have no block: their neighbours may be anything.
        """
        try:
            found = machine.lookup_address(machine.vaddr(pfn))
        except TableNotInSource:
            return False
        return found is not None and found.level in (Level.PMD, Level.PUD) and machine.has_block_slot
