# SPDX-License-Identifier: GPL-2.0-or-later
"""The BPF Type Format: the types of a kernel or of one of its modules, as they lie in its memory.

Format: Documentation/bpf/btf.rst and include/uapi/linux/btf.h. A header, a section of type records of varying length,
numbered from 1 on, and a section of strings. A module's types continue those of vmlinux, by number and by
position of strings ("split BTF").

All records are located in one pass and kept as columns; objects are made of those that are asked for. Nothing in the
bytes is trusted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hibernaut.errors import FormatError

__all__ = [
    "MAX_BTF_BYTES",
    "POINTER_BYTES",
    "VOID",
    "Btf",
    "BtfArray",
    "BtfEnumerator",
    "BtfInteger",
    "BtfKind",
    "BtfMember",
    "BtfParameter",
    "Content",
]

MAGIC = 0xEB9F
VERSION = 1
MAX_BTF_BYTES = 64 << 20
"""Bound for one BTF: distribution kernels have 4 to 12 MB."""
MAX_TYPES = 1 << 20
"""`BTF_MAX_TYPE` (include/uapi/linux/btf.h)."""
MAX_DEPTH = 64
"""Bound for chains of arrays, typedefs and qualifiers. `MAX_RESOLVE_DEPTH` (kernel/bpf/btf.c) is 32."""
VOID = 0
"""Number of the type void, which has no record."""

HEADER = np.dtype(
    [
        ("magic", "<u2"),
        ("version", "u1"),
        ("flags", "u1"),
        ("hdr_len", "<u4"),
        ("type_off", "<u4"),
        ("type_len", "<u4"),
        ("str_off", "<u4"),
        ("str_len", "<u4"),
    ]
)
"""`struct btf_header`: sections lie after `hdr_len` bytes."""


class BtfKind(IntEnum):
    """`BTF_KIND_*` (include/uapi/linux/btf.h)."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


KINDS = len(BtfKind)
KIND_MASK, LENGTH_MASK = 0x7F, 0xFFFFFF
"""Fields of a record's second word, in 7.3; earlier kernels had 5 and 16 bits for them, and 0 in the others."""
RECORD_WORDS = 3
"""`struct btf_type`: name_off, info, size or type."""
EXTRA_WORDS = {
    BtfKind.INT: 1,
    BtfKind.ARRAY: 3,
    BtfKind.VAR: 1,
    BtfKind.DECL_TAG: 1,
}
"""Words after the record, for kinds with a fixed number of them."""
ITEM_WORDS = {
    BtfKind.STRUCT: 3,
    BtfKind.UNION: 3,
    BtfKind.ENUM: 2,
    BtfKind.FUNC_PROTO: 2,
    BtfKind.DATASEC: 3,
    BtfKind.ENUM64: 3,
}
"""Words of each of the items after the record, of which `vlen` tells the number."""
QUALIFIERS = frozenset({BtfKind.VOLATILE, BtfKind.CONST, BtfKind.RESTRICT, BtfKind.TYPE_TAG})
SIZED = frozenset(
    {BtfKind.INT, BtfKind.FLOAT, BtfKind.STRUCT, BtfKind.UNION, BtfKind.ENUM, BtfKind.ENUM64, BtfKind.DATASEC}
)
"""Kinds whose third word is a size in bytes; it is another type's number in the others, if anything."""
POINTER_BYTES = 8
SIGNED, CHARACTER, BOOLEAN = 1, 2, 4
"""`BTF_INT_*`: encoding of an integer."""


@dataclass(frozen=True)
class BtfInteger:
    """An integer: `size_bytes` wide in memory."""

    name: str
    size_bytes: int
    is_signed: bool
    is_boolean: bool


@dataclass(frozen=True)
class BtfArray:
    """An array: number of the element's type, number of elements."""

    element: int
    length: int


@dataclass(frozen=True)
class BtfMember:
    """A member of a structure or union.

    Attributes:
        name: its name; empty if anonymous.
        type: number of its type.
        bit_offset: from the start of the structure.
        bit_size: width of a bit field; 0 for an ordinary member.
    """

    name: str
    type: int
    bit_offset: int
    bit_size: int


@dataclass(frozen=True)
class BtfEnumerator:
    """A name and its value."""

    name: str
    value: int


@dataclass(frozen=True)
class BtfParameter:
    """A parameter of a function: name, and number of its type."""

    name: str
    type: int


class Content(Protocol):
    """Bytes that are sliced, and read then."""

    def __len__(self) -> int:
        """Return the number of bytes."""
        ...

    def __getitem__(self, part: slice, /) -> bytes:
        """Return a part of them. Raises FormatError if it cannot be read."""
        ...


