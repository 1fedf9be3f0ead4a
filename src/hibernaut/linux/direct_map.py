# SPDX-License-Identifier: GPL-2.0-or-later
"""The direct map, the linear mapping of all RAM, with its holes; found in the tables without symbols.

It is the one region where the difference between virtual address and frame is constant over nearly all RAM
(Documentation/arch/x86/x86_64/mm.rst: "direct mapping of all physical memory", `page_offset_base`). KASLR moves it to
another 1 GiB-aligned address (arch/x86/mm/kaslr.c); kernel text, vmalloc and vmemmap have other differences.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.errors import FormatError
from hibernaut.memory.ranges import FrameRanges
from hibernaut.notebook import html_table
from hibernaut.paging.entries import FRAME_MASK, Entry, Level
from hibernaut.paging.spans import Codes, Rights, Spans, Stop
from hibernaut.paging.tables import PageTables

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from hibernaut.memory.page import Pfns
    from hibernaut.memory.physical import PhysicalMemory

__all__ = [
    "NAMES_ITS_FRAME",
    "START_KERNEL_MAP",
    "DirectMap",
    "FrameState",
    "Hole",
    "Mismatch",
    "Regions",
    "frame_states",
    "frames_in_state",
    "writable_holes",
]

START_KERNEL_MAP = 0xFFFF_FFFF_8000_0000
"""`__START_KERNEL_map`: the kernel maps its own image from here on, with or without KASLR
(arch/x86/include/asm/page_64_types.h). In a small machine it covers most frames, but it is not a direct map."""

SHOWN_HOLES = 50
"""Holes that a notebook shows."""
_PAGES_PER_GIB = 1 << 18
_TOP_PAGE = 1 << 52


class FrameState(IntEnum):
    """State of one frame in the direct map."""

    PRESENT = 0
    """Plainly present: the address of the frame maps it."""
    NOT_PRESENT_4K = 1
    """A not-present 4K entry with the frame's own number."""
    NOT_PRESENT_LARGE = 2
    """Inside a not-present 2M or 1G entry that names the frame."""
    NONE_IN_TABLE = 3
    """No entry, in a PTE table that exists."""
    NONE_ABOVE = 4
    """No entry above PTE level, so that there is no table for one. Also the state of frames without any address."""
    TABLE_MISSING = 5
    """The table that decides is not in the source."""
    OTHER_FRAME = 6
    """A present entry with another frame's number: garbage."""
    NOT_PRESENT_PLAIN = 7
    """A not-present 4K entry with the frame's own number, not inverted, as KFENCE left it (`rules.kfence_inverts`): the
    frame is known by its place, but the kernel's own functions read another one."""
    NOT_PRESENT_LARGE_PLAIN = 8
    """The same for a 2M or 1G entry."""
    NOT_PRESENT_OTHER = 9
    """A not-present entry that names another frame, inverted or not."""
    NOT_PRESENT_ABOVE = 10
    """A not-present entry above PUD level that is not zero: no large page has that size."""
    RESERVED_BITS = 11
    """A present 2M or 1G entry with reserved bits set: every access faults (Intel SDM vol. 3, 5.7)."""
    NOT_FOLLOWED = 12
    """An entry that the kernel, or the CPU too, takes for a table, and the scan does not: a loop, a table that is
    shared too often, a PMD entry with PROTNONE (`pmd_present`), a PGD entry without PRESENT."""


_NOT_PRESENT = (
    FrameState.NOT_PRESENT_4K,
    FrameState.NOT_PRESENT_PLAIN,
    FrameState.NOT_PRESENT_LARGE,
    FrameState.NOT_PRESENT_LARGE_PLAIN,
)
"""The states of frames whose entry is not present and names them."""

_PLAIN = (FrameState.NOT_PRESENT_PLAIN, FrameState.NOT_PRESENT_LARGE_PLAIN)
"""Those of them whose entry is not inverted."""

NAMES_ITS_FRAME = (FrameState.PRESENT, *_NOT_PRESENT)
"""The states of frames whose entry names them, present or not: on that machine they are RAM."""

_WRONG = (
    FrameState.OTHER_FRAME,
    FrameState.NOT_PRESENT_OTHER,
    FrameState.RESERVED_BITS,
    FrameState.NOT_FOLLOWED,
)
"""The states of frames whose entry names something else."""


