# SPDX-License-Identifier: GPL-2.0-or-later
"""The snapshot: the list of saved page frames and the bytes copied from each, also as physical memory."""

from __future__ import annotations

import bisect
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from hibernaut.errors import HibernationRefused, HibernautError
from hibernaut.linux.allocator import Allocation
from hibernaut.linux.machine import Machine
from hibernaut.memory.page import CHUNK_PAGES, PAGE_SIZE, BoolArray, Bytes, Pfns
from hibernaut.memory.physical import PhysicalMemory, digest_of_page
from hibernaut.memory.ranges import FrameRanges, rows_among
from hibernaut.notebook import html_table

__all__ = ["Snapshot", "SnapshotMemory"]

SHOWN_ALLOCATIONS = 8
"""Allocations that a notebook shows."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The saved page frames of a machine and the bytes copied from each: the content of an image.

    Attributes:
        frames: the list of saved page frames.
        base: memory that holds the copied bytes of every listed frame except those in `changed`.
        changed: copied bytes by page frame number, where `base` holds other bytes: uint8, shape (4096,).
        written: page frame numbers that hibernation itself writes to (page tables, allocator state), ascending int64,
            listed or not. Their saved bytes may differ from those before hibernation, depending on the time of copy.
        skipped: listed page frame numbers that were not copied because the way could not reach them, ascending int64.
        way: name of the way.
        machine: the machine as the copy left it; the resumed machine takes all but its memory from it.
        allocations: page allocations since the snapshot began.
        log: every line of the copy; lines of the model are marked.
        error: the reason why the copy ended early, where a way delivers the snapshot regardless (`write-anyway`: a
            mutant); else None.
        digests: digests of pages in `changed` (`digest_of_page`), as far as they are known.
    """

    frames: FrameRanges
    base: PhysicalMemory
    changed: Mapping[int, Bytes]
    written: Pfns
    skipped: Pfns
    way: str
    machine: Machine
    allocations: tuple[Allocation, ...]
    log: tuple[str, ...]
    error: HibernationRefused | None = None
    digests: Mapping[int, bytes] = field(default_factory=dict, repr=False)
    _changed_pfns: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_changed_pfns", sorted(self.changed))

    @cached_property
    def pfns(self) -> Pfns:
        """Page frame numbers of the list: ascending int64, shape (n,), n the number of saved pages."""
        return self.frames.pfns()

    @property
    def cr3(self) -> int:
        """Physical address of the root of the page tables."""
        return self.machine.cr3

    @property
    def levels(self) -> int:
        """Levels of paging: 4 or 5."""
        return self.machine.levels

    def chunks(self, nr_pages: int = CHUNK_PAGES) -> Iterator[tuple[Pfns, Bytes]]:
        """Yield all pages in ascending order, at most `nr_pages` at a time; the arrays belong to the caller.

        Yields:
            Page frame numbers, int64, shape (n,), and their bytes, uint8, shape (n, 4096).

        Raises:
            HibernautError: the source no longer has one of the frames.
        """
        for pfns in self.frames.chunks(nr_pages):
            pages, present = self.base.gather(pfns)
            low = bisect.bisect_left(self._changed_pfns, int(pfns[0]))
            high = bisect.bisect_right(self._changed_pfns, int(pfns[-1]))
            for pfn in self._changed_pfns[low:high]:
                row = int(np.searchsorted(pfns, pfn))
                pages[row] = self.changed[pfn]
                present[row] = True
            if not present.all():
                raise HibernautError(f"frame {int(pfns[~present][0]):#x} is no longer in the source")
            yield pfns, pages

    def page(self, pfn: int) -> Bytes:
        """Return the copied bytes of one page: uint8, shape (4096,).

        Raises:
            KeyError: the frame is not in the snapshot.
            HibernautError: the source no longer has the frame.
        """
        if not self.frames.end_of(pfn):
            raise KeyError(f"frame {pfn:#x} is not in the snapshot")
        changed = self.changed.get(pfn)
        page = self.base.page(pfn) if changed is None else changed
        if page is None:
            raise HibernautError(f"frame {pfn:#x} is no longer in the source")
        return page

    def _repr_html_(self) -> str:
        given = [one.pfn for one in self.allocations]
        shown = ", ".join("failed" if pfn is None else f"frame {pfn:#x}" for pfn in given[:SHOWN_ALLOCATIONS])
        more = f" and {len(given) - SHOWN_ALLOCATIONS} more" if len(given) > SHOWN_ALLOCATIONS else ""
        rows: list[tuple[str, object]] = [
            ("way", self.way),
            ("pages saved", self.frames.total_pages),
            ("runs of frames", len(self.frames)),
            ("pages not copied, though listed", len(self.skipped)),
            ("pages that hibernation itself wrote to", len(self.written)),
            ("page allocations since it began", f"{len(given)}: {shown}{more}" if given else 0),
            ("page tables", f"{self.levels} levels, CR3 {self.cr3:#x}"),
        ]
        if self.error is not None:
            rows.append(("ended early", self.error))
        if self.log:
            rows.append(("last line of its log", self.log[-1]))
        return html_table("snapshot of a machine", ("fact", "value"), rows)

    @cached_property
    def memory(self) -> SnapshotMemory:
        """The snapshot as physical memory: exactly the saved page frames exist."""
        return SnapshotMemory(self)


