# SPDX-License-Identifier: GPL-2.0-or-later
"""A hibernation image: opening it, and reading its pages in order or by frame."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from hibernaut.errors import CorruptImage, FormatError
from hibernaut.memory.page import PAGE_SIZE, BoolArray, Bytes, Pfns
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.ranges import FrameRanges
from hibernaut.memory.recent import RecentParts
from hibernaut.notebook import html_table
from hibernaut.parallel import ordered_results
from hibernaut.swsusp.architecture import refuse_foreign
from hibernaut.swsusp.area import SwapArea, locate_area
from hibernaut.swsusp.codecs import CompressorName
from hibernaut.swsusp.declarations import UNIT_PAGES
from hibernaut.swsusp.header import SwapHeader, read_header, refuse_contradiction
from hibernaut.swsusp.image_parts import ImageBlocks, ReadUnits
from hibernaut.swsusp.index_file import ImageIndex, key_of, read_index, write_index
from hibernaut.swsusp.info import ImageInfo
from hibernaut.swsusp.pfns import begins_a_list, frames_of_pages, unpack_pfns
from hibernaut.swsusp.stream import Crc, UnitStream, index_units
from hibernaut.swsusp.swapmap import SwapMap, read_swap_map
from hibernaut.swsusp.uswsusp_stream import UserlandMap, open_userland_stream, read_userland_map
from hibernaut.volumes.closing import Closing
from hibernaut.volumes.files import open_plain
from hibernaut.volumes.volume import Volume, close_volume

__all__ = ["Image", "ImageMemory", "Progress", "assemble", "data_compressor", "open_image", "read_info", "read_map"]

Progress = Callable[[int], None]
"""Called with the number of pages done since the last call; from any thread, but never from two at once."""

LIST_UNITS = 32
"""Units of the list of frames that are unpacked at a time (4 MiB where a page has 4096 bytes)."""
CHUNK_FRAMES = 1 << 18
"""Frames whose numbers are made at a time where those of all would take much memory."""
CACHED_PAGES = 40960
"""Page frames of decompressed units that random access keeps (160 MiB)."""


@dataclass(frozen=True, eq=False)
class Image(Closing):
    """An image with valid header, map, info page and list of frames; its data is read on demand.

    Attributes:
        area: swap area.
        header: header block.
        swap_map: blocks in order.
        info: info page.
        compressor: compressor of the data: lzo, lz4 or none.
        stream: meta and data pages.
        frames: all page frames of 4096 bytes listed: of a machine with larger pages, all those of each page.
        zero_frames: those of zero pages without a data page.
    """

    area: SwapArea
    header: SwapHeader
    swap_map: SwapMap
    info: ImageInfo
    compressor: CompressorName
    stream: UnitStream
    frames: FrameRanges
    zero_frames: FrameRanges

    @property
    def pfns(self) -> Pfns:
        """All page frames listed, ascending, int64, shape (n,); made anew at each access."""
        return self.frames.pfns()

    @property
    def zero(self) -> BoolArray:
        """Which of them are of zero pages without a data page, shape (n,); made anew at each access."""
        mask = np.zeros(self.frames.total_pages, dtype=np.bool_)
        for some in self.zero_frames.chunks(CHUNK_FRAMES):
            mask[self.frames.rows(some)] = True
        return mask

    @property
    def name(self) -> str:
        """Name of the file in messages."""
        return self.area.file.name

    @property
    def saved_pages(self) -> int:
        """Number of pages listed, in pages of the machine."""
        return self.frames.total_pages // self.area.frames_per_page

    @property
    def zero_pages(self) -> int:
        """Number of pages listed that have no data page, in pages of the machine."""
        return self.zero_frames.total_pages // self.area.frames_per_page

    def _repr_html_(self) -> str:
        rows = [
            ("compressor", self.compressor),
            ("pages saved", self.saved_pages),
            ("of them zero and not stored", self.zero_pages),
            ("physical pages", self.info.physical_pages),
            ("first map block", self.header.image),
        ]
        return html_table(f"hibernation image in {self.name}", ("fact", "value"), rows)

    @property
    def meta_rows(self) -> int:
        """Number of rows of the stream before the data, of 4096 bytes each."""
        return self.info.meta_pages * self.area.frames_per_page

    @property
    def read_units(self) -> ReadUnits:
        """The units, all of which can be found; none if the data is not compressed."""
        index, each = self.stream.index, self.stream.unit_rows
        number = np.arange(len(index) if self.compressor != "none" else 0, dtype=np.int64)
        rows = np.minimum(each, self.stream.rows - each * number)
        return ReadUnits(number, rows, index.compressed_bytes[: len(number)], len(number), each, self.stream.rows)

    @property
    def blocks(self) -> ImageBlocks:
        """The blocks of the image."""
        return ImageBlocks(self.swap_map.entries, self.swap_map.map_blocks, np.empty(0, dtype=np.int64))

    @cached_property
    def stored_frames(self) -> FrameRanges:
        """The frames that have a data page."""
        return self.frames.without(self.zero_frames)

    @property
    def stored_pfns(self) -> Pfns:
        """The frames that have a data page, in stream order, shape (n,); made anew at each access."""
        return self.stored_frames.pfns()

    def chunks(self, progress: Progress | None = None) -> Iterator[tuple[Pfns, Bytes]]:
        """Yield all stored pages in order, without zero pages: (frames, bytes of shape (n, 4096)).

        Raises:
            CorruptImage: the data is damaged; or, after the last chunk, its CRC differs from the header's.
        """
        stored = self.stored_frames
        meta = self.meta_rows
        crc = Crc()
        for batch in self.stream.batches():
            crc.add(batch.crc32, batch.pages.nbytes)
            skip = max(0, meta - batch.first_row)
            first = batch.first_row + skip - meta
            pages = batch.pages[skip:]
            if len(pages):
                yield stored.part(first, first + len(pages)), pages
            if progress:
                progress(len(batch.pages))
        self._refuse_wrong_crc(crc.value)

    def for_each(
        self, sink: Callable[[Pfns, Bytes], None], progress: Progress | None = None, *, workers: int | None = None
    ) -> None:
        """Pass all stored pages to `sink`, decompressed on all cores, in no order.

        Args:
            sink: called with frames and their pages, shape (n, 4096), from several threads at once; the pages are
                valid only during the call.
            progress: called with the number of pages done, from any thread.
            workers: number of threads; None for one per core.

        Raises:
            CorruptImage: the data is damaged; or, at the end, its CRC differs from the header's.
        """
        stored, meta = self.stored_frames, self.meta_rows

        def place(first_row: int, pages: Bytes) -> None:
            data = pages[max(0, meta - first_row) :]
            first = max(0, first_row - meta)
            if len(data):
                sink(stored.part(first, first + len(data)), data)

        self._refuse_wrong_crc(self.stream.for_each(place, progress, workers=workers))

    def read_all(self, out: Bytes | None = None, progress: Progress | None = None) -> Bytes:
        """Return all stored frames in stream order, shape (n, 4096), for images that fit in memory.

        Args:
            out: array for the whole stream, meta pages first, shape (rows, 4096); made if None.
            progress: called with the number of pages done.

        Raises:
            CorruptImage: the data is damaged, or its CRC differs from the header's.
        """
        rows = np.empty((self.stream.rows, PAGE_SIZE), dtype=np.uint8) if out is None else out
        self._refuse_wrong_crc(self.stream.read_into(rows, progress))
        return rows[self.meta_rows :]

    def computed_crc(self, progress: Progress | None = None) -> int:
        """Return the CRC of the whole stream. Raises CorruptImage if a unit does not decompress."""
        return self.stream.for_each(lambda _first_row, _pages: None, progress)

    def _refuse_wrong_crc(self, computed: int) -> None:
        if self.header.crc32 is not None and computed != self.header.crc32:
            raise CorruptImage(
                "CRC of the data is wrong",
                source=self.name,
                offset=self.area.crc32_at,
                expected=f"{self.header.crc32:#010x}",
                found=f"{computed:#010x}",
            )

    def require_x86_64(self) -> None:
        """Raise FormatError if the image is of another machine, whose page tables are not read."""
        refuse_foreign(self.info.architecture, self.name)

    def memory(self) -> ImageMemory:
        """Return the saved frames as physical memory."""
        return ImageMemory(self)

    def close(self) -> None:
        """Close the file."""
        close_volume(self.area.file)


def open_image(
    path: str | os.PathLike[str] | Volume,
    *,
    offset: int = 0,
    partition: int | None = None,
    base: int | None = None,
    index: str | os.PathLike[str] | None = None,
) -> Image:
    """Open a hibernation image that Linux wrote (or this library).

    Args:
        path: image of a swap partition, or a whole disk with `partition` or `base`, compressed or not; or an open
            volume (an object with `name`, `size_bytes`, `pread` and `pread_into`), which the image then owns.
        offset: block of the swap header on its device (`resume_offset` of a swap file), in pages.
        partition: number in the file's MBR or GPT.
        base: byte at which the device begins in the file.
        index: file with the places of its units and frames, see `index_file`; made if it does not exist.

    Raises:
        FormatError: the file has no image; or the index is damaged, belongs to another image, or the image is of
            suspend-utils.
        CorruptImage: the image's header, map, info page or list of frames is damaged.
        OSError: the file cannot be read.
    """
    file = path if isinstance(path, Volume) else open_plain(path)
    try:
        area = locate_area(file, offset=offset, partition=partition, base=base)
        header = read_header(area)
        refuse_contradiction(area, header)
        swap_map = read_map(area, header)
        compressor = data_compressor(area, header, swap_map)
        info = read_info(area, swap_map, compressor)
        if index is not None:
            return _indexed(area, header, swap_map, info, compressor, index)
        return assemble(area, header, swap_map, info, compressor)
    except BaseException:
        close_volume(file)
        raise


def _indexed(
    area: SwapArea,
    header: SwapHeader,
    swap_map: SwapMap | UserlandMap,
    info: ImageInfo,
    compressor: CompressorName,
    path: str | os.PathLike[str],
) -> Image:
    """Return the image with units and frames from an index, which is written if there is none."""
    if not isinstance(swap_map, SwapMap):
        raise FormatError(
            "an image of suspend-utils has no index",
            source=area.file.name,
            advice="leave out --index: it is opened fast",
        )
    key = key_of(area, header, swap_map, info)
    found = read_index(path, key, swap_map, info)
    if found is None:
        image = assemble(area, header, swap_map, info, compressor)
        index = ImageIndex(compressor, image.stream.length_bytes, image.stream.index, image.frames, image.zero_frames)
        write_index(path, key, index)
        return image
    if found.compressor != compressor:
        raise FormatError("the index is of another compressor", source=os.fspath(path), advice="remove it")
    stream = UnitStream(area, swap_map, found.units, info.stream_pages, compressor, found.length_bytes)
    return Image(area, header, swap_map, info, compressor, stream, found.frames, found.zero_frames)


def read_map(area: SwapArea, header: SwapHeader) -> SwapMap | UserlandMap:
    """Return the places of an image's pages. Raises CorruptImage if they contradict each other."""
    if header.userland is not None:
        return read_userland_map(area, header.userland)
    return read_swap_map(area, header.image)


