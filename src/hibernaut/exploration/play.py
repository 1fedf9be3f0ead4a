# SPDX-License-Identifier: GPL-2.0-or-later
"""Playing one run: a machine, the operations on it, and the choices made."""

from __future__ import annotations

from dataclasses import dataclass

from hibernaut.errors import HibernautError
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
        family: which family.
        layout_choices: the choices that make it, as indices.
    """

    family: Family
    layout_choices: tuple[int, ...]

    def chosen(self) -> tuple[ChosenMachine, tuple[Choice, ...]]:
        """The machine, and what was asked and answered for it. Raises HibernautError if the choices do not fit."""
        environment = Replay(self.layout_choices)
        chosen = self.family.choose(environment)
        if len(environment.schedule) != len(self.layout_choices):
            raise HibernautError(
                f"the machine takes {len(environment.schedule)} choices, not {len(self.layout_choices)}"
            )
        return chosen, environment.schedule


@dataclass(frozen=True)
class SourceMachine:
    """A real machine: a dump or an image.

    Attributes:
        name: of its file.
        fingerprint: of what it is, see `fingerprint`.
    """

    name: str
    fingerprint: str


@dataclass(frozen=True)
class Written:
    """A run to be played: everything but its outcome.

    Attributes:
        machine: where it begins.
        rules: name of the kernel line.
        operations: what is done.
        choices: as indices; after the last one none differs from what happens without interference.
    """

    machine: FamilyMachine | SourceMachine
    rules: str
    operations: tuple[Operation, ...]
    choices: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Played:
    """A run that was played.

    Attributes:
        written: what was played.
        before: the choices that made the machine.
        schedule: the choices of the run.
        run: the run at its end.
    """

    written: Written
    before: tuple[Choice, ...]
    schedule: tuple[Choice, ...]
    run: Run

    @property
    def outcome(self) -> Outcome:
        """How it ended."""
        return self.run.outcome

    @property
    def injected(self) -> tuple[str, ...]:
        """The failures that were injected, in words."""
        failed = (one for one in self.schedule if one.kind == Kind.ALLOCATION_FAILS and one.value)
        return tuple(map(str, failed))

    @property
    def lines(self) -> tuple[str, ...]:
        """The schedule in words, as far as there was something to choose.

        Of the frames that an allocation could get the one that the kernel takes goes without saying: the log has it.
        """
        told = (one for one in (*self.before, *self.schedule) if one.options > 1 or one.kind == LayoutKind.REGION)
        return tuple(str(choice) for choice in told if choice.kind != Kind.FREE_FRAME or choice.index)


def play(written: Written, machine: Machine | None = None) -> Played:
    """Play a run.

    Args:
        written: the run.
        machine: the machine of a source; it is not changed.

    Raises:
        HibernautError: the choices do not fit the machine, or there is no machine of the source.
    """
    before: tuple[Choice, ...] = ()
    if isinstance(written.machine, FamilyMachine):
        chosen, before = written.machine.chosen()
        machine = build_machine(chosen.layout, Environment(), rules_named(written.rules))
    elif machine is None:
        raise HibernautError(f"the run begins on the machine of {written.machine.name}: give that file")
    elif not is_fingerprint_of(written.machine.fingerprint, machine):
        raise HibernautError(f"the run begins on another machine than this one: {written.machine.name}")
    if any(operation.cpu >= len(machine.tlbs) for operation in written.operations):
        raise HibernautError(f"the machine has {len(machine.tlbs)} CPUs: an operation runs on none of them")
    chooser = Chooser(written.choices, Bounds(frames=0))
    run = Run(machine.fork(chooser), written.operations)
    run.finish()
    if len(chooser.schedule) < len(written.choices):
        raise HibernautError(f"the run asks for {len(chooser.schedule)} choices, {len(written.choices)} are given")
    return Played(written, before, chooser.schedule, run)
