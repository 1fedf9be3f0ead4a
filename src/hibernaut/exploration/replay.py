# SPDX-License-Identifier: GPL-2.0-or-later
"""Saved runs: small files with the machine, the operations, the choices and the outcome; and their replay.

The file is readable JSON, with the schedule in words and the log line by line. A replay makes the file again from the
machine, the operations and the choices: the result must be the same byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hibernaut.errors import FormatError, HibernautError
from hibernaut.exploration.operations import HIBERNATE, Operation, check_ways
from hibernaut.exploration.play import FamilyMachine, Played, SourceMachine, Written, play
from hibernaut.exploration.scopes import family_from_json, family_json
from hibernaut.hibernation.checks.violation import Violation
from hibernaut.linux.machine import Machine
from hibernaut.linux.rules import rules_named
from hibernaut.volumes.files import read_at_most
from hibernaut.volumes.output import write_file

__all__ = ["Replayed", "read_run", "replay", "run_document", "run_text", "write_run"]

FORMAT, VERSION = "hibernaut run", 1
MOST_BYTES = 1 << 24
MOST_CHOICES = 1 << 20
MOST_OPERATIONS = 1000
MOST_PAGES_IN_ALL = 1 << 16
"""The most pages of all operations of a run. Each can become a hole that is copied by itself, in milliseconds."""
MOST_HIBERNATIONS = 4
SHOWN_FINDINGS = 20
SAVED_BY = "give a file that `hibernaut explore --save DIR` wrote"


def run_document(played: Played) -> dict[str, Any]:
    """Return the contents of a run's file."""
    machine = played.written.machine
    where: dict[str, Any]
    if isinstance(machine, FamilyMachine):
        where = {"family": family_json(machine.family), "unit": list(machine.layout_choices)}
    else:
        where = {"source": machine.name, "fingerprint": machine.fingerprint}
    findings = [_finding(violation) for violation in played.run.violations]
    return {
        "format": FORMAT,
        "version": VERSION,
        "machine": where,
        "rules": played.written.rules,
        "operations": [operation.as_json() for operation in played.written.operations],
        "choices": [choice.index for choice in played.schedule],
        "schedule": list(played.lines),
        "injected": list(played.injected) or ["nothing"],
        "outcome": played.outcome.status,
        "violated": list(played.outcome.violated),
        "warned": played.outcome.warned,
        "death": played.outcome.crash,
        "error": None if played.run.error is None else str(played.run.error),
        "findings": findings[:SHOWN_FINDINGS],
        "more_findings": max(0, len(findings) - SHOWN_FINDINGS),
        "log": list(played.run.machine.log.lines),
    }


def _finding(violation: Violation) -> str:
    """Return a violation in the sentence of saved runs, which is part of the format: "pages" even of one page."""
    return f"{violation.invariant}: {violation.what}: {violation.nr_pages} pages from frame {violation.start_pfn:#x}"


def run_text(played: Played) -> str:
    """Return the text of a run's file: JSON, a line for each key, choice and line of the log."""
    parts = [f"{json.dumps(key)}: {_value(value)}" for key, value in run_document(played).items()]
    return "{\n " + ",\n ".join(parts) + "\n}\n"


def _value(value: Any) -> str:
    if isinstance(value, list) and value and not isinstance(value[0], int):
        return "[\n  " + ",\n  ".join(json.dumps(one) for one in value) + "\n ]"
    return json.dumps(value)


def write_run(path: Path, played: Played) -> None:
    """Save a run. An existing file is replaced as a whole."""
    write_file(path, run_text(played).encode(), public=True)


def read_run(path: Path) -> tuple[Written, str]:
    """Return a saved run, and the text of its file.

    Raises:
        FormatError: the file is not a saved run, or is damaged.
        OSError: the file cannot be read.
    """
    name = str(path)
    if path.exists() and not path.is_file():
        raise FormatError("not a regular file", source=name, advice=SAVED_BY)
    with path.open("rb") as file:
        content = read_at_most(file, MOST_BYTES + 1)
    try:
        if len(content) > MOST_BYTES:
            raise ValueError("it is larger than 16 MiB")
        text = content.decode("utf-8")
        found = json.loads(text)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not a saved run: {error}", source=name, advice=SAVED_BY) from None
    if found.get("version") != VERSION:
        raise FormatError(
            "saved run",
            source=name,
            expected=f"version {VERSION}",
            found=repr(found.get("version"))[:40],
            advice="replay it with the hibernaut that saved it",
        )
    try:
        return _written(found), text
    except (KeyError, TypeError, ValueError, HibernautError) as error:
        what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise FormatError(f"damaged run: {what}", source=name, advice=SAVED_BY) from None


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
        raise ValueError(f"the operations are not a list of at most {MOST_OPERATIONS}")
    operations = tuple(Operation.from_json(one) for one in found["operations"])
    check_ways(operations)
    pages = sum(one.pages for one in operations)
    if pages > MOST_PAGES_IN_ALL:
        raise ValueError(f"its operations are of {pages} pages, more than {MOST_PAGES_IN_ALL}")
    if sum(one.do == HIBERNATE for one in operations) > MOST_HIBERNATIONS:
        raise ValueError(f"it hibernates more than {MOST_HIBERNATIONS} times")
    return Written(machine, found["rules"], operations, _indices(found["choices"]))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a string")
    return value


def _indices(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or len(values) > MOST_CHOICES:
        raise ValueError("the choices are not a list of at most a million")
    if any(type(value) is not int or value < 0 for value in values):
        raise ValueError("a choice is not a number from 0 up")
    return tuple(values)


class Replayed(NamedTuple):
    """A saved run, played again.

    Attributes:
        played: the run.
        difference: the first line of the file that differs; None if the replay is identical, byte for byte.
    """

    played: Played
    difference: str | None

    @property
    def same(self) -> bool:
        """Whether the replay is identical to the file."""
        return self.difference is None


def replay(path: Path, machine_of: Callable[[SourceMachine, str], Machine] | None = None) -> Replayed:
    """Play a saved run again.

    Args:
        path: its file.
        machine_of: returns the machine of a source, with the rules of a kernel line.

    Raises:
        FormatError, OSError: as `read_run`.
        HibernautError: as `play`.
    """
    written, text = read_run(path)
    machine = None
    if isinstance(written.machine, SourceMachine) and machine_of is not None:
        machine = machine_of(written.machine, written.rules)
    played = play(written, machine)
    return Replayed(played, _first_difference(text, run_text(played)))


def _first_difference(old: str, new: str) -> str | None:
    if old == new:
        return None
    before, after = old.splitlines(), new.splitlines()
    for number, (mine, theirs) in enumerate(zip(before, after, strict=False), 1):
        if mine != theirs:
            return f"line {number}: {mine.strip()!r} came out as {theirs.strip()!r}"
    return f"{len(before)} lines came out as {len(after)}"
