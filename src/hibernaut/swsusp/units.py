# SPDX-License-Identifier: GPL-2.0-or-later
"""Many units in one call: decompressed from one array into another, or compressed, each with its part of the CRC.

A unit of LZ4 takes some 50 microseconds, so that a few Python calls a unit count. The system's libraries take
addresses: the arrays and their bounds are looked at once for all units.
"""

from __future__ import annotations

from collections.abc import Sequence

from hibernaut.memory.page import PAGE_SIZE, Bytes
from hibernaut.swsusp.codecs import Codec, WrongLength
from hibernaut.swsusp.crc32 import crc32
from hibernaut.swsusp.declarations import LENGTH_BYTES

__all__ = ["DamagedUnit", "ZeroUnits", "pack_units", "packed_room", "unpack_units"]

ZEROES = memoryview(bytes(PAGE_SIZE))
MOST_ZERO_BYTES = 1024
"""Length up to which a unit may be one of zeroes: 600 bytes with LZO, 530 with LZ4."""
CRC_UNITS = 8
"""Units after which their CRC is taken: each call lets go of the interpreter and may have to wait for it again, while
a whole task has left the caches."""
MOST_ZERO_FORMS = 8
"""Forms that are kept: a kernel's codec has one."""


class DamagedUnit(ValueError):
    """A unit that does not decompress.

    Attributes:
        position: its position among the units given.
    """

    def __init__(self, position: int, reason: str) -> None:
        self.position = position
        super().__init__(reason)


class ZeroUnits:
    """Compressed forms of a unit of zeroes, learned from those that were decompressed. Safe for several threads.

    Memory that nothing uses is full of them, and LZO takes as long for one as for any other, where LZ4 takes about as
    long as to fill memory. The same compressed bytes always decompress to the same unit.
    """

    def __init__(self) -> None:
        self._known: set[bytes] = set()

    def has(self, packed: Bytes) -> bool:
        """Return whether these bytes decompress to zeroes, as far as it is known."""
        return len(packed) <= MOST_ZERO_BYTES and packed.tobytes() in self._known

    def learn(self, packed: Bytes, unit: Bytes) -> None:
        """Keep the compressed form of a unit that has just been decompressed, if that is one of zeroes."""
        if len(packed) <= MOST_ZERO_BYTES and len(self._known) < MOST_ZERO_FORMS and not unit.any():
            self._known.add(packed.tobytes())


def unpack_units(
    codec: Codec,
    stored: Bytes,
    at: Sequence[int],
    lengths: Sequence[int],
    out: Bytes,
    unit_bytes: int,
    crc: int = 0,
    zeroes: ZeroUnits | None = None,
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
        zeroes: forms of units of zeroes, which are not decompressed again; they are those of one codec and unit size.
            Without it all units are decompressed.

    Raises:
        DamagedUnit: a unit does not decompress to its length.
        ValueError: a unit is not inside the arrays.
    """
    ends = [begin + length for begin, length in zip(at, lengths, strict=True)]
    if at and not (min(at) >= 0 and min(lengths) >= 0 and max(ends) <= len(stored)):
        raise ValueError(f"units outside of their {len(stored)} bytes")
    if not (len(at) - 1) * unit_bytes < len(out) <= len(at) * unit_bytes:
        raise ValueError(f"{len(at)} units of {unit_bytes} bytes for {len(out)} bytes")
    source, target, view, system = stored.ctypes.data, out.ctypes.data, out.data, codec.system
    done = checked = 0
    for position, (begin, length) in enumerate(zip(at, lengths, strict=True)):
        end = min(done + unit_bytes, len(out))
        packed = stored[begin : begin + length]
        forms = zeroes if length <= MOST_ZERO_BYTES and end - done == unit_bytes else None
        if forms is not None and forms.has(packed):
            out[done:end] = 0
        else:
            try:
                if system is None:
                    codec.decompress_into(packed, out[done:end])
                else:
                    size_bytes = system.decompress_at(source + begin, length, target + done, end - done)
                    if size_bytes != end - done:
                        raise WrongLength(size_bytes, end - done)
            except ValueError as error:
                raise DamagedUnit(position, str(error)) from error
            if forms is not None:
                forms.learn(packed, out[done:end])
        done = end
        if done - checked == CRC_UNITS * unit_bytes or done == len(out):
            crc = crc32(view[checked:done], crc)
            checked = done
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
    view, plain_view, stored, compressed, crc, checked = room.data, plain.data, 0, 0, 0, 0
    source, target, system = plain.ctypes.data, room.ctypes.data, codec.system
    most = packed_room(codec, 1, unit_bytes)
    for done in range(0, len(plain), unit_bytes):
        size_bytes = min(unit_bytes, len(plain) - done)
        begin = stored + LENGTH_BYTES
        if stored + most > len(room):
            raise ValueError(f"no room for another unit in {len(room)} bytes")
        if system is None:
            packed = codec.compress(plain[done : done + unit_bytes])
            length = len(packed)
            view[begin : begin + length] = packed
        else:
            length = system.compress_at(source + done, size_bytes, target + begin, most - LENGTH_BYTES)
        view[stored:begin] = length.to_bytes(LENGTH_BYTES, "little")
        end = begin + length
        stored = end + -end % PAGE_SIZE
        view[end:stored] = ZEROES[: stored - end]
        compressed += length
        if done + size_bytes - checked == CRC_UNITS * unit_bytes or done + size_bytes == len(plain):
            crc = crc32(plain_view[checked : done + size_bytes], crc)
            checked = done + size_bytes
    return stored, compressed, crc
