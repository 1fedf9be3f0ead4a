# SPDX-License-Identifier: GPL-2.0-or-later
"""Layouts of kernel structures that VMCOREINFO does not describe, declared by hand.

`StructureLayouts` is the question that readers ask. `HAND_WRITTEN` answers it from the declarations in this module;
type information that a kernel carries itself (BTF) answers it the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from hibernaut.memory.page import PAGE_SIZE

__all__ = [
    "BITS_PER_LEAF",
    "HAND_WRITTEN",
    "KERNEL_IMAGE_BYTES",
    "MAX_E820_ENTRIES",
    "MAX_NODES",
    "MAX_NODE_BYTES",
    "MAX_ZONES",
    "NODE_PRESENT_PAGES_AFTER_START_PFN",
    "NODE_SPANNED_PAGES_AFTER_START_PFN",
    "StructureLayout",
    "StructureLayouts",
]


@dataclass(frozen=True)
class StructureLayout:
    """The layout of one C structure, as far as this package reads it.

    Attributes:
        name: the structure's tag.
        size_bytes: its size, at least up to the end of the last member listed.
        offsets: byte offset of each member, by the member's name.
        source: file that declares the structure, and the kernel versions that the layout was compared with.
    """

    name: str
    size_bytes: int
    offsets: Mapping[str, int]
    source: str


class StructureLayouts(Protocol):
    """A source of structure layouts for one kernel."""

    def structure(self, name: str) -> StructureLayout:
        """Return the layout of `struct name`. Raises KeyError if it is unknown."""
        ...


class _Declared:
    """Layouts from a table."""

    def __init__(self, *layouts: StructureLayout) -> None:
        self._layouts = {layout.name: layout for layout in layouts}

    def structure(self, name: str) -> StructureLayout:
        return self._layouts[name]


HAND_WRITTEN: StructureLayouts = _Declared(
    StructureLayout(
        name="list_head",
        size_bytes=16,
        offsets={"next": 0, "prev": 8},
        source="include/linux/types.h",
    ),
    StructureLayout(
        name="mem_zone_bm_rtree",
        size_bytes=64,
        offsets={"list": 0, "leaves": 32, "start_pfn": 48, "end_pfn": 56},
        source='kernel/power/snapshot.c. Linux kernel commit f469f02dc6fa ("PM / Hibernate: Create a Radix-Tree to '
        'store memory bitmap") introduced it. Read in linux-source-5.10 5.10.262-1, linux-source-7.3 7.3.4-1~bpo13+1.',
    ),
    StructureLayout(
        name="rtree_node",
        size_bytes=24,
        offsets={"list": 0, "data": 16},
        source="kernel/power/snapshot.c",
    ),
    StructureLayout(
        name="e820_table",
        size_bytes=4,
        offsets={"nr_entries": 0, "entries": 4},
        source="arch/x86/include/asm/e820/types.h, packed; the entries follow the count",
    ),
    StructureLayout(
        name="e820_entry",
        size_bytes=20,
        offsets={"addr": 0, "size": 8, "type": 16},
        source="arch/x86/include/asm/e820/types.h, packed",
    ),
)
"""The layouts declared in this module."""

BITS_PER_LEAF = 8 * PAGE_SIZE
"""`BM_BITS_PER_BLOCK` (kernel/power/snapshot.c): page frames that one leaf of a `struct memory_bitmap` describes."""

NODE_PRESENT_PAGES_AFTER_START_PFN = 8
NODE_SPANNED_PAGES_AFTER_START_PFN = 16
"""`struct pglist_data` (include/linux/mmzone.h) declares node_start_pfn, node_present_pages and node_spanned_pages in
this order. VMCOREINFO has the offsets of the first and the last one."""

KERNEL_IMAGE_BYTES = 1 << 30
"""`KERNEL_IMAGE_SIZE` (arch/x86/include/asm/page_64_types.h) with KASLR: address space of a kernel image."""
MAX_NODES = 1 << 10
"""`MAX_NUMNODES`: CONFIG_NODES_SHIFT is at most 10 (arch/x86/Kconfig)."""
MAX_NODE_BYTES = 1 << 22
"""Bound for `struct pglist_data`, which has about 170 KB in distribution kernels."""
MAX_E820_ENTRIES = 128 + 3 * MAX_NODES
"""`E820_MAX_ENTRIES` (arch/x86/include/asm/e820/types.h)."""
MAX_ZONES = 5 * MAX_NODES
"""Bound for the zones of a `struct memory_bitmap`, one for each populated zone at most: a node has at most DMA, DMA32,
NORMAL, MOVABLE and DEVICE."""
