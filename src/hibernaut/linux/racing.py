# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables that change while they are read: those of the running kernel, through /proc/kcore."""

from __future__ import annotations

import numpy as np

from hibernaut.linux.direct_map import DirectMap
from hibernaut.memory.physical import PhysicalMemory

__all__ = ["frames_that_changed", "racing_remark"]


def frames_that_changed(memory: PhysicalMemory, direct_map: DirectMap) -> int:
    """Read the tables of a direct map again, and return the number of frames whose state is another one by now.

    Raises:
        FormatError: the tables are damaged.
    """
    again = DirectMap.at(
        memory,
        direct_map.cr3,
        direct_map.levels,
        direct_map.base,
        direct_map.end_pfn,
        direct_map.tables.encryption,
    )
    one, other = direct_map.regions, again.regions
    edges = np.unique(np.concatenate((one.start_pfn, other.start_pfn, [direct_map.end_pfn])))
    edges = edges[edges <= direct_map.end_pfn]
    before, after = (
        found.state[np.searchsorted(found.start_pfn, edges[:-1], side="right") - 1] for found in (one, other)
    )
    return int(np.diff(edges)[before != after].sum())


def racing_remark(memory: PhysicalMemory, direct_map: DirectMap) -> str:
    """Return a sentence on the direct map of a running kernel. Raises FormatError as `frames_that_changed`."""
    changed = frames_that_changed(memory, direct_map)
    if not changed:
        return "memory of the running kernel: its direct map was read twice, and both times it was the same"
    return f"memory of the running kernel: {changed} pages of its direct map changed between two readings"
