# SPDX-License-Identifier: GPL-2.0-or-later
"""Document and text of the remains of images that a scan found."""

from __future__ import annotations

from hibernaut.report.documents import OrphanMapDocument, RemainsDocument
from hibernaut.report.text import counted, size_text
from hibernaut.swsusp.salvage import Remains

__all__ = ["remains_document", "remains_text"]

MOST_LINES = 40
"""Runs of units and other remains that text lists; the document lists all."""


def remains_document(remains: Remains) -> RemainsDocument:
    """Return the document of a scan."""
    return {
        "blocks": remains.blocks,
        "maps": [
            {
                "first_block": one.first_block,
                "map_pages": one.map_pages,
                "ended": one.ended,
                "entries": one.entries,
                "named": one.named,
                "info_block": one.info.block if one.info else None,
                "cr3": f"{one.info.info.cr3:#x}" if one.info else None,
                "pages": one.info.info.pages if one.info else None,
                "whole_units": one.whole_units,
            }
            for one in remains.maps
        ],
        "info_pages": [
            {
                "block": one.block,
                "cr3": f"{one.info.cr3:#x}",
                "pages": one.info.pages,
                "image_pages": one.info.image_pages,
            }
            for one in remains.infos
        ],
        "runs": [
            {
                "block": one.block,
                "end_block": one.end_block,
                "units": one.units,
                "compressor": one.compressor,
                "lists": one.lists,
            }
            for one in remains.runs
        ],
        "lists": [
            {
                "block": one.block,
                "pages": one.pages,
                "first_pfn": f"{one.first_pfn:#x}",
                "last_pfn": f"{one.last_pfn:#x}",
            }
            for one in remains.lists
        ],
    }


def remains_text(document: RemainsDocument) -> str:
    """Return the swap maps with the options that open their images, then everything that belongs to none of them."""
    lines = [f"{counted(document['blocks'], 'block')} scanned ({size_text(document['blocks'] * 4096)})"]
    for one in document["maps"]:
        lines += _map_lines(one)
    others = [
        f"info page    block {one['block']}: of {counted(one['pages'], 'page')}, CR3 {one['cr3']}; no swap map lists it"
        for one in document["info_pages"]
    ]
    for run in document["runs"]:
        lists = f", {run['lists']} with a part of a list of frames" if run["lists"] else ""
        what = f"{counted(run['units'], 'unit')} ({run['compressor']}){lists}; no swap map lists them"
        others.append(f"units        blocks {run['block']} to {run['end_block'] - 1}: {what}")
    others += [
        f"frame list   blocks {one['block']} to {one['block'] + one['pages'] - 1}: frames {one['first_pfn']} to "
        f"{one['last_pfn']}, if they are frames"
        for one in document["lists"]
    ]
    lines += others[:MOST_LINES]
    if len(others) > MOST_LINES:
        lines.append(f"and {len(others) - MOST_LINES} more: JSON lists all")
    if len(lines) == 1:
        lines.append("no remains of an image")
    return "\n".join(lines)


def _map_lines(one: OrphanMapDocument) -> list[str]:
    """Return the line of a swap map, and the option that opens it if its image begins there."""
    parts = [
        f"{counted(one['map_pages'], 'page')} linked, {'to the end' if one['ended'] else 'the end is lost'}",
        f"{one['entries']} entries",
        f"{counted(one['whole_units'], 'whole unit')}",
        "the header names it" if one["named"] else "no header names it",
    ]
    lines = [f"swap map     from block {one['first_block']}: {', '.join(parts)}"]
    if one["info_block"] is None:
        lines.append(
            "             its first entry is not an info page: the map begins elsewhere, or that is overwritten"
        )
    else:
        pages = counted(one["pages"] or 0, "page")
        lines.append(f"             info page at block {one['info_block']}: {pages}, CR3 {one['cr3']}")
        lines.append(f"             open with: --map-block {one['first_block']}")
    return lines
