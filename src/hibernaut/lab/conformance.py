# SPDX-License-Identifier: GPL-2.0-or-later
"""The model against the kernel, on the same memory: the copy loop of a guest's kernel and that of the model.

A guest with random regions is dumped right before and right after the copy loop of `swsusp_save`; then its kernel
writes its image, or crashes. The model starts from the first dump, with the kernel's own list of pages and the frames
that the kernel's splits got, and must reach the same result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hibernaut.errors import HibernautError, LabError, MachineFault
from hibernaut.hibernation import Fixmap, Remap, Snapshot, hibernate
from hibernaut.hibernation.log import FAILED_TO_REMAP
from hibernaut.hibernation.real_kernel import rules_of_source
from hibernaut.hibernation.source_machine import machine_from_memory
from hibernaut.kernel.suspend import pages_to_save
from hibernaut.lab.host.programs import need_module
from hibernaut.lab.kernel_log import FAULT_LINES, faulting_access, log_lines
from hibernaut.lab.laboratory import DumpPoints, Hibernated, Lab
from hibernaut.lab.page_tables import reachable_tables
from hibernaut.lab.takeover import take_over
from hibernaut.lab.variants import Variant
from hibernaut.linux import DirectMap, Machine
from hibernaut.linux.direct_map import FrameState
from hibernaut.linux.environment import ChooseFrames, Environment, FailAllocations
from hibernaut.linux.rules import KernelRules
from hibernaut.memory.page import Pfns
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.paging.entries import Level
from hibernaut.paging.spans import Stop
from hibernaut.paging.tables import PageTables
from hibernaut.sources import Source, open_memory
from hibernaut.swsusp import open_image

__all__ = [
    "Compared",
    "access_differences",
    "compare_copy",
    "compare_crash",
    "compare_dumps",
    "message_differences",
]

MAX_ENTRIES_SHOWN = 4


@dataclass(frozen=True)
class Compared:
    """Result of a comparison.

    Attributes:
        seen: what was compared, one line.
        differences: one line each; the comparison passes without any.
    """

    seen: str
    differences: tuple[str, ...]


def compare_copy(lab: Lab, variant: Variant, folder: Path) -> Compared:
    """Let a guest hibernate, and the model from its dump; compare page tables, direct map, splits, and data.

    Args:
        lab: laboratory with the kernel.
        variant: guest whose allocations succeed.
        folder: existing folder; disks and dumps stay in it.

    Raises:
        LabUnavailable: the laboratory lacks something on this machine.
        LabError: the guest fails or times out.
        HibernautError: a dump or the image is unusable.
    """
    need_module("drgn")
    before, after = folder / "before.elf", folder / "after.elf"
    stock = lab.hibernate(variant, folder, DumpPoints(before=before, after=after))
    if stock.outcome != "hibernated":
        raise LabError(f"the guest did not hibernate: {stock.summary}")
    return compare_dumps(before, after, stock)


def compare_dumps(before: Path, after: Path, stock: Hibernated, rules: KernelRules | None = None) -> Compared:
    """Compare a guest that has hibernated with the model.

    Args:
        before: dump of its RAM before the copy loop.
        after: dump of its RAM after the copy loop.
        stock: the guest, with its disk and record.
        rules: rules of the model; those of the guest's kernel if None.

    Raises:
        LabError, HibernautError: as `compare_copy`.
    """
    record = stock.record
    with (
        open_memory(before) as old,
        open_memory(after) as new,
        open_image(stock.image, offset=record.offset, partition=record.partition) as image,
    ):
        modelled = _Modelled(old, rules or rules_of_source(old).rules)
        blocks = modelled.large_holes()
        tables = [modelled.split_table(new.memory, block) for block in blocks]
        snapshot = hibernate(modelled.machine(ChooseFrames(*tables), tables), Remap())
        own = image.memory()
        differences = [
            *_list_differences(modelled.pfns, image.pfns, image.info.cr3, modelled.cr3),
            *_table_differences("image", snapshot.memory, own, modelled.cr3, modelled.levels),
            *_map_differences(snapshot.memory, own, modelled),
            *_table_differences(
                "memory after the copy", snapshot.machine.memory, new.memory, modelled.cr3, modelled.levels
            ),
            *_order_differences(tables, snapshot),
            *_fixmap_differences(modelled),
        ]
        reached, missing = reachable_tables(own, modelled.cr3, modelled.levels)
        lost = len(_lost_pages(own, modelled))
    above = sum(region["wish"].endswith("above") for region in record.regions)
    seen = (
        f"regions {_regions_text(record.regions)}; {above} below their table; {len(modelled.pfns)} pages; "
        f"{len(reached)} tables, {len(missing)} of them (of {lost} pages) in neither image, the others equal; "
        f"{len(blocks)} splits, in frames {' '.join(map(hex, tables))}, 512 entries each equal; "
        "Fixmap: every page as in the dump"
    )
    return Compared(seen, tuple(differences))


def compare_crash(lab: Lab, variant: Variant, folder: Path) -> Compared:
    """Compare the crash messages of a guest whose kernel cannot map a page with the model's, and save the guest.

    Arguments and errors as for `compare_copy`.
    """
    taken = take_over(lab, variant, folder)
    stock = taken.stock
    if stock.outcome != "died":
        raise LabError(f"the guest must crash: {stock.summary}")
    with open_memory(folder / "before.elf") as old:
        modelled = _Modelled(old, rules_of_source(old).rules)
        failing = range(1, variant.fail_allocations + 1)
        try:
            hibernate(modelled.machine(FailAllocations(*failing), ()), Remap())
        except MachineFault as fault:
            messages, address = fault.log, fault.address
        else:
            raise LabError("the guest crashed, the model did not")
        differences = [
            *message_differences(messages, stock.log),
            *access_differences(address, stock.log),
            *_fixmap_differences(modelled),
        ]
    if not taken.passed:
        findings = "; ".join(map(str, taken.findings[:3]))
        differences.append(f"saved through the fixmap: {taken.resumed.reason}; {findings}")
    last = " / ".join(messages[-1 - FAULT_LINES :])
    access = faulting_access(stock.log)
    reads = f"{access.instruction} in {access.function} reads that address" if access else "no code was printed"
    seen = (
        f"regions {_regions_text(stock.record.regions)}; {len(messages)} lines of the model are the kernel's, the "
        f"last: {last}; {reads}; Fixmap: every page as in the dump, {taken.resumed.reason}"
    )
    return Compared(seen, tuple(differences))


def message_differences(messages: Sequence[str], log: str) -> Iterator[str]:
    """Yield the differences between the model's messages and a kernel's log.

    Every message must be in the log, in this order, those of the fault without a gap.
    """
    # The kernel ends the line of entries with a blank (dump_pagetable, arch/x86/mm/fault.c).
    printed = log_lines(log)
    at = -1
    for message in messages:
        later = [number for number, line in enumerate(printed) if number > at and line == message]
        if not later:
            yield f"the model prints {message!r}, the kernel does not, or not in this order"
            return
        at = later[0]
    if printed[at + 1 - FAULT_LINES : at + 1] != list(messages[-FAULT_LINES:]):
        yield "the lines of the fault do not follow one another"
    if FAILED_TO_REMAP in printed and FAILED_TO_REMAP not in messages:
        yield f"the kernel prints {FAILED_TO_REMAP!r}, the model does not"


def access_differences(address: int, log: str) -> Iterator[str]:
    """Yield the difference if the kernel did not crash in `swsusp_save`, reading where the model's machine read."""
    access = faulting_access(log)
    if access is None:
        yield "the kernel did not print where it crashed"
    elif (access.function, access.reads) != ("swsusp_save", address):
        reads = "nothing" if access.reads is None else hex(access.reads)
        yield (
            f"the kernel crashed in {access.function}, {access.instruction} reads {reads}; the model read {address:#x}"
        )


