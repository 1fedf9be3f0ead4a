# SPDX-License-Identifier: GPL-2.0-or-later
"""The verdict on a kernel as text and as a page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

from hibernaut.errors import FormatError
from hibernaut.report.documents import JudgedCaseDocument, JudgeDocument, NeedsDocument
from hibernaut.report.text import columns, markdown
from hibernaut.volumes.output import make_folder, write_file

__all__ = [
    "CONTROL_CASE",
    "add_to_page",
    "judge_text",
    "judged_case_text",
    "judged_page",
    "kept_verdicts",
    "needs_text",
    "verdict_text",
]


CONTROL_CASE = "plain"
"""Name of the control, in which nothing is out of the direct map: there is nothing to cure."""
OF_CONTROL = {"cured": "passes", "not cured": "fails"}


def verdict_text(case: JudgedCaseDocument) -> str:
    """Return the verdict on a situation; of the control, whether it passes."""
    verdict = case["verdict"]
    return OF_CONTROL.get(verdict, verdict) if case["case"] == CONTROL_CASE else verdict


def judged_case_text(case: JudgedCaseDocument) -> str:
    """Return one situation as a line: verdict, name, and the first reason."""
    return f"{verdict_text(case):13}  {case['case']:16}  {case['why'][0]}"


def judge_text(document: JudgeDocument) -> str:
    """Return the verdict on a kernel with all reasons of each situation."""
    lines = [f"Linux {document['release']}"]
    lines += [f"configuration: {lack}" for lack in document["lacks"]]
    for case in document["cases"]:
        lines += ["", f"{case['case']} ({case['what']}): {verdict_text(case)}"]
        lines += [f"  {why}" for why in case["why"]]
        lines += [f"  | {line}" for line in case["kernel_lines"]]
    return "\n".join([*lines, "", f"{document['verdict']}: {document['why']}"])


def add_to_page(page: Path, name: str, document: JudgeDocument) -> None:
    """Keep the verdict on a kernel in the folder beside a page, and write the page anew from all that are there.

    Args:
        page: the page; its folder has the same name without the suffix.
        name: name of the kernel on it; an older verdict of this name is replaced.
        document: the verdict.

    Raises:
        FormatError: a file in the folder is not a verdict.
        OSError: a file cannot be read or written.
    """
    folder = page.with_suffix("")
    kernels = kept_verdicts(page)
    kept = folder / f"{re.sub(r'[^A-Za-z0-9.]+', '-', name)}.json"
    kernels[kept] = name, document
    make_folder(folder)
    write_file(kept, (json.dumps({"name": name, **document}, indent=1) + "\n").encode(), public=True)
    write_file(page, judged_page([kernels[path] for path in sorted(kernels, key=_by_release)]).encode(), public=True)


def kept_verdicts(page: Path) -> dict[Path, tuple[str, JudgeDocument]]:
    """Return name and verdict in each file of the folder beside a page. Raises FormatError, OSError."""
    return {path: _kept(path) for path in page.with_suffix("").glob("*.json")}


def _kept(path: Path) -> tuple[str, JudgeDocument]:
    """Return name and verdict in a file. Raises FormatError."""
    try:
        found = json.loads(path.read_text())
        verdict = {key: found[key] for key in JudgeDocument.__annotations__}
        return found["name"], cast(JudgeDocument, verdict)
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError("not a verdict on a kernel", source=str(path), advice="remove it") from error


def _by_release(path: Path) -> list[tuple[int, str]]:
    """Return the key that sorts names of kernels: numbers by value, the stock kernel before its cures."""
    name = path.stem.replace("-stock", "")
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def judged_page(kernels: Sequence[tuple[str, JudgeDocument]]) -> str:
    """Return the verdicts on several kernels, each with its name in the table, as a page in Markdown."""
    lines = [
        "# Kernels judged",
        "",
        "Written by `hibernaut lab judge --write docs/judged.md`, once for each kernel (`make judge`). Results are "
        "never edited by hand; a case that was not tried has a dash. [Judge a kernel](howto/judge.md) describes the "
        "cases and the verdicts.",
        "",
        "| case | " + " | ".join(name for name, _ in kernels) + " |",
        "|---" * (len(kernels) + 1) + "|",
    ]
    most_first = sorted((one for _, one in kernels), key=lambda one: -len(one["cases"]))
    names = list(dict.fromkeys(case["case"] for one in most_first for case in one["cases"]))
    for name in names:
        row = (next((verdict_text(case) for case in one["cases"] if case["case"] == name), "-") for _, one in kernels)
        lines.append(f"| {name} | " + " | ".join(row) + " |")
    lines.append("| **verdict** | " + " | ".join(f"**{one['verdict']}**" for _, one in kernels) + " |")
    for name, one in kernels:
        lines += ["", f"## {name}", "", f"Linux {one['release']}: {one['verdict']}, {markdown(one['why'])}.", ""]
        lines += _observations(one["cases"])
    return "\n".join(lines) + "\n"


def _observations(cases: Iterable[JudgedCaseDocument]) -> list[str]:
    return [f"- {case['case']}, {verdict_text(case)}: {markdown('; '.join(case['why']))}" for case in cases]


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
