# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut explain`: the mailing list's question, answered by running every branch of it."""

from __future__ import annotations

from typing import Any

from hibernaut.cli.common import JsonOption, QuietOption, RulesOption, console, print_json
from hibernaut.linux.rules import LINES
from hibernaut.report.text import explain_text
from hibernaut.studies.explain import QUESTION, explain
from hibernaut.studies.matrix import Cell

__all__ = ["explain_"]


def explain_(rules: RulesOption = None, json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Answer what the mailing list asked of saving an unmapped page: every branch, in words and by a run."""
    document = {
        "question": QUESTION,
        "rules": (rules or LINES[0]).line,
        "branches": [
            {
                "title": branch.title,
                "path": list(branch.path),
                "today": _run(branch.today),
                "fixmap": _run(branch.fixmap),
            }
            for branch in explain(rules)
        ],
    }
    if json:
        print_json(document)
    elif not quiet:
        console().print(explain_text(document))


def _run(cell: Cell) -> dict[str, Any]:
    told: dict[str, int] = {}
    for violation in cell.violations:
        told[violation.invariant] = told.get(violation.invariant, 0) + violation.pages
    return {
        "outcome": cell.status,
        "allocations": len(cell.after.allocations),
        "failed_checks": list(cell.failed_checks),
        "findings": [f"{check} ({pages} pages)" for check, pages in told.items()],
        "kernel_lines": list(cell.after.log.kernel_lines),
    }
