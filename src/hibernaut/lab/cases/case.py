# SPDX-License-Identifier: GPL-2.0-or-later
"""A case: one claim about this package, tried on a real kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hibernaut.lab.laboratory import Lab

__all__ = ["CaseFailed", "CaseResult", "LabCase"]


class CaseFailed(Exception):
    """A claim that did not hold; the message is what was seen instead."""


@dataclass(frozen=True)
class LabCase:
    """One row of the table.

    Attributes:
        name: the situation.
        must: the outcome that it must have.
        run: tries the case in a folder of its own and returns what was seen. Raises CaseFailed.
        every_line: whether each of the laboratory's lines must show it, not only those that every claim is proved on.
    """

    name: str
    must: str
    run: Callable[[Lab, Path], str]
    every_line: bool = False

    def skipped(self, kernel: str, why: str) -> CaseResult:
        """Return the result of the case on a kernel that cannot be had."""
        return CaseResult(kernel, "", self.name, self.must, None, why, 0.0)


@dataclass(frozen=True)
class CaseResult:
    """Result of a case on a kernel.

    Attributes:
        kernel: name of the kernel's line, or its release.
        release: release of the kernel.
        case: name of the case.
        must: the outcome that it must have.
        passed: True, False, or None if the case could not be run.
        seen: what was seen.
        seconds: how long it took.
    """

    kernel: str
    release: str
    case: str
    must: str
    passed: bool | None
    seen: str
    seconds: float

    @property
    def word(self) -> str:
        """PASS, FAIL or SKIP."""
        return {True: "PASS", False: "FAIL", None: "SKIP"}[self.passed]
