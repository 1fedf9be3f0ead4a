# SPDX-License-Identifier: GPL-2.0-or-later
"""The splits in the copy that a kernel has a page for: documents and text of `audit` and `lab depletion`."""

from __future__ import annotations

from hibernaut.hibernation.depletion import Depletion
from hibernaut.report.documents import DepletedGuestDocument, DepletionDocument
from hibernaut.report.text import counted, depletion_span
from hibernaut.report.visible import visible

__all__ = ["depleted_text", "depletion_document"]


def depletion_document(found: Depletion, splits: int) -> DepletionDocument:
    """Return the document of a prediction, for a machine with so many splits."""
    return {
        "when": found.when,
        "image_pages": found.image_pages,
        "free_pages": found.free_pages,
        "kept_pages": found.kept_pages,
        "least": found.least,
        "most": found.most,
        "floor_pages": found.floor_pages,
        "cached_pages": found.cached_pages,
        "drivers_pages": found.drivers_pages,
        "suffices": found.suffices_for(splits),
    }


def depleted_text(document: DepletedGuestDocument) -> str:
    """Return the text of the document of `lab depletion`."""
    before, copy = document["before"], document["in_copy"]
    lines = [
        f"kernel     {document['release']}",
        f"blocks     {document['blocks']} of 2 MiB out of the direct map, one page of each to save",
        f"drivers    {counted(before['drivers_pages'], 'page')} taken while devices are frozen",
        f"predicted  {depletion_span(before)} before it hibernated, {depletion_span(copy)} at the copy",
        f"served     {document['served']} splits without reclaim, {document['splits']} in all"
        if document["splits"] or document["failed"]
        else "served     no split: this kernel copies without",
    ]
    if document["failed"]:
        lines.append("failed     an allocation, with nothing injected")
    if document["interrupts"]:
        lines.append("reclaimed  in the copy, which continued with interrupts enabled")
    reason = f": {visible(document['reason'])}" if document["reason"] else ""
    lines.append(f"outcome    {document['outcome']}{reason}")
    if document["resumed"] is not None:
        lines.append(f"resumed    {visible(document['resumed'])}")
    return "\n".join([*lines, "as predicted" if document["as_predicted"] else "NOT as predicted"])
