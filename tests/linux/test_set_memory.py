# SPDX-License-Identifier: GPL-2.0-or-later
"""Attribute changes: facts/direct-map.md section 3 on simulated machines, and entry values of real kernels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hibernaut.errors import MachineFault, OutOfMemory
from hibernaut.linux.build import Layout, build_machine, hole_1g, hole_2m, hole_4k, no_table, none_entries
from hibernaut.linux.environment import Environment, FailAllocations
from hibernaut.linux.kernel_image import KernelImage
from hibernaut.linux.machine import Machine
from hibernaut.linux.pgtable import KERNPG_TABLE, TableNotInSource, pfn_and_prot, pfn_entries, pfn_entry
from hibernaut.linux.rules import LINES, KernelRules, rules_named
from hibernaut.linux.set_memory import (
    PAGE_KERNEL_4K,
    AttributeChangeError,
    change_page_attr_set_clr,
    direct_pages_count,
    kernel_page_present,
    remapped_entries,
    set_direct_map_default_noflush,
    set_direct_map_invalid_noflush,
    set_memory_4k,
    set_memory_np,
    set_memory_np_noalias,
    set_memory_nx,
    set_memory_p,
    set_memory_ro,
    set_memory_rox,
    set_memory_rw,
    set_memory_x,
)
from hibernaut.memory.physical import PAGE_SIZE
from hibernaut.paging.entries import Entry, Level, entry_pfn

RAM = ((0, 0xA0), (0x100, 0x3F00))
GIB = 1 << 18


def machine(
    *holes: object, environment: Environment | None = None, rules: str | KernelRules = "6.1", **layout: object
) -> Machine:
    kernel = rules_named(rules) if isinstance(rules, str) else rules
    return build_machine(Layout(**{"ram": RAM, "holes": holes, **layout}), environment, kernel)  # type: ignore[arg-type]


def entry_of(of: Machine, pfn: int) -> tuple[Level, int]:
    found = of.lookup_address(of.vaddr(pfn))
    assert found is not None
    return found.level, found.entry


def table_of(of: Machine, pfn: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """The PTE table that the frame's PMD entry names."""
    found = of.lookup_address(of.vaddr(pfn))
    assert found is not None
    assert found.level == Level.PTE
    page = of.memory.frame(found.paddr >> 12)
    assert page is not None
    table: np.ndarray[tuple[int], np.dtype[np.uint64]] = page.view("<u8")
    return table


@pytest.mark.parametrize(
    ("pfn", "prot", "entry"),
    [
        (0xF600, 0x8000000000000062, 0x800FFFFFF09FF062),
        (0xF601, 0x8000000000000062, 0x800FFFFFF09FE062),
        (0x400, 0x8000000000000062, 0x800FFFFFFFBFF062),
        (0xAAC8, KERNPG_TABLE, 0x000000000AAC8063),
    ],
)
def test_entries_have_the_values_seen_on_real_kernels(pfn: int, prot: int, entry: int) -> None:
    """Real 6.1 entries: frames of not-present ones inverted, a split's table put in with 0x63 (facts/observed.md)."""
    assert pfn_entry(pfn, prot) == entry
    assert pfn_and_prot(entry, Level.PTE) == (pfn, prot)


@given(st.integers(0, (1 << 40) - 512 * GIB), st.sampled_from([1, 512]), st.integers(0, 0xFFF), st.booleans())
def test_512_entries_at_once_are_512_entries(first: int, step: int, low: int, nx: bool) -> None:
    """The vectorised form of a split's entries equals the one-entry form."""
    prot = low | (Entry.NX if nx else 0)
    assert pfn_entries(first, step, prot).tolist() == [pfn_entry(first + i * step, prot) for i in range(512)]


