# SPDX-License-Identifier: GPL-2.0-or-later
"""Page-table entries as Linux reads and makes them (arch/x86/include/asm/pgtable.h, pgtable_types.h).

`paging/` shows what the CPU sees. The kernel's own code concludes otherwise for entries that are not present:
`pmd_present` is true with PSE or PROTNONE (GLOBAL of a not-present entry) alone, `pud_present` is not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hibernaut.errors import MachineFault
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.paging.entries import ENTRIES, FRAME_MASK, LEVELS, Entries, Entry, Level

__all__ = [
    "GLOBAL",
    "KERNPG_TABLE",
    "NX",
    "PAGE_KERNEL",
    "PAGE_KERNEL_4K",
    "PAGE_KERNEL_LARGE",
    "PAGE_TABLE",
    "PRESENT",
    "PSE",
    "RW",
    "KernelEntry",
    "TableNotInSource",
    "is_none",
    "lookup_address",
    "pfn_and_prot",
    "pfn_entries",
    "pfn_entry",
    "pgprot_4k_2_large",
    "pgprot_clear_protnone_bits",
    "pgprot_large_2_4k",
]

# Plain ints: an IntFlag creates an object for every result, and a walk tests these in every entry.
PRESENT = int(Entry.PRESENT)
RW = int(Entry.RW)
PSE = int(Entry.PSE)
GLOBAL = int(Entry.GLOBAL)
NX = int(Entry.NX)

KERNPG_TABLE = int(Entry.PRESENT | Entry.RW | Entry.ACCESSED | Entry.DIRTY)
"""_KERNPG_TABLE, without memory encryption: 0x63. A split installs its table with it."""
PAGE_TABLE = KERNPG_TABLE | int(Entry.USER)
"""_PAGE_TABLE: 0x67."""
PAGE_KERNEL = KERNPG_TABLE | int(Entry.GLOBAL | Entry.NX)
"""__PAGE_KERNEL: 0x8000000000000163."""
PAGE_KERNEL_LARGE = PAGE_KERNEL | PSE
"""__PAGE_KERNEL_LARGE: 0x80000000000001e3."""
PAGE_KERNEL_4K = int(Entry.SOFTW3)
"""_PAGE_KERNEL_4K: marks an entry that set_memory_4k made small on purpose, so that it is not collapsed.

See `KernelRules.collapses_large_pages`."""

_NONE_IGNORES = int(Entry.ACCESSED | Entry.DIRTY)
_PMD, _PUD, _PGD = int(Level.PMD), int(Level.PUD), int(Level.PGD)
_PAT = 1 << 7
_PAT_LARGE = 1 << 12


class TableNotInSource(MachineFault):
    """A lookup needs a page table that is not in the memory; a real CPU would read whatever is there."""


class KernelEntry(NamedTuple):
    """An entry that `lookup_address` finds.

    Attributes:
        level: level of the entry.
        entry: its value.
        paddr: its physical address.
        nx: some level above forbids execution (`lookup_address_in_pgd_attr`, the same file); the entry itself may too.
        rw: all levels above allow writing.
    """

    level: Level
    entry: int
    paddr: int
    nx: bool = False
    rw: bool = True

    @property
    def present(self) -> bool:
        """The PRESENT bit, which `kernel_page_present` tests."""
        return bool(self.entry & PRESENT)


def is_none(entry: int) -> bool:
    """`pte_none`, `pmd_none`, ...: return whether an entry is zero but for the bits of _PAGE_KNL_ERRATUM_MASK."""
    return not entry & ~_NONE_IGNORES


def pfn_entry(pfn: int, prot: int, encryption: int = 0) -> int:
    """`pfn_pte`: return frame and protection as one entry; the frame is inverted if not present and not zero.

    The bit of encrypted memory (`encryption`) belongs to the protection.
    """
    frame = pfn << 12
    if prot and not prot & PRESENT:
        frame = ~frame
    return (frame & FRAME_MASK & ~encryption) | prot


def pfn_entries(first_pfn: int, step: int, prot: int, encryption: int = 0) -> Entries:
    """Return `pfn_entry` of 512 frames that are `step` frames apart."""
    frames = (np.uint64(first_pfn) + np.arange(ENTRIES, dtype=np.uint64) * np.uint64(step)) << np.uint64(12)
    if prot and not prot & PRESENT:
        frames = ~frames
    return (frames & np.uint64(FRAME_MASK & ~encryption)) | np.uint64(prot)


def pfn_and_prot(entry: int, level: Level, encryption: int = 0) -> tuple[int, int]:
    """`pte_pfn` and `pte_pgprot` (`pmd_`, `pud_`): return the frame of an entry, and all its other bits.

    With PSE the bits below the large page belong to the protection (PAT is bit 12), else to the frame.
    """
    mask = FRAME_MASK & ~encryption
    if level > Level.PTE and entry & PSE:
        mask &= ~((1 << level.shift) - 1)
    frame = entry if entry & PRESENT or not entry else ~entry
    return (frame & mask) >> 12, entry & ~mask


def pgprot_large_2_4k(prot: int) -> int:
    """Drop PSE, which is PAT in a 4K entry, and move a large page's PAT to its bit in a 4K entry."""
    return (prot & ~(_PAT | _PAT_LARGE)) | (_PAT if prot & _PAT_LARGE else 0)


