# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine that the demonstration hibernates."""

from __future__ import annotations

import numpy as np

from hibernaut.linux.layout import Layout, hole_2m, hole_4k
from hibernaut.memory.page import PAGE_SIZE, Bytes
from hibernaut.memory.segments import Segment

__all__ = ["DEMO_BLOCK_PFN", "demo_layout", "demo_pages"]

DEMO_BLOCK_PFN = 0x1000
"""First frame of the 2 MiB block that is not present in the direct map."""
DEMO_BLOCK_PAGES = 512
DEMO_SINGLE_PFNS = (0x0815, 0x2A2A, 0x2A2B, 0x3003)
"""Single pages that are not present either."""
RAM = ((0x0, 0xA0), (0x100, 0x3F00))
"""64 MiB with the gap that PCs have below 1 MiB."""


def demo_pages(start_pfn: int, pages: int) -> Bytes:
    """Return pages that name themselves, shape (pages, 4096): a line of text, repeated to the end."""
    content = np.zeros((pages, PAGE_SIZE), dtype=np.uint8)
    for row in range(pages):
        line = f"frame {start_pfn + row:#07x}: not in the direct map, to be saved all the same.\n".encode("ascii")
        text = (line * (PAGE_SIZE // len(line) + 1))[:PAGE_SIZE]
        content[row] = np.frombuffer(text, dtype=np.uint8)
    return content


def demo_layout(tables: str = "high") -> Layout:
    """Return 64 MiB with a 2 MiB not-present block and a few not-present 4K pages, all of which hold text.

    Args:
        tables: where the page tables lie: "high" (above the block: its PMD table is copied after a split in the middle
            of the copy, as on most real machines) or "low" (below: copied before).
    """
    data = [Segment(DEMO_BLOCK_PFN, demo_pages(DEMO_BLOCK_PFN, DEMO_BLOCK_PAGES))]
    data += [Segment(pfn, demo_pages(pfn, 1)) for pfn in DEMO_SINGLE_PFNS]
    holes = (hole_2m(DEMO_BLOCK_PFN), *(hole_4k(pfn) for pfn in DEMO_SINGLE_PFNS))
    return Layout(ram=RAM, holes=holes, tables=tables, data=tuple(data))
