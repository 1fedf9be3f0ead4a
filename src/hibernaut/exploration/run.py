# SPDX-License-Identifier: GPL-2.0-or-later
"""One run of a machine, step by step. Between two steps it can be forked, and is known by its digest."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hibernaut.errors import HibernationRefused, MachineFault
from hibernaut.exploration.encoding import Value, encode
from hibernaut.exploration.operations import HIBERNATE, Operation, perform
from hibernaut.exploration.state import (
    digest_of,
    digest_of_copy,
    digest_of_machine,
    digest_of_values,
    encoded_copy,
    encoded_machine,
)
from hibernaut.hibernation.checks.violation import Violation
from hibernaut.hibernation.invariants import TRACES, Hibernation, violations_of
from hibernaut.hibernation.log import FAILED_TO_REMAP
from hibernaut.hibernation.owners import owners_write_after_copy
from hibernaut.hibernation.resume import BootKernel, Resumption
from hibernaut.hibernation.snapshot import Snapshot
from hibernaut.hibernation.swsusp_save import Copy
from hibernaut.hibernation.ways import way_named
from hibernaut.linux.environment import Environment
from hibernaut.linux.machine import Machine

__all__ = ["Outcome", "Run"]

Fault = TypeVar("Fault", bound=BaseException)

BOOT_KERNEL_PAGES = 4
"""The number of the image's lowest frames that the boot kernel uses, so that some pages go through safe frames."""


@dataclass(frozen=True, order=True)
class Outcome:
    """The outcome of a run. Runs with equal outcomes ended alike.

    Attributes:
        status: "saved", "refused" (the machine continues, without an image) or "died" (it crashed).
        violated: names of the broken invariants, in the order of the registry.
        warned: whether the kernel warned that it could not remap a page.
        crash: the reason of the crash, without numbers; empty if there was none.
    """

    status: str
    violated: tuple[str, ...] = ()
    warned: bool = False
    crash: str = ""

    @property
    def loses(self) -> bool:
        """Whether it breaks an invariant that is not a trace (`invariants.TRACES`)."""
        return not TRACES.issuperset(self.violated)

    def __str__(self) -> str:
        done = "crashed" if self.status == "died" else self.status
        warned = " after a warning" if self.warned else ""
        reason = f" ({self.crash})" if self.crash else ""
        return f"{done}{warned}{reason}" + (f": {', '.join(self.violated)}" if self.violated else "")


