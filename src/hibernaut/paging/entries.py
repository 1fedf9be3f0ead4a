# SPDX-License-Identifier: GPL-2.0-or-later
"""Page-table entries: bits, levels and frames (Intel SDM volume 3, chapter 5)."""

from __future__ import annotations

from enum import IntEnum, IntFlag

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ENTRIES",
    "FRAME_MASK",
    "LEVELS",
    "Entries",
    "Entry",
    "Level",
    "entry_flags",
    "entry_frames",
    "entry_pfn",
    "has_reserved_bits",
    "is_leaf",
]

ENTRIES = 512
"""Entries in a table, 8 bytes each."""

FRAME_MASK = 0x000F_FFFF_FFFF_F000
"""Bits 12-51: the frame. A large leaf uses bit 12 for PAT and has zeroes up to its own size."""

Entries = NDArray[np.uint64]
"""Raw entries."""


class Level(IntEnum):
    """Levels of the tables, by the kernel's names; the number counts up from the leaves.

    Attributes:
        shift: lowest virtual address bit that an entry of this level decodes: 12, 21, 30, 39, 48. With 4 levels the
            kernel's PGD is the hardware's fourth level, `P4D` here; `name_of` gives its name.
        pages: number of 4096-byte pages that one entry of this level spans.
    """

    shift: int
    pages: int

    def __new__(cls, number: int) -> Level:
        """Return a level with its attributes, which a walk reads too often to compute them."""
        level = int.__new__(cls, number)
        level._value_ = number
        level.shift = 12 + 9 * (number - 1)
        level.pages = 1 << (level.shift - 12)
        return level

    __hash__ = int.__hash__

    PTE = 1
    PMD = 2
    PUD = 3
    P4D = 4
    PGD = 5

    @property
    def size(self) -> str:
        """Size that one entry spans: 4K, 2M, 1G, 512G, 256T."""
        return ("4K", "2M", "1G", "512G", "256T")[self - 1]

    def name_of(self, levels: int) -> str:
        """Return the kernel's name of this level in a machine with that many levels (the root is always the PGD)."""
        return "PGD" if self == levels else self.name


LEVELS = (Level.PTE, Level.PTE, Level.PMD, Level.PUD, Level.P4D, Level.PGD)
"""Levels by their number; faster than `Level(number)`. There is no level 0."""


class Entry(IntFlag):
    """Bits of an entry. PAT of a 4K leaf is the bit of PSE; Linux reads GLOBAL of a not-present entry as PROTNONE."""

    PRESENT = 1 << 0
    RW = 1 << 1
    USER = 1 << 2
    PWT = 1 << 3
    PCD = 1 << 4
    ACCESSED = 1 << 5
    DIRTY = 1 << 6
    PSE = 1 << 7
    GLOBAL = 1 << 8
    SOFTW1 = 1 << 9
    SOFTW2 = 1 << 10
    SOFTW3 = 1 << 11
    PAT_LARGE = 1 << 12
    NX = 1 << 63


# Plain ints: an IntFlag creates an object for every result, and a walk tests these in every entry.
_PRESENT = int(Entry.PRESENT)
_PSE = int(Entry.PSE)


def is_leaf(entry: int, level: Level) -> bool:
    """Return whether a present entry maps memory rather than names a table: any PTE, and PSE at PMD and PUD."""
    return level == Level.PTE or (level in (Level.PMD, Level.PUD) and bool(entry & _PSE))


def entry_pfn(entry: int, level: Level, encryption: int = 0) -> int:
    """Return the frame in an entry: that of a table, or the first of a leaf, present or not.

    Since Linux kernel commit 6b28baca9b1f ("x86/speculation/l1tf: Protect PROT_NONE PTEs against speculation")
    (in v4.19), bits 12-51 of a not-present entry that is not zero are stored inverted
    (arch/x86/include/asm/pgtable-invert.h). A large leaf's low frame bits (PAT among them) are dropped.

    Args:
        entry: the entry.
        level: its level.
        encryption: mask of the bit that means encrypted memory (AMD's SME and SEV), 0 without it. It does not belong
            to the frame (`__PHYSICAL_MASK` leaves it out), and is not inverted.
    """
    frame = entry & FRAME_MASK
    if entry and not entry & _PRESENT:
        frame ^= FRAME_MASK
    if level in (Level.PMD, Level.PUD) and (entry & _PSE or not entry & _PRESENT):
        frame &= ~((1 << level.shift) - 1)
    return (frame & ~encryption) >> 12


def has_reserved_bits(entry: int, level: Level) -> bool:
    """Return whether a present leaf has bits set that must be zero: 13 up to its size (Intel SDM vol. 3, 4.5)."""
    return level > Level.PTE and bool(entry & ((1 << level.shift) - (1 << 13)))


def entry_frames(entries: Entries, level: Level, encryption: int = 0) -> NDArray[np.int64]:
    """Return `entry_pfn` of many entries of one level, shape as given."""
    present = (entries & np.uint64(Entry.PRESENT)) != 0
    frame = entries & np.uint64(FRAME_MASK)
    frame = np.where(present | (entries == 0), frame, frame ^ np.uint64(FRAME_MASK))
    if level in (Level.PMD, Level.PUD):
        large = ~present | ((entries & np.uint64(Entry.PSE)) != 0)
        frame = np.where(large, frame & np.uint64(~((1 << level.shift) - 1) & (2**64 - 1)), frame)
    return ((frame & np.uint64(~encryption & (1 << 64) - 1)) >> np.uint64(12)).astype(np.int64)


def entry_flags(entry: int, level: Level) -> list[str]:
    """Return the names of the bits that are set, without the frame; bit 7 is named by its meaning at that level."""
    large = level > Level.PTE and bool(entry & Entry.PSE)
    names = []
    for bit in Entry:
        if not entry & bit or (bit == Entry.PAT_LARGE and not large):
            continue
        pat = bit == Entry.PAT_LARGE or (bit == Entry.PSE and level == Level.PTE)
        names.append("PAT" if pat else str(bit.name))
    key = (entry >> 59) & 0xF
    return [*names, f"PKEY={key}"] if key else names
