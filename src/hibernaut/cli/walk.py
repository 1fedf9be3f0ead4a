# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut walk SOURCE VADDR`: one address through the page tables."""

from __future__ import annotations

from typing import Annotated, Any

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
    hex_or_none,
    number,
    paging_of,
    print_json,
)
from hibernaut.paging.entries import entry_flags
from hibernaut.paging.tables import PageTables, Walk
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
    document = _document(found, known_levels)
    if json:
        print_json(document)
    elif not quiet:
        console().print(walk_text(document))


def _document(found: Walk, levels: int) -> dict[str, Any]:
    return {
        "vaddr": f"{found.vaddr:#x}",
        "levels": [
            {
                "level": step.level.name_of(levels),
                "table_pfn": f"{step.table_pfn:#x}",
                "index": step.index,
                "entry": f"{step.entry:#x}",
                "flags": entry_flags(step.entry, step.level),
            }
            for step in found.steps
        ],
        "stop": str(found.stop),
        "pfn": hex_or_none(found.pfn),
        "paddr": hex_or_none(found.paddr),
        "effective": {"rw": found.rw, "nx": found.nx, "user": found.user},
    }
