# SPDX-License-Identifier: GPL-2.0-or-later
"""kdump-compressed dumps, as makedumpfile writes them: each page is compressed by itself and found by a bitmap."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hibernaut.errors import CorruptImage, FormatError
from hibernaut.memory import declarations as c
from hibernaut.memory.dump import Dump, Refusal, incomplete
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.ranges import FrameRanges
from hibernaut.memory.vmcoreinfo import page_table_root, parse_vmcoreinfo
from hibernaut.volumes.files import PlainFile
from hibernaut.volumes.volume import close_volume

if TYPE_CHECKING:
    from hibernaut.memory.page import Bytes, Pfns
    from hibernaut.volumes.volume import Volume

__all__ = ["KdumpMemory", "open_kdump"]

DUMP_AGAIN = "copy or dump it again"

RUN_PAGES = 256
"""Most pages that one call decompresses."""
BITMAP_BYTES = 1 << 20
"""Bytes of bitmap read at a time: 8 Mi frames."""
VMCOREINFO_BYTES = 1 << 20
DESCRIPTORS = 1 << 16
"""Page descriptors read at a time."""


def open_kdump(plain: Volume) -> Dump | Refusal:
    """Open a kdump-compressed dump as physical memory; pages that makedumpfile left out do not exist.

    Nor do pages that it did not write for want of space, and those beyond the end of a file that was cut.

    Pages may be uncompressed or compressed with zlib, LZO, Snappy or zstd. `open_plain` puts the flattened form in
    order.

    Returns:
        The dump, which owns `plain`; a refusal if the file is not of this format, or of an unsupported variety (one
        file of several, other page sizes).

    Raises:
        FormatError: it is, and its headers contradict the size of the file.
    """
    raw = plain.pread(0, c.KDUMP_HEADER.itemsize)
    if raw.startswith(c.DISKDUMP_MAGIC):
        return Refusal("kdump", "diskdump, which came before it, is not read")
    if not raw.startswith(c.KDUMP_MAGIC):
        return Refusal("kdump", "no KDUMP magic")
    sub_raw = plain.pread(PAGE_SIZE, c.KDUMP_SUB_HEADER.itemsize)
    if len(raw) < c.KDUMP_HEADER.itemsize or len(sub_raw) < c.KDUMP_SUB_HEADER.itemsize:
        raise FormatError("the file ends inside its headers", source=plain.name, offset=plain.size_bytes)
    header = np.frombuffer(raw, dtype=c.KDUMP_HEADER)[0]
    sub = np.frombuffer(sub_raw, dtype=c.KDUMP_SUB_HEADER)[0]
    version = int(header["header_version"])
    if header["block_size"] != PAGE_SIZE:
        return Refusal("kdump", f"pages of {int(header['block_size'])} bytes, not {PAGE_SIZE}")
    if version >= 2 and sub["split"]:
        return Refusal("kdump", "one file of several (makedumpfile --split)")
    descriptors_at = (1 + int(header["sub_hdr_size"]) + int(header["bitmap_blocks"])) * PAGE_SIZE
    ranges = _dumped(plain, header, int(sub["max_mapnr_64"]) if version >= 6 else int(header["max_mapnr"]))
    if descriptors_at + ranges.total_pages * c.KDUMP_PAGE.itemsize > plain.size_bytes:
        raise FormatError(
            f"{ranges.total_pages} page descriptors run past the end", source=plain.name, offset=descriptors_at
        )
    written = _written(plain, descriptors_at, ranges.total_pages)
    text = _vmcoreinfo(plain, sub) if version >= 3 else None
    facts = {} if text is None else parse_vmcoreinfo(text)
    cr3, levels = page_table_root(facts)
    missing_pages = ranges.total_pages - written.total_pages
    missing = incomplete(missing_pages, ranges.total_pages, marked=bool(header["status"] & c.KDUMP_INCOMPLETE))
    memory = KdumpMemory(plain, *_there(ranges, written), descriptors_at)
    return Dump("kdump", memory, cr3, levels, facts, text, remarks=missing)


class KdumpMemory(PhysicalMemory):
    """Pages of a kdump-compressed file, decompressed when they are read.

    Safe to use from several threads. Reading a damaged page raises CorruptImage.

    Args:
        plain: the file; closing this memory closes it.
        ranges: frames that it holds.
        rows: number of the descriptor of each range's first frame, shape (n,); those of its others follow.
        descriptors_at: byte of the first descriptor.
    """

    def __init__(self, plain: Volume, ranges: FrameRanges, rows: NDArray[np.int64], descriptors_at: int) -> None:
        self._plain = plain
        self._ranges = ranges
        self._rows = rows
        self._descriptors_at = descriptors_at
        self._codecs = _Codecs()

    @property
    def ranges(self) -> FrameRanges:
        """The page frames that the dump holds."""
        return self._ranges

    def run(self, pfn: int, nr_pages: int) -> Bytes:
        """See `PhysicalMemory.run`: at most `RUN_PAGES` pages, in a new array."""
        index = int(np.searchsorted(self._ranges.starts, pfn, side="right")) - 1
        within = pfn - int(self._ranges.starts[index]) if index >= 0 else 0
        count = min(nr_pages, RUN_PAGES, int(self._ranges.nr_pages[index]) - within) if index >= 0 else 0
        out = np.empty((max(count, 0), PAGE_SIZE), dtype=np.uint8)
        if len(out):
            first = self._descriptors_at + (int(self._rows[index]) + within) * c.KDUMP_PAGE.itemsize
            raw = self._plain.pread(first, count * c.KDUMP_PAGE.itemsize)
            for row, descriptor in enumerate(np.frombuffer(raw, dtype=c.KDUMP_PAGE)):
                out[row] = self._page(first + row * c.KDUMP_PAGE.itemsize, descriptor)
        out.flags.writeable = False
        return out

    def _page(self, at: int, descriptor: Any) -> NDArray[np.uint8]:
        """Return one page by its descriptor at byte `at`. Raise CorruptImage if either is damaged."""
        offset, size_bytes, flags = int(descriptor["offset"]), int(descriptor["size"]), int(descriptor["flags"])
        if size_bytes > PAGE_SIZE or offset + size_bytes > self._plain.size_bytes or flags not in c.KDUMP_COMPRESSED:
            raise CorruptImage(
                f"impossible page descriptor: {size_bytes} bytes at {offset}, flags {flags:#x}",
                source=self._plain.name,
                offset=at,
                advice=DUMP_AGAIN,
            )
        try:
            page = self._codecs.of(flags)(self._plain.pread(offset, size_bytes))
        except ValueError as error:
            raise CorruptImage(
                f"damaged page ({error})", source=self._plain.name, offset=offset, advice=DUMP_AGAIN
            ) from error
        if len(page) != PAGE_SIZE:
            raise CorruptImage(
                "page of a wrong size",
                source=self._plain.name,
                offset=offset,
                expected=str(PAGE_SIZE),
                found=str(len(page)),
                advice=DUMP_AGAIN,
            )
        return np.frombuffer(page, dtype=np.uint8)

    def close(self) -> None:
        """Close the file."""
        close_volume(self._plain)


class _Codecs(threading.local):
    """Decompressors by flags of a page, separate for each thread: a zstd decompressor has state during a call."""

    def __init__(self) -> None:
        self._made: dict[int, Callable[[bytes], bytes]] = {}

    def of(self, flags: int) -> Callable[[bytes], bytes]:
        """Return the calling thread's decompressor of pages with these flags, see `_codec`."""
        if flags not in self._made:
            self._made[flags] = _codec(c.KDUMP_COMPRESSED[flags])
        return self._made[flags]


