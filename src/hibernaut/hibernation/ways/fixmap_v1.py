# SPDX-License-Identifier: GPL-2.0-or-later
"""The proposal as it was first posted."""

from __future__ import annotations

from hibernaut.hibernation.ways.fixmap import Fixmap
from hibernaut.linux.machine import Machine
from hibernaut.memory.page import Bytes

__all__ = ["PREEMPTIBLE", "FixmapV1"]

PREEMPTIBLE = "WARNING: hibernate_copy_unmapped_page: preemptible"
"""What stands here for the WARN_ON of v1: what follows is right only on a CPU that is not left in between."""


class FixmapV1(Fixmap):
    """Versions 1 and 2 of the series: x86 has its own copy function for unmapped pages.

    Message-IDs 20221205002804.21225-1-rick.p.edgecombe@intel.com, 20230110211839.19572-1-rick.p.edgecombe@intel.com.

    Map the frame at the slot, invalidate, copy, clear the slot, all in one function, which warns if it could be
    preempted: only this CPU's translation is invalidated. v3 dropped the warning. `kernel_page_present` is asked first,
    without a NULL check.
    """

    def __init__(self) -> None:
        super().__init__(null_check=False)

    def safe_copy_page(self, machine: Machine, pfn: int) -> Bytes | None:
        """See `Way.safe_copy_page`; the warning comes before anything is mapped."""
        if machine.preemptible:
            machine.log.printk_once(PREEMPTIBLE)
        return super().safe_copy_page(machine, pfn)
