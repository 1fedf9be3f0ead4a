# SPDX-License-Identifier: GPL-2.0-or-later
"""A damaged or used-up image, read as far as it goes: the frames that can still be read, and everything that cannot."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hibernaut.errors import FormatError
from hibernaut.memory.page import PAGE_SIZE, BoolArray, Bytes, Pfns
from hibernaut.memory.ranges import FrameRanges
from hibernaut.swsusp.architecture import refuse_foreign
from hibernaut.swsusp.area import SwapArea, locate_area
from hibernaut.swsusp.checker import Inspection, Problem
from hibernaut.swsusp.codecs import COMPRESSORS, CompressorName, codec_named
from hibernaut.swsusp.declarations import PFNS_PER_META_PAGE, UNIT_PAGES
from hibernaut.swsusp.header import SwapHeader
from hibernaut.swsusp.image_parts import ImageBlocks, ReadUnits
from hibernaut.swsusp.info import ImageInfo
from hibernaut.swsusp.pfns import begins_a_list
from hibernaut.swsusp.salvage.damage import OUT_OF_ORDER, LostPart, lost_rows, lost_units
from hibernaut.swsusp.salvage.fragments import map_fragments
from hibernaut.swsusp.salvage.loose_header import loose_counts, loose_header, loose_info
from hibernaut.swsusp.salvage.loose_list import (
    LooseList,
    contradicting_groups,
    list_end,
    list_is_credible,
    read_loose_list,
)
from hibernaut.swsusp.salvage.loose_map import UNKNOWN, LooseMap, read_loose_map
from hibernaut.swsusp.salvage.rows import PlainRows, Rows, UnitRows, plain_rows, unit_rows
from hibernaut.swsusp.salvage.units import NumberedUnits, UnitSearch, last_unit_bytes, number_units
from hibernaut.swsusp.stream import Crc
from hibernaut.volumes.closing import Closing
from hibernaut.volumes.files import open_plain
from hibernaut.volumes.volume import Volume, close_volume

__all__ = ["SalvagedImage", "salvage_image"]

Progress = Callable[[int], None]
TRIED_UNITS = 4
"""Units that a compressor must decompress to be taken for the image's, where the flags name another."""


