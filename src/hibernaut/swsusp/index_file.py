# SPDX-License-Identifier: GPL-2.0-or-later
"""A file beside an image that tells where its units and its frames are, so that opening does not look for them.

Without it, an image is opened by one small read for each unit, all over the image, and by decompressing its list of
frames. The file holds the length of each unit and the ranges of frames; it is bound to its image by the place and size
of the swap area and by a digest of the header, the swap map, the info page and some blocks of the data. An index is
made anew only where no file is: one that does not belong to the image, or is damaged, is refused and stays.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hibernaut.errors import FormatError
from hibernaut.memory.ranges import FrameRanges
from hibernaut.swsusp.area import SwapArea
from hibernaut.swsusp.codecs import COMPRESSORS, CompressorName
from hibernaut.swsusp.declarations import MAX_PFN, UNIT_PAGES, max_compressed_bytes
from hibernaut.swsusp.header import SwapHeader
from hibernaut.swsusp.info import ImageInfo
from hibernaut.swsusp.stream import UnitIndex
from hibernaut.swsusp.swapmap import SwapMap
from hibernaut.volumes.output import replacing, write_all

__all__ = ["INDEX_HEADER", "ImageIndex", "IndexKey", "key_of", "read_index", "write_index"]

INDEX_HEADER = np.dtype(
    [
        ("magic", "S16"),
        ("version", "<u4"),
        ("compressor", "<u4"),
        ("length_bytes", "<u4"),
        ("page_size", "<u4"),
        ("file_bytes", "<u8"),
        ("base_bytes", "<u8"),
        ("header_block", "<u8"),
        ("units", "<u8"),
        ("frame_ranges", "<u8"),
        ("zero_ranges", "<u8"),
        ("image_sha256", "V32"),
    ]
)
"""Start of the file; the lengths of the units follow (u32; none if not compressed), the first frames and numbers of
frames of all ranges, then of those of zero pages (u64), then SHA-256 of all that."""
MAGIC = b"hibernaut-index"
VERSION = 1
DIGEST_BYTES = 32
WITNESSES = 64
"""Blocks of the data in the digest, evenly spread: the swap map of an older image in the same area may be the same."""
HASHED_ENTRIES = 1 << 17
REMOVE = "remove it, and it is made anew"


@dataclass(frozen=True)
class IndexKey:
    """The image that an index belongs to.

    Attributes:
        page_size: size of a block.
        file_bytes: size of the file, or of the volume in it.
        base_bytes: byte at which the device of the swap area begins in it.
        header_block: block of the swap header.
        image_sha256: digest of header, swap map, info page and some blocks.
    """

    page_size: int
    file_bytes: int
    base_bytes: int
    header_block: int
    image_sha256: bytes


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """Places of units and frames.

    Attributes:
        compressor: compressor of the data.
        length_bytes: size of a unit's length, and of a frame number on the list.
        units: the units.
        frames: all frames listed.
        zero_frames: those of zero pages.
    """

    compressor: CompressorName
    length_bytes: int
    units: UnitIndex
    frames: FrameRanges
    zero_frames: FrameRanges


def key_of(area: SwapArea, header: SwapHeader, swap_map: SwapMap, info: ImageInfo) -> IndexKey:
    """Return the key of an image whose parts are read. Raises CorruptImage if a block lies outside of the file."""
    digest = hashlib.sha256(header.block)
    digest.update(info.page)
    for blocks in (swap_map.map_blocks, swap_map.entries):
        for first in range(0, len(blocks), HASHED_ENTRIES):
            digest.update(blocks[first : first + HASHED_ENTRIES].astype("<u8").tobytes())
    some = np.linspace(0, len(swap_map.entries) - 1, min(WITNESSES, len(swap_map.entries))).astype(np.int64)
    for block in swap_map.entries[some].tolist():
        digest.update(area.read_block(block, "block of the data"))
    return IndexKey(area.page_size, area.file.size_bytes, area.base_bytes, area.header_block, digest.digest())


def write_index(path: str | os.PathLike[str], key: IndexKey, index: ImageIndex) -> None:
    """Write the index of an image, private (0600), complete or not at all. Raises OSError."""
    compressed = index.compressor != "none"
    header = np.zeros(1, dtype=INDEX_HEADER)
    header["magic"], header["version"] = MAGIC, VERSION
    header["compressor"], header["length_bytes"] = COMPRESSORS.index(index.compressor), index.length_bytes
    header["page_size"], header["file_bytes"] = key.page_size, key.file_bytes
    header["base_bytes"], header["header_block"] = key.base_bytes, key.header_block
    header["units"] = len(index.units) if compressed else 0
    header["frame_ranges"], header["zero_ranges"] = len(index.frames), len(index.zero_frames)
    header["image_sha256"] = np.void(key.image_sha256)
    parts: list[NDArray[np.generic]] = [
        header,
        index.units.compressed_bytes.astype("<u4") if compressed else header[:0],
    ]
    for ranges in (index.frames, index.zero_frames):
        parts += [ranges.starts.astype("<u8"), ranges.nr_pages.astype("<u8")]
    digest, at = hashlib.sha256(), 0
    with replacing(path) as fd:
        for part in parts:
            data = part.tobytes()
            digest.update(data)
            write_all(fd, memoryview(data), at)
            at += len(data)
        write_all(fd, memoryview(digest.digest()), at)


def read_index(path: str | os.PathLike[str], key: IndexKey, swap_map: SwapMap, info: ImageInfo) -> ImageIndex | None:
    """Return the index of an image; None if there is no file.

    Raises:
        FormatError: the file is not an index, is damaged, or belongs to another image.
        OSError: it cannot be read.
    """
    name = os.fspath(path)
    try:
        data = _content(Path(name))
    except FileNotFoundError:
        return None
    header = _checked_header(data, name)
    found = IndexKey(
        int(header["page_size"]),
        int(header["file_bytes"]),
        int(header["base_bytes"]),
        int(header["header_block"]),
        header["image_sha256"].tobytes(),
    )
    if found != key:
        raise FormatError(
            f"the index belongs to another image, or to an older one: {_difference(found, key)}",
            source=name,
            advice=f"give another file with --index, or {REMOVE}",
        )
    try:
        return _parsed(data, header, key, swap_map, info)
    except ValueError as error:
        raise FormatError(f"the index contradicts its image: {error}", source=name, advice=REMOVE) from None


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        head = file.read(INDEX_HEADER.itemsize)
        # A file of another kind may be of any size: no more of it is read.
        return head + file.read() if head.startswith(MAGIC) else head


def _checked_header(data: bytes, name: str) -> np.void:
    """Return the header of a file that is whole. Raises FormatError."""
    if not data.startswith(MAGIC):
        raise FormatError("not an index of hibernaut", source=name, advice="give the name of a new file with --index")
    header: np.void = np.frombuffer(data.ljust(INDEX_HEADER.itemsize, b"\0"), dtype=INDEX_HEADER, count=1)[0]
    if len(data) >= INDEX_HEADER.itemsize and header["version"] != VERSION:
        raise FormatError(
            "the index is of another version of hibernaut",
            source=name,
            expected=str(VERSION),
            found=str(int(header["version"])),
            advice=REMOVE,
        )
    ranges = int(header["frame_ranges"]) + int(header["zero_ranges"])
    expected = INDEX_HEADER.itemsize + 4 * int(header["units"]) + 16 * ranges + DIGEST_BYTES
    if len(data) != expected:
        raise FormatError(
            "the index is damaged: its length is wrong",
            source=name,
            expected=f"{expected} bytes",
            found=f"{len(data)} bytes",
            advice=REMOVE,
        )
    if hashlib.sha256(memoryview(data)[:-DIGEST_BYTES]).digest() != data[-DIGEST_BYTES:]:
        raise FormatError("the index is damaged: its SHA-256 is wrong", source=name, advice=REMOVE)
    return header


def _difference(found: IndexKey, key: IndexKey) -> str:
    """Return in words what distinguishes two images."""
    if found.file_bytes != key.file_bytes:
        return f"its file has {found.file_bytes} bytes, this one {key.file_bytes}"
    if (found.base_bytes, found.header_block) != (key.base_bytes, key.header_block):
        return "its swap area begins at another place"
    return "header, swap map or data differ"


def _parsed(data: bytes, header: np.void, key: IndexKey, swap_map: SwapMap, info: ImageInfo) -> ImageIndex:
    """Return the parts of an index. Raises ValueError if they contradict the image."""
    number, length_bytes = int(header["compressor"]), int(header["length_bytes"])
    if number >= len(COMPRESSORS) or length_bytes not in (4, 8):
        raise ValueError(f"compressor {number}, words of {length_bytes} bytes")
    at = INDEX_HEADER.itemsize
    lengths = np.frombuffer(data, dtype="<u4", count=int(header["units"]), offset=at).astype(np.int64)
    at += 4 * len(lengths)
    ranges = []
    for count in (int(header["frame_ranges"]), int(header["zero_ranges"])):
        words = np.frombuffer(data, dtype="<u8", count=2 * count, offset=at)
        at += 16 * count
        ranges.append(_ranges(words[:count], words[count:]))
    frames, zero_frames = ranges
    each = key.page_size // 4096
    stored = frames.total_pages - zero_frames.total_pages
    if stored != info.image_pages * each or zero_frames.within(frames).total_pages != zero_frames.total_pages:
        raise ValueError(f"{stored} frames with data; expected {info.image_pages * each}")
    units = _units(lengths, COMPRESSORS[number], length_bytes, key.page_size, len(swap_map.entries), info.stream_pages)
    return ImageIndex(COMPRESSORS[number], length_bytes, units, frames, zero_frames)


def _ranges(starts: NDArray[np.uint64], nr_pages: NDArray[np.uint64]) -> FrameRanges:
    """Return ranges of frames. Raises ValueError if they are not ascending, or beyond physical memory."""
    if len(starts):
        most = np.uint64(MAX_PFN + 1)
        if (starts >= most).any() or (nr_pages > most).any() or not nr_pages.all():
            raise ValueError("ranges of frames beyond physical memory")
        ends = starts + nr_pages
        if ends[-1] > most or (starts[1:] <= ends[:-1]).any():
            raise ValueError("ranges of frames are not in order")
    return FrameRanges(starts.astype(np.int64), nr_pages.astype(np.int64))


def _units(
    lengths: NDArray[np.int64],
    compressor: CompressorName,
    length_bytes: int,
    page_size: int,
    entries: int,
    stream_pages: int,
) -> UnitIndex:
    """Return the units. Raises ValueError if they are not those of so many pages in so many entries of the map."""
    units = -(-stream_pages // UNIT_PAGES)
    if compressor == "none":
        first = np.minimum(1 + UNIT_PAGES * np.arange(units + 1, dtype=np.int64), stream_pages + 1)
        lengths = np.zeros(units, dtype=np.int64)
    else:
        if len(lengths) != units:
            raise ValueError(f"{len(lengths)} units; expected {units}")
        if not lengths.all() or int(lengths.max(initial=0)) > max_compressed_bytes(UNIT_PAGES * page_size):
            raise ValueError("a unit has an impossible length")
        first = np.concatenate(([1], 1 + np.cumsum(-(-(length_bytes + lengths) // page_size))))
    if int(first[-1]) > entries:
        raise ValueError(f"its units need {int(first[-1])} entries of the swap map; expected at most {entries}")
    return UnitIndex(first, lengths, entries - int(first[-1]))
