# SPDX-License-Identifier: GPL-2.0-or-later
"""The lookup of one address and the scan of whole tables, against a plain walk."""

from __future__ import annotations

import contextlib
import itertools
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hibernaut.memory.overlay import Overlay
from hibernaut.memory.segments import SegmentMemory
from hibernaut.paging import bulk as bulk_module
from hibernaut.paging import scan as scan_module
from hibernaut.paging.entries import Level
from hibernaut.paging.tables import PageTables, Rights, Span, Spans, Stop
from tests.machines import BASE4 as BASE
from tests.paging.layouts import (
    FRAME,
    KERNEL,
    PSE,
    RW,
    TABLE_FLAGS,
    P,
    TableLayout,
    canonical_pages,
    inverted,
    naive_walk,
    segments,
    tables_of,
    words,
)
from tests.strategies import table_addresses, table_layouts


def probes(spans: Spans) -> list[int]:
    """Addresses at both ends of every span and just inside."""
    found = set()
    for span in spans:
        for page in (
            {0, 1, span.pages // 2, span.pages - 1} & set(range(span.pages))
            if span.pages < 4
            else (
                0,
                1,
                span.pages // 2,
                span.pages - 1,
            )
        ):
            found.add(span.vaddr + (page << 12))
    return sorted(found)


def span_index(spans: Spans, vaddr: int) -> int:
    """Return the index of the span that holds an address."""
    return int(np.searchsorted(spans.vaddr, np.uint64(vaddr), side="right")) - 1


def continues_in(layout: TableLayout, before: Span, after: Span) -> bool:
    """Whether the last entry of one span and the first of the next belong together, by the naive walk's entries."""
    last = naive_walk(layout, after.vaddr - 4096)
    first = naive_walk(layout, after.vaddr)
    size = 4096 * 512 ** (last.level - 1)
    step = {"present": size, "not-present": -size if last.level <= 3 else 0}.get(before.state.value, 0)
    flags = ~0x000F_FFFF_FFFF_F000
    return (
        (before.state, before.level, last.rights) == (after.state, after.level, first.rights)
        and last.entry & flags == first.entry & flags
        and first.entry == last.entry + step
    )


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_walk_scan_and_translate_agree_with_a_naive_walk(data: st.DataObject) -> None:
    """At every span's ends and at random addresses all say what the naive walk says; the scan covers all space."""
    with contextlib.ExitStack() as chunks:
        if data.draw(st.booleans()):  # many chunks and both threads, with few tables
            chunks.enter_context(mock.patch.multiple(bulk_module, CHUNK_TABLES=2, CHUNK_ADDRESSES=7))
            chunks.enter_context(mock.patch.multiple(scan_module, UNIFORM_CHUNK=3, MIXED_CHUNK=2))
        check_against_naive_walk(data)


def check_against_naive_walk(data: st.DataObject) -> None:
    """Check that a scan agrees with a plain walk at every edge."""
    layout = data.draw(table_layouts())
    tables = tables_of(layout)
    spans = tables.scan()
    assert int(spans.pages.sum()) == canonical_pages(layout.levels)
    ends = (spans.end_page << np.uint64(12)).tolist()
    gaps = [(end, start) for end, start in zip(ends, spans.vaddr.tolist()[1:], strict=False) if end != start]
    half = 1 << (11 + 9 * layout.levels)
    assert gaps == [(half, (1 << 64) - half)]
    addresses = [*probes(spans), *data.draw(st.lists(table_addresses(layout.levels), max_size=8))]
    translated = tables.translate(np.array(addresses, dtype=np.uint64))
    for number, vaddr in enumerate(addresses):
        expected = naive_walk(layout, vaddr)
        walk = tables.walk(vaddr + 5)
        assert [(step.table_pfn, step.index, step.entry) for step in walk.steps] == list(expected.path)
        assert (walk.stop, walk.level, walk.entry) == (expected.stop, expected.level, expected.entry)
        leaf = expected.stop in ("present", "not-present") and expected.pfn >= 0
        assert walk.pfn == (expected.pfn if leaf else None)
        assert walk.paddr == ((expected.pfn << 12) + 5 if expected.stop == "present" else None)
        assert walk.rw * 1 + walk.user * 2 + walk.nx * 4 == expected.rights
        assert Stop.of_code(int(translated.reasons[number])) == expected.stop
        assert translated.levels[number] == expected.level
        assert translated.entries[number] == expected.entry
        assert translated.pfns[number] == (expected.pfn if leaf else -1)
        index = span_index(spans, vaddr)
        span = next(iter(spans.select(slice(index, index + 1))))
        page = (vaddr - span.vaddr) >> 12
        if span.state in (Stop.LOOP, Stop.SHARED):
            depth = layout.levels - span.level
            above = [layout.root, *((entry & 0x000F_FFFF_FFFF_F000) >> 12 for _, _, entry in expected.path[:depth])]
            assert expected.path[depth][2] == span.entry
            assert (span.pfn in above) == (span.state == Stop.LOOP)
            continue
        assert (span.state, span.level, span.rights) == (expected.stop, expected.level, Rights(expected.rights))
        assert spans.entry_at(index, page) == expected.entry
        moves = span.state in (Stop.PRESENT, Stop.NOT_PRESENT) and span.pfn >= 0
        assert span.pfn + (page if moves else 0) == expected.pfn
    for before, after in itertools.pairwise(spans):
        if before.vaddr + (before.pages << 12) == after.vaddr and not {before.state, after.state} & {
            Stop.LOOP,
            Stop.SHARED,
        }:
            assert not continues_in(layout, before, after)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_restricted_scan_is_the_whole_one_clipped(data: st.DataObject) -> None:
    """Pruning changes nothing within the bounds (but for the count of shared tables, which is by what was visited)."""
    layout = data.draw(table_layouts())
    tables = tables_of(layout)
    bounds = sorted(data.draw(st.tuples(table_addresses(layout.levels), table_addresses(layout.levels))))
    part = tables.scan(bounds[0], bounds[1] + 4096)
    clipped = tables.scan().clipped(bounds[0] >> 12, (bounds[1] >> 12) + 1)
    shared = {Stop.SHARED.code} & {*part.state.tolist(), *clipped.state.tolist()}
    if not shared:
        assert list(part) == list(clipped)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_splitting_spans_and_joining_them_again_changes_nothing(data: st.DataObject) -> None:
    """`split` keeps frame and raw entry right at every cut, large leaves cut inside included."""
    layout = data.draw(table_layouts())
    spans = tables_of(layout).scan()
    vaddrs = data.draw(st.lists(table_addresses(layout.levels), max_size=12))
    cuts = np.unique(np.array([vaddr >> 12 for vaddr in vaddrs], dtype=np.uint64))
    bounds = sorted(data.draw(st.tuples(table_addresses(layout.levels), table_addresses(layout.levels))))
    clipped = spans.clipped((bounds[0] >> 12) + 1, bounds[1] >> 12)
    parts = clipped.split(cuts)
    for part in parts:
        index = span_index(spans, part.vaddr)
        page = (part.vaddr - int(spans.vaddr[index])) >> 12
        assert part.entry == spans.entry_at(index, page)
        if part.state in (Stop.PRESENT, Stop.NOT_PRESENT) and part.pfn >= 0:
            assert part.pfn == spans.pfn[index] + page
    begins = set(parts.vaddr.tolist())
    inside = {cut << 12 for cut in cuts.tolist() if len(clipped) and bounds[0] < cut << 12 < bounds[1]}
    assert inside <= begins
    assert int(parts.pages.sum()) == int(clipped.pages.sum())
    assert list(parts.coalesced()) == list(clipped)
    assert list(spans.split(cuts).coalesced()) == list(spans)


@given(data=st.data())
def test_the_frames_of_all_tables_are_found(data: st.DataObject) -> None:
    """Every table that the root reaches and the memory has, empty ones too, whatever names it how often."""
    layout = data.draw(table_layouts())
    found, level = {layout.root} - layout.missing, {layout.root} - layout.missing
    for number in range(layout.levels, 1, -1):
        named = {
            (entry & FRAME) >> 12
            for pfn in level
            for entry in layout.tables[pfn].values()
            if entry & P and not (number <= 3 and entry & PSE)
        }
        level = {pfn for pfn in named if pfn in layout.tables and pfn not in layout.missing}
        found |= level
    assert tables_of(layout).pfns().tolist() == sorted(found)


def test_one_gib_and_two_mib_leaves_next_to_each_other() -> None:
    """Large leaves coalesce by their own size and never with another level's."""
    layout = TableLayout(levels=5)
    base = 0xFF11_0000_0000_0000
    layout.fill(base, 3, 0, 3 << 18)
    layout.fill(base + (3 << 30), 2, 3 << 18, 512 * 7)
    present = [(s.vaddr, s.pages, s.pfn, s.level) for s in tables_of(layout).scan() if s.state == Stop.PRESENT]
    assert present == [(base, 3 << 18, 0, Level.PUD), (base + (3 << 30), 512 * 7, 3 << 18, Level.PMD)]


def test_a_missing_root_is_an_answer() -> None:
    """Without the root's frame everything is table-missing: two halves, and no step in a walk."""
    layout = TableLayout(missing={0x100})
    tables = tables_of(layout)
    assert [(s.state, s.pages, s.pfn) for s in tables.scan()] == [(Stop.TABLE_MISSING, 1 << 35, 0x100)] * 2
    assert (tables.walk(BASE).stop, tables.walk(BASE).steps) == (Stop.TABLE_MISSING, ())
    translated = tables.translate(np.array([BASE, 1 << 50], dtype=np.uint64))
    assert translated.reasons.tolist() == [Stop.TABLE_MISSING.code, Stop.NON_CANONICAL.code]


@pytest.mark.parametrize(("levels", "vaddr"), [(4, 1 << 47), (4, 0xFFFF_7FFF_FFFF_FFFF), (5, 1 << 56), (5, 1 << 63)])
def test_addresses_that_are_not_canonical(levels: int, vaddr: int) -> None:
    """They consult no table, and a scan refuses them as bounds."""
    tables = PageTables(TableLayout(levels=levels).memory(), 0x100 << 12, levels)
    assert (tables.walk(vaddr).stop, tables.walk(vaddr).steps) == (Stop.NON_CANONICAL, ())
    assert tables.translate(np.array([vaddr], dtype=np.uint64)).reasons[0] == Stop.NON_CANONICAL.code
    with pytest.raises(ValueError, match="canonical"):
        tables.scan(vaddr, (1 << 64) - 4096)


def test_the_low_bits_of_cr3_are_not_the_root() -> None:
    """PCID and the no-flush bit do not move the root; other numbers of levels than 4 and 5 are refused."""
    layout = TableLayout()
    layout.fill(BASE, 1, 0, 4)
    tables = PageTables(layout.memory(), 1 << 63 | layout.root << 12 | 0x123, 4)
    assert tables.root_pfn == layout.root
    assert tables.walk(BASE).pfn == 0
    with pytest.raises(ValueError, match="4 or 5"):
        PageTables(layout.memory(), 0, 3)


def test_nothing_is_cached() -> None:
    """After a write to an overlay the same tables say what is there now."""
    layout = TableLayout()
    layout.fill(BASE, 1, 0, 4)
    memory = Overlay(layout.memory())
    tables = PageTables(memory, layout.root << 12)
    step = tables.walk(BASE).steps[-1]
    memory.write_u64(step.paddr, inverted(0, RW))
    assert tables.walk(BASE).stop == Stop.NOT_PRESENT
    assert tables.translate([BASE]).reasons.tolist() == [Stop.NOT_PRESENT.code]
    assert [s.pages for s in tables.scan() if s.state == Stop.NOT_PRESENT] == [1]


def test_many_addresses_in_many_tables() -> None:
    """More tables than are looked into at a time, in scattered frames, missing ones among them, in random order."""
    count = 5000
    random = np.random.default_rng(3)
    frames = random.permutation(count) + 0x10000
    leaves = (np.arange(count * 512, dtype=np.uint64).reshape(count, 512) << np.uint64(12)) | np.uint64(KERNEL)
    layout = TableLayout()
    for number, pfn in enumerate(frames.tolist()):
        layout.put(BASE + number * (2 << 20), 2, pfn << 12 | TABLE_FLAGS)
    shuffled = np.empty_like(leaves)
    shuffled[frames - 0x10000] = leaves
    upper = layout.memory()
    base = [*segments(shuffled, 0x10000)]
    pieces = [segment for start, pages in upper.ranges for segment in segments(words(upper, start, pages), start)]
    tables = PageTables(SegmentMemory([*base, *pieces]), layout.root << 12)
    pfns = random.integers(0, (count + 10) * 512, 100_000)
    found = tables.translate(np.uint64(BASE) + (pfns.astype(np.uint64) << np.uint64(12)))
    inside = pfns < count * 512
    assert (found.pfns == np.where(inside, pfns, -1)).all()
    assert (found.reasons == np.where(inside, Stop.PRESENT.code, Stop.NONE.code)).all()
    assert [(s.pages, s.pfn) for s in tables.scan() if s.state == Stop.PRESENT] == [(count * 512, 0)]


def test_upper_tables_in_several_chunks() -> None:
    """Forty GiB with one page each: addresses find their own GiB's tables, few tables being looked into at a time."""
    layout = TableLayout()
    vaddrs = [BASE + (number << 30) + (number << 12) for number in range(40)]
    for number, vaddr in enumerate(vaddrs):
        layout.put(vaddr, 1, number + 0x9000 << 12 | KERNEL)
    with mock.patch.object(bulk_module, "CHUNK_TABLES", 3):
        found = tables_of(layout).translate(np.array(vaddrs[::-1], dtype=np.uint64))
    assert found.pfns.tolist() == [0x9000 + number for number in range(39, -1, -1)]


def test_pse_means_nothing_above_pud() -> None:
    """Bit 7 of a P4D entry does not make a leaf: the entry points to a table (Intel SDM: reserved there)."""
    layout = TableLayout()
    layout.fill(BASE, 1, 0, 1)
    layout.tables[layout.root][273] |= PSE
    assert tables_of(layout).walk(BASE).stop == Stop.PRESENT


@pytest.mark.parametrize("shuffled", [False, True])
@settings(max_examples=25)
@given(
    odd=st.lists(st.tuples(st.sampled_from([0, 1, 119, 120, 239, 240, 479, 480, 599]), st.integers(0, 511)), max_size=6)
)
def test_an_odd_entry_is_found_wherever_the_comparison_is_cut(shuffled: bool, odd: list[tuple[int, int]]) -> None:
    """One entry among 600 tables of a run, at the ends of the pieces that are compared: its pages are not present."""
    count, upper = 600, 4
    order = np.random.default_rng(1).permutation(count) if shuffled else np.arange(count)
    entries = np.zeros((upper + count, 512), dtype=np.uint64)
    first = 1 << 20
    entries[0, 273] = (first + 1) << 12 | TABLE_FLAGS
    entries[1, :2] = [(first + 2) << 12 | TABLE_FLAGS, (first + 3) << 12 | TABLE_FLAGS]
    entries[2:4].reshape(-1)[:count] = ((first + upper + order).astype(np.uint64) << np.uint64(12)) | np.uint64(
        TABLE_FLAGS
    )
    leaves = (np.arange(count * 512, dtype=np.uint64).reshape(count, 512) << np.uint64(12)) | np.uint64(P | RW)
    entries[upper + order] = leaves
    for table, entry in odd:
        entries[upper + order[table], entry] = 0
    found = PageTables(SegmentMemory(segments(entries, first)), first << 12).scan()
    present = found.of_state(Stop.PRESENT)
    missing = sorted({table * 512 + entry for table, entry in odd})
    assert int(present.pages.sum()) == count * 512 - len(missing)
    covered = np.concatenate([np.arange(span.pfn, span.pfn + span.pages) for span in present])
    assert np.setdiff1d(np.arange(count * 512), covered).tolist() == missing
    assert (present.vaddr == (present.pfn.astype(np.uint64) << np.uint64(12)) + np.uint64(BASE)).all()
