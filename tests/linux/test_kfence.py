# SPDX-License-Identifier: GPL-2.0-or-later
"""KFENCE's pool: its pages and their entries, by the rules of each line; protecting a page changes one flag."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.errors import HibernautError
from hibernaut.linux.direct_map import FrameState, writable_holes
from hibernaut.linux.kfence import (
    KFENCE_NUM_OBJECTS,
    KFENCE_POOL_PAGES,
    arch_kfence_init_pool,
    kfence_object_pfn,
    kfence_pool,
    kfence_protect_page,
)
from hibernaut.linux.layout import none_entries
from hibernaut.linux.pgtable import PAGE_KERNEL, PAGE_KERNEL_4K, PRESENT, pfn_entry
from hibernaut.linux.rules import RULES
from hibernaut.paging.entries import Level
from tests.linux.attribute_machines import entry_of, machine

POOL = 0x1000
FREED = (0, 7, 254)


def test_the_pool_has_two_guard_pages_then_an_object_and_a_guard_page_each() -> None:
    """255 objects in 512 pages: the first two and every odd page are guard pages, which are never present."""
    assert KFENCE_POOL_PAGES == 512
    of = machine(*kfence_pool(POOL, FREED))
    absent = {pfn - POOL for pfn in range(POOL, POOL + 512) if not entry_of(of, pfn)[1] & PRESENT}
    assert absent == {0, *range(1, 512, 2), 2, 16, 510}
    assert [kfence_object_pfn(POOL, number) - POOL for number in FREED] == [2, 16, 510]
    assert {entry_of(of, pfn)[0] for pfn in range(POOL, POOL + 512)} == {Level.PTE}
    assert entry_of(of, POOL + 512)[0] == Level.PMD


@pytest.mark.parametrize("line", RULES)
def test_a_protected_entry_lost_present_alone(line: str) -> None:
    """RW, GLOBAL, DIRTY and NX stay; the frame is inverted since b505f1944535, which 6.1 and 6.12 have by backport."""
    of = machine(*kfence_pool(POOL, FREED), rules=line)
    inverted = line in ("6.1", "6.6", "6.12", "6.19", "7.3")
    assert of.rules.kfence_inverts is inverted
    flags = PAGE_KERNEL & ~PRESENT
    plain = (POOL + 2) << 12 | flags
    assert entry_of(of, POOL + 2)[1] == (pfn_entry(POOL + 2, flags) if inverted else plain)
    state = FrameState.NOT_PRESENT_4K if inverted else FrameState.NOT_PRESENT_PLAIN
    assert of.direct_map.classify([POOL + 1, POOL + 2, POOL + 4]).tolist() == [state, state, FrameState.PRESENT]
    assert writable_holes(of.direct_map).total_pages == KFENCE_NUM_OBJECTS + 2 + len(FREED)
    holes = [hole for hole in of.direct_map.holes if POOL <= hole.start_pfn < POOL + 512]
    assert sum(hole.pages for hole in holes) == KFENCE_NUM_OBJECTS + 2 + len(FREED)


@pytest.mark.parametrize(("line", "mark"), [("6.12", 0), ("7.3", PAGE_KERNEL_4K)])
def test_only_the_page_that_splits_the_block_is_marked(line: str, mark: int) -> None:
    """arch_kfence_init_pool calls set_memory_4k for a page in a large entry alone, and the first call splits it."""
    of = machine(*kfence_pool(POOL), rules=line)
    assert entry_of(of, POOL)[1] & PAGE_KERNEL_4K == mark
    assert not entry_of(of, POOL + 2)[1] & PAGE_KERNEL_4K


@given(st.sampled_from(list(RULES)), st.lists(st.tuples(st.integers(0, 511), st.booleans()), max_size=8))
def test_protecting_and_back_is_nothing(line: str, steps: list[tuple[int, bool]]) -> None:
    """Any pages, in any order, again and again: an entry that is present again is bit for bit what it was."""
    of = machine(rules=line, free_pages=8)
    arch_kfence_init_pool(of, POOL)
    before = [entry_of(of, POOL + page) for page in range(512)]
    for page, protect in steps:
        kfence_protect_page(of, POOL + page, protect=protect)
        assert bool(entry_of(of, POOL + page)[1] & PRESENT) is not protect
    for page, _ in steps:
        kfence_protect_page(of, POOL + page, protect=False)
    assert [entry_of(of, POOL + page) for page in range(512)] == before


def test_protecting_flushes_the_page_on_this_cpu() -> None:
    """A translation that was cached before is gone: an access to a protected page is noticed."""
    of = machine(free_pages=8)
    arch_kfence_init_pool(of, POOL)
    of.read_page(of.vaddr(POOL + 3))
    kfence_protect_page(of, POOL + 3, protect=True)
    assert of.tlb.lookup(of.vaddr(POOL + 3)) is None


def test_pools_that_cannot_be() -> None:
    """A pool that is not one block, an object that it does not have, a page without a 4K entry: refused."""
    with pytest.raises(HibernautError, match="multiple of 2 MiB"):
        kfence_pool(POOL + 1)
    for number in (-1, KFENCE_NUM_OBJECTS):
        with pytest.raises(HibernautError, match="expected 0-254"):
            kfence_pool(POOL, (number,))
    of = machine(none_entries(0x905))
    with pytest.raises(HibernautError, match="no 4K entry"):
        kfence_protect_page(of, POOL, protect=True)
    with pytest.raises(HibernautError, match="has no entry"):
        arch_kfence_init_pool(of, 0x905)
