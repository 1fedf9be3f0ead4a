# SPDX-License-Identifier: GPL-2.0-or-later
"""The page: its size, and the types of arrays of pages and of page frame numbers."""

from __future__ import annotations

import mmap

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

CHUNK_PAGES = 1024
"""Pages handled at a time where memory must stay bounded (4 MiB)."""


def same_bytes(page: Bytes, other: Bytes) -> bool:
    """Return whether two pages, uint8, shape (4096,), hold the same bytes; for single pages faster than an array."""
    return page is other or page.tobytes() == other.tobytes()


def aligned_pages(nr_pages: int) -> Bytes:
    """Return a new array of pages, zero, shape (nr_pages, 4096), that begins at a page: direct writes demand that."""
    return np.frombuffer(mmap.mmap(-1, max(nr_pages, 1) * PAGE_SIZE), dtype=np.uint8).reshape(-1, PAGE_SIZE)[:nr_pages]
