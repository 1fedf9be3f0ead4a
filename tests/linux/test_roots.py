# SPDX-License-Identifier: GPL-2.0-or-later
"""The roots of page tables, found in memory that does not name them."""

from __future__ import annotations

import re
from typing import Any
from unittest import mock

import numpy as np
import pytest

from hibernaut.errors import FormatError
from hibernaut.linux.direct_map import START_KERNEL_MAP, DirectMap
from hibernaut.linux.roots import MOST_KERNEL_HALVES, find_root, find_roots
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.ranges import FrameRanges
from hibernaut.memory.segments import Segment, SegmentMemory
from hibernaut.swsusp.image import open_image
from tests.conftest import Golden
from tests.paging.golden_elf import golden_memory
from tests.paging.layouts import KERNEL, TABLE_FLAGS, TableLayout

BASE = {4: 0xFFFF_8880_0000_0000, 5: 0xFF11_0000_0000_0000}


def machine(levels: int, base: int | None = None, processes: int = 2, image: bool = True) -> TableLayout:
    """16 MiB of RAM mapped; the kernel's root at 0x100; processes' roots and a freed one share its kernel half."""
    layout = TableLayout(levels=levels)
    base = BASE[levels] if base is None else base
    layout.fill(base, 1, 0, 0x400)
    layout.fill(base + (0x400 << 12), 2, 0x400, 0xC00)
    if image:
        layout.fill(START_KERNEL_MAP + (0x100 << 12), 1, 0x100, 1, flags=KERNEL)
    upper = {index: entry for index, entry in layout.tables[layout.root].items() if index >= 256}
    for number in range(processes):
        layout.tables[0x300 + number] = {number: 0x350 << 12 | TABLE_FLAGS, **upper}
    layout.tables[0x350] = {}
    return layout


def memory_of(layout: TableLayout) -> PhysicalMemory:
    """Return tables among pages of noise."""
    noise = np.random.default_rng(5).integers(0, 256, (0x400, 4096), dtype=np.uint8)
    memory = layout.memory(extra=[(0, 0xC00)])
    pieces = [Segment(start, memory.run(start, pages)) for start, pages in memory.ranges if pages]
    return SegmentMemory([*_whole(memory), Segment(0xC00, noise), *pieces])


def _whole(memory: SegmentMemory) -> list[Segment]:
    return [Segment(start, pages) for start, pages in memory.blocks(4096)]


@pytest.mark.parametrize("name", ["ram-6.1-lzo.elf", "ram-6.1-secretmem.elf", "ram-6.1-low2m.elf"])
def test_the_root_of_a_real_kernel_is_its_swapper_pg_dir(golden: Golden, name: str) -> None:
    """Read as if no CR3 were known: the root equals the symbol in the kernel's own notes, and gives the same map."""
    memory = golden_memory(golden(name))
    root = find_root(memory)
    assert root.cr3 == swapper_pg_dir(memory)
    noted = DirectMap.find(memory, int(golden.expected[name]["cr3"], 16))
    found = DirectMap.find(memory, root.cr3)
    assert (found.base, found.end_pfn, found.holes) == (noted.base, noted.end_pfn, noted.holes)
    assert found.present_bytes == noted.present_bytes
    assert root.mapped_bytes == sum(noted.present_bytes.values())
    assert int(golden.expected[name]["cr3"], 16) in [candidate.cr3 for candidate in find_roots(memory)]


def swapper_pg_dir(memory: PhysicalMemory) -> int:
    """Physical address of the kernel's root, by the text of its VMCOREINFO in RAM."""
    texts = []
    for start, pages in memory.blocks():
        for match in re.finditer(rb"OSRELEASE=\d", pages.tobytes()):
            text = memory.read((start << 12) + match.start(), 4096) or b""
            texts.append(text.split(b"\0", 1)[0].decode())
    notes = max(texts, key=len)
    symbol = re.search(r"SYMBOL\(swapper_pg_dir\)=([0-9a-f]+)", notes)
    offset = re.search(r"NUMBER\(phys_base\)=(-?\d+)", notes)
    assert symbol is not None
    assert offset is not None
    return int(symbol[1], 16) - START_KERNEL_MAP + int(offset[1])


def test_the_root_of_a_real_image_with_kaslr(golden: Golden) -> None:
    """In the 6.12 image the image's own CR3 is a candidate, and all candidates agree about the direct map."""
    with open_image(golden("swap-6.12-lz4.img")).memory() as memory:
        roots = find_roots(memory)
        cr3 = int(golden.expected["swap-6.12-lz4.img"]["cr3"], 16)
        assert cr3 in [root.cr3 for root in roots]
        assert {(root.levels, root.base) for root in roots} == {(4, DirectMap.find(memory, cr3).base)}
        assert find_root(memory).cr3 == swapper_pg_dir(memory)


