# SPDX-License-Identifier: GPL-2.0-or-later
"""Manifests in an area itself: in its last blocks, found by their magic."""

from __future__ import annotations

from collections.abc import Iterator

from hibernaut.errors import FormatError
from hibernaut.sealing.blocks import BLOCK_BYTES, Blocks
from hibernaut.sealing.keys import CheckingKey
from hibernaut.sealing.making import header_digest
from hibernaut.sealing.manifest import MAGIC, MOST_BYTES, SealManifest, open_manifest
from hibernaut.sealing.reading_order import TAIL_BYTES, header_of_image

__all__ = ["WINDOW_BLOCKS", "manifest_in_area"]

WINDOW_BLOCKS = 1 << 14
"""Blocks at the end of the device that may hold the beginning of a manifest: 64 MiB."""
PIECE_BLOCKS = 256
MOST_CANDIDATES = 16
"""Most blocks with the magic that are tried: any page that was swapped out may have it."""
SIZE_FIELD = slice(24, 32)


def manifest_in_area(area: Blocks, key: CheckingKey, header_block: int = 0) -> tuple[SealManifest, int]:
    """Return the manifest in an area, sealed by a key, and its first block.

    Of several with a seal of this key, that of the header in the area is taken, else the one with the highest counter.

    Args:
        area: the device.
        key: key that must have sealed it.
        header_block: block of the swap header.

    Raises:
        FormatError: there is none; or the area holds no image.
        OSError: the device cannot be read.
    """
    header = header_of_image(area, header_block)
    refusal: FormatError | None = None
    found: list[tuple[SealManifest, int]] = []
    for number, block in enumerate(_candidates(area)):
        if number >= MOST_CANDIDATES:
            break
        try:
            found.append((open_manifest(_bytes_at(area, block), key, f"{area.name}, block {block}"), block))
        except FormatError as error:
            refusal = refusal or error
    if not found:
        raise refusal or FormatError(
            f"no manifest in the last {min(WINDOW_BLOCKS, area.blocks)} blocks of the area",
            source=area.name,
            advice="give the file with it as --manifest, or seal the image",
        )

    def rank(one: tuple[SealManifest, int]) -> tuple[bool, int]:
        manifest, _ = one
        is_its = manifest.tail == header[-TAIL_BYTES:] and manifest.header_digest == header_digest(header)
        return is_its, manifest.counter

    return max(found, key=rank)


def _candidates(area: Blocks) -> Iterator[int]:
    """Yield the blocks with the magic, the last one first. Raises OSError."""
    piece = memoryview(bytearray(PIECE_BLOCKS * BLOCK_BYTES))
    end, least = area.blocks, max(area.blocks - WINDOW_BLOCKS, 0)
    while end > least:
        first = max(end - PIECE_BLOCKS, least)
        got = area.read_into(first, piece[: (end - first) * BLOCK_BYTES])
        for at in range(got // BLOCK_BYTES - 1, -1, -1):
            if piece[at * BLOCK_BYTES : at * BLOCK_BYTES + len(MAGIC)] == MAGIC:
                yield first + at
        end = first


def _bytes_at(area: Blocks, block: int) -> bytes:
    """Return the manifest that begins at a block, as long as it says it is. Raises FormatError, OSError."""
    head = bytearray(BLOCK_BYTES)
    area.read_into(block, memoryview(head))
    size_bytes = int.from_bytes(head[SIZE_FIELD], "little")
    room_bytes = (area.blocks - block) * BLOCK_BYTES
    if not 0 < size_bytes <= min(MOST_BYTES, room_bytes):
        raise FormatError(
            f"the manifest at block {block} states {size_bytes} bytes",
            source=area.name,
            expected=f"at most {min(MOST_BYTES, room_bytes)}",
            advice="run `hibernaut seal` again",
        )
    found = bytearray(-(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES)
    area.read_into(block, memoryview(found))
    return bytes(found[:size_bytes])
