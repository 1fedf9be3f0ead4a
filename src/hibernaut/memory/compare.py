# SPDX-License-Identifier: GPL-2.0-or-later
"""Two memories compared, page frame by page frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.memory.page import CHUNK_PAGES, Pfns
from hibernaut.memory.ranges import FrameRanges

if TYPE_CHECKING:
    from hibernaut.memory.physical import PhysicalMemory

__all__ = ["MemoryDifference", "compare_memory"]


@dataclass(frozen=True, eq=False)
class MemoryDifference:
    """The difference between two memories; every frame that either has is in one of these.

    Attributes:
        equal: frames that both have, with the same bytes.
        different: frames that both have, with other bytes.
        only_first: frames that the first has alone.
        only_second: frames that the second has alone.
    """

    equal: FrameRanges
    different: FrameRanges
    only_first: FrameRanges
    only_second: FrameRanges


def compare_memory(
    first: PhysicalMemory, second: PhysicalMemory, progress: Callable[[int], None] | None = None
) -> MemoryDifference:
    """Compare two memories; each is read once, and memory stays bounded.

    Args:
        first: the one.
        second: the other.
        progress: called with the number of frames compared since the last call.
    """
    common = first.ranges.within(second.ranges)
    found: list[Pfns] = [np.empty(0, dtype=np.int64)]
    for pfns in common.chunks(CHUNK_PAGES):
        ours, _ = first.gather(pfns)
        theirs, _ = second.gather(pfns)
        found.append(pfns[(ours.view(np.uint64) != theirs.view(np.uint64)).any(axis=1)])
        if progress:
            progress(len(pfns))
    different = FrameRanges.of_pfns(np.concatenate(found))
    return MemoryDifference(
        equal=common.without(different),
        different=different,
        only_first=first.ranges.without(second.ranges),
        only_second=second.ranges.without(first.ranges),
    )
