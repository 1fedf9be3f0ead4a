# SPDX-License-Identifier: GPL-2.0-or-later
"""Writing an image: into a new swap area, or into a copy of an area that holds one.

Order of writes: data, map pages, then the header block. An area whose header is not yet written holds no image. The
file gets its name once it is complete and synced (`hibernaut.volumes.output.replacing`). In an existing area only the
blocks of its old image are used: any other block may hold swapped-out pages of the machine that was saved.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hibernaut.errors import HibernautError
from hibernaut.memory.page import PAGE_SIZE, BoolArray, Pfns
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.parallel import in_order
from hibernaut.swsusp.area import contiguous_runs
from hibernaut.swsusp.blocks import MIN_BLOCKS, BlockAllocator, ExistingArea, NewArea, allocator_for
from hibernaut.swsusp.codecs import CompressorName, codec_named
from hibernaut.swsusp.declarations import MAP_ENTRIES, Flags
from hibernaut.swsusp.image import Progress
from hibernaut.swsusp.info import ImageInfo
from hibernaut.swsusp.packing import BATCH_PAGES, PackedBatch, Rooms, StreamRows, batch_room, pack_batch, zero_frames
from hibernaut.swsusp.pfns import pack_pfns
from hibernaut.swsusp.stream import Crc
from hibernaut.volumes.copying import copy_sparse
from hibernaut.volumes.output import BulkOutput, bulk_writers, replacing, set_size, write_all

__all__ = ["ExistingArea", "NewArea", "WrittenImage", "spool_image", "write_image"]

FLAGS: dict[CompressorName, int] = {
    "none": Flags.NOCOMPRESS_MODE,
    "lzo": Flags.CRC32_MODE,
    "lz4": Flags.CRC32_MODE | Flags.COMPRESSION_ALG_LZ4,
}


@dataclass(frozen=True)
class WrittenImage:
    """Counts of an image that was written.

    Attributes:
        saved_pages: frames listed.
        zero_pages: listed frames without a data page.
        stored_pages: listed frames with a data page.
        meta_pages: pages of frame numbers.
        map_pages: pages of the swap map.
        units: compressed units, 0 if not compressed.
        compressed_bytes: sum of their compressed lengths.
        crc32: CRC in the header; None if the image is not compressed.
        blocks: blocks used, map pages included, the header excluded.
    """

    saved_pages: int
    zero_pages: int
    stored_pages: int
    meta_pages: int
    map_pages: int
    units: int
    compressed_bytes: int
    crc32: int | None
    blocks: int


def write_image(
    path: str | os.PathLike[str],
    memory: PhysicalMemory,
    pfns: Pfns,
    info: ImageInfo,
    area: NewArea | ExistingArea,
    *,
    compressor: CompressorName,
    zero_pages: bool,
    progress: Progress | None = None,
) -> WrittenImage:
    """Write an image of some frames to a file, which appears complete or not at all.

    Args:
        path: file to make or replace.
        memory: memory with the frames' bytes.
        pfns: frames to save, ascending, shape (n,).
        info: info page; its counts are set here.
        area: swap area to write into.
        compressor: one that the resuming kernel reads, see `ImageRules.compressors`.
        zero_pages: whether pages of zeroes are left out, for kernels that read that, see `ImageRules.zero_pages`.
        progress: called with the number of pages done.

    Raises:
        HibernautError: memory lacks a frame, or the area is too small; the message has the number of missing blocks.
        OSError: the file cannot be written.
    """
    zero = _left_out(memory, pfns, zero_pages)
    blocks = allocator_for(area)
    with replacing(path) as fd:
        if isinstance(area, ExistingArea):
            copy_sparse(area.image.area.file, fd)
        return _Writer(fd, blocks, memory, compressor, progress).write(pfns, zero, info)


def spool_image(
    fd: int,
    memory: PhysicalMemory,
    pfns: Pfns,
    info: ImageInfo,
    area: ExistingArea,
    *,
    compressor: CompressorName,
    zero_pages: bool,
    progress: Progress | None = None,
) -> tuple[WrittenImage, NDArray[np.int64]]:
    """Write only the blocks and the header of an image into an empty file, each at its offset in the area's file.

    Nothing is synced: the caller copies the blocks from there to the area.

    Args:
        fd: empty file, open for reading and writing.
        memory: memory with the frames' bytes.
        pfns: frames to save, ascending, shape (n,).
        info: info page; its counts are set here.
        area: area whose blocks are used; it is not written to.
        compressor: one that the resuming kernel reads.
        zero_pages: whether pages of zeroes are left out.
        progress: called with the number of pages done.

    Returns:
        The counts, and the blocks written, ascending, shape (n,), without the header block.

    Raises:
        HibernautError: as `write_image`.
        OSError: the file cannot be written.
    """
    zero = _left_out(memory, pfns, zero_pages)
    blocks = allocator_for(area)
    written = _Writer(fd, blocks, memory, compressor, progress, durable=False).write(pfns, zero, info)
    return written, area.image.swap_map.blocks[: blocks.used]


def _left_out(memory: PhysicalMemory, pfns: Pfns, zero_pages: bool) -> BoolArray:
    """Return which frames get no data page. Raises HibernautError if memory lacks a frame or there are no frames."""
    absent = pfns[~memory.ranges.contains(pfns)]
    if len(absent):
        raise HibernautError(
            f"{len(absent)} of the {len(pfns)} listed frames are not in memory, the first {absent[0]:#x}"
        )
    if not len(pfns):
        raise HibernautError("no frames to save")
    return zero_frames(memory, pfns) if zero_pages else np.zeros(len(pfns), dtype=np.bool_)


@dataclass
class _Writer:
    """The writing of one image.

    Attributes:
        fd: file to write to.
        blocks: blocks to use.
        memory: memory with the frames' bytes.
        compressor: compressor of the image.
        progress: called with the number of pages done.
        entries: blocks of the image's pages so far, in order.
        image_pages: number of the image's pages so far, also those that found no block.
        first_map_block: block of the first map page.
        durable: whether the file is synced at its end, and writeback is started early.
        output: the file's bulk, while the image is being written.
    """

    fd: int
    blocks: BlockAllocator
    memory: PhysicalMemory
    compressor: CompressorName
    progress: Progress | None
    entries: list[NDArray[np.int64]] = field(default_factory=list)
    image_pages: int = 0
    first_map_block: int = 0
    durable: bool = True
    output: BulkOutput = field(init=False)

    def write(self, pfns: Pfns, zero: BoolArray, info: ImageInfo) -> WrittenImage:
        """Write everything and return the counts."""
        size_bytes = PAGE_SIZE * (len(pfns) - int(zero.sum()))
        with BulkOutput(self.fd, size_bytes, grows=self.blocks.free is None, durable=self.durable) as self.output:
            return self._write(pfns, zero, info, bulk_writers(size_bytes))

    def _write(self, pfns: Pfns, zero: BoolArray, info: ImageInfo, writers: int) -> WrittenImage:
        meta = pack_pfns(pfns, zero)
        stored = pfns[~zero]
        final_info = info.with_pages(saved_pages=len(pfns), image_pages=len(stored))
        self._write_blocks(self._take(1), memoryview(final_info.page))
        crc, units, compressed_bytes = self._write_stream(StreamRows(self.memory, meta, stored), writers)
        map_pages = self._write_map(np.concatenate(self.entries))
        self.blocks.require_enough(compressed=self.compressor != "none", complete=not zero.any())
        crc32 = None if self.compressor == "none" or self._keeps_flags else crc.value
        self._write_header(crc32)
        return WrittenImage(
            saved_pages=len(pfns),
            zero_pages=int(zero.sum()),
            stored_pages=len(stored),
            meta_pages=len(meta),
            map_pages=map_pages,
            units=units,
            compressed_bytes=compressed_bytes,
            crc32=crc32,
            blocks=self.blocks.used,
        )

    @property
    def _keeps_flags(self) -> bool:
        """Whether the old image is of a kernel without flags for its data, and the new one is stored alike."""
        return self.blocks.flagless == self.compressor

    def _write_stream(self, rows: StreamRows, writers: int) -> tuple[Crc, int, int]:
        """Write the stream, compressed on all cores; return its CRC, the number of units and their total length."""
        crc, units, compressed_bytes = Crc(), 0, 0
        codec = None if self.compressor == "none" else codec_named(self.compressor)
        rooms = Rooms(batch_room(codec))

        def work(number: int) -> PackedBatch:
            first = number * BATCH_PAGES
            return pack_batch(rows, first, min(first + BATCH_PAGES, len(rows)), codec, rooms)

        def commit(packed: PackedBatch) -> tuple[NDArray[np.int64], PackedBatch]:
            nonlocal units, compressed_bytes
            crc.add(packed.crc32, packed.pages * PAGE_SIZE)
            units += packed.units
            compressed_bytes += packed.compressed_bytes
            if self.progress:
                self.progress(packed.pages)
            return self._take(packed.blocks), packed

        def finish(placed: tuple[NDArray[np.int64], PackedBatch]) -> None:
            blocks, packed = placed
            self._write_blocks(blocks, packed.data.data)
            rooms.give_back(packed.room)

        in_order(-(-len(rows) // BATCH_PAGES), work, commit, finish, finishers=writers)
        return crc, units, compressed_bytes

    def _take(self, count: int) -> NDArray[np.int64]:
        """Return the blocks of the image's next pages, and record them; none if too few are left."""
        self.image_pages += count
        blocks = self.blocks.take(count)
        self.entries.append(blocks)
        return blocks

    def _write_blocks(self, blocks: NDArray[np.int64], data: memoryview) -> None:
        """Write whole blocks; nothing if no blocks were left for them."""
        done = 0
        if self.blocks.free is None and len(blocks):  # neighbours: no search while other threads wait for this one
            runs: Iterable[tuple[int, int]] = [(int(blocks[0]), len(blocks))]
        else:
            runs = contiguous_runs(blocks)
        for first, count in runs:
            end = done + count * PAGE_SIZE
            self.output.write([data[done:end]], self.blocks.base_bytes + first * PAGE_SIZE)
            done = end

    def _write_map(self, entries: NDArray[np.int64]) -> int:
        """Write the chain of map pages and return their number, pages without a block included."""
        count = -(-self.image_pages // MAP_ENTRIES)
        blocks = self.blocks.take(count)
        if self.blocks.missing:
            return count
        pages = np.zeros((count, MAP_ENTRIES + 1), dtype="<u8")
        for page in range(count):
            part = entries[page * MAP_ENTRIES : (page + 1) * MAP_ENTRIES]
            pages[page, : len(part)] = part
        pages[:-1, MAP_ENTRIES] = blocks[1:]
        self._write_blocks(blocks, memoryview(pages.tobytes()))
        self.first_map_block = int(blocks[0])
        return count

    def _write_header(self, crc32: int | None) -> None:
        """Write the header block."""
        blocks = self.blocks
        header = blocks.header
        if blocks.free is None:
            count = max(blocks.used + 1, MIN_BLOCKS) if blocks.grows else (blocks.limit or 0) + 1
            header = header.with_fields({"last_page": count - 1})
            set_size(self.fd, count * PAGE_SIZE)
        keep = header.flags & (Flags.PLATFORM_MODE | Flags.HW_SIG)
        flags = keep if self._keeps_flags else keep | FLAGS[self.compressor]
        block = header.with_image(image=self.first_map_block, flags=flags, crc32=crc32).block
        write_all(self.fd, memoryview(block), blocks.base_bytes + blocks.header_block * PAGE_SIZE)
