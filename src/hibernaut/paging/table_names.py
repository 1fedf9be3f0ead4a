# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables that a root reaches, one table at a time: for small trees, and for trees of which little changed.

`PageTables.pfns` reads all tables of a level at once. Here the frames that a table names are kept in a memo by the
digest of its bytes, so that a table that did not change costs one lookup.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hibernaut.paging.entries import Entries, Entry, Level, entry_frames, is_leaf

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hibernaut.memory.memo import Memo
    from hibernaut.memory.page import BoolArray
    from hibernaut.memory.physical import PhysicalMemory
    from hibernaut.memory.ranges import FrameRanges

__all__ = ["Tables", "named_tables", "names_table"]

Tables = tuple[tuple[int, tuple[tuple[int, bytes | None], ...]], ...]
"""For each level from the root down: the level, and its tables as (frame, `page_digest`), ascending."""


def names_table(entries: Entries, level: Level) -> BoolArray:
    """Return which entries of a level above PTE refer to a table: a mask, shape as `entries`."""
    present: BoolArray = (entries & np.uint64(Entry.PRESENT)) != 0
    if is_leaf(int(Entry.PRESENT | Entry.PSE), level):
        present &= (entries & np.uint64(Entry.PSE)) == 0
    return present


def named_tables(
    memory: PhysicalMemory,
    root_pfn: int,
    levels: int,
    encryption: int,
    memo: Memo,
    followed: FrameRanges | None = None,
) -> Tables:
    """Return the tables that a root reaches, with the digests of their bytes: equal for equal trees of tables.

    Args:
        memory: the memory that holds the tables.
        root_pfn: the frame of the root.
        levels: 4 or 5.
        encryption: see `PageTables`.
        memo: keeps what each table names.
        followed: the frames whose tables are followed; None follows all.
    """
    tables: Iterable[int] = (root_pfn,)
    digest_of = memory.page_digest
    found = []
    for number in range(levels, 0, -1):
        row = tuple((pfn, digest_of(pfn)) for pfn in tables)
        found.append((number, row))
        if number == Level.PTE:
            break
        known = memo.of(f"named_by, level {number}")
        below: set[int] = set()
        for pfn, digest in row:
            if digest is None or (followed is not None and not followed.end_of(pfn)):
                continue
            names = known.get((digest, encryption))
            if names is None:
                names = known[digest, encryption] = _named_by(memory, pfn, Level(number), encryption)
            below.update(names)
        tables = sorted(below)
    return tuple(found)


def _named_by(memory: PhysicalMemory, pfn: int, level: Level, encryption: int) -> tuple[int, ...]:
    """Return the frames that a table above PTE names as tables, ascending, each once."""
    page = memory.page(pfn)
    assert page is not None
    entries = page.view("<u8")
    frames = entry_frames(entries[names_table(entries, level)], level, encryption)
    return tuple(sorted(set(frames.tolist())))
