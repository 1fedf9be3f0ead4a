# SPDX-License-Identifier: GPL-2.0-or-later
"""The pages that the running kernel would save, by the flags of its pages in /proc/kpageflags; those of this process.

This process ends before the machine hibernates: its own anonymous pages are not saved.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np

from hibernaut.memory.page import PAGE_SIZE, Pfns
from hibernaut.memory.ranges import FrameRanges

__all__ = ["frames_in_use", "own_pages", "pages_of_cpu_lists", "pfns_of_pagemap", "pfns_with_flags"]

KPAGEFLAGS = "/proc/kpageflags"
NOT_SAVED = 1 << 10 | 1 << 20 | 1 << 23
"""KPF_BUDDY, KPF_NOPAGE, KPF_OFFLINE (include/uapi/linux/kernel-page-flags.h): free pages, frames without a page, and
offline ones. Reserved pages are saved if they are mapped (`saveable_page`, kernel/power/snapshot.c)."""
PAGEMAP_PRESENT, PAGEMAP_FILE = 1 << 63, 1 << 61
PAGEMAP_FRAME = (1 << 55) - 1
"""Bits of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst): a present page, one of a file or shared."""
MOST_TAKEN = 1 << 15
"""Pages of a CPU's lists that are taken at most: 128 MiB."""
MOST_FRAMES = 1 << 16
"""Frames whose flags are read at a time: 512 KiB."""


def frames_in_use(ranges: FrameRanges) -> Pfns | None:
    """Return the frames that are in use, ascending; None if the flags cannot be read, which only root can.

    No flag marks pages on the lists of the CPUs (`per_cpu_pages`), which the kernel returns before it copies, as free:
    this process takes them for the time, and leaves them out as its own.

    Args:
        ranges: frames of RAM that the direct map covers.
    """
    with _cpu_lists_taken():
        return _frames_in_use(ranges)


def pages_of_cpu_lists(zoneinfo: str) -> dict[int, int]:
    """Return the number of pages on each CPU's lists, of all zones, by /proc/zoneinfo."""
    pages: dict[int, int] = {}
    for cpu, count in re.findall(r"^ +cpu: +(\d+)\n +count: +(\d+)$", zoneinfo, re.MULTILINE):
        pages[int(cpu)] = pages.get(int(cpu), 0) + int(count)
    return pages


@contextmanager
def _cpu_lists_taken() -> Iterator[None]:
    """Hold the pages of the CPUs' lists as anonymous memory of this process, as far as they are of the movable kind.

    A page that is written to for the first time comes from the list of the CPU that runs. What cannot be read or taken
    is left where it is.
    """
    held: list[mmap.mmap] = []
    cpus = os.sched_getaffinity(0)
    try:
        with suppress(OSError, ValueError):
            with open("/proc/zoneinfo", encoding="ascii", errors="replace") as file:
                lists = pages_of_cpu_lists(file.read())
            for cpu in sorted(cpus & lists.keys()):
                os.sched_setaffinity(0, {cpu})
                held.append(_touched(min(lists[cpu], MOST_TAKEN)))
        yield
    finally:
        with suppress(OSError):
            os.sched_setaffinity(0, cpus)
        for memory in held:
            memory.close()


def _touched(pages: int) -> mmap.mmap:
    """Return anonymous memory, in small pages, each written to."""
    memory = mmap.mmap(-1, max(1, pages) * PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages does not know the advice
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    for page in range(pages):
        memory[page * PAGE_SIZE] = 1
    return memory


def _frames_in_use(ranges: FrameRanges) -> Pfns | None:
    """See `frames_in_use`."""
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
