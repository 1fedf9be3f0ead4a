# SPDX-License-Identifier: GPL-2.0-or-later
"""A bound for the reads of one question that drgn's helpers answer.

They follow lists and trees to their end, and damaged ones have none. Nothing else bounds what they do: a question may
take long in sound memory, too, but it reads less than this.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["MAX_READS", "ReadLimit"]

MAX_READS = 1 << 22
FEWEST_READS = 1 << 8


class ReadLimit(threading.local):
    """Counts reads; each thread has its own count.

    A question that has no end halves the limit of those after it, so that many of them together have one.
    """

    def __init__(self) -> None:
        self._limit = MAX_READS
        self._left: int | None = None

    @contextmanager
    def question(self) -> Iterator[None]:
        """Limit reads for as long as the context lasts; one within another one shares its limit."""
        if self._left is not None:
            yield
            return
        self._left = self._limit
        try:
            yield
        finally:
            self._left = None

    def count(self) -> None:
        """Count a read. Raises ValueError if the question has read more than the limit."""
        if self._left is None:
            return
        if self._left == 1:
            self._limit = max(FEWEST_READS, self._limit // 2)
        self._left = max(0, self._left - 1)
        if not self._left:
            raise ValueError("too many reads: a list or a tree in it has no end")
