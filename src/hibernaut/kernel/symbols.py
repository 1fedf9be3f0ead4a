# SPDX-License-Identifier: GPL-2.0-or-later
"""Symbols of a kernel, read from its memory without debug information.

Symbols come from kallsyms; drgn reads it where `kallsyms_places` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from hibernaut.errors import FormatError, HibernautError, how_to_install
from hibernaut.kernel.kallsyms import MAX_SYMBOLS
from hibernaut.kernel.kallsyms_in_memory import kallsyms_places
from hibernaut.kernel.kernel_memory import KernelMemory
from hibernaut.kernel.layouts import HAND_WRITTEN, KERNEL_IMAGE_BYTES, StructureLayouts
from hibernaut.memory.declarations import START_KERNEL_MAP
from hibernaut.memory.page import PAGE_SHIFT, PAGE_SIZE
from hibernaut.swsusp.declarations import MAX_PFN

if TYPE_CHECKING:
    from typing import Any

    from hibernaut.memory.physical import PhysicalMemory

__all__ = ["KernelSymbol", "KernelSymbols", "SymbolicKernel", "kernel_symbols"]

MAX_SYMBOL_BYTES = 64 << 20
MAX_SYMBOL_READS = 8 << 20


class KernelSymbol(NamedTuple):
    """A symbol of the kernel image at its run-time address.

    Attributes:
        address: virtual address, KASLR offset included.
        size: bytes up to the next symbol; 0 for a symbol that shares its address with the next one.
    """

    address: int
    size: int


class KernelSymbols:
    """The kernel's symbols by name, static ones included.

    Attributes:
        program: drgn's `Program` on the same memory, for further use.
    """

    def __init__(self, program: Any, name: str | None = None) -> None:
        self.program = program
        self._name = name

    def __getitem__(self, symbol: str) -> KernelSymbol:
        """Return a symbol. Raises FormatError if there is none of that name, or several."""
        found = self.get(symbol)
        if found is None:
            raise FormatError(f"the kernel has no symbol {symbol}", source=self._name)
        return found

    def get(self, symbol: str) -> KernelSymbol | None:
        """Return a symbol, or None if there is none of that name; a global one hides static ones.

        Raises:
            FormatError: there are several static ones and no global one.
        """
        found = self.program.symbols(symbol)
        chosen = [one for one in found if one.binding.name == "GLOBAL"] or found
        if len(chosen) > 1:
            raise FormatError(f"the kernel has {len(chosen)} symbols named {symbol}", source=self._name)
        return KernelSymbol(chosen[0].address, chosen[0].size) if chosen else None


class SymbolicKernel(KernelMemory):
    """A kernel in physical memory, with its symbols.

    Arguments as for `KernelMemory`.

    Attributes:
        symbols: symbols by name.

    Raises:
        HibernautError: drgn is not installed.
        FormatError: as for `KernelMemory`; or kallsyms is damaged or absent.
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        vmcoreinfo: bytes | None = None,
        name: str | None = None,
        layouts: StructureLayouts = HAND_WRITTEN,
    ) -> None:
        super().__init__(memory, vmcoreinfo, name, layouts)
        self.symbols = KernelSymbols(_program(self), name)

    def u32_variable(self, symbol: str) -> int:
        """Return the value of a u32 variable. Raises FormatError."""
        return self.u32(self.symbols[symbol].address, symbol)

    def u64_variable(self, symbol: str) -> int:
        """Return the value of a u64 or pointer variable. Raises FormatError."""
        return self.u64(self.symbols[symbol].address, symbol)


def kernel_symbols(
    memory: PhysicalMemory, vmcoreinfo: bytes | None = None, *, name: str | None = None
) -> KernelSymbols:
    """Return the symbols of the kernel in a memory.

    Args:
        memory: physical memory of the machine; frames may be absent, as in an image.
        vmcoreinfo: text of VMCOREINFO; searched for in the memory if None.
        name: name of the source in messages.

    Raises:
        HibernautError: drgn is not installed.
        FormatError: there is no VMCOREINFO, or kallsyms is damaged or absent.
    """
    return SymbolicKernel(memory, vmcoreinfo, name).symbols


