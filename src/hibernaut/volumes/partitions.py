# SPDX-License-Identifier: GPL-2.0-or-later
"""Partitions of a disk, by the number that Linux gives them: master boot records and GUID partition tables."""

from __future__ import annotations

import struct
from typing import NamedTuple
from uuid import UUID

from hibernaut.errors import FormatError
from hibernaut.volumes.volume import Volume

__all__ = ["SECTOR_BYTES", "Partition", "find_partition", "has_partition_table", "partitions_of"]

SECTOR_BYTES = 512
"""Logical block size of a disk with a master boot record."""
GPT_SECTOR_BYTES = (512, 4096)
"""Logical block sizes of disks with a GUID partition table: its header is in the second block."""
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
GPT_ENTRY_KEPT_BYTES = 128
GPT_NAME = slice(56, 128)
"""UEFI specification, 5.3.3: PartitionName, UTF-16."""
MAX_GPT_ENTRIES = 1024
GPT_ENTRY_BYTES = (128, 4096)
"""Smallest and largest size of an entry that is accepted."""

KINDS = {
    0x82: "Linux swap",
    0x83: "Linux",
    0x8E: "Linux LVM",
    UUID("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f").int: "Linux swap",
    UUID("0fc63daf-8483-4772-8e79-3d69d8477de4").int: "Linux",
    UUID("e6d6d379-f507-44c2-a23c-238f2a3df928").int: "Linux LVM",
    UUID("ca7d7ccb-63ed-4c53-861c-1742536059cc").int: "LUKS",
    UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b").int: "EFI system",
}
"""Types of partitions, of either table."""


class Partition(NamedTuple):
    """A partition.

    Attributes:
        start: first byte.
        size_bytes: length, which may reach behind the end of a cut disk.
        kind: type in words, as far as known.
        label: its name in a GUID partition table.
    """

    start: int
    size_bytes: int
    kind: str = ""
    label: str = ""


Partitions = dict[int, Partition]
"""Partitions by number."""


def find_partition(disk: Volume, number: int) -> tuple[int, int]:
    """Return the first byte and the length of a partition, cut at the end of the disk.

    Args:
        disk: a whole disk.
        number: as in the name of the partition's device; logical partitions count from 5.

    Raises:
        FormatError: the disk has no partition table, a damaged one, or no such partition.
    """
    found = partitions_of(disk)
    if number not in found:
        known = ", ".join(map(str, sorted(found))) or "none"
        raise FormatError(
            f"no partition {number}", source=disk.name, expected=f"one of: {known}", advice="give one of these"
        )
    start, size_bytes, _, _ = found[number]
    return start, min(size_bytes, disk.size_bytes - start)


def partitions_of(disk: Volume) -> Partitions:
    """Return the partitions of a disk by number, as Linux numbers them.

    Raises:
        FormatError: the disk has no partition table, or a damaged one.
    """
    sector = disk.pread(0, SECTOR_BYTES)
    if not _is_boot_record(sector):
        raise FormatError(
            "no partition table",
            source=disk.name,
            offset=BOOT_SIGNATURE_OFFSET,
            expected="55 aa, the signature of a boot record",
            advice="leave out --partition if the file is the partition itself, else give --base",
        )
    entries = _mbr_entries(sector)
    is_gpt = any(kind == MBR_PROTECTIVE for kind, _, _ in entries)
    return _gpt(disk) if is_gpt else _mbr(disk, entries)


def has_partition_table(disk: Volume) -> bool:
    """Return whether a volume begins with a partition table that describes parts of it.

    A boot sector of a file system has the same signature: here, every entry that is used must begin inside the volume,
    and at least one must be.
    """
    sector = disk.pread(0, SECTOR_BYTES)
    if not _is_boot_record(sector) or any(sector[at] & 0x7F for at in range(MBR_ENTRIES_OFFSET, 510, MBR_ENTRY_BYTES)):
        return False
    used = [(first, sectors) for kind, first, sectors in _mbr_entries(sector) if kind]
    return bool(used) and all(first and sectors and first * SECTOR_BYTES < disk.size_bytes for first, sectors in used)


def _is_boot_record(sector: bytes) -> bool:
    return len(sector) == SECTOR_BYTES and sector[BOOT_SIGNATURE_OFFSET:] == BOOT_SIGNATURE


def _mbr_entries(sector: bytes) -> list[tuple[int, int, int]]:
    """Return (type, first sector, number of sectors) of the four entries of a boot record."""
    entries = []
    for at in range(MBR_ENTRIES_OFFSET, MBR_ENTRIES_OFFSET + MBR_ENTRIES * MBR_ENTRY_BYTES, MBR_ENTRY_BYTES):
        first, sectors = struct.unpack_from("<II", sector, at + 8)
        entries.append((sector[at + 4], first, sectors))
    return entries


