# SPDX-License-Identifier: GPL-2.0-or-later
"""Formats that are not read, by what a file begins with: never raw memory, and called by their names."""

from __future__ import annotations

import zlib

from hibernaut.memory import declarations as c

__all__ = ["LOOKED_AT_BYTES", "foreign_format"]

LOOKED_AT_BYTES = 1 << 16
"""First bytes of a file that tell its format: those of a Windows hibernation file hold its first compressed block."""

_ZLIB_METHOD = 0x78
"""RFC 1950, 2.2: CMF of deflate with a window of 32 KiB; with the next byte it is a multiple of 31."""
_UNPACK_ZLIB = "unpack it first: zlib-flate -uncompress, or pigz -dcz"


def foreign_format(head: bytes) -> c.Foreign | None:
    """Return the known format that a file begins with; None if it may be raw memory.

    Args:
        head: its first `LOOKED_AT_BYTES`, or all of it.
    """
    for known in c.FOREIGN:
        if known.begins(head):
            return known
    if c.HIBERFIL_BLOCK in head:
        return c.FOREIGN[0]
    return _zlib_stream(head)


def _zlib_stream(head: bytes) -> c.Foreign | None:
    """Return the format of a zlib stream, as LiME writes one with `compress=1`; None if the bytes are none.

    Two bytes alone would match memory, so as much as there is must decompress.
    """
    if len(head) < 2 or head[0] != _ZLIB_METHOD or int.from_bytes(head[:2], "big") % 31:
        return None
    try:
        first = zlib.decompressobj().decompress(head, LOOKED_AT_BYTES)
    except zlib.error:
        return None
    is_lime = first.startswith(c.LIME_MAGIC.to_bytes(4, "little"))
    what = "a LiME dump compressed with zlib (compress=1)" if is_lime else "a zlib stream (LiME's compress=1 makes one)"
    return c.Foreign(what, 0, (head[:2],), _UNPACK_ZLIB)
