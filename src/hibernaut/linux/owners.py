# SPDX-License-Identifier: GPL-2.0-or-later
"""Owners of pages that are out of the direct map: the kernel code that took them out, and its next act on them.

An owner makes the entry of its page present again and writes to the page. Two kinds differ in what they expect of the
entry in the meantime. One sets PRESENT and RW, whatever the entry holds. The other cleared PRESENT alone and restores
PRESENT alone, so that its write needs the RW that it left in the entry. Owners of whole blocks set PRESENT and RW of
all pages at once, and free them. Functions are those of linux-source-6.12 6.12.118-1, linux-source-7.3 7.3.4-1~bpo13+1
and linux-source-6.1 6.1.192-2, if nothing else is said.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hibernaut.memory.ranges import FrameRanges

__all__ = [
    "GUEST_MEMFD",
    "KFENCE",
    "KFENCE_GUARD",
    "SECRETMEM",
    "SET_MEMORY_P",
    "UNKNOWN",
    "VMALLOC",
    "NextAct",
    "OwnedPages",
    "Owner",
]


class NextAct(StrEnum):
    """The way in which an owner makes its entry present again."""

    REWRITES_ENTRY = "rewrites-entry"
    """PRESENT and RW are set (`set_direct_map_default_noflush`): secretmem, debug_pagealloc, freed module text."""
    RESTORES_PRESENT = "restores-present"
    """PRESENT alone is set: KFENCE (`kfence_protect_page`), `set_memory_p` (`clear_mce_nospec`)."""
    RESETS_AREA = "resets-area"
    """PRESENT and RW of all pages are set as the kernel resets a vmalloc area (`set_area_direct_map`), errors ignored;
    then each page is freed."""
    RESTORES_FOLIO = "restores-folio"
    """PRESENT and RW of all pages are set by one request for n pages (`set_direct_map_valid_noflush`), errors ignored;
    then each page is freed."""


@dataclass(frozen=True)
class Owner:
    """The kernel code that took a page out of the direct map.

    Attributes:
        name: its name.
        next_act: how it makes the entry present again.
        writes_in: function that then writes to the page; None if the page is never written to.
    """

    name: str
    next_act: NextAct
    writes_in: str | None


SECRETMEM = Owner("secretmem", NextAct.REWRITES_ENTRY, "secretmem_free_folio")
"""Secret memory (mm/secretmem.c): a page that is freed is put back and cleared."""

KFENCE = Owner("KFENCE", NextAct.RESTORES_PRESENT, "__kfence_alloc")
"""A free object's page in KFENCE's pool (mm/kfence/core.c): it is put back by the next allocation, which writes."""

KFENCE_GUARD = Owner("KFENCE", NextAct.RESTORES_PRESENT, None)
"""A guard page of KFENCE's pool: nothing writes to it, but for the access out of bounds that it is there to report."""

SET_MEMORY_P = Owner("set_memory_p", NextAct.RESTORES_PRESENT, "the code that called set_memory_p")
"""Code that pairs `set_memory_np` with `set_memory_p`, as set_mce_nospec and clear_mce_nospec do
(arch/x86/mm/pat/set_memory.c)."""

VMALLOC = Owner("vmalloc", NextAct.RESETS_AREA, "clear_page, by the next user of a freed page")
"""A vmalloc area with VM_FLUSH_RESET_PERMS that is freed, between the two passes of `vm_reset_perms` (mm/vmalloc.c):
its pages are not present until translations of the area are flushed. A kernel thread that is not frozen, interrupted
there, continues after the copy. What it frees is zeroed by its next user."""

GUEST_MEMFD = Owner("guest_memfd", NextAct.RESTORES_FOLIO, "clear_page, by the next user of a freed page")
"""Memory of a guest without a direct map, proposed in Message-ID 20260410151746.61150-1-kalyazin@amazon.com: a folio is
restored as a whole (`folio_restore_direct_map`), then freed. Folios of 2 MiB are taken to be whole pageblocks."""

UNKNOWN = Owner("unknown", NextAct.RESTORES_PRESENT, "its owner")
"""The owner of an entry that lost PRESENT and kept RW, where nothing else is known: it is taken to rely on that RW."""


@dataclass(frozen=True, eq=False)
class OwnedPages:
    """Pages of one owner on a machine.

    Attributes:
        owner: the owner.
        frames: their page frames.
    """

    owner: Owner
    frames: FrameRanges

    @property
    def needs_rights(self) -> bool:
        """Whether the owner's next write depends on the rights that it left in the entry."""
        return self.owner.next_act == NextAct.RESTORES_PRESENT and self.owner.writes_in is not None

    @property
    def continues(self) -> bool:
        """Whether it makes a difference if the owner acts while the image is written, or once resumed."""
        return self.needs_rights or self.owner.next_act in (NextAct.RESETS_AREA, NextAct.RESTORES_FOLIO)
