# SPDX-License-Identifier: GPL-2.0-or-later
"""The verdict on a kernel as text and as a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hibernaut.report.documents import JudgedCaseDocument, JudgeDocument, NeedsDocument
from hibernaut.report.text import columns, markdown

__all__ = ["judge_text", "judged_case_text", "judged_page", "needs_text"]


def judged_case_text(case: JudgedCaseDocument) -> str:
    """Return one situation as a line: verdict, name, and the first reason."""
    return f"{case['verdict']:13}  {case['case']:16}  {case['why'][0]}"


def judge_text(document: JudgeDocument) -> str:
    """Return the verdict on a kernel with all reasons of each situation."""
    lines = [f"Linux {document['release']}"]
    lines += [f"configuration: {lack}" for lack in document["lacks"]]
    for case in document["cases"]:
        lines += ["", f"{case['case']} ({case['what']}): {case['verdict']}"]
        lines += [f"  {why}" for why in case["why"]]
        lines += [f"  | {line}" for line in case["kernel_lines"]]
    return "\n".join([*lines, "", f"{document['verdict']}: {document['why']}"])


def judged_page(kernels: Sequence[tuple[str, JudgeDocument]]) -> str:
    """Return the verdicts on several kernels, each with its name in the table, as a page in Markdown."""
    lines = [
        "# Kernels judged",
        "",
        "Written by `make judge` (`hibernaut lab judge --write docs/judged.md`). Results are never edited by hand.",
        "",
        "| case | " + " | ".join(name for name, _ in kernels) + " |",
        "|---" * (len(kernels) + 1) + "|",
    ]
    names = list(dict.fromkeys(case["case"] for _, one in kernels for case in one["cases"]))
    for name in names:
        row = (next((case["verdict"] for case in one["cases"] if case["case"] == name), "") for _, one in kernels)
        lines.append(f"| {name} | " + " | ".join(row) + " |")
    lines.append("| **verdict** | " + " | ".join(f"**{one['verdict']}**" for _, one in kernels) + " |")
    for name, one in kernels:
        lines += ["", f"## {name}", "", f"Linux {one['release']}: {one['verdict']}, {markdown(one['why'])}.", ""]
        lines += _observations(one["cases"])
    return "\n".join(lines) + "\n"


def _observations(cases: Iterable[JudgedCaseDocument]) -> list[str]:
    return [f"- {case['case']}, {case['verdict']}: {markdown('; '.join(case['why']))}" for case in cases]


def needs_text(document: NeedsDocument) -> str:
    """Return the options that a configuration lacks, one line each, or that it has all."""
    rows = [
        [
            one["option"],
            f"is {one['found']}",
            one["why"],
            f"only for {one['case']}" if one["case"] else "for every case",
        ]
        for one in document["options"]
    ]
    return "\n".join(columns(rows)) if rows else f"{document['configuration']} has all that a trial needs"
