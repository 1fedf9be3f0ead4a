# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables as the CPU reads them: one address with its path, many addresses at once, the whole space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hibernaut.paging.bulk import translate
from hibernaut.paging.entries import ENTRIES, FRAME_MASK, LEVELS, Entries, Entry, Level, entry_pfn, is_leaf
from hibernaut.paging.scan import scan, table_frames
from hibernaut.paging.spans import Codes, Rights, Span, Spans, Stop

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from hibernaut.memory.physical import PhysicalMemory

__all__ = ["PageTables", "Rights", "Span", "Spans", "Step", "Stop", "Translation", "Walk"]

# Plain ints: an IntFlag creates an object for every result, and a walk tests these in every entry.
_NONE_IGNORES = int(Entry.ACCESSED | Entry.DIRTY)
_PRESENT, _RW, _USER, _NX = int(Entry.PRESENT), int(Entry.RW), int(Entry.USER), int(Entry.NX)


class Step(NamedTuple):
    """One level of a walk.

    Attributes:
        level: level of the table; the root of a 4-level machine is `Level.P4D` (`Level.name_of` names it).
        table_pfn: frame of the table.
        index: position among its 512 entries.
        entry: the raw entry; its bits by name: `entries.entry_flags`.
        paddr: physical address of the entry.
    """

    level: Level
    table_pfn: int
    index: int  # type: ignore[assignment]  # the method of tuples is not needed
    entry: int
    paddr: int


class Walk(NamedTuple):
    """Path of one address through the tables.

    Attributes:
        vaddr: the address.
        steps: every entry read, from the root down; empty if the address is not canonical or the root is missing.
        stop: reason why the walk ends: present, not-present, none, table-missing or non-canonical.
        level: level of the last entry read; the root's if none was.
        pfn: the 4K frame of the address itself: of a present leaf, or of a not-present one (PTE, PMD, PUD), if that
            keeps its frame inverted, else None. `linux.not_present` tells such an entry from one that does not: a plain
            one, a swap entry.
        paddr: physical address of an access; None unless present.
        rw: every entry read allows writing; like the next two False where there is no entry.
        nx: some entry read forbids execution.
        user: every entry read allows user mode.
    """

    vaddr: int
    steps: tuple[Step, ...]
    stop: Stop
    level: Level
    pfn: int | None
    paddr: int | None
    rw: bool
    nx: bool
    user: bool

    @property
    def entry(self) -> int:
        """Last entry read; 0 if none was."""
        return self.steps[-1].entry if self.steps else 0


@dataclass(frozen=True, eq=False)
class Translation:
    """Many addresses translated; arrays of shape (n,), in the order asked.

    Attributes:
        pfns: the 4K frame of each address, as `Walk.pfn`; -1 where there is none. int64.
        levels: level of the last entry read, uint8.
        reasons: `Stop.code`, uint8.
        entries: the last entry read, uint64; 0 if none was.
    """

    pfns: NDArray[np.int64]
    levels: Codes
    reasons: Codes
    entries: Entries


