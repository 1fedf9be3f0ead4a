# SPDX-License-Identifier: GPL-2.0-or-later
"""Changing page attributes, splitting large pages where needed (arch/x86/mm/pat/set_memory.c).

The functions bear the kernel's names and do what the machine's rules say, as far as presence and rights go: a change of
the direct map also reaches the second mapping of the kernel's own image and the other way round, if the machine's
`kernel_image` says where that is, and a change of any other address (a module's, say) reaches the direct map.
Left out: caching attributes; requests as lists of pages; of the rights that the kernel forces (`static_protections`)
those of its text in the second mapping, while its read-only data is kept read-only where `kernel_image` names it (the
PCI BIOS is forced on 32-bit kernels only: CONFIG_PCI_BIOS depends on X86_32); the stack traces of warnings.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.errors import FormatError, HibernautError, OutOfMemory
from hibernaut.linux.direct_map import START_KERNEL_MAP
from hibernaut.linux.pgtable import (
    GLOBAL,
    KERNPG_TABLE,
    NX,
    PRESENT,
    PSE,
    RW,
    KernelEntry,
    is_none,
    pfn_and_prot,
    pfn_entries,
    pfn_entry,
    pgprot_4k_2_large,
    pgprot_large_2_4k,
)
from hibernaut.memory.physical import PAGE_SHIFT, PAGE_SIZE
from hibernaut.paging.entries import FRAME_MASK, Entries, Entry, Level, entry_frames
from hibernaut.paging.spans import Stop

if TYPE_CHECKING:
    from hibernaut.linux.machine import Machine
    from hibernaut.linux.rules import KernelRules
    from hibernaut.paging.tables import Step

__all__ = [
    "PAGE_KERNEL_4K",
    "AttributeChangeError",
    "change_page_attr_set_clr",
    "direct_pages_count",
    "kernel_page_present",
    "remapped_entries",
    "set_direct_map_default_noflush",
    "set_direct_map_invalid_noflush",
    "set_direct_map_valid_noflush",
    "set_memory_4k",
    "set_memory_np",
    "set_memory_np_noalias",
    "set_memory_nx",
    "set_memory_p",
    "set_memory_ro",
    "set_memory_rox",
    "set_memory_rw",
    "set_memory_x",
    "split_large_page",
]

PAGE_KERNEL_4K = int(Entry.SOFTW3)
"""_PAGE_KERNEL_4K: an entry that set_memory_4k made small on purpose, not to be collapsed.

See `KernelRules.collapses_large_pages`."""

KERNEL_IMAGE_SIZE = 1 << 30
"""What the second mapping of the kernel's image may span, with KASLR (arch/x86/include/asm/page_64_types.h)."""

_WX_WARNING = "CPA detected W^X violation"
_DIRECT_LEVELS = (Level.PTE, Level.PMD, Level.PUD)


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


