# SPDX-License-Identifier: GPL-2.0-or-later
"""The cost of each way: numbers that follow from its definition, counted on the machine."""

from __future__ import annotations

import pytest

from hibernaut.studies.costs import BLOCKS, COSTED_WAYS, Cost, way_cost

PAGES = 512 * BLOCKS


@pytest.mark.parametrize(
    ("way", "tables", "entries", "invalidations", "flushes"),
    [
        # each block is split: one entry and a flush; each page is set and reset, and flushed by itself
        ("remap", BLOCKS, 2 * PAGES + BLOCKS, PAGES, BLOCKS),
        ("reserved:2", BLOCKS, 2 * PAGES + BLOCKS, PAGES, BLOCKS),
        ("remap-whole", 0, 2 * PAGES, 0, PAGES),
        ("fixmap", 0, 2 * PAGES, 2 * PAGES, 0),
        # n - 1 reuses, and the last flush
        ("mermap", 0, 2 * PAGES, 0, PAGES),
        ("mermap:64", 0, 2 * PAGES, 0, PAGES // 64),
        ("fixmap-whole-run", 0, 2 * BLOCKS, 2 * BLOCKS, 0),
    ],
)
def test_the_cost_is_what_the_way_does(way: str, tables: int, entries: int, invalidations: int, flushes: int) -> None:
    """By hand from the definition of each way, for all pages of the blocks."""
    assert way_cost(way) == Cost(way, PAGES, tables, entries, invalidations, flushes)


def test_the_cost_grows_with_the_blocks() -> None:
    """One block costs half of two, but for nothing: no way has a cost of its own."""
    for way in ("remap", "fixmap", "fixmap-whole-run"):
        one, two = way_cost(way, 1), way_cost(way, 2)
        assert (2 * one.entry_writes, 2 * one.invalidations) == (two.entry_writes, two.invalidations)


def test_a_mutant_without_a_flush_counts_none() -> None:
    """The counter counts: a way that invalidates nothing has zeroes."""
    cost = way_cost("fixmap-no-flush", 1)
    assert (cost.invalidations, cost.flushes, cost.entry_writes) == (0, 0, 1024)


def test_all_ways_of_the_page_are_counted() -> None:
    """Each of the page's ways is one of the table above."""
    assert {way for way in COSTED_WAYS if ":" not in way} <= {
        "remap",
        "remap-whole",
        "fixmap",
        "mermap",
        "fixmap-whole-run",
    }
