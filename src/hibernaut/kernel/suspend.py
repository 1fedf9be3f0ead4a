# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel knows of its own hibernation, read out of its memory, without debug information.

Symbols come from kallsyms, which lies in memory as VMCOREINFO says (kernel/vmcore_info.c, since v6.0); drgn reads it.
Layouts that VMCOREINFO does not tell are declared here. Nothing that was read is trusted: every address is translated
by the kernel's own page tables, every count has a bound.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hibernaut.errors import FormatError, HibernautError
from hibernaut.memory.declarations import START_KERNEL_MAP
from hibernaut.memory.physical import PAGE_SHIFT, PAGE_SIZE
from hibernaut.memory.vmcoreinfo import find_vmcoreinfo, page_table_root, parse_vmcoreinfo
from hibernaut.paging.tables import PageTables, Stop
from hibernaut.swsusp.declarations import MAX_PFN
from hibernaut.swsusp.info import ImageInfo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Literal

    from hibernaut.memory.physical import Frames, PhysicalMemory
    from hibernaut.sources import Source

__all__ = [
    "KernelState",
    "KernelSymbol",
    "KernelSymbols",
    "MachineFacts",
    "PagesToSave",
    "kernel_state",
    "kernel_symbols",
    "machine_facts",
    "pages_to_save",
    "secret_users",
]

KERNEL_IMAGE_BYTES = 1 << 30
"""The address space that a kernel's image can take (KERNEL_IMAGE_SIZE, arch/x86/include/asm/page_64_types.h)."""
MOST_SYMBOLS = 1 << 20
"""Distributions' kernels have 100 to 250 thousand."""
MOST_SYMBOL_BYTES = 64 << 20
MOST_SYMBOL_READS = 8 << 20
MOST_NODES = 1 << 10
"""MAX_NUMNODES: CONFIG_NODES_SHIFT is at most 10 (arch/x86/Kconfig)."""

MOST_NODE_BYTES = 1 << 22
"""A `struct pglist_data` has some 170 KB."""
CR3_PCID_MASK = 0xFFF

E820_HEADER_BYTES = 4
E820_ENTRY_BYTES = 20
"""struct e820_entry, packed: u64 address, u64 size, u32 type (arch/x86/include/asm/e820/types.h)."""
MOST_E820_ENTRIES = 128 + 3 * MOST_NODES
"""E820_MAX_ENTRIES."""

ZONE_LEAVES = 32
ZONE_START_PFN = 48
ZONE_END_PFN = 56
"""struct mem_zone_bm_rtree (kernel/power/snapshot.c, since v3.18), one for each stretch of RAM, linked by its start."""
ZONE_BYTES = 64

LEAF_DATA = 16
LEAF_BYTES = 24
"""struct rtree_node, linked by its start: a pointer to a page of bits follows."""
LEAF_PFNS = 8 * PAGE_SIZE
"""BM_BITS_PER_BLOCK: frames that a leaf has a bit for."""
MOST_ZONES = 5 * MOST_NODES
"""Extents are made of populated zones: a node has at most DMA, DMA32, NORMAL, MOVABLE and DEVICE."""


@dataclass(frozen=True)
class MachineFacts:
    """What a kernel that resumes an image compares with the machine that it finds itself on.

    Attributes:
        release: of the kernel, as `uname -r` prints it.
        e820_checksum: CRC-32 of the firmware's memory map (`compute_e820_crc32`, arch/x86/power/hibernate.c).
        physical_pages: `get_num_physpages()`: present pages of all nodes.
    """

    release: str
    e820_checksum: int
    physical_pages: int


@dataclass(frozen=True, eq=False)
class KernelState:
    """What a kernel that was stopped in `swsusp_save` was about to write.

    Attributes:
        release: of the kernel, as `uname -r` prints it.
        levels: of paging, 4 or 5.
        pfns: the frames on its list of pages to save (`orig_bm`), int64, ascending.
        info: the info page that it would write, without the counts of an image: see `ImageInfo.with_pages`.
    """

    release: str
    levels: int
    pfns: Frames
    info: ImageInfo