def assemble(
    area: SwapArea, header: SwapHeader, found: SwapMap | UserlandMap, info: ImageInfo, compressor: CompressorName
) -> Image:
    """Return the image of parts already read, with its units and its list of frames. Raises CorruptImage.

    The words of the data are of the kernel's `unsigned long`. If a kernel of 32 bits has data that are damaged then,
    and whole with words of 64 bits, they are those: `Inspection.remarks` tells.
    """
    try:
        return _assembled(area, header, found, info, compressor, info.long_bytes)
    except CorruptImage as error:
        if info.long_bytes == 8:
            raise
        try:
            return _assembled(area, header, found, info, compressor, 8)
        except CorruptImage:
            raise error from None


def _assembled(
    area: SwapArea,
    header: SwapHeader,
    found: SwapMap | UserlandMap,
    info: ImageInfo,
    compressor: CompressorName,
    long_bytes: int,
) -> Image:
    """Return the image, its lengths and frame numbers read as words of a size. Raises CorruptImage."""
    stream: UnitStream
    if isinstance(found, UserlandMap):
        swap_map, stream = open_userland_stream(area, found, info)
    else:
        swap_map = found
        index = index_units(area, swap_map, info.stream_pages, compressor, long_bytes)
        stream = UnitStream(area, swap_map, index, info.stream_pages, compressor, long_bytes)
    frames, zero_frames = _read_pfns(area, info, stream, long_bytes)
    return Image(area, header, swap_map, info, compressor, stream, frames, zero_frames)


