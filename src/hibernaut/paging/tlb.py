# SPDX-License-Identifier: GPL-2.0-or-later
"""The TLB of a modelled CPU: which translations it still remembers. Pure data; others say when to fill or flush it.

Intel SDM volume 3, section 5.10: a translation is cached by page number and page size, with the entry's bits as they
were; a not-present entry is never cached; INVLPG drops every translation of that address, global or not, whatever its
size; loading CR3 keeps the global ones. Caches of upper-level entries (paging-structure caches) are not modelled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from hibernaut.paging.entries import Entry, Level, is_leaf

__all__ = ["CachedTranslation", "Tlb"]


@dataclass(frozen=True)
class CachedTranslation:
    """A translation as the TLB remembers it.

    Attributes:
        pfn: the 4K frame of the address that was looked up.
        level: the leaf's level, which says the page size.
        entry: the leaf's raw entry when it was cached.
    """

    pfn: int
    level: Level
    entry: int


class Tlb:
    """Cached translations of one CPU, as many as are inserted: the worst case for staleness, never evicting."""

    def __init__(self) -> None:
        self._cached: dict[tuple[Level, int], tuple[int, int]] = {}

    def lookup(self, vaddr: int) -> CachedTranslation | None:
        """What the TLB has for an address, the smallest page if it has several; None if it must walk the tables."""
        found = self.lookup_all(vaddr)
        return found[0] if found else None

    def lookup_all(self, vaddr: int) -> tuple[CachedTranslation, ...]:
        """Every translation cached for an address, smallest page first. A CPU with several may use any of them."""
        found = []
        for level in (Level.PTE, Level.PMD, Level.PUD):
            hit = self._cached.get((level, vaddr >> level.shift))
            if hit is not None:
                pfn, entry = hit
                found.append(CachedTranslation(pfn + ((vaddr >> 12) & (level.pages - 1)), level, entry))
        return tuple(found)

    def insert(self, vaddr: int, level: Level, pfn_of_leaf: int, entry: int) -> None:
        """Remember a translation; one of the same address and size is replaced.

        Args:
            vaddr: any address within the leaf.
            level: PTE, PMD or PUD.
            pfn_of_leaf: first frame of the leaf.
            entry: the leaf's raw entry.

        Raises:
            ValueError: the entry is not present, or is not a leaf at that level: a CPU caches no such thing.
        """
        if not entry & Entry.PRESENT:
            raise ValueError(f"a not-present entry is never cached: {entry:#x}")
        if not is_leaf(entry, level):
            raise ValueError(f"not a leaf at {level.name}: {entry:#x}")
        self._cached[level, vaddr >> level.shift] = (pfn_of_leaf, entry)

    def invlpg(self, vaddr: int) -> None:
        """Forget every translation of one address, global ones too."""
        for level in (Level.PTE, Level.PMD, Level.PUD):
            self._cached.pop((level, vaddr >> level.shift), None)

    def flush_not_global(self) -> None:
        """Forget what a load of CR3 forgets: every translation without GLOBAL."""
        self._cached = {key: hit for key, hit in self._cached.items() if hit[1] & Entry.GLOBAL}

    def flush_all(self) -> None:
        """Forget everything."""
        self._cached.clear()

    def translations(self) -> Iterator[tuple[int, Level, int, int]]:
        """Everything cached: (first address of the page, level, first frame, the raw entry)."""
        for (level, number), (pfn, entry) in self._cached.items():
            yield number << level.shift, level, pfn, entry

    def copy(self) -> Self:
        """An independent TLB with the same contents."""
        twin = type(self)()
        twin._cached = self._cached.copy()
        return twin

    def __len__(self) -> int:
        return len(self._cached)
