# SPDX-License-Identifier: GPL-2.0-or-later
"""The proposed mermap in place of the fixmap slot: one page at a time, flushed only when its addresses are used up."""

from __future__ import annotations

from hibernaut.hibernation.ways.fixmap import Fixmap
from hibernaut.linux.machine import Machine
from hibernaut.linux.mermap import mermap_flush_tlb, mermap_get_reserved, mermap_put

__all__ = ["MOST_MERMAP_PAGES", "Mermap"]

MOST_MERMAP_PAGES = 510
"""Largest region: two CPUs' regions and the slot of the copy fit in the fixmap's two tables."""


class Mermap(Fixmap):
    """`Fixmap` by `mermap_get_reserved` and `mermap_put` (see `hibernaut.linux.mermap`), with the NULL check.

    It allocates nothing and writes to no entry of the direct map. Unmapping a page invalidates nothing, so that each
    address of the CPU's region can still be cached with an earlier page until the region is flushed as a whole, which
    happens before an address is used again, and once after the last page: the pages may be freed then. Preemption is
    off in `swsusp_save`. The page tables of the region exist before the list of pages is fixed.

    No patch uses it for hibernation: this is a candidate.

    Args:
        nr_pages: size of a CPU's region; 1 is the reserved address alone, which every page uses again.
    """

    def __init__(self, nr_pages: int = 1) -> None:
        super().__init__()
        self.nr_pages = nr_pages

    @property
    def name(self) -> str:
        """Name in reports, with the size of the region unless it is 1."""
        return type(self).__name__ if self.nr_pages == 1 else f"{type(self).__name__}({self.nr_pages})"

    def hibernate_map_page(self, machine: Machine, pfn: int) -> int:
        """Call `mermap_get_reserved`: write one PTE, after a flush if no address is left.

        Raises:
            HibernautError: the fixmap has too few unused slots to stand for the region.
        """
        return mermap_get_reserved(machine, pfn, self.nr_pages)

    def hibernate_unmap_page(self, machine: Machine, pfn: int) -> None:
        """Call `mermap_put`: clear the PTE, invalidate nothing."""
        del pfn
        mermap_put(machine)

    def finish(self, machine: Machine) -> None:
        """Flush the region if it was used: its last translations are of pages that may be freed from now on."""
        if machine.mermap_of(machine.cpu) is not None:
            mermap_flush_tlb(machine)

    def copy_run(self, machine: Machine, pfn: int, nr_pages: int) -> int:
        """See `Way.copy_run`: 0, since each page leaves a translation of its own."""
        del machine, pfn, nr_pages
        return 0
