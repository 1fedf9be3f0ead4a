# SPDX-License-Identifier: GPL-2.0-or-later
"""The page allocator's structures, declared as data: sizes, offsets and values as they lie in memory.

Facts from Linux 6.1: `struct page` (include/linux/mm_types.h); `struct zone`, `struct free_area` and `struct
per_cpu_pages` (include/linux/mmzone.h); page types (include/linux/page-flags.h); poison (include/linux/poison.h).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hibernaut.memory.page import PAGE_SIZE, Bytes

__all__ = [
    "BUDDY_TYPE",
    "FREE_AREA_NR_FREE",
    "IN_USE_TYPE",
    "LIST_POISON1",
    "LIST_POISON2",
    "NR_PAGE_ORDERS",
    "PAGEBLOCK_ORDER",
    "PAGES_PER_MAP_PAGE",
    "PAGE_LIST",
    "PAGE_MAPPING",
    "PAGE_MEMCG_DATA",
    "PAGE_PRIVATE",
    "PAGE_STATE",
    "PAGE_TYPE_BASE",
    "PAGE_TYPE_MASK",
    "PCP_COUNT",
    "PCP_FREE_FACTOR",
    "PCP_HIGH",
    "PCP_LIST",
    "PER_CPU_PAGES",
    "PG_BUDDY",
    "SIZEOF_FREE_AREA",
    "SIZEOF_STRUCT_PAGE",
    "STRUCT_PAGE",
    "ZONE",
    "ZONE_FREE_AREA",
    "ZONE_MANAGED_PAGES",
    "ZONE_NR_FREE_PAGES",
    "ZONE_UNMAPPED",
    "ZONE_WMARK_MIN",
    "AllocatorPlaces",
    "mem_map_page",
]

NR_PAGE_ORDERS = 11
"""Free blocks have orders 0 to 10.

