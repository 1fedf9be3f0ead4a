# SPDX-License-Identifier: GPL-2.0-or-later
"""The names of a kernel's symbols, wherever they come from. Witness: drgn, on the same memory."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from hibernaut.errors import FormatError
from hibernaut.kernel.running import running_machine
from hibernaut.kernel.symbol_names import (
    SymbolNames,
    names_in_memory,
    names_of_running,
    names_of_system_map,
    names_of_vmlinuz,
)
from hibernaut.memory.overlay import Overlay
from tests.kernel.by_drgn import symbols_by_drgn
from tests.kernel.stopped import StoppedKernel
from tests.kernel.vmlinux import RELEASE, bzimage, kernel_image

FUNCTIONS = [b"Tfunction_%d" % number for number in range(1100)]
MAP = b"".join(b"ffffffff81%06x %s %s\n" % (number, one[:1], one[1:]) for number, one in enumerate(FUNCTIONS))


def test_names_are_those_that_drgn_finds(kernel: StoppedKernel) -> None:
    """Every name that drgn has is there, suffixes aside, and what it lacks is not."""
    found = names_in_memory(kernel.memory, kernel.text)
    theirs = {symbol.name.split(".", 1)[0] for symbol in symbols_by_drgn(kernel)}
    assert found.names == theirs
    assert found.has_data_symbols
    assert found.has_function("swsusp_save")
    assert found.has_data("orig_bm")
    assert not found.has_function("set_memory_rox")
    assert found.has_data("zero_bm") is False
    assert found.has_member("struct page", "flags") is None


@pytest.mark.parametrize(
    ("part", "value", "told"),
    [
        ("num_syms", 0, "kallsyms_num_syms is 0; expected 1 to 1048576"),
        ("num_syms", 1 << 21, "kallsyms_num_syms is 2097152"),
        ("num_syms", 1 << 20, "kallsyms is damaged"),
        ("token_index", 0xFFFFFFFF, "kallsyms is damaged"),
    ],
)
def test_damaged_kallsyms_is_refused(kernel: StoppedKernel, part: str, value: int, told: str) -> None:
    """A number that cannot be, a table that ends before the symbols do, a token outside its table."""
    memory = kernel.with_u64(int(kernel.facts[f"SYMBOL(kallsyms_{part})"], 16), value, 4)
    with pytest.raises(FormatError, match=told):
        names_in_memory(memory, kernel.text)


def test_vmcoreinfo_without_kallsyms_or_with_the_tables_elsewhere(kernel: StoppedKernel) -> None:
    """Kernels before 5fd8fea935a1 do not say; tables in an order that no kernel has are not followed."""
    with pytest.raises(FormatError, match=r"VMCOREINFO has no SYMBOL\(kallsyms_num_syms\)"):
        names_in_memory(Overlay(kernel.memory), kernel.text.replace(b"kallsyms_num_syms", b"kallsyms_none"))
    names = kernel.facts["SYMBOL(kallsyms_names)"].encode()
    tokens = kernel.facts["SYMBOL(kallsyms_token_table)"].encode()
    swapped = kernel.text.replace(names, b"?").replace(tokens, names).replace(b"?", tokens)
    with pytest.raises(FormatError, match="are not in this order"):
        names_in_memory(kernel.memory, swapped)


def test_names_without_variables_do_not_deny_one() -> None:
    """Without CONFIG_KALLSYMS_ALL a variable that is not listed may be there all the same."""
    functions = SymbolNames.of([b"Tswsusp_save", b"tcollapse_large_pages.isra.0", b"Rrodata"])
    assert functions.has_data("zero_bm") is None
    assert functions.has_function("collapse_large_pages")
    assert SymbolNames.of([b"Tswsusp_save", b"bother"]).has_data("zero_bm") is False


def test_the_running_kernel(tmp_path: Path) -> None:
    """/proc/kallsyms without root, all addresses 0; modules' symbols are not the kernel's."""
    (tmp_path / "proc").mkdir()
    lines = [b"0000000000000000 %s %s\n" % (one[:1], one[1:]) for one in FUNCTIONS]
    (tmp_path / "proc/kallsyms").write_bytes(b"".join(lines) + b"0000000000000000 t set_memory_rox\t[mine]\n")
    found = names_of_running(tmp_path)
    assert found.names == {one[1:].decode() for one in FUNCTIONS}
    assert not found.has_data_symbols
    assert running_machine(tmp_path).kernel == found
    (tmp_path / "proc/kallsyms").write_bytes(b"")
    assert running_machine(tmp_path).kernel is None


def test_a_kernel_on_a_disk_has_its_own_names_or_its_system_maps(tmp_path: Path) -> None:
    """The bzImage first, then a System.map beside it; Debian's, which is one line, is none."""
    path, beside = tmp_path / "vmlinuz", tmp_path / f"System.map-{RELEASE.decode()}"
    beside.write_bytes(MAP + b"ffffffff82000000 D variable\n")
    path.write_bytes(bzimage(gzip.compress(kernel_image(FUNCTIONS))))
    assert not names_of_vmlinuz(path).has_data_symbols
    path.write_bytes(bzimage(b"\x89LZO"))
    assert names_of_vmlinuz(path).has_data("variable")
    beside.write_bytes(b"ffffffffffffffff B The real System.map is in the linux-image-<version>-dbg package\n")
    with pytest.raises(FormatError, match=r"0 symbols in it: .*System\.map-.*; expected at least 1024"):
        names_of_vmlinuz(path)
    beside.unlink()
    with pytest.raises(FormatError, match="payload cannot be unpacked"):
        names_of_vmlinuz(path)
    with pytest.raises(OSError, match="System"):
        names_of_system_map(beside)
