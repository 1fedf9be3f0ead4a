# SPDX-License-Identifier: GPL-2.0-or-later
"""Depletion: how many large entries the copy can split before an allocation fails by itself.

`hibernate_preallocate_memory` (kernel/power/snapshot.c) allocates a page for each page to save, and leaves what the
zones keep back (`totalreserve_pages`), the metadata, `PAGES_FOR_IO`, and four times `reserved_size`, half of it for the
pages that drivers take before the copy, half for the copies of those. What is left then above the low marks of the
zones is what splits can have, less what the CPU's own list holds when a zone has reached its mark. The functions here
say it in pages, for a kernel before it hibernates and for one that was stopped in the copy, or whose image is at hand.

Beyond that number the request reclaims memory in the midst of the copy, or fails: see docs/unmapped.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hibernaut.errors import HibernautError
from hibernaut.hibernation.machine_in_source import MachineInSource
from hibernaut.kernel.kernel import Kernel
from hibernaut.kernel.page_uses import page_uses
from hibernaut.kernel.reserves import MOST_DOUBLINGS, MemoryReserves, ZoneReserve, memory_reserves
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.swsusp.declarations import PAGES_FOR_IO

__all__ = [
    "CountsBefore",
    "Depletion",
    "deplete_before",
    "deplete_in_copy",
    "depletion_in",
    "metadata_pages",
    "most_image_pages",
    "served_pages",
]

BITS_PER_BLOCK = 8 * PAGE_SIZE
"""`BM_BITS_PER_BLOCK`: frames that a page of a bitmap stands for."""
ENTRIES_PER_LEVEL = PAGE_SIZE // 8
"""`BM_ENTRIES_PER_LEVEL`: children of an inner page of a bitmap."""
NODES_PER_PAGE = (PAGE_SIZE - 8) // 24
"""`struct rtree_node` (24 bytes) on a page of `LINKED_PAGE_DATA_SIZE` bytes."""


@dataclass(frozen=True)
class Depletion:
    """The splits that a kernel has pages for, in the copy, one page each.

    Attributes:
        when: `before`: predicted for a kernel that does not hibernate yet. `copy`: for one whose list of pages is
            fixed, by its memory at that moment.
        image_pages: pages that are allocated for the image before devices are frozen (`alloc_normal`).
        free_pages: free pages at the copy.
        kept_pages: those of them that an allocation for a table does not get (`ZoneReserve.kept_pages`).
        least: splits that succeed in any case: whatever state the CPU's list is in, and even if the low marks are
            boosted where free pages may be fragments.
        most: splits that succeed at most, without reclaim.
        floor_pages: free pages above the marks that the kernel's reserves leave with whatever is in memory, as long as
            drivers take none, and marks are not boosted; None in the copy.
        cached_pages: pages of files, which a request reclaims in the midst of the copy once it gets no free page, so
            far as they are clean.
        drivers_pages: pages that drivers were taken to allocate before the copy.
    """

    when: str
    image_pages: int
    free_pages: int
    kept_pages: int
    least: int
    most: int
    floor_pages: int | None
    cached_pages: int
    drivers_pages: int = 0

    def suffices_for(self, splits: int) -> bool | None:
        """Return whether that many splits succeed without reclaim; None between `least` and `most`."""
        return True if splits <= self.least else False if splits > self.most else None


def metadata_pages(spanned_pages: int) -> int:
    """`snapshot_additional_pages`: return the pages of two bitmaps for a zone that spans so many frames."""
    blocks = nodes = -(-spanned_pages // BITS_PER_BLOCK)
    pages = blocks + -(-blocks // NODES_PER_PAGE)
    while nodes > 1:
        nodes = -(-nodes // ENTRIES_PER_LEVEL)
        pages += nodes
    return 2 * pages


def most_image_pages(usable_pages: int, metadata: int, reserved_size: int) -> int:
    """`max_size` of `hibernate_preallocate_memory`: return how many pages can be in memory twice; 0 if none.

    Args:
        usable_pages: pages that are saved or free, without `totalreserve_pages`.
        metadata: `metadata_pages` of all zones.
        reserved_size: /sys/power/reserved_size, bytes.
    """
    return max(0, (usable_pages - metadata - PAGES_FOR_IO) // 2 - 2 * -(-reserved_size // PAGE_SIZE))


def served_pages(zones: Sequence[ZoneReserve]) -> int:
    """Return how many pages a CPU gets one by one with GFP_KERNEL, until a request would reclaim.

    A request takes a page of a zone that is above its min mark (`get_page_from_freelist`). There it takes one of the
    CPU's list, which is empty at first and is refilled from the free lists; the pages left on it are of no use once the
    zone is not above the mark. In which order zones are tried makes no difference to the sum.
    """
    return sum(_CpuList(zone).serve() for zone in zones if zone.serves_kernel)


class _CpuList:
    """A CPU's list of single pages of a zone, while pages are taken and none are freed."""

    def __init__(self, zone: ZoneReserve) -> None:
        self.zone = zone
        self.free_pages = zone.free_pages
        self.doublings = zone.refill.doublings
        self.high = zone.refill.high

    def serve(self) -> int:
        """Return how many pages are taken until the zone is not above its mark."""
        served, pages, mark = 0, 0, _min_pages(self.zone)
        while self.free_pages > mark:
            served += pages
            before = self.doublings, self.high
            pages = self._nr_pages()
            if before == (self.doublings, self.high):  # so are all refills to come: those but the last are used up
                refills = -(-(self.free_pages - mark) // pages)
                return served + (refills - 1) * pages + 1
            pages = min(pages, self.free_pages)
            self.free_pages -= pages
            served, pages = served + 1, pages - 1
        return served

    def _nr_pages(self) -> int:
        """`nr_pcp_alloc`: return the pages of the next refill."""
        refill = self.zone.refill
        if self.doublings is None:
            return max(1, refill.batch)
        self.high = min(max(self.high, refill.high_min), refill.high_max)
        if self.high < refill.batch:
            return 1
        wanted, high = refill.batch << self.doublings, self.high
        if refill.high_min != refill.high_max and self.free_pages > self.zone.high_pages:
            high = self.high = min(high + wanted, refill.high_max)
        most = max(high - refill.batch, refill.batch)  # the list is empty
        if wanted <= most and self.doublings < MOST_DOUBLINGS:
            self.doublings += 1
        return max(1, min(wanted, most))


def _place(zone: ZoneReserve) -> tuple[int, int]:
    """Return the place of a zone in the zone list of the first node: its own zones from the highest down, then others'.

    The order of the other nodes, which depends on their distances, does not change a sum.
    """
    return zone.node, -("DMA", "DMA32", "Normal").index(zone.name) if zone.name in ("DMA", "DMA32", "Normal") else 0


def deplete_in_copy(reserves: MemoryReserves) -> Depletion:
    """Return the splits that a kernel stopped in `swsusp_save`, or in an image, has pages for.

    Raises:
        HibernautError: no page is allocated for an image: the kernel does not hibernate.
    """
    if not reserves.image_pages:
        raise HibernautError("the kernel has allocated no page for an image")
    zones = reserves.zones
    return Depletion(
        when="copy",
        image_pages=reserves.image_pages,
        free_pages=reserves.free_pages,
        kept_pages=reserves.kept_pages,
        least=sum(min(_served(_boosted(zone))) for zone in zones),
        most=sum(max(_served(zone)) for zone in zones),
        floor_pages=None,
        cached_pages=reserves.cached_pages,
    )


def deplete_before(
    reserves: MemoryReserves, *, offline_pages: int = 0, bitmaps: int = 3, drivers_pages: int = 0
) -> Depletion:
    """Predict the splits that a kernel will have pages for, if it hibernates now.

    The memory that is taken or freed until then is unknown: each page more in use takes two.

    Args:
        reserves: its free pages now.
        offline_pages: pages that exist, are not free and are not saved: `PageOffline`.
        bitmaps: number of bitmaps that it makes: 3, or 2 before it left out pages of zeroes (6.6).
        drivers_pages: pages that drivers allocate before the copy; each is saved, so that it takes two once those are
            used up that were allocated for the CPUs' lists.

    Raises:
        HibernautError: the image would not fit into memory, or pages are allocated for one already.
    """
    if reserves.image_pages:
        raise HibernautError(
            f"{reserves.image_pages} pages are allocated for an image: the kernel hibernates, and is not in the copy"
        )
    metadata = sum(metadata_pages(zone.spanned_pages) for zone in reserves.zones)
    made = metadata // 2 * bitmaps
    saveable = sum(zone.present_pages - zone.free_pages for zone in reserves.zones) - offline_pages + made
    free = reserves.free_pages - made
    count = saveable + free - reserves.totalreserve_pages
    most_pages = most_image_pages(count, metadata, reserves.reserved_size)
    if not most_pages:
        raise HibernautError(
            f"no room for an image: {free} free pages, of which the zones keep {reserves.totalreserve_pages}"
        )
    wanted = min(-(-reserves.image_size // PAGE_SIZE), most_pages)
    if wanted < saveable:
        wanted = max(wanted, min(max(0, saveable - reserves.reclaimable_pages), most_pages))
    image_pages = min(wanted, saveable)
    # What is no longer saved is free; the CPUs' lists, which were counted as in use, are drained before the copy. The
    # pages that were allocated to copy those are the first that serve for pages of drivers.
    copies = max(0, drivers_pages - reserves.per_cpu_pages)
    left = max(0, saveable + free - 2 * image_pages + reserves.per_cpu_pages - drivers_pages - copies)
    zones = _taken(reserves.zones, reserves.free_pages - left - copies, urgent=False)
    zones = _taken(zones, copies, urgent=True)
    worst = [_boosted(replace(zone, unboosted_pages=0)) for zone in zones]
    return Depletion(
        when="before",
        image_pages=image_pages,
        free_pages=left,
        kept_pages=sum(zone.kept_pages for zone in zones),
        least=sum(min(served for state in _doubled(zone) for served in _served(state)) for zone in worst),
        most=sum(max(served for state in _doubled(zone) for served in _served(state)) for zone in zones),
        floor_pages=saveable + free - 2 * most_pages - reserves.kept_pages,
        cached_pages=reserves.cached_pages,
        drivers_pages=drivers_pages,
    )


def _taken(zones: Sequence[ZoneReserve], pages: int, *, urgent: bool) -> list[ZoneReserve]:
    """Return zones with some pages fewer: the highest zone first, down to the low mark of each, then below.

    Args:
        zones: the zones.
        pages: number of pages; a negative one returns pages.
        urgent: whether they are taken by GFP_ATOMIC, which goes below the min mark.
    """
    found = sorted(zones, key=_place)
    for marks in (_low_pages, _urgent_pages if urgent else _min_pages):
        for at, zone in enumerate(found):
            room = max(0, zone.free_pages - marks(zone)) if zone.serves_kernel else 0
            given = max(pages, zone.free_pages - zone.present_pages) if pages < 0 else min(pages, room)
            found[at] = replace(zone, free_pages=zone.free_pages - given)
            pages -= given
    return found


def _low_pages(zone: ZoneReserve) -> int:
    return zone.low_pages + zone.protection_pages + zone.for_others_pages


def _min_pages(zone: ZoneReserve) -> int:
    return zone.min_pages + zone.protection_pages + zone.for_others_pages


def _urgent_pages(zone: ZoneReserve) -> int:
    """Return the free pages of a zone that GFP_ATOMIC does not get: three eighths of its mark, and its protection."""
    half = zone.min_pages - zone.min_pages // 2
    return half - half // 4 + zone.protection_pages + zone.for_others_pages


def _boosted(zone: ZoneReserve) -> ZoneReserve:
    """Return a zone with its marks boosted as far as they can be; as they are if its pages need no boost."""
    if zone.free_pages - zone.kept_pages <= zone.unboosted_pages:
        return zone
    room = zone.boost_room_pages
    return replace(zone, min_pages=zone.min_pages + room, low_pages=zone.low_pages + room)


def _served(zone: ZoneReserve) -> tuple[int, ...]:
    """Return the pages that a zone serves: by its count of free ones, and if that is off by what a CPU holds back."""
    counts = {max(0, zone.free_pages + error) for error in (-zone.stat_threshold, 0, zone.stat_threshold)}
    return tuple(served_pages([replace(zone, free_pages=free if zone.free_pages else 0)]) for free in counts)


def _doubled(zone: ZoneReserve) -> list[ZoneReserve]:
    """Return a zone with every number of doublings that a CPU's refill can have by the copy."""
    refill = zone.refill
    if refill.doublings is None:
        return [zone]
    return [replace(zone, refill=replace(refill, doublings=one)) for one in range(MOST_DOUBLINGS + 1)]


@dataclass(frozen=True)
class CountsBefore:
    """The counts that a prediction needs, of a kernel that does not hibernate yet.

    Attributes:
        reserves: its free pages.
        offline_pages: see `deplete_before`.
        bitmaps: see `deplete_before`.
    """

    reserves: MemoryReserves
    offline_pages: int
    bitmaps: int

    @classmethod
    def of(cls, kernel: Kernel, end_pfn: int) -> CountsBefore:
        """Read those of a kernel with frames below `end_pfn`.

        Raises:
            HibernautError: drgn is not installed, or the kernel does not say which pages are offline.
            FormatError: see `memory_reserves` and `page_uses`.
        """
        offline = page_uses(kernel, end_pfn).offline
        if offline is None:
            raise HibernautError("the kernel does not say how it marks pages that are offline, which are not saved")
        bitmaps = 2 if kernel.symbols.get("zero_bm") is None else 3
        return cls(memory_reserves(kernel), offline.total_pages, bitmaps)

    def predict(self, drivers_pages: int = 0) -> Depletion:
        """Return the prediction for drivers that take so many pages. Raises as `deplete_before`."""
        return deplete_before(
            self.reserves, offline_pages=self.offline_pages, bitmaps=self.bitmaps, drivers_pages=drivers_pages
        )


def depletion_in(found: MachineInSource, *, drivers_pages: int = 0) -> Depletion:
    """Return the splits that the kernel in a source has pages for.

    For a kernel that was stopped in the copy, or whose image this is, by its memory then; else if it hibernates now.

    Args:
        found: the machine in the source.
        drivers_pages: see `deplete_before`; of no effect for a kernel that is in the copy.

    Raises:
        HibernautError: drgn is not installed, there is no room for an image, or the kernel hibernates elsewhere.
        FormatError: there is no kernel, it has no types, or its zones cannot be read.
    """
    kernel = Kernel.of(found.source)
    if found.pages.kernel is not None or found.source.any_image is not None:
        return deplete_in_copy(memory_reserves(kernel))
    return CountsBefore.of(kernel, found.machine.end_pfn).predict(drivers_pages)
