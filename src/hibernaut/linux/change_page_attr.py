# SPDX-License-Identifier: GPL-2.0-or-later
"""Changing page attributes: `change_page_attr_set_clr` and its callees (arch/x86/mm/pat/set_memory.c).

Functions bear the kernel's names, without leading underscores, and follow the machine's rules as far as presence and
rights go. A change of the direct map also reaches the second mapping of the kernel's own image and vice versa, if
`Machine.kernel_image` names it; a change of any other address (a module's, for example) reaches the direct map. Left
out are caching attributes, requests as lists of pages, and the stack traces of warnings.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hibernaut.errors import HibernautError, OutOfMemory
from hibernaut.linux.large_pages import cpa_collapse_large_pages, split_large_page
from hibernaut.linux.machine import Machine
from hibernaut.linux.pgtable import (
    NX,
    PRESENT,
    PSE,
    RW,
    KernelEntry,
    is_none,
    pfn_and_prot,
    pfn_entry,
    pgprot_4k_2_large,
    pgprot_clear_protnone_bits,
    pgprot_large_2_4k,
)
from hibernaut.linux.protections import static_protections, verify_rwx
from hibernaut.memory.page import PAGE_SHIFT, PAGE_SIZE
from hibernaut.paging.entries import Level

__all__ = ["AttributeChangeError", "change_page_attr_set_clr", "set_pages_np", "set_pages_p"]


class AttributeChangeError(HibernautError):
    """A request that the kernel refuses with an error other than -ENOMEM.

    Attributes:
        what: the kernel's reason, a clause.
        vaddr: address at which the request stopped.
        errno: the kernel's name of the error.
    """

    def __init__(self, what: str, *, vaddr: int, errno: str) -> None:
        self.what = what
        self.vaddr = vaddr
        self.errno = errno
        super().__init__(what)

    def __str__(self) -> str:
        return f"{self.what}: address {self.vaddr:#x} (-{self.errno})"


@dataclass(slots=True)
class _CpaData:
    """`struct cpa_data`: the request, the extent of the current step, and its result.

    Attributes:
        vaddr: first address.
        pages: number of pages; within a step, how many of those left it covers.
        mask_set: bits to set, as a 4K entry has them.
        mask_clr: bits to clear.
        check_alias: whether other mappings of the same frames change too (no CPA_NO_CHECK_ALIAS).
        force_split: whether no large page may stay.
        force_static_prot: whether a large page has rights that it must not have, so that its split removes them.
        force_flush_all: whether other mappings changed, so that the whole TLBs are flushed.
        root: root of the tables to change (`pgd`); None for the machine's own.
        pfn: frame of the step.
        changed: whether an entry was written (CPA_FLUSHTLB).
    """

    vaddr: int
    pages: int
    mask_set: int = 0
    mask_clr: int = 0
    check_alias: bool = True
    force_split: bool = False
    force_static_prot: bool = False
    force_flush_all: bool = False
    root: int | None = None
    pfn: int = 0
    changed: bool = False


def change_page_attr_set_clr(
    machine: Machine,
    vaddr: int,
    pages: int,
    *,
    set_: int = 0,
    clear: int = 0,
    check_alias: bool = True,
    force_split: bool = False,
    collapse: bool = False,
) -> None:
    """Set and clear bits (as a 4K entry has them) on `pages` pages from `vaddr` on, then flush what changed.

    Args:
        machine: machine whose tables change.
        vaddr: address of the first page; bits below the page are dropped.
        pages: number of pages.
        set_: bits to set.
        clear: bits to clear.
        check_alias: whether other mappings of the same frames change too.
        force_split: whether no large page may stay.
        collapse: whether to collapse 4K entries to large ones afterwards, if anything changed.

    Raises:
        OutOfMemory: a split found no page. Steps before it are done and stay done; this one and later ones are not.
        AttributeChangeError: no entry outside the direct map (EFAULT), or a leaf above 1G (EINVAL).
        TableNotInSource: a table on the way is not in the memory.
    """
    start = vaddr & ~(PAGE_SIZE - 1)
    cpa = _CpaData(start, pages, int(set_), int(clear), check_alias, force_split)
    try:
        _start(machine, cpa)
    except HibernautError:
        if cpa.changed:
            machine.flush_tlb_all()
        raise
    if not cpa.changed:
        return
    if cpa.force_flush_all:
        machine.flush_tlb_all()
    else:
        machine.flush_tlb_kernel_range(start, start + pages * PAGE_SIZE)
    if collapse:
        cpa_collapse_large_pages(machine, start, pages)


def set_pages_p(machine: Machine, pfn: int, pages: int) -> None:
    """`__set_pages_p`: make pages of the direct map present and writable; nothing is flushed."""
    _start(machine, _CpaData(machine.vaddr(pfn), pages, mask_set=PRESENT | RW, check_alias=False))


def set_pages_np(machine: Machine, pfn: int, pages: int) -> None:
    """`__set_pages_np`: make pages of the direct map not present and read-only; nothing is flushed."""
    clear = machine.rules.invalid_clears
    _start(machine, _CpaData(machine.vaddr(pfn), pages, mask_clr=clear, check_alias=False))


def _start(machine: Machine, cpa: _CpaData) -> None:
    """Run a request on the mapping that it names.

    Before `KernelRules.noalias_is_primary` a request that checks no aliases counts as one for an alias itself, and
    before `KernelRules.alias_keeps_nx` a request that changes NX alone checks none.
    """
    rules = machine.rules
    checks = cpa.check_alias and (rules.alias_keeps_nx or cpa.mask_set | cpa.mask_clr != NX)
    primary = rules.noalias_is_primary or checks
    _change_page_attr_set_clr(machine, cpa, primary=primary)


def _change_page_attr_set_clr(machine: Machine, cpa: _CpaData, *, primary: bool) -> None:
    """`__change_page_attr_set_clr`: run a request step by step: one 4K entry, or the part within one large page."""
    if not (cpa.mask_set | cpa.mask_clr or cpa.force_split):
        return
    left, vaddr = cpa.pages, cpa.vaddr
    while left:
        cpa.pages = left
        _change_page_attr(machine, vaddr, cpa, primary=primary)
        if machine.second_cr3 is not None:
            _mirror_direct_map(machine, vaddr, cpa, primary=primary)
        if primary and cpa.check_alias:
            _cpa_process_alias(machine, vaddr, cpa)
        left -= cpa.pages
        vaddr += cpa.pages * PAGE_SIZE


def _mirror_direct_map(machine: Machine, vaddr: int, cpa: _CpaData, *, primary: bool) -> None:
    """Repeat a step of the direct map in the second set of tables, with splits of its own; see `second_root`."""
    if cpa.root is not None or not _in_direct_map(machine, vaddr):
        return
    left = cpa.pages
    while left:
        step = replace(cpa, root=machine.second_cr3, pages=left, changed=False)
        _change_page_attr(machine, vaddr, step, primary=primary)
        cpa.changed |= step.changed
        left -= step.pages
        vaddr += step.pages * PAGE_SIZE


def _change_page_attr(machine: Machine, vaddr: int, cpa: _CpaData, *, primary: bool) -> None:
    """`__change_page_attr`: run one step, again after every split."""
    while True:
        found = machine.lookup_address(vaddr, cpa.root)
        if found is None or is_none(found.entry):
            _cpa_process_fault(machine, vaddr, cpa, primary=primary)
            return
        if found.level == Level.PTE:
            _change_4k(machine, found, vaddr, cpa)
            return
        if not cpa.force_split and not _should_split_large_page(machine, found, vaddr, cpa):
            return
        split_large_page(machine, found, vaddr, force_static_prot=cpa.force_static_prot)


def _cpa_process_fault(machine: Machine, vaddr: int, cpa: _CpaData, *, primary: bool) -> None:
    """`__cpa_process_fault`: handle a missing entry, which in the direct map counts as one page done."""
    if _in_direct_map(machine, vaddr):
        machine.log.note(f"change_page_attr: no entry for {vaddr:#x}, ignored: success")
        if primary:
            cpa.pfn = (vaddr - machine.base) >> PAGE_SHIFT
    elif primary:
        image = machine.kernel_image
        if image is None or not image.start_pfn <= cpa.pfn < image.end_pfn:
            machine.log.printk(f"CPA: called for zero pte. vaddr = {vaddr:x} cpa->vaddr = {cpa.vaddr:x}")
        raise AttributeChangeError("CPA: called for zero pte outside the direct map", vaddr=vaddr, errno="EFAULT")
    cpa.pages = 1


def _change_4k(machine: Machine, found: KernelEntry, vaddr: int, cpa: _CpaData) -> None:
    """Change one 4K entry."""
    pfn, prot = pfn_and_prot(found.entry, Level.PTE, machine.encryption)
    wanted = (prot & ~cpa.mask_clr) | cpa.mask_set
    wanted = static_protections(machine, wanted, vaddr, pfn, 1, "protect")
    verify_rwx(machine, found, prot, wanted, vaddr, pfn)
    new = pfn_entry(pfn, pgprot_clear_protnone_bits(wanted), machine.encryption)
    cpa.pfn = pfn
    if new != found.entry:
        machine.write_entry(found.paddr, new)
        cpa.changed = True
    cpa.pages = 1


def _should_split_large_page(machine: Machine, found: KernelEntry, vaddr: int, cpa: _CpaData) -> bool:
    """`__should_split_large_page`: return False if the large entry needs no change, or could be changed as a whole.

    Either way the step is cut down to the part within this large page.
    """
    if found.level > Level.PUD:
        raise AttributeChangeError("CPA: no large pages of that size", vaddr=vaddr, errno="EINVAL")
    size = found.level.pages
    pfn, prot = pfn_and_prot(found.entry, found.level, machine.encryption)
    within = (vaddr >> PAGE_SHIFT) & (size - 1)
    first = vaddr - within * PAGE_SIZE
    cpa.pages = min(cpa.pages, size - within)
    wanted = pgprot_4k_2_large((pgprot_large_2_4k(prot) & ~cpa.mask_clr) | cpa.mask_set)
    wanted = pgprot_clear_protnone_bits(wanted)
    if wanted & PRESENT:
        wanted |= PSE
    cpa.pfn = pfn + within
    if static_protections(machine, prot, first, pfn, size, "conflict") != prot:
        cpa.force_static_prot = True
        return True
    if wanted == prot:
        return False
    if within or cpa.pages != size:
        return True
    allowed = static_protections(machine, wanted, first, pfn, size, None)
    verify_rwx(machine, found, prot, allowed, first, pfn)
    if allowed != wanted:
        return True
    machine.write_entry(found.paddr, pfn_entry(pfn, wanted, machine.encryption))
    cpa.changed = True
    return False


def _cpa_process_alias(machine: Machine, vaddr: int, cpa: _CpaData) -> None:
    """`cpa_process_alias`: repeat the step for the other mappings of its frames.

    These are the direct map, unless the step was there, and the kernel image's mapping, if the frame belongs to it and
    the step was elsewhere. An error in the image's mapping is ignored, since its range is imprecise. Changes of an
    alias do not make the request count as changed.
    """
    if not 0 <= cpa.pfn < machine.end_pfn:
        return
    if not _in_direct_map(machine, vaddr):
        cpa.force_flush_all = True
        _change_page_attr_set_clr(machine, _alias(machine, cpa, machine.vaddr(cpa.pfn)), primary=False)
    image = machine.kernel_image
    if image is None or not image.start_pfn <= cpa.pfn < image.end_pfn:
        return
    if image.vaddr <= vaddr < image.vaddr + (image.end_pfn - image.start_pfn << PAGE_SHIFT):
        return
    cpa.force_flush_all = True
    highmap = image.vaddr + (cpa.pfn - image.start_pfn << PAGE_SHIFT)
    try:
        _change_page_attr_set_clr(machine, _alias(machine, cpa, highmap), primary=False)
    except (OutOfMemory, AttributeChangeError) as error:
        machine.log.note(f"change_page_attr: the kernel image's mapping of {vaddr:#x} is not changed, ignored: {error}")


def _alias(machine: Machine, cpa: _CpaData, vaddr: int) -> _CpaData:
    """Return the request for another mapping, NX left out by `KernelRules.alias_keeps_nx`."""
    mask = ~NX if machine.rules.alias_keeps_nx else ~0
    return replace(cpa, vaddr=vaddr, mask_set=cpa.mask_set & mask, mask_clr=cpa.mask_clr & mask)


def _in_direct_map(machine: Machine, vaddr: int) -> bool:
    return 0 <= vaddr - machine.base < machine.end_pfn << PAGE_SHIFT
