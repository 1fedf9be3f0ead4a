# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut audit SOURCE`: whether hibernation would save every page, today and through a fixmap slot."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

import typer

from hibernaut.cli.options import MachineOptions, OutputOptions, RulesOption, SourceArgument
from hibernaut.cli.picture_options import PictureOptions
from hibernaut.cli.salvage_options import SalvageOptions
from hibernaut.errors import HibernautError
from hibernaut.hibernation.audit import audit
from hibernaut.hibernation.depletion import Depletion, depletion_in
from hibernaut.hibernation.machine_in_source import MachineInSource
from hibernaut.report.machines import audit_document
from hibernaut.report.text import audit_text

__all__ = ["audit_"]

DriverPagesOption = Annotated[
    int,
    typer.Option(
        min=0,
        max=1 << 40,
        metavar="PAGES",
        help="Pages that drivers allocate before the copy, for a machine that does not hibernate yet. Default: 0.",
    ),
]


def audit_(
    source: SourceArgument,
    options: MachineOptions,
    salvage: SalvageOptions,
    output: OutputOptions,
    drawn: PictureOptions,
    rules: RulesOption = None,
    driver_pages: DriverPagesOption = 0,
) -> None:
    """Tell whether hibernation would save every page of a machine, without copying anything.

    One line for each class of pages by what the direct map has for them; the pages for tables that a copy would
    allocate, and the place of the tables, which decides whether the image is consistent; and the number of splits for
    which the kernel has a page, by its own counts, which needs its types (BTF) and the extra `drgn`.

    The exit status is 0 if today's kernel would save all of them whatever fails, else 1; and 1 for a damaged or used-up
    image that is not whole.
    """
    drawn.check(output)
    with ExitStack() as stack:
        opened = stack.enter_context(salvage.open_memory(options, source, output.quiet))
        found = options.machine(stack, source, rules, output.quiet, opened)
        result = audit(found.machine)
        depletion, reason = _depletion(found, driver_pages)
        document = audit_document(result, found, depletion, reason)
        drawn.draw(found.source, found.paging, output)
    output.answer(document, audit_text)
    if not result.safe_today:
        raise typer.Exit(1)
    salvage.exit_unless_whole(opened)


def _depletion(found: MachineInSource, drivers_pages: int) -> tuple[Depletion | None, str | None]:
    """Return the splits that find a page, or the reason why this is not known."""
    try:
        return depletion_in(found, drivers_pages=drivers_pages), None
    except HibernautError as error:
        return None, str(error)
