"""The copy: `swsusp_save` of kernel/power/snapshot.c on a modelled machine, and what comes out of it."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from hibernaut.errors import HibernautError
from hibernaut.hibernate.log import CREATING_IMAGE, image_created, need_to_copy
from hibernaut.hibernate.ways.base import Way
from hibernaut.linux.direct_map import FrameState
from hibernaut.linux.machine import Machine
from hibernaut.linux.page_alloc import Allocation
from hibernaut.memory.physical import PAGE_SIZE, BoolArray, Bytes, FrameRanges, Frames, PhysicalMemory

__all__ = ["Snapshot", "SnapshotMemory", "hibernate"]

CHUNK_PAGES = 1024


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A list of frames and what was copied of each: what a writer puts in an image.

    Attributes:
        pfns: the frames, ascending int64.
        base: memory in which every frame not in `changed` has the bytes that were copied.
        changed: what was copied of the frames for which that is not so; bytes of shape (4096,).
        written: the frames that the copy itself wrote to (page tables), ascending, listed or not. Their saved bytes may
            differ from what they held when the copy began, depending on when they were copied.
        way: name of the way.
        cr3: root of the page tables.
        levels: 4 or 5.
        allocations: page allocations during the copy.
        log: every line of the copy, those of the model marked.
    """

    pfns: Frames
    base: PhysicalMemory
    changed: Mapping[int, Bytes]
    written: Frames
    way: str
    cr3: int
    levels: int
    allocations: tuple[Allocation, ...]
    log: tuple[str, ...]
    _changed_pfns: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_changed_pfns", sorted(self.changed))

    def chunks(self, pages: int = CHUNK_PAGES) -> Iterator[tuple[Frames, Bytes]]:
        """Everything in order: (frames, bytes of shape (n, 4096)), n at most `pages`; the arrays are the caller's."""
        for first in range(0, len(self.pfns), pages):
            pfns = self.pfns[first : first + pages]
            content, present = self.base.gather(pfns)
            low = bisect.bisect_left(self._changed_pfns, int(pfns[0]))
            high = bisect.bisect_right(self._changed_pfns, int(pfns[-1]))
            for pfn in self._changed_pfns[low:high]:
                row = int(np.searchsorted(pfns, pfn))
                content[row] = self.changed[pfn]
                present[row] = True
            if not present.all():
                raise HibernautError(f"frame {int(pfns[~present][0]):#x} has vanished from the source")
            yield pfns, content

    def page(self, pfn: int) -> Bytes:
        """What was copied of one frame, shape (4096,). Raises KeyError if it is not on the list."""
        row = int(np.searchsorted(self.pfns, pfn))
        if row >= len(self.pfns) or int(self.pfns[row]) != pfn:
            raise KeyError(f"frame {pfn:#x} is not in the snapshot")
        changed = self.changed.get(pfn)
        page = self.base.frame(pfn) if changed is None else changed
        if page is None:
            raise HibernautError(f"frame {pfn:#x} has vanished from the source")
        return page

    @property
    def memory(self) -> SnapshotMemory:
        """The snapshot as physical memory: exactly its frames."""
        return SnapshotMemory(self)


class SnapshotMemory(PhysicalMemory):
    """The memory that an image of a snapshot would hold."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._changed = sorted(snapshot.changed)
        self._ranges = FrameRanges.of_frames(snapshot.pfns)

    @property
    def ranges(self) -> FrameRanges:
        """The listed frames."""
        return self._ranges

    def run(self, pfn: int, pages: int) -> Bytes:
        """See `PhysicalMemory.run`."""
        row = int(np.searchsorted(self._ranges.starts, pfn, side="right")) - 1
        end = int(self._ranges.starts[row] + self._ranges.pages[row]) if row >= 0 else 0
        if pfn >= end:
            return np.empty((0, PAGE_SIZE), dtype=np.uint8)
        changed = self._snapshot.changed.get(pfn)
        if changed is not None:
            return changed.reshape(1, PAGE_SIZE)[:pages]
        after = bisect.bisect_right(self._changed, pfn)
        if after < len(self._changed):
            end = min(end, self._changed[after])
        return self._snapshot.base.run(pfn, min(pages, end - pfn))

    def gather(self, pfns: ArrayLike, out: Bytes | None = None) -> tuple[Bytes, BoolArray]:
        """See `PhysicalMemory.gather`: the base's pages, then what was copied otherwise over them."""
        frames = np.asarray(pfns, dtype=np.int64)
        pages, present = self._snapshot.base.gather(frames, out)
        for row in np.flatnonzero(np.isin(frames, self._changed)).tolist():
            pages[row] = self._snapshot.changed[int(frames[row])]
            present[row] = True
        present &= self._ranges.contains(frames)
        pages[~present] = 0
        return pages, present


