# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables that no kernel makes: loops, pyramids, garbage. A scan ends, with an answer or an error."""

from __future__ import annotations

import numpy as np
import pytest

from hibernaut.errors import FormatError
from hibernaut.memory.segments import SegmentMemory
from hibernaut.paging.entries import Level
from hibernaut.paging.tables import PageTables, Stop
from tests.machines import BASE4 as BASE
from tests.paging.layouts import (
    TABLE_FLAGS,
    TableLayout,
    canonical_pages,
    segments,
    tables_of,
)


def test_a_table_that_names_itself_is_a_loop() -> None:
    """A root that contains itself is cut at its own level; its other entries are scanned as ever."""
    layout = TableLayout()
    layout.fill(BASE, 1, 0, 512)
    layout.tables[layout.root][300] = layout.root << 12 | TABLE_FLAGS
    spans = tables_of(layout).scan()
    loops = [(s.level, s.pfn) for s in spans if s.state == Stop.LOOP]
    assert loops == [(Level.P4D, layout.root)]
    assert [s.pages for s in spans if s.state == Stop.PRESENT] == [512]


@pytest.mark.parametrize("levels", [4, 5])
def test_a_cycle_through_all_levels_is_cut(levels: int) -> None:
    """Tables that lead back to the root from the level above PTE are loops there, not descents without end."""
    layout = TableLayout(levels=levels)
    pud = layout.table_for(BASE, 2)
    assert pud is not None
    layout.tables[pud] = dict.fromkeys(range(512), layout.root << 12 | TABLE_FLAGS)
    loops = [s for s in tables_of(layout).scan() if s.state == Stop.LOOP]
    assert [(s.level, s.pages, s.pfn) for s in loops] == [(Level.PMD, 1 << 18, layout.root)]


@pytest.mark.parametrize("levels", [4, 5])
def test_a_pyramid_of_shared_tables_is_cut(levels: int) -> None:
    """512 entries naming one table at each level (2^36 or 2^45 leaves) end as few spans, all space covered."""
    layout = TableLayout(levels=levels)
    layout.fill(0, 1, 0x5000, 512)
    pfn = layout.root
    while layout.tables.get(pfn):
        entry = layout.tables[pfn][0]
        if (entry & 0x000F_FFFF_FFFF_F000) >> 12 in layout.tables:
            layout.tables[pfn] = dict.fromkeys(range(512), entry)
            pfn = (entry & 0x000F_FFFF_FFFF_F000) >> 12
        else:
            break
    spans = tables_of(layout).scan()
    assert int(spans.pages.sum()) == canonical_pages(levels)
    assert int(spans.of_state(Stop.PRESENT).pages.sum()) == 16 * 512
    assert len(spans) < 100
    assert spans.of_state(Stop.SHARED).pages.sum() + 16 * 512 == canonical_pages(levels)


def test_tables_that_all_name_each_other_end_with_an_error() -> None:
    """1500 tables full of entries that name random ones of them exceed what the frames could hold in earnest."""
    random = np.random.default_rng(7)
    words = random.integers(0, 1500, (1500, 512)).astype(np.uint64) << np.uint64(12) | np.uint64(TABLE_FLAGS)
    memory = SegmentMemory([*segments(words)])
    with pytest.raises(FormatError, match="not real tables"):
        PageTables(memory, 0, 5).scan()


def test_garbage_for_tables_ends() -> None:
    """A scan of random bytes ends, normally or with the one error, and covers all space if it ends normally."""
    for seed in range(8):
        random = np.random.default_rng(seed)
        words = random.integers(0, 1 << 64, (64, 512), dtype=np.uint64) & np.uint64(0x8000_0000_0003_FFFF)
        tables = PageTables(SegmentMemory([*segments(words)]), 0, 4)
        try:
            found = int(tables.scan().pages.sum())
        except FormatError:
            continue
        assert found == canonical_pages(4)
