# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks of guests: partition tables, holes."""

from __future__ import annotations

import subprocess
from pathlib import Path

from hibernaut.lab.host.programs import Program
from hibernaut.lab.variants import Swap
from hibernaut.lab.vm.disks import PARTITION_START_BYTES, copy_disk, make_disk
from hibernaut.volumes.files import open_plain
from hibernaut.volumes.partitions import find_partition


def test_the_partition_is_where_the_table_says(tmp_path: Path) -> None:
    """Our partition table, read by our own reader of disks; and by sfdisk, where that is there."""
    disk = tmp_path / "disk"
    make_disk(disk, 16, Swap.PARTITION)
    with open_plain(disk) as file:
        found = find_partition(file, 1)
    assert found == (PARTITION_START_BYTES, (16 << 20) - PARTITION_START_BYTES)
    sfdisk = Program("sfdisk", "fdisk", "").find()
    if sfdisk:
        told = subprocess.run([sfdisk, "--dump", disk], capture_output=True, text=True, check=True).stdout
        assert f"start={PARTITION_START_BYTES // 512:12d}" in told
        assert "type=82" in told


def test_a_disk_is_copied_with_its_holes(tmp_path: Path) -> None:
    """The copy of a sparse disk is as sparse as the disk."""
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    make_disk(disk, 64, Swap.DISK)
    with disk.open("r+b") as file:
        file.seek(5 << 20)
        file.write(b"here")
    copy_disk(disk, copy)
    assert copy.stat().st_size == 64 << 20
    assert copy.stat().st_blocks * 512 < 1 << 20
    assert copy.read_bytes()[5 << 20 :][:4] == b"here"
