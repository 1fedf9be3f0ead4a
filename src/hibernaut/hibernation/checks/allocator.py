# SPDX-License-Identifier: GPL-2.0-or-later
"""The check of the page allocator."""

from __future__ import annotations

from hibernaut.hibernation.checks.violation import Violation
from hibernaut.hibernation.page_tables import page_tables
from hibernaut.hibernation.snapshot import Snapshot
from hibernaut.linux.check_allocator import check_allocator
from hibernaut.linux.machine import Machine
from hibernaut.linux.page_alloc import BuddyAllocator

__all__ = ["allocator_sound"]


def allocator_sound(snapshot: Snapshot, resumed: Machine) -> tuple[Violation, ...]:
    """Return defects of the free lists, pages both free and in use, and pages in use that were not saved.

    A machine whose allocator state does not lie in its memory (a machine of a dump) passes: hibernation does not
    change it.

    Args:
        snapshot: the snapshot.
        resumed: the machine that resumed from it.
    """
    allocator = resumed.allocator
    if not isinstance(allocator, BuddyAllocator) or resumed.page_flags is None:
        return ()
    flags = resumed.page_flags
    unsaved = flags.ram.without(snapshot.frames)
    for known in (flags.nosave, flags.offline, flags.guard, flags.reserved):
        unsaved = unsaved.without(known)
    problems = check_allocator(resumed, allocator.places, tables=page_tables(resumed, snapshot.frames), unsaved=unsaved)
    return tuple(Violation("allocator-sound", problem.what, problem.pfn, problem.pages) for problem in problems)