def data_compressor(area: SwapArea, header: SwapHeader, swap_map: SwapMap | UserlandMap) -> CompressorName:
    """Return the compressor of the data: the one that the flags name, or, where none does, what the data shows.

    Kernels before 2.6.37 know no compression and no flag for its absence; later ones without a CRC compress with LZO
    under the same flags. The first block of plain pages is a list of ascending frames, which a compressed unit is not.
    """
    if header.names_no_data and isinstance(swap_map, SwapMap) and len(swap_map.entries) > 1:
        first = area.read_block(int(swap_map.entries[1]), "first block of the data")
        return "none" if begins_a_list(first) else header.compressor
    return header.compressor


def read_info(area: SwapArea, swap_map: SwapMap | UserlandMap, compressor: CompressorName) -> ImageInfo:
    """Return the info page, its counts checked against the swap map, or against the extents of suspend-utils.

    Raises:
        CorruptImage: it is damaged.
    """
    if isinstance(swap_map, UserlandMap):
        block, most_pages, page = int(swap_map.extents.starts[0]), swap_map.most_pages, swap_map.info_page
    else:
        block, entries = int(swap_map.entries[0]), len(swap_map.entries) - 1
        most_pages = entries if compressor == "none" else entries * UNIT_PAGES
        page = area.read_block(block, "info page")
    info = ImageInfo.parse(page)
    try:
        info.check(area.file.name, area.offset_of(block), most_pages)
    except CorruptImage as error:
        if isinstance(swap_map, UserlandMap):  # it may be compressed: its fields have no place in the file
            raise error.with_facts(offset=area.offset_of(block)) from None
        raise
    return info


