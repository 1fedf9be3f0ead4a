# SPDX-License-Identifier: GPL-2.0-or-later
"""The resume of an image by a boot kernel (kernel/power/snapshot.c, arch/x86/power/hibernate_64.c).

A page whose frame the boot kernel does not use is loaded in place. All others are loaded into safe frames, which are
free in the boot kernel and not in the image, and listed (`restore_pblist`). `core_restore_code` runs from a safe page,
on temporary page tables that lie in safe pages and map all RAM, and copies the listed pages to their frames. It then
loads the image's CR3, drops every translation and jumps to the image's `restore_registers`. Frames that the image does
not contain keep the boot kernel's bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hibernaut.errors import HibernationRefused
from hibernaut.hibernation.snapshot import Snapshot
from hibernaut.linux.direct_map import NAMES_ITS_FRAME, frames_in_state
from hibernaut.linux.formula import BOOT_MARK, FormulaMemory
from hibernaut.linux.machine import Machine
from hibernaut.linux.pgtable import KERNPG_TABLE, PAGE_KERNEL_LARGE
from hibernaut.memory.overlay import Overlay
from hibernaut.memory.page import PAGE_SHIFT, BoolArray, Bytes, Pfns
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.ranges import FrameRanges
from hibernaut.paging.entries import ENTRIES, Entries, Entry, Level

__all__ = ["BootKernel", "Resumption", "resume"]

MOST_USED_PAGES = 1 << 10
"""Most pages that the boot kernel of `BootKernel.beside` uses: 4 MiB, enough to collide with the image."""

MOST_PLACES = 16
"""Boot kernels, and their memories, that machines of one memo keep."""

MOST_DIGESTS = 1 << 14
"""Digests of pages that images with the same list and base share."""

TEXT_PMD = 8
"""Index of the PMD entry for kernel text, linked 16 MiB above 0xffffffff80000000 (CONFIG_PHYSICAL_START)."""

TEMPORARY_LEAF = PAGE_KERNEL_LARGE & ~int(Entry.NX)
"""__PAGE_KERNEL_LARGE_EXEC: 0x1e3, GLOBAL included."""


@dataclass(frozen=True, eq=False)
class BootKernel:
    """The kernel that loads the image.

    Attributes:
        memory: RAM while the boot kernel runs.
        used: the page frames that it uses; all others are free.
    """

    memory: PhysicalMemory
    used: FrameRanges

    @classmethod
    def beside(cls, snapshot: Snapshot, used: FrameRanges | None = None) -> BootKernel:
        """Return a boot kernel on the RAM of a snapshot's machine, with its mark in every frame (`formula.BOOT_MARK`).

        Args:
            snapshot: the snapshot. A dump or an image may hold a part of RAM only, so the RAM of its machine includes
                the frames that the direct map maps.
            used: the page frames that it uses. Default: the lowest frames of the image, at most an eighth of RAM,
                4 MiB, and half of the safe frames that the restore leaves.
        """
        machine = snapshot.machine
        ram = machine.memory.ranges
        if machine.page_flags is None:
            ram = FrameRanges.of([*ram, *frames_in_state(machine.direct_map, *NAMES_ITS_FRAME)])
        if used is None:
            safe = ram.without(snapshot.frames).total_pages - _TemporaryTables(machine, ram).count - 1
            used = snapshot.frames.lowest(max(0, min(ram.total_pages // 8, MOST_USED_PAGES, safe // 2)))
        return cls(FormulaMemory(ram, mark=BOOT_MARK), used)

    @classmethod
    def on_lowest(cls, snapshot: Snapshot, nr_pages: int) -> BootKernel:
        """Return `beside` with the lowest frames of the image in use; the snapshots of a machine share it."""
        machine = snapshot.machine
        known = machine.memo.of("BootKernel.on_lowest", MOST_PLACES)
        key = snapshot.frames, machine.memory.ranges, machine.base, machine.levels, nr_pages
        if machine.page_flags is None:
            return cls.beside(snapshot, snapshot.frames.lowest(nr_pages))
        found: BootKernel | None = known.get(key)
        if found is None:
            found = known[key] = cls.beside(snapshot, snapshot.frames.lowest(nr_pages))
        return found


class _ImageOverBoot(PhysicalMemory):
    """Memory after the restore: the image's pages, and the boot kernel's bytes in all other frames.

    Args:
        snapshot: the image.
        boot: the memory of the boot kernel.
        ranges: the frames of either.
        unchanged: digests of pages of the image that are not in `Snapshot.changed`, which images with the same list and
            base share.
    """

    def __init__(
        self, snapshot: Snapshot, boot: PhysicalMemory, ranges: FrameRanges, unchanged: dict[int, bytes]
    ) -> None:
        self._image, self._boot = snapshot.memory, boot
        self._of_image = snapshot.frames
        self._digests = snapshot.digests
        self._unchanged = unchanged
        self._ranges = ranges

    @property
    def ranges(self) -> FrameRanges:
        """All RAM."""
        return self._ranges

    def run(self, pfn: int, nr_pages: int) -> Bytes:
        """See `PhysicalMemory.run`."""
        got = self._image.run(pfn, nr_pages)
        if len(got):
            return got
        after = self._of_image.start_after(pfn)
        return self._boot.run(pfn, nr_pages if after is None else min(nr_pages, after - pfn))

    def page(self, pfn: int) -> Bytes | None:
        """See `PhysicalMemory.page`."""
        page = self._image.page(pfn)
        return self._boot.page(pfn) if page is None else page

    def page_digest(self, pfn: int) -> bytes | None:
        """See `PhysicalMemory.page_digest`."""
        found = self._digests.get(pfn) or self._unchanged.get(pfn)
        if found is not None:
            return found
        found = self._image.page_digest(pfn)
        if found is None:
            return self._boot.page_digest(pfn)
        if len(self._unchanged) < MOST_DIGESTS:
            self._unchanged[pfn] = found
        return found

    def content_key(self, start: int, end: int) -> Hashable | None:
        """See `PhysicalMemory.content_key`: the image's alone where it has all of these frames."""
        image = self._image.content_key(start, end)
        if image is None or self._of_image.end_of(start) >= end:
            return image
        boot = self._boot.content_key(start, end)
        return None if boot is None else (image, boot)

    def occupied(self) -> FrameRanges:
        """See `PhysicalMemory.occupied`."""
        return FrameRanges.of([*self._image.occupied(), *self._boot.occupied().without(self._of_image)])

    def gather(self, pfns: ArrayLike, out: Bytes | None = None) -> tuple[Bytes, BoolArray]:
        """See `PhysicalMemory.gather`."""
        pfns = np.asarray(pfns, dtype=np.int64)
        pages, present = self._image.gather(pfns, out)
        rest = np.flatnonzero(~present)
        if len(rest):
            pages[rest], present[rest] = self._boot.gather(pfns[rest])
        return pages, present


