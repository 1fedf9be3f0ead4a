# SPDX-License-Identifier: GPL-2.0-or-later
"""Placement of the kernel's own pages in a simulated machine's RAM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hibernaut.errors import HibernautError
from hibernaut.linux.layout import Layout
from hibernaut.linux.mmzone import SIZEOF_STRUCT_PAGE
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.memory.ranges import FrameRanges

__all__ = ["KernelPages"]

LOWEST_TABLE_PFN = 0x10
"""Frame 0 and its neighbours belong to the firmware."""


@dataclass(frozen=True)
class KernelPages:
    """First frames of the kernel's own pages in RAM.

    Attributes:
        tables: of each group of page tables.
        mem_map: of the array of `struct page`.
        mem_map_pages: size of the array.
        zone: of the page with the zone's free lists.
        pcp: of the pages with each CPU's own list.
        free: of the free pages.
        second: of the second set of tables for the direct map; 0 without one.
        second_pages: pages for it.
    """

    tables: list[int]
    mem_map: int
    mem_map_pages: int
    zone: int
    pcp: int
    free: int
    second: int = 0
    second_pages: int = 0

    @classmethod
    def of(cls, layout: Layout, ram: FrameRanges, table_pages: Sequence[int]) -> KernelPages:
        """Place everything; pages without a place of their own lie behind the tables, in the order of the attributes.

        Args:
            layout: the layout.
            ram: its RAM.
            table_pages: pages for each group of tables.

        Raises:
            HibernautError: no room.
        """
        mem_map_pages = -(-ram.end * SIZEOF_STRUCT_PAGE // PAGE_SIZE)
        parts = {
            "mem_map": (layout.mem_map, mem_map_pages),
            "zone": (layout.zone, 1),
            "pcp": (layout.pcp, layout.cpus),
            "free": (layout.free, layout.free_pages),
        }
        together = table_pages[0] + sum(pages for place, pages in parts.values() if place is None)
        busy = [(hole.start_pfn, hole.pages) for hole in layout.holes]
        busy += [(segment.start, len(segment.pages)) for segment in layout.data]
        busy += [*layout.reserved, *layout.offline, *layout.guard, *layout.nosave]
        tables = [_place(layout.tables, "tables", ram, busy, together)]
        busy.append((tables[0], together))
        for (first, _, where), pages in zip(layout.tables_of, table_pages[1:], strict=True):
            tables.append(_place(where, f"tables of frame {first:#x}", ram, busy, pages))
            busy.append((tables[-1], pages))
        found: dict[str, int] = {}
        at = tables[0] + table_pages[0]
        for name, (place, pages) in parts.items():
            if place is None:
                found[name] = at
                at += pages
            else:
                found[name] = _place(place, name, ram, busy, pages)
                busy.append((found[name], pages))
        second_pages = 0 if layout.second_root is None else sum(table_pages)
        if layout.second_root is not None:
            found["second"] = _place(layout.second_root, "second root", ram, busy, second_pages)
        return cls(tables=tables, mem_map_pages=mem_map_pages, second_pages=second_pages, **found)


def _place(place: str | int, name: str, ram: FrameRanges, busy: Sequence[tuple[int, int]], pages: int) -> int:
    """Return the first frame of a piece of RAM with room, free of what is busy."""
    free = ram.without(FrameRanges.of([*busy, (0, LOWEST_TABLE_PFN)]))
    if isinstance(place, int):
        if free.end_of(place) >= place + pages:
            return place
        raise HibernautError(f"no room for {pages} pages ({name}) at frame {place:#x}")
    fitting = [(start, length) for start, length in free if length >= pages]
    if not fitting or place not in ("low", "high"):
        raise HibernautError(f'no room for {pages} pages ({name}), "low", "high" or at a frame: {place}')
    return fitting[0][0] if place == "low" else sum(fitting[-1]) - pages
