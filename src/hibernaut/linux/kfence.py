# SPDX-License-Identifier: GPL-2.0-or-later
"""KFENCE's pool: its pages, their entries, and the next allocation from it (mm/kfence/core.c, asm/kfence.h on x86).

The pool of Debian's kernels is one block of 2 MiB: two guard pages, then 255 times an object's page and a guard page
(`kfence_init_pool`, CONFIG_KFENCE_NUM_OBJECTS). All of it has 4K entries (`arch_kfence_init_pool`). A guard page is not
present from the start. An object's page is present until the object is freed for the first time, and not present while
it is free again (`kfence_guarded_free`). A pool made at boot (kfence.sample_interval) lies in reserved memory; one that
is switched on at run time is ordinary memory (`kfence_init_late`).
"""

from __future__ import annotations

from collections.abc import Collection

from hibernaut.errors import HibernautError
from hibernaut.linux.layout import HoleKind, HoleSpec
from hibernaut.linux.machine import Machine
from hibernaut.linux.owners import KFENCE, KFENCE_GUARD
from hibernaut.linux.pgtable import PRESENT, is_none
from hibernaut.linux.set_memory import set_memory_4k
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.paging.entries import FRAME_MASK, Level

__all__ = [
    "KFENCE_NUM_OBJECTS",
    "KFENCE_POOL_PAGES",
    "arch_kfence_init_pool",
    "kfence_object_pfn",
    "kfence_pool",
    "kfence_protect_page",
]

KFENCE_NUM_OBJECTS = 255
"""CONFIG_KFENCE_NUM_OBJECTS: the default, and Debian's."""
KFENCE_POOL_PAGES = (KFENCE_NUM_OBJECTS + 1) * 2
"""KFENCE_POOL_SIZE in pages (include/linux/kfence.h): 512, which is 2 MiB."""


def kfence_object_pfn(start_pfn: int, number: int) -> int:
    """Return the page frame number of an object's page (`metadata_to_pageaddr`).

    Args:
        start_pfn: first frame of the pool.
        number: number of the object, from 0.
    """
    return start_pfn + (number + 1) * 2


def kfence_pool(start_pfn: int, freed: Collection[int] = (0,)) -> tuple[HoleSpec, ...]:
    """Return the holes of a pool: every guard page, and the page of each object that was used and freed.

    Args:
        start_pfn: first frame of the pool, a multiple of 512.
        freed: numbers of the objects that are free again; all others are in use, or have never been used.

    Raises:
        HibernautError: an object that the pool does not have, or a pool that is not one block of 2 MiB.
    """
    if start_pfn % KFENCE_POOL_PAGES:
        raise HibernautError(f"KFENCE's pool begins at a multiple of 2 MiB, not at frame {start_pfn:#x}")
    wrong = [number for number in freed if not 0 <= number < KFENCE_NUM_OBJECTS]
    if wrong:
        raise HibernautError(f"KFENCE's pool has no object {wrong[0]}; expected 0-{KFENCE_NUM_OBJECTS - 1}")
    guards = [start_pfn, *range(start_pfn + 1, start_pfn + KFENCE_POOL_PAGES, 2)]
    holes = [HoleSpec(pfn, 1, HoleKind.PROTECTED, KFENCE_GUARD) for pfn in guards]
    free = [kfence_object_pfn(start_pfn, number) for number in sorted(set(freed))]
    holes += [HoleSpec(pfn, 1, HoleKind.PROTECTED, KFENCE) for pfn in free]
    return tuple(sorted(holes, key=lambda hole: hole.start_pfn))


def arch_kfence_init_pool(machine: Machine, pfn: int) -> None:
    """Give a page of the pool a 4K entry, if it has none; the split gives one to each page of its large page.

    Raises:
        OutOfMemory: a split found no page.
        HibernautError: the page has no entry.
    """
    found = machine.lookup_address(machine.vaddr(pfn))
    if found is None or is_none(found.entry):
        raise HibernautError(f"frame {pfn:#x} of KFENCE's pool has no entry")
    if found.level != Level.PTE:
        set_memory_4k(machine, machine.vaddr(pfn), 1)


def kfence_protect_page(machine: Machine, pfn: int, *, protect: bool) -> None:
    """Flip PRESENT in the 4K entry of a page, and no other flag; flush the page on this CPU if it goes away.

    With `KernelRules.kfence_inverts` a not-present entry has its frame inverted, else as it is.

    Raises:
        HibernautError: the page has no 4K entry, of which the kernel warns.
        TableNotInSource: a table on the way is not in the memory.
    """
    vaddr = machine.vaddr(pfn)
    found = machine.lookup_address(vaddr)
    if found is None or found.level != Level.PTE:
        raise HibernautError(f"frame {pfn:#x} of KFENCE's pool has no 4K entry")
    if found.present is not protect:
        return
    entry = found.entry ^ PRESENT
    if machine.rules.kfence_inverts:
        entry ^= FRAME_MASK & ~machine.encryption
    machine.write_entry(found.paddr, entry)
    if protect:
        machine.tlb.invlpg(vaddr & ~(PAGE_SIZE - 1))
