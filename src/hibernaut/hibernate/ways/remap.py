"""Mainline's way to this day: make the direct-map entry present, copy, make it not present again."""

from __future__ import annotations

from hibernaut.errors import OutOfMemory
from hibernaut.hibernate.log import FAILED_TO_REMAP
from hibernaut.hibernate.ways.base import Way
from hibernaut.linux.machine import Machine
from hibernaut.linux.set_memory import AttributeChangeError, set_direct_map_default, set_direct_map_invalid

__all__ = ["Remap"]


class Remap(Way):
    """`hibernate_map_page` and `hibernate_unmap_page` of kernel/power/snapshot.c, Linux 5.11 to 7.3.

    Where the page lies in a large entry, that has to be split, and the split needs a page. An error is warned about
    once and otherwise ignored: the copy from the page, still not present, follows.
    """

    def hibernate_map_page(self, machine: Machine, pfn: int) -> int:
        """set_direct_map_default_noflush; the page's own address, whether that worked or not."""
        try:
            set_direct_map_default(machine, pfn)
        except (OutOfMemory, AttributeChangeError):
            machine.log.printk_once(FAILED_TO_REMAP)
        return machine.vaddr(pfn)

    def hibernate_unmap_page(self, machine: Machine, pfn: int) -> None:
        """set_direct_map_invalid_noflush, then flush_tlb_kernel_range of the one page."""
        try:
            set_direct_map_invalid(machine, pfn)
        except (OutOfMemory, AttributeChangeError):
            machine.log.printk_once(FAILED_TO_REMAP)
        machine.tlb.invlpg(machine.vaddr(pfn))
