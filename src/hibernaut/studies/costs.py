# SPDX-License-Identifier: GPL-2.0-or-later
"""The cost of each way on one machine: entries written, tables allocated, translations invalidated, TLBs flushed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hibernaut.hibernation.page_tables import page_tables
from hibernaut.hibernation.swsusp_save import hibernate
from hibernaut.hibernation.ways import way_named
from hibernaut.linux.build import build_machine
from hibernaut.linux.layout import Layout, hole_2m
from hibernaut.memory.ranges import FrameRanges
from hibernaut.paging.tlb import Tlb

__all__ = ["BLOCKS", "COSTED_WAYS", "Cost", "way_cost"]

BLOCKS = 2
"""Blocks of the machine, not neighbours, with all their pages to save."""
COSTED_WAYS = ("remap", "reserved:2", "remap-whole", "fixmap", "mermap", "mermap:64", "fixmap-whole-run")

_START, _APART = 0x1000, 0x400


@dataclass(frozen=True)
class Cost:
    """The cost of a way on a machine of `BLOCKS` blocks of 2 MiB that are not present, each one entry.

    Attributes:
        way: name of the way.
        pages: pages that it copied, none of them present.
        tables: tables allocated, in the copy or before; each is filled with 512 entries.
        entry_writes: entries written one by one.
        invalidations: invalidations of one address (INVLPG).
        flushes: flushes of a whole TLB.
    """

    way: str
    pages: int
    tables: int
    entry_writes: int
    invalidations: int
    flushes: int


class _CountingTlb(Tlb):
    """A TLB that counts what drops translations from it."""

    def __init__(self) -> None:
        super().__init__()
        self.invalidations = self.flushes = 0

    def invlpg(self, vaddr: int) -> None:
        """See `Tlb.invlpg`."""
        self.invalidations += 1
        super().invlpg(vaddr)

    def flush_all(self) -> None:
        """See `Tlb.flush_all`."""
        self.flushes += 1
        super().flush_all()


def way_cost(name: str, blocks: int = BLOCKS) -> Cost:
    """Return the cost of a way, counted on a simulated machine with one CPU, page by page as the kernel's loop goes.

    Args:
        name: name of the way.
        blocks: number of blocks.

    Raises:
        HibernautError: no way has this name.
        MachineFault, HibernationRefused: as `hibernate`.
    """
    holes = tuple(hole_2m(_START + number * _APART) for number in range(blocks))
    end = _START + blocks * _APART + 0x1000
    machine = build_machine(Layout(((0, 0xA0), (0x100, end - 0x100)), holes=holes, tables="high"))
    saved = FrameRanges.of([(hole.start_pfn, hole.pages) for hole in holes])
    tlb = _CountingTlb()
    machine.tlbs = [tlb]
    machine.calls = []  # recorded calls keep the copy from taking runs of pages at once
    written: Counter[int] = Counter()
    tables = page_tables(machine)
    with machine.watching(lambda pfn: written.update((pfn,))):
        hibernate(machine, way_named(name))
    new = [one.pfn for one in machine.allocations if one.pfn is not None]
    entries = sum(count for pfn, count in written.items() if pfn in tables)
    entries += sum(written[pfn] - 1 for pfn in new if written[pfn])  # the first write fills the table
    return Cost(name, saved.total_pages, len(new), entries, tlb.invalidations, tlb.flushes)
