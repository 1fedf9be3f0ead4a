# SPDX-License-Identifier: GPL-2.0-or-later
"""The reader of BTF: every kind, split BTF, hostile bytes. Types are written by hand; `test_program` has real ones."""

from __future__ import annotations

import contextlib
import struct
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.errors import FormatError
from hibernaut.kernel.btf import VOID, Btf, BtfArray, BtfEnumerator, BtfKind, BtfMember, BtfParameter
from hibernaut.kernel.btf_layouts import BtfLayouts, member_offsets
from hibernaut.kernel.layouts import HAND_WRITTEN


@dataclass
class Writer:
    """Writes BTF, a type at a time, as include/uapi/linux/btf.h declares it; `first_string` for a module's."""

    types: bytearray = field(default_factory=bytearray)
    strings: bytearray = field(default_factory=lambda: bytearray(b"\0"))
    first_string: int = 0
    number: int = 0

    def text(self, name: str) -> int:
        """Return the position of a name."""
        if not name:
            return 0
        at = self.first_string + len(self.strings)
        self.strings += name.encode() + b"\0"
        return at

    def add(
        self, kind: BtfKind, name: str = "", third: int = 0, *words: int, length: int = 0, flag: bool = False
    ) -> int:
        """Write a record; returns its number if the types are vmlinux's."""
        info = kind << 24 | length | flag << 31
        self.types += struct.pack(f"<{3 + len(words)}I", self.text(name), info, third, *words)
        self.number += 1
        return self.number

    def content(self, **header: int) -> bytes:
        """Return the whole, header fields changed as given."""
        fields = {
            "magic": 0xEB9F,
            "version": 1,
            "flags": 0,
            "hdr_len": 24,
            "type_off": 0,
            "type_len": len(self.types),
            "str_off": len(self.types),
            "str_len": len(self.strings),
        } | header
        return struct.pack("<HBBIIIII", *fields.values()) + bytes(self.types) + bytes(self.strings)


def some_types() -> Writer:
    """One of each kind."""
    w = Writer()
    w.add(BtfKind.INT, "int", 4, 1 << 24 | 32)  # 1, signed
    w.add(BtfKind.INT, "_Bool", 1, 4 << 24 | 8)  # 2
    w.add(BtfKind.PTR, "", 1)  # 3
    w.add(BtfKind.ARRAY, "", 0, 1, 1, 6)  # 4: int [6]
    w.add(BtfKind.STRUCT, "inner", 8, w.text("a"), 1, 0, w.text("b"), 3, 32, length=2)  # 5 (b is misplaced on purpose)
    w.add(BtfKind.UNION, "", 8, w.text("x"), 1, 0, 0, 5, 0, length=2)  # 6: anonymous, with an anonymous struct inner
    w.add(
        BtfKind.STRUCT,
        "outer",
        24,
        w.text("flag"),
        1,
        3 << 24,
        w.text("wide"),
        1,
        29 << 24 | 3,
        0,
        6,
        64,
        length=3,
        flag=True,
    )  # 7: two bit fields
    w.add(BtfKind.ENUM, "colour", 4, w.text("RED"), 1, w.text("BLUE"), 0xFFFFFFFF, length=2, flag=True)  # 8: signed
    w.add(BtfKind.ENUM64, "wide_enum", 8, w.text("FAR"), 5, 7, length=1)  # 9
    w.add(BtfKind.FWD, "later", 0, flag=True)  # 10: union later;
    w.add(BtfKind.TYPEDEF, "number_t", 1)  # 11
    w.add(BtfKind.CONST, "", 11)  # 12
    w.add(BtfKind.VOLATILE, "", 12)  # 13
    w.add(BtfKind.RESTRICT, "", 3)  # 14
    w.add(BtfKind.FUNC_PROTO, "", 1, w.text("first"), 3, 0, 0, length=2)  # 15: int (int *first, ...)
    w.add(BtfKind.FUNC, "callee", 15)  # 16
    w.add(BtfKind.VAR, "per_cpu", 1, 1)  # 17
    w.add(BtfKind.DATASEC, ".data..percpu", 64, 17, 0, 4, length=1)  # 18
    w.add(BtfKind.FLOAT, "double", 8)  # 19
    w.add(BtfKind.DECL_TAG, "user", 7, 0xFFFFFFFF)  # 20
    w.add(BtfKind.TYPE_TAG, "rcu", 13)  # 21
    return w


