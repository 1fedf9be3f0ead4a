# SPDX-License-Identifier: GPL-2.0-or-later
"""The next act of the owners of pages that are out of the direct map: each puts its pages back, and writes to them."""

from __future__ import annotations

from hibernaut.errors import OutOfMemory
from hibernaut.linux.change_page_attr import AttributeChangeError, set_pages_p
from hibernaut.linux.kfence import kfence_protect_page
from hibernaut.linux.machine import Machine
from hibernaut.linux.owners import KFENCE, NextAct, OwnedPages
from hibernaut.linux.set_memory import set_area_direct_map, set_direct_map_valid_noflush, set_memory_p
from hibernaut.memory.ranges import FrameRanges

__all__ = ["put_back_and_write"]


def put_back_and_write(machine: Machine, owned: OwnedPages, when: str) -> None:
    """Make each page of an owner present as the owner does, and write to it; a guard page stays as it is.

    An owner of whole blocks frees its pages first, but for those that are nosave, and the next user writes to them.

    Args:
        machine: the machine; its entries, its TLB and its free lists change, the content of the pages does not.
        owned: the pages.
        when: a clause for the fault: on which machine this happens.

    Raises:
        MachineFault: a page that is present again is not writable, or not mapped.
        OutOfMemory, AttributeChangeError: as `change_page_attr_set_clr`, where an entry is not a 4K entry.
    """
    owner = owned.owner
    if owner.writes_in is None:
        return
    if owner.next_act in (NextAct.RESETS_AREA, NextAct.RESTORES_FOLIO):
        _reset_and_free(machine, owned)
    for pfn in _written_to(machine, owned).pfns().tolist():
        if owner is KFENCE:
            kfence_protect_page(machine, pfn, protect=False)
        elif owner.next_act == NextAct.REWRITES_ENTRY:
            set_pages_p(machine, pfn, 1)
        elif owner.next_act == NextAct.RESTORES_PRESENT:
            set_memory_p(machine, machine.vaddr(pfn), 1)
        machine.write_access(machine.vaddr(pfn), f"writing to frame {pfn:#x} in {owner.writes_in}, {when}")


def _written_to(machine: Machine, owned: OwnedPages) -> FrameRanges:
    """Return the frames that are written to: of a block those that it frees."""
    if owned.owner.next_act in (NextAct.REWRITES_ENTRY, NextAct.RESTORES_PRESENT) or machine.page_flags is None:
        return owned.frames
    return owned.frames.without(machine.page_flags.nosave)


def _reset_and_free(machine: Machine, owned: OwnedPages) -> None:
    """Make all pages present as their owner does, whether that fails or not, and free them."""
    for start, pages in owned.frames:
        try:
            if owned.owner.next_act == NextAct.RESETS_AREA:
                set_area_direct_map(machine, start, pages, valid=True)
            else:
                set_direct_map_valid_noflush(machine, start, pages, valid=True)
        except (OutOfMemory, AttributeChangeError) as error:
            machine.log.note(
                f"{owned.owner.name}: {pages} pages from frame {start:#x} stay as they are, ignored: {error}"
            )
    for pfn in _written_to(machine, owned).pfns().tolist():
        machine.allocator.free_page(pfn, machine.cpu)
