# SPDX-License-Identifier: GPL-2.0-or-later
"""Spans, the result of a whole-table scan, as arrays; and the reasons why a walk stops."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hibernaut.paging.entries import FRAME_MASK, Entries, Level

__all__ = ["Addresses", "Codes", "Rights", "Span", "Spans", "Stop"]

Addresses = NDArray[np.uint64]
"""Virtual addresses, canonical (sign-extended), shape (n,)."""
Codes = NDArray[np.uint8]
"""Small numbers: levels, `Stop.code`s, `Rights`."""


class Stop(enum.StrEnum):
    """Reason why a walk stops. Arrays hold its `code`, the position in this list."""

    PRESENT = "present"
    """A present leaf."""
    NOT_PRESENT = "not-present"
    """An entry that is not none, without PRESENT: at PTE, PMD and PUD a leaf. Its frame is read as if it was inverted;
    `linux.not_present` reads it for what it is."""
    NONE = "none"
    """No entry: zero but for ACCESSED and DIRTY, which an erratum of some Knights Landing CPUs sets in such entries
    (`pte_none` in arch/x86/include/asm/pgtable.h, its counterparts in pgtable_64.h)."""
    TABLE_MISSING = "table-missing"
    """A present entry names a table whose frame is not in the memory."""
    LOOP = "loop"
    """Scan only: an entry names a table that is above it."""
    SHARED = "shared"
    """Scan only: an entry names a table that was expanded at this level as often as allowed."""
    NON_CANONICAL = "non-canonical"
    """One-address lookups only: no table is consulted for such an address."""

    @property
    def code(self) -> int:
        """Number of this stop in arrays."""
        return _CODES[self]

    @classmethod
    def of_code(cls, code: int) -> Stop:
        """Return the stop with this number."""
        return _STOPS[code]


_STOPS = tuple(Stop)
_CODES = {stop: code for code, stop in enumerate(_STOPS)}


class Rights(enum.IntFlag):
    """Rights by all entries on the way to a leaf, itself included: RW and USER if all have it, NX if any has."""

    RW = 1
    USER = 2
    NX = 4


class Span(NamedTuple):
    """One span, its fields as in `Spans`."""

    vaddr: int
    pages: int
    pfn: int
    level: Level
    state: Stop
    entry: int
    rights: Rights


@dataclass(frozen=True, eq=False)
class Spans:
    """Runs of neighbouring entries of one kind, ascending by virtual address; arrays of shape (n,).

    Two neighbours are in one span if level, state and effective rights are equal, *all* bits outside the frame are
    equal (ACCESSED, DIRTY and software bits included), and the frame continues: leaves, present or not, name the next
    frame; entries of a table that was not followed name the same one. A span therefore loses nothing: the i-th raw
    entry follows from the first (`entry_at`).

    Attributes:
        vaddr: first address, uint64.
        pages: length in 4096-byte pages, int64.
        pfn: frame of the first page, int64; the table's frame where the state is table-missing, loop or shared; -1 for
            none and for not-present entries above PUD.
        level: level of the entries, uint8.
        state: `Stop.code`, uint8.
        entry: raw entry that covers the first page, uint64.
        rights: effective `Rights`, uint8; 0 for none.
    """

    vaddr: Addresses
    pages: NDArray[np.int64]
    pfn: NDArray[np.int64]
    level: Codes
    state: Codes
    entry: Entries
    rights: Codes

    @classmethod
    def empty(cls) -> Spans:
        """Return no spans."""
        none = np.empty(0, dtype=np.uint8)
        signed = np.empty(0, dtype=np.int64)
        unsigned = np.empty(0, dtype=np.uint64)
        return cls(unsigned, signed, signed, none, none, unsigned, none)

    @classmethod
    def concatenate(cls, parts: list[Spans]) -> Spans:
        """Return all spans of all parts, in order."""
        parts = [part for part in parts if len(part)]
        if len(parts) < 2:
            return parts[0] if parts else cls.empty()
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    @classmethod
    def merged(cls, parts: list[Spans]) -> Spans:
        """Return all spans of all parts, ascending by address."""
        parts = [part for part in parts if len(part)]
        vaddr = np.concatenate([np.empty(0, dtype=np.uint64), *(part.vaddr for part in parts)])
        if (vaddr[1:] >= vaddr[:-1]).all():
            return cls.concatenate(parts)
        place = np.empty(len(vaddr), dtype=np.int64)
        place[np.argsort(vaddr, kind="stable")] = np.arange(len(vaddr))
        columns = []
        for field in fields(
            cls
        ):  # straight to their places: spans can be many, and a copy costs what making them costs
            column = np.empty(len(vaddr), dtype=getattr(parts[0], field.name).dtype)
            at = 0
            for part in parts:
                column[place[at : at + len(part)]] = getattr(part, field.name)
                at += len(part)
            columns.append(column)
        return cls(*columns)

    def select(self, which: NDArray[np.bool_] | NDArray[np.int64] | slice) -> Spans:
        """Return the spans that a mask, an array of indices or a slice selects."""
        return Spans(*(getattr(self, field.name)[which] for field in fields(self)))

    def of_state(self, *stops: Stop) -> Spans:
        """Return the spans with one of these states."""
        return self.select(np.isin(self.state, [stop.code for stop in stops]))

    @property
    def end_page(self) -> NDArray[np.uint64]:
        """One past the last page, as page number (address / 4096; an address would overflow at the top)."""
        return (self.vaddr >> np.uint64(12)) + self.pages.astype(np.uint64)

    def entry_at(self, index: int, page: int) -> int:
        """Return the raw entry that covers one page (counted from 0) of one span."""
        level = Level(int(self.level[index]))
        within = (int(self.vaddr[index]) >> 12) & (level.pages - 1)  # a clipped span may begin inside its entry
        step = int(entry_steps(self.level[index : index + 1], self.state[index : index + 1])[0])
        return (int(self.entry[index]) + step * ((within + page) // level.pages)) % (1 << 64)

    def coalesced(self) -> Spans:
        """Return the spans with neighbours joined where nothing is lost; see the class."""
        if len(self) < 2:
            return self
        joins = _joins(self)
        starts = np.flatnonzero(np.concatenate(([True], ~joins)))
        if len(starts) == len(self):
            return self
        heads = self.select(starts)
        return Spans(
            heads.vaddr,
            np.add.reduceat(self.pages, starts),
            heads.pfn,
            heads.level,
            heads.state,
            heads.entry,
            heads.rights,
        )

    def clipped(self, first_page: int, end_page: int) -> Spans:
        """Return the parts of all spans within a range of page numbers (address / 4096), `end_page` excluded."""
        if first_page >= end_page:
            return self.empty()
        begin = self.vaddr >> np.uint64(12)
        end = self.end_page
        hit = (begin < np.uint64(end_page)) & (end > np.uint64(first_page))
        if hit.all() and len(self) and int(begin[0]) >= first_page and int(end[-1]) <= end_page:
            return self
        kept = self.select(hit)
        begin, end = begin[hit], end[hit]
        new_begin = np.maximum(begin, np.uint64(first_page))
        new_end = np.minimum(end, np.uint64(end_page))
        return kept._advanced((new_begin - begin).astype(np.int64), (new_end - new_begin).astype(np.int64))

    def split(self, pages: NDArray[np.uint64]) -> Spans:
        """Return the spans, cut at these page numbers (address / 4096; ascending) where they fall inside a span."""
        begin = self.vaddr >> np.uint64(12)
        end = self.end_page
        low = np.searchsorted(pages, begin, side="right")
        cuts = np.searchsorted(pages, end, side="left") - low
        if not cuts.any():
            return self
        parts = cuts + 1
        which = np.repeat(np.arange(len(self)), parts)
        number = np.arange(len(which)) - np.repeat(np.cumsum(parts) - parts, parts)
        starts = begin[which]
        later = number > 0
        starts[later] = pages[(low[which] + number - 1)[later]]
        ends = end[which]
        inner = number < cuts[which]
        ends[inner] = pages[(low[which] + number)[inner]]
        return self.select(which)._advanced((starts - begin[which]).astype(np.int64), (ends - starts).astype(np.int64))

    def _advanced(self, by: NDArray[np.int64], pages: NDArray[np.int64]) -> Spans:
        """Return the spans, each begun `by` pages later and `pages` long."""
        steps = entry_steps(self.level, self.state)
        shift = (9 * (self.level.astype(np.int64) - 1)).astype(np.int64)
        within = (self.vaddr >> np.uint64(12)).astype(np.int64) & ((np.int64(1) << shift) - 1)
        entries = self.entry + steps * ((within + by) >> shift).astype(np.uint64)
        moves = (self.pfn >= 0) & np.isin(self.state, [Stop.PRESENT.code, Stop.NOT_PRESENT.code])
        return Spans(
            self.vaddr + (by.astype(np.uint64) << np.uint64(12)),
            pages,
            np.where(moves, self.pfn + by, self.pfn),
            self.level,
            self.state,
            entries,
            self.rights,
        )

    def __len__(self) -> int:
        return len(self.vaddr)

    def __iter__(self) -> Iterator[Span]:
        columns = (self.vaddr, self.pages, self.pfn, self.level, self.state, self.entry, self.rights)
        for vaddr, pages, pfn, level, state, entry, rights in zip(*(c.tolist() for c in columns), strict=True):
            yield Span(vaddr, pages, pfn, Level(level), _STOPS[state], entry, Rights(rights))


def entry_steps(levels: Codes, states: Codes) -> Entries:
    """Return the difference between neighbouring raw entries of the same span (modulo 2^64).

    One leaf's size for present leaves, minus that for not-present ones (their frame bits are inverted), 0 for all else.
    """
    size = np.uint64(1) << (np.uint64(12) + np.uint64(9) * (levels.astype(np.uint64) - np.uint64(1)))
    leaf = levels <= Level.PUD
    step = np.where(states == Stop.PRESENT.code, size, np.uint64(0))
    return np.where((states == Stop.NOT_PRESENT.code) & leaf, np.uint64(0) - size, step)


def _joins(spans: Spans) -> NDArray[np.bool_]:
    """Return for each span but the first whether it continues the one before it."""
    same_entry = spans.entry[1:] == spans.entry[:-1]
    next_frame = (spans.pfn + spans.pages)[:-1] == spans.pfn[1:]
    likely = np.flatnonzero(same_entry | next_frame)  # few, where spans are many
    joins = np.zeros(len(spans) - 1, dtype=np.bool_)
    joins[likely] = _follow(spans.select(likely), spans.select(likely + 1))
    return joins


def _follow(before: Spans, after: Spans) -> NDArray[np.bool_]:
    """Return for each pair of spans whether the second continues the first."""
    shift = 9 * (before.level.astype(np.int64) - 1)
    within = (before.vaddr >> np.uint64(12)).astype(np.int64) & ((np.int64(1) << shift) - 1)  # of a clipped span
    counts = ((within + before.pages) >> shift).astype(np.uint64)
    continued = before.entry + entry_steps(before.level, before.state) * counts
    follow: NDArray[np.bool_] = continued == after.entry
    follow &= ((before.entry ^ after.entry) & np.uint64(~FRAME_MASK & (2**64 - 1))) == 0
    follow &= before.end_page == (after.vaddr >> np.uint64(12))
    for name in ("level", "state", "rights"):
        follow &= getattr(before, name) == getattr(after, name)
    return follow