def _mbr(disk: Volume, entries: list[tuple[int, int, int]]) -> Partitions:
    """Return the primary and logical partitions of a master boot record.

    Several extended partitions are allowed: logical ones are numbered through, in the order of the entries.
    """
    found: Partitions = {}
    logical = FIRST_LOGICAL_NUMBER
    for number, (kind, first, sectors) in enumerate(entries, start=1):
        if not kind or not sectors:
            continue
        if kind in MBR_EXTENDED:
            for one in _logical(disk, first, sectors):
                found[logical] = one
                logical += 1
        else:
            found[number] = _mbr_partition(kind, first, sectors)
    return found


def _mbr_partition(kind: int, first: int, sectors: int) -> Partition:
    return Partition(first * SECTOR_BYTES, sectors * SECTOR_BYTES, KINDS.get(kind, f"type {kind:#x}"))


def _logical(disk: Volume, extended: int, extended_sectors: int) -> list[Partition]:
    """Return the logical partitions of an extended one: a chain of boot records, each with partitions and a link.

    As Linux reads it (`parse_extended`, block/partitions/msdos.c): any of the four entries may be the link, the first
    that is extended; one of the last two entries counts only if it lies inside the extended partition.
    """
    found: list[Partition] = []
    record, seen = extended, set[int]()
    while record not in seen and len(seen) < MAX_LOGICAL_PARTITIONS:
        seen.add(record)
        sector = disk.pread(record * SECTOR_BYTES, SECTOR_BYTES)
        if not _is_boot_record(sector):
            break
        entries = _mbr_entries(sector)
        for number, (kind, first, sectors) in enumerate(entries):
            start = record + first
            if not sectors or kind in MBR_EXTENDED or not kind:
                continue
            inside = extended <= start and start + sectors <= extended + extended_sectors
            if number < 2 or inside:
                found.append(_mbr_partition(kind, start, sectors))
        links = [first for kind, first, sectors in entries if sectors and kind in MBR_EXTENDED]
        if not links:
            break
        record = extended + links[0]
    return found


def _gpt(disk: Volume) -> Partitions:
    """Return the partitions of a GUID partition table (UEFI specification, 5.3).

    Without a header in the second block, the copy in the last block is taken.
    """
    places = [(size, size) for size in GPT_SECTOR_BYTES]
    places += [(disk.size_bytes - size, size) for size in GPT_SECTOR_BYTES if size <= disk.size_bytes]
    for at, sector_bytes in places:
        header = disk.pread(at, SECTOR_BYTES)
        if len(header) == SECTOR_BYTES and header.startswith(GPT_SIGNATURE):
            return _gpt_entries(disk, at, header, sector_bytes)
    raise FormatError(
        "no GPT header",
        source=disk.name,
        offset=SECTOR_BYTES,
        expected=GPT_SIGNATURE.decode(),
        advice="give --base",
    )


def _gpt_entries(disk: Volume, at: int, header: bytes, sector_bytes: int) -> Partitions:
    """Return the partitions of a table whose header lies at a byte of the disk."""
    first_sector, count, entry_bytes = struct.unpack_from("<QII", header, GPT_ENTRIES_OFFSET)
    low, high = GPT_ENTRY_BYTES
    if not low <= entry_bytes <= high or not 0 < count <= MAX_GPT_ENTRIES:
        raise FormatError(
            "GPT header is damaged",
            source=disk.name,
            offset=at + GPT_ENTRIES_OFFSET,
            expected=f"at most {MAX_GPT_ENTRIES} entries of {low} to {high} bytes",
            found=f"{count} of {entry_bytes}",
            advice="give --base",
        )
    table = disk.pread(first_sector * sector_bytes, count * entry_bytes)
    found: Partitions = {}
    for number, entry_at in enumerate(range(0, len(table) - entry_bytes + 1, entry_bytes), start=1):
        entry = table[entry_at : entry_at + GPT_ENTRY_KEPT_BYTES]
        kind = UUID(bytes_le=entry[:16])
        first, last = struct.unpack_from("<QQ", entry, 32)
        if kind.int and first <= last:
            label = entry[GPT_NAME].decode("utf-16-le", "replace").split("\0")[0]
            size_bytes = (last + 1 - first) * sector_bytes
            found[number] = Partition(first * sector_bytes, size_bytes, KINDS.get(kind.int, f"type {kind}"), label)
    return found
