# SPDX-License-Identifier: GPL-2.0-or-later
"""Documents of `explore` and `replay`, and results of them, `lab confirm` and `lab trace` as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from hibernaut.exploration import Exploration, PlayedEnding
from hibernaut.exploration.replay import Replayed, run_document
from hibernaut.hibernation.trace import Checked, Trace
from hibernaut.kernel_line import RulesFrom
from hibernaut.report.documents import (
    CheckedTraceDocument,
    EndingDocument,
    ExploreDocument,
    ReplayDocument,
    TraceDocument,
    WayDocument,
)
from hibernaut.report.text import columns, counted

__all__ = [
    "checked_document",
    "checked_text",
    "confirmed_text",
    "explore_document",
    "explored_text",
    "played_text",
    "replay_document",
    "traced_text",
    "way_answer",
]

SHOWN_FINDINGS = 5


def explore_document(found: Exploration, files: Mapping[PlayedEnding, Path], rules_from: RulesFrom) -> ExploreDocument:
    """Return the document of an exploration.

    Args:
        found: the exploration.
        files: the file that each outcome's shortest run was saved to.
        rules_from: origin of the rules.
    """
    return {
        "scope": found.scope,
        "covered": found.covered,
        "ways": [
            {
                "way": way.name,
                "safe": way.safe,
                "machines": way.tally.machines,
                "runs": way.tally.runs,
                "states": way.tally.states,
                "steps": way.tally.steps,
                "cut_machines": way.tally.cut,
                "cut": way.tally.where,
                "endings": [_ending_document(ending, files.get(ending)) for ending in way.endings],
            }
            for way in found.ways
        ],
        "rules_from": rules_from,
    }


def _ending_document(ending: PlayedEnding, file: Path | None) -> EndingDocument:
    outcome, played = ending.outcome, ending.played
    return {
        "verdict": str(outcome),
        "outcome": outcome.status,
        "violated": list(outcome.violated),
        "warned": outcome.warned,
        "loses": outcome.loses,
        "runs": ending.runs,
        "machines": ending.machines,
        "choices_away": ending.shortest.deviations,
        "schedule": list(played.lines),
        "injected": list(played.injected),
        "findings": [str(violation) for violation in played.run.violations[:SHOWN_FINDINGS]],
        "file": None if file is None else str(file),
    }


def replay_document(found: Replayed) -> ReplayDocument:
    """Return the document of a replay: the contents of the run's file, and whether the run is the same."""
    document = {**run_document(found.played), "same": found.same, "difference": found.difference}
    return cast(ReplayDocument, document)


def explored_text(document: ExploreDocument) -> str:
    """Return the text of an exploration."""
    covered = "covered: every run" if document["covered"] else "CUT: not every run"
    lines = [f"scope: {document['scope']}", covered]
    for way in document["ways"]:
        bad = [one for one in way["endings"] if one["violated"]]
        lines += ["", f"{way['way']}: {way_answer(way)}"]
        lines.append(
            f"  {counted(way['machines'], 'machine')}, {counted(way['runs'], 'run')}, {counted(way['states'], 'state')}"
            + (
                f"; {counted(way['cut_machines'], 'machine')} cut, the first {way['cut']}"
                if way["cut_machines"]
                else ""
            )
        )
        rows = [(f"{one['runs']}", f"{one['machines']}", _ending(one)) for one in way["endings"]]
        lines += [f"  {line}" for line in columns([("runs", "machines", "end"), *rows], right=frozenset({0, 1}))]
        worst = [one for one in bad if one["loses"]] or bad
        if worst:
            lines += [
                f"  shortest run with the outcome {worst[0]['verdict']}:",
                *(f"    {line}" for line in _story(worst[0])),
            ]
        lines += [f"  saved: {one['file']}" for one in bad if one["file"]]
    return "\n".join(lines)


def way_answer(way: WayDocument) -> str:
    """Return the verdict on a way in a clause."""
    bad = [one for one in way["endings"] if one["violated"]]
    scope = "" if not way["cut_machines"] else " as far as it was explored"
    if not bad:
        return f"safe in every run{scope}"
    if way["safe"]:
        return f"loses nothing in any run{scope}, but leaves traces"
    runs = sum(one["runs"] for one in bad if one["loses"])
    lose = "loses or breaks" if runs == 1 else "lose or break"
    return f"NOT safe: {runs} of {counted(way['runs'], 'run')} {lose} something"


