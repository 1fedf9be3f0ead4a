"""What a kernel knows of its own hibernation, read out of its memory, without debug information.

Symbols come from kallsyms, which lies in memory as VMCOREINFO says (kernel/vmcore_info.c, since v6.0); drgn reads it.
Layouts that VMCOREINFO does not tell are declared here. Nothing that was read is trusted: every address is translated
by the kernel's own page tables, every count has a bound.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from hibernaut.errors import FormatError, HibernautError
from hibernaut.memory.declarations import START_KERNEL_MAP
from hibernaut.memory.physical import PAGE_SHIFT, PAGE_SIZE
from hibernaut.memory.vmcoreinfo import find_vmcoreinfo, page_table_root, parse_vmcoreinfo
from hibernaut.paging.tables import PageTables, Stop
from hibernaut.swsusp.declarations import MAX_PFN

if TYPE_CHECKING:
    from typing import Any

    from hibernaut.memory.physical import PhysicalMemory

__all__ = ["KernelSymbol", "KernelSymbols", "MachineFacts", "kernel_symbols", "machine_facts"]

KERNEL_IMAGE_BYTES = 1 << 30
"""The address space that a kernel's image can take (KERNEL_IMAGE_SIZE, arch/x86/include/asm/page_64_types.h)."""
MOST_SYMBOLS = 1 << 20
"""Distributions' kernels have 100 to 250 thousand."""
MOST_SYMBOL_BYTES = 64 << 20
MOST_SYMBOL_READS = 8 << 20
MOST_NODES = 1 << 10
"""MAX_NUMNODES: CONFIG_NODES_SHIFT is at most 10 (arch/x86/Kconfig)."""

E820_HEADER_BYTES = 4
E820_ENTRY_BYTES = 20
"""struct e820_entry, packed: u64 address, u64 size, u32 type (arch/x86/include/asm/e820/types.h)."""
MOST_E820_ENTRIES = 128 + 3 * MOST_NODES
"""E820_MAX_ENTRIES."""


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
        """A symbol, None if there is none of that name. Raises FormatError if there are several."""
        found = {KernelSymbol(one.address, one.size) for one in self.program.symbols(symbol)}
        if len(found) > 1:
            raise FormatError(f"the kernel has {len(found)} symbols named {symbol}", source=self._name)
        return found.pop() if found else None


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
        program.set_linux_kernel_custom(vmcoreinfo, is_live=False)
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
    program.add_memory_segment(0, (MAX_PFN + 1) << PAGE_SHIFT, frames, physical=True)
    program.add_memory_segment(START_KERNEL_MAP, KERNEL_IMAGE_BYTES, image, physical=False)
    try:
        index = load_vmlinux_kallsyms(program)
        program.register_symbol_finder("kallsyms", index, enable_index=0)
    except Exception as error:  # drgn's own errors have no common base but this
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
    return [node for node in nodes if node]