@dataclass(frozen=True, eq=False)
class PagesToSave:
    """Which pages of a source to save, and who says so.

    Attributes:
        pages_from: `image`: the source is a hibernation image, which has a list and an info page. `kernel`: the kernel
            in it has them (`kernel`). `direct-map`: neither; the direct map says which frames there are.
        pfns: the frames to save, int64, ascending; None with `direct-map`.
        info: an info page for them; None with `direct-map`.
        kernel: with `kernel`, what it said.
        reason: with `direct-map`, why there is no better list.
    """

    pages_from: Literal["image", "kernel", "direct-map"]
    pfns: Frames | None = None
    info: ImageInfo | None = None
    kernel: KernelState | None = None
    reason: str | None = None


class KernelSymbol(NamedTuple):
    """A symbol of the kernel image, where it is at run time.

    Attributes:
        address: virtual address, what KASLR added included.
        size: bytes up to the next symbol; 0 for symbols that share an address with the next one.
    """

    address: int
    size: int


class KernelSymbols:
    """The kernel's symbols by name, static ones too.

    Attributes:
        program: drgn's `Program` on the same memory, for whoever wants more of it.
    """

    def __init__(self, program: Any, name: str | None = None) -> None:
        self.program = program
        self._name = name

    def __getitem__(self, symbol: str) -> KernelSymbol:
        """A symbol. Raises FormatError if the kernel has none of that name, or several."""
        found = self.get(symbol)
        if found is None:
            raise FormatError(f"the kernel has no symbol {symbol}", source=self._name)
        return found

    def get(self, symbol: str) -> KernelSymbol | None:
        """A symbol, None if there is none of that name; the global one if static ones share its name.

        Raises:
            FormatError: there are several static ones and no global one.
        """
        found = self.program.symbols(symbol)
        chosen = [one for one in found if one.binding.name == "GLOBAL"] or found
        if len(chosen) > 1:
            raise FormatError(f"the kernel has {len(chosen)} symbols named {symbol}", source=self._name)
        return KernelSymbol(chosen[0].address, chosen[0].size) if chosen else None


def kernel_symbols(
    memory: PhysicalMemory, vmcoreinfo: bytes | None = None, *, name: str | None = None
) -> KernelSymbols:
    """The symbols of the kernel in a memory.

    Args:
        memory: where the kernel is; frames may be missing, as in an image.
        vmcoreinfo: VMCOREINFO's text; looked for in the memory if not given.
        name: the file, for messages.

    Raises:
        HibernautError: drgn is not installed.
        FormatError: there is no VMCOREINFO, it does not say where kallsyms is (kernels before v6.0), or kallsyms is
            damaged or missing.
    """
    return _Kernel(memory, vmcoreinfo, name).symbols


def machine_facts(memory: PhysicalMemory, vmcoreinfo: bytes | None = None, *, name: str | None = None) -> MachineFacts:
    """What the kernel in a memory, be it hibernating or not, knows of its machine.

    Args and errors as for `kernel_symbols`; FormatError also if what was found contradicts itself.
    """
    kernel = _Kernel(memory, vmcoreinfo, name)
    return MachineFacts(kernel.release, _e820_checksum(kernel), _physical_pages(kernel))


def kernel_state(memory: PhysicalMemory, vmcoreinfo: bytes | None = None, *, name: str | None = None) -> KernelState:
    """The list of pages and the info page of a kernel that was stopped in the copy loop of `swsusp_save`.

    Args as for `kernel_symbols`.

    Raises:
        HibernautError: the kernel is not there, or drgn is not installed, or frames on the list are not in the memory.
        FormatError: as for `kernel_symbols`; or what was found contradicts itself.
    """
    kernel = _Kernel(memory, vmcoreinfo, name)
    _refuse_elsewhere(kernel)
    pfns = _listed(kernel)
    _refuse_unfinished(kernel, pfns)
    absent = pfns[~memory.ranges.contains(pfns)]
    if len(absent):
        raise HibernautError(
            f"{len(absent)} of the {len(pfns)} frames on the kernel's list are not in {name or 'memory'}, "
            f"the first is {int(absent[0]):#x}"
        )
    return KernelState(kernel.release, kernel.levels, pfns, _info(kernel))


