# SPDX-License-Identifier: GPL-2.0-or-later
"""Search for the root of the page tables when CR3 is unknown.

A candidate root is a frame whose tables map the frame itself in a direct map of most of RAM. Every process's PGD is
one, since all share the kernel half. The kernel's own (`init_top_pgt`, also named `swapper_pg_dir`) differs from them
by its empty user half, and from freed PGDs by its place in the kernel's image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.errors import FormatError
from hibernaut.linux.direct_map import START_KERNEL_MAP, DirectMap, FrameState
from hibernaut.linux.encryption import likely_encryption, masked_tables
from hibernaut.memory.page import CHUNK_PAGES
from hibernaut.paging.entries import ENTRIES, Entries, Entry, Level
from hibernaut.paging.reader import TableReader
from hibernaut.paging.scan import TABLE, entry_states
from hibernaut.paging.spans import Stop
from hibernaut.paging.tables import PageTables

if TYPE_CHECKING:
    from hibernaut.memory.page import BoolArray, Pfns
    from hibernaut.memory.physical import PhysicalMemory
    from hibernaut.memory.ranges import FrameRanges
    from hibernaut.paging.spans import Addresses

__all__ = ["Root", "bases_of", "find_root", "find_roots", "plausible_roots"]

_HALF = ENTRIES // 2
_SAMPLE = np.linspace(_HALF, ENTRIES - 1, 16).astype(np.int64)
_PAGES_PER_GIB = 1 << 18
_WITNESSES = 1 << 17
"""No kernel has more 1 GiB slots than this, beyond twice those that the memory needs."""
MOST_KERNEL_HALVES = 64
"""Most different kernel halves whose direct map is read: a kernel has one, a host its guests' too."""
_MOST_UPPER_TABLES = 1 << 13
"""Most tables of a level above PMD that are read of a candidate: a kernel has some hundreds."""
_SHOWN = 8


@dataclass(frozen=True)
class Root:
    """A frame whose tables map it in a direct map.

    Attributes:
        cr3: its physical address.
        levels: levels of its tables, 4 or 5.
        base: base of the direct map.
        mapped_bytes: bytes plainly present in the direct map.
        user_half_empty: whether the lower half of the table is all zero, as of no process.
        in_kernel_image: whether the kernel's mapping of its own image, at the top of the address space, covers the
            frame.
        encryption: mask of the bit of encrypted memory in its entries, see `PageTables`; 0 without it.
    """

    cr3: int
    levels: int
    base: int
    mapped_bytes: int
    user_half_empty: bool
    in_kernel_image: bool
    encryption: int = 0


def find_root(memory: PhysicalMemory, levels: int | None = None) -> Root:
    """Return the kernel's own root. Arguments as for `find_roots`.

    It is the only candidate, or the only one with an empty user half, or the only one of those in the kernel's image.

    Raises:
        FormatError: there is no candidate, or more than one remains; the message lists them.
    """
    roots = find_roots(memory, levels)
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
    """Return all candidate roots, ascending by `cr3`.

    All memory is read, in chunks; a frame of zeroes does not count as RAM. For frames with the same kernel half the
    direct map is read once.

    Args:
        memory: RAM.
        levels: 4 or 5; None for both, where roots of 4 levels are returned only if there is none of 5 (a table of the
            second level can look like a root of 4).
    """
    ram = memory.occupied()
    roots = _roots_with(memory, ram, levels, 0)
    if roots:
        return roots
    found = (_roots_with(memory, ram, levels, mask) for mask in likely_encryption(memory, ram))
    return next((roots for roots in found if roots), [])


def _roots_with(memory: PhysicalMemory, ram: FrameRanges, levels: int | None, encryption: int) -> list[Root]:
    """Return the roots whose entries have this bit of encrypted memory."""
    plausible = list(plausible_roots(memory, ram, encryption))
    for number in (5, 4) if levels is None else (levels,):
        roots = _roots(memory, plausible, number, ram, encryption)
        if roots:
            return roots
    return []


def _roots(memory: PhysicalMemory, pfns: list[int], levels: int, ram: FrameRanges, encryption: int) -> list[Root]:
    """Return the roots among frames. Raises FormatError if too many differ in the kernel half."""
    known: dict[bytes, DirectMap | None] = {}
    tried = 0
    roots = []
    for pfn in pfns:
        table = memory.page(pfn)
        assert table is not None
        entries = table.view(np.uint64)
        half = entries[_HALF:].tobytes()
        if half not in known:
            bases = bases_of(memory, pfn, levels, encryption)
            found = None
            if bases:
                tried += 1
                found = _direct_map(memory, pfn, levels, ram, encryption)
            known[half] = found if found is not None and found.base in bases else None
            if tried > MOST_KERNEL_HALVES:
                raise FormatError(f"more than {MOST_KERNEL_HALVES} different tables map themselves: name the root")
        found = known[half]
        if found is None or found.classify([pfn])[0] != FrameState.PRESENT:
            continue
        roots.append(
            Root(
                cr3=pfn << 12,
                levels=levels,
                base=found.base,
                mapped_bytes=sum(found.present_bytes.values()),
                user_half_empty=not entries[:_HALF].any(),
                in_kernel_image=_in_image(found, pfn),
                encryption=encryption,
            )
        )
    return roots


