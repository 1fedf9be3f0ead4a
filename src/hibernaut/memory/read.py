# SPDX-License-Identifier: GPL-2.0-or-later
"""Physical memory in a volume that cannot be mapped, such as a virtual disk: read piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from hibernaut.errors import FormatError
from hibernaut.memory.mapped import MappedMemory, Pieces, first_wins, merged
from hibernaut.memory.page import CHUNK_PAGES, PAGE_SIZE
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.ranges import FrameRanges
from hibernaut.parallel import ordered_results
from hibernaut.volumes.files import PlainFile
from hibernaut.volumes.volume import close_volume

if TYPE_CHECKING:
    from hibernaut.memory.page import BoolArray, Bytes
    from hibernaut.volumes.volume import Volume

__all__ = ["ReadMemory", "memory_in"]

MOST_PAGES = 1 << 12
"""Pages that one call of `ReadMemory.run` returns: 16 MiB."""


def memory_in(volume: Volume, pieces: Pieces) -> PhysicalMemory:
    """Return the frames that lie in a volume: mapped where it is a file, else read.

    Args:
        volume: the volume; closing the memory closes it.
        pieces: places of the frames, in any order, all inside the volume; where two overlap, the earlier wins.

    Raises:
        FormatError: the file cannot be mapped (some files of /proc).
    """
    return MappedMemory(volume, pieces) if isinstance(volume, PlainFile) else ReadMemory(volume, pieces)


class ReadMemory(PhysicalMemory):
    """Frames of a volume, read when they are asked for. Arguments as for `memory_in`. Safe for several threads."""

    def __init__(self, volume: Volume, pieces: Pieces) -> None:
        self._volume = volume
        self._pieces = first_wins(pieces)
        self._ranges = merged(self._pieces)

    @property
    def ranges(self) -> FrameRanges:
        """Frames that exist."""
        return self._ranges

    def run(self, pfn: int, nr_pages: int) -> Bytes:
        """See `PhysicalMemory.run`: at most 4096 pages of the one piece that holds `pfn`.

        Raises:
            FormatError: the volume ends early, or is damaged there.
        """
        index = int(np.searchsorted(self._pieces[:, 0], pfn, side="right")) - 1
        if index < 0 or nr_pages <= 0:
            return np.empty((0, PAGE_SIZE), dtype=np.uint8)
        start, length, offset = self._pieces[index].tolist()
        count = max(0, min(nr_pages, start + length - pfn, MOST_PAGES))
        return self._read(offset + (pfn - start) * PAGE_SIZE, np.empty((count, PAGE_SIZE), dtype=np.uint8))

    def gather(self, pfns: ArrayLike, out: Bytes | None = None) -> tuple[Bytes, BoolArray]:
        """See `PhysicalMemory.gather`: one read for each run of frames that are neighbours in the volume."""
        frames = np.asarray(pfns, dtype=np.int64)
        pages = np.empty((len(frames), PAGE_SIZE), dtype=np.uint8) if out is None else out
        if not len(self._pieces) or not len(frames):
            pages[:] = 0
            return pages, np.zeros(len(frames), dtype=np.bool_)
        starts, lengths, offsets = self._pieces.T
        index = np.maximum(np.searchsorted(starts, frames, side="right") - 1, 0)
        within = frames - starts[index]
        present = (within >= 0) & (within < lengths[index])
        position = offsets[index] + within * PAGE_SIZE
        pages[~present] = 0
        rows = np.flatnonzero(present)
        apart = (np.diff(rows) != 1) | (np.diff(position[rows]) != PAGE_SIZE)
        for some in np.split(rows, np.flatnonzero(apart) + 1):
            if len(some):
                self._read(int(position[some[0]]), pages[some[0] : some[-1] + 1])
        return pages, present

    def blocks(self, nr_pages: int = CHUNK_PAGES) -> Iterator[tuple[int, Bytes]]:
        """See `PhysicalMemory.blocks`; the next blocks are read while one is used."""
        count = min(nr_pages, MOST_PAGES)

        def task(first: int, some: int) -> Callable[[], tuple[int, Bytes]]:
            return lambda: (first, self.run(first, some))

        yield from ordered_results(
            task(first, min(count, start + length - first))
            for start, length, _ in self._pieces.tolist()
            for first in range(start, start + length, count)
        )

    def _read(self, offset: int, pages: Bytes) -> Bytes:
        got = self._volume.pread_into(offset, pages.reshape(-1))
        if got < pages.nbytes:
            raise FormatError(
                f"the volume ends {pages.nbytes - got} bytes early",
                source=self._volume.name,
                offset=offset,
                advice="copy the whole disk again: this one is cut",
            )
        return pages

    def close(self) -> None:
        """Close the volume, if it can be closed."""
        close_volume(self._volume)