def secret_users(memory: PhysicalMemory, vmcoreinfo: bytes | None = None) -> int | None:
    """How many files of secret memory are open (`secretmem_users`, mm/secretmem.c); None if that cannot be read.

    While there is one, the kernel refuses to hibernate (`hibernation_available`).
    """
    try:
        kernel = _Kernel(memory, vmcoreinfo, None)
        symbol = kernel.symbols.get("secretmem_users")
        return kernel.u32(symbol.address, "secretmem_users") if symbol else None
    except HibernautError:
        return None


def pages_to_save(source: Source) -> PagesToSave:
    """Which pages of a source to save: those that its image lists, its kernel lists, or its direct map speaks of.

    Never fails: what stands in the way of the kernel's own list is the answer's `reason`.
    """
    if source.image is not None:
        return PagesToSave("image", source.image.pfns, source.image.info)
    try:
        state = kernel_state(source.memory, source.vmcoreinfo, name=source.name)
    except HibernautError as error:
        return PagesToSave("direct-map", reason=str(error))
    return PagesToSave("kernel", state.pfns, state.info, state)


class _Kernel:
    """A kernel's memory by virtual address, and its symbols."""

    def __init__(self, memory: PhysicalMemory, vmcoreinfo: bytes | None, name: str | None) -> None:
        text = vmcoreinfo if vmcoreinfo is not None else find_vmcoreinfo(memory)
        if text is None:
            raise FormatError("no VMCOREINFO in memory: not a kernel's, or it lacks CONFIG_VMCORE_INFO", source=name)
        self.memory = memory
        self.name = name
        self.facts = parse_vmcoreinfo(text)
        root, levels = page_table_root(self.facts)
        if root is None or levels is None:
            raise FormatError("VMCOREINFO does not say where the kernel's page tables are", source=name)
        self.levels = levels
        self.tables = PageTables(memory, root, levels)
        self.phys_base = self.number("NUMBER(phys_base)")
        self.symbols = KernelSymbols(_program(self, text), name)

    @property
    def release(self) -> str:
        return self.facts.get("OSRELEASE", "")

    def number(self, key: str, base: int = 10) -> int:
        """A number in VMCOREINFO. Raises FormatError if it is not there."""
        try:
            return int(self.facts[key], base)
        except (KeyError, ValueError):
            raise self.damaged(f"VMCOREINFO has no {key}") from None

    def damaged(self, what: str, expected: str | None = None) -> FormatError:
        return FormatError(what, source=self.name, expected=expected)

    def image_paddr(self, vaddr: int) -> int:
        """`__pa_symbol`: the physical address of something in the kernel's image."""
        return vaddr - START_KERNEL_MAP + self.phys_base

    def read(self, vaddr: int, size_bytes: int, what: str) -> bytes:
        """Bytes at a virtual address, through the page tables.

        Raises:
            FormatError: they are not mapped, or not in the memory; the message has the address.
        """
        found = bytearray()
        while len(found) < size_bytes:
            at = vaddr + len(found)
            count = min(size_bytes - len(found), PAGE_SIZE - at % PAGE_SIZE)
            walk = self.tables.walk(at % (1 << 64))
            piece = self.memory.read(walk.paddr, count) if walk.paddr is not None else None
            if piece is None:
                why = f"frame {walk.pfn:#x} is not in memory" if walk.stop == Stop.PRESENT else str(walk.stop)
                raise self.damaged(f"{what}: nothing to read at {at:#x}: {why}")
            found += piece
        return bytes(found)

    def u32(self, vaddr: int, what: str) -> int:
        return int.from_bytes(self.read(vaddr, 4, what), "little")

    def u64(self, vaddr: int, what: str) -> int:
        return int.from_bytes(self.read(vaddr, 8, what), "little")


