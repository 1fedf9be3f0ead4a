# SPDX-License-Identifier: GPL-2.0-or-later
"""The header block of a swap area: parsing, and the refusal of areas without an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hibernaut.errors import CorruptImage, FormatError
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.swsusp.area import SwapArea, locate_area
from hibernaut.swsusp.codecs import CompressorName
from hibernaut.swsusp.declarations import FOREIGN_SIGNATURES, HEADER, SIGNATURE, SWAP_SIGNATURES, Flags
from hibernaut.volumes.files import PlainFile

__all__ = ["SwapHeader", "looks_like_swap", "read_header"]


@dataclass(frozen=True)
class SwapHeader:
    """The header of an area that holds an image (`struct swsusp_header`).

    Attributes:
        block: all 4096 bytes of the header block; a rewrite keeps everything that hibernation does not own.
        image: block of the first swap map page.
        flags: see `Flags`.
        crc32: CRC of all uncompressed data, None unless its flag is set.
        hw_sig: hardware signature, None unless its flag is set.
        orig_sig: the swap signature that a resume puts back.
    """

    block: bytes
    image: int
    flags: int
    crc32: int | None
    hw_sig: int | None
    orig_sig: bytes

    @classmethod
    def parse(cls, block: bytes) -> SwapHeader:
        """Return the fields of a header block of 4096 bytes, without any check of them."""
        fields = np.frombuffer(block, dtype=HEADER)[0]
        flags = int(fields["flags"])
        return cls(
            block=block,
            image=int(fields["image"]),
            flags=flags,
            crc32=int(fields["crc32"]) if flags & Flags.CRC32_MODE else None,
            hw_sig=int(fields["hw_sig"]) if flags & Flags.HW_SIG else None,
            orig_sig=fields["orig_sig"].tobytes(),
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
        record = np.frombuffer(block, dtype=HEADER)
        for name, value in fields.items():
            record[name] = value
        return SwapHeader.parse(bytes(block))

    @property
    def compressor(self) -> CompressorName:
        """The compressor that the flags name, see `hibernaut.swsusp.image.data_compressor`."""
        if self.flags & Flags.NOCOMPRESS_MODE:
            return "none"
        return "lz4" if self.flags & Flags.COMPRESSION_ALG_LZ4 else "lzo"

    @property
    def names_no_data(self) -> bool:
        """Whether no flag tells how the data is stored, as before flags for that: LZO without a CRC, or plain pages."""
        return not self.flags & (Flags.NOCOMPRESS_MODE | Flags.CRC32_MODE | Flags.COMPRESSION_ALG_LZ4)


def looks_like_swap(file: PlainFile, *, offset: int = 0, partition: int | None = None, base: int | None = None) -> bool:
    """Return whether a file has a swap signature of any kind (see `locate_area` for the arguments)."""
    try:
        area = locate_area(file, offset=offset, partition=partition, base=base)
    except FormatError:
        return False
    signature = area.file.pread(area.offset_of(offset) + HEADER.fields["sig"][1], 10)  # type: ignore[index]
    return signature == SIGNATURE or signature in SWAP_SIGNATURES or signature in FOREIGN_SIGNATURES


def read_header(area: SwapArea) -> SwapHeader:
    """Return the header of an area that holds an image.

    Raises:
        FormatError: the area holds no image (plain swap, a consumed image, another container, not swap).
        CorruptImage: the header contradicts itself.
    """
    block = area.read_block(area.header_block, "swap header")
    signature_at = area.offset_of(area.header_block) + PAGE_SIZE - len(SIGNATURE)
    signature = block[-len(SIGNATURE) :]
    if signature != SIGNATURE:
        reason, advice = _why_no_image(block, signature)
        raise FormatError(reason, source=area.file.name, offset=signature_at, advice=advice)
    header = SwapHeader.parse(block)
    if header.orig_sig not in SWAP_SIGNATURES:
        raise CorruptImage(
            "orig_sig is not a swap signature",
            source=area.file.name,
            offset=signature_at - len(SIGNATURE),
            expected=" or ".join(known.decode() for known in SWAP_SIGNATURES),
            found=repr(header.orig_sig),
        )
    if header.flags & Flags.NOCOMPRESS_MODE and header.flags & Flags.COMPRESSION_ALG_LZ4:
        raise CorruptImage(
            "flags say both not compressed and LZ4",
            source=area.file.name,
            offset=area.offset_of(area.header_block) + 4072,
            found=f"{header.flags:#x}",
        )
    return header


def _why_no_image(block: bytes, signature: bytes) -> tuple[str, str]:
    """Return the reason, and what to do next."""
    if signature in SWAP_SIGNATURES:
        consumed = SwapHeader.parse(block)
        text = f"no image: signature is {signature.decode()}"
        if consumed.orig_sig == signature and consumed.image:
            text += f"; a resume has consumed the image that was here (its first map page at block {consumed.image})"
        return text, "give the area that the kernel hibernated to: a kernel that reads an image uses it up"
    if signature in FOREIGN_SIGNATURES:
        what = f"no image of the kernel itself: {FOREIGN_SIGNATURES[signature]}"
        return what, "give an image that the kernel's own hibernation wrote"
    what = f"no swap area: signature is {signature!r}, expected S1SUSPEND, SWAPSPACE2 or SWAP-SPACE"
    return what, "if it lies inside the file, say where: --offset, --partition or --base"
