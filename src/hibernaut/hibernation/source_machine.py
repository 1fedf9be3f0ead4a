# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines on the memory of a source: the frames to save and the frames for page tables where no list is given.

The kernel knows from `struct page` (`saveable_page` in kernel/power/snapshot.c: not free, not nosave, not offline, not
a guard page, not reserved-and-not-present). Without reading that, the direct map is the best witness: memory that the
kernel never uses has no entry in it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from hibernaut.errors import HibernautError
from hibernaut.linux.allocator import FreePages
from hibernaut.linux.direct_map import DirectMap, FrameState, frames_in_state
from hibernaut.linux.environment import Environment
from hibernaut.linux.machine import Machine
from hibernaut.linux.rules import KernelRules
from hibernaut.memory.overlay import Overlay
from hibernaut.memory.page import CHUNK_PAGES, PAGE_SHIFT, Frames
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.ranges import FrameRanges
from hibernaut.paging.entries import ENTRIES, Level
from hibernaut.paging.spans import Stop

__all__ = ["MAX_SET_ASIDE", "choose_free", "choose_saveable", "machine_from_memory", "splits_possible"]

MAX_SET_ASIDE = 4096
"""At most so many frames are set aside for page tables: 16 MiB of tables, splits for 8 GiB of not-present memory."""

LOW_MEMORY_PFN = 0x100
"""The first MiB belongs to the firmware: no page tables there if there is any other place."""

SEARCH_PAGES = 1 << 18
"""How far down from the top zero-filled frames are looked for: 1 GiB."""


def machine_from_memory(
    memory: PhysicalMemory,
    cr3: int,
    levels: int | None = None,
    saveable: FrameRanges | ArrayLike | None = None,
    environment: Environment | None = None,
    free: ArrayLike | None = None,
    rules: KernelRules | None = None,
) -> Machine:
    """Return a machine on existing memory: a dump, an image, another machine's memory. The source is never written.

    Its allocator's own pages are left as they are: pages for tables come from a list beside the memory.

    Args:
        memory: the source.
        cr3: root of the kernel's page tables.
        levels: 4 or 5; found if not given.
        saveable: the frames to save, ascending. Default: every frame of the source whose direct map has an
            entry for it, present or not (reserved memory has none), less those set aside for `free`.
        environment: answers every choice; by default nothing fails.
        free: frames for page tables, ascending. Default: frames of the source that are plainly mapped and not
            listed; if the list is the default too, zero-filled frames at the top of RAM are set aside,
            as many as splitting every not-present large page can take, at most 4096.
        rules: of its kernel; those of the oldest line (6.1) by default.

    Raises:
        FormatError: no direct map is found.
        HibernautError: a list of frames does not ascend, or a frame to save is not in the source.
    """
    overlay = Overlay(memory)
    direct_map = DirectMap.find(overlay, cr3, levels)
    if saveable is None:
        chosen, aside = choose_saveable(overlay, direct_map, set_aside=free is None)
        free = aside if free is None else free
    else:
        chosen = saveable if isinstance(saveable, FrameRanges) else FrameRanges.of_frames(_ascending(saveable))
        free = choose_free(overlay, direct_map, chosen) if free is None else free
    if chosen.end and direct_map.base + ((chosen.end - 1) << PAGE_SHIFT) >= 1 << 64:
        raise HibernautError(f"frame {chosen.end - 1:#x} has no address in the direct map at {direct_map.base:#x}")
    missing = chosen.without(overlay.ranges)
    if len(missing):
        raise HibernautError(
            f"{missing.total_pages} of the {chosen.total_pages} frames to save are not in the source, the first is "
            f"{int(missing.starts[0]):#x}"
        )
    return Machine(
        overlay,
        cr3=cr3,
        levels=direct_map.levels,
        base=direct_map.base,
        end_pfn=direct_map.end_pfn,
        allocator=FreePages(_ascending(free)),
        saveable=chosen,
        environment=environment,
        rules=rules,
        direct_map=direct_map,
    )