def _program(kernel: _Kernel, vmcoreinfo: bytes) -> Any:
    """The view that drgn has of the kernel, with kallsyms as its symbols."""
    try:
        import drgn
        from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms

        program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
        set_kernel = program.set_linux_kernel_custom
    except (ImportError, AttributeError):
        raise HibernautError(
            "reading a kernel's symbols needs drgn 0.1 or newer: pip install 'hibernaut[lab]' brings it"
        ) from None
    count_at = kernel.number("SYMBOL(kallsyms_num_syms)", 16)
    count = kernel.u32(count_at, "kallsyms_num_syms")
    if not 0 < count <= MOST_SYMBOLS:
        raise kernel.damaged(f"kallsyms_num_syms is {count}", f"1 to {MOST_SYMBOLS}")
    frames = _Reader(kernel.memory, 0)
    image = _Reader(kernel.memory, kernel.phys_base - START_KERNEL_MAP)
    try:
        set_kernel(vmcoreinfo, is_live=False)
        program.add_memory_segment(0, (MAX_PFN + 1) << PAGE_SHIFT, frames, physical=True)
        program.add_memory_segment(START_KERNEL_MAP, KERNEL_IMAGE_BYTES, image, physical=False)
        program.register_symbol_finder("kallsyms", load_vmlinux_kallsyms(program), enable_index=0)
    except HibernautError:  # of the memory, from within
        raise
    except Exception as error:  # drgn's own have no common base but this
        raise kernel.damaged(f"kallsyms cannot be read: {' '.join(str(error).split())}") from error
    for reader in (frames, image):
        reader.unlimited()
    return program


class _Reader:
    """What drgn calls to read memory: `shift` is added to an address to make it physical.

    Kallsyms is read in hundreds of thousands of pieces of few bytes: the page last read is kept.
    """

    def __init__(self, memory: PhysicalMemory, shift: int) -> None:
        self._memory = memory
        self._shift = shift
        self._pfn = -1
        self._page = b""
        self._reads: float = MOST_SYMBOL_READS
        self._bytes: float = MOST_SYMBOL_BYTES

    def unlimited(self) -> None:
        """Kallsyms was read: from here on it is the caller who says how much is read."""
        self._reads = self._bytes = float("inf")

    def __call__(self, address: int, count: int, _offset: int, _physical: bool) -> bytes:
        self._reads -= 1
        self._bytes -= count
        if self._reads < 0 or self._bytes < 0:
            raise ValueError("it is larger than any kernel's")
        paddr = address + self._shift
        pfn, within = paddr >> PAGE_SHIFT, paddr & (PAGE_SIZE - 1)
        if within + count > PAGE_SIZE:
            return self._whole(paddr, count)
        if pfn != self._pfn:
            self._page = self._whole(pfn << PAGE_SHIFT, PAGE_SIZE)
            self._pfn = pfn
        return self._page[within : within + count]

    def _whole(self, paddr: int, count: int) -> bytes:
        import drgn

        found = self._memory.read(paddr, count) if paddr >= 0 else None
        if found is None:
            raise drgn.FaultError("not in memory", paddr % (1 << 64))
        return found


def _e820_checksum(kernel: _Kernel) -> int:
    """`compute_e820_crc32(e820_table_firmware)`: CRC-32 of a u32 count and as many entries of 20 bytes."""
    what = "e820_table_firmware"
    table = kernel.u64(kernel.symbols[what].address, what)
    count = kernel.u32(table, what)
    if not 0 < count <= MOST_E820_ENTRIES:
        raise kernel.damaged(f"{what} has {count} entries", f"1 to {MOST_E820_ENTRIES}")
    return zlib.crc32(kernel.read(table, E820_HEADER_BYTES + count * E820_ENTRY_BYTES, what))


