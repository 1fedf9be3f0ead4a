# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine that is only an allocator, and readers of its bytes.

The readers use `struct` and offsets of their own, never the modules under test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hibernaut.errors import MachineFault
from hibernaut.linux.environment import Environment
from hibernaut.linux.formula import FormulaMemory
from hibernaut.linux.mm_init import init_zone
from hibernaut.linux.mmzone import AllocatorPlaces, mem_map_page
from hibernaut.linux.page_alloc import BuddyAllocator
from hibernaut.linux.printk import EventLog
from hibernaut.memory.memo import Memo
from hibernaut.memory.overlay import Overlay
from hibernaut.memory.ranges import FrameRanges
from hibernaut.memory.segments import Segment
from tests.machines import BASE4 as BASE

END = 4096 + 40
"""Frames of the small machine: not a multiple of the 64 that a page of mem_map covers, nor of a block."""
MEM_MAP, ZONE, PCPS, DATA = 0x40, 0x90, (0x91, 0x93), 0x95
"""First frames of what it holds; its last table of struct pages ends before the zone."""
FREE = ((0x100, 0x300), (0x431, 0x97), (0x800, 0x800), (0x1005, 0x22))

NEXT, PREV, PRIVATE, TYPE, REFCOUNT = 8, 16, 40, 48, 52
NR_FREE = 16
AREAS, NR_FREE_PAGES, PCP_LIST, WMARK_MIN = 64, 384, 24, 8


@dataclass
class TinyMachine:
    """RAM and a log; no tables: whatever lies in RAM is mapped."""

    memory: Overlay
    end_pfn: int = END
    base: int = BASE
    log: EventLog = field(default_factory=EventLog)
    hooked: set[int] = field(default_factory=set)
    memo: Memo | None = None

    def write_u64(self, paddr: int, value: int) -> None:
        """Write 8 bytes and record the frame."""
        self.hooked.add(paddr >> 12)
        self.memory.write_u64(paddr, value)

    def replace_page(self, pfn: int, version: object) -> None:
        """Put a version of a page in place and record the frame."""
        self.hooked.add(pfn)
        self.memory.put_version(pfn, version)

    def page_fault_oops(
        self, vaddr: int, *, doing: str, pfn: int | None = None, table: bool = True, write: bool = False
    ) -> MachineFault:
        """Print the first line of an oops and return the fault."""
        del table, write
        what = "kernel NULL pointer dereference" if vaddr < 4096 else "unable to handle page fault for"
        comma = "," if vaddr < 4096 else ""
        self.log.printk(f"BUG: {what}{comma} address: {vaddr:016x}")
        return MachineFault(what, address=vaddr, entry=None, pfn=pfn, doing=doing, log=self.log.kernel_lines)

    def fork(self) -> TinyMachine:
        """Return an independent twin."""
        return replace(self, memory=self.memory.fork(), log=self.log.fork(), hooked=set())

    def with_pages_of(self, other: TinyMachine, frames: Sequence[int]) -> TinyMachine:
        """A copy in which some frames are those of another instant."""
        torn = self.fork()
        for pfn in frames:
            page = other.memory.page(pfn)
            assert page is not None
            torn.memory.write_page(pfn, page)
        return torn

    def u64(self, paddr: int) -> int:
        """Read 8 bytes."""
        word = self.memory.read_u64(paddr)
        assert word is not None
        return word

    def u32(self, paddr: int) -> int:
        """Read 4 bytes."""
        return self.u64(paddr & ~7) >> 8 * (paddr & 7) & 0xFFFF_FFFF

    def set_u32(self, paddr: int, value: int) -> None:
        """Write 4 bytes."""
        self.memory.write(paddr, (value & 0xFFFF_FFFF).to_bytes(4, "little"))

    def bytes_of(self, frames: Sequence[int]) -> dict[int, bytes]:
        """Return the bytes of frames."""
        pages, _ = self.memory.gather(np.array(frames, dtype=np.int64))
        return {pfn: page.tobytes() for pfn, page in zip(frames, pages, strict=True)}


PLACES = AllocatorPlaces(MEM_MAP << 12, ZONE << 12, tuple(pfn << 12 for pfn in PCPS), END)