def choose_saveable(memory: PhysicalMemory, direct_map: DirectMap, *, set_aside: bool) -> tuple[FrameRanges, Frames]:
    """Every frame of the memory that the direct map has an entry for, and frames set aside for tables.

    Args:
        memory: the source.
        direct_map: its direct map.
        set_aside: whether to set frames aside at all.

    Returns:
        The frames to save, and those set aside, ascending: as many as splitting every not-present large page takes,
        none if there is none, at most `MAX_SET_ASIDE`. They are zero-filled and plainly mapped, no page tables, from
        the top of memory; if there are too few, mapped frames that the source lacks, see `choose_free`.
    """
    none = frames_in_state(direct_map, FrameState.NONE_IN_TABLE, FrameState.NONE_ABOVE)
    chosen = memory.ranges.within(FrameRanges.of([(0, direct_map.end_pfn)])).without(none)
    wanted = min(splits_possible(direct_map), MAX_SET_ASIDE) if set_aside else 0
    if not wanted:
        return chosen, np.empty(0, dtype=np.int64)
    free = _not_tables(direct_map)
    aside = _zero_frames_at_top(memory, free.within(chosen), wanted)
    above = free.without(memory.ranges).without(FrameRanges.of([(0, LOW_MEMORY_PFN)]))
    lacking = above.lowest(wanted - len(aside)).frames()
    return chosen.without(FrameRanges.of_frames(aside)), np.union1d(aside, lacking)


def choose_free(memory: PhysicalMemory, direct_map: DirectMap, saveable: FrameRanges) -> Frames:
    """Frames for page tables beside a given list: plainly mapped and not on it, above the first MiB if there are any.

    Those of the source first; if it has none (an image holds what was saved and nothing else), mapped frames that the
    source lacks: on that machine they are RAM, and free or of no interest to the image. A page table is never free.

    Returns:
        Ascending frames, at most `MAX_SET_ASIDE`, the lowest.
    """
    free = _not_tables(direct_map).without(saveable)
    for beside in (memory.ranges.within(free), free.without(memory.ranges)):
        for floor in (LOW_MEMORY_PFN, 0):
            found = beside.without(FrameRanges.of([(0, floor)]))
            if len(found):
                return found.lowest(MAX_SET_ASIDE).frames()
    return np.empty(0, dtype=np.int64)


def _not_tables(direct_map: DirectMap) -> FrameRanges:
    """Plainly mapped frames that hold no page table.

    A table can be all zeroes (the fixmap's second one, as long as none of its slots is used): only the tables above it
    tell it from a free frame.
    """
    mapped = frames_in_state(direct_map, FrameState.PRESENT).within(FrameRanges.of([(0, direct_map.end_pfn)]))
    return mapped.without(FrameRanges.of_frames(direct_map.tables.frames()))


def splits_possible(direct_map: DirectMap) -> int:
    """How many tables it takes to split every not-present large page of the direct map down to 4K."""
    spans = direct_map.spans
    not_present = spans.state == Stop.NOT_PRESENT.code
    total = 0
    for level, tables in ((Level.PMD, 1), (Level.PUD, 1 + ENTRIES)):
        pages = int(spans.pages[not_present & (spans.level == level)].sum())
        total += pages // level.pages * tables
    return total


def _zero_frames_at_top(memory: PhysicalMemory, among: FrameRanges, wanted: int) -> Frames:
    """The highest zero-filled frames, ascending; fewer than wanted if they are not found in 1 GiB."""
    found: list[Frames] = []
    missing = wanted
    left = SEARCH_PAGES
    for start, pages in reversed(list(among)):
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


def _ascending(pfns: ArrayLike) -> Frames:
    """Return frames as a read-only int64 array. Raise HibernautError if they do not ascend."""
    frames = np.array(pfns, dtype=np.int64).reshape(-1)
    wrong = np.flatnonzero(np.diff(frames) <= 0)
    if len(wrong):
        raise HibernautError(
            f"frames must ascend without repeats: {int(frames[wrong[0] + 1]):#x} follows {int(frames[wrong[0]]):#x}"
        )
    if len(frames) and (frames[0] < 0 or frames[-1] >= 1 << 40):
        raise HibernautError(f"frame {int(frames[0] if frames[0] < 0 else frames[-1]):#x} cannot exist")
    frames.flags.writeable = False
    return frames