def _physical_pages(kernel: _Kernel) -> int:
    """`get_num_physpages()`: the sum of `node_present_pages` over all nodes that there are.

    In `struct pglist_data` (include/linux/mmzone.h) it stands between `node_start_pfn` and `node_spanned_pages`, whose
    offsets VMCOREINFO tells.
    """
    start = kernel.number("OFFSET(pglist_data.node_start_pfn)")
    if kernel.number("OFFSET(pglist_data.node_spanned_pages)") != start + 16:
        raise kernel.damaged(
            "struct pglist_data is not laid out as known: node_spanned_pages is not at node_start_pfn + 16"
        )
    pages = [kernel.u64(node + start + 8, "node_present_pages") for node in _nodes(kernel)]
    if not 0 < sum(pages) <= MAX_PFN:
        raise kernel.damaged(f"the machine has {sum(pages)} present pages", f"1 to {MAX_PFN}")
    return sum(pages)


def _nodes(kernel: _Kernel) -> list[int]:
    """Address of each node's `struct pglist_data`."""
    if "SYMBOL(node_data)" not in kernel.facts:  # without CONFIG_NUMA there is one, and no table of them
        return [kernel.number("SYMBOL(contig_page_data)", 16)]
    count = kernel.number("LENGTH(node_data)")
    if not 0 < count <= MOST_NODES:
        raise kernel.damaged(f"LENGTH(node_data) is {count}", f"1 to {MOST_NODES}")
    table = kernel.read(kernel.number("SYMBOL(node_data)", 16), 8 * count, "node_data")
    nodes = [int.from_bytes(table[at : at + 8], "little") for at in range(0, len(table), 8)]
    if any(0 < node < 1 << 63 or node >= (1 << 64) - MOST_NODE_BYTES for node in nodes):
        raise kernel.damaged("node_data has what is no address of the kernel's")
    return [node for node in nodes if node]


def _elsewhere(kernel: _Kernel, why: str) -> HibernautError:
    return HibernautError(f"the kernel in {kernel.name or 'memory'} is not in the middle of swsusp_save: {why}")


def _refuse_elsewhere(kernel: _Kernel) -> None:
    """The list is worth something only between its making and the end of the copy: later it may be a relic.

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
    if not kernel.u64(kernel.symbols["forbidden_pages_map"].address, "forbidden_pages_map"):
        raise _elsewhere(kernel, "it is not hibernating, and its list of pages is an old one")
    if not kernel.u32(kernel.symbols["in_suspend"].address, "in_suspend"):
        raise _elsewhere(kernel, "in_suspend is 0")
    if kernel.u32(kernel.symbols["nr_copy_pages"].address, "nr_copy_pages"):
        raise _elsewhere(kernel, "the copy is done already")


def _refuse_unfinished(kernel: _Kernel, pfns: Frames) -> None:
    """The list is made in ascending order: look for pages that every whole one has.

    Those are the kernel's `struct pglist_data`, which memblock put near the end of each node's RAM, and the root of its
    page tables. And the kernel has set aside a page for the copy of each (`copy_bm`).

    Raises:
        HibernautError: some are not on the list.
    """
    size = kernel.number("SIZE(pglist_data)")
    if not 0 < size <= MOST_NODE_BYTES:
        raise kernel.damaged(f"SIZE(pglist_data) is {size}", f"1 to {MOST_NODE_BYTES}")
    vaddrs = [at for node in _nodes(kernel) for at in range(node & -PAGE_SIZE, node + size, PAGE_SIZE)]
    found = kernel.tables.translate(np.array(vaddrs, dtype=np.uint64))
    if (found.reasons != Stop.PRESENT.code).any():
        raise kernel.damaged("the kernel's struct pglist_data is not mapped")
    must = np.append(found.pfns, kernel.tables.root_pfn)
    missing = must[~np.isin(must, pfns)]
    if len(missing):
        raise _elsewhere(kernel, f"its list of pages is not finished, frame {int(missing[0]):#x} is not on it")
    copies = sum(len(some) for some in _bitmap(kernel, "copy_bm"))
    if copies < len(pfns):
        raise kernel.damaged(f"{len(pfns)} pages are on the kernel's list but it has set {copies} aside for copies")


def _listed(kernel: _Kernel) -> Frames:
    """The kernel's list of pages to save, int64, ascending. Raises as `_bitmap`; HibernautError if it is empty."""
    found: list[Frames] = []
    room = kernel.memory.ranges.total_pages
    for some in _bitmap(kernel, "orig_bm"):
        room -= len(some)
        if room < 0:
            raise kernel.damaged("the kernel's list has more pages than memory")
        found.append(some)
    if not any(map(len, found)):
        raise _elsewhere(kernel, "its list of pages is empty")
    return np.concatenate(found)


