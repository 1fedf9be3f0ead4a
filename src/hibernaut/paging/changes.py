# SPDX-License-Identifier: GPL-2.0-or-later
"""Entries of page tables that differ between two memories."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hibernaut.memory.physical import PhysicalMemory

__all__ = ["DifferentEntry", "changed_entries"]


@dataclass(frozen=True)
class DifferentEntry:
    """An entry that differs.

    Attributes:
        table_pfn: frame of its table.
        index: its number in the table, 0 to 511.
        first: the entry in the first memory.
        second: the entry in the second.
    """

    table_pfn: int
    index: int
    first: int
    second: int


def changed_entries(
    first: PhysicalMemory, second: PhysicalMemory, tables: Sequence[int], at_most: int
) -> tuple[tuple[DifferentEntry, ...], int]:
    """Return the entries that differ in tables that both memories have, and the number of all.

    Args:
        first: the one memory.
        second: the other.
        tables: frames of the tables.
        at_most: number of entries that are returned.
    """
    found: list[DifferentEntry] = []
    number = 0
    for table in tables:
        ours, theirs = first.page(table), second.page(table)
        if ours is None or theirs is None:
            continue
        before, after = ours.view("<u8"), theirs.view("<u8")
        where = np.flatnonzero(before != after)
        number += len(where)
        kept = where[: max(at_most - len(found), 0)].tolist()
        found += [DifferentEntry(table, at, int(before[at]), int(after[at])) for at in kept]
    return tuple(found), number
