# SPDX-License-Identifier: GPL-2.0-or-later
"""Counters of the direct map's entries: `direct_pages_count` of arch/x86/mm/pat/set_memory.c."""

from __future__ import annotations

from hibernaut.errors import FormatError
from hibernaut.linux.direct_map import START_KERNEL_MAP
from hibernaut.linux.machine import Machine
from hibernaut.memory.page import PAGE_SHIFT
from hibernaut.paging.entries import Level
from hibernaut.paging.spans import Stop

__all__ = ["DIRECT_MAP_LEVELS", "collapse_page_count", "direct_gbpages", "direct_pages_count", "split_page_count"]

DIRECT_MAP_LEVELS = (Level.PTE, Level.PMD, Level.PUD)
"""Levels at which the direct map has leaves."""

KERNEL_IMAGE_SIZE = 1 << 30
"""Largest extent of the kernel image's mapping, with KASLR (arch/x86/include/asm/page_64_types.h)."""


def direct_pages_count(machine: Machine) -> dict[Level, int]:
    """Return the number of entries of each size in the direct map, as the kernel counts them (DirectMap4k, 2M, 1G).

    The tables are counted when the numbers are first needed, at the latest before the first split. From then on only
    splits and collapses change the counters, as in the kernel, including those of the kernel image's mapping. Entries
    that become not present still count; zero entries never do.

    Raises:
        FormatError: the tables are hostile.
    """
    counts = _counts(machine)
    return {level: counts.get(level, 0) for level in DIRECT_MAP_LEVELS}


def _counts(machine: Machine) -> dict[Level, int]:
    """Return the counters. The one for 1G exists only if there were such entries, which shows that the CPU has them."""
    if machine.direct_pages_count is None:
        spans = machine.direct_map.spans.of_state(Stop.PRESENT, Stop.NOT_PRESENT)
        counts = {level: -(-int(spans.pages[spans.level == level].sum()) // level.pages) for level in DIRECT_MAP_LEVELS}
        if not counts[Level.PUD]:
            del counts[Level.PUD]
        machine.direct_pages_count = counts
    return machine.direct_pages_count


def direct_gbpages(machine: Machine) -> bool:
    """Return whether the direct map may have 1G entries: it had some when its entries were counted."""
    return Level.PUD in _counts(machine)


def _counted(machine: Machine, vaddr: int) -> dict[Level, int] | None:
    """Return the counters if a change at this address counts: in the direct map, or in the kernel image's mapping."""
    pfn = (vaddr - machine.base) >> PAGE_SHIFT
    image = machine.kernel_image
    if image is not None and START_KERNEL_MAP <= vaddr < START_KERNEL_MAP + KERNEL_IMAGE_SIZE:
        pfn = image.start_pfn + ((vaddr - image.vaddr) >> PAGE_SHIFT)
    if not 0 <= pfn < machine.end_pfn:
        return None
    try:
        return _counts(machine)
    except FormatError as refusal:
        machine.log.note(f"the direct map's entries cannot be counted: {refusal}")
        return None


def split_page_count(machine: Machine, vaddr: int, level: Level) -> None:
    """Count a split of an entry of this level."""
    counts = _counted(machine, vaddr)
    if counts is None or not counts.get(level):
        return
    counts[level] -= 1
    counts[Level(level - 1)] += Level.PMD.pages


def collapse_page_count(machine: Machine, vaddr: int, level: Level) -> None:
    """Count a collapse to an entry of this level."""
    counts = _counted(machine, vaddr)
    if counts is None:
        return
    counts[level] += 1
    counts[Level(level - 1)] -= Level.PMD.pages