def _bitmap(kernel: _Kernel, what: str) -> Iterator[Frames]:
    """The frames whose bits are set in a `struct memory_bitmap`, int64, ascending, leaf by leaf.

    It is the head of a list of zones; each has a list of leaves, in ascending order and without gaps.

    Raises:
        FormatError: lists, bounds and bits contradict each other.
    """
    end = 0
    room = kernel.memory.ranges.total_pages  # a leaf has a page of its own
    for zone, record in _list(kernel, kernel.symbols[what].address, MOST_ZONES, ZONE_BYTES, f"{what}'s zones"):
        start, previous, end = _u64(record, ZONE_START_PFN), end, _u64(record, ZONE_END_PFN)
        if not previous <= start < end <= MAX_PFN + 1:
            raise kernel.damaged(f"{what}: a zone has the frames {start:#x} to {end:#x}, after {previous:#x}")
        count = -(-(end - start) // LEAF_PFNS)
        room -= count
        if room < 0:
            raise kernel.damaged(f"{what}: it has more pages of bits than memory has pages")
        leaves = 0
        for _, leaf in _list(kernel, zone + ZONE_LEAVES, count, LEAF_BYTES, f"{what}'s leaves"):
            bits = np.frombuffer(kernel.read(_u64(leaf, LEAF_DATA), PAGE_SIZE, f"{what}'s bits"), dtype=np.uint8)
            pfns = np.flatnonzero(np.unpackbits(bits, bitorder="little")) + (start + leaves * LEAF_PFNS)
            if len(pfns) and pfns[-1] >= end:
                raise kernel.damaged(f"{what}: frame {int(pfns[-1]):#x} is set in a zone that ends at {end:#x}")
            yield pfns
            leaves += 1
        if leaves != count:
            raise kernel.damaged(f"{what}: a zone has {leaves} leaves", str(count))


def _list(kernel: _Kernel, head: int, most: int, size_bytes: int, what: str) -> Iterator[tuple[int, bytes]]:
    """A `struct list_head`'s members, which start with their links: each one's address and first bytes.

    Raises:
        FormatError: it has more than `most` members, or a link back does not lead where the link forth came from.
    """
    before = head
    at = kernel.u64(head, what)
    while at != head:
        most -= 1
        if most < 0:
            raise kernel.damaged(f"{what}: the list has no end")
        record = kernel.read(at, size_bytes, what)
        if _u64(record, 8) != before:
            raise kernel.damaged(f"{what}: the list is broken at {at:#x}")
        yield at, record
        before, at = at, _u64(record, 0)


def _u64(record: bytes, at: int) -> int:
    return int.from_bytes(record[at : at + 8], "little")


def _info(kernel: _Kernel) -> ImageInfo:
    """What `arch_hibernation_header_save` (arch/x86/power/hibernate.c) and `init_header` would write.

    Raises:
        FormatError: the tables that `restore_cr3` names do not map the restore entry where it is.
    """
    entry = kernel.symbols["restore_registers"].address
    cr3 = kernel.u64(kernel.symbols["restore_cr3"].address, "restore_cr3") & ~CR3_PCID_MASK
    paddr = kernel.image_paddr(entry)
    mapped = PageTables(kernel.memory, cr3, kernel.levels).walk(entry).paddr
    if mapped != paddr:
        where = "nowhere" if mapped is None else f"to {mapped:#x}"
        raise kernel.damaged(f"the tables at restore_cr3, {cr3:#x}, map restore_registers {where}", f"{paddr:#x}")
    return ImageInfo.of_machine(
        cr3=cr3,
        physical_pages=_physical_pages(kernel),
        jump_address=entry,
        jump_address_phys=paddr,
        e820_checksum=_e820_checksum(kernel),
    )
