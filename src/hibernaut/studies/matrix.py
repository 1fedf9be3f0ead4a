# SPDX-License-Identifier: GPL-2.0-or-later
"""The matrix: every way in every situation in which a page is missing from the direct map.

The situations are those of the question that the mailing list asked ("does CPA just fail to find an existing PTE and
fall over? Or does it try to, and fail to, allocate the PTE page?"), and those seen on real kernels since.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from hibernaut.errors import HibernationRefused, MachineFault
from hibernaut.hibernation.checks.violation import Violation
from hibernaut.hibernation.invariants import INVARIANTS, check_resumed
from hibernaut.hibernation.owners import owners_write_after_copy, owners_write_once_resumed
from hibernaut.hibernation.resume import BootKernel, resume
from hibernaut.hibernation.snapshot import Snapshot
from hibernaut.hibernation.swsusp_save import hibernate
from hibernaut.hibernation.ways import Way, way_named
from hibernaut.linux.build import build_machine
from hibernaut.linux.environment import Environment, FailAllocations, Kind, Question
from hibernaut.linux.kfence import KFENCE_POOL_PAGES, kfence_pool
from hibernaut.linux.layout import HoleSpec, Layout, hole_1g, hole_2m, hole_4k, hole_4k_np, no_table, none_entries
from hibernaut.linux.machine import Machine
from hibernaut.linux.rules import KernelRules
from hibernaut.linux.set_memory import set_direct_map_default_noflush, set_direct_map_invalid_noflush
from hibernaut.paging.entries import Level

__all__ = ["MATRIX_WAYS", "SITUATIONS", "Cell", "Situation", "run_cell", "run_matrix"]

RAM = ((0, 0xA0), (0x100, 0x3F00))
"""64 MiB with the gap that PCs have below 1 MiB."""
GIB = Level.PUD.pages
BIG = ((0, 2 * GIB),)
BLOCK = 0x1000
SAVED_PAGES = Level.PMD.pages + 2
STALE = 0x802
STALE_IN_SLOT = 0x600


class _Forgets(Environment):
    """A CPU that has dropped every stale translation."""

    def still_cached(self, vaddr: int) -> bool:
        super().still_cached(vaddr)
        return False


class _OwnersAtOnce(Environment):
    """Owners that use their pages while the image is written."""

    def decide(self, question: Question) -> int:
        return int(question.kind == Kind.OWNER_WRITES)


@dataclass(frozen=True)
class Situation:
    """A machine about to hibernate.

    Attributes:
        name: its name in tables.
        what: a description, one clause.
        layout: the layout of the machine.
        environment: returns the environment of a run.
        arrange: prepares the machine before it hibernates.
    """

    name: str
    what: str
    layout: Layout
    environment: Callable[[], Environment] = Environment
    arrange: Callable[[Machine], None] | None = None

    def machine(self, rules: KernelRules | None = None) -> Machine:
        """Build the machine."""
        machine = build_machine(self.layout, self.environment(), rules)
        if self.arrange is not None:
            self.arrange(machine)
        return machine


def _small(*holes: HoleSpec, tables: str = "low", mem_map: str = "high") -> Layout:
    """Return a layout with the allocator's own pages at the top of RAM, as on real machines, except for `mem_map`."""
    return Layout(
        RAM, holes=holes, tables=tables, mem_map=mem_map, zone="high", pcp="high", free="high", free_pages=256
    )


def _pool(*, tables: str, reserved: bool = False) -> Layout:
    """Return a layout with KFENCE's pool, of which the first objects' pages are saveable unless it is reserved."""
    rest = (BLOCK + 8, KFENCE_POOL_PAGES - 8)
    pool = ((BLOCK, KFENCE_POOL_PAGES),) if reserved else ()
    return replace(_small(*kfence_pool(BLOCK, freed=(0, 1)), tables=tables), nosave=(rest,), reserved=pool)


def _one_gib() -> Layout:
    """Return a layout of which pages in two blocks of a GiB are saveable, so that no way takes long."""
    rest = (GIB + SAVED_PAGES, GIB - SAVED_PAGES)
    return Layout(BIG, holes=(hole_1g(GIB),), largest=Level.PUD, tables=0x1000, free_pages=1024, nosave=(rest,))


def _stale(machine: Machine) -> None:
    """Map a page, read it, and take it out of the direct map without a flush; use the slot likewise."""
    set_direct_map_default_noflush(machine, STALE)
    machine.read_page(machine.vaddr(STALE))
    set_direct_map_invalid_noflush(machine, STALE)
    machine.read_page(machine.fixmap.set_fixmap(STALE_IN_SLOT))
    machine.fixmap.clear_fixmap(flush=False)


