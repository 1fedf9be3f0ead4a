# SPDX-License-Identifier: GPL-2.0-or-later
"""A run as a small file: what machine, what is done, every choice that differs, and how it ended; and its replay.

The file is JSON that can be read: the schedule is there in words, the log line by line. To replay it is to make the
file again from the machine, the operations and the choices: it must come out byte for byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hibernaut.errors import FormatError, HibernautError
from hibernaut.exploration.families import ChosenMachine, Family
from hibernaut.exploration.layouts import LayoutKind
from hibernaut.exploration.operations import Operation, check_ways
from hibernaut.exploration.run import Outcome, Run
from hibernaut.exploration.scopes import family_from_json, family_json
from hibernaut.exploration.search import Bounds, Chooser
from hibernaut.hibernation.checks import page_tables
from hibernaut.linux.build import build_machine
from hibernaut.linux.environment import Choice, Environment, Kind, Replay
from hibernaut.linux.machine import Machine
from hibernaut.linux.rules import rules_named
from hibernaut.volumes.output import write_file

__all__ = [
    "FamilyMachine",
    "Played",
    "SourceMachine",
    "Written",
    "fingerprint",
    "play",
    "read_run",
    "replay",
    "run_text",
    "write_run",
]

FORMAT, VERSION = "hibernaut run", 1
MOST_BYTES = 1 << 24
MOST_CHOICES = 1 << 20
MOST_OPERATIONS = 1000
SHOWN_FINDINGS = 20


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

    def document(self) -> dict[str, Any]:
        """What its file says."""
        machine = self.written.machine
        where: dict[str, Any]
        if isinstance(machine, FamilyMachine):
            where = {"family": family_json(machine.family), "unit": list(machine.layout_choices)}
        else:
            where = {"source": machine.name, "fingerprint": machine.fingerprint}
        findings = [str(violation) for violation in self.run.violations]
        return {
            "format": FORMAT,
            "version": VERSION,
            "machine": where,
            "rules": self.written.rules,
            "operations": [operation.as_json() for operation in self.written.operations],
            "choices": [choice.index for choice in self.schedule],
            "schedule": list(self.lines),
            "injected": list(self.injected) or ["nothing"],
            "outcome": self.outcome.status,
            "violated": list(self.outcome.violated),
            "warned": self.outcome.warned,
            "death": self.outcome.crash,
            "error": None if self.run.error is None else str(self.run.error),
            "findings": findings[:SHOWN_FINDINGS],
            "more_findings": max(0, len(findings) - SHOWN_FINDINGS),
            "log": list(self.run.machine.log.lines),
        }


def run_text(played: Played) -> str:
    """The file's text: JSON, a line for each thing that it says."""
    parts = [f"{json.dumps(key)}: {_value(value)}" for key, value in played.document().items()]
    return "{\n " + ",\n ".join(parts) + "\n}\n"


def _value(value: Any) -> str:
    if isinstance(value, list) and value and not isinstance(value[0], int):
        return "[\n  " + ",\n  ".join(json.dumps(one) for one in value) + "\n ]"
    return json.dumps(value)


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
    elif fingerprint(machine) != written.machine.fingerprint:
        raise HibernautError(f"the run begins on another machine than this one: {written.machine.name}")
    if any(operation.cpu >= len(machine.tlbs) for operation in written.operations):
        raise HibernautError(f"the machine has {len(machine.tlbs)} CPUs: an operation runs on none of them")
    chooser = Chooser(written.choices, Bounds(frames=0))
    run = Run(machine.fork(chooser), written.operations)
    run.finish()
    if len(chooser.schedule) < len(written.choices):
        raise HibernautError(f"the run asks for {len(chooser.schedule)} choices, {len(written.choices)} are given")
    return Played(written, before, chooser.schedule, run)


def fingerprint(machine: Machine) -> str:
    """What tells a source's machine from others: its root, its list of pages, its free frames, its page tables."""
    digest = hashlib.blake2b(digest_size=16)
    free = list(machine.allocator.free_ranges())
    digest.update(repr((machine.cr3, machine.levels, machine.base, machine.end_pfn, free)).encode())
    digest.update(repr(None if machine.saveable is None else list(machine.saveable)).encode())
    for pfn in sorted(page_tables(machine)):
        page = machine.memory.frame(pfn)
        digest.update(pfn.to_bytes(8, "little"))
        digest.update(b"" if page is None else np.ascontiguousarray(page).tobytes())
    return digest.hexdigest()


def write_run(path: Path, played: Played) -> None:
    """Save a run. A file that is there is replaced as a whole."""
    write_file(path, run_text(played).encode(), public=True)


def read_run(path: Path) -> tuple[Written, str]:
    """A saved run, and the text of its file.

    Raises:
        FormatError: it is none, or damaged.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    name = str(path)
    try:
        if len(content) > MOST_BYTES:
            raise ValueError("larger than 16 MiB")
        text = content.decode("utf-8")
        found = json.loads(text)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
    except (ValueError, RecursionError) as error:
        raise FormatError(f"is no saved run: {error}", source=name) from None
    if found.get("version") != VERSION:
        raise FormatError(
            "saved run", source=name, expected=f"version {VERSION}", found=repr(found.get("version"))[:40]
        )
    try:
        return _written(found), text
    except (KeyError, TypeError, ValueError, HibernautError) as error:
        what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise FormatError(f"damaged run: {what}", source=name) from None


def _written(found: dict[str, Any]) -> Written:
    where = found["machine"]
    machine: FamilyMachine | SourceMachine
    if "family" in where:
        machine = FamilyMachine(family_from_json(where["family"]), _indices(where["unit"]))
        machine.chosen()
    else:
        machine = SourceMachine(_text(where["source"]), _text(where["fingerprint"]))
    rules_named(_text(found["rules"]))
    if not isinstance(found["operations"], list) or len(found["operations"]) > MOST_OPERATIONS:
        raise ValueError(f"the operations are no list of at most {MOST_OPERATIONS}")
    operations = tuple(Operation.from_json(one) for one in found["operations"])
    check_ways(operations)
    return Written(machine, found["rules"], operations, _indices(found["choices"]))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _indices(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or len(values) > MOST_CHOICES:
        raise ValueError("the choices are no list of at most a million")
    if any(type(value) is not int or value < 0 for value in values):
        raise ValueError("a choice is a number from 0 on")
    return tuple(values)


def replay(path: Path, machine_of: Callable[[SourceMachine], Machine] | None = None) -> tuple[Played, str | None]:
    """Play a saved run again.

    Args:
        path: its file.
        machine_of: gives the machine of a source, if one is to be had.

    Returns:
        The run, and the first line of the file that comes out otherwise; None if it is the same byte for byte.

    Raises:
        FormatError, OSError: as `read_run`.
        HibernautError: as `play`.
    """
    written, text = read_run(path)
    machine = None
    if isinstance(written.machine, SourceMachine) and machine_of is not None:
        machine = machine_of(written.machine)
    played = play(written, machine)
    return played, _first_difference(text, run_text(played))


def _first_difference(old: str, new: str) -> str | None:
    if old == new:
        return None
    before, after = old.splitlines(), new.splitlines()
    for number, (mine, theirs) in enumerate(zip(before, after, strict=False), 1):
        if mine != theirs:
            return f"line {number}: {mine.strip()!r} came out as {theirs.strip()!r}"
    return f"{len(before)} lines came out as {len(after)}"
