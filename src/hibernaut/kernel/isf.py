# SPDX-License-Identifier: GPL-2.0-or-later
"""Volatility 3's symbol file (Intermediate Symbol Format, schema 6.2.0) of a kernel, out of its own memory.

Types come from BTF, that of loaded modules, too, and `GLOBALS`, symbols from kallsyms, the banner from `linux_banner`.
Addresses are those of vmlinux: Volatility finds the shift of KASLR itself, and symbols of modules, which lie elsewhere
at each load, have no place. As in the files that dwarf2json writes, a symbol of unknown type is a void, base types have
the names of GCC's debug information, and a bit field has the unit of its declared type.
"""

from __future__ import annotations

import base64
import bz2
import gzip
import hashlib
import json
import lzma
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hibernaut.errors import FormatError
from hibernaut.kernel.btf import POINTER_BYTES, VOID, Btf, BtfKind, BtfMember
from hibernaut.kernel.declared_types import Declaration, parse_declaration
from hibernaut.kernel.globals import GLOBALS, AnonymousStructure
from hibernaut.kernel.kallsyms import markers_after
from hibernaut.kernel.kallsyms_in_memory import kallsyms_places
from hibernaut.memory.declarations import START_KERNEL_MAP

if TYPE_CHECKING:
    from typing import Any

    from hibernaut.kernel.symbol_table import Addresses
    from hibernaut.kernel.symbols import SymbolicKernel

__all__ = ["ISF_ENDINGS", "VOID_TYPE", "IsfFile", "isf_bytes", "isf_digest", "isf_document", "own_banner"]

Descriptor = dict[str, "Any"]
IsfFile = dict[str, "Any"]

FORMAT = "6.2.0"
REVISION = 4
"""Number of this module's way to write the file; part of `isf_digest`."""
MAX_DEPTH = 64
"""Bound for pointers, arrays, typedefs and qualifiers around a type."""
MAX_BANNER_BYTES = 1024
MAX_TAINT_FLAGS = 64
"""Bits of `tainted_mask`."""
TRIMMED = frozenset({"taint_flags"})
"""Arrays whose end is found by content: bytes of padding before the next symbol would count as elements."""

VOID_TYPE: Descriptor = {"kind": "base", "name": "void"}
FUNCTION_TYPE: Descriptor = {"kind": "function"}

BASE_TYPES: Mapping[str, tuple[int, bool, str]] = {
    "void": (0, False, "void"),
    "pointer": (POINTER_BYTES, False, "int"),
    "char": (1, True, "char"),
    "signed char": (1, True, "char"),
    "unsigned char": (1, False, "char"),
    "_Bool": (1, False, "bool"),
    "short int": (2, True, "int"),
    "short": (2, True, "int"),
    "short unsigned int": (2, False, "int"),
    "unsigned short": (2, False, "int"),
    "int": (4, True, "int"),
    "unsigned int": (4, False, "int"),
    "long int": (8, True, "int"),
    "long": (8, True, "int"),
    "long unsigned int": (8, False, "int"),
    "unsigned long": (8, False, "int"),
    "long long int": (8, True, "int"),
    "long long": (8, True, "int"),
    "long long unsigned int": (8, False, "int"),
    "unsigned long long": (8, False, "int"),
}
"""Name -> size in bytes, signedness, kind: of C on x86-64, by the names that GCC and Clang give them."""

ISF_ENDINGS: Mapping[str, Callable[[bytes], bytes]] = {
    ".json": bytes,
    ".json.gz": partial(gzip.compress, compresslevel=6, mtime=0),
    ".json.bz2": bz2.compress,
    ".json.xz": partial(lzma.compress, preset=2),
}
"""Endings of a name by which Volatility takes a file for a symbol file, and their compressors."""


class _Sized(NamedTuple):
    descriptor: Descriptor
    size_bytes: int


