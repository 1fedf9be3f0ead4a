"""Changing page attributes in the direct map, splitting large pages where needed (arch/x86/mm/pat/set_memory.c).

The functions bear the kernel's names and do what Linux 6.1 does, as far as presence and rights of direct-map pages go.
Left out: other mappings of the same frame (`cpa_process_alias`: a simulated machine has none, and set_direct_map_*
never touches them), rights that the kernel forces on its own text and the PCI BIOS (`static_protections`), caching.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.errors import HibernautError
from hibernaut.linux.pgtable import (
    GLOBAL,
    KERNPG_TABLE,
    PRESENT,
    PSE,
    RW,
    KernelEntry,
    is_none,
    large_2_4k,
    large_4k_2,
    pfn_and_prot,
    pfn_entries,
    pfn_entry,
)
from hibernaut.memory.physical import PAGE_SHIFT, PAGE_SIZE
from hibernaut.paging.entries import FRAME_MASK, Entries, Level

if TYPE_CHECKING:
    from hibernaut.linux.machine import Machine
    from hibernaut.linux.rules import KernelRules

__all__ = [
    "AttributeChangeError",
    "change_page_attr_set_clr",
    "kernel_page_present",
    "remapped_entries",
    "set_direct_map_default",
    "set_direct_map_invalid",
    "set_memory_np",
    "set_memory_p",
    "set_memory_ro",
    "set_memory_rw",
    "split_large_page",
]

FLUSH_CEILING_PAGES = 33
"""tlb_single_page_flush_ceiling: a larger change flushes the whole TLB (arch/x86/mm/tlb.c)."""


class AttributeChangeError(HibernautError):
    """A request that the kernel refuses with something else than -ENOMEM.

    Attributes:
        vaddr: the address at which it stopped.
        errno: the kernel's name of the error.
    """

    def __init__(self, what: str, *, vaddr: int, errno: str) -> None:
        self.what = what
        self.vaddr = vaddr
        self.errno = errno
        super().__init__(what)

    def __str__(self) -> str:
        return f"{self.what}: address {self.vaddr:#x} (-{self.errno})"


@dataclass
class _Request:
    """`struct cpa_data`: what is to be done and how far this step reaches."""

    mask_set: int
    mask_clr: int
    pages: int
    changed: bool = False


def set_direct_map_invalid(machine: Machine, pfn: int) -> None:
    """`set_direct_map_invalid_noflush`: one page not present and not writable. The TLB is the caller's business.

    Raises:
        OutOfMemory: it lies in a large page and there was no page for the split.
        AttributeChangeError: see `change_page_attr_set_clr`.
        TableNotInSource: a table on the way is not in the memory.
    """
    _change_page_attr_set_clr(machine, machine.vaddr(pfn), _Request(0, PRESENT | RW, 1))


def set_direct_map_default(machine: Machine, pfn: int) -> None:
    """`set_direct_map_default_noflush`: one page present and writable. GLOBAL, once lost, does not come back.

    Raises:
        OutOfMemory, AttributeChangeError, TableNotInSource: as `set_direct_map_invalid`.
    """
    _change_page_attr_set_clr(machine, machine.vaddr(pfn), _Request(PRESENT | RW, 0, 1))


def set_memory_np(machine: Machine, vaddr: int, pages: int) -> None:
    """Pages not present; a large page that is covered as a whole stays one entry. Flushes. Raises as below."""
    change_page_attr_set_clr(machine, vaddr, pages, clear=PRESENT)


def set_memory_p(machine: Machine, vaddr: int, pages: int) -> None:
    """Pages present. Flushes. Raises as `change_page_attr_set_clr`."""
    change_page_attr_set_clr(machine, vaddr, pages, set_=PRESENT)


def set_memory_ro(machine: Machine, vaddr: int, pages: int) -> None:
    """Pages not writable. Flushes. Raises as `change_page_attr_set_clr`."""
    change_page_attr_set_clr(machine, vaddr, pages, clear=RW)


def set_memory_rw(machine: Machine, vaddr: int, pages: int) -> None:
    """Pages writable. Flushes. Raises as `change_page_attr_set_clr`."""
    change_page_attr_set_clr(machine, vaddr, pages, set_=RW)


def change_page_attr_set_clr(machine: Machine, vaddr: int, pages: int, *, set_: int = 0, clear: int = 0) -> None:
    """Set and clear bits (as a 4K entry has them) on `pages` pages from `vaddr` on, then flush what changed.

    Raises:
        OutOfMemory: a split found no page: steps before it are done and stay done, this one and those after are not.
        AttributeChangeError: no entry outside the direct map (EFAULT), or a leaf above 1G (EINVAL).
        TableNotInSource: a table on the way is not in the memory.
    """
    start = vaddr & ~(PAGE_SIZE - 1)
    request = _Request(int(set_), int(clear), pages)
    try:
        _change_page_attr_set_clr(machine, start, request)
    except HibernautError:
        if request.changed:
            machine.tlb.flush_all()
        raise
    if not request.changed:
        return
    if pages > FLUSH_CEILING_PAGES:
        machine.tlb.flush_all()
    else:
        for page in range(pages):
            machine.tlb.invlpg(start + page * PAGE_SIZE)


def _change_page_attr_set_clr(machine: Machine, vaddr: int, request: _Request) -> None:
    """`__change_page_attr_set_clr`: step by step; a step is one 4K entry, or as much as lies in one large page."""
    left = request.pages
    while left:
        request.pages = left
        _change_page_attr(machine, vaddr, request)
        left -= request.pages
        vaddr += request.pages * PAGE_SIZE


def _change_page_attr(machine: Machine, vaddr: int, request: _Request) -> None:
    """`__change_page_attr`: one step, started over after every split."""
    while True:
        found = machine.lookup_address(vaddr)
        if found is None or is_none(found.entry):
            _process_fault(machine, vaddr, request)
            return
        if found.level == Level.PTE:
            _change_4k(machine, found, request)
            return
        if not _should_split_large_page(machine, found, vaddr, request):
            return
        split_large_page(machine, found, vaddr)


def _process_fault(machine: Machine, vaddr: int, request: _Request) -> None:
    """`__cpa_process_fault`: no entry. Within the direct map that is expected, and counts as one page done."""
    if not machine.base <= vaddr < machine.vaddr(machine.end_pfn):
        raise AttributeChangeError("CPA: called for zero pte outside the direct map", vaddr=vaddr, errno="EFAULT")
    machine.log.note(f"change_page_attr: no entry for {vaddr:#x}, ignored: success")
    request.pages = 1


def _change_4k(machine: Machine, found: KernelEntry, request: _Request) -> None:
    pfn, prot = pfn_and_prot(found.entry, Level.PTE)
    new = pfn_entry(pfn, _not_protnone((prot & ~request.mask_clr) | request.mask_set))
    if new != found.entry:
        machine.write_entry(found.paddr, new)
        request.changed = True
    request.pages = 1


def _should_split_large_page(machine: Machine, found: KernelEntry, vaddr: int, request: _Request) -> bool:
    """`__should_split_large_page`: False if the large entry is as asked, or was changed itself as it is covered whole.

    Cuts the request down to what lies in this large page, also where the answer is to split.
    """
    if found.level > Level.PUD:
        raise AttributeChangeError("CPA: no large pages of that size", vaddr=vaddr, errno="EINVAL")
    pfn, prot = pfn_and_prot(found.entry, found.level)
    within = (vaddr >> PAGE_SHIFT) & (found.level.pages - 1)
    request.pages = min(request.pages, found.level.pages - within)
    wanted = _not_protnone(large_4k_2((large_2_4k(prot) & ~request.mask_clr) | request.mask_set))
    if wanted & PRESENT:
        wanted |= PSE
    if wanted == prot:
        return False
    if within or request.pages != found.level.pages:
        return True
    machine.write_entry(found.paddr, pfn_entry(pfn, wanted))
    request.changed = True
    return False


def split_large_page(machine: Machine, found: KernelEntry, vaddr: int) -> None:
    """Replace a large entry, present or not, by a table of 512 smaller ones with the same protection.

    Args:
        machine: whose tables.
        found: the large entry, at PMD or PUD.
        vaddr: an address in it, for the log.

    Raises:
        OutOfMemory: no page for the table; nothing is changed.
    """
    purpose = f"table for the split of the {found.level.size} entry {found.entry:#x} of {vaddr:#x}"
    table = machine.alloc_table(purpose)
    pfn, prot = pfn_and_prot(found.entry, found.level)
    if found.level == Level.PMD:
        prot = large_2_4k(prot)
    elif not prot & PRESENT:
        prot &= ~PSE
    smaller = Level(found.level - 1)
    machine.write_table(table, pfn_entries(pfn, smaller.pages, _not_protnone(prot)))
    machine.write_entry(found.paddr, pfn_entry(table, KERNPG_TABLE))
    machine.tlb.flush_all()
    machine.log.note(
        f"split: {found.level.name} entry at {found.paddr:#x} was {found.entry:#x}, now names table frame {table:#x}"
    )


def _not_protnone(prot: int) -> int:
    """`pgprot_clear_protnone_bits`: GLOBAL of an entry that is not present would be read as PROTNONE."""
    return prot if prot & PRESENT else prot & ~GLOBAL


def kernel_page_present(machine: Machine, pfn: int) -> bool:
    """Whether the direct-map entry of a frame has PRESENT, asked as the kernel asks: without a NULL check.

    A 2M or 1G entry that is not present is such an entry, and answers False; so does a zero entry at PTE level.

    Raises:
        MachineFault: no table at PTE level and no large entry either: `lookup_address` returned NULL, and it is read.
        TableNotInSource: a table on the way is not in the memory.
    """
    found = machine.lookup_address(machine.vaddr(pfn))
    if found is None:
        raise machine.page_fault_oops(
            0, doing=f"reading the NULL entry that lookup_address returned for frame {pfn:#x}", pfn=pfn, table=False
        )
    return found.present


def remapped_entries(entries: Entries, rules: KernelRules) -> Entries:
    """What not-present 4K entries become after set_direct_map_default and set_direct_map_invalid, one page each.

    Args:
        entries: uint64, shape (n,), none of them zero.
        rules: whose set_direct_map_invalid.

    Returns:
        uint64, shape (n,).
    """
    frame = ~entries & np.uint64(FRAME_MASK)
    prot = (entries & np.uint64(~FRAME_MASK & (1 << 64) - 1)) | np.uint64(PRESENT | RW)
    prot &= np.uint64(~(rules.invalid_clears | GLOBAL) & (1 << 64) - 1)
    return (~frame & np.uint64(FRAME_MASK)) | prot
