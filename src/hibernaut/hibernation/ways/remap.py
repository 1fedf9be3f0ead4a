# SPDX-License-Identifier: GPL-2.0-or-later
"""Mainline's way: make the direct-map entry present, copy, make it not present again."""

from __future__ import annotations

import numpy as np

from hibernaut.errors import HibernationRefused, OutOfMemory
from hibernaut.hibernation.log import FAILED_TO_REMAP
from hibernaut.hibernation.ways.base import Way, held_and_uncached, not_present_run
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
    snapshot.c has these functions. They are the same in linux-source-6.1 6.1.192-2, linux-source-6.12 6.12.118-1 and
    linux-source-7.3 7.3.4-1~bpo13+1.

    If a large entry maps the page, the kernel splits it, which takes a page for the table. It warns about an error once
    and otherwise ignores it: the copy from the page, still not present, follows.
    """

    def hibernate_map_page(self, machine: Machine, pfn: int) -> int | None:
        """Call `set_direct_map_default_noflush`; return the page's direct-map address, even on failure."""
        try:
            set_direct_map_default_noflush(machine, pfn)
        except (OutOfMemory, AttributeChangeError):
            machine.log.printk_once(FAILED_TO_REMAP)
        return machine.vaddr(pfn)

    def hibernate_unmap_page(self, machine: Machine, pfn: int) -> None:
        """Call `set_direct_map_invalid_noflush`, then `flush_tlb_kernel_range` for the page."""
        try:
            set_direct_map_invalid_noflush(machine, pfn)
        except (OutOfMemory, AttributeChangeError):
            machine.log.printk_once(FAILED_TO_REMAP)
        machine.flush_tlb_kernel_range(machine.vaddr(pfn), machine.vaddr(pfn) + PAGE_SIZE)

    def copy_run(self, machine: Machine, pfn: int, nr_pages: int) -> int:
        """See `Way.copy_run`: 4K entries of one table that map their own frames are rewritten at once."""
        if machine.second_cr3 is not None:
            return 0
        try:
            count, level, paddr = not_present_run(machine, pfn, nr_pages)
        except TableNotInSource:
            return 0
        table_pfn = paddr >> PAGE_SHIFT
        if level != Level.PTE or count < 2 or pfn <= table_pfn < pfn + count:
            return 0
        table = machine.memory.page(table_pfn)
        if table is None:
            return 0
        first = (paddr & 0xFFF) // 8
        entries = table.view("<u8").copy()
        run = entries[first : first + count]
        own = (run != 0) & (entry_frames(run, Level.PTE, machine.encryption) == np.arange(pfn, pfn + count))
        count = int(np.argmin(own)) if not own.all() else count
        if count < 2 or not held_and_uncached(machine, pfn, count):
            return 0
        entries[first : first + count] = remapped_entries(run[:count], machine.rules, machine.encryption)
        machine.write_table(table_pfn, entries)
        return count


class RemapGeneric(Remap):
    """The generic half of the series' v3: `hibernate_map_page` returns the address to read from, NULL on failure.

    On NULL `safe_copy_page` warns once and skips the copy, and the snapshot continues. The destination is not cleared,
    so the image page keeps its earlier bytes ("stale").
    """

    policy = "stale"

    def hibernate_map_page(self, machine: Machine, pfn: int) -> int | None:
        """Call `set_direct_map_default_noflush`; return None if it fails."""
        try:
            set_direct_map_default_noflush(machine, pfn)
        except (OutOfMemory, AttributeChangeError):
            machine.log.printk_once(FAILED_TO_REMAP)
            return None
        return machine.vaddr(pfn)


class RemapGenericZero(RemapGeneric):
    """`RemapGeneric` ported carelessly to a kernel that leaves out zero pages: a skipped page is recorded as zero."""

    policy = "zero"


class RemapGenericAbort(RemapGeneric):
    """The third alternative of the thread: the failure aborts the snapshot, and the machine thaws."""

    policy = "abort"

    def hibernate_map_page(self, machine: Machine, pfn: int) -> int | None:
        """Map as `RemapGeneric`. Raise HibernationRefused if that fails."""
        vaddr = super().hibernate_map_page(machine, pfn)
        if vaddr is None:
            raise HibernationRefused(
                f"frame {pfn:#x} could not be mapped", errno="ENOMEM", log=machine.log.kernel_lines
            )
        return vaddr