def resume(snapshot: Snapshot, boot: BootKernel | None = None, *, flush: bool = True) -> Machine:
    """Restore a snapshot as the kernel does, and return the machine that resumes from it.

    Args:
        snapshot: the snapshot to restore.
        boot: the kernel that restores it; by default `BootKernel.beside(snapshot)`.
        flush: whether all translations are flushed after CR3 is loaded, as every kernel does; False is for tests.

    Raises:
        HibernationRefused: too few safe frames; the boot kernel continues without the image.
    """
    boot = BootKernel.beside(snapshot) if boot is None else boot
    machine = snapshot.machine
    places = _Places.of(snapshot, boot)
    memory = places.memory.fork()
    for pfn, own in places.copies:
        if own in snapshot.changed:
            memory.write_page(pfn, snapshot.page(own))
    resumed = machine.on_memory(_ImageOverBoot(snapshot, memory, places.ram, places.unchanged))
    _core_restore_code(resumed, places.listed, flush=flush)
    resumed.log.note(
        f"resume: {snapshot.frames.total_pages - places.listed.total_pages} pages loaded in place, "
        f"{places.listed.total_pages} through safe frames, {places.tables} temporary tables, CR3 {resumed.cr3:#x}"
    )
    return resumed


class Resumption:
    """A resume that is certain to succeed, and is executed when the machine is asked for.

    Args:
        snapshot: the snapshot to restore.
        boot: the kernel that restores it.

    Attributes:
        snapshot, boot: as given.

    Raises:
        HibernationRefused: as `resume`.
    """

    def __init__(self, snapshot: Snapshot, boot: BootKernel) -> None:
        self.snapshot = snapshot
        self.boot = boot
        self._places = _Places.of(snapshot, boot)

    @cached_property
    def machine(self) -> Machine:
        """The machine that resumes."""
        return resume(self.snapshot, self.boot)

    @property
    def reloads_changed(self) -> bool:
        """Whether a page that goes through a safe frame is among those that differ from the base."""
        return any(own in self.snapshot.changed for _, own in self._places.copies)