class SnapshotMemory(PhysicalMemory):
    """The memory that an image of a snapshot holds."""

    def __init__(self, snapshot: Snapshot) -> None:
        # Not the snapshot itself, which holds this memory: avoids a reference cycle.
        self._base, self._machine = snapshot.base, snapshot.machine
        self._pages, self._digests = snapshot.changed, snapshot.digests
        self._changed = sorted(snapshot.changed)
        self._ranges = snapshot.frames

    @property
    def ranges(self) -> FrameRanges:
        """The saved page frames."""
        return self._ranges

    def run(self, pfn: int, nr_pages: int) -> Bytes:
        """See `PhysicalMemory.run`."""
        end = self._ranges.end_of(pfn)
        if not end:
            return np.empty((0, PAGE_SIZE), dtype=np.uint8)
        changed = self._pages.get(pfn)
        if changed is not None:
            return changed.reshape(1, PAGE_SIZE)[:nr_pages]
        after = bisect.bisect_right(self._changed, pfn)
        if after < len(self._changed):
            end = min(end, self._changed[after])
        return self._base.run(pfn, min(nr_pages, end - pfn))

    def page(self, pfn: int) -> Bytes | None:
        """See `PhysicalMemory.page`."""
        if not self._ranges.end_of(pfn):
            return None
        changed = self._pages.get(pfn)
        return self._base.page(pfn) if changed is None else changed

    def page_digest(self, pfn: int) -> bytes | None:
        """See `PhysicalMemory.page_digest`."""
        known = self._digests.get(pfn)
        if known is not None:
            return known
        if not self._ranges.end_of(pfn):
            return None
        changed = self._pages.get(pfn)
        if changed is not None:
            return digest_of_page(changed)
        below = self._machine.memory
        return below.digest_below(pfn) if below.base is self._base else self._base.page_digest(pfn)

    def content_key(self, start: int, end: int) -> Hashable | None:
        """See `PhysicalMemory.content_key`: the list, the base's, and the digests of changed pages."""
        below = self._base.content_key(start, end)
        if below is None:
            return None
        listed = self._ranges.within(FrameRanges.of([(start, end - start)]))
        own = self._changed[bisect.bisect_left(self._changed, start) : bisect.bisect_left(self._changed, end)]
        return listed.bounds, below, *((pfn, self.page_digest(pfn)) for pfn in own)

    def occupied(self) -> FrameRanges:
        """See `PhysicalMemory.occupied`: reads only pages that differ from the base."""
        others = FrameRanges.of_pfns(self._changed)
        held = [pfn for pfn, page in self._pages.items() if page.any()]
        below = self._base.occupied().without(others)
        return FrameRanges.of([*below, *FrameRanges.of_pfns(sorted(held))]).within(self._ranges)

    def gather(self, pfns: ArrayLike, out: Bytes | None = None) -> tuple[Bytes, BoolArray]:
        """See `PhysicalMemory.gather`: the base's pages, with changed pages over them."""
        pfns = np.asarray(pfns, dtype=np.int64)
        pages, present = self._base.gather(pfns, out)
        for row in rows_among(pfns, np.array(self._changed, dtype=np.int64)).tolist():
            pages[row] = self._pages[int(pfns[row])]
            present[row] = True
        present &= self._ranges.contains(pfns)
        pages[~present] = 0
        return pages, present