def test_set_memory_np_of_a_whole_large_page_changes_the_large_entry() -> None:
    """2 MiB not present in one call: one PMD entry without PRESENT, PSE, GLOBAL; frame inverted; no allocation."""
    m = machine()
    assert entry_of(m, 0x1000) == (Level.PMD, 0x80000000010001E3)
    set_memory_np(m, m.vaddr(0x1000), 512)
    assert entry_of(m, 0x1000) == (Level.PMD, 0x800FFFFFFEFFF062)
    assert m.allocations == ()
    set_memory_p(m, m.vaddr(0x1000), 512)
    assert entry_of(m, 0x1000) == (Level.PMD, 0x80000000010000E3)  # GLOBAL does not come back


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
    """A software bit on part of a large page: those entries have it, the others not; cleared again, nobody has it."""
    m = machine()
    change_page_attr_set_clr(m, m.vaddr(0x1010), 20, set_=Entry.SOFTW1)
    flags = (table_of(m, 0x1000) & np.uint64(Entry.SOFTW1)) != 0
    assert np.flatnonzero(flags).tolist() == list(range(0x10, 0x10 + 20))
    change_page_attr_set_clr(m, m.vaddr(0x1010), 20, clear=Entry.SOFTW1)
    assert not (table_of(m, 0x1000) & np.uint64(Entry.SOFTW1)).any()


# --- effective rights ----------------------------------------------------------------------------------------------


def upper_entry(of: Machine, pfn: int, level: Level) -> tuple[int, int]:
    """Address and value of the table entry at a level above a frame's own."""
    step = next(step for step in of.tables.walk(of.vaddr(pfn)).steps if step.level == level)
    return step.paddr, step.entry


def test_a_lookup_tells_what_the_levels_above_allow() -> None:
    """The nx and rw of a found entry are those of the levels above, not its own."""
    m = machine()
    found = m.lookup_address(m.vaddr(0x1000))
    assert found is not None
    assert (found.nx, found.rw) == (False, True)
    paddr, entry = upper_entry(m, 0x1000, Level.PUD)
    m.write_entry(paddr, (entry | Entry.NX) & ~Entry.RW)
    found = m.lookup_address(m.vaddr(0x1000))
    assert found is not None
    assert (found.nx, found.rw, bool(found.entry & Entry.NX)) == (True, False, True)


@pytest.mark.parametrize(("set_", "clear"), [(Entry.NX, 0), (0, Entry.RW)])
def test_writable_and_executable_is_no_violation_if_a_level_above_forbids_it(set_: int, clear: int) -> None:
    """verify_rwx asks for the effective rights: one level above that forbids either is enough."""
    m = machine(rules="7.3")
    paddr, entry = upper_entry(m, 0x1000, Level.PUD)
    m.write_entry(paddr, (entry | set_) & ~clear)
    set_memory_x(m, m.vaddr(0x1000), 1)
    assert not any("W^X" in line for line in m.log.kernel_lines)


def test_a_violation_is_warned_about_once_and_allowed() -> None:
    """The first W^X violation since boot is printed, with 4K protections and the one page; every one is let through."""
    m = machine(rules="7.3")
    set_memory_x(m, m.vaddr(0x1003), 2)
    at = m.vaddr(0x1003)
    assert m.log.kernel_lines == (
        f"CPA detected W^X violation: 8000000000000163 -> 0000000000000163 range: 0x{at:016x} - 0x{at + 0xFFF:016x} "
        "PFN 1003",
    )
    assert [entry_of(m, pfn)[1] & Entry.NX for pfn in (0x1003, 0x1004)] == [0, 0]


def test_read_only_first_is_no_violation() -> None:
    """RO, then X as modules do it; NX and RW again: nothing is ever both."""
    m = machine(rules="7.3")
    for change in (set_memory_ro, set_memory_x, set_memory_nx, set_memory_rw):
        change(m, m.vaddr(0x1000), 512)
    assert m.log.kernel_lines == ()
    assert entry_of(m, 0x1000) == (Level.PMD, 0x80000000010001A3)


# --- the kernel image's own mapping --------------------------------------------------------------------------------

