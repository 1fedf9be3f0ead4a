# SPDX-License-Identifier: GPL-2.0-or-later
"""Mainline's way to this day: make the direct-map entry present, copy, make it not present again."""

from __future__ import annotations

import numpy as np

from hibernaut.errors import HibernationRefused, OutOfMemory
from hibernaut.hibernation.log import FAILED_TO_REMAP
from hibernaut.hibernation.ways.base import Way, not_present_run, own_frames
from hibernaut.linux.change_page_attr import AttributeChangeError
from hibernaut.linux.machine import Machine
from hibernaut.linux.pgtable import TableNotInSource
from hibernaut.linux.set_memory import remapped_entries, set_direct_map_default_noflush, set_direct_map_invalid_noflush
from hibernaut.memory.page import PAGE_SHIFT, PAGE_SIZE
from hibernaut.paging.entries import Level, entry_frames

__all__ = ["Remap", "RemapGeneric", "RemapGenericAbort", "RemapGenericZero"]


class Remap(Way):
    """`hibernate_map_page` and `hibernate_unmap_page` of kernel/power/snapshot.c.

    Since Linux kernel commit 2abf962a8d42 ("PM: hibernate: make direct map manipulations more explicit") (in v5.11),
    there are these functions. Read in linux-source-6.1 6.1.192-2, linux-source-6.12 6.12.118-1 and linux-source-7.3
    7.3.4-1~bpo13+1: the same in all.

    Where the page lies in a large entry, that has to be split, and the split needs a page. An error is warned about
    once and otherwise ignored: the copy from the page, still not present, follows.
    """

    def hibernate_map_page(self, machine: Machine, pfn: int) -> int | None:
        """set_direct_map_default_noflush; the page's own address, whether that worked or not."""
        try:
            set_direct_map_default_noflush(machine, pfn)
        except (OutOfMemory, AttributeChangeError):
            machine.log.printk_once(FAILED_TO_REMAP)
        return machine.vaddr(pfn)

    def hibernate_unmap_page(self, machine: Machine, pfn: int) -> None:
        """set_direct_map_invalid_noflush, then flush_tlb_kernel_range of the one page."""
        try:
            set_direct_map_invalid_noflush(machine, pfn)
        except (OutOfMemory, AttributeChangeError):
            machine.log.printk_once(FAILED_TO_REMAP)
        machine.flush_tlb_kernel_range(machine.vaddr(pfn), machine.vaddr(pfn) + PAGE_SIZE)

    def copy_run(self, machine: Machine, pfn: int, pages: int) -> int:
        """See `Way.copy_run`: 4K entries of one table that name their own frames, all rewritten at once."""
        try:
            count, level, paddr = not_present_run(machine, pfn, pages)
        except TableNotInSource:
            return 0
        table_pfn = paddr >> PAGE_SHIFT
        if level != Level.PTE or count < 2 or pfn <= table_pfn < pfn + count:
            return 0
        table = machine.memory.frame(table_pfn)
        if table is None:
            return 0
        first = (paddr & 0xFFF) // 8
        entries = table.view("<u8").copy()
        run = entries[first : first + count]
        own = (run != 0) & (entry_frames(run, Level.PTE) == np.arange(pfn, pfn + count))
        count = int(np.argmin(own)) if not own.all() else count
        if count < 2 or not own_frames(machine, pfn, count):
            return 0
        entries[first : first + count] = remapped_entries(run[:count], machine.rules)
        machine.write_table(table_pfn, entries)
        return count


class RemapGeneric(Remap):
    """The generic half of the series' v3: `hibernate_map_page` returns the address to read from, NULL on failure.

    On NULL `safe_copy_page` warns once and skips the copy, and the snapshot goes on. What the image then has for the
    page was never said: the destination is not cleared, so it is whatever lay there ("stale").
    """

    policy = "stale"

    def hibernate_map_page(self, machine: Machine, pfn: int) -> int | None:
        """set_direct_map_default_noflush; None if it failed."""
        try:
            set_direct_map_default_noflush(machine, pfn)
        except (OutOfMemory, AttributeChangeError):
            machine.log.printk_once(FAILED_TO_REMAP)
            return None
        return machine.vaddr(pfn)


class RemapGenericZero(RemapGeneric):
    """The same on a kernel that leaves out zero pages, ported carelessly: a skipped page is taken for one of zeroes."""

    policy = "zero"


class RemapGenericAbort(RemapGeneric):
    """The alternative that the thread names third: the failure is an error of the snapshot, and the machine thaws."""

    policy = "abort"

    def hibernate_map_page(self, machine: Machine, pfn: int) -> int | None:
        """As `RemapGeneric`. Raises HibernationRefused if it failed."""
        vaddr = super().hibernate_map_page(machine, pfn)
        if vaddr is None:
            raise HibernationRefused(
                f"frame {pfn:#x} could not be mapped", errno="ENOMEM", log=machine.log.kernel_lines
            )
        return vaddr
