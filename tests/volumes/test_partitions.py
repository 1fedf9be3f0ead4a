# SPDX-License-Identifier: GPL-2.0-or-later
"""Partitions of a disk: MBR, logical ones, GPT, and tables that are damaged."""

from __future__ import annotations

import struct
import uuid
from pathlib import Path

import pytest

from hibernaut.errors import FormatError
from hibernaut.volumes.files import open_plain
from hibernaut.volumes.partitions import find_partition
from tests.volumes.disks import SECTOR, mbr_entry, write_table


def found(path: Path, disk: bytes | bytearray, number: int) -> tuple[int, int]:
    """The partition's place, sectors."""
    path.write_bytes(disk)
    with open_plain(path) as file:
        start, size_bytes = find_partition(file, number)
    return start // SECTOR, size_bytes // SECTOR


def test_mbr_partition(tmp_path: Path) -> None:
    """Empty entries have no number's partition; what runs past the end of the file is cut there."""
    disk = bytearray(200 * SECTOR)
    write_table(disk, 0, [mbr_entry(0, 0, 0), mbr_entry(0x82, 63, 10), mbr_entry(0x83, 100, 500)])
    assert found(tmp_path / "disk", disk, 2) == (63, 10)
    assert found(tmp_path / "disk", disk, 3) == (100, 100)
    with pytest.raises(FormatError, match=r"no partition 1: .*disk; expected one of: 2, 3"):
        found(tmp_path / "disk", disk, 1)


def test_no_partition_table(tmp_path: Path) -> None:
    """A file without the mark of an MBR, or too short for one, has no partitions."""
    with pytest.raises(FormatError, match=r"no partition table: .*disk, byte 510; expected 55 aa"):
        found(tmp_path / "disk", bytes(SECTOR), 1)
    with pytest.raises(FormatError, match="no partition table"):
        found(tmp_path / "disk", b"short", 1)


def test_logical_partition(tmp_path: Path) -> None:
    """The second logical partition (number 6) is found through the chain of boot records."""
    extended, first, second = 100, 1, 200
    disk = bytearray((extended + second + 63 + 500) * SECTOR)
    write_table(disk, 0, [mbr_entry(0x05, extended, 100000)])
    write_table(disk, extended * SECTOR, [mbr_entry(0x83, first, 10), mbr_entry(0x05, second, 5000)])
    write_table(disk, (extended + second) * SECTOR, [mbr_entry(0x82, 63, 500)])
    assert found(tmp_path / "disk", disk, 5) == (extended + first, 10)
    assert found(tmp_path / "disk", disk, 6) == (extended + second + 63, 500)


def test_a_chain_of_boot_records_that_loops_ends(tmp_path: Path) -> None:
    """Two boot records that name each other: a refusal, not an endless walk."""
    disk = bytearray(400 * SECTOR)
    write_table(disk, 0, [mbr_entry(0x05, 100, 1000)])
    write_table(disk, 100 * SECTOR, [mbr_entry(0x83, 1, 10), mbr_entry(0x05, 50, 100)])
    write_table(disk, 150 * SECTOR, [mbr_entry(0x83, 1, 10), mbr_entry(0x05, 0, 100)])
    with pytest.raises(FormatError, match=r"no partition 9: .*disk; expected one of: 5, 6"):
        found(tmp_path / "disk", disk, 9)


def test_gpt_partition(tmp_path: Path) -> None:
    """Partition 3 of a GPT, its table elsewhere than usual; an impossible number of entries sizes nothing."""
    path, first = tmp_path / "disk", 2049
    disk = bytearray((first + 300) * SECTOR)
    write_table(disk, 0, [mbr_entry(0xEE, 1, 0xFFFFFFFF)])
    with pytest.raises(FormatError, match=r"no GPT header: .*disk, byte 512; expected EFI PART"):
        found(path, disk, 3)
    disk[SECTOR : SECTOR + 8] = b"EFI PART"
    struct.pack_into("<QII", disk, SECTOR + 72, 40, 128, 128)
    entry = uuid.UUID("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f").bytes_le + uuid.uuid4().bytes
    entry += struct.pack("<QQ", first, first + 299)
    disk[40 * SECTOR + 256 : 40 * SECTOR + 256 + len(entry)] = entry
    assert found(path, disk, 3) == (first, 300)
    with pytest.raises(FormatError, match=r"no partition 1: .*disk; expected one of: 3"):
        found(path, disk, 1)
    struct.pack_into("<QII", disk, SECTOR + 72, 40, 0xFFFFFFFF, 128)
    with pytest.raises(FormatError, match="GPT header is damaged"):
        found(path, disk, 3)
