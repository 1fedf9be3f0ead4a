# SPDX-License-Identifier: GPL-2.0-or-later
"""The pages that the running kernel would save, by the flags of its pages in /proc/kpageflags; those of this process.

This process ends before the machine hibernates: its own anonymous pages are not saved.
"""

from __future__ import annotations

import os
import re

import numpy as np

from hibernaut.memory.page import Pfns
from hibernaut.memory.ranges import FrameRanges

__all__ = ["frames_in_use", "own_pages", "pfns_of_pagemap", "pfns_with_flags"]

KPAGEFLAGS = "/proc/kpageflags"
NOT_SAVED = 1 << 10 | 1 << 20 | 1 << 23
"""KPF_BUDDY, KPF_NOPAGE, KPF_OFFLINE (include/uapi/linux/kernel-page-flags.h): free pages, frames without a page, and
offline ones. Reserved pages are saved if they are mapped (`saveable_page`, kernel/power/snapshot.c)."""
PAGEMAP_PRESENT, PAGEMAP_FILE = 1 << 63, 1 << 61
PAGEMAP_FRAME = (1 << 55) - 1
"""Bits of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst): a present page, one of a file or shared."""
MOST_FRAMES = 1 << 16
"""Frames whose flags are read at a time: 512 KiB."""


def frames_in_use(ranges: FrameRanges) -> Pfns | None:
    """Return the frames that are in use, ascending; None if the flags cannot be read, which only root can.

    Pages on the lists of the CPUs are among them: no flag marks these as free.

    Args:
        ranges: frames of RAM that the direct map covers.
    """
    try:
        fd = os.open(KPAGEFLAGS, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = [
            pfns_with_flags(os.pread(fd, 8 * min(MOST_FRAMES, start + count - first), 8 * first), first)
            for start, count in ranges
            for first in range(start, start + count, MOST_FRAMES)
        ]
    except OSError:
        return None
    finally:
        os.close(fd)
    if not found:
        return None
    frames = np.concatenate(found)
    return frames[~np.isin(frames, _own_frames())]


def own_pages() -> int | None:
    """Return the pages that end with this process: anonymous ones, and its page tables; None if they are unknown."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            counts = dict(re.findall(r"^(RssAnon|VmPTE):\s+(\d+) kB$", file.read(), re.MULTILINE))
    except OSError:
        return None
    return sum(int(kib) for kib in counts.values()) // 4 if counts else None


def _own_frames() -> Pfns:
    """Return the frames of this process's anonymous pages; none if they cannot be read."""
    found = [np.empty(0, dtype=np.int64)]
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
            areas = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) ", file.read(), re.MULTILINE)
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            for start, end in areas:
                first, last = int(start, 16) >> 12, int(end, 16) >> 12
                if last < 1 << 35:  # not vsyscall, which lies above all user addresses
                    found.append(pfns_of_pagemap(os.pread(file.fileno(), 8 * (last - first), 8 * first)))
    except OSError:
        pass
    return np.concatenate(found)


def pfns_of_pagemap(entries: bytes) -> Pfns:
    """Return the frames of anonymous pages among entries of /proc/PID/pagemap, u64 each."""
    words = np.frombuffer(entries[: len(entries) & ~7], dtype="<u8")
    anonymous = (words & np.uint64(PAGEMAP_PRESENT | PAGEMAP_FILE)) == np.uint64(PAGEMAP_PRESENT)
    frames: Pfns = (words[anonymous] & np.uint64(PAGEMAP_FRAME)).astype(np.int64)
    return frames


def pfns_with_flags(flags: bytes, first: int) -> Pfns:
    """Return the frames in use among those whose flags are given, u64 each, from frame `first` on."""
    words = np.frombuffer(flags[: len(flags) & ~7], dtype="<u8")
    return np.flatnonzero((words & np.uint64(NOT_SAVED)) == 0) + first
