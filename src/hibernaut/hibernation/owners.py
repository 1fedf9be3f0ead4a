# SPDX-License-Identifier: GPL-2.0-or-later
"""The acts of owners of pages out of the direct map after the copy: on the live machine, and on the resumed one.

The copy is not the end of the live machine: it writes the image to disk, and its kernel allocates and frees meanwhile
(`hibernation_snapshot` to `power_down`, kernel/power/hibernate.c). If an owner's write faults then, nothing is saved.
Where the owner leaves its pages alone until the machine is off, it uses them on the resumed machine.
"""

from __future__ import annotations

from hibernaut.errors import MachineFault
from hibernaut.linux.machine import Machine
from hibernaut.linux.owner_writes import put_back_and_write

__all__ = ["ONCE_RESUMED", "WHILE_WRITING", "owners_write_after_copy", "owners_write_once_resumed"]

WHILE_WRITING = "while the image is written"
ONCE_RESUMED = "once resumed"
"""Clauses of the faults: on which machine an owner writes."""


def owners_write_after_copy(machine: Machine) -> None:
    """Let owners use their pages on the live machine, after the copy, where the environment chooses so.

    Only owners that depend on the rights in their entries, and owners of whole blocks, are asked about: to the others
    it makes no difference. The given machine does not change, but for the record of its environment, and the log of a
    fault.

    Args:
        machine: the machine as the copy left it.

    Raises:
        MachineFault: an owner's write faults.
    """
    chosen = [
        owned
        for owned in machine.owners
        if owned.continues and machine.environment.owner_writes(int(owned.frames.starts[0]))
    ]
    if not chosen:
        return
    live = machine.fork(machine.environment)  # one record holds all choices
    try:
        for owned in chosen:
            put_back_and_write(live, owned, WHILE_WRITING)
    except MachineFault:
        machine.log = live.log
        raise


def owners_write_once_resumed(machine: Machine) -> None:
    """Let every owner use its pages on a resumed machine. Raise MachineFault if a write faults."""
    for owned in machine.owners:
        put_back_and_write(machine, owned, ONCE_RESUMED)
