# SPDX-License-Identifier: GPL-2.0-or-later
"""The proposal as it was first posted."""

from __future__ import annotations

from hibernaut.hibernation.ways.fixmap import Fixmap
from hibernaut.linux.machine import Machine
from hibernaut.memory.page import Bytes

__all__ = ["PREEMPTIBLE", "FixmapV1"]

PREEMPTIBLE = "WARNING: hibernate_copy_unmapped_page: preemptible"
"""Stands for the WARN_ON of v1: the copy is correct only if the task stays on its CPU."""


class FixmapV1(Fixmap):
    """Versions 1 and 2 of the series: x86 has its own copy function for unmapped pages.

    Message-IDs 20221205002804.21225-1-rick.p.edgecombe@intel.com, 20230110211839.19572-1-rick.p.edgecombe@intel.com.

    One function maps the frame at the slot, invalidates the address, copies and clears the slot. It warns if it can be
    preempted, since it invalidates the translation of one CPU only. v3 dropped the warning. `kernel_page_present` is
    called first, without a NULL check.
    """

    def __init__(self) -> None:
        super().__init__(null_check=False)

    def safe_copy_page(self, machine: Machine, pfn: int) -> Bytes | None:
        """See `Way.safe_copy_page`; the warning precedes the mapping."""
        if machine.preemptible:
            machine.log.printk_once(PREEMPTIBLE)
        return super().safe_copy_page(machine, pfn)
