# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines on the memory of a source, with page frames to save and page frames for page tables.

The kernel decides by `struct page` (`saveable_page` in kernel/power/snapshot.c: not free, not nosave, not offline, not
a guard page, not reserved-and-not-present). Where that is not read, the direct map replaces it: memory
that the kernel never uses has no entry.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from hibernaut.errors import HibernautError
from hibernaut.linux.allocator import FreePages
from hibernaut.linux.direct_map import DirectMap, FrameState, frames_in_state, writable_holes
from hibernaut.linux.environment import Environment
from hibernaut.linux.machine import Machine
from hibernaut.linux.owners import UNKNOWN, OwnedPages
from hibernaut.linux.rules import KernelRules
from hibernaut.memory.overlay import Overlay
from hibernaut.memory.page import CHUNK_PAGES, PAGE_SHIFT, Pfns
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.ranges import FrameRanges
from hibernaut.paging.entries import ENTRIES, Level
from hibernaut.paging.spans import Stop

__all__ = ["MAX_SET_ASIDE", "choose_free", "choose_saveable", "machine_from_memory", "splits_possible"]

MAX_SET_ASIDE = 4096
"""Most page frames set aside for page tables: 16 MiB of tables, which split 8 GiB of not-present memory."""

LOW_MEMORY_PFN = 0x100
"""The first MiB belongs to the firmware: page tables go elsewhere if any other frame is free."""

SEARCH_PAGES = 1 << 18
"""Pages searched for zero-filled ones, from the top down: 1 GiB."""


def machine_from_memory(
    memory: PhysicalMemory,
    cr3: int,
    levels: int | None = None,
    saveable: FrameRanges | ArrayLike | None = None,
    environment: Environment | None = None,
    free: ArrayLike | None = None,
    rules: KernelRules | None = None,
    direct_map: DirectMap | None = None,
    encryption: int = 0,
) -> Machine:
    """Return a machine on existing memory: a dump, an image, another machine's memory. The source is never written.

    The allocator state in the memory stays unchanged: pages for tables come from a list beside the memory. A page to
    save whose 4K entry lost PRESENT and kept RW has an owner that restores PRESENT alone, as far as the entry tells.

    Args:
        memory: the source.
        cr3: physical address of the root of the kernel's page tables.
        levels: levels of paging, 4 or 5; detected by default.
        saveable: page frames to save, ascending. Default: every frame of the source for which the direct map has an
            entry, present or not (reserved memory has none), less those set aside for `free`.
        environment: answers every choice; by default no allocation fails.
        free: page frame numbers for page tables, ascending. Default: frames of the source that are plainly mapped and
            not in `saveable`; if that is the default too, zero-filled frames at the top of RAM are set aside, as many
            as splitting every not-present large page takes, at most 4096.
        rules: rules of its kernel line; by default those of the oldest (6.1).
        direct_map: the direct map under `cr3`, if it is known.
        encryption: mask of the bit of encrypted memory in entries, see `PageTables`.

    Raises:
        FormatError: no direct map is found.
        HibernautError: a list of frames does not ascend, or a frame to save is not in the source.
    """
    overlay = Overlay(memory)
    if direct_map is None:
        direct_map = DirectMap.find(overlay, cr3, levels, encryption=encryption)
    if saveable is None:
        chosen, aside = choose_saveable(overlay, direct_map, set_aside=free is None)
        free = aside if free is None else free
    else:
        chosen = saveable if isinstance(saveable, FrameRanges) else FrameRanges.of_pfns(_ascending(saveable))
        free = choose_free(overlay, direct_map, chosen) if free is None else free
    if chosen.end and direct_map.base + ((chosen.end - 1) << PAGE_SHIFT) >= 1 << 64:
        raise HibernautError(f"frame {chosen.end - 1:#x} has no address in the direct map at {direct_map.base:#x}")
    missing = chosen.without(overlay.ranges)
    if len(missing):
        raise HibernautError(
            f"the source lacks {missing.total_pages} of {chosen.total_pages} frames to save, the first is "
            f"{int(missing.starts[0]):#x}",
            advice="give a dump that is complete, and the image of the same machine",
        )
    machine = Machine(
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
        encryption=encryption,
    )
    writable = writable_holes(direct_map).within(chosen)
    machine.owners = (OwnedPages(UNKNOWN, writable),) if len(writable) else ()
    return machine