def test_every_kind() -> None:
    """Names, targets, sizes, members, bit fields, enumerators and parameters of one type of each kind."""
    btf = Btf(some_types().content())
    assert len(btf) == 21
    assert [btf.kind(number) for number in range(1, 22)][:7] == [1, 1, 2, 3, 4, 5, 4]
    assert btf.integer(1).is_signed
    assert btf.integer(2).is_boolean
    assert btf.array(4) == BtfArray(1, 6)
    assert btf.size_bytes(4) == 24
    assert btf.members(7) == (
        BtfMember("flag", 1, 0, 3),
        BtfMember("wide", 1, 3, 29),
        BtfMember("", 6, 64, 0),
    )
    assert member_offsets(btf, 7) == {"flag": 0, "wide": 0, "x": 8, "a": 8, "b": 12}
    assert btf.enumerators(8) == (BtfEnumerator("RED", 1), BtfEnumerator("BLUE", -1))
    assert btf.enumerators(9) == (BtfEnumerator("FAR", 7 << 32 | 5),)
    assert btf.find_enumerator("BLUE") == (8, -1)
    assert btf.find_enumerator("FAR") == (9, 7 << 32 | 5)
    assert btf.find_enumerator("GREEN") is None
    assert btf.forwards_union(10)
    assert btf.stripped(21) == 1
    assert btf.size_bytes(21) == 4
    assert btf.size_bytes(3) == 8
    assert btf.parameters(15) == (BtfParameter("first", 3), BtfParameter("", VOID))
    assert btf.target(16) == 15
    assert btf.find("outer", BtfKind.STRUCT) == [7]
    assert btf.find("outer", BtfKind.UNION) == []
    assert btf.find("ter", BtfKind.STRUCT) == []
    assert btf.name(VOID) == "void"


def test_a_name_at_the_end_of_another_is_found() -> None:
    """A string section may share ends: the name of a type may point into a longer one."""
    w = Writer()
    at = w.text("big_task")
    w.add(BtfKind.FLOAT, "", 4)
    struct.pack_into("<I", w.types, 0, at + 4)
    btf = Btf(w.content())
    assert btf.name(1) == "task"
    assert btf.find("task", BtfKind.FLOAT) == [1]


def test_split_btf_continues_numbers_and_names() -> None:
    """A module's types refer to those of vmlinux by number and by name."""
    base = Btf(some_types().content())
    w = Writer(strings=bytearray(b"\0"), first_string=base.strings_end, number=len(base))
    mine = w.add(BtfKind.STRUCT, "of_module", 24, w.text("outer_one"), 7, 0, length=1)
    w.add(BtfKind.TYPEDEF, "", mine)
    struct.pack_into("<I", w.types, len(w.types) - 12, 1)  # named by a string of vmlinux
    module = Btf(w.content(), base)
    assert mine == len(base) + 1
    assert module.first == mine
    assert module.find("of_module", BtfKind.STRUCT) == [mine]
    assert module.find("outer", BtfKind.STRUCT) == [7]
    assert module.members(mine) == (BtfMember("outer_one", 7, 0, 0),)
    assert module.name(mine + 1) == base.name(1)
    assert module.find("int", BtfKind.TYPEDEF, BtfKind.INT) == [1, mine + 1]
    assert module.find_enumerator("RED") == (8, 1)
    with pytest.raises(FormatError, match="it has no type"):
        base.kind(mine)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"magic": 0x9FEB}, "magic 0x9feb"),
        ({"version": 2}, "version 2"),
        ({"type_len": 3}, "multiple of 4"),
        ({"type_len": 1 << 31}, "section of types ends"),
        ({"str_len": 1 << 31}, "section of strings ends"),
        ({"str_len": 0}, "does not begin or end with a NUL"),
        ({"str_off": 8}, "does not begin or end with a NUL"),
        ({"hdr_len": 0xFFFFFFFF}, "ends at byte"),
        ({"type_len": 12}, "cut short"),
    ],
)
def test_a_wrong_header_is_refused(header: dict[str, int], words: str) -> None:
    """One line that names the field."""
    with pytest.raises(FormatError, match=words):
        Btf(some_types().content(**header))