TEXT = 0xFFFFFFFF81000000
IMAGE = KernelImage(0x1000, 0x1400, TEXT, rodata_start_pfn=0x1300, rodata_end_pfn=0x1310)
TEXT_PROT = 0x1E3
"""Writable and executable: what rights there are is not what these tests are about."""


def machine_with_image(line: str, environment: Environment | None = None, free_pages: int = 64) -> Machine:
    """A machine whose frames 0x1000 to 0x13ff are also mapped at TEXT, by two 2M entries."""
    m = machine(rules=line, environment=environment, free_pages=free_pages)
    pud_table = next(step for step in m.tables.walk(TEXT).steps if step.level == Level.PUD)
    table = m.alloc_page("PMD table of the kernel image")
    entries = np.zeros(512, dtype=np.uint64)
    for block in (0, 1):
        entries[(TEXT >> 21 & 511) + block] = (0x1000 + 512 * block) << 12 | TEXT_PROT
    m.write_table(table, entries)
    m.write_entry(pud_table.paddr, table << 12 | KERNPG_TABLE)
    m.kernel_image = IMAGE
    return m


def text_entry(of: Machine, pfn: int) -> tuple[Level, int]:
    found = of.lookup_address(TEXT + (pfn - 0x1000) * PAGE_SIZE)
    assert found is not None
    return found.level, found.entry


@pytest.mark.parametrize("line", ["6.1", "6.12", "7.3"])
def test_a_change_of_the_direct_map_reaches_the_kernel_image(line: str) -> None:
    """set_memory_np of one page: both mappings are split and lose it; a page outside the image has but one."""
    m = machine_with_image(line)
    before = len(m.allocations)
    set_memory_np(m, m.vaddr(0x1001), 1)
    assert [level_entry[1] & Entry.PRESENT for level_entry in (entry_of(m, 0x1001), text_entry(m, 0x1001))] == [0, 0]
    assert text_entry(m, 0x1002) == (Level.PTE, 0x1002163)
    assert len(m.allocations) == before + 2
    set_memory_np(m, m.vaddr(0x1601), 1)
    assert len(m.allocations) == before + 3


@pytest.mark.parametrize("line", ["6.1", "6.12", "7.3"])
def test_a_change_of_the_kernel_image_reaches_the_direct_map(line: str) -> None:
    """set_memory_ro of a whole block of the text mapping: the direct map's block is read-only too, both stay large."""
    m = machine_with_image(line)
    before = len(m.allocations)
    set_memory_ro(m, TEXT, 512)
    assert (entry_of(m, 0x1000)[0], text_entry(m, 0x1000)[0]) == (Level.PMD, Level.PMD)
    assert [entry & Entry.RW for _, entry in (entry_of(m, 0x1000), text_entry(m, 0x1000))] == [0, 0]
    assert text_entry(m, 0x1200)[1] & Entry.RW
    assert len(m.allocations) == before


@pytest.mark.parametrize("line", ["6.1", "6.12", "7.3"])
def test_what_leaves_the_other_mapping_alone(line: str) -> None:
    """set_direct_map_*, *_noalias and pure NX changes concern the mapping that they name."""
    m = machine_with_image(line)
    set_direct_map_invalid_noflush(m, 0x1001)
    set_direct_map_default_noflush(m, 0x1002)
    set_memory_np_noalias(m, m.vaddr(0x1003), 1)
    set_memory_x(m, m.vaddr(0x1004), 1)
    assert text_entry(m, 0x1001) == (Level.PMD, 0x1000000 | TEXT_PROT)
    set_memory_nx(m, TEXT, 512)
    assert text_entry(m, 0x1000) == (Level.PMD, 0x1000000 | TEXT_PROT | Entry.NX)
    assert not entry_of(m, 0x1004)[1] & Entry.NX


