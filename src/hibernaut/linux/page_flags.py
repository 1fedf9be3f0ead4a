# SPDX-License-Identifier: GPL-2.0-or-later
"""Flags of page frames (include/linux/page-flags.h), as ranges."""

from __future__ import annotations

from dataclasses import dataclass

from hibernaut.memory.ranges import FrameRanges

__all__ = ["PageFlags"]

NO_FRAMES = FrameRanges.of([])


@dataclass(frozen=True, eq=False)
class PageFlags:
    """Flags of the page frames of a simulated machine.

    Attributes:
        ram: every frame that has a `struct page`.
        reserved: PageReserved.
        offline: PageOffline (pages of a balloon, for example).
        guard: guard pages of debug_pagealloc.
        nosave: `swsusp_page_is_forbidden`: registered as nosave, or allocated for the image itself.
    """

    ram: FrameRanges
    reserved: FrameRanges = NO_FRAMES
    offline: FrameRanges = NO_FRAMES
    guard: FrameRanges = NO_FRAMES
    nosave: FrameRanges = NO_FRAMES
