# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole-table scan, level by level, for `PageTables.scan`.

A level is one list of tables. The scan first tests each table for being one run of consecutive frames with the same
flags, as most tables of a direct map are. The test costs one subtraction and one comparison an entry; two threads run
it in the order of the tables in memory, in chunks that fit in a cache. Only the other tables are read entry by entry.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from hibernaut.errors import FormatError
from hibernaut.memory.page import PAGE_SIZE, BoolArray, Pfns
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.paging.entries import ENTRIES, FRAME_MASK, Entries, Entry, Level
from hibernaut.paging.reader import TableReader
from hibernaut.paging.spans import Addresses, Codes, Rights, Spans, Stop, entry_steps
from hibernaut.parallel import in_order

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TABLE", "entry_rights", "entry_states", "scan", "table_frames"]

UNIFORM_CHUNK = 480
"""Tables that a thread tests in one piece of work for being uniform (2 MiB). For arrays below 500 elements NumPy keeps
the interpreter's lock, so that work once a table does not wait for the other thread.
"""

COMPARED_TABLES = 120
"""Tables whose entries are compared with their predecessors at a time: they, and the differences, stay in a cache."""

MIXED_CHUNK = 128
"""Tables that a thread reads entry by entry at a time (64 Ki entries; some fifteen arrays of that length)."""

THREADS = 2

EXPANSIONS = 16
"""Number of times that one frame is expanded as a table of one level before it is reported as shared."""

TABLE = 0xFF
"""State of an entry that names a table, among `Stop` codes."""

_FLAGS = np.uint64(~FRAME_MASK & (2**64 - 1))
_PRESENT = np.uint64(Entry.PRESENT)
_PSE = np.uint64(Entry.PSE)
_NOT_NONE = np.uint64(~(Entry.ACCESSED | Entry.DIRTY) & (2**64 - 1))
_ALL_TRUE = np.uint64(0x0101_0101_0101_0101)

Part = TypeVar("Part")


@dataclass(frozen=True, eq=False)
class _Tables:
    """Tables of one level, ascending by address.

    Attributes:
        vaddr: first address that each table decodes, uint64, shape (n,).
        pfn: frame of each table, int64.
        rights: rights by the entries above each table, uint8.
        above: frames of the tables above it: one array of shape (n,) for each level above.
    """

    vaddr: Addresses
    pfn: Pfns
    rights: Codes
    above: tuple[Pfns, ...]

    @classmethod
    def root(cls, pfn: int) -> _Tables:
        everything = np.array([Rights.RW | Rights.USER], dtype=np.uint8)
        return cls(np.zeros(1, dtype=np.uint64), np.array([pfn], dtype=np.int64), everything, ())

    @classmethod
    def none(cls) -> _Tables:
        frames = np.empty(0, dtype=np.int64)
        return cls(np.empty(0, dtype=np.uint64), frames, np.empty(0, dtype=np.uint8), ())

    def __len__(self) -> int:
        return len(self.pfn)


@dataclass(frozen=True, eq=False)
class _Named:
    """Entries that name tables: address, entry, rights, and the row of the table that holds the entry."""

    vaddr: Addresses
    entry: Entries
    rights: Codes
    row: NDArray[np.int64]


class _Budget:
    """Limit on the tables that a scan reads and the spans that it keeps, so that hostile tables end it in time.

    Real page tables are no more than the pages that hold them, and few spans fall to a page. Tables beyond twice the
    pages of the memory, or spans beyond 64 a page, with an allowance for small memories, are not real.
    """

    def __init__(self, memory_pages: int) -> None:
        self._memory_pages = memory_pages
        self._tables_left = 2 * memory_pages + (1 << 16)
        self._spans_left = 64 * memory_pages + (1 << 20)
        self._lock = threading.Lock()

    def tables(self, count: int) -> None:
        with self._lock:
            self._tables_left -= count
            self._check(self._tables_left, "tables")

    def spans(self, count: int) -> None:
        with self._lock:
            self._spans_left -= count
            self._check(self._spans_left, "entries that differ")

    def _check(self, left: int, what: str) -> None:
        if left < 0:
            raise FormatError(
                f"page tables name too many {what} for {self._memory_pages} frames of memory: not real tables"
            )


