# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls that change page attributes, on simulated machines."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hibernaut.errors import MachineFault, OutOfMemory
from hibernaut.linux.change_page_attr import AttributeChangeError, change_page_attr_set_clr
from hibernaut.linux.environment import Environment, FailAllocations
from hibernaut.linux.layout import hole_2m, hole_4k, no_table, none_entries
from hibernaut.linux.machine import Machine
from hibernaut.linux.pgtable import KERNPG_TABLE, TableNotInSource, pfn_entry
from hibernaut.linux.rules import LINES, KernelRules
from hibernaut.linux.set_memory import (
    kernel_page_present,
    remapped_entries,
    set_direct_map_default_noflush,
    set_direct_map_invalid_noflush,
    set_memory_4k,
    set_memory_np,
    set_memory_p,
    set_memory_ro,
    set_memory_rw,
)
from hibernaut.paging.entries import Entry, Level, entry_pfn
from tests.linux.attribute_machines import entry_of, machine, table_of
from tests.machines import GIB


def test_set_memory_np_of_a_whole_large_page_changes_the_large_entry() -> None:
    """2 MiB not present in one call: one PMD entry without PRESENT, PSE, GLOBAL; frame inverted; no allocation."""
    m = machine()
    assert entry_of(m, 0x1000) == (Level.PMD, 0x80000000010001E3)
    set_memory_np(m, m.vaddr(0x1000), 512)
    assert entry_of(m, 0x1000) == (Level.PMD, 0x800FFFFFFEFFF062)
    assert m.allocations == ()
    set_memory_p(m, m.vaddr(0x1000), 512)
    assert entry_of(m, 0x1000) == (Level.PMD, 0x80000000010000E3)  # GLOBAL does not come back


def test_second_allocation_fails_without_rollback() -> None:
    """A 4K change in a 1G page whose second allocation fails leaves the first split in place."""
    m = machine(ram=((0, 2 * GIB),), largest=Level.PUD, tables=0x1000, environment=FailAllocations(2))
    with pytest.raises(OutOfMemory) as failure:
        set_direct_map_invalid_noflush(m, GIB + 5)
    assert failure.value.number == 2
    assert entry_of(m, GIB + 5) == (Level.PMD, 0x80000000000001E3 | GIB << 12)


def test_failing_request_keeps_the_steps_before_it() -> None:
    """A request over two 2M pages whose split fails in the second has changed the first."""
    m = machine(environment=FailAllocations(1))
    m.read_page(m.vaddr(0x1000))
    with pytest.raises(OutOfMemory):
        set_memory_np(m, m.vaddr(0x1000), 512 + 10)
    assert m.tlb.lookup(m.vaddr(0x1000)) is None  # what was changed is flushed, error or not
    assert entry_of(m, 0x1000) == (Level.PMD, 0x800FFFFFFEFFF062)
    assert entry_of(m, 0x1200) == (Level.PMD, 0x80000000012001E3)


def test_no_entry_inside_the_direct_map_counts_as_success() -> None:
    """__cpa_process_fault: holes are expected; nothing is allocated, nothing changes, no error."""
    m = machine(none_entries(0x1003), no_table(0x1400))
    before = m.memory.written.tolist()
    for pfn in (0x1003, 0x1400):
        set_direct_map_default_noflush(m, pfn)
    set_memory_np(m, m.vaddr(0x1400), 3)
    assert m.memory.written.tolist() == before
    assert m.allocations == ()


def test_no_entry_outside_the_direct_map_is_an_error() -> None:
    """Elsewhere a zero entry is -EFAULT."""
    m = machine()
    with pytest.raises(AttributeChangeError, match="EFAULT"):
        set_memory_np(m, m.vaddr(m.end_pfn) + (1 << 40), 1)


def test_same_attributes_leave_a_large_page_alone() -> None:
    """If the result would be the same, nothing is split."""
    m = machine()
    set_memory_rw(m, m.vaddr(0x1003), 2)
    assert (entry_of(m, 0x1003)[0], m.allocations) == (Level.PMD, ())


def test_changes_flush_the_tlb_and_set_direct_map_does_not() -> None:
    """set_memory_* invalidates what it changed; set_direct_map_*_noflush leaves that to its caller."""
    m = machine(hole_4k(0x801))
    m.read_page(m.vaddr(0x1000))
    set_memory_ro(m, m.vaddr(0x1000), 512)
    assert m.tlb.lookup(m.vaddr(0x1000)) is None
    m.read_page(m.vaddr(0x800))
    set_direct_map_invalid_noflush(m, 0x800)
    assert m.tlb.lookup(m.vaddr(0x800)) is not None


def test_stale_translation_is_the_environments_choice() -> None:
    """A page made not present without a flush can be read while the TLB remembers it, and faults when it does not."""

    class Forgets(Environment):
        def still_cached(self, vaddr: int) -> bool:
            super().still_cached(vaddr)
            return False

    m = machine(hole_4k(0x801))
    m.read_page(m.vaddr(0x800))
    set_direct_map_invalid_noflush(m, 0x800)
    twin = m.fork(Forgets())
    assert m.read_page(m.vaddr(0x800)).view("<u8")[0] & 0xFFFFFFFFFFF == 0x800000
    with pytest.raises(MachineFault) as fault:
        twin.read_page(twin.vaddr(0x800))
    assert fault.value.entry == pfn_entry(0x800, 0x8000000000000060)


