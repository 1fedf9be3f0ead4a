# SPDX-License-Identifier: GPL-2.0-or-later
"""A bound on the memory that Python and NumPy allocate."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["at_most"]


@contextmanager
def at_most(size_bytes: int) -> Iterator[None]:
    """Fail if the block allocates more than so many bytes at once."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size_bytes
    finally:
        tracemalloc.stop()