def _direct_map(memory: PhysicalMemory, pfn: int, levels: int, ram: FrameRanges, encryption: int) -> DirectMap | None:
    try:
        return DirectMap.find(memory, pfn << 12, levels, ram, encryption)
    except FormatError:
        return None


def _in_image(found: DirectMap, pfn: int) -> bool:
    spans = found.everything.of_state(Stop.PRESENT)
    image = spans.select(spans.vaddr >= np.uint64(START_KERNEL_MAP))
    return bool(((image.pfn <= pfn) & (pfn < image.pfn + image.pages)).any())


def plausible_roots(
    memory: PhysicalMemory, ram: FrameRanges, encryption: int, end_pfn: int | None = None
) -> Iterator[int]:
    """Yield frames whose upper half could be a root's: some entries, each zero or a table's within the memory.

    Args:
        memory: the memory.
        ram: the frames to look at; all are read.
        encryption: mask of the bit of encrypted memory in entries, see `PageTables`.
        end_pfn: one past the last frame that a table can have; by default that of the memory.
    """
    end = np.uint64((memory.ranges.end if end_pfn is None else end_pfn) << 12)
    candidates = ram.pfns()
    for first in range(0, len(candidates), CHUNK_PAGES):
        pfns = candidates[first : first + CHUNK_PAGES]
        entries = memory.gather(pfns)[0].view(np.uint64)
        rows = np.flatnonzero(_like_tables(entries[:, _SAMPLE], end, encryption).all(axis=1))
        upper = entries[rows, _HALF:]
        rows = rows[_like_tables(upper, end, encryption).all(axis=1) & upper.any(axis=1)]
        yield from pfns[rows].tolist()


def _like_tables(entries: Entries, end: np.uint64, encryption: int) -> BoolArray:
    """Return which entries are zero, or as Linux makes them for the kernel's tables (`_KERNPG_TABLE`, `_PAGE_TABLE`).

    They are present and writable, and neither NX, GLOBAL nor PSE: rights are taken away in leaves.
    """
    asked = np.uint64(Entry.PRESENT | Entry.RW | Entry.PSE | Entry.GLOBAL | Entry.NX)
    table = (entries & asked) == np.uint64(Entry.PRESENT | Entry.RW)
    like: BoolArray = (table & (masked_tables(entries, encryption) < end)) | (entries == 0)
    return like


def bases_of(memory: PhysicalMemory, pfn: int, levels: int, encryption: int) -> set[int]:
    """Return every base at which a direct map would contain the root itself, by the root's own tables.

    A direct map begins at a multiple of 1 GiB, so the root's frame has the same place in its GiB in both addresses.
    """
    slots = _gib_slots(memory, pfn, levels, encryption)
    within = np.uint64((pfn % _PAGES_PER_GIB) << 12)
    found = PageTables(memory, pfn << 12, levels, encryption).translate(slots + within)
    own = slots[(found.pfns == pfn) & (found.reasons == Stop.PRESENT.code)]
    return {base for base in (int(slot) - (pfn // _PAGES_PER_GIB << 30) for slot in own) if base >= 1 << 63}


def _gib_slots(memory: PhysicalMemory, pfn: int, levels: int, encryption: int) -> Addresses:
    """Return the addresses in the kernel half that have an entry at PUD level; none if a kernel never has so many."""
    reader = TableReader(memory, encryption)
    limit = _WITNESSES + 2 * (memory.ranges.end >> 18)
    tables = np.array([pfn], dtype=np.int64)
    vaddrs = np.zeros(1, dtype=np.uint64)
    for number in range(levels, Level.PMD, -1):
        level = Level(number)
        if len(tables) > _MOST_UPPER_TABLES:
            return vaddrs[:0]
        entries = reader.tables(tables)
        states = entry_states(entries, level)
        wanted = states == TABLE
        if level == Level.PUD:
            wanted |= states == Stop.PRESENT.code
        else:
            wanted &= (entries & np.uint64(Entry.PSE)) == 0  # no large page has that size: these are other tables
        if number == levels:
            wanted[:, :_HALF] = False
        rows, index = np.nonzero(wanted)
        if len(rows) > limit:
            return vaddrs[:0]
        vaddrs = vaddrs[rows] + (index.astype(np.uint64) << np.uint64(level.shift))
        if number == levels:
            vaddrs |= np.uint64((1 << 64) - (1 << (12 + 9 * levels)))
        if level > Level.PUD:
            tables, vaddrs = _distinct(reader, reader.frames(entries[rows, index], level), vaddrs)
    return vaddrs


def _distinct(reader: TableReader, tables: Pfns, vaddrs: Addresses) -> tuple[Pfns, Addresses]:
    """Return the tables that exist, each once, and their addresses."""
    exist = reader.exist(tables)
    tables, first = np.unique(tables[exist], return_index=True)
    return tables, vaddrs[exist][first]
