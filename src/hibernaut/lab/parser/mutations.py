# SPDX-License-Identifier: GPL-2.0-or-later
"""Mutations of an image by its structure: one field, one entry, one length, one byte is another one.

A mutation says which part it changes, which one of them, and to what; so it can be repeated on the same image. Changes
inside compressed units come in two kinds: as they are, so that the CRC tells, and with the CRC of the header made
right, as the writer of such an image would make it. Several mutations at once change different bytes.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np

from hibernaut.errors import HibernautError
from hibernaut.memory.page import PAGE_SIZE, Pfns
from hibernaut.swsusp import Image
from hibernaut.swsusp.codecs import codec_named
from hibernaut.swsusp.declarations import HEADER, INFO, LENGTH_BYTES, MAP_ENTRIES
from hibernaut.swsusp.stream import Crc

__all__ = ["MOST_CHANGES", "PARTS", "Mutation", "Mutator", "Write"]

Write = tuple[int, bytes]
"""A byte of the disk, and what is written there."""
WORD_BYTES = 8
"""Size of an entry or link of the map, of a length, and of a listed frame."""
STRUCTURES = {"header": HEADER, "info": INFO}
MOST_CHANGES = 4
"""Mutations of an image that has several."""
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
        was: number before; None of a byte, or if it is not known.
    """

    part: str
    index: int
    value: int
    mends_crc: bool = False
    was: int | None = field(default=None, compare=False)

    def __str__(self) -> str:
        crc = ", CRC made right" if self.mends_crc else ""
        if self.part in _BYTES:
            return f"{self.part} {self.index}, byte {self.value >> 8:#x}: bits {self.value & 0xFF:#04x} flipped{crc}"
        which = "" if self.part in _FIELDS else f" {self.index}"
        return f"{self.part}{which} = {self.value:#x}{crc}"


@dataclass(frozen=True)
class _Patch:
    """The writes of one mutation.

    Attributes:
        writes: the writes, without that of the CRC.
        unit: unit whose uncompressed bytes change; None if none do.
        plain: its uncompressed bytes; None if it does not decompress any more.
    """

    writes: list[Write]
    unit: int | None = None
    plain: bytes | None = None


