# SPDX-License-Identifier: GPL-2.0-or-later
"""The TLB of a modelled CPU: the translations that it has cached. The model decides when to fill and flush it.

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

_PRESENT, _GLOBAL = int(Entry.PRESENT), int(Entry.GLOBAL)
_SHIFTS = tuple((level, level.shift) for level in (Level.PTE, Level.PMD, Level.PUD))


@dataclass(frozen=True)
class CachedTranslation:
    """A translation in the TLB.

    Attributes:
        pfn: the 4K frame of the address that was looked up.
        level: the leaf's level, which says the page size.
        entry: the leaf's raw entry when it was cached.
    """

    pfn: int
    level: Level
    entry: int


class Tlb:
    """Cached translations of one CPU. Nothing is evicted, which is the worst case for staleness."""

    def __init__(self) -> None:
        self._cached: dict[tuple[Level, int], tuple[int, int]] = {}
        self._state: tuple[tuple[int, int, int, int], ...] | None = ()

    def lookup(self, vaddr: int) -> CachedTranslation | None:
        """Return the cached translation of an address, of the smallest page if there are several; None on a miss."""
        found = self.lookup_all(vaddr)
        return found[0] if found else None

    def lookup_all(self, vaddr: int) -> tuple[CachedTranslation, ...]:
        """Return all cached translations of an address, smallest page first; a CPU may use any of them."""
        cached = self._cached
        if not cached:
            return ()
        found = []
        for level, shift in _SHIFTS:
            hit = cached.get((level, vaddr >> shift))
            if hit is not None:
                pfn, entry = hit
                found.append(CachedTranslation(pfn + ((vaddr >> 12) & (level.pages - 1)), level, entry))
        return tuple(found)

    def caches_any(self, vaddr: int, nr_pages: int) -> bool:
        """Return whether some page of a run has a cached translation; `vaddr` is the address of the first."""
        end = vaddr + (nr_pages << 12)
        return any(
            number << level.shift < end and (number + 1) << level.shift > vaddr for level, number in self._cached
        )

    def insert(self, vaddr: int, level: Level, pfn_of_leaf: int, entry: int) -> None:
        """Cache a translation, in place of one of the same address and size.

        Args:
            vaddr: any address within the leaf.
            level: PTE, PMD or PUD.
            pfn_of_leaf: first frame of the leaf.
            entry: the leaf's raw entry.

        Raises:
            ValueError: the entry is not present, or is not a leaf at that level; a CPU caches neither.
        """
        if not entry & _PRESENT:
            raise ValueError(f"a not-present entry is never cached: {entry:#x}")
        if not is_leaf(entry, level):
            raise ValueError(f"not a leaf at {level.name}: {entry:#x}")
        self._cached[level, vaddr >> level.shift] = (pfn_of_leaf, entry)
        self._state = None

    def invlpg(self, vaddr: int) -> None:
        """Drop all translations of one address, global ones included."""
        if not self._cached:
            return
        for level, shift in _SHIFTS:
            self._cached.pop((level, vaddr >> shift), None)
        self._state = None

    def flush_not_global(self) -> None:
        """Drop the translations without GLOBAL, as a load of CR3 does."""
        self._cached = {key: hit for key, hit in self._cached.items() if hit[1] & _GLOBAL}
        self._state = None

    def flush_all(self) -> None:
        """Drop all translations."""
        self._cached.clear()
        self._state = ()

    def translations(self) -> Iterator[tuple[int, Level, int, int]]:
        """Yield all cached translations: (first address of the page, level, first frame, raw entry)."""
        for (level, number), (pfn, entry) in self._cached.items():
            yield number << level.shift, level, pfn, entry

    def state(self) -> tuple[tuple[int, int, int, int], ...]:
        """Return all cached translations in order, as (level, number of the page, first frame, raw entry)."""
        if self._state is None:
            cached = self._cached.items()
            self._state = tuple(sorted([(int(level), number, *hit) for (level, number), hit in cached]))
        return self._state

    def copy(self) -> Self:
        """Return an independent TLB with the same contents."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__, _cached=self._cached.copy())
        return twin

    def __len__(self) -> int:
        return len(self._cached)