@pytest.mark.parametrize(("line", "nx_there"), [("6.1", False), ("6.12", True), ("7.3", True)])
def test_nx_goes_to_the_other_mapping_on_6_1_if_more_than_nx_is_changed(line: str, nx_there: bool) -> None:
    """Read-only and executable at once in the text mapping: on 6.1 the direct map becomes executable with it."""
    m = machine_with_image(line)
    change_page_attr_set_clr(m, TEXT, 512, clear=Entry.RW | Entry.NX)
    assert entry_of(m, 0x1000)[1] & (Entry.RW | Entry.NX) == (Entry.NX if nx_there else 0)


def test_a_failure_in_the_kernel_images_mapping_is_ignored() -> None:
    """The split of the direct map's entry gets a page, that of the text mapping's none: success, half done."""
    m = machine_with_image("6.12", FailAllocations(3))
    set_memory_np(m, m.vaddr(0x1001), 1)
    assert [a.pfn is None for a in m.allocations] == [False, False, True]
    assert not entry_of(m, 0x1001)[1] & Entry.PRESENT
    assert text_entry(m, 0x1001) == (Level.PMD, 0x1000000 | TEXT_PROT)


def test_a_failure_in_the_direct_map_as_the_other_mapping_is_an_error() -> None:
    """The same the other way round stops the request: the text mapping has changed, the direct map not."""
    m = machine_with_image("6.12", FailAllocations(3))
    with pytest.raises(OutOfMemory):
        set_memory_np(m, TEXT + PAGE_SIZE, 1)
    assert not text_entry(m, 0x1001)[1] & Entry.PRESENT
    assert entry_of(m, 0x1001) == (Level.PMD, 0x80000000010001E3)


def test_a_change_of_two_mappings_flushes_everything() -> None:
    """Where another mapping may have changed, every translation goes, not just those of the pages asked for."""
    for line, image in (("6.12", IMAGE), ("6.12", None)):
        m = machine_with_image(line)
        m.kernel_image = image
        set_memory_np(m, m.vaddr(0x1001), 1)
        m.read_page(m.vaddr(0x1800))
        m.read_page(m.vaddr(0x1003))
        set_memory_np(m, m.vaddr(0x1003) + 5, 1)  # below the page's start nothing counts
        assert m.tlb.lookup(m.vaddr(0x1003)) is None
        assert (m.tlb.lookup(m.vaddr(0x1800)) is None) == (image is not None)


def test_beyond_the_kernel_image_is_an_error_without_a_warning() -> None:
    """No entry behind the image's last page: -EFAULT, but nothing is said, as the mapping's end is not precise."""
    m = machine_with_image("6.12")
    with pytest.raises(AttributeChangeError, match="EFAULT"):
        set_memory_np(m, TEXT + 0x3FF * PAGE_SIZE, 2)
    assert not any("zero pte" in line for line in m.log.kernel_lines)


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


def test_read_only_data_cannot_be_made_writable() -> None:
    """protect_rodata: RW is dropped from 4K entries of the kernel's read-only data, with a line for each page."""
    m = machine_with_image("6.12")
    set_memory_ro(m, m.vaddr(0x1300), 16)
    before = m.log.kernel_lines
    set_memory_rw(m, m.vaddr(0x130F), 2)
    assert not entry_of(m, 0x130F)[1] & Entry.RW
    assert entry_of(m, 0x1310)[1] & Entry.RW
    at = m.vaddr(0x130F)
    assert m.log.kernel_lines[len(before) :][0] == (
        f"CPA  protect  Rodata RO: 0x{at:016x} - 0x{at + 0xFFF:016x} PFN 130f req 8000000000000123 "
        "prevent 0000000000000002"
    )


def test_a_large_page_with_rights_that_it_must_not_have_is_put_right() -> None:
    """A writable block that holds read-only data is split on any change of it, and its read-only data loses RW."""
    m = machine_with_image("6.12")
    set_memory_4k(m, m.vaddr(0x1000), 1)  # another block: nothing is wrong there
    assert not any(m.log.kernel_lines)
    change_page_attr_set_clr(m, m.vaddr(0x1200), 1, set_=Entry.SOFTW1)
    at = m.vaddr(0x1200)
    assert m.log.kernel_lines[0] == (
        f"CPA conflict  Rodata RO: 0x{at:016x} - 0x{at + 0x1FFFFF:016x} PFN 1200 req 80000000000001e3 "
        "prevent 0000000000000002"
    )
    writable = [pfn for pfn in range(0x1200, 0x1400) if entry_of(m, pfn)[1] & Entry.RW]
    assert writable == [*range(0x1200, 0x1300), *range(0x1310, 0x1400)]


