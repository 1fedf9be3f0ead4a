# SPDX-License-Identifier: GPL-2.0-or-later
"""The leaves of an image, read and hashed on all cores: hashlib and preadv leave the interpreter to other threads."""

from __future__ import annotations

import hashlib
import zlib
from array import array
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

from hibernaut.parallel import ordered_results
from hibernaut.sealing.blocks import BLOCK_BYTES, AbsentBlock, Blocks, read_blocks
from hibernaut.sealing.manifest import LEAF_BLOCKS, SealManifest

__all__ = ["Difference", "Leaf", "compared_leaves", "crc_bytes", "leaves"]


@dataclass(frozen=True)
class Leaf:
    """A leaf of an image.

    Attributes:
        digest: SHA-256 of its blocks.
        marks: CRC-32 of each block, 4 bytes each.
    """

    digest: bytes
    marks: bytes


@dataclass(frozen=True)
class Difference:
    """The first difference in a leaf.

    Attributes:
        entry: the entry whose block differs; the first of the leaf if the marks do not tell which.
        is_exact: whether they do.
        is_absent: whether the device has no such block.
    """

    entry: int
    is_exact: bool = True
    is_absent: bool = False


def crc_bytes(block: bytes | memoryview) -> bytes:
    """Return the mark of a block."""
    return zlib.crc32(block).to_bytes(4, "little")


def _marks(content: memoryview) -> bytes:
    return b"".join(crc_bytes(content[at : at + BLOCK_BYTES]) for at in range(0, len(content), BLOCK_BYTES))


def _content(area: Blocks, blocks: array[int]) -> memoryview:
    """Return the bytes of a leaf. Raises AbsentBlock, OSError."""
    content = memoryview(bytearray(len(blocks) * BLOCK_BYTES))
    read_blocks(area, blocks, content)
    return content


def leaves(area: Blocks, entries: array[int], workers: int | None = None) -> Generator[Leaf, None, None]:
    """Yield the leaves of an image, in order.

    Args:
        area: the device.
        entries: blocks of the entries.
        workers: number of threads; None for one per core.

    Raises:
        AbsentBlock: the device lacks a block of one.
        OSError: it cannot be read.
    """

    def made(first: int) -> Callable[[], Leaf]:
        def leaf() -> Leaf:
            content = _content(area, entries[first : first + LEAF_BLOCKS])
            return Leaf(hashlib.sha256(content).digest(), _marks(content))

        return leaf

    return ordered_results((made(first) for first in range(0, len(entries), LEAF_BLOCKS)), workers=workers)


def compared_leaves(
    area: Blocks, entries: array[int], manifest: SealManifest, workers: int | None = None
) -> Iterator[tuple[int, Difference | None]]:
    """Yield for each leaf of an image, in order: its number of blocks, and its first difference from a manifest.

    Args:
        area: the device.
        entries: blocks of the entries, as many as the manifest has.
        manifest: the manifest.
        workers: number of threads; None for one per core.

    Raises:
        OSError: the device cannot be read.
    """

    def made(number: int) -> Callable[[], tuple[int, Difference | None]]:
        first = number * LEAF_BLOCKS

        def compare() -> tuple[int, Difference | None]:
            blocks = entries[first : first + LEAF_BLOCKS]
            try:
                content = _content(area, blocks)
            except (AbsentBlock, OverflowError):
                absent = next(at for at, block in enumerate(blocks) if not _is_there(area, block))
                return len(blocks), Difference(first + absent, is_absent=True)
            if hashlib.sha256(content).digest() == manifest.leaf(number):
                return len(blocks), None
            return len(blocks), _first_difference(content, first, manifest)

        return compare

    yield from ordered_results((made(number) for number in range(-(-len(entries) // LEAF_BLOCKS))), workers=workers)


def _is_there(area: Blocks, block: int) -> bool:
    try:
        read_blocks(area, [block], memoryview(bytearray(BLOCK_BYTES)))
    except (AbsentBlock, OverflowError):
        return False
    return True


def _first_difference(content: memoryview, first: int, manifest: SealManifest) -> Difference:
    for at in range(len(content) // BLOCK_BYTES):
        found = zlib.crc32(content[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES])
        if found != manifest.mark(manifest.map_pages + first + at):
            return Difference(first + at)
    return Difference(first, is_exact=False)
