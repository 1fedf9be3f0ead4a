# SPDX-License-Identifier: GPL-2.0-or-later
"""The next act of the owners of pages that are out of the direct map: each puts its pages back, and writes to them."""

from __future__ import annotations

from hibernaut.linux.change_page_attr import set_pages_p
from hibernaut.linux.kfence import kfence_protect_page
from hibernaut.linux.machine import Machine
from hibernaut.linux.owners import KFENCE, NextAct, OwnedPages
from hibernaut.linux.set_memory import set_memory_p

__all__ = ["put_back_and_write"]


def put_back_and_write(machine: Machine, owned: OwnedPages, when: str) -> None:
    """Make each page of an owner present as the owner does, and write to it; a guard page stays as it is.

    Args:
        machine: the machine; its entries and its TLB change, the content of the pages does not.
        owned: the pages.
        when: a clause for the fault: on which machine this happens.

    Raises:
        MachineFault: a page that is present again is not writable, or not mapped.
        OutOfMemory, AttributeChangeError: as `change_page_attr_set_clr`, where an entry is not a 4K entry.
    """
    owner = owned.owner
    if owner.writes_in is None:
        return
    for pfn in owned.frames.pfns().tolist():
        if owner is KFENCE:
            kfence_protect_page(machine, pfn, protect=False)
        elif owner.next_act == NextAct.REWRITES_ENTRY:
            set_pages_p(machine, pfn, 1)
        else:
            set_memory_p(machine, machine.vaddr(pfn), 1)
        machine.write_access(machine.vaddr(pfn), f"writing to frame {pfn:#x} in {owner.writes_in}, {when}")
