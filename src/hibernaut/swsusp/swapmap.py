# SPDX-License-Identifier: GPL-2.0-or-later
"""The swap map: the blocks of the image, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hibernaut.errors import CorruptImage
from hibernaut.swsusp.area import SwapArea
from hibernaut.swsusp.declarations import MAP_ENTRIES

__all__ = ["SEARCHED_ENTRIES", "SwapMap", "read_swap_map"]

SEARCHED_ENTRIES = 1 << 20
"""Entries that are looked at at a time."""
MARKED_BLOCKS = 1 << 26
"""Most blocks of an area (256 GiB) of which one byte each is kept to find those that are used twice."""


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
    raw = np.empty(MAP_ENTRIES, dtype=np.uint64)
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
        at = (len(chain) - 1) * per_page
        if at + per_page > len(raw):
            raw.resize(2 * (at + per_page), refcheck=False)  # in place: a second array would double the memory
        raw[at : at + per_page] = page[:per_page]
        block, named_at = int(page[per_page]), area.offset_of(block) + entry_bytes * per_page
    raw.resize(_used(raw[: len(chain) * per_page], per_page), refcheck=False)
    entries = _checked(area, chain, raw)
    swap_map = SwapMap(np.array(chain, dtype=np.int64), entries, per_page, entry_bytes)
    _refuse_doubles(area, swap_map)
    return swap_map


def _checked(area: SwapArea, chain: list[int], raw: NDArray[np.uint64]) -> NDArray[np.int64]:
    if not len(raw):
        raise CorruptImage("swap map has no entries", source=area.file.name, offset=area.offset_of(chain[0]))
    # In pieces, and the same array in the end: there may be as many entries as the machine has pages.
    bad = _first_where(raw, lambda some: (some == 0) | (some >= area.blocks) | (some == area.header_block))
    if bad is not None:
        entry = bad
        page, index = divmod(entry, area.map_entries)
        found = int(raw[entry])
        raise CorruptImage(
            f"swap map entry {entry} is zero before the last" if not found else f"swap map entry {entry} is {found}",
            source=area.file.name,
            offset=area.offset_of(chain[page]) + area.sector_bytes * index,
            expected=f"a block of the swap area other than its header, below {area.blocks}",
        )
    return raw.view(np.int64)


def _used(raw: NDArray[np.uint64], per_page: int) -> int:
    """Return the number of entries up to the last one that is not zero."""
    for end in range(len(raw), 0, -per_page):
        some = np.flatnonzero(raw[end - per_page : end])
        if len(some):
            return end - per_page + int(some[-1]) + 1
    return 0


def _first_where(
    values: NDArray[np.uint64], condition: Callable[[NDArray[np.uint64]], NDArray[np.bool_]]
) -> int | None:
    """Return the first position where a condition holds; None if it holds nowhere."""
    for first in range(0, len(values), SEARCHED_ENTRIES):
        found = np.flatnonzero(condition(values[first : first + SEARCHED_ENTRIES]))
        if len(found):
            return first + int(found[0])
    return None


def _refuse_doubles(area: SwapArea, swap_map: SwapMap) -> None:
    if _all_differ(area, swap_map):
        return
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


def _all_differ(area: SwapArea, swap_map: SwapMap) -> bool:
    """Return whether no block is used twice, if that can be said without sorting all of them; else False."""
    if area.blocks > MARKED_BLOCKS:
        return False
    used = np.zeros(area.blocks, dtype=np.bool_)
    used[swap_map.map_blocks] = True
    for first in range(0, len(swap_map.entries), SEARCHED_ENTRIES):
        used[swap_map.entries[first : first + SEARCHED_ENTRIES]] = True
    return int(np.count_nonzero(used)) == len(swap_map.map_blocks) + len(swap_map.entries)
