# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls that change page attributes: `set_memory_*`, `set_direct_map_*` (arch/x86/mm/pat/set_memory.c).

They raise what `change_page_attr_set_clr` raises. Steps that were done before an error stay done.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

import numpy as np

from hibernaut.errors import HibernautError, OutOfMemory
from hibernaut.linux.calls import Call
from hibernaut.linux.change_page_attr import (
    AttributeChangeError,
    change_page_attr_set_clr,
    set_pages_np,
    set_pages_p,
)
from hibernaut.linux.machine import Machine
from hibernaut.linux.pgtable import GLOBAL, NX, PAGE_KERNEL_4K, PRESENT, RW
from hibernaut.linux.rules import KernelRules
from hibernaut.paging.entries import FRAME_MASK, Entries

__all__ = [
    "kernel_page_present",
    "remapped_entries",
    "set_area_direct_map",
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
]


def set_memory_np(machine: Machine, vaddr: int, pages: int) -> None:
    """Make pages not present, and flush; a large page that is covered whole stays one entry."""
    change_page_attr_set_clr(machine, vaddr, pages, clear=PRESENT)


def set_memory_np_noalias(machine: Machine, vaddr: int, pages: int) -> None:
    """Make pages not present, and flush; other mappings of the same frames do not change."""
    change_page_attr_set_clr(machine, vaddr, pages, clear=PRESENT, check_alias=False)


def set_memory_p(machine: Machine, vaddr: int, pages: int) -> None:
    """Make pages present, and flush."""
    change_page_attr_set_clr(machine, vaddr, pages, set_=PRESENT)


def set_memory_ro(machine: Machine, vaddr: int, pages: int) -> None:
    """Make pages read-only, and flush."""
    change_page_attr_set_clr(machine, vaddr, pages, clear=machine.rules.ro_clears)


def set_memory_rw(machine: Machine, vaddr: int, pages: int) -> None:
    """Make pages writable, and flush."""
    change_page_attr_set_clr(machine, vaddr, pages, set_=RW)


def set_memory_x(machine: Machine, vaddr: int, pages: int) -> None:
    """Make pages executable in this mapping alone, and flush."""
    change_page_attr_set_clr(machine, vaddr, pages, clear=NX)


def set_memory_nx(machine: Machine, vaddr: int, pages: int) -> None:
    """Make pages not executable in this mapping alone, and flush."""
    change_page_attr_set_clr(machine, vaddr, pages, set_=NX)


def set_memory_rox(machine: Machine, vaddr: int, pages: int) -> None:
    """Make pages read-only and executable, and flush; some kernels then collapse 4K entries to large ones.

    Raises:
        HibernautError: the machine's kernel has no such function.
    """
    rules = machine.rules
    if not rules.has_set_memory_rox:
        raise HibernautError(f"a kernel by the rules of {rules.line} has no set_memory_rox; rules of 6.6 and later do")
    change_page_attr_set_clr(machine, vaddr, pages, clear=rules.ro_clears | NX, collapse=rules.collapses_large_pages)


def set_memory_4k(machine: Machine, vaddr: int, pages: int) -> None:
    """Map pages by 4K entries, and flush; on kernels that collapse entries they are marked `PAGE_KERNEL_4K`."""
    mark = PAGE_KERNEL_4K if machine.rules.collapses_large_pages else 0
    change_page_attr_set_clr(machine, vaddr, pages, set_=mark, force_split=True)


def set_direct_map_invalid_noflush(machine: Machine, pfn: int, pages: int = 1) -> None:
    """Make pages not present and not writable; the caller flushes the TLB.

    With `KernelRules.set_direct_map_takes_pages` this is one request, else one for each page.
    """
    _request(machine, "set_direct_map_invalid_noflush", pfn, pages, set_pages_np)


def set_direct_map_default_noflush(machine: Machine, pfn: int, pages: int = 1) -> None:
    """Make pages present and writable; GLOBAL, once lost, does not come back. Requests as in the function above."""
    _request(machine, "set_direct_map_default_noflush", pfn, pages, set_pages_p)


def set_area_direct_map(machine: Machine, pfn: int, pages: int, *, valid: bool) -> None:
    """`set_area_direct_map` (mm/vmalloc.c): reset the pages of an area, or make them invalid.

    With `KernelRules.resets_huge_vmalloc` the pages of a block of the area are one request, if the functions take more
    than one page; else each page is one, so that a large entry is split.
    """
    change = set_direct_map_default_noflush if valid else set_direct_map_invalid_noflush
    step = pages if machine.rules.resets_huge_vmalloc else 1
    for each in range(pfn, pfn + pages, step):
        change(machine, each, step)


def _request(machine: Machine, name: str, pfn: int, pages: int, change: Callable[[Machine, int, int], None]) -> None:
    """Change pages, by one request if the kernel can; a request for one page is recorded."""
    if pages > 1 and machine.rules.set_direct_map_takes_pages:
        change(machine, pfn, pages)
        return
    for each in range(pfn, pfn + pages):
        _recorded(machine, name, each, change)


def _recorded(machine: Machine, name: str, pfn: int, change: Callable[[Machine, int, int], None]) -> None:
    """Change one page, and record the call where calls are recorded."""
    if machine.calls is None:
        return change(machine, pfn, 1)
    before, error = machine.entry_fact(pfn), 0
    try:
        return change(machine, pfn, 1)
    except OutOfMemory:
        error = -errno.ENOMEM
        raise
    except AttributeChangeError as refused:
        error = -int(getattr(errno, refused.errno))
        raise
    finally:
        machine.record(Call.of(name, hex(pfn), before, machine.entry_fact(pfn), error))


def set_direct_map_valid_noflush(machine: Machine, pfn: int, pages: int, *, valid: bool) -> None:
    """Make many pages present and writable (default), or neither (invalid).

    Where the kernel has the function, this is one request: a large page that is covered whole stays one entry. Older
    kernels go page by page, and split everything that they touch.
    """
    change = set_pages_p if valid else set_pages_np
    if machine.rules.has_set_direct_map_valid_noflush or machine.rules.set_direct_map_takes_pages:
        change(machine, pfn, pages)
        return
    for each in range(pfn, pfn + pages):
        change(machine, each, 1)


def kernel_page_present(machine: Machine, pfn: int) -> bool:
    """Return whether the direct-map entry of a frame has PRESENT, without a NULL check, as the kernel does.

    A 2M or 1G entry that is not present, or a zero entry at PTE level, gives False. With `KernelRules.checks_null_pte`,
    which no kernel has, so does a missing entry.

    Raises:
        MachineFault: there is neither a PTE table nor a large entry: `lookup_address` returns NULL, which is read.
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


def remapped_entries(entries: Entries, rules: KernelRules, encryption: int = 0) -> Entries:
    """Return what not-present 4K entries become when each page is made default, then invalid.

    Args:
        entries: uint64, shape (n,); none is present, and none is empty (`is_none`).
        rules: rules of `set_direct_map_invalid_noflush`.
        encryption: see `Machine`.

    Returns:
        uint64, shape (n,).
    """
    mask = FRAME_MASK & ~encryption
    frame = ~entries & np.uint64(mask)
    prot = (entries & np.uint64(~mask & (1 << 64) - 1)) | np.uint64(PRESENT | RW)
    prot &= np.uint64(~(rules.invalid_clears | GLOBAL) & (1 << 64) - 1)
    # pfn_pte inverts the frame of a protection that is not present, but not of one that is zero.
    remapped: Entries = np.where(prot == 0, frame, ~frame & np.uint64(mask)) | prot
    return remapped
