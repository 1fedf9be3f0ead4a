# SPDX-License-Identifier: GPL-2.0-or-later
"""Single symbols of a kernel, for which a small part of kallsyms is read.

`kallsyms_markers` has the place of each 256th name, and the symbols lie by ascending address (`sort_symbols`,
scripts/kallsyms.c), so that a group of 256 is read alone, and found by an address near by. The symbol of a name that
is global is the only global one of that name, since the kernel is linked once. One that is static, or absent, is known
only when all of kallsyms is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from hibernaut.errors import FormatError
from hibernaut.kernel.kallsyms import MARKER_SYMBOLS, MAX_PADDING, end_of_names, expand_names
from hibernaut.kernel.kallsyms_in_memory import kallsyms_places
from hibernaut.kernel.kernel_memory import KernelMemory
from hibernaut.kernel.symbol_table import (
    KernelSymbol,
    KernelSymbols,
    SymbolTable,
    addresses_of,
    number_of_symbols,
    read_symbol_table,
    tokens_of,
)
from hibernaut.memory.vmcoreinfo import MUST_HAVE

__all__ = ["PartlyReadSymbols", "symbols_on_demand"]

FIRST_GROUPS = 8
"""Groups at the start in which `_stext` lies: per-CPU symbols, some 400 up to 6.14, stand before it."""
MOST_DISTANCE = 64
"""Groups that are searched to either side of the start of the kernel's data; then it is faster to read the whole."""
FEW_ROWS = 64
"""Addresses that are read at a time in search of the next higher one."""
MOST_ALIASES = 1 << 12
"""Most symbols of one address that are passed in search of the next one."""


class PartlyReadSymbols(KernelSymbols):
    """Symbols by name, read where they lie; all of kallsyms is read when the parts that are searched do not answer.

    Args:
        kernel: the kernel.

    Raises:
        FormatError, ValueError: kallsyms has no such parts, or they contradict VMCOREINFO.
    """

    def __init__(self, kernel: KernelMemory) -> None:
        self._kernel = kernel
        self._name = kernel.name
        self._parts: _Parts | None = _Parts(kernel)
        self._whole: SymbolTable | FormatError | None = None

    @property
    def table(self) -> SymbolTable:
        """All symbols. Raises FormatError as `read_symbol_table`, which is asked once."""
        if self._whole is None:
            try:
                self._whole = read_symbol_table(self._kernel)
            except FormatError as error:
                self._whole = error
        if isinstance(self._whole, FormatError):
            raise self._whole
        return self._whole

    def find_global(self, symbol: str) -> tuple[str, KernelSymbol] | None:
        """See `KernelSymbols.find_global`."""
        found = self._in_parts(symbol, _Parts.groups)
        return super().find_global(symbol) if found is None else found

    def near(self, symbol: str, address: int | None = None) -> KernelSymbol | None:
        """See `KernelSymbols.near`; near are the symbols of the group in which the address lies."""
        found = self._in_parts(symbol, lambda parts: parts.groups_near(address))
        return None if found is None else found[1]

    def _in_parts(self, symbol: str, groups: Callable[[_Parts], Iterator[int]]) -> tuple[str, KernelSymbol] | None:
        if self._parts is None or isinstance(self._whole, SymbolTable):
            return None
        try:
            return self._parts.find_global(symbol, groups(self._parts))
        except ValueError:
            self._parts = None
            return None


def symbols_on_demand(kernel: KernelMemory) -> KernelSymbols:
    """Return the symbols of a kernel, read in parts if VMCOREINFO says where they are; all at once otherwise.

    Raises:
        FormatError: kallsyms is absent or damaged.
    """
    if "SYMBOL(kallsyms_num_syms)" in kernel.facts:
        try:
            return PartlyReadSymbols(kernel)
        except ValueError:
            pass
    return KernelSymbols(read_symbol_table(kernel), kernel.name)


