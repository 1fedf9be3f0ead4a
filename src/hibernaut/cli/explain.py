# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut explain`: the mailing list's question, answered by running every branch of it."""

from __future__ import annotations

from hibernaut.cli.common import JsonOption, QuietOption, RulesOption, console, print_json
from hibernaut.linux.rules import LINES
from hibernaut.report.documents import ExplainDocument
from hibernaut.report.machines import run_document
from hibernaut.report.text import explain_text
from hibernaut.studies.explain import QUESTION, explain

__all__ = ["explain_"]


def explain_(rules: RulesOption = None, json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Answer what the mailing list asked of saving an unmapped page: every branch, in words and by a run."""
    document: ExplainDocument = {
        "question": QUESTION,
        "rules": (rules or LINES[0]).line,
        "branches": [
            {
                "title": branch.title,
                "path": list(branch.path),
                "today": run_document(branch.today),
                "fixmap": run_document(branch.fixmap),
            }
            for branch in explain(rules)
        ],
    }
    if json:
        print_json(document)
    elif not quiet:
        console().print(explain_text(document))
