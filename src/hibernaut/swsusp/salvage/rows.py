# SPDX-License-Identifier: GPL-2.0-or-later
"""Rows of the stream of a damaged image: those of units that are whole, or blocks of plain pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from hibernaut.memory.page import PAGE_SIZE, BoolArray, Bytes
from hibernaut.swsusp.area import SwapArea
from hibernaut.swsusp.declarations import UNIT_BYTES, UNIT_PAGES
from hibernaut.swsusp.salvage.loose_map import UNKNOWN, LooseMap
from hibernaut.swsusp.salvage.units import NumberedUnits, UnitSearch

__all__ = ["PlainRows", "Rows", "UnitRows", "plain_rows", "unit_rows"]

MOST_LOST_ROWS = 1 << 24
"""Most rows that a map of which a part is lost can lack: 64 GiB."""

Number = TypeVar("Number", np.int64, np.bool_)


class Rows(Protocol):
    """Rows of the stream, in units of 32."""

    @property
    def known(self) -> BoolArray:
        """Which rows can be read, shape (n,)."""

    def has_unit(self, number: int) -> bool:
        """Return whether all rows of a unit can be read."""

    def unit(self, number: int) -> Bytes:
        """Return the rows of a unit of which one is known, shape (at most 32, 4096); zeroes in place of others.

        Raises:
            ValueError: they can no longer be read.
        """


@dataclass(frozen=True, eq=False)
class UnitRows:
    """Rows of compressed units.

    Attributes:
        known: see `Rows`.
        search: reader of the units.
        entry: entry at which each unit begins, int64, shape (units,); -1 for one that is lost.
        compressed_bytes: length of its data, int64, shape (units,).
    """

    known: BoolArray
    search: UnitSearch
    entry: NDArray[np.int64]
    compressed_bytes: NDArray[np.int64]

    def has_unit(self, number: int) -> bool:
        """See `Rows.has_unit`."""
        return number < len(self.entry) and bool(self.entry[number] >= 0)

    def unit(self, number: int) -> Bytes:
        """See `Rows.unit`."""
        out = np.empty(UNIT_BYTES, dtype=np.uint8)
        size_bytes = self.search.read(int(self.entry[number]), int(self.compressed_bytes[number]), out)
        return out[:size_bytes].reshape(-1, PAGE_SIZE)


@dataclass(frozen=True, eq=False)
class PlainRows:
    """Rows that are blocks.

    Attributes:
        known: see `Rows`.
        area: swap area.
        blocks: block of each row, int64, shape (n,).
    """

    known: BoolArray
    area: SwapArea
    blocks: NDArray[np.int64]

    def has_unit(self, number: int) -> bool:
        """See `Rows.has_unit`."""
        known = self.known[number * UNIT_PAGES : (number + 1) * UNIT_PAGES]
        return len(known) > 0 and bool(known.all())

    def unit(self, number: int) -> Bytes:
        """See `Rows.unit`."""
        rows = slice(number * UNIT_PAGES, (number + 1) * UNIT_PAGES)
        known = self.known[rows]
        out = np.zeros((len(known), PAGE_SIZE), dtype=np.uint8)
        got = np.empty(int(known.sum()) * PAGE_SIZE, dtype=np.uint8)
        self.area.read_blocks(self.blocks[rows][known], got)
        out[known] = got.reshape(-1, PAGE_SIZE)
        return out


def unit_rows(search: UnitSearch, numbered: NumberedUnits) -> UnitRows:
    """Return the rows of the units that have a number."""
    whole, found = numbered.whole, numbered.found
    numbers = numbered.number[whole]
    total = int(numbers.max(initial=-1)) + 1
    entry = np.full(total, UNKNOWN, dtype=np.int64)
    length = np.zeros(total, dtype=np.int64)
    pages = np.zeros(total, dtype=np.int64)
    entry[numbers] = found.entry[whole]
    length[numbers] = found.compressed_bytes[whole]
    pages[numbers] = found.size_bytes[whole] // PAGE_SIZE
    known = (np.arange(UNIT_PAGES) < pages[:, None]).reshape(-1)
    return UnitRows(known, search, entry, length)


def plain_rows(area: SwapArea, loose: LooseMap, stream_pages: int | None) -> PlainRows:
    """Return the rows of an image that is not compressed.

    A row whose block follows from the order of others is not known, since nothing confirms it; nor is one behind a lost
    map page, unless the end of the map tells its number.

    Args:
        area: swap area.
        loose: the swap map.
        stream_pages: number of rows by the info page; None if that is not known.
    """
    blocks = loose.entries[1:]
    sure = ~loose.derived[1:] & (blocks > 0) & (blocks < area.blocks) & (loose.alternative[1:] == UNKNOWN)
    _, first, counts = np.unique(blocks, return_index=True, return_counts=True)
    twice = np.isin(blocks, blocks[first[counts > 1]])
    in_order = np.concatenate(([False], np.diff(blocks) == 1)) | np.concatenate((np.diff(blocks) == 1, [False]))
    sure &= ~twice | in_order
    sure &= ~np.isin(blocks, loose.map_blocks)
    if stream_pages is not None and stream_pages > len(blocks) + MOST_LOST_ROWS:
        stream_pages = None
    if not loose.broken:
        count = len(blocks) if stream_pages is None else stream_pages
        return PlainRows(_fitted(sure, count, False), area, _fitted(blocks, count, UNKNOWN))
    derived = loose.derived[1:]
    front = int(np.argmax(derived)) if derived.any() else len(blocks)
    if loose.derived[:1].any():
        front = 0
    count = front if stream_pages is None else stream_pages
    rows, known = _fitted(blocks[:front], count, UNKNOWN), _fitted(sure[:front], count, False)
    if loose.ended and stream_pages is not None:
        back = len(blocks) - int(np.argmax(derived[::-1])) if derived.any() else len(blocks)
        tail = min(len(blocks) - back, stream_pages - front)
        if tail > 0:
            rows[stream_pages - tail :], known[stream_pages - tail :] = blocks[-tail:], sure[-tail:]
    return PlainRows(known, area, rows)


def _fitted(values: NDArray[Number], count: int, fill: int) -> NDArray[Number]:
    """Return the first `count` values; `fill` for those that are missing."""
    out = np.full(count, fill, dtype=values.dtype)
    out[: min(count, len(values))] = values[:count]
    return out
