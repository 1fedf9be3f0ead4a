# SPDX-License-Identifier: GPL-2.0-or-later
"""One run of a machine, step by step; between two steps it can be forked, and told from others by its digest."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hibernaut.errors import HibernationRefused, MachineFault
from hibernaut.exploration.operations import HIBERNATE, Operation, perform
from hibernaut.hibernation.checks import Violation
from hibernaut.hibernation.invariants import TRACES, Hibernation, violations_of
from hibernaut.hibernation.log import FAILED_TO_REMAP
from hibernaut.hibernation.resume import BootKernel, resume
from hibernaut.hibernation.snapshot import Copy, Snapshot
from hibernaut.hibernation.ways import way_named
from hibernaut.linux.environment import Environment
from hibernaut.linux.machine import Machine
from hibernaut.linux.page_alloc import BuddyAllocator
from hibernaut.memory.physical import Bytes

__all__ = ["Outcome", "Run"]

BOOT_KERNEL_PAGES = 4
"""So many of the image's lowest frames are used by the kernel that resumes it: some pages go through safe frames."""


@dataclass(frozen=True, order=True)
class Outcome:
    """How a run ended: what runs are told apart by.

    Attributes:
        status: "saved", "refused" (the machine lives, without an image) or "died".
        violated: names of the invariants that it broke, in their order.
        warned: whether the kernel said that it could not remap a page.
        crash: what the machine died of, numbers left out; empty if it lives.
    """

    status: str
    violated: tuple[str, ...] = ()
    warned: bool = False
    crash: str = ""

    @property
    def loses(self) -> bool:
        """Whether more is broken than what leaves a trace and nothing else (`invariants.TRACES`)."""
        return not TRACES.issuperset(self.violated)

    def __str__(self) -> str:
        said = " after a warning" if self.warned else ""
        death = f" of {self.crash}" if self.crash else ""
        return f"{self.status}{said}{death}" + (f": {', '.join(self.violated)}" if self.violated else "")


