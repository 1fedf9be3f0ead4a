# SPDX-License-Identifier: GPL-2.0-or-later
"""Free pages and marks of a real kernel's zones, against its free lists; and zones that are damaged."""

from __future__ import annotations

import dataclasses

import pytest

from hibernaut.errors import FormatError
from hibernaut.kernel.kernel import Kernel
from hibernaut.kernel.page_uses import page_uses
from hibernaut.kernel.reserves import CpuRefill, ZoneReserve, memory_reserves
from hibernaut.memory.overlay import Overlay
from hibernaut.sources import open_memory
from tests.conftest import Golden
from tests.kernel.stopped import StoppedKernel

pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn")

SOURCES = ("swap-6.1-low2m.img", "swap-6.12-lz4.img", "ram-6.1-lzo.elf", "ram-6.1-secretmem.elf")
END = 0x10000
ZONE = ZoneReserve("DMA32", 0, 9999, 9999, 400, 100, 512, 50, 30, 7, 125, 150, 0, CpuRefill(63), 4, True)


@pytest.mark.parametrize("name", SOURCES)
def test_free_pages_are_those_on_the_free_lists(golden: Golden, name: str) -> None:
    """NR_FREE_PAGES of all zones is what the `struct page`s say, but for what a CPU has not added up."""
    with open_memory(golden(name)) as source:
        kernel = Kernel.of(source)
        found = memory_reserves(kernel)
        free = page_uses(kernel, END).free.total_pages
    assert abs(found.free_pages - free) <= found.stat_threshold
    assert sum(zone.present_pages for zone in found.zones) in (65403, 65406)
    assert [zone.name for zone in found.zones] == ["DMA", "DMA32"]
    assert all(zone.serves_kernel and zone.refill.batch > 0 for zone in found.zones)
    assert all(0 < zone.min_pages < zone.low_pages < zone.high_pages for zone in found.zones)
    assert 0 < found.kept_pages < found.free_pages


def test_the_reserve_of_all_zones_is_what_the_kernel_adds_up(golden: Golden) -> None:
    """`totalreserve_pages` is the sum of the high marks and of the largest protection of each zone."""
    with open_memory(golden("ram-6.1-lzo.elf")) as source:
        found = memory_reserves(Kernel.of(source))
    assert found.totalreserve_pages == sum(zone.high_pages + zone.protection_pages for zone in found.zones)


def test_only_a_kernel_that_hibernates_has_pages_for_an_image(golden: Golden) -> None:
    """The secretmem dump is of a kernel that refuses to."""
    with open_memory(golden("ram-6.1-secretmem.elf")) as source:
        assert memory_reserves(Kernel.of(source)).image_pages == 0
    with open_memory(golden("ram-6.1-lzo.elf")) as source:
        assert memory_reserves(Kernel.of(source)).image_pages > 19_000


def test_a_zone_keeps_its_mark_and_protection() -> None:
    """The mark, the protection and what is free for others; all of a zone that does not serve the kernel."""
    assert ZONE.kept_pages == 137
    assert dataclasses.replace(ZONE, free_pages=90).kept_pages == 90
    assert dataclasses.replace(ZONE, serves_kernel=False).kept_pages == 400


def damaged(kernel: StoppedKernel, member: str, value: int, size_bytes: int = 8) -> Kernel:
    """Return the kernel with a value in the first zone."""
    mine = Kernel(kernel.memory, kernel.text)
    node = mine["node_data"][0]
    zone = node.node_zones[0]
    at = zone
    for part in member.split("."):
        at = at[int(part)] if part.isdecimal() else at.member_(part)
    overlay = Overlay(kernel.memory)
    overlay.write(kernel.paddr(int(at.address_)), value.to_bytes(size_bytes, "little"))
    return Kernel(overlay, kernel.text)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("vm_stat.0.counter", 5000),
        ("spanned_pages", 1 << 50),
        ("_watermark.0", 1 << 45),
        ("per_cpu_pageset", 1 << 40),
        ("free_area.10.free_list.1.next", 0x1234),
    ],
)
def test_a_damaged_zone_is_refused(kernel: StoppedKernel, member: str, value: int) -> None:
    """More free pages than there are, impossible marks, per-CPU lists and free lists that lead nowhere."""
    with pytest.raises(FormatError):
        memory_reserves(damaged(kernel, member, value))


def test_a_list_that_leads_back_into_itself_is_refused(kernel: StoppedKernel) -> None:
    """A cycle is found by its `prev`, not counted for ever."""
    mine = Kernel(kernel.memory, kernel.text)
    area = next(one for one in mine["node_data"][0].node_zones[1].free_area if int(one.nr_free) > 1)
    first = int(area.free_list[0].next)
    overlay = Overlay(kernel.memory)
    second = int.from_bytes(kernel.memory.read(kernel.paddr(first), 8) or b"", "little")
    overlay.write(kernel.paddr(second), first.to_bytes(8, "little"))
    if second == int(area.free_list[0].address_):
        pytest.skip("the list has one block")
    with pytest.raises(FormatError, match="broken"):
        memory_reserves(Kernel(overlay, kernel.text))


def test_offline_pages_are_counted(kernel: StoppedKernel) -> None:
    """A `struct page` of that type, as the balloon marks its pages."""
    mine = Kernel(kernel.memory, kernel.text)
    none = page_uses(mine, END).offline
    assert none is not None
    assert not len(none)
    value = int(mine.facts["NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)"]) & 0xFFFF_FFFF
    pfn = 0x3000
    at = int(mine["vmemmap"]) + 64 * pfn + int(mine.facts["OFFSET(page._mapcount)"])
    overlay = Overlay(kernel.memory)
    overlay.write(kernel.paddr(at), value.to_bytes(4, "little"))
    changed = Kernel(overlay, kernel.text)
    found = page_uses(changed, END).offline
    assert found is not None
    assert found.pfns().tolist() == [pfn]
    # A kernel without CONFIG_HUGETLB_PAGE does not name the type: it is the one beside that of free pages.
    changed.facts = {key: one for key, one in changed.facts.items() if "OFFLINE" not in key}
    derived = page_uses(changed, END).offline
    assert derived is not None
    assert derived.pfns().tolist() == [pfn]
    changed.facts |= {"NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)": "-1073741825"}
    assert page_uses(changed, END).offline is None
