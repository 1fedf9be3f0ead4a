# SPDX-License-Identifier: GPL-2.0-or-later
"""Operations on a machine, as data: the steps of a run that can be saved and replayed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from hibernaut.errors import FormatError, HibernautError, OutOfMemory
from hibernaut.exploration.families import ChosenMachine
from hibernaut.hibernation.owners import owners_write_once_resumed
from hibernaut.hibernation.ways import way_named
from hibernaut.linux import set_memory
from hibernaut.linux.change_page_attr import AttributeChangeError
from hibernaut.linux.environment import Environment
from hibernaut.linux.machine import Machine
from hibernaut.linux.pgtable import PRESENT, PSE, pfn_and_prot, pfn_entry
from hibernaut.paging.entries import Level

__all__ = [
    "CLEAR",
    "EXHAUST",
    "HIBERNATE",
    "OPERATIONS",
    "OWNERS_WRITE",
    "Operation",
    "hibernation",
    "operations_of",
    "perform",
]

HIBERNATE = "hibernate"
"""The operation that takes several steps: the copy, then the resume and all invariants."""

EXHAUST = "exhaust"
"""The operation that may follow it: allocations until no page is free."""

CLEAR = "clear"
"""The operation that takes its place on a machine with unmapped pageblocks: each page is cleared, so that one that is
not in the direct map faults."""

OWNERS_WRITE = "owners-write"
"""The operation that follows it where a page has an owner that depends on the rights in its entry: every owner of a
page that is out of the direct map puts it back, and writes to it."""

PURPOSE = "somebody"
"""The purpose of its allocations in the log. Saved runs contain it, so it must not change."""

MOST_PAGES = 1 << 16
"""The most pages of one operation: 256 MiB."""


@dataclass(frozen=True)
class Operation:
    """An operation.

    Attributes:
        do: its name: a key of `OPERATIONS`, or `HIBERNATE`.
        pfn: the first frame; unused by `alloc` and `free`.
        pages: the number of pages.
        cpu: the CPU that executes it.
        way: the name of the way, for `HIBERNATE`.
    """

    do: str
    pfn: int = 0
    pages: int = 1
    cpu: int = 0
    way: str = ""

    def __str__(self) -> str:
        # The log has these sentences, and saved runs have the log: their wording is part of the format.
        if self.do == HIBERNATE:
            return f"hibernate by {self.way}, resume"
        if self.do in ("alloc", "free"):
            return f"{self.do} {self.pages} pages on CPU {self.cpu}"
        if self.do == OWNERS_WRITE:
            return "every owner of a page puts it back and writes to it"
        if self.do == CLEAR:
            return f"allocate and clear pages until nothing is free, at most {self.pages} pages"
        if self.do == EXHAUST:
            return f"allocate until nothing is free, at most {self.pages} pages"
        return f"{self.do} of {self.pages} pages from frame {self.pfn:#x}"

    def as_json(self) -> dict[str, Any]:
        """Return its fields, without those that have their default."""
        return {field.name: getattr(self, field.name) for field in fields(self) if self._says(field.name)}

    def _says(self, name: str) -> bool:
        return name == "do" or getattr(self, name) != getattr(Operation, name)

    @classmethod
    def from_json(cls, found: Any) -> Operation:
        """Return the operation of `as_json`. Raises FormatError."""
        if not isinstance(found, dict) or not set(found) <= {field.name for field in fields(cls)}:
            raise FormatError("not an operation", found=repr(found)[:80])
        kinds = {"do": str, "way": str, "pfn": int, "pages": int, "cpu": int}
        for name, value in found.items():
            if type(value) is not kinds[name]:
                raise FormatError(f"{name} of an operation", expected=kinds[name].__name__, found=repr(value)[:80])
        operation = cls(**{"do": "", **found})
        if operation.do != HIBERNATE and operation.do not in OPERATIONS:
            raise FormatError("no such operation", expected=", ".join([*OPERATIONS, HIBERNATE]), found=operation.do)
        if not (0 <= operation.pfn < 1 << 40 and 1 <= operation.pages <= MOST_PAGES and 0 <= operation.cpu < 64):
            raise FormatError("an operation out of all bounds", found=str(operation))
        return operation


def _alloc(machine: Machine, operation: Operation, held: list[int]) -> None:
    machine.cpu = operation.cpu
    for _ in range(operation.pages):
        held += [machine.alloc_page(PURPOSE)]


def _exhaust(machine: Machine, operation: Operation, held: list[int]) -> None:
    """Allocate until no page is free, or as many as the operation says; nothing is asked of the environment."""
    chooser, machine.environment = machine.environment, Environment()
    machine.cpu = operation.cpu
    try:
        held.extend(machine.alloc_pages(PURPOSE, operation.pages))
    finally:
        machine.environment = chooser


def _clear(machine: Machine, operation: Operation, held: list[int]) -> None:
    """Allocate pages with __GFP_ZERO until none is free, or as many as the operation says; nothing is asked."""
    chooser, machine.environment = machine.environment, Environment()
    try:
        for _ in range(operation.pages):
            _alloc(machine, Operation("alloc", cpu=operation.cpu), held)
            machine.write_access(machine.vaddr(held[-1]), f"clearing frame {held[-1]:#x}, just allocated (clear_page)")
    finally:
        machine.environment = chooser


def _free(machine: Machine, operation: Operation, held: list[int]) -> None:
    machine.cpu = operation.cpu
    for _ in range(min(operation.pages, len(held))):
        machine.allocator.free_page(held.pop(), operation.cpu)


def _owners_write(machine: Machine, operation: Operation, held: list[int]) -> None:
    del operation, held
    owners_write_once_resumed(machine)


def _remember(machine: Machine, operation: Operation, held: list[int]) -> None:
    """Cache the translation from before the page was taken out of the direct map: its invalidation was missed."""
    del held
    vaddr = machine.vaddr(operation.pfn)
    found = machine.lookup_address(vaddr)
    if found is None or not found.entry:
        machine.tlb.insert(vaddr, Level.PTE, operation.pfn, pfn_entry(operation.pfn, PRESENT, machine.encryption))
        return
    first, prot = pfn_and_prot(found.entry, found.level, machine.encryption)
    large = PSE if found.level > Level.PTE else 0
    machine.tlb.insert(vaddr, found.level, first, pfn_entry(first, prot | PRESENT | large, machine.encryption))


def _remember_slot(machine: Machine, operation: Operation, held: list[int]) -> None:
    """Map a frame in the fixmap slot, read it, and clear the slot without an invalidation."""
    del held
    machine.read_page(machine.fixmap.set_fixmap(operation.pfn))
    machine.fixmap.clear_fixmap(flush=False)


def _changes(change: Callable[[Machine, int, int], None]) -> Callable[[Machine, Operation, list[int]], None]:
    """Return the operation of a function of `linux.set_memory` that takes an address and a number of pages."""

    def changed(machine: Machine, operation: Operation, held: list[int]) -> None:
        del held
        change(machine, machine.vaddr(operation.pfn), operation.pages)

    return changed


def _invalid(machine: Machine, operation: Operation, held: list[int]) -> None:
    del held
    set_memory.set_direct_map_valid_noflush(machine, operation.pfn, operation.pages, valid=False)
    start = machine.vaddr(operation.pfn)
    machine.flush_tlb_kernel_range(start, start + (operation.pages << 12))


def _valid(machine: Machine, operation: Operation, held: list[int]) -> None:
    del held
    set_memory.set_direct_map_valid_noflush(machine, operation.pfn, operation.pages, valid=True)


OPERATIONS: dict[str, Callable[[Machine, Operation, list[int]], None]] = {
    "alloc": _alloc,
    EXHAUST: _exhaust,
    CLEAR: _clear,
    "free": _free,
    OWNERS_WRITE: _owners_write,
    "remember": _remember,
    "remember-slot": _remember_slot,
    "set_memory_np": _changes(set_memory.set_memory_np),
    "set_memory_p": _changes(set_memory.set_memory_p),
    "set_memory_ro": _changes(set_memory.set_memory_ro),
    "set_memory_rw": _changes(set_memory.set_memory_rw),
    "set_memory_x": _changes(set_memory.set_memory_x),
    "set_memory_nx": _changes(set_memory.set_memory_nx),
    "set_memory_4k": _changes(set_memory.set_memory_4k),
    "set_direct_map_invalid": _invalid,
    "set_direct_map_default": _valid,
}
"""By name. Each takes the machine, the operation, and the frames that earlier operations hold."""


def perform(machine: Machine, operation: Operation, held: list[int]) -> None:
    """Execute an operation. One that fails for want of memory, or that the kernel refuses, ends with a note in the log.

    Args:
        machine: the machine.
        operation: the operation, not `HIBERNATE`.
        held: the frames that operations hold, which it may change.

    Raises:
        MachineFault: the machine crashes.
    """
    machine.log.note(str(operation))
    try:
        OPERATIONS[operation.do](machine, operation, held)
    except (OutOfMemory, AttributeChangeError) as error:
        machine.log.note(f"{operation.do}: {error}")
    finally:
        machine.cpu = 0


def operations_of(chosen: ChosenMachine, way: str, allocations_after: int = 0) -> tuple[Operation, ...]:
    """Return the run of a family's machine: its history, the hibernation, and the allocations after the resume.

    Args:
        chosen: the machine.
        way: name of the way.
        allocations_after: the number of pages allocated on the resumed machine, or as many as are free.
    """
    before: list[Operation] = []
    for cpu in range(chosen.refilled if chosen.refilled > 1 else 0):
        before += [Operation("alloc", cpu=cpu), Operation("free", cpu=cpu)]
    if chosen.remembered:
        before += [Operation("remember", pfn=region.start_pfn) for region in chosen.regions]
        before.append(Operation("remember-slot", pfn=REMEMBERED_IN_SLOT))
    return (*before, *hibernation(way, allocations_after, owners=chosen.owners_act, clear=chosen.clears_pages))


def hibernation(
    way: str, allocations_after: int = 0, *, owners: bool = False, clear: bool = False
) -> tuple[Operation, ...]:
    """Return a hibernation and what follows the resume.

    Args:
        way: name of the way.
        allocations_after: number of pages that are allocated then, or as many as are free.
        owners: whether the owners of pages that are out of the direct map use them first.
        clear: whether these pages are cleared.
    """
    used = (Operation(OWNERS_WRITE),) if owners else ()
    allocated = (Operation(CLEAR if clear else EXHAUST, pages=allocations_after),) if allocations_after else ()
    return (Operation(HIBERNATE, way=way), *used, *allocated)


REMEMBERED_IN_SLOT = 0x600
"""A frame of the lower bank without a use of its own."""


def check_ways(operations: tuple[Operation, ...]) -> None:
    """Raise HibernautError unless every way is known, and only hibernations have one."""
    for operation in operations:
        if operation.do == HIBERNATE:
            way_named(operation.way)
        elif operation.way:
            raise HibernautError(f"{operation.do} has no way")
