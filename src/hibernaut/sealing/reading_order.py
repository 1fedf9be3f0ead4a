# SPDX-License-Identifier: GPL-2.0-or-later
"""The blocks that a resuming kernel reads of an image, in the order in which it reads them.

From kernel/power/swap.c, read in linux-source-6.1 6.1.192-2; QEMU traces the same reads of Linux 6.1 and 7.3:

1. `swsusp_check` reads the header block (`swsusp_resume_block`) and acts on `sig`, `flags` and `hw_sig`.
2. `get_swap_reader` reads all map pages, from the field `image` on, each naming the next one in its last word.
3. `swsusp_read` reads the block of entry 0, the info page, through `swap_read_page`.
4. `load_image`, or `load_compressed_image` (`load_image_lzo` before 6.9), reads the blocks of the further entries,
   in the order of the map, each as a whole: also what follows a compressed unit in its last block. Reading ahead, the
   latter continues to the first entry that is zero, whether or not a unit needs the block.

So entries count up to the first zero. What follows it in a map page is read with that page, and nothing acts on it.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from hibernaut.errors import FormatError
from hibernaut.sealing.blocks import BLOCK_BYTES, AbsentBlock, Blocks, read_block

__all__ = [
    "IMAGE_FIELD",
    "MAP_ENTRIES",
    "TAIL_BYTES",
    "BrokenMap",
    "ReadingOrder",
    "entries_of",
    "header_of_image",
    "image_block",
    "map_pages",
    "reading_order",
]

SIGNATURE = b"S1SUSPEND\0"
"""`HIBERNATE_SIG`, the last ten bytes of the header block."""
TAIL_BYTES = 40
"""Length of `struct swsusp_header` after its reserved part: hw_sig, crc32, image, flags, orig_sig, sig."""
IMAGE_FIELD = slice(BLOCK_BYTES - 32, BLOCK_BYTES - 24)
"""Place of `image`, the block of the first map page, in the header block."""
MAP_ENTRIES = BLOCK_BYTES // 8 - 1
"""`MAP_PAGE_ENTRIES`."""


class BrokenMap(Exception):
    """A swap map that has no end inside the device.

    Attributes:
        what: the defect, a clause.
        block: block that the chain leads to.
    """

    def __init__(self, what: str, block: int) -> None:
        self.what = what
        self.block = block
        super().__init__(what)


@dataclass(frozen=True)
class ReadingOrder:
    """The blocks of an image in the order of reading: the header block, the map pages, the entries.

    Attributes:
        header_block: block of the header.
        map_blocks: blocks of the map pages, in chain order.
        entries: blocks of the entries up to the first zero; entry 0 is the info page.
    """

    header_block: int
    map_blocks: list[int] = field(repr=False)
    entries: array[int] = field(repr=False)

    @property
    def covered_blocks(self) -> int:
        """Number of blocks that are read."""
        return 1 + len(self.map_blocks) + len(self.entries)


def header_of_image(area: Blocks, block: int) -> bytes:
    """Return the header block of an area that holds an image.

    Raises:
        FormatError: it holds none.
        OSError: the device cannot be read.
    """
    try:
        header = read_block(area, block)
    except AbsentBlock:
        raise FormatError(
            f"the header would be block {block}",
            source=area.name,
            expected=f"a block below {area.blocks}",
            advice="give the kernel's resume_offset, in pages, as --offset",
        ) from None
    if header[-len(SIGNATURE) :] != SIGNATURE:
        raise FormatError(
            "not an image: a resuming kernel would find no signature",
            source=area.name,
            expected="S1SUSPEND at the end of the header block",
            found=ascii(header[-len(SIGNATURE) :].decode("latin-1")),
            advice="give the area that the kernel hibernated to",
        )
    return header


def image_block(header: bytes) -> int:
    """Return the block of the first map page that a header block names."""
    return int.from_bytes(header[IMAGE_FIELD], "little")


def map_pages(area: Blocks, header_block: int, header: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (block, content) of each map page, in chain order.

    Raises:
        BrokenMap: the chain leads to a block beyond the device, to the header, or back to itself.
        OSError: the device cannot be read.
    """
    block, seen = image_block(header), set[int]()
    while block or not seen:
        what = f"map page {len(seen)} would be block {block}"
        if block in seen:
            raise BrokenMap(f"{what} again", block)
        if block == header_block or not block:
            raise BrokenMap(f"{what}, the header", block)
        try:
            page = read_block(area, block)
        except (AbsentBlock, OverflowError):
            raise BrokenMap(f"{what}, beyond the device of {area.blocks} blocks", block) from None
        seen.add(block)
        yield block, page
        block = int.from_bytes(page[-8:], "little")


def entries_of(page: bytes) -> tuple[array[int], bool]:
    """Return the entries of a map page up to the first zero, and whether there is one."""
    words = array("Q")
    words.frombytes(page[: 8 * MAP_ENTRIES])
    if sys.byteorder == "big":
        words.byteswap()
    try:
        return words[: words.index(0)], True
    except ValueError:
        return words, False


def reading_order(
    area: Blocks, header_block: int, header: bytes, see: Callable[[int, bytes], None] | None = None
) -> ReadingOrder:
    """Return the blocks that a kernel reads.

    Args:
        area: the device.
        header_block: block of the swap header.
        header: its content.
        see: called with block and content of each map page.

    Raises:
        BrokenMap: as `map_pages`; or the map has more entries than the device blocks, or none.
        OSError: the device cannot be read.
    """
    chain: list[int] = []
    entries, is_complete = array("Q"), False
    for block, page in map_pages(area, header_block, header):
        chain.append(block)
        if see is not None:
            see(block, page)
        if not is_complete:
            some, is_complete = entries_of(page)
            entries.extend(some)
        if len(entries) > area.blocks:
            raise BrokenMap(f"the map has more entries than the device blocks, {area.blocks}", block)
    if not entries:
        raise BrokenMap("the map has no entry", chain[0])
    return ReadingOrder(header_block, chain, entries)
