# SPDX-License-Identifier: GPL-2.0-or-later
"""Golden RAM dumps read by pyelftools: independent of the library's own reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from elftools.elf.elffile import ELFFile

from hibernaut.memory.segments import Segment, SegmentMemory


def golden_memory(path: Path) -> SegmentMemory:
    """The PT_LOAD segments by physical address, mapped."""
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    segments = []
    with path.open("rb") as file:
        for segment in ELFFile(file).iter_segments("PT_LOAD"):
            pages = segment["p_filesz"] // 4096
            first = segment["p_offset"]
            segments.append(Segment(segment["p_paddr"] >> 12, raw[first : first + pages * 4096].reshape(pages, 4096)))
    return SegmentMemory(segments)