@dataclass(frozen=True)
class Hole:
    """Neighbouring frames that the direct map does not map, for one reason.

    Attributes:
        start_pfn: first frame.
        pages: number of frames.
        level: level of the entry that decides.
        kind: NOT_PRESENT, NONE or TABLE_MISSING.
        entry: raw entry that covers the first frame.
        in_source: whether the source holds these frames: RAM without a mapping, rather than no RAM.
        plain: whether not-present entries hold their frames as they are (`FrameState.NOT_PRESENT_PLAIN`), not inverted.
    """

    start_pfn: int
    pages: int
    level: Level
    kind: Stop
    entry: int
    in_source: bool
    plain: bool = False


@dataclass(frozen=True)
class Mismatch:
    """Neighbouring entries inside the direct map, present or not, whose frame is not the one their address stands for.

    They occur on real machines after a resume, in a page table that the image did not contain.

    Attributes:
        start_pfn: frame that the first address stands for.
        pages: number of pages.
        level: level of the entries.
        entry: the first raw entry.
        found_pfn: frame in that entry, which the next frames follow; -1 if there is none. For an entry that names a
            table which was not followed (a loop, or shared): the table's frame.
    """

    start_pfn: int
    pages: int
    level: Level
    entry: int
    found_pfn: int


@dataclass(frozen=True, eq=False)
class Regions:
    """Frames by their state in the direct map: ascending, without gaps from frame 0; arrays of shape (n,).

    Attributes:
        start_pfn: first frame of each region, int64.
        pages: length of each region, int64.
        state: `FrameState` of each region, uint8; neighbours differ.
    """

    start_pfn: Pfns
    pages: NDArray[np.int64]
    state: Codes


