# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut audit SOURCE`: would hibernation save every page of this machine, today and through a fixmap slot?"""

from __future__ import annotations

from contextlib import ExitStack

import typer

from hibernaut.cli.common import JsonOption, QuietOption, RulesOption, SourceArgument, console, print_json
from hibernaut.cli.source_machine import MachineOptions, machine_in
from hibernaut.hibernation.audit import audit
from hibernaut.report.machines import audit_document
from hibernaut.report.text import audit_text

__all__ = ["audit_"]


def audit_(
    source: SourceArgument,
    options: MachineOptions,
    rules: RulesOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Say whether hibernation would save every page of a machine, without copying anything.

    One line for each class of page by what the direct map has for it; the pages for tables that a copy would allocate,
    and where the tables lie, which decides whether the image is consistent. The list of pages is that of --pages-from,
    of the kernel in a dump (stopped in swsusp_save; needs drgn), or every frame that the direct map speaks of. The exit
    status is 0 if today's kernel would save all of them whatever fails, else 1.
    """
    with ExitStack() as stack:
        machine, rules_from = machine_in(stack, source, options, rules, quiet)
        found = audit(machine)
        document = audit_document(found, machine, rules_from)
    if json:
        print_json(document)
    elif not quiet:
        console().print(audit_text(document))
    if not found.safe_today:
        raise typer.Exit(1)
