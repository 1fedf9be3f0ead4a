# SPDX-License-Identifier: GPL-2.0-or-later
"""The check of the page allocator."""

from __future__ import annotations

from hibernaut.hibernation.checks.violation import Violation
from hibernaut.hibernation.page_tables import page_tables
from hibernaut.hibernation.snapshot import Snapshot
from hibernaut.linux.check_allocator import AllocatorProblem, check_allocator
from hibernaut.linux.direct_map import FrameState, frames_in_state
from hibernaut.linux.machine import Machine
from hibernaut.linux.page_alloc import BuddyAllocator
from hibernaut.linux.page_flags import PageFlags
from hibernaut.memory.ranges import FrameRanges

__all__ = ["allocator_sound"]


def allocator_sound(snapshot: Snapshot, resumed: Machine) -> tuple[Violation, ...]:
    """Return defects of the free lists, pages both free and in use, and pages in use that were not saved.

    Where there is a list of unmapped pageblocks, the direct map must agree with all lists.

    A machine whose allocator state does not lie in its memory (a machine of a dump) passes: hibernation does not
    change it.

    Args:
        snapshot: the snapshot.
        resumed: the machine that resumed from it.
    """
    allocator = resumed.allocator
    if not isinstance(allocator, BuddyAllocator) or resumed.page_flags is None:
        return ()
    tables = page_tables(resumed, snapshot.frames)
    unsaved = _unsaved(resumed, resumed.page_flags, snapshot.frames)
    mapped = frames_in_state(resumed.direct_map, FrameState.PRESENT) if allocator.places.unmapped else None
    problems = check_allocator(
        resumed, allocator.places, tables=tables, unsaved=unsaved, mapped=mapped, memo=resumed.memo
    )
    return resumed.memo.derived("allocator_sound", problems, _violations)


def _violations(problems: list[AllocatorProblem]) -> tuple[Violation, ...]:
    return tuple(Violation("allocator-sound", problem.what, problem.pfn, problem.pages) for problem in problems)


def _unsaved(resumed: Machine, flags: PageFlags, frames: FrameRanges) -> FrameRanges:
    """Return the frames that the image does not bring back, without those that no machine expects back."""
    known = resumed.memo.of("unsaved")
    found: FrameRanges | None = known.get((flags, frames))
    if found is None:
        found = flags.ram.without(frames)
        for ranges in (flags.nosave, flags.offline, flags.guard, flags.reserved):
            found = found.without(ranges)
        known[flags, frames] = found
    return found
