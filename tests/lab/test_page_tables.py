# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's page tables at two instants: every entry that differs is found, and no other."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hibernaut.lab import page_tables
from hibernaut.lab.page_tables import KernelTables
from hibernaut.memory.segments import Segment, SegmentMemory
from hibernaut.paging.entries import Entry, Level

FRAMES = 16
ROOT, PUD, PMD, PTE, FIXMAP = 1, 2, 3, 4, 5
TABLE = int(Entry.PRESENT | Entry.RW)
DIRECT_MAP, FIXMAP_BASE = 0xFFFF888000000000, 0xFFFFFFFFFF000000
USER = 0x1000


def machine() -> NDArray[np.uint8]:
    """Return 16 frames of memory with 4 levels of tables: a direct map of 4K pages and 2 MiB, and an empty fixmap."""
    ram = np.zeros((FRAMES, 4096), dtype=np.uint8)
    put(ram, ROOT, 0, PUD << 12 | TABLE)  # of the user half, the same tables
    put(ram, ROOT, DIRECT_MAP >> 39 & 511, PUD << 12 | TABLE)
    put(ram, ROOT, 400, PUD << 12 | TABLE)  # a second address of the direct map
    put(ram, ROOT, 511, 10 << 12 | TABLE)
    put(ram, PUD, 0, PMD << 12 | TABLE)
    put(ram, 10, 511, 6 << 12 | TABLE)
    put(ram, 6, 504, FIXMAP << 12 | TABLE)
    put(ram, PMD, 0, PTE << 12 | TABLE)
    put(ram, PMD, 1, 1 << 21 | TABLE | int(Entry.PSE))
    for index in range(FRAMES):
        put(ram, PTE, index, index << 12 | TABLE)
    return ram


def put(ram: NDArray[np.uint8], pfn: int, index: int, entry: int) -> None:
    """Write an entry of a table."""
    ram[pfn, 8 * index : 8 * index + 8] = np.frombuffer(struct.pack("<Q", entry), dtype=np.uint8)


def tables(ram: NDArray[np.uint8]) -> KernelTables:
    """Read the page tables of a memory."""
    return KernelTables.read(SegmentMemory([Segment(0, ram)]), ROOT << 12 | 0x18, 4)


@given(st.integers(0, FRAMES - 1), st.sampled_from([Entry.RW, Entry.NX, Entry.GLOBAL, Entry.PRESENT, 1 << 13]))
def test_a_changed_entry_is_found(index: int, bit: int) -> None:
    """Whatever bit of a 4K entry changes: its address and both values."""
    ram = machine()
    before = tables(ram)
    put(ram, PTE, index, (index << 12 | TABLE) ^ int(bit))
    (change, *others) = before.changes(tables(ram))
    assert (change.address, change.level) == (DIRECT_MAP + (index << 12), Level.PTE)
    assert (change.before, change.after) == (index << 12 | TABLE, (index << 12 | TABLE) ^ int(bit))
    assert not others  # the same table is reached from three entries of the root


def test_nothing_changed() -> None:
    """Bits that the CPU sets by itself do not count, nor does the user half."""
    ram = machine()
    before = tables(ram)
    assert list(before.changes(tables(ram))) == []
    put(ram, PTE, 3, 3 << 12 | TABLE | int(Entry.ACCESSED | Entry.DIRTY))
    put(ram, ROOT, 1, 9 << 12 | TABLE)
    assert list(before.changes(tables(ram))) == []


def test_dirty_of_an_entry_that_allows_no_write_counts() -> None:
    """The CPU does not set it there: set_direct_map_invalid clears it."""
    ram = machine()
    put(ram, PTE, 3, 3 << 12 | int(Entry.DIRTY))
    before = tables(ram)
    put(ram, PTE, 3, 3 << 12)
    (change,) = before.changes(tables(ram))
    assert (change.before, change.after) == (3 << 12 | int(Entry.DIRTY), 3 << 12)


def test_a_split_is_one_change() -> None:
    """The entry that maps 2 MiB becomes a table; its 512 entries are not listed."""
    ram = machine()
    before = tables(ram)
    put(ram, PMD, 1, 8 << 12 | TABLE)
    (change,) = before.changes(tables(ram))
    assert (change.address, change.level, change.after) == (DIRECT_MAP + (1 << 21), Level.PMD, 8 << 12 | TABLE)
    assert str(change) == f"PMD entry of 0xffff888000200000: 0x{1 << 21 | TABLE | 128:x}, then 0x8003"


def test_a_slot_that_stays_mapped_is_found() -> None:
    """It lies outside of the direct map: all of the kernel's tables are compared."""
    ram = machine()
    before = tables(ram)
    put(ram, FIXMAP, 7, 3 << 12 | TABLE)
    (change,) = before.changes(tables(ram))
    assert change.address == 0xFFFFFFFFFF007000
    assert before.entry(change.address, Level.PTE) == 0


def test_a_table_that_is_gone_is_found() -> None:
    """Its frame does not exist any more."""
    ram = machine()
    before = tables(ram)
    later = KernelTables.read(SegmentMemory([Segment(0, ram[:PTE])]), ROOT << 12, 4)
    assert {change.after for change in before.changes(later)} == {None}


@pytest.mark.parametrize(
    ("name", "value"),
    [("KERNEL_HALF", 400), ("_lasting", lambda entries: entries & ~np.uint64(Entry.RW))],
    ids=["half of the kernel", "no rights"],
)
def test_broken_comparisons_are_caught(monkeypatch: pytest.MonkeyPatch, name: str, value: object) -> None:
    """One that skips the direct map but for its last alias, and one that does not look at RW."""
    ram = machine()
    before = tables(ram)
    put(ram, PTE, 3, 3 << 12 | int(Entry.PRESENT))
    (right,) = before.changes(tables(ram))
    monkeypatch.setattr(page_tables, name, value)
    found = list(before.changes(tables(ram)))
    assert [one.address for one in found] != [right.address]


def test_an_entry_is_read_at_its_level() -> None:
    """None below a leaf, and where there is no table."""
    before = tables(machine())
    assert before.entry(DIRECT_MAP + 0x3000, Level.PTE) == 3 << 12 | TABLE
    assert before.entry(DIRECT_MAP + (1 << 21), Level.PMD) == 1 << 21 | TABLE | int(Entry.PSE)
    assert before.entry(DIRECT_MAP + (1 << 21), Level.PTE) is None
    assert before.entry(DIRECT_MAP + (1 << 30), Level.PMD) is None


def test_five_levels_are_signed_higher() -> None:
    """With 5 levels bit 56 is the sign."""
    ram = machine()
    put(ram, 7, 511, ROOT << 12 | TABLE)
    before = KernelTables.read(SegmentMemory([Segment(0, ram)]), 7 << 12, 5)
    put(ram, FIXMAP, 7, 3 << 12 | TABLE)
    after = KernelTables.read(SegmentMemory([Segment(0, ram)]), 7 << 12, 5)
    assert 0xFFFFFFFFFF007000 in [change.address for change in before.changes(after)]
