# SPDX-License-Identifier: GPL-2.0-or-later
"""Ranges, segments and overlays against a model that is a dictionary of pages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.memory.physical import PAGE_SIZE, FrameRanges, Overlay, PhysicalMemory, Segment, SegmentMemory
from hibernaut.sources import open_memory
from tests.memory.naive import page_of
from tests.strategies import segment_lists

Model = dict[int, bytes]


def build(segments: list[tuple[int, int]]) -> tuple[SegmentMemory, Model]:
    """Memory of these segments, each page naming its frame and segment, and the model of it: the first segment wins."""
    model: Model = {}
    made = []
    for number, (start, count) in enumerate(segments):
        pages = [page_of(pfn, number) for pfn in range(start, start + count)]
        data = np.frombuffer(b"".join(pages), dtype=np.uint8).reshape(count, PAGE_SIZE)
        made.append(Segment(start, data))
        for pfn, page in enumerate(pages, start):
            model.setdefault(pfn, page)
    return SegmentMemory(made), model


def check(memory: PhysicalMemory, model: Model, asked: list[int]) -> None:
    """Every way of reading gives what the model holds."""
    assert memory.ranges.frames().tolist() == sorted(model)
    assert memory.ranges.total_pages == len(model)
    assert memory.ranges.end == max(model, default=-1) + 1
    assert {first + row: page.tobytes() for first, pages in memory.blocks(3) for row, page in enumerate(pages)} == model
    pages, present = memory.gather(np.array(asked, dtype=np.int64))
    assert present.tolist() == [pfn in model for pfn in asked] == memory.ranges.contains(asked).tolist()
    assert [page.tobytes() for page in pages] == [model.get(pfn, bytes(PAGE_SIZE)) for pfn in asked]
    for pfn in asked:
        run = memory.run(pfn, 5)
        assert bool(len(run)) == (pfn in model)
        assert len(run) <= 5
        assert [page.tobytes() for page in run] == [model[pfn + row] for row in range(len(run))]
        frame = memory.frame(pfn)
        assert (None if frame is None else frame.tobytes()) == model.get(pfn)


frames = st.lists(st.integers(-3, 60), max_size=20)


@given(segment_lists(), frames)
def test_segments_read_as_a_dictionary_of_pages(segments: list[tuple[int, int]], asked: list[int]) -> None:
    """Runs, gathers, blocks and ranges of segments in any order agree with the model; the earlier segment wins."""
    check(*build(segments), asked)


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
            assert overlay.frame(missing) is None
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
    assert first.frame(99) is None
    assert not first.ranges.contains([99]).any()
    assert second.ranges.contains([99]).all()
    assert base.read_u64(pfn * PAGE_SIZE) == int.from_bytes(model[pfn][:8], "little")


@given(st.sets(st.integers(0, 50)), frames)
def test_ranges_of_frames(pfns: set[int], asked: list[int]) -> None:
    """Ranges made of frames hold exactly these, as few ranges as possible; rows are positions among them."""
    ordered = sorted(pfns)
    ranges = FrameRanges.of_frames(ordered)
    assert ranges.frames().tolist() == ordered
    assert len(ranges) == sum(pfn - 1 not in pfns for pfn in pfns)
    assert ranges.rows(asked).tolist() == [ordered.index(pfn) if pfn in pfns else -1 for pfn in asked]


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


def test_occupied_frames_hold_anything_but_zeroes() -> None:
    """Frames of zeroes are not occupied, whatever ranges they lie in; neighbours are one range."""
    pages = np.zeros((3000, PAGE_SIZE), dtype=np.uint8)
    pages[[0, 1, 1023, 1024, 2999], [0, 4095, 9, 9, 17]] = 1
    memory = SegmentMemory([Segment(5, pages[:2000]), Segment(9000, pages[2000:])])
    assert list(memory.occupied()) == [(5, 2), (5 + 1023, 2), (9000 + 999, 1)]
    assert memory.stored is memory.ranges


def test_holes_of_a_sparse_file_are_known_to_be_zero(tmp_path: Path) -> None:
    """Of a raw file of 1 GiB with two written pages only the extents around them count as stored."""
    path = tmp_path / "raw"
    with path.open("wb") as out:
        out.truncate(1 << 30)
        for pfn in (7, 200_000):
            out.seek(pfn * PAGE_SIZE + 100)
            out.write(b"x")
    with open_memory(path) as source:
        memory = source.memory
        assert memory.ranges.total_pages == 1 << 18
        assert memory.stored.total_pages <= 4096
        assert memory.stored.contains([7, 200_000]).all()
        assert list(memory.occupied()) == [(7, 1), (200_000, 1)]


@given(st.sets(st.integers(0, 60)), st.sets(st.integers(0, 60)), st.integers(1, 9))
def test_ranges_are_sets_of_frames(one: set[int], other: set[int], size: int) -> None:
    """within, without, lowest and chunks of ranges are those of sorted sets of frames; no range is empty or touches."""
    mine, theirs = FrameRanges.of_frames(sorted(one)), FrameRanges.of_frames(sorted(other))
    for found, expected in (
        (mine.within(theirs), one & other),
        (mine.without(theirs), one - other),
        (mine.lowest(size), set(sorted(one)[:size])),
    ):
        assert found.frames().tolist() == sorted(expected)
        assert (found.pages > 0).all()
    ordered = sorted(one)
    assert [chunk.tolist() for chunk in mine.chunks(size)] == [
        ordered[at : at + size] for at in range(0, len(ordered), size)
    ]
