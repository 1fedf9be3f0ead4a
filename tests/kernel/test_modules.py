# SPDX-License-Identifier: GPL-2.0-or-later
"""Types and symbols of loaded modules. Witnesses: Debian's .ko files, bpftool, drgn's own kallsyms of modules."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from hibernaut.kernel.btf import Btf, BtfKind
from hibernaut.kernel.btf_for_drgn import DrgnTypes
from hibernaut.kernel.isf import isf_digest, isf_document
from hibernaut.kernel.kernel import Kernel
from hibernaut.kernel.layouts import HAND_WRITTEN
from hibernaut.kernel.modules_for_drgn import TypesOfModules
from hibernaut.kernel.symbol_table import KernelSymbols, SymbolTable
from hibernaut.kernel.symbols import SymbolicKernel
from hibernaut.memory.overlay import Overlay
from hibernaut.sources import Source, open_memory
from tests.conftest import Golden
from tests.kernel.stopped import StoppedKernel
from tests.kernel.test_btf import Writer
from tests.kernel.test_isf import BANNER, SYMBOLS, HandMade, HandMadeModule, some_types

BTF_OF_KO = {
    "virtio_blk": "5f3684dbf24ea19c3a9ee438e9832682316f53230a51bdc4d47cf0d323a1c6c5",
    "virtio_pci": "c828999dde4ad08f8fbaab200d96090ed0adfbd49c87ea938724e0308aa0b41a",
    "virtio_pci_legacy_dev": "06f60778d5fb1f723934addaf9340652b786ec8aa790a4a7a9494976dcfc4cf8",
    "virtio_pci_modern_dev": "3ef293ad6fd3cb7267d42aed843748abbbdeb62c3dae92ea0a42e4fea096bbfa",
    "virtio": "6e3e1ef6d760e5836b903659a1d30e7430cebe0f479da002f3d7c5adb80e7138",
    "virtio_ring": "04e67a6291935eec2736c907b097ad08215155e1bb203771572b213426757128",
}
"""SHA-256 of the section .BTF of the modules in linux-image-6.1.0-56-amd64, which the guest has loaded."""


@pytest.fixture(scope="module")
def image(golden: Golden) -> Any:
    """The image of a guest with modules."""
    with open_memory(golden("swap-6.1-lzo.img")) as source:
        yield source


def test_types_are_those_of_the_files(image: Source) -> None:
    """The BTF of each module is byte for byte that of the file; its numbers continue where the kernel's end."""
    kernel = Kernel.of(image)
    assert list(kernel.modules) == list(BTF_OF_KO)
    assert kernel.modules.trouble is None
    assert kernel.btf is not None
    for name, module in kernel.modules.items():
        assert module.btf is not None, module.btf_trouble
        assert module.btf.first == kernel.btf.end
        types, strings = module.btf.raw
        made = header(len(types), len(strings)) + bytes(types) + strings
        assert hashlib.sha256(made).hexdigest() == BTF_OF_KO[name]


def header(type_bytes: int, string_bytes: int) -> bytes:
    """Return the header of a BTF without a layout."""
    return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, type_bytes, type_bytes, string_bytes)


def test_bpftool_has_the_same_types(image: Source, tmp_path: Path) -> None:
    """Kind, name, size, members and references of every type of every module."""
    bpftool = shutil.which("bpftool", path="/usr/sbin:/usr/bin:/sbin:/bin") or pytest.skip("bpftool is not installed")
    kernel = Kernel.of(image)
    assert kernel.btf is not None
    base = write_btf(tmp_path / "vmlinux", kernel.btf)
    compared = 0
    for name, module in kernel.modules.items():
        btf = module.btf
        assert btf is not None
        file = write_btf(tmp_path / name, btf)
        command = [bpftool, "-j", "-B", str(base), "btf", "dump", "file", str(file)]
        theirs = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["types"]
        assert len(theirs) == len(btf)
        for one in theirs:
            number = one["id"]
            assert (btf.kind(number).name, btf.name(number)) == (one["kind"], plain(one["name"]))
            if "size" in one:
                assert btf.size_bytes(number) == one["size"]
            if "members" in one:
                members = [(m.name, m.type, m.bit_offset) for m in btf.members(number)]
                assert members == [(plain(m["name"]), m["type_id"], m["bits_offset"]) for m in one["members"]]
            compared += 1
    assert compared == 425


