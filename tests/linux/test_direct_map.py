# SPDX-License-Identifier: GPL-2.0-or-later
"""The direct map: found in real kernels' dumps and in made-up tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hibernaut.errors import FormatError
from hibernaut.linux.direct_map import START_KERNEL_MAP, DirectMap, FrameState, Hole, Mismatch
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.segments import Segment, SegmentMemory
from hibernaut.paging.entries import Level
from hibernaut.paging.tables import Stop
from hibernaut.swsusp.image import open_image
from tests.conftest import Golden
from tests.machines import BASE4, BASE5
from tests.paging.golden_elf import golden_memory
from tests.paging.layouts import FRAME, GLOBAL, KERNEL, PSE, RW, TABLE_FLAGS, Found, TableLayout, inverted, naive_walk

DUMPS = ("ram-6.1-lzo.elf", "ram-6.1-secretmem.elf", "ram-6.1-low2m.elf")


def small(base: int = BASE4, levels: int = 4, pages: int = 4096) -> TableLayout:
    """RAM 0 to `pages` frames, mapped by 4K entries up to 0x400 and by 2M pages above; the tables in it, from 0x100."""
    layout = TableLayout(levels=levels)
    layout.fill(base, 1, 0, 0x400)
    layout.fill(base + (0x400 << 12), 2, 0x400, pages - 0x400)
    return layout


def memory_of(layout: TableLayout, pages: int = 4096) -> PhysicalMemory:
    """Return the memory of a layout's tables."""
    return layout.memory(extra=[(0, pages)])


def find(layout: TableLayout, pages: int = 4096, levels: int | None = None) -> DirectMap:
    """Return the direct map that is found in the memory of a layout."""
    return DirectMap.find(memory_of(layout, pages), layout.root << 12, levels)


@pytest.mark.parametrize("name", DUMPS)
def test_real_kernels_as_expected(golden: Golden, name: str) -> None:
    """Base, bytes present by leaf size and every not-present run of the golden RAM dumps, exactly."""
    expected = golden.expected[name]
    found = DirectMap.find(golden_memory(golden(name)), int(expected["cr3"], 16))
    assert found.levels == 4
    assert found.base == int(expected["direct_map_base"], 16)
    assert f"0 up to {found.end_pfn:#x}" == expected["frames_considered"]
    assert found.present_bytes == expected["present_bytes"]
    runs = [[hex(h.start_pfn), h.pages, h.level.size, hex(h.entry)] for h in found.holes if h.kind == Stop.NOT_PRESENT]
    assert [run[: len(want)] for run, want in zip(runs, expected["not_present_runs"], strict=True)] == expected[
        "not_present_runs"
    ]
    assert found.mismatches == ()


def test_secret_pages_are_those_the_guest_printed(golden: Golden) -> None:
    """The frames that `classify` calls not-present 4K are the secret pages as the guest itself printed them."""
    name = "ram-6.1-secretmem.elf"
    found = DirectMap.find(golden_memory(golden(name)), 0x61FE000)
    frames = np.arange(0x10000)
    secret = frames[found.classify(frames) == FrameState.NOT_PRESENT_4K]
    printed: list[list[Any]] = golden.expected[name]["secret_pages_as_printed_by_the_guest"]
    assert secret.tolist() == [int(start, 16) + page for start, pages in printed for page in range(pages)]
    assert len(secret) == 1292


def test_the_table_that_a_real_image_lacks(golden: Golden) -> None:
    """In swap-6.1-low2m.img the PMD entry of frame 0x400 names table 0xaac8, which is not in the image."""
    with open_image(golden("swap-6.1-low2m.img")).memory() as memory:
        found = DirectMap.find(memory, 0x487C000)
        holes = found.holes
    assert holes == (Hole(0x400, 512, Level.PMD, Stop.TABLE_MISSING, 0x0AAC8063, in_source=True),)
    assert set(found.classify(np.arange(0x400, 0x600)).tolist()) == {FrameState.TABLE_MISSING}


def test_a_real_image_with_kaslr(golden: Golden) -> None:
    """The 6.12 image's direct map is at another 1 GiB-aligned base; frames map themselves, by single walks."""
    with open_image(golden("swap-6.12-lz4.img")).memory() as memory:
        found = DirectMap.find(memory, int(golden.expected["swap-6.12-lz4.img"]["cr3"], 16))
        assert found.base != BASE4
        assert found.base % (1 << 30) == 0
        assert found.holes == ()
        for pfn in range(0x20, 0xFFDD, 997):
            assert found.tables.walk(found.vaddr(pfn)).pfn == pfn


