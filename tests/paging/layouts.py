# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables built entry by entry in simulated frames, and a naive walk of them without the library's code."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np

from hibernaut.memory.segments import Segment, SegmentMemory
from hibernaut.paging.tables import PageTables

P, RW, USER, A, D, PSE, GLOBAL, NX = 1, 2, 4, 0x20, 0x40, 0x80, 0x100, 1 << 63
TABLE_FLAGS = P | RW | USER | A | D
KERNEL = NX | GLOBAL | D | A | RW | P
FRAME = 0x000F_FFFF_FFFF_F000


def sizes(level: int) -> int:
    """4K pages that one entry of a level spans."""
    return 1 << (9 * (level - 1))


def inverted(pfn: int, flags: int) -> int:
    """A not-present entry with a frame, as Linux stores it."""
    return ((pfn << 12) ^ FRAME) | flags


@dataclass
class TableLayout:
    """Tables as dictionaries: frame -> {index: entry}. Frame numbers are handed out from `next_pfn`, `stride` apart."""

    levels: int = 4
    root: int = 0x100
    next_pfn: int = 0x101
    stride: int = 1
    tables: dict[int, dict[int, int]] = field(default_factory=dict)
    missing: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.tables[self.root] = {}

    def index(self, vaddr: int, level: int) -> int:
        """Return the index of an address into a table of a level."""
        return (vaddr >> (3 + 9 * level)) & 511

    def new_table(self) -> int:
        """Return the frame of a new, empty table."""
        pfn = self.next_pfn
        self.next_pfn += self.stride
        self.tables[pfn] = {}
        return pfn

    def table_for(self, vaddr: int, level: int) -> int | None:
        """Frame of the table of that level on the address's path, made if needed; None if something is in the way."""
        pfn = self.root
        for at in range(self.levels, level, -1):
            entries = self.tables[pfn]
            entry = entries.setdefault(self.index(vaddr, at), 0)
            if entry == 0:
                entry = entries[self.index(vaddr, at)] = self.new_table() << 12 | TABLE_FLAGS
            if not entry & P or (at in (2, 3) and entry & PSE) or (entry & FRAME) >> 12 not in self.tables:
                return None
            pfn = (entry & FRAME) >> 12
        return pfn

    def put(self, vaddr: int, level: int, entry: int) -> None:
        """Write one entry; what is in the way stays."""
        pfn = self.table_for(vaddr, level)
        if pfn is not None:
            self.tables[pfn][self.index(vaddr, level)] = entry

    def fill(self, vaddr: int, level: int, pfn: int, pages: int, flags: int = KERNEL) -> None:
        """Map a run of frames with leaves of one level."""
        for number in range(pages // sizes(level)):
            step = number * sizes(level)
            self.put(vaddr + (step << 12), level, (pfn + step) << 12 | flags | (PSE if level > 1 else 0))

    def memory(self, extra: list[tuple[int, int]] | None = None) -> SegmentMemory:
        """The tables' frames but the missing ones, and `extra` (first frame, pages) of zeroes, as physical memory."""
        frames = sorted(set(self.tables) - self.missing)
        segments = [Segment(pfn, self._page(pfn)) for pfn in frames]
        # Neighbours become one segment, so that a scan meets runs of tables.
        merged: list[Segment] = []
        for segment in segments:
            if merged and merged[-1].end == segment.start:
                joined = np.concatenate((merged[-1].pages, segment.pages))
                merged[-1] = Segment(merged[-1].start, joined)
            else:
                merged.append(segment)
        zeroes = [Segment(start, np.zeros((pages, 4096), dtype=np.uint8)) for start, pages in extra or []]
        return SegmentMemory([*merged, *zeroes])

    def _page(self, pfn: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
        words = [self.tables[pfn].get(index, 0) for index in range(512)]
        return np.frombuffer(struct.pack("<512Q", *words), dtype=np.uint8).reshape(1, 4096)


@dataclass(frozen=True)
class Found:
    """Result of the naive walk of one address."""

    stop: str
    level: int
    pfn: int
    entry: int
    rights: int
    path: tuple[tuple[int, int, int], ...]  # (table frame, index, entry)


def naive_walk(layout: TableLayout, vaddr: int) -> Found:
    """Walk one address through the dictionaries, by the definitions, without any of the library's code."""
    path: list[tuple[int, int, int]] = []
    pfn = layout.root
    if pfn in layout.missing:
        return Found("table-missing", layout.levels, pfn, 0, 0, ())
    rw, user, nx = True, True, False
    for level in range(layout.levels, 0, -1):
        index = (vaddr >> (3 + 9 * level)) & 511
        entry = layout.tables[pfn].get(index, 0)
        path.append((pfn, index, entry))
        rw, user, nx = rw and bool(entry & RW), user and bool(entry & USER), nx or bool(entry & NX)
        rights = rw * 1 + user * 2 + nx * 4
        if entry in (0, A, D, A | D):
            return Found("none", level, -1, entry, 0, tuple(path))
        within = (vaddr >> 12) % sizes(level)
        if not entry & P:
            frame = (entry & FRAME ^ FRAME) >> 12
            own = frame // sizes(level) * sizes(level) + within if level <= 3 else -1
            return Found("not-present", level, own, entry, rights, tuple(path))
        frame = (entry & FRAME) >> 12
        if level == 1 or (level in (2, 3) and entry & PSE):
            return Found("present", level, frame // sizes(level) * sizes(level) + within, entry, rights, tuple(path))
        if frame not in layout.tables or frame in layout.missing:
            return Found("table-missing", level, frame, entry, rights, tuple(path))
        pfn = frame
    raise AssertionError("unreachable")


def tables_of(layout: TableLayout) -> PageTables:
    """Return the page tables of a layout."""
    return PageTables(layout.memory(), layout.root << 12, layout.levels)


def canonical_pages(levels: int) -> int:
    """Return the number of pages of the address space."""
    return 1 << (9 * levels)


def words(memory: SegmentMemory, start: int, pages: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
    """Return pages of a memory as entries, shape (pages, 512)."""
    return memory.run(start, pages).view(np.uint64)


def segments(words: np.ndarray[tuple[int, int], np.dtype[np.uint64]], start: int = 0) -> list[Segment]:
    """Return entries, shape (pages, 512), as memory from a frame on."""
    return [Segment(start, np.ascontiguousarray(words).view(np.uint8).reshape(-1, 4096))]
