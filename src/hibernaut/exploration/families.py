# SPDX-License-Identifier: GPL-2.0-or-later
"""Families of simulated machines: every layout of some regions, chosen one question at a time.

The machines of a family differ only in the layout questions. From below: a bank of RAM, the gigabyte of each region, a
bank of RAM. The direct map begins where the first region's gigabyte is the last one under its entry of the root, and
the third and the fourth lie 512 GiB higher each: so each has tables of its own from the PUD level down, which can lie
in the lower or the upper bank independently of the others'.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from hibernaut.errors import HibernautError
from hibernaut.exploration.layouts import (
    RegionKind,
    Side,
    Structure,
    ask_batch,
    ask_cpus,
    ask_min_mark,
    ask_region,
    ask_regions,
    ask_remembered,
    ask_side,
    ask_tables,
)
from hibernaut.linux.environment import Environment
from hibernaut.linux.kfence import KFENCE_POOL_PAGES, kfence_object_pfn, kfence_pool
from hibernaut.linux.layout import (
    MOST_BATCH,
    PAGE_OFFSET,
    HoleKind,
    HoleSpec,
    Layout,
    hole_1g,
    hole_2m,
    hole_4k,
    no_table,
    none_entries,
)
from hibernaut.linux.owners import GUEST_MEMFD, VMALLOC
from hibernaut.paging.entries import Level

__all__ = ["MOST_REGIONS", "SAVED_PAGES", "ChosenMachine", "Family", "Region", "region_named"]

GIB = Level.PUD.pages
BLOCK = Level.PMD.pages
MOST_REGIONS = 4
MOST_FREE_PAGES = 4096
BANK_GIB = (1, 1, 1, 10, 19)
"""The size of each bank, by the number of regions: the array of `struct page` of 534 GiB, which three need, takes 8.4
GiB; that of 1064 GiB, which four need, 16.7 GiB."""
FAR_GIB = 512
"""The distance from the second region to the third, and on to the fourth."""

SAVED_PAGES = {
    RegionKind.PAGE: 2,
    RegionKind.BLOCK: 2,
    RegionKind.GIB: 3,
    RegionKind.MIXED: 4,
    RegionKind.NONE: 2,
    RegionKind.NO_TABLE: 2,
    RegionKind.KFENCE: 4,
    RegionKind.KFENCE_AT_BOOT: 1,
    RegionKind.VMALLOC: 2,
    RegionKind.UNMAPPED: 3,
    RegionKind.UNMAPPED_FREE: 0,
}
"""The number of saveable pages of a region, the rest of its large pages being nosave: a first page and one that follows
it, in a GiB and in two unmapped pageblocks also one in another block. In KFENCE's pool these are a guard page, the page
of an object that is free again, its guard page, and the page of an object that is in use. Of a pool made at boot only
the last is saveable: its other pages are reserved and not present. A pageblock that is free is not saved."""

_TABLE_MATTERS = frozenset(RegionKind) - {RegionKind.NO_TABLE, RegionKind.KFENCE_AT_BOOT}
"""The kinds of region whose tables are asked for: a region without a table has none of its own to change, and the
entries of pages that are not saved do not change."""

_POOLS = frozenset({RegionKind.KFENCE, RegionKind.KFENCE_AT_BOOT})
_FREED = frozenset({RegionKind.VMALLOC, RegionKind.UNMAPPED})
"""The kinds of region whose owner resets a block as a whole, and frees its pages."""


def region_named(word: str) -> RegionKind:
    """Return a kind of region by its word. Raises HibernautError, with the known words."""
    for kind in RegionKind:
        if kind.word == word:
            return kind
    raise HibernautError(f"no region {word!r} (known: {', '.join(kind.word for kind in RegionKind)})")


@dataclass(frozen=True)
class Region:
    """A region that was chosen.

    Attributes:
        kind: its kind.
        tables: the side on which its tables lie.
        start_pfn: its first frame.
    """

    kind: RegionKind
    tables: Side
    start_pfn: int

    @property
    def holes(self) -> tuple[HoleSpec, ...]:
        """Its holes in the direct map."""
        start = self.start_pfn
        if self.kind == RegionKind.MIXED:
            return tuple(hole_4k(pfn) for pfn in range(start, start + BLOCK, 2))
        if self.kind == RegionKind.PAGE:
            return (hole_4k(start, 2),)
        if self.kind == RegionKind.NONE:
            return (none_entries(start, 2),)
        if self.kind in _POOLS:
            return kfence_pool(start)
        if self.kind == RegionKind.VMALLOC:
            return (HoleSpec(start, BLOCK, HoleKind.INVALID_AREA, VMALLOC),)
        if self.kind == RegionKind.UNMAPPED:
            return (HoleSpec(start, 2 * BLOCK, HoleKind.INVALID_FOLIO, GUEST_MEMFD),)
        if self.kind == RegionKind.UNMAPPED_FREE:
            return (HoleSpec(start, BLOCK, HoleKind.INVALID_FOLIO),)
        whole = {RegionKind.BLOCK: hole_2m, RegionKind.GIB: hole_1g, RegionKind.NO_TABLE: no_table}[self.kind]
        return (whole(start),)

    @property
    def saved(self) -> tuple[int, ...]:
        """Its saveable frames."""
        start = self.start_pfn
        if self.kind in (RegionKind.GIB, RegionKind.UNMAPPED):
            return start, start + 1, start + BLOCK
        if self.kind in _POOLS:
            in_use = kfence_object_pfn(start, 1)
            return tuple(range(in_use - SAVED_PAGES[self.kind] + 1, in_use + 1))
        return tuple(range(start, start + SAVED_PAGES[self.kind]))

    @property
    def nosave(self) -> tuple[tuple[int, int], ...]:
        """Its other frames, as (first, pages)."""
        start, saved = self.start_pfn, len(self.saved)
        if self.kind == RegionKind.GIB:
            return (start + 2, BLOCK - 2), (start + BLOCK + 1, GIB - BLOCK - 1)
        if self.kind == RegionKind.UNMAPPED:
            return (start + 2, BLOCK - 2), (start + BLOCK + 1, BLOCK - 1)
        if self.kind in (RegionKind.BLOCK, RegionKind.MIXED, RegionKind.NO_TABLE, RegionKind.VMALLOC):
            return ((start + saved, BLOCK - saved),)
        if self.kind in _POOLS:
            first, after = start + 1, kfence_object_pfn(start, 1) + 1
            return (start, first - start), (after, start + KFENCE_POOL_PAGES - after)
        return ()

    @property
    def reserved(self) -> tuple[tuple[int, int], ...]:
        """Its frames that are PageReserved, as (first, pages)."""
        return ((self.start_pfn, KFENCE_POOL_PAGES),) if self.kind == RegionKind.KFENCE_AT_BOOT else ()

    @property
    def unmapped(self) -> tuple[int, ...]:
        """First frames of its free unmapped pageblocks."""
        return (self.start_pfn,) if self.kind == RegionKind.UNMAPPED_FREE else ()

    def __str__(self) -> str:
        return self.kind.word if self.kind not in _TABLE_MATTERS else f"{self.kind.word}:{self.tables.word}"


@dataclass(frozen=True)
class ChosenMachine:
    """A machine of a family, before it is built.

    Attributes:
        regions: the regions that its direct map lacks, ascending.
        remembered: whether the CPU still caches the translation of each region's first page.
        refilled: the number of CPUs that have refilled their own lists.
        where: the side on which each structure of the kernel's lies.
        free_pages: the number of free pages.
        min_mark: the zone's min mark, pages; None without one.
        batch: pages that a CPU's list takes at a time; None for the kernel's number.
    """

    regions: tuple[Region, ...]
    remembered: bool
    refilled: int
    where: Mapping[Structure, Side]
    free_pages: int
    min_mark: int | None
    batch: int | None

    @cached_property
    def layout(self) -> Layout:
        """The machine, made when it is first asked for."""
        geometry, regions, where = _Geometry.of(len(self.regions)), self.regions, self.where
        bank = {Side.ABOVE: "high", Side.BELOW: "low"}
        return Layout(
            ram=geometry.ram,
            base=geometry.base,
            largest=Level.PUD,
            holes=tuple(hole for region in regions for hole in region.holes),
            tables=bank[where[Structure.ROOT]],
            tables_of=tuple((region.start_pfn, GIB, bank[region.tables]) for region in regions),
            mem_map=bank[where[Structure.MEM_MAP]],
            zone=bank[where[Structure.ZONE]],
            pcp=bank[where[Structure.PCP]],
            free=bank[where[Structure.FREE]],
            free_pages=self.free_pages,
            cpus=self.refilled,
            nosave=tuple(span for region in regions for span in region.nosave),
            reserved=tuple(span for region in regions for span in region.reserved),
            second_root=bank[where[Structure.SECOND_ROOT]] if Structure.SECOND_ROOT in where else None,
            unmapped=tuple(pfn for region in regions for pfn in region.unmapped),
            min_mark=self.min_mark,
            batch=self.batch,
        )

    @property
    def needs_rights(self) -> bool:
        """Whether a page has an owner whose next write depends on the rights in its entry."""
        return any(region.kind in _POOLS for region in self.regions)

    @property
    def owners_act(self) -> bool:
        """Whether an owner's next act makes a difference: one whose write depends on rights, or that frees a block."""
        return self.needs_rights or any(region.kind in _FREED for region in self.regions)

    @property
    def clears_pages(self) -> bool:
        """Whether pages allocated after the resume are cleared: a free page need not be in the direct map."""
        return any(region.unmapped for region in self.regions)


