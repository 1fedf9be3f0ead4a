"""Many addresses at once, level by level: what `PageTables.translate` does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.paging.entries import ENTRIES, FRAME_MASK, Entries, Level, entry_frames
from hibernaut.paging.reader import TableReader
from hibernaut.paging.scan import TABLE, entry_states
from hibernaut.paging.spans import Addresses, Codes, Stop

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hibernaut.memory.physical import Frames, PhysicalMemory

__all__ = ["translate"]

CHUNK_ADDRESSES = 1 << 19
"""Addresses a thread handles at a time."""

CHUNK_TABLES = 2048
"""Tables that are looked into at a time (8 MiB)."""

THREADS = 2


def translate(
    memory: PhysicalMemory, root_pfn: int, levels: int, vaddrs: Addresses
) -> tuple[Frames, Codes, Codes, Entries]:
    """See `PageTables.translate`: frames, levels, reasons, entries."""
    lookup = _Lookup(TableReader(memory), root_pfn, levels, vaddrs)
    firsts = range(0, len(vaddrs), CHUNK_ADDRESSES)
    if len(firsts) == 1:
        lookup.chunk(0)
    elif firsts:
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(lookup.chunk, firsts):
                pass
    return lookup.pfns, lookup.levels, lookup.reasons, lookup.entries


class _Lookup:
    """One call: the addresses and what is found of them, as `tables.Translation` describes."""

    def __init__(self, reader: TableReader, root_pfn: int, levels: int, vaddrs: Addresses) -> None:
        self._reader = reader
        self._root = np.array([root_pfn], dtype=np.int64)
        self._root_level = levels
        self._vaddrs = vaddrs
        self.pfns = np.full(len(vaddrs), -1, dtype=np.int64)
        self.levels = np.full(len(vaddrs), levels, dtype=np.uint8)
        self.reasons = np.full(len(vaddrs), Stop.NON_CANONICAL.code, dtype=np.uint8)
        self.entries = np.zeros(len(vaddrs), dtype=np.uint64)

    def chunk(self, first: int) -> None:
        """Look up the addresses from `first` on."""
        vaddrs = self._vaddrs[first : first + CHUNK_ADDRESSES]
        # Shifted left by what is unused and back with the sign, a canonical address is itself.
        unused = np.int64(52 - 9 * self._root_level)
        canonical = ((vaddrs.view(np.int64) << unused) >> unused) == vaddrs.view(np.int64)
        where = np.arange(first, first + len(vaddrs))
        if not canonical.all():
            where, vaddrs = where[canonical], vaddrs[canonical]
        if not self._reader.exist(self._root)[0]:
            self.reasons[where] = Stop.TABLE_MISSING.code
            return
        tables = self._root
        table = np.zeros(len(where), dtype=np.int64)  # which of `tables` each address is looked up in
        for number in range(self._root_level, 0, -1):
            if len(where):
                level = Level(number)
                where, vaddrs, table, tables = self._level(level, where, vaddrs, table, tables)

    def _level(
        self,
        level: Level,
        where: NDArray[np.int64],
        vaddrs: Addresses,
        table: NDArray[np.int64],
        tables: Frames,
    ) -> tuple[NDArray[np.int64], Addresses, NDArray[np.int64], Frames]:
        """One level: notes what stops here; the addresses that go on, and their tables."""
        at = ((vaddrs >> np.uint64(level.shift)) & np.uint64(ENTRIES - 1)).view(np.int64)
        at += table << 9
        below = np.empty(len(at), dtype=np.int64)
        found: list[Frames] = []
        total = 0
        for low in range(0, len(tables), CHUNK_TABLES):
            entries = self._reader.tables(tables[low : low + CHUNK_TABLES]).reshape(-1)
            rows: NDArray[np.int64] | slice = slice(None)
            if len(tables) > CHUNK_TABLES:
                rows = np.flatnonzero((table >= low) & (table < low + CHUNK_TABLES))
            here = at[rows] - low * ENTRIES
            if level == Level.PTE:
                self._note(level, where[rows], vaddrs[rows], entries[here], None)
                continue
            on, pfns = self._tables_below(level, entries, here)
            next_table = on[here]
            goes = next_table >= 0
            if not goes.all():
                stop = ~goes
                missing = next_table[stop] == -2
                self._note(level, where[rows][stop], vaddrs[rows][stop], entries[here[stop]], missing)
            below[rows] = np.where(goes, next_table + total, -1) if total else next_table
            found.append(pfns)
            total += len(pfns)
        if level == Level.PTE:
            return where[:0], vaddrs[:0], table[:0], tables[:0]
        goes = below >= 0
        if not goes.all():
            where, vaddrs, below = where[goes], vaddrs[goes], below[goes]
        return where, vaddrs, below, np.concatenate(found)

    def _tables_below(
        self, level: Level, entries: Entries, here: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], Frames]:
        """For each entry: which of the tables below it names, -1 if it names none, -2 if that one does not exist.

        Only entries that some address meets are looked at.
        """
        met = np.zeros(len(entries), dtype=np.bool_)
        met[here] = True
        places = np.flatnonzero(met)
        named = entries[places]
        is_table = entry_states(named, level) == TABLE
        places = places[is_table]
        pfns = entry_frames(named[is_table], level)
        exist = self._reader.exist(pfns)
        on = np.full(len(entries), -1, dtype=np.int64)
        on[places[~exist]] = -2
        on[places[exist]] = np.arange(int(exist.sum()), dtype=np.int64)
        return on, pfns[exist]

    def _note(
        self,
        level: Level,
        where: NDArray[np.int64],
        vaddrs: Addresses,
        entries: Entries,
        missing: NDArray[np.bool_] | None,
    ) -> None:
        """Write down the addresses whose walk ends at this level."""
        self.levels[where] = level
        self.entries[where] = entries
        within = ((vaddrs >> np.uint64(12)) & np.uint64(level.pages - 1)).view(np.int64)
        if level == Level.PTE and (entries & np.uint64(1)).all():  # nearly always: the rest need not be asked
            self.reasons[where] = Stop.PRESENT.code
            self.pfns[where] = ((entries & np.uint64(FRAME_MASK)) >> np.uint64(12)).view(np.int64)
            return
        states = entry_states(entries, level)
        if missing is not None:
            states[missing] = Stop.TABLE_MISSING.code
        framed = (states == Stop.PRESENT.code) | (states == Stop.NOT_PRESENT.code)
        self.reasons[where] = states
        pfns = entry_frames(entries, level) + within
        self.pfns[where] = np.where(framed, pfns, -1) if level <= Level.PUD else -1
