# SPDX-License-Identifier: GPL-2.0-or-later
"""Volatility's symbol file of a kernel: hand-made types, and real kernels with drgn and Volatility's schema."""

from __future__ import annotations

import base64
import gzip
import json
import struct
from collections.abc import Iterator
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import pytest

from hibernaut.errors import FormatError
from hibernaut.kernel.btf import Btf, BtfKind
from hibernaut.kernel.isf import ISF_ENDINGS, isf_bytes, isf_digest, isf_document, own_banner
from hibernaut.kernel.kernel import Kernel
from hibernaut.kernel.symbol_table import KernelSymbols, SymbolTable
from hibernaut.sources import open_memory
from tests.conftest import Golden
from tests.kernel.test_btf import Writer

BASE = 0xFFFFFFFF81000000
SHIFT = 0x1C000000
BANNER = b"Linux version 6.7.8-mine (me@here) #1 SMP\n\0"
TAINT = struct.pack("<3s3s3s", b"PG\1", b"F \0", b"S \0")


class HandMadeModule(NamedTuple):
    """A module, in place of `LoadedModule`."""

    name: str
    btf: Btf | None


class HandMade:
    """A kernel of a few types and symbols, in place of `SymbolicKernel`."""

    release = "6.7.8-mine"
    kaslr_shift = SHIFT
    btf_trouble = "it has none"

    def __init__(
        self, writer: Writer | None, symbols: dict[str, int], banner: bytes = BANNER, *modules: HandMadeModule
    ) -> None:
        self.modules = {one.name: one for one in modules}
        self.btf = None if writer is None else Btf(writer.content())
        names = b"".join(b"\0" + name.split(".")[0].encode() for name in symbols)
        table = SymbolTable(names, np.array(list(symbols.values()), dtype=np.uint64))
        self.symbols = KernelSymbols(table)
        self.facts = {f"SYMBOL(kallsyms_{name})": f"{BASE + SHIFT + 0x900000:x}" for name in PLACES}
        self._content = {symbols["Rlinux_banner"]: banner, symbols.get("Rtaint_flags", 0): TAINT}

    def number(self, key: str, base: int = 10) -> int:
        """As of a real kernel."""
        return int(self.facts[key], base)

    def read(self, address: int, size_bytes: int, _what: str) -> bytes:
        """The banner and the flags, then padding."""
        return (self._content[address] + bytes(size_bytes))[:size_bytes]

    def damaged(self, what: str, expected: str | None = None) -> FormatError:
        """As of a real kernel."""
        return FormatError(what, expected=expected)


PLACES = ("num_syms", "names", "token_table", "token_index", "offsets", "relative_base")


def some_types() -> Writer:
    """Types in the forms that a symbol file has words for."""
    w = Writer()
    w.add(BtfKind.INT, "unsigned int", 4, 32)  # 1
    w.add(BtfKind.INT, "char", 1, 8)  # 2: unsigned to BTF
    w.add(BtfKind.INT, "unsigned char", 1, 8)  # 3
    w.add(BtfKind.FUNC_PROTO, "", 1)  # 4
    w.add(BtfKind.PTR, "", 4)  # 5: a function pointer
    w.add(BtfKind.UNION, "", 4, w.text("x"), 1, 0, w.text("y"), 2, 0, length=2)  # 6: anonymous
    w.add(BtfKind.FWD, "unknown")  # 7
    w.add(BtfKind.PTR, "", 7)  # 8
    fields = (
        *(w.text("handler"), 5, 0),
        *(0, 6, 64),
        *(w.text("low"), 1, 3 << 24 | 96),
        *(w.text("high"), 1, 29 << 24 | 99),
        *(w.text("packed"), 1, 4 << 24 | 158),
        *(w.text("other"), 8, 192),
    )
    w.add(BtfKind.STRUCT, "task_struct", 32, *fields, length=6, flag=True)  # 9
    w.add(BtfKind.STRUCT, "", 4, w.text("counter"), 1, 0, length=1)  # 10
    w.add(BtfKind.TYPEDEF, "atomic_t", 10)  # 11
    w.add(BtfKind.STRUCT, "taint_flag", 3, w.text("c_true"), 2, 0, w.text("c_false"), 2, 8, length=2)  # 12
    w.add(BtfKind.ENUM, "state", 4, w.text("BROKEN"), 0xFFFFFFFF, w.text("FINE"), 0, length=2)  # 13, not flagged signed
    w.add(BtfKind.STRUCT, "taint_flag", 1, w.text("again"), 3, 0, length=1)  # 14: of another file, same name
    w.add(BtfKind.PTR, "", 14)  # 15
    w.add(BtfKind.VAR, "per_cpu_thing", 15, 0)  # 16
    w.add(BtfKind.FWD, "taint_flag")  # 17
    return w


