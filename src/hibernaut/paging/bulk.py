# SPDX-License-Identifier: GPL-2.0-or-later
"""Translation of many addresses at once, for `PageTables.translate`.

Addresses often share the upper levels. Where they do, these are walked once for each 2 MiB block, level by level, and
only the last level is looked up for each address.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from hibernaut.paging.entries import ENTRIES, FRAME_MASK, Entries, Level, entry_frames
from hibernaut.paging.reader import TableReader
from hibernaut.paging.scan import TABLE, entry_states
from hibernaut.paging.spans import Addresses, Codes, Stop
from hibernaut.parallel import in_order

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hibernaut.memory.page import Pfns
    from hibernaut.memory.physical import PhysicalMemory

__all__ = ["translate"]

CHUNK_ADDRESSES = 1 << 18
"""Addresses that a thread handles at a time."""

CHUNK_TABLES = 4096
"""Tables that are read at a time (16 MiB)."""

THREADS = 2

_NO_TABLE = -1
_MISSING = -2

Places: TypeAlias = "NDArray[np.int64] | slice"
"""Positions in the results; a slice means all of them, in order."""


def translate(
    memory: PhysicalMemory, root_pfn: int, levels: int, vaddrs: Addresses, encryption: int = 0
) -> tuple[Pfns, Codes, Codes, Entries]:
    """See `PageTables.translate`: frames, levels, reasons, entries."""
    reader = TableReader(memory, encryption)
    results = _Results(len(vaddrs), levels, encryption)
    walker = _Walker(reader, root_pfn, levels)

    def chunk(first: int) -> None:
        part = slice(first, first + CHUNK_ADDRESSES)
        walker.chunk(vaddrs[part], results.part(part))

    firsts = range(0, len(vaddrs), CHUNK_ADDRESSES)
    in_order(len(firsts), lambda number: chunk(firsts[number]), lambda _done: None, workers=THREADS)
    return results.pfns, results.levels, results.reasons, results.entries


class _Results:
    """Results for each address, as in `tables.Translation`; an address without a result is non-canonical."""

    def __init__(self, count: int, levels: int, encryption: int) -> None:
        self._encryption = encryption
        self.pfns: Pfns = np.full(count, -1, dtype=np.int64)
        self.levels: Codes = np.full(count, levels, dtype=np.uint8)
        self.reasons: Codes = np.full(count, Stop.NON_CANONICAL.code, dtype=np.uint8)
        self.entries: Entries = np.zeros(count, dtype=np.uint64)

    def like(self, count: int, levels: int) -> _Results:
        """Return results for other addresses in the same tables."""
        return _Results(count, levels, self._encryption)

    def part(self, part: slice) -> _Results:
        """Return a view of some of the results."""
        view = _Results(0, 0, self._encryption)
        view.pfns, view.levels = self.pfns[part], self.levels[part]
        view.reasons, view.entries = self.reasons[part], self.entries[part]
        return view

    def note(
        self,
        level: Level,
        where: Places,
        vaddrs: Addresses,
        entries: Entries,
        missing: NDArray[np.bool_] | None = None,
    ) -> None:
        """Note the addresses at these places, whose walk ends with these entries."""
        self.levels[where] = level
        self.entries[where] = entries
        if level == Level.PTE and (entries & np.uint64(1)).all():  # nearly always, so that nothing else is computed
            self.reasons[where] = Stop.PRESENT.code
            self.pfns[where] = ((entries & np.uint64(FRAME_MASK & ~self._encryption)) >> np.uint64(12)).view(np.int64)
            return
        states = entry_states(entries, level)
        if missing is not None:
            states[missing] = Stop.TABLE_MISSING.code
        framed = (states == Stop.PRESENT.code) | (states == Stop.NOT_PRESENT.code)
        self.reasons[where] = states
        within = ((vaddrs >> np.uint64(12)) & np.uint64(level.pages - 1)).view(np.int64)
        pfns = entry_frames(entries, level, self._encryption) + within
        self.pfns[where] = np.where(framed, pfns, -1) if level <= Level.PUD else -1


class _Walker:
    """Walks arrays of addresses through the tables under one root."""

    def __init__(self, reader: TableReader, root_pfn: int, levels: int) -> None:
        self._reader = reader
        self._root = np.array([root_pfn], dtype=np.int64)
        self._levels = levels

    def chunk(self, vaddrs: Addresses, results: _Results) -> None:
        """Look these addresses up."""
        # Shifted left by what is unused and back with the sign, a canonical address is itself.
        unused = np.int64(52 - 9 * self._levels)
        canonical = ((vaddrs.view(np.int64) << unused) >> unused) == vaddrs.view(np.int64)
        where: Places = slice(None)
        if not canonical.all():
            where = np.flatnonzero(canonical)
            vaddrs = vaddrs[where]
        if not len(vaddrs):
            return
        block = (vaddrs >> np.uint64(Level.PMD.shift)).view(np.int64)
        lowest = int(block.min())
        count = int(block.max()) - lowest + 1
        if count <= 4 * len(vaddrs):
            self._crowd(vaddrs, where, block - lowest, lowest, count, results)
        else:
            places = np.arange(len(vaddrs)) if isinstance(where, slice) else where
            self._last(*self._upper(vaddrs, places, results), results)

    def _crowd(
        self, vaddrs: Addresses, where: Places, block: NDArray[np.int64], lowest: int, count: int, results: _Results
    ) -> None:
        """Look up addresses in `count` neighbouring 2 MiB blocks from `lowest` on; `block` numbers each one's block."""
        asked = np.zeros(count, dtype=np.bool_)
        asked[block] = True
        blocks = np.flatnonzero(asked)
        firsts = (blocks + lowest).astype(np.uint64) << np.uint64(Level.PMD.shift)
        upper = results.like(len(blocks), self._levels)
        _, on, table, tables = self._upper(firsts, np.arange(len(blocks)), upper)
        table_of_block = np.full(count, -1, dtype=np.int64)
        table_of_block[blocks[on]] = table
        table = table_of_block[block]
        stops = table < 0
        if stops.any():
            stopped, rest = np.flatnonzero(stops), np.flatnonzero(~stops)
            number = np.empty(count, dtype=np.int64)
            number[blocks] = np.arange(len(blocks))
            _spread(upper, number[block[stopped]], vaddrs[stopped], _at(where, stopped), results)
            vaddrs, where, table = vaddrs[rest], _at(where, rest), table[rest]
        self._last(vaddrs, where, table, tables, results)

    def _upper(
        self, vaddrs: Addresses, where: NDArray[np.int64], results: _Results
    ) -> tuple[Addresses, NDArray[np.int64], NDArray[np.int64], Pfns]:
        """Walk all levels but the last, and note the addresses that stop there.

        Returns:
            The addresses that continue, their places, the index of each one's PTE table, and these tables.
        """
        if not self._reader.exist(self._root)[0]:
            results.reasons[where] = Stop.TABLE_MISSING.code
            return vaddrs[:0], where[:0], where[:0], self._root[:0]
        tables = self._root
        table = np.zeros(len(where), dtype=np.int64)  # which of `tables` each address is looked up in
        for number in range(self._levels, Level.PTE, -1):
            vaddrs, where, table, tables = self._level(Level(number), vaddrs, where, table, tables, results)
        return vaddrs, where, table, tables

    def _level(
        self,
        level: Level,
        vaddrs: Addresses,
        where: NDArray[np.int64],
        table: NDArray[np.int64],
        tables: Pfns,
        results: _Results,
    ) -> tuple[Addresses, NDArray[np.int64], NDArray[np.int64], Pfns]:
        """Walk one level above PTE; arguments and results as for `_upper`."""
        below = np.empty(len(table), dtype=np.int64)
        found: list[Pfns] = [tables[:0]]
        total = 0
        for rows, here, entries in self._in_tables(level, vaddrs, table, tables):
            on, pfns = self._named(level, entries, here)
            named = on[here]
            goes = named >= 0
            if not goes.all():
                stop = ~goes
                missing = named[stop] == _MISSING
                results.note(level, _at(where, rows)[stop], vaddrs[rows][stop], entries[here[stop]], missing)
            below[rows] = np.where(goes, named + total, named)
            found.append(pfns)
            total += len(pfns)
        goes = below >= 0
        if not goes.all():
            vaddrs, where, below = vaddrs[goes], where[goes], below[goes]
        return vaddrs, where, below, np.concatenate(found)

    def _last(
        self, vaddrs: Addresses, where: Places, table: NDArray[np.int64], tables: Pfns, results: _Results
    ) -> None:
        """Look the addresses up at PTE level, and note them all."""
        for rows, here, entries in self._in_tables(Level.PTE, vaddrs, table, tables):
            places = where if isinstance(rows, slice) else _at(where, rows)
            results.note(Level.PTE, places, vaddrs[rows], entries[here])

    def _in_tables(
        self, level: Level, vaddrs: Addresses, table: NDArray[np.int64], tables: Pfns
    ) -> Iterator[tuple[Places, NDArray[np.int64], Entries]]:
        """Yield the addresses that some of the tables decode, their positions in the entries, and the flat entries."""
        if not len(vaddrs):
            return
        at = ((vaddrs >> np.uint64(level.shift)) & np.uint64(ENTRIES - 1)).view(np.int64)
        at += table << 9
        if len(tables) <= CHUNK_TABLES:
            yield slice(None), at, self._reader.tables(tables).reshape(-1)
            return
        for low in range(0, len(tables), CHUNK_TABLES):
            rows = np.flatnonzero((table >= low) & (table < low + CHUNK_TABLES))
            if len(rows):
                entries = self._reader.tables(tables[low : low + CHUNK_TABLES])
                yield rows, at[rows] - low * ENTRIES, entries.reshape(-1)

    def _named(self, level: Level, entries: Entries, here: NDArray[np.int64]) -> tuple[NDArray[np.int64], Pfns]:
        """Return for each entry the index of the table that it names, `_NO_TABLE` or `_MISSING`; and these tables.

        Only entries that some address needs are read.
        """
        met = np.zeros(len(entries), dtype=np.bool_)
        met[here] = True
        places = np.flatnonzero(met)
        named = entries[places]
        is_table = entry_states(named, level) == TABLE
        places = places[is_table]
        pfns = self._reader.frames(named[is_table], level)
        exist = self._reader.exist(pfns)
        on = np.full(len(entries), _NO_TABLE, dtype=np.int64)
        on[places[~exist]] = _MISSING
        on[places[exist]] = np.arange(int(exist.sum()), dtype=np.int64)
        return on, pfns[exist]


def _at(where: Places, rows: Places) -> NDArray[np.int64]:
    """Return `where[rows]`; a slice for either means all."""
    if isinstance(where, slice):
        assert not isinstance(rows, slice)
        return rows
    return where[rows]


def _spread(
    blocks: _Results, number: NDArray[np.int64], vaddrs: Addresses, where: NDArray[np.int64], results: _Results
) -> None:
    """Note addresses whose walk ends above PTE level, from the result for the first address of each one's block."""
    results.levels[where] = blocks.levels[number]
    results.reasons[where] = blocks.reasons[number]
    results.entries[where] = blocks.entries[number]
    pfns = blocks.pfns[number]
    within = ((vaddrs >> np.uint64(12)) & np.uint64(Level.PMD.pages - 1)).view(np.int64)
    results.pfns[where] = np.where(pfns >= 0, pfns + within, -1)
