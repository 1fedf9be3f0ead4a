# SPDX-License-Identifier: GPL-2.0-or-later
"""The modules that a kernel has loaded: their types by BTF, their symbols by their own part of kallsyms.

The kernel keeps a copy of each module's BTF on the list `btf_modules` (`btf_module_notify`, kernel/bpf/btf.c). It
continues vmlinux's; that of a module built against a distilled base (`.BTF.base`) is rewritten to do so when the module
is loaded (`btf_relocate`). `btf_data` of `struct module` is of no use: `do_init_module` (kernel/module/main.c) resets
it. Symbols are those of `struct mod_kallsyms` (`add_kallsyms`, kernel/module/kallsyms.c). Read in linux-source-6.1,
6.12 and 7.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property

import numpy as np
import numpy.typing as npt

from hibernaut.errors import FormatError
from hibernaut.kernel.btf import MAX_BTF_BYTES, Btf
from hibernaut.kernel.kernel_memory import KernelMemory, string_at, u64_at
from hibernaut.kernel.symbol_table import KernelSymbols, SymbolTable

__all__ = ["MAX_MODULES", "LoadedModule", "LoadedModules"]

MAX_MODULES = 4096
MODULE_NAME_LEN = 56
"""include/linux/module.h."""
MODULE_STATE_UNFORMED = 3
"""`enum module_state`: the kernel uses nothing of the module yet."""
MAX_MODULE_SYMBOLS = 1 << 18
MAX_STRINGS_BYTES = 16 << 20
MAX_SYMBOL_BYTES = 512
"""`KSYM_NAME_LEN` (include/linux/kallsyms.h)."""
ELF_SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("shndx", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
"""`Elf64_Sym`."""
STB_GLOBAL = 1
SHN_UNDEF = 0


class LoadedModule:
    """A loaded module.

    Args:
        kernel: the kernel.
        name: name of the module.
        address: address of its `struct module`.
        modules: all modules, which know the place of its BTF, and the kernel's.

    Attributes:
        name: as given.
        address: as given.
        btf_trouble: reason why there are no types; None before they are asked for.
        symbols_trouble: reason why there are no symbols, likewise.
    """

    def __init__(self, kernel: KernelMemory, name: str, address: int, modules: LoadedModules) -> None:
        self.name = name
        self.address = address
        self.btf_trouble: str | None = None
        self.symbols_trouble: str | None = None
        self._kernel = kernel
        self._modules = modules

    @cached_property
    def btf(self) -> Btf | None:
        """The module's types, which continue the kernel's; None if it has none, for the reason in `btf_trouble`."""
        try:
            return self.read_btf()
        except FormatError as error:
            self.btf_trouble = str(error)
            return None

    @cached_property
    def symbols(self) -> KernelSymbols | None:
        """The module's symbols; None if they cannot be read, for the reason in `symbols_trouble`."""
        try:
            return self.read_symbols()
        except FormatError as error:
            self.symbols_trouble = str(error)
            return None

    def read_btf(self) -> Btf:
        """Return the module's types.

        Raises:
            FormatError: it has none, or they are not in the memory, damaged, or do not continue the kernel's.
        """
        kernel, base = self._kernel, self._modules.kernel_btf()
        place = self._modules.place_of_btf(self.address)
        if base is None or place is None:
            raise kernel.damaged(f"the module {self.name!r} has no BTF")
        btf = _Structure(kernel, "btf")
        record = kernel.read(place, btf.size_bytes, f"BTF of {self.name!r}")
        size_bytes = btf.u32(record, "data_size")
        if not 0 < size_bytes <= MAX_BTF_BYTES:
            raise kernel.damaged(f"BTF of {self.name!r}: it has {size_bytes} bytes", f"1 to {MAX_BTF_BYTES}")
        start, strings = btf.u32(record, "start_id"), btf.u32(record, "start_str_off")
        if (start, strings) != (base.end, base.strings_end):
            raise kernel.damaged(
                f"BTF of {self.name!r}: it continues type {start} and string {strings}",
                f"the kernel's, {base.end} and {base.strings_end}",
            )
        content = kernel.read(btf.u64(record, "data"), size_bytes, f"BTF of {self.name!r}")
        return Btf(content, base, f"{kernel.name}, module {self.name}")

    def read_symbols(self) -> KernelSymbols:
        """Return the module's symbols: those that stay after its initialisation, exported ones and others.

        Raises:
            FormatError: they are not in the memory, or damaged, or the kernel has no BTF.
        """
        kernel, what = self._kernel, f"symbols of {self.name!r}"
        tables = _Structure(kernel, "mod_kallsyms")
        place = kernel.u64(self.address + _Structure(kernel, "module").offset("kallsyms"), what)
        record = kernel.read(place, tables.size_bytes, what)
        count = tables.u32(record, "num_symtab")
        if not 0 < count <= MAX_MODULE_SYMBOLS:
            raise kernel.damaged(f"{what}: there are {count}", f"1 to {MAX_MODULE_SYMBOLS}")
        raw = kernel.read(tables.u64(record, "symtab"), count * ELF_SYMBOL.itemsize, what)
        letters = kernel.read(tables.u64(record, "typetab"), count, what)
        symbols = np.frombuffer(raw, dtype=ELF_SYMBOL)
        last = int(symbols["name"].max())
        if last > MAX_STRINGS_BYTES:
            raise kernel.damaged(f"{what}: a name lies at byte {last}", f"at most {MAX_STRINGS_BYTES}")
        strings = tables.u64(record, "strtab")
        names = kernel.read(strings, last, what) if last else b""
        names += string_at(kernel, strings + last, MAX_SYMBOL_BYTES) + b"\0"
        return KernelSymbols(_symbol_table(symbols, letters, names), kernel.name)


