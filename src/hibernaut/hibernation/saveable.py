# SPDX-License-Identifier: GPL-2.0-or-later
"""Which pages a snapshot saves: `saveable_page` and `mark_free_pages` of kernel/power/snapshot.c, for ranges."""

from __future__ import annotations

from hibernaut.errors import HibernautError
from hibernaut.linux.direct_map import FrameState, frames_in_state
from hibernaut.linux.machine import Machine
from hibernaut.memory.physical import FrameRanges

__all__ = ["saveable_pages"]


def saveable_pages(machine: Machine) -> FrameRanges:
    """The frames that `count_data_pages` counts and `copy_data_pages` lists, as the machine is now.

    A list that somebody has fixed (`Machine.listed`) is taken as it is. Else, as the kernel asks: not nosave, not on a
    free list, not offline, not reserved without being present, not a guard page. Pages that a CPU keeps for itself are
    on no free list: drain first, as the kernel does. Costs follow the number of ranges.

    Raises:
        MachineFault: a reserved page has no table: `kernel_page_present` reads NULL.
        HibernautError: neither a list nor flags.
    """
    if machine.listed is not None:
        return machine.listed
    flags = machine.flags
    if flags is None:
        raise HibernautError("nothing says which pages of this machine are to be saved")
    candidates = flags.ram.without(flags.nosave).without(machine.allocator.free_ranges()).without(flags.offline)
    reserved = flags.reserved.within(candidates)
    if len(reserved):
        no_table = reserved.within(frames_in_state(machine.direct_map, FrameState.NONE_ABOVE))
        if len(no_table) and not machine.rules.checks_null_pte:
            pfn = int(no_table.starts[0])
            raise machine.page_fault_oops(0, doing=f"counting reserved frame {pfn:#x}", pfn=pfn, table=False)
        present = frames_in_state(machine.direct_map, FrameState.PRESENT)
        candidates = candidates.without(reserved.without(present))
    return candidates.without(flags.guard)
