# SPDX-License-Identifier: GPL-2.0-or-later
"""Symbols of a kernel, read from its memory without debug information, and its types, from its BTF."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from hibernaut.errors import FormatError
from hibernaut.kernel.btf import MAX_BTF_BYTES, Btf
from hibernaut.kernel.btf_layouts import BtfLayouts
from hibernaut.kernel.btf_parts import GrowingBtf
from hibernaut.kernel.kernel_memory import KernelMemory
from hibernaut.kernel.layouts import HAND_WRITTEN, StructureLayouts
from hibernaut.kernel.modules import LoadedModules
from hibernaut.kernel.read_limit import ReadLimit
from hibernaut.kernel.symbol_parts import symbols_on_demand
from hibernaut.kernel.symbol_table import KernelSymbols, read_symbol_table

if TYPE_CHECKING:
    from hibernaut.memory.physical import PhysicalMemory

__all__ = ["SymbolicKernel", "kernel_symbols"]


class SymbolicKernel(KernelMemory):
    """A kernel in physical memory, with its symbols and types.

    Arguments as for `KernelMemory`; without `layouts`, those of structures come from the kernel's BTF, and from
    `HAND_WRITTEN` where it has none. With `on_demand`, symbols and types are read as far as they are asked for: damage
    to the rest of them, a FormatError too, is met when it is read.

    Attributes:
        symbols: symbols by name.
        reads: bounds the reads of questions that drgn answers.

    Raises:
        FormatError: as for `KernelMemory`; or kallsyms is damaged or absent.
    """

    def __init__(
        self,
        memory: PhysicalMemory,
        vmcoreinfo: bytes | None = None,
        name: str | None = None,
        layouts: StructureLayouts | None = None,
        *,
        on_demand: bool = False,
    ) -> None:
        super().__init__(memory, vmcoreinfo, name, layouts or HAND_WRITTEN)
        self._on_demand = on_demand
        self.symbols = symbols_on_demand(self) if on_demand else KernelSymbols(read_symbol_table(self), name)
        self.reads = ReadLimit()
        if layouts is None:
            self.layouts = BtfLayouts(lambda: self.btf, HAND_WRITTEN)

    @cached_property
    def btf(self) -> Btf | None:
        """The kernel's own types; None if it has no BTF, or it is not in the memory, or damaged: see `btf_trouble`."""
        try:
            return self.read_btf()
        except FormatError as error:
            self.btf_trouble = error.complaint
            return None

    btf_trouble: str | None = None
    """Reason why there are no types."""

    def read_btf(self) -> Btf:
        """Return the kernel's own types (`__start_BTF` to `__stop_BTF`, scripts/link-vmlinux.sh).

        Raises:
            FormatError: it has no BTF (CONFIG_DEBUG_INFO_BTF), or that is not in the memory, or damaged.
        """
        start, stop = (self.symbols.get(symbol) for symbol in ("__start_BTF", "__stop_BTF"))
        if start is None or stop is None:
            raise self.damaged("the kernel has no BTF: it was built without CONFIG_DEBUG_INFO_BTF")
        size_bytes = stop.address - start.address
        if not 0 < size_bytes <= MAX_BTF_BYTES:
            raise self.damaged(f"the kernel's BTF has {size_bytes} bytes", f"1 to {MAX_BTF_BYTES}")
        if self._on_demand:
            return GrowingBtf(lambda at, count: self.read(start.address + at, count, "BTF"), size_bytes, self.name)
        return Btf(self.read(start.address, size_bytes, "BTF"), name=self.name)

    @cached_property
    def modules(self) -> LoadedModules:
        """The loaded modules by name, with their types and symbols; empty without BTF, by which they are read."""
        return LoadedModules(self, self.symbols, lambda: self.btf)

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
        FormatError: there is no VMCOREINFO, or kallsyms is damaged or absent.
    """
    return SymbolicKernel(memory, vmcoreinfo, name).symbols
