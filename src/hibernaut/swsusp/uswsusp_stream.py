# SPDX-License-Identifier: GPL-2.0-or-later
"""The stream of an image of suspend-utils (uswsusp): what `/dev/snapshot` gave it, info page first.

Not compressed, its pages are the blocks of the extents in order. Compressed, it is cut into buffers of as many pages as
the build of suspend-utils has (32 as it comes); the info page is the first page of the first one. Each is stored as a
unit of the kernel is: length, LZO1X data, padding to whole blocks. The number of buffers and of pages leaves few sizes
for them; the first buffer decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hibernaut.errors import CorruptImage
from hibernaut.memory.page import PAGE_SIZE, Bytes
from hibernaut.swsusp.area import SwapArea
from hibernaut.swsusp.codecs import Codec, CompressorName, WrongLength, codec_named
from hibernaut.swsusp.crc32 import crc32
from hibernaut.swsusp.declarations import LENGTH_BYTES
from hibernaut.swsusp.info import ImageInfo
from hibernaut.swsusp.md5 import Md5, Md5Ending
from hibernaut.swsusp.stream import Batch, Crc, UnitIndex, UnitStream, index_units
from hibernaut.swsusp.swapmap import SwapMap
from hibernaut.swsusp.units import DamagedUnit
from hibernaut.swsusp.uswsusp import Extents, UserlandHeader, read_extents
from hibernaut.swsusp.uswsusp_declarations import BUFFER_PAGES, MAX_BUFFER_PAGES

__all__ = ["UserlandMap", "UserlandStream", "open_userland_stream", "read_userland_map"]

MAX_BUFFER_LENGTH = MAX_BUFFER_PAGES * PAGE_SIZE * 17 // 16 + 67
"""Largest compressed length of a buffer (`compress_buf_size`, suspend.c)."""
LZO_RATIO = 255
"""Bytes that one byte of LZO1X data stands for at most: a zero in a run's length."""
CHECKED_PAGES = 1024


@dataclass(frozen=True, eq=False)
class UserlandMap:
    """The places of the stream's pages, and the info page.

    Attributes:
        header: image header.
        extents: blocks of the stream, in order.
        buffers: places of compressed buffers; None if the stream is not compressed.
        buffer_pages: pages of each buffer but the last one; 1 if the stream is not compressed.
        info_page: first page of the stream.
    """

    header: UserlandHeader
    extents: Extents
    buffers: UnitIndex | None
    buffer_pages: int
    info_page: bytes

    @property
    def map_blocks(self) -> NDArray[np.int64]:
        """Blocks of the pages of extents, in the order of the chain, int64, shape (m,)."""
        return self.extents.map_blocks

    @property
    def entries(self) -> NDArray[np.int64]:
        """Blocks of the stream in order, int64, shape (n,)."""
        return self.extents.blocks(0, len(self.extents))

    @property
    def most_pages(self) -> int:
        """Largest number of pages of the stream after the info page."""
        pages = len(self.extents) if self.buffers is None else len(self.buffers) * self.buffer_pages
        return pages - 1


def read_userland_map(area: SwapArea, header: UserlandHeader) -> UserlandMap:
    """Read extents, lengths of buffers, and the info page. Raises CorruptImage if they contradict each other."""
    extents = read_extents(area, header)
    if not header.compressed:
        info_page = area.read_block(int(extents.blocks(0, 1)[0]), "info page")
        return UserlandMap(header, extents, None, 1, info_page)
    buffers = _index_buffers(area, extents)
    first = _first_buffer(area, header, extents, buffers)
    return UserlandMap(header, extents, buffers, len(first), first[0].tobytes())


