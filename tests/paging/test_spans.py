# SPDX-License-Identifier: GPL-2.0-or-later
"""The spans of a scan: what is joined, where they end, and the rights that all levels give."""

from __future__ import annotations

import numpy as np
import pytest

from hibernaut.paging.entries import Level
from hibernaut.paging.spans import entry_steps
from hibernaut.paging.tables import Rights, Span, Stop
from tests.machines import BASE4 as BASE
from tests.paging.layouts import (
    KERNEL,
    NX,
    RW,
    USER,
    A,
    D,
    P,
    TableLayout,
    tables_of,
)


def test_a_large_not_present_entry_is_a_span_with_its_frame() -> None:
    """The entry of a real 6.1, 0x800fffffffbff062 at PMD level, is 2 MiB of not-present frames 0x400-0x5ff."""
    layout = TableLayout()
    layout.put(BASE + (0x400 << 12), 2, 0x800F_FFFF_FFBF_F062)
    tables = tables_of(layout)
    span = next(span for span in tables.scan() if span.state == Stop.NOT_PRESENT)
    assert span == Span(
        BASE + (0x400 << 12), 512, 0x400, Level.PMD, Stop.NOT_PRESENT, 0x800F_FFFF_FFBF_F062, Rights.RW | Rights.NX
    )
    walk = tables.walk(BASE + (0x4AB << 12) + 7)
    assert (walk.stop, walk.pfn, walk.paddr, walk.level) == (Stop.NOT_PRESENT, 0x4AB, None, Level.PMD)


def test_the_fast_path_joins_tables_in_any_order_of_their_frames() -> None:
    """Thirty PTE tables in descending frame order, all uniform but one, are three spans."""
    layout = TableLayout(stride=-1, next_pfn=0xFFF, root=0x2000)
    layout.fill(BASE, 1, 0, 30 * 512)
    layout.put(BASE + (700 << 12), 1, 700 << 12 | KERNEL & ~RW)
    present = [span[:3] for span in tables_of(layout).scan() if span.state == Stop.PRESENT]
    assert present == [
        (BASE, 700, 0),
        (BASE + (700 << 12), 1, 700),
        (BASE + (701 << 12), 30 * 512 - 701, 701),
    ]


def test_frames_that_carry_into_the_flags_are_not_one_run() -> None:
    """Entries one apart whose frame overflows into bit 52 do not map consecutive frames: two spans."""
    last = (1 << 40) - 256
    layout = TableLayout()
    for number in range(512):
        layout.put(BASE + (number << 12), 1, ((last + number) << 12) + P)
    present = [(span.pages, span.pfn) for span in tables_of(layout).scan() if span.state == Stop.PRESENT]
    assert present == [(256, last), (256, 0)]


@pytest.mark.parametrize("bit", [A, D, 1 << 9, 1 << 58, USER, NX])
def test_no_flag_is_lost_in_a_span(bit: int) -> None:
    """A leaf that differs in any one bit, ACCESSED, DIRTY and software bits too, is its own span."""
    layout = TableLayout()
    layout.fill(BASE, 1, 0, 512, flags=P | RW)
    layout.put(BASE + (9 << 12), 1, 9 << 12 | P | RW | bit)
    present = [(span.pages, span.entry) for span in tables_of(layout).scan() if span.state == Stop.PRESENT]
    assert present == [(9, P | RW), (1, 9 << 12 | P | RW | bit), (502, 10 << 12 | P | RW)]


def test_rights_come_from_all_levels() -> None:
    """A leaf that allows everything is read-only, kernel-only and not executable under such upper entries."""
    layout = TableLayout()
    layout.fill(BASE, 1, 0, 1, flags=P | RW | USER)
    top = layout.tables[layout.root]
    top[273] = top[273] & ~RW | NX
    walk = tables_of(layout).walk(BASE)
    assert (walk.rw, walk.user, walk.nx) == (False, True, True)
    span = next(span for span in tables_of(layout).scan() if span.state == Stop.PRESENT)
    assert span.rights == Rights.USER | Rights.NX


def test_spans_end_where_the_rights_from_above_change() -> None:
    """Two uniform tables of consecutive frames are two spans if one is under a read-only PMD entry."""
    layout = TableLayout()
    layout.fill(BASE, 1, 0, 1024)
    pmd = layout.table_for(BASE, 2)
    assert pmd is not None
    layout.tables[pmd][1] &= ~RW
    present = [(s.pages, s.pfn, bool(s.rights & Rights.RW)) for s in tables_of(layout).scan() if s.state == "present"]
    assert present == [(512, 0, True), (512, 512, False)]


def test_a_span_clipped_inside_a_large_leaf_still_joins_the_next() -> None:
    """A scan that begins in the middle of a 2M leaf gives one span with the 1 GiB table behind it."""
    layout = TableLayout()
    layout.fill(0, 2, 0, 513 * 512)
    present = [s[:3] for s in tables_of(layout).scan(0x1000) if s.state == Stop.PRESENT]
    assert present == [(0x1000, 513 * 512 - 1, 1)]


def test_no_entry_has_no_rights() -> None:
    """Spans without an entry have no rights, also under an NX entry, in tables that are zero or are not."""
    layout = TableLayout()
    layout.fill(BASE, 1, 0, 9)
    layout.table_for(BASE + (2 << 20), 1)
    layout.tables[layout.root][273] |= NX
    none = tables_of(layout).scan().of_state(Stop.NONE)
    assert set(none.level.tolist()) == {1, 2, 3, 4}
    assert not none.rights.any()


def test_steps_of_entries_by_state() -> None:
    """Present leaves go up by their size, not-present ones down (inverted frames), everything else stays."""
    asked = {
        (1, Stop.PRESENT): 4096,
        (2, Stop.PRESENT): 2 << 20,
        (3, Stop.NOT_PRESENT): (1 << 64) - (1 << 30),
        (2, Stop.NONE): 0,
        (4, Stop.NOT_PRESENT): 0,
        (2, Stop.SHARED): 0,
    }
    levels = np.array([level for level, _ in asked], dtype=np.uint8)
    states = np.array([stop.code for _, stop in asked], dtype=np.uint8)
    assert entry_steps(levels, states).tolist() == list(asked.values())
