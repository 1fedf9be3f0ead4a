# SPDX-License-Identifier: GPL-2.0-or-later
"""Mapped files: pieces, overlaps, and how little of a file stays resident."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.kernel.core_file import CoreFormat, convert
from hibernaut.memory.mapped import MappedMemory, first_wins, whole_frames
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.memory.ranges import FrameRanges
from hibernaut.sources import open_memory
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


@given(data=st.data())
def test_stored_blocks_are_all_frames_but_those_in_holes(data: st.DataObject) -> None:
    """Each frame with a byte outside the holes once, ascending, with its bytes; the others are zero."""
    shift = data.draw(st.sampled_from([0, 8, 100, 4095]))
    written = data.draw(st.sets(st.integers(0, 40), max_size=12))
    pieces = np.array([[0, 20, shift], [30, 19, shift + 20 * PAGE_SIZE]])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sparse"
        with path.open("wb") as file:
            file.truncate(41 * PAGE_SIZE)
            for block in written:
                file.seek(block * PAGE_SIZE)
                file.write(bytes([1 + block]) * PAGE_SIZE)
        with open_plain(path) as plain:
            memory = MappedMemory(plain, pieces)
            found = {
                first + row: page.tobytes()
                for first, pages in memory.stored_blocks(data.draw(st.integers(1, 9)))
                for row, page in enumerate(pages)
            }
            whole = {first + row: page.tobytes() for first, run in memory.blocks(7) for row, page in enumerate(run)}
            counted = sum(len(pages) for _, pages in memory.stored_blocks())
            assert counted == len(found) == memory.stored.total_pages
            assert list(FrameRanges.of_pfns(np.array(sorted(found), dtype=np.int64))) == list(memory.stored)
    assert list(found) == sorted(found)
    assert all(whole[pfn] == page for pfn, page in found.items())
    assert not any(any(page) for pfn, page in whole.items() if pfn not in found)


@pytest.mark.parametrize("to", ["raw", "lime", "elf"])
def test_a_sparse_dump_converted_stays_sparse(tmp_path: Path, to: CoreFormat) -> None:
    """Holes are neither read nor written: 4 GiB with three pages of data cost some blocks."""
    path, out = tmp_path / "in.raw", tmp_path / "out"
    with path.open("wb") as file:
        file.truncate(1 << 32)
        for pfn in (0, 70_000, (1 << 20) - 1):
            file.seek(pfn * PAGE_SIZE)
            file.write(bytes([pfn % 251 + 1]) * PAGE_SIZE)
    if path.stat().st_blocks > 1000:
        pytest.skip("the file system has no holes")
    with open_memory(path) as source:
        done = convert(source, out, to)
    assert done.pages == 1 << 20
    assert out.stat().st_blocks < 1000
    with open_memory(out) as back:
        assert list(back.memory.ranges) == [(0, 1 << 20)]
        for pfn in (0, 70_000, (1 << 20) - 1):
            assert back.memory.run(pfn, 1).tobytes() == bytes([pfn % 251 + 1]) * PAGE_SIZE
        assert not back.memory.run(1, 1).any()
