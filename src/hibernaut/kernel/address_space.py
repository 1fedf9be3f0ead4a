# SPDX-License-Identifier: GPL-2.0-or-later
"""The address space of a process: its mappings, and each page from wherever it is.

A page that is not present in the page tables is in a swap slot, or zero if it was never written, or in the page cache
of the file that is mapped there. `struct vm_area_struct` tells which.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from hibernaut.errors import FormatError
from hibernaut.kernel.page_cache import FilePages, file_pages
from hibernaut.kernel.program import ask, each
from hibernaut.kernel.swap_areas import MAX_SWAPFILES
from hibernaut.memory.page import PAGE_SHIFT, PAGE_SIZE
from hibernaut.paging.entries import FRAME_MASK, Entry, Level
from hibernaut.paging.spans import Stop
from hibernaut.paging.tables import PageTables

if TYPE_CHECKING:
    from typing import Any

    from hibernaut.kernel.kernel import Kernel
    from hibernaut.kernel.swapped_pages import SwappedPages
    from hibernaut.memory.page import Bytes

__all__ = ["AddressSpace", "PageCounts", "PagePlace", "PartState", "UserMapping", "UserPages"]

MAX_MAPPINGS = 1 << 20
USER_BITS = {4: 47, 5: 56}
VM_READ, VM_WRITE, VM_EXEC, VM_SHARED = 1, 2, 4, 8
"""include/linux/mm.h"""
VM_PFNMAP, VM_IO, VM_HUGETLB, VM_MIXEDMAP = 0x400, 0x4000, 0x400000, 0x10000000
CHUNK_PAGES = 1 << 16
"""Pages that are looked up at a time."""


class PagePlace(IntEnum):
    """Places of a page of a process."""

    NOWHERE = 0
    """Its page table is not in the memory, or its entry is none that a process has."""
    MEMORY = 1
    """A page frame."""
    SWAP = 2
    """A slot of a swap area."""
    FILE = 3
    """Not touched by the process: it is what the file has that is mapped there."""
    ZERO = 4
    """Never written: it reads as zeroes."""
    KERNEL = 5
    """Not touched, of a mapping that the kernel fills in its own way: vdso, vvar, a device, hugetlbfs."""


class PartState(IntEnum):
    """State of the page tables of a part of a mapping."""

    TABLES = 0
    """They are there: `AddressSpace.pages` looks each page up."""
    UNTOUCHED = 1
    """There are none: the process has touched no page of it."""
    MISSING = 2
    """They are not in the memory: pages and their places are lost."""


@dataclass(frozen=True)
class UserMapping:
    """A mapping of a process (`struct vm_area_struct`).

    Attributes:
        start: first address.
        end: one past its last address.
        flags: `vm_flags`.
        offset: byte of the file at which it begins; 0 without a file.
        name: path of the file; or `[heap]`, `[stack]`, `[vdso]`, `[vvar]`; None without a name.
        address: address of its `struct vm_area_struct`.
        mapping: address of the file's `struct address_space`; 0 without a file.
        is_anonymous: whether its pages are zero at first (`vma_is_anonymous`).
    """

    start: int
    end: int
    flags: int
    offset: int
    name: str | None
    address: int
    mapping: int
    is_anonymous: bool

    @property
    def rights(self) -> str:
        """Rights as /proc/PID/maps has them, such as `r-xp`."""
        letters = zip("rwx", (VM_READ, VM_WRITE, VM_EXEC), strict=True)
        return "".join(letter if self.flags & bit else "-" for letter, bit in letters) + (
            "s" if self.flags & VM_SHARED else "p"
        )

    @property
    def untouched(self) -> PagePlace:
        """Place of a page that the process has not touched."""
        if self.flags & (VM_HUGETLB | VM_PFNMAP | VM_IO | VM_MIXEDMAP):
            return PagePlace.KERNEL
        if self.mapping:
            return PagePlace.FILE
        return PagePlace.ZERO if self.is_anonymous else PagePlace.KERNEL

    @property
    def is_device(self) -> bool:
        """Whether it maps no memory of the kernel's own, but frames of a device."""
        return bool(self.flags & (VM_PFNMAP | VM_IO))