class _Recorder:
    """What differs from the base, kept while the copy goes on.

    Everything below `cursor` is copied. A write to a frame below it must not change the copy, so its bytes are kept
    first; a write above it is seen by the copy to come. So neighbouring plain pages cost nothing, however many.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.cursor = 0
        self.kept: dict[int, Bytes] = {}
        self.written: set[int] = set()

    def before_write(self, pfn: int) -> None:
        self.written.add(pfn)
        if pfn < self.cursor and pfn not in self.kept:
            page = self._machine.memory.frame(pfn)
            if page is not None:
                self.kept[pfn] = page.copy()

    def copied(self, pfn: int, page: Bytes) -> None:
        """One page that did not come by the plain way: kept if it is not what the frame itself holds by now."""
        own = self._machine.memory.frame(pfn)
        if own is None or not np.array_equal(own, page):
            self.kept[pfn] = page

    def differing(self, pfns: Frames) -> dict[int, Bytes]:
        """The copied bytes of every listed frame that differ from the base's."""
        memory = self._machine.memory
        later = set(memory.written.tolist()) - self.kept.keys()
        candidates = np.array(sorted(self.kept.keys() | later), dtype=np.int64)
        changed = {}
        for pfn in candidates[np.isin(candidates, pfns)].tolist():
            page = self.kept.get(pfn)
            if page is None:
                page = memory.frame(pfn)
            below = memory.base.frame(pfn)
            if page is not None and (below is None or not np.array_equal(page, below)):
                changed[pfn] = _frozen(page)
        return changed


def hibernate(machine: Machine, way: Way) -> Snapshot:
    """Copy every saveable page of a machine, as `swsusp_save` does: the list is fixed first, then in ascending order.

    Pages plainly present are never visited one by one; each of the others goes through `way`. The machine is changed
    as the kernel's is: run it on a `fork` to keep the original.

    Args:
        machine: its memory, tables, environment.
        way: how a page is reached that is not present.

    Raises:
        MachineFault: the machine dies; its log says what it printed, and nothing is saved.
        HibernautError: the way needs something that the machine lacks (a fixmap, say).
    """
    pfns = machine.saveable
    log_from, allocated = len(machine.log), len(machine.allocations)
    machine.log.printk(CREATING_IMAGE)
    machine.log.printk(need_to_copy(len(pfns)))
    recorder = _Recorder(machine)
    special = pfns[machine.direct_map.classify(pfns) != FrameState.PRESENT]
    with machine.watching(recorder.before_write):
        for pfn in special.tolist():
            recorder.cursor = pfn
            page = way.safe_copy_page(machine, pfn)
            recorder.copied(pfn, page)
            recorder.cursor = pfn + 1
    machine.log.printk(image_created(len(pfns)))
    return Snapshot(
        pfns=pfns,
        base=machine.memory.base,
        changed=recorder.differing(pfns),
        written=np.array(sorted(recorder.written), dtype=np.int64),
        way=way.name,
        cr3=machine.cr3,
        levels=machine.levels,
        allocations=machine.allocations[allocated:],
        log=tuple(str(event) for event in machine.log.events[log_from:]),
    )


def _frozen(page: Bytes) -> Bytes:
    copy = page.copy()
    copy.flags.writeable = False
    return copy
