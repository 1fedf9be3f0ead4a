# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut explain`: the mailing list's question, answered by running every branch of it."""

from __future__ import annotations

from hibernaut.cli.options import OutputOptions, SimulatedRulesOption
from hibernaut.linux.rules import LINES
from hibernaut.report.machines import explain_document
from hibernaut.report.text import explain_text
from hibernaut.studies.explain import explain

__all__ = ["explain_"]


def explain_(output: OutputOptions, rules: SimulatedRulesOption = None) -> None:
    """Answer the mailing list's question about saving an unmapped page: every branch, in words and by a run."""
    output.answer(explain_document(explain(rules), (rules or LINES[0]).line), explain_text)
