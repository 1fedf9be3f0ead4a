# SPDX-License-Identifier: GPL-2.0-or-later
"""Entries that are not present: frames of either form, swap entries of every layout, and marks without a slot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.linux.not_present import NotPresent, NotPresentKind, StoredFrame, SwapSlot, meaning_of, swap_flags
from hibernaut.paging.tables import PageTables
from hibernaut.swsusp.image import open_image
from tests.machines import BASE4
from tests.paging.layouts import GLOBAL, KERNEL, RW, USER, TableLayout, inverted

if TYPE_CHECKING:
    from tests.conftest import Golden

PAGES = 4096
VMALLOC = 0xFFFF_C900_0000_0000
USER_PAGE = 0x5E0000


def meaning(vaddr: int, entry: int, level: int = 1) -> NotPresent:
    """Return the meaning of an entry for an address, in tables with a direct map of 16 MiB."""
    layout = TableLayout()
    layout.fill(BASE4, 1, 0, PAGES)
    layout.tables[layout.table_for(vaddr, level) or 0].pop(layout.index(vaddr, level), None)
    layout.put(vaddr, level, entry)
    tables = PageTables(layout.memory(extra=[(0, PAGES)]), layout.root << 12)
    found = meaning_of(tables, tables.walk(vaddr))
    assert found is not None
    return found


def swap(area: int, slot: int, flags: int = 0) -> int:
    """Return a swap entry as kernels since 4.19 write it: type in bits 59-63, offset inverted in bits 9-58."""
    return area << 59 | (~slot & ((1 << 50) - 1)) << 9 | flags


@pytest.mark.parametrize("flags", [RW, KERNEL & ~1, 0x8000000000000160])
@pytest.mark.parametrize("plain", [False, True])
def test_a_frame_of_the_direct_map_by_its_place(flags: int, plain: bool) -> None:
    """Of the two readings the one counts that is the frame of the address."""
    entry = 0x805 << 12 | flags if plain else inverted(0x805, flags)
    found = meaning(BASE4 + (0x805 << 12), entry)
    assert found == NotPresent(NotPresentKind.FRAME, (StoredFrame(0x805, not plain),))


@pytest.mark.parametrize("plain", [False, True])
def test_a_large_entry_by_its_place(plain: bool) -> None:
    """In a 2M entry the frame is that of the address, inside the block."""
    entry = 0x800 << 12 | 0x62 if plain else inverted(0x800, 0x62)
    layout = TableLayout()
    layout.fill(BASE4, 2, 0, PAGES)
    layout.put(BASE4 + (0x800 << 12), 2, entry)
    tables = PageTables(layout.memory(extra=[(0, PAGES)]), layout.root << 12)
    found = meaning_of(tables, tables.walk(BASE4 + (0x8AB << 12) + 0x123))
    assert found == NotPresent(NotPresentKind.FRAME, (StoredFrame(0x8AB, not plain),))


def test_elsewhere_in_the_kernel_half_ram_decides() -> None:
    """A vmalloc address has no place of its own: the reading that is a frame of RAM counts; if none is, both do."""
    assert meaning(VMALLOC, inverted(0x805, RW)).frames == (StoredFrame(0x805, True),)
    assert meaning(VMALLOC, 0x805 << 12 | RW).frames == (StoredFrame(0x805, False),)
    neither = meaning(VMALLOC, 0x80_0000_0000 << 12 | RW)
    assert neither.frames == (StoredFrame(0x7F_FFFF_FFFF, True), StoredFrame(0x80_0000_0000, False))


def test_garbage_in_the_direct_map_is_read_like_any_other() -> None:
    """An entry that names another frame, inverted, names that frame."""
    assert meaning(BASE4 + (0x805 << 12), inverted(0x999, RW)).frames == (StoredFrame(0x999, True),)


@given(st.integers(0, 22), st.integers(0, (1 << 41) - 1), st.sampled_from((0, 2, 4, 8, 14)))
def test_any_swap_entry(area: int, slot: int, flags: int) -> None:
    """Area and slot come back, whatever the flags."""
    found = meaning(USER_PAGE, swap(area, slot, flags))
    assert found == NotPresent(NotPresentKind.SWAP, slots=(SwapSlot(area, slot, True),))


def test_marks_without_a_slot() -> None:
    """The highest types are migration, hwpoison, device and marker entries: 6.1 of Debian has 9 of them."""
    kinds = [meaning(USER_PAGE, swap(area, 0x1234)).kind for area in range(32)]
    assert kinds == [NotPresentKind.SWAP] * 23 + [NotPresentKind.NOT_A_SLOT] * 9
    assert meaning(USER_PAGE, swap(25, 0x400), level=2).kind == NotPresentKind.NOT_A_SLOT  # a huge page that moves


def test_protnone_has_a_frame() -> None:
    """GLOBAL without PRESENT in a user entry: the frame, inverted since 4.19, as it is before."""
    assert meaning(USER_PAGE, inverted(0x805, GLOBAL | USER)) == NotPresent(
        NotPresentKind.PROTNONE, (StoredFrame(0x805, True),)
    )
    assert meaning(USER_PAGE, 0x805 << 12 | GLOBAL).frames == (StoredFrame(0x805, False),)


def test_older_layouts_are_all_told() -> None:
    """An offset that is not inverted is older than 4.19: three layouts, and nothing in the entry decides."""
    found = meaning(USER_PAGE, 3 << 9 | 0x1234 << 14)
    assert found.kind == NotPresentKind.SWAP
    assert found.slots[0] == SwapSlot(3, 0x1234, False)
    assert len(found.slots) == 3
    assert not any(slot.inverted for slot in found.slots)


def test_neither_form() -> None:
    """An entry whose upper bits are neither all set nor clear is not a swap entry; nor is one above PMD level."""
    assert meaning(USER_PAGE, 0x00AB_0000_0000_0200).kind == NotPresentKind.UNKNOWN
    assert meaning(USER_PAGE, swap(0, 5), level=3).kind == NotPresentKind.UNKNOWN
    assert meaning(USER_PAGE, swap(0, 5), level=4).kind == NotPresentKind.UNKNOWN


def test_present_entries_have_no_such_meaning() -> None:
    """Only a walk that ends at a not-present entry asks."""
    layout = TableLayout()
    layout.fill(BASE4, 1, 0, 512)
    tables = PageTables(layout.memory(), layout.root << 12)
    assert meaning_of(tables, tables.walk(BASE4)) is None
    assert meaning_of(tables, tables.walk(VMALLOC)) is None


def test_flags_of_a_swap_entry() -> None:
    """Soft dirty, userfaultfd's write protection, exclusive."""
    assert swap_flags(swap(0, 5, 14)) == ["SWP_SOFT_DIRTY", "SWP_UFFD_WP", "SWP_EXCLUSIVE"]
    assert swap_flags(swap(0, 0xFFFF)) == []


def test_swapped_out_pages_of_a_real_image(golden: Golden) -> None:
    """Init's pages that 6.1 had pushed out before: 15 slots of area 0, none of them a block of the image."""
    with open_image(golden("swap-6.1-lzo.img")) as image:
        memory = image.memory()
        tables = PageTables(memory, image.info.cr3, 4)
        found: list[SwapSlot] = []
        for span in tables.scan(0, 1 << 47):
            for page in range(span.pages) if str(span.state) == "not-present" else ():
                one = meaning_of(tables, tables.walk(span.vaddr + (page << 12)))
                assert one is not None
                found += one.slots
    assert {slot.area for slot in found} == {0}
    assert sorted(slot.slot for slot in found) == [0x7A, *range(0x17A, 0x185), *range(0x18F, 0x192)]
