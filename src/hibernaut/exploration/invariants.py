# SPDX-License-Identifier: GPL-2.0-or-later
"""What must hold of every run: named functions of one hibernation, each with a mutant of a way that it catches.

Most are the checks of `hibernate.checks`; three more ask whether there is an image at all, and whether it may be one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hibernaut.errors import HibernationRefused, MachineFault
from hibernaut.hibernation.checks import (
    Violation,
    allocator_sound,
    nothing_stale,
    page_tables,
    same_data,
    same_direct_map,
    same_frames,
    slot_empty,
    tables_closed,
)
from hibernaut.hibernation.saveable import saveable_pages
from hibernaut.hibernation.snapshot import Snapshot
from hibernaut.linux.check_allocator import LEAKED
from hibernaut.linux.machine import Machine
from hibernaut.linux.page_alloc import BuddyAllocator
from hibernaut.memory.physical import PAGE_SHIFT, FrameRanges

__all__ = [
    "INVARIANTS",
    "TRACES",
    "Hibernation",
    "every_listed_page",
    "no_fault",
    "nothing_on_failure",
    "violations_of",
]


@dataclass(frozen=True, eq=False)
class Hibernation:
    """One hibernation, however it ended.

    Attributes:
        before: the machine as it was.
        after: as the copy left it.
        snapshot: what was delivered to be written; None if nothing was.
        resumed: the machine that goes on from it.
        error: why the machine died, or gave up.
    """

    before: Machine
    after: Machine
    snapshot: Snapshot | None
    resumed: Machine | None
    error: MachineFault | HibernationRefused | None

    @cached_property
    def allocator(self) -> tuple[Violation, ...]:
        """What `allocator_sound` says: two invariants ask."""
        assert self.snapshot is not None
        assert self.resumed is not None
        return allocator_sound(self.snapshot, self.resumed)

    @cached_property
    def frames(self) -> tuple[Violation, ...]:
        """What `same_frames` says: two invariants in one."""
        assert self.resumed is not None
        return same_frames(self.before, self.resumed)


def no_fault(done: Hibernation) -> tuple[Violation, ...]:
    """The machine does not die, neither of the copy nor of the resume."""
    if not isinstance(done.error, MachineFault):
        return ()
    return (Violation("no-fault", str(done.error), done.error.pfn or 0, 1),)


def every_listed_page(done: Hibernation) -> tuple[Violation, ...]:
    """Every page that was to be saved when hibernation began is in what was delivered, and was copied."""
    if done.snapshot is None:
        return ()
    begun = done.before.fork()
    begun.allocator.drain_pages()
    missing = saveable_pages(begun).without(done.snapshot.frames)
    found = [Violation("every-listed-page", "not in the image", start, pages) for start, pages in missing]
    skipped = FrameRanges.of_frames(done.snapshot.skipped)
    found += [Violation("every-listed-page", "in the image, never copied", start, pages) for start, pages in skipped]
    return tuple(found)


def nothing_on_failure(done: Hibernation) -> tuple[Violation, ...]:
    """Where hibernation fails there is no image, and a machine that lives on has its data and an empty slot."""
    if done.error is None:
        return ()
    if done.snapshot is not None:
        frames = done.snapshot.frames
        first = int(frames.starts[0]) if len(frames) else 0
        what = f"an image is written although hibernation failed ({done.error})"
        return (Violation("nothing-on-failure", what, first, frames.total_pages),)
    if isinstance(done.error, MachineFault):
        return ()
    changed = [pfn for pfn in done.after.memory.written.tolist() if _differs(done, pfn)]
    found = [
        Violation("nothing-on-failure", "changed, and hibernation failed", start, pages)
        for start, pages in FrameRanges.of_frames(changed).without(_own_frames(done.before, done.after))
    ]
    found += [Violation("nothing-on-failure", one.what, one.start_pfn, one.pages) for one in slot_empty(done.after)]
    return tuple(found)


def _own_frames(before: Machine, after: Machine) -> FrameRanges:
    """Frames that the kernel itself may write to: tables, and what the allocator keeps or handed out."""
    own = [(pfn, 1) for machine in (before, after) for pfn in page_tables(machine)]
    own += [(one.pfn, 1) for one in after.allocations if one.pfn is not None]
    if isinstance(after.allocator, BuddyAllocator):
        places = after.allocator.places
        own.append((places.mem_map >> PAGE_SHIFT, places.mem_map_pages))
        own += [(paddr >> PAGE_SHIFT, 1) for paddr in (places.zone, *places.pcps)]
    return FrameRanges.of(own)


def _differs(done: Hibernation, pfn: int) -> bool:
    old, new = done.before.memory.frame(pfn), done.after.memory.frame(pfn)
    return old is None or new is None or not np.array_equal(old, new)


Invariant = Callable[[Hibernation], tuple[Violation, ...]]


def _resumed(check: Callable[[Hibernation, Snapshot, Machine], tuple[Violation, ...]]) -> Invariant:
    """An invariant of machines that were saved as a whole and went on."""

    def asked(done: Hibernation) -> tuple[Violation, ...]:
        if done.snapshot is None or done.resumed is None or done.snapshot.error is not None:
            return ()
        return check(done, done.snapshot, done.resumed)

    return asked


def _only(check: str, findings: tuple[Violation, ...]) -> tuple[Violation, ...]:
    return tuple(violation for violation in findings if violation.invariant == check)


def _lists_whole(done: Hibernation) -> tuple[Violation, ...]:
    found = (one for one in done.allocator if one.what != LEAKED)
    return tuple(Violation("lists-whole", one.what, one.start_pfn, one.pages) for one in found)


INVARIANTS: Mapping[str, Invariant] = {
    "no-fault": no_fault,
    "every-listed-page": every_listed_page,
    "nothing-on-failure": nothing_on_failure,
    "same-data": _resumed(lambda done, snapshot, _: same_data(done.before.memory, snapshot)),
    "tables-closed": _resumed(lambda _, snapshot, resumed: tables_closed(snapshot, resumed)),
    "same-translations": _resumed(lambda done, *_: _only("same-translations", done.frames)),
    "same-rights": _resumed(lambda done, *_: _only("same-rights", done.frames)),
    "same-direct-map": _resumed(lambda done, _, resumed: same_direct_map(done.before, resumed)),
    "lists-whole": _resumed(lambda done, *_: _lists_whole(done)),
    "allocator-sound": _resumed(lambda done, *_: done.allocator),
    "slot-empty": _resumed(lambda _, snapshot, resumed: slot_empty(resumed, snapshot)),
    "nothing-stale": _resumed(
        lambda done, snapshot, resumed: (*nothing_stale(snapshot.machine, done.before), *nothing_stale(resumed))
    ),
}
"""By name, in the order in which they are asked. `same-translations` and `same-rights` are `same-direct-map` without
what changes nothing for who uses the map (a large page that stays split), `lists-whole` is `allocator-sound` without
pages that leaked."""

TRACES = frozenset({"same-rights", "same-direct-map", "allocator-sound"})
"""Where only these are broken no page of the machine is lost: a page of memory has leaked, a large page is no longer
one entry, a page that is not present would come back read-only."""


def violations_of(done: Hibernation, names: Collection[str] | None = None) -> tuple[Violation, ...]:
    """What the invariants have to say: all, or those named."""
    return tuple(
        violation
        for name, invariant in INVARIANTS.items()
        if names is None or name in names
        for violation in invariant(done)
    )