@dataclass(frozen=True, eq=False)
class DirectMap:
    """The direct map, as its tables describe it.

    Attributes:
        base: address of frame 0 (`PAGE_OFFSET`).
        levels: levels of the tables, 4 or 5.
        cr3: root of the tables.
        end_pfn: one past the last frame considered. That is the end of the last entry that maps its own frame, present
            or not; or, if further, of the source's range that contains it, and of not-present entries and missing
            tables that follow without a gap. RAM further up without any entry (a graphics card's memory in QEMU's
            dumps) does not count as a hole.
        spans: spans of the tables from frame 0 to `end_pfn`.
        everything: spans from frame 0 to the top of the address space; other mappings follow beyond `end_pfn`.
        tables: the tables.
    """

    base: int
    levels: int
    cr3: int
    end_pfn: int
    spans: Spans
    everything: Spans
    tables: PageTables

    @classmethod
    def find(
        cls,
        memory: PhysicalMemory,
        cr3: int,
        levels: int | None = None,
        ram: FrameRanges | None = None,
        encryption: int = 0,
    ) -> DirectMap:
        """Find the direct map in the tables that `cr3` names.

        Args:
            memory: RAM, or the part of it that is known.
            cr3: root of the tables.
            levels: 4 or 5; None to try both.
            ram: frames that count as RAM. Default: all frames of the memory; if the tables map less than half of them
                (in a raw dump padded over the gaps between RAM), those that are not all zeroes.
            encryption: see `PageTables`.

        Raises:
            FormatError: no constant, 1 GiB-aligned difference in the kernel half maps at least half of those frames,
                or the tables are hostile.
        """
        refusals = []
        for number in (4, 5) if levels is None else (levels,):
            tables = PageTables(memory, cr3, number, encryption)
            try:
                return cls._in(tables, memory.ranges if ram is None else ram)
            except FormatError as refusal:
                refusals.append(f"{number} levels: {refusal}")
        if ram is None:
            occupied = memory.occupied()
            if 0 < occupied.total_pages < memory.ranges.total_pages:
                return cls.find(memory, cr3, levels, occupied, encryption)
        raise FormatError(
            f"no direct map under CR3 {cr3:#x} ({'; '.join(refusals)})",
            advice="give the root of the kernel's own page tables as --cr3, or leave that out to search for it",
        )

    @classmethod
    def _in(cls, tables: PageTables, ranges: FrameRanges) -> DirectMap:
        kernel_half = (1 << 64) - (1 << (11 + 9 * tables.levels))
        spans = tables.scan(kernel_half)
        _refuse_malformed(spans)
        base, fitting = _best_base(spans, kernel_half, ranges)
        if not fitting or 2 * fitting < ranges.total_pages:
            raise FormatError(
                "no one difference between address and frame holds for most of RAM",
                expected=f"at least half of {ranges.total_pages} frames",
                found=f"{fitting} of them at most",
            )
        everything = _plain_apart(spans.clipped(base >> 12, _TOP_PAGE), base, tables.encryption)
        end = _end(everything, base, ranges, tables.encryption)
        clipped = everything.clipped(base >> 12, (base >> 12) + end)
        return cls(base, tables.levels, tables.cr3, end, clipped, everything, tables)

    @classmethod
    def at(
        cls, memory: PhysicalMemory, cr3: int, levels: int, base: int, end_pfn: int, encryption: int = 0
    ) -> DirectMap:
        """Return the direct map of a known machine, whatever its tables say by now.

        Raises:
            FormatError: the tables are hostile.
        """
        tables = PageTables(memory, cr3, levels, encryption)
        spans = tables.scan((1 << 64) - (1 << (11 + 9 * levels)))
        everything = _plain_apart(spans.clipped(base >> 12, _TOP_PAGE), base, encryption)
        clipped = everything.clipped(base >> 12, (base >> 12) + end_pfn)
        return cls(base, levels, cr3, end_pfn, clipped, everything, tables)

    def on_tables(self, tables: PageTables) -> DirectMap:
        """Return the same direct map on other tables with the same content; what was derived from it is shared."""
        twin = object.__new__(DirectMap)
        twin.__dict__.update(self.__dict__, tables=tables)
        return twin

    def vaddr(self, pfn: int) -> int:
        """Return the direct-map address of a frame (`__va`), mapped or not."""
        return (self.base + (pfn << 12)) % (1 << 64)

    @cached_property
    def states(self) -> Codes:
        """The `FrameState` of each of `spans`, uint8."""
        return frame_states(self.spans, self.base, self.tables.encryption)

    @cached_property
    def present_bytes(self) -> dict[str, int]:
        """Bytes plainly present, by size of leaf: "4K", "2M", "1G"; without entries that have a wrong frame."""
        states = self.states
        plain = states == FrameState.PRESENT
        return {
            level.size: 4096 * int(self.spans.pages[plain & (self.spans.level == level)].sum())
            for level in (Level.PTE, Level.PMD, Level.PUD)
        }

    @cached_property
    def holes(self) -> tuple[Hole, ...]:
        """All holes up to `end_pfn`, ascending, split where kind, level, `plain` or `in_source` changes."""
        return self.first_holes(None)[0]

    def first_holes(self, at_most: int | None) -> tuple[tuple[Hole, ...], int]:
        """Return the first of `holes`, and the number of all: a hostile table can make one of every other frame."""
        mapped = np.isin(self.states, [FrameState.PRESENT, *_WRONG])
        ranges = self.tables.memory.ranges
        bounds = np.unique(np.concatenate((ranges.starts, ranges.starts + ranges.nr_pages)))
        parts = self.spans.select(~mapped).split(bounds.astype(np.uint64) + np.uint64(self.base >> 12))
        start = _first_frames(parts, self.base)
        in_source = ranges.contains(start)
        plain = np.isin(frame_states(parts, self.base, self.tables.encryption), _PLAIN)
        key = parts.level.astype(np.int64) << 16 | parts.state.astype(np.int64) << 8 | plain << 1 | in_source
        firsts = _group_starts(key, start, parts.pages)
        ends = [*firsts[1:].tolist(), len(key)]
        listed = tuple(
            Hole(
                start_pfn=int(start[first]),
                pages=int(parts.pages[first:end].sum()),
                level=Level(int(parts.level[first])),
                kind=Stop.of_code(int(parts.state[first])),
                entry=int(parts.entry[first]),
                in_source=bool(in_source[first]),
                plain=bool(plain[first]),
            )
            for first, end in zip(firsts[:at_most].tolist(), ends[:at_most], strict=False)
        )
        return listed, len(firsts)

    @cached_property
    def mismatches(self) -> tuple[Mismatch, ...]:
        """All runs of entries up to `end_pfn` whose frame is not the one their address stands for, ascending."""
        return self.first_mismatches(None)[0]

    def first_mismatches(self, at_most: int | None) -> tuple[tuple[Mismatch, ...], int]:
        """Return the first of `mismatches`, and the number of all."""
        wrong = self.spans.select(np.isin(self.states, _WRONG))
        first = wrong.select(slice(0, at_most))
        starts = _first_frames(first, self.base).tolist()
        listed = (
            Mismatch(start, span.pages, span.level, span.entry, span.pfn)
            for start, span in zip(starts, first, strict=True)
        )
        return tuple(listed), len(wrong)

    def _repr_html_(self) -> str:
        holes, number = self.first_holes(SHOWN_HOLES)
        present = ", ".join(f"{size} {pages_bytes >> 10} KiB" for size, pages_bytes in self.present_bytes.items())
        rows = [(f"{one.start_pfn:#x}", one.pages, one.level.size, one.kind, f"{one.entry:#x}") for one in holes]
        caption = f"direct map from {self.base:#x}, frames 0 to {self.end_pfn:#x}; present: {present}; holes: {number}"
        return html_table(caption, ("first frame", "pages", "level", "kind", "first entry"), rows)

    @cached_property
    def regions(self) -> Regions:
        """All frames by state: as many regions as there are changes of state, whatever the size of RAM.

        They continue beyond `end_pfn`, by the tables' entries for the addresses there.
        """
        states = frame_states(self.everything, self.base, self.tables.encryption)
        first = np.flatnonzero(np.concatenate(([True], states[1:] != states[:-1])))
        start = _first_frames(self.everything, self.base)[first]
        end = _TOP_PAGE - (self.base >> 12)
        return Regions(start, np.diff(start, append=end), states[first])

    @cached_property
    def in_state(self) -> dict[tuple[FrameState, ...], FrameRanges]:
        """Results of `frames_in_state`, by its states."""
        return {}

    def classify(self, pfns: ArrayLike) -> Codes:
        """Return the `FrameState` of each frame, uint8, shape as given; fastest for ascending frames.

        Args:
            pfns: frame numbers, int64, shape (n,).
        """
        pfns = np.asarray(pfns, dtype=np.int64)
        regions = self.regions
        end = _TOP_PAGE - (self.base >> 12)
        if len(pfns) > 4 * len(regions.start_pfn) and bool((pfns[1:] >= pfns[:-1]).all()):
            bounds = np.searchsorted(pfns, np.append(regions.start_pfn, end))
            counts = np.diff(bounds)
            outside = np.full(len(pfns) - int(bounds[-1]), FrameState.NONE_ABOVE, dtype=np.uint8)
            before = np.full(int(bounds[0]), FrameState.NONE_ABOVE, dtype=np.uint8)
            return np.concatenate((before, np.repeat(regions.state, counts), outside))
        index = np.searchsorted(regions.start_pfn, pfns, side="right") - 1
        states = regions.state[np.maximum(index, 0)]
        states[(index < 0) | (pfns >= end)] = FrameState.NONE_ABOVE
        return states


