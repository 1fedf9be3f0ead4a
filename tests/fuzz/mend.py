# SPDX-License-Identifier: GPL-2.0-or-later
"""Marks and checksums made right again after a mutation, so that it gets past them. Plain, without the readers' code.

Each function changes the bytes in place, and leaves what it does not understand.
"""

from __future__ import annotations

import functools
import hashlib
import struct
import zlib

import cramjam

from tests.memory.naive import IDENTIFIER, crc32c
from tests.swsusp import naive

__all__ = [
    "mend_avml",
    "mend_btf",
    "mend_elf",
    "mend_image",
    "mend_index",
    "mend_kdump",
    "mend_lime",
    "mend_lvm",
    "mend_partitions",
    "mend_userland",
]

PAGE = 4096
MOST_BLOCKS = 64
"""Blocks of an image that are followed; seeds have fewer."""


def mend_image(data: bytearray) -> None:
    """Write the signatures of a swap header, the size on the info page and the CRC of the data."""
    if len(data) < PAGE:
        return
    data[4076:4096] = b"SWAPSPACE2S1SUSPEND\0"
    (block,) = struct.unpack_from("<Q", data, 4064)
    entries: list[int] = []
    seen = set[int]()
    while block and block not in seen and (block + 1) * PAGE <= len(data) and len(entries) < MOST_BLOCKS:
        seen.add(block)
        words = struct.unpack_from("<512Q", data, block * PAGE)
        entries += [word for word in words[:511] if word]
        block = words[511]
    if not entries or (entries[0] + 1) * PAGE > len(data):
        return
    info = entries[0] * PAGE
    (pages,) = struct.unpack_from("<Q", data, info + 424)
    struct.pack_into("<Q", data, info + 432, pages * PAGE % (1 << 64))
    (flags,) = struct.unpack_from("<I", data, 4072)
    if flags & 2:
        return
    crc = 0
    at = 1
    while at < min(len(entries), MOST_BLOCKS):
        blocks = bytearray()
        for entry in entries[at:]:
            blocks += data[entry * PAGE : (entry + 1) * PAGE] if entry < 1 << 40 else b""
        length = int.from_bytes(blocks[:8], "little")
        if not 0 < length <= len(blocks) - 8:
            return
        try:
            plain = naive.decompress("lz4" if flags & 16 else "lzo", bytes(blocks[8 : 8 + length]))
        except Exception:  # the codecs' errors share no narrower base
            return
        crc = zlib.crc32(plain, crc ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
        at += -(-(8 + length) // PAGE)
    struct.pack_into("<I", data, 4060, crc & 0xFFFFFFFF)


def mend_userland(data: bytearray) -> None:
    """Write the signatures of suspend-utils, and the MD5 of the data if they are plain and in one page of extents."""
    if len(data) < 2 * PAGE:
        return
    data[4076:4096] = b"SWAPSPACE2ULSUSPEND\0"
    (header,) = struct.unpack_from("<q", data, 4068)
    if not 0 < header <= len(data) - 48:
        return
    pages, flags, extents, _ = struct.unpack_from("<QI4xqq", data, header)
    if not flags & 1 or flags & 2 or not 0 < extents <= len(data) - PAGE:
        return
    stream = bytearray()
    for slot in range(255):
        start, end = struct.unpack_from("<qq", data, extents + 16 * slot)
        if not 0 < start < end <= len(data):
            break
        stream += data[start:end]
    if pages <= len(stream) // PAGE:
        data[header + 32 : header + 48] = hashlib.md5(stream[: pages * PAGE]).digest()


def mend_elf(data: bytearray) -> None:
    """Write the identification, type, machine and sizes of an ELF core of x86-64."""
    if len(data) >= 64:
        data[:7] = b"\x7fELF\2\1\1"
        struct.pack_into("<HHI", data, 16, 4, 62, 1)
        struct.pack_into("<HH", data, 52, 64, 56)


def mend_lime(data: bytearray) -> None:
    """Write magic and version of each range that is reached; the last range ends with the file."""
    at = 0
    while at + 32 <= len(data):
        struct.pack_into("<II", data, at, 0x4C694D45, 1)
        start, last = struct.unpack_from("<QQ", data, at + 8)
        following = at + 32 + last - start + 1
        if start <= last and following > len(data) > at + 32 and start < 1 << 52:
            struct.pack_into("<Q", data, at + 16, start + len(data) - at - 33)
        if not start <= last or following <= at:
            return
        at = following


@functools.lru_cache(64)  # most chunks are those of a seed
def _crc32c(plain: bytes) -> int:
    return crc32c(plain)


def mend_avml(data: bytearray) -> None:
    """Write magics, identifiers, checksums of chunks and the length behind each stream."""
    at = 0
    while at + 32 <= len(data):
        struct.pack_into("<II", data, at, 0x4C4D5641, 2)
        start, last = struct.unpack_from("<QQ", data, at + 8)
        begin = at + 32
        data[begin : begin + len(IDENTIFIER)] = IDENTIFIER[: max(len(data) - begin, 0)]
        place, done = begin + len(IDENTIFIER), 0
        while done <= last - start and place + 8 <= len(data):
            kind, length = data[place], int.from_bytes(data[place + 1 : place + 4], "little")
            if kind in (0, 1) and 4 <= length <= len(data) - place - 4:
                body = bytes(data[place + 8 : place + 4 + length])
                try:
                    plain = body if kind else bytes(cramjam.snappy.decompress_raw(body))
                except Exception:  # the library has one class for everything, and no public name of it
                    return
                checksum = _crc32c(plain)
                masked = ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
                struct.pack_into("<I", data, place + 4, masked)
                done += len(plain)
            place += 4 + length
        if place + 8 > len(data):
            return
        struct.pack_into("<Q", data, place, place - begin)
        at = place + 8


def mend_kdump(data: bytearray) -> None:
    """Write signature, a version that is read, and the size of a block."""
    if len(data) >= 464:
        data[:8] = b"KDUMP   "
        (version,) = struct.unpack_from("<I", data, 8)
        struct.pack_into("<I", data, 8, version % 7 or 6)
        struct.pack_into("<I", data, 428, PAGE)


def mend_partitions(data: bytearray) -> None:
    """Write the mark of the boot record, and the signature and checksums of a GPT."""
    if len(data) < 512:
        return
    data[510:512] = b"\x55\xaa"
    sector = 512 if len(data) < 12288 else 4096
    if len(data) >= 2 * sector and any(data[446 + 16 * number + 4] == 0xEE for number in range(4)):
        data[sector : sector + 8] = b"EFI PART"
        entries_at, count, size = struct.unpack_from("<QII", data, sector + 72)
        if entries_at * sector < len(data) and count * size <= len(data):
            checksum = zlib.crc32(data[entries_at * sector : entries_at * sector + count * size])
            struct.pack_into("<I", data, sector + 88, checksum)
        data[sector + 16 : sector + 20] = bytes(4)
        struct.pack_into("<I", data, sector + 16, zlib.crc32(data[sector : sector + 92]))


def mend_lvm(data: bytearray) -> None:
    """Write the label's mark, and the checksum of the text in the metadata area that the seed has."""
    if len(data) < 8192:
        return
    data[512:520] = b"LABELONE"
    data[512 + 24 : 512 + 32] = b"LVM2 001"
    data[4096 + 4 : 4096 + 20] = b" LVM2 x[5A%r0N*>"
    at, length = struct.unpack_from("<QQ", data, 4096 + 40)
    text = data[4096 + at : 4096 + at + length] if at < 1 << 20 and length < 1 << 20 else b""
    struct.pack_into("<I", data, 4096 + 56, ~zlib.crc32(text, 0xF597A6CF ^ 0xFFFFFFFF) & 0xFFFFFFFF)


def mend_btf(data: bytearray) -> None:
    """Write magic and version; the strings begin and end with a NUL."""
    if len(data) < 24:
        return
    struct.pack_into("<HB", data, 0, 0xEB9F, 1)
    (header_bytes,) = struct.unpack_from("<I", data, 4)
    at, size = struct.unpack_from("<II", data, 16)
    begin, end = header_bytes + at, header_bytes + at + size
    if 24 <= begin < end <= len(data):
        data[begin] = data[end - 1] = 0


def mend_index(data: bytearray) -> None:
    """Write the SHA-256 of everything before it."""
    if len(data) > 32:
        data[-32:] = hashlib.sha256(data[:-32]).digest()