@dataclass(slots=True)
class _Request:
    """`struct cpa_data`: what is to be done, how far this step reaches, and what has come of it.

    Attributes:
        vaddr: the first address.
        pages: how many; while a step runs, how many of what is left it deals with.
        mask_set: bits to set, as a 4K entry has them.
        mask_clr: bits to clear.
        check_alias: whether other mappings of the same frames are changed too (no CPA_NO_CHECK_ALIAS).
        force_split: no large page stays.
        force_static_prot: a large page had rights that it must not have: the split takes them away.
        force_flush_all: other mappings were changed: all that the TLBs remember goes.
        pfn: the frame of the step.
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
    pfn: int = 0
    changed: bool = False


def set_direct_map_invalid_noflush(machine: Machine, pfn: int) -> None:
    """Make one page not present and not writable; the TLB is left to the caller.

    Raises:
        OutOfMemory: it lies in a large page and there was no page for the split.
        AttributeChangeError: see `change_page_attr_set_clr`.
        TableNotInSource: a table on the way is not in the memory.
    """
    _set_pages_np(machine, pfn, 1)


def set_direct_map_default_noflush(machine: Machine, pfn: int) -> None:
    """Make one page present and writable; GLOBAL, once lost, does not come back.

    Raises:
        OutOfMemory, AttributeChangeError, TableNotInSource: as `set_direct_map_invalid_noflush`.
    """
    _set_pages_p(machine, pfn, 1)


def set_direct_map_valid_noflush(machine: Machine, pfn: int, pages: int, *, valid: bool) -> None:
    """Make many pages present and writable (default), or neither (invalid).

    Where the kernel has the function, this is one request: a large page that is covered whole stays one entry. Older
    kernels go page by page, and split everything that they touch.

    Raises:
        OutOfMemory, AttributeChangeError, TableNotInSource: as `set_direct_map_invalid_noflush`; steps done stay done.
    """
    change = _set_pages_p if valid else _set_pages_np
    if machine.rules.has_set_direct_map_valid_noflush:
        change(machine, pfn, pages)
        return
    for each in range(pfn, pfn + pages):
        change(machine, each, 1)


def _set_pages_p(machine: Machine, pfn: int, pages: int) -> None:
    _start(machine, _Request(machine.vaddr(pfn), pages, mask_set=PRESENT | RW, check_alias=False))


def _set_pages_np(machine: Machine, pfn: int, pages: int) -> None:
    clear = machine.rules.invalid_clears
    _start(machine, _Request(machine.vaddr(pfn), pages, mask_clr=clear, check_alias=False))


def set_memory_np(machine: Machine, vaddr: int, pages: int) -> None:
    """Pages not present; a large page that is covered as a whole stays one entry. Flushes. Raises as below."""
    change_page_attr_set_clr(machine, vaddr, pages, clear=PRESENT)


def set_memory_np_noalias(machine: Machine, vaddr: int, pages: int) -> None:
    """`set_memory_np` that leaves other mappings of the frames alone. Raises as `change_page_attr_set_clr`."""
    change_page_attr_set_clr(machine, vaddr, pages, clear=PRESENT, check_alias=False)


def set_memory_p(machine: Machine, vaddr: int, pages: int) -> None:
    """Pages present. Flushes. Raises as `change_page_attr_set_clr`."""
    change_page_attr_set_clr(machine, vaddr, pages, set_=PRESENT)


def set_memory_ro(machine: Machine, vaddr: int, pages: int) -> None:
    """Pages not writable. Flushes. Raises as `change_page_attr_set_clr`."""
    change_page_attr_set_clr(machine, vaddr, pages, clear=machine.rules.ro_clears)


def set_memory_rw(machine: Machine, vaddr: int, pages: int) -> None:
    """Pages writable. Flushes. Raises as `change_page_attr_set_clr`."""
    change_page_attr_set_clr(machine, vaddr, pages, set_=RW)


def set_memory_x(machine: Machine, vaddr: int, pages: int) -> None:
    """Pages executable, in this mapping alone. Flushes. Raises as `change_page_attr_set_clr`."""
    change_page_attr_set_clr(machine, vaddr, pages, clear=NX)


def set_memory_nx(machine: Machine, vaddr: int, pages: int) -> None:
    """Pages not executable, in this mapping alone. Flushes. Raises as `change_page_attr_set_clr`."""
    change_page_attr_set_clr(machine, vaddr, pages, set_=NX)


def set_memory_rox(machine: Machine, vaddr: int, pages: int) -> None:
    """Pages not writable and executable; where the kernel does that, small entries become large ones again. Flushes.

    Raises:
        HibernautError: the machine's kernel has no such function.
        OutOfMemory, AttributeChangeError, TableNotInSource: as `change_page_attr_set_clr`.
    """
    rules = machine.rules
    if not rules.has_set_memory_rox:
        raise HibernautError(f"a kernel by the rules of {rules.line} has no set_memory_rox; rules of 6.6 and later do")
    change_page_attr_set_clr(machine, vaddr, pages, clear=rules.ro_clears | NX, collapse=rules.collapses_large_pages)


def set_memory_4k(machine: Machine, vaddr: int, pages: int) -> None:
    """Pages mapped by 4K entries, marked `PAGE_KERNEL_4K` where large ones could be made of them again. Flushes.

    Raises:
        OutOfMemory, AttributeChangeError, TableNotInSource: as `change_page_attr_set_clr`.
    """
    mark = PAGE_KERNEL_4K if machine.rules.collapses_large_pages else 0
    change_page_attr_set_clr(machine, vaddr, pages, set_=mark, force_split=True)


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
        machine: whose tables.
        vaddr: the first page's address; what lies below a page is dropped.
        pages: how many.
        set_: bits to set.
        clear: bits to clear.
        check_alias: whether other mappings of the same frames follow.
        force_split: no large page stays.
        collapse: whether to look for 4K entries that can be a large one afterwards, if anything changed.

    Raises:
        OutOfMemory: a split found no page: steps before it are done and stay done, this one and those after are not.
        AttributeChangeError: no entry outside the direct map (EFAULT), or a leaf above 1G (EINVAL).
        TableNotInSource: a table on the way is not in the memory.
    """
    start = vaddr & ~(PAGE_SIZE - 1)
    request = _Request(start, pages, int(set_), int(clear), check_alias, force_split)
    try:
        _start(machine, request)
    except HibernautError:
        if request.changed:
            machine.flush_tlb_all()
        raise
    if not request.changed:
        return
    if request.force_flush_all:
        machine.flush_tlb_all()
    else:
        machine.flush_tlb_kernel_range(start, start + pages * PAGE_SIZE)
    if collapse:
        _collapse_large_pages(machine, start, pages)


