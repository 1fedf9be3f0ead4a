# SPDX-License-Identifier: GPL-2.0-or-later
"""The stream of pages after the info page: the index of its units, their decompression on all cores, its CRC.

Unit k holds rows 32 k to 32 k + 31 of the stream (the last unit may be shorter); an uncompressed image is treated as
units of 32 blocks. Memory stays bounded: a few batches of units are in flight at a time.

A row is 4096 bytes of the stream: a page, or, of a machine with larger ones, a part of a page.
"""

from __future__ import annotations

import bisect
import functools
import threading
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from hibernaut.errors import CorruptImage
from hibernaut.memory.page import PAGE_SIZE, Bytes, aligned_pages
from hibernaut.parallel import in_order, ordered_results
from hibernaut.swsusp.area import SwapArea
from hibernaut.swsusp.codecs import Codec, CompressorName, codec_named
from hibernaut.swsusp.crc32 import crc32, crc32_combine
from hibernaut.swsusp.declarations import LENGTH_BYTES, UNIT_PAGES, max_compressed_bytes
from hibernaut.swsusp.swapmap import SEARCHED_ENTRIES, SwapMap
from hibernaut.swsusp.units import DamagedUnit, ZeroUnits, unpack_units
from hibernaut.volumes.files import PlainFile

__all__ = ["BATCH_UNITS", "Batch", "Crc", "UnitIndex", "UnitStream", "index_units"]

BATCH_UNITS = 32
"""Units of 32 pages in one task: 4 MiB of pages."""


class Crc:
    """The kernel's running CRC of the uncompressed stream: `crc32_le`, seed 0, no final inversion."""

    def __init__(self) -> None:
        self._running = 0xFFFF_FFFF

    def add(self, crc32_of_part: int, size_bytes: int) -> None:
        """Append a part by its own (zlib) CRC."""
        self._running = crc32_combine(self._running, crc32_of_part, size_bytes)

    @property
    def value(self) -> int:
        """The CRC as the header has it."""
        return self._running ^ 0xFFFF_FFFF


@dataclass(frozen=True, eq=False)
class UnitIndex:
    """The places of all units.

    Attributes:
        first_entry: index in the swap map of each unit's first block, and one past the last unit's, int64, (n + 1,).
        compressed_bytes: length of each unit's compressed data, int64, shape (n,); all 0 if not compressed.
        leftover_entries: number of unused entries of the swap map after the last unit.
    """

    first_entry: NDArray[np.int64]
    compressed_bytes: NDArray[np.int64]
    leftover_entries: int

    def __len__(self) -> int:
        return len(self.compressed_bytes)


