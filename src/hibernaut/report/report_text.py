# SPDX-License-Identifier: GPL-2.0-or-later
"""The document of `report` as text."""

from __future__ import annotations

from collections.abc import Iterable

from hibernaut.report.documents import ReportDocument, SentenceDocument, SourceReportDocument
from hibernaut.report.text import counted

__all__ = ["report_text"]

_MARKS = {"bad": "PROBLEM  ", "warning": "ATTENTION  ", "unknown": "NOT KNOWN  ", "ok": "", "fact": ""}


def report_text(document: ReportDocument) -> str:
    """Return the text of the document of `report`: the sentences of the page, and its place."""
    lines = _source_lines(document["source"])
    if document["other"] is not None:
        lines += ["", *_source_lines(document["other"])]
    if document["trace"] is not None:
        lines += ["", f"{document['trace']['trace']}: the recorded copy", *_said_lines(document["trace"]["sentences"])]
    found = document["difference"]
    if found is not None:
        lines += [
            "",
            f"{counted(found['different'], 'frame')} differ, {found['equal']} are equal; {found['only_first']} are in"
            f" the first alone, {found['only_second']} in the second alone",
        ]
    lines += ["", f"{document['report']}: written; open it in a browser"]
    return "\n".join(lines)


def _source_lines(source: SourceReportDocument) -> list[str]:
    return [f"{source['name']}: {source['verdict']['text']}", *_said_lines(source["sentences"])]


def _said_lines(sentences: Iterable[SentenceDocument]) -> list[str]:
    return [f"{_MARKS[one['state']]}{one['text']}" for one in sentences]
