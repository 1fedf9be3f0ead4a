# SPDX-License-Identifier: GPL-2.0-or-later
"""The writer of kdump-compressed dumps, as makedumpfile makes them, in one pass and bounded memory.

Blocks of 4096 bytes: header, sub-header with VMCOREINFO, two bitmaps (frames that exist, frames in the file), a
descriptor of each page, the pages. A page is compressed by itself, or stored as it is where that is not longer;
all pages of zeroes share one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hibernaut.memory import declarations as c
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.memory.ranges import FrameRanges
from hibernaut.memory.vmcoreinfo import parse_vmcoreinfo
from hibernaut.parallel import ordered_results
from hibernaut.volumes.output import Writeback, set_size, write_all

if TYPE_CHECKING:
    from hibernaut.memory.page import Bytes, Pfns
    from hibernaut.memory.writers import Chunks

__all__ = ["KDUMP_COMPRESSORS", "KdumpCompressor", "write_kdump"]

KdumpCompressor = Literal["zlib", "lzo", "zstd", "none"]
KDUMP_COMPRESSORS: tuple[KdumpCompressor, ...] = ("zlib", "lzo", "zstd", "none")

SUB_HEADER_BLOCKS = 3
"""Its own, and 2 for VMCOREINFO, which the kernel bounds to 1 page (VMCOREINFO_BYTES, include/linux/vmcore_info.h)."""
BITMAP_PIECE = 1 << 20
"""Bytes of a bitmap written at a time."""
VERSION = 6
UNKNOWN = "unknown"
"""For a name of the machine: libkdumpfile takes no header with an empty one (`uts_looks_sane`)."""


class Packed(NamedTuple):
    """The pages of one chunk as they are stored.

    Attributes:
        pfns: their frames, shape (n,).
        sizes: length of each, 0 for a page of zeroes, uint32, shape (n,).
        flags: compression of each, uint32, shape (n,).
        data: all of them.
    """

    pfns: Pfns
    sizes: NDArray[np.uint32]
    flags: NDArray[np.uint32]
    data: bytes


def write_kdump(
    chunks: Chunks,
    fd: int,
    ranges: FrameRanges,
    *,
    zero_pages: int = 0,
    compressor: KdumpCompressor = "zlib",
    vmcoreinfo: Callable[[], bytes | None] = lambda: None,
) -> None:
    """Write a kdump-compressed dump, header version 6. Pages are compressed on all cores and written in order.

    The header is written last: an unfinished file is not a dump.

    Args:
        chunks: the pages of `ranges` in ascending order, each once.
        fd: descriptor of a new, empty file, open for writing.
        ranges: all page frames.
        zero_pages: number of frames of `ranges` that are not in `chunks` since they are zero.
        compressor: compressor of the pages.
        vmcoreinfo: function that returns the text of VMCOREINFO, called once, after the last page; None if unknown.

    Raises:
        ValueError: a chunk holds a frame that is not in `ranges` or out of order, or the number of pages is wrong.
        OSError: writing fails.
    """
    half = -(-ranges.end // (8 * PAGE_SIZE)) * PAGE_SIZE
    bitmap_at = (1 + SUB_HEADER_BLOCKS) * PAGE_SIZE
    descriptors_at = bitmap_at + 2 * half
    for at in (bitmap_at, bitmap_at + half):
        set_size(fd, at + half)
        _write_bitmap(fd, at, ranges)
    writer = _Pages(fd, ranges, descriptors_at, compressor)
    packer = _Packer(compressor)
    tasks = ((lambda chunk=chunk: packer.pack(*chunk)) for chunk in chunks)
    for packed in ordered_results(tasks):
        writer.write(packed)
    end = writer.finish(zero_pages)
    text = vmcoreinfo() or b""
    text_at = 2 * PAGE_SIZE if len(text) <= (SUB_HEADER_BLOCKS - 1) * PAGE_SIZE else end
    write_all(fd, memoryview(text), text_at)
    facts = parse_vmcoreinfo(text)
    write_all(fd, memoryview(_sub_header(ranges, facts, text_at if text else 0, len(text))), PAGE_SIZE)
    write_all(fd, memoryview(_header(ranges, facts, compressor, 2 * half // PAGE_SIZE)), 0)


class _Pages:
    """The descriptors and the pages of a file.

    Args:
        fd: the file.
        ranges: all page frames.
        descriptors_at: byte of the first descriptor.
        compressor: compressor of the pages.
    """

    def __init__(self, fd: int, ranges: FrameRanges, descriptors_at: int, compressor: KdumpCompressor) -> None:
        self._fd = fd
        self._ranges = ranges
        self._descriptors_at = descriptors_at
        self._next_row = 0
        self._zero_rows = 0
        self._writeback = Writeback(fd)
        self._end = descriptors_at + ranges.total_pages * c.KDUMP_PAGE.itemsize
        zero, flags = _Packer(compressor).one(bytes(PAGE_SIZE))
        self._zero = np.array((self._end, len(zero), flags, 0), dtype=c.KDUMP_PAGE)
        write_all(fd, memoryview(zero), self._end)
        self._end += len(zero)

    def write(self, packed: Packed) -> None:
        """Write the pages of a chunk, and all descriptors up to its last page: those between are of zero pages."""
        if not len(packed.pfns):
            return
        rows = self._ranges.rows(packed.pfns)
        if (rows < 0).any() or rows[0] < self._next_row or (np.diff(rows) <= 0).any():
            raise ValueError("chunk holds a frame that was not announced, or out of order")
        self._fill(int(rows[0]))
        descriptors = np.full(int(rows[-1]) + 1 - self._next_row, self._zero, dtype=c.KDUMP_PAGE)
        stored = packed.sizes > 0
        within = rows[stored] - self._next_row
        descriptors["offset"][within] = self._end + np.cumsum(packed.sizes[stored], dtype=np.uint64)
        descriptors["offset"][within] -= packed.sizes[stored]
        descriptors["size"][within] = packed.sizes[stored]
        descriptors["flags"][within] = packed.flags[stored]
        self._zero_rows += len(descriptors) - len(rows)
        self._put(descriptors)
        write_all(self._fd, memoryview(packed.data), self._end)
        self._end += len(packed.data)
        self._writeback.wrote(len(packed.data))

    def finish(self, zero_pages: int) -> int:
        """Write the descriptors after the last page, and return the length of the file so far.

        Raises ValueError if another number of frames than `zero_pages` got no page.
        """
        self._fill(self._ranges.total_pages)
        if self._zero_rows != zero_pages:
            total = self._ranges.total_pages
            raise ValueError(f"wrong number of pages: expected {total - zero_pages}, found {total - self._zero_rows}")
        return self._end

    def _fill(self, row: int) -> None:
        """Write descriptors of zero pages up to a row."""
        self._zero_rows += row - self._next_row
        while self._next_row < row:
            self._put(np.full(min(row - self._next_row, 1 << 16), self._zero, dtype=c.KDUMP_PAGE))

    def _put(self, descriptors: NDArray[np.void]) -> None:
        at = self._descriptors_at + self._next_row * c.KDUMP_PAGE.itemsize
        write_all(self._fd, memoryview(descriptors.tobytes()), at)
        self._next_row += len(descriptors)


class _Packer:
    """Compresses pages; safe for several threads, each of which has a compressor of its own."""

    def __init__(self, compressor: KdumpCompressor) -> None:
        self._compressor = compressor
        self._flags = c.KDUMP_FLAGS[compressor]
        self._local = threading.local()

    def pack(self, pfns: Pfns, pages: Bytes) -> Packed:
        """Compress the pages of a chunk, shape (n, 4096)."""
        occupied = pages.view(np.uint64).any(axis=1)
        sizes = np.zeros(len(pages), dtype=np.uint32)
        flags = np.zeros(len(pages), dtype=np.uint32)
        parts = []
        for row in np.flatnonzero(occupied).tolist():
            part, flags[row] = self.one(pages[row].tobytes())
            sizes[row] = len(part)
            parts.append(part)
        return Packed(pfns, sizes, flags, b"".join(parts))

    def one(self, page: bytes) -> tuple[bytes, int]:
        """Return a page as it is stored, and its flags."""
        if self._compressor == "none":
            return page, 0
        if not hasattr(self._local, "compress"):
            self._local.compress = _compress_function(self._compressor)
        packed: bytes = self._local.compress(page)
        return (packed, self._flags) if len(packed) < PAGE_SIZE else (page, 0)


def _compress_function(compressor: KdumpCompressor) -> Callable[[bytes], bytes]:
    """Return a function that compresses one page, for one thread. Libraries are imported on first use."""
    if compressor == "zlib":
        from isal import isal_zlib

        return lambda page: isal_zlib.compress(page, 1)
    if compressor == "lzo":
        import lzallright

        return lzallright.LZOCompressor().compress
    import zstandard

    return zstandard.ZstdCompressor(level=1).compress


def _write_bitmap(fd: int, at: int, ranges: FrameRanges) -> None:
    """Write a bitmap with the bits of all frames set, lowest bit first; the file is zero there."""
    for first_byte, bits in _bitmap(ranges):
        write_all(fd, memoryview(np.packbits(bits, bitorder="little").tobytes()), at + first_byte)


def _bitmap(ranges: FrameRanges) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield the parts of a bitmap that are not zero: (first byte, bits of whole bytes)."""
    starts = ranges.starts.tolist()
    lengths = ranges.nr_pages.tolist()
    number, done = 0, 0
    while number < len(starts):
        first = max(starts[number], done) // 8 * 8
        end = first + 8 * BITMAP_PIECE
        bits = np.zeros(8 * BITMAP_PIECE, dtype=np.uint8)
        while number < len(starts) and starts[number] < end:
            past = starts[number] + lengths[number]
            bits[max(starts[number] - first, 0) : past - first] = 1
            if past > end:
                break
            number += 1
        last = int(np.flatnonzero(bits)[-1]) + 1
        yield first // 8, bits[: -(-last // 8) * 8]
        done = end


