# SPDX-License-Identifier: GPL-2.0-or-later
"""Overlays against a model that is a dictionary of pages."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.memory.overlay import Overlay
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.memory.physical import digest_of_page
from hibernaut.memory.segments import Segment, SegmentMemory
from tests.memory.model import build, check
from tests.strategies import segment_lists

frames = st.lists(st.integers(-3, 60), max_size=20)


@given(segment_lists(), st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=10), frames)
def test_overlay_reads_its_own_writes(
    segments: list[tuple[int, int]], writes: list[tuple[int, int]], asked: list[int]
) -> None:
    """Written pages are read back by every way of reading, new frames come into being, the base never changes."""
    base, model = build(segments)
    before = dict(model)
    overlay = Overlay(base)
    for pfn, value in writes:
        page = bytes([value]) * PAGE_SIZE
        overlay.write_page(pfn, np.frombuffer(page, dtype=np.uint8))
        model[pfn] = page
    check(overlay, model, asked)
    check(base, before, asked)
    assert overlay.written.tolist() == sorted({pfn for pfn, _ in writes})
    digests = overlay.written_digests()
    assert list(digests.items()) == [(pfn, overlay.page_digest(pfn)) for pfn in overlay.written.tolist()]
    assert digests == {pfn: digest_of_page(np.frombuffer(model[pfn], dtype=np.uint8)) for pfn, _ in writes}


@given(segment_lists(), st.integers(0, 50 * PAGE_SIZE), st.binary(min_size=1, max_size=3 * PAGE_SIZE))
def test_overlay_writes_bytes_across_frames(segments: list[tuple[int, int]], paddr: int, data: bytes) -> None:
    """Bytes written at an address are read there; a missing frame raises KeyError and stays missing."""
    base, model = build(segments)
    overlay = Overlay(base)
    touched = range(paddr // PAGE_SIZE, (paddr + len(data) - 1) // PAGE_SIZE + 1)
    if all(pfn in model for pfn in touched):
        overlay.write(paddr, data)
        assert overlay.read(paddr, len(data)) == data
        assert set(overlay.written.tolist()) == set(touched)
    else:
        missing = next(pfn for pfn in touched if pfn not in model)
        try:
            overlay.write(paddr, data)
        except KeyError:
            assert overlay.page(missing) is None
        else:
            raise AssertionError(f"frame {missing} was written though it does not exist")


@given(segment_lists().filter(lambda given: any(count for _, count in given)), st.integers(0, 7))
def test_forks_are_independent(segments: list[tuple[int, int]], turn: int) -> None:
    """A fork starts with the same bytes; afterwards neither sees what the other writes."""
    base, model = build(segments)
    pfn = sorted(model)[turn % len(model)]
    first = Overlay(base)
    first.write_u64(pfn * PAGE_SIZE, 1)
    second = first.fork()
    assert second.read_u64(pfn * PAGE_SIZE) == 1
    second.write_u64(pfn * PAGE_SIZE, 2)
    first.write_u64(pfn * PAGE_SIZE + 8, 3)
    second.write_page(99, np.full(PAGE_SIZE, 7, dtype=np.uint8))
    assert (first.read_u64(pfn * PAGE_SIZE), second.read_u64(pfn * PAGE_SIZE)) == (1, 2)
    assert second.read_u64(pfn * PAGE_SIZE + 8) == int.from_bytes(model[pfn][8:16], "little")
    assert first.page(99) is None
    assert not first.ranges.contains([99]).any()
    assert second.ranges.contains([99]).all()
    assert base.read_u64(pfn * PAGE_SIZE) == int.from_bytes(model[pfn][:8], "little")


def test_views_of_memory_are_not_copies() -> None:
    """A run of a segment is the segment's own bytes, and a page of an overlay cannot be written through its view."""
    data = np.zeros((4, PAGE_SIZE), dtype=np.uint8)
    memory = SegmentMemory([Segment(8, data)])
    assert np.shares_memory(memory.run(9, 2), data)
    overlay = Overlay(memory)
    overlay.write_u64(9 * PAGE_SIZE, 5)
    assert not overlay.run(9, 1).flags.writeable
    assert not np.shares_memory(overlay.run(9, 1), data)
    assert np.shares_memory(overlay.run(8, 4), data)
