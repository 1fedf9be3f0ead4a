# SPDX-License-Identifier: GPL-2.0-or-later
"""The frames of a damaged image that can be read, as physical memory; the others do not exist."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from hibernaut.memory.page import CHUNK_PAGES, PAGE_SIZE, BoolArray, Bytes
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.ranges import FrameRanges
from hibernaut.memory.recent import RecentParts
from hibernaut.parallel import ordered_results
from hibernaut.swsusp.declarations import UNIT_PAGES
from hibernaut.swsusp.salvage.salvaged import SalvagedImage

__all__ = ["SalvagedMemory"]

CACHED_UNITS = 128
"""Decompressed units that random access keeps (16 MiB)."""
AT_A_TIME = 8192
"""Frames of one step of a walk through everything (32 MiB)."""


class SalvagedMemory(PhysicalMemory):
    """The frames that can be read, zero pages included. Safe to use from several threads."""

    def __init__(self, image: SalvagedImage) -> None:
        self.image = image
        self._ranges = FrameRanges.of_pfns(image.pfns)
        self._unit = RecentParts(image.rows.unit, CACHED_UNITS)

    @property
    def ranges(self) -> FrameRanges:
        """Frames that can be read."""
        return self._ranges

    def run(self, pfn: int, nr_pages: int) -> Bytes:
        """See `PhysicalMemory.run`; a run ends where a unit does."""
        image = self.image
        first = int(np.searchsorted(image.pfns, pfn))
        last = first + min(nr_pages, UNIT_PAGES)
        frames, zero, row = image.pfns[first:last], image.zero[first:last], image.row[first:last]
        if not len(frames) or frames[0] != pfn:
            return np.empty((0, PAGE_SIZE), dtype=np.uint8)
        step = np.zeros_like(row) if zero[0] else np.arange(len(row))
        together = (frames - pfn == np.arange(len(frames))) & (zero == zero[0]) & (row - row[0] == step)
        length = len(frames) if together.all() else int(np.argmin(together))
        if zero[0]:
            return np.zeros((length, PAGE_SIZE), dtype=np.uint8)
        unit, within = divmod(int(row[0]), UNIT_PAGES)
        return self._unit(unit)[within : within + length]

    def gather(self, pfns: ArrayLike, out: Bytes | None = None) -> tuple[Bytes, BoolArray]:
        """See `PhysicalMemory.gather`; each unit is read once, many at a time on all cores."""
        frames = np.asarray(pfns, dtype=np.int64)
        pages = np.empty((len(frames), PAGE_SIZE), dtype=np.uint8) if out is None else out
        place = self._ranges.rows(frames)
        present = place >= 0
        row = np.where(present, self.image.row[np.maximum(place, 0)], -1) if len(self.image.row) else place
        pages[row < 0] = 0
        which = np.flatnonzero(row >= 0)
        which = which[np.argsort(row[which], kind="stable")]
        units = row[which] // UNIT_PAGES
        bounds = [*np.flatnonzero(np.diff(units, prepend=-1)).tolist(), len(which)]

        def put(number: int) -> None:
            picked = which[bounds[number] : bounds[number + 1]]
            pages[picked] = self._unit(int(units[bounds[number]]))[row[picked] % UNIT_PAGES]

        if len(bounds) <= 3:
            for number in range(len(bounds) - 1):
                put(number)
        else:
            for _ in ordered_results(functools.partial(put, number) for number in range(len(bounds) - 1)):
                pass
        return pages, present

    def blocks(self, nr_pages: int = CHUNK_PAGES) -> Iterator[tuple[int, Bytes]]:
        """See `PhysicalMemory.blocks`; each unit is read once or twice, on all cores."""
        for first in range(0, len(self.image.pfns), AT_A_TIME):
            frames = self.image.pfns[first : first + AT_A_TIME]
            pages, _ = self.gather(frames)
            at = 0
            for start, length in FrameRanges.of_pfns(frames):
                for piece in range(0, length, nr_pages):
                    count = min(nr_pages, length - piece)
                    yield start + piece, pages[at : at + count]
                    at += count

    def close(self) -> None:
        """Close the image's file."""
        self.image.close()
