# SPDX-License-Identifier: GPL-2.0-or-later
"""The state of a kernel that was stopped while it hibernates: its list of pages to save and its info page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.errors import HibernautError
from hibernaut.kernel.facts import compute_e820_crc32, get_num_physpages, node_addresses
from hibernaut.kernel.kernel_memory import u64_at
from hibernaut.kernel.layouts import BITS_PER_LEAF, MAX_NODE_BYTES, MAX_ZONES
from hibernaut.kernel.symbols import SymbolicKernel
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.paging.tables import PageTables, Stop
from hibernaut.swsusp.declarations import MAX_PFN
from hibernaut.swsusp.info import ImageInfo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Literal

    from hibernaut.memory.page import Pfns
    from hibernaut.memory.physical import PhysicalMemory
    from hibernaut.sources import Source

__all__ = [
    "KernelState",
    "PagesToSave",
    "bitmap_pfns",
    "kernel_state",
    "open_secret_memory",
    "pages_to_save",
    "secret_users",
]

CR3_PCID_MASK = 0xFFF


@dataclass(frozen=True, eq=False)
class KernelState:
    """The image that a kernel stopped in `swsusp_save` is about to write.

    Attributes:
        release: kernel release, as `uname -r` prints it.
        levels: levels of paging, 4 or 5.
        pfns: frames on its list of pages to save (`orig_bm`), int64, ascending.
        info: the info page that it would write, without the counts of an image: see `ImageInfo.with_pages`.
    """

    release: str
    levels: int
    pfns: Pfns
    info: ImageInfo


@dataclass(frozen=True, eq=False)
class PagesToSave:
    """The pages of a source to save, and where that list comes from.

    Attributes:
        pages_from: `image`: the source is a hibernation image, which has a list and an info page. `kernel`: the kernel
            in the source has both. `direct-map`: neither has; the direct map names the frames.
        pfns: frames to save, int64, ascending; None with `direct-map`.
        info: info page for them; None with `direct-map`, and for a damaged image that has lost its own.
        kernel: the kernel's state; None unless `pages_from` is `kernel`.
        reason: why there is no better list; None unless `pages_from` is `direct-map`.
    """

    pages_from: Literal["image", "kernel", "direct-map"]
    pfns: Pfns | None = None
    info: ImageInfo | None = None
    kernel: KernelState | None = None
    reason: str | None = None


def kernel_state(memory: PhysicalMemory, vmcoreinfo: bytes | None = None, *, name: str | None = None) -> KernelState:
    """Return the list of pages and the info page of a kernel that was stopped in the copy loop of `swsusp_save`.

    Arguments as for `kernel_symbols`.

    Raises:
        HibernautError: the kernel is elsewhere, or listed frames are not in the memory.
        FormatError: as for `kernel_symbols`; or the kernel's data contradicts itself.
    """
    kernel = SymbolicKernel(memory, vmcoreinfo, name)
    _refuse_elsewhere(kernel)
    pfns = _listed_pfns(kernel)
    _refuse_unfinished(kernel, pfns)
    absent = pfns[~memory.ranges.contains(pfns)]
    if len(absent):
        raise HibernautError(
            f"{len(absent)} of the {len(pfns)} frames on the kernel's list are not in {name or 'memory'}, "
            f"the first is {int(absent[0]):#x}"
        )
    return KernelState(kernel.release, kernel.levels, pfns, _info(kernel))


def secret_users(memory: PhysicalMemory, vmcoreinfo: bytes | None = None) -> int | None:
    """Return how many files of secret memory are open (`secretmem_users`, mm/secretmem.c), None if unreadable.

    While there is one, the kernel refuses to hibernate (`hibernation_available`).
    """
    try:
        return open_secret_memory(SymbolicKernel(memory, vmcoreinfo))
    except HibernautError:
        return None


def open_secret_memory(kernel: SymbolicKernel) -> int | None:
    """Return `secretmem_users` of a kernel, see `secret_users`; None if it has none. Raises FormatError."""
    return kernel.u32_variable("secretmem_users") if kernel.symbols.get("secretmem_users") else None


def pages_to_save(source: Source) -> PagesToSave:
    """Return the pages of a source to save: those its image lists, its kernel lists, or its direct map covers.

    Of a damaged or used-up image, those listed that can be read. Never raises: the obstacle to the kernel's own list is
    the `reason` of the result.
    """
    image = source.any_image
    if image is not None:
        return PagesToSave("image", image.pfns, image.info)
    try:
        state = kernel_state(source.memory, source.vmcoreinfo, name=source.name)
    except HibernautError as error:
        return PagesToSave("direct-map", reason=str(error))
    return PagesToSave("kernel", state.pfns, state.info, state)


def _elsewhere(kernel: SymbolicKernel, why: str) -> HibernautError:
    return HibernautError(f"the kernel in {kernel.name or 'memory'} is not in the middle of swsusp_save: {why}")


def _refuse_elsewhere(kernel: SymbolicKernel) -> None:
    """Refuse a kernel outside the copy loop: its list is valid only from its making to the end of the copy.

    `create_image` (kernel/power/hibernate.c) sets `in_suspend` right before `swsusp_arch_suspend`, which calls
    `swsusp_save`; that sets `nr_copy_pages` when the copy is done, and `swsusp_free` clears it.
    `create_basic_memory_bitmaps` sets `forbidden_pages_map` for as long as hibernation takes.

    Raises:
        HibernautError: the kernel is elsewhere.
        FormatError: there is no such variable.
    """
    head = kernel.symbols["orig_bm"].address
    if kernel.u64(head, "orig_bm") in (0, head):
        raise _elsewhere(kernel, "its list of pages is empty")
    if not kernel.u64_variable("forbidden_pages_map"):
        raise _elsewhere(kernel, "it is not hibernating, and its list of pages is an old one")
    if not kernel.u32_variable("in_suspend"):
        raise _elsewhere(kernel, "in_suspend is 0")
    if kernel.u32_variable("nr_copy_pages"):
        raise _elsewhere(kernel, "the copy is already done")


def _refuse_unfinished(kernel: SymbolicKernel, pfns: Pfns) -> None:
    """Refuse a list that is still being made, in ascending order: it lacks pages that every complete list has.

    Those are each `struct pglist_data`, which memblock allocates near the end of its node's RAM, and the root of the
    page tables. The kernel has also set aside a page for the copy of each (`copy_bm`).

    Raises:
        HibernautError: such pages are not on the list.
        FormatError: the nodes cannot be read, or `copy_bm` is smaller than the list.
    """
    size = kernel.number("SIZE(pglist_data)")
    if not 0 < size <= MAX_NODE_BYTES:
        raise kernel.damaged(f"SIZE(pglist_data) is {size}", f"1 to {MAX_NODE_BYTES}")
    vaddrs = [at for node in node_addresses(kernel) for at in range(node & -PAGE_SIZE, node + size, PAGE_SIZE)]
    found = kernel.tables.translate(np.array(vaddrs, dtype=np.uint64))
    if (found.reasons != Stop.PRESENT.code).any():
        raise kernel.damaged("the kernel's struct pglist_data is not mapped")
    must = np.append(found.pfns, kernel.tables.root_pfn)
    missing = must[~np.isin(must, pfns)]
    if len(missing):
        raise _elsewhere(kernel, f"its list of pages is not finished, frame {int(missing[0]):#x} is not on it")
    copies = sum(len(some) for some in bitmap_pfns(kernel, "copy_bm"))
    if copies < len(pfns):
        raise kernel.damaged(f"the kernel's list has {len(pfns)} pages, but {copies} are set aside for their copies")


def _listed_pfns(kernel: SymbolicKernel) -> Pfns:
    """Return the kernel's list of pages to save, int64, ascending.

    Raises:
        HibernautError: it is empty.
        FormatError: as `bitmap_pfns`, or it has more pages than memory.
    """
    found: list[Pfns] = []
    remaining = kernel.memory.ranges.total_pages
    for some in bitmap_pfns(kernel, "orig_bm"):
        remaining -= len(some)
        if remaining < 0:
            raise kernel.damaged("the kernel's list has more pages than memory")
        found.append(some)
    if not any(map(len, found)):
        raise _elsewhere(kernel, "its list of pages is empty")
    return np.concatenate(found)


def bitmap_pfns(kernel: SymbolicKernel, symbol: str) -> Iterator[Pfns]:
    """Yield the frames whose bits are set in a `struct memory_bitmap`, int64, ascending, leaf by leaf.

    The structure is the head of a list of zones; each zone has a list of leaves, in ascending order without gaps.

    Raises:
        FormatError: lists, bounds and bits contradict each other.
    """
    zone_layout, leaf_layout = (kernel.layouts.structure(tag) for tag in ("mem_zone_bm_rtree", "rtree_node"))
    end = 0
    remaining = kernel.memory.ranges.total_pages  # each leaf occupies a page
    head = kernel.symbols[symbol].address
    for zone, record in kernel.list_entries(
        head, MAX_ZONES, zone_layout.size_bytes, f"{symbol}'s zones", zone_layout.offsets["list"]
    ):
        previous_end = end
        start, end = (u64_at(record, zone_layout.offsets[member]) for member in ("start_pfn", "end_pfn"))
        if not previous_end <= start < end <= MAX_PFN + 1:
            raise kernel.damaged(f"{symbol}: a zone has the frames {start:#x} to {end:#x}, after {previous_end:#x}")
        count = -(-(end - start) // BITS_PER_LEAF)
        remaining -= count
        if remaining < 0:
            raise kernel.damaged(f"{symbol}: it has more pages of bits than memory has pages")
        leaves = 0
        head_of_leaves = zone + zone_layout.offsets["leaves"]
        links_at = leaf_layout.offsets["list"]
        for _, leaf in kernel.list_entries(
            head_of_leaves, count, leaf_layout.size_bytes, f"{symbol}'s leaves", links_at
        ):
            page = kernel.read(u64_at(leaf, leaf_layout.offsets["data"]), PAGE_SIZE, f"{symbol}'s bits")
            bits = np.unpackbits(np.frombuffer(page, dtype=np.uint8), bitorder="little")
            pfns = np.flatnonzero(bits) + (start + leaves * BITS_PER_LEAF)
            if len(pfns) and pfns[-1] >= end:
                raise kernel.damaged(f"{symbol}: frame {int(pfns[-1]):#x} is set in a zone that ends at {end:#x}")
            yield pfns
            leaves += 1
        if leaves != count:
            raise kernel.damaged(f"{symbol}: a zone has {leaves} leaves", str(count))


def _info(kernel: SymbolicKernel) -> ImageInfo:
    """Return the info page that `arch_hibernation_header_save` (arch/x86/power/hibernate.c) and `init_header` write.

    Raises:
        FormatError: the tables at `restore_cr3` do not map the restore entry to its place in the kernel image.
    """
    entry = kernel.symbols["restore_registers"].address
    cr3 = kernel.u64_variable("restore_cr3") & ~CR3_PCID_MASK
    paddr = kernel.image_paddr(entry)
    mapped = PageTables(kernel.memory, cr3, kernel.levels, kernel.encryption).walk(entry).paddr
    if mapped != paddr:
        where = "nowhere" if mapped is None else f"to {mapped:#x}"
        raise kernel.damaged(f"the tables at restore_cr3, {cr3:#x}, map restore_registers {where}", f"{paddr:#x}")
    return ImageInfo.of_machine(
        cr3=cr3,
        physical_pages=get_num_physpages(kernel),
        jump_address=entry,
        jump_address_phys=paddr,
        e820_checksum=compute_e820_crc32(kernel),
    )
