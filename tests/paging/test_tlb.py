# SPDX-License-Identifier: GPL-2.0-or-later
"""The TLB."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.paging.entries import Entry, Level
from hibernaut.paging.tlb import CachedTranslation, Tlb

PAGE = Entry.PRESENT | Entry.RW
LARGE = PAGE | Entry.PSE
VADDR = 0xFFFF_8880_0040_0000


def test_a_translation_is_found_at_every_address_of_its_page() -> None:
    """A 2M translation answers for each of its 512 pages with that page's frame, and for no other."""
    tlb = Tlb()
    tlb.insert(VADDR + 0x5123, Level.PMD, 0x400, 0x400000 | LARGE)
    assert tlb.lookup(VADDR) == CachedTranslation(0x400, Level.PMD, 0x400000 | LARGE)
    assert tlb.lookup(VADDR + (511 << 12) + 9) == CachedTranslation(0x5FF, Level.PMD, 0x400000 | LARGE)
    assert tlb.lookup(VADDR + (512 << 12)) is None
    assert tlb.lookup(VADDR - 1) is None


def test_a_not_present_entry_is_never_cached() -> None:
    """Nor is an entry that names a table: both are errors of the caller."""
    tlb = Tlb()
    for entry in (0, 0x800F_FFFF_FFBF_F062):
        with pytest.raises(ValueError, match="never cached"):
            tlb.insert(VADDR, Level.PMD, 0x400, entry)
    with pytest.raises(ValueError, match="leaf"):
        tlb.insert(VADDR, Level.PMD, 0x400, 0x400000 | PAGE)
    assert len(tlb) == 0


def test_translations_of_both_sizes_live_side_by_side() -> None:
    """After a split without a flush the stale 2M translation stays beside the new 4K one; INVLPG drops both."""
    tlb = Tlb()
    tlb.insert(VADDR, Level.PMD, 0x400, 0x400000 | LARGE)
    tlb.insert(VADDR, Level.PTE, 0x777, 0x777000 | PAGE)
    assert [hit.pfn for hit in tlb.lookup_all(VADDR)] == [0x777, 0x400]
    assert tlb.lookup(VADDR + 4096) == CachedTranslation(0x401, Level.PMD, 0x400000 | LARGE)
    tlb.invlpg(VADDR + 4)
    assert tlb.lookup_all(VADDR) == ()
    assert tlb.lookup(VADDR + 4096) is None


def test_loading_cr3_keeps_global_translations_only() -> None:
    """And a full flush keeps none; INVLPG drops a global one."""
    tlb = Tlb()
    tlb.insert(0x1000, Level.PTE, 1, 0x1000 | PAGE)
    tlb.insert(VADDR, Level.PTE, 2, 0x2000 | PAGE | Entry.GLOBAL)
    tlb.insert(VADDR + 4096, Level.PTE, 3, 0x3000 | PAGE | Entry.GLOBAL)
    tlb.flush_not_global()
    assert tlb.lookup(0x1000) is None
    assert tlb.lookup(VADDR) is not None
    tlb.invlpg(VADDR)
    assert tlb.lookup(VADDR) is None
    tlb.flush_all()
    assert len(tlb) == 0


def test_a_copy_is_independent() -> None:
    """A translation dropped by one copy stays in the other."""
    tlb = Tlb()
    tlb.insert(VADDR, Level.PTE, 2, 0x2000 | PAGE)
    twin = tlb.copy()
    tlb.flush_all()
    assert twin.lookup(VADDR) is not None


@given(st.lists(st.tuples(st.sampled_from(("insert", "invlpg", "cr3")), st.integers(0, 1100), st.integers(1, 2))))
def test_it_remembers_exactly_what_was_inserted_and_not_dropped(steps: list[tuple[str, int, int]]) -> None:
    """Against a list of live translations searched from the front."""
    tlb = Tlb()
    live: list[tuple[int, int, int, int]] = []  # first page, pages, first frame, entry
    for number, (what, page, size) in enumerate(steps):
        level = Level(size)
        first = page - page % level.pages
        if what == "insert":
            entry = (number << 21) | (LARGE if level == Level.PMD else PAGE) | (Entry.GLOBAL if number % 2 else 0)
            tlb.insert(page << 12, level, number << 9, entry)
            live = [one for one in live if one[:2] != (first, level.pages)]
            live.append((first, level.pages, number << 9, entry))
        elif what == "invlpg":
            tlb.invlpg(page << 12)
            live = [one for one in live if not one[0] <= page < one[0] + one[1]]
        else:
            tlb.flush_not_global()
            live = [one for one in live if one[3] & Entry.GLOBAL]
    for page in range(0, 1100, 7):
        hits = sorted((one for one in live if one[0] <= page < one[0] + one[1]), key=lambda one: one[1])
        found = [(hit.level.pages, hit.pfn, hit.entry) for hit in tlb.lookup_all(page << 12)]
        assert found == [(pages, pfn + page - first, entry) for first, pages, pfn, entry in hits]
        for pages in (1, 7, 600):
            asked = any(tlb.lookup_all((page + one) << 12) for one in range(pages))
            assert tlb.caches_any(page << 12, pages) == asked
