# SPDX-License-Identifier: GPL-2.0-or-later
"""The free pages of a real kernel, and how many of them an allocation for a page table cannot have.

`alloc_pages(GFP_KERNEL, 0)`, as `split_large_page` (arch/x86/mm/pat/set_memory.c) calls it, takes a page of a zone only
while more pages are free there than its low mark, what the zone keeps back from requests that could be met by a higher
zone, and what is free but for others (`__zone_watermark_ok` and `__zone_watermark_unusable_free`, mm/page_alloc.c).
ZONE_MOVABLE never serves it.

The low mark rises: each time a page for the kernel's own use is taken from a fragment of a block (2 MiB) of movable or
reclaimable pages, by 512 pages (`boost_watermark`), up to `watermark_boost_factor` ten-thousandths of the high mark;
kswapd, which would lower it again, is frozen. Free blocks of 2 MiB and more are taken over without that. Read in
linux-source-6.1 6.1.192-2, -6.12 6.12.117-1~deb12u1 and -7.3 7.3.4-1~bpo13+1.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hibernaut.kernel.facts import node_addresses
from hibernaut.kernel.program import ask

if TYPE_CHECKING:
    from typing import Any

    from hibernaut.kernel.kernel import Kernel

__all__ = ["MOST_DOUBLINGS", "CpuRefill", "MemoryReserves", "ZoneReserve", "memory_reserves"]

MAX_PAGES = 1 << 40
MAX_ZONES = 8
MAX_BATCH = 1 << 12
MAX_CPUS = 1 << 13
MOST_DOUBLINGS = 5
"""CONFIG_PCP_BATCH_SCALE_MAX, by default."""
PAGEBLOCK_ORDER = 9
"""`pageblock_order` (include/linux/pageblock-flags.h): that of a huge page."""
SMALLEST_BOOSTED_ZONE = 4 << PAGEBLOCK_ORDER
MAX_ORDERS = 16
MOST_BLOCKS = 1 << 16
"""Free blocks of a list that are counted; a longer list has at least these."""
UNKNOWN_STAT_THRESHOLD = 125
"""`calculate_normal_threshold` (mm/vmstat.c) gives no more."""
RECLAIMABLE = ("NR_SLAB_RECLAIMABLE_B", "NR_ACTIVE_ANON", "NR_INACTIVE_ANON", "NR_ACTIVE_FILE", "NR_INACTIVE_FILE")
"""Counters of `minimum_image_size` (kernel/power/snapshot.c), in pages all of them (`vm_stat` of a node)."""
CACHED = ("NR_ACTIVE_FILE", "NR_INACTIVE_FILE")


@dataclass(frozen=True)
class CpuRefill:
    """The refill of a CPU's list of free pages in a zone (`struct per_cpu_pages`).

    A kernel with `alloc_factor` ("mm, page_alloc: scale the number of pages that are batch allocated") doubles the
    pages that a CPU takes at a time, up to `MOST_DOUBLINGS` times, while none are freed (`nr_pcp_alloc`). Read in
    linux-source-6.12 and -7.3: they do; in linux-source-6.1 6.1.192-2: it does not. A page on the list is not free: if
    a refill takes the zone below its mark, the next request finds nothing, and reclaims.

    Attributes:
        batch: pages at a time, before any doubling.
        doublings: doublings by now (`alloc_factor`); None for a kernel that never doubles.
        high: pages that the list may have.
        high_min: least value of it.
        high_max: largest value of it.
    """

    batch: int
    doublings: int | None = None
    high: int = 0
    high_min: int = 0
    high_max: int = 0


@dataclass(frozen=True)
class ZoneReserve:
    """The free pages of a populated zone.

    Attributes:
        name: its name: DMA, DMA32, Normal, Movable.
        node: number of its node.
        present_pages: pages that exist.
        spanned_pages: frames from its first page to its last.
        free_pages: pages on its free lists (NR_FREE_PAGES).
        min_pages: low mark of a request that may wait (WMARK_MIN), as it is boosted now.
        boost_room_pages: pages by which it can still be boosted.
        unboosted_pages: free pages that GFP_KERNEL gets without boosting it: those on lists of unmovable pages, and
            free blocks of 2 MiB and more; at least these.
        protection_pages: pages kept back from GFP_KERNEL (`lowmem_reserve`), which a higher zone could serve.
        for_others_pages: free pages that GFP_KERNEL cannot have: of CMA, and for urgent requests of many pages.
        low_pages: mark above which a request does not wake kswapd (WMARK_LOW), boosted as `min_pages`.
        high_pages: mark below which a CPU's list does not grow (WMARK_HIGH), likewise.
        per_cpu_pages: pages on the lists of all CPUs.
        refill: how the CPU that saves memory refills its list, in the zone.
        stat_threshold: pages that a CPU takes or returns at most before it adds them to NR_FREE_PAGES.
        serves_kernel: whether GFP_KERNEL takes pages of it at all.
    """

    name: str
    node: int
    present_pages: int
    spanned_pages: int
    free_pages: int
    min_pages: int
    boost_room_pages: int
    unboosted_pages: int
    protection_pages: int
    for_others_pages: int
    low_pages: int
    high_pages: int
    per_cpu_pages: int
    refill: CpuRefill
    stat_threshold: int
    serves_kernel: bool

    @property
    def kept_pages(self) -> int:
        """Free pages of it that GFP_KERNEL does not get, without reclaim."""
        if not self.serves_kernel:
            return self.free_pages
        return min(self.free_pages, self.min_pages + self.protection_pages + self.for_others_pages)


@dataclass(frozen=True)
class MemoryReserves:
    """The free pages of a machine, and the settings by which hibernation leaves some.

    Attributes:
        zones: its populated zones.
        totalreserve_pages: pages that `hibernate_preallocate_memory` leaves to the zones.
        image_size: /sys/power/image_size, bytes.
        reserved_size: /sys/power/reserved_size, bytes.
        image_pages: pages that are allocated for an image now (`alloc_normal`): 0 unless it hibernates.
        reclaimable_pages: pages that `minimum_image_size` takes for reclaimable.
        cached_pages: pages of files on the lists of reclaim, clean or not.
    """

    zones: tuple[ZoneReserve, ...]
    totalreserve_pages: int
    image_size: int
    reserved_size: int
    image_pages: int
    reclaimable_pages: int
    cached_pages: int

    @property
    def free_pages(self) -> int:
        """Free pages of all zones."""
        return sum(zone.free_pages for zone in self.zones)

    @property
    def kept_pages(self) -> int:
        """Free pages of all zones that GFP_KERNEL does not get."""
        return sum(zone.kept_pages for zone in self.zones)

    @property
    def per_cpu_pages(self) -> int:
        """Pages on the lists of the CPUs, in all zones."""
        return sum(zone.per_cpu_pages for zone in self.zones)

    @property
    def stat_threshold(self) -> int:
        """Pages by which the counters that are compared may be wrong, with one CPU online."""
        return sum(zone.stat_threshold for zone in self.zones if zone.serves_kernel and zone.free_pages)


def memory_reserves(kernel: Kernel) -> MemoryReserves:
    """Return the free pages and reserves of a kernel, as they are at this moment.

    Raises:
        HibernautError: drgn is not installed.
        FormatError: the kernel has no types, or its zones are not in the memory or damaged.
    """
    program = kernel.drgn()
    zones: list[ZoneReserve] = []
    counts = dict.fromkeys(RECLAIMABLE, 0)
    for number, address in enumerate(node_addresses(kernel)):
        node = ask(kernel, f"node {number}", lambda address: kernel.object("struct pglist_data", address), address)
        zones += ask(kernel, f"zones of node {number}", lambda node, number: _zones(kernel, node, number), node, number)
        for name in counts:
            counts[name] += ask(kernel, name, lambda node, name: _node_state(program, node, name), node, name)
    return MemoryReserves(
        zones=tuple(zones),
        totalreserve_pages=_variable(kernel, "totalreserve_pages", MAX_PAGES),
        image_size=_variable(kernel, "image_size", 1 << 64),
        reserved_size=_variable(kernel, "reserved_size", 1 << 64),
        image_pages=_variable(kernel, "alloc_normal", MAX_PAGES, size_bytes=4),
        reclaimable_pages=sum(counts.values()),
        cached_pages=sum(counts[name] for name in CACHED),
    )


def _variable(kernel: Kernel, name: str, bound: int, size_bytes: int = 8) -> int:
    """Return a variable of the kernel, an unsigned number. Raises FormatError."""
    symbol = kernel.symbols.get(name)
    if symbol is None:
        raise kernel.damaged(f"no variable {name}")
    found = int.from_bytes(kernel.read(symbol.address, size_bytes, name), "little")
    if found >= bound:
        raise kernel.damaged(f"{name} is {found}", f"less than {bound}")
    return found


def _zones(kernel: Kernel, node: Any, number: int) -> list[ZoneReserve]:
    """Return the populated zones of a node."""
    program = kernel.drgn()
    normal = int(program["ZONE_NORMAL"])
    count = len(node.node_zones)
    if not 0 < count <= MAX_ZONES:
        raise kernel.damaged(f"a node has {count} zones", f"1 to {MAX_ZONES}")
    found = []
    for index in range(count):
        if not int(node.node_zones[index].present_pages):
            continue
        found.append(_zone(kernel, node.node_zones[index], number, normal, serves_kernel=index <= normal))
    return found


def _zone(kernel: Kernel, reference: Any, number: int, normal: int, *, serves_kernel: bool) -> ZoneReserve:
    program = kernel.drgn()
    zone = reference.read_()
    members = {member.name for member in zone.type_.members}
    watermarks = zone._watermark if "_watermark" in members else zone.watermark
    boost = int(zone.watermark_boost) if "watermark_boost" in members else 0
    for_others = _zone_state(program, zone, "NR_FREE_CMA_PAGES") if _has(program, "NR_FREE_CMA_PAGES") else 0
    urgent = "nr_free_highatomic" if "nr_free_highatomic" in members else "nr_reserved_highatomic"
    for_others += int(zone.member_(urgent))
    room = 0
    if serves_kernel and int(zone.managed_pages.counter) >= SMALLEST_BOOSTED_ZONE:
        factor = _variable(kernel, "watermark_boost_factor", 1 << 31, size_bytes=4)
        most = int(watermarks[int(program["WMARK_HIGH"])]) * factor // 10000
        room = max(0, max(most, 1 << PAGEBLOCK_ORDER) - boost) if most else 0
    per_cpu, refill, threshold = _cpu_lists(kernel, zone, members)
    made = ZoneReserve(
        name=zone.name.string_().decode("ascii", "replace"),
        node=number,
        present_pages=int(zone.present_pages),
        spanned_pages=int(zone.spanned_pages),
        free_pages=max(0, _zone_state(program, zone, "NR_FREE_PAGES")),
        min_pages=int(watermarks[int(program["WMARK_MIN"])]) + boost,
        boost_room_pages=room,
        unboosted_pages=_unboosted(kernel, reference) if serves_kernel else 0,
        protection_pages=int(zone.lowmem_reserve[normal]),
        for_others_pages=for_others,
        low_pages=int(watermarks[int(program["WMARK_LOW"])]) + boost,
        high_pages=int(watermarks[int(program["WMARK_HIGH"])]) + boost,
        per_cpu_pages=per_cpu,
        refill=refill,
        stat_threshold=threshold,
        serves_kernel=serves_kernel,
    )
    wrong = [made.present_pages, made.spanned_pages, made.free_pages, made.min_pages, made.protection_pages]
    if not all(0 <= one < MAX_PAGES for one in wrong) or made.free_pages > made.present_pages:
        raise kernel.damaged(f"zone {made.name} of node {number} has {made.free_pages} free pages of "
                             f"{made.present_pages}, min {made.min_pages}")  # fmt: skip
    return made


def _cpu_lists(kernel: Kernel, zone: Any, members: set[str]) -> tuple[int, CpuRefill, int]:
    """Return the pages on the CPUs' lists of a zone, the refill of the boot CPU's, and the threshold of a counter.

    The boot CPU saves memory: the others are offline by then (`suspend_disable_secondary_cpus`).
    """
    program = kernel.drgn()
    pointer = zone.per_cpu_pageset if "per_cpu_pageset" in members else zone.pageset
    pages = threshold = 0
    refill: CpuRefill | None = None
    for cpu in range(_cpus(kernel)):
        area = kernel.read(kernel.symbols["__per_cpu_offset"].address + 8 * cpu, 8, "__per_cpu_offset")
        offset = int.from_bytes(area, "little")
        if not offset:
            continue
        lists = _of_cpu(program, pointer, offset)
        pcp = lists.pcp if "pcp" in {member.name for member in lists.type_.members} else lists
        pages += int(pcp.count)
        if refill is None:
            refill = _refill(pcp)
            stats = _of_cpu(program, zone.per_cpu_zonestats, offset) if "per_cpu_zonestats" in members else lists
            threshold = int(stats.stat_threshold)
    if refill is None or not (0 <= pages < MAX_PAGES and 0 <= refill.batch <= MAX_BATCH):
        raise kernel.damaged(f"lists of the CPUs have {pages} pages, refill {refill}")
    return pages, refill, threshold if 0 < threshold <= UNKNOWN_STAT_THRESHOLD else UNKNOWN_STAT_THRESHOLD


def _refill(pcp: Any) -> CpuRefill:
    if "alloc_factor" not in {member.name for member in pcp.type_.members}:
        return CpuRefill(int(pcp.batch))
    return CpuRefill(int(pcp.batch), int(pcp.alloc_factor), int(pcp.high), int(pcp.high_min), int(pcp.high_max))


def _unboosted(kernel: Kernel, zone: Any) -> int:
    """Return the free pages of a zone that an unmovable page comes from without a boost; at least these."""
    program = kernel.drgn()
    unmovable = int(program["MIGRATE_UNMOVABLE"])
    others = [int(program[name]) for name in ("MIGRATE_MOVABLE", "MIGRATE_RECLAIMABLE")]
    areas = zone.free_area
    if not PAGEBLOCK_ORDER < len(areas) <= MAX_ORDERS:
        raise kernel.damaged(f"a zone has {len(areas)} orders", f"{PAGEBLOCK_ORDER + 1} to {MAX_ORDERS}")
    pages = 0
    for order in range(len(areas)):
        if not int(areas[order].nr_free):
            continue
        for kind in (unmovable, *(others if order >= PAGEBLOCK_ORDER else ())):
            pages += _blocks(kernel, areas[order].free_list[kind].address_) << order
    return pages


def _blocks(kernel: Kernel, head: int) -> int:
    """Return the number of blocks on a free list, at most `MOST_BLOCKS`. Raises FormatError if it is broken."""
    entries = kernel.list_entries(head, MOST_BLOCKS + 1, 16, "a free list")
    return sum(1 for _ in itertools.islice(entries, MOST_BLOCKS))


def _cpus(kernel: Kernel) -> int:
    """Return the number of CPUs that can be, `nr_cpu_ids`. Raises FormatError."""
    count = _variable(kernel, "nr_cpu_ids", 1 << 32, size_bytes=4)
    if not 0 < count <= MAX_CPUS:
        raise kernel.damaged(f"nr_cpu_ids is {count}", f"1 to {MAX_CPUS}")
    return count


def _of_cpu(program: Any, pointer: Any, offset: int) -> Any:
    """Return the object of one CPU that a per-CPU pointer names (`per_cpu_ptr`)."""
    import drgn

    address = (pointer.value_() + offset) & (1 << 64) - 1
    return drgn.Object(program, pointer.type_.type, address=address)


def _has(program: Any, name: str) -> bool:
    try:
        program[name]
    except LookupError:
        return False
    return True


def _zone_state(program: Any, zone: Any, name: str) -> int:
    """`zone_page_state`: return a counter of a zone, which the CPUs' own differences are not yet added to."""
    return int(zone.vm_stat[int(program[name])].counter)


def _node_state(program: Any, node: Any, name: str) -> int:
    """`node_page_state_pages`: return a counter of a node, in pages."""
    return max(0, int(node.vm_stat[int(program[name])].counter))
