# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading of an image's data as a given kernel reads it: entry by entry, up to the first failure, in its own words.

`swapmap` and `stream` check an image as a whole; a kernel checks each entry and each unit only when it gets there.
`kernel_loading` has what it does with the pages.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hibernaut.errors import CorruptImage
from hibernaut.swsusp.area import SwapArea
from hibernaut.swsusp.checks import Answer
from hibernaut.swsusp.codecs import Codec, CompressorName, WrongLength, codec_named
from hibernaut.swsusp.crc32 import crc32
from hibernaut.swsusp.declarations import LENGTH_BYTES, UNIT_PAGES, max_compressed_bytes
from hibernaut.swsusp.kernel_loading import FAILED, LoadingEnd, SnapshotLoading
from hibernaut.swsusp.stream import Crc

__all__ = ["FAILED", "KernelReading", "MapChain", "ReadFailure", "block_read", "entry_failure", "follow_map"]

SECTOR_BYTES = 512
SECTOR_NUMBERS = 1 << 64
"""Values of `sector_t`."""
READ_AHEAD = (1024, 8192)
"""Blocks of a compressed image that the kernel reads ahead, at least and at most (`LZO_MIN_RD_PAGES` or
`CMP_MIN_RD_PAGES`, kernel/power/swap.c): as many as a part of the free memory has room for."""


@dataclass(frozen=True, eq=False)
class MapChain:
    """The swap map as the kernel follows it, without a check of entries before they are read.

    Attributes:
        entries: all entries of the map pages reached, uint64, zeroes included.
        outside: block number of a map page beyond the device, if the chain leads there.
        loops: whether the chain returns to an earlier page.
    """

    entries: NDArray[np.uint64]
    outside: int | None = None
    loops: bool = False

    @property
    def complete(self) -> bool:
        """Whether the chain has an end inside the device."""
        return self.outside is None and not self.loops


@dataclass(frozen=True)
class ReadFailure:
    """The failure that ends the reading of the data.

    Attributes:
        unit: the unit, or, not compressed, the group of 32 rows that it happens in.
        message: message of the kernel.
        remark: explanation.
    """

    unit: int
    message: str
    remark: str


def follow_map(area: SwapArea, first: int) -> MapChain:
    """Return the swap map from its first map page on."""
    parts: list[NDArray[np.uint64]] = [np.empty(0, dtype=np.uint64)]
    seen: set[int] = set()
    block, outside = first, None
    while block and block not in seen:
        try:
            page = np.frombuffer(area.read_block(block_read(area, block), "map page"), dtype=f"<u{area.sector_bytes}")
        except CorruptImage:
            outside = block
            break
        seen.add(block)
        parts.append(page[: area.map_entries].astype(np.uint64))
        block = int(page[area.map_entries])
    return MapChain(np.concatenate(parts), outside, loops=block in seen)


def block_read(area: SwapArea, number: int) -> int:
    """Return the block that the kernel reads for a number: the sector made of it has 64 bits (`hib_submit_io`).

    A guest of 7.3 resumed from an image whose first map page had a number 2^61 too large.
    """
    sectors = area.page_size // SECTOR_BYTES
    return number * sectors % SECTOR_NUMBERS // sectors


def entry_failure(area: SwapArea, chain: MapChain, entry: int, unit: int) -> ReadFailure | None:
    """Return the failure to read an entry of the map, if any (`swap_read_page`, `hib_end_io`).

    Args:
        area: swap area with the image.
        chain: its swap map.
        entry: index of the entry; 0 is that of the info page.
        unit: unit that it belongs to.
    """
    block = int(chain.entries[entry]) if entry < len(chain.entries) else 0
    if not block:
        return ReadFailure(unit, FAILED, f"the swap map ends with {entry} entries")
    if block_read(area, block) < area.blocks:
        return None
    return ReadFailure(
        unit,
        f"PM: Read-error on swap-device (?:?:{block_read(area, block) * (area.page_size // SECTOR_BYTES)})",
        f"block {block}, beyond the device of {area.blocks} blocks",
    )


