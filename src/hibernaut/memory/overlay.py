# SPDX-License-Identifier: GPL-2.0-or-later
"""The overlay: copy on write over a physical memory."""

from __future__ import annotations

import bisect
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hibernaut.memory.page import PAGE_SHIFT, PAGE_SIZE, BoolArray, Bytes, Pfns
from hibernaut.memory.physical import PhysicalMemory, digest_of_page
from hibernaut.memory.ranges import FrameRanges, rows_among

__all__ = ["BULK", "Overlay", "Touched", "Tracking"]

BELOW_PAGES = 1 << 12
"""Pages of the base that an overlay and its forks keep for reading by word (16 MiB)."""

_WITHIN = PAGE_SIZE - 1


Touched = dict[Any, Any]
"""Reads since `tracking` began, in order: frames with their `page_digest` before the first access, and other keys that
`note` added. `BULK` is among the keys if more was read than single pages."""

BULK = -1
"""See `Touched`."""


class _Page:
    """One page with what was derived from its bytes.

    Attributes:
        bytes: its bytes, uint8, shape (4096,).
        view: the same, read-only.
        words: the same as 512 u64.
        digest: digest of the bytes; None if it is not known.
    """

    __slots__ = ("bytes", "digest", "view", "words")

    def __init__(self, page: Bytes, digest: bytes | None = None) -> None:
        self.bytes = page
        self.view = page.view()
        self.view.flags.writeable = False
        self.words = page.data.cast("Q")
        self.digest = digest


_UNREAD: Any = object()
"""Mark of a page that was not read yet: None is one that does not exist."""


class Tracking:
    """A context in which accesses to an overlay are noted; see `Overlay.tracking`."""

    __slots__ = ("_memory", "_outer")

    def __init__(self, memory: Overlay) -> None:
        self._memory = memory

    def __enter__(self) -> tuple[Touched, dict[int, None]]:
        memory = self._memory
        self._outer = memory._touched, memory._stored
        memory._touched, memory._stored = {}, {}
        return memory._touched, memory._stored

    def __exit__(self, *_: object) -> None:
        memory = self._memory
        touched, stored = memory._touched, memory._stored
        outer, outer_stored = memory._touched, memory._stored = self._outer
        if outer is not None and touched is not None:
            for key, value in touched.items():
                outer.setdefault(key, value)
            outer_stored.update(stored)