class Run:
    """A run: a machine, and the operations still to be executed on it. All its state is here and in the machine.

    Attributes:
        operations: all operations.
        position: the index of the operation that is next, or under way.
        held: frames that operations have allocated.
        violations: the violations of invariants so far.
        status: that of the last hibernation; see `Outcome.status`.
        error: the fault that the machine crashed of, or the reason for which the kernel gave up.
        snapshot: the last snapshot that was delivered.
    """

    def __init__(self, machine: Machine, operations: Sequence[Operation]) -> None:
        self._machine = machine
        self._resumption: Resumption | None = None
        self.operations = tuple(operations)
        self.position = 0
        self.held: list[int] = []
        self.violations: tuple[Violation, ...] = ()
        self.status = "saved"
        self.error: MachineFault | HibernationRefused | None = None
        self.snapshot: Snapshot | None = None
        self._ended = False
        self._before: Machine | None = None
        self._before_digest = b""
        self._copy: Copy | None = None
        self._violations_digest: tuple[object, bytes] = (None, b"")
        self._images: tuple[Snapshot, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether no operation is left, or the machine crashed."""
        return self._ended or self.position >= len(self.operations)

    @property
    def copying(self) -> Copy | None:
        """The copy that is under way; None between hibernations."""
        return self._copy

    @property
    def outcome(self) -> Outcome:
        """The outcome, or the outcome so far."""
        names = tuple(dict.fromkeys([violation.invariant for violation in self.violations]))
        death = ""
        if isinstance(self.error, MachineFault):
            doing = re.sub(r" (frame )?0x[0-9a-f]+", " a frame", self.error.doing)
            death = f"{self.error.what}, {doing}"
        return Outcome(self.status, names, FAILED_TO_REMAP in self._machine.log.once, death)

    @property
    def machine(self) -> Machine:
        """The machine as it is; after a resume the resumed one, which is made when it is first asked for."""
        if self._resumption is not None:
            resumed = self._resumption.machine
            resumed.environment = self._machine.environment  # so that one record holds all choices
            self._machine, self._resumption = resumed, None
        return self._machine

    def fork(self, environment: Environment) -> Run:
        """Return an independent run in the same state, whose choices another environment makes."""
        machine = self.machine.fork(environment)
        twin = object.__new__(Run)
        twin.__dict__ = self.__dict__.copy()
        twin._machine = machine
        twin.held = self.held.copy()
        twin._copy = None if self._copy is None else self._copy.fork(twin.machine)
        return twin

    def append(self, operation: Operation) -> None:
        """Append an operation, for callers that decide step by step."""
        self.operations += (operation,)

    def advance(self) -> None:
        """Execute one step: an operation, or a part of a hibernation."""
        operation = self.operations[self.position]
        if operation.do == HIBERNATE:
            self._hibernate(operation)
            return
        try:
            perform(self.machine, operation, self.held)
        except MachineFault as fault:
            self._crashes(_without_frames(fault))
            self.violations += (Violation("no-fault", f"{operation}: {fault}", fault.pfn or 0, 1),)
        self.position += 1

    def finish(self) -> None:
        """Execute all steps that are left."""
        while not self.finished:
            self.advance()

    def _hibernate(self, operation: Operation) -> None:
        if self._copy is None:
            self._before = self.machine.fork(Environment())
            self._before_digest = digest_of_machine(self._before)
            self._copy = Copy(self.machine, way_named(operation.way))
        try:
            snapshot = self._copy.step()
            if snapshot is not None and snapshot.error is None:
                owners_write_after_copy(self.machine)
        except (MachineFault, HibernationRefused) as error:
            self._end(None, error)
            return
        if snapshot is not None:
            self._end(snapshot, snapshot.error)

    def _end(self, snapshot: Snapshot | None, error: MachineFault | HibernationRefused | None) -> None:
        """End a hibernation: resume from the snapshot if there is one, and ask the invariants."""
        assert self._before is not None
        resumption = None
        if snapshot is not None and snapshot.error is None:
            try:
                resumption = Resumption(snapshot, BootKernel.on_lowest(snapshot, BOOT_KERNEL_PAGES))
            except HibernationRefused as refusal:  # the boot kernel continues: the saved machine never runs again
                self.violations += (Violation("no-fault", f"not resumed: {refusal}", 0, snapshot.frames.total_pages),)
                self._ended = True
        self.violations += violations_of(Hibernation(self._before, self.machine, snapshot, resumption, error))
        self.snapshot, self.error = snapshot, None if error is None else _without_frames(error)
        self._before = self._copy = None
        self.position += 1
        if isinstance(error, MachineFault):
            self._crashes(error)
            return
        self.status = "saved" if error is None else "refused"
        if resumption is not None and snapshot is not None:  # the memory below the machine's own writes is the image's
            self._resumption = resumption
            self._images = (*self._images, snapshot)

    @property
    def _lineage(self) -> bytes:
        """A digest of the images that the machine has resumed from; empty if there is none."""
        lineage = b""
        for snapshot in self._images:
            image = repr((lineage, snapshot.frames.bounds, sorted(snapshot.changed))).encode()
            digests = [snapshot.memory.page_digest(pfn) or b"" for pfn in sorted(snapshot.changed)]
            lineage = digest_of((image, *digests))
        return lineage

    def _crashes(self, fault: MachineFault) -> None:
        self.error = fault
        self.status = "died"
        self._ended = True

    def digest(self) -> bytes:
        """Return the digest that tells this state from others: equal states have equal futures."""
        own = self._lineage, self.position, self.status, self._ended, self.held, self._named_violations()
        digests = [digest_of_machine(self.machine)]
        if self._copy is not None:
            digests += [self._before_digest, digest_of_copy(self._copy)]
        return digest_of_values((own, len(digests)), digests)

    def _named_violations(self) -> bytes:
        """Return a digest of the violations so far, kept as long as there are no more."""
        if self._violations_digest[0] is not self.violations:
            self._violations_digest = self.violations, digest_of_values(self._plain_violations())
        return self._violations_digest[1]

    def _plain_violations(self) -> list[Value]:
        """Return the violations so far as values to encode."""
        return [[one.invariant, one.what, one.start_pfn, one.nr_pages] for one in self.violations]

    def encoded(self) -> Iterator[bytes | memoryview]:
        """Yield the encoded state: this run's own, its machine's, that of the copy under way or None; see `state`."""
        violations = self._plain_violations()
        yield encode([self._lineage, self.position, self.status, self._ended, self.held, violations])
        yield from encoded_machine(self.machine)
        if self._copy is None:
            yield encode(None)
        else:
            yield encode(self._before_digest)
            yield from encoded_copy(self._copy)


def _without_frames(error: Fault) -> Fault:
    """Return an error without the frames that raised it, which hold this run: a reference cycle."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error
