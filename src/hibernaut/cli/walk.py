# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut walk SOURCE VADDR`: one address through the page tables."""

from __future__ import annotations

from typing import Annotated

import typer

from hibernaut.cli.options import MemoryOptions, OutputOptions, SourceArgument, number
from hibernaut.cli.salvage_options import SalvageOptions
from hibernaut.linux.not_present import meaning_of
from hibernaut.linux.source_tables import page_tables_under
from hibernaut.report.page_tables import walk_document
from hibernaut.report.text import walk_text

__all__ = ["walk"]


def walk(
    source: SourceArgument,
    vaddr: Annotated[
        int, typer.Argument(parser=number, metavar="VADDR", help="Virtual address: decimal, or hexadecimal with 0x.")
    ],
    options: MemoryOptions,
    salvage: SalvageOptions,
    output: OutputOptions,
) -> None:
    """Show every table entry that the CPU reads on the way to an address."""
    with salvage.open_memory(options, source, output.quiet) as opened:
        paging = options.find_paging(opened, output.quiet, any_root=True)
        tables = page_tables_under(opened, paging)
        found = tables.walk(vaddr)
        document = walk_document(found, tables, paging.source or opened, meaning_of(tables, found))
    output.answer(document, walk_text)
    salvage.exit_unless_whole(opened)
