# SPDX-License-Identifier: GPL-2.0-or-later
"""The finding of a check."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from hibernaut.memory.page import Frames
from hibernaut.memory.ranges import FrameRanges

__all__ = ["Violation", "violations_at"]


@dataclass(frozen=True)
class Violation:
    """Something that is not as it should be.

    Attributes:
        invariant: the name of the invariant.
        what: what is wrong, a clause.
        start_pfn: first frame concerned.
        pages: how many frames from there on.
    """

    invariant: str
    what: str
    start_pfn: int
    pages: int

    def __str__(self) -> str:
        pages = "1 page" if self.pages == 1 else f"{self.pages} pages"
        return f"{self.invariant}: {self.what}: {pages} from frame {self.start_pfn:#x}"


def violations_at(check: str, what: str, pfns: Frames | Iterable[int]) -> tuple[Violation, ...]:
    """Return one violation for each range of frames, given in ascending order."""
    frames = np.array(pfns, dtype=np.int64)
    return tuple(Violation(check, what, start, pages) for start, pages in FrameRanges.of_frames(frames))