def choose_saveable(memory: PhysicalMemory, direct_map: DirectMap, *, set_aside: bool) -> tuple[FrameRanges, Pfns]:
    """Return the frames of the memory for which the direct map has an entry, and frames set aside for tables.

    Args:
        memory: the source.
        direct_map: its direct map.
        set_aside: whether to set frames aside.

    Returns:
        The frames to save, and the page frame numbers set aside, ascending int64: as many as splitting every
        not-present large page takes, at most `MAX_SET_ASIDE`. They are zero-filled, plainly mapped and not page tables,
        from the top of memory; if there are too few, mapped frames that the source lacks, see `choose_free`.
    """
    none = frames_in_state(direct_map, FrameState.NONE_IN_TABLE, FrameState.NONE_ABOVE)
    chosen = memory.ranges.within(FrameRanges.of([(0, direct_map.end_pfn)])).without(none)
    wanted = min(splits_possible(direct_map), MAX_SET_ASIDE) if set_aside else 0
    if not wanted:
        return chosen, np.empty(0, dtype=np.int64)
    free = _not_tables(direct_map)
    aside = _zero_frames_at_top(memory, free.within(chosen), wanted)
    above = free.without(memory.ranges).without(FrameRanges.of([(0, LOW_MEMORY_PFN)]))
    lacking = above.lowest(wanted - len(aside)).pfns()
    return chosen.without(FrameRanges.of_pfns(aside)), np.union1d(aside, lacking)


def choose_free(memory: PhysicalMemory, direct_map: DirectMap, saveable: FrameRanges) -> Pfns:
    """Return frames for page tables beside a given list: plainly mapped and not on it, above the first MiB if possible.

    Frames of the source come first. If it has none (an image holds the saved pages only), mapped frames that the source
    lacks are used: on that machine they are RAM, and free or irrelevant to the image. A page table is never free.

    Returns:
        The lowest page frame numbers, ascending int64, at most `MAX_SET_ASIDE`.
    """
    free = _not_tables(direct_map).without(saveable)
    for beside in (memory.ranges.within(free), free.without(memory.ranges)):
        for floor in (LOW_MEMORY_PFN, 0):
            found = beside.without(FrameRanges.of([(0, floor)]))
            if len(found):
                return found.lowest(MAX_SET_ASIDE).pfns()
    return np.empty(0, dtype=np.int64)


def _not_tables(direct_map: DirectMap) -> FrameRanges:
    """Return the plainly mapped frames that hold no page table.

    A table can be all zeroes (the fixmap's second one, as long as none of its slots is used): only the tables above it
    distinguish it from a free frame.
    """
    mapped = frames_in_state(direct_map, FrameState.PRESENT).within(FrameRanges.of([(0, direct_map.end_pfn)]))
    return mapped.without(FrameRanges.of_pfns(direct_map.tables.pfns()))


def splits_possible(direct_map: DirectMap) -> int:
    """Return the number of tables that splitting every not-present large page of the direct map down to 4K takes."""
    spans = direct_map.spans
    not_present = spans.state == Stop.NOT_PRESENT.code
    total = 0
    for level, tables in ((Level.PMD, 1), (Level.PUD, 1 + ENTRIES)):
        nr_pages = int(spans.pages[not_present & (spans.level == level)].sum())
        total += nr_pages // level.pages * tables
    return total


def _zero_frames_at_top(memory: PhysicalMemory, among: FrameRanges, wanted: int) -> Pfns:
    """Return the highest zero-filled frames, ascending; fewer than wanted if `SEARCH_PAGES` hold fewer."""
    found: list[Pfns] = []
    missing = wanted
    left = SEARCH_PAGES
    for start, nr_pages in reversed(list(among)):
        end = start + nr_pages
        while missing > 0 and left > 0 and end > start:
            pfns = np.arange(max(start, end - CHUNK_PAGES), end, dtype=np.int64)
            end -= len(pfns)
            left -= len(pfns)
            pages, present = memory.gather(pfns)
            empty = present & ~pages.view(np.uint64).any(axis=1)
            found.insert(0, pfns[empty][-missing:])
            missing -= len(found[0])
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def _ascending(pfns: ArrayLike) -> Pfns:
    """Return page frame numbers as a read-only int64 array. Raise HibernautError if they do not ascend."""
    ascending = np.array(pfns, dtype=np.int64).reshape(-1)
    wrong = np.flatnonzero(np.diff(ascending) <= 0)
    if len(wrong):
        raise HibernautError(
            f"frames must ascend without repeats: {int(ascending[wrong[0] + 1]):#x} follows "
            f"{int(ascending[wrong[0]]):#x}"
        )
    if len(ascending) and (ascending[0] < 0 or ascending[-1] >= 1 << 40):
        raise HibernautError(f"frame {int(ascending[0] if ascending[0] < 0 else ascending[-1]):#x} cannot exist")
    ascending.flags.writeable = False
    return ascending