@dataclass(frozen=True, eq=False)
class _Places:
    """The memory of a boot kernel once an image is loaded, as far as it depends on the list of frames and its base.

    Attributes:
        memory: its RAM, with the code, the temporary tables and the base's pages in safe frames; not to be changed.
        listed: the frames of the image that the boot kernel uses.
        copies: the safe frame of each listed one: (safe, listed).
        tables: the number of temporary tables.
        ram: the frames of the image and of the boot kernel's RAM.
        unchanged: see `_ImageOverBoot`.
    """

    memory: Overlay
    listed: FrameRanges
    copies: tuple[tuple[int, int], ...]
    tables: int
    ram: FrameRanges
    unchanged: dict[int, bytes]

    @classmethod
    def of(cls, snapshot: Snapshot, boot: BootKernel) -> _Places:
        """Return the places of an image. Raises HibernationRefused."""
        machine = snapshot.machine
        known = machine.memo.of("resume", MOST_PLACES)
        key = (boot, snapshot.frames, snapshot.base, machine.base, machine.levels)
        found: _Places | None = known.get(key)
        if found is None:
            found = known[key] = cls._made(snapshot, boot)
        return found

    @classmethod
    def _made(cls, snapshot: Snapshot, boot: BootKernel) -> _Places:
        machine, frames = snapshot.machine, snapshot.frames
        memory = Overlay(boot.memory)
        listed = frames.within(boot.used)
        safe = boot.memory.ranges.without(boot.used).without(frames)
        tables = _TemporaryTables(machine, boot.memory.ranges)
        needed = listed.total_pages + tables.count + 1
        if needed > safe.total_pages:
            raise HibernationRefused(
                f"{needed} safe pages are needed to restore the image, there are {safe.total_pages}", errno="ENOMEM"
            )
        pfns = safe.lowest(needed).pfns()
        code, places, copies = pfns[:1], pfns[1 : 1 + tables.count], pfns[1 + tables.count :]
        memory.write_page(int(code[0]), np.full(1 << PAGE_SHIFT, 0xCC, dtype=np.uint8))
        for pfn, entries in zip(places.tolist(), tables.fill(places), strict=True):
            memory.write_page(pfn, entries.view(np.uint8))
        pairs = tuple(zip(copies.tolist(), listed.pfns().tolist(), strict=True))
        for pfn, own in pairs:
            if own not in snapshot.changed:
                memory.write_page(pfn, snapshot.page(own))
            elif (page := snapshot.base.page(own)) is not None:
                memory.write_page(pfn, page)
        ram = FrameRanges.of([*frames, *memory.ranges])
        return cls(memory, listed, pairs, tables.count, ram, {})


