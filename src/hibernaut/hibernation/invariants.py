# SPDX-License-Identifier: GPL-2.0-or-later
"""The registry of invariants of a hibernation and of the machine that resumes from it.

An exploration checks all of them on every run; the matrix of ways and situations checks those with a letter. Each entry
lists the mutants (`ways.mutants`) that break it, which shows that the invariant can fail.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from hibernaut.errors import HibernationRefused, MachineFault
from hibernaut.hibernation.checks.allocator import allocator_sound
from hibernaut.hibernation.checks.data import same_data
from hibernaut.hibernation.checks.direct_map import same_direct_map
from hibernaut.hibernation.checks.fixmap import slot_empty
from hibernaut.hibernation.checks.tables import tables_closed
from hibernaut.hibernation.checks.tlb import nothing_stale
from hibernaut.hibernation.checks.translations import same_frames
from hibernaut.hibernation.checks.violation import Violation, violations_at
from hibernaut.hibernation.page_tables import page_tables
from hibernaut.hibernation.resume import Resumption
from hibernaut.hibernation.resumed_state import AllocatorFindings, TableFindings, findings
from hibernaut.hibernation.saveable import saveable_pages
from hibernaut.hibernation.snapshot import Snapshot
from hibernaut.linux.check_allocator import LEAKED
from hibernaut.linux.machine import Machine
from hibernaut.linux.page_alloc import BuddyAllocator
from hibernaut.memory.page import PAGE_SHIFT
from hibernaut.memory.ranges import FrameRanges

__all__ = ["INVARIANTS", "TRACES", "Hibernation", "Invariant", "check_resumed", "violations_of"]


_NO_FRAMES = FrameRanges.of([])


@dataclass(frozen=True, eq=False)
class Hibernation:
    """A hibernation and its outcome.

    Attributes:
        before: the machine before hibernation.
        after: the machine as the copy left it.
        snapshot: the snapshot that the copy delivered; None if it delivered none.
        resumed: the machine that resumed from it, or the resume that will; None if none does. Of a resume that is not
            executed yet, findings are shared with other hibernations (`resumed_state`).
        error: the fault that crashed the machine, or the refusal of the kernel; None if neither occurred.
    """

    before: Machine
    after: Machine
    snapshot: Snapshot | None
    resumed: Machine | Resumption | None
    error: MachineFault | HibernationRefused | None

    @property
    def completed(self) -> bool:
        """Whether the whole machine was saved and resumed."""
        return self.snapshot is not None and self.resumed is not None and self.snapshot.error is None

    @property
    def saved(self) -> Snapshot:
        """The snapshot of a hibernation that has one."""
        assert self.snapshot is not None
        return self.snapshot

    @property
    def continued(self) -> Machine:
        """The resumed machine of a hibernation that has one."""
        assert self.resumed is not None
        return self.resumed.machine if isinstance(self.resumed, Resumption) else self.resumed

    @cached_property
    def findings(self) -> tuple[TableFindings, AllocatorFindings] | None:
        """The findings of a resume; None of a machine that has resumed, and may have changed since."""
        return findings(self.before, self.resumed) if isinstance(self.resumed, Resumption) else None

    @cached_property
    def allocator(self) -> tuple[Violation, ...]:
        """Violations that `allocator_sound` finds; two invariants are based on them."""
        found = self.findings
        return allocator_sound(self.saved, self.continued) if found is None else found[1]

    @cached_property
    def translations(self) -> tuple[Violation, ...]:
        """Violations that `same_frames` finds; two invariants are based on them.

        A free unmapped pageblock that the allocator has mapped in the copy is not one: `allocator_sound` compares the
        direct map with its lists.
        """
        known = self.findings
        found = same_frames(self.before, self.continued, self.saved.frames) if known is None else known[0].frames
        blocks = _blocks(self.before)
        given = blocks.without(_blocks(self.continued)) if len(blocks) else blocks
        if not len(given):
            return found
        return tuple(
            replace(one, start_pfn=start, nr_pages=nr_pages)
            for one in found
            for start, nr_pages in FrameRanges.of([(one.start_pfn, one.nr_pages)]).without(given)
        )


def _blocks(machine: Machine) -> FrameRanges:
    """Return the frames of free unmapped pageblocks; none if their list cannot be followed. Nothing is logged."""
    allocator = machine.allocator
    if not isinstance(allocator, BuddyAllocator) or not allocator.places.unmapped:
        return _NO_FRAMES
    twin = machine.fork()
    try:
        return allocator.fork(twin).unmapped_blocks()
    except MachineFault:
        return _NO_FRAMES


@dataclass(frozen=True)
class Invariant:
    """An invariant: an entry of the registry.

    Attributes:
        name: its name in files and texts.
        meaning: a clause whose subject is the run, or the resumed machine.
        mutants: names of all mutants that break it.
        check: function that returns the violations.
        of_resumed: whether it applies only to hibernations that completed.
        trace: whether a violation alone loses no page: a page of memory leaks, a large page is no longer one entry, or
            a page that is not present has lost RW, and its owner sets RW when it puts the page back. An owner that
            restores PRESENT alone faults when it writes, which breaks `no-fault` as well.
        letter: its letter in the matrix; None if the matrix does not check it.
    """

    name: str
    meaning: str
    mutants: tuple[str, ...]
    check: Callable[[Hibernation], tuple[Violation, ...]]
    of_resumed: bool = True
    trace: bool = False
    letter: str | None = None


def _no_fault(done: Hibernation) -> tuple[Violation, ...]:
    if not isinstance(done.error, MachineFault):
        return ()
    return (Violation("no-fault", str(done.error), done.error.pfn or 0, 1),)


def _every_listed_page(done: Hibernation) -> tuple[Violation, ...]:
    if done.snapshot is None:
        return ()
    begun, frames = _saveable_when_begun(done.before), done.snapshot.frames
    missing = () if begun is frames or begun.bounds == frames.bounds else begun.without(frames)
    found = [Violation("every-listed-page", "not in the image", start, nr_pages) for start, nr_pages in missing]
    found += violations_at("every-listed-page", "in the image, never copied", done.snapshot.skipped)
    return tuple(found)


def _saveable_when_begun(before: Machine) -> FrameRanges:
    """Return the pages that are saveable once the page lists of all CPUs are drained."""
    known = before.memo.of("saveable when begun", MOST_BEGUN)
    found: FrameRanges | None = known.get(before)  # the machine before is kept as it was
    if found is None:
        begun = before.fork()
        begun.allocator.drain_pages()
        found = known[before] = saveable_pages(begun)
    return found


def _nothing_on_failure(done: Hibernation) -> tuple[Violation, ...]:
    if done.error is None:
        return ()
    if done.snapshot is not None:
        frames = done.snapshot.frames
        first = int(frames.starts[0]) if len(frames) else 0
        what = f"an image is written although hibernation failed ({done.error})"
        return (Violation("nothing-on-failure", what, first, frames.total_pages),)
    if isinstance(done.error, MachineFault):
        return ()
    old, new = done.before.memory, done.after.memory
    own = _own_frames(done.before, done.after)
    changed = [pfn for pfn in new.written_frames if old.page_digest(pfn) != new.page_digest(pfn) and pfn not in own]
    found = list(violations_at("nothing-on-failure", "changed, and hibernation failed", changed))
    found += [Violation("nothing-on-failure", one.what, one.start_pfn, one.nr_pages) for one in slot_empty(done.after)]
    return tuple(found)


def _own_frames(before: Machine, after: Machine) -> Container[int]:
    """Return the frames that the kernel itself writes to: page tables, allocator state, and pages handed out."""
    own = page_tables(before) | page_tables(after)
    own |= {one.pfn for one in after.allocations if one.pfn is not None}
    if isinstance(after.allocator, BuddyAllocator):
        places = after.allocator.places
        first = places.mem_map >> PAGE_SHIFT
        mem_map = range(first, first + places.mem_map_pages)
        own |= {pfn for pfn in after.memory.written_frames if pfn in mem_map}
        own |= {paddr >> PAGE_SHIFT for paddr in (places.zone, *places.pcps)}
    return own


def _tables_closed(done: Hibernation) -> tuple[Violation, ...]:
    found = done.findings
    return tables_closed(done.saved, done.continued) if found is None else found[0].closed


def _same_direct_map(done: Hibernation) -> tuple[Violation, ...]:
    found = done.findings
    if found is not None:
        return found[0].direct_map
    return same_direct_map(done.before, done.continued, saved=done.saved.frames)


def _slot_empty(done: Hibernation) -> tuple[Violation, ...]:
    found = done.findings
    return slot_empty(done.continued, done.saved) if found is None else found[0].slot


def _nothing_stale(done: Hibernation) -> tuple[Violation, ...]:
    found = nothing_stale(done.saved.machine, done.before)
    if isinstance(done.resumed, Resumption):  # `resume` ends with a flush
        return found
    return *found, *nothing_stale(done.continued)


def _only(name: str, violations: tuple[Violation, ...]) -> tuple[Violation, ...]:
    return tuple(violation for violation in violations if violation.invariant == name)


def _lists_whole(done: Hibernation) -> tuple[Violation, ...]:
    return done.saved.machine.memo.derived("lists-whole", done.allocator, _of_lists)


def _of_lists(found: tuple[Violation, ...]) -> tuple[Violation, ...]:
    return tuple(Violation("lists-whole", one.what, one.start_pfn, one.nr_pages) for one in found if one.what != LEAKED)


MOST_BEGUN = 64
"""Machines whose saveable pages a memo keeps."""

_OF_REMAP = ("remap-no-unmap", "remap-no-flush", "remap-write-anyway")
"""Mutants that are `Remap` with a step left out, and break all that `Remap` breaks."""

_REGISTRY = (
    Invariant(
        "no-fault",
        "does not crash: neither in the copy, nor in the resume, nor where an owner puts a page back and writes to it, "
        "while the image is written or once resumed, nor in the allocations after that (`--then-allocate N`)",
        (
            "fixmap-no-map",
            "fixmap-bounce",
            *_OF_REMAP,
            "remap-whole-no-write",
            "mermap-other-cpu",
            "remap-whole-one-root",
        ),
        _no_fault,
        of_resumed=False,
    ),
    Invariant(
        "every-listed-page",
        "has each page in the image that was saveable when hibernation began, and each was copied",
        ("fixmap-skips", "remap-write-anyway"),
        _every_listed_page,
        of_resumed=False,
    ),
    Invariant(
        "nothing-on-failure",
        "leaves no image where hibernation failed; a machine that continues then has its data and an empty slot",
        ("remap-write-anyway",),
        _nothing_on_failure,
        of_resumed=False,
    ),
    Invariant(
        "same-data",
        "holds the same bytes in every saved page, except those that hibernation itself writes to",
        ("fixmap-no-flush", "fixmap-skips", "mermap-no-flush", "fixmap-whole-run-no-flush"),
        lambda done: same_data(done.before.memory, done.saved),
        letter="D",
    ),
    Invariant(
        "tables-closed",
        "has every page table that it reaches from CR3",
        _OF_REMAP,
        _tables_closed,
        letter="T",
    ),
    Invariant(
        "same-translations",
        "has every frame mapped, or not, as before, by an entry of any level",
        (*_OF_REMAP, "remap-whole-one-root"),
        lambda done: _only("same-translations", done.translations),
    ),
    Invariant(
        "same-rights",
        "has the same rights in not-present entries, which apply when they become present again; an owner that "
        "restores PRESENT alone needs them, and breaks `no-fault` without them",
        ("remap-no-flush", "remap-write-anyway", "remap-whole-no-write", "remap-whole-one-root"),
        lambda done: _only("same-rights", done.translations),
        trace=True,
    ),
    Invariant(
        "same-direct-map",
        "has every entry of the direct map as before, no large page split",
        (*_OF_REMAP, "remap-whole-no-write", "remap-whole-one-root"),
        _same_direct_map,
        trace=True,
        letter="M",
    ),
    Invariant(
        "lists-whole",
        "has well-formed free lists, no page both free and used, no page table on a free list",
        ("fixmap-bounce", *_OF_REMAP),
        _lists_whole,
    ),
    Invariant(
        "allocator-sound",
        "has sound free lists as well, and no page in use that was not saved: none leaked",
        ("fixmap-bounce", *_OF_REMAP),
        lambda done: done.allocator,
        trace=True,
        letter="A",
    ),
    Invariant(
        "slot-empty",
        "has the fixmap slot zero, in the saved copy of its table as well",
        ("fixmap-no-clear", "fixmap-whole-run-no-clear"),
        _slot_empty,
        letter="S",
    ),
    Invariant(
        "nothing-stale",
        "has no CPU that caches a translation which the tables contradict",
        ("fixmap-no-flush", "remap-no-flush", "mermap-no-flush", "fixmap-whole-run-no-flush"),
        _nothing_stale,
        letter="X",
    ),
)

INVARIANTS: Mapping[str, Invariant] = {invariant.name: invariant for invariant in _REGISTRY}
"""By name, in the order of checking. `same-translations` and `same-rights` are `same-direct-map` without
the differences that no user of the map can see (a large page that stays split), `lists-whole` is `allocator-sound`
without pages that leaked."""

TRACES = frozenset(name for name, invariant in INVARIANTS.items() if invariant.trace)
"""The invariants whose violation alone loses no page; see `Invariant.trace`."""


def violations_of(done: Hibernation, names: Collection[str] | None = None) -> tuple[Violation, ...]:
    """Return the violations in a hibernation, of all invariants or of those in `names`."""
    found: list[Violation] = []
    completed = done.completed
    for name, invariant in INVARIANTS.items():
        if (completed or not invariant.of_resumed) and (names is None or name in names):
            found += invariant.check(done)
    return tuple(found)


def check_resumed(before: Machine, snapshot: Snapshot, resumed: Machine) -> tuple[Violation, ...]:
    """Return the violations of the invariants that the matrix shows.

    A skipped page counts as one with wrong bytes: `every-listed-page` has no letter of its own.

    Args:
        before: the machine before the copy.
        snapshot: its snapshot.
        resumed: the machine that resumed from the snapshot.
    """
    done = Hibernation(before, snapshot.machine, snapshot, resumed, snapshot.error)
    skipped = FrameRanges.of_pfns(snapshot.skipped)
    return (
        *(Violation("same-data", "was not copied at all", start, nr_pages) for start, nr_pages in skipped),
        *(violation for one in INVARIANTS.values() if one.letter for violation in one.check(done)),
    )
