# SPDX-License-Identifier: GPL-2.0-or-later
"""A memory and its model: a dictionary of pages, by page frame number."""

from __future__ import annotations

import numpy as np

from hibernaut.memory.page import PAGE_SIZE
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.segments import Segment, SegmentMemory
from tests.memory.naive import page_of

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
    assert memory.ranges.pfns().tolist() == sorted(model)
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
        frame = memory.page(pfn)
        assert (None if frame is None else frame.tobytes()) == model.get(pfn)
