# SPDX-License-Identifier: GPL-2.0-or-later
"""Uses of page frames by a real kernel: its `struct page`s read in bulk, and the parts of its own image.

Offsets, bits and values come from VMCOREINFO (Documentation/admin-guide/kdump/vmcoreinfo.rst), so that neither symbols
of a debug package nor the kernel's release matter. `PAGE_BUDDY_MAPCOUNT_VALUE` shows the form of the kernel's page
types: a whole value (-129 in the VMCOREINFO of 6.1) or one in the top byte (0xf0000000 in that of 6.12).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.memory.page import PAGE_SIZE
from hibernaut.memory.painting import union
from hibernaut.memory.ranges import FrameRanges
from hibernaut.paging.spans import Stop

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from hibernaut.kernel.symbols import SymbolicKernel
    from hibernaut.memory.page import BoolArray, Bytes
    from hibernaut.paging.spans import Spans

__all__ = ["PageUses", "kernel_image_frames", "page_uses"]

CHUNK = 4096
"""Pages of `struct page` that are read at a time (16 MiB)."""
MAX_ORDER = 30
"""Above the order of every free block (`MAX_PAGE_ORDER` is 10 on x86-64): a larger one is not a free block."""
MOST_TIMES = 4
"""Pages of `struct page`, absent ones included, that are looked at for each page of memory."""
ANON = np.uint64(1)
"""`PAGE_MAPPING_ANON` (include/linux/page-flags.h)."""
TYPE_SHIFT = 24
"""`page_type` in the top byte (include/linux/page-flags.h, `PGTY_buddy`)."""

OFFLINE_BESIDE = {0xFFFF_FF7F: 0xFFFF_FEFF, 0xF000_0000: 0xF100_0000}
"""Type of free pages -> type of offline pages (include/linux/page-flags.h): 6.1 and 6.12 name both in VMCOREINFO, a
kernel without CONFIG_HUGETLB_PAGE the first alone."""

IMAGE_PARTS = {
    "text": (("_text", "_etext"),),
    "rodata": (("__start_rodata", "__end_rodata"),),
    "data": (("_sdata", "_edata"), ("__bss_start", "_end")),
}
"""Parts of the kernel's image by the symbols at their bounds (arch/x86/kernel/vmlinux.lds.S); init memory between them
is freed after boot and belongs to others."""


@dataclass(frozen=True, eq=False)
class PageUses:
    """Frames by the use that their `struct page` names; a frame can be in none.

    Attributes:
        described: frames whose `struct page` was read; of others nothing is known.
        mem_map: frames that hold `struct page`s.
        free: frames in free blocks of the page allocator (`PageBuddy`).
        slab: frames of the slab allocator.
        anonymous: frames of anonymous memory on the lists of reclaim.
        cache: frames of files there, in the page cache.
        offline: frames that are not to be touched (`PageOffline`), a balloon's for one: hibernation leaves them out;
            None if the kernel does not say how it marks them.
    """

    described: FrameRanges
    mem_map: FrameRanges
    free: FrameRanges
    slab: FrameRanges
    anonymous: FrameRanges
    cache: FrameRanges
    offline: FrameRanges | None


@dataclass(frozen=True)
class _Fields:
    """Places and values of `struct page` in VMCOREINFO."""

    size: int
    flags: int
    mapping: int
    mapcount: int
    private: int
    compound_head: int | None
    lru: int
    slab_flag: int | None
    buddy: int
    slab_type: int | None
    offline_type: int | None

    @classmethod
    def of(cls, kernel: SymbolicKernel) -> _Fields:
        """Return those of a kernel. Raises FormatError if VMCOREINFO lacks one, or if they cannot be."""

        def optional(key: str) -> int | None:
            return kernel.number(key) if key in kernel.facts else None

        fields = cls(
            kernel.number("SIZE(page)"),
            kernel.number("OFFSET(page.flags)"),
            kernel.number("OFFSET(page.mapping)"),
            kernel.number("OFFSET(page._mapcount)"),
            kernel.number("OFFSET(page.private)"),
            optional("OFFSET(page.compound_head)"),
            kernel.number("NUMBER(PG_lru)"),
            optional("NUMBER(PG_slab)"),
            kernel.number("NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)") & 0xFFFF_FFFF,
            optional("NUMBER(PAGE_SLAB_MAPCOUNT_VALUE)"),
            _offline_type(kernel),
        )
        places = [fields.flags, fields.mapping, fields.private, fields.compound_head or 0]
        words_fit = all(0 <= place <= fields.size - 8 and place % 8 == 0 for place in places)
        if not 0 < fields.size <= PAGE_SIZE or PAGE_SIZE % fields.size or fields.size % 8 or not words_fit:
            raise kernel.damaged(f"struct page has {fields.size} bytes, or fields outside them", "a part of a page")
        if not (0 <= fields.mapcount <= fields.size - 4 and fields.mapcount % 4 == 0 and 0 <= fields.lru < 64):
            raise kernel.damaged("VMCOREINFO has impossible places in struct page")
        return fields


def page_uses(kernel: SymbolicKernel, end_pfn: int) -> PageUses:
    """Return the uses of all frames below `end_pfn`, by the `struct page`s that are in the memory.

    Raises:
        FormatError: VMCOREINFO or the kernel does not say where and how they are.
    """
    fields = _Fields.of(kernel)
    start = _vmemmap(kernel)
    end = start + max(end_pfn, 1) * fields.size
    if not kernel.tables.is_canonical(end - 1) or end > 1 << 64:
        raise kernel.damaged(f"struct page of {end_pfn} frames from {start:#x} reach beyond the address space")
    spans = kernel.tables.scan(start, end).of_state(Stop.PRESENT)
    names = ("described", "free", "slab", "anonymous", "cache", "offline")
    found: dict[str, list[FrameRanges]] = {name: [] for name in names}
    frames = union([FrameRanges(spans.pfn, spans.pages)])
    for at, records, is_read in _records(kernel, fields.size, start, spans):
        shown = slice(0, max(end_pfn - at, 0))
        records, is_read = records[shown], is_read[shown]
        found["described"].append(_runs_of(is_read, at))
        for name, mask in _classes(fields, records, start, at).items():
            found[name].append(_runs_of(mask & is_read, at))
        found["free"].append(_free_blocks(fields, records, at, end_pfn))
    described = union(found.pop("described"))
    offline = union(found.pop("offline"))
    known = {name: union(parts) for name, parts in found.items()}
    return PageUses(described, frames, offline=None if fields.offline_type is None else offline, **known)


def kernel_image_frames(kernel: SymbolicKernel) -> dict[str, FrameRanges]:
    """Return the frames of the kernel image: text, rodata, data; those of a part whose bounds are unknown are none."""
    found = {}
    for part, bounds in IMAGE_PARTS.items():
        ranges = []
        for first, last in bounds:
            low, high = kernel.symbols.get(first), kernel.symbols.get(last)
            if low is not None and high is not None and high.address > low.address:
                begin, end = (kernel.image_paddr(symbol.address) for symbol in (low, high))
                ranges.append((begin // PAGE_SIZE, -(-end // PAGE_SIZE) - begin // PAGE_SIZE))
        found[part] = FrameRanges.of(ranges)
    return found


def _offline_type(kernel: SymbolicKernel) -> int | None:
    """Return the type of offline pages: that of VMCOREINFO, else the one beside the type of free pages, if known."""
    told = "NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)"
    if told in kernel.facts:
        return kernel.number(told)
    return OFFLINE_BESIDE.get(kernel.number("NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)") & 0xFFFF_FFFF)


def _vmemmap(kernel: SymbolicKernel) -> int:
    """Return the address of the first `struct page` (`vmemmap_base`, arch/x86/kernel/head64.c)."""
    start = kernel.u64_variable("vmemmap_base")
    if start % PAGE_SIZE or not kernel.tables.is_canonical(start):
        raise kernel.damaged(f"vmemmap_base is {start:#x}", "a canonical address of a page")
    return start


def _records(kernel: SymbolicKernel, size: int, start: int, spans: Spans) -> Iterator[tuple[int, Bytes, BoolArray]]:
    """Yield all `struct page`s that are mapped: first frame, uint8 of shape (n, size), and which of them were read.

    A piece begins at a multiple of `CHUNK` pages, so that no folio lies across two unless it is larger than that.
    """
    each = PAGE_SIZE // size
    left = MOST_TIMES * kernel.memory.ranges.total_pages + (1 << 16)
    for vaddr, pages, pfn in zip(spans.vaddr.tolist(), spans.pages.tolist(), spans.pfn.tolist(), strict=True):
        page = (vaddr - start) // PAGE_SIZE
        done = 0
        while done < pages:
            count = min(CHUNK - (page + done) % CHUNK, pages - done)
            left -= count
            if left < 0:
                raise kernel.damaged("the tables name more pages of struct page than memory has: not real tables")
            rows, is_there = kernel.memory.gather(np.arange(pfn + done, pfn + done + count, dtype=np.int64))
            yield (page + done) * each, rows.reshape(-1, size), is_there.repeat(each)
            done += count


def _classes(fields: _Fields, records: Bytes, start: int, first_pfn: int) -> dict[str, BoolArray]:
    """Return which records are of slab, anonymous memory, page cache; a tail page is as its head, where that is here.

    Args:
        fields: places in a record.
        records: uint8, shape (n, size).
        start: address of the first `struct page` of all.
        first_pfn: frame of the first record.
    """
    flags, mapping = _words(records, fields.flags), _words(records, fields.mapping)
    is_lru = flags >> np.uint64(fields.lru) & np.uint64(1) == 1
    is_anonymous = mapping & ANON == ANON
    if fields.slab_type is not None:
        is_slab = _of_type(_mapcounts(fields, records), fields.slab_type & 0xFFFF_FFFF)
    elif fields.slab_flag is not None:
        is_slab = flags >> np.uint64(fields.slab_flag) & np.uint64(1) == 1
    else:
        is_slab = np.zeros(len(records), dtype=np.bool_)
    masks = {"slab": is_slab, "anonymous": is_lru & is_anonymous, "cache": is_lru & ~is_anonymous}
    if fields.compound_head is not None:
        head = _words(records, fields.compound_head)
        distance = (head - np.uint64(1) - np.uint64(start)) // np.uint64(fields.size) - np.uint64(first_pfn)
        tails = np.flatnonzero((head & np.uint64(1) == 1) & (distance < np.uint64(len(records))))
        rows = distance[tails].astype(np.int64)
        for mask in masks.values():
            mask[tails] = mask[rows] & (rows < tails)
    offline = fields.offline_type
    masks["offline"] = (
        np.zeros(len(records), dtype=np.bool_)
        if offline is None
        else _of_type(_mapcounts(fields, records), offline & 0xFFFF_FFFF)
    )
    return masks


def _free_blocks(fields: _Fields, records: Bytes, first_pfn: int, end_pfn: int) -> FrameRanges:
    """Return the free blocks whose first page is here: (frame, pages)."""
    heads = np.flatnonzero(_of_type(_mapcounts(fields, records), fields.buddy))
    orders = _words(records[heads], fields.private)
    is_block = orders < np.uint64(MAX_ORDER)
    frames, orders = heads[is_block] + first_pfn, orders[is_block].astype(np.int64)
    lengths = np.minimum(np.int64(1) << orders, end_pfn - frames)
    return FrameRanges(frames, lengths)


def _of_type(mapcounts: NDArray[np.uint32], value: int) -> BoolArray:
    """Return which `_mapcount`s are of a page type: the whole value, or the top byte where the value is one."""
    if value & (1 << TYPE_SHIFT) - 1:
        whole: BoolArray = mapcounts == np.uint32(value)
        return whole
    top: BoolArray = mapcounts >> np.uint32(TYPE_SHIFT) == np.uint32(value >> TYPE_SHIFT)
    return top


def _words(records: Bytes, place: int) -> NDArray[np.uint64]:
    return np.ascontiguousarray(records[:, place : place + 8]).view("<u8")[:, 0]


def _mapcounts(fields: _Fields, records: Bytes) -> NDArray[np.uint32]:
    return np.ascontiguousarray(records[:, fields.mapcount : fields.mapcount + 4]).view("<u4")[:, 0]


def _runs_of(mask: BoolArray, first_pfn: int) -> FrameRanges:
    return FrameRanges.of_pfns(np.flatnonzero(mask) + first_pfn)
