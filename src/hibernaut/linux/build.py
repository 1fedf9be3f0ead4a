# SPDX-License-Identifier: GPL-2.0-or-later
"""Simulated machines: real page-table bytes in simulated RAM, laid out as asked.

The direct map is made as the kernel makes it at boot (arch/x86/mm/init.c, `split_mem_range`: in every range of RAM the
largest pages that fit), the not-present holes afterwards by the same attribute changes that a kernel uses. What the
machine's RAM holds besides tables is a formula of the frame number (`formula.py`), so that size costs little.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from hibernaut.errors import HibernautError
from hibernaut.linux.allocator import FreePages
from hibernaut.linux.environment import Environment
from hibernaut.linux.fixmap import FIXMAP_SLOTS, fix_to_virt
from hibernaut.linux.formula import FormulaMemory
from hibernaut.linux.machine import Machine
from hibernaut.linux.mm_init import init_zone
from hibernaut.linux.mmzone import SIZEOF_STRUCT_PAGE, AllocatorPlaces, mem_map_page
from hibernaut.linux.page_alloc import BuddyAllocator, zone_batchsize
from hibernaut.linux.page_flags import PageFlags
from hibernaut.linux.pgtable import KERNPG_TABLE, PAGE_KERNEL, PAGE_KERNEL_LARGE, PAGE_TABLE
from hibernaut.linux.rules import KernelRules
from hibernaut.linux.set_memory import set_direct_map_invalid_noflush, set_memory_np
from hibernaut.memory.physical import PAGE_SHIFT, PAGE_SIZE, FrameRanges, Frames, Overlay, PhysicalMemory, Segment
from hibernaut.paging.entries import ENTRIES, Entries, Level

__all__ = [
    "PAGE_OFFSET",
    "HoleKind",
    "HoleSpec",
    "Layout",
    "build_machine",
    "hole_1g",
    "hole_2m",
    "hole_4k",
    "no_table",
    "none_entries",
]

PAGE_OFFSET = {4: 0xFFFF_8880_0000_0000, 5: 0xFF11_0000_0000_0000}
"""Where the direct map begins without KASLR, by levels (arch/x86/include/asm/page_64_types.h)."""

PCP_HIGH_BATCHES = 6
"""A CPU keeps at most so many batches (`high` of per_cpu_pages; the kernel's depends on watermarks and CPUs)."""

LOWEST_TABLE_PFN = 0x10
"""Frame 0 and its neighbours belong to the firmware."""


class HoleKind(StrEnum):
    """What the direct map has for the frames of a hole."""

    NOT_PRESENT = "not-present"
    """Entries without PRESENT, made by one change of the whole hole: large where it covers large pages."""
    INVALID = "invalid"
    """4K entries without PRESENT, made page by page by set_direct_map_invalid_noflush, as secret memory is."""
    NONE = "none"
    """Zero entries in a PTE table that exists."""
    NO_TABLE = "no-table"
    """No PTE table: a zero entry at PMD level or above."""


@dataclass(frozen=True)
class HoleSpec:
    """Frames that the direct map does not plainly map.

    Attributes:
        start_pfn: first frame.
        pages: how many.
        kind: what stands there instead.
    """

    start_pfn: int
    pages: int
    kind: HoleKind

    @property
    def end_pfn(self) -> int:
        """One past the last frame."""
        return self.start_pfn + self.pages


def hole_4k(start_pfn: int, pages: int = 1) -> HoleSpec:
    """Return a hole of single pages not present, each by its own 4K entry."""
    return HoleSpec(start_pfn, pages, HoleKind.INVALID)


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
    """A machine to build.

    Attributes:
        ram: (first frame, pages) of each range of RAM, gaps allowed.
        levels: 4 or 5.
        base: where the direct map begins, a multiple of 1 GiB; the kernel's default if None.
        largest: the largest pages the CPU offers: PTE, PMD or PUD.
        holes: disjoint holes within the RAM.
        tables: where the page tables lie, in one piece: "low", "high", or a first frame.
        tables_of: (first frame, pages, place): the tables below the root that speak of any of these frames lie
            elsewhere, in a piece of their own; of two that claim a table the first has it.
        mem_map: where the array of `struct page` lies, likewise; None: behind the tables.
        zone: where the page with the zone's free lists lies, likewise.
        pcp: where the pages with each CPU's own list lie, likewise.
        free: where the free pages lie, likewise.
        free_pages: how many frames are left free for tables that are split later.
        cpus: how many CPUs are online.
        reserved: frames marked PageReserved, as (first frame, pages).
        offline: frames marked PageOffline.
        guard: guard pages.
        nosave: frames that are never saved.
        fixmap: whether there are static tables for the fixmap.
        data: bytes of some frames instead of the formula's.
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

    @property
    def page_offset(self) -> int:
        """Where the direct map begins."""
        return PAGE_OFFSET[self.levels] if self.base is None else self.base


def build_machine(layout: Layout, environment: Environment | None = None, rules: KernelRules | None = None) -> Machine:
    """The machine of a layout. Every frame of its RAM is in use, but for the free pages; its allocator runs in it.

    Args:
        layout: what to build.
        environment: answers the choices of what runs on it later; building itself never asks.
        rules: of its kernel; those of the oldest line (6.1) by default.

    Raises:
        HibernautError: a layout that cannot be: holes that overlap or lie outside the RAM, no room for the tables, ...
    """
    ram = FrameRanges.of(layout.ram)
    _check(layout, ram)
    tables = _TableBuilder(layout, ram)
    holes = [[hole for hole in layout.holes if _group(layout, hole.start_pfn) == group] for group in tables.groups]
    reserve = [_splits_at_most(own) for own in holes]
    places = _Places.of(layout, ram, [count + more for count, more in zip(tables.counts, reserve, strict=True)])
    segments = [*tables.fill(places.tables), *layout.data]
    mem_map = Segment(places.mem_map, np.broadcast_to(mem_map_page(), (places.mem_map_pages, PAGE_SIZE)))
    memory: PhysicalMemory = FormulaMemory(ram, [*segments, mem_map])
    cr3 = places.tables[0] << PAGE_SHIFT
    builder = Machine(
        Overlay(memory),
        cr3=cr3,
        levels=layout.levels,
        base=layout.page_offset,
        end_pfn=ram.end,
        allocator=FreePages(()),
        rules=rules,
    )
    for own, place, count, more in zip(holes, places.tables, tables.counts, reserve, strict=True):
        builder.allocator = FreePages(np.arange(place + count, place + count + more))
        _apply_holes(own, builder)
    where = AllocatorPlaces(
        places.mem_map << PAGE_SHIFT,
        places.zone << PAGE_SHIFT,
        tuple(places.pcp + cpu << PAGE_SHIFT for cpu in range(layout.cpus)),
        ram.end,
    )
    batch = max(1, zone_batchsize(ram.total_pages))
    init_zone(builder, where, batch=batch, high=PCP_HIGH_BATCHES * batch)
    buddy = BuddyAllocator(builder, where)
    buddy.free_pages_memory(places.free, layout.free_pages)
    written = builder.memory.written
    segments = [*_segments(written, builder.memory), *segments, mem_map]
    machine = Machine(
        Overlay(FormulaMemory(ram, segments)),
        cr3=cr3,
        levels=layout.levels,
        base=layout.page_offset,
        end_pfn=ram.end,
        allocator=FreePages(()),
        page_flags=PageFlags(
            ram,
            reserved=FrameRanges.of(layout.reserved),
            offline=FrameRanges.of(layout.offline),
            guard=FrameRanges.of(layout.guard),
            nosave=FrameRanges.of(layout.nosave),
        ),
        environment=environment,
        rules=rules,
        cpus=layout.cpus,
    )
    machine.allocator = BuddyAllocator(machine, where)
    return machine


def _segments(written: Frames, memory: PhysicalMemory) -> list[Segment]:
    """Frames as segments, one for each run of neighbours."""
    return [
        Segment(start, memory.gather(np.arange(start, start + pages))[0])
        for start, pages in FrameRanges.of_frames(written)
    ]


@dataclass(frozen=True)
class _Places:
    """First frames of what a machine's kernel has in RAM."""

    tables: list[int]
    mem_map: int
    mem_map_pages: int
    zone: int
    pcp: int
    free: int

    @classmethod
    def of(cls, layout: Layout, ram: FrameRanges, table_pages: Sequence[int]) -> _Places:
        """Everything without a place of its own lies behind the tables, in this order. Raises HibernautError.

        Args:
            layout: where things are to lie.
            ram: all of it.
            table_pages: of the tables in general, then of each of `layout.tables_of`.
        """
        mem_map_pages = -(-ram.end * SIZEOF_STRUCT_PAGE // PAGE_SIZE)
        parts = {
            "mem_map": (layout.mem_map, mem_map_pages),
            "zone": (layout.zone, 1),
            "pcp": (layout.pcp, layout.cpus),
            "free": (layout.free, layout.free_pages),
        }
        together = table_pages[0] + sum(pages for place, pages in parts.values() if place is None)
        busy = [(hole.start_pfn, hole.end_pfn) for hole in layout.holes]
        busy += [(segment.start, segment.end) for segment in layout.data]
        special = (*layout.reserved, *layout.offline, *layout.guard, *layout.nosave)
        busy += [(start, start + pages) for start, pages in special]
        tables = [_place(layout.tables, "tables", ram, busy, together)]
        busy.append((tables[0], tables[0] + together))
        for (first, _, where), pages in zip(layout.tables_of, table_pages[1:], strict=True):
            tables.append(_place(where, f"tables of frame {first:#x}", ram, busy, pages))
            busy.append((tables[-1], tables[-1] + pages))
        found: dict[str, int] = {}
        at = tables[0] + table_pages[0]
        for name, (place, pages) in parts.items():
            if place is None:
                found[name] = at
                at += pages
            else:
                found[name] = _place(place, name, ram, busy, pages)
                busy.append((found[name], found[name] + pages))
        return cls(tables=tables, mem_map_pages=mem_map_pages, **found)


def _group(layout: Layout, pfn: int) -> int:
    """Which of `Layout.tables_of` a frame belongs to, counted from 1; 0 if to none."""
    for number, (start, pages, _) in enumerate(layout.tables_of, 1):
        if start <= pfn < start + pages:
            return number
    return 0


def _check(layout: Layout, ram: FrameRanges) -> None:
    if layout.levels not in PAGE_OFFSET:
        raise HibernautError(f"a machine has 4 or 5 levels of page tables, not {layout.levels}")
    base, end = layout.page_offset, layout.page_offset + (ram.end << 12)
    lowest = (1 << 64) - (1 << (11 + 9 * layout.levels))
    if base % (1 << Level.PUD.shift) or base < lowest or end > fix_to_virt(FIXMAP_SLOTS - 1) & ~((1 << 30) - 1):
        raise HibernautError(f"the direct map cannot reach from {base:#x} to {end:#x}")
    if not len(ram) or layout.largest not in (Level.PTE, Level.PMD, Level.PUD):
        raise HibernautError("a machine needs RAM, and pages of 4K, 2M or 1G")
    holes = sorted(layout.holes, key=lambda hole: hole.start_pfn)
    for hole in holes:
        if hole.pages < 1 or _within(ram, hole) is False:
            raise HibernautError(f"hole of {hole.pages} pages at frame {hole.start_pfn:#x} is not within the RAM")
        if hole.kind == HoleKind.NO_TABLE and (hole.start_pfn % ENTRIES or hole.pages % ENTRIES):
            raise HibernautError(f"only whole 2 MiB blocks can lack a table: frame {hole.start_pfn:#x}")
    for one, other in itertools.pairwise(holes):
        if other.start_pfn < one.end_pfn:
            raise HibernautError(f"holes overlap at frame {other.start_pfn:#x}")


def _within(ram: FrameRanges, hole: HoleSpec) -> bool:
    row = int(np.searchsorted(ram.starts, hole.start_pfn, side="right")) - 1
    return row >= 0 and hole.end_pfn <= int(ram.starts[row] + ram.pages[row])


def _splits_at_most(holes: Sequence[HoleSpec]) -> int:
    """Tables that making the holes can take: two partial 2M and two partial 1G pages each, and 4K ones one a block."""
    total = 0
    for hole in holes:
        if hole.kind in (HoleKind.NOT_PRESENT, HoleKind.INVALID):
            blocks = {hole.start_pfn // ENTRIES, (hole.end_pfn - 1) // ENTRIES}
            edges = len(blocks) if hole.kind == HoleKind.NOT_PRESENT else max(blocks) - min(blocks) + 1
            total += edges + len({hole.start_pfn >> 18, (hole.end_pfn - 1) >> 18})
    return total


def _place(place: str | int, name: str, ram: FrameRanges, busy: Sequence[tuple[int, int]], pages: int) -> int:
    """First frame of a piece of RAM that has room, free of what is busy."""
    room = [(max(start, LOWEST_TABLE_PFN), end) for start, end in _minus(ram, busy)]
    fitting = [(start, end) for start, end in room if end - start >= pages]
    if isinstance(place, int):
        if any(start <= place and place + pages <= end for start, end in room):
            return place
        raise HibernautError(f"no room for {pages} pages ({name}) at frame {place:#x}")
    if not fitting or place not in ("low", "high"):
        raise HibernautError(f'no room for {pages} pages ({name}), "low", "high" or at a frame: {place}')
    return fitting[0][0] if place == "low" else fitting[-1][1] - pages


def _minus(ram: FrameRanges, busy: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What is left of the RAM without some ranges, all as (first, one past the last), ascending."""
    ordered = sorted(busy)
    at = 0
    for start, pages in ram:
        first, end = start, start + pages
        while at < len(ordered) and ordered[at][1] <= first:
            at += 1
        row = at
        while row < len(ordered) and ordered[row][0] < end:
            if first < ordered[row][0]:
                yield first, ordered[row][0]
            first = max(first, ordered[row][1])
            row += 1
        if first < end:
            yield first, end


def _leaf_runs(start: int, end: int, largest: Level) -> Iterator[tuple[Level, int, int]]:
    """`split_mem_range`: (level, first frame, number of entries), the largest pages that fit, smaller ones around."""
    if largest == Level.PTE:
        if start < end:
            yield Level.PTE, start, end - start
        return
    first = -(-start // largest.pages) * largest.pages
    last = end // largest.pages * largest.pages
    smaller = Level(largest - 1)
    if first >= last:
        yield from _leaf_runs(start, end, smaller)
        return
    yield from _leaf_runs(start, first, smaller)
    yield largest, first, (last - first) // largest.pages
    yield from _leaf_runs(last, end, smaller)


class _TableBuilder:
    """Which tables there are, and their entries. A table is known by its level and its key: address >> its span."""

    def __init__(self, layout: Layout, ram: FrameRanges) -> None:
        self._root = Level(layout.levels)
        self._first_page = _page_number(layout.page_offset, layout.levels)
        absent = [hole for hole in layout.holes if hole.kind in (HoleKind.NONE, HoleKind.NO_TABLE)]
        mapped = _minus(ram, [(hole.start_pfn, hole.end_pfn) for hole in absent])
        self._runs = [run for start, end in mapped for run in _leaf_runs(start, end, layout.largest)]
        needed: dict[Level, list[Frames]] = {level: [] for level in Level if level <= self._root}
        for level, pfn, count in self._runs:
            first = (self._first_page + pfn) >> (9 * (level - 1))
            needed[level].append(np.arange(first >> 9, ((first + count - 1) >> 9) + 1))
        for hole in absent:
            first = self._first_page + hole.start_pfn
            level = Level.PTE if hole.kind == HoleKind.NONE else Level.PMD
            shift = 9 * level
            needed[level].append(np.arange(first >> shift, ((first + hole.pages - 1) >> shift) + 1))
        if layout.fixmap:
            slots = [_page_number(fix_to_virt(index), layout.levels) >> 9 for index in range(0, FIXMAP_SLOTS, ENTRIES)]
            needed[Level.PTE].append(np.array(slots))
        self._keys: dict[Level, Frames] = {}
        for level in needed:
            self._keys[level] = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *needed[level]]))
            if level < self._root:
                needed[Level(level + 1)].append(self._keys[level] >> 9)
        self._group = np.concatenate([self._groups_of(level, layout) for level in reversed(self._keys)])
        self.groups = range(len(layout.tables_of) + 1)
        self.counts: list[int] = np.bincount(self._group, minlength=len(self.groups)).tolist()

    def _groups_of(self, level: Level, layout: Layout) -> Frames:
        """Which of `Layout.tables_of` has each table of a level, counted from 1; 0: none."""
        keys = self._keys[level]
        groups = np.zeros(len(keys), dtype=np.int64)
        for number, (start, pages, _) in reversed(list(enumerate(layout.tables_of, 1))):
            first, last = self._first_page + start, self._first_page + start + pages - 1
            if level < self._root:
                groups[(keys >= first >> 9 * level) & (keys <= last >> 9 * level)] = number
        return groups

    def fill(self, places: Sequence[int]) -> list[Segment]:
        """All tables, as they lie: those of each group from its first frame on, the root first, PTE tables last.

        Args:
            places: first frame of each group.
        """
        where = np.empty(len(self._group), dtype=np.int64)
        for group, place in enumerate(places):
            where[self._group == group] = place + np.arange(self.counts[group])
        tables = self._entries(where)
        return [
            Segment(place, tables[self._group == group].view(np.uint8).reshape(-1, PAGE_SIZE))
            for group, place in enumerate(places)
            if self.counts[group]
        ]

    def _entries(self, where: Frames) -> Entries:
        """The entries of all tables, shape (tables, 512), if they lie in these frames."""
        tables = np.zeros((len(where), ENTRIES), dtype="<u8")
        first: dict[Level, int] = {}
        at = 0
        for level in reversed(self._keys):
            first[level] = at
            at += len(self._keys[level])
        for level, keys in self._keys.items():
            if level < self._root:
                parent = Level(level + 1)
                rows = first[parent] + np.searchsorted(self._keys[parent], keys >> 9)
                frames = where[first[level] : first[level] + len(keys)].astype(np.uint64) << np.uint64(12)
                flags = PAGE_TABLE if parent == self._root else KERNPG_TABLE
                tables[rows, keys & (ENTRIES - 1)] = frames | np.uint64(flags)
        for level, pfn, count in self._runs:
            index = (self._first_page + pfn) >> (9 * (level - 1))
            # Neighbouring addresses of a run lie in neighbouring tables, and these in neighbouring rows.
            row = first[level] + int(np.searchsorted(self._keys[level], index >> 9))
            start = row * ENTRIES + (index & (ENTRIES - 1))
            frames = (np.uint64(pfn) + np.arange(count, dtype=np.uint64) * np.uint64(level.pages)) << np.uint64(12)
            flags = PAGE_KERNEL if level == Level.PTE else PAGE_KERNEL_LARGE
            tables.reshape(-1)[start : start + count] = frames | np.uint64(flags)
        return tables


def _page_number(vaddr: int, levels: int) -> int:
    """The part of an address that the tables decode."""
    return (vaddr & ((1 << (12 + 9 * levels)) - 1)) >> 12


def _apply_holes(holes: Sequence[HoleSpec], machine: Machine) -> None:
    """Make the not-present holes as the kernel does."""
    for hole in holes:
        if hole.kind == HoleKind.NOT_PRESENT:
            set_memory_np(machine, machine.vaddr(hole.start_pfn), hole.pages)
        elif hole.kind == HoleKind.INVALID:
            for pfn in range(hole.start_pfn, hole.end_pfn):
                set_direct_map_invalid_noflush(machine, pfn)
