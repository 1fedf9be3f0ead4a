# SPDX-License-Identifier: GPL-2.0-or-later
"""One run of a machine, step by step; between two steps it can be forked, and told from others by its digest."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hibernaut.errors import HibernationRefused, MachineFault
from hibernaut.exploration.encoding import Value, encode, encode_pages
from hibernaut.exploration.operations import HIBERNATE, Operation, perform
from hibernaut.exploration.state import digest_of, encoded_copy, encoded_machine, frame_ranges
from hibernaut.hibernation.checks import Violation
from hibernaut.hibernation.invariants import TRACES, Hibernation, violations_of
from hibernaut.hibernation.log import FAILED_TO_REMAP
from hibernaut.hibernation.resume import BootKernel, resume
from hibernaut.hibernation.snapshot import Copy, Snapshot
from hibernaut.hibernation.ways import way_named
from hibernaut.linux.environment import Environment
from hibernaut.linux.machine import Machine

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
            self._before_digest = digest_of(encoded_machine(self._before))
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
        image = encode([self._lineage, frame_ranges(snapshot.frames)])
        self._lineage = digest_of((image, *encode_pages(snapshot.changed)))

    def _dies(self, fault: MachineFault) -> None:
        self.error = fault
        self.status = "died"
        self._dead = True

    def digest(self) -> bytes:
        """Return the digest that tells this state from others: equal states have equal futures."""
        return digest_of(self.encoded())

    def encoded(self) -> Iterator[bytes | memoryview]:
        """Yield the encoded state: this run's own, its machine's, that of the copy under way or None; see `state`."""
        violations: list[Value] = [[one.invariant, one.what, one.start_pfn, one.pages] for one in self.violations]
        yield encode([self._lineage, self.position, self.status, self._dead, self.held, violations])
        yield from encoded_machine(self.machine)
        if self._copy is None:
            yield encode(None)
        else:
            yield encode(self._before_digest)
            yield from encoded_copy(self._copy)
