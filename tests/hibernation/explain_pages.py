# SPDX-License-Identifier: GPL-2.0-or-later
"""Explanations for each word of an image that differs from the memory dump taken right before the copy.

Each changed word is mapped to what it belongs to by what the kernel in the dump says of itself: kallsyms and
VMCOREINFO (read by drgn), its lists of modules and of vmalloc areas, its `struct page`s. No frame is known beforehand.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from hibernaut.kernel.symbols import kernel_symbols
from hibernaut.linux.pgtable import PRESENT, PSE
from hibernaut.memory.page import Bytes
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.vmcoreinfo import find_vmcoreinfo, parse_vmcoreinfo
from hibernaut.paging.tables import PageTables

__all__ = ["Explained", "Explainer", "Kind", "naive_tables"]

START_KERNEL_MAP = 0xFFFFFFFF80000000
FRAME = 0x000FFFFFFFFFF000
THREAD_SIZE = 4 << 12
"""arch/x86/include/asm/page_64_types.h, without KASAN."""

# struct zone (include/linux/mmzone.h, 6.1), with what surrounds them: zone_pgdat, then these two, and the name.
ZONE_PGDAT, ZONE_PAGESET, ZONE_STATS = 0x60, 0x68, 0x70
PAGESET_BYTES = 0x100
"""At least sizeof(struct per_cpu_pages), which is rounded up to a power of two."""
STATS_BYTES = 0x40

# struct module (include/linux/module.h): state, list, name.
MODULE_LIST, MODULE_NAME = 8, 24


class Kind(StrEnum):
    """Data that may change between the stop before the copy loop and the copy of a page."""

    PAGE_TABLE = "page table"
    DIRECT_PAGES_COUNT = "counter of the direct map's pages"
    BITMAP_CURSOR = "position in the lists that the loop goes through"
    PRINTK = "kernel log and console"
    STACK = "stack of the thread that copies"
    TLB_FLUSH = "flush_tlb_info"
    VM_STATISTICS = "counters of memory management"
    FREE_LISTS = "zone and per-CPU lists of free pages"
    STRUCT_PAGE = "struct page on a list of free pages, or just taken from one"
    OBSERVER = "the module that watched the allocation"


BY_SYMBOL = {
    Kind.DIRECT_PAGES_COUNT: ("direct_pages_count",),
    Kind.BITMAP_CURSOR: ("orig_bm", "copy_bm"),
    Kind.PRINTK: (
        "printk_rb_static",
        "_printk_rb_static_descs",
        "_printk_rb_static_infos",
        "__log_buf",
        "univ8250_console",  # struct console.seq: the next record that it prints
    ),
    Kind.TLB_FLUSH: ("flush_tlb_info",),
    Kind.VM_STATISTICS: ("vm_zone_stat", "vm_node_stat", "vm_event_states"),
}
"""The variables that may change, static and per-CPU, by symbol."""

LOG_LINE = b"["
"""`console_emit_next_record` (kernel/printk/printk.c) has its buffer in a static array named `text`, as others do: it
is known by what is in it, a line with its time stamp."""


@dataclass(frozen=True)
class Explained:
    """One changed word of 8 bytes.

    Attributes:
        pfn: its frame.
        offset: in the page, bytes.
        before: what the dump has.
        after: what the image has.
        kind: why it may differ; None if nothing explains it.
        evidence: what the dump says it is.
    """

    pfn: int
    offset: int
    before: int
    after: int
    kind: Kind | None
    evidence: str

    def __str__(self) -> str:
        return (
            f"frame {self.pfn:#x} +{self.offset:#x}: {self.before:#x} -> {self.after:#x}: "
            f"{self.kind or 'UNEXPLAINED'}: {self.evidence}"
        )


def naive_tables(read: Callable[[int], Bytes | None], cr3: int, levels: int) -> tuple[set[int], set[int]]:
    """Frames of the page tables reachable from CR3, and those among them that `read` does not have; by recursion."""
    found: set[int] = set()
    missing: set[int] = set()

    def visit(pfn: int, level: int) -> None:
        if pfn in found:
            return
        found.add(pfn)
        page = read(pfn)
        if page is None:
            missing.add(pfn)
            return
        if level == 1:
            return
        for entry in page.view("<u8").tolist():
            if entry & PRESENT and not (entry & PSE and level < 4):
                visit((entry & FRAME) >> 12, level - 1)

    visit(cr3 >> 12, levels)
    return found, missing


class Explainer:
    """A kernel in a dump, asked what its words are.

    Args:
        memory: the dump, of a machine with one CPU and one node.
        cr3: root of the kernel's page tables.
        levels: 4 or 5.
    """

    def __init__(self, memory: PhysicalMemory, cr3: int, levels: int) -> None:
        text = find_vmcoreinfo(memory)
        assert text is not None
        self.memory = memory
        self.facts = parse_vmcoreinfo(text)
        self.tables = PageTables(memory, cr3, levels)
        self.table_frames, missing = naive_tables(memory.page, cr3, levels)
        assert not missing
        symbols = kernel_symbols(memory, text)
        named = sorted((address, name) for _, name, address in symbols.table)
        self._addresses, self._names = [address for address, _ in named], [name for _, name in named]
        self._at = {name: symbols[name].address for name in ("_stext", "_etext", "_end", "__per_cpu_end", "modules")}
        self.per_cpu = self.u64(symbols["__per_cpu_offset"].address)
        self._unit_bytes = self.u64(symbols["pcpu_unit_size"].address) & 0xFFFFFFFF
        top = self.u64(symbols["cpu_current_top_of_stack"].address + self.per_cpu)
        self.stack = range(top - THREAD_SIZE, top)
        self.page_offset = self.u64(symbols["page_offset_base"].address)
        self.vmemmap = self.u64(symbols["vmemmap_base"].address)
        self.node = self.u64(int(self.facts["SYMBOL(node_data)"], 16))
        self.lists = self._lists()
        self.vmalloced = dict(self._vmalloced())
        self.page_frames = self._page_frames()

    def number(self, key: str) -> int:
        """A number of VMCOREINFO's."""
        return int(self.facts[key])

    def u64(self, vaddr: int) -> int:
        """A word of the kernel's. It must be there."""
        paddr = self.tables.walk(vaddr % (1 << 64)).paddr
        value = None if paddr is None else self.memory.read_u64(paddr)
        assert value is not None, hex(vaddr)
        return value

    def symbol(self, vaddr: int) -> tuple[str, int]:
        """The symbol at or before an address, and how far behind it the address is."""
        row = bisect.bisect_right(self._addresses, vaddr) - 1
        return self._names[row], vaddr - self._addresses[row]

    def _lists(self) -> list[tuple[range, Kind, str]]:
        """Address ranges of the zones' own fields, their lists of each CPU and their counters of each CPU."""
        size, found = self.number("SIZE(zone)"), []
        for index in range(self.number("OFFSET(pglist_data.nr_zones)") // size):
            zone = self.node + self.number("OFFSET(pglist_data.node_zones)") + index * size
            spanned = self.u64(zone + self.number("OFFSET(zone.spanned_pages)"))
            if not spanned or self.u64(zone + ZONE_PGDAT) != self.node:
                continue
            free, stat = zone + self.number("OFFSET(zone.free_area)"), zone + self.number("OFFSET(zone.vm_stat)")
            areas = self.number("LENGTH(zone.free_area)") * self.number("SIZE(free_area)")
            pageset, stats = (self.per_cpu + self.u64(zone + field) for field in (ZONE_PAGESET, ZONE_STATS))
            found += [
                (range(free, free + areas), Kind.FREE_LISTS, f"free_area of zone {index}"),
                (range(stat, zone + size), Kind.VM_STATISTICS, f"vm_stat of zone {index}"),
                (range(pageset, pageset + PAGESET_BYTES), Kind.FREE_LISTS, f"per_cpu_pageset of zone {index}"),
                (range(stats, stats + STATS_BYTES), Kind.VM_STATISTICS, f"per_cpu_zonestats of zone {index}"),
            ]
        # Neighbours of one kind of object: the more exact range first.
        return sorted(found, key=lambda item: len(item[0]))

    def _areas(self) -> Iterator[int]:
        """Start of each area of vmalloc, modules among them (`vmap_area_list`)."""
        head = int(self.facts["SYMBOL(vmap_area_list)"], 16)
        links, start = self.number("OFFSET(vmap_area.list)"), self.number("OFFSET(vmap_area.va_start)")
        at = self.u64(head)
        while at != head:
            yield self.u64(at - links + start)
            at = self.u64(at)

    def _vmalloced(self) -> Iterator[tuple[int, int]]:
        """(frame, address) of each page of each area of vmalloc: the stacks and modules among them."""
        for start in self._areas():
            for vaddr in range(start, start + (1 << 22), 4096):
                pfn = self.tables.walk(vaddr).pfn
                if pfn is None:  # every area ends in a guard page
                    break
                yield pfn, vaddr

    def _page_frames(self) -> dict[int, int]:
        """Frame -> first address of each page of the array of `struct page`."""
        first = self.u64(self.node + self.number("OFFSET(pglist_data.node_start_pfn)"))
        spanned = self.u64(self.node + self.number("OFFSET(pglist_data.node_spanned_pages)"))
        start, end = (self.vmemmap + 64 * pfn for pfn in (first, first + spanned))
        walks = {vaddr: self.tables.walk(vaddr).pfn for vaddr in range(start & ~0xFFF, end, 4096)}
        return {pfn: vaddr for vaddr, pfn in walks.items() if pfn is not None}

    def module_at(self, vaddr: int) -> str | None:
        """Name of the module that an address belongs to: its `struct module` lies in the same area of vmalloc."""
        starts = sorted(self._areas())
        area = bisect.bisect_right(starts, vaddr)
        at = self.u64(self._at["modules"])
        while at != self._at["modules"]:
            if bisect.bisect_right(starts, at) == area:
                name = self.u64(at - MODULE_LIST + MODULE_NAME).to_bytes(8, "little")
                return name.split(b"\0")[0].decode()
            at = self.u64(at)
        return None

    def struct_page(self, pfn: int, offset: int) -> int:
        """The word at an offset of a frame's `struct page`."""
        return self.u64(self.vmemmap + 64 * pfn + offset)

    def explain(self, pfn: int, before: Bytes, after: Bytes) -> list[Explained]:
        """Every changed word of a page, with what it is."""
        old, new = before.view("<u8"), after.view("<u8")
        changed = np.flatnonzero(old != new).tolist()
        return [
            Explained(pfn, 8 * row, was, now, *self._why(pfn, 8 * row, was, now, after))
            for row, was, now in zip(changed, old[changed].tolist(), new[changed].tolist(), strict=True)
        ]

    def _why(self, pfn: int, offset: int, before: int, after: int, page: Bytes) -> tuple[Kind | None, str]:
        paddr = (pfn << 12) + offset
        if pfn in self.table_frames:
            return Kind.PAGE_TABLE, "reachable from CR3"
        vaddr = self.page_offset + paddr
        for where, kind, what in self.lists:
            if vaddr in where:
                return kind, what
        image = START_KERNEL_MAP + paddr + self.number("NUMBER(phys_base)")
        if self._at["_stext"] <= image < self._at["_end"]:
            return self._variable(image, page)
        if vaddr - self.per_cpu in range(self._at["__per_cpu_end"]):
            return self._variable(vaddr - self.per_cpu, page)
        if vaddr - self.per_cpu in range(self._unit_bytes):
            return None, "a CPU's own memory, allocated"
        if pfn in self.vmalloced:
            return self._in_vmalloc(self.vmalloced[pfn] + offset)
        if pfn in self.page_frames:
            return self._in_struct_page(self.page_frames[pfn] + offset, before, after)
        return self._in_slab(pfn, after)

    def _variable(self, vaddr: int, page: Bytes) -> tuple[Kind | None, str]:
        name, behind = self.symbol(vaddr)
        where = f"{name}+{behind:#x}"
        for kind, names in BY_SYMBOL.items():
            if name in names:
                return kind, where
        first = (vaddr - behind) & 0xFFF
        if name.split(".")[0] == "text" and page[first:].tobytes().startswith(LOG_LINE):
            return Kind.PRINTK, where
        return None, where

    def _in_vmalloc(self, vaddr: int) -> tuple[Kind | None, str]:
        if vaddr in self.stack:
            return Kind.STACK, f"{vaddr:#x}, the stack is {self.stack.start:#x} to {self.stack.stop:#x}"
        module = self.module_at(vaddr)
        return (Kind.OBSERVER if module == "npregion" else None), f"{vaddr:#x}, module {module}"

    def _in_struct_page(self, vaddr: int, before: int, after: int) -> tuple[Kind | None, str]:
        """Links, order and the mark of a page on the buddy allocator's lists: nothing else of it may change."""
        of, field = divmod(vaddr - self.vmemmap, 64)
        what = f"struct page of frame {of:#x} +{field}"
        lru = self.number("OFFSET(page.lru)")
        if field in (lru, lru + 8, self.number("OFFSET(page.private)")):
            return Kind.STRUCT_PAGE, what
        buddy = self.number("NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)") & 0xFFFFFFFF
        counts = {buddy, 0xFFFFFFFF}
        fits = {before & 0xFFFFFFFF, after & 0xFFFFFFFF} <= counts and {before >> 32, after >> 32} <= {0, 1}
        return (Kind.STRUCT_PAGE if fits and field == self.number("OFFSET(page._mapcount)") else None), what

    def _in_slab(self, pfn: int, after: int) -> tuple[Kind | None, str]:
        """`struct rethook_node` of the module's kretprobe: a return address, and the place of it on the stack."""
        head = self.struct_page(pfn, self.number("OFFSET(page.compound_head)"))
        of = (head - 1 - self.vmemmap) // 64 if head & 1 else pfn
        if not self.struct_page(of, 0) >> self.number("NUMBER(PG_slab)") & 1:
            return None, "neither a slab nor anything that is known"
        if self._at["_stext"] <= after < self._at["_etext"]:
            return Kind.OBSERVER, f"slab: return address {'{}+{:#x}'.format(*self.symbol(after))}"
        return (Kind.OBSERVER if after in self.stack else None), f"slab: {after:#x}"
