# SPDX-License-Identifier: GPL-2.0-or-later
"""The finding of a check."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hibernaut.doctor.evidence import Evidence
from hibernaut.doctor.log import BootLog, LogLine
from hibernaut.doctor.memory_map import MemoryMap

__all__ = [
    "CheckFinding",
    "CheckOutcome",
    "ComparedMaps",
    "FactRead",
    "failing",
    "first_line",
    "ok",
    "unknown_for_lack_of",
    "warning",
]


class CheckOutcome(StrEnum):
    """CheckOutcome of a check."""

    OK = "ok"
    WARNING = "warning"
    WOULD_FAIL = "would fail"
    NOT_KNOWN = "not known"


@dataclass(frozen=True)
class FactRead:
    """A fact that a check used.

    Attributes:
        origin: file that states it.
        value: the fact as text.
    """

    origin: str
    value: str

    @classmethod
    def of_line(cls, boot: BootLog, line: LogLine) -> FactRead:
        """Return the reading of a line of a log."""
        return cls(f"{boot.origin}, line {line.number}", line.text)

    @classmethod
    def of(cls, evidence: Evidence[object], value: str | None = None) -> FactRead:
        """Return the reading of a fact; `value` replaces its text."""
        if not evidence.known:
            return cls(evidence.origin, f"not known: {evidence.reason}")
        return cls(evidence.origin, str(evidence.value) if value is None else value)


@dataclass(frozen=True)
class ComparedMaps:
    """The firmware's memory map at two boots, side by side.

    Attributes:
        before: map of the kernel that hibernated.
        before_from: its origin.
        after: map of the kernel that resumes.
        after_from: its origin.
    """

    before: MemoryMap
    before_from: str
    after: MemoryMap
    after_from: str


@dataclass(frozen=True)
class CheckFinding:
    """The finding of a check.

    Attributes:
        outcome: its outcome.
        summary: the finding, a clause.
        read: facts that were used.
        words: messages of the kernel or of systemd where it would fail, as users search for them.
        advice: what to do next, an imperative clause; None if nothing is to do.
        maps: the memory maps that were compared.
    """

    outcome: CheckOutcome
    summary: str
    read: tuple[FactRead, ...] = ()
    words: tuple[str, ...] = ()
    advice: str | None = None
    maps: ComparedMaps | None = None


def ok(summary: str, *read: FactRead) -> CheckFinding:
    """Return the finding of a check that passes."""
    return CheckFinding(CheckOutcome.OK, summary, read)


def warning(summary: str, *read: FactRead, advice: str, words: tuple[str, ...] = ()) -> CheckFinding:
    """Return the finding of a check that may fail."""
    return CheckFinding(CheckOutcome.WARNING, summary, read, words, advice)


def failing(summary: str, *read: FactRead, advice: str, words: tuple[str, ...] = ()) -> CheckFinding:
    """Return the finding of a check that fails."""
    return CheckFinding(CheckOutcome.WOULD_FAIL, summary, read, words, advice)


def unknown_for_lack_of(*facts: Evidence[object], advice: str) -> CheckFinding:
    """Return the finding of a check that needs all of some facts, of which one at least is not known."""
    lacking = [one for one in facts if not one.known]
    reasons = dict.fromkeys(f"{one.origin} ({one.reason})" for one in lacking)
    read = tuple(FactRead.of(one) for one in lacking)
    return CheckFinding(CheckOutcome.NOT_KNOWN, f"this needs {' and '.join(reasons)}", read, advice=advice)


def first_line(boot: BootLog | None, words: str) -> FactRead | None:
    """Return the first line of a log with these words."""
    for line in boot.lines if boot else ():
        if words in line.text:
            return FactRead.of_line(boot, line) if boot else None
    return None
