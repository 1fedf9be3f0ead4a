# SPDX-License-Identifier: GPL-2.0-or-later
"""A second, plain implementation of the image format, written from the format's description alone.

It shares no code with the library: `build` makes images in layouts that no kernel would choose, `parse` reads images
byte by byte. Both are slow and trust their input.
"""

from __future__ import annotations

import random
import struct
import zlib
from dataclasses import dataclass, field

import lz4.block
import lzallright

PAGE = 4096


@dataclass
class Layout:
    """Layout of an image."""

    compressor: str = "lzo"
    header_block: int = 0
    first_block: int = 1
    shuffle_seed: int | None = None
    spare_blocks: int = 3
    crc_error: int = 0
    magic: int = 0x23456789ABCDEF02
    cr3: int = 0x1000
    e820: bytes = struct.pack("<Q", 0xBA571FD2)
    extra_flags: int = 0
    old_flags: bool = False
    kernel_order: bool = False
    reserved: bytes = field(default=b"")


def compress(name: str, unit: bytes) -> bytes:
    """Compress a unit."""
    if name == "lz4":
        packed: bytes = lz4.block.compress(unit, store_size=False)
        return packed
    out: bytes = lzallright.LZOCompressor().compress(unit)
    return out


def decompress(name: str, packed: bytes) -> bytes:
    """Decompress a unit."""
    if name == "lz4":
        plain: bytes = lz4.block.decompress(packed, uncompressed_size=131072)
        return plain
    out: bytes = lzallright.LZOCompressor.decompress(packed, 131072)
    return out


def info_page(saved: int, stored: int, layout: Layout) -> bytes:
    """Return the page of `struct swsusp_info`."""
    page = bytearray(PAGE)
    if layout.magic == 0x0123456789ABCDEF:
        struct.pack_into("<QQQ", page, 0, 0xFFFFFFFF81000000, layout.cr3, layout.magic)
    else:
        record = struct.pack("<QQQQ", 0xFFFFFFFF81000000, 0x1000000, layout.cr3, layout.magic)
        page[: 32 + len(layout.e820)] = record + layout.e820
    pages = 1 + (saved + 511) // 512 + stored
    struct.pack_into("<Q", page, 400, 65403)
    struct.pack_into("<QQQ", page, 416, stored, pages, pages * PAGE)
    return bytes(page)


def build(pages: dict[int, bytes | None], layout: Layout) -> bytes:
    """An image's device. `pages` maps each frame to its bytes, or to None for a flagged zero page."""
    pfns = sorted(pages)
    words = [pfn | (1 << 63 if pages[pfn] is None else 0) for pfn in pfns]
    if len(words) % 512:
        words.append(0xFFFFFFFFFFFFFFFF)
    words += [0] * (-len(words) % 512)
    data = [page for pfn in pfns if (page := pages[pfn]) is not None]
    stream = struct.pack(f"<{len(words)}Q", *words) + b"".join(data)
    blocks = [info_page(len(pfns), len(data), layout)]
    crc = 0
    if layout.compressor == "none":
        blocks += [stream[at : at + PAGE] for at in range(0, len(stream), PAGE)]
    else:
        for at in range(0, len(stream), 131072):
            unit = stream[at : at + 131072]
            crc = zlib.crc32(unit, crc ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
            packed = compress(layout.compressor, unit)
            stored = struct.pack("<Q", len(packed)) + packed
            stored += b"\xa5" * (-len(stored) % PAGE)
            blocks += [stored[i : i + PAGE] for i in range(0, len(stored), PAGE)]
    return _lay_out(blocks, crc ^ layout.crc_error, layout)


def _lay_out(blocks: list[bytes], crc: int, layout: Layout) -> bytes:
    maps = (len(blocks) + 510) // 511
    needed = len(blocks) + maps
    total = max(layout.first_block, layout.header_block + 1) + needed + layout.spare_blocks
    free = [block for block in range(layout.first_block, total) if block != layout.header_block]
    if layout.shuffle_seed is not None:
        random.Random(layout.shuffle_seed).shuffle(free)
    map_blocks, data_blocks = free[:maps], free[maps : maps + len(blocks)]
    if layout.kernel_order:
        map_blocks = free[:needed:512]
        data_blocks = [block for block in free[:needed] if block not in map_blocks]
    device = bytearray(total * PAGE)
    for block, content in zip(data_blocks, blocks, strict=True):
        device[block * PAGE : (block + 1) * PAGE] = content
    for number, block in enumerate(map_blocks):
        entries = data_blocks[number * 511 : number * 511 + 511]
        following = map_blocks[number + 1] if number + 1 < maps else 0
        struct.pack_into("<512Q", device, block * PAGE, *entries, *[0] * (511 - len(entries)), following)
    flags = layout.extra_flags
    if not layout.old_flags:
        flags |= {"none": 2, "lzo": 4, "lz4": 4 | 16}[layout.compressor]
    at = layout.header_block * PAGE
    device[at : at + len(layout.reserved)] = layout.reserved
    struct.pack_into("<IQI10s10s", device, at + 4060, crc, map_blocks[0], flags, b"SWAPSPACE2", b"S1SUSPEND\0")
    return bytes(device)


def parse(device: bytes, header_block: int = 0) -> tuple[dict[int, bytes | None], set[int]]:
    """Frames to bytes (None: flagged zero page), and every block that the image uses."""
    crc, block, flags, _, sig = struct.unpack_from("<IQI10s10s", device, header_block * PAGE + 4060)
    assert sig == b"S1SUSPEND\0"
    compressor = "none" if flags & 2 else "lz4" if flags & 16 else "lzo"
    entries: list[int] = []
    used: set[int] = set()
    while block:
        used.add(block)
        words = struct.unpack_from("<512Q", device, block * PAGE)
        entries += [word for word in words[:511] if word]
        block = words[511]
    used.update(entries)
    assert len(used) == len(entries) + -(-len(entries) // 511)
    info = device[entries[0] * PAGE : entries[0] * PAGE + PAGE]
    stored, pages, size = struct.unpack_from("<QQQ", info, 416)
    assert size == pages * PAGE
    stream = bytearray()
    computed, at = 0, 1
    while len(stream) < (pages - 1) * PAGE:
        if compressor == "none":
            stream += device[entries[at] * PAGE : (entries[at] + 1) * PAGE]
            at += 1
            continue
        (length,) = struct.unpack_from("<Q", device, entries[at] * PAGE)
        count = (8 + length + PAGE - 1) // PAGE
        raw = b"".join(device[entries[i] * PAGE : (entries[i] + 1) * PAGE] for i in range(at, at + count))
        unit = decompress(compressor, raw[8 : 8 + length])
        computed = zlib.crc32(unit, computed ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
        stream += unit
        at += count
    assert at == len(entries)
    assert compressor == "none" or computed == crc
    meta = pages - 1 - stored
    words = struct.unpack_from(f"<{meta * 512}Q", stream)
    listed = words[: words.index(0xFFFFFFFFFFFFFFFF)] if 0xFFFFFFFFFFFFFFFF in words else words
    result: dict[int, bytes | None] = {}
    row = meta
    for word in listed:
        if word >> 63:
            result[word & ~(1 << 63)] = None
        else:
            result[word] = bytes(stream[row * PAGE : (row + 1) * PAGE])
            row += 1
    assert row == meta + stored
    return result, used
