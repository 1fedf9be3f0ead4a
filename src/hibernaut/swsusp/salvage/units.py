# SPDX-License-Identifier: GPL-2.0-or-later
"""The units of a damaged image: those that decompress, wherever they begin, and the numbers that they must have.

A unit is found by what it is: a plausible length at the start of a block, and data that decompresses to exactly a
unit's size. Its number decides its frames, so a unit whose number is not certain is as good as lost.

Between two units that follow one another directly nothing is lost. Between others is a gap. How many units a gap has is
certain if the lengths in it lead from its start exactly to its end; or if the gaps together have exactly as many units
as they must have at least.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hibernaut.memory.page import PAGE_SIZE, BoolArray, Bytes
from hibernaut.parallel import ordered_results
from hibernaut.swsusp.area import SwapArea
from hibernaut.swsusp.codecs import Codec, WrongLength
from hibernaut.swsusp.crc32 import crc32
from hibernaut.swsusp.declarations import LENGTH_BYTES, MAX_COMPRESSED_BYTES, UNIT_BYTES, UNIT_PAGES
from hibernaut.swsusp.salvage.loose_map import UNKNOWN, LooseMap

__all__ = ["FoundUnits", "Gap", "NumberedUnits", "UnitSearch", "blocks_of", "last_unit_bytes", "number_units"]

MOST_BLOCKS = -(-(LENGTH_BYTES + MAX_COMPRESSED_BYTES) // PAGE_SIZE)
TASK_UNITS = 16
AHEAD_UNITS = 16 * TASK_UNITS


def blocks_of(length: int) -> int:
    """Return the number of blocks of a unit with this compressed length."""
    return -(-(LENGTH_BYTES + length) // PAGE_SIZE)


def last_unit_bytes(stream_pages: int | None) -> int | None:
    """Return the size of the last unit of a stream; None for None."""
    return None if stream_pages is None else UNIT_BYTES - -stream_pages % UNIT_PAGES * PAGE_SIZE


@dataclass(frozen=True, eq=False)
class FoundUnits:
    """Units that decompress.

    Attributes:
        entry: index in the swap map of each unit's first block, ascending, int64, shape (n,).
        compressed_bytes: length of its compressed data, int64, shape (n,).
        size_bytes: size of its data, int64, shape (n,).
        crc32: (zlib) CRC-32 of its data, int64, shape (n,).
    """

    entry: NDArray[np.int64]
    compressed_bytes: NDArray[np.int64]
    size_bytes: NDArray[np.int64]
    crc32: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.entry)

    @property
    def end(self) -> NDArray[np.int64]:
        """Index in the swap map behind each unit's last block, int64, shape (n,)."""
        return self.entry + -(-(LENGTH_BYTES + self.compressed_bytes) // PAGE_SIZE)


@dataclass(frozen=True)
class Gap:
    """Entries between two units that decompress, or before the first, or after the last.

    Attributes:
        entry: index of the first entry.
        end: one past the last.
        follows: number of units before it, among those found.
        starts: entries at which units begin by the lengths there, from the start of the gap on.
        exact: whether they lead to the end of the gap: then they are all its units.
        least: least number of units, by the number of blocks.
        least_by_lengths: the same if the lengths at its start are right.
    """

    entry: int
    end: int
    follows: int
    starts: tuple[int, ...]
    exact: bool
    least: int
    least_by_lengths: int


class UnitSearch:
    """The search for units in the entries of a swap map. Blocks of `loose` are corrected where that makes a unit whole.

    Args:
        area: swap area.
        loose: the swap map.
        codec: compressor.
        last_bytes: size of the last unit by the info page; None if that is not known.
    """

    def __init__(self, area: SwapArea, loose: LooseMap, codec: Codec, last_bytes: int | None = None) -> None:
        self.last_bytes = last_bytes
        self.entries = loose.entries.copy()
        self._alternative = loose.alternative
        self._ended = loose.ended
        self._area = area
        self._codec = codec
        self._known: dict[int, tuple[int, int] | None] = {}
        self._local = threading.local()

    def find(self, limit: int | None = None, progress: Callable[[int], None] | None = None) -> FoundUnits:
        """Return the units that decompress, the first that is found at each place.

        Args:
            limit: number of units to stop at; None for no limit.
            progress: called with the number of pages done.
        """
        found: list[tuple[int, int, int, int]] = []
        at, ahead = 1, AHEAD_UNITS
        while at < len(self.entries) and (limit is None or len(found) < limit):
            run = self._walk(at, ahead)
            ahead = min(2 * ahead, AHEAD_UNITS)
            for (start, length), data in zip(run, self._decompress(run), strict=True):
                if data is None:
                    at, ahead = start + 1, 1
                    break
                found.append((start, length, *data))
                at = start + blocks_of(length)
                if progress:
                    progress(data[0] // PAGE_SIZE)
            if not run:
                at += 1
        columns = np.array(found, dtype=np.int64).reshape(-1, 4)
        return FoundUnits(columns[:, 0], columns[:, 1], columns[:, 2], columns[:, 3])

    @property
    def area_blocks(self) -> int:
        """Number of blocks of the area that can be read."""
        return self._area.blocks

    def length_at(self, entry: int) -> int:
        """Return the length of the unit that begins at an entry; 0 if it is none."""
        for block in (int(self.entries[entry]), int(self._alternative[entry])):
            if 0 < block < self._area.blocks:
                raw = self._area.file.pread(self._area.offset_of(block), LENGTH_BYTES)
                length = int.from_bytes(raw, "little")
                if len(raw) == LENGTH_BYTES and 0 < length <= MAX_COMPRESSED_BYTES:
                    return length
        return 0

    def starts(self, entry: int, end: int) -> list[int]:
        """Return the entries before `end` at which units begin by their lengths, from one that must be a start on."""
        starts = []
        while entry < end and (length := self.length_at(entry)) and entry + blocks_of(length) <= end:
            starts.append(entry)
            entry += blocks_of(length)
        return [*starts, entry]

    def read(self, entry: int, length: int, out: Bytes) -> int:
        """Decompress a unit into an array of bytes, shape (131072,), and return its size.

        Raises:
            ValueError: it does not decompress to whole pages; the message has the reason.
        """
        last = entry + blocks_of(length)
        if last > len(self.entries):
            raise ValueError("it runs past the end of the swap map")
        blocks, other = self.entries[entry:last], self._alternative[entry:last]
        corrected = np.where(other == UNKNOWN, blocks, other)
        try:
            return self._decompress_into(blocks, length, out)
        except ValueError:
            if (corrected == blocks).all():
                raise
        size_bytes = self._decompress_into(corrected, length, out)
        self.entries[entry:last] = corrected
        return size_bytes

    def _decompress_into(self, blocks: NDArray[np.int64], length: int, out: Bytes) -> int:
        if (blocks < 0).any():
            raise ValueError("an entry of the swap map for it is lost")
        if (blocks >= self._area.blocks).any():
            raise ValueError("it is behind the end of the file")
        stored = self._buffer(len(blocks) * PAGE_SIZE)
        self._area.read_blocks(blocks, stored)
        try:
            self._codec.decompress_into(stored[LENGTH_BYTES : LENGTH_BYTES + length], out)
        except WrongLength as error:
            if not 0 < error.size_bytes < UNIT_BYTES or error.size_bytes % PAGE_SIZE:
                raise
            self._codec.decompress_into(stored[LENGTH_BYTES : LENGTH_BYTES + length], out[: error.size_bytes])
            return error.size_bytes
        return UNIT_BYTES

    def _walk(self, entry: int, most: int) -> list[tuple[int, int]]:
        """Return (entry, length) of at most so many units by their lengths, from an entry on."""
        run: list[tuple[int, int]] = []
        while entry < len(self.entries) and len(run) < most and (length := self.length_at(entry)):
            run.append((entry, length))
            entry += blocks_of(length)
        return run

    def _decompress(self, run: Sequence[tuple[int, int]]) -> list[tuple[int, int] | None]:
        """Return (size, CRC-32) of each, None if it does not decompress; a short unit only ends the image."""
        missing = [one for one in run if one[0] not in self._known]
        batches = [missing[first : first + TASK_UNITS] for first in range(0, len(missing), TASK_UNITS)]

        def task(batch: Sequence[tuple[int, int]]) -> Callable[[], list[tuple[int, int] | None]]:
            return lambda: [self._tried(*one) for one in batch]

        results = itertools.chain.from_iterable(ordered_results(map(task, batches)))
        self._known = {start: self._known[start] for start, _ in run if start in self._known}
        self._known.update(zip((start for start, _ in missing), results, strict=True))
        return [self._known[start] for start, _ in run]

    def _tried(self, entry: int, length: int) -> tuple[int, int] | None:
        out = self._plain()
        try:
            size_bytes = self.read(entry, length, out)
        except ValueError:
            return None
        ends = self._ended and entry + blocks_of(length) >= len(self.entries)
        if size_bytes < UNIT_BYTES and not ends and size_bytes != self.last_bytes:
            return None
        return size_bytes, crc32(out[:size_bytes])

    def _buffer(self, size_bytes: int) -> Bytes:
        if not hasattr(self._local, "stored"):
            self._local.stored = np.empty(MOST_BLOCKS * PAGE_SIZE, dtype=np.uint8)
        room: Bytes = self._local.stored
        return room[:size_bytes]

    def _plain(self) -> Bytes:
        if not hasattr(self._local, "plain"):
            self._local.plain = np.empty(UNIT_BYTES, dtype=np.uint8)
        room: Bytes = self._local.plain
        return room


@dataclass(frozen=True, eq=False)
class NumberedUnits:
    """Units with their numbers.

    Attributes:
        found: the units that decompress.
        number: their numbers, int64, shape (n,); -1 if it is not certain.
        total: number of all units of the image; None if it is not known.
        gaps: the gaps.
    """

    found: FoundUnits
    number: NDArray[np.int64]
    total: int | None
    gaps: tuple[Gap, ...]

    @property
    def whole(self) -> BoolArray:
        """Which of them have a number, shape (n,)."""
        return self.number >= 0


def number_units(search: UnitSearch, found: FoundUnits, loose: LooseMap, stream_pages: int | None) -> NumberedUnits:
    """Return the units with their numbers.

    Args:
        search: the search that found them.
        found: the units.
        loose: the swap map.
        stream_pages: number of pages of all units by the info page, or the list of frames; None if it is not known.
    """
    total = None if stream_pages is None else -(-stream_pages // UNIT_PAGES)
    last_bytes = last_unit_bytes(stream_pages)
    gaps = _gaps(search, found, loose)
    exact = loose.ended and all(gap.exact for gap in gaps)
    every = len(found) + sum(len(gap.starts) for gap in gaps)
    if exact and (not loose.broken or total is None):
        total = every
    number = np.full(len(found), UNKNOWN, dtype=np.int64)
    missing = None if total is None or not loose.ended else total - len(found)
    if missing and len(found) and found.end[-1] == len(search.entries) and found.size_bytes[-1] != last_bytes:
        missing = None  # the end of the map is that of another image
    counts = _counts(gaps, missing)
    bounds = [*(gap.follows for gap in gaps), len(found)]
    at = 0
    number[: bounds[0]] = np.arange(bounds[0])
    for gap, count, after in zip(gaps, counts, bounds[1:], strict=True):
        if count is None:
            break
        at += count
        number[gap.follows : after] = np.arange(gap.follows, after) + at
    if missing is not None and None in counts:
        at = missing
        for gap, count, after in zip(reversed(gaps), reversed(counts), reversed(bounds[1:]), strict=True):
            number[gap.follows : after] = np.arange(gap.follows, after) + at
            if count is None:
                break
            at -= count
    # A short unit is the last one.
    short = found.size_bytes < UNIT_BYTES
    number[short & (number != (UNKNOWN if total is None else total - 1))] = UNKNOWN
    if missing != 0:
        number[_copied(found)] = UNKNOWN
    if exact and total != every and loose.derived.any():
        number[found.entry >= np.argmax(loose.derived)] = UNKNOWN  # another number of units than the image has
    return NumberedUnits(found, number, total, gaps)


def _copied(found: FoundUnits) -> BoolArray:
    """Return which units are in the map twice, shape (n,): one of them was written over another unit.

    Small ones are alike by their nature, and it does not matter which is which.
    """
    alike = np.rec.fromarrays([found.crc32, found.compressed_bytes, found.size_bytes])
    _, which, counts = np.unique(alike, return_inverse=True, return_counts=True)
    return np.asarray((counts[which] > 1) & (found.compressed_bytes > PAGE_SIZE), dtype=np.bool_)


def _counts(gaps: tuple[Gap, ...], missing: int | None) -> list[int | None]:
    """Return the number of units of each gap; None where it is not certain.

    Args:
        gaps: the gaps.
        missing: number of units of all gaps; None if it is not known.
    """
    counts: list[int | None] = [len(gap.starts) if gap.exact else None for gap in gaps]
    unsure = [place for place, gap in enumerate(gaps) if not gap.exact]
    if missing is None or not unsure:
        return counts
    rest = missing - sum(count for count in counts if count is not None)
    if len(unsure) == 1:
        gap = gaps[unsure[0]]
        if gap.least <= rest <= gap.end - gap.entry:
            counts[unsure[0]] = rest
        return counts
    for least in ([gap.least for gap in gaps], [gap.least_by_lengths for gap in gaps]):
        if sum(least[place] for place in unsure) == rest:
            for place in unsure:
                counts[place] = least[place]
            return counts
    return counts


def _gaps(search: UnitSearch, found: FoundUnits, loose: LooseMap) -> tuple[Gap, ...]:
    begins = np.concatenate(([1], found.end))
    ends = np.concatenate((found.entry, [len(search.entries)]))
    gaps = []
    for place in np.flatnonzero(ends > begins).tolist():
        entry, end = int(begins[place]), int(ends[place])
        starts = search.starts(entry, end)
        exact = starts[-1] == end
        least, rest = (_least_units(loose.derived[at:end]) for at in (entry, starts[-1]))
        walked = tuple(starts[:-1] if exact else starts)
        gaps.append(Gap(entry, end, place, walked, exact, least, len(starts) - 1 + rest))
    return tuple(gaps)


def _least_units(derived: BoolArray) -> int:
    """Return the least number of units in entries; derived ones may be none of the image."""
    return max(1, -(-int((~derived).sum()) // MOST_BLOCKS))
