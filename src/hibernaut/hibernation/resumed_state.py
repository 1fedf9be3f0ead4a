# SPDX-License-Identifier: GPL-2.0-or-later
"""Findings in the tables and in the allocator of a resumed machine, shared between hibernations.

Both are decided by few pages. The pages of an image are those of its base, but for the ones in `Snapshot.changed`; of
these, the allocator's own pages decide what its check finds, and the page tables what is mapped. Hibernation writes to
both, and to no other page, so that a page that was copied wrongly, or not at all, belongs to neither group. Two images
with the same list of frames, the same base and the same boot kernel, whose changed pages of one group have the same
bytes, therefore have the same findings of that group. The exceptions, which are not kept: a walk of the tables that
reads a page of another group as a table, and a page that the boot kernel loaded through a safe frame and that changed.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hibernaut.hibernation.checks.allocator import allocator_sound
from hibernaut.hibernation.checks.direct_map import same_direct_map
from hibernaut.hibernation.checks.fixmap import slot_empty
from hibernaut.hibernation.checks.tables import tables_closed
from hibernaut.hibernation.checks.translations import same_frames
from hibernaut.hibernation.page_tables import page_tables, reached_tables
from hibernaut.linux.page_alloc import BuddyAllocator
from hibernaut.memory.page import PAGE_SHIFT

if TYPE_CHECKING:
    from hibernaut.hibernation.checks.violation import Violation
    from hibernaut.hibernation.resume import Resumption
    from hibernaut.hibernation.snapshot import Snapshot
    from hibernaut.linux.machine import Machine
    from hibernaut.linux.mmzone import AllocatorPlaces

__all__ = ["AllocatorFindings", "TableFindings", "findings"]


@dataclass(frozen=True, eq=False)
class TableFindings:
    """Findings of the checks in the page tables of a resumed machine.

    Attributes:
        closed: violations of `tables_closed`.
        frames: violations of `same_frames`.
        direct_map: violations of `same_direct_map`.
        slot: violations of `slot_empty`, in the image as well.
        read: the frames that were read as tables.
    """

    closed: tuple[Violation, ...]
    frames: tuple[Violation, ...]
    direct_map: tuple[Violation, ...]
    slot: tuple[Violation, ...]
    read: frozenset[int]


_Pages = tuple[tuple[int, bytes], ...]
AllocatorFindings = tuple["Violation", ...]


def findings(before: Machine, resumption: Resumption) -> tuple[TableFindings, AllocatorFindings]:
    """Return the findings of the checks in the tables and in the allocator of the machine that resumes.

    Args:
        before: the machine before the copy.
        resumption: the resume; it is executed only where the findings are not known.
    """
    snapshot = resumption.snapshot
    machine = snapshot.machine
    allocator = machine.allocator
    shared = len(snapshot.digests) == len(snapshot.changed) and not resumption.reloads_changed
    if not shared or not isinstance(allocator, BuddyAllocator):
        return _of_tables(before, resumption), allocator_sound(snapshot, resumption.machine)
    places = allocator.places
    own, written, others = _groups(places, snapshot)
    image = (snapshot.frames, snapshot.base, resumption.boot, machine.base, machine.end_pfn, machine.cr3)
    block = machine.used_block_slot
    slot = (
        (machine.fixmap.index, machine.fixmap.paddr) if machine.has_fixmap else None,
        machine.mermap,
        None if block is None else (block.index, block.paddr),
    )
    known = machine.memo.of("findings in tables")
    key: Hashable = (*image, machine.levels, machine.encryption, slot, reached_tables(before), _second(before), written)
    tables: TableFindings | None = known.get(key)
    if tables is None or not tables.read.isdisjoint(others):
        tables = _of_tables(before, resumption)
        if not tables.read.isdisjoint(others) or any(_is_of(places, pfn) for pfn in tables.read):
            return tables, allocator_sound(snapshot, resumption.machine)
        known[key] = tables
    verdicts = machine.memo.of("findings in the allocator")
    key = (*image, machine.page_flags, places.mem_map, places.zone, places.pcps, own, tables)
    allocators: AllocatorFindings | None = verdicts.get(key)
    if allocators is None:
        allocators = verdicts[key] = allocator_sound(snapshot, resumption.machine)
    return tables, allocators


def _second(before: Machine) -> Hashable:
    """Return the tables of a second root, as `reached_tables` does; None without one."""
    view = before.by_second_root()
    return None if view is None else (before.second_cr3, reached_tables(view))


def _is_of(places: AllocatorPlaces, pfn: int) -> bool:
    """Return whether a frame is one of the allocator's own pages."""
    first = places.mem_map >> PAGE_SHIFT
    return first <= pfn < first + places.mem_map_pages or pfn << PAGE_SHIFT in (places.zone, *places.pcps)


def _groups(places: AllocatorPlaces, snapshot: Snapshot) -> tuple[_Pages, _Pages, list[int]]:
    """Return the changed pages: those of the allocator, others that hibernation writes to, and the frames of the rest.

    The first two come with the digests of their bytes, ascending.
    """
    first = places.mem_map >> PAGE_SHIFT
    end = first + places.mem_map_pages
    heads = {paddr >> PAGE_SHIFT for paddr in (places.zone, *places.pcps)}
    written = set(snapshot.written.tolist())
    own, tables, others = [], [], []
    for item in snapshot.digests.items():
        pfn = item[0]
        if first <= pfn < end or pfn in heads:
            own.append(item)
        elif pfn in written:
            tables.append(item)
        else:
            others.append(pfn)
    return tuple(own), tuple(tables), others


def _of_tables(before: Machine, resumption: Resumption) -> TableFindings:
    """Run the checks of the tables."""
    snapshot, resumed = resumption.snapshot, resumption.machine
    return TableFindings(
        closed=tables_closed(snapshot, resumed),
        frames=same_frames(before, resumed, snapshot.frames),
        direct_map=same_direct_map(before, resumed, saved=snapshot.frames),
        slot=slot_empty(resumed, snapshot),
        read=frozenset(page_tables(resumed)),
    )