@dataclass(frozen=True, eq=False)
class SalvagedImage(Closing):
    """An image as far as it can be read.

    Attributes:
        area: swap area.
        header: header block.
        used_up: whether the signature is that of plain swap.
        compressor: compressor of the data.
        info: info page; None if it is lost.
        swap_map: the swap map.
        units: compressed units; None for an image that is not compressed.
        rows: the stream.
        stream_pages: number of its rows; None if it is not known.
        meta_pages: number of meta pages; None if it is not known.
        computed_crc: CRC of the data; None if a part of it is lost.
        listed: number of frames on the list; None if it is not known.
        pfns: frames that can be read, ascending, int64, shape (n,).
        zero: which of them are zero pages without data, shape (n,).
        row: row of the data of each, int64, shape (n,); -1 for zero pages.
        missing: frames of the list that cannot be read.
        uncertain: frames of which it is not known whether they are on the list: that part of it is lost.
        unplaced_pages: data pages that can be read, of which it is not known to what frames they belong.
        damage: units, or rows of an image that is not compressed, that cannot be read.
        problems: everything that is wrong apart from those.
    """

    area: SwapArea
    header: SwapHeader
    used_up: bool
    compressor: CompressorName
    info: ImageInfo | None
    swap_map: LooseMap
    units: NumberedUnits | None
    rows: Rows
    stream_pages: int | None
    meta_pages: int | None
    computed_crc: int | None
    listed: int | None
    pfns: Pfns
    zero: BoolArray
    row: NDArray[np.int64]
    missing: FrameRanges
    uncertain: FrameRanges
    unplaced_pages: int
    damage: tuple[LostPart, ...]
    problems: tuple[Problem, ...]

    @property
    def zero_frames(self) -> FrameRanges:
        """The frames of zero pages without data."""
        return FrameRanges.of_pfns(self.pfns[self.zero])

    @property
    def name(self) -> str:
        """Name of the file in messages."""
        return self.area.file.name

    @property
    def crc_ok(self) -> bool | None:
        """Whether the CRC is right; None if there is none or it could not be computed."""
        if self.header.crc32 is None or self.computed_crc is None:
            return None
        return self.header.crc32 == self.computed_crc

    @property
    def complete(self) -> bool:
        """Whether every frame of the list can be read, though perhaps not with its own bytes."""
        return self.listed is not None and self.listed == len(self.pfns) and not self.unplaced_pages

    @property
    def whole(self) -> bool:
        """Whether the image has no fault; of a used-up one, only if its CRC proves that nothing was overwritten."""
        unproved = self.crc_ok is None and (self.used_up or self.header.crc32 is not None)
        return self.complete and not self.problems and self.crc_ok is not False and not unproved

    @property
    def whole_units(self) -> int:
        """Number of units that decompress, have a number, and hold what they must hold; 0 if not compressed."""
        if self.units is None:
            return 0
        return int(self.units.whole.sum()) - sum(one.units or 0 for one in self.damage if one.what == OUT_OF_ORDER)

    @property
    def read_units(self) -> ReadUnits:
        """The units that decompress; none if the data is not compressed."""
        nothing = np.empty(0, dtype=np.int64)
        if self.units is None:
            return ReadUnits(nothing, nothing, nothing, 0, UNIT_PAGES, int(self.rows.known.sum()))
        found = self.units.found
        rows = found.size_bytes // PAGE_SIZE
        return ReadUnits(self.units.number, rows, found.compressed_bytes, self.units.total, UNIT_PAGES, int(rows.sum()))

    @property
    def blocks(self) -> ImageBlocks:
        """The blocks that are known to be of the image; of those of a lost map page, the ones with a unit in them."""
        return _blocks_of(self)

    @property
    def inspection(self) -> Inspection:
        """The parts of the image by which a kernel accepts it, and the problems that are not of its units."""
        return Inspection(
            header=self.header,
            compressor=self.compressor,
            swap_map=None,
            info=self.info,
            image=None,
            computed_crc=self.computed_crc,
            problems=self.problems,
            area=self.area,
            error=None,
        )

    def require_x86_64(self) -> None:
        """Raise FormatError if the image is of another machine, whose page tables are not read."""
        refuse_foreign(None if self.info is None else self.info.architecture, self.name)

    @property
    def findings(self) -> tuple[str, ...]:
        """The evidence for the data, and the parts that are lost, a sentence each."""
        return tuple(_findings(self))

    def close(self) -> None:
        """Close the file."""
        close_volume(self.area.file)


def _findings(image: SalvagedImage) -> Iterator[str]:
    units = image.units
    if image.used_up:
        yield "the image is used up: its signature is that of plain swap again"
    if units is None:
        yield "the data is not compressed: nothing shows whether a page was overwritten"
    else:
        whole = image.whole_units
        total = "an unknown number of" if units.total is None else units.total
        yield f"all {total} units are whole" if whole == units.total else f"{whole} of {total} units are whole"
        if image.crc_ok:
            yield "the CRC of the whole is right: the data is as it was written"
        elif image.crc_ok is False:
            yield (
                "the CRC of the whole is wrong: at least one unit has other bytes than were written, and no unit has a "
                "check of its own, so it is not known which"
            )
        else:
            why = "the header has no CRC" if image.header.crc32 is None else "the CRC of the whole cannot be computed"
            yield (
                f"{why}: a unit that decompresses to exactly its size is taken for whole, though bytes in it that do "
                "not compress can have been overwritten"
            )
    if image.missing.total_pages:
        yield f"{image.missing.total_pages} frames of the list cannot be read and do not exist in this memory"
    if image.listed is None:
        yield "the number of frames of the image is not known: the end of its list is lost"
    elif lost := image.listed - len(image.pfns) - image.missing.total_pages:
        yield f"the numbers of {lost} more frames of the list are lost"
    if image.unplaced_pages:
        yield f"{image.unplaced_pages} pages of data can be read, but not placed: their frames are not known"


