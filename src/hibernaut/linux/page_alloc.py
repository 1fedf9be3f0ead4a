"""The page allocator, as far as page tables need it: one free frame at a time, from a fixed set, and it may fail.

The allocator's own state is not yet part of the simulated machine's memory: an allocation changes nothing there but
the page that is handed out. Nothing gives pages back.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike

from hibernaut.errors import OutOfMemory
from hibernaut.linux.environment import Environment
from hibernaut.memory.physical import Frames

__all__ = ["Allocation", "FreeFrames", "PageAllocator"]


@dataclass(frozen=True)
class Allocation:
    """One page allocation.

    Attributes:
        number: which one since the machine was made, counted from 1.
        purpose: what it was for, a clause.
        pfn: the frame, or None if the allocation failed.
    """

    number: int
    purpose: str
    pfn: int | None


class FreeFrames(Sequence[int]):
    """The frames that are free, ascending: a set of frames less those taken. Costs follow the number taken.

    Args:
        frames: int64, ascending, without repeats.
    """

    def __init__(self, frames: ArrayLike) -> None:
        self._frames: Frames = np.asarray(frames, dtype=np.int64)
        self._head = 0  # everything below it is taken: all that ever happens while the lowest frame is chosen
        self._taken: list[int] = []  # positions taken at or above it, ascending

    def take(self, pfn: int) -> None:
        """Remove one frame. Raises ValueError if it is not there."""
        position = self._position(pfn)
        if position is None:
            raise ValueError(f"frame {pfn:#x} is not free")
        bisect.insort(self._taken, position)
        while self._taken and self._taken[0] == self._head:
            self._taken.pop(0)
            self._head += 1

    def fork(self) -> FreeFrames:
        """An independent set in the same state."""
        twin = FreeFrames(self._frames)
        twin._head, twin._taken = self._head, self._taken.copy()
        return twin

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """Position of a frame among those free. Raises ValueError if it is not free."""
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


class PageAllocator:
    """`alloc_pages(GFP_KERNEL, 0)` of the modelled kernel.

    Args:
        free: the frames it may hand out, ascending, without repeats.
    """

    def __init__(self, free: ArrayLike) -> None:
        self.free = FreeFrames(free)
        self._allocations: list[Allocation] = []

    @property
    def allocations(self) -> tuple[Allocation, ...]:
        """Every allocation so far, failed ones too, in order."""
        return tuple(self._allocations)

    def alloc_page(self, environment: Environment, purpose: str) -> int:
        """One free frame, chosen by the environment.

        Raises:
            OutOfMemory: the environment makes it fail, or nothing is free.
        """
        number = len(self._allocations) + 1
        injected = environment.allocation_fails(number)
        if injected or not len(self.free):
            self._allocations.append(Allocation(number, purpose, None))
            raise OutOfMemory(number, injected=injected)
        pfn = environment.free_frame(number, self.free)
        self.free.take(pfn)
        self._allocations.append(Allocation(number, purpose, pfn))
        return pfn

    def fork(self) -> PageAllocator:
        """An independent allocator in the same state."""
        twin = PageAllocator(())
        twin.free = self.free.fork()
        twin._allocations = self._allocations.copy()
        return twin
