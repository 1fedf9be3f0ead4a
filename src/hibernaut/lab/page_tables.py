# SPDX-License-Identifier: GPL-2.0-or-later
"""The page tables that a memory or an image has, and those that it lacks."""

from __future__ import annotations

import numpy as np

from hibernaut.memory.page import Bytes
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.paging.entries import FRAME_MASK, Entry, Level

__all__ = ["reachable_tables"]


def reachable_tables(memory: PhysicalMemory, cr3: int, levels: int) -> tuple[dict[int, Bytes | None], set[int]]:
    """Return every page table reachable from CR3, by frame, None for those the memory lacks; and the latter's frames.

    Args:
        memory: memory of a machine, or of its image.
        cr3: physical address of the root.
        levels: levels of paging, 4 or 5.
    """
    pages: dict[int, Bytes | None] = {}

    def visit(pfn: int, level: int) -> None:
        if pfn in pages:
            return
        pages[pfn] = page = memory.page(pfn)
        if page is None or level == Level.PTE:
            return
        entries = page.view("<u8")
        leaf = (entries & np.uint64(Entry.PSE)) != 0 if level < Level.P4D else np.zeros(len(entries), dtype=bool)
        tables = entries[((entries & np.uint64(Entry.PRESENT)) != 0) & ~leaf] & np.uint64(FRAME_MASK)
        for paddr in tables.tolist():
            visit(paddr >> 12, level - 1)

    visit(cr3 >> 12, levels)
    return pages, {pfn for pfn, page in pages.items() if page is None}
