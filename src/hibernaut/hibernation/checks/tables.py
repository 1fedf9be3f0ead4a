# SPDX-License-Identifier: GPL-2.0-or-later
"""The check of saved page tables."""

from __future__ import annotations

from hibernaut.hibernation.checks.violation import Violation, violations_at
from hibernaut.hibernation.page_tables import reached_tables
from hibernaut.hibernation.snapshot import Snapshot
from hibernaut.linux.machine import Machine

__all__ = ["tables_closed"]


def tables_closed(snapshot: Snapshot, resumed: Machine) -> tuple[Violation, ...]:
    """Return the page tables that the resumed machine reaches from CR3 and that were not saved.

    The frame of such a table holds arbitrary bytes, so the walk does not follow it. Each table is read once per level.

    Args:
        snapshot: the snapshot.
        resumed: the machine that resumed from it.
    """
    reached = reached_tables(resumed, snapshot.frames)
    lost = {pfn for _, tables in reached for pfn, _ in tables if not snapshot.frames.end_of(pfn)}
    found = violations_at("tables-closed", "a page table that was not saved", sorted(lost))
    second = resumed.by_second_root()
    if second is None:
        return found
    others = {pfn for _, tables in reached_tables(second, snapshot.frames) for pfn, _ in tables} - lost
    lost = {pfn for pfn in others if not snapshot.frames.end_of(pfn)}
    return (*found, *violations_at("tables-closed", "a page table of the second root, not saved", sorted(lost)))