def _read_pfns(area: SwapArea, info: ImageInfo, stream: UnitStream, long_bytes: int) -> tuple[FrameRanges, FrameRanges]:
    each = area.frames_per_page
    rows = info.meta_pages * each
    units = stream.units_of(rows)
    listed: list[FrameRanges] = []
    empty: list[FrameRanges] = []
    stored = 0
    before = -1
    for unit in range(0, units, LIST_UNITS):  # in pieces: what follows the end of a damaged list is never unpacked
        batch = stream.decode(unit, min(unit + LIST_UNITS, units))
        pages, zero = unpack_pfns(
            batch.pages[: rows - batch.first_row],
            area.file.name,
            page_size=area.page_size,
            long_bytes=long_bytes,
            first_page=batch.first_row // each,
            meta_pages=info.meta_pages,
            before=before,
        )
        before = int(pages[-1]) if len(pages) else before
        stored += len(pages) - int(np.count_nonzero(zero))
        listed.append(FrameRanges.of_pfns(pages))
        empty.append(FrameRanges.of_pfns(pages[zero]))
    if stored != info.image_pages:
        raise CorruptImage(
            f"the list names {stored} frames with a data page",
            source=area.file.name,
            expected=f"image_pages, {info.image_pages}",
        )
    return frames_of_pages(FrameRanges.joined(listed), each), frames_of_pages(FrameRanges.joined(empty), each)


