# SPDX-License-Identifier: GPL-2.0-or-later
"""Scans of real kernels' tables, against a naive walk of the raw bytes and against drgn."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from hibernaut.memory.segments import SegmentMemory
from hibernaut.paging.entries import Level
from hibernaut.paging.tables import PageTables, Stop
from tests.conftest import Golden
from tests.paging.golden_elf import golden_memory

DUMPS = ("ram-6.1-lzo.elf", "ram-6.1-secretmem.elf", "ram-6.1-low2m.elf")
FRAME = 0x000F_FFFF_FFFF_F000


def enumerate_leaves(
    memory: SegmentMemory, pfn: int, level: int, vaddr: int, leaves: dict[int, tuple[int, int]]
) -> None:
    """Every non-zero stop below a table, one entry at a time: vaddr -> (level, entry). Tables are read by `struct`."""
    page = memory.page(pfn)
    assert page is not None
    for index, entry in enumerate(struct.unpack("<512Q", page.tobytes())):
        at = vaddr + (index << (3 + 9 * level))
        if level == 4 and index >= 256:
            at |= 0xFFFF << 48
        if entry & ~0x60 == 0:
            continue
        if entry & 1 and level > 1 and not (level < 4 and entry & 0x80):
            enumerate_leaves(memory, (entry & FRAME) >> 12, level - 1, at, leaves)
        else:
            leaves[at] = (level, entry)


@pytest.mark.parametrize("name", DUMPS)
def test_every_leaf_of_a_real_kernel_is_in_the_scan_and_no_other(golden: Golden, name: str) -> None:
    """All leaves, user and kernel half, equal a recursive enumeration (the shared espfix tables apart)."""
    memory = golden_memory(golden(name))
    tables = PageTables(memory, int(golden.expected[name]["cr3"], 16))
    spans = tables.scan()
    shared = spans.of_state(Stop.SHARED)
    found = {}
    for number, span in enumerate(spans):
        if span.state in (Stop.PRESENT, Stop.NOT_PRESENT):
            for page in range(0, span.pages, span.level.pages):
                found[span.vaddr + (page << 12)] = (int(span.level), spans.entry_at(number, page))
    expected: dict[int, tuple[int, int]] = {}
    root = memory.page(tables.root_pfn)
    assert root is not None
    # Whole P4D entries in which tables are shared are left out: enumerated naively they are millions of leaves.
    skip = {int(vaddr) >> 39 & 511 for vaddr in shared.vaddr}
    assert len(skip) <= 1
    for index, entry in enumerate(struct.unpack("<512Q", root.tobytes())):
        if entry and index not in skip:
            vaddr = index << 39 | (0xFFFF << 48 if index >= 256 else 0)
            enumerate_leaves(memory, (entry & FRAME) >> 12, 3, vaddr, expected)
    assert {vaddr: leaf for vaddr, leaf in found.items() if vaddr >> 39 & 511 not in skip} == expected
    assert len(expected) > 5000


@pytest.mark.parametrize("name", DUMPS)
def test_a_million_translations_equal_the_scan(golden: Golden, name: str) -> None:
    """Random addresses near mapped ones: bulk translation, the scan's spans and single walks agree."""
    memory = golden_memory(golden(name))
    tables = PageTables(memory, int(golden.expected[name]["cr3"], 16))
    spans = tables.scan()
    random = np.random.default_rng(1)
    which = random.integers(0, len(spans), 1_000_000)
    page = (random.random(len(which)) * np.minimum(spans.pages[which], 1 << 30)).astype(np.uint64)
    vaddrs = spans.vaddr[which] + (page << np.uint64(12))
    found = tables.translate(vaddrs)
    plain = spans.state[which] <= Stop.TABLE_MISSING.code
    assert (found.reasons[plain] == spans.state[which][plain]).all()
    assert (found.levels[plain] == spans.level[which][plain]).all()
    leaf = np.isin(found.reasons, [Stop.PRESENT.code, Stop.NOT_PRESENT.code]) & plain & (spans.pfn[which] >= 0)
    assert (found.pfns[leaf] == spans.pfn[which][leaf] + page[leaf].astype(np.int64)).all()
    assert leaf.sum() > 100_000
    for number in range(0, len(which), 20_000):
        walk = tables.walk(int(vaddrs[number]))
        assert (walk.stop.code, walk.entry, walk.level) == (
            found.reasons[number],
            found.entries[number],
            found.levels[number],
        )
        assert found.pfns[number] == (-1 if walk.pfn is None else walk.pfn)


def test_the_known_entry_of_a_real_machine(golden: Golden) -> None:
    """PMD table at frame 0x4402, index 2: 0x800fffffffbff062, 2 MiB of not-present frames from 0x400 on."""
    tables = PageTables(golden_memory(golden("ram-6.1-low2m.elf")), 0x487C000)
    walk = tables.walk(0xFFFF_8880_0040_0000)
    step = walk.steps[-1]
    assert (step.level, step.table_pfn, step.index, step.entry) == (Level.PMD, 0x4402, 2, 0x800F_FFFF_FFBF_F062)
    assert (walk.stop, walk.pfn, walk.rw, walk.nx, walk.user) == (Stop.NOT_PRESENT, 0x400, True, True, False)
