# SPDX-License-Identifier: GPL-2.0-or-later
"""The MD5 of an image of suspend-utils, which its own `md5.c` computes from whole blocks of 64 bytes.

`flush_buffer` (suspend.c) feeds `md5_process_block`, never `md5_process_bytes`, and `write_image` ends with
`md5_finish_ctx`. Where `md5_process_block` counts the bytes, as GNU's does, the digest is that of RFC 1321; where only
`md5_process_bytes` counts them, the last block has a count of zero. No image of a real machine was at hand to tell
which of them a build has, so each image is compared with both, and with the state before the last block.

hashlib gives the digest of RFC 1321 alone. Another way of ending is checked from there: a digest is the state after
its last block, so that one more block after it must lead to the digest of the data with that last block appended.
"""

from __future__ import annotations

import hashlib
import math
import struct
from typing import Literal

from hibernaut.memory.page import Bytes

__all__ = ["Md5", "Md5Ending"]

Md5Ending = Literal["rfc 1321", "count of zero", "no last block"]
"""The last block of an MD5: with the number of bits (RFC 1321, 3.2), with zero instead, or none."""

BLOCK_BYTES = 64
SHIFTS = ((7, 12, 17, 22), (5, 9, 14, 20), (4, 11, 16, 23), (6, 10, 15, 21))
"""Rotations of the four rounds (RFC 1321, 3.4)."""
SINES = tuple(int(abs(math.sin(step + 1)) * 2**32) for step in range(64))
MASK = 0xFFFF_FFFF


class Md5:
    """The MD5 of data whose length is a multiple of 64 bytes."""

    def __init__(self) -> None:
        self._hash = hashlib.md5(usedforsecurity=False)
        self._size_bytes = 0

    def add(self, data: bytes | Bytes) -> None:
        """Append bytes."""
        self._hash.update(data if isinstance(data, bytes) else data.data)
        self._size_bytes += len(data) if isinstance(data, bytes) else data.nbytes

    def hexdigest(self) -> str:
        """Return the digest of RFC 1321."""
        return self._hash.hexdigest()

    def ending_of(self, digest: bytes) -> Md5Ending | None:
        """Return the way of ending that leads to a digest; None if it is that of other data."""
        if self._hash.digest() == digest:
            return "rfc 1321"
        if _compress(digest, _last_block(self._size_bytes)) == self._hash.digest():
            return "no last block"
        longer = self._hash.copy()
        longer.update(_last_block(0))
        if _compress(digest, _last_block(self._size_bytes + BLOCK_BYTES)) == longer.digest():
            return "count of zero"
        return None


def _last_block(size_bytes: int) -> bytes:
    """Return the block after whole blocks: a bit, then zeroes, then the number of bits."""
    return b"\x80".ljust(BLOCK_BYTES - 8, b"\0") + struct.pack("<Q", size_bytes * 8 % 2**64)


def _compress(state: bytes, block: bytes) -> bytes:
    """Return the state after one more block (RFC 1321, 3.4), both as in a digest."""
    before = struct.unpack("<4I", state)
    words = struct.unpack("<16I", block)
    a, b, c, d = before
    for step in range(64):
        number = step // 16
        if number == 0:
            mixed, word = (b & c) | (~b & d), step
        elif number == 1:
            mixed, word = (d & b) | (~d & c), (5 * step + 1) % 16
        elif number == 2:
            mixed, word = b ^ c ^ d, (3 * step + 5) % 16
        else:
            mixed, word = c ^ (b | (~d & MASK)), 7 * step % 16
        total = (a + mixed + SINES[step] + words[word]) & MASK
        shift = SHIFTS[number][step % 4]
        a, b, c, d = d, (b + (total << shift | total >> (32 - shift))) & MASK, b, c
    return struct.pack("<4I", *((old + new) & MASK for old, new in zip(before, (a, b, c, d), strict=True)))