def _start(machine: Machine, request: _Request) -> None:
    """Run a request on the mapping it names.

    Before `KernelRules.noalias_is_primary` a request that checks no aliases counts as one for an alias itself, and
    before `KernelRules.alias_keeps_nx` a request that changes NX alone checks none.
    """
    rules = machine.rules
    checks = request.check_alias and (rules.alias_keeps_nx or request.mask_set | request.mask_clr != NX)
    primary = rules.noalias_is_primary or checks
    _change_page_attr_set_clr(machine, request, primary=primary)


def _change_page_attr_set_clr(machine: Machine, request: _Request, *, primary: bool) -> None:
    """`__change_page_attr_set_clr`: step by step; a step is one 4K entry, or as much as lies in one large page."""
    if not (request.mask_set | request.mask_clr or request.force_split):
        return
    left, vaddr = request.pages, request.vaddr
    while left:
        request.pages = left
        _change_page_attr(machine, vaddr, request, primary=primary)
        if primary and request.check_alias:
            _process_alias(machine, vaddr, request)
        left -= request.pages
        vaddr += request.pages * PAGE_SIZE


def _change_page_attr(machine: Machine, vaddr: int, request: _Request, *, primary: bool) -> None:
    """`__change_page_attr`: one step, started over after every split."""
    while True:
        found = machine.lookup_address(vaddr)
        if found is None or is_none(found.entry):
            _process_fault(machine, vaddr, request, primary=primary)
            return
        if found.level == Level.PTE:
            _change_4k(machine, found, vaddr, request)
            return
        if not request.force_split and not _should_split_large_page(machine, found, vaddr, request):
            return
        split_large_page(machine, found, vaddr, force_static_prot=request.force_static_prot)