def isf_document(kernel: SymbolicKernel, producer_version: str) -> IsfFile:
    """Return the symbol file of a kernel as Volatility's schema has it.

    Args:
        kernel: the kernel.
        producer_version: version of this package, for the file's metadata.

    Raises:
        FormatError: the kernel has no BTF, or no banner is found, or either is damaged.
    """
    types = _IsfTypes(_btf_of(kernel))
    modules = [_IsfTypes(btf, name, types) for name, btf in _btf_of_modules(kernel)]
    banner = own_banner(kernel)
    symbols = _symbols(kernel, types)
    symbols["linux_banner"]["type"] = _arrays(_Sized({"kind": "base", "name": "char"}, 1), (len(banner),), 0)
    symbols["linux_banner"]["constant_data"] = base64.b64encode(banner).decode()
    source = f"{kernel.release} in its own memory"
    return {
        "metadata": {
            "linux": {"symbols": [{"name": f"kallsyms of {source}"}], "types": [{"name": f"BTF of {source}"}]},
            "producer": {"name": "hibernaut", "version": producer_version},
            "format": FORMAT,
        },
        "base_types": _merged(one.base_types() for one in (types, *modules)),
        "user_types": _merged(one.user_types() for one in (types, *modules)),
        "enums": _merged(one.enums() for one in (types, *modules)),
        "symbols": symbols,
    }


def isf_bytes(document: IsfFile, ending: str = ".json") -> bytes:
    """Return a symbol file as bytes, compressed as its ending (of `ISF_ENDINGS`) says."""
    return ISF_ENDINGS[ending](json.dumps(document, separators=(",", ":")).encode())


def isf_digest(kernel: SymbolicKernel) -> str:
    """Return the SHA-256 of all that a kernel's symbol file is made of, in hexadecimal. KASLR does not change it.

    Raises:
        FormatError: as for `isf_document`.
    """
    made = hashlib.sha256(f"hibernaut isf {REVISION} {FORMAT}\0".encode())
    for name, types in sorted(GLOBALS.items()):
        words = (one if isinstance(one, str) else " ".join(sorted(one.members)) for one in types)
        made.update(f"{name}: {', '.join(words)}\0".encode())
    made.update(own_banner(kernel))
    for part in _btf_of(kernel).raw:
        made.update(part)
    for name, btf in _btf_of_modules(kernel):
        made.update(f"{name}\0".encode())
        for part in btf.raw:
            made.update(part)
    table = kernel.symbols.table
    made.update(table.names)
    made.update(_unshifted(kernel, table.addresses).tobytes())
    return made.hexdigest()


def own_banner(kernel: SymbolicKernel) -> bytes:
    """Return a kernel's banner (`linux_banner`, init/version.c) with its newline and NUL.

    Raises:
        FormatError: it is not in the memory, or is not a banner.
    """
    symbol = kernel.symbols["linux_banner"]
    size_bytes = min(symbol.size, MAX_BANNER_BYTES) or MAX_BANNER_BYTES
    found, nul, _ = kernel.read(symbol.address, size_bytes, "linux_banner").partition(b"\0")
    if not (found.startswith(b"Linux version ") and nul):
        raise kernel.damaged(f"linux_banner begins with {found[:16]!r}", "'Linux version ...' up to a NUL")
    return found + nul


def _btf_of(kernel: SymbolicKernel) -> Btf:
    btf = kernel.btf
    if btf is None:
        raise kernel.damaged(f"no types for a symbol file: {kernel.btf_trouble}")
    return btf


def _btf_of_modules(kernel: SymbolicKernel) -> Iterator[tuple[str, Btf]]:
    """Yield name and types of each module whose types can be read."""
    for name, module in kernel.modules.items():
        if module.btf is not None:
            yield name, module.btf


def _merged(parts: Iterable[dict[str, Descriptor]]) -> dict[str, Descriptor]:
    """Return several dictionaries in one; of several values of a name the first."""
    found: dict[str, Descriptor] = {}
    for part in parts:
        for name, one in part.items():
            found.setdefault(name, one)
    return found


def _unshifted(kernel: SymbolicKernel, addresses: Addresses) -> Addresses:
    """Return addresses without the shift of KASLR: those of the kernel image have it, offsets per CPU have not."""
    return np.where(addresses >= np.uint64(START_KERNEL_MAP), addresses - np.uint64(kernel.kaslr_shift), addresses)


