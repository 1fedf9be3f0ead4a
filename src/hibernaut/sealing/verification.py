# SPDX-License-Identifier: GPL-2.0-or-later
"""The verdict on an image: whether a resuming kernel will read what was sealed."""

from __future__ import annotations

import hashlib
import struct
import zlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hibernaut.errors import FormatError
from hibernaut.sealing.blocks import Blocks
from hibernaut.sealing.leaves import Difference, compared_leaves
from hibernaut.sealing.making import header_digest
from hibernaut.sealing.manifest import SealManifest
from hibernaut.sealing.reading_order import TAIL_BYTES, BrokenMap, entries_of, header_of_image, image_block, map_pages

__all__ = ["SealState", "SealVerdict", "verify_image"]

SealState = Literal["whole", "moved", "touched", "older"]
"""As sealed; the same data in other blocks; something else; a smaller counter than asked for."""

TAIL = struct.Struct("<IIQI10s10s")
TAIL_FIELDS = ("hw_sig", "crc32", "image", "flags", "orig_sig", "sig")
"""`struct swsusp_header` after its reserved part."""


@dataclass(frozen=True)
class SealVerdict:
    """The verdict on an image.

    Attributes:
        state: see `SealState`.
        what: what differs first in the order of reading, a noun phrase; None for a whole image.
        block: its block on the device; None if it is not a block.
        manifest: the manifest that the image was compared with.
    """

    state: SealState
    what: str | None
    block: int | None
    manifest: SealManifest

    @property
    def sentence(self) -> str:
        """The verdict in one line, without the name of the area."""
        sealed = self.manifest
        counter = f"counter {sealed.counter}"
        if self.state == "older":
            return f"older: {self.what}"
        if self.state == "whole":
            pages, data = _counted(sealed.map_pages, "map page"), _counted(sealed.entries - 1, "data block")
            blocks = _counted(sealed.covered_blocks, "block")
            return f"whole: a kernel reads {blocks} as sealed (header, {pages}, info page, {data}), {counter}"
        place = f"{self.what}" if self.block is None else f"block {self.block}, {self.what}"
        if self.state == "moved":
            return f"moved: a kernel reads the same data as sealed, from other blocks; the first is {place}, {counter}"
        return f"touched: {place}, is not as sealed, {counter}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@dataclass
class _FirstDifference:
    """The first difference, noted once.

    Attributes:
        what: see `SealVerdict`.
        block: see `SealVerdict`.
    """

    what: str | None = None
    block: int | None = None

    def note(self, what: str, block: int | None) -> None:
        """Keep it, if nothing came before."""
        if self.what is None:
            self.what, self.block = what, block


def verify_image(
    area: Blocks,
    manifest: SealManifest,
    *,
    header_block: int = 0,
    least: int = 0,
    progress: Callable[[int], None] | None = None,
    workers: int | None = None,
) -> SealVerdict:
    """Return whether a kernel will read of an image what was sealed.

    Never more is read than the manifest states, whatever the area holds.

    Args:
        area: the device.
        manifest: manifest whose seal was checked.
        header_block: block from which the kernel reads the swap header.
        least: smallest counter that is accepted.
        progress: called with the number of blocks compared since the last call.
        workers: number of threads; None for one per core.

    Raises:
        FormatError: the area holds no image, or the manifest is of a header at another block.
        OSError: the device cannot be read.
    """
    if header_block != manifest.header_block:
        raise FormatError(
            f"the manifest is of a header at block {manifest.header_block}",
            source=area.name,
            expected=f"block {header_block}",
            advice="give the kernel's resume_offset, in pages, as --offset",
        )
    if manifest.counter < least:
        what = f"counter {manifest.counter}, and at least {least} is asked for"
        return SealVerdict("older", what, None, manifest)
    header = header_of_image(area, header_block)
    difference = _FirstDifference()
    field = _header_field(header, manifest)
    if field is not None:
        difference.note(field, header_block)
        if field != "field image of the header":
            return SealVerdict("touched", difference.what, difference.block, manifest)
    entries = _compare_map(area, header, manifest, difference)
    if entries is None:
        return SealVerdict("touched", difference.what, difference.block, manifest)
    has_same_data = True
    for blocks, found in compared_leaves(area, entries, manifest, workers):
        if progress is not None:
            progress(blocks)
        if found is not None:
            difference.note(_entry_words(found, manifest), None if not found.is_exact else entries[found.entry])
            has_same_data = False
            break
    if difference.what is None:
        return SealVerdict("whole", None, None, manifest)
    return SealVerdict("moved" if has_same_data else "touched", difference.what, difference.block, manifest)


def _header_field(header: bytes, manifest: SealManifest) -> str | None:
    """Return what differs in the header block, `image` last; None if nothing does."""
    found, sealed = TAIL.unpack(header[-TAIL_BYTES:]), TAIL.unpack(manifest.tail)
    differing = [name for name, one, other in zip(TAIL_FIELDS, found, sealed, strict=True) if one != other]
    others = [name for name in differing if name != "image"]
    if others:
        return f"field {others[0]} of the header"
    if header_digest(header) != manifest.header_digest:
        return "the swap header before the fields of hibernation"
    return "field image of the header" if differing else None


def _compare_map(
    area: Blocks, header: bytes, manifest: SealManifest, difference: _FirstDifference
) -> array[int] | None:
    """Return the entries of the map as it is now, what differs noted; None if no move explains the difference."""
    digest, entries, is_complete, number = hashlib.sha256(), array("Q"), False, 0
    has_rest = False
    try:
        for block, page in map_pages(area, manifest.header_block, header):
            words = f"map page {number + 1} of {manifest.map_pages}"
            if number >= manifest.map_pages:
                difference.note(f"map page {number + 1}, one more than sealed", block)
                return None
            if zlib.crc32(page) != manifest.mark(number):
                difference.note(words, block)
            digest.update(page)
            number += 1
            used = 0
            if not is_complete:
                some, is_complete = entries_of(page)
                entries.extend(some)
                used = len(some)
            has_rest = has_rest or any(page[8 * used : -8])
    except BrokenMap as broken:
        difference.note(f"to which the swap map leads ({broken.what})", broken.block)
        return None
    if digest.digest() != manifest.map_digest:
        difference.note("the swap map", image_block(header))
    if len(entries) != manifest.entries or number != manifest.map_pages:
        difference.note(f"the swap map of {len(entries)} entries", image_block(header))
        return None
    # What follows the entries moves nothing: a change there is no other place of the same data.
    return None if has_rest and difference.what is not None else entries


def _entry_words(found: Difference, manifest: SealManifest) -> str:
    """Return the name of an entry's block."""
    name = "info page" if found.entry == 0 else f"data block {found.entry} of {manifest.entries - 1}"
    if found.is_absent:
        return f"{name}, beyond the device"
    return name if found.is_exact else f"one of 256 blocks from the {name} on"
