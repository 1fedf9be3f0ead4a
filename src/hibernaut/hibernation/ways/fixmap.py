# SPDX-License-Identifier: GPL-2.0-or-later
"""The proposal: map the frame in a fixmap slot, copy from there, clear the slot."""

from __future__ import annotations

from hibernaut.hibernation.ways.base import Way, not_present_run, own_frames
from hibernaut.linux.machine import Machine
from hibernaut.linux.pgtable import TableNotInSource
from hibernaut.memory.page import PAGE_SHIFT

__all__ = ["Fixmap"]


class Fixmap(Way):
    """The series "x86/hibernate: Use fixmap for saving unmapped pages" (v3), its x86 half.

    Message-ID 20230119235145.22740-1-rick.p.edgecombe@intel.com.

    Nothing is allocated and no entry of the direct map is touched. As posted, it keeps mainline's question first:
    `kernel_page_present` reads what `lookup_address` returns without a NULL check, so a page without a PTE table still
    kills the machine before the slot is used. The obvious cure is to take no entry for "not present".

    Args:
        null_check: whether that cure is in (the default). Where a table of the direct map is not in the source, the
            entry cannot be known; with the check it counts as not present, too, and the frame is read through the slot.
    """

    def __init__(self, *, null_check: bool = True) -> None:
        self.null_check = null_check

    @property
    def name(self) -> str:
        """FixmapV3 as it was posted."""
        return "FixmapV3" if type(self) is Fixmap and not self.null_check else super().name

    def page_present(self, machine: Machine, pfn: int) -> bool:
        """As the kernel asks, or with the cure: no entry, or none that can be read, is not present."""
        if not self.null_check:
            return super().page_present(machine, pfn)
        try:
            found = machine.lookup_address(machine.vaddr(pfn))
        except TableNotInSource:
            return False
        return found is not None and found.present

    def hibernate_map_page(self, machine: Machine, pfn: int) -> int:
        """set_fixmap: one PTE written, its address invalidated. Raises HibernautError if there is no free slot."""
        return machine.fixmap.set_fixmap(pfn)

    def hibernate_unmap_page(self, machine: Machine, pfn: int) -> None:
        """clear_fixmap: the PTE zero again, its address invalidated."""
        del pfn
        machine.fixmap.clear_fixmap()

    def copy_run(self, machine: Machine, pfn: int, pages: int) -> int:
        """See `Way.copy_run`: what the slot shows is the frame itself, as it is invalidated before each."""
        try:
            count, level, _ = not_present_run(machine, pfn, pages)
        except TableNotInSource:
            return 0
        if count < 2 or (level is None and not self.null_check) or not machine.has_fixmap:
            return 0
        slot_table = machine.fixmap.paddr >> PAGE_SHIFT
        # A slot's table that is itself among them is copied with the slot in use: one by one, then.
        if pfn <= slot_table < pfn + count or machine.fixmap.entry or not own_frames(machine, pfn, count):
            return 0
        machine.fixmap.set_fixmap(pfn + count - 1)
        machine.fixmap.clear_fixmap()
        return count
