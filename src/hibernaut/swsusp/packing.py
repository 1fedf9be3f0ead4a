# SPDX-License-Identifier: GPL-2.0-or-later
"""The stream of a new image: meta pages and stored frames, compressed in batches that fill whole blocks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hibernaut.errors import HibernautError
from hibernaut.memory.page import PAGE_SIZE, BoolArray, Bytes, Pfns
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.parallel import ordered_results
from hibernaut.swsusp.codecs import Codec
from hibernaut.swsusp.crc32 import crc32
from hibernaut.swsusp.declarations import LENGTH_BYTES, UNIT_BYTES, UNIT_PAGES
from hibernaut.swsusp.stream import BATCH_UNITS

__all__ = ["BATCH_PAGES", "PackedBatch", "StreamRows", "pack_batch", "zero_frames"]

BATCH_PAGES = BATCH_UNITS * UNIT_PAGES
ZEROES = memoryview(bytes(PAGE_SIZE))


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """A batch of the stream, ready to be written.

    Attributes:
        parts: buffers that together are whole blocks.
        blocks: number of blocks.
        pages: number of pages of the stream.
        crc32: CRC of the uncompressed pages.
        units: number of compressed units, 0 if not compressed.
        compressed_bytes: sum of their compressed lengths.
    """

    parts: tuple[bytes | memoryview, ...]
    blocks: int
    pages: int
    crc32: int
    units: int
    compressed_bytes: int


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

    def batch(self, first: int, last: int) -> Bytes:
        """Return rows `first` to `last` - 1, at most `BATCH_PAGES`, shape (n, 4096), C-contiguous.

        The result is a view of memory where the frames are contiguous there, else a buffer of this thread, which the
        next call overwrites.

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
        return self._gathered(first, last)

    def _gathered(self, first: int, last: int) -> Bytes:
        if not hasattr(self._buffers, "pages"):
            self._buffers.pages = np.empty((BATCH_PAGES, PAGE_SIZE), dtype=np.uint8)
        pages: Bytes = self._buffers.pages[: last - first]
        meta = len(self._meta)
        of_meta = max(0, min(last, meta) - first)
        pages[:of_meta] = self._meta[first : first + of_meta]
        wanted = self._stored[max(0, first - meta) : max(0, last - meta)]
        _, present = self._memory.gather(wanted, pages[of_meta:])
        if not present.all():
            raise HibernautError(f"frame {wanted[~present][0]:#x} disappeared from memory while it was being saved")
        return pages


def pack_batch(rows: StreamRows, first: int, last: int, codec: Codec | None) -> PackedBatch:
    """Return rows `first` to `last` - 1 packed into whole blocks, compressed if there is a codec."""
    pages = rows.batch(first, last)
    flat = pages.reshape(-1)
    crc = crc32(flat)
    if codec is None:
        return PackedBatch((flat.tobytes(),), len(pages), len(pages), crc, 0, 0)
    parts: list[bytes | memoryview] = []
    stored_bytes = compressed_bytes = 0
    for at in range(0, len(flat), UNIT_BYTES):
        packed = codec.compress(flat[at : at + UNIT_BYTES])
        length = len(packed)
        padding = -(LENGTH_BYTES + length) % PAGE_SIZE
        parts += (length.to_bytes(LENGTH_BYTES, "little"), packed, ZEROES[:padding])
        compressed_bytes += length
        stored_bytes += LENGTH_BYTES + length + padding
    units = -(-len(pages) // UNIT_PAGES)
    return PackedBatch(tuple(parts), stored_bytes // PAGE_SIZE, len(pages), crc, units, compressed_bytes)


def zero_frames(memory: PhysicalMemory, pfns: Pfns) -> BoolArray:
    """Return which frames contain only zeroes, shape as given."""

    def task(first: int) -> Callable[[], BoolArray]:
        def is_zero() -> BoolArray:
            pages, _ = memory.gather(pfns[first : first + BATCH_PAGES])
            return np.asarray(~pages.view(np.uint64).any(axis=1), dtype=np.bool_)

        return is_zero

    return np.concatenate(list(ordered_results(map(task, range(0, len(pfns), BATCH_PAGES)))))