def _blocks_of(image: SalvagedImage) -> ImageBlocks:
    """Return the blocks of an image, see `SalvagedImage.blocks`."""
    rows, loose, maps = image.rows, image.swap_map, image.swap_map.map_blocks
    if isinstance(rows, UnitRows) and image.units is not None:
        entries, found = rows.search.entries, image.units.found
        edges = np.zeros(len(entries) + 1, dtype=np.int64)
        edges[found.entry] += 1
        edges[found.end] -= 1
        read, named = np.cumsum(edges)[:-1] > 0, ~loose.derived
        if len(read):
            read[0] = image.info is not None
    elif isinstance(rows, PlainRows):
        entries = np.concatenate((loose.entries[:1], rows.blocks))
        read = np.concatenate(([image.info is not None], rows.known)) if len(loose.entries) else rows.known
        named = np.ones(len(entries), dtype=np.bool_)
        named[: len(entries) - len(rows.blocks)] = ~loose.derived[:1]
    inside = (entries > 0) & (entries < image.area.blocks)
    pages = entries[read & inside]
    lost = np.setdiff1d(entries[named & inside & ~read], np.concatenate((pages, maps)))
    return ImageBlocks(pages, maps, lost)


def salvage_image(
    file: str | os.PathLike[str] | Volume,
    *,
    offset: int = 0,
    partition: int | None = None,
    base: int | None = None,
    used_up: bool = False,
    damaged: bool = True,
    first_map_block: int | None = None,
    progress: Progress | None = None,
) -> SalvagedImage:
    """Read a damaged or used-up image as far as it goes.

    Args:
        file: see `hibernaut.swsusp.open_image`, as for `offset`, `partition` and `base`.
        offset: block of the swap header.
        partition: number of the partition.
        base: byte at which the device begins.
        used_up: whether to read an image whose signature is that of plain swap.
        damaged: whether to read one whose signature is that of an image.
        first_map_block: block of the first map page, of an image that no header names; None: as the header has it.
        progress: called with the number of pages read.

    Raises:
        FormatError: there is no image, or that of a machine with pages or words of other sizes than x86-64's; or
            `first_map_block` is not of a swap map.
        OSError: the file cannot be read.
    """
    volume = file if isinstance(file, Volume) else open_plain(file)
    try:
        area = locate_area(volume, offset=offset, partition=partition, base=base)
        header, was_swap, problems = loose_header(
            area, used_up=used_up, damaged=damaged, first_map_block=first_map_block
        )
        loose = read_loose_map(area, header.image, lambda: map_fragments(area))
        if first_map_block is not None and first_map_block not in loose.map_blocks:
            raise FormatError(
                f"block {first_map_block} does not hold a page of a swap map",
                source=volume.name,
                advice="see `hibernaut inspect --scan` for those that do",
            )
        info, info_problems = loose_info(area, loose)
        parts = _Parts(area, header, loose, info, (*problems, *loose.problems, *info_problems))
        return _assemble(parts, was_swap, _compressor(parts), progress)
    except BaseException:
        close_volume(volume)
        raise


class _Parts(NamedTuple):
    """Parts of an image that hold no data of its own."""

    area: SwapArea
    header: SwapHeader
    loose: LooseMap
    info: ImageInfo | None
    problems: tuple[Problem, ...]


class _Stream(NamedTuple):
    """The stream: its rows, the units that they come from, and the reader of these; None for plain pages."""

    rows: Rows
    units: NumberedUnits | None
    search: UnitSearch | None


class _Counts(NamedTuple):
    """Pages of the stream, each None if it is not known."""

    stream: int | None
    meta: int | None
    data: int | None