SITUATIONS: tuple[Situation, ...] = (
    Situation("plain", "every page is present", _small()),
    Situation("4K hole", "three pages not present, each by its own entry", _small(hole_4k(0x801, 3))),
    Situation(
        "2M hole, table below",
        "2 MiB not present as one entry; its PMD table is copied before the block",
        _small(hole_2m(BLOCK), tables="low"),
    ),
    Situation(
        "2M hole, table above",
        "2 MiB not present as one entry; its PMD table is copied after the block",
        _small(hole_2m(BLOCK), tables="high"),
    ),
    Situation(
        "2M hole, mem_map below",
        "the array of struct page is copied before the block, the heads of the free lists after it",
        _small(hole_2m(BLOCK), tables="low", mem_map="low"),
    ),
    Situation("1G hole", "1 GiB not present as one entry; pages in two of its blocks are saveable", _one_gib()),
    Situation("none entry", "a zero entry in a PTE table that exists", _small(none_entries(0x905))),
    Situation("no table", "2 MiB without even a PTE table", _small(no_table(0x1400))),
    Situation(
        "2M hole, 1st allocation fails",
        "2 MiB not present, and no page for the split",
        _small(hole_2m(BLOCK), tables="high"),
        lambda: FailAllocations(1),
    ),
    Situation(
        "1G hole, 2nd allocation fails",
        "1 GiB not present, a page for the first split and none for the second",
        _one_gib(),
        lambda: FailAllocations(2),
    ),
    Situation(
        "stale TLB, used",
        "a page unmapped and the slot cleared just before; the CPU uses the translations that it still caches",
        _small(hole_4k(0x801, 2)),
        Environment,
        _stale,
    ),
    Situation(
        "stale TLB, dropped",
        "the same, and the CPU has dropped these translations",
        _small(hole_4k(0x801, 2)),
        _Forgets,
        _stale,
    ),
    Situation(
        "4K hole, PRESENT restored",
        "as 2, with the PTE table copied after the hole, and an owner that cleared PRESENT alone: resumed, it sets "
        "PRESENT alone, and writes",
        _small(hole_4k_np(0x801, 3), tables="high"),
    ),
    Situation(
        "KFENCE, image written",
        "KFENCE's pool in ordinary memory, the PTE table copied before it; a free object is allocated again while the "
        "image is written",
        _pool(tables="low"),
        _OwnersAtOnce,
    ),
    Situation(
        "KFENCE, resumed",
        "the same pool, the PTE table copied after it; a free object is allocated again on the resumed machine",
        _pool(tables="high"),
    ),
    Situation(
        "KFENCE, at boot",
        "the pool in reserved memory, of which pages that are not present are not saved; both allocations",
        _pool(tables="high", reserved=True),
        _OwnersAtOnce,
    ),
)

MATRIX_WAYS: tuple[str, ...] = (
    "remap",
    "fixmap",
    "fixmap-v1",
    "remap-generic",
    "remap-generic-zero",
    "remap-generic-abort",
    "remap-whole",
    "reserved:1",
    "reserved:4",
    "fixmap-no-flush",
    "fixmap-no-clear",
    "remap-no-unmap",
    "remap-no-flush",
)


@dataclass(frozen=True, eq=False)
class Cell:
    """The result of one way in one situation.

    The owners of pages that are out of the direct map put them back and write to them: while the image is written, if
    the situation's environment chooses so, and on the resumed machine.

    Attributes:
        way: the way.
        situation: the situation.
        before: the machine before the copy.
        after: the machine as the copy left it.
        snapshot: the saved pages; None if none were.
        resumed: the machine that resumed from them.
        error: the reason for which nothing was saved, or the fault of an owner's write on the resumed machine.
        violations: the violations of all invariants of the matrix.
    """

    way: Way
    situation: Situation
    before: Machine
    after: Machine
    snapshot: Snapshot | None
    resumed: Machine | None
    error: MachineFault | HibernationRefused | None
    violations: tuple[Violation, ...]

    @property
    def status(self) -> str:
        """One of "saved", "died" (it crashed) and "refused"."""
        if self.error is None:
            return "saved"
        return "died" if isinstance(self.error, MachineFault) else "refused"

    @property
    def last(self) -> Machine:
        """The machine that ran last: the resumed one, or the one that hibernated."""
        return self.after if self.resumed is None else self.resumed

    @property
    def failed_checks(self) -> tuple[str, ...]:
        """Names of the invariants that are broken, in the order of the registry."""
        broken = {violation.invariant for violation in self.violations}
        return tuple(name for name in INVARIANTS if name in broken)

    @property
    def result(self) -> str:
        """One of "unchanged", "died" and "refused", or the names of the broken invariants."""
        return self.status if self.error is not None else ", ".join(self.failed_checks) or "unchanged"


def run_cell(way: Way, situation: Situation, rules: KernelRules | None = None, machine: Machine | None = None) -> Cell:
    """Hibernate and resume one machine by one way, and ask every invariant of the matrix.

    Args:
        way: the way.
        situation: the situation.
        rules: the rules of its kernel.
        machine: the situation's machine, if it has been built already; it is not changed.
    """
    before = situation.machine(rules) if machine is None else machine
    after = before.fork()
    try:
        snapshot = hibernate(after, way)
        owners_write_after_copy(after)
    except (MachineFault, HibernationRefused) as error:
        return Cell(way, situation, before, after, None, None, error, ())
    resumed = resume(snapshot, BootKernel.beside(snapshot))
    violations = check_resumed(before, snapshot, resumed)
    used, fault = resumed.fork(), None
    try:
        owners_write_once_resumed(used)
    except MachineFault as error:
        resumed, fault = used, error
    return Cell(way, situation, before, after, snapshot, resumed, fault, violations)


def run_matrix(
    ways: Iterable[str] = MATRIX_WAYS,
    situations: Iterable[Situation] = SITUATIONS,
    rules: KernelRules | None = None,
) -> Iterator[Cell]:
    """Yield every way in every situation, situation by situation; each machine is built once.

    Raises:
        HibernautError: an unknown way.
    """
    chosen = [way_named(name) for name in ways]
    for situation in situations:
        machine = situation.machine(rules)
        for way in chosen:
            yield run_cell(way, situation, rules, machine)
