# SPDX-License-Identifier: GPL-2.0-or-later
"""The copy: `swsusp_save` of kernel/power/snapshot.c on a modelled machine, and what comes out of it."""

from __future__ import annotations

import bisect
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from hibernaut.errors import HibernationRefused, HibernautError, OutOfMemory
from hibernaut.hibernation.log import SwsuspLog
from hibernaut.hibernation.saveable import saveable_pages
from hibernaut.hibernation.ways.base import Way
from hibernaut.linux.allocator import Allocation
from hibernaut.linux.direct_map import FrameState, frames_in_state
from hibernaut.linux.machine import Machine
from hibernaut.memory.physical import PAGE_SIZE, BoolArray, Bytes, FrameRanges, Frames, PhysicalMemory, rows_among
from hibernaut.paging.tlb import Tlb

__all__ = ["Copy", "Recorder", "Snapshot", "SnapshotMemory", "hibernate"]

CHUNK_PAGES = 1024

SKIPPED_BYTE = 0x5A
"""What a page that was never written to holds here: an image page has whatever the frame held before."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A list of frames and what was copied of each: what a writer puts in an image.

    Attributes:
        frames: the list.
        base: memory in which every frame not in `changed` has the bytes that were copied.
        changed: what was copied of the frames for which that is not so; bytes of shape (4096,).
        written: the frames that hibernating itself wrote to (page tables, the allocator's own), ascending, listed or
            not. Their saved bytes may differ from what they held when it began, depending on when they were copied.
        skipped: frames that are listed and were not copied: the way could not reach them. Ascending.
        way: name of the way.
        machine: the machine as the copy left it; what a resumed one has in common with it is taken from there.
        allocations: page allocations since the snapshot was begun.
        log: every line of the copy, those of the model marked.
        error: why the copy ended early, where a way delivers it all the same (`write-anyway`: a mutant); else None.
    """

    frames: FrameRanges
    base: PhysicalMemory
    changed: Mapping[int, Bytes]
    written: Frames
    skipped: Frames
    way: str
    machine: Machine
    allocations: tuple[Allocation, ...]
    log: tuple[str, ...]
    error: HibernationRefused | None = None
    _changed_pfns: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_changed_pfns", sorted(self.changed))

    @cached_property
    def pfns(self) -> Frames:
        """The list as ascending int64, shape (n,): sized by the number of pages."""
        return self.frames.frames()

    @property
    def cr3(self) -> int:
        """Root of the page tables."""
        return self.machine.cr3

    @property
    def levels(self) -> int:
        """4 or 5."""
        return self.machine.levels

    def chunks(self, pages: int = CHUNK_PAGES) -> Iterator[tuple[Frames, Bytes]]:
        """Everything in order: (frames, bytes of shape (n, 4096)), n at most `pages`; the arrays are the caller's."""
        for pfns in self.frames.chunks(pages):
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
        if not self.frames.end_of(pfn):
            raise KeyError(f"frame {pfn:#x} is not in the snapshot")
        changed = self.changed.get(pfn)
        page = self.base.frame(pfn) if changed is None else changed
        if page is None:
            raise HibernautError(f"frame {pfn:#x} has vanished from the source")
        return page

    @cached_property
    def memory(self) -> SnapshotMemory:
        """The snapshot as physical memory: exactly its frames."""
        return SnapshotMemory(self)


class SnapshotMemory(PhysicalMemory):
    """The memory that an image of a snapshot would hold."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._changed = sorted(snapshot.changed)
        self._changed_frames = np.array(self._changed, dtype=np.int64)
        self._ranges = snapshot.frames

    @property
    def ranges(self) -> FrameRanges:
        """The listed frames."""
        return self._ranges

    def run(self, pfn: int, pages: int) -> Bytes:
        """See `PhysicalMemory.run`."""
        end = self._ranges.end_of(pfn)
        if not end:
            return np.empty((0, PAGE_SIZE), dtype=np.uint8)
        changed = self._snapshot.changed.get(pfn)
        if changed is not None:
            return changed.reshape(1, PAGE_SIZE)[:pages]
        after = bisect.bisect_right(self._changed, pfn)
        if after < len(self._changed):
            end = min(end, self._changed[after])
        return self._snapshot.base.run(pfn, min(pages, end - pfn))

    def frame(self, pfn: int) -> Bytes | None:
        """See `PhysicalMemory.frame`."""
        if not self._ranges.end_of(pfn):
            return None
        changed = self._snapshot.changed.get(pfn)
        return self._snapshot.base.frame(pfn) if changed is None else changed

    def occupied(self) -> FrameRanges:
        """See `PhysicalMemory.occupied`: only what was copied otherwise is read."""
        others = FrameRanges.of_frames(self._changed_frames)
        held = [pfn for pfn, page in self._snapshot.changed.items() if page.any()]
        below = self._snapshot.base.occupied().without(others)
        return FrameRanges.of([*below, *FrameRanges.of_frames(sorted(held))]).within(self._ranges)

    def gather(self, pfns: ArrayLike, out: Bytes | None = None) -> tuple[Bytes, BoolArray]:
        """See `PhysicalMemory.gather`: the base's pages, then what was copied otherwise over them."""
        frames = np.asarray(pfns, dtype=np.int64)
        pages, present = self._snapshot.base.gather(frames, out)
        for row in rows_among(frames, self._changed_frames).tolist():
            pages[row] = self._snapshot.changed[int(frames[row])]
            present[row] = True
        present &= self._ranges.contains(frames)
        pages[~present] = 0
        return pages, present


