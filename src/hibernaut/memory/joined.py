# SPDX-License-Identifier: GPL-2.0-or-later
"""Frames that a file holds in several parts: the end of one range of bytes and the start of another."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hibernaut.errors import FormatError
from hibernaut.memory.mapped import MappedMemory, whole_frames
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.ranges import FrameRanges

if TYPE_CHECKING:
    from hibernaut.memory.page import Bytes
    from hibernaut.volumes.volume import Volume

__all__ = ["ByteRanges", "JoinedMemory", "Part", "memory_of", "split_frames"]


class Part(NamedTuple):
    """Bytes of a frame: from where to where in the frame, and their byte in the file."""

    start: int
    end: int
    offset: int


class ByteRanges(NamedTuple):
    """Ranges of physical bytes in a file: address, length and byte in the file of each, int64, shape (n,)."""

    paddrs: NDArray[np.int64]
    sizes_bytes: NDArray[np.int64]
    offsets: NDArray[np.int64]


def memory_of(plain: Volume, spans: ByteRanges) -> PhysicalMemory:
    """Return the memory of ranges of bytes in a file: whole frames, and those that several ranges hold together.

    Args:
        plain: the file; closing the memory closes it.
        spans: the ranges, all inside the file; where two overlap, the earlier wins.
    """
    whole = MappedMemory(plain, whole_frames(*spans))
    split = split_frames(spans, whole.ranges)
    return JoinedMemory(plain, whole, split) if split else whole


def split_frames(spans: ByteRanges, whole: FrameRanges) -> dict[int, tuple[Part, ...]]:
    """Return the frames that no range holds as a whole, but several together, by number, with their parts in order.

    Where parts overlap, the range that comes first wins. A frame with a byte that no range holds is left out.

    Args:
        spans: ranges of bytes.
        whole: frames that one range holds.
    """
    paddr, size_bytes, offset = spans
    end = paddr + size_bytes
    first, last = paddr // PAGE_SIZE, end // PAGE_SIZE
    heads = paddr % PAGE_SIZE > 0
    tails = (end % PAGE_SIZE > 0) & ~(heads & (last == first)) & (size_bytes > 0)
    heads &= size_bytes > 0
    frames = np.concatenate((first[heads], last[tails]))
    starts = np.concatenate((paddr[heads] % PAGE_SIZE, np.zeros(np.count_nonzero(tails), dtype=np.int64)))
    ends = np.concatenate((np.minimum(end[heads] - first[heads] * PAGE_SIZE, PAGE_SIZE), end[tails] % PAGE_SIZE))
    at = np.concatenate((offset[heads], offset[tails] + last[tails] * PAGE_SIZE - paddr[tails]))
    number = np.concatenate((np.flatnonzero(heads), np.flatnonzero(tails)))
    known, which, count = np.unique(frames, return_inverse=True, return_counts=True)
    wanted = (count > 1) & ~whole.contains(known)
    rows = np.flatnonzero(wanted[which])
    rows = rows[np.lexsort((number[rows], frames[rows]))]
    parts: dict[int, list[Part]] = {}
    for pfn, *part in zip(*(column[rows].tolist() for column in (frames, starts, ends, at)), strict=True):
        parts.setdefault(pfn, []).append(Part(*part))
    joined = ((pfn, _joined(some)) for pfn, some in parts.items())
    return {pfn: together for pfn, together in joined if together}


def _joined(parts: list[Part]) -> tuple[Part, ...]:
    """Return parts that make up a whole frame, in order and without overlaps; none if a byte is missing.

    Args:
        parts: in the order of their ranges.
    """
    chosen: list[Part] = []
    at = 0
    while at < PAGE_SIZE:
        here = next((part for part in parts if part.start <= at < part.end), None)
        if here is None:
            return ()
        earlier = parts[: parts.index(here)]
        end = min([here.end, *(part.start for part in earlier if part.start > at)])
        chosen.append(Part(at, end, here.offset + at - here.start))
        at = end
    return tuple(chosen)


class JoinedMemory(PhysicalMemory):
    """Frames of a file, some of which lie in it in several parts; those are put together when they are read.

    Args:
        plain: the file.
        whole: the frames that lie in one part; closing this memory closes it.
        split: the others, by number, see `split_frames`.
    """

    def __init__(self, plain: Volume, whole: MappedMemory, split: dict[int, tuple[Part, ...]]) -> None:
        self._plain = plain
        self._whole = whole
        self._split = split
        self._split_ranges = FrameRanges.of_pfns(sorted(split))
        self._ranges = FrameRanges.of([*whole.ranges, *self._split_ranges])

    @property
    def ranges(self) -> FrameRanges:
        """Frames that exist."""
        return self._ranges

    @property
    def stored(self) -> FrameRanges:
        """See `PhysicalMemory.stored`."""
        return FrameRanges.of([*self._whole.stored, *self._split_ranges])

    def run(self, pfn: int, nr_pages: int) -> Bytes:
        """See `PhysicalMemory.run`: a frame in several parts is a run of its own."""
        parts = self._split.get(pfn)
        if parts is None or nr_pages <= 0:
            return self._whole.run(pfn, nr_pages)
        page = b"".join(self._plain.pread(part.offset, part.end - part.start) for part in parts)
        if len(page) != PAGE_SIZE:
            raise FormatError("the file became shorter while it was read", source=self._plain.name)
        return np.frombuffer(page, dtype=np.uint8).reshape(1, PAGE_SIZE)

    def close(self) -> None:
        """Close the file."""
        self._whole.close()
