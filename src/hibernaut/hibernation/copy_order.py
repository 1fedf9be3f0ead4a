# SPDX-License-Identifier: GPL-2.0-or-later
"""Regions that the direct map does not map by a large entry, in the order of the copy: region, its table, the split.

`swsusp_save` copies page frames in ascending order (`copy_data_pages`, kernel/power/snapshot.c). Mainline kernels split
a not-present large entry when they reach its first page to save. The table that holds the entry is consistent in the
image only if it was copied before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.hibernation.audit import Order
from hibernaut.hibernation.frame_map import Fate, FrameMap
from hibernaut.linux.direct_map import FrameState
from hibernaut.memory.page import PAGE_SHIFT
from hibernaut.memory.painting import union
from hibernaut.memory.ranges import FrameRanges
from hibernaut.paging.entries import Entry, Level, entry_pfn

if TYPE_CHECKING:
    from hibernaut.linux.direct_map import DirectMap

__all__ = ["MAX_REGIONS", "CopyOrder", "RegionInOrder", "copy_order"]

MAX_REGIONS = 256
"""Regions that are looked at; a machine has few, a hostile table can make one of every other block."""

_SHOWN = (FrameState.NOT_PRESENT_LARGE, FrameState.NOT_PRESENT_LARGE_PLAIN, FrameState.TABLE_MISSING)


@dataclass(frozen=True)
class RegionInOrder:
    """A region under one entry, and the places of its tables in the order of the copy.

    Attributes:
        start_pfn: first frame of the region.
        pages: number of its frames.
        level: level of the entry.
        entry: the entry, as the source has it.
        table_pfn: frame of the table that holds the entry.
        first_pfn: first frame of the region on the list of pages to save, at which the copy meets the entry; None if
            no frame of it is listed, or the list is not known.
        listed_pages: number of its frames on that list.
        order: when the table that holds the entry is copied; None where `first_pfn` is.
        lost_pfn: frame that the entry names as a table and that the source lacks; None for an entry without PRESENT.
        lost_later: whether that frame is on the list of an image, which lost its data later; None if it is not known.
        list_known: whether the list of pages to save is whole in the region; False for a part of a damaged image's.
        of_image: whether the source is an image: its copy is done, and the entry is its result.
    """

    start_pfn: int
    pages: int
    level: Level
    entry: int
    table_pfn: int
    first_pfn: int | None
    listed_pages: int
    order: Order | None
    lost_pfn: int | None
    lost_later: bool | None
    list_known: bool
    of_image: bool

    @property
    def torn(self) -> bool:
        """Whether the image names a table that it never had; of a dump, whether the one by mainline's way would."""
        if self.of_image:
            return self.lost_pfn is not None and self.lost_later is False
        return self.lost_pfn is None and self.order in (Order.ABOVE, Order.NOT_LISTED)


@dataclass(frozen=True)
class CopyOrder:
    """The regions of a machine, ascending, at most `MAX_REGIONS`, and the number of further ones."""

    regions: tuple[RegionInOrder, ...]
    more: int


def copy_order(found: FrameMap) -> CopyOrder:
    """Return the regions of a map's direct map that one large entry, or a table that is missing, takes out of it.

    Raises:
        FormatError: the page tables are hostile.
    """
    direct_map = found.direct_map
    if direct_map is None:
        return CopyOrder((), 0)
    listed = union([found.frames(found.fate, Fate.SAVED), found.frames(found.fate, Fate.ZERO), found.lost])
    blocks, number = _blocks(direct_map)
    regions = tuple(_region(found, direct_map, listed, block, level) for block, level in blocks)
    return CopyOrder(regions, number - len(regions))


def _blocks(direct_map: DirectMap) -> tuple[list[tuple[int, Level]], int]:
    """Return the first frame and the level of the first `MAX_REGIONS` such entries, ascending, and the number of all.

    One span can have very many: they are counted, not listed.
    """
    spans = direct_map.spans.select(np.isin(direct_map.states, _SHOWN))
    start = (spans.vaddr >> np.uint64(PAGE_SHIFT)).astype(np.int64) - (direct_map.base >> PAGE_SHIFT)
    shift = 9 * (spans.level.astype(np.int64) - 1)
    first, last = start >> shift, start + spans.pages - 1 >> shift
    blocks: list[tuple[int, Level]] = []
    for row in range(min(len(spans), MAX_REGIONS)):
        level = Level(int(spans.level[row]))
        kept = range(int(first[row]), int(last[row]) + 1)[: MAX_REGIONS - len(blocks)]
        blocks += [(block * level.pages, level) for block in kept]
    return blocks, int((last - first + 1).sum())


def _region(found: FrameMap, direct_map: DirectMap, listed: FrameRanges, block: int, level: Level) -> RegionInOrder:
    step = direct_map.tables.walk(direct_map.vaddr(block)).steps[-1]
    region = FrameRanges.of([(block, level.pages)])
    inside, list_known = listed.within(region), not len(found.uncertain.within(region))
    first = int(inside.starts[0]) if len(inside) and list_known else None
    order = None
    if first is not None:
        order = Order.BELOW if step.table_pfn < first else Order.ABOVE
        if not listed.contains([step.table_pfn])[0]:
            order = Order.NOT_LISTED
    is_table = bool(step.entry & Entry.PRESENT)
    lost = entry_pfn(step.entry, step.level, direct_map.tables.encryption) if is_table else None
    return RegionInOrder(
        start_pfn=block,
        pages=min(level.pages, direct_map.end_pfn - block),
        level=level,
        entry=step.entry,
        table_pfn=step.table_pfn,
        first_pfn=first,
        listed_pages=inside.total_pages,
        order=order,
        lost_pfn=lost,
        lost_later=None if lost is None else _is_lost_later(found, lost),
        list_known=list_known,
        of_image=found.pages_from == "image",
    )


def _is_lost_later(found: FrameMap, pfn: int) -> bool | None:
    """Return whether an image has a frame on its list, and lost its data; None if it is not known, as of a dump."""
    if found.pages_from != "image" or found.uncertain.contains([pfn])[0]:
        return None
    return bool(found.lost.contains([pfn])[0])
