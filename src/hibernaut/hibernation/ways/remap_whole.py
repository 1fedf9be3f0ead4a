# SPDX-License-Identifier: GPL-2.0-or-later
"""The alternative that the proposal's commit message names: let CPA map and reset the whole large page."""

from __future__ import annotations

from typing import ClassVar

from hibernaut.hibernation.ways.base import not_present_run, own_frames
from hibernaut.hibernation.ways.remap import Remap
from hibernaut.linux.machine import Machine
from hibernaut.linux.pgtable import PRESENT, PSE, TableNotInSource, pfn_and_prot, pfn_entry
from hibernaut.memory.page import PAGE_SHIFT
from hibernaut.paging.entries import Level

__all__ = ["RemapWhole"]


class RemapWhole(Remap):
    """A not-present large entry is made present as it is, and not present again: no split, no allocation.

    4K entries go the way of `Remap`, which needs no table for them either; a page without an entry is not helped.

    Attributes:
        clears: the bits that are cleared of the large entry in the end.
    """

    clears: ClassVar[int] = PRESENT | PSE

    def hibernate_map_page(self, machine: Machine, pfn: int) -> int | None:
        """The large entry present, if there is one; else as `Remap`."""
        if self._set_present(machine, pfn, present=True):
            return machine.vaddr(pfn)
        return super().hibernate_map_page(machine, pfn)

    def hibernate_unmap_page(self, machine: Machine, pfn: int) -> None:
        """The large entry as it was, and every CPU forgets it; else as `Remap`."""
        if self._set_present(machine, pfn, present=False):
            machine.flush_tlb_all()
        else:
            super().hibernate_unmap_page(machine, pfn)

    def copy_run(self, machine: Machine, pfn: int, pages: int) -> int:
        """See `Way.copy_run`."""
        try:
            count, level, paddr = not_present_run(machine, pfn, pages)
        except TableNotInSource:
            return 0
        if level is None or level == Level.PTE:
            return super().copy_run(machine, pfn, pages)
        table = paddr >> PAGE_SHIFT
        found = machine.lookup_address(machine.vaddr(pfn))
        if found is None or count < 2 or pfn <= table < pfn + count or not own_frames(machine, pfn, count):
            return 0
        first, _ = pfn_and_prot(found.entry, found.level)
        if first != pfn - (machine.vaddr(pfn) >> PAGE_SHIFT) % level.pages:
            return 0
        self.hibernate_map_page(machine, pfn)
        self.hibernate_unmap_page(machine, pfn)
        return count

    def _set_present(self, machine: Machine, pfn: int, *, present: bool) -> bool:
        found = machine.lookup_address(machine.vaddr(pfn))
        if found is None or found.level not in (Level.PMD, Level.PUD) or found.present is present:
            return False
        first, prot = pfn_and_prot(found.entry, found.level)
        prot = prot | PRESENT | PSE if present else prot & ~self.clears
        machine.write_entry(found.paddr, pfn_entry(first, prot))
        return True
