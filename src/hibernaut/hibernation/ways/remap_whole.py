# SPDX-License-Identifier: GPL-2.0-or-later
"""The alternative in the proposal's commit message: CPA maps and resets the whole large page."""

from __future__ import annotations

from typing import ClassVar

from hibernaut.hibernation.ways.base import held_and_uncached, not_present_run
from hibernaut.hibernation.ways.remap import Remap
from hibernaut.linux.machine import Machine
from hibernaut.linux.pgtable import PRESENT, PSE, TableNotInSource, pfn_and_prot, pfn_entry
from hibernaut.memory.page import PAGE_SHIFT
from hibernaut.paging.entries import Level

__all__ = ["RemapWhole"]


class RemapWhole(Remap):
    """`Remap` that makes a whole large entry present, and not present again: no split, no allocation.

    4K entries are handled by `Remap`, which needs no table for them. A page without an entry still faults.

    Attributes:
        clears: bits that are cleared from the large entry after the copy.
    """

    clears: ClassVar[int] = PRESENT | PSE

    def hibernate_map_page(self, machine: Machine, pfn: int) -> int | None:
        """Make the large entry present, if there is one; else map as `Remap`."""
        if self._set_present(machine, pfn, present=True):
            return machine.vaddr(pfn)
        return super().hibernate_map_page(machine, pfn)

    def hibernate_unmap_page(self, machine: Machine, pfn: int) -> None:
        """Restore the large entry and flush it on every CPU; else unmap as `Remap`."""
        if self._set_present(machine, pfn, present=False):
            machine.flush_tlb_all()
        else:
            super().hibernate_unmap_page(machine, pfn)

    def copy_run(self, machine: Machine, pfn: int, nr_pages: int) -> int:
        """See `Way.copy_run`."""
        try:
            count, level, paddr = not_present_run(machine, pfn, nr_pages)
        except TableNotInSource:
            return 0
        if level is None or level == Level.PTE:
            return super().copy_run(machine, pfn, nr_pages)
        table = paddr >> PAGE_SHIFT
        found = machine.lookup_address(machine.vaddr(pfn))
        if found is None or count < 2 or pfn <= table < pfn + count or not held_and_uncached(machine, pfn, count):
            return 0
        first, _ = pfn_and_prot(found.entry, found.level, machine.encryption)
        if first != pfn - (machine.vaddr(pfn) >> PAGE_SHIFT) % level.pages:
            return 0
        self.hibernate_map_page(machine, pfn)
        self.hibernate_unmap_page(machine, pfn)
        return count

    def _set_present(self, machine: Machine, pfn: int, *, present: bool) -> bool:
        """Change the large entry in the tables of each root; return whether there is one."""
        if machine.second_cr3 is not None:
            self._set_in_root(machine, pfn, machine.second_cr3, present=present)
        return self._set_in_root(machine, pfn, machine.cr3, present=present)

    def _set_in_root(self, machine: Machine, pfn: int, cr3: int, *, present: bool) -> bool:
        found = machine.lookup_address(machine.vaddr(pfn), cr3)
        if found is None or found.level not in (Level.PMD, Level.PUD) or found.present is present:
            return False
        first, prot = pfn_and_prot(found.entry, found.level, machine.encryption)
        prot = prot | PRESENT | PSE if present else prot & ~self.clears
        machine.write_entry(found.paddr, pfn_entry(first, prot, machine.encryption))
        return True