The name is that of 6.12; in 6.1 it is MAX_ORDER. Since Linux kernel commit 23baf831a32c ("mm, treewide: redefine
MAX_ORDER sanely") (in v6.4), that stands for 10. Read in linux-source-6.12 6.12.118-1: include/linux/mmzone.h."""

STRUCT_PAGE = np.dtype(
    {
        "names": [
            "flags", "next", "prev", "mapping", "index", "private", "page_type", "_refcount", "memcg_data",
        ],
        "formats": ["<u8", "<u8", "<u8", "<u8", "<u8", "<u8", "<u4", "<i4", "<u8"],
        "offsets": [0, 8, 16, 24, 32, 40, 48, 52, 56],
        "itemsize": 64,
    }
)  # fmt: skip
"""`struct page`. `next` and `prev` are its list_head (`buddy_list`, `pcp_list`); `private` is the order of a free
block; `page_type` and `_mapcount` share one field; `_refcount` is 1 for a page in use and 0 for a free one."""

ZONE = np.dtype(
    {
        "names": ["managed_pages", "wmark_min", "free_area", "nr_free_pages"],
        "formats": [
            "<u8",
            "<u8",
            (np.dtype([("next", "<u8"), ("prev", "<u8"), ("nr_free", "<u8")]), (NR_PAGE_ORDERS,)),
            "<u8",
        ],
        "offsets": [0, 8, 64, 384],
        "itemsize": 448,
    }
)
"""The part of `struct zone` that the allocator needs. Order and alignment to cache lines are the kernel's; the offsets
are the model's own, since the kernel's depend on its configuration. `nr_free_pages` is `vm_stat[NR_FREE_PAGES]`,
`wmark_min` is `_watermark[WMARK_MIN]`."""

PER_CPU_PAGES = np.dtype(
    {
        "names": ["lock", "count", "high", "batch", "free_factor", "next", "prev"],
        "formats": ["<u4", "<i4", "<i4", "<i4", "<i2", "<u8", "<u8"],
        "offsets": [0, 4, 8, 12, 16, 24, 32],
        "itemsize": 64,
    }
)
"""`struct per_cpu_pages`, with the one list of order 0."""


def _offsetof(structure: np.dtype[np.void], name: str) -> int:
    assert structure.fields is not None
    return int(structure.fields[name][1])


SIZEOF_STRUCT_PAGE = STRUCT_PAGE.itemsize
PAGE_LIST = _offsetof(STRUCT_PAGE, "next")
PAGE_MAPPING = _offsetof(STRUCT_PAGE, "mapping")
PAGE_PRIVATE = _offsetof(STRUCT_PAGE, "private")
PAGE_STATE = _offsetof(STRUCT_PAGE, "page_type")
"""One 8-byte word: `page_type` in its lower half, `_refcount` in its upper half."""
PAGE_MEMCG_DATA = _offsetof(STRUCT_PAGE, "memcg_data")

SIZEOF_FREE_AREA = ZONE["free_area"].base.itemsize
ZONE_MANAGED_PAGES = _offsetof(ZONE, "managed_pages")
ZONE_WMARK_MIN = _offsetof(ZONE, "wmark_min")
ZONE_FREE_AREA = _offsetof(ZONE, "free_area")
ZONE_NR_FREE_PAGES = _offsetof(ZONE, "nr_free_pages")
FREE_AREA_NR_FREE = _offsetof(ZONE["free_area"].base, "nr_free")

PCP_COUNT = _offsetof(PER_CPU_PAGES, "lock")
"""One 8-byte word: `lock` in its lower half, `count` in its upper half."""
PCP_HIGH = _offsetof(PER_CPU_PAGES, "high")
"""One 8-byte word: `high` in its lower half, `batch` in its upper half."""
PCP_FREE_FACTOR = _offsetof(PER_CPU_PAGES, "free_factor")
PCP_LIST = _offsetof(PER_CPU_PAGES, "next")

PAGEBLOCK_ORDER = 9
"""`pageblock_order` with huge pages of 2 MiB."""
ZONE_UNMAPPED = 1024
"""Offset of the `struct free_area` of unmapped pageblocks, behind the zone in its page: the model's own. In the series
page_alloc-unmapped every `free_area` has more lists, one for each freetype."""

PAGES_PER_MAP_PAGE = PAGE_SIZE // SIZEOF_STRUCT_PAGE
"""Number of `struct page`s in one page of `mem_map`."""

IN_USE_TYPE = 0xFFFF_FFFF
"""`page_type` of a page without a type: `_mapcount` is -1."""
PG_BUDDY = 0x80
BUDDY_TYPE = IN_USE_TYPE & ~PG_BUDDY
"""`page_type` of the first page of a block on a free list: a type is set by clearing its bit."""
PAGE_TYPE_MASK, PAGE_TYPE_BASE = 0xF000_0000 | PG_BUDDY, 0xF000_0000
"""`PageBuddy`: `page_type & PAGE_TYPE_MASK == PAGE_TYPE_BASE`."""

LIST_POISON1 = 0xDEAD_0000_0000_0100
"""`next` of an unlinked page (CONFIG_ILLEGAL_POINTER_VALUE is 0xdead000000000000 on x86-64)."""
LIST_POISON2 = 0xDEAD_0000_0000_0122
"""`prev` of an unlinked page."""

PAGE_FLAGS = 0x0017_FFFF_C000_0000
"""`flags` of a page of node 0, zone Normal, that no CPU has touched: links and `last_cpupid`, no flag."""


@dataclass(frozen=True)
class AllocatorPlaces:
    """Physical addresses of an allocator's state; structures begin at multiples of 4096.

    Attributes:
        mem_map: the array of `struct page`s, one for every frame from 0 to `end_pfn`, as FLATMEM keeps it.
        zone: `struct zone`.
        pcps: `struct per_cpu_pages` of each CPU.
        end_pfn: one past the last frame that has a `struct page`.
        unmapped: the `struct free_area` of unmapped pageblocks, in the page of the zone; 0 without one.
        wmark_min: the zone's min mark; 0 if the allocator checks none.

    Raises:
        ValueError: an address is not page-aligned.
    """

    mem_map: int
    zone: int
    pcps: tuple[int, ...]
    end_pfn: int
    unmapped: int = 0
    wmark_min: int = 0

    def __post_init__(self) -> None:
        for paddr in (self.mem_map, self.zone, *self.pcps):
            if paddr % PAGE_SIZE:
                raise ValueError(f"allocator state must begin at a page boundary: {paddr:#x}")

    @property
    def mem_map_pages(self) -> int:
        """Size of the array in pages."""
        return -(-self.end_pfn // PAGES_PER_MAP_PAGE)


def mem_map_page(refcount: int = 1) -> Bytes:
    """Return a page of `mem_map` with 64 identical `struct page`s, none of which was ever on a list.

    Their links are 0, as an owner leaves them that uses these words itself (boot makes them point to themselves). All
    of `mem_map` can be this one page, repeated, until frames are freed.

    Args:
        refcount: 1 for pages in use; 0 for the inner pages of a free block, to build large blocks cheaply.

    Returns:
        uint8, shape (4096,).
    """
    pages = np.zeros(PAGES_PER_MAP_PAGE, dtype=STRUCT_PAGE)
    pages["flags"] = PAGE_FLAGS
    pages["page_type"] = IN_USE_TYPE
    pages["_refcount"] = refcount
    return pages.view(np.uint8)