def _process_fault(machine: Machine, vaddr: int, request: _Request, *, primary: bool) -> None:
    """`__cpa_process_fault`: no entry. Within the direct map that is expected, and counts as one page done."""
    if _in_direct_map(machine, vaddr):
        machine.log.note(f"change_page_attr: no entry for {vaddr:#x}, ignored: success")
        if primary:
            request.pfn = (vaddr - machine.base) >> PAGE_SHIFT
    elif primary:
        image = machine.kernel_image
        if image is None or not image.start_pfn <= request.pfn < image.end_pfn:
            machine.log.printk(f"CPA: called for zero pte. vaddr = {vaddr:x} cpa->vaddr = {request.vaddr:x}")
        raise AttributeChangeError("CPA: called for zero pte outside the direct map", vaddr=vaddr, errno="EFAULT")
    request.pages = 1


def _change_4k(machine: Machine, found: KernelEntry, vaddr: int, request: _Request) -> None:
    pfn, prot = pfn_and_prot(found.entry, Level.PTE)
    wanted = (prot & ~request.mask_clr) | request.mask_set
    wanted = _static_protections(machine, wanted, vaddr, pfn, 1, "protect")
    _verify_rwx(machine, found, prot, wanted, vaddr, pfn)
    new = pfn_entry(pfn, _not_protnone(wanted))
    request.pfn = pfn
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
    size = found.level.pages
    pfn, prot = pfn_and_prot(found.entry, found.level)
    within = (vaddr >> PAGE_SHIFT) & (size - 1)
    first = vaddr - within * PAGE_SIZE
    request.pages = min(request.pages, size - within)
    wanted = _not_protnone(pgprot_4k_2_large((pgprot_large_2_4k(prot) & ~request.mask_clr) | request.mask_set))
    if wanted & PRESENT:
        wanted |= PSE
    request.pfn = pfn + within
    if _static_protections(machine, prot, first, pfn, size, "conflict") != prot:
        request.force_static_prot = True
        return True
    if wanted == prot:
        return False
    if within or request.pages != size:
        return True
    allowed = _static_protections(machine, wanted, first, pfn, size, None)
    _verify_rwx(machine, found, prot, allowed, first, pfn)
    if allowed != wanted:
        return True
    machine.write_entry(found.paddr, pfn_entry(pfn, wanted))
    request.changed = True
    return False


def split_large_page(machine: Machine, found: KernelEntry, vaddr: int, *, force_static_prot: bool = False) -> None:
    """Replace a large entry, present or not, by a table of 512 smaller ones with the same protection.

    Args:
        machine: whose tables.
        found: the large entry, at PMD or PUD.
        vaddr: an address in it.
        force_static_prot: the 4K entries lose the rights that they must not have.

    Raises:
        OutOfMemory: no page for the table; nothing is changed.
    """
    purpose = f"table for the split of the {found.level.size} entry {found.entry:#x} of {vaddr:#x}"
    table = machine.alloc_table(purpose)
    pfn, prot = pfn_and_prot(found.entry, found.level)
    if found.level == Level.PMD:
        prot = pgprot_large_2_4k(prot)
    elif not prot & PRESENT:
        prot &= ~PSE
    smaller = Level(found.level - 1)
    entries = pfn_entries(pfn, smaller.pages, _not_protnone(prot))
    if force_static_prot:
        first = vaddr & ~((1 << found.level.shift) - 1)
        _protect_split(machine, entries, smaller, first)
    machine.write_table(table, entries)
    _split_page_count(machine, vaddr, found.level)
    machine.write_entry(found.paddr, pfn_entry(table, KERNPG_TABLE))
    machine.flush_tlb_all()
    machine.log.note(
        f"split: {found.level.name} entry at {found.paddr:#x} was {found.entry:#x}, now names table frame {table:#x}"
    )


def _protect_split(machine: Machine, entries: Entries, level: Level, first: int) -> None:
    """`split_set_pte` with force_static_prot: 4K entries are put right in place; 2M ones cannot be, which is said."""
    for index, entry in enumerate(entries.tolist()):
        pfn, prot = pfn_and_prot(entry, level)
        allowed = _static_protections(machine, prot, first + (index << level.shift), pfn, level.pages, "protect")
        if allowed == prot:
            continue
        if level == Level.PTE:
            entries[index] = pfn_entry(pfn, allowed)
        else:
            machine.log.printk_once("CPA: Cannot fixup static protections for PUD split")


