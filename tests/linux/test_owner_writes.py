# SPDX-License-Identifier: GPL-2.0-or-later
"""Owners of pages out of the direct map: what each needs of its entry, and the fault where it lacks it."""

from __future__ import annotations

import pytest

from hibernaut.errors import MachineFault
from hibernaut.linux.environment import Environment
from hibernaut.linux.kfence import kfence_object_pfn, kfence_pool, kfence_protect_page
from hibernaut.linux.layout import HoleSpec, hole_4k, hole_4k_np
from hibernaut.linux.machine import PHYSICAL_ADDRESS_BITS, Machine
from hibernaut.linux.owner_writes import put_back_and_write
from hibernaut.linux.owners import KFENCE, SECRETMEM, SET_MEMORY_P
from hibernaut.linux.pgtable import GLOBAL, PRESENT, RW, pfn_and_prot, pfn_entry
from hibernaut.linux.rules import RULES, KernelRules
from hibernaut.linux.set_memory import (
    set_direct_map_default_noflush,
    set_direct_map_invalid_noflush,
    set_memory_ro,
)
from hibernaut.paging.entries import Entry, Level
from tests.linux.attribute_machines import entry_of, machine

POOL = 0x1000
OBJECT = kfence_object_pfn(POOL, 0)
HOLES: dict[str, tuple[tuple[HoleSpec, ...], int]] = {
    SECRETMEM.name: ((hole_4k(OBJECT),), OBJECT),
    SET_MEMORY_P.name: ((hole_4k_np(OBJECT),), OBJECT),
    KFENCE.name: (kfence_pool(POOL), OBJECT),
}
FLAGS = {"PRESENT": PRESENT, "RW": RW, "DIRTY": int(Entry.DIRTY), "GLOBAL": GLOBAL}


def use(of: Machine) -> None:
    """Let all owners of a machine put their pages back and write."""
    for owned in of.owners:
        put_back_and_write(of, owned, "now")


def copied(of: Machine, pfn: int) -> Machine:
    """Make a page default and invalid, as Remap does to copy it."""
    set_direct_map_default_noflush(of, pfn)
    set_direct_map_invalid_noflush(of, pfn)
    return of


@pytest.mark.parametrize("line", RULES)
@pytest.mark.parametrize("owner", HOLES)
def test_an_owner_finds_its_entry_as_it_left_it(owner: str, line: str) -> None:
    """Without a hibernation in between no owner faults, by the rules of any line."""
    holes, _ = HOLES[owner]
    of = machine(*holes, rules=line)
    assert [owned.owner.name for owned in of.owners] == ([owner, owner] if owner == KFENCE.name else [owner])
    use(of)


@pytest.mark.parametrize("line", [line for line, rules in RULES.items() if rules.kfence_inverts])
@pytest.mark.parametrize(("owner", "faults"), [("secretmem", False), ("set_memory_p", True), ("KFENCE", True)])
def test_after_a_copy_those_fault_that_restore_present_alone(owner: str, faults: bool, line: str) -> None:
    """A write through a present entry without RW: the kernel's own lines, and the fault names the owner's function."""
    holes, pfn = HOLES[owner]
    of = copied(machine(*holes, rules=line), pfn)
    if not faults:
        use(of)
        return
    with pytest.raises(MachineFault) as fault:
        use(of)
    assert (fault.value.pfn, fault.value.address) == (pfn, of.vaddr(pfn))
    function = next(owned.owner.writes_in for owned in of.owners if owned.needs_rights)
    assert fault.value.doing == f"writing to frame {pfn:#x} in {function}, now"
    lines = of.log.kernel_lines
    assert lines[-4:-1] == (
        f"BUG: unable to handle page fault for address: {of.vaddr(pfn):016x}",
        "#PF: supervisor write access in kernel mode",
        "#PF: error_code(0x0003) - permissions violation",
    )
    assert lines[-1].endswith(f" PTE {entry_of(of, pfn)[1]:x}")


LOST = {
    "6.1": {"RW", "GLOBAL"},
    "6.6": {"RW", "DIRTY", "GLOBAL"},
    "6.12": {"RW", "DIRTY", "GLOBAL"},
    "6.13-rc": {"RW", "GLOBAL"},
    "6.13": {"RW", "DIRTY", "GLOBAL"},
    "6.15": {"RW", "DIRTY", "GLOBAL"},
    "6.19": {"RW", "DIRTY", "GLOBAL"},
    "7.3": {"RW", "DIRTY", "GLOBAL"},
    "6.2": {"RW", "GLOBAL"},
}
"""The flags that an entry lost when it was made default and invalid, by line."""


