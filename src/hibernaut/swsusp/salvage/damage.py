# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of a damaged image that cannot be read, with their places and reasons."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from hibernaut.errors import CorruptImage
from hibernaut.memory.page import BoolArray
from hibernaut.swsusp.declarations import UNIT_BYTES, UNIT_PAGES
from hibernaut.swsusp.salvage.loose_map import UNKNOWN
from hibernaut.swsusp.salvage.rows import PlainRows
from hibernaut.swsusp.salvage.units import Gap, NumberedUnits, UnitSearch

__all__ = ["OUT_OF_ORDER", "LostPart", "lost_rows", "lost_units"]

OUT_OF_ORDER = "decompresses to frames that are out of order"


@dataclass(frozen=True)
class LostPart:
    """Neighbouring units that cannot be read or placed, or rows of an image that is not compressed.

    Attributes:
        first_unit: number of the first unit; None if it is not known, or the image is not compressed.
        units: number of units; None likewise.
        first_row: first row of the stream; None if it is not known.
        rows: number of rows; None if it is not known.
        block: block at which the first unit or row begins; None if it is not known.
        what: what is wrong.
    """

    first_unit: int | None
    units: int | None
    first_row: int | None
    rows: int | None
    block: int | None
    what: str


def lost_units(
    search: UnitSearch, numbered: NumberedUnits, stream_pages: int | None, bad_lists: list[int]
) -> tuple[LostPart, ...]:
    """Return the units that do not decompress, have no number, or hold no list where one must be; neighbours merged.

    Args:
        search: reader of the units.
        numbered: the units that decompress.
        stream_pages: number of rows of the stream; None if it is not known.
        bad_lists: numbers of units that hold meta pages, and no list of frames.
    """
    parts = [part for gap in numbered.gaps for part in _of_gap(search, numbered, gap)]
    number, found = numbered.number, numbered.found
    for unit in bad_lists:
        entry = int(found.entry[np.flatnonzero(number == unit)[0]])
        parts.append(LostPart(unit, 1, None, None, _block(search, entry), OUT_OF_ORDER))
    unplaced = np.flatnonzero(number == UNKNOWN)
    for run in np.split(unplaced, np.flatnonzero(np.diff(unplaced) > 1) + 1) if len(unplaced) else ():
        block = _block(search, int(found.entry[run[0]]))
        parts.append(LostPart(None, len(run), None, None, block, "decompresses, but its number is not certain"))
    merged: list[LostPart] = []
    for part in sorted(parts, key=lambda one: (one.first_unit is None, one.first_unit or 0)):
        last = merged[-1] if merged else None
        if last and part.units and last.what == part.what and _follows(last, part):
            merged[-1] = replace(last, units=(last.units or 0) + part.units)
        else:
            merged.append(part)
    return tuple(_with_rows(part, stream_pages) for part in merged)


def _follows(last: LostPart, part: LostPart) -> bool:
    return None not in (last.first_unit, last.units) and last.first_unit + last.units == part.first_unit  # type: ignore[operator]


def _with_rows(part: LostPart, stream_pages: int | None) -> LostPart:
    if part.first_unit is None:
        return replace(part, rows=None if part.units is None else part.units * UNIT_PAGES)
    first = part.first_unit * UNIT_PAGES
    if part.units is None:
        return replace(part, first_row=first, rows=None if stream_pages is None else stream_pages - first)
    rows = part.units * UNIT_PAGES
    return replace(part, first_row=first, rows=rows if stream_pages is None else min(rows, stream_pages - first))


def _of_gap(search: UnitSearch, numbered: NumberedUnits, gap: Gap) -> Iterator[LostPart]:
    """Yield the units of a gap: one by one as far as their lengths lead, then the rest."""
    number = numbered.number
    before = int(number[gap.follows - 1]) if gap.follows else -1
    first = before + 1 if not gap.follows or before >= 0 else None
    after = int(number[gap.follows]) if gap.follows < len(number) else (numbered.total or UNKNOWN)
    count = len(gap.starts) if gap.exact else (after - first if first is not None and after >= 0 else None)
    if first is None and after >= 0 and count is not None:
        first = after - count
    known = gap.starts if gap.exact else gap.starts[: max(0, min(len(gap.starts), (count or len(gap.starts))) - 1)]
    for place, entry in enumerate(known):
        what = _reason(search, entry)
        yield LostPart(None if first is None else first + place, 1, None, None, _block(search, entry), what)
    if not gap.exact and (count is None or count > len(known)):
        entry = gap.starts[len(known)] if len(known) < len(gap.starts) else gap.entry
        rest = None if count is None else count - len(known)
        block = _block(search, entry) if entry < len(search.entries) else None
        begin = None if first is None else first + len(known)
        reason = _reason(search, entry)
        yield LostPart(begin, rest, None, None, block, reason if rest == 1 else f"the first {reason}")


def _reason(search: UnitSearch, entry: int) -> str:
    """Return what is wrong with the unit that must begin at an entry."""
    if entry >= len(search.entries):
        return "is behind the end of the swap map that could be read"
    block = int(search.entries[entry])
    if block < 0:
        return "begins at an entry of the swap map that is lost"
    if block >= search.area_blocks:
        return "is behind the end of the file"
    length = search.length_at(entry)
    if not length:
        return "has no valid length"
    try:
        size_bytes = search.read(entry, length, np.empty(UNIT_BYTES, dtype=np.uint8))
    except (ValueError, CorruptImage) as error:
        return str(error).removeprefix("it ")
    return f"decompresses to {size_bytes} bytes, which only the last unit can"


def _block(search: UnitSearch, entry: int) -> int | None:
    block = int(search.entries[entry]) if entry < len(search.entries) else UNKNOWN
    return None if block < 0 else block


def lost_rows(rows: PlainRows) -> tuple[LostPart, ...]:
    """Return the rows of an image that is not compressed that cannot be read, neighbours merged."""
    lost: BoolArray = ~rows.known
    blocks = rows.blocks
    what = np.where(blocks < 0, 0, np.where(blocks >= rows.area.blocks, 1, 2))
    texts = (
        "has its block in a part of the swap map that is lost",
        "is behind the end of the file",
        "has a block in the swap map that is out of order, or used twice",
    )
    edges = np.flatnonzero(np.diff(np.where(lost, what, -1))) + 1
    parts = []
    for first, end in zip([0, *edges.tolist()], [*edges.tolist(), len(lost)], strict=True):
        if first < end and lost[first]:
            block = int(blocks[first])
            parts.append(
                LostPart(None, None, first, end - first, None if block < 0 else block, texts[int(what[first])])
            )
    return tuple(parts)
