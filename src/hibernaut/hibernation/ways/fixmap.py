# SPDX-License-Identifier: GPL-2.0-or-later
"""The proposal: map the frame in a fixmap slot, copy from there, clear the slot."""

from __future__ import annotations

from hibernaut.hibernation.ways.base import Way, held_and_uncached, not_present_run
from hibernaut.linux.machine import Machine
from hibernaut.linux.pgtable import TableNotInSource
from hibernaut.memory.page import PAGE_SHIFT

__all__ = ["Fixmap"]


class Fixmap(Way):
    """The series "x86/hibernate: Use fixmap for saving unmapped pages" (v3), its x86 half.

    Message-ID 20230119235145.22740-1-rick.p.edgecombe@intel.com.

    It allocates nothing and writes to no entry of the direct map. As posted, it keeps mainline's test:
    `kernel_page_present` reads the result of `lookup_address` without a NULL check, so a page without a PTE table
    crashes the machine before the slot is used. With a NULL check, a page without an entry counts as not present.

    Args:
        null_check: whether the NULL check is applied. Where a table of the direct map is not in the source, the entry
            is unknown; with the check such a page counts as not present, too, and is read through the slot.
    """

    def __init__(self, *, null_check: bool = True) -> None:
        self.null_check = null_check

    @property
    def name(self) -> str:
        """Name in reports: FixmapV3 without the NULL check, as posted."""
        return "FixmapV3" if type(self) is Fixmap and not self.null_check else super().name

    def page_present(self, machine: Machine, pfn: int) -> bool:
        """Return whether the page is present; with the NULL check, a page whose entry is missing or unknown is not."""
        if not self.null_check:
            return super().page_present(machine, pfn)
        try:
            found = machine.lookup_address(machine.vaddr(pfn))
        except TableNotInSource:
            return False
        return found is not None and found.present

    def hibernate_map_page(self, machine: Machine, pfn: int) -> int:
        """Call `set_fixmap`: write one PTE, invalidate its address. Raise HibernautError if no slot is free."""
        return machine.fixmap.set_fixmap(pfn)

    def hibernate_unmap_page(self, machine: Machine, pfn: int) -> None:
        """Call `clear_fixmap`: zero the PTE, invalidate its address."""
        del pfn
        machine.fixmap.clear_fixmap()

    def copy_run(self, machine: Machine, pfn: int, nr_pages: int) -> int:
        """See `Way.copy_run`: the slot maps the frame itself, since its address is invalidated before each copy."""
        try:
            count, level, _ = not_present_run(machine, pfn, nr_pages)
        except TableNotInSource:
            return 0
        if count < 2 or (level is None and not self.null_check) or not machine.has_fixmap:
            return 0
        slot_table = machine.fixmap.paddr >> PAGE_SHIFT
        # If the slot's own table is in the run, it is copied while the slot is in use: copy page by page.
        if pfn <= slot_table < pfn + count or machine.fixmap.entry or not held_and_uncached(machine, pfn, count):
            return 0
        machine.fixmap.set_fixmap(pfn + count - 1)
        machine.fixmap.clear_fixmap()
        return count
