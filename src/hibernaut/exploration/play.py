# SPDX-License-Identifier: GPL-2.0-or-later
"""Playing one run: a machine, the operations on it, and the choices made."""

from __future__ import annotations

from dataclasses import dataclass

from hibernaut.errors import NOT_ABOVE_MARK, HibernautError
from hibernaut.exploration.families import ChosenMachine, Family
from hibernaut.exploration.fingerprint import is_fingerprint_of
from hibernaut.exploration.layouts import LayoutKind
from hibernaut.exploration.operations import Operation
from hibernaut.exploration.run import Outcome, Run
from hibernaut.exploration.search import Bounds, Chooser
from hibernaut.linux.build import build_machine
from hibernaut.linux.environment import Choice, Environment, Kind, Replay
from hibernaut.linux.machine import Machine
from hibernaut.linux.rules import rules_named

__all__ = ["FamilyMachine", "Played", "SourceMachine", "Written", "play"]


@dataclass(frozen=True)
class FamilyMachine:
    """A machine of a family.

    Attributes:
        family: the family.
        layout_choices: the choices that make the machine, as indices; "unit" in files.
    """

    family: Family
    layout_choices: tuple[int, ...]

    def chosen(self) -> tuple[ChosenMachine, tuple[Choice, ...]]:
        """Return the machine, and the choices that made it. Raises HibernautError if they do not fit the family."""
        environment = Replay(self.layout_choices)
        chosen = self.family.choose(environment)
        if len(environment.schedule) != len(self.layout_choices):
            raise HibernautError(
                f"the machine takes {len(environment.schedule)} choices, not {len(self.layout_choices)}"
            )
        return chosen, environment.schedule


@dataclass(frozen=True)
class SourceMachine:
    """The machine in a dump or an image.

    Attributes:
        name: the name of the file.
        fingerprint: the fingerprint of the machine; see the module of that name.
    """

    name: str
    fingerprint: str


@dataclass(frozen=True)
class Written:
    """A run as recorded: everything but its outcome.

    Attributes:
        machine: the machine that it begins on.
        rules: name of the kernel line.
        operations: the operations.
        choices: the choices, as indices; those after the last are the ones without interference.
    """

    machine: FamilyMachine | SourceMachine
    rules: str
    operations: tuple[Operation, ...]
    choices: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Played:
    """A run that was played.

    Attributes:
        written: the run without its outcome.
        before: the choices that made the machine.
        schedule: the choices of the run.
        run: the finished run.
    """

    written: Written
    before: tuple[Choice, ...]
    schedule: tuple[Choice, ...]
    run: Run

    @property
    def outcome(self) -> Outcome:
        """The outcome of the run."""
        return self.run.outcome

    @property
    def injected(self) -> tuple[str, ...]:
        """The injected failures, in words."""
        failed = (one for one in self.schedule if one.kind == Kind.ALLOCATION_FAILS and one.value)
        return tuple(map(str, failed))

    @property
    def lines(self) -> tuple[str, ...]:
        """The schedule in words: the choices that had more than one option, and each region.

        A frame that an allocation got is left out where it is the one that the kernel takes: the log has it. At the end
        are the allocations that the zone's mark made fail, of which nothing was asked.
        """
        told = (one for one in (*self.before, *self.schedule) if one.options > 1 or one.kind == LayoutKind.REGION)
        lines = [str(choice) for choice in told if choice.kind != Kind.FREE_FRAME or choice.index]
        failed = (one.number for one in self.run.machine.allocations if one.at_mark)
        return *lines, *(f"allocation {number} fails: {NOT_ABOVE_MARK}" for number in failed)


def play(written: Written, machine: Machine | None = None) -> Played:
    """Play a run.

    Args:
        written: the run.
        machine: the machine of the source, if the run begins on one; it is not changed.

    Raises:
        HibernautError: the choices do not fit the machine, or the source's machine is missing or another one.
    """
    before: tuple[Choice, ...] = ()
    if isinstance(written.machine, FamilyMachine):
        chosen, before = written.machine.chosen()
        machine = build_machine(chosen.layout, Environment(), rules_named(written.rules))
    elif machine is None:
        raise HibernautError(f"the run begins on the machine of {written.machine.name}: give that file")
    elif not is_fingerprint_of(written.machine.fingerprint, machine):
        raise HibernautError(f"the run begins on another machine, that of {written.machine.name}: give that file")
    if any(operation.cpu >= len(machine.tlbs) for operation in written.operations):
        raise HibernautError(f"an operation runs on a CPU that the machine does not have: it has {len(machine.tlbs)}")
    chooser = Chooser(written.choices, Bounds(frames=0))
    run = Run(machine.fork(chooser), written.operations)
    run.finish()
    if len(chooser.schedule) < len(written.choices):
        raise HibernautError(f"the run asks for {len(chooser.schedule)} choices, {len(written.choices)} are given")
    return Played(written, before, chooser.schedule, run)
