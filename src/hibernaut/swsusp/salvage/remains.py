# SPDX-License-Identifier: GPL-2.0-or-later
"""Remains of images in an area, whatever its header names: map pages, info pages, units, lists of frames.

One pass on all cores, in pieces of fixed size. A few words of a block dismiss nearly all of them; a block with a
plausible length is decompressed, so that it is a unit or none. Map pages are taken for an image's where links connect
them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hibernaut.errors import CorruptImage, FormatError
from hibernaut.memory.page import PAGE_SIZE, Bytes
from hibernaut.parallel import ordered_results
from hibernaut.swsusp.area import SwapArea
from hibernaut.swsusp.codecs import Codec, CompressorName, WrongLength, codec_named
from hibernaut.swsusp.declarations import (
    END_OF_PFNS,
    INFO,
    LENGTH_BYTES,
    MAGIC_2_6_24,
    MAX_COMPRESSED_BYTES,
    MAX_PFN,
    RECORD_2_6_24,
    UNIT_BYTES,
    ZERO_PAGE_FLAG,
)
from hibernaut.swsusp.generations import GENERATIONS
from hibernaut.swsusp.info import ImageInfo
from hibernaut.swsusp.pfns import begins_a_list
from hibernaut.swsusp.salvage.fragments import PIECE_BLOCKS
from hibernaut.swsusp.salvage.map_pages import MapFragment, MapPage, linked, look_like_map_pages, read_map_page
from hibernaut.swsusp.salvage.units import MOST_BLOCKS

__all__ = ["FrameList", "InfoPage", "OrphanMap", "Remains", "UnitRun", "scan_area"]

LEAST_COMPRESSED = 16
"""Bytes that even a page of zeroes takes."""
MOST_FOUND = 1 << 22
"""Most units that are kept: those of 512 GiB of pages."""
UNIT = np.dtype([("block", "<i8"), ("blocks", "<i8"), ("size_bytes", "<i8"), ("compressor", "u1"), ("list", "?")])
NAMES: tuple[CompressorName, ...] = ("lzo", "lz4")


@dataclass(frozen=True)
class InfoPage:
    """An info page.

    Attributes:
        block: its block.
        info: its fields.
    """

    block: int
    info: ImageInfo


@dataclass(frozen=True)
class OrphanMap:
    """A swap map, or a part of one, as its links prove it.

    Attributes:
        first_block: block of its first page.
        map_pages: number of its pages.
        ended: whether the last page of the map is among them.
        entries: number of entries.
        info: info page that the first entry names; None if that is none: the map begins elsewhere, or is overwritten.
        whole_units: units that begin at an entry.
        named: whether the header of the area names this map.
    """

    first_block: int
    map_pages: int
    ended: bool
    entries: int
    info: InfoPage | None
    whole_units: int
    named: bool


@dataclass(frozen=True)
class UnitRun:
    """Units that follow one another in neighbouring blocks; between them, pages of a swap map.

    Attributes:
        block: first block.
        end_block: one past the last block.
        units: number of units.
        compressor: their compressor.
        lists: how many of them begin with a part of a list of frames.
    """

    block: int
    end_block: int
    units: int
    compressor: CompressorName
    lists: int


@dataclass(frozen=True)
class FrameList:
    """Neighbouring blocks that hold ascending frames: a list of an image that is not compressed.

    Attributes:
        block: first block.
        pages: number of blocks.
        first_pfn: first frame.
        last_pfn: last frame.
    """

    block: int
    pages: int
    first_pfn: int
    last_pfn: int


@dataclass(frozen=True)
class Remains:
    """Everything that a scan found.

    Attributes:
        blocks: number of blocks that were looked at, holes of the file included.
        maps: swap maps, by first block.
        infos: info pages that are the first entry of none of them.
        runs: units that begin at an entry of none of them.
        lists: lists of frames outside of units.
    """

    blocks: int
    maps: tuple[OrphanMap, ...]
    infos: tuple[InfoPage, ...]
    runs: tuple[UnitRun, ...]
    lists: tuple[FrameList, ...]

    @property
    def found(self) -> bool:
        """Whether there is anything of an image."""
        return bool(self.maps or self.infos or self.runs)


def scan_area(area: SwapArea, progress: Callable[[int], None] | None = None) -> Remains:
    """Return the remains of images in an area, whatever its header is.

    Args:
        area: swap area, or any device; its header block is read like any other.
        progress: called with the number of pages read.

    Raises:
        FormatError: the header is that of a machine with pages of another size.
        OSError: the file cannot be read.
    """
    if area.page_size != PAGE_SIZE:
        raise FormatError(
            f"an area with pages of {area.page_size} bytes is not scanned",
            source=area.file.name,
            offset=area.offset_of(area.header_block),
            advice="give that of a machine with pages of 4096 bytes",
        )
    codecs = [codec_named(name) for name in NAMES]
    tasks = (functools.partial(_piece, area, codecs, first) for first in range(0, area.blocks, PIECE_BLOCKS))
    pages: list[MapPage] = []
    infos: list[InfoPage] = []
    units: list[NDArray[np.void]] = []
    lists: list[FrameList] = []
    kept = 0
    for piece in ordered_results(tasks):
        pages += piece.pages
        infos += piece.infos
        lists += piece.lists
        if kept < MOST_FOUND and len(piece.units):
            units.append(piece.units)
            kept += len(piece.units)
        if progress:
            progress(piece.blocks)
    found = np.concatenate(units) if units else np.empty(0, dtype=UNIT)
    return _put_together(area, _without_overlaps(found), infos, linked(pages), lists)


@dataclass(frozen=True, eq=False)
class _Piece:
    blocks: int
    pages: list[MapPage]
    infos: list[InfoPage]
    units: NDArray[np.void]
    lists: list[FrameList]


def _piece(area: SwapArea, codecs: Sequence[Codec], first: int) -> _Piece:
    """Return what begins in a piece of the area; units can end behind it."""
    count = min(PIECE_BLOCKS, area.blocks - first)
    if area.is_hole(first, count):
        return _Piece(count, [], [], np.empty(0, dtype=UNIT), [])
    buffer = np.empty(min(count + MOST_BLOCKS + 1, area.blocks - first) * PAGE_SIZE, dtype=np.uint8)
    got = area.file.pread_into(area.offset_of(first), buffer) // PAGE_SIZE
    words = buffer[: got * PAGE_SIZE].view("<u8").reshape(-1, PAGE_SIZE // 8)
    maps = look_like_map_pages(words, area.blocks)
    pages = [
        page
        for row in np.flatnonzero(maps[:count]).tolist()
        if (page := read_map_page(first + row, words[row].tobytes(), area.blocks, area.header_block)) is not None
    ]
    units = _units(buffer[: got * PAGE_SIZE], words[:count, 0], maps, codecs)
    units["block"] += first
    here = words[:count]
    return _Piece(len(here), pages, list(_infos(here, first)), units, list(_lists(here, first)))


def _infos(words: NDArray[np.uint64], first: int) -> Iterator[InfoPage]:
    """Yield the info pages, by magic and by counts that agree."""
    at, old_at = (kind.fields["magic"][1] // 8 for kind in (INFO, RECORD_2_6_24))  # type: ignore[index]
    magics = np.array([magic for magic in GENERATIONS if magic != MAGIC_2_6_24], dtype=np.uint64)
    rows = np.flatnonzero(np.isin(words[:, at], magics) | (words[:, old_at] == np.uint64(MAGIC_2_6_24)))
    for row in rows.tolist():
        info = ImageInfo.parse(words[row].tobytes())
        try:
            info.check("", 0, max(0, info.stream_pages))
        except CorruptImage:
            continue
        yield InfoPage(first + row, info)


def _lists(words: NDArray[np.uint64], first: int) -> Iterator[FrameList]:
    """Yield blocks of ascending frames."""
    frames = words & np.uint64(ZERO_PAGE_FLAG - 1)
    likely = (frames[:, 0] < frames[:, 1]) & (frames[:, 1] < frames[:, 2]) & (frames[:, 2] <= np.uint64(MAX_PFN))
    for row in np.flatnonzero(likely).tolist():
        if begins_a_list(words[row].tobytes()):
            ends = np.flatnonzero(words[row] == np.uint64(END_OF_PFNS))
            last = int(ends[0]) if len(ends) else len(words[row])
            yield FrameList(first + row, 1, int(frames[row, 0]), int(frames[row, last - 1]))


def _units(
    data: Bytes, heads: NDArray[np.uint64], maps: NDArray[np.bool_], codecs: Sequence[Codec]
) -> NDArray[np.void]:
    """Return the units that begin in the first blocks of a piece, without those inside others; `UNIT`, shape (n,)."""
    likely = heads - np.uint64(LEAST_COMPRESSED) <= np.uint64(MAX_COMPRESSED_BYTES - LEAST_COMPRESSED)
    out = np.empty(UNIT_BYTES, dtype=np.uint8)
    found: list[tuple[int, int, int, int, bool]] = []
    end = -1
    order = list(range(len(codecs)))
    for row in np.flatnonzero(likely).tolist():
        if row < end:
            continue
        length = int(heads[row])
        for stored, blocks in _stored(data, row, length, maps):
            kind = next(
                (one for one in order if (size := _size(codecs[one], stored, out)) and _fits(size, row, end)), -1
            )
            if kind >= 0:
                size = _size(codecs[kind], stored, out)
                order.sort(key=lambda one: one != kind)
                found.append((row, blocks, size, kind, begins_a_list(out[:PAGE_SIZE].tobytes())))
                end = row + blocks
                break
    return np.array(found, dtype=UNIT)


def _fits(size_bytes: int, row: int, end: int) -> bool:
    """Return whether a unit is full, or the short one at the end of an image, behind another."""
    return size_bytes == UNIT_BYTES or row in (end, end + 1)


def _stored(data: Bytes, row: int, length: int, maps: NDArray[np.bool_]) -> Iterator[tuple[Bytes, int]]:
    """Yield the compressed bytes of a unit and its blocks; again without a map page if there is one inside."""
    begin = row * PAGE_SIZE
    blocks = -(-(LENGTH_BYTES + length) // PAGE_SIZE)
    if begin + blocks * PAGE_SIZE <= len(data):
        yield data[begin + LENGTH_BYTES : begin + LENGTH_BYTES + length], blocks
    for page in (np.flatnonzero(maps[row + 1 : row + blocks + 1]) + row + 1).tolist():
        if begin + (blocks + 1) * PAGE_SIZE <= len(data) and page < row + blocks:
            at = page * PAGE_SIZE
            joined = np.concatenate(
                (data[begin + LENGTH_BYTES : at], data[at + PAGE_SIZE : begin + (blocks + 1) * PAGE_SIZE])
            )
            yield joined[:length], blocks + 1


def _size(codec: Codec, stored: Bytes, out: Bytes) -> int:
    """Return the size that data decompresses to, 0 if that is not whole pages; `out` then holds it."""
    try:
        codec.decompress_into(stored, out)
    except WrongLength as error:
        if not 0 < error.size_bytes < UNIT_BYTES or error.size_bytes % PAGE_SIZE:
            return 0
        codec.decompress_into(stored, out[: error.size_bytes])
        return error.size_bytes
    except ValueError:
        return 0
    return UNIT_BYTES


def _without_overlaps(units: NDArray[np.void]) -> NDArray[np.void]:
    """Return the units without those that begin inside another one, of the piece before."""
    ends = np.maximum.accumulate(units["block"] + units["blocks"]) if len(units) else units["block"]
    return units[np.concatenate(([True], units["block"][1:] >= ends[:-1]))] if len(units) else units


def _joined(lists: Sequence[FrameList], of_maps: set[int]) -> Iterator[FrameList]:
    """Yield lists of neighbouring blocks as one where frames ascend; a single block proves nothing.

    Args:
        lists: lists of one block each, by block.
        of_maps: blocks of map pages, and those that they list.
    """
    joined: FrameList | None = None
    for one in lists:
        if one.block in of_maps:
            continue
        if joined and joined.block + joined.pages == one.block and joined.last_pfn < one.first_pfn:
            joined = FrameList(joined.block, joined.pages + 1, joined.first_pfn, one.last_pfn)
            continue
        if joined and joined.pages > 1:
            yield joined
        joined = one
    if joined and joined.pages > 1:
        yield joined


def _put_together(
    area: SwapArea,
    units: NDArray[np.void],
    infos: Sequence[InfoPage],
    fragments: Sequence[MapFragment],
    lists: Sequence[FrameList],
) -> Remains:
    by_block = {one.block: one for one in infos}
    free = np.ones(len(units), dtype=np.bool_)
    used: set[int] = set()
    of_maps: set[int] = set()
    blocks_of_maps = {page.block for one in fragments for page in one.pages}
    maps = []
    tail = area.file.pread(area.offset_of(area.header_block), PAGE_SIZE)
    named = int(np.frombuffer(tail, dtype="<u8", count=1, offset=4064)[0]) if len(tail) == PAGE_SIZE else 0
    for one in fragments:
        entries = np.concatenate([page.entries for page in one.pages])
        info = by_block.get(int(entries[0])) if len(entries) else None
        inside = np.isin(units["block"], entries)
        if len(one.pages) == 1 and info is None and not inside.any():
            continue  # a table of numbers looks like the last page of a map
        free &= ~inside
        if info:
            used.add(info.block)
        of_maps |= {page.block for page in one.pages} | set(entries.tolist())
        maps.append(
            OrphanMap(
                one.first_block,
                len(one.pages),
                one.ended,
                len(entries),
                info,
                int(inside.sum()),
                one.first_block == named,
            )
        )
    return Remains(
        area.blocks,
        tuple(maps),
        tuple(one for one in infos if one.block not in used),
        tuple(_runs(units[free], blocks_of_maps)),
        tuple(_joined(lists, of_maps)),
    )


def _runs(units: NDArray[np.void], maps: set[int]) -> Iterator[UnitRun]:
    """Yield units that follow one another, by first block."""
    if not len(units):
        return
    ends = units["block"] + units["blocks"]
    gap = units["block"][1:] - ends[:-1]
    over_map = np.array(
        [step == 1 and int(end) in maps for step, end in zip(gap, ends[:-1], strict=True)], dtype=np.bool_
    )
    breaks = np.flatnonzero(((gap != 0) & ~over_map) | (units["compressor"][1:] != units["compressor"][:-1])) + 1
    for begin, end in itertools.pairwise([0, *breaks.tolist(), len(units)]):
        part = units[begin:end]
        yield UnitRun(
            int(part["block"][0]),
            int(ends[end - 1]),
            len(part),
            NAMES[int(part["compressor"][0])],
            int(part["list"].sum()),
        )