class Btf:
    """The types of a kernel or a module, by number and by name.

    Args:
        content: the bytes, from the header on. They are not copied.
        base: types of vmlinux, for those of a module.
        name: name of the source in messages.

    Attributes:
        base: as given.
        first: number of the first type of its own: 1, or what follows the types of `base`.

    Raises:
        FormatError: the content is not BTF, is cut short, or a record reaches beyond its section.
    """

    def __init__(self, content: bytes, base: Btf | None = None, name: str | None = None) -> None:
        self.base = base
        self._name = name
        header = self._header(content)
        start = int(header["hdr_len"])
        types = self._section(content, "types", start + int(header["type_off"]), int(header["type_len"]))
        strings = self._section(content, "strings", start + int(header["str_off"]), int(header["str_len"]))
        if not strings or strings[-1:] != b"\0" or (base is None and strings[:1] != b"\0"):
            raise self._damaged("its section of strings does not begin or end with a NUL")
        self._strings: bytes | bytearray = strings
        self._strings_start = 0 if base is None else base.strings_end
        self._words = self._words_of(types)
        self.first = 1 if base is None else base.end
        self._lengths_of_kinds(self._layout(content, start))
        self._set_records(self._locate())

    def _words_of(self, types: bytes) -> npt.NDArray[np.uint32]:
        if len(types) % 4:
            raise self._damaged(f"its section of types has {len(types)} bytes", "a multiple of 4")
        return np.frombuffer(types, dtype="<u4")

    def _set_records(self, at: npt.NDArray[np.int64]) -> None:
        """Make columns of the records that begin at these words."""
        info = self._words[at + 1]
        self._kinds: npt.NDArray[np.uint8] = (info >> 24 & KIND_MASK).astype(np.uint8)
        self._lengths = info & LENGTH_MASK
        self._flags = info >> 31
        self._names = self._words[at]
        self._third = self._words[at + 2]
        self._at = at

    @property
    def end(self) -> int:
        """One past the number of its last type."""
        return self.first + len(self)

    @property
    def kinds(self) -> npt.NDArray[np.uint8]:
        """Kind of each type of its own, shape (n,)."""
        return self._kinds

    def __len__(self) -> int:
        """Return the number of types of its own."""
        return len(self._at)

    @property
    def raw(self) -> tuple[memoryview, bytes]:
        """The bytes of the section of types and of that of strings."""
        return self._words.data.cast("B"), bytes(self._strings)

    @property
    def strings_end(self) -> int:
        """Position one past the last string, as a module's types count."""
        return self._strings_start + len(self._strings)

    def kind(self, number: int) -> BtfKind:
        """Return the kind of a type. Raises FormatError if there is no type of that number."""
        if number == VOID:
            return BtfKind.VOID
        owner, row = self._row(number)
        return self._known(number, int(owner._kinds[row]))

    def name(self, number: int) -> str:
        """Return the name of a type; empty if it has none. Raises FormatError as `kind`."""
        if number == VOID:
            return "void"
        owner, row = self._row(number)
        return self._string(int(owner._names[row]))

    def target(self, number: int) -> int:
        """Return the number of the type that a pointer, typedef, qualifier, variable or function refers to.

        Raises:
            FormatError: as `kind`; or a type of that kind refers to none.
        """
        owner, row = self._row(number)
        if int(owner._kinds[row]) in SIZED or int(owner._kinds[row]) in (BtfKind.ARRAY, BtfKind.FWD):
            raise self._damaged(f"type {number} refers to no other type")
        return int(owner._third[row])

    def stripped(self, number: int) -> int:
        """Return the number of a type without its qualifiers and typedefs. Raises FormatError as `kind`."""
        for _ in range(MAX_DEPTH):
            kind = self.kind(number)
            if kind not in QUALIFIERS and kind != BtfKind.TYPEDEF:
                return number
            number = self.target(number)
        raise self._damaged(f"type {number} is {MAX_DEPTH} typedefs and qualifiers deep")

    def size_bytes(self, number: int) -> int:
        """Return the size of a type in bytes.

        Raises:
            FormatError: as `kind`; or the type has no size, as void, a function or an incomplete structure.
        """
        elements = 1
        for _ in range(MAX_DEPTH):
            number = self.stripped(number)
            kind = self.kind(number)
            if kind == BtfKind.ARRAY:
                array = self.array(number)
                elements *= array.length
                number = array.element
            elif kind == BtfKind.PTR:
                return elements * POINTER_BYTES
            elif kind in SIZED:
                owner, row = self._row(number)
                return elements * int(owner._third[row])
            else:
                raise self._damaged(f"type {number} has no size: {kind.name.lower()}")
        raise self._damaged(f"type {number} is {MAX_DEPTH} arrays deep")

    def integer(self, number: int) -> BtfInteger:
        """Return an integer. Raises FormatError if the type is of another kind."""
        owner, row = self._row(number, BtfKind.INT)
        encoding = int(owner._words[owner._at[row] + RECORD_WORDS]) >> 24 & 0xF
        return BtfInteger(self.name(number), int(owner._third[row]), bool(encoding & SIGNED), bool(encoding & BOOLEAN))

    def array(self, number: int) -> BtfArray:
        """Return an array. Raises FormatError if the type is of another kind."""
        owner, row = self._row(number, BtfKind.ARRAY)
        element, _index, length = owner._items(row, 3, 1)[0].tolist()
        return BtfArray(element, length)

    def members(self, number: int) -> tuple[BtfMember, ...]:
        """Return the members of a structure or union. Raises FormatError if the type is of another kind."""
        owner, row = self._row(number, BtfKind.STRUCT, BtfKind.UNION)
        found = owner._items(row, ITEM_WORDS[BtfKind.STRUCT], int(owner._lengths[row])).tolist()
        packed = bool(owner._flags[row])
        return tuple(
            BtfMember(self._string(name), type_, at & 0xFFFFFF if packed else at, at >> 24 if packed else 0)
            for name, type_, at in found
        )

    def enumerators(self, number: int) -> tuple[BtfEnumerator, ...]:
        """Return the enumerators of an enumeration. Raises FormatError if the type is of another kind."""
        owner, row = self._row(number, BtfKind.ENUM, BtfKind.ENUM64)
        wide = int(owner._kinds[row]) == BtfKind.ENUM64
        kind = BtfKind.ENUM64 if wide else BtfKind.ENUM
        bits = 64 if wide else 32
        signed = self.is_signed(number)
        found = []
        for name, low, *high in owner._items(row, ITEM_WORDS[kind], int(owner._lengths[row])).tolist():
            value = low | high[0] << 32 if high else low
            value -= (1 << bits) if signed and value >> bits - 1 else 0
            found.append(BtfEnumerator(self._string(name), value))
        return tuple(found)

    def is_signed(self, number: int) -> bool:
        """Return whether the values of an enumeration are signed.

        Since Linux kernel commit 6089fb325cf7 ("bpf: Add btf enum64 support") (in v6.0) a flag tells it; that of an
        older kernel's enumerations is never set. Raises FormatError if the type is of another kind.
        """
        owner, row = self._row(number, BtfKind.ENUM, BtfKind.ENUM64)
        return bool(owner._flags[row])

    def parameters(self, number: int) -> tuple[BtfParameter, ...]:
        """Return the parameters of a function's type; a last one without name and type stands for `...`.

        Raises:
            FormatError: the type is of another kind.
        """
        owner, row = self._row(number, BtfKind.FUNC_PROTO)
        found = owner._items(row, ITEM_WORDS[BtfKind.FUNC_PROTO], int(owner._lengths[row])).tolist()
        return tuple(BtfParameter(self._string(name), type_) for name, type_ in found)

    def forwards_union(self, number: int) -> bool:
        """Return whether an incomplete type is a union, not a structure. Raises FormatError for another kind."""
        owner, row = self._row(number, BtfKind.FWD)
        return bool(owner._flags[row])

    def find(self, name: str, *kinds: BtfKind) -> list[int]:
        """Return the numbers of all types of that name and of these kinds, ascending, those of `base` first."""
        found = [] if self.base is None else self.base.find(name, *kinds)
        order, ordered = self._by_name
        rows = order[_among(ordered, self._positions(name))]
        return found + sorted(self.first + int(row) for row in rows if int(self._kinds[row]) in kinds)

    def find_each(self, name: str, *kinds: BtfKind) -> Iterator[int]:
        """Yield the numbers that `find` returns."""
        yield from self.find(name, *kinds)

    def find_anonymous(self, members: frozenset[str]) -> int | None:
        """Return the number of the first structure without a name that has exactly these members; None without."""
        return self._find_anonymous(members, 0)

    def _find_anonymous(self, members: frozenset[str], start: int) -> int | None:
        """Return it as `find_anonymous`, of the records from a row on that are located."""
        for row in np.flatnonzero((self._kinds[start:] == BtfKind.STRUCT) & (self._names[start:] == 0)).tolist():
            number = self.first + start + int(row)
            if {member.name for member in self.members(number)} == members:
                return number
        return None

    def find_enumerator(self, name: str) -> tuple[int, int] | None:
        """Return the number of the first enumeration that has an enumerator of a name, and its value; None without."""
        found = None if self.base is None else self.base.find_enumerator(name)
        return self._find_enumerator(name, self._positions(name)) if found is None else found

    def _find_enumerator(self, name: str, positions: npt.NDArray[np.uint32]) -> tuple[int, int] | None:
        """Return it as `find_enumerator`, of the records that are located; its name lies at one of the positions."""
        order, ordered, rows = self._enumerators
        items = order[_among(ordered, positions)]
        if not len(items):
            return None
        number = self.first + int(rows[items.min()])
        return next((number, one.value) for one in self.enumerators(number) if one.name == name)

    def numbers(self, *kinds: BtfKind) -> list[int]:
        """Return the number of each type of these kinds, ascending, those of `base` not included."""
        return [self.first + row for row in np.flatnonzero(np.isin(self._kinds, kinds)).tolist()]

    def names(self, *kinds: BtfKind) -> dict[str, int]:
        """Return the name and number of each type of these kinds that has a name, those of `base` not included."""
        rows = np.flatnonzero(np.isin(self._kinds, kinds) & (self._names != 0))
        return {self._string(int(self._names[row])): self.first + int(row) for row in rows[::-1]}

    @cached_property
    def _by_name(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.uint32]]:
        """Rows ordered by the position of their names, and these positions."""
        order = np.argsort(self._names, kind="stable")
        return order, self._names[order]

    @cached_property
    def _enumerators(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.uint32], npt.NDArray[np.intp]]:
        """All enumerators ordered by the position of their names, these positions, and the row of each one's type."""
        types = np.flatnonzero(np.isin(self._kinds, (BtfKind.ENUM, BtfKind.ENUM64)))
        words = np.where(self._kinds[types] == BtfKind.ENUM, ITEM_WORDS[BtfKind.ENUM], ITEM_WORDS[BtfKind.ENUM64])
        lengths = self._lengths[types].astype(np.int64)
        rows = np.repeat(types, lengths)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        names = self._words[np.repeat(self._at[types], lengths) + RECORD_WORDS + within * np.repeat(words, lengths)]
        order = np.argsort(names, kind="stable")
        return order, names[order], rows

    def _positions(self, name: str) -> npt.NDArray[np.uint32]:
        """Return each position by which a name may be referred to: where it stands, or at the end of a longer one."""
        wanted = name.encode() + b"\0"
        found: list[int] = []
        owner: Btf | None = self
        while owner is not None:
            at = owner._strings.find(wanted)
            while at >= 0:
                found.append(owner._strings_start + at)
                at = owner._strings.find(wanted, at + 1)
            owner = owner.base
        return np.array(found, dtype=np.uint32)

    def _row(self, number: int, *kinds: BtfKind) -> tuple[Btf, int]:
        """Return the part that has a type, and its row there."""
        owner = self
        while number < owner.first and owner.base is not None:
            owner = owner.base
        owner._reach_type(number)
        if not owner.first <= number < owner.first + len(owner._at):
            raise self._damaged(f"it has no type {number}", f"1 to {self.end - 1}")
        row = number - owner.first
        if kinds and int(owner._kinds[row]) not in kinds:
            found = self._known(number, int(owner._kinds[row])).name
            raise self._damaged(f"type {number} is of kind {found}", " or ".join(kind.name for kind in kinds))
        return owner, row

    def _reach_type(self, number: int) -> None:
        """Locate the record of a type: all are."""

    def _reach_string(self, at: int) -> None:
        """Read the string at a place of its own: all are."""

    def _known(self, number: int, kind: int) -> BtfKind:
        try:
            return BtfKind(kind)
        except ValueError:
            raise self._damaged(f"type {number} is of kind {kind}", f"at most {KINDS - 1}") from None

    def _items(self, row: int, words: int, count: int) -> npt.NDArray[np.uint32]:
        """Return the words after a record, shape (count, words)."""
        start = int(self._at[row]) + RECORD_WORDS
        return self._words[start : start + words * count].reshape(count, words)

    def _string(self, position: int) -> str:
        owner = self
        while position < owner._strings_start and owner.base is not None:
            owner = owner.base
        at = position - owner._strings_start
        if at >= len(owner._strings):
            raise self._damaged(f"a name lies at {position:#x}", f"less than {self.strings_end:#x}")
        owner._reach_string(at)
        return owner._strings[at : owner._strings.index(b"\0", at)].decode("utf-8", "backslashreplace")

    def _header(self, content: Content) -> np.void:
        if len(content) < HEADER.itemsize:
            raise self._damaged(f"it has {len(content)} bytes", f"a header of {HEADER.itemsize}")
        if len(content) > MAX_BTF_BYTES:
            raise self._damaged(f"it has {len(content)} bytes", f"at most {MAX_BTF_BYTES}")
        header: np.void = np.frombuffer(content[: HEADER.itemsize], dtype=HEADER)[0]
        if (int(header["magic"]), int(header["version"])) != (MAGIC, VERSION):
            raise self._damaged(
                f"magic {int(header['magic']):#x}, version {int(header['version'])}", f"{MAGIC:#x}, {VERSION}"
            )
        return header

    def _section(self, content: Content, what: str, start: int, size_bytes: int) -> bytes:
        return bytes(content[self._place(content, what, start, size_bytes)])

    def _place(self, content: Content, what: str, start: int, size_bytes: int) -> slice:
        """Return the place of a section in the content. Raises FormatError if it reaches beyond its end."""
        if start + size_bytes > len(content):
            raise self._damaged(f"its section of {what} ends at byte {start + size_bytes}", f"at most {len(content)}")
        return slice(start, start + size_bytes)

    def _layout(self, content: Content, header_bytes: int) -> list[tuple[int, int]]:
        """Return the words after a record of each kind, and those of each of its items, if the BTF has them.

        Kinds that are unknown here are skipped by it (`struct btf_layout`, include/uapi/linux/btf.h, read in
        linux-source-7.3).
        """
        if header_bytes < HEADER.itemsize + 8 or len(content) < HEADER.itemsize + 8:
            return []
        start, size_bytes = (int(word) for word in np.frombuffer(content[HEADER.itemsize : HEADER.itemsize + 8], "<u4"))
        layout = self._section(content, "layouts", header_bytes + start, size_bytes)
        rows = np.frombuffer(layout[: len(layout) // 4 * 4], dtype=np.uint8).reshape(-1, 4)[: KIND_MASK + 1, :2]
        return [(int(extra) // 4, int(item) // 4) for extra, item in rows]

    def _lengths_of_kinds(self, layout: list[tuple[int, int]]) -> None:
        """Note the words of a record of each kind, and those of each of its items."""
        self._fixed = [RECORD_WORDS + EXTRA_WORDS.get(BtfKind(kind), 0) for kind in range(KINDS)]
        self._each = [ITEM_WORDS.get(BtfKind(kind), 0) for kind in range(KINDS)]
        for extra_words, item_words in layout[KINDS:]:
            self._fixed.append(RECORD_WORDS + extra_words)
            self._each.append(item_words)

    def _locate(self) -> npt.NDArray[np.int64]:
        """Return the position of each record, in words."""
        found, at = self._walk(self._words.data, 0)
        self._refuse_rest(len(found), at)
        return np.array(found, dtype=np.int64)

    def _walk(self, words: memoryview, at: int) -> tuple[list[int], int]:
        """Return the positions of the records from one on that lie within some words, and the end of the last one."""
        fixed, each, end = self._fixed, self._each, len(words)
        found: list[int] = []
        try:
            while at < end:
                info = words[at + 1]
                kind = info >> 24 & KIND_MASK
                after = at + fixed[kind] + each[kind] * (info & LENGTH_MASK)
                if after > end:
                    break
                found.append(at)
                at = after
        except IndexError:
            pass
        return found, at

    def _refuse_rest(self, count: int, at: int) -> None:
        """Raise FormatError if the records, of which there are `count`, end before the section, or are too many."""
        if at != len(self._words):
            raise self._damaged(f"type {self.first + count}, at byte {4 * at}, is of an unknown kind or cut short")
        if self.first + count > MAX_TYPES:
            raise self._damaged(f"it has {count} types", f"at most {MAX_TYPES}")

    def _damaged(self, what: str, expected: str | None = None) -> FormatError:
        return FormatError(f"BTF: {what}", source=self._name, expected=expected)


def _among(ordered: npt.NDArray[np.uint32], wanted: npt.NDArray[np.uint32]) -> npt.NDArray[np.intp]:
    """Return where an ascending array has any of some values."""
    first, last = np.searchsorted(ordered, wanted, "left"), np.searchsorted(ordered, wanted, "right")
    pieces = [np.arange(first[at], last[at]) for at in np.flatnonzero(last > first)]
    return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.intp)
