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
    """No CPU remembers a translation that the tables contradict.

    Args:
        machine: the machine as it is.
        before: the machine as it was: what it remembered already is not counted.
    """
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
    """Whether smaller pages map all of what one large translation says, in the same way."""
    walks = (machine.tables.walk(vaddr + page * PAGE_SIZE) for page in range(level.pages))
    return all(walk.stop == Stop.PRESENT and walk.pfn == pfn + page for page, walk in enumerate(walks))
