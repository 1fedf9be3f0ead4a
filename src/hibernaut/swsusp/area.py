# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the blocks of a swap area lie in a file: a partition's image, a swap file's device, a whole disk."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from hibernaut.errors import CorruptImage, FormatError
from hibernaut.memory.physical import PAGE_SIZE, Bytes
from hibernaut.volumes.files import PlainFile

__all__ = ["SwapArea", "contiguous_runs", "locate_area"]

SECTOR_BYTES = 512
MBR_EXTENDED = {0x05, 0x0F, 0x85}
MBR_PROTECTIVE = 0xEE
MAX_LOGICAL_PARTITIONS = 128
MAX_GPT_ENTRIES = 1024
GPT_ENTRY_BYTES = (128, 4096)


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
        start, size = _partition(file, partition)
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


def _partition(file: PlainFile, number: int) -> tuple[int, int]:
    """First byte and length of a partition, cut at the end of the file."""
    table = file.pread(0, SECTOR_BYTES)
    if len(table) < SECTOR_BYTES or table[510:512] != b"\x55\xaa":
        raise FormatError("no partition table", source=file.name, offset=510, expected="55 aa, the mark of an MBR")
    entries = _mbr_entries(table)
    is_gpt = any(kind == MBR_PROTECTIVE for kind, _, _ in entries)
    found = _gpt(file) if is_gpt else _mbr(file, entries)
    if number not in found:
        known = ", ".join(map(str, sorted(found))) or "none"
        raise FormatError(f"no partition {number}", source=file.name, expected=f"one of: {known}")
    start, size = found[number]
    return start, min(size, file.size_bytes - start)


def _mbr_entries(sector: bytes) -> list[tuple[int, int, int]]:
    """(type, first sector, sectors) of the four entries of an MBR or EBR."""
    entries = []
    for index in range(4):
        entry = sector[446 + 16 * index : 462 + 16 * index]
        first, sectors = struct.unpack_from("<II", entry, 8)
        entries.append((entry[4], first, sectors))
    return entries


def _mbr(file: PlainFile, entries: list[tuple[int, int, int]]) -> dict[int, tuple[int, int]]:
    found = {}
    for index, (kind, first, sectors) in enumerate(entries):
        if not kind or not sectors:
            continue
        if kind in MBR_EXTENDED:
            found.update(_logical(file, first))
        else:
            found[index + 1] = (first * SECTOR_BYTES, sectors * SECTOR_BYTES)
    return found


def _logical(file: PlainFile, extended: int) -> dict[int, tuple[int, int]]:
    """Logical partitions: a chain of boot records, each naming one partition and the next record."""
    found: dict[int, tuple[int, int]] = {}
    record, seen = extended, set[int]()
    while record not in seen and len(seen) < MAX_LOGICAL_PARTITIONS:
        seen.add(record)
        sector = file.pread(record * SECTOR_BYTES, SECTOR_BYTES)
        if len(sector) < SECTOR_BYTES or sector[510:512] != b"\x55\xaa":
            break
        mine, following = _mbr_entries(sector)[:2]
        if mine[0] and mine[2]:
            found[5 + len(found)] = ((record + mine[1]) * SECTOR_BYTES, mine[2] * SECTOR_BYTES)
        if following[0] not in MBR_EXTENDED:
            break
        record = extended + following[1]
    return found


def _gpt(file: PlainFile) -> dict[int, tuple[int, int]]:
    header = file.pread(SECTOR_BYTES, SECTOR_BYTES)
    if header[:8] != b"EFI PART" or len(header) < SECTOR_BYTES:
        raise FormatError("no GPT header", source=file.name, offset=SECTOR_BYTES, expected="EFI PART")
    first_entry, count, entry_bytes = struct.unpack_from("<QII", header, 72)
    low, high = GPT_ENTRY_BYTES
    if not low <= entry_bytes <= high or not 0 < count <= MAX_GPT_ENTRIES:
        raise FormatError(
            "GPT header is damaged",
            source=file.name,
            offset=SECTOR_BYTES + 72,
            expected=f"at most {MAX_GPT_ENTRIES} entries of {low} to {high} bytes",
            found=f"{count} of {entry_bytes}",
        )
    table = file.pread(first_entry * SECTOR_BYTES, count * entry_bytes)
    found = {}
    for index in range(len(table) // entry_bytes):
        entry = table[index * entry_bytes : index * entry_bytes + 48]
        first, last = struct.unpack_from("<QQ", entry, 32)
        if UUID(bytes_le=entry[:16]).int and first <= last:
            found[index + 1] = (first * SECTOR_BYTES, (last + 1 - first) * SECTOR_BYTES)
    return found
