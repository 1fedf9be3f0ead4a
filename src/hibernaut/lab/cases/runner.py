# SPDX-License-Identifier: GPL-2.0-or-later
"""Running cases on kernels, several guests at a time."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from hibernaut.errors import HibernautError, LabUnavailable
from hibernaut.lab.cases.case import CaseFailed, CaseResult, LabCase
from hibernaut.lab.host.temporary import kept_or_temporary
from hibernaut.lab.laboratory import Lab
from hibernaut.parallel import ordered_results

__all__ = ["prove"]


def prove(
    labs: Sequence[Lab], cases: Sequence[LabCase], jobs: int = 1, keep: Path | None = None
) -> Iterator[CaseResult]:
    """Run every case on every kernel and yield each result as soon as all before it are in.

    If the iterator is closed or interrupted, the guests are killed and the cases under way end.

    Args:
        labs: one laboratory for each kernel.
        cases: see `cases_of`.
        jobs: number of cases at a time.
        keep: folder in which all disks, dumps and records are kept; they are deleted if None.
    """
    runs = [partial(_run, lab, case, keep) for lab in labs for case in cases]

    def close() -> None:
        for lab in labs:
            lab.close()

    try:
        yield from ordered_results(iter(runs), workers=jobs, ahead=len(runs) + 1, stop=close)
    finally:
        for lab in labs:
            lab.reopen()


def _run(lab: Lab, case: LabCase, keep: Path | None) -> CaseResult:
    kernel = lab.kernel
    started = time.monotonic()
    name = re.sub(r"\W+", "-", f"{kernel.name}-{case.name}")
    passed: bool | None
    with kept_or_temporary(keep, name) as folder:
        try:
            seen, passed = case.run(lab, folder), True
        except LabUnavailable as error:
            seen, passed = str(error), None
        except (CaseFailed, HibernautError, OSError) as error:
            seen, passed = str(error), False
    return CaseResult(kernel.name, kernel.release, case.name, case.must, passed, seen, time.monotonic() - started)
