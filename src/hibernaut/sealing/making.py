# SPDX-License-Identifier: GPL-2.0-or-later
"""Making the manifest of an image: all that a resuming kernel reads of it, digested."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

from hibernaut.errors import CorruptImage
from hibernaut.sealing.blocks import AbsentBlock, Blocks
from hibernaut.sealing.keys import SALT_BYTES, ScryptCost, SealingKey
from hibernaut.sealing.leaves import crc_bytes, leaves
from hibernaut.sealing.manifest import SealManifest, pack_manifest
from hibernaut.sealing.reading_order import (
    IMAGE_FIELD,
    TAIL_BYTES,
    BrokenMap,
    ReadingOrder,
    header_of_image,
    reading_order,
)

__all__ = ["header_digest", "make_manifest"]


def header_digest(header: bytes) -> bytes:
    """Return the SHA-256 of a header block, its field `image` as zeroes: it changes with the place of the map alone."""
    return hashlib.sha256(header[: IMAGE_FIELD.start] + bytes(8) + header[IMAGE_FIELD.stop :]).digest()


def make_manifest(
    area: Blocks,
    key: SealingKey,
    *,
    header_block: int = 0,
    counter: int = 0,
    cost: ScryptCost | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[bytes, SealManifest, ReadingOrder, bytes]:
    """Return the sealed manifest of an image, its content, the blocks of the image, and the header block.

    Args:
        area: the device.
        key: key that seals it.
        header_block: block of the swap header.
        counter: number against older images, 0 to 2^64 - 1.
        cost: cost of a passphrase's key; None: the default.
        progress: called with the number of blocks digested since the last call.

    Raises:
        FormatError: the area holds no image, or one that is too large.
        CorruptImage: its swap map or a block of it is outside the device.
        HibernautError: signing needs a package that is not installed.
        OSError: the device cannot be read.
    """
    header = header_of_image(area, header_block)
    digest, marks = hashlib.sha256(), bytearray()

    def see(_block: int, page: bytes) -> None:
        digest.update(page)
        marks.extend(crc_bytes(page))

    try:
        order = reading_order(area, header_block, header, see)
        found = bytearray()
        for leaf in leaves(area, order.entries):
            found += leaf.digest
            marks += leaf.marks
            if progress is not None:
                progress(len(leaf.marks) // 4)
    except (BrokenMap, AbsentBlock, OverflowError) as error:
        what = f"block {error.block} is not on the device" if isinstance(error, AbsentBlock) else str(error)
        raise CorruptImage(what, source=area.name, expected=f"blocks below {area.blocks}") from None
    manifest = SealManifest(
        kind=key.kind,
        counter=counter,
        header_block=header_block,
        map_pages=len(order.map_blocks),
        entries=len(order.entries),
        tail=header[-TAIL_BYTES:],
        header_digest=header_digest(header),
        map_digest=digest.digest(),
        leaves=bytes(found),
        marks=bytes(marks),
        key_id=key.key_id,
    )
    return pack_manifest(manifest, key, os.urandom(SALT_BYTES), cost or ScryptCost()), manifest, order, header
