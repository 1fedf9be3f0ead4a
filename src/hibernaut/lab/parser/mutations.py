# SPDX-License-Identifier: GPL-2.0-or-later
"""Mutations of an image by its structure: one field, one entry, one length, one byte is another one.

A mutation says which part it changes, which one of them, and to what; so it can be repeated on the same image. Changes
inside compressed units come in two kinds: as they are, so that the CRC tells, and with the CRC of the header made
right, as the writer of such an image would make it.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hibernaut.errors import HibernautError
from hibernaut.memory.page import PAGE_SIZE, Pfns
from hibernaut.swsusp import Image
from hibernaut.swsusp.codecs import codec_named
from hibernaut.swsusp.declarations import HEADER, INFO, LENGTH_BYTES, MAP_ENTRIES
from hibernaut.swsusp.stream import Crc

__all__ = ["PARTS", "Mutation", "Mutator", "Write"]

Write = tuple[int, bytes]
"""A byte of the disk, and what is written there."""
WORD_BYTES = 8
"""Size of an entry or link of the map, of a length, and of a listed frame."""
STRUCTURES = {"header": HEADER, "info": INFO}
WORDS = (0, 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 45) - 1, 1 << 63, (1 << 64) - 1)
"""Values at which counts, signs and shifts change."""


@dataclass(frozen=True)
class Mutation:
    """A change of an image.

    Attributes:
        part: name of what is changed, see `PARTS`.
        index: which one: entry, link, unit, frame or page, from 0 on; 0 for a field.
        value: what it becomes: the number; of a byte, its position and the bits to flip, `position << 8 | bits`.
        mends_crc: whether the CRC in the header is made right afterwards.
    """

    part: str
    index: int
    value: int
    mends_crc: bool = False

    def __str__(self) -> str:
        crc = ", CRC made right" if self.mends_crc else ""
        if self.part in _BYTES:
            return f"{self.part} {self.index}, byte {self.value >> 8:#x}: bits {self.value & 0xFF:#04x} flipped{crc}"
        which = "" if self.part in _FIELDS else f" {self.index}"
        return f"{self.part}{which} = {self.value:#x}{crc}"


class Mutator:
    """Mutations of one compressed image, drawn by a seed or repeated.

    Args:
        image: the image, open.
        seed: seed of the choices.

    Raises:
        HibernautError: the image is not compressed.
    """

    def __init__(self, image: Image, seed: int = 0) -> None:
        if image.compressor == "none":
            raise HibernautError("the image is not compressed; expected one with units")
        self.image = image
        self._codec = codec_named(image.compressor)
        self._chance = random.Random(seed)  # nosec B311 # reproducible mutations

    def __iter__(self) -> Iterator[Mutation]:
        """Yield mutations without end, each part as often as any other; none that leaves the image as it is."""
        while True:
            for part in PARTS:
                for _ in range(100):
                    mutation = self._drawn(part)
                    if mutation is not None and self._changes(mutation):
                        yield mutation
                        break

    def writes(self, mutation: Mutation) -> list[Write]:
        """Return what a mutation writes to the disk.

        Raises:
            HibernautError: the image has no such part, or the changed unit does not fit into its blocks.
        """
        if mutation.part not in PARTS or not 0 <= mutation.index < self._count(mutation.part):
            raise HibernautError(f"the image has no {mutation.part} {mutation.index}")
        return list(PARTS[mutation.part](self, mutation))

    def _changes(self, mutation: Mutation) -> bool:
        try:
            writes = self.writes(mutation)
        except HibernautError:
            return False
        return any(self.image.area.file.pread(at, len(data)) != data for at, data in writes)

    def _drawn(self, part: str) -> Mutation | None:
        count = self._count(part)
        if not count:
            return None
        index = self._chance.randrange(count)
        mends = part in _INSIDE and self._chance.random() < 0.75
        if part in _BYTES:
            most = self._byte_room(part, index)
            position = self._chance.randrange(most)
            return Mutation(part, index, position << 8 | self._chance.choice((1, 0x80, 0xFF)), mends)
        old = self._old(part, index)
        value = self._chance.choice(
            (
                self._chance.choice(WORDS),
                old + self._chance.choice((-1, 1)),
                old ^ 1 << self._chance.randrange(8 * self._width(part)),
                self._old(part, self._chance.randrange(count)),
            )
        )
        return Mutation(part, index, value & ((1 << 8 * self._width(part)) - 1), mends)

    # ---- the parts --------------------------------------------------------------------------------------------

    def _count(self, part: str) -> int:
        image = self.image
        return {
            "map entry": len(image.swap_map.entries),
            "map link": len(image.swap_map.map_blocks),
            "unit length": len(image.stream.index),
            "compressed byte of unit": len(image.stream.index),
            "frame number": image.saved_pages,
            "byte of stored page": image.stream.rows - image.meta_rows,
        }.get(part, 1)

    def _width(self, part: str) -> int:
        """Return the size of a number, bytes."""
        if part not in _FIELDS:
            return WORD_BYTES
        structure, name = _FIELDS[part]
        return STRUCTURES[structure][name].itemsize

    def _old(self, part: str, index: int) -> int:
        if part in _FIELDS:
            at, size_bytes = self._field(part)
            return int.from_bytes(self.image.area.file.pread(at, size_bytes), "little")
        if part == "frame number":
            return int(self._pfns[index])
        at = {"map entry": self._entry_at, "map link": self._link_at, "unit length": self._unit_at}[part](index)
        return int.from_bytes(self.image.area.file.pread(at, WORD_BYTES), "little")

    def _byte_room(self, part: str, index: int) -> int:
        return int(self.image.stream.index.compressed_bytes[index]) if part == _COMPRESSED_BYTE else PAGE_SIZE

    def _field(self, part: str) -> tuple[int, int]:
        """Return the byte of the disk at which a field lies, and its size."""
        structure, name = _FIELDS[part]
        fields = STRUCTURES[structure].fields
        assert fields is not None
        area = self.image.area
        block = area.header_block if structure == "header" else int(self.image.swap_map.entries[0])
        return area.offset_of(block) + fields[name][1], fields[name][0].itemsize

    def _entry_at(self, index: int) -> int:
        page, within = divmod(index, MAP_ENTRIES)
        return self.image.area.offset_of(int(self.image.swap_map.map_blocks[page])) + WORD_BYTES * within

    def _link_at(self, index: int) -> int:
        return self.image.area.offset_of(int(self.image.swap_map.map_blocks[index])) + WORD_BYTES * MAP_ENTRIES

    def _unit_at(self, index: int) -> int:
        first = int(self.image.stream.index.first_entry[index])
        return self.image.area.offset_of(int(self.image.swap_map.entries[first]))

    def number(self, mutation: Mutation) -> Iterator[Write]:
        """Yield the write of a field, an entry, a link or a length."""
        if mutation.part in _FIELDS:
            at, size_bytes = self._field(mutation.part)
            yield at, mutation.value.to_bytes(size_bytes, "little")
            return
        places = {"map entry": self._entry_at, "map link": self._link_at, "unit length": self._unit_at}
        yield places[mutation.part](mutation.index), struct.pack("<Q", mutation.value)

    def compressed_byte(self, mutation: Mutation) -> Iterator[Write]:
        """Yield the write of a byte of a unit as it is stored, and of the CRC if the unit still decompresses."""
        index, position, bits = mutation.index, mutation.value >> 8, mutation.value & 0xFF
        entry, within = divmod(LENGTH_BYTES + position, PAGE_SIZE)
        block = int(self.image.swap_map.entries[int(self.image.stream.index.first_entry[index]) + entry])
        at = self.image.area.offset_of(block) + within
        yield at, bytes([self.image.area.file.pread(at, 1)[0] ^ bits])
        if mutation.mends_crc:
            packed = bytearray(self._packed(index))
            packed[position] ^= bits
            unit = np.empty(self.image.stream.decode(index, index + 1).pages.nbytes, dtype=np.uint8)
            try:
                self._codec.decompress_into(np.frombuffer(bytes(packed), dtype=np.uint8), unit)
            except ValueError as error:
                raise HibernautError(f"unit {index} does not decompress: it has no CRC") from error
            yield from self._crc(index, unit.tobytes())

    def frame_number(self, mutation: Mutation) -> Iterator[Write]:
        """Yield the writes of a list of frames with another number in it."""
        yield from self._plain(mutation, mutation.index * WORD_BYTES, struct.pack("<Q", mutation.value))

    def page_byte(self, mutation: Mutation) -> Iterator[Write]:
        """Yield the writes of a page with another byte."""
        row = self.image.meta_rows + mutation.index
        unit, within = self.image.stream.place_of(row)
        position = within * PAGE_SIZE + (mutation.value >> 8)
        old = int(self.image.stream.decode(unit, unit + 1).pages.reshape(-1)[position])
        at = row * PAGE_SIZE + (mutation.value >> 8)
        yield from self._plain(mutation, at, bytes([old ^ mutation.value & 0xFF]))

    def _plain(self, mutation: Mutation, at: int, data: bytes) -> Iterator[Write]:
        """Yield the writes of other bytes in the stream, compressed anew."""
        stream = self.image.stream
        unit, within = divmod(at, stream.unit_rows * PAGE_SIZE)
        plain = bytearray(stream.decode(unit, unit + 1).pages.tobytes())
        plain[within : within + len(data)] = data
        packed = bytes(self._codec.compress(np.frombuffer(bytes(plain), dtype=np.uint8)))
        first, end = stream.index.first_entry[unit : unit + 2].tolist()
        room = (end - first) * PAGE_SIZE
        if LENGTH_BYTES + len(packed) > room:
            raise HibernautError(f"unit {unit} needs more than its {end - first} blocks then")
        stored = (struct.pack("<Q", len(packed)) + packed).ljust(room, b"\0")
        for number, block in enumerate(self.image.swap_map.entries[first:end].tolist()):
            yield self.image.area.offset_of(block), stored[number * PAGE_SIZE : (number + 1) * PAGE_SIZE]
        if mutation.mends_crc:
            yield from self._crc(unit, bytes(plain))

    def _packed(self, unit: int) -> bytes:
        index, area = self.image.stream.index, self.image.area
        first, end = index.first_entry[unit : unit + 2].tolist()
        raw = np.empty((end - first) * PAGE_SIZE, dtype=np.uint8)
        area.read_blocks(self.image.swap_map.entries[first:end], raw)
        return raw[LENGTH_BYTES : LENGTH_BYTES + int(index.compressed_bytes[unit])].tobytes()

    @cached_property
    def _pfns(self) -> Pfns:
        """All listed frames, shape (n,)."""
        return self.image.pfns

    @cached_property
    def _unit_crcs(self) -> Sequence[tuple[int, int]]:
        """CRC and size in bytes of each unit."""
        stream = self.image.stream
        found = []
        for unit in range(len(stream.index)):
            batch = stream.decode(unit, unit + 1)
            found.append((batch.crc32, batch.pages.nbytes))
        return found

    def _crc(self, unit: int, plain: bytes) -> Iterator[Write]:
        """Yield the write of the CRC that the stream has with another unit."""
        total = Crc()
        for number, (crc, size_bytes) in enumerate(self._unit_crcs):
            total.add(zlib.crc32(plain) if number == unit else crc, size_bytes)
        yield self.image.area.crc32_at, struct.pack("<I", total.value)


_FIELDS = {
    "header: hw_sig": ("header", "hw_sig"),
    "header: crc32": ("header", "crc32"),
    "header: image": ("header", "image"),
    "header: flags": ("header", "flags"),
    "header: orig_sig": ("header", "orig_sig"),
    "header: sig": ("header", "sig"),
    "info: jump_address": ("info", "jump_address"),
    "info: jump_address_phys": ("info", "jump_address_phys"),
    "info: cr3": ("info", "cr3"),
    "info: magic": ("info", "magic"),
    "info: e820_checksum": ("info", "e820_checksum"),
    "info: version_code": ("info", "version_code"),
    "info: num_physpages": ("info", "num_physpages"),
    "info: cpus": ("info", "cpus"),
    "info: image_pages": ("info", "image_pages"),
    "info: pages": ("info", "pages"),
    "info: size": ("info", "size"),
}
_COMPRESSED_BYTE = "compressed byte of unit"
_BYTES = frozenset({_COMPRESSED_BYTE, "byte of stored page"})
_INSIDE = _BYTES | {"frame number"}
"""Parts that the CRC covers."""

PARTS: dict[str, Callable[[Mutator, Mutation], Iterator[Write]]] = {
    **dict.fromkeys((*_FIELDS, "map entry", "map link", "unit length"), Mutator.number),
    _COMPRESSED_BYTE: Mutator.compressed_byte,
    "frame number": Mutator.frame_number,
    "byte of stored page": Mutator.page_byte,
}
"""The parts of an image that are mutated, and how."""
