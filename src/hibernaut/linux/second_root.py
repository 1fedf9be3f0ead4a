# SPDX-License-Identifier: GPL-2.0-or-later
"""A second set of page tables for the direct map, as Address Space Isolation has one beside the kernel's own.

Proposed in Message-ID 20250924-b4-asi-page-alloc-v1-0-2d861768041f@google.com; patch 5 of it ("x86/mm/pat: mirror
direct map changes to ASI") repeats each step of CPA in the direct map on the other root: a large entry is split there
as well, with a page of its own. (As posted it passes the request for the first root again, so that the second would
never change; the model does what its text says.) All other addresses share the kernel's tables, from the entries of
the root on: the series clones some of these. Its restricted tables show fewer pages than the kernel's; here they mirror
all.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hibernaut.errors import HibernautError
from hibernaut.linux.machine import Machine
from hibernaut.memory.page import PAGE_SHIFT
from hibernaut.paging.entries import ENTRIES, FRAME_MASK, Entry, Level, entry_pfn, is_leaf

__all__ = ["mirror_tables"]


def mirror_tables(machine: Machine, first: int, pages: int) -> int:
    """Copy the tables of the direct map, the root among them, and return the address of the copied root.

    Args:
        machine: the machine; the copies are written to its memory.
        first: first frame for the copies.
        pages: number of frames for them.

    Raises:
        HibernautError: there are more tables than frames.
    """
    frames = iter(range(first, first + pages))
    level = Level(machine.levels)
    mask = (1 << (PAGE_SHIFT + 9 * level)) - 1
    start = (machine.base & mask) >> PAGE_SHIFT
    return _copy(machine, level, machine.cr3 >> PAGE_SHIFT, 0, (start, start + machine.end_pfn), frames) << PAGE_SHIFT


def _copy(machine: Machine, level: Level, table: int, page: int, span: tuple[int, int], frames: Iterator[int]) -> int:
    """Copy a table that maps pages from number `page` on, and those below it that map a part of the span."""
    content = machine.memory.page(table)
    frame = next(frames, None)
    if content is None or frame is None:
        raise HibernautError(f"no copy of the page table in frame {table:#x}: it does not exist, or no frame is left")
    entries = content.view("<u8").copy()
    if level > Level.PTE:
        at = page + np.arange(ENTRIES, dtype=np.int64) * level.pages
        for index in np.flatnonzero((entries != 0) & (at < span[1]) & (at + level.pages > span[0])).tolist():
            entry = int(entries[index])
            if not entry & Entry.PRESENT or is_leaf(entry, level):
                continue
            below = entry_pfn(entry, level, machine.encryption)
            copied = _copy(machine, Level(level - 1), below, int(at[index]), span, frames)
            entries[index] = np.uint64(entry & ~FRAME_MASK | machine.encryption | copied << PAGE_SHIFT)
    machine.write_table(frame, entries)
    return frame
