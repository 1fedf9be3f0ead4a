# SPDX-License-Identifier: GPL-2.0-or-later
"""drgn's symbols out of the kallsyms of a kernel and of its modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hibernaut.kernel.symbol_table import KernelSymbol
from hibernaut.memory.declarations import START_KERNEL_MAP

if TYPE_CHECKING:
    from typing import Any

    from hibernaut.kernel.symbol_table import SymbolTable
    from hibernaut.kernel.symbols import SymbolicKernel

__all__ = ["symbol_finder"]


def symbol_finder(kernel: SymbolicKernel) -> Callable[[Any, str | None, int | None, bool], list[Any]]:
    """Return a callback that finds symbols by name or by address, as `Program.register_symbol_finder` wants it.

    Symbols of modules are read when the kernel itself has none, or all are asked for.
    """
    import drgn

    def symbol(table: SymbolTable, row: int) -> Any:
        return made(table.name(row), table.letter(row), KernelSymbol(int(table.addresses[row]), table.size_bytes(row)))

    def made(name: str, letter: str, place: KernelSymbol) -> Any:
        binding = drgn.SymbolBinding.LOCAL
        if letter in "vVwW":
            binding = drgn.SymbolBinding.WEAK
        elif letter.isupper():
            binding = drgn.SymbolBinding.GLOBAL
        kind = drgn.SymbolKind.FUNC if letter in "tT" else drgn.SymbolKind.OBJECT
        return drgn.Symbol(name, place.address, place.size, binding, kind)

    def find(_program: Any, name: str | None, address: int | None, one: bool) -> list[Any]:
        known = kernel.symbols.find_global(name) if one and name is not None else None
        if known is not None:
            return [made(str(name), *known)]
        found: list[Any] = []
        for is_module in (False, True):
            table = kernel.modules.symbols if is_module else kernel.symbols.table
            if name is not None:
                rows = sorted(table.rows(name), key=lambda row: not table.is_global(row))
            elif address is not None:
                rows = _rows_at(table, address)
            else:
                rows = list(range(len(table)))
            found += [symbol(table, row) for row in (rows[:1] if one else rows)]
            if found and (one or address is not None):
                break
        return found

    return find


def _rows_at(table: SymbolTable, address: int) -> list[int]:
    """Return the row of the symbol that an address lies in; of kernel and modules only, not of per-CPU offsets."""
    row = table.row_at(address)
    if row is None or int(table.addresses[row]) < START_KERNEL_MAP:
        return []
    return [row] if address < int(table.addresses[row]) + max(1, table.size_bytes(row)) else []