def _index_buffers(area: SwapArea, extents: Extents) -> UnitIndex:
    """Return the places of all buffers. Raises CorruptImage if a length is impossible or runs past the data."""
    ends = extents.ends.tolist()
    origins = (extents.starts - extents.ends + np.diff(extents.ends, prepend=0)).tolist()
    total, entry, number = ends[-1], 0, 0
    begins: list[int] = []
    lengths: list[int] = []
    while entry < total:
        while entry >= ends[number]:
            number += 1
        at = area.base_bytes + (origins[number] + entry) * PAGE_SIZE
        length = int.from_bytes(area.file.pread(at, LENGTH_BYTES), "little")
        blocks = -(-(LENGTH_BYTES + length) // PAGE_SIZE)
        if not 0 < length <= MAX_BUFFER_LENGTH or entry + blocks > total:
            raise CorruptImage(
                f"buffer {len(begins)} has a compressed length of {length}",
                source=area.file.name,
                offset=at,
                expected=f"1 to {min(MAX_BUFFER_LENGTH, (total - entry) * PAGE_SIZE - LENGTH_BYTES)}",
            )
        begins.append(entry)
        lengths.append(length)
        entry += blocks
    return UnitIndex(np.array([*begins, total], dtype=np.int64), np.array(lengths, dtype=np.int64), 0)


def _first_buffer(area: SwapArea, header: UserlandHeader, extents: Extents, buffers: UnitIndex) -> Bytes:
    """Return the pages of the first buffer, shape (n, 4096). Raises CorruptImage if their number is impossible.

    All buffers but the last one have n pages, and that has 1 to n: with k of them, pages are (k - 1) n + 1 to k n.
    The stream may have a page more than the header says.
    """
    count, length = len(buffers), int(buffers.compressed_bytes[0])
    least = -(-header.pages // count)
    most = header.pages // (count - 1) if count > 1 else header.pages + 1
    most = min(most, MAX_BUFFER_PAGES, -(-length * LZO_RATIO // PAGE_SIZE))
    place = area.offset_of(int(extents.blocks(0, 1)[0]))
    stored = np.empty(int(buffers.first_entry[1]) * PAGE_SIZE, dtype=np.uint8)
    area.read_blocks(extents.blocks(0, len(stored) // PAGE_SIZE), stored)
    codec = codec_named("lzo")
    wrong = f"of 1 to {most} pages; expected {least} or more, for {header.pages} pages in {count} buffers"
    for pages in (BUFFER_PAGES, most) if least <= BUFFER_PAGES < most else (most,):
        if pages < least:
            break
        out = np.empty(pages * PAGE_SIZE, dtype=np.uint8)
        try:
            codec.decompress_into(stored[LENGTH_BYTES : LENGTH_BYTES + length], out)
        except WrongLength as other:
            size_pages, rest = divmod(other.size_bytes, PAGE_SIZE)
            if not rest and least <= size_pages <= most:
                codec.decompress_into(stored[LENGTH_BYTES : LENGTH_BYTES + length], out[: other.size_bytes])
                return out[: other.size_bytes].reshape(-1, PAGE_SIZE)
            wrong = f"of {other.size_bytes} bytes; expected {least} to {most} pages of {PAGE_SIZE}"
        except ValueError as error:
            wrong = f"that {error}"
        else:
            return out.reshape(-1, PAGE_SIZE)
    raise CorruptImage(f"buffer 0 ({length} bytes compressed) is one {wrong}", source=area.file.name, offset=place)


def open_userland_stream(area: SwapArea, found: UserlandMap, info: ImageInfo) -> tuple[SwapMap, UserlandStream]:
    """Return the blocks of an image whose info page is valid, and its stream.

    Raises:
        CorruptImage: the info page contradicts the header or the extents, or a page of the list of frames is empty.
    """
    header, extents = found.header, found.extents
    pages = len(extents) if found.buffers is None else info.pages
    if info.pages not in (header.pages, header.pages + 1) or info.pages != pages:
        extents_have = "" if found.buffers else f", and {pages}, as the extents have"
        raise CorruptImage(
            f"info page: pages is {info.pages}",
            source=area.file.name,
            offset=area.offset_of(int(extents.starts[0])),
            expected=f"{header.pages} or one more, as the image header has{extents_have}",
        )
    if found.buffers is None:
        _refuse_empty_lists(area, extents, info)
    entries = extents.blocks(0, len(extents))
    swap_map = SwapMap(extents.map_blocks, entries)
    if found.buffers is None:
        index = index_units(area, swap_map, info.stream_pages, "none")
        return swap_map, UserlandStream(area, swap_map, index, info, "none", found)
    if -(-info.pages // found.buffer_pages) != len(found.buffers):
        raise CorruptImage(
            f"{len(found.buffers)} buffers of {found.buffer_pages} pages",
            source=area.file.name,
            offset=area.offset_of(int(entries[0])),
            expected=f"as many as {info.pages} pages fill",
        )
    return swap_map, UserlandStream(area, swap_map, found.buffers, info, "lzo", found)


def _refuse_empty_lists(area: SwapArea, extents: Extents, info: ImageInfo) -> None:
    """Raise CorruptImage if a page of the list of frames is all zeroes.

    One extent can claim a whole sparse file. The list, which must be there, bounds the number of blocks that are
    believed.
    """
    for first in range(1, 1 + info.meta_pages, CHECKED_PAGES):
        count = min(CHECKED_PAGES, 1 + info.meta_pages - first)
        blocks = extents.blocks(first, count)
        pages = np.empty(count * PAGE_SIZE, dtype=np.uint8)
        area.read_blocks(blocks, pages)
        empty = np.flatnonzero(~pages.view("<u8").reshape(count, -1).any(axis=1))
        if len(empty):
            raise CorruptImage(
                f"page {first - 1 + int(empty[0])} of the list of frames is all zeroes",
                source=area.file.name,
                offset=area.offset_of(int(blocks[int(empty[0])])),
            )


class UserlandStream(UnitStream):
    """The pages after the info page of an image of suspend-utils; a pass over all of them checks its MD5.

    Args:
        area: swap area.
        swap_map: blocks of the image.
        index: units in them: buffers, or 32 blocks each.
        info: info page.
        compressor: lzo or none.
        found: what the header and the first buffer tell.

    Attributes:
        md5: MD5 of the data by RFC 1321, after a pass over it; None before, or if the image has none.
        md5_ending: the way in which the image's MD5 ends; None before a pass, or if it is that of other data.
    """

    def __init__(
        self,
        area: SwapArea,
        swap_map: SwapMap,
        index: UnitIndex,
        info: ImageInfo,
        compressor: CompressorName,
        found: UserlandMap,
    ) -> None:
        super().__init__(area, swap_map, index, info.stream_pages, compressor)
        self.md5: str | None = None
        self.md5_ending: Md5Ending | None = None
        self._found = found
        if found.buffers is not None:
            self.unit_rows, self.lead_rows = found.buffer_pages, 1

    def _unpack_units(
        self,
        codec: Codec,
        first_unit: int,
        stored: Bytes,
        at: list[int],
        lengths: list[int],
        out: Bytes,
        crc: int,
    ) -> int:
        """Decompress buffers; of the first one, the info page is left out."""
        if first_unit or not self.lead_rows:
            return super()._unpack_units(codec, first_unit, stored, at, lengths, out, crc)
        short = len(out) if len(at) == 1 else (self.unit_rows - self.lead_rows) * PAGE_SIZE
        whole = np.empty(short + self.lead_rows * PAGE_SIZE, dtype=np.uint8)
        super()._unpack_units(codec, first_unit, stored, at[:1], lengths[:1], whole, 0)
        out[:short] = whole[self.lead_rows * PAGE_SIZE :]
        crc = crc32(out[:short], crc)
        if len(at) == 1:
            return crc
        try:
            return super()._unpack_units(codec, 1, stored, at[1:], lengths[1:], out[short:], crc)
        except DamagedUnit as error:
            raise DamagedUnit(error.position + 1, str(error)) from error

    def batches(self) -> Iterator[Batch]:
        """See `UnitStream.batches`; at the end the MD5 is checked. Raises CorruptImage if it is another one."""
        stored = self._found.header.md5
        if stored is None:
            yield from super().batches()
            return
        md5 = Md5()
        md5.add(self._found.info_page)
        for batch in super().batches():
            md5.add(batch.pages)
            yield batch
        self.md5, self.md5_ending = md5.hexdigest(), md5.ending_of(stored)
        if self.md5_ending is None:
            raise CorruptImage(
                "MD5 of the data is wrong",
                source=self._area.file.name,
                offset=self._area.base_bytes + self._found.header.at_bytes + 32,
                expected=stored.hex(),
                found=self.md5,
            )

    def for_each(
        self,
        sink: Callable[[int, Bytes], None],
        progress: Callable[[int], None] | None = None,
        *,
        workers: int | None = None,
    ) -> int:
        """See `UnitStream.for_each`. MD5 takes the pages in order, one after the other."""
        if self._found.header.md5 is None:
            return super().for_each(sink, progress, workers=workers)
        crc = Crc()
        for batch in self.batches():
            sink(batch.first_row, batch.pages)
            crc.add(batch.crc32, batch.pages.nbytes)
            if progress:
                progress(len(batch.pages))
        return crc.value

    def read_into(self, out: Bytes, progress: Callable[[int], None] | None = None) -> int:
        """See `UnitStream.read_into`."""
        if self._found.header.md5 is None:
            return super().read_into(out, progress)

        def place(first_row: int, pages: Bytes) -> None:
            out[first_row : first_row + len(pages)] = pages

        return self.for_each(place, progress)
