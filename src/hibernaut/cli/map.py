# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut map SOURCE`: the direct map of a machine, and its holes."""

from __future__ import annotations

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
    print_json,
)
from hibernaut.report.page_tables import map_document
from hibernaut.report.text import map_text
from hibernaut.sources import open_memory

__all__ = ["map_"]


def map_(
    source: SourceArgument,
    cr3: Cr3Option = None,
    levels: LevelsOption = None,
    offset: OffsetOption = 0,
    partition: PartitionOption = None,
    base: BaseOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show the direct map of a dump or an image: where it is, what is present by which size, every hole."""
    with open_memory(source, offset=offset, partition=partition, base=base) as opened:
        document = map_document(direct_map_of(opened, cr3, levels))
    if json:
        print_json(document)
    elif not quiet:
        console().print(map_text(document))
