# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages for tables: what a page allocator is asked for, and one for machines whose real allocator is left alone.

`FreePages` hands out frames of a fixed list; its state is beside the machine's memory: an allocation changes nothing
there but the page that is handed out. It serves dumps and images. The allocator whose state lies in a simulated
machine's own memory is in `buddy.py`.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np
from numpy.typing import ArrayLike

from hibernaut.errors import OutOfMemory
from hibernaut.linux.environment import Environment
from hibernaut.memory.physical import FrameRanges, Frames

if TYPE_CHECKING:
    from hibernaut.linux.machine import Machine

__all__ = ["Allocation", "FreeFrames", "FreePages", "PageAllocator"]


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


class PageAllocator(Protocol):
    """`alloc_pages(GFP_KERNEL, 0)` and `__free_page` of the modelled kernel."""

    @property
    def allocations(self) -> tuple[Allocation, ...]:
        """Every allocation so far, failed ones too, in order."""
        ...

    def alloc_page(self, environment: Environment, purpose: str, cpu: int = 0) -> int:
        """One free frame. Raises OutOfMemory: the environment makes it fail, or nothing is free."""
        ...

    def free_page(self, pfn: int, cpu: int = 0) -> None:
        """Give a page back."""
        ...

    def drain(self, cpu: int | None = None) -> None:
        """drain_local_pages: what a CPU (None: each) keeps for itself goes back to the lists of all."""
        ...

    def free_ranges(self) -> FrameRanges:
        """What mark_free_pages sees: the frames on the free lists."""
        ...

    def fork(self, machine: Machine) -> PageAllocator:
        """An independent allocator in the same state, of a twin of its machine."""
        ...


class FreePages:
    """A page allocator on a fixed list of frames, one at a time.

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

    def alloc_page(self, environment: Environment, purpose: str, cpu: int = 0) -> int:
        """One free frame, chosen by the environment.

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
        """The page is lost: the list only shrinks."""

    def drain(self, cpu: int | None = None) -> None:
        """Nothing is kept by a CPU."""

    def free_ranges(self) -> FrameRanges:
        """The frames that are left."""
        return FrameRanges.of_frames(list(self.free))

    def fork(self, machine: Machine) -> FreePages:
        """An independent allocator in the same state."""
        del machine
        twin = FreePages(())
        twin.free = self.free.fork()
        twin._allocations = self._allocations.copy()
        return twin