class Mutator:
    """Mutations of one image, drawn by a seed or repeated.

    Args:
        image: the image, open; compressed or not.
        seed: seed of the choices.
    """

    def __init__(self, image: Image, seed: int = 0) -> None:
        self.image = image
        self._codec = None if image.compressor == "none" else codec_named(image.compressor)
        self._chance = random.Random(seed)  # nosec B311 # reproducible mutations

    def __iter__(self) -> Iterator[Mutation]:
        """Yield mutations without end, each part as often as any other; none that leaves the image as it is."""
        while True:
            for part in PARTS:
                if mutation := self._one(part):
                    yield mutation

    def several(self) -> Iterator[tuple[Mutation, ...]]:
        """Yield two to four mutations at once, without end, of parts drawn at random; no two share a byte or unit."""
        while True:
            wanted = self._chance.randint(2, MOST_CHANGES)
            drawn: list[Mutation] = []
            for part in self._chance.choices(list(PARTS), k=8 * MOST_CHANGES):
                mutation = self._one(part)
                if mutation is not None and self._fits(*drawn, mutation):
                    drawn.append(mutation)
                if len(drawn) == wanted:
                    yield tuple(drawn)
                    break

    def writes(self, *mutations: Mutation) -> list[Write]:
        """Return what mutations write to the disk, each at its place in the image as it was.

        Raises:
            HibernautError: the image has no such part, the changed unit does not fit into its blocks, or two mutations
                are to the same byte or unit.
        """
        mends_crc = any(one.mends_crc for one in mutations)
        patches = []
        for one in mutations:
            if one.part not in PARTS or not 0 <= one.index < self._count(one.part):
                raise HibernautError(f"the image has no {one.part} {one.index}")
            patches.append(PARTS[one.part](self, one))
        writes = [write for patch in patches for write in patch.writes]
        if mends_crc:
            writes += self._crc(patches)
        taken = sorted((at, at + len(data)) for at, data in writes)
        units = [patch.unit for patch in patches if patch.unit is not None]
        if any(end > begin for (_, end), (begin, _) in pairwise(taken)) or len(set(units)) < len(units):
            raise HibernautError("two changes are to the same byte or unit")
        return writes

    def _fits(self, *mutations: Mutation) -> bool:
        """Return whether mutations can be made at once, and change the image."""
        try:
            writes = self.writes(*mutations)
        except HibernautError:
            return False
        return any(self.image.area.file.pread(at, len(data)) != data for at, data in writes)

    def _one(self, part: str) -> Mutation | None:
        """Return a mutation of a part that changes the image; None if the image does not have the part."""
        for _ in range(100):
            mutation = self._drawn(part)
            if mutation is not None and self._fits(mutation):
                return mutation
        return None

    def _drawn(self, part: str) -> Mutation | None:
        count = self._count(part)
        if not count:
            return None
        index = self._chance.randrange(count)
        mends = part in _INSIDE and self._codec is not None and self._chance.random() < 0.75
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
                self._chance.choice(self._related(part)),
            )
        )
        return Mutation(part, index, value & ((1 << 8 * self._width(part)) - 1), mends, old)

    def _related(self, part: str) -> Sequence[int]:
        """Return numbers that are near in meaning to that of a part: those of other ones, or the bounds of counts."""
        info = self.image.info
        if part == "info: image_pages":
            return [info.pages - less for less in range(3)]
        if part == "info: pages":
            return [*range(3), *(info.image_pages + more for more in range(3))]
        return [self._old(part, self._chance.randrange(self._count(part)))]

    # ---- the parts --------------------------------------------------------------------------------------------

    def _count(self, part: str) -> int:
        image = self.image
        return {
            "map entry": len(image.swap_map.entries),
            "map link": len(image.swap_map.map_blocks),
            "unit length": len(image.stream.index) if self._codec else 0,
            "compressed byte of unit": len(image.stream.index) if self._codec else 0,
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

    def number(self, mutation: Mutation) -> _Patch:
        """Return the write of a field, an entry, a link or a length."""
        if mutation.part in _FIELDS:
            at, size_bytes = self._field(mutation.part)
            return _Patch([(at, mutation.value.to_bytes(size_bytes, "little"))])
        places = {"map entry": self._entry_at, "map link": self._link_at, "unit length": self._unit_at}
        return _Patch([(places[mutation.part](mutation.index), struct.pack("<Q", mutation.value))])

    def compressed_byte(self, mutation: Mutation) -> _Patch:
        """Return the write of a byte of a unit as it is stored."""
        index, position, bits = mutation.index, mutation.value >> 8, mutation.value & 0xFF
        entry, within = divmod(LENGTH_BYTES + position, PAGE_SIZE)
        block = int(self.image.swap_map.entries[int(self.image.stream.index.first_entry[index]) + entry])
        at = self.image.area.offset_of(block) + within
        packed = bytearray(self._packed(index))
        packed[position] ^= bits
        return _Patch([(at, bytes([packed[position]]))], index, self._unpacked(index, bytes(packed)))

    def frame_number(self, mutation: Mutation) -> _Patch:
        """Return the writes of a list of frames with another number in it."""
        return self._plain(mutation.index * WORD_BYTES, struct.pack("<Q", mutation.value))

    def page_byte(self, mutation: Mutation) -> _Patch:
        """Return the writes of a page with another byte."""
        row = self.image.meta_rows + mutation.index
        unit, within = self.image.stream.place_of(row)
        position = within * PAGE_SIZE + (mutation.value >> 8)
        old = int(self.image.stream.decode(unit, unit + 1).pages.reshape(-1)[position])
        at = row * PAGE_SIZE + (mutation.value >> 8)
        return self._plain(at, bytes([old ^ mutation.value & 0xFF]))

    def _plain(self, at: int, data: bytes) -> _Patch:
        """Return the writes of other bytes in the stream, compressed anew."""
        stream, entries, area = self.image.stream, self.image.swap_map.entries, self.image.area
        if self._codec is None:
            row, within = divmod(at, PAGE_SIZE)
            return _Patch([(area.offset_of(int(entries[1 + row])) + within, data)])
        unit, within = divmod(at, stream.unit_rows * PAGE_SIZE)
        plain = bytearray(stream.decode(unit, unit + 1).pages.tobytes())
        plain[within : within + len(data)] = data
        packed = bytes(self._codec.compress(np.frombuffer(bytes(plain), dtype=np.uint8)))
        first, end = stream.index.first_entry[unit : unit + 2].tolist()
        room = (end - first) * PAGE_SIZE
        if LENGTH_BYTES + len(packed) > room:
            raise HibernautError(f"unit {unit} needs more than its {end - first} blocks then")
        stored = (struct.pack("<Q", len(packed)) + packed).ljust(room, b"\0")
        writes = [
            (area.offset_of(block), stored[number * PAGE_SIZE : (number + 1) * PAGE_SIZE])
            for number, block in enumerate(entries[first:end].tolist())
        ]
        return _Patch(writes, unit, bytes(plain))

    def _unpacked(self, unit: int, packed: bytes) -> bytes | None:
        """Return what a unit with other bytes decompresses to; None if it does not."""
        assert self._codec is not None
        first_row, end_row = self.image.stream.rows_of(unit, unit + 1)
        out = np.empty((end_row - first_row) * PAGE_SIZE, dtype=np.uint8)
        try:
            self._codec.decompress_into(np.frombuffer(packed, dtype=np.uint8), out)
        except ValueError:
            return None
        return out.tobytes()

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

    def _crc(self, patches: Sequence[_Patch]) -> list[Write]:
        """Return the write of the CRC that the stream has then. Raises HibernautError if a unit has none."""
        if self._codec is None:
            raise HibernautError("the image is not compressed: no CRC is compared")
        changed = {patch.unit: patch.plain for patch in patches if patch.unit is not None}
        total = Crc()
        for number, (crc, size_bytes) in enumerate(self._unit_crcs):
            plain = changed.get(number, b"")
            if plain is None:
                raise HibernautError(f"unit {number} does not decompress: it has no CRC")
            total.add(zlib.crc32(plain) if plain else crc, size_bytes)
        return [(self.image.area.crc32_at, struct.pack("<I", total.value))]


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

PARTS: dict[str, Callable[[Mutator, Mutation], _Patch]] = {
    **dict.fromkeys((*_FIELDS, "map entry", "map link", "unit length"), Mutator.number),
    _COMPRESSED_BYTE: Mutator.compressed_byte,
    "frame number": Mutator.frame_number,
    "byte of stored page": Mutator.page_byte,
}
"""The parts of an image that are mutated, and how."""
