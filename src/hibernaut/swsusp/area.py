# SPDX-License-Identifier: GPL-2.0-or-later
"""The blocks of a swap area in a file: the image of a partition, the device of a swap file, a whole disk."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hibernaut.errors import CorruptImage, FormatError
from hibernaut.memory.page import PAGE_SIZE, Bytes
from hibernaut.swsusp.declarations import SIGNATURE, SWAP_SIGNATURES
from hibernaut.swsusp.page_sizes import find_header
from hibernaut.volumes.files import PlainFile
from hibernaut.volumes.partitions import find_partition
from hibernaut.volumes.volume import Volume

__all__ = ["SwapArea", "contiguous_runs", "locate_area", "other_unit"]

OTHER_UNITS = {PAGE_SIZE: "bytes", PAGE_SIZE // 512: "sectors of 512 bytes", PAGE_SIZE // 1024: "blocks of 1024 bytes"}
"""Units that an offset is given in by mistake: how many of them a page has."""


@dataclass(frozen=True, eq=False)
class SwapArea:
    """A block device inside a file, with the block of its swap header.

    Attributes:
        file: the file, plain bytes.
        base_bytes: byte at which block 0 of the device begins in the file; any byte.
        size_bytes: length of the device.
        header_block: block of the swap header: 0 for a partition, `resume_offset` for a swap file.
        page_size: size of a block, which is that of a page of the machine, in bytes.
        sector_bytes: size of the kernel's `sector_t`: 8, or 4.
        big_endian: whether the header is that of a big-endian kernel.
    """

    file: Volume
    base_bytes: int
    size_bytes: int
    header_block: int = 0
    page_size: int = PAGE_SIZE
    sector_bytes: int = 8
    big_endian: bool = False

    @property
    def blocks(self) -> int:
        """Number of whole blocks of the device."""
        return self.size_bytes // self.page_size

    @property
    def frames_per_page(self) -> int:
        """Number of page frames of 4096 bytes that a page of the machine has."""
        return self.page_size // PAGE_SIZE

    @property
    def map_entries(self) -> int:
        """Block numbers in a swap map page (`MAP_PAGE_ENTRIES`); the last one of the page is the next map page."""
        return self.page_size // self.sector_bytes - 1

    @property
    def image_at(self) -> int:
        """Byte in the file of the header's field `image`."""
        return self.offset_of(self.header_block) + self.page_size - 24 - self.sector_bytes

    @property
    def crc32_at(self) -> int:
        """Byte in the file of the header's field `crc32`."""
        return self.image_at - 4

    def offset_of(self, block: int) -> int:
        """Return the byte in the file at which a block begins."""
        return self.base_bytes + block * self.page_size

    def is_hole(self, first: int, blocks: int) -> bool:
        """Return whether neighbouring blocks are known to be a hole of the file, all zeroes, without reading them."""
        return isinstance(self.file, PlainFile) and self.file.is_hole(self.offset_of(first), blocks * self.page_size)

    def read_block(self, block: int, what: str) -> bytes:
        """Return one block. Raises CorruptImage if it is outside the file; `what` names the object read."""
        data = self.file.pread(self.offset_of(block), self.page_size) if 0 <= block < self.blocks else b""
        if len(data) != self.page_size:
            raise CorruptImage(
                f"{what}: block {block} is outside the swap area",
                source=self.file.name,
                offset=self.offset_of(block),
                expected=f"a block below {self.blocks}",
            )
        return data

    def read_blocks(self, blocks: NDArray[np.int64], out: Bytes) -> None:
        """Read many blocks into an array, shape (page_size * n,), contiguous ones with one call.

        Args:
            blocks: block numbers, known to be inside the area, shape (n,).
            out: array for their bytes.

        Raises:
            CorruptImage: the file ends before them (it was cut while being read).
        """
        at = 0
        for first, pages in contiguous_runs(blocks):
            self.read_run(first, pages, out[at : at + pages * self.page_size])
            at += pages * self.page_size

    def read_run(self, first: int, blocks: int, out: Bytes) -> None:
        """Read neighbouring blocks, known to be inside the area, into an array, shape (page_size * n,).

        Raises:
            CorruptImage: the file ends before them (it was cut while being read).
        """
        got = self.file.pread_into(self.offset_of(first), out)
        if got != blocks * self.page_size:
            raise CorruptImage(
                f"the file ends inside blocks {first} to {first + blocks - 1}",
                source=self.file.name,
                offset=self.offset_of(first) + got,
            )


def contiguous_runs(blocks: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield (first block, number of blocks) of each contiguous run, in the order given."""
    if not len(blocks):
        return
    breaks = (np.flatnonzero(blocks[1:] - blocks[:-1] != 1) + 1).tolist()
    for first, last in itertools.pairwise([0, *breaks, len(blocks)]):
        yield int(blocks[first]), last - first


def locate_area(file: Volume, *, offset: int = 0, partition: int | None = None, base: int | None = None) -> SwapArea:
    """Return the swap area in a file, with the size of its machine's pages.

    Args:
        file: image of a swap partition, whole disk, or image of a file system's device.
        offset: block of the swap header on its device (`resume_offset` of a swap file), in pages.
        partition: number of a partition in the file's MBR or GPT; logical partitions count from 5.
        base: byte at which the device begins in the file; excludes `partition`.

    Raises:
        FormatError: there is no such partition, or the header is outside the file.
    """
    if partition is not None and base is not None:
        raise FormatError(
            "a partition number and a base in bytes exclude each other", source=file.name, advice="give one of them"
        )
    start, size = 0, file.size_bytes
    if base is not None:
        start, size = base, file.size_bytes - base
    elif partition is not None:
        start, size = find_partition(file, partition)
    if start < 0 or size < PAGE_SIZE:
        raise FormatError(
            f"the swap area begins at byte {start}",
            source=file.name,
            expected=f"at least one block of {PAGE_SIZE} bytes before the end of the file at {file.size_bytes}",
            advice="give another --base or --partition" if start else "give the file or device of a swap area",
        )
    area = SwapArea(file, start, size, offset)
    if not 0 <= offset < area.blocks:
        raise FormatError(
            f"swap header at block {offset} is outside the device",
            source=file.name,
            expected=f"below {area.blocks}",
            advice=other_unit(area) or "give the kernel's resume_offset, in pages, as --offset",
        )
    found = find_header(file, start, size, offset)
    return SwapArea(file, start, size, found.block, found.page_size, found.sector_bytes, found.big_endian)


def other_unit(area: SwapArea) -> str | None:
    """Return advice if a swap header lies where the offset of an area leads in another unit than pages; else None."""
    for size, unit in OTHER_UNITS.items():
        block, rest = divmod(area.header_block, size)
        if not rest and 0 < block < area.blocks:
            signature = area.file.pread(area.offset_of(block) + PAGE_SIZE - len(SIGNATURE), len(SIGNATURE))
            if signature == SIGNATURE or signature in SWAP_SIGNATURES:
                return f"give --offset {block}, in pages: {area.header_block} is the place of a swap header in {unit}"
    return None
