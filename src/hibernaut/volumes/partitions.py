# SPDX-License-Identifier: GPL-2.0-or-later
"""Partitions of a disk, by the number that Linux gives them: master boot records and GUID partition tables."""

from __future__ import annotations

import struct
from uuid import UUID

from hibernaut.errors import FormatError
from hibernaut.volumes.files import PlainFile

__all__ = ["SECTOR_BYTES", "find_partition"]

SECTOR_BYTES = 512
"""Logical block size of the disks that partition tables are read from."""
BOOT_SIGNATURE = b"\x55\xaa"
"""Last two bytes of a master or extended boot record."""
BOOT_SIGNATURE_OFFSET = 510
MBR_ENTRIES_OFFSET = 446
MBR_ENTRY_BYTES = 16
MBR_ENTRIES = 4
MBR_EXTENDED = {0x05, 0x0F, 0x85}
"""Types of partitions that hold a chain of extended boot records."""
MBR_PROTECTIVE = 0xEE
"""Type of the entry that marks a disk with a GUID partition table."""
FIRST_LOGICAL_NUMBER = 5
MAX_LOGICAL_PARTITIONS = 128
GPT_SIGNATURE = b"EFI PART"
GPT_ENTRIES_OFFSET = 72
"""UEFI specification, 5.3.2: PartitionEntryLBA, NumberOfPartitionEntries, SizeOfPartitionEntry."""
MAX_GPT_ENTRIES = 1024
GPT_ENTRY_BYTES = (128, 4096)
"""Smallest and largest size of an entry that is accepted."""

Partitions = dict[int, tuple[int, int]]
"""(first byte, length) of each partition, by number."""


def find_partition(file: PlainFile, number: int) -> tuple[int, int]:
    """Return the first byte and the length of a partition, cut at the end of the file.

    Args:
        file: a whole disk.
        number: as in the name of the partition's device; logical partitions count from 5.

    Raises:
        FormatError: the disk has no partition table, a damaged one, or no such partition.
    """
    sector = file.pread(0, SECTOR_BYTES)
    if not _is_boot_record(sector):
        raise FormatError(
            "no partition table",
            source=file.name,
            offset=BOOT_SIGNATURE_OFFSET,
            expected="55 aa, the signature of a boot record",
            advice="leave out --partition if the file is the partition itself, else give --base",
        )
    entries = _mbr_entries(sector)
    is_gpt = any(kind == MBR_PROTECTIVE for kind, _, _ in entries)
    found = _gpt(file) if is_gpt else _mbr(file, entries)
    if number not in found:
        known = ", ".join(map(str, sorted(found))) or "none"
        raise FormatError(
            f"no partition {number}", source=file.name, expected=f"one of: {known}", advice="give one of these"
        )
    start, size_bytes = found[number]
    return start, min(size_bytes, file.size_bytes - start)


def _is_boot_record(sector: bytes) -> bool:
    return len(sector) == SECTOR_BYTES and sector[BOOT_SIGNATURE_OFFSET:] == BOOT_SIGNATURE


def _mbr_entries(sector: bytes) -> list[tuple[int, int, int]]:
    """Return (type, first sector, number of sectors) of the four entries of a boot record."""
    entries = []
    for at in range(MBR_ENTRIES_OFFSET, MBR_ENTRIES_OFFSET + MBR_ENTRIES * MBR_ENTRY_BYTES, MBR_ENTRY_BYTES):
        first, sectors = struct.unpack_from("<II", sector, at + 8)
        entries.append((sector[at + 4], first, sectors))
    return entries


def _mbr(file: PlainFile, entries: list[tuple[int, int, int]]) -> Partitions:
    """Return the primary and logical partitions of a master boot record."""
    found: Partitions = {}
    for number, (kind, first, sectors) in enumerate(entries, start=1):
        if not kind or not sectors:
            continue
        if kind in MBR_EXTENDED:
            found.update(_logical(file, first))
        else:
            found[number] = (first * SECTOR_BYTES, sectors * SECTOR_BYTES)
    return found


def _logical(file: PlainFile, extended: int) -> Partitions:
    """Return the logical partitions: a chain of boot records, each with one partition and a link to the next record."""
    found: Partitions = {}
    record, seen = extended, set[int]()
    while record not in seen and len(seen) < MAX_LOGICAL_PARTITIONS:
        seen.add(record)
        sector = file.pread(record * SECTOR_BYTES, SECTOR_BYTES)
        if not _is_boot_record(sector):
            break
        partition, link = _mbr_entries(sector)[:2]
        kind, first, sectors = partition
        if kind and sectors:
            found[FIRST_LOGICAL_NUMBER + len(found)] = ((record + first) * SECTOR_BYTES, sectors * SECTOR_BYTES)
        kind, first, _ = link
        if kind not in MBR_EXTENDED:
            break
        record = extended + first
    return found


def _gpt(file: PlainFile) -> Partitions:
    """Return the partitions of a GUID partition table (UEFI specification, 5.3)."""
    header = file.pread(SECTOR_BYTES, SECTOR_BYTES)
    if len(header) < SECTOR_BYTES or not header.startswith(GPT_SIGNATURE):
        raise FormatError(
            "no GPT header",
            source=file.name,
            offset=SECTOR_BYTES,
            expected=GPT_SIGNATURE.decode(),
            advice="give --base",
        )
    first_sector, count, entry_bytes = struct.unpack_from("<QII", header, GPT_ENTRIES_OFFSET)
    low, high = GPT_ENTRY_BYTES
    if not low <= entry_bytes <= high or not 0 < count <= MAX_GPT_ENTRIES:
        raise FormatError(
            "GPT header is damaged",
            source=file.name,
            offset=SECTOR_BYTES + GPT_ENTRIES_OFFSET,
            expected=f"at most {MAX_GPT_ENTRIES} entries of {low} to {high} bytes",
            found=f"{count} of {entry_bytes}",
            advice="give --base",
        )
    table = file.pread(first_sector * SECTOR_BYTES, count * entry_bytes)
    found: Partitions = {}
    for number, at in enumerate(range(0, len(table) - entry_bytes + 1, entry_bytes), start=1):
        entry = table[at : at + 48]
        first, last = struct.unpack_from("<QQ", entry, 32)
        if UUID(bytes_le=entry[:16]).int and first <= last:
            found[number] = (first * SECTOR_BYTES, (last + 1 - first) * SECTOR_BYTES)
    return found