class Recorder:
    """What differs from the base, kept while the copy goes on.

    Everything below `cursor` is copied. A write to a frame below it must not change the copy, so its bytes are kept
    first; a write above it is seen by the copy to come. So neighbouring plain pages cost nothing, however many.

    Attributes:
        cursor: the frame whose turn it is.
        kept: copied bytes that the frame itself does not hold any more, or never held.
        skipped: frames that could not be reached.
        written: frames that hibernating itself wrote to.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.cursor = 0
        self.kept: dict[int, Bytes] = {}
        self.skipped: list[int] = []
        self.written: set[int] = set()

    def fork(self, machine: Machine) -> Recorder:
        """The same for a twin of the machine."""
        twin = Recorder(machine)
        twin.cursor, twin.kept = self.cursor, self.kept.copy()
        twin.skipped, twin.written = self.skipped.copy(), self.written.copy()
        return twin

    def before_write(self, pfn: int) -> None:
        """A frame is about to be written to: what was copied of it is kept."""
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

    def differing(self, frames: FrameRanges) -> dict[int, Bytes]:
        """The copied bytes of every listed frame that differ from the base's."""
        memory = self._machine.memory
        later = set(memory.written.tolist()) - self.kept.keys()
        candidates = np.array(sorted(self.kept.keys() | later), dtype=np.int64)
        changed = {}
        for pfn in candidates[frames.contains(candidates)].tolist():
            page = self.kept.get(pfn)
            if page is None:
                page = memory.frame(pfn)
            below = memory.base.frame(pfn)
            if page is not None and (below is None or not np.array_equal(page, below)):
                changed[pfn] = _frozen(page)
        return changed


def hibernate(machine: Machine, way: Way, *, image_shortfall: int = 0) -> Snapshot:
    """Save the memory of a machine, as `swsusp_save` does.

    The steps: count the saveable pages, drain the CPU's list, allocate what the copy needs, drain, fix the list of
    pages, copy them in ascending order. Pages that are plainly present are never visited one by one; all others go
    through `way`. The machine changes as the kernel's does; pass a `fork` to keep the original.

    Args:
        machine: machine to save.
        way: way of copying a page that is not present.
        image_shortfall: pages for the image that are not allocated yet (`hibernate_preallocate_memory` allocates all
            others beforehand); `swsusp_alloc` allocates them before the list is fixed.

    Raises:
        HibernationRefused: secret memory is in use, there is no page for the image, or the way aborts. Nothing is
            saved, and the machine continues.
        MachineFault: the machine crashes, and nothing is saved; the log holds its last lines.
        HibernautError: the machine lacks something that the way needs (a fixmap, for example).
    """
    copying = Copy(machine, way, image_shortfall=image_shortfall)
    while (snapshot := copying.step()) is None:
        pass
    return snapshot


