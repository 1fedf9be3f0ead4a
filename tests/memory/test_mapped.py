# SPDX-License-Identifier: GPL-2.0-or-later
"""Mapped files: pieces, overlaps, and how little of a file stays resident."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.memory.mapped import MappedMemory, first_wins, whole_frames
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.volumes.files import open_plain


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=12))
def test_first_wins_frame_by_frame(spans: list[tuple[int, int]]) -> None:
    """Disjoint, ascending, and each frame at the byte where the earliest piece that has it puts it."""
    pieces = np.array([(start, pages, number << 32) for number, (start, pages) in enumerate(spans)]).reshape(-1, 3)
    expected: dict[int, int] = {}
    for start, pages, offset in pieces.tolist():
        for row in range(pages):
            expected.setdefault(start + row, offset + row * PAGE_SIZE)
    found = first_wins(pieces).tolist()
    assert [start for start, _, _ in found] == sorted(start for start, _, _ in found)
    assert {start + row: offset + row * PAGE_SIZE for start, pages, offset in found for row in range(pages)} == expected
    assert sum(pages for _, pages, _ in found) == len(expected)


@given(st.integers(0, 5 * PAGE_SIZE), st.integers(0, 5 * PAGE_SIZE), st.integers(0, 100))
def test_whole_frames_are_those_with_every_byte(paddr: int, size_bytes: int, offset: int) -> None:
    """A frame counts if and only if all its 4096 bytes are in the range, and stands where its first byte does."""
    expected = [
        (pfn, offset + pfn * PAGE_SIZE - paddr)
        for pfn in range(12)
        if paddr <= pfn * PAGE_SIZE and (pfn + 1) * PAGE_SIZE <= paddr + size_bytes
    ]
    found = whole_frames([paddr], [size_bytes], [offset]).tolist()
    assert [(start + row, at + row * PAGE_SIZE) for start, pages, at in found for row in range(pages)] == expected


def resident_bytes() -> int:
    """Return the resident size of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_SIZE


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_reading_through_keeps_little_resident(tmp_path: Path) -> None:
    """Reading 512 MiB from end to end adds less than 100 MiB to resident memory, and the last block is still valid."""
    size_bytes = 512 << 20
    with (tmp_path / "raw").open("wb") as out:
        out.truncate(size_bytes)
    plain = open_plain(tmp_path / "raw")
    before = resident_bytes()
    highest, total = 0, 0
    with MappedMemory(plain, np.array([[0, size_bytes // PAGE_SIZE, 0]])) as memory:
        for _, pages in memory.blocks():
            total += int(pages[:, 0].sum()) + len(pages)
            highest = max(highest, resident_bytes() - before)
        assert not pages.any()
    assert total == size_bytes // PAGE_SIZE
    assert highest < 100 << 20
