# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory maps of the firmware that a kernel keeps in its memory (`struct e820_table`), found by their form.

The kernel copies its three tables into slab memory (`e820__reallocate_tables`, arch/x86/kernel/e820.c), so each lies at
a multiple of 8: a u32 count, then packed entries of address, size and type, ascending from address 0.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.swsusp.e820 import E820_TYPE_RAM

if TYPE_CHECKING:
    from hibernaut.memory.page import Bytes
    from hibernaut.memory.physical import PhysicalMemory

__all__ = ["MOST_TABLES", "find_e820_ram"]

_ENTRY = struct.Struct("<QQI")
_COUNT_BYTES = 4
_MOST_ENTRIES = 3200
"""`E820_MAX_ENTRIES` of a kernel for 1024 nodes (arch/x86/include/asm/e820/types.h)."""
_TYPE_RESERVED_KERN = 128
"""RAM with setup data (arch/x86/include/asm/e820/types.h); /proc/iomem calls it "System RAM" too."""
_RAM_TYPES = (E820_TYPE_RAM, _TYPE_RESERVED_KERN)
_FEWEST_WORDS = 16
MOST_TABLES = 16
"""Most different tables that are returned: a kernel has three, a host has those of its guests too."""


def find_e820_ram(memory: PhysicalMemory) -> list[tuple[tuple[int, int], ...]]:
    """Return the ranges of RAM of every table in a memory, each once: (first byte, one past the last), ascending.

    Reads all stored pages.
    """
    found: dict[tuple[tuple[int, int], ...], None] = {}
    for start, nr_pages in memory.stored:
        at = start
        while at < start + nr_pages and len(found) < MOST_TABLES:
            pages = memory.run(at, min(1024, start + nr_pages - at))
            found.update(dict.fromkeys(_in_pages(memory, at, pages)))
            at += max(len(pages), 1)
    return list(found)


def _in_pages(memory: PhysicalMemory, pfn: int, pages: Bytes) -> Iterator[tuple[tuple[int, int], ...]]:
    words = np.ascontiguousarray(pages).reshape(-1).view("<u4")
    count = words[::2]
    last = max(len(count) - _FEWEST_WORDS // 2, 0)
    # Address 0 behind the count; a size below 1 MiB, for no PC has RAM across its video memory; RAM or reserved.
    hits = np.flatnonzero((count[:last] > 1) & (count[:last] <= _MOST_ENTRIES) & (words[1::2][:last] == 0))
    hits = hits[(words[2 * hits + 2] == 0) & (words[2 * hits + 4] == 0)]
    size = words[2 * hits + 3]
    kind = words[2 * hits + 5]
    hits = hits[(size > 0) & (size <= 1 << 20) & ((kind == E820_TYPE_RAM) | (kind == 2))]
    for at in hits.tolist():
        paddr = pfn * pages.shape[1] + 8 * at
        content = memory.read(paddr, _COUNT_BYTES + int(count[at]) * _ENTRY.size)
        ram = None if content is None else _ram_of(content)
        if ram:
            yield ram


def _ram_of(table: bytes) -> tuple[tuple[int, int], ...]:
    """Return the ranges of RAM of a table, neighbours merged; none if its entries do not ascend."""
    ram: list[tuple[int, int]] = []
    before = 0
    for start, size_bytes, kind in _ENTRY.iter_unpack(table[_COUNT_BYTES:]):
        end = start + size_bytes
        if start < before or not size_bytes or end > 1 << 52 or not kind:
            return ()
        if kind in _RAM_TYPES:
            if ram and ram[-1][1] == start:
                ram[-1] = (ram[-1][0], end)
            else:
                ram.append((start, end))
        before = end
    return tuple(ram)