def scan(
    memory: PhysicalMemory, root_pfn: int, levels: int, start: int | None, end: int | None, encryption: int = 0
) -> Spans:
    """See `PageTables.scan`."""
    pages = _page_range(levels, start, end)
    if pages[0] >= pages[1]:
        return Spans.empty()
    reader = TableReader(memory, encryption)
    tables = _Tables.root(root_pfn)
    if not reader.exist(tables.pfn)[0]:
        return _rootless(levels, root_pfn).clipped(*pages)
    scanner = _Scanner(reader, levels, pages)
    found = []
    for level in range(levels, 0, -1):
        spans, tables = scanner.level(tables, Level(level))
        found += spans
        if not len(tables):
            break
    return Spans.merged(found).coalesced()


def entry_states(entries: Entries, level: Level) -> Codes:
    """Return the state of each entry on its own, shape as given.

    Returns:
        The `Stop.code` of present (a leaf), not-present or none; `TABLE` for an entry that names a table.
    """
    states = np.where(entries & _NOT_NONE, np.uint8(Stop.NOT_PRESENT.code), np.uint8(Stop.NONE.code))
    present = (entries & _PRESENT).astype(np.bool_)
    if level == Level.PTE:
        states[present] = Stop.PRESENT.code
    elif level > Level.PUD:
        states[present] = TABLE
    else:
        leaf = (entries & _PSE).astype(np.bool_)
        states[present & leaf] = Stop.PRESENT.code
        states[present & ~leaf] = TABLE
    return states


def entry_rights(entries: Entries, above: Codes) -> Codes:
    """Return the effective `Rights` of each entry, given those of the levels above it; shapes alike."""
    own = ((entries >> np.uint64(1)) & np.uint64(Rights.RW | Rights.USER)).astype(np.uint8)
    forbidden = (entries >> np.uint64(61)).astype(np.uint8) & np.uint8(Rights.NX)
    rights: Codes = (own & above) | forbidden | (above & np.uint8(Rights.NX))
    return rights


def _page_range(levels: int, start: int | None, end: int | None) -> tuple[int, int]:
    """Return the first and one-past-last page number (address / 4096) of a request."""
    half = 1 << (11 + 9 * levels)
    first = 0 if start is None else start
    last = (1 << 64) - 1 if end is None else end - 1
    for bound in (first, last):
        if first <= last and not (0 <= bound < half or (1 << 64) - half <= bound < 1 << 64):
            raise ValueError(f"not a canonical address with {levels} levels: {bound:#x}")
    return first >> 12, (last >> 12) + 1


def _rootless(levels: int, root_pfn: int) -> Spans:
    half_pages = 1 << (9 * levels - 1)
    two = np.ones(2, dtype=np.uint8)
    return Spans(
        np.array([0, (1 << 64) - (half_pages << 12)], dtype=np.uint64),
        np.array([half_pages, half_pages], dtype=np.int64),
        np.array([root_pfn, root_pfn], dtype=np.int64),
        two * levels,
        two * Stop.TABLE_MISSING.code,
        np.zeros(2, dtype=np.uint64),
        two * 0,
    )


def table_frames(memory: PhysicalMemory, root_pfn: int, levels: int, encryption: int = 0) -> Pfns:
    """See `PageTables.frames`. Each table is read once a level, however many entries name it."""
    reader = TableReader(memory, encryption)
    tables = np.array([root_pfn], dtype=np.int64)
    found = []
    for level in range(levels, 0, -1):
        tables = tables[reader.exist(tables)]
        found.append(tables)
        if level > Level.PTE:
            tables = _named_by(reader, tables, Level(level))
    return np.unique(np.concatenate(found))