@pytest.mark.parametrize(
    ("base", "levels"), [(BASE4, 4), (BASE5, 5), (0xFFFF_9A3F_C000_0000, 4), (0xFF38_4B21_8000_0000, 5)]
)
def test_found_with_and_without_kaslr_and_for_both_numbers_of_levels(base: int, levels: int) -> None:
    """The number of levels is detected; kernel text, vmalloc and an alias elsewhere do not mislead."""
    layout = small(base, levels)
    layout.fill(START_KERNEL_MAP + (0x400 << 12), 2, 0x400, 2048)
    layout.fill(0xFFFF_F000_0000_0000, 1, 0x900, 64, flags=KERNEL)
    for levels_told in (None, levels):
        found = find(layout, levels=levels_told)
        assert (found.base, found.levels, found.end_pfn) == (base, levels, 4096)
        assert found.present_bytes == {"4K": 0x400 << 12, "2M": (4096 - 0x400) << 12, "1G": 0}
        assert (found.holes, found.mismatches) == ((), ())


def test_every_kind_of_hole() -> None:
    """Not present at 4K and 2M, none in a table and above, a missing table, and garbage: each with its raw entry."""
    layout = small()
    for number, flags in enumerate((RW, RW | 0x20, 0x40, 0x200)):  # one hole, whatever the flags
        layout.put(BASE4 + ((0x10 + number) << 12), 1, inverted(0x10 + number, flags))
    layout.put(BASE4 + (0x20 << 12), 1, 0)
    layout.put(BASE4 + (0x400 << 12), 2, inverted(0x400, 0x8000000000000062))
    layout.put(BASE4 + (0x600 << 12), 2, inverted(0x600, 0x8000000000000062))
    layout.put(BASE4 + (0x800 << 12), 2, 0)
    layout.put(BASE4 + (0xA00 << 12), 2, 0xFEED000 | TABLE_FLAGS)
    layout.put(BASE4 + (0x30 << 12), 1, 0x777 << 12 | KERNEL)
    layout.put(BASE4 + (0x31 << 12), 1, inverted(0x999, RW))
    found = find(layout)
    assert found.holes == (
        Hole(0x10, 4, Level.PTE, Stop.NOT_PRESENT, inverted(0x10, RW), in_source=True),
        Hole(0x20, 1, Level.PTE, Stop.NONE, 0, in_source=True),
        Hole(0x400, 1024, Level.PMD, Stop.NOT_PRESENT, inverted(0x400, 0x8000000000000062), in_source=True),
        Hole(0x800, 512, Level.PMD, Stop.NONE, 0, in_source=True),
        Hole(0xA00, 512, Level.PMD, Stop.TABLE_MISSING, 0xFEED000 | TABLE_FLAGS, in_source=True),
    )
    assert found.mismatches == (
        Mismatch(0x30, 1, Level.PTE, 0x777 << 12 | KERNEL, 0x777),
        Mismatch(0x31, 1, Level.PTE, inverted(0x999, RW), 0x999),
    )
    asked = [0, 0x11, 0x500, 0x20, 0x801, 0xAFF, 0x30, 0x31, 0x5000, -1, 1 << 50]
    assert found.classify(np.array(asked)).tolist() == [0, 1, 2, 3, 4, 5, 6, 9, 4, 4, 4]


def test_holes_are_split_where_the_source_ends() -> None:
    """A hole over RAM and over no RAM is two, and the raw entry is the one that covers the first frame of each."""
    layout = small()
    layout.put(BASE4 + (0x600 << 12), 2, inverted(0x600, RW))
    layout.put(BASE4 + (0x800 << 12), 2, inverted(0x800, RW))
    memory = layout.memory(extra=[(0, 0x900), (0xA00, 0x600)])
    found = DirectMap.find(memory, layout.root << 12)
    assert found.holes == (
        Hole(0x600, 0x300, Level.PMD, Stop.NOT_PRESENT, inverted(0x600, RW), in_source=True),
        Hole(0x900, 0x100, Level.PMD, Stop.NOT_PRESENT, inverted(0x800, RW), in_source=False),
    )


