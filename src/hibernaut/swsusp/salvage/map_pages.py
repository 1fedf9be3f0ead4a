# SPDX-License-Identifier: GPL-2.0-or-later
"""Map pages by their looks, without the chain that leads to them, and the chains that their links prove."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hibernaut.memory.page import BoolArray
from hibernaut.swsusp.declarations import END_OF_PFNS, MAP_ENTRIES

__all__ = ["MapFragment", "MapPage", "linked", "look_like_map_pages", "read_map_page", "used_entries"]

Words = NDArray[np.uint64]
"""Blocks as little-endian u64, shape (n, 512)."""
BEYOND_ANY_DEVICE = 1 << 40
"""Blocks of 4096 bytes of the largest device that is believed."""
STRAY_PART = 16
"""Of so many entries of a map page one may be wrong, and it is still taken for one."""


@dataclass(frozen=True, eq=False)
class MapPage:
    """A map page as it was read.

    Attributes:
        block: its block.
        entries: its entries, to the last that is not zero, int64, shape (n,); -1 for one outside any device.
        next_block: block of the next map page; 0 at the end; -1 if it is outside any device.
    """

    block: int
    entries: NDArray[np.int64]
    next_block: int


@dataclass(frozen=True, eq=False)
class MapFragment:
    """Map pages of which each links to the next.

    Attributes:
        pages: the pages, in the order of the chain.
    """

    pages: tuple[MapPage, ...]

    @property
    def first_block(self) -> int:
        """Block of the first page."""
        return self.pages[0].block

    @property
    def ended(self) -> bool:
        """Whether the last page is the last of its image."""
        return self.pages[-1].next_block == 0


def used_entries(words: Words) -> NDArray[np.int64]:
    """Return for each block how many entries it has as a map page, to the last that is not zero, shape (n,)."""
    filled = words[:, :MAP_ENTRIES] != 0
    last = MAP_ENTRIES - np.argmax(filled[:, ::-1], axis=1)
    return np.where(filled.any(axis=1), last, 0)


def read_map_page(block: int, page: bytes, area_blocks: int, header_block: int) -> MapPage | None:
    """Return the map page in a block; None if too few of its entries are blocks of the area, or it has none.

    An entry that continues its predecessor is one behind the end of a file that was cut.

    Args:
        block: number of the block.
        page: its 4096 bytes.
        area_blocks: number of blocks of the device.
        header_block: block of the swap header, which no entry names.
    """
    words = np.frombuffer(page, dtype="<u8")
    used = MAP_ENTRIES if words[MAP_ENTRIES] else int(used_entries(words[None, :])[0])
    raw = words[:used]
    entries = np.where(raw < BEYOND_ANY_DEVICE, raw, np.uint64(0)).astype(np.int64)
    good = (entries > 0) & (entries < area_blocks)
    good[1:] |= (entries[1:] > 1) & (entries[1:] == entries[:-1] + 1)
    good &= (entries != header_block) & (entries != block)
    if not used or int((~good).sum()) * STRAY_PART > used + STRAY_PART - 1:
        return None
    follows = int(words[MAP_ENTRIES])
    return MapPage(
        block, np.where(good, entries, -1), follows if follows < BEYOND_ANY_DEVICE and follows != block else -1
    )


def look_like_map_pages(words: Words, area_blocks: int) -> BoolArray:
    """Return which of many blocks look like map pages, shape (n,): mostly ascending blocks of the area, then zeroes.

    Lists of frames and tables of numbers can look so, too: only links tell, see `linked`.

    Args:
        words: the blocks.
        area_blocks: number of blocks of the device.
    """
    limit, one = np.uint64(area_blocks), np.uint64(1)
    # Nearly all blocks fail here, at the cost of four words each. Zero less one is above all of them.
    likely = (words[:, 0] - one < limit - one) & ((words[:, 1] < limit) | (words[:, 2] < limit))
    likely &= (words[:, MAP_ENTRIES - 1] < limit) | (words[:, MAP_ENTRIES - 2] < limit)
    rows = np.flatnonzero(likely)
    found = np.zeros(len(words), dtype=np.bool_)
    some = words[rows]
    used = used_entries(some)
    inside = np.arange(MAP_ENTRIES) < used[:, None]
    entries = some[:, :MAP_ENTRIES]
    stray = (~(entries - one < limit - one) & inside).sum(axis=1)
    ascends = ((entries[:, 1:] > entries[:, :-1]) & inside[:, 1:]).sum(axis=1)
    good = (stray * STRAY_PART <= used + STRAY_PART - 1) & (2 * ascends >= used - 1)
    good &= ((some[:, MAP_ENTRIES] == 0) & (used > 0)) | (used == MAP_ENTRIES)
    good &= ~(some == np.uint64(END_OF_PFNS)).any(axis=1)
    found[rows[good]] = True
    return found


def linked(pages: Sequence[MapPage]) -> list[MapFragment]:
    """Return the chains that the links of map pages make, by first block.

    A page that no other links to, and that does not end an image, proves nothing and is left out.
    """
    by_block = {page.block: page for page in pages}
    followers = {page.next_block for page in pages if page.next_block in by_block}
    chains = []
    for head in sorted(by_block.keys() - followers):
        chain, seen = [by_block[head]], {head}
        while (following := chain[-1].next_block) in by_block and following not in seen:
            chain.append(by_block[following])
            seen.add(following)
        if len(chain) > 1 or chain[0].next_block == 0:
            chains.append(MapFragment(tuple(chain)))
    return chains