class Run:
    """A machine and what is still to be done on it. Everything a run is lives here and in its machine.

    Attributes:
        machine: as it is now; after a resume the one that goes on.
        operations: all that is to be done.
        position: which of them is next, or under way.
        held: frames that operations have allocated.
        violations: what invariants had to say of every hibernation so far.
        outcome: of the last hibernation: saved, refused, died.
        error: of what the machine died, or why it refused.
        snapshot: the last that was delivered.
    """

    def __init__(self, machine: Machine, operations: Sequence[Operation]) -> None:
        self.machine = machine
        self.operations = tuple(operations)
        self.position = 0
        self.held: list[int] = []
        self.violations: tuple[Violation, ...] = ()
        self.status = "saved"
        self.error: MachineFault | HibernationRefused | None = None
        self.snapshot: Snapshot | None = None
        self._dead = False
        self._before: Machine | None = None
        self._before_digest = b""
        self._copy: Copy | None = None
        self._lineage = b""

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do, or nobody left to do it."""
        return self._dead or self.position >= len(self.operations)

    @property
    def outcome(self) -> Outcome:
        """How it ended, or stands now."""
        names = tuple(dict.fromkeys(violation.invariant for violation in self.violations))
        death = ""
        if isinstance(self.error, MachineFault):
            doing = re.sub(r" (frame )?0x[0-9a-f]+", " a frame", self.error.doing)
            death = f"{self.error.what}, {doing}"
        return Outcome(self.status, names, FAILED_TO_REMAP in self.machine.log.once, death)

    def fork(self, environment: Environment) -> Run:
        """An independent run in the same state, whose choices another environment makes."""
        twin = object.__new__(Run)
        twin.__dict__.update(self.__dict__)
        twin.machine = self.machine.fork(environment)
        twin.held = self.held.copy()
        twin._copy = None if self._copy is None else self._copy.fork(twin.machine)
        return twin

    def append(self, operation: Operation) -> None:
        """One more thing to do, after all others: for those who decide as they go, step by step."""
        self.operations += (operation,)

    def advance(self) -> None:
        """One step: an operation, or a part of a hibernation."""
        operation = self.operations[self.position]
        if operation.do == HIBERNATE:
            self._hibernate(operation)
            return
        try:
            perform(self.machine, operation, self.held)
        except MachineFault as fault:
            self._dies(fault)
            self.violations += (Violation("no-fault", f"{operation}: {fault}", fault.pfn or 0, 1),)
        self.position += 1

    def finish(self) -> None:
        """All steps that are left."""
        while not self.finished:
            self.advance()

    def _hibernate(self, operation: Operation) -> None:
        if self._copy is None:
            self._before = self.machine.fork(Environment())
            before = hashlib.blake2b(digest_size=16)
            _add_machine(before, self._before)
            self._before_digest = before.digest()
            self._copy = Copy(self.machine, way_named(operation.way))
        try:
            snapshot = self._copy.step()
        except (MachineFault, HibernationRefused) as error:
            self._ends(None, error)
            return
        if snapshot is not None:
            self._ends(snapshot, snapshot.error)

    def _ends(self, snapshot: Snapshot | None, error: MachineFault | HibernationRefused | None) -> None:
        """The copy is over: resume it, if there is something to resume, and ask the invariants."""
        assert self._before is not None
        resumed = None
        if snapshot is not None and snapshot.error is None:
            try:
                boot = BootKernel.beside(snapshot, snapshot.frames.lowest(BOOT_KERNEL_PAGES))
                resumed = resume(snapshot, boot)
            except HibernationRefused as refusal:  # the boot kernel goes on: what was saved never runs again
                self.violations += (Violation("no-fault", f"not resumed: {refusal}", 0, snapshot.frames.total_pages),)
                self._dead = True
        self.violations += violations_of(Hibernation(self._before, self.machine, snapshot, resumed, error))
        self.snapshot, self.error = snapshot, error
        self._before = self._copy = None
        self.position += 1
        if isinstance(error, MachineFault):
            self._dies(error)
            return
        self.status = "saved" if error is None else "refused"
        if resumed is not None and snapshot is not None:
            self._resumed_on(resumed, snapshot)

    def _resumed_on(self, resumed: Machine, snapshot: Snapshot) -> None:
        """Go on there, with the same environment, in whose record the run's choices go on.

        The memory below its own writes is what the image holds, which tells it from other machines.
        """
        resumed.environment = self.machine.environment
        self.machine = resumed
        lineage = hashlib.blake2b(self._lineage, digest_size=16)
        _add(lineage, list(snapshot.frames))
        _add_pages(lineage, snapshot.changed)
        self._lineage = lineage.digest()

    def _dies(self, fault: MachineFault) -> None:
        self.error = fault
        self.status = "died"
        self._dead = True

    def digest(self) -> bytes:
        """What tells this state from others: equal states have equal futures, whatever the choices.

        Everything that decides what follows goes in: memory as far as it was written to, TLBs, the pool of tables, the
        list of pages, what was copied of them and how far the copy is, what was found so far, whether the one-time
        warning is spent. The record of what happened does not: neither log nor schedule nor the number of allocations.
        """
        digest = hashlib.blake2b(self._lineage, digest_size=16)
        _add(
            digest, self.position, self.status, self._dead, self.held, [str(violation) for violation in self.violations]
        )
        _add_machine(digest, self.machine)
        if self._copy is not None:
            recorder = self._copy.recorder
            digest.update(self._before_digest)
            _add(digest, recorder.cursor, recorder.skipped, sorted(recorder.written), self._copy.pending)
            _add(digest, None if self._copy.frames is None else list(self._copy.frames))
            _add_pages(digest, recorder.kept)
        return digest.digest()


def _add(digest: hashlib.blake2b, *values: object) -> None:
    digest.update(repr(values).encode())


def _add_machine(digest: hashlib.blake2b, machine: Machine) -> None:
    _add(digest, machine.cpu, machine.table_pool, sorted(machine.log.once))
    for tlb in machine.tlbs:
        _add(digest, None if tlb is None else sorted(tlb.translations()))
    if machine.page_flags is not None:
        _add(digest, list(machine.page_flags.nosave))
    if not isinstance(machine.allocator, BuddyAllocator):  # the buddy allocator's state is in memory
        _add(digest, list(machine.allocator.free_ranges()))
    memory = machine.memory
    _add_pages(digest, {pfn: memory.frame(pfn) for pfn in memory.written.tolist()})


def _add_pages(digest: hashlib.blake2b, pages: Mapping[int, Bytes | None]) -> None:
    for pfn in sorted(pages):
        page = pages[pfn]
        digest.update(pfn.to_bytes(8, "little"))
        if page is not None:
            digest.update(np.ascontiguousarray(page).data)
