# SPDX-License-Identifier: GPL-2.0-or-later
"""Small dumps that claim much: notes named by many headers, segments that share bytes, bitmaps and frames of huge size.

Work is bounded by counts and by memory, measured here by tracemalloc and by what is read.
"""

from __future__ import annotations

import struct
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import zstandard

from hibernaut.errors import CorruptImage, FormatError
from hibernaut.memory import declarations as c
from hibernaut.memory import elf, kdump
from hibernaut.sources import open_memory
from hibernaut.volumes.files import PlainFile
from tests.allocation import at_most

PAGE = 4096
MIB = 1 << 20


def core(path: Path, headers: list[tuple[int, int, int, int]], size_bytes: int) -> Path:
    """Write an ELF core with program headers (type, offset, physical address, bytes) at byte 64."""
    head = struct.pack(
        "<4sBBB9xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 4, 62, 1, 0, 64, 0, 0, 64, 56, len(headers), 0, 0, 0
    )
    body = b"".join(struct.pack("<IIQQQQQQ", kind, 4, at, 0, paddr, size, size, 0) for kind, at, paddr, size in headers)
    with path.open("wb") as file:
        file.write(head + body)
        file.truncate(size_bytes)
    return path


def put_note(path: Path, at: int, description_bytes: int) -> int:
    """Write the head of a note with a description of zeroes, and return the note's length."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(struct.pack("<III4s", 4, description_bytes, 1, b"XXX\0"))
    return 16 + description_bytes


def test_notes_that_many_headers_name(tmp_path: Path) -> None:
    """The same area counts once; areas that overlap have one budget of bytes together."""
    notes_at, load_at = MIB, 4 * MIB
    load = (c.PT_LOAD, load_at, 0, PAGE)
    same = core(tmp_path / "same", [load, *[(c.PT_NOTE, notes_at, 0, 16 + MIB)] * 3000], load_at + PAGE)
    put_note(same, notes_at, MIB)
    with at_most(16 * MIB), open_memory(same) as source:
        assert source.memory.ranges.total_pages == 1
    shifted = [(c.PT_NOTE, notes_at, 0, 16 + MIB + 4 * number) for number in range(3000)]
    path = core(tmp_path / "shifted", [load, *shifted], load_at + PAGE)
    put_note(path, notes_at, MIB)
    with at_most(2 * elf.ALL_NOTES_BYTES), pytest.raises(FormatError, match="bytes of them"):
        open_memory(path)


def test_tiny_notes_that_many_headers_name(tmp_path: Path) -> None:
    """The number of notes is one budget of the file, also if each header names some of them only."""
    size_bytes = MIB
    headers = [(c.PT_NOTE, MIB + 12 * number, 0, size_bytes - 12 * number) for number in range(3000)]
    path = core(tmp_path / "tiny", [(c.PT_LOAD, 4 * MIB, 0, PAGE), *headers], 4 * MIB + PAGE)
    reads = 0
    original = PlainFile.pread

    def counted(self: PlainFile, offset: int, size_bytes: int) -> bytes:
        nonlocal reads
        reads += 1
        return original(self, offset, size_bytes)

    with mock.patch.object(PlainFile, "pread", counted), pytest.raises(FormatError, match="more than 65536 notes"):
        open_memory(path)
    assert reads < 4 * elf.NOTES_LIMIT


def test_segments_that_share_bytes(tmp_path: Path) -> None:
    """Frames are bounded by the file: other frames in the same bytes are refused; the same frames again are not."""
    again = core(tmp_path / "again", [(c.PT_LOAD, MIB, 0, 16 * PAGE)] * 100, MIB + 16 * PAGE)
    with open_memory(again) as source:
        assert source.memory.ranges.total_pages == 16
    shared = [(c.PT_LOAD, MIB, number << 20, 16 * PAGE) for number in range(100)]
    with pytest.raises(FormatError, match="its segments share bytes: 1600 pages"):
        open_memory(core(tmp_path / "shared", shared, MIB + 16 * PAGE))


def kdump_file(path: Path, max_mapnr: int, frames: list[int], bitmap_blocks: int, page: bytes = b"") -> Path:
    """Write a kdump file of version 6 whose second bitmap names frames, with one descriptor and one zstd page."""
    header = np.zeros(1, dtype=c.KDUMP_HEADER)
    header["signature"] = c.KDUMP_MAGIC
    header["header_version"], header["block_size"] = 6, PAGE
    header["sub_hdr_size"], header["bitmap_blocks"] = 1, bitmap_blocks
    sub = np.zeros(1, dtype=c.KDUMP_SUB_HEADER)
    sub["max_mapnr_64"] = max_mapnr
    start = 2 * PAGE + bitmap_blocks * PAGE // 2
    descriptors_at = 2 * PAGE + bitmap_blocks * PAGE
    descriptor = np.zeros(1, dtype=c.KDUMP_PAGE)
    zstd = next(flags for flags, name in c.KDUMP_COMPRESSED.items() if name == "zstd")
    descriptor["offset"], descriptor["size"], descriptor["flags"] = descriptors_at + PAGE, len(page), zstd
    with path.open("wb") as file:
        file.write(header.tobytes())
        file.seek(PAGE)
        file.write(sub.tobytes())
        for frame in frames:
            file.seek(start + frame // 8)
            file.write(bytes([1 << frame % 8]))
        file.seek(descriptors_at)
        file.write(descriptor.tobytes())
        file.seek(descriptors_at + PAGE)
        file.write(page or b"\0")
    return path


def test_a_bitmap_of_terabytes(tmp_path: Path) -> None:
    """Holes of a bitmap name no page and are not read; its length follows the last frame that 52 bits address."""
    blocks = 2 * (1 << 20)  # 4 GiB of second bitmap, two bits of it set
    page = zstandard.ZstdCompressor().compress(bytes(PAGE))
    path = kdump_file(tmp_path / "sparse", 1 << 35, [(1 << 35) - 8], blocks, page)
    read_bytes = 0
    original = PlainFile.pread

    def counted(self: PlainFile, offset: int, size_bytes: int) -> bytes:
        nonlocal read_bytes
        read_bytes += size_bytes
        return original(self, offset, size_bytes)

    with mock.patch.object(PlainFile, "pread", counted), open_memory(path) as source:
        assert list(source.memory.ranges) == [((1 << 35) - 8, 1)]
        assert read_bytes < 4 * MIB


@pytest.mark.parametrize("max_mapnr", [1 << 63, (1 << 40) + 1, (1 << 64) - 1])
def test_frames_beyond_any_address(tmp_path: Path, max_mapnr: int) -> None:
    """One line, where 52 bits end."""
    with pytest.raises(FormatError, match="within 52 bits of addresses"):
        open_memory(kdump_file(tmp_path / "far", max_mapnr, [1], 2))


def test_a_dump_without_a_page(tmp_path: Path) -> None:
    """A dump that holds nothing is refused, not converted into an empty file."""
    with pytest.raises(FormatError, match="holds no page of memory"):
        open_memory(kdump_file(tmp_path / "none", 100, [], 2))


@pytest.mark.parametrize("claimed", [1 << 62, 120 * MIB, PAGE + 1])
def test_a_page_that_claims_much(tmp_path: Path, claimed: int) -> None:
    """A zstd frame that claims more than a page is damaged, and nothing is allocated for the claim."""
    frame = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", claimed) + b"\x01\x00\x00"
    path = kdump_file(tmp_path / "claims", 100, [3], 2, frame)
    damaged = pytest.raises(CorruptImage, match=f"decompresses to {claimed} bytes")
    with open_memory(path) as source, at_most(4 * MIB), damaged:
        source.memory.run(3, 1)


@pytest.mark.parametrize("piece", [1, 2, 3])
def test_ranges_across_pieces_of_a_bitmap(tmp_path: Path, piece: int) -> None:
    """A range that continues in the next piece is one range, whatever the length of pieces."""
    bits = np.random.default_rng(piece).random(200) < 0.9
    with (tmp_path / "bits").open("wb") as file:
        file.write(np.packbits(bits, bitorder="little").tobytes())
    frames = np.flatnonzero(bits).tolist()
    path = kdump_file(tmp_path / "some", 200, [], 2)
    with path.open("r+b") as file:
        file.seek(2 * PAGE + PAGE)
        file.write((tmp_path / "bits").read_bytes())
        file.truncate(2 * PAGE + 2 * PAGE + len(frames) * c.KDUMP_PAGE.itemsize + PAGE)
        file.seek(4 * PAGE)
        file.write(struct.pack("<QIIQ", 0, 1, 0, 0) * len(frames))
    with mock.patch.object(kdump, "BITMAP_BYTES", piece), open_memory(path) as source:
        assert source.memory.ranges.pfns().tolist() == frames
        edges = np.diff(np.concatenate(([0], bits.astype(np.int8), [0])))
        assert len(source.memory.ranges) == int((edges == 1).sum())
