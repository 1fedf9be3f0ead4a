# SPDX-License-Identifier: GPL-2.0-or-later
"""The swap map: the blocks of the image, in order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hibernaut.errors import CorruptImage
from hibernaut.swsusp.area import SwapArea
from hibernaut.swsusp.declarations import MAP_ENTRIES

__all__ = ["SwapMap", "read_swap_map"]


@dataclass(frozen=True, eq=False)
class SwapMap:
    """The chain of map pages, read to its end.

    Attributes:
        map_blocks: blocks of the map pages in chain order, int64, shape (m,).
        entries: blocks of the image's pages in order, int64, shape (n,); entry 0 is the info page.
        entries_per_page: entries of a map page.
        entry_bytes: size of an entry.
    """

    map_blocks: NDArray[np.int64]
    entries: NDArray[np.int64]
    entries_per_page: int = MAP_ENTRIES
    entry_bytes: int = 8

    @property
    def blocks(self) -> NDArray[np.int64]:
        """All blocks of the image, ascending: map pages and entries, without the header block."""
        return np.sort(np.concatenate((self.map_blocks, self.entries)))

    def place_of_entry(self, entry: int) -> tuple[int, int]:
        """Return the place of an entry: (block of the map page, byte in it)."""
        page, index = divmod(entry, self.entries_per_page)
        return int(self.map_blocks[page]), index * self.entry_bytes


def read_swap_map(area: SwapArea, first: int) -> SwapMap:
    """Read the chain from its first map page.

    Raises:
        CorruptImage: the chain loops or leaves the area, an entry before the last one is zero or points outside the
            area, or a block is used twice.
    """
    chain: list[int] = []
    seen: set[int] = set()
    parts: list[NDArray[np.uint64]] = []
    per_page, entry_bytes = area.map_entries, area.sector_bytes
    block, named_at = first, area.image_at
    while block or not chain:
        if block in seen:
            raise CorruptImage(
                f"swap map loops: map page {len(chain)} would be block {block} again",
                source=area.file.name,
                offset=named_at,
            )
        if block == area.header_block or not 0 < block < area.blocks:
            raise CorruptImage(
                f"map page {len(chain)} would be block {block}",
                source=area.file.name,
                offset=named_at,
                expected=f"a block of the swap area other than its header, below {area.blocks}",
            )
        page = np.frombuffer(area.read_block(block, f"map page {len(chain)}"), dtype=f"<u{entry_bytes}")
        seen.add(block)
        chain.append(block)
        parts.append(page[:per_page].astype(np.uint64))
        block, named_at = int(page[per_page]), area.offset_of(block) + entry_bytes * per_page
    raw = np.concatenate(parts)
    used = int(np.flatnonzero(raw)[-1]) + 1 if raw.any() else 0
    entries = _checked(area, chain, raw[:used])
    swap_map = SwapMap(np.array(chain, dtype=np.int64), entries, per_page, entry_bytes)
    _refuse_doubles(area, swap_map)
    return swap_map


def _checked(area: SwapArea, chain: list[int], raw: NDArray[np.uint64]) -> NDArray[np.int64]:
    if not len(raw):
        raise CorruptImage("swap map has no entries", source=area.file.name, offset=area.offset_of(chain[0]))
    bad = np.flatnonzero((raw == 0) | (raw >= area.blocks) | (raw == area.header_block))
    if len(bad):
        entry = int(bad[0])
        page, index = divmod(entry, area.map_entries)
        found = int(raw[entry])
        raise CorruptImage(
            f"swap map entry {entry} is zero before the last" if not found else f"swap map entry {entry} is {found}",
            source=area.file.name,
            offset=area.offset_of(chain[page]) + area.sector_bytes * index,
            expected=f"a block of the swap area other than its header, below {area.blocks}",
        )
    return raw.astype(np.int64)


def _refuse_doubles(area: SwapArea, swap_map: SwapMap) -> None:
    blocks = swap_map.blocks
    double = np.flatnonzero(blocks[1:] == blocks[:-1])
    if not len(double):
        return
    block = int(blocks[double[0]])
    uses = np.flatnonzero(swap_map.entries == block).tolist()
    page, index = swap_map.place_of_entry(uses[-1])
    raise CorruptImage(
        f"block {block} is used twice, the last time by swap map entry {uses[-1]}",
        source=area.file.name,
        offset=area.offset_of(page) + index,
    )
