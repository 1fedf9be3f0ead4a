# SPDX-License-Identifier: GPL-2.0-or-later
"""The mermap: addresses in turn, a flush only when none is left, regions of their own for the CPUs."""

from __future__ import annotations

import pytest

from hibernaut.errors import HibernautError, MachineFault
from hibernaut.linux.build import build_machine
from hibernaut.linux.layout import Layout
from hibernaut.linux.machine import Machine
from hibernaut.linux.mermap import MERMAP_PREEMPTIBLE, mermap_cpu, mermap_get_reserved, mermap_put

RAM = ((0, 0x4000),)


def first_word(machine: Machine, vaddr: int) -> int:
    """Return the frame number that a page names, by the formula of simulated RAM."""
    return int(machine.read_page(vaddr).view("<u8")[0]) >> 12 & (1 << 40) - 1


@pytest.mark.parametrize("pages", [1, 3])
def test_addresses_are_used_in_turn_and_flushed_once_a_round(pages: int) -> None:
    """A naive count: of n mappings every one reads its own frame, and the CPU is flushed (n - 1) // pages times."""
    machine = build_machine(Layout(RAM))
    marker = machine.vaddr(0x100)
    flushes, vaddrs = 0, []
    for number in range(10):
        machine.read_page(marker)
        vaddr = mermap_get_reserved(machine, 0x1000 + number, pages)
        flushes += machine.tlb.lookup(marker) is None
        assert first_word(machine, vaddr) == 0x1000 + number
        vaddrs.append(vaddr)
        mermap_put(machine)
        assert machine.tlb.lookup(vaddr) is not None  # nothing is invalidated when a mapping is removed
    assert flushes == 9 // pages
    assert len(set(vaddrs)) == pages
    assert vaddrs == [vaddrs[number % pages] for number in range(10)]
    assert machine.allocations == ()


def test_without_the_flush_the_address_reads_the_frame_before() -> None:
    """The mutant's step: the translation from before the reuse is still cached."""
    machine = build_machine(Layout(RAM))
    machine.read_page(mermap_get_reserved(machine, 0x1111))
    mermap_put(machine)
    assert first_word(machine, mermap_get_reserved(machine, 0x2222, flush=False)) == 0x1111


def test_an_entry_is_not_global_and_zero_after_use() -> None:
    """`arch_mermap_pgprot_allowed` forbids GLOBAL: the region belongs to an mm."""
    machine = build_machine(Layout(RAM))
    mermap_get_reserved(machine, 0x1111)
    (paddr,) = dict(machine.mermap)[0].paddrs
    assert machine.memory.read_u64(paddr) == 0x8000000000000063 | 0x1111 << 12
    mermap_put(machine)
    assert machine.memory.read_u64(paddr) == 0


def test_each_cpu_has_a_region_of_its_own() -> None:
    """Regions are disjoint, whichever is used first, and none has the slot of the copy; another CPU's is not mapped."""
    machine = build_machine(Layout(RAM, cpus=2))
    mermap_get_reserved(machine, 0x1111, 4, cpu=1)
    one, other = mermap_cpu(machine, 0, 4), dict(machine.mermap)[1]
    assert len({*one.paddrs, *other.paddrs, machine.fixmap.paddr}) == 9
    twin = build_machine(Layout(RAM, cpus=2))
    assert mermap_cpu(twin, 0, 4) == one
    assert mermap_cpu(twin, 1, 4).paddrs == other.paddrs
    with pytest.raises(MachineFault):
        machine.read_page(mermap_get_reserved(machine, 0x2222, 4) + 4096)


def test_preemption_must_be_off() -> None:
    """The lockdep assertion of `mermap_get_reserved`, once."""
    machine = build_machine(Layout(RAM))
    machine.preemptible = True
    for _ in range(2):
        mermap_get_reserved(machine, 0x1111)
        mermap_put(machine)
    assert machine.log.kernel_lines.count(MERMAP_PREEMPTIBLE) == 1


def test_too_large_a_region_is_refused_with_the_numbers() -> None:
    """Two regions of 512 do not fit in 1024 slots, one of which is the copy's."""
    machine = build_machine(Layout(RAM))
    with pytest.raises(HibernautError, match="expected 1024 unused fixmap slots beside that of the copy, found 1023"):
        mermap_cpu(machine, 1, 512)
