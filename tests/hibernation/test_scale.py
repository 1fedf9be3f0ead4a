# SPDX-License-Identifier: GPL-2.0-or-later
"""The cost of a terabyte follows its holes."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from hibernaut.hibernation import BootKernel, Fixmap, Remap, Way, check_resumed, resume
from hibernaut.hibernation.audit import audit
from hibernaut.hibernation.swsusp_save import hibernate
from hibernaut.linux.build import build_machine
from hibernaut.linux.formula import FormulaMemory, formula_pages
from hibernaut.linux.layout import Layout, hole_2m, hole_4k
from hibernaut.memory.page import Bytes
from hibernaut.memory.ranges import FrameRanges
from hibernaut.paging.entries import Level
from tests.machines import GIB

HOLES = 200


def layout(gib: int) -> Layout:
    """RAM of `gib` GiB, with the same holes in its upper half for any size."""
    at = gib * GIB // 2
    holes = tuple(hole_2m(at + n * 1024) if n % 2 else hole_4k(at + n * 1024 + 5, 2) for n in range(HOLES))
    return Layout(((0, gib * GIB),), holes=holes, tables=0x1000, free_pages=4096)


@pytest.mark.parametrize("way", [Fixmap(), Remap()], ids=lambda way: way.name)
def test_a_terabyte_is_built_audited_saved_resumed_and_checked_in_little_memory(way: Way) -> None:
    """1 TiB: below 150 MiB at the peak; every page of the holes is what the formula says; nothing is expanded."""
    tracemalloc.start()
    try:
        machine = build_machine(layout(1024))
        found = audit(machine)
        snapshot = hibernate(machine.fork(), way)
        resumed = resume(snapshot)
        findings = check_resumed(machine, snapshot, resumed)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 150 << 20
    assert snapshot.frames.total_pages == 1024 * GIB - 4096
    assert found.saveable_pages == snapshot.frames.total_pages
    assert (found.allocations, len(snapshot.allocations)) == (HOLES // 2, 0 if isinstance(way, Fixmap) else HOLES // 2)
    assert {violation.invariant for violation in findings} <= ({"allocator-sound"} if isinstance(way, Remap) else set())
    for hole in machine_holes():
        assert np.array_equal(snapshot.page(hole), formula_pages([hole])[0])
        assert np.array_equal(resumed.memory.gather([hole])[0], formula_pages([hole]))


def machine_holes() -> list[int]:
    """The first and the last frame of each hole of the terabyte."""
    return [pfn for hole in layout(1024).holes for pfn in (hole.start_pfn, hole.end_pfn - 1)]


def test_the_pages_read_do_not_grow_with_ram(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same holes in 16 GiB and in 256 GiB: as many pages are looked at, but for the tables of the map itself."""
    read = 0
    plain = FormulaMemory.run

    def counting(self: FormulaMemory, pfn: int, pages: int) -> Bytes:
        nonlocal read
        got = plain(self, pfn, pages)
        read += len(got) if got.strides[0] else min(len(got), 1)
        return got

    monkeypatch.setattr(FormulaMemory, "run", counting)
    counts = []
    for gib in (16, 256):
        read = 0
        machine = build_machine(layout(gib))
        audit(machine)
        snapshot = hibernate(machine.fork(), Fixmap())
        assert check_resumed(machine, snapshot, resume(snapshot)) == ()
        counts.append(read)
    more = 256 - 16  # PMD tables, one a GiB
    assert counts[1] - counts[0] < 40 * more


@pytest.mark.parametrize("way", [Fixmap(), Remap()], ids=lambda way: way.name)
def test_with_pages_of_1g_a_terabyte_takes_the_reads_of_16_gib(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """RAM without tables costs nothing, either: as many pages by formula, a few more tables and struct pages."""
    by_formula = read = 0
    plain = FormulaMemory.run

    def counting(self: FormulaMemory, pfn: int, pages: int) -> Bytes:
        nonlocal by_formula, read
        got = plain(self, pfn, pages)
        read += len(got) if got.strides[0] else min(len(got), 1)
        by_formula += len(got) if len(got) and np.array_equal(got[:1], formula_pages([pfn])) else 0
        return got

    monkeypatch.setattr(FormulaMemory, "run", counting)
    counts = []
    for gib in (16, 1024):
        by_formula = read = 0
        holes = tuple(hole_2m(12 * GIB + n * 1024) if n % 2 else hole_4k(12 * GIB + n * 1024 + 5) for n in range(HOLES))
        big = Layout(((0, gib * GIB),), holes=holes, largest=Level.PUD, tables=0x1000, mem_map="high", free_pages=4096)
        machine = build_machine(big)
        audit(machine)
        snapshot = hibernate(machine.fork(), way)
        # The boot kernel uses the same frames in both; left to itself it takes what its tables for all RAM leave.
        check_resumed(machine, snapshot, resume(snapshot, BootKernel.beside(snapshot, FrameRanges.of([(0, 64)]))))
        counts.append((by_formula, read))
    assert counts[0][0] == counts[1][0] > 0
    assert counts[1][1] - counts[0][1] < 64