def _program(kernel: KernelMemory) -> Any:
    """Return drgn's view of the kernel, with kallsyms as its symbol finder."""
    try:
        import drgn
        from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms

        program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
        set_kernel = program.set_linux_kernel_custom
    except (ImportError, AttributeError):
        raise HibernautError(
            "drgn 0.1 or newer, which reads a kernel's symbols, is not installed",
            advice=f"try: {how_to_install('drgn')}",
        ) from None
    places = kallsyms_places(kernel)
    count = kernel.u32(places["num_syms"], "kallsyms_num_syms")
    if not 0 < count <= MAX_SYMBOLS:
        raise kernel.damaged(f"kallsyms_num_syms is {count}", f"1 to {MAX_SYMBOLS}")
    frames = _Reader(kernel.memory, 0)
    image = _Reader(kernel.memory, kernel.phys_base - START_KERNEL_MAP)
    try:
        set_kernel(_located(kernel, places), is_live=False)
        program.add_memory_segment(0, (MAX_PFN + 1) << PAGE_SHIFT, frames, physical=True)
        program.add_memory_segment(START_KERNEL_MAP, KERNEL_IMAGE_BYTES, image, physical=False)
        program.register_symbol_finder("kallsyms", load_vmlinux_kallsyms(program), enable_index=0)
    except HibernautError:  # raised by the memory in a callback
        raise
    except Exception as error:  # drgn's errors share no narrower base
        raise kernel.damaged(f"kallsyms cannot be read: {' '.join(str(error).split())}") from error
    for reader in (frames, image):
        reader.remove_limits()
    return program


def _located(kernel: KernelMemory, places: Mapping[str, int]) -> bytes:
    """Return the text of VMCOREINFO, with the location of kallsyms."""
    if "SYMBOL(kallsyms_num_syms)" in kernel.facts:
        return kernel.vmcoreinfo
    lines = "".join(f"SYMBOL(kallsyms_{name})={place:x}\n" for name, place in places.items())
    return kernel.vmcoreinfo.rstrip(b"\0\n") + b"\n" + lines.encode()


class _Reader:
    """Callback through which drgn reads memory; `shift` is added to an address to make it physical.

    drgn reads kallsyms in hundreds of thousands of pieces of a few bytes, so the last page read is kept.
    """

    def __init__(self, memory: PhysicalMemory, shift: int) -> None:
        self._memory = memory
        self._shift = shift
        self._last = (-1, b"")
        self._reads: float = MAX_SYMBOL_READS
        self._bytes: float = MAX_SYMBOL_BYTES

    def remove_limits(self) -> None:
        """Let the caller decide how much is read: the limits bound damaged kallsyms only."""
        self._reads = self._bytes = float("inf")

    def __call__(self, address: int, count: int, _offset: int, _physical: bool) -> bytes:
        self._reads -= 1
        self._bytes -= count
        if self._reads < 0 or self._bytes < 0:
            raise ValueError("larger than in any kernel")
        paddr = address + self._shift
        pfn, within = paddr >> PAGE_SHIFT, paddr & (PAGE_SIZE - 1)
        if within + count > PAGE_SIZE:
            return self._read(paddr, count)
        last, page = self._last  # one attribute: another thread replaces number and bytes together
        if pfn != last:
            page = self._read(pfn << PAGE_SHIFT, PAGE_SIZE)
            self._last = pfn, page
        return page[within : within + count]

    def _read(self, paddr: int, count: int) -> bytes:
        import drgn

        found = self._memory.read(paddr, count) if paddr >= 0 else None
        if found is None:
            raise drgn.FaultError("not in memory", paddr % (1 << 64))
        return found
