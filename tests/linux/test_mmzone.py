# SPDX-License-Identifier: GPL-2.0-or-later
"""The allocator's structures as declared, against a real kernel's memory."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hibernaut.linux.mmzone import BUDDY_TYPE, LIST_POISON1, LIST_POISON2, STRUCT_PAGE, AllocatorPlaces
from hibernaut.memory.ranges import FrameRanges
from hibernaut.paging.tables import PageTables
from tests.conftest import Golden
from tests.linux.tiny_machine import END
from tests.machines import BASE4 as BASE
from tests.paging.golden_elf import golden_memory


def test_places_are_pages() -> None:
    """Each part of the state begins a page."""
    with pytest.raises(ValueError, match="0x90010"):
        AllocatorPlaces(0x40000, 0x90010, (0x91000,), END)


VMEMMAP = 0xFFFF_EA00_0000_0000
"""Address of the `struct page` of frame 0 in the golden guest's kernel (SPARSEMEM_VMEMMAP, no KASLR)."""

Pages = np.ndarray[tuple[int], np.dtype[np.void]]


@pytest.fixture(scope="module")
def real_pages(golden: Golden) -> Pages:
    """All `struct page`s of a real 6.1 with 256 MiB."""
    memory = golden_memory(golden("ram-6.1-lzo.elf"))
    tables = PageTables(memory, int(golden.expected["ram-6.1-lzo.elf"]["cr3"], 16))
    found = tables.translate(VMEMMAP + np.arange(1024, dtype=np.uint64) * np.uint64(4096))
    pages, present = memory.gather(found.pfns)
    assert present.all()
    array: Pages = pages.reshape(-1).view(STRUCT_PAGE)
    return array


def test_free_pages_of_a_real_kernel_look_as_declared(real_pages: Pages) -> None:
    """In a real 6.1 the blocks marked so are aligned and disjoint; all of their pages have _refcount 0 and type -1."""
    heads = np.flatnonzero(real_pages["page_type"] == BUDDY_TYPE)
    orders = real_pages["private"][heads].astype(np.int64)
    assert len(heads) > 100
    assert set(orders.tolist()) == set(range(11))
    assert (heads % (1 << orders) == 0).all()
    free = FrameRanges.of(list(zip(heads.tolist(), (1 << orders).tolist(), strict=True)))
    assert free.total_pages == int((1 << orders).sum()) > 20000
    inside = real_pages[free.pfns()]
    assert not inside["_refcount"].any()
    assert set(np.unique(inside["page_type"]).tolist()) == {BUDDY_TYPE, 0xFFFFFFFF}


def test_links_that_a_real_kernel_does_not_use_are_poison_or_zero(real_pages: Pages) -> None:
    """In a real 6.1 pages within free blocks have the poison of `list_del`, most pages in use a NULL next."""
    unlinked = real_pages[real_pages["next"] == LIST_POISON1]
    assert len(unlinked) > 10000
    assert (unlinked["prev"] == LIST_POISON2).all()
    assert (unlinked["page_type"] == 0xFFFFFFFF).all()
    used = real_pages[real_pages["_refcount"] > 0]
    assert np.count_nonzero(used["next"] == 0) > len(used) // 2


def test_a_real_zone_counts_what_is_on_its_lists(golden: Golden, real_pages: Pages) -> None:
    """Followed by `next`, every free block of a real 6.1 leads to a head in an array of free areas, whose nr_free fits.

    That kernel has lists for 5 migrate types in each area: 88 bytes, the count last.
    """
    memory = golden_memory(golden("ram-6.1-lzo.elf"))
    lists: dict[tuple[int, int], int] = {}
    for pfn in np.flatnonzero(real_pages["page_type"] == BUDDY_TYPE).tolist():
        order, at = int(real_pages["private"][pfn]), int(real_pages["next"][pfn])
        while VMEMMAP <= at < VMEMMAP + 64 * len(real_pages):
            at = int(real_pages["next"][(at - VMEMMAP) // 64])
        lists[order, at] = lists.get((order, at), 0) + 1
    starts = sorted({head - 88 * order for order, head in lists})
    zones = [start for start in starts if not any(start - other in (16, 32, 48, 64) for other in starts)]
    assert len(zones) == 2
    for zone, order in itertools.product(zones, range(11)):
        area = zone + 88 * order
        found = sum(blocks for (of, head), blocks in lists.items() if of == order and 0 <= head - area < 80)
        assert memory.read_u64(area + 80 - BASE) == found