def _codec(compression: str) -> Callable[[bytes], bytes]:
    """Return a function that decompresses one page and raises ValueError if it cannot, for one thread.

    Libraries are imported on first use.
    """
    if compression == "zlib":

        def unpack(data: bytes) -> bytes:
            # One byte more than a page shows that the data is too long, without decompressing the rest.
            return zlib.decompressobj().decompress(data, PAGE_SIZE + 1)

        return _reporting(unpack, zlib.error)
    if compression == "lzo":
        import lzallright

        return _reporting(lambda data: lzallright.LZOCompressor.decompress(data, PAGE_SIZE), lzallright.LZOError)
    if compression == "zstd":
        import zstandard

        unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 20)

        def unpack_frame(data: bytes) -> bytes:
            # The library allocates what a frame claims, whatever the limit.
            claimed = zstandard.frame_content_size(data)
            if claimed > PAGE_SIZE:
                raise ValueError(f"decompresses to {claimed} bytes")
            return unpacker.decompress(data, max_output_size=PAGE_SIZE)

        return _reporting(unpack_frame, zstandard.ZstdError)
    if compression == "snappy":
        import cramjam

        return _reporting(_unsnap, cramjam.DecompressionError)
    return lambda data: data


def _unsnap(data: bytes) -> bytes:
    """Return the page in raw Snappy data. Raises ValueError if its length is another one."""
    import cramjam

    size_bytes = cramjam.snappy.decompress_raw_len(data)
    if size_bytes != PAGE_SIZE:
        raise ValueError(f"decompresses to {size_bytes} bytes")
    page = bytearray(PAGE_SIZE)
    cramjam.snappy.decompress_raw_into(data, page)
    return bytes(page)


def _reporting(unpack: Callable[[bytes], bytes], damage: type[Exception]) -> Callable[[bytes], bytes]:
    def reporting(data: bytes) -> bytes:
        try:
            return unpack(data)
        except damage as error:
            raise ValueError(str(error)) from error

    return reporting