def _first_frames(spans: Spans, base: int) -> Pfns:
    """Return the frame that each span's address stands for."""
    return (spans.vaddr >> np.uint64(12)).astype(np.int64) - (base >> 12)


def frame_states(spans: Spans, base: int, encryption: int = 0) -> Codes:
    """Return the `FrameState` of each span; those of plain entries lie within one entry (`_plain_apart`)."""
    malformed = _malformed(spans)
    own = (spans.pfn == _first_frames(spans, base)) & ~malformed
    pte = spans.level == Level.PTE
    present = spans.state == Stop.PRESENT.code
    none = spans.state == Stop.NONE.code
    not_present = spans.state == Stop.NOT_PRESENT.code
    plain = not_present & (_plain_from(spans, base, encryption) == 0)
    states = np.full(len(spans), FrameState.NOT_FOLLOWED, dtype=np.uint8)
    states[present] = FrameState.OTHER_FRAME
    states[present & malformed] = FrameState.RESERVED_BITS
    states[present & own] = FrameState.PRESENT
    states[not_present] = FrameState.NOT_PRESENT_OTHER
    states[plain & pte] = FrameState.NOT_PRESENT_PLAIN
    states[plain & ~pte] = FrameState.NOT_PRESENT_LARGE_PLAIN
    states[not_present & own & pte] = FrameState.NOT_PRESENT_4K
    states[not_present & own & ~pte] = FrameState.NOT_PRESENT_LARGE
    # Above PUD no leaf exists, so that such an entry names no frame, right or wrong.
    states[not_present & (spans.pfn < 0)] = FrameState.NOT_PRESENT_ABOVE
    states[not_present & _read_as_table(spans)] = FrameState.NOT_FOLLOWED
    states[none & pte] = FrameState.NONE_IN_TABLE
    states[none & ~pte] = FrameState.NONE_ABOVE
    states[spans.state == Stop.TABLE_MISSING.code] = FrameState.TABLE_MISSING
    return states


