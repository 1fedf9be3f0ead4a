# SPDX-License-Identifier: GPL-2.0-or-later
"""Documents of page tables: the direct map, and the walk to an address."""

from __future__ import annotations

from hibernaut.linux.direct_map import DirectMap
from hibernaut.linux.not_present import NotPresent, swap_flags
from hibernaut.linux.source_tables import Paging
from hibernaut.paging.entries import entry_flags
from hibernaut.paging.tables import PageTables, Step, Walk
from hibernaut.report.documents import GapDocument, MapDocument, NotPresentDocument, WalkDocument
from hibernaut.report.text import hex_or_none
from hibernaut.sources import Source

__all__ = ["gap_documents", "map_document", "walk_document"]


LISTED = 10_000
"""Most holes, and most wrong entries, that are listed."""


def gap_documents(source: Source) -> list[GapDocument]:
    """Return the documents of the gaps that were put back into raw memory."""
    return [{"start": f"{gap.start:#x}", "size_bytes": gap.size_bytes} for gap in source.gaps]


def map_document(found: DirectMap, paging: Paging, source: Source) -> MapDocument:
    """Return the document of a direct map.

    Args:
        found: the direct map.
        paging: the page tables that it is in.
        source: the memory.
    """
    holes, nr_holes = found.first_holes(LISTED)
    mismatches, nr_mismatches = found.first_mismatches(LISTED)
    return {
        "remarks": [*source.remarks, *paging.remarks],
        "gaps": gap_documents(source),
        "gaps_from": source.gaps_from,
        "levels": found.levels,
        "cr3": f"{found.cr3:#x}",
        "root_from": paging.origin,
        "encryption_mask": hex_or_none(paging.encryption or None),
        "encryption_from": paging.encryption_from,
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
                "plain": hole.plain,
                "in_source": hole.in_source,
            }
            for hole in holes
        ],
        "more_holes": nr_holes - len(holes),
        "mismatches": [
            {
                "start_pfn": f"{wrong.start_pfn:#x}",
                "pages": wrong.pages,
                "level": wrong.level.size,
                "entry": f"{wrong.entry:#x}",
                "found_pfn": f"{wrong.found_pfn:#x}",
            }
            for wrong in mismatches
        ],
        "more_mismatches": nr_mismatches - len(mismatches),
    }


def walk_document(found: Walk, tables: PageTables, source: Source, meaning: NotPresent | None = None) -> WalkDocument:
    """Return the document of a walk through page tables, and the meaning of its last entry if not present."""
    pfn = found.pfn
    if meaning is not None:
        pfn = meaning.frames[0].pfn if len(meaning.frames) == 1 else None
    return {
        "vaddr": f"{found.vaddr:#x}",
        "levels": [
            {
                "level": step.level.name_of(tables.levels),
                "table_pfn": f"{step.table_pfn:#x}",
                "index": step.index,
                "entry": f"{step.entry:#x}",
                "flags": _flags(step, meaning if step is found.steps[-1] else None, tables.encryption),
            }
            for step in found.steps
        ],
        "stop": str(found.stop),
        "pfn": hex_or_none(pfn),
        "paddr": hex_or_none(found.paddr),
        "effective": {"rw": found.rw, "nx": found.nx, "user": found.user},
        "not_present": None if meaning is None else _not_present(meaning),
        "gaps": gap_documents(source),
        "gaps_from": source.gaps_from,
    }


def _flags(step: Step, meaning: NotPresent | None, encryption: int) -> list[str]:
    """Return the flags of an entry; a swap entry has others, and keeps its type and offset in the upper bits."""
    if meaning is None or not meaning.slots:
        return entry_flags(step.entry, step.level) + ["ENCRYPTED"] * bool(step.entry & encryption)
    return swap_flags(step.entry) if meaning.slots[0].inverted else []


def _not_present(meaning: NotPresent) -> NotPresentDocument:
    return {
        "kind": str(meaning.kind),
        "frames": [{"pfn": f"{one.pfn:#x}", "inverted": one.inverted} for one in meaning.frames],
        "slots": [{"area": one.area, "slot": f"{one.slot:#x}", "inverted": one.inverted} for one in meaning.slots],
    }
