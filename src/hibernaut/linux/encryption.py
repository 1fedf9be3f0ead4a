# SPDX-License-Identifier: GPL-2.0-or-later
"""The bit of encrypted memory (AMD's SME and SEV) in page-table entries, found in the tables themselves.

CPUID 0x8000001F names the bit, and so does `NUMBER(sme_mask)` of VMCOREINFO (`arch_crash_save_vmcoreinfo`); most dumps
have neither. Linux sets it in every entry that names a table (`_KERNPG_TABLE`, arch/x86/include/asm/pgtable_types.h)
and in CR3. It lies above all memory, since it is taken from the physical address bits.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.memory.page import CHUNK_PAGES
from hibernaut.paging.entries import ENTRIES, FRAME_MASK, Entry

if TYPE_CHECKING:
    from hibernaut.memory.physical import PhysicalMemory
    from hibernaut.memory.ranges import FrameRanges
    from hibernaut.paging.entries import Entries

__all__ = ["LOWEST_BIT", "encryption_of_root", "likely_encryption", "masked_tables"]

LOWEST_BIT = 40
"""No lower bit is taken for it: CPUs of AMD have 47 or 51, and a table beyond a partial dump's end has lower bits."""
_MOST = 3


def encryption_of_root(memory: PhysicalMemory, cr3: int) -> int:
    """Return the mask of the bit that every table entry of a root's kernel half has; 0 if there is no such bit.

    The bit is one above the memory, and the only one. A root that has it itself is looked for without it.
    """
    above = _above(memory)
    root, own = cr3 & FRAME_MASK & ~above, cr3 & above
    page = memory.page(root >> 12)
    if page is None:
        return 0
    entries = page.view(np.uint64)[ENTRIES // 2 :]
    present = entries[(entries & np.uint64(Entry.PRESENT)) != 0]
    if not len(present):
        return 0
    common = int(np.bitwise_and.reduce(present)) & above
    if common.bit_count() != 1 or own not in (0, common):
        return 0
    return common


def likely_encryption(memory: PhysicalMemory, ram: FrameRanges) -> list[int]:
    """Return masks that the kernel halves of frames have in every entry, the most frequent first, at most 3.

    Reads all of `ram`: for memory whose root is not known.
    """
    above = np.uint64(_above(memory))
    found: Counter[int] = Counter()
    candidates = ram.pfns()
    for first in range(0, len(candidates), CHUNK_PAGES):
        entries = memory.gather(candidates[first : first + CHUNK_PAGES])[0].view(np.uint64)[:, ENTRIES // 2 :]
        held = entries != 0
        anywhere = np.bitwise_or.reduce(entries & above, axis=1)
        everywhere = np.bitwise_and.reduce(np.where(held, entries, ~np.uint64(0)) & above, axis=1)
        present = ((entries & np.uint64(Entry.PRESENT)) != 0) | ~held
        rows = (anywhere == everywhere) & held.any(axis=1) & present.all(axis=1)
        found.update(int(mask) for mask in anywhere[rows] if int(mask).bit_count() == 1)
    return [mask for mask, _ in found.most_common(_MOST)]


def masked_tables(entries: Entries, encryption: int) -> Entries:
    """Return the addresses in present entries, without the bit of encrypted memory."""
    return entries & np.uint64(FRAME_MASK & ~encryption)


def _above(memory: PhysicalMemory) -> int:
    """Return the bits of a frame's address that no frame of the memory has."""
    return FRAME_MASK & ~((1 << max((memory.ranges.end << 12).bit_length(), LOWEST_BIT)) - 1)
