# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut walk SOURCE VADDR`: one address through the page tables."""

from __future__ import annotations

from typing import Annotated

import typer

from hibernaut.cli.common import (
    BaseOption,
    Cr3Option,
    JsonOption,
    LevelsOption,
    OffsetOption,
    PartitionOption,
    QuietOption,
    SourceArgument,
    console,
    direct_map_of,
    number,
    paging_of,
    print_json,
)
from hibernaut.paging.tables import PageTables
from hibernaut.report.page_tables import walk_document
from hibernaut.report.text import walk_text
from hibernaut.sources import open_memory

__all__ = ["walk"]


def walk(
    source: SourceArgument,
    vaddr: Annotated[int, typer.Argument(parser=number, metavar="VADDR", help="A virtual address, 0x...")],
    cr3: Cr3Option = None,
    levels: LevelsOption = None,
    offset: OffsetOption = 0,
    partition: PartitionOption = None,
    base: BaseOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show every table entry that the CPU meets on the way to an address."""
    with open_memory(source, offset=offset, partition=partition, base=base) as opened:
        root, known_levels = paging_of(opened, cr3, levels)
        if known_levels is None:
            known_levels = direct_map_of(opened, root, None).levels
        found = PageTables(opened.memory, root, known_levels).walk(vaddr)
    document = walk_document(found, known_levels)
    if json:
        print_json(document)
    elif not quiet:
        console().print(walk_text(document))