class _Modelled:
    """The kernel that was stopped before the copy, and models of it."""

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
        """Return a fresh machine, whose allocator has these frames and no others."""
        return machine_from_memory(self.memory, self.cr3, self.levels, self.pfns, environment, sorted(free), self.rules)

    def large_holes(self) -> list[int]:
        """Return the first frame of each not-present 2 MiB entry with pages to save, ascending."""
        firsts = np.unique(self.pfns & -Level.PMD.pages)
        walks = [self.map.tables.walk(self.map.vaddr(pfn)) for pfn in firsts.tolist()]
        return [
            int(pfn)
            for pfn, walk in zip(firsts, walks, strict=True)
            if walk.stop == Stop.NOT_PRESENT and walk.level == Level.PMD
        ]

    def split_table(self, after: PhysicalMemory, block: int) -> int:
        """Return the frame of the table that a block's entry was split into. Raises LabError if it was not split."""
        steps = PageTables(after, self.cr3, self.levels).walk(self.map.vaddr(block)).steps
        if not steps or steps[-1].level != Level.PTE:
            raise LabError(f"the kernel did not split the entry of block {block:#x}")
        return steps[-1].table_pfn

    def map_in(self, memory: PhysicalMemory) -> DirectMap:
        """Return the direct map as another memory of the same machine has it."""
        return DirectMap.at(memory, self.cr3, self.levels, self.map.base, self.map.end_pfn)