def _read_as_table(spans: Spans) -> NDArray[np.bool_]:
    """Return which not-present entries the kernel takes for a table all the same (`pgtable.lookup_address`)."""
    protnone = (spans.entry & np.uint64(Entry.GLOBAL | Entry.PSE)) == np.uint64(Entry.GLOBAL)
    read: NDArray[np.bool_] = ((spans.level == Level.PMD) & protnone) | (spans.level == Level.PGD)
    return read


def _plain_from(spans: Spans, base: int, encryption: int) -> NDArray[np.int64]:
    """Return for each span the one entry, counted from 0, whose frame is its own if stored as it is; -1 for none.

    It can be no more than one: from entry to entry the address goes up by a leaf's size, and the stored frame of a run
    of not-present entries goes down by it (`spans.entry_steps`).
    """
    shift = 9 * (spans.level.astype(np.int64) - 1)
    first = _first_frames(spans, base) >> shift
    stored = (spans.entry & np.uint64(FRAME_MASK & ~encryption)) >> np.uint64(12)
    aligned = (stored & ((np.uint64(1) << shift.astype(np.uint64)) - np.uint64(2))) == 0  # bit 0 of a large one is PAT
    aligned |= spans.level == Level.PTE
    distance = (stored.astype(np.int64) >> shift) - first
    entries = (_first_frames(spans, base) + spans.pages - 1 >> shift) - first + 1
    found = aligned & (spans.level <= Level.PUD) & (distance % 2 == 0) & (distance >= 0) & (distance // 2 < entries)
    return np.where(found & (spans.state == Stop.NOT_PRESENT.code), distance // 2, -1)


def _plain_apart(spans: Spans, base: int, encryption: int) -> Spans:
    """Return the spans, each entry that holds its own frame as it is in a span of its own."""
    plain = _plain_from(spans, base, encryption)
    which = np.flatnonzero(plain >= 0)
    if not len(which):
        return spans
    shift = 9 * (spans.level[which].astype(np.int64) - 1)
    first = ((_first_frames(spans, base)[which] >> shift) + plain[which] << shift) + (base >> 12)
    return spans.split(np.unique(np.concatenate((first, first + (np.int64(1) << shift)))).astype(np.uint64))


def _refuse_malformed(spans: Spans) -> None:
    """Refuse tables that were read with the wrong number of levels: 2M leaves look like 1G ones at impossible frames.

    The reserved bits of a large leaf (13 up to its size) are zero. A few leaves with other values may be garbage in
    good tables.
    """
    leaves = spans.select((spans.state == Stop.PRESENT.code) & (spans.level > Level.PTE))
    count = leaves.pages >> (9 * (leaves.level.astype(np.int64) - 1))
    malformed = int(count[_malformed(leaves)].sum())
    if 2 * malformed > int(count.sum()):
        raise FormatError(f"{malformed} of {int(count.sum())} large leaves have reserved bits set")


def _malformed(spans: Spans) -> NDArray[np.bool_]:
    """Return which spans are large leaves, present or not, whose frame is not a multiple of their size.

    Bit 12 of such a leaf is PAT, no part of the frame.
    """
    large = (spans.level == Level.PMD) | (spans.level == Level.PUD)
    size = np.uint64(1) << (12 + 9 * (spans.level.astype(np.uint64) - np.uint64(1)))
    inverted = spans.state == Stop.NOT_PRESENT.code
    entry = np.where(inverted, spans.entry ^ np.uint64(FRAME_MASK), spans.entry)
    leaf = inverted | (spans.state == Stop.PRESENT.code)
    malformed: NDArray[np.bool_] = large & leaf & ((entry & (size - np.uint64(1 << 13))) >= np.uint64(1 << 13))
    return malformed


def _best_base(spans: Spans, kernel_half: int, ranges: FrameRanges) -> tuple[int, int]:
    """Return the 1 GiB-aligned difference between address and frame that holds for most frames, and for how many.

    Not-present leaves count, since their entries hold their frames. A difference that leads below the kernel half, or
    to the mapping of the kernel's own image, does not count.
    """
    leaves = spans.of_state(Stop.PRESENT, Stop.NOT_PRESENT)
    page = (leaves.vaddr >> np.uint64(12)).astype(np.int64)
    base = page - leaves.pfn
    fits = (leaves.pfn >= 0) & ~_malformed(leaves) & (base % _PAGES_PER_GIB == 0) & (base >= kernel_half >> 12)
    fits &= base < START_KERNEL_MAP >> 12
    base, first, pages = base[fits], leaves.pfn[fits], leaves.pages[fits]
    if not len(base):
        return 0, 0
    counts = _frames_below(ranges, first + pages) - _frames_below(ranges, first)
    bases, which = np.unique(base, return_inverse=True)
    totals = np.bincount(which, weights=counts)
    best = int(np.argmax(totals))
    return int(bases[best]) << 12, int(totals[best])


def _frames_below(ranges: FrameRanges, pfns: Pfns) -> NDArray[np.int64]:
    """Return how many frames the memory has below each of these."""
    before = np.concatenate(([0], np.cumsum(ranges.nr_pages)))
    index = np.searchsorted(ranges.starts, pfns, side="right")
    last = np.maximum(index - 1, 0)
    partial = np.minimum(pfns - ranges.starts[last], ranges.nr_pages[last])
    return np.where(index > 0, before[last] + partial, 0)


def _end(spans: Spans, base: int, ranges: FrameRanges, encryption: int) -> int:
    """Return `DirectMap.end_pfn`; `spans` begin at frame 0."""
    start = _first_frames(spans, base)
    states = frame_states(spans, base, encryption)
    own = np.isin(states, NAMES_ITS_FRAME)
    own &= spans.pfn >= 0
    last = int(np.flatnonzero(own)[-1])
    end = int(start[last] + spans.pages[last])
    ends = ranges.starts + ranges.nr_pages
    index = int(np.searchsorted(ranges.starts, end, side="right")) - 1
    if index >= 0:
        end = max(end, int(ends[index]))
    continues = np.isin(states, [*_NOT_PRESENT, FrameState.NOT_PRESENT_ABOVE, FrameState.TABLE_MISSING])
    index = int(np.searchsorted(start, end, side="right")) - 1
    # RAM behind the end of the memory in which not even a PMD table is named is a guess of 512 GiB and more.
    continues &= (spans.level <= Level.PUD) | (start < ranges.end)
    while index < len(spans) and continues[index]:
        end = int(start[index] + spans.pages[index])
        index += 1
    return end


def _group_starts(key: NDArray[np.int64], start: Pfns, pages: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the first position of each run of neighbours with the same key and without a gap between them."""
    if not len(key):
        return np.empty(0, dtype=np.int64)
    new = (key[1:] != key[:-1]) | (start[1:] != start[:-1] + pages[:-1])
    return np.flatnonzero(np.concatenate(([True], new)))


def frames_in_state(direct_map: DirectMap, *states: FrameState) -> FrameRanges:
    """Return the frames for which the direct map has one of these states."""
    known = direct_map.in_state
    found = known.get(states)
    if found is None:
        found = known[states] = _in_state(direct_map.regions, states)
    return found


def _in_state(regions: Regions, states: tuple[FrameState, ...]) -> FrameRanges:
    """Return the frames of the regions with one of these states."""
    which = np.isin(regions.state, states)
    starts, pages = regions.start_pfn[which], regions.pages[which]
    first = np.flatnonzero(np.append(True, starts[1:] != starts[:-1] + pages[:-1])[: len(starts)])
    return FrameRanges(starts[first], np.add.reduceat(pages, first) if len(first) else pages)


def writable_holes(direct_map: DirectMap) -> FrameRanges:
    """Return the frames that have a not-present 4K entry of their own with RW, in every level of the tables.

    Code that made such an entry not present cleared PRESENT and left RW: `set_direct_map_invalid_noflush` clears both.
    """
    spans = direct_map.everything
    states = frame_states(spans, direct_map.base, direct_map.tables.encryption)
    which = np.isin(states, [FrameState.NOT_PRESENT_4K, FrameState.NOT_PRESENT_PLAIN])
    which &= (spans.rights & Rights.RW) != 0
    starts = _first_frames(spans, direct_map.base)[which]
    return FrameRanges.of(list(zip(starts.tolist(), spans.pages[which].tolist(), strict=True)))
