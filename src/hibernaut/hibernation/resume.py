# SPDX-License-Identifier: GPL-2.0-or-later
"""The way back: what a boot kernel does with an image (kernel/power/snapshot.c, arch/x86/power/hibernate_64.c).

A page whose frame the boot kernel does not use is loaded in place. The others are loaded into safe frames, which are
free there and not in the image, and listed (`restore_pblist`); from a safe page, on temporary page tables that lie in
safe pages and map all RAM, `core_restore_code` copies what is listed to its place. Then CR3 becomes the image's, every
translation is dropped, and control goes to the image's `restore_registers`. Frames that the image does not have keep
whatever the boot kernel left there.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from hibernaut.errors import HibernationRefused
from hibernaut.hibernation.snapshot import Snapshot
from hibernaut.linux.direct_map import FrameState, frames_in_state
from hibernaut.linux.formula import BOOT_MARK, FormulaMemory
from hibernaut.linux.machine import Machine
from hibernaut.linux.pgtable import KERNPG_TABLE, PAGE_KERNEL_LARGE
from hibernaut.memory.overlay import Overlay
from hibernaut.memory.page import PAGE_SHIFT, BoolArray, Bytes, Frames
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.ranges import FrameRanges
from hibernaut.paging.entries import ENTRIES, Entries, Entry, Level

__all__ = ["BootKernel", "resume"]

MOST_USED_PAGES = 1 << 10
"""The boot kernel of `BootKernel.beside` uses at most 4 MiB: enough to meet, cheap to go round."""

TEXT_PMD = 8
"""Where a kernel is linked: 16 MiB from 0xffffffff80000000 on (CONFIG_PHYSICAL_START)."""

TEMPORARY_LEAF = PAGE_KERNEL_LARGE & ~int(Entry.NX)
"""__PAGE_KERNEL_LARGE_EXEC: 0x1e3, GLOBAL among it."""


@dataclass(frozen=True, eq=False)
class BootKernel:
    """The kernel that finds the image.

    Attributes:
        memory: what RAM holds while it runs.
        used: the frames that it uses itself; all others are free to it.
    """

    memory: PhysicalMemory
    used: FrameRanges

    @classmethod
    def beside(cls, snapshot: Snapshot, used: FrameRanges | None = None) -> BootKernel:
        """One on the same RAM, which has left its mark in every frame (`formula.BOOT_MARK`).

        Args:
            snapshot: whose machine's RAM: of a machine in a dump or an image, which may hold but a part of it, also
                the frames that the direct map speaks of.
            used: the frames that it uses. Default: the lowest that the image has, at most an eighth of RAM, 4 MiB, and
                half of the safe frames that the restore itself leaves.
        """
        machine = snapshot.machine
        ram = machine.memory.ranges
        if machine.page_flags is None:
            states = (FrameState.PRESENT, FrameState.NOT_PRESENT_4K, FrameState.NOT_PRESENT_LARGE)
            mapped = frames_in_state(machine.direct_map, *states)
            ram = FrameRanges.of([*ram, *mapped])
        if used is None:
            safe = ram.without(snapshot.frames).total_pages - _TemporaryTables(machine, ram).count - 1
            used = snapshot.frames.lowest(max(0, min(ram.total_pages // 8, MOST_USED_PAGES, safe // 2)))
        return cls(FormulaMemory(ram, mark=BOOT_MARK), used)


class _ImageOverBoot(PhysicalMemory):
    """Memory after the restore: the image's pages, and between them what the boot kernel left."""

    def __init__(self, image: PhysicalMemory, boot: PhysicalMemory) -> None:
        self._image, self._boot = image, boot
        self._of_image = image.ranges
        self._ranges = FrameRanges.of([*image.ranges, *boot.ranges])

    @property
    def ranges(self) -> FrameRanges:
        """All RAM."""
        return self._ranges

    def run(self, pfn: int, pages: int) -> Bytes:
        """See `PhysicalMemory.run`."""
        got = self._image.run(pfn, pages)
        if len(got):
            return got
        after = self._of_image.start_after(pfn)
        return self._boot.run(pfn, pages if after is None else min(pages, after - pfn))

    def frame(self, pfn: int) -> Bytes | None:
        """See `PhysicalMemory.frame`."""
        page = self._image.frame(pfn)
        return self._boot.frame(pfn) if page is None else page

    def occupied(self) -> FrameRanges:
        """See `PhysicalMemory.occupied`."""
        return FrameRanges.of([*self._image.occupied(), *self._boot.occupied().without(self._of_image)])

    def gather(self, pfns: Frames, out: Bytes | None = None) -> tuple[Bytes, BoolArray]:  # type: ignore[override]
        """See `PhysicalMemory.gather`."""
        frames = np.asarray(pfns, dtype=np.int64)
        pages, present = self._image.gather(frames, out)
        rest = np.flatnonzero(~present)
        if len(rest):
            pages[rest], present[rest] = self._boot.gather(frames[rest])
        return pages, present


