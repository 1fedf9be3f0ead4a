# SPDX-License-Identifier: GPL-2.0-or-later
"""Simulated machines: real page-table bytes in simulated RAM, by a layout.

The direct map is made as the kernel makes it at boot (`split_mem_range` in arch/x86/mm/init.c: in every range of RAM
the largest pages that fit); not-present holes follow, by the attribute changes that a kernel uses. All other content of
RAM is a formula of the frame number (`formula.py`), so that size costs little.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from hibernaut.linux.allocator import FreePages
from hibernaut.linux.boot_tables import BootTables
from hibernaut.linux.environment import Environment
from hibernaut.linux.formula import FormulaMemory
from hibernaut.linux.kernel_pages import KernelPages
from hibernaut.linux.kfence import arch_kfence_init_pool, kfence_protect_page
from hibernaut.linux.layout import HoleKind, HoleSpec, Layout
from hibernaut.linux.machine import Machine
from hibernaut.linux.mm_init import init_zone
from hibernaut.linux.mmzone import ZONE_UNMAPPED, ZONE_WMARK_MIN, AllocatorPlaces, mem_map_page
from hibernaut.linux.owners import OwnedPages, Owner
from hibernaut.linux.page_alloc import BuddyAllocator, zone_batchsize
from hibernaut.linux.page_flags import PageFlags
from hibernaut.linux.rules import KernelRules
from hibernaut.linux.second_root import mirror_tables
from hibernaut.linux.set_memory import (
    set_area_direct_map,
    set_direct_map_invalid_noflush,
    set_direct_map_valid_noflush,
    set_memory_np,
)
from hibernaut.linux.unmapped import map_pageblock
from hibernaut.memory.memo import Memo
from hibernaut.memory.overlay import Overlay
from hibernaut.memory.page import PAGE_SHIFT, PAGE_SIZE
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.ranges import FrameRanges
from hibernaut.memory.segments import Segment
from hibernaut.paging.entries import ENTRIES

__all__ = ["build_machine"]

PCP_HIGH_BATCHES = 6
"""Batches that a CPU's list holds at most (`high` of per_cpu_pages; the kernel's depends on watermarks and CPUs)."""


def build_machine(
    layout: Layout,
    environment: Environment | None = None,
    rules: KernelRules | None = None,
    memo: Memo | None = None,
) -> Machine:
    """Build the machine of a layout. Every frame of its RAM is in use, but for the free pages; its allocator is in RAM.

    Args:
        layout: the layout.
        environment: answers the choices of later runs; the build itself asks for none.
        rules: rules of the kernel; those of the oldest line (6.1) by default.
        memo: results that the machine shares with others; a memo of its own by default.

    Raises:
        HibernautError: no machine has such a layout, or there is no room for the kernel's own pages.
    """
    ram = layout.check()
    tables = BootTables(layout, ram)
    groups = range(len(tables.counts))
    holes = [[hole for hole in layout.holes if layout.table_group(hole.start_pfn) == group] for group in groups]
    reserve = [_splits_at_most(own) for own in holes]
    pages = KernelPages.of(layout, ram, [count + more for count, more in zip(tables.counts, reserve, strict=True)])
    mem_map = Segment(pages.mem_map, np.broadcast_to(mem_map_page(), (pages.mem_map_pages, PAGE_SIZE)))
    segments = [*tables.fill(pages.tables), *layout.data, mem_map]

    builder = _machine(layout, FormulaMemory(ram, segments), pages, rules=rules, memo=memo)
    builder.direct_pages_count = tables.direct_pages_count
    for own, first, count, more in zip(holes, pages.tables, tables.counts, reserve, strict=True):
        builder.allocator = FreePages(np.arange(first + count, first + count + more))
        _apply_holes(own, builder)
    second = mirror_tables(builder, pages.second, pages.second_pages) if pages.second_pages else None
    places = _init_allocator(builder, layout, pages, ram)

    written = _segments(builder.memory)
    machine = _machine(layout, FormulaMemory(ram, [*written, *segments]), pages, environment, rules, layout.cpus, memo)
    machine.second_cr3 = second
    machine.page_flags = PageFlags(
        ram,
        reserved=FrameRanges.of(layout.reserved),
        offline=FrameRanges.of(layout.offline),
        guard=FrameRanges.of(layout.guard),
        nosave=FrameRanges.of(layout.nosave),
    )
    maps = map_pageblock if machine.rules.has_unmapped_pageblocks else None
    machine.allocator = BuddyAllocator(machine, places, maps)
    machine.owners = tuple(_owners(layout))
    return machine


def _owners(layout: Layout) -> Iterator[OwnedPages]:
    """Yield the pages of each owner of a hole."""
    found: dict[Owner, list[tuple[int, int]]] = {}
    for hole in layout.holes:
        if hole.owner is not None:
            found.setdefault(hole.owner, []).append((hole.start_pfn, hole.pages))
    for owner, spans in found.items():
        yield OwnedPages(owner, FrameRanges.of(spans))


def _machine(
    layout: Layout,
    memory: PhysicalMemory,
    pages: KernelPages,
    environment: Environment | None = None,
    rules: KernelRules | None = None,
    cpus: int = 1,
    memo: Memo | None = None,
) -> Machine:
    """Return a machine of a layout, without an allocator yet."""
    return Machine(
        Overlay(memory),
        cr3=pages.tables[0] << PAGE_SHIFT,
        levels=layout.levels,
        base=layout.page_offset,
        end_pfn=FrameRanges.of(layout.ram).end,
        allocator=FreePages(()),
        environment=environment,
        rules=rules,
        cpus=cpus,
        memo=memo,
    )


def _init_allocator(machine: Machine, layout: Layout, pages: KernelPages, ram: FrameRanges) -> AllocatorPlaces:
    """Write the state of the page allocator, and return its places."""
    zone = pages.zone << PAGE_SHIFT
    places = AllocatorPlaces(
        pages.mem_map << PAGE_SHIFT,
        zone,
        tuple(pages.pcp + cpu << PAGE_SHIFT for cpu in range(layout.cpus)),
        ram.end,
        unmapped=zone + ZONE_UNMAPPED if layout.unmapped else 0,
        wmark_min=zone + ZONE_WMARK_MIN if layout.min_mark is not None else 0,
    )
    batch = max(1, zone_batchsize(ram.total_pages)) if layout.batch is None else layout.batch
    init_zone(machine, places, batch=batch, high=PCP_HIGH_BATCHES * batch, wmark_min=layout.min_mark or 0)
    allocator = BuddyAllocator(machine, places)
    allocator.free_pages_memory(pages.free, layout.free_pages)
    allocator.add_unmapped_blocks(layout.unmapped)
    return places


def _segments(memory: Overlay) -> list[Segment]:
    """Return the frames written to a memory, a segment for each run of neighbours."""
    return [
        Segment(start, memory.gather(np.arange(start, start + pages))[0])
        for start, pages in FrameRanges.of_pfns(memory.written)
    ]


def _splits_at_most(holes: Sequence[HoleSpec]) -> int:
    """Return how many tables the holes can take.

    These are the splits of two partial 2M pages and two partial 1G pages each; for 4K entries one table a block.
    """
    total = 0
    for hole in holes:
        if hole.kind not in (HoleKind.NONE, HoleKind.NO_TABLE):
            blocks = {hole.start_pfn // ENTRIES, (hole.end_pfn - 1) // ENTRIES}
            edges = len(blocks) if hole.kind == HoleKind.NOT_PRESENT else max(blocks) - min(blocks) + 1
            total += edges + len({hole.start_pfn >> 18, (hole.end_pfn - 1) >> 18})
    return total


def _apply_holes(holes: Sequence[HoleSpec], machine: Machine) -> None:
    """Make the not-present holes, as the kernel does."""
    for hole in holes:
        if hole.kind == HoleKind.NOT_PRESENT:
            set_memory_np(machine, machine.vaddr(hole.start_pfn), hole.pages)
        elif hole.kind == HoleKind.INVALID_AREA:
            set_area_direct_map(machine, hole.start_pfn, hole.pages, valid=False)
        elif hole.kind == HoleKind.INVALID_FOLIO:
            set_direct_map_valid_noflush(machine, hole.start_pfn, hole.pages, valid=False)
        elif hole.kind == HoleKind.INVALID:
            for pfn in range(hole.start_pfn, hole.end_pfn):
                set_direct_map_invalid_noflush(machine, pfn)
        elif hole.kind == HoleKind.PROTECTED:
            for pfn in range(hole.start_pfn, hole.end_pfn):
                arch_kfence_init_pool(machine, pfn)
                kfence_protect_page(machine, pfn, protect=True)
