# SPDX-License-Identifier: GPL-2.0-or-later
"""The callbacks by which drgn finds types, objects and symbols of a kernel and of its modules, out of BTF and kallsyms.

drgn asks finders (`Program.register_type_finder`, `register_object_finder`, `register_symbol_finder`) and has none for
BTF.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from hibernaut.kernel.btf import Btf, BtfKind
from hibernaut.kernel.btf_for_drgn import DrgnTypes, declared_type, type_of_global
from hibernaut.kernel.globals import GLOBALS
from hibernaut.kernel.modules_for_drgn import TypesOfModules
from hibernaut.memory.declarations import START_KERNEL_MAP

if TYPE_CHECKING:
    from typing import Any

    from hibernaut.kernel.symbols import SymbolicKernel

__all__ = ["BtfFinders"]

BASES = {
    "vmemmap": ("vmemmap_base", "struct page *"),
    "PAGE_OFFSET": ("page_offset_base", "unsigned long"),
}
"""Macros whose value a variable holds (arch/x86/include/asm/page_64_types.h, pgtable_64_types.h) with
CONFIG_DYNAMIC_MEMORY_LAYOUT. drgn works them out from lines of VMCOREINFO that 5.10 lacks."""

MOST_PADDING = 8
"""Bytes by which the symbol of a structure may be longer than the structure, which are fewer."""


class BtfFinders:
    """Finders of types and objects.

    Args:
        program: drgn's `Program`.
        kernel: the kernel.
        btf: its types.
    """

    def __init__(self, program: Any, kernel: SymbolicKernel, btf: Btf) -> None:
        import drgn

        self._drgn = drgn
        self._program = program
        self._symbols = kernel.symbols
        self._btf = btf
        self._types = DrgnTypes(program, btf)
        self._kernel = kernel

    @cached_property
    def _of_modules(self) -> TypesOfModules:
        """Types of the modules, which are read when the kernel itself lacks a name."""
        return TypesOfModules(self._types, self._kernel.modules)

    def find_type(self, _program: Any, kinds: Any, name: str, filename: str | None) -> Any:
        """Return a type, None if there is none: see `Program.register_type_finder`. A file is a module's name.

        Raises:
            LookupError: modules differ in it, and none of them is named.
        """
        found = self._types.find(kinds, name) if not filename else None
        return found if found is not None else self._of_modules.find(kinds, name, filename)

    def find_object(self, _program: Any, name: str, flags: Any, filename: str | None) -> Any:
        """Return an object, None if there is none: see `Program.register_object_finder`. A file is a module's name.

        Raises:
            LookupError: modules differ in it, and none of them is named.
        """
        found = self._object_of_kernel(name, flags) if not filename else None
        if found is None and flags & self._drgn.FindObjectFlags.CONSTANT:
            found = self._of_modules.constant(name, filename)
        if found is None and flags & self._drgn.FindObjectFlags.FUNCTION:
            found = self._of_modules.function(name, filename)
        return found

    def _declared_structure(self, name: str) -> Any:
        """Return a structure that `GLOBALS` declares; None unless its size bears the declaration out.

        Then neither all enumerators nor all variables of the BTF are read to exclude that one of them has its name.
        """
        found = self._symbols.find_global(name) if name in GLOBALS else None
        if found is None or found[1].address < START_KERNEL_MAP:
            return None
        type_ = declared_type(self._types, name)
        if type_ is None or type_.kind != self._drgn.TypeKind.STRUCT or not type_.is_complete():
            return None
        padding = found[1].size - self._drgn.sizeof(type_)
        if not 0 <= padding < MOST_PADDING:
            return None
        return self._drgn.Object(self._program, type_, address=found[1].address)

    def _object_of_kernel(self, name: str, flags: Any) -> Any:
        wanted, types, make = self._drgn.FindObjectFlags, self._types, self._drgn.Object
        if flags & wanted.VARIABLE:
            structure = self._declared_structure(name)
            if structure is not None:
                return structure
        if flags & wanted.CONSTANT:
            base = BASES.get(name)
            symbol = self._symbols.get(base[0]) if base else None
            if base is not None and symbol is not None:
                return make(self._program, base[1], self._program.read_u64(symbol.address))
            constant = self._btf.find_enumerator(name)
            if constant is not None:
                return types.object(constant[0], value=constant[1])
        if flags & wanted.VARIABLE:
            type_ = type_of_global(types, name)
            symbol = self._symbols.get(name) if type_ is not None else None
            if symbol is not None:
                return make(self._program, type_, address=symbol.address)
        if flags & wanted.FUNCTION:
            for number in self._btf.find_each(name, BtfKind.FUNC):
                symbol = self._symbols.get(name)
                if symbol is not None:
                    return types.object(self._btf.target(number), address=symbol.address)
        return None
