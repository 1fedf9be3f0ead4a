# SPDX-License-Identifier: GPL-2.0-or-later
"""The model against the kernel, on the same memory: what a guest's kernel does in its copy loop, and what ours does.

A guest with regions drawn by chance is dumped right before and right after the copy loop of `swsusp_save`; then its
kernel writes its image, or dies. The model is made from the first dump, with the kernel's own list of pages and the
frames that the kernel's splits got, and must come to the same.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hibernaut.errors import HibernautError, LabError, MachineFault
from hibernaut.hibernation import Fixmap, Remap, Snapshot, hibernate
from hibernaut.hibernation.log import FAILED_TO_REMAP
from hibernaut.hibernation.source_machine import machine_from_memory
from hibernaut.kernel.suspend import pages_to_save
from hibernaut.lab.host.programs import need_module
from hibernaut.lab.scenario import Hibernated, Lab, Stop
from hibernaut.lab.takeover import take_over
from hibernaut.lab.variants import Variant
from hibernaut.linux import DirectMap, Machine
from hibernaut.linux.direct_map import FrameState
from hibernaut.linux.environment import ChooseFrames, Environment, FailAllocations
from hibernaut.linux.rules import KernelRules, rules_for_release
from hibernaut.memory.physical import Bytes, Frames, PhysicalMemory
from hibernaut.paging.entries import FRAME_MASK, Entry, Level
from hibernaut.paging.spans import Stop as Reason
from hibernaut.paging.tables import PageTables
from hibernaut.sources import Source, open_memory
from hibernaut.swsusp import open_image

__all__ = [
    "Access",
    "Compared",
    "compare_copy",
    "compare_death",
    "compare_dumps",
    "faulting_access",
    "random_variant",
    "reachable_tables",
]

TIME_STAMP = re.compile(r"^\[ *[\d.]+\] *")
FATAL_LINES = 4
"""What the model prints of a page fault: BUG, two of #PF, the entries."""

# show_regs (arch/x86/kernel/process_64.c) and show_opcodes (arch/x86/kernel/dumpstack.c).
REGISTER = re.compile(r"\b(R[A-Z0-9]{2}): (?:0018:)?([0-9a-f]{16})\b")
PLACE = re.compile(r"RIP: 0010:(\w+)\+0x[0-9a-f]+/0x[0-9a-f]+")
CODE = re.compile(r"Code: .*<([0-9a-f]{2})>((?: [0-9a-f]{2})*)")


@dataclass(frozen=True)
class Compared:
    """What a comparison found.

    Attributes:
        seen: what was compared, one line.
        differences: what is not the same, a line each; none is a pass.
    """

    seen: str
    differences: tuple[str, ...]


@dataclass(frozen=True)
class Access:
    """What a CPU did when it took the fault of which a kernel died, by what that printed.

    Attributes:
        function: in which.
        instruction: the instruction, disassembled.
        reads: the address that it reads from, by the registers' values; None if that cannot be told.
    """

    function: str
    instruction: str
    reads: int | None


def random_variant(seed: int, *, levels: int = 4, kaslr: bool = False, fail_allocations: int = 0) -> Variant:
    """A guest whose regions are drawn by chance: how many, of what size, on which side of their table, and where.

    Args:
        seed: the same one gives the same wishes, and the same choice among blocks where the same ones are free.
        levels: of paging.
        kaslr: whether kernel and direct map are moved.
        fail_allocations: how many allocations for a split fail during the copy.
    """
    chance = random.Random(seed)
    # Low memory beside the kernel's image is scarce: one block of it for certain, perhaps a second one.
    regions = ["2m:above", *chance.choices(["2m:above", "4k:above"], k=chance.randint(0, 1))]
    regions += chance.choices(["2m:below", "4k:below"], weights=[3, 1], k=chance.randint(1, 6))
    chance.shuffle(regions)
    return Variant(
        f"random-{seed}",
        f"regions drawn by chance, seed {seed}",
        # Wherever KASLR puts the kernel, there must be blocks enough on both sides of its tables.
        memory_mib=512 if kaslr else 256,
        levels=levels,
        kaslr=kaslr,
        compressor="none",
        regions=tuple(regions),
        seed=seed,
        fail_allocations=fail_allocations,
    )


