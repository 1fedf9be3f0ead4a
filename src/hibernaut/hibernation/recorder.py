# SPDX-License-Identifier: GPL-2.0-or-later
"""The recorder: copied bytes that differ from the memory below, kept while pages are copied."""

from __future__ import annotations

import numpy as np

from hibernaut.linux.machine import Machine
from hibernaut.memory.page import Bytes
from hibernaut.memory.ranges import FrameRanges

__all__ = ["Recorder"]


class Recorder:
    """Copied bytes that differ from the machine's memory, kept while the copy runs.

    Every listed page below `cursor` is copied. Before a write to a page below it, the recorder keeps the copied bytes;
    a write above it takes effect before the page is copied. Plainly present pages therefore cost nothing.

    Attributes:
        cursor: page frame number of the page being copied.
        kept: copied bytes that the frame does not hold any more, or never held, by page frame number.
        skipped: page frame numbers that the way could not reach.
        written: page frame numbers that hibernation itself writes to.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.cursor = 0
        self.kept: dict[int, Bytes] = {}
        self.skipped: list[int] = []
        self.written: set[int] = set()

    def fork(self, machine: Machine) -> Recorder:
        """Return an independent recorder in the same state, for a fork of the machine."""
        twin = Recorder(machine)
        twin.cursor, twin.kept = self.cursor, self.kept.copy()
        twin.skipped, twin.written = self.skipped.copy(), self.written.copy()
        return twin

    def before_write(self, pfn: int) -> None:
        """Keep the copied bytes of a page that is about to be written to."""
        self.written.add(pfn)
        if pfn < self.cursor and pfn not in self.kept:
            page = self._machine.memory.page(pfn)
            if page is not None:
                self.kept[pfn] = page.copy()

    def copied(self, pfn: int, page: Bytes) -> None:
        """Record a page that the way copied: keep its bytes if the frame itself holds others."""
        own = self._machine.memory.page(pfn)
        if own is None or not np.array_equal(own, page):
            self.kept[pfn] = page

    def differing(self, frames: FrameRanges) -> dict[int, Bytes]:
        """Return the copied bytes of listed frames that differ from the base's, by page frame number."""
        memory = self._machine.memory
        later = set(memory.written.tolist()) - self.kept.keys()
        candidates = np.array(sorted(self.kept.keys() | later), dtype=np.int64)
        changed = {}
        for pfn in candidates[frames.contains(candidates)].tolist():
            page = self.kept.get(pfn)
            if page is None:
                page = memory.page(pfn)
            below = memory.base.page(pfn)
            if page is not None and (below is None or not np.array_equal(page, below)):
                changed[pfn] = _frozen(page)
        return changed


def _frozen(page: Bytes) -> Bytes:
    copy = page.copy()
    copy.flags.writeable = False
    return copy
