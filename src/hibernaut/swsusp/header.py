# SPDX-License-Identifier: GPL-2.0-or-later
"""The header block of a swap area: parsing, and the refusal of areas without an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hibernaut.errors import CorruptImage, FormatError
from hibernaut.memory import declarations as c
from hibernaut.memory.foreign import LOOKED_AT_BYTES, foreign_format
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.swsusp.architecture import architecture_of
from hibernaut.swsusp.area import SwapArea, locate_area, other_unit
from hibernaut.swsusp.codecs import CompressorName
from hibernaut.swsusp.declarations import (
    FOREIGN_SIGNATURES,
    SIGNATURE,
    SWAP_SIGNATURES,
    Flags,
    header_layout,
)
from hibernaut.swsusp.uswsusp import USWSUSP, UserlandHeader, read_userland_header
from hibernaut.swsusp.uswsusp_declarations import USWSUSP_SIGNATURE
from hibernaut.volumes.volume import Volume

__all__ = [
    "SEE_CONSUMED",
    "AreaState",
    "SwapHeader",
    "area_state",
    "looks_like_swap",
    "read_header",
    "refuse_contradiction",
    "was_image",
]

AreaState = Literal["image", "uswsusp", "used up", "swap", "damaged", "other"]
"""A swap area that holds an image of the kernel's, or of suspend-utils; whose image has lost its signature; plain swap;
a header that contradicts itself; what another program wrote."""


@dataclass(frozen=True)
class SwapHeader:
    """The header of an area that holds an image (`struct swsusp_header`).

    Attributes:
        block: all bytes of the header block; a rewrite keeps everything that hibernation does not own.
        image: block of the first swap map page.
        flags: see `Flags`.
        crc32: CRC of all uncompressed data, None unless its flag is set.
        hw_sig: hardware signature, None unless its flag is set.
        orig_sig: the signature that a resume puts back, see `is_swap_again`.
        userland: header of an image of suspend-utils, whose first page of extents and flags are `image` and `flags`;
            None for the kernel's own.
        sector_bytes: size of the kernel's `sector_t`.
    """

    block: bytes
    image: int
    flags: int
    crc32: int | None
    hw_sig: int | None
    orig_sig: bytes
    userland: UserlandHeader | None = None
    sector_bytes: int = 8

    @classmethod
    def parse(cls, block: bytes, sector_bytes: int = 8) -> SwapHeader:
        """Return the fields of a header block, as long as a page of its machine, without any check of them."""
        fields = np.frombuffer(block, dtype=header_layout(len(block), sector_bytes))[0]
        flags = int(fields["flags"])
        return cls(
            block=block,
            image=int(fields["image"]),
            flags=flags,
            crc32=int(fields["crc32"]) if flags & Flags.CRC32_MODE else None,
            hw_sig=int(fields["hw_sig"]) if flags & Flags.HW_SIG else None,
            orig_sig=fields["orig_sig"].tobytes(),
            sector_bytes=sector_bytes,
        )

    def with_image(self, *, image: int, flags: int, crc32: int | None) -> SwapHeader:
        """Return the header of another image in the same area: signature set, every other field unchanged."""
        fields = {"image": image, "flags": flags, "sig": np.void(SIGNATURE)}
        return self.with_fields(fields if crc32 is None else {**fields, "crc32": crc32})

    def without_image(self) -> SwapHeader:
        """Return the header as a kernel leaves it before it reads the image: with the swap signature put back."""
        return self.with_fields({"sig": np.void(self.orig_sig)})

    def with_fields(self, fields: Mapping[str, object]) -> SwapHeader:
        """Return the header with some fields of `HEADER` changed and every other byte unchanged."""
        block = bytearray(self.block)  # a copy of a record array loses the bytes between its fields
        record = np.frombuffer(block, dtype=header_layout(len(block), self.sector_bytes))
        for name, value in fields.items():
            record[name] = value
        return SwapHeader.parse(bytes(block), self.sector_bytes)

    @property
    def compressor(self) -> CompressorName:
        """The compressor that the flags name, see `hibernaut.swsusp.image.data_compressor`."""
        if self.userland is not None:
            return "lzo" if self.userland.compressed else "none"
        if self.flags & Flags.NOCOMPRESS_MODE:
            return "none"
        return "lz4" if self.flags & Flags.COMPRESSION_ALG_LZ4 else "lzo"

    @property
    def is_swap_again(self) -> bool:
        """Whether the area is swap space again once a kernel has read the image.

        A kernel puts back whatever `orig_sig` is, and does not look at it (`swsusp_check` and `swsusp_unmark`,
        kernel/power/swap.c); `swapon` refuses another signature, and so does the next hibernation (`mark_swapfiles`).
        Read in linux-source-6.1 6.1.192-2, -6.12 6.12.118-1 and -7.3 7.3.4-1~bpo13+1; guests of each resume from
        such images.
        """
        return self.orig_sig in SWAP_SIGNATURES

    @property
    def names_no_data(self) -> bool:
        """Whether no flag tells how the data is stored, as before flags for that: LZO without a CRC, or plain pages."""
        named = Flags.NOCOMPRESS_MODE | Flags.CRC32_MODE | Flags.COMPRESSION_ALG_LZ4
        return self.userland is None and not self.flags & named


def looks_like_swap(file: Volume, *, offset: int = 0, partition: int | None = None, base: int | None = None) -> bool:
    """Return whether a file has a swap signature of any kind (see `locate_area` for the arguments)."""
    try:
        area = locate_area(file, offset=offset, partition=partition, base=base)
    except FormatError:
        return False
    end = area.offset_of(area.header_block) + area.page_size
    signature = area.file.pread(end - len(SIGNATURE), len(SIGNATURE))
    return signature in (SIGNATURE, USWSUSP_SIGNATURE, *SWAP_SIGNATURES) or signature in FOREIGN_SIGNATURES


def read_header(area: SwapArea) -> SwapHeader:
    """Return the header of an area that holds an image.

    Raises:
        FormatError: the area holds no image (plain swap, a consumed image, another container, not swap), or one of
            suspend-utils that is not read.
        CorruptImage: the header of an image of suspend-utils contradicts itself.
    """
    block = area.read_block(area.header_block, "swap header")
    signature_at = area.offset_of(area.header_block) + area.page_size - len(SIGNATURE)
    signature = block[-len(SIGNATURE) :]
    _refuse_marks(area, block, signature)
    if signature == USWSUSP_SIGNATURE:
        if area.page_size != PAGE_SIZE:
            raise FormatError(
                f"this is {USWSUSP} with pages of {area.page_size} bytes, which is not read",
                source=area.file.name,
                offset=signature_at,
                advice="use the suspend-utils that wrote it: no kernel reads it",
            )
        found = read_userland_header(area, block)
        first = found.map_start // PAGE_SIZE
        return SwapHeader(block, first, found.flags, None, None, found.orig_sig, found)
    if signature != SIGNATURE:
        reason, advice = _why_no_image(area, block, signature)
        raise FormatError(reason, source=area.file.name, offset=signature_at, advice=advice)
    header = SwapHeader.parse(block, area.sector_bytes)
    if area.big_endian:
        raise FormatError(
            f"not an x86-64 image: its header is that of a big-endian kernel{_big_endian_kernel(area)}",
            source=area.file.name,
            offset=area.image_at,
            advice="give an image of a little-endian machine",
        )
    return header


def refuse_contradiction(area: SwapArea, header: SwapHeader) -> None:
    """Raise CorruptImage if the flags contradict each other.

    A kernel takes the data for uncompressed then (`swsusp_read`, kernel/power/swap.c).
    """
    both = Flags.NOCOMPRESS_MODE | Flags.COMPRESSION_ALG_LZ4
    if header.userland is None and header.flags & both == both:
        raise CorruptImage(
            "flags say both not compressed and LZ4",
            source=area.file.name,
            offset=area.image_at + area.sector_bytes,
            found=f"{header.flags:#x}",
        )


INSIDE = (
    "if it lies inside the file, run `hibernaut find` on that: it prints --volume, or say where: --offset, --partition"
)


CONSUMED = (
    "an image was here and its signature was put back: a resume consumed it or the kernel refused it, or a rewrite in "
    "place did not end"
)
"""State of an area whose header still names an image: each of these leaves the same header."""
SEE_CONSUMED = "see `hibernaut inspect --consumed` for how much of it is left"


def area_state(area: SwapArea) -> tuple[AreaState, str]:
    """Return what an area holds by its header alone, and details; what is behind the header is not read."""
    block = area.read_block(area.header_block, "swap header")
    signature = block[-len(SIGNATURE) :]
    try:
        header = read_header(area)
        refuse_contradiction(area, header)
    except CorruptImage as error:
        return "damaged", error.statement
    except FormatError as error:
        if signature not in SWAP_SIGNATURES:
            return "other", error.what
        return ("used up" if was_image(area, block) else "swap"), error.what
    if header.userland is not None:
        return "uswsusp", header.userland.summary
    return "image", f"first map page at block {header.image}"


def was_image(area: SwapArea, block: bytes) -> bool:
    """Return whether the header block of plain swap still names an image of the kernel's."""
    header, signature = SwapHeader.parse(block, area.sector_bytes), block[-len(SIGNATURE) :]
    return signature in SWAP_SIGNATURES and header.orig_sig == signature and 0 < header.image < area.blocks


