# SPDX-License-Identifier: GPL-2.0-or-later
"""The copy: `swsusp_save` of kernel/power/snapshot.c on a modelled machine."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from hibernaut.errors import HibernationRefused, OutOfMemory
from hibernaut.hibernation.log import SwsuspLog
from hibernaut.hibernation.reach import AS_IT_IS
from hibernaut.hibernation.recorder import Recorder
from hibernaut.hibernation.saveable import saveable_pages
from hibernaut.hibernation.snapshot import Snapshot
from hibernaut.hibernation.ways.base import Way
from hibernaut.linux.calls import copied
from hibernaut.linux.direct_map import FrameState, frames_in_state
from hibernaut.linux.machine import Machine
from hibernaut.linux.machine_steps import StepInputs, machine_step
from hibernaut.memory.page import PAGE_SIZE, Bytes, same_bytes
from hibernaut.memory.physical import digest_of_page
from hibernaut.memory.ranges import FrameRanges
from hibernaut.paging.tlb import Tlb

__all__ = ["Copy", "hibernate"]

SKIPPED_BYTE = 0x5A
"""Content of a skipped page. The kernel does not write to the image page, which keeps the frame's earlier bytes."""


def _page_of(byte: int) -> tuple[Bytes, bytes]:
    """Return a page of one byte, read-only, and its digest."""
    page = np.full(PAGE_SIZE, byte, dtype=np.uint8)
    page.flags.writeable = False
    return page, digest_of_page(page)


_SKIPPED = (_page_of(SKIPPED_BYTE), _page_of(0))


def hibernate(machine: Machine, way: Way, *, image_shortfall: int = 0) -> Snapshot:
    """Save the memory of a machine, as `swsusp_save` does.

    The steps: drain the CPU's page list, count the saveable pages, allocate the pages that the copy needs, drain
    again, fix the list of pages, copy them in ascending order (`swsusp_save`, kernel/power/snapshot.c). Plainly present
    pages are not visited one by one; all others go through `way`. The machine changes as the kernel's does; pass a
    `fork` to keep the original.

    Args:
        machine: machine to save.
        way: way of copying a page that is not present.
        image_shortfall: number of image pages that `hibernate_preallocate_memory` has not allocated; `swsusp_alloc`
            allocates them before the list is fixed.

    Raises:
        HibernationRefused: secret memory is in use, no page is free for the image, or the way aborts. Nothing is
            saved, and the machine continues.
        MachineFault: the machine crashes, and nothing is saved; `log` holds its last log lines.
        HibernautError: the machine lacks a structure that the way needs (a fixmap, for example).
    """
    copying = Copy(machine, way, image_shortfall=image_shortfall)
    while (snapshot := copying.step()) is None:
        pass
    return snapshot


class _Piece(NamedTuple):
    """The copy of one page, or of a run.

    Attributes:
        nr_pages: number of pages.
        skipped: whether the way could not reach the page.
        page: its copied bytes, which never change, where the frame itself holds others; else None.
        digest: their digest.
    """

    nr_pages: int
    skipped: bool = False
    page: Bytes | None = None
    digest: bytes = b""


