# SPDX-License-Identifier: GPL-2.0-or-later
"""The sizes of a machine's pages and of its `sector_t`, as the header block of its swap area shows them.

The tail of the header ends where its page does, and blocks are counted in pages (kernel/power/swap.c, `struct
swsusp_header`). Both sizes are decided by what the area holds: no field states them.
"""

from __future__ import annotations

from dataclasses import dataclass

from hibernaut.memory.page import PAGE_SIZE
from hibernaut.swsusp.declarations import FOREIGN_SIGNATURES, OTHER_PAGE_SIZES, SIGNATURE, SWAP_SIGNATURES
from hibernaut.swsusp.uswsusp_declarations import USWSUSP_SIGNATURE
from hibernaut.volumes.volume import Volume

__all__ = ["HeaderPlace", "find_header"]

KNOWN = (SIGNATURE, USWSUSP_SIGNATURE, *SWAP_SIGNATURES)
VERSION_AT = 1024
LITTLE_VERSION, BIG_VERSION = (number.to_bytes(4, "little") for number in (1, 1 << 24))
"""`version` of the swap header, which is 1, in either order of bytes."""


@dataclass(frozen=True)
class HeaderPlace:
    """A swap header on a device.

    Attributes:
        block: its block, in pages of the machine.
        page_size: size of a page of the machine.
        sector_bytes: size of the kernel's `sector_t`, by which the first map page lies inside the device.
        big_endian: whether it does so only when read the other way round.
    """

    block: int
    page_size: int = PAGE_SIZE
    sector_bytes: int = 8
    big_endian: bool = False


def find_header(file: Volume, base_bytes: int, size_bytes: int, block: int) -> HeaderPlace:
    """Return the place of a swap header, whose block is given in pages of the machine, or in those of 4096 bytes.

    One without a known signature is taken for that of a machine with pages of 4096 bytes.

    Args:
        file: the file with the device.
        base_bytes: byte at which the device begins.
        size_bytes: its length.
        block: block of the header.
    """
    signature = file.pread(base_bytes + (block + 1) * PAGE_SIZE - len(SIGNATURE), len(SIGNATURE))
    start, page_size = block * PAGE_SIZE, PAGE_SIZE
    if signature not in KNOWN and signature not in FOREIGN_SIGNATURES:
        places = ((at, size) for size in OTHER_PAGE_SIZES for at in dict.fromkeys((block * size, start)))
        fitting = ((at, size) for at, size in places if at % size == 0 and at + size <= size_bytes)
        found = ((at, size) for at, size in fitting if _has_header(file, base_bytes + at, size))
        start, page_size = next(found, (start, page_size))
    at = base_bytes + start
    tail = file.pread(at + page_size - 32, 8)
    inside = range(1, size_bytes // page_size)
    sector_bytes, big_endian = 8, False
    if int.from_bytes(tail, "little") not in inside:
        # Read as eight bytes, a block of four is more than 2**32: the checksum lies before it.
        big_endian = int.from_bytes(tail, "big") in inside and file.pread(at + VERSION_AT, 4) != LITTLE_VERSION
        if not big_endian and _is_map_of_4(file, base_bytes, page_size, int.from_bytes(tail[4:], "little"), inside):
            sector_bytes = 4
    return HeaderPlace(start // page_size, page_size, sector_bytes, big_endian)


def _is_map_of_4(file: Volume, base_bytes: int, page_size: int, block: int, inside: range) -> bool:
    """Return whether a block of the device is a map page with entries of four bytes: its first two are blocks.

    In one of eight, the second is zero.
    """
    if block not in inside:
        return False
    entries = file.pread(base_bytes + block * page_size, 8)
    return all(int.from_bytes(entry, "little") in inside for entry in (entries[:4], entries[4:]))


def _has_header(file: Volume, at: int, size: int) -> bool:
    """Return whether a swap header with pages of this size begins at a byte of a file."""
    signature = file.pread(at + size - len(SIGNATURE), len(SIGNATURE))
    return signature in KNOWN and file.pread(at + VERSION_AT, 4) in (LITTLE_VERSION, BIG_VERSION)
