# SPDX-License-Identifier: GPL-2.0-or-later
"""The fixmap: virtual addresses near the top whose page tables exist from boot on, so that mapping never allocates.

Slot i is at FIXADDR_TOP - i * 4096 (arch/x86/include/asm/fixmap.h). Two static PTE tables (`level1_fixmap_pgt`) are at
PMD indices 506 and 507, none above or below (arch/x86/kernel/head_64.S). `native_set_fixmap` (arch/x86/mm/pgtable.c)
writes one PTE and drops the address from the TLB of its own CPU, for mapping and for clearing alike.
"""

from __future__ import annotations

import weakref
from typing import Protocol

from hibernaut.errors import HibernautError
from hibernaut.linux.pgtable import PAGE_KERNEL, lookup_address, pfn_entry
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.paging.entries import Level
from hibernaut.paging.tlb import Tlb

__all__ = ["FIXADDR_TOP", "FIXMAP_SLOTS", "FixmapMachine", "FixmapSlot", "find_free_slot", "fix_to_virt"]

VSYSCALL_ADDR = (1 << 64) - (10 << 20)
"""0xffffffffff600000 (arch/x86/include/uapi/asm/vsyscall.h)."""

FIXADDR_TOP = -(-(VSYSCALL_ADDR + PAGE_SIZE) // (2 << 20)) * (2 << 20) - PAGE_SIZE
"""0xffffffffff7ff000: the last page of the 2 MiB around the vsyscall page."""

FIXMAP_SLOTS = 1024
"""Two static tables (FIXMAP_PMD_NUM) of 512 slots."""


def fix_to_virt(index: int) -> int:
    """`__fix_to_virt`: return the address of a slot."""
    return FIXADDR_TOP - index * PAGE_SIZE


def find_free_slot(memory: PhysicalMemory, cr3: int, levels: int, encryption: int = 0) -> tuple[int, int]:
    """Return the lowest unused slot: its PTE table exists and its entry is zero.

    FIX_HIBERNATE exists in no released kernel, so its number is unknown, and any free slot stands for it. Where the
    kernel emulates vsyscall, `enum fixed_addresses` starts at 511, and slots 0 to 510 of the existing table are unused.

    Returns:
        The number of the slot, and the physical address of its PTE.

    Raises:
        HibernautError: the tables have no fixmap, or no slot of it is free.
        TableNotInSource: its tables are not in the memory.
    """
    tables = 0
    for first in range(0, FIXMAP_SLOTS, 512):
        found = lookup_address(memory, cr3, levels, fix_to_virt(first), encryption)
        if found is None or found.level != Level.PTE:
            continue
        tables += 1
        for index in range(first, first + 512):
            paddr = found.paddr - 8 * (index - first)
            if memory.read_u64(paddr) == 0:
                return index, paddr
    where = f"{fix_to_virt(FIXMAP_SLOTS - 1):#x} to {FIXADDR_TOP:#x}"
    if tables:
        raise HibernautError(f"no free fixmap slot: every entry of the fixmap's tables ({where}) is in use")
    raise HibernautError(f"no fixmap: the page tables have no PTE table for its addresses ({where})")


class FixmapMachine(Protocol):
    """The part of a machine that a fixmap slot needs."""

    @property
    def memory(self) -> PhysicalMemory:
        """Memory of the machine, as the CPU reads it now."""
        ...

    @property
    def tlb(self) -> Tlb:
        """TLB of the CPU that runs."""
        ...

    encryption: int
    """See `Machine`."""

    def write_entry(self, paddr: int, entry: int) -> None:
        """Write a page-table entry."""
        ...


class FixmapSlot:
    """One slot of a machine's fixmap, for copying unmapped pages.

    Args:
        machine: machine whose tables hold the slot.
        index: number of the slot.
        paddr: physical address of its PTE.

    Attributes:
        index: as given.
        paddr: as given.
        vaddr: address of the slot.
    """

    def __init__(self, machine: FixmapMachine, index: int, paddr: int) -> None:
        self._owner = weakref.ref(machine)  # a machine holds its slot: avoids a reference cycle
        self.index = index
        self.paddr = paddr
        self.vaddr = fix_to_virt(index)

    @property
    def _machine(self) -> FixmapMachine:
        machine = self._owner()
        assert machine is not None, "the machine of this slot is gone"
        return machine

    @property
    def entry(self) -> int:
        """PTE of the slot; zero whenever no copy is in progress."""
        return self._machine.memory.read_u64(self.paddr) or 0

    def set_fixmap(self, pfn: int, *, flush: bool = True) -> int:
        """Map a frame in the slot (PAGE_KERNEL) and invalidate its address. Allocate nothing.

        Args:
            pfn: the frame.
            flush: False leaves out the invalidation, for mutants.

        Returns:
            The address at which to read the frame.
        """
        encryption = self._machine.encryption
        return self._write(pfn_entry(pfn, PAGE_KERNEL | encryption, encryption), flush)

    def clear_fixmap(self, *, flush: bool = True) -> None:
        """Zero the slot's PTE and invalidate its address; `flush` as in `set_fixmap`."""
        self._write(0, flush)

    def _write(self, entry: int, flush: bool) -> int:
        self._machine.write_entry(self.paddr, entry)
        if flush:
            self._machine.tlb.invlpg(self.vaddr)
        return self.vaddr
