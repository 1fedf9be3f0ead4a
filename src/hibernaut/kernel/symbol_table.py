# SPDX-License-Identifier: GPL-2.0-or-later
"""All symbols of a kernel, names and addresses, as kallsyms in its memory has them.

An address is stored in one of three ways; the one is taken by which `_stext` and `swapper_pg_dir` come out where
VMCOREINFO has them:

- up to v6.14 with per-CPU symbols (CONFIG_KALLSYMS_ABSOLUTE_PERCPU): s32, as it is, or if negative counted from
  `kallsyms_relative_base` - 1 downwards.
- Since Linux kernel commit 01157ddc58dc ("kallsyms: Remove KALLSYMS_ABSOLUTE_PERCPU") (in v6.15), and before without
  per-CPU symbols: u32, counted from `kallsyms_relative_base`.
- where there is no such base (7.2 and 7.3): s32, counted from its own place (`offset_to_ptr`).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hibernaut.errors import FormatError
from hibernaut.kernel.kallsyms import MAX_SYMBOLS, TOKENS, decode_tokens, expand_names
from hibernaut.kernel.kallsyms_in_memory import kallsyms_places
from hibernaut.kernel.kernel_memory import KernelMemory

__all__ = [
    "Addresses",
    "KernelSymbol",
    "KernelSymbols",
    "SymbolTable",
    "addresses_of",
    "names_of",
    "number_of_symbols",
    "read_symbol_table",
    "tokens_of",
]

MAX_NAMES_BYTES = 64 << 20
MAX_TOKENS_BYTES = 1 << 16
KNOWN = ("_stext", "swapper_pg_dir")
"""Symbols whose addresses VMCOREINFO has."""

Addresses = npt.NDArray[np.uint64]


class SymbolTable:
    """The symbols of a kernel.

    Args:
        names: type letter and name of each, after a NUL, in the order of `addresses`.
        addresses: uint64, shape (n,): run-time addresses; offsets into a CPU's area for per-CPU variables.
        sizes: uint64, shape (n,): bytes of each, as a module's symbols have them; None if they are not known.
    """

    def __init__(self, names: bytes, addresses: Addresses, sizes: Addresses | None = None) -> None:
        self._names = names
        self.addresses = addresses
        self.sizes = sizes
        self._starts = np.flatnonzero(np.frombuffer(names, dtype=np.uint8) == 0) + 1

    def __len__(self) -> int:
        """Return the number of symbols."""
        return len(self.addresses)

    def __iter__(self) -> Iterator[tuple[str, str, int]]:
        """Yield type letter, name and address of each symbol, in the order of kallsyms."""
        for row, address in enumerate(self.addresses.tolist()):
            yield self.letter(row), self.name(row), address

    def rows(self, name: str) -> list[int]:
        """Return the row of each symbol of a name."""
        wanted = name.encode() + b"\0"
        found: list[int] = []
        if not len(self):
            return found
        at = self._names.find(wanted)
        while at >= 0:
            if at >= 2 and self._names[at - 2] == 0:
                found.append(int(np.searchsorted(self._starts, at - 1)))
            at = self._names.find(wanted, at + 1)
        if self._names.endswith(b"\0" + self._names[int(self._starts[-1]) : int(self._starts[-1]) + 1] + wanted[:-1]):
            found.append(len(self) - 1)
        return found

    def letter(self, row: int) -> str:
        """Return nm's letter of a symbol's type: a capital for a global one."""
        return chr(self._names[int(self._starts[row])])

    def name(self, row: int) -> str:
        """Return a symbol's name."""
        start = int(self._starts[row]) + 1
        end = self._names.find(b"\0", start)
        return self._names[start : end if end >= 0 else None].decode("utf-8", "backslashreplace")

    def is_global(self, row: int) -> bool:
        """Return whether a symbol is global."""
        return self.letter(row).isupper()

    def size_bytes(self, row: int) -> int:
        """Return a symbol's size.

        Where it is not known: the bytes up to the next higher address of a symbol, as the kernel counts
        (`get_symbol_pos`). That includes padding; the last symbol has 0.
        """
        if self.sizes is not None:
            return int(self.sizes[row])
        ordered = self._ordered
        after = int(np.searchsorted(ordered, self.addresses[row], side="right"))
        return int(ordered[after] - self.addresses[row]) if after < len(ordered) else 0

    def row_at(self, address: int) -> int | None:
        """Return the row of the last symbol at or below an address; None if all lie above."""
        found = int(np.searchsorted(self._ordered, np.uint64(address), side="right"))
        return int(self._order[found - 1]) if found else None

    @property
    def names(self) -> bytes:
        """Type letter and name of each, after a NUL."""
        return self._names

    @cached_property
    def _order(self) -> npt.NDArray[np.intp]:
        """Rows by ascending address."""
        return np.argsort(self.addresses, kind="stable")

    @cached_property
    def _ordered(self) -> Addresses:
        """Addresses, ascending."""
        return self.addresses[self._order]


class KernelSymbol(NamedTuple):
    """A symbol of the kernel image at its run-time address.

    Attributes:
        address: virtual address, KASLR offset included.
        size: bytes up to the next higher address of a symbol.
    """

    address: int
    size: int


