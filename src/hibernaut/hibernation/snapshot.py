# SPDX-License-Identifier: GPL-2.0-or-later
"""The snapshot: a list of frames and the bytes that were copied of each, also as physical memory."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from hibernaut.errors import HibernationRefused, HibernautError
from hibernaut.linux.allocator import Allocation
from hibernaut.linux.machine import Machine
from hibernaut.memory.page import CHUNK_PAGES, PAGE_SIZE, BoolArray, Bytes, Frames
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.ranges import FrameRanges, rows_among

__all__ = ["Snapshot", "SnapshotMemory"]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A list of frames and what was copied of each: what a writer puts in an image.

    Attributes:
        frames: the list.
        base: memory in which every frame not in `changed` has the bytes that were copied.
        changed: what was copied of the frames for which that is not so; bytes of shape (4096,).
        written: the frames that hibernating itself wrote to (page tables, the allocator's own), ascending, listed or
            not. Their saved bytes may differ from what they held when it began, depending on when they were copied.
        skipped: frames that are listed and were not copied: the way could not reach them. Ascending.
        way: name of the way.
        machine: the machine as the copy left it; what a resumed one has in common with it is taken from there.
        allocations: page allocations since the snapshot was begun.
        log: every line of the copy, those of the model marked.
        error: why the copy ended early, where a way delivers it all the same (`write-anyway`: a mutant); else None.
    """

    frames: FrameRanges
    base: PhysicalMemory
    changed: Mapping[int, Bytes]
    written: Frames
    skipped: Frames
    way: str
    machine: Machine
    allocations: tuple[Allocation, ...]
    log: tuple[str, ...]
    error: HibernationRefused | None = None
    _changed_pfns: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_changed_pfns", sorted(self.changed))

    @cached_property
    def pfns(self) -> Frames:
        """The list as ascending int64, shape (n,): sized by the number of pages."""
        return self.frames.frames()

    @property
    def cr3(self) -> int:
        """Root of the page tables."""
        return self.machine.cr3

    @property
    def levels(self) -> int:
        """4 or 5."""
        return self.machine.levels

    def chunks(self, pages: int = CHUNK_PAGES) -> Iterator[tuple[Frames, Bytes]]:
        """Everything in order: (frames, bytes of shape (n, 4096)), n at most `pages`; the arrays are the caller's."""
        for pfns in self.frames.chunks(pages):
            content, present = self.base.gather(pfns)
            low = bisect.bisect_left(self._changed_pfns, int(pfns[0]))
            high = bisect.bisect_right(self._changed_pfns, int(pfns[-1]))
            for pfn in self._changed_pfns[low:high]:
                row = int(np.searchsorted(pfns, pfn))
                content[row] = self.changed[pfn]
                present[row] = True
            if not present.all():
                raise HibernautError(f"frame {int(pfns[~present][0]):#x} has vanished from the source")
            yield pfns, content

    def page(self, pfn: int) -> Bytes:
        """What was copied of one frame, shape (4096,). Raises KeyError if it is not on the list."""
        if not self.frames.end_of(pfn):
            raise KeyError(f"frame {pfn:#x} is not in the snapshot")
        changed = self.changed.get(pfn)
        page = self.base.frame(pfn) if changed is None else changed
        if page is None:
            raise HibernautError(f"frame {pfn:#x} has vanished from the source")
        return page

    @cached_property
    def memory(self) -> SnapshotMemory:
        """The snapshot as physical memory: exactly its frames."""
        return SnapshotMemory(self)


class SnapshotMemory(PhysicalMemory):
    """The memory that an image of a snapshot would hold."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._changed = sorted(snapshot.changed)
        self._changed_frames = np.array(self._changed, dtype=np.int64)
        self._ranges = snapshot.frames

    @property
    def ranges(self) -> FrameRanges:
        """The listed frames."""
        return self._ranges

    def run(self, pfn: int, pages: int) -> Bytes:
        """See `PhysicalMemory.run`."""
        end = self._ranges.end_of(pfn)
        if not end:
            return np.empty((0, PAGE_SIZE), dtype=np.uint8)
        changed = self._snapshot.changed.get(pfn)
        if changed is not None:
            return changed.reshape(1, PAGE_SIZE)[:pages]
        after = bisect.bisect_right(self._changed, pfn)
        if after < len(self._changed):
            end = min(end, self._changed[after])
        return self._snapshot.base.run(pfn, min(pages, end - pfn))

    def frame(self, pfn: int) -> Bytes | None:
        """See `PhysicalMemory.frame`."""
        if not self._ranges.end_of(pfn):
            return None
        changed = self._snapshot.changed.get(pfn)
        return self._snapshot.base.frame(pfn) if changed is None else changed

    def occupied(self) -> FrameRanges:
        """See `PhysicalMemory.occupied`: only what was copied otherwise is read."""
        others = FrameRanges.of_frames(self._changed_frames)
        held = [pfn for pfn, page in self._snapshot.changed.items() if page.any()]
        below = self._snapshot.base.occupied().without(others)
        return FrameRanges.of([*below, *FrameRanges.of_frames(sorted(held))]).within(self._ranges)

    def gather(self, pfns: ArrayLike, out: Bytes | None = None) -> tuple[Bytes, BoolArray]:
        """See `PhysicalMemory.gather`: the base's pages, then what was copied otherwise over them."""
        frames = np.asarray(pfns, dtype=np.int64)
        pages, present = self._snapshot.base.gather(frames, out)
        for row in rows_among(frames, self._changed_frames).tolist():
            pages[row] = self._snapshot.changed[int(frames[row])]
            present[row] = True
        present &= self._ranges.contains(frames)
        pages[~present] = 0
        return pages, present