def _named_by(reader: TableReader, tables: Pfns, level: Level) -> Pfns:
    """Return the frames that entries of these tables name as tables, ascending, without repeats."""
    named: list[Pfns] = [np.empty(0, dtype=np.int64)]
    for first in range(0, len(tables), MIXED_CHUNK):
        entries = reader.tables(tables[first : first + MIXED_CHUNK]).reshape(-1)
        named.append(np.unique(reader.frames(entries[entry_states(entries, level) == TABLE], level)))
    return np.unique(np.concatenate(named))


class _Scanner:
    """A scan: memory, bounds and budget."""

    def __init__(self, reader: TableReader, levels: int, pages: tuple[int, int]) -> None:
        self._reader = reader
        self._levels = levels
        self._pages = pages
        self._whole = pages == (0, 1 << 52)
        self._budget = _Budget(reader.memory_pages)

    def level(self, tables: _Tables, level: Level) -> tuple[list[Spans], _Tables]:
        """Scan all tables of one level.

        Returns:
            The spans that end at this level, in parts of any order, and the tables of the next level.
        """
        self._budget.tables(len(tables))
        # The root is not tested: its two halves are not neighbours. Above PUD there are no leaves.
        tested = level <= Level.PUD and level < self._levels
        uniform, heads = self._uniform(tables, level) if tested else (np.zeros(len(tables), dtype=np.bool_), None)
        found = []
        if heads is not None and uniform.any():
            rows = np.flatnonzero(uniform)
            found.append(self._kept(_row_spans(self._reader, tables, level, heads[rows], rows).coalesced()))
        rows = np.flatnonzero(~uniform)

        def chunk(first: int) -> tuple[Spans, _Named | None]:
            return self._mixed(tables, level, rows[first : first + MIXED_CHUNK])

        parts = _in_chunks(chunk, len(rows), MIXED_CHUNK)
        found += [spans for spans, _ in parts]
        below, cut = self._below(tables, level, [named for _, named in parts if named is not None])
        return [*found, cut], below

    def _uniform(self, tables: _Tables, level: Level) -> tuple[BoolArray, Entries]:
        """Return which tables are one run of present leaves, shape (n,), and the first entry of every table."""
        order = None if _ascends(tables.pfn) else np.argsort(tables.pfn)
        pfns = tables.pfn if order is None else tables.pfn[order]
        heads = np.empty(len(pfns), dtype=np.uint64)
        tails = np.empty(len(pfns), dtype=np.uint64)
        runs = np.empty(len(pfns), dtype=np.bool_)
        local = threading.local()

        def chunk(first: int) -> None:
            part = slice(first, first + UNIFORM_CHUNK)
            scratch: _Scratch | None = getattr(local, "scratch", None)
            if scratch is None:
                scratch = local.scratch = _Scratch(min(len(pfns), UNIFORM_CHUNK))
            entries = self._reader.tables(pfns[part], scratch.pages)
            heads[part] = entries[:, 0]
            tails[part] = entries[:, -1]
            runs[part] = _progressions(entries, level, scratch)

        _in_chunks(chunk, len(pfns), UNIFORM_CHUNK)
        wanted = _PRESENT if level == Level.PTE else _PRESENT | _PSE
        runs &= (heads & wanted) == wanted
        runs &= ((heads ^ tails) & _FLAGS) == 0  # consecutive frames could carry into the bits above them
        if order is None:
            return runs, heads
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return runs[back], heads[back]

    def _mixed(self, tables: _Tables, level: Level, rows: NDArray[np.int64]) -> tuple[Spans, _Named | None]:
        """Scan any tables entry by entry (in arrays): return spans, and the entries that name tables.

        Args:
            tables: all tables of the level.
            level: the level.
            rows: positions in `tables` of those to read.
        """
        entries = self._reader.tables(tables.pfn[rows])
        states = entry_states(entries, level).reshape(-1)
        flat = entries.reshape(-1)
        begins = _begins(flat, states, level)
        begins[:: ENTRIES // 2 if level == self._levels else ENTRIES] = True  # a root's halves are not neighbours
        starts = np.flatnonzero(begins)
        lengths = np.diff(starts, append=len(flat))
        on = states[starts] == TABLE
        if on.any():
            spans = self._spans_at(tables, level, flat, states, rows, starts[~on], lengths[~on])
            return spans, self._named(tables, level, flat, rows, starts[on])
        return self._spans_at(tables, level, flat, states, rows, starts, lengths), None

    def _spans_at(
        self,
        tables: _Tables,
        level: Level,
        flat: Entries,
        states: Codes,
        rows: NDArray[np.int64],
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
    ) -> Spans:
        heads = flat[starts]
        state = states[starts]
        none = state == Stop.NONE.code
        pfn = self._reader.frames(heads, level)
        pfn[none if level <= Level.PUD else slice(None)] = -1
        at = rows[starts >> 9]
        rights = entry_rights(heads, tables.rights[at])
        rights[none] = 0
        vaddr = self._address(tables.vaddr[at], starts, level)
        levels = np.full(len(starts), level, dtype=np.uint8)
        return self._kept(Spans(vaddr, lengths * level.pages, pfn, levels, state, heads, rights))

    def _named(
        self, tables: _Tables, level: Level, flat: Entries, rows: NDArray[np.int64], on: NDArray[np.int64]
    ) -> _Named:
        at = rows[on >> 9]
        vaddr = self._address(tables.vaddr[at], on, level)
        if not self._whole:
            page = vaddr >> np.uint64(12)
            hit = (page < np.uint64(self._pages[1])) & (page + np.uint64(level.pages) > np.uint64(self._pages[0]))
            at, on, vaddr = at[hit], on[hit], vaddr[hit]
        self._budget.spans(len(on))
        return _Named(vaddr, flat[on], entry_rights(flat[on], tables.rights[at]), at)

    def _below(self, tables: _Tables, level: Level, parts: list[_Named]) -> tuple[_Tables, Spans]:
        """Return the tables that entries name, and spans for those that cannot or must not be followed."""
        if not parts:
            return _Tables.none(), Spans.empty()
        vaddr, entry, rights, row = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("vaddr", "entry", "rights", "row")
        )
        pfn = self._reader.frames(entry, level)
        above = tuple(frames[row] for frames in (*tables.above, tables.pfn))
        state = np.full(len(pfn), TABLE, dtype=np.uint8)
        state[_repeats(pfn) >= EXPANSIONS] = Stop.SHARED.code
        for frames in above:
            state[frames == pfn] = Stop.LOOP.code
        state[~self._reader.exist(pfn)] = Stop.TABLE_MISSING.code
        follow = state == TABLE
        if follow.all():
            return _Tables(vaddr, pfn, rights, above), Spans.empty()
        levels = np.full(len(pfn), level, dtype=np.uint8)
        pages = np.full(len(pfn), level.pages, dtype=np.int64)
        cut = Spans(vaddr, pages, pfn, levels, state, entry, rights).select(~follow)
        below = _Tables(vaddr[follow], pfn[follow], rights[follow], tuple(frames[follow] for frames in above))
        return below, self._clip(cut)

    def _address(self, base: Addresses, at: NDArray[np.int64], level: Level) -> Addresses:
        index = (at & (ENTRIES - 1)).astype(np.uint64)
        vaddr = base + (index << np.uint64(level.shift))
        if level < self._levels:
            return vaddr
        high = np.uint64((1 << 64) - (1 << (12 + 9 * self._levels)))
        return np.where(index >= ENTRIES // 2, vaddr | high, vaddr)

    def _kept(self, spans: Spans) -> Spans:
        clipped = self._clip(spans)
        self._budget.spans(len(clipped))
        return clipped

    def _clip(self, spans: Spans) -> Spans:
        return spans if self._whole else spans.clipped(*self._pages)


class _Scratch:
    """Buffers that a thread uses again for each chunk."""

    def __init__(self, tables: int) -> None:
        self.pages = np.empty((tables, PAGE_SIZE), dtype=np.uint8)
        self.steps = np.empty(COMPARED_TABLES * ENTRIES, dtype=np.uint64)
        self.follows = np.empty(COMPARED_TABLES * ENTRIES, dtype=np.bool_)


def _in_chunks(job: Callable[[int], Part], count: int, size: int) -> list[Part]:
    """Return `job(first)` for 0, size, 2 size, ... below `count`, in order; two threads run the jobs."""
    firsts = range(0, count, size)
    results: list[Part] = []
    in_order(len(firsts), lambda number: job(firsts[number]), results.append, workers=THREADS)
    return results


def _progressions(entries: Entries, level: Level, scratch: _Scratch) -> BoolArray | bool:
    """Return in which tables each entry is its predecessor plus one leaf's size, shape (n,); True if in all."""
    step = np.uint64(1 << level.shift)
    odd: list[tuple[int, BoolArray]] = []
    for first in range(0, len(entries), COMPARED_TABLES):
        flat = entries[first : first + COMPARED_TABLES].reshape(-1)
        steps = scratch.steps[: len(flat)]
        follows = scratch.follows[: len(flat)]
        np.subtract(flat[1:], flat[:-1], out=steps[1:])
        np.equal(steps[1:], step, out=follows[1:])
        follows[::ENTRIES] = True
        words = follows.view(np.uint64)
        if words.min() != _ALL_TRUE:  # hardly ever, so that the tables need no result each
            odd.append((first, np.bitwise_and.reduce(words.reshape(-1, ENTRIES // 8), axis=1) == _ALL_TRUE))
    if not odd:
        return True
    progressions = np.ones(len(entries), dtype=np.bool_)
    for first, some in odd:
        progressions[first : first + len(some)] = some
    return progressions


def _row_spans(reader: TableReader, tables: _Tables, level: Level, heads: Entries, rows: NDArray[np.int64]) -> Spans:
    """Return one span for each of these tables, all runs of present leaves with first entries `heads`."""
    count = len(rows)
    return Spans(
        tables.vaddr[rows],
        np.full(count, level.pages * ENTRIES, dtype=np.int64),
        reader.frames(heads, level),
        np.full(count, level, dtype=np.uint8),
        np.full(count, Stop.PRESENT.code, dtype=np.uint8),
        heads,
        entry_rights(heads, tables.rights[rows]),
    )


def _begins(flat: Entries, states: Codes, level: Level) -> BoolArray:
    """Return for each entry whether it names a table, or does not continue its predecessor's span (see `Spans`)."""
    begins = np.ones(len(flat), dtype=np.bool_)
    begins[1:] = (flat[:-1] + _steps_by_state(level)[states[:-1]]) != flat[1:]
    begins[1:] |= states[1:] != states[:-1]
    begins[1:] |= ((flat[1:] ^ flat[:-1]) & _FLAGS).astype(np.bool_)
    if level > Level.PTE:
        begins |= states == TABLE
    return begins


@functools.cache
def _steps_by_state(level: Level) -> Entries:
    """Return `entry_steps` of a level for every state, shape (256,)."""
    return entry_steps(np.full(256, level, dtype=np.uint8), np.arange(256, dtype=np.uint8))


def _ascends(values: Pfns) -> bool:
    return bool((values[1:] > values[:-1]).all())


def _repeats(pfns: Pfns) -> NDArray[np.int64]:
    """Return for each frame how often it occurs before its own place in the list."""
    counts = np.zeros(len(pfns), dtype=np.int64)
    if _ascends(pfns) or _ascends(np.sort(pfns)):
        return counts
    order = np.argsort(pfns, kind="stable")
    ordered = pfns[order]
    new = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    place = np.arange(len(pfns), dtype=np.int64)
    counts[order] = place - np.maximum.accumulate(np.where(new, place, 0))
    return counts
