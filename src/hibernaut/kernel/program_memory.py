# SPDX-License-Identifier: GPL-2.0-or-later
"""The physical memory of a core that drgn has open."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hibernaut.memory.page import PAGE_SHIFT, PAGE_SIZE
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.ranges import FrameRanges
from hibernaut.swsusp.declarations import MAX_PFN

if TYPE_CHECKING:
    from typing import Any

    from hibernaut.memory.page import Bytes

__all__ = ["ProgramMemory"]


class ProgramMemory(PhysicalMemory):
    """Physical memory as a drgn `Program` reads it. Its ranges are unknown: all frames may exist.

    Args:
        program: the program.
    """

    def __init__(self, program: Any) -> None:
        self._program = program

    @property
    def ranges(self) -> FrameRanges:
        """All frames."""
        return FrameRanges.of([(0, MAX_PFN + 1)])

    def run(self, pfn: int, nr_pages: int) -> Bytes:
        """See `PhysicalMemory.run`."""
        import drgn

        if pfn < 0:
            return np.empty((0, PAGE_SIZE), dtype=np.uint8)
        for count in dict.fromkeys((nr_pages, 1)):
            try:
                found = self._program.read(pfn << PAGE_SHIFT, count * PAGE_SIZE, True)
            except drgn.FaultError:
                continue
            return np.frombuffer(found, dtype=np.uint8).reshape(count, PAGE_SIZE)
        return np.empty((0, PAGE_SIZE), dtype=np.uint8)
