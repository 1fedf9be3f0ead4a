# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut audit SOURCE`: whether hibernation would save every page, today and through a fixmap slot."""

from __future__ import annotations

from contextlib import ExitStack

import typer

from hibernaut.cli.options import MachineOptions, OutputOptions, RulesOption, SourceArgument
from hibernaut.cli.picture_options import PictureOptions
from hibernaut.cli.salvage_options import SalvageOptions
from hibernaut.hibernation.audit import audit
from hibernaut.report.machines import audit_document
from hibernaut.report.text import audit_text

__all__ = ["audit_"]


def audit_(
    source: SourceArgument,
    options: MachineOptions,
    salvage: SalvageOptions,
    output: OutputOptions,
    drawn: PictureOptions,
    rules: RulesOption = None,
) -> None:
    """Tell whether hibernation would save every page of a machine, without copying anything.

    One line for each class of pages by what the direct map has for them; the pages for tables that a copy would
    allocate, and the place of the tables, which decides whether the image is consistent.

    The exit status is 0 if today's kernel would save all of them whatever fails, else 1; and 1 for a damaged or used-up
    image that is not whole.
    """
    drawn.check(output)
    with ExitStack() as stack:
        opened = stack.enter_context(salvage.open_memory(options, source, output.quiet))
        found = options.machine(stack, source, rules, output.quiet, opened)
        result = audit(found.machine)
        document = audit_document(result, found)
        drawn.draw(found.source, found.paging, output)
    output.answer(document, audit_text)
    if not result.safe_today:
        raise typer.Exit(1)
    salvage.exit_unless_whole(opened)
