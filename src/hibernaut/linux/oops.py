# SPDX-License-Identifier: GPL-2.0-or-later
"""Crashes of the modelled kernel: the lines that it prints, and the fault that ends the run.

Facts from arch/x86/mm/fault.c (`page_fault_oops`, `show_fault_oops`, `dump_pagetable`), arch/x86/kernel/traps.c
(`exc_general_protection`), kernel/watchdog_hld.c (6.1) and kernel/power/snapshot.c.
"""

from __future__ import annotations

from enum import IntEnum

from hibernaut.errors import MachineFault
from hibernaut.linux.printk import EventLog
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.paging.entries import Level
from hibernaut.paging.tables import PageTables, Stop, Walk

__all__ = [
    "PageFault",
    "bug_in_snapshot",
    "endless_loop",
    "general_protection_fault",
    "hard_lockup",
    "page_fault_oops",
]


class PageFault(IntEnum):
    """Reason of a page fault: the bits of the error code besides X86_PF_WRITE (arch/x86/include/asm/trap_pf.h)."""

    NOT_PRESENT = 0
    """No entry on the way has PRESENT."""
    PERMISSIONS = 1
    """X86_PF_PROT: the page is present, and must not be accessed like this."""
    RESERVED_BIT = 9
    """X86_PF_PROT and X86_PF_RSVD: a present entry has a bit that is reserved, such as a frame beyond the CPU's."""

    def __str__(self) -> str:
        return {
            PageFault.NOT_PRESENT: "not-present page",
            PageFault.PERMISSIONS: "permissions violation",
            PageFault.RESERVED_BIT: "reserved bit violation",
        }[self]


def page_fault_oops(
    tables: PageTables,
    log: EventLog,
    vaddr: int,
    *,
    doing: str,
    pfn: int | None = None,
    table: bool = True,
    write: bool = False,
    cause: PageFault = PageFault.NOT_PRESENT,
) -> MachineFault:
    """Print the lines of `show_fault_oops` for an access that the tables do not allow, and return the fault.

    Args:
        tables: page tables of the machine.
        log: where the lines go.
        vaddr: the address; below 4096 it is reported as a NULL dereference.
        doing: what the machine was doing.
        pfn: the frame that was wanted, if known.
        table: False if there was no entry to read, so that the fault carries none.
        write: whether it was a write: bit 1 of the error code (X86_PF_WRITE).
        cause: reason of the fault, which is part of its text unless the page is not present.
    """
    walk = tables.walk(vaddr)
    what = (
        "kernel NULL pointer dereference, address" if vaddr < PAGE_SIZE else "unable to handle page fault for address"
    )
    log.printk(f"BUG: {what}: {vaddr:016x}")
    log.printk(f"#PF: supervisor {'write' if write else 'read'} access in kernel mode")
    log.printk(f"#PF: error_code({cause | (2 if write else 0):#06x}) - {cause}")
    log.printk(_dump_pagetable(walk, tables.levels))
    reason = what.split(",")[0].removesuffix(" for address")
    return MachineFault(
        reason if cause == PageFault.NOT_PRESENT else f"{reason} ({cause})",
        address=vaddr,
        entry=walk.entry if table and walk.steps else None,
        pfn=pfn,
        doing=doing,
        log=log.kernel_lines,
    )


def _dump_pagetable(walk: Walk, levels: int) -> str:
    """Return the line of `dump_pagetable`: every entry on the way. With 4 levels PGD and P4D are one entry."""
    parts = [f"{step.level.name_of(levels)} {step.entry:x}" for step in walk.steps]
    if levels == Level.P4D and parts:
        parts.insert(1, f"P4D {walk.steps[0].entry:x}")
    if walk.stop == Stop.TABLE_MISSING:
        parts.append("BAD")
    return " ".join(parts)


def general_protection_fault(log: EventLog, vaddr: int, doing: str) -> MachineFault:
    """Print the line of `exc_general_protection` for a non-canonical address, and return the fault."""
    what = f"general protection fault, probably for non-canonical address 0x{vaddr:x}"
    return _crash(log, "general protection fault", vaddr, doing, f"{what}: 0000 [#1] PREEMPT SMP")


def hard_lockup(log: EventLog, vaddr: int, doing: str) -> MachineFault:
    """Return the fault of a loop over a CPU's list that has no end: a count claims pages that are not there.

    Interrupts are off, so the NMI watchdog reports it.
    """
    line = "NMI watchdog: Watchdog detected hard LOCKUP on cpu 0"
    return _crash(log, "endless loop over a CPU's list whose count is not its own", vaddr, doing, line)


def bug_in_snapshot(log: EventLog, vaddr: int, doing: str) -> MachineFault:
    """Return the fault of `memory_bm_set_bit` for a frame that its bitmap lacks; the line number is that of 6.1.192."""
    line = "kernel BUG at kernel/power/snapshot.c:817!"
    return _crash(log, "a link on a free list leads to no page", vaddr, doing, line)


def endless_loop(log: EventLog, vaddr: int, doing: str) -> MachineFault:
    """Return the fault of `mark_free_pages` on a free list that never returns to its head.

    The function touches the watchdog as it goes, so nothing is ever printed.
    """
    return _crash(log, "a free list never comes back to its head: endless loop", vaddr, doing)


def _crash(log: EventLog, what: str, vaddr: int, doing: str, line: str | None = None) -> MachineFault:
    if line is not None:
        log.printk(line)
    return MachineFault(what, address=vaddr, entry=None, pfn=None, doing=doing, log=log.kernel_lines)