@dataclass(frozen=True)
class Family:
    """A family of machines: the product of the options below.

    A question that makes no difference is not asked. Of the regions, number, kinds and order by address count, and not
    which of several addresses of the same order they have; a machine without regions has no sides.

    Attributes:
        regions: numbers of regions, at most 4.
        kinds: the kinds of each region.
        tables: sides for the tables of each region.
        root: sides for the root of the page tables and the fixmap's tables.
        mem_map: sides for the array of `struct page`.
        zone: sides for the heads of the free lists.
        pcp: sides for the CPUs' own lists.
        free: sides for the free pages.
        cpus: numbers of CPUs that have refilled their lists.
        remembered: whether the CPU still caches translations of the regions.
        free_pages: the number of free pages.
        second_root: sides for a second root and its tables, which mirror the direct map; none without one.
        min_mark: min marks of the zone, pages; none if allocations check none.
        batch: pages that a CPU's list takes at a time; none for the kernel's number.

    Raises:
        HibernautError: no options, an option twice, or a number out of bounds.
    """

    regions: tuple[int, ...] = (0, 1)
    kinds: tuple[RegionKind, ...] = (RegionKind.PAGE, RegionKind.BLOCK, RegionKind.GIB)
    tables: tuple[Side, ...] = (Side.ABOVE, Side.BELOW)
    root: tuple[Side, ...] = (Side.BELOW,)
    mem_map: tuple[Side, ...] = (Side.ABOVE,)
    zone: tuple[Side, ...] = (Side.ABOVE,)
    pcp: tuple[Side, ...] = (Side.ABOVE,)
    free: tuple[Side, ...] = (Side.ABOVE,)
    cpus: tuple[int, ...] = (1,)
    remembered: tuple[bool, ...] = (False,)
    free_pages: int = 64
    second_root: tuple[Side, ...] = ()
    min_mark: tuple[int, ...] = ()
    batch: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("regions", "kinds", "tables", "root", "mem_map", "zone", "pcp", "free", "cpus", "remembered"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise HibernautError(f"{name}: {_listed(values) or 'nothing'}; expected one or more values, each once")
        if not all(0 <= count <= MOST_REGIONS for count in self.regions):
            raise HibernautError(f"no machine has {_listed(self.regions)} regions; expected 0-{MOST_REGIONS}")
        if not all(1 <= count <= 4 for count in self.cpus):
            raise HibernautError(f"no machine has {_listed(self.cpus)} CPUs; expected 1-4")
        if not 1 <= self.free_pages <= MOST_FREE_PAGES:
            raise HibernautError(f"no machine has {self.free_pages} free pages; expected 1-{MOST_FREE_PAGES}")
        for word, values, lowest, highest in (
            ("min-mark", self.min_mark, 0, MOST_FREE_PAGES),
            ("batch", self.batch, 1, MOST_BATCH),
        ):
            if len(set(values)) != len(values) or not all(lowest <= one <= highest for one in values):
                raise HibernautError(f"{word}: {_listed(values)}; expected {lowest}-{highest}, each once")
        if self.min_mark and RegionKind.UNMAPPED_FREE in self.kinds:
            raise HibernautError(
                f"min-mark and a region {RegionKind.UNMAPPED_FREE.word}; expected one of them: how a mark applies to "
                "free unmapped pageblocks is not modelled"
            )

    def choose(self, environment: Environment) -> ChosenMachine:
        """Return the machine that the environment's answers choose."""
        count = ask_regions(environment, self.regions)
        geometry = _Geometry.of(count)
        regions = []
        for number in range(1, count + 1):
            kind = ask_region(environment, number, self.kinds)
            asked = kind in _TABLE_MATTERS and len(self.tables) > 1
            tables = ask_tables(environment, number, self.tables) if asked else self.tables[0]
            regions.append(Region(kind, tables, geometry.slots[number - 1]))
        remembered, cpus = False, 1
        min_mark, batch = next(iter(self.min_mark), None), next(iter(self.batch), None)
        sides = {Structure.ROOT: self.root, Structure.MEM_MAP: self.mem_map, Structure.ZONE: self.zone}
        sides |= {Structure.PCP: self.pcp, Structure.FREE: self.free}
        if self.second_root:
            sides[Structure.SECOND_ROOT] = self.second_root
        where = {structure: options[0] for structure, options in sides.items()}
        if count:
            remembered = ask_remembered(environment, self.remembered)
            where = {structure: ask_side(environment, structure, options) for structure, options in sides.items()}
            cpus = ask_cpus(environment, self.cpus)
            min_mark = ask_min_mark(environment, self.min_mark) if self.min_mark else None
            batch = ask_batch(environment, self.batch) if self.batch else None
        return ChosenMachine(tuple(regions), remembered, cpus, where, self.free_pages, min_mark, batch)

    @property
    def scope(self) -> str:
        """Its options in one line."""
        words = [
            f"{_count(self.regions, 'region')} of {', '.join(kind.word for kind in self.kinds)}",
            f"tables {_sides(self.tables)}",
            f"root {_sides(self.root)}",
            f"mem_map {_sides(self.mem_map)}",
            f"list heads {_sides(self.zone)}",
            f"CPU lists {_sides(self.pcp)}",
            f"free pages {_sides(self.free)}",
            _count(self.cpus, "CPU"),
            "translations from before: " + " or ".join("remembered" if one else "none" for one in self.remembered),
            f"{self.free_pages} free frames",
        ]
        if self.second_root:
            words.append(f"second root {_sides(self.second_root)}")
        if self.min_mark:
            words.append(f"min mark of {_count(self.min_mark, 'page')}")
        if self.batch:
            words.append(f"refills of {_count(self.batch, 'page')}")
        return "; ".join(words)


@dataclass(frozen=True)
class _Geometry:
    """The addresses of banks and regions.

    Attributes:
        ram: (first frame, pages) of each range.
        slots: the first frame of each region's gigabyte.
        base: the base of the direct map.
    """

    ram: tuple[tuple[int, int], ...]
    slots: tuple[int, ...]
    base: int

    @classmethod
    def of(cls, regions: int) -> _Geometry:
        """Return the geometry for some regions; fewer than three need neither the distance nor the large banks."""
        low = BANK_GIB[regions]
        slots = [low, low + 1, low + 1 + FAR_GIB, low + 1 + 2 * FAR_GIB][:regions]
        top = slots[-1] + 1 if slots else low
        ram = [(0, 0xA0), (0x100, low * GIB - 0x100)]
        ram += [(slot * GIB, GIB) for slot in slots]
        ram.append((top * GIB, low * GIB))
        base = PAGE_OFFSET[4] + ((512 - (low + 1)) << Level.PUD.shift)
        return cls(tuple(_merged(ram)), tuple(slot * GIB for slot in slots), base)


def _merged(ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the ranges, neighbouring ones as one."""
    start, end = ranges[0][0], sum(ranges[0])
    for first, pages in ranges[1:]:
        if first != end:
            yield start, end - start
            start = first
        end = first + pages
    yield start, end - start


def _count(counts: Sequence[int], noun: str) -> str:
    """Return counts of something in words: "1 CPU", "0-3 regions", "1 or 3 regions"."""
    ordered = sorted(counts)
    whole = len(ordered) > 1 and ordered == list(range(ordered[0], ordered[-1] + 1))
    span = f"{ordered[0]}-{ordered[-1]}" if whole else " or ".join(map(str, counts))
    return f"{span} {noun}" if list(counts) == [1] else f"{span} {noun}s"


def _sides(sides: Sequence[Side]) -> str:
    return " or ".join(side.word for side in sides)


def _listed(values: Iterable[object]) -> str:
    return ", ".join(str(getattr(one, "word", one)) for one in values)
