# SPDX-License-Identifier: GPL-2.0-or-later
"""The page: its size, and the types of arrays of pages and of page frame numbers."""

from __future__ import annotations

import mmap
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

__all__ = ["CHUNK_PAGES", "PAGE_SHIFT", "PAGE_SIZE", "BoolArray", "Bytes", "Pfns", "aligned_pages", "same_bytes"]

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
"""Bytes per page (arch/x86/include/asm/page_types.h)."""

Bytes = NDArray[np.uint8]
"""Bytes of pages: shape (n, 4096) unless said otherwise."""
Pfns = NDArray[np.int64]
"""Page frame numbers, shape (n,)."""
BoolArray = NDArray[np.bool_]
"""A mask, shape (n,) unless said otherwise."""

HUGE_BYTES = 2 << 20
"""Bytes of a huge page of the machine that this runs on."""
CHUNK_PAGES = 1024
"""Pages handled at a time where memory must stay bounded (4 MiB)."""


def same_bytes(page: Bytes, other: Bytes) -> bool:
    """Return whether two pages, uint8, shape (4096,), hold the same bytes; for single pages faster than an array."""
    return page is other or page.tobytes() == other.tobytes()


def aligned_pages(nr_pages: int) -> Bytes:
    """Return a new array of pages, zero, shape (nr_pages, 4096), that begins at a page: direct writes demand that.

    From 2 MiB on it begins at a huge page, and the kernel is asked for huge ones: 500 faults fewer for each.
    """
    size_bytes = max(nr_pages, 1) * PAGE_SIZE
    is_huge = size_bytes >= HUGE_BYTES
    mapping = mmap.mmap(-1, size_bytes + is_huge * HUGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole, first = np.frombuffer(mapping, dtype=np.uint8), 0
    if is_huge and hasattr(mmap, "MADV_HUGEPAGE"):
        first = -whole.ctypes.data % HUGE_BYTES
        with suppress(OSError):  # a kernel without huge pages
            mapping.madvise(mmap.MADV_HUGEPAGE)
    return whole[first : first + size_bytes].reshape(-1, PAGE_SIZE)[:nr_pages]
