# SPDX-License-Identifier: GPL-2.0-or-later
"""Attribute changes of two mappings of the same frames, and the rights that the kernel forces or warns of."""

from __future__ import annotations

import pytest

from hibernaut.errors import OutOfMemory
from hibernaut.linux.change_page_attr import AttributeChangeError, change_page_attr_set_clr
from hibernaut.linux.environment import FailAllocations
from hibernaut.linux.kernel_image import KernelImage
from hibernaut.linux.set_memory import (
    set_direct_map_default_noflush,
    set_direct_map_invalid_noflush,
    set_memory_4k,
    set_memory_np,
    set_memory_np_noalias,
    set_memory_nx,
    set_memory_ro,
    set_memory_rw,
    set_memory_x,
)
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.paging.entries import Entry, Level
from tests.linux.attribute_machines import (
    IMAGE,
    TEXT,
    TEXT_PROT,
    entry_of,
    machine,
    machine_with_image,
    text_entry,
    upper_entry,
)
from tests.machines import GIB


@pytest.mark.parametrize(("set_", "clear"), [(Entry.NX, 0), (0, Entry.RW)])
def test_writable_and_executable_is_allowed_if_a_level_above_forbids_it(set_: int, clear: int) -> None:
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


def test_read_only_first_does_not_violate() -> None:
    """RO, then X as modules do it; NX and RW again: nothing is ever both."""
    m = machine(rules="7.3")
    for change in (set_memory_ro, set_memory_x, set_memory_nx, set_memory_rw):
        change(m, m.vaddr(0x1000), 512)
    assert m.log.kernel_lines == ()
    assert entry_of(m, 0x1000) == (Level.PMD, 0x80000000010001A3)


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
def test_calls_that_leave_the_other_mapping_alone(line: str) -> None:
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
    """If another mapping may have changed, all translations are flushed, not only those of the request."""
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
    """No entry behind the image's last page: -EFAULT, without a message, as the mapping's end is imprecise."""
    m = machine_with_image("6.12")
    with pytest.raises(AttributeChangeError, match="EFAULT"):
        set_memory_np(m, TEXT + 0x3FF * PAGE_SIZE, 2)
    assert not any("zero pte" in line for line in m.log.kernel_lines)


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
    """The 2M entries of a split 1G entry keep the wrong right, with one warning; the split of one removes it."""
    m = machine(ram=((0, 2 * GIB),), largest=Level.PUD, tables=0x1000)
    m.kernel_image = KernelImage(GIB, GIB + 1024, TEXT, rodata_start_pfn=GIB + 600, rodata_end_pfn=GIB + 700)
    change_page_attr_set_clr(m, m.vaddr(GIB), 1, set_=Entry.SOFTW1)
    assert m.log.kernel_lines.count("CPA: Cannot fixup static protections for PUD split") == 1
    assert entry_of(m, GIB + 600)[1] & (Entry.RW | Entry.PSE) == Entry.RW | Entry.PSE
    change_page_attr_set_clr(m, m.vaddr(GIB + 512), 1, set_=Entry.SOFTW1)
    assert not entry_of(m, GIB + 600)[1] & Entry.RW