def _not_protnone(prot: int) -> int:
    """`pgprot_clear_protnone_bits`: GLOBAL of an entry that is not present would be read as PROTNONE."""
    return prot if prot & PRESENT else prot & ~GLOBAL


def _static_protections(machine: Machine, prot: int, vaddr: int, pfn: int, pages: int, warn_level: str | None) -> int:
    """`static_protections`: a protection without the rights that these pages must not have.

    Args:
        machine: where the kernel's read-only data lies, if that is known.
        prot: as asked for.
        vaddr: of the first page, for the warning.
        pfn: its frame.
        pages: how many.
        warn_level: "conflict" or "protect", as a warning says it; None where the kernel does not warn.
    """
    image = machine.kernel_image
    if image is None or image.rodata_start_pfn is None or image.rodata_end_pfn is None or not prot & PRESENT:
        return prot
    if pfn >= image.rodata_end_pfn or pfn + pages <= image.rodata_start_pfn or not prot & RW:
        return prot
    if warn_level is not None:
        end = vaddr + pages * PAGE_SIZE - 1
        machine.log.printk(
            f"CPA {warn_level:>8} {'Rodata RO':>10}: 0x{vaddr:016x} - 0x{end:016x} PFN {pfn:x} req {prot:016x} "
            f"prevent {RW:016x}"
        )
    return prot & ~RW


def _verify_rwx(machine: Machine, found: KernelEntry, old: int, new: int, vaddr: int, pfn: int) -> None:
    """`verify_rwx`: a change that makes pages writable and executable is let through, and warned about once."""
    if not (old ^ new) & (RW | NX) or new & (RW | NX) != RW:
        return
    if found.nx or not found.rw or not machine.rules.detects_wx:
        return
    if any(line.startswith(_WX_WARNING) for line in machine.log.kernel_lines):
        return
    end = vaddr + found.level.pages * PAGE_SIZE - 1
    machine.log.printk(f"{_WX_WARNING}: {old:016x} -> {new:016x} range: 0x{vaddr:016x} - 0x{end:016x} PFN {pfn:x}")


def _process_alias(machine: Machine, vaddr: int, request: _Request) -> None:
    """`cpa_process_alias`: the step that was just done, on the other mappings of its frames.

    The direct map, if the step was elsewhere; the kernel's image, if the frame belongs to it and the step was not
    there. What goes wrong with the image's is ignored, for its range is imprecise; and what an alias changes does not
    make the request count as changed.
    """
    if not 0 <= request.pfn < machine.end_pfn:
        return
    if not _in_direct_map(machine, vaddr):
        request.force_flush_all = True
        _change_page_attr_set_clr(machine, _alias(machine, request, machine.vaddr(request.pfn)), primary=False)
    image = machine.kernel_image
    if image is None or not image.start_pfn <= request.pfn < image.end_pfn:
        return
    if image.vaddr <= vaddr < image.vaddr + (image.end_pfn - image.start_pfn << PAGE_SHIFT):
        return
    request.force_flush_all = True
    highmap = image.vaddr + (request.pfn - image.start_pfn << PAGE_SHIFT)
    try:
        _change_page_attr_set_clr(machine, _alias(machine, request, highmap), primary=False)
    except (OutOfMemory, AttributeChangeError) as error:
        machine.log.note(f"change_page_attr: the kernel image's mapping of {vaddr:#x} is not changed, ignored: {error}")


def _alias(machine: Machine, request: _Request, vaddr: int) -> _Request:
    """Return the request for another mapping, NX left out by `KernelRules.alias_keeps_nx`."""
    mask = ~NX if machine.rules.alias_keeps_nx else ~0
    return replace(request, vaddr=vaddr, mask_set=request.mask_set & mask, mask_clr=request.mask_clr & mask)


