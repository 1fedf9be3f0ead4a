# SPDX-License-Identifier: GPL-2.0-or-later
"""Layouts of simulated machines: RAM, holes of the direct map, places of the kernel's own pages."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from hibernaut.errors import HibernautError
from hibernaut.linux.fixmap import FIXMAP_SLOTS, fix_to_virt
from hibernaut.linux.owners import SECRETMEM, SET_MEMORY_P, Owner
from hibernaut.memory.page import PAGE_SHIFT
from hibernaut.memory.ranges import FrameRanges
from hibernaut.memory.segments import Segment
from hibernaut.paging.entries import ENTRIES, Level

__all__ = [
    "MOST_BATCH",
    "PAGE_OFFSET",
    "HoleKind",
    "HoleSpec",
    "Layout",
    "hole_1g",
    "hole_2m",
    "hole_4k",
    "hole_4k_np",
    "no_table",
    "none_entries",
]

PAGE_OFFSET = MappingProxyType({4: 0xFFFF_8880_0000_0000, 5: 0xFF11_0000_0000_0000})
"""Base of the direct map without KASLR, by levels (arch/x86/include/asm/page_64_types.h)."""


MOST_BATCH = 2048
"""The most pages that a CPU's list takes at a time; kernels that double a batch of 63 take up to 2016."""


class HoleKind(StrEnum):
    """Kind of a hole in the direct map."""

    NOT_PRESENT = "not-present"
    """Entries without PRESENT, by one change of the whole hole: large ones where it covers large pages."""
    INVALID = "invalid"
    """4K entries without PRESENT, page by page with set_direct_map_invalid_noflush, as for secret memory."""
    INVALID_AREA = "invalid-area"
    """Entries without PRESENT and RW, as set_area_direct_map makes them: one large one, or 4K entries, by the rules."""
    INVALID_FOLIO = "invalid-folio"
    """Entries without PRESENT and RW, by set_direct_map_valid_noflush: large ones where one request covers them."""
    PROTECTED = "protected"
    """4K entries that lost PRESENT alone, page by page with kfence_protect_page, as in KFENCE's pool."""
    NONE = "none"
    """Zero entries in a PTE table that exists."""
    NO_TABLE = "no-table"
    """No PTE table: a zero entry at PMD level or above."""


@dataclass(frozen=True)
class HoleSpec:
    """Frames that the direct map does not plainly map.

    Attributes:
        start_pfn: first frame.
        pages: number of frames.
        kind: kind of the hole.
        owner: the code that took the frames out, and that uses them next; None if it does nothing of its own.
    """

    start_pfn: int
    pages: int
    kind: HoleKind
    owner: Owner | None = None

    @property
    def end_pfn(self) -> int:
        """One past the last frame."""
        return self.start_pfn + self.pages


def hole_4k(start_pfn: int, pages: int = 1) -> HoleSpec:
    """Return a hole of single pages not present and not writable, each by its own 4K entry, as of secret memory."""
    return HoleSpec(start_pfn, pages, HoleKind.INVALID, SECRETMEM)


def hole_4k_np(start_pfn: int, pages: int = 1) -> HoleSpec:
    """Return a hole of single pages that lost PRESENT alone (`set_memory_np`), and get it back alone (`set_memory_p`).

    Fewer than 512 pages have 4K entries, and so has a hole that covers no large page whole.
    """
    return HoleSpec(start_pfn, pages, HoleKind.NOT_PRESENT, SET_MEMORY_P)


def hole_2m(start_pfn: int, blocks: int = 1) -> HoleSpec:
    """Return a hole of 2 MiB blocks not present, each one PMD entry where the map has pages of 2 MiB or more."""
    return HoleSpec(start_pfn, blocks * Level.PMD.pages, HoleKind.NOT_PRESENT)


def hole_1g(start_pfn: int) -> HoleSpec:
    """Return a hole of 1 GiB not present, one PUD entry where the map has pages of 1 GiB."""
    return HoleSpec(start_pfn, Level.PUD.pages, HoleKind.NOT_PRESENT)


def none_entries(start_pfn: int, pages: int = 1) -> HoleSpec:
    """Return a hole of pages without an entry, in PTE tables that exist."""
    return HoleSpec(start_pfn, pages, HoleKind.NONE)


def no_table(start_pfn: int, blocks: int = 1) -> HoleSpec:
    """Return a hole of 2 MiB blocks without a PTE table."""
    return HoleSpec(start_pfn, blocks * Level.PMD.pages, HoleKind.NO_TABLE)


