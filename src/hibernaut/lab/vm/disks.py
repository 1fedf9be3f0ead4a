# SPDX-License-Identifier: GPL-2.0-or-later
"""The guests' disks: a whole disk, a partition in a disk, or a file system for a swap file."""

from __future__ import annotations

import struct
from pathlib import Path

from hibernaut.lab.host.programs import program, run
from hibernaut.lab.variants import Swap
from hibernaut.volumes.copying import copy_sparse
from hibernaut.volumes.files import open_plain
from hibernaut.volumes.output import replacing, set_size, write_all
from hibernaut.volumes.partitions import SECTOR_BYTES

__all__ = ["PARTITION_START_BYTES", "copy_disk", "make_disk"]

PARTITION_START_BYTES = 3 << 20
SWAP_TYPE = 0x82
"""Type of a Linux swap partition in an MBR."""


def make_disk(path: Path, size_mib: int, swap: Swap) -> None:
    """Make a sparse disk on which the guest can make its swap area. Raises LabUnavailable, OSError."""
    with replacing(path) as fd:
        set_size(fd, size_mib << 20)
        if swap is Swap.PARTITION:
            mbr = _mbr(PARTITION_START_BYTES // SECTOR_BYTES, (size_mib << 20) // SECTOR_BYTES)
            write_all(fd, memoryview(mbr), 0)
    if swap is Swap.FILE:
        run([program("mkfs.ext4"), "-q", "-F", "-b", "4096", path], doing="making a file system")


def copy_disk(source: Path, target: Path) -> None:
    """Copy a disk, keeping its holes. Raises OSError."""
    with open_plain(source) as plain, replacing(target) as fd:
        copy_sparse(plain, fd)


def _mbr(first_sector: int, end_sector: int) -> bytes:
    """Return a master boot record with one swap partition; its CHS addresses are those that defer to the LBA ones."""
    entry = struct.pack(
        "<B3sB3sII", 0, b"\xfe\xff\xff", SWAP_TYPE, b"\xfe\xff\xff", first_sector, end_sector - first_sector
    )
    return bytes(446) + entry + bytes(48) + b"\x55\xaa"
