# SPDX-License-Identifier: GPL-2.0-or-later
"""drgn's view of a kernel in an image or a dump: symbols, types and objects. Witness: drgn's own kallsyms, pahole."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from hibernaut.errors import FormatError, HibernautError, how_to_install
from hibernaut.kernel.kernel import Kernel
from hibernaut.kernel.kernel_memory import KernelMemory
from hibernaut.kernel.program import _Pages
from hibernaut.kernel.symbol_table import SymbolTable, read_symbol_table
from hibernaut.sources import open_memory
from tests.conftest import Golden
from tests.kernel.by_drgn import drgn_symbols
from tests.kernel.stopped import DUMP, StoppedKernel

GUEST_TASKS = {"swap-6.1-lzo.img": 45, "swap-6.12-lz4.img": 50}


def test_threads_share_the_pages_that_are_kept() -> None:
    """A thread that reads between any two steps of another one gets its own page, and so does the other one."""
    pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn")
    found: list[bytes] = []
    switching: list[bool] = []

    def page(number: int) -> bytes:
        if switching and switching.pop():
            found.append(reader(1 << 12, 4, 0, True))
            switching.append(True)
        return bytes([number]) * 4096

    reader = _Pages(page, lambda: None)
    reader(1 << 12, 4, 0, True)
    for number in range(2, 9):
        switching.append(True)
        assert reader(number << 12, 4, 0, True) == bytes([number]) * 4
        switching.clear()
    assert set(found) == {b"\1\1\1\1"}
    assert reader((3 << 12) - 2, 4, 0, True) == b"\2\2\3\3"


@pytest.mark.parametrize("image", ["swap-6.1-lzo.img", "swap-6.12-lz4.img"])
def test_symbols_are_those_that_drgn_reads(golden: Golden, image: str) -> None:
    """All names, addresses and bindings, with KASLR (6.12) and without."""
    with open_memory(golden(image)) as source:
        kernel = Kernel.of(source)
        table = kernel.symbols.table
        theirs = {(one.name, one.address) for one in drgn_symbols(source.memory, kernel.vmcoreinfo)}
    assert {(name, address) for _, name, address in table} == theirs
    for row in range(0, len(table), 997):
        assert row in table.rows(table.name(row))
        address = int(table.addresses[row])
        found = table.row_at(address)
        assert found is not None
        assert int(table.addresses[found]) == address
    assert table.rows(table.name(len(table) - 1))[-1] == len(table) - 1


@pytest.mark.parametrize("image", sorted(GUEST_TASKS))
def test_helpers_of_drgn_work_on_an_image(golden: Golden, image: str) -> None:
    """Tasks, modules, the log and bit fields, without debug packages, in place."""
    pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn")
    from drgn.helpers.linux.module import for_each_module
    from drgn.helpers.linux.pid import find_task, for_each_task
    from drgn.helpers.linux.printk import get_dmesg

    with open_memory(golden(image)) as source:
        kernel = Kernel.of(source)
        program = kernel.drgn()
        names = {task.pid.value_(): task.comm.string_() for task in for_each_task(program)}
        assert len(names) == GUEST_TASKS[image]
        assert names[1] == b"init"
        assert names[2] == b"kthreadd"
        assert b"virtio_blk" in {module.name.string_() for module in for_each_module(program)}
        assert b"PM: hibernation: Creating image:" in get_dmesg(program)
        assert kernel["init_uts_ns"].name.release.string_().decode() == kernel.release
        task = find_task(program, 1)
        assert task.sched_reset_on_fork.value_() == 0  # a bit field
        assert kernel["PIDTYPE_TGID"].value_() == 1
        assert "no_such_thing" not in kernel
        assert kernel["schedule"].address_of_().value_() == kernel.symbols["schedule"].address
        page = kernel.object("struct page", int(kernel["vmemmap"]))
        assert page.type_.size == kernel.number("SIZE(page)")
        with pytest.raises(LookupError):
            kernel.object("struct no_such_structure", 0)


def test_types_have_the_offsets_that_vmcoreinfo_has(kernel: StoppedKernel) -> None:
    """Every OFFSET and SIZE of a structure in VMCOREINFO, written by the kernel's own compiler, equals BTF's."""
    drgn = pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn")
    program = Kernel(kernel.memory, kernel.text).drgn()
    compared = 0
    for key, value in kernel.facts.items():
        what, _, name = key.rstrip(")").partition("(")
        tag, _, member = name.partition(".")
        if what not in ("OFFSET", "SIZE"):
            continue
        try:
            found = program.type(f"struct {tag}")
        except LookupError:
            continue
        if what == "SIZE":
            assert found.size == int(value), key
        else:
            assert drgn.offsetof(found, member) == int(value), key
        compared += 1
    assert compared > 40


def test_without_drgn(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    """Symbols need no drgn; objects do, with one line and the command that installs it."""
    monkeypatch.setitem(sys.modules, "drgn", None)
    with open_memory(golden(DUMP)) as source:
        kernel = Kernel.of(source)
        assert kernel.symbols["swsusp_save"].address
        with pytest.raises(HibernautError, match=r"drgn 0\.1 or newer.* is not installed; try: .*") as error:
            kernel.drgn()
    assert how_to_install("drgn") in str(error.value)


def test_addresses_that_contradict_vmcoreinfo_are_refused(kernel: StoppedKernel) -> None:
    """Another base, or another place of the offsets: no reading agrees, and none is guessed."""
    base = int(kernel.facts["SYMBOL(kallsyms_relative_base)"], 16)
    for shift in (-4096, 8, 1 << 30):
        memory = kernel.with_u64(base, kernel.u64(base) + shift)
        with pytest.raises(FormatError, match="the addresses of kallsyms are not those of VMCOREINFO"):
            read_symbol_table(KernelMemory(memory, kernel.text))
    text = kernel.text.replace(b"SYMBOL(kallsyms_offsets)", b"SYMBOL(no_offsets)")
    with pytest.raises(FormatError, match="no SYMBOL"):
        read_symbol_table(KernelMemory(kernel.memory, text))


def test_a_table_of_few_symbols() -> None:
    """Sizes reach to the next higher address; two symbols of one name are both found; a name's end is not a name."""
    table = SymbolTable(b"\0Ta\0tba\0ta\0Dlast", np.array([16, 32, 32, 64], dtype=np.uint64))
    assert [table.size_bytes(row) for row in range(4)] == [16, 32, 32, 0]
    assert table.rows("a") == [0, 2]
    assert table.rows("last") == [3]
    assert table.rows("as") == table.rows("") == []
    assert [table.is_global(row) for row in range(4)] == [True, False, False, True]
    assert table.row_at(15) is None
    assert [table.row_at(at) for at in (16, 31, 63, 1 << 60)] == [0, 0, 2, 3]