def plain(name: str) -> str:
    """Return a name as BTF has it."""
    return "" if name == "(anon)" else name


def write_btf(path: Path, btf: Btf) -> Path:
    """Write a BTF to a file."""
    types, strings = btf.raw
    path.write_bytes(header(len(types), len(strings)) + bytes(types) + strings)
    return path


@pytest.mark.parametrize("name", ["swap-6.1-lzo.img", "swap-6.12-lz4.img"])
def test_drgn_has_types_and_symbols_of_modules(golden: Golden, name: str) -> None:
    """A module's structure, function and constant; symbols by name and address, equal to drgn's own reading."""
    drgn = pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn")
    kallsyms = pytest.importorskip("drgn.helpers.linux.kallsyms")
    with open_memory(golden(name)) as source:
        kernel = Kernel.of(source)
        program = kernel.drgn()
        request = program.type("struct virtblk_req")
        assert str(request) == str(program.type("struct virtblk_req", "virtio_blk"))
        assert next(iter(request.members)).name == "out_hdr"
        for tag, module in (("virtblk_req", "virtio"), ("task_struct", "virtio_blk"), ("virtblk_req", "no_module")):
            with pytest.raises(LookupError):
                program.type(f"struct {tag}", module)
        if name == "swap-6.1-lzo.img":
            assert program["VP_MSIX_VQ_VECTOR"].value_() == 1
        probe = program.function("virtblk_probe")
        assert next(iter(probe.type_.parameters)).type.type_name() == "struct virtio_device *"
        symbol = program.symbol(probe.address_ + 9)
        assert (symbol.name, symbol.address) == ("virtblk_probe", probe.address_)
        assert symbol.binding == drgn.SymbolBinding.LOCAL
        for stray in (0, 0x1000, int(kernel["init_task"].mm.value_()), kernel["init_task"].files.value_()):
            names = [one.name for one in program.symbols(stray)]
            assert names in ([], ["init_files"])
        theirs = kallsyms.load_module_kallsyms(program)(program, None, None, False)
        table = kernel.modules.symbols
        ours = {(table.name(row), int(table.addresses[row]), table.size_bytes(row)) for row in range(len(table))}
        assert ours == {(one.name, one.address, one.size) for one in theirs}
        assert len(ours) > 180
        bindings = {(one.name, one.address): one.binding for one in theirs}
        for row in range(len(table)):
            is_global = bindings[table.name(row), int(table.addresses[row])] == drgn.SymbolBinding.GLOBAL
            assert table.is_global(row) == is_global


def spoilt(kernel: StoppedKernel, address: int, value: int, size_bytes: int = 8) -> Kernel:
    """Return the kernel with a value of its memory changed."""
    return Kernel(kernel.with_u64(address, value, size_bytes), kernel.text)


def place(kernel: Kernel, name: str, structure: str, member: str) -> int:
    """Return the address of a member: of a module, its `struct btf` or its `struct mod_kallsyms`."""
    module = kernel.modules[name].address
    offset = kernel.layouts.structure(structure).offsets[member]
    if structure == "module":
        return module + offset
    if structure == "btf":
        found = kernel.modules.place_of_btf(module)
        assert found is not None
        return found + offset
    return kernel.u64(module + kernel.layouts.structure("module").offsets["kallsyms"], name) + offset


@pytest.mark.parametrize(
    ("member", "value", "size_bytes", "words"),
    [
        ("data", 0x1234, 8, "nothing to read"),
        ("data_size", 0, 4, "it has 0 bytes"),
        ("data_size", 0xFFFFFFFF, 4, "expected 1 to"),
        ("data_size", 40, 4, "section of types ends"),
        ("start_id", 7, 4, "it continues type 7"),
        ("start_str_off", 7, 4, "and string 7"),
    ],
)
def test_damaged_types_of_a_module(kernel: StoppedKernel, member: str, value: int, size_bytes: int, words: str) -> None:
    """One line says why the module has no types; the other modules have theirs."""
    whole = Kernel(kernel.memory, kernel.text)
    damaged = spoilt(kernel, place(whole, "virtio", "btf", member), value, size_bytes)
    module = damaged.modules["virtio"]
    assert module.btf is None
    assert module.btf_trouble is not None
    assert words in module.btf_trouble
    assert "\n" not in module.btf_trouble
    assert damaged.modules["virtio_blk"].btf is not None
    assert "struct virtio_driver" not in str(module.btf_trouble)


