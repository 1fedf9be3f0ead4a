# SPDX-License-Identifier: GPL-2.0-or-later
"""Gaps in physical memory that a raw dump leaves out: all that follows lies in the file at a lower offset.

A PC has no RAM right below 4 GiB, where its devices are. VMware's .vmem, a file that backs QEMU's memory and LiME's
`format=raw` hold RAM without such gaps, and do not say where they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from hibernaut.errors import FormatError
from hibernaut.memory import declarations as c
from hibernaut.memory.mapped import Pieces, whole_frames

__all__ = ["MemoryGap", "gaps_between", "pieces_around"]


@dataclass(frozen=True, order=True)
class MemoryGap:
    """Physical addresses without RAM, which a file of raw memory leaves out.

    Attributes:
        start: first byte, a physical address.
        size_bytes: its length.
    """

    start: int
    size_bytes: int

    @property
    def end(self) -> int:
        """One past the last byte."""
        return self.start + self.size_bytes

    def __str__(self) -> str:
        return f"{self.start:#x}+{self.size_bytes:#x}"


def gaps_between(ram: Iterable[tuple[int, int]]) -> tuple[MemoryGap, ...]:
    """Return the gaps before and between ranges of RAM, (first byte, one past the last) each, ascending."""
    bounds = [(0, 0), *ram]
    return tuple(MemoryGap(end, start - end) for (_, end), (start, _) in pairwise(bounds) if start > end)


def pieces_around(size_bytes: int, gaps: Sequence[MemoryGap], name: str) -> Pieces:
    """Return where the frames of a file of raw memory lie in it.

    A frame that a gap covers in part is left out: its other bytes are unknown.

    Args:
        size_bytes: length of the file.
        gaps: the gaps that it leaves out, in any order.
        name: name of the file, for messages.

    Raises:
        FormatError: two gaps overlap, one is empty or begins behind the end of the file's memory, or an address does
            not fit.
    """
    ordered = sorted(gaps)
    starts, ends = [0], list[int]()
    for gap in ordered:
        left = size_bytes - sum(end - start for start, end in zip(starts, ends, strict=False))
        if gap.size_bytes <= 0 or gap.start < starts[-1]:
            raise FormatError(
                f"gap {gap} is empty or overlaps the one before", source=name, advice="give gaps apart from each other"
            )
        if gap.start - starts[-1] >= left:
            raise FormatError(
                f"gap {gap} begins behind the end of the file's memory",
                source=name,
                expected=f"a start below {starts[-1] + left:#x}",
                advice="leave out --gap, or give the gap of this machine",
            )
        ends.append(gap.start)
        starts.append(gap.end)
    ends.append(starts[-1] + size_bytes - sum(end - start for start, end in zip(starts, ends, strict=False)))
    if ends[-1] > c.PADDR_LIMIT:
        raise FormatError(
            f"memory ends at {ends[-1]:#x}",
            source=name,
            expected="at most 52 bits",
            advice="give the gap of this machine",
        )
    paddrs, stops = np.array(starts, dtype=np.int64), np.array(ends, dtype=np.int64)
    sizes = stops - paddrs
    return whole_frames(paddrs, sizes, np.cumsum(sizes) - sizes)