def index_units(
    area: SwapArea, swap_map: SwapMap, stream_pages: int, compressor: CompressorName, length_bytes: int = LENGTH_BYTES
) -> UnitIndex:
    """Return the index of all units of the stream.

    Args:
        area: swap area.
        swap_map: blocks of the image.
        stream_pages: pages of the stream, of the machine's size.
        compressor: compressor of the units.
        length_bytes: size of a unit's length, which is that of the kernel's `size_t`.

    Raises:
        CorruptImage: a length is one that the kernel refuses, or the map has fewer blocks than the units need.
    """
    units = -(-stream_pages // UNIT_PAGES)
    total = len(swap_map.entries)
    if compressor == "none":
        if total < stream_pages + 1:
            raise _map_ends(area, swap_map, f"{stream_pages + 1} pages", total)
        first = np.minimum(1 + UNIT_PAGES * np.arange(units + 1, dtype=np.int64), stream_pages + 1)
        return UnitIndex(first, np.zeros(units, dtype=np.int64), total - stream_pages - 1)
    begins: list[int] = []
    lengths: list[int] = []
    # One small read a unit, each after the previous one: plain Python numbers and few calls keep it fast.
    entries, pread, base = swap_map.entries.data, area.file.pread, area.base_bytes
    page_size, most = area.page_size, max_compressed_bytes(UNIT_PAGES * area.page_size)
    number = int.from_bytes
    entry = 1
    for unit in range(units):
        if entry >= total:
            raise _map_ends(area, swap_map, f"{units} units", total, unit)
        raw = pread(base + entries[entry] * page_size, length_bytes)
        length = number(raw, "little")
        if not 0 < length <= most or len(raw) < length_bytes:
            raise CorruptImage(
                f"unit {unit} has a compressed length of {length}",
                source=area.file.name,
                offset=area.offset_of(entries[entry]),
                expected=f"1 to {most}",
            )
        begins.append(entry)
        lengths.append(length)
        entry -= -(length_bytes + length) // page_size
        if entry > total:
            raise CorruptImage(
                f"unit {unit} of {length} bytes runs past the end of the swap map",
                source=area.file.name,
                offset=area.offset_of(entries[begins[-1]]),
                expected=f"at most {(total - begins[-1]) * page_size - length_bytes} bytes",
            )
    begins.append(entry)
    return UnitIndex(np.array(begins, dtype=np.int64), np.array(lengths, dtype=np.int64), total - entry)


def _map_ends(area: SwapArea, swap_map: SwapMap, needed: str, total: int, unit: int | None = None) -> CorruptImage:
    after = "" if unit is None else f" after unit {unit}"
    return CorruptImage(
        f"swap map ends{after} with {total} entries",
        source=area.file.name,
        offset=area.offset_of(int(swap_map.map_blocks[-1])),
        expected=needed,
    )


def _breaks(entries: NDArray[np.int64]) -> array[int]:
    """Return the positions of entries whose block does not follow that of the entry before, ascending."""
    found = array("q")
    for first in range(1, len(entries), SEARCHED_ENTRIES):
        some = entries[first - 1 : first + SEARCHED_ENTRIES]
        found.frombytes((np.flatnonzero(some[1:] != some[:-1] + 1) + first).astype(np.int64).tobytes())
    return found


@dataclass(frozen=True, eq=False)
class Batch:
    """Decompressed rows of the stream.

    Attributes:
        first_row: number of the first one.
        pages: their bytes, shape (n, 4096).
        crc32: their (zlib) CRC-32.
    """

    first_row: int
    pages: Bytes
    crc32: int


class UnitStream:
    """The pages after the info page, by unit or all in order.

    Args:
        area: swap area.
        swap_map: blocks of the image.
        index: units in them.
        stream_pages: pages of the stream, of the machine's size.
        compressor: compressor of the units.
        length_bytes: size of a unit's length.

    Attributes:
        index: units.
        rows: number of rows of the stream.
        unit_rows: rows of each unit but the last one.
        length_bytes: size of a unit's length.
        lead_rows: rows of the first unit that come before the stream: the info page, where it is compressed as well.
    """

    def __init__(
        self,
        area: SwapArea,
        swap_map: SwapMap,
        index: UnitIndex,
        stream_pages: int,
        compressor: CompressorName,
        length_bytes: int = LENGTH_BYTES,
    ) -> None:
        self.index = index
        self.rows = stream_pages * area.frames_per_page
        self.unit_rows = UNIT_PAGES * area.frames_per_page
        self.lead_rows = 0
        self.length_bytes = length_bytes
        self._area = area
        self._entries = swap_map.entries
        self._breaks = _breaks(swap_map.entries)
        self._zero_units = ZeroUnits()
        self._not_decompressed = self._zero_units if compressor == "lzo" else None
        self._local = threading.local()
        self._codec: Codec | None = None if compressor == "none" else codec_named(compressor)

    def rows_of(self, first_unit: int, last_unit: int) -> tuple[int, int]:
        """Return the first row of a unit, and one past the last row before `last_unit`."""
        first, last = (max(0, unit * self.unit_rows - self.lead_rows) for unit in (first_unit, last_unit))
        return first, min(last, self.rows)

    @overload
    def place_of(self, rows: int) -> tuple[int, int]: ...
    @overload
    def place_of(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...
    def place_of(self, rows: Any) -> Any:
        """Return the units of rows, and the places of the rows among those that each unit decodes to, shape (n,)."""
        units, within = divmod(rows + self.lead_rows, self.unit_rows)
        return units, within - self.lead_rows * (units == 0)

    def units_of(self, rows: int) -> int:
        """Return the number of units that hold the first rows."""
        return -(-(rows + self.lead_rows) // self.unit_rows)

    def decode(self, first_unit: int, last_unit: int, out: Bytes | None = None) -> Batch:
        """Return rows of units `first_unit` to `last_unit` - 1, in `out` if given, shape (n, 4096).

        Raises:
            CorruptImage: the data is damaged; the message has the unit and its place.
        """
        first_row, end_row = self.rows_of(first_unit, last_unit)
        pages = np.empty((end_row - first_row, PAGE_SIZE), dtype=np.uint8) if out is None else out
        flat = pages.reshape(-1)
        crc = 0
        for first in range(first_unit, last_unit, self._batch_units):
            last = min(first + self._batch_units, last_unit)
            row, end = self.rows_of(first, last)
            crc = self._decode_batch(
                first, last, flat[(row - first_row) * PAGE_SIZE : (end - first_row) * PAGE_SIZE], crc
            )
        return Batch(first_row, pages, crc)

    def unit(self, number: int) -> Bytes:
        """Return the rows of one unit, shape (n, 4096), read-only; units of zeroes are one array.

        Raises:
            CorruptImage: the data is damaged.
        """
        first_row, end_row = self.rows_of(number, number + 1)
        if self._codec is None:
            return self.read_rows(first_row, end_row - first_row)
        stored, at, lengths = self._read_units(number, number + 1)
        is_whole = end_row - first_row == self.unit_rows
        packed = stored[at[0] : at[0] + lengths[0]]
        if is_whole and self._zero_units.has(packed):
            return self._zeroes
        pages = np.empty((end_row - first_row, PAGE_SIZE), dtype=np.uint8)
        self._unpack_read_units(self._codec, number, stored, at, lengths, pages.reshape(-1), 0)
        if is_whole and self._not_decompressed is None:  # else `unpack_units` has learned it
            self._zero_units.learn(packed, pages)
        pages.flags.writeable = False
        return pages

    @functools.cached_property
    def _zeroes(self) -> Bytes:
        """The rows of a unit of zeroes."""
        pages = np.zeros((self.unit_rows, PAGE_SIZE), dtype=np.uint8)
        pages.flags.writeable = False
        return pages

    @property
    def reads_rows(self) -> bool:
        """Whether rows can be read by themselves, at no higher cost each than all of a unit."""
        return self._codec is None and isinstance(self._area.file, PlainFile)

    def read_rows(self, first: int, count: int) -> Bytes:
        """Read rows of a stream that is not compressed, shape (count, 4096), read-only.

        Raises:
            CorruptImage: the file ends before them.
        """
        parts = self._area.frames_per_page
        entry, within = divmod(first, parts)
        entries = -(-(within + count) // parts)
        pages = np.empty((entries * parts, PAGE_SIZE), dtype=np.uint8)
        entry += int(self.index.first_entry[0])
        self._read_entries(entry, entry + entries, pages.reshape(-1))
        pages.flags.writeable = False
        return pages[within : within + count]

    def _decode_batch(self, first_unit: int, last_unit: int, flat: Bytes, crc: int) -> int:
        """Decompress units into an array, shape (n,), and return their CRC, appended to `crc`. Raises CorruptImage."""
        if self._codec is None:
            begin, end = self.index.first_entry[[first_unit, last_unit]].tolist()
            self._read_entries(begin, end, flat)
            return crc32(flat, crc)
        return self._unpack_read_units(self._codec, first_unit, *self._read_units(first_unit, last_unit), flat, crc)

    def _read_units(self, first_unit: int, last_unit: int) -> tuple[Bytes, list[int], list[int]]:
        """Read units, with one call where their blocks are neighbours.

        Returns:
            This thread's buffer with their blocks; the place of each unit's data in it; the lengths of the data.
        """
        begins = self.index.first_entry[first_unit : last_unit + 1].tolist()
        block_bytes = self._area.page_size
        stored = self._buffer((begins[-1] - begins[0]) * block_bytes)
        self._read_entries(begins[0], begins[-1], stored)
        # Lengths in the file may have changed since, if another process writes to it: the index decides.
        lengths = self.index.compressed_bytes[first_unit:last_unit].tolist()
        return stored, [(begin - begins[0]) * block_bytes + self.length_bytes for begin in begins[:-1]], lengths

    def _unpack_read_units(
        self, codec: Codec, first_unit: int, stored: Bytes, at: list[int], lengths: list[int], flat: Bytes, crc: int
    ) -> int:
        """Decompress units into an array, shape (n,), and return their CRC, appended to `crc`. Raises CorruptImage."""
        try:
            return self._unpack_units(codec, first_unit, stored, at, lengths, flat, crc)
        except DamagedUnit as error:
            raise self._bad_unit(first_unit + error.position, str(error)) from error

    def _unpack_units(
        self,
        codec: Codec,
        _first_unit: int,
        stored: Bytes,
        at: list[int],
        lengths: list[int],
        out: Bytes,
        crc: int,
    ) -> int:
        """Decompress units, see `unpack_units`."""
        return unpack_units(codec, stored, at, lengths, out, self.unit_rows * PAGE_SIZE, crc, self._not_decompressed)

    def _read_entries(self, first: int, last: int, out: Bytes) -> None:
        """Read the blocks of some entries of the swap map: with one call where they are neighbours."""
        next_break = bisect.bisect_right(self._breaks, first)
        if next_break < len(self._breaks) and self._breaks[next_break] < last:
            self._area.read_blocks(self._entries[first:last], out)
        else:
            self._area.read_run(int(self._entries[first]), last - first, out)

    def _buffer(self, size_bytes: int) -> Bytes:
        """Return this thread's buffer for compressed bytes, shape (size_bytes,); the next call overwrites it."""
        room: Bytes | None = getattr(self._local, "stored", None)
        if room is None or len(room) < size_bytes:
            self._local.stored = room = np.empty(size_bytes + size_bytes // 4, dtype=np.uint8)
        return room[:size_bytes]

    def _bad_unit(self, unit: int, what: str) -> CorruptImage:
        block = int(self._entries[self.index.first_entry[unit]])
        return CorruptImage(
            f"unit {unit} ({self.index.compressed_bytes[unit]} bytes compressed) {what}",
            source=self._area.file.name,
            offset=self._area.offset_of(block),
        )

    def for_each(
        self,
        sink: Callable[[int, Bytes], None],
        progress: Callable[[int], None] | None = None,
        *,
        workers: int | None = None,
    ) -> int:
        """Decompress the stream on all cores, pass it to `sink`, and return its CRC.

        Args:
            sink: called with the first row and its pages, shape (n, 4096), from several threads at once and in any
                order; the array is valid only during the call.
            progress: called with the number of pages done, from any thread.
            workers: number of threads; None for one per core.

        Raises:
            CorruptImage: the data is damaged.
        """
        buffers = threading.local()
        crc = Crc()

        def work(number: int) -> tuple[int, int]:
            first, last = self._units_of(number)
            first_row, end_row = self.rows_of(first, last)
            if not hasattr(buffers, "pages"):
                buffers.pages = aligned_pages(self._batch_units * self.unit_rows)
            batch = self.decode(first, last, buffers.pages[: end_row - first_row])
            sink(first_row, batch.pages)
            return batch.crc32, len(batch.pages)

        def commit(part: tuple[int, int]) -> None:
            crc32, pages = part
            crc.add(crc32, pages * PAGE_SIZE)
            if progress:
                progress(pages)

        in_order(-(-len(self.index) // self._batch_units), work, commit, workers=workers)
        return crc.value

    def read_into(self, out: Bytes, progress: Callable[[int], None] | None = None) -> int:
        """Decompress the stream on all cores into an array, shape (rows, 4096), and return its CRC.

        Raises:
            CorruptImage: the data is damaged.
        """
        crc = Crc()

        def work(number: int) -> Batch:
            first, last = self._units_of(number)
            first_row, end_row = self.rows_of(first, last)
            return self.decode(first, last, out[first_row:end_row])

        def commit(batch: Batch) -> None:
            crc.add(batch.crc32, batch.pages.nbytes)
            if progress:
                progress(len(batch.pages))

        in_order(-(-len(self.index) // self._batch_units), work, commit)
        return crc.value

    def batches(self) -> Iterator[Batch]:
        """Yield all rows in order, decompressed on all cores. Raises CorruptImage if the data is damaged."""

        def task(number: int) -> Callable[[], Batch]:
            return lambda: self.decode(*self._units_of(number))

        return ordered_results(map(task, range(-(-len(self.index) // self._batch_units))))

    def _units_of(self, batch: int) -> tuple[int, int]:
        first = batch * self._batch_units
        return first, min(first + self._batch_units, len(self.index))

    @property
    def _batch_units(self) -> int:
        """Units of one task: as many as have the pages of `BATCH_UNITS`, at least one."""
        return max(1, BATCH_UNITS * UNIT_PAGES // self.unit_rows)