@dataclass(frozen=True, eq=False)
class UserPages:
    """The places of some pages.

    Attributes:
        vaddrs: uint64, shape (n,): their addresses.
        places: uint8, shape (n,): `PagePlace`.
        pfns: int64, shape (n,): page frame; -1 unless it is in memory.
        areas: int64, shape (n,): swap area; -1 unless it is swapped out.
        slots: int64, shape (n,): slot in it; -1 unless it is swapped out.
    """

    vaddrs: npt.NDArray[np.uint64]
    places: npt.NDArray[np.uint8]
    pfns: npt.NDArray[np.int64]
    areas: npt.NDArray[np.int64]
    slots: npt.NDArray[np.int64]


@dataclass(frozen=True)
class PageCounts:
    """Pages of a process or a mapping by where they are.

    Attributes:
        resident: page frames that are in the memory.
        swapped: pages in swap slots.
        lost: pages whose frame, or page table, is not in the memory; of a missing table, all that it may have had.
        untouched: pages that the process has not touched: zero, or as in the file.
    """

    resident: int
    swapped: int
    lost: int
    untouched: int


class AddressSpace:
    """The address space of a process.

    Args:
        kernel: the kernel.
        mm: its `struct mm_struct *`, a drgn object.
        swapped: reads pages that are swapped out; None to read those in memory only.

    Attributes:
        tables: its page tables.

    Raises:
        FormatError: the structure is not in the memory, or its page tables are not where it says.
    """

    def __init__(self, kernel: Kernel, mm: Any, swapped: SwappedPages | None = None) -> None:
        self._kernel = kernel
        self._mm = mm
        self._swapped = swapped
        root = ask(kernel, "mm_struct", lambda: int(mm.pgd))
        walk = kernel.tables.walk(root)
        if walk.paddr is None:
            raise kernel.damaged(f"mm_struct: its page tables at {root:#x} are not mapped")
        self.tables = PageTables(kernel.memory, walk.paddr, kernel.levels, kernel.encryption)
        self._files: dict[int, FilePages] = {}

    @cached_property
    def mappings(self) -> tuple[UserMapping, ...]:
        """Its mappings, ascending. Raises FormatError if they are not in the memory or contradict each other."""
        return tuple(self._mappings())

    def mapping_at(self, vaddr: int) -> UserMapping | None:
        """Return the mapping that has an address, None if there is none."""
        return next((one for one in self.mappings if one.start <= vaddr < one.end), None)

    def pages(self, mapping: UserMapping, first: int, count: int) -> UserPages:
        """Return the places of some pages of a mapping.

        Args:
            mapping: the mapping.
            first: its page from which on, 0 for its first one.
            count: number of pages, within the mapping.
        """
        start = mapping.start + first * PAGE_SIZE
        vaddrs = np.arange(start, start + count * PAGE_SIZE, PAGE_SIZE, dtype=np.uint64)
        found = self.tables.translate(vaddrs)
        places = np.full(count, PagePlace.NOWHERE, dtype=np.uint8)
        places[found.reasons == Stop.NONE.code] = mapping.untouched
        pfns = np.where(found.reasons == Stop.PRESENT.code, found.pfns, -1)
        entries = found.entries
        is_absent = found.reasons == Stop.NOT_PRESENT.code
        is_protnone = is_absent & (entries & np.uint64(Entry.GLOBAL) != 0)
        for level in (Level.PTE, Level.PMD, Level.PUD):
            part = is_protnone & (found.levels == int(level))
            mask = FRAME_MASK & ~((1 << level.shift) - 1) & ~self._kernel.encryption
            frame = ((~entries[part] & np.uint64(mask)) >> np.uint64(PAGE_SHIFT)).astype(np.int64)
            within = (vaddrs[part] >> np.uint64(PAGE_SHIFT)).astype(np.int64) & level.pages - 1
            pfns[part] = frame + within
        places[pfns >= 0] = PagePlace.MEMORY
        areas = (entries >> np.uint64(59)).astype(np.int64)
        slots = (~entries << np.uint64(5) >> np.uint64(14)).astype(np.int64)
        is_swap = is_absent & ~is_protnone & (found.levels == int(Level.PTE)) & (areas < MAX_SWAPFILES)
        places[is_swap] = PagePlace.SWAP
        return UserPages(vaddrs, places, pfns, np.where(is_swap, areas, -1), np.where(is_swap, slots, -1))

    def parts(self, mapping: UserMapping) -> Iterator[tuple[int, int, PartState]]:
        """Yield a mapping in parts: first page, number of pages, state of its page tables; in order, without gaps.

        A reservation of many TiB that the process hardly uses has few parts: an empty entry of an upper level is one.
        """
        first, end = 0, (mapping.end - mapping.start) >> PAGE_SHIFT
        start, state = 0, None
        while first < end:
            vaddr = mapping.start + (first << PAGE_SHIFT)
            walk = self.tables.walk(vaddr)
            found, span = PartState.TABLES, Level.PMD.pages
            if walk.level > Level.PTE and walk.stop in (Stop.NONE, Stop.TABLE_MISSING):
                found = PartState.UNTOUCHED if walk.stop == Stop.NONE else PartState.MISSING
                span = walk.level.pages
            if state is not None and (found != state or (state == PartState.TABLES and first - start >= CHUNK_PAGES)):
                yield start, first - start, state
                start = first
            state = found
            page = vaddr >> PAGE_SHIFT
            first = min(end, first + (page // span + 1) * span - page)
        if state is not None:
            yield start, end - start, state

    def counts(self, mapping: UserMapping) -> PageCounts:
        """Return how many pages of a mapping are where."""
        resident = swapped = lost = untouched = 0
        for first, count, state in self.parts(mapping):
            if state == PartState.UNTOUCHED:
                untouched += count
                continue
            if state == PartState.MISSING:
                lost += count
                continue
            found = self.pages(mapping, first, count)
            in_memory = found.pfns[found.places == PagePlace.MEMORY]
            there = int(self._kernel.memory.ranges.contains(in_memory).sum())
            resident += there
            swapped += int((found.places == PagePlace.SWAP).sum())
            if not mapping.is_device:
                lost += len(in_memory) - there
            lost += int((found.places == PagePlace.NOWHERE).sum())
            untouched += int(np.isin(found.places, (PagePlace.FILE, PagePlace.ZERO, PagePlace.KERNEL)).sum())
        return PageCounts(resident, swapped, lost, untouched)

    def read_pages(self, mapping: UserMapping, first: int, count: int, out: Bytes) -> list[str | None]:
        """Read pages of a mapping.

        Args:
            mapping: the mapping.
            first: its page from which on, 0 for its first one.
            count: number of pages, within the mapping.
            out: array for them, uint8, shape (count, 4096), C-contiguous.

        Returns:
            For each None, or the reason why it is nowhere; the bytes are zero then.
        """
        out[:] = 0
        reasons: list[str | None] = [None] * count
        found = self.pages(mapping, first, count)
        memory = np.flatnonzero(found.places == PagePlace.MEMORY)
        pages, is_there = self._kernel.memory.gather(found.pfns[memory])
        out[memory] = pages
        for at in memory[~is_there].tolist():
            what = "device memory" if mapping.is_device else "not in memory: it was not saved"
            reasons[at] = f"frame {int(found.pfns[at]):#x} is {what}"
        slots = np.flatnonzero(found.places == PagePlace.SWAP)
        for area in np.unique(found.areas[slots]).tolist():
            part = slots[found.areas[slots] == area]
            room = np.zeros((len(part), PAGE_SIZE), dtype=np.uint8)
            told = (
                self._swapped.read(area, found.slots[part], room)
                if self._swapped is not None
                else [f"it is in slot {int(slot)} of swap area {area}" for slot in found.slots[part]]
            )
            out[part] = room
            for at, reason in zip(part.tolist(), told, strict=True):
                reasons[at] = reason
        untouched = np.flatnonzero(found.places == PagePlace.FILE)
        if len(untouched):
            room = np.zeros((len(untouched), PAGE_SIZE), dtype=np.uint8)
            indices = untouched + first + (mapping.offset >> PAGE_SHIFT)
            told = self._file(mapping).read(indices.astype(np.int64), self._swapped, room)
            out[untouched] = room
            for at, reason in zip(untouched.tolist(), told, strict=True):
                reasons[at] = reason
        for at in np.flatnonzero(found.places == PagePlace.KERNEL).tolist():
            reasons[at] = "the process has not touched it, and only the kernel knows what it would see there"
        for at in np.flatnonzero(found.places == PagePlace.NOWHERE).tolist():
            reasons[at] = "its page table is not in memory, or its entry is neither a page nor a swap slot"
        return reasons

    def read(self, vaddr: int, size_bytes: int) -> bytes:
        """Return bytes at an address of the process, wherever its pages are.

        Raises:
            FormatError: nothing is mapped there, or a page is nowhere: the message has address and reason.
        """
        parts = []
        at, end = vaddr, vaddr + size_bytes
        while at < end:
            mapping = self.mapping_at(at)
            if mapping is None:
                raise self._kernel.damaged(f"the process has nothing mapped at {at:#x}")
            first = (at - mapping.start) >> PAGE_SHIFT
            last = (min(end, mapping.end) - 1 - mapping.start) >> PAGE_SHIFT
            count = min(last - first + 1, CHUNK_PAGES)
            room = np.zeros((count, PAGE_SIZE), dtype=np.uint8)
            for page, reason in enumerate(self.read_pages(mapping, first, count, room)):
                if reason is not None:
                    where = mapping.start + (first + page) * PAGE_SIZE
                    raise self._kernel.damaged(f"the page at {where:#x} cannot be read: {reason}")
            start = mapping.start + first * PAGE_SIZE
            parts.append(room.reshape(-1)[at - start : min(end, start + count * PAGE_SIZE) - start].tobytes())
            at = min(end, start + count * PAGE_SIZE)
        return b"".join(parts)

    def _file(self, mapping: UserMapping) -> FilePages:
        if mapping.mapping not in self._files:
            space = self._kernel.object("struct address_space", mapping.mapping).address_of_()
            self._files[mapping.mapping] = file_pages(self._kernel, space)
        return self._files[mapping.mapping]

    def _mappings(self) -> Iterator[UserMapping]:
        from drgn.helpers.linux.mm import for_each_vma

        kernel = self._kernel
        before = 0
        limit = 1 << USER_BITS[kernel.levels]
        mappings = (_mapping(kernel, area) for area in for_each_vma(self._mm))
        for found in each(kernel, "vm_area_struct", mappings, MAX_MAPPINGS):
            if not before <= found.start < found.end <= limit or (found.start | found.end) % PAGE_SIZE:
                raise kernel.damaged(f"a process has a mapping {found.start:#x} to {found.end:#x}, after {before:#x}")
            yield found
            before = found.end


def _mapping(kernel: Kernel, area: Any) -> UserMapping:
    """Return a mapping."""
    file = area.vm_file
    return UserMapping(
        start=int(area.vm_start),
        end=int(area.vm_end),
        flags=int(area.vm_flags),
        offset=int(area.vm_pgoff) << PAGE_SHIFT if file else 0,
        name=_name(kernel, area),
        address=int(area),
        mapping=int(file.f_mapping) if file else 0,
        is_anonymous=not area.vm_ops,
    )


def _name(kernel: Kernel, area: Any) -> str | None:
    """Return the name of a mapping as /proc/PID/maps has it; None if it has none or it is not in the memory."""
    from drgn.helpers.linux.mm import vma_name

    try:
        return ask(kernel, "name of a mapping", lambda: vma_name(area).decode("utf-8", "backslashreplace")) or None
    except FormatError:
        return None
