# SPDX-License-Identifier: GPL-2.0-or-later
"""Contents of pages in one pass: zero pages, and pages with the content of another one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.memory.page import Pfns
from hibernaut.memory.painting import union
from hibernaut.memory.ranges import FrameRanges

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hibernaut.memory.page import Bytes
    from hibernaut.memory.physical import PhysicalMemory

__all__ = ["PageContents", "page_contents", "page_digests"]

WORDS = 512
SEED = 0x68696265
_KEYS = np.random.default_rng(SEED).integers(0, 1 << 64, (2, WORDS), dtype=np.uint64)
_ODD = np.uint64(0x9E37_79B9_7F4A_7C15)
_STEP = 256
"""Pages that are digested at a time: their words and one temporary array fit in a cache of 2 MiB."""


@dataclass(frozen=True, eq=False)
class PageContents:
    """Contents of the pages of a memory.

    Attributes:
        pages: number of pages read, and of those known to be zero without a read.
        zero: frames of pages that are all zeroes.
        distinct: number of different contents among the other pages, by a 64-bit digest.
    """

    pages: int
    zero: FrameRanges
    distinct: int

    @property
    def repeated(self) -> int:
        """Number of pages, zero pages apart, with the content of another page that was counted before."""
        return self.pages - self.zero.total_pages - self.distinct


def page_contents(memory: PhysicalMemory, progress: Callable[[int], None] | None = None) -> PageContents:
    """Read all pages of a memory once. Memory stays bounded but for eight bytes a page.

    Args:
        memory: the memory.
        progress: called with the number of pages read since the last call.
    """
    zero: list[Pfns] = []
    digests: list[NDArray[np.uint64]] = []
    for start, pages in memory.stored_blocks():
        occupied = pages.view(np.uint64).any(axis=1)
        zero.append(np.flatnonzero(~occupied) + start)
        digests.append(page_digests(pages[occupied]))
        if progress:
            progress(len(pages))
    empty = np.concatenate([np.empty(0, dtype=np.int64), *zero])
    known = memory.ranges.without(memory.stored)
    found = union([FrameRanges.of_pfns(empty), known])
    distinct = len(np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *digests])))
    return PageContents(memory.ranges.total_pages, found, distinct)


def page_digests(pages: Bytes) -> NDArray[np.uint64]:
    """Return a 64-bit digest of each page, equal for equal pages: uint64, shape (n,).

    Each word is mixed with a key of its place (a multiplication of its bits folded onto each other), so that pages
    that differ in a few bits do not cancel each other out.
    """
    found = np.zeros(len(pages), dtype=np.uint64)
    words = np.ascontiguousarray(pages).view(np.uint64)
    for first in range(0, len(words), _STEP):
        mixed = words[first : first + _STEP] ^ _KEYS[0]
        mixed ^= mixed >> np.uint64(32)
        mixed *= _ODD
        mixed ^= mixed >> np.uint64(29)
        mixed *= _KEYS[1] | np.uint64(1)
        found[first : first + _STEP] = np.bitwise_xor.reduce(mixed ^ mixed >> np.uint64(31), axis=1)
    return found