def test_memory_apart_is_not_a_hole() -> None:
    """RAM in the source beyond the map with a gap before it is left out; RAM that the last entry leads into is not."""
    layout = small()
    layout.put(BASE4 + (0xE00 << 12), 2, 0)
    memory = layout.memory(extra=[(0, 4096), (0xFD000, 64)])
    found = DirectMap.find(memory, layout.root << 12)
    assert found.end_pfn == 4096
    assert found.holes == (Hole(0xE00, 512, Level.PMD, Stop.NONE, 0, in_source=True),)


def test_a_hole_at_the_end_belongs_to_the_map() -> None:
    """Not-present entries and missing tables right behind the last mapped frame are holes, RAM or not."""
    layout = small()
    layout.put(BASE4 + (0x1000 << 12), 2, inverted(0x1000, RW))
    layout.put(BASE4 + (0x1200 << 12), 2, 0xFEED000 | TABLE_FLAGS)
    found = find(layout)
    assert [(h.start_pfn, h.pages, h.in_source) for h in found.holes] == [(0x1000, 512, False), (0x1200, 512, False)]
    assert found.end_pfn == 0x1400


def test_no_direct_map_is_an_error_with_the_numbers() -> None:
    """Tables that map a quarter of RAM (none of it zeroes) at one difference are refused for 4 and for 5 levels."""
    layout = TableLayout()
    layout.fill(BASE4, 1, 0, 1024)
    tables = [Segment(start, pages) for start, pages in layout.memory().blocks()]
    memory = SegmentMemory([*tables, Segment(0, np.ones((4096, 4096), dtype=np.uint8))])
    with pytest.raises(FormatError, match=r"no direct map under CR3 0x100000 \(4 levels: .*4096 frames.*5 levels: "):
        DirectMap.find(memory, layout.root << 12)


def test_the_kernel_image_mapping_is_not_a_direct_map() -> None:
    """All of a small machine's frames mapped at __START_KERNEL_map alone is not a direct map."""
    layout = TableLayout()
    layout.fill(START_KERNEL_MAP, 2, 0, 4096)
    with pytest.raises(FormatError):
        find(layout)


def test_a_large_leaf_with_reserved_bits_is_not_the_frame_it_rounds_to() -> None:
    """A 2M entry whose frame is not a multiple of 512 faults on a real CPU; here it is a mismatch."""
    layout = small()
    layout.put(BASE4 + (0x600 << 12), 2, (0x610 << 12) | KERNEL | 0x80)
    found = find(layout)
    assert [(one.start_pfn, one.pages) for one in found.mismatches] == [(0x600, 512)]


@settings(max_examples=50, deadline=None)
def _state(walk: Found, pfn: int) -> FrameState:
    """Return the state of a frame by a naive walk of its address."""
    pte = walk.level == 1
    if walk.stop == "present":
        if not pte and walk.entry & 0x1FE000:
            return FrameState.RESERVED_BITS
        return FrameState.PRESENT if walk.pfn == pfn else FrameState.OTHER_FRAME
    if walk.stop == "none":
        return FrameState.NONE_IN_TABLE if pte else FrameState.NONE_ABOVE
    if walk.stop == "table-missing":
        return FrameState.TABLE_MISSING
    if not pte and walk.entry & (GLOBAL | PSE) == GLOBAL:
        return FrameState.NOT_FOLLOWED  # pmd_present is true of it, pmd_large is not
    if walk.entry & FRAME == (pfn if pte else pfn - pfn % 512) << 12:
        return FrameState.NOT_PRESENT_PLAIN if pte else FrameState.NOT_PRESENT_LARGE_PLAIN
    if walk.pfn != pfn:
        return FrameState.NOT_PRESENT_OTHER
    return FrameState.NOT_PRESENT_4K if pte else FrameState.NOT_PRESENT_LARGE