class LoadedModules(Mapping[str, LoadedModule]):
    """The loaded modules of a kernel by name, the one that was loaded last first.

    Args:
        kernel: the kernel.
        symbols: its symbols.
        btf: returns its types, None if it has none; called when those of a module are asked for.

    Attributes:
        kernel_btf: `btf` as given.
        trouble: reason why the kernel's list of modules cannot be read to its end; None if it can.
    """

    def __init__(self, kernel: KernelMemory, symbols: KernelSymbols, btf: Callable[[], Btf | None]) -> None:
        self.trouble: str | None = None
        self.kernel_btf = btf
        self._kernel = kernel
        self._symbols = symbols
        self._found: dict[str, LoadedModule] = {}
        try:
            for name, address in self._listed():
                self._found.setdefault(name, LoadedModule(kernel, name, address, self))
        except FormatError as error:
            self.trouble = str(error)

    def __getitem__(self, name: str) -> LoadedModule:
        """Return a module. Raises KeyError if none of that name is loaded."""
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return iter(self._found)

    def __len__(self) -> int:
        """Return the number of modules."""
        return len(self._found)

    @cached_property
    def symbols(self) -> SymbolTable:
        """The symbols of all modules whose symbols can be read."""
        tables = [one.symbols.table for one in self.values() if one.symbols is not None]
        return SymbolTable(
            b"".join(table.names for table in tables),
            np.concatenate([np.empty(0, dtype=np.uint64), *(table.addresses for table in tables)]),
            np.concatenate([np.empty(0, dtype=np.uint64), *(table.sizes for table in tables)]),
        )

    def place_of_btf(self, module: int) -> int | None:
        """Return the address of the `struct btf` of a `struct module`; None if the kernel's list has none.

        Raises:
            FormatError: the list breaks off, and does not have it before.
        """
        found = self._places.get(module)
        if found is None and self._places_trouble is not None:
            raise self._places_trouble
        return found

    def _listed(self) -> Iterator[tuple[str, int]]:
        """Yield name and address of each `struct module`."""
        kernel, module = self._kernel, _Structure(self._kernel, "module")
        name, links = module.offset("name"), module.offset("list")
        size_bytes = max(name + MODULE_NAME_LEN, module.offset("state") + 4, links + 16)
        head = self._symbols["modules"].address
        for address, record in kernel.list_entries(head, MAX_MODULES, size_bytes, "modules", links):
            if module.u32(record, "state") != MODULE_STATE_UNFORMED:
                called = record[name : name + MODULE_NAME_LEN].partition(b"\0")[0]
                yield called.decode("utf-8", "backslashreplace"), address

    @cached_property
    def _places(self) -> dict[int, int]:
        """Address of the `struct btf` of each `struct module`, as far as the list of them can be read."""
        kernel = self._kernel
        places: dict[int, int] = {}
        self._places_trouble: FormatError | None = None
        try:
            head = self._symbols.get("btf_modules")
            if head is None:
                raise kernel.damaged("no BTF of modules: the kernel is built without CONFIG_DEBUG_INFO_BTF_MODULES")
            one = _Structure(kernel, "btf_module")
            entries = kernel.list_entries(head.address, MAX_MODULES, one.size_bytes, "btf_modules", one.offset("list"))
            for _, record in entries:
                places.setdefault(one.u64(record, "module"), one.u64(record, "btf"))
        except FormatError as error:
            self._places_trouble = error
        return places


class _Structure:
    """A structure by the kernel's own types: its size, and the members of its bytes.

    Raises:
        FormatError: the kernel has no such structure, or, when it is asked for, no such member.
    """

    def __init__(self, kernel: KernelMemory, name: str) -> None:
        self._kernel = kernel
        try:
            self._layout = kernel.layouts.structure(name)
        except KeyError:
            raise kernel.damaged(f"the kernel's types have no struct {name}") from None
        self.size_bytes = self._layout.size_bytes

    def offset(self, member: str) -> int:
        try:
            return self._layout.offsets[member]
        except KeyError:
            raise self._kernel.damaged(f"the kernel's struct {self._layout.name} has no {member}") from None

    def u32(self, record: bytes, member: str) -> int:
        at = self.offset(member)
        return int.from_bytes(record[at : at + 4], "little")

    def u64(self, record: bytes, member: str) -> int:
        return u64_at(record, self.offset(member))


def _symbol_table(symbols: npt.NDArray[np.void], letters: bytes, names: bytes) -> SymbolTable:
    """Return the symbols that are defined and have a name; one that other files see has a capital letter."""
    packed = bytearray()
    rows = []
    for row in np.flatnonzero(symbols["shndx"] != SHN_UNDEF).tolist():
        start = int(symbols["name"][row])
        end = names.find(b"\0", start, start + MAX_SYMBOL_BYTES + 1)
        if end < 0:
            raise FormatError(f"a symbol's name has more than {MAX_SYMBOL_BYTES} bytes")
        name = names[start:end]
        if name:
            letter = letters[row : row + 1]
            is_global = int(symbols["info"][row]) >> 4 == STB_GLOBAL
            packed += b"\0" + (letter.upper() if is_global else letter) + name
            rows.append(row)
    kept = symbols[rows]
    return SymbolTable(bytes(packed), kept["value"].astype(np.uint64), kept["size"].astype(np.uint64))
