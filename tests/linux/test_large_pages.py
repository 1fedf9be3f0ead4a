# SPDX-License-Identifier: GPL-2.0-or-later
"""Splits and collapses of large pages, the pool of tables, and the counters of the direct map."""

from __future__ import annotations

import numpy as np
import pytest

from hibernaut.linux.layout import hole_1g, hole_2m, hole_4k, no_table, none_entries
from hibernaut.linux.page_counts import direct_pages_count
from hibernaut.linux.pgtable import PAGE_KERNEL_4K, pfn_entries, pfn_entry
from hibernaut.linux.set_memory import (
    set_direct_map_default_noflush,
    set_direct_map_invalid_noflush,
    set_memory_4k,
    set_memory_np,
    set_memory_rox,
)
from hibernaut.paging.entries import Entry, Level
from tests.linux.attribute_machines import TEXT, entry_of, machine, machine_with_image, table_of, upper_entry
from tests.machines import GIB


def test_split_of_a_not_present_large_page_as_the_kernel_was_seen_to_do() -> None:
    """set_direct_map_default in a not-present 2M entry: 512 inverted 4K entries, one of them then present and RW."""
    m = machine(hole_2m(0x1000))
    free = m.allocator.free_ranges()
    set_direct_map_default_noflush(m, 0x1003)
    assert entry_of(m, 0x1003) == (Level.PTE, 0x8000000001003063)
    expected = [pfn_entry(0x1000 + i, 0x8000000000000062) for i in range(512)]
    expected[3] = 0x8000000001003063
    assert table_of(m, 0x1000).tolist() == expected
    assert [a.pfn is not None and free.contains([a.pfn])[0] for a in m.allocations] == [True]
    set_direct_map_invalid_noflush(m, 0x1003)
    assert entry_of(m, 0x1003) == (Level.PTE, 0x800FFFFFFEFFC060)  # RW goes with PRESENT
    assert len(m.allocations) == 1


def test_split_of_a_present_large_page_keeps_its_protection() -> None:
    """One 4K page out of a present 2M page: 511 neighbours keep rights and GLOBAL, without PSE."""
    m = machine()
    set_direct_map_invalid_noflush(m, 0x1001)
    table = table_of(m, 0x1000)
    assert int(table[1]) == pfn_entry(0x1001, 0x8000000000000060)
    rest = [0x8000000000000163 | (0x1000 + i) << 12 for i in range(512) if i != 1]
    assert np.delete(table, 1).tolist() == rest


def test_a_4k_change_in_a_1g_page_takes_two_allocations() -> None:
    """1G -> 512 x 2M (PSE kept as they are present) -> 512 x 4K."""
    m = machine(ram=((0, 2 * GIB),), largest=Level.PUD, tables=0x1000)
    set_direct_map_invalid_noflush(m, GIB + 5)
    assert len(m.allocations) == 2
    assert entry_of(m, GIB + 5) == (Level.PTE, pfn_entry(GIB + 5, 0x8000000000000060))
    assert entry_of(m, GIB + 512) == (Level.PMD, 0x80000000000001E3 | (GIB + 512) << 12)


def test_a_not_present_1g_entry_splits_into_not_present_2m_entries() -> None:
    """A not-present PUD entry splits into PMD entries with neither PRESENT nor PSE, each with its inverted frame."""
    m = machine(hole_1g(GIB), ram=((0, 2 * GIB),), largest=Level.PUD, tables=0x1000)
    assert entry_of(m, GIB) == (Level.PUD, pfn_entry(GIB, 0x8000000000000062))
    set_direct_map_default_noflush(m, GIB + 700)
    assert entry_of(m, GIB + 700) == (Level.PTE, 0x8000000000000063 | (GIB + 700) << 12)
    assert entry_of(m, GIB) == (Level.PMD, pfn_entry(GIB, 0x8000000000000062))
    assert entry_of(m, GIB + 511 * 512) == (Level.PMD, pfn_entry(GIB + 511 * 512, 0x8000000000000062))


def test_pse_of_a_1g_entry_that_is_not_present_is_lost_in_its_split() -> None:
    """With PSE the 2M entries would count as present (pmd_present)."""
    m = machine(hole_1g(GIB), ram=((0, 2 * GIB),), largest=Level.PUD, tables=0x1000)
    found = m.lookup_address(m.vaddr(GIB))
    assert found is not None
    m.write_entry(found.paddr, found.entry | Entry.PSE)
    set_direct_map_default_noflush(m, GIB + 700)
    assert entry_of(m, GIB) == (Level.PMD, pfn_entry(GIB, 0x8000000000000062))


def test_splits_of_the_text_mapping_are_counted_as_the_direct_maps() -> None:
    """DirectMap2M and 4k count what was split, not where: one page of the image costs two blocks."""
    m = machine_with_image("6.12")
    before = direct_pages_count(m)
    set_memory_np(m, m.vaddr(0x1001), 1)
    assert direct_pages_count(m) == {
        Level.PTE: before[Level.PTE] + 1024,
        Level.PMD: before[Level.PMD] - 2,
        Level.PUD: 0,
    }


def test_a_split_is_not_counted_where_nothing_of_its_size_is() -> None:
    """With a direct map of 4K pages alone there is nothing to count down: splits of the text mapping leave it so."""
    m = machine_with_image("6.12")
    m.direct_pages_count = {Level.PTE: 100, Level.PMD: 0}
    set_memory_np(m, TEXT, 1)
    assert direct_pages_count(m) == {Level.PTE: 100, Level.PMD: 0, Level.PUD: 0}


