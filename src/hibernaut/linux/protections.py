# SPDX-License-Identifier: GPL-2.0-or-later
"""Protections that the kernel forces or warns of: `static_protections`, `verify_rwx` (arch/x86/mm/pat/set_memory.c).

Modelled is the read-only data of the kernel, where `Machine.kernel_image` names it. Left out are the kernel's text in
its second mapping, and the PCI BIOS, which is forced on 32-bit kernels only (CONFIG_PCI_BIOS depends on X86_32).
"""

from __future__ import annotations

from hibernaut.linux.machine import Machine
from hibernaut.linux.pgtable import NX, PRESENT, RW, KernelEntry
from hibernaut.memory.page import PAGE_SIZE

__all__ = ["static_protections", "verify_rwx"]

_WX_WARNING = "CPA detected W^X violation"


def static_protections(machine: Machine, prot: int, vaddr: int, pfn: int, pages: int, warn_level: str | None) -> int:
    """Return a protection without the rights that these pages must not have.

    Args:
        machine: machine whose `kernel_image` names the kernel's read-only data, if it is known.
        prot: the protection asked for.
        vaddr: address of the first page, for the warning.
        pfn: frame of the first page.
        pages: number of pages.
        warn_level: "conflict" or "protect", as the warning has it; None where the kernel does not warn.
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


def verify_rwx(machine: Machine, found: KernelEntry, old: int, new: int, vaddr: int, pfn: int) -> None:
    """Warn, once, of a change that makes pages writable and executable; the change is made all the same."""
    if not (old ^ new) & (RW | NX) or new & (RW | NX) != RW:
        return
    if found.nx or not found.rw or not machine.rules.detects_wx:
        return
    if any(line.startswith(_WX_WARNING) for line in machine.log.kernel_lines):
        return
    end = vaddr + found.level.pages * PAGE_SIZE - 1
    machine.log.printk(f"{_WX_WARNING}: {old:016x} -> {new:016x} range: 0x{vaddr:016x} - 0x{end:016x} PFN {pfn:x}")
