# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel image with kallsyms in it, and a bzImage around it: a second writer of what is read."""

from __future__ import annotations

import struct
from collections.abc import Sequence

RELEASE = b"6.7.8-mine"


def compressed_names(symbols: Sequence[bytes]) -> tuple[bytes, list[int], list[bytes]]:
    """`kallsyms_names`, the position of each symbol in it, and the tokens: characters, and a few long ones."""
    tokens = [bytes([code]) if 0x21 <= code < 0x7F else b"" for code in range(256)]
    words = (b"set_memory_", b"direct_map_", b"_noflush", b"swsusp", b"__")
    for code, word in zip(range(0x80, 0x100), words, strict=False):
        tokens[code] = word
    names, positions = bytearray(), []
    for symbol in symbols:
        packed = symbol
        for code, word in zip(range(0x80, 0x100), words, strict=False):
            packed = packed[:1] + packed[1:].replace(word, bytes([code]))
        positions.append(len(names))
        if len(packed) > 0x7F:
            names += bytes([len(packed) & 0x7F | 0x80, len(packed) >> 7])
        else:
            names.append(len(packed))
        names += packed
    return bytes(names), positions, tokens


def kernel_image(symbols: Sequence[bytes], *, align: int = 8, seqs: bool = False) -> bytes:
    """An ELF file's first bytes, noise, and the tables of kallsyms; with `seqs` as 6.1.192 orders them."""
    names, positions, tokens = compressed_names(symbols)

    def padded(data: bytes) -> bytes:
        return data + bytes(-len(data) % align)

    noise = b"".join(struct.pack("<I", (2654435761 * number) & 0xFFFFF) for number in range(2000))
    table = b"".join(token + b"\x00" for token in tokens)
    starts, at = [], 0
    for token in tokens:
        starts.append(at)
        at += len(token) + 1
    markers = b"".join(struct.pack("<I", position) for position in positions[::256])
    parts = [
        padded(b"\x7fELF" + noise),
        padded(struct.pack("<I", len(symbols))),
        padded(names),
        padded(markers),
        padded(b"\x01\x02\x03" * len(symbols)) if seqs else b"",
        padded(table),
        padded(struct.pack("<256H", *starts)),
        noise,
    ]
    return b"".join(parts)


def bzimage(payload: bytes, *, version: int = 0x20F, release: bytes = RELEASE, magic: bytes = b"HdrS") -> bytes:
    """A bzImage with a setup of 3 sectors and its payload some bytes behind them."""
    head = bytearray(4 * 512)
    head[0x1F1] = 3
    head[0x202:0x206] = magic
    head[0x206:0x208] = version.to_bytes(2, "little")
    head[0x20E:0x210] = (0x300).to_bytes(2, "little")
    head[0x248:0x24C] = (0x20).to_bytes(4, "little")
    head[0x24C:0x250] = len(payload).to_bytes(4, "little")
    head[0x500 : 0x500 + len(release)] = release
    return bytes(head) + bytes(0x20) + payload + b"the rest"