class _Parts:
    """The groups of kallsyms. Every contradiction is a ValueError, which FormatError is as well."""

    def __init__(self, kernel: KernelMemory) -> None:
        self._kernel = kernel
        self._places = kallsyms_places(kernel)
        self._count = number_of_symbols(kernel, self._places)
        self._tokens = tokens_of(kernel, self._places)
        self._read: dict[int, SymbolTable] = {}
        self._bounds = self._group_bounds()
        self._way = self._way_of_addresses()

    def find_global(self, symbol: str, groups: Iterator[int]) -> tuple[str, KernelSymbol] | None:
        """Return nm's letter and the place of a global symbol in some groups; None if it is in none of them."""
        for group in groups:
            table = self._group(group)
            row = next((row for row in table.rows(symbol) if table.is_global(row)), None)
            if row is not None:
                return table.letter(row), self._place(group * MARKER_SYMBOLS + row)
        return None

    def groups_near(self, address: int | None) -> Iterator[int]:
        """Yield the groups that are read, and the one in which an address lies."""
        yield from list(self._read)
        if address is not None:
            yield self._row_at(address) // MARKER_SYMBOLS

    def groups(self) -> Iterator[int]:
        """Yield the groups that are read, then those around the start of the kernel's data, to both sides.

        The BTF lies before it, `init_task` at it, the structures of the kernel's core behind it.
        """
        yield from list(self._read)
        middle = self._row_at(self._kernel.number(MUST_HAVE, 16)) // MARKER_SYMBOLS
        for distance in range(MOST_DISTANCE):
            for group in dict.fromkeys((middle + distance, middle - distance)):
                if 0 <= group < len(self._bounds) - 1:
                    yield group

    def _group(self, number: int) -> SymbolTable:
        """Return the names of a group. Its addresses are not those of the symbols."""
        if number not in self._read:
            count = min(MARKER_SYMBOLS, self._count - number * MARKER_SYMBOLS)
            start, end = int(self._bounds[number]), int(self._bounds[number + 1])
            packed = self._kernel.read(self._places["names"] + start, end - start, "kallsyms_names")
            rest = packed[end_of_names(packed, count) :]
            padding = MAX_PADDING - 1 if number == len(self._bounds) - 2 else 0
            if len(rest) > padding or any(rest):
                raise ValueError(f"group {number} of the names does not end where the next one begins")
            names = expand_names(packed, self._tokens, count)
            if names.count(b"\0") != count or b"\0\0" in names or names.endswith(b"\0"):
                raise ValueError("a symbol without a name")
            self._read[number] = SymbolTable(names, np.zeros(count, dtype=np.uint64))
        return self._read[number]

    def _group_bounds(self) -> npt.NDArray[np.int64]:
        """Return the byte in the names at which each group begins, and where the last one ends at most.

        The markers, u32 each, lie before the tokens. Since Linux kernel commit 60443c88f3a8 ("kallsyms: Improve the
        performance of kallsyms_lookup_name()") (in v6.2) `kallsyms_seqs_of_names`, three bytes a symbol, may lie
        between; each table is padded to 4 or 8 bytes. The first marker is 0.
        """
        groups = -(-self._count // MARKER_SYMBOLS)
        names, end = self._places["names"], self._places["token_table"]
        for behind in (0, 3 * self._count):
            for padding in range(-behind % 4, 2 * MAX_PADDING, 4):
                start = end - behind - padding - 4 * groups
                if start <= names:
                    break
                markers = np.frombuffer(self._kernel.read(start, 4 * groups, "kallsyms_markers"), dtype="<u4")
                bounds = np.append(markers.astype(np.int64), start - names)
                if bounds[0] == 0 and bool((bounds[1:] > bounds[:-1]).all()):
                    return bounds
        raise ValueError("the markers of the names are not behind them")

    def _way_of_addresses(self) -> int:
        """Return which of the ways to store addresses has `_stext` where VMCOREINFO has it."""
        said = self._kernel.number("SYMBOL(_stext)", 16)
        for group in range(min(FIRST_GROUPS, len(self._bounds) - 1)):
            for row in self._group(group).rows("_stext"):
                ways = addresses_of(self._kernel, self._places, group * MARKER_SYMBOLS + row, 1)
                for way, addresses in enumerate(ways):
                    if int(addresses[0]) == said:
                        return way
        raise ValueError("_stext is not among the first symbols")

    def _addresses(self, first: int, count: int) -> npt.NDArray[np.uint64]:
        return addresses_of(self._kernel, self._places, first, min(count, self._count - first))[self._way]

    def _place(self, row: int) -> KernelSymbol:
        """Return address and size of a symbol; the size as the kernel counts (`get_symbol_pos`, kernel/kallsyms.c)."""
        address = int(self._addresses(row, 1)[0])
        for first in range(row, min(row + MOST_ALIASES, self._count), FEW_ROWS):
            found = self._addresses(first, FEW_ROWS)
            above = found[found > address]
            if len(above):
                return KernelSymbol(address, int(above[0]) - address)
        if row + MOST_ALIASES < self._count:
            raise ValueError(f"{MOST_ALIASES} symbols have the address {address:#x}")
        return KernelSymbol(address, 0)

    def _row_at(self, address: int) -> int:
        """Return the row of the last symbol at or below an address; 0 if there is none.

        The start of the kernel's data, which is asked for first, lies at three quarters of the rows.
        """
        low, high = 0, self._count
        while high - low > 1:
            middle = (low + 3 * high) // 4
            if int(self._addresses(middle, 1)[0]) <= address:
                low = middle
            else:
                high = middle
        return low