def test_kernel_page_present_dereferences_null_where_there_is_no_table() -> None:
    """kernel_page_present has no NULL check: no PTE table is a NULL dereference; a zero PTE is just not present."""
    m = machine(hole_2m(0x1000), none_entries(0x1203), no_table(0x1400), hole_4k(0x801))
    assert [kernel_page_present(m, pfn) for pfn in (0x800, 0x801, 0x1000, 0x1203)] == [True, False, False, False]
    with pytest.raises(MachineFault) as fault:
        kernel_page_present(m, 0x1400)
    assert (fault.value.address, fault.value.entry, fault.value.pfn) == (0, None, 0x1400)
    assert fault.value.log[0] == "BUG: kernel NULL pointer dereference, address: 0000000000000000"


def test_table_outside_the_source_is_said_and_never_guessed() -> None:
    """A PMD entry that names a table which the memory lacks: asking or changing anything below it is a fault."""
    m = machine()
    found = m.lookup_address(m.vaddr(0x1000))
    assert found is not None
    m.write_entry(found.paddr, pfn_entry(0x99999, KERNPG_TABLE))
    for act in (kernel_page_present, set_direct_map_default_noflush):
        with pytest.raises(TableNotInSource) as fault:
            act(m, 0x1000)
        assert fault.value.pfn == 0x99999


class _Naive:
    """The direct map as a dictionary of pages: present and writable, nothing of tables."""

    def __init__(self, of: Machine) -> None:
        self.pages = dict.fromkeys(range(0x1000, 0x1000 + 4 * 512), (True, True))
        self.of = of

    def check(self) -> None:
        for pfn, (present, writable) in self.pages.items():
            level, entry = entry_of(self.of, pfn)
            assert (bool(entry & Entry.PRESENT), bool(entry & Entry.RW)) == (present, writable)
            assert entry_pfn(entry, level) + (pfn & (level.pages - 1)) == pfn
            assert present or not entry & Entry.GLOBAL
            assert bool(entry & Entry.PSE) == (present and level > Level.PTE)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([set_memory_np, set_memory_p, set_memory_ro, set_memory_rw]),
            st.integers(0, 4 * 512 - 1) | st.sampled_from([0, 512, 1024, 1536]),
            st.integers(1, 1200) | st.sampled_from([512, 1024, 2048]),
        ),
        max_size=6,
    )
)
def test_any_sequence_of_changes_equals_a_page_by_page_model(changes: list[tuple[object, int, int]]) -> None:
    """Whatever is split or changed whole: presence, RW and frame of every page are those of a model without tables."""
    m = machine()
    naive = _Naive(m)
    for change, start, pages in changes:
        pages = min(pages, 4 * 512 - start)
        change(m, m.vaddr(0x1000 + start), pages)  # type: ignore[operator]
        for pfn in range(0x1000 + start, 0x1000 + start + pages):
            present, writable = naive.pages[pfn]
            naive.pages[pfn] = {
                set_memory_np: (False, writable),
                set_memory_p: (True, writable),
                set_memory_ro: (present, False),
                set_memory_rw: (present, True),
            }[change]  # type: ignore[index]
    naive.check()
    assert len(m.allocations) <= 4  # a 2M page is split at most once


def test_spare_bits_can_be_set_and_cleared_again() -> None:
    """A software bit on part of a large page: only those entries have it; cleared again, none has it."""
    m = machine()
    change_page_attr_set_clr(m, m.vaddr(0x1010), 20, set_=Entry.SOFTW1)
    flags = (table_of(m, 0x1000) & np.uint64(Entry.SOFTW1)) != 0
    assert np.flatnonzero(flags).tolist() == list(range(0x10, 0x10 + 20))
    change_page_attr_set_clr(m, m.vaddr(0x1010), 20, clear=Entry.SOFTW1)
    assert not (table_of(m, 0x1000) & np.uint64(Entry.SOFTW1)).any()


def test_set_memory_4k_splits_all_the_way_down() -> None:
    """A page of a 1G entry: 1G to 2M to 4K, with the protection it had."""
    m = machine(ram=((0, 2 * GIB),), largest=Level.PUD, tables=0x1000)
    set_memory_4k(m, m.vaddr(GIB + 7), 1)
    assert entry_of(m, GIB + 7) == (Level.PTE, 0x8000000000000163 | (GIB + 7) << 12)
    assert len(m.allocations) == 2


@settings(max_examples=15)
@given(
    st.sampled_from(LINES),
    st.lists(
        st.tuples(
            st.integers(0, 0x7FF).map(lambda low: low & ~1),
            st.booleans(),
            st.integers(0, 0x7FF),
        ),
        min_size=1,
        max_size=16,
    ),
)
def test_entries_remapped_all_at_once_are_those_remapped_one_by_one(
    rules: KernelRules, wanted: list[tuple[int, bool, int]]
) -> None:
    """remapped_entries equals setting each page default, then invalid, whatever bits its entry has."""
    m = machine(hole_4k(0x1000), rules=rules)
    prots = [low | (Entry.NX if nx else 0) for low, nx, _ in wanted]
    entries = [pfn_entry(0x2000 + place, prot) or 2 for (_, _, place), prot in zip(wanted, prots, strict=True)]
    entries = [entry if entry & ~(Entry.ACCESSED | Entry.DIRTY) else entry | Entry.USER for entry in entries]
    found = m.lookup_address(m.vaddr(0x1000))
    assert found is not None
    for index, entry in enumerate(entries):
        m.write_entry(found.paddr + 8 * index, entry)
    for pfn in range(0x1000, 0x1000 + len(entries)):
        set_direct_map_default_noflush(m, pfn)
        set_direct_map_invalid_noflush(m, pfn)
    one_by_one = table_of(m, 0x1000)[: len(entries)].tolist()
    assert remapped_entries(np.array(entries, dtype=np.uint64), rules).tolist() == one_by_one
