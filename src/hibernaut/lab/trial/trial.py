# SPDX-License-Identifier: GPL-2.0-or-later
"""The trial of a kernel: all situations, several guests at a time, and the verdict."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

from hibernaut.errors import HibernautError, LabUnavailable
from hibernaut.lab.host.temporary import kept_or_temporary
from hibernaut.lab.laboratory import Lab
from hibernaut.lab.record import LOG_NAME, RESUMED_LOG_NAME
from hibernaut.lab.trial.configuration import configuration_of, lacking
from hibernaut.lab.trial.findings import Finding, Word, finding_of
from hibernaut.lab.trial.situations import CONTROL, TrialSituation
from hibernaut.lab.trial.watched import watch
from hibernaut.parallel import ordered_results
from hibernaut.volumes.output import write_file

__all__ = ["CANNOT_JUDGE", "CURED", "NOT_CURED", "KernelVerdict", "Tried", "try_kernel", "verdict_on"]


@dataclass(frozen=True)
class Tried:
    """A situation that was tried.

    Attributes:
        situation: the situation.
        finding: the verdict on the kernel in it.
        tries: number of guests that it took.
        seconds: duration.
    """

    situation: TrialSituation
    finding: Finding
    tries: int
    seconds: float


KernelVerdict = Literal["cured", "not cured", "cannot judge"]
CURED: Final = "cured"
NOT_CURED: Final = "not cured"
CANNOT_JUDGE: Final = "cannot judge"


def try_kernel(
    lab: Lab,
    situations: Sequence[TrialSituation],
    *,
    tries: int = 3,
    jobs: int = 2,
    quick: bool = False,
    keep: Path | None = None,
) -> Iterator[Tried]:
    """Try a kernel in situations and yield each result as soon as all before it are in.

    If the iterator is closed or interrupted, the guests are killed and the trials under way end.

    Args:
        lab: laboratory with the kernel.
        situations: the situations.
        tries: most guests in one situation, while the outcome is unclear.
        jobs: number of guests at a time.
        quick: one boot in each situation, by `test_resume`.
        keep: folder in which disks and records of the last guest in each situation are kept; None removes them.
    """
    runs = [partial(_try, lab, situation, tries, quick, keep) for situation in situations]
    try:
        yield from ordered_results(iter(runs), workers=jobs, ahead=len(runs) + 1, stop=lab.close)
    finally:
        lab.reopen()


def verdict_on(results: Sequence[Tried]) -> tuple[KernelVerdict, str]:
    """Return the verdict on a kernel and its reason, one line.

    A kernel is cured if the control passes, nothing is unclear, and it is cured in every situation that was exercised,
    of which there is at least one with a hidden page.
    """
    control = next((one for one in results if one.situation is CONTROL), None)
    if control is None or control.finding.word != Word.CURED:
        why = control.finding.why[0] if control else "it was not tried"
        return CANNOT_JUDGE, f"the control does not pass: {why}"
    others = [one for one in results if one.situation is not CONTROL]
    wrong = [one for one in others if one.finding.word == Word.NOT_CURED]
    if wrong:
        return NOT_CURED, f"{wrong[0].situation.name}: {wrong[0].finding.why[0]}"
    unclear = [one for one in others if one.finding.word == Word.UNCLEAR]
    if unclear:
        return CANNOT_JUDGE, f"{unclear[0].situation.name} is unclear: {unclear[0].finding.why[0]}"
    exercised = [one for one in others if one.finding.word == Word.CURED]
    if not exercised:
        return CANNOT_JUDGE, "no situation with a hidden page was exercised"
    if len(exercised) < len(others):
        return CURED, f"in {len(exercised)} of {len(others)} situations; the others were not exercised"
    return CURED, f"in all {len(others)} situations" if len(others) > 1 else "in the one situation that was tried"


def _try(lab: Lab, situation: TrialSituation, tries: int, quick: bool, keep: Path | None) -> Tried:
    started = time.monotonic()
    configuration = configuration_of(lab.kernel)
    lacks = [] if configuration is None else lacking(configuration)
    lacks = [one for one in lacks if one.need.situation == situation.name]
    if lacks:
        return Tried(situation, Finding(Word.NOT_EXERCISED, tuple(one.text for one in lacks)), 0, 0.0)
    finding = Finding(Word.UNCLEAR, ("it was not tried",))
    number = 0
    while finding.word == Word.UNCLEAR and number < tries:
        number += 1
        with kept_or_temporary(keep, situation.name) as folder:
            try:
                seen = watch(lab, situation, folder, quick=quick)
                if keep is not None:
                    write_file(folder / LOG_NAME, seen.done.log.encode())
                    write_file(folder / RESUMED_LOG_NAME, seen.resumed.log.encode() if seen.resumed else b"")
                finding = finding_of(situation, seen)
            except LabUnavailable as error:
                finding = Finding(Word.NOT_EXERCISED, (str(error),))
            except HibernautError as error:
                finding = Finding(Word.UNCLEAR, (str(error),))
    return Tried(situation, finding, number, time.monotonic() - started)
