# SPDX-License-Identifier: GPL-2.0-or-later
"""The interface of a way to save a page that the direct map does not map."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import ClassVar

import numpy as np

from hibernaut.errors import MachineFault
from hibernaut.linux.machine import Machine
from hibernaut.linux.set_memory import kernel_page_present
from hibernaut.memory.page import PAGE_SHIFT, Bytes
from hibernaut.memory.ranges import FrameRanges
from hibernaut.paging.entries import ENTRIES, Entry, Level

__all__ = ["Way", "held_and_uncached", "not_present_run"]


class Way(ABC):
    """Access of `safe_copy_page` (kernel/power/snapshot.c) to one page.

    The three steps are the kernel's: test whether the page is present, map it if not, unmap it after the copy. A way
    has no state: all state is the machine's.

    Attributes:
        policy: treatment of a page that cannot be mapped, where the way detects that: "fault" (read regardless),
            "stale" (skipped: the image page keeps the destination's earlier bytes), "zero" (skipped, and recorded as a
            page of zeroes), "abort" (hibernation is aborted), "write-anyway" (aborted, and the pages copied so far are
            delivered as a whole image: a mutant).
    """

    policy: ClassVar[str] = "fault"

    @property
    def name(self) -> str:
        """Name in reports."""
        return type(self).__name__

    @property
    def in_copy(self) -> tuple[Hashable, ...]:
        """Values that are equal for ways that copy each page alike: their functions, and what these may use.

        Name and policy take no part: the copy of a page may not depend on them.
        """
        return tuple(sorted(vars(self).items())), _of_kind(type(self))

    def prepare(self, machine: Machine) -> None:  # noqa: B027 - most ways need nothing
        """Allocate what the way needs before the list of pages is fixed. Raise HibernationRefused if that fails."""

    def end_run(self, machine: Machine) -> None:  # noqa: B027 - most ways keep nothing from page to page
        """Undo what the way kept mapped for a run of neighbouring pages, after its last and before any other page."""

    def finish(self, machine: Machine) -> None:  # noqa: B027 - most ways leave nothing behind
        """Undo what the way left behind, after the last page."""

    def page_present(self, machine: Machine, pfn: int) -> bool:
        """Return whether the page can be read at its direct-map address. Raise MachineFault if the test crashes."""
        return kernel_page_present(machine, pfn)

    @abstractmethod
    def hibernate_map_page(self, machine: Machine, pfn: int) -> int | None:
        """Map a page that is not present; return the address to read it from, None if there is none.

        Raises:
            MachineFault: the modelled machine crashes.
        """

    @abstractmethod
    def hibernate_unmap_page(self, machine: Machine, pfn: int) -> None:
        """Undo `hibernate_map_page`."""

    def safe_copy_page(self, machine: Machine, pfn: int) -> Bytes | None:
        """Return a copy of the bytes that the kernel saves for a page, uint8, shape (4096,); None if it skips the page.

        Raises:
            MachineFault: the modelled machine crashes.
            HibernationRefused: the way aborts hibernation.
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

    def copy_run(self, machine: Machine, pfn: int, nr_pages: int) -> int:
        """Copy a run of pages at once, where the result equals that of `safe_copy_page` for each in turn.

        Args:
            machine: the machine; its tables, TLB and log end up as `safe_copy_page` leaves them.
            pfn: page frame number of the first page.
            nr_pages: length of the run, none of whose pages is plainly present; at least 1.

        Returns:
            Number of pages copied, each with its own frame's bytes; 0 if the first must go through `safe_copy_page`.
        """
        del machine, pfn, nr_pages
        return 0


_BESIDE_COPY = frozenset(
    ("name", "policy", "defect", "caught_by", "prepare", "end_run", "finish", "in_copy", "_abc_impl")
)
"""Attributes of ways that take no part in the copy of a page."""


@functools.cache
def _of_kind(kind: type[Way]) -> Hashable:
    """Return all definitions of a class of ways for the copy of a page, by name, those that `super` finds included."""
    kinds = [vars(one) for one in kind.__mro__ if issubclass(one, Way)]
    names = {name for one in kinds for name in one if not name.startswith("__")} - _BESIDE_COPY
    return tuple((name, *(one[name] for one in kinds if name in one)) for name in sorted(names))


def not_present_run(machine: Machine, pfn: int, nr_pages: int) -> tuple[int, Level | None, int]:
    """Return the run of pages that are not present for the same reason: within one large entry, or one PTE table.

    Args:
        machine: the machine.
        pfn: page frame number of the first page.
        nr_pages: most pages to look at.

    Returns:
        The number of pages, 0 if the first is present; the level of their entries, None if there is no table for them;
        and the physical address of the first entry, 0 if there is none.

    Raises:
        TableNotInSource: a table on the way is not in the memory.
    """
    found = machine.lookup_address(machine.vaddr(pfn))
    if found is None:
        return min(nr_pages, ENTRIES - pfn % ENTRIES), None, 0
    if found.present:
        return 0, found.level, found.paddr
    if found.level > Level.PTE:
        within = (machine.vaddr(pfn) >> PAGE_SHIFT) % found.level.pages
        return min(nr_pages, found.level.pages - within), found.level, found.paddr
    table = machine.memory.page(found.paddr >> PAGE_SHIFT)
    if table is None:
        return 0, found.level, found.paddr
    first = (found.paddr & 0xFFF) // 8
    entries = table.view("<u8")[first : first + nr_pages]
    present = np.flatnonzero(entries & np.uint64(Entry.PRESENT))
    return int(present[0]) if len(present) else len(entries), found.level, found.paddr


def held_and_uncached(machine: Machine, pfn: int, nr_pages: int) -> bool:
    """Return whether the memory holds a whole run of frames, and no CPU caches a translation of their addresses."""
    if len(FrameRanges.of([(pfn, nr_pages)]).without(machine.memory.ranges)):
        return False
    return not machine.tlb.caches_any(machine.vaddr(pfn), nr_pages)
