# SPDX-License-Identifier: GPL-2.0-or-later
"""Allocation of pages for tables: the protocol of a page allocator, and one for machines in a dump or an image.

`FreePages` hands out frames of a fixed list. Its state is kept beside the machine's memory, where an allocation changes
nothing but the page that it hands out. The allocator whose state lies in a simulated machine's own memory is
`page_alloc.BuddyAllocator`.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import ArrayLike

from hibernaut.errors import NO_FREE_FRAME, NOT_ABOVE_MARK, MachineFault, OutOfMemory
from hibernaut.linux.environment import Environment
from hibernaut.linux.printk import EventLog
from hibernaut.memory.memo import Memo
from hibernaut.memory.overlay import Overlay
from hibernaut.memory.page import Pfns
from hibernaut.memory.ranges import FrameRanges

__all__ = ["Allocation", "AllocatorMachine", "FreeFrames", "FreePages", "PageAllocator"]


@dataclass(frozen=True)
class Allocation:
    """One page allocation.

    Attributes:
        number: number of the allocation since the machine was created, counted from 1.
        purpose: purpose of the page, a clause.
        pfn: the frame, or None if the allocation failed.
        at_mark: whether it failed because the zone was not above its min mark: pages may be left.
    """

    number: int
    purpose: str
    pfn: int | None
    at_mark: bool = False

    def renumbered(self, number: int) -> Allocation:
        """Return the same allocation with another number."""
        return self if number == self.number else Allocation(number, self.purpose, self.pfn, self.at_mark)

    def line(self, *, injected: bool = False) -> str:
        """Return its line in the log."""
        if self.pfn is not None:
            return f"allocation {self.number}: frame {self.pfn:#x} ({self.purpose})"
        reason = "injected" if injected else NOT_ABOVE_MARK if self.at_mark else NO_FREE_FRAME
        return f"allocation {self.number} fails: {reason} ({self.purpose})"


class FreeFrames(Sequence[int]):
    """The free frames, ascending: a set of frames less those taken. Cost follows the number of frames taken.

    Args:
        frames: int64, ascending, without repeats.
    """

    def __init__(self, frames: ArrayLike) -> None:
        self._frames: Pfns = np.asarray(frames, dtype=np.int64)
        self._head = 0  # all positions below are taken; while the lowest frame is chosen, nothing else changes
        self._taken: list[int] = []  # positions taken at or above the head, ascending

    def take(self, pfn: int) -> None:
        """Remove one frame. Raise ValueError if it is not free."""
        position = self._position(pfn)
        if position is None:
            raise ValueError(f"frame {pfn:#x} is not free")
        bisect.insort(self._taken, position)
        while self._taken and self._taken[0] == self._head:
            self._taken.pop(0)
            self._head += 1

    def fork(self) -> FreeFrames:
        """Return an independent copy."""
        twin = FreeFrames(self._frames)
        twin._head, twin._taken = self._head, self._taken.copy()
        return twin

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """Return the position of a frame among the free ones. Raise ValueError if it is not free."""
        position = self._position(int(value))
        if position is not None:
            index = position - self._head - bisect.bisect_left(self._taken, position)
            if start <= index and (stop is None or index < stop):
                return index
        raise ValueError(f"frame {int(value):#x} is not free")

    def _position(self, pfn: int) -> int | None:
        position = int(np.searchsorted(self._frames, pfn))
        if position >= len(self._frames) or int(self._frames[position]) != pfn or position < self._head:
            return None
        at = bisect.bisect_left(self._taken, position)
        return None if at < len(self._taken) and self._taken[at] == position else position

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int) and self._position(value) is not None

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        position = self._head + index
        for taken in self._taken:
            if taken > position:
                break
            position += 1
        return int(self._frames[position])

    def __len__(self) -> int:
        return len(self._frames) - self._head - len(self._taken)


class AllocatorMachine(Protocol):
    """The part of a machine that a page allocator needs."""

    @property
    def memory(self) -> Overlay:
        """Memory of the machine, as the CPU reads it now."""
        ...

    @property
    def memo(self) -> Memo | None:
        """Results of functions of the machine's bytes; None to keep none."""
        ...

    @property
    def base(self) -> int:
        """Virtual address of frame 0 in the direct map."""
        ...

    @property
    def end_pfn(self) -> int:
        """One past the last frame of the direct map."""
        ...

    @property
    def log(self) -> EventLog:
        """Log of the kernel."""
        ...

    def write_u64(self, paddr: int, value: int) -> None:
        """Write 8 bytes at a multiple of 8. Raise KeyError if the frame does not exist."""
        ...

    def replace_page(self, pfn: int, version: object) -> None:
        """Write a whole page of the kernel's own data: an `Overlay.version` of the frame."""
        ...

    def page_fault_oops(
        self, vaddr: int, *, doing: str, pfn: int | None = None, table: bool = True, write: bool = False
    ) -> MachineFault:
        """Print the kernel's lines for a page fault, and return the fault."""
        ...


