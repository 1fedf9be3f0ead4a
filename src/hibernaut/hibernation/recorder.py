# SPDX-License-Identifier: GPL-2.0-or-later
"""The recorder: which copied bytes differ from the memory below, noted while pages are copied."""

from __future__ import annotations

import numpy as np

from hibernaut.linux.machine import Machine
from hibernaut.memory.page import Bytes
from hibernaut.memory.ranges import FrameRanges

__all__ = ["Recorder"]


class Recorder:
    """What differs from the base, kept while the copy goes on.

    Everything below `cursor` is copied. A write to a frame below it must not change the copy, so its bytes are kept
    first; a write above it is seen by the copy to come. So neighbouring plain pages cost nothing, however many.

    Attributes:
        cursor: the frame whose turn it is.
        kept: copied bytes that the frame itself does not hold any more, or never held.
        skipped: frames that could not be reached.
        written: frames that hibernating itself wrote to.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.cursor = 0
        self.kept: dict[int, Bytes] = {}
        self.skipped: list[int] = []
        self.written: set[int] = set()

    def fork(self, machine: Machine) -> Recorder:
        """The same for a twin of the machine."""
        twin = Recorder(machine)
        twin.cursor, twin.kept = self.cursor, self.kept.copy()
        twin.skipped, twin.written = self.skipped.copy(), self.written.copy()
        return twin

    def before_write(self, pfn: int) -> None:
        """A frame is about to be written to: what was copied of it is kept."""
        self.written.add(pfn)
        if pfn < self.cursor and pfn not in self.kept:
            page = self._machine.memory.frame(pfn)
            if page is not None:
                self.kept[pfn] = page.copy()

    def copied(self, pfn: int, page: Bytes) -> None:
        """One page that did not come by the plain way: kept if it is not what the frame itself holds by now."""
        own = self._machine.memory.frame(pfn)
        if own is None or not np.array_equal(own, page):
            self.kept[pfn] = page

    def differing(self, frames: FrameRanges) -> dict[int, Bytes]:
        """The copied bytes of every listed frame that differ from the base's."""
        memory = self._machine.memory
        later = set(memory.written.tolist()) - self.kept.keys()
        candidates = np.array(sorted(self.kept.keys() | later), dtype=np.int64)
        changed = {}
        for pfn in candidates[frames.contains(candidates)].tolist():
            page = self.kept.get(pfn)
            if page is None:
                page = memory.frame(pfn)
            below = memory.base.frame(pfn)
            if page is not None and (below is None or not np.array_equal(page, below)):
                changed[pfn] = _frozen(page)
        return changed


def _frozen(page: Bytes) -> Bytes:
    copy = page.copy()
    copy.flags.writeable = False
    return copy