class Copy:
    """`swsusp_save` in steps: the first fixes the list, each later one copies a run of pages.

    Between two steps it can be forked together with its machine: `explore` branches there. Copy and machine together
    determine the outcome.

    Attributes:
        machine: the machine being copied.
        way: way of copying a page that is not present.
        frames: the list of page frames to save; None until it is fixed.
        recorder: copied bytes that differ from the memory below the machine's own writes.
    """

    def __init__(self, machine: Machine, way: Way, *, image_shortfall: int = 0) -> None:
        self.machine = machine
        self.way = way
        self.frames: FrameRanges | None = None
        self._image_shortfall = image_shortfall
        self.recorder = Recorder(machine)
        self._pending: list[tuple[int, int]] = []
        self._inputs: StepInputs | None = None
        self._online = [cpu for cpu, tlb in enumerate(machine.tlbs) if tlb is not None]
        self._recorded_to = 0
        self._log_from = len(machine.log)
        self._allocated = len(machine.allocations)
        self._base, self._before = machine.memory.base, machine.memory.written

    def fork(self, machine: Machine) -> Copy:
        """Return an independent copy in the same state, on a fork of its machine."""
        twin = object.__new__(type(self))
        twin.__dict__ = self.__dict__.copy()
        twin.machine = machine
        twin.recorder = self.recorder.fork(machine)
        twin._pending = self._pending.copy()
        return twin

    @property
    def pending(self) -> tuple[tuple[int, int], ...]:
        """Runs of frames that remain to be copied and were not plainly present at the start: (first, end)."""
        return tuple(reversed(self._pending))

    def step(self) -> Snapshot | None:
        """Perform one step; return the snapshot once all pages are copied, else None.

        Raises:
            HibernationRefused, MachineFault, HibernautError: as `hibernate`.
        """
        with self.machine.watching(self.recorder.before_write):
            try:
                if self.frames is None:
                    self.frames = self._begin()
                elif self._pending:
                    self._copy_piece()
                if not self._pending:
                    self.way.finish(self.machine)
            except HibernationRefused as error:
                self._suspend_enable_secondary_cpus()
                if self.way.policy != "write-anyway" or self.frames is None:
                    raise
                return self._finish(self.frames.within(FrameRanges.of([(0, self.recorder.cursor)])), error)
        return None if self._pending else self._finish(self.frames, None)

    def _suspend_enable_secondary_cpus(self) -> None:
        """Bring back the CPUs that were online, with empty TLBs."""
        for cpu in self._online:
            if self.machine.tlbs[cpu] is None:
                self.machine.tlbs[cpu] = Tlb()

    def _begin(self) -> FrameRanges:
        """Take the other CPUs offline (`suspend_disable_secondary_cpus`), and fix the list."""
        machine = self.machine
        if machine.secretmem_users and machine.rules.checks_secretmem:
            raise HibernationRefused("secret memory is in use", errno="EPERM")
        offline = tuple(cpu for cpu in self._online if cpu != machine.cpu)
        for cpu in offline:
            machine.tlbs[cpu] = None  # it drops its translations
        machine.preemptible = False
        inputs = StepInputs(machine, *_preparation(self.way))
        key = "list", offline, self._image_shortfall
        frames, pieces = machine_step(machine, inputs, lambda: self._listed(offline), *key)
        self._pending = list(pieces)
        return frames

    def _listed(self, offline: Sequence[int]) -> tuple[FrameRanges, tuple[tuple[int, int], ...]]:
        """Return the list of pages to save, and of these the runs that are visited page by page, the last one first.

        Args:
            offline: CPUs that have gone offline, whose page lists are drained.
        """
        machine = self.machine
        log = SwsuspLog(machine)
        log.creating_image()
        for cpu in offline:
            machine.allocator.drain_pages(cpu)
        machine.allocator.drain_pages(machine.cpu)
        log.need_to_copy(saveable_pages(machine).total_pages)
        _swsusp_alloc(machine, self._image_shortfall)
        self.way.prepare(machine)
        machine.allocator.drain_pages(machine.cpu)
        frames = saveable_pages(machine)
        if machine.saveable is not None:  # a list that another kernel fixed does not contain the pool
            pool = FrameRanges.of([(pfn, 1) for pfn in machine.table_pool]).within(machine.memory.ranges)
            frames = FrameRanges.of([*frames, *pool])
        pieces = [(start, start + nr_pages) for start, nr_pages in frames.within(_not_present(machine))]
        return frames, tuple(pieces[::-1])

    def _copy_piece(self) -> None:
        """Run `copy_data_page` for the next page, or for a run of neighbours at once."""
        pfn, end = self._pending.pop()
        self.recorder.cursor = pfn
        self._record_copies(pfn + 1)
        if self._inputs is None:
            self._inputs = StepInputs(self.machine, *self.way.in_copy)
        piece = machine_step(self.machine, self._inputs, lambda: self._copied(pfn, end), "copy", pfn, end)
        done = piece.nr_pages
        if piece.skipped:
            self.recorder.skipped.append(pfn)
            self._keep_skipped(pfn)
        elif piece.page is not None:
            self.recorder.keep(pfn, piece.page, piece.digest)
        self.recorder.cursor = pfn + done
        if pfn + done < end:
            self._pending.append((pfn + done, end))
        else:
            self.way.end_run(self.machine)

    def _copied(self, pfn: int, end: int) -> _Piece:
        """Copy the next page by the way, or a run of neighbours at once."""
        machine = self.machine
        done = 0 if machine.calls is not None else self.way.copy_run(machine, pfn, end - pfn)
        if done:
            return _Piece(done)
        page = self.way.safe_copy_page(machine, pfn)
        if page is None:
            return _Piece(1, skipped=True)
        own = machine.memory.page(pfn)
        if own is not None and same_bytes(own, page):
            return _Piece(1)
        page.flags.writeable = False
        return _Piece(1, page=page, digest=digest_of_page(page))

    def _keep_skipped(self, pfn: int) -> None:
        """Keep the content of a skipped page, where the frame itself holds other bytes."""
        page, digest = _SKIPPED[self.way.policy == "zero"]
        if self.machine.memory.page_digest(pfn) != digest:
            self.recorder.keep(pfn, page, digest)

    def _record_copies(self, end: int) -> None:
        """Record the copies of listed pages up to a frame, where calls are recorded: present ones are not visited."""
        if self.machine.calls is None or self.frames is None or end <= self._recorded_to:
            return
        for pfn, pages in self.frames.within(FrameRanges.of([(self._recorded_to, end - self._recorded_to)])):
            self.machine.record(copied(pfn, pages))
        self._recorded_to = end

    def _finish(self, frames: FrameRanges, error: HibernationRefused | None) -> Snapshot:
        machine, recorder = self.machine, self.recorder
        if error is None:
            self._record_copies(frames.end)
        changed, digests = recorder.differing(frames)
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
            log=machine.log.lines_from(self._log_from),
            error=error,
            digests=digests,
        )


def _preparation(way: Way) -> tuple[Hashable, ...]:
    """Return a value that is equal for ways that allocate alike before the list is fixed."""
    return () if type(way).prepare is Way.prepare else (type(way), *sorted(vars(way).items()))


def _swsusp_alloc(machine: Machine, missing: int) -> None:
    """Allocate the missing pages for the image. They are not saved (`swsusp_set_page_forbidden`)."""
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
    """Return the frames that are not plainly present: the copy visits these one by one."""
    return frames_in_state(machine.direct_map, *(state for state in FrameState if state not in AS_IT_IS))
