# SPDX-License-Identifier: GPL-2.0-or-later
"""Many units in one call: decompressed from one array into another, or compressed, each with its part of the CRC.

A unit of LZ4 takes some 50 microseconds, so that a few Python calls a unit count. The system's libraries take
addresses: the arrays and their bounds are looked at once for all units. The CRC of a unit is computed while the unit is
in the cache of its core.
"""

from __future__ import annotations

from collections.abc import Sequence

from hibernaut.memory.page import PAGE_SIZE, Bytes
from hibernaut.swsusp.codecs import Codec, WrongLength
from hibernaut.swsusp.crc32 import crc32
from hibernaut.swsusp.declarations import LENGTH_BYTES

__all__ = ["DamagedUnit", "pack_units", "packed_room", "unpack_units"]


class DamagedUnit(ValueError):
    """A unit that does not decompress.

    Attributes:
        position: its position among the units given.
    """

    def __init__(self, position: int, reason: str) -> None:
        self.position = position
        super().__init__(reason)


def unpack_units(
    codec: Codec, stored: Bytes, at: Sequence[int], lengths: Sequence[int], out: Bytes, unit_bytes: int, crc: int = 0
) -> int:
    """Decompress units that follow each other, and return the (zlib) CRC of their bytes, appended to `crc`.

    Args:
        codec: compressor of the units.
        stored: array that holds them, shape (m,), contiguous.
        at: first byte of each in it.
        lengths: compressed length of each.
        out: array for the decompressed bytes, shape (k,), contiguous; the last unit may be short.
        unit_bytes: decompressed length of each but the last one.
        crc: CRC of what comes before them.

    Raises:
        DamagedUnit: a unit does not decompress to its length.
        ValueError: a unit is not inside the arrays.
    """
    ends = [begin + length for begin, length in zip(at, lengths, strict=True)]
    if at and not (min(at) >= 0 and min(lengths) >= 0 and max(ends) <= len(stored)):
        raise ValueError(f"units outside of their {len(stored)} bytes")
    if not (len(at) - 1) * unit_bytes < len(out) <= len(at) * unit_bytes:
        raise ValueError(f"{len(at)} units of {unit_bytes} bytes for {len(out)} bytes")
    plain = out.data
    if codec.system is None:
        for position, (begin, end) in enumerate(zip(at, ends, strict=True)):
            target = out[position * unit_bytes : (position + 1) * unit_bytes]
            try:
                codec.decompress_into(stored[begin:end], target)
            except ValueError as error:
                raise DamagedUnit(position, str(error)) from error
            crc = crc32(target, crc)
        return crc
    decompress, source, target_at, done = codec.system.decompress_at, stored.ctypes.data, out.ctypes.data, 0
    try:
        for begin, length in zip(at, lengths, strict=True):
            room = min(unit_bytes, len(out) - done)
            size_bytes = decompress(source + begin, length, target_at + done, room)
            if size_bytes != room:
                raise WrongLength(size_bytes, room)
            crc = crc32(plain[done : done + room], crc)
            done += room
    except ValueError as error:
        raise DamagedUnit(done // unit_bytes, str(error)) from error
    return crc


def packed_room(codec: Codec, units: int, unit_bytes: int) -> int:
    """Return the bytes of whole blocks that so many units take at most, with the lengths before them."""
    most = unit_bytes + unit_bytes // 16 + 67 if codec.system is None else codec.system.compressed_bound(unit_bytes)
    return units * (-(-(LENGTH_BYTES + most) // PAGE_SIZE) + 1) * PAGE_SIZE


def pack_units(codec: Codec, plain: Bytes, unit_bytes: int, room: Bytes) -> tuple[int, int, int]:
    """Compress units as the kernel stores them: each with its length before it, at the start of a block.

    Args:
        codec: compressor.
        plain: bytes of the units, shape (k,), contiguous; the last unit may be short.
        unit_bytes: length of each but the last one.
        room: array of `packed_room` bytes for the blocks; the end of a unit's last block becomes zeroes.

    Returns:
        The number of bytes of the blocks, the sum of the compressed lengths, the (zlib) CRC of `plain`.
    """
    view, flat, stored, compressed, crc = room.data, plain.data, 0, 0, 0
    source, target, system = plain.ctypes.data, room.ctypes.data, codec.system
    for done in range(0, len(plain), unit_bytes):
        size_bytes = min(unit_bytes, len(plain) - done)
        begin = stored + LENGTH_BYTES
        if system is None:
            packed = codec.compress(plain[done : done + size_bytes])
            length = len(packed)
            view[begin : begin + length] = packed
        else:
            if begin + system.compressed_bound(size_bytes) > len(room):
                raise ValueError(f"no room for another unit in {len(room)} bytes")
            length = system.compress_at(source + done, size_bytes, target + begin, len(room) - begin)
        crc = crc32(flat[done : done + size_bytes], crc)
        view[stored:begin] = length.to_bytes(LENGTH_BYTES, "little")
        end = begin + length
        stored = end + -end % PAGE_SIZE
        view[end:stored] = bytes(stored - end)
        compressed += length
    return stored, compressed, crc
