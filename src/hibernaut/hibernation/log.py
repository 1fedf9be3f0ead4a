# SPDX-License-Identifier: GPL-2.0-or-later
"""What kernel/power/snapshot.c prints (its pr_fmt is "PM: hibernation: "), word for word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.linux.printk import MODEL_MARK, Event, EventLog
from hibernaut.memory.page import Bytes, Frames
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.ranges import FrameRanges

if TYPE_CHECKING:
    from hibernaut.linux.machine import Machine

__all__ = ["FAILED_TO_REMAP", "MODEL_MARK", "PREFIX", "Event", "EventLog", "SwsuspLog"]

PREFIX = "PM: hibernation: "

FAILED_TO_REMAP = PREFIX + "Failed to remap page"
"""`hibernate_map_page` and `hibernate_unmap_page`, once since boot."""


class SwsuspLog:
    """The lines of `swsusp_save`, as the machine's kernel prints them, or as only the model knows them."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._says = machine.log.printk if machine.rules.prints_progress else machine.log.note
        self._colon = ":" if machine.rules.prints_progress else ""

    def creating_image(self) -> None:
        """First of all."""
        self._says(f"{PREFIX}Creating image{self._colon}")

    def need_to_copy(self, pages: int) -> None:
        """When the saveable pages are counted."""
        self._says(f"{PREFIX}Need to copy {pages} pages")

    def image_created(
        self, frames: FrameRanges, base: PhysicalMemory, before: Frames, changed: Mapping[int, Bytes]
    ) -> None:
        """When all are copied; kernels that leave out zero pages say how many there were.

        Args:
            frames: the list.
            base: the memory under the machine's own writes.
            before: frames that the machine had written to before the copy.
            changed: what was copied otherwise than the base has it.
        """
        total = frames.total_pages
        if not self._machine.rules.prints_zero_count:
            self._says(f"{PREFIX}Image created ({total} pages copied)")
            return
        others = np.union1d(np.array(sorted(changed), dtype=np.int64), before)
        zero = frames.without(base.occupied()).without(FrameRanges.of_frames(others)).total_pages
        for pfn in others[frames.contains(others)].tolist():
            page = changed.get(pfn)
            zero += page is not None and not page.any()
        self._says(f"{PREFIX}Image created ({total - zero} pages copied, {zero} zero pages)")