@given(st.data())
def test_classify_agrees_with_a_naive_walk_of_each_frame(data: st.DataObject) -> None:
    """For random holes of all kinds; ascending or shuffled frames; holes, mismatches and present bytes add up."""
    layout = small()
    for _ in range(data.draw(st.integers(0, 8))):
        pfn = data.draw(st.integers(0, 4095))
        level = data.draw(st.sampled_from((1, 2)))
        pfn -= pfn % 512 if level == 2 else 0
        choices = (0, inverted(pfn, RW), inverted(pfn + 512, RW), pfn << 12 | KERNEL | 0x80 * (level - 1))
        odd = (pfn << 12 | RW, pfn << 12 | RW | PSE, pfn << 12 | RW | GLOBAL, pfn << 12 | KERNEL | PSE | 0x4000)
        entry = data.draw(st.sampled_from((*choices, *odd, 0xFEED000 | TABLE_FLAGS)))
        if level == 1 and pfn >= 0x400 and data.draw(st.booleans()):
            layout.fill(BASE4 + (pfn - pfn % 512 << 12), 1, pfn - pfn % 512, 512)
        layout.put(BASE4 + (pfn << 12), level, entry)
    if layout.tables.keys() & {0}:
        return
    try:
        found = find(layout)
    except FormatError:
        return  # more than half was taken out
    frames = np.arange(4096)
    classes = found.classify(frames)
    shuffled = np.random.default_rng(0).permutation(frames)
    assert (found.classify(shuffled) == classes[shuffled]).all()
    for pfn in range(4096):
        assert classes[pfn] == _state(naive_walk(layout, BASE4 + (pfn << 12)), pfn)
    plain = classes == FrameState.PRESENT
    assert sum(found.present_bytes.values()) == 4096 * int(plain[: found.end_pfn].sum())
    covered = np.zeros(max(4096, found.end_pfn), dtype=np.int64)
    unmapped: tuple[Hole | Mismatch, ...] = (*found.holes, *found.mismatches)
    for one in unmapped:
        covered[one.start_pfn : one.start_pfn + one.pages] += 1
    end = min(4096, found.end_pfn)  # RAM further up without any entry does not count as a hole
    assert (covered[:end] == ~plain[:end]).all()
    assert not plain[end:].any()
    regions = found.regions
    assert (np.repeat(regions.state, np.minimum(regions.pages, 1 << 20))[:4096] == classes).all()


def test_states_of_a_terabyte_cost_what_is_different() -> None:
    """A terabyte of 1G pages with one 4K hole: four regions, whatever the RAM."""
    layout = TableLayout(root=0x10000100, next_pfn=0x10000101)
    layout.fill(BASE4, 3, 0, 1 << 28)
    layout.tables[layout.table_for(BASE4, 3) or 0].pop(0)
    layout.fill(BASE4, 2, 0, 1 << 18)
    layout.tables[layout.table_for(BASE4, 2) or 0].pop(3)
    layout.fill(BASE4 + (3 << 21), 1, 3 * 512, 512)
    layout.put(BASE4 + (3 << 21), 1, inverted(3 * 512, RW))
    found = DirectMap.find(layout.memory(extra=[(0, 8192)]), layout.root << 12)
    assert [(int(s), FrameState(int(k))) for s, k in zip(found.regions.start_pfn, found.regions.state, strict=True)][
        :4
    ] == [
        (0, FrameState.PRESENT),
        (1536, FrameState.NOT_PRESENT_4K),
        (1537, FrameState.PRESENT),
        (1 << 28, FrameState.NONE_ABOVE),
    ]
    assert found.present_bytes["1G"] == (1 << 40) - (1 << 30)


def test_the_first_of_many_holes() -> None:
    """Holes and wrong entries are listed up to a bound, with the number of all: they are spans until then."""
    layout = TableLayout()
    layout.fill(BASE4, 1, 0, 0x600)
    for pfn in range(0, 0x400, 2):
        layout.put(BASE4 + (pfn << 12), 1, 0 if pfn < 0x200 else (pfn + 9) << 12 | KERNEL)
    found = find(layout, 0x600)
    assert [found.first_holes(3), found.first_holes(0)] == [(found.holes[:3], 256), ((), 256)]
    assert found.first_mismatches(2) == (found.mismatches[:2], 256)
    assert (len(found.holes), len(found.mismatches)) == (256, 256)


def test_no_table_far_above_the_memory_is_part_of_the_map() -> None:
    """Stray words in the root behind a small memory's slot do not make a machine of terabytes."""
    layout = TableLayout()
    layout.fill(BASE4, 1, 0, 0x400)
    for slot in range(1, 4):
        layout.tables[layout.root][layout.index(BASE4, 4) + slot] = (1 << 39) + (slot << 12) | TABLE_FLAGS
    layout.fill(BASE4 + (0x400 << 12), 2, 0x400, 0x3FC00)  # up to the end of the slot, so that they follow
    for block in range(1, 512):
        layout.put(BASE4 + (block << 30), 3, block << 30 | KERNEL | PSE)
    assert find(layout, 0x400).end_pfn == 512 << 18
