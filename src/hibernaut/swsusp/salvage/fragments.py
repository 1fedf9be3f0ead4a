# SPDX-License-Identifier: GPL-2.0-or-later
"""The chains of map pages anywhere in an area, found by their looks in one pass of bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from hibernaut.memory.page import PAGE_SIZE
from hibernaut.swsusp.area import SwapArea
from hibernaut.swsusp.salvage.map_pages import MapFragment, MapPage, linked, look_like_map_pages, read_map_page

__all__ = ["map_fragments"]

PIECE_BLOCKS = 4096
"""Blocks that are read at a time: 16 MiB."""
MOST_PAGES = 1 << 18
"""Most map pages that are kept: those of 512 GiB of images."""


def map_fragments(area: SwapArea, progress: Callable[[int], None] | None = None) -> list[MapFragment]:
    """Return the chains of map pages in an area, by first block."""
    pages: list[MapPage] = []
    for first, words in pieces(area):
        for row in np.flatnonzero(look_like_map_pages(words, area.blocks)).tolist():
            page = read_map_page(first + row, words[row].tobytes(), area.blocks, area.header_block)
            if page is not None and len(pages) < MOST_PAGES:
                pages.append(page)
        if progress:
            progress(len(words))
    return linked(pages)


def pieces(area: SwapArea) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    """Yield all blocks: number of the first, and the blocks as u64, shape (n, 512); valid until the next piece.

    A piece that lies in a hole of the file is not read.
    """
    buffer = np.empty(PIECE_BLOCKS * PAGE_SIZE, dtype=np.uint8)
    zeroes = np.broadcast_to(np.uint64(0), (PIECE_BLOCKS, PAGE_SIZE // 8))
    for first in range(0, area.blocks, PIECE_BLOCKS):
        count = min(PIECE_BLOCKS, area.blocks - first)
        if area.is_hole(first, count):
            yield first, zeroes[:count]
            continue
        wanted = buffer[: count * PAGE_SIZE]
        got = area.file.pread_into(area.offset_of(first), wanted) // PAGE_SIZE
        yield first, wanted[: got * PAGE_SIZE].view("<u8").reshape(-1, PAGE_SIZE // 8)
