# SPDX-License-Identifier: GPL-2.0-or-later
"""Dump files put together and taken apart field by field with `struct`: a second implementation to compare with."""

from __future__ import annotations

import gzip
import lzma
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import zstandard

PAGE = 4096
IDENTIFIER = b"\xff\x06\0\0sNaPpY"
CASTAGNOLI = 0x82F63B78


def page_of(pfn: int, salt: int = 0) -> bytes:
    """A page that names its own frame, so that a wrong one is seen."""
    return struct.pack("<QQ", pfn, salt) * (PAGE // 16)


class Load(NamedTuple):
    """A PT_LOAD: physical address, bytes, and what its header says otherwise."""

    paddr: int
    data: bytes
    vaddr: int = 0
    memsz: int | None = None


def note(name: bytes, kind: int, description: bytes) -> bytes:
    """Return an ELF note."""
    padded = (name + b"\x00").ljust(-(-(len(name) + 1) // 4) * 4, b"\x00")
    body = description.ljust(-(-len(description) // 4) * 4, b"\x00")
    return struct.pack("<III", len(name) + 1, len(description), kind) + padded + body


def qemu_cpu(cr3: int, *, cr0: int = 0x80050033, cr4: int = 0x6F0, cs: int = 0x10) -> bytes:
    """QEMU's CPU note, as its arch_dump.c lays it out on a 64-bit host."""
    state = struct.pack("<II", 1, 440) + bytes(16 * 8) + bytes(2 * 8)
    state += struct.pack("<IIIIQ", cs, 0, 0, 0, 0) + bytes(9 * 24)
    state += struct.pack("<5Q", cr0, 0, 0, cr3, cr4) + bytes(8)
    return note(b"QEMU", 0, state)


def elf_core(
    loads: Sequence[Load],
    notes: bytes = b"",
    *,
    machine: int = 62,
    kind: int = 4,
    elf_class: int = 2,
    many: bool = False,
    pad: int = 0,
) -> bytes:
    """An ELF64 file: header, program headers (notes first), notes, `pad` bytes, then the segments' bytes."""
    count = len(loads) + 1
    phoff = 128 if many else 64
    at = phoff + count * 56
    out = struct.pack(
        "<4sBBBB8xHHIQQQIHHHHHH",
        *(b"\x7fELF", elf_class, 1, 1, 0, kind, machine, 1, 0, phoff, 64 if many else 0, 0, 64, 56),
        *(0xFFFF if many else count, 64, 1 if many else 0, 0),
    )
    if many:
        out += struct.pack("<IIQQQQIIQQ", 0, 0, 0, 0, 0, 0, 0, count, 0, 0)
    out += struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(notes), 0, 4)
    at += len(notes) + pad
    for load in loads:
        memsz = len(load.data) if load.memsz is None else load.memsz
        out += struct.pack("<IIQQQQQQ", 1, 7, at, load.vaddr, load.paddr, len(load.data), memsz, 0)
        at += len(load.data)
    return out + notes + bytes(pad) + b"".join(load.data for load in loads)


def elf_frames(data: bytes) -> dict[int, bytes]:
    """Every whole frame of an ELF core, the first header that names it winning: slow and plain."""
    phoff = struct.unpack_from("<Q", data, 32)[0]
    count = struct.unpack_from("<H", data, 56)[0]
    if count == 0xFFFF:
        shoff = struct.unpack_from("<Q", data, 40)[0]
        count = struct.unpack_from("<I", data, shoff + 44)[0]
    ranges = []
    for number in range(count):
        kind, _, offset, _, paddr, filesz, _, _ = struct.unpack_from("<IIQQQQQQ", data, phoff + number * 56)
        if kind != 1:
            continue
        ranges.append((paddr, data[offset : offset + filesz]))
    return frames_of_ranges(ranges)


def frames_of_ranges(ranges: Sequence[tuple[int, bytes]]) -> dict[int, bytes]:
    """Every frame that one range holds, the first winning; then those that several hold together, byte by byte."""
    frames: dict[int, bytes] = {}
    for start, data in ranges:
        for pfn in range(-(-start // PAGE), (start + len(data)) // PAGE):
            frames.setdefault(pfn, data[pfn * PAGE - start : (pfn + 1) * PAGE - start])
    single: dict[int, int] = {}
    for start, data in ranges:
        for at, byte in enumerate(data, start=start):
            if at // PAGE not in frames:
                single.setdefault(at, byte)
    for pfn in {at // PAGE for at in single}:
        if all(at in single for at in range(pfn * PAGE, (pfn + 1) * PAGE)):
            frames[pfn] = bytes(single[at] for at in range(pfn * PAGE, (pfn + 1) * PAGE))
    return frames


def lime(ranges: Sequence[tuple[int, bytes]], *, version: int = 1) -> bytes:
    """A LiME file of (physical address, bytes) ranges."""
    return b"".join(
        struct.pack("<IIQQ8x", 0x4C694D45, version, start, start + len(data) - 1) + data for start, data in ranges
    )


def lime_frames(data: bytes) -> dict[int, bytes]:
    """Every whole frame of a LiME file."""
    ranges = []
    at = 0
    while at < len(data):
        magic, version, start, last = struct.unpack_from("<IIQQ", data, at)
        assert (magic, version) == (0x4C694D45, 1)
        at += 32
        ranges.append((start, data[at : at + last - start + 1]))
        at += last - start + 1
    return frames_of_ranges(ranges)


def kdump(frames: dict[int, bytes], *, flags: int = 1, vmcoreinfo: bytes = b"", packed: Sequence[bytes] = ()) -> bytes:
    """A kdump-compressed file, header version 6, every page compressed as `flags` says (or given as `packed`)."""
    highest = max(frames) + 1
    half_blocks = -(-highest // (8 * PAGE))
    bitmap = bytearray(half_blocks * PAGE)
    for pfn in frames:
        bitmap[pfn // 8] |= 1 << pfn % 8
    header = bytearray(PAGE)
    struct.pack_into("<8sI", header, 0, b"KDUMP   ", 6)
    struct.pack_into("<IiIIIIIIi", header, 424, flags, PAGE, 1, 2 * half_blocks, highest, 0, 0, 0, 0)
    sub = bytearray(PAGE)
    struct.pack_into("<QiiQQQQQQQQQQQ", sub, 0, 0, 0, 0, 0, 0, PAGE + 128, len(vmcoreinfo), *(0,) * 6, highest)
    sub[128 : 128 + len(vmcoreinfo)] = vmcoreinfo
    pages = list(packed) or [compressed(frames[pfn], flags) for pfn in sorted(frames)]
    at = (2 + 2 * half_blocks) * PAGE + 24 * len(pages)
    descriptors = b""
    for page in pages:
        descriptors += struct.pack("<QIIQ", at, len(page), flags, 0)
        at += len(page)
    return bytes(header) + bytes(sub) + bytes(bitmap) * 2 + descriptors + b"".join(pages)


def kdump_frames(data: bytes) -> dict[int, bytes]:
    """Every frame of a kdump-compressed file, header version 6, by its second bitmap and its descriptors."""
    magic, version = struct.unpack_from("<8sI", data)
    status, block, sub_blocks, bitmap_blocks = struct.unpack_from("<IIII", data, 424)
    assert (magic, version, block) == (b"KDUMP   ", 6, PAGE)
    half = bitmap_blocks // 2 * PAGE
    first = (1 + sub_blocks) * PAGE
    assert data[first : first + half] == data[first + half : first + 2 * half]
    (highest,) = struct.unpack_from("<Q", data, PAGE + 96)
    bitmap = data[first + half : first + 2 * half]
    pfns = [at * 8 + bit for at, byte in enumerate(bitmap) if byte for bit in range(8) if byte >> bit & 1]
    assert max(pfns) + 1 == highest
    frames = {}
    for row, pfn in enumerate(pfns):
        offset, size, flags, _ = struct.unpack_from("<QIIQ", data, first + 2 * half + 24 * row)
        assert flags in (0, status)
        frames[pfn] = uncompressed(data[offset : offset + size], flags)
        assert len(frames[pfn]) == PAGE
    return frames


def uncompressed(page: bytes, flags: int) -> bytes:
    """Return a page that a kdump file holds."""
    if flags == 2:
        import lzallright

        plain: bytes = lzallright.LZOCompressor.decompress(page, PAGE)
        return plain
    return zlib.decompress(page) if flags == 1 else zstandard.decompress(page) if flags == 0x20 else page


def compressed(page: bytes, flags: int) -> bytes:
    """Return a page as a kdump file holds it."""
    if flags == 1:
        return zlib.compress(page, 1)
    if flags == 2:
        import lzallright

        packed: bytes = lzallright.LZOCompressor().compress(page)
        return packed
    if flags == 4:
        return snappy(page)
    return zstandard.compress(page) if flags == 0x20 else page


def snappy(data: bytes) -> bytes:
    """Return raw Snappy data (format_description.txt): literals, and copies of what repeats every 16 bytes."""
    size, out = len(data), b""
    while size >= 0x80:
        out += bytes([size & 0x7F | 0x80])
        size >>= 7
    out += bytes([size])
    if len(data) > 16 and data == data[:16] * (len(data) // 16):
        out += bytes([15 << 2]) + data[:16]
        for at in range(16, len(data), 64):
            out += bytes([(min(64, len(data) - at) - 1) << 2 | 2]) + struct.pack("<H", 16)
        return out
    for at in range(0, len(data), 256):
        part = data[at : at + 256]
        out += bytes([60 << 2, len(part) - 1]) + part
    return out


def flattened(data: bytes, piece: int) -> bytes:
    """Makedumpfile's flattened form: the file's pieces, last first, then the end mark."""
    out = struct.pack(">16sqq", b"makedumpfile", 1, 1).ljust(PAGE, b"\x00")
    for at in reversed(range(0, len(data), piece)):
        out += struct.pack(">qq", at, len(data[at : at + piece])) + data[at : at + piece]
    return out + struct.pack(">qq", -1, -1)


def packed_file(data: bytes, how: str) -> bytes:
    """A file compressed in two frames, cut in the middle."""
    half = len(data) // 2
    packers: dict[str, Callable[[bytes], bytes]]
    packers = {"zstd": zstandard.compress, "gzip": gzip.compress, "xz": lzma.compress}
    return packers[how](data[:half]) + packers[how](data[half:])


@cache
def castagnoli_table() -> list[int]:
    """Return the table of CRC-32C for one byte."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (CASTAGNOLI if value & 1 else 0)
        table.append(value)
    return table


def crc32c(data: bytes) -> int:
    """Return the CRC-32C, bit by bit over a table of one byte."""
    table = castagnoli_table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def chunk(data: bytes, *, plain: bool = False, crc: int | None = None) -> bytes:
    """Return one chunk of a stream of Snappy frames."""
    checksum = crc32c(data) if crc is None else crc
    masked = ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
    body = struct.pack("<I", masked) + (data if plain else snappy(data))
    return bytes([1 if plain else 0]) + len(body).to_bytes(3, "little") + body


def framed(data: bytes, sizes: Sequence[int] = (65536,), *, plain: bool = False, extra: bytes = b"") -> bytes:
    """Return a stream of frames; chunks have these sizes in turn, the last size again and again."""
    out, at, turn = IDENTIFIER + extra, 0, 0
    while at < len(data):
        size = sizes[min(turn, len(sizes) - 1)]
        out += chunk(data[at : at + size], plain=plain)
        at, turn = at + size, turn + 1
    return out


def avml(blocks: Sequence[tuple[int, bytes, bytes]], *, version: int = 2) -> bytes:
    """Return an AVML file of (physical address, data, its stream)."""
    out = b""
    for start, data, stream in blocks:
        out += struct.pack("<IIQQ8x", 0x4C4D5641, version, start, start + len(data) - 1)
        out += stream + struct.pack("<Q", len(stream))
    return out
