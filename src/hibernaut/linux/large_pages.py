# SPDX-License-Identifier: GPL-2.0-or-later
"""Splitting large pages, and collapsing 4K entries to large pages (arch/x86/mm/pat/set_memory.c)."""

from __future__ import annotations

import numpy as np

from hibernaut.linux.calls import split
from hibernaut.linux.machine import Machine
from hibernaut.linux.page_counts import DIRECT_MAP_LEVELS, collapse_page_count, direct_gbpages, split_page_count
from hibernaut.linux.pgtable import (
    GLOBAL,
    KERNPG_TABLE,
    PAGE_KERNEL_4K,
    PRESENT,
    PSE,
    KernelEntry,
    pfn_and_prot,
    pfn_entries,
    pfn_entry,
    pgprot_4k_2_large,
    pgprot_clear_protnone_bits,
    pgprot_large_2_4k,
)
from hibernaut.linux.protections import static_protections
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.paging.entries import FRAME_MASK, Entries, Level, entry_frames
from hibernaut.paging.tables import Step

__all__ = ["cpa_collapse_large_pages", "split_large_page"]

MOST_TABLES = 1 << 10
"""Tables of splits that machines of one memo keep: 4 MiB."""


def split_large_page(machine: Machine, found: KernelEntry, vaddr: int, *, force_static_prot: bool = False) -> None:
    """Replace a large entry, present or not, by a table of 512 smaller ones with the same protection.

    Args:
        machine: machine whose tables change.
        found: the large entry, at PMD or PUD.
        vaddr: an address that it covers.
        force_static_prot: whether to remove from the smaller entries the rights that they must not have.

    Raises:
        OutOfMemory: no page for the table; nothing is changed.
    """
    purpose = f"table for the split of the {found.level.size} entry {found.entry:#x} of {vaddr:#x}"
    table = machine.alloc_table(purpose)
    pfn, prot = pfn_and_prot(found.entry, found.level, machine.encryption)
    if found.level == Level.PMD:
        prot = pgprot_large_2_4k(prot)
    elif not prot & PRESENT:
        prot &= ~PSE
    smaller = Level(found.level - 1)
    prot = pgprot_clear_protnone_bits(prot)
    if force_static_prot:
        entries = pfn_entries(pfn, smaller.pages, prot, machine.encryption)
        _split_set_pte(machine, entries, smaller, vaddr & ~((1 << found.level.shift) - 1))
        machine.write_table(table, entries)
    else:
        _fill(machine, table, pfn, smaller, prot)
    split_page_count(machine, vaddr, found.level)
    named = pfn_entry(table, KERNPG_TABLE | machine.encryption, machine.encryption)
    machine.write_entry(found.paddr, named)
    if machine.calls is not None:
        machine.record(split(found.level, found.paddr, found.entry, named))
    machine.flush_tlb_all()
    machine.log.note(
        f"split: {found.level.name} entry at {found.paddr:#x} was {found.entry:#x}, now names table frame {table:#x}"
    )


def _fill(machine: Machine, table: int, pfn: int, level: Level, prot: int) -> None:
    """Fill a table with entries of a level for frames from `pfn` on; equal tables are one page of the overlays."""
    known = machine.memo.of("tables of splits", MOST_TABLES)
    key = pfn, level, prot, machine.encryption
    page = known.get(key)
    if page is not None:
        machine.replace_page(table, page, table=True)
        return
    machine.write_table(table, pfn_entries(pfn, level.pages, prot, machine.encryption))
    known[key] = machine.memory.version(table)


def _split_set_pte(machine: Machine, entries: Entries, level: Level, first: int) -> None:
    """`split_set_pte` with force_static_prot: set 4K entries right in place; warn of 2M entries, which cannot be."""
    for index, entry in enumerate(entries.tolist()):
        pfn, prot = pfn_and_prot(entry, level, machine.encryption)
        allowed = static_protections(machine, prot, first + (index << level.shift), pfn, level.pages, "protect")
        if allowed == prot:
            continue
        if level == Level.PTE:
            entries[index] = pfn_entry(pfn, allowed, machine.encryption)
        else:
            machine.log.printk_once("CPA: Cannot fixup static protections for PUD split")


def cpa_collapse_large_pages(machine: Machine, start: int, pages: int) -> None:
    """Collapse every 2 MiB block that a request touched, where possible, and free the tables, the last one first."""
    block = Level.PMD.pages * PAGE_SIZE
    tables: list[int] = []
    for vaddr in range(start & ~(block - 1), start + pages * PAGE_SIZE, block):
        _collapse_large_pages(machine, vaddr, tables)
    if not tables:
        return
    machine.flush_tlb_all()
    for table in reversed(tables):
        machine.log.note(f"collapse: table frame {table:#x} is freed")
        machine.allocator.free_page(table, machine.cpu)


def _collapse_large_pages(machine: Machine, vaddr: int, tables: list[int]) -> None:
    """`collapse_large_pages`: replace 512 4K entries by one of 2M, then 512 of those by one of 1G, where possible."""
    steps = machine.tables.walk(vaddr).steps
    if len(steps) < len(DIRECT_MAP_LEVELS) or steps[-1].level != Level.PTE:
        return
    pud, pmd, pte = steps[-3:]
    large = _collapsed(machine, pte)
    if large is None or large[1] & PAGE_KERNEL_4K:
        return
    pfn, prot = large
    _replace_table(
        machine, pmd, pfn_entry(pfn, pgprot_4k_2_large(prot) | PSE, machine.encryption), pte.table_pfn, tables
    )
    collapse_page_count(machine, vaddr, Level.PMD)
    if not direct_gbpages(machine):
        return
    large = _collapsed(machine, pmd)
    if large is None or not large[1] & PSE:
        return
    _replace_table(machine, pud, pfn_entry(*large, machine.encryption), pmd.table_pfn, tables)
    collapse_page_count(machine, vaddr, Level.PUD)


def _collapsed(machine: Machine, step: Step) -> tuple[int, int] | None:
    """Return frame and protection of the larger page that the entries of a step's table form; None if they do not."""
    page = machine.memory.page(step.table_pfn)
    if page is None:
        return None
    entries = page.view("<u8")
    pfn, prot = pfn_and_prot(int(entries[0]), step.level, machine.encryption)
    mapped = PRESENT | GLOBAL if step.level == Level.PTE else PRESENT | GLOBAL | PSE
    wanted = np.arange(len(entries)) * step.level.pages + pfn
    flags = entries[0] ^ entries
    frame = FRAME_MASK & ~machine.encryption
    if step.level > Level.PTE:
        frame &= ~((1 << step.level.shift) - 1)
    fits = (
        pfn % Level(step.level + 1).pages == 0
        and not (flags & np.uint64(~frame & (1 << 64) - 1)).any()
        and bool(((entries[1:] & np.uint64(mapped)) != 0).all())
        and bool((entry_frames(entries, step.level, machine.encryption) == wanted).all())
    )
    return (pfn, prot) if fits else None


def _replace_table(machine: Machine, step: Step, entry: int, table: int, tables: list[int]) -> None:
    machine.write_entry(step.paddr, entry)
    tables.append(table)
    machine.log.note(
        f"collapse: {step.level.name} entry at {step.paddr:#x} was {step.entry:#x}, now maps {step.level.size}"
    )
