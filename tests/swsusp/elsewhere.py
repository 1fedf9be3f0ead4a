# SPDX-License-Identifier: GPL-2.0-or-later
"""Images of other machines, written by hand: sizes of pages, of `unsigned long` and of `sector_t` as wanted.

Written from the structures of the kernel (kernel/power/swap.c, snapshot.c, power.h) alone; it shares no code with the
library, nor with `naive`, except for the compressors.
"""

from __future__ import annotations

import random
import struct
import zlib
from dataclasses import dataclass, field

from tests.swsusp.naive import compress

BUILD = b"#1 SMP PREEMPT_DYNAMIC Debian 6.12.1-1 (2026-03-03)"
ARM64 = BUILD.ljust(72, b"\0") + struct.pack("<4Q", 0x41A00000, 0xFFFF800080012345, 0, 0x80000000)
RISCV = BUILD.ljust(72, b"\0") + struct.pack("<3Q", 3, 0x9000000000081234, 0xFFFFFFFF80004000)
I386 = struct.pack("<5I", 0xC10A5000, 0x10A5000, 0x2A00000, 0x12345679, 0x11223344)
I386_MD5 = struct.pack("<4I", 0xC10A5000, 0x10A5000, 0x2A00000, 0x12345678) + bytes(range(16))


def utsname(machine: bytes, release: bytes = b"4.9.0-19-686-pae", version: bytes = b"#1 SMP Debian") -> bytes:
    """Return `struct new_utsname`."""
    return b"".join(text.ljust(65, b"\0") for text in (b"Linux", b"host", release, version, machine, b""))


@dataclass(frozen=True)
class Elsewhere:
    """A machine and the layout of its image."""

    record: bytes = ARM64
    page: int = 4096
    long: int = 8
    sector: int = 8
    compressor: str = "lzo"
    seed: int = 1
    flags: int | None = None
    header_block: int = 0
    spare_blocks: int = 2
    crc_error: int = 0
    before: bytes = field(default=b"")


def build(pages: dict[int, bytes | None], machine: Elsewhere) -> bytes:
    """Return the device of an image. `pages` maps a page's number to its bytes; None is a flagged zero page."""
    size, long = machine.page, machine.long
    word = {4: "I", 8: "Q"}[long]
    ones = (1 << 8 * long) - 1
    numbers = [pfn | (0 if pages[pfn] is not None else 1 << (8 * long - 1)) for pfn in sorted(pages)]
    listing = b"".join(struct.pack(f"<{word}", number) for number in numbers)
    if len(listing) % size:
        listing += struct.pack(f"<{word}", ones)
    listing += bytes(-len(listing) % size)
    contents = [content for pfn in sorted(pages) if (content := pages[pfn]) is not None]
    stream = listing + b"".join(contents)
    blocks = [info_page(len(contents), 1 + len(stream) // size, machine)]
    crc = 0
    if machine.compressor == "none":
        blocks += [stream[at : at + size] for at in range(0, len(stream), size)]
    else:
        for at in range(0, len(stream), 32 * size):
            unit = stream[at : at + 32 * size]
            crc = zlib.crc32(unit, crc ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
            packed = compress(machine.compressor, unit)
            stored = struct.pack(f"<{word}", len(packed)) + packed
            stored += b"\x5a" * (-len(stored) % size)
            blocks += [stored[i : i + size] for i in range(0, len(stored), size)]
    return machine.before + device_of(blocks, crc ^ machine.crc_error, machine)


def info_page(stored: int, count: int, machine: Elsewhere) -> bytes:
    """Return the page of `struct swsusp_info`: 390 bytes of names or of a record, then the counts."""
    size = machine.page
    head = machine.record.ljust(392, b"\0")
    if machine.long == 8:
        head += struct.pack("<I4xQi4xQQQ", 0, 65403, 0, stored, count, count * size)
    else:
        head += struct.pack("<IIiIII", 0, 65403, 0, stored, count, count * size % 2**32)
    return head.ljust(size, b"\0")


def device_of(blocks: list[bytes], crc: int, machine: Elsewhere) -> bytes:
    """Return a swap area whose blocks lie in no order."""
    size = machine.page
    word = {4: "I", 8: "Q"}[machine.sector]
    entries = size // machine.sector - 1
    maps = -(-len(blocks) // entries)
    total = machine.header_block + 1 + len(blocks) + maps + machine.spare_blocks
    free = [block for block in range(1, total) if block != machine.header_block]
    random.Random(machine.seed).shuffle(free)
    chain, places = free[:maps], free[maps : maps + len(blocks)]
    device = bytearray(total * size)
    for place, block in zip(places, blocks, strict=True):
        device[place * size : (place + 1) * size] = block
    for number, at in enumerate(chain):
        part = places[number * entries : (number + 1) * entries]
        part += [0] * (entries - len(part)) + [chain[number + 1] if number + 1 < maps else 0]
        device[at * size : (at + 1) * size] = b"".join(struct.pack(f"<{word}", entry) for entry in part)
    flags = {"none": 2, "lzo": 4, "lz4": 4 | 16}[machine.compressor] if machine.flags is None else machine.flags
    tail = struct.pack(f"<I{word}I10s10s", crc, chain[0], flags, b"SWAPSPACE2", b"S1SUSPEND\0")
    start = machine.header_block * size
    struct.pack_into("<III", device, start + 1024, 1, total - 1, 0)
    device[start + size - len(tail) : start + size] = tail
    return bytes(device)
