# SPDX-License-Identifier: GPL-2.0-or-later
"""The stream of a new image: meta pages and stored frames, compressed in batches that fill whole blocks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hibernaut.errors import HibernautError
from hibernaut.memory.page import PAGE_SIZE, BoolArray, Bytes, Pfns, aligned_pages
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.parallel import ordered_results
from hibernaut.swsusp.codecs import Codec
from hibernaut.swsusp.crc32 import crc32
from hibernaut.swsusp.declarations import UNIT_BYTES, UNIT_PAGES
from hibernaut.swsusp.stream import BATCH_UNITS
from hibernaut.swsusp.units import pack_units, packed_room

__all__ = ["BATCH_PAGES", "PackedBatch", "Rooms", "StreamRows", "batch_room", "pack_batch", "zero_frames"]

BATCH_PAGES = BATCH_UNITS * UNIT_PAGES


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """A batch of the stream, ready to be written.

    Attributes:
        data: bytes of whole blocks, shape (n,), in a room of `Rooms`.
        pages: number of pages of the stream.
        crc32: CRC of the uncompressed pages.
        units: number of compressed units, 0 if not compressed.
        compressed_bytes: sum of their compressed lengths.
        room: the room, to be given back once the data is written.
    """

    data: Bytes
    pages: int
    crc32: int
    units: int
    compressed_bytes: int
    room: Bytes

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.data) // PAGE_SIZE


class Rooms:
    """Arrays for batches between their compression and their write, used again and again. Safe for several threads.

    Args:
        size_bytes: size of each.
    """

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._free: list[Bytes] = []

    def take(self) -> Bytes:
        """Return an array that is not in use, shape (size_bytes,), which begins at a page."""
        try:
            return self._free.pop()
        except IndexError:
            return aligned_pages(-(-self._size_bytes // PAGE_SIZE)).reshape(-1)

    def give_back(self, room: Bytes) -> None:
        """Let another batch have an array."""
        self._free.append(room)


class StreamRows:
    """Rows of the stream: meta pages, then the stored frames. Safe to use from several threads.

    Args:
        memory: memory with the frames' bytes.
        meta: meta pages, shape (m, 4096).
        stored: frames with a data page, ascending, shape (n,).
    """

    def __init__(self, memory: PhysicalMemory, meta: Bytes, stored: Pfns) -> None:
        self._memory = memory
        self._meta = meta
        self._stored = stored
        self._buffers = threading.local()

    def __len__(self) -> int:
        return len(self._meta) + len(self._stored)

    def batch(self, first: int, last: int, out: Bytes | None = None) -> Bytes:
        """Return rows `first` to `last` - 1, at most `BATCH_PAGES`, shape (n, 4096), C-contiguous.

        The result is a view of memory where the frames are contiguous there, else `out`, or without it a buffer of
        this thread, which the next call overwrites.

        Raises:
            HibernautError: a frame has disappeared from memory.
        """
        meta = len(self._meta)
        if first >= meta:
            frames = self._stored[first - meta : last - meta]
            if int(frames[-1]) - int(frames[0]) == len(frames) - 1:
                view = self._memory.run(int(frames[0]), len(frames))
                if len(view) == len(frames) and view.flags.c_contiguous:
                    return view
        return self._gathered(first, last, self._buffer(last - first) if out is None else out)

    def _buffer(self, rows: int) -> Bytes:
        if not hasattr(self._buffers, "pages"):
            self._buffers.pages = np.empty((BATCH_PAGES, PAGE_SIZE), dtype=np.uint8)
        pages: Bytes = self._buffers.pages[:rows]
        return pages

    def _gathered(self, first: int, last: int, pages: Bytes) -> Bytes:
        meta = len(self._meta)
        of_meta = max(0, min(last, meta) - first)
        pages[:of_meta] = self._meta[first : first + of_meta]
        wanted = self._stored[max(0, first - meta) : max(0, last - meta)]
        _, present = self._memory.gather(wanted, pages[of_meta:])
        if not present.all():
            raise HibernautError(f"frame {wanted[~present][0]:#x} disappeared from memory while it was being saved")
        return pages


def batch_room(codec: Codec | None) -> int:
    """Return the bytes that a batch takes at most."""
    return BATCH_PAGES * PAGE_SIZE if codec is None else packed_room(codec, BATCH_UNITS, UNIT_BYTES)


def pack_batch(rows: StreamRows, first: int, last: int, codec: Codec | None, rooms: Rooms) -> PackedBatch:
    """Return rows `first` to `last` - 1 packed into whole blocks, compressed if there is a codec."""
    room = rooms.take()
    if codec is None:
        data = room[: (last - first) * PAGE_SIZE]
        pages = rows.batch(first, last, data.reshape(-1, PAGE_SIZE))
        if pages.ctypes.data != data.ctypes.data:
            data[:] = pages.reshape(-1)
        return PackedBatch(data, last - first, crc32(data), 0, 0, room)
    flat = rows.batch(first, last).reshape(-1)
    stored_bytes, compressed_bytes, crc = pack_units(codec, flat, UNIT_BYTES, room)
    units = -(-(last - first) // UNIT_PAGES)
    return PackedBatch(room[:stored_bytes], last - first, crc, units, compressed_bytes, room)


def zero_frames(memory: PhysicalMemory, pfns: Pfns) -> BoolArray:
    """Return which frames contain only zeroes, shape as given."""

    def task(first: int) -> Callable[[], BoolArray]:
        def is_zero() -> BoolArray:
            pages, _ = memory.gather(pfns[first : first + BATCH_PAGES])
            return np.asarray(~pages.view(np.uint64).any(axis=1), dtype=np.bool_)

        return is_zero

    return np.concatenate(list(ordered_results(map(task, range(0, len(pfns), BATCH_PAGES)))))
