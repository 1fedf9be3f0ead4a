# SPDX-License-Identifier: GPL-2.0-or-later
"""Finding the root of the page tables in memory whose CR3 nobody noted.

A candidate root is a frame whose tables map that very frame in a direct map of most of RAM. Every process's PGD is one,
as all share the kernel half; the kernel's own (`init_top_pgt`, which is `swapper_pg_dir`) is told apart by its empty
user half, and from PGDs that were freed by lying in the kernel's image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.errors import FormatError
from hibernaut.linux.direct_map import START_KERNEL_MAP, DirectMap
from hibernaut.memory.physical import CHUNK_PAGES
from hibernaut.paging.entries import ENTRIES, FRAME_MASK, Entries, Entry, Level, entry_frames
from hibernaut.paging.reader import TableReader
from hibernaut.paging.scan import TABLE, entry_states
from hibernaut.paging.spans import Stop
from hibernaut.paging.tables import PageTables

if TYPE_CHECKING:
    from hibernaut.memory.physical import BoolArray, FrameRanges, Frames, PhysicalMemory
    from hibernaut.paging.spans import Addresses

__all__ = ["Root", "find_root", "find_roots"]

_HALF = ENTRIES // 2
_SAMPLE = np.linspace(_HALF, ENTRIES - 1, 16).astype(np.int64)
_PAGES_PER_GIB = 1 << 18
_WITNESSES = 1 << 17
"""More 1 GiB slots than this, beyond twice what the memory needs, are not a kernel's."""
_SHOWN = 8


@dataclass(frozen=True)
class Root:
    """A frame whose tables map it in a direct map.

    Attributes:
        cr3: its physical address.
        levels: of its tables, 4 or 5.
        base: of the direct map.
        mapped_bytes: plainly present in the direct map.
        user_half_empty: the lower half of the table is all zero: it is no process's.
        in_kernel_image: the kernel's mapping of its own image, at the top of the address space, covers the frame.
    """

    cr3: int
    levels: int
    base: int
    mapped_bytes: int
    user_half_empty: bool
    in_kernel_image: bool


def find_root(memory: PhysicalMemory) -> Root:
    """The kernel's own root.

    That is the only candidate; or else the only one with an empty user half; or else the only one of those that lies in
    the kernel's image.

    Raises:
        FormatError: there is no candidate, or none that stands out; the message lists them.
    """
    roots = find_roots(memory)
    if not roots:
        raise FormatError("no page-table root found: no frame's tables map it in a direct map of most of memory")
    kernels = [root for root in roots if root.user_half_empty]
    choices = (roots, kernels, [root for root in kernels if root.in_kernel_image])
    for choice in choices:
        if len(choice) == 1:
            return choice[0]
    likely = next(choice for choice in reversed(choices) if choice)
    shown = ", ".join(f"{root.cr3:#x} ({root.levels} levels)" for root in likely[:_SHOWN])
    more = f" and {len(likely) - _SHOWN} more" if len(likely) > _SHOWN else ""
    raise FormatError("the page-table root is not unique: name one", found=f"CR3 {shown}{more}")


def find_roots(memory: PhysicalMemory, levels: int | None = None) -> list[Root]:
    """Every candidate root, ascending by `cr3`.

    Reads all memory, in chunks; a frame of zeroes does not count as RAM. Frames with the same kernel half
    share one look at their direct map.

    Args:
        memory: RAM.
        levels: 4 or 5; None for both, where a frame is only taken for a root of 4 levels if there is none of 5 (a table
            of the second level can look like one).
    """
    ram = memory.occupied()
    plausible = list(_plausible(memory, ram))
    for number in (5, 4) if levels is None else (levels,):
        roots = _roots(memory, plausible, number, ram)
        if roots:
            return roots
    return []


def _roots(memory: PhysicalMemory, pfns: list[int], levels: int, ram: FrameRanges) -> list[Root]:
    known: dict[bytes, DirectMap | None] = {}
    roots = []
    for pfn in pfns:
        table = memory.frame(pfn)
        assert table is not None
        entries = table.view(np.uint64)
        bases = _bases(memory, pfn, levels)
        if not bases:
            continue
        half = entries[_HALF:].tobytes()
        if half not in known:
            known[half] = _direct_map(memory, pfn, levels, ram)
        found = known[half]
        if found is None or found.base not in bases:
            continue
        roots.append(
            Root(
                cr3=pfn << 12,
                levels=levels,
                base=found.base,
                mapped_bytes=sum(found.present_bytes.values()),
                user_half_empty=not entries[:_HALF].any(),
                in_kernel_image=_in_image(found, pfn),
            )
        )
    return roots


