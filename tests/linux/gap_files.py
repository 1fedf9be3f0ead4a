# SPDX-License-Identifier: GPL-2.0-or-later
"""Sparse files of raw memory with and without the gap below 4 GiB: page tables, marks, and nothing else."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path

from hibernaut.linux.direct_map import START_KERNEL_MAP
from hibernaut.memory.gaps import MemoryGap
from tests.paging.layouts import KERNEL, TableLayout

FOUR_GIB_PFN = 0x100000
BASE = {4: 0xFFFF_8880_0000_0000, 5: 0xFF11_0000_0000_0000}


@dataclass(frozen=True)
class Pc:
    """A PC whose RAM has a gap below 4 GiB.

    Attributes:
        low_end: one past the last frame of RAM below the gap.
        high_end: one past the last frame of RAM above 4 GiB.
        tables: first frame of its page tables but the root.
        root: frame of the root.
        reserved: frames at the top of the lower RAM that have no entry.
        leaf: level of the leaves: 2 for 2 MiB, 3 for 1 GiB where it fits.
        levels: levels of paging.
        mark_every: a frame of content every so many frames of RAM.
        top_unmapped: frames at the top of RAM without an entry.
    """

    low_end: int = 0xC0000
    high_end: int = 0x140000
    tables: int = 0x13F000
    root: int = 0x2000
    reserved: int = 0x20
    leaf: int = 2
    levels: int = 4
    mark_every: int = 0x200
    top_unmapped: int = 0

    @property
    def gap(self) -> MemoryGap:
        """The gap."""
        return MemoryGap(self.low_end << 12, (FOUR_GIB_PFN - self.low_end) << 12)

    @property
    def ram(self) -> tuple[tuple[int, int], ...]:
        """(first frame, one past the last) of both parts."""
        return ((0, self.low_end), (FOUR_GIB_PFN, self.high_end))

    def layout(self) -> TableLayout:
        """Return its page tables."""
        layout = TableLayout(levels=self.levels, root=self.root, next_pfn=self.tables)
        base = BASE[self.levels]
        for first, end in ((0, self.low_end - self.reserved), (FOUR_GIB_PFN, self.high_end - self.top_unmapped)):
            at = first
            while at < end:
                level = self.leaf
                while at % (1 << 9 * (level - 1)) or at + (1 << 9 * (level - 1)) > end:
                    level -= 1
                size = 1 << 9 * (level - 1)
                layout.fill(base + (at << 12), level, at, size)
                at += size
        layout.fill(START_KERNEL_MAP, 1, self.root, 1)
        return layout

    def write(self, path: Path, gaps: tuple[MemoryGap, ...] | None = None, size_bytes: int | None = None) -> Path:
        """Write its RAM as a sparse file that leaves out these gaps: by default its own.

        Args:
            path: the file.
            gaps: the gaps left out; () for a file padded over its gap.
            size_bytes: cut the file there.
        """
        left_out = (self.gap,) if gaps is None else gaps
        layout = self.layout()
        with path.open("wb") as file:
            for first, end in self.ram:
                for pfn in range(first, end, self.mark_every):
                    put(file.fileno(), pfn, struct.pack("<QQ", 0x6B72616D6B72616D, pfn), left_out)
            for pfn, entries in layout.tables.items():
                words = [entries.get(index, 0) for index in range(512)]
                put(file.fileno(), pfn, struct.pack("<512Q", *words), left_out)
            last = self.high_end * 4096 - sum(gap.size_bytes for gap in left_out)
            os.ftruncate(file.fileno(), last if size_bytes is None else size_bytes)
        return path

    def but(self, **changes: int) -> Pc:
        """Return the machine with other attributes."""
        return replace(self, **changes)


def put(fd: int, pfn: int, content: bytes, gaps: tuple[MemoryGap, ...]) -> None:
    """Write a frame at its place in a file that leaves out gaps; a frame in a gap is not written."""
    paddr = pfn * 4096
    if any(gap.start <= paddr < gap.end for gap in gaps):
        return
    os.pwrite(fd, content, paddr - sum(gap.size_bytes for gap in gaps if gap.end <= paddr))


assert KERNEL  # the flags that `TableLayout.fill` gives leaves
