# SPDX-License-Identifier: GPL-2.0-or-later
"""The check of translations that CPUs cache."""

from __future__ import annotations

from hibernaut.hibernation.checks.violation import Violation
from hibernaut.linux.machine import Machine
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.paging.entries import Level
from hibernaut.paging.spans import Stop

__all__ = ["nothing_stale"]


def nothing_stale(machine: Machine, before: Machine | None = None) -> tuple[Violation, ...]:
    """Return the cached translations that the page tables contradict, of all CPUs.

    Args:
        machine: the machine to check.
        before: the machine at an earlier time, whose cached translations are not reported again.
    """
    if not any(machine.tlbs):
        return ()
    known = set() if before is None else {one for tlb in before.tlbs if tlb for one in tlb.translations()}
    found = []
    for tlb in machine.tlbs:
        for vaddr, level, pfn, entry in tlb.translations() if tlb is not None else ():
            if (vaddr, level, pfn, entry) in known:
                continue
            walk = machine.tables.walk(vaddr)
            if walk.stop == Stop.PRESENT and walk.level == level and walk.pfn == pfn:
                continue
            if walk.stop == Stop.PRESENT and _same_all_over(machine, vaddr, level, pfn):
                continue
            found.append(Violation("nothing-stale", f"{vaddr:#x} is remembered as frame {pfn:#x}", pfn, level.pages))
    return tuple(found)


def _same_all_over(machine: Machine, vaddr: int, level: Level, pfn: int) -> bool:
    """Return whether smaller pages map each page of a large translation to the same frame."""
    walks = (machine.tables.walk(vaddr + page * PAGE_SIZE) for page in range(level.pages))
    return all(walk.stop == Stop.PRESENT and walk.pfn == pfn + page for page, walk in enumerate(walks))
