# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads and writes of the kernel's own data through the direct map, and the lists that it keeps there."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from hibernaut.errors import MachineFault
from hibernaut.linux.allocator import AllocatorMachine
from hibernaut.linux.mmzone import LIST_POISON1, LIST_POISON2
from hibernaut.linux.oops import general_protection_fault
from hibernaut.memory.page import PAGE_SHIFT, PAGE_SIZE

__all__ = ["U64_MAX", "KernelData"]

U64_MAX = (1 << 64) - 1
WITHIN = PAGE_SIZE - 1
LAST_WORD = PAGE_SIZE // 8 - 1


class KernelData:
    """The data of the kernel at virtual addresses, as its code reads and writes it.

    All of RAM counts as mapped. An address beyond it crashes the machine. `doing` says in each call what the kernel is
    doing, for the message.

    Args:
        machine: the machine.
    """

    def __init__(self, machine: AllocatorMachine) -> None:
        self._owner = weakref.ref(machine)  # a machine holds its allocator: avoids a reference cycle
        self._memory = machine.memory
        self._base = machine.base
        self._bytes = machine.end_pfn << PAGE_SHIFT
        self._read: dict[int, memoryview | None] | None = None
        self._written: dict[int, memoryview] | None = None

    @property
    def _machine(self) -> AllocatorMachine:
        machine = self._owner()
        assert machine is not None, "the machine of this allocator is gone"
        return machine

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Keep the pages that are read and written at hand within the context.

        Nothing else may write to them, or ask for their digests after the first write, until it ends.
        """
        outer = self._read, self._written
        self._read, self._written = {}, {}
        try:
            yield
        finally:
            self._read, self._written = outer
            if outer[0] is not None:  # what lies at hand outside may be older than what was written inside
                self._read, self._written = {}, {}

    def load(self, vaddr: int, doing: str) -> int:
        """Return the 8 bytes at an address, aligned or not. Raise MachineFault."""
        paddr = (vaddr & U64_MAX) - self._base
        read = self._read
        if read is not None and (words := read.get(paddr >> PAGE_SHIFT)) is not None and not paddr & 7:
            return words[(paddr & WITHIN) >> 3]
        within = vaddr & 7
        if within:
            low, high = self.load(vaddr - within, doing), self.load(vaddr - within + 8, doing)
            return (high << 64 | low) >> 8 * within & U64_MAX
        value = self._memory.read_u64(paddr) if 0 <= paddr < self._bytes else None
        if value is None:
            raise self.fault(vaddr & U64_MAX, doing)
        if read is not None:
            read[paddr >> PAGE_SHIFT] = self._memory.words(paddr >> PAGE_SHIFT)
        return value

    def store(self, vaddr: int, value: int, doing: str) -> None:
        """Write 8 bytes at an address, aligned or not. Raise MachineFault."""
        paddr = (vaddr & U64_MAX) - self._base
        written = self._written
        if written is not None and (words := written.get(paddr >> PAGE_SHIFT)) is not None and not paddr & 7:
            words[(paddr & WITHIN) >> 3] = value
            return
        within = vaddr & 7
        if within:
            start, mask = vaddr - within, U64_MAX << 8 * within
            both = self.load(start + 8, doing) << 64 | self.load(start, doing)
            both = (both & ~mask) | value << 8 * within
            self.store(start, both & U64_MAX, doing)
            self.store(start + 8, both >> 64, doing)
            return
        if not 0 <= paddr < self._bytes:
            raise self.fault(vaddr & U64_MAX, doing, write=True)
        try:
            self._machine.write_u64(paddr, value)
        except KeyError:
            raise self.fault(vaddr & U64_MAX, doing, write=True) from None
        if written is not None and self._read is not None:
            pfn = paddr >> PAGE_SHIFT
            words = self._memory.words(pfn)
            if words is not None:
                written[pfn] = self._read[pfn] = words

    def add(self, vaddr: int, amount: int, doing: str) -> None:
        """Add to the 8 bytes at an address, modulo 2^64. Raise MachineFault."""
        words, at = self._at_hand(vaddr)
        if words is None:
            self.store(vaddr, (self.load(vaddr, doing) + amount) & U64_MAX, doing)
        else:
            words[at] = (words[at] + amount) & U64_MAX

    def _at_hand(self, vaddr: int) -> tuple[memoryview | None, int]:
        """Return the page of an address, and which of its words is there.

        The page is None unless it was written to in this context and the address is aligned.
        """
        paddr = (vaddr & U64_MAX) - self._base
        words = None if self._written is None or paddr & 7 else self._written.get(paddr >> PAGE_SHIFT)
        return words, (paddr & WITHIN) >> 3

    def list_add(self, new: int, before: int, after: int, doing: str) -> None:
        """`__list_add` (include/linux/list.h): link an entry, by four writes in order. Raise MachineFault."""
        self.store(after + 8, new, doing)
        words, at = self._at_hand(new)
        if words is None or at == LAST_WORD:
            self.store(new, after, doing)
            self.store(new + 8, before, doing)
        else:
            words[at], words[at + 1] = after, before
        self.store(before, new, doing)

    def list_del(self, entry: int, doing: str) -> None:
        """`list_del` (include/linux/list.h): unlink an entry, by four writes in order. Raise MachineFault."""
        words, at = self._at_hand(entry)
        if words is None or at == LAST_WORD:
            after, before = self.load(entry, doing), self.load(entry + 8, doing)
            self.store(after + 8, before, doing)
            self.store(before, after, doing)
            self.store(entry, LIST_POISON1, doing)
            self.store(entry + 8, LIST_POISON2, doing)
        else:
            after, before = words[at], words[at + 1]
            self.store(after + 8, before, doing)
            self.store(before, after, doing)
            words[at], words[at + 1] = LIST_POISON1, LIST_POISON2

    def fault(self, vaddr: int, doing: str, *, write: bool = False) -> MachineFault:
        """Return the fault of an address that cannot be read or written."""
        if not _is_canonical(vaddr, self._base):
            return general_protection_fault(self._machine.log, vaddr, doing)
        paddr = vaddr - self._base
        pfn = paddr >> PAGE_SHIFT if 0 <= paddr < self._bytes else None
        return self._machine.page_fault_oops(vaddr, doing=doing, pfn=pfn, write=write)


def _is_canonical(vaddr: int, base: int) -> bool:
    """Return whether all bits above the reach of the tables are equal.

    The direct map of five levels lies below that of four.
    """
    unused_from = 47 if base >= 0xFFFF_8000_0000_0000 else 56
    return vaddr >> unused_from in (0, U64_MAX >> unused_from)
