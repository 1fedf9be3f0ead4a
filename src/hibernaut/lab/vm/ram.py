# SPDX-License-Identifier: GPL-2.0-or-later
"""The RAM of a guest, shared with this process: pages are read while the guest is stopped, without a dump."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence

import numpy as np

from hibernaut.memory.page import PAGE_SIZE
from hibernaut.memory.segments import Segment, SegmentMemory

__all__ = ["SharedRam"]

MIB = 1 << 20
GIB_FRAMES = 1 << 18
LOW_FRAMES = 0xE0000000 // PAGE_SIZE
"""Frames from which on the `pc` machine splits its RAM (`pc_init1`, hw/i386/pc_piix.c of QEMU):"""
SPLIT_LOW_FRAMES, HIGH_START = 3 * GIB_FRAMES, 4 * GIB_FRAMES
"""the first 3 GiB stay, the rest begins at 4 GiB."""


class SharedRam:
    """RAM of a guest that does not run yet, in files without a name that both processes map.

    Args:
        parts_mib: sizes of its parts in MiB, by ascending address.

    Attributes:
        fds: descriptors that QEMU inherits.
        memory: the guest's physical memory, a view: a page changes while the guest runs.

    Raises:
        OSError: the system has no memory for it.
    """

    def __init__(self, parts_mib: Sequence[int]) -> None:
        self.fds: list[int] = []
        self._maps: list[mmap.mmap] = []
        segments: list[Segment] = []
        total = sum(parts_mib) * MIB // PAGE_SIZE
        low = total if total < LOW_FRAMES else SPLIT_LOW_FRAMES
        at = 0
        try:
            for size_mib in parts_mib:
                fd = os.memfd_create("hibernaut-guest-ram", os.MFD_CLOEXEC)
                self.fds.append(fd)
                os.ftruncate(fd, size_mib * MIB)
                mapped = mmap.mmap(fd, size_mib * MIB, mmap.MAP_SHARED, mmap.PROT_READ)
                self._maps.append(mapped)
                pages = np.frombuffer(mapped, dtype=np.uint8).reshape(-1, PAGE_SIZE)
                below = min(max(low - at, 0), len(pages))
                if below:
                    segments.append(Segment(at, pages[:below]))
                if below < len(pages):
                    segments.append(Segment(HIGH_START + at + below - low, pages[below:]))
                at += len(pages)
        except BaseException:
            self.close()
            raise
        self.memory = SegmentMemory(segments)

    @property
    def paths(self) -> list[str]:
        """Paths of the files in a process that has inherited the descriptors."""
        return [f"/proc/self/fd/{fd}" for fd in self.fds]

    def close(self) -> None:
        """Close the descriptors; the memory goes with the last array that refers to it."""
        while self.fds:
            os.close(self.fds.pop())