def _ending(one: EndingDocument) -> str:
    return one["verdict"] if one["violated"] or one["outcome"] != "saved" else "saved, unchanged"


def _story(one: EndingDocument) -> list[str]:
    return [
        *one["schedule"],
        f"injected: {'; '.join(one['injected']) or 'nothing'}",
        *(f"-> {finding}" for finding in one["findings"]),
    ]


def played_text(document: ReplayDocument, findings: Iterable[str]) -> str:
    """Return the text of a replay.

    Args:
        document: the replay.
        findings: the violations that the document lists. Its own sentences are part of the format of a run's file.
    """
    lines = [f"rules of {document['rules']}", *document["schedule"]]
    lines.append(f"injected: {'; '.join(document['injected'])}")
    lines += ["", *document["log"], ""]
    lines += findings
    if document["more_findings"]:
        lines.append(f"... and {document['more_findings']} more")
    warned = " after a warning" if document["warned"] else ""
    violated = ", ".join(document["violated"]) or "nothing is broken"
    outcome = "crashed" if document["outcome"] == "died" else document["outcome"]
    lines.append(f"outcome: {outcome}{warned}: {violated}")
    same = "identical to the saved run, byte for byte"
    lines.append(same if document["same"] else f"differs from the saved run: {document['difference']}")
    return "\n".join(lines)


def checked_document(file: Path, trace: Trace, way: str, found: Checked) -> CheckedTraceDocument:
    """Return the document of a trace that was compared with the model.

    Args:
        file: the trace's file.
        trace: the trace.
        way: name of the model's way.
        found: the comparison.
    """
    return {
        "trace": str(file),
        "release": trace.release,
        "rules": trace.rules,
        "guest": trace.guest,
        "outcome": trace.outcome,
        "way": way,
        "calls": len(trace.calls),
        "same_calls": found.same,
        "same": found.difference is None,
        "difference": found.difference,
    }


def checked_text(document: CheckedTraceDocument) -> str:
    """Return the text of a trace that was compared with the model."""
    outcome = "crashed" if document["outcome"] == "died" else document["outcome"]
    calls = counted(document["calls"], "call")
    head = f"Linux {document['release']}, guest {document['guest']}, {outcome}: {calls} in the copy loop"
    said = f"the model makes the same calls, by {document['way']} and the rules of {document['rules']}"
    return f"{head}\n{said if document['same'] else document['difference']}"


def traced_text(document: TraceDocument) -> str:
    """Return the text of a recorded copy loop."""
    outcome = "crashed" if document["outcome"] == "died" else document["outcome"]
    reason = f": {document['reason']}" if document["reason"] else ""
    rows = [(f"{number}", name) for name, number in document["calls"].items()]
    lines = [f"Linux {document['release']}, {outcome}{reason}"]
    return "\n".join([*lines, *columns(rows, right=frozenset({0})), document["trace"]])


def confirmed_text(document: Mapping[str, Any]) -> str:
    """Return the text of the document of `lab confirm`."""
    said = "AGREES" if document["agrees"] else "DISAGREES"
    violated = ", ".join(document["violated"]) or "nothing is broken"
    pages, lists = document["pages"], document["lists"]
    allocator = f"; pages come from {pages}, CPU's lists {lists}" if (pages, lists) != ("above", "above") else ""
    later = f"; the resumed machine crashes: {document['dies_of']}" if document["dies_of"] else ""
    outcome = "crashed" if document["outcome"] == "died" else document["outcome"]
    lines = [
        f"arranged: {', '.join(document['regions']) or 'no region'}; failing allocations: "
        f"{document['fail_allocations'] or 'none'}{allocator}",
        f"the model: {outcome}: {violated}{later}",
        f"Linux {document['release']} {said}: {document['seen']}",
        *(f"  {line}" for line in document["said"]),
    ]
    return "\n".join(lines)