class KernelSymbols:
    """The kernel's symbols by name, static ones included.

    Args:
        table: all symbols.
        name: name of the source in messages.
    """

    def __init__(self, table: SymbolTable, name: str | None = None) -> None:
        self._table = table
        self._name = name

    @property
    def table(self) -> SymbolTable:
        """All symbols."""
        return self._table

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
        known = self.find_global(symbol)
        if known is not None:
            return known[1]
        found = self.table.rows(symbol)
        chosen = [row for row in found if self.table.is_global(row)] or found
        if len({int(self.table.addresses[row]) for row in chosen}) > 1:
            raise FormatError(f"the kernel has {len(chosen)} symbols named {symbol}", source=self._name)
        if not chosen:
            return None
        return self._place(chosen[0])

    def find_global(self, symbol: str) -> tuple[str, KernelSymbol] | None:
        """Return nm's letter and the place of the one global symbol of a name; None if there is none, or several."""
        rows = [row for row in self.table.rows(symbol) if self.table.is_global(row)]
        if len({int(self.table.addresses[row]) for row in rows}) != 1:
            return None
        return self.table.letter(rows[0]), self._place(rows[0])

    def near(self, symbol: str, address: int | None = None) -> KernelSymbol | None:  # noqa: ARG002 - all are read
        """Return a global symbol if it is among the symbols read before, or near an address; else None."""
        found = self.find_global(symbol)
        return None if found is None else found[1]

    def _place(self, row: int) -> KernelSymbol:
        return KernelSymbol(int(self.table.addresses[row]), self.table.size_bytes(row))


def read_symbol_table(kernel: KernelMemory) -> SymbolTable:
    """Return the symbols of a kernel.

    Raises:
        FormatError: kallsyms is absent or damaged, or its addresses contradict VMCOREINFO.
    """
    places = kallsyms_places(kernel)
    names = names_of(kernel, places)
    count = names.count(b"\0")
    for addresses in addresses_of(kernel, places, 0, count):
        table = SymbolTable(names, addresses)
        if _agrees(table, kernel):
            return table
    raise kernel.damaged("the addresses of kallsyms are not those of VMCOREINFO")


def addresses_of(kernel: KernelMemory, places: dict[str, int], first: int, count: int) -> list[Addresses]:
    """Return the addresses of `count` symbols from row `first` on, by each of the ways to store them.

    Raises:
        FormatError: they cannot be read.
    """
    if "offsets" not in places:
        raise kernel.damaged("VMCOREINFO has no SYMBOL(kallsyms_offsets)")
    place = places["offsets"] + 4 * first
    offsets = np.frombuffer(kernel.read(place, 4 * count, "kallsyms_offsets"), dtype="<i4")
    base = kernel.u64(places["relative_base"], "kallsyms_relative_base") if "relative_base" in places else None
    return list(_readings(offsets, place, base))


def names_of(kernel: KernelMemory, places: dict[str, int]) -> bytes:
    """Return the names of a kernel's symbols as `expand_names` has them; `places` as `kallsyms_places` returns them.

    Raises:
        FormatError: kallsyms is damaged.
    """
    count = number_of_symbols(kernel, places)
    names_bytes = places["token_table"] - places["names"]
    try:
        tokens = tokens_of(kernel, places)
        expanded = expand_names(kernel.read(places["names"], names_bytes, "kallsyms_names"), tokens, count)
    except ValueError as error:
        if isinstance(error, FormatError):
            raise
        raise kernel.damaged(f"kallsyms is damaged: {error}") from None
    if expanded.count(b"\0") != count or b"\0\0" in expanded or expanded.endswith(b"\0"):
        raise kernel.damaged("kallsyms is damaged: a symbol without a name")
    return expanded


def number_of_symbols(kernel: KernelMemory, places: dict[str, int]) -> int:
    """Return `kallsyms_num_syms`. Raises FormatError if it cannot be read or is out of bounds."""
    count = kernel.u32(places["num_syms"], "kallsyms_num_syms")
    if not 0 < count <= MAX_SYMBOLS:
        raise kernel.damaged(f"kallsyms_num_syms is {count}", f"1 to {MAX_SYMBOLS}")
    return count


def tokens_of(kernel: KernelMemory, places: dict[str, int]) -> list[bytes]:
    """Return the tokens of the names.

    Raises:
        FormatError: they cannot be read, or the tables are not in their order.
        ValueError: they are damaged.
    """
    names_bytes = places["token_table"] - places["names"]
    table_bytes = places["token_index"] - places["token_table"]
    if not (0 < names_bytes <= MAX_NAMES_BYTES and 0 < table_bytes <= MAX_TOKENS_BYTES):
        raise kernel.damaged("kallsyms_names, kallsyms_token_table and kallsyms_token_index are not in this order")
    index = np.frombuffer(kernel.read(places["token_index"], 2 * TOKENS, "kallsyms_token_index"), dtype="<u2")
    return decode_tokens(kernel.read(places["token_table"], table_bytes, "kallsyms_token_table"), index.tolist())


def _readings(offsets: npt.NDArray[np.int32], place: int, base: int | None) -> Iterator[Addresses]:
    """Yield the addresses of all symbols by each of the ways to store them."""
    wide = offsets.astype(np.int64)
    if base is None:
        yield (wide + 4 * np.arange(len(wide))).view(np.uint64) + np.uint64(place)
        return
    at = np.uint64(base)
    yield np.where(wide >= 0, wide.view(np.uint64), at - np.uint64(1) - wide.view(np.uint64))
    yield at + offsets.view(np.uint32).astype(np.uint64)


def _agrees(table: SymbolTable, kernel: KernelMemory) -> bool:
    """Return whether symbols lie where VMCOREINFO has them, each that both have."""
    said = {name: kernel.number(f"SYMBOL({name})", 16) for name in KNOWN if f"SYMBOL({name})" in kernel.facts}
    found = {name: {int(table.addresses[row]) for row in table.rows(name)} for name in said}
    return any(found.values()) and all(said[name] in some for name, some in found.items() if some)
