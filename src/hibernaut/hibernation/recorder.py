# SPDX-License-Identifier: GPL-2.0-or-later
"""The recorder: copied bytes that differ from the memory below, kept while pages are copied."""

from __future__ import annotations

from hibernaut.linux.machine import Machine
from hibernaut.memory.page import Bytes
from hibernaut.memory.physical import digest_of_page
from hibernaut.memory.ranges import FrameRanges

__all__ = ["Recorder"]


class Recorder:
    """Copied bytes that differ from the machine's memory, kept while the copy runs.

    Every listed page below `cursor` is copied. Before a write to a page below it, the recorder keeps the copied bytes;
    a write above it takes effect before the page is copied. Plainly present pages therefore cost nothing.

    Attributes:
        cursor: page frame number of the page being copied.
        kept: copied bytes that the frame does not hold any more, or never held, by page frame number.
        skipped: page frame numbers that the way could not reach.
        written: page frame numbers that hibernation itself writes to.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.cursor = 0
        self.kept: dict[int, Bytes] = {}
        self.skipped: list[int] = []
        self.written: set[int] = set()
        self._digests: dict[int, tuple[Bytes, bytes]] = {}

    def fork(self, machine: Machine) -> Recorder:
        """Return an independent recorder in the same state, for a fork of the machine."""
        twin = object.__new__(type(self))
        twin._machine, twin.cursor = machine, self.cursor
        twin.kept, twin._digests = self.kept.copy(), self._digests.copy()
        twin.skipped, twin.written = self.skipped.copy(), self.written.copy()
        return twin

    def before_write(self, pfn: int) -> None:
        """Keep the copied bytes of a page that is about to be written to."""
        self.written.add(pfn)
        if pfn < self.cursor and pfn not in self.kept:
            memory = self._machine.memory
            digest = memory.peek_digest(pfn)
            page = memory.shared_page(pfn)
            if page is not None and digest is not None:
                self.kept[pfn] = page
                self._digests[pfn] = page, digest

    def keep(self, pfn: int, page: Bytes, digest: bytes) -> None:
        """Keep the bytes of a page that the way copied, where the frame itself holds others.

        Args:
            pfn: the frame.
            page: the copied bytes, which never change.
            digest: their `digest_of_page`.
        """
        self.kept[pfn] = page
        self._digests[pfn] = page, digest

    def kept_digest(self, pfn: int) -> bytes:
        """Return the digest (`digest_of_page`) of a page that is kept."""
        page = self.kept[pfn]
        known = self._digests.get(pfn)
        if known is None or known[0] is not page:
            known = self._digests[pfn] = page, digest_of_page(page)
        return known[1]

    def differing(self, frames: FrameRanges) -> tuple[dict[int, Bytes], dict[int, bytes]]:
        """Return the copied bytes of listed frames that differ from the base's, by page frame number.

        The pages never change. Their digests (`digest_of_page`) are returned as well, by page frame number.
        """
        memory, kept = self._machine.memory, self.kept
        changed, digests = {}, {}
        copied = memory.written_digests() | {pfn: self.kept_digest(pfn) for pfn in kept}
        for pfn, digest in sorted(copied.items()):
            if digest == memory.digest_below(pfn) or not frames.end_of(pfn):
                continue
            page = kept[pfn] if pfn in kept else memory.shared_page(pfn)
            if page is not None:
                page.flags.writeable = False
                changed[pfn], digests[pfn] = page, digest
        return changed, digests