def resume(snapshot: Snapshot, boot: BootKernel | None = None, *, flush: bool = True) -> Machine:
    """Restore a snapshot as the kernel does, and give the machine that goes on from it.

    Args:
        snapshot: what was saved.
        boot: the kernel that restores it; `BootKernel.beside` if not given.
        flush: False leaves out the flush of all translations after CR3 is loaded, as no kernel does: for tests.

    Raises:
        HibernationRefused: not enough safe frames; the boot kernel goes on as if there were no image.
    """
    boot = BootKernel.beside(snapshot) if boot is None else boot
    machine = snapshot.machine
    memory = Overlay(boot.memory)
    listed = snapshot.frames.within(boot.used)
    safe = boot.memory.ranges.without(boot.used).without(snapshot.frames)
    tables = _TemporaryTables(machine, boot.memory.ranges)
    needed = listed.total_pages + tables.count + 1
    if needed > safe.total_pages:
        raise HibernationRefused(
            f"{needed} safe pages are needed to restore the image, there are {safe.total_pages}", errno="ENOMEM"
        )
    frames = safe.lowest(needed).frames()
    code, places, copies = frames[:1], frames[1 : 1 + tables.count], frames[1 + tables.count :]
    memory.write_page(int(code[0]), np.full(1 << PAGE_SHIFT, 0xCC, dtype=np.uint8))
    for pfn, entries in zip(places.tolist(), tables.fill(places), strict=True):
        memory.write_page(pfn, entries.view(np.uint8))
    for pfn, own in zip(copies.tolist(), listed.frames().tolist(), strict=True):
        memory.write_page(pfn, snapshot.page(own))
    resumed = machine.on_memory(_ImageOverBoot(snapshot.memory, memory))
    _core_restore_code(resumed, listed, flush=flush)
    resumed.log.note(
        f"resume: {snapshot.frames.total_pages - listed.total_pages} pages loaded in place, {listed.total_pages} "
        f"through safe frames, {tables.count} temporary tables, CR3 {resumed.cr3:#x}"
    )
    return resumed


def _core_restore_code(machine: Machine, listed: FrameRanges, *, flush: bool) -> None:
    """What the CPU remembers of it: the temporary tables map the direct map by GLOBAL 2 MiB pages.

    Each block to which something is copied was written through one. Loading CR3 drops what is not GLOBAL, and
    `restore_registers` then toggles CR4.PGE, which drops the rest.
    """
    pages = Level.PMD.pages
    for start, count in listed:
        for block in range(start // pages, -(-(start + count) // pages)):
            pfn = block * pages
            machine.tlb.insert(machine.vaddr(pfn), Level.PMD, pfn, pfn << PAGE_SHIFT | TEMPORARY_LEAF)
    machine.tlb.flush_not_global()
    if flush:
        machine.tlb.flush_all()


class _TemporaryTables:
    """`set_up_temporary_mappings`: the direct map of all RAM by 2 MiB pages, a root, and the way to the kernel's text.

    The text's part is a chain of tables to the one 2 MiB page that holds `restore_registers`.
    """

    def __init__(self, machine: Machine, ram: FrameRanges) -> None:
        self._machine = machine
        shift = Level.PUD.shift - PAGE_SHIFT
        spans = [np.arange(start >> shift, (start + pages - 1 >> shift) + 1) for start, pages in ram]
        base = machine.base >> PAGE_SHIFT
        gibs = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *spans]))
        mask = (1 << (9 * machine.levels)) - 1
        self._pages: dict[Level, Frames] = {Level.PMD: ((base & mask) >> shift) + gibs}
        self._first = base & mask
        level = Level.PMD
        while level < machine.levels:
            below = self._pages[level]
            level = Level(level + 1)
            self._pages[level] = np.unique(below >> 9)
        self._ram = ram

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(map(len, self._pages.values())) + self._machine.levels - 2

    def fill(self, frames: Frames) -> Entries:
        """Their entries, shape (count, 512), if they lie in these frames: the root first."""
        tables = np.zeros((self.count, ENTRIES), dtype="<u8")
        row: dict[Level, int] = {}
        at = 0
        for level in reversed(self._pages):
            row[level] = at
            at += len(self._pages[level])
        for level, keys in self._pages.items():
            if level < self._machine.levels:
                above = Level(level + 1)
                rows = row[above] + np.searchsorted(self._pages[above], keys >> 9)
                own = frames[row[level] : row[level] + len(keys)].astype(np.uint64) << np.uint64(PAGE_SHIFT)
                tables[rows, keys & (ENTRIES - 1)] = own | np.uint64(KERNPG_TABLE)
        first = (self._pages[Level.PMD] << 18) - self._first
        pfns = first[:, None] + np.arange(ENTRIES, dtype=np.int64) * Level.PMD.pages
        leaves = (pfns.astype(np.uint64) << np.uint64(PAGE_SHIFT)) | np.uint64(TEMPORARY_LEAF)
        there = (pfns >= 0) & (pfns < self._ram.end)
        tables[row[Level.PMD] : row[Level.PMD] + len(first)] = np.where(there, leaves, np.uint64(0))
        chain = [0, *range(self.count - (self._machine.levels - 2), self.count)]
        indices = [ENTRIES - 1] * (self._machine.levels - 3) + [ENTRIES - 2]
        for (upper, lower), index in zip(itertools.pairwise(chain), indices, strict=True):
            tables[upper, index] = np.uint64(int(frames[lower]) << PAGE_SHIFT | KERNPG_TABLE)
        tables[-1, TEXT_PMD] = np.uint64(TEXT_PMD * Level.PMD.pages << PAGE_SHIFT | TEMPORARY_LEAF)
        return tables
