# SPDX-License-Identifier: GPL-2.0-or-later
"""The firmware's memory map (e820): from a kernel's log, from /sys/firmware/memmap, or from memory; and differences.

The kernel prints `e820_table` right after it has copied it to `e820_table_firmware` (`e820__memory_setup`,
arch/x86/kernel/e820.c), so the lines of its log and the table of the checksum have the same entries.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from hibernaut.doctor.evidence import Evidence, RootFolder, unknown
from hibernaut.kernel.running import E820_TYPES
from hibernaut.swsusp.e820 import E820_TYPE_RAM, E820Sums

__all__ = [
    "ComparedRange",
    "MapRange",
    "MemoryMap",
    "differences",
    "map_in_log",
    "map_of_folder",
    "map_of_table",
    "ram_bytes",
    "side_by_side",
    "sums_of",
    "type_name",
]

MOST_RANGES = 4096
LINE = re.compile(
    r"(?P<source>BIOS-(?:e820|e801|88)|extended): \[mem 0x(?P<start>[0-9a-f]{16})-0x(?P<last>[0-9a-f]{16})\] +"
    r"(?P<type>[A-Za-z][\w ()]*)$"
)
EXTENDED = "extended"
"""`e820__memory_setup_extended` adds entries of the boot loader (SETUP_E820_EXT), copies the table to
`e820_table_firmware` again, and prints all of it. What `e820__reserve_setup_data` prints ("reserve setup_data") is
another table. Read in linux-source-6.1 6.1.192-2, -6.12 6.12.118-1 and -7.3 7.3.4-1~bpo13+1."""
TYPES = {
    "usable": 1,
    "System RAM": 1,
    "reserved": 2,
    "device reserved": 2,
    "ACPI data": 3,
    "ACPI NVS": 4,
    "unusable": 5,
    "soft reserved": 0xEFFFFFFF,
}
"""`e820_print_type` (arch/x86/kernel/e820.c), inverted: the words of 6.1 and 6.12, and those of 7.3."""
NUMBERED = re.compile(r"(?:persistent |persistent RAM )?\(?type (\d+)\)?")
NAMES = {number: name for name, number in reversed(E820_TYPES.items())}
ENTRY = struct.Struct("<QQI")


@dataclass(frozen=True)
class MapRange:
    """A range of the memory map.

    Attributes:
        start: its first byte.
        end: the byte after its last.
        kind: its type, `enum e820_type`.
    """

    start: int
    end: int
    kind: int


@dataclass(frozen=True)
class ComparedRange:
    """Bytes that each of two maps describes as one.

    Attributes:
        start: first byte.
        end: byte after the last.
        before: type in the one map; None for no entry.
        after: type in the other.
    """

    start: int
    end: int
    before: int | None
    after: int | None


MemoryMap = tuple[MapRange, ...]


def map_in_log(lines: Iterable[str], origin: str) -> Evidence[MemoryMap]:
    """Return the map that a kernel's log has; unknown if it has none, or a line that is not understood."""
    found: dict[bool, list[MapRange]] = {False: [], True: []}
    for line in lines:
        match = LINE.search(line.rstrip())
        if match is None:
            continue
        kind = _kind(match["type"])
        ranges = found[match["source"] == EXTENDED]
        if kind is None or len(ranges) == MOST_RANGES:
            return unknown(origin, f"a line of the memory map has an unknown type, {match['type']!r}")
        ranges.append(MapRange(int(match["start"], 16), int(match["last"], 16) + 1, kind))
    chosen = found[True] or found[False]
    if not chosen:
        return unknown(origin, "the log has no line of the memory map (BIOS-e820): it does not begin with the boot")
    return Evidence(tuple(chosen), origin)


def _kind(words: str) -> int | None:
    numbered = NUMBERED.fullmatch(words)
    return int(numbered[1]) if numbered else TYPES.get(words)


def map_of_folder(root: RootFolder) -> Evidence[MemoryMap]:
    """Return the map in /sys/firmware/memmap, in the order of its numbers."""
    folder = "sys/firmware/memmap"
    names = root.names(folder)
    if names.value is None:
        return unknown(names.origin, names.reason)
    found: list[MapRange] = []
    for number in sorted(int(name) for name in names.value if name.isdecimal())[: MOST_RANGES + 1]:
        start, last, kind = (root.text(f"{folder}/{number}/{name}").value for name in ("start", "end", "type"))
        code = E820_TYPES.get((kind or "").strip())
        if start is None or last is None or code is None:
            return unknown(names.origin, f"entry {number} cannot be read")
        try:
            found.append(MapRange(int(start, 16), int(last, 16) + 1, code))
        except ValueError:
            return unknown(names.origin, f"entry {number} is damaged")
    if not found or len(found) > MOST_RANGES:
        return unknown(names.origin, "it has no entries" if not found else "it has too many entries")
    return Evidence(tuple(found), names.origin)


def map_of_table(table: bytes) -> MemoryMap:
    """Return the map of a `struct e820_table`: u32 count, then packed entries of u64, u64, u32.

    Raises:
        ValueError: the bytes are not whole entries.
    """
    if (len(table) - 4) % ENTRY.size:
        raise ValueError(f"{len(table)} bytes")
    return tuple(MapRange(start, start + size, kind) for start, size, kind in ENTRY.iter_unpack(table[4:]))


def sums_of(found: MemoryMap) -> E820Sums:
    """Return the checksums of a map, as the kernel makes them. Raises ValueError if a range cannot be an entry."""
    try:
        entries = [ENTRY.pack(one.start, one.end - one.start, one.kind) for one in found]
    except struct.error as error:
        raise ValueError(f"an impossible range: {error}") from error
    return E820Sums.of_table(struct.pack("<I", len(found)) + b"".join(entries))


def ram_bytes(found: MemoryMap) -> int:
    """Return the number of bytes of RAM."""
    return sum(one.end - one.start for one in found if one.kind == E820_TYPE_RAM)


def side_by_side(before: MemoryMap, after: MemoryMap) -> tuple[ComparedRange, ...]:
    """Return all that one of two maps describes, ascending, neighbours with the same types joined."""
    edges = sorted({edge for one in (*before, *after) for edge in (one.start, one.end)})
    found: list[ComparedRange] = []
    for start, end, was, now in zip(edges, edges[1:], _types(before, edges), _types(after, edges), strict=False):
        last = found[-1] if found else None
        if was is None and now is None:
            continue
        if last and (last.end, last.before, last.after) == (start, was, now):
            found[-1] = ComparedRange(last.start, end, was, now)
        else:
            found.append(ComparedRange(start, end, was, now))
    return tuple(found)


def differences(before: MemoryMap, after: MemoryMap) -> tuple[ComparedRange, ...]:
    """Return the ranges that two maps do not describe alike."""
    return tuple(one for one in side_by_side(before, after) if one.before != one.after)


def type_name(kind: int | None) -> str | None:
    """Return a type as /sys/firmware/memmap spells it; None for None."""
    return None if kind is None else NAMES.get(kind, f"type {kind}")


def _types(found: MemoryMap, edges: Sequence[int]) -> Iterator[int | None]:
    """Yield the type at each edge; of several ranges there, that of the last one in the map."""
    ascending = sorted(enumerate(found), key=lambda one: one[1].start)
    active: list[tuple[int, MapRange]] = []
    at = 0
    for edge in edges:
        while at < len(ascending) and ascending[at][1].start <= edge:
            active.append(ascending[at])
            at += 1
        active = [one for one in active if one[1].end > edge]
        yield max(active, key=lambda one: one[0])[1].kind if active else None