def _list_differences(dumped: Pfns, image: Pfns, image_cr3: int, cr3: int) -> Iterator[str]:
    """Yield differences between the lists of pages and the roots of dump and image."""
    if not np.array_equal(dumped, image):
        yield f"the list in the dump has {len(dumped)} pages, the image's {len(image)}, and they differ"
    if image_cr3 != cr3:
        yield f"CR3 in the image is {image_cr3:#x}, in the dump {cr3:#x}"


def _table_differences(
    where: str, models: PhysicalMemory, kernels: PhysicalMemory, cr3: int, levels: int
) -> Iterator[str]:
    """Yield differences between the page tables reachable from CR3: frames, missing ones, entries."""
    (model, model_missing), (kernel, kernel_missing) = (
        reachable_tables(memory, cr3, levels) for memory in (models, kernels)
    )
    if model.keys() != kernel.keys():
        yield f"{where}: tables only one of the two has: {_hex(model.keys() ^ kernel.keys())}"
    if model_missing != kernel_missing:
        yield f"{where}: missing tables: model {_hex(model_missing)}, kernel {_hex(kernel_missing)}"
    for pfn in sorted(model.keys() & kernel.keys()):
        one, other = model[pfn], kernel[pfn]
        if one is None or other is None:
            continue
        left, right = one.view("<u8"), other.view("<u8")
        for index in np.flatnonzero(left != right).tolist()[:MAX_ENTRIES_SHOWN]:
            yield f"{where}: table {pfn:#x}[{index}]: model {int(left[index]):#x}, kernel {int(right[index]):#x}"


def _map_differences(models: PhysicalMemory, kernels: PhysicalMemory, modelled: _Modelled) -> Iterator[str]:
    """Yield the difference between the two images' direct maps at the saved frames, missing tables included."""
    states = [modelled.map_in(memory).classify(modelled.pfns) for memory in (models, kernels)]
    wrong = modelled.pfns[states[0] != states[1]]
    if len(wrong):
        yield f"direct map: {len(wrong)} frames differ, the first is {int(wrong[0]):#x}"


def _lost_pages(image: PhysicalMemory, modelled: _Modelled) -> Pfns:
    """Return the saved frames whose table an image lacks."""
    found = modelled.map_in(image)
    lost: Pfns = modelled.pfns[found.classify(modelled.pfns) == FrameState.TABLE_MISSING]
    return lost


def _order_differences(tables: Sequence[int], snapshot: Snapshot) -> Iterator[str]:
    """Yield the difference if the model's splits did not get the kernel's frames in the kernel's order."""
    got = [allocation.pfn for allocation in snapshot.allocations]
    if got != list(tables):
        yield f"the model's splits got {got}, the kernel's {list(tables)}"


def _fixmap_differences(modelled: _Modelled) -> Iterator[str]:
    """Yield the differences between the dump and what Fixmap saves of it, without any allocation."""
    snapshot = hibernate(modelled.machine(FailAllocations(1), ()), Fixmap())
    count = 0
    for pfns, pages in snapshot.chunks():
        dumped, _ = modelled.memory.gather(pfns)
        count += len(pfns)
        wrong = pfns[(dumped != pages).any(axis=1)]
        if len(wrong):
            yield f"Fixmap: {len(wrong)} pages differ from the dump, the first is {int(wrong[0]):#x}"
    if count != len(modelled.pfns) or snapshot.allocations:
        yield f"Fixmap: {count} pages of {len(modelled.pfns)}, {len(snapshot.allocations)} allocations"


def _regions_text(regions: Sequence[dict[str, str]]) -> str:
    return " ".join(f"{region['wish']}@{region['block']}" for region in regions)


def _hex(pfns: set[int]) -> str:
    return " ".join(map(hex, sorted(pfns))) or "none"
