# SPDX-License-Identifier: GPL-2.0-or-later
"""The interface of a way to save a page that the direct map does not show."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from hibernaut.errors import MachineFault
from hibernaut.linux.machine import Machine
from hibernaut.linux.set_memory import kernel_page_present
from hibernaut.memory.page import PAGE_SHIFT, Bytes
from hibernaut.memory.ranges import FrameRanges
from hibernaut.paging.entries import ENTRIES, Entry, Level

__all__ = ["Way", "not_present_run", "own_frames"]


class Way(ABC):
    """How `safe_copy_page` (kernel/power/snapshot.c) gets at one page.

    The three steps are the kernel's: ask whether the page is present, map it if not, unmap it after the copy. Ways have
    no state of their own: everything is the machine's.

    Attributes:
        policy: what becomes of a page that could not be mapped, where the way can notice: "fault" (it is read all the
            same), "stale" (skipped: the image has what the destination held before), "zero" (skipped, and recorded as
            a page of zeroes), "abort" (hibernation is given up), "write-anyway" (given up, and what was copied so far
            is delivered as if it were all: a mutant).
    """

    policy: ClassVar[str] = "fault"

    @property
    def name(self) -> str:
        """What people call it."""
        return type(self).__name__

    def prepare(self, machine: Machine) -> None:  # noqa: B027 - most ways need nothing
        """What is got before the list of pages is fixed. Raises HibernationRefused if it cannot be got."""

    def page_present(self, machine: Machine, pfn: int) -> bool:
        """Whether the page can be read at its direct-map address. Raises MachineFault if asking is fatal."""
        return kernel_page_present(machine, pfn)

    @abstractmethod
    def hibernate_map_page(self, machine: Machine, pfn: int) -> int | None:
        """Make a page readable that is not; the address to read it from, None if there is none. Raises MachineFault."""

    @abstractmethod
    def hibernate_unmap_page(self, machine: Machine, pfn: int) -> None:
        """Undo it."""

    def safe_copy_page(self, machine: Machine, pfn: int) -> Bytes | None:
        """The bytes that the kernel would put in the image for a frame, a copy, shape (4096,); None if it is skipped.

        Raises:
            MachineFault: the modelled machine dies of it.
            HibernationRefused: the way gives up.
        """
        doing = f"copying frame {pfn:#x} in swsusp_save"
        try:
            if self.page_present(machine, pfn):
                return machine.read_page(machine.vaddr(pfn), doing).copy()
            vaddr = self.hibernate_map_page(machine, pfn)
            if vaddr is None:
                return None
            page = machine.read_page(vaddr, doing).copy()
            self.hibernate_unmap_page(machine, pfn)
        except MachineFault as fault:
            at = pfn if fault.pfn is None else fault.pfn
            raise fault.with_facts(pfn=at, log=machine.log.kernel_lines) from fault
        return page

    def copy_run(self, machine: Machine, pfn: int, pages: int) -> int:
        """Copy neighbouring frames at once, where that comes to the same as one after the other.

        Args:
            machine: its tables, TLB and log are left as `safe_copy_page` would leave them.
            pfn: the first frame.
            pages: how many follow that are not plainly present, at least 1.

        Returns:
            How many were copied, each with its own frame's bytes; 0 if the first must go through `safe_copy_page`.
        """
        del machine, pfn, pages
        return 0


def not_present_run(machine: Machine, pfn: int, pages: int) -> tuple[int, Level | None, int]:
    """How far the reason reaches for which a frame is not present: within one large entry, or in one PTE table.

    Args:
        machine: whose tables.
        pfn: the first frame.
        pages: at most so many.

    Returns:
        The number of frames, 0 if the first is present; the level of their entries, None if there is none above PTE;
        and the physical address of the first entry, 0 if there is none.

    Raises:
        TableNotInSource: a table on the way is not in the memory.
    """
    found = machine.lookup_address(machine.vaddr(pfn))
    if found is None:
        return min(pages, ENTRIES - pfn % ENTRIES), None, 0
    if found.present:
        return 0, found.level, found.paddr
    if found.level > Level.PTE:
        within = (machine.vaddr(pfn) >> PAGE_SHIFT) % found.level.pages
        return min(pages, found.level.pages - within), found.level, found.paddr
    table = machine.memory.frame(found.paddr >> PAGE_SHIFT)
    if table is None:
        return 0, found.level, found.paddr
    first = (found.paddr & 0xFFF) // 8
    entries = table.view("<u8")[first : first + pages]
    present = np.flatnonzero(entries & np.uint64(Entry.PRESENT))
    return int(present[0]) if len(present) else len(entries), found.level, found.paddr


def own_frames(machine: Machine, pfn: int, pages: int) -> bool:
    """Whether the memory holds all of these frames, and no CPU remembers a translation of their addresses."""
    if len(FrameRanges.of([(pfn, pages)]).without(machine.memory.ranges)):
        return False
    return not len(machine.tlb) or not any(machine.tlb.lookup_all(machine.vaddr(pfn + page)) for page in range(pages))