def test_a_whole_block_with_read_only_data_is_split_rather_than_made_writable() -> None:
    """A read-only block asked to be writable as a whole: the split keeps its read-only data out of it."""
    m = machine_with_image("6.12")
    found = m.lookup_address(m.vaddr(0x1200))
    assert found is not None
    m.write_entry(found.paddr, found.entry & ~Entry.RW)
    set_memory_rw(m, m.vaddr(0x1200), 512)
    writable = [pfn for pfn in range(0x1200, 0x1400) if entry_of(m, pfn)[1] & Entry.RW]
    assert writable == [*range(0x1200, 0x1300), *range(0x1310, 0x1400)]


def test_a_gigabyte_with_read_only_data_cannot_be_put_right_at_once() -> None:
    """The 2M entries of a split 1G entry keep the wrong right, which is said once; the split of one mends it."""
    m = machine(ram=((0, 2 * GIB),), largest=Level.PUD, tables=0x1000)
    m.kernel_image = KernelImage(GIB, GIB + 1024, TEXT, rodata_start_pfn=GIB + 600, rodata_end_pfn=GIB + 700)
    change_page_attr_set_clr(m, m.vaddr(GIB), 1, set_=Entry.SOFTW1)
    assert m.log.kernel_lines.count("CPA: Cannot fixup static protections for PUD split") == 1
    assert entry_of(m, GIB + 600)[1] & (Entry.RW | Entry.PSE) == Entry.RW | Entry.PSE
    change_page_attr_set_clr(m, m.vaddr(GIB + 512), 1, set_=Entry.SOFTW1)
    assert not entry_of(m, GIB + 600)[1] & Entry.RW


# --- collapse, pools, counters -------------------------------------------------------------------------------------


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
def test_what_does_not_fit_is_not_collapsed(spoil: str) -> None:
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
    """512 consecutive frames from one that is no multiple of 512 cannot be a large page."""
    m = machine(rules="7.3")
    set_memory_rox(m, m.vaddr(0x1000), 1)
    found = m.lookup_address(m.vaddr(0x1000))
    assert found is not None
    m.write_table(found.paddr >> 12, pfn_entries(0x1001, 1, 0x161))
    set_memory_rox(m, m.vaddr(0x1000), 512)
    assert entry_of(m, 0x1000) == (Level.PTE, 0x1001121)


def test_what_is_not_present_is_not_collapsed() -> None:
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


def test_set_memory_4k_splits_all_the_way_down() -> None:
    """A page of a 1G entry: 1G to 2M to 4K, with the protection it had."""
    m = machine(ram=((0, 2 * GIB),), largest=Level.PUD, tables=0x1000)
    set_memory_4k(m, m.vaddr(GIB + 7), 1)
    assert entry_of(m, GIB + 7) == (Level.PTE, 0x8000000000000163 | (GIB + 7) << 12)
    assert len(m.allocations) == 2


def test_counters_go_on_counting_what_is_not_present() -> None:
    """A block made not present is still counted; a zero entry is not."""
    m = machine(none_entries(0x1203, 2), no_table(0x1400))
    before = direct_pages_count(m)
    assert before[Level.PTE] == 0xA0 + 0x100 + 510
    set_memory_np(m, m.vaddr(0x1000), 512)
    assert direct_pages_count(m) == before
    set_direct_map_default_noflush(m, 0x1001)
    assert direct_pages_count(m)[Level.PMD] == before[Level.PMD] - 1
    assert direct_pages_count(m.fork()) == direct_pages_count(m)


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