def test_a_collapse_frees_the_table_and_flushes() -> None:
    """7.3: the second half made rox: one PMD entry, the table back at the allocator and the next one to be had."""
    m = machine(rules="7.3")
    before = direct_pages_count(m)
    set_memory_rox(m, m.vaddr(0x1000), 511)
    table = m.allocations[-1].pfn
    assert direct_pages_count(m)[Level.PMD] == before[Level.PMD] - 1
    m.read_page(m.vaddr(0x1800))
    set_memory_rox(m, m.vaddr(0x11FF), 1)
    assert entry_of(m, 0x1000) == (Level.PMD, 0x10001A1)
    assert direct_pages_count(m) == before
    assert m.tlb.lookup(m.vaddr(0x1800)) is None
    assert m.alloc_page("whatever comes next") == table


@pytest.mark.parametrize("spoil", ["marked", "flags", "frame", "not present", "zero"])
def test_entries_that_do_not_fit_are_not_collapsed(spoil: str) -> None:
    """A marked first entry, other flags, a frame out of line, a page that is not present, a zero entry: all stay 4K."""
    m = machine(rules="7.3")
    set_memory_rox(m, m.vaddr(0x1000), 511)
    if spoil == "marked":
        set_memory_4k(m, m.vaddr(0x1000), 512)
        assert entry_of(m, 0x1000)[1] & PAGE_KERNEL_4K
    else:
        found = m.lookup_address(m.vaddr(0x1064))
        assert found is not None
        change = {
            "flags": found.entry ^ Entry.ACCESSED,
            "frame": found.entry + 0x1000,
            "not present": pfn_entry(0x1064, 0x20),
            "zero": 0,
        }
        m.write_entry(found.paddr, change[spoil])
    set_memory_rox(m, m.vaddr(0x11FF), 1)
    assert entry_of(m, 0x1000)[0] == Level.PTE


def test_a_gigabyte_is_collapsed_where_the_cpu_has_such_pages() -> None:
    """One page of a 1G entry made rox costs two tables; the rest of it made rox gives both back."""
    m = machine(ram=((0, 2 * GIB),), largest=Level.PUD, tables=0x1000, rules="7.3")
    before = direct_pages_count(m)
    assert before == {Level.PTE: 0, Level.PMD: 0, Level.PUD: 2}
    set_memory_rox(m, m.vaddr(GIB), 1)
    tables = [a.pfn for a in m.allocations]
    assert direct_pages_count(m) == {Level.PTE: 512, Level.PMD: 511, Level.PUD: 1}
    set_memory_rox(m, m.vaddr(GIB + 1), GIB - 1)
    assert entry_of(m, GIB) == (Level.PUD, GIB << 12 | 0x1A1)
    assert direct_pages_count(m) == before
    assert [m.alloc_page("one"), m.alloc_page("other")] == tables[::-1]  # freed the last queued first, had LIFO


def test_no_gigabyte_entry_where_the_cpu_has_none() -> None:
    """The same where the direct map never had 1G entries: the block becomes one entry again, the table above stays."""
    m = machine(ram=((0, 2 * GIB),), tables=0x1000, rules="7.3")
    set_memory_rox(m, m.vaddr(GIB), 1)
    set_memory_rox(m, m.vaddr(GIB + 1), GIB - 1)
    assert entry_of(m, GIB) == (Level.PMD, GIB << 12 | 0x1A1)


def test_frames_that_do_not_begin_a_block_are_not_collapsed() -> None:
    """512 consecutive frames that do not start at a multiple of 512 cannot be a large page."""
    m = machine(rules="7.3")
    set_memory_rox(m, m.vaddr(0x1000), 1)
    found = m.lookup_address(m.vaddr(0x1000))
    assert found is not None
    m.write_table(found.paddr >> 12, pfn_entries(0x1001, 1, 0x161))
    set_memory_rox(m, m.vaddr(0x1000), 512)
    assert entry_of(m, 0x1000) == (Level.PTE, 0x1001121)


def test_not_present_entries_are_not_collapsed() -> None:
    """A block of 4K entries that are all alike and all not present stays as it is."""
    m = machine(hole_4k(0x1000, 512), rules="7.3")
    set_memory_rox(m, m.vaddr(0x1000), 512)
    assert entry_of(m, 0x1000) == (Level.PTE, pfn_entry(0x1000, 0x20))


def test_tables_come_from_the_pool_first() -> None:
    """While pages are reserved for tables, a split takes those in order; then it asks the allocator again."""
    m = machine()
    m.reserve_table("a pool of one")
    (reserved,) = m.table_pool
    set_direct_map_invalid_noflush(m, 0x1001)
    assert upper_entry(m, 0x1000, Level.PMD)[1] >> 12 == reserved
    assert (m.table_pool, len(m.allocations)) == ([], 1)
    set_direct_map_invalid_noflush(m, 0x1201)
    assert len(m.allocations) == 2


def test_counters_keep_not_present_entries() -> None:
    """A block made not present is still counted; a zero entry is not."""
    m = machine(none_entries(0x1203, 2), no_table(0x1400))
    before = direct_pages_count(m)
    assert before[Level.PTE] == 0xA0 + 0x100 + 510
    set_memory_np(m, m.vaddr(0x1000), 512)
    assert direct_pages_count(m) == before
    set_direct_map_default_noflush(m, 0x1001)
    assert direct_pages_count(m)[Level.PMD] == before[Level.PMD] - 1
    assert direct_pages_count(m.fork()) == direct_pages_count(m)
