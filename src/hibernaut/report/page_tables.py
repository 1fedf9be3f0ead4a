# SPDX-License-Identifier: GPL-2.0-or-later
"""Documents of page tables: the direct map, and the walk to an address."""

from __future__ import annotations

from hibernaut.linux.direct_map import DirectMap
from hibernaut.paging.entries import entry_flags
from hibernaut.paging.tables import Walk
from hibernaut.report.documents import MapDocument, WalkDocument
from hibernaut.report.text import hex_or_none

__all__ = ["map_document", "walk_document"]


def map_document(found: DirectMap) -> MapDocument:
    """Return the document of a direct map."""
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


def walk_document(found: Walk, levels: int) -> WalkDocument:
    """Return the document of a walk with 4 or 5 levels of paging."""
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
