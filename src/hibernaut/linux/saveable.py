"""Which frames a snapshot saves and which are free for page tables, where nobody gave the kernel's own lists.

The kernel knows from `struct page` (`saveable_page` in kernel/power/snapshot.c: not free, not nosave, not offline, not
a guard page, not reserved-and-not-present). Without reading that, the direct map is the best witness: memory that the
kernel never uses has no entry in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from hibernaut.linux.direct_map import DirectMap, FrameState
from hibernaut.memory.physical import BoolArray, FrameRanges, Frames, PhysicalMemory
from hibernaut.paging.entries import ENTRIES, Level
from hibernaut.paging.spans import Stop

__all__ = ["MAX_SET_ASIDE", "choose_free", "choose_saveable"]

MAX_SET_ASIDE = 4096
"""At most so many frames are set aside for page tables: 16 MiB of tables, splits for 8 GiB of not-present memory."""

LOW_MEMORY_PFN = 0x100
"""The first MiB belongs to the firmware: no page tables there if there is any other place."""

CHUNK_PAGES = 1 << 20
SEARCH_CHUNKS = 64
"""How many chunks are searched for free frames: 256 GiB."""
SEARCH_PAGES = 1 << 18
"""How far down from the top zero-filled frames are looked for: 1 GiB."""


def choose_saveable(memory: PhysicalMemory, direct_map: DirectMap, *, set_aside: bool) -> tuple[Frames, Frames]:
    """Every frame of the memory that the direct map has an entry for, and frames set aside from them for tables.

    Args:
        memory: the source.
        direct_map: its direct map.
        set_aside: whether to set frames aside at all.

    Returns:
        Two ascending arrays: the frames to save, and those set aside (at most `MAX_SET_ASIDE`, zero-filled, plainly
        mapped, from the top of memory; as many as splitting every not-present large page takes, none if there is none).
    """
    kept = [chunk[direct_map_has_entry(direct_map, chunk)] for chunk in _chunks(memory.ranges, 0, direct_map.end_pfn)]
    frames = np.concatenate(kept) if kept else np.empty(0, dtype=np.int64)
    wanted = min(splits_possible(direct_map), MAX_SET_ASIDE) if set_aside else 0
    aside = _zero_frames_at_top(memory, direct_map, frames, wanted)
    return frames[~np.isin(frames, aside, assume_unique=True)] if len(aside) else frames, aside


def choose_free(memory: PhysicalMemory, direct_map: DirectMap, saveable: Frames) -> Frames:
    """Frames for page tables beside a given list: plainly mapped and not on it, above the first MiB if there are any.

    Those of the source first; if it has none (an image holds what was saved and nothing else), mapped frames that the
    source lacks: on that machine they are RAM, and free or of no interest to the image.

    Returns:
        Ascending frames, at most `MAX_SET_ASIDE`, the lowest.
    """
    for absent in (False, True):
        for floor in (LOW_MEMORY_PFN, 0):
            found = _unlisted(memory, direct_map, saveable, absent=absent, floor=floor)
            if len(found):
                return found
    return np.empty(0, dtype=np.int64)


def direct_map_has_entry(direct_map: DirectMap, pfns: Frames) -> BoolArray:
    """Which frames have an entry, present or not, or may have one in a table that the source lacks."""
    states = direct_map.classify(pfns)
    has_entry: BoolArray = (states != FrameState.NONE_IN_TABLE) & (states != FrameState.NONE_ABOVE)
    return has_entry


def splits_possible(direct_map: DirectMap) -> int:
    """How many tables it takes to split every not-present large page of the direct map down to 4K."""
    spans = direct_map.spans
    not_present = spans.state == Stop.NOT_PRESENT.code
    total = 0
    for level, tables in ((Level.PMD, 1), (Level.PUD, 1 + ENTRIES)):
        pages = int(spans.pages[not_present & (spans.level == level)].sum())
        total += pages // level.pages * tables
    return total


def _chunks(ranges: Iterable[tuple[int, int]], floor: int, end_pfn: int) -> Iterator[Frames]:
    for start, pages in ranges:
        end = min(start + pages, end_pfn)
        for first in range(max(start, floor), end, CHUNK_PAGES):
            yield np.arange(first, min(first + CHUNK_PAGES, end), dtype=np.int64)


def _zero_frames_at_top(memory: PhysicalMemory, direct_map: DirectMap, frames: Frames, wanted: int) -> Frames:
    """The highest zero-filled, plainly mapped frames, ascending; fewer than wanted if they are not found in 1 GiB."""
    found: list[Frames] = []
    missing = wanted
    at = len(frames)
    lowest = max(0, at - SEARCH_PAGES)
    while missing > 0 and at > lowest:
        chunk = frames[max(lowest, at - 1024) : at]
        at -= len(chunk)
        pages, present = memory.gather(chunk)
        empty = present & ~pages.view(np.uint64).any(axis=1) & (direct_map.classify(chunk) == FrameState.PRESENT)
        found.insert(0, chunk[empty][-missing:])
        missing -= len(found[0])
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def _unlisted(memory: PhysicalMemory, direct_map: DirectMap, saveable: Frames, *, absent: bool, floor: int) -> Frames:
    """Plainly mapped frames from `floor` on that are not listed: those of the memory, or (absent) those it lacks."""
    found: list[Frames] = []
    count = 0
    ranges = _mapped(direct_map) if absent else memory.ranges
    for chunk in itertools.islice(_chunks(ranges, floor, direct_map.end_pfn), SEARCH_CHUNKS):
        if absent:
            chunk = chunk[~memory.ranges.contains(chunk)]
        chunk = chunk[~np.isin(chunk, saveable, assume_unique=True)]
        found.append(chunk[direct_map.classify(chunk) == FrameState.PRESENT])
        count += len(found[-1])
        if count >= MAX_SET_ASIDE:
            break
    return np.concatenate(found)[:MAX_SET_ASIDE] if found else np.empty(0, dtype=np.int64)


def _mapped(direct_map: DirectMap) -> FrameRanges:
    """The frames whose direct-map addresses have a present entry, as ranges."""
    spans = direct_map.spans.of_state(Stop.PRESENT)
    start = ((spans.vaddr - np.uint64(direct_map.base)) >> np.uint64(12)).astype(np.int64)
    return FrameRanges.of(list(zip(start.tolist(), spans.pages.tolist(), strict=True)))
