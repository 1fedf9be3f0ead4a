# SPDX-License-Identifier: GPL-2.0-or-later
"""Dumps that do not lie in a file of their own: on a partition, in a virtual disk, as a file in a file system."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hibernaut.errors import FormatError
from hibernaut.memory.mapped import MappedMemory
from hibernaut.sources import open_memory
from hibernaut.volumes.layers import open_volume
from hibernaut.volumes.volume import Slice
from tests.cli.run import hibernaut
from tests.memory import naive
from tests.volumes import nested

FRAMES = {pfn: naive.page_of(pfn, 3) for pfn in (*range(16), 20, 21, 40, 41, 42)}
RANGES = [(0, b"".join(FRAMES[pfn] for pfn in range(16))), (20 * 4096, FRAMES[20] + FRAMES[21])]
RANGES += [(40 * 4096, b"".join(FRAMES[pfn] for pfn in (40, 41, 42)))]
RAW = b"".join(FRAMES.get(pfn, bytes(4096)) for pfn in range(48))
DUMPS: dict[str, bytes] = {
    "elf": naive.elf_core([naive.Load(*one) for one in RANGES]),
    "lime": naive.lime(RANGES),
    "kdump": naive.kdump(FRAMES),
    "raw": RAW,
}


class Recorded:
    """A volume that is not a file: it counts what is read of it, and can be cut."""

    def __init__(self, data: bytes) -> None:
        self.name, self.size_bytes, self._data = "recorded", len(data), data
        self.read_bytes = 0

    def pread(self, offset: int, size_bytes: int) -> bytes:
        """Return bytes at a position."""
        found = self._data[offset : offset + size_bytes]
        self.read_bytes += len(found)
        return found

    def pread_into(self, offset: int, out: np.ndarray) -> int:
        """Read bytes at a position into an array."""
        found = self.pread(offset, len(out))
        out[: len(found)] = np.frombuffer(found, dtype=np.uint8)
        return len(found)


@pytest.mark.parametrize("kind", DUMPS)
def test_a_dump_in_a_volume_reads_as_in_a_file(kind: str, tmp_path: Path) -> None:
    """Ranges, single runs, gathered frames and blocks are those of the plain file."""
    path = tmp_path / "dump"
    path.write_bytes(DUMPS[kind])
    volume = Recorded(DUMPS[kind])
    with open_memory(path) as plain, open_memory(volume) as inside:
        assert inside.kind == plain.kind == kind
        assert list(inside.memory.ranges) == list(plain.memory.ranges)
        asked = np.array([42, 3, 2, 1, 17, 20, 21, 99, 0])
        for ours, theirs in zip(inside.memory.gather(asked), plain.memory.gather(asked), strict=True):
            assert np.array_equal(ours, theirs)
        for pfn in FRAMES:
            assert inside.memory.run(pfn, 1).tobytes() == FRAMES[pfn]
        for nr_pages in (1, 5, 1024):
            found = {
                first + row: page.tobytes()
                for first, pages in inside.memory.blocks(nr_pages)
                for row, page in enumerate(pages)
            }
            assert {pfn: found[pfn] for pfn in FRAMES} == FRAMES
        assert list(inside.memory.occupied()) == list(plain.memory.occupied())


def test_only_the_frames_asked_for_are_read() -> None:
    """One frame of a gigabyte costs one page."""
    volume = Recorded(RAW)
    memory = MappedMemory(volume, np.array([[0, 48, 0]]))
    memory.gather(np.array([7, 8, 20]))
    assert volume.read_bytes == 3 * 4096


def test_a_volume_that_ends_early_is_not_zero() -> None:
    """Bytes that are not there are an error, never zeroes."""
    volume = Recorded(RAW)
    memory = MappedMemory(volume, np.array([[0, 48, 0]]))
    volume._data = RAW[: 10 * 4096 + 7]
    assert memory.run(9, 1).tobytes() == FRAMES[9]
    for read in (lambda: memory.run(10, 1), lambda: memory.gather(np.array([3, 10])), lambda: list(memory.blocks())):
        with pytest.raises(FormatError, match=r"it ends \d+ bytes early: recorded, byte 40967"):
            read()


def on_a_partition(folder: Path, data: bytes) -> tuple[Path, str]:
    """A dump written over a partition."""
    disk = folder / "disk"
    disk.write_bytes(b"")
    with disk.open("r+b") as file:
        file.truncate(8 << 20)
    nested.run("sfdisk", "-q", disk, given=b"label: gpt\nsize=2048, type=linux\nsize=4096, type=linux\n")
    with open_volume(disk, "p2") as volume:
        assert volume.size_bytes == 4096 * 512
    start = int(nested.run("sfdisk", "-d", disk).split("start=")[2].split(",")[0]) * 512
    nested.put(disk, start, data)
    return disk, "p2"


def in_ext4(folder: Path, data: bytes) -> tuple[Path, str]:
    """A dump that kdump left in /var/crash."""
    return nested.with_file(folder, "ext4", "/var/crash/1/dump", data), "file=/var/crash/1/dump"


def on_xfs_in_qcow2(folder: Path, data: bytes) -> tuple[Path, str]:
    """The same in a virtual disk, on XFS."""
    return nested.in_container(nested.with_file(folder, "xfs", "/crash/dump", data), "qcow2"), "file=/crash/dump"


def on_btrfs(folder: Path, data: bytes) -> tuple[Path, str]:
    """The same on Btrfs."""
    return nested.with_file(folder, "btrfs", "/crash/dump", data), "file=/crash/dump"


@pytest.mark.parametrize("make", [on_a_partition, in_ext4, on_xfs_in_qcow2, on_btrfs])
@pytest.mark.parametrize("kind", ["elf", "kdump"])
def test_commands_take_a_dump_in_a_volume(
    make: Callable[[Path, bytes], tuple[Path, str]], kind: str, tmp_path: Path
) -> None:
    """Converted to raw memory by what `--volume` names, page for page."""
    disk, spec = make(tmp_path, DUMPS[kind])
    out = tmp_path / "out.raw"
    done = hibernaut("convert", str(disk), str(out), "--volume", spec, "--to", "raw")
    assert not done.status, done.err
    assert out.read_bytes() == RAW[: 43 * 4096]


def test_a_slice_of_a_file_is_a_volume() -> None:
    """Any object with the protocol's methods is read: here a part of another one."""
    volume = Slice(Recorded(b"before" + DUMPS["lime"] + b"after"), 6, len(DUMPS["lime"]), "part")
    with open_memory(volume) as source:
        assert source.memory.run(40, 1).tobytes() == FRAMES[40]
