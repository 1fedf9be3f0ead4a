# SPDX-License-Identifier: GPL-2.0-or-later
"""Where an area lies in a file: partitions of every kind, a base in bytes, a swap file's offset."""

from __future__ import annotations

import struct
import uuid
from pathlib import Path

import pytest

from hibernaut.errors import FormatError
from hibernaut.swsusp import open_image
from tests.swsusp import naive

PAGES: dict[int, bytes | None] = {pfn: bytes([pfn]) * 4096 for pfn in range(1, 60)}
SECTOR = 512


def check(path: Path, **where: int) -> None:
    """The image there holds what was put in."""
    image = open_image(path, **where)
    assert image.pfns.tolist() == sorted(PAGES)
    got, _ = image.memory().gather(image.pfns)
    assert [page.tobytes() for page in got] == [PAGES[pfn] for pfn in sorted(PAGES)]
    image.close()


def mbr_entry(kind: int, first: int, sectors: int) -> bytes:
    return struct.pack("<B3sB3sII", 0, b"", kind, b"", first, sectors)


def with_table(disk: bytearray, at: int, entries: list[bytes]) -> None:
    disk[at + 446 : at + 446 + 16 * len(entries)] = b"".join(entries)
    disk[at + 510 : at + 512] = b"\x55\xaa"


@pytest.mark.parametrize("first_sector", [63, 64, 2048])
def test_mbr_partition_anywhere(tmp_path: Path, first_sector: int) -> None:
    """A partition need not begin at a multiple of 4096 bytes (sector 63, as DOS had it)."""
    area = naive.build(PAGES, naive.Layout(shuffle_seed=1))
    disk = bytearray(first_sector * SECTOR) + area + bytes(8192)
    with_table(disk, 0, [mbr_entry(0, 0, 0), mbr_entry(0x82, first_sector, len(area) // SECTOR)])
    path = tmp_path / "disk"
    path.write_bytes(disk)
    check(path, partition=2)
    check(path, base=first_sector * SECTOR)
    with pytest.raises(FormatError, match="no partition 1; expected one of: 2"):
        open_image(path, partition=1)


def test_logical_partition(tmp_path: Path) -> None:
    """The second logical partition (number 6) is found through the chain of boot records."""
    area = naive.build(PAGES, naive.Layout())
    extended, first, second = 100, 1, 200
    disk = bytearray((extended + second + 63) * SECTOR) + area
    with_table(disk, 0, [mbr_entry(0x05, extended, 100000)])
    with_table(disk, extended * SECTOR, [mbr_entry(0x83, first, 10), mbr_entry(0x05, second, 5000)])
    with_table(disk, (extended + second) * SECTOR, [mbr_entry(0x82, 63, len(area) // SECTOR)])
    path = tmp_path / "disk"
    path.write_bytes(disk)
    check(path, partition=6)


def test_a_chain_of_boot_records_that_loops_ends(tmp_path: Path) -> None:
    """Two boot records that name each other: a refusal, not an endless walk."""
    disk = bytearray(400 * SECTOR)
    with_table(disk, 0, [mbr_entry(0x05, 100, 1000)])
    with_table(disk, 100 * SECTOR, [mbr_entry(0x83, 1, 10), mbr_entry(0x05, 50, 100)])
    with_table(disk, 150 * SECTOR, [mbr_entry(0x83, 1, 10), mbr_entry(0x05, 0, 100)])
    path = tmp_path / "disk"
    path.write_bytes(disk)
    with pytest.raises(FormatError, match="no partition 9; expected one of: 5, 6"):
        open_image(path, partition=9)


def test_gpt_partition(tmp_path: Path) -> None:
    """Partition 3 of a GPT, its table elsewhere than usual."""
    area = naive.build(PAGES, naive.Layout())
    first = 2049
    disk = bytearray(first * SECTOR) + area
    with_table(disk, 0, [mbr_entry(0xEE, 1, 0xFFFFFFFF)])
    disk[SECTOR : SECTOR + 8] = b"EFI PART"
    struct.pack_into("<QII", disk, SECTOR + 72, 40, 128, 128)
    entry = uuid.UUID("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f").bytes_le + uuid.uuid4().bytes
    entry += struct.pack("<QQ", first, first + len(area) // SECTOR - 1)
    disk[40 * SECTOR + 256 : 40 * SECTOR + 256 + len(entry)] = entry
    path = tmp_path / "disk"
    path.write_bytes(disk)
    check(path, partition=3)
    struct.pack_into("<QII", disk, SECTOR + 72, 40, 0xFFFFFFFF, 128)
    path.write_bytes(disk)
    with pytest.raises(FormatError, match="GPT header is damaged"):
        open_image(path, partition=3)


def test_swap_file_blocks_count_from_the_device(tmp_path: Path) -> None:
    """With a header at `resume_offset` all block numbers still count from the start of the device."""
    path = tmp_path / "device"
    path.write_bytes(naive.build(PAGES, naive.Layout(header_block=37, first_block=5, shuffle_seed=3)))
    check(path, offset=37)
    with pytest.raises(FormatError, match="no swap area"):
        open_image(path)


@pytest.mark.parametrize(
    "where", [{"offset": 10**6}, {"base": 10**9}, {"partition": 1}, {"partition": 1, "base": 0}], ids=str
)
def test_places_outside_the_file_are_refused(tmp_path: Path, where: dict[str, int]) -> None:
    """A header or device beyond the end, a partition without a table."""
    path = tmp_path / "area"
    path.write_bytes(naive.build(PAGES, naive.Layout()))
    with pytest.raises(FormatError):
        open_image(path, **where)