def test_unknown_kinds_and_references_are_refused() -> None:
    """A kind that no kernel has; a type that refers to none; chains without an end; a bomb of anonymous members."""
    w = some_types()
    w.types += struct.pack("<3I", 0, 20 << 24, 0)
    with pytest.raises(FormatError, match=r"type 22, at byte .* unknown kind or cut short"):
        Btf(w.content())
    w = some_types()
    pointer = w.add(BtfKind.PTR, "", 9999)
    loop = w.number + 1
    w.add(BtfKind.TYPEDEF, "loop", loop)
    nest = w.number + 1
    w.add(BtfKind.ARRAY, "", 0, nest, 1, 1 << 31)
    bomb = w.number + 1
    w.add(BtfKind.STRUCT, "bomb", 8, *(0, bomb, 0) * 60, length=60)
    function = w.add(BtfKind.ARRAY, "", 0, 15, 1, 2)
    btf = Btf(w.content())
    with pytest.raises(FormatError, match="no type 9999"):
        btf.kind(btf.target(pointer))
    with pytest.raises(FormatError, match="typedefs and qualifiers deep"):
        btf.stripped(loop)
    with pytest.raises(FormatError, match="arrays deep"):
        btf.size_bytes(nest)
    with pytest.raises(FormatError, match=r"more than .* members"):
        member_offsets(btf, bomb)
    with pytest.raises(FormatError, match="has no size"):
        btf.size_bytes(function)
    with pytest.raises(FormatError, match="of kind PTR; expected STRUCT or UNION"):
        btf.members(pointer)


@given(
    flips=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, 40),
)
def test_damaged_bytes_never_escape(flips: list[tuple[int, int]], cut: int) -> None:
    """Whatever is changed: FormatError, or types that can all be read or refused."""
    content = bytearray(some_types().content())
    for at, value in flips:
        content[at % len(content)] = value
    try:
        btf = Btf(bytes(content[: len(content) - cut]))
    except FormatError:
        return
    for number in range(btf.first, btf.end):
        for question in (btf.name, btf.target, btf.size_bytes, btf.members, btf.enumerators, btf.parameters, btf.array):
            with contextlib.suppress(FormatError):
                question(number)
        with contextlib.suppress(FormatError):
            member_offsets(btf, number)
    btf.find("outer", BtfKind.STRUCT)
    with contextlib.suppress(FormatError):
        btf.find_enumerator("RED")


def test_layouts_fall_back() -> None:
    """A structure that BTF lacks, or has without a member that is read, is that of the table."""
    w = some_types()
    w.add(BtfKind.STRUCT, "list_head", 16, w.text("next"), 3, 0, length=1)
    w.add(BtfKind.STRUCT, "rtree_node", 40, w.text("list"), 3, 128, w.text("data"), 3, 192, length=2)
    layouts = BtfLayouts(lambda: Btf(w.content()), HAND_WRITTEN)
    assert layouts.structure("list_head") == HAND_WRITTEN.structure("list_head")
    assert layouts.structure("rtree_node").offsets == {"list": 16, "data": 24}
    assert layouts.structure("outer").size_bytes == 24
    with pytest.raises(KeyError):
        layouts.structure("no_such_structure")
    assert BtfLayouts(lambda: None, HAND_WRITTEN).structure("list_head") == HAND_WRITTEN.structure("list_head")
    assert np.array_equal(Btf(w.content()).kinds[:3], [1, 1, 2])