SYMBOLS = {
    "Dper_cpu_thing": 0x1F000,
    "Dinit_task": BASE + SHIFT + 0x1000,
    "tstatic": BASE + SHIFT + 0x2000,
    "tstatic.2": BASE + SHIFT + 0x2100,
    "Rlinux_banner": BASE + SHIFT + 0x3000,
    "Rtaint_flags": BASE + SHIFT + 0x4000,
    "dinit_pid_ns": BASE + SHIFT + 0x4020,
    "Tinit_pid_ns": BASE + SHIFT + 0x5000,
    "T_end": BASE + SHIFT + 0x6000,
}


@pytest.fixture
def made() -> dict[str, Any]:
    """The file of the hand-made kernel."""
    return isf_document(HandMade(some_types(), SYMBOLS), "1.2.3")  # type: ignore[arg-type]


def test_addresses_are_those_of_vmlinux(made: dict[str, Any]) -> None:
    """The kernel image is shifted back; an offset into a CPU's area is what it is; of static twins the first stays."""
    found = {name: symbol["address"] for name, symbol in made["symbols"].items()}
    assert found["init_task"] == BASE + 0x1000
    assert found["per_cpu_thing"] == 0x1F000
    assert found["static"] == BASE + 0x2000
    assert found["init_pid_ns"] == BASE + 0x5000  # global before static
    assert found["kallsyms_names"] == BASE + 0x900000


def test_types_of_symbols(made: dict[str, Any]) -> None:
    """By the table of globals, by BTF for a per-CPU variable; void where neither knows, or BTF lacks the structure."""
    symbols = made["symbols"]
    assert symbols["init_task"]["type"] == {"kind": "struct", "name": "task_struct"}
    assert symbols["per_cpu_thing"]["type"] == {
        "kind": "pointer",
        "subtype": {"kind": "struct", "name": "taint_flag__14"},
    }
    assert symbols["static"]["type"] == symbols["init_pid_ns"]["type"] == {"kind": "base", "name": "void"}
    assert symbols["kallsyms_num_syms"]["type"] == {"kind": "base", "name": "unsigned int"}
    assert base64.b64decode(symbols["linux_banner"]["constant_data"]) == BANNER
    assert symbols["linux_banner"]["type"]["count"] == len(BANNER)


def test_padding_does_not_count(made: dict[str, Any]) -> None:
    """32 bytes lie between the flags and the next symbol, room for 10 of 3 bytes; there are 3."""
    assert made["symbols"]["taint_flags"]["type"]["count"] == 3


def test_fields(made: dict[str, Any]) -> None:
    """Function pointers, anonymous members, bit fields in the unit of their type and across it, unknown structures."""
    fields = made["user_types"]["task_struct"]["fields"]
    integer = {"kind": "base", "name": "unsigned int"}

    def bits(at: int, length: int) -> dict[str, Any]:
        return {"kind": "bitfield", "bit_position": at, "bit_length": length, "type": integer}

    assert fields["handler"] == {"type": {"kind": "pointer", "subtype": {"kind": "function"}}, "offset": 0}
    assert fields["unnamed_field_1"] == {"type": {"kind": "union", "name": "unnamed_6"}, "offset": 8, "anonymous": True}
    assert fields["low"] == {"type": bits(0, 3), "offset": 12}
    assert fields["high"] == {"type": bits(3, 29), "offset": 12}
    assert fields["packed"] == {"type": bits(6, 4), "offset": 19}
    assert fields["other"]["type"] == {"kind": "pointer", "subtype": {"kind": "base", "name": "void"}}


def test_names_and_values(made: dict[str, Any]) -> None:
    """A structure without a tag has its typedef's name; twins differ; an unsigned enumeration stays unsigned."""
    assert made["user_types"]["atomic_t"]["fields"]["counter"]["offset"] == 0
    assert made["user_types"]["taint_flag"]["size"] == 3
    assert made["user_types"]["taint_flag__14"]["size"] == 1
    assert made["base_types"]["char"] == {"size": 1, "signed": True, "kind": "char", "endian": "little"}
    assert made["enums"]["state"] == {"size": 4, "base": "unsigned int", "constants": {"BROKEN": 0xFFFFFFFF, "FINE": 0}}


