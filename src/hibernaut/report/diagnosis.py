# SPDX-License-Identifier: GPL-2.0-or-later
"""The findings of `hibernaut doctor`, as a document and as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from hibernaut.doctor.checks.table import DoctorCheck
from hibernaut.doctor.evidence import NOT_GIVEN
from hibernaut.doctor.finding import CheckFinding, CheckOutcome, ComparedMaps
from hibernaut.doctor.memory_map import side_by_side, type_name
from hibernaut.report.documents import ComparedMapDocument, DiagnosisDocument, DiagnosisFindingDocument
from hibernaut.report.text import columns, counted

__all__ = ["diagnosis_document", "diagnosis_text"]

MARKS = {"ok": " ", "warning": "!", "would fail": "X", "not known": "?"}
"""Sign before a line of the text, by outcome."""
NO_ENTRY = "-"


def diagnosis_document(found: Sequence[tuple[DoctorCheck, CheckFinding]]) -> DiagnosisDocument:
    """Return the document of the findings."""
    outcomes = {finding.outcome for _, finding in found}
    order = (CheckOutcome.WOULD_FAIL, CheckOutcome.WARNING, CheckOutcome.OK)
    return {
        "outcome": next((one for one in order if one in outcomes), CheckOutcome.NOT_KNOWN).value,
        "checks": [_finding(check, finding) for check, finding in found],
    }


def _finding(check: DoctorCheck, finding: CheckFinding) -> DiagnosisFindingDocument:
    return {
        "check": check.name,
        "question": str(check.question),
        "outcome": finding.outcome.value,
        "summary": finding.summary,
        "read": [{"origin": one.origin, "value": one.value} for one in finding.read],
        "words": list(finding.words),
        "advice": finding.advice,
        "memory_maps": _maps(finding.maps) if finding.maps else None,
    }


def _maps(maps: ComparedMaps) -> ComparedMapDocument:
    return {
        "before_from": maps.before_from,
        "after_from": maps.after_from,
        "ranges": [
            {
                "start": f"{one.start:#x}",
                "end": f"{one.end:#x}",
                "before": type_name(one.before),
                "after": type_name(one.after),
                "same": one.before == one.after,
            }
            for one in side_by_side(maps.before, maps.after)
        ],
    }


def diagnosis_text(document: DiagnosisDocument) -> str:
    """Return the findings by question; what was read and what to do where a check is not ok.

    Checks that lack a file that was not given are in one line for each next step.
    """
    lines: list[str] = []
    for question, checks in groupby(document["checks"], key=lambda one: one["question"]):
        lines += [""] if lines else []
        lines.append(f"{question}?")
        listed = list(checks)
        width = max(len(one["check"]) for one in listed)
        lacking: dict[str, list[str]] = {}
        for one in listed:
            if _lacks_files(one):
                lacking.setdefault(one["advice"] or "", []).append(one["check"])
                continue
            lines.append(f"{MARKS[one['outcome']]} {one['check'].ljust(width)}  {one['outcome']}: {one['summary']}")
            if one["outcome"] != "ok":
                lines += [f"    {line}" for line in _details(one)]
        lines += [f"? not known: {', '.join(names)}; {advice}" for advice, names in lacking.items()]
    return "\n".join([*lines, "", _ending(document)])


def _lacks_files(one: DiagnosisFindingDocument) -> bool:
    """Return whether a check is not known only because no file was given."""
    lacking = f"not known: {NOT_GIVEN}"
    return one["outcome"] == "not known" and all(reading["value"] == lacking for reading in one["read"])


def _details(one: DiagnosisFindingDocument) -> Iterable[str]:
    if one["outcome"] != "not known":  # the finding has the reason then
        yield from (f"read: {reading['origin']}: {reading['value']}" for reading in one["read"])
    yield from (f'the message: "{words}"' for words in one["words"])
    maps = one["memory_maps"]
    if maps is not None:
        yield f"memory map of {maps['before_from']}, and of {maps['after_from']}:"
        rows = [
            [
                " " if each["same"] else "*",
                f"{int(each['start'], 16):#018x}-{int(each['end'], 16) - 1:#018x}",
                each["before"] or NO_ENTRY,
                each["after"] or NO_ENTRY,
            ]
            for each in maps["ranges"]
        ]
        yield from (f"  {line}" for line in columns(rows))
    if one["advice"]:
        yield f"do: {one['advice']}"


def _ending(document: DiagnosisDocument) -> str:
    """Return the last line: how many checks have each outcome, and the names of those that would fail."""
    counts = {outcome: [one["check"] for one in document["checks"] if one["outcome"] == outcome] for outcome in MARKS}
    text = ", ".join(f"{len(names)} {outcome}" for outcome, names in counts.items() if names)
    failing = counts["would fail"]
    if failing:
        return f"{counted(len(document['checks']), 'check')}: {text}: {', '.join(failing)}"
    return f"{counted(len(document['checks']), 'check')}: {text}"