def _dumped(plain: Volume, header: Any, max_mapnr: int) -> FrameRanges:
    """Return the frames that have a descriptor: set bits of the second bitmap. Its size in the file bounds memory."""
    half = int(header["bitmap_blocks"]) * PAGE_SIZE // 2
    start = (1 + int(header["sub_hdr_size"])) * PAGE_SIZE + half
    if start + half > plain.size_bytes:
        raise FormatError("the bitmaps run past the end of the file", source=plain.name, offset=start - half)
    if max_mapnr > c.PADDR_LIMIT // PAGE_SIZE:
        raise FormatError(
            f"its last page frame is {max_mapnr - 1:#x}",
            source=plain.name,
            expected="a frame within 52 bits of addresses",
        )
    edges: list[Pfns] = []
    dumped_pages = 0
    for at, raw in _bitmap_data(plain, start, min(half, -(-max_mapnr // 8))):
        bits = np.unpackbits(np.frombuffer(raw, dtype=np.uint8), bitorder="little")
        bits = bits[: max_mapnr - at * 8]
        dumped_pages += int(np.count_nonzero(bits))
        if dumped_pages * c.KDUMP_PAGE.itemsize > plain.size_bytes:
            raise FormatError("the bitmap names more pages than fit", source=plain.name, offset=start + at)
        edges.append(np.flatnonzero(np.diff(bits, prepend=np.uint8(0), append=np.uint8(0))).astype(np.int64) + at * 8)
    bounds = np.concatenate([*edges, np.empty(0, dtype=np.int64)])
    # Pieces end where they are read: a range of frames that continues in the next piece ends and begins there.
    joined = np.flatnonzero(bounds[1:-1:2] == bounds[2::2])
    found = np.delete(bounds, np.concatenate((2 * joined + 1, 2 * joined + 2)))
    return FrameRanges(found[::2], found[1::2] - found[::2])


def _bitmap_data(plain: Volume, start: int, size_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Yield the bytes of a bitmap, in pieces, with their place in it, but for holes of the file: these name no page."""
    extents = plain.data_extents() if isinstance(plain, PlainFile) else [(0, plain.size_bytes)]
    for first, end in extents:
        low, high = max(first - start, 0), min(end - start, size_bytes)
        for at in range(low, high, BITMAP_BYTES):
            yield at, plain.pread(start + at, min(BITMAP_BYTES, high - at))


def _written(plain: Volume, at: int, nr_pages: int) -> FrameRanges:
    """Return the numbers of page descriptors whose page is in the file. One of zeroes was not written."""
    edges: list[NDArray[np.int64]] = []
    before = False
    for first in range(0, nr_pages, DESCRIPTORS):
        count = min(DESCRIPTORS, nr_pages - first)
        raw = plain.pread(at + first * c.KDUMP_PAGE.itemsize, count * c.KDUMP_PAGE.itemsize)
        descriptors = np.frombuffer(raw, dtype=c.KDUMP_PAGE)
        there = (descriptors["size"] > 0) & (descriptors["offset"] < plain.size_bytes)
        there &= descriptors["offset"] + descriptors["size"] <= plain.size_bytes
        edges.append(np.flatnonzero(np.diff(there, prepend=before)) + first)
        before = bool(there[-1])
    bounds = np.concatenate([*edges, np.array([nr_pages] if before else [], dtype=np.int64)])
    return FrameRanges(bounds[::2], bounds[1::2] - bounds[::2])


def _there(ranges: FrameRanges, written: FrameRanges) -> tuple[FrameRanges, NDArray[np.int64]]:
    """Return the frames whose descriptors are among some, and the number of the descriptor of each range's first.

    Args:
        ranges: frames with a descriptor, in the order of these.
        written: numbers of descriptors.
    """
    first_rows = np.cumsum(ranges.nr_pages) - ranges.nr_pages
    if written.total_pages == ranges.total_pages:
        return ranges, first_rows
    ends = written.starts + written.nr_pages
    bounds = np.unique(np.concatenate((written.starts, ends, first_rows, [ranges.total_pages])))
    rows, lengths = bounds[:-1], np.diff(bounds)
    kept = written.contains(rows)
    rows, lengths = rows[kept], lengths[kept]
    index = np.searchsorted(first_rows, rows, side="right") - 1
    return FrameRanges(ranges.starts[index] + rows - first_rows[index], lengths), rows


def _vmcoreinfo(plain: Volume, sub: Any) -> bytes | None:
    at, size_bytes = int(sub["offset_vmcoreinfo"]), int(sub["size_vmcoreinfo"])
    if not 0 < size_bytes <= VMCOREINFO_BYTES or at + size_bytes > plain.size_bytes:
        return None
    return plain.pread(at, size_bytes).split(b"\x00", 1)[0]