@pytest.mark.parametrize(
    ("member", "value", "size_bytes", "words"),
    [
        ("symtab", 1 << 50, 8, "nothing to read"),
        ("num_symtab", 0, 4, "there are 0"),
        ("num_symtab", 0xFFFFFFFF, 4, "expected 1 to"),
        ("num_symtab", 1 << 17, 4, "nothing to read"),
        ("strtab", 8, 8, "nothing to read"),
        ("typetab", 0xFFFFFFFFFFFFFFFF, 8, "not in the address space"),
    ],
)
def test_damaged_symbols_of_a_module(
    kernel: StoppedKernel, member: str, value: int, size_bytes: int, words: str
) -> None:
    """One line says why the module has no symbols; the other modules have theirs."""
    whole = Kernel(kernel.memory, kernel.text)
    damaged = spoilt(kernel, place(whole, "virtio", "mod_kallsyms", member), value, size_bytes)
    module = damaged.modules["virtio"]
    assert module.symbols is None
    assert module.symbols_trouble is not None
    assert words in module.symbols_trouble
    assert "\n" not in module.symbols_trouble
    assert len(damaged.modules.symbols) == 637 - 90


def test_damaged_names_of_symbols(kernel: StoppedKernel) -> None:
    """A name far away, and one without an end, are refused and nothing of their size is read."""
    whole = Kernel(kernel.memory, kernel.text)
    symtab = whole.u64(place(whole, "virtio", "mod_kallsyms", "symtab"), "symtab")
    far = spoilt(kernel, symtab + 24, 0xFFFFFFF0, 4).modules["virtio"]
    assert far.symbols is None
    assert "a name lies at byte" in str(far.symbols_trouble)
    strings = whole.u64(place(whole, "virtio", "mod_kallsyms", "strtab"), "strtab")
    memory = Overlay(kernel.memory)
    for at in range(strings, strings + 800):
        memory.write(kernel.paddr(at), b"a")
    endless = Kernel(memory, kernel.text).modules["virtio"]
    assert endless.symbols is None
    assert "a symbol's name has more than 512 bytes" in str(endless.symbols_trouble)


def test_broken_lists(kernel: StoppedKernel) -> None:
    """A list that returns to itself, or breaks off, keeps its start; there is a reason for the rest."""
    whole = Kernel(kernel.memory, kernel.text)
    third = place(whole, "virtio_pci_legacy_dev", "module", "list")
    for target in (third, 0, place(whole, "virtio_blk", "module", "list")):
        damaged = spoilt(kernel, third, target)
        assert list(damaged.modules) == list(BTF_OF_KO)[:3]
        assert damaged.modules.trouble is not None
        assert "\n" not in damaged.modules.trouble
    head = whole.symbols["btf_modules"].address
    for target in (head + 8, 0x77):
        damaged = spoilt(kernel, head, target)
        assert list(damaged.modules) == list(BTF_OF_KO)
        assert all(one.btf is None and one.btf_trouble for one in damaged.modules.values())


def test_modules_that_are_not_ready(kernel: StoppedKernel) -> None:
    """An unformed module is left out, as the kernel does; one of two modules of a name is there once."""
    whole = Kernel(kernel.memory, kernel.text)
    unformed = spoilt(kernel, place(whole, "virtio", "module", "state"), 3, 4)
    assert "virtio" not in unformed.modules
    name = place(whole, "virtio_ring", "module", "name")
    memory = Overlay(kernel.memory)
    memory.write(kernel.paddr(name), b"virtio\0\x1b[")
    twice = Kernel(memory, kernel.text).modules
    assert list(twice) == list(BTF_OF_KO)[:5]
    assert twice["virtio"].address == whole.modules["virtio"].address


def test_kernels_without_types_of_modules(kernel: StoppedKernel) -> None:
    """Without the list of them, as 5.10, and without BTF: the reason."""
    bare = Kernel(kernel.memory, kernel.text)
    table = bare.symbols.table
    bare.symbols = KernelSymbols(SymbolTable(table.names.replace(b"btf_modules", b"btf_nothing"), table.addresses))
    assert bare.modules["virtio"].btf is None
    assert "CONFIG_DEBUG_INFO_BTF_MODULES" in str(bare.modules["virtio"].btf_trouble)
    assert bare.modules["virtio"].symbols is not None
    none = SymbolicKernel(kernel.memory, kernel.text, layouts=HAND_WRITTEN)
    assert len(none.modules) == len(none.modules.symbols) == 0
    assert none.modules.symbols.rows("virtio") == []
    assert "no struct module" in str(none.modules.trouble)