def _direct_map(memory: PhysicalMemory, pfn: int, levels: int, ram: FrameRanges) -> DirectMap | None:
    try:
        return DirectMap.find(memory, pfn << 12, levels, ram)
    except FormatError:
        return None


def _in_image(found: DirectMap, pfn: int) -> bool:
    spans = found.everything.of_state(Stop.PRESENT)
    image = spans.select(spans.vaddr >= np.uint64(START_KERNEL_MAP))
    return bool(((image.pfn <= pfn) & (pfn < image.pfn + image.pages)).any())


def _plausible(memory: PhysicalMemory, ram: FrameRanges) -> Iterator[int]:
    """Frames whose upper half could be a root's: some entries, each zero or a table's within the memory's bounds."""
    end = np.uint64(memory.ranges.end << 12)
    frames = ram.frames()
    for first in range(0, len(frames), CHUNK_PAGES):
        pfns = frames[first : first + CHUNK_PAGES]
        entries = memory.gather(pfns)[0].view(np.uint64)
        rows = np.flatnonzero(_like_tables(entries[:, _SAMPLE], end).all(axis=1))
        upper = entries[rows, _HALF:]
        rows = rows[_like_tables(upper, end).all(axis=1) & upper.any(axis=1)]
        yield from pfns[rows].tolist()


def _like_tables(entries: Entries, end: np.uint64) -> BoolArray:
    """Which entries are zero, or such as Linux uses for the kernel's tables (`_KERNPG_TABLE`, `_PAGE_TABLE`).

    They are present and writable, and neither NX, GLOBAL nor PSE: rights are taken away in leaves.
    """
    asked = np.uint64(Entry.PRESENT | Entry.RW | Entry.PSE | Entry.GLOBAL | Entry.NX)
    table = (entries & asked) == np.uint64(Entry.PRESENT | Entry.RW)
    like: BoolArray = (table & ((entries & np.uint64(FRAME_MASK)) < end)) | (entries == 0)
    return like


def _bases(memory: PhysicalMemory, pfn: int, levels: int) -> set[int]:
    """Every base at which a direct map would contain the root itself, by the root's own tables.

    A direct map begins at a multiple of 1 GiB: so the root's frame has the same place in its GiB in both addresses.
    """
    slots = _gib_slots(memory, pfn, levels)
    within = np.uint64((pfn % _PAGES_PER_GIB) << 12)
    found = PageTables(memory, pfn << 12, levels).translate(slots + within)
    own = slots[(found.pfns == pfn) & (found.reasons == Stop.PRESENT.code)]
    return {base for base in (int(slot) - (pfn // _PAGES_PER_GIB << 30) for slot in own) if base >= 1 << 63}


def _gib_slots(memory: PhysicalMemory, pfn: int, levels: int) -> Addresses:
    """Addresses in the kernel half that an entry at PUD level speaks of; none if there are more than a kernel has."""
    reader = TableReader(memory)
    limit = _WITNESSES + 2 * (memory.ranges.end >> 18)
    tables = np.array([pfn], dtype=np.int64)
    vaddrs = np.zeros(1, dtype=np.uint64)
    for number in range(levels, Level.PMD, -1):
        level = Level(number)
        entries = reader.tables(tables)
        states = entry_states(entries, level)
        wanted = states == TABLE
        if level == Level.PUD:
            wanted |= states == Stop.PRESENT.code
        if number == levels:
            wanted[:, :_HALF] = False
        rows, index = np.nonzero(wanted)
        if len(rows) > limit:
            return vaddrs[:0]
        vaddrs = vaddrs[rows] + (index.astype(np.uint64) << np.uint64(level.shift))
        if number == levels:
            vaddrs |= np.uint64((1 << 64) - (1 << (12 + 9 * levels)))
        if level > Level.PUD:
            tables, vaddrs = _distinct(reader, entry_frames(entries[rows, index], level), vaddrs)
    return vaddrs


def _distinct(reader: TableReader, tables: Frames, vaddrs: Addresses) -> tuple[Frames, Addresses]:
    """Existing tables, each once (a KASAN kernel's shadow names one table over and over), and their addresses."""
    exist = reader.exist(tables)
    tables, first = np.unique(tables[exist], return_index=True)
    return tables, vaddrs[exist][first]
