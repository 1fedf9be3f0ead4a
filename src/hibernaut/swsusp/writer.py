# SPDX-License-Identifier: GPL-2.0-or-later
"""Writing an image: into a new swap area, or into a copy of an area that holds one.

Order of writes: data, map pages, sync; the header block last, sync (facts: an area whose header was not yet written
holds no image). Into an existing area only the blocks of its old image are used: any other block may hold swapped-out
pages of the very machine that was saved.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from hibernaut.errors import FormatError, HibernautError
from hibernaut.memory.physical import PAGE_SIZE, BoolArray, Bytes, Frames, PhysicalMemory
from hibernaut.parallel import in_order, ordered_results
from hibernaut.swsusp.area import contiguous_runs
from hibernaut.swsusp.codecs import Codec, CompressorName, codec_named
from hibernaut.swsusp.declarations import (
    HEADER,
    LENGTH_BYTES,
    MAP_ENTRIES,
    SIGNATURE,
    SWAP_SIGNATURES,
    UNIT_BYTES,
    UNIT_PAGES,
    Flags,
)
from hibernaut.swsusp.header import SwapHeader
from hibernaut.swsusp.image import Image, Progress
from hibernaut.swsusp.info import ImageInfo
from hibernaut.swsusp.pfns import pack_pfns
from hibernaut.swsusp.stream import BATCH_UNITS, Crc
from hibernaut.volumes.files import PlainFile
from hibernaut.volumes.output import Writeback, replacing, write_all, write_vector

__all__ = ["ExistingArea", "NewArea", "WrittenImage", "spool_image", "write_image"]

LEAST_BLOCKS = 10
"""mkswap makes no smaller area."""
COPY_BYTES = 16 << 20
BATCH_PAGES = BATCH_UNITS * UNIT_PAGES
ZEROES = memoryview(bytes(PAGE_SIZE))


@dataclass(frozen=True)
class NewArea:
    """A swap area to be made.

    Attributes:
        size_bytes: its size, a multiple of 4096; None: just as large as the image needs.
        label: volume label, at most 15 bytes.
    """

    size_bytes: int | None = None
    label: str = "hibernaut"


@dataclass(frozen=True)
class ExistingArea:
    """A copy of the file that holds an image, its area and header kept, its image's blocks used again."""

    image: Image