def _why_no_image(area: SwapArea, block: bytes, signature: bytes) -> tuple[str, str]:
    """Return the reason, and what to do next."""
    if signature in SWAP_SIGNATURES:
        text = f"no image: signature is {signature.decode()}"
        if area.page_size != PAGE_SIZE:
            text += f" (pages of {area.page_size} bytes)"
        if was_image(area, block):
            first = SwapHeader.parse(block, area.sector_bytes).image
            text += f"; {CONSUMED} (its first map page at block {first})"
            if area.page_size == PAGE_SIZE and area.sector_bytes == 8:  # others are read as a whole or not at all
                return text, SEE_CONSUMED
        return text, "give the area that the kernel hibernated to: a kernel that reads an image uses it up"
    if signature in FOREIGN_SIGNATURES:
        what, advice = FOREIGN_SIGNATURES[signature]
        return f"this is {what}, which is not read", advice
    known = foreign_format(area.file.pread(area.base_bytes, LOOKED_AT_BYTES))
    if known is not None:
        advice = "see what `hibernaut map` says of it" if known.is_dump else known.advice
        return f"no swap area: this is {known.what}", advice
    what = f"no swap area: signature is {signature!r}, expected S1SUSPEND, SWAPSPACE2 or SWAP-SPACE"
    return what, other_unit(area) or INSIDE


