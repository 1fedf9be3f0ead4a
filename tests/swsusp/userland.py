# SPDX-License-Identifier: GPL-2.0-or-later
"""A plain writer of images of suspend-utils (uswsusp), from the format's description alone.

It shares no code with the library, and lays images out in ways that suspend-utils would not choose. MD5 is written
out as RFC 1321 has it, so that its last block can be another one.
"""

from __future__ import annotations

import hashlib
import math
import random
import struct
from dataclasses import dataclass, field

import lzallright

from tests.swsusp import naive

PAGE = 4096


@dataclass
class Userland:
    """Layout of an image of suspend-utils.

    Attributes:
        flags: 1 MD5, 2 LZO, 4 encrypted, 8 RSA, 16 platform.
        buffer_pages: pages that are compressed together.
        header_block: block of the swap header.
        extent_pages: most blocks of one extent.
        per_page: most extents of one page of them.
        shuffle_seed: order of the extents on the device; None: ascending.
        fewer_pages: pages that the image header says less than there are.
        spare: a range of the next allocation in the last slot of the last page of extents, as `save_extents` leaves it.
        md5_ending: as in the document of `inspect`.
        encryption_bytes: salt and keys between MD5 and times.
        info: layout of the info page.
    """

    flags: int = 0
    buffer_pages: int = 32
    header_block: int = 0
    extent_pages: int = 5
    per_page: int = 255
    shuffle_seed: int | None = 3
    fewer_pages: int = 0
    spare: bool = False
    md5_ending: str = "rfc 1321"
    encryption_bytes: int = 0
    info: naive.Layout = field(default_factory=naive.Layout)


@dataclass
class Laid:
    """A device with an image, and the places of its parts in bytes."""

    device: bytearray
    header: int
    map_pages: list[int]
    data: list[int]


def stream_of(pages: dict[int, bytes | None], layout: naive.Layout) -> bytes:
    """Return what /dev/snapshot gives: info page, list of frames, data."""
    pfns = sorted(pages)
    words = [pfn | (1 << 63 if pages[pfn] is None else 0) for pfn in pfns]
    if len(words) % 512:
        words.append(0xFFFFFFFFFFFFFFFF)
    words += [0] * (-len(words) % 512)
    data = [page for pfn in pfns if (page := pages[pfn]) is not None]
    return naive.info_page(len(pfns), len(data), layout) + struct.pack(f"<{len(words)}Q", *words) + b"".join(data)


def build(pages: dict[int, bytes | None], layout: Userland) -> Laid:
    """Return a device with an image of these pages; None is a flagged zero page."""
    stream = stream_of(pages, layout.info)
    stored = b""
    if layout.flags & 2:
        for at in range(0, len(stream), layout.buffer_pages * PAGE):
            packed = lzallright.LZOCompressor().compress(stream[at : at + layout.buffer_pages * PAGE])
            unit = struct.pack("<Q", len(packed)) + packed
            stored += unit + b"\x5a" * (-len(unit) % PAGE)
    else:
        stored = stream
    count = len(stored) // PAGE
    lengths = [min(layout.extent_pages, count - at) for at in range(0, count, layout.extent_pages)]
    first = layout.header_block + 1
    order = list(range(len(lengths)))
    if layout.shuffle_seed is not None:
        random.Random(layout.shuffle_seed).shuffle(order)
    starts, block = [0] * len(lengths), first + 1
    for number in order:
        starts[number] = block
        block += lengths[number] + 1  # a gap, so that no two are neighbours
    maps = [lengths[at : at + layout.per_page] for at in range(0, len(lengths), layout.per_page)]
    map_blocks = [block + 2 * number for number in range(len(maps))]
    device = bytearray((block + 2 * len(maps) + 4) * PAGE)
    data = [start + k for start, length in zip(starts, lengths, strict=True) for k in range(length)]
    for at, one in enumerate(data):
        device[one * PAGE : (one + 1) * PAGE] = stored[at * PAGE : (at + 1) * PAGE]
    for number, one in enumerate(map_blocks):
        for slot, (start, length) in enumerate(zip(starts[number * layout.per_page :], maps[number], strict=False)):
            struct.pack_into("<qq", device, one * PAGE + 16 * slot, start * PAGE, (start + length) * PAGE)
        following = map_blocks[number + 1] * PAGE if number + 1 < len(maps) else 0
        struct.pack_into("<q", device, one * PAGE + 255 * 16, following)
    if layout.spare:
        struct.pack_into("<qq", device, map_blocks[-1] * PAGE + 255 * 16, data[0] * PAGE, (data[0] + 1) * PAGE)
    digest = md5(stream, layout.md5_ending) if layout.flags & 1 else b"\x99" * 16
    header = struct.pack(
        "<QI4xqq16s",
        len(stream) // PAGE - layout.fewer_pages,
        layout.flags,
        map_blocks[0] * PAGE,
        len(stored),
        digest,
    )
    header += b"\xee" * layout.encryption_bytes + struct.pack("<di", 1.5, 0)
    device[first * PAGE : first * PAGE + len(header)] = header
    tail = struct.pack("<q10s10s", first * PAGE, b"SWAPSPACE2", b"ULSUSPEND\0")
    end = (layout.header_block + 1) * PAGE
    device[end - len(tail) : end] = tail
    return Laid(device, first * PAGE, [one * PAGE for one in map_blocks], [one * PAGE for one in data])


def md5(data: bytes, ending: str) -> bytes:
    """Return the MD5 of whole blocks of 64 bytes, with another last block than RFC 1321 has, or none."""
    padding = b"\x80" + bytes(55)
    if ending == "rfc 1321":
        return hashlib.md5(data).digest()
    if ending == "count of zero":
        data += padding + bytes(8)
    state = [0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476]
    for at in range(0, len(data), 64):
        state = _step(state, struct.unpack_from("<16I", data, at))
    return struct.pack("<4I", *state)


def _step(state: list[int], x: tuple[int, ...]) -> list[int]:
    a, b, c, d = state
    for i in range(64):
        if i < 16:
            f, g = (b & c) | (~b & d), i
        elif i < 32:
            f, g = (b & d) | (c & ~d), (5 * i + 1) % 16
        elif i < 48:
            f, g = b ^ c ^ d, (3 * i + 5) % 16
        else:
            f, g = c ^ (b | ~d), (7 * i) % 16
        f = (f + a + math.floor(2**32 * abs(math.sin(i + 1))) + x[g]) % 2**32
        s = ([7, 12, 17, 22], [5, 9, 14, 20], [4, 11, 16, 23], [6, 10, 15, 21])[i // 16][i % 4]
        a, d, c, b = d, c, b, (b + (f << s | f >> 32 - s)) % 2**32
    return [(one + other) % 2**32 for one, other in zip(state, (a, b, c, d), strict=True)]
