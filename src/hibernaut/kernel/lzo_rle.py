# SPDX-License-Identifier: GPL-2.0-or-later
"""A decoder of LZO-RLE, for one page: the kernel's variant of LZO1X with an instruction for runs of zeroes.

Format: Documentation/staging/lzo.rst. A stream of version 1 begins with the bytes 17 and 1; a stream of version 0 is
plain LZO1X, which is decoded, too.
"""

from __future__ import annotations

from typing import NoReturn

__all__ = ["decompress_lzo_rle"]

VERSIONED = 17
"""A first byte, of a stream of at least `FEWEST_VERSIONED` bytes, after which its version follows."""
FEWEST_VERSIONED = 5
SHORTEST_ZERO_RUN = 4
FAR = 1 << 14
"""Shortest distance of a copy by the instruction for far ones."""
ZERO_RUN_WORD = 0xFFFC
"""The distance of that instruction which stands for a run of zeroes."""
MANY_LITERALS = 4
"""State after four literals or more; below it, the number of literals after the last copy."""


def decompress_lzo_rle(packed: bytes, size_bytes: int) -> bytes:
    """Return what a stream decompresses to.

    Args:
        packed: the stream.
        size_bytes: most bytes that it may have.

    Raises:
        ValueError: the stream is damaged, cut short, or has bytes after its end; or it has more bytes.
    """
    return _Decoder(packed, size_bytes).run()


class _Decoder:
    def __init__(self, packed: bytes, size_bytes: int) -> None:
        self._packed = packed
        self._at = 0
        self._out = bytearray()
        self._most = size_bytes

    def run(self) -> bytes:
        has_runs = False
        if len(self._packed) >= FEWEST_VERSIONED and self._packed[0] == VERSIONED:
            if self._packed[1] > 1:
                self._refuse(f"version {self._packed[1]}")
            has_runs = self._packed[1] == 1
            self._at = 2
        state = self._first()
        while True:
            code = self._byte()
            if code >= 64:
                following = self._byte()
                length = 5 + (code >> 5 & 3) if code >= 128 else 3 + (code >> 5 & 1)
                self._copy((following << 3) + (code >> 2 & 7) + 1, length)
                state = code & 3
            elif code >= 32:
                length = self._length(code & 31, 31) + 2
                word = self._word()
                self._copy((word >> 2) + 1, length)
                state = word & 3
            elif code >= 16:
                ended, state = self._far(code, has_runs)
                if ended:
                    break
            elif state == 0:
                self._literals(self._length(code, 15) + 3)
                state = MANY_LITERALS
                continue
            else:
                distance = (self._byte() << 2) + (code >> 2) + 1
                self._copy(*((distance, 2) if state < MANY_LITERALS else (distance + 2048, 3)))
                state = code & 3
            self._literals(state)
        if self._at != len(self._packed):
            self._refuse(f"{len(self._packed) - self._at} bytes after the end of the stream")
        return bytes(self._out)

    def _first(self) -> int:
        """Take the literals that a first byte of more than 17 counts; returns the state."""
        count = (self._packed[self._at] if self._at < len(self._packed) else 0) - VERSIONED
        if count <= 0:
            return 0
        self._at += 1
        self._literals(count)
        return min(count, MANY_LITERALS)

    def _far(self, code: int, has_runs: bool) -> tuple[bool, int]:
        """Do an instruction of 16 to 31: a far copy, a run of zeroes, or the end; return if it ended, and state."""
        if has_runs and code & 8 and self._peeked_word() & ZERO_RUN_WORD == ZERO_RUN_WORD:
            word = self._word()
            self._put(bytes((self._byte() << 3 | code & 7) + SHORTEST_ZERO_RUN))
            return False, word & 3
        length = self._length(code & 7, 7) + 2
        word = self._word()
        distance = FAR + ((code & 8) << 11) + (word >> 2)
        if distance == FAR:
            return True, 0
        self._copy(distance, length)
        return False, word & 3

    def _length(self, low: int, longest: int) -> int:
        """Return a length: its low bits, or, if these are zero, that of the bytes that follow."""
        if low:
            return low
        length = longest
        while (byte := self._byte()) == 0:
            length += 255
            if length > self._most + longest:
                self._refuse("a length beyond the size")
        return length + byte

    def _byte(self) -> int:
        if self._at >= len(self._packed):
            self._refuse("the stream is cut short")
        self._at += 1
        return self._packed[self._at - 1]

    def _peeked_word(self) -> int:
        return int.from_bytes(self._packed[self._at : self._at + 2], "little")

    def _word(self) -> int:
        return self._byte() | self._byte() << 8

    def _literals(self, count: int) -> None:
        if self._at + count > len(self._packed):
            self._refuse("the stream is cut short")
        self._put(self._packed[self._at : self._at + count])
        self._at += count

    def _copy(self, distance: int, length: int) -> None:
        """Copy from what was written; a copy that reaches its own start repeats it."""
        if distance > len(self._out):
            self._refuse(f"a copy from {distance} bytes before, {len(self._out)} are there")
        piece = bytes(self._out[len(self._out) - distance :][:length])
        self._put((piece * -(-length // len(piece)))[:length])

    def _put(self, data: bytes) -> None:
        if len(self._out) + len(data) > self._most:
            self._refuse(f"more than {self._most} bytes")
        self._out += data

    def _refuse(self, what: str) -> NoReturn:
        raise ValueError(f"LZO-RLE, byte {self._at}: {what}")
