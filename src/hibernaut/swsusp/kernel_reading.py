# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading of an image's data as a given kernel reads it: entry by entry, up to the first failure, in its own words.

`swapmap` and `stream` check an image as a whole; a kernel checks each entry and each unit only when it gets there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hibernaut.errors import CorruptImage
from hibernaut.swsusp.area import SwapArea
from hibernaut.swsusp.codecs import Codec, CompressorName, WrongLength, codec_named
from hibernaut.swsusp.declarations import LENGTH_BYTES, UNIT_PAGES, max_compressed_bytes

__all__ = ["FAILED", "KernelReading", "MapChain", "ReadFailure", "block_read", "entry_failure", "follow_map"]

FAILED = "PM: hibernation: Failed to load image, recovering."
"""Message of `load_image_and_restore` (kernel/power/hibernate.c) after every failure in it; some have no other."""


SECTOR_BYTES = 512
SECTOR_NUMBERS = 1 << 64
"""Values of `sector_t`."""


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
        stream_pages: number of pages that the kernel expects.
        compressor: compressor that the kernel applies.
        label: name of the compressor in the kernel's messages.
        length_bytes: size of a unit's length, which is that of the kernel's `size_t`.
    """

    def __init__(
        self,
        area: SwapArea,
        chain: MapChain,
        stream_pages: int,
        compressor: CompressorName,
        label: str,
        length_bytes: int = LENGTH_BYTES,
    ) -> None:
        self._area = area
        self._page_size = area.page_size
        self._unit_bytes = UNIT_PAGES * area.page_size
        self._length_bytes = length_bytes
        self._chain = chain
        self._stream_pages = stream_pages
        self._codec = None if compressor == "none" else codec_named(compressor)
        self._label = label

    def failure(self) -> ReadFailure | None:
        """Return the first failure, or None if the kernel reads to the end."""
        return self._plain_failure() if self._codec is None else self._unit_failure(self._codec)

    def _plain_failure(self) -> ReadFailure | None:
        for row in range(min(self._stream_pages, len(self._chain.entries) + 1)):
            if failure := self._entry_failure(1 + row, row // UNIT_PAGES):
                return failure
        return None

    def _unit_failure(self, codec: Codec) -> ReadFailure | None:
        """Read unit after unit as `load_compressed_image` does."""
        entry, rows, unit = 1, 0, 0
        room = np.empty(self._unit_bytes, dtype=np.uint8)
        while rows < self._stream_pages:
            packed = self._packed_unit(entry, unit)
            if isinstance(packed, ReadFailure):
                return packed
            size_bytes = self._unpacked_bytes(codec, packed, room, unit)
            if isinstance(size_bytes, ReadFailure):
                return size_bytes
            entry += -(-(self._length_bytes + len(packed)) // self._page_size)
            rows, unit = rows + size_bytes // self._page_size, unit + 1
        return None

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