def _big_endian_kernel(area: SwapArea) -> str:
    """Return the kernel that `struct new_utsname` in a big-endian image names, after a comma; none if it cannot be."""
    block = int.from_bytes(area.file.pread(area.image_at, 8), "big")
    entry = int.from_bytes(area.file.pread(area.offset_of(block), 8), "big") if block < area.blocks else 0
    if not 0 < entry < area.blocks:
        return ""
    architecture = architecture_of(area.read_block(entry, "info page"))
    return f", {architecture.kernel}" if architecture and architecture.kernel else ""


def _refuse_marks(area: SwapArea, block: bytes, signature: bytes) -> None:
    """Raise FormatError for marks at the start, which stand where a swap signature stands as well.

    A device that is encrypted as a whole has one from before that. TuxOnIce leaves the one of its area; the kernel's
    own image that follows one of TuxOnIce leaves its mark.
    """
    marks = [(c.LUKS, area.base_bytes, area.file.pread(area.base_bytes, PAGE_SIZE))]
    if signature != SIGNATURE:
        marks.append((c.TUXONICE, area.offset_of(area.header_block), block))
    for known, at, head in marks:
        if known.begins(head):
            what = f"this is {known.what}, which is not read"
            raise FormatError(what, source=area.file.name, offset=at, advice=known.advice)
