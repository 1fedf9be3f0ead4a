# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages of kernel/power/snapshot.c, word for word; its pr_fmt is "PM: hibernation: "."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hibernaut.linux.machine import Machine
from hibernaut.memory.page import Bytes, Pfns
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.ranges import FrameRanges

__all__ = ["FAILED_TO_REMAP", "PREFIX", "SwsuspLog"]

PREFIX = "PM: hibernation: "

FAILED_TO_REMAP = PREFIX + "Failed to remap page"
"""Printed by `hibernate_map_page` and `hibernate_unmap_page`, once since boot."""


MOST_BASES = 16
"""Memories of which a memo keeps the frames that are not zero."""


class SwsuspLog:
    """The lines of `swsusp_save`: printed where the machine's kernel prints them, else notes of the model."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._print = machine.log.printk if machine.rules.prints_progress else machine.log.note
        self._colon = ":" if machine.rules.prints_progress else ""

    def creating_image(self) -> None:
        """Print the first line."""
        self._print(f"{PREFIX}Creating image{self._colon}")

    def need_to_copy(self, nr_pages: int) -> None:
        """Print the number of saveable pages."""
        self._print(f"{PREFIX}Need to copy {nr_pages} pages")

    def _occupied(self, base: PhysicalMemory) -> FrameRanges:
        """Return the frames of the base that are not zero; of a simulated machine they are read once."""
        if self._machine.page_flags is None:
            return base.occupied()
        known = self._machine.memo.of("occupied", MOST_BASES)
        found: FrameRanges | None = known.get(base)
        if found is None:
            found = known[base] = base.occupied()
        return found

    def image_created(
        self, frames: FrameRanges, base: PhysicalMemory, before: Pfns, changed: Mapping[int, Bytes]
    ) -> None:
        """Print the number of copied pages, and of zero pages where the kernel leaves these out of the image.

        Args:
            frames: the list of saved page frames.
            base: the memory below the machine's own writes.
            before: page frame numbers that the machine had written to before the copy.
            changed: copied bytes that differ from the base's, by page frame number.
        """
        total = frames.total_pages
        if not self._machine.rules.prints_zero_count:
            self._print(f"{PREFIX}Image created ({total} pages copied)")
            return
        others = np.union1d(np.array(sorted(changed), dtype=np.int64), before)
        zero = frames.without(self._occupied(base)).without(FrameRanges.of_pfns(others)).total_pages
        for pfn in others[frames.contains(others)].tolist():
            page = changed.get(pfn)
            zero += page is not None and not page.any()
        self._print(f"{PREFIX}Image created ({total - zero} pages copied, {zero} zero pages)")