def compare_copy(lab: Lab, variant: Variant, folder: Path) -> Compared:
    """Let a guest hibernate, and the model from its dump; compare page tables, direct map, splits, and data.

    Args:
        lab: the laboratory and its kernel.
        variant: a guest whose allocations succeed.
        folder: an existing folder; afterwards it holds disks and dumps.

    Raises:
        LabUnavailable: something is missing here.
        LabError: the guest does not do as it is told.
        HibernautError: a dump or the image is not what it should be.
    """
    need_module("drgn")
    before, after = folder / "before.elf", folder / "after.elf"
    stock = lab.hibernate(variant, folder, Stop(before=before, after=after))
    if stock.outcome != "hibernated":
        raise LabError(f"the guest did not hibernate: {stock.outcome}: {stock.reason}")
    return compare_dumps(before, after, stock)


def compare_dumps(before: Path, after: Path, stock: Hibernated, rules: KernelRules | None = None) -> Compared:
    """What is left to do when the guest has hibernated.

    Args:
        before: its RAM before the copy loop.
        after: the same after it.
        stock: the guest, with its disk and record.
        rules: the model's; by default those of the guest's kernel.

    Raises:
        LabError, HibernautError: as `compare_copy`.
    """
    record = stock.record
    with (
        open_memory(before) as old,
        open_memory(after) as new,
        open_image(stock.image, offset=record.offset, partition=record.partition) as image,
    ):
        modelled = _Modelled(old, rules or rules_for_release(record.release))
        blocks = modelled.large_holes()
        tables = [modelled.split_table(new.memory, block) for block in blocks]
        snapshot = hibernate(modelled.machine(ChooseFrames(*tables), tables), Remap())
        own = image.memory()
        differences = [
            *_lists(modelled.pfns, image.pfns, image.info.cr3, modelled.cr3),
            *_tables("image", snapshot.memory, own, modelled.cr3, modelled.levels),
            *_maps(snapshot.memory, own, modelled),
            *_tables("memory after the copy", snapshot.machine.memory, new.memory, modelled.cr3, modelled.levels),
            *_order(tables, snapshot),
            *_slot(modelled),
        ]
        reached, missing = reachable_tables(own, modelled.cr3, modelled.levels)
        lost = len(_lost(own, modelled))
    above = sum(region["wish"].endswith("above") for region in record.regions)
    seen = (
        f"regions {_said(record.regions)}; {above} below their table; {len(modelled.pfns)} pages; {len(reached)} "
        f"tables, {len(missing)} of them (of {lost} pages) in neither image, the others equal; {len(blocks)} splits, "
        f"in frames {' '.join(map(hex, tables))}, 512 entries each equal; Fixmap: every page as in the dump"
    )
    return Compared(seen, tuple(differences))


def compare_death(lab: Lab, variant: Variant, folder: Path) -> Compared:
    """The same where a page cannot be mapped: the guest's last words and the model's; and the guest is saved.

    Args and errors as for `compare_copy`.
    """
    taken = take_over(lab, variant, folder)
    stock = taken.stock
    if stock.outcome != "died":
        raise LabError(f"the guest was to die: {stock.outcome}: {stock.reason}")
    with open_memory(folder / "before.elf") as old:
        modelled = _Modelled(old, rules_for_release(stock.record.release))
        numbers = range(1, variant.fail_allocations + 1)
        try:
            hibernate(modelled.machine(FailAllocations(*numbers), ()), Remap())
        except MachineFault as fault:
            words, address = fault.log, fault.address
        else:
            raise LabError("the guest died, the model did not")
        differences = [*_words(words, stock.log), *_place(address, stock.log), *_slot(modelled)]
    if not taken.passed:
        differences.append(f"saved through the slot: {taken.resumed.reason}; {'; '.join(map(str, taken.findings[:3]))}")
    seen = f"{len(words)} lines of the model's are the kernel's, the last: {' / '.join(words[-1 - FATAL_LINES :])}"
    access = faulting_access(stock.log)
    doing = f"{access.instruction} in {access.function} reads that address" if access else "no code was printed"
    return Compared(
        f"regions {_said(stock.record.regions)}; {seen}; {doing}; Fixmap: every page as in the dump, "
        f"{taken.resumed.reason}",
        tuple(differences),
    )


