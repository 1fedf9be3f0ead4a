"""Which frames a snapshot saves and which are free for page tables, where nobody gave the kernel's own lists.

The kernel knows from `struct page` (`saveable_page` in kernel/power/snapshot.c: not free, not nosave, not offline, not
a guard page, not reserved-and-not-present). Without reading that, the direct map is the best witness: memory that the
kernel never uses has no entry in it.
"""

from __future__ import annotations

import numpy as np

from hibernaut.linux.direct_map import DirectMap, FrameState
from hibernaut.memory.physical import FrameRanges, Frames, PhysicalMemory
from hibernaut.paging.entries import ENTRIES, Level
from hibernaut.paging.spans import Stop

__all__ = ["MAX_SET_ASIDE", "choose_free", "choose_saveable", "frames_in_state", "splits_possible"]

MAX_SET_ASIDE = 4096
"""At most so many frames are set aside for page tables: 16 MiB of tables, splits for 8 GiB of not-present memory."""

LOW_MEMORY_PFN = 0x100
"""The first MiB belongs to the firmware: no page tables there if there is any other place."""

CHUNK_PAGES = 1024
SEARCH_PAGES = 1 << 18
"""How far down from the top zero-filled frames are looked for: 1 GiB."""


def choose_saveable(memory: PhysicalMemory, direct_map: DirectMap, *, set_aside: bool) -> tuple[FrameRanges, Frames]:
    """Every frame of the memory that the direct map has an entry for, and frames set aside from them for tables.

    Args:
        memory: the source.
        direct_map: its direct map.
        set_aside: whether to set frames aside at all.

    Returns:
        The frames to save, and those set aside, ascending (at most `MAX_SET_ASIDE`, zero-filled, plainly
        mapped, from the top of memory; as many as splitting every not-present large page takes, none if there is none).
    """
    none = frames_in_state(direct_map, FrameState.NONE_IN_TABLE, FrameState.NONE_ABOVE)
    chosen = memory.ranges.within(FrameRanges.of([(0, direct_map.end_pfn)])).without(none)
    wanted = min(splits_possible(direct_map), MAX_SET_ASIDE) if set_aside else 0
    aside = _zero_frames_at_top(memory, direct_map, chosen, wanted)
    return chosen.without(FrameRanges.of_frames(aside)), aside


def choose_free(memory: PhysicalMemory, direct_map: DirectMap, listed: FrameRanges) -> Frames:
    """Frames for page tables beside a given list: plainly mapped and not on it, above the first MiB if there are any.

    Those of the source first; if it has none (an image holds what was saved and nothing else), mapped frames that the
    source lacks: on that machine they are RAM, and free or of no interest to the image.

    Returns:
        Ascending frames, at most `MAX_SET_ASIDE`, the lowest.
    """
    mapped = frames_in_state(direct_map, FrameState.PRESENT).within(FrameRanges.of([(0, direct_map.end_pfn)]))
    for there in (memory.ranges, mapped.without(memory.ranges)):
        beside = there.within(mapped).without(listed)
        for floor in (LOW_MEMORY_PFN, 0):
            found = beside.without(FrameRanges.of([(0, floor)]))
            if len(found):
                return found.lowest(MAX_SET_ASIDE).frames()
    return np.empty(0, dtype=np.int64)


def frames_in_state(direct_map: DirectMap, *states: FrameState) -> FrameRanges:
    """The frames for which the direct map has one of these, as ranges."""
    regions = direct_map.regions
    which = np.isin(regions.state, states)
    starts, pages = regions.start_pfn[which], regions.pages[which]
    first = np.flatnonzero(np.append(True, starts[1:] != starts[:-1] + pages[:-1])[: len(starts)])
    return FrameRanges(starts[first], np.add.reduceat(pages, first) if len(first) else pages)


def splits_possible(direct_map: DirectMap) -> int:
    """How many tables it takes to split every not-present large page of the direct map down to 4K."""
    spans = direct_map.spans
    not_present = spans.state == Stop.NOT_PRESENT.code
    total = 0
    for level, tables in ((Level.PMD, 1), (Level.PUD, 1 + ENTRIES)):
        pages = int(spans.pages[not_present & (spans.level == level)].sum())
        total += pages // level.pages * tables
    return total


def _zero_frames_at_top(memory: PhysicalMemory, direct_map: DirectMap, chosen: FrameRanges, wanted: int) -> Frames:
    """The highest zero-filled, plainly mapped frames, ascending; fewer than wanted if they are not found in 1 GiB."""
    found: list[Frames] = []
    missing = wanted
    top = chosen.within(frames_in_state(direct_map, FrameState.PRESENT)) if wanted else chosen
    left = SEARCH_PAGES
    for start, pages in reversed(list(top)):
        end = start + pages
        while missing > 0 and left > 0 and end > start:
            chunk = np.arange(max(start, end - CHUNK_PAGES), end, dtype=np.int64)
            end -= len(chunk)
            left -= len(chunk)
            content, present = memory.gather(chunk)
            empty = present & ~content.view(np.uint64).any(axis=1)
            found.insert(0, chunk[empty][-missing:])
            missing -= len(found[0])
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)