@dataclass(frozen=True)
class WrittenImage:
    """What was written.

    Attributes:
        saved_pages: frames listed.
        zero_pages: of them, those without a data page.
        stored_pages: of them, those with one.
        meta_pages: pages of frame numbers.
        map_pages: pages of the swap map.
        units: compressed units, 0 if not compressed.
        compressed_bytes: their compressed lengths, added up.
        crc32: as in the header; None if the image is not compressed.
        blocks: blocks used, map pages among them, the header not.
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
    pfns: Frames,
    info: ImageInfo,
    area: NewArea | ExistingArea,
    *,
    compressor: CompressorName,
    zero_pages: bool,
    progress: Progress | None = None,
) -> WrittenImage:
    """Write an image of these frames to a file, which appears whole or not at all.

    Args:
        path: the file to make or replace.
        memory: where the frames' bytes are.
        pfns: the frames to save, ascending, shape (n,).
        info: the info page; its counts are set here.
        area: the swap area to write into.
        compressor: one that the resuming kernel reads, see `ImageRules.compressors`.
        zero_pages: leave out pages that are all zeroes, for kernels that read that, see `ImageRules.zero_pages`.
        progress: told of pages done.

    Raises:
        HibernautError: frames that `memory` lacks, or an area too small: with the number of blocks missing.
        OSError: the file cannot be written.
    """
    zero = _elided(memory, pfns, zero_pages)
    layout = _layout(area)
    with replacing(path) as fd:
        if isinstance(area, ExistingArea):
            copy_sparse(area.image.area.file, fd)
        return _Writer(fd, layout, memory, compressor, progress).write(pfns, zero, info)


def spool_image(
    fd: int,
    memory: PhysicalMemory,
    pfns: Frames,
    info: ImageInfo,
    area: ExistingArea,
    *,
    compressor: CompressorName,
    zero_pages: bool,
    progress: Progress | None = None,
) -> tuple[WrittenImage, NDArray[np.int64]]:
    """Write an image's blocks and its header, nothing else, into an empty file, each at its place in the area's file.

    Nothing is synced: the file is for those who carry the blocks on to where they belong.

    Args:
        fd: the empty file, open for reading and writing.
        memory: where the frames' bytes are.
        pfns: the frames to save, ascending, shape (n,).
        info: the info page; its counts are set here.
        area: whose blocks are to be used; it is not written to.
        compressor: what the resuming kernel understands.
        zero_pages: leave out pages that are all zeroes.
        progress: told of pages done.

    Returns:
        What was written, and its blocks, ascending, shape (n,); the header block is not among them.

    Raises:
        HibernautError: as `write_image`.
        OSError: the file cannot be written.
    """
    zero = _elided(memory, pfns, zero_pages)
    layout = _layout(area)
    written = _Writer(fd, layout, memory, compressor, progress, durable=False).write(pfns, zero, info)
    return written, area.image.swap_map.blocks[: layout.used]


def _elided(memory: PhysicalMemory, pfns: Frames, zero_pages: bool) -> BoolArray:
    """Which frames get no data page. Raises HibernautError if memory lacks a frame or there is none to save."""
    absent = pfns[~memory.ranges.contains(pfns)]
    if len(absent):
        raise HibernautError(
            f"{len(absent)} of the {len(pfns)} listed frames are not in memory, the first {absent[0]:#x}"
        )
    if not len(pfns):
        raise HibernautError("no frames to save")
    return _zero_pages(memory, pfns) if zero_pages else np.zeros(len(pfns), dtype=np.bool_)


def copy_sparse(source: PlainFile, fd: int) -> None:
    """Copy a whole file, holes as holes."""
    for at, end in source.data_extents():
        while at < end:
            piece = source.pread(at, min(COPY_BYTES, end - at))
            if not piece:
                raise FormatError("the file ends while being copied", source=source.name, offset=at)
            write_all(fd, memoryview(piece), at)
            at += len(piece)
    os.ftruncate(fd, source.size_bytes)


@dataclass
class _Layout:
    """The blocks to use: those of `free` in order, or, for an area that grows, 1, 2, 3, ..."""

    header: SwapHeader
    header_block: int
    base_bytes: int
    limit: int | None
    free: NDArray[np.int64] | None
    grows: bool = False
    used: int = 0
    missing: int = 0

    def take(self, count: int) -> NDArray[np.int64]:
        """The next blocks; when they run out, counts what is missing and returns none."""
        have = count if self.limit is None else min(count, self.limit - self.used)
        self.missing += count - have
        first, self.used = self.used, self.used + have
        if have < count:
            return np.empty(0, dtype=np.int64)
        if self.free is None:
            return np.arange(first + 1, self.used + 1, dtype=np.int64)
        return self.free[first : self.used]


def _layout(area: NewArea | ExistingArea) -> _Layout:
    if isinstance(area, ExistingArea):
        old = area.image
        free = old.swap_map.blocks
        return _Layout(old.header, old.area.header_block, old.area.base_bytes, len(free), free)
    size = area.size_bytes
    if size is not None and (size % PAGE_SIZE or size < LEAST_BLOCKS * PAGE_SIZE):
        raise HibernautError(
            f"size of the swap area is {size}; expected a multiple of {PAGE_SIZE}, at least {LEAST_BLOCKS} pages"
        )
    limit = None if size is None else size // PAGE_SIZE - 1
    return _Layout(_new_header(area), 0, 0, limit, None, grows=size is None)


def _new_header(area: NewArea) -> SwapHeader:
    """A header as mkswap writes it (union swap_header, version 1); its size is set at the end."""
    block = np.zeros(1, dtype=HEADER)
    block["version"] = 1
    block["uuid"] = np.void(uuid.uuid4().bytes)
    block["label"] = np.void(area.label.encode()[:15].ljust(16, b"\0"))
    block["orig_sig"] = np.void(SWAP_SIGNATURES[0])
    block["sig"] = np.void(SIGNATURE)
    return SwapHeader.parse(block.tobytes())


def _zero_pages(memory: PhysicalMemory, pfns: Frames) -> BoolArray:
    """Which frames hold nothing but zeroes, shape as given."""

    def task(first: int) -> Callable[[], BoolArray]:
        def is_zero() -> BoolArray:
            pages, _ = memory.gather(pfns[first : first + BATCH_PAGES])
            return np.asarray(~pages.view(np.uint64).any(axis=1), dtype=np.bool_)

        return is_zero

    return np.concatenate(list(ordered_results(map(task, range(0, len(pfns), BATCH_PAGES)))))


@dataclass(frozen=True, eq=False)
class _Packed:
    """A batch of the stream, ready to be written: buffers that together are whole blocks, CRC of the plain pages."""

    parts: tuple[bytes | memoryview, ...]
    blocks: int
    pages: int
    crc32: int
    units: int
    compressed_bytes: int


@dataclass
class _Writer:
    fd: int
    layout: _Layout
    memory: PhysicalMemory
    compressor: CompressorName
    progress: Progress | None
    entries: list[NDArray[np.int64]] = field(default_factory=list)
    image_pages: int = 0
    first_map_block: int = 0
    durable: bool = True

    def __post_init__(self) -> None:
        self.writeback = Writeback(self.fd) if self.durable else None

    def write(self, pfns: Frames, zero: BoolArray, info: ImageInfo) -> WrittenImage:
        meta = pack_pfns(pfns, zero)
        stored = pfns[~zero]
        final_info = info.with_pages(saved_pages=len(pfns), image_pages=len(stored))
        self._write_blocks(self._take(1), (final_info.page,))
        crc, units, compressed_bytes = Crc(), 0, 0
        codec = None if self.compressor == "none" else codec_named(self.compressor)
        rows = _Rows(self.memory, meta, stored)

        def work(number: int) -> _Packed:
            first = number * BATCH_PAGES
            return _pack(rows, first, min(first + BATCH_PAGES, len(rows)), codec)

        def commit(packed: _Packed) -> tuple[NDArray[np.int64], _Packed]:
            nonlocal units, compressed_bytes
            crc.add(packed.crc32, packed.pages * PAGE_SIZE)
            units += packed.units
            compressed_bytes += packed.compressed_bytes
            if self.progress:
                self.progress(packed.pages)
            return self._take(packed.blocks), packed

        in_order(
            -(-len(rows) // BATCH_PAGES), work, commit, lambda placed: self._write_blocks(placed[0], placed[1].parts)
        )
        entries = np.concatenate(self.entries)
        map_pages = self._put_map(entries)
        self._refuse_if_too_small()
        crc32 = None if self.compressor == "none" else crc.value
        self._finish(crc32)
        return WrittenImage(
            saved_pages=len(pfns),
            zero_pages=int(zero.sum()),
            stored_pages=len(stored),
            meta_pages=len(meta),
            map_pages=map_pages,
            units=units,
            compressed_bytes=compressed_bytes,
            crc32=crc32,
            blocks=self.layout.used,
        )

    def _take(self, count: int) -> NDArray[np.int64]:
        """The next free blocks, noted as the image's next pages; none if they have run out."""
        self.image_pages += count
        blocks = self.layout.take(count)
        self.entries.append(blocks)
        return blocks

    def _write_blocks(self, blocks: NDArray[np.int64], parts: Sequence[bytes | memoryview]) -> None:
        """Write whole blocks; nothing if no blocks were left for them."""
        runs = list(contiguous_runs(blocks))
        if not runs:
            return
        if len(runs) > 1:  # the parts do not end where the runs do
            data = memoryview(b"".join(parts))
            ends = np.cumsum([count for _, count in runs]).tolist()
            pieces: list[Sequence[bytes | memoryview]] = [
                [data[(end - count) * PAGE_SIZE : end * PAGE_SIZE]] for end, (_, count) in zip(ends, runs, strict=True)
            ]
        else:
            pieces = [parts]
        for (first, count), piece in zip(runs, pieces, strict=True):
            at = self.layout.base_bytes + first * PAGE_SIZE
            write_vector(self.fd, piece, at)
            if self.writeback:
                self.writeback.wrote(count * PAGE_SIZE)

    def _put_map(self, entries: NDArray[np.int64]) -> int:
        """Write the chain of map pages; returns their number, which counts pages that found no block as well."""
        count = -(-self.image_pages // MAP_ENTRIES)
        blocks = self.layout.take(count)
        if self.layout.missing:
            return count
        pages = np.zeros((count, MAP_ENTRIES + 1), dtype="<u8")
        for page in range(count):
            part = entries[page * MAP_ENTRIES : (page + 1) * MAP_ENTRIES]
            pages[page, : len(part)] = part
        pages[:-1, MAP_ENTRIES] = blocks[1:]
        self._write_blocks(blocks, (pages.tobytes(),))
        self.first_map_block = int(blocks[0])
        return count

    def _refuse_if_too_small(self) -> None:
        if self.layout.missing:
            have = 0 if self.layout.limit is None else self.layout.limit
            place = "the old image's blocks" if self.layout.free is not None else "the swap area"
            raise HibernautError(
                f"the image does not fit: {self.layout.missing} blocks of 4096 bytes are missing "
                f"({place}: {have}, needed: {have + self.layout.missing})"
            )

    def _finish(self, crc32: int | None) -> None:
        """Sync, then the header block, then sync again."""
        layout = self.layout
        header = layout.header
        if layout.free is None:
            blocks = max(layout.used + 1, LEAST_BLOCKS) if layout.grows else (layout.limit or 0) + 1
            header = header.with_fields({"last_page": blocks - 1})
            os.ftruncate(self.fd, blocks * PAGE_SIZE)
        keep = header.flags & (Flags.PLATFORM_MODE | Flags.HW_SIG)
        flags = keep | _FLAGS[self.compressor]
        block = header.with_image(image=self.first_map_block, flags=flags, crc32=crc32).block
        if self.durable:
            os.fsync(self.fd)
        write_all(self.fd, memoryview(block), layout.base_bytes + layout.header_block * PAGE_SIZE)
        if self.durable:
            os.fsync(self.fd)


_FLAGS: dict[CompressorName, int] = {
    "none": Flags.NOCOMPRESS_MODE,
    "lzo": Flags.CRC32_MODE,
    "lz4": Flags.CRC32_MODE | Flags.COMPRESSION_ALG_LZ4,
}


class _Rows:
    """The rows of the stream, meta pages and then the stored frames; used by several threads at once."""

    def __init__(self, memory: PhysicalMemory, meta: Bytes, stored: Frames) -> None:
        self._memory = memory
        self._meta = meta
        self._stored = stored
        self._buffers = threading.local()

    def __len__(self) -> int:
        return len(self._meta) + len(self._stored)

    def batch(self, first: int, last: int) -> Bytes:
        """Rows `first` to `last` - 1, at most 512, shape (n, 4096), C-contiguous.

        A view of memory where the frames lie there together, else a buffer of this thread, which the next call fills
        anew.
        """
        meta = len(self._meta)
        if first >= meta:
            frames = self._stored[first - meta : last - meta]
            if int(frames[-1]) - int(frames[0]) == len(frames) - 1:
                view = self._memory.run(int(frames[0]), len(frames))
                if len(view) == len(frames) and view.flags.c_contiguous:
                    return view
        return self._gathered(first, last)

    def _gathered(self, first: int, last: int) -> Bytes:
        if not hasattr(self._buffers, "pages"):
            self._buffers.pages = np.empty((BATCH_PAGES, PAGE_SIZE), dtype=np.uint8)
        pages: Bytes = self._buffers.pages[: last - first]
        meta = len(self._meta)
        of_meta = max(0, min(last, meta) - first)
        pages[:of_meta] = self._meta[first : first + of_meta]
        wanted = self._stored[max(0, first - meta) : max(0, last - meta)]
        _, present = self._memory.gather(wanted, pages[of_meta:])
        if not present.all():
            raise HibernautError(f"frame {wanted[~present][0]:#x} vanished from memory while it was being saved")
        return pages


def _pack(rows: _Rows, first: int, last: int, codec: Codec | None) -> _Packed:
    pages = rows.batch(first, last)
    flat = pages.reshape(-1)
    crc32 = isal_zlib.crc32(flat)
    if codec is None:
        return _Packed((flat.tobytes(),), len(pages), len(pages), crc32, 0, 0)
    parts: list[bytes | memoryview] = []
    stored_bytes = compressed_bytes = 0
    for at in range(0, len(flat), UNIT_BYTES):
        packed = codec.compress(flat[at : at + UNIT_BYTES])
        length = len(packed)
        padding = -(LENGTH_BYTES + length) % PAGE_SIZE
        parts += (length.to_bytes(LENGTH_BYTES, "little"), packed, ZEROES[:padding])
        compressed_bytes += length
        stored_bytes += LENGTH_BYTES + length + padding
    return _Packed(
        tuple(parts), stored_bytes // PAGE_SIZE, len(pages), crc32, -(-len(pages) // UNIT_PAGES), compressed_bytes
    )
