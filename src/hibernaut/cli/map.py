# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut map SOURCE`: the direct map of a machine, and its holes."""

from __future__ import annotations

from typing import Any

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
from hibernaut.linux.direct_map import DirectMap
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
        document = _document(direct_map_of(opened, cr3, levels))
    if json:
        print_json(document)
    elif not quiet:
        console().print(map_text(document))


def _document(found: DirectMap) -> dict[str, Any]:
    return {
        "levels": found.levels,
        "cr3": f"{found.cr3:#x}",
        "base": f"{found.base:#x}",
        "end_pfn": f"{found.end_pfn:#x}",
        "present_bytes": found.present_bytes,
        "holes": [
            {
                "start_pfn": f"{hole.start_pfn:#x}",
                "pages": hole.pages,
                "level": hole.level.size,
                "kind": str(hole.kind),
                "entry": f"{hole.entry:#x}",
                "in_source": hole.in_source,
            }
            for hole in found.holes
        ],
        "mismatches": [
            {
                "start_pfn": f"{wrong.start_pfn:#x}",
                "pages": wrong.pages,
                "level": wrong.level.size,
                "entry": f"{wrong.entry:#x}",
                "found_pfn": f"{wrong.found_pfn:#x}",
            }
            for wrong in found.mismatches
        ],
    }
