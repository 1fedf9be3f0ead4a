# SPDX-License-Identifier: GPL-2.0-or-later
"""The position of an area in a file: partitions of every kind, a base in bytes, a swap file's offset."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hibernaut.errors import FormatError
from hibernaut.swsusp import open_image
from tests.swsusp import naive
from tests.volumes.disks import SECTOR, mbr_entry, write_table

PAGES: dict[int, bytes | None] = {pfn: bytes([pfn]) * 4096 for pfn in range(1, 60)}


def check(path: Path, **where: Any) -> None:
    """The image there holds what was put in."""
    image = open_image(path, **where)
    assert image.pfns.tolist() == sorted(PAGES)
    got, _ = image.memory().gather(image.pfns)
    assert [page.tobytes() for page in got] == [PAGES[pfn] for pfn in sorted(PAGES)]
    image.close()


@pytest.mark.parametrize("first_sector", [63, 64, 2048])
def test_mbr_partition_anywhere(tmp_path: Path, first_sector: int) -> None:
    """A partition need not begin at a multiple of 4096 bytes (sector 63, as DOS had it)."""
    area = naive.build(PAGES, naive.Layout(shuffle_seed=1))
    disk = bytearray(first_sector * SECTOR) + area + bytes(8192)
    write_table(disk, 0, [mbr_entry(0, 0, 0), mbr_entry(0x82, first_sector, len(area) // SECTOR)])
    path = tmp_path / "disk"
    path.write_bytes(disk)
    check(path, partition=2)
    check(path, base=first_sector * SECTOR)
    with pytest.raises(FormatError, match=r"no partition 1: .*disk; expected one of: 2"):
        open_image(path, partition=1)


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
def test_places_outside_the_file_are_refused(tmp_path: Path, where: dict[str, Any]) -> None:
    """A header or device beyond the end, a partition without a table."""
    path = tmp_path / "area"
    path.write_bytes(naive.build(PAGES, naive.Layout()))
    with pytest.raises(FormatError):
        open_image(path, **where)


@pytest.mark.parametrize(
    ("factor", "unit"), [(4096, "bytes"), (8, "sectors of 512 bytes"), (4, "blocks of 1024 bytes")]
)
def test_an_offset_in_another_unit(factor: int, unit: str, tmp_path: Path) -> None:
    """The place of a swap header in bytes or sectors: inside the file or beyond it, the offset in pages is advised."""
    block = 9
    layout = naive.Layout(header_block=block, first_block=block + 1)
    path = tmp_path / "device"
    path.write_bytes(naive.build(PAGES, layout))
    for size in (path.stat().st_size, 40 * 4096 * factor):
        os.truncate(path, size)
        with pytest.raises(FormatError) as error:
            open_image(path, offset=block * factor)
        assert (
            error.value.advice == f"give --offset 9, in pages: {block * factor} is the place of a swap header in {unit}"
        )
    with pytest.raises(FormatError) as error:
        open_image(path, offset=block * factor + 1)
    assert "--offset 9" not in str(error.value)