class OfModule(NamedTuple):
    """A module's types, in place of a `LoadedModule`."""

    btf: Btf | None
    symbols: KernelSymbols | None = None


def some_module(base: Btf, at: int = 8, value: int = 5) -> Btf:
    """Return types of a module: a structure whose member lies somewhere, an enumerator, a function, an array."""
    w = Writer(strings=bytearray(b"\0"), first_string=base.strings_end, number=len(base))
    w.add(BtfKind.STRUCT, "mine", 16, w.text("field"), 1, 8 * at, length=1)
    w.add(BtfKind.ENUM, "", 4, w.text("MINE"), value, length=1)
    proto = w.add(BtfKind.FUNC_PROTO, "", 1)
    w.add(BtfKind.FUNC, "do_mine", proto)
    return Btf(w.content(), base)


def test_modules_that_differ_are_told_apart() -> None:
    """A name that modules use for different things is refused until the module is named; equal things are one."""
    drgn = pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn")
    program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    w = Writer()
    w.add(BtfKind.INT, "int", 4, 1 << 24 | 32)
    base = Btf(w.content())
    symbols = KernelSymbols(SymbolTable(b"\0tdo_mine", np.array([0xFFFFFFFFC0001000], dtype=np.uint64)))
    modules: Any = {
        "one": OfModule(some_module(base), symbols),
        "same": OfModule(some_module(base), symbols),
        "other": OfModule(some_module(base, 4, 6)),
        "none": OfModule(None),
    }
    struct_kind = {drgn.TypeKind.STRUCT}

    def types(*names: str) -> Any:
        return TypesOfModules(DrgnTypes(program, base), {name: modules[name] for name in names})

    assert types("one", "same", "none").find(struct_kind, "mine", None).members[0].offset == 8
    assert types("one", "same").constant("MINE", None).value_() == 5
    every = types("one", "other", "none")
    assert every.find(struct_kind, "mine", "other").members[0].offset == 4
    assert every.find(struct_kind, "mine", "none") is None
    assert every.find({drgn.TypeKind.UNION}, "mine", None) is None
    assert every.constant("MINE", "other").value_() == 6
    assert every.function("do_mine", "one").address_ == 0xFFFFFFFFC0001000
    assert every.function("do_mine", "other") is None  # it has no symbol
    questions: list[Callable[[], Any]] = [
        lambda: every.find(struct_kind, "mine", None),
        lambda: every.constant("MINE", None),
        lambda: types("one", "same").function("do_mine", None),  # each has an address of its own
    ]
    for question in questions:
        with pytest.raises(LookupError, match=r"is not the same in the modules one and (other|same); name one of them"):
            question()


def test_symbol_files_have_types_of_modules() -> None:
    """A structure of a module is in Volatility's file, once for each layout; the digest covers it."""
    w = some_types()
    base = Btf(w.content())
    one, two = HandMadeModule("one", some_module(base)), HandMadeModule("two", some_module(base, 4))
    bare, both = HandMade(some_types(), SYMBOLS), HandMade(some_types(), SYMBOLS, BANNER, one, two)
    found: Any = isf_document(both, "1")  # type: ignore[arg-type]
    mine = {name: type_["fields"]["field"]["offset"] for name, type_ in found["user_types"].items() if "mine" in name}
    assert mine == {"mine": 8, f"mine__{len(base) + 1}_two": 4}
    assert found["user_types"]["mine"]["fields"]["field"]["type"] == {"kind": "base", "name": "unsigned int"}
    assert found["enums"].keys() >= {f"unnamed_{len(base) + 2}_one", f"unnamed_{len(base) + 2}_two"}
    plain_file: Any = isf_document(bare, "1")  # type: ignore[arg-type]
    assert plain_file["user_types"].items() <= found["user_types"].items()
    assert plain_file["symbols"] == found["symbols"]
    digests = {isf_digest(kernel) for kernel in (bare, both)}  # type: ignore[arg-type]
    assert len(digests) == 2
