# SPDX-License-Identifier: GPL-2.0-or-later
"""Documents and text of damaged and used-up images."""

from __future__ import annotations

from collections.abc import Iterator

from hibernaut.report.documents import (
    ConvertDocument,
    InspectDocument,
    LostPartDocument,
    MountDocument,
    SalvageDocument,
)
from hibernaut.report.images import inspect_document
from hibernaut.report.text import counted, inspection_text
from hibernaut.swsusp.salvage import SalvagedImage

__all__ = [
    "lost_part_name",
    "salvage_document",
    "salvage_lines",
    "salvage_state",
    "salvaged_inspect_document",
    "salvaged_inspection_text",
]

MOST_LINES = 20
"""Parts, and ranges of frames, that text lists; documents list all."""


def salvaged_inspect_document(image: SalvagedImage, offset: int) -> InspectDocument:
    """Return the document of `inspect` of a damaged or used-up image."""
    units = image.units
    document = inspect_document(image.inspection, offset)
    known = image.listed is not None and len(image.pfns) + image.missing.total_pages == image.listed
    zero_pages = int(image.zero.sum()) if known else None
    document["saved_pages"] = image.listed
    document["zero_pages"] = zero_pages
    document["stored_pages"] = None if zero_pages is None or image.listed is None else image.listed - zero_pages
    document["meta_pages"] = image.meta_pages
    document["map_pages"] = len(image.swap_map.map_blocks)
    document["units"] = units.total if units else 0
    all_units = units is not None and len(units.found) == units.total
    document["compressed_bytes"] = (
        0 if units is None else int(units.found.compressed_bytes.sum()) if all_units else None
    )
    document["salvage"] = salvage_document(image)
    return document


def salvage_document(image: SalvagedImage) -> SalvageDocument:
    """Return the document of the parts of an image that can be read, and of those that cannot."""
    units = image.units
    return {
        "used_up": image.used_up,
        "whole": image.whole,
        "findings": list(image.findings),
        "units": units.total if units else None,
        "whole_units": len(units.found) if units else None,
        "lost": [
            {
                "first_unit": part.first_unit,
                "units": part.units,
                "first_row": part.first_row,
                "rows": part.rows,
                "block": part.block,
                "what": part.what,
            }
            for part in image.damage
        ],
        "readable_pages": len(image.pfns),
        "missing_pages": image.missing.total_pages,
        "missing": [{"start_pfn": f"{start:#x}", "pages": pages} for start, pages in image.missing],
        "unlisted_pages": None if image.listed is None else image.listed - len(image.pfns) - image.missing.total_pages,
        "unplaced_pages": image.unplaced_pages,
        "problems": [{"what": problem.what, "where": problem.where} for problem in image.problems],
    }


def salvaged_inspection_text(document: InspectDocument) -> str:
    """Return the text of `inspect` of a damaged or used-up image."""
    *lines, _ = inspection_text(document).splitlines()
    salvage = document["salvage"]
    lines += [f"FINDING  {finding}" for finding in salvage["findings"]]
    lines += salvage_lines(document)
    state = _state(salvage["whole"], salvage["used_up"], salvage["readable_pages"], document["saved_pages"])
    return "\n".join([*lines, f"image is {state}"])


def salvage_state(image: SalvagedImage) -> str:
    """Return the state of an image in a few words."""
    return _state(image.whole, image.used_up, len(image.pfns), image.listed)


def _state(whole: bool, used_up: bool, readable_pages: int, saved_pages: int | None) -> str:
    if whole:
        return "used up, and whole" if used_up else "intact"
    state = "used up" if used_up else "damaged"
    if saved_pages == readable_pages:
        return f"{state}; all {saved_pages} frames can be read"
    total = "an unknown number of" if saved_pages is None else saved_pages
    return f"{state}; {readable_pages} of {total} frames can be read"


def salvage_lines(document: InspectDocument | ConvertDocument | MountDocument) -> list[str]:
    """Return a line for each part that is lost, and for each range of frames that is missing; none for other memory."""
    if "salvage" not in document:
        return []
    salvage = document["salvage"]
    return [*_limited("LOST", _lost(salvage)), *_limited("MISSING", _missing(salvage))]


def _lost(document: SalvageDocument) -> Iterator[str]:
    for part in document["lost"]:
        place = "" if part["block"] is None else f" at block {part['block']}"
        yield f"{lost_part_name(part)}{place}: {part['what']}"


def lost_part_name(part: LostPartDocument) -> str:
    """Return the name of a part that is lost: "unit 3", "units 4 to 9", "row 5", "3 units"."""
    if part["first_unit"] is None and part["units"] is None and part["first_row"] is not None:
        return _span("row", part["first_row"], part["rows"])
    if part["first_unit"] is None:
        return "units" if part["units"] is None else counted(part["units"], "unit")
    return _span("unit", part["first_unit"], part["units"])


def _span(noun: str, first: int, count: int | None) -> str:
    if count == 1:
        return f"{noun} {first}"
    return f"{noun}s from {first} on" if count is None else f"{noun}s {first} to {first + count - 1}"


def _missing(document: SalvageDocument) -> Iterator[str]:
    for run in document["missing"]:
        first, pages = int(run["start_pfn"], 16), run["pages"]
        yield f"frame {first:#x}" if pages == 1 else f"frames {first:#x} to {first + pages - 1:#x}"


def _limited(head: str, texts: Iterator[str]) -> Iterator[str]:
    for number, text in enumerate(texts):
        if number == MOST_LINES:
            yield f"{head}  and more: JSON lists all"
            return
        yield f"{head}  {text}"