class Copy:
    """`swsusp_save` as it goes on: one step fixes the list, each of those after it copies what goes in one piece.

    Between two steps it can be forked, with its machine: `explore` branches there. What it holds is, with the machine,
    all that decides how it ends.

    Attributes:
        machine: being copied.
        way: how a page is reached that is not present.
        frames: the list, once it is fixed.
        recorder: what was copied otherwise than the memory below the machine's own writes has it.
    """

    def __init__(self, machine: Machine, way: Way, *, image_shortfall: int = 0) -> None:
        self.machine = machine
        self.way = way
        self.frames: FrameRanges | None = None
        self._image_shortfall = image_shortfall
        self.recorder = Recorder(machine)
        self._pending: list[tuple[int, int]] = []
        self._online = [cpu for cpu, tlb in enumerate(machine.tlbs) if tlb is not None]
        self._log_from = len(machine.log)
        self._allocated = len(machine.allocations)
        self._base, self._before = machine.memory.base, machine.memory.written

    def fork(self, machine: Machine) -> Copy:
        """The same copy of a twin of its machine."""
        twin = copy.copy(self)
        twin.machine = machine
        twin.recorder = self.recorder.fork(machine)
        twin._pending = self._pending.copy()
        return twin

    @property
    def pending(self) -> tuple[tuple[int, int], ...]:
        """Frames still to be copied that were not plainly present when the list was fixed: (first, end)."""
        return tuple(reversed(self._pending))

    def step(self) -> Snapshot | None:
        """Go on. Gives the snapshot when all is copied, else None. Raises as `hibernate` does."""
        with self.machine.watching(self.recorder.before_write):
            try:
                if self.frames is None:
                    self.frames = self._begin()
                elif self._pending:
                    self._copy_piece()
            except HibernationRefused as error:
                self._all_cpus()
                if self.way.policy != "write-anyway" or self.frames is None:
                    raise
                return self._finish(self.frames.within(FrameRanges.of([(0, self.recorder.cursor)])), error)
        return None if self._pending else self._finish(self.frames, None)

    def _all_cpus(self) -> None:
        """`suspend_enable_secondary_cpus`: a machine that lives on has the CPUs that it had, remembering nothing."""
        for cpu in self._online:
            if self.machine.tlbs[cpu] is None:
                self.machine.tlbs[cpu] = Tlb()

    def _begin(self) -> FrameRanges:
        machine = self.machine
        if machine.secretmem_users and machine.rules.checks_secretmem:
            raise HibernationRefused("secret memory is in use", errno="EPERM")
        log = SwsuspLog(machine)
        log.creating_image()
        _only_this_cpu(machine)
        machine.allocator.drain_pages(machine.cpu)
        log.need_to_copy(saveable_pages(machine).total_pages)
        _swsusp_alloc(machine, self._image_shortfall)
        self.way.prepare(machine)
        machine.allocator.drain_pages(machine.cpu)
        frames = saveable_pages(machine)
        if machine.saveable is not None:  # a list that was fixed elsewhere does not know of them
            pool = FrameRanges.of([(pfn, 1) for pfn in machine.table_pool]).within(machine.memory.ranges)
            frames = FrameRanges.of([*frames, *pool])
        pieces = [(start, start + pages) for start, pages in frames.within(_not_present(machine))]
        self._pending = pieces[::-1]
        return frames

    def _copy_piece(self) -> None:
        """`copy_data_page` for the next frame, or for neighbours that go at once."""
        pfn, end = self._pending.pop()
        self.recorder.cursor = pfn
        done = self.way.copy_run(self.machine, pfn, end - pfn)
        if not done:
            page = self.way.safe_copy_page(self.machine, pfn)
            if page is None:
                self.recorder.skipped.append(pfn)
                page = np.full(PAGE_SIZE, SKIPPED_BYTE if self.way.policy != "zero" else 0, dtype=np.uint8)
            self.recorder.copied(pfn, page)
            done = 1
        self.recorder.cursor = pfn + done
        if pfn + done < end:
            self._pending.append((pfn + done, end))

    def _finish(self, frames: FrameRanges, error: HibernationRefused | None) -> Snapshot:
        machine, recorder = self.machine, self.recorder
        changed = recorder.differing(frames)
        SwsuspLog(machine).image_created(frames, self._base, self._before, changed)
        return Snapshot(
            frames=frames,
            base=self._base,
            changed=changed,
            written=np.array(sorted(recorder.written), dtype=np.int64),
            skipped=np.array(recorder.skipped, dtype=np.int64),
            way=self.way.name,
            machine=machine,
            allocations=machine.allocations[self._allocated :],
            log=tuple(str(event) for event in machine.log.events[self._log_from :]),
            error=error,
        )


def _only_this_cpu(machine: Machine) -> None:
    """`suspend_disable_secondary_cpus`: the others go offline, forget their translations and give back their pages."""
    for cpu, tlb in enumerate(machine.tlbs):
        if cpu != machine.cpu and tlb is not None:
            machine.tlbs[cpu] = None
            machine.allocator.drain_pages(cpu)
    machine.preemptible = False


def _swsusp_alloc(machine: Machine, missing: int) -> None:
    """`swsusp_alloc`: allocate the missing pages for the image. They are not saved (`swsusp_set_page_forbidden`)."""
    taken: list[int] = []
    try:
        while len(taken) < missing:
            taken.append(machine.alloc_page(f"page {len(taken) + 1} of {missing} that the image lacks"))
    except OutOfMemory:
        for pfn in taken:
            machine.allocator.free_page(pfn, machine.cpu)
        raise HibernationRefused("no page for the image", errno="ENOMEM", log=machine.log.kernel_lines) from None
    if taken and machine.page_flags is not None:
        nosave = FrameRanges.of([*machine.page_flags.nosave, *((pfn, 1) for pfn in taken)])
        machine.page_flags = replace(machine.page_flags, nosave=nosave)


def _not_present(machine: Machine) -> FrameRanges:
    """The frames that are not plainly present: those that the copy goes through one by one."""
    others = [state for state in FrameState if state != FrameState.PRESENT]
    return frames_in_state(machine.direct_map, *others)


def _frozen(page: Bytes) -> Bytes:
    copy = page.copy()
    copy.flags.writeable = False
    return copy