class Overlay(PhysicalMemory):
    """Copy on write: reads fall through to `base`, writes stay in the overlay; the base is never written.

    A frame that the base lacks exists once it is written as a whole (`write_page`). Forks share their written pages
    until one of them writes to such a page again.

    Args:
        base: the memory below.

    Attributes:
        base: as given.
        derived: results of functions of the whole content, by their inputs, since the last write.
    """

    def __init__(self, base: PhysicalMemory) -> None:
        self.base = base
        self.derived: dict[Any, Any] = {}
        self._written: dict[int, _Page] = {}
        self._unshared: set[int] = set()
        """Written page frame numbers that no fork shares: only these pages are written in place."""
        self._order: list[int] = []
        self._written_pfns: Pfns | None = None
        self._ranges: FrameRanges | None = None
        self._below: dict[int, _Page | None] = {}
        """Pages of the base, shared by all forks: the base does not change."""
        self._digests_below: dict[int, bytes | None] = {}
        self._base_digests = type(base).page_digest is not PhysicalMemory.page_digest
        self._touched: Touched | None = None
        self._stored: dict[int, None] = {}

    @property
    def ranges(self) -> FrameRanges:
        """The page frames that exist: those of the base and those written in the overlay."""
        if self._ranges is None:
            below = self.base.ranges
            extra = [(pfn, 1) for pfn in self._order if not below.end_of(pfn)]
            self._ranges = FrameRanges.of([*below, *extra]) if extra else below
        return self._ranges

    @property
    def written(self) -> Pfns:
        """Page frame numbers of all written pages, ascending int64; the array is read-only."""
        if self._touched is not None:
            self._touched[BULK] = None
        if self._written_pfns is None:
            self._written_pfns = np.array(self._order, dtype=np.int64)
            self._written_pfns.flags.writeable = False
        return self._written_pfns

    @property
    def written_frames(self) -> Sequence[int]:
        """`written` as plain numbers; a list that must not be changed."""
        if self._touched is not None:
            self._touched[BULK] = None
        return self._order

    def run(self, pfn: int, nr_pages: int) -> Bytes:
        """See `PhysicalMemory.run`: the base's view up to the next written frame, or one written frame."""
        if self._touched is not None:
            self._touched[BULK] = None
        mine = self._written.get(pfn)
        if mine is not None:
            return mine.view.reshape(1, PAGE_SIZE)[:nr_pages]
        after = bisect.bisect_right(self._order, pfn)
        if after < len(self._order):
            nr_pages = min(nr_pages, self._order[after] - pfn)
        return self.base.run(pfn, nr_pages)

    def page(self, pfn: int) -> Bytes | None:
        """See `PhysicalMemory.page`."""
        if self._touched is not None and pfn not in self._touched:
            self._touched[pfn] = self.peek_digest(pfn)
        mine = self._written.get(pfn)
        if mine is None:
            mine = self._page_below(pfn)
        return None if mine is None else mine.view

    def page_digest(self, pfn: int) -> bytes | None:
        """See `PhysicalMemory.page_digest`; computed once for each version of a page."""
        if self._touched is not None and pfn not in self._touched:
            self._touched[pfn] = self.peek_digest(pfn)
        mine = self._written.get(pfn)
        return self.digest_below(pfn) if mine is None else mine.digest or _digest(mine)

    def written_digests(self) -> dict[int, bytes]:
        """Return the `page_digest` of each written frame, ascending."""
        if self._touched is not None:
            self._touched[BULK] = None
        written = self._written
        pages = [(pfn, written[pfn]) for pfn in self._order]
        return {pfn: page.digest or _digest(page) for pfn, page in pages}

    def peek_digest(self, pfn: int) -> bytes | None:
        """Return the `page_digest` of a frame without a trace in `tracking`."""
        mine = self._written.get(pfn)
        return self.digest_below(pfn) if mine is None else mine.digest or _digest(mine)

    def digest_below(self, pfn: int) -> bytes | None:
        """Return the `page_digest` of a frame of the base."""
        known: bytes | None = self._digests_below.get(pfn, _UNREAD)
        if known is not _UNREAD:
            return known
        if len(self._digests_below) >= BELOW_PAGES:
            self._digests_below.clear()
        if self._base_digests:
            found = self.base.page_digest(pfn)
        else:  # of the page that is kept: the memory of a running kernel may change in the meantime
            page = self._page_below(pfn)
            found = None if page is None else page.digest or _digest(page)
        self._digests_below[pfn] = found
        return found

    def content_key(self, start: int, end: int) -> Hashable | None:
        """See `PhysicalMemory.content_key`: that of the base, and the digests of the written pages."""
        if self._touched is not None:
            self._touched[BULK] = None
        below = self.base.content_key(start, end)
        order = self._order
        own = order[bisect.bisect_left(order, start) : bisect.bisect_left(order, end)]
        return None if below is None else (below, *((pfn, self.page_digest(pfn)) for pfn in own))

    def read_u64(self, paddr: int) -> int | None:
        """See `PhysicalMemory.read_u64`."""
        pfn = paddr >> PAGE_SHIFT
        if self._touched is not None and pfn not in self._touched:
            self._touched[pfn] = self.peek_digest(pfn)
        mine = self._written.get(pfn)
        if mine is None:
            mine = self._page_below(pfn)
            if mine is None:
                return None
        return mine.words[(paddr & _WITHIN) >> 3]

    def words(self, pfn: int) -> memoryview | None:
        """Return one page as 512 u64, without a trace in `tracking`; None if it does not exist.

        A view of the page as it is now: a page that was written to last by this overlay can be written through it.
        """
        mine = self._written.get(pfn) or self._page_below(pfn)
        return None if mine is None else mine.words

    def gather(self, pfns: ArrayLike, out: Bytes | None = None) -> tuple[Bytes, BoolArray]:
        """See `PhysicalMemory.gather`: the base's pages, with the written ones over them."""
        if self._touched is not None:
            self._touched[BULK] = None
        pfns = np.asarray(pfns, dtype=np.int64)
        pages, present = self.base.gather(pfns, out)
        for row in rows_among(pfns, self.written).tolist():
            pages[row] = self._written[int(pfns[row])].bytes
            present[row] = True
        return pages, present

    def occupied(self) -> FrameRanges:
        """See `PhysicalMemory.occupied`: the base's, except for written pages."""
        if self._touched is not None:
            self._touched[BULK] = None
        held = [pfn for pfn in self._order if self._written[pfn].bytes.any()]
        below = self.base.occupied().without(FrameRanges.of_pfns(self._order))
        return FrameRanges.of([*below, *FrameRanges.of_pfns(held)])

    def write_page(self, pfn: int, page: Bytes) -> None:
        """Replace one page by a copy of `page`, uint8, 4096 bytes."""
        self._put(pfn, _Page(np.array(page, dtype=np.uint8).reshape(PAGE_SIZE)))
        self._unshared.add(pfn)

    def write(self, paddr: int, data: bytes) -> None:
        """Write bytes at a physical address, across neighbouring frames.

        Raises:
            KeyError: a frame there does not exist; neither it nor the frames after it are written.
        """
        at = 0
        while at < len(data):
            pfn, within = divmod(paddr + at, PAGE_SIZE)
            piece = data[at : at + PAGE_SIZE - within]
            self._own(pfn).bytes[within : within + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
            at += len(piece)

    def write_u64(self, paddr: int, value: int) -> None:
        """Write one little-endian u64. Raise KeyError if the frame does not exist."""
        if paddr & 7:
            self.write(paddr, value.to_bytes(8, "little"))
        else:
            self._own(paddr >> PAGE_SHIFT).words[(paddr & _WITHIN) >> 3] = value

    def shared_page(self, pfn: int) -> Bytes | None:
        """Return one page that never changes: a later write to the frame goes to a copy. None if it does not exist."""
        self._unshared.discard(pfn)
        mine = self._written.get(pfn) or self._page_below(pfn)
        return None if mine is None else mine.view

    def version(self, pfn: int) -> object | None:
        """Return a written page as it is now, to be put back by `put_version`; None if the frame was not written."""
        self._unshared.discard(pfn)
        return self._written.get(pfn)

    def put_version(self, pfn: int, version: object) -> None:
        """Replace one page by a `version`, of this frame or another, in this overlay or another; nothing is copied."""
        assert isinstance(version, _Page)
        self._put(pfn, version)
        self._unshared.discard(pfn)

    @property
    def is_tracked(self) -> bool:
        """Whether accesses are being noted: results that were derived earlier must not be used then."""
        return self._touched is not None

    def tracking(self) -> Tracking:
        """Note every access within the context: what was read, and the frames that were written to, in order.

        It can be nested; the outer one notes what the inner one does.
        """
        return Tracking(self)

    def note(self, key: object, value: object) -> None:
        """Note something else that was read, where accesses are being noted."""
        if self._touched is not None:
            self._touched[key] = value

    def fork(self) -> Overlay:
        """Return an independent overlay in the same state, on the same base."""
        if self._touched is not None:
            self._touched[BULK] = None
        twin = object.__new__(Overlay)
        twin.__dict__.update(
            self.__dict__,
            derived=self.derived.copy(),
            _touched=None,
            _stored={},
            _written=self._written.copy(),
            _unshared=set(),
            _order=self._order.copy(),
        )
        self._unshared.clear()
        return twin

    def _put(self, pfn: int, page: _Page) -> None:
        if self._touched is not None:
            if pfn not in self._touched:
                self._touched[pfn] = self.peek_digest(pfn)
            self._stored[pfn] = None
        if self.derived:
            self.derived = {}
        if pfn not in self._written:
            bisect.insort(self._order, pfn)
            self._written_pfns = None
            if self._ranges is not None and not self._ranges.end_of(pfn):
                self._ranges = None
        self._written[pfn] = page

    def _own(self, pfn: int) -> _Page:
        """Return a page that is about to be written to."""
        if self._touched is not None:
            if pfn not in self._touched:
                self._touched[pfn] = self.peek_digest(pfn)
            self._stored[pfn] = None
        if pfn not in self._unshared:
            page = self.page(pfn)
            if page is None:
                raise KeyError(f"frame {pfn:#x} does not exist")
            self.write_page(pfn, page)
        if self.derived:
            self.derived = {}
        own = self._written[pfn]
        own.digest = None
        return own

    def _page_below(self, pfn: int) -> _Page | None:
        """Return a page of the base, and keep it."""
        kept: _Page | None = self._below.get(pfn, _UNREAD)
        if kept is not _UNREAD:
            return kept
        page = self.base.page(pfn)
        if len(self._below) >= BELOW_PAGES:
            self._below.clear()
        found = self._below[pfn] = None if page is None else _Page(np.ascontiguousarray(page), None)
        return found

    def close(self) -> None:
        """Close the base."""
        self.base.close()


def _digest(page: _Page) -> bytes:
    page.digest = digest_of_page(page.bytes)
    return page.digest
