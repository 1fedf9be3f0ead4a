# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory of a kernel by virtual address, translated by that kernel's own page tables.

Nothing that is read is trusted: every address goes through the page tables, every failure is a FormatError.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from hibernaut.errors import FormatError
from hibernaut.kernel.layouts import HAND_WRITTEN, StructureLayouts
from hibernaut.kernel.own_vmcoreinfo import choose_vmcoreinfo
from hibernaut.memory.declarations import START_KERNEL_MAP
from hibernaut.memory.page import PAGE_SHIFT, PAGE_SIZE, BoolArray, Bytes
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.vmcoreinfo import find_vmcoreinfos, page_table_root, parse_vmcoreinfo, sme_mask
from hibernaut.paging.tables import PageTables, Stop

__all__ = ["KernelMemory", "string_at", "u64_at"]


class KernelMemory:
    """A kernel in physical memory, found by its VMCOREINFO.

    Args:
        memory: physical memory of the machine; frames may be absent, as in an image.
        vmcoreinfo: text of VMCOREINFO; searched for in the memory if None, empty if it is known to have none.
        name: name of the source in messages.
        layouts: layouts of the kernel's structures.

    Attributes:
        memory: as given.
        name: as given.
        vmcoreinfo: text of VMCOREINFO.
        facts: its keys and values.
        levels: levels of paging, 4 or 5.
        encryption: mask of the bit of encrypted memory in page-table entries; 0 without it.
        tables: the kernel's page tables.
        phys_base: difference between physical addresses of the kernel image and their offset from __START_KERNEL_map.
        layouts: as given.

    Raises:
        FormatError: there is no VMCOREINFO, or it does not describe the page tables.
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        vmcoreinfo: bytes | None = None,
        name: str | None = None,
        layouts: StructureLayouts = HAND_WRITTEN,
    ) -> None:
        text = vmcoreinfo
        if text is None:
            found = choose_vmcoreinfo(memory, find_vmcoreinfos(memory), None)
            if found.remark is not None and found.text is None:
                raise FormatError(found.remark, source=name)
            text = found.text
        if not text:
            raise FormatError(
                "no VMCOREINFO in memory: not a Linux kernel, or built without CONFIG_VMCORE_INFO", source=name
            )
        self.memory = memory
        self.name = name
        self.vmcoreinfo = text
        self.layouts = layouts
        self.facts = parse_vmcoreinfo(text)
        root, levels = page_table_root(self.facts)
        if root is None or levels is None:
            raise FormatError("VMCOREINFO does not say where the kernel's page tables are", source=name)
        self.levels = levels
        self.encryption = sme_mask(self.facts)
        self.tables = PageTables(memory, root, levels, self.encryption)
        self.phys_base = self.number("NUMBER(phys_base)")

    @property
    def release(self) -> str:
        """The kernel release, as `uname -r` prints it."""
        return self.facts.get("OSRELEASE", "")

    @property
    def kaslr_shift(self) -> int:
        """Distance of the kernel image's addresses from those in vmlinux. Raises FormatError if it is malformed."""
        return self.number("KERNELOFFSET", 16) if "KERNELOFFSET" in self.facts else 0

    def number(self, key: str, base: int = 10) -> int:
        """Return a number from VMCOREINFO. Raises FormatError if it is absent or malformed."""
        try:
            return int(self.facts[key], base)
        except (KeyError, ValueError):
            raise self.damaged(f"VMCOREINFO has no {key}") from None

    def damaged(self, what: str, expected: str | None = None) -> FormatError:
        """Return the error for a contradiction in this kernel's memory."""
        return FormatError(what, source=self.name, expected=expected)

    def image_paddr(self, vaddr: int) -> int:
        """Return the physical address of an address in the kernel image (`__pa_symbol`)."""
        return vaddr - START_KERNEL_MAP + self.phys_base

    def read(self, vaddr: int, size_bytes: int, what: str) -> bytes:
        """Return bytes at a virtual address.

        Args:
            vaddr: the address.
            size_bytes: number of bytes.
            what: name of the object read, for the error.

        Raises:
            FormatError: the address is not mapped or its frame is absent; the message has the address.
        """
        first, end = vaddr - vaddr % PAGE_SIZE, vaddr + size_bytes
        if size_bytes <= 0 or not (first >= 0 and end <= 1 << 64):
            raise self.damaged(f"{what}: {size_bytes} bytes at {vaddr:#x} are not in the address space")
        if end - first <= PAGE_SIZE:
            return self._read_page(vaddr, size_bytes, what)
        found = self.tables.translate(np.arange(first, end, PAGE_SIZE, dtype=np.uint64))
        is_mapped = found.reasons == Stop.PRESENT.code
        pages, is_there = self.memory.gather(np.where(is_mapped, found.pfns, -1))
        missing = np.flatnonzero(~(is_mapped & is_there))
        if len(missing):
            self._read_page(max(vaddr, first + PAGE_SIZE * int(missing[0])), 1, what)
        return pages.reshape(-1)[vaddr - first : end - first].tobytes()

    def _read_page(self, vaddr: int, size_bytes: int, what: str) -> bytes:
        """Return bytes of one page. Raises FormatError as `read`."""
        walk = self.tables.walk(vaddr)
        found = self.memory.read(walk.paddr, size_bytes) if walk.paddr is not None else None
        if found is None:
            why = f"frame {walk.pfn:#x} is not in memory" if walk.stop == Stop.PRESENT else str(walk.stop)
            raise self.damaged(f"{what}: nothing to read at {vaddr:#x}: {why}")
        return found

    def read_records(self, vaddrs: ArrayLike, size_bytes: int) -> tuple[Bytes, BoolArray]:
        """Return many objects of one size.

        Args:
            vaddrs: their virtual addresses, shape (n,), in any order.
            size_bytes: bytes of each, at most a page; an object may lie across two pages.

        Returns:
            The bytes, uint8, shape (n, size_bytes), and a mask of the objects that are in the memory, shape (n,). The
            bytes of others are zero.

        Raises:
            ValueError: an object is larger than a page.
        """
        if not 0 < size_bytes <= PAGE_SIZE:
            raise ValueError(f"objects of {size_bytes} bytes; at most a page each can be read")
        starts = np.asarray(vaddrs, dtype=np.uint64)
        first, last = starts >> PAGE_SHIFT, (starts + np.uint64(size_bytes - 1)) >> PAGE_SHIFT
        numbers, where = np.unique(np.concatenate((first, last)), return_inverse=True)
        found = self.tables.translate(numbers << np.uint64(PAGE_SHIFT))
        is_mapped = found.reasons == Stop.PRESENT.code
        pages, is_there = self.memory.gather(np.where(is_mapped, found.pfns, -1))
        is_read = (is_mapped & is_there)[where].reshape(2, -1).all(axis=0)
        count = len(starts)
        within = (starts & np.uint64(PAGE_SIZE - 1)).astype(np.int64)[:, None] + np.arange(size_bytes)
        page = np.where(within < PAGE_SIZE, where[:count, None], where[count:, None])
        records: Bytes = pages[page, within & PAGE_SIZE - 1]
        records[~is_read] = 0
        return records, is_read

    def u32(self, vaddr: int, what: str) -> int:
        """Return the u32 at a virtual address; `what` names it in the error."""
        return int.from_bytes(self.read(vaddr, 4, what), "little")

    def u64(self, vaddr: int, what: str) -> int:
        """Return the u64 at a virtual address; `what` names it in the error."""
        return u64_at(self.read(vaddr, 8, what), 0)

    def list_entries(
        self, head: int, max_entries: int, size_bytes: int, what: str, links_at: int = 0
    ) -> Iterator[tuple[int, bytes]]:
        """Yield the address and the first bytes of each entry of a `struct list_head`.

        Args:
            head: address of the list head.
            max_entries: bound for the number of entries.
            size_bytes: bytes to read of each entry.
            what: name of the list, for the error.
            links_at: offset of the links in an entry.

        Raises:
            FormatError: the list is longer than `max_entries`, or a `prev` pointer does not lead back.
        """
        links = self.layouts.structure("list_head").offsets
        previous = head
        at = self.u64(head + links["next"], what)
        while at != head:
            max_entries -= 1
            if max_entries < 0:
                raise self.damaged(f"{what}: the list has no end")
            record = self.read(at - links_at, size_bytes, what)
            if u64_at(record, links_at + links["prev"]) != previous:
                raise self.damaged(f"{what}: the list is broken at {at:#x}")
            yield at - links_at, record
            previous, at = at, u64_at(record, links_at + links["next"])


def u64_at(record: bytes, offset: int) -> int:
    """Return the little-endian u64 at an offset of a record."""
    return int.from_bytes(record[offset : offset + 8], "little")


def string_at(kernel: KernelMemory, address: int, limit_bytes: int) -> bytes:
    """Return the bytes of a string up to its NUL, or its first bytes if it is longer.

    Raises:
        FormatError: nothing can be read there.
    """
    found = b""
    while len(found) < limit_bytes:
        at = address + len(found)
        size_bytes = min(PAGE_SIZE - at % PAGE_SIZE, limit_bytes - len(found))
        piece, nul, _ = kernel.read(at, size_bytes, "string").partition(b"\0")
        found += piece
        if nul:
            break
    return found