def _header(ranges: FrameRanges, facts: dict[str, str], compressor: KdumpCompressor, bitmap_blocks: int) -> bytes:
    header = np.zeros(1, dtype=c.KDUMP_HEADER)
    header["signature"], header["header_version"] = c.KDUMP_MAGIC, VERSION
    header["sysname"], header["machine"] = b"Linux", b"x86_64"
    header["release"] = facts.get("OSRELEASE", UNKNOWN).encode()
    header["version"] = UNKNOWN.encode()
    header["status"] = c.KDUMP_FLAGS[compressor]
    header["block_size"], header["sub_hdr_size"] = PAGE_SIZE, SUB_HEADER_BLOCKS
    header["bitmap_blocks"] = bitmap_blocks
    header["max_mapnr"] = min(ranges.end, 0xFFFF_FFFF)
    header["nr_cpus"] = 1
    return bytes(header.tobytes())


def _sub_header(ranges: FrameRanges, facts: dict[str, str], text_at: int, text_bytes: int) -> bytes:
    header = np.zeros(1, dtype=c.KDUMP_SUB_HEADER)
    header["phys_base"] = np.uint64(_number(facts.get("NUMBER(phys_base)", "0")) % 2**64)
    header["offset_vmcoreinfo"], header["size_vmcoreinfo"] = text_at, text_bytes
    header["end_pfn"] = header["end_pfn_64"] = header["max_mapnr_64"] = ranges.end
    return bytes(header.tobytes())


def _number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        return 0