@pytest.mark.parametrize(
    ("levels", "base"),
    [(4, BASE[4]), (5, BASE[5]), (4, 0xFFFF_9A3F_C000_0000), (5, 0xFF38_CB21_8000_0000)],
)
def test_found_for_both_numbers_of_levels(levels: int, base: int) -> None:
    """A 5-level machine's tables below the root are not taken for 4-level roots, wherever KASLR put the map."""
    layout = machine(levels, base)
    memory = memory_of(layout)
    assert [(root.cr3, root.levels, root.base) for root in find_roots(memory)] == [
        (pfn << 12, levels, base) for pfn in (0x100, 0x300, 0x301)
    ]
    root = find_root(memory)
    assert (root.cr3, root.user_half_empty, root.in_kernel_image) == (0x100 << 12, True, True)


def test_freed_roots_are_told_apart_by_the_kernel_image() -> None:
    """Two roots with empty user halves: the one that the kernel's mapping of itself covers is the kernel's."""
    layout = machine(4)
    layout.tables[0x310] = dict(layout.tables[layout.root])
    assert find_root(memory_of(layout)).cr3 == 0x100 << 12


def test_refused_with_the_candidates_when_not_unique() -> None:
    """The same without a mapping of the kernel image: no guess, but a list to choose from."""
    layout = machine(4, image=False)
    layout.tables[0x310] = dict(layout.tables[layout.root])
    with pytest.raises(FormatError, match=r"not unique.*0x100000 \(4 levels\), 0x310000 \(4 levels\)"):
        find_root(memory_of(layout))


def test_a_single_candidate_needs_nothing_else() -> None:
    """A process's root alone, its user half in use, is the answer."""
    layout = machine(4, processes=0, image=False)
    layout.tables[layout.root][0] = 0x350 << 12 | TABLE_FLAGS
    assert find_root(memory_of(layout)).cr3 == 0x100 << 12


def test_no_root_is_an_error() -> None:
    """Noise and zeroes have none."""
    noise = np.random.default_rng(5).integers(0, 256, (512, 4096), dtype=np.uint8)
    with pytest.raises(FormatError, match="no page-table root"):
        find_root(SegmentMemory([Segment(0, noise), Segment(512, np.zeros_like(noise))]))


def test_a_root_that_does_not_map_itself_is_none() -> None:
    """A copy of the root in a frame that its tables do not map is not a candidate."""
    layout = machine(4, processes=0)
    layout.tables[0x5000] = dict(layout.tables[layout.root])
    assert [root.cr3 for root in find_roots(memory_of(layout))] == [0x100 << 12]


def test_a_root_that_another_mapping_covers_is_none() -> None:
    """Nor if some other 1 GiB-aligned mapping covers that frame: only the direct map counts."""
    layout = machine(4, processes=0)
    layout.fill(0xFFFF_C900_0000_0000 + (0x5000 << 12), 1, 0x5000, 1)
    layout.tables[0x5000] = dict(layout.tables[layout.root])
    assert [root.cr3 for root in find_roots(memory_of(layout))] == [0x100 << 12]


def test_many_different_tables_that_map_themselves() -> None:
    """The direct maps that are read are bounded; beyond the bound the error asks for the root."""
    layout = machine(4, processes=0)
    upper = {index: entry for index, entry in layout.tables[layout.root].items() if index >= 256}
    for number in range(200):
        layout.tables[0x300 + number] = {**upper, 300 + number: next(iter(upper.values()))}
    read = 0
    find = DirectMap.find

    def counted(*arguments: Any, **named: Any) -> DirectMap:
        nonlocal read
        read += 1
        return find(*arguments, **named)

    with (
        mock.patch.object(DirectMap, "find", counted),
        pytest.raises(FormatError, match="more than 64 different tables map themselves"),
    ):
        find_root(layout.memory(extra=[(0, 0xC00)]), 4)
    assert read <= MOST_KERNEL_HALVES + 1


def test_large_pages_are_not_followed_as_tables() -> None:
    """PMD tables of 1 TiB, read one level off, do not make the search read what their leaves map."""
    layout = TableLayout(root=0x10, next_pfn=0x11)
    for block in range(0x400):
        layout.put(BASE[4] + (block << 30), 2, block << 30 | KERNEL | 0x80)
    frames = sorted(layout.tables)
    for pfn in frames[2:]:
        if len(layout.tables[pfn]) == 1:
            first = next(iter(layout.tables[pfn].values()))
            layout.tables[pfn] = {index: first + (index << 21) for index in range(512)}
    tables = layout.memory()
    memory = SegmentMemory(
        [*_whole(tables), Segment(tables.ranges.end, np.broadcast_to(np.zeros((1, 4096), np.uint8), (1 << 28, 4096)))]
    )
    read = 0
    gather = SegmentMemory.gather

    def counted(self: SegmentMemory, pfns: Any, out: Any = None) -> Any:
        nonlocal read
        read += len(pfns)
        return gather(self, pfns, out)

    ram = FrameRanges.of_pfns(np.array(frames))
    with (
        mock.patch.object(SegmentMemory, "occupied", return_value=ram),
        mock.patch.object(SegmentMemory, "gather", counted),
    ):
        assert find_root(memory).cr3 == layout.root << 12
    assert read < 20 * len(frames)
