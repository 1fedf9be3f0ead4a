# SPDX-License-Identifier: GPL-2.0-or-later
"""Dumps of AVML with compression: LiME's header with a magic of its own, each range a stream of Snappy frames.

Facts from AVML (github.com/microsoft/avml, src/image.rs) and from Snappy's framing format (github.com/google/snappy,
framing_format.txt): a chunk holds at most 64 KiB of data and is decompressed by itself, with its CRC-32C. After the
stream of a range stands its length, a u64. AVML cuts ranges at 16 MiB and leaves out those that are all zeroes.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hibernaut.errors import CorruptImage, FormatError
from hibernaut.memory import declarations as c
from hibernaut.memory.dump import Dump, Refusal
from hibernaut.memory.joined import ByteRanges, split_frames
from hibernaut.memory.lime import refusal_of_header
from hibernaut.memory.mapped import first_wins, whole_frames
from hibernaut.memory.page import CHUNK_PAGES, PAGE_SIZE
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.ranges import FrameRanges
from hibernaut.memory.recent import RecentParts
from hibernaut.parallel import ordered_results
from hibernaut.volumes.volume import close_volume

if TYPE_CHECKING:
    from hibernaut.memory.page import BoolArray, Bytes
    from hibernaut.volumes.volume import Volume

__all__ = ["AvmlMemory", "Frames", "open_avml"]

DUMP_AGAIN = "copy or dump it again"
CHUNK_HEAD_BYTES = 16
"""Bytes of a chunk that tell its length of data: a CRC and a varint, or a name."""
CACHED_CHUNKS = 256
"""Chunks that reading by frame keeps decompressed: 16 MiB."""


class Frames(NamedTuple):
    """The chunks with data of all ranges, in the order of the file, int64, shape (n,).

    Attributes:
        starts: bytes of data before each, over all ranges; one more at the end: shape (n + 1,).
        offsets: bytes in the file at which they begin, with their headers.
        sizes_bytes: lengths in the file, with their headers.
    """

    starts: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes_bytes: NDArray[np.int64]


def open_avml(plain: Volume) -> Dump | Refusal:
    """Open a dump of AVML as physical memory.

    A frame that two ranges hold in parts is put together; one that the dump holds only in part is left out. Where two
    ranges overlap, the earlier wins.

    Returns:
        The dump, which owns `plain`; a refusal if the file does not start with AVML's header of version 2.

    Raises:
        FormatError: it does, and a range, a chunk or a length is impossible, or no page is in the file.
    """
    refusal = refusal_of_header(plain, "AVML", c.AVML_MAGIC, c.AVML_VERSION)
    if refusal is not None:
        return refusal
    index = _Index(plain)
    index.read()
    memory = AvmlMemory(plain, index.spans(), index.frames())
    if not memory.ranges.total_pages:
        raise FormatError("no range holds a whole page", source=plain.name)
    return Dump("avml", memory, remarks=index.remarks)


class _Index:
    """The reading of all headers of a file: nothing is decompressed.

    Attributes:
        remarks: what is missing at the end of the file.
    """

    def __init__(self, plain: Volume) -> None:
        self.remarks: tuple[str, ...] = ()
        self._plain = plain
        self._at = 0
        self._starts = array("q", [0])
        self._offsets = array("q")
        self._sizes = array("q")
        self._ranges: list[tuple[int, int, int]] = []

    def read(self) -> None:
        """Read all ranges. Raises FormatError if one is impossible."""
        end = self._plain.size_bytes
        while self._at < end and not self.remarks:
            raw = self._take(c.LIME_RANGE.itemsize)
            if len(raw) < c.LIME_RANGE.itemsize:
                self._incomplete("the file ends inside a header")
                return
            magic, version, start, last, _ = np.frombuffer(raw, dtype=c.LIME_RANGE)[0].tolist()
            at = self._at - len(raw)
            if (magic, version) != (c.AVML_MAGIC, c.AVML_VERSION):
                raise self._wrong("no AVML header after a range", at, raw[:8].hex())
            if not start <= last < c.PADDR_LIMIT:
                raise self._wrong(f"impossible range {start:#x} to {last:#x}", at + 8)
            self._range(start, last - start + 1)

    def spans(self) -> ByteRanges:
        """Return the ranges, placed by the bytes of data before them."""
        return ByteRanges(*np.array(self._ranges, dtype=np.int64).reshape(-1, 3).T)

    def frames(self) -> Frames:
        """Return the places of all chunks with data."""
        return Frames(*(np.array(of, dtype=np.int64) for of in (self._starts, self._offsets, self._sizes)))

    def _range(self, start: int, size_bytes: int) -> None:
        """Read the chunks of one range, then their length."""
        first, begins, wanted = self._starts[-1], self._at, self._starts[-1] + size_bytes
        while self._starts[-1] < wanted:
            if not self._chunk(wanted - self._starts[-1]):
                self._ranges.append((start, self._starts[-1] - first, first))
                there = self._starts[-1] - first
                missing = (start + size_bytes) // PAGE_SIZE - (start + there) // PAGE_SIZE
                where = f"{start:#x} to {start + size_bytes - 1:#x}"
                self._incomplete(f"{missing} pages of its last range, {where}, are not in the file")
                return
        self._ranges.append((start, size_bytes, first))
        length_at, raw = self._at, self._take(8)
        if len(raw) < 8:
            self._incomplete("the file ends after the data of a range")
        elif int.from_bytes(raw, "little") != length_at - begins:
            expected = f"{length_at - begins}, the length of the chunks before"
            raise self._wrong("no length after a range", length_at, str(int.from_bytes(raw, "little")), expected)

    def _chunk(self, room: int) -> bool:
        """Read the header of one chunk; return False if the file ends before its end."""
        at = self._at
        head = self._plain.pread(at, 4 + CHUNK_HEAD_BYTES)  # once a chunk: there are 16384 in each GiB
        size = int.from_bytes(head[1:4], "little")
        if len(head) < 4 or at + 4 + size > self._plain.size_bytes:
            return False
        kind, body = head[0], head[4 : 4 + min(size, CHUNK_HEAD_BYTES)]
        self._at += 4 + size
        if kind == c.SNAPPY_STREAM:
            if size != len(c.SNAPPY_NAME) or body != c.SNAPPY_NAME:
                raise self._wrong("no identifier of a Snappy stream", at, body.hex())
            return True
        if kind >= c.SNAPPY_SKIPPABLE:
            return True
        if kind not in (c.SNAPPY_COMPRESSED, c.SNAPPY_PLAIN) or size < 4:
            raise self._wrong(f"impossible chunk of kind {kind:#04x}", at)
        data = size - 4 if kind == c.SNAPPY_PLAIN else _length(body[4:])
        if data is None or not 0 <= data <= min(c.SNAPPY_CHUNK_BYTES, room):
            raise self._wrong(
                f"chunk of {'an unreadable number of' if data is None else data} bytes of data",
                at,
                expected=f"at most {min(c.SNAPPY_CHUNK_BYTES, room)}",
            )
        if data:
            self._starts.append(self._starts[-1] + data)
            self._offsets.append(at)
            self._sizes.append(4 + size)
        return True

    def _take(self, size_bytes: int) -> bytes:
        raw = self._plain.pread(self._at, size_bytes)
        self._at += len(raw)
        return raw

    def _incomplete(self, how: str) -> None:
        self.remarks = (f"the dump is incomplete: {how}, and whether there were others after it is not known",)

    def _wrong(self, what: str, at: int, found: str | None = None, expected: str | None = None) -> FormatError:
        return FormatError(what, source=self._plain.name, offset=at, found=found, expected=expected, advice=DUMP_AGAIN)


def _length(data: bytes) -> int | None:
    """Return the number of bytes that raw Snappy data begins with, a varint of at most 32 bits; None if it is none."""
    value = 0
    for place, byte in enumerate(data[:5]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value
    return None


class AvmlMemory(PhysicalMemory):
    """Frames of a dump of AVML; a chunk is decompressed when one of its pages is read.

    Safe to use from several threads. Reading a damaged chunk raises CorruptImage.

    Args:
        plain: the file; closing this memory closes it.
        spans: places of ranges in the data; where two overlap, the earlier wins.
        frames: places of the data in the file.
    """

    def __init__(self, plain: Volume, spans: ByteRanges, frames: Frames) -> None:
        self._plain = plain
        self._pieces = first_wins(whole_frames(*spans))
        self._frames = frames
        whole = FrameRanges.of([(start, length) for start, length, _ in self._pieces.tolist()])
        self._split = split_frames(spans, whole)
        self._ranges = FrameRanges.of([*whole, *FrameRanges.of_pfns(sorted(self._split))]) if self._split else whole
        self._chunk = RecentParts(self._unpacked, CACHED_CHUNKS)

    @property
    def ranges(self) -> FrameRanges:
        """The page frames that the dump holds as a whole."""
        return self._ranges

    def run(self, pfn: int, nr_pages: int) -> Bytes:
        """See `PhysicalMemory.run`: at most the pages of one chunk; a page in several parts is a run of its own."""
        parts = self._split.get(pfn)
        if parts is not None and nr_pages > 0:
            return self._joined([(part.offset, part.end - part.start) for part in parts])
        index = int(np.searchsorted(self._pieces[:, 0], pfn, side="right")) - 1
        if index < 0 or nr_pages <= 0:
            return np.empty((0, PAGE_SIZE), dtype=np.uint8)
        start, length, position = self._pieces[index].tolist()
        if pfn >= start + length:
            return np.empty((0, PAGE_SIZE), dtype=np.uint8)
        nr_pages = min(nr_pages, start + length - pfn)
        position += (pfn - start) * PAGE_SIZE
        number = int(np.searchsorted(self._frames.starts, position, side="right")) - 1
        within = position - int(self._frames.starts[number])
        whole = min(nr_pages, (int(self._frames.starts[number + 1]) - position) // PAGE_SIZE)
        if whole:
            return self._chunk(number)[within : within + whole * PAGE_SIZE].reshape(whole, PAGE_SIZE)
        return self._joined([(position, PAGE_SIZE)])

    def _joined(self, parts: list[tuple[int, int]]) -> Bytes:
        """Return one page, shape (1, 4096), of parts of the data: their positions and lengths."""
        found: list[Bytes] = []
        for start, size_bytes in parts:
            position, end = start, start + size_bytes
            while position < end:
                number = int(np.searchsorted(self._frames.starts, position, side="right")) - 1
                first = int(self._frames.starts[number])
                found.append(self._chunk(number)[position - first : end - first])
                position = min(end, int(self._frames.starts[number + 1]))
        page = np.concatenate(found).reshape(1, PAGE_SIZE)
        page.flags.writeable = False
        return page

    def gather(self, pfns: ArrayLike, out: Bytes | None = None) -> tuple[Bytes, BoolArray]:
        """See `PhysicalMemory.gather`; many frames are read on all cores."""
        frames = np.asarray(pfns, dtype=np.int64)
        pages = np.empty((len(frames), PAGE_SIZE), dtype=np.uint8) if out is None else out
        if len(frames) <= CHUNK_PAGES:
            return super().gather(frames, pages)
        parts = [slice(at, at + CHUNK_PAGES) for at in range(0, len(frames), CHUNK_PAGES)]
        base = super().gather
        tasks = ((lambda part=part: base(frames[part], pages[part])[1]) for part in parts)
        return pages, np.concatenate(list(ordered_results(tasks)))

    def blocks(self, nr_pages: int = CHUNK_PAGES) -> Iterator[tuple[int, Bytes]]:
        """See `PhysicalMemory.blocks`; decompressed on all cores, some blocks ahead."""

        def task(first: int, count: int) -> Callable[[], tuple[int, Bytes]]:
            return lambda: (first, super(AvmlMemory, self).gather(np.arange(first, first + count))[0])

        pieces = (
            task(at, min(nr_pages, start + length - at))
            for start, length in self._ranges
            for at in range(start, start + length, nr_pages)
        )
        return ordered_results(pieces)

    def _unpacked(self, number: int) -> Bytes:
        """Return the data of one chunk, shape (n,). Raises CorruptImage if it is damaged."""
        import cramjam

        offset, size_bytes = int(self._frames.offsets[number]), int(self._frames.sizes_bytes[number])
        out = np.empty(int(self._frames.starts[number + 1] - self._frames.starts[number]), dtype=np.uint8)
        raw = self._plain.pread(offset, size_bytes)
        try:
            # A stream of one chunk: the library then checks its CRC.
            got = cramjam.snappy.decompress_into(c.SNAPPY_START + raw, out.data)
        except (cramjam.DecompressionError, ValueError) as error:
            raise self._damaged(offset, str(error)) from error
        if got != len(out):
            raise self._damaged(offset, f"{got} bytes of data, not {len(out)}")
        return out

    def _damaged(self, offset: int, how: str) -> CorruptImage:
        return CorruptImage(f"damaged chunk ({how})", source=self._plain.name, offset=offset, advice=DUMP_AGAIN)

    def close(self) -> None:
        """Close the file."""
        self._chunk.clear()
        close_volume(self._plain)
