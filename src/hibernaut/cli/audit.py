# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut audit SOURCE`: would hibernation save every page of this machine, today and through a fixmap slot?"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import typer

from hibernaut.cli.common import JsonOption, QuietOption, RulesOption, SourceArgument, console, print_json
from hibernaut.cli.source_machine import MachineOptions, machine_in
from hibernaut.hibernation.audit import Audit, audit
from hibernaut.kernel_line import RulesFrom
from hibernaut.linux import Machine
from hibernaut.report.text import audit_text

__all__ = ["audit_"]

SHOWN_RUNS = 3
SHOWN_SPLITS = 20


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
        document = _document(found, machine, rules_from)
    if json:
        print_json(document)
    elif not quiet:
        console().print(audit_text(document))
    if not found.safe_today:
        raise typer.Exit(1)


def _document(found: Audit, machine: Machine, rules_from: RulesFrom) -> dict[str, Any]:
    return {
        "rules": machine.rules.line,
        "rules_from": rules_from,
        "saveable_pages": found.saveable_pages,
        "refused": found.refused,
        "classes": [
            {
                "name": one.name,
                "pages": one.frames.total_pages,
                "first": [
                    {"start_pfn": f"{start:#x}", "pages": pages}
                    for start, pages in zip(
                        one.frames.starts[:SHOWN_RUNS].tolist(), one.frames.pages[:SHOWN_RUNS].tolist(), strict=True
                    )
                ],
                "more": len(one.frames) > SHOWN_RUNS,
                "today": one.today,
                "fixmap": one.fixmap,
                "today_bad": one.today_bad,
                "fixmap_bad": one.fixmap_bad,
            }
            for one in found.classes
        ],
        "allocations": found.allocations,
        "splits": [
            {
                "start_pfn": f"{split.start_pfn:#x}",
                "level": split.level.size,
                "first_pfn": f"{split.first_pfn:#x}",
                "pages": split.pages,
                "table_pfn": f"{split.table_pfn:#x}",
                "order": str(split.order),
                "allocations": split.allocations,
            }
            for split in found.splits[:SHOWN_SPLITS]
        ],
        "more_splits": max(0, len(found.splits) - SHOWN_SPLITS),
        "safe_today": found.safe_today,
        "safe_by_fixmap": found.safe_by_fixmap,
    }