class KernelReading:
    """The reading of an image's data by a kernel.

    Args:
        area: swap area with the image.
        chain: its swap map.
        compressor: compressor that the kernel applies.
        label: name of the compressor in the kernel's messages.
        length_bytes: size of a unit's length, which is that of the kernel's `size_t`.
    """

    def __init__(
        self,
        area: SwapArea,
        chain: MapChain,
        compressor: CompressorName,
        label: str,
        length_bytes: int = LENGTH_BYTES,
    ) -> None:
        self._area = area
        self._page_size = area.page_size
        self._unit_bytes = UNIT_PAGES * area.page_size
        self._length_bytes = length_bytes
        self._chain = chain
        self._codec = None if compressor == "none" else codec_named(compressor)
        self._label = label
        self._entry = 1

    def load(self, snapshot: SnapshotLoading) -> LoadingEnd:
        """Give the pages to a snapshot, one unit or block after another, and return how that ends."""
        if ended := snapshot.start():
            return ended
        crc = Crc()
        for unit, rows in self._plain_rows() if self._codec is None else self._unit_rows(self._codec):
            if isinstance(rows, ReadFailure):
                where = "load_image" if self._codec is None else "load_compressed_image"
                where += ", kernel/power/swap.c"
                failed = LoadingEnd(Answer.REFUSES, "units", where, rows.message, rows.remark, unit)
                return self._or_read_error(replace(failed, lists_read=snapshot.lists_read))
            crc.add(crc32(rows.reshape(-1)), rows.nbytes)
            if found := snapshot.take(rows):
                return self._or_read_error(replace(found, unit=unit, crc32=crc.value))
            if self._codec is None and snapshot.end is not None:
                return self._plain_end(*snapshot.end)
        raise AssertionError("the rows end with a failure")

    def _plain_end(self, last_row: int, ended: LoadingEnd) -> LoadingEnd:
        """Return the end of data that is not compressed, whose content no kernel checks, or the failure to read it."""
        entries = self._chain.entries[: 2 + last_row]
        sectors = np.uint64(self._page_size // SECTOR_BYTES)
        blocks = entries * sectors // sectors  # as `block_read`: the product is of 64 bits
        wrong = np.flatnonzero((entries == 0) | (blocks >= np.uint64(self._area.blocks)))
        first = int(wrong[0]) if len(wrong) else len(entries)
        if first >= 2 + last_row:
            return replace(ended, unit=last_row // UNIT_PAGES)
        unit = (first - 1) // UNIT_PAGES
        failure = self._entry_failure(first, unit)
        assert failure is not None
        where = "load_image, kernel/power/swap.c"
        return LoadingEnd(Answer.REFUSES, "units", where, failure.message, failure.remark, unit, lists_read=True)

    def _plain_rows(self) -> Iterator[tuple[int, NDArray[np.uint8] | ReadFailure]]:
        """Yield each block as a row, shape (1, bytes of a page), with the number of its group; a failure at the end."""
        row = 0
        while True:
            unit = row // UNIT_PAGES
            if failure := self._entry_failure(1 + row, unit):
                yield unit, failure
                return
            self._entry = 2 + row
            yield unit, np.frombuffer(self._block(1 + row), dtype=np.uint8).reshape(1, -1)
            row += 1

    def _unit_rows(self, codec: Codec) -> Iterator[tuple[int, NDArray[np.uint8] | ReadFailure]]:
        """Yield the pages of each unit, shape (n, bytes of a page), valid until the next one; a failure at the end.

        The function of the kernel is `load_compressed_image`.
        """
        unit = 0
        room = np.empty(self._unit_bytes, dtype=np.uint8)
        while True:
            packed = self._packed_unit(self._entry, unit)
            if isinstance(packed, ReadFailure):
                yield unit, packed
                return
            size_bytes = self._unpacked_bytes(codec, packed, room, unit)
            if isinstance(size_bytes, ReadFailure):
                yield unit, size_bytes
                return
            self._entry += -(-(self._length_bytes + len(packed)) // self._page_size)
            yield unit, room[:size_bytes].reshape(-1, self._page_size)
            unit += 1

    def _or_read_error(self, ending: LoadingEnd) -> LoadingEnd:
        """Return the ending, or the failure to read a block that the kernel reads ahead of the unit that ends it."""
        if self._codec is None:
            return ending
        certain, most = READ_AHEAD
        entries = self._chain.entries
        for number in range(self._entry, min(self._entry + most, len(entries))):
            if not entries[number]:
                break
            failure = self._entry_failure(number, ending.unit)
            if failure is None:
                continue
            if failure.message == ending.message:
                return ending
            where = "load_compressed_image, kernel/power/swap.c"
            if number <= certain:  # it is waited for before the first unit is looked at
                return LoadingEnd(Answer.REFUSES, "units", where, failure.message, failure.remark)
            if ending.answer is Answer.REFUSES:
                return replace(ending, message=FAILED)
            remark = f"{failure.remark}: refused if the kernel has memory to read so far ahead"
            return replace(ending, answer=Answer.DEPENDS, check="units", where=where, message=FAILED, remark=remark)
        return ending

    def _packed_unit(self, entry: int, unit: int) -> NDArray[np.uint8] | ReadFailure:
        """Return the compressed bytes of the unit that begins at an entry, or the failure to read them."""
        if failure := self._entry_failure(entry, unit):
            return failure
        head = self._length_bytes
        length = int.from_bytes(self._block(entry)[:head], "little")
        if not 0 < length <= max_compressed_bytes(self._unit_bytes):
            return ReadFailure(unit, f"PM: Invalid {self._label} compressed length", f"unit {unit} of {length} bytes")
        blocks = -(-(head + length) // self._page_size)
        entries = range(entry, entry + blocks)
        for number in entries:
            if failure := self._entry_failure(number, unit):
                return failure
        packed = b"".join(map(self._block, entries))
        return np.frombuffer(packed, dtype=np.uint8)[head : head + length]

    def _unpacked_bytes(
        self, codec: Codec, packed: NDArray[np.uint8], room: NDArray[np.uint8], unit: int
    ) -> int | ReadFailure:
        """Return the size that a unit decompresses to, or the failure to decompress it."""
        size_bytes = self._unit_bytes
        try:
            codec.decompress_into(packed, room)
        except WrongLength as error:
            size_bytes = error.size_bytes
            if 0 < size_bytes < self._unit_bytes:  # the last one; not every library has left its bytes in the room
                codec.decompress_into(packed, room[:size_bytes])
        except ValueError:
            return ReadFailure(unit, f"PM: {self._label} decompression failed", f"unit {unit}")
        if not 0 < size_bytes <= self._unit_bytes or size_bytes % self._page_size:
            return ReadFailure(
                unit, f"PM: Invalid {self._label} uncompressed length", f"unit {unit} gives {size_bytes}"
            )
        return size_bytes

    def _block(self, entry: int) -> bytes:
        return self._area.read_block(block_read(self._area, int(self._chain.entries[entry])), "data")

    def _entry_failure(self, entry: int, unit: int) -> ReadFailure | None:
        return entry_failure(self._area, self._chain, entry, unit)
