# SPDX-License-Identifier: GPL-2.0-or-later
"""The allocator's state at boot (mm/mm_init.c, mm/page_alloc.c): a zone without free pages, lists without pages."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hibernaut.linux.allocator import AllocatorMachine
from hibernaut.linux.mmzone import (
    FREE_AREA_NR_FREE,
    NR_PAGE_ORDERS,
    PCP_LIST,
    PER_CPU_PAGES,
    SIZEOF_FREE_AREA,
    ZONE,
    ZONE_FREE_AREA,
    AllocatorPlaces,
)

__all__ = ["init_zone"]


def init_zone(machine: AllocatorMachine, places: AllocatorPlaces, *, batch: int, high: int, wmark_min: int = 0) -> None:
    """Write a zone without free pages, and an empty list for each CPU, into the machine's memory.

    Args:
        machine: machine whose memory is written; the pages that `places` names exist there.
        places: addresses of the state.
        batch: pages that a CPU's list takes from the free lists at a time (`zone_batchsize`).
        high: length at which a CPU's list returns pages; the kernel's is at least `4 * batch` (`zone_highsize`).
        wmark_min: the zone's min mark, pages; of no effect unless `places` names its address.
    """
    zone = np.zeros((), dtype=ZONE)
    heads = machine.base + places.zone + ZONE_FREE_AREA + SIZEOF_FREE_AREA * np.arange(NR_PAGE_ORDERS, dtype=np.uint64)
    if places.wmark_min:
        zone["wmark_min"] = wmark_min
    zone["free_area"]["next"] = zone["free_area"]["prev"] = heads
    _write_structure(machine, places.zone, zone)
    if places.unmapped:
        machine.write_u64(places.unmapped, machine.base + places.unmapped)
        machine.write_u64(places.unmapped + 8, machine.base + places.unmapped)
        machine.write_u64(places.unmapped + FREE_AREA_NR_FREE, 0)
    for paddr in places.pcps:
        pcp = np.zeros((), dtype=PER_CPU_PAGES)
        pcp["high"], pcp["batch"] = high, batch
        pcp["next"] = pcp["prev"] = machine.base + paddr + PCP_LIST
        _write_structure(machine, paddr, pcp)


def _write_structure(machine: AllocatorMachine, paddr: int, structure: NDArray[np.void]) -> None:
    for number, word in enumerate(np.frombuffer(structure.tobytes(), dtype="<u8").tolist()):
        machine.write_u64(paddr + 8 * number, word)
