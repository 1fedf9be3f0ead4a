# SPDX-License-Identifier: GPL-2.0-or-later
"""Arrays of pages for direct writes: aligned, zero, writable, of huge pages if they are large."""

from __future__ import annotations

import pytest

from hibernaut.memory.page import HUGE_BYTES, PAGE_SIZE, aligned_pages

HUGE_PAGES = HUGE_BYTES // PAGE_SIZE


@pytest.mark.parametrize("nr_pages", [0, 1, 3, HUGE_PAGES - 1, HUGE_PAGES, HUGE_PAGES + 1, 3 * HUGE_PAGES])
def test_pages_are_aligned_zero_and_writable(nr_pages: int) -> None:
    """Several at once do not overlap, and an array of 2 MiB or more begins at a huge page."""
    arrays = [aligned_pages(nr_pages) for _ in range(3)]
    for number, pages in enumerate(arrays, 1):
        assert pages.shape == (nr_pages, PAGE_SIZE)
        assert not pages.any()
        assert pages.ctypes.data % (HUGE_BYTES if nr_pages >= HUGE_PAGES else PAGE_SIZE) == 0
        pages[:] = number
    assert all((pages == number).all() for number, pages in enumerate(arrays, 1))