class PageAllocator(Protocol):
    """`alloc_pages(GFP_KERNEL, 0)` and `__free_page` of the modelled kernel."""

    @property
    def allocations(self) -> tuple[Allocation, ...]:
        """All allocations so far, failed ones included, in order."""
        ...

    def alloc_page(self, environment: Environment, purpose: str, cpu: int = 0) -> int:
        """Return a free frame. Raise OutOfMemory if the environment makes it fail, or nothing is free."""
        ...

    def free_page(self, pfn: int, cpu: int = 0) -> None:
        """Free a page."""
        ...

    def drain_pages(self, cpu: int | None = None) -> None:
        """`drain_pages`: return the pages on a CPU's own list (None: on each CPU's) to the free lists."""
        ...

    def free_ranges(self) -> FrameRanges:
        """Return the frames that `mark_free_pages` marks: those on the free lists."""
        ...

    def fork(self, machine: AllocatorMachine) -> PageAllocator:
        """Return an independent allocator in the same state, for a twin of its machine."""
        ...


class FreePages:
    """A page allocator on a fixed list of frames.

    Args:
        free: the frames to hand out, ascending, without repeats.

    Attributes:
        free: the frames that are left.
    """

    def __init__(self, free: ArrayLike) -> None:
        self.free = FreeFrames(free)
        self._allocations: list[Allocation] = []

    @property
    def allocations(self) -> tuple[Allocation, ...]:
        """All allocations so far, failed ones included, in order."""
        return tuple(self._allocations)

    def alloc_page(self, environment: Environment, purpose: str, cpu: int = 0) -> int:
        """Return a free frame, chosen by the environment.

        Raises:
            OutOfMemory: the environment makes it fail, or nothing is free.
        """
        del cpu
        number = len(self._allocations) + 1
        injected = environment.allocation_fails(number)
        if injected or not len(self.free):
            self._allocations.append(Allocation(number, purpose, None))
            raise OutOfMemory(number, injected=injected)
        pfn = environment.free_frame(number, self.free)
        self.free.take(pfn)
        self._allocations.append(Allocation(number, purpose, pfn))
        return pfn

    def free_page(self, pfn: int, cpu: int = 0) -> None:
        """Do nothing: the page is lost, since the list only shrinks."""

    def drain_pages(self, cpu: int | None = None) -> None:
        """Do nothing: CPUs have no lists of their own."""

    def free_ranges(self) -> FrameRanges:
        """Return the frames that are left."""
        return FrameRanges.of_pfns(list(self.free))

    def fork(self, machine: AllocatorMachine) -> FreePages:
        """Return an independent allocator in the same state."""
        del machine
        twin = FreePages(())
        twin.free = self.free.fork()
        twin._allocations = self._allocations.copy()
        return twin