def _compressor(parts: _Parts) -> CompressorName:
    """Return the compressor that the flags name, or another one that decompresses units where it does not."""
    area, loose, named = parts.area, parts.loose, parts.header.compressor
    first = next((int(block) for block in loose.entries[1:] if 0 < block < area.blocks), None)
    if first is not None and begins_a_list(area.read_block(first, "first block of the data")):
        return "none"
    enough = min(TRIED_UNITS, len(loose.entries) // 2)
    for name in sorted(COMPRESSORS, key=lambda one: one != named):
        if name != "none" and enough:
            found = UnitSearch(area, loose, codec_named(name)).find(TRIED_UNITS)
            if len(found) >= enough:
                return name
    return named


def _assemble(parts: _Parts, was_swap: bool, compressor: CompressorName, progress: Progress | None) -> SalvagedImage:
    loose = parts.loose
    most = len(loose.entries) if loose.ended and not loose.broken else max(parts.area.blocks, len(loose.entries))
    by_info = loose_counts(parts.info, most if compressor == "none" else most * UNIT_PAGES)
    stream = _stream(parts, compressor, by_info[0] if by_info else None, progress)
    counts, problems = _counts(parts, stream, by_info)
    if stream.units and stream.search and counts.stream is not None:
        units = number_units(stream.search, stream.units.found, loose, counts.stream)
        stream = _Stream(unit_rows(stream.search, units), units, stream.search)
    listed, bad_lists, problem = _listed(parts, stream, counts)
    rows = stream.rows
    for unit in bad_lists:
        rows.known[unit * UNIT_PAGES : (unit + 1) * UNIT_PAGES] = False
    inside = (listed.row >= 0) & (listed.row < len(rows.known))
    there = listed.zero | (inside & rows.known[np.where(inside, listed.row, 0)] if len(rows.known) else inside)
    data_rows = int(rows.known[counts.meta or 0 :].sum())
    if stream.units is not None:
        data_rows += int(stream.units.found.size_bytes[~stream.units.whole].sum()) // PAGE_SIZE
    return SalvagedImage(
        area=parts.area,
        header=parts.header,
        used_up=was_swap,
        compressor=compressor,
        info=parts.info,
        swap_map=loose,
        units=stream.units,
        rows=rows,
        stream_pages=counts.stream,
        meta_pages=counts.meta,
        computed_crc=_crc(stream, counts),
        listed=listed.listed,
        pfns=listed.pfns[there],
        zero=listed.zero[there],
        row=listed.row[there],
        missing=FrameRanges.of_pfns(listed.pfns[~there]),
        uncertain=listed.uncertain,
        unplaced_pages=data_rows - int((there & ~listed.zero).sum()),
        damage=(
            lost_units(stream.search, stream.units, counts.stream, bad_lists)
            if stream.units and stream.search
            else lost_rows(rows)
            if isinstance(rows, PlainRows)
            else ()
        ),
        problems=(*parts.problems, *_corrections(parts, stream), *problems, *problem),
    )


def _corrections(parts: _Parts, stream: _Stream) -> Iterator[Problem]:
    """Yield entries of the swap map that are wrong, as a unit shows that is whole without them."""
    if stream.search is None:
        return
    entries = parts.loose.entries
    for entry in np.flatnonzero((stream.search.entries != entries) & (entries != UNKNOWN)).tolist():
        found = stream.search.entries[entry]
        what = f"entry {entry} of the swap map is block {entries[entry]}; by its data it is {found}"
        yield Problem(what, parts.area.file.name)


def _stream(parts: _Parts, compressor: CompressorName, stream_pages: int | None, progress: Progress | None) -> _Stream:
    """Return the rows: blocks as they are, or the units that decompress."""
    if compressor == "none":
        return _Stream(plain_rows(parts.area, parts.loose, stream_pages), None, None)
    search = UnitSearch(parts.area, parts.loose, codec_named(compressor), last_unit_bytes(stream_pages))
    units = number_units(search, search.find(progress=progress), parts.loose, stream_pages)
    return _Stream(unit_rows(search, units), units, search)


def _counts(parts: _Parts, stream: _Stream, by_info: tuple[int, int] | None) -> tuple[_Counts, list[Problem]]:
    """Return the counts by the info page, the units and the list of frames, and the contradiction if there is one.

    The number of units that follow one another without a gap is certain, and so is a list whose end is found and whose
    counts fit it; the info page has no check of its own.
    """
    rows = by_info[0] if by_info else None
    units = stream.units
    if units is not None and units.total is not None:
        last = np.flatnonzero(units.number == units.total - 1)
        if len(last):
            rows = (units.total - 1) * UNIT_PAGES + int(units.found.size_bytes[last[0]]) // PAGE_SIZE
        elif rows is not None and -(-rows // UNIT_PAGES) != units.total:
            rows = None
    elif units is None and rows is None and parts.loose.ended and not parts.loose.broken:
        rows = len(parts.loose.entries) - 1
    by_list = list_end(_front(stream.rows))
    if by_list is not None and rows in (None, sum(by_list)):
        counts = _Counts(sum(by_list), *by_list)
    elif by_info is not None and rows == by_info[0]:
        counts = _Counts(rows, rows - by_info[1], by_info[1])
    else:
        counts = _Counts(rows, None, None)
    if by_info is None or counts.data is None or by_info == (counts.stream, counts.data):
        return counts, []
    what = (
        f"the info page counts {by_info[0]} pages after itself, {by_info[1]} of them data; by the units and the list "
        f"of frames these are {counts.stream} and {counts.data}"
    )
    return counts, [Problem(what, parts.area.file.name)]


def _front(rows: Rows) -> Iterator[Bytes]:
    """Yield the units from the first to the last before one that is lost."""
    number = 0
    while rows.has_unit(number):
        yield rows.unit(number)
        number += 1


def _listed(parts: _Parts, stream: _Stream, counts: _Counts) -> tuple[LooseList, list[int], list[Problem]]:
    """Return the frames of the list, the units that should hold a part of it and do not, and the problem."""
    meta = counts.meta or 0
    rows = stream.rows
    known = rows.known[:meta].copy()
    pages = np.zeros((len(known), PFNS_PER_META_PAGE), dtype="<u8")
    group = UNIT_PAGES if stream.units is not None else 1
    wrong = []
    for unit in range(0, len(known), UNIT_PAGES):
        if not known[unit : unit + UNIT_PAGES].any():
            continue
        words = rows.unit(unit // UNIT_PAGES)[: len(known) - unit].view("<u8")
        for first in range(unit, unit + len(words), group):
            part = words[first - unit : first - unit + group]
            if known[first] and list_is_credible(part.reshape(-1), last=first + len(part) == meta):
                pages[first : first + len(part)] = part
            elif known[first]:  # kept out of memory, too: a hostile image can call all of its data a list
                wrong.append(first // group)
                known[first : first + len(part)] = False
    contradicting = contradicting_groups(pages, known, group)
    for number in contradicting:
        known[number * group : (number + 1) * group] = False
    wrong += contradicting
    last = int(np.flatnonzero(known)[-1]) + 1 if known.any() else 0
    lost = meta - int(known.sum())
    problems = []
    if not known.any():
        what = "the list of frames is lost: no data can be put at its frames"
        problems.append(Problem(what, parts.area.file.name))
    elif lost:
        what = f"{lost} of {meta} pages of the list of frames are lost: the frames on them are not known"
        problems.append(Problem(what, parts.area.file.name))
    listed = read_loose_list(pages[:last], known[:last], meta, counts.data)
    return listed, sorted(wrong) if group > 1 else [], problems


def _crc(stream: _Stream, counts: _Counts) -> int | None:
    """Return the CRC of the data; None if a unit is lost, or the data is not in units."""
    units = stream.units
    if units is None or counts.stream is None or units.total is None:
        return None
    order = np.argsort(units.number, kind="stable")[-units.total :] if units.total else np.empty(0, dtype=np.int64)
    if not np.array_equal(units.number[order], np.arange(units.total)):
        return None
    crc = Crc()
    for crc32, size_bytes in zip(
        units.found.crc32[order].tolist(), units.found.size_bytes[order].tolist(), strict=True
    ):
        crc.add(crc32, size_bytes)
    return crc.value if int(units.found.size_bytes[order].sum()) == counts.stream * PAGE_SIZE else None
