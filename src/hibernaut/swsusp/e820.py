# SPDX-License-Identifier: GPL-2.0-or-later
"""The firmware's memory map as an image keeps it: one checksum, made in one of several ways.

A kernel that resumes makes the checksum of its own machine's map (`e820_table_firmware`) and compares the two. Which
way it was made is known by the magic of the info page.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["E820Check", "E820Sums", "trim_page_zero"]

_COUNT = struct.Struct("<I")
_ENTRY = struct.Struct("<QQI")
"""`struct e820_entry` (arch/x86/include/asm/e820/types.h, packed): address, size, type."""
E820_TYPE_RAM = 1
PAGE_ZERO_BYTES = 4096


class E820Check(StrEnum):
    """The way in which an image keeps the memory map."""

    NONE = "none"
    MD5 = "md5"
    CRC32 = "crc32"
    TRIMMED_CRC32 = "crc32 without RAM of page zero"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class E820Sums:
    """Checksums of one memory map, None where one is not known.

    Attributes:
        md5: MD5 in hexadecimal; "" if the kernel that made it has no MD5.
        crc32: CRC-32 of the map as it is.
        trimmed_crc32: CRC-32 of the map without RAM of page zero.
    """

    md5: str | None = None
    crc32: int | None = None
    trimmed_crc32: int | None = None

    @classmethod
    def of_table(cls, table: bytes) -> E820Sums:
        """Return all checksums of a `struct e820_table`: u32 count, then packed entries of u64, u64, u32.

        Raises:
            ValueError: the count and the length contradict each other.
        """
        return cls(
            md5=hashlib.md5(table, usedforsecurity=False).hexdigest(),
            crc32=zlib.crc32(table),
            trimmed_crc32=zlib.crc32(trim_page_zero(table)),
        )

    def by(self, check: E820Check) -> int | str | None:
        """Return the checksum that is made in one way; None if it is not known."""
        found = {
            E820Check.MD5: self.md5,
            E820Check.CRC32: self.crc32,
            E820Check.TRIMMED_CRC32: self.trimmed_crc32,
        }
        return found.get(check)


def trim_page_zero(table: bytes) -> bytes:
    """Return a `struct e820_table` whose RAM below 4096 is gone, as under `MAGIC_TRIMMED`.

    Raises:
        ValueError: the count and the length contradict each other.
    """
    (count,) = _COUNT.unpack_from(table)
    if len(table) != _COUNT.size + count * _ENTRY.size:
        raise ValueError(f"{count} entries in {len(table)} bytes")
    kept = []
    for addr, size, kind in _ENTRY.iter_unpack(table[_COUNT.size :]):
        end = addr + size
        if kind != E820_TYPE_RAM or addr >= PAGE_ZERO_BYTES:
            kept.append(_ENTRY.pack(addr, size, kind))
        elif end > PAGE_ZERO_BYTES:
            kept.append(_ENTRY.pack(PAGE_ZERO_BYTES, end - PAGE_ZERO_BYTES, kind))
    return _COUNT.pack(len(kept)) + b"".join(kept)