def _in_direct_map(machine: Machine, vaddr: int) -> bool:
    return 0 <= vaddr - machine.base < machine.end_pfn << PAGE_SHIFT


def _collapse_large_pages(machine: Machine, start: int, pages: int) -> None:
    """`cpa_collapse_large_pages`: every 2 MiB block that the request touched; the tables are freed, the last first."""
    block = Level.PMD.pages * PAGE_SIZE
    tables: list[int] = []
    for vaddr in range(start & ~(block - 1), start + pages * PAGE_SIZE, block):
        _collapse_block(machine, vaddr, tables)
    if not tables:
        return
    machine.flush_tlb_all()
    for table in reversed(tables):
        machine.log.note(f"collapse: table frame {table:#x} is freed")
        machine.allocator.free_page(table, machine.cpu)


def _collapse_block(machine: Machine, vaddr: int, tables: list[int]) -> None:
    """`collapse_large_pages`: 512 4K entries to one of 2M, and then, if that fits, 512 of those to one of 1G."""
    steps = machine.tables.walk(vaddr).steps
    if len(steps) < len(_DIRECT_LEVELS) or steps[-1].level != Level.PTE:
        return
    pud, pmd, pte = steps[-3:]
    large = _collapsed(machine, pte)
    if large is None or large[1] & PAGE_KERNEL_4K:
        return
    pfn, prot = large
    _replace_table(machine, pmd, pfn_entry(pfn, pgprot_4k_2_large(prot) | PSE), pte.table_pfn, tables)
    _collapse_page_count(machine, vaddr, Level.PMD)
    if not _direct_gbpages(machine):
        return
    large = _collapsed(machine, pmd)
    if large is None or not large[1] & PSE:
        return
    _replace_table(machine, pud, pfn_entry(*large), pmd.table_pfn, tables)
    _collapse_page_count(machine, vaddr, Level.PUD)


def _collapsed(machine: Machine, step: Step) -> tuple[int, int] | None:
    """Frame and protection of the table that a walk's step was in, if its entries make one larger page."""
    page = machine.memory.frame(step.table_pfn)
    if page is None:
        return None
    entries = page.view("<u8")
    pfn, prot = pfn_and_prot(int(entries[0]), step.level)
    mapped = PRESENT | GLOBAL if step.level == Level.PTE else PRESENT | GLOBAL | PSE
    wanted = np.arange(len(entries)) * step.level.pages + pfn
    flags = entries[0] ^ entries
    frame = FRAME_MASK if step.level == Level.PTE else FRAME_MASK & ~((1 << step.level.shift) - 1)
    fits = (
        pfn % Level(step.level + 1).pages == 0
        and not (flags & np.uint64(~frame & (1 << 64) - 1)).any()
        and bool(((entries[1:] & np.uint64(mapped)) != 0).all())
        and bool((entry_frames(entries, step.level) == wanted).all())
    )
    return (pfn, prot) if fits else None


def _replace_table(machine: Machine, step: Step, entry: int, table: int, tables: list[int]) -> None:
    machine.write_entry(step.paddr, entry)
    tables.append(table)
    machine.log.note(
        f"collapse: {step.level.name} entry at {step.paddr:#x} was {step.entry:#x}, now maps {step.level.size}"
    )


def direct_pages_count(machine: Machine) -> dict[Level, int]:
    """How many entries of each size the direct map has, as the kernel counts them: DirectMap4k, 2M and 1G.

    Counted in the tables when first asked for, at the latest before the first split; from then on kept by splits and
    collapses alone, as the kernel's are, those of the kernel image's mapping among them. Entries that were made not
    present count on; zero entries never do.

    Raises:
        FormatError: the tables are hostile.
    """
    counts = _counts(machine)
    return {level: counts.get(level, 0) for level in _DIRECT_LEVELS}