@dataclass(frozen=True)
class Layout:
    """Description of a machine to build.

    A place is "low" or "high", for the lowest or highest piece of RAM with room, or a first frame.

    Attributes:
        ram: (first frame, pages) of each range of RAM, gaps allowed.
        levels: 4 or 5.
        base: base of the direct map, a multiple of 1 GiB; the kernel's default if None.
        largest: level of the largest pages of the CPU: PTE, PMD or PUD.
        holes: disjoint holes within the RAM.
        tables: place of the page tables, in one piece.
        tables_of: (first frame, pages, place): the tables below the root that decode any of these frames have a place
            of their own; a table that two of them claim belongs to the first.
        mem_map: place of the array of `struct page`; None for the frames behind the tables, as for the next three.
        zone: place of the page with the zone's free lists.
        pcp: place of the pages with each CPU's own list.
        free: place of the free pages.
        free_pages: number of free pages, for tables of later splits.
        min_mark: min mark of the zone, pages: an allocation finds nothing unless more are free; None to check none.
        batch: pages that a CPU's list takes at a time; None for the kernel's number (`zone_batchsize`).
        cpus: number of CPUs that are online.
        reserved: frames marked PageReserved, as (first frame, pages).
        offline: frames marked PageOffline.
        guard: guard pages.
        nosave: frames that are never saved.
        fixmap: whether the fixmap has its static tables.
        data: content of some frames, in place of the formula's.
        second_root: place of a second set of tables for the direct map; None without one.
        unmapped: first frames of free pageblocks (2 MiB) on the list of unmapped ones; no two are neighbours.
    """

    ram: tuple[tuple[int, int], ...]
    levels: int = 4
    base: int | None = None
    largest: Level = Level.PMD
    holes: tuple[HoleSpec, ...] = ()
    tables: str | int = "low"
    tables_of: tuple[tuple[int, int, str | int], ...] = ()
    mem_map: str | int | None = None
    zone: str | int | None = None
    pcp: str | int | None = None
    free: str | int | None = None
    free_pages: int = 64
    cpus: int = 1
    reserved: tuple[tuple[int, int], ...] = ()
    offline: tuple[tuple[int, int], ...] = ()
    guard: tuple[tuple[int, int], ...] = ()
    nosave: tuple[tuple[int, int], ...] = ()
    fixmap: bool = True
    data: tuple[Segment, ...] = ()
    unmapped: tuple[int, ...] = ()
    second_root: str | int | None = None
    min_mark: int | None = None
    batch: int | None = None

    @property
    def page_offset(self) -> int:
        """Base of the direct map."""
        return PAGE_OFFSET[self.levels] if self.base is None else self.base

    def check(self) -> FrameRanges:
        """Check the layout, and return its RAM.

        Raises:
            HibernautError: no machine has such a layout: holes that overlap or lie outside the RAM, for example.
        """
        ram = FrameRanges.of(self.ram)
        if self.levels not in PAGE_OFFSET:
            raise HibernautError(f"a machine has 4 or 5 levels of page tables, not {self.levels}")
        base, end = self.page_offset, self.page_offset + (ram.end << PAGE_SHIFT)
        lowest = (1 << 64) - (1 << (11 + 9 * self.levels))
        if base % (1 << Level.PUD.shift) or base < lowest or end > fix_to_virt(FIXMAP_SLOTS - 1) & ~((1 << 30) - 1):
            raise HibernautError(f"the direct map cannot extend from {base:#x} to {end:#x}")
        if not len(ram) or self.largest not in (Level.PTE, Level.PMD, Level.PUD):
            raise HibernautError("a machine needs RAM, and pages of 4K, 2M or 1G")
        if self.min_mark is not None and (self.min_mark < 0 or self.unmapped):
            raise HibernautError(
                f"min mark {self.min_mark}: expected 0 or more pages, and no free unmapped pageblocks beside it"
            )
        if self.batch is not None and not 1 <= self.batch <= MOST_BATCH:
            raise HibernautError(f"a CPU's list takes {self.batch} pages at a time: expected 1-{MOST_BATCH}")
        holes = sorted(self.holes, key=lambda hole: hole.start_pfn)
        for hole in holes:
            if hole.pages < 1 or ram.end_of(hole.start_pfn) < hole.end_pfn:
                raise HibernautError(f"hole of {hole.pages} pages at frame {hole.start_pfn:#x} is not within the RAM")
            if hole.kind == HoleKind.NO_TABLE and (hole.start_pfn % ENTRIES or hole.pages % ENTRIES):
                raise HibernautError(f"only whole 2 MiB blocks can lack a table: frame {hole.start_pfn:#x}")
        for start in self.unmapped:
            if start % ENTRIES or not any(hole.start_pfn <= start < hole.end_pfn for hole in holes):
                raise HibernautError(f"unmapped pageblock at frame {start:#x}: expected a block of 2 MiB in a hole")
        for one, other in itertools.pairwise(sorted(self.unmapped)):
            if other - one < 2 * ENTRIES:
                raise HibernautError(f"unmapped pageblocks at frames {one:#x} and {other:#x} are neighbours")
        for hole, after in itertools.pairwise(holes):
            if after.start_pfn < hole.end_pfn:
                raise HibernautError(f"holes overlap at frame {after.start_pfn:#x}")
        return ram

    def table_group(self, pfn: int) -> int:
        """Return the number of the element of `tables_of` that a frame belongs to, counted from 1; 0 for none."""
        for number, (start, pages, _) in enumerate(self.tables_of, 1):
            if start <= pfn < start + pages:
                return number
        return 0
