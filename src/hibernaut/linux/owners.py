# SPDX-License-Identifier: GPL-2.0-or-later
"""Owners of pages that are out of the direct map: the kernel code that took them out, and its next act on them.

An owner makes the entry of its page present again and writes to the page. Two kinds differ in what they expect of the
entry in the meantime. One sets PRESENT and RW, whatever the entry holds. The other cleared PRESENT alone and restores
PRESENT alone, so that its write needs the RW that it left in the entry. Functions are those of linux-source-6.12
6.12.118-1, linux-source-7.3 7.3.4-1~bpo13+1 and linux-source-6.1 6.1.192-2.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hibernaut.memory.ranges import FrameRanges

__all__ = ["KFENCE", "KFENCE_GUARD", "SECRETMEM", "SET_MEMORY_P", "UNKNOWN", "NextAct", "OwnedPages", "Owner"]


class NextAct(StrEnum):
    """The way in which an owner makes its entry present again."""

    REWRITES_ENTRY = "rewrites-entry"
    """PRESENT and RW are set (`set_direct_map_default_noflush`): secretmem, debug_pagealloc, freed module text."""
    RESTORES_PRESENT = "restores-present"
    """PRESENT alone is set: KFENCE (`kfence_protect_page`), `set_memory_p` (`clear_mce_nospec`)."""


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