@pytest.mark.parametrize("line", RULES)
def test_flags_lost_by_line(line: str) -> None:
    """RW and GLOBAL by every line, DIRTY where `invalid_clears_dirty`: an entry that lost PRESENT alone before."""
    of = machine(*kfence_pool(POOL), rules=line)
    kfence_protect_page(of, OBJECT, protect=False)
    whole = entry_of(of, OBJECT)[1]
    kfence_protect_page(of, OBJECT, protect=True)
    copied(of, OBJECT)
    left = entry_of(of, OBJECT)[1]
    lost = {name for name, flag in FLAGS.items() if whole & flag and not left & flag} - {"PRESENT"}
    assert lost == LOST[line]


@pytest.mark.parametrize(("clears", "faults"), [(PRESENT, False), (PRESENT | int(Entry.DIRTY), False), (RW, None)])
def test_rw_alone_matters(monkeypatch: pytest.MonkeyPatch, clears: int, faults: bool | None) -> None:
    """Mutants of the rule: an invalid that keeps RW, or clears only DIRTY, harms no owner; a write sets DIRTY again."""
    monkeypatch.setattr(KernelRules, "invalid_clears", clears | PRESENT)
    of = copied(machine(*kfence_pool(POOL)), OBJECT)
    if faults is None:
        with pytest.raises(MachineFault, match="permissions violation"):
            use(of)
        return
    use(of)
    assert entry_of(of, OBJECT)[1] & RW


def test_a_frame_that_is_not_inverted_is_mapped_elsewhere() -> None:
    """CPA reads the frame of a not-present entry inverted: made default, KFENCE's entry of 6.15 names no RAM.

    The CPU faults at the reserved bits, before the owner's turn comes; the fault has X86_PF_RSVD.
    """
    of = machine(*kfence_pool(POOL), rules="6.15")
    set_direct_map_default_noflush(of, OBJECT)
    pfn, _ = pfn_and_prot(entry_of(of, OBJECT)[1], Level.PTE)
    assert pfn == ~OBJECT & (1 << 40) - 1
    with pytest.raises(MachineFault, match="reserved bit violation"):
        of.read_page(of.vaddr(OBJECT))
    assert "#PF: error_code(0x0009) - reserved bit violation" in of.log.kernel_lines
    set_direct_map_invalid_noflush(of, OBJECT)
    assert entry_of(of, OBJECT)[1] & ((1 << 52) - (1 << 12)) == OBJECT << 12


def test_the_highest_frame_of_the_cpu_is_not_reserved() -> None:
    """The fault begins one frame above: below, a frame that the source lacks is another error."""
    of = machine()
    highest = (1 << (PHYSICAL_ADDRESS_BITS - 12)) - 1
    set_memory_ro(of, of.vaddr(POOL), 1)
    found = of.lookup_address(of.vaddr(POOL))
    assert found is not None
    for pfn, message in ((highest, "not in the source"), (highest + 1, "reserved bit violation")):
        of.write_entry(found.paddr, pfn_entry(pfn, PRESENT | RW))
        of.tlb.flush_all()
        with pytest.raises(MachineFault, match=message):
            of.read_page(of.vaddr(POOL))


class Gone(Environment):
    """A CPU that has dropped every stale translation."""

    def still_cached(self, vaddr: int) -> bool:
        """See `Environment.still_cached`."""
        super().still_cached(vaddr)
        return False


@pytest.mark.parametrize(("environment", "faults"), [(Environment(), False), (Gone(), True)])
def test_a_stale_translation_with_rw_hides_the_loss(environment: Environment, faults: bool) -> None:
    """A CPU that still caches the page with RW writes through it; one that has dropped it faults.

    KFENCE flushes nothing when it makes a page present; set_memory_p does.
    """
    of = machine(*kfence_pool(POOL), environment=environment)
    kfence_protect_page(of, OBJECT, protect=False)
    of.read_page(of.vaddr(OBJECT))
    set_direct_map_invalid_noflush(of, OBJECT)
    if faults:
        with pytest.raises(MachineFault, match="permissions violation"):
            use(of)
    else:
        use(of)


def test_a_write_to_a_page_that_is_not_mapped_is_a_write_fault() -> None:
    """Neither present nor cached: error code 2, as `list_del` through NULL has it."""
    of = machine(hole_4k(OBJECT))
    with pytest.raises(MachineFault):
        of.write_access(of.vaddr(OBJECT), "writing")
    assert "#PF: error_code(0x0002) - not-present page" in of.log.kernel_lines
