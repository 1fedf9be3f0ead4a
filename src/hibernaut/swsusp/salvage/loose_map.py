# SPDX-License-Identifier: GPL-2.0-or-later
"""The swap map of a damaged image: the pages of its chain that are left, and the blocks of those that are not.

The kernel takes the blocks of an image in ascending order, each map page before its entries (`alloc_swapdev_block` in
`swap_write_page`, kernel/power/swap.c). Entries of a lost map page follow from the entries before and after it; they
are *derived*: only data in them that decompresses confirms them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hibernaut.memory.page import PAGE_SIZE, BoolArray
from hibernaut.swsusp.area import SwapArea
from hibernaut.swsusp.checker import Problem
from hibernaut.swsusp.declarations import MAP_ENTRIES
from hibernaut.swsusp.salvage.map_pages import MapFragment, MapPage, read_map_page

__all__ = ["UNKNOWN", "FindFragments", "LooseMap", "read_loose_map"]

UNKNOWN = -1
MOST_DERIVED = 1 << 20
"""Most entries between two map pages that are derived: 4 GiB of image."""

FindFragments = Callable[[], Sequence[MapFragment]]
"""Return all chains of map pages in the area; called at most once, and only if the chain of the image is broken."""


@dataclass(frozen=True, eq=False)
class LooseMap:
    """A swap map as far as it is known.

    Attributes:
        map_blocks: blocks of the map pages that were read, in order, int64, shape (m,).
        entries: blocks of the image's pages in order, int64, shape (n,), the info page first; -1 where unknown. Some
            can be behind the end of a file that was cut.
        derived: which of them no map page names, shape (n,).
        alternative: for each entry the block that its neighbours suggest instead, int64, shape (n,); -1 for none.
        ended: whether the last entry is the last of the image.
        broken: whether entries are missing before the first, or an unknown number of them between two.
        problems: everything that is wrong.
    """

    map_blocks: NDArray[np.int64]
    entries: NDArray[np.int64]
    derived: BoolArray
    alternative: NDArray[np.int64]
    ended: bool
    broken: bool
    problems: tuple[Problem, ...]


def read_loose_map(area: SwapArea, first: int, find: FindFragments) -> LooseMap:
    """Read a swap map from its first page, past whatever is damaged.

    Args:
        area: swap area.
        first: block of the first map page, as the header has it.
        find: search for map pages, see `FindFragments`.
    """
    return _Reading(area, find).read(first)


class _Reading:
    def __init__(self, area: SwapArea, find: FindFragments) -> None:
        self._area = area
        self._find = find
        self._fragments: list[MapFragment] | None = None
        self._pages: list[MapPage] = []
        self._parts: list[NDArray[np.int64]] = []
        self._derived: list[bool] = []
        self._problems: list[Problem] = []
        self._broken = False

    def read(self, first: int) -> LooseMap:
        ended = self._follow(first, self._area.offset_of(self._area.header_block) + PAGE_SIZE - 32)
        entries = np.concatenate(self._parts) if self._parts else np.empty(0, dtype=np.int64)
        derived = np.repeat(np.array(self._derived, dtype=np.bool_), [len(part) for part in self._parts])
        self._note_unknown()
        return LooseMap(
            np.array([page.block for page in self._pages], dtype=np.int64),
            entries,
            derived,
            self._alternatives(),
            ended,
            self._broken,
            tuple(self._problems),
        )

    def _follow(self, block: int, named_at: int) -> bool:
        """Read pages from a block to the end of the chain; return whether it is reached."""
        while True:
            page, other = self._read(block), self._next_in_order(block)
            if page is not None and other is None:
                self._take(page)
            elif other is not None:
                self._problem(
                    f"the link to map page {len(self._pages)} is block {block}; one is at block {other.block}, right "
                    "behind the last entry before it",
                    named_at,
                )
                self._take(other)
            elif not self._bridge(block, named_at):
                return self._is_zero(block)
            last = self._pages[-1]
            block, named_at = last.next_block, self._area.offset_of(last.block) + 8 * MAP_ENTRIES
            if block == 0 and not (len(last.entries) == MAP_ENTRIES and self._next_in_order(0)):
                return True

    def _read(self, block: int) -> MapPage | None:
        area = self._area
        if not 0 < block < area.blocks or block == area.header_block or block in {page.block for page in self._pages}:
            return None
        return read_map_page(block, area.read_block(block, "map page"), area.blocks, area.header_block)

    def _next_in_order(self, not_at: int) -> MapPage | None:
        """Return a map page right behind the last entry, where the kernel puts it, if it is there."""
        if not self._pages or len(self._pages[-1].entries) < MAP_ENTRIES:
            return None
        guess = int(self._pages[-1].entries[-1]) + 1
        page = None if guess == not_at else self._read(guess)
        return page if page and len(page.entries) and page.entries[0] == guess + 1 else None

    def _take(self, page: MapPage) -> None:
        self._pages.append(page)
        self._parts.append(page.entries)
        self._derived.append(False)

    def _bridge(self, lost: int, named_at: int) -> bool:
        """Continue behind a map page that is lost: with the nearest chain after it, and the entries between."""
        if self._fragments is None:
            self._fragments = list(self._find())
        inside = 0 < lost < self._area.blocks
        number = len(self._pages)
        what = f"block {lost} does not hold map page {number}" if inside else f"the link to map page {number} is {lost}"
        self._problem(what, named_at)
        self._broken = True
        behind = lost if inside else (int(self._parts[-1][-1]) if self._parts else 0)
        used = {page.block for page in self._pages}
        nearest = min(
            (one for one in self._fragments if one.first_block > behind and not used & {p.block for p in one.pages}),
            key=lambda one: one.first_block,
            default=None,
        )
        if nearest is None:
            if inside:
                # The last page of a chain has no other after it; its entries follow it.
                end = min(lost + 1 + MAP_ENTRIES, self._area.blocks)
                self._parts.append(np.arange(lost + 1, end, dtype=np.int64))
                self._derived.append(True)
            return False
        if inside:
            between = self._between(lost, nearest)
            self._parts.append(between)
            self._derived.append(True)
        for page in nearest.pages:
            self._take(page)
        return True

    def _between(self, lost: int, following: MapFragment) -> NDArray[np.int64]:
        """Return the blocks that a lost map page and those after it can have listed, ascending."""
        first = following.pages[0]
        known = self._parts[-1][self._parts[-1] != UNKNOWN] if self._parts else np.empty(0, dtype=np.int64)
        begin = int(known[-1]) + 1 if len(known) else lost + 1
        named = first.entries[first.entries != UNKNOWN]
        end = int(named[0]) if len(named) else first.block
        if not begin <= end <= begin + MOST_DERIVED:
            return np.empty(0, dtype=np.int64)
        maps = [lost, first.block]
        if first.block > lost and (first.block - lost) % (MAP_ENTRIES + 1) == 0:
            maps += range(lost, first.block, MAP_ENTRIES + 1)
        return np.setdiff1d(np.arange(begin, end, dtype=np.int64), [*maps, *(page.block for page in self._pages)])

    def _is_zero(self, block: int) -> bool:
        """Return whether the chain can end with a page without entries, as it does after a full one."""
        if not 0 < block < self._area.blocks or not self._pages or len(self._pages[-1].entries) < MAP_ENTRIES:
            return False
        if any(self._area.read_block(block, "map page")):
            return False
        self._problems.pop()
        self._parts.pop()
        self._derived.pop()
        self._broken = any(self._derived)
        return True

    def _alternatives(self) -> NDArray[np.int64]:
        """Return the block that an entry would have in order where it is out of it and its neighbours are not."""
        pages = iter(self._pages)
        order, places = [], []
        at = 0
        for part, derived in zip(self._parts, self._derived, strict=True):
            if not derived:
                order.append(np.array([next(pages).block], dtype=np.int64))
                places.append(np.array([UNKNOWN], dtype=np.int64))
            order.append(part)
            places.append(np.arange(at, at + len(part), dtype=np.int64))
            at += len(part)
        found = np.full(at, UNKNOWN, dtype=np.int64)
        if not order:
            return found
        blocks, place = np.concatenate(order), np.concatenate(places)
        middle = np.arange(1, len(blocks) - 1)
        before, after = blocks[middle - 1], blocks[middle + 1]
        pairs = np.concatenate(([False], np.diff(blocks) == 1, [False]))  # pairs[i]: block i continues block i - 1
        near = pairs[middle - 1] | pairs[np.minimum(middle + 2, len(blocks))]
        out = (after == before + 2) & (blocks[middle] != before + 1) & near & (place[middle] >= 0) & (before > 0)
        found[place[middle[out]]] = before[out] + 1
        return found

    def _note_unknown(self) -> None:
        for page in self._pages:
            for index in np.flatnonzero(page.entries == UNKNOWN).tolist():
                self._problem(
                    f"an entry of the swap map (number {index} of its page) is not a block of the area",
                    self._area.offset_of(page.block) + 8 * index,
                )

    def _problem(self, what: str, at: int) -> None:
        self._problems.append(Problem(what, f"{self._area.file.name}: byte {at}"))