def _symbols(kernel: SymbolicKernel, types: _IsfTypes) -> dict[str, Descriptor]:
    """Return all symbols by name; of several of one name a global one, else the first."""
    table = kernel.symbols.table
    addresses = _unshifted(kernel, table.addresses).tolist()
    chosen: dict[str, int] = {}
    doubtful: set[str] = set()
    for row, (letter, name, _address) in enumerate(table):
        other = chosen.setdefault(name, row)
        if other == row or addresses[other] == addresses[row]:
            continue
        is_better = letter.isupper() and not table.is_global(other)
        if is_better:
            chosen[name] = row
        if is_better or table.is_global(other):
            doubtful.discard(name)
        else:
            doubtful.add(name)
    symbols: dict[str, Descriptor] = {
        name: {"address": addresses[row], "type": VOID_TYPE} for name, row in chosen.items()
    }
    for name in types.variables.keys() & symbols.keys() - doubtful:
        symbols[name]["type"] = types.of(types.variables[name])
    for name in GLOBALS.keys() & symbols.keys() - doubtful - types.variables.keys():
        row = chosen[name]
        content = kernel.read if name in TRIMMED else None
        declared = types.declared(name, table.size_bytes(row), int(table.addresses[row]), content)
        if declared is not None:
            symbols[name]["type"] = declared
    places = kallsyms_places(kernel)
    for name, place in (places | _markers(kernel, places)).items():  # kallsyms may not list itself
        address = int(_unshifted(kernel, np.array([place], dtype=np.uint64))[0])
        declared = types.declared(f"kallsyms_{name}", 0, place, None)
        symbols.setdefault(f"kallsyms_{name}", {"address": address, "type": declared or VOID_TYPE})
    return symbols


def _markers(kernel: SymbolicKernel, places: dict[str, int]) -> dict[str, int]:
    """Return the address of `kallsyms_markers`, which VMCOREINFO lacks; empty if they do not follow the names."""
    size_bytes = places["token_table"] - places["names"]
    if size_bytes <= 0:
        return {}
    at = markers_after(kernel.read(places["names"], size_bytes, "kallsyms_names"), len(kernel.symbols.table))
    return {} if at is None else {"markers": places["names"] + at}


