# SPDX-License-Identifier: GPL-2.0-or-later
"""The fixmap: virtual addresses near the top whose page tables exist from boot on, so that mapping never allocates.

Slot i is at FIXADDR_TOP - i * 4096 (arch/x86/include/asm/fixmap.h). Two static PTE tables (`level1_fixmap_pgt`) are at
PMD indices 506 and 507, none above or below (arch/x86/kernel/head_64.S). `native_set_fixmap` (arch/x86/mm/pgtable.c)
writes one PTE and drops the address from the TLB of its own CPU, for mapping and for clearing alike.

The same PMD table (`level2_fixmap_pgt`) ends with four entries that head_64.S leaves zero, 508 to 511, above the
vsyscall page. One of them can map a whole block of 2 MiB without a PTE table (`BlockSlot`). 505 is not free: Debian's
6.1 and 6.12 have a PTE table there.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Protocol

from hibernaut.errors import HibernautError
from hibernaut.linux.pgtable import PAGE_KERNEL, PAGE_KERNEL_LARGE, lookup_address, pfn_and_prot, pfn_entry
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.paging.entries import Level
from hibernaut.paging.tables import PageTables
from hibernaut.paging.tlb import Tlb

__all__ = [
    "BLOCK_SLOTS",
    "FIXADDR_TOP",
    "FIXMAP_SLOTS",
    "BlockSlot",
    "FixmapMachine",
    "FixmapSlot",
    "find_block_slot",
    "find_free_slot",
    "fix_to_virt",
    "free_slots",
]

VSYSCALL_ADDR = (1 << 64) - (10 << 20)
"""0xffffffffff600000 (arch/x86/include/uapi/asm/vsyscall.h)."""

FIXADDR_TOP = -(-(VSYSCALL_ADDR + PAGE_SIZE) // (2 << 20)) * (2 << 20) - PAGE_SIZE
"""0xffffffffff7ff000: the last page of the 2 MiB around the vsyscall page."""

FIXMAP_SLOTS = 1024
"""Two static tables (FIXMAP_PMD_NUM) of 512 slots."""

BLOCK_SLOTS = (508, 509, 510)
"""Indices of the PMD entries above the fixmap that can map a block. 511 is not one of them: the last page of the
address space stays unmapped, so that an ERR_PTR faults (MAX_ERRNO, include/linux/err.h)."""


def fix_to_virt(index: int) -> int:
    """`__fix_to_virt`: return the address of a slot."""
    return FIXADDR_TOP - index * PAGE_SIZE


_WHERE = f"{fix_to_virt(FIXMAP_SLOTS - 1):#x} to {FIXADDR_TOP:#x}"


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
    slot = next(free_slots(memory, cr3, levels, encryption), None)
    if slot is None:
        raise HibernautError(f"no free fixmap slot: every entry of the fixmap's tables ({_WHERE}) is in use")
    return slot


def free_slots(memory: PhysicalMemory, cr3: int, levels: int, encryption: int = 0) -> Iterator[tuple[int, int]]:
    """Yield the unused slots: number and physical address of the PTE, lowest number first. Raises as `find_free_slot`.

    A fixmap without a free slot yields none.
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
                yield index, paddr
    if not tables:
        raise HibernautError(f"no fixmap: the page tables have no PTE table for its addresses ({_WHERE})")


def find_block_slot(memory: PhysicalMemory, cr3: int, levels: int, encryption: int = 0) -> tuple[int, int]:
    """Return the first of `BLOCK_SLOTS` whose entry is zero, and its physical address.

    Raises:
        HibernautError: the tables have no PMD table there, or it is not in the memory, or none of the entries is zero.
    """
    tables = PageTables(memory, cr3, levels, encryption)
    for index in BLOCK_SLOTS:
        steps = tables.walk(_block_vaddr(index)).steps
        if not steps or steps[-1].level != Level.PMD:
            continue
        if steps[-1].entry == 0:
            return index, steps[-1].paddr
    where = f"entries {BLOCK_SLOTS[0]} to {BLOCK_SLOTS[-1]}, from {_block_vaddr(BLOCK_SLOTS[0]):#x} on"
    raise HibernautError(f"no free PMD entry beside the fixmap: expected a zero one among its PMD table's {where}")


def _block_vaddr(index: int) -> int:
    """Return the address that an entry of the fixmap's PMD table maps."""
    return (1 << 64) - (1 << Level.PUD.shift) + (index << Level.PMD.shift)


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


class _Slot:
    """An entry of a machine's own tables that is zero but while something is mapped by it.

    Args:
        machine: machine whose tables hold it.
        index: its number.
        paddr: its physical address.
        vaddr: first address that it maps.
    """

    def __init__(self, machine: FixmapMachine, index: int, paddr: int, vaddr: int) -> None:
        self._owner = weakref.ref(machine)  # a machine holds its slot: avoids a reference cycle
        self.index = index
        self.paddr = paddr
        self.vaddr = vaddr

    @property
    def _machine(self) -> FixmapMachine:
        machine = self._owner()
        assert machine is not None, "the machine of this slot is gone"
        return machine

    @property
    def entry(self) -> int:
        """The entry; zero whenever no copy is in progress."""
        return self._machine.memory.read_u64(self.paddr) or 0

    def _write(self, entry: int, flush: bool) -> int:
        self._machine.write_entry(self.paddr, entry)
        if flush:
            self._machine.tlb.invlpg(self.vaddr)
        return self.vaddr


class FixmapSlot(_Slot):
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
        super().__init__(machine, index, paddr, fix_to_virt(index))

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


class BlockSlot(_Slot):
    """A PMD entry beside a machine's fixmap, for mapping a whole block of 2 MiB.

    Args:
        machine: machine whose tables hold the entry.
        index: its index in the fixmap's PMD table, one of `BLOCK_SLOTS`.
        paddr: its physical address.

    Attributes:
        index: as given.
        paddr: as given.
        vaddr: first address that it maps.
    """

    def __init__(self, machine: FixmapMachine, index: int, paddr: int) -> None:
        super().__init__(machine, index, paddr, _block_vaddr(index))

    @property
    def block(self) -> int | None:
        """First frame of the block that is mapped; None if the entry is zero."""
        entry = self.entry
        return pfn_and_prot(entry, Level.PMD, self._machine.encryption)[0] if entry else None

    def set_block(self, pfn: int, *, flush: bool = True) -> int:
        """Map a block (PAGE_KERNEL_LARGE) and invalidate its address. Allocate nothing.

        Args:
            pfn: first frame of the block, a multiple of 512.
            flush: False leaves out the invalidation, for mutants.

        Returns:
            The address at which to read the first frame.

        Raises:
            ValueError: the frame is not the first of a block.
        """
        if pfn % Level.PMD.pages:
            raise ValueError(f"a block of 2 MiB begins at a multiple of {Level.PMD.pages} frames, not at {pfn:#x}")
        encryption = self._machine.encryption
        return self._write(pfn_entry(pfn, PAGE_KERNEL_LARGE | encryption, encryption), flush)

    def clear_block(self, *, flush: bool = True) -> None:
        """Zero the entry and invalidate its address; `flush` as in `set_block`."""
        self._write(0, flush)