class PageTables:
    """Tables that a CR3 value names, in some physical memory. Nothing is cached: memory may change between calls.

    Args:
        memory: memory that holds the tables, or some of them.
        cr3: the register; bits outside the frame (PCID, flags) are ignored for the lookup.
        levels: 4, or 5 where CR4.LA57 is set.
        encryption: mask of the bit of encrypted memory in entries and CR3, see `entries.entry_pfn`; 0 without it.

    Raises:
        ValueError: another number of levels.
    """

    def __init__(self, memory: PhysicalMemory, cr3: int, levels: int = 4, encryption: int = 0) -> None:
        if levels not in (4, 5):
            raise ValueError(f"page tables have 4 or 5 levels, not {levels}")
        self.memory = memory
        self.cr3 = cr3
        self.levels = levels
        self.encryption = encryption

    @property
    def root_pfn(self) -> int:
        """Frame of the root table."""
        return (self.cr3 & FRAME_MASK & ~self.encryption) >> 12

    @property
    def root_level(self) -> Level:
        """Level of the root table: P4D or PGD by number."""
        return Level(self.levels)

    def is_canonical(self, vaddr: int) -> bool:
        """Return whether bits 47 (4 levels) or 56 (5 levels) and up are all equal."""
        top = vaddr >> (11 + 9 * self.levels)
        return top in (0, (1 << (53 - 9 * self.levels)) - 1)

    def walk(self, vaddr: int) -> Walk:
        """Look one address up, with the entry of each level and the reason why the walk ends.

        Raises:
            ValueError: `vaddr` is not within 64 bits.
        """
        if not 0 <= vaddr < 1 << 64:
            raise ValueError(f"not a 64-bit address: {vaddr:#x}")
        if not self.is_canonical(vaddr):
            return self._walk(vaddr, [], Stop.NON_CANONICAL)
        steps: list[Step] = []
        table = self.root_pfn
        read_u64 = self.memory.read_u64
        for number in range(self.levels, 0, -1):
            level = LEVELS[number]
            index = (vaddr >> level.shift) & (ENTRIES - 1)
            paddr = (table << 12) + 8 * index
            entry = read_u64(paddr)
            if entry is None:
                return self._walk(vaddr, steps, Stop.TABLE_MISSING)
            steps.append(Step(level, table, index, entry, paddr))
            if not entry & ~_NONE_IGNORES:
                return self._walk(vaddr, steps, Stop.NONE)
            if not entry & _PRESENT:
                return self._walk(vaddr, steps, Stop.NOT_PRESENT)
            if is_leaf(entry, level):
                return self._walk(vaddr, steps, Stop.PRESENT)
            table = entry_pfn(entry, level, self.encryption)
        raise AssertionError("every present PTE is a leaf")

    def scan(self, start: int | None = None, end: int | None = None) -> Spans:
        """Return everything that the tables say of a range of addresses, by default of the whole canonical space.

        The scan reads each table once, level by level; cost follows the number of tables. A table that is its own
        ancestor is reported as a loop. A table that is named repeatedly at one level is expanded 16 times, then
        reported as shared (a KASAN kernel's shadow names one empty table thousands of times).

        Args:
            start: first address, canonical; rounded down to a page.
            end: one past the last address, at most 2^64; rounded up to a page.

        Returns:
            Spans that cover the range without gaps (but for the addresses that are not canonical).

        Raises:
            FormatError: hostile tables: more tables or spans than the memory can really hold.
            ValueError: a bound is not canonical.
        """
        return scan(self.memory, self.root_pfn, self.levels, start, end, self.encryption)

    def pfns(self) -> NDArray[np.int64]:
        """Return the frames of all tables that the root reaches and the memory has, ascending, each once.

        Raises:
            FormatError: the memory lists the frame of a table but cannot read it.
        """
        return table_frames(self.memory, self.root_pfn, self.levels, self.encryption)

    def translate(self, vaddrs: ArrayLike) -> Translation:
        """Look many addresses up at once: the result of `walk` for each, without its path.

        Args:
            vaddrs: uint64, shape (n,), in any order, repeats allowed.
        """
        addresses = np.asarray(vaddrs, dtype=np.uint64)
        return Translation(*translate(self.memory, self.root_pfn, self.levels, addresses, self.encryption))

    def _walk(self, vaddr: int, steps: list[Step], stop: Stop) -> Walk:
        level = steps[-1].level if steps else self.root_level
        mapped = bool(steps) and stop is not Stop.NONE
        pfn = None
        if stop is Stop.PRESENT or (stop is Stop.NOT_PRESENT and level <= Level.PUD):
            pfn = entry_pfn(steps[-1].entry, level, self.encryption) + ((vaddr >> 12) & (level.pages - 1))
        any_of, all_of = 0, -1
        for step in steps:
            any_of |= step.entry
            all_of &= step.entry
        return Walk(
            vaddr=vaddr,
            steps=tuple(steps),
            stop=stop,
            level=level,
            pfn=pfn,
            paddr=(pfn << 12) + (vaddr & 0xFFF) if pfn is not None and stop is Stop.PRESENT else None,
            rw=mapped and bool(all_of & _RW),
            nx=mapped and bool(any_of & _NX),
            user=mapped and bool(all_of & _USER),
        )
