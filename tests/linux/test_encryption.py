# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that is encrypted (SME, SEV): the bit in page-table entries does not belong to the frame, wherever it is."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest

from hibernaut.hibernation import Fixmap, Remap, check_resumed, hibernate, resume
from hibernaut.hibernation.audit import audit
from hibernaut.hibernation.saveable import saveable_pages
from hibernaut.hibernation.source_machine import machine_from_memory
from hibernaut.linux.build import build_machine
from hibernaut.linux.direct_map import DirectMap
from hibernaut.linux.encryption import encryption_of_root
from hibernaut.linux.kfence import kfence_pool
from hibernaut.linux.layout import Layout, hole_2m, hole_4k
from hibernaut.linux.machine import Machine
from hibernaut.linux.pgtable import pfn_and_prot, pfn_entry
from hibernaut.linux.roots import find_root
from hibernaut.linux.source_tables import find_paging
from hibernaut.memory.overlay import Overlay
from hibernaut.memory.page import PAGE_SHIFT
from hibernaut.memory.segments import Segment, SegmentMemory
from hibernaut.memory.vmcoreinfo import sme_mask
from hibernaut.paging.entries import Entry, Level
from hibernaut.paging.tables import PageTables
from hibernaut.sources import open_memory
from tests.cli.run import hibernaut
from tests.machines import RAM
from tests.memory.naive import Load, elf_core, note, qemu_cpu

BITS = (43, 47, 51)
HOLES = (*kfence_pool(0x800, freed=(0, 1)), hole_2m(0x1000, 2), hole_4k(0x1805, 3))


def encrypted(machine: Machine, mask: int) -> Overlay:
    """Return the memory of a machine with the bit set in every entry that is not zero, as Linux sets it."""
    memory = Overlay(machine.memory)
    for pfn in PageTables(machine.memory, machine.cr3, machine.levels).pfns().tolist():
        page = machine.memory.page(pfn)
        assert page is not None
        entries = page.view("<u8")
        memory.write_page(pfn, np.where(entries != 0, entries | np.uint64(mask), entries).view(np.uint8))
    return memory


@pytest.fixture(scope="module")
def plain() -> Machine:
    """A machine whose memory is not encrypted, with holes of three kinds, of KFENCE's pool as 6.12 leaves it too."""
    machine = build_machine(Layout(RAM, holes=HOLES))
    for start in (0x800, 0x802):
        found = machine.lookup_address(machine.vaddr(start))
        assert found is not None
        pfn, prot = pfn_and_prot(found.entry, Level.PTE)
        machine.write_entry(found.paddr, pfn << PAGE_SHIFT | prot)
    return machine


def dump(folder: Path, memory: Overlay, notes: bytes) -> Path:
    """Write a core of a memory."""
    path = folder / "ram.elf"
    path.write_bytes(elf_core([Load(start << 12, pages.tobytes()) for start, pages in memory.blocks(1 << 20)], notes))
    return path


def vmcoreinfo(machine: Machine, mask: int) -> bytes:
    """Return the note of a machine's kernel."""
    text = f"OSRELEASE=6.1.0\nSYMBOL(swapper_pg_dir)={0xFFFFFFFF80000000 + machine.cr3:x}\nNUMBER(phys_base)=0\n"
    return note(b"VMCOREINFO", 0, f"{text}NUMBER(sme_mask)={mask}\n".encode())


@pytest.mark.parametrize("bit", BITS)
def test_the_direct_map_is_the_same(plain: Machine, bit: int) -> None:
    """Base, bytes present, kinds and places of holes, whatever the bit; without it no direct map is found."""
    memory, mask = encrypted(plain, 1 << bit), 1 << bit
    assert encryption_of_root(memory, plain.cr3) == mask
    assert encryption_of_root(memory, plain.cr3 | mask) == mask
    assert encryption_of_root(plain.memory, plain.cr3) == 0
    found = DirectMap.find(memory, plain.cr3 | mask, encryption=mask)
    want = DirectMap.find(plain.memory, plain.cr3)
    assert (found.base, found.end_pfn, found.present_bytes) == (want.base, want.end_pfn, want.present_bytes)
    assert found.mismatches == want.mismatches == ()
    assert [(one.start_pfn, one.pages, one.kind, one.plain) for one in found.holes] == [
        (one.start_pfn, one.pages, one.kind, one.plain) for one in want.holes
    ]
    assert any(one.plain for one in found.holes)
    assert find_root(memory).encryption == mask
    assert find_root(memory).cr3 == find_root(plain.memory).cr3


@pytest.mark.parametrize("bit", BITS)
@pytest.mark.parametrize("how", ["CR3 with the bit", "CR3 without it", "VMCOREINFO", "nothing"])
def test_the_bit_is_found_and_reported(plain: Machine, tmp_path: Path, bit: int, how: str) -> None:
    """By VMCOREINFO's sme_mask where the tables bear it out, else by the tables; `map` and `walk` say which."""
    mask = 1 << bit
    notes = {
        "CR3 with the bit": qemu_cpu(plain.cr3 | mask),
        "CR3 without it": qemu_cpu(plain.cr3),
        "VMCOREINFO": vmcoreinfo(plain, mask),
        "nothing": note(b"CORE", 1, b"x"),
    }[how]
    path = dump(tmp_path, encrypted(plain, mask), notes)
    result = hibernaut("map", path, "--json")
    origin = "VMCOREINFO" if how == "VMCOREINFO" else "the page tables"
    assert (result.document["encryption_mask"], result.document["encryption_from"]) == (f"{mask:#x}", origin)
    assert f"bit {bit} of page-table entries, by {origin}" in result.err
    walked = hibernaut("walk", path, f"{plain.vaddr(0x1805):#x}", "--json").document
    assert (walked["pfn"], walked["not_present"]["frames"]) == ("0x1805", [{"pfn": "0x1805", "inverted": True}])
    assert all("ENCRYPTED" in step["flags"] for step in walked["levels"])
    kfence = hibernaut("walk", path, f"{plain.vaddr(0x802):#x}", "--json").document
    assert kfence["not_present"]["frames"] == [{"pfn": "0x802", "inverted": False}]


