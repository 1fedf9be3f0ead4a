# SPDX-License-Identifier: GPL-2.0-or-later
"""The page: its size, and the arrays that hold pages and page frame numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["CHUNK_PAGES", "PAGE_SHIFT", "PAGE_SIZE", "BoolArray", "Bytes", "Frames"]

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT


Bytes = NDArray[np.uint8]
"""Bytes of pages: shape (n, 4096) unless said otherwise."""
Frames = NDArray[np.int64]
"""Page frame numbers, shape (n,)."""
BoolArray = NDArray[np.bool_]


CHUNK_PAGES = 1024
"""Pages handled at a time where memory must stay bounded (4 MiB)."""