def faulting_access(log: str) -> Access | None:
    """The access of which a kernel died, worked out of the code and registers in its log; None if they are not there.

    Raises:
        LabUnavailable: no disassembler here.
    """
    need_module("capstone")
    import capstone
    from capstone import x86

    place = PLACE.search(log)
    code = CODE.search(log, place.end()) if place else None
    if place is None or code is None:
        return None
    # Registers are printed for each oops: those of the first follow its code.
    printed: dict[str, int] = {}
    for name, value in REGISTER.findall(log[code.end() :]):
        printed.setdefault(name, int(value, 16))
    disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    disassembler.detail = True
    found = next(disassembler.disasm(bytes.fromhex(code[1] + code[2]), 0, 1), None)
    if found is None:
        return None
    reads = None
    for operand in found.operands:
        if operand.type == x86.X86_OP_MEM and operand.access & capstone.CS_AC_READ:
            at = operand.mem
            names = [found.reg_name(register).upper() if register else "" for register in (at.base, at.index)]
            base, index = (printed.get(name) if name else 0 for name in names)
            reads = None if base is None or index is None else (base + index * at.scale + at.disp) % (1 << 64)
    return Access(place[1], f"{found.mnemonic} {found.op_str}", reads)


class _Modelled:
    """The kernel that was stopped before the copy, and the model of it."""

    def __init__(self, dump: Source, rules: KernelRules) -> None:
        pages = pages_to_save(dump)
        if pages.info is None or pages.kernel is None or pages.pfns is None:
            raise HibernautError(f"{dump.name}: {pages.reason}")
        self.memory = dump.memory
        self.pfns = pages.pfns
        self.cr3, self.levels = pages.info.cr3, pages.kernel.levels
        self.rules = rules
        self.map = DirectMap.find(self.memory, self.cr3, self.levels)

    def machine(self, environment: Environment, free: Sequence[int]) -> Machine:
        """A fresh one; its allocator has these frames and no others."""
        return machine_from_memory(self.memory, self.cr3, self.levels, self.pfns, environment, sorted(free), self.rules)

    def large_holes(self) -> list[int]:
        """First frame of each not-present 2 MiB entry with pages to save, ascending."""
        firsts = np.unique(self.pfns & -Level.PMD.pages)
        walks = [self.map.tables.walk(self.map.vaddr(pfn)) for pfn in firsts.tolist()]
        return [
            int(pfn)
            for pfn, walk in zip(firsts, walks, strict=True)
            if walk.stop == Reason.NOT_PRESENT and walk.level == Level.PMD
        ]

    def split_table(self, after: PhysicalMemory, block: int) -> int:
        """The frame of the table that a block's entry was split into. Raises LabError if it was not."""
        steps = PageTables(after, self.cr3, self.levels).walk(self.map.vaddr(block)).steps
        if not steps or steps[-1].level != Level.PTE:
            raise LabError(f"the kernel did not split the entry of block {block:#x}")
        return steps[-1].table_pfn


def reachable_tables(memory: PhysicalMemory, cr3: int, levels: int) -> tuple[dict[int, Bytes | None], set[int]]:
    """Every page table reachable from CR3 by frame, None for those the memory lacks; and the frames of those.

    Args:
        memory: of a machine, or of its image.
        cr3: the root.
        levels: 4 or 5.
    """
    pages: dict[int, Bytes | None] = {}

    def visit(pfn: int, level: int) -> None:
        if pfn in pages:
            return
        pages[pfn] = page = memory.frame(pfn)
        if page is None or level == Level.PTE:
            return
        entries = page.view("<u8")
        leaf = (entries & np.uint64(Entry.PSE)) != 0 if level < Level.P4D else np.zeros(len(entries), dtype=bool)
        tables = entries[((entries & np.uint64(Entry.PRESENT)) != 0) & ~leaf] & np.uint64(FRAME_MASK)
        for paddr in tables.tolist():
            visit(paddr >> 12, level - 1)

    visit(cr3 >> 12, levels)
    return pages, {pfn for pfn, page in pages.items() if page is None}


def _lists(dumped: Frames, image: Frames, image_cr3: int, cr3: int) -> Iterator[str]:
    if not np.array_equal(dumped, image):
        yield f"the list in the dump has {len(dumped)} pages, the image's {len(image)}, and they differ"
    if image_cr3 != cr3:
        yield f"CR3 in the image is {image_cr3:#x}, in the dump {cr3:#x}"


