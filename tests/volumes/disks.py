# SPDX-License-Identifier: GPL-2.0-or-later
"""Partition tables, written by hand."""

from __future__ import annotations

import struct

SECTOR = 512


def mbr_entry(kind: int, first: int, sectors: int) -> bytes:
    """Return an entry of an MBR."""
    return struct.pack("<B3sB3sII", 0, b"", kind, b"", first, sectors)


def write_table(disk: bytearray, at: int, entries: list[bytes]) -> None:
    """Write an MBR's entries and its mark."""
    disk[at + 446 : at + 446 + 16 * len(entries)] = b"".join(entries)
    disk[at + 510 : at + 512] = b"\x55\xaa"
