"""Costs follow tables and holes, not RAM: a terabyte is built, audited, hibernated and resumed like a small machine."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import ArrayLike

from hibernaut.hibernate import BootKernel, Fixmap, Remap, Way, check_resumed, hibernate, resume
from hibernaut.hibernate.audit import audit
from hibernaut.linux import formula
from hibernaut.linux.build import HoleSpec, Layout, build_machine, hole_2m, hole_4k
from hibernaut.linux.formula import FORMULA_MARK, formula_pages
from hibernaut.memory.physical import Bytes, FrameRanges, Overlay, PhysicalMemory
from hibernaut.paging.entries import Level

GIB = Level.PUD.pages
BLOCK = Level.PMD.pages
MEMORY_BYTES = 100 << 20
"""A terabyte has 256 Mi pages: one byte for each would be more than twice this."""


def holes_between(first: int, end: int, count: int) -> tuple[HoleSpec, ...]:
    """4K and 2M holes in turns, spread evenly."""
    blocks = [(first + (end - first) // count * number) // BLOCK * BLOCK for number in range(count)]
    return tuple(hole_2m(at) if number % 2 else hole_4k(at + 7) for number, at in enumerate(blocks))


def layout_of(gib: int, holes: tuple[HoleSpec, ...], largest: Level) -> Layout:
    """RAM with the gap below 1 MiB; tables and free pages below the holes, the array of struct page at the top."""
    ram = ((0, 0xA0), (0x100, gib * GIB - 0x100))
    return Layout(ram, holes=holes, largest=largest, mem_map="high", free_pages=4096)


@pytest.mark.parametrize("largest", [Level.PMD, Level.PUD])
def test_a_terabyte_with_a_thousand_holes_in_little_memory(largest: Level) -> None:
    """Built, audited, saved, resumed and checked below 100 MiB; every hole is saved with its own bytes."""
    holes = holes_between(128 * GIB, 1000 * GIB, 1000)
    tracemalloc.start()
    try:
        machine = build_machine(layout_of(1024, holes, largest))
        found = audit(machine)
        snapshot = hibernate(machine.fork(), Fixmap())
        findings = check_resumed(machine, snapshot, resume(snapshot))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MEMORY_BYTES
    assert findings == ()
    assert "pfns" not in vars(snapshot)  # an int64 for each of 256 Mi pages
    assert snapshot.frames.total_pages == 1024 * GIB - 0x60 - 4096
    assert (found.saveable_pages, found.allocations, len(found.splits)) == (snapshot.frames.total_pages, 500, 500)
    frames = FrameRanges.of([(hole.start_pfn, hole.pages) for hole in holes])
    assert len(frames.without(snapshot.frames)) == 0
    some = np.unique([hole.start_pfn + page for hole in holes for page in (0, hole.pages // 2, hole.pages - 1)])
    content, present = snapshot.memory.gather(some)
    assert present.all()
    assert np.array_equal(content, formula_pages(some))


class Counting(PhysicalMemory):
    """Counts the pages that are handed out; one page repeated over and over is one."""

    def __init__(self, memory: PhysicalMemory) -> None:
        self._memory = memory
        self.pages = 0

    @property
    def ranges(self) -> FrameRanges:
        """As they are."""
        return self._memory.ranges

    def run(self, pfn: int, pages: int) -> Bytes:
        """Counted."""
        got = self._memory.run(pfn, pages)
        self.pages += len(got) if not len(got) or got.strides[0] else 1
        return got

    def occupied(self) -> FrameRanges:
        """As it is: by formula."""
        return self._memory.occupied()


@dataclass(frozen=True)
class Reads:
    """Pages computed by formula from building the machine on, and pages read once it stood."""

    computed: int
    read: int


def reads_of(gib: int, way: Way, monkeypatch: pytest.MonkeyPatch) -> Reads:
    """Of one life: built, audited, saved, resumed, checked; 200 holes in the first 16 GiB."""
    computed = 0

    def counted(pfns: ArrayLike, mark: int = FORMULA_MARK) -> Bytes:
        nonlocal computed
        pages = formula_pages(pfns, mark)
        computed += len(pages)
        return pages

    with monkeypatch.context() as patch:
        patch.setattr(formula, "formula_pages", counted)
        layout = layout_of(gib, holes_between(8 * GIB, 15 * GIB, 200), Level.PUD)
        machine = build_machine(layout)
        memory = Counting(machine.memory.base)
        machine.memory = Overlay(memory)
        audit(machine)
        snapshot = hibernate(machine.fork(), way)
        # The same frames are in use at boot: left to itself the boot kernel takes what the temporary tables leave.
        boot = BootKernel.beside(snapshot, FrameRanges.of([(0, 64)]))
        check_resumed(machine, snapshot, resume(snapshot, boot))
    return Reads(computed, memory.pages)


@pytest.mark.parametrize("way", [Fixmap(), Remap()], ids=lambda way: way.name)
def test_reads_do_not_grow_with_ram(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 GiB and 1 TiB with the same holes and 1G pages elsewhere: as many pages are read, but for a few tables."""
    small, big = reads_of(16, way, monkeypatch), reads_of(1024, way, monkeypatch)
    assert small.computed > 0
    assert big.computed == small.computed
    assert big.read <= small.read + 16
