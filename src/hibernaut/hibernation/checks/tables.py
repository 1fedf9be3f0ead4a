# SPDX-License-Identifier: GPL-2.0-or-later
"""The check of saved page tables."""

from __future__ import annotations

import numpy as np

from hibernaut.hibernation.checks.violation import Violation, violations_at
from hibernaut.hibernation.page_tables import names_table
from hibernaut.hibernation.snapshot import Snapshot
from hibernaut.linux.machine import Machine
from hibernaut.memory.page import Pfns
from hibernaut.paging.entries import Level, entry_frames

__all__ = ["tables_closed"]


def tables_closed(snapshot: Snapshot, resumed: Machine) -> tuple[Violation, ...]:
    """Return the page tables that the resumed machine reaches from CR3 and that were not saved.

    The frame of such a table holds arbitrary bytes, so the walk does not follow it. Each table is read once per level.

    Args:
        snapshot: the snapshot.
        resumed: the machine that resumed from it.
    """
    lost: set[int] = set()
    seen: set[tuple[int, int]] = set()
    level = Level(resumed.levels)
    tables = np.array([resumed.tables.root_pfn], dtype=np.int64)
    while len(tables):
        saved = snapshot.frames.contains(tables)
        lost.update(tables[~saved].tolist())
        below: list[Pfns] = []
        for pfn in tables[saved].tolist():
            page = resumed.memory.page(pfn)
            if page is None or level == Level.PTE or (level, pfn) in seen:
                continue
            seen.add((level, pfn))
            entries = page.view("<u8")
            below.append(entry_frames(entries[names_table(entries, level)], level, resumed.encryption))
        if level == Level.PTE:
            break
        level = Level(level - 1)
        tables = np.unique(np.concatenate(below)) if below else np.empty(0, dtype=np.int64)
    return violations_at("tables-closed", "a page table that was not saved", sorted(lost))