def test_a_mask_that_the_tables_do_not_have_is_left_aside(plain: Machine, tmp_path: Path) -> None:
    """The note of a kernel with SME on a machine without it."""
    path = dump(tmp_path, Overlay(plain.memory), vmcoreinfo(plain, 1 << 47))
    with open_memory(path) as source:
        found = find_paging(source)
    assert (found.encryption, found.encryption_from, found.remarks) == (0, None, ())


@pytest.mark.parametrize("way", [Fixmap(), Remap()], ids=["fixmap", "remap"])
def test_audit_and_copy_are_those_of_the_same_machine_in_the_clear(way: Fixmap | Remap) -> None:
    """Classes, splits, pages, entries afterwards: all as without the bit, and the resumed machine is unchanged."""
    holes = tuple(hole for hole in HOLES if hole.start_pfn >= 0x1000)
    machine, mask = build_machine(Layout(RAM, holes=holes)), 1 << 47
    frames, free = saveable_pages(machine), machine.allocator.free_ranges().lowest(8).pfns()
    clear = machine_from_memory(machine.memory, machine.cr3, saveable=frames, free=free)
    secret = machine_from_memory(
        encrypted(machine, mask), machine.cr3 | mask, saveable=frames, free=free, encryption=mask
    )
    first, second = audit(clear), audit(secret)
    assert [(one.name, list(one.frames), one.today) for one in first.classes] == [
        (one.name, list(one.frames), one.today) for one in second.classes
    ]
    assert first.splits == second.splits
    saved, other = hibernate(clear.fork(), way), hibernate(secret.fork(), way)
    assert saved.pfns.tolist() == other.pfns.tolist()
    tables = set(machine.tables.pfns().tolist()) | set(saved.written.tolist()) | set(other.written.tolist())
    assert all((saved.page(pfn) == other.page(pfn)).all() for pfn in saved.pfns.tolist() if pfn not in tables)
    for pfn in (0x1805, 0x1000, 0x1001, 0x900):
        mine, theirs = (at.machine.lookup_address(at.machine.vaddr(pfn)) for at in (saved, other))
        assert mine is not None
        assert theirs is not None
        assert (theirs.level, theirs.entry & ~mask) == (mine.level, mine.entry & ~mask)
        assert theirs.entry & mask
    if isinstance(way, Fixmap):
        assert check_resumed(secret, other, resume(other)) == ()


def test_kernel_helpers_keep_the_bit_in_the_protection() -> None:
    """`pte_pgprot` has it, `pte_pfn` does not, and it is not inverted (`PTE_PFN_MASK` leaves it out)."""
    mask = 1 << 47
    for prot in (0x8000000000000063, 0x8000000000000062):
        entry = pfn_entry(0x1234, prot | mask, mask)
        assert entry & mask
        assert pfn_and_prot(entry, Level.PTE, mask) == (0x1234, prot | mask)
        shared = pfn_entry(0x1234, prot, mask)
        assert not shared & mask
        assert pfn_and_prot(shared, Level.PTE, mask) == (0x1234, prot)


def test_pages_that_are_shared_have_no_bit(plain: Machine) -> None:
    """A guest under SEV shares pages with its host: their entries lack the bit, and are mapped like the others."""
    mask = 1 << 51
    memory = encrypted(plain, mask)
    shared = copy.copy(plain)
    for pfn in (0x10, 0x11, 0x20):
        found = shared.lookup_address(shared.vaddr(pfn))
        assert found is not None
        memory.write_u64(found.paddr, found.entry)
    assert DirectMap.find(memory, plain.cr3, encryption=mask).mismatches == ()


@pytest.mark.parametrize("value", ["-1", "3", "x", "4096000", str(1 << 60), "0"])
def test_masks_that_are_none(value: str) -> None:
    """A mask is one bit of a frame's address."""
    assert sme_mask({"NUMBER(sme_mask)": value}) == 0
    assert sme_mask({"NUMBER(sme_mask)": str(1 << 47)}) == 1 << 47


def test_two_bits_are_not_an_encryption_bit() -> None:
    """Entries that all have two high bits, or none present: no answer rather than a guess."""
    pages = np.zeros((16, 512), dtype=np.uint64)
    memory = SegmentMemory([Segment(0, pages.view(np.uint8))])
    assert encryption_of_root(memory, 0x1000) == 0
    pages = np.full((16, 512), 3 << 46 | int(Entry.PRESENT) | 0x2062, dtype=np.uint64)
    assert encryption_of_root(SegmentMemory([Segment(0, pages.view(np.uint8))]), 0x1000) == 0
