# SPDX-License-Identifier: GPL-2.0-or-later
"""Saveable pages: `saveable_page` and `mark_free_pages` of kernel/power/snapshot.c, for ranges."""

from __future__ import annotations

from hibernaut.errors import HibernautError
from hibernaut.linux.direct_map import FrameState, frames_in_state
from hibernaut.linux.machine import Machine
from hibernaut.memory.ranges import FrameRanges

__all__ = ["saveable_pages"]


def saveable_pages(machine: Machine) -> FrameRanges:
    """Return the page frames that `count_data_pages` counts and `copy_data_pages` copies, as the machine is now.

    A list that a real kernel fixed (`Machine.saveable`) is returned unchanged. Else a page is saveable under the
    kernel's conditions: not nosave, not on a free list, not offline, not reserved unless present, not a guard page.
    A page on a CPU's own list is on no free list, so drain these lists first, as the kernel does. Cost follows the
    number of ranges.

    Raises:
        MachineFault: a reserved page has no table: `kernel_page_present` reads NULL.
        HibernautError: the machine has neither page flags nor a list of saveable pages.
    """
    if machine.saveable is not None:
        return machine.saveable
    flags = machine.page_flags
    if flags is None:
        raise HibernautError("machine has neither page flags nor a list of saveable pages")
    free = machine.allocator.free_ranges()
    known = machine.memo.of("saveable_pages")
    found: FrameRanges | None = known.get((flags, free.bounds))
    if found is not None:
        return found
    candidates = flags.ram.without(flags.nosave).without(free).without(flags.offline)
    reserved = flags.reserved.within(candidates)
    if not len(reserved):  # no entry decides
        found = known[flags, free.bounds] = candidates.without(flags.guard)
        return found
    no_table = reserved.within(frames_in_state(machine.direct_map, FrameState.NONE_ABOVE))
    if len(no_table) and not machine.rules.checks_null_pte:
        pfn = int(no_table.starts[0])
        raise machine.page_fault_oops(0, doing=f"counting reserved frame {pfn:#x}", pfn=pfn, table=False)
    present = frames_in_state(machine.direct_map, FrameState.PRESENT)
    return candidates.without(reserved.without(present)).without(flags.guard)
