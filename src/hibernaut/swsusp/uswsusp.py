# SPDX-License-Identifier: GPL-2.0-or-later
"""The header of an image of suspend-utils (uswsusp), and the blocks that its extents name."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hibernaut.errors import CorruptImage, FormatError
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.swsusp import uswsusp_declarations as u
from hibernaut.swsusp.architecture import OTHER_ARCHITECTURE
from hibernaut.swsusp.area import SwapArea
from hibernaut.swsusp.declarations import SWAP_SIGNATURES
from hibernaut.swsusp.generations import generation_of

__all__ = ["USWSUSP", "Extents", "UserlandHeader", "read_extents", "read_userland_header"]

USWSUSP = "an image of suspend-utils (uswsusp)"
NOT_READ = "use the suspend-utils that wrote it: no kernel reads it"
KNOWN_FLAGS = int(sum(u.UserlandFlags))


@dataclass(frozen=True)
class UserlandHeader:
    """The header of an image of suspend-utils (`struct image_header_info`).

    Attributes:
        at_bytes: its place, in bytes of the device.
        pages: pages of the stream with the info page; one less where the kernel could not tell suspend-utils.
        flags: see `UserlandFlags`.
        map_start: place of the first page of extents, in bytes of the device.
        data_bytes: bytes of the blocks that hold the stream.
        md5: MD5 of the stream, None unless its flag is set.
        orig_sig: the swap signature that a resume puts back.
    """

    at_bytes: int
    pages: int
    flags: int
    map_start: int
    data_bytes: int
    md5: bytes | None
    orig_sig: bytes

    @property
    def compressed(self) -> bool:
        """Whether the stream is compressed, with LZO."""
        return bool(self.flags & u.UserlandFlags.COMPRESSED)

    @property
    def summary(self) -> str:
        """Its size and kind, in a few words."""
        kind = "LZO" if self.compressed else "not compressed"
        return f"{self.pages} pages, {kind}, {'MD5' if self.md5 is not None else 'no checksum'}"


def read_userland_header(area: SwapArea, block: bytes) -> UserlandHeader:
    """Return the header of an image of suspend-utils.

    There is no version field: the fields decide whether they are those of a header that is known.

    Args:
        area: the swap area.
        block: its header block, which ends with `USWSUSP_SIGNATURE`.

    Raises:
        FormatError: the image is encrypted, of a 32-bit machine, or of an older suspend-utils.
        CorruptImage: the header contradicts itself.
    """
    tail = np.frombuffer(block, dtype=u.USWSUSP_TAIL)[0]
    at_bytes, orig_sig = int(tail["image"]), tail["orig_sig"].tobytes()
    tail_at = area.offset_of(area.header_block) + 4068
    if not _is_place(area, at_bytes):
        raise CorruptImage(
            f"header of {USWSUSP} would be at byte {at_bytes} of the device",
            source=area.file.name,
            offset=tail_at,
            expected=f"a multiple of {PAGE_SIZE} below {area.blocks * PAGE_SIZE}",
        )
    page = area.read_block(at_bytes // PAGE_SIZE, "image header")
    header = _parse(page, u.IMAGE_HEADER, at_bytes, orig_sig)
    wrong = _implausible(area, header)
    if wrong:
        _refuse_other_layouts(area, page, at_bytes, orig_sig)
        what, field = wrong
        raise CorruptImage(
            f"header of {USWSUSP}: {what}",
            source=area.file.name,
            offset=area.base_bytes + at_bytes + u.IMAGE_HEADER.fields[field][1],  # type: ignore[index]
        )
    if header.flags & u.UserlandFlags.ENCRYPTED:
        rsa = ", with an RSA key" if header.flags & u.UserlandFlags.USE_RSA else ""
        raise FormatError(
            f"this is {USWSUSP.replace('an image', 'an encrypted image')}{rsa}, which is not read",
            source=area.file.name,
            offset=area.base_bytes + at_bytes,
            advice=NOT_READ,
        )
    if orig_sig not in SWAP_SIGNATURES:
        raise CorruptImage(
            "orig_sig is not a swap signature",
            source=area.file.name,
            offset=tail_at + 8,
            expected=" or ".join(known.decode() for known in SWAP_SIGNATURES),
            found=repr(orig_sig),
        )
    return header


def _parse(page: bytes, layout: np.dtype[np.void], at_bytes: int, orig_sig: bytes) -> UserlandHeader:
    fields = np.frombuffer(page[: layout.itemsize], dtype=layout)[0]
    flags = int(fields["flags"])
    return UserlandHeader(
        at_bytes=at_bytes,
        pages=int(fields["pages"]),
        flags=flags,
        map_start=int(fields["map_start"]),
        data_bytes=int(fields["data_bytes"]),
        md5=fields["md5"].tobytes() if flags & u.UserlandFlags.CHECKSUM else None,
        orig_sig=orig_sig,
    )


def _is_place(area: SwapArea, at_bytes: int) -> bool:
    """Return whether a byte of the device is the start of a block that can hold a part of an image."""
    block, rest = divmod(at_bytes, PAGE_SIZE)
    return not rest and 0 < block < area.blocks and block != area.header_block


def _implausible(area: SwapArea, header: UserlandHeader) -> tuple[str, str] | None:
    """Return a contradiction of the header and the name of its field; None if there is none.

    The length of the data and the start of the map are those of an unencrypted image.
    """
    size_bytes = area.blocks * PAGE_SIZE
    if header.flags & ~KNOWN_FLAGS:
        return f"flags are {header.flags:#x}; expected those of {KNOWN_FLAGS:#x} alone", "flags"
    if header.flags & u.UserlandFlags.USE_RSA and not header.flags & u.UserlandFlags.ENCRYPTED:
        return f"flags are {header.flags:#x}: an RSA key without encryption", "flags"
    if not header.pages:
        return "pages is 0; expected 1 or more", "pages"
    if header.flags & u.UserlandFlags.ENCRYPTED:
        return None
    if not _is_place(area, header.map_start):
        return f"map_start is {header.map_start}; expected a multiple of {PAGE_SIZE} below {size_bytes}", "map_start"
    if header.data_bytes % PAGE_SIZE or not 0 < header.data_bytes <= size_bytes:
        return (
            f"image_data_size is {header.data_bytes}; expected a multiple of {PAGE_SIZE}, up to {size_bytes}",
            "data_bytes",
        )
    if not header.compressed and header.data_bytes // PAGE_SIZE not in (header.pages, header.pages + 1):
        return f"image_data_size is {header.data_bytes}; expected that of {header.pages} pages", "data_bytes"
    return None


def _refuse_other_layouts(area: SwapArea, page: bytes, at_bytes: int, orig_sig: bytes) -> None:
    """Raise FormatError if the page is a header of another layout, which is known but not read."""
    if generation_of(page) is not None:
        raise FormatError(
            f"this is {USWSUSP} by an older version, whose header is the kernel's info page; it is not read",
            source=area.file.name,
            offset=area.base_bytes + at_bytes,
            advice=NOT_READ,
        )
    header = _parse(page, u.IMAGE_HEADER_32, at_bytes, orig_sig)
    if _implausible(area, header) is None:
        encrypted = "encrypted " if header.flags & u.UserlandFlags.ENCRYPTED else ""
        raise FormatError(
            f"not an x86-64 image: this is {USWSUSP.replace('an image', f'an {encrypted}image')} of a 32-bit machine",
            source=area.file.name,
            offset=area.base_bytes + at_bytes,
            advice=OTHER_ARCHITECTURE,
        )


@dataclass(frozen=True, eq=False)
class Extents:
    """The blocks of the stream, as ranges: nothing grows with their number before the image is believed.

    Attributes:
        map_blocks: blocks of the pages of extents, int64, shape (m,).
        starts: first block of each range, in the order of the stream, shape (n,).
        ends: entries up to the end of each range: its cumulated length, shape (n,).
    """

    map_blocks: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.ends[-1])

    def blocks(self, first: int, count: int) -> NDArray[np.int64]:
        """Return the blocks of `count` entries from entry `first` on, int64."""
        one = bisect_right(self.ends, first)
        last = bisect_right(self.ends, first + count - 1) + 1
        ends = np.minimum(self.ends[one:last], first + count)
        begins = np.concatenate(([first], ends[:-1]))
        # The block of entry e in a range is its start plus the entries of the range before e.
        origin = self.starts[one:last] - (self.ends[one:last] - _lengths(self.ends)[one:last])
        return np.repeat(origin, ends - begins) + np.arange(first, first + count, dtype=np.int64)


def _lengths(ends: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.diff(ends, prepend=0)


def read_extents(area: SwapArea, header: UserlandHeader) -> Extents:
    """Read the chain of pages of extents as far as the data goes.

    The last page of a chain does not always end in zeroes: `save_extents` leaves the range there that it would have
    used next, where the place of a next page would be. So the length of the data decides, not the chain.

    Raises:
        CorruptImage: the chain loops, leaves the area or ends early, or a range is not one of blocks of the area, or a
            block is used twice.
    """
    wanted = header.data_bytes // PAGE_SIZE
    chain: list[int] = []
    seen: set[int] = set()
    starts: list[NDArray[np.int64]] = []
    lengths: list[NDArray[np.int64]] = []
    place, named_at, got = header.map_start, area.base_bytes + header.at_bytes + 16, 0
    while got < wanted:
        block = place // PAGE_SIZE
        if not _is_place(area, place) or block in seen:
            again = " again" if block in seen else ""
            raise CorruptImage(
                f"page {len(chain)} of the extents would be at byte {place} of the device{again}, "
                f"{wanted - got} blocks before the end of the data",
                source=area.file.name,
                offset=named_at,
                expected=f"a multiple of {PAGE_SIZE} below {area.blocks * PAGE_SIZE}, used once",
            )
        page = np.frombuffer(area.read_block(block, f"page {len(chain)} of the extents"), dtype=u.EXTENT)
        seen.add(block)
        chain.append(block)
        used, counts = _ranges(area, page[: u.EXTENTS], block, wanted - got)
        starts.append(used)
        lengths.append(counts)
        got += int(counts.sum())
        place, named_at = int(page[u.EXTENTS]["start"]), area.offset_of(block) + u.EXTENTS * u.EXTENT.itemsize
    extents = Extents(np.array(chain, dtype=np.int64), np.concatenate(starts), np.cumsum(np.concatenate(lengths)))
    _refuse_doubles(area, header, extents)
    return extents


def _ranges(
    area: SwapArea, extents: NDArray[np.void], block: int, wanted: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return first blocks and lengths of the ranges of one page, cut at `wanted` blocks; the first empty one ends them.

    Raises CorruptImage if there is none, or one is not of blocks of the area.
    """
    empty = np.flatnonzero(extents["start"] >= extents["end"])
    count = int(empty[0]) if len(empty) else len(extents)
    start, end = extents["start"][:count], extents["end"][:count]
    bad = (start <= 0) | (end > area.blocks * PAGE_SIZE) | (start % PAGE_SIZE != 0) | (end % PAGE_SIZE != 0)
    first_bad = int(np.argmax(bad)) if bad.any() else count
    with np.errstate(over="ignore"):
        lengths = ((end - start) // PAGE_SIZE)[:first_bad]
    before = np.cumsum(lengths) - lengths
    needed = int(np.searchsorted(before, wanted))
    if needed < first_bad or first_bad == count:
        return start[:needed] // PAGE_SIZE, np.minimum(lengths[:needed], wanted - before[:needed])
    raise CorruptImage(
        f"extent {first_bad} is bytes {int(extents['start'][first_bad])} to {int(extents['end'][first_bad])}",
        source=area.file.name,
        offset=area.offset_of(block) + first_bad * u.EXTENT.itemsize,
        expected=f"whole blocks of the device, up to byte {area.blocks * PAGE_SIZE}",
    )


def _refuse_doubles(area: SwapArea, header: UserlandHeader, extents: Extents) -> None:
    """Raise CorruptImage if a block has two uses: ranges, pages of extents, image header and swap header."""
    single = np.array([*extents.map_blocks.tolist(), header.at_bytes // PAGE_SIZE, area.header_block], dtype=np.int64)
    starts = np.concatenate((extents.starts, single))
    ends = np.concatenate((extents.starts + _lengths(extents.ends), single + 1))
    order = np.argsort(starts, kind="stable")
    twice = np.flatnonzero(starts[order][1:] < ends[order][:-1])
    if len(twice):
        block = int(starts[order][int(twice[0]) + 1])
        raise CorruptImage(
            f"block {block} is used twice by the extents",
            source=area.file.name,
            offset=area.offset_of(block),
            expected="each block of the image in one place",
        )
