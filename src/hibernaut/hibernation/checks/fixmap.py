# SPDX-License-Identifier: GPL-2.0-or-later
"""The check of the fixmap slot."""

from __future__ import annotations

from hibernaut.hibernation.checks.violation import Violation
from hibernaut.hibernation.snapshot import Snapshot
from hibernaut.linux.machine import Machine
from hibernaut.memory.page import PAGE_SHIFT

__all__ = ["slot_empty"]


def slot_empty(machine: Machine, snapshot: Snapshot | None = None) -> tuple[Violation, ...]:
    """Return a violation if the fixmap slot is not zero, in the machine or in the saved copy of its table.

    A machine without a fixmap passes.

    Args:
        machine: the machine after the copy.
        snapshot: the snapshot; without one only the machine is checked.
    """
    if not machine.has_fixmap:
        return ()
    slot = machine.fixmap
    table, within = slot.paddr >> PAGE_SHIFT, slot.paddr & 0xFFF
    findings = []
    if slot.entry:
        findings.append(Violation("slot-empty", f"slot {slot.index} holds {slot.entry:#x} after the copy", table, 1))
    if snapshot is not None and snapshot.frames.end_of(table):
        saved = int.from_bytes(snapshot.page(table)[within : within + 8].tobytes(), "little")
        if saved:
            findings.append(Violation("slot-empty", f"slot {slot.index} holds {saved:#x} in its saved table", table, 1))
    return tuple(findings)