def _tables(where: str, ours: PhysicalMemory, kernels: PhysicalMemory, cr3: int, levels: int) -> Iterator[str]:
    """Page tables reachable from CR3: the same frames, the same ones missing, every entry equal."""
    (our, our_missing), (own, own_missing) = (reachable_tables(memory, cr3, levels) for memory in (ours, kernels))
    if our.keys() != own.keys():
        yield f"{where}: tables only one of the two has: {_hex(our.keys() ^ own.keys())}"
    if our_missing != own_missing:
        yield f"{where}: missing tables: model {_hex(our_missing)}, kernel {_hex(own_missing)}"
    for pfn in sorted(our.keys() & own.keys()):
        one, other = our[pfn], own[pfn]
        if one is None or other is None:
            continue
        left, right = one.view("<u8"), other.view("<u8")
        for index in np.flatnonzero(left != right).tolist()[:4]:
            yield f"{where}: table {pfn:#x}[{index}]: model {int(left[index]):#x}, kernel {int(right[index]):#x}"


def _maps(ours: PhysicalMemory, kernels: PhysicalMemory, modelled: _Modelled) -> Iterator[str]:
    """What the two images' direct maps have for each saved frame, missing tables among it."""
    states = [
        DirectMap.at(memory, modelled.cr3, modelled.levels, modelled.map.base, modelled.map.end_pfn).classify(
            modelled.pfns
        )
        for memory in (ours, kernels)
    ]
    wrong = modelled.pfns[states[0] != states[1]]
    if len(wrong):
        yield f"direct map: {len(wrong)} frames are otherwise, the first is {int(wrong[0]):#x}"


def _lost(image: PhysicalMemory, modelled: _Modelled) -> Frames:
    """The saved frames whose table an image lacks."""
    found = DirectMap.at(image, modelled.cr3, modelled.levels, modelled.map.base, modelled.map.end_pfn)
    lost: Frames = modelled.pfns[found.classify(modelled.pfns) == FrameState.TABLE_MISSING]
    return lost


def _order(tables: Sequence[int], snapshot: Snapshot) -> Iterator[str]:
    """As many allocations as the kernel's splits, in the order of the blocks: else the frames would not fit them."""
    got = [allocation.pfn for allocation in snapshot.allocations]
    if got != list(tables):
        yield f"the model's splits got {got}, the kernel's {list(tables)}"


def _slot(modelled: _Modelled) -> Iterator[str]:
    """Through the slot every listed page is saved as the dump has it, whatever allocations would do."""
    snapshot = hibernate(modelled.machine(FailAllocations(1), ()), Fixmap())
    count = 0
    for pfns, pages in snapshot.chunks():
        dumped, _ = modelled.memory.gather(pfns)
        count += len(pfns)
        wrong = pfns[(dumped != pages).any(axis=1)]
        if len(wrong):
            yield f"Fixmap: {len(wrong)} pages are not as the dump has them, the first is {int(wrong[0]):#x}"
    if count != len(modelled.pfns) or snapshot.allocations:
        yield f"Fixmap: {count} pages of {len(modelled.pfns)}, {len(snapshot.allocations)} allocations"


def _words(words: Sequence[str], log: str) -> Iterator[str]:
    """Every line of the model's is in the kernel's log, in this order, those of the fault without a gap."""
    # The kernel ends the line of entries with a blank (dump_pagetable, arch/x86/mm/fault.c).
    said = [TIME_STAMP.sub("", line).rstrip() for line in log.splitlines()]
    at = -1
    for line in words:
        later = [number for number, heard in enumerate(said) if number > at and heard == line]
        if not later:
            yield f"the model says {line!r}, the kernel does not, or not in this order"
            return
        at = later[0]
    if said[at + 1 - FATAL_LINES : at + 1] != list(words[-FATAL_LINES:]):
        yield "the lines of the fault do not follow one another"
    if FAILED_TO_REMAP in said and FAILED_TO_REMAP not in words:
        yield f"the kernel says {FAILED_TO_REMAP!r}, the model does not"


def _place(address: int, log: str) -> Iterator[str]:
    """The kernel died in `swsusp_save`, of an instruction that reads from where the model's machine read."""
    access = faulting_access(log)
    if access is None:
        yield "the kernel did not print where it died"
    elif (access.function, access.reads) != ("swsusp_save", address):
        reads = "nothing" if access.reads is None else hex(access.reads)
        yield f"the kernel died in {access.function}, {access.instruction} reads {reads}; the model read {address:#x}"


def _said(regions: Sequence[dict[str, str]]) -> str:
    return " ".join(f"{region['wish']}@{region['block']}" for region in regions)


def _hex(pfns: set[int]) -> str:
    return " ".join(map(hex, sorted(pfns))) or "none"
