# SPDX-License-Identifier: GPL-2.0-or-later
"""Layouts of dump files: any part that is read is that part of the file that the writer writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.errors import HibernautError
from hibernaut.memory import declarations as c
from hibernaut.memory.dump_layout import DumpLayout, elf_layout, lime_layout, raw_layout, vmcoreinfo_note
from hibernaut.memory.page import PAGE_SIZE, Bytes
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.ranges import FrameRanges
from hibernaut.memory.vmcoreinfo import chunks_of
from hibernaut.memory.writers import Chunks, write_elf, write_lime, write_raw
from hibernaut.volumes.output import replacing
from tests.memory.naive import page_of

BASE = 0xFFFF888000000000
NOTES = (vmcoreinfo_note(b"OSRELEASE=6.1.0\nSYMBOL(swapper_pg_dir)=ffffffff82a10000\n"),)


class Frames(PhysicalMemory):
    """Frames with contents by number, which counts the frames that are read."""

    def __init__(self, ranges: FrameRanges) -> None:
        self._ranges = ranges
        self.read_pfns: list[int] = []

    @property
    def ranges(self) -> FrameRanges:
        """See `PhysicalMemory`."""
        return self._ranges

    def run(self, pfn: int, nr_pages: int) -> Bytes:
        """See `PhysicalMemory`."""
        count = max(0, min(nr_pages, self._ranges.end_of(pfn) - pfn))
        self.read_pfns += range(pfn, pfn + count)
        data = b"".join(page_of(one) for one in range(pfn, pfn + count))
        return np.frombuffer(data, dtype=np.uint8).reshape(-1, PAGE_SIZE)


def write_whole_elf(chunks: Chunks, fd: int, ranges: FrameRanges) -> None:
    """Write a core with notes and virtual addresses."""
    write_elf(chunks, fd, ranges, vaddr_base=BASE, notes=lambda: NOTES)


FORMATS: dict[str, tuple[Callable[[FrameRanges], DumpLayout], Callable[[Chunks, int, FrameRanges], None]]] = {
    "raw": (raw_layout, write_raw),
    "lime": (lime_layout, write_lime),
    "elf": (lambda ranges: elf_layout(ranges, NOTES, vaddr_base=BASE), write_whole_elf),
    "elf without notes": (elf_layout, write_elf),
}
some_ranges = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=12).map(FrameRanges.of)
places = st.integers(0, 80 * PAGE_SIZE) | st.integers(0, 80).map(lambda page: page * PAGE_SIZE)
parts = st.lists(st.tuples(places, places), min_size=1, max_size=20)


def written(folder: Path, name: str, memory: PhysicalMemory) -> bytes:
    """Return the file that the writer of a format writes."""
    with replacing(folder / "file") as fd:
        FORMATS[name][1](chunks_of(memory), fd, memory.ranges)
    return (folder / "file").read_bytes()


def differences(layout: DumpLayout, memory: PhysicalMemory, file: bytes, wanted: Iterable[tuple[int, int]]) -> int:
    """Return how many of some parts are not those of the file."""
    return sum(layout.read(memory, at, size) != file[at : at + size] for at, size in wanted)


@pytest.mark.parametrize("name", FORMATS)
@given(ranges=some_ranges, wanted=parts)
def test_any_part_is_that_of_the_file(
    tmp_path: Path, name: str, ranges: FrameRanges, wanted: list[tuple[int, int]]
) -> None:
    """The whole, and parts that begin and end anywhere, also behind the end."""
    memory = Frames(ranges)
    file = written(tmp_path, name, memory)
    layout = FORMATS[name][0](ranges)
    assert layout.size_bytes == len(file)
    assert differences(layout, memory, file, [(0, len(file)), (len(file), 1), (max(len(file) - 1, 0), 9), *wanted]) == 0


@pytest.mark.parametrize("name", FORMATS)
def test_ranges_may_touch(tmp_path: Path, name: str) -> None:
    """Ranges that follow each other without a gap have headers of their own."""
    memory = Frames(FrameRanges(np.array([3, 5]), np.array([2, 4])))
    file = written(tmp_path, name, memory)
    layout = FORMATS[name][0](memory.ranges)
    assert differences(layout, memory, file, [(at, 3000) for at in range(0, len(file), 1000)]) == 0


MUTANTS: dict[str, Callable[[DumpLayout], DumpLayout]] = {
    "place": lambda layout: replace(layout, at=layout.at + 1),
    "frame": lambda layout: replace(layout, ranges=FrameRanges(layout.ranges.starts + 1, layout.ranges.nr_pages)),
    "header": lambda layout: replace(layout, headers=layout.headers[::-1]),
    "length": lambda layout: replace(layout, size_bytes=layout.size_bytes - 1),
}


@pytest.mark.parametrize(
    ("name", "mutant"),
    [(name, mutant) for name in FORMATS for mutant in MUTANTS if (name, mutant) != ("raw", "header")],
)
def test_a_wrong_layout_is_seen(tmp_path: Path, name: str, mutant: str) -> None:
    """A page at another place, another page, other headers, another length: the comparison fails for each."""
    memory = Frames(FrameRanges.of([(1, 3), (7, 2)]))
    file = written(tmp_path, name, memory)
    layout = FORMATS[name][0](memory.ranges)
    assert differences(layout, memory, file, [(0, len(file))]) == 0
    assert differences(MUTANTS[mutant](layout), memory, file, [(0, len(file))]) == 1


@pytest.mark.parametrize("name", FORMATS)
def test_only_the_frames_asked_for_are_read(name: str) -> None:
    """Three bytes over the border of two pages read these two; a header reads none."""
    memory = Frames(FrameRanges.of([(2, 10), (20, 10)]))
    layout = FORMATS[name][0](memory.ranges)
    border = int(layout.at[1]) + 4 * PAGE_SIZE
    assert layout.read(memory, border - 1, 3) == page_of(23)[-1:] + page_of(24)[:2]
    assert memory.read_pfns == [23, 24]
    memory.read_pfns.clear()
    assert len(layout.read(memory, 0, 32)) == 32
    assert memory.read_pfns == []


def test_more_ranges_than_the_format_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layout is refused exactly where its file would be."""
    monkeypatch.setattr(c, "MOST_LIME_RANGES", 2)
    monkeypatch.setattr(c, "MOST_ELF_HEADERS", 3)
    three = FrameRanges.of([(0, 1), (2, 1), (4, 1)])
    for layout in (lime_layout, elf_layout):
        layout(three.lowest(2))
        with pytest.raises(HibernautError, match="3 separate ranges of frames"):
            layout(three)
    raw_layout(three)
