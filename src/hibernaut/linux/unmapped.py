# SPDX-License-Identifier: GPL-2.0-or-later
"""Unmapped pageblocks: free blocks of 2 MiB that the direct map does not show, and the allocation that maps one again.

Proposed in Message-ID 20260225-page_alloc-unmapped-v1-0-e8808a03cd66@google.com and its later versions. Read of them:
notes on a version for v7.2, by which free lists of a type of their own (FREETYPE_UNMAPPED, unmovable) hold the pages of
such blocks, the lists of CPUs are separate as well, and a block changes sides as a whole, by
`set_direct_map_valid_noflush` and `flush_tlb_kernel_range`, when an allocation of the other type needs it. The
preparation `for_each_free_list` makes `mark_free_pages` visit these lists too.

Not read, and the model's own: mm/page_alloc.c of the series. Here only whole free blocks are on the list; the list's
head is in the page of the zone, the mark of a block is its place on the list (in the series it is a bit of the
pageblock, stored elsewhere, which is one more place that can be copied before or after); a block is mapped when the
lists of all orders are empty, after the CPU's own list; NR_FREE_PAGES counts mapped pages alone.
"""

from __future__ import annotations

from hibernaut.linux.allocator import AllocatorMachine
from hibernaut.linux.machine import Machine
from hibernaut.linux.mmzone import PAGEBLOCK_ORDER
from hibernaut.linux.set_memory import set_direct_map_valid_noflush
from hibernaut.memory.page import PAGE_SHIFT

__all__ = ["map_pageblock"]


def map_pageblock(machine: AllocatorMachine, pfn: int) -> None:
    """Make a block of the direct map present by one request, and flush its addresses.

    Args:
        machine: a `Machine`.
        pfn: first frame of the block.

    Raises:
        OutOfMemory, AttributeChangeError: as `change_page_attr_set_clr`, where the block has no entry of its own.
        TableNotInSource: a table on the way is not in the memory.
    """
    assert isinstance(machine, Machine)
    pages = 1 << PAGEBLOCK_ORDER
    machine.log.note(f"unmapped pageblock at frame {pfn:#x} is mapped again for an allocation")
    set_direct_map_valid_noflush(machine, pfn, pages, valid=True)
    machine.flush_tlb_kernel_range(machine.vaddr(pfn), machine.vaddr(pfn) + (pages << PAGE_SHIFT))