def built(
    free: Sequence[tuple[int, int]] = FREE, *, batch: int = 7, high: int = 28, end: int = END, mark: int | None = None
) -> tuple[TinyMachine, BuddyAllocator]:
    """Return a machine that is only an allocator, with these ranges free, and a min mark if one is given."""
    places = replace(PLACES, end_pfn=end, wmark_min=0 if mark is None else (ZONE << 12) + WMARK_MIN)
    array = np.broadcast_to(mem_map_page(), (places.mem_map_pages, 4096))
    memory = FormulaMemory(FrameRanges.of([(0, end)]), [Segment(MEM_MAP, array)])
    machine = TinyMachine(Overlay(memory), end_pfn=end)
    init_zone(machine, places, batch=batch, high=high, wmark_min=mark or 0)
    allocator = BuddyAllocator(machine, places)
    for start, pages in free:
        allocator.free_pages_memory(start, pages)
    return machine, allocator


def page_at(pfn: int) -> int:
    """Physical address of a struct page."""
    return (MEM_MAP << 12) + 64 * pfn


def area_at(order: int) -> int:
    """Return the physical address of a `struct free_area`."""
    return (ZONE << 12) + AREAS + 24 * order


def list_at(cpu: int) -> int:
    """Return the physical address of the head of a CPU's list."""
    return (PCPS[cpu] << 12) + PCP_LIST


def read_list(machine: TinyMachine, head: int) -> list[int]:
    """A list followed forwards, which must be the one followed backwards."""

    def follow(offset: int) -> list[int]:
        found, at = [], machine.u64(head + offset) - BASE
        while at != head:
            found.append((at - 8 - (MEM_MAP << 12)) // 64)
            assert at == page_at(found[-1]) + 8
            at = machine.u64(at + offset) - BASE
        return found

    forwards = follow(0)
    assert follow(8) == forwards[::-1]
    return forwards


def free_lists(machine: TinyMachine) -> list[list[int]]:
    """Return the free lists by order, read with offsets of this file."""
    return [read_list(machine, area_at(order)) for order in range(11)]


def pcp_lists(machine: TinyMachine) -> list[list[int]]:
    """Return the CPUs' lists, read with offsets of this file."""
    return [read_list(machine, list_at(cpu)) for cpu in range(len(PCPS))]


def put(at: int, value: int) -> Callable[[TinyMachine], None]:
    """Return a damage that writes 8 bytes."""
    return lambda machine: machine.memory.write_u64(at, value)


def put32(at: int, value: int) -> Callable[[TinyMachine], None]:
    """Return a damage that writes 4 bytes."""
    return lambda machine: machine.set_u32(at, value)


SINGLES, ON_PCP, BLOCK, TAIL, USED = (
    (0x1025, 0x432, 0x1005),
    (0x1022, 0x1023, 0x438, 0x439, 0x43A, 0x43B),
    0x800,
    0xBFE,
    0x431,
)
"""Frames of `worn`: free single pages, CPU 0's list, a block of 1024 pages (free_area[10], with 0xc00), a page of it
that is not its first, a page in use."""


def worn() -> tuple[TinyMachine, BuddyAllocator]:
    """A machine that has worked for a while, with something on most kinds of lists."""
    machine, allocator = built()
    for _ in range(15):
        allocator.alloc_page(Environment(), "table")
    for pfn in SINGLES:
        allocator.free_page(pfn, cpu=1)
    allocator.drain_pages(1)
    assert (free_lists(machine)[0], free_lists(machine)[10]) == (list(SINGLES[::-1]), [BLOCK, 0xC00])
    assert pcp_lists(machine) == [list(ON_PCP), []]
    return machine, allocator


FIRST, MIDDLE, LAST = (page_at(pfn) for pfn in SINGLES[::-1])
FREE_0, FREE_1, FREE_10 = (area_at(order) for order in (0, 1, 10))
PCP = PCPS[0] << 12


def two_instants() -> tuple[TinyMachine, TinyMachine, list[int]]:
    """A machine at rest, the same after one allocation, which refilled the CPU's list, and the frames that differ."""
    machine, allocator = built(((0x103, 1), (0x240, 2), (0x800, 0x400)))
    before = machine.fork()
    allocator.alloc_page(Environment(), "table, in the middle of the copy")
    frames = sorted(machine.hooked)
    old, new = before.bytes_of(frames), machine.bytes_of(frames)
    return before, machine, [pfn for pfn in frames if old[pfn] != new[pfn]]