def _core_restore_code(machine: Machine, listed: FrameRanges, *, flush: bool) -> None:
    """Leave the translations that the CPU caches: the temporary tables map the direct map by GLOBAL 2 MiB pages.

    Each block with a listed page is written through one. Loading CR3 drops what is not GLOBAL, and
    `restore_registers` then toggles CR4.PGE, which drops the rest.
    """
    for start, nr_pages in listed:
        for pfn in range(start - start % Level.PMD.pages, start + nr_pages, Level.PMD.pages):
            machine.tlb.insert(machine.vaddr(pfn), Level.PMD, pfn, pfn << PAGE_SHIFT | TEMPORARY_LEAF)
    machine.tlb.flush_not_global()
    if flush:
        machine.tlb.flush_all()


class _TemporaryTables:
    """Page tables of `set_up_temporary_mappings`: all RAM in the direct map by 2 MiB pages, and kernel text.

    For kernel text there is one chain of tables to the 2 MiB page that holds `restore_registers`.
    """

    def __init__(self, machine: Machine, ram: FrameRanges) -> None:
        self._machine = machine
        shift = Level.PUD.shift - PAGE_SHIFT
        spans = [np.arange(start >> shift, (start + nr_pages - 1 >> shift) + 1) for start, nr_pages in ram]
        base = machine.base >> PAGE_SHIFT
        gibs = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *spans]))
        mask = (1 << (9 * machine.levels)) - 1
        self._groups: dict[Level, NDArray[np.int64]] = {Level.PMD: ((base & mask) >> shift) + gibs}
        self._first = base & mask
        level = Level.PMD
        while level < machine.levels:
            below = self._groups[level]
            level = Level(level + 1)
            self._groups[level] = np.unique(below >> 9)
        self._ram = ram

    @property
    def count(self) -> int:
        """Number of tables."""
        return sum(map(len, self._groups.values())) + self._machine.levels - 2

    def fill(self, table_pfns: Pfns) -> Entries:
        """Return the entries of the tables, uint64, shape (count, 512), the root first, if they lie in these frames."""
        tables = np.zeros((self.count, ENTRIES), dtype="<u8")
        row: dict[Level, int] = {}
        at = 0
        for level in reversed(self._groups):
            row[level] = at
            at += len(self._groups[level])
        for level, keys in self._groups.items():
            if level < self._machine.levels:
                above = Level(level + 1)
                rows = row[above] + np.searchsorted(self._groups[above], keys >> 9)
                own = table_pfns[row[level] : row[level] + len(keys)].astype(np.uint64) << np.uint64(PAGE_SHIFT)
                tables[rows, keys & (ENTRIES - 1)] = own | np.uint64(KERNPG_TABLE)
        first = (self._groups[Level.PMD] << 18) - self._first
        pfns = first[:, None] + np.arange(ENTRIES, dtype=np.int64) * Level.PMD.pages
        leaves = (pfns.astype(np.uint64) << np.uint64(PAGE_SHIFT)) | np.uint64(TEMPORARY_LEAF)
        there = (pfns >= 0) & (pfns < self._ram.end)
        tables[row[Level.PMD] : row[Level.PMD] + len(first)] = np.where(there, leaves, np.uint64(0))
        chain = [0, *range(self.count - (self._machine.levels - 2), self.count)]
        indices = [ENTRIES - 1] * (self._machine.levels - 3) + [ENTRIES - 2]
        for (upper, lower), index in zip(itertools.pairwise(chain), indices, strict=True):
            tables[upper, index] = np.uint64(int(table_pfns[lower]) << PAGE_SHIFT | KERNPG_TABLE)
        tables[-1, TEXT_PMD] = np.uint64(TEXT_PMD * Level.PMD.pages << PAGE_SHIFT | TEMPORARY_LEAF)
        return tables