def pgprot_4k_2_large(prot: int) -> int:
    """Move a 4K entry's PAT to its bit in a large page's entry."""
    return (prot & ~(_PAT | _PAT_LARGE)) | (_PAT_LARGE if prot & _PAT else 0)


def pgprot_clear_protnone_bits(prot: int) -> int:
    """Clear GLOBAL unless present: of an entry that is not present it would be read as PROTNONE."""
    return prot if prot & PRESENT else prot & ~GLOBAL


def lookup_address(
    memory: PhysicalMemory, cr3: int, levels: int, vaddr: int, encryption: int = 0
) -> KernelEntry | None:
    """Return the entry that decides an address, as the kernel finds it; None if a level above PTE has no entry.

    `lookup_address` (arch/x86/mm/pat/set_memory.c) stops at the first large or not-present entry. At PTE level a zero
    entry is returned like any other.

    Raises:
        TableNotInSource: a table on the way is not in the memory.
    """
    mask = FRAME_MASK & ~encryption
    table = cr3 & mask
    upper: int | None = None
    any_of, all_of = 0, RW
    for number in range(levels, 0, -1):
        paddr = table + ((vaddr >> 9 * number) & 0xFF8)  # 8 * the index: the shift of the level, less 3
        entry = memory.read_u64(paddr)
        if entry is None:
            raise TableNotInSource(
                f"{Level(number).name_of(levels)} table, frame {table >> 12:#x}, is not in the source",
                address=vaddr,
                entry=upper,
                pfn=table >> 12,
                doing="looking the address up in the page tables",
            )
        if number == 1 or (entry & ~_NONE_IGNORES and _stops(entry, number)):
            return KernelEntry(LEVELS[number], entry, paddr, bool(any_of & NX), bool(all_of))
        if not entry & ~_NONE_IGNORES:
            return None
        table, upper = entry & mask, entry
        any_of |= entry
        all_of &= entry
    raise AssertionError("every entry at PTE level ends the lookup")


def _stops(entry: int, number: int) -> bool:
    """Return whether the kernel takes an entry that is not none, of a level, for a leaf or a not-present mapping."""
    if number == _PGD:
        return False
    if number == _PMD:
        # pmd_large tests PSE, present or not; pmd_present any of three bits.
        return bool(entry & PSE) or not entry & (PRESENT | GLOBAL)
    if number == _PUD:
        return not entry & PRESENT or bool(entry & PSE)
    return not entry & PRESENT