class _IsfTypes:
    """The types of a BTF in Volatility's words.

    Args:
        btf: the types.
        module: name of the module, for the types of one.
        kernel: the kernel's types, which those of a module refer to, and whose names these do not take.

    Attributes:
        variables: number of the type of each variable that BTF has, by name.
    """

    def __init__(self, btf: Btf, module: str | None = None, kernel: _IsfTypes | None = None) -> None:
        self._btf = btf
        self._kernel = kernel
        self._suffix = "" if module is None else f"_{module}"
        self._made: dict[int, Descriptor] = {VOID: VOID_TYPE}
        self._taken: set[str] = set() if kernel is None else kernel._taken
        self._taken_by_enums: set[str] = set() if kernel is None else kernel._taken_by_enums
        self._names = self._names_of(self._taken, BtfKind.STRUCT, BtfKind.UNION)
        self._enum_names = self._names_of(self._taken_by_enums, BtfKind.ENUM, BtfKind.ENUM64)
        self._base: dict[str, tuple[int, bool, str]] = dict(BASE_TYPES) if kernel is None else kernel._base
        self.variables = {name: btf.target(number) for name, number in btf.names(BtfKind.VAR).items()}

    def _names_of(self, taken: set[str], *kinds: BtfKind) -> dict[int, str]:
        """Return a name, unique among these kinds, for each type; an anonymous one has that of its typedef."""
        btf = self._btf
        names: dict[int, str] = {}
        anonymous: set[int] = set()
        for number in btf.numbers(*kinds):
            name = btf.name(number)
            if not name:
                anonymous.add(number)
                continue
            names[number] = f"{name}__{number}{self._suffix}" if name in taken else name
            taken.add(names[number])
        for typedef in btf.numbers(BtfKind.TYPEDEF):
            number = btf.target(typedef)
            if number in anonymous and btf.name(typedef) not in taken:
                names[number] = btf.name(typedef)
                taken.add(names[number])
                anonymous.discard(number)
        names.update({number: f"unnamed_{number}{self._suffix}" for number in anonymous})
        return names

    def of(self, number: int, depth: int = 0) -> Descriptor:
        """Return the descriptor of a type. Raises FormatError if the BTF is damaged there."""
        if self._kernel is not None and number < self._btf.first:
            return self._kernel.of(number, depth)
        found = self._made.get(number)
        if found is None:
            if depth > MAX_DEPTH:
                raise FormatError(f"BTF: type {number} is {MAX_DEPTH} pointers, arrays and typedefs deep")
            found = self._made[number] = self._make(number, depth + 1)
        return found

    def _make(self, number: int, depth: int) -> Descriptor:
        btf = self._btf
        kind = btf.kind(number)
        match kind:
            case BtfKind.INT | BtfKind.FLOAT:
                return {"kind": "base", "name": self._base_name(number)}
            case BtfKind.PTR:
                return {"kind": "pointer", "subtype": self.of(btf.target(number), depth)}
            case BtfKind.ARRAY:
                array = btf.array(number)
                return {"kind": "array", "count": array.length, "subtype": self.of(array.element, depth)}
            case BtfKind.STRUCT | BtfKind.UNION:
                return {"kind": kind.name.lower(), "name": self._names[number]}
            case BtfKind.ENUM | BtfKind.ENUM64:
                return {"kind": "enum", "name": self._enum_names[number]}
            case BtfKind.FWD:
                whole = btf.find(btf.name(number), BtfKind.UNION if btf.forwards_union(number) else BtfKind.STRUCT)
                return self.of(whole[0], depth) if whole else VOID_TYPE
            case BtfKind.FUNC_PROTO:
                return FUNCTION_TYPE
            case BtfKind.TYPEDEF | BtfKind.CONST | BtfKind.VOLATILE | BtfKind.RESTRICT | BtfKind.TYPE_TAG:
                return self.of(btf.target(number), depth)
        raise FormatError(f"BTF: type {number} is of kind {kind.name}, which is not a type of data")

    def _base_name(self, number: int) -> str:
        """Return the name of an integer or floating-point type, and note its facts under it."""
        btf = self._btf
        name = btf.name(number)
        if btf.kind(number) == BtfKind.FLOAT:
            facts = (btf.size_bytes(number), True, "float")
        else:
            integer = btf.integer(number)
            kind = "bool" if integer.is_boolean else "char" if integer.size_bytes == 1 else "int"
            facts = (integer.size_bytes, integer.is_signed, kind)
            if name == "char":
                facts = BASE_TYPES["char"]  # GCC's BTF calls it unsigned
        known = self._base.setdefault(name, facts)
        if known != facts:
            name = f"{name}__{number}{self._suffix}"
            self._base[name] = facts
        return name

    def declared(
        self, name: str, room_bytes: int, address: int, read: Callable[[int, int, str], bytes] | None
    ) -> Descriptor | None:
        """Return the type that `GLOBALS` declares for a variable; None if it is unknown.

        It is where this BTF has none of the declared types, or the content that ends an array is not in the memory.

        Args:
            name: the variable.
            room_bytes: bytes up to the next symbol, for an array of unknown length.
            address: its address.
            read: reads memory, to drop elements of an array that are zero at its end; None to count by room.
        """
        for declared in GLOBALS.get(name, ()):
            if isinstance(declared, AnonymousStructure):
                number = self._btf.find_anonymous(declared.members)
                if number is not None:
                    return self.of(number)
                continue
            parsed = parse_declaration(declared)
            inner = self._element(parsed)
            if inner is None:
                continue
            if read is not None and room_bytes:
                try:
                    content = read(address, min(room_bytes, MAX_TAINT_FLAGS * inner.size_bytes), name).rstrip(b"\0")
                except FormatError:
                    return None
                room_bytes = -(-len(content) // inner.size_bytes) * inner.size_bytes
            return _arrays(inner, parsed.bounds, room_bytes)
        return None

    def _element(self, declaration: Declaration) -> _Sized | None:
        """Return the type of a declaration without its arrays; None if the BTF has none of its name."""
        found = self._base_element(declaration)
        for _ in range(declaration.pointers):
            found = _Sized({"kind": "pointer", "subtype": found.descriptor if found else VOID_TYPE}, POINTER_BYTES)
        return found

    def _base_element(self, declaration: Declaration) -> _Sized | None:
        btf, name = self._btf, declaration.name
        kinds = {
            "struct": (BtfKind.STRUCT,),
            "union": (BtfKind.UNION,),
            "enum": (BtfKind.ENUM, BtfKind.ENUM64),
            None: (BtfKind.TYPEDEF,),
        }[declaration.tag]
        found = btf.find(name, *kinds)
        if found:
            return _Sized(self.of(found[0]), btf.size_bytes(found[0]))
        if declaration.tag is None and name in BASE_TYPES:
            return _Sized({"kind": "base", "name": name}, BASE_TYPES[name][0])
        return None

    def base_types(self) -> dict[str, Descriptor]:
        """Return all base types by name."""
        for number in self._btf.numbers(BtfKind.INT, BtfKind.FLOAT):
            self.of(number)
        return {
            name: {"size": size_bytes, "signed": is_signed, "kind": kind, "endian": "little"}
            for name, (size_bytes, is_signed, kind) in self._base.items()
        }

    def user_types(self) -> dict[str, Descriptor]:
        """Return all structures and unions by name, and by the names of their typedefs that no tag has."""
        btf = self._btf
        found = {
            name: {
                "kind": btf.kind(number).name.lower(),
                "size": btf.size_bytes(number),
                "fields": self._fields(number),
            }
            for number, name in self._names.items()
        }
        for typedef in btf.numbers(BtfKind.TYPEDEF):
            number = btf.stripped(typedef)
            if number in self._names:
                found.setdefault(btf.name(typedef), found[self._names[number]])
        return found

    def _fields(self, number: int) -> dict[str, Descriptor]:
        fields: dict[str, Descriptor] = {}
        for row, member in enumerate(self._btf.members(number)):
            field = self._field(member)
            if member.name:
                fields[member.name] = field
            elif not member.bit_size:  # an anonymous bit field is padding
                fields[f"unnamed_field_{row}"] = {**field, "anonymous": True}
        return fields

    def _field(self, member: BtfMember) -> Descriptor:
        type_ = self.of(member.type)
        if not member.bit_size:
            return {"type": type_, "offset": member.bit_offset // 8}
        unit_bytes = self._btf.size_bytes(member.type)
        start = member.bit_offset // (8 * unit_bytes) * unit_bytes
        if member.bit_offset - 8 * start + member.bit_size > 8 * unit_bytes:  # packed, over the border of its unit
            start = member.bit_offset // 8
        return {
            "type": {
                "kind": "bitfield",
                "bit_position": member.bit_offset - 8 * start,
                "bit_length": member.bit_size,
                "type": type_,
            },
            "offset": start,
        }

    def enums(self) -> dict[str, Descriptor]:
        """Return all enumerations by name; incomplete ones are left out."""
        btf = self._btf
        bases = {
            (size, signed): name for name, (size, signed, kind) in reversed(list(BASE_TYPES.items())) if kind == "int"
        }
        bases |= {(1, True): "signed char", (1, False): "unsigned char", (8, False): "long unsigned int"}
        found: dict[str, Descriptor] = {}
        for number, name in self._enum_names.items():
            constants = {one.name: one.value for one in btf.enumerators(number)}
            size_bytes = btf.size_bytes(number)
            is_signed = any(value < 0 for value in constants.values())
            if (size_bytes, is_signed) not in bases:
                raise FormatError(f"BTF: the enumeration {name!r} has {size_bytes} bytes")
            found[name] = {"size": size_bytes, "base": bases[size_bytes, is_signed], "constants": constants}
        return found


def _arrays(inner: _Sized, bounds: tuple[int | None, ...], room_bytes: int) -> Descriptor:
    """Return an array of arrays of a type; the one unknown bound is as many as there is room for."""
    known = inner.size_bytes
    for bound in bounds:
        known *= bound or 1
    made = inner.descriptor
    for bound in reversed(bounds):
        made = {"kind": "array", "count": room_bytes // known if bound is None else bound, "subtype": made}
    return made
