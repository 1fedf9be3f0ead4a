# SPDX-License-Identifier: GPL-2.0-or-later
"""The header and the info page of a damaged or used-up image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hibernaut.errors import CorruptImage, FormatError
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.swsusp.area import SwapArea
from hibernaut.swsusp.checker import Problem
from hibernaut.swsusp.declarations import PFNS_PER_META_PAGE, SIGNATURE, SWAP_SIGNATURES
from hibernaut.swsusp.header import SwapHeader, read_header, refuse_contradiction, was_image
from hibernaut.swsusp.info import ImageInfo
from hibernaut.swsusp.salvage.loose_map import LooseMap

__all__ = ["loose_counts", "loose_header", "loose_info"]


def loose_header(
    area: SwapArea, *, used_up: bool, damaged: bool, first_map_block: int | None
) -> tuple[SwapHeader, bool, tuple[Problem, ...]]:
    """Return the header, whether its image is used up, and the header's faults.

    Args:
        area: swap area.
        used_up: whether to read an image whose signature is that of plain swap.
        damaged: whether to read one whose signature is that of an image.
        first_map_block: block of the first map page of an image that no header names; None: as the header has it.

    Raises:
        FormatError: there is no image of a kind to read.
    """
    if area.page_size != PAGE_SIZE or area.sector_bytes != 8:
        raise _other_sizes(area, f"pages of {area.page_size} bytes and sectors of {8 * area.sector_bytes} bits")
    block = area.read_block(area.header_block, "swap header")
    header = SwapHeader.parse(block)
    signature = block[-len(SIGNATURE) :]
    was_swap = signature in SWAP_SIGNATURES
    if first_map_block is not None and first_map_block != header.image:
        # Flags and CRC are those of another image.
        return replace(header, image=first_map_block, crc32=None, hw_sig=None), was_swap, ()
    names_image = header.orig_sig in SWAP_SIGNATURES and 0 < header.image < area.blocks
    if used_up and was_image(area, block):
        return header, True, ()
    if not damaged and signature == SIGNATURE:
        raise FormatError(
            "the image is not used up: its signature is S1SUSPEND",
            source=area.file.name,
            offset=area.offset_of(area.header_block) + PAGE_SIZE - len(SIGNATURE),
            advice="give --salvage if it is damaged, else leave out --consumed",
        )
    try:
        found = read_header(area)
        refuse_contradiction(area, found)
    except CorruptImage as error:
        return header, False, (Problem.of(error),)
    except FormatError as error:
        # One flipped byte in the signature of an image leaves the rest of the header as it was.
        if was_swap or not names_image or sum(a != b for a, b in zip(signature, SIGNATURE, strict=True)) > 1:
            raise
        return header, False, (Problem(error.what, error.where),)
    if found.userland is not None:
        raise FormatError(
            "an image of suspend-utils is read as a whole or not at all",
            source=area.file.name,
            advice="leave out --salvage",
        )
    return found, False, ()


def _other_sizes(area: SwapArea, what: str) -> FormatError:
    return FormatError(
        f"an image with {what} is read as a whole or not at all",
        source=area.file.name,
        offset=area.offset_of(area.header_block),
        advice="give that of a machine with pages of 4096 bytes and words of 64 bits",
    )


def loose_info(area: SwapArea, loose: LooseMap) -> tuple[ImageInfo | None, tuple[Problem, ...]]:
    """Return the info page, None if it is lost, and its faults.

    Raises:
        FormatError: it is of a kernel of 32 bits.
    """
    for block in _places(loose):
        if not 0 < block < area.blocks:
            continue
        page = area.read_block(block, "info page")
        info = ImageInfo.parse(page)
        if info.long_bytes != 8:
            raise _other_sizes(area, "words of 32 bits")
        if info.architecture is None and loose_counts(info, info.stream_pages) is None:
            continue
        try:
            info.check(area.file.name, area.offset_of(block), info.stream_pages)
        except CorruptImage as error:
            return info, (Problem.of(error),)
        return info, ()
    return None, (Problem("the info page is lost: CR3 and the counts of pages are not known", area.file.name),)


def _places(loose: LooseMap) -> Iterator[int]:
    if len(loose.entries):
        yield int(loose.entries[0])
        yield int(loose.alternative[0])


def loose_counts(info: ImageInfo | None, most_pages: int) -> tuple[int, int] | None:
    """Return the rows of the stream and the data pages by the info page; None if its fields contradict each other.

    Args:
        info: the info page; None if it is lost.
        most_pages: bound for the number of rows.
    """
    if info is None or info.size_bytes != info.pages * PAGE_SIZE:
        return None
    if not 0 < info.stream_pages <= most_pages or not 0 <= info.image_pages < info.stream_pages:
        return None
    if info.image_pages > info.meta_pages * PFNS_PER_META_PAGE:
        return None
    return info.stream_pages, info.image_pages
