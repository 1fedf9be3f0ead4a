# SPDX-License-Identifier: GPL-2.0-or-later
"""The mermap: a region of each CPU for short-lived mappings, flushed when its addresses are used up, not at each use.

Proposed in Message-ID 20260225-page_alloc-unmapped-v1-0-e8808a03cd66@google.com and its later versions ("x86/mm:
introduce the mermap"); read as mm/mermap.c, include/linux/mermap.h and arch/x86/include/asm/mermap.h of a version for
v7.2. A mapping takes the next address of the CPU's region. Removing it leaves the translation in the TLB of that CPU:
the address is not used again before `arch_mermap_flush_tlb`, which flushes that whole TLB and no other, once no
address is left. `mermap_get_reserved` maps a single page, with preemption off, and always succeeds. A page that was
mapped here is freed after a flush.

Left out: the region belongs to an mm, whose page tables for it are allocated beforehand (`mermap_mm_prepare`); here its
addresses are unused slots of the fixmap, whose tables exist as well. Unmapping writes zero here, in the series an entry
that is neither none nor present. The size of the region (`MERMAP_CPU_REGION_SIZE`) was not read; it is an argument.
"""

from __future__ import annotations

from dataclasses import replace

from hibernaut.errors import HibernautError
from hibernaut.linux.fixmap import fix_to_virt, free_slots
from hibernaut.linux.machine import Machine
from hibernaut.linux.mermap_cpu import MermapCpu
from hibernaut.linux.pgtable import GLOBAL, PAGE_KERNEL, pfn_entry

__all__ = ["MERMAP_PREEMPTIBLE", "mermap_cpu", "mermap_flush_tlb", "mermap_get_reserved", "mermap_put"]

MERMAP_PREEMPTIBLE = "WARNING: mermap_get_reserved: preemptible"
"""Stands for `lockdep_assert_preemption_disabled` of `mermap_get_reserved`."""


def mermap_get_reserved(
    machine: Machine, pfn: int, pages: int = 1, *, cpu: int | None = None, flush: bool = True
) -> int:
    """Map a frame at the next address of a CPU's region, and return that address.

    The TLB of the CPU that runs is flushed if no address is left, which is then the first again.

    Args:
        machine: the machine; its `mermap` changes.
        pfn: the frame.
        pages: size of a CPU's region, at least 1; as given first.
        cpu: the CPU whose region is written to; that which runs by default. Another one is for mutants.
        flush: False leaves out the flush, for mutants.

    Raises:
        HibernautError: the fixmap has too few unused slots to stand for the regions.
    """
    if machine.preemptible:
        machine.log.printk_once(MERMAP_PREEMPTIBLE)
    cpu = machine.cpu if cpu is None else cpu
    region = mermap_cpu(machine, cpu, pages)
    at = region.next_addr
    if at == len(region.paddrs):
        if flush:
            mermap_flush_tlb(machine)
        at = 0
    machine.use_mermap(cpu, replace(region, next_addr=at + 1))
    prot = (PAGE_KERNEL & ~GLOBAL) | machine.encryption  # arch_mermap_pgprot_allowed: not global
    machine.write_entry(region.paddrs[at], pfn_entry(pfn, prot, machine.encryption))
    return fix_to_virt(region.slots[at])


def mermap_put(machine: Machine, cpu: int | None = None) -> None:
    """Remove the last mapping of a CPU's region, that of the CPU that runs by default; nothing is flushed."""
    region = machine.mermap_of(machine.cpu if cpu is None else cpu)
    if region is None:
        raise HibernautError("the CPU has mapped nothing by its mermap")
    machine.write_entry(region.paddrs[region.next_addr - 1], 0)


def mermap_flush_tlb(machine: Machine) -> None:
    """`arch_mermap_flush_tlb`: drop all translations of the CPU that runs, global ones included."""
    machine.tlb.flush_all()


def mermap_cpu(machine: Machine, cpu: int, pages: int) -> MermapCpu:
    """Return the region of a CPU: unused slots of the fixmap, that of the copy left out, in the order of the CPUs.

    Raises:
        HibernautError: there are too few unused slots.
    """
    known = machine.mermap_of(cpu)
    if known is not None:
        return known
    own = machine.fixmap.paddr
    slots = {
        paddr: index for index, paddr in free_slots(machine.memory, machine.cr3, machine.levels, machine.encryption)
    }
    for _, region in machine.mermap:  # one of these may be in use now
        slots |= dict(zip(region.paddrs, region.slots, strict=True))
    slots.pop(own, None)
    chosen = sorted((index, paddr) for paddr, index in slots.items())[cpu * pages : (cpu + 1) * pages]
    if len(chosen) < pages:
        raise HibernautError(
            f"no region for CPU {cpu}: expected {(cpu + 1) * pages} unused fixmap slots beside that of the copy, found "
            f"{len(slots)}",
            advice="make the region smaller",
        )
    return MermapCpu(tuple(index for index, _ in chosen), tuple(paddr for _, paddr in chosen))
