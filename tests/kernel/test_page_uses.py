# SPDX-License-Identifier: GPL-2.0-or-later
"""Uses of page frames by `struct page`, compared with the kernel's own counters and with drgn."""

from __future__ import annotations

import pytest

from hibernaut.errors import FormatError
from hibernaut.kernel.kernel import Kernel
from hibernaut.kernel.page_uses import kernel_image_frames, page_uses
from hibernaut.kernel.suspend import kernel_state
from hibernaut.memory.overlay import Overlay
from hibernaut.memory.ranges import FrameRanges
from hibernaut.sources import open_memory
from tests.conftest import Golden
from tests.kernel.stopped import StoppedKernel

drgn = pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn")

END = 0x10000
IMAGES = ("swap-6.1-low2m.img", "swap-6.12-lz4.img", "ram-6.1-lzo.elf", "ram-6.1-secretmem.elf")


def free_by_zones(kernel: Kernel) -> int:
    """Return the pages in free blocks by the lists' own counters (`struct free_area.nr_free`)."""
    node = kernel["node_data"][0] if "node_data" in kernel else kernel["contig_page_data"].address_of_()
    return sum(int(area.nr_free) << order for zone in node.node_zones for order, area in enumerate(zone.free_area))


@pytest.mark.parametrize("name", IMAGES)
def test_free_frames_are_as_many_as_the_allocator_counts(golden: Golden, name: str) -> None:
    """The sum of the counters of all zones and orders, exactly; 6.12 has its page type in the top byte."""
    with open_memory(golden(name)) as source:
        kernel = Kernel.of(source)
        found = page_uses(kernel, END)
        assert found.free.total_pages == free_by_zones(kernel)
        assert found.described.total_pages == END
        # Slab pages and cached files are counted per node; what a CPU has not yet added is not in the counter.
        assert found.slab.total_pages > 1000
        for some in (found.slab, found.anonymous, found.cache, found.mem_map):
            assert not len(some.within(found.free))


def test_a_listed_page_is_never_free(golden: Golden) -> None:
    """The kernel's list of pages to save and its free blocks have no frame in common."""
    with open_memory(golden("ram-6.1-lzo.elf")) as source:
        state = kernel_state(source.memory, source.vmcoreinfo)
        found = page_uses(Kernel.of(source), END)
    assert not len(FrameRanges.of_pfns(state.pfns).within(found.free))


def test_uses_are_those_that_drgn_reads(kernel: StoppedKernel) -> None:
    """PageSlab, PageAnon and PageLRU of drgn's helpers, for frames all over memory."""
    from drgn.helpers.linux.mm import PageLRU, PageSlab, PageTail, pfn_to_page

    mine = Kernel(kernel.memory, kernel.text)
    found = page_uses(mine, END)
    program = mine.drgn()
    checked = 0
    for pfn in range(0x100, END - 64, 97):
        page = pfn_to_page(program, pfn)
        if found.free.end_of(pfn) or PageTail(page):
            continue
        checked += 1
        assert bool(found.slab.end_of(pfn)) == bool(PageSlab(page)), hex(pfn)
        in_lists = bool(found.anonymous.end_of(pfn) or found.cache.end_of(pfn))
        assert in_lists == bool(PageLRU(page)), hex(pfn)
    assert checked > 100


def test_frames_that_hold_struct_pages_are_those_of_their_addresses(kernel: StoppedKernel) -> None:
    """Every `struct page` of RAM lies in a frame of `mem_map`."""
    mine = Kernel(kernel.memory, kernel.text)
    found = page_uses(mine, END)
    assert found.mem_map.total_pages == END * 64 // 4096
    for pfn in (0, 0x3F88, END - 1):
        assert found.mem_map.end_of(kernel.paddr(int(mine["vmemmap"]) + 64 * pfn) >> 12)


def test_a_changed_struct_page_changes_its_frame(kernel: StoppedKernel) -> None:
    """The head of a free block that is marked as in use frees nothing: its frames leave the set."""
    mine = Kernel(kernel.memory, kernel.text)
    before = page_uses(mine, END)
    pfn = int(before.free.starts[-1])
    overlay = Overlay(kernel.memory)
    at = int(mine["vmemmap"]) + 64 * pfn + int(kernel.facts["OFFSET(page._mapcount)"])
    overlay.write(kernel.paddr(at), (0xFFFF_FFFF).to_bytes(4, "little"))
    after = page_uses(Kernel(overlay, kernel.text), END)
    assert not after.free.end_of(pfn)
    assert after.free.total_pages < before.free.total_pages


def test_the_kernel_image_is_where_its_symbols_are(kernel: StoppedKernel) -> None:
    """Text, rodata and data without init memory, which is free by now."""
    mine = Kernel(kernel.memory, kernel.text)
    found = kernel_image_frames(mine)
    assert found["text"].end_of(kernel.paddr(mine.symbols["swsusp_save"].address) >> 12)
    assert found["rodata"].end_of(kernel.paddr(mine.symbols["linux_banner"].address) >> 12)
    assert found["data"].end_of(kernel.paddr(mine.symbols["init_task"].address) >> 12)
    init = kernel.paddr(mine.symbols["__init_begin"].address) >> 12
    assert not any(frames.end_of(init) for frames in found.values())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SIZE(page)", "63"),
        ("SIZE(page)", "0"),
        ("SIZE(page)", "8192"),
        ("OFFSET(page._mapcount)", "62"),
        ("OFFSET(page.flags)", "64"),
        ("NUMBER(PG_lru)", "64"),
        ("OFFSET(page.private)", "-8"),
    ],
)
def test_impossible_places_are_refused(kernel: StoppedKernel, key: str, value: str) -> None:
    """A size that does not divide a page, and fields outside it."""
    mine = Kernel(kernel.memory, kernel.text)
    mine.facts = {**mine.facts, key: value}
    with pytest.raises(FormatError):
        page_uses(mine, END)


def test_without_its_facts_nothing_is_guessed(kernel: StoppedKernel) -> None:
    """A VMCOREINFO without the value of free pages is refused by its name."""
    mine = Kernel(kernel.memory, kernel.text)
    mine.facts = {name: value for name, value in mine.facts.items() if "BUDDY" not in name}
    with pytest.raises(FormatError, match="PAGE_BUDDY_MAPCOUNT_VALUE"):
        page_uses(mine, END)


@pytest.mark.parametrize("end_pfn", [1 << 46, 1 << 52])
def test_frames_beyond_the_address_space_are_refused(kernel: StoppedKernel, end_pfn: int) -> None:
    """More frames than `struct page` have addresses for."""
    with pytest.raises(FormatError, match="beyond the address space"):
        page_uses(Kernel(kernel.memory, kernel.text), end_pfn)
