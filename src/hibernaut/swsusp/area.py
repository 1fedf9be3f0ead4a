# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the blocks of a swap area lie in a file: a partition's image, a swap file's device, a whole disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hibernaut.errors import CorruptImage, FormatError
from hibernaut.memory.physical import PAGE_SIZE, Bytes
from hibernaut.volumes.files import PlainFile
from hibernaut.volumes.partitions import find_partition

__all__ = ["SwapArea", "contiguous_runs", "locate_area"]


@dataclass(frozen=True, eq=False)
class SwapArea:
    """A block device inside a file, and which of its blocks is the swap header.

    Attributes:
        file: the file, plain bytes.
        base_bytes: where block 0 of the device lies in the file; any byte.
        size_bytes: length of the device.
        header_block: block of the swap header: 0 for a partition, `resume_offset` for a swap file.
    """

    file: PlainFile
    base_bytes: int
    size_bytes: int
    header_block: int = 0

    @property
    def blocks(self) -> int:
        """How many whole blocks the device has."""
        return self.size_bytes // PAGE_SIZE

    def offset_of(self, block: int) -> int:
        """Byte in the file at which a block begins."""
        return self.base_bytes + block * PAGE_SIZE

    def read_block(self, block: int, what: str) -> bytes:
        """One block. Raises CorruptImage if it lies outside the file; `what` says what was to be read."""
        data = self.file.pread(self.offset_of(block), PAGE_SIZE) if 0 <= block < self.blocks else b""
        if len(data) != PAGE_SIZE:
            raise CorruptImage(
                f"{what}: block {block} lies outside the swap area",
                source=self.file.name,
                offset=self.offset_of(block),
                expected=f"a block below {self.blocks}",
            )
        return data

    def read_blocks(self, blocks: NDArray[np.int64], out: Bytes) -> None:
        """Many blocks one after the other into an array, shape (4096 n,), neighbours in one read.

        Args:
            blocks: block numbers, known to lie inside the area, shape (n,).
            out: where to put them.

        Raises:
            CorruptImage: the file ends before them (it was cut while being read).
        """
        at = 0
        for first, pages in contiguous_runs(blocks):
            size_bytes = pages * PAGE_SIZE
            got = self.file.pread_into(self.offset_of(first), out[at : at + size_bytes])
            if got != size_bytes:
                raise CorruptImage(
                    f"the file ends inside blocks {first} to {first + pages - 1}",
                    source=self.file.name,
                    offset=self.offset_of(first) + got,
                )
            at += size_bytes


def contiguous_runs(blocks: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """(first block, number of blocks) of each stretch of blocks that rise one by one, in the order given."""
    if not len(blocks):
        return
    breaks = np.flatnonzero(np.diff(blocks) != 1) + 1
    first = np.concatenate(([0], breaks))
    last = np.concatenate((breaks, [len(blocks)]))
    yield from zip(blocks[first].tolist(), (last - first).tolist(), strict=True)


def locate_area(file: PlainFile, *, offset: int = 0, partition: int | None = None, base: int | None = None) -> SwapArea:
    """Find the swap area in a file.

    Args:
        file: a swap partition's image, or a whole disk, or the image of a file system's device.
        offset: block of the swap header on its device (`resume_offset` of a swap file), in pages.
        partition: number of a partition in the file's MBR or GPT; logical partitions count from 5.
        base: where the device begins in the file, in bytes; excludes `partition`.

    Raises:
        FormatError: no such partition, or the header lies outside the file.
    """
    if partition is not None and base is not None:
        raise FormatError("a partition number and a base in bytes exclude each other", source=file.name)
    start, size = 0, file.size_bytes
    if base is not None:
        start, size = base, file.size_bytes - base
    elif partition is not None:
        start, size = find_partition(file, partition)
    if start < 0 or size < PAGE_SIZE:
        raise FormatError(
            f"the swap area would begin at byte {start}",
            source=file.name,
            expected=f"at least one block of {PAGE_SIZE} bytes before the end of the file at {file.size_bytes}",
        )
    area = SwapArea(file, start, size, offset)
    if not 0 <= offset < area.blocks:
        raise FormatError(
            f"swap header at block {offset} lies outside the device", source=file.name, expected=f"below {area.blocks}"
        )
    return area
