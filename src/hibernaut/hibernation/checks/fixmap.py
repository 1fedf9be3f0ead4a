# SPDX-License-Identifier: GPL-2.0-or-later
"""The check of the fixmap slot."""

from __future__ import annotations

from collections.abc import Iterator

from hibernaut.hibernation.checks.violation import Violation
from hibernaut.hibernation.snapshot import Snapshot
from hibernaut.linux.machine import Machine
from hibernaut.memory.page import PAGE_SHIFT

__all__ = ["slot_empty"]


def slot_empty(machine: Machine, snapshot: Snapshot | None = None) -> tuple[Violation, ...]:
    """Return a violation if the fixmap slot is not zero, in the machine or in the saved copy of its table.

    So are the PMD entry for blocks, and the slots that stand for the mermap, once they were used. A machine without a
    fixmap passes.

    Args:
        machine: the machine after the copy.
        snapshot: the snapshot; without one only the machine is checked.
    """
    if not machine.has_fixmap:
        return ()
    findings = []
    for name, paddr in _slots(machine):
        table, within = paddr >> PAGE_SHIFT, paddr & 0xFFF
        entry = machine.memory.read_u64(paddr)
        if entry:
            findings.append(Violation("slot-empty", f"{name} holds {entry:#x} after the copy", table, 1))
        if snapshot is not None and snapshot.frames.end_of(table):
            saved = int.from_bytes(snapshot.page(table)[within : within + 8].tobytes(), "little")
            if saved:
                findings.append(Violation("slot-empty", f"{name} holds {saved:#x} in its saved table", table, 1))
    return tuple(findings)


def _slots(machine: Machine) -> Iterator[tuple[str, int]]:
    """Yield name and physical address of each entry that must be zero."""
    yield f"slot {machine.fixmap.index}", machine.fixmap.paddr
    block = machine.used_block_slot
    if block is not None:
        yield f"entry {block.index} of the fixmap's PMD table", block.paddr
    for _, region in machine.mermap:
        for index, paddr in zip(region.slots, region.paddrs, strict=True):
            yield f"slot {index}, of the mermap,", paddr
