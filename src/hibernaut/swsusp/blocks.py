# SPDX-License-Identifier: GPL-2.0-or-later
"""The blocks of a swap area that an image is written into, and the header of a new area."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hibernaut.errors import HibernautError
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.swsusp.codecs import CompressorName
from hibernaut.swsusp.declarations import HEADER, SIGNATURE, SWAP_SIGNATURES
from hibernaut.swsusp.header import SwapHeader
from hibernaut.swsusp.image import Image
from hibernaut.swsusp.uswsusp import USWSUSP

__all__ = ["MIN_BLOCKS", "BlockAllocator", "ExistingArea", "NewArea", "allocator_for"]

MIN_BLOCKS = 10
"""Size of the smallest area that mkswap makes."""


@dataclass(frozen=True)
class NewArea:
    """A swap area to be made.

    Attributes:
        size_bytes: its size, a multiple of 4096; None: exactly as large as the image needs.
        label: volume label, at most 15 bytes.
    """

    size_bytes: int | None = None
    label: str = "hibernaut"


@dataclass(frozen=True)
class ExistingArea:
    """A copy of the file that holds an image: its area and header are kept, the image's blocks are used again.

    Attributes:
        image: the image whose blocks are used.
    """

    image: Image


@dataclass
class BlockAllocator:
    """Gives out the blocks of an area in order.

    Attributes:
        header: header block of the area.
        header_block: its number.
        base_bytes: byte at which the area's device begins in the file.
        limit: number of blocks that can be given out; None for an area that grows.
        free: the blocks to give out, ascending; None for a new area, whose blocks are 1, 2, 3, ...
        grows: whether the area is as large as the image needs.
        flagless: compressor of the area's old image if no flag names it, see `SwapHeader.names_no_data`; else None.
        used: number of blocks given out.
        missing: number of blocks requested beyond the limit.
    """

    header: SwapHeader
    header_block: int
    base_bytes: int
    limit: int | None
    free: NDArray[np.int64] | None
    grows: bool = False
    flagless: CompressorName | None = None
    used: int = 0
    missing: int = 0

    def take(self, count: int) -> NDArray[np.int64]:
        """Return the next blocks; if too few are left, count the missing ones and return none."""
        have = count if self.limit is None else min(count, self.limit - self.used)
        self.missing += count - have
        first, self.used = self.used, self.used + have
        if have < count:
            return np.empty(0, dtype=np.int64)
        if self.free is None:
            return np.arange(first + 1, self.used + 1, dtype=np.int64)
        return self.free[first : self.used]

    def require_enough(self, *, compressed: bool, complete: bool) -> None:
        """Refuse an image that does not fit. Raises HibernautError, with the number of missing blocks.

        Args:
            compressed: whether the image is compressed.
            complete: whether it stores all pages, zero pages too.
        """
        if self.missing:
            have = 0 if self.limit is None else self.limit
            place = "the old image's blocks" if self.free is not None else "the swap area"
            missing = "1 block of 4096 bytes is" if self.missing == 1 else f"{self.missing} blocks of 4096 bytes are"
            larger = (
                "write a new area: `hibernaut save` without --like" if self.free is not None else "give a larger --size"
            )
            smaller = [
                way
                for way, possible in (
                    ("compress it (--compressor lzo)", not compressed),
                    ("leave out zero pages (--zero-pages yes)", complete),
                )
                if possible
            ]
            raise HibernautError(
                f"the image does not fit: {missing} missing ({place}: {have}, needed: {have + self.missing})",
                advice=", or ".join([*smaller, larger]),
            )


def allocator_for(area: NewArea | ExistingArea) -> BlockAllocator:
    """Return the allocator of an area.

    Raises:
        HibernautError: the size of a new one is impossible, or an existing one holds an image of suspend-utils, or one
            whose pages or words have sizes that are not written.
    """
    if isinstance(area, ExistingArea):
        old = area.image
        if old.header.userland is not None:
            raise HibernautError(
                f"{old.name}: this is {USWSUSP}, whose area takes no image of the kernel's",
                advice="write a new area: `hibernaut save` without --like",
            )
        _refuse_other_sizes(old)
        free = old.swap_map.blocks
        flagless = old.compressor if old.header.names_no_data else None
        return BlockAllocator(
            old.header, old.area.header_block, old.area.base_bytes, len(free), free, flagless=flagless
        )
    size = area.size_bytes
    if size is not None and (size % PAGE_SIZE or size < MIN_BLOCKS * PAGE_SIZE):
        raise HibernautError(
            f"size of the swap area is {size}; expected a multiple of {PAGE_SIZE}, at least {MIN_BLOCKS} pages"
        )
    limit = None if size is None else size // PAGE_SIZE - 1
    return BlockAllocator(_new_header(area), 0, 0, limit, None, grows=size is None)


def _refuse_other_sizes(image: Image) -> None:
    """Raise HibernautError for an image whose pages are not of 4096 bytes, or whose words are not of 64 bits."""
    if image.area.page_size != PAGE_SIZE:
        what = f"pages of {image.area.page_size} bytes"
    elif image.info.long_bytes != 8:
        what = "an `unsigned long` of 32 bits"
    else:
        return
    raise HibernautError(
        f"{image.name}: an image with {what} is read, not written",
        advice="take its memory out with `hibernaut convert`",
    )


def _new_header(area: NewArea) -> SwapHeader:
    """Return a header as mkswap writes it (union swap_header, version 1), except for its size."""
    block = np.zeros(1, dtype=HEADER)
    block["version"] = 1
    block["uuid"] = np.void(uuid.uuid4().bytes)
    block["label"] = np.void(area.label.encode()[:15].ljust(16, b"\0"))
    block["orig_sig"] = np.void(SWAP_SIGNATURES[0])
    block["sig"] = np.void(SIGNATURE)
    return SwapHeader.parse(block.tobytes())