def _counts(machine: Machine) -> dict[Level, int]:
    """The counters as they are kept; one for 1G only if there were such entries, which says that the CPU has them."""
    if machine.direct_pages_count is None:
        spans = machine.direct_map.spans.of_state(Stop.PRESENT, Stop.NOT_PRESENT)
        counts = {level: -(-int(spans.pages[spans.level == level].sum()) // level.pages) for level in _DIRECT_LEVELS}
        if not counts[Level.PUD]:
            del counts[Level.PUD]
        machine.direct_pages_count = counts
    return machine.direct_pages_count


def _direct_gbpages(machine: Machine) -> bool:
    """`direct_gbpages`: whether the direct map may have 1G entries: a machine has, if it did when it was counted."""
    return Level.PUD in _counts(machine)


def _counted(machine: Machine, vaddr: int) -> dict[Level, int] | None:
    """The counters, if a change at this address is counted: of the direct map, or of the kernel image's mapping."""
    pfn = (vaddr - machine.base) >> PAGE_SHIFT
    image = machine.kernel_image
    if image is not None and START_KERNEL_MAP <= vaddr < START_KERNEL_MAP + KERNEL_IMAGE_SIZE:
        pfn = image.start_pfn + ((vaddr - image.vaddr) >> PAGE_SHIFT)
    if not 0 <= pfn < machine.end_pfn:
        return None
    try:
        return _counts(machine)
    except FormatError as refusal:
        machine.log.note(f"the direct map's entries cannot be counted: {refusal}")
        return None


def _split_page_count(machine: Machine, vaddr: int, level: Level) -> None:
    """`split_page_count`."""
    counts = _counted(machine, vaddr)
    if counts is None or not counts.get(level):
        return
    counts[level] -= 1
    counts[Level(level - 1)] += Level.PMD.pages


def _collapse_page_count(machine: Machine, vaddr: int, level: Level) -> None:
    """`collapse_page_count`."""
    counts = _counted(machine, vaddr)
    if counts is None:
        return
    counts[level] += 1
    counts[Level(level - 1)] -= Level.PMD.pages


def kernel_page_present(machine: Machine, pfn: int) -> bool:
    """Whether the direct-map entry of a frame has PRESENT, asked as the kernel asks: without a NULL check.

    A 2M or 1G entry that is not present is such an entry, and answers False; so does a zero entry at PTE level.
    By rules that check (`KernelRules.checks_null_pte`; no kernel's) no entry is not present either.

    Raises:
        MachineFault: no table at PTE level and no large entry either: `lookup_address` returned NULL, and it is read.
        TableNotInSource: a table on the way is not in the memory.
    """
    found = machine.lookup_address(machine.vaddr(pfn))
    if found is None and machine.rules.checks_null_pte:
        return False
    if found is None:
        raise machine.page_fault_oops(
            0, doing=f"reading the NULL entry that lookup_address returned for frame {pfn:#x}", pfn=pfn, table=False
        )
    return found.present


def remapped_entries(entries: Entries, rules: KernelRules) -> Entries:
    """Return what not-present 4K entries become when each page is made default, then invalid.

    Args:
        entries: uint64, shape (n,), not one present or none (`is_none`).
        rules: whose set_direct_map_invalid_noflush.

    Returns:
        uint64, shape (n,).
    """
    frame = ~entries & np.uint64(FRAME_MASK)
    prot = (entries & np.uint64(~FRAME_MASK & (1 << 64) - 1)) | np.uint64(PRESENT | RW)
    prot &= np.uint64(~(rules.invalid_clears | GLOBAL) & (1 << 64) - 1)
    # pfn_pte inverts the frame of a protection that is not present, but not of one that is zero.
    remapped: Entries = np.where(prot == 0, frame, ~frame & np.uint64(FRAME_MASK)) | prot
    return remapped