def test_the_file_follows_volatilitys_schema(made: dict[str, Any]) -> None:
    """Schema 6.2.0 of the package volatility3; a file without a needed part does not follow it."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed: pip install jsonschema")
    validator = jsonschema.Draft7Validator(volatilitys_schema())
    validator.validate(made)
    for broken in ({**made, "symbols": {"x": {}}}, {**made, "base_types": {"int": {"size": 4}}}):
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(broken)


def volatilitys_schema() -> dict[str, Any]:
    """Return the schema that Volatility checks files by."""
    pytest.importorskip("volatility3", reason="volatility3 is not installed: pip install volatility3")
    found: dict[str, Any] = json.loads(resources.files("volatility3.schemas").joinpath("schema-6.2.0.json").read_text())
    return found


def test_the_digest_covers_types_symbols_and_banner() -> None:
    """A forged type, symbol or banner changes it; another shift of KASLR does not."""

    def digest(writer: Writer, symbols: dict[str, int], banner: bytes = BANNER, shift: int = SHIFT) -> str:
        kernel = HandMade(writer, {name: at + (shift - SHIFT) * (at > BASE) for name, at in symbols.items()}, banner)
        kernel.kaslr_shift = shift
        return isf_digest(kernel)  # type: ignore[arg-type]

    own = digest(some_types(), SYMBOLS)
    forged = some_types()
    forged.add(BtfKind.INT, "more", 4, 32)
    others = (
        digest(forged, SYMBOLS),
        digest(some_types(), SYMBOLS | {"tstatic": BASE + SHIFT + 0x2010}),
        digest(some_types(), SYMBOLS, BANNER.replace(b"#1", b"#2")),
    )
    assert len({own, *others}) == 4
    assert digest(some_types(), SYMBOLS, shift=0x2000000) == own


def test_a_kernel_without_types_or_banner_is_refused() -> None:
    """The message has the reason."""
    with pytest.raises(FormatError, match="no types for a symbol file: it has none"):
        isf_document(HandMade(None, SYMBOLS), "1.2.3")  # type: ignore[arg-type]
    with pytest.raises(FormatError, match="linux_banner begins with"):
        isf_document(HandMade(some_types(), SYMBOLS, b"Windows\0"), "1.2.3")  # type: ignore[arg-type]


def test_a_circle_of_types_is_refused() -> None:
    """Typedefs that refer to each other end with a message."""
    w = Writer()
    w.add(BtfKind.TYPEDEF, "a", 2)
    w.add(BtfKind.TYPEDEF, "b", 1)
    w.add(BtfKind.STRUCT, "s", 8, w.text("m"), 1, 0, length=1)
    with pytest.raises(FormatError, match="deep"):
        isf_document(HandMade(w, SYMBOLS), "1.2.3")  # type: ignore[arg-type]


def test_endings_are_those_that_volatility_takes(made: dict[str, Any]) -> None:
    """Plain, gzip, bzip2 and xz."""
    constants = pytest.importorskip("volatility3.framework.constants", reason="volatility3 is not installed")
    assert sorted(ISF_ENDINGS) == sorted(constants.ISF_EXTENSIONS)
    assert json.loads(gzip.decompress(isf_bytes(made, ".json.gz"))) == json.loads(isf_bytes(made)) == made


@pytest.fixture(scope="module", params=["swap-6.1-lzo.img", "swap-6.12-lz4.img"])
def real(request: pytest.FixtureRequest, golden: Golden) -> Iterator[tuple[Kernel, dict[str, Any]]]:
    """A real kernel, without KASLR and with it, and its file."""
    with open_memory(golden(request.param)) as source:
        kernel = Kernel.of(source)
        yield kernel, isf_document(kernel, "1.2.3")


def test_members_lie_where_drgn_has_them(real: tuple[Kernel, dict[str, Any]]) -> None:
    """Offsets and sizes of structures that plug-ins walk, members of anonymous structures in them, bit fields."""
    pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn")
    kernel, made = real
    types = made["user_types"]
    checked = 0
    for name in ("task_struct", "mm_struct", "dentry", "inode", "file", "module", "net", "sock", "page", "kmem_cache"):
        theirs = kernel.drgn().type(f"struct {name}")
        assert types[name]["size"] == theirs.size
        named = [member for member in theirs.members if member.name]
        for member in named:
            field = types[name]["fields"][member.name]
            at = 8 * field["offset"] + field["type"].get("bit_position", 0)
            assert (at, field["type"].get("bit_length")) == (member.bit_offset, member.bit_field_size)
            checked += 1
        anonymous = [field for field in types[name]["fields"].values() if field.get("anonymous")]
        assert len(anonymous) == len(theirs.members) - len(named)
    assert checked > 500
    assert types["atomic_t"]["size"] == 4
    assert types["Elf64_Ehdr"] == types["elf64_hdr"]


def test_symbols_of_a_real_kernel(real: tuple[Kernel, dict[str, Any]]) -> None:
    """`init_task` is where kallsyms has it, less the shift; `taint_flags` ends where the kernel's table does."""
    kernel, made = real
    symbols = made["symbols"]
    assert symbols["init_task"]["address"] == kernel.symbols["init_task"].address - kernel.kaslr_shift
    assert symbols["init_task"]["type"] == {"kind": "struct", "name": "task_struct"}
    assert symbols["taint_flags"]["type"]["count"] == 19
    assert symbols["tk_core"]["type"]["kind"] == "struct"
    assert own_banner(kernel).startswith(b"Linux version " + kernel.release.encode())


def test_a_part_of_a_real_file_follows_volatilitys_schema(real: tuple[Kernel, dict[str, Any]]) -> None:
    """Every twentieth type, enumeration and symbol; the whole takes minutes."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed: pip install jsonschema")
    _, made = real
    part = {
        key: dict(list(made[key].items())[::20]) if key in ("user_types", "enums", "symbols") else made[key]
        for key in made
    }
    jsonschema.Draft7Validator(volatilitys_schema()).validate(part)
