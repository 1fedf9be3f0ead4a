# SPDX-License-Identifier: GPL-2.0-or-later
"""Writing a manifest into the area itself, to blocks that neither the image nor the saved machine uses."""

from __future__ import annotations

import os
import stat

import numpy as np

from hibernaut.errors import FormatError
from hibernaut.memory.page import BoolArray
from hibernaut.sealing.blocks import BLOCK_BYTES
from hibernaut.sealing.in_window import WINDOW_BLOCKS
from hibernaut.swsusp.image import Image
from hibernaut.swsusp.rewrite import claimed, refuse_changed
from hibernaut.volumes.output import allocate, sync, write_all

__all__ = ["place_for", "write_into_area"]

ADVICE = "give a file for the manifest: --manifest FILE"


def place_for(image: Image, free: BoolArray, blocks: int) -> int:
    """Return the first block for a manifest: of the last run of free blocks that has so many, its last ones.

    Args:
        image: the image.
        free: blocks of the device that the saved machine does not use, shape (m,); the image's own may be among them.
        blocks: number of blocks that the manifest takes.

    Raises:
        FormatError: there is no such run in the last blocks of the device, where the verifier looks.
    """
    usable = free.copy()
    usable[image.swap_map.blocks] = False
    usable[image.area.header_block] = False
    edges = np.flatnonzero(np.diff(np.concatenate(([False], usable, [False])).astype(np.int8)))
    starts, ends = edges[::2], edges[1::2]
    long_enough = np.flatnonzero(ends - starts >= blocks)
    first = int(ends[long_enough[-1]]) - blocks if len(long_enough) else -1
    if first < max(image.area.blocks - WINDOW_BLOCKS, 0):
        raise FormatError(
            f"the manifest takes {blocks} neighbouring free blocks, and the last {WINDOW_BLOCKS} of the area lack them",
            source=image.name,
            advice=ADVICE,
        )
    return first


def write_into_area(image: Image, free: BoolArray, data: bytes) -> int:
    """Write a manifest into the area of an image, synced, and return its first block. Nothing else is written.

    Args:
        image: the image that was sealed, in a file or block device of its own.
        free: see `place_for`.
        data: the manifest.

    Raises:
        FormatError: no room; or the file is compressed or inside another volume.
        HibernautError: the area is in use, or another program has locked it.
        CorruptImage: the header was changed since it was read.
        OSError: as the system reports it.
    """
    blocks = -(-len(data) // BLOCK_BYTES)
    block = place_for(image, free, blocks)
    at = image.area.offset_of(block)
    padded = data.ljust(blocks * BLOCK_BYTES, b"\0")
    with claimed(image, ADVICE) as fd:
        refuse_changed(image, fd)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            allocate(fd, at, len(padded), image.name)
        # The magic is in the first block: with the others on the disk before it, no half manifest is found.
        write_all(fd, memoryview(padded)[BLOCK_BYTES:], at + BLOCK_BYTES)
        sync(fd)
        write_all(fd, memoryview(padded)[:BLOCK_BYTES], at)
        sync(fd)
    return block