class ImageMemory(PhysicalMemory):
    """The frames of an image, zero pages included; a unit is decompressed when one of its pages is read.

    Safe to use from several threads.
    """

    def __init__(self, image: Image) -> None:
        self.image = image
        self._ranges = image.frames
        self._stored = image.stored_frames
        self._meta_rows = image.meta_rows
        self._unit = RecentParts(self._unpacked, max(1, CACHED_PAGES // image.stream.unit_rows))

    @property
    def ranges(self) -> FrameRanges:
        """Frames listed in the image."""
        return self._ranges

    def run(self, pfn: int, nr_pages: int) -> Bytes:
        """See `PhysicalMemory.run`; a run ends where a unit does."""
        length = min(nr_pages, self._ranges.end_of(pfn) - pfn, self.image.stream.unit_rows)
        if length <= 0:
            return np.empty((0, PAGE_SIZE), dtype=np.uint8)
        stored = self._stored.end_of(pfn)
        if not stored:
            following = self._stored.start_after(pfn)
            length = length if following is None else min(length, following - pfn)
            return np.zeros((length, PAGE_SIZE), dtype=np.uint8)
        row, length = self._meta_rows + self._stored.row(pfn), min(length, stored - pfn)
        if self.image.stream.reads_rows:
            return self.image.stream.read_rows(row, length)
        unit, within = self.image.stream.place_of(row)
        return self._unit(unit)[within : within + length]

    def gather(self, pfns: ArrayLike, out: Bytes | None = None) -> tuple[Bytes, BoolArray]:
        """See `PhysicalMemory.gather`; each unit is decompressed once, many at a time on all cores."""
        frames = np.asarray(pfns, dtype=np.int64)
        if len(frames) <= 2 * self.image.stream.unit_rows and (frames[1:] - frames[:-1] == 1).all():
            return super().gather(frames, out)  # a run in at most a few units: less work than sorting them
        pages = np.empty((len(frames), PAGE_SIZE), dtype=np.uint8) if out is None else out
        rows = self._stored.rows(frames)
        stored = rows >= 0
        present = stored | self._ranges.contains(frames)
        pages[~stored] = 0
        which = np.flatnonzero(stored)
        units, within = self.image.stream.place_of(self._meta_rows + rows[which])
        order = np.argsort(units, kind="stable")
        distinct, begins = np.unique(units[order], return_index=True)
        ends = np.append(begins[1:], len(order))

        def place(number: int) -> None:
            picked = order[begins[number] : ends[number]]
            pages[which[picked]] = self._unit(int(distinct[number]))[within[picked]]

        if len(distinct) <= 2:
            for number in range(len(distinct)):
                place(number)
        else:
            tasks = ((lambda number=number: place(number)) for number in range(len(distinct)))
            for _ in ordered_results(tasks):
                pass
        return pages, present

    def blocks(self, nr_pages: int = 1024) -> Iterator[tuple[int, Bytes]]:
        """See `PhysicalMemory.blocks`; decompressed in one pass, CRC checked at its end."""
        done = 0
        for stored, data in self.image.chunks():
            last = self._ranges.row(int(stored[-1])) + 1
            yield from self._runs(done, last, data, nr_pages)
            done = last
        yield from self._runs(done, self._ranges.total_pages, np.empty((0, PAGE_SIZE), dtype=np.uint8), nr_pages)

    def _runs(self, first: int, last: int, stored: Bytes, most: int) -> Iterator[tuple[int, Bytes]]:
        """Yield listed frames `first` to `last` - 1 in contiguous runs; `stored` has those that are not zero pages."""
        pfns = self._ranges.part(first, last)
        data = stored
        if len(pfns) > len(stored):
            data = np.zeros((last - first, PAGE_SIZE), dtype=np.uint8)
            data[self._stored.contains(pfns)] = stored
        at = 0
        for start, length in FrameRanges.of_pfns(pfns):
            for piece in range(0, length, most):
                count = min(most, length - piece)
                yield start + piece, data[at : at + count]
                at += count

    def _unpacked(self, unit: int) -> Bytes:
        return self.image.stream.unit(unit)

    def close(self) -> None:
        """Close the image's file."""
        self.image.close()
